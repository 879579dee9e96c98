// Minimal runs a compiled pipeline on this machine.
//
//	go run ./examples/minimal MANIFEST
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	worker.Main(drivers) // started again as the worker, the program stays in here

	// Ctrl-C stops the run in order: a sandbox must not be left behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, drivers, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, drivers *worker.Registry, args []string) (err error) {
	if len(args) != 1 {
		return errors.New("usage: minimal MANIFEST")
	}
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, adapter.Close()) }()
	manifest, err := remote.LoadManifest(args[0])
	if err != nil {
		return err
	}
	ec := remote.NewExecutionContext("run_logs")
	result, files, err := remote.Run(ctx, adapter, manifest, ec)
	if err != nil {
		return err
	}
	fmt.Println(result.Success, len(files.Artifacts), "artifacts in", files.ArtifactsDir)
	return nil
}
