package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// checkReceipt checks what is so of every receipt.
func checkReceipt(t testing.TB, r *remote.Receipt, took time.Duration) {
	t.Helper()
	if r == nil {
		t.Fatal("there is no receipt")
	}
	if r.Phases.Total() != r.Wall || r.Wall <= 0 || r.Wall > took {
		t.Errorf("the phases are %s, the whole is %s, and the calls took %s: %+v", r.Phases.Total(), r.Wall, took, r.Phases)
	}
	if r.SandboxRan+r.SandboxPaused > r.Wall {
		t.Errorf("the sandbox ran for %s of %s", r.SandboxRan, r.Wall)
	}
	for _, s := range r.Steps {
		if s.Driver > s.Run || s.Run+s.Queued+s.Transfer > r.Wall || s.Queued < 0 || s.Transfer < 0 || s.Driver < 0 {
			t.Errorf("a step of a run of %s: %+v", r.Wall, s)
		}
	}
	if o := r.Overhead; o != nil && (o.Drivers+o.Time != o.Window || o.Time < 0 || o.Drivers < 0 || o.Window > r.Phases.Steps+r.Phases.Transfer) {
		t.Errorf("overhead %+v, phases %+v", o, r.Phases)
	}
}

func readReceipt(t testing.TB, ec *remote.ExecutionContext) *remote.Receipt {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(ec.LogsDir, "receipt.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(remote.Receipt)
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Wherever a run happens it has a receipt, by Execute and by Collect, and the
// same one in the session's files.
func TestReceiptOfRun(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			begin := time.Now()
			m := fanOut()
			p, err := a.Prepare(t.Context(), m, ec)
			if err != nil {
				t.Fatal(err)
			}
			result, err := a.Execute(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			executed := result.Receipt
			checkReceipt(t, executed, time.Since(begin))
			if diff := cmp.Diff(executed, readReceipt(t, ec)); diff != "" {
				t.Errorf("receipt.json of Execute (-result +file):\n%s", diff)
			}
			if executed.Removed || executed.Phases.Collect != 0 || executed.Phases.Kill != 0 || executed.Phases.Idle != 0 {
				t.Errorf("before Collect: %+v", executed)
			}
			files, err := a.Collect(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			got := files.Receipt
			checkReceipt(t, got, time.Since(begin))
			if diff := cmp.Diff(got, readReceipt(t, ec)); diff != "" {
				t.Errorf("receipt.json (-result +file):\n%s", diff)
			}
			var event struct{ Receipt *remote.Receipt }
			written := events(t, ec, "run_receipt")
			if len(written) != 1 {
				t.Fatalf("%d events run_receipt", len(written))
			}
			b, err := json.Marshal(written[0])
			if err == nil {
				err = json.Unmarshal(b, &event)
			}
			if diff := cmp.Diff(got, event.Receipt); err != nil || diff != "" {
				t.Errorf("event, %v (-result +event):\n%s", err, diff)
			}

			// What was before Collect is still so.
			p1, p2 := executed.Phases, got.Phases
			for name, same := range map[string]bool{
				"prepare": p1.Prepare == p2.Prepare, "create": p1.Create == p2.Create, "upload": p1.Upload == p2.Upload,
				"worker start": p1.WorkerStart == p2.WorkerStart, "steps": p1.Steps == p2.Steps,
			} {
				if !same {
					t.Errorf("the phase %s has changed: %+v, then %+v", name, p1, p2)
				}
			}
			if !got.Removed || p2.Collect <= 0 || p2.Kill <= 0 || p2.Idle <= 0 || p2.Prepare <= 0 || p2.Create <= 0 || p2.Upload <= 0 || p2.WorkerStart <= 0 || p2.Steps <= 0 || p2.Finish <= 0 || got.Hosts != 1 {
				t.Errorf("after Collect: %+v", got)
			}
			if diff := cmp.Diff(executed.Steps, got.Steps); diff != "" {
				t.Errorf("steps (-executed +collected):\n%s", diff)
			}

			if len(got.Steps) != len(m.Steps) {
				t.Fatalf("%d steps, want %d", len(got.Steps), len(m.Steps))
			}
			for i, s := range got.Steps {
				want := result.StepResults[i]
				if s.StepID != want.StepID || s.RowsIn != want.RowsIn || s.RowsOut != want.RowsOut || s.Run <= 0 {
					t.Errorf("step %+v, its result is %+v", s, want)
				}
			}
			if join := got.Steps[10]; join.BytesIn <= 0 || join.BytesOut <= 0 || got.Steps[11].BytesIn != join.BytesOut {
				t.Errorf("tables: %+v, then %+v", join, got.Steps[11])
			}
			if got.Overhead == nil || got.Overhead.Drivers <= 0 {
				t.Errorf("overhead %+v", got.Overhead)
			}
			var brought int64
			for _, f := range files.Artifacts {
				brought += f.Size
			}
			if got.BytesSent <= 0 || got.BytesReceived < executed.BytesReceived+brought {
				t.Errorf("bytes %d there; %d back, %d of them before artifacts of %d came", got.BytesSent, got.BytesReceived, executed.BytesReceived, brought)
			}

			local := kind == "in process" || kind == "local"
			if paid := got.CostUSD > 0 && got.VCPUSeconds > 0 && got.GiBSeconds > 0; paid == local || (got.CPU > 0) == local {
				t.Errorf("on %s: %d CPUs, %g GiB, %g vCPU seconds, %g GiB seconds, $%g", kind, got.CPU, got.MemoryGB, got.VCPUSeconds, got.GiBSeconds, got.CostUSD)
			}
			if got.SandboxRan < executed.SandboxRan || got.SandboxRan < p2.Steps {
				t.Errorf("the sandbox ran for %s, then for %s", executed.SandboxRan, got.SandboxRan)
			}
		})
	}
}

// A step that fails, and a run that is cancelled, have receipts, too; that of
// Run is as of its end.
func TestReceiptOfFailure(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"local", "proxy"} {
		for _, driver := range []string{"test.fail", "test.panic", "test.wait", "test.exit"} {
			if driver == "test.exit" && kind == "proxy" {
				continue // it would end this process
			}
			t.Run(kind+"/"+driver, func(t *testing.T) {
				t.Parallel()
				a, _ := newAdapter(t, kind, remote.Config{}, nil)
				ec := newContext(t, "s")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if e.Name == "waiting" {
						cancel()
					}
					return nil
				}
				begin := time.Now()
				m := &remote.Manifest{Name: "m", Steps: []remote.Step{
					{ID: "rows", Driver: "test.rows", Config: map[string]any{"rows": 3}},
					{ID: "bad", Driver: driver, Needs: []string{"rows"}},
					{ID: "never", Driver: "test.noop", Needs: []string{"bad"}},
				}}
				result, files, err := remote.Run(ctx, a, m, ec)
				if err == nil {
					t.Fatal("it succeeded")
				}
				got := result.Receipt
				checkReceipt(t, got, time.Since(begin))
				if !got.Removed || got.Phases.Collect <= 0 {
					t.Errorf("receipt %+v", got)
				}
				if diff := cmp.Diff(got, readReceipt(t, ec)); diff != "" {
					t.Errorf("receipt.json (-result +file):\n%s", diff)
				}
				if diff := cmp.Diff(got, files.Receipt); diff != "" {
					t.Errorf("of Collect (-result +files):\n%s", diff)
				}
				if len(got.Steps) != 2 || got.Steps[1].StepID != "bad" || got.Steps[1].Run <= 0 || (got.Overhead == nil) != (driver == "test.exit") {
					t.Errorf("steps %+v, overhead %+v", got.Steps, got.Overhead)
				}
			})
		}
	}
}

// A run ends when its budget does, not before, and is collected.
func TestBudgetOfRun(t *testing.T) {
	size := 2*0.000014 + 0.5*0.0000045 // a second of the sandboxes here
	for _, test := range []struct {
		name    string
		cfg     remote.Config
		setting string
		at      time.Duration // zero means never
	}{
		{"cost", remote.Config{MaxCost: 60 * size}, "MaxCost", time.Minute},
		{"cost by other prices", remote.Config{MaxCost: 60, Prices: remote.Prices{VCPUSecond: 0.5, GiBSecond: 0}}, "MaxCost", time.Minute},
		{"duration", remote.Config{MaxDuration: time.Minute}, "MaxDuration", time.Minute},
		{"the first", remote.Config{MaxDuration: time.Minute, MaxCost: 30 * size}, "MaxCost", 30 * time.Second},
		{"enough", remote.Config{MaxDuration: time.Hour, MaxCost: 3600 * size}, "", 0},
		{"free", remote.Config{MaxCost: 60 * size, Prices: remote.Prices{GiBSecond: 1e-12}}, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.cfg.Timeout = time.Hour
				test.cfg.Drivers = sleepers()
				a, _ := newAdapter(t, "proxy", test.cfg, nil)
				ec := newContext(t, "s")
				begin := time.Now()
				m := &remote.Manifest{Name: "m", Steps: []remote.Step{
					{ID: "short", Driver: "test.sleep", Config: map[string]any{"seconds": 1}},
					{ID: "long", Driver: "test.sleep", Config: map[string]any{"seconds": 600}, Needs: []string{"short"}},
				}}
				result, files, err := remote.Run(t.Context(), a, m, ec)
				took := time.Since(begin)
				agree(t, ec, result, err)
				if files == nil || len(files.Artifacts) != 2 {
					t.Errorf("it was not collected: %+v", files)
				}
				checkReceipt(t, result.Receipt, took)
				if test.at == 0 {
					if err != nil || took < 10*time.Minute {
						t.Errorf("after %s: %v", took, err)
					}
					return
				}
				var over *remote.BudgetError
				if !errors.As(err, &over) || !errors.Is(err, remote.ErrBudget) || errors.Is(err, remote.ErrTimeout) || over.Setting != test.setting || over.Ran != test.at {
					t.Fatalf("after %s: %v", took, err)
				}
				if took < test.at || took > test.at+30*time.Second {
					t.Errorf("it took %s, want about %s", took, test.at)
				}
				if got := result.Receipt.SandboxRan; got < test.at {
					t.Errorf("the sandbox ran for %s", got)
				}
				if len(result.Stopped) == 0 || result.Stopped[0].Stage != remote.StageCancel || !result.Stopped[0].Gone || result.Stopped[len(result.Stopped)-1].Stage != remote.StageSandbox {
					t.Errorf("stopped: %+v", result.Stopped)
				}
				if s := result.StepResults; s[0].Status != remote.StepSucceeded || s[1].Status != remote.StepFailed || s[1].ErrorType != "cancelled" {
					t.Errorf("steps %+v", s)
				}
			})
		})
	}
}

// A budget that is over at once leaves nothing behind, wherever the run is.
func TestBudgetAtOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := newAdapter(t, kind, remote.Config{MaxDuration: 1}, nil)
			ec := newContext(t, "s")
			begin := time.Now()
			result, _, err := remote.Run(t.Context(), a, one("test.wait"), ec)
			if !errors.Is(err, remote.ErrBudget) {
				t.Fatalf("got %v", err)
			}
			agree(t, ec, result, err)
			checkReceipt(t, result.Receipt, time.Since(begin))
			if !result.Receipt.Removed {
				t.Error("the sandbox is still there")
			}
		})
	}
}

// What a sandbox without a size would cost cannot be limited, nor that of one
// with a size that cannot be. It is not paid for the other way round.
func TestBudgetOfUnknownSize(t *testing.T) {
	t.Parallel()
	for _, size := range []remote.SandboxInfo{{}, {CPU: -2, MemoryGB: -0.5}} {
		_, provider := newAdapter(t, "proxy", remote.Config{}, nil)
		cfg := remote.Config{MaxCost: 1, Drivers: testDrivers(), OpenSandbox: func(ctx context.Context, c remote.SandboxConfig) (remote.Sandbox, error) {
			sb, err := provider.OpenSandbox(ctx, c)
			return sized{sb, size}, err
		}}
		b, err := remote.NewE2BTransparentProxy(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		ec := newContext(t, "s")
		result, _, err := remote.Run(t.Context(), b, one("test.noop"), ec)
		if !errors.Is(err, remote.ErrUnsupported) || !strings.Contains(err.Error(), "MaxDuration") {
			t.Errorf("%+v: got %v", size, err)
		}
		if r := result.Receipt; r.CostUSD < 0 || r.VCPUSeconds < 0 || r.GiBSeconds < 0 || r.CPU < 0 || r.MemoryGB < 0 {
			t.Errorf("%+v: receipt %+v", size, r)
		}
		agree(t, ec, result, err)
	}
}

// sized is a sandbox that says it has another size.
type sized struct {
	remote.Sandbox
	size remote.SandboxInfo
}

func (s sized) Info() remote.SandboxInfo {
	info := s.Sandbox.Info()
	info.CPU, info.MemoryGB = s.size.CPU, s.size.MemoryGB
	return info
}

// The receipt of a run whose host has died is that of both hosts.
func TestReceiptAfterAttach(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	cfg := connect(remote.Config{Drivers: testDrivers()}, server)
	first, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	begin := time.Now()
	ec := newContext(t, "s")
	dir := filepath.Join(t.TempDir(), "s")
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "cleanup_complete" { // the verdict waits for this
			copyTree(t, ec.LogsDir, dir)
		}
		return nil
	}
	p, err := first.Prepare(t.Context(), join(), ec)
	if err != nil {
		t.Fatal(err)
	}
	before, err := first.Execute(t.Context(), p, ec)
	if err != nil {
		t.Fatal(err)
	}
	second, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	own := new(remote.ExecutionContext)
	q, result, err := second.Attach(t.Context(), dir, own)
	if err != nil {
		t.Fatal(err)
	}
	files, err := second.Collect(t.Context(), q, own)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]*remote.Receipt{"Attach": result.Receipt, "Collect": files.Receipt} {
		checkReceipt(t, got, time.Since(begin))
		old := before.Receipt
		if got.Hosts != 2 || !got.StartedAt.Equal(old.StartedAt) || got.Phases.Create != old.Phases.Create || got.Phases.Upload != old.Phases.Upload || got.Phases.Steps < old.Phases.Steps {
			t.Errorf("%s: %+v\nafter %+v", name, got, old)
		}
		if got.CPU != old.CPU || got.MemoryGB != old.MemoryGB || got.BytesSent < 1 || len(got.Steps) != len(old.Steps) || got.Overhead != nil {
			t.Errorf("%s: %+v\nafter %+v", name, got, old)
		}
		for i, s := range got.Steps {
			if s.StepID != old.Steps[i].StepID || s.Run <= 0 || s.RowsOut != old.Steps[i].RowsOut {
				t.Errorf("%s: step %+v, was %+v", name, s, old.Steps[i])
			}
		}
	}
	if diff := cmp.Diff(files.Receipt, readReceipt(t, own)); diff != "" {
		t.Errorf("receipt.json (-result +file):\n%s", diff)
	}
}

// spanTree is a tracer that keeps its spans.
type spanTree struct {
	mu    sync.Mutex
	spans []*treeSpan
	bad   bool // its names are none
}

type treeSpan struct {
	of           *spanTree
	id           int
	name, parent string
	attrs        map[string]string
	ends         int
	err          error
}

type spanKey struct{}

func (s *spanTree) Start(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, remote.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	span := &treeSpan{of: s, id: len(s.spans) + 1, name: name, attrs: make(map[string]string)}
	for _, a := range attrs {
		span.attrs[a.Key] = a.Value.String()
	}
	if up, ok := ctx.Value(spanKey{}).(*treeSpan); ok {
		span.parent = up.name
	}
	s.spans = append(s.spans, span)
	return context.WithValue(ctx, spanKey{}, span), span
}

func (s *treeSpan) TraceParent() string {
	if s.of.bad {
		return "00-nothing\r\nX: y"
	}
	return fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01", s.id)
}

func (s *treeSpan) SetAttributes(attrs ...slog.Attr) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	for _, a := range attrs {
		s.attrs[a.Key] = a.Value.String()
	}
}

func (s *treeSpan) End(err error) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.ends++
	s.err = err
}

// The run, its phases and its steps are spans below the caller's, and a driver
// has that of its step, wherever it runs.
func TestTracer(t *testing.T) {
	t.Parallel()
	drivers := testDrivers()
	drivers.Register("test.span", worker.Transform, func() worker.Driver {
		return driverFunc(func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogEvent("span", map[string]any{"traceparent": s.TraceParent})
			if fail, _ := s.Config["fail"].(bool); fail {
				return nil, errors.New("no")
			}
			return nil, nil
		})
	})
	m := func() *remote.Manifest {
		return &remote.Manifest{Name: "m", Steps: []remote.Step{
			{ID: "a", Driver: "test.span"}, {ID: "b", Driver: "test.span", Config: map[string]any{"fail": true}, Needs: []string{"a"}},
		}}
	}
	for _, kind := range []string{"in process", "proxy", "served"} {
		for _, bad := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bad=%t", kind, bad), func(t *testing.T) {
				t.Parallel()
				a, _ := newAdapter(t, kind, remote.Config{Drivers: drivers}, nil)
				ec := newContext(t, "s")
				tree := &spanTree{bad: bad}
				ec.Tracer = tree
				ctx, host := tree.Start(t.Context(), "host")
				_, _, err := remote.Run(ctx, a, m(), ec)
				if !errors.Is(err, remote.ErrStepFailed) {
					t.Fatal(err)
				}
				host.End(nil)
				parents := make(map[string]string)
				steps := make(map[string]*treeSpan)
				for _, s := range tree.spans {
					if s.ends != 1 {
						t.Errorf("span %s was ended %d times", s.name, s.ends)
					}
					if old, ok := parents[s.name]; ok && old != s.parent {
						t.Errorf("span %s is below %s and %s", s.name, old, s.parent)
					}
					parents[s.name] = s.parent
					switch s.name {
					case "osiris.step":
						steps[s.attrs["osiris.step_id"]] = s
					case "osiris.execute", "osiris.collect":
						if s.attrs["osiris.session_id"] != "s" || s.attrs["osiris.bytes_sent"] == "" || (s.err != nil) != (s.name == "osiris.execute") {
							t.Errorf("span %s: %v, %v", s.name, s.attrs, s.err)
						}
					}
				}
				want := map[string]string{"host": "", "osiris.execute": "host", "osiris.collect": "host", "osiris.step": "osiris.execute", "osiris.phase.collect": "osiris.collect", "osiris.phase.kill": "osiris.collect"}
				for _, name := range []string{"prepare", "create", "upload", "worker_start", "dependencies", "steps", "finish"} {
					want["osiris.phase."+name] = "osiris.execute"
				}
				if diff := cmp.Diff(want, parents); diff != "" {
					t.Errorf("spans with what is above them (-want +got):\n%s", diff)
				}
				if ids := slices.Sorted(maps.Keys(steps)); !slices.Equal(ids, []string{"a", "b"}) || steps["a"].err != nil || !errors.Is(steps["b"].err, remote.ErrStepFailed) {
					t.Fatalf("steps %q, %+v", ids, steps)
				}
				for _, e := range events(t, ec, "span") {
					want := steps[e["step_id"].(string)].TraceParent()
					if bad {
						want = ""
					} else if !rpc.ValidTraceParent(want) {
						t.Errorf("%q is none", want)
					}
					if e["traceparent"] != want {
						t.Errorf("step %s has the span %q, want %q", e["step_id"], e["traceparent"], want)
					}
				}
				if log := sessionLog(t, ec); strings.Contains(log, "traceparent for step") != bad {
					t.Errorf("osiris.log:\n%s", log)
				}
			})
		}
	}
}

// Tables that the host sends, and those that it reads, are in the receipt.
func TestReceiptOfTables(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			ec.Tables = map[string]remote.Table{"numbers": numberedFrom(3000, 700)}
			keepAll(ec)
			begin := time.Now()
			p, err := a.Prepare(t.Context(), passing("numbers"), ec)
			if err != nil {
				t.Fatal(err)
			}
			result, err := a.Execute(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			executed := result.Receipt
			checkReceipt(t, executed, time.Since(begin))
			if s := executed.Steps[0]; executed.Phases.Transfer <= 0 || s.BytesIn <= 0 || s.BytesOut <= 0 || executed.BytesSent < s.BytesIn {
				t.Errorf("after Execute: %+v", executed)
			}
			r, err := a.(remote.OutputFetcher).FetchOutput(t.Context(), p, ec, "pass", "numbers")
			if err != nil {
				t.Fatal(err)
			}
			sameTable(t, r, numbered(3000, 700))
			r.Release()
			files, err := a.Collect(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			got := files.Receipt
			checkReceipt(t, got, time.Since(begin))
			if got.Phases.Transfer <= executed.Phases.Transfer || got.BytesReceived-executed.BytesReceived < 3000*8 {
				t.Errorf("after Collect: %+v\nbefore: %+v", got, executed)
			}
		})
	}
}
