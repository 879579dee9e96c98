// Doctor says whether runs in E2B can start, and what to do if not.
//
//	go run ./examples/doctor [flags]
//
// It takes the flags of a run: --e2b-template, --e2b-cpu and so on. It makes a
// sandbox to look at, which costs a few seconds of its time, and removes it.
// The exit code is 0 when all is well, 1 when something must be done, and 2 when
// the command line is wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	worker.Main(drivers)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(doctor(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func doctor(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var cfg remote.Config
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.WorkerPath, "worker", "", "worker `program` for the sandbox (default this program)")
	cfg.AddFlags(flags)
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "doctor: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	diagnosis, err := remote.Doctor(ctx, cfg)
	report(stdout, diagnosis)
	if err != nil {
		fmt.Fprintln(stderr, "doctor:", err)
		return 1
	}
	if !diagnosis.Healthy() {
		return 1
	}
	fmt.Fprintln(stdout, "\nruns can start")
	return 0
}

func report(w io.Writer, d *remote.Diagnosis) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range d.Checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", c.Status, c.Name, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(table, "\t\t-> %s\n", c.Fix)
		}
	}
	table.Flush()
}
