package worker

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// What an exception of another language says is redacted, and told as it is; a
// step that was stopped is stopped, whatever the driver makes of it.
func TestDriverError(t *testing.T) {
	c := &workerSecrets{redact: secrets.NewRedactor("kn4ry-value")}
	err := &DriverError{Type: "orders.kn4ry-value", Message: "no kn4ry-value", Traceback: `File "a.py", kn4ry-value`}
	tests := []struct {
		err  error
		want *rpc.Error
	}{
		{fmt.Errorf("driver: %w", err), &rpc.Error{Code: rpc.CodeStepFailed, Message: "driver: no ***", Data: &rpc.ErrorData{StepID: "a", Type: "orders.***", Traceback: `File "a.py", ***`}}},
		{&stoppedError{cause: errCancelled, err: err}, &rpc.Error{Code: rpc.CodeCancelled, Message: errCancelled.Error(), Data: &rpc.ErrorData{StepID: "a", Type: "cancelled"}}},
	}
	for _, test := range tests {
		if d := cmp.Diff(test.want, c.rpcError("a", test.err)); d != "" {
			t.Error(d)
		}
	}
}
