package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// wireMessage is one message of a stream, for patching.
type wireMessage struct{ meta, body []byte }

// splitStream takes a stream of ours apart; the end-of-stream marker is left out.
func splitStream(data []byte) (out []wireMessage) {
	for data = bytes.Clone(data); ; {
		n := binary.LittleEndian.Uint32(data[4:])
		if n == 0 {
			return out
		}
		meta := data[8 : 8+n]
		m, err := parseArrowMessage(meta)
		if err != nil {
			panic(err)
		}
		data = data[8+n:]
		out = append(out, wireMessage{meta, data[:m.body:m.body]})
		data = data[m.body:]
	}
}

func frameMessages(msgs ...wireMessage) []byte {
	var out []byte
	for _, m := range msgs {
		out = append(out, 0xff, 0xff, 0xff, 0xff)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(m.meta)))
		out = append(append(out, m.meta...), m.body...)
	}
	return out
}

func eos(data []byte) []byte { return append(data, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0) }

// wire is a stream opened for patching: the last record batch, or the last dictionary if dict is set.
type wire struct {
	msgs  []wireMessage
	m     *wireMessage
	top   arrowMessage
	batch *arrowBatch
	head  flatTable // the RecordBatch
}

func openWire(data []byte, kind uint8) *wire {
	w := &wire{msgs: splitStream(data)}
	for i := range w.msgs {
		m, _ := parseArrowMessage(w.msgs[i].meta)
		if m.kind != kind {
			continue
		}
		w.m, w.top, w.head = &w.msgs[i], m, m.header
		if kind == headerDictionary {
			w.head, _ = m.header.child(6)
		}
		if kind != headerSchema {
			lim := (*ArrowLimits)(nil).caps()
			var err error
			if w.batch, err = parseArrowBatch(w.head, &lim); err != nil {
				panic(err)
			}
		}
	}
	return w
}

func (w *wire) bytes() []byte { return eos(frameMessages(w.msgs...)) }

// put overwrites eight bytes of the metadata.
func (w *wire) put(pos int, v int64) *wire {
	if pos == 0 {
		panic("field is absent")
	}
	binary.LittleEndian.PutUint64(w.m.meta[pos:], uint64(v))
	return w
}

func (w *wire) bodyLength(v int64) *wire {
	f := &flatReader{b: w.m.meta}
	return w.put(f.table(f.follow(0)).at(10, 8), v)
}
func (w *wire) rows(v int64) *wire          { return w.put(w.head.at(4, 8), v) }
func (w *wire) node(i int, v int64) *wire   { return w.put(w.batch.node+16*i, v) }
func (w *wire) nulls(i int, v int64) *wire  { return w.put(w.batch.node+16*i+8, v) }
func (w *wire) offset(i int, v int64) *wire { return w.put(w.batch.buf+16*i, v) }
func (w *wire) length(i int, v int64) *wire { return w.put(w.batch.buf+16*i+8, v) }
func (w *wire) views(i int, v int64) *wire  { return w.put(w.batch.view+8*i, v) }
func (w *wire) count(slot int, v int) *wire { // of a vector
	p, _ := w.head.vector(slot, 1)
	binary.LittleEndian.PutUint32(w.m.meta[p-4:], uint32(v))
	return w
}

// buffer is the i-th buffer in the body.
func (w *wire) buffer(i int) []byte {
	p := w.batch.buf + 16*i
	off := binary.LittleEndian.Uint64(w.m.meta[p:])
	return w.m.body[off : off+binary.LittleEndian.Uint64(w.m.meta[p+8:])]
}

func (w *wire) i32(buf, at int, v int32) *wire {
	binary.LittleEndian.PutUint32(w.buffer(buf)[4*at:], uint32(v))
	return w
}

func (w *wire) i64(buf, at int, v int64) *wire {
	binary.LittleEndian.PutUint64(w.buffer(buf)[8*at:], uint64(v))
	return w
}

// frameOf replaces the whole body of a one-buffer batch by what its second buffer is to hold.
func (w *wire) frameOf(declared int64, frame []byte) *wire {
	body := binary.LittleEndian.AppendUint64(nil, uint64(declared))
	body = append(body, frame...)
	n := int64(len(body))
	for len(body)%8 != 0 {
		body = append(body, 0)
	}
	w.m.body = body
	return w.offset(1, 0).length(1, n).bodyLength(int64(len(body)))
}

func zstdOf(b []byte) []byte {
	z, _ := zstd.NewWriter(nil)
	defer z.Close()
	return z.EncodeAll(b, nil)
}

// zstdBomb is n bytes of zeros, in a frame that does not say how many.
func zstdBomb(n int64) []byte {
	var out bytes.Buffer
	z, _ := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	io.CopyN(z, zeroReader{}, n)
	z.Close()
	return out.Bytes()
}

func lz4Bomb(n int64) []byte {
	var out bytes.Buffer
	z := lz4.NewWriter(&out)
	io.CopyN(z, zeroReader{}, n)
	z.Close()
	return out.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// handSchema returns a schema message whose fields build makes.
func handSchema(build func(b *flatbuffers.Builder) []flatbuffers.UOffsetT, body ...int64) []byte {
	b := flatbuffers.NewBuilder(1024)
	fields := handVector(b, build(b))
	b.StartObject(4)
	b.PrependUOffsetTSlot(1, fields, 0)
	schema := b.EndObject()
	b.StartObject(5)
	b.PrependInt16Slot(0, metaVersionV5, 0)
	b.PrependByteSlot(1, headerSchema, 0)
	b.PrependUOffsetTSlot(2, schema, 0)
	if body != nil {
		b.PrependInt64Slot(3, body[0], 0)
	}
	b.Finish(b.EndObject())
	meta := b.FinishedBytes()
	for len(meta)%8 != 0 {
		meta = append(meta, 0)
	}
	return eos(frameMessages(wireMessage{meta: meta}))
}

func handVector(b *flatbuffers.Builder, elems []flatbuffers.UOffsetT) flatbuffers.UOffsetT {
	b.StartVector(4, len(elems), 4)
	for i := len(elems) - 1; i >= 0; i-- {
		b.PrependUOffsetT(elems[i])
	}
	return b.EndVector(len(elems))
}

// handField is a field of type typ, a table without fields of its own.
func handField(b *flatbuffers.Builder, typ byte, children []flatbuffers.UOffsetT, pairs flatbuffers.UOffsetT) flatbuffers.UOffsetT {
	kids := handVector(b, children)
	b.StartObject(0)
	table := b.EndObject()
	b.StartObject(7)
	b.PrependByteSlot(2, typ, 0)
	b.PrependUOffsetTSlot(3, table, 0)
	b.PrependUOffsetTSlot(5, kids, 0)
	b.PrependUOffsetTSlot(6, pairs, 0)
	return b.EndObject()
}

const (
	fbTypeBool   = 6
	fbTypeList   = 12
	fbTypeStruct = 13
)

// deepSchema is a list nested n deep.
func deepSchema(n int) []byte {
	return handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT {
		f := handField(b, fbTypeBool, nil, 0)
		for range n {
			f = handField(b, fbTypeList, []flatbuffers.UOffsetT{f}, 0)
		}
		return []flatbuffers.UOffsetT{f}
	})
}

type hostile struct {
	name  string
	data  []byte
	lim   *ArrowLimits
	want  error
	words string // in the message
}

// hostileStreams are the rows of the table of what arrow/go v17 dies of, panics on or takes as good data, and more.
func hostileStreams(t testing.TB) []hostile {
	i64, str, u8 := arrow.PrimitiveTypes.Int64, arrow.BinaryTypes.String, arrow.PrimitiveTypes.Uint8
	dictType := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: str}
	one := func(dt arrow.DataType, rows int, opts ...ipc.Option) []byte {
		return streamOf(t, rows, []arrow.DataType{dt}, opts...)
	}
	solid := func(rows int, opts ...ipc.Option) *wire { // int64 without nulls
		b := array.NewInt64Builder(memory.DefaultAllocator)
		defer b.Release()
		for i := range rows {
			b.Append(int64(i))
		}
		rec := recordOf(b.NewArray())
		defer rec.Release()
		return openWire(writeStream(t, memory.DefaultAllocator, rec.Schema(), []arrow.Record{rec}, opts...), headerRecord)
	}
	rec := func(dt arrow.DataType, rows int, opts ...ipc.Option) *wire {
		return openWire(one(dt, rows, opts...), headerRecord)
	}
	dict := func() *wire { return openWire(one(dictType, 6), headerDictionary) }
	legacy := func(n uint32) []byte { return append(binary.LittleEndian.AppendUint32(nil, n), make([]byte, 60)...) }
	length := func(n uint32) []byte {
		return append(binary.LittleEndian.AppendUint32([]byte{0xff, 0xff, 0xff, 0xff}, n), make([]byte, 60)...)
	}
	schema := splitStream(one(i64, 4))[0]
	ints := splitStream(one(i64, 4))
	big := &ArrowLimits{MaxMetadataBytes: 1 << 30}
	nullBatch := rec(arrow.Null, 4)
	bad, large := ErrArrowCorrupt, ErrArrowTooLarge

	return []hostile{
		{"body length 1 TiB", solid(4).bodyLength(1 << 40).bytes(), nil, large, "MaxBodyBytes"},
		{"body length 2 GiB", solid(4).bodyLength(2 << 30).bytes(), nil, large, "MaxBodyBytes"},
		{"body length 200 MiB of 32 bytes", solid(4).bodyLength(200 << 20).bytes(), nil, bad, "ends in a message body"},
		{"zstd declares 1 TiB", rec(i64, 4, ipc.WithZstd()).i64(1, 0, 1<<40).bytes(), nil, large, "MaxBodyBytes"},
		{"zstd declares 200 MiB", rec(i64, 4, ipc.WithZstd()).i64(1, 0, 200<<20).bytes(), nil, bad, "more than its codec can do"},
		{"lz4 declares 200 MiB", rec(i64, 4, ipc.WithLZ4()).i64(1, 0, 200<<20).bytes(), nil, bad, "more than its codec can do"},
		{"zstd declares -2", rec(i64, 4, ipc.WithZstd()).i64(1, 0, -2).bytes(), nil, bad, "declares -2"},
		{"list nested 100,000 deep", deepSchema(100_000), nil, large, "MaxMetadataBytes"},
		{"list nested 100,000 deep, large metadata allowed", deepSchema(100_000), big, large, "MaxDepth"},
		{"list nested 64 deep", deepSchema(64), nil, large, "MaxDepth"},
		{"fields doubling 60 times", handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT {
			f := handField(b, fbTypeBool, nil, 0)
			for range 60 {
				f = handField(b, fbTypeStruct, []flatbuffers.UOffsetT{f, f}, 0)
			}
			return []flatbuffers.UOffsetT{f}
		}), nil, large, "MaxFields"},
		{"200,000 fields in one", handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT {
			f := handField(b, fbTypeBool, nil, 0)
			all := make([]flatbuffers.UOffsetT, 200_000)
			for i := range all {
				all[i] = f
			}
			return all
		}), nil, large, "MaxFields"},
		{"one long pair 100,000 times", handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT {
			s := b.CreateString(strings.Repeat("x", 400_000))
			b.StartObject(2)
			b.PrependUOffsetTSlot(0, s, 0)
			b.PrependUOffsetTSlot(1, s, 0)
			kv := b.EndObject()
			all := make([]flatbuffers.UOffsetT, 100_000)
			for i := range all {
				all[i] = kv
			}
			return []flatbuffers.UOffsetT{handField(b, fbTypeBool, nil, handVector(b, all))}
		}), nil, large, "MaxMetadataBytes"},
		{"metadata length 2 GiB - 1", length(math.MaxInt32), nil, large, "MaxMetadataBytes"},
		{"metadata length negative", length(1<<31 + 5), nil, bad, "metadata length"},
		{"legacy length 1.5 GiB", legacy(3 << 29), nil, bad, "framing"},
		{"legacy end of stream", legacy(0), nil, bad, "framing"},
		{"buffer length 1 GiB", solid(4).length(1, 1<<30).bytes(), nil, bad, "outside its body"},
		{"buffer length negative", solid(4).length(1, -8).bytes(), nil, bad, "outside its body"},
		{"buffer offset beyond", solid(4).offset(1, 1<<20).bytes(), nil, bad, "outside its body"},
		{"buffer offset negative", solid(4).offset(1, -64).bytes(), nil, bad, "outside its body"},
		{"buffer offset and length wrap around", solid(4).offset(1, math.MaxInt64-7).length(1, 64).bytes(), nil, bad, "outside its body"},
		{"buffer not aligned", rec(str, 6).offset(1, 4).length(1, 28).bytes(), nil, bad, "aligned"},
		{"buffers overlap", rec(str, 6).offset(2, 0).length(2, 8).bytes(), nil, bad, "overlaps"},
		{"body length negative", solid(4).bodyLength(-1).bytes(), nil, bad, "body length is -1"},
		{"node length negative", solid(4).node(0, -1).bytes(), nil, bad, "-1 values"},
		{"node length 2^40", solid(4).node(0, 1<<40).bytes(), nil, large, "limit"},
		{"node length not the batch's", solid(4).node(0, 3).bytes(), nil, bad, "3 values in a batch of 4 rows"},
		{"root offset beyond", eos(frameMessages(schema, wireMessage{meta: bytes.Repeat([]byte{0xfe}, 64)})), nil, bad, "flatbuffer"},
		{"rows 2^40", solid(4).rows(1 << 40).bytes(), nil, large, "MaxBatchRows"},
		{"rows -1", solid(4).rows(-1).bytes(), nil, bad, "-1 rows"},
		{"string offsets beyond", rec(str, 6).i32(1, 6, 1<<20).bytes(), nil, bad, "beyond"},
		{"string offsets negative", rec(str, 6).i32(1, 0, -5).bytes(), nil, bad, "do not rise"},
		{"string offsets decreasing", rec(str, 6).i32(1, 3, 1<<10).bytes(), nil, bad, "do not rise"},
		{"string not UTF-8", func() []byte { w := rec(str, 6); w.buffer(2)[0] = 0xff; return w.bytes() }(), nil, bad, "not UTF-8"},
		{"list offsets beyond", rec(arrow.ListOf(i64), 6).i32(1, 6, 1<<20).bytes(), nil, bad, "beyond"},
		{"list view beyond", rec(arrow.ListViewOf(i64), 6).i32(2, 1, 1<<20).bytes(), nil, bad, "outside"},
		{"dictionary index out of range", rec(dictType, 6).i32(1, 0, 100).bytes(), nil, bad, "index 100"},
		{"dictionary index negative", rec(dictType, 6).i32(1, 0, -1).bytes(), nil, bad, "index -1"},
		{"union type id", func() []byte {
			w := rec(arrow.DenseUnionOf([]arrow.Field{{Name: "a", Type: i64}, {Name: "b", Type: i64}}, []arrow.UnionTypeCode{5, 9}), 6)
			w.buffer(0)[2] = 6
			return w.bytes()
		}(), nil, bad, "type id 6"},
		{"union offset", rec(arrow.DenseUnionOf([]arrow.Field{{Name: "a", Type: i64}, {Name: "b", Type: i64}}, []arrow.UnionTypeCode{5, 9}), 6).
			i32(1, 5, 77).bytes(), nil, bad, "offset 77"},
		{"run ends", rec(arrow.RunEndEncodedOf(i64, str), 6).i64(1, 1, -3).bytes(), nil, bad, "run end"},
		{"buffer of 8 bytes for 4 int64", solid(4).length(1, 8).bytes(), nil, bad, "need more"},
		{"validity bitmap of 0 bytes", rec(i64, 6).length(0, 0).bytes(), nil, bad, "no validity bitmap"},
		{"zstd declares 8 of 32 bytes", rec(i64, 4, ipc.WithZstd()).i64(1, 0, 8).bytes(), nil, bad, "zstd"},
		{"lz4 declares 8 of 32 bytes", rec(i64, 4, ipc.WithLZ4()).i64(1, 0, 8).bytes(), nil, bad, "lz4"},
		{"zstd declares 40 of 32 bytes", rec(i64, 4, ipc.WithZstd()).i64(1, 0, 400).bytes(), nil, bad, "zstd"},
		{"lz4 declares 40 of 32 bytes", rec(i64, 4, ipc.WithLZ4()).i64(1, 0, 400).bytes(), nil, bad, "lz4"},
		{"zstd garbage", solid(4, ipc.WithZstd()).frameOf(32, []byte("garbage garbage garbage")).bytes(), nil, bad, "zstd"},
		{"lz4 garbage", solid(4, ipc.WithLZ4()).frameOf(32, []byte("garbage garbage garbage")).bytes(), nil, bad, "lz4"},
		{"zstd empty frame", solid(4, ipc.WithZstd()).frameOf(32, nil).bytes(), nil, bad, "zstd"},
		{"zstd bomb of 1 GiB, declared", solid(4, ipc.WithZstd()).frameOf(1<<30, zstdOf(make([]byte, 1<<20))).bytes(), nil, large, "MaxBodyBytes"},
		{"zstd bomb of 64 MiB, 32 bytes declared", solid(4, ipc.WithZstd()).frameOf(32, zstdBomb(64<<20)).bytes(), nil, bad, "zstd"},
		{"zstd bomb of 64 MiB with its size, 32 bytes declared", solid(4, ipc.WithZstd()).frameOf(32, zstdOf(make([]byte, 64<<20))).bytes(), nil, bad, "zstd"},
		{"lz4 bomb of 64 MiB, 32 bytes declared", solid(4, ipc.WithLZ4()).frameOf(32, lz4Bomb(64<<20)).bytes(), nil, bad, "lz4"},
		{"null count 2^40", solid(4).nulls(0, 1<<40).bytes(), nil, bad, "null"},
		{"null count negative", solid(4).nulls(0, -1).bytes(), nil, bad, "null"},
		{"null count not the bitmap's", rec(i64, 6).nulls(0, 3).bytes(), nil, bad, "its bitmap 1"},
		{"null column of 2^40 rows", nullBatch.rows(1<<40).node(0, 1<<40).bytes(), nil, large, "MaxBatchRows"},
		{"null list values of 2^30", rec(arrow.ListOf(arrow.Null), 6).node(1, 1<<30).bytes(), nil, large, "MaxBatchRows"},
		{"run-end values of 2^30", rec(arrow.ListOf(arrow.RunEndEncodedOf(i64, i64)), 6).node(1, 1<<30).bytes(), nil, large, "MaxBatchRows"},
		{"fewer nodes", rec(i64, 6).count(6, 0).bytes(), nil, bad, "field nodes"},
		{"fewer buffers", rec(i64, 6).count(8, 1).bytes(), nil, bad, "buffers"},
		{"more nodes", eos(frameMessages(schema, splitStream(streamOf(t, 4, []arrow.DataType{i64, i64}))[1])), nil, bad, "nodes"},
		{"vector of 2^32 - 1 nodes", rec(i64, 6).count(6, math.MaxUint32).bytes(), nil, bad, "flatbuffer"},
		{"variadic count negative", rec(arrow.BinaryTypes.StringView, 6).views(0, -1).bytes(), nil, bad, "variadic"},
		{"variadic count 2^40", rec(arrow.BinaryTypes.StringView, 6).views(0, 1<<40).bytes(), nil, bad, "variadic"},
		{"view beyond", func() []byte {
			w := rec(arrow.BinaryTypes.BinaryView, 6)
			for i := range 6 {
				w.i32(1, 4*i, 1<<30)
			}
			return w.bytes()
		}(), nil, bad, "outside its buffers"},
		{"no end of stream", frameMessages(ints...), nil, io.ErrUnexpectedEOF, "end-of-stream"},
		{"cut in a body", frameMessages(ints...)[:len(frameMessages(ints...))-9], nil, io.ErrUnexpectedEOF, "a message body"},
		{"empty", nil, nil, io.ErrUnexpectedEOF, "a message header"},
		{"only an end of stream", eos(nil), nil, bad, "before its schema"},
		{"no schema first", eos(frameMessages(ints[1])), nil, bad, "want a schema"},
		{"schema twice", eos(frameMessages(ints[0], ints[0], ints[1])), nil, bad, "second schema"},
		{"zero metadata", eos(frameMessages(schema, wireMessage{meta: make([]byte, 64)})), nil, bad, "flatbuffer"},
		{"metadata of one byte", eos(frameMessages(schema, wireMessage{meta: []byte{1}})), nil, bad, "flatbuffer"},
		{"schema with a body", handSchema(func(b *flatbuffers.Builder) []flatbuffers.UOffsetT { return nil }, 8), nil, bad, "schema has a body"},
		{"message type tensor", func() []byte {
			w := solid(4)
			f := &flatReader{b: w.m.meta}
			w.m.meta[f.table(f.follow(0)).at(6, 1)] = 4
			return w.bytes()
		}(), nil, bad, "message type 4"},
		{"metadata V1", func() []byte {
			w := solid(4)
			f := &flatReader{b: w.m.meta}
			w.m.meta[f.table(f.follow(0)).at(4, 2)] = 0
			return w.bytes()
		}(), nil, bad, "version 1"},
		{"compression codec 7", func() []byte {
			w := solid(4, ipc.WithZstd())
			c, _ := w.head.child(10)
			w.m.meta[c.at(4, 1)] = 7
			return w.bytes()
		}(), nil, bad, "codec 7"},
		{"dictionary missing", func() []byte { m := splitStream(one(dictType, 6)); return eos(frameMessages(m[0], m[2])) }(), nil, bad, "before it is sent"},
		{"dictionary unknown", func() []byte {
			w := openWire(streamOf(t, 6, []arrow.DataType{dictType, dictType}), headerDictionary) // id 1; 0 is not written
			return w.put(w.top.header.at(4, 8), 99).bytes()
		}(), nil, bad, "not in the schema"},
		{"dictionary offsets beyond", dict().i32(1, 1, 1<<20).bytes(), nil, bad, ""},
		{"dictionary delta first", func() []byte {
			w := openWire(deltaStream(t), headerDictionary) // the last of them is a delta
			return eos(frameMessages(w.msgs[0], *w.m))
		}(), nil, bad, "delta comes before"},
		{"dictionaries beyond the limit", func() []byte {
			m := splitStream(deltaStream(t))
			out := []wireMessage{m[0], m[1]}
			for range 3000 {
				out = append(out, m[3])
			}
			return eos(frameMessages(out...))
		}(), &ArrowLimits{MaxBodyBytes: 1 << 20}, large, "dictionaries hold"},
		{"a delta before every batch", func() []byte {
			m := splitStream(deltaStream(t))
			out := m[:3:3]
			for range 2000 {
				out = append(out, m[3], m[4])
			}
			return eos(frameMessages(out...))
		}(), &ArrowLimits{MaxBodyBytes: 4 << 20}, large, "deltas had"},
		{"uint8 rows beyond the body", rec(u8, 6).rows(1<<20).node(0, 1<<20).nulls(0, 0).bytes(), nil, bad, "need more"},
	}
}

// deltaStream is schema, dictionary, batch, delta, batch.
func deltaStream(t testing.TB) []byte {
	dt := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	mem := memory.DefaultAllocator
	a := recordOf(dictionaryArray(dt, jsonArray(t, mem, arrow.PrimitiveTypes.Int8, `[0]`), jsonArray(t, mem, arrow.BinaryTypes.String, `["a"]`)))
	b := recordOf(dictionaryArray(dt, jsonArray(t, mem, arrow.PrimitiveTypes.Int8, `[1]`), jsonArray(t, mem, arrow.BinaryTypes.String, `["a", "b"]`)))
	return writeStream(t, mem, a.Schema(), []arrow.Record{a, b}, ipc.WithDictionaryDeltas(true))
}

func TestArrowHostile(t *testing.T) {
	const ceiling = 64 << 20
	for _, tt := range hostileStreams(t) {
		t.Run(tt.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			var err error
			start := time.Now()
			got := allocated(func() { _, err = readAll(bytes.NewReader(tt.data), tt.lim, mem) })
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.words)
			}
			if tt.want == io.ErrUnexpectedEOF && !errors.Is(err, ErrArrowCorrupt) {
				t.Errorf("error %v, want ErrArrowCorrupt as well", err)
			}
			if got > ceiling {
				t.Errorf("%d bytes of input cost %d bytes of memory", len(tt.data), got)
			}
			if d := time.Since(start); d > time.Minute {
				t.Errorf("%d bytes of input cost %v", len(tt.data), d)
			}
			if testing.Verbose() {
				t.Logf("%d bytes in, %d allocated: %v", len(tt.data), got, err)
			}
		})
	}
}

// TestArrowDeltaMerge reads a delta whose batch refers to both parts.
func TestArrowDeltaMerge(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	got, err := readAll(bytes.NewReader(deltaStream(t)), nil, mem)
	if err != nil || len(got) != 2 || got[1][0] != "c0[0] b" {
		t.Errorf("read %v, error %v", got, err)
	}
}
