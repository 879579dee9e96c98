package duckdb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/duckdb"
	"github.com/osiris-pipelines/remote/worker/workertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink keeps what a driver reports.
type sink struct {
	mu      sync.Mutex
	metrics map[string]float64
	log     bytes.Buffer
}

func (s *sink) Event(string, map[string]any) {}

func (s *sink) Metric(name string, value float64, unit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.metrics == nil {
		s.metrics = make(map[string]float64)
	}
	s.metrics[name+" "+unit] = value
}

func (s *sink) step(config map[string]any, inputs map[string]*worker.DataFrame) *worker.Step {
	return &worker.Step{ID: "sql", Config: config, Inputs: inputs, Sink: s, Logger: slog.New(slog.NewTextHandler(&s.log, nil))}
}

func query(text string) map[string]any { return map[string]any{"query": text} }

// run executes a step to its end.
func run(ctx context.Context, step *worker.Step) (*worker.DataFrame, error) {
	res, err := (&duckdb.Processor{}).Run(ctx, step)
	if err != nil {
		return nil, err
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	return worker.ReadDataFrame(r)
}

// rows returns a table as text: a line of names, then one a row.
func rows(df *worker.DataFrame) []string {
	var names []string
	for _, f := range df.Schema().Fields() {
		names = append(names, f.Name)
	}
	out := []string{strings.Join(names, "|")}
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		for i := range int(r.Record().NumRows()) {
			var cells []string
			for _, c := range r.Record().Columns() {
				cells = append(cells, c.ValueStr(i))
			}
			out = append(out, strings.Join(cells, "|"))
		}
	}
	return out
}

// frame makes a table of batches, each a JSON list of rows.
func frame(tb testing.TB, mem memory.Allocator, schema *arrow.Schema, batches ...string) *worker.DataFrame {
	tb.Helper()
	var records []arrow.Record
	for _, text := range batches {
		rec, _, err := array.RecordFromJSON(mem, schema, strings.NewReader(text))
		if err != nil {
			tb.Fatal(err)
		}
		records = append(records, rec)
	}
	return hold(tb, schema, records)
}

// hold makes a table of records, which it takes over.
func hold(tb testing.TB, schema *arrow.Schema, records []arrow.Record) *worker.DataFrame {
	tb.Helper()
	r, err := array.NewRecordReader(schema, records)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	for _, rec := range records {
		rec.Release()
	}
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	return df
}

var people = arrow.NewSchema([]arrow.Field{
	{Name: "id", Type: arrow.PrimitiveTypes.Int64},
	{Name: "name", Type: arrow.BinaryTypes.String},
	{Name: "age", Type: arrow.PrimitiveTypes.Int32, Nullable: true},
}, nil)

// tables are the inputs of TestQuery: df_people is of two batches.
func tables(tb testing.TB, mem memory.Allocator) map[string]*worker.DataFrame {
	return map[string]*worker.DataFrame{
		"df_people": frame(tb, mem, people, `[{"id":1,"name":"ann","age":30},{"id":2,"name":"bob","age":null}]`, `[]`, `[{"id":3,"name":"cyd","age":50}]`),
		"df_none":   frame(tb, mem, people),
	}
}

func release(inputs map[string]*worker.DataFrame) {
	for _, df := range inputs {
		df.Release()
	}
}

func TestQuery(t *testing.T) {
	for _, tt := range []struct {
		name, query string
		want        []string
	}{
		{"all", "SELECT * FROM df_people", []string{"id|name|age", "1|ann|30", "2|bob|(null)", "3|cyd|50"}},
		{"some columns in another order", "SELECT age, id FROM df_people", []string{"age|id", "30|1", "(null)|2", "50|3"}},
		{"a filter", "SELECT name FROM df_people WHERE age > 30", []string{"name", "cyd"}},
		{"twice in a query", "SELECT a.name, b.name AS next FROM df_people a JOIN df_people b ON b.id = a.id + 1 ORDER BY 1", []string{"name|next", "ann|bob", "bob|cyd"}},
		{"no columns", "SELECT count(*) AS n FROM df_people", []string{"n", "3"}},
		{"an empty table", "SELECT * FROM df_none", []string{"id|name|age"}},
		{"an empty table, counted", "SELECT count(*) AS n, max(id) AS m FROM df_none", []string{"n|m", "0|(null)"}},
		{"case of names", "SELECT NAME FROM DF_PEOPLE WHERE ID = 3", []string{"name", "cyd"}},
		{"no rows", "SELECT id FROM df_people WHERE false", []string{"id"}},
		{"several statements", "CREATE TABLE t AS SELECT id * 2 AS d FROM df_people; UPDATE t SET d = d + 1; SELECT sum(d)::INT AS s FROM t;", []string{"s", "15"}},
		{"several times", "CREATE TABLE a AS FROM df_people; CREATE TABLE b AS FROM df_people; SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b) AS n", []string{"n", "6"}},
		{"no result", "CREATE TABLE t (i INT)", []string{"Count"}},
		{"rows changed", "CREATE TABLE t (i INT); INSERT INTO t SELECT id FROM df_people", []string{"Count", "3"}},
		{"the same name again", "SELECT 1 AS a, 2 AS a, 3 AS a, 4 AS a_1, 5 AS A", []string{"a|a_1|a_2|a_1_1|A_3", "1|2|3|4|5"}},
		{"the same name before", "SELECT 4 AS a_1, 1 AS a, 2 AS a, 3 AS a", []string{"a_1|a|a_2|a_3", "4|1|2|3"}},
		{"names of expressions", "SELECT 1 + 1, 'é' AS \"A\"\"b\"", []string{`(1 + 1)|A"b`, "2|é"}},
		{"time zone", "SELECT current_setting('TimeZone') AS tz", []string{"tz", "UTC"}},
		{"another time zone", "SET TimeZone = 'Asia/Tokyo'; SELECT (TIMESTAMPTZ '2024-01-01 00:00:00+00')::VARCHAR AS x", []string{"x", "2024-01-01 09:00:00+09"}},
		{"what is there", "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1", []string{"view_name", "df_none", "df_people"}},
		{"its text", "  \n SELECT 1 AS x -- comment\n ", []string{"x", "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			inputs := tables(t, mem)
			defer release(inputs)
			s := &sink{}
			step := s.step(query(tt.query), inputs)
			step.Allocator = mem
			df, err := run(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			defer df.Release()
			if diff := cmp.Diff(tt.want, rows(df)); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			want := map[string]float64{"rows_read rows": 3, "rows_written rows": float64(len(tt.want) - 1)}
			if diff := cmp.Diff(want, s.metrics); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		})
	}
}

// An input that has two names is read once, and no inputs are fine.
func TestInputs(t *testing.T) {
	s := &sink{}
	df := frame(t, memory.DefaultAllocator, people, `[{"id":1,"name":"ann","age":30}]`)
	defer df.Release()
	both := map[string]*worker.DataFrame{"df": df, "df_people": df, "other name": df}
	got, err := run(t.Context(), s.step(query(`SELECT a.id + b.id + c.id AS x FROM df a, df_people b, "other name" c`), both))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x", "3"}, rows(got)); diff != "" || s.metrics["rows_read rows"] != 1 {
		t.Errorf("metrics %v, rows (-want +got):\n%s", s.metrics, diff)
	}
	got, err = run(t.Context(), s.step(query("SELECT range AS x FROM range(2)"), nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x", "0", "1"}, rows(got)); diff != "" || s.metrics["rows_read rows"] != 0 {
		t.Errorf("metrics %v, rows (-want +got):\n%s", s.metrics, diff)
	}
}

func TestErrors(t *testing.T) {
	noColumns := arrow.NewSchema(nil, nil)
	half := arrow.NewSchema([]arrow.Field{{Name: "h", Type: &arrow.Decimal256Type{Precision: 50}}}, nil)
	const failed = "DuckDB transformation failed: "
	for _, tt := range []struct {
		name   string
		config map[string]any
		inputs map[string]*arrow.Schema
		want   string // in the error
		logged string
	}{
		{"no query", map[string]any{}, nil, "'query' is required in config", ""},
		{"empty query", query(" \n"), nil, "'query' is required in config", ""},
		{"query of another type", map[string]any{"query": json.Number("1")}, nil, "'query' is required in config", ""},
		{"only a comment", query("-- x"), nil, failed + "the query holds no statement", ""},
		{"syntax", query("SELEC 1"), nil, failed + "Parser Error: syntax error", "SELEC 1"},
		{"missing table", query("SELECT * FROM input_df"), nil, failed + "Catalog Error: Table with name input_df does not exist", "input_df"},
		{"in the rows", query("SELECT CASE WHEN range = 50000 THEN error('boom') ELSE 'x' END AS x FROM range(100000)"), nil, failed + "Invalid Input Error: boom", "boom"},
		{"in a statement before", query("SELECT 1 / 'a'; SELECT 1"), nil, failed + "Conversion Error", ""},
		{"long query", query("SELECT '" + strings.Repeat("é", 600) + "' FROM nowhere"), nil, failed, "SELECT '" + strings.Repeat("é", 492) + "\"\n"},
		{"memory limit", map[string]any{"query": "SELECT 1", "memory_limit": "lots"}, nil, failed + "Parser Error", ""},
		{"memory share", map[string]any{"query": "SELECT 1", "memory_limit": "150%"}, nil, failed + `config key "memory_limit": "150%" is no share`, ""},
		{"memory limit of another type", map[string]any{"query": "SELECT 1", "memory_limit": json.Number("7")}, nil, `config key "memory_limit": want a size`, ""},
		{"threads", map[string]any{"query": "SELECT 1", "threads": json.Number("0")}, nil, `config key "threads": want an integer of at least 1, have 0`, ""},
		{"threads of another type", map[string]any{"query": "SELECT 1", "threads": "two"}, nil, `config key "threads": want an integer of at least 1, have two`, ""},
		{"temporary directory", map[string]any{"query": "SELECT 1", "temp_directory": "/no/such/place"}, nil, failed + "stat /no/such/place", ""},
		{"no columns", query("SELECT 1"), map[string]*arrow.Schema{"df_x": noColumns}, failed + `input "df_x" has no columns`, ""},
		{"names that differ in case", query("SELECT 1"), map[string]*arrow.Schema{"df_A": people, "df_a": people}, failed + `inputs "df_A" and "df_a" are one name in SQL`, ""},
		{"a type that DuckDB has not", query("SELECT 1"), map[string]*arrow.Schema{"df_x": half}, failed + `input "df_x" cannot be a table: Not implemented Error: Unsupported Internal Arrow Type`, ""},
		{"a type that Arrow has not", query("SELECT [{'t': '10:00:00+01'::TIMETZ}] AS x"), nil, failed + `column "x": TIME WITH TIME ZONE cannot be put out; cast it in the query, as "x"::VARCHAR`, ""},
		{"a union", query("SELECT union_value(num := 2) AS x"), nil, failed + `column "x": UNION cannot be put out`, ""},
		{"a variant", query("SELECT {'a': 1}::VARIANT AS x"), nil, failed + "result: Not implemented Error: Unsupported Arrow type VARIANT", ""},
		{"writing to an input", query("INSERT INTO df_x SELECT * FROM df_x"), map[string]*arrow.Schema{"df_x": people}, failed + "Catalog Error: df_x is not an table", ""},
		{"out of memory", map[string]any{"query": "SET max_temp_directory_size = '1MB'; SELECT range AS x FROM range(10000000) ORDER BY hash(x)", "memory_limit": "40MB"}, nil, failed + "Out of Memory Error", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inputs := make(map[string]*worker.DataFrame)
			for name, schema := range tt.inputs {
				inputs[name] = hold(t, schema, nil)
			}
			defer release(inputs)
			s := &sink{}
			df, err := run(t.Context(), s.step(tt.config, inputs))
			if err == nil {
				t.Fatalf("no error; rows %v", rows(df))
			}
			if !strings.Contains(err.Error(), tt.want) || strings.HasPrefix(tt.want, failed) != strings.HasPrefix(err.Error(), failed) {
				t.Errorf("error %q, want %q", err, tt.want)
			}
			if !strings.Contains(s.log.String(), tt.logged) || strings.HasPrefix(tt.want, failed) != strings.Contains(s.log.String(), "level=ERROR") {
				t.Errorf("log %q lacks %q", s.log.String(), tt.logged)
			}
			if _, ok := s.metrics["rows_written rows"]; ok {
				t.Errorf("metrics %v", s.metrics)
			}
		})
	}
}

// What a query cannot hold in memory it spills, and leaves nothing of it.
func TestSpill(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, end := range []string{"read", "released", "cancelled"} {
		res, err := (&duckdb.Processor{}).Run(ctx, &worker.Step{Config: map[string]any{
			"query":        "SELECT range AS i, hash(range)::VARCHAR || repeat('x', 100) AS s FROM range(1000000) ORDER BY s",
			"memory_limit": "60MB", "threads": json.Number("1"), "temp_directory": dir,
		}})
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs["df"]
		if !r.Next() {
			t.Fatal(r.Err())
		}
		spilled, err := filepath.Glob(filepath.Join(dir, "*", "*"))
		if err != nil || len(spilled) == 0 {
			t.Errorf("%s: nothing is spilled (%v)", end, err)
		}
		n, last, sorted := int64(0), "", true
		switch end {
		case "read":
			for more := true; more; more = r.Next() {
				n += r.Record().NumRows()
				for _, v := range strs(r.Record().Column(1)) {
					sorted = sorted && v >= last
					last = strings.Clone(v)
				}
			}
			if r.Err() != nil || n != 1e6 || !sorted {
				t.Errorf("%d rows, sorted %v, %v", n, sorted, r.Err())
			}
		case "cancelled":
			cancel()
			if r.Next() || !errors.Is(r.Err(), context.Canceled) {
				t.Errorf("after cancel: %v", r.Err())
			}
		}
		if end == "released" {
			r.Release()
		} else {
			defer r.Release()
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v (%v)", end, left, err)
		}
	}
}

func strs(a arrow.Array) []string {
	out := make([]string, a.Len())
	for i := range out {
		out[i] = a.(*array.String).Value(i)
	}
	return out
}

// endless takes longer than any test may.
const endless = "SELECT count(*) AS n FROM range(1000000000) a, range(1000000000) b WHERE hash(a.range + b.range) = 7"

// A query ends when its step is cancelled, whatever it does.
func TestCancel(t *testing.T) {
	for name, text := range map[string]string{
		"a last statement":   endless,
		"a statement before": "CREATE TABLE t AS " + endless + "; SELECT 1",
		"a step's rows":      "SELECT b.range AS x FROM range(2) a, range(1000000000000) b WHERE a.range = 0 AND b.range < 10",
		"of an input":        "SELECT count(*) AS n FROM df_people, range(1000000000) a, range(1000000000) b WHERE hash(id + a.range + b.range) = 7",
	} {
		t.Run(name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			inputs := tables(t, mem)
			defer release(inputs)
			// It has begun by then, or will find out before it does.
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			s := &sink{}
			if _, err := run(ctx, s.step(query(text), inputs)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			if _, ok := s.metrics["rows_written rows"]; ok || s.log.Len() > 0 {
				t.Errorf("metrics %v, log %s", s.metrics, s.log.String())
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := run(ctx, (&sink{}).step(query("SELECT 1"), nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// Files of the base path are found by their relative names.
func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("a,b\n1,x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	step := (&sink{}).step(query("SELECT * FROM 'in.csv'"), nil)
	step.BasePath = dir
	df, err := run(t.Context(), step)
	if err != nil {
		t.Fatal(err)
	}
	defer df.Release()
	if diff := cmp.Diff([]string{"a|b", "1|x"}, rows(df)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// What docs/duckdb.md says of a query that may not reach files.
func TestNoExternalAccess(t *testing.T) {
	inputs := tables(t, memory.DefaultAllocator)
	defer release(inputs)
	df, err := run(t.Context(), (&sink{}).step(query("SET enable_external_access = false; SELECT count(*) AS n FROM df_people"), inputs))
	if err != nil {
		t.Fatal(err)
	}
	defer df.Release()
	if diff := cmp.Diff([]string{"n", "3"}, rows(df)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	_, err = run(t.Context(), (&sink{}).step(query("SET enable_external_access = false; SELECT * FROM 'in.csv'"), inputs))
	if err == nil || !strings.Contains(err.Error(), "Permission Error") {
		t.Errorf("error %v", err)
	}
}

// What docs/duckdb.md says of how the CSV writer prints exact numbers.
func TestWritten(t *testing.T) {
	df, err := run(t.Context(), (&sink{}).step(query("SELECT sum(range) AS s, 1.50::DECIMAL(4, 2) AS d, sum(range)::DOUBLE AS f FROM range(5)"), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer df.Release()
	dir := t.TempDir()
	if _, err := (&csv.Writer{}).Run(t.Context(), &worker.Step{
		Config: map[string]any{"path": "out.csv"}, Inputs: map[string]*worker.DataFrame{"df": df}, ArtifactsDir: dir,
	}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "out.csv"))
	if want := "d,f,s\n1.50,10.0,10\n"; err != nil || string(got) != want {
		t.Errorf("written %q, want %q (%v)", got, want, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	for limit, want := range map[string]string{"1GB": "953.6 MiB", "1GiB": "1.0 GiB", " 100MB ": "95.3 MiB"} {
		df, err := run(t.Context(), (&sink{}).step(map[string]any{"query": "SELECT current_setting('memory_limit') AS l", "memory_limit": limit}, nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"l", want}, rows(df)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", limit, diff)
		}
		df.Release()
	}
	// A share is of what DuckDB's own default is 80 percent of.
	size := func(limit any) (n float64, unit string) {
		step := (&sink{}).step(query("SELECT current_setting('memory_limit') AS l"), nil)
		if limit != nil {
			step.Config["memory_limit"] = limit
		}
		df, err := run(t.Context(), step)
		if err != nil {
			t.Fatal(err)
		}
		defer df.Release()
		if _, err := fmt.Sscan(rows(df)[1], &n, &unit); err != nil {
			t.Fatal(err)
		}
		return n, unit
	}
	whole, unit := size("100%")
	half, halfUnit := size(nil)
	if ratio := half / whole; unit == halfUnit && (ratio < 0.49 || ratio > 0.51) {
		t.Errorf("the default is %v of %v %s", half, whole, unit)
	}
}

// TestRows compares tables of all types that DuckDB takes, of random rows in
// batches of random sizes and offsets, with what comes out again.
func TestRows(t *testing.T) {
	seed := uint64(1) // so that a change is judged by what it does
	if os.Getenv("OSIRIS_STRESS") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	list := arrow.ListOf(arrow.PrimitiveTypes.Int16)
	schema := arrow.NewSchema(nil, nil)
	for i, typ := range []arrow.DataType{
		arrow.FixedWidthTypes.Boolean, arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64,
		arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64,
		arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Float64, arrow.BinaryTypes.String, arrow.BinaryTypes.Binary,
		arrow.FixedWidthTypes.Date32, &arrow.Decimal128Type{Precision: 38, Scale: 3}, &arrow.Decimal128Type{Precision: 9, Scale: 2},
		&arrow.TimestampType{Unit: arrow.Nanosecond}, &arrow.TimestampType{Unit: arrow.Microsecond}, &arrow.TimestampType{Unit: arrow.Millisecond}, &arrow.TimestampType{Unit: arrow.Second},
		arrow.FixedWidthTypes.Timestamp_us, arrow.FixedWidthTypes.Time64us, arrow.FixedWidthTypes.MonthDayNanoInterval,
		list, arrow.ListOf(arrow.BinaryTypes.String), arrow.ListOf(list), arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Int32),
		arrow.StructOf(arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, arrow.Field{Name: "b", Type: arrow.BinaryTypes.String, Nullable: true}),
		arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Float64),
		&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String},
		arrow.BinaryTypes.LargeString, &arrow.FixedSizeBinaryType{ByteWidth: 5}, arrow.FixedWidthTypes.Date64,
	} {
		schema, _ = schema.AddField(i, arrow.Field{Name: fmt.Sprintf("c%d", i), Type: typ, Nullable: true})
	}
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	var batches []arrow.Record
	for range 4 {
		b := array.NewRecordBuilder(mem, schema)
		n := r.IntN(5000)
		for _, f := range b.Fields() {
			for range n {
				appendRandom(f, r)
			}
		}
		rec := b.NewRecord()
		b.Release()
		from := int64(r.IntN(n + 1))
		batches = append(batches, rec.NewSlice(from, from+int64(r.IntN(n+1-int(from)))))
		rec.Release()
	}
	df := hold(t, schema, batches)
	defer df.Release()
	inputs := map[string]*worker.DataFrame{"df_x": df}
	got, err := run(t.Context(), (&sink{}).step(query("SELECT * FROM df_x"), inputs))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	want, have := rows(df), rows(got)
	if len(want) != len(have) {
		t.Fatalf("%d rows, want %d", len(have), len(want))
	}
	for i := range want {
		if want[i] != have[i] {
			t.Fatalf("row %d:\n%s\nwant\n%s\ntypes %s", i, have[i], want[i], got.Schema())
		}
	}
	// A part of the columns and rows is what it is in the whole.
	part, err := run(t.Context(), (&sink{}).step(query("SELECT c27, c11, c0 FROM df_x WHERE c4 > 0"), inputs))
	if err != nil {
		t.Fatal(err)
	}
	defer part.Release()
	whole, err := run(t.Context(), (&sink{}).step(query("CREATE TABLE t AS FROM df_x; SELECT c27, c11, c0 FROM t WHERE c4 > 0"), inputs))
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Release()
	if diff := cmp.Diff(rows(whole), rows(part)); diff != "" {
		t.Errorf("part (-want +got):\n%s", diff)
	}
}

func appendRandom(b array.Builder, r *rand.Rand) {
	if r.IntN(5) == 0 {
		b.AppendNull()
		return
	}
	text := func() string { return strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(20)) + "é" }
	day := int64(86400)
	switch b := b.(type) {
	case *array.BooleanBuilder:
		b.Append(r.IntN(2) == 0)
	case *array.Int8Builder:
		b.Append(int8(r.Uint32()))
	case *array.Int16Builder:
		b.Append(int16(r.Uint32()))
	case *array.Int32Builder:
		b.Append(int32(r.Uint32()))
	case *array.Int64Builder:
		b.Append(int64(r.Uint64()))
	case *array.Uint8Builder:
		b.Append(uint8(r.Uint32()))
	case *array.Uint16Builder:
		b.Append(uint16(r.Uint32()))
	case *array.Uint32Builder:
		b.Append(r.Uint32())
	case *array.Uint64Builder:
		b.Append(r.Uint64())
	case *array.Float32Builder:
		b.Append(r.Float32())
	case *array.Float64Builder:
		b.Append(r.NormFloat64())
	case *array.StringBuilder:
		b.Append(text())
	case *array.LargeStringBuilder:
		b.Append(text())
	case *array.BinaryBuilder:
		b.Append([]byte(text()))
	case *array.FixedSizeBinaryBuilder:
		b.Append([]byte{0, byte(r.Uint32()), 2, 3, 4})
	case *array.BinaryDictionaryBuilder:
		_ = b.AppendString(string(rune('a' + r.IntN(9))))
	case *array.Date32Builder:
		b.Append(arrow.Date32(r.IntN(40000) - 20000))
	case *array.Date64Builder:
		b.Append(arrow.Date64((r.Int64N(40000) - 20000) * day * 1000))
	case *array.Decimal128Builder:
		_ = b.AppendValueFromString(fmt.Sprintf("%d.%02d", r.IntN(1e6), r.IntN(100)))
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(r.Int64N(1e9)))
	case *array.Time64Builder:
		b.Append(arrow.Time64(r.Int64N(day * 1e6)))
	case *array.Time32Builder:
		b.Append(arrow.Time32(r.Int64N(day * 1e3)))
	case *array.DurationBuilder:
		b.Append(arrow.Duration(r.Int64N(1e12)))
	case *array.MonthDayNanoIntervalBuilder:
		b.Append(arrow.MonthDayNanoInterval{Months: int32(r.IntN(30)), Days: int32(r.IntN(40)), Nanoseconds: r.Int64N(1e9) * 1000})
	case *array.MapBuilder:
		b.Append(true)
		for i := range r.IntN(3) {
			b.KeyBuilder().(*array.StringBuilder).Append(fmt.Sprint("k", i))
			appendRandom(b.ItemBuilder(), r)
		}
	case *array.ListBuilder:
		b.Append(true)
		for range r.IntN(4) {
			appendRandom(b.ValueBuilder(), r)
		}
	case *array.FixedSizeListBuilder:
		b.Append(true)
		for range 3 {
			appendRandom(b.ValueBuilder(), r)
		}
	case *array.StructBuilder:
		b.Append(true)
		for i := range b.NumField() {
			appendRandom(b.FieldBuilder(i), r)
		}
	default:
		panic(fmt.Sprintf("%T", b))
	}
}

// TestInputTypes has what DuckDB makes of other types than its own.
func TestInputTypes(t *testing.T) {
	for _, tt := range []struct {
		typ  arrow.DataType
		json string // a value
		want string // DuckDB's type and text
	}{
		{arrow.Null, "null", `"NULL"|(null)`},
		{arrow.ListOf(arrow.Null), "[null, null]", `"NULL"[]|[NULL, NULL]`},
		{arrow.FixedWidthTypes.Float16, "1.5", ""},
		{arrow.FixedWidthTypes.Timestamp_ns, `"2024-01-02 03:04:05.678901234"`, "TIMESTAMP WITH TIME ZONE|2024-01-02 03:04:05.678901+00"},
		{&arrow.TimestampType{Unit: arrow.Second, TimeZone: "Europe/Prague"}, `"2024-01-02 03:04:05"`, "TIMESTAMP WITH TIME ZONE|2024-01-02 03:04:05+00"},
		{arrow.FixedWidthTypes.Time32s, `"03:04:05"`, "TIME|03:04:05"},
		{arrow.FixedWidthTypes.Time64ns, `"03:04:05.000000001"`, "TIME_NS|03:04:05.000000001"},
		{arrow.FixedWidthTypes.Duration_s, `"7261s"`, "INTERVAL|02:01:01"},
		{arrow.FixedWidthTypes.MonthInterval, `{"months": 14}`, "INTERVAL|1 year 2 months"},
		{arrow.BinaryTypes.StringView, `"a text of more than 12 bytes"`, "VARCHAR|a text of more than 12 bytes"},
		{arrow.BinaryTypes.LargeBinary, `"AP8="`, `BLOB|\x00\xFF`},
		{arrow.LargeListOf(arrow.PrimitiveTypes.Int8), `[1, null]`, "TINYINT[]|[1, NULL]"},
		{arrow.ListViewOf(arrow.PrimitiveTypes.Int8), `[1, null]`, "TINYINT[]|[1, NULL]"},
		{arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int32, arrow.BinaryTypes.String), `"x"`, "VARCHAR|x"},
		{&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint32, ValueType: arrow.PrimitiveTypes.Int64}, `7`, "BIGINT|7"},
		{&arrow.Decimal256Type{Precision: 30, Scale: 2}, `"1.25"`, ""},
	} {
		t.Run(tt.typ.String(), func(t *testing.T) {
			schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: tt.typ, Nullable: true}}, nil)
			inputs := map[string]*worker.DataFrame{"df_x": frame(t, memory.DefaultAllocator, schema, `[{"x":`+tt.json+`}]`)}
			defer release(inputs)
			df, err := run(t.Context(), (&sink{}).step(query("SELECT typeof(x) AS t, x::VARCHAR AS v FROM df_x"), inputs))
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), `input "df_x" cannot be a table`) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer df.Release()
			if diff := cmp.Diff(tt.want, rows(df)[1]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What is asked of every driver.
func TestDriver(t *testing.T) {
	newProcessor := func() worker.Driver { return &duckdb.Processor{} }
	c := workertest.Case{
		Config: query("SELECT a.id, b.name FROM df_x a, df_x b, range(200000)"),
		Inputs: map[string]*worker.DataFrame{"df_x": workertest.CSV(t, "id,name\n1,ann\n2,bob\n")},
	}
	workertest.CheckCancel(t, newProcessor, c)
	workertest.CheckMemory(t, newProcessor, c)
}

// A query sees a table that the worker has on disk, also more than once.
func TestSpilledInput(t *testing.T) {
	drivers := worker.NewRegistry()
	duckdb.Register(drivers)
	csv.Register(drivers)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("id,name\n"+strings.Repeat("1,ann\n2,bob\n", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	run := t.TempDir()
	w, err := worker.New(worker.Options{Dir: run, Drivers: drivers, MemoryBudget: 1})
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
	step := func(id, driver, config string, from ...string) *rpc.StepResult {
		t.Helper()
		p := &rpc.ExecuteStep{StepID: id, Driver: driver, Config: json.RawMessage(config), Inputs: map[string]rpc.InputRef{}, Keep: true}
		for _, f := range from {
			p.Inputs["df"] = rpc.InputRef{FromStep: f}
		}
		r, err := w.ExecuteStep(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	path, _ := json.Marshal(map[string]string{"path": filepath.Join(dir, "in.csv")})
	if read := step("read", csv.ExtractorName, string(path)); read.RowsOut != 200_000 || read.Outputs["df"].Spilled == nil {
		t.Fatalf("%+v", read)
	}
	query := `{"query": "SELECT a.name, a.n, b.n AS m FROM (SELECT name, count(*) AS n FROM df GROUP BY name) a JOIN (SELECT name, sum(id) AS n FROM df GROUP BY name) b USING (name) ORDER BY name"}`
	step("query", duckdb.ProcessorName, query, "read")
	step("write", csv.WriterName, `{"path": "out.csv"}`, "query")
	got, err := os.ReadFile(filepath.Join(run, "artifacts", "write", "out.csv"))
	if want := "m,n,name\n100000,100000,ann\n200000,100000,bob\n"; err != nil || string(got) != want {
		t.Errorf("written %q, want %q (%v)", got, want, err)
	}
}
