package e2b

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// defaultCreateWait is how long a create waits for its turn.
	defaultCreateWait = 5 * time.Minute

	// Between two creates that E2B refuses for now, where it does not say when
	// to come again.
	refusedFirst = time.Second
	refusedMost  = 15 * time.Second

	// endSlack is how much later than asked for a sandbox may end: the server
	// counts from when the request arrived, and in whole seconds.
	endSlack = 2 * time.Second
)

// admission decides when a create is sent: by what this client may, and by what
// E2B lets it. Of those that E2B has refused for now one tries at a time, in
// the order in which they came.
type admission struct {
	slots *semaphore.Weighted // of Config.MaxSandboxes; nil for no limit
	every time.Duration       // between two creates; zero for no limit
	wait  time.Duration       // Config.CreateWait
	turn  *semaphore.Weighted // of those that E2B has refused for now

	ctx   context.Context // ends with the client
	close context.CancelCauseFunc

	mu       sync.Mutex
	next     time.Time        // when the next create may be sent, by Config.CreateRate
	running  map[string]*life // sandboxes that were made here
	creating int              // creates that were sent and may still make a sandbox
	waiting  int              // creates that wait
	refused  int              // of them, those that E2B has refused for now
	freed    chan struct{}    // closed when a sandbox ends, and replaced
}

func newAdmission(cfg Config) *admission {
	a := &admission{
		wait:    cfg.CreateWait,
		turn:    semaphore.NewWeighted(1),
		running: make(map[string]*life),
		freed:   make(chan struct{}),
	}
	if cfg.MaxSandboxes > 0 {
		a.slots = semaphore.NewWeighted(int64(cfg.MaxSandboxes))
	}
	if cfg.CreateRate > 0 {
		a.every = time.Duration(float64(time.Second) / cfg.CreateRate)
	}
	a.ctx, a.close = context.WithCancelCause(context.Background())
	return a
}

// shut ends the wait of all that wait, and forgets the sandboxes.
func (a *admission) shut() {
	a.close(fmt.Errorf("the client is closed: %w", net.ErrClosed))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.running {
		l.timer.Stop()
	}
}

// life is what is known of a sandbox's.
type life struct {
	end   time.Time   // as this client set it
	timer *time.Timer // fires when it is over
}

// create has send make a sandbox when it is its turn, and again as long as E2B
// refuses it for a reason that passes.
func (a *admission) create(ctx context.Context, send func(context.Context, *ticket) (*Sandbox, error)) (*Sandbox, error) {
	queue, cancel := context.WithTimeoutCause(ctx, a.wait, fmt.Errorf("%w: it was not this sandbox's turn within %s (Config.CreateWait)", ErrTimeout, a.wait))
	defer cancel()
	queue, stop := context.WithCancelCause(queue)
	defer stop(nil)
	defer context.AfterFunc(a.ctx, func() { stop(context.Cause(a.ctx)) })()

	t := &ticket{a: a, begun: time.Now(), uses: 1}
	if err := a.enter(queue, t); err != nil {
		return nil, err
	}
	defer t.leave()
	var refusal error
	for try := 0; ; try++ {
		if (refusal != nil || a.anyRefused()) && !t.turn {
			if err := a.takeTurn(queue, t, waitReason(refusal)); err != nil {
				return nil, gaveUp(err, refusal)
			}
			defer a.passTurn()
		}
		if err := a.backOff(queue, t, try-1, refusal); err != nil {
			return nil, gaveUp(err, refusal)
		}
		if err := a.pace(queue, t); err != nil {
			return nil, gaveUp(err, refusal)
		}
		s, err := send(ctx, t)
		if err == nil || !a.passing(err) {
			return s, err
		}
		refusal, t.refused = err, time.Now()
	}
}

// gaveUp is the error of a create whose wait has ended: what E2B last said,
// where it said something.
func gaveUp(err, refusal error) error {
	if refusal != nil {
		return fmt.Errorf("%w; and then: %w", refusal, err)
	}
	return err
}

// passing reports whether another try may do better: where E2B says that there
// are too many requests, and where the account has as many sandboxes as it may,
// as long as some are this client's, which will end.
func (a *admission) passing(err error) bool {
	if errors.Is(err, ErrRateLimit) {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Is(err, ErrQuota) && len(a.running)+a.creating > 0
}

func waitReason(refusal error) WaitReason {
	if errors.Is(refusal, ErrQuota) {
		return WaitQuota
	}
	return WaitLimit
}

// waitFor tells of a wait, which is f's. It fails only when ctx ends.
func (a *admission) waitFor(ctx context.Context, t *ticket, why WaitReason, f func(context.Context) error) error {
	a.mu.Lock()
	a.waiting++
	w := Waiting{Reason: why, Position: a.waiting, InUse: len(a.running) + a.creating, Waited: time.Since(t.begun)}
	a.mu.Unlock()
	traceWaiting(ctx, w)
	err := f(ctx)
	a.mu.Lock()
	a.waiting--
	w.Position, w.InUse, w.Waited, w.Over = 0, len(a.running)+a.creating, time.Since(t.begun), true
	a.mu.Unlock()
	if err != nil { // since ctx has ended
		return context.Cause(ctx)
	}
	traceWaiting(ctx, w)
	return nil
}

// enter takes a slot.
func (a *admission) enter(ctx context.Context, t *ticket) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if a.slots == nil || a.slots.TryAcquire(1) {
		return nil
	}
	return a.waitFor(ctx, t, WaitSlot, func(ctx context.Context) error { return a.slots.Acquire(ctx, 1) })
}

func (a *admission) anyRefused() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refused > 0
}

// takeTurn waits until those that E2B refused before have got in.
func (a *admission) takeTurn(ctx context.Context, t *ticket, why WaitReason) error {
	a.mu.Lock()
	a.refused++
	a.mu.Unlock()
	var err error
	if !a.turn.TryAcquire(1) {
		err = a.waitFor(ctx, t, why, func(ctx context.Context) error { return a.turn.Acquire(ctx, 1) })
	}
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.refused--
		return err
	}
	t.turn = true
	return nil
}

func (a *admission) passTurn() {
	a.mu.Lock()
	a.refused--
	a.mu.Unlock()
	a.turn.Release(1)
}

// backOff waits after a refusal: as long as E2B asks for, or longer each time
// with jitter; where the account is full, until one of this client's sandboxes
// ends, if that is sooner.
func (a *admission) backOff(ctx context.Context, t *ticket, try int, refusal error) error {
	if refusal == nil {
		return nil
	}
	wait := min(refusedFirst<<min(try, 10), refusedMost)
	wait = wait/2 + rand.N(wait/2)
	if e := (*APIError)(nil); errors.As(refusal, &e) && e.RetryAfter > 0 {
		wait = e.RetryAfter + rand.N(refusedFirst/4)
	}
	a.mu.Lock()
	freed := a.freed
	a.mu.Unlock()
	if !errors.Is(refusal, ErrQuota) {
		freed = nil
	}
	wait -= time.Since(t.refused) // some of it went by while others had their turn
	return a.waitFor(ctx, t, waitReason(refusal), func(ctx context.Context) error {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-freed:
		case <-ctx.Done():
		}
		return context.Cause(ctx)
	})
}

// pace keeps the time between two creates.
func (a *admission) pace(ctx context.Context, t *ticket) error {
	if a.every == 0 {
		return nil
	}
	a.mu.Lock()
	now := time.Now()
	at := a.next
	if at.Before(now) {
		at = now
	}
	a.next = at.Add(a.every)
	a.mu.Unlock()
	if !at.After(now) {
		return nil
	}
	err := a.waitFor(ctx, t, WaitRate, func(ctx context.Context) error {
		sleep(ctx, time.Until(at))
		return context.Cause(ctx)
	})
	if err != nil { // its place is free, if nobody stands behind it
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.next.Equal(at.Add(a.every)) {
			a.next = at
		}
	}
	return err
}

// ticket is a create on its way through the admission. It holds a slot, which
// passes to the sandbox.
type ticket struct {
	a       *admission
	begun   time.Time
	turn    bool      // it is the one that tries, of those that E2B has refused
	refused time.Time // when that was last

	mu    sync.Mutex
	uses  int  // who may still make a sandbox by it
	bound bool // the slot is a sandbox's
}

// sending notes that a create is sent, until the function it returns is called:
// when it is clear whether there is a sandbox.
func (t *ticket) sending() (clear func()) {
	t.mu.Lock()
	t.uses++
	t.mu.Unlock()
	t.a.mu.Lock()
	t.a.creating++
	t.a.mu.Unlock()
	return sync.OnceFunc(func() {
		t.a.mu.Lock()
		t.a.creating--
		t.a.mu.Unlock()
		t.leave()
	})
}

// leave gives up the slot when nobody has a use for it any more.
func (t *ticket) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.uses--; t.uses == 0 && !t.bound && t.a.slots != nil {
		t.a.slots.Release(1)
	}
}

// bind hands the slot over to a sandbox, which lives for d.
func (t *ticket) bind(id string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.a.mu.Lock()
	defer t.a.mu.Unlock()
	if t.a.ctx.Err() != nil || t.a.running[id] != nil {
		return
	}
	t.bound = true
	d += endSlack
	t.a.running[id] = &life{time.Now().Add(d), time.AfterFunc(d, func() { t.a.ended(id) })}
}

// ended notes that a sandbox does not run any more. One that is not known is
// none of this client's, or has ended before.
func (a *admission) ended(id string) {
	a.mu.Lock()
	l := a.running[id]
	delete(a.running, id)
	if l != nil {
		l.timer.Stop()
		close(a.freed)
		a.freed = make(chan struct{})
	}
	a.mu.Unlock()
	if l != nil && a.slots != nil {
		a.slots.Release(1)
	}
}

// moved notes that a sandbox's end was set to d from now, or, unless it may be
// sooner than before, to no less.
func (a *admission) moved(id string, d time.Duration, sooner bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d += endSlack
	end := time.Now().Add(d)
	if l := a.running[id]; l != nil && a.ctx.Err() == nil && (sooner || end.After(l.end)) {
		l.end = end
		l.timer.Reset(d)
	}
}
