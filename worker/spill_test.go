package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/arrowtest"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// countingAllocator knows how much of it is in use, and how much ever was.
type countingAllocator struct {
	now, most atomic.Int64
}

func (c *countingAllocator) add(n int) {
	now := c.now.Add(int64(n))
	for most := c.most.Load(); now > most && !c.most.CompareAndSwap(most, now); most = c.most.Load() {
	}
}

func (c *countingAllocator) Allocate(n int) []byte {
	c.add(n)
	return memory.DefaultAllocator.Allocate(n)
}

func (c *countingAllocator) Reallocate(n int, b []byte) []byte {
	c.add(n - len(b))
	return memory.DefaultAllocator.Reallocate(n, b)
}

func (c *countingAllocator) Free(b []byte) {
	c.add(-len(b))
	memory.DefaultAllocator.Free(b)
}

// running is a worker whose steps are called for directly.
type running struct {
	*worker.ProxyWorker
	t   *testing.T
	dir string
	end func()
}

func run(t *testing.T, opts worker.Options, drivers map[string]driverFunc) *running {
	t.Helper()
	opts.Drivers = registry(drivers)
	return runWith(t, opts)
}

func runWith(t *testing.T, opts worker.Options) *running {
	t.Helper()
	opts.Dir = t.TempDir()
	w, err := worker.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	in, stdin := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(context.Background(), in)
	}()
	r := &running{ProxyWorker: w, t: t, dir: opts.Dir, end: sync.OnceFunc(func() { stdin.Close(); <-done })}
	t.Cleanup(r.end)
	return r
}

// step runs a step, whose one input is the first output of another.
func (r *running) step(id, driver, from string, release ...string) *rpc.StepResult {
	r.t.Helper()
	p := &rpc.ExecuteStep{StepID: id, Driver: driver, Keep: true, Release: release}
	if from != "" {
		p.Inputs = map[string]rpc.InputRef{"df": {FromStep: from}}
	}
	result, err := r.ExecuteStep(r.t.Context(), p)
	if err != nil {
		r.t.Fatalf("step %s: %v", id, err)
	}
	return result
}

// files are the outputs on disk.
func (r *running) files() []string {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.dir, "outputs", "*", "*"))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range names {
		names[i], _ = filepath.Rel(r.dir, names[i])
	}
	return names
}

// events are what a worker that has ended has said by that name.
func (r *running) events(name string) (events []map[string]any) {
	r.t.Helper()
	r.end()
	var out bytes.Buffer
	if code := (worker.Program{}).Run(r.t.Context(), []string{"tail", "-dir", r.dir, "-follow=false"}, strings.NewReader(""), &out, os.Stderr); code != 0 {
		r.t.Fatalf("tail ended with %d", code)
	}
	frames := rpc.NewFrameReader(&out, 0, 0)
	for {
		f, err := frames.Next()
		if err == io.EOF {
			return events
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if f.Type != rpc.FrameEvent && f.Type != rpc.FrameLog {
			continue
		}
		data, err := rpc.Data(f.Type, f.Payload)
		if err != nil {
			r.t.Fatal(err)
		}
		line := make(map[string]any)
		if err := json.Unmarshal(data, &line); err != nil {
			r.t.Fatal(err)
		}
		if line["event"] == name || name == "" && f.Type == rpc.FrameLog {
			events = append(events, line)
		}
	}
}

// stream is a reader of n batches, each made when it is wanted.
type stream struct {
	schema *arrow.Schema
	make   func(i int) (arrow.Record, error)
	n, i   int
	rec    arrow.Record
	err    error
	refs   int
}

func newStream(schema *arrow.Schema, n int, make func(i int) (arrow.Record, error)) *stream {
	return &stream{schema: schema, make: make, n: n, refs: 1}
}

func (s *stream) Schema() *arrow.Schema { return s.schema }
func (s *stream) Record() arrow.Record  { return s.rec }
func (s *stream) Err() error            { return s.err }
func (s *stream) Retain()               { s.refs++ }
func (s *stream) Release() {
	if s.refs--; s.refs == 0 {
		s.drop()
	}
}

func (s *stream) drop() {
	if s.rec != nil {
		s.rec.Release()
		s.rec = nil
	}
}

func (s *stream) Next() bool {
	s.drop()
	if s.i == s.n || s.err != nil {
		return false
	}
	s.rec, s.err = s.make(s.i)
	s.i++
	return s.err == nil
}

var numberSchema = arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)

// numberStream puts out batches of numbers that count on, 8 bytes each.
func numberStream(mem memory.Allocator, batches, rows int) *stream {
	return newStream(numberSchema, batches, func(i int) (arrow.Record, error) {
		buf := memory.NewResizableBuffer(mem)
		defer buf.Release()
		buf.Resize(8 * rows)
		for j, values := 0, arrow.Int64Traits.CastFromBytes(buf.Bytes()); j < rows; j++ {
			values[j] = int64(i*rows + j)
		}
		data := array.NewData(arrow.PrimitiveTypes.Int64, rows, []*memory.Buffer{nil, buf}, nil, 0, 0)
		defer data.Release()
		col := array.NewInt64Data(data)
		defer col.Release()
		return array.NewRecord(numberSchema, []arrow.Array{col}, int64(rows)), nil
	})
}

// countOn reads numbers that count on.
func countOn(r array.RecordReader) (rows int64, err error) {
	for r.Next() {
		for _, n := range r.Record().Column(0).(*array.Int64).Int64Values() {
			if n != rows {
				return rows, fmt.Errorf("%d is in place of %d", n, rows)
			}
			rows++
		}
	}
	return rows, r.Err()
}

// flow are drivers that make a table, pass it on, and read it, batch by batch.
func flow(batches, rows int) map[string]driverFunc {
	return map[string]driverFunc{
		"make.extractor": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			return worker.Output(numberStream(s.Memory(), batches, rows)), nil
		},
		"pass": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			df, err := s.OnlyInput()
			if err != nil {
				return nil, err
			}
			return worker.Output(df.Reader()), nil
		},
		"read": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			df, err := s.OnlyInput()
			if err != nil {
				return nil, err
			}
			r := df.Reader()
			defer r.Release()
			n, err := countOn(r)
			if err == nil && n != int64(batches*rows) {
				err = fmt.Errorf("%d rows", n)
			}
			return nil, err
		},
	}
}

// A worker holds what its budget has room for, and what is beyond is on disk
// until the last who needs it has had it.
func TestSpill(t *testing.T) {
	const (
		budget = 1 << 20
		rows   = 32 << 10 // of a batch: 256 KiB
	)
	batches := 256 // 64 MiB
	if testing.Short() {
		batches = 16
	}
	if on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); on {
		batches = 16 << 10 // 4 GiB
	}
	var mem countingAllocator
	w := run(t, worker.Options{Memory: &mem, MemoryBudget: budget}, flow(batches, rows))

	made := w.step("a", "make.extractor", "")
	out := made.Outputs["df"]
	if out.Rows != int64(batches*rows) || out.Spilled == nil || out.Spilled.Path != "outputs/a/0.arrow" || out.Spilled.Bytes < 8*out.Rows || out.Bytes < 8*out.Rows {
		t.Errorf("output %+v, spilled %+v", out, out.Spilled)
	}
	w.step("b", "read", "a")
	w.step("c", "pass", "a", "a")
	if diff := cmp.Diff([]string{filepath.Join("outputs", "c", "0.arrow")}, w.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	w.step("d", "read", "c", "c")
	if files := w.files(); len(files) > 0 {
		t.Errorf("%v are left", files)
	}
	if now := mem.now.Load(); now != 0 {
		t.Errorf("%d bytes are in use", now)
	}
	// The budget; a batch that is read and one that the reader before has not let
	// go; what arrow's writer copies.
	if most := mem.most.Load(); most > budget+4*8*rows || most < budget/2 {
		t.Errorf("%d bytes of memory were in use, the budget is %d", most, budget)
	}

	var spilled []string
	for _, e := range w.events("output_spilled") {
		if e["rows"] != float64(out.Rows) || e["batches"] != float64(batches) || e["bytes"] != float64(out.Spilled.Bytes) || e["memory_bytes"].(float64) < float64(8*out.Rows) || e["key"] != "df" {
			t.Errorf("event %v", e)
		}
		spilled = append(spilled, fmt.Sprint(e["step_id"], " ", e["path"]))
	}
	if diff := cmp.Diff([]string{"a outputs/a/0.arrow", "c outputs/c/0.arrow"}, spilled); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, e := range w.events("inputs_resolved") {
		if e["from_spill"] != true || e["from_memory"] != false {
			t.Errorf("event %v", e)
		}
	}
}

// What fits is in memory, whoever has it; what is released makes room.
func TestMemoryBudget(t *testing.T) {
	const rows = 16 << 10 // 128 KiB a batch
	spilled := func(r *rpc.StepResult) bool { return r.Outputs["df"].Spilled != nil }
	w := run(t, worker.Options{MemoryBudget: 1<<20 + 64<<10}, flow(4, rows)) // two tables of half a MiB
	if spilled(w.step("a", "make.extractor", "")) || spilled(w.step("b", "make.extractor", "")) {
		t.Error("what fits is on disk")
	}
	if spilled(w.step("c", "pass", "a")) {
		t.Error("batches that are in memory anyway are counted twice")
	}
	if !spilled(w.step("d", "make.extractor", "")) {
		t.Error("the third table is in memory")
	}
	w.step("e", "read", "a", "a") // c still has its batches
	if !spilled(w.step("f", "make.extractor", "")) {
		t.Error("what is still held is not counted")
	}
	w.step("g", "read", "c", "c")
	if spilled(w.step("h", "make.extractor", "")) {
		t.Error("what was released is still counted")
	}
	if len(w.files()) != 2 {
		t.Errorf("files %v", w.files())
	}
	w.end()
	if len(w.files()) > 0 {
		t.Errorf("%v are left", w.files())
	}
}

// A slice keeps all of its buffer, also where a buffer is a part of another, and
// a dictionary belongs to every batch.
func TestMemoryBudgetShared(t *testing.T) {
	slices := func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		whole := numberStream(s.Memory(), 1, 128<<10) // 1 MiB
		defer whole.Release()
		whole.Next()
		rec := whole.Record()
		rec.Retain()
		return worker.Output(newStream(numberSchema, 64, func(i int) (arrow.Record, error) {
			defer func() {
				if i == 63 {
					rec.Release()
				}
			}()
			return rec.NewSlice(int64(i), int64(i+1)), nil
		})), nil
	}
	parts := func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		whole := memory.NewResizableBuffer(s.Memory())
		whole.Resize(1 << 20)
		return worker.Output(newStream(numberSchema, 2, func(i int) (arrow.Record, error) {
			if i == 1 {
				defer whole.Release()
			}
			data := array.NewData(arrow.PrimitiveTypes.Int64, 1, []*memory.Buffer{nil, memory.SliceBuffer(whole, 64*i, 8)}, nil, 0, 0)
			defer data.Release()
			data.Buffers()[1].Release() // NewData has retained it
			col := array.NewInt64Data(data)
			defer col.Release()
			return array.NewRecord(numberSchema, []arrow.Array{col}, 1), nil
		})), nil
	}
	dictionary := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	schema := arrow.NewSchema([]arrow.Field{{Name: "d", Type: dictionary}}, nil)
	dictionaries := func(shared bool) driverFunc {
		return func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			values := func() arrow.Array {
				b := array.NewStringBuilder(s.Memory())
				defer b.Release()
				b.Append(strings.Repeat("x", 256<<10))
				return b.NewArray()
			}
			one := values()
			return worker.Output(newStream(schema, 16, func(i int) (arrow.Record, error) {
				dict := one
				if !shared {
					dict = values()
					defer dict.Release()
				}
				if i == 15 {
					defer one.Release()
				}
				b := array.NewInt32Builder(s.Memory())
				defer b.Release()
				b.Append(0)
				indices := b.NewArray()
				defer indices.Release()
				col := array.NewDictionaryArray(dictionary, indices, dict)
				defer col.Release()
				return array.NewRecord(schema, []arrow.Array{col}, 1), nil
			})), nil
		}
	}
	var mem countingAllocator
	w := run(t, worker.Options{Memory: &mem, MemoryBudget: 3 << 20}, map[string]driverFunc{
		"slices": slices, "parts": parts, "shared": dictionaries(true), "own": dictionaries(false),
	})
	for _, test := range []struct {
		driver string
		bytes  int64
		disk   bool
	}{{"slices", 1 << 20, false}, {"parts", 1 << 20, false}, {"shared", 512 << 10, false}, {"own", 256 << 10, true}} {
		out := w.step(test.driver, test.driver, "").Outputs["df"]
		if (out.Spilled != nil) != test.disk || out.Bytes < test.bytes || out.Bytes > test.bytes+64<<10 {
			t.Errorf("%s: it takes %d bytes, spilled %v", test.driver, out.Bytes, out.Spilled)
		}
	}
	w.end()
	if now := mem.now.Load(); now != 0 {
		t.Errorf("%d bytes are in use", now)
	}
}

// Steps that run at once have one budget.
func TestSpillConcurrent(t *testing.T) {
	const budget, rows, steps = 1 << 20, 8 << 10, 8
	var mem countingAllocator
	w := run(t, worker.Options{Memory: &mem, MemoryBudget: budget}, flow(64, rows)) // 4 MiB each
	var wg sync.WaitGroup
	for i := range steps {
		wg.Go(func() {
			for j, driver := range []string{"make.extractor", "pass", "read"} {
				p := &rpc.ExecuteStep{StepID: fmt.Sprint(driver, i), Driver: driver, Keep: true, Inputs: map[string]rpc.InputRef{}}
				if j > 0 {
					from := fmt.Sprint([]string{"make.extractor", "pass"}[j-1], i)
					p.Inputs["df"], p.Release = rpc.InputRef{FromStep: from}, []string{from}
				}
				if _, err := w.ExecuteStep(t.Context(), p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most := mem.most.Load(); most > budget+steps*4*8*rows {
		t.Errorf("%d bytes of memory were in use, the budget is %d", most, budget)
	}
	if len(w.files()) > 0 || mem.now.Load() != 0 {
		t.Errorf("%v and %d bytes are left", w.files(), mem.now.Load())
	}
}

// Everything that Arrow has comes back from the disk as it went there.
func TestSpillTypes(t *testing.T) {
	types := arrowtest.Types()
	fields := make([]arrow.Field, len(types))
	for i, dt := range types {
		fields[i] = arrow.Field{Name: fmt.Sprint("c", i), Type: dt, Nullable: true, Metadata: arrow.NewMetadata([]string{"k"}, []string{"v"})}
	}
	meta := arrow.NewMetadata([]string{"table"}, []string{"all types"})
	all := arrow.NewSchema(fields, &meta)
	of := func(schema *arrow.Schema, n int) arrow.Record {
		cols := make([]arrow.Array, schema.NumFields())
		for i, f := range schema.Fields() {
			cols[i] = arrowtest.Sample(memory.DefaultAllocator, f.Type, n)
		}
		return array.NewRecord(schema, cols, int64(n))
	}
	whole := of(all, 100)
	none := arrow.NewSchema(nil, nil)
	dictionary := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	changing := arrow.NewSchema([]arrow.Field{{Name: "d", Type: dictionary, Nullable: true}}, nil)
	words := func(values ...string) arrow.Record {
		b := array.NewBuilder(memory.DefaultAllocator, dictionary).(*array.BinaryDictionaryBuilder)
		for _, v := range values {
			if err := b.AppendString(v); err != nil {
				t.Fatal(err)
			}
		}
		return array.NewRecord(changing, []arrow.Array{b.NewArray()}, int64(len(values)))
	}
	for _, test := range []struct {
		name    string
		schema  *arrow.Schema
		batches []arrow.Record
	}{
		{"all types", all, []arrow.Record{whole, of(all, 7)}},
		{"slices", all, []arrow.Record{whole.NewSlice(3, 50), whole.NewSlice(50, 51), whole.NewSlice(99, 100)}},
		{"batches without rows", all, []arrow.Record{of(all, 0), whole, of(all, 0), whole.NewSlice(5, 5)}},
		{"only batches without rows", all, []arrow.Record{of(all, 0)}},
		{"no batches", all, nil},
		{"no columns", none, []arrow.Record{array.NewRecord(none, nil, 5), array.NewRecord(none, nil, 0)}},
		{"neither", none, nil},
		{"dictionaries that change", changing, []arrow.Record{words("a", "b"), words("a", "b", "c"), words("x"), words("x", "y"), words()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := run(t, worker.Options{MemoryBudget: 1}, map[string]driverFunc{
				"make": func(context.Context, *worker.Step) (*worker.Result, error) {
					return worker.Output(newStream(test.schema, len(test.batches), func(i int) (arrow.Record, error) {
						test.batches[i].Retain()
						return test.batches[i], nil
					})), nil
				},
				"compare": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
					df, err := s.OnlyInput()
					if err != nil {
						return nil, err
					}
					r := df.Reader()
					defer r.Release()
					if !r.Schema().Equal(test.schema) || !df.Schema().Equal(test.schema) || r.Schema().Metadata().Len() != test.schema.Metadata().Len() {
						t.Errorf("schema %v, want %v", r.Schema(), test.schema)
					}
					i := 0
					for ; r.Next() && i < len(test.batches); i++ {
						if got := r.Record(); !array.RecordEqual(got, test.batches[i]) || got.NumRows() != test.batches[i].NumRows() {
							t.Errorf("batch %d is\n%v\nwant\n%v", i, got, test.batches[i])
						}
					}
					if i != len(test.batches) {
						t.Errorf("%d batches", i)
					}
					return nil, r.Err()
				},
			})
			out := w.step("a", "make", "").Outputs["df"]
			if (out.Spilled != nil) != (len(test.batches) > 0) {
				t.Errorf("output %+v", out)
			}
			w.step("b", "compare", "a", "a")
		})
	}
}

// fullFS is a disk that is full once so many bytes are on it.
type fullFS struct {
	worker.OSFS
	left atomic.Int64
}

func (f *fullFS) Create(name string) (worker.File, error) {
	file, err := f.OSFS.Create(name)
	if err != nil || filepath.Ext(name) != ".arrow" {
		return file, err
	}
	return fullFile{file, f, name}, nil
}

type fullFile struct {
	worker.File
	fs   *fullFS
	name string
}

func (f fullFile) Write(p []byte) (int, error) {
	if left := f.fs.left.Add(-int64(len(p))); left < 0 {
		n := max(0, int(left)+len(p))
		n, _ = f.File.Write(p[:n])
		return n, &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	return f.File.Write(p)
}

// A disk that is full fails the step, says which one and what the budget was,
// and has nothing half on it.
func TestSpillDiskFull(t *testing.T) {
	for _, left := range []int64{0, 1000, 1 << 20, 2 << 20} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			full := &fullFS{}
			full.left.Store(left)
			var mem countingAllocator
			w := run(t, worker.Options{FS: full, Memory: &mem, MemoryBudget: 1 << 20}, flow(64, 8<<10)) // 4 MiB
			_, err := w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: "a", Driver: "make.extractor", Keep: true})
			var answer *rpc.Error
			if !errors.As(err, &answer) || answer.Code != rpc.CodeStepFailed {
				t.Fatalf("error %v", err)
			}
			for _, want := range []string{`output "df" does not fit into the memory budget (1.0 MiB`, filepath.Join(w.dir, "outputs"), "no space left on device"} {
				if !strings.Contains(answer.Message, want) {
					t.Errorf("the error lacks %q: %s", want, answer.Message)
				}
			}
			if files := w.files(); len(files) > 0 || mem.now.Load() != 0 {
				t.Errorf("%v and %d bytes of memory are left", files, mem.now.Load())
			}
		})
	}
}

// A reader that fails, or panics, leaves nothing behind, wherever its output
// was.
func TestSpillFails(t *testing.T) {
	for _, budget := range []int64{1, 1 << 30} {
		for _, panics := range []bool{false, true} {
			t.Run(fmt.Sprint(budget, panics), func(t *testing.T) {
				var mem countingAllocator
				w := run(t, worker.Options{Memory: &mem, MemoryBudget: budget}, map[string]driverFunc{
					"fail": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
						good := numberStream(s.Memory(), 10, 100)
						bad := numberStream(s.Memory(), 10, 100)
						next := bad.make
						bad.make = func(i int) (arrow.Record, error) {
							if i < 5 {
								return next(i)
							}
							if panics {
								panic("broken")
							}
							return nil, errors.New("broken")
						}
						return &worker.Result{Outputs: map[string]array.RecordReader{"a": good, "b": bad}}, nil
					},
				})
				_, err := w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: "a", Driver: "fail", Keep: true})
				if err == nil || !strings.Contains(err.Error(), "broken") {
					t.Errorf("error %v", err)
				}
				if files := w.files(); len(files) > 0 || mem.now.Load() != 0 {
					t.Errorf("%v and %d bytes of memory are left", files, mem.now.Load())
				}
			})
		}
	}
}

// A table that no stream can hold stays in memory, and the worker says so.
func TestSpillUnwritable(t *testing.T) {
	views := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.StringView}
	schema := arrow.NewSchema([]arrow.Field{{Name: "d", Type: views}}, nil)
	w := run(t, worker.Options{MemoryBudget: 1}, map[string]driverFunc{
		"make": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			return worker.Output(newStream(schema, 3, func(int) (arrow.Record, error) {
				values := arrowtest.Sample(s.Memory(), views.ValueType, 4)
				defer values.Release()
				indices := arrowtest.Sample(s.Memory(), arrow.PrimitiveTypes.Int8, 1)
				defer indices.Release()
				col := array.NewDictionaryArray(views, indices, values)
				defer col.Release()
				return array.NewRecord(schema, []arrow.Array{col}, 1), nil
			})), nil
		},
		"read": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			df, err := s.OnlyInput()
			if err == nil && df.Rows() != 3 {
				err = fmt.Errorf("%d rows", df.Rows())
			}
			return nil, err
		},
	})
	if out := w.step("a", "make", "").Outputs["df"]; out.Spilled != nil || out.Bytes == 0 {
		t.Errorf("%+v", out)
	}
	w.step("b", "read", "a", "a")
	said := w.events("")
	if len(said) != 1 || !strings.Contains(fmt.Sprint(said[0]["message"]), "stays in memory") {
		t.Errorf("the log is %v", said)
	}
}

// A driver that has whole tables in memory is warned of, where they are larger
// than the budget, before it starts.
func TestWholeTables(t *testing.T) {
	for _, test := range []struct {
		budget int64
		whole  bool
		want   string
	}{
		{1 << 20, true, `driver "whole" has whole tables in memory, and its inputs take 2.0 MiB there (df_a 2.0 MiB), more than the memory budget of 1.0 MiB: it may run out of memory`},
		{4 << 20, true, ""},
		{1 << 20, false, ""},
	} {
		drivers := registry(flow(16, 16<<10))
		drivers.Add(worker.Registration{Name: "whole", Mode: worker.Write, WholeTables: test.whole, New: func() worker.Driver {
			return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil })
		}})
		w := runWith(t, worker.Options{MemoryBudget: test.budget, Drivers: drivers})
		w.step("a", "make.extractor", "")
		in := rpc.InputRef{FromStep: "a"}
		if _, err := w.ExecuteStep(t.Context(), &rpc.ExecuteStep{StepID: "b", Driver: "whole", Inputs: map[string]rpc.InputRef{"df": in, "df_a": in}}); err != nil {
			t.Error(err)
		}
		var said []string
		for _, l := range w.events("") {
			said = append(said, l["message"].(string))
		}
		if got := strings.Join(said, "\n"); got != test.want {
			t.Errorf("budget %d, whole tables %v: %q, want %q", test.budget, test.whole, got, test.want)
		}
	}
}

// With Keep, what goes to disk is written once, and a worker that comes after
// another's death reads it from there.
func TestSpillKept(t *testing.T) {
	const batches, rows = 32, 8 << 10
	m := &mortalFS{}
	created := make(map[string]int)
	m.deny = func(name string) error { created[filepath.Base(name)]++; return nil }
	program := worker.Program{Drivers: registry(flow(batches, rows)), FS: m}
	h := startIn(t, program, t.TempDir(), 0, "-keep")
	h.hello(1)
	var made rpc.StepResult
	if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "make.extractor", Keep: true}, &made); err != nil {
		t.Fatal(err)
	}
	if made.Outputs["df"].Spilled == nil || created["0.arrow"] != 1 {
		t.Errorf("the output was written %d times: %+v", created["0.arrow"], made)
	}
	cursor := h.die(m)
	if got := recovered(t, h.dir); len(got.Finished) != 1 || len(got.Lost) > 0 {
		t.Errorf("recovered %+v", got)
	}
	file := filepath.Join(h.dir, "outputs", "a", "0.arrow")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	program.FS = &mortalFS{}
	h = startIn(t, program, h.dir, cursor, "-resume")
	h.hello(1)
	read := func(id string, release ...string) {
		t.Helper()
		if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: id, Driver: "read", Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}}, Release: release}, nil); err != nil {
			t.Error(err)
		}
		h.expectLine("inputs_resolved", "from_spill", true)
	}
	read("b")
	read("c", "a")
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("released, and it is still there: %v", err)
	}
}

// What is kept outlives a worker that ends, until it is released.
func TestSpillKeptReleased(t *testing.T) {
	drivers := flow(4, 100)
	w := run(t, worker.Options{MemoryBudget: 1, Keep: true}, drivers)
	w.step("a", "make.extractor", "")
	w.step("b", "make.extractor", "")
	w.step("c", "read", "a", "a")
	w.end()
	want := []string{"outputs/a/step.json", "outputs/b/0.arrow", "outputs/b/step.json", "outputs/c/step.json"}
	got := w.files()
	for i := range got {
		got[i] = filepath.ToSlash(got[i])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// Without a budget of its own a worker takes half of the memory, and a host may
// say another one.
func TestMemoryBudgetDefault(t *testing.T) {
	h := start(t, nil)
	hello := h.hello(0)
	want := hello.MemoryBytes / 2
	if hello.MemoryBytes == 0 {
		want = 1 << 30
	}
	if hello.MemoryBudget != want {
		t.Errorf("budget %d of %d", hello.MemoryBudget, hello.MemoryBytes)
	}
	if hello := start(t, nil).hello(12345); hello.MemoryBudget != 12345 {
		t.Errorf("budget %d", hello.MemoryBudget)
	}
}

// hello shakes hands, with a budget.
func (h *host) hello(budget int64) (r rpc.HandshakeResult) {
	h.t.Helper()
	if err := h.call(rpc.MethodHandshake, rpc.Handshake{MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", MemoryBudget: budget}, &r); err != nil {
		h.t.Fatal(err)
	}
	return r
}

// removedFS tells which files are removed.
type removedFS struct {
	worker.OSFS
	removed chan string
}

func (f removedFS) RemoveAll(name string) error {
	err := f.OSFS.RemoveAll(name)
	if filepath.Ext(name) == ".arrow" {
		f.removed <- name
	}
	return err
}

// A driver that is left behind may still read its inputs, until it returns.
func TestSpillLeftBehind(t *testing.T) {
	t.Parallel() // it waits for the grace that a driver has
	fsys := removedFS{removed: make(chan string, 10)}
	drivers := flow(8, 1000)
	begun, leave := make(chan struct{}), make(chan struct{})
	read := drivers["read"]
	drivers["ignore"] = func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		close(begun)
		<-leave
		if _, err := read(t.Context(), s); err != nil {
			t.Errorf("left behind, it cannot read its input: %v", err)
		}
		return worker.Output(numberStream(s.Memory(), 8, 1000)), nil
	}
	var mem countingAllocator
	w := run(t, worker.Options{FS: fsys, Memory: &mem, MemoryBudget: 1}, drivers)
	w.step("a", "make.extractor", "")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := w.ExecuteStep(ctx, &rpc.ExecuteStep{StepID: "b", Driver: "ignore", Keep: true, Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}}, Release: []string{"a"}})
	if err == nil || !strings.Contains(err.Error(), "still running") {
		t.Errorf("error %v", err)
	}
	if files := w.files(); len(files) != 1 {
		t.Errorf("files %v", files)
	}
	close(leave)
	select {
	case name := <-fsys.removed:
		if name != filepath.Join(w.dir, "outputs", "a", "0.arrow") {
			t.Errorf("%s is removed", name)
		}
	case <-time.After(time.Minute):
		t.Fatal("its input is not let go")
	}
	if files := w.files(); len(files) > 0 || mem.now.Load() != 0 {
		t.Errorf("%v and %d bytes of memory are left", files, mem.now.Load())
	}
}
