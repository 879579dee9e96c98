package remote

import (
	"sync"
	"time"
)

// timer calls a function after a time, that of a run, which can stand still
// meanwhile. Nil has no time, and never calls.
type timer struct {
	end func()

	mu       sync.Mutex
	left     time.Duration // at since
	since    time.Time
	standing int
	ticking  *time.Timer // nil while it stands still
}

func startTimer(left time.Duration, end func()) *timer {
	t := &timer{end: end, left: left}
	t.run()
	return t
}

// run goes on, for who has the lock.
func (t *timer) run() {
	t.since = time.Now()
	t.ticking = time.AfterFunc(t.left, t.end)
}

// stand stops the time until the function that it returns is called.
func (t *timer) stand() (goOn func()) {
	if t == nil {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.standing++; t.standing == 1 && t.ticking != nil {
		t.ticking.Stop()
		t.left -= time.Since(t.since)
	}
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.standing--; t.standing == 0 && t.ticking != nil {
			t.run()
		}
	})
}

// stop ends it.
func (t *timer) stop() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ticking != nil {
		t.ticking.Stop()
		t.ticking = nil
	}
}
