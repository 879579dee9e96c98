package postgres

import (
	"testing"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// FuzzDecode gives every decoder bytes of a server that is not to be trusted.
func FuzzDecode(f *testing.F) {
	types := []*pgType{
		{kind: kBool}, {kind: kInt8}, {kind: kNumeric}, {kind: kNumeric, precision: 10, scale: 2}, {kind: kNumeric, precision: 38, scale: 38},
		{kind: kNumeric, precision: 76, scale: 3}, {kind: kMoney, precision: 19, scale: 2}, {kind: kJSONB}, {kind: kDate}, {kind: kTime},
		{kind: kTimestamp}, {kind: kInterval}, {kind: kUUID}, {kind: kText}, {oid: 18}, {kind: kBytea},
		{kind: kArray, dims: 1, elem: &pgType{kind: kInt4}}, {kind: kArray, dims: 2, elem: &pgType{kind: kNumeric, precision: 5}},
		{kind: kArray, dims: 1, elem: &pgType{}}, {kind: kArray, dims: 2, elem: &pgType{}},
	}
	f.Add(2, []byte{0, 1, 0, 0, 0x40, 0, 0, 2, 0, 12})
	f.Add(3, []byte{0, 2, 0, 1, 0, 0, 0, 2, 0, 12, 0, 0})
	f.Add(16, []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7})
	f.Add(17, []byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 6, 0xa4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff})
	f.Add(18, []byte(`{a,"b\"c",NULL}`))
	f.Add(19, []byte(`[0:1][1:1]={{a},{"}"}}`))
	f.Fuzz(func(t *testing.T, which int, b []byte) {
		typ := types[uint(which)%uint(len(types))]
		mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
		defer mem.AssertSize(t, 0)
		builder := array.NewBuilder(mem, typ.arrowType())
		defer builder.Release()
		err := newDecoder(typ, builder, &specials{})(b)
		a := builder.NewArray()
		defer a.Release()
		if err != nil {
			return
		}
		if a.Len() != 1 || a.IsNull(0) {
			t.Fatalf("%d values of one", a.Len())
		}
		_ = a.ValueStr(0)
		encode := bind(a.DataType(), typ, &loss{})
		if encode == nil {
			return
		}
		out, err := encode(a)(nil, 0)
		if err != nil {
			if typ.kind != kArray {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			return
		}
		again := array.NewBuilder(mem, typ.arrowType())
		defer again.Release()
		if err := newDecoder(typ, again, &specials{})(out); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		a2 := again.NewArray()
		defer a2.Release()
		if !array.Equal(a, a2) && a.ValueStr(0) != a2.ValueStr(0) { // NaN
			t.Fatalf("%s became %s", a, a2)
		}
	})
}
