package rpc

import (
	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// arrowSettler gives array data a form that arrow/go's writer (v17, ipc/writer.go) gets right. That writer
//
//   - panics on a dense union or a list view that is sliced;
//   - panics on a binary array without rows whose data is not empty, which every sliced list of binaries may hold;
//   - cuts the data of a string or list that has no offset but whose first offset is not zero, without moving the offsets,
//     so that it reads back as other values or not at all. Writers of other languages make such arrays.
//
// Values are shared, not copied; bitmaps and offsets are made new, and only where they must change.
type arrowSettler struct {
	mem  memory.Allocator
	data []arrow.ArrayData
	bufs []*memory.Buffer
}

func (s *arrowSettler) release() {
	for _, d := range s.data {
		d.Release()
	}
	for _, b := range s.bufs {
		b.Release()
	}
}

// unsettled reports whether dt holds a type that arrow/go's writer may get wrong.
func unsettled(dt arrow.DataType) bool {
	switch dt := storageOf(dt).(type) {
	case arrow.BinaryViewDataType:
		return false
	case arrow.BinaryDataType, *arrow.ListType, *arrow.LargeListType, *arrow.MapType, *arrow.ListViewType, *arrow.LargeListViewType, *arrow.DenseUnionType:
		return true
	case *arrow.DictionaryType:
		return unsettled(dt.ValueType)
	case arrow.NestedType:
		for _, f := range dt.Fields() {
			if unsettled(f.Type) {
				return true
			}
		}
	}
	return false
}

// settle returns d settled, or d itself if it is. The settler owns what it makes.
func (s *arrowSettler) settle(d arrow.ArrayData) arrow.ArrayData {
	dt, off, n := storageOf(d.DataType()), d.Offset(), d.Len()
	if !unsettled(dt) {
		return d
	}
	old := d.Buffers()
	switch dt := dt.(type) {
	case *arrow.BinaryType, *arrow.StringType:
		return settleBinary[int32](s, d)
	case *arrow.LargeBinaryType, *arrow.LargeStringType:
		return settleBinary[int64](s, d)
	case *arrow.DictionaryType:
		dict := dictOf(d)
		if dict == nil || s.settle(dict) == dict {
			return d
		}
		out := array.NewDataWithDictionary(d.DataType(), n, old, d.NullN(), off, s.settle(dict).(*array.Data))
		s.data = append(s.data, out)
		return out
	case *arrow.RunEndEncodedType:
		ends, values := d.Children()[0], d.Children()[1]
		out := array.NewData(d.DataType(), n, old, []arrow.ArrayData{ends, s.settle(values)}, d.NullN(), off)
		s.data = append(s.data, out)
		return out
	case *arrow.ListViewType:
		return s.make(d, []*memory.Buffer{s.bitmap(d), s.slice(old[1], off, n, 4), s.slice(old[2], off, n, 4)}, d.Children())
	case *arrow.LargeListViewType:
		return s.make(d, []*memory.Buffer{s.bitmap(d), s.slice(old[1], off, n, 8), s.slice(old[2], off, n, 8)}, d.Children())
	case *arrow.DenseUnionType:
		return s.make(d, []*memory.Buffer{nil, s.slice(old[1], off, n, 1), s.slice(old[2], off, n, 4)}, d.Children())
	case *arrow.SparseUnionType:
		return s.make(d, []*memory.Buffer{nil, s.slice(old[1], off, n, 1)}, s.cut(d.Children(), off, n))
	case *arrow.StructType:
		return s.make(d, []*memory.Buffer{s.bitmap(d)}, s.cut(d.Children(), off, n))
	case *arrow.FixedSizeListType:
		size := int(dt.Len())
		return s.make(d, []*memory.Buffer{s.bitmap(d)}, s.cut(d.Children(), off*size, n*size))
	case *arrow.LargeListType:
		return settleList[int64](s, d)
	}
	return settleList[int32](s, d)
}

// make returns data of d's type and length, without an offset. The children are settled on the way.
func (s *arrowSettler) make(d arrow.ArrayData, bufs []*memory.Buffer, kids []arrow.ArrayData) arrow.ArrayData {
	settled := make([]arrow.ArrayData, len(kids))
	for i, kid := range kids {
		settled[i] = s.settle(kid)
	}
	nulls := d.NullN()
	if nulls < 0 && (len(bufs) == 0 || bufs[0] == nil) {
		nulls = 0
	} else if nulls < 0 {
		nulls = d.Len() - bitutil.CountSetBits(bufs[0].Bytes(), 0, d.Len())
	}
	out := array.NewData(d.DataType(), d.Len(), bufs, settled, nulls, 0)
	s.data = append(s.data, out)
	return out
}

// cut slices every child to n values from off on.
func (s *arrowSettler) cut(kids []arrow.ArrayData, off, n int) []arrow.ArrayData {
	out := make([]arrow.ArrayData, len(kids))
	for i, kid := range kids {
		out[i] = array.NewSliceData(kid, int64(off), int64(off+n))
		s.data = append(s.data, out[i])
	}
	return out
}

// slice returns n values of width bytes from off on.
func (s *arrowSettler) slice(b *memory.Buffer, off, n, width int) *memory.Buffer {
	if n == 0 || b == nil {
		return memory.NewBufferBytes(nil)
	}
	out := memory.SliceBuffer(b, off*width, n*width)
	s.bufs = append(s.bufs, out)
	return out
}

// bitmap returns d's validity bitmap without its offset.
func (s *arrowSettler) bitmap(d arrow.ArrayData) *memory.Buffer {
	b := d.Buffers()[0]
	if b == nil || b.Len() == 0 || d.Offset() == 0 {
		return b
	}
	out := memory.NewResizableBuffer(s.mem)
	s.bufs = append(s.bufs, out)
	out.Resize((d.Len() + 7) / 8)
	bitutil.CopyBitmap(b.Bytes(), d.Offset(), d.Len(), out.Bytes(), 0)
	return out
}

// settleBinary makes the offsets of strings start at zero where arrow/go's writer does not.
func settleBinary[T arrowOffset](s *arrowSettler, d arrow.ArrayData) arrow.ArrayData {
	n, bufs := d.Len(), d.Buffers()
	if n == 0 {
		return s.make(d, []*memory.Buffer{nil, nil, nil}, nil)
	}
	first := castSlice[T](bufs[1].Bytes())[d.Offset()]
	if d.Offset() != 0 || first == 0 {
		return d
	}
	last := castSlice[T](bufs[1].Bytes())[n]
	return s.make(d, []*memory.Buffer{bufs[0], rebase[T](s, d), s.slice(bufs[2], int(first), int(last-first), 1)}, nil)
}

// settleList makes the offsets of a list start at zero and its child end where they do.
func settleList[T arrowOffset](s *arrowSettler, d arrow.ArrayData) arrow.ArrayData {
	n := d.Len()
	if n == 0 {
		return s.make(d, []*memory.Buffer{nil, memory.NewBufferBytes(nil)}, s.cut(d.Children(), 0, 0))
	}
	offs := castSlice[T](d.Buffers()[1].Bytes())[d.Offset():]
	return s.make(d, []*memory.Buffer{s.bitmap(d), rebase[T](s, d)}, s.cut(d.Children(), int(offs[0]), int(offs[n]-offs[0])))
}

// rebase returns the offsets of d without d's offset, and starting at zero.
func rebase[T arrowOffset](s *arrowSettler, d arrow.ArrayData) *memory.Buffer {
	n, width := d.Len(), sizeOf[T]()
	offs := castSlice[T](d.Buffers()[1].Bytes())[d.Offset() : d.Offset()+n+1]
	if offs[0] == 0 {
		return s.slice(d.Buffers()[1], d.Offset(), n+1, width)
	}
	out := memory.NewResizableBuffer(s.mem)
	s.bufs = append(s.bufs, out)
	out.Resize((n + 1) * width)
	for i, o := range offs {
		castSlice[T](out.Bytes())[i] = o - offs[0]
	}
	return out
}
