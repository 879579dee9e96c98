package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// attachHost is a host in a process of its own, which can be killed: it runs
// the manifest of TestAttach in the session directory that it is given, and
// says when it begins.
func attachHost(dir, marks string) error {
	cfg := remote.Config{Drivers: testDrivers(), Concurrency: 1, Heartbeat: 100 * time.Millisecond}
	if cfg.CPU, _ = strconv.Atoi(os.Getenv("REMOTE_TEST_CPU")); cfg.CPU > 0 {
		cfg.AllowTemplateBuild = true
	}
	cfg.Restarts, _ = strconv.Atoi(os.Getenv("REMOTE_TEST_RESTARTS"))
	if worker := os.Getenv("REMOTE_TEST_WORKER"); worker != "" {
		cfg.WorkerPath = worker
	}
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		return err
	}
	fmt.Println("begin")
	ec := attachContext(dir)
	if os.Getenv("REMOTE_TEST_DIE") != "" {
		ec.OnEvent = dieWithin(dir)
	}
	_, _, err = remote.Run(context.Background(), a, attachManifest(marks), ec)
	return errors.Join(err, a.Close())
}

// dieWithin kills this process in the middle of its run, which holds still for it:
// as soon as the session directory says that a step runs.
func dieWithin(dir string) func(context.Context, remote.Event) error {
	return func(_ context.Context, e remote.Event) error {
		if e.Name != "tick" {
			return nil
		}
		for {
			b, _ := os.ReadFile(filepath.Join(dir, "events.jsonl"))
			if strings.Contains(string(b), `"tick"`) && readPhase(dir) == "running" {
				break
			}
			time.Sleep(time.Millisecond)
		}
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			return err
		}
		if err := self.Kill(); err != nil {
			return err
		}
		select {}
	}
}

func attachContext(dir string) *remote.ExecutionContext {
	return &remote.ExecutionContext{
		SessionID: "s", LogsDir: dir, BasePath: filepath.Join("testdata", "osiris"),
		StartedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// attachManifest has steps that take a while, and of which it shows outside of
// the sandbox whether they ran twice.
func attachManifest(marks string) *remote.Manifest {
	step := func(id, driver string, config map[string]any, needs ...string) remote.Step {
		return remote.Step{ID: id, Driver: driver, Config: config, Needs: needs, Repeatable: os.Getenv("REMOTE_TEST_RESTARTS") != ""}
	}
	return &remote.Manifest{Name: "attach", Steps: []remote.Step{
		step("rows", "test.rows", map[string]any{"rows": 5, "start": int64(1) << 40}),
		step("mark-1", "test.mark", map[string]any{"file": marks, "events": 200, "ms": 30}, "rows"),
		step("print", "test.print", map[string]any{}, "mark-1"),
		step("mark-2", "test.mark", map[string]any{"file": marks, "events": 2000, "ms": 30}, "print"),
		step("write", "test.write", map[string]any{"path": "out.txt"}, "rows", "mark-2"),
		step("mark-3", "test.mark", map[string]any{"file": marks, "events": 1, "ms": 0}, "write"),
	}}
}

// hostProcess starts attachHost. It returns once that begins.
func hostProcess(t testing.TB, server *mock.Server, dir, marks string, env ...string) *exec.Cmd {
	t.Helper()
	program := os.Args[0]
	if plain := plainWorker(); plain != "" {
		program = plain
	}
	cmd := exec.Command(program, "attach-host", dir, marks)
	cmd.Env = slices.Concat(os.Environ(), server.Env(), env)
	if strings.Contains(server.Isolation(), "in memory") {
		cmd.Env = append(cmd.Env, "REMOTE_TEST_WORKER="+filepath.Join("testdata", "worker.txt"))
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("host: %q, %v", line, err)
	}
	return cmd
}

// sessionFacts is what a session directory says, apart from times and from
// what a run cannot choose.
func sessionFacts(t testing.TB, dir, marks string) map[string]any {
	t.Helper()
	facts := make(map[string]any)
	var strip func(v any) any
	strip = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				switch k {
				case "receipt", "ts", "pid", "sandbox_id", "session_path", "end_time", "duration_ms", "duration_seconds",
					"sha256": // of what holds the name of a file
					delete(v, k)
				default:
					v[k] = strip(e)
				}
			}
		case []any:
			for i, e := range v {
				v[i] = strip(e)
			}
		}
		return v
	}
	for name, text := range tree(t, dir) {
		if name == "receipt.json" {
			text = "{}"
		}
		if marks != "" {
			text = strings.ReplaceAll(text, marks, "MARKS")
		}
		var docs []any
		for dec := json.NewDecoder(strings.NewReader(text)); strings.Contains(name, ".json"); {
			var v any
			if err := dec.Decode(&v); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if m, ok := v.(map[string]any); ok && m["metric"] != nil {
				if s := m["metric"].(string); strings.HasPrefix(s, "worker_") {
					continue // as many as there were heartbeats
				} else if m["unit"] == "ms" || m["unit"] == "seconds" {
					delete(m, "value")
				}
			}
			docs = append(docs, strip(v))
		}
		switch {
		case name == "osiris.log":
			var said []string // by drivers; hosts have their own to tell
			for line := range strings.Lines(text) {
				if _, rest, ok := strings.Cut(line, " msg="); ok && strings.Contains(rest, "stream=") {
					said = append(said, rest)
				}
			}
			slices.SortStableFunc(said, func(a, b string) int { // each stream is in order
				return strings.Compare(a[strings.LastIndex(a, "stream="):], b[strings.LastIndex(b, "stream="):])
			})
			facts[name] = said
		case docs != nil:
			facts[name] = docs
		default:
			facts[name] = text
		}
	}
	return facts
}

// attach does what a second host does, until there is nothing left to do.
func attach(ctx context.Context, cfg remote.Config, dir string) (err error) {
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	ec := &remote.ExecutionContext{}
	p, result, err := a.Attach(ctx, dir, ec)
	if errors.Is(err, remote.ErrAlreadyExecuted) || errors.Is(err, remote.ErrNotExecuted) {
		return err
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if !result.Success {
		return fmt.Errorf("attach: result %+v", result)
	}
	_, err = a.Collect(ctx, p, ec)
	return err
}

// testSeed returns the seed of a test's random choices, which OSIRIS_SEED sets,
// and whether to make all of them that there is time for.
func testSeed(t testing.TB) (seed uint64, stress bool) {
	t.Helper()
	seed = rand.Uint64()
	if text := os.Getenv("OSIRIS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	stress, _ = strconv.ParseBool(os.Getenv("OSIRIS_STRESS"))
	return seed, stress
}

// attachSuite has what tests of Attach on one kind share.
type attachSuite struct {
	kind  string
	marks string         // beginning of names
	want  map[string]any // facts of a run that nobody has disturbed
	span  time.Duration  // that it took
}

func newAttachSuite(t *testing.T, kind string) *attachSuite {
	t.Helper()
	a := &attachSuite{kind: kind, marks: filepath.Join(t.TempDir(), "marks-")}
	server := newServer(t, kind, testDrivers())
	whole := filepath.Join(t.TempDir(), "s")
	start := time.Now()
	if err := hostProcess(t, server, whole, a.mark(0)).Wait(); err != nil {
		t.Fatal(err)
	}
	a.span = time.Since(start)
	a.want = sessionFacts(t, whole, a.mark(0))
	return a
}

// mark names the file where the steps of the n-th run leave marks: names of one
// length, so that configs have one size.
func (a *attachSuite) mark(n int) string {
	if a.kind != "served" {
		return "" // its worker sees no file of this machine
	}
	return fmt.Sprintf("%s%04d", a.marks, n)
}

// survive attaches to the n-th run, whose host was killed, and looks at what
// it has become.
func (a *attachSuite) survive(t *testing.T, server *mock.Server, n int, dir string, died bool) {
	t.Helper()
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1, Heartbeat: 100 * time.Millisecond}, server)
	err := attach(t.Context(), cfg, dir)
	switch {
	case errors.Is(err, remote.ErrNotExecuted) && died:
		return // nothing was begun
	case errors.Is(err, remote.ErrAlreadyExecuted):
	case err != nil:
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.want, sessionFacts(t, dir, a.mark(n))); diff != "" {
		t.Errorf("session (-uninterrupted +attached):\n%.4000s", diff)
	}
	if a.mark(n) == "" {
		return
	}
	got, err := os.ReadFile(a.mark(n))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("mark-1\nmark-2\nmark-3\n", string(got)); diff != "" {
		t.Errorf("steps that ran (-want +got):\n%s", diff)
	}
}

// However far a run had come when its host was killed, another one ends it, and
// the session directory is the same as if nothing had happened.
func TestAttach(t *testing.T) {
	t.Parallel()
	seed, stress := testSeed(t)
	// A host that dies within a create leaves it open for 80 s whether there
	// will be a sandbox: there is time for that in a stress test only.
	moments := 5
	if stress {
		moments = 200
	}
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			suite := newAttachSuite(t, kind)
			server := newServer(t, kind, testDrivers())
			random := rand.New(rand.NewPCG(seed, 1))
			t.Run("moments", func(t *testing.T) {
				for i := range moments {
					after := time.Duration(random.Float64() * 1.05 * float64(suite.span))
					t.Run(fmt.Sprint(i), func(t *testing.T) {
						t.Parallel()
						t.Logf("OSIRIS_SEED=%d: killed %s after its begin", seed, after)
						dir := filepath.Join(t.TempDir(), "s")
						host := hostProcess(t, server, dir, suite.mark(i+1))
						if !stress {
							for readPhase(dir) == "" || readPhase(dir) == "creating" {
								if readStatusIn(dir) {
									break
								}
								time.Sleep(time.Millisecond)
							}
						}
						time.Sleep(after)
						_ = host.Process.Kill()
						died := host.Wait() != nil
						suite.survive(t, server, i+1, dir, died)
					})
				}
			})
		})
	}
}

// readPhase returns how far a run has come; empty means not begun, or over.
func readPhase(dir string) string {
	var c struct{ Phase string }
	b, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
	if err != nil || json.Unmarshal(b, &c) != nil {
		return ""
	}
	return c.Phase
}

func readStatusIn(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "status.json"))
	return err == nil
}

// The same, with the host killed at every request that it makes.
func TestAttachAtEveryRequest(t *testing.T) {
	t.Parallel()
	seed, stress := testSeed(t)
	every := 6
	if stress {
		every = 1
	}
	suite := newAttachSuite(t, "served")
	for n := int(seed % uint64(every)); ; n += every {
		var (
			seen    atomic.Int64
			host    atomic.Pointer[exec.Cmd]
			started = make(chan struct{})
		)
		var hit string
		server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if seen.Add(1) == int64(n+1) {
				<-started
				hit = r.Procedure
				_ = host.Load().Process.Kill()
			}
			return nil
		}))
		dir := filepath.Join(t.TempDir(), "s")
		cmd := hostProcess(t, server, dir, suite.mark(n+1))
		host.Store(cmd)
		close(started)
		died := cmd.Wait() != nil
		if !died {
			if n == 0 {
				t.Error("it was not killed")
			}
			return // it makes no more requests
		}
		t.Run(fmt.Sprintf("%d", n), func(t *testing.T) {
			t.Parallel()
			t.Logf("OSIRIS_SEED=%d: killed at %s", seed, hit)
			suite.survive(t, server, n+1, dir, died)
		})
	}
}

// orphan starts a run whose host is killed as soon as a step runs. It returns the
// session directory.
func orphan(t *testing.T, server *mock.Server, marks string, env ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "s")
	if hostProcess(t, server, dir, marks, append(env, "REMOTE_TEST_DIE=1")...).Wait() == nil {
		t.Fatal("the host was not killed")
	}
	return dir
}

// cutTorn cuts off a last line that a host was killed in, and returns what is
// left: a write ends early at a page's end.
func cutTorn(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		b = b[:bytes.LastIndexByte(b, '\n')+1]
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// backdate makes a host's death so much longer ago.
func backdate(t *testing.T, dir string, ago time.Duration) {
	t.Helper()
	name := filepath.Join(dir, "sandbox.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b = regexp.MustCompile(`"(started_at|saved_at)": "([^"]+)"`).ReplaceAllFunc(b, func(m []byte) []byte {
		key, text, _ := strings.Cut(string(m), ": ")
		at, err := time.Parse(time.RFC3339Nano, strings.Trim(text, `"`))
		if err != nil {
			t.Error(err)
		}
		return fmt.Appendf(nil, "%s: %q", key, at.Add(-ago).Format(time.RFC3339Nano))
	})
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What happens to a sandbox while it has no host.
func TestAttachLater(t *testing.T) {
	t.Parallel()
	only := func(t *testing.T, server *mock.Server) string {
		t.Helper()
		alive := server.Alive()
		if len(alive) != 1 {
			t.Fatalf("sandboxes: %v", alive)
		}
		return alive[0].ID
	}
	for _, test := range []struct {
		name    string
		kinds   []string
		happens func(t *testing.T, server *mock.Server)
		want    error
	}{
		{name: "nothing", kinds: servedKinds, happens: func(*testing.T, *mock.Server) {}},
		{name: "paused", kinds: []string{"embedded"}, happens: func(t *testing.T, server *mock.Server) {
			if err := server.Pause(only(t, server)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "paused without its memory", kinds: []string{"embedded"}, want: remote.ErrWorkerCrash, happens: func(t *testing.T, server *mock.Server) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL()+"/sandboxes/"+only(t, server)+"/pause", strings.NewReader(`{"memory":false}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-API-Key", server.APIKey())
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			if resp.StatusCode != http.StatusNoContent {
				t.Fatal(resp.Status)
			}
		}},
		{name: "after the timeout", kinds: []string{"served"}, happens: func(t *testing.T, _ *mock.Server) {}},
		{name: "lease over", kinds: servedKinds, want: remote.ErrSandboxGone, happens: func(t *testing.T, server *mock.Server) {
			if err := server.Expire(only(t, server)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "killed", kinds: servedKinds, want: remote.ErrSandboxGone, happens: func(t *testing.T, server *mock.Server) {
			if err := server.Kill(only(t, server)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "worker dead", kinds: []string{"served"}, want: remote.ErrWorkerCrash, happens: func(t *testing.T, server *mock.Server) {
			sb := server.Sandbox(only(t, server))
			for _, p := range sb.Processes() {
				if !p.Exited {
					sb.KillProcess(p.PID)
				}
			}
		}},
	} {
		for _, kind := range test.kinds {
			t.Run(test.name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				server := newServer(t, kind, testDrivers())
				dir := orphan(t, server, "")
				for _, name := range []string{"events.jsonl", "metrics.jsonl"} {
					cutTorn(t, filepath.Join(dir, name))
				}
				before := lines(t, filepath.Join(dir, "events.jsonl"))
				test.happens(t, server)
				if test.name == "after the timeout" {
					backdate(t, dir, time.Hour)
				}
				if test.want == remote.ErrSandboxGone { // and the host had come further than its checkpoint
					for name, text := range map[string]string{
						"events.jsonl":  `{"ts":"2026-01-02T03:04:05Z","session":"s","event":"cleanup_start"}` + "\n" + `{"ts":"2026-01-02T03:04:05Z","session":"s","event":"run_complete"}` + "\n",
						"metrics.jsonl": `{"ts":"2026-01-02T03:04:05Z","session":"s","metric":"execution_duration","value":1}` + "\n",
						"answers.jsonl": `{"step_id":"mark-1","resp`,
					} {
						b, err := os.ReadFile(filepath.Join(dir, name))
						if err == nil {
							err = os.WriteFile(filepath.Join(dir, name), append(b, text...), 0o600)
						}
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server))
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				var last int64
				next := func(seq int64) error {
					if last != 0 && seq != last+1 {
						return fmt.Errorf("seq %d after %d", seq, last)
					}
					last = seq
					return nil
				}
				ec := &remote.ExecutionContext{
					OnEvent:  func(_ context.Context, e remote.Event) error { return next(e.Seq) },
					OnMetric: func(_ context.Context, m remote.Metric) error { return next(m.Seq) },
				}
				p, result, err := a.Attach(t.Context(), dir, ec)
				if !errors.Is(err, test.want) {
					t.Fatalf("attach: %v", err)
				}
				agree(t, ec, result, err)
				after := events(t, ec, "")
				if len(after) < 12 || cmp.Diff(before[:12], after[:12]) != "" {
					t.Errorf("of %d events %d are left, the first are %v", len(before), len(after), after[:min(12, len(after))])
				}
				if n := len(events(t, ec, "run_start")); n != 1 {
					t.Errorf("%d events run_start", n)
				}
				if test.want == remote.ErrSandboxGone {
					// Nobody tells it again, so all of it is kept, also what came
					// after the checkpoint.
					if len(after) < len(before) || cmp.Diff(before, after[:len(before)]) != "" {
						t.Errorf("of %d events not all are left", len(before))
					}
					if n := len(events(t, ec, "run_complete")) + len(events(t, ec, "cleanup_start")); n != 1 {
						t.Errorf("%d events of a run's end, want cleanup_start alone", n)
					}
					if len(result.StepResults) < 2 || result.StepResults[0].Status != remote.StepSucceeded || result.StepResults[1].Status == remote.StepSkipped {
						t.Errorf("steps: %+v", result.StepResults)
					}
				}
				_, err = a.Collect(t.Context(), p, ec)
				switch {
				case test.want == remote.ErrSandboxGone:
					if !errors.Is(err, remote.ErrCollect) {
						t.Errorf("collect: %v", err)
					}
				case err != nil:
					t.Errorf("collect: %v", err)
				}
				if total := int64(len(events(t, ec, "")) + len(lines(t, filepath.Join(dir, "metrics.jsonl")))); last != total {
					t.Errorf("last seq is %d of %d lines", last, total)
				}
				for _, name := range []string{"sandbox.json", "prepared.json", "answers.jsonl", "collected.json"} {
					if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
						t.Errorf("%s is left", name)
					}
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if err := attach(t.Context(), connect(remote.Config{Drivers: testDrivers()}, server), dir); !errors.Is(err, remote.ErrAlreadyExecuted) {
					t.Errorf("attach once more: %v", err)
				}
			})
		}
	}
}

// What a run says after its last step is acknowledged, too: a list of artifacts
// that is longer than the journal may be does not hold it up.
func TestSmallJournalAtTheEnd(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers(), MaxJournal: 4 << 10, Heartbeat: 10 * time.Millisecond}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	m := &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "test.files", Config: map[string]any{"files": 500}}}}
	_, files, err := remote.Run(t.Context(), a, m, newContext(t, "s"))
	if err != nil || len(files.Artifacts) != 501 {
		t.Errorf("%v, %d artifacts", err, len(files.Artifacts))
	}
}

// Of two hosts that believe the run theirs the later has it, and the earlier
// one leaves the sandbox alone.
func TestTwoHosts(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server := newServer(t, kind, testDrivers())
			cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1, Heartbeat: 50 * time.Millisecond}, server)
			first, err := remote.NewE2BTransparentProxy(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			ec := attachContext(filepath.Join(t.TempDir(), "s"))
			m := attachManifest("")
			m.Steps[3].Config["ms"] = 1000
			ticking := make(chan struct{})
			var once sync.Once
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "tick" && e.StepID == "mark-2" {
					once.Do(func() { close(ticking) })
				}
				return nil
			}
			p, err := first.Prepare(t.Context(), m, ec)
			if err != nil {
				t.Fatal(err)
			}
			lost := make(chan error, 1)
			go func() {
				_, err := first.Execute(t.Context(), p, ec)
				lost <- err
			}()
			<-ticking
			// On this machine a directory has one host.
			second, err := remote.NewE2BTransparentProxy(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if _, _, err := second.Attach(t.Context(), ec.LogsDir, &remote.ExecutionContext{}); !errors.Is(err, remote.ErrInvalid) {
				t.Errorf("attach to a directory that is being written: %v", err)
			}
			// On another one, with what it has of the directory, nothing stops it.
			elsewhere := filepath.Join(t.TempDir(), "copy")
			copyTree(t, ec.LogsDir, elsewhere)
			own := &remote.ExecutionContext{}
			q, result, err := second.Attach(t.Context(), elsewhere, own)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, own, result, err)
			if err := <-lost; !errors.Is(err, remote.ErrOwnershipLost) {
				t.Errorf("first host: %v", err)
			}
			if _, err := first.Collect(t.Context(), p, ec); !errors.Is(err, remote.ErrOwnershipLost) {
				t.Errorf("first host collects: %v", err)
			}
			if err := first.Close(); err != nil {
				t.Error(err)
			}
			files, err := second.Collect(t.Context(), q, own)
			if err != nil {
				t.Fatal(err)
			}
			if len(files.Artifacts) != 7 {
				t.Errorf("artifacts: %v", files.Artifacts)
			}
			for i, e := range events(t, own, "tick") {
				want := i
				if i >= 200 {
					want = i - 200
				}
				if want >= 2000 {
					want = 0
				}
				if e["n"] != float64(want) {
					t.Fatalf("tick %d is %v", i, e)
				}
			}
		})
	}
}

// copyTree copies a directory that is being written: a line may be cut at the
// end of a file.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	// The checkpoint first: what is written after it is longer.
	b, err := os.ReadFile(filepath.Join(from, "sandbox.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "sandbox.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A session directory that is none, or not whole, is refused, and left as it
// is.
func TestAttachInvalid(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	dir := orphan(t, server, "")
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server)
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	write := func(name, text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	change := func(old, new string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
			if err != nil || !strings.Contains(string(b), old) {
				t.Fatalf("%v: %s", err, b)
			}
			write("sandbox.json", strings.Replace(string(b), old, new, 1))(t, dir)
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		ec    *remote.ExecutionContext
		want  error
	}{
		{name: "no context", ec: nil, spoil: func(*testing.T, string) {}, want: remote.ErrInvalid},
		{name: "another session", ec: &remote.ExecutionContext{SessionID: "other"}, spoil: func(*testing.T, string) {}, want: remote.ErrInvalid},
		{name: "another directory", ec: &remote.ExecutionContext{LogsDir: "elsewhere"}, spoil: func(*testing.T, string) {}, want: remote.ErrInvalid},
		{name: "empty", spoil: func(t *testing.T, dir string) {
			if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, want: remote.ErrNotExecuted},
		{name: "no checkpoint", spoil: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "sandbox.json")); err != nil {
				t.Fatal(err)
			}
		}, want: remote.ErrNotExecuted},
		{name: "no JSON", spoil: write("sandbox.json", "{"), want: remote.ErrInvalid},
		{name: "another version", spoil: change(`"schema_version": 1`, `"schema_version": 99`), want: remote.ErrInvalid},
		{name: "another adapter", spoil: change(`"adapter": "e2b`, `"adapter": "x`), want: remote.ErrInvalid},
		{name: "no sandbox", spoil: change(`"sandboxes": [`, `"others": [`), want: remote.ErrInvalid},
		{name: "not prepared", spoil: write("prepared.json", "{}"), want: remote.ErrInvalid},
		{name: "events lost", spoil: write("events.jsonl", ""), want: remote.ErrInvalid},
		{name: "a negative length", spoil: change(`"events.jsonl": `, `"events.jsonl": -`), want: remote.ErrInvalid},
		{name: "no answers", spoil: func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
			if err != nil {
				t.Fatal(err)
			}
			b = regexp.MustCompile(`"answers.jsonl": \d+`).ReplaceAll(b, []byte(`"answers.jsonl": 3`))
			write("sandbox.json", string(b))(t, dir)
			write("answers.jsonl", "{}\n")(t, dir)
		}, want: remote.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "s")
			copyTree(t, dir, copied)
			test.spoil(t, copied)
			before := tree(t, copied)
			ec := test.ec
			if ec == nil && test.name != "no context" {
				ec = &remote.ExecutionContext{}
			}
			if _, _, err := a.Attach(t.Context(), copied, ec); !errors.Is(err, test.want) {
				t.Errorf("attach: %v", err)
			}
			after := tree(t, copied)
			for name, text := range before {
				if after[name] != text {
					t.Errorf("%s has changed", name)
				}
			}
		})
	}
	for name, env := range map[string][2]string{
		"not reached": {"http://127.0.0.1:1", server.APIKey()},
		"wrong key":   {server.URL(), "e2b_0123"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.APIURL, cfg.SandboxURL, cfg.APIKey = env[0], env[0], env[1]
			a, err := remote.NewE2BTransparentProxy(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			before := tree(t, dir)
			if _, result, err := a.Attach(t.Context(), dir, &remote.ExecutionContext{}); err == nil || result != nil || errors.Is(err, remote.ErrSandboxGone) {
				t.Errorf("attach: %+v, %v", result, err)
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("the session has changed: %s", diff)
			}
		})
	}
	memory, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	if _, _, err := memory.(*remote.E2BTransparentProxy).Attach(t.Context(), dir, &remote.ExecutionContext{}); !errors.Is(err, remote.ErrUnsupported) {
		t.Errorf("sandboxes that cannot be found again: %v", err)
	}
	if err := attach(t.Context(), cfg, dir); err != nil { // after all that
		t.Error(err)
	}
}
