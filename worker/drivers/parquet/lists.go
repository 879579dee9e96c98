package parquet

import (
	"fmt"
	"math"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Parquet has one kind of list. Arrow's writer mistakes parts of arrays of
// lists of a fixed size for others, and refuses lists that are null where they
// have values nevertheless, so both are made plain lists before.

// plainType returns what a type is written as.
func plainType(dt arrow.DataType) arrow.DataType {
	plainField := func(f arrow.Field) arrow.Field {
		f.Type = plainType(f.Type)
		return f
	}
	switch dt := dt.(type) {
	case *arrow.FixedSizeListType:
		return arrow.ListOfField(plainField(dt.ElemField()))
	case *arrow.ListType:
		return arrow.ListOfField(plainField(dt.ElemField()))
	case *arrow.StructType:
		fields := make([]arrow.Field, dt.NumFields())
		for i, f := range dt.Fields() {
			fields[i] = plainField(f)
		}
		return arrow.StructOf(fields...)
	}
	return dt
}

// plain returns an array as one of its plainType. The caller releases it.
func plain(a arrow.Array, mem memory.Allocator) (arrow.Array, error) {
	switch a := a.(type) {
	case *array.FixedSizeList:
		return plainList(a, mem)
	case *array.List:
		return plainList(a, mem)
	case *array.Struct:
		children := make([]arrow.ArrayData, a.NumField())
		defer func() {
			for _, c := range children {
				if c != nil {
					c.Release()
				}
			}
		}()
		for i := range children {
			c, err := plain(a.Field(i), mem)
			if err != nil {
				return nil, err
			}
			children[i] = c.Data()
			children[i].Retain()
			c.Release()
		}
		valid := validity(a, mem)
		defer release(valid)
		data := array.NewData(plainType(a.DataType()), a.Len(), []*memory.Buffer{valid}, children, a.NullN(), 0)
		defer data.Release()
		return array.NewStructData(data), nil
	}
	a.Retain()
	return a, nil
}

// plainList copies the values of lists that are not null.
func plainList(a array.ListLike, mem memory.Allocator) (arrow.Array, error) {
	ends := memory.NewResizableBuffer(mem)
	defer ends.Release()
	ends.Resize(4 * (a.Len() + 1))
	offsets := arrow.Int32Traits.CastFromBytes(ends.Bytes())
	offsets[0] = 0
	var runs []arrow.Array // of values that follow each other
	defer func() {
		for _, r := range runs {
			r.Release()
		}
	}()
	values := a.ListValues()
	from, to, total := int64(0), int64(0), int64(0)
	for i := range a.Len() {
		if a.IsValid(i) {
			start, end := a.ValueOffsets(i)
			if start != to && start != end {
				if from != to {
					runs = append(runs, array.NewSlice(values, from, to))
				}
				from, to = start, start
			}
			if start != end {
				to = end
			}
			if total += end - start; total > math.MaxInt32 {
				return nil, fmt.Errorf("lists of more than %d values in one batch", math.MaxInt32)
			}
		}
		offsets[i+1] = int32(total)
	}
	if from != to || runs == nil {
		runs = append(runs, array.NewSlice(values, from, to))
	}
	items, err := concatenate(runs, mem)
	if err != nil {
		return nil, err
	}
	defer items.Release()
	inner, err := plain(items, mem)
	if err != nil {
		return nil, err
	}
	defer inner.Release()
	valid := validity(a, mem)
	defer release(valid)
	data := array.NewData(plainType(a.DataType()), a.Len(), []*memory.Buffer{valid, ends}, []arrow.ArrayData{inner.Data()}, a.NullN(), 0)
	defer data.Release()
	return array.NewListData(data), nil
}

func concatenate(arrays []arrow.Array, mem memory.Allocator) (arrow.Array, error) {
	if len(arrays) == 1 {
		arrays[0].Retain()
		return arrays[0], nil
	}
	return array.Concatenate(arrays, mem)
}

// validity returns the bitmap of an array from its beginning; nil without nulls.
func validity(a arrow.Array, mem memory.Allocator) *memory.Buffer {
	if a.NullN() == 0 {
		return nil
	}
	b := memory.NewResizableBuffer(mem)
	b.Resize(int(bitutil.BytesForBits(int64(a.Len()))))
	clear(b.Bytes())
	for i := range a.Len() {
		if a.IsValid(i) {
			bitutil.SetBit(b.Bytes(), i)
		}
	}
	return b
}

func release(b *memory.Buffer) {
	if b != nil {
		b.Release()
	}
}
