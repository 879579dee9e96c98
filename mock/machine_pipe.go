package mock

import (
	"io"
	"io/fs"
	"sync"
	"syscall"
)

// bufferBytes is the room in a pipe, as Linux has it.
const bufferBytes = 64 << 10

// buffer is a pipe: writes wait for room, reads for something to read.
type buffer struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte
	closed  bool // no more writes
	broken  bool // no more reads
}

func newBuffer() *buffer {
	b := &buffer{}
	b.changed.L = &b.mu
	return b
}

func (b *buffer) Write(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if b.closed || b.broken {
			return n, syscall.EPIPE
		}
		k := min(len(p), bufferBytes-len(b.data))
		b.data = append(b.data, p[:k]...)
		n, p = n+k, p[k:]
		b.changed.Broadcast()
		if len(p) == 0 {
			return n, nil
		}
		b.changed.Wait()
	}
}

// Close ends the writing side.
func (b *buffer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.changed.Broadcast()
	return nil
}

// bufferReader is a buffer's reading side.
type bufferReader struct{ b *buffer }

func (r bufferReader) Read(p []byte) (int, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case b.broken:
			return 0, fs.ErrClosed
		case len(b.data) > 0 || len(p) == 0:
			n := copy(p, b.data)
			b.data = b.data[:copy(b.data, b.data[n:])]
			b.changed.Broadcast()
			return n, nil
		case b.closed:
			return 0, io.EOF
		}
		b.changed.Wait()
	}
}

func (r bufferReader) Close() error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.b.broken = true
	r.b.changed.Broadcast()
	return nil
}

// frost holds up the programs of a sandbox while it is frozen.
type frost struct {
	mu     sync.Mutex
	thawed chan struct{} // closed when it ends; nil while nothing is frozen
}

func (f *frost) set(frozen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case frozen && f.thawed == nil:
		f.thawed = make(chan struct{})
	case !frozen && f.thawed != nil:
		close(f.thawed)
		f.thawed = nil
	}
}

func (f *frost) wait() {
	f.mu.Lock()
	thawed := f.thawed
	f.mu.Unlock()
	if thawed != nil {
		<-thawed
	}
}

type frozenReader struct {
	io.Reader
	wait func()
}

func (r frozenReader) Read(b []byte) (int, error) {
	r.wait()
	return r.Reader.Read(b)
}

type frozenWriter struct {
	io.Writer
	wait func()
}

func (w frozenWriter) Write(b []byte) (int, error) {
	w.wait()
	return w.Writer.Write(b)
}
