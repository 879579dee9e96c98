package rpc

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"
)

// Types of fields, and what of their tables is set by hand below.
const (
	fbTypeNone      = 0
	fbTypeInt       = 2
	fbTypeFloat     = 3
	fbTypeUtf8      = 5
	fbTypeDecimal   = 7
	fbTypeTime      = 9
	fbTypeTimestamp = 10
	fbTypeInterval  = 11
	fbTypeUnionHand = 14
	fbTypeFixedBin  = 15
	fbTypeFixedList = 16
	fbTypeMapHand   = 17
	fbTypeREEHand   = 22
)

// handType is a field whose type's table has these 32-bit or 16-bit slots.
type handType struct {
	typ      byte
	i32      map[int]int32
	i16      map[int]int16
	u8       map[int]byte
	ids      []int32 // of a union
	noTable  bool    // the type's table is missing
	children []handType

	dict      bool // it is a dictionary
	dictID    int64
	index     *handType // of its indices; nil means that it is missing
	pairs     [][2]string
	halfPairs bool // pairs have no values
	notNull   bool
}

func (h handType) field(b *flatbuffers.Builder) flatbuffers.UOffsetT {
	var kids []flatbuffers.UOffsetT
	for _, c := range h.children {
		kids = append(kids, c.field(b))
	}
	children := handVector(b, kids)
	name := b.CreateString("f")
	table := h.table(b)
	var dict, pairs flatbuffers.UOffsetT
	if h.dict {
		var index flatbuffers.UOffsetT
		if h.index != nil {
			index = h.index.table(b)
		}
		b.StartObject(4)
		b.PrependInt64Slot(0, h.dictID, -1)
		b.PrependUOffsetTSlot(1, index, 0)
		dict = b.EndObject()
	}
	if h.pairs != nil {
		var all []flatbuffers.UOffsetT
		for _, p := range h.pairs {
			k, v := b.CreateString(p[0]), b.CreateString(p[1])
			if h.halfPairs {
				v = 0
			}
			b.StartObject(2)
			b.PrependUOffsetTSlot(0, k, 0)
			b.PrependUOffsetTSlot(1, v, 0)
			all = append(all, b.EndObject())
		}
		pairs = handVector(b, all)
	}
	b.StartObject(7)
	b.PrependUOffsetTSlot(0, name, 0)
	b.PrependBoolSlot(1, !h.notNull, false)
	b.PrependByteSlot(2, h.typ, 0)
	if !h.noTable {
		b.PrependUOffsetTSlot(3, table, 0)
	}
	b.PrependUOffsetTSlot(4, dict, 0)
	b.PrependUOffsetTSlot(5, children, 0)
	b.PrependUOffsetTSlot(6, pairs, 0)
	return b.EndObject()
}

func (h handType) table(b *flatbuffers.Builder) flatbuffers.UOffsetT {
	var ids flatbuffers.UOffsetT
	if h.ids != nil {
		b.StartVector(4, len(h.ids), 4)
		for i := len(h.ids) - 1; i >= 0; i-- {
			b.PrependInt32(h.ids[i])
		}
		ids = b.EndVector(len(h.ids))
	}
	b.StartObject(4)
	for slot, v := range h.i32 {
		b.PrependInt32Slot(slot, v, math.MinInt32)
	}
	for slot, v := range h.i16 {
		b.PrependInt16Slot(slot, v, math.MinInt16)
	}
	for slot, v := range h.u8 {
		b.PrependByteSlot(slot, v, 255)
	}
	b.PrependUOffsetTSlot(1, ids, 0)
	return b.EndObject()
}

// handBatch is a record batch of so many rows: nodes are lengths and numbers of
// nulls, buffers offsets and lengths in the body.
func handBatch(rows int64, body int64, nodes, buffers [][2]int64) wireMessage {
	b := flatbuffers.NewBuilder(1024)
	structs := func(all [][2]int64) flatbuffers.UOffsetT {
		b.StartVector(16, len(all), 8)
		for i := len(all) - 1; i >= 0; i-- {
			b.Prep(8, 16)
			b.PrependInt64(all[i][1])
			b.PrependInt64(all[i][0])
		}
		return b.EndVector(len(all))
	}
	n, bufs := structs(nodes), structs(buffers)
	b.StartObject(5)
	b.PrependInt64Slot(0, rows, 0)
	b.PrependUOffsetTSlot(1, n, 0)
	b.PrependUOffsetTSlot(2, bufs, 0)
	return handMessage(b, headerRecord, b.EndObject(), make([]byte, body))
}

// handMessage wraps a header; zero means that it is missing.
func handMessage(b *flatbuffers.Builder, kind byte, header flatbuffers.UOffsetT, body []byte) wireMessage {
	b.StartObject(5)
	b.PrependInt16Slot(0, metaVersionV5, 0)
	b.PrependByteSlot(1, kind, 0)
	b.PrependUOffsetTSlot(2, header, 0)
	b.PrependInt64Slot(3, int64(len(body)), 0)
	b.Finish(b.EndObject())
	meta := b.FinishedBytes()
	for len(meta)%8 != 0 {
		meta = append(meta, 0)
	}
	return wireMessage{meta, body}
}

// handTyped is a stream of one batch of fields that are made by hand.
func handTyped(batch wireMessage, fields ...handType) []byte {
	schema := splitStream(handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT {
		var all []flatbuffers.UOffsetT
		for _, f := range fields {
			all = append(all, f.field(b))
		}
		return all
	}))[0]
	return eos(frameMessages(schema, batch))
}

// hostileTypes are streams whose schemas and messages are each a flatbuffer, and
// make no sense: what fuzzers have found in the readers of other languages since.
func hostileTypes(t testing.TB) []hostile {
	bad := ErrArrowCorrupt
	flat := func(n int64) wireMessage { // one column of n values of 8 bytes
		return handBatch(n, 8*n, [][2]int64{{n, 0}}, [][2]int64{{0, 0}, {0, 8 * n}})
	}
	list := func(n, values int64) wireMessage { // of a fixed size
		return handBatch(n, 8*values, [][2]int64{{n, 0}, {values, 0}}, [][2]int64{{0, 0}, {0, 0}, {0, 8 * values}})
	}
	i64 := handType{typ: fbTypeInt, i32: map[int]int32{0: 64}, u8: map[int]byte{1: 1}}
	i8 := handType{typ: fbTypeInt, i32: map[int]int32{0: 8}, u8: map[int]byte{1: 1}}
	f64 := handType{typ: fbTypeFloat, i16: map[int]int16{0: 2}}
	text := handType{typ: fbTypeUtf8}
	union := func(mode int16, ids []int32, children ...handType) handType {
		return handType{typ: fbTypeUnionHand, i16: map[int]int16{0: mode}, ids: ids, children: children}
	}
	unionBatch := handBatch(2, 16+8+2*16, [][2]int64{{2, 0}, {2, 0}, {2, 0}}, [][2]int64{{0, 2}, {8, 0}, {8, 16}, {24, 0}, {24, 16}})
	entries := func(children ...handType) handType {
		return handType{typ: fbTypeMapHand, children: []handType{{typ: fbTypeStruct, children: children, notNull: true}}}
	}
	indices := func(index *handType) handType { return handType{typ: fbTypeUtf8, dict: true, dictID: 7, index: index} }
	dictionary := func(part func(b *flatbuffers.Builder)) []byte { // a dictionary by hand, for a stream of ours
		dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
		m := splitStream(streamOf(t, 4, []arrow.DataType{dt}))
		b := flatbuffers.NewBuilder(64)
		b.StartObject(3)
		if part != nil {
			part(b)
		}
		return eos(frameMessages(m[0], handMessage(b, headerDictionary, b.EndObject(), nil), m[2]))
	}
	message := func(kind byte) []byte { // without a header
		m := splitStream(streamOf(t, 4, []arrow.DataType{arrow.PrimitiveTypes.Int64}))
		return eos(frameMessages(m[0], handMessage(flatbuffers.NewBuilder(64), kind, 0, nil)))
	}
	wide := int64(math.MaxInt32)
	return []hostile{
		{"int of 7 bits", handTyped(flat(2), handType{typ: fbTypeInt, i32: map[int]int32{0: 7}}), nil, bad, ""},
		{"int of -64 bits", handTyped(flat(2), handType{typ: fbTypeInt, i32: map[int]int32{0: -64}}), nil, bad, ""},
		{"float of precision 9", handTyped(flat(2), handType{typ: fbTypeFloat, i16: map[int]int16{0: 9}}), nil, bad, ""},
		{"decimal of 64 bits", handTyped(flat(2), handType{typ: fbTypeDecimal, i32: map[int]int32{0: 5, 1: 1, 2: 64}}), nil, bad, ""},
		{"decimal of precision 0", handTyped(flat(2), handType{typ: fbTypeDecimal, i32: map[int]int32{0: 0, 1: 0, 2: 128}}), nil, bad, ""},
		{"decimal of precision 200", handTyped(flat(2), handType{typ: fbTypeDecimal, i32: map[int]int32{0: 200, 1: 0, 2: 128}}), nil, bad, ""},
		{"decimal of precision -1", handTyped(flat(2), handType{typ: fbTypeDecimal, i32: map[int]int32{0: -1, 1: 0, 2: 128}}), nil, bad, ""},
		{"time of 7 bits", handTyped(flat(2), handType{typ: fbTypeTime, i16: map[int]int16{0: 0}, i32: map[int]int32{1: 7}}), nil, bad, ""},
		{"time of 32 bits in nanoseconds", handTyped(flat(2), handType{typ: fbTypeTime, i16: map[int]int16{0: 3}, i32: map[int]int32{1: 32}}), nil, bad, ""},
		{"timestamp in unit 9", handTyped(flat(2), handType{typ: fbTypeTimestamp, i16: map[int]int16{0: 9}}), nil, bad, ""},
		{"interval in unit 9", handTyped(flat(2), handType{typ: fbTypeInterval, i16: map[int]int16{0: 9}}), nil, bad, ""},
		{"binary of width -8", handTyped(flat(2), handType{typ: fbTypeFixedBin, i32: map[int]int32{0: -8}}), nil, bad, ""},
		{"binary of width 2 GiB", handTyped(flat(2), handType{typ: fbTypeFixedBin, i32: map[int]int32{0: math.MaxInt32}}), nil, bad, "need more"},
		{"binary of width 2 GiB, 2^26 rows", handTyped(flat(1<<16), handType{typ: fbTypeFixedBin, i32: map[int]int32{0: math.MaxInt32}}), nil, bad, "need more"},
		{"list of size -1", handTyped(list(2, 2), handType{typ: fbTypeFixedList, i32: map[int]int32{0: -1}, children: []handType{i64}}), nil, bad, ""},
		{"list of size 2^31 - 1", handTyped(list(2, 2), handType{typ: fbTypeFixedList, i32: map[int]int32{0: math.MaxInt32}, children: []handType{i64}}), nil, bad, ""},
		{"list of size 2^31 - 1, of which there are 2^26", handTyped(handBatch(1<<26, 16, [][2]int64{{1 << 26, 0}, {2, 0}}, [][2]int64{{0, 0}, {0, 0}, {0, 16}}), handType{typ: fbTypeFixedList, i32: map[int]int32{0: int32(wide)}, children: []handType{i64}}), nil, bad, ""},
		{"list without values", handTyped(list(2, 2), handType{typ: fbTypeFixedList, i32: map[int]int32{0: 1}}), nil, bad, ""},
		{"list of two fields", handTyped(list(2, 2), handType{typ: fbTypeFixedList, i32: map[int]int32{0: 1}, children: []handType{i64, i64}}), nil, bad, ""},
		{"list's values are fewer", handTyped(list(2, 3), handType{typ: fbTypeFixedList, i32: map[int]int32{0: 2}, children: []handType{i64}}), nil, bad, ""},
		{"struct's values are fewer", handTyped(handBatch(4, 16, [][2]int64{{4, 0}, {2, 0}}, [][2]int64{{0, 0}, {0, 0}, {0, 16}}), handType{typ: fbTypeStruct, children: []handType{i64}}), nil, bad, ""},
		{"type 0", handTyped(flat(2), handType{typ: fbTypeNone}), nil, bad, ""},
		{"type 99", handTyped(flat(2), handType{typ: 99}), nil, bad, ""},
		{"type without its table", handTyped(flat(2), handType{typ: fbTypeInt, noTable: true}), nil, bad, "no type"},
		{"union in mode 7", handTyped(unionBatch, union(7, []int32{0, 1}, i64, i64)), nil, bad, ""},
		{"union with more ids than fields", handTyped(unionBatch, union(0, []int32{0, 1, 2}, i64, i64)), nil, bad, ""},
		{"union with fewer ids than fields", handTyped(unionBatch, union(0, []int32{0}, i64, i64)), nil, bad, ""},
		{"union with a negative id", handTyped(unionBatch, union(0, []int32{0, -1}, i64, i64)), nil, bad, ""},
		{"union with an id of 300", handTyped(unionBatch, union(0, []int32{0, 300}, i64, i64)), nil, bad, ""},
		{"union with an id of 256 + 0", handTyped(unionBatch, union(0, []int32{1, 256}, i64, i64)), nil, bad, ""},
		{"union with an id twice", handTyped(unionBatch, union(0, []int32{0, 0}, i64, i64)), nil, nil, ""}, // the last field is meant
		{"sparse union's values are fewer", handTyped(handBatch(2, 48, [][2]int64{{2, 0}, {1, 0}, {2, 0}}, [][2]int64{{0, 2}, {8, 0}, {8, 8}, {24, 0}, {24, 16}}), union(0, []int32{0, 1}, i64, i64)), nil, bad, ""},
		{"map of no struct", handTyped(flat(0), handType{typ: fbTypeMapHand, children: []handType{i64}}), nil, bad, ""},
		{"map without entries", handTyped(flat(0), handType{typ: fbTypeMapHand}), nil, bad, ""},
		{"map of one field", handTyped(flat(0), entries(i64)), nil, bad, ""},
		{"map of three fields", handTyped(flat(0), entries(i64, i64, i64)), nil, bad, ""},
		{"run ends of 8 bits", handTyped(flat(0), handType{typ: fbTypeREEHand, children: []handType{i8, i64}}), nil, bad, ""},
		{"run ends are text", handTyped(flat(0), handType{typ: fbTypeREEHand, children: []handType{text, i64}}), nil, bad, ""},
		{"run ends without values", handTyped(flat(0), handType{typ: fbTypeREEHand, children: []handType{i64}}), nil, bad, ""},
		{"run ends stop early", handTyped(handBatch(100, 16, [][2]int64{{100, 0}, {1, 0}, {1, 0}}, [][2]int64{{0, 0}, {0, 8}, {8, 0}, {8, 8}}), handType{typ: fbTypeREEHand, children: []handType{i64, i64}}), nil, bad, ""},
		{"dictionary index is a float", handTyped(flat(0), indices(&f64)), nil, bad, ""},
		{"dictionary index of 7 bits", handTyped(flat(0), indices(&handType{typ: fbTypeInt, i32: map[int]int32{0: 7}})), nil, bad, ""},
		{"dictionary of one id and two types", func() []byte {
			i32 := handType{typ: fbTypeInt, i32: map[int]int32{0: 32}, u8: map[int]byte{1: 1}}
			dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
			values := splitStream(streamOf(t, 4, []arrow.DataType{dt}))[1]
			batch := handBatch(2, 16, [][2]int64{{2, 0}, {2, 0}}, [][2]int64{{0, 0}, {0, 8}, {8, 0}, {8, 8}})
			m := splitStream(handTyped(batch, handType{typ: fbTypeUtf8, dict: true, index: &i32}, handType{typ: fbTypeInt, i32: i64.i32, u8: i64.u8, dict: true, index: &i32}))
			return eos(frameMessages(m[0], values, m[1]))
		}(), nil, bad, ""},
		{"dictionary whose index has no type", handTyped(flat(0), indices(nil)), nil, bad, ""},
		{"dictionary of no batch", dictionary(nil), nil, bad, "flatbuffer"},
		{"dictionary of a batch without vectors", dictionary(func(b *flatbuffers.Builder) {}), nil, bad, ""},
		{"batch without a header", message(headerRecord), nil, bad, ""},
		{"dictionary without a header", message(headerDictionary), nil, bad, ""},
		{"message of type 0", message(0), nil, bad, "flatbuffer"},
		{"message of type 200", message(200), nil, bad, "flatbuffer"},
		{"buffer of 4 bytes that is compressed", func() []byte {
			w := openWire(streamOf(t, 4, []arrow.DataType{arrow.PrimitiveTypes.Int64}, ipc.WithZstd()), headerRecord)
			return w.length(1, 4).bytes()
		}(), nil, bad, ""},
		{"large text offsets wrap around", func() []byte {
			w := openWire(streamOf(t, 4, []arrow.DataType{arrow.BinaryTypes.LargeString}), headerRecord)
			return w.i64(1, 1, math.MaxInt64).bytes()
		}(), nil, bad, ""},
		{"large list offsets are negative", func() []byte {
			w := openWire(streamOf(t, 4, []arrow.DataType{arrow.LargeListOf(arrow.PrimitiveTypes.Int64)}), headerRecord)
			return w.i64(1, 0, math.MinInt64).bytes()
		}(), nil, bad, ""},
		{"list view whose end wraps around", func() []byte {
			w := openWire(streamOf(t, 4, []arrow.DataType{arrow.ListViewOf(arrow.PrimitiveTypes.Int64)}), headerRecord)
			return w.i32(1, 1, math.MaxInt32).i32(2, 1, math.MaxInt32).bytes()
		}(), nil, bad, "outside"},
		{"dictionary index of 2^64 - 1", func() []byte {
			dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint64, ValueType: arrow.BinaryTypes.String}
			w := openWire(streamOf(t, 4, []arrow.DataType{dt}), headerRecord)
			return w.i64(1, 0, -1).bytes()
		}(), nil, bad, "index"},
		{"big-endian", func() []byte {
			b := flatbuffers.NewBuilder(64)
			fields := handVector(b, nil)
			b.StartObject(4)
			b.PrependInt16Slot(0, 1, 0)
			b.PrependUOffsetTSlot(1, fields, 0)
			return eos(frameMessages(handMessage(b, headerSchema, b.EndObject(), nil)))
		}(), nil, bad, "big-endian"},
		// What is made by hand can be right.
		{"int", handTyped(flat(2), i64), nil, nil, ""},
		{"decimal", handTyped(handBatch(2, 32, [][2]int64{{2, 0}}, [][2]int64{{0, 0}, {0, 32}}), handType{typ: fbTypeDecimal, i32: map[int]int32{0: 5, 1: 1, 2: 128}}), nil, nil, ""},
		{"list of a fixed size", handTyped(list(2, 4), handType{typ: fbTypeFixedList, i32: map[int]int32{0: 2}, children: []handType{i64}}), nil, nil, ""},
		{"struct", handTyped(handBatch(2, 16, [][2]int64{{2, 0}, {2, 0}}, [][2]int64{{0, 0}, {0, 0}, {0, 16}}), handType{typ: fbTypeStruct, children: []handType{i64}}), nil, nil, ""},
		{"union", handTyped(unionBatch, union(0, []int32{0, 1}, i64, i64)), nil, nil, ""},
		{"map", handTyped(handBatch(0, 0, [][2]int64{{0, 0}, {0, 0}, {0, 0}, {0, 0}}, make([][2]int64, 7)), entries(handType{typ: fbTypeInt, i32: i64.i32, notNull: true}, i64)), nil, nil, ""},
		{"run ends", handTyped(handBatch(0, 0, [][2]int64{{0, 0}, {0, 0}, {0, 0}}, make([][2]int64, 4)), handType{typ: fbTypeREEHand, children: []handType{{typ: fbTypeInt, i32: i64.i32, u8: i64.u8, notNull: true}, i64}}), nil, nil, ""},
		{"metadata without a value", handTyped(flat(0), handType{typ: fbTypeInt, i32: map[int]int32{0: 64}, pairs: [][2]string{{"ARROW:extension:name", ""}}, halfPairs: true}), nil, nil, ""},
		{"extension of another storage", handTyped(flat(0), handType{typ: fbTypeInt, i32: map[int]int32{0: 64}, pairs: [][2]string{{"ARROW:extension:name", "arrow.uuid"}, {"ARROW:extension:metadata", "\xff"}}}), nil, nil, ""},
	}
}

// TestArrowHostileTypes reads them. Where no error is wanted the stream is odd,
// and does no harm.
func TestArrowHostileTypes(t *testing.T) {
	for _, tt := range hostileTypes(t) {
		t.Run(tt.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			var err error
			got := allocated(func() { _, err = readAll(bytes.NewReader(tt.data), tt.lim, mem) })
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.words)
			}
			if testing.Verbose() {
				t.Logf("%d bytes in, %d allocated: %v", len(tt.data), got, err)
			}
			if got > 64<<20 {
				t.Errorf("%d bytes of input cost %d bytes of memory", len(tt.data), got)
			}
		})
	}
}
