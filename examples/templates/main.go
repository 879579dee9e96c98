// Templates runs a pipeline twice in sandboxes of 4 cores and 8 GiB that have
// pandas. E2B fixes all three in a template, so the first run builds one, and the
// second starts from it: nothing is uploaded but the run's own files, and nothing
// is installed.
//
//	go run ./examples/templates [--e2b] [flags]
//
// Without --e2b it builds for sandboxes on this machine, which takes Linux, a
// python3 with pip and the network, and no account. The flags are those of a run:
// --e2b-cpu, --e2b-mem, --e2b-image, --e2b-package and so on.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/examples/internal/progress"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/python"
)

// The driver in Python that the pipeline's second step is.
//
//go:embed drivers
var sources embed.FS

const orders = "day,amount\n2026-01-03,10\n2026-01-29,5\n2026-02-11,7\n"

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	python.Register(drivers)
	worker.Main(drivers) // started again as the worker, the program stays in here

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := templates(ctx, drivers, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		progress.Error(os.Stderr, "templates", err)
		os.Exit(1)
	}
}

func templates(ctx context.Context, drivers *worker.Registry, args []string, w io.Writer) (err error) {
	cfg := remote.Config{
		Drivers:  drivers,
		CPU:      4,
		MemoryGB: 8,
		Packages: []string{"pandas", "pyarrow"},

		AllowTemplateBuild: true, // else an error says what would be built
	}
	flags := flag.NewFlagSet("templates", flag.ContinueOnError)
	e2b := cfg.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !*e2b {
		server, err := mock.NewServer(mock.WithProcesses())
		if err != nil {
			return err
		}
		defer server.Close()
		fmt.Fprintln(w, "embedded sandboxes:", server.Isolation())
		cfg.APIKey, cfg.APIURL, cfg.SandboxURL = server.APIKey(), server.URL(), server.URL()
	}
	dir, err := os.MkdirTemp("", "osiris-templates-*")
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, sources); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "orders.csv"), []byte(orders), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"first", "second"} {
		fmt.Fprintf(w, "\n%s run:\n", name)
		// An adapter of its own, as another host would have.
		if err := run(ctx, cfg, filepath.Join(dir, name), dir, w); err != nil {
			return err
		}
	}
	return nil
}

// pipeline reads orders, and sums them by month in a driver in Python. The
// packages that it imports are in remote.Config.Packages; they could as well be
// its Requirements.
func pipeline() *remote.Manifest {
	return &remote.Manifest{
		Name: "monthly-orders",
		Steps: []remote.Step{
			{ID: "read", Driver: csv.ExtractorName, Config: map[string]any{"path": "orders.csv"}},
			{ID: "sum", Driver: "example.monthly", Needs: []string{"read"}},
			{ID: "write", Driver: csv.WriterName, Needs: []string{"sum"}, Config: map[string]any{"path": "monthly.csv"}},
		},
		PythonDrivers: []remote.PythonDriver{{
			Name: "example.monthly", Module: "monthly", Class: "Monthly", Sources: []string{"drivers"},
		}},
	}
}

func run(ctx context.Context, cfg remote.Config, session, base string, w io.Writer) (err error) {
	adapter, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, adapter.Close()) }()
	now := time.Now()
	ec := &remote.ExecutionContext{
		SessionID: remote.NewSessionID(now), BasePath: base, LogsDir: session, StartedAt: now,
		OnEvent: progress.New(w).Event,
	}
	result, files, err := remote.Run(ctx, adapter, pipeline(), ec)
	if err != nil {
		return err
	}
	out, err := fs.ReadFile(os.DirFS(files.ArtifactsDir), "write/monthly.csv")
	if err != nil {
		return err
	}
	p := result.Receipt.Phases
	fmt.Fprintf(w, "until the first step: %s, of that building %s, uploading %s, installing %s; sent %d bytes\n%s",
		round(p.Prepare+p.Build+p.Create+p.Upload+p.WorkerStart+p.Dependencies), round(p.Build), round(p.Upload), round(p.Dependencies),
		result.Receipt.BytesSent, out)
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
