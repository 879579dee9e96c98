package e2b

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

const (
	// maxAnswerBytes bounds an answer of the control plane. A page of a
	// hundred sandboxes has some 100 kB, one of a thousand log entries some
	// 500 kB.
	maxAnswerBytes = 4 << 20

	defaultTimeout = 300 * time.Second // of a sandbox, as in the official SDKs
	maxRefresh     = time.Hour         // the server's limit for one refresh
)

// State says whether a sandbox runs.
type State string

// The states of a sandbox. One that was killed has none: it is gone.
const (
	Running State = "running"
	Paused  State = "paused"
)

// SandboxInfo describes a sandbox.
type SandboxInfo struct {
	ID          string            `json:"sandboxID"`
	TemplateID  string            `json:"templateID"`
	Alias       string            `json:"alias,omitempty"` // the template's name; may be empty
	EnvdVersion string            `json:"envdVersion"`     // of the daemon inside
	StartedAt   time.Time         `json:"startedAt"`
	EndAt       time.Time         `json:"endAt"` // when it is killed or paused; of a paused one, when it was
	CPU         int               `json:"cpuCount"`
	MemoryMB    int               `json:"memoryMB"`   // MiB
	DiskMB      int               `json:"diskSizeMB"` // MiB
	Metadata    map[string]string `json:"metadata,omitempty"`
	State       State             `json:"state"`

	// Network is what the sandbox may reach; zero where nothing is in its way,
	// or the server does not say. [Client.List] does not.
	Network Network `json:"network,omitzero"`

	// SeenAt is the server's time when it said this, to the second; zero where
	// it did not say. The other times are the server's, too, whose clock need
	// not be that of this machine.
	SeenAt time.Time `json:"-"`
}

// seen takes the server's time from an answer.
func (i *SandboxInfo) seen(h http.Header) {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		i.SeenAt = at
	}
}

// apiCall is one call of the control plane.
type apiCall struct {
	op     string
	method string
	path   string // escaped
	query  url.Values
	in     any // sent as JSON; nil for no body
	out    any // filled from JSON; nil when the answer says nothing
	safe   bool
	secret bool // in has secrets that an answer may quote
	ok     []int
}

// send makes a call within the client's time for one. The body of the answer
// has been read.
func (c *Client) send(ctx context.Context, call apiCall) (*http.Response, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	req, err := c.apiRequest(call)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, c.api, req)
	if err != nil {
		return nil, err
	}
	return resp, decode(call.op, resp, call.out)
}

// limit bounds one call with its retries.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	d := c.cfg.RequestTimeout
	return context.WithTimeoutCause(ctx, d, timeoutAfter("no answer", d))
}

func (c *Client) apiRequest(call apiCall) (*request, error) {
	req := &request{
		op:      call.op,
		method:  call.method,
		url:     c.cfg.APIURL + call.path,
		header:  http.Header{"X-Api-Key": {c.cfg.APIKey}, "Accept": {"application/json"}},
		safe:    call.safe,
		private: call.secret,
		ok:      call.ok,
		whole:   maxAnswerBytes,
	}
	if len(call.query) > 0 {
		req.url += "?" + call.query.Encode()
	}
	if call.in == nil {
		return req, nil
	}
	body, err := json.Marshal(call.in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", call.op, ErrInvalid, err)
	}
	req.header.Set("Content-Type", "application/json")
	req.size = int64(len(body))
	req.body = func() (io.Reader, error) { return bytes.NewReader(body), nil }
	return req, nil
}

// bounded is a list of no more than most items. It is decoded item by item:
// a list of small items would take many times its own size in memory.
type bounded[T any] struct {
	most  int
	items []T
}

func (l *bounded[T]) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	begin, err := d.Token()
	if err != nil || begin == nil { // null is an empty list
		return err
	}
	if begin != json.Delim('[') {
		return errors.New("it has no list")
	}
	l.items = []T{}
	for d.More() {
		if len(l.items) == l.most {
			return fmt.Errorf("its list has more than %d items", l.most)
		}
		var item T
		if err := d.Decode(&item); err != nil {
			return err
		}
		l.items = append(l.items, item)
	}
	return nil
}

func decode(op string, resp *http.Response, out any) error {
	defer func() { _ = resp.Body.Close() }()
	if out == nil || resp.StatusCode/100 != 2 {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s: the answer is not what E2B's API says: %w", op, err)
	}
	return nil
}

// sandboxPath is the path of a call about a sandbox.
func sandboxPath(id, rest string) (string, error) {
	if !validID(id) {
		return "", fmt.Errorf("%w: %q is not the ID of a sandbox", ErrInvalid, clip(id))
	}
	return "/sandboxes/" + id + rest, nil
}

// validID checks an ID before it becomes part of a URL or a host name:
// [a-z0-9]+, or two such with a dash, as they were once.
func validID(id string) bool {
	if len(id) > 128 {
		return false
	}
	word, words := 0, 1
	for i := range len(id) {
		switch b := id[i]; {
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9':
			word++
		case b == '-' && word > 0:
			word, words = 0, words+1
		default:
			return false
		}
	}
	return word > 0 && words <= 2
}

// aboutSandbox makes an answer "not found" about a sandbox match ErrSandboxGone.
func aboutSandbox(err error) error {
	e := (*APIError)(nil)
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		e.about, e.fix = ErrSandboxGone, "it was killed, or it reached its timeout, or it never was this account's"
	}
	return err
}

// sandboxCall makes a call about a sandbox.
func (c *Client) sandboxCall(ctx context.Context, id, rest string, call apiCall) (*http.Response, error) {
	path, err := sandboxPath(id, rest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", call.op, err)
	}
	call.path = path
	resp, err := c.send(ctx, call)
	err = aboutSandbox(err)
	if errors.Is(err, ErrSandboxGone) {
		c.admission.ended(id)
	}
	return resp, err
}

// Connect returns a sandbox that exists, and resumes it when it is paused: it
// is also what other clients call resume. The sandbox then lives for at least
// timeout from now, never shorter than before; zero means 5 minutes. A
// fraction of a second is rounded up.
//
// The error matches [ErrSandboxGone] when there is no such sandbox,
// [ErrConflict] while it is being killed, and [ErrInvalid] when the account
// may not have sandboxes that live so long.
func (c *Client) Connect(ctx context.Context, id string, timeout time.Duration) (*Sandbox, error) {
	a, err := c.connect(ctx, id, timeout)
	if err != nil {
		return nil, err
	}
	return newSandbox(c, a), nil
}

func (c *Client) connect(ctx context.Context, id string, timeout time.Duration) (a sandboxAnswer, err error) {
	const op = "connect to sandbox"
	path, err := sandboxPath(id, "/connect")
	if err != nil {
		return a, fmt.Errorf("%s: %w", op, err)
	}
	s, err := lifetime(timeout)
	if err != nil {
		return a, fmt.Errorf("%s: %w", op, err)
	}
	call := apiCall{op: op, method: http.MethodPost, in: seconds{Timeout: s}, out: &a, safe: true}
	err = c.eitherRoute(path, func(path string) error {
		call.path = path
		_, err := c.send(ctx, call)
		return err
	})
	if err != nil {
		return a, aboutSandbox(err)
	}
	c.admission.moved(id, time.Duration(s)*time.Second, false)
	return a, a.check(op)
}

// sandboxAnswer is what create and connect say of a sandbox.
type sandboxAnswer struct {
	SandboxID          string `json:"sandboxID"`
	TemplateID         string `json:"templateID"`
	Alias              string `json:"alias"`
	EnvdVersion        string `json:"envdVersion"`
	EnvdAccessToken    string `json:"envdAccessToken"`
	TrafficAccessToken string `json:"trafficAccessToken"`
	Domain             string `json:"domain"`
}

// check looks at what becomes part of host names.
func (a *sandboxAnswer) check(op string) error {
	if !validID(a.SandboxID) {
		return fmt.Errorf("%s: the answer has no usable ID of a sandbox", op)
	}
	if strings.ContainsFunc(a.Domain, func(r rune) bool {
		return r != '.' && r != '-' && r != ':' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}) {
		return fmt.Errorf("%s: the answer has no usable domain", op)
	}
	return nil
}

type seconds struct {
	Timeout int32 `json:"timeout"`
}

// eitherRoute makes a call by its path, and by the one with /v2 where the
// server has no other. A server that has both is called by the older.
func (c *Client) eitherRoute(path string, send func(path string) error) error {
	if c.v2.Load() {
		return send("/v2" + path)
	}
	first := send(path)
	if !noRoute(first) {
		return first
	}
	second := send("/v2" + path)
	switch {
	case second == nil:
		c.v2.Store(true)
	case noRoute(second), errors.Is(second, ErrInvalid):
		return first // it was no matter of the route
	}
	return second
}

func noRoute(err error) bool {
	e := (*APIError)(nil)
	if !errors.As(err, &e) {
		return false
	}
	return e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusGone
}

// wholeSeconds rounds up, as the official SDKs do: the API knows no fractions,
// and takes zero for "at once".
func wholeSeconds(d time.Duration) (int32, error) {
	s := d / time.Second
	if d%time.Second > 0 {
		s++
	}
	if d < 0 || s > math.MaxInt32 {
		return 0, fmt.Errorf("%w: a sandbox cannot have a timeout of %s", ErrInvalid, d)
	}
	return int32(s), nil
}

// lifetime is wholeSeconds with a default for zero.
func lifetime(d time.Duration) (int32, error) {
	if d == 0 {
		d = defaultTimeout
	}
	return wholeSeconds(d)
}

// Get describes a sandbox, running or paused. It does not wake a paused one.
// The error matches [ErrSandboxGone] when there is none.
func (c *Client) Get(ctx context.Context, id string) (*SandboxInfo, error) {
	var info SandboxInfo
	call := apiCall{op: "get sandbox", method: http.MethodGet, out: &info, safe: true}
	resp, err := c.sandboxCall(ctx, id, "", call)
	if err != nil {
		return nil, err
	}
	info.seen(resp.Header)
	return &info, nil
}

// Kill removes a sandbox, running or paused, with all that is in it. It is no
// error when there is none: then it is gone already.
func (c *Client) Kill(ctx context.Context, id string) error {
	// A kill that failed on E2B's side is answered by 500, and has removed
	// the sandbox from its books: the next try finds none.
	call := apiCall{op: "kill sandbox", method: http.MethodDelete, safe: true, ok: []int{http.StatusNotFound}}
	_, err := c.sandboxCall(ctx, id, "", call)
	if err == nil {
		c.admission.ended(id)
	}
	return err
}

// SetTimeout makes a running sandbox end in d from now, sooner or later than
// before. A fraction of a second is rounded up. E2B silently shortens d to
// what the account may have: [Client.Get] tells the real end. Zero is refused
// with [ErrInvalid], as it would kill: use [Client.Kill].
//
// The error matches [ErrSandboxGone] when the sandbox is gone or paused.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) error {
	const op = "set sandbox timeout"
	s, err := wholeSeconds(d)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if s == 0 {
		return fmt.Errorf("%s: %w: zero would end the sandbox at once; to do that, kill it", op, ErrInvalid)
	}
	_, err = c.sandboxCall(ctx, id, "/timeout", apiCall{op: op, method: http.MethodPost, in: seconds{Timeout: s}, safe: true})
	if err == nil {
		c.admission.moved(id, time.Duration(s)*time.Second, true)
	}
	return err
}

// Refresh makes a running sandbox live for at least d from now, and never
// shortens its life. The server raises less than 15 s to 15 s; more than an
// hour is refused with [ErrInvalid].
func (c *Client) Refresh(ctx context.Context, id string, d time.Duration) error {
	const op = "refresh sandbox"
	s, err := wholeSeconds(d)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if d > maxRefresh {
		return fmt.Errorf("%s: %w: %s is more than %s", op, ErrInvalid, d, maxRefresh)
	}
	in := struct {
		Duration int32 `json:"duration"`
	}{s}
	_, err = c.sandboxCall(ctx, id, "/refreshes", apiCall{op: op, method: http.MethodPost, in: in, safe: true})
	if err == nil {
		c.admission.moved(id, d, false)
	}
	return err
}

// Pause stops a sandbox and keeps its memory and files, until [Client.Connect]
// resumes it. It is no error when it is paused already. Connections to its
// processes are cut; the processes themselves go on when it is resumed.
//
// The error matches [ErrSandboxGone] when there is none, and [ErrConflict]
// while it is changing its state otherwise.
func (c *Client) Pause(ctx context.Context, id string) error {
	_, err := c.sandboxCall(ctx, id, "/pause", apiCall{op: "pause sandbox", method: http.MethodPost, in: struct{}{}, safe: true})
	if errors.Is(err, ErrConflict) {
		if info, seen := c.Get(ctx, id); seen == nil && info.State == Paused {
			err = nil
		}
	}
	if err == nil {
		c.admission.ended(id)
	}
	return err
}
