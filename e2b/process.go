package e2b

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// ErrExitUnknown is matched by the error of [Process.Wait] for a process that
// ended while there was no connection to it, too long ago for the daemon to
// know how. It keeps that for 30 s.
var ErrExitUnknown = errors.New("process has ended, but how is not known")

const (
	// keepAlive is how often the daemon says that an idle stream is alive.
	keepAlive = 30 * time.Second
	// silence is how long a stream may be without a sign of life before it
	// counts as cut.
	silence = 3 * keepAlive
	// lostAfter is how long a connection to a process that was cut is tried to
	// be made again.
	lostAfter = 10 * time.Minute
	// startLooks is how often within Config.RequestTimeout a process is looked
	// for that does not say that it has started.
	startLooks = 10
	// startTries is how often a command is started whose start gets lost.
	startTries = 3
	// abandonedAfter is how long the start of a process that nobody waits for
	// any more is waited for, to end the process.
	abandonedAfter = 10 * time.Second
)

// ErrNotStarted is matched by the error of [Sandbox.Start] when the connection
// broke before an answer, and the process is not there: it was never started,
// or has ended already.
var ErrNotStarted = errors.New("the process is not there")

// lateStarts are the waits between the looks for a process that has not been
// seen: a request that was on its way when its connection broke is carried out
// at once or never, as far as is known. What appears later is killed.
func lateStarts() (first, later []time.Duration) {
	first = []time.Duration{0, 200 * time.Millisecond, 800 * time.Millisecond}
	later = []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 15 * time.Second}
	return first, later
}

// Command is a process to start.
type Command struct {
	// Path is the program: a path, or a name to look for in PATH. For a line
	// of shell it is /bin/sh, and Args are "-c" and the line. It must be
	// executable, and uploaded files are not: start those by
	//
	//	/bin/sh -c 'chmod 755 "$0" && exec "$0" "$@"' PATH ARGS...
	//
	// A program that is not there or not executable is no error of Start: the
	// process then ends with exit code 127 or 126.
	Path string
	Args []string          // arguments, without the program's name; no shell reads them
	Env  map[string]string // added to the sandbox's; everyone with access to the sandbox can see it
	Dir  string            // working directory, which must exist; empty means the sandbox's default
	User string            // who it runs as; empty means the sandbox's default user

	// Tag is a label that [Sandbox.Processes] shows. Empty means a random one.
	Tag string

	// Stdin opens the process's standard input. Without it that is empty.
	Stdin bool

	// Stderr receives what the process writes to its standard error, from one
	// goroutine, until Wait returns. A slow writer holds up the process. Nil
	// discards it.
	Stderr io.Writer

	// Repeatable says that it does no harm to start the command a second time.
	// It is, where the first start was not answered and no process is there.
	// The later one has a Tag of its own.
	Repeatable bool

	// Timeout ends the process, but not its children, by SIGKILL when it has
	// run for so long. Zero means never.
	Timeout time.Duration
}

// Signal is a signal that the daemon can send.
type Signal string

// The signals.
const (
	SignalTerm Signal = "SIGTERM"
	SignalKill Signal = "SIGKILL"
)

// ExitStatus says how a process ended.
type ExitStatus struct {
	Code   int    // exit code; -1 when a signal ended the process
	Signal string // name of that signal, as "SIGKILL"; else empty
}

func (s ExitStatus) String() string {
	if s.Signal != "" {
		return "killed by " + s.Signal
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// ProcessInfo describes a running process.
type ProcessInfo struct {
	PID  int
	Tag  string // may be empty
	Path string
	Args []string
	Env  map[string]string // what it was started with
	Dir  string            // what it was started with; empty means the default
}

// Process is a running process of a sandbox. Its methods may be called
// concurrently.
//
// A lost connection does not end a process, but its output goes nowhere in the
// meantime: Stdout then ends with an error other than io.EOF, while Wait goes
// on, over a new connection, until the process has ended.
type Process struct {
	sandbox *Sandbox
	cmd     Command
	stdin   input
	stdout  output
	tasks   tasks

	ctx    context.Context // of all that this Process does in the background
	cancel context.CancelCauseFunc

	started  chan struct{} // closed once pid or startErr is set
	pid      int
	startErr error

	taken     chan struct{} // closed once Start has returned
	abandoned bool          // by Start; set before taken is closed

	done   chan struct{} // closed once status and err are set
	status ExitStatus
	err    error
}

// Start starts a process. ctx bounds the start alone: the process lives until
// it ends, is signalled, or the sandbox is gone. A process that has not
// started when ctx ends is killed should it start after all.
//
// Where the connection breaks after the process may have started, Start looks
// for it for a second, and never starts it a second time unless
// Command.Repeatable allows that. One that it finds is returned with a Stdout
// that fails at once, since output may be missing. One that it does not find is
// [ErrNotStarted], and is killed should it still appear within half a minute.
func (s *Sandbox) Start(ctx context.Context, cmd Command) (*Process, error) {
	if cmd.Tag == "" {
		cmd.Tag = rand.Text()
	}
	if cmd.Path == "" {
		return nil, fmt.Errorf("start: %w: Command.Path is empty; for a line of shell use /bin/sh with Args -c and the line", ErrInvalid)
	}
	if cmd.Timeout < 0 {
		return nil, fmt.Errorf("start %q: %w: Command.Timeout is %s", cmd.Path, ErrInvalid, cmd.Timeout)
	}
	op, tag := fmt.Sprintf("start %q", cmd.Path), cmd.Tag
	for try := 1; ; try++ {
		p := s.newProcess(cmd)
		p.stdin.enabled = cmd.Stdin
		err := p.begin(ctx, op, p.openStart)
		if err == nil {
			return p, nil
		}
		if !cmd.Repeatable || !errors.Is(err, ErrNotStarted) || try == startTries {
			return nil, err
		}
		traceRetry(ctx, Retry{Op: op, Attempt: try + 1, Reason: err})
		cmd.Tag = fmt.Sprintf("%s-%d", tag, try+1)
	}
}

// Attach connects to a running process. Its Stdout has what the process writes
// from now on; its standard error is discarded. A process that ended in the
// last 30 s has only its exit status left. The error matches [ErrNotFound]
// when there is no such process.
func (s *Sandbox) Attach(ctx context.Context, pid int) (*Process, error) {
	if pid <= 0 || pid > math.MaxUint32 {
		return nil, fmt.Errorf("attach to process %d: %w: there is no such process ID", pid, ErrInvalid)
	}
	p := s.newProcess(Command{})
	p.stdin.enabled, p.pid = true, pid
	if err := p.begin(ctx, fmt.Sprintf("attach to process %d", pid), p.openConnect); err != nil {
		return nil, err
	}
	return p, nil
}

func (s *Sandbox) newProcess(cmd Command) *Process {
	p := &Process{
		sandbox: s,
		cmd:     cmd,
		stdout:  output{chunks: make(chan []byte, 8), closed: make(chan struct{})},
		started: make(chan struct{}),
		taken:   make(chan struct{}),
		done:    make(chan struct{}),
	}
	p.stdin.process = p
	p.ctx, p.cancel = context.WithCancelCause(s.ctx)
	return p
}

// begin runs the process's goroutine and waits until the process has started.
func (p *Process) begin(ctx context.Context, op string, open opener) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	limit := p.sandbox.client.cfg.RequestTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no answer within %s", ErrTimeout, limit))
	defer cancel()
	defer close(p.taken)
	p.ctx = WithClientTrace(p.ctx, traceOf(ctx))
	p.tasks.start(func() { p.run(op, open) })
	select {
	case <-p.started:
		return p.startErr
	case <-ctx.Done():
		p.abandoned = true
		time.AfterFunc(abandonedAfter, func() { p.cancel(context.DeadlineExceeded) })
		p.sandbox.tasks.start(p.tasks.wait)
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
}

// String names the process, and leaves out its environment.
func (p *Process) String() string { return "process of " + p.sandbox.String() }

// GoString is String: nothing secret must get into a log by %#v either.
func (p *Process) GoString() string { return p.String() }

// PID returns the process's ID in the sandbox.
func (p *Process) PID() int { return p.pid }

// Stdin writes to the process. One Write of up to 64 KiB arrives whole and in
// order, or, where the connection breaks, not at all; a longer one arrives as
// several. A nil error means that it is on its way, not that it has arrived;
// when it turns out that it may not have, the next Write fails. Writes wait
// while the process does not read.
//
// Close ends the process's input once it has read what was written, and does
// not block.
func (p *Process) Stdin() io.WriteCloser { return &p.stdin }

// Stdout reads what the process writes to its standard output. io.EOF means
// that the process has ended; any other error, that the connection was lost
// while the process may go on. Output must be read, or the process will block.
// Close gives up reading: the process goes on, its output is discarded.
func (p *Process) Stdout() io.ReadCloser { return &p.stdout }

// Wait returns how the process ended, as often as it is asked. That is known
// only once its output was read or closed, and its children have closed
// theirs. The error is ctx's when ctx ends first, or matches
//
//   - [ErrTimeout] where Command.Timeout ended it, with a status all the same,
//   - [ErrSandboxGone] where it ended with its sandbox,
//   - [ErrExitUnknown] where it ended while the connection was lost,
//   - [os.ErrClosed] after Close.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.done:
		return p.status, p.err
	default:
	}
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
}

// Signal sends a signal to the process, not to its children. A process that
// has ended is no error.
func (p *Process) Signal(ctx context.Context, sig Signal) error {
	select {
	case <-p.done:
		if !errors.Is(p.err, os.ErrClosed) {
			return nil
		}
	default:
	}
	return p.sandbox.Signal(ctx, p.pid, sig)
}

// Close lets go of the process, which goes on. It waits until nothing is
// written to Command.Stderr any more. Output that was not read is discarded. A
// process that has ended, and whose output was read, need not be closed.
func (p *Process) Close() error {
	p.cancel(os.ErrClosed)
	p.stdout.Close()
	p.tasks.wait()
	return nil
}

// Signal sends a signal to a process. One that has ended is no error.
func (s *Sandbox) Signal(ctx context.Context, pid int, sig Signal) error {
	numbers := map[Signal]envdpb.Signal{
		SignalTerm: envdpb.Signal_SIGNAL_SIGTERM,
		SignalKill: envdpb.Signal_SIGNAL_SIGKILL,
	}
	op := fmt.Sprintf("send %s to process %d", sig, pid)
	number, ok := numbers[sig]
	if !ok {
		return fmt.Errorf("%s: %w: the daemon sends only SIGTERM and SIGKILL", op, ErrUnsupported)
	}
	msg := &envdpb.SendSignalRequest{Process: byPID(pid), Signal: number}
	_, err := call(ctx, s, op, s.rpc.sendSignal, msg, true)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Processes lists the running processes that were started by the daemon, in no
// order.
func (s *Sandbox) Processes(ctx context.Context) ([]ProcessInfo, error) {
	resp, err := call(ctx, s, "list processes", s.rpc.list, &envdpb.ListRequest{}, true)
	if err != nil {
		return nil, err
	}
	infos := make([]ProcessInfo, len(resp.GetProcesses()))
	for i, p := range resp.GetProcesses() {
		c := p.GetConfig()
		infos[i] = ProcessInfo{PID: int(p.GetPid()), Tag: p.GetTag(), Path: c.GetCmd(), Args: c.GetArgs(), Env: c.GetEnvs(), Dir: c.GetCwd()}
	}
	return infos, nil
}

func byPID(pid int) *envdpb.ProcessSelector {
	return &envdpb.ProcessSelector{Selector: &envdpb.ProcessSelector_Pid{Pid: uint32(pid)}}
}

// events is a stream of a process's events.
type events struct {
	next  func() (*envdpb.ProcessEvent, error)
	close func() error
}

// opener opens a stream of events, which lives as long as ctx.
type opener func(ctx context.Context) (events, error)

func (p *Process) openStart(ctx context.Context) (events, error) {
	config := &envdpb.ProcessConfig{Cmd: p.cmd.Path, Args: p.cmd.Args, Envs: maps.Clone(p.cmd.Env)}
	if p.cmd.Dir != "" {
		config.Cwd = &p.cmd.Dir
	}
	req := connect.NewRequest(&envdpb.StartRequest{Process: config, Tag: &p.cmd.Tag, Stdin: &p.cmd.Stdin})
	setKeepAlive(req.Header())
	if p.cmd.User != "" {
		req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(p.cmd.User+":")))
	}
	if p.cmd.Timeout > 0 {
		// Not by a context's deadline: it would end the stream here, too. Zero
		// would start a process without a limit, more than ten digits none.
		ms := min(max(1, p.cmd.Timeout.Milliseconds()), 9_999_999_999)
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(ms, 10))
	}
	return openEvents(p.sandbox.rpc.start.CallServerStream(ctx, req))
}

func (p *Process) openConnect(ctx context.Context) (events, error) {
	req := connect.NewRequest(&envdpb.ConnectRequest{Process: byPID(p.pid)})
	setKeepAlive(req.Header())
	return openEvents(p.sandbox.rpc.connect.CallServerStream(ctx, req))
}

func setKeepAlive(h http.Header) {
	h.Set("Keepalive-Ping-Interval", strconv.Itoa(int(keepAlive/time.Second)))
}

// openEvents makes events of the streams of Start and Connect, which differ
// only in type.
func openEvents[R any, M interface {
	*R
	GetEvent() *envdpb.ProcessEvent
}](stream *connect.ServerStreamForClient[R], err error) (events, error) {
	if err != nil {
		return events{}, err
	}
	next := func() (*envdpb.ProcessEvent, error) {
		if stream.Receive() {
			return M(stream.Msg()).GetEvent(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.ErrUnexpectedEOF
	}
	return events{next, stream.Close}, nil
}

// run follows the process to its end.
func (p *Process) run(op string, open opener) {
	end, cut := p.follow(op, open)
	if end == nil && !p.hasStarted() {
		if err := p.find(cut); err != nil && !p.hasStarted() {
			p.startErr = err
			close(p.started)
			p.finish(nil, err)
			return
		}
	}
	if end != nil {
		p.stdout.end(io.EOF)
		p.finish(end, nil)
		return
	}
	p.stdout.end(cut)
	end, err := p.reattach()
	if err == nil && errors.Is(cut, ErrTimeout) {
		err = cut
	}
	p.finish(end, err)
}

func (p *Process) hasStarted() bool {
	select {
	case <-p.started:
		return true
	default:
		return false
	}
}

// follow opens a stream of events, in several tries as long as none can have
// arrived, and handles them until the end.
func (p *Process) follow(op string, open opener) (*envdpb.ProcessEvent_EndEvent, error) {
	for try := 0; ; try++ {
		end, err := p.followOnce(op, open)
		again := mayRepeat(err, false) || errors.Is(err, ErrPortClosed)
		if !again || try >= p.sandbox.client.cfg.Retries || !p.sandbox.client.pause(p.ctx, op, try, err) {
			return end, err
		}
	}
}

// rpcError is that of the sandbox, in words about the command.
func (p *Process) rpcError(ctx context.Context, op string, err error) error {
	err = p.sandbox.rpcError(ctx, op, err)
	if e := (*APIError)(nil); p.cmd.Timeout > 0 && errors.As(err, &e) && e.Code == connect.CodeDeadlineExceeded.String() {
		e.Message = fmt.Sprintf("command ran longer than %s", p.cmd.Timeout)
	}
	return err
}

func (p *Process) followOnce(op string, open opener) (*envdpb.ProcessEvent_EndEvent, error) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(fmt.Errorf("no sign of life for %s", silence)) })
	defer watchdog.Stop()
	if p.cmd.Path != "" && !p.hasStarted() {
		p.tasks.start(func() { p.lookForStart(ctx, cancel) })
	}
	stream, err := open(ctx)
	if err != nil {
		return nil, p.rpcError(ctx, op, err)
	}
	defer stream.close()
	for {
		event, err := stream.next()
		if err != nil {
			return nil, p.rpcError(ctx, op, err)
		}
		watchdog.Stop() // it does not watch over the reader of the output
		switch event := event.GetEvent().(type) {
		case *envdpb.ProcessEvent_Start:
			if err := p.hasPID(int(event.Start.GetPid())); err != nil {
				return nil, err
			}
		case *envdpb.ProcessEvent_Data:
			p.deliver(event.Data)
		case *envdpb.ProcessEvent_End:
			watchdog.Reset(time.Second)
			stream.next() // so that the connection can be used again
			return event.End, nil
		}
		watchdog.Reset(silence)
	}
}

// lookForStart looks for a process that does not say that it has started, and
// gives up its stream once the process is seen to run: the answer got lost. One
// look more lets an answer come that was only late.
func (p *Process) lookForStart(ctx context.Context, giveUp context.CancelCauseFunc) {
	every := p.sandbox.client.cfg.RequestTimeout / startLooks
	for seen := 0; seen < 2; {
		select {
		case <-p.started:
			return
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		if infos, err := p.sandbox.Processes(ctx); err == nil && p.among(infos) != nil {
			seen++
		}
	}
	giveUp(errors.New("the answer to the start was lost"))
}

// among finds the process by its tag, which is compared here: the daemon's own
// selection by tag misses processes.
func (p *Process) among(infos []ProcessInfo) *ProcessInfo {
	i := slices.IndexFunc(infos, func(info ProcessInfo) bool { return info.Tag == p.cmd.Tag })
	if i < 0 {
		return nil
	}
	return &infos[i]
}

// hasPID takes the process's ID from the event that begins every stream.
func (p *Process) hasPID(pid int) error {
	if p.hasStarted() {
		return nil
	}
	if pid <= 0 {
		return errors.New("the daemon gave no process ID")
	}
	p.pid = pid
	close(p.started)
	<-p.taken
	if p.abandoned {
		p.kill()
		p.cancel(context.Canceled)
		return context.Canceled
	}
	return nil
}

// kill ends a process that nobody will know of, if it can.
func (p *Process) kill() {
	if p.cmd.Path == "" { // it was not started here
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, abandonedAfter)
	defer cancel()
	if err := p.sandbox.Signal(ctx, p.pid, SignalKill); err != nil {
		p.sandbox.client.cfg.Logger.Warn("e2b: a process that nobody waits for could not be killed", "sandbox", p.sandbox.ID(), "pid", p.pid, "error", err)
	}
}

// deliver hands on what the process wrote.
func (p *Process) deliver(data *envdpb.ProcessEvent_DataEvent) {
	switch out := data.GetOutput().(type) {
	case *envdpb.ProcessEvent_DataEvent_Stdout:
		p.stdout.put(p.ctx, out.Stdout)
	case *envdpb.ProcessEvent_DataEvent_Pty:
		p.stdout.put(p.ctx, out.Pty)
	case *envdpb.ProcessEvent_DataEvent_Stderr:
		if p.cmd.Stderr == nil {
			return
		}
		if _, err := p.cmd.Stderr.Write(out.Stderr); err != nil {
			p.cmd.Stderr = nil
			p.sandbox.client.cfg.Logger.Warn("e2b: standard error of a process is discarded from now on", "sandbox", p.sandbox.ID(), "pid", p.pid, "error", err)
		}
	}
}

// find looks for a process whose start was asked for, but not answered.
func (p *Process) find(cause error) error {
	timedOut := errors.Is(cause, ErrTimeout)
	if p.cmd.Path == "" || p.ctx.Err() != nil || isRefusal(cause) && !timedOut {
		return cause
	}
	first, later := lateStarts()
	var info *ProcessInfo
	for _, wait := range first {
		if !sleep(p.ctx, wait) {
			break
		}
		infos, err := p.sandbox.Processes(p.ctx)
		if err != nil {
			return fmt.Errorf("%w; the process may run all the same, tagged %q: %w", cause, p.cmd.Tag, err)
		}
		if info = p.among(infos); info != nil {
			break
		}
	}
	switch {
	case info == nil:
		p.sandbox.tasks.start(func() { p.killLate(later) })
		return fmt.Errorf("%w: %w", cause, ErrNotStarted)
	case timedOut: // before it had started, so it would run without a limit
		p.pid = info.PID
		p.kill()
		return cause
	}
	return p.hasPID(info.PID)
}

// killLate kills a process that appears after it was given up. It has its own
// context: that of the process has ended.
func (p *Process) killLate(waits []time.Duration) {
	for _, wait := range waits {
		if !sleep(p.sandbox.ctx, wait) {
			return
		}
		infos, err := p.sandbox.Processes(p.sandbox.ctx)
		if errors.Is(err, ErrSandboxGone) {
			return
		}
		if info := p.among(infos); info != nil {
			if err := p.sandbox.Signal(p.sandbox.ctx, info.PID, SignalKill); err == nil {
				return
			}
		}
	}
}

// isRefusal reports whether what was asked for cannot have happened.
func isRefusal(err error) bool {
	var api *APIError
	return isDial(err) || errors.Is(err, ErrPortClosed) || isFinal(err) || errors.As(err, &api) && api.Status < 500
}

// reattach connects to the process again until it has ended.
func (p *Process) reattach() (*envdpb.ProcessEvent_EndEvent, error) {
	op := fmt.Sprintf("attach to process %d again", p.pid)
	begin := time.Now()
	for try := 0; ; try++ {
		opened := false
		end, err := p.followOnce(op, func(ctx context.Context) (events, error) {
			stream, err := p.openConnect(ctx)
			next := stream.next
			stream.next = func() (*envdpb.ProcessEvent, error) {
				event, err := next()
				opened = opened || err == nil
				return event, err
			}
			return stream, err
		})
		switch {
		case end != nil:
			return end, nil
		case p.ctx.Err() != nil:
			return nil, context.Cause(p.ctx)
		case errors.Is(err, ErrNotFound):
			return nil, fmt.Errorf("process %d: %w", p.pid, ErrExitUnknown)
		case isFinal(err), time.Since(begin) > lostAfter:
			return nil, err
		case opened:
			try, begin = 0, time.Now()
		}
		wait := min(waitBefore(try, err), p.sandbox.client.cfg.RequestTimeout, lostAfter)
		traceRetry(p.ctx, Retry{Op: op, Attempt: try + 2, Reason: err, Wait: wait})
		sleep(p.ctx, wait)
	}
}

// isFinal reports whether it is of no use to try again.
func isFinal(err error) bool {
	for _, target := range []error{ErrSandboxGone, ErrAuthentication, ErrForbidden, ErrInvalid, ErrUnsupported} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// finish sets the result and ends everything that waits for the process.
func (p *Process) finish(end *envdpb.ProcessEvent_EndEvent, err error) {
	p.err = err
	if end != nil {
		p.status = exitStatus(end)
	}
	close(p.done)
	p.cancel(os.ErrProcessDone)
}

// exitStatus goes by the exited flag first: text and code differ between the
// daemon's own children and those that it took over from its predecessor.
func exitStatus(end *envdpb.ProcessEvent_EndEvent) ExitStatus {
	if end.GetExited() {
		return ExitStatus{Code: int(end.GetExitCode())}
	}
	return ExitStatus{Code: -1, Signal: signalName(end.GetStatus())}
}

// signalName gives the name of a signal that the daemon describes with Go's
// words for it, such as "signal: killed (core dumped)".
func signalName(status string) string {
	names := map[string]string{
		"hangup": "SIGHUP", "interrupt": "SIGINT", "quit": "SIGQUIT", "illegal instruction": "SIGILL",
		"trace/breakpoint trap": "SIGTRAP", "aborted": "SIGABRT", "bus error": "SIGBUS",
		"floating point exception": "SIGFPE", "killed": "SIGKILL", "user defined signal 1": "SIGUSR1",
		"segmentation fault": "SIGSEGV", "user defined signal 2": "SIGUSR2", "broken pipe": "SIGPIPE",
		"alarm clock": "SIGALRM", "terminated": "SIGTERM",
	}
	words := strings.TrimSuffix(strings.TrimPrefix(status, "signal: "), " (core dumped)")
	if name, ok := names[words]; ok {
		return name
	}
	if words == "" {
		return "unknown signal"
	}
	return words
}
