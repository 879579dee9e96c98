package parquet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
)

// frame makes a table from JSON rows.
func frame(tb testing.TB, rows string, fields ...arrow.Field) *worker.DataFrame {
	tb.Helper()
	schema := arrow.NewSchema(fields, nil)
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		tb.Fatal(err)
	}
	defer rec.Release()
	return frameOf(tb, schema, rec)
}

// numbers writes a file of the columns id, name and point, a struct.
func numbers(tb testing.TB, rows int, config map[string]any) string {
	tb.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "point", Type: arrow.StructOf(arrow.Field{Name: "x", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
			arrow.Field{Name: "tags", Type: arrow.ListOf(arrow.BinaryTypes.String), Nullable: true}), Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	point := b.Field(2).(*array.StructBuilder)
	tags := point.FieldBuilder(1).(*array.ListBuilder)
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.StringBuilder).Append(strings.Repeat("n", i%7))
		point.Append(true)
		point.FieldBuilder(0).(*array.Float64Builder).Append(float64(i) / 2)
		tags.Append(true)
		tags.ValueBuilder().(*array.StringBuilder).Append("t")
	}
	rec := b.NewRecord()
	defer rec.Release()
	dir := tb.TempDir()
	if _, err := write(tb, dir, "numbers.parquet", frameOf(tb, schema, rec), config); err != nil {
		tb.Fatal(err)
	}
	return filepath.Join(dir, "numbers.parquet")
}

func TestExtract(t *testing.T) {
	path := numbers(t, 100, map[string]any{"row_group_size": 30})
	ids := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = string(appendInt(nil, i))
		}
		return out
	}
	for _, c := range []struct {
		name    string
		config  map[string]any
		columns []string
		batches []int64
		rows    int
	}{
		{"all", nil, []string{"id", "name", "point"}, []int64{30, 30, 30, 10}, 100},
		{"batches", map[string]any{"batch_size": 20}, []string{"id", "name", "point"}, []int64{20, 10, 20, 10, 20, 10, 10}, 100},
		{"columns", map[string]any{"columns": []any{"point", "id"}}, []string{"point", "id"}, []int64{30, 30, 30, 10}, 100},
		{"limit", map[string]any{"limit": 35, "batch_size": 20}, []string{"id", "name", "point"}, []int64{20, 10, 5}, 35},
		{"no rows", map[string]any{"limit": 0}, []string{"id", "name", "point"}, nil, 0},
		{"no columns", map[string]any{"columns": []any{}}, nil, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &sink{}
			df, err := extract(t, &worker.Step{Sink: s}, path, c.config)
			if err != nil {
				t.Fatal(err)
			}
			var columns []string
			var batches []int64
			for _, f := range df.Schema().Fields() {
				columns = append(columns, f.Name)
			}
			r := df.Reader()
			defer r.Release()
			for r.Next() {
				batches = append(batches, r.Record().NumRows())
			}
			if diff := cmp.Diff(c.columns, columns); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.batches, batches); diff != "" {
				t.Errorf("batches (-want +got):\n%s", diff)
			}
			if i := df.Schema().FieldIndices("id"); i != nil {
				if diff := cmp.Diff(ids(c.rows), values(t, df, i[0])); diff != "" {
					t.Errorf("ids (-want +got):\n%s", diff)
				}
			}
			if n, ok := s.metrics["rows_read"]; !ok || n != float64(c.rows) {
				t.Errorf("metrics %v", s.metrics)
			}
		})
	}
}

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func TestExtractErrors(t *testing.T) {
	path := numbers(t, 10, nil)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(b []byte) string {
		name := filepath.Join(dir, "f.parquet")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		name   string
		path   func() string
		config map[string]any
		want   string
	}{
		{"no path", func() string { return "" }, nil, "'path' is required in config"},
		{"missing", func() string { return filepath.Join(dir, "gone.parquet") }, nil, "parquet file not found: open "},
		{"directory", func() string { return dir }, nil, "it is a directory"},
		{"empty", func() string { return file(nil) }, nil, "parquet extraction failed: "},
		{"csv", func() string { return file([]byte("a,b\n1,2\n3,4\n5,6\n")) }, nil, "it is no Parquet file"},
		{"cut off", func() string { return file(content[:len(content)/2]) }, nil, "the file is cut off"},
		{"cut out", func() string { return file(append(bytes.Clone(content[:100]), content[len(content)-900:]...)) }, nil, "parquet extraction failed: "},
		{"columns", func() string { return path }, map[string]any{"columns": []any{"id", "nr", "x"}}, `no columns "nr", "x"; the file has ["id" "name" "point"]`},
		{"column twice", func() string { return path }, map[string]any{"columns": []any{"id", "id"}}, `"id" is there twice`},
		{"limit", func() string { return path }, map[string]any{"limit": -1}, `config key "limit"`},
		{"batch size", func() string { return path }, map[string]any{"batch_size": 0}, `config key "batch_size"`},
		{"type", func() string { return path }, map[string]any{"columns": "id"}, `config key "columns"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &sink{}
			name := c.path()
			_, err := extract(t, &worker.Step{Sink: s, Allocator: memory.DefaultAllocator}, name, c.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if errors.Is(err, fs.ErrNotExist) != (c.name == "missing") || len(s.metrics) > 0 {
				t.Errorf("error %v, metrics %v", err, s.metrics)
			}
		})
	}
}

func TestInputFiles(t *testing.T) {
	for want, config := range map[string]map[string]any{
		"a.parquet":                        {"path": "a.parquet"},
		filepath.Join("data", "a.parquet"): {"path": "a.parquet", "resolved_connection": map[string]any{"base_dir": "data"}},
	} {
		got, err := new(parquet.Extractor).InputFiles(config)
		if diff := cmp.Diff([]string{want}, got); diff != "" || err != nil {
			t.Errorf("%v: %s", err, diff)
		}
	}
	if _, err := new(parquet.Extractor).InputFiles(map[string]any{"path": 1}); err == nil {
		t.Error("no error")
	}
}

// TestHostile reads files whose bytes were changed: at worst that is an error.
func TestHostile(t *testing.T) {
	for _, compression := range []string{"none", "snappy", "zstd"} {
		t.Run(compression, func(t *testing.T) { testHostile(t, compression) })
	}
}

func testHostile(t *testing.T, compression string) {
	original, err := os.ReadFile(numbers(t, 300, map[string]any{"row_group_size": 200, "compression": compression}))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "f.parquet")
	r := rand.New(rand.NewPCG(6, 6))
	failed := 0
	for range 70 {
		b := bytes.Clone(original)
		for range 1 + r.IntN(3) {
			b[r.IntN(len(b)-8)] = byte(r.Uint32())
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := extract(t, &worker.Step{Allocator: memory.DefaultAllocator}, name, map[string]any{"batch_size": 64}); err != nil {
			failed++
			if !strings.HasPrefix(err.Error(), "parquet extraction failed: ") && !strings.HasPrefix(err.Error(), "read output: parquet extraction failed: ") {
				t.Errorf("error %v", err)
			}
		}
	}
	t.Logf("%d of 70 files were refused", failed)
	if failed == 0 {
		t.Error("none was refused")
	}
}

func TestContext(t *testing.T) {
	path := numbers(t, 100, nil)
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	s := &sink{}
	ctx, cancel := context.WithCancel(context.Background())
	res, err := new(parquet.Extractor).Run(ctx, &worker.Step{Allocator: mem, Sink: s, Config: map[string]any{"path": path, "batch_size": 10}})
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs["df"]
	if !r.Next() {
		t.Fatal(r.Err())
	}
	cancel()
	if r.Next() || !errors.Is(r.Err(), context.Canceled) {
		t.Errorf("after cancel: %v", r.Err())
	}
	r.Retain()
	r.Release()
	r.Release()
	df := frame(t, `[{"a": 1}]`, arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64})
	_, err = new(parquet.Writer).Run(ctx, &worker.Step{ArtifactsDir: t.TempDir(), Sink: s, Config: map[string]any{"path": "o.parquet"}, Inputs: map[string]*worker.DataFrame{"df": df}})
	if !errors.Is(err, context.Canceled) || len(s.metrics) > 0 {
		t.Errorf("writer: %v, metrics %v", err, s.metrics)
	}
	// A stream that is left before its end.
	res, err = new(parquet.Extractor).Run(context.Background(), &worker.Step{Allocator: mem, Config: map[string]any{"path": path, "batch_size": 10}})
	if err != nil {
		t.Fatal(err)
	}
	res.Outputs["df"].Next()
	res.Outputs["df"].Release()
}

func TestWriteErrors(t *testing.T) {
	field := func(t arrow.DataType) arrow.Field { return arrow.Field{Name: "a", Type: t, Nullable: true} }
	df := frame(t, `[{"a": 1}]`, field(arrow.PrimitiveTypes.Int64))
	for _, c := range []struct {
		name   string
		df     *worker.DataFrame
		config map[string]any
		want   string
	}{
		{"path", df, map[string]any{"path": ""}, "'path' is required in config"},
		{"outside", df, map[string]any{"path": "../o.parquet"}, "parquet writing failed: "},
		{"compression", df, map[string]any{"compression": "lzo"}, "want one of snappy, zstd, gzip, brotli, none"},
		{"row groups", df, map[string]any{"row_group_size": 0}, `config key "row_group_size"`},
		{"interval", frame(t, `[{"a": null}]`, field(arrow.FixedWidthTypes.MonthDayNanoInterval)), nil, `column "a": month_day_nano_interval cannot be written to Parquet`},
		{"below", frame(t, `[{"a": null}]`, field(arrow.ListOf(arrow.FixedWidthTypes.Duration_s))), nil, `column "a": list<item: duration[s], nullable> cannot be written`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := write(t, t.TempDir(), "o.parquet", c.df, c.config)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(s.metrics) > 0 {
				t.Errorf("error %v, want %q; metrics %v", err, c.want, s.metrics)
			}
		})
	}
	_, err := new(parquet.Writer).Run(context.Background(), &worker.Step{Config: map[string]any{"path": "o.parquet"}})
	if err == nil || !strings.Contains(err.Error(), "filesystem.parquet_writer requires a table in inputs") {
		t.Errorf("error %v", err)
	}
}

// A table that ends by an error after some row groups leaves no file that passes
// for a whole one.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	drivers := worker.NewRegistry()
	drivers.Register("make", worker.Extract, func() worker.Driver {
		return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) {
			var records []arrow.Record
			df := frame(t, `[{"a": 1}, {"a": 2}]`, arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64})
			for r := df.Reader(); len(records) < 3 && r.Next(); r = df.Reader() {
				records = append(records, r.Record())
			}
			r, err := array.NewRecordReader(df.Schema(), records)
			return worker.Output(r), err
		})
	})
	drivers.Register("write", worker.Write, func() worker.Driver {
		return driverFunc(func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			file := s.Inputs["df"].Files()[0]
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			last := bytes.LastIndex(b[:len(b)-8], []byte("\xff\xff\xff\xff")) // the third batch
			b[last] = 0
			if err := os.WriteFile(file, b, 0o600); err != nil {
				return nil, err
			}
			s.ArtifactsDir = dir
			return new(parquet.Writer).Run(ctx, s)
		})
	})
	w, err := worker.New(worker.Options{Dir: t.TempDir(), Drivers: drivers, MemoryBudget: 1})
	if err != nil {
		t.Fatal(err)
	}
	in, stdin := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(context.Background(), in)
	}()
	defer func() { stdin.Close(); <-done }()
	if _, err := w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: "a", Driver: "make", Keep: true}); err != nil {
		t.Fatal(err)
	}
	_, err = w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: "b", Driver: "write", Config: json.RawMessage(`{"path": "o.parquet", "row_group_size": 2}`),
		Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}}})
	if err == nil || !strings.Contains(err.Error(), "parquet writing failed: o.parquet: ") {
		t.Errorf("error %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "o.parquet"))
	if err != nil || !bytes.HasPrefix(b, []byte("PAR1")) || len(b) < 20 {
		t.Errorf("the file has %d bytes, %v", len(b), err)
	}
	if _, err := new(parquet.Extractor).Run(t.Context(), &worker.Step{Config: map[string]any{"path": filepath.Join(dir, "o.parquet")}}); err == nil {
		t.Error("what is left passes for a file")
	}
}

type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

// TestColumnOrder keeps what the table has, empty or not.
func TestColumnOrder(t *testing.T) {
	dir := t.TempDir()
	integer := func(name string) arrow.Field { return arrow.Field{Name: name, Type: arrow.PrimitiveTypes.Int64} }
	for name, rows := range map[string]string{"some": `[{"b": 1, "a": 2}]`, "none": `[]`} {
		df := frame(t, rows, integer("b"), integer("a"))
		if _, err := write(t, dir, name, df, nil); err != nil {
			t.Fatal(err)
		}
		again := mustExtract(t, filepath.Join(dir, name), nil)
		if diff := cmp.Diff(df.Schema().String(), again.Schema().String()); diff != "" || again.Rows() != df.Rows() {
			t.Errorf("%s: %d rows (-want +got):\n%s", name, again.Rows(), diff)
		}
	}
}

// FuzzExtract reads whatever bytes there are.
func FuzzExtract(f *testing.F) {
	b, err := os.ReadFile(numbers(f, 20, map[string]any{"row_group_size": 15, "compression": "none"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "f.parquet")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		extract(t, &worker.Step{Allocator: memory.DefaultAllocator}, name, map[string]any{"batch_size": 7}) //nolint:errcheck // may fail
	})
}

// TestNotInWorker: who does not import the package does not pay for it.
func TestNotInWorker(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/osiris-pipelines/remote/worker/cmd/osiris-worker").Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"google.golang.org/grpc", "github.com/apache/arrow/go/v17/parquet", "github.com/apache/thrift"} {
		if strings.Contains(string(out), path) {
			t.Errorf("the ready-made worker imports %s", path)
		}
	}
}

// TestMemory reads a row group that is far larger than a batch.
func TestMemory(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "text", Type: arrow.BinaryTypes.String}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	const rows = 50_000
	for i := range rows {
		b.Field(0).(*array.StringBuilder).Append(string(appendInt(nil, i)) + strings.Repeat("x", 400))
	}
	rec := b.NewRecord()
	defer rec.Release()
	dir := t.TempDir()
	if _, err := write(t, dir, "large.parquet", frameOf(t, schema, rec), nil); err != nil {
		t.Fatal(err)
	}
	mem := &peak{Allocator: memory.DefaultAllocator}
	res, err := new(parquet.Extractor).Run(context.Background(), &worker.Step{Allocator: mem, Config: map[string]any{"path": filepath.Join(dir, "large.parquet"), "batch_size": 1000}})
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs["df"]
	defer r.Release()
	read := int64(0)
	for r.Next() {
		read += r.Record().NumRows()
	}
	if r.Err() != nil || read != rows {
		t.Fatalf("%d rows, %v", read, r.Err())
	}
	if most := mem.most.Load(); most > 4<<20 {
		t.Errorf("%d bytes at once, for batches of 0.4 MB from a file of 20 MB", most)
	}
}

// peak counts what is allocated.
type peak struct {
	memory.Allocator
	now, most atomic.Int64
}

func (p *peak) add(n int) {
	if now := p.now.Add(int64(n)); now > p.most.Load() { // a reader is for one goroutine
		p.most.Store(now)
	}
}

func (p *peak) Allocate(size int) []byte {
	p.add(size)
	return p.Allocator.Allocate(size)
}

func (p *peak) Reallocate(size int, b []byte) []byte {
	p.add(size) // the old is there until the new is filled
	old := len(b)
	b = p.Allocator.Reallocate(size, b)
	p.add(-old)
	return b
}

func (p *peak) Free(b []byte) {
	p.add(-len(b))
	p.Allocator.Free(b)
}
