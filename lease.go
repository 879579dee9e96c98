package remote

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// minLease leaves a renewal some seconds for its tries.
	minLease = 10 * time.Second
	// maxLease is more than any account allows.
	maxLease = 365 * 24 * time.Hour

	// A lease is renewed when a third of it is over, and is in danger when two
	// thirds are.
	renewAfter = 3

	renewPatience = 10 * time.Second // for one try; less for a short lease

	releasePause = 200 * time.Millisecond // between tries, within extendPatience
)

// lease is the time that a sandbox has left, which its owner prolongs while it
// has a use for it. Nil is that of a place without an end.
type lease struct {
	sandbox Sandbox
	life    time.Duration // from one renewal

	mu      sync.Mutex // not held while the end is moved
	set     time.Time  // when the end was last set, at the latest
	given   time.Duration
	failure error // of the last renewal; nil when it went well
	lost    bool  // the sandbox is gone, and that was told

	hurried  chan struct{} // the next renewal is due
	renewing sync.WaitGroup
	stop     context.CancelFunc // ends the renewals; nil while there are none
}

// teller is told what happens to a lease: a session.
type teller interface {
	event(name string, fields map[string]any)
	logf(level slog.Level, format string, args ...any)
}

// newLease is that of a sandbox that was made just now.
func newLease(sb Sandbox, life time.Duration) *lease {
	return &lease{sandbox: sb, life: life, set: time.Now(), given: life, hurried: make(chan struct{}, 1)}
}

// hold renews the lease from now on, until release or drop. What goes wrong is
// told to s.
func (l *lease) hold(ctx context.Context, s teller) {
	if l == nil || l.stop != nil {
		return
	}
	// A run that is being stopped needs its sandbox, too.
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.renewing.Go(func() { l.renew(ctx, s) })
}

// hurry has the lease renewed now: this host stood still, for longer than its
// own clock says, while that of the sandbox went on.
func (l *lease) hurry() {
	if l == nil {
		return
	}
	select {
	case l.hurried <- struct{}{}:
	default:
	}
}

// drop ends the renewals, and leaves the sandbox's end where it is.
func (l *lease) drop() {
	if l == nil || l.stop == nil {
		return
	}
	l.stop()
	l.renewing.Wait()
	l.stop = nil
}

// release ends the renewals and gives the sandbox time for a Collect. Beyond
// collectLease it is as much as an owner may be late with a renewal: until then
// nobody takes the sandbox for one without an owner, see Sweep. Only the first
// release after a hold does something.
func (l *lease) release(ctx context.Context, s teller) {
	if l == nil || l.stop == nil {
		return
	}
	l.drop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), extendPatience)
	defer cancel()
	for {
		err := l.extend(ctx, collectLease+l.life-l.life/renewAfter)
		if err == nil {
			return
		}
		again := !errors.Is(err, ErrSandboxGone)
		if again {
			select {
			case <-time.After(releasePause):
			case <-ctx.Done():
				again = false
			}
		}
		if !again {
			_, end := l.due()
			s.logf(slog.LevelWarn, "the sandbox has %s left for Collect, and could not be given more: %v", max(0, time.Until(end)).Round(time.Second), err)
			return
		}
	}
}

// extend moves the sandbox's end.
func (l *lease) extend(ctx context.Context, d time.Duration) error {
	now := time.Now() // the end is counted from later
	err := l.sandbox.Extend(ctx, d)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure = err; err == nil {
		l.set, l.given = now, d
	}
	return err
}

// due returns when the lease is to be renewed next, and when it ends.
func (l *lease) due() (next, end time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set.Add(min(l.life, l.given) / renewAfter), l.set.Add(l.given)
}

// lapsed returns why the lease was not renewed before it ended, or nil where it
// did not end.
func (l *lease) lapsed() error {
	if l == nil {
		return nil
	}
	_, end := l.due()
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(end) {
		return nil
	}
	if l.failure == nil {
		return errors.New("this host was suspended, or too busy")
	}
	return l.failure
}

// renew keeps the lease until ctx ends. A renewal that fails is tried again at
// once, since a try takes its time, and then after longer waits.
func (l *lease) renew(ctx context.Context, s teller) {
	endangered := false
	pause := min(l.life/30, renewPatience) // between tries
	for failed := 0; ; {
		next, _ := l.due()
		wait := time.Until(next)
		if failed > 0 {
			wait = min(pause, 100*time.Millisecond<<min(failed, 20))
		}
		select {
		case <-time.After(wait):
		case <-l.hurried:
		case <-ctx.Done():
			return
		}
		try, cancel := context.WithTimeout(ctx, min(renewPatience, l.life/10))
		err := l.extend(try, l.life)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if l.found() || endangered {
				s.logf(slog.LevelInfo, "the sandbox's lease was renewed after all")
			}
			failed, endangered = 0, false
			continue
		}
		if failed++; failed == 1 {
			s.logf(slog.LevelWarn, "renew the sandbox's lease: %v", err)
		}
		_, end := l.due()
		left := time.Until(end)
		switch {
		case errors.Is(err, ErrSandboxGone):
			l.lose(s, err) // one that is paused may still be resumed: the tries go on
		case !endangered && left < l.life/renewAfter:
			endangered = true
			s.event("lease_in_danger", map[string]any{
				"sandbox_id": l.sandbox.Info().ID, "remaining_ms": milliseconds(max(left, 0)), "error": err.Error(),
			})
		}
	}
}

// lose tells that the sandbox is gone, once.
func (l *lease) lose(s teller, why error) {
	l.mu.Lock()
	told := l.lost
	l.lost = true
	l.mu.Unlock()
	if !told {
		s.event("lease_lost", map[string]any{"sandbox_id": l.sandbox.Info().ID, "error": why.Error()})
	}
}

// found reports whether a sandbox that was gone is there again.
func (l *lease) found() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.lost
	l.lost = false
	return was
}
