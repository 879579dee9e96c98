package worker

import (
	"bufio"
	"bytes"
	"fmt"
	"log"
	"os"
	"sync"
)

// printCapture turns what drivers print into log messages. It takes the place
// of os.Stdout and os.Stderr; the descriptors behind them stay open, so that a
// crash of the runtime is still written where the host reads it.
type printCapture struct {
	streams []*printStream
	restore func()
}

type printStream struct {
	name string
	w    *os.File
	done chan struct{}

	mu   sync.Mutex // one flush at a time
	acks chan struct{}
}

// maxPrintLine is where a printed line is cut into several.
const maxPrintLine = 16 << 10

// flushMark starts the line that flush writes to know that everything before
// it was read.
const flushMark = "\x00osiris-worker-flush\x00"

func capturePrints(printed func(stream, line string)) *printCapture {
	oldOut, oldErr, oldLog := os.Stdout, os.Stderr, log.Writer()
	c := &printCapture{restore: func() {
		os.Stdout, os.Stderr = oldOut, oldErr
		log.SetOutput(oldLog)
	}}
	for _, stream := range []struct {
		name   string
		target **os.File
	}{{"stdout", &os.Stdout}, {"stderr", &os.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			continue // prints go where they went before
		}
		s := &printStream{name: stream.name, w: w, done: make(chan struct{}), acks: make(chan struct{})}
		go s.read(r, printed)
		*stream.target = w
		c.streams = append(c.streams, s)
	}
	log.SetOutput(os.Stderr)
	return c
}

func (s *printStream) read(r *os.File, printed func(stream, line string)) {
	defer close(s.done)
	defer r.Close()
	br := bufio.NewReaderSize(r, maxPrintLine)
	for {
		line, err := br.ReadSlice('\n')
		// A mark can follow text that does not end with a newline.
		if i := bytes.Index(line, []byte(flushMark)); i >= 0 {
			if i > 0 {
				printed(s.name, string(line[:i]))
			}
			s.acks <- struct{}{}
			continue
		}
		if len(line) > 0 {
			printed(s.name, string(bytes.TrimRight(line, "\r\n")))
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

// flush returns when everything printed before is logged.
func (c *printCapture) flush() {
	for _, s := range c.streams {
		s.mu.Lock()
		if _, err := fmt.Fprintf(s.w, "%s\n", flushMark); err == nil {
			<-s.acks
		}
		s.mu.Unlock()
	}
}

// stop flushes, gives the standard streams back and waits.
func (c *printCapture) stop() {
	c.flush()
	c.restore()
	for _, s := range c.streams {
		s.w.Close()
		<-s.done
	}
}
