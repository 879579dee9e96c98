package e2b

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// transfersAtOnce is how many files go over the network at the same time.
	// Most of the time of a small one is waiting.
	transfersAtOnce = 8
	// defaultTreeBytes bounds a tree of artifacts, unless its caller does.
	defaultTreeBytes = 16 << 30
	// maxTreeDepth bounds how deep a tree of artifacts may be.
	maxTreeDepth = 64
)

// File is a file to upload.
type File struct {
	Path string                        // in the sandbox
	Open func() (io.ReadCloser, error) // opens its content
	Size int64                         // of the content, in bytes
}

// UploadPackage uploads files, several at a time, each as [Sandbox.Upload]
// does. After an error some of them may be there.
func (s *Sandbox) UploadPackage(ctx context.Context, files []File) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(transfersAtOnce)
	for _, f := range files {
		group.Go(func() error { return s.uploadFile(ctx, f) })
	}
	return group.Wait()
}

func (s *Sandbox) uploadFile(ctx context.Context, f File) error {
	r, err := f.Open()
	if err != nil {
		return fmt.Errorf("upload %q: %w", f.Path, err)
	}
	defer r.Close()
	return s.Upload(ctx, f.Path, r, f.Size)
}

// ArtifactOptions say how to download a tree of files.
type ArtifactOptions struct {
	// MaxBytes bounds the size of all files together, so that a sandbox cannot
	// fill the local disk. Zero means 16 GiB, negative no limit.
	MaxBytes int64

	// Skipped is told of everything that is not downloaded because it is
	// neither a regular file nor a directory, such as a symbolic link. It is
	// called before the first download, from one goroutine. Nil means nobody.
	Skipped func(FileInfo)
}

// DownloadArtifacts downloads the regular files in a directory and in those
// below it, down to a depth of 64, into a local directory, which it makes. It
// returns those that are there afterwards, by path, also with an error: each is
// whole, and has the size in its FileInfo. The error matches [fs.ErrNotExist]
// when there is no such directory, and [ErrTooLarge] when there is more than
// ArtifactOptions.MaxBytes.
func (s *Sandbox) DownloadArtifacts(ctx context.Context, dir, local string, o ArtifactOptions) ([]FileInfo, error) {
	top, err := s.Stat(ctx, dir)
	if err != nil {
		return nil, err
	}
	dir = path.Clean(top.Path)
	infos, err := s.List(ctx, dir, maxTreeDepth)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(local, 0o777); err != nil {
		return nil, fmt.Errorf("download artifacts: %w", err)
	}
	root, err := os.OpenRoot(local) // nothing gets out of it, not by a link either
	if err != nil {
		return nil, fmt.Errorf("download artifacts: %w", err)
	}
	defer root.Close()
	tree := &tree{sandbox: s, dir: dir, root: root, limit: o.limit()}
	return tree.download(ctx, choose(infos, o.Skipped))
}

func (o ArtifactOptions) limit() int64 {
	if o.MaxBytes < 0 {
		return math.MaxInt64
	}
	return cmp.Or(o.MaxBytes, defaultTreeBytes)
}

// tree is a download of a directory.
type tree struct {
	sandbox *Sandbox
	dir     string
	root    *os.Root

	limit int64 // of all files together, in bytes

	mu    sync.Mutex
	taken int64 // of the limit
	done  []FileInfo
}

// take counts the bytes of a file, unless they are too many.
func (t *tree) take(n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n > t.limit-t.taken {
		return fmt.Errorf("%w: all files together have more than %d bytes, see ArtifactOptions.MaxBytes", ErrTooLarge, t.limit)
	}
	t.taken += n
	return nil
}

// choose leaves only regular files.
func choose(infos []FileInfo, skipped func(FileInfo)) []FileInfo {
	var files []FileInfo
	for _, info := range infos {
		switch {
		case info.Type == TypeFile && info.LinkedTo == "":
			files = append(files, info)
		case (info.Type != TypeDirectory || info.LinkedTo != "") && skipped != nil:
			skipped(info)
		}
	}
	return files
}

func (t *tree) download(ctx context.Context, files []FileInfo) ([]FileInfo, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(transfersAtOnce)
	for _, info := range files {
		group.Go(func() error { return t.file(ctx, info) })
	}
	err := group.Wait()
	slices.SortFunc(t.done, func(a, b FileInfo) int { return strings.Compare(a.Path, b.Path) })
	return t.done, err
}

// file downloads one file to a temporary name beside its own.
func (t *tree) file(ctx context.Context, info FileInfo) error {
	name, err := t.localName(info.Path)
	if err != nil {
		return err
	}
	if err := t.root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return fmt.Errorf("download %q: %w", info.Path, err)
	}
	part := filepath.Join(filepath.Dir(name), "."+rand.Text()+".part")
	size, err := t.fetch(ctx, info.Path, part)
	if err == nil {
		err = t.root.Rename(part, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("download %q: %w", info.Path, err), ignoreMissing(t.root.Remove(part)))
	}
	info.Size = size
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = append(t.done, info)
	return nil
}

// localName is the name of a file in the local directory. The sandbox's word
// for it is not trusted.
func (t *tree) localName(name string) (string, error) {
	rel, ok := strings.CutPrefix(name, strings.TrimSuffix(t.dir, "/")+"/")
	rel = filepath.FromSlash(rel)
	if !ok || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("download %q: %w: it is not a name within %q", name, ErrInvalid, t.dir)
	}
	return rel, nil
}

func (t *tree) fetch(ctx context.Context, name, part string) (int64, error) {
	r, err := t.sandbox.Download(ctx, name)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if err := t.take(r.Size()); err != nil {
		return 0, err
	}
	f, err := t.root.Create(part)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r) // which has as many bytes as it said, or fails
	return n, errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
