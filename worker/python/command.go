package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// commandGrace is how long a process that is to end has for that.
	commandGrace = 2 * time.Second
	// quotedLines is how much of what a failed process has printed is quoted.
	quotedLines = 20
	// quotedLine is how many bytes of a line are.
	quotedLine = 500
)

// command is a process that installs something, or looks at it.
type command struct {
	argv  []string
	dir   string
	env   []string
	stdin string
	// out gets what it prints to standard output, log all that it prints otherwise.
	out, log io.Writer
}

// commandError reports a process that has failed.
type commandError struct {
	argv []string
	tail []string // the last lines that it has printed
	seen bool     // by whoever gets the error
	err  error
}

func (e *commandError) Error() string {
	name := filepath.Base(e.argv[0])
	for _, arg := range e.argv[1:] {
		if strings.HasPrefix(arg, "-") && arg != "-m" {
			break
		}
		if arg != "-m" {
			name += " " + arg
		}
		if arg == "install" || arg == "wheel" || len(name) > 40 {
			break
		}
	}
	if len(e.tail) == 0 || e.seen {
		return fmt.Sprintf("%s: %v", name, e.err)
	}
	return fmt.Sprintf("%s: %v; it said:\n  %s", name, e.err, strings.Join(e.tail, "\n  "))
}

func (e *commandError) Unwrap() error { return e.err }

// said reports whether one of the last lines holds a text.
func (e *commandError) said(texts ...string) bool {
	all := strings.Join(e.tail, "\n")
	return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(all, text) })
}

// run runs the process. When ctx is done, it and those that it has started are
// asked to end, and killed after a while.
func (c *command) run(ctx context.Context) error {
	// Where a process ends with the thread that has started it, the thread has to
	// stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	last := &lastLines{}
	printed := &sharedWriter{w: io.MultiWriter(last, c.log)}
	fmt.Fprintf(printed.w, "$ %s\n", quoteArguments(c.argv))
	last.forget()
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Dir, cmd.Env = c.dir, c.env
	if c.stdin != "" {
		cmd.Stdin = strings.NewReader(c.stdin)
	}
	cmd.Stdout, cmd.Stderr = printed, printed
	if c.out != nil {
		cmd.Stdout = c.out
	}
	cmd.WaitDelay = commandGrace // for what it has left behind with its pipes
	cmd.SysProcAttr = commandAttr()
	if err := ctx.Err(); err != nil {
		return &commandError{argv: c.argv, err: context.Cause(ctx)}
	}
	if err := cmd.Start(); err != nil {
		return &commandError{argv: c.argv, err: err}
	}
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		endCommand(cmd)
		grace := time.NewTimer(commandGrace)
		defer grace.Stop()
		select {
		case <-ended:
		case <-grace.C:
			killCommand(cmd)
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-stopped
	killCommand(cmd) // what it has started, and not waited for
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well, but for what it has left behind
	}
	if err != nil {
		return &commandError{argv: c.argv, tail: last.lines(), err: err}
	}
	return nil
}

// quoteArguments writes a command as a shell would take it, but for long texts.
func quoteArguments(argv []string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		switch {
		case strings.Contains(arg, "\n"):
			quoted[i] = "'...'"
		case arg == "" || strings.ContainsAny(arg, " \t'\"\\$&|;<>()[]{}*?!#~`"):
			quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		default:
			quoted[i] = arg
		}
	}
	return strings.Join(quoted, " ")
}

// sharedWriter is for two streams of a process. What cannot be written is lost:
// the process is not to fail for its log.
type sharedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *sharedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w.Write(p) //nolint:errcheck // see above
	return len(p), nil
}

// lastLines keeps the last lines that are written to it.
type lastLines struct {
	ring [][]byte
	line []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		if room := quotedLine - len(l.line); room > 0 {
			l.line = append(l.line, line[:min(len(line), room)]...)
		}
		if ended {
			l.end()
		}
		rest = after
	}
	return len(p), nil
}

func (l *lastLines) end() {
	if len(bytes.TrimSpace(l.line)) > 0 {
		if len(l.ring) == quotedLines {
			l.ring = slices.Delete(l.ring, 0, 1)
		}
		l.ring = append(l.ring, l.line)
	}
	l.line = nil
}

func (l *lastLines) forget() { l.ring, l.line = nil, nil }

func (l *lastLines) lines() []string {
	l.end()
	lines := make([]string, len(l.ring))
	for i, line := range l.ring {
		lines[i] = strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r == 0x7f {
				return -1
			}
			return r
		}, strings.ToValidUTF8(strings.TrimRight(string(line), " \r\t"), "?"))
	}
	return lines
}

// boundedBuffer keeps the beginning of what is written to it.
type boundedBuffer struct {
	bytes.Buffer
	limit int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)]) //nolint:errcheck // to memory
	}
	return len(p), nil
}
