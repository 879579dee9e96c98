package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// runCrash dies in its first runs, as many as its config says, and puts out
// what it reads in the one after. The processes of sandboxes in memory cannot
// die of themselves: there the host's test kills them at the event.
func runCrash(ctx context.Context, s *worker.Step) (*worker.Result, error) {
	var cfg struct {
		Crashes, Events int
		Die             []time.Duration // the process dies so long after the begin of each try
		Supervisor      bool            // it is the process that has started it which dies
	}
	if err := s.DecodeConfig(&cfg); err != nil {
		return nil, err
	}
	if v, ok := s.Env["REMOTE_TEST_CRASHES"]; ok { // so that the config is the same
		cfg.Crashes, _ = strconv.Atoi(v)
	}
	// A folder that outlives the try.
	tries := filepath.Join(filepath.Dir(filepath.Dir(s.ArtifactsDir)), "tries", s.ID)
	if err := s.FS.MkdirAll(tries); err != nil {
		return nil, err
	}
	entries, err := s.FS.ReadDir(tries)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprint("try", len(entries))
	for _, dir := range []string{tries, s.ArtifactsDir} { // an artifact of this try, too
		f, err := s.FS.Create(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	if len(entries) < len(cfg.Die) {
		time.AfterFunc(cfg.Die[len(entries)], func() {
			pid := os.Getpid()
			if cfg.Supervisor {
				pid = os.Getppid()
			}
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		})
	}
	for n := range cfg.Events {
		s.LogEvent("flood", map[string]any{"n": n, "try": len(entries)})
	}
	if len(entries) < cfg.Crashes {
		s.LogEvent("crash", nil)
		if _, ok := s.FS.(worker.OSFS); ok {
			os.Exit(7)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if len(s.Inputs) == 0 {
		return nil, nil
	}
	return runConcat(ctx, s)
}

// crashing is a plan whose second step of four is worker's death.
func crashing(crashes int, repeatable bool) *remote.Manifest {
	return &remote.Manifest{Name: "crash", Steps: []remote.Step{
		{ID: "a", Driver: "test.rows", Config: map[string]any{"start": 1, "rows": 3}},
		{ID: "b", Driver: "test.crash", Needs: []string{"a"}, Repeatable: repeatable, Config: map[string]any{"crashes": crashes, "events": 500}},
		{ID: "c", Driver: "test.concat", Needs: []string{"a", "b"}},
		{ID: "d", Driver: "test.write", Needs: []string{"c"}, Config: map[string]any{"path": "n.txt"}},
	}}
}

// restartKinds are those whose worker can die.
var restartKinds = slices.DeleteFunc(slices.Clone(kinds), func(kind string) bool { return kind == "in process" || kind == "served" })

// killAtCrash kills the worker in memory when a driver asks for it.
func killAtCrash(t *testing.T, ec *remote.ExecutionContext, provider *mock.Provider) {
	if provider == nil {
		return
	}
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "crash" {
			killWorker(t, provider)
		}
		return nil
	}
}

// TestRestart: the worker dies in the second of four steps, and the run ends as
// one in which it did not.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, kind := range restartKinds {
		t.Run(kind, func(t *testing.T) {
			var provider *mock.Provider
			run := func(id string, crashes int) (*remote.ExecutionContext, *remote.ExecResult, map[string]string) {
				a, p := newAdapter(t, kind, remote.Config{
					Restarts: 2, Concurrency: 1, Env: map[string]string{"REMOTE_TEST_CRASHES": strconv.Itoa(crashes)},
				}, nil)
				provider = p
				ec := newContext(t, id)
				killAtCrash(t, ec, provider)
				result, _, err := remote.Run(t.Context(), a, crashing(0, true), ec)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, ec, result, err)
				files := tree(t, filepath.Join(ec.LogsDir, "artifacts"))
				for name := range files { // times, and the tries' own names
					if strings.HasPrefix(name, "_system/") || strings.HasPrefix(name, "b/try") {
						delete(files, name)
					}
				}
				return ec, result, files
			}
			_, want, wantFiles := run("whole", 0)
			ec, got, files := run("crashed", 1)
			if diff := cmp.Diff(wantFiles, files); diff != "" {
				t.Errorf("artifacts (-whole +crashed):\n%s", diff)
			}
			for i := range got.StepResults {
				want.StepResults[i].DurationMS, got.StepResults[i].DurationMS = 0, 0
			}
			if diff := cmp.Diff(want.StepResults, got.StepResults); diff != "" {
				t.Errorf("results (-whole +crashed):\n%s", diff)
			}
			if entries, err := os.ReadDir(filepath.Join(ec.LogsDir, "artifacts", "b")); err != nil || len(entries) != 2 || entries[1].Name() != "try1" {
				t.Errorf("artifacts of the step: %v, %v; want those of the second try", entries, err)
			}
			// Nothing doubled, nothing out of order: what the process had not yet
			// written died with it, all of the second try is here.
			next := [2]int{}
			for _, e := range events(t, ec, "flood") {
				try, n := int(e["try"].(float64)), int(e["n"].(float64))
				if n != next[try] || try == 0 && next[1] > 0 {
					t.Fatalf("event %d of try %d, want %d", n, try, next[try])
				}
				next[try]++
			}
			if next[1] != 500 || provider != nil && next[0] != 500 {
				t.Errorf("events of the tries: %v", next)
			}
			for name, n := range map[string]int{"step_start": 5, "step_complete": 4, "step_failed": 0, "worker_started": 1, "worker_restarted": 1} {
				if got := len(events(t, ec, name)); got != n {
					t.Errorf("%d events %s, want %d", got, name, n)
				}
			}
			e := events(t, ec, "worker_restarted")[0]
			if e["attempt"] != 1.0 || fmt.Sprint(e["steps_repeated"]) != "[b]" || !strings.Contains(fmt.Sprint(e["reason"]), "worker crashed") {
				t.Errorf("event %v", e)
			}
		})
	}
}

// What cannot be gone on with ends with the worker's death and the reason.
func TestNotRestarted(t *testing.T) {
	for _, test := range []struct {
		name     string
		manifest *remote.Manifest
		restarts int
		damage   func(fsys worker.FS, dir string) error // before the worker is started again
		want     string
		events   int // worker_restarted
	}{
		{"no policy", crashing(1, true), 0, nil, "", 0},
		{"not repeatable", crashing(1, false), 3, nil, `step "b" was running, and is not marked repeatable`, 0},
		{"dies always", crashing(100, true), 3, nil, "given up after 3 restarts", 3},
		{"output is gone", crashing(1, true), 3, func(fsys worker.FS, dir string) error {
			return fsys.RemoveAll(dir + "/outputs/a/0.arrow")
		}, `what step "a" has put out, which step "b" needs, did not survive: output "df": `, 0},
		{"result is gone", crashing(1, true), 3, func(fsys worker.FS, dir string) error {
			return fsys.RemoveAll(dir + "/outputs/a")
		}, `what step "a" has put out, which step "b" needs, did not survive`, 0},
		{"journal is gone", crashing(1, true), 3, func(fsys worker.FS, dir string) error {
			return fsys.RemoveAll(dir + "/journal")
		}, "there is no segment", 0},
		{"journal is damaged", crashing(1, true), 3, func(fsys worker.FS, dir string) error {
			entries, err := fsys.ReadDir(dir + "/journal")
			if err != nil {
				return err
			}
			f, err := fsys.Append(dir+"/journal/"+entries[len(entries)-1].Name(), 5)
			if err != nil {
				return err
			}
			return errors.Join(func() error { _, err := f.Write(make([]byte, 1000)); return err }(), f.Close())
		}, "corrupt frame", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var provider *mock.Provider
				var damaged bool
				fault := func(_ context.Context, c mock.Call) error {
					if c.Op != mock.OpStart || !slices.Contains(c.Args, "recover") || damaged || test.damage == nil {
						return nil
					}
					damaged = true
					sb := provider.Sandboxes()[0]
					return test.damage(sb.FS(), c.Args[slices.Index(c.Args, "-dir")+1])
				}
				a, p := newAdapter(t, "proxy", remote.Config{Restarts: test.restarts, Concurrency: 1}, &mock.Options{Fault: fault})
				provider = p
				ec := newContext(t, "s")
				killAtCrash(t, ec, provider)
				result, files, err := remote.Run(t.Context(), a, test.manifest, ec)
				var crash *remote.WorkerCrashError
				if !errors.As(err, &crash) || !errors.Is(err, remote.ErrWorkerCrash) {
					t.Fatalf("error %v", err)
				}
				agree(t, ec, result, err)
				contains(t, err.Error(), test.want, "SIGKILL")
				if n := len(events(t, ec, "worker_restarted")); n != test.events {
					t.Errorf("%d restarts, want %d", n, test.events)
				}
				if n := len(events(t, ec, "step_start")); n != 2+test.events {
					t.Errorf("%d steps were started", n)
				}
				if result.StepResults[0].Status != remote.StepSucceeded || result.StepResults[1].Status != remote.StepFailed || result.StepResults[2].Status != remote.StepSkipped {
					t.Errorf("results %+v", result.StepResults)
				}
				if files == nil || len(files.Artifacts) == 0 {
					t.Error("nothing was brought home")
				}
				if test.damage != nil && !damaged {
					t.Error("nothing was damaged")
				}
			})
		})
	}
}

// Two steps run when the worker dies; both have to be repeatable.
func TestRestartOfTwo(t *testing.T) {
	for _, repeatable := range []bool{false, true} {
		t.Run(fmt.Sprint(repeatable), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, provider := newAdapter(t, "proxy", remote.Config{Restarts: 1, Concurrency: 2}, nil)
				ec := newContext(t, "s")
				crashed := 0
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if e.Name == "crash" {
						if crashed++; crashed == 2 {
							killWorker(t, provider)
						}
					}
					return nil
				}
				crash := func(id string, repeatable bool) remote.Step {
					return remote.Step{ID: id, Driver: "test.crash", Repeatable: repeatable, Config: map[string]any{"crashes": 1}}
				}
				m := &remote.Manifest{Steps: []remote.Step{crash("a", true), crash("b", repeatable), {ID: "c", Driver: "test.noop", Needs: []string{"a", "b"}}}}
				result, _, err := remote.Run(t.Context(), a, m, ec)
				agree(t, ec, result, err)
				if (err == nil) != repeatable {
					t.Fatalf("error %v", err)
				}
				if !repeatable {
					contains(t, err.Error(), `step "b" was running, and is not marked repeatable`)
					return
				}
				if e := events(t, ec, "worker_restarted"); len(e) != 1 || fmt.Sprint(e[0]["steps_repeated"]) != "[a b]" {
					t.Errorf("restarts %v", e)
				}
			})
		})
	}
}

// The restarted worker dies itself before it has answered, and is started
// again, later each time.
func TestRestartIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu       sync.Mutex
			resumed  []time.Time
			provider *mock.Provider
		)
		fault := func(_ context.Context, c mock.Call) error {
			if c.Op != mock.OpStart || !slices.Contains(c.Args, "-resume") {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			resumed = append(resumed, time.Now())
			return nil
		}
		kill := func(_ context.Context, c mock.Call) error {
			if err := fault(t.Context(), c); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			// The first frame to the first two that follow kills them.
			if n := len(resumed); c.Op == mock.OpStdin && (n == 1 || n == 2) {
				provider.Sandboxes()[0].KillProcess(c.PID)
			}
			return nil
		}
		a, p := newAdapter(t, "proxy", remote.Config{Restarts: 3, Concurrency: 1}, &mock.Options{Fault: kill})
		provider = p
		ec := newContext(t, "s")
		killAtCrash(t, ec, provider)
		result, _, err := remote.Run(t.Context(), a, crashing(1, true), ec)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, ec, result, err)
		if e := events(t, ec, "worker_restarted"); len(e) != 1 || e[0]["attempt"] != 3.0 {
			t.Errorf("restarts %v", e)
		}
		if len(resumed) != 3 || resumed[1].Sub(resumed[0]) < 2*time.Second || resumed[2].Sub(resumed[1]) < 4*time.Second {
			t.Errorf("started at %v", resumed)
		}
	})
}

// Waiting for a restart ends with the run.
func TestRestartIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, provider := newAdapter(t, "proxy", remote.Config{Restarts: 100, Timeout: time.Minute}, nil)
		ec := newContext(t, "s")
		killAtCrash(t, ec, provider)
		start := time.Now()
		result, _, err := remote.Run(t.Context(), a, crashing(100, true), ec)
		if !errors.Is(err, remote.ErrTimeout) || !errors.Is(err, remote.ErrWorkerCrash) {
			t.Errorf("error %v", err)
		}
		agree(t, ec, result, err)
		if took := time.Since(start); took > 2*time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

// A run whose worker does not die is the same with and without the policy, but
// for what is on disk; and released outputs are gone from there.
func TestRestartsWithoutCrash(t *testing.T) {
	for _, kind := range []string{"in process", "proxy"} {
		t.Run(kind, func(t *testing.T) {
			var got []session
			for _, restarts := range []int{0, 3} {
				a, provider := newAdapter(t, kind, remote.Config{Restarts: restarts, Concurrency: 1}, nil)
				ec := newContext(t, "s")
				p := executed(t, a, ec, join())
				if provider != nil {
					for _, name := range provider.Sandboxes()[0].Files() {
						if strings.HasSuffix(name, ".arrow") && !strings.Contains(name, "/outputs/") {
							t.Errorf("there is %s", name)
						}
						if strings.Contains(name, "/outputs/") && (restarts == 0 || strings.HasSuffix(name, ".arrow")) {
							t.Errorf("with %d restarts there is %s", restarts, name)
						}
					}
				}
				if _, err := a.Collect(t.Context(), p, ec); err != nil {
					t.Fatal(err)
				}
				got = append(got, normalized(t, ec, &remote.ExecResult{}))
			}
			if diff := cmp.Diff(got[0], got[1], cmpopts.IgnoreUnexported(session{})); diff != "" {
				t.Errorf("(-without +with):\n%s", diff)
			}
		})
	}
}

// LocalAdapter leaves nothing of a restarted worker.
func TestRestartLeavesNothing(t *testing.T) {
	root := t.TempDir()
	a, _ := newAdapter(t, "local", remote.Config{Restarts: 1, Root: root}, nil)
	ec := newContext(t, "s")
	if _, _, err := remote.Run(t.Context(), a, crashing(1, true), ec); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(root); err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestRestartAtAnyMoment has workers die at random moments of a run whose steps
// are all repeatable: it ends as one that was left alone. It prints its seed,
// which OSIRIS_SEED repeats.
func TestRestartAtAnyMoment(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it waits for restarts")
	}
	seed, stress := testSeed(t)
	rounds := 1
	if stress {
		rounds = 40
	}
	const floods, ticks = 6, 3000
	m := &remote.Manifest{Steps: []remote.Step{{ID: "rows", Driver: "test.rows", Repeatable: true, Config: map[string]any{"rows": 20_000}}}}
	sum := remote.Step{ID: "sum", Driver: "test.concat", Repeatable: true, Needs: []string{}}
	for i := range floods {
		id := fmt.Sprint("flood", i)
		m.Steps = append(m.Steps, remote.Step{ID: id, Driver: "test.crash", Repeatable: true, Needs: []string{"rows"}, Config: map[string]any{"events": ticks}})
		sum.Needs = append(sum.Needs, id)
	}
	m.Steps = append(m.Steps, sum, remote.Step{ID: "write", Driver: "test.write", Repeatable: true, Needs: []string{"sum"}, Config: map[string]any{"path": "n.txt"}})
	var want strings.Builder
	for range floods {
		for n := range 20_000 {
			fmt.Fprintln(&want, n)
		}
	}
	for _, kind := range restartKinds {
		if kind == "proxy" {
			continue // its processes are this one
		}
		for round := range rounds {
			t.Run(fmt.Sprint(kind, round), func(t *testing.T) {
				seed := seed + uint64(round)
				t.Logf("OSIRIS_SEED=%d", seed)
				r := rand.New(rand.NewPCG(seed, 0))
				a, _ := newAdapter(t, kind, remote.Config{Restarts: 50, Concurrency: 3, Timeout: 5 * time.Minute}, nil)
				ec := newContext(t, "s")
				// Somewhere in the time that the steps take.
				die := []time.Duration{time.Duration(r.IntN(100_000)) * time.Microsecond, time.Duration(r.IntN(100_000)) * time.Microsecond}
				m.Steps[1].Config["die"] = die
				m.Steps[1].Config["supervisor"] = runtime.GOOS == "linux" && r.IntN(3) == 0 // elsewhere the worker outlives it
				result, _, err := remote.Run(t.Context(), a, m, ec)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, ec, result, err)
				b, err := os.ReadFile(filepath.Join(ec.LogsDir, "artifacts", "write", "n.txt"))
				if err != nil || string(b) != want.String() {
					t.Errorf("output of %d bytes, %v; want %d", len(b), err, want.Len())
				}
				t.Logf("%d restarts", len(events(t, ec, "worker_restarted")))
				// Of every step: tries, each of them without a gap, and the last one whole.
				next := make(map[string]int)
				for _, e := range events(t, ec, "") {
					step, _ := e["step_id"].(string)
					switch e["event"] {
					case "step_start":
						next[step] = 0
					case "flood":
						if n := int(e["n"].(float64)); n != next[step] {
							t.Fatalf("step %s: event %d, want %d", step, n, next[step])
						}
						next[step]++
					case "step_complete":
						if strings.HasPrefix(step, "flood") && next[step] != ticks {
							t.Errorf("step %s is complete after %d events", step, next[step])
						}
					}
				}
			})
		}
	}
}

// A worker that is frozen is killed, rather than told to end, and another one
// goes on.
func TestRestartOfFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		var tries atomic.Int64
		drivers := testDrivers()
		drivers.Register("test.stuck", worker.Transform, func() worker.Driver {
			return driverFunc(func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
				if tries.Add(1) > 1 {
					return nil, nil
				}
				s.LogEvent("waiting", nil)
				<-ctx.Done()
				return nil, ctx.Err()
			})
		})
		var provider *mock.Provider
		provider = mock.NewProvider(&mock.Options{
			Drivers: drivers, Now: time.Now,
			Programs: map[string]mock.Program{"osiris-worker": q.program(drivers)},
			Fault: func(_ context.Context, c mock.Call) error {
				if c.Op == mock.OpStart && slices.Contains(c.Args, "recover") {
					for _, p := range provider.Sandboxes()[0].Processes() {
						if slices.Contains(p.Command.Args, "supervise") && !p.Exited {
							t.Error("the frozen worker is still there")
						}
					}
					q.thaw()
				}
				return nil
			},
		})
		a, err := remote.NewE2BTransparentProxy(remote.Config{Drivers: drivers, Restarts: 1, OpenSandbox: provider.OpenSandbox})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			if e.Name == "waiting" {
				q.freeze("T")
			}
			return nil
		}
		m := one("test.stuck")
		m.Steps[0].Repeatable = true
		result, _, err := remote.Run(t.Context(), a, m, ec)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, ec, result, err)
		if e := events(t, ec, "worker_restarted"); len(e) != 1 || !strings.Contains(fmt.Sprint(e[0]["reason"]), string(remote.VerdictFrozen)) {
			t.Errorf("restarts %v", e)
		}
	})
}

// The worker dies while its run has no host: the one that attaches starts it
// again, and what had finished does not run again.
func TestAttachRestarts(t *testing.T) {
	t.Setenv("REMOTE_TEST_RESTARTS", "2")
	server := newServer(t, "served", testDrivers())
	marks := filepath.Join(t.TempDir(), "marks")
	dir := orphan(t, server, marks)
	sb := server.Sandbox(server.Alive()[0].ID)
	for _, p := range sb.Processes() {
		if !p.Exited {
			sb.KillProcess(p.PID)
		}
	}
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ec := &remote.ExecutionContext{}
	p, result, err := a.Attach(t.Context(), dir, ec)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "artifacts", "write", "out.txt")); err != nil || strings.Count(string(b), "\n") != 5 {
		t.Errorf("output %q, %v", b, err)
	}
	restarts := events(t, ec, "worker_restarted")
	if len(restarts) != 1 {
		t.Fatalf("restarts %v", restarts)
	}
	completed := make(map[any]int)
	for _, e := range events(t, ec, "step_complete") {
		completed[e["step_id"]]++
	}
	if diff := cmp.Diff(map[any]int{"rows": 1, "mark-1": 1, "print": 1, "mark-2": 1, "write": 1, "mark-3": 1}, completed); diff != "" {
		t.Errorf("steps that were completed (-want +got):\n%s", diff)
	}
	again := fmt.Sprint(restarts[0]["steps_repeated"])
	b, err := os.ReadFile(marks)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"mark-1", "mark-2", "mark-3"} {
		if n := strings.Count(string(b), step+"\n"); n < 1 || n > 1 && !strings.Contains(again, step) {
			t.Errorf("%s ran %d times; %s were repeated", step, n, again)
		}
	}
}

// A host that dies while it starts the worker again leaves it open whether there
// is one: two would spoil each other's journal, so the run ends.
func TestAttachWhileRestarting(t *testing.T) {
	t.Setenv("REMOTE_TEST_RESTARTS", "2")
	server := newServer(t, "served", testDrivers())
	dir := orphan(t, server, filepath.Join(t.TempDir(), "marks"))
	name := filepath.Join(dir, "sandbox.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	state["restarting"], state["restarts"] = true, 1
	if b, err = json.Marshal(state); err == nil {
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers()}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ec := &remote.ExecutionContext{}
	p, result, err := a.Attach(t.Context(), dir, ec)
	var crash *remote.WorkerCrashError
	if !errors.As(err, &crash) || !strings.Contains(err.Error(), "the host died while it started the worker again") {
		t.Fatalf("error %v", err)
	}
	agree(t, ec, result, err)
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Errorf("collect: %v", err)
	}
}
