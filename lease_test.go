package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// cloud is E2B in memory, for runs on a fake clock.
type cloud struct {
	t      *testing.T
	net    *pipes
	server *mock.Server
}

// newCloud starts a cloud whose workers have a driver that sleeps.
func newCloud(t *testing.T, opts ...mock.ServerOption) *cloud {
	t.Helper()
	c := &cloud{t: t, net: newPipes()}
	opts = append([]mock.ServerOption{mock.WithListener(c.net), mock.WithOptions(mock.Options{Drivers: sleepers()})}, opts...)
	var err error
	if c.server, err = mock.NewServer(opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if alive := c.server.Alive(); len(alive) > 0 {
			t.Errorf("%d sandboxes are left", len(alive))
		}
		if err := c.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func sleepers() *worker.Registry {
	r := worker.NewRegistry()
	r.Register("test.sleep", worker.Transform, func() worker.Driver {
		return driverFunc(func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			var config struct{ Seconds int }
			if err := s.DecodeConfig(&config); err != nil {
				return nil, err
			}
			select {
			case <-time.After(time.Duration(config.Seconds) * time.Second):
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	})
	return r
}

func sleep(d time.Duration) *remote.Manifest {
	return &remote.Manifest{Steps: []remote.Step{{ID: "sleep", Driver: "test.sleep", Config: map[string]any{"seconds": int(d / time.Second)}}}}
}

// proxy returns an adapter of a host, and the host's network.
func (c *cloud) proxy(cfg remote.Config) (*remote.E2BTransparentProxy, *hostNet) {
	c.t.Helper()
	n := &hostNet{tr: c.net.transport()}
	n.tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := c.net.dial(ctx, network, addr)
		n.mu.Lock()
		defer n.mu.Unlock()
		if err == nil {
			n.conns = append(n.conns, conn)
		}
		return conn, err
	}
	client, err := e2b.NewClient(e2b.Config{
		APIKey: c.server.APIKey(), APIURL: c.server.URL(), SandboxURL: c.server.URL(), Transport: n,
		MaxSandboxes: cfg.MaxSandboxes, CreateRate: cfg.CreateRate, CreateWait: cfg.CreateWait,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if cfg.Drivers == nil {
		cfg.Drivers = sleepers()
	}
	cfg.WorkerPath = "testdata/worker.txt"
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 10 * time.Second
	}
	a := remote.NewProxyOf(client, cfg)
	c.t.Cleanup(func() {
		n.dead.Store(false)
		if err := a.Close(); err != nil {
			c.t.Error(err)
		}
		n.tr.CloseIdleConnections()
	})
	return a, n
}

// hostNet is a host's network, which may die, or lose requests that lose
// chooses.
type hostNet struct {
	tr   *http.Transport
	dead atomic.Bool
	lose atomic.Pointer[func(*http.Request) bool]

	mu       sync.Mutex
	conns    []net.Conn
	timeouts []time.Duration // when ends were moved
	start    time.Time
}

// die ends the host, as far as others see.
func (n *hostNet) die() {
	n.dead.Store(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.conns {
		conn.Close()
	}
}

func (n *hostNet) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.URL.Path, "/timeout") {
		n.mu.Lock()
		if n.start.IsZero() {
			n.start = time.Now()
		}
		n.timeouts = append(n.timeouts, time.Since(n.start).Round(time.Second))
		n.mu.Unlock()
	}
	if lose := n.lose.Load(); n.dead.Load() || lose != nil && (*lose)(req) {
		return nil, errNetwork
	}
	return n.tr.RoundTrip(req)
}

// A sandbox has never more than a lease left while its run goes on, and never
// less than two thirds.
func TestLeaseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		a, n := c.proxy(remote.Config{Timeout: time.Hour, Lease: time.Minute})
		ec := newContext(t, "s")
		p, err := a.Prepare(t.Context(), sleep(10*time.Minute), ec)
		if err != nil {
			t.Fatal(err)
		}
		var watching sync.WaitGroup
		done := make(chan struct{})
		stop := sync.OnceFunc(func() { close(done); watching.Wait() })
		defer stop()
		watching.Go(func() {
			for range 10*60 - 1 { // when the step ends, it soon gets time for Collect
				select {
				case <-done:
					return
				case <-time.After(time.Second):
				}
				for _, s := range c.server.Alive() {
					if left := time.Until(s.EndAt); left < 39*time.Second || left > time.Minute {
						t.Errorf("it has %s left", left)
					}
				}
			}
		})
		result, err := a.Execute(t.Context(), p, ec)
		if err != nil {
			t.Fatal(err)
		}
		stop()
		agree(t, ec, result, err)
		// The account's limit is asked for, the end taken back, and renewed.
		want := []time.Duration{0, 0}
		for d := 20 * time.Second; d <= 10*time.Minute; d += 20 * time.Second {
			want = append(want, d)
		}
		if got := n.timeouts; len(got) < 30 || len(got) > len(want)+1 {
			t.Errorf("ends were moved at %s", got)
		}
		time.Sleep(5 * time.Minute) // nobody renews
		if _, err := a.Collect(t.Context(), p, ec); err != nil {
			t.Error(err)
		}
	})
}

// A host that stood still renews its lease at once: by its own clock there is
// more time left than there is.
func TestLeaseOfHostThatStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		a, _ := c.proxy(remote.Config{})
		held, err := remote.Hold(t.Context(), a, remote.SandboxConfig{TimeoutSeconds: 60})
		if err != nil {
			t.Fatal(err)
		}
		defer held.Drop()
		ends := func() time.Time { return c.server.Alive()[0].EndAt }
		before := ends()
		time.Sleep(20 * time.Second) // a renewal is not due for long
		held.Hurry()
		synctest.Wait()
		if got := ends().Sub(before); got < 19*time.Second {
			t.Errorf("its end has moved by %s", got)
		}
		if err := c.server.Kill(c.server.Alive()[0].ID); err != nil {
			t.Error(err)
		}
	})
}

// The account is asked for its limit once for each length of run.
func TestLifeIsCheckedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		a, _ := c.proxy(remote.Config{Timeout: time.Hour})
		count := func() (n int) {
			for _, r := range c.server.Requests() {
				if r.Procedure == "POST /sandboxes/{sandboxID}/timeout" {
					n++
				}
			}
			return n
		}
		var got []int
		for i := range 3 {
			before := count()
			if _, _, err := remote.Run(t.Context(), a, sleep(time.Second), newContext(t, fmt.Sprint("s", i))); err != nil {
				t.Fatal(err)
			}
			got = append(got, count()-before)
		}
		// There and back, and the time for Collect.
		if diff := cmp.Diff([]int{3, 1, 1}, got); diff != "" {
			t.Errorf("changes of the end: -want +got:\n%s", diff)
		}
	})
}

// What a host that dies leaves costs one lease: it is killed, or paused when it
// was made so.
func TestHostDies(t *testing.T) {
	for _, test := range []struct {
		cfg  remote.Config
		want []mock.State
	}{
		{remote.Config{Lease: time.Minute}, []mock.State{mock.StateExpired}},
		{remote.Config{Lease: time.Minute, OnHostLoss: remote.Kill}, []mock.State{mock.StateExpired}},
		{remote.Config{Lease: time.Minute, OnHostLoss: remote.Pause}, []mock.State{mock.StatePaused}},
		{remote.Config{}, []mock.State{mock.StateRunning}},
	} {
		t.Run(fmt.Sprint(test.cfg.Lease, test.cfg.OnHostLoss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				test.cfg.Timeout = 10 * time.Hour
				a, n := c.proxy(test.cfg)
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { _, _, _ = remote.Run(ctx, a, sleep(time.Hour), newContext(t, "s")) })
				time.Sleep(20 * time.Minute)
				n.die()
				time.Sleep(time.Minute)
				c.states(test.want...)
				cancel()
				running.Wait()
				other, _ := c.proxy(remote.Config{})
				time.Sleep(5 * time.Minute)
				if _, err := other.Sweep(t.Context(), remote.SweepOptions{}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func (c *cloud) states(want ...mock.State) {
	c.t.Helper()
	var got []mock.State
	for _, s := range c.server.Sandboxes() {
		got = append(got, s.State)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Errorf("states -want +got:\n%s", diff)
	}
}

// Renewals that fail are tried again; only a lease that is in danger, or lost,
// is an event, and the run says of what it died.
func TestLeaseInDanger(t *testing.T) {
	for _, test := range []struct {
		name   string
		outage time.Duration
		want   []string // events
		gone   bool
	}{
		{"short", 10 * time.Second, nil, false},
		{"long", 50 * time.Second, []string{"lease_in_danger"}, false},
		{"too long", 2 * time.Minute, []string{"lease_in_danger", "lease_lost"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				a, n := c.proxy(remote.Config{Timeout: time.Hour, Lease: time.Minute})
				begin := time.Now()
				outage := func(req *http.Request) bool {
					at := time.Since(begin)
					return strings.HasSuffix(req.URL.Path, "/timeout") && at > 2*time.Minute && at < 2*time.Minute+test.outage
				}
				n.lose.Store(&outage)
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, sleep(5*time.Minute), ec)
				agree(t, ec, result, err)
				if test.gone != errors.Is(err, remote.ErrSandboxGone) || test.gone != (err != nil) {
					t.Errorf("the run ended with %v", err)
				}
				if test.gone {
					contains(t, err.Error(), "its lease was over")
				}
				var got []string
				for _, e := range events(t, ec, "") {
					if name, _ := e["event"].(string); strings.HasPrefix(name, "lease_") {
						got = append(got, name)
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("events -want +got:\n%s", diff)
				}
			})
		})
	}
}

// Many runs at once, two hundred with full counts, on an account that has room for 20 sandboxes and
// makes one a second queue up, and none fails.
func TestManyRunsQueueUp(t *testing.T) {
	t.Parallel()
	runs := 30
	if stressed() {
		runs = 200
	}
	for name, cfg := range map[string]remote.Config{
		"limits known":   {MaxSandboxes: 20, CreateRate: 1},
		"limits unknown": {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t, mock.WithConcurrency(20), mock.WithCreateRate(1, 1))
				cfg.Timeout, cfg.CreateWait = time.Hour, time.Hour
				a, _ := c.proxy(cfg)
				var group errgroup.Group
				contexts := make([]*remote.ExecutionContext, runs)
				for i := range contexts {
					ec := newContext(t, fmt.Sprint("s", i))
					contexts[i] = ec
					group.Go(func() error {
						_, _, err := remote.Run(t.Context(), a, sleep(30*time.Second), ec)
						return err
					})
				}
				if err := group.Wait(); err != nil {
					t.Error(err)
				}
				waited, admitted := 0, 0
				for _, ec := range contexts {
					waited += min(1, len(events(t, ec, "sandbox_waiting")))
					admitted += min(1, len(events(t, ec, "sandbox_admitted")))
				}
				if waited < runs-20 || waited != admitted {
					t.Errorf("%d runs say that they waited, and %d that it ended", waited, admitted)
				}
				refused := 0
				for _, r := range c.server.Requests() {
					if r.Status == http.StatusTooManyRequests {
						refused++
					}
				}
				if refused > 0 && cfg.MaxSandboxes > 0 {
					t.Errorf("%d requests were refused", refused)
				}
			})
		})
	}
}

// A run whose turn does not come says so.
func TestRunIsNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		a, _ := c.proxy(remote.Config{MaxSandboxes: 1, CreateWait: time.Minute, Timeout: time.Hour})
		var first sync.WaitGroup
		first.Go(func() {
			if _, _, err := remote.Run(t.Context(), a, sleep(10*time.Minute), newContext(t, "first")); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ec := newContext(t, "second")
		result, _, err := remote.Run(t.Context(), a, sleep(time.Second), ec)
		agree(t, ec, result, err)
		if !errors.Is(err, remote.ErrTimeout) || !errors.As(err, new(*remote.TimeoutError)) {
			t.Errorf("got %v, want a TimeoutError", err)
		}
		waiting := events(t, ec, "sandbox_waiting")
		if len(waiting) != 1 || waiting[0]["reason"] != "max_sandboxes" || waiting[0]["in_use"] != 1.0 || waiting[0]["position"] != 1.0 {
			t.Errorf("events of waiting: %v", waiting)
		}
		first.Wait()
	})
}

// What is tried again is in the session of the run it was for.
func TestRetriesAreEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		a, n := c.proxy(remote.Config{})
		var lost atomic.Int64
		lose := func(req *http.Request) bool {
			return req.Method == http.MethodGet && strings.HasPrefix(req.URL.Path, "/sandboxes/") && lost.Add(1) <= 2
		}
		n.lose.Store(&lose)
		ec := newContext(t, "s")
		if _, _, err := remote.Run(t.Context(), a, sleep(time.Second), ec); err != nil {
			t.Fatal(err)
		}
		got := events(t, ec, "retry")
		if len(got) != 2 || got[0]["op"] != "get sandbox" || got[0]["attempt"] != 2.0 || got[1]["attempt"] != 3.0 || got[0]["reason"] != errNetwork.Error() {
			for _, e := range got {
				t.Errorf("event: %v", e)
			}
		}
	})
}

// A prepared run has the lease and the choice for its host's death where they
// are not the default, so that it runs the same elsewhere.
func TestLeaseIsPrepared(t *testing.T) {
	for _, test := range []struct {
		cfg  remote.Config
		want remote.SandboxConfig
	}{
		{remote.Config{}, remote.SandboxConfig{}},
		{remote.Config{Lease: 5 * time.Minute, OnHostLoss: remote.Kill}, remote.SandboxConfig{}},
		{remote.Config{Lease: 90500 * time.Millisecond, OnHostLoss: remote.Pause}, remote.SandboxConfig{LeaseSeconds: 91, OnHostLoss: remote.Pause}},
	} {
		a, _ := newAdapter(t, "proxy", test.cfg, nil)
		p, err := a.Prepare(t.Context(), join(), newContext(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		got := remote.SandboxConfig{LeaseSeconds: p.SandboxConfig.LeaseSeconds, OnHostLoss: p.SandboxConfig.OnHostLoss}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%+v: -want +got:\n%s", test.cfg, diff)
		}
	}
	for _, cfg := range []remote.Config{
		{Lease: time.Second}, {Lease: -time.Second}, {Lease: 1 << 62}, {OnHostLoss: "forget"}, {MaxSandboxes: -1}, {CreateRate: -1}, {CreateWait: -1},
	} {
		if _, err := remote.NewE2BTransparentProxy(cfg); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", cfg, err)
		}
	}
}
