package remote_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/bare"
)

// BenchmarkStart is how long a run of a driver in Python, with pandas itself, has
// until its first step can begin, by each way to its packages. "bare" is a
// sandbox of the same server that has to run "echo", by the least client.
func BenchmarkStart(b *testing.B) {
	needPip(b)
	b.Run("bare", func(b *testing.B) {
		server := newServer(b, "embedded", testDrivers())
		var took time.Duration
		for b.Loop() {
			begin := time.Now()
			sandbox, err := bare.Create(b.Context(), server.APIKey(), server.URL(), server.URL())
			if err != nil {
				b.Fatal(err)
			}
			p, err := sandbox.Start(b.Context(), "/bin/echo", "here")
			if err == nil {
				_, err = p.Next()
			}
			if err != nil {
				b.Fatal(err)
			}
			took += time.Since(begin)
			if err := p.Close(); err != nil {
				b.Fatal(err)
			}
			sandbox.Close()
			for _, sb := range server.Alive() {
				if err := server.Kill(sb.ID); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms-to-first-step")
	})
	house := b.TempDir()
	for _, way := range []struct {
		name string
		cfg  remote.Config
	}{
		{"index", remote.Config{InstallDeps: true, Wheelhouse: "off"}},
		{"wheelhouse", remote.Config{InstallDeps: true, Wheelhouse: house}},
		{"derived", remote.Config{AllowTemplateBuild: true, Wheelhouse: "off"}},
	} {
		b.Run(way.name, func(b *testing.B) {
			server := newServer(b, "embedded", testDrivers())
			cfg := connect(way.cfg, server)
			cfg.Drivers, cfg.Timeout = testDrivers(), 10*time.Minute
			cfg.PythonDrivers = shop(b, map[string]string{"filesystem.csv_extractor": "CsvExtractor", "filesystem.csv_writer": "CsvWriter"})
			start := func(n int) remote.Phases {
				a, err := remote.NewE2BTransparentProxy(cfg) // as another host would
				if err != nil {
					b.Fatal(err)
				}
				defer a.Close()
				result, _, err := remote.Run(b.Context(), a, compiled(b, "csv-copy")(), newContext(b, fmt.Sprint("s", n)))
				if err != nil {
					b.Fatal(err)
				}
				return result.Receipt.Phases
			}
			if way.name != "index" { // there is something that a first run has to leave
				b.Logf("the first run: %+v", start(0))
			}
			var until, packages time.Duration
			n := 1
			for ; b.Loop(); n++ {
				p := start(n)
				until += p.Prepare + p.Build + p.Create + p.Upload + p.WorkerStart + p.Dependencies
				packages += p.Dependencies
			}
			b.ReportMetric(float64(until.Milliseconds())/float64(b.N), "ms-to-first-step")
			b.ReportMetric(float64(packages.Milliseconds())/float64(b.N), "ms-packages")
		})
	}
}
