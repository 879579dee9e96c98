package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/internal/inproc"
	"github.com/osiris-pipelines/remote/worker"
)

// LocalAdapter runs manifests on this machine, with the worker as a child
// process. It does everything a sandbox does except confine: what a driver may
// do here is what this process may do. What it starts ends with the run all the
// same: on Linux everything, on other Unix systems its process group.
//
// The child's environment is not this process's: besides what Config.PassEnv
// and Config.Env pass it has only PATH, HOME, USER, SHELL, the temporary
// directory, locale and time zone, and on Windows what programs need there.
type LocalAdapter struct{ engine }

var _ ExecutionAdapter = (*LocalAdapter)(nil)

// childVariable marks the environment of a worker that was started as a child,
// so that a program which does not call worker.Main cannot start itself over
// and over.
const childVariable = "OSIRIS_WORKER_CHILD"

// NewLocalAdapter returns an adapter for runs on this machine. Config.WorkerPath
// names the worker program; without it this program is started again, and must
// call [worker.Main] first in its main. The caller should Close the adapter. An
// error matches [ErrInvalid].
func NewLocalAdapter(cfg Config) (*LocalAdapter, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if os.Getenv(childVariable) != "" && cfg.WorkerPath == "" && !cfg.InProcess {
		return nil, fmt.Errorf("remote: %w: this process was started as a worker; call worker.Main first in its main, or name a worker in Config.WorkerPath", ErrInvalid)
	}
	if !cfg.InProcess {
		if _, err := cfg.workerPath(); err != nil {
			return nil, fmt.Errorf("remote: %w", err)
		}
	}
	if cfg.Root != "" && !filepath.IsAbs(cfg.Root) {
		return nil, fmt.Errorf("remote: %w: Config.Root %q is not an absolute path", ErrInvalid, cfg.Root)
	}
	a := &LocalAdapter{}
	a.engine = engine{cfg: cfg, name: "local", settle: a.settle}
	return a, nil
}

// String names the adapter, and shows nothing of its Config, which may hold
// secret values.
func (a *LocalAdapter) String() string { return "remote.LocalAdapter" }

// GoString is String.
func (a *LocalAdapter) GoString() string { return a.String() }

// settle makes the run's folder.
func (a *LocalAdapter) settle(ctx context.Context, p *PreparedRun, s *session, _ *egressPlan) (*place, error) {
	base, err := filepath.Abs(a.contextOf(p).BasePath)
	if err != nil {
		return nil, fmt.Errorf("remote: base path: %w", err)
	}
	sb := &localSandbox{drivers: a.cfg.Drivers, inProcess: a.cfg.InProcess}
	if !a.cfg.InProcess {
		if sb.program, err = a.cfg.workerPath(); err != nil {
			return nil, fmt.Errorf("remote: worker: %w", err)
		}
	}
	if a.cfg.Root == "" {
		sb.dir, err = os.MkdirTemp("", "osiris-"+s.id+"-")
	} else {
		sb.dir = filepath.Join(a.cfg.Root, runFolder(s.id))
		if err = os.MkdirAll(a.cfg.Root, 0o755); err == nil {
			err = os.Mkdir(sb.dir, 0o700)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("remote: run folder: %w", err)
	}
	s.meter.runs(sb.Info())
	s.meter.enter(phaseUpload)
	pl := &place{sandbox: sb, program: sb.program, dir: sb.dir, base: base}
	// Sent here, too: what is changed during a run has no effect on it.
	sources, done, err := packSources(ctx, a.contextOf(p), p, pl.dir)
	if err != nil {
		return pl, err
	}
	defer done()
	if _, err := sendInputs(ctx, sb, sources); err != nil {
		return pl, err
	}
	start := time.Now()
	tables, err := a.sendTables(ctx, sb, p, a.contextOf(p), filepath.Join(pl.dir, "tables"), filepath.Join)
	if err != nil {
		return pl, err
	}
	tables.tell(s, time.Since(start))
	return pl, tables.place(pl, s, false)
}

// localSandbox is this machine, as far as one run uses it.
type localSandbox struct {
	dir       string // the run's folder, removed by Kill
	program   string
	drivers   *worker.Registry
	inProcess bool

	mu    sync.Mutex
	gone  bool
	procs []localProcess
}

// localProcess is a process that Kill can end.
type localProcess interface {
	Process
	ended() <-chan struct{} // nothing of it is left
	kill()
}

func (sb *localSandbox) Info() SandboxInfo {
	return SandboxInfo{ID: "local", Template: "local", WorkerPath: sb.program}
}

// State implements Sandbox.
func (sb *localSandbox) State(ctx context.Context) (SandboxState, error) {
	err := sb.check(ctx)
	switch {
	case err == nil:
		return SandboxState{Phase: SandboxRunning}, nil
	case errors.Is(err, ErrSandboxGone):
		return SandboxState{Phase: SandboxGone}, nil
	}
	return SandboxState{}, err
}

func (sb *localSandbox) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.gone {
		return ErrSandboxGone
	}
	return nil
}

// within makes a change of the run's folder, unless Kill has begun: what it
// removes must not grow meanwhile.
func (sb *localSandbox) within(change func() error) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.gone {
		return ErrSandboxGone
	}
	return change()
}

func (sb *localSandbox) Upload(ctx context.Context, name string, r io.Reader, size int64) (err error) {
	if err := sb.check(ctx); err != nil {
		return err
	}
	var f *os.File
	err = sb.within(func() (err error) {
		if err = os.MkdirAll(filepath.Dir(name), 0o700); err == nil {
			f, err = os.CreateTemp(filepath.Dir(name), ".upload-*")
		}
		return err
	})
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(&contextReader{ctx, r}, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("upload %s: have %d bytes, %d were announced", name, n, size)
	}
	if err = errors.Join(err, f.Chmod(0o700), f.Close()); err == nil {
		err = sb.within(func() error { return os.Rename(f.Name(), name) })
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func (sb *localSandbox) Download(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := sb.check(ctx); err != nil {
		return nil, err
	}
	f, err := sb.open(name)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&contextReader{ctx, f}, f}, nil
}

// open opens a regular file of the run's folder, and nothing that a driver has put
// in its place: by a link the host would read a file of its own, and a pipe
// would hold it up.
func (sb *localSandbox) open(name string) (*os.File, error) {
	rel, err := filepath.Rel(sb.dir, name)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(sb.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	before, err := root.Lstat(rel)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: %w: it is no regular file", name, ErrProtocol)
	}
	f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if after, err := f.Stat(); err != nil || !os.SameFile(before, after) {
		return nil, errors.Join(fmt.Errorf("open %s: %w: it has become another file", name, ErrProtocol), err, f.Close())
	}
	return f, nil
}

func (sb *localSandbox) Size(ctx context.Context, name string) (int64, error) {
	if err := sb.check(ctx); err != nil {
		return 0, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (sb *localSandbox) Extend(ctx context.Context, _ time.Duration) error { return sb.check(ctx) }

// Kill ends the processes and removes the run's folder.
func (sb *localSandbox) Kill(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sb.mu.Lock()
	sb.gone = true
	procs := slices.Clone(sb.procs)
	sb.mu.Unlock()
	for _, p := range procs {
		p.kill()
	}
	for _, p := range procs {
		select {
		case <-p.ended():
		case <-ctx.Done():
			return fmt.Errorf("process %d is still running: %w", p.PID(), ctx.Err())
		}
	}
	if err := sb.reap(); err != nil {
		return err
	}
	return os.RemoveAll(sb.dir)
}

// reap ends what a worker has started whose supervisor did not come to it.
func (sb *localSandbox) reap() error {
	if sb.inProcess {
		return nil
	}
	if _, err := os.Stat(filepath.Join(sb.dir, worker.ProcessesFile)); err != nil {
		return nil // none has run
	}
	if _, err := os.Stat(filepath.Join(sb.dir, worker.DeathFile)); err == nil {
		return nil // the supervisor did
	}
	if left := worker.Reap(sb.dir).Left; len(left) > 0 {
		return fmt.Errorf("%d processes of the run are still running, the first is %d (%s)", len(left), left[0].PID, left[0].Name)
	}
	return nil
}

func (sb *localSandbox) Start(ctx context.Context, cmd Command) (Process, error) {
	if err := sb.check(ctx); err != nil {
		return nil, err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.gone {
		return nil, ErrSandboxGone
	}
	sb.procs = slices.DeleteFunc(sb.procs, func(p localProcess) bool {
		select {
		case <-p.ended():
			return true
		default:
			return false
		}
	})
	var p localProcess
	if sb.inProcess || readsOnly(cmd) {
		program := worker.Program{Drivers: sb.drivers}
		p = &goProcess{inproc.Start(func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
			return program.Run(ctx, cmd.Args, stdin, stdout, stderr)
		}, cmd.Stderr)}
	} else {
		var err error
		if p, err = startChild(cmd); err != nil {
			return nil, err
		}
	}
	sb.procs = append(sb.procs, p)
	return p, nil
}

// readsOnly reports whether a command is the worker's tail. On this machine it
// runs in this process: the files are the same ones, and what the worker says
// is here one process earlier.
func readsOnly(cmd Command) bool {
	return len(cmd.Args) > 1 && cmd.Args[0] == worker.Arg && cmd.Args[1] == "tail"
}

// goProcess is a worker that runs in this process.
type goProcess struct{ *inproc.Process }

func (p *goProcess) PID() int               { return os.Getpid() }
func (p *goProcess) ended() <-chan struct{} { return p.Exited() }
func (p *goProcess) kill()                  { p.Kill() }

func (p *goProcess) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.Done():
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
	code, signal := p.Status()
	return ExitStatus{Code: code, Signal: signal}, nil
}

func (p *goProcess) Signal(ctx context.Context, sig Signal) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if sig == SignalKill {
		p.Kill()
	} else {
		p.Terminate()
	}
	return nil
}

// child is a process of this machine.
type child struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *childOutput

	done   chan struct{} // it has ended
	status ExitStatus    // valid when done is closed
	err    error
}

// startChild starts a process in a group of its own, so that what it starts
// can be killed with it. Its environment holds what programs need to run, and
// nothing that could be a secret.
func startChild(command Command) (*child, error) {
	cmd := exec.Command(command.Path, command.Args...)
	cmd.Dir = command.Dir
	cmd.Stderr = command.Stderr
	cmd.WaitDelay = 2 * time.Second // for what still holds its standard error
	cmd.Env = childEnvironment()
	ownGroup(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		stdin.Close()
		stdout.Close()
		return nil, err
	}
	p := &child{cmd: cmd, stdin: stdin, stdout: &childOutput{f: stdout}, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		err := reap(cmd)
		p.stdout.ended(cmd.WaitDelay)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
			p.err = err
			return
		}
		p.status = exitStatus(cmd.ProcessState)
	}()
	return p, nil
}

// childEnvironment returns the variables without which programs do not work.
func childEnvironment() []string {
	env := []string{childVariable + "=1"}
	for _, name := range []string{
		"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
		"SYSTEMROOT", "SystemRoot", "TEMP", "TMP", "USERPROFILE", "PATHEXT", "ComSpec",
		"GOCOVERDIR", "GORACE",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (p *child) PID() int               { return p.cmd.Process.Pid }
func (p *child) Stdin() io.WriteCloser  { return p.stdin }
func (p *child) Stdout() io.ReadCloser  { return p.stdout }
func (p *child) ended() <-chan struct{} { return p.done }

func (p *child) kill() {
	select {
	case <-p.done: // its pid may be another's by now
	default:
		killGroup(p.cmd)
	}
	p.stdout.Close()
}

func (p *child) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
}

func (p *child) Signal(ctx context.Context, sig Signal) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	if sig == SignalKill {
		killGroup(p.cmd)
		return nil
	}
	if err := terminate(p.cmd); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	return nil
}

// childOutput is a process's standard output. Closing it must not end the
// process, as a closed pipe would: what it writes is thrown away instead.
type childOutput struct {
	f *os.File

	reading sync.Mutex // held by Read
	mu      sync.Mutex
	closed  bool
	drained sync.WaitGroup
}

func (o *childOutput) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

func (o *childOutput) Read(p []byte) (int, error) {
	o.reading.Lock()
	defer o.reading.Unlock()
	if o.isClosed() {
		return 0, os.ErrClosed
	}
	n, err := o.f.Read(p)
	if o.isClosed() {
		return n, os.ErrClosed
	}
	return n, err
}

func (o *childOutput) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	err := o.f.SetReadDeadline(time.Now()) // interrupts a Read
	o.drained.Add(1)
	o.mu.Unlock()
	o.reading.Lock()
	defer o.reading.Unlock()
	_ = o.f.SetReadDeadline(time.Time{})
	go func() {
		defer o.drained.Done()
		io.Copy(io.Discard, o.f)
		o.f.Close()
	}()
	return err
}

// ended is called when the process has ended: what still holds the pipe has a
// grace to let go of it.
func (o *childOutput) ended(grace time.Duration) {
	o.mu.Lock()
	closed := o.closed
	o.mu.Unlock()
	if closed {
		timer := time.AfterFunc(grace, func() { o.f.Close() })
		defer timer.Stop()
		o.drained.Wait()
	}
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
