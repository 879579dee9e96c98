package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/bare"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// directArg makes the test binary a worker that has no journal: see directFS.
const directArg = "bare-serve"

// directWorker is that worker as a program.
func directWorker() {
	if len(os.Args) > 2 && os.Args[1] == directArg {
		p := worker.Program{Drivers: testDrivers(), FS: directFS{}}
		os.Exit(p.Run(context.Background(), os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// directFS is this machine's, but what is written to the journal goes to
// standard output.
type directFS struct{ worker.OSFS }

func (fs directFS) Create(name string) (worker.File, error) {
	if strings.HasSuffix(name, ".journal") {
		return directFile{}, nil
	}
	return fs.OSFS.Create(name)
}

// directFile can only be written to.
type directFile struct{ worker.File }

func (directFile) Write(b []byte) (int, error) { return os.Stdout.Write(b) }
func (directFile) Close() error                { return nil }
func (directFile) Truncate(int64) error        { return errors.ErrUnsupported }

// directSandbox is a sandbox whose worker is such a one: its standard output
// takes the place of the tail's.
type directSandbox struct {
	remote.Sandbox
	worker  remote.Process
	started chan struct{}
}

func (s *directSandbox) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	switch {
	case len(cmd.Args) < 2 || cmd.Args[0] != worker.Arg || cmd.Args[1] != "tail" && cmd.Args[1] != "supervise":
		return s.Sandbox.Start(ctx, cmd)
	case cmd.Args[1] == "tail":
		select {
		case <-s.started:
			return directTail{s.worker}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	cmd.Args = append([]string{directArg}, cmd.Args[1:]...)
	p, err := s.Sandbox.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	s.worker = p
	close(s.started)
	return directProcess{p}, nil
}

// directProcess is the worker, without its output.
type directProcess struct{ remote.Process }

func (directProcess) Stdout() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// directTail is the worker's output alone.
type directTail struct{ remote.Process }

type noInput struct{}

func (noInput) Write(b []byte) (int, error) { return len(b), nil }
func (noInput) Close() error                { return nil }

func (directTail) Stdin() io.WriteCloser                       { return noInput{} }
func (directTail) Signal(context.Context, remote.Signal) error { return nil }

// floodWorker starts a worker behind E2B's protocol: on the daemon that
// E2B_ENVD_URL names, on that of E2B_ENVD_BIN in a sandbox of its own, else in
// real processes.
func floodWorker(b *testing.B, direct bool) remote.Worker {
	b.Helper()
	cfg := remote.Config{Drivers: testDrivers(), WorkerPath: os.Getenv("E2B_TEST_WORKER"), Timeout: time.Hour}
	if url := os.Getenv("E2B_ENVD_URL"); url != "" {
		control := bare.ControlPlane()
		b.Cleanup(control.Close)
		cfg.APIKey, cfg.APIURL, cfg.SandboxURL = "e2b_00", control.URL, url
	} else {
		opt := mock.WithProcesses()
		if bin := os.Getenv("E2B_ENVD_BIN"); bin != "" {
			opt = mock.WithEnvd(bin)
		}
		server, err := mock.NewServer(opt)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { server.Close() })
		cfg = connect(cfg, server)
	}
	e2b := cfg
	cfg.OpenSandbox = func(ctx context.Context, _ remote.SandboxConfig) (remote.Sandbox, error) {
		sb, done, err := remote.NewE2BSandbox(ctx, e2b)
		if err != nil {
			return nil, err
		}
		b.Cleanup(func() { done() })
		if direct {
			sb = &directSandbox{Sandbox: sb, started: make(chan struct{})}
		}
		return sb, nil
	}
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.Close() })
	return remote.StartWorker(b, a)
}

// BenchmarkJournalCost is what the journal adds to 100,000 events on their way
// from a driver in a sandbox to events.jsonl: beside it, in turns, is a worker
// that writes the same frames to its standard output, which is read in place of
// the tail's. The cost is the median of 20 pairs, in percent of the time
// without a journal.
func BenchmarkJournalCost(b *testing.B) {
	const events, pairs = 100_000, 20
	journal, direct := floodWorker(b, false), floodWorker(b, true)
	n := 0
	measure := func(w remote.Worker) float64 {
		n++
		start := time.Now()
		if err := w.Flood(b.Context(), fmt.Sprint("s", n), events); err != nil {
			b.Fatal(err)
		}
		return time.Since(start).Seconds()
	}
	measure(journal)
	measure(direct)
	var with, without, cost []float64
	for b.Loop() {
		for i := range pairs {
			var j, d float64
			if i%2 == 0 {
				j, d = measure(journal), measure(direct)
			} else {
				d, j = measure(direct), measure(journal)
			}
			with, without, cost = append(with, j), append(without, d), append(cost, 100*(j/d-1))
		}
	}
	b.ReportMetric(median(cost), "cost-%")
	b.ReportMetric(events/median(with), "journal-events/s")
	b.ReportMetric(events/median(without), "direct-events/s")
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}
