package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
)

// NewLocalSandbox gives the conformance suite what LocalAdapter works with.
func NewLocalSandbox(dir string) Sandbox { return &localSandbox{dir: dir} }

// NewE2BSandbox gives the conformance suite what the proxy works with.
func NewE2BSandbox(ctx context.Context, cfg Config) (Sandbox, func() error, error) {
	client, err := cfg.e2bClient()
	if err != nil {
		return nil, nil, err
	}
	sb, err := openE2B(client, newOwner(), isNear(cfg.sandboxURL()))(ctx, cfg.sandboxConfig("s"), nil)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return sb, client.Close, nil
}

// NewProxyOf returns a proxy over a client of the test's.
func NewProxyOf(client *e2b.Client, cfg Config) *E2BTransparentProxy {
	a := &E2BTransparentProxy{client: client, owner: newOwner()}
	a.open = openE2B(client, a.owner, true)
	a.engine = engine{cfg: cfg, name: "e2b_transparent_proxy", ships: true, attachable: true, settle: a.settle}
	return a
}

// Held is a sandbox with its lease, without a run.
type Held struct {
	Sandbox
	lease *lease
}

// silent is told everything and says nothing.
type silent struct{}

func (silent) event(string, map[string]any)    {}
func (silent) logf(slog.Level, string, ...any) {}

// Hold makes a sandbox and holds its lease, as Execute does.
func Hold(ctx context.Context, a *E2BTransparentProxy, cfg SandboxConfig) (*Held, error) {
	sb, err := a.open(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	h := &Held{sb, newLease(sb, cfg.lease())}
	h.Hold(ctx)
	if err := sb.(limitedLife).checkLife(ctx, cfg); err != nil {
		h.Drop()
		return nil, errors.Join(err, killSurely(context.WithoutCancel(ctx), sb, cleanupGrace))
	}
	return h, nil
}

// Hold renews the lease, as Collect does.
func (h *Held) Hold(ctx context.Context) { h.lease.hold(ctx, silent{}) }

// Release leaves the sandbox to a later Collect, and reports whether it could be
// given the time for that.
func (h *Held) Release(ctx context.Context) bool {
	h.lease.release(ctx, silent{})
	return h.lease.failure == nil
}

// Hurry is what a host does that has stood still.
func (h *Held) Hurry() { h.lease.hurry() }

// Drop leaves the sandbox to itself.
func (h *Held) Drop() { h.lease.drop() }

// Worker is a worker that a proxy has started, for benchmarks.
type Worker struct{ l *link }

// StartWorker starts a worker as the proxy does.
func StartWorker(tb testing.TB, a *E2BTransparentProxy) Worker {
	return Worker{connectTo(tb, &a.engine)}
}

// Step executes a step that does nothing.
func (w Worker) Step(ctx context.Context, id string) error {
	return w.l.call(ctx, rpc.MethodExecuteStep, &rpc.ExecuteStep{
		StepID: id, Driver: "test.noop", Config: json.RawMessage(`{"path":"data/users.csv","encoding":"utf-8","delimiter":",","header":true}`),
	}, new(rpc.StepResult))
}

// Ping asks the worker for an answer.
func (w Worker) Ping(ctx context.Context) error {
	return w.l.call(ctx, rpc.MethodPing, struct{}{}, nil)
}

// Flood executes a step that logs so many events, and returns when the last is
// in the session's files.
func (w Worker) Flood(ctx context.Context, id string, events int) error {
	return w.l.call(ctx, rpc.MethodExecuteStep, &rpc.ExecuteStep{
		StepID: id, Driver: "test.flood", Config: json.RawMessage(fmt.Sprintf(`{"events":%d}`, events)),
	}, new(rpc.StepResult))
}

// Unprotect has a run's secrets cross the wire in the clear beside the sealed
// ones, and nothing redacted: what looks for them must find them.
func Unprotect(a ExecutionAdapter) {
	unprotect := func(k *runSecrets) {
		k.redact = nil
		k.tap = func(ctx context.Context, l *link, m *rpc.Secrets) error {
			m.Redact = nil
			return l.call(ctx, rpc.MethodPing, m, nil)
		}
	}
	switch a := a.(type) {
	case *LocalAdapter:
		a.unprotect = unprotect
	case *E2BTransparentProxy:
		a.unprotect = unprotect
	}
}

// SetLookup has hosts of runs looked up by a function of the test's.
func (a *E2BTransparentProxy) SetLookup(f func(ctx context.Context, name string) ([]netip.Addr, error)) {
	a.lookup = f
}

// SetStartPatience sets how long a build may wait for the host that has asked for
// it.
func (a *E2BTransparentProxy) SetStartPatience(d time.Duration) { a.startPatience = d }

// DerivedName is the name of the template that a run would have of its own.
func (a *E2BTransparentProxy) DerivedName(t testing.TB, m *Manifest) string {
	t.Helper()
	p, err := a.Prepare(t.Context(), m, &ExecutionContext{SessionID: "s", LogsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.wanted(t.Context(), p)
	if err == nil {
		err = a.compare(t.Context(), d, p.SandboxConfig)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.name()
}
