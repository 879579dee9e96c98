package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// A step that waits for a table of the host's ends by its own timeout, and says
// so: also where another step has a driver read the table.
func TestHostTableTimeout(t *testing.T) {
	reached, open := make(chan struct{}, 1), make(chan struct{})
	w := run(t, worker.Options{}, map[string]driverFunc{
		"table.extractor": func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			if s.ID == "times.out" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			reached <- struct{}{}
			<-open // it has no ear for its context
			return nil, errors.New("nothing there")
		},
		"use": func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil },
	})
	file := filepath.Join(t.TempDir(), "table.csv")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	table := rpc.TableRef{Driver: "table.extractor", Path: "table.csv", Parts: []rpc.FileSum{{Path: file}}}
	hello, err := json.Marshal(rpc.Handshake{MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Tables: map[string]rpc.TableRef{"orders": table}})
	if err != nil {
		t.Fatal(err)
	}
	if resp := w.HandleRPC(t.Context(), &rpc.Request{ID: "1", Method: rpc.MethodHandshake, Params: hello}); resp.Error != nil {
		t.Fatal(resp.Error)
	}
	step := func(id string, timeout int64) error {
		_, err := w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: id, Driver: "use", TimeoutMS: timeout, Inputs: map[string]rpc.InputRef{"df": {Table: "orders"}}})
		return err
	}
	timedOut := func(err error) {
		t.Helper()
		var answer *rpc.Error
		if !errors.As(err, &answer) || answer.Code != rpc.CodeTimeout || answer.Data.Type != "timeout" {
			t.Errorf("got %v", err)
		}
	}
	timedOut(step("times.out", 1))
	failed := make(chan error, 1)
	go func() { failed <- step("reads", 0) }()
	<-reached
	timedOut(step("waits", 1))
	close(open)
	if err := <-failed; err == nil {
		t.Error("a table that could not be read was")
	}
}
