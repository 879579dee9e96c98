// Osiris-worker is the ready-made worker program: it runs the steps of a
// pipeline, with the drivers that come with this module.
//
// Nobody starts it by hand. A host that is not its own worker names it in
// remote.Config.WorkerPath, and package remote starts it where the steps run.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/python"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	python.Register(drivers)
	worker.Main(drivers)

	fmt.Fprintf(os.Stderr, `osiris-worker (%s) runs the steps of a pipeline for package
github.com/osiris-pipelines/remote, which starts it: name this file in
remote.Config.WorkerPath. By itself it does nothing.

drivers: %s
`, worker.Version(), strings.Join(drivers.Names(), ", "))
	os.Exit(2)
}
