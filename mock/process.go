package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/inproc"
)

var (
	errDropped = fmt.Errorf("connection lost: %w", io.ErrUnexpectedEOF)
	errEnded   = errors.New("process has ended")
)

// process implements remote.Process.
type process struct {
	sandbox *Sandbox
	pid     int
	cmd     remote.Command
	core    *inproc.Process
	files   *view

	alive context.Context // until the process ends
	over  context.CancelFunc

	mu   sync.Mutex
	lost error // why the status cannot be known
}

func newProcess(s *Sandbox, pid int, cmd remote.Command, program Program) *process {
	p := &process{sandbox: s, pid: pid, cmd: cmd, files: &view{disk: s.disk, wait: s.frost.wait}}
	p.alive, p.over = context.WithCancel(context.Background())
	p.core = inproc.Start(func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
		defer p.over()
		defer p.files.revoke(errEnded)
		return program(ctx, &Proc{
			Args:   cmd.Args,
			Dir:    cmd.Dir,
			Stdin:  stdin,
			Stdout: stdout,
			Stderr: stderr,
			FS:     p.files,
		})
	}, cmd.Stderr)
	return p
}

// kill ends the process by SIGKILL.
func (p *process) kill() {
	p.files.revoke(inproc.ErrKilled)
	p.core.Kill()
	p.over()
}

// lose ends the process with its sandbox. What it wrote and nobody read, and
// how it ended, are lost.
func (p *process) lose(gone error) {
	p.mu.Lock()
	if !p.exited() {
		p.lost = gone
	}
	p.mu.Unlock()
	p.files.revoke(gone)
	p.core.CutStdout(gone)
	p.kill()
}

func (p *process) exited() bool {
	select {
	case <-p.core.Done():
		return true
	default:
		return false
	}
}

func (p *process) status() remote.ExitStatus {
	code, signal := p.core.Status()
	return remote.ExitStatus{Code: code, Signal: signal}
}

func (p *process) PID() int { return p.pid }

func (p *process) Stdout() io.ReadCloser { return stdout{p} }

func (p *process) Stdin() io.WriteCloser { return stdin{p} }

func (p *process) begin(ctx context.Context, call Call) (*record, error) {
	call.PID = p.pid
	return p.sandbox.begin(ctx, call)
}

// fail ends a call and names it in its error.
func (p *process) fail(r *record, err error) error {
	if err = r.end(err); err == nil {
		return nil
	}
	return fmt.Errorf("mock: sandbox %s: process %d: %s: %w", p.sandbox.info.ID, p.pid, r.call.Op, err)
}

func (p *process) Wait(ctx context.Context) (remote.ExitStatus, error) {
	call := Call{Sandbox: p.sandbox.info.ID, Op: OpWait, PID: p.pid}
	if p.exited() {
		ctx = context.WithoutCancel(ctx) // what is known is told
	}
	rec, err := p.sandbox.log.begin(ctx, call, p.sandbox.opts.Fault, func() error { return nil })
	if err == nil {
		select {
		case <-p.core.Done():
			p.mu.Lock()
			err = p.lost
			p.mu.Unlock()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err = p.fail(rec, err); err != nil {
		return remote.ExitStatus{}, err
	}
	return p.status(), nil
}

func (p *process) Signal(ctx context.Context, sig remote.Signal) error {
	rec, err := p.begin(ctx, Call{Op: OpSignal, Args: []string{string(sig)}})
	if err == nil {
		switch sig {
		case remote.SignalTerm:
			p.core.Terminate()
		case remote.SignalKill:
			p.kill()
		default:
			err = fmt.Errorf("%q is neither %s nor %s", sig, remote.SignalTerm, remote.SignalKill)
		}
	}
	return p.fail(rec, err)
}

type stdout struct{ p *process }

func (r stdout) Read(b []byte) (int, error) { return r.p.core.Stdout().Read(b) }

func (r stdout) Close() error {
	r.p.core.CutStdout(fs.ErrClosed)
	return nil
}

type stdin struct{ p *process }

func (w stdin) Write(b []byte) (n int, err error) {
	rec, err := w.p.begin(w.p.alive, Call{Op: OpStdin})
	if errors.Is(err, context.Canceled) && w.p.alive.Err() != nil {
		err = syscall.EPIPE
	}
	if err == nil {
		n, err = w.p.core.Stdin().Write(b)
		rec.update(func(c *Call) { c.Bytes = int64(n) })
	}
	if err != nil {
		if gone := w.p.sandbox.check(); gone != nil {
			err = gone
		}
	}
	return n, w.p.fail(rec, err)
}

func (w stdin) Close() error { return w.p.core.Stdin().Close() }
