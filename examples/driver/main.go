// Driver runs a pipeline with a driver of its own: it counts the rows of a CSV
// file.
//
//	go run ./examples/driver FILE.csv
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// countRows is a driver. It puts out a table with one row: how many rows its
// input has.
type countRows struct{}

func (countRows) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	in, err := step.OnlyInput()
	if err != nil {
		return nil, err
	}
	step.LogEvent("rows_counted", map[string]any{"rows": in.Rows()})

	schema := arrow.NewSchema([]arrow.Field{{Name: "rows", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(step.Memory(), schema)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).Append(in.Rows())
	rec := b.NewRecord()
	defer rec.Release()
	out, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		return nil, err
	}
	return worker.Output(out), nil
}

// drivers returns those of the worker: the ready-made ones and our own.
func drivers() *worker.Registry {
	r := worker.NewRegistry()
	csv.Register(r)
	r.Register("example.count_rows", worker.Transform, func() worker.Driver { return countRows{} })
	return r
}

// pipeline returns a pipeline that counts the rows of a CSV file. One made by
// hand needs no more than steps.
func pipeline(csvFile string) *remote.Manifest {
	return &remote.Manifest{Name: "count-rows", Steps: []remote.Step{
		{ID: "read", Driver: csv.ExtractorName, Config: map[string]any{"path": csvFile}},
		{ID: "count", Driver: "example.count_rows", Needs: []string{"read"}},
		{ID: "write", Driver: csv.WriterName, Needs: []string{"count"}, Config: map[string]any{"path": "count.csv"}},
	}}
}

func main() {
	worker.Main(drivers())
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: driver FILE.csv")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, csvFile string) error {
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers()})
	if err != nil {
		return err
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "osiris-driver-*")
	if err != nil {
		return err
	}
	now := time.Now()
	ec := &remote.ExecutionContext{SessionID: remote.NewSessionID(now), LogsDir: dir, StartedAt: now}
	_, files, err := remote.Run(ctx, adapter, pipeline(csvFile), ec)
	if err != nil {
		return err
	}
	out, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write", "count.csv"))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}
