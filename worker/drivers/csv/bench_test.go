package csv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

const benchRows = 1_000_000

// benchFile returns the path of a file of int64, float64, text and
// timestamp-text columns. OSIRIS_BENCH_CSV names a file to use instead, such as
// one pandas was timed with.
func benchFile(b *testing.B) (path string, size int64) {
	b.Helper()
	path = os.Getenv("OSIRIS_BENCH_CSV")
	if path == "" {
		path = filepath.Join(b.TempDir(), "in.csv")
		r := rand.New(rand.NewPCG(1, 2))
		var buf bytes.Buffer
		buf.WriteString("id,amount,name,created_at\n")
		words := []string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta"}
		for i := range benchRows {
			fmt.Fprintf(&buf, "%d,%.4f,%s %s %d,2024-%02d-%02dT%02d:%02d:%02d\n", i, r.Float64()*1e5,
				words[r.IntN(6)], words[r.IntN(6)], r.IntN(1e6), 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60))
		}
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return path, info.Size()
}

func BenchmarkExtract(b *testing.B) {
	path, size := benchFile(b)
	b.SetBytes(size)
	rows := int64(0)
	for b.Loop() {
		step := &worker.Step{Config: map[string]any{"path": path}}
		res, err := (&Extractor{}).Run(context.Background(), step)
		if err != nil {
			b.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		for r.Next() {
			rows += r.Record().NumRows()
		}
		if err := r.Err(); err != nil {
			b.Fatal(err)
		}
		r.Release()
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkTokenize is what both passes have in common.
func BenchmarkTokenize(b *testing.B) {
	path, size := benchFile(b)
	b.SetBytes(size)
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		t := newTokenizer(f, dialect{delimiter: ',', checkUTF8: true})
		for {
			if _, err := t.next(1 << 30); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		f.Close()
	}
}

func BenchmarkWrite(b *testing.B) {
	path, size := benchFile(b)
	b.SetBytes(size)
	step := &worker.Step{Config: map[string]any{"path": path}}
	res, err := (&Extractor{}).Run(context.Background(), step)
	if err != nil {
		b.Fatal(err)
	}
	r := res.Outputs[worker.DefaultOutput]
	frame, err := worker.ReadDataFrame(r)
	r.Release()
	if err != nil {
		b.Fatal(err)
	}
	defer frame.Release()
	dir := b.TempDir()
	for b.Loop() {
		step := &worker.Step{ArtifactsDir: dir, Config: map[string]any{"path": "out.csv"}, Inputs: map[string]*worker.DataFrame{"df": frame}}
		if _, err := (&Writer{}).Run(context.Background(), step); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(frame.Rows())*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
