package e2b

import (
	"context"
	"time"
)

// ClientTrace is told what a [Client] does beyond a plain request and its
// answer, for the calls whose context has it, see [WithClientTrace]. A field
// may be nil. The functions may be called concurrently, and also after the
// call has returned: a [Process] is followed in the background. They hold up
// what they tell of, so they should return soon.
type ClientTrace struct {
	// Retry is called before a call is made again, and before the wait for
	// that.
	Retry func(Retry)

	// Waiting is called when [Client.CreateSandbox] begins to wait for its
	// turn, and when that wait is over. One create may wait several times.
	Waiting func(Waiting)
}

// Retry is a call that failed and is about to be made again.
type Retry struct {
	Op      string        // what is being done, as "create sandbox"
	Attempt int           // the number of the attempt to come; the first was 1
	Reason  error         // why the one before failed
	Wait    time.Duration // before the attempt
}

// Waiting is a create that waits for its turn.
type Waiting struct {
	Reason   WaitReason
	Over     bool          // the wait has ended, well
	Position int           // among this client's creates that wait, from 1; zero when it is over
	InUse    int           // sandboxes of this client that run or are being made, as far as it knows
	Waited   time.Duration // so far
}

// WaitReason says what a create waits for.
type WaitReason string

// The reasons.
const (
	WaitSlot  WaitReason = "max_sandboxes" // Config.MaxSandboxes of this client run
	WaitRate  WaitReason = "create_rate"   // Config.CreateRate
	WaitQuota WaitReason = "quota"         // the account has as many sandboxes as it may
	WaitLimit WaitReason = "rate_limit"    // E2B says that there are too many requests
)

type traceKey struct{}

// WithClientTrace returns a context whose calls tell trace what happens.
func WithClientTrace(ctx context.Context, trace *ClientTrace) context.Context {
	return context.WithValue(ctx, traceKey{}, trace)
}

func traceOf(ctx context.Context) *ClientTrace {
	t, _ := ctx.Value(traceKey{}).(*ClientTrace)
	return t
}

func traceRetry(ctx context.Context, r Retry) {
	if t := traceOf(ctx); t != nil && t.Retry != nil {
		t.Retry(r)
	}
}

func traceWaiting(ctx context.Context, w Waiting) {
	if t := traceOf(ctx); t != nil && t.Waiting != nil {
		t.Waiting(w)
	}
}
