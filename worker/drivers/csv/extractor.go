package csv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/internal/filesystem"
)

// Extractor is the driver filesystem.csv_extractor. The package comment has
// its config and semantics.
type Extractor struct {
	fillSize  int // of the buffer, for tests; zero means blockBytes
	keepBytes int // for tests; zero means keepBytes, negative that nothing is kept
}

// InputFiles returns the file to read.
func (*Extractor) InputFiles(config map[string]any) ([]string, error) {
	path, err := filesystem.InputPath(config)
	if err != nil {
		return nil, err
	}
	return []string{path}, nil
}

// Run learns the columns of the file and returns a reader of its rows.
//
//   - Shapes: output "df", the columns of the file or those the config names; a
//     file without a header or rows gives no columns and no rows.
//   - Units: batches of chunk_size rows; the metric rows_read counts rows.
//   - Errors: [fs.ErrNotExist] for a missing file; ctx's error; the messages begin
//     with "CSV parsing failed", "CSV encoding error" or "CSV extraction failed".
//   - Source: osiris/drivers/filesystem_csv_extractor_driver.py, and pandas 3.1.1.
func (e *Extractor) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeExtract(step)
	if err != nil {
		return nil, err
	}
	x := &extraction{
		cfg:       cfg,
		keepBytes: e.keepBytes,
		source: source{
			step: step, path: cfg.path, compression: cfg.compression,
			charset: cfg.charset, encoding: cfg.encoding, d: cfg.dialect, fillSize: e.fillSize,
		},
	}
	if x.keepBytes == 0 {
		x.keepBytes = keepBytes
	}
	log := step.Log()
	if cfg.dialect.badLines == badWarn {
		x.source.warn = func(line int64, want, have int) {
			log.Warn("bad line skipped", "path", cfg.path, "line", line, "expected_fields", want, "fields", have)
		}
	}
	if err := x.learn(ctx); err != nil {
		return nil, x.explain(ctx, err)
	}
	x.source.warn = nil // the first pass has said it
	return worker.Output(newReader(ctx, step, x)), nil
}

// extraction is what the first pass learns for the second.
type extraction struct {
	cfg     *extractConfig
	source  source
	columns []*column
	schema  *arrow.Schema
	rows    int64

	keepBytes int
	kept      bool           // records are all batches
	records   []arrow.Record // made by the first pass
}

// drop frees the batches that the first pass made.
func (x *extraction) drop() {
	for _, rec := range x.records {
		rec.Release()
	}
	x.records, x.kept = nil, false
}

// errNoColumns means that the file holds nothing at all.
var errNoColumns = errors.New("no columns to parse from file")

// start opens the file and reads up to the first data row. names and origin
// are nil when the file has no header.
func (x *extraction) start(ctx context.Context) (t *tokenizer, c io.Closer, names, origin []string, err error) {
	t, c, err = x.source.open(ctx)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	t.bare = x.cfg.header < 0
	for row := int64(0); row <= x.cfg.header; row++ {
		cells, err := t.record()
		if errors.Is(err, io.EOF) {
			if err = errNoColumns; row > 0 {
				err = parseErrorf("Passed header=%d but only %d lines in file", x.cfg.header, row)
			}
		}
		if err != nil {
			c.Close() //nolint:errcheck // only read from
			return nil, nil, nil, nil, err
		}
		if row == x.cfg.header {
			names, origin = columnNames(cells)
			t.width = len(names)
			// pandas looks for an index unless all columns are asked for.
			t.dropFirst = len(x.cfg.columns) == len(names)
		}
	}
	return t, c, names, origin, nil
}

// learn is the first pass: it finds the columns, their types and the number of
// rows.
func (x *extraction) learn(ctx context.Context) error {
	t, c, names, origin, err := x.start(ctx)
	if errors.Is(err, errNoColumns) {
		x.schema = arrow.NewSchema(nil, nil)
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only read from

	var cols []*learner
	if names != nil {
		if cols, err = x.learners(names, origin); err != nil {
			return err
		}
	}
	cols, err = x.observe(ctx, t, cols, x.small())
	if errors.Is(err, errNoColumns) {
		x.schema = arrow.NewSchema(nil, nil)
		return nil
	}
	if err != nil {
		return err
	}
	for _, l := range cols {
		x.columns = append(x.columns, l.column())
	}
	x.schema = schemaOf(x.columns)
	return nil
}

// small reports whether the file is one whose batches are likely to fit in
// memory; observe holds them to it.
func (x *extraction) small() bool {
	f, err := x.source.step.Open(x.source.path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // not even read from
	info, err := f.Stat()
	return err == nil && info.Size() <= int64(x.keepBytes)
}

// unnamed returns the columns of a file without a header.
func (x *extraction) unnamed(width int) ([]*learner, error) {
	names := make([]string, width)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	return x.learners(names, names)
}

func leftOf(limit, rows int64) int {
	if limit < 0 {
		return 1 << 30
	}
	return int(min(limit-rows, 1<<30))
}

// learner is a column during the first pass.
type learner struct {
	name  string
	field int
	dtype *dtype
	fixed *column        // checks the values when dtype names a type
	infer *inference     // else
	dates *dateInference // when parse_dates names the column
}

func (l *learner) observe(b *block, na *naSet) error {
	switch {
	case l.dates != nil:
		l.dates.observe(b, l.field, na)
	case l.fixed != nil:
		if l.fixed.kind == kText {
			return nil
		}
		err := l.fixed.convert(b, na)
		l.fixed.reset()
		return err
	default:
		l.infer.observe(b, l.field, na)
	}
	return nil
}

func (l *learner) column() *column {
	c := &column{name: l.name, field: l.field, bits: 64}
	switch {
	case l.dates != nil:
		c.kind, c.dates = kText, l.dates
		if l.dates.ok() {
			c.kind = kTime
		}
	case l.fixed != nil:
		c = l.fixed
	default:
		c.kind, c.whole = l.kind()
	}
	c.typ = c.arrowType()
	return c
}

// kind returns what inference has found, and whether floats are whole.
func (l *learner) kind() (k kind, whole bool) {
	if l.dtype != nil && l.infer.stage == stInt && l.infer.values {
		return kInt, false // a category of integers
	}
	k = l.infer.result()
	return k, k == kFloat && l.infer.stage == stInt
}

// learners returns the columns to extract, in the order they are asked for.
func (x *extraction) learners(names, origin []string) ([]*learner, error) {
	cfg := x.cfg
	var missing []string
	order := make([]int, 0, len(names))
	for _, name := range cfg.columns {
		i := slices.Index(names, name)
		if i < 0 {
			missing = append(missing, strconv.Quote(name))
		}
		order = append(order, i)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("ValueError: Usecols do not match columns, columns expected but not found: %s; the file has %s",
			strings.Join(missing, ", "), quoteAll(names))
	}
	if cfg.columns == nil {
		for i := range names {
			order = append(order, i)
		}
	}
	cols := make([]*learner, len(order))
	for k, i := range order {
		l := &learner{name: names[i], field: i, infer: &inference{}}
		if l.dtype = cfg.dtype[names[i]]; l.dtype == nil {
			l.dtype = cfg.dtype[origin[i]]
		}
		if l.dtype == nil {
			l.dtype = cfg.anyType
		}
		if d := l.dtype; d != nil && !d.inferred {
			l.fixed = &column{name: l.name, field: i, kind: d.kind, bits: d.bits, strict: !d.nullable}
		}
		cols[k] = l
	}
	for _, v := range cfg.dates {
		k := slices.IndexFunc(cols, func(l *learner) bool {
			if n, ok := toInt(v); ok {
				return int64(l.field) == n
			}
			return l.name == v
		})
		if k < 0 {
			return nil, fmt.Errorf("ValueError: Missing column provided to 'parse_dates': %s; the columns are %s", describe(v), quoteAll(names))
		}
		cols[k].dates = &dateInference{}
	}
	return cols, nil
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = strconv.Quote(name)
	}
	return strings.Join(quoted, ", ")
}

// errorAt says where in the file the tokenizer was when it failed.
func (x *extraction) errorAt(t *tokenizer, err error) error {
	var bad *encodingError
	if errors.As(err, &bad) {
		return fmt.Errorf("line %d: %w", t.line+1+countBreaks(t.buf[t.pos:t.n]), err)
	}
	return err
}

func (x *extraction) valueError(column string, b *block, err error) error {
	var bad *valueError
	if errors.As(err, &bad) {
		return fmt.Errorf("ValueError: column %q, row %d (line %d): %w", column, x.rows+int64(bad.row)+1, b.lines[bad.row], err)
	}
	return err
}

// explain gives an error the words the original uses.
func (x *extraction) explain(ctx context.Context, err error) error {
	path := x.cfg.path
	var parse parseError
	var enc *encodingError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("CSV file not found: %w", err)
	case errors.Is(err, errIsDir):
		return fmt.Errorf("CSV extraction failed: ValueError: Path is not a file: %s; give one CSV file", path)
	case errors.As(err, &parse):
		return fmt.Errorf("CSV parsing failed: %s: %w", path, err)
	case errors.As(err, &enc):
		return fmt.Errorf("CSV encoding error (tried %s): %s: %w", x.cfg.encoding, path, err)
	}
	return fmt.Errorf("CSV extraction failed: %s: %w", path, err)
}

// reader is the second pass, as a stream of batches.
type reader struct {
	ctx  context.Context
	step *worker.Step
	x    *extraction
	refs atomic.Int64

	file   io.Closer
	stream *stream
	block  arrow.Record // batches are cut from it
	cut    int64        // rows of block that have been batches
	rec    arrow.Record
	err    error
	done   bool
	rows   int64
}

var _ array.RecordReader = (*reader)(nil)

func newReader(ctx context.Context, step *worker.Step, x *extraction) *reader {
	r := &reader{ctx: ctx, step: step, x: x}
	r.refs.Store(1)
	return r
}

func (r *reader) Schema() *arrow.Schema { return r.x.schema }
func (r *reader) Record() arrow.Record  { return r.rec }
func (r *reader) Err() error            { return r.err }
func (r *reader) Retain()               { r.refs.Add(1) }

// Release drops an owner; the last one closes the file and frees the batch.
func (r *reader) Release() {
	if r.refs.Add(-1) == 0 {
		r.drop()
		r.close()
		r.done = true
	}
}

func (r *reader) drop() {
	if r.rec != nil {
		r.rec.Release()
		r.rec = nil
	}
}

func (r *reader) close() {
	if r.stream != nil {
		r.stream.stop()
		r.stream = nil
	}
	if r.file != nil {
		r.file.Close() //nolint:errcheck // only read from
		r.file = nil
	}
	if r.block != nil {
		r.block.Release()
		r.block = nil
	}
	r.x.drop()
}

// Next builds the next batch. The one before is released.
func (r *reader) Next() bool {
	r.drop()
	if r.done {
		return false
	}
	err := r.read()
	if err == nil && r.rec != nil {
		return true
	}
	r.done = true
	r.close()
	if err == nil && r.rows != r.x.rows {
		err = errChanged
	}
	if err != nil {
		r.err = r.x.explain(r.ctx, err)
		return false
	}
	r.step.LogMetric("rows_read", float64(r.rows), "rows")
	return false
}

var errChanged = errors.New("the file changed while it was read")

// read cuts the next batch from a block; none at the end.
func (r *reader) read() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.x.rows == 0 || len(r.x.columns) == 0 {
		return nil
	}
	if r.block == nil {
		rec, err := r.next()
		if err != nil || rec == nil {
			return err
		}
		r.block, r.cut = rec, 0
	}
	rows := min(r.x.cfg.chunk, r.block.NumRows()-r.cut)
	r.rec = r.block.NewSlice(r.cut, r.cut+rows)
	r.rows += rows
	if r.cut += rows; r.cut == r.block.NumRows() {
		r.block.Release()
		r.block = nil
	}
	return nil
}

// next returns the rows of a block; nil at the end. They are what the first
// pass kept, or come from a second one.
func (r *reader) next() (arrow.Record, error) {
	if r.x.kept {
		if len(r.x.records) == 0 {
			return nil, nil
		}
		rec := r.x.records[0]
		r.x.records[0] = nil
		r.x.records = r.x.records[1:]
		return rec, nil
	}
	if r.stream == nil {
		t, c, _, _, err := r.x.start(r.ctx)
		if err != nil {
			return nil, err
		}
		r.file = c
		r.stream = r.x.stream(r.ctx, t)
	}
	if rec, ok := <-r.stream.batches; ok {
		return rec, nil
	}
	if err := r.stream.err; !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, nil
}
