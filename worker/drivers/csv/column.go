package csv

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// column is one output column: what its fields are turned into, and the values
// of the batch being built.
type column struct {
	name   string
	field  int // in the file's rows
	kind   kind
	bits   int
	strict bool // asked for by dtype: missing integers and booleans are an error
	whole  bool // kFloat: integers, some of them missing
	dates  *dateInference
	typ    arrow.DataType

	ints   []int64 // kInt, kUint (as bits), kTime
	floats []float64
	bools  []bool
	text   []byte
	ends   []int32
	nulls  []int32 // rows of the batch

	// With an allocator, values are made where the array will have them: ints,
	// floats and text are views of values, and ends one of offsets.
	mem             memory.Allocator
	values, offsets *memory.Buffer
}

// reserve makes room for a batch of so many rows, and of so many bytes of text,
// in the buffers of its array.
func (c *column) reserve(rows, text int) {
	if c.mem == nil || c.rows() > 0 || c.bits < 64 && c.kind != kText && c.kind != kRawText {
		return
	}
	c.release()
	switch c.kind {
	case kInt:
		c.values = newBuffer(c.mem, 8*rows)
		c.ints = arrow.Int64Traits.CastFromBytes(c.values.Bytes())[:0]
	case kFloat:
		c.values = newBuffer(c.mem, 8*rows)
		c.floats = arrow.Float64Traits.CastFromBytes(c.values.Bytes())[:0]
	case kText, kRawText:
		c.values = newBuffer(c.mem, text)
		c.text = c.values.Bytes()[:0]
		c.offsets = newBuffer(c.mem, 4*(rows+1))
		ends := arrow.Int32Traits.CastFromBytes(c.offsets.Bytes())
		ends[0] = 0
		c.ends = ends[1:1]
	}
}

// release frees the buffers of a batch that is not built.
func (c *column) release() {
	if c.values == nil {
		return
	}
	c.values.Release()
	if c.offsets != nil {
		c.offsets.Release()
	}
	c.values, c.offsets = nil, nil
	c.ints, c.floats, c.text, c.ends = nil, nil, nil, nil
}

// valueError is a field that is not of its column's type.
type valueError struct {
	row    int // in the block
	reason string
}

func (e *valueError) Error() string { return e.reason }

func (c *column) arrowType() arrow.DataType {
	switch c.kind {
	case kInt:
		return map[int]arrow.DataType{
			8: arrow.PrimitiveTypes.Int8, 16: arrow.PrimitiveTypes.Int16,
			32: arrow.PrimitiveTypes.Int32, 64: arrow.PrimitiveTypes.Int64,
		}[c.bits]
	case kUint:
		return map[int]arrow.DataType{
			8: arrow.PrimitiveTypes.Uint8, 16: arrow.PrimitiveTypes.Uint16,
			32: arrow.PrimitiveTypes.Uint32, 64: arrow.PrimitiveTypes.Uint64,
		}[c.bits]
	case kFloat:
		if c.bits == 32 {
			return arrow.PrimitiveTypes.Float32
		}
		return arrow.PrimitiveTypes.Float64
	case kBool:
		return arrow.FixedWidthTypes.Boolean
	case kTime:
		unit := arrow.Microsecond
		if c.dates.nanos {
			unit = arrow.Nanosecond
		}
		return &arrow.TimestampType{Unit: unit, TimeZone: c.dates.zone()}
	}
	return arrow.BinaryTypes.String
}

// rows returns how many values the batch has.
func (c *column) rows() int {
	switch c.kind {
	case kInt, kUint, kTime:
		return len(c.ints)
	case kFloat:
		return len(c.floats)
	case kBool:
		return len(c.bools)
	}
	return len(c.ends)
}

// reset empties the batch.
func (c *column) reset() {
	c.release()
	c.ints, c.floats, c.bools = c.ints[:0], c.floats[:0], c.bools[:0]
	c.text, c.ends, c.nulls = c.text[:0], c.ends[:0], c.nulls[:0]
}

func (c *column) null() { c.nulls = append(c.nulls, int32(c.rows())) }

// convert appends the column's fields of a block. The error is a *valueError.
func (c *column) convert(b *block, na *naSet) error {
	switch c.kind {
	case kInt:
		return c.convertInts(b, na)
	case kUint:
		return c.convertUints(b, na)
	case kFloat:
		return c.convertFloats(b, na)
	case kBool:
		return c.convertBools(b, na)
	case kTime:
		return c.convertTimes(b, na)
	case kBigInt:
		return c.convertBig(b, na)
	}
	c.convertText(b, na)
	return nil
}

func (c *column) convertText(b *block, na *naSet) {
	raw := c.kind == kRawText
	last := b.rows * b.width
	size := 0
	for i := c.field; i < last; i += b.width {
		size += int(b.spans[i].end - b.spans[i].start)
	}
	// Short fields are copied as a whole chunk, which is faster than exactly;
	// the buffer has room for it behind its data.
	const chunk = 24
	c.reserve(b.rows, size+chunk)
	c.text = slices.Grow(c.text, size+chunk)
	c.ends = slices.Grow(c.ends, b.rows)
	text, at := c.text[:cap(c.text)], len(c.text)
	for i := c.field; i < last; i += b.width {
		s := b.spans[i]
		v := b.buf[s.start:s.end]
		switch {
		case !raw && na.has(v):
			c.null()
		case len(v) <= chunk:
			to, from := (*[chunk]byte)(text[at:]), (*[chunk]byte)(b.buf[s.start:])
			// Three words: the compiler makes a call of an array's copy.
			x, y, z := word(from[:8]), word(from[8:16]), word(from[16:])
			binary.LittleEndian.PutUint64(to[:8], x)
			binary.LittleEndian.PutUint64(to[8:16], y)
			binary.LittleEndian.PutUint64(to[16:], z)
			at += len(v)
		default:
			at += copy(text[at:], v)
		}
		c.ends = append(c.ends, int32(at))
	}
	c.text = text[:at]
}

func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func (c *column) convertBig(b *block, na *naSet) error {
	for row := range b.rows {
		v := b.text(row, c.field)
		if na.has(v) {
			c.null()
		} else {
			var ok bool
			if c.text, ok = appendBigInt(c.text, v); !ok {
				return &valueError{row, fmt.Sprintf("%q is no integer", clip(v))}
			}
		}
		c.ends = append(c.ends, int32(len(c.text)))
	}
	return nil
}

func (c *column) convertInts(b *block, na *naSet) error {
	c.reserve(b.rows, 0)
	low, high := int64(math.MinInt64)>>(64-c.bits), int64(math.MaxInt64)>>(64-c.bits)
	for i, end := c.field, b.rows*b.width; i < end; i += b.width {
		s := b.spans[i]
		v := b.buf[s.start:s.end]
		if na.has(v) {
			if c.strict {
				return &valueError{i / b.width, "integer column has missing values; use Int64 or float64"}
			}
			c.null()
			c.ints = append(c.ints, 0)
			continue
		}
		n, p := parseInt(v)
		if p != parsed {
			// Whole numbers written as floats are safe to take.
			f, ok := parseFloat(v)
			if n = int64(f); !ok || f != math.Trunc(f) || math.Abs(f) >= 1<<63 {
				return c.mismatch(i/b.width, v)
			}
		}
		if n < low || n > high {
			return c.mismatch(i/b.width, v)
		}
		c.ints = append(c.ints, n)
	}
	return nil
}

func (c *column) convertUints(b *block, na *naSet) error {
	for row := range b.rows {
		v := b.text(row, c.field)
		if na.has(v) {
			if c.strict {
				return &valueError{row, "integer column has missing values; use UInt64 or float64"}
			}
			c.null()
			c.ints = append(c.ints, 0)
			continue
		}
		n, p := parseUint(v)
		if p != parsed {
			f, ok := parseFloat(v)
			if n = uint64(f); !ok || f != math.Trunc(f) || f < 0 || f >= 1<<64 {
				return c.mismatch(row, v)
			}
		}
		if bits.Len64(n) > c.bits {
			return c.mismatch(row, v)
		}
		c.ints = append(c.ints, int64(n))
	}
	return nil
}

func (c *column) convertFloats(b *block, na *naSet) error {
	c.reserve(b.rows, 0)
	for i, end := c.field, b.rows*b.width; i < end; i += b.width {
		s := b.spans[i]
		v := b.buf[s.start:s.end]
		if na.has(v) {
			c.null()
			c.floats = append(c.floats, 0)
			continue
		}
		if c.whole {
			n, p := parseInt(v)
			if p != parsed {
				return c.mismatch(i/b.width, v)
			}
			c.floats = append(c.floats, float64(n)) // so that -0 is 0, as in pandas
			continue
		}
		f, ok := parseFloat(v)
		if !ok {
			is, isBool := parseBool(v)
			if !isBool || !c.strict {
				return c.mismatch(i/b.width, v)
			}
			if is {
				f = 1
			}
		}
		if na.hasFloat(f) {
			c.null()
		}
		c.floats = append(c.floats, f)
	}
	return nil
}

func (c *column) convertBools(b *block, na *naSet) error {
	for row := range b.rows {
		v := b.text(row, c.field)
		if na.has(v) {
			if c.strict {
				return &valueError{row, "bool column has missing values; use boolean"}
			}
			c.null()
			c.bools = append(c.bools, false)
			continue
		}
		is, ok := parseBool(v)
		if !ok {
			return c.mismatch(row, v)
		}
		c.bools = append(c.bools, is)
	}
	return nil
}

func (c *column) convertTimes(b *block, na *naSet) error {
	for row := range b.rows {
		v := b.text(row, c.field)
		if na.has(v) || isNaT(v) {
			c.null()
			c.ints = append(c.ints, 0)
			continue
		}
		d, ok := c.dates.parse(v)
		if !ok {
			return c.mismatch(row, v)
		}
		c.ints = append(c.ints, c.dates.value(d))
	}
	return nil
}

func (c *column) mismatch(row int, v []byte) error {
	return &valueError{row, fmt.Sprintf("cannot convert %q to %s", clip(v), c.arrowType())}
}

// clip keeps values in errors short.
func clip(v []byte) []byte {
	if len(v) > 64 {
		v = append(v[:64:64], "..."...)
	}
	return v
}

// build makes the batch's array and empties the batch.
func (c *column) build(mem memory.Allocator) arrow.Array {
	n := c.rows()
	var buffers []*memory.Buffer
	defer func() {
		for _, b := range buffers {
			if b != nil {
				b.Release()
			}
		}
		c.reset()
	}()
	var valid *memory.Buffer
	if len(c.nulls) > 0 {
		valid = newBuffer(mem, (n+7)/8)
		bitmap := valid.Bytes()
		for i := range bitmap {
			bitmap[i] = 0xff
		}
		for _, row := range c.nulls {
			bitmap[row/8] &^= 1 << (row % 8)
		}
	}
	buffers = append(buffers, valid)
	switch {
	case c.values == nil:
		buffers = append(buffers, c.pack(mem, n)...)
	case c.offsets != nil:
		c.values.ResizeNoShrink(len(c.text))
		buffers = append(buffers, c.offsets, c.values)
	default:
		buffers = append(buffers, c.values)
	}
	c.values, c.offsets = nil, nil // the array's now
	data := array.NewData(c.typ, n, buffers, nil, len(c.nulls), 0)
	defer data.Release()
	return array.MakeFromData(data)
}

// pack copies the values into buffers.
func (c *column) pack(mem memory.Allocator, n int) []*memory.Buffer {
	switch c.kind {
	case kInt, kUint, kTime:
		return []*memory.Buffer{packInts(mem, c.ints, c.bits)}
	case kFloat:
		return []*memory.Buffer{packFloats(mem, c.floats, c.bits)}
	case kBool:
		values := newBuffer(mem, (n+7)/8)
		bitmap := values.Bytes()
		clear(bitmap)
		for i, v := range c.bools {
			if v {
				bitmap[i/8] |= 1 << (i % 8)
			}
		}
		return []*memory.Buffer{values}
	}
	offsets := newBuffer(mem, 4*(n+1))
	ends := arrow.Int32Traits.CastFromBytes(offsets.Bytes())
	ends[0] = 0
	copy(ends[1:], c.ends)
	text := newBuffer(mem, len(c.text))
	copy(text.Bytes(), c.text)
	return []*memory.Buffer{offsets, text}
}

func newBuffer(mem memory.Allocator, size int) *memory.Buffer {
	b := memory.NewResizableBuffer(mem)
	b.Resize(size)
	return b
}

func packInts(mem memory.Allocator, v []int64, width int) *memory.Buffer {
	b := newBuffer(mem, len(v)*width/8)
	switch width {
	case 8:
		for i, x := range v {
			b.Bytes()[i] = byte(x)
		}
	case 16:
		out := arrow.Int16Traits.CastFromBytes(b.Bytes())
		for i, x := range v {
			out[i] = int16(x)
		}
	case 32:
		out := arrow.Int32Traits.CastFromBytes(b.Bytes())
		for i, x := range v {
			out[i] = int32(x)
		}
	default:
		copy(arrow.Int64Traits.CastFromBytes(b.Bytes()), v)
	}
	return b
}

func packFloats(mem memory.Allocator, v []float64, width int) *memory.Buffer {
	b := newBuffer(mem, len(v)*width/8)
	if width == 32 {
		out := arrow.Float32Traits.CastFromBytes(b.Bytes())
		for i, x := range v {
			out[i] = float32(x)
		}
	} else {
		copy(arrow.Float64Traits.CastFromBytes(b.Bytes()), v)
	}
	return b
}
