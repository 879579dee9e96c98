//go:build unix

package python

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// A process that can no longer answer does not keep its step waiting.
func TestNoAnswer(t *testing.T) {
	for _, how := range []string{"execs", "closes_answers"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := newTestPool(t)
			step, _ := hostileStep(t, how)
			_, err := p.run(t.Context(), driver("hostile", "Hostile"), step)
			if err == nil || !strings.Contains(err.Error(), "its pipe to the worker was closed") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Nothing keeps a step from being stopped.
func TestStopHostile(t *testing.T) {
	for _, how := range []string{"answers_by_itself", "leaves_group"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := newTestPool(t)
			step, r := hostileStep(t, how)
			pid := make(chan float64, 1)
			r.seen = map[string]chan float64{"pid": pid}
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("nobody wants it")
			var child int
			go func() { child = int(<-pid); cancel(cause) }()
			if _, err := p.run(ctx, driver("hostile", "Hostile"), step); !errors.Is(err, cause) {
				t.Errorf("error %v, want %v", err, cause)
			}
			processGone(t, child)
		})
	}
}
