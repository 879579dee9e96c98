package remote_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

var modelSeed = flag.Uint64("model-seed", 0, "run this one schedule of TestLeaseModel")

// TestLeaseModel runs random schedules of hosts that make sandboxes, lose
// answers, lose their network, are late to collect, and die, while others pause,
// resume, expire and sweep. No sweep kills a sandbox whose owner lives, and in
// the end nothing is alive that no lease or owner accounts for.
//
// Time and network are in memory. A schedule is its seed:
//
//	go test -run TestLeaseModel -model-seed SEED .
func TestLeaseModel(t *testing.T) {
	t.Parallel()
	if *modelSeed != 0 {
		synctest.Test(t, func(t *testing.T) { newModel(t, *modelSeed).run() })
		return
	}
	schedules := uint64(20)
	if stressed() {
		schedules = 10_000
	}
	first := rand.Uint64()>>16 + 1
	t.Logf("schedules from %d on", first)
	total := make(map[string]int)
	// All that can happen has happened: chance may take more schedules for it.
	all := func() bool {
		for _, what := range []string{"create", "lost", "crash", "pause", "resume", "expire", "sweep", "swept", "kill", "release", "collect", "partition"} {
			if total[what] == 0 {
				return false
			}
		}
		return true
	}
	for i := uint64(0); i < schedules || !all(); i++ {
		if i > 1000*schedules {
			t.Fatalf("%d schedules did not have all that can happen: %v", i, total)
		}
		synctest.Test(t, func(t *testing.T) {
			m := newModel(t, first+i)
			m.run()
			for what, n := range m.did {
				total[what] += n
			}
		})
		if t.Failed() {
			t.Fatalf("replay: go test -run TestLeaseModel -model-seed %d .", first+i)
		}
	}
	t.Logf("in all: %v", total)
}

type model struct {
	t       *testing.T
	r       *rand.Rand
	net     *pipes
	server  *mock.Server
	out     *e2b.Client // of somebody else who has the key
	outNet  *http.Transport
	hosts   []*host
	known   map[string]*held // by ID
	late    sync.WaitGroup   // requests that arrive late
	sweeps  sync.WaitGroup
	history []string
	did     map[string]int

	mu sync.Mutex // guards did and history, which sweeps write
}

// host is a program that uses the library.
type host struct {
	m      *model
	name   string
	tr     *http.Transport
	client *e2b.Client
	a      *remote.E2BTransparentProxy
	held   []*held

	mu   sync.Mutex
	dead bool
	deaf time.Time // without network until then
	next string    // what happens to the next create
}

// held is a sandbox that a host has, or had.
type held struct {
	*remote.Held
	cfg    remote.SandboxConfig
	host   *host
	owned  time.Time // from when on it shows that its owner lives; zero: it has none
	until  time.Time // until when; zero: as long as the host lives
	paused bool      // by somebody else
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 0)), net: newPipes(), known: make(map[string]*held), did: make(map[string]int)}
	skew := time.Duration(m.r.IntN(7)-3) * 11 * time.Hour
	var err error
	m.server, err = mock.NewServer(mock.WithListener(m.net), mock.WithClock(func() time.Time { return time.Now().Add(skew) }))
	if err != nil {
		t.Fatal(err)
	}
	m.outNet = m.net.transport()
	m.out = m.client(m.outNet)
	return m
}

func (m *model) client(rt http.RoundTripper) *e2b.Client {
	c, err := e2b.NewClient(e2b.Config{APIKey: m.server.APIKey(), APIURL: m.server.URL(), SandboxURL: m.server.URL(), Transport: rt})
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func (m *model) note(what, format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did[what]++
	m.history = append(m.history, what+" "+fmt.Sprintf(format, args...))
}

func (m *model) failf(format string, args ...any) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t.Errorf("%s\nafter:\n  %s", fmt.Sprintf(format, args...), strings.Join(m.history, "\n  "))
}

func (m *model) newHost() *host {
	h := &host{m: m, name: fmt.Sprint("host ", len(m.hosts)), tr: m.net.transport()}
	h.client = m.client(h)
	h.a = remote.NewProxyOf(h.client, remote.Config{})
	m.hosts = append(m.hosts, h)
	return h
}

var errNetwork = errors.New("the network is gone")

// RoundTrip is the host's network.
func (h *host) RoundTrip(req *http.Request) (*http.Response, error) {
	h.mu.Lock()
	fails := h.dead || time.Now().Before(h.deaf)
	fate := ""
	if req.Method == http.MethodPost && req.URL.Path == "/sandboxes" && !fails {
		fate, h.next = h.next, ""
	}
	h.mu.Unlock()
	if fails {
		return nil, errNetwork
	}
	switch fate {
	case "never":
		return nil, errNetwork
	case "late":
		body, _ := io.ReadAll(req.Body)
		again := req.Clone(context.WithoutCancel(req.Context()))
		again.Body = io.NopCloser(strings.NewReader(string(body)))
		delay := time.Duration(h.m.r.Int64N(int64(70 * time.Second))) // the schedule waits for this create, so that r has one user
		h.m.late.Go(func() {
			time.Sleep(delay)
			if resp, err := h.tr.RoundTrip(again); err == nil {
				resp.Body.Close()
			}
		})
		return nil, errNetwork
	}
	resp, err := h.tr.RoundTrip(req)
	if fate == "lost" && err == nil {
		resp.Body.Close()
		return nil, errNetwork
	}
	return resp, err
}

func (m *model) run() {
	t := m.t
	defer func() {
		m.outNet.CloseIdleConnections()
		for _, h := range m.hosts {
			h.tr.CloseIdleConnections()
		}
		if err := m.server.Close(); err != nil {
			t.Error(err)
		}
	}()
	for range 5 + m.r.IntN(25) {
		m.step()
		if t.Failed() {
			break
		}
	}
	m.sweeps.Wait()
	m.accountFor()
	for _, h := range m.hosts {
		if h.dead {
			continue
		}
		if m.r.IntN(2) == 0 {
			m.crash(h)
			continue
		}
		for _, s := range slices.Clone(h.held) {
			m.kill(s)
		}
		if err := h.client.Close(); err != nil { // it waits for lost creates
			m.note("close", "%s: %v", h.name, err)
		}
	}
	m.late.Wait()
	m.wait(20 * time.Minute)
	for _, s := range m.server.Alive() {
		if s.State == mock.StateRunning {
			m.failf("%s runs until %s, and nobody has it", s.ID, s.EndAt)
		}
	}
	sweeper := remote.NewProxyOf(m.out, remote.Config{})
	if _, err := sweeper.Sweep(t.Context(), remote.SweepOptions{}); err != nil {
		m.failf("sweep: %v", err)
	}
	if alive := m.server.Alive(); len(alive) > 0 {
		m.failf("%d sandboxes are left, as %+v", len(alive), alive[0])
	}
	if err := m.out.Close(); err != nil {
		t.Error(err)
	}
}

// accountFor checks that what is alive ends by itself within a lease, or is
// paused by choice.
func (m *model) accountFor() {
	for _, s := range m.server.Alive() {
		k := m.known[s.ID]
		pausable := s.State == mock.StatePaused && (k == nil || k.paused || k.cfg.OnHostLoss == remote.Pause)
		if s.State == mock.StatePaused && !pausable {
			m.failf("%s is paused, though it should be killed", s.ID)
		}
	}
	for info, err := range m.out.List(m.t.Context(), e2b.ListOptions{States: []e2b.State{e2b.Running}}) {
		if err != nil {
			m.failf("list: %v", err)
			return
		}
		left := info.EndAt.Sub(info.SeenAt)
		most := 5*time.Minute + 2*time.Second // of somebody else's choice
		if k := m.known[info.ID]; k != nil {
			most += time.Duration(k.cfg.LeaseSeconds) * time.Second
		}
		if left > most {
			m.failf("%s runs for another %s, which is more than a lease", info.ID, left)
		}
	}
}

func (m *model) wait(d time.Duration) {
	m.note("wait", "%s", d)
	time.Sleep(d)
}

// step does one thing, at random.
func (m *model) step() {
	var live []*host
	for _, h := range m.hosts {
		if !h.dead {
			live = append(live, h)
		}
	}
	if len(live) == 0 || len(live) < 3 && m.r.IntN(4) == 0 {
		live = append(live, m.newHost())
	}
	h := live[m.r.IntN(len(live))]
	switch n := m.r.IntN(100); {
	case n < 20:
		m.create(h)
	case n < 35:
		m.wait(time.Duration(m.r.Int64N(int64(10 * time.Second))))
	case n < 50:
		m.wait(time.Duration(m.r.Int64N(int64(3 * time.Minute))))
	case n < 58:
		m.crash(h)
	case n < 70:
		m.sweep()
	case n < 75:
		h.mu.Lock()
		longest := time.Minute
		for _, s := range h.held {
			longest = min(longest, time.Duration(s.cfg.LeaseSeconds)*time.Second/12)
		}
		h.deaf = time.Now().Add(time.Duration(m.r.Int64N(int64(longest))))
		m.note("partition", "%s for %s", h.name, time.Until(h.deaf))
		h.mu.Unlock()
	case len(h.held) == 0:
	default:
		m.use(h.held[m.r.IntN(len(h.held))], n)
	}
}

func (m *model) create(h *host) {
	cfg := remote.SandboxConfig{Template: "base", TimeoutSeconds: 60 + m.r.IntN(1200)}
	cfg.LeaseSeconds = []int{15, 60, 300}[m.r.IntN(3)]
	if m.r.IntN(4) == 0 {
		cfg.OnHostLoss = remote.Pause
	}
	h.mu.Lock()
	h.next = []string{"", "", "", "lost", "late", "never"}[m.r.IntN(6)]
	fate := h.next
	h.mu.Unlock()
	sb, err := remote.Hold(m.t.Context(), h.a, cfg)
	m.note("create", "by %s, lease %d s, timeout %d s, %s: %v, %v", h.name, cfg.LeaseSeconds, cfg.TimeoutSeconds, cfg.OnHostLoss, fate, err)
	if fate != "" {
		m.note("lost", "(%s)", fate)
	}
	h.mu.Lock()
	h.next = ""
	h.mu.Unlock()
	if err != nil {
		return
	}
	s := &held{Held: sb, cfg: cfg, host: h, owned: time.Now()}
	h.held = append(h.held, s)
	m.known[sb.Info().ID] = s
	m.note("", "it is %s", sb.Info().ID)
}

func (m *model) forget(s *held) {
	s.host.held = slices.DeleteFunc(s.host.held, func(o *held) bool { return o == s })
	s.owned = time.Time{}
}

// crash ends a host at once.
func (m *model) crash(h *host) {
	m.note("crash", "%s", h.name)
	h.mu.Lock()
	h.dead = true
	h.mu.Unlock()
	for _, s := range slices.Clone(h.held) {
		s.Drop()
		m.forget(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = h.client.Shutdown(ctx) // it says what it has left behind
}

func (m *model) kill(s *held) {
	s.Drop()
	err := s.Kill(m.t.Context())
	m.note("kill", "%s: %v", s.Info().ID, err)
	s.owned = time.Time{} // also of one that could not be killed: it has what it wanted
	if err == nil {
		m.forget(s)
	}
}

// use does something with a sandbox.
func (m *model) use(s *held, n int) {
	id := s.Info().ID
	switch {
	case n < 80:
		m.kill(s)
	case n < 84:
		released := s.Release(m.t.Context())
		m.note("release", "%s: %t", id, released)
		switch {
		case !released: // its lease ends sooner than it should
			s.owned = time.Time{}
		case s.until.IsZero() && !s.owned.IsZero():
			s.until = time.Now().Add(5 * time.Minute)
		}
	case n < 88:
		m.note("collect", "%s", id)
		if s.until.IsZero() || time.Now().Before(s.until) {
			s.until = time.Time{}
		}
		s.Hold(m.t.Context())
	case n < 92:
		m.note("pause", "%s: %v", id, m.server.Pause(id))
		s.paused, s.owned = true, time.Time{}
	case n < 97:
		_, err := m.out.Connect(m.t.Context(), id, time.Duration(15+m.r.IntN(285))*time.Second)
		m.note("resume", "%s: %v", id, err)
		if err == nil && s.paused && s.until.IsZero() {
			// Its owner need not have noticed anything, and shows that it
			// lives by its next renewal.
			s.paused, s.owned = false, time.Now().Add(time.Duration(s.cfg.LeaseSeconds)*time.Second/3+10*time.Second)
		}
	default:
		m.note("expire", "%s: %v", id, m.server.Expire(id))
		m.forget(s)
		s.Drop()
	}
}

// living are the sandboxes whose owners live and had time to show it.
func (m *model) living() map[string]bool {
	ids := make(map[string]bool)
	now := time.Now()
	for id, s := range m.known {
		if !s.owned.IsZero() && !now.Before(s.owned) && (s.until.IsZero() || now.Before(s.until)) {
			ids[id] = true
		}
	}
	return ids
}

// sweep sweeps, while the schedule goes on or before it does.
func (m *model) sweep() {
	o := remote.SweepOptions{DryRun: m.r.IntN(4) == 0}
	if m.r.IntN(3) == 0 {
		o.OlderThan = time.Duration(m.r.IntN(600)) * time.Second
	}
	m.note("sweep", "%+v", o)
	before := m.living()
	sweeper := remote.NewProxyOf(m.out, remote.Config{})
	done := make(chan *remote.SweepReport, 1)
	m.sweeps.Go(func() {
		report, err := sweeper.Sweep(m.t.Context(), o)
		if err != nil {
			m.failf("sweep: %v", err)
		}
		done <- report
	})
	judge := func(report *remote.SweepReport) {
		after := m.living()
		m.note("", "swept:\n%s", report)
		for _, s := range report.Sandboxes {
			if s.Killed {
				m.note("swept", "%s", s.ID)
			}
			if s.Killed && (o.DryRun || s.Age < o.OlderThan) {
				m.failf("%s was killed by %+v: %+v", s.ID, o, s)
			}
			if s.Orphan && before[s.ID] && after[s.ID] {
				m.failf("%s has an owner that lives, and was swept: %s", s.ID, s.Reason)
			}
		}
	}
	if m.r.IntN(2) == 0 {
		judge(<-done)
		return
	}
	for range 1 + m.r.IntN(3) {
		m.stepWithoutSweep()
	}
	judge(<-done)
}

func (m *model) stepWithoutSweep() {
	for range 20 {
		if len(m.hosts) == 0 {
			return
		}
		h := m.hosts[m.r.IntN(len(m.hosts))]
		switch n := m.r.IntN(6); {
		case h.dead:
			continue
		case n == 0:
			m.create(h)
		case n == 1:
			m.wait(time.Duration(m.r.Int64N(int64(20 * time.Second))))
		case n == 2:
			m.crash(h)
		case len(h.held) > 0:
			m.use(h.held[m.r.IntN(len(h.held))], 75+m.r.IntN(25))
		}
		return
	}
}
