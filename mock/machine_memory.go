package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

const (
	rootHome = "/root"

	// closeGrace is how long the end of a sandbox waits for Go functions that
	// ignore their context.
	closeGrace = 5 * time.Second
)

// memoryMachine is a [Sandbox] as the daemon of a [Server] sees it: its users
// are "user" and "root", files have no owners and no links, and there are no
// terminals.
type memoryMachine struct {
	sandbox *Sandbox
	usage   envd.Usage // what the machine has
}

var (
	_ envd.Machine       = (*memoryMachine)(nil)
	_ envd.Labeler       = (*memoryMachine)(nil)
	_ envd.Administrator = (*memoryMachine)(nil)
)

func newMemoryMachine(opts *Options, c bootConfig) *memoryMachine {
	s := newSandbox(opts, c.id, remote.SandboxConfig{
		Template: c.template,
		CPU:      c.size.cpu,
		MemoryGB: float64(c.size.memoryMB) / 1024,
	}, &callLog{})
	s.disk.mkdirAll(rootHome)
	m := &memoryMachine{sandbox: s}
	m.resize(c.size)
	return m
}

// resize sets what the machine has.
func (m *memoryMachine) resize(z size) {
	m.usage = envd.Usage{CPUs: z.cpu, MemTotal: int64(z.memoryMB) << 20, DiskTotal: m.sandbox.opts.DiskBytes}
	if m.usage.DiskTotal == 0 {
		m.usage.DiskTotal = int64(z.diskMB) << 20
	}
}

// User implements [envd.Machine].
func (m *memoryMachine) User(name string) (envd.User, error) {
	switch name {
	case "", "user":
		return envd.User{Name: "user", UID: 1000, GID: 1000, Home: homeDir}, nil
	case "root":
		return envd.User{Name: "root", Home: rootHome}, nil
	}
	return envd.User{}, fmt.Errorf("unknown user %s", name)
}

// Stat implements [envd.Machine].
func (m *memoryMachine) Stat(name string) (fs.FileInfo, error) { return m.sandbox.host.Stat(name) }

// Lstat implements [envd.Machine].
func (m *memoryMachine) Lstat(name string) (fs.FileInfo, error) { return m.Stat(name) }

// Readlink implements [envd.Machine].
func (m *memoryMachine) Readlink(name string) (string, error) {
	return "", pathError("readlink", name, syscall.EINVAL)
}

// Owner implements [envd.Machine].
func (m *memoryMachine) Owner(fs.FileInfo) (user, group string) { return "user", "user" }

// ReadDir implements [envd.Machine].
func (m *memoryMachine) ReadDir(name string) ([]fs.DirEntry, error) {
	return m.sandbox.host.ReadDir(name)
}

// Open implements [envd.Machine].
func (m *memoryMachine) Open(name string) (envd.File, error) {
	f, err := m.sandbox.host.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		f.Close()
		return nil, pathError("open", name, syscall.EISDIR)
	}
	return f, nil
}

// Create implements [envd.Machine].
func (m *memoryMachine) Create(name string, _ envd.User) (io.WriteCloser, error) {
	return m.sandbox.host.Create(name)
}

// Mkdir implements [envd.Machine].
func (m *memoryMachine) Mkdir(name string, _ envd.User) error {
	return pathError("mkdir", name, m.sandbox.host.use(func() error { return m.sandbox.disk.mkdir(name) }))
}

// Symlink implements [envd.Administrator]: there are no links.
func (m *memoryMachine) Symlink(_, name string, _ envd.User) error {
	return pathError("symlink", name, errors.ErrUnsupported)
}

// Chmod implements [envd.Administrator].
func (m *memoryMachine) Chmod(name string, mode fs.FileMode) error {
	return pathError("chmod", name, m.sandbox.host.use(func() error { return m.sandbox.disk.chmod(name, mode.Perm()) }))
}

// Chown implements [envd.Administrator]: there are no owners.
func (m *memoryMachine) Chown(string, envd.User) error { return nil }

// Rename implements [envd.Machine].
func (m *memoryMachine) Rename(from, to string) error { return m.sandbox.host.Rename(from, to) }

// RemoveAll implements [envd.Machine].
func (m *memoryMachine) RemoveAll(name string) error { return m.sandbox.host.RemoveAll(name) }

// Freeze implements [envd.Machine]. A function cannot be stopped; it waits as
// soon as it uses a file or a stream.
func (m *memoryMachine) Freeze(frozen bool) error {
	m.sandbox.frost.set(frozen)
	return nil
}

// SetMetadata implements [envd.Labeler].
func (m *memoryMachine) SetMetadata(name string, metadata map[string]string) error {
	return m.labels(name, func(labels *map[string]string) { *labels = maps.Clone(metadata) })
}

// Metadata implements [envd.Labeler].
func (m *memoryMachine) Metadata(name string) (metadata map[string]string, err error) {
	err = m.labels(name, func(labels *map[string]string) { metadata = maps.Clone(*labels) })
	return metadata, err
}

// labels calls f with the metadata of a file. Directories have none.
func (m *memoryMachine) labels(name string, f func(*map[string]string)) error {
	return pathError("metadata", name, m.sandbox.host.use(func() error {
		n, err := m.sandbox.disk.lookup(name)
		if err != nil || n.content == nil {
			return err
		}
		n.content.mu.Lock()
		defer n.content.mu.Unlock()
		f(&n.content.labels)
		return nil
	}))
}

// Usage implements [envd.Machine].
func (m *memoryMachine) Usage() envd.Usage {
	u := m.usage
	u.Time = m.sandbox.disk.now()
	u.DiskUsed = m.sandbox.disk.used.Load()
	return u
}

// Clone implements [envd.Machine].
func (m *memoryMachine) Clone() (envd.Machine, error) {
	old := m.sandbox
	s := newSandbox(&old.opts, old.info.ID, old.config, &callLog{})
	err := old.host.use(func() error {
		s.disk = old.disk.clone()
		s.host = &view{disk: s.disk}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &memoryMachine{sandbox: s, usage: m.usage}, nil
}

// Close implements [envd.Machine]. Functions that ignore their context are
// left behind.
func (m *memoryMachine) Close() error {
	m.sandbox.shut("it was killed")
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	return m.sandbox.waitExited(ctx)
}

// Start implements [envd.Machine]. A program that cannot be run is a process
// all the same, which says so and ends with 127 or 126, as a shell does.
func (m *memoryMachine) Start(cmd envd.Command) (envd.Process, error) {
	if cmd.PTY != nil {
		return nil, fmt.Errorf("a machine in memory has no terminals: %w", errors.ErrUnsupported)
	}
	if info, err := m.Stat(cmd.Dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, pathError("chdir", cmd.Dir, syscall.ENOTDIR)
	}
	run, program := m.resolve(cmd)
	stderr := newBuffer()
	run.Dir, run.Stderr = cmd.Dir, stderr
	core, err := m.sandbox.run(run, m.within(cmd.Env, program))
	if err != nil {
		return nil, err
	}
	p := &memoryProcess{process: core, stderr: stderr}
	if !cmd.Stdin {
		core.core.Stdin().Close()
	} else {
		p.stdin = core.core.Stdin()
	}
	go func() { // ends with the process
		<-core.core.Done()
		stderr.Close()
	}()
	return p, nil
}

// within gives a program its environment and streams that freeze.
func (m *memoryMachine) within(env []string, program Program) Program {
	wait := m.sandbox.frost.wait
	return func(ctx context.Context, p *Proc) int {
		p.Env = slices.Clone(env)
		p.Stdin = frozenReader{p.Stdin, wait}
		p.Stdout = frozenWriter{p.Stdout, wait}
		p.Stderr = frozenWriter{p.Stderr, wait}
		return program(ctx, p)
	}
}

// memoryProcess implements [envd.Process].
type memoryProcess struct {
	process *process
	stdin   io.WriteCloser
	stderr  *buffer
}

// PID implements [envd.Process].
func (p *memoryProcess) PID() int { return p.process.pid }

// Stdin implements [envd.Process].
func (p *memoryProcess) Stdin() io.WriteCloser { return p.stdin }

// Stdout implements [envd.Process].
func (p *memoryProcess) Stdout() io.ReadCloser { return p.process.core.Stdout() }

// Stderr implements [envd.Process].
func (p *memoryProcess) Stderr() io.ReadCloser { return bufferReader{p.stderr} }

// Resize implements [envd.Process].
func (p *memoryProcess) Resize(envd.Size) error { return syscall.ENOTTY }

// Signal implements [envd.Process].
func (p *memoryProcess) Signal(sig syscall.Signal) error {
	switch {
	case p.process.exited():
		return syscall.ESRCH
	case sig == syscall.SIGKILL:
		p.stderr.Close() // a write that waits must not hold up the end
		p.process.kill()
	case sig == syscall.SIGTERM:
		p.process.core.Terminate()
	default:
		return syscall.EINVAL
	}
	return nil
}

// Wait implements [envd.Process].
func (p *memoryProcess) Wait() envd.Status {
	<-p.process.core.Done()
	code, name := p.process.core.Status()
	signals := map[string]syscall.Signal{"SIGKILL": syscall.SIGKILL, "SIGTERM": syscall.SIGTERM}
	return envd.Status{Code: code, Signal: signals[name]}
}
