package mock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
)

const (
	binDir     = "/usr/local/bin"
	homeDir    = "/home/user"
	workerName = "osiris-worker"

	// expiryGrace is how long a sandbox outlives its run's timeout, so that
	// there is time to collect.
	expiryGrace = time.Minute
)

// Fault decides whether a call fails: it is consulted before the call has any
// effect and returns the error to fail with, or nil to let it pass. It may
// block, to hold the call up; ctx is the call's, or ends with the process
// where the call has none. [FailAfter] and [FailLate] make errors that strike
// later. It runs in the caller's goroutine and may be called concurrently.
type Fault func(ctx context.Context, call Call) error

// Options says what a sandbox holds and how it misbehaves. Nil means the
// defaults, and so does every zero field.
type Options struct {
	// Drivers are those of the worker in the sandbox. Nil means none.
	Drivers *worker.Registry

	// Programs by the base name of a command's path. Each one is also
	// installed in /usr/local/bin. One named "osiris-worker" replaces the
	// worker.
	Programs map[string]Program

	// WithoutWorker leaves the worker out of the sandbox, so that it must be
	// uploaded: what is started under a base name that begins with
	// "osiris-worker" runs the worker, whatever the file's content.
	WithoutWorker bool

	// DiskBytes is the room for files; more fails with syscall.ENOSPC. Zero
	// means no limit.
	DiskBytes int64

	// Fault makes calls fail. Nil means that none does.
	Fault Fault

	// Now tells the time: of files, and to end sandboxes that are due, which
	// happens at the next call or look at them. Nil means time.Now for files,
	// and sandboxes that end by Kill and Expire alone.
	Now func() time.Time
}

// Program is a program of a sandbox. It returns the exit code. It should
// return soon after ctx is done: a function cannot be killed, and though the
// process ends for all to see, [Sandbox.Kill] waits for the function.
type Program func(ctx context.Context, p *Proc) int

// Proc is what a [Program] finds when it starts.
type Proc struct {
	Args   []string // without the program's name
	Env    []string // as NAME=value, in a sandbox of a [Server]; else nil
	Dir    string   // working directory, absolute
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// FS is the sandbox's files. Every use of it fails once the process has
	// ended, so that a function which outlives its process leaves no trace.
	FS worker.FS
}

// Sandbox is a machine in memory. It implements remote.Sandbox.
type Sandbox struct {
	opts     Options
	info     remote.SandboxInfo
	config   remote.SandboxConfig
	log      *callLog
	disk     *disk
	host     *view
	programs map[string]Program
	frost    frost

	mu    sync.Mutex
	procs []*process
	ttl   time.Duration // as last set; zero means no end
	made  time.Time
	end   time.Time // zero means no end
	gone  error     // nil while it lives
}

var _ remote.Sandbox = (*Sandbox)(nil)

// NewSandbox makes a sandbox of its own, with the ID "mock-1" and no end.
func NewSandbox(opts *Options) *Sandbox {
	return newSandbox(opts, "mock-1", remote.SandboxConfig{}, &callLog{})
}

func newSandbox(opts *Options, id string, cfg remote.SandboxConfig, log *callLog) *Sandbox {
	var o Options
	if opts != nil {
		o = *opts
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	cfg.Metadata = maps.Clone(cfg.Metadata)
	s := &Sandbox{
		opts:     o,
		config:   cfg,
		log:      log,
		disk:     newDisk(o.DiskBytes, now),
		programs: maps.Clone(o.Programs),
		info: remote.SandboxInfo{
			ID:       id,
			Template: cfg.Template,
			CPU:      cmp.Or(cfg.CPU, 2),
			MemoryGB: cmp.Or(cfg.MemoryGB, 0.5),
		},
	}
	s.made = now()
	s.host = &view{disk: s.disk}
	for _, dir := range []string{homeDir, "/tmp", binDir} {
		s.disk.mkdirAll(dir)
	}
	for name := range o.Programs {
		s.install(name)
	}
	if !o.WithoutWorker {
		s.info.WorkerPath = s.install(workerName)
	}
	if cfg.TimeoutSeconds > 0 {
		s.setTTL(time.Duration(cfg.TimeoutSeconds)*time.Second + expiryGrace)
	}
	return s
}

// install puts an empty program file in its place; it takes no disk space.
func (s *Sandbox) install(name string) string {
	name = path.Join(binDir, name)
	if err := s.disk.place(name, 0o755, s.disk.newContent()); err != nil {
		panic(fmt.Sprintf("mock: install %q: %v", name, err))
	}
	return name
}

// setTTL sets the sandbox's end. Without a clock of its own there is none.
func (s *Sandbox) setTTL(d time.Duration) {
	s.ttl = d
	if s.opts.Now != nil {
		s.end = s.opts.Now().Add(d)
	}
}

// Info implements remote.Sandbox.
func (s *Sandbox) Info() remote.SandboxInfo { return s.info }

// State implements remote.Sandbox.
func (s *Sandbox) State(ctx context.Context) (remote.SandboxState, error) {
	call := Call{Op: OpState, Sandbox: s.info.ID}
	rec, err := s.log.begin(ctx, call, s.opts.Fault, func() error { return nil })
	gone := s.check() != nil
	s.mu.Lock()
	state := remote.SandboxState{Phase: remote.SandboxRunning, StartedAt: s.made, EndAt: s.end}
	s.mu.Unlock()
	if gone {
		state.Phase = remote.SandboxGone
	}
	if err = s.fail(rec, err); err != nil {
		return remote.SandboxState{}, err
	}
	return state, nil
}

// Config returns what the sandbox was made from.
func (s *Sandbox) Config() remote.SandboxConfig {
	cfg := s.config
	cfg.Metadata = maps.Clone(cfg.Metadata)
	return cfg
}

// TTL returns the time to live as it was last set, from when it was set: by
// Extend, and before that the configuration's timeout and a minute of grace.
// Zero means no end.
func (s *Sandbox) TTL() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ttl
}

// Alive reports whether the sandbox was neither killed nor has expired.
func (s *Sandbox) Alive() bool { return s.check() == nil }

// Calls returns what was called, in the order in which the calls began.
func (s *Sandbox) Calls() []Call { return s.log.list(s.info.ID) }

// FS returns the sandbox's files, for tests to look at and to prepare. They
// are gone with the sandbox.
func (s *Sandbox) FS() worker.FS { return s.host }

// WriteFile writes a file, executable as an uploaded one is, and makes the
// directories above it.
func (s *Sandbox) WriteFile(name string, data []byte) error {
	return pathError("write", name, s.host.use(func() error {
		c := s.disk.newContent()
		_, err := c.writeAt(data, 0)
		if err == nil {
			err = s.disk.place(name, 0o755, c)
		}
		if err != nil {
			c.release()
		}
		return err
	}))
}

// ReadFile returns a file's content.
func (s *Sandbox) ReadFile(name string) ([]byte, error) {
	f, err := s.host.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Files returns the paths of all files, sorted. They include the programs.
func (s *Sandbox) Files() []string { return s.disk.files() }

// check returns why the sandbox cannot be used, and ends one that is due.
func (s *Sandbox) check() error {
	s.mu.Lock()
	due := s.gone == nil && !s.end.IsZero() && !s.opts.Now().Before(s.end)
	gone := s.gone
	s.mu.Unlock()
	if due {
		return s.shut("its time is over")
	}
	return gone
}

// shut ends the sandbox and returns the error of its uses from then on.
func (s *Sandbox) shut(why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone != nil {
		return s.gone
	}
	s.gone = fmt.Errorf("%w: %s", remote.ErrSandboxGone, why)
	for _, p := range s.procs {
		p.lose(s.gone)
	}
	s.frost.set(false)
	s.host.revoke(s.gone)
	s.disk.clear()
	return s.gone
}

// begin records a call and returns the error that is due at once.
func (s *Sandbox) begin(ctx context.Context, call Call) (*record, error) {
	call.Sandbox = s.info.ID
	return s.log.begin(ctx, call, s.opts.Fault, s.check)
}

// fail ends a call and names it in its error.
func (s *Sandbox) fail(r *record, err error) error {
	if err = r.end(err); err == nil {
		return nil
	}
	subject := ""
	if r.call.Path != "" {
		subject = fmt.Sprintf(" %q", r.call.Path)
	}
	return fmt.Errorf("mock: sandbox %s: %s%s: %w", s.info.ID, r.call.Op, subject, err)
}

// Upload implements remote.Sandbox.
func (s *Sandbox) Upload(ctx context.Context, name string, r io.Reader, size int64) error {
	rec, err := s.begin(ctx, Call{Op: OpUpload, Path: name})
	if err == nil {
		err = s.receive(ctx, rec, name, r, size)
	}
	return s.fail(rec, err)
}

func (s *Sandbox) receive(ctx context.Context, rec *record, name string, r io.Reader, size int64) error {
	c := s.disk.newContent()
	err := s.fill(ctx, rec, c, r, size)
	if err == nil {
		err = s.host.use(func() error { return s.disk.place(name, 0o755, c) })
	}
	if err != nil {
		c.release()
	}
	return err
}

// fill reads a content of size bytes.
func (s *Sandbox) fill(ctx context.Context, rec *record, c *content, r io.Reader, size int64) error {
	buf := make([]byte, min(64<<10, max(size, 0)+1))
	for have := int64(0); ; {
		n, readErr := r.Read(buf)
		n, fault := rec.allow(n)
		if _, err := c.writeAt(buf[:n], have); err != nil {
			return err
		}
		have += int64(n)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case fault != nil:
			return fault
		case have > size:
			return fmt.Errorf("there are more than the announced %d bytes", size)
		case readErr == io.EOF && have < size:
			return fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, have, size)
		case readErr == io.EOF:
			return nil
		case readErr != nil:
			return readErr
		}
		if err := s.check(); err != nil {
			return err
		}
	}
}

// Download implements remote.Sandbox. The reader returns what the file held
// when it was opened; one that is cut short meanwhile ends with
// io.ErrUnexpectedEOF.
func (s *Sandbox) Download(ctx context.Context, name string) (io.ReadCloser, error) {
	rec, err := s.begin(ctx, Call{Op: OpDownload, Path: name})
	if err != nil {
		return nil, s.fail(rec, err)
	}
	f, err := s.host.Open(name)
	if err == nil {
		var fi fs.FileInfo
		if fi, err = f.Stat(); err == nil && fi.IsDir() {
			err = syscall.EISDIR
		}
		if err == nil {
			return &download{ctx: ctx, sandbox: s, rec: rec, file: f, left: fi.Size()}, nil
		}
		f.Close()
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path is in the error once already
	}
	return nil, s.fail(rec, err)
}

// List returns the names in a directory. The error matches fs.ErrNotExist when
// there is none.
func (s *Sandbox) List(ctx context.Context, dir string) ([]string, error) {
	rec, err := s.begin(ctx, Call{Op: OpList, Path: dir})
	if err != nil {
		return nil, s.fail(rec, err)
	}
	entries, err := s.host.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, s.fail(rec, err)
}

// download is the reader of a file. It holds its context because that bounds
// the whole transfer.
type download struct {
	ctx     context.Context
	sandbox *Sandbox
	rec     *record
	file    worker.File

	mu   sync.Mutex
	left int64
	err  error
}

func (d *download) Read(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || len(b) == 0 {
		return 0, d.err
	}
	n, err := d.read(b)
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && d.rec.late == nil:
		d.err = io.EOF
	case err == io.EOF:
		d.err = d.sandbox.fail(d.rec, nil)
	default:
		d.err = d.sandbox.fail(d.rec, err)
	}
	return n, d.err
}

func (d *download) read(b []byte) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	if err := d.sandbox.check(); err != nil {
		return 0, err
	}
	if d.left == 0 {
		return 0, io.EOF
	}
	n, err := d.file.Read(b[:min(int64(len(b)), d.left)])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	n, fault := d.rec.allow(n)
	d.left -= int64(n)
	return n, cmp.Or(fault, err)
}

// Close is no error when it is called again.
func (d *download) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = fs.ErrClosed
	d.file.Close() // a second time it says so, and that is fine
	return nil
}

// Start implements remote.Sandbox.
func (s *Sandbox) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	rec, err := s.begin(ctx, Call{Op: OpStart, Path: cmd.Path, Args: cmd.Args})
	var p *process
	if err == nil {
		p, err = s.start(cmd)
	}
	if p != nil {
		rec.update(func(c *Call) { c.PID = p.pid })
	}
	if err = s.fail(rec, err); err != nil {
		return nil, err
	}
	return p, nil
}

func (s *Sandbox) start(cmd remote.Command) (*process, error) {
	cmd.Args = slices.Clone(cmd.Args)
	cmd.Dir = cmp.Or(cmd.Dir, homeDir)
	program, err := s.program(cmd)
	if err != nil {
		return nil, err
	}
	return s.run(cmd, program)
}

// run makes a process of a program.
func (s *Sandbox) run(cmd remote.Command, program Program) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone != nil {
		return nil, s.gone
	}
	p := newProcess(s, len(s.procs)+1, cmd, program)
	s.procs = append(s.procs, p)
	return p, nil
}

// program finds the function behind a command.
func (s *Sandbox) program(cmd remote.Command) (Program, error) {
	n, err := s.disk.lookup(cmd.Path)
	switch {
	case err != nil:
		return nil, err
	case n.mode.IsDir(), n.mode.Perm()&0o100 == 0:
		return nil, syscall.EACCES
	}
	if dir, err := s.disk.lookup(cmd.Dir); err != nil {
		return nil, fmt.Errorf("directory %q: %w", cmd.Dir, err)
	} else if !dir.mode.IsDir() {
		return nil, fmt.Errorf("directory %q: %w", cmd.Dir, syscall.ENOTDIR)
	}
	base := path.Base(cmd.Path)
	if p := s.programs[base]; p != nil {
		return p, nil
	}
	if !strings.HasPrefix(base, workerName) {
		return nil, fmt.Errorf("%w: no program of the sandbox is named %q", syscall.ENOEXEC, base)
	}
	if p := s.programs[workerName]; p != nil {
		return p, nil
	}
	return s.runWorker, nil
}

// runWorker is the worker as a program. A host's own program, uploaded, is told
// by its first argument that it is the worker.
func (s *Sandbox) runWorker(ctx context.Context, p *Proc) int {
	args := p.Args
	if len(args) > 0 && args[0] == workerName {
		args = args[1:]
	}
	w := worker.Program{Drivers: s.opts.Drivers, FS: p.FS}
	return w.Run(ctx, args, p.Stdin, p.Stdout, p.Stderr)
}

// Extend implements remote.Sandbox.
func (s *Sandbox) Extend(ctx context.Context, d time.Duration) error {
	rec, err := s.begin(ctx, Call{Op: OpExtend, TTL: d})
	if err == nil {
		s.mu.Lock()
		s.setTTL(d)
		s.mu.Unlock()
	}
	return s.fail(rec, err)
}

// Expire ends the sandbox as its time would: as Kill, but nobody asked for it
// and nobody waits.
func (s *Sandbox) Expire() { s.shut("its time is over") }

// Kill implements remote.Sandbox. It also waits, as long as ctx lasts, for the
// functions of the sandbox's programs to return; the error names those that
// did not. The sandbox is gone all the same.
func (s *Sandbox) Kill(ctx context.Context) error {
	call := Call{Op: OpKill, Sandbox: s.info.ID}
	rec, err := s.log.begin(ctx, call, s.opts.Fault, func() error { return nil })
	if err == nil {
		s.shut("it was killed")
		err = s.waitExited(ctx)
	}
	return s.fail(rec, err)
}

func (s *Sandbox) waitExited(ctx context.Context) error {
	s.mu.Lock()
	procs := slices.Clone(s.procs)
	s.mu.Unlock()
	var stuck []string
	for _, p := range procs {
		select {
		case <-p.core.Exited():
			continue
		default:
		}
		select {
		case <-p.core.Exited():
		case <-ctx.Done():
			stuck = append(stuck, fmt.Sprintf("%d (%s)", p.pid, strings.Join(append([]string{p.cmd.Path}, p.cmd.Args...), " ")))
		}
	}
	if len(stuck) > 0 {
		return fmt.Errorf("processes that ignore their context: %s: %w", strings.Join(stuck, ", "), ctx.Err())
	}
	return nil
}

// ProcessInfo describes a process.
type ProcessInfo struct {
	PID     int
	Command remote.Command
	Exited  bool
	Status  remote.ExitStatus // once it has exited
}

// Processes lists the processes that were started, in that order, those that
// have exited included.
func (s *Sandbox) Processes() []ProcessInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]ProcessInfo, 0, len(s.procs))
	for _, p := range s.procs {
		info := ProcessInfo{PID: p.pid, Command: p.cmd, Exited: p.exited()}
		if info.Exited {
			info.Status = p.status()
		}
		list = append(list, info)
	}
	return list
}

// KillProcess ends a process by SIGKILL, as a machine out of memory does. Like
// all methods that take a pid, it panics when there is none.
func (s *Sandbox) KillProcess(pid int) { s.process(pid).kill() }

// DropStdout breaks the connection that carries a process's standard output:
// the reader gets an error that is not io.EOF and matches
// io.ErrUnexpectedEOF. The process goes on; its output is thrown away, as
// E2B's daemon does with output that nobody reads.
func (s *Sandbox) DropStdout(pid int) { s.process(pid).core.CutStdout(errDropped) }

// Freeze makes the connection that carries a process's standard output
// half-open: the reader gets nothing more, not even an end, until it is closed,
// the sandbox ends, or DropStdout is called. The process blocks once it has filled the
// buffers. Wait still returns.
func (s *Sandbox) Freeze(pid int) { s.process(pid).core.FreezeStdout() }

func (s *Sandbox) process(pid int) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pid < 1 || pid > len(s.procs) {
		panic(fmt.Sprintf("mock: sandbox %s has no process %d", s.info.ID, pid))
	}
	return s.procs[pid-1]
}
