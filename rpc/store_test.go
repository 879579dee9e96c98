package rpc_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"

	"github.com/osiris-pipelines/remote/rpc"
)

// memStore keeps a journal in memory. Its fields make writes fail.
type memStore struct {
	mu       sync.Mutex
	segments map[string]*memSegment
	watchers map[chan struct{}]bool

	created []string // names, in order
	removed []string

	// write, when set, may cut a write short and make it fail.
	write func(name string, p []byte) (int, error)
	// create, when set, may fail.
	create func(name string) error
	// open, when set, runs before a segment is opened.
	open func(name string)
	// silent stores give no notices, as some file systems.
	silent bool
}

func newMemStore() *memStore {
	return &memStore{segments: make(map[string]*memSegment), watchers: make(map[chan struct{}]bool)}
}

type memSegment struct {
	store  *memStore
	name   string
	mu     sync.Mutex
	data   []byte
	closed bool
}

func (s *memStore) Create(name string) (rpc.SegmentWriter, error) {
	if s.create != nil {
		if err := s.create(name); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.segments[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	seg := &memSegment{store: s, name: name}
	s.segments[name] = seg
	s.created = append(s.created, name)
	s.noticeLocked()
	return seg, nil
}

func (s *memStore) Append(name string, size int64) (rpc.SegmentWriter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.segments[name]
	if old == nil {
		return nil, &fs.PathError{Op: "append", Path: name, Err: fs.ErrNotExist}
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	old.data, old.closed = old.data[:size], false
	return old, nil
}

func (s *memStore) Open(name string) (rpc.SegmentReader, error) {
	if s.open != nil {
		s.open(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if seg := s.segments[name]; seg != nil {
		return memReader{seg}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (s *memStore) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.segments, name)
	s.removed = append(s.removed, name)
	s.noticeLocked()
	return nil
}

func (s *memStore) List() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{"unrelated.txt", "0123.journal"}
	for name := range s.segments {
		names = append(names, name)
	}
	return names, nil
}

func (s *memStore) Watch() (<-chan struct{}, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{}, 1)
	s.watchers[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, c)
	}, nil
}

func (s *memStore) noticeLocked() {
	if s.silent {
		return
	}
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// names returns the segments there are, sorted.
func (s *memStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.segments {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// bytes returns all segments, one after the other.
func (s *memStore) bytes() []byte {
	var all []byte
	for _, name := range s.names() {
		s.mu.Lock()
		seg := s.segments[name]
		s.mu.Unlock()
		if seg != nil {
			seg.mu.Lock()
			all = append(all, seg.data...)
			seg.mu.Unlock()
		}
	}
	return all
}

func (w *memSegment) Write(p []byte) (int, error) {
	n, err := len(p), error(nil)
	if w.store.write != nil {
		n, err = w.store.write(w.name, p)
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return 0, fs.ErrClosed
	}
	w.data = append(w.data, p[:max(0, min(n, len(p)))]...)
	w.mu.Unlock()
	w.store.mu.Lock()
	w.store.noticeLocked()
	w.store.mu.Unlock()
	return n, err
}

func (w *memSegment) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data = w.data[:size]
	return nil
}

func (w *memSegment) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fs.ErrClosed
	}
	w.closed = true
	return nil
}

// memReader is a segment open for reading.
type memReader struct{ seg *memSegment }

func (r memReader) ReadAt(p []byte, off int64) (int, error) {
	r.seg.mu.Lock()
	defer r.seg.mu.Unlock()
	if off >= int64(len(r.seg.data)) {
		return 0, io.EOF
	}
	n := copy(p, r.seg.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (memReader) Close() error { return nil }

// dirStore keeps a journal in a directory.
type dirStore string

func (d dirStore) path(name string) string { return filepath.Join(string(d), name) }

func (d dirStore) Create(name string) (rpc.SegmentWriter, error) {
	if err := os.MkdirAll(string(d), 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d dirStore) Append(name string, size int64) (rpc.SegmentWriter, error) {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(size, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d dirStore) Open(name string) (rpc.SegmentReader, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d dirStore) Remove(name string) error { return os.Remove(d.path(name)) }

func (d dirStore) List() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (d dirStore) Watch() (<-chan struct{}, func(), error) {
	if err := os.MkdirAll(string(d), 0o750); err != nil {
		return nil, nil, err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Add(string(d)); err != nil {
		w.Close()
		return nil, nil, err
	}
	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case _, ok := <-w.Events:
				if !ok {
					return
				}
			case _, ok := <-w.Errors:
				if !ok {
					return
				}
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, func() { w.Close(); <-done }, nil
}

// discardStore forgets what is written.
type discardStore struct{}

func (discardStore) Create(string) (rpc.SegmentWriter, error) { return discardSegment{}, nil }
func (discardStore) Append(string, int64) (rpc.SegmentWriter, error) {
	return discardSegment{}, nil
}
func (discardStore) Open(string) (rpc.SegmentReader, error)  { return nil, fs.ErrNotExist }
func (discardStore) Remove(string) error                     { return nil }
func (discardStore) List() ([]string, error)                 { return nil, nil }
func (discardStore) Watch() (<-chan struct{}, func(), error) { return nil, func() {}, nil }

type discardSegment struct{}

func (discardSegment) Write(p []byte) (int, error) { return len(p), nil }
func (discardSegment) Truncate(int64) error        { return nil }
func (discardSegment) Close() error                { return nil }
