package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// plane is a control plane with as much as a create needs.
type plane struct {
	t *testing.T

	mu        sync.Mutex
	create    func(w http.ResponseWriter, made func() string) // answers a create; made makes the sandbox
	version   string
	domain    string
	kills     bool // a kill fails
	connects  bool // a connect fails
	onlyNew   bool // there is no POST /sandboxes
	sandboxes map[string]map[string]string
	bodies    []map[string]any
	requests  []string
}

func newPlane(t *testing.T) *plane {
	return &plane{
		t: t, version: "0.6.13", sandboxes: map[string]map[string]string{},
		create: func(w http.ResponseWriter, made func() string) {
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, made())
		},
	}
}

func (p *plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests = append(p.requests, r.Method+" "+r.URL.Path)
	p.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v2")
	if r.Method == http.MethodPost && p.onlyNew && path == r.URL.Path {
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
		return
	}
	id, rest, _ := strings.Cut(strings.TrimPrefix(path, "/sandboxes/"), "/")
	switch {
	case r.Method == http.MethodPost && path == "/sandboxes":
		p.serveCreate(w, r)
	case r.Method == http.MethodGet && r.URL.Path == "/v2/sandboxes":
		p.serveList(w, r)
	case r.Method == http.MethodPost && rest == "connect":
		p.serveConnect(w, id)
	case r.Method == http.MethodDelete:
		p.serveKill(w, id)
	default:
		http.NotFound(w, r)
	}
}

func (p *plane) serveCreate(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		p.t.Error(err)
	}
	metadata := map[string]string{}
	for k, v := range body["metadata"].(map[string]any) {
		metadata[k] = v.(string)
	}
	p.mu.Lock()
	p.bodies = append(p.bodies, body)
	id := fmt.Sprintf("i%d", len(p.bodies))
	p.mu.Unlock()
	p.create(w, func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sandboxes[id] = metadata
		return p.answer(id)
	})
}

func (p *plane) answer(id string) string {
	return fmt.Sprintf(`{"sandboxID":%q,"templateID":"t1","clientID":"6532622b","envdVersion":%q,"envdAccessToken":%q,"domain":%q}`,
		id, p.version, testToken, p.domain)
}

func (p *plane) serveList(w http.ResponseWriter, r *http.Request) {
	want := p.decodeFilter(r.URL.Query().Get("metadata"))
	list := []SandboxInfo{}
	p.mu.Lock()
	defer p.mu.Unlock()
next:
	for id, metadata := range p.sandboxes {
		for k, v := range want {
			if metadata[k] != v {
				continue next
			}
		}
		list = append(list, SandboxInfo{ID: id, Metadata: metadata, State: Running})
	}
	_ = json.NewEncoder(w).Encode(list)
}

// decodeFilter undoes what is left after the query's own decoding as the
// server does: the whole first, then every part.
func (p *plane) decodeFilter(s string) map[string]string {
	s, err := url.QueryUnescape(s)
	if err != nil {
		p.t.Error(err)
	}
	m := map[string]string{}
	for pair := range strings.SplitSeq(s, "&") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		k, err1 := url.QueryUnescape(k)
		v, err2 := url.QueryUnescape(v)
		if err := errors.Join(err1, err2); err != nil {
			p.t.Error(err)
		}
		m[k] = v
	}
	return m
}

func (p *plane) serveConnect(w http.ResponseWriter, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.connects:
		w.WriteHeader(http.StatusConflict)
	case p.sandboxes[id] == nil:
		w.WriteHeader(http.StatusNotFound)
	default:
		_, _ = io.WriteString(w, p.answer(id))
	}
}

func (p *plane) serveKill(w http.ResponseWriter, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kills {
		http.Error(w, `{"code":403,"message":"no"}`, http.StatusForbidden)
		return
	}
	if p.sandboxes[id] == nil {
		w.WriteHeader(http.StatusNotFound)
	} else {
		w.WriteHeader(http.StatusNoContent)
	}
	delete(p.sandboxes, id)
}

func (p *plane) alive() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sandboxes)
}

func (p *plane) count(request string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.requests {
		if r == request {
			n++
		}
	}
	return n
}

func TestCreateBody(t *testing.T) {
	tests := []struct {
		name string
		o    CreateOptions
		want map[string]any
	}{
		{"default", CreateOptions{}, map[string]any{
			"templateID": "base", "timeout": 300.0, "secure": true, "allow_internet_access": true,
		}},
		{"all", CreateOptions{
			Template: "ns/t:v1", Timeout: 1500 * time.Millisecond, Insecure: true, NoInternet: true, AutoPause: true, AutoResume: true,
			EnvVars: map[string]string{"A": "b"}, Network: Network{AllowOut: []string{"example.com"}, DenyOut: []string{AllTraffic}},
		}, map[string]any{
			"templateID": "ns/t:v1", "timeout": 2.0, "secure": false, "allow_internet_access": false,
			"autoPause": true, "autoResume": map[string]any{"enabled": true}, "envVars": map[string]any{"A": "b"},
			"network": map[string]any{"allowOut": []any{"example.com"}, "denyOut": []any{"0.0.0.0/0"}},
		}},
		{"private", CreateOptions{PrivateTraffic: true, Network: Network{DenyOut: []string{AllTraffic}}}, map[string]any{
			"templateID": "base", "timeout": 300.0, "secure": true, "allow_internet_access": true,
			"network": map[string]any{"allowPublicTraffic": false, "denyOut": []any{"0.0.0.0/0"}},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPlane(t)
			c := newTestClient(t, serve(t, p))
			s, err := c.CreateSandbox(t.Context(), test.o)
			if err != nil {
				t.Fatal(err)
			}
			if s.ID() != "i1" || s.TemplateID() != "t1" || s.EnvdVersion() != "0.6.13" {
				t.Errorf("sandbox %s of %s with %s", s.ID(), s.TemplateID(), s.EnvdVersion())
			}
			nonce := p.bodies[0]["metadata"].(map[string]any)[NonceKey].(string)
			if !regexp.MustCompile("^[0-9a-f]{32}$").MatchString(nonce) {
				t.Errorf("nonce %q", nonce)
			}
			delete(p.bodies[0], "metadata")
			if diff := cmp.Diff(test.want, p.bodies[0]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCreateMetadata(t *testing.T) {
	p := newPlane(t)
	c := newTestClient(t, serve(t, p))
	own := map[string]string{"run": "7"}
	for range 2 {
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{Metadata: own}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CreateSandbox(t.Context(), CreateOptions{Metadata: map[string]string{NonceKey: "mine"}}); err != nil {
		t.Fatal(err)
	}
	if len(own) != 1 {
		t.Errorf("the caller's metadata became %v", own)
	}
	a, b := p.sandboxes["i1"], p.sandboxes["i2"]
	if a["run"] != "7" || a[NonceKey] == "" || a[NonceKey] == b[NonceKey] || p.sandboxes["i3"][NonceKey] != "mine" {
		t.Errorf("metadata %v", p.sandboxes)
	}
}

func TestCreateRefused(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		kind   error // the type, see below
		is     []error
		text   string
	}{
		{"quota", 429, `{"code":429,"message":"you have 20"}`, &QuotaExceededError{}, []error{ErrQuota}, "E2B quota exceeded: quota exceeded: 429 Too Many Requests: you have 20; kill"},
		{"throttled", 429, "slow down", &TimeoutError{}, []error{ErrRateLimit, ErrTimeout}, "slow down"},
		{"no template", 404, `{"code":404,"message":"template 'nope' not found"}`, &SandboxError{}, []error{ErrTemplate, ErrNotFound}, `"nope"`},
		{"template of others", 403, `{"code":403,"message":"Team does not have access to the template"}`, &SandboxError{}, []error{ErrTemplate, ErrForbidden}, "e2b template list"},
		{"blocked", 403, `{"code":403,"message":"team is blocked"}`, &SandboxError{}, []error{ErrForbidden}, "blocked"},
		{"timeout too long", 400, `{"code":400,"message":"Timeout cannot be greater than 1 hours"}`, &SandboxError{}, []error{ErrInvalid}, "greater than 1 hours"},
		{"key", 401, `{"code":401,"message":"m"}`, &SandboxError{}, []error{ErrAuthentication}, "check E2B_API_KEY"},
		{"no node", 503, `{"code":503,"message":"m","error_code":"sandbox_no_compatible_node"}`, &SandboxError{}, nil, "503"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPlane(t)
			p.create = func(w http.ResponseWriter, _ func() string) {
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			}
			c := newTestClient(t, serve(t, p), func(cfg *Config) { cfg.CreateWait = 50 * time.Millisecond })
			_, err := c.CreateSandbox(t.Context(), CreateOptions{Template: "nope"})
			if got, want := fmt.Sprintf("%T", err), fmt.Sprintf("%T", test.kind); got != want {
				t.Errorf("error is a %s, want a %s", got, want)
			}
			for _, is := range test.is {
				if !errors.Is(err, is) {
					t.Errorf("error %v does not match %v", err, is)
				}
			}
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v lacks %q", err, test.text)
			}
			if n := p.count("GET /v2/sandboxes"); n != 0 {
				t.Errorf("it was looked for %d times", n)
			}
		})
	}
}

func TestCreateInvalid(t *testing.T) {
	p := newPlane(t)
	c := newTestClient(t, serve(t, p))
	for _, o := range []CreateOptions{
		{Timeout: -time.Second},
		{PrivateTraffic: true, Insecure: true},
		{Network: Network{AllowOut: []string{"example.com"}}},
	} {
		_, err := c.CreateSandbox(t.Context(), o)
		if e := (*SandboxError)(nil); !errors.As(err, &e) || !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v", err)
		}
	}
	if len(p.bodies) != 0 {
		t.Errorf("sent %v", p.bodies)
	}
}

// A create that E2B refused for a moment is repeated.
func TestCreateAfterCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		create := p.create
		p.create = func(w http.ResponseWriter, made func() string) {
			if len(p.bodies) < 3 {
				http.Error(w, `{"code":503,"message":"m","error_code":"sandbox_capacity_unavailable"}`, http.StatusServiceUnavailable)
				return
			}
			create(w, made)
		}
		c := newTestClient(t, serve(t, p))
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{}); err != nil || p.alive() != 1 {
			t.Errorf("error %v, %d sandboxes", err, p.alive())
		}
	})
}

func TestCreateByNewRoute(t *testing.T) {
	p := newPlane(t)
	p.onlyNew = true
	c := newTestClient(t, serve(t, p))
	for range 2 {
		s, err := c.CreateSandbox(t.Context(), CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Connect(t.Context(), s.ID(), time.Minute); err != nil {
			t.Error(err)
		}
	}
	if _, ok := p.bodies[0]["secure"]; ok {
		t.Error("the newer route knows no field secure")
	}
	want := []string{"POST /sandboxes", "POST /v2/sandboxes", "POST /v2/sandboxes/i1/connect", "POST /v2/sandboxes", "POST /v2/sandboxes/i2/connect"}
	if diff := cmp.Diff(want, p.requests); diff != "" {
		t.Error(diff)
	}
	_, err := c.CreateSandbox(t.Context(), CreateOptions{Insecure: true})
	if !errors.Is(err, ErrUnsupported) || p.alive() != 2 {
		t.Errorf("insecure: error %v", err)
	}
}

// A template that is not there makes no other route known, whatever an old
// server answers on it.
func TestCreateByOldRoute(t *testing.T) {
	for _, status := range []int{400, 404, 405, 410} {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/sandboxes" {
				http.Error(w, `{"code":404,"message":"no such template"}`, http.StatusNotFound)
				return
			}
			w.WriteHeader(status)
		})))
		_, err := c.CreateSandbox(t.Context(), CreateOptions{})
		if !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), "no such template") || c.v2.Load() {
			t.Errorf("%d: error %v", status, err)
		}
	}
}

func TestCreateOldDaemon(t *testing.T) {
	p := newPlane(t)
	p.version = "0.0.9"
	c := newTestClient(t, serve(t, p))
	_, err := c.CreateSandbox(t.Context(), CreateOptions{Template: "old"})
	if !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), `"old" has version 0.0.9`) || p.alive() != 0 {
		t.Errorf("error %v, %d sandboxes", err, p.alive())
	}
}

func TestCreateHostileAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.domain = "evil.test/?"
		c := newTestClient(t, serve(t, p))
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{}); err == nil || !strings.Contains(err.Error(), "domain") {
			t.Errorf("error %v", err)
		}
		if err := c.Close(); err != nil || p.alive() != 0 {
			t.Errorf("close: %v, %d sandboxes", err, p.alive())
		}
	})
}

// What becomes of creates whose answer does not come, or comes too late. None
// may leave a sandbox that nobody knows of, and none may be sent twice.
func TestCreateLost(t *testing.T) {
	const never = time.Hour
	made := func(after time.Duration) func(http.ResponseWriter, func() string) { // made after the connection is cut
		return func(w http.ResponseWriter, made func() string) {
			if after != never {
				time.AfterFunc(after, func() { made() })
			}
			panic(http.ErrAbortHandler)
		}
	}
	refused := func(status int, body string, make bool) func(http.ResponseWriter, func() string) {
		return func(w http.ResponseWriter, made func() string) {
			if make {
				made()
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	answered := func(after time.Duration) func(http.ResponseWriter, func() string) {
		return func(w http.ResponseWriter, made func() string) {
			time.Sleep(after)
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, made())
		}
	}
	failed := `{"code":500,"message":"m","error_code":"sandbox_create_failed"}`
	tests := []struct {
		name   string
		create func(http.ResponseWriter, func() string)
		cancel time.Duration // of the caller's context; 0 never
		plane  func(*plane)

		adopted  bool
		is       error
		returned time.Duration // at most after
		closed   time.Duration // at most after
		looks    bool
	}{
		{name: "cut, made", create: made(0), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "cut, made soon", create: made(5 * time.Second), adopted: true, returned: 9 * time.Second, closed: 9 * time.Second, looks: true},
		{name: "cut, made late", create: made(70 * time.Second), is: io.ErrUnexpectedEOF, returned: adoptWithin, closed: giveUp, looks: true},
		{name: "cut, never made", create: made(never), is: io.ErrUnexpectedEOF, returned: adoptWithin, closed: giveUp, looks: true},
		{name: "cut, cannot be adopted", create: made(0), plane: func(p *plane) { p.connects = true }, is: io.ErrUnexpectedEOF, returned: time.Second, closed: time.Second, looks: true},
		{name: "failed", create: refused(500, failed, false), returned: time.Second, closed: giveUp, looks: true},
		{name: "failed, made", create: refused(500, failed, true), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "gateway, made", create: refused(504, "text", true), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "handler's time, made", create: refused(408, `{"code":408,"message":"m"}`, true), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "nonsense, made", create: refused(201, "nonsense", true), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "half, made", create: refused(201, `{"sandboxID":"../x"}`, true), adopted: true, returned: time.Second, closed: time.Second, looks: true},
		{name: "cancelled, answered", create: answered(3 * time.Second), cancel: time.Second, is: context.Canceled, returned: time.Second, closed: 3 * time.Second},
		{name: "cancelled, refused", create: func(w http.ResponseWriter, _ func() string) {
			time.Sleep(3 * time.Second)
			w.WriteHeader(http.StatusTooManyRequests)
		}, cancel: time.Second, is: context.Canceled, returned: time.Second, closed: 3 * time.Second},
		{name: "cancelled, cut, made late", create: func(w http.ResponseWriter, m func() string) {
			time.Sleep(3 * time.Second)
			made(60*time.Second)(w, m)
		}, cancel: time.Second, is: context.Canceled, returned: time.Second, closed: giveUp, looks: true},
		{name: "cancelled, never answered", create: func(_ http.ResponseWriter, m func() string) {
			time.Sleep(75 * time.Second)
			m()
			time.Sleep(time.Hour)
		}, cancel: time.Second, is: context.Canceled, returned: time.Second, closed: giveUp + time.Second, looks: true},
		{name: "too slow", create: answered(65 * time.Second), is: ErrTimeout, returned: 60 * time.Second, closed: 65 * time.Second},
		{name: "cancelled before it is repeated", create: func(w http.ResponseWriter, _ func() string) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(http.StatusTooManyRequests)
		}, cancel: time.Second, is: context.Canceled, returned: time.Second, closed: time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				p.create = test.create
				if test.plane != nil {
					test.plane(p)
				}
				c := newTestClient(t, serve(t, p))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.cancel > 0 {
					time.AfterFunc(test.cancel, cancel)
				}
				start := time.Now()
				s, err := c.CreateSandbox(ctx, CreateOptions{})
				if took := time.Since(start); took > test.returned {
					t.Errorf("it returned after %s, want %s", took, test.returned)
				}
				if (s != nil) != test.adopted || (err == nil) != test.adopted || test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("got %v, error %v", s, err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > test.closed {
					t.Errorf("it was closed after %s, want %s", took, test.closed)
				}
				want := 0
				if test.adopted {
					want = 1
				}
				if p.alive() != want || len(p.bodies) != 1 {
					t.Errorf("%d sandboxes of %d creates, want %d of one", p.alive(), len(p.bodies), want)
				}
				if looks := p.count("GET /v2/sandboxes"); (looks > 0) != test.looks || looks > 20 {
					t.Errorf("it was looked for %d times", looks)
				}
				time.Sleep(2 * time.Hour) // nothing shows later
				if p.alive() != want {
					t.Errorf("%d sandboxes in the end", p.alive())
				}
			})
		})
	}
}

func TestCreateTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		create := p.create
		p.create = func(w http.ResponseWriter, made func() string) {
			time.Sleep(10 * time.Second)
			create(w, made)
		}
		c := newTestClient(t, serve(t, p), func(cfg *Config) { cfg.RequestTimeout = time.Second })
		_, err := c.CreateSandbox(t.Context(), CreateOptions{})
		e := (*TimeoutError)(nil)
		if !errors.As(err, &e) || !errors.Is(err, ErrTimeout) || !strings.HasPrefix(err.Error(), "Sandbox creation timeout: ") {
			t.Errorf("error %v", err)
		}
		if !e.Timeout() {
			t.Error("it is no time-out as net.Error has it")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		_, err = c.CreateSandbox(ctx, CreateOptions{})
		if !errors.As(err, &e) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// What another process has asked for, and did not live to hear of, is killed
// whenever it appears; Close waits for it, and no longer than it can come.
func TestAbandon(t *testing.T) {
	for _, test := range []struct {
		name  string
		asked time.Duration // before it is abandoned
		after time.Duration // until it appears; negative means never
		wait  time.Duration // of Close, at most
	}{
		{"there already", time.Minute, 0, 0},
		{"late", time.Second, 20 * time.Second, 40 * time.Second},
		{"never", 30 * time.Second, -1, 50 * time.Second},
		{"long ago", time.Hour, -1, 0},
		{"there since long", time.Hour, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				c, err := NewClient(Config{APIKey: testKey, APIURL: "http://api.test", Transport: serve(t, p)})
				if err != nil {
					t.Fatal(err)
				}
				appear := func() {
					p.mu.Lock()
					defer p.mu.Unlock()
					p.sandboxes["mine"] = map[string]string{NonceKey: "n1"}
				}
				p.mu.Lock()
				p.sandboxes["other"] = map[string]string{NonceKey: "n2"}
				p.mu.Unlock()
				switch {
				case test.after == 0:
					appear()
				case test.after > 0:
					time.AfterFunc(test.after, appear)
				}
				start := time.Now()
				if err := c.Abandon("n1", start.Add(-test.asked)); err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > test.wait {
					t.Errorf("closing took %s", took)
				}
				if n := p.alive(); n != 1 {
					t.Errorf("%d sandboxes are alive, want the other one", n)
				}
				if err := c.Abandon("n1", start); !errors.Is(err, net.ErrClosed) {
					t.Errorf("abandon after Close: %v", err)
				}
			})
		})
	}
}

// Shutdown does not wait, and tells what it leaves.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.create = func(http.ResponseWriter, func() string) { time.Sleep(time.Hour) }
		c, err := NewClient(Config{APIKey: testKey, APIURL: "http://api.test", Transport: serve(t, p)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := c.CreateSandbox(ctx, CreateOptions{Metadata: map[string]string{NonceKey: "n1"}}); !errors.Is(err, context.Canceled) {
			t.Errorf("create: %v", err)
		}
		start := time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := c.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), NonceKey+"=n1") {
			t.Errorf("shutdown: %v", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("create after it: %v", err)
		}
	})
}

// Shutdown stops a create that is still waited for.
func TestShutdownWhileCreating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.create = func(http.ResponseWriter, func() string) { time.Sleep(time.Hour) }
		c, err := NewClient(Config{APIKey: testKey, APIURL: "http://api.test", Transport: serve(t, p)})
		if err != nil {
			t.Fatal(err)
		}
		created := make(chan error)
		go func() {
			_, err := c.CreateSandbox(t.Context(), CreateOptions{})
			created <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		go func() {
			if err := c.Shutdown(ctx); err == nil || time.Since(start) != time.Second {
				t.Errorf("shutdown: %v after %s", err, time.Since(start))
			}
			created <- nil
		}()
		if err := errors.Join(<-created, <-created); !errors.Is(err, context.Canceled) {
			t.Errorf("create: %v", err)
		}
	})
}

// Over a real connection, too, the answer that comes too late is used.
func TestCreateCancelledOverNetwork(t *testing.T) {
	p := newPlane(t)
	sent, over := make(chan struct{}), make(chan struct{})
	create := p.create
	p.create = func(w http.ResponseWriter, made func() string) {
		close(sent)
		<-over
		create(w, made)
	}
	server := httptest.NewServer(p)
	defer server.Close()
	c := newTestClient(t, nil, func(cfg *Config) { cfg.APIURL = server.URL })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-sent; cancel() }()
	if _, err := c.CreateSandbox(ctx, CreateOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(over)
	if err := c.Close(); err != nil || p.alive() != 0 {
		t.Errorf("close: %v, %d sandboxes", err, p.alive())
	}
	want := []string{"POST /sandboxes", "DELETE /sandboxes/i1"}
	if diff := cmp.Diff(want, p.requests); diff != "" {
		t.Error(diff)
	}
}

// A sandbox that cannot be killed is named.
func TestCloseTellsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.version, p.kills = "0.0.1", true
		c, err := NewClient(Config{APIKey: testKey, APIURL: "http://api.test", Transport: serve(t, p)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{}); !errors.Is(err, ErrTemplate) {
			t.Errorf("create: %v", err)
		}
		if err := c.Close(); err == nil || !strings.Contains(err.Error(), "i1: kill sandbox: not allowed") {
			t.Errorf("close: %v", err)
		}
	})
}

// When the caller leaves before there is a connection, nothing was sent.
func TestCreateCancelledWhileDialling(t *testing.T) {
	dialling, over, dialled := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c := newTestClient(t, &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		close(dialling)
		defer close(dialled)
		<-over
		return nil, errors.New("over")
	}})
	defer func() { close(over); <-dialled }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dialling; cancel() }()
	if _, err := c.CreateSandbox(ctx, CreateOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	start := time.Now()
	if err := c.Close(); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("close: %v after %s", err, time.Since(start))
	}
}

// A create whose sandbox cannot be killed at once is killed later.
func TestLostSandboxIsKilledAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		create := p.create
		p.create = func(w http.ResponseWriter, made func() string) {
			time.Sleep(2 * time.Second)
			create(w, made)
		}
		start := time.Now()
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodDelete && time.Since(start) < 30*time.Second {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			p.ServeHTTP(w, r)
		})))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.CreateSandbox(ctx, CreateOptions{}); !errors.Is(err, ErrTimeout) {
			t.Errorf("create: %v", err)
		}
		if err := c.Close(); err != nil || p.alive() != 0 {
			t.Errorf("close: %v, %d sandboxes", err, p.alive())
		}
		if took := time.Since(start); took > 45*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// Close does not wait for a list without an end.
func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pages atomic.Int64
		c, err := NewClient(Config{APIKey: testKey, APIURL: "http://api.test", Transport: serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				panic(http.ErrAbortHandler)
			}
			time.Sleep(20 * time.Second)
			w.Header().Set("X-Next-Token", fmt.Sprint(pages.Add(1)))
			_, _ = io.WriteString(w, "[]")
		}))})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.CreateSandbox(t.Context(), CreateOptions{}); err == nil {
			t.Error("create succeeds")
		}
		if err := c.Close(); err == nil {
			t.Error("close does not tell that there may be a sandbox")
		}
		if took := time.Since(start); took > giveUp+2*lastLook {
			t.Errorf("it took %s", took)
		}
	})
}

// What is not E2B's API is not waited for, and named.
func TestCreateElsewhere(t *testing.T) {
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		want   []string
	}{
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://api.example.com/x?y=z", http.StatusMovedPermanently)
		}, []string{"301", "it redirects to https://api.example.com; set E2B_API_URL"}},
		{"another server", http.NotFound, []string{"404", "this is not what E2B's API says; check E2B_API_URL"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c := newTestClient(t, serve(t, test.handle))
				_, err := c.CreateSandbox(t.Context(), CreateOptions{})
				for _, want := range test.want {
					if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrTemplate) {
						t.Errorf("error %v, want %q in it", err, want)
					}
				}
				if err := c.Close(); err != nil || time.Since(start) > time.Second {
					t.Errorf("close: %v after %s", err, time.Since(start))
				}
			})
		})
	}
}
