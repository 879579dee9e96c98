package envd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// Sizes of the chunks in which output is read, in bytes.
const (
	pipeChunk     = 32 << 10
	terminalChunk = 16 << 10
)

// process is one that was started and has not been reported as ended.
type process struct {
	Process
	pid    uint32
	tag    *string
	config *envdpb.ProcessConfig
	pty    bool
	out    *fanout

	signaled   chan struct{} // closed when the end of output is not awaited
	signalOnce sync.Once
	ended      chan struct{}
	end        *envdpb.ProcessEvent_EndEvent // once ended is closed

	stdinMu sync.Mutex
	stdin   io.WriteCloser // nil when closed or never open
}

func newProcess(p Process, req *envdpb.StartRequest) *process {
	return &process{
		Process:  p,
		pid:      uint32(p.PID()),
		tag:      req.Tag,
		config:   req.GetProcess(),
		pty:      req.GetPty() != nil,
		out:      newFanout(),
		signaled: make(chan struct{}),
		ended:    make(chan struct{}),
		stdin:    p.Stdin(),
	}
}

// supervise reads the output of a process and waits for its end. done is
// called before the end is reported.
func (p *process) supervise(wg *sync.WaitGroup, timeout time.Duration, done func()) {
	var readers sync.WaitGroup
	if p.pty {
		readers.Go(func() { p.read(p.Stdout(), terminalChunk, terminalData) })
	} else {
		readers.Go(func() { p.read(p.Stdout(), pipeChunk, stdoutData) })
		readers.Go(func() { p.read(p.Stderr(), pipeChunk, stderrData) })
	}
	drained := make(chan struct{})
	wg.Go(p.out.run)
	wg.Go(func() {
		readers.Wait()
		close(p.out.source)
		close(drained)
	})
	disarm := p.killAfter(timeout)
	wg.Go(func() {
		// While somebody holds the other ends of the pipes there may be more to
		// read, unless this process was killed.
		select {
		case <-drained:
		case <-p.signaled:
		}
		status := p.Wait()
		disarm()
		p.closePipes()
		p.end = endEvent(status)
		done()
		close(p.ended)
	})
}

// killAfter kills the process, and no other, when a time is over. Zero is
// never.
func (p *process) killAfter(timeout time.Duration) (disarm func()) {
	if timeout <= 0 {
		return func() {}
	}
	timer := time.AfterFunc(timeout, func() { _ = p.kill(syscall.SIGKILL) })
	return func() { timer.Stop() }
}

// kill sends a signal. The end of the process will be reported at once, no
// matter who holds its pipes.
func (p *process) kill(sig syscall.Signal) error {
	p.signalOnce.Do(func() { close(p.signaled) })
	return p.Signal(sig)
}

// abandon ends the process without regard to what it, or who uses it, is doing.
func (p *process) abandon() {
	_ = p.kill(syscall.SIGKILL)
	p.closePipes()
}

func (p *process) closePipes() {
	for _, c := range []io.Closer{p.Stdin(), p.Stdout(), p.Stderr()} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// read publishes what comes out of a pipe.
func (p *process) read(r io.Reader, chunk int, event func([]byte) *envdpb.ProcessEvent_DataEvent) {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.out.publish(&envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Data{Data: event(bytes.Clone(buf[:n]))}})
		}
		if err != nil {
			return // the end, or closed by us
		}
	}
}

func stdoutData(b []byte) *envdpb.ProcessEvent_DataEvent {
	return &envdpb.ProcessEvent_DataEvent{Output: &envdpb.ProcessEvent_DataEvent_Stdout{Stdout: b}}
}

func stderrData(b []byte) *envdpb.ProcessEvent_DataEvent {
	return &envdpb.ProcessEvent_DataEvent{Output: &envdpb.ProcessEvent_DataEvent_Stderr{Stderr: b}}
}

func terminalData(b []byte) *envdpb.ProcessEvent_DataEvent {
	return &envdpb.ProcessEvent_DataEvent{Output: &envdpb.ProcessEvent_DataEvent_Pty{Pty: b}}
}

// endEvent tells how a process ended, as package os does.
func endEvent(s Status) *envdpb.ProcessEvent_EndEvent {
	if s.Signal != 0 {
		text := "signal: " + s.Signal.String()
		return &envdpb.ProcessEvent_EndEvent{ExitCode: -1, Status: text, Error: &text}
	}
	e := &envdpb.ProcessEvent_EndEvent{ExitCode: int32(s.Code), Exited: true, Status: fmt.Sprintf("exit status %d", s.Code)}
	if s.Code != 0 {
		e.Error = &e.Status
	}
	return e
}

var (
	errTerminal   = errors.New("the process has a terminal, not pipes")
	errNoTerminal = errors.New("the process has no terminal")
	errNoStdin    = errors.New("stdin is closed or was never open")
)

// writeStdin writes all of it, however long the process takes to read.
func (p *process) writeStdin(b []byte) error {
	if p.pty {
		return errTerminal
	}
	p.stdinMu.Lock()
	defer p.stdinMu.Unlock()
	if p.stdin == nil {
		return errNoStdin
	}
	_, err := p.stdin.Write(b)
	return err
}

func (p *process) writeTerminal(b []byte) error {
	if !p.pty {
		return errNoTerminal
	}
	_, err := p.Stdin().Write(b)
	return err
}

// closeStdin waits for the writes before it.
func (p *process) closeStdin() error {
	if p.pty {
		return errTerminal
	}
	p.stdinMu.Lock()
	defer p.stdinMu.Unlock()
	if p.stdin == nil {
		return nil
	}
	err := p.stdin.Close()
	p.stdin = nil
	return err
}

// exit is the end of a process, kept for those who come late.
type exit struct {
	pid     uint32
	tag     *string
	end     *envdpb.ProcessEvent_EndEvent
	expires time.Time
}

// exitKept is how long an exit is kept.
const exitKept = 30 * time.Second

// register makes a process known, and tells whether the daemon is still there
// to look after it. Exits with its number or tag are forgotten.
func (d *Daemon) register(p *process) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for pid, e := range d.exits {
		if pid == p.pid || p.tag != nil && e.tag != nil && *e.tag == *p.tag || !d.now().Before(e.expires) {
			delete(d.exits, pid)
		}
	}
	d.processes.Store(p.pid, p)
	return !d.closed
}

// retire keeps the exit of a process in its place, unless another process has
// its number by now.
func (d *Daemon) retire(p *process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.processes.CompareAndDelete(p.pid, p) {
		d.exits[p.pid] = exit{p.pid, p.tag, p.end, d.now().Add(exitKept)}
	}
}

// exited finds the exit of a process.
func (d *Daemon) exited(sel *envdpb.ProcessSelector) (exit, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for pid, e := range d.exits {
		var match bool
		switch s := sel.GetSelector().(type) {
		case *envdpb.ProcessSelector_Pid:
			match = pid == s.Pid
		case *envdpb.ProcessSelector_Tag:
			match = e.tag != nil && *e.tag == s.Tag
		}
		if match && d.now().Before(e.expires) {
			return e, true
		}
	}
	return exit{}, false
}

// relay sends the events of a process until its end, or that of the client.
func (p *process) relay(ctx context.Context, sub *subscription, alive func() keepalive, send func(*envdpb.ProcessEvent) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := send(startEvent(p.pid)); err != nil {
		return err
	}
	ticker := alive()
	defer ticker.Stop()
	for more := true; more; {
		var ev *envdpb.ProcessEvent
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			ev = &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Keepalive{Keepalive: &envdpb.ProcessEvent_KeepAlive{}}}
		case ev, more = <-sub.events:
			if !more {
				continue
			}
			ticker.restart()
		}
		if err := send(ev); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.ended:
	}
	// One whose time is over is not told how it ended, even where the process
	// was killed a moment before the context noticed.
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		<-ctx.Done()
		return ctx.Err()
	}
	return send(&envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_End{End: p.end}})
}

func startEvent(pid uint32) *envdpb.ProcessEvent {
	return &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Start{Start: &envdpb.ProcessEvent_StartEvent{Pid: pid}}}
}
