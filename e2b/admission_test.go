package e2b

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

// limits gives a plane the limits of an account: so many sandboxes at once, and
// one create in every.
type limits struct {
	most  int
	every time.Duration

	mu       sync.Mutex
	last     time.Time
	refusals map[string]int
	peak     int
}

func (l *limits) apply(p *plane) {
	l.refusals = make(map[string]int)
	p.create = func(w http.ResponseWriter, made func() string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch now := time.Now(); {
		case now.Sub(l.last) < l.every:
			l.refusals["rate"]++
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"code":429,"message":"Rate limit exceeded"}`)
		case l.most > 0 && p.alive() >= l.most:
			l.refusals["quota"]++
			l.last = now
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"code":429,"message":"you have reached the maximum number of concurrent sandboxes"}`)
		default:
			l.last = now
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, made())
			l.peak = max(l.peak, p.alive())
		}
	}
}

// TestAdmission makes 200 sandboxes at once on an account of 20 and one create
// a second. None may fail, whether the client knows the limits or not.
func TestAdmission(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		most map[string]int // refusals that are fine
	}{
		{"limits known", Config{MaxSandboxes: 20, CreateRate: 1, CreateWait: time.Hour}, map[string]int{}},
		{"rate known", Config{CreateRate: 1, CreateWait: time.Hour}, map[string]int{"quota": 1000}},
		{"nothing known", Config{CreateWait: time.Hour}, map[string]int{"rate": 1000, "quota": 1000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				l := &limits{most: 20, every: time.Second}
				l.apply(p)
				c := newTestClient(t, serve(t, p), func(cfg *Config) {
					cfg.MaxSandboxes, cfg.CreateRate, cfg.CreateWait = test.cfg.MaxSandboxes, test.cfg.CreateRate, test.cfg.CreateWait
				})
				var waits, admitted int
				var mu sync.Mutex
				ctx := WithClientTrace(t.Context(), &ClientTrace{Waiting: func(w Waiting) {
					mu.Lock()
					defer mu.Unlock()
					if w.Over {
						admitted++
					} else {
						waits++
					}
				}})
				begin := time.Now()
				var group errgroup.Group
				for range 200 {
					group.Go(func() error {
						s, err := c.CreateSandbox(ctx, CreateOptions{Timeout: 5 * time.Minute})
						if err != nil {
							return err
						}
						time.Sleep(30 * time.Second) // its work
						return s.Kill(ctx)
					})
				}
				if err := group.Wait(); err != nil {
					t.Error(err)
				}
				if l.peak > 20 || p.alive() != 0 {
					t.Errorf("%d ran at once, %d are left", l.peak, p.alive())
				}
				if waits < 180 || waits != admitted {
					t.Errorf("%d waits were told, and the end of %d", waits, admitted)
				}
				for why, n := range l.refusals {
					if n > test.most[why] {
						t.Errorf("%d were refused for %s", n, why)
					}
				}
				t.Logf("%s in all, refused %v", time.Since(begin).Round(time.Second), l.refusals)
			})
		})
	}
}

// TestAdmissionEnds has creates that do not get their turn.
func TestAdmissionEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		most int // of the account
		held int // sandboxes of the client
		ctx  time.Duration
		kind error
		is   []error
		took time.Duration
	}{
		{name: "slot", cfg: Config{MaxSandboxes: 1, CreateWait: time.Minute}, held: 1, kind: &TimeoutError{}, is: []error{ErrTimeout}, took: time.Minute},
		{name: "quota of this client", cfg: Config{CreateWait: time.Minute}, most: 1, held: 1, kind: &QuotaExceededError{}, is: []error{ErrQuota, ErrTimeout}, took: time.Minute},
		{name: "quota of others", cfg: Config{CreateWait: time.Minute}, most: -1, kind: &QuotaExceededError{}, is: []error{ErrQuota}},
		{name: "cancelled", cfg: Config{MaxSandboxes: 1}, held: 1, ctx: time.Second, kind: &TimeoutError{}, is: []error{context.DeadlineExceeded}, took: time.Second},
		{name: "by default", cfg: Config{MaxSandboxes: 1}, held: 1, kind: &TimeoutError{}, is: []error{ErrTimeout}, took: defaultCreateWait},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				l := &limits{most: test.most}
				l.apply(p)
				if test.most < 0 {
					l.most = 1
					p.sandboxes["others"] = nil
				}
				c := newTestClient(t, serve(t, p), func(cfg *Config) { cfg.MaxSandboxes, cfg.CreateWait = test.cfg.MaxSandboxes, test.cfg.CreateWait })
				for range test.held {
					if _, err := c.CreateSandbox(t.Context(), CreateOptions{Timeout: time.Hour}); err != nil {
						t.Fatal(err)
					}
				}
				ctx := t.Context()
				if test.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.ctx)
					defer cancel()
				}
				begin := time.Now()
				_, err := c.CreateSandbox(ctx, CreateOptions{})
				if got, want := fmt.Sprintf("%T", err), fmt.Sprintf("%T", test.kind); got != want {
					t.Errorf("error is a %s (%v), want a %s", got, err, want)
				}
				for _, is := range test.is {
					if !errors.Is(err, is) {
						t.Errorf("error %v does not match %v", err, is)
					}
				}
				if took := time.Since(begin); took.Round(time.Second) != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
			})
		})
	}
}

// TestSlotIsFreed has a create wait for the end of the one sandbox there may
// be, however that ends.
func TestSlotIsFreed(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(c *Client, s *Sandbox) error
		took time.Duration
	}{
		{"killed", func(c *Client, s *Sandbox) error { return c.Kill(context.Background(), s.ID()) }, 0},
		{"its time is over", func(*Client, *Sandbox) error { return nil }, time.Minute + endSlack},
		{"its end was moved", func(c *Client, s *Sandbox) error { return s.SetTimeout(context.Background(), 3*time.Minute) }, 3*time.Minute + endSlack},
		{"found to be gone", func(c *Client, s *Sandbox) error {
			if _, err := c.Get(context.Background(), s.ID()); !errors.Is(err, ErrSandboxGone) {
				return fmt.Errorf("Get: %w", err)
			}
			return nil
		}, 0},
		{"the client is closed", func(c *Client, _ *Sandbox) error { return c.Close() }, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				c := newTestClient(t, withTimeouts(serve(t, p)), func(cfg *Config) { cfg.MaxSandboxes = 1 })
				s, err := c.CreateSandbox(t.Context(), CreateOptions{Timeout: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				done := make(chan error)
				go func() {
					_, err := c.CreateSandbox(t.Context(), CreateOptions{})
					done <- err
				}()
				synctest.Wait()
				if err := test.end(c, s); err != nil {
					t.Error(err)
				}
				switch err := <-done; {
				case test.took < 0 && err == nil:
					t.Error("it was made by a closed client")
				case test.took >= 0 && (err != nil || time.Since(begin) != test.took):
					t.Errorf("%v after %s, want none after %s", err, time.Since(begin), test.took)
				}
			})
		})
	}
}

// withTimeouts takes what a plane does not know: the end of a sandbox is moved,
// and none is there for Get.
func withTimeouts(rt http.RoundTripper) http.RoundTripper {
	return roundTripFunc(func(req *http.Request) (*http.Response, error) {
		if req.Method == http.MethodPost && req.URL.Path != "/sandboxes" {
			return &http.Response{StatusCode: http.StatusNoContent, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
		}
		return rt.RoundTrip(req)
	})
}

// TestRetriesAreTold counts the retries of a call.
func TestRetriesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 3
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if failures--; failures >= 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, `{"sandboxID":"i1","state":"running"}`)
		})))
		var got []string
		ctx := WithClientTrace(t.Context(), &ClientTrace{Retry: func(r Retry) {
			if r.Wait <= 0 || r.Wait > retryWaitMax {
				t.Errorf("wait %s", r.Wait)
			}
			got = append(got, fmt.Sprint(r.Op, " ", r.Attempt, " ", r.Reason))
		}})
		if _, err := c.Get(ctx, "i1"); err != nil {
			t.Fatal(err)
		}
		want := []string{}
		for attempt := 2; attempt <= 4; attempt++ {
			want = append(want, fmt.Sprint("get sandbox ", attempt, " get sandbox: 503 Service Unavailable"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
