package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

// input is a file of this machine that a config names.
type input struct {
	name string      // as the config has it
	file string      // where it is here
	sum  rpc.FileSum // where it is to be in the sandbox, and what it holds
}

// findInputs hashes the input files of a run and says where each goes: one
// with a relative path to the same place below base, so that a driver which
// opens it by itself finds it; any other to a place named by its content.
func findInputs(ctx context.Context, ec *ExecutionContext, names []string, dir, base string) ([]input, error) {
	inputs := make([]input, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, name := range names {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			in := input{name: name, file: hostPath(ec, name)}
			if err := in.read(ctx); err != nil {
				return fmt.Errorf("remote: input file %s: %w", name, cause(err))
			}
			in.sum.Path = path.Join(base, filepath.ToSlash(name))
			if !filepath.IsLocal(name) {
				in.sum.Path = path.Join(dir, "inputs", in.sum.XXH3, filepath.Base(name))
			}
			inputs[i] = in
			return nil
		})
	}
	return inputs, group.Wait()
}

func (in *input) read(ctx context.Context) error {
	f, err := in.open()
	if err != nil {
		return err
	}
	defer f.Close()
	in.sum.Size, in.sum.XXH3, err = rpc.XXH3(&contextReader{ctx, f})
	return err
}

// open opens a regular file: to open a pipe would wait for who writes to it.
func (in *input) open() (*os.File, error) {
	info, err := os.Stat(in.file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	return os.Open(in.file)
}

// sendInputs uploads what the sandbox has not got, each place once, and
// returns how many bytes that was.
func sendInputs(ctx context.Context, sb Sandbox, inputs []input) (int64, error) {
	var sent atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	places := make(map[string]bool)
	for _, in := range inputs {
		if places[in.sum.Path] {
			continue
		}
		places[in.sum.Path] = true
		group.Go(func() error {
			if err := in.send(ctx, sb); err != nil {
				return fmt.Errorf("remote: upload %s: %w", in.name, err)
			}
			sent.Add(in.sum.Size)
			return nil
		})
	}
	err := group.Wait()
	return sent.Load(), err
}

func (in *input) send(ctx context.Context, sb Sandbox) error {
	f, err := in.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := sb.Upload(ctx, in.sum.Path, f, in.sum.Size); err != nil {
		return err
	}
	countSent(ctx, in.sum.Size)
	return nil
}

// verify asks the worker whether it and the input files arrived as they were
// sent.
func (l *link) verify(ctx context.Context) error {
	files := l.place.sent
	if l.place.worker != nil {
		files = append(files[:len(files):len(files)], *l.place.worker)
	}
	if len(files) == 0 {
		return nil
	}
	err := l.call(ctx, rpc.MethodVerifyFiles, &rpc.VerifyFiles{Files: files}, nil)
	if errors.Is(err, &rpc.Error{Code: rpc.CodeMethodNotFound}) {
		l.session.logf(slog.LevelWarn, "the worker is an older one and cannot verify what was uploaded")
		return nil
	}
	if err != nil {
		return fmt.Errorf("remote: verify uploads: %w", err)
	}
	return nil
}
