// Minimal runs a compiled pipeline on this machine.
//
//	go run ./examples/minimal MANIFEST
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	worker.Main(drivers) // started again as the worker, the program stays in here

	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	manifest, err := remote.LoadManifest(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	ec := remote.NewExecutionContext("run_logs")
	result, files, err := remote.Run(context.Background(), adapter, manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Success, len(files.Artifacts), "artifacts in", files.ArtifactsDir)
}
