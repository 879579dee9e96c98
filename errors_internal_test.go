package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestErrorType(t *testing.T) {
	typed := &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"a type", typed, "*fs.PathError"},
		{"wrapped", fmt.Errorf("remote: %w", typed), "*fs.PathError"},
		{"behind a sentinel", fmt.Errorf("remote: %w: %w", ErrCollect, fmt.Errorf("x: %w", typed)), "*fs.PathError"},
		{"joined", errors.Join(errors.New("a"), typed), "*fs.PathError"},
		{"redacted", &redactedError{"***", fmt.Errorf("x: %w", typed)}, "*fs.PathError"},
		{"cancelled", fmt.Errorf("remote: %w (%w)", context.Canceled, typed), "cancelled"},
		{"out of time", fmt.Errorf("remote: %w: %w", ErrTimeout, typed), "timeout"},
		{"text alone", fmt.Errorf("remote: %w", ErrClosed), "*fmt.wrapError"},
		{"of a step", fmt.Errorf("x: %w", &StepError{StepID: "a", Err: typed}), "*remote.StepError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := errorType(test.err); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
