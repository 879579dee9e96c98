// Quickstart runs a small pipeline in a sandbox on this machine: no account, no
// network but loopback, no flags. The sandbox is made over E2B's protocol, as
// one in E2B's cloud would be, and this program, started again in it, is its
// worker.
//
//	go run ./examples/quickstart
//
// The pipeline is a real one, as the Osiris compiler leaves it: it reads a CSV
// file of users and writes it again with its columns sorted. What the run
// leaves behind stays in a new directory under the system's temporary one.
package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
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
)

// The compiled pipeline with its input, and the bytes that must come out.
//
//go:embed pipeline
var pipeline embed.FS

//go:embed expected/users.csv
var expected []byte

func main() {
	// The drivers that the pipeline's steps name.
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	worker.Main(drivers) // started again as the worker, the program stays in here

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := quickstart(ctx, drivers); err != nil {
		progress.Error(os.Stderr, "quickstart", err)
		os.Exit(1)
	}
}

func quickstart(ctx context.Context, drivers *worker.Registry) (err error) {
	dir, err := os.MkdirTemp("", "osiris-quickstart-*")
	if err != nil {
		return err
	}
	sub, err := fs.Sub(pipeline, "pipeline")
	if err != nil {
		return err
	}
	base := filepath.Join(dir, "pipeline")
	if err := os.CopyFS(base, sub); err != nil {
		return err
	}

	// What stands in for E2B here: its API on loopback, and sandboxes that are
	// processes of this machine.
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	fmt.Println("embedded sandbox:", server.Isolation())

	// The proxy makes a sandbox for every run. Without key and URLs it takes
	// them from E2B_API_KEY and its sisters, and runs in E2B.
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers:    drivers,
		APIKey:     server.APIKey(),
		APIURL:     server.URL(),
		SandboxURL: server.URL(),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, adapter.Close()) }()

	manifest, err := remote.LoadManifest(filepath.Join(base, "manifest.yaml"))
	if err != nil {
		return err
	}
	now := time.Now()
	ec := &remote.ExecutionContext{
		SessionID: remote.NewSessionID(now),
		BasePath:  base, // the configs say "csv/supabase_users.csv"
		LogsDir:   filepath.Join(dir, "session"),
		StartedAt: now,
		OnEvent:   progress.New(os.Stdout).Event,
	}

	// Prepare, Execute and Collect in one; the sandbox is gone when it returns.
	result, files, err := remote.Run(ctx, adapter, manifest, ec)
	progress.Report(os.Stdout, ec, result, files)
	if err != nil {
		return err
	}

	output := filepath.Join(files.ArtifactsDir, "write-users", "output", "users.csv")
	got, err := os.ReadFile(output)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, expected) {
		return fmt.Errorf("%s is not what it should be:\n%s", output, got)
	}
	fmt.Printf("output: %s\nIt is what it should be, byte for byte.\n", output)
	return nil
}
