package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// Waits of a restart.
const (
	restartWait    = time.Second      // before the first; then twice as long
	restartWaitMax = 30 * time.Second // at most
)

// restarts is how often the worker of a run may be started again.
func (e *engine) restarts(p *PreparedRun) int {
	if e.cfg.InProcess {
		return 0 // its death is this process's
	}
	return p.RunParams.Restarts
}

// restarter is a run's worker: the first one, and where that dies and the run
// allows it the one that follows. Steps run at once; whoever finds the worker
// dead first sees to another, and the others wait for that.
type restarter struct {
	e       *engine
	r       *run
	session *session
	limit   int // restarts in all

	now atomic.Pointer[link]

	mu     mutex // serialises restarts
	tries  int
	failed error // why there will be no other worker

	stepsMu  sync.Mutex
	outcomes map[string]bool // steps that were answered, and whether they have succeeded
}

func (e *engine) newRestarter(r *run, l *link) *restarter {
	w := &restarter{
		e: e, r: r, session: l.session, limit: e.restarts(r.prepared),
		mu: make(mutex, 1), outcomes: make(map[string]bool),
	}
	w.session.mu.Lock()
	defer w.session.mu.Unlock()
	if c := w.session.check; c != nil {
		w.tries = c.Restarts
	}
	w.now.Store(l)
	return w
}

func (w *restarter) link() *link { return w.now.Load() }

// close ends the present link. The first one is closed twice then, which is
// harmless.
func (w *restarter) close() { w.link().close() }

// step executes a step, on another worker if the first one dies in it.
func (w *restarter) step(ctx context.Context, req *rpc.ExecuteStep) (*rpc.StepResult, error) {
	for {
		l := w.link()
		result := new(rpc.StepResult)
		err := l.call(ctx, rpc.MethodExecuteStep, req, result)
		if err == nil || errors.As(err, new(*rpc.Error)) {
			w.stepsMu.Lock()
			w.outcomes[req.StepID] = err == nil
			w.stepsMu.Unlock()
			return result, err
		}
		if err = w.restart(ctx, l, err); err != nil {
			return nil, err
		}
	}
}

// finish has the worker end, or the one that follows it.
func (w *restarter) finish(ctx context.Context) error {
	for {
		l := w.link()
		err := w.e.finish(ctx, w.r, l)
		if err == nil {
			return nil
		}
		if err = w.restart(ctx, l, err); err != nil {
			return err
		}
	}
}

// restart starts the worker again that a link has lost, or returns why not:
// failure itself where that was not the worker's death.
func (w *restarter) restart(ctx context.Context, dead *link, failure error) error {
	var crash *WorkerCrashError
	if w.limit == 0 || !errors.As(failure, &crash) || errors.Is(failure, ErrSandboxGone) {
		return failure
	}
	if err := w.mu.lock(ctx); err != nil {
		return failure
	}
	defer w.mu.unlock()
	if w.failed != nil {
		return w.failed
	}
	if w.link() != dead {
		return nil // somebody has
	}
	w.r.meter.doubt()
	back := w.r.meter.within(phaseWorkerStart)
	err := w.another(ctx, dead, crash)
	back()
	if err != nil {
		w.failed = notRestarted(crash, err)
	}
	return w.failed
}

// notRestarted is a worker's death with why it was the end.
func notRestarted(crash *WorkerCrashError, why error) error {
	c := *crash
	if c.Err != nil {
		why = fmt.Errorf("%w; %w", c.Err, why)
	}
	c.Err = why
	return &c
}

// another starts another worker, in as many tries as are left.
func (w *restarter) another(ctx context.Context, dead *link, crash *WorkerCrashError) (err error) {
	var last error
	first := dead
	defer func() {
		if err != nil && dead != first { // which the restarter has, and closes
			dead.close()
		}
	}()
	for {
		if w.tries >= w.limit {
			err := fmt.Errorf("given up after %d restarts (Config.Restarts)", w.tries)
			if last != nil {
				err = fmt.Errorf("%w; the last: %w", err, last)
			}
			return err
		}
		if err := dead.putDown(ctx); err != nil {
			return fmt.Errorf("not restarted: %w", err)
		}
		select {
		case <-time.After(min(restartWait<<min(w.tries, 16), restartWaitMax)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		w.tries++
		repeated, err := w.survey(ctx, dead)
		if err != nil {
			return fmt.Errorf("not restarted: %w", err)
		}
		l, err := w.start(ctx, dead, crash.Error(), repeated)
		if err == nil {
			w.now.Store(l)
			return nil
		}
		switch {
		case l == nil: // and whether one runs all the same is not known
			return fmt.Errorf("not restarted: %w", err)
		case ctx.Err() != nil || errors.Is(err, ErrSandboxGone) || errors.Is(err, ErrOwnershipLost):
			dead = l
			return fmt.Errorf("not restarted: %w", err)
		}
		w.session.logf(slog.LevelWarn, "restart %d of the worker: %v", w.tries, err)
		dead, last = l, err
	}
}

// putDown makes sure that a worker is dead with all that it has started, and
// ends its link. A supervisor's end alone does not say so: it may have been
// killed, and the worker be alive for a moment.
func (l *link) putDown(ctx context.Context) error {
	if !l.hasEnded(0) {
		// Not by what ends a worker in order: that would close the journal.
		ctx, cancel := context.WithTimeout(ctx, killTime)
		err := l.process().Signal(ctx, SignalKill)
		cancel()
		if !l.hasEnded(killTime) {
			return errors.Join(errors.New("the worker may still be running"), err)
		}
	}
	switch remains, err := l.remains(ctx); {
	case err != nil:
		return fmt.Errorf("what the worker has started may still be running: %w", err)
	case len(remains.Left) > 0:
		return fmt.Errorf("process %d (%s), which the worker has started, is still running", remains.Left[0].PID, remains.Left[0].Name)
	}
	l.close() // also its tails: none may see how the journal's torn end is cut off
	return nil
}

// maxRecoverBytes bounds what a sandbox says of what a worker has left of so many
// steps: each is named three times at most, with a reason.
func maxRecoverBytes(steps int) int64 { return 64<<10 + 32<<10*int64(steps) }

// survey looks at what a dead worker has left, and returns the steps that have to
// run again. The error says what forbids to go on.
func (w *restarter) survey(ctx context.Context, dead *link) (repeated []string, err error) {
	b, err := printed(ctx, w.r.place, "recover", maxRecoverBytes(len(w.r.prepared.Plan.Steps)))
	if err != nil {
		return nil, err
	}
	var left rpc.RecoverResult
	if err := json.Unmarshal(b, &left); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if cursor := dead.cursor.Load(); left.Journal < cursor {
		return nil, fmt.Errorf("the journal ends at %d, and was read up to %d", left.Journal, cursor)
	}
	finished, begun, lost := make(map[string]bool), make(map[string]bool), make(map[string]string)
	for _, id := range left.Finished {
		finished[id] = true
	}
	for _, id := range left.Begun {
		begun[id] = true
	}
	for _, l := range left.Lost {
		begun[l.StepID], lost[l.StepID] = true, ": "+clip(l.Reason, maxReason/16)
	}
	w.stepsMu.Lock()
	outcomes := maps.Clone(w.outcomes)
	w.stepsMu.Unlock()
	for _, step := range w.r.prepared.Plan.Steps {
		if _, answered := outcomes[step.ID]; answered || finished[step.ID] || dead.answers(step.ID) {
			continue
		}
		if begun[step.ID] && !step.Repeatable {
			return nil, fmt.Errorf("step %q was running, and is not marked repeatable%s", step.ID, lost[step.ID])
		}
		if begun[step.ID] {
			repeated = append(repeated, step.ID)
		}
		for _, id := range step.upstream() {
			if outcomes[id] && !finished[id] {
				return nil, fmt.Errorf("what step %q has put out, which step %q needs, did not survive%s", id, step.ID, lost[id])
			}
		}
	}
	return repeated, nil
}

// answers reports whether the answer of a step is here that was not asked for
// yet.
func (l *link) answers(stepID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inherited.byStep[stepID] != nil
}

// start starts a worker that goes on where a dead one was. The link is nil when
// nothing was started.
func (w *restarter) start(ctx context.Context, dead *link, reason string, repeated []string) (*link, error) {
	s, p, begun := w.session, w.r.prepared, time.Now()
	if err := w.r.secrets.complete(ctx, w.e.cfg, p); err != nil {
		return nil, err
	}
	err := s.save(func(c *checkpoint) { c.Restarts, c.Restarting, c.Epoch = w.tries, true, dead.epoch+1 })
	if err != nil {
		return nil, err
	}
	l, err := dial(ctx, w.r.place, s, newTracer(s), serving{maxJournal: w.e.cfg.MaxJournal, after: dead})
	if err != nil {
		return nil, err
	}
	hello, err := w.e.handshake(ctx, l, p, w.r.place, w.r.secrets)
	if err != nil {
		return l, err
	}
	l.watchOver(w.e.cfg.heartbeat())
	if err := l.verify(ctx); err != nil {
		return l, err
	}
	if _, err := w.e.settleDependencies(ctx, l, p); err != nil {
		return l, err
	}
	l.handling.Lock() // the event is behind what was heard, and before what is heard next
	defer l.handling.Unlock()
	s.event("worker_restarted", map[string]any{
		"attempt": w.tries, "reason": reason, "steps_repeated": append([]string{}, repeated...),
		"pid": hello.PID, "duration_ms": milliseconds(time.Since(begun)),
	})
	return l, s.save(func(c *checkpoint) {
		c.Restarting, c.last().PID = false, l.process().PID()
		s.mark()
		c.last().Cursor = l.cursor.Load()
	})
}

// follows makes a link go on where that of a dead worker was. Its requests have
// the numbers of another epoch: an answer to one of before that is still in the
// journal is not taken for another's.
func (l *link) follows(dead *link) {
	l.epoch, l.owner = dead.epoch+1, dead.owner
	l.first = rpc.FirstRequest(l.epoch)
	l.last, l.answered = l.first-1, l.first-1
	l.cursor.Store(dead.cursor.Load())
	dead.mu.Lock()
	defer dead.mu.Unlock()
	l.inherited = stepAnswers{maps.Clone(dead.inherited.byStep), slices.Clone(dead.inherited.order)}
	l.unsent = slices.Clone(dead.unsent)
}
