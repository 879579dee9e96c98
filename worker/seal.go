package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

const (
	// sealTries is how often a file is read that is written to meanwhile, and
	// sealPause how long the first of the waits between them is; each is twice
	// as long as the one before.
	sealTries = 3
	sealPause = 100 * time.Millisecond
	// sealBuffer is what one file that is being read takes.
	sealBuffer = 256 << 10
)

// Seal lists the files below an artifacts directory with their sizes and
// checksums. A directory that does not exist holds none. What is not wanted is
// listed as skipped, without being read; nil wants everything. A file that
// cannot be read, or changes whenever it is, is skipped with the reason.
func Seal(ctx context.Context, fsys FS, dir string, want *rpc.SealArtifacts) (*rpc.SealResult, error) {
	if want == nil {
		want = new(rpc.SealArtifacts)
	}
	s := &sealing{fsys: fsys, dir: dir, want: want, result: &rpc.SealResult{Artifacts: []rpc.Artifact{}}}
	if err := s.walk(ctx, ""); err != nil {
		return nil, fmt.Errorf("seal artifacts: %w", err)
	}
	if err := s.sums(ctx); err != nil {
		return nil, fmt.Errorf("seal artifacts: %w", err)
	}
	slices.SortFunc(s.result.Artifacts, func(a, b rpc.Artifact) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.result.Skipped, func(a, b rpc.SkippedArtifact) int { return strings.Compare(a.Path, b.Path) })
	return s.result, nil
}

// sealing is a directory that is being listed.
type sealing struct {
	fsys   FS
	dir    string
	want   *rpc.SealArtifacts
	files  []string // to read
	result *rpc.SealResult
}

func (s *sealing) name(rel string) string { return filepath.Join(s.dir, filepath.FromSlash(rel)) }

func (s *sealing) skip(rel string, size int64, reason string) {
	if !utf8.ValidString(rel) { // which JSON would not keep
		rel = rpc.Printable(rel)
	}
	s.result.Skipped = append(s.result.Skipped, rpc.SkippedArtifact{Path: rel, Size: size, Reason: reason})
}

// walk finds the files below a directory.
func (s *sealing) walk(ctx context.Context, rel string) error {
	entries, err := s.fsys.ReadDir(s.name(rel))
	switch {
	case rel != "" && err != nil && ctx.Err() == nil:
		s.skip(rel, 0, "the directory cannot be read: "+causeOf(err).Error())
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(rel, e.Name())
		switch {
		case e.IsDir():
			if err := s.walk(ctx, name); err != nil {
				return err
			}
		case !e.Type().IsRegular():
			s.skip(name, 0, "it is "+kind(e.Type())+", not a regular file")
		case !utf8.ValidString(name):
			s.skip(name, 0, "its name is not UTF-8")
		default:
			s.consider(name, e)
		}
	}
	return nil
}

// consider takes a file that is wanted.
func (s *sealing) consider(name string, e fs.DirEntry) {
	info, err := e.Info()
	if err != nil {
		s.skip(name, 0, causeOf(err).Error())
		return
	}
	if why := s.want.Unwanted(name, info.Size()); why != "" {
		s.skip(name, info.Size(), why)
		return
	}
	s.files = append(s.files, name)
}

// kind says what something is that is no regular file.
func kind(t fs.FileMode) string {
	switch {
	case t&fs.ModeSymlink != 0:
		return "a symbolic link"
	case t&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case t&fs.ModeSocket != 0:
		return "a socket"
	case t&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

// sums reads the files, several at a time.
func (s *sealing) sums(ctx context.Context) error {
	sealed := make([]rpc.Artifact, len(s.files))
	failed := make([]error, len(s.files))
	var group errgroup.Group
	workers := min(max(runtime.GOMAXPROCS(0), 2), 16)
	for first := range min(workers, len(s.files)) {
		group.Go(func() error {
			buf := make([]byte, sealBuffer)
			for i := first; i < len(s.files); i += workers {
				if sealed[i], failed[i] = s.sum(ctx, s.files[i], buf); ctx.Err() != nil {
					return ctx.Err()
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, name := range s.files {
		if failed[i] != nil {
			s.skip(name, sealed[i].Size, causeOf(failed[i]).Error())
			continue
		}
		s.result.Artifacts = append(s.result.Artifacts, sealed[i])
	}
	return nil
}

var errWritten = errors.New("it was being written")

// sum reads a file until it has not changed meanwhile.
func (s *sealing) sum(ctx context.Context, rel string, buf []byte) (rpc.Artifact, error) {
	pause := sealPause
	for try := 1; ; try++ {
		a, err := sealOnce(ctx, s.fsys, s.name(rel), buf)
		a.Path = rel
		a.StepID, _, _ = strings.Cut(rel, "/")
		if !errors.Is(err, errWritten) || try == sealTries {
			return a, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a, ctx.Err()
		}
		pause *= 2
	}
}

// sealOnce reads a file once. The error is errWritten when it has changed
// meanwhile.
func sealOnce(ctx context.Context, fsys FS, name string, buf []byte) (rpc.Artifact, error) {
	f, err := openRegular(fsys, name)
	if err != nil {
		return rpc.Artifact{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return rpc.Artifact{}, err
	}
	a := rpc.Artifact{Size: before.Size(), Mode: before.Mode().Perm()}
	if !before.Mode().IsRegular() {
		return a, errNotRegular
	}
	slow, quick := sha256.New(), xxh3.New128()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(slow, quick)}, struct{ io.Reader }{io.LimitReader(&contextReader{ctx, f}, a.Size+1)}, buf)
	if err != nil {
		return a, err
	}
	after, err := f.Stat()
	if err != nil {
		return a, err
	}
	if n != before.Size() || after.Size() != n || !after.ModTime().Equal(before.ModTime()) {
		return a, errWritten
	}
	a.SHA256, a.XXH3 = hexSum(slow), fmt.Sprintf("%x", quick.Sum128().Bytes())
	return a, nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// causeOf is an error without the path, which stands beside it.
func causeOf(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
