package e2b

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

const (
	retryWaitMin = 100 * time.Millisecond
	retryWaitMax = 5 * time.Second

	// transferIdle is how long a transfer may go without a byte; the official
	// SDKs' limit is the same.
	transferIdle = 60 * time.Second

	agent = "osiris-remote/1"
)

// request is one call, which do makes more than once where that is safe.
type request struct {
	op     string      // for errors and logs: "create sandbox"
	method string      // of HTTP
	url    string      // absolute, with query
	header http.Header // may be nil

	inside  bool // it is for a sandbox, not for the control plane
	storage bool // it is for neither, but for where the control plane said
	private bool // an answer that says no may quote what was sent, and is not quoted

	// target, unless nil, changes the URL for one try.
	target func(*url.URL)

	// body makes the body of one try; nil means none. What it returns is not
	// closed, and not read any more once a try has failed.
	body func() (io.Reader, error)
	size int64 // of the body; -1 when it is not known, which sends it in chunks
	once bool  // the body cannot be made again: no retry once some of it was read

	safe   bool  // may be repeated when it is not known whether it was carried out
	queued bool  // the caller waits out a 429 himself
	ok     []int // statuses besides 2xx that are answers and not errors

	idle  time.Duration // longest wait for the network to take or give a byte; 0 means no limit
	whole int64         // > 0: the answer is at most so long, and read by do, so that a cut is a failed try
}

func (r *request) answered(status int) bool {
	return status/100 == 2 || slices.Contains(r.ok, status)
}

// do sends a request, with retries, and returns the answer, whose body the
// caller closes. An answer that is neither 2xx nor in req.ok is an error, an
// *APIError; no answer is a *sendError.
func (c *Client) do(ctx context.Context, rt http.RoundTripper, req *request) (*http.Response, error) {
	x := &exchange{req: req, rt: c.logged(rt), patience: c.cfg.RequestTimeout, ctx: ctx}
	hr, err := http.NewRequestWithContext(ctx, req.method, req.url, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: the URL cannot be used", req.op, ErrInvalid)
	}
	if req.header != nil {
		hr.Header = req.header.Clone()
	}
	hr.Header.Set("User-Agent", c.userAgent())
	retryable, err := retryablehttp.FromRequest(hr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.op, err)
	}
	engine := retryablehttp.Client{
		HTTPClient:   &http.Client{Transport: x, CheckRedirect: noRedirect},
		RetryMax:     c.cfg.Retries,
		RetryWaitMin: retryWaitMin,
		RetryWaitMax: retryWaitMax,
		CheckRetry:   x.again,
		Backoff:      x.backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
	resp, err := engine.Do(retryable)
	switch {
	case resp == nil:
		return nil, x.failure(ctx, err)
	case !req.answered(resp.StatusCode):
		_ = resp.Body.Close() // a copy in memory
		if req.inside && errors.Is(x.refusal, ErrSandboxGone) {
			c.admission.ended(req.header.Get("E2b-Sandbox-Id"))
		}
		return nil, x.refusal
	}
	return resp, nil
}

// noRedirect takes a redirection as the answer, since to follow it would hand
// the key to another host.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (c *Client) userAgent() string {
	if c.cfg.UserAgent == "" {
		return agent
	}
	return c.cfg.UserAgent + " " + agent
}

// sendError is a request that got no answer.
type sendError struct {
	op      string
	err     error
	inside  bool  // it was for a sandbox
	storage bool  // it was for a storage
	sent    bool  // it may have reached the server
	last    error // what the try before had met, if anything
}

func (e *sendError) Error() string {
	text := e.op + ": " + e.err.Error()
	if e.last != nil {
		text += "; before that: " + e.last.Error()
	}
	if !e.sent && errors.As(e.err, new(net.Error)) {
		text += e.hint()
	}
	return text
}

// hint is what to look at when there is no connection.
func (e *sendError) hint() string {
	if e.storage {
		return "; check the network: the server has named this host"
	}
	return networkHint(e.inside)
}

func networkHint(inside bool) string {
	if inside {
		return "; check the network, E2B_DOMAIN and E2B_SANDBOX_URL"
	}
	return "; check the network, E2B_DOMAIN and E2B_API_URL"
}

func (e *sendError) Unwrap() []error {
	errs := []error{e.err}
	if e.last != nil {
		errs = append(errs, e.last)
	}
	if timeout := net.Error(nil); errors.As(e.err, &timeout) && timeout.Timeout() {
		errs = append(errs, ErrTimeout)
	}
	return errs
}

// exchange is the state of one call of do, and the transport of its tries.
type exchange struct {
	req      *request
	ctx      context.Context // of the call
	rt       http.RoundTripper
	patience time.Duration // the longest Retry-After worth waiting for

	body    *upload // of the try
	sent    bool    // the try got no answer, and may have reached the server
	refusal *APIError
	last    error // of the try before
}

// RoundTrip makes one try.
func (x *exchange) RoundTrip(hr *http.Request) (*http.Response, error) {
	if err := hr.Context().Err(); err != nil {
		return nil, err
	}
	x.sent, x.refusal = false, nil
	t := newTry(hr.Context(), x.req)
	out, err := x.outgoing(hr, t)
	if err != nil {
		t.end()
		return nil, err
	}
	resp, err := x.rt.RoundTrip(out)
	if err != nil {
		x.sent = t.reached(err)
		x.stopBody()
		defer t.end()
		return nil, t.explain(err)
	}
	t.answered.Store(true)
	t.rest()
	resp.Body = &download{ReadCloser: resp.Body, try: t}
	if resp.Request == nil {
		resp.Request = out
	}
	switch {
	case !x.req.answered(resp.StatusCode):
		x.stopBody()
		x.refusal = refuse(x.req.op, resp)
		switch {
		case x.req.storage:
			x.refusal.byStorage()
		case x.req.private:
			x.refusal.unquote()
		}
		resp.Body = http.NoBody
	case x.req.whole > 0:
		resp, err = readWhole(resp, x.req.whole)
		x.sent = err != nil
		return resp, err
	}
	return resp, nil
}

// readWhole puts the body into memory.
func readWhole(resp *http.Response, limit int64) (*http.Response, error) {
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(body)) > limit:
		return nil, &finalError{fmt.Errorf("the answer is longer than %d bytes", limit)}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

func (x *exchange) outgoing(hr *http.Request, t *try) (*http.Request, error) {
	out := hr.Clone(t.ctx)
	if x.req.target != nil {
		x.req.target(out.URL)
	}
	switch {
	case x.req.body == nil:
		return out, nil
	case x.req.size == 0:
		out.Body = http.NoBody // with another body, length 0 would mean "unknown"
		return out, nil
	}
	next := func() (io.ReadCloser, error) { return x.newBody(t) }
	body, err := next()
	if err != nil {
		return nil, err
	}
	out.Body, out.ContentLength = body, x.req.size
	if !x.req.once {
		out.GetBody = next // for streams that HTTP/2 refused
	}
	return out, nil
}

func (x *exchange) newBody(t *try) (io.ReadCloser, error) {
	if x.body != nil && !x.req.once {
		x.body.wait()
	}
	r, err := x.req.body()
	if err != nil {
		return nil, &finalError{err}
	}
	x.body = &upload{r: r, try: t}
	return x.body, nil
}

func (x *exchange) stopBody() {
	if x.body != nil {
		_ = x.body.Close()
	}
}

// again is the retry policy.
func (x *exchange) again(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil || err == nil && x.req.answered(resp.StatusCode) {
		return false, nil
	}
	if x.body != nil && (x.req.once && x.body.touched.Load() || x.body.failed.Load()) {
		return false, nil
	}
	x.last = err
	if err != nil {
		return x.repeatable(err), nil
	}
	x.last = x.refusal
	return x.worthwhile(ctx), nil
}

func (x *exchange) repeatable(err error) bool {
	if errors.As(err, new(*finalError)) || errors.As(err, new(*tls.CertificateVerificationError)) {
		return false
	}
	return !x.sent || x.req.safe
}

// worthwhile says whether the answer allows another try, and in time.
func (x *exchange) worthwhile(ctx context.Context) bool {
	e := x.refusal
	if e.RetryAfter > x.patience {
		return false
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) < e.RetryAfter {
		return false
	}
	switch {
	case e.Status == http.StatusTooManyRequests:
		return e.RetryAfter > 0 && !x.req.queued // without, waiting does not help
	case errors.Is(e, ErrCapacity):
		return true
	case errors.Is(e, ErrSandboxGone):
		return false
	}
	return x.req.safe && slices.Contains([]int{500, 502, 503, 504}, e.Status)
}

// backoff waits as long as the server asks for, else longer each time, with
// jitter so that many clients do not come back together.
func (x *exchange) backoff(shortest, longest time.Duration, try int, _ *http.Response) time.Duration {
	wait := min(shortest<<min(try, 16), longest)
	wait = wait/2 + rand.N(wait/2+1)
	if x.refusal != nil && x.refusal.RetryAfter > 0 {
		wait = x.refusal.RetryAfter
	}
	if x.ctx.Err() == nil { // else there is no other try
		traceRetry(x.ctx, Retry{Op: x.req.op, Attempt: try + 2, Reason: unwrapURL(x.last), Wait: wait})
	}
	return wait
}

func (x *exchange) failure(ctx context.Context, err error) error {
	e := &sendError{op: x.req.op, err: unwrapURL(err), inside: x.req.inside, storage: x.req.storage, sent: x.sent}
	if ctx.Err() != nil {
		e.err = context.Cause(ctx)
		if x.last != nil && !errors.Is(x.last, ctx.Err()) {
			e.last = unwrapURL(x.last)
		}
	}
	return e
}

// unwrapURL leaves out the URL, whose query may hold a signature.
func unwrapURL(err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		return u.Err
	}
	return err
}

// finalError is a failed try that another would not mend: a body that could
// not be made, an answer without end.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// try is one sending of a request: its context, and what is known of it.
type try struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer // fires after idle; nil for none

	asked, wrote atomic.Bool // a connection was asked for; the header was written to it
	answered     atomic.Bool // the rest is up to the reader of the answer
}

func newTry(parent context.Context, req *request) *try {
	ctx, cancel := context.WithCancelCause(parent)
	t := &try{cancel: cancel, idle: req.idle}
	if req.idle > 0 {
		t.timer = time.AfterFunc(req.idle, func() { cancel(timeoutAfter("no byte", req.idle)) })
	}
	t.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { t.asked.Store(true) },
		WroteHeaders: func() { t.wrote.Store(true) },
	})
	return t
}

// timeoutAfter is why a context ended that this package limited.
func timeoutAfter(what string, d time.Duration) error {
	return fmt.Errorf("%w: %s within %s", ErrTimeout, what, d)
}

// await starts the idle limit anew: the network's turn.
func (t *try) await() {
	if t.timer != nil {
		t.timer.Reset(t.idle)
	}
}

// rest suspends the idle limit: the caller's turn, which may take its time.
func (t *try) rest() {
	if t.timer != nil {
		t.timer.Stop()
	}
}

func (t *try) end() {
	t.rest()
	t.cancel(context.Canceled)
}

// explain returns why the try was given up, if it was.
func (t *try) explain(err error) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	return err
}

// reached says whether the request may have reached the server. A transport
// that does not say what it does is judged by its error.
func (t *try) reached(err error) bool {
	if t.asked.Load() {
		return t.wrote.Load() // which goes before the first byte
	}
	op := (*net.OpError)(nil)
	return !errors.As(err, &op) || op.Op != "dial" && op.Op != "proxyconnect"
}

// upload is the body of one try. The transport may read it even after the try
// has ended; Close keeps it from the caller's reader.
type upload struct {
	mu  sync.Mutex // held while r is read
	r   io.Reader
	try *try

	touched, failed, closed atomic.Bool
}

func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() {
		return 0, errors.New("the request has ended")
	}
	u.touched.Store(true)
	u.try.rest()
	n, err := u.r.Read(p)
	u.try.await()
	if u.try.answered.Load() {
		u.try.rest()
	}
	if err != nil && err != io.EOF {
		u.failed.Store(true)
		err = &finalError{err}
	}
	return n, err
}

func (u *upload) Close() error {
	u.closed.Store(true)
	return nil
}

// wait returns when the reader is no longer read.
func (u *upload) wait() {
	u.closed.Store(true)
	u.mu.Lock()
	defer u.mu.Unlock()
}

// download is the body of an answer.
type download struct {
	io.ReadCloser
	try *try
}

func (d *download) Read(p []byte) (int, error) {
	d.try.await()
	n, err := d.ReadCloser.Read(p)
	d.try.rest()
	if err != nil && err != io.EOF {
		err = d.try.explain(err)
	}
	return n, err
}

func (d *download) Close() error {
	err := d.ReadCloser.Close()
	d.try.end()
	return err
}

// logged returns a transport that logs every request at debug level: method,
// host, path, status and duration, and nothing that could be secret.
func (c *Client) logged(rt http.RoundTripper) http.RoundTripper {
	return &requestLog{rt: rt, logger: c.cfg.Logger}
}

type requestLog struct {
	rt     http.RoundTripper
	logger *slog.Logger
}

func (l *requestLog) RoundTrip(req *http.Request) (*http.Response, error) {
	if !l.logger.Enabled(req.Context(), slog.LevelDebug) {
		return l.rt.RoundTrip(req)
	}
	start := time.Now()
	resp, err := l.rt.RoundTrip(req)
	attrs := []slog.Attr{
		slog.String("method", req.Method),
		slog.String("host", req.URL.Host),
		slog.String("path", req.URL.EscapedPath()),
		slog.Duration("took", time.Since(start)),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	} else {
		attrs = append(attrs, slog.Int("status", resp.StatusCode))
	}
	l.logger.LogAttrs(req.Context(), slog.LevelDebug, "e2b request", attrs...)
	return resp, err
}
