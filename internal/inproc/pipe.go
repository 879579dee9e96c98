package inproc

import (
	"errors"
	"io"
	"sync"
	"syscall"
)

const (
	firstPipeBytes = 4 << 10
	maxPipeBytes   = 128 << 10
)

// errSignalled is what the function's side of a pipe gets once the process was
// told to end: a real process would not live to see it.
var errSignalled = errors.New("process was told to end")

// pipe is a bounded byte queue as a kernel's pipe is one: a Write blocks while
// it is full, a Read while it is empty. Writes do not interleave.
type pipe struct {
	mu       sync.Mutex
	canRead  sync.Cond
	canWrite sync.Cond

	buf     []byte // a ring: len bytes from start
	start   int
	len     int
	writing bool // a Write is under way; others wait for it
	pending int  // Writes that began and have not returned

	closed     bool  // no new Write; Read returns io.EOF after the pending ones
	readErr    error // set: every Read fails with it, at once
	writeErr   error // set: every Write fails with it, at once
	discarding bool  // Writes succeed and go nowhere
	frozen     bool  // Reads wait for readErr
}

func newPipe() *pipe {
	p := &pipe{}
	p.canRead.L, p.canWrite.L = &p.mu, &p.mu
	return p
}

// change changes the pipe's state and lets all who wait look at it again.
func (p *pipe) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.canRead.Broadcast()
	p.canWrite.Broadcast()
}

// close lets the reader have what was written, then io.EOF.
func (p *pipe) close() { p.change(func() { p.closed = true }) }

// failReads makes every Read fail. The first reason stays.
func (p *pipe) failReads(err error) {
	p.change(func() {
		if p.readErr == nil {
			p.readErr = err
		}
	})
}

// failWrites makes every Write fail. The first reason stays.
func (p *pipe) failWrites(err error) {
	p.change(func() {
		if p.writeErr == nil {
			p.writeErr = err
		}
	})
}

func (p *pipe) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.readErr != nil:
			return 0, p.readErr
		case p.frozen:
		case p.len > 0:
			return p.takeLocked(b), nil
		case p.closed && (p.pending == 0 || p.writeErr != nil):
			return 0, io.EOF
		}
		p.canRead.Wait()
	}
}

func (p *pipe) takeLocked(b []byte) int {
	n := copy(b[:min(len(b), p.len)], p.buf[p.start:])
	n += copy(b[n:min(len(b), p.len)], p.buf)
	p.start, p.len = (p.start+n)%len(p.buf), p.len-n
	if p.len == 0 {
		p.start = 0 // the next Write needs one copy, not two
	}
	p.canWrite.Broadcast()
	return n
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed && p.writeErr == nil {
		return 0, io.ErrClosedPipe
	}
	p.pending++
	for p.writing && p.writeErr == nil {
		p.canWrite.Wait()
	}
	if p.writeErr != nil { // whoever holds writing fails too
		p.pending--
		return 0, p.writeErr
	}
	p.writing = true
	for n < len(b) && err == nil {
		switch {
		case p.writeErr != nil:
			err = p.writeErr
		case p.discarding:
			n = len(b)
		case p.len < maxPipeBytes:
			n += p.putLocked(b[n:])
			p.canRead.Signal()
		default:
			p.canWrite.Wait()
		}
	}
	p.writing = false
	p.pending--
	p.canWrite.Broadcast()
	if p.closed {
		p.canRead.Broadcast() // the last pending Write: the end is here
	}
	return n, err
}

func (p *pipe) putLocked(b []byte) int {
	p.growLocked(min(p.len+len(b), maxPipeBytes))
	n := 0
	for range 2 { // up to the ring's edge, then from its beginning
		from := (p.start + p.len) % len(p.buf)
		k := copy(p.buf[from:min(len(p.buf), from+len(p.buf)-p.len)], b[n:])
		n, p.len = n+k, p.len+k
		if n == len(b) || p.len == len(p.buf) {
			break
		}
	}
	return n
}

func (p *pipe) growLocked(want int) {
	if len(p.buf) >= want && len(p.buf) > 0 {
		return
	}
	size := max(len(p.buf), firstPipeBytes)
	for size < want {
		size *= 2
	}
	buf := make([]byte, size)
	k := copy(buf[:p.len], p.buf[min(p.start, len(p.buf)):])
	copy(buf[k:p.len], p.buf)
	p.buf, p.start = buf, 0
}

// reader is a pipe's reading end. Closing it makes the writer fail as a
// program does whose output nobody takes.
type reader struct{ p *pipe }

func (r reader) Read(b []byte) (int, error) { return r.p.read(b) }

func (r reader) Close() error {
	r.p.failReads(io.ErrClosedPipe)
	r.p.failWrites(syscall.EPIPE)
	return nil
}

// writer is a pipe's writing end.
type writer struct{ p *pipe }

func (w writer) Write(b []byte) (int, error) { return w.p.write(b) }

func (w writer) Close() error { w.p.close(); return nil }
