package mock

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// WithCreateRate sets how many sandboxes may be created in a second, as 0.5,
// and how many at once after a pause. One more is refused with status 429 and
// the seconds to wait in Retry-After, as E2B's limit of a route does.
func WithCreateRate(perSecond float64, burst int) ServerOption {
	return func(o *serverOptions) { o.createRate, o.createBurst = perSecond, burst }
}

// rateLimit is a bucket of tokens that fills with time.
type rateLimit struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// take takes a token, or returns how long it is until there is one.
func (l *rateLimit) take(now time.Time, perSecond float64, burst int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens = float64(burst)
	} else {
		l.tokens = min(float64(burst), l.tokens+max(0, now.Sub(l.last).Seconds())*perSecond)
	}
	l.last = now
	if l.tokens >= 1 {
		l.tokens--
		return 0
	}
	return time.Duration((1 - l.tokens) / perSecond * float64(time.Second))
}

// admitCreate refuses a create that comes too soon.
func (c *control) admitCreate(w http.ResponseWriter) error {
	o := c.server.opts
	if o.createRate <= 0 {
		return nil
	}
	wait := c.creates.take(c.server.now(), o.createRate, max(o.createBurst, 1))
	if wait == 0 {
		return nil
	}
	seconds := strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	w.Header().Set("Retry-After", seconds)
	w.Header().Set("RateLimit-Limit", strconv.Itoa(max(o.createBurst, 1)))
	w.Header().Set("RateLimit-Remaining", "0")
	w.Header().Set("RateLimit-Reset", seconds)
	return fail(http.StatusTooManyRequests, "Rate limit exceeded, please try again later")
}
