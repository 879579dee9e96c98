//go:build unix

package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// frame reads one output of a result.
func frame(t testing.TB, res *worker.Result, key string) *worker.DataFrame {
	t.Helper()
	r := res.Outputs[key]
	if r == nil {
		t.Fatalf("no output %q", key)
	}
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	return df
}

// numbers makes a table of several batches.
func numbers(t testing.TB, mem memory.Allocator, batches, rows int) *worker.DataFrame {
	if mem == nil {
		mem = memory.DefaultAllocator
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}, {Name: "name", Type: arrow.BinaryTypes.String, Nullable: true}}, nil)
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	var recs []arrow.Record
	for i := range batches {
		for j := range rows {
			b.Field(0).(*array.Int64Builder).Append(int64(i*rows + j))
			if j%3 == 0 {
				b.Field(1).AppendNull()
			} else {
				b.Field(1).(*array.StringBuilder).Append(fmt.Sprint("name ", i, j))
			}
		}
		recs = append(recs, b.NewRecord())
	}
	defer releaseAll(recs)
	r, err := array.NewRecordReader(schema, recs)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	return df
}

func listDir(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "bridge.py" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestTables(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)

	t.Run("kinds", func(t *testing.T) {
		step, _ := newStep(t, "a", nil)
		step.Allocator = mem
		res := mustRun(t, p, driver("tables", "Kinds"), step)
		defer releaseResult(res)
		for _, key := range []string{"df", "table", "batch", "reader", "stream"} {
			df := frame(t, res, key)
			r := df.Reader()
			var ids []int64
			for r.Next() {
				ids = append(ids, r.Record().Column(0).(*array.Int64).Int64Values()...)
			}
			r.Release()
			df.Release()
			if d := cmp.Diff([]int64{1, 2, 3}, ids); d != "" {
				t.Errorf("%s: %s", key, d)
			}
		}
		got := fmt.Sprint(values(t, step))
		if want := "map[list:[0 1] price:1.10 rows:3 share:<nil> when:2026-01-02]"; got != want {
			t.Errorf("values %s, want %s", got, want)
		}
	})

	t.Run("types", func(t *testing.T) { testTypes(t, p) })
	t.Run("odd tables", func(t *testing.T) { testOddTables(t, p) })

	t.Run("one table, two names", func(t *testing.T) {
		df := numbers(t, mem, 2, 10)
		defer df.Release()
		step, _ := newStep(t, "b", nil)
		step.Inputs = map[string]*worker.DataFrame{"df": df, "df_a": df}
		mustRun(t, p, driver("tables", "Same"), step)
		if got := fmt.Sprint(values(t, step)); got != "map[names:[df df_a] same:true]" {
			t.Error(got)
		}
	})

	t.Run("back again", func(t *testing.T) {
		for _, size := range [][2]int{{0, 0}, {1, 0}, {1, 1}, {3, 1000}, {2, 20000}} {
			df := numbers(t, mem, size[0], size[1])
			defer df.Release()
			step, _ := newStep(t, "c", nil)
			step.Inputs = map[string]*worker.DataFrame{"df": df}
			res := mustRun(t, p, driver("tables", "Pass"), step)
			got := frame(t, res, "df")
			releaseResult(res)
			if got.Rows() != int64(size[0]*size[1]) {
				t.Errorf("%v: %d rows", size, got.Rows())
			}
			if want, have := cells(t, df), cells(t, got); want != have {
				t.Errorf("%v: %s", size, cmp.Diff(want, have))
			}
			got.Release()
		}
	})

	t.Run("files", func(t *testing.T) {
		step, _ := newStep(t, "d", map[string]any{"rows": 5_000_000}) // 85 MB: several files where there are several processors
		res := mustRun(t, p, driver("tables", "Large"), step)
		df := frame(t, res, "df")
		releaseResult(res)
		files := p.files.found(df)
		if len(files) == 0 || len(listDir(t, p.opts.dir)) != len(files) {
			t.Errorf("files %v, in the directory are %v", files, listDir(t, p.opts.dir))
		}
		next, _ := newStep(t, "e", nil)
		next.Inputs = map[string]*worker.DataFrame{"df": df}
		// It is not written again.
		put, err := p.files.put(t.Context(), next)
		if err != nil || len(put.made) > 0 || !cmp.Equal(put.byName["df"], files) {
			t.Errorf("put %v, made %v: %v", put.byName, put.made, err)
		}
		res = mustRun(t, p, driver("tables", "Pass"), next)
		df2 := frame(t, res, "df")
		releaseResult(res)
		if df2.Rows() != 5_000_000 {
			t.Errorf("%d rows", df2.Rows())
		}
		df.Release()
		df2.Release()
		if left := listDir(t, p.opts.dir); len(left) > 0 || len(p.files.tables) > 0 {
			t.Errorf("left behind: %v, %d tables", left, len(p.files.tables))
		}
	})

	t.Run("changed in place", func(t *testing.T) {
		step, _ := newStep(t, "f0", nil)
		frames := mustRun(t, p, driver("tables", "Frames"), step)
		df := frame(t, frames, "typed")
		releaseResult(frames)
		defer df.Release()
		big := numbers(t, mem, 1, 20000) // not cut into batches, and so worth no copy
		defer big.Release()
		for name, in := range map[string]*worker.DataFrame{"typed": df, "big": big} {
			step, _ := newStep(t, "f", nil)
			step.Inputs = map[string]*worker.DataFrame{"df": in}
			before := cells(t, in)
			res := mustRun(t, p, driver("tables", "Change"), step)
			out := frame(t, res, "df")
			releaseResult(res)
			rows := strings.Split(cells(t, out), "\n")
			if rows[1] != rows[2] {
				t.Errorf("%s: %q, %q: not changed", name, rows[1], rows[2])
			}
			out.Release()
			if after := cells(t, in); after != before {
				t.Errorf("%s: the input itself was changed", name)
			}
		}
	})

	t.Run("pandas", func(t *testing.T) {
		step, _ := newStep(t, "g", nil)
		res := mustRun(t, p, driver("tables", "Frames"), step)
		next, _ := newStep(t, "h", nil)
		next.Inputs = make(map[string]*worker.DataFrame)
		written, _ := newStep(t, "i", nil) // the same, but through Go's writer
		written.Inputs = make(map[string]*worker.DataFrame)
		for key := range res.Outputs {
			df := frame(t, res, key)
			defer df.Release()
			next.Inputs["df_"+key] = df
			c := rewritten(t, df)
			defer c.Release()
			written.Inputs["df_"+key] = c
		}
		releaseResult(res)
		mustRun(t, p, driver("tables", "Frames"), next)
		mustRun(t, p, driver("tables", "Frames"), written)
		if got := fmt.Sprint(values(t, written)); got == "map[]" || got == "map[checked:0]" {
			t.Error(got)
		}
	})
}

// rewritten is df after it went through a stream, as between worker and host.
func rewritten(t *testing.T, df *worker.DataFrame) *worker.DataFrame {
	t.Helper()
	var buf bytes.Buffer
	w := rpc.NewArrowWriter(&buf, df.Schema(), nil)
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		if err := w.Write(r.Record()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	back, err := rpc.NewArrowReader(&buf, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Release()
	c, err := worker.ReadDataFrame(back)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cells are the values of a table, whatever its batches.
func cells(t testing.TB, df *worker.DataFrame) string {
	var b strings.Builder
	for _, f := range df.Schema().Fields() {
		b.WriteString(f.Name + " ")
	}
	b.WriteByte('\n')
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		for i := range int(r.Record().NumRows()) {
			for _, c := range r.Record().Columns() {
				if c.IsNull(i) {
					b.WriteString("NULL ")
				} else {
					b.WriteString(c.ValueStr(i) + " ")
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// testTypes is the table of what becomes of a column that a driver in Go puts out.
func testTypes(t *testing.T, p *testPool) {
	type column struct {
		typ   arrow.DataType
		json  string // of the column's values
		dtype string // what the driver sees
		first string // type and value of the first cell in Python
		null  string // of the last, where that is null
	}
	str := "str" // of pandas 3
	dict := func(v arrow.DataType) arrow.DataType {
		return &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: v}
	}
	tests := map[string]column{
		"int8":             {arrow.PrimitiveTypes.Int8, `[-128, 127]`, "int8", "int8 -128", ""},
		"int64":            {arrow.PrimitiveTypes.Int64, `[-9223372036854775808, 9223372036854775807]`, "int64", "int64 -9223372036854775808", ""},
		"uint64":           {arrow.PrimitiveTypes.Uint64, `[18446744073709551615, 0]`, "uint64", "uint64 18446744073709551615", ""},
		"int32 null":       {arrow.PrimitiveTypes.Int32, `[-2147483648, null]`, "float64", "float64 -2147483648.0", "float64 nan"},
		"int64 null":       {arrow.PrimitiveTypes.Int64, `[-9007199254740992, null]`, "float64", "float64 -9007199254740992.0", "float64 nan"},
		"int64 null large": {arrow.PrimitiveTypes.Int64, `[-9007199254740993, null]`, "Int64", "int64 -9007199254740993", "NAType <NA>"},
		"uint64 large":     {arrow.PrimitiveTypes.Uint64, `[18446744073709551615, null]`, "UInt64", "uint64 18446744073709551615", "NAType <NA>"},
		"int64 all null":   {arrow.PrimitiveTypes.Int64, `[null, null]`, "float64", "float64 nan", "float64 nan"},
		"float32":          {arrow.PrimitiveTypes.Float32, `[1.5, null]`, "float32", "float32 1.5", "float32 nan"},
		"float64":          {arrow.PrimitiveTypes.Float64, `[0.1, null]`, "float64", "float64 0.1", "float64 nan"},
		"bool":             {arrow.FixedWidthTypes.Boolean, `[true, false]`, "bool", "bool True", ""},
		"bool null":        {arrow.FixedWidthTypes.Boolean, `[true, null]`, "object", "bool True", "NoneType None"},
		"string":           {arrow.BinaryTypes.String, `["é", null]`, str, "str é", "float nan"},
		"large_string":     {arrow.BinaryTypes.LargeString, `["é", null]`, str, "str é", "float nan"},
		"binary":           {arrow.BinaryTypes.Binary, `["AP8=", null]`, "object", `bytes b'\x00\xff'`, "NoneType None"},
		"fixed binary":     {&arrow.FixedSizeBinaryType{ByteWidth: 2}, `["AP8=", null]`, "object", `bytes b'\x00\xff'`, "NoneType None"},
		"decimal":          {&arrow.Decimal128Type{Precision: 38, Scale: 2}, `["123456789012345678901234567890123456.78", null]`, "object", "Decimal 123456789012345678901234567890123456.78", "NoneType None"},
		"decimal256":       {&arrow.Decimal256Type{Precision: 40, Scale: 1}, `["1.5", null]`, "object", "Decimal 1.5", "NoneType None"},
		"date32":           {arrow.FixedWidthTypes.Date32, `["0001-01-01", null]`, "object", "date 0001-01-01", "NoneType None"},
		"time64":           {arrow.FixedWidthTypes.Time64us, `["01:02:03.000004", null]`, "object", "time 01:02:03.000004", "NoneType None"},
		"timestamp s":      {&arrow.TimestampType{Unit: arrow.Second}, `["0001-01-01", "9999-12-31"]`, "datetime64[s]", "Timestamp 0001-01-01 00:00:00", ""},
		"timestamp us":     {&arrow.TimestampType{Unit: arrow.Microsecond}, `["0001-01-01", null]`, "datetime64[us]", "Timestamp 0001-01-01 00:00:00", "NaTType NaT"},
		"timestamp ns":     {&arrow.TimestampType{Unit: arrow.Nanosecond}, `["2026-01-02 03:04:05.000000006", null]`, "datetime64[ns]", "Timestamp 2026-01-02 03:04:05.000000006", "NaTType NaT"},
		"timestamp zone":   {&arrow.TimestampType{Unit: arrow.Millisecond, TimeZone: "Europe/Prague"}, `["2026-07-01 00:00:00", null]`, "datetime64[ms, Europe/Prague]", "Timestamp 2026-07-01 02:00:00+02:00", "NaTType NaT"},
		"duration":         {arrow.FixedWidthTypes.Duration_us, `["5us", null]`, "timedelta64[us]", "Timedelta 0 days 00:00:00.000005", "NaTType NaT"},
		"list":             {arrow.ListOf(arrow.PrimitiveTypes.Int64), `[[1, null], null]`, "object", "list [1, None]", "NoneType None"},
		"struct":           {arrow.StructOf(arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64, Nullable: true}), `[{"a": 1}, null]`, "object", "dict {'a': 1}", "NoneType None"},
		"map":              {arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Int64), `[[{"key": "a", "value": 1}], null]`, "object", "list [('a', 1)]", "NoneType None"},
		"dictionary":       {dict(arrow.BinaryTypes.String), `["a", null]`, "category", "str a", "float nan"},
		"null":             {arrow.Null, `[null, null]`, "object", "NoneType None", "NoneType None"},
	}
	var fields []arrow.Field
	var cols []arrow.Array
	for name, c := range tests {
		col, _, err := array.FromJSON(memory.DefaultAllocator, c.typ, strings.NewReader(c.json), array.WithUseNumber())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		fields, cols = append(fields, arrow.Field{Name: name, Type: c.typ, Nullable: true}), append(cols, col)
	}
	df := dataFrame(t, fields, cols)
	defer df.Release()
	step, _ := newStep(t, "a", nil)
	step.Inputs = map[string]*worker.DataFrame{"df": df}
	res := mustRun(t, p, driver("tables", "Look"), step)
	releaseResult(res)
	got := values(t, step)
	for name, c := range tests {
		seen := got[name].([]any)
		want := []any{c.dtype, c.first, c.null}
		if c.null == "" {
			want[2] = seen[2]
		}
		if d := cmp.Diff(want, seen); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func dataFrame(t testing.TB, fields []arrow.Field, cols []arrow.Array) *worker.DataFrame {
	schema := arrow.NewSchema(fields, nil)
	rec := array.NewRecord(schema, cols, int64(cols[0].Len()))
	defer rec.Release()
	for _, c := range cols {
		c.Release()
	}
	r, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	return df
}

// testOddTables has what no pandas would make, and other languages may.
func testOddTables(t *testing.T, p *testPool) {
	mem := memory.DefaultAllocator
	fromJSON := func(dt arrow.DataType, s string) arrow.Array {
		a, _, err := array.FromJSON(mem, dt, strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	indices := fromJSON(arrow.PrimitiveTypes.Int32, `[0, 1, 2, null]`)
	tests := map[string]struct {
		column arrow.Array
		want   string
	}{
		"null category":   {array.NewDictionaryArray(dt, indices, fromJSON(arrow.BinaryTypes.String, `["a", null, "b"]`)), "[str str a float nan]"},
		"double category": {array.NewDictionaryArray(dt, indices, fromJSON(arrow.BinaryTypes.String, `["a", "a", "b"]`)), "[str str a float nan]"},
		"string view":     {fromJSON(arrow.BinaryTypes.StringView, `["a", "a", "something that is longer", null]`), "[str str a float nan]"},
		"runs":            {array.NewRunEndEncodedArray(fromJSON(arrow.PrimitiveTypes.Int32, `[2, 4]`), fromJSON(arrow.BinaryTypes.String, `["a", "b"]`), 4, 0), "[object str a str b]"},
		"month interval":  {fromJSON(arrow.FixedWidthTypes.MonthDayNanoInterval, `[{"months": 1, "days": 2, "nanoseconds": 3}, null, null, null]`), "[object DateOffset <DateOffset: days=2, months=1, nanoseconds=3> NoneType None]"},
	}
	for name, test := range tests {
		df := dataFrame(t, []arrow.Field{{Name: "a", Type: test.column.DataType(), Nullable: true}}, []arrow.Array{test.column})
		step, _ := newStep(t, "a", nil)
		step.Inputs = map[string]*worker.DataFrame{"df": df}
		res := mustRun(t, p, driver("tables", "Look"), step)
		releaseResult(res)
		if got := fmt.Sprint(values(t, step)["a"]); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
		df.Release()
	}

	// Dictionaries that change from batch to batch become one.
	var recs []arrow.Record
	schema := arrow.NewSchema([]arrow.Field{{Name: "a", Type: dt, Nullable: true}}, nil)
	for _, words := range []string{`["x", "y"]`, `["z", "x"]`} {
		c := array.NewDictionaryArray(dt, fromJSON(arrow.PrimitiveTypes.Int32, `[1, 0]`), fromJSON(arrow.BinaryTypes.String, words))
		recs = append(recs, array.NewRecord(schema, []arrow.Array{c}, 2))
	}
	r, err := array.NewRecordReader(schema, recs)
	if err != nil {
		t.Fatal(err)
	}
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	step, _ := newStep(t, "a", nil)
	step.Inputs = map[string]*worker.DataFrame{"df": df}
	res := mustRun(t, p, driver("tables", "Pass"), step)
	got := frame(t, res, "df")
	releaseResult(res)
	if d := cmp.Diff("a \ny \nx \nx \nz \n", cells(t, got)); d != "" {
		t.Error(d)
	}
	got.Release()
	df.Release()
}

// TestDamaged has files that end too early, or have something else in them.
func TestDamaged(t *testing.T) {
	h := newHandover(t.TempDir())
	df := numbers(t, memory.DefaultAllocator, 2, 8)
	defer df.Release()
	files, err := h.write(t.Context(), df, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	read := func(content []byte, rows int64) error {
		name := h.name("t")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := h.open([]string{name}, rows, nil)
		if err == nil {
			var df *worker.DataFrame
			if df, err = worker.ReadDataFrame(r); err == nil {
				df.Release()
			}
			r.Release()
		}
		if _, serr := os.Stat(name); !errors.Is(serr, os.ErrNotExist) {
			t.Errorf("the file is still there: %v", serr)
		}
		return err
	}
	if err := read(whole, df.Rows()); err != nil {
		t.Error(err)
	}
	if err := read(whole, df.Rows()+1); !errors.Is(err, rpc.ErrArrowCorrupt) {
		t.Errorf("a row too few: error %v", err)
	}
	for n := 0; n < len(whole); n += 3 {
		if err := read(whole[:n], df.Rows()); !errors.Is(err, rpc.ErrArrowCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: error %v", n, len(whole), err)
		}
	}
	for i := 0; i < len(whole); i += 3 { // no panic
		b := bytes.Clone(whole)
		b[i] ^= 0xff
		_ = read(b, df.Rows())
	}
	if _, err := h.open([]string{filepath.Join(h.dir, "none")}, 0, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestCutRecords(t *testing.T) {
	df := numbers(t, memory.DefaultAllocator, 3, 7)
	defer df.Release()
	var recs []arrow.Record
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		r.Record().Retain()
		recs = append(recs, r.Record())
	}
	defer releaseAll(recs)
	for parts, want := range map[int][]int64{1: {21}, 2: {11, 10}, 4: {6, 6, 6, 3}, 5: {5, 5, 5, 5, 1}} {
		var got []int64
		next := int64(0)
		for _, part := range cutRecords(recs, 21, parts) {
			rows := int64(0)
			for _, rec := range part {
				for _, id := range rec.Column(0).(*array.Int64).Int64Values() {
					if id != next {
						t.Fatalf("%d parts: row %d, want %d", parts, id, next)
					}
					next++
				}
				rows += rec.NumRows()
			}
			got = append(got, rows)
			releaseAll(part)
		}
		if d := cmp.Diff(want, got); d != "" || next != 21 {
			t.Errorf("%d parts: %s", parts, d)
		}
	}
}

func TestWriteStops(t *testing.T) {
	h := newHandover(t.TempDir())
	df := numbers(t, memory.DefaultAllocator, 1, 1)
	defer df.Release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	step := &worker.Step{Inputs: map[string]*worker.DataFrame{"df": df}}
	files, err := h.put(ctx, step)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	files.remove()
	if left := listDir(t, h.dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDocumented runs the driver of docs/python.md.
func TestDocumented(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	b, err := os.ReadFile("../../docs/python.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "```python\n")
	source, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("there is no example")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "orders.py"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	col, _, err := array.FromJSON(memory.DefaultAllocator, arrow.BinaryTypes.String, strings.NewReader(`["paid", "open", null, "paid"]`))
	if err != nil {
		t.Fatal(err)
	}
	df := dataFrame(t, []arrow.Field{{Name: "status", Type: arrow.BinaryTypes.String, Nullable: true}}, []arrow.Array{col})
	defer df.Release()
	step, r := newStep(t, "paid", map[string]any{})
	step.Inputs = map[string]*worker.DataFrame{"df_orders": df}
	res := mustRun(t, p, driverClass{name: "orders.paid", module: "orders", class: "PaidOrders", sources: []string{dir}}, step)
	out := frame(t, res, "df")
	defer out.Release()
	releaseResult(res)
	if d := cmp.Diff("status \npaid \npaid \n", cells(t, out)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"log INFO 2 of 4 orders logger=orders", "metric rows_dropped 2 rows"}, r.reported); d != "" {
		t.Error(d)
	}
}
