package workertest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// CSV returns the table of a CSV text, with the types that
// filesystem.csv_extractor finds. It is freed when the test ends.
func CSV(t testing.TB, text string) *worker.DataFrame {
	t.Helper()
	name := filepath.Join(t.TempDir(), "in.csv")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return CSVFile(t, name)
}

// CSVFile is [CSV] of a file.
func CSVFile(t testing.TB, name string) *worker.DataFrame {
	t.Helper()
	res, err := (&csv.Extractor{}).Run(t.Context(), &worker.Step{Config: map[string]any{"path": name}})
	if err != nil {
		t.Fatal(err)
	}
	return frame(t, res.Outputs[worker.DefaultOutput])
}

// Rows returns a table of Go values, by rows: bool, int, int64, float64, string,
// []byte and time.Time, one type a column, and nil for a missing one. It is freed
// when the test ends.
func Rows(t testing.TB, names []string, rows ...[]any) *worker.DataFrame {
	t.Helper()
	fields := make([]arrow.Field, len(names))
	for i, name := range names {
		fields[i] = arrow.Field{Name: name, Type: arrow.Null, Nullable: true}
		for _, row := range rows {
			if len(row) != len(names) {
				t.Fatalf("a row has %d values, the table %d columns", len(row), len(names))
			}
			if row[i] != nil {
				fields[i].Type = typeOf(t, row[i])
				break
			}
		}
	}
	schema := arrow.NewSchema(fields, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, row := range rows {
		for i, v := range row {
			if v != nil && !arrow.TypeEqual(typeOf(t, v), fields[i].Type) {
				t.Fatalf("column %q has values of %s and %s", names[i], fields[i].Type, typeOf(t, v))
			}
			add(b.Field(i), v)
		}
	}
	rec := b.NewRecord()
	defer rec.Release()
	r, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		t.Fatal(err)
	}
	return frame(t, r)
}

func typeOf(t testing.TB, v any) arrow.DataType {
	t.Helper()
	switch v.(type) {
	case bool:
		return arrow.FixedWidthTypes.Boolean
	case int, int64:
		return arrow.PrimitiveTypes.Int64
	case float64:
		return arrow.PrimitiveTypes.Float64
	case string:
		return arrow.BinaryTypes.String
	case []byte:
		return arrow.BinaryTypes.Binary
	case time.Time:
		return &arrow.TimestampType{Unit: arrow.Microsecond}
	}
	t.Fatalf("no column is made of values as %T", v)
	return nil
}

func add(b array.Builder, v any) {
	switch v := v.(type) {
	case nil:
		b.AppendNull()
	case bool:
		b.(*array.BooleanBuilder).Append(v)
	case int:
		b.(*array.Int64Builder).Append(int64(v))
	case int64:
		b.(*array.Int64Builder).Append(v)
	case float64:
		b.(*array.Float64Builder).Append(v)
	case string:
		b.(*array.StringBuilder).Append(v)
	case []byte:
		b.(*array.BinaryBuilder).Append(v)
	case time.Time:
		b.(*array.TimestampBuilder).Append(arrow.Timestamp(v.UnixMicro()))
	}
}

func frame(t testing.TB, r array.RecordReader) *worker.DataFrame {
	t.Helper()
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(df.Release)
	return df
}
