package postgres_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
)

var servers dbtest.Servers

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

// sink records what a driver reports.
type sink struct {
	mu      sync.Mutex
	metrics map[string]float64
	events  []string
}

func (s *sink) Event(name string, fields map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprint(name, " ", fields))
}

func (s *sink) Metric(name string, value float64, _ string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.metrics == nil {
		s.metrics = make(map[string]float64)
	}
	s.metrics[name] += value
}

func with(config, more map[string]any) map[string]any {
	merged := maps.Clone(config)
	maps.Copy(merged, more)
	return merged
}

// extract runs the extractor and reads its table. All memory is seen to be
// released when the test ends.
func extract(tb testing.TB, step *worker.Step, db *dbtest.Database, config map[string]any) (*worker.DataFrame, error) {
	tb.Helper()
	if step.Allocator == nil {
		mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
		tb.Cleanup(func() { mem.AssertSize(tb, 0) })
		step.Allocator = mem
	}
	step.ID = "extract"
	step.Config = with(map[string]any{"resolved_connection": db.Connection}, config)
	res, err := new(postgres.Extractor).Run(context.Background(), step)
	if err != nil {
		return nil, err
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err == nil {
		tb.Cleanup(df.Release)
	}
	return df, err
}

func mustExtract(tb testing.TB, db *dbtest.Database, query string, config map[string]any) *worker.DataFrame {
	tb.Helper()
	df, err := extract(tb, &worker.Step{}, db, with(map[string]any{"query": query}, config))
	if err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	return df
}

// write runs the writer, and returns what it reports.
func write(db *dbtest.Database, df *worker.DataFrame, config map[string]any) (*sink, error) {
	s := &sink{}
	step := &worker.Step{ID: "write", Sink: s, Inputs: map[string]*worker.DataFrame{"df": df},
		Config: with(map[string]any{"resolved_connection": db.Connection}, config)}
	_, err := new(postgres.Writer).Run(context.Background(), step)
	return s, err
}

// texts returns the values of a column; null is "(null)", as Arrow has it.
func texts(df *worker.DataFrame, column int) []string {
	out := []string{}
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		a := r.Record().Column(column)
		for i := range a.Len() {
			switch d := a.(type) {
			case *array.Decimal128: // ValueStr gives a float
				if d.IsValid(i) {
					out = append(out, d.Value(i).ToString(d.DataType().(*arrow.Decimal128Type).Scale))
					continue
				}
			case *array.Decimal256:
				if d.IsValid(i) {
					out = append(out, d.Value(i).ToString(d.DataType().(*arrow.Decimal256Type).Scale))
					continue
				}
			}
			out = append(out, a.ValueStr(i))
		}
	}
	return out
}

// frame makes a table of columns from JSON values.
func frame(tb testing.TB, rows string, fields ...arrow.Field) *worker.DataFrame {
	tb.Helper()
	schema := arrow.NewSchema(fields, nil)
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		tb.Fatal(err)
	}
	return frameOf(tb, rec)
}

func frameOf(tb testing.TB, rec arrow.Record) *worker.DataFrame {
	tb.Helper()
	defer rec.Release()
	r, err := array.NewRecordReader(rec.Schema(), []arrow.Record{rec})
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	df, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(df.Release)
	return df
}

// query returns the first column of a query, as texts.
func query(tb testing.TB, db *dbtest.Database, sql string) []string {
	tb.Helper()
	rows, err := db.Query(sql)
	if err != nil {
		tb.Fatalf("%v: %s", err, sql)
	}
	defer rows.Close()
	out := []string{}
	for rows.Next() {
		var v any
		if err := rows.Scan(&v); err != nil {
			tb.Fatal(err)
		}
		out = append(out, fmt.Sprint(v))
	}
	if err := rows.Err(); err != nil {
		tb.Fatal(err)
	}
	return out
}

func newWriter() worker.Driver { return new(postgres.Writer) }
