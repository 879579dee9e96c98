package rpc

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// arrowLoader turns one batch message into array data. It takes the place of arrow/go's own loader (ipc/file_reader.go,
// v17), which copies every buffer, allocates what a buffer declares before it looks at it, and loses what it allocated
// when it panics. Here the buffers are slices of the body, and everything made is owned until release, so a batch that is
// refused half-way leaks nothing.
type arrowLoader struct {
	r        *ArrowReader
	batch    *arrowBatch
	body     *memory.Buffer
	end      int64 // where the last buffer taken ended
	inflated int64 // declared so far by compressed buffers
	data     []*array.Data
	bufs     []*memory.Buffer
}

// release drops the loader's references. What a record or a dictionary retained stays.
func (l *arrowLoader) release() {
	for _, d := range l.data {
		d.Release()
	}
	for _, b := range l.bufs {
		b.Release()
	}
	l.data, l.bufs = nil, nil
}

func (l *arrowLoader) own(d *array.Data) *array.Data {
	l.data = append(l.data, d)
	return d
}

// load builds the data of the next field of type dt, children first after their parent as the format orders them.
func (l *arrowLoader) load(dt arrow.DataType, f *arrowField) (*array.Data, error) {
	if ext, ok := dt.(arrow.ExtensionType); ok {
		storage, err := l.load(ext.StorageType(), f)
		if err != nil {
			return nil, err
		}
		d := l.own(array.NewData(dt, storage.Len(), storage.Buffers(), storage.Children(), storage.NullN(), 0))
		d.SetDictionary(storage.Dictionary())
		return d, nil
	}

	var views int
	if _, ok := dt.(arrow.BinaryViewDataType); ok {
		var err error
		if views, err = l.batch.nextViews(); err != nil {
			return nil, err
		}
	}
	n, nulls, err := l.batch.nextNode(&l.r.caps)
	if err != nil {
		return nil, err
	}
	if n > l.r.caps.maxRows() && storageFree(dt) {
		return nil, arrowTooLarge("MaxBatchRows", "column of "+dt.Name()+" without storage has %d values", int64(n), l.r.caps.rows)
	}
	bufs, err := l.buffers(dt, n, nulls, views)
	if err != nil {
		return nil, err
	}

	switch dt := dt.(type) {
	case *arrow.NullType:
		nulls = n
	case *arrow.DictionaryType:
		dict, err := l.r.dicts.value(f.dictID)
		if err != nil {
			return nil, err
		}
		return l.own(array.NewDataWithDictionary(dt, n, bufs, nulls, 0, dict)), nil
	case arrow.NestedType:
		types := dt.Fields()
		kids := make([]arrow.ArrayData, len(types))
		for i := range types {
			if kids[i], err = l.load(types[i].Type, f.children[i]); err != nil {
				return nil, err
			}
		}
		return l.own(array.NewData(dt, n, bufs, kids, nulls, 0)), nil
	}
	return l.own(array.NewData(dt, n, bufs, nil, nulls, 0)), nil
}

// storageFree reports whether an array of dt can have any length without a byte behind it.
func storageFree(dt arrow.DataType) bool {
	switch dt := dt.(type) {
	case *arrow.NullType, *arrow.RunEndEncodedType:
		return true
	case *arrow.FixedSizeBinaryType:
		return dt.ByteWidth == 0
	case *arrow.StructType:
		return dt.NumFields() == 0
	case arrow.ExtensionType:
		return storageFree(dt.StorageType())
	}
	return false
}

// buffers takes the buffers of one array of dt: the validity bitmap if the layout has one, then the rest. Which types
// have which follows the Arrow columnar format, "Buffer Listing for Each Layout"; where arrow/go puts a nil, so do we.
func (l *arrowLoader) buffers(dt arrow.DataType, n, nulls, views int) ([]*memory.Buffer, error) {
	var bitmap, rest = true, 1
	switch dt := dt.(type) {
	case *arrow.NullType:
		return nil, nil
	case *arrow.RunEndEncodedType:
		return []*memory.Buffer{nil}, nil
	case *arrow.SparseUnionType:
		bitmap = false
	case *arrow.DenseUnionType:
		bitmap, rest = false, 2
	case *arrow.StructType, *arrow.FixedSizeListType:
		rest = 0
	case arrow.BinaryViewDataType:
		rest = 1 + views
	case arrow.BinaryDataType, *arrow.ListViewType, *arrow.LargeListViewType:
		rest = 2
	case *arrow.ListType, *arrow.LargeListType, *arrow.MapType, arrow.FixedWidthDataType:
	default:
		return nil, arrowCorrupt("type %s is not supported", dt.Name())
	}
	bufs := make([]*memory.Buffer, 1, 1+rest)
	if bitmap {
		b, err := l.buffer(nulls > 0)
		if err != nil {
			return nil, err
		}
		bufs[0] = b
	}
	for range rest {
		b, err := l.buffer(true)
		if err != nil {
			return nil, err
		}
		if b == nil {
			b = memory.NewBufferBytes(nil)
		}
		bufs = append(bufs, b)
	}
	return bufs, nil
}

// buffer takes the next buffer; nil if it is empty or not wanted. Buffers must lie in the body in order and must not
// overlap, which every writer we know keeps, so that a body cannot be made to count many times.
func (l *arrowLoader) buffer(want bool) (*memory.Buffer, error) {
	off, n, err := l.batch.nextBuffer()
	if err != nil || n == 0 {
		return nil, err
	}
	size := int64(l.body.Len())
	switch {
	case off < 0 || n < 0 || off > size || n > size-off:
		return nil, arrowCorrupt("buffer of %d bytes at %d is outside its body of %d bytes", n, off, size)
	case off%8 != 0:
		return nil, arrowCorrupt("buffer at %d is not aligned to 8 bytes", off)
	case off < l.end:
		return nil, arrowCorrupt("buffer at %d overlaps the one before, which ends at %d", off, l.end)
	}
	l.end = off + n
	if !want {
		return nil, nil
	}
	if !l.batch.compressed {
		return l.slice(off, n), nil
	}
	return l.inflate(off, n)
}

func (l *arrowLoader) slice(off, n int64) *memory.Buffer {
	b := memory.SliceBuffer(l.body, int(off), int(n))
	l.bufs = append(l.bufs, b)
	return b
}

// inflate decompresses one buffer: eight bytes with the size it will have, -1 meaning it is stored as it is, then one
// frame or more. The declared sizes of a message are summed against MaxBodyBytes and each is held against the best ratio
// its codec can reach before anything is allocated; the frames then must fill exactly what was declared.
func (l *arrowLoader) inflate(off, n int64) (*memory.Buffer, error) {
	if n < 8 {
		return nil, arrowCorrupt("compressed buffer has %d bytes, its header needs 8", n)
	}
	src := l.body.Bytes()[off : off+n]
	size := int64(binary.LittleEndian.Uint64(src))
	src = src[8:]
	if size == -1 {
		if len(src) == 0 {
			return nil, nil
		}
		return l.slice(off+8, n-8), nil
	}
	ratio, slack := int64(255), int64(4096)
	if l.batch.codec == compressionZstd {
		ratio, slack = 1<<15, 1<<17
	}
	switch {
	case l.r.codecs == nil:
		return nil, arrowCorrupt("compressed buffers are not read here")
	case size < 0:
		return nil, arrowCorrupt("compressed buffer declares %d bytes", size)
	case size > l.r.caps.body-l.inflated:
		return nil, arrowTooLarge("MaxBodyBytes", "compressed buffers declare %d bytes or more", saturate(l.inflated, size), l.r.caps.body)
	case size > int64(len(src))*ratio+slack:
		return nil, arrowCorrupt("compressed buffer of %d bytes declares %d, more than its codec can do", len(src), size)
	case size == 0:
		return nil, nil
	}
	l.inflated += size
	buf := memory.NewResizableBuffer(l.r.mem)
	l.bufs = append(l.bufs, buf)
	buf.Resize(int(size))
	if err := l.r.codecs.decode(l.batch.codec, buf.Bytes()[:size:size], src); err != nil {
		return nil, err
	}
	return buf, nil
}

// saturate adds two counts that are not negative.
func saturate(a, b int64) int64 {
	if a > 1<<62-b {
		return 1 << 62
	}
	return a + b
}

// arrowDecoder decompresses buffers.
type arrowDecoder interface {
	decode(codec int8, dst, src []byte) error
	close()
}

// arrowCodecs holds the decompressor that is worth keeping over batches.
type arrowCodecs struct {
	max  int64
	zstd *zstd.Decoder
}

func (c *arrowCodecs) close() {
	if c.zstd != nil {
		c.zstd.Close()
		c.zstd = nil
	}
}

// decode fills dst from src, neither less nor more.
func (c *arrowCodecs) decode(codec int8, dst, src []byte) error {
	if codec == compressionZstd {
		return c.decodeZstd(dst, src)
	}
	z := lz4.NewReader(bytes.NewReader(src))
	defer z.Reset(nil) // gives its block back
	if _, err := io.ReadFull(z, dst); err != nil {
		return arrowCorrupt("lz4 buffer does not hold the %d bytes it declares: %v", len(dst), err)
	}
	if n, err := io.ReadFull(z, make([]byte, 1)); n != 0 || err != io.EOF {
		return arrowCorrupt("lz4 buffer holds more than the %d bytes it declares", len(dst))
	}
	return nil
}

func (c *arrowCodecs) decodeZstd(dst, src []byte) error {
	if c.zstd == nil {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(uint64(c.max)),
			zstd.WithDecoderMaxWindow(uint64(max(c.max, zstd.MaxWindowSize))))
		if err != nil {
			return err
		}
		c.zstd = z
	}
	out, err := c.zstd.DecodeAll(src, dst[:0])
	if err != nil {
		return arrowCorrupt("zstd buffer does not fit the %d bytes it declares: %v", len(dst), err)
	}
	if len(out) != len(dst) || &out[0] != &dst[0] {
		return arrowCorrupt("zstd buffer holds %d bytes, it declares %d", len(out), len(dst))
	}
	return nil
}

// arrowDict is one dictionary of the stream: what was sent, and the merger of it.
type arrowDict struct {
	typ    arrow.DataType // of the values
	field  *arrowField
	chunks []arrow.ArrayData // the first batch and its deltas; one after a merge
	rows   int64
	cost   int64 // bytes kept alive
}

// arrowDicts are the dictionaries by their id.
type arrowDicts struct {
	byID   map[int64]*arrowDict
	mem    memory.Allocator
	caps   *arrowCaps
	cost   int64 // of all of them
	joined int64 // bytes that merging deltas copied so far
}

func (s *arrowDicts) release() {
	for _, d := range s.byID {
		d.release()
	}
	s.byID = nil
}

func (d *arrowDict) release() {
	for _, c := range d.chunks {
		c.Release()
	}
	d.chunks, d.rows, d.cost = nil, 0, 0
}

// value returns the dictionary's values, deltas merged. The caller retains.
func (s *arrowDicts) value(id int64) (*array.Data, error) {
	d := s.byID[id]
	if d == nil || len(d.chunks) == 0 {
		return nil, arrowCorrupt("dictionary %d is used before it is sent", id)
	}
	if len(d.chunks) > 1 {
		// A tiny delta before every batch has the whole dictionary copied every time.
		if s.joined = saturate(s.joined, d.cost); s.joined > s.caps.joined {
			return nil, arrowTooLarge("64 times MaxBodyBytes", "dictionary deltas had %d bytes copied", s.joined, s.caps.joined)
		}
		if err := d.merge(s.mem); err != nil {
			return nil, err
		}
	}
	return d.chunks[0].(*array.Data), nil
}

// merge joins the first batch and its deltas into one array, as arrow/go does (dictutils.Memo, v17): when a record needs
// it. Records read before keep the array they have.
func (d *arrowDict) merge(mem memory.Allocator) error {
	arrs := make([]arrow.Array, 0, len(d.chunks))
	defer func() {
		for _, a := range arrs {
			a.Release()
		}
	}()
	for _, c := range d.chunks {
		arrs = append(arrs, array.MakeFromData(c))
	}
	all, err := array.Concatenate(arrs, mem)
	if err != nil {
		return arrowCorrupt("dictionary deltas cannot be joined: %v", err)
	}
	defer all.Release()
	if err := (&arrowChecker{}).check(all.Data(), 0); err != nil {
		return err
	}
	all.Data().Retain()
	for _, c := range d.chunks {
		c.Release()
	}
	d.chunks = append(d.chunks[:0], all.Data())
	return nil
}

// add takes in one dictionary batch: the first of its id, a replacement, or a delta.
func (s *arrowDicts) add(d *arrowDict, data *array.Data, delta bool, cost int64) error {
	switch {
	case !delta:
		s.cost -= d.cost
		d.release()
	case len(d.chunks) == 0:
		return arrowCorrupt("dictionary delta comes before its dictionary")
	case data.Len() == 0:
		return nil
	case nestedType(d.typ):
		return arrowCorrupt("dictionary delta of nested type %s is not supported", d.typ.Name())
	}
	d.rows += int64(data.Len())
	d.cost += cost
	s.cost += cost
	if d.rows > s.caps.rows {
		return arrowTooLarge("MaxBatchRows", "dictionary has %d values", d.rows, s.caps.rows)
	}
	if s.cost > s.caps.body {
		return arrowTooLarge("MaxBodyBytes", "dictionaries hold %d bytes", s.cost, s.caps.body)
	}
	data.Retain()
	d.chunks = append(d.chunks, data)
	return nil
}

func nestedType(dt arrow.DataType) bool {
	if ext, ok := dt.(arrow.ExtensionType); ok {
		dt = ext.StorageType()
	}
	_, ok := dt.(arrow.NestedType)
	return ok
}
