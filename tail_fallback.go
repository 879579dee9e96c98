package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

const (
	// tailStarts is how often in a row a tail may fail to start before the
	// journal is read by file.
	tailStarts = 2
	// byFile is for how long, before it is tried again whether a tail starts.
	byFile = 15 * time.Second
	// filePoll is how often it is looked for more, and fileTimeout bounds one
	// look that gets nowhere.
	filePoll    = 500 * time.Millisecond
	fileTimeout = 30 * time.Second
)

// lister is a sandbox whose directories can be listed.
type lister interface {
	// List returns the names in a directory. The error matches fs.ErrNotExist
	// when there is none.
	List(ctx context.Context, dir string) ([]string, error)
}

// rangeReader is a sandbox whose files can be read in part.
type rangeReader interface {
	// ReadRange opens n bytes of a file from an offset on, or what there is of
	// them, and returns the file's size.
	ReadRange(ctx context.Context, path string, offset, n int64) (io.ReadCloser, int64, error)
}

// startError is a tail that could not be started.
type startError struct{ err error }

func (e *startError) Error() string { return "start tail: " + e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// readOn reads the journal through a tail, or, where none can be started any
// more, as when the sandbox has no process or memory to spare, by file.
func (l *link) readOn(follow bool) (closed bool, err error) {
	files, ok := l.sandbox.(lister)
	if !ok || l.unstarted < tailStarts {
		closed, err = l.readTail(follow)
		if !errors.As(err, new(*startError)) {
			l.unstarted = 0
			return closed, err
		}
		if l.unstarted++; !ok || l.unstarted < tailStarts {
			return false, err
		}
	}
	l.unstarted = tailStarts - 1 // after this, one more try of a tail
	l.session.logf(slog.LevelWarn, "no tail can be started; reading the journal by file from %d on", l.cursor.Load())
	return l.readByFile(files, follow)
}

// readByFile reads the journal's files, for a while or to the close frame.
// Without follow it stops where they end now.
func (l *link) readByFile(files lister, follow bool) (closed bool, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, byFile)
	defer cancel()
	for {
		closed, err = l.readFiles(files)
		torn := errors.Is(err, io.ErrUnexpectedEOF) // in a frame that is being written
		if closed || err != nil && !(torn && follow) || !follow {
			return closed, err
		}
		select {
		case <-l.exited: // once more, without waiting
			follow = false
		case <-time.After(filePoll):
		case <-ctx.Done():
			return false, nil
		}
	}
}

// readFiles reads the journal's files once, up to their present end.
func (l *link) readFiles(files lister) (closed bool, err error) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		store := &journalFiles{ctx: ctx, sandbox: l.sandbox, list: files, dir: path.Join(l.dir, "journal")}
		w.CloseWithError(rpc.Tail(ctx, store, l.cursor.Load(), false, w))
	}()
	closed, err = l.readFrames(rpc.NewFrameReader(&idleReader{r: r, idle: l.idle, heard: &l.heard}, l.cursor.Load(), 0))
	cancel()
	r.Close()
	<-done
	switch {
	case err == io.EOF:
		err = nil
	case errors.Is(err, rpc.ErrJournalTrimmed), errors.Is(err, rpc.ErrFrameCorrupt), errors.Is(err, rpc.ErrFrameOffset):
		err = journalLost(err)
	}
	return closed, err
}

// journalLost is the error of a journal that cannot be read on.
func journalLost(err error) error {
	if errors.Is(err, ErrJournalLost) {
		return err
	}
	return fmt.Errorf("remote: %w: %w", ErrJournalLost, err)
}

// journalFiles is a journal as files of a sandbox. It keeps its context since
// an [rpc.Store] takes none.
type journalFiles struct {
	ctx     context.Context
	sandbox Sandbox
	list    lister
	dir     string
}

var _ rpc.Store = (*journalFiles)(nil)

// List implements [rpc.Store].
func (j *journalFiles) List() ([]string, error) {
	ctx, cancel := context.WithTimeout(j.ctx, fileTimeout)
	defer cancel()
	names, err := j.list.List(ctx, j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the worker has not begun
	}
	return names, err
}

// Open implements [rpc.Store].
func (j *journalFiles) Open(name string) (rpc.SegmentReader, error) {
	ctx, cancel := context.WithTimeout(j.ctx, fileTimeout)
	defer cancel()
	file := path.Join(j.dir, name)
	if _, err := j.sandbox.Size(ctx, file); err != nil {
		return nil, err
	}
	return &journalSegment{j, file}, nil
}

// Create implements [rpc.Store]: nobody but the worker writes.
func (j *journalFiles) Create(string) (rpc.SegmentWriter, error) { return nil, errors.ErrUnsupported }

// Append implements [rpc.Store].
func (j *journalFiles) Append(string, int64) (rpc.SegmentWriter, error) {
	return nil, errors.ErrUnsupported
}

// Remove implements [rpc.Store].
func (j *journalFiles) Remove(string) error { return errors.ErrUnsupported }

// Watch implements [rpc.Store].
func (j *journalFiles) Watch() (<-chan struct{}, func(), error) {
	return nil, nil, errors.ErrUnsupported
}

// journalSegment is a segment of it.
type journalSegment struct {
	*journalFiles
	file string
}

// Close implements [rpc.SegmentReader].
func (s *journalSegment) Close() error { return nil }

// ReadAt implements [rpc.SegmentReader]: every read is a request.
func (s *journalSegment) ReadAt(b []byte, offset int64) (int, error) {
	ctx, cancel := context.WithTimeout(s.ctx, fileTimeout)
	defer cancel()
	r, size, err := s.open(ctx, offset, int64(len(b)))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.ReadFull(r, b[:max(0, min(int64(len(b)), size-offset))])
	if err == nil && offset+int64(n) >= size {
		err = io.EOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || n == 0 && errors.Is(err, io.EOF) && offset < size {
		err = fmt.Errorf("%s has %d bytes and %d came from %d on", s.file, size, n, offset) // not the end of the segment
	}
	return n, err
}

func (s *journalSegment) open(ctx context.Context, offset, n int64) (io.ReadCloser, int64, error) {
	if part, ok := s.sandbox.(rangeReader); ok {
		return part.ReadRange(ctx, s.file, offset, n)
	}
	size, err := s.sandbox.Size(ctx, s.file)
	if err != nil {
		return nil, 0, err
	}
	r, err := s.sandbox.Download(ctx, s.file) // as it is then: no shorter
	if err != nil {
		return nil, 0, err
	}
	if _, err := io.CopyN(io.Discard, r, min(offset, size)); err != nil {
		r.Close()
		return nil, 0, err
	}
	return r, size, nil
}

// List implements [lister].
func (s *e2bSandbox) List(ctx context.Context, dir string) ([]string, error) {
	infos, err := s.sb.List(ctx, dir, 1)
	names := make([]string, len(infos))
	for i, info := range infos {
		names[i] = info.Name
	}
	return names, err
}

// ReadRange implements [rangeReader].
func (s *e2bSandbox) ReadRange(ctx context.Context, path string, offset, n int64) (io.ReadCloser, int64, error) {
	return s.sb.ReadRange(ctx, path, offset, n)
}
