package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/bare"
)

// tableBytes is the size of the tables of benchmarks: OSIRIS_TABLE_BYTES.
func tableBytes(t testing.TB, def int64) int64 {
	text := os.Getenv("OSIRIS_TABLE_BYTES")
	if text == "" {
		return def
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		t.Fatalf("OSIRIS_TABLE_BYTES is %q", text)
	}
	return n
}

// endless is a table of four columns of numbers in batches of 2 MiB, no two of
// which are the same.
type endless struct {
	schema *arrow.Schema
	left   int
	n      uint64
	rec    arrow.Record
}

const endlessBatch = 2 << 20

func newEndless(size int64) *endless {
	var fields []arrow.Field
	for i := range 4 {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("c", i), Type: arrow.PrimitiveTypes.Int64})
	}
	return &endless{schema: arrow.NewSchema(fields, nil), left: int((size + endlessBatch - 1) / endlessBatch)}
}

func (e *endless) Schema() *arrow.Schema { return e.schema }
func (e *endless) Record() arrow.Record  { return e.rec }
func (e *endless) Err() error            { return nil }
func (e *endless) Retain()               {}

func (e *endless) Release() {
	if e.rec != nil {
		e.rec.Release()
		e.rec = nil
	}
}

func (e *endless) Next() bool {
	e.Release()
	if e.left == 0 {
		return false
	}
	e.left--
	const rows = endlessBatch / 4 / 8
	cols := make([]arrow.Array, 4)
	for i := range cols {
		b := make([]byte, 8*rows)
		for off := 0; off < len(b); off += 512 {
			e.n++
			binary.LittleEndian.PutUint64(b[off:], e.n*0x9e3779b97f4a7c15)
		}
		data := array.NewData(arrow.PrimitiveTypes.Int64, rows, []*memory.Buffer{nil, memory.NewBufferBytes(b)}, nil, 0, 0)
		cols[i] = array.NewInt64Data(data)
	}
	e.rec = array.NewRecord(e.schema, cols, rows)
	return true
}

// tableServer is a proxy with a memory budget and a bare client of the same
// server.
func tableServer(b testing.TB, kind string) (*remote.E2BTransparentProxy, *bare.Client) {
	b.Helper()
	drivers := testDrivers()
	server := newServer(b, kind, drivers)
	cfg := connect(remote.Config{Drivers: drivers, MemoryBudget: 64 << 20, Timeout: time.Hour}, server)
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		b.Fatal(err)
	}
	peer, err := bare.Create(b.Context(), cfg.APIKey, cfg.APIURL, cfg.SandboxURL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { // the bare client removes none
		for _, s := range server.Alive() {
			if err := server.Kill(s.ID); err != nil {
				b.Error(err)
			}
		}
	})
	b.Cleanup(peer.Close)
	b.Cleanup(func() { a.Close() })
	return a, peer
}

// throughWorker sends a table to a worker, hands it through a step and reads it
// back. It returns what each took.
func throughWorker(t testing.TB, a *remote.E2BTransparentProxy, size int64, after ...remote.Step) (up, step, down time.Duration, ec *remote.ExecutionContext) {
	t.Helper()
	ec = &remote.ExecutionContext{SessionID: remote.NewSessionID(time.Now()), LogsDir: t.TempDir()}
	ec.Tables = map[string]remote.Table{"df": remote.RecordsFrom(func(context.Context) (array.RecordReader, error) { return newEndless(size), nil })}
	m := passing("df")
	m.Steps = append(m.Steps, after...)
	keepAll(ec)
	p, err := a.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	result, err := a.Execute(t.Context(), p, ec)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r, err := a.FetchOutput(t.Context(), p, ec, "pass", "df")
	if err != nil {
		t.Fatal(err)
	}
	rows := int64(0)
	for r.Next() {
		rows += r.Record().NumRows()
	}
	r.Release()
	if want := (size + endlessBatch - 1) / endlessBatch * (endlessBatch / 32); r.Err() != nil || rows != want {
		t.Fatalf("%d rows, want %d; %v", rows, want, r.Err())
	}
	down = time.Since(start)
	up = time.Duration(events(t, ec, "tables_uploaded")[0]["duration_ms"].(float64) * 1e6)
	step = time.Duration(result.StepResults[0].DurationMS * 1e6)
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	return up, step, down, ec
}

// BenchmarkTables is a table that goes to a worker, through a step that streams
// it, and back (256 MiB, or OSIRIS_TABLE_BYTES), beside a file of the same size
// that a bare client of the same daemon sends and reads.
func BenchmarkTables(b *testing.B) {
	size := tableBytes(b, 256<<20)
	for _, kind := range servedKinds[1:] {
		b.Run(kind, func(b *testing.B) {
			a, peer := tableServer(b, kind)
			b.Run("bare", func(b *testing.B) {
				b.SetBytes(size)
				block := make([]byte, 1<<20)
				var up, down time.Duration
				for b.Loop() {
					start := time.Now()
					if err := peer.Upload(b.Context(), "/tmp/bare.bin", io.LimitReader(repeat{block}, size), size); err != nil {
						b.Fatal(err)
					}
					up += time.Since(start)
					start = time.Now()
					if err := peer.Download(b.Context(), "/tmp/bare.bin", io.Discard); err != nil {
						b.Fatal(err)
					}
					down += time.Since(start)
				}
				rate(b, "up", size, up)
				rate(b, "down", size, down)
			})
			b.Run("table", func(b *testing.B) {
				b.SetBytes(size)
				var up, step, down time.Duration
				for b.Loop() {
					u, s, d, _ := throughWorker(b, a, size)
					up, step, down = up+u, step+s, down+d
				}
				rate(b, "up", size, up)
				rate(b, "step", size, step)
				rate(b, "down", size, down)
			})
		})
	}
}

func rate(b *testing.B, name string, size int64, took time.Duration) {
	b.ReportMetric(float64(size)*float64(b.N)/1e6/took.Seconds(), name+"-MB/s")
}

// repeat is a block over and over.
type repeat struct{ block []byte }

func (r repeat) Read(p []byte) (int, error) { return copy(p, r.block), nil }

// peakMemory is the most memory that a process has had, VmHWM.
func peakMemory(status []byte) int64 {
	for line := range bytes.Lines(status) {
		if rest, ok := strings.CutPrefix(string(line), "VmHWM:"); ok {
			var kb int64
			fmt.Sscan(rest, &kb)
			return kb << 10
		}
	}
	return 0
}

// TestTablesMemory: a table of 4 GiB, or OSIRIS_TABLE_BYTES, takes neither the
// host nor the worker more than 256 MiB.
func TestTablesMemory(t *testing.T) {
	if on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); !on {
		t.Skip("only with OSIRIS_STRESS=1")
	}
	const limit = 256 << 20
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("the peak of memory is not to be had: %v", err)
	}
	a, _ := tableServer(t, "embedded")
	size := tableBytes(t, 4<<30)
	up, step, down, ec := throughWorker(t, a, size, remote.Step{ID: "peak", Driver: "test.peak", Needs: []string{"pass"}})
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	host, worker := peakMemory(status), int64(0)
	for _, e := range events(t, ec, "peak_memory") {
		n, _ := e["bytes"].(float64)
		worker = int64(n)
	}
	t.Logf("%d MiB up in %s, through a step in %s, down in %s; peak of the host with its server %d MiB, of the worker %d MiB", size>>20, up, step, down, host>>20, worker>>20)
	if host > limit || worker > limit || worker == 0 {
		t.Errorf("peak of the host %d MiB, of the worker %d MiB; limit is %d", host>>20, worker>>20, limit>>20)
	}
}
