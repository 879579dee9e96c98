package mysql

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/go-sql-driver/mysql"

	"github.com/osiris-pipelines/remote/worker"
)

// maxBatchBytes ends a batch before it has batch_size rows.
const maxBatchBytes = 64 << 20

// Extractor is the driver mysql.extractor. The package comment has its config
// and semantics.
type Extractor struct {
	batchBytes int // for tests; zero means maxBatchBytes
}

// Hosts returns the server of the connection.
func (*Extractor) Hosts(config map[string]any) ([]string, error) { return hosts(config) }

// Run sends the query and returns a reader of its rows, which come from the
// server as they are read.
//
//   - Shapes: output "df", the columns of the query by their names there, which may
//     be the same twice; no rows are no error.
//   - Units: batches of batch_size rows or 64 MiB; the metric rows_read counts rows.
//   - Errors: ctx's error; the messages begin with "MySQL connection failed", "MySQL
//     query failed" or "MySQL execution failed"; a [*mysql.MySQLError] has the
//     server's code.
//   - Source: osiris/drivers/mysql_extractor_driver.py.
func (e *Extractor) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeExtract(step)
	if err != nil {
		return nil, err
	}
	cfg.batchBytes = cmp.Or(e.batchBytes, maxBatchBytes)
	s, err := connect(ctx, step, map[string]string{
		"time_zone":  "'+00:00'", // TIMESTAMP is shown in the session's
		"autocommit": "0",        // as in the original: what a query changes is not kept
	})
	if err != nil {
		return nil, err
	}
	rows, err := s.query(cfg.query)
	if err != nil {
		s.close()
		return nil, failed(err)
	}
	r, err := newReader(step, s, rows, cfg)
	if err != nil {
		s.abandon()
		return nil, failed(err)
	}
	return worker.Output(r), nil
}

// failed gives an error the words that the original uses.
func failed(err error) error {
	var mine *mysql.MySQLError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &mine):
		return fmt.Errorf("MySQL query failed: %w", err)
	}
	return fmt.Errorf("MySQL execution failed: %w", err)
}

// errNotPrepared is the server's code for a statement that cannot be prepared.
const errNotPrepared = 1295

// query sends a query. It is prepared where the server can: rows then come in
// the binary protocol, which is faster and tells a FLOAT exactly.
func (s *session) query(query string) (result, error) {
	var rows driver.Rows
	stmt, err := s.conn.(driver.ConnPrepareContext).PrepareContext(s.ctx, query)
	var mine *mysql.MySQLError
	switch {
	case errors.As(err, &mine) && mine.Number == errNotPrepared:
		rows, err = s.conn.(driver.QueryerContext).QueryContext(s.ctx, query, nil)
	case err == nil && stmt.NumInput() > 0:
		err = errors.New("the query has placeholders (?), and nothing to fill them with")
	case err == nil:
		// The statement goes with the connection.
		rows, err = stmt.(driver.StmtQueryContext).QueryContext(s.ctx, nil)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	r, ok := rows.(result)
	if !ok {
		return nil, fmt.Errorf("unexpected %T from the client library", rows)
	}
	if len(r.Columns()) == 0 {
		return nil, errors.New("the query does not return rows")
	}
	return r, nil
}

// reader is the result of a query as a stream of batches.
type reader struct {
	step    *worker.Step
	cfg     *extractConfig
	session *session // nil when it is closed
	rows    result
	columns []column
	schema  *arrow.Schema
	builder *array.RecordBuilder
	values  []driver.Value
	refs    atomic.Int64

	rec    arrow.Record
	err    error
	count  int64
	noDate map[string]int64 // dates that are none, by column
}

var _ array.RecordReader = (*reader)(nil)

func newReader(step *worker.Step, s *session, rows result, cfg *extractConfig) (*reader, error) {
	columns, err := columnsOf(rows, cfg)
	if err != nil {
		return nil, err
	}
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		fields[i] = arrow.Field{Name: c.name, Type: c.typ, Nullable: true}
	}
	r := &reader{
		step: step, cfg: cfg, session: s, rows: rows, columns: columns,
		schema: arrow.NewSchema(fields, nil), values: make([]driver.Value, len(columns)), noDate: make(map[string]int64),
	}
	r.builder = array.NewRecordBuilder(step.Memory(), r.schema)
	r.refs.Store(1)
	return r, nil
}

func (r *reader) Schema() *arrow.Schema { return r.schema }
func (r *reader) Record() arrow.Record  { return r.rec }
func (r *reader) Err() error            { return r.err }
func (r *reader) Retain()               { r.refs.Add(1) }

// Release drops an owner; the last one frees the batch, and ends the query
// where it has not ended.
func (r *reader) Release() {
	if r.refs.Add(-1) == 0 {
		r.drop()
		r.finish((*session).abandon)
	}
}

func (r *reader) drop() {
	if r.rec != nil {
		r.rec.Release()
		r.rec = nil
	}
}

// finish closes the connection by one of its methods.
func (r *reader) finish(end func(*session)) {
	if r.session != nil {
		end(r.session)
		r.session = nil
		r.builder.Release()
	}
}

// Next reads the next batch. The one before is released.
func (r *reader) Next() bool {
	r.drop()
	if r.session == nil {
		return false
	}
	rows, err := r.fill()
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = failed(r.session.explain(err))
		var server *mysql.MySQLError
		if errors.As(err, &server) {
			r.finish((*session).close) // the server has ended the query
		} else {
			r.finish((*session).abandon)
		}
		return false
	}
	r.count += int64(rows)
	if rows > 0 {
		r.rec = r.builder.NewRecord()
	}
	if err != nil {
		r.rows.Close() //nolint:errcheck // at its end
		r.finish((*session).close)
		r.report()
	}
	return rows > 0
}

// fill adds a batch to the builder; at the result's end err is io.EOF.
func (r *reader) fill() (rows int, err error) {
	r.builder.Reserve(min(r.cfg.batchRows, 1<<16))
	fields := r.builder.Fields()
	for size := 0; rows < r.cfg.batchRows && size < r.cfg.batchBytes; rows++ {
		if err := r.rows.Next(r.values); err != nil {
			return rows, err
		}
		for i, v := range r.values {
			if v == nil {
				fields[i].AppendNull()
				continue
			}
			size += weight(v)
			err := r.columns[i].parse(fields[i], v)
			if err == nil {
				continue
			}
			if errors.Is(err, errNoDate) && !r.cfg.strictDates {
				r.noDate[r.columns[i].name]++
				fields[i].AppendNull()
				continue
			}
			return rows, fmt.Errorf("column %q, row %d: %w", r.columns[i].name, r.count+int64(rows)+1, err)
		}
	}
	return rows, nil
}

// report says what was read.
func (r *reader) report() {
	if len(r.noDate) > 0 {
		total := int64(0)
		for _, n := range r.noDate {
			total += n
		}
		r.step.Log().Warn("dates that are none, as 0000-00-00, were read as null", "values", total, "columns", slices.Sorted(maps.Keys(r.noDate)))
		r.step.LogEvent("zero_dates", map[string]any{"values": total, "columns": maps.Clone(r.noDate)})
	}
	r.step.LogMetric("rows_read", float64(r.count), "rows")
}
