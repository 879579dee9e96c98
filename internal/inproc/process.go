// Package inproc runs a Go function as if it were a process: with standard
// streams that behave as pipes do, an exit status, and signals.
//
// A Go function cannot be killed. [Process.Kill] makes the process dead for
// everyone outside at once: its output ends, its status is known. The function
// itself learns of it by its context and its streams, and may go on for as
// long as it ignores them; [Process.Exited] tells when it has returned.
package inproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"syscall"
)

// The signals' names, as [Process.Status] returns them.
const (
	sigTerm = "SIGTERM"
	sigKill = "SIGKILL"
)

// ErrKilled is the cause of a killed function's context.
var ErrKilled = errors.New("process was killed")

// ErrTerminated is the cause of a terminated function's context.
var ErrTerminated = errors.New("process was terminated")

// Process is a function that runs as a process. All methods may be called
// concurrently.
type Process struct {
	cancel context.CancelCauseFunc
	stdin  *pipe
	stdout *pipe
	stderr *gate
	done   chan struct{}
	exited chan struct{}

	mu     sync.Mutex
	ended  bool
	code   int
	signal string
}

// Start calls run in a goroutine of its own. What run returns is the exit
// code, of which the lowest eight bits count. A panic prints itself and its
// stack on stderr and gives exit code 2, as it does in a program; so does
// runtime.Goexit.
//
// stderr gets what run writes to its standard error, from one goroutine at a
// time and never after Done; nil discards it. A Write that blocks holds up
// Done, even when the process is killed.
func Start(run func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int, stderr io.Writer) *Process {
	if stderr == nil {
		stderr = io.Discard
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &Process{
		cancel: cancel,
		stdin:  newPipe(),
		stdout: newPipe(),
		stderr: newGate(stderr),
		done:   make(chan struct{}),
		exited: make(chan struct{}),
	}
	go func() {
		defer close(p.exited)
		p.end(p.call(ctx, run))
	}()
	return p
}

// call runs the function. The goroutine goes on after a Goexit only to run
// deferred calls, so the end of the process is set in one.
func (p *Process) call(ctx context.Context, run func(context.Context, io.Reader, io.Writer, io.Writer) int) (code int) {
	returned := false
	defer func() {
		if returned {
			return
		}
		code = 2
		if r := recover(); r != nil {
			fmt.Fprintf(p.stderr, "panic: %v\n\n%s", r, debug.Stack())
			return
		}
		fmt.Fprintf(p.stderr, "fatal error: the program called runtime.Goexit\n")
		p.end(code)
	}()
	code = run(ctx, reader{p.stdin}, writer{p.stdout}, p.stderr)
	returned = true
	return code
}

// end sets the status, unless there is one. A signal counts for more than the code.
func (p *Process) end(code int) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended = true
	p.code = code & 0xff
	if p.signal != "" {
		p.code = -1
	}
	p.mu.Unlock()
	p.letGo()
}

// letGo lets go of all who wait. Whoever has set the status calls it, once.
func (p *Process) letGo() {
	p.cancel(context.Canceled)
	p.stdin.failWrites(syscall.EPIPE)
	p.stdin.failReads(errSignalled)
	p.stdout.failWrites(syscall.EPIPE)
	p.stdout.close()
	p.stderr.close(func() { close(p.done) })
}

// Stdin returns the writing end of the process's standard input. A Write
// arrives whole and in order; it blocks while the process has some 128 KiB to
// read, and fails with syscall.EPIPE once the process has ended. Close lets
// the process read what was written, then io.EOF; it does not block.
func (p *Process) Stdin() io.WriteCloser { return writer{p.stdin} }

// Stdout returns the reading end of the process's standard output, io.EOF once
// the process has ended and everything was read. The process blocks while some
// 128 KiB are unread. After Close its writes fail with syscall.EPIPE.
func (p *Process) Stdout() io.ReadCloser { return reader{p.stdout} }

// CutStdout makes every Read of Stdout fail with err, also one that waits.
// What the process writes is thrown away from now on.
func (p *Process) CutStdout(err error) {
	p.stdout.failReads(err)
	p.stdout.change(func() { p.stdout.discarding = true })
}

// FreezeStdout makes every Read of Stdout wait, until CutStdout or Close. The
// process blocks when it has written some 128 KiB more.
func (p *Process) FreezeStdout() {
	p.stdout.change(func() { p.stdout.frozen = true })
}

// Done is closed when the process has ended for everyone outside.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exited is closed when the function has returned: with Done, or some time
// after it when the process was killed.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Status returns how the process ended: its exit code, or -1 and the name of
// the signal that ended it. It means nothing before Done.
func (p *Process) Status() (code int, signal string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code, p.signal
}

// Terminate asks the process to end, with the signal SIGTERM: it cancels the
// function's context and makes its reads and writes fail. The process ends
// when the function returns, which may be never.
func (p *Process) Terminate() {
	p.mu.Lock()
	if !p.ended {
		p.signal = sigTerm // first, for the function may return at once
	}
	p.mu.Unlock()
	p.interrupt(ErrTerminated)
}

// Kill ends the process, with the signal SIGKILL: it does what Terminate does,
// and does not wait for the function.
func (p *Process) Kill() {
	// The end is taken before the function is woken, which would race for it: it
	// is this call that has to bring it about before it returns.
	p.mu.Lock()
	alive := !p.ended
	if alive {
		p.ended, p.code, p.signal = true, -1, sigKill
	}
	p.mu.Unlock()
	p.interrupt(ErrKilled)
	if alive {
		p.letGo()
	}
}

// interrupt wakes the function.
func (p *Process) interrupt(cause error) {
	p.cancel(cause)
	p.stdin.failWrites(syscall.EPIPE)
	p.stdin.failReads(errSignalled)
	p.stdout.failWrites(errSignalled)
}

// gate passes writes on, one at a time, until it is closed.
type gate struct {
	turn   chan struct{} // of capacity 1: held by whoever writes or closes
	w      io.Writer
	closed bool
}

func newGate(w io.Writer) *gate { return &gate{turn: make(chan struct{}, 1), w: w} }

func (g *gate) Write(b []byte) (int, error) {
	g.turn <- struct{}{}
	defer func() { <-g.turn }()
	if g.closed {
		return 0, syscall.EPIPE
	}
	return g.w.Write(b)
}

// close closes the gate and calls then, as soon as no Write is under way.
func (g *gate) close(then func()) {
	shut := func() {
		g.closed = true
		<-g.turn
		then()
	}
	select {
	case g.turn <- struct{}{}:
		shut()
	default:
		go func() {
			g.turn <- struct{}{}
			shut()
		}()
	}
}
