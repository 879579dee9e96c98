// Tables sends a file to a step as a table, and prints the table that the step
// puts out: for every column its type, and how many values are there and missing.
// The step runs on this machine, or with --e2b in a sandbox.
//
//	go run ./examples/tables [--e2b] FILE
//
// FILE is CSV, Parquet, or in Arrow IPC by its name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	parquet.Register(drivers)
	drivers.Register("example.describe", worker.Transform, func() worker.Driver { return describe{} })
	worker.Main(drivers) // started again as the worker, the program stays in here

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, drivers, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// adapter is what both adapters can do.
type adapter interface {
	remote.ExecutionAdapter
	remote.OutputFetcher
	Close() error
}

func run(ctx context.Context, drivers *worker.Registry, args []string, w io.Writer) (err error) {
	cfg := remote.Config{Drivers: drivers}
	flags := flag.NewFlagSet("tables", flag.ContinueOnError)
	e2b := cfg.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: tables [--e2b] FILE")
	}
	var a adapter
	if *e2b {
		a, err = remote.NewE2BTransparentProxy(cfg)
	} else {
		a, err = remote.NewLocalAdapter(cfg)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }() // also what was not collected

	ec := remote.NewExecutionContext("run_logs")
	ec.Tables = map[string]remote.Table{"file": table(flags.Arg(0))}
	ec.Keep = []remote.OutputName{{StepID: "describe"}}
	manifest := &remote.Manifest{Name: "tables", Steps: []remote.Step{{
		ID: "describe", Driver: "example.describe", Inputs: map[string]remote.InputRef{"df": {Table: "file"}},
	}}}
	prepared, err := a.Prepare(ctx, manifest, ec)
	if err != nil {
		return err
	}
	if _, err := a.Execute(ctx, prepared, ec); err != nil {
		return err
	}
	r, err := a.FetchOutput(ctx, prepared, ec, "describe", "df")
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		for i := range int(r.Record().NumRows()) {
			fmt.Fprintln(w, r.Record().Column(0).ValueStr(i), r.Record().Column(1).ValueStr(i), r.Record().Column(2).ValueStr(i), r.Record().Column(3).ValueStr(i))
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	_, err = a.Collect(ctx, prepared, ec) // after what is fetched
	return err
}

// table is the table of a file.
func table(name string) remote.Table {
	switch filepath.Ext(name) {
	case ".csv":
		return remote.CSVFile(name, nil)
	case ".parquet":
		return remote.ParquetFile(name, nil)
	}
	return remote.ArrowFile(name)
}

// describe is a driver that reads its table batch by batch.
type describe struct{}

func (describe) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	df, err := step.OnlyInput()
	if err != nil {
		return nil, err
	}
	values, missing := make([]int64, df.Schema().NumFields()), make([]int64, df.Schema().NumFields())
	in := df.Reader()
	defer in.Release()
	for in.Next() {
		for i, c := range in.Record().Columns() {
			missing[i] += int64(c.NullN())
			values[i] += int64(c.Len() - c.NullN())
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "column", Type: arrow.BinaryTypes.String}, {Name: "type", Type: arrow.BinaryTypes.String},
		{Name: "values", Type: arrow.PrimitiveTypes.Int64}, {Name: "missing", Type: arrow.PrimitiveTypes.Int64},
	}, nil)
	b := array.NewRecordBuilder(step.Memory(), schema)
	defer b.Release()
	for i, f := range df.Schema().Fields() {
		b.Field(0).(*array.StringBuilder).Append(f.Name)
		b.Field(1).(*array.StringBuilder).Append(f.Type.String())
		b.Field(2).(*array.Int64Builder).Append(values[i])
		b.Field(3).(*array.Int64Builder).Append(missing[i])
	}
	rec := b.NewRecord()
	defer rec.Release()
	r, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		return nil, err
	}
	return worker.Output(r), nil
}
