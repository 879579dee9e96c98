package duckdb_test

import (
	"context"
	"fmt"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/duckdb"
)

func Example() {
	drivers := worker.NewRegistry()
	duckdb.Register(drivers)
	entry, err := drivers.Lookup(duckdb.ProcessorName)
	if err != nil {
		fmt.Println(err)
		return
	}
	// A worker does this for every step that has the driver.
	result, err := entry.New().Run(context.Background(), &worker.Step{
		ID:     "numbers",
		Config: map[string]any{"query": "SELECT range AS n, range * range AS square FROM range(3)"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	r := result.Outputs[worker.DefaultOutput]
	defer r.Release()
	for r.Next() {
		fmt.Println(r.Record().Column(0), r.Record().Column(1))
	}
	fmt.Println(r.Err())
	// Output:
	// [0 1 2] [0 1 4]
	// <nil>
}
