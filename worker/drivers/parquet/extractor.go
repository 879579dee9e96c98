package parquet

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/parquet"
	"github.com/apache/arrow/go/v17/parquet/file"
	"github.com/apache/arrow/go/v17/parquet/metadata"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/internal/filesystem"
)

const (
	defaultBatch = 10000
	batchBytes   = 64 << 20 // about the most in one batch
	// buildBytes is the most memory that one batch may take while it is built,
	// pages included: the sizes that a file tells are not believed beyond it.
	buildBytes = 1 << 30
)

// Extractor is the driver filesystem.parquet_extractor. The package comment has
// its config and semantics.
type Extractor struct{}

type extractConfig struct {
	Path      string   `json:"path"`
	Columns   []string `json:"columns"`
	Limit     *int64   `json:"limit"`
	BatchSize *int64   `json:"batch_size"`
}

func decodeExtract(step *worker.Step) (*extractConfig, error) {
	path, err := filesystem.InputPath(step.Config)
	if err != nil {
		return nil, err
	}
	cfg := new(extractConfig)
	if err := step.DecodeConfig(cfg); err != nil {
		return nil, err
	}
	cfg.Path = path
	if cfg.Limit == nil {
		cfg.Limit = new(int64(-1))
	} else if *cfg.Limit < 0 {
		return nil, fmt.Errorf("config key %q: want at least 0, have %d", "limit", *cfg.Limit)
	}
	if cfg.BatchSize == nil {
		cfg.BatchSize = new(int64(defaultBatch))
	}
	if *cfg.BatchSize < 1 {
		return nil, fmt.Errorf("config key %q: want at least 1, have %d", "batch_size", *cfg.BatchSize)
	}
	for i, name := range cfg.Columns {
		if slices.Contains(cfg.Columns[:i], name) {
			return nil, fmt.Errorf("config key %q: %q is there twice", "columns", name)
		}
	}
	return cfg, nil
}

// InputFiles returns the file to read.
func (*Extractor) InputFiles(config map[string]any) ([]string, error) {
	path, err := filesystem.InputPath(config)
	if err != nil {
		return nil, err
	}
	return []string{path}, nil
}

// Run reads the file's footer and returns a reader of its rows.
//
//   - Shapes: output "df", the columns of the file or those the config names.
//   - Units: batches of batch_size rows; the metric rows_read counts rows.
//   - Errors: [fs.ErrNotExist] for a missing file; ctx's error; the messages begin
//     with "parquet file not found" or "parquet extraction failed". A file that is
//     damaged may show only while its rows are read.
func (*Extractor) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeExtract(step)
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, step: step, cfg: cfg, left: *cfg.Limit}
	r.refs.Store(1)
	if err := guard(r.open); err != nil {
		r.close()
		return nil, r.explain(err)
	}
	return worker.Output(r), nil
}

// guard turns a panic into an error: Arrow's reader panics on much of what a
// file should not hold.
func guard(f func() error) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case tooLarge:
			err = v
		default:
			err = &damagedError{fmt.Sprint(v), debug.Stack()}
		}
	}()
	return f()
}

// damagedError is a panic of Arrow's reader.
type damagedError struct {
	reason string
	stack  []byte
}

func (e *damagedError) Error() string { return "the file is damaged: " + e.reason }

// reader is the file, as a stream of batches.
type reader struct {
	ctx  context.Context
	step *worker.Step
	cfg  *extractConfig
	refs atomic.Int64
	mem  *budget

	input  worker.File
	file   *file.Reader
	arrow  *pqarrow.FileReader
	schema *arrow.Schema
	fields []field

	group   int // the next
	columns []*pqarrow.ColumnReader
	rows    int64 // left in the group
	batch   int64 // rows, for the group
	left    int64 // of the limit; -1: none
	read    int64
	rec     arrow.Record
	err     error
	done    bool
}

// field is a column to read.
type field struct {
	index    int // in the file's schema
	leaves   map[int]bool
	nested   []*pqarrow.SchemaField // leaves below structs, see rehearse
	typ      arrow.DataType         // to output
	duration bool                   // kept as integers in the file
}

var _ array.RecordReader = (*reader)(nil)

func (r *reader) Schema() *arrow.Schema { return r.schema }
func (r *reader) Record() arrow.Record  { return r.rec }
func (r *reader) Err() error            { return r.err }
func (r *reader) Retain()               { r.refs.Add(1) }

// Release drops an owner; the last one closes the file and frees the batch.
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

func (r *reader) close() {
	r.done = true
	r.endGroup()
	if r.input != nil {
		r.input.Close() //nolint:errcheck // only read from
		r.input = nil
	}
}

func (r *reader) explain(err error) error {
	var damaged *damagedError
	if errors.As(err, &damaged) {
		r.step.Log().Debug("Arrow's Parquet reader has panicked", "reason", damaged.reason, "stack", string(damaged.stack))
	}
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("parquet file not found: %w", err)
	}
	return fmt.Errorf("parquet extraction failed: %s: %w", r.cfg.Path, err)
}

func (r *reader) open() error {
	input, err := r.step.Open(r.cfg.Path)
	if err != nil {
		return err
	}
	r.input = input
	info, err := input.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("it is a directory; give one Parquet file")
	}
	if err := checkMagic(input, info.Size()); err != nil {
		return err
	}
	// Pages go by way of a pool, which may hold some of them back for a while:
	// the step's allocator has only what is in the batches.
	pages := parquet.NewReaderProperties(&budget{Allocator: memory.DefaultAllocator})
	pages.BufferedStreamEnabled = true // else a whole column of a row group would be read at once
	if r.file, err = file.NewParquetReader(input, file.WithReadProps(pages)); err != nil {
		return err
	}
	if err := r.check(info.Size()); err != nil {
		return err
	}
	if err := checkStoredSchema(r.file.MetaData().KeyValueMetadata()); err != nil {
		return err
	}
	r.mem = &budget{Allocator: r.step.Memory()}
	// Parallel would start goroutines, and their panics are nobody's to catch.
	props := pqarrow.ArrowReadProperties{Parallel: false, BatchSize: *r.cfg.BatchSize}
	if r.arrow, err = pqarrow.NewFileReader(r.file, props, r.mem); err != nil {
		return err
	}
	return r.choose()
}

// checkMagic tells what is no Parquet file from what is damaged.
func checkMagic(input io.ReaderAt, size int64) error {
	var begin, end [4]byte
	if size >= 12 {
		if _, err := input.ReadAt(begin[:], 0); err != nil {
			return err
		}
		if _, err := input.ReadAt(end[:], size-4); err != nil {
			return err
		}
	}
	switch {
	case string(begin[:]) == "PARE" || string(end[:]) == "PARE":
		return errors.New("the file is encrypted, which is not supported")
	case string(begin[:]) != "PAR1":
		return errors.New("it is no Parquet file")
	case string(end[:]) != "PAR1":
		return errors.New("the file is cut off: it has no footer")
	}
	return nil
}

// storedSchema is the key under which Arrow's implementations keep a table's
// schema.
const storedSchema = "ARROW:schema"

// checkStoredSchema looks at that schema first, since Arrow's reader allocates
// whatever length it gives.
func checkStoredSchema(meta metadata.KeyValueMetadata) error {
	stored := meta.FindValue(storedSchema)
	if stored == nil {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(*stored)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(*stored)
	}
	if err == nil {
		var r *rpc.ArrowReader
		if r, err = rpc.NewPlainArrowReader(bytes.NewReader(b), nil, nil); err == nil {
			r.Release()
		}
	}
	if err != nil {
		return fmt.Errorf("the Arrow schema that is stored in the file cannot be read: %w", err)
	}
	return nil
}

// check compares what the footer says with the file.
func (r *reader) check(size int64) error {
	meta := r.file.MetaData()
	columns := meta.Schema.NumColumns()
	for g := range meta.RowGroups {
		group := meta.RowGroup(g)
		if group.NumRows() < 0 || group.NumColumns() != columns {
			return fmt.Errorf("the file is damaged: row group %d contradicts the schema", g)
		}
		for i := range columns {
			c, err := group.ColumnChunk(i)
			if err != nil {
				return err
			}
			offset, length := c.DataPageOffset(), c.TotalCompressedSize()
			if c.HasDictionaryPage() && c.DictionaryPageOffset() > 0 {
				offset = min(offset, c.DictionaryPageOffset())
			}
			if offset < 0 || length < 0 || offset > size || length > size-offset || c.NumValues() < 0 {
				return fmt.Errorf("the file is damaged: column %d of row group %d is not within it", i, g)
			}
		}
	}
	for i := range columns {
		if c := meta.Schema.Column(i); c.PhysicalType() == parquet.Types.FixedLenByteArray && (c.TypeLength() < 1 || int64(c.TypeLength()) > size) {
			return fmt.Errorf("the file is damaged: column %q has values of %d bytes", c.Path(), c.TypeLength())
		}
	}
	return nil
}

// choose settles which columns are read, and as what.
func (r *reader) choose() error {
	manifest := r.arrow.Manifest
	var names []string
	order := make([]int, 0, len(manifest.Fields))
	for i := range manifest.Fields {
		names = append(names, manifest.Fields[i].Field.Name)
		order = append(order, i)
	}
	if r.cfg.Columns != nil {
		var missing []string
		order = order[:0]
		for _, name := range r.cfg.Columns {
			i := slices.Index(names, name)
			if i < 0 {
				missing = append(missing, strconv.Quote(name))
			}
			order = append(order, i)
		}
		if len(missing) > 0 {
			return fmt.Errorf("no columns %s; the file has %q", strings.Join(missing, ", "), names)
		}
	}
	fields := make([]arrow.Field, len(order))
	for k, i := range order {
		source := &manifest.Fields[i]
		f := field{index: i, leaves: make(map[int]bool), typ: source.Field.Type}
		f.find(source, false)
		if origin := manifest.OriginSchema; origin != nil && f.typ.ID() == arrow.INT64 && origin.Field(i).Type.ID() == arrow.DURATION {
			f.typ, f.duration = origin.Field(i).Type, true
		}
		r.fields = append(r.fields, f)
		fields[k] = arrow.Field{Name: source.Field.Name, Type: f.typ, Nullable: source.Field.Nullable, Metadata: ownMetadata(source.Field.Metadata)}
	}
	r.schema = arrow.NewSchema(fields, nil) // the file's own metadata is about its columns together, as pandas' index
	return nil
}

// find collects the leaves of a field.
func (f *field) find(s *pqarrow.SchemaField, below bool) {
	if len(s.Children) == 0 {
		f.leaves[s.ColIndex] = true
		if below {
			f.nested = append(f.nested, s)
		}
		return
	}
	below = below || s.Field.Type.ID() == arrow.STRUCT || s.Field.Type.ID() == arrow.MAP
	for i := range s.Children {
		f.find(&s.Children[i], below)
	}
}

// ownMetadata leaves out what the file format has added.
func ownMetadata(m arrow.Metadata) arrow.Metadata {
	var keys, values []string
	for i, k := range m.Keys() {
		if !strings.HasPrefix(k, "PARQUET:") {
			keys, values = append(keys, k), append(values, m.Values()[i])
		}
	}
	if keys == nil {
		return arrow.Metadata{}
	}
	return arrow.NewMetadata(keys, values)
}

// Next reads the next batch. The one before is released.
func (r *reader) Next() bool {
	r.drop()
	if r.done {
		return false
	}
	err := guard(r.fill)
	if err == nil {
		return true
	}
	r.close()
	if !errors.Is(err, io.EOF) {
		r.err = r.explain(err)
		return false
	}
	r.step.LogMetric("rows_read", float64(r.read), "rows")
	return false
}

// fill builds a batch; io.EOF at the end.
func (r *reader) fill() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	r.mem.reset()
	if len(r.fields) == 0 || r.left == 0 {
		return io.EOF
	}
	for r.rows == 0 {
		if r.group == r.file.NumRowGroups() {
			return io.EOF
		}
		if err := r.beginGroup(); err != nil {
			return err
		}
	}
	n := min(r.batch, r.rows)
	if r.left >= 0 {
		n = min(n, r.left)
	}
	columns := make([]arrow.Array, len(r.fields))
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i, c := range r.columns {
		var err error
		if columns[i], err = r.column(&r.fields[i], c, n); err != nil {
			return fmt.Errorf("column %q: %w", r.schema.Field(i).Name, err)
		}
	}
	rec := array.NewRecord(r.schema, columns, n)
	if err := rpc.CheckRecord(rec); err != nil {
		rec.Release()
		return fmt.Errorf("the file is damaged: %w", err)
	}
	r.rec = rec
	r.rows -= n
	r.read += n
	if r.left >= 0 {
		r.left -= n
	}
	return nil
}

// column reads n rows of a column.
func (r *reader) column(f *field, c *pqarrow.ColumnReader, n int64) (arrow.Array, error) {
	chunks, err := c.NextBatch(n)
	if err != nil {
		return nil, err
	}
	defer chunks.Release()
	if int64(chunks.Len()) != n {
		return nil, errors.New("the file is damaged: it has fewer rows than it says")
	}
	var a arrow.Array
	if len(chunks.Chunks()) == 1 {
		a = chunks.Chunk(0)
		a.Retain()
	} else if a, err = array.Concatenate(chunks.Chunks(), r.mem); err != nil {
		return nil, err
	}
	if !f.duration {
		return a, nil
	}
	defer a.Release()
	data := array.NewData(f.typ, a.Len(), a.Data().Buffers(), nil, a.NullN(), a.Data().Offset())
	defer data.Release()
	return array.MakeFromData(data), nil
}

// beginGroup opens the next row group.
func (r *reader) beginGroup() error {
	r.endGroup()
	g := r.group
	r.group++
	meta := r.file.MetaData().RowGroup(g)
	r.batch = *r.cfg.BatchSize
	if rows := meta.NumRows(); rows > 0 && meta.TotalByteSize() > 0 {
		r.batch = max(1, min(r.batch, batchBytes/max(1, meta.TotalByteSize()/rows)))
	}
	if err := r.checkEncodings(meta); err != nil {
		return err
	}
	for i := range r.fields {
		f := &r.fields[i]
		if err := r.rehearse(f, g); err != nil {
			return fmt.Errorf("column %q: %w", r.schema.Field(i).Name, err)
		}
		c, err := r.arrow.GetFieldReader(r.ctx, f.index, f.leaves, []int{g})
		if err != nil {
			return fmt.Errorf("column %q: %w", r.schema.Field(i).Name, err)
		}
		if c == nil {
			return fmt.Errorf("column %q: it has nothing to read", r.schema.Field(i).Name)
		}
		r.columns = append(r.columns, c)
	}
	r.rows = meta.NumRows()
	return nil
}

// checkEncodings looks for those that Arrow's reader has trouble with.
func (r *reader) checkEncodings(meta *metadata.RowGroupMetaData) error {
	for _, f := range r.fields {
		for leaf := range f.leaves {
			c, err := meta.ColumnChunk(leaf)
			if err != nil {
				return err
			}
			for _, e := range c.Encodings() {
				switch {
				case e == parquet.Encodings.DeltaBinaryPacked:
					// It loses its place in a page that is not read as a whole.
					r.batch = max(1, meta.NumRows())
				case e.String() == "BYTE_STREAM_SPLIT":
					return fmt.Errorf("column %q: the encoding BYTE_STREAM_SPLIT is not supported; write the file anew without it", c.PathInSchema())
				}
			}
		}
	}
	return nil
}

func (r *reader) endGroup() {
	for _, c := range r.columns {
		// After a panic, a reader may be in no state to be released.
		guard(func() error { c.Release(); return nil }) //nolint:errcheck // it was reported
	}
	r.columns = nil
	r.rows = 0
}

// rehearse reads the parts of structs and maps, and forgets them. Arrow reads
// those in goroutines of its own, in which a panic would be the end of the
// worker: here it is caught, and what went well once goes well again.
func (r *reader) rehearse(f *field, group int) error {
	total := int64(0)
	for _, leaf := range f.nested {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		r.mem.reset()
		if err := r.rehearseLeaf(leaf, group); err != nil {
			return err
		}
		if total += r.mem.peak.Load(); total > buildBytes {
			return tooLarge(total)
		}
	}
	r.mem.reset()
	return nil
}

func (r *reader) rehearseLeaf(leaf *pqarrow.SchemaField, group int) error {
	pages, err := r.file.RowGroup(group).GetColumnPageReader(leaf.ColIndex)
	if err != nil {
		return err
	}
	records := file.NewRecordReader(r.file.MetaData().Schema.Column(leaf.ColIndex), leaf.LevelInfo, leaf.Field.Type, r.mem, r.file.BufferPool())
	defer records.Release()
	records.SetPageReader(pages)
	for records.HasMore() {
		records.Reset()
		if err := records.Reserve(r.batch); err != nil {
			return err
		}
		n, err := records.ReadRecords(r.batch)
		if binary, ok := records.(file.BinaryRecordReader); ok {
			for _, c := range binary.GetBuilderChunks() {
				c.Release()
			}
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	return pages.Err()
}

// budget is an allocator that panics with tooLarge when more is allocated at
// once, since the last reset, than a batch may take.
type budget struct {
	memory.Allocator
	used atomic.Int64
	peak atomic.Int64
}

// tooLarge is how many bytes were too many.
type tooLarge int64

func (e tooLarge) Error() string {
	return fmt.Sprintf("a batch takes more than %d MiB; set batch_size to fewer rows, or write the file anew with smaller pages", buildBytes>>20)
}

func (b *budget) reset() {
	b.used.Store(0)
	b.peak.Store(0)
}

func (b *budget) add(n int) {
	used := b.used.Add(int64(n))
	if used > buildBytes {
		b.used.Add(-int64(n))
		panic(tooLarge(used))
	}
	for peak := b.peak.Load(); used > peak && !b.peak.CompareAndSwap(peak, used); peak = b.peak.Load() {
	}
}

func (b *budget) Allocate(size int) []byte {
	b.add(size)
	return b.Allocator.Allocate(size)
}

func (b *budget) Reallocate(size int, old []byte) []byte {
	b.add(size - len(old))
	return b.Allocator.Reallocate(size, old)
}

func (b *budget) Free(p []byte) {
	b.used.Add(-int64(len(p)))
	b.Allocator.Free(p)
}
