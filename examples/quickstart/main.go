// Quickstart runs a small pipeline in a sandbox that is part of this program:
// no account, no network, no flags.
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := quickstart(ctx); err != nil {
		progress.Error(os.Stderr, "quickstart", err)
		os.Exit(1)
	}
}

func quickstart(ctx context.Context) (err error) {
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

	// The drivers that the pipeline's steps name.
	drivers := worker.NewRegistry()
	csv.Register(drivers)

	// The proxy makes a sandbox for every run. These are in memory, with the
	// worker inside; everything else is as it would be elsewhere.
	sandboxes := mock.NewProvider(&mock.Options{Drivers: drivers})
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers:     drivers,
		OpenSandbox: sandboxes.OpenSandbox,
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
