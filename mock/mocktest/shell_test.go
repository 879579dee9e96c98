//go:build unix

package mocktest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock/mocktest"
)

// TestShell runs the suite on real processes, so that it asks for no more than
// a machine can give.
func TestShell(t *testing.T) {
	mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
		dir := t.TempDir()
		return mocktest.Env{
			Sandbox: &shellSandbox{dir: dir},
			Dir:     dir,
			Command: mocktest.Shell,
			Running: func(pid int) bool { return syscall.Kill(pid, 0) == nil },
		}
	})
}

// shellSandbox is a directory of this machine and its processes.
type shellSandbox struct {
	dir string

	mu    sync.Mutex
	gone  bool
	procs []*shellProcess
	seq   int
}

func (s *shellSandbox) Info() remote.SandboxInfo { return remote.SandboxInfo{ID: s.dir} }

func (s *shellSandbox) check(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return remote.ErrSandboxGone
	}
	return ctx.Err()
}

func (s *shellSandbox) Upload(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.seq++
	part := fmt.Sprintf("%s/.part-%d", s.dir, s.seq)
	s.mu.Unlock()
	if err := s.upload(part, name, r, size); err != nil {
		os.Remove(part)
		if gone := s.check(ctx); gone != nil {
			return gone
		}
		return err
	}
	return nil
}

func (s *shellSandbox) upload(part, name string, r io.Reader, size int64) error {
	var f *os.File
	if err := s.unlessGone(func() (err error) {
		f, err = os.OpenFile(part, os.O_CREATE|os.O_WRONLY, 0o755)
		return err
	}); err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(f, io.LimitReader(r, size+1)); err != nil {
		return err
	} else if n != size {
		return errors.New("wrong size")
	}
	return s.unlessGone(func() error {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.Rename(part, name)
	})
}

// unlessGone calls f, which puts something into the directory, unless Kill
// removes that: in mid-call it would find the directory not empty.
func (s *shellSandbox) unlessGone(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return remote.ErrSandboxGone
	}
	return f()
}

func (s *shellSandbox) Download(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		if gone := s.check(ctx); gone != nil {
			return nil, gone
		}
		return nil, err
	}
	return f, nil
}

func (s *shellSandbox) Size(ctx context.Context, name string) (int64, error) {
	if err := s.check(ctx); err != nil {
		return 0, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (s *shellSandbox) Extend(ctx context.Context, _ time.Duration) error { return s.check(ctx) }

func (s *shellSandbox) State(ctx context.Context) (remote.SandboxState, error) {
	err := s.check(ctx)
	if errors.Is(err, remote.ErrSandboxGone) {
		return remote.SandboxState{Phase: remote.SandboxGone}, nil
	}
	return remote.SandboxState{Phase: remote.SandboxRunning}, err
}

func (s *shellSandbox) Kill(ctx context.Context) error {
	if err := s.check(ctx); err != nil && !errors.Is(err, remote.ErrSandboxGone) {
		return err
	}
	s.mu.Lock()
	s.gone = true
	procs := s.procs
	s.mu.Unlock()
	for _, p := range procs {
		p.Signal(ctx, remote.SignalKill)
		<-p.done
		p.stdout.file.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return os.RemoveAll(s.dir)
}

func (s *shellSandbox) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil, remote.ErrSandboxGone
	}
	p := &shellProcess{cmd: exec.Command(cmd.Path, cmd.Args...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stderr = cmd.Dir, cmd.Stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // not StdoutPipe, which Wait closes
	if err != nil {
		return nil, err
	}
	p.stdout, p.cmd.Stdout = &shellOutput{file: r}, w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		p.stdin.Close()
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait()
	}()
	s.procs = append(s.procs, p)
	return p, nil
}

type shellProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *shellOutput
	done   chan struct{}
}

// shellOutput is the reading end of a pipe. It is read on after Close, for
// nobody.
type shellOutput struct {
	file   *os.File
	closed atomic.Bool
	mu     sync.Mutex // held by Read
}

func (o *shellOutput) Read(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed.Load() {
		return 0, os.ErrClosed
	}
	n, err := o.file.Read(b)
	if o.closed.Load() {
		return 0, os.ErrClosed
	}
	return n, err
}

func (o *shellOutput) Close() error {
	if !o.closed.Swap(true) {
		o.file.SetReadDeadline(time.Now()) // wakes a Read
		go func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.file.SetReadDeadline(time.Time{})
			io.Copy(io.Discard, o.file)
		}()
	}
	return nil
}

func (p *shellProcess) PID() int              { return p.cmd.Process.Pid }
func (p *shellProcess) Stdin() io.WriteCloser { return p.stdin }
func (p *shellProcess) Stdout() io.ReadCloser { return p.stdout }

func (p *shellProcess) Wait(ctx context.Context) (remote.ExitStatus, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return remote.ExitStatus{}, ctx.Err()
	}
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	status := remote.ExitStatus{Code: p.cmd.ProcessState.ExitCode()}
	switch {
	case ws.Signaled() && ws.Signal() == syscall.SIGKILL:
		status.Signal = "SIGKILL"
	case ws.Signaled() && ws.Signal() == syscall.SIGTERM:
		status.Signal = "SIGTERM"
	}
	return status, nil
}

func (p *shellProcess) Signal(ctx context.Context, sig remote.Signal) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	number := map[remote.Signal]syscall.Signal{remote.SignalTerm: syscall.SIGTERM, remote.SignalKill: syscall.SIGKILL}[sig]
	if err := p.cmd.Process.Signal(number); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}
