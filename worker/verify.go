package worker

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

// verifyFiles reports the first file that is not what the host sent.
func (w *ProxyWorker) verifyFiles(ctx context.Context, files []rpc.FileSum) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, f := range files {
		group.Go(func() error {
			if err := w.verifyFile(ctx, f); err != nil {
				return &rpc.Error{Code: rpc.CodeDamagedFile, Message: fmt.Sprintf("file %s: %v", f.Path, err)}
			}
			return nil
		})
	}
	return group.Wait()
}

func (w *ProxyWorker) verifyFile(ctx context.Context, want rpc.FileSum) error {
	f, err := w.opts.FS.Open(want.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, sum, err := rpc.XXH3(&contextReader{ctx, f})
	switch {
	case err != nil:
		return err
	case size != want.Size:
		return fmt.Errorf("it has %d bytes, %d were sent", size, want.Size)
	case sum != want.XXH3:
		return fmt.Errorf("its XXH3 hash is %s, it was sent with %.32s", sum, want.XXH3)
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
