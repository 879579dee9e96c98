package remote

import (
	"context"
	"sync"

	"github.com/osiris-pipelines/remote/e2b"
)

// witness records what the client of E2B does for a run beyond plain calls:
// waiting for its turn, and trying again.
type witness struct {
	mu      sync.Mutex
	session *session // nil once it is over
}

// watch returns a context whose calls are watched.
func (w *witness) watch(ctx context.Context) context.Context {
	return e2b.WithClientTrace(ctx, &e2b.ClientTrace{
		Retry: func(r e2b.Retry) {
			reason := ""
			if r.Reason != nil {
				reason = r.Reason.Error()
			}
			w.event("retry", map[string]any{
				"op": r.Op, "attempt": r.Attempt, "reason": reason, "wait_ms": milliseconds(r.Wait),
			})
		},
		Waiting: func(m e2b.Waiting) {
			if m.Over {
				w.event("sandbox_admitted", map[string]any{"reason": string(m.Reason), "waited_ms": milliseconds(m.Waited)})
				return
			}
			w.event("sandbox_waiting", map[string]any{
				"reason": string(m.Reason), "position": m.Position, "in_use": m.InUse, "waited_ms": milliseconds(m.Waited),
			})
		},
	})
}

// stop ends the record: a process is followed for longer than its run.
func (w *witness) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = nil
}

func (w *witness) event(name string, fields map[string]any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session != nil {
		w.session.event(name, fields)
	}
}
