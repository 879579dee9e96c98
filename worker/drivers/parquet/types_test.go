package parquet_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/worker"
)

// typeCase is a type of Arrow, and what is read when it was written.
type typeCase struct {
	name   string
	typ    arrow.DataType
	values string         // as JSON
	read   arrow.DataType // nil: the same
	python arrow.DataType // what pyarrow reads; nil: the same
}

func typeCases() []typeCase {
	p, f := arrow.PrimitiveTypes, arrow.FixedWidthTypes
	text := arrow.BinaryTypes.String
	dict := func(index, value arrow.DataType) *arrow.DictionaryType {
		return &arrow.DictionaryType{IndexType: index, ValueType: value}
	}
	list := func(t arrow.DataType) arrow.DataType {
		return arrow.ListOfField(arrow.Field{Name: "element", Type: t, Nullable: true})
	}
	ts := func(unit arrow.TimeUnit, zone string) arrow.DataType {
		return &arrow.TimestampType{Unit: unit, TimeZone: zone}
	}
	return []typeCase{
		{name: "bool", typ: f.Boolean, values: "true, false, null"},
		{name: "int8", typ: p.Int8, values: "-128, 127, null"},
		{name: "int16", typ: p.Int16, values: "-32768, 32767, null"},
		{name: "int32", typ: p.Int32, values: "-2147483648, 2147483647, null"},
		{name: "int64", typ: p.Int64, values: `"-9223372036854775808", "9223372036854775807", null`},
		{name: "uint8", typ: p.Uint8, values: "0, 255, null"},
		{name: "uint16", typ: p.Uint16, values: "0, 65535, null"},
		{name: "uint32", typ: p.Uint32, values: "0, 4294967295, null"},
		{name: "uint64", typ: p.Uint64, values: `0, "18446744073709551615", null`},
		{name: "float16", typ: f.Float16, values: "0.5, -65504, null"},
		{name: "float32", typ: p.Float32, values: `0.1, 3.4028235e38, "NaN", "+Inf", null`},
		{name: "float64", typ: p.Float64, values: `0.1, 5e-324, -1.7976931348623157e308, "NaN", "-Inf", null`},
		{name: "text", typ: text, values: `"", "žluťoučký 🐎", "nul\u0000", null`},
		{name: "large text", typ: arrow.BinaryTypes.LargeString, values: `"", "x", null`},
		{name: "binary", typ: arrow.BinaryTypes.Binary, values: `"", "AP8=", null`},
		{name: "large binary", typ: arrow.BinaryTypes.LargeBinary, values: `"", "AP8=", null`},
		{name: "fixed binary", typ: &arrow.FixedSizeBinaryType{ByteWidth: 4}, values: `"AAECAw==", null`},
		{name: "decimal 5", typ: &arrow.Decimal128Type{Precision: 5, Scale: 2}, values: `"-999.99", "0.01", null`},
		{name: "decimal 18", typ: &arrow.Decimal128Type{Precision: 18, Scale: 0}, values: `"999999999999999999", "-1", null`},
		{name: "decimal 38", typ: &arrow.Decimal128Type{Precision: 38, Scale: 10}, values: `"9999999999999999999999999999.9999999999", "-0.0000000001", null`},
		{name: "decimal 76", typ: &arrow.Decimal256Type{Precision: 76, Scale: 6}, values: `"` + strings.Repeat("9", 70) + `.999999", "-0.000001", null`},
		{name: "decimal256 of 10", typ: &arrow.Decimal256Type{Precision: 10, Scale: 2}, values: `"12345678.90", null`},
		{name: "date32", typ: f.Date32, values: `"0001-01-01", "9999-12-31", null`},
		{name: "date64", typ: f.Date64, values: `"2024-02-29", null`, read: f.Date32},
		{name: "time s", typ: f.Time32s, values: `"23:59:59", null`, read: f.Time32ms},
		{name: "time ms", typ: f.Time32ms, values: `"23:59:59.999", null`},
		{name: "time us", typ: f.Time64us, values: `"23:59:59.999999", null`},
		{name: "time ns", typ: f.Time64ns, values: `"23:59:59.999999999", null`},
		{name: "timestamp s", typ: ts(arrow.Second, ""), values: `"2024-02-29 12:34:56", null`, read: ts(arrow.Millisecond, "")},
		{name: "timestamp ms", typ: ts(arrow.Millisecond, ""), values: `"2024-02-29 12:34:56.789", null`},
		{name: "timestamp us", typ: ts(arrow.Microsecond, ""), values: `"0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", null`},
		{name: "timestamp ns", typ: ts(arrow.Nanosecond, ""), values: `"1677-09-22 00:00:00", "2024-02-29 12:34:56.123456789", null`},
		{name: "timestamp utc", typ: ts(arrow.Microsecond, "UTC"), values: `"2024-02-29 12:34:56.789", null`},
		{name: "timestamp zone", typ: ts(arrow.Nanosecond, "Europe/Prague"), values: `"2024-02-29 12:34:56.789", null`},
		{name: "duration s", typ: f.Duration_s, values: `"90s", null`},
		{name: "duration ns", typ: f.Duration_ns, values: `"-1ns", null`},
		{name: "null", typ: arrow.Null, values: "null"},
		{name: "list", typ: list(p.Int64), values: "[], [1, null, 3], null"},
		{name: "list of lists", typ: list(list(text)), values: `[], [[]], [["a", null], null], null`},
		{name: "list item", typ: arrow.ListOf(p.Int32), values: "[1], null", read: list(p.Int32)},
		{name: "fixed list", typ: arrow.FixedSizeListOfField(2, arrow.Field{Name: "element", Type: p.Int32, Nullable: true}), values: "[1, 2], [3, null], null", read: list(p.Int32)},
		{name: "structs of fixed lists", typ: list(arrow.StructOf(arrow.Field{Name: "v", Type: arrow.FixedSizeListOf(1, p.Int32), Nullable: true})),
			values: `[{"v": [1]}, {"v": null}, null], [], null, [{"v": [null]}]`, read: list(arrow.StructOf(arrow.Field{Name: "v", Type: list(p.Int32), Nullable: true}))},
		{name: "struct", typ: arrow.StructOf(arrow.Field{Name: "a", Type: p.Int64, Nullable: true}, arrow.Field{Name: "b", Type: list(text), Nullable: true}),
			values: `{"a": 1, "b": ["x"]}, {"a": null, "b": null}, null`},
		{name: "list of structs", typ: list(arrow.StructOf(arrow.Field{Name: "a", Type: f.Boolean, Nullable: true})), values: `[{"a": true}, null], [], null`},
		{name: "map", typ: arrow.MapOf(text, p.Int64), values: `[{"key": "k", "value": 1}, {"key": "l", "value": null}], [], null`},
		{name: "dictionary", typ: dict(p.Int32, text), values: `"low", "high", "low", null`},
		{name: "dictionary int8", typ: dict(p.Int8, text), values: `"low", "high", "low", null`, read: dict(p.Int32, text), python: dict(p.Int8, text)},
		{name: "dictionary of integers", typ: dict(p.Int32, p.Int64), values: `7, 8, 7, null`, read: p.Int64},
	}
}

// typeTable is a table of all types, 100 times their values.
func typeTable(t *testing.T, cases []typeCase) *worker.DataFrame {
	t.Helper()
	fields := make([]arrow.Field, len(cases))
	for i, c := range cases {
		fields[i] = arrow.Field{Name: c.name, Type: c.typ, Nullable: true, Metadata: arrow.NewMetadata([]string{"note"}, []string{c.name})}
	}
	schema := arrow.NewSchema(fields, nil)
	columns := make([]arrow.Array, len(cases))
	for i, c := range cases {
		b := array.NewBuilder(memory.DefaultAllocator, c.typ)
		defer b.Release()
		for b.Len() < 100 {
			if err := b.UnmarshalJSON([]byte("[" + c.values + "]")); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		all := b.NewArray()
		defer all.Release()
		columns[i] = array.NewSlice(all, 0, 100)
		defer columns[i].Release()
	}
	rec := array.NewRecord(schema, columns, 100)
	defer rec.Release()
	first, second := rec.NewSlice(0, 33), rec.NewSlice(33, 100)
	defer first.Release()
	defer second.Release()
	return frameOf(t, schema, first, second)
}

func writeConfigs() map[string]map[string]any {
	return map[string]map[string]any{
		"default": nil,
		"zstd":    {"compression": "zstd"},
		"gzip":    {"compression": "gzip"},
		"brotli":  {"compression": "brotli"},
		"none":    {"compression": nil},
		"groups":  {"row_group_size": 7},
	}
}

// TestTypes writes every type, extremes and nulls, and reads it again.
func TestTypes(t *testing.T) {
	cases := typeCases()
	df := typeTable(t, cases)
	dir := t.TempDir()
	for name, config := range writeConfigs() {
		t.Run(name, func(t *testing.T) {
			s, err := write(t, dir, name+".parquet", df, config)
			if err != nil {
				t.Fatal(err)
			}
			if s.metrics["rows_written"] != 100 {
				t.Errorf("metrics %v", s.metrics)
			}
			again := mustExtract(t, filepath.Join(dir, name+".parquet"), map[string]any{"batch_size": 9})
			if again.Rows() != 100 {
				t.Fatalf("%d rows", again.Rows())
			}
			for i, c := range cases {
				want := c.read
				if want == nil {
					want = c.typ
				}
				f := again.Schema().Field(i)
				if !arrow.TypeEqual(f.Type, want) {
					t.Errorf("%s: read as %s, want %s", c.name, f.Type, want)
				}
				if note, _ := f.Metadata.GetValue("note"); f.Name != c.name || !f.Nullable || note != c.name && c.name != "dictionary of integers" {
					t.Errorf("%s: read as the field %v", c.name, f)
				}
				if diff := cmp.Diff(normal(values(t, df, i)), normal(values(t, again, i))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", c.name, diff)
				}
			}
		})
	}
}

// normal has times in one notation, whatever their units.
func normal(list []string) []string {
	for i, s := range list {
		list[i] = strings.TrimSuffix(s, `"`)
		if strings.Count(list[i], ":") == 2 || strings.HasSuffix(list[i], "Z") {
			list[i] = strings.TrimRight(strings.TrimSuffix(list[i], "Z"), "0.")
		}
	}
	return list
}

// TestPython reads what pyarrow and pandas write, and has them read what is
// written here.
func TestPython(t *testing.T) {
	dir, ours := t.TempDir(), t.TempDir()
	cases := typeCases()
	df := typeTable(t, cases)
	for name, config := range writeConfigs() {
		if _, err := write(t, ours, name+".parquet", df, config); err != nil {
			t.Fatal(err)
		}
	}
	python(t, dir, ours)
	for name := range writeConfigs() {
		t.Run("reads "+name, func(t *testing.T) {
			again := readIPC(t, filepath.Join(ours, name+".read"))
			for i, c := range cases {
				if diff := cmp.Diff(normal(values(t, df, i)), normal(values(t, again, i))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", c.name, diff)
				}
				want := c.read
				if want == nil || c.python != nil {
					want = c.python
				}
				if want == nil {
					want = c.typ
				}
				if have := again.Schema().Field(i).Type; !arrow.TypeEqual(have, want) {
					t.Errorf("%s: type %s, want %s", c.name, have, want)
				}
			}
		})
	}
	for _, name := range []string{"types", "groups", "v1", "v2", "plain", "gzip", "brotli", "delta", "empty", "required", "pandas"} {
		t.Run(name, func(t *testing.T) {
			want := readIPC(t, filepath.Join(dir, name+".arrow"))
			step := &worker.Step{}
			if name == "delta" { // Arrow's decoder leaves a buffer to the garbage collector
				step.Allocator = memory.DefaultAllocator
			}
			got, err := extract(t, step, filepath.Join(dir, name+".parquet"), map[string]any{"batch_size": 299})
			if err != nil {
				t.Fatal(err)
			}
			if got.Rows() != want.Rows() {
				t.Errorf("%d rows, want %d", got.Rows(), want.Rows())
			}
			for i, f := range want.Schema().Fields() {
				have := got.Schema().Field(i)
				if have.Name != f.Name || have.Nullable != f.Nullable {
					t.Errorf("field %v, want %v", have, f)
				}
				if d, ok := f.Type.(*arrow.DictionaryType); ok { // whose indices are always of 32 bits
					f.Type = &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: d.ValueType}
				}
				if !arrow.TypeEqual(have.Type, f.Type) {
					t.Errorf("%s: type %s, want %s", f.Name, have.Type, f.Type)
				}
				if diff := cmp.Diff(values(t, want, i), values(t, got, i)); diff != "" {
					t.Errorf("%s (-want +got):\n%.2000s", f.Name, diff)
				}
			}
		})
	}
	t.Run("split", func(t *testing.T) {
		if _, err := extract(t, &worker.Step{}, filepath.Join(dir, "split.parquet"), nil); err == nil || !strings.Contains(err.Error(), `column "double": the encoding BYTE_STREAM_SPLIT is not supported`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		if df := mustExtract(t, filepath.Join(dir, "nothing.parquet"), nil); df.Rows() != 0 || df.Schema().NumFields() != 0 {
			t.Errorf("%d rows of %v", df.Rows(), df.Schema())
		}
	})
}
