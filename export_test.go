package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

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
	sb, err := openE2B(client, isNear(cfg.sandboxURL()))(ctx, cfg.sandboxConfig("s"))
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return sb, client.Close, nil
}

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
