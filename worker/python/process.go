package python

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// The frames between worker and child, see bridge.py.

// stepRequest asks a child for a step.
type stepRequest struct {
	Seq          int64               `json:"seq"`
	Marker       string              `json:"marker"` // hex; what to print when the step is over
	StepID       string              `json:"step_id"`
	SessionID    string              `json:"session_id,omitempty"`
	Driver       string              `json:"driver"`
	Module       string              `json:"module"`
	Class        string              `json:"class"`
	Sources      []string            `json:"sources"`
	Config       map[string]any      `json:"config"`
	Inputs       map[string][]string `json:"inputs"` // files by name
	Output       string              `json:"output"` // what the names of output files begin with
	BasePath     string              `json:"base_path"`
	ArtifactsDir string              `json:"artifacts_dir"`
	Cwd          string              `json:"cwd"`
	Env          map[string]string   `json:"env"`
	TraceParent  string              `json:"traceparent,omitempty"`
}

// message is what a child says.
type message struct {
	Type string `json:"type"` // ready, metric, event, log, result, error
	Seq  int64  `json:"seq"`  // of the step

	Version    string `json:"version"` // ready
	Executable string `json:"executable"`

	Name    string         `json:"name"` // metric, event
	Value   float64        `json:"value"`
	Unit    string         `json:"unit"`
	Fields  map[string]any `json:"fields"` // event, log
	Level   string         `json:"level"`
	Logger  string         `json:"logger"`
	Message string         `json:"message"` // log, error

	Outputs []outputFiles              `json:"outputs"` // result
	Values  map[string]json.RawMessage `json:"values"`

	ErrorType string `json:"error_type"` // error
	Traceback string `json:"traceback"`
}

// outputFiles are the files of one output.
type outputFiles struct {
	Key   string   `json:"key"`
	Files []string `json:"files"` // without their directory
	Rows  int64    `json:"rows"`
}

// maxMessage bounds a message of a child.
const maxMessage = 64 << 20

type stopSignal int

const (
	interrupt stopSignal = iota
	terminate
	kill
)

// How long a child may take: together less than the worker waits for a driver
// whose context is done.
const (
	interruptGrace = 2 * time.Second        // from the KeyboardInterrupt on
	terminateGrace = 700 * time.Millisecond // from SIGTERM on
	leaveGrace     = 2 * time.Second        // to end when nothing is left to do
	printGrace     = 500 * time.Millisecond // for the last prints, where something else holds their pipe
)

// process is a child: a Python that runs one step at a time.
type process struct {
	cmd      *exec.Cmd
	requests *os.File
	marker   []byte
	prints   [2]*printStream
	sources  []string // of its last step

	ready   chan struct{} // closed when it can take a step
	answers chan *message // result or error
	ended   chan struct{} // closed when the process is no more
	exited  chan struct{} // closed when it has ended, and all it has said is read
	failure error         // how it has ended; valid when exited is closed

	mu   sync.Mutex
	seq  int64
	step *worker.Step // that runs
}

// startProcess starts a child. It must run on a thread that lives as long.
func startProcess(p *pool) (_ *process, err error) {
	var files []*os.File // of the child
	var pipes [4]struct{ r, w *os.File }
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			pipes[0].w.Close()
			for _, pipe := range pipes[1:] {
				pipe.r.Close()
			}
		}
	}()
	for i := range pipes {
		if pipes[i].r, pipes[i].w, err = os.Pipe(); err != nil {
			return nil, err
		}
		if i == 0 {
			files = append(files, pipes[i].r)
		} else {
			files = append(files, pipes[i].w)
		}
	}
	// -I would take PYTHONPATH away, which is the user's.
	cmd := exec.Command(p.opts.interpreter.path, "-u", p.bridge)
	cmd.Dir = p.opts.dir
	cmd.Env = append(os.Environ(), p.opts.interpreter.env...)
	cmd.ExtraFiles = files[:2]
	cmd.Stdout, cmd.Stderr = files[2], files[3]
	cmd.SysProcAttr = processAttr()
	c := &process{
		cmd:      cmd,
		requests: pipes[0].w,
		marker:   []byte("\x00osiris-" + rand.Text() + "\n"),
		ready:    make(chan struct{}),
		answers:  make(chan *message, 1),
		ended:    make(chan struct{}),
		exited:   make(chan struct{}),
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for i, stream := range []string{"stdout", "stderr"} {
		c.prints[i] = newPrintStream(pipes[2+i].r, c.marker, p.opts.redact, func(step, line string) {
			if p.opts.printed != nil {
				p.opts.printed(step, stream, line)
			}
		})
		go c.prints[i].read()
	}
	go c.watch(pipes[1].r)
	return c, nil
}

// watch reads what the child says, until it has ended.
func (c *process) watch(answers *os.File) {
	defer close(c.exited)
	read := make(chan error, 1)
	go func() { read <- c.listen(answers) }()
	ended := c.cmd.Wait()
	close(c.ended)
	// What it has started goes with it, and lets go of the pipes. The group's
	// number can hardly be another's already: numbers are given out in turn.
	signalGroup(c.cmd.Process.Pid, kill)
	deadline := time.Now().Add(printGrace)
	_ = answers.SetReadDeadline(deadline)
	for _, s := range c.prints {
		_ = s.r.SetReadDeadline(deadline)
	}
	protocol := <-read
	answers.Close()
	c.requests.Close()
	for _, s := range c.prints {
		<-s.done
	}
	c.failure = c.describe(ended, protocol)
}

// describe says how the child has ended.
func (c *process) describe(ended, protocol error) error {
	how := "exit status 0"
	if ended != nil {
		how = ended.Error()
	}
	if strings.Contains(how, "signal: killed") {
		how += " (was there enough memory?)"
	}
	if protocol != nil {
		how += ", after " + protocol.Error()
	}
	if last := c.prints[1].last(); last != "" {
		how += "; the last it has printed to stderr:\n" + last
	}
	return errors.New(how)
}

// listen takes in what the child says. After an error of the protocol the child
// is killed.
func (c *process) listen(r io.Reader) error {
	ready := false
	for {
		m, err := readMessage(r)
		if errors.Is(err, io.EOF) {
			// It ends, or a driver has closed the pipe, or become another program:
			// then there will be no answer.
			select {
			case <-c.ended:
				return nil
			case <-time.After(leaveGrace):
				c.signalKill()
				return errors.New("its pipe to the worker was closed")
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err == nil && ready != (m.Type != "ready") {
			err = fmt.Errorf("message %q out of turn", m.Type)
		}
		if err == nil {
			if err = c.heard(m); err == nil {
				if !ready {
					ready = true
					close(c.ready)
				}
				continue
			}
		}
		c.signalKill()
		return fmt.Errorf("a mistake in what it has sent: %w", err)
	}
}

func readMessage(r io.Reader) (*message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes, the most is %d", n, maxMessage)
	}
	var body bytes.Buffer // grows with what really comes
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		return nil, err
	}
	m := &message{}
	dec := json.NewDecoder(&body)
	dec.UseNumber() // the fields of events
	if err := dec.Decode(m); err != nil {
		return nil, err
	}
	return m, nil
}

// heard handles one message. What comes after its step is dropped.
func (c *process) heard(m *message) error {
	c.mu.Lock()
	defer c.mu.Unlock() // so that nothing is reported when the step is over
	if m.Type == "ready" {
		return nil
	}
	if c.step == nil || m.Seq != c.seq {
		return nil
	}
	switch m.Type {
	case "metric":
		c.step.LogMetric(m.Name, m.Value, m.Unit)
	case "event":
		c.step.LogEvent(m.Name, m.Fields)
	case "log":
		attrs := make([]slog.Attr, 0, len(m.Fields)+1)
		if m.Logger != "" {
			attrs = append(attrs, slog.String("logger", m.Logger))
		}
		for key, value := range m.Fields {
			attrs = append(attrs, slog.Any(key, value))
		}
		c.step.Log().LogAttrs(context.Background(), logLevel(m.Level), m.Message, attrs...)
	case "result", "error":
		c.step = nil
		c.answers <- m // there is room: one answer a step
	default:
		return fmt.Errorf("unknown message %q", m.Type)
	}
	return nil
}

// logLevel is the level that Python calls by this name.
func logLevel(name string) slog.Level {
	switch name {
	case "DEBUG", "NOTSET":
		return slog.LevelDebug
	case "WARNING", "WARN":
		return slog.LevelWarn
	case "ERROR", "CRITICAL", "FATAL":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// deadError says that a child has ended by itself.
type deadError struct{ how error }

func (e *deadError) Error() string { return "the Python process has ended: " + e.how.Error() }

// do runs a step and returns the child's answer. After an error the child has
// ended.
func (c *process) do(ctx context.Context, req *stepRequest, step *worker.Step) (*message, error) {
	c.mu.Lock()
	c.seq++
	req.Seq, req.Marker, c.step = c.seq, hex.EncodeToString(c.marker), step
	c.mu.Unlock()
	body, err := json.Marshal(req)
	if err != nil {
		c.end(leaveGrace)
		return nil, fmt.Errorf("config: %w", err)
	}
	for _, s := range c.prints {
		s.begin(req.StepID)
	}
	// A child that is gone is told of by its end, not by this.
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.requests.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	}()
	defer func() { <-sent }() // a child that has answered has read it; else it is dead, and the pipe broken
	select {
	case m := <-c.answers:
		for _, s := range c.prints {
			select {
			case <-s.marked:
			case <-s.done:
			case <-ctx.Done(): // something else has answered in its name
				c.kill()
				return nil, fmt.Errorf("the driver was stopped: %w", context.Cause(ctx))
			}
		}
		return m, nil
	case <-c.exited:
		select {
		case m := <-c.answers: // it has answered before
			return m, nil
		default:
		}
		return nil, &deadError{c.failure}
	case <-ctx.Done():
		c.stop()
		return nil, fmt.Errorf("the driver was stopped: %w", context.Cause(ctx))
	}
}

// stop interrupts the driver, and kills the child if that does not help.
func (c *process) stop() {
	pid := c.cmd.Process.Pid
	signalGroup(pid, interrupt)
	select {
	case <-c.answers:
		c.end(terminateGrace)
		return
	case <-c.exited:
		return
	case <-time.After(interruptGrace):
	}
	signalGroup(pid, terminate)
	select {
	case <-c.exited:
		return
	case <-time.After(terminateGrace):
	}
	c.kill()
}

// end has a child without a step leave, and waits.
func (c *process) end(grace time.Duration) {
	c.requests.Close()
	select {
	case <-c.exited:
	case <-time.After(grace):
		c.kill()
	}
}

func (c *process) kill() {
	c.signalKill()
	<-c.exited
}

// signalKill kills the child and its group, which it may have left.
func (c *process) signalKill() {
	signalGroup(c.cmd.Process.Pid, kill)
	_ = c.cmd.Process.Kill()
}

// dead reports whether the child has ended.
func (c *process) dead() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// maxPrintLine is where a printed line is cut into several.
const maxPrintLine = 16 << 10

// keptLines is how many lines of stderr tell of a child's end, each of keptLine
// bytes at most.
const (
	keptLines = 20
	keptLine  = 500
)

// printStream reads what a child prints, line by line.
type printStream struct {
	r      *os.File
	marker []byte
	emit   func(step, line string)
	redact *secrets.Writer // nil: nothing is redacted
	marked chan struct{}   // a marker was seen: all that a step has printed was emitted
	done   chan struct{}   // read has returned

	partial []byte // a line without its end, for read alone

	mu   sync.Mutex
	step string
	tail []string
}

func newPrintStream(r *os.File, marker []byte, redact *secrets.Redactor, emit func(step, line string)) *printStream {
	s := &printStream{r: r, marker: marker, emit: emit, marked: make(chan struct{}, 1), done: make(chan struct{})}
	if redact != nil {
		// In front of where lines are cut, since a secret may stand there.
		s.redact = redact.Writer(writerFunc(s.lines))
	}
	return s
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

// begin says whose the next lines are.
func (s *printStream) begin(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step = step
}

func (s *printStream) read() {
	defer close(s.done)
	defer s.r.Close()
	buf := make([]byte, 64<<10)
	var held int // bytes at the beginning of buf that may begin a marker
	for {
		n, err := s.r.Read(buf[held:])
		held = s.take(buf[:held+n], err != nil)
		if err != nil {
			s.flush()
			return
		}
	}
}

// take takes in data, up to what may be the beginning of a marker if it is not
// the last: that is moved to the beginning of data, and its length returned.
func (s *printStream) take(data []byte, last bool) int {
	rest := data
	for {
		i := bytes.Index(rest, s.marker)
		if i < 0 {
			break
		}
		s.add(rest[:i])
		s.flush()
		s.begin("")
		select {
		case s.marked <- struct{}{}:
		default: // a driver has printed one
		}
		rest = rest[i+len(s.marker):]
	}
	held := 0
	if !last {
		held = markerBegun(rest, s.marker)
	}
	s.add(rest[:len(rest)-held])
	return copy(data, rest[len(rest)-held:])
}

// markerBegun returns how many bytes at the end of data a marker may begin with.
func markerBegun(data, marker []byte) int {
	i := bytes.LastIndexByte(data, marker[0])
	if i >= 0 && len(data)-i < len(marker) && bytes.HasPrefix(marker, data[i:]) {
		return len(data) - i
	}
	return 0
}

func (s *printStream) add(b []byte) {
	switch {
	case len(b) == 0:
	case s.redact == nil:
		s.lines(b)
	default:
		_, _ = s.redact.Write(b)
		if b[len(b)-1] == '\n' { // then nothing is held back
			_ = s.redact.Flush()
		}
	}
}

// lines takes bytes and emits lines.
func (s *printStream) lines(b []byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		end := i
		if i < 0 {
			end = len(b)
		}
		if room := maxPrintLine - len(s.partial); end > room {
			s.partial = append(s.partial, b[:room]...)
			s.line()
			b = b[room:]
			continue
		}
		s.partial = append(s.partial, b[:end]...)
		if i < 0 {
			return
		}
		s.line()
		b = b[i+1:]
	}
}

// flush emits what has no line end yet.
func (s *printStream) flush() {
	if s.redact != nil {
		_ = s.redact.Flush()
	}
	if len(s.partial) > 0 {
		s.line()
	}
}

func (s *printStream) line() {
	line := string(bytes.TrimRight(s.partial, "\r"))
	s.partial = s.partial[:0]
	s.mu.Lock()
	step := s.step
	s.tail = append(s.tail, line[:min(len(line), keptLine)])
	if len(s.tail) > keptLines {
		s.tail = slices.Delete(s.tail, 0, 1)
	}
	s.mu.Unlock()
	s.emit(step, line)
}

// last returns the last lines.
func (s *printStream) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.tail, "\n")
}
