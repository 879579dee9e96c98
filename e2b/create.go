package e2b

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

const (
	defaultTemplate = "base"
	oldestEnvd      = "0.1.0" // the official SDKs use nothing older

	// giveUp is how long after it was sent a create may still make a sandbox:
	// the API ends its answer after 75 s, the load balancer in front after 80.
	giveUp = 80 * time.Second

	// adoptWithin is how long a caller waits for the sandbox of a create
	// whose answer was lost. One is made within some two seconds.
	adoptWithin = 15 * time.Second

	lookFirst = 500 * time.Millisecond // between two looks, and then longer
	lookMost  = 10 * time.Second
	lastLook  = 5 * time.Second // for a look that begins in time
)

// NonceKey is the metadata by which a sandbox is found whose create got no
// answer.
const NonceKey = "osiris_nonce"

// CreateOptions says what sandbox is made. The zero value makes one from E2B's
// base template that lives five minutes. CPU, memory and disk are the
// template's.
type CreateOptions struct {
	// Template is the name or ID of a template, or the ID of a snapshot.
	// Empty means "base".
	Template string

	// Timeout is how long the sandbox lives, whatever becomes of this
	// program. Zero means 5 minutes; a fraction of a second is rounded up.
	// What an account may have is limited: up to an hour, or a day.
	Timeout time.Duration

	// Metadata is what [Client.List] finds the sandbox by. CreateSandbox adds
	// a random [NonceKey], unless there is one; an own one must be unique
	// to this call, since a sandbox with it whose create got lost is killed.
	Metadata map[string]string

	// EnvVars are environment variables of all processes in the sandbox.
	// Everybody who may use the sandbox can read them.
	EnvVars map[string]string

	Insecure   bool // let everybody who knows the sandbox's ID use it; otherwise that takes a token, which Sandbox sends
	NoInternet bool // let nothing out of the sandbox
	AutoPause  bool // pause the sandbox instead of killing it when its time is over
	AutoResume bool // wake it when it is used while paused

	// PrivateTraffic has a token asked for on every port, which Sandbox keeps
	// and [Sandbox.NewRequest] sends. Otherwise who knows the sandbox's ID
	// reaches what listens in it. It cannot go with Insecure. A server that
	// does not know of it leaves the ports open, see [Sandbox.Private].
	PrivateTraffic bool

	// Network says what the sandbox may reach; zero means everything. A server
	// that does not know of it lets everything out: [SandboxInfo] has what is
	// in force.
	Network Network
}

type createBody struct {
	TemplateID string            `json:"templateID"`
	Timeout    int32             `json:"timeout"`
	Secure     *bool             `json:"secure,omitempty"` // the newer route has no such field
	Internet   bool              `json:"allow_internet_access"`
	AutoPause  bool              `json:"autoPause,omitempty"`
	AutoResume *enabled          `json:"autoResume,omitempty"`
	Network    *networkBody      `json:"network,omitempty"`
	Metadata   map[string]string `json:"metadata"`
	EnvVars    map[string]string `json:"envVars,omitempty"`
}

type enabled struct {
	Enabled bool `json:"enabled"`
}

type networkBody struct {
	PublicTraffic *bool `json:"allowPublicTraffic,omitempty"`
	Network
}

func (o *CreateOptions) body() (createBody, error) {
	s, err := lifetime(o.Timeout)
	if err != nil {
		return createBody{}, err
	}
	if o.PrivateTraffic && o.Insecure {
		return createBody{}, fmt.Errorf("%w: PrivateTraffic takes a sandbox that is not Insecure", ErrInvalid)
	}
	if err := o.Network.check(); err != nil {
		return createBody{}, err
	}
	secure := !o.Insecure
	b := createBody{
		TemplateID: o.Template,
		Timeout:    s,
		Secure:     &secure,
		Internet:   !o.NoInternet,
		AutoPause:  o.AutoPause,
		Metadata:   maps.Clone(o.Metadata),
		EnvVars:    o.EnvVars,
	}
	if b.TemplateID == "" {
		b.TemplateID = defaultTemplate
	}
	if o.AutoResume {
		b.AutoResume = &enabled{true}
	}
	if n := o.Network; o.PrivateTraffic || len(n.AllowOut)+len(n.DenyOut) > 0 {
		b.Network = &networkBody{Network: n}
		if o.PrivateTraffic {
			b.Network.PublicTraffic = new(bool)
		}
	}
	if b.Metadata == nil {
		b.Metadata = make(map[string]string, 1)
	}
	if b.Metadata[NonceKey] == "" {
		b.Metadata[NonceKey] = nonce()
	}
	return b, nil
}

// nonce returns 128 random bits.
func nonce() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// CreateSandbox makes a sandbox. That costs money from now until it is killed,
// paused, or at its timeout.
//
// It waits for its turn first, see Config.MaxSandboxes and Config.CreateWait,
// and waits on when E2B says that there are too many requests.
//
// A create is never sent twice unless E2B refused the first before it acted,
// or there was no connection. When the answer is lost, on a cut connection or
// by a server's fault, the sandbox is looked for by its metadata, and returned
// if it is there within seconds. Where the caller does not wait for that, as
// ctx or Config.RequestTimeout ends first, CreateSandbox returns at once, and
// the sandbox is killed in the background as soon as it shows; [Client.Close]
// waits for that.
//
// The error is a [*QuotaExceededError] when the account has as many sandboxes
// as it may (at once where none of them is this client's, since nothing here
// can end then), a [*TimeoutError] when there was none in time, and else a
// [*SandboxError]. Below that it matches [ErrTemplate] when there is no such
// template or it is too old, and the other sentinels of this package.
func (c *Client) CreateSandbox(ctx context.Context, o CreateOptions) (*Sandbox, error) {
	body, err := o.body()
	if err != nil {
		return nil, &SandboxError{fmt.Errorf("create sandbox: %w", err)}
	}
	s, err := c.admission.create(ctx, func(ctx context.Context, t *ticket) (*Sandbox, error) {
		return c.createOnce(ctx, body, t)
	})
	if err != nil {
		return nil, createError(err)
	}
	return s, nil
}

// createOnce creates, now that it is its turn.
func (c *Client) createOnce(ctx context.Context, body createBody, t *ticket) (*Sandbox, error) {
	if err := c.births.hold(); err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	defer context.AfterFunc(c.births.ctx, cancel)()
	b := &birth{c: c, body: body, clear: t.sending()}
	s, err := b.run(ctx)
	if s != nil {
		t.bind(s.ID(), time.Duration(body.Timeout)*time.Second)
	}
	if b.unsure || b.made != "" {
		go b.settle() // Shutdown waits for it
	} else {
		b.end()
		b.clear()
		c.births.release()
	}
	return s, err
}

func createError(err error) error {
	switch {
	case errors.Is(err, ErrQuota):
		return &QuotaExceededError{err}
	case errors.Is(err, ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return &TimeoutError{err}
	default:
		return &SandboxError{err}
	}
}

// birth is one call of CreateSandbox, and the transport of its request. It is
// used by one goroutine at a time.
type birth struct {
	c     *Client
	body  createBody
	clear func() // to be called once it is known whether there is a sandbox

	sent   time.Time     // when the last try began
	stop   func()        // ends that try
	answer chan response // of that try, when its caller left before it came
	made   string        // the ID of a sandbox that has to be killed
	unsure bool          // there may be a sandbox
}

type response struct {
	*http.Response
	err error
}

// run creates, or finds what was created.
func (b *birth) run(ctx context.Context) (*Sandbox, error) {
	a, err := b.post(ctx)
	if err == nil {
		err = a.check("create sandbox")
	}
	if err == nil {
		return b.take(ctx, a)
	}
	if b.unsure = ambiguous(err); b.unsure && b.adopt(ctx, err, &a) {
		return b.take(ctx, a)
	}
	return nil, b.explain(err)
}

// take makes a Sandbox of an answer.
func (b *birth) take(ctx context.Context, a sandboxAnswer) (*Sandbox, error) {
	b.unsure = false
	if !olderThan(a.EnvdVersion, oldestEnvd) {
		return newSandbox(b.c, a), nil
	}
	if err := b.c.Kill(ctx, a.SandboxID); err != nil {
		b.made = a.SandboxID
	}
	return nil, fmt.Errorf("create sandbox: %w: %q has version %s of E2B's daemon; build it again to have %s or later",
		ErrTemplate, b.body.TemplateID, clip(a.EnvdVersion), oldestEnvd)
}

// Abandon kills, in the background, what a create with a nonce has made, or is
// still making: one whose caller is another process, which has died. asked is
// when it was sent, so that it is known when none can come any more.
// [Client.Close] waits for that.
func (c *Client) Abandon(nonce string, asked time.Time) error {
	if err := c.births.hold(); err != nil {
		return fmt.Errorf("abandon sandbox: %w", err)
	}
	now := time.Now()
	if asked.Before(now.Add(-giveUp)) {
		asked = now.Add(-giveUp) // there is still time for one look
	} else if asked.After(now) {
		asked = now
	}
	b := &birth{c: c, unsure: true, sent: asked, clear: func() {}}
	b.body.Metadata = map[string]string{NonceKey: nonce}
	go b.settle()
	return nil
}

// ambiguous says whether a create that failed may have made a sandbox.
func ambiguous(err error) bool {
	refused, unanswered := (*APIError)(nil), (*sendError)(nil)
	switch {
	case errors.As(err, &unanswered):
		return unanswered.sent
	case !errors.As(err, &refused):
		return !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) // an answer that cannot be read
	case refused.Status == http.StatusRequestTimeout, refused.Status == 499:
		return true
	case refused.Code == "sandbox_capacity_unavailable", refused.Code == "sandbox_no_compatible_node":
		return false
	}
	return refused.Status >= 500
}

// explain says what to do about a template that E2B refuses.
func (b *birth) explain(err error) error {
	e := (*APIError)(nil)
	if !errors.As(err, &e) || errors.As(err, new(*sendError)) {
		return err
	}
	switch {
	case e.Status == http.StatusTooManyRequests && e.RetryAfter == 0 && e.object:
		e.about, e.fix = ErrQuota, "kill sandboxes that are not needed, or ask E2B for more"
	case e.Status == http.StatusNotFound && e.object,
		(e.Status == http.StatusForbidden || e.Status == http.StatusBadRequest) && strings.Contains(strings.ToLower(e.Message), "template"):
		return fmt.Errorf("%w %q: %w; list the account's templates with `e2b template list`, or see https://e2b.dev/dashboard",
			ErrTemplate, b.body.TemplateID, err)
	}
	return err
}

// post sends the create.
func (b *birth) post(ctx context.Context) (a sandboxAnswer, err error) {
	err = b.c.eitherRoute("/sandboxes", func(path string) error {
		body := b.body
		if strings.HasPrefix(path, "/v2/") {
			if !*body.Secure {
				return fmt.Errorf("create sandbox: %w: this server makes only secure sandboxes", ErrUnsupported)
			}
			body.Secure = nil
		}
		a, err = b.postTo(ctx, path, body)
		return err
	})
	return a, err
}

func (b *birth) postTo(ctx context.Context, path string, body createBody) (a sandboxAnswer, err error) {
	const op = "create sandbox"
	req, err := b.c.apiRequest(apiCall{op: op, method: http.MethodPost, path: path, in: body})
	if err != nil {
		return a, err
	}
	req.queued = true
	resp, err := b.c.do(ctx, b, req)
	if err != nil {
		return a, err
	}
	return a, decode(op, resp, &a)
}

// RoundTrip sends one try of the create on a context of its own: when its
// caller goes away the request goes on, since its answer tells what has to be
// killed. That answer is left in b.answer.
func (b *birth) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body) // it is in memory
	_ = req.Body.Close()
	if err != nil {
		return nil, err
	}
	b.end()
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(req.Context()), giveUp, timeoutAfter("no answer", giveUp))
	undo := context.AfterFunc(b.c.births.ctx, cancel)
	b.stop = func() { undo(); cancel() }

	var asked, wrote atomic.Bool
	out := req.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { asked.Store(true) },
		WroteHeaders: func() { wrote.Store(true) },
	}))
	out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	out.Body, _ = out.GetBody()

	b.sent = time.Now()
	answer := make(chan response, 1)
	go func() { answer <- fetch(b.c.api, out) }()
	select {
	case r := <-answer:
		return r.Response, r.err
	case <-req.Context().Done():
	}
	if asked.Load() && !wrote.Load() {
		cancel() // nothing was sent, or it is seen in the end that something was
		r := <-answer
		return r.Response, r.err
	}
	b.answer = answer
	return nil, context.Cause(req.Context())
}

func fetch(rt http.RoundTripper, req *http.Request) response {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return response{err: err}
	}
	resp, err = readWhole(resp, maxAnswerBytes)
	return response{resp, err}
}

// end lets go of the last try.
func (b *birth) end() {
	if b.stop != nil {
		b.stop()
	}
}

// adopt looks for the sandbox whose create failed, and connects to it.
func (b *birth) adopt(ctx context.Context, why error, a *sandboxAnswer) bool {
	end := time.Now().Add(adoptWithin)
	if e := (*APIError)(nil); errors.As(why, &e) && e.object {
		end = time.Now() // the server's own word: one look will do
	}
	for wait := lookFirst; ctx.Err() == nil; wait = min(2*wait, lookMost) {
		if ids, _ := b.look(ctx); len(ids) > 0 { // another look may do better
			var err error
			*a, err = b.c.connect(ctx, ids[0], time.Duration(b.body.Timeout)*time.Second)
			b.c.cfg.Logger.Warn("the answer to a create was lost, and the sandbox found", "sandbox", ids[0], "connected", err == nil)
			return err == nil
		}
		if !sleep(ctx, min(wait, time.Until(end))) || !time.Now().Before(end) {
			return false
		}
	}
	return false
}

// look lists what the create has made.
func (b *birth) look(ctx context.Context) (ids []string, err error) {
	only := map[string]string{NonceKey: b.body.Metadata[NonceKey]}
	for info, err := range b.c.List(ctx, ListOptions{Metadata: only}) {
		if err != nil {
			return ids, err
		}
		// A server that does not know the filter would name all there are.
		if info.Metadata[NonceKey] == only[NonceKey] {
			ids = append(ids, info.ID)
		}
	}
	return ids, nil
}

// settle kills what was made and nobody took. It returns when nothing can be
// made any more.
func (b *birth) settle() {
	defer b.c.births.release()
	defer b.clear()
	defer b.end()
	ctx := b.c.births.ctx
	if b.made == "" && b.answer != nil {
		if b.made = b.late(<-b.answer); b.made == "" && !b.unsure {
			return
		}
	}
	var err error
	if b.made != "" {
		err = b.killAll(ctx, []string{b.made})
	} else {
		err = b.hunt(ctx)
	}
	if err != nil {
		b.leave(err)
	}
}

// late reads an answer that came after its caller left, for the ID in it.
func (b *birth) late(r response) string {
	var a sandboxAnswer
	switch {
	case r.err != nil:
		return ""
	case r.StatusCode/100 != 2:
		b.unsure = ambiguous(refuse("create sandbox", r.Response))
		return ""
	case decode("", r.Response, &a) != nil || a.check("") != nil:
		return ""
	}
	return a.SandboxID
}

// hunt looks until no create can be under way any more, and kills what it
// finds.
func (b *birth) hunt(ctx context.Context) error {
	deadline := b.sent.Add(giveUp)
	for wait := lookFirst; ; wait = min(2*wait, lookMost) {
		over := !time.Now().Before(deadline)
		looking, cancel := context.WithDeadline(ctx, deadline.Add(lastLook))
		ids, err := b.look(looking)
		cancel()
		if len(ids) > 0 {
			return b.killAll(ctx, ids)
		}
		if over {
			return err
		}
		if !sleep(ctx, min(wait, time.Until(deadline))) {
			return context.Cause(ctx)
		}
	}
}

func (b *birth) killAll(ctx context.Context, ids []string) (err error) {
	for _, id := range ids {
		err = errors.Join(err, b.kill(ctx, id))
	}
	return err
}

// kill kills a sandbox, in as many tries as there is time for.
func (b *birth) kill(ctx context.Context, id string) error {
	deadline := b.sent.Add(giveUp)
	for wait := lookFirst; ; wait = min(2*wait, lookMost) {
		limited, cancel := context.WithDeadline(ctx, deadline.Add(lastLook))
		err := b.c.Kill(limited, id)
		cancel()
		if err == nil {
			b.c.cfg.Logger.Warn("killed a sandbox whose creator did not wait for it", "sandbox", id)
			return nil
		}
		final := errors.Is(err, ErrAuthentication) || errors.Is(err, ErrForbidden)
		if final || !time.Now().Add(wait).Before(deadline) || !sleep(ctx, wait) {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
}

// leave tells of a sandbox that there may be.
func (b *birth) leave(err error) {
	mark := NonceKey + "=" + b.body.Metadata[NonceKey]
	b.c.cfg.Logger.Error("a sandbox may have been left behind", "metadata", mark, "error", err)
	b.c.births.leave(fmt.Sprintf("one with the metadata %s: %v", mark, err))
}

// sleep reports false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
