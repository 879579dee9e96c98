package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// Where a script of package mock finds things: inTail is on the connections of
// tails, inInput on those by which the worker's input goes, and each frame
// begins with frameStart. They are put together here, or they would be found in
// this program, too, when it is uploaded as the worker.
var (
	inTail     = strings.Join([]string{"-follow", "true"}, "=")
	inInput    = strings.Join([]string{"POST", "/process.Process/StreamInput"}, " ")
	frameStart = "OSR1"
)

// script makes a script of a text in which TAIL and INPUT stand for what is on
// those connections.
func script(t *testing.T, text string) mock.Script {
	t.Helper()
	s, err := mock.ParseScript(strings.NewReplacer("TAIL", strconv.Quote(inTail), "INPUT", strconv.Quote(inInput)).Replace(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stressed reports whether full counts are asked for.
func stressed() bool {
	on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS"))
	return on
}

// seed returns OSIRIS_SEED, or another one each time, and says which.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := rand.Uint64()
	if s := os.Getenv("OSIRIS_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatalf("OSIRIS_SEED: %v", err)
		}
	}
	t.Logf("OSIRIS_SEED=%d", n)
	return n
}

// flood is a manifest of a step that logs so many events.
func flood(n int) *remote.Manifest {
	return &remote.Manifest{Steps: []remote.Step{{ID: "flood", Driver: "test.flood", Config: map[string]any{"events": n}}}}
}

// cutRun is a run whose connections do what a script says.
type cutRun struct {
	kind     string
	script   mock.Script
	manifest *remote.Manifest
	cfg      remote.Config
	opts     []mock.ServerOption
	during   func(server *mock.Server, e remote.Event) // called for every event
}

// cutResult is what became of it.
type cutResult struct {
	ec     *remote.ExecutionContext
	result *remote.ExecResult
	err    error
	proxy  mock.ProxyStats
	told   []string // the sinks' events, as their lines
}

// run runs it, and checks what must hold whatever happened: what the session's
// files have the sinks were told, in the same order; and nothing is left.
func (c cutRun) run(t *testing.T) *cutResult {
	t.Helper()
	drivers := testDrivers()
	server := newServer(t, c.kind, drivers, c.opts...)
	proxy, err := mock.NewProxy(server.URL(), c.script)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	cfg := c.cfg
	cfg.Drivers = drivers
	cfg = connect(cfg, server)
	cfg.APIURL, cfg.SandboxURL = proxy.URL(), proxy.URL()
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()

	r := &cutResult{ec: newContext(t, "s")}
	seq, told := int64(0), 0
	file := filepath.Join(r.ec.LogsDir, "events.jsonl")
	rising := func(n int64) {
		if n <= seq {
			t.Errorf("sequence number %d after %d", n, seq)
		}
		seq = n
	}
	numbers := &inOrder{t: t, of: "OnEvent"}
	r.ec.OnEvent = func(_ context.Context, e remote.Event) error {
		rising(e.Seq)
		told++
		if c.during != nil {
			c.during(server, e)
		}
		if e.Name == "flood" {
			var fields struct{ N int }
			if err := e.Decode(&fields); err != nil {
				return err
			}
			numbers.next(fields.N)
		} else {
			r.told = append(r.told, e.Name)
		}
		return nil
	}
	r.ec.OnMetric = func(_ context.Context, m remote.Metric) error { rising(m.Seq); return nil }
	r.result, _, r.err = remote.Run(t.Context(), a, c.manifest, r.ec)
	if r.result != nil {
		agree(t, r.ec, r.result, r.err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("close adapter: %v", err)
	}
	if alive := server.Alive(); len(alive) > 0 {
		t.Errorf("%d sandboxes are left", len(alive))
	}
	r.proxy = proxy.Stats()
	if err := proxy.Close(); err != nil {
		t.Error(err)
	}
	// The server hears of the end of a connection in its own time.
	for wait := time.Millisecond; server.Connections() > 0; wait *= 2 {
		if wait > time.Minute {
			t.Errorf("%d connections are open at the server", server.Connections())
			break
		}
		time.Sleep(wait)
	}

	inFile := &inOrder{t: t, of: "events.jsonl"}
	events, named := 0, 0
	for line := range fileLines(t, file) {
		events++
		var e struct {
			Event string
			N     int
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("events.jsonl: %v in %q", err, line)
		}
		if e.Event == "flood" {
			inFile.next(e.N)
			continue
		}
		if named < len(r.told) && r.told[named] != e.Event {
			t.Errorf("OnEvent was told of %s where events.jsonl has %s", r.told[named], e.Event)
		}
		named++
	}
	if numbers.n != inFile.n || events != told {
		t.Errorf("OnEvent was told of %d events, %d of the flood; events.jsonl has %d and %d", told, numbers.n, events, inFile.n)
	}
	want := 0
	for _, s := range c.manifest.Steps {
		if n, ok := s.Config["events"].(int); ok {
			want += n
		}
	}
	if r.err == nil && inFile.n != want {
		t.Errorf("%d events of the flood came, want %d", inFile.n, want)
	}
	if t.Failed() {
		t.Logf("proxy: %+v; error: %v; script:\n%s\nosiris.log:\n%s", r.proxy, r.err, c.script, sessionLog(t, r.ec))
	}
	return r
}

// inOrder checks that numbers come from 0 on, each once.
type inOrder struct {
	t  *testing.T
	of string
	n  int
}

func (o *inOrder) next(n int) {
	switch {
	case n == o.n:
	case n < o.n:
		o.t.Errorf("%s: event %d came again, before %d", o.of, n, o.n)
	default:
		o.t.Errorf("%s: event %d came where %d should", o.of, n, o.n)
	}
	o.n = n + 1
}

// fileLines are the lines of a file that may be large.
func fileLines(t *testing.T, name string) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		s.Buffer(nil, 2<<20)
		for s.Scan() {
			if !yield(bytes.TrimSpace(s.Bytes())) {
				return
			}
		}
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	}
}

// on runs a test for every kind of server, at once.
func on(t *testing.T, f func(t *testing.T, kind string)) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f(t, kind)
		})
	}
}

// The tail's stream is cut before and inside a run's frames: of some, and of
// others the next time.
func TestCutAtEveryFrame(t *testing.T) {
	t.Parallel()
	first := seed(t)
	on(t, func(t *testing.T, kind string) {
		step := 1
		switch {
		case kind != "served" && !stressed():
			step = 48 // each uploads the worker
		case !stressed():
			step = 12 // of three frames, one is cut in one of the four ways
		}
		for i, plus := range []int64{0, 1, 24, 30} {
			if kind != "served" && !stressed() && i%2 != int(first>>32%2) {
				continue
			}
			for n := 1 + (i*max(step/4, 1)+int(first%uint64(step)))%step; ; n += step { // all begin elsewhere
				cut := mock.ScriptStep{Before: n, Text: frameStart, Plus: plus, Dir: mock.Down, In: inTail, Action: mock.Action{Do: mock.Reset}}
				if n%2 == 0 {
					cut.Action.Do = mock.CloseConn
				}
				r := cutRun{kind: kind, script: mock.Script{cut}, manifest: join()}.run(t)
				if r.err != nil {
					t.Fatalf("%s: %v", cut, r.err)
				}
				if t.Failed() {
					return
				}
				if r.proxy.Struck == 0 {
					if n < 20 {
						t.Errorf("the run has only %d frames", n-1)
					}
					break
				}
			}
		}
	})
}

// The tail's stream is cut at any byte of a run: at every few, and at others
// the next time.
func TestCutAtEveryByte(t *testing.T) {
	t.Parallel()
	first := seed(t)
	on(t, func(t *testing.T, kind string) {
		step := int64(7)
		switch {
		case kind != "served" && stressed():
			step = 61
		case kind != "served":
			step = 8009
		case !stressed():
			step = 1201
		}
		for n := 1 + int64(first%uint64(step)); ; n += step {
			cut := mock.ScriptStep{After: n, Dir: mock.Down, In: inTail, Action: mock.Action{Do: mock.Reset}}
			r := cutRun{kind: kind, script: mock.Script{cut}, manifest: join()}.run(t)
			if r.err != nil {
				t.Fatalf("%s: %v", cut, r.err)
			}
			if t.Failed() {
				return
			}
			if r.proxy.Struck == 0 {
				return
			}
		}
	})
}

// An event flood comes whole through a tail that is cut at random. With full
// counts that is a million events and a hundred cuts, where processes are real.
func TestCutsDuringFlood(t *testing.T) {
	t.Parallel()
	n := seed(t)
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) { // one after the other: each has the machine to itself
			events, cuts := 10_000, 20
			if stressed() {
				events, cuts = 1_000_000, 100
			}
			cutting := mock.RandomCuts(n, cuts, int64(events)*180, inTail)
			start := time.Now()
			r := cutRun{kind: kind, script: cutting, manifest: flood(events), cfg: remote.Config{Timeout: time.Hour}}.run(t)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.proxy.Struck != cuts {
				t.Errorf("%d of %d cuts were made", r.proxy.Struck, cuts)
			}
			if !t.Failed() {
				t.Logf("%s: %d events, %d cuts: 0 lost, 0 doubled, in order; %.1f s, %d MB through the proxy, %d connections",
					kind, events, cuts, time.Since(start).Seconds(), r.proxy.Down>>20, r.proxy.Accepted)
			}
		})
	}
}

// All connections are cut at once, of every kind, again and again.
func TestAllConnectionsCut(t *testing.T) {
	on(t, func(t *testing.T, kind string) {
		r := cutRun{kind: kind, script: script(t, "every 400000 down in TAIL: reset all"), manifest: flood(10_000)}.run(t)
		if r.err != nil {
			t.Fatal(r.err)
		}
		if r.proxy.Struck < 3 {
			t.Errorf("%d cuts were made", r.proxy.Struck)
		}
	})
}

// A connection that is half-open, in either direction or both, holds up a run
// no longer than it takes to notice.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"tail, down":          `after 50000 down in TAIL: freeze down`,
		"tail, up":            `after 50000 down in TAIL: freeze up`,
		"tail, both":          `after 50000 down in TAIL: freeze`,
		"tail, not read":      `after 50000 down in TAIL: stall`,
		"all, both":           `after 50000 down in TAIL: freeze all`,
		"inside the header":   `before 5 "OSR1" down +11 in TAIL: freeze down`,
		"several in a row":    `every 150000 down in TAIL: freeze down`,
		"and comes again":     `after 50000 down in TAIL: freeze for 2s`,
		"input, up":           `after 300 up in INPUT: freeze up`,
		"input, both":         `after 300 up in INPUT: freeze`,
		"input, stalled":      `after 300 up in INPUT: stall`,
		"refused for a while": "after 50000 down in TAIL: reset\nafter 50000 down in TAIL: refuse for 1s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on(t, func(t *testing.T, kind string) {
				if kind != "served" && !stressed() && !strings.HasSuffix(name, ", both") {
					t.Skip("only with OSIRIS_STRESS=1")
				}
				m := flood(2000)
				for i := range 20 { // each is a request
					m.Steps = append(m.Steps, remote.Step{ID: fmt.Sprint("more", i), Driver: "test.noop", Needs: []string{m.Steps[i].ID}})
				}
				r := cutRun{kind: kind, script: script(t, text), manifest: m, cfg: remote.Config{Heartbeat: 100 * time.Millisecond}}.run(t)
				if r.err != nil {
					t.Fatal(r.err)
				}
				if r.proxy.Struck == 0 {
					t.Error("nothing was struck")
				}
			})
		})
	}
}

// What was sent over a connection that stood still arrives late, after the same
// requests and later ones came by another: each step runs once.
func TestStaleInput(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, kind string) {
		m := &remote.Manifest{}
		for i := range 60 { // 3 s and what the freeze costs
			step := remote.Step{ID: fmt.Sprint("s", i), Driver: "test.pause", Config: map[string]any{"ms": 50}}
			if i > 0 {
				step.Needs = []string{fmt.Sprint("s", i-1)}
			}
			m.Steps = append(m.Steps, step)
		}
		r := cutRun{kind: kind, script: script(t, "after 4000 up in INPUT: freeze up for 7s"), manifest: m, cfg: remote.Config{Heartbeat: 100 * time.Millisecond}}.run(t)
		if r.err != nil {
			t.Fatal(r.err)
		}
		if r.proxy.Struck != 1 {
			t.Error("nothing was held")
		}
		for _, s := range m.Steps {
			for _, name := range []string{"step_start", "step_complete"} {
				if n := len(stepEvents(t, r.ec, name, s.ID)); n != 1 {
					t.Errorf("step %s has %d events %s", s.ID, n, name)
				}
			}
		}
	})
}

// A reader that is slower than the worker holds it up, and loses nothing.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, kind string) {
		slow := script(t, "after 1 down in TAIL: slow 500000 down\nafter 300000 down in TAIL: reset")
		cfg := remote.Config{MaxJournal: 64 << 10, Heartbeat: 100 * time.Millisecond}
		r := cutRun{kind: kind, script: slow, manifest: flood(3000), cfg: cfg}.run(t)
		if r.err != nil {
			t.Fatal(r.err)
		}
		contains(t, sessionLog(t, r.ec), "journal full")
	})
}

// A disk that is full under the journal ends the run: with what was written
// before, and no more.
func TestFullDiskUnderJournal(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, kind string) {
		room := int64(512 << 10)
		if kind != "served" { // there the worker is a file, too
			name := plainWorker()
			if name == "" {
				var err error
				if name, err = os.Executable(); err != nil {
					t.Fatal(err)
				}
			}
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			room += info.Size()
		}
		options := mock.WithOptions(mock.Options{DiskBytes: room, Drivers: testDrivers()})
		r := cutRun{kind: kind, script: script(t, "every 100000 down in TAIL: reset"), manifest: flood(20_000), opts: []mock.ServerOption{options}}.run(t)
		if !errors.Is(r.err, remote.ErrWorkerCrash) {
			t.Errorf("got %v, want ErrWorkerCrash", r.err)
		}
		n := 0
		for _, e := range events(t, r.ec, "flood") {
			n = max(n, int(e["n"].(float64))+1)
		}
		if n < 1000 {
			t.Errorf("only %d events came", n)
		}
	})
}

// A daemon that dies and is started again takes the worker's input with it: the
// run ends, and all that the worker wrote before is there.
func TestDaemonRestart(t *testing.T) {
	if os.Getenv("E2B_ENVD_BIN") == "" {
		t.Skip("needs E2B_ENVD_BIN: the other daemons cannot be restarted")
	}
	m := flood(20_000)
	m.Steps = append(m.Steps, remote.Step{ID: "wait", Driver: "test.wait", Needs: []string{"flood"}})
	for _, at := range []string{"flood", "waiting"} {
		t.Run("at "+at, func(t *testing.T) {
			var once sync.Once
			r := cutRun{kind: "envd", manifest: m, cfg: remote.Config{Heartbeat: 100 * time.Millisecond},
				during: func(server *mock.Server, e remote.Event) {
					if e.Name == at {
						once.Do(func() {
							if err := server.RestartDaemon(server.Sandboxes()[0].ID); err != nil {
								t.Error(err)
							}
						})
					}
				}}.run(t)
			// The worker may still answer its step, which it stops.
			if !errors.Is(r.err, remote.ErrWorkerCrash) {
				t.Errorf("got %v, want ErrWorkerCrash", r.err)
			}
			if at == "waiting" {
				floodNumbers(t, r.ec, 20_000)
			}
		})
	}
}
