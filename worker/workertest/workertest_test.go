package workertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/workertest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

func (f driverFunc) make() worker.Driver { return f }

// numbers puts out config's number of batches, of one number each.
func numbers(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	var cfg struct{ Batches int64 }
	if err := step.DecodeConfig(&cfg); err != nil {
		return nil, err
	}
	if cfg.Batches < 0 {
		return nil, errors.New("no such number")
	}
	step.LogEvent("counting", map[string]any{"to": cfg.Batches})
	step.Log().Info("counting")
	f, err := step.Create("notes/n.txt")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(f, cfg.Batches); err != nil {
		return nil, err
	}
	return worker.Output(&counter{ctx: ctx, step: step, left: cfg.Batches, refs: 1}), f.Close()
}

var oneNumber = arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)

// counter is a reader that makes its batches as they are asked for.
type counter struct {
	ctx  context.Context
	step *worker.Step
	left int64
	refs int
	rec  arrow.Record
	err  error
	leak bool // does not free its batches
}

func (c *counter) Schema() *arrow.Schema { return oneNumber }
func (c *counter) Record() arrow.Record  { return c.rec }
func (c *counter) Err() error            { return c.err }
func (c *counter) Retain()               { c.refs++ }

func (c *counter) Release() {
	if c.refs--; c.refs == 0 {
		c.drop()
	}
}

func (c *counter) drop() {
	if c.rec != nil && !c.leak {
		c.rec.Release()
	}
	c.rec = nil
}

func (c *counter) Next() bool {
	c.drop()
	if c.err = c.ctx.Err(); c.err != nil || c.left == 0 {
		return false
	}
	b := array.NewRecordBuilder(c.step.Memory(), oneNumber)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).Append(c.left)
	c.rec = b.NewRecord()
	c.left--
	c.step.LogMetric("left", float64(c.left), "rows")
	return true
}

var three = workertest.Case{Config: map[string]any{"batches": json.Number("3")}}

func TestRun(t *testing.T) {
	res, err := workertest.Run(t, driverFunc(numbers), three)
	if err != nil {
		t.Fatal(err)
	}
	res.Golden(t, filepath.Join("testdata", "numbers.txt"), *update)
	if want := "level=INFO msg=counting\n"; res.Log != want {
		t.Errorf("log %q, want %q", res.Log, want)
	}
	_, err = workertest.Run(t, driverFunc(numbers), workertest.Case{Config: map[string]any{"batches": json.Number("-1")}})
	if err == nil || err.Error() != "no such number" {
		t.Errorf("error %v", err)
	}
	// Another result is told from that in the file.
	rec := record(t, func(tb testing.TB) {
		res.Metrics["left"] = 7
		res.Golden(tb, filepath.Join("testdata", "numbers.txt"), false)
	})
	if len(rec) != 1 || !strings.Contains(rec[0], "== metric left 7") {
		t.Errorf("golden: %q", rec)
	}
}

func TestTables(t *testing.T) {
	at := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, df := range []*worker.DataFrame{
		workertest.CSV(t, "id,name\n1,ann\n2,\n"),
		workertest.Rows(t, []string{"id", "name"}, []any{1, "ann"}, []any{int64(2), nil}),
	} {
		res, err := workertest.Run(t, driverFunc(func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			in, err := s.OnlyInput()
			if err != nil {
				return nil, err
			}
			return worker.Output(in.Reader()), nil
		}), workertest.Case{Inputs: map[string]*worker.DataFrame{"df": df}})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("== output df\nid:int64|name:utf8\n1|ann\n2|(null)\n", res.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if got := workertest.Rows(t, []string{"t", "b", "f", "o", "n"}, []any{at, []byte("x"), 1.5, true, nil}).Schema().String(); !strings.Contains(got, "timestamp[us]") || !strings.Contains(got, "null") {
		t.Errorf("schema %s", got)
	}
}

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func record(t *testing.T, f func(testing.TB)) []string {
	r := &recorder{TB: t}
	f(r)
	return r.failures
}

// TestChecks has a driver that passes every check, and one bad one for each
// that does not.
func TestChecks(t *testing.T) {
	leaks := func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		return worker.Output(&counter{ctx: ctx, step: s, left: 2, refs: 1, leak: true}), nil
	}
	secret := workertest.Case{Config: map[string]any{"batches": json.Number("1"), "password": "canary-7"}}
	tells := func(how func(s *worker.Step, password string) error) driverFunc {
		return func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			return nil, how(s, s.Config["password"].(string))
		}
	}
	for _, tt := range []struct {
		name  string
		check func(testing.TB, func() worker.Driver, workertest.Case)
		d     driverFunc
		c     workertest.Case
		want  string // in the failures; empty: none
	}{
		{"cancel: good", workertest.CheckCancel, numbers, three, ""},
		{"cancel: deaf", workertest.CheckCancel, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogEvent("x", nil)
			time.Sleep(time.Hour)
			return nil, nil
		}, three, "does not end within 5s"},
		{"cancel: no error", workertest.CheckCancel, func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil }, three, "ends with error <nil>"},
		{"cancel: another error", workertest.CheckCancel, func(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
			<-ctx.Done()
			return nil, errors.New("broken pipe")
		}, three, "ends with error broken pipe"},
		{"memory: good", workertest.CheckMemory, numbers, three, ""},
		{"memory: leak", workertest.CheckMemory, leaks, three, "bytes of the step's allocator are not freed"},
		{"memory: inputs", workertest.CheckMemory, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.Inputs["df"].Release()
			return nil, nil
		}, workertest.Case{}, `input "df" was released`},
		{"memory: error", workertest.CheckMemory, tells(func(*worker.Step, string) error { return errors.New("no") }), secret, "read to their ends: no"},
		{"secrets: good", canary, numbers, secret, ""},
		{"secrets: log", canary, tells(func(s *worker.Step, p string) error { s.Log().Debug("connect", "with", p); return nil }), secret, "the log has"},
		{"secrets: event", canary, tells(func(s *worker.Step, p string) error { s.LogEvent("connect", map[string]any{"with": p}); return nil }), secret, "an event has"},
		{"secrets: metric", canary, tells(func(s *worker.Step, p string) error { s.LogMetric(p, 1, ""); return nil }), secret, "a metric has"},
		{"secrets: error", canary, tells(func(_ *worker.Step, p string) error { return errors.New("cannot log in with " + p) }), secret, "the error has"},
		{"secrets: file", canary, tells(func(s *worker.Step, p string) error {
			return os.WriteFile(filepath.Join(s.ArtifactsDir, "x"), []byte(p), 0o600)
		}), secret, "the file x has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.name == "memory: inputs" {
					df, err := worker.ReadDataFrame(&counter{ctx: t.Context(), step: &worker.Step{}, left: 1, refs: 1})
					if err != nil {
						t.Fatal(err)
					}
					tt.c.Inputs = map[string]*worker.DataFrame{"df": df}
				}
				got := strings.Join(record(t, func(tb testing.TB) { tt.check(tb, tt.d.make, tt.c) }), "\n")
				time.Sleep(2 * time.Hour) // so that the deaf ones have ended, in the bubble's time
				if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
					t.Errorf("failures %q, want %q", got, tt.want)
				}
				if strings.Contains(got, "canary") {
					t.Errorf("the failure tells the secret: %q", got)
				}
			})
		})
	}
}

func canary(t testing.TB, d func() worker.Driver, c workertest.Case) {
	workertest.CheckSecrets(t, d, c, "canary-7", "")
}

// The drivers of this module pass.
func TestCSV(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("a,b\n"+strings.Repeat("1,x\n", 30000)), 0o600); err != nil {
		t.Fatal(err)
	}
	read := workertest.Case{Config: map[string]any{"path": "in.csv"}, BasePath: dir}
	reader := func() worker.Driver { return &csv.Extractor{} }
	workertest.CheckCancel(t, reader, read)
	workertest.CheckMemory(t, reader, read)
	write := workertest.Case{Config: map[string]any{"path": "out.csv"}, Inputs: map[string]*worker.DataFrame{"df": workertest.CSVFile(t, filepath.Join(dir, "in.csv"))}}
	writer := func() worker.Driver { return &csv.Writer{} }
	workertest.CheckCancel(t, writer, write)
	workertest.CheckMemory(t, writer, write)
}
