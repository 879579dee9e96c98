package e2b_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/internal/bare"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
)

// peers makes a sandbox and a bare client, on the daemon that E2B_ENVD_URL
// names, else on mock.Server with real processes.
func peers(b *testing.B) (*e2b.Sandbox, *bare.Client) {
	b.Helper()
	cfg := e2b.Config{APIKey: "e2b_00", SandboxURL: os.Getenv("E2B_ENVD_URL")}
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
		cfg.APIKey, cfg.APIURL, cfg.SandboxURL = server.APIKey(), server.URL(), server.URL()
	}
	client, err := e2b.NewClient(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	sb, err := client.CreateSandbox(b.Context(), e2b.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { sb.Kill(context.Background()) })
	peer, err := bare.Create(b.Context(), cfg.APIKey, cfg.APIURL, cfg.SandboxURL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(peer.Close)
	return sb, peer
}

// BenchmarkEcho sends a line of 200 bytes through cat and waits for it.
func BenchmarkEcho(b *testing.B) {
	sb, peer := peers(b)
	line := append(bytes.Repeat([]byte("x"), 199), '\n')
	b.Run("client", func(b *testing.B) {
		p, err := sb.Start(b.Context(), e2b.Command{Path: "cat", Stdin: true})
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		defer p.Signal(context.Background(), e2b.SignalKill)
		back := make([]byte, len(line))
		echo := func() {
			if _, err := p.Stdin().Write(line); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(p.Stdout(), back); err != nil {
				b.Fatal(err)
			}
		}
		echo()
		time.Sleep(300 * time.Millisecond) // until it knows that streams work here
		bare.Measure(b, echo)
	})
	b.Run("bare", func(b *testing.B) {
		p, err := peer.Start(b.Context(), "cat")
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
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

// BenchmarkOutput reads 20 MB of lines of 200 bytes.
func BenchmarkOutput(b *testing.B) {
	sb, peer := peers(b)
	const size = 100_000 * 200
	args := []string{"-c", fmt.Sprintf("yes %s | head -c %d", string(bytes.Repeat([]byte("x"), 199)), size)}
	b.Run("client", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			p, err := sb.Start(b.Context(), e2b.Command{Path: "/bin/sh", Args: args})
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, p.Stdout()); err != nil || n != size {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			p, err := peer.Start(b.Context(), "/bin/sh", args...)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for {
				got, err := p.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					b.Fatal(err)
				}
				n += len(got)
			}
			if n != size {
				b.Fatal(n)
			}
			p.Close()
		}
	})
}

const transfer = 256 << 20

// zeros is a source of many bytes that costs no memory.
type zeros struct{}

func (zeros) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

func source() *io.SectionReader { return io.NewSectionReader(zeros{}, 0, transfer) }

// heap reports how much memory a transfer took at most, as far as it is seen.
func heap(b *testing.B, f func()) {
	b.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapSys-min(after.HeapSys, before.HeapSys))/(1<<20), "heap-growth-MiB")
}

// BenchmarkUpload uploads 256 MiB. With a hash the sandbox's side is computed
// there, by the same code that a worker uses, after the upload.
func BenchmarkUpload(b *testing.B) {
	sb, peer := peers(b)
	name := "/tmp/bench-upload"
	upload := func(b *testing.B, f func()) {
		b.SetBytes(transfer)
		heap(b, func() {
			for b.Loop() {
				f()
			}
		})
	}
	b.Run("client", func(b *testing.B) {
		upload(b, func() {
			if err := sb.Upload(b.Context(), name, source(), transfer); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("client-hash", func(b *testing.B) {
		upload(b, func() {
			if _, _, err := rpc.XXH3(source()); err != nil {
				b.Fatal(err)
			}
			if err := sb.Upload(b.Context(), name, source(), transfer); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("bare", func(b *testing.B) {
		upload(b, func() {
			if err := peer.Upload(b.Context(), name, source(), transfer); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// BenchmarkDownload downloads 256 MiB.
func BenchmarkDownload(b *testing.B) {
	sb, peer := peers(b)
	name := "/tmp/bench-download"
	if err := sb.Upload(b.Context(), name, source(), transfer); err != nil {
		b.Fatal(err)
	}
	if os.Getenv("E2B_ENVD_URL") == "" { // the bare client's sandbox is another one
		if err := peer.Upload(b.Context(), name, source(), transfer); err != nil {
			b.Fatal(err)
		}
	}
	read := func(b *testing.B, use func(r io.Reader) (int64, error)) {
		b.SetBytes(transfer)
		heap(b, func() {
			for b.Loop() {
				d, err := sb.Download(b.Context(), name)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := use(d); err != nil || n != transfer {
					b.Fatal(n, err)
				}
				d.Close()
			}
		})
	}
	b.Run("client", func(b *testing.B) {
		read(b, func(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) })
	})
	b.Run("client-hash", func(b *testing.B) {
		read(b, func(r io.Reader) (int64, error) {
			n, _, err := rpc.XXH3(r)
			return n, err
		})
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(transfer)
		heap(b, func() {
			for b.Loop() {
				if err := peer.Download(b.Context(), name, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
