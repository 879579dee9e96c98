package parquet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink records metrics.
type sink struct {
	mu      sync.Mutex
	metrics map[string]float64
}

func (s *sink) Event(string, map[string]any) {}

func (s *sink) Metric(name string, value float64, _ string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.metrics == nil {
		s.metrics = make(map[string]float64)
	}
	s.metrics[name] += value
}

// extract reads a file. All memory is seen to be released when the test ends.
func extract(tb testing.TB, step *worker.Step, path string, config map[string]any) (*worker.DataFrame, error) {
	tb.Helper()
	if step.Allocator == nil {
		mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
		tb.Cleanup(func() { mem.AssertSize(tb, 0) })
		step.Allocator = mem
	}
	step.Config = map[string]any{"path": path}
	maps.Copy(step.Config, config)
	res, err := new(parquet.Extractor).Run(context.Background(), step)
	if err != nil {
		return nil, err
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err == nil {
		tb.Cleanup(df.Release)
	}
	return df, err
}

func mustExtract(tb testing.TB, path string, config map[string]any) *worker.DataFrame {
	tb.Helper()
	df, err := extract(tb, &worker.Step{}, path, config)
	if err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return df
}

// write writes a table to the file name in dir.
func write(tb testing.TB, dir, name string, df *worker.DataFrame, config map[string]any) (*sink, error) {
	tb.Helper()
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(tb, 0)
	s := &sink{}
	step := &worker.Step{ArtifactsDir: dir, Sink: s, Allocator: mem, Config: map[string]any{"path": name}, Inputs: map[string]*worker.DataFrame{"df": df}}
	maps.Copy(step.Config, config)
	_, err := new(parquet.Writer).Run(context.Background(), step)
	return s, err
}

func frameOf(tb testing.TB, schema *arrow.Schema, recs ...arrow.Record) *worker.DataFrame {
	tb.Helper()
	r, err := array.NewRecordReader(schema, recs)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(df.Release)
	return df
}

// readIPC reads a file of Arrow's stream format.
func readIPC(tb testing.TB, path string) *worker.DataFrame {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	r, err := ipc.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(df.Release)
	return df
}

// values returns a column as JSON texts, whatever batches it came in.
func values(tb testing.TB, df *worker.DataFrame, column int) []string {
	tb.Helper()
	out := []string{}
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		a := r.Record().Column(column)
		for i := range a.Len() {
			v := a.GetOneForMarshal(i)
			if b, ok := v.([]byte); ok && a.IsValid(i) {
				v = string(b) // an empty one may be nil
			}
			b, err := json.Marshal(v)
			if err != nil { // infinity
				b = fmt.Append(nil, a.ValueStr(i))
			}
			out = append(out, string(b))
		}
	}
	return out
}

// python runs testdata/exchange.py with the tests' Python, and skips without.
func python(t *testing.T, out, in string) {
	t.Helper()
	program := os.Getenv("OSIRIS_TEST_PYTHON")
	if program == "" {
		t.Skip("OSIRIS_TEST_PYTHON names no Python; scripts/test-setup installs one")
	}
	output, err := exec.Command(program, filepath.Join("testdata", "exchange.py"), out, in).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 77 {
		t.Skip("the tests' Python has no pandas and pyarrow; scripts/test-setup installs them")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}
