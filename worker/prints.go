package worker

import (
	"bytes"
	"log"
	"os"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/secrets"
)

// printCapture turns what drivers print into log messages. It takes the place
// of os.Stdout and os.Stderr; the descriptors behind them stay open, so that a
// crash of the runtime is still written where the host reads it.
type printCapture struct {
	streams []*printStream
	restore func()
}

// maxPrintLine is where a printed line is cut into several.
const maxPrintLine = 16 << 10

// printPipe has both ends of a pipe for prints.
type printPipe struct{ r, w *os.File }

// capturePrints starts capturing, by the pipes that are given for stdout and
// stderr, or by pipes of its own. printed gets every line, redacted and without
// its end.
func capturePrints(given []printPipe, redact *secrets.Redactor, printed func(stream, line string)) *printCapture {
	oldOut, oldErr, oldLog := os.Stdout, os.Stderr, log.Writer()
	c := &printCapture{restore: func() {
		os.Stdout, os.Stderr = oldOut, oldErr
		log.SetOutput(oldLog)
	}}
	for i, stream := range []struct {
		name   string
		target **os.File
	}{{"stdout", &os.Stdout}, {"stderr", &os.Stderr}} {
		var pipe printPipe
		var err error
		if i < len(given) {
			pipe = given[i]
		} else if pipe.r, pipe.w, err = os.Pipe(); err != nil {
			continue // prints go where they went before
		}
		s := &printStream{
			lines: lineSplitter{emit: func(line string) { printed(stream.name, line) }},
			r:     pipe.r, w: pipe.w, done: make(chan struct{}),
		}
		s.redact = redact.Writer(&s.lines)
		go s.read()
		*stream.target = pipe.w
		c.streams = append(c.streams, s)
	}
	log.SetOutput(os.Stderr)
	return c
}

// flush returns when everything printed before is logged, as far as the
// platform can tell; a line without an end is logged as one.
func (c *printCapture) flush() {
	for _, s := range c.streams {
		s.flush()
	}
}

// stop flushes, gives the standard streams back and waits: not for a process
// that a driver left behind with one of them.
func (c *printCapture) stop() {
	c.flush()
	c.restore()
	for _, s := range c.streams {
		s.w.Close()
		_ = s.r.SetReadDeadline(time.Now().Add(printGrace))
		select {
		case <-s.done:
		case <-time.After(2 * printGrace): // where a pipe knows no deadline
		}
	}
}

// printGrace is how long the last prints have to come in.
const printGrace = 200 * time.Millisecond

// printStream is one captured stream.
type printStream struct {
	r, w *os.File
	done chan struct{} // read has returned

	mu     sync.Mutex      // held while bytes are taken from r and logged
	redact *secrets.Writer // in front of lines, since a secret may stand where a long one is cut
	lines  lineSplitter
	buf    [maxPrintLine]byte
	copy   [2]int // a pipe to look into r by, on Linux
	over   bool   // that is closed
}

// add logs the lines of b. At an end of a line nothing is held back, or on
// platforms where flush can do nothing it would be until the worker ends.
func (s *printStream) add(b []byte) {
	_, _ = s.redact.Write(b)
	if bytes.HasSuffix(b, []byte("\n")) {
		_ = s.redact.Flush()
	}
}

// end logs all that there is, also what has no line end yet.
func (s *printStream) end() {
	_ = s.redact.Flush()
	s.lines.end()
}

// lineSplitter emits the lines of what it is given.
type lineSplitter struct {
	emit    func(line string)
	partial []byte
}

// Write never fails.
func (l *lineSplitter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if len(l.partial)+len(b) < maxPrintLine {
				l.partial = append(l.partial, b...)
				return n, nil
			}
			i = maxPrintLine - len(l.partial) // cut here
			l.partial = append(l.partial, b[:i]...)
			b = b[i:]
			l.end()
			continue
		}
		l.partial = append(l.partial, b[:i]...)
		b = b[i+1:]
		l.emit(string(bytes.TrimRight(l.partial, "\r")))
		l.partial = l.partial[:0]
	}
	return n, nil
}

// end emits what has no line end yet.
func (l *lineSplitter) end() {
	if len(l.partial) > 0 {
		l.emit(string(l.partial))
		l.partial = l.partial[:0]
	}
}
