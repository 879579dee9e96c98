package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

const traceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// A driver sees its step's span, and none where the host does not trace.
func TestTraceParent(t *testing.T) {
	seen := make(chan string, 1)
	h := start(t, map[string]driverFunc{"see": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		seen <- s.TraceParent
		return nil, nil
	}})
	h.handshake()
	for _, parent := range []string{traceParent, ""} {
		step := rpc.ExecuteStep{StepID: "step" + parent, Driver: "see", TraceParent: parent}
		if err := h.call(rpc.MethodExecuteStep, step, nil); err != nil {
			t.Fatal(err)
		}
		if got := <-seen; got != parent {
			t.Errorf("the driver sees %q, want %q", got, parent)
		}
	}
	// Another host may trace otherwise: it is the same step all the same.
	again := rpc.ExecuteStep{StepID: "step", Driver: "see", TraceParent: traceParent}
	if err := h.call(rpc.MethodExecuteStep, again, nil); err != nil {
		t.Errorf("asked again: %v", err)
	}
	for _, parent := range []string{traceParent[1:], traceParent + "\r\nX-Header: y", "00-" + traceParent} {
		err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "bad" + parent[:3], Driver: "see", TraceParent: parent}, nil)
		if err == nil || err.Code != rpc.CodeInvalidParams {
			t.Errorf("%q: got %v, want invalid params", parent, err)
		}
	}
	if len(seen) > 0 {
		t.Error("a step ran that should not")
	}
}

// What a step has used is told, whether it succeeds, fails or panics.
func TestUsage(t *testing.T) {
	h := start(t, map[string]driverFunc{
		"well": func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil },
		"fail": func(context.Context, *worker.Step) (*worker.Result, error) { return nil, errors.New("no") },
		"panic": func(context.Context, *worker.Step) (*worker.Result, error) {
			panic("no")
		},
	})
	h.handshake()
	for _, driver := range []string{"well", "fail", "panic"} {
		begin := time.Now()
		var r rpc.StepResult
		usage := (*rpc.StepUsage)(nil)
		id := h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: driver, Driver: driver})
		resp := h.answer()
		if resp.ID != id {
			t.Fatalf("answer to %s, want %s", resp.ID, id)
		}
		if resp.Error != nil {
			usage = resp.Error.Data.Usage
		} else if err := json.Unmarshal(resp.Result, &r); err != nil {
			t.Fatal(err)
		} else {
			usage = r.Usage
		}
		whole := time.Since(begin)
		switch {
		case usage == nil:
			t.Errorf("%s: nothing is told", driver)
		case usage.StartedAt.IsZero() || usage.DriverMS < 0 || usage.DriverMS > whole.Seconds()*1000:
			t.Errorf("%s: %+v, within %s", driver, usage, whole)
		case runtime.GOOS == "linux" && usage.PeakRSSBytes <= 0:
			t.Errorf("%s: the memory is %d bytes", driver, usage.PeakRSSBytes)
		}
	}
	// A step that fails before its driver has used nothing.
	err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "none", Driver: "unknown"}, nil)
	if err == nil || err.Data == nil {
		t.Fatalf("got %+v", err)
	}
	if diff := cmp.Diff(&rpc.StepUsage{}, err.Data.Usage); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
