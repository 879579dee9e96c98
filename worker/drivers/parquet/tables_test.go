package parquet_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	pq "github.com/apache/arrow/go/v17/parquet"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
)

type pass struct{}

func (pass) Run(_ context.Context, s *worker.Step) (*worker.Result, error) {
	df, err := s.OnlyInput()
	if err != nil {
		return nil, err
	}
	return worker.Output(df.Reader()), nil
}

// TestTable: a Parquet file of the host is a step's input, and comes back.
func TestTable(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}, {Name: "left_out", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	const rows = 1000
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.Int64Builder).Append(0)
	}
	rec := b.NewRecord()
	defer rec.Release()
	name := filepath.Join(t.TempDir(), "orders.parquet")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pqarrow.NewFileWriter(schema, f, pq.NewWriterProperties(), pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil { // and the file
		t.Fatal(err)
	}

	drivers := worker.NewRegistry()
	parquet.Register(drivers)
	drivers.Register("test.pass", worker.Transform, func() worker.Driver { return pass{} })
	a, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers, OpenSandbox: mock.NewProvider(&mock.Options{Drivers: drivers}).OpenSandbox,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ec := remote.NewExecutionContext(t.TempDir())
	ec.Tables = map[string]remote.Table{"orders": remote.ParquetFile(name, map[string]any{"columns": []string{"id"}})}
	ec.Keep = []remote.OutputName{{StepID: "pass"}}
	m := &remote.Manifest{Steps: []remote.Step{{ID: "pass", Driver: "test.pass", Inputs: map[string]remote.InputRef{"df": {Table: "orders"}}}}}
	p, err := a.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	r, err := a.FetchOutput(t.Context(), p, ec, "pass", "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	n := int64(0)
	for r.Next() {
		ids := r.Record().Column(0).(*array.Int64)
		for i := range ids.Len() {
			if ids.Value(i) != n {
				t.Fatalf("row %d is %d", n, ids.Value(i))
			}
			n++
		}
	}
	if n != rows || r.Err() != nil || r.Schema().NumFields() != 1 {
		t.Errorf("%d rows of %s, %v", n, r.Schema(), r.Err())
	}
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
}
