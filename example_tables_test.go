package remote_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// orders is a table of two columns.
func orders() array.RecordReader {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "amount", Type: arrow.PrimitiveTypes.Float64},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{1, 2, 3}, nil)
	b.Field(1).(*array.Float64Builder).AppendValues([]float64{10, 20.5, 30}, nil)
	rec := b.NewRecord()
	defer rec.Release()
	r, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		log.Fatal(err)
	}
	return r
}

// runTables hands tables through a step of a sandbox in memory and prints what
// comes back of each.
func runTables(tables map[string]remote.Table) {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	drivers.Register("example.pass", worker.Transform, func() worker.Driver { return pass{} })
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers, OpenSandbox: mock.NewProvider(&mock.Options{Drivers: drivers}).OpenSandbox,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	ec := remote.NewExecutionContext(dir)
	ec.Tables = tables
	ec.BasePath = "testdata/osiris"
	ec.Keep = []remote.OutputName{{StepID: "pass"}} // its output "df"
	manifest := &remote.Manifest{Steps: []remote.Step{{
		ID: "pass", Driver: "example.pass",
		Inputs: map[string]remote.InputRef{"df": {Table: "orders"}}, // in YAML: inputs: {df: {table: orders}}
	}}}
	ctx := context.Background()
	prepared, err := adapter.Prepare(ctx, manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := adapter.Execute(ctx, prepared, ec); err != nil {
		log.Fatal(err)
	}
	r, err := adapter.FetchOutput(ctx, prepared, ec, "pass", "df")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()
	for r.Next() {
		fmt.Println(r.Record().NumRows(), "rows of", r.Schema().Field(0).Name, "and", r.Schema().Field(1).Name)
	}
	if err := r.Err(); err != nil { // only now is it known that this was the whole table
		log.Fatal(err)
	}
	if _, err := adapter.Collect(ctx, prepared, ec); err != nil { // the sandbox goes, and its outputs
		log.Fatal(err)
	}
}

type pass struct{}

func (pass) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	df, err := step.OnlyInput()
	if err != nil {
		return nil, err
	}
	return worker.Output(df.Reader()), nil
}

// A table from a reader, and the output of a step read by the host.
func ExampleE2BTransparentProxy_FetchOutput() {
	runTables(map[string]remote.Table{"orders": remote.Records(orders())})
	// Output:
	// 3 rows of id and amount
}

// A reader that is made for every run, so that a run may begin again.
func ExampleRecordsFrom() {
	runTables(map[string]remote.Table{"orders": remote.RecordsFrom(func(context.Context) (array.RecordReader, error) {
		return orders(), nil
	})})
	// Output:
	// 3 rows of id and amount
}

// A CSV file is read where the run happens; config is that of the driver
// filesystem.csv_extractor.
func ExampleCSVFile() {
	runTables(map[string]remote.Table{"orders": remote.CSVFile("csv/zendesk_tickets.csv", map[string]any{"limit": 2})})
	// Output:
	// 2 rows of ticket_id and requester_email
}

// Files in Arrow IPC and Parquet.
func ExampleArrowFile() {
	ec := remote.NewExecutionContext(os.TempDir())
	ec.Tables = map[string]remote.Table{
		"orders":    remote.ArrowFile("orders.arrow"),
		"customers": remote.ParquetFile("customers.parquet", nil),
	}
	fmt.Println(len(ec.Tables), "tables")
	// Output:
	// 2 tables
}
