package duckdb_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/duckdb"
)

const benchRows = 1_000_000

// readArrow reads an Arrow file as a table.
func readArrow(tb testing.TB, name string) *worker.DataFrame {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	file, err := ipc.NewFileReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	var batches []arrow.Record
	for {
		rec, err := file.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			tb.Fatal(err)
		}
		rec.Retain()
		batches = append(batches, rec)
	}
	r, err := array.NewRecordReader(file.Schema(), batches)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	return df
}

// BenchmarkJoin joins three inputs of a million rows beside DuckDB's Python
// client, which reads the same Arrow files: x-peer is the median time here by
// the median time there.
func BenchmarkJoin(b *testing.B) {
	dir := b.TempDir()
	peer(b, nil, "make", dir, strconv.Itoa(benchRows))
	inputs := make(map[string]*worker.DataFrame)
	for _, name := range []string{"df_users", "df_orders", "df_charges"} {
		inputs[name] = readArrow(b, filepath.Join(dir, name+".arrow"))
	}
	const join = `FROM df_users u JOIN df_orders o ON o.user_id = u.user_id JOIN df_charges c ON c.order_id = o.order_id`
	for _, bb := range []struct{ name, query string }{
		{"rows", `SELECT u.email, o.order_id, o.total, c.charge_id, c.status ` + join},
		{"some", `SELECT u.email, o.order_id, o.total, c.charge_id ` + join + ` WHERE c.status = 'succeeded' AND o.total > 90000`},
		{"groups", `SELECT u.country, c.status, count(*) AS n, sum(o.total) AS total ` + join + ` GROUP BY ALL ORDER BY ALL`},
		{"sorted", `SELECT u.user_id, o.total, c.amount ` + join + ` ORDER BY o.total`},
	} {
		b.Run(bb.name, func(b *testing.B) {
			var times []float64
			rows := int64(0)
			for b.Loop() {
				before := b.Elapsed()
				res, err := (&duckdb.Processor{}).Run(context.Background(), &worker.Step{Config: map[string]any{"query": bb.query}, Inputs: inputs})
				if err != nil {
					b.Fatal(err)
				}
				out, err := worker.ReadDataFrame(res.Outputs["df"])
				if err != nil {
					b.Fatal(err)
				}
				res.Outputs["df"].Release()
				rows = out.Rows()
				out.Release()
				times = append(times, (b.Elapsed() - before).Seconds())
			}
			var theirs struct {
				Seconds []float64
				Rows    int64
				DuckDB  string
			}
			if err := json.Unmarshal(peer(b, nil, "time", dir, bb.query, strconv.Itoa(max(5, len(times)))), &theirs); err != nil {
				b.Fatal(err)
			}
			if theirs.Rows != rows || !strings.HasPrefix(theirs.DuckDB, "1.5.0") {
				b.Fatalf("%d rows, the peer has %d (DuckDB %s)", rows, theirs.Rows, theirs.DuckDB)
			}
			b.ReportMetric(median(times)*1e3, "ms")
			b.ReportMetric(median(theirs.Seconds)*1e3, "peer-ms")
			b.ReportMetric(median(times)/median(theirs.Seconds), "x-peer")
		})
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
