package csv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/worker"
)

// BenchmarkBesidePandas reads and writes a file of a million rows as often with
// pandas' C engine as here. x-read and x-write are the median times of pandas by
// those here: how many times as fast this is. Both must write the same bytes,
// so the values are equal.
func BenchmarkBesidePandas(b *testing.B) {
	python := os.Getenv(pythonEnv)
	if python == "" {
		b.Skipf("set %s to a Python with pandas to compare with it", pythonEnv)
	}
	path, _ := benchFile(b)
	dir := b.TempDir()
	var reads, writes []float64
	for b.Loop() {
		start := time.Now()
		res, err := (&Extractor{}).Run(context.Background(), &worker.Step{Config: map[string]any{"path": path}})
		if err != nil {
			b.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		df, err := worker.ReadDataFrame(r)
		r.Release()
		if err != nil {
			b.Fatal(err)
		}
		reads = append(reads, time.Since(start).Seconds())
		start = time.Now()
		step := &worker.Step{ArtifactsDir: dir, Config: map[string]any{"path": "ours.csv"}, Inputs: map[string]*worker.DataFrame{"df": df}}
		if _, err := (&Writer{}).Run(context.Background(), step); err != nil {
			b.Fatal(err)
		}
		writes = append(writes, time.Since(start).Seconds())
		df.Release()
	}
	theirs := filepath.Join(dir, "theirs.csv")
	out, err := exec.Command(python, filepath.Join("testdata", "peer.py"), path, theirs, strconv.Itoa(max(3, len(reads)))).Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		b.Fatalf("%v: %s", err, exit.Stderr)
	}
	var peer struct{ Read, Write []float64 }
	if err := json.Unmarshal(out, &peer); err != nil {
		b.Fatal(err)
	}
	ours, err := os.ReadFile(filepath.Join(dir, "ours.csv"))
	if err != nil {
		b.Fatal(err)
	}
	if want, err := os.ReadFile(theirs); err != nil || !bytes.Equal(ours, want) {
		b.Fatalf("the files differ (%v)", err)
	}
	median := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	b.ReportMetric(median(reads)*1e3, "read-ms")
	b.ReportMetric(median(writes)*1e3, "write-ms")
	b.ReportMetric(median(peer.Read)/median(reads), "x-read")
	b.ReportMetric(median(peer.Write)/median(writes), "x-write")
}
