//go:build cgo

package duckdb

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/osiris-pipelines/remote/worker"
)

// Run executes the query and returns a reader of its rows.
//
//   - Shapes: every input is a table of its name; output "df" has the columns of
//     the query's last statement, which is executed as its rows are read.
//   - Units: batches of about 64k rows or 8 MiB; the metrics rows_read and
//     rows_written count rows of all inputs and of the output.
//   - Errors: ctx's error; "DuckDB transformation failed: ..." with DuckDB's own
//     words, after the query's first 500 characters were logged.
//   - Source: osiris/drivers/duckdb_processor_driver.py.
func (*Processor) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decode(step)
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, step: step, query: cfg.query}
	r.refs.Store(1)
	if err := r.start(cfg); err != nil {
		r.close()
		return nil, r.explain(err)
	}
	return worker.Output(r), nil
}

// reader is a query's result as a stream of batches.
type reader struct {
	ctx   context.Context
	step  *worker.Step
	query string
	refs  atomic.Int64

	temp   string
	db     *database
	stop   func() // ends the interruptions
	tables []*table
	res    *result
	conv   *converter

	schema *arrow.Schema
	ended  bool // all chunks are fetched
	rec    arrow.Record
	err    error
	rows   int64
}

var _ array.RecordReader = (*reader)(nil)

// start opens a database, gives it the inputs, and begins the query.
func (r *reader) start(cfg *config) (err error) {
	inputs, err := r.inputs()
	if err != nil {
		return err
	}
	if r.temp, err = os.MkdirTemp(cfg.tempDirectory, "osiris-duckdb-"); err != nil {
		return err
	}
	if r.db, err = openDatabase(); err != nil {
		return err
	}
	r.stop = r.db.interruptWhen(r.ctx)
	if err := r.db.limitMemory(r.ctx, cfg.memoryLimit); err != nil {
		return err
	}
	settings := []string{"temp_directory = " + literal(r.temp), "TimeZone = 'UTC'"}
	if cfg.threads != "" {
		settings = append(settings, "threads = "+cfg.threads)
	}
	if r.step.BasePath != "" {
		settings = append(settings, "file_search_path = "+literal(r.step.BasePath))
	}
	for _, s := range settings {
		if err := r.db.run(r.ctx, "SET "+s); err != nil {
			return err
		}
	}
	read := int64(0)
	seen := make(map[*worker.DataFrame]bool)
	for _, name := range inputs {
		df := r.step.Inputs[name]
		t, err := r.db.newTable(r.ctx, name, df)
		if t != nil {
			r.tables = append(r.tables, t)
		}
		if err != nil {
			return err
		}
		if !seen[df] {
			seen[df] = true
			read += df.Rows()
		}
	}
	r.step.LogMetric("rows_read", float64(read), "rows")
	if r.res, err = r.db.query(r.ctx, r.query); err != nil {
		return err
	}
	if r.conv, err = newConverter(&r.res.res); err != nil {
		return err
	}
	r.schema = r.conv.schema
	return nil
}

// inputs returns the names of the tables.
func (r *reader) inputs() ([]string, error) {
	names := r.step.InputNames()
	folded := make(map[string]string)
	for _, name := range names {
		if r.step.Inputs[name].Schema().NumFields() == 0 {
			return nil, fmt.Errorf("input %q has no columns, so it cannot be a table", name)
		}
		lower := strings.ToLower(name)
		if other, taken := folded[lower]; taken {
			return nil, fmt.Errorf("inputs %q and %q are one name in SQL; give them others under the step's inputs", other, name)
		}
		folded[lower] = name
	}
	return names, nil
}

func (r *reader) Schema() *arrow.Schema { return r.schema }
func (r *reader) Record() arrow.Record  { return r.rec }
func (r *reader) Err() error            { return r.err }
func (r *reader) Retain()               { r.refs.Add(1) }

// Release drops an owner; the last one ends the query.
func (r *reader) Release() {
	if r.refs.Add(-1) == 0 {
		r.drop()
		r.close()
	}
}

// Next makes the next batch. The one before is released.
func (r *reader) Next() bool {
	r.drop()
	if r.res == nil {
		return false
	}
	ok, err := r.fetch()
	if ok {
		r.rows += r.rec.NumRows()
		return true
	}
	r.close()
	if err != nil {
		r.err = r.explain(err)
		return false
	}
	r.step.LogMetric("rows_written", float64(r.rows), "rows")
	return false
}

// A batch ends when it has batchRows rows, or about batchBytes: DuckDB's chunks
// of 2048 rows would make many small ones.
const (
	batchRows  = 1 << 16
	batchBytes = 8 << 20
)

// fetch makes a batch of the next chunks. It is a copy in the step's memory: what
// DuckDB has allocated is freed with its batch, whatever texts of it are still
// looked at, and nobody counts it.
func (r *reader) fetch() (ok bool, err error) {
	var chunks []arrow.Record
	defer func() {
		for _, c := range chunks {
			c.Release()
		}
	}()
	rows, size := int64(0), uint64(0)
	for rows < batchRows && size < batchBytes && !r.ended {
		if err := r.ctx.Err(); err != nil {
			return false, err
		}
		chunk, ok, err := r.res.fetch()
		if err != nil {
			return false, err
		}
		if !ok {
			r.ended = true
			break
		}
		rec, err := r.conv.record(chunk)
		bindings.DestroyDataChunk(&chunk)
		if err != nil {
			return false, err
		}
		chunks = append(chunks, rec)
		rows += rec.NumRows()
		for _, c := range rec.Columns() {
			size += c.Data().SizeInBytes()
		}
	}
	if len(chunks) == 0 {
		return false, nil
	}
	r.rec, err = concatenate(r.step.Memory(), r.schema, chunks)
	return err == nil, err
}

func concatenate(mem memory.Allocator, schema *arrow.Schema, chunks []arrow.Record) (arrow.Record, error) {
	rows := int64(0)
	for _, c := range chunks {
		rows += c.NumRows()
	}
	columns := make([]arrow.Array, 0, schema.NumFields())
	defer func() {
		for _, c := range columns {
			c.Release()
		}
	}()
	parts := make([]arrow.Array, len(chunks))
	for i := range schema.NumFields() {
		for k, c := range chunks {
			parts[k] = c.Column(i)
		}
		column, err := array.Concatenate(parts, mem)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", schema.Field(i).Name, err)
		}
		if d, ok := column.(*array.Dictionary); ok { // its values are still those of a chunk
			values, err := array.Concatenate([]arrow.Array{d.Dictionary()}, mem)
			if err == nil {
				column = array.NewDictionaryArray(d.DataType(), d.Indices(), values)
				values.Release()
			}
			d.Release()
			if err != nil {
				return nil, fmt.Errorf("column %q: %w", schema.Field(i).Name, err)
			}
		}
		columns = append(columns, column)
	}
	return array.NewRecord(schema, columns, rows), nil
}

func (r *reader) drop() {
	if r.rec != nil {
		r.rec.Release()
		r.rec = nil
	}
}

// close ends the query and frees the database, then the inputs.
func (r *reader) close() {
	if r.conv != nil {
		r.conv.close()
	}
	if r.res != nil {
		r.res.close()
	}
	if r.db != nil {
		r.stop()
		r.db.close()
	}
	for _, t := range r.tables {
		t.release()
	}
	if r.temp != "" {
		if err := os.RemoveAll(r.temp); err != nil {
			r.step.Log().Warn("temporary directory was not removed", "error", err)
		}
	}
	r.conv, r.res, r.db, r.tables, r.temp = nil, nil, nil, nil, ""
}

// explain gives an error the original's words.
func (r *reader) explain(err error) error {
	if ctxErr := r.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	query := r.query
	if cut := []rune(query); len(cut) > 500 {
		query = string(cut[:500])
	}
	r.step.Log().Error("DuckDB transformation failed", "query", query)
	return fmt.Errorf("DuckDB transformation failed: %w", err)
}
