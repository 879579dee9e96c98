// Python runs a pipeline with a driver in Python: it counts the rows of a CSV
// file.
//
//	go run ./examples/python FILE.csv
//
// The driver is drivers/count_rows.py. It takes a python3 that has pandas and
// pyarrow, or else installs them, in the user's cache directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/python"
)

// drivers returns those of the worker, and lets it run drivers in Python.
func drivers() *worker.Registry {
	r := worker.NewRegistry()
	csv.Register(r)
	python.Register(r)
	return r
}

// pipeline returns a pipeline that counts the rows of a CSV file, by a driver
// whose module is in a directory of this machine.
func pipeline(csvFile, sources string) *remote.Manifest {
	return &remote.Manifest{
		Name: "count-rows",
		Steps: []remote.Step{
			{ID: "read", Driver: csv.ExtractorName, Config: map[string]any{"path": csvFile}},
			{ID: "count", Driver: "example.count_rows", Needs: []string{"read"}},
			{ID: "write", Driver: csv.WriterName, Needs: []string{"count"}, Config: map[string]any{"path": "count.csv"}},
		},
		PythonDrivers: []remote.PythonDriver{{
			Name: "example.count_rows", Module: "count_rows", Class: "CountRows", Sources: []string{sources},
		}},
	}
}

func main() {
	worker.Main(drivers())
	interpreter := flag.String("python", "python3", "the interpreter")
	sources := flag.String("drivers", filepath.Join("examples", "python", "drivers"), "the `directory` with count_rows.py")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: python [flags] FILE.csv")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *interpreter, pipeline(flag.Arg(0), *sources)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, interpreter string, m *remote.Manifest) (err error) {
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers(), Python: interpreter, InstallDeps: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, adapter.Close()) }()
	_, files, err := remote.Run(ctx, adapter, m, remote.NewExecutionContext("run_logs"))
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
