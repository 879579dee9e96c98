package remote_test

import (
	"context"
	"errors"
	"net/http"
	"path"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// verdicts are what a sweep says of each session.
func verdicts(r *remote.SweepReport) map[string]string {
	out := make(map[string]string)
	for _, s := range r.Sandboxes {
		switch {
		case s.Killed:
			out[s.SessionID] = "killed"
		case s.Err != nil:
			out[s.SessionID] = "not killed"
		case s.Orphan:
			out[s.SessionID] = "orphan"
		default:
			out[s.SessionID] = "left"
		}
	}
	return out
}

// A sweep kills what has no owner, running or paused, and nothing else, whatever
// the clocks say.
func TestSweep(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{0, -30 * time.Hour, 30 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			c := newCloud(t, mock.WithClock(func() time.Time { return time.Now().Add(skew) }))
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			defer running.Wait()
			defer cancel()
			run := func(a *remote.E2BTransparentProxy, id string) {
				running.Go(func() { _, _, _ = remote.Run(ctx, a, sleep(time.Hour), newContext(t, id)) })
			}
			// An hour of heartbeats is most of the time that this takes.
			cfg := remote.Config{Timeout: 2 * time.Hour, Heartbeat: time.Minute}
			living, _ := c.proxy(cfg)
			run(living, "living")
			waits, _ := c.proxy(cfg)
			ec := newContext(t, "waits-for-collect")
			p, err := waits.Prepare(t.Context(), sleep(10*time.Minute), ec)
			if err != nil {
				t.Fatal(err)
			}
			running.Go(func() {
				if _, err := waits.Execute(ctx, p, ec); err != nil {
					t.Error(err)
				}
			})
			paused, pausedNet := c.proxy(remote.Config{Timeout: 2 * time.Hour, Heartbeat: time.Minute, OnHostLoss: remote.Pause})
			run(paused, "paused")
			time.Sleep(5 * time.Minute)
			pausedNet.die()
			time.Sleep(5 * time.Minute) // and some, and it is paused; the other waits for Collect
			dead, deadNet := c.proxy(cfg)
			run(dead, "dead")
			time.Sleep(time.Minute)
			deadNet.die()
			time.Sleep(3 * time.Minute)
			strangers(t, c)

			sweeper, n := c.proxy(cfg)
			run(sweeper, "own")
			synctest.Wait()
			sweep := func(o remote.SweepOptions, want map[string]string) {
				t.Helper()
				report, err := sweeper.Sweep(t.Context(), o)
				if err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(want, verdicts(report)); diff != "" {
					t.Errorf("%+v: -want +got:\n%s\n%s", o, diff, report)
				}
			}
			all := map[string]string{"living": "left", "waits-for-collect": "left", "paused": "orphan", "dead": "orphan", "own": "left"}
			sweep(remote.SweepOptions{DryRun: true}, all)
			sweep(remote.SweepOptions{OlderThan: time.Hour}, map[string]string{"living": "left", "waits-for-collect": "left", "paused": "left", "dead": "left", "own": "left"})

			// Of two orphans one cannot be killed.
			refuse := func(req *http.Request) bool {
				return req.Method == http.MethodDelete && req.URL.Path == idOf(c, "paused")
			}
			n.lose.Store(&refuse)
			report, err := sweeper.Sweep(t.Context(), remote.SweepOptions{})
			if !errors.Is(err, errNetwork) || verdicts(report)["paused"] != "not killed" || verdicts(report)["dead"] != "killed" || report.Killed() != 1 {
				t.Errorf("sweep: %v\n%s", err, report)
			}
			n.lose.Store(nil)
			delete(all, "dead")
			all["paused"] = "killed"
			sweep(remote.SweepOptions{}, all)
			delete(all, "paused")
			sweep(remote.SweepOptions{}, all)
			if _, err := waits.Collect(t.Context(), p, ec); err != nil {
				t.Errorf("Collect after the sweep: %v", err)
			}
			for _, s := range c.server.Alive() {
				if s.Metadata["who"] == "stranger" {
					if err := c.server.Kill(s.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// idOf is the path of a session's sandbox.
func idOf(c *cloud, session string) string {
	for _, s := range c.server.Sandboxes() {
		if s.Metadata["osiris_session"] == session {
			return "/sandboxes/" + s.ID
		}
	}
	return ""
}

// strangers makes sandboxes of the account that are none of this library's.
func strangers(t *testing.T, c *cloud) {
	t.Helper()
	tr := c.net.transport()
	defer tr.CloseIdleConnections()
	client, err := e2b.NewClient(e2b.Config{APIKey: c.server.APIKey(), APIURL: c.server.URL(), SandboxURL: c.server.URL(), Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, library := range []string{"", "another"} {
		_, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{Timeout: time.Hour, Metadata: map[string]string{"who": "stranger", "osiris_library": library}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An adapter whose sandboxes are not E2B's has nothing to sweep.
func TestSweepRefused(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	if _, err := a.(*remote.E2BTransparentProxy).Sweep(t.Context(), remote.SweepOptions{}); !errors.Is(err, remote.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		b, n := c.proxy(remote.Config{})
		if _, err := b.Sweep(t.Context(), remote.SweepOptions{OlderThan: -1}); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
		n.die()
		if _, err := b.Sweep(t.Context(), remote.SweepOptions{}); !errors.Is(err, errNetwork) {
			t.Errorf("got %v, want that of the network", err)
		}
	})
}

// What a sweep has seen paused may have been taken over while it waited to look
// again at others.
func TestSweepLooksAgainAtPaused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		run := func(id string, how remote.OnHostLoss) *hostNet {
			a, net := c.proxy(remote.Config{Timeout: 2 * time.Hour, OnHostLoss: how})
			running.Go(func() { _, _, _ = remote.Run(ctx, a, sleep(time.Hour), newContext(t, id)) })
			time.Sleep(time.Minute)
			return net
		}
		run("paused", remote.Pause).die()
		run("paused-for-good", remote.Pause).die()
		time.Sleep(5 * time.Minute)
		run("dead", remote.Kill).die()
		time.Sleep(3 * time.Minute)

		tr := c.net.transport()
		defer tr.CloseIdleConnections()
		heir, err := e2b.NewClient(e2b.Config{APIKey: c.server.APIKey(), APIURL: c.server.URL(), SandboxURL: c.server.URL(), Transport: tr})
		if err != nil {
			t.Fatal(err)
		}
		defer heir.Close()
		sweeper, _ := c.proxy(remote.Config{})
		running.Go(func() {
			time.Sleep(time.Second) // the sweep looks again after more
			if _, err := heir.Connect(t.Context(), path.Base(idOf(c, "paused")), 5*time.Minute); err != nil {
				t.Error(err)
			}
		})
		report, err := sweeper.Sweep(t.Context(), remote.SweepOptions{})
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(map[string]string{"paused": "left", "paused-for-good": "killed", "dead": "killed"}, verdicts(report)); diff != "" {
			t.Errorf("-want +got:\n%s\n%s", diff, report)
		}
		if err := heir.Kill(t.Context(), path.Base(idOf(c, "paused"))); err != nil {
			t.Error(err)
		}
	})
}
