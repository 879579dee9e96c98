package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// quiet is a sandbox in memory that can be made to fall silent.
type quiet struct {
	mu      sync.Mutex
	stopped chan struct{}     // the worker writes nothing until it is closed; nil: it may
	status  *rpc.WorkerStatus // what the command says; nil: the real one
	lost    error             // nothing in the sandbox can be reached
	phase   remote.SandboxPhase
}

func (q *quiet) set(change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change()
}

// freeze stops the worker, as seen from inside.
func (q *quiet) freeze(state string) {
	q.set(func() {
		q.stopped = make(chan struct{})
		q.status = &rpc.WorkerStatus{Worker: &rpc.ProcessState{PID: 2, Alive: true, State: state, PeakRSSBytes: 5 << 20}, JournalEnd: -1}
	})
}

func (q *quiet) thaw() {
	q.set(func() {
		close(q.stopped)
		q.stopped, q.status = nil, nil
	})
}

// program is the worker.
func (q *quiet) program(drivers *worker.Registry) mock.Program {
	return func(ctx context.Context, p *mock.Proc) int {
		q.mu.Lock()
		status := q.status
		q.mu.Unlock()
		if len(p.Args) > 1 && p.Args[1] == "status" && status != nil {
			if json.NewEncoder(p.Stdout).Encode(status) != nil {
				return 1
			}
			return 0
		}
		w := worker.Program{Drivers: drivers, FS: &quietFS{p.FS, ctx, q}}
		return w.Run(ctx, p.Args, p.Stdin, p.Stdout, p.Stderr)
	}
}

func (q *quiet) fault(_ context.Context, c mock.Call) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch c.Op {
	case mock.OpStart, mock.OpStdin, mock.OpDownload, mock.OpSignal:
		return q.lost
	}
	return nil
}

// cut makes the sandbox unreachable, also by connections that are open.
func (q *quiet) cut(provider *mock.Provider, err error) {
	q.set(func() { q.lost = err })
	for _, p := range provider.Sandboxes()[0].Processes() {
		if !p.Exited && p.Command.Args[1] == "tail" {
			provider.Sandboxes()[0].DropStdout(p.PID)
		}
	}
}

// quietFS waits before writes while the worker is stopped.
type quietFS struct {
	worker.FS
	ctx context.Context
	q   *quiet
}

func (f *quietFS) Create(name string) (worker.File, error) {
	file, err := f.FS.Create(name)
	return &quietFile{file, f}, err
}

type quietFile struct {
	worker.File
	fs *quietFS
}

func (f *quietFile) Write(b []byte) (int, error) {
	f.fs.q.mu.Lock()
	stopped := f.fs.q.stopped
	f.fs.q.mu.Unlock()
	if stopped != nil {
		select {
		case <-stopped:
		case <-f.fs.ctx.Done():
		}
	}
	return f.File.Write(b)
}

// phased is a sandbox whose phase can be said to be another.
type phased struct {
	remote.Sandbox
	q *quiet
}

func (s phased) State(ctx context.Context) (remote.SandboxState, error) {
	state, err := s.Sandbox.State(ctx)
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.phase != "" {
		state.Phase = s.q.phase
	}
	return state, err
}

// A worker that falls silent is asked why, once for every silence; the run then
// waits for as long as the cause deserves. All times are those of a fake clock.
func TestSilence(t *testing.T) {
	const never = 0
	unreachable := errors.New("connection refused")
	for _, test := range []struct {
		name    string
		begin   func(q *quiet, p *mock.Provider)
		end     func(q *quiet, p *mock.Provider) // nil: it stays so
		after   time.Duration                    // until that
		verdict remote.Verdict                   // of the event; empty for none
		final   remote.Verdict                   // of the crash; empty when the run succeeds
		took    time.Duration                    // until it crashed
	}{
		{name: "short", verdict: "", after: 3 * time.Second,
			begin: func(q *quiet, _ *mock.Provider) { q.freeze("S") }, end: func(q *quiet, _ *mock.Provider) { q.thaw() }},
		{name: "stopped and continued", verdict: remote.VerdictFrozen, after: 50 * time.Second,
			begin: func(q *quiet, _ *mock.Provider) { q.freeze("T") }, end: func(q *quiet, _ *mock.Provider) { q.thaw() }},
		{name: "stopped", verdict: remote.VerdictFrozen, final: remote.VerdictFrozen, took: 65 * time.Second,
			begin: func(q *quiet, _ *mock.Provider) { q.freeze("T") }},
		{name: "no network for a while", verdict: remote.VerdictUnreachable, after: 4 * time.Minute,
			begin: func(q *quiet, p *mock.Provider) { q.cut(p, unreachable) },
			end:   func(q *quiet, _ *mock.Provider) { q.set(func() { q.lost = nil }) }},
		{name: "no network", verdict: remote.VerdictUnreachable, final: remote.VerdictUnreachable, took: 305 * time.Second,
			begin: func(q *quiet, p *mock.Provider) { q.cut(p, unreachable) }},
		{name: "paused", verdict: remote.VerdictSandboxPaused, after: 20 * time.Minute,
			begin: func(q *quiet, p *mock.Provider) {
				q.set(func() { q.phase, q.stopped = remote.SandboxPaused, make(chan struct{}) })
				q.cut(p, fmt.Errorf("%w: it is paused", remote.ErrSandboxGone))
			},
			end: func(q *quiet, _ *mock.Provider) {
				q.set(func() { q.phase, q.lost = "", nil })
				q.thaw()
			}},
		{name: "killed", final: remote.VerdictSandboxGone, took: never,
			begin: func(_ *quiet, p *mock.Provider) { p.Sandboxes()[0].Kill(context.Background()) }},
		{name: "over", final: remote.VerdictLeaseOver, took: never,
			begin: func(_ *quiet, p *mock.Provider) {
				p.Sandboxes()[0].Extend(context.Background(), time.Second)
				time.Sleep(time.Second)
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var q quiet
				release := make(chan struct{})
				drivers := testDrivers()
				drivers.Register("test.hold", worker.Transform, func() worker.Driver {
					return driverFunc(func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
						s.LogEvent("waiting", nil)
						select {
						case <-release:
							return nil, nil
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					})
				})
				provider := mock.NewProvider(&mock.Options{
					Drivers: drivers, Fault: q.fault, Now: time.Now,
					Programs: map[string]mock.Program{"osiris-worker": q.program(drivers)},
				})
				a, err := remote.NewE2BTransparentProxy(remote.Config{
					Drivers: drivers, Timeout: time.Hour,
					OpenSandbox: func(ctx context.Context, cfg remote.SandboxConfig) (remote.Sandbox, error) {
						sb, err := provider.OpenSandbox(ctx, cfg)
						return phased{sb, &q}, err
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				ec := newContext(t, "s")
				var begun time.Time
				var striking sync.WaitGroup
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if e.Name == "waiting" {
						striking.Go(func() {
							time.Sleep(3 * time.Second)
							begun = time.Now()
							test.begin(&q, provider)
							if test.end != nil {
								time.Sleep(test.after)
								test.end(&q, provider)
								time.Sleep(10 * time.Second)
								close(release)
							}
						})
					}
					return nil
				}
				p, err := a.Prepare(t.Context(), one("test.hold"), ec)
				if err != nil {
					t.Fatal(err)
				}
				result, err := a.Execute(t.Context(), p, ec)
				striking.Wait()
				took := time.Since(begun)
				agree(t, ec, result, err)
				var paused time.Duration
				if test.verdict == remote.VerdictSandboxPaused {
					paused = test.after
				}
				gone := test.final == remote.VerdictSandboxGone || test.final == remote.VerdictLeaseOver
				if r := result.Receipt; r.SandboxPaused < paused-5*time.Second || r.SandboxPaused > paused+5*time.Second || r.Removed != gone || r.SandboxRan+r.SandboxPaused > r.Wall || r.SandboxRan < r.Wall-paused-10*time.Second {
					t.Errorf("by its receipt it was paused for %s, want about %s: %+v", r.SandboxPaused, paused, r)
				}
				silent := events(t, ec, "worker_silent")
				if test.verdict == "" != (len(silent) == 0) || len(silent) > 1 {
					t.Errorf("events %v", silent)
				}
				for _, e := range silent {
					if e["verdict"] != string(test.verdict) || e["silent_ms"].(float64) < 5000 || e["silent_ms"].(float64) > 6000 || e["detail"] == "" {
						t.Errorf("event %v, want the verdict %s after some 5 s", e, test.verdict)
					}
				}
				var crash *remote.WorkerCrashError
				switch {
				case test.final == "" && err != nil:
					t.Errorf("error %v", err)
				case test.final != "" && !errors.As(err, &crash):
					t.Errorf("error %v, want the verdict %s", err, test.final)
				case test.final != "":
					if crash.Verdict != test.final || crash.Detail == "" || len(crash.OpenSteps) != 1 {
						t.Errorf("error %+v, want the verdict %s", crash, test.final)
					}
					if late := took - test.took; late < -2*time.Second || late > 30*time.Second {
						t.Errorf("it took %s, want some %s", took, test.took)
					}
				}
				q.set(func() { q.lost = nil })
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
