package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/osiris-pipelines/remote/worker"
)

const (
	defaultBatch = 10000
	batchBytes   = 16 << 20 // ends a batch before it has batch_size rows
)

// Extractor is the driver postgres.extractor. The package comment has its
// config and semantics.
type Extractor struct{}

type extractConfig struct {
	Query     string  `json:"query"`
	BatchSize *int64  `json:"batch_size"`
	Special   *string `json:"special_values"`
}

func decodeExtract(step *worker.Step) (*extractConfig, error) {
	cfg := new(extractConfig)
	if err := step.DecodeConfig(cfg); err != nil {
		return nil, err
	}
	if strings.TrimSpace(cfg.Query) == "" {
		return nil, errors.New("'query' is required in config")
	}
	if cfg.BatchSize == nil {
		cfg.BatchSize = new(int64(defaultBatch))
	}
	if *cfg.BatchSize < 1 {
		return nil, fmt.Errorf("config key %q: want at least 1, have %d", "batch_size", *cfg.BatchSize)
	}
	if cfg.Special == nil {
		cfg.Special = new("error")
		if v, ok := step.Config["special_values"]; ok && v == nil {
			*cfg.Special = "null" // as YAML has it without quotes
		}
	}
	if !slices.Contains([]string{"error", "null"}, *cfg.Special) {
		return nil, fmt.Errorf("config key %q: want error or null, have %q", "special_values", *cfg.Special)
	}
	return cfg, nil
}

// Run starts the query, waits for its first row, and returns a reader of all.
//
//   - Shapes: output "df", the columns of the query, all nullable.
//   - Units: batches of batch_size rows; the metric rows_read counts rows.
//   - Errors: ctx's error; [*Error] for those of the server, whose messages begin
//     with "PostgreSQL connection failed" or "PostgreSQL query failed". Those that
//     the server finds after the first rows are the reader's.
func (*Extractor) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeExtract(step)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, step, "SET LOCAL DateStyle = 'ISO'")
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, step: step, s: s, batch: *cfg.BatchSize, null: *cfg.Special == "null"}
	if err := r.start(ctx, cfg.Query); err != nil {
		err = r.explain(err)
		r.close()
		return nil, err
	}
	r.refs.Store(1)
	return worker.Output(r), nil
}

const statement = "osiris_query"

// start learns the columns and starts the query.
func (r *reader) start(ctx context.Context, query string) error {
	described, err := r.s.conn.Prepare(ctx, statement, query, nil)
	if err != nil {
		return err
	}
	switch {
	case len(described.ParamOIDs) > 0:
		return fmt.Errorf("the query has %d parameters ($1, ...), and there is nothing to put in their places", len(described.ParamOIDs))
	case len(described.Fields) == 0:
		return errors.New("the query returns no columns; want a SELECT, or a statement with RETURNING")
	}
	types, err := resultTypes(ctx, r.s, described.Fields)
	if err != nil {
		return err
	}
	fields := make([]arrow.Field, len(types))
	formats := make([]int16, len(types))
	for i, t := range types {
		fields[i] = arrow.Field{
			Name: described.Fields[i].Name, Type: t.arrowType(), Nullable: true,
			Metadata: arrow.NewMetadata([]string{typeKey}, []string{t.label()}),
		}
		if t.binary() {
			formats[i] = 1
		}
		if t.kind == kNumeric && fields[i].Type.ID() == arrow.STRING {
			r.step.Log().Warn("numeric without a precision, or of more than 76 digits, is read as text; cast it in the query, as to numeric(38, 10) or double precision", "column", fields[i].Name)
		}
	}
	r.schema = arrow.NewSchema(fields, nil)
	r.builder = array.NewRecordBuilder(r.step.Memory(), r.schema)
	r.nulls = make([]func(), len(types))
	r.decoders = make([]decoder, len(types))
	r.specials = make([]specials, len(types))
	for i, t := range types {
		b := r.builder.Field(i)
		r.nulls[i] = b.AppendNull
		r.specials[i].null = r.null
		r.decoders[i] = newDecoder(t, b, &r.specials[i])
	}
	r.rows = r.s.conn.ExecStatement(ctx, described, nil, nil, formats) // waits for the first row
	return nil
}

// resultTypes returns the types of a result's columns.
func resultTypes(ctx context.Context, s *session, fields []pgconn.FieldDescription) ([]*pgType, error) {
	c := newCatalog(s)
	oids := make([]uint32, len(fields))
	for i, f := range fields {
		oids[i] = f.DataTypeOID
	}
	if err := c.load(ctx, oids); err != nil {
		return nil, err
	}
	types := make([]*pgType, len(fields))
	arrays := false
	for i, f := range fields {
		t, err := c.get(ctx, f.DataTypeOID, f.TypeModifier)
		if err != nil {
			return nil, err
		}
		types[i] = t
		arrays = arrays || t.kind == kArray && f.TableOID != 0
	}
	if !arrays {
		return types, nil
	}
	// A column of a table may be declared with more dimensions than one.
	var tables []string
	for i, f := range fields {
		if types[i].kind == kArray && f.TableOID != 0 {
			tables = append(tables, strconv.FormatUint(uint64(f.TableOID), 10))
		}
	}
	rows, err := s.query(ctx, `SELECT attrelid, attnum, attndims FROM pg_catalog.pg_attribute
		WHERE attrelid = ANY ($1::pg_catalog.oid[]) AND attndims > 1`, "{"+strings.Join(tables, ",")+"}")
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		for i, f := range fields {
			if types[i].kind == kArray && f.TableOID == number(row[0]) && uint32(f.TableAttributeNumber) == number(row[1]) {
				types[i].dims = int(number(row[2]))
			}
		}
	}
	return types, nil
}

// reader is the query's result, as a stream of batches.
type reader struct {
	ctx   context.Context
	step  *worker.Step
	s     *session
	batch int64
	refs  atomic.Int64

	schema   *arrow.Schema
	builder  *array.RecordBuilder
	decoders []decoder
	nulls    []func()
	specials []specials
	null     bool // what becomes of special values

	rows *pgconn.ResultReader
	read int64
	rec  arrow.Record
	err  error
	done bool
}

var _ array.RecordReader = (*reader)(nil)

func (r *reader) Schema() *arrow.Schema { return r.schema }
func (r *reader) Record() arrow.Record  { return r.rec }
func (r *reader) Err() error            { return r.err }
func (r *reader) Retain()               { r.refs.Add(1) }

// Release drops an owner; the last one ends the query, if it still runs, and
// frees the batch.
func (r *reader) Release() {
	if r.refs.Add(-1) == 0 {
		r.drop()
		r.close()
	}
}

func (r *reader) drop() {
	if r.rec != nil {
		r.rec.Release()
		r.rec = nil
	}
}

// close ends the connection.
func (r *reader) close() {
	r.done = true
	if r.s == nil {
		return
	}
	r.s.close()
	r.s = nil
	if r.builder != nil {
		r.builder.Release()
	}
}

func (r *reader) explain(err error) error {
	var own *columnError
	if r.ctx.Err() == nil && errors.As(err, &own) {
		return fmt.Errorf("PostgreSQL query failed: %w", err)
	}
	return r.s.explain(r.ctx, "PostgreSQL query failed", err)
}

// Next reads the next batch. The one before is released.
func (r *reader) Next() bool {
	r.drop()
	if r.done {
		return false
	}
	n, err := r.fill()
	if err == nil && n > 0 {
		r.read += n
		r.rec = r.builder.NewRecord()
		return true
	}
	if err == nil {
		err = r.s.exec(r.ctx, "COMMIT")
	}
	if err != nil {
		r.err = r.explain(err)
	}
	r.close()
	if err == nil {
		r.end()
	}
	return false
}

// end reports what was read.
func (r *reader) end() {
	columns := make(map[string]int64)
	total := int64(0)
	for i, sp := range r.specials {
		if sp.count > 0 {
			columns[r.schema.Field(i).Name] += sp.count
			total += sp.count
		}
	}
	if total > 0 {
		r.step.Log().Warn("values that Arrow has no room for were read as null", "values", total, "columns", slices.Sorted(maps.Keys(columns)))
		r.step.LogEvent("special_values", map[string]any{"values": total, "columns": columns})
	}
	r.step.LogMetric("rows_read", float64(r.read), "rows")
}

// fill builds the rows of one batch; none at the end.
func (r *reader) fill() (rows int64, err error) {
	size := 0
	for rows < r.batch && size < batchBytes {
		if !r.rows.NextRow() {
			if _, err := r.rows.Close(); err != nil {
				return 0, err
			}
			break
		}
		values := r.rows.Values()
		if len(values) != len(r.decoders) {
			return 0, errors.New("the server sent a row of another length than it said")
		}
		rows++
		for i, v := range values {
			size += len(v) + 4
			if v == nil {
				r.nulls[i]()
			} else if err := r.decoders[i](v); err != nil {
				return 0, &columnError{r.schema.Field(i).Name, r.read + rows, err}
			}
		}
	}
	return rows, r.ctx.Err()
}
