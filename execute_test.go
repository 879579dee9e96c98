package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// join is a plan with two sources, a join and a writer.
func join() *remote.Manifest {
	return &remote.Manifest{Name: "join", Steps: []remote.Step{
		{ID: "a", Driver: "test.rows", Config: map[string]any{"start": 1, "rows": 3}},
		{ID: "b", Driver: "test.rows", Config: map[string]any{"start": 10, "rows": 2}},
		{ID: "c", Driver: "test.concat", Needs: []string{"a", "b"}},
		{ID: "d", Driver: "test.write", Needs: []string{"c"}, Config: map[string]any{"path": "out/n.txt"}},
	}}
}

func one(driver string) *remote.Manifest {
	return &remote.Manifest{Name: "one", Steps: []remote.Step{{ID: "step", Driver: driver}}}
}

func TestRunSucceeds(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, provider := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			var told []remote.Event
			var measured []remote.Metric
			ec.OnEvent = func(_ context.Context, e remote.Event) error { told = append(told, e); return nil }
			ec.OnMetric = func(_ context.Context, m remote.Metric) error { measured = append(measured, m); return nil }
			result, files, err := remote.Run(t.Context(), a, join(), ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
			if st := readStatus(t, ec); !st.SessionCopied || !st.EventsExist || st.StepsCompleted != 4 || st.StepsTotal != 4 {
				t.Errorf("status %+v", st)
			}
			got := tree(t, filepath.Join(ec.LogsDir, "artifacts"))
			if got["d/out/n.txt"] != "1\n2\n3\n10\n11\n" {
				t.Errorf("output %q", got["d/out/n.txt"])
			}
			var paths []string
			for _, f := range files.Artifacts {
				paths = append(paths, f.Path)
			}
			want := []string{"a/cleaned_config.json", "b/cleaned_config.json", "c/cleaned_config.json", "d/cleaned_config.json", "d/out/n.txt"}
			if diff := cmp.Diff(want, paths); diff != "" {
				t.Errorf("artifacts (-want +got):\n%s", diff)
			}
			rows := map[string][2]int64{}
			for _, s := range result.StepResults {
				rows[s.StepID] = [2]int64{s.RowsIn, s.RowsOut}
			}
			if diff := cmp.Diff(map[string][2]int64{"a": {0, 3}, "b": {0, 2}, "c": {5, 5}, "d": {5, 0}}, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if done := events(t, ec, "cleanup_complete"); len(done) != 1 || done[0]["total_rows"] != 5.0 || done[0]["steps_executed"] != 4.0 {
				t.Errorf("cleanup_complete %v", done)
			}
			// The sinks see what the files hold, in their order.
			var fromFile, fromSink []string
			for _, e := range events(t, ec, "") {
				fromFile = append(fromFile, fmt.Sprint(e["event"], " ", e["step_id"], " ", e["ts"]))
			}
			last := int64(0)
			for _, e := range told {
				id := any(e.StepID)
				if e.StepID == "" {
					id = nil
				}
				fromSink = append(fromSink, fmt.Sprint(e.Name, " ", id, " ", e.Time.Format("2006-01-02T15:04:05.000000Z07:00")))
				if e.Seq <= last || e.Session != "s" {
					t.Errorf("event %d after %d, session %q", e.Seq, last, e.Session)
				}
				last = e.Seq
			}
			if diff := cmp.Diff(fromFile, fromSink); diff != "" {
				t.Errorf("sink differs from file (-file +sink):\n%s", diff)
			}
			if want := len(lines(t, filepath.Join(ec.LogsDir, "metrics.jsonl"))); len(measured) != want {
				t.Errorf("%d metrics told, %d in the file", len(measured), want)
			}
			if provider != nil {
				if n := len(provider.Sandboxes()); n != 1 {
					t.Errorf("%d sandboxes were made", n)
				}
				if n := len(provider.Alive()); n != 0 {
					t.Errorf("%d sandboxes live on", n)
				}
			}
		})
	}
}

func TestStepFails(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			for _, tt := range []struct {
				driver    string
				errorType string
				message   string
				traceback bool
			}{
				{"test.fail", "*fs.PathError", "open source: open x: file does not exist", false},
				{"test.panic", "panic", "panic: driver bug", true},
			} {
				t.Run(tt.driver, func(t *testing.T) {
					a, _ := newAdapter(t, kind, remote.Config{Concurrency: 1}, nil)
					ec := newContext(t, "s")
					m := join()
					m.Steps[1].Driver = tt.driver
					m.Steps = append(m.Steps, remote.Step{ID: "late", Driver: "test.noop"})
					result, files, err := remote.Run(t.Context(), a, m, ec)
					var step *remote.StepError
					if !errors.As(err, &step) || !errors.Is(err, remote.ErrStepFailed) {
						t.Fatalf("error %v", err)
					}
					if step.StepID != "b" || step.Type != tt.errorType || step.Message != tt.message || (step.Traceback != "") != tt.traceback {
						t.Errorf("step error %+v", step)
					}
					agree(t, ec, result, err)
					contains(t, result.ErrorMessage, "b", tt.message)
					var statuses []remote.StepStatus
					for _, s := range result.StepResults {
						statuses = append(statuses, s.Status)
					}
					want := []remote.StepStatus{"succeeded", "failed", "skipped", "skipped", "skipped"}
					if diff := cmp.Diff(want, statuses); diff != "" {
						t.Errorf("statuses (-want +got):\n%s", diff)
					}
					if b := result.StepResults[1]; b.DurationMS <= 0 {
						t.Errorf("the failed step took no time: %+v", b)
					}
					failed := events(t, ec, "step_failed")
					if len(failed) != 1 || failed[0]["step_id"] != "b" || failed[0]["error"] != tt.message || failed[0]["error_type"] != tt.errorType {
						t.Errorf("step_failed %v", failed)
					}
					if len(events(t, ec, "step_start")) != 2 {
						t.Error("a step was started after the failure")
					}
					// What there was is home all the same.
					if len(files.Artifacts) != 2 {
						t.Errorf("artifacts %v", files.Artifacts)
					}
				})
			}
		})
	}
}

func TestStopDependents(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{OnFailure: remote.StopDependents, Concurrency: 1}, nil)
	ec := newContext(t, "s")
	m := join()
	m.Steps[0].Driver = "test.fail"
	m.Steps = append(m.Steps, remote.Step{ID: "e", Driver: "test.write", Needs: []string{"b"}, Config: map[string]any{"path": "n.txt"}})
	result, _, err := remote.Run(t.Context(), a, m, ec)
	if !errors.Is(err, remote.ErrStepFailed) {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	got := map[string]remote.StepStatus{}
	for _, s := range result.StepResults {
		got[s.StepID] = s.Status
	}
	want := map[string]remote.StepStatus{"a": "failed", "b": "succeeded", "c": "skipped", "d": "skipped", "e": "succeeded"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnknownDriver(t *testing.T) {
	m := join()
	m.Steps[2].Driver = "duckdb.processor"
	t.Run("in Prepare", func(t *testing.T) {
		a, provider := newAdapter(t, "proxy", remote.Config{}, nil)
		_, err := a.Prepare(t.Context(), m, newContext(t, "s"))
		if !errors.Is(err, remote.ErrUnknownDriver) {
			t.Fatal(err)
		}
		contains(t, err.Error(), `"c"`, "duckdb.processor", "test.concat", "test.rows")
		if len(provider.Sandboxes()) != 0 {
			t.Error("a sandbox was made")
		}
	})
	t.Run("at the handshake", func(t *testing.T) {
		provider := mock.NewProvider(&mock.Options{Drivers: testDrivers()})
		a, err := remote.NewE2BTransparentProxy(remote.Config{OpenSandbox: provider.OpenSandbox})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		result, _, err := remote.Run(t.Context(), a, m, ec)
		if !errors.Is(err, remote.ErrUnknownDriver) {
			t.Fatal(err)
		}
		contains(t, err.Error(), "duckdb.processor", "test.concat, test.")
		agree(t, ec, result, err)
		if len(events(t, ec, "step_start")) != 0 {
			t.Error("a step was started")
		}
	})
}

// untilWaiting returns a context that is cancelled when a step waits.
func untilWaiting(t *testing.T, ec *remote.ExecutionContext) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "waiting" {
			cancel()
		}
		return nil
	}
	return ctx
}

func TestCancelStopsStep(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{Concurrency: 2}, nil)
			ec := newContext(t, "s")
			m := &remote.Manifest{Name: "wait", Steps: []remote.Step{
				{ID: "rows", Driver: "test.rows", Config: map[string]any{"rows": 1}},
				{ID: "wait", Driver: "test.wait", Needs: []string{"rows"}},
				{ID: "never", Driver: "test.noop", Needs: []string{"wait"}},
			}}
			result, files, err := remote.Run(untilWaiting(t, ec), a, m, ec)
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
			agree(t, ec, result, err)
			for _, e := range events(t, ec, "step_failed") {
				if strings.Contains(fmt.Sprint(e["error"]), "the driver ignored it") {
					t.Errorf("the step was not stopped: %v", e)
				}
			}
			if s := result.StepResults; s[0].Status != "succeeded" || s[1].Status != "failed" || s[2].Status != "skipped" {
				t.Errorf("steps %+v", s)
			}
			if len(files.Artifacts) != 2 {
				t.Errorf("artifacts %v", files.Artifacts)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Run("step", func(t *testing.T) {
				a, _ := newAdapter(t, kind, remote.Config{StepTimeout: 50 * time.Millisecond}, nil)
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, one("test.wait"), ec)
				if !errors.Is(err, remote.ErrTimeout) || !errors.Is(err, remote.ErrStepFailed) {
					t.Fatalf("error %v", err)
				}
				contains(t, err.Error(), "step timeout of 50ms exceeded")
				agree(t, ec, result, err)
			})
			t.Run("run", func(t *testing.T) {
				a, _ := newAdapter(t, kind, remote.Config{Timeout: 2 * time.Second}, nil)
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, one("test.wait"), ec)
				if !errors.Is(err, remote.ErrTimeout) {
					t.Fatalf("error %v", err)
				}
				contains(t, err.Error(), "the run took longer than 2s")
				agree(t, ec, result, err)
			})
		})
	}
}

// TestDeafDriver: a driver that ignores its context cannot keep the run. In a
// process of its own it ends with that.
func TestDeafDriver(t *testing.T) {
	t.Parallel()
	a, _ := newAdapter(t, "local", remote.Config{}, nil)
	ec := newContext(t, "s")
	result, _, err := remote.Run(untilWaiting(t, ec), a, one("test.deaf"), ec)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	agree(t, ec, result, err)
	failed := events(t, ec, "step_failed")
	if len(failed) != 1 {
		t.Fatalf("step_failed %v", failed)
	}
	contains(t, fmt.Sprint(failed[0]["error"]), "the driver ignored it")
}

func TestWorkerCrash(t *testing.T) {
	t.Run("local", func(t *testing.T) {
		a, _ := newAdapter(t, "local", remote.Config{}, nil)
		ec := newContext(t, "s")
		result, files, err := remote.Run(t.Context(), a, one("test.exit"), ec)
		var crash *remote.WorkerCrashError
		if !errors.As(err, &crash) || !errors.Is(err, remote.ErrWorkerCrash) {
			t.Fatalf("error %v", err)
		}
		if crash.Status == nil || crash.Status.Code != 7 {
			t.Errorf("status %v", crash.Status)
		}
		if diff := cmp.Diff([]string{"step"}, crash.OpenSteps); diff != "" {
			t.Errorf("running steps (-want +got):\n%s", diff)
		}
		agree(t, ec, result, err)
		// The journal outlives its writer: what was said before is here.
		if len(events(t, ec, "before_exit")) != 1 {
			t.Error("the event before the crash is lost")
		}
		if len(files.Artifacts) != 1 {
			t.Errorf("artifacts %v", files.Artifacts)
		}
	})
	t.Run("proxy", func(t *testing.T) {
		a, provider := newAdapter(t, "proxy", remote.Config{}, nil)
		ec := newContext(t, "s")
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			if e.Name == "waiting" {
				killWorker(t, provider)
			}
			return nil
		}
		result, _, err := remote.Run(t.Context(), a, one("test.wait"), ec)
		var crash *remote.WorkerCrashError
		if !errors.As(err, &crash) {
			t.Fatalf("error %v", err)
		}
		if crash.Status == nil || crash.Status.Signal != "SIGKILL" {
			t.Errorf("status %v", crash.Status)
		}
		agree(t, ec, result, err)
	})
}

// workerPID returns the process of the sandbox that serves.
func workerPID(t *testing.T, provider *mock.Provider, command string) int {
	t.Helper()
	for _, p := range provider.Sandboxes()[0].Processes() {
		if !p.Exited && strings.Contains(strings.Join(p.Command.Args, " "), command) {
			return p.PID
		}
	}
	t.Errorf("no process %q", command)
	return 0
}

func killWorker(t *testing.T, provider *mock.Provider) {
	t.Helper()
	provider.Sandboxes()[0].KillProcess(workerPID(t, provider, "supervise"))
}

// TestTailLost: the host's reader loses its connection, again and again, and
// every event is there once.
func TestTailLost(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"drop", "freeze"} {
		t.Run(how, func(t *testing.T) {
			a, provider := newAdapter(t, "proxy", remote.Config{Heartbeat: 20 * time.Millisecond}, nil)
			ec := newContext(t, "s")
			m := &remote.Manifest{Name: "events"}
			for i := range 8 {
				s := remote.Step{ID: fmt.Sprintf("s%d", i), Driver: "test.events"}
				if i > 0 {
					s.Needs = []string{fmt.Sprintf("s%d", i-1)}
				}
				m.Steps = append(m.Steps, s)
			}
			cuts := 0
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "step_start" && e.StepID != "s0" && (how == "drop" || cuts < 2) {
					cuts++
					sb, pid := provider.Sandboxes()[0], workerPID(t, provider, "tail")
					if how == "drop" {
						sb.DropStdout(pid)
					} else {
						sb.Freeze(pid)
					}
				}
				return nil
			}
			result, _, err := remote.Run(t.Context(), a, m, ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
			if cuts < 2 {
				t.Fatalf("%d cuts", cuts)
			}
			next := map[any]float64{}
			for _, e := range events(t, ec, "tick") {
				if e["n"] != next[e["step_id"]] {
					t.Fatalf("step %v: event %v, want %v", e["step_id"], e["n"], next[e["step_id"]])
				}
				next[e["step_id"]]++
			}
			for _, s := range m.Steps {
				if next[s.ID] != 1000 {
					t.Errorf("step %s: %v events", s.ID, next[s.ID])
				}
			}
		})
	}
}

func TestFaultsOfSandbox(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name  string
		fault mock.Fault
		check func(t *testing.T, err error)
	}{
		{"upload", func(_ context.Context, c mock.Call) error {
			if c.Op == mock.OpUpload {
				return boom
			}
			return nil
		}, nil},
		{"start", func(_ context.Context, c mock.Call) error {
			if c.Op == mock.OpStart {
				return boom
			}
			return nil
		}, nil},
		{"download", func(_ context.Context, c mock.Call) error {
			if c.Op == mock.OpDownload {
				return boom
			}
			return nil
		}, func(t *testing.T, err error) {
			if !errors.Is(err, remote.ErrCollect) {
				t.Errorf("error %v", err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, provider := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: tt.fault, WithoutWorker: true})
			ec := newContext(t, "s")
			result, _, err := remote.Run(t.Context(), a, join(), ec)
			if !errors.Is(err, boom) {
				t.Fatalf("error %v", err)
			}
			if tt.check != nil {
				tt.check(t, err)
			}
			if st := readStatus(t, ec); st.OK || st.ExitCode != 1 || result.Success || result.ExitCode != 1 {
				t.Errorf("status %+v, result %+v", st, result)
			}
			if n := len(provider.Alive()); n != 0 {
				t.Errorf("%d sandboxes are left", n)
			}
		})
	}
	t.Run("create", func(t *testing.T) {
		a, err := remote.NewE2BTransparentProxy(remote.Config{OpenSandbox: func(context.Context, remote.SandboxConfig) (remote.Sandbox, error) {
			return nil, boom
		}})
		if err != nil {
			t.Fatal(err)
		}
		ec := newContext(t, "s")
		result, _, err := remote.Run(t.Context(), a, join(), ec)
		if !errors.Is(err, boom) {
			t.Fatalf("error %v", err)
		}
		agree(t, ec, result, err)
	})
}

func TestWorkerIsUploaded(t *testing.T) {
	a, provider := newAdapter(t, "proxy", remote.Config{WorkerPath: "LICENSE"}, &mock.Options{WithoutWorker: true})
	ec := newContext(t, "s")
	if _, _, err := remote.Run(t.Context(), a, join(), ec); err != nil {
		t.Fatal(err)
	}
	uploads := 0
	for _, c := range provider.Sandboxes()[0].Calls() {
		if c.Op == mock.OpUpload && strings.Contains(c.Path, "/osiris-worker-") {
			uploads++
		}
	}
	if uploads != 1 {
		t.Errorf("worker uploaded %d times", uploads)
	}
}

func TestSinkError(t *testing.T) {
	boom := errors.New("boom")
	for _, kind := range kinds {
		for _, at := range []string{"step_start", "run_complete", "collect_complete"} {
			t.Run(kind+" "+at, func(t *testing.T) {
				a, _ := newAdapter(t, kind, remote.Config{}, nil)
				ec := newContext(t, "s")
				calls := 0
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if calls > 0 && at != "collect_complete" && e.Name != "collect_start" && e.Name != "collect_complete" && e.Name != "run_receipt" && e.Name != "run_end" {
						t.Errorf("told of %s after an error", e.Name)
					}
					if e.Name == at {
						calls++
						return boom
					}
					return nil
				}
				result, _, err := remote.Run(t.Context(), a, join(), ec)
				if !errors.Is(err, remote.ErrSink) || !errors.Is(err, boom) {
					t.Fatalf("error %v", err)
				}
				if st := readStatus(t, ec); st.OK || result.Success || st.ExitCode != 1 {
					t.Errorf("status %+v, result %+v", st, result)
				}
			})
		}
	}
}

// TestSlowSink: a sink that is slower than the worker slows it down, and gets
// everything.
func TestSlowSink(t *testing.T) {
	a, _ := newAdapter(t, "local", remote.Config{MaxJournal: 1 << 20}, nil)
	ec := newContext(t, "s")
	told := 0
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "tick" {
			told++
			if told%100 == 0 {
				runtime.Gosched()
			}
		}
		return nil
	}
	m := &remote.Manifest{Name: "events"}
	for i := range 20 {
		m.Steps = append(m.Steps, remote.Step{ID: fmt.Sprintf("s%d", i), Driver: "test.events"})
	}
	if _, _, err := remote.Run(t.Context(), a, m, ec); err != nil {
		t.Fatal(err)
	}
	if told != 20_000 || len(events(t, ec, "tick")) != 20_000 {
		t.Errorf("%d told, %d in the file", told, len(events(t, ec, "tick")))
	}
}

func TestExecuteTwice(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			p, err := a.Prepare(t.Context(), join(), ec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Collect(t.Context(), p, ec); !errors.Is(err, remote.ErrNotExecuted) {
				t.Errorf("Collect before Execute: %v", err)
			}
			if _, err := a.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			again := *ec
			again.LogsDir = t.TempDir()
			if _, err := a.Execute(t.Context(), p, &again); !errors.Is(err, remote.ErrAlreadyExecuted) {
				t.Errorf("second Execute: %v", err)
			}
			first, err := a.Collect(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			second, err := a.Collect(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(first, second); diff != "" {
				t.Errorf("second Collect differs:\n%s", diff)
			}
		})
	}
}

// TestCollectIsRepeated: a Collect that failed can be tried again.
func TestCollectIsRepeated(t *testing.T) {
	var failing atomic.Bool
	failing.Store(true)
	a, provider := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
		if c.Op == mock.OpDownload && strings.HasSuffix(c.Path, "n.txt") && failing.Load() {
			return errors.New("boom")
		}
		return nil
	}})
	ec := newContext(t, "s")
	p, err := a.Prepare(t.Context(), join(), ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	got, err := a.Collect(t.Context(), p, ec)
	if !errors.Is(err, remote.ErrCollect) || len(got.Artifacts) != 4 {
		t.Fatalf("error %v, artifacts %v", err, got.Artifacts)
	}
	if st := readStatus(t, ec); st.OK || st.SessionCopied {
		t.Errorf("status %+v", st)
	}
	if len(provider.Alive()) != 1 {
		t.Error("the sandbox is gone before its artifacts are here")
	}
	failing.Store(false)
	if got, err = a.Collect(t.Context(), p, ec); err != nil || len(got.Artifacts) != 5 {
		t.Fatalf("error %v, artifacts %v", err, got.Artifacts)
	}
	if st := readStatus(t, ec); !st.OK || !st.SessionCopied || st.ExitCode != 0 || st.Reason != "" {
		t.Errorf("status %+v", st)
	}
}

func TestCloseRemovesWhatWasNotCollected(t *testing.T) {
	provider := mock.NewProvider(&mock.Options{Drivers: testDrivers()})
	a, err := remote.NewE2BTransparentProxy(remote.Config{OpenSandbox: provider.OpenSandbox})
	if err != nil {
		t.Fatal(err)
	}
	ec := newContext(t, "done")
	p, err := a.Prepare(t.Context(), join(), ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	// Another run is still going on.
	ec2 := newContext(t, "running")
	waiting := make(chan struct{})
	ec2.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "waiting" {
			close(waiting)
		}
		return nil
	}
	p2, err := a.Prepare(t.Context(), one("test.wait"), ec2)
	if err != nil {
		t.Fatal(err)
	}
	finished := make(chan error, 1)
	go func() {
		_, err := a.Execute(context.Background(), p2, ec2)
		finished <- err
	}()
	<-waiting
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-finished; !errors.Is(err, remote.ErrClosed) {
		t.Errorf("Execute returned %v", err)
	}
	if n := len(provider.Alive()); n != 0 {
		t.Errorf("%d sandboxes are left", n)
	}
	if _, err := a.Execute(t.Context(), p2, ec2); !errors.Is(err, remote.ErrClosed) && !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("Execute after Close: %v", err)
	}
}

func TestManyRunsAtOnce(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			n := 16
			if kind == "local" || kind == "embedded" { // where each is a process
				n = 4
			}
			var wg sync.WaitGroup
			for i := range n {
				ec := newContext(t, fmt.Sprintf("s%d", i))
				wg.Go(func() {
					m := join()
					m.Steps[0].Config = map[string]any{"start": i * 100, "rows": 1}
					if _, _, err := remote.Run(context.Background(), a, m, ec); err != nil {
						t.Errorf("run %d: %v", i, err)
						return
					}
					b, err := os.ReadFile(filepath.Join(ec.LogsDir, "artifacts", "d", "out", "n.txt"))
					if want := fmt.Sprintf("%d\n10\n11\n", i*100); err != nil || string(b) != want {
						t.Errorf("run %d: %q, %v; want %q", i, b, err, want)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestPrintsBecomeLogLines(t *testing.T) {
	a, _ := newAdapter(t, "local", remote.Config{Concurrency: 1}, nil)
	ec := newContext(t, "s")
	m := &remote.Manifest{Name: "print", Steps: []remote.Step{
		{ID: "first", Driver: "test.print"}, {ID: "second", Driver: "test.print", Needs: []string{"first"}},
	}}
	if _, _, err := remote.Run(t.Context(), a, m, ec); err != nil {
		t.Fatal(err)
	}
	log := sessionLog(t, ec)
	for _, step := range []string{"first", "second"} {
		contains(t, log,
			fmt.Sprintf(`msg="to stdout from %s" step=%s stream=stdout`, step, step),
			fmt.Sprintf(`msg="to stderr from %s" step=%s stream=stderr`, step, step),
			fmt.Sprintf(`msg="no newline at the end" step=%s stream=stdout`, step))
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("REMOTE_TEST_VALUE", "from the host")
	t.Setenv("REMOTE_TEST_OTHER", "not passed")
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{PassEnv: []string{"REMOTE_TEST_VALUE", "REMOTE_TEST_UNSET"}}, nil)
			ec := newContext(t, "s")
			p, err := a.Prepare(t.Context(), one("test.env"), ec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"REMOTE_TEST_VALUE": "${REMOTE_TEST_VALUE}"}, p.Package.Environment); diff != "" {
				t.Errorf("environment (-want +got):\n%s", diff)
			}
			if _, err := a.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			got := events(t, ec, "env")[0]
			if got["value"] != sum("from the host") {
				t.Errorf("event %v", got)
			}
			if kind == "local" && (got["process"] != sum("from the host") || got["other"] != "") {
				t.Errorf("event %v", got)
			}
		})
	}
	t.Run("the API key is refused", func(t *testing.T) {
		for _, cfg := range []remote.Config{
			{PassEnv: []string{"E2B_API_KEY"}}, {Env: map[string]string{"E2B_API_KEY": "x"}},
		} {
			if _, err := remote.NewLocalAdapter(cfg); !errors.Is(err, remote.ErrInvalid) {
				t.Errorf("error %v", err)
			}
		}
	})
}

func TestLargeRequestsGoByFile(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			m := join()
			m.Steps[0].Config["note"] = strings.Repeat("x", 200_000)
			result, _, err := remote.Run(t.Context(), a, m, ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
			b, err := os.ReadFile(filepath.Join(ec.LogsDir, "artifacts", "a", "cleaned_config.json"))
			if err != nil || len(b) < 200_000 {
				t.Errorf("cleaned config has %d bytes, %v", len(b), err)
			}
		})
	}
}

// TestCollectAfterClose: what is gone is not reported as collected.
func TestCollectAfterClose(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			p, err := a.Prepare(t.Context(), join(), ec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := a.Collect(t.Context(), p, ec); !errors.Is(err, remote.ErrCollect) {
				t.Errorf("got %v, %v of a place that is gone", got, err)
			}
			if st := readStatus(t, ec); st.SessionCopied {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestSinkEndsItsGoroutine(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	ec := newContext(t, "s")
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "step_start" {
			runtime.Goexit() // as t.Fatal does
		}
		return nil
	}
	result, _, err := remote.Run(t.Context(), a, join(), ec)
	if !errors.Is(err, remote.ErrSink) || result.Success {
		t.Errorf("result %+v, error %v", result, err)
	}
	agree(t, ec, result, err)
}

// TestTamperedRun: a stored run cannot take more of this host than the
// adapter's configuration gives.
func TestTamperedRun(t *testing.T) {
	t.Setenv("REMOTE_TEST_VALUE", "canary")
	for name, tamper := range map[string]func(p *remote.PreparedRun){
		"a variable":  func(p *remote.PreparedRun) { p.RunParams.PassEnv = []string{"REMOTE_TEST_VALUE"} },
		"the API key": func(p *remote.PreparedRun) { p.RunParams.PassEnv = []string{"E2B_API_KEY"} },
		"a file":      func(p *remote.PreparedRun) { p.InputFiles = []string{"/etc/hostname"} },
		"no config":   func(p *remote.PreparedRun) { p.CfgIndex = nil },
		"a secret":    func(p *remote.PreparedRun) { p.CfgIndex["cfg/a.json"]["password"] = "x" },
		"a policy":    func(p *remote.PreparedRun) { p.RunParams.OnFailure = "explode" },
		"a timeout":   func(p *remote.PreparedRun) { p.Constraints.TimeoutSeconds = 1e300 },
		"more time":   func(p *remote.PreparedRun) { p.Constraints.TimeoutSeconds = 3600 },
		"a session":   func(p *remote.PreparedRun) { p.RunParams.SessionID = "other" },
		"a version":   func(p *remote.PreparedRun) { p.SchemaVersion = 99 },
		"an adapter":  func(p *remote.PreparedRun) { p.RunParams.Adapter = "other" },
		"a plan":      func(p *remote.PreparedRun) { p.Plan = nil },
	} {
		t.Run(name, func(t *testing.T) {
			a, provider := newAdapter(t, "proxy", remote.Config{}, nil)
			ec := newContext(t, "s")
			p, err := a.Prepare(t.Context(), join(), ec)
			if err != nil {
				t.Fatal(err)
			}
			tamper(p)
			if _, err := a.Execute(t.Context(), p, ec); !errors.Is(err, remote.ErrInvalid) {
				t.Errorf("error %v", err)
			}
			if len(provider.Sandboxes()) != 0 {
				t.Error("a sandbox was made")
			}
		})
	}
}

// TestVariablesStayOffDisk: however many there are, none is uploaded.
func TestVariablesStayOffDisk(t *testing.T) {
	cfg := remote.Config{Env: map[string]string{"REMOTE_TEST_VALUE": "canary"}}
	for i := range 50 {
		cfg.Env[fmt.Sprint("FILLER_", i)] = strings.Repeat("canary", 1000)
	}
	a, provider := newAdapter(t, "proxy", cfg, &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
		if c.Op == mock.OpUpload {
			return fmt.Errorf("uploaded %s", c.Path)
		}
		return nil
	}})
	ec := newContext(t, "s")
	if _, _, err := remote.Run(t.Context(), a, one("test.env"), ec); err != nil {
		t.Fatal(err)
	}
	if got := events(t, ec, "env")[0]["value"]; got != sum("canary") {
		t.Errorf("the driver saw %v", got)
	}
	for _, c := range provider.Calls() {
		if strings.Contains(strings.Join(c.Args, " "), "canary") {
			t.Errorf("arguments %q", c.Args)
		}
	}
	cfg.Env["REMOTE_TEST_VALUE"] = strings.Repeat("x", 128<<10)
	b, _ := newAdapter(t, "proxy", cfg, nil)
	if _, _, err := remote.Run(t.Context(), b, one("test.env"), newContext(t, "s")); !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("a variable that does not fit: %v", err)
	}
}

func TestWrongWorkerProgram(t *testing.T) {
	if _, err := remote.NewLocalAdapter(remote.Config{WorkerPath: "/nonexistent"}); !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("missing program: %v", err)
	}
	name, err := exec.LookPath("true")
	if err != nil {
		t.Skip("there is no program true")
	}
	a, _ := newAdapter(t, "local", remote.Config{WorkerPath: name}, nil)
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, join(), ec)
	if !errors.Is(err, remote.ErrWorkerCrash) {
		t.Fatal(err)
	}
	contains(t, err.Error(), "does it call worker.Main first?")
	agree(t, ec, result, err)
}

func TestUnusableSessionDirectory(t *testing.T) {
	a, provider := newAdapter(t, "proxy", remote.Config{}, nil)
	t.Run("a file is in the way", func(t *testing.T) {
		ec := newContext(t, "s1")
		if err := os.WriteFile(ec.LogsDir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		result, _, err := remote.Run(t.Context(), a, join(), ec)
		if result != nil || err == nil {
			t.Fatalf("result %v, error %v", result, err)
		}
		contains(t, err.Error(), "session directory", ec.LogsDir)
	})
	t.Run("another session", func(t *testing.T) {
		ec := newContext(t, "s2")
		if err := os.MkdirAll(ec.LogsDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(ec.LogsDir, "status.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := remote.Run(t.Context(), a, join(), ec); !errors.Is(err, remote.ErrInvalid) {
			t.Fatal(err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		ec := newContext(t, "s3")
		ec.LogsDir = ""
		if _, _, err := remote.Run(t.Context(), a, join(), ec); !errors.Is(err, remote.ErrInvalid) {
			t.Fatal(err)
		}
	})
	if len(provider.Sandboxes()) != 0 {
		t.Error("a sandbox was made")
	}
}

func TestMissingInputIsNamed(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	ec := newContext(t, "s")
	m := join()
	m.Steps[2].Inputs = map[string]remote.InputRef{"left": {FromStep: "a"}, "right": {FromStep: "b", Key: "other"}}
	result, _, err := remote.Run(t.Context(), a, m, ec)
	var step *remote.StepError
	if !errors.As(err, &step) || step.StepID != "c" {
		t.Fatal(err)
	}
	contains(t, err.Error(), `input "right"`, `step "b" has no output "other"`)
	agree(t, ec, result, err)
	for _, e := range events(t, ec, "step_start") {
		if e["step_id"] == "c" {
			t.Error("the driver ran without its input")
		}
	}
}

func TestLocalAdapterRemovesItsFolder(t *testing.T) {
	root := t.TempDir()
	a, _ := newAdapter(t, "local", remote.Config{Root: root}, nil)
	ec := newContext(t, "s")
	p, err := a.Prepare(t.Context(), join(), ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), "s-") {
		t.Errorf("entries %v", entries)
	}
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(root); len(entries) != 0 || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entries %v, %v", entries, err)
	}
}
