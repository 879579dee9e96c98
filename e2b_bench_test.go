package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/bare"
	"github.com/osiris-pipelines/remote/mock"
)

// peers makes a proxy and a bare client, on the daemon that E2B_ENVD_URL names,
// else on mock.Server with real processes.
func peers(b *testing.B) (*remote.E2BTransparentProxy, *bare.Client) {
	b.Helper()
	cfg := remote.Config{Drivers: testDrivers(), WorkerPath: os.Getenv("E2B_TEST_WORKER"), Timeout: time.Hour}
	cfg.APIKey, cfg.SandboxURL = "e2b_00", os.Getenv("E2B_ENVD_URL")
	if cfg.SandboxURL != "" {
		control := bare.ControlPlane()
		b.Cleanup(control.Close)
		cfg.APIURL = control.URL
	} else {
		server, err := mock.NewServer(mock.WithProcesses())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { server.Close() })
		cfg = connect(cfg, server)
	}
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.Close() })
	peer, err := bare.Create(b.Context(), cfg.APIKey, cfg.APIURL, cfg.SandboxURL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(peer.Close)
	return a, peer
}

// BenchmarkE2BRoundTrip is a request to a worker in a sandbox, answered through
// its journal and the tail, beside a line through cat in a bare client's
// calls.
func BenchmarkE2BRoundTrip(b *testing.B) {
	a, peer := peers(b)
	w := remote.StartWorker(b, a)
	for range 100 { // until it is known that input may be streamed
		if err := w.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.Run("ping", func(b *testing.B) {
		bare.Measure(b, func() {
			if err := w.Ping(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("step", func(b *testing.B) {
		n := 0
		bare.Measure(b, func() {
			n++
			if err := w.Step(b.Context(), fmt.Sprint("s", n)); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("bare", func(b *testing.B) {
		p, err := peer.Start(b.Context(), "cat")
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		line := append(bytes.Repeat([]byte("x"), 199), '\n')
		bare.Measure(b, func() {
			if err := p.Send(b.Context(), line); err != nil {
				b.Fatal(err)
			}
			for n := 0; n < len(line); {
				got, err := p.Next()
				if err != nil {
					b.Fatal(err)
				}
				n += len(got)
			}
		})
	})
}

// BenchmarkE2BEvents is 100,000 events of 200 bytes from a driver in a sandbox
// to events.jsonl, beside as many lines read by a bare client.
func BenchmarkE2BEvents(b *testing.B) {
	const events = 100_000
	a, peer := peers(b)
	b.Run("proxy", func(b *testing.B) {
		ms := 0.0
		for b.Loop() {
			ec := &remote.ExecutionContext{SessionID: remote.NewSessionID(time.Now()), LogsDir: b.TempDir()}
			m := &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "test.flood", Config: map[string]any{"events": events}}}}
			result, _, err := remote.Run(b.Context(), a, m, ec)
			if err != nil {
				b.Fatal(err)
			}
			ms += result.StepResults[0].DurationMS
		}
		b.ReportMetric(events*float64(b.N)/ms*1000, "events/s")
	})
	b.Run("bare", func(b *testing.B) {
		command := fmt.Sprintf("yes %s | head -c %d", bytes.Repeat([]byte("x"), 199), events*200)
		start := time.Now()
		for b.Loop() {
			p, err := peer.Start(b.Context(), "/bin/sh", "-c", command)
			if err != nil {
				b.Fatal(err)
			}
			for {
				if _, err := p.Next(); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
			p.Close()
		}
		b.ReportMetric(events*float64(b.N)/time.Since(start).Seconds(), "events/s")
	})
}

// BenchmarkE2BRun is a whole run of two CSV steps, from create to kill, and the
// medians of its parts.
func BenchmarkE2BRun(b *testing.B) {
	a, _ := peers(b)
	parts := make(map[string][]float64)
	for b.Loop() {
		ec := &remote.ExecutionContext{SessionID: remote.NewSessionID(time.Now()), LogsDir: b.TempDir(), BasePath: "testdata/osiris"}
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			var f struct {
				DurationMS float64 `json:"duration_ms"`
			}
			if e.StepID == "" && e.Decode(&f) == nil && f.DurationMS > 0 {
				parts[e.Name] = append(parts[e.Name], f.DurationMS)
			}
			return nil
		}
		ec.OnMetric = func(_ context.Context, m remote.Metric) error {
			if m.Name == "artifacts_copy_ms" {
				parts[m.Name] = append(parts[m.Name], m.Value)
			}
			return nil
		}
		m, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := remote.Run(b.Context(), a, m, ec); err != nil {
			b.Fatal(err)
		}
	}
	for name, unit := range map[string]string{
		"sandbox_created": "create-ms", "sandbox_inputs_uploaded": "upload-ms", "worker_started": "handshake-ms", "artifacts_copy_ms": "collect-ms",
	} {
		if times := parts[name]; len(times) > 0 {
			slices.Sort(times)
			b.ReportMetric(times[len(times)/2], unit)
		}
	}
}
