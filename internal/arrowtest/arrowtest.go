// Package arrowtest has a table of all types of Arrow, for tests of what tables go
// through.
package arrowtest

import (
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/decimal128"
	"github.com/apache/arrow/go/v17/arrow/decimal256"
	"github.com/apache/arrow/go/v17/arrow/float16"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Types is every type arrow v17 can write to a stream.
func Types() []arrow.DataType {
	i32, str := arrow.PrimitiveTypes.Int32, arrow.BinaryTypes.String
	fields := []arrow.Field{{Name: "a", Type: i32, Nullable: true}, {Name: "b", Type: str, Nullable: true}}
	codes := []arrow.UnionTypeCode{5, 9}
	dict := func(index, value arrow.DataType) arrow.DataType {
		return &arrow.DictionaryType{IndexType: index, ValueType: value}
	}
	return []arrow.DataType{
		arrow.Null, arrow.FixedWidthTypes.Boolean,
		arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, i32, arrow.PrimitiveTypes.Int64,
		arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64,
		arrow.FixedWidthTypes.Float16, arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Float64,
		&arrow.Decimal128Type{Precision: 38, Scale: 4}, &arrow.Decimal256Type{Precision: 76, Scale: -3},
		arrow.FixedWidthTypes.Date32, arrow.FixedWidthTypes.Date64,
		arrow.FixedWidthTypes.Time32s, arrow.FixedWidthTypes.Time32ms, arrow.FixedWidthTypes.Time64us, arrow.FixedWidthTypes.Time64ns,
		&arrow.TimestampType{Unit: arrow.Second}, &arrow.TimestampType{Unit: arrow.Millisecond, TimeZone: "UTC"},
		&arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "+02:00"}, &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "Europe/Prague"},
		arrow.FixedWidthTypes.Duration_s, arrow.FixedWidthTypes.Duration_ns,
		arrow.FixedWidthTypes.MonthInterval, arrow.FixedWidthTypes.DayTimeInterval, arrow.FixedWidthTypes.MonthDayNanoInterval,
		arrow.BinaryTypes.Binary, str, arrow.BinaryTypes.LargeBinary, arrow.BinaryTypes.LargeString,
		arrow.BinaryTypes.BinaryView, arrow.BinaryTypes.StringView,
		&arrow.FixedSizeBinaryType{ByteWidth: 5},
		arrow.ListOf(i32), arrow.LargeListOf(str), arrow.FixedSizeListOf(3, i32), arrow.ListViewOf(i32), arrow.LargeListViewOf(str),
		arrow.ListOf(arrow.ListOf(arrow.BinaryTypes.StringView)),
		arrow.StructOf(fields...), arrow.StructOf(), arrow.MapOf(str, i32),
		arrow.SparseUnionOf(fields, codes), arrow.DenseUnionOf(fields, codes),
		arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int16, str), arrow.RunEndEncodedOf(i32, arrow.PrimitiveTypes.Float64),
		arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int64, i32),
		dict(arrow.PrimitiveTypes.Int8, str), dict(arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Float64),
		dict(arrow.PrimitiveTypes.Uint64, &arrow.FixedSizeBinaryType{ByteWidth: 2}),
		arrow.ListOf(dict(i32, str)),
		arrow.StructOf(arrow.Field{Name: "d", Type: dict(arrow.PrimitiveTypes.Int64, arrow.BinaryTypes.Binary), Nullable: true}),
	}
}

// Append appends the i-th sample value to b; every fourth is null.
func Append(b array.Builder, i int) {
	if i%4 == 3 {
		b.AppendNull()
		return
	}
	v := int64(i*37 + 1)
	text := strings.Repeat("žluťoučký "[:i%9+3], i%5)
	text = strings.ToValidUTF8(text, "?")
	switch b := b.(type) {
	case *array.NullBuilder:
		b.AppendNull()
	case *array.BooleanBuilder:
		b.Append(i%3 == 0)
	case *array.Int8Builder:
		b.Append(int8(v % 100))
	case *array.Int16Builder:
		b.Append(int16(v))
	case *array.Int32Builder:
		b.Append(int32(v))
	case *array.Int64Builder:
		b.Append(-v)
	case *array.Uint8Builder:
		b.Append(uint8(v))
	case *array.Uint16Builder:
		b.Append(uint16(v))
	case *array.Uint32Builder:
		b.Append(uint32(v))
	case *array.Uint64Builder:
		b.Append(uint64(v) << 40)
	case *array.Float16Builder:
		b.Append(float16.New(float32(i) / 2))
	case *array.Float32Builder:
		b.Append(float32(v) / 3)
	case *array.Float64Builder:
		b.Append(float64(v) / 3)
	case *array.Decimal128Builder:
		b.Append(decimal128.FromI64(-v))
	case *array.Decimal256Builder:
		b.Append(decimal256.FromI64(v))
	case *array.Date32Builder:
		b.Append(arrow.Date32(v))
	case *array.Date64Builder:
		b.Append(arrow.Date64(v * 86400000))
	case *array.Time32Builder:
		b.Append(arrow.Time32(v))
	case *array.Time64Builder:
		b.Append(arrow.Time64(v))
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(v * 1e6))
	case *array.DurationBuilder:
		b.Append(arrow.Duration(v))
	case *array.MonthIntervalBuilder:
		b.Append(arrow.MonthInterval(v))
	case *array.DayTimeIntervalBuilder:
		b.Append(arrow.DayTimeInterval{Days: int32(i), Milliseconds: int32(v)})
	case *array.MonthDayNanoIntervalBuilder:
		b.Append(arrow.MonthDayNanoInterval{Months: int32(i), Days: 2, Nanoseconds: v})
	case *array.BinaryBuilder:
		b.AppendString(text)
	case *array.StringBuilder:
		b.Append(text)
	case *array.LargeStringBuilder:
		b.Append(text)
	case *array.BinaryViewBuilder:
		b.AppendString(text)
	case *array.StringViewBuilder:
		b.Append(text)
	case *array.FixedSizeBinaryBuilder:
		b.Append(fmt.Appendf(nil, "%0*d", b.Type().(*arrow.FixedSizeBinaryType).ByteWidth, i%7))
	case *array.MapBuilder:
		b.Append(true)
		for j := range i % 3 {
			b.KeyBuilder().(*array.StringBuilder).Append(fmt.Sprint("k", j))
			Append(b.ItemBuilder(), i+j)
		}
	case *array.FixedSizeListBuilder:
		b.Append(true)
		for j := range 3 {
			Append(b.ValueBuilder(), i+j)
		}
	case array.VarLenListLikeBuilder:
		b.AppendWithSize(true, i%3)
		for j := range i % 3 {
			Append(b.ValueBuilder(), i+j)
		}
	case *array.StructBuilder:
		b.Append(true)
		for j := range b.NumField() {
			Append(b.FieldBuilder(j), i+j)
		}
	case *array.SparseUnionBuilder:
		for j := range 2 {
			if j == i%2 {
				Append(b.Child(j), i)
			} else {
				b.Child(j).AppendEmptyValue()
			}
		}
		b.Append([]arrow.UnionTypeCode{5, 9}[i%2])
	case *array.DenseUnionBuilder:
		b.Append([]arrow.UnionTypeCode{5, 9}[i%2])
		Append(b.Child(i%2), i)
	case *array.RunEndEncodedBuilder:
		b.Append(uint64(i%3 + 1))
		Append(b.ValueBuilder(), i)
	case array.DictionaryBuilder:
		sub := array.NewBuilder(memory.DefaultAllocator, b.Type().(*arrow.DictionaryType).ValueType)
		defer sub.Release()
		Append(sub, i%6)
		one := sub.NewArray()
		defer one.Release()
		if err := b.AppendArray(one); err != nil {
			panic(err)
		}
	default:
		panic(fmt.Sprintf("no sample for %T", b))
	}
}

// Sample returns an array of n rows of dt.
func Sample(mem memory.Allocator, dt arrow.DataType, n int) arrow.Array {
	b := array.NewBuilder(mem, dt)
	defer b.Release()
	for i := 0; b.Len() < n; i++ {
		Append(b, i)
	}
	arr := b.NewArray()
	if arr.Len() == n {
		return arr
	}
	defer arr.Release()
	return array.NewSlice(arr, 0, int64(n))
}
