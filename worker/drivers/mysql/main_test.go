package mysql_test

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
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

var servers dbtest.Servers

func TestMain(m *testing.M) {
	worker.Main(pipelineDrivers()) // of TestMoviesPipeline
	goleak.VerifyTestMain(servers.Main(m))
}

// sink records what a driver reports.
type sink struct {
	mu      sync.Mutex
	metrics map[string]float64
	events  map[string]map[string]any
}

func (s *sink) Event(name string, fields map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events[name] = fields
}

func (s *sink) Metric(name string, value float64, unit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics[name+" "+unit] = value
}

func newStep(config, connection map[string]any) (*worker.Step, *sink) {
	s := &sink{metrics: make(map[string]float64), events: make(map[string]map[string]any)}
	merged := maps.Clone(config)
	if connection != nil {
		merged["resolved_connection"] = connection
	}
	return &worker.Step{ID: "s", Config: merged, Sink: s}, s
}

// run runs the extractor and returns its table.
func run(ctx context.Context, step *worker.Step) (*worker.DataFrame, error) {
	res, err := new(mysql.Extractor).Run(ctx, step)
	if err != nil {
		return nil, err
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	return worker.ReadDataFrame(r)
}

func extract(tb testing.TB, db *dbtest.Database, query string) *worker.DataFrame {
	tb.Helper()
	step, _ := newStep(map[string]any{"query": query}, db.Connection)
	f, err := run(context.Background(), step)
	if err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	tb.Cleanup(f.Release)
	return f
}

// write runs the writer on a table.
func write(ctx context.Context, db *dbtest.Database, f *worker.DataFrame, config map[string]any) (*sink, error) {
	step, s := newStep(config, db.Connection)
	step.Inputs = map[string]*worker.DataFrame{"df": f}
	_, err := new(mysql.Writer).Run(ctx, step)
	return s, err
}

// render returns the values of a table as text, row by row; null is <nil>.
func render(f *worker.DataFrame) [][]string {
	rows := [][]string{}
	r := f.Reader()
	defer r.Release()
	for r.Next() {
		rec := r.Record()
		for row := range int(rec.NumRows()) {
			cells := make([]string, rec.NumCols())
			for i := range cells {
				cells[i] = cell(rec.Column(i), row)
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

func cell(a arrow.Array, row int) string {
	if a.IsNull(row) || a.DataType().ID() == arrow.NULL {
		return "<nil>"
	}
	switch a := a.(type) {
	case *array.Binary:
		return fmt.Sprintf("%x", a.Value(row))
	case *array.Timestamp:
		return a.Value(row).ToTime(arrow.Microsecond).Format("2006-01-02 15:04:05.999999")
	case *array.Duration:
		return fmt.Sprint(int64(a.Value(row)))
	case *array.Decimal128:
		return a.Value(row).ToString(a.DataType().(*arrow.Decimal128Type).Scale)
	case *array.Decimal256:
		return a.Value(row).ToString(a.DataType().(*arrow.Decimal256Type).Scale)
	}
	return a.ValueStr(row)
}

// frame makes a table of rows of JSON.
func frame(tb testing.TB, rows string, fields ...arrow.Field) *worker.DataFrame {
	tb.Helper()
	schema := arrow.NewSchema(fields, nil)
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		tb.Fatal(err)
	}
	defer rec.Release()
	return frameOf(tb, rec)
}

func frameOf(tb testing.TB, rec arrow.Record) *worker.DataFrame {
	tb.Helper()
	r, err := array.NewRecordReader(rec.Schema(), []arrow.Record{rec})
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	f, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(f.Release)
	return f
}

func field(name string, typ arrow.DataType) arrow.Field {
	return arrow.Field{Name: name, Type: typ, Nullable: true}
}
