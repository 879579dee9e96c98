package python

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// BenchmarkHandover measures the way of a table of 1 GB through a driver that
// returns it, and beside it, in the same run, what pyarrow takes to write the
// same table, map it, and make a DataFrame and a table of it again (peer-ms). The
// table is in Go's memory, as a driver in Go would have put it out. factor is of
// the medians.
func BenchmarkHandover(b *testing.B) {
	p := newTestPool(b)
	run := func(class string, step *worker.Step) *worker.Result {
		res, err := p.run(b.Context(), driver("tables", class), step)
		if err != nil {
			b.Fatal(err)
		}
		return res
	}
	step, _ := newStep(b, "sample", map[string]any{"rows": 11_500_000})
	res := run("Sample", step)
	mapped := frame(b, res, "df")
	releaseResult(res)
	df := inMemory(b, mapped)
	mapped.Release()
	defer df.Release()

	files, err := p.files.write(b.Context(), df, nil)
	if err != nil {
		b.Fatal(err)
	}
	// One table of all files, for the peer.
	whole := filepath.Join(b.TempDir(), "table")
	if err := writeFile(b.Context(), whole, df.Schema(), records(df), memory.DefaultAllocator); err != nil {
		b.Fatal(err)
	}
	(&inputFiles{made: files}).remove()

	var ours, theirs []float64
	for b.Loop() {
		peer, _ := newStep(b, "peer", map[string]any{"file": whole, "rounds": 1})
		run("Peer", peer)
		v := values(b, peer)
		theirs = append(theirs, number(b, v["total"])*1000)
		step, _ := newStep(b, "pass", nil)
		step.Inputs = map[string]*worker.DataFrame{"df": df}
		start := time.Now()
		res := run("Pass", step)
		out := frame(b, res, "df")
		ours = append(ours, float64(time.Since(start).Microseconds())/1000)
		releaseResult(res)
		out.Release()
		b.SetBytes(int64(number(b, v["bytes"])))
	}
	b.ReportMetric(median(ours), "ours-ms")
	b.ReportMetric(median(theirs), "peer-ms")
	b.ReportMetric(median(ours)/median(theirs), "factor")
}

func records(df *worker.DataFrame) (recs []arrow.Record) {
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		recs = append(recs, r.Record())
	}
	return recs
}

// inMemory is a copy of df in Go's memory.
func inMemory(b *testing.B, df *worker.DataFrame) *worker.DataFrame {
	var buf bytes.Buffer
	w := rpc.NewArrowWriter(&buf, df.Schema(), nil)
	for _, rec := range records(df) {
		if err := w.Write(rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	r, err := rpc.NewArrowReader(&buf, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Release()
	c, err := worker.ReadDataFrame(r)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func number(b *testing.B, v any) float64 {
	f, err := v.(json.Number).Float64()
	if err != nil {
		b.Fatal(err)
	}
	return f
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
