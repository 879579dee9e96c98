package e2b

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	testKey   = "e2b_0123456789abcdef"
	testToken = "feedfacefeedface"
)

// memory is a transport that calls a handler, so that tests can run on a fake
// clock. As over a network, a handler goes on when its caller has gone.
type memory struct {
	http.Handler
	handlers sync.WaitGroup
}

// serve returns a transport to a handler that ends with the test.
func serve(t *testing.T, h http.Handler) *memory {
	m := &memory{Handler: h}
	t.Cleanup(m.handlers.Wait)
	return m
}

func (m *memory) RoundTrip(req *http.Request) (*http.Response, error) {
	served := req.Clone(context.WithoutCancel(req.Context()))
	served.Body = http.NoBody
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		served.Body = io.NopCloser(bytes.NewReader(body))
	}
	answer := make(chan *http.Response, 1)
	m.handlers.Go(func() {
		defer func() {
			if p := recover(); p == http.ErrAbortHandler {
				answer <- nil
			} else if p != nil {
				panic(p)
			}
		}()
		rec := httptest.NewRecorder()
		m.ServeHTTP(rec, served)
		answer <- rec.Result()
	})
	select {
	case resp := <-answer:
		if resp == nil {
			return nil, io.ErrUnexpectedEOF
		}
		return resp, nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

// roundTripFunc is a transport.
type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// newTestClient returns a client of a transport.
func newTestClient(t *testing.T, rt http.RoundTripper, edit ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{APIKey: testKey, APIURL: "http://api.test", Transport: rt}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestStatus(t *testing.T) {
	tests := []struct {
		name   string
		status int
		header string // Retry-After
		body   string
		want   error
		text   string // in the error
	}{
		{"bad request", 400, "", `{"code":400,"message":"no such field"}`, ErrInvalid, "no such field"},
		{"too large", 413, "", `{"code":413,"message":"m"}`, ErrInvalid, "413"},
		{"key", 401, "", `{"code":401,"message":"Invalid API key"}`, ErrAuthentication, "E2B_API_KEY"},
		{"token", 401, "", `{"code":401,"message":"invalid access token"}`, ErrAuthentication, "connect to the sandbox again"},
		{"forbidden", 403, "", `{"code":403,"message":"blocked"}`, ErrForbidden, "blocked"},
		{"not found", 404, "", `{"code":404,"message":"m"}`, ErrNotFound, "404 Not Found: m"},
		{"handler's time", 408, "", `{"code":408,"message":"m"}`, ErrTimeout, "408"},
		{"conflict", 409, "", `{"code":409,"message":"m"}`, ErrConflict, "409"},
		{"throttle", 429, "", "slow down\x00 please", ErrRateLimit, "slow down  please"},
		{"not there", 501, "", `{"code":501,"message":"m"}`, ErrUnsupported, "501"},
		{"gone", 502, "", `{"sandboxId":"i1","message":"not found","code":502}`, ErrSandboxGone, "not found"},
		{"port", 502, "", `{"sandboxId":"i1","message":"closed","port":49983,"code":502}`, ErrPortClosed, "closed"},
		{"capacity", 503, "", `{"code":503,"message":"m","error_code":"sandbox_capacity_unavailable"}`, ErrCapacity, "503"},
		{"late", 504, "", `{"code":504,"message":"m"}`, ErrTimeout, "504"},
		{"disk", 507, "", `{"code":507,"message":"m"}`, ErrDiskFull, "larger disk"},
		{"a page", 403, "", "<html><b>no</b></html>", ErrForbidden, "403 Forbidden"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			resp := &http.Response{
				StatusCode: test.status,
				Body:       io.NopCloser(strings.NewReader(test.body)),
				Request:    httptest.NewRequest("GET", "http://h/a/b?secret=1", nil),
			}
			if test.name == "token" {
				resp.Request.Header.Set("E2b-Sandbox-Id", "i1")
			}
			err := answerError("do it", resp)
			e := (*APIError)(nil)
			if !errors.Is(err, test.want) || !errors.As(err, &e) {
				t.Fatalf("error %v does not match %v", err, test.want)
			}
			if e.Op != "do it" || e.Method != "GET" || e.Path != "/a/b" || e.Status != test.status {
				t.Errorf("error is %+v", e)
			}
			if !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "<") {
				t.Errorf("error says %q, want %q in it", err, test.text)
			}
		})
	}
}

func TestStatusWithoutSentinel(t *testing.T) {
	for status, body := range map[int]string{
		500: `{"code":500,"message":"m"}`,
		502: `{"code":502,"message":"the API's own"}`,
		503: `{"code":503,"message":"m","error_code":"sandbox_no_compatible_node"}`,
		302: ``,
	} {
		err := answerError("do it", &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body))})
		e := (*APIError)(nil)
		if !errors.As(err, &e) || e.Unwrap() != nil {
			t.Errorf("%d: %#v has a sentinel", status, err)
		}
	}
}

func FuzzAnswerError(f *testing.F) {
	f.Add(502, []byte(`{"sandboxId":"i1","port":1,"code":502,"message":"m"}`), "1")
	f.Add(503, []byte(`{"code":"unavailable","message":"\u0000\ud800"}`), "Fri, 31 Dec 1999 23:59:59 GMT")
	f.Add(429, []byte("\xff\xfe<"), "99999999999999999999")
	f.Fuzz(func(t *testing.T, status int, body []byte, after string) {
		resp := &http.Response{
			StatusCode: status,
			Header:     http.Header{"Retry-After": {after}},
			Body:       io.NopCloser(bytes.NewReader(body)),
		}
		e := (*APIError)(nil)
		if err := answerError("op", resp); !errors.As(err, &e) {
			t.Fatalf("%v is no APIError", err)
		}
		if e.RetryAfter < 0 || len(e.Message) > maxMessageBytes+3 || !utf8.ValidString(e.Error()) || strings.ContainsAny(e.Error(), "\n\x00") {
			t.Errorf("error is %q, retry after %s", e.Error(), e.RetryAfter)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"0":                             time.Millisecond,
		"-1":                            0,
		"1.5":                           0,
		"soon":                          0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": time.Millisecond,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("Retry-After %q is %s, want %s", value, got, want)
		}
	}
}

// noAnswer stands for a connection that ends without an answer.
const noAnswer = 0

// noConnection stands for a connection that cannot be made.
const noConnection = -1

func TestRetries(t *testing.T) {
	const (
		capacity = `{"code":503,"message":"m","error_code":"sandbox_capacity_unavailable"}`
		gone     = `{"sandboxId":"i1","message":"m","code":502}`
		port     = `{"sandboxId":"i1","message":"m","port":1,"code":502}`
	)
	tests := []struct {
		name         string
		status       int
		after, body  string
		safe, unsafe int // requests that are made; the last one, if more than one, gets 200
	}{
		{"no connection", noConnection, "", "", 2, 2},
		{"cut", noAnswer, "", "", 2, 1},
		{"fault", 500, "", `{"code":500,"message":"m"}`, 2, 1},
		{"bad gateway", 502, "", "text", 2, 1},
		{"port", 502, "", port, 2, 1},
		{"gone", 502, "", gone, 1, 1},
		{"unavailable", 503, "", "text", 2, 1},
		{"unavailable, later", 503, "1", "text", 2, 1},
		{"capacity", 503, "", capacity, 2, 2},
		{"late", 504, "", "text", 2, 1},
		{"quota", 429, "", `{"code":429,"message":"m"}`, 1, 1},
		{"rate", 429, "2", "text", 2, 2},
		{"rate, too long", 429, "61", "text", 1, 1},
		{"bad request", 400, "", "text", 1, 1},
		{"not found", 404, "1", "text", 1, 1},
		{"conflict", 409, "", "text", 1, 1},
		{"redirection", 307, "", "text", 1, 1},
	}
	for _, test := range tests {
		for _, safe := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/safe=%t", test.name, safe), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var bodies []string
					var times []time.Time
					c := newTestClient(t, roundTripFunc(func(req *http.Request) (*http.Response, error) {
						times = append(times, time.Now())
						if test.status == noConnection && len(times) == 1 {
							return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
						}
						body, err := io.ReadAll(req.Body)
						bodies = append(bodies, string(body))
						if err != nil {
							return nil, err
						}
						if test.status == noAnswer && len(times) == 1 {
							return nil, io.ErrUnexpectedEOF
						}
						resp := &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}
						if len(times) == 1 && test.status > 0 {
							resp.StatusCode = test.status
							resp.Header.Set("Retry-After", test.after)
							resp.Header.Set("Location", "http://elsewhere.test/")
							resp.Body = io.NopCloser(strings.NewReader(test.body))
						}
						return resp, nil
					}))
					want := test.unsafe
					if safe {
						want = test.safe
					}
					err := ask(t.Context(), c, &request{
						op: "ask", method: "POST", url: "http://api.test/x", safe: safe,
						body: func() (io.Reader, error) { return strings.NewReader("body"), nil }, size: 4,
					})
					if len(times) != want || (err == nil) != (want == 2) {
						t.Fatalf("%d requests, error %v; want %d requests", len(times), err, want)
					}
					for _, b := range bodies {
						if b != "body" {
							t.Errorf("the body was %q", b)
						}
					}
					if want == 2 {
						checkWait(t, times[1].Sub(times[0]), test.after)
					}
				})
			})
		}
	}
}

func checkWait(t *testing.T, got time.Duration, after string) {
	t.Helper()
	if after == "" {
		if got < retryWaitMin/2 || got > retryWaitMin {
			t.Errorf("waited %s, want about %s", got, retryWaitMin)
		}
		return
	}
	if want := retryAfter(http.Header{"Retry-After": {after}}, time.Now()); got != want {
		t.Errorf("waited %s, want %s", got, want)
	}
}

// ask makes a request and reads its answer.
func ask(ctx context.Context, c *Client, req *request) error {
	resp, err := c.do(ctx, c.api, req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

func TestRetriesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			requests++
			http.Error(w, "still busy", http.StatusServiceUnavailable)
		})), func(cfg *Config) { cfg.Retries = 7 })
		_, err := c.Get(t.Context(), "i1")
		if e := (*APIError)(nil); !errors.As(err, &e) || e.Message != "still busy" || requests != 8 {
			t.Errorf("%d requests, error %v; want 8 and the last answer", requests, err)
		}
	})
}

func TestNoRetries(t *testing.T) {
	requests := 0
	c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests++
		w.WriteHeader(http.StatusServiceUnavailable)
	})), func(cfg *Config) { cfg.Retries = -1 })
	if _, err := c.Get(t.Context(), "i1"); err == nil || requests != 1 {
		t.Errorf("%d requests, error %v; want one", requests, err)
	}
}

// The time for a call holds for all its tries and waits.
func TestRequestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(8 * time.Second)
			http.Error(w, "busy", http.StatusServiceUnavailable)
		})), func(cfg *Config) { cfg.RequestTimeout = 10 * time.Second })
		_, err := c.Get(t.Context(), "i1")
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "busy") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v; want ErrTimeout and what the first try met", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestCallerGivesUpWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		})))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := c.Get(ctx, "i1")
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrRateLimit) || time.Since(start) != time.Second {
			t.Errorf("error %v after %s; want both reasons after 1 s", err, time.Since(start))
		}
	})
}

// A wait that the caller's deadline does not allow is not begun.
func TestRetryAfterBeyondDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		})))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.Get(ctx, "i1")
		e := (*APIError)(nil)
		if !errors.As(err, &e) || e.RetryAfter != 30*time.Second || time.Since(start) != 0 {
			t.Errorf("error %v after %s; want the refusal at once", err, time.Since(start))
		}
	})
}

// Real connections that are cut: the answer's absence, and its half.
func TestCutConnection(t *testing.T) {
	for name, written := range map[string]string{
		"no answer":   "",
		"half answer": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"sandboxID\":",
	} {
		t.Run(name, func(t *testing.T) {
			requests := make(chan string, 10)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests <- r.Method
				if len(requests) > 1 {
					fmt.Fprint(w, `{"sandboxID":"i1"}`)
					return
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(conn, written)
				_ = conn.Close()
			}))
			defer server.Close()
			c := newTestClient(t, nil, func(cfg *Config) { cfg.APIURL = server.URL })
			info, err := c.Get(t.Context(), "i1")
			if err != nil || info.ID != "i1" || len(requests) != 2 {
				t.Errorf("get: %v, error %v, %d requests; want it repeated", info, err, len(requests))
			}
			for len(requests) > 0 {
				<-requests
			}
			_, err = c.CreateSnapshot(t.Context(), "i1", "")
			if e := (*sendError)(nil); !errors.As(err, &e) || !e.sent || len(requests) != 1 {
				t.Errorf("snapshot: error %v, %d requests; want one", err, len(requests))
			}
		})
	}
}

func TestNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	c := newTestClient(t, nil, func(cfg *Config) { cfg.APIURL = "http://" + address; cfg.Retries = 1 })
	_, err = c.CreateSnapshot(t.Context(), "i1", "")
	if e := (*sendError)(nil); !errors.As(err, &e) || e.sent {
		t.Errorf("error %v; want one that says that nothing was sent", err)
	}
	if !strings.Contains(err.Error(), "check the network") {
		t.Errorf("error %q does not say what to do", err)
	}
}

// A certificate that is not trusted stays so.
func TestBadCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	var connections atomic.Int64
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.StartTLS()
	defer server.Close()
	c := newTestClient(t, nil, func(cfg *Config) { cfg.APIURL = server.URL })
	if _, err := c.Get(t.Context(), "i1"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v", err)
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
}

func TestBodyOnce(t *testing.T) {
	for _, test := range []struct {
		name     string
		dialFail bool
		requests int
	}{{"no connection", true, 2}, {"read", false, 1}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				requests := 0
				c := newTestClient(t, roundTripFunc(func(req *http.Request) (*http.Response, error) {
					requests++
					if requests == 1 && test.dialFail {
						_ = req.Body.Close()
						return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
					}
					if b, err := io.ReadAll(req.Body); string(b) != "once" || err != nil {
						t.Errorf("body %q, %v", b, err)
					}
					if requests == 1 {
						return nil, io.ErrUnexpectedEOF
					}
					return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
				}))
				r := strings.NewReader("once")
				err := ask(t.Context(), c, &request{
					op: "send", method: "PUT", url: "http://api.test/x", safe: true, once: true, size: -1,
					body: func() (io.Reader, error) { return r, nil },
				})
				if requests != test.requests || (err == nil) != test.dialFail {
					t.Errorf("%d requests, error %v", requests, err)
				}
			})
		})
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// A body that cannot be read is the caller's to mend.
func TestBodyFails(t *testing.T) {
	broken := errors.New("disk on fire")
	requests := 0
	c := newTestClient(t, roundTripFunc(func(req *http.Request) (*http.Response, error) {
		requests++
		_, err := io.ReadAll(req.Body)
		return nil, err
	}))
	for name, body := range map[string]func() (io.Reader, error){
		"made": func() (io.Reader, error) { return nil, broken },
		"read": func() (io.Reader, error) { return failingReader{broken}, nil },
	} {
		err := ask(t.Context(), c, &request{op: "send", method: "PUT", url: "http://api.test/x", safe: true, size: 9, body: body})
		if !errors.Is(err, broken) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if requests != 1 {
		t.Errorf("%d requests, want one", requests)
	}
}

func TestEmptyBody(t *testing.T) {
	got := make(chan int64, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.ContentLength }))
	defer server.Close()
	c := newTestClient(t, nil)
	err := ask(t.Context(), c, &request{op: "send", method: "POST", url: server.URL, body: func() (io.Reader, error) { return strings.NewReader(""), nil }})
	if length := <-got; err != nil || length != 0 {
		t.Errorf("length %d, error %v; want 0, as -1 is a body in chunks", length, err)
	}
}

// slowly gives a byte at a time.
type slowly struct {
	left  int
	pause time.Duration
}

func (b *slowly) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	b.left--
	time.Sleep(b.pause)
	p[0] = 'x'
	return 1, nil
}

// stalledBody gives nothing until its request has ended.
type stalledBody struct{ ctx context.Context }

func (b stalledBody) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (b stalledBody) Close() error { return nil }

// The idle limit is the network's alone: a slow source and a slow reader are
// the caller's business.
func TestIdle(t *testing.T) {
	tests := []struct {
		name    string
		network time.Duration // for every byte
		caller  time.Duration
		stalls  bool // no answer's body at all
		fails   bool
		took    time.Duration
	}{
		{name: "slow network", network: 50 * time.Second, took: 1000 * time.Second},
		{name: "slow caller", caller: 90 * time.Second, took: 1800 * time.Second},
		{name: "stalled answer", network: time.Second, stalls: true, fails: true, took: 10*time.Second + transferIdle},
		{name: "stalled network", network: 61 * time.Second, fails: true, took: transferIdle},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestClient(t, roundTripFunc(func(req *http.Request) (*http.Response, error) {
					for range 10 {
						if _, err := req.Body.Read(make([]byte, 1)); err != nil {
							return nil, err
						}
						if !sleep(req.Context(), test.network) {
							return nil, req.Context().Err()
						}
					}
					if test.stalls {
						return &http.Response{StatusCode: 200, Body: stalledBody{req.Context()}}, nil
					}
					return &http.Response{StatusCode: 200, Body: io.NopCloser(&slowly{10, test.network})}, nil
				}))
				start := time.Now()
				resp, err := c.do(t.Context(), c.files, &request{
					op: "send", method: "POST", url: "http://api.test/x", size: 10, once: true, idle: transferIdle,
					body: func() (io.Reader, error) { return &slowly{10, test.caller}, nil },
				})
				for n := 0; err == nil; time.Sleep(time.Duration(n) * test.caller) {
					n, err = resp.Body.Read(make([]byte, 1))
				}
				if resp != nil {
					_ = resp.Body.Close()
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
				if !test.fails && err != io.EOF {
					t.Errorf("error %v", err)
				}
				if test.fails && (!errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "no byte within 1m0s")) {
					t.Errorf("error %v; want a stall", err)
				}
			})
		})
	}
}

// No redirection is followed: the key would go with it.
func TestRedirection(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the request went elsewhere, with the key %q", r.Header.Get("X-API-Key"))
	}))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	c := newTestClient(t, nil, func(cfg *Config) { cfg.APIURL = server.URL })
	_, err := c.Get(t.Context(), "i1")
	if e := (*APIError)(nil); !errors.As(err, &e) || e.Status != 307 {
		t.Errorf("error %v", err)
	}
}

func TestLongAnswer(t *testing.T) {
	c := newTestClient(t, roundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"alias":"`), endless{}))}, nil
	}))
	if _, err := c.Get(t.Context(), "i1"); err == nil || !strings.Contains(err.Error(), fmt.Sprint("longer than ", maxAnswerBytes)) {
		t.Errorf("error %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestHeaders(t *testing.T) {
	var got http.Header
	c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		fmt.Fprint(w, "{}")
	})), func(cfg *Config) { cfg.UserAgent = "mine/2" })
	if _, err := c.Get(t.Context(), "i1"); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"User-Agent": {"mine/2 " + agent}, "X-Api-Key": {testKey}, "Accept": {"application/json"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Neither the log nor an error shows what is secret, whatever the server says.
func TestNoSecrets(t *testing.T) {
	var log bytes.Buffer
	fail := true
	c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "POST" && fail:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"code":401,"message":"the key %s is unknown"}`, r.Header.Get("X-API-Key"))
		case r.Method == "POST":
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"sandboxID":"i1","envdVersion":"0.6.0","envdAccessToken":%q,"trafficAccessToken":%q}`, testToken, testToken)
		default:
			fmt.Fprint(w, `[]`)
		}
	})), func(cfg *Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	ctx := t.Context()
	_, err := c.CreateSandbox(ctx, CreateOptions{EnvVars: map[string]string{"PASSWORD": testToken}})
	fail = false
	if _, err := c.CreateSandbox(ctx, CreateOptions{EnvVars: map[string]string{"PASSWORD": testToken}}); err != nil {
		t.Fatal(err)
	}
	for _, err := range c.List(ctx, ListOptions{Metadata: map[string]string{"secret": testToken}}) {
		t.Error(err)
	}
	all := fmt.Sprintf("%s %v %+v %#v %s %+v %#v", log.String(), err, c, c, c.cfg, c.cfg, c.cfg)
	for _, secret := range []string{testKey, testToken} {
		if strings.Contains(all, secret) {
			t.Errorf("%s is in %s", secret, all)
		}
	}
	for _, want := range []string{"method=POST", "path=/sandboxes", "status=201", "path=/v2/sandboxes", "took="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s: %s", want, log.String())
		}
	}
	if !strings.Contains(fmt.Sprint(err), "the key [secret] is unknown") {
		t.Errorf("error %v", err)
	}
}

func TestDebugVariable(t *testing.T) {
	t.Setenv("E2B_DEBUG", "true")
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	c := newTestClient(t, serve(t, http.NotFoundHandler()))
	_ = c.Kill(t.Context(), "i1")
	if !strings.Contains(log.String(), "level=INFO") || !strings.Contains(log.String(), "path=/sandboxes/i1") {
		t.Errorf("the log is %q", log.String())
	}
}
