package e2b

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
)

// output is a process's standard output: chunks on their way from the stream
// to the reader.
type output struct {
	chunks chan []byte // closed at the end, after err was set
	err    error
	ended  bool // of the sender alone

	closeOnce sync.Once
	closed    chan struct{}

	mu   sync.Mutex // held by Read
	rest []byte     // of the last chunk
}

// put passes a chunk to the reader, and waits for it. After Close and after
// the end there is none.
func (o *output) put(ctx context.Context, chunk []byte) {
	if o.ended || len(chunk) == 0 {
		return
	}
	select {
	case o.chunks <- chunk:
	case <-o.closed:
	case <-ctx.Done():
	}
}

// end ends the output, with io.EOF or with the reason why there is no more.
func (o *output) end(err error) {
	o.err, o.ended = err, true
	close(o.chunks)
}

func (o *output) Read(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-o.closed:
		return 0, errClosedOutput()
	default:
	}
	for len(o.rest) == 0 {
		if len(b) == 0 {
			return 0, nil
		}
		select {
		case chunk, ok := <-o.chunks:
			if !ok {
				return 0, o.err
			}
			o.rest = chunk
		case <-o.closed:
			return 0, errClosedOutput()
		}
	}
	n := copy(b, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}

func (o *output) Close() error {
	o.closeOnce.Do(func() { close(o.closed) })
	return nil
}

// left returns what came before Close and was not read. Nothing comes any more.
func (o *output) left() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.rest
	for {
		select {
		case chunk, ok := <-o.chunks:
			if !ok {
				return b
			}
			b = append(b, chunk...)
		default:
			return b
		}
	}
}

func errClosedOutput() error { return fmt.Errorf("read of a process's output: %w", os.ErrClosed) }

var _ io.ReadCloser = (*output)(nil)
