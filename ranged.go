package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"
)

const (
	// One request asks for a rangeShare of a file, within bounds, and rangeStreams
	// of these parts are on their way, or wait to be read.
	rangeShare   = 16
	minRangePart = 2 << 20
	maxRangePart = 8 << 20
	rangeStreams = 4
	// rangeTries is how often in a row a part is asked for again that does not
	// get on, and rangePause how long the first wait between two of them is.
	rangeTries = 4
	rangePause = 100 * time.Millisecond
	// rangeChunk is how much a writer gets at a time.
	rangeChunk = 512 << 10
)

// errResized: a file has not the size that it was said to have.
var errResized = errors.New("it has another size now")

// ranged reads a file of a sandbox in order, by requests for parts of it of
// which several are on their way. It holds rangeStreams parts in memory. A part
// that is cut goes on from where it was.
type ranged struct {
	sandbox rangeReader
	path    string
	size    int64 // of the whole file

	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	free    chan []byte       // buffers
	parts   chan chan filling // in the order of the file
	current []byte            // what is left of the part that is being read
	buffer  []byte            // that current is in
	at      int64             // where the next part begins
	err     error             // once current is read
}

// filling is what has come of a part, and why that is not all.
type filling struct {
	b   []byte
	err error
}

var (
	_ io.ReadCloser = (*ranged)(nil)
	_ io.WriterTo   = (*ranged)(nil)
)

// openRanged opens a file of a size for reading from an offset on. The caller
// closes it. A part of zero means what is best.
func openRanged(ctx context.Context, sandbox rangeReader, path string, offset, size, part int64) *ranged {
	if part == 0 {
		part = min(max(size/rangeShare, minRangePart), maxRangePart)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &ranged{sandbox: sandbox, path: path, size: size, at: min(offset, size), ctx: ctx, cancel: cancel,
		free: make(chan []byte, rangeStreams), parts: make(chan chan filling, rangeStreams)}
	for range rangeStreams {
		r.free <- nil // made when it is needed
	}
	r.workers.Go(func() {
		defer close(r.parts)
		for at := offset; at < size; at += part {
			var buf []byte
			select {
			case buf = <-r.free:
			case <-ctx.Done():
				return
			}
			n := min(part, size-at)
			if int64(cap(buf)) < n {
				buf = make([]byte, n)
			}
			came := make(chan filling, 1)
			r.parts <- came // there is room for as many as there are buffers
			r.workers.Go(func() {
				got, err := r.fill(ctx, buf[:n], at)
				came <- filling{buf[:got], err}
			})
		}
	})
	return r
}

// fill gets a part, or as much of its beginning as there is.
func (r *ranged) fill(ctx context.Context, b []byte, at int64) (total int, err error) {
	pause := rangePause
	for tries := 0; ; {
		n, err := r.get(ctx, b[total:], at+int64(total))
		total += n
		switch {
		case err == nil, errors.Is(err, errResized), errors.Is(err, ErrSandboxGone), errors.Is(err, fs.ErrNotExist):
			return total, err
		case ctx.Err() != nil:
			return total, context.Cause(ctx)
		}
		if n > 0 {
			tries, pause = 0, rangePause
		}
		if tries++; tries == rangeTries {
			return total, err
		}
		if err := wait(ctx, pause); err != nil {
			return total, err
		}
		pause *= 2
	}
}

// get is one request.
func (r *ranged) get(ctx context.Context, b []byte, at int64) (n int, err error) {
	body, size, err := r.sandbox.ReadRange(ctx, r.path, at, int64(len(b)))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	if size != r.size {
		return 0, fmt.Errorf("%w: %d bytes, not %d", errResized, size, r.size)
	}
	n, err = io.ReadFull(body, b)
	countReceived(ctx, int64(n))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next makes the next part current.
func (r *ranged) next() error {
	if r.err != nil {
		return r.err
	}
	if r.buffer != nil {
		r.free <- r.buffer
		r.buffer = nil
	}
	came, ok := <-r.parts
	if !ok {
		if r.err = io.EOF; r.at < r.size {
			r.err = context.Cause(r.ctx)
		}
		return r.err
	}
	part := <-came
	r.buffer, r.current, r.err = part.b, part.b, part.err
	r.at += int64(len(part.b))
	if len(part.b) > 0 {
		return nil // the error comes next
	}
	return r.err
}

// Read implements [io.Reader].
func (r *ranged) Read(b []byte) (int, error) {
	for len(r.current) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.current)
	r.current = r.current[n:]
	return n, nil
}

// WriteTo implements [io.WriterTo].
func (r *ranged) WriteTo(w io.Writer) (total int64, err error) {
	for {
		for len(r.current) > 0 {
			n, err := w.Write(r.current[:min(len(r.current), rangeChunk)])
			total += int64(n)
			r.current = r.current[n:]
			if err != nil {
				return total, err
			}
		}
		switch err := r.next(); {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// Close ends what is on its way, and waits for it.
func (r *ranged) Close() error {
	r.cancel()
	r.workers.Wait()
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
	return nil
}
