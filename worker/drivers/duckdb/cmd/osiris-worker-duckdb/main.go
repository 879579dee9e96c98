// Osiris-worker-duckdb is the worker program with DuckDB: it runs the steps of a
// pipeline, with all drivers of this library: duckdb.processor, databases and
// Parquet files beside those of osiris-worker.
//
// Nobody starts it by hand. A host that is not its own worker names it in
// remote.Config.WorkerPath, and package remote starts it where the steps run. It
// is linked to glibc, and to nothing else where it is built as `make
// worker-duckdb` does.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/duckdb"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
	"github.com/osiris-pipelines/remote/worker/python"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	duckdb.Register(drivers)
	mysql.Register(drivers)
	parquet.Register(drivers)
	postgres.Register(drivers)
	python.Register(drivers)
	worker.Main(drivers)

	fmt.Fprintf(os.Stderr, `osiris-worker-duckdb (%s) runs the steps of a pipeline for package
github.com/osiris-pipelines/remote, which starts it: name this file in
remote.Config.WorkerPath. By itself it does nothing.

drivers: %s
`, worker.Version(), strings.Join(drivers.Names(), ", "))
	os.Exit(2)
}
