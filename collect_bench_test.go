package remote_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/bare"
	"github.com/osiris-pipelines/remote/mock"
)

// benchSandbox is a sandbox with a worker program, and a bare client of another
// on the same server: on the daemon that E2B_ENVD_URL or E2B_ENVD_BIN names, else
// on mock.Server with real processes. Each request takes as much longer as delay
// says.
func benchSandbox(b *testing.B, delay time.Duration) (sb remote.Sandbox, program string, peer *bare.Client, slow *bare.Client) {
	b.Helper()
	cfg := remote.Config{Drivers: testDrivers(), WorkerPath: os.Getenv("E2B_TEST_WORKER"), Timeout: time.Hour}
	cfg.APIKey, cfg.SandboxURL = "e2b_00", os.Getenv("E2B_ENVD_URL")
	if cfg.SandboxURL != "" {
		control := bare.ControlPlane()
		b.Cleanup(control.Close)
		cfg.APIURL = control.URL
	} else {
		option := mock.WithProcesses()
		if envd := os.Getenv("E2B_ENVD_BIN"); envd != "" {
			option = mock.WithEnvd(envd)
		}
		server, err := mock.NewServer(option)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { server.Close() })
		cfg = connect(cfg, server)
	}
	target := cfg.SandboxURL
	if delay > 0 {
		cfg.SandboxURL = slowly(b, target, delay)
	}
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.Close() })
	sb, done, err := remote.NewE2BSandbox(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { done() })
	b.Cleanup(func() { sb.Kill(b.Context()) })
	if program, err = remote.InstallWorker(b.Context(), a, sb); err != nil {
		b.Fatal(err)
	}
	peer, err = bare.Create(b.Context(), cfg.APIKey, cfg.APIURL, target)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(peer.Close)
	if slow, err = bare.Create(b.Context(), cfg.APIKey, cfg.APIURL, cfg.SandboxURL); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(slow.Close)
	return sb, program, peer, slow
}

// slowly passes requests on after a delay.
func slowly(b *testing.B, target string, delay time.Duration) string {
	b.Helper()
	to, err := url.Parse(target)
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(delay)
		proxy.ServeHTTP(w, r)
	})
	return serveOn(b, server)
}

// number is a count of a benchmark, which a variable sets.
func number(b *testing.B, variable string, usual int) int {
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatalf("%s: %v", variable, err)
	}
	return n
}

// fill makes artifacts in the folders of two sandboxes: count files of a size
// each, of which no two are the same.
func fill(b *testing.B, sb remote.Sandbox, peer *bare.Client, dir string, count, size int) {
	b.Helper()
	script := fmt.Sprintf(`mkdir -p %[1]s && cd %[1]s && head -c %[2]d /dev/urandom >all && split -a 5 -d -b %[3]d all f && rm all`,
		remote.ArtifactsOf(dir, "a"), count*size, size)
	if err := remote.RunIn(b.Context(), sb, "/bin/sh", "-c", script); err != nil {
		b.Fatal(err)
	}
	p, err := peer.Start(b.Context(), "/bin/sh", "-c", script)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for {
		if _, err := p.Next(); err != nil {
			break // io.EOF, or the downloads say so
		}
	}
}

// downloads measures how fast files of sealed artifacts come.
func downloads(b *testing.B, s *remote.Sealed, verify remote.Verify, count int, size int64) {
	b.Helper()
	b.SetBytes(int64(count) * size)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		got, err := s.Download(b.Context(), dir, verify)
		b.StopTimer()
		if err != nil || len(got.Artifacts) != count {
			b.Fatalf("%d artifacts, %v", len(got.Artifacts), err)
		}
		if size > 1<<20 { // to make files is slow for a while where many were removed
			os.RemoveAll(dir)
		}
		b.StartTimer()
	}
}

// BenchmarkCollectLarge is the download of one artifact of REMOTE_BENCH_MIB MiB,
// beside a bare client's requests for its parts.
func BenchmarkCollectLarge(b *testing.B) {
	size := number(b, "REMOTE_BENCH_MIB", 256) << 20
	sb, program, peer, _ := benchSandbox(b, 0)
	dir := "/tmp/osiris-bench/large"
	fill(b, sb, peer, dir, 1, size)
	s, err := remote.Seal(b.Context(), sb, program, dir, "a")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(int64(size))
		for b.Loop() {
			b.StopTimer()
			name := filepath.Join(b.TempDir(), "f")
			b.StartTimer()
			f, err := os.Create(name)
			if err != nil {
				b.Fatal(err)
			}
			if err := peer.DownloadRanges(b.Context(), remote.ArtifactsOf(dir, "a")+"/f00000", int64(size), 8<<20, 4, f); err != nil {
				b.Fatal(err)
			}
			f.Close()
			b.StopTimer()
			os.Remove(name)
			b.StartTimer()
		}
	})
	for _, verify := range []remote.Verify{remote.VerifyNone, remote.VerifyXXH3, remote.VerifySHA256} {
		b.Run(string(verify), func(b *testing.B) { downloads(b, s, verify, 1, int64(size)) })
	}
}

// BenchmarkCollectFiles is the download of REMOTE_BENCH_FILES artifacts of 10 KiB,
// beside a bare client that asks for each, eight at a time, on loopback and with
// 20 ms more for every request.
func BenchmarkCollectFiles(b *testing.B) {
	count := number(b, "REMOTE_BENCH_FILES", 10_000)
	const size = 10 << 10
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		b.Run(fmt.Sprint("delay=", delay), func(b *testing.B) {
			sb, program, _, slow := benchSandbox(b, delay)
			dir := "/tmp/osiris-bench/files"
			fill(b, sb, slow, dir, count, size)
			s, err := remote.Seal(b.Context(), sb, program, dir, "a")
			if err != nil {
				b.Fatal(err)
			}
			b.Run("bare", func(b *testing.B) {
				b.SetBytes(int64(count) * size)
				for b.Loop() {
					b.StopTimer()
					to := b.TempDir()
					b.StartTimer()
					var group errgroup.Group
					group.SetLimit(8)
					for i := range count {
						group.Go(func() error {
							name := fmt.Sprintf("f%05d", i)
							f, err := os.Create(filepath.Join(to, name))
							if err != nil {
								return err
							}
							defer f.Close()
							return slow.Download(b.Context(), remote.ArtifactsOf(dir, "a")+"/"+name, f)
						})
					}
					if err := group.Wait(); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("collect", func(b *testing.B) { downloads(b, s, remote.VerifySHA256, count, size) })
		})
	}
}

// serveOn starts a server on loopback, and stops it with the benchmark.
func serveOn(b *testing.B, server *http.Server) string {
	b.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	b.Cleanup(func() {
		server.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}
