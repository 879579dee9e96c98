package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

var (
	// ErrArrowTooLarge reports an Arrow stream that goes beyond one of its [ArrowLimits]. The message names the limit, the
	// size found and the size allowed.
	ErrArrowTooLarge = errors.New("rpc: arrow stream is too large")

	// ErrArrowCorrupt reports Arrow data that is malformed, or uses a part of the format we refuse. If it was cut short the
	// error matches io.ErrUnexpectedEOF as well.
	ErrArrowCorrupt = errors.New("rpc: arrow stream is corrupt")
)

// ArrowLimits bounds what one Arrow IPC stream may cost its reader. The zero value of a field means its default.
type ArrowLimits struct {
	MaxMetadataBytes int64 // one message's flatbuffer; zero means 1 MiB
	MaxBodyBytes     int64 // one message's body, what its compressed buffers inflate to, and all dictionaries together; zero means 256 MiB
	MaxBatchRows     int64 // rows of a batch, values of a dictionary or of a column without storage; zero means 1<<26
	MaxFields        int   // fields of the schema, children included; zero means 10000
	MaxDepth         int   // nesting, a flat column being 1; zero means 64, which is also the most (arrow/go's own limit)
	MaxTotalBytes    int64 // the whole stream as it is sent; zero means no limit
}

// arrowCaps is ArrowLimits with every default filled in.
type arrowCaps struct {
	metadata, body, rows, total int64
	fields, depth               int
	strings                     int64 // what the schema's names and metadata may cost in memory
	joined                      int64 // what merging dictionary deltas may copy
	values                      int64 // most values a field node can have storage for
}

func (l *ArrowLimits) caps() arrowCaps {
	if l == nil {
		l = &ArrowLimits{}
	}
	c := arrowCaps{
		metadata: orDefault(l.MaxMetadataBytes, 1<<20),
		body:     orDefault(l.MaxBodyBytes, 256<<20),
		rows:     orDefault(l.MaxBatchRows, 1<<26),
		total:    orDefault(l.MaxTotalBytes, math.MaxInt64),
		fields:   orDefault(l.MaxFields, 10000),
		depth:    min(orDefault(l.MaxDepth, 64), 64),
	}
	c.metadata = min(c.metadata, math.MaxInt32)
	c.body = min(c.body, math.MaxInt/64) // so that its multiples below fit an int
	c.strings = 4 * c.metadata
	c.joined = 64 * c.body
	c.values = max(8*c.body, c.rows)
	return c
}

func (c *arrowCaps) maxRows() int { return int(min(c.rows, math.MaxInt)) }

func orDefault[T int | int64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// arrowError is one of the two sentinels, with where in the stream and why.
type arrowError struct {
	kind  error
	where string
	err   error
}

func (e *arrowError) Error() string   { return fmt.Sprintf("%v: %s%v", e.kind, e.where, e.err) }
func (e *arrowError) Unwrap() []error { return []error{e.kind, e.err} }

// arrowCorrupt makes an error that matches [ErrArrowCorrupt].
func arrowCorrupt(format string, args ...any) error {
	return &arrowError{kind: ErrArrowCorrupt, err: fmt.Errorf(format, args...)}
}

// arrowTooLarge makes an error that matches [ErrArrowTooLarge]. what has one verb, for got.
func arrowTooLarge(limit, what string, got, most int64) error {
	return &arrowError{kind: ErrArrowTooLarge, err: fmt.Errorf(what+", limit is %d (%s)", got, most, limit)}
}

// arrowWithin says where err came up.
func arrowWithin(err error, where string, args ...any) error {
	if e, ok := err.(*arrowError); ok {
		e.where = fmt.Sprintf(where, args...) + ": " + e.where
	}
	return err
}

// recoverArrow turns a panic of the function that defers it into an error that matches [ErrArrowCorrupt].
func recoverArrow(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = arrowCorrupt("%w", p)
	default:
		*err = arrowCorrupt("%v", p)
	}
}

// ArrowReader reads one Arrow IPC stream that nobody vouches for. It is an [array.RecordReader] and is used like one; it
// is for one goroutine, except for Retain, Release, Rows and Batches. Make one with [NewArrowReader].
type ArrowReader struct {
	refs    atomic.Int64
	rows    atomic.Int64
	batches atomic.Int64

	r       io.Reader
	mem     memory.Allocator
	caps    arrowCaps
	head    [8]byte // of a message
	meta    []byte  // of the current message, used again for the next
	read    int64   // bytes of the stream so far
	largest int64   // the largest body received so far

	schema *arrow.Schema
	shape  *arrowShape
	dicts  arrowDicts
	codecs arrowDecoder // nil where compressed buffers are refused

	record arrow.Record
	done   bool
	err    error
}

var _ array.RecordReader = (*ArrowReader)(nil)

// NewArrowReader reads the schema of one Arrow IPC stream from r and returns a reader of its batches. Everything in the
// library that takes Arrow bytes from a sandbox goes through it. The caller must Release the reader.
//
//   - Shapes: the sender's schema, then its batches; no batches means zero rows, not an error. A record is valid until the
//     next Next unless it is retained; its columns are slices of the message they came in, so a retained column keeps the
//     batch's whole body. r is read up to the end-of-stream marker and not one byte beyond, without a buffer.
//   - Units: limits are bytes, rows and fields; nil means the defaults. Memory grows with what was really received: a body
//     is read in steps that start at 1 MiB, or at the largest body before it, and quadruple. Joining the deltas of
//     dictionaries may copy 64 times MaxBodyBytes in all. mem nil means [memory.DefaultAllocator]; it must align to 8 bytes
//     or better, as arrow/go's allocators do.
//   - Errors: [ErrArrowTooLarge] past a limit; [ErrArrowCorrupt] for bytes that are not a valid stream, with
//     io.ErrUnexpectedEOF if it ends without the end-of-stream marker; an error of r as it is, wrapped. Refused as corrupt
//     although the format knows them: the framing from before Arrow 0.15, metadata before V4 and unions before V5,
//     big-endian data, tensors, deltas of nested dictionaries, and what arrow/go (v17) cannot read.
//   - Source: Arrow columnar format, "IPC Streaming Format" and "Encapsulated message format"; arrow/go v17 ipc/reader.go
//     and ipc/file_reader.go, whose reading of batches this replaces: see [CheckRecord] for what is checked.
func NewArrowReader(r io.Reader, limits *ArrowLimits, mem memory.Allocator) (*ArrowReader, error) {
	caps := limits.caps()
	return newArrowReader(r, caps, mem, &arrowCodecs{max: caps.body})
}

// ArrowBodyReader is an optional interface of the reader that [NewArrowReader] is given. It hands the next n bytes out
// without a copy, as a mapped file can: in a buffer that starts at a multiple of 8 and that the caller releases.
// io.ErrUnexpectedEOF says that there are not so many.
type ArrowBodyReader interface {
	ReadArrowBody(n int64) (*memory.Buffer, error)
}

// NewPlainArrowReader is [NewArrowReader] for what an [ArrowWriter] has written: compressed buffers, which that does not
// write, are refused as corrupt. A program that needs no more is smaller by the decoders.
func NewPlainArrowReader(r io.Reader, limits *ArrowLimits, mem memory.Allocator) (*ArrowReader, error) {
	return newArrowReader(r, limits.caps(), mem, nil)
}

func newArrowReader(r io.Reader, caps arrowCaps, mem memory.Allocator, codecs arrowDecoder) (*ArrowReader, error) {
	if mem == nil {
		mem = memory.DefaultAllocator
	}
	a := &ArrowReader{r: r, mem: mem, caps: caps, codecs: codecs}
	a.refs.Store(1)
	a.dicts = arrowDicts{byID: make(map[int64]*arrowDict), mem: mem, caps: &a.caps}
	if err := a.readSchema(); err != nil {
		return nil, err
	}
	return a, nil
}

// Retain adds a reference. It may be called from any goroutine.
func (a *ArrowReader) Retain() { a.refs.Add(1) }

// Release drops a reference; the last one frees the current record and the dictionaries. The underlying reader is left
// alone. It may be called from any goroutine, but not during Next.
func (a *ArrowReader) Release() {
	if a.refs.Add(-1) == 0 {
		a.finish()
		a.drop()
	}
}

// Schema returns the sender's schema.
func (a *ArrowReader) Schema() *arrow.Schema { return a.schema }

// Record returns the batch the last Next read, nil if there is none. It is valid until the next Next.
func (a *ArrowReader) Record() arrow.Record { return a.record }

// Err returns what ended the stream, nil if that was its end-of-stream marker.
func (a *ArrowReader) Err() error { return a.err }

// Rows returns how many rows Next has read so far. It may be called from any goroutine.
func (a *ArrowReader) Rows() int64 { return a.rows.Load() }

// Batches returns how many batches Next has read so far. It may be called from any goroutine.
func (a *ArrowReader) Batches() int64 { return a.batches.Load() }

// Next reads the next batch and reports whether there is one. After false, Err tells why.
func (a *ArrowReader) Next() bool {
	a.drop()
	if a.done || a.refs.Load() <= 0 {
		return false
	}
	rec, err := a.next()
	if err != nil {
		if err != io.EOF {
			a.err = err
		}
		a.finish()
		return false
	}
	a.record = rec
	a.rows.Add(rec.NumRows())
	a.batches.Add(1)
	return true
}

func (a *ArrowReader) drop() {
	if a.record != nil {
		a.record.Release()
		a.record = nil
	}
}

// finish ends the stream and gives back what only reading on needs.
func (a *ArrowReader) finish() {
	a.done, a.meta = true, nil
	a.dicts.release()
	if a.codecs != nil {
		a.codecs.close()
	}
}

// next reads messages up to the next batch. It returns io.EOF at the end-of-stream marker.
func (a *ArrowReader) next() (arrow.Record, error) {
	for {
		m, err := a.readMessage()
		if err != nil {
			return nil, err
		}
		body, err := a.readBody(m.body)
		if err != nil {
			return nil, err
		}
		rec, err := a.decode(m, body)
		body.Release()
		if rec != nil || err != nil {
			return rec, err
		}
	}
}

// decode makes a record of a record batch, and takes in a dictionary batch.
func (a *ArrowReader) decode(m arrowMessage, body *memory.Buffer) (rec arrow.Record, err error) {
	defer recoverArrow(&err)
	if m.version < metaVersionV5 && a.shape.v5only {
		return nil, arrowCorrupt("a union in metadata V4 is not supported")
	}
	switch m.kind {
	case headerRecord:
		return a.decodeRecord(m, body)
	case headerDictionary:
		return nil, a.decodeDictionary(m, body)
	case headerSchema:
		return nil, arrowCorrupt("a second schema")
	}
	return nil, arrowCorrupt("message type %d is not supported", m.kind)
}

func (a *ArrowReader) decodeRecord(m arrowMessage, body *memory.Buffer) (arrow.Record, error) {
	batch, err := parseArrowBatch(m.header, &a.caps)
	if err != nil {
		return nil, err
	}
	l := arrowLoader{r: a, batch: batch, body: body}
	defer l.release()
	cols := make([]arrow.Array, 0, len(a.shape.fields))
	defer func() {
		for _, c := range cols {
			c.Release()
		}
	}()
	for i, f := range a.shape.fields {
		field := a.schema.Field(i)
		d, err := l.load(field.Type, f)
		if err == nil && int64(d.Len()) != batch.rows {
			err = arrowCorrupt("%d values in a batch of %d rows", d.Len(), batch.rows)
		}
		if err == nil {
			err = (&arrowChecker{}).check(d, 0)
		}
		if err != nil {
			return nil, arrowWithin(err, "column %.64q", field.Name)
		}
		cols = append(cols, array.MakeFromData(d))
	}
	if err := batch.done(); err != nil {
		return nil, err
	}
	return array.NewRecord(a.schema, cols, batch.rows), nil
}

func (a *ArrowReader) decodeDictionary(m arrowMessage, body *memory.Buffer) error {
	id, delta := m.header.i64(4), m.header.u8(8) != 0
	data, ok := m.header.child(6)
	if !ok {
		return arrowCorrupt("dictionary batch is not a valid flatbuffer")
	}
	batch, err := parseArrowBatch(data, &a.caps)
	if err != nil {
		return err
	}
	dict := a.dicts.byID[id]
	if dict == nil {
		return arrowCorrupt("dictionary %d is not in the schema", id)
	}
	l := arrowLoader{r: a, batch: batch, body: body}
	defer l.release()
	d, err := l.load(dict.typ, dict.field)
	if err == nil && int64(d.Len()) != batch.rows {
		err = arrowCorrupt("%d values in a batch of %d rows", d.Len(), batch.rows)
	}
	if err == nil {
		err = (&arrowChecker{}).check(d, 0)
	}
	if err == nil {
		err = batch.done()
	}
	if err == nil {
		// What it keeps alive: the body, what was inflated, and the objects that describe them.
		cost := int64(body.Len()) + l.inflated + 512*int64(batch.nodes) + 128*int64(batch.bufs)
		err = a.dicts.add(dict, d, delta, cost)
	}
	if err != nil {
		return arrowWithin(err, "dictionary %d", id)
	}
	return nil
}

// readSchema reads the first message and has arrow/go decode it, after it was found to be worth that.
func (a *ArrowReader) readSchema() (err error) {
	m, err := a.readMessage()
	if err == io.EOF {
		return arrowCorrupt("stream ends before its schema")
	}
	if err != nil {
		return err
	}
	defer recoverArrow(&err)
	switch {
	case m.kind != headerSchema:
		return arrowCorrupt("stream begins with message type %d, want a schema", m.kind)
	case m.body != 0:
		return arrowCorrupt("schema has a body of %d bytes", m.body)
	}
	shape, err := parseArrowSchema(m.header, &a.caps)
	if err != nil {
		return err
	}
	if m.version < metaVersionV5 && shape.v5only {
		return arrowCorrupt("a union in metadata V4 is not supported")
	}
	msg := ipc.NewMessage(memory.NewBufferBytes(a.meta), memory.NewBufferBytes(nil))
	r, err := ipc.NewReaderFromMessageReader(&oneMessage{msg}, ipc.WithAllocator(a.mem), ipc.WithEnsureNativeEndian(false))
	if err != nil {
		return arrowCorrupt("schema: %w", err)
	}
	defer r.Release()
	a.schema, a.shape = r.Schema(), shape
	if len(shape.fields) != a.schema.NumFields() {
		return arrowCorrupt("schema has %d fields, arrow/go reads %d", len(shape.fields), a.schema.NumFields())
	}
	for i, f := range shape.fields {
		field := a.schema.Field(i)
		if err := a.bind(field.Type, f); err != nil {
			return arrowWithin(err, "column %.64q", field.Name)
		}
	}
	return nil
}

// bind matches arrow/go's type to the shape of its field, and registers the dictionaries.
func (a *ArrowReader) bind(dt arrow.DataType, f *arrowField) error {
	dt = storageOf(dt)
	if dict, ok := dt.(*arrow.DictionaryType); ok != f.dict {
		return arrowCorrupt("%s and its field disagree about a dictionary", dt.Name())
	} else if ok {
		if a.dicts.byID[f.dictID] == nil {
			a.dicts.byID[f.dictID] = &arrowDict{typ: dict.ValueType, field: f}
		}
		dt = storageOf(dict.ValueType)
	}
	if err := checkType(dt); err != nil {
		return err
	}
	nest, ok := dt.(arrow.NestedType)
	if !ok {
		return nil // children, if any, are ignored by arrow/go too
	}
	types := nest.Fields()
	if len(types) != len(f.children) {
		return arrowCorrupt("%s has %d children, its field %d", dt.Name(), len(types), len(f.children))
	}
	for i := range types {
		if err := a.bind(types[i].Type, f.children[i]); err != nil {
			return err
		}
	}
	return nil
}

// readMessage reads the framing and metadata of the next message. It returns io.EOF at the end-of-stream marker.
func (a *ArrowReader) readMessage() (arrowMessage, error) {
	if err := a.fill(a.head[:], "a message header"); err != nil {
		return arrowMessage{}, err
	}
	if token := binary.LittleEndian.Uint32(a.head[:4]); token != math.MaxUint32 {
		return arrowMessage{}, arrowCorrupt("message begins with %08x, not the continuation ffffffff (framing from before Arrow 0.15 is not supported)", token)
	}
	n := int64(int32(binary.LittleEndian.Uint32(a.head[4:])))
	switch {
	case n == 0:
		return arrowMessage{}, io.EOF
	case n < 0:
		return arrowMessage{}, arrowCorrupt("message metadata length is %d", n)
	case n > a.caps.metadata:
		return arrowMessage{}, arrowTooLarge("MaxMetadataBytes", "message metadata is %d bytes", n, a.caps.metadata)
	}
	for have := int64(0); have < n; {
		want := min(n, max(64<<10, 4*have))
		if want > int64(cap(a.meta)) {
			a.meta = append(make([]byte, 0, want), a.meta[:have]...)
		}
		a.meta = a.meta[:want]
		if err := a.fill(a.meta[have:], "message metadata"); err != nil {
			return arrowMessage{}, err
		}
		have = want
	}
	return parseArrowMessage(a.meta)
}

// readBody reads the n bytes of a body into a buffer that grows with what was received.
func (a *ArrowReader) readBody(n int64) (*memory.Buffer, error) {
	switch {
	case n == 0:
		return memory.NewBufferBytes(nil), nil
	case n > a.caps.body:
		return nil, arrowTooLarge("MaxBodyBytes", "message body is %d bytes", n, a.caps.body)
	}
	if r, ok := a.r.(ArrowBodyReader); ok {
		if n > a.caps.total-a.read {
			return nil, arrowTooLarge("MaxTotalBytes", "stream has %d bytes or more", saturate(a.read, n), a.caps.total)
		}
		a.read += n
		buf, err := r.ReadArrowBody(n)
		if err == io.ErrUnexpectedEOF {
			err = arrowCorrupt("stream ends in a message body, without its end-of-stream marker: %w", err)
		}
		return buf, err
	}
	buf := memory.NewResizableBuffer(a.mem)
	for have := int64(0); have < n; {
		want := min(n, max(1<<20, a.largest, 4*have))
		buf.Resize(int(want))
		if err := a.fill(buf.Bytes()[have:], "a message body"); err != nil {
			buf.Release()
			return nil, err
		}
		have = want
	}
	a.largest = max(a.largest, n)
	return buf, nil
}

// fill reads all of p, which is a part of what.
func (a *ArrowReader) fill(p []byte, what string) error {
	if int64(len(p)) > a.caps.total-a.read {
		return arrowTooLarge("MaxTotalBytes", "stream has %d bytes or more", saturate(a.read, int64(len(p))), a.caps.total)
	}
	n, err := io.ReadFull(a.r, p)
	a.read += int64(n)
	switch err {
	case nil:
		return nil
	case io.EOF, io.ErrUnexpectedEOF:
		return arrowCorrupt("stream ends in %s, without its end-of-stream marker: %w", what, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("rpc: read arrow stream: %w", err)
}

// oneMessage is the [ipc.MessageReader] of a stream that ends after its schema.
type oneMessage struct{ msg *ipc.Message }

func (o *oneMessage) Message() (*ipc.Message, error) {
	msg := o.msg
	o.msg = nil
	if msg == nil {
		return nil, io.EOF
	}
	return msg, nil
}

func (o *oneMessage) Retain()  {}
func (o *oneMessage) Release() {}

// ArrowWriter writes one Arrow IPC stream. Make one with [NewArrowWriter]. It is for one goroutine, except for the
// counters.
type ArrowWriter struct {
	out     arrowOut
	w       *ipc.Writer
	mem     memory.Allocator
	schema  *arrow.Schema
	settle  bool // a column needs [arrowSettler]
	closed  bool
	rows    atomic.Int64
	batches atomic.Int64
	err     error
}

// NewArrowWriter returns a writer of records of schema to w, as one Arrow IPC stream. The caller must Close it.
//
//   - Shapes: every record must have the writer's schema. No records means a stream of the schema only.
//   - Units: each Write ends with a flush, so a reader at the other end sees a batch when Write returns. mem nil means
//     [memory.DefaultAllocator].
//   - Errors: those of w, from then on for every call; arrow/go's for a record it cannot write.
//   - Source: arrow/go v17 ipc/writer.go. It cannot write dictionaries of string views, so neither can this. What it gets
//     wrong in sliced records and in what other languages wrote is set right before it sees them, see arrowSettler.
func NewArrowWriter(w io.Writer, schema *arrow.Schema, mem memory.Allocator) *ArrowWriter {
	if mem == nil {
		mem = memory.DefaultAllocator
	}
	a := &ArrowWriter{mem: mem, schema: schema}
	a.out.buf = bufio.NewWriterSize(countWriter{w, &a.out.n}, 256<<10)
	a.w = ipc.NewWriter(&a.out, ipc.WithSchema(schema), ipc.WithAllocator(mem))
	for _, f := range schema.Fields() {
		if viewDict(f.Type, false) {
			a.err = fmt.Errorf("rpc: write arrow stream: column %q: a dictionary of views cannot be written by arrow v17", f.Name)
		}
		a.settle = a.settle || unsettled(f.Type)
	}
	return a
}

// viewDict reports whether dt holds a view inside a dictionary: arrow v17 then counts the dictionary's data buffers
// among the batch's, and nobody can read that.
func viewDict(dt arrow.DataType, inDict bool) bool {
	switch dt := storageOf(dt).(type) {
	case *arrow.DictionaryType:
		return viewDict(dt.ValueType, true)
	case arrow.BinaryViewDataType:
		return inDict
	case arrow.NestedType:
		for _, f := range dt.Fields() {
			if viewDict(f.Type, inDict) {
				return true
			}
		}
	}
	return false
}

// Write writes one record, with the dictionaries it needs. It does not keep rec.
func (a *ArrowWriter) Write(rec arrow.Record) error {
	if a.closed {
		return errors.New("rpc: write arrow stream: writer is closed")
	}
	if a.err != nil {
		return a.err
	}
	for i, c := range rec.Columns() {
		if int64(c.Len()) != rec.NumRows() { // arrow/go lets a column be longer
			return fmt.Errorf("rpc: write arrow stream: column %q has %d rows, its record %d", rec.ColumnName(i), c.Len(), rec.NumRows())
		}
	}
	if err := a.guard(func() error { return a.write(rec) }); err != nil {
		return err
	}
	a.rows.Add(rec.NumRows())
	a.batches.Add(1)
	return nil
}

// write has arrow/go write rec, in a form its writer gets right.
func (a *ArrowWriter) write(rec arrow.Record) error {
	if !a.settle || !rec.Schema().Equal(a.schema) {
		return a.w.Write(rec)
	}
	s := arrowSettler{mem: a.mem}
	defer s.release()
	cols := make([]arrow.Array, 0, rec.NumCols())
	defer func() {
		for _, c := range cols {
			c.Release()
		}
	}()
	same := true
	for _, c := range rec.Columns() {
		d := s.settle(c.Data())
		same = same && d == c.Data()
		cols = append(cols, array.MakeFromData(d))
	}
	if same {
		return a.w.Write(rec)
	}
	rec = array.NewRecord(rec.Schema(), cols, rec.NumRows())
	defer rec.Release()
	return a.w.Write(rec)
}

// Close writes the schema if nothing was written, and the end-of-stream marker. It does not close the underlying writer.
// After an error of Write that left the stream without a whole batch it writes nothing. A second Close does nothing.
func (a *ArrowWriter) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	if a.err != nil {
		a.out.err = a.err // so that arrow/go only gives back its dictionaries
	}
	if err := a.guard(a.w.Close); err != nil {
		return err
	}
	return a.err
}

// guard runs one call of arrow/go's writer and flushes what it wrote.
func (a *ArrowWriter) guard(f func() error) error {
	err := callArrow(f)
	if a.out.err == nil {
		a.out.err = a.out.buf.Flush()
	}
	if a.out.err != nil {
		if a.err == nil {
			a.err = fmt.Errorf("rpc: write arrow stream: %w", a.out.err)
		}
		return a.err
	}
	if err != nil {
		return fmt.Errorf("rpc: write arrow stream: %w", err)
	}
	return nil
}

func callArrow(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("arrow/go: %v", p)
		}
	}()
	return f()
}

// Rows returns how many rows were written so far. It may be called from any goroutine.
func (a *ArrowWriter) Rows() int64 { return a.rows.Load() }

// Batches returns how many records were written so far. It may be called from any goroutine.
func (a *ArrowWriter) Batches() int64 { return a.batches.Load() }

// Bytes returns how many bytes the underlying writer took so far. It may be called from any goroutine.
func (a *ArrowWriter) Bytes() int64 { return a.out.n.Load() }

// arrowOut hides an error from arrow/go's writer, which leaks its dictionaries if it sees one at its close; the
// [ArrowWriter] looks for it after every call.
type arrowOut struct {
	buf *bufio.Writer
	n   atomic.Int64
	err error
}

func (o *arrowOut) Write(p []byte) (int, error) {
	if o.err == nil {
		_, o.err = o.buf.Write(p)
	}
	return len(p), nil
}

// countWriter counts what w takes.
type countWriter struct {
	w io.Writer
	n *atomic.Int64
}

func (c countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}
