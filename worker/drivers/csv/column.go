package csv

import (
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
			*(*[chunk]byte)(text[at:]) = *(*[chunk]byte)(b.buf[s.start:])
			at += len(v)
		default:
			at += copy(text[at:], v)
		}
		c.ends = append(c.ends, int32(at))
	}
	c.text = text[:at]
}

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
	switch c.kind {
	case kInt, kUint, kTime:
		buffers = append(buffers, packInts(mem, c.ints, c.bits))
	case kFloat:
		buffers = append(buffers, packFloats(mem, c.floats, c.bits))
	case kBool:
		values := newBuffer(mem, (n+7)/8)
		bitmap := values.Bytes()
		clear(bitmap)
		for i, v := range c.bools {
			if v {
				bitmap[i/8] |= 1 << (i % 8)
			}
		}
		buffers = append(buffers, values)
	default:
		offsets := newBuffer(mem, 4*(n+1))
		ends := arrow.Int32Traits.CastFromBytes(offsets.Bytes())
		ends[0] = 0
		copy(ends[1:], c.ends)
		text := newBuffer(mem, len(c.text))
		copy(text.Bytes(), c.text)
		buffers = append(buffers, offsets, text)
	}
	data := array.NewData(c.typ, n, buffers, nil, len(c.nulls), 0)
	defer data.Release()
	return array.MakeFromData(data)
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
