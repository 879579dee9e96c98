package rpc

import (
	"encoding/binary"
	"unicode/utf8"
)

// The slots and numbers below come from the Arrow format's Message.fbs, Schema.fbs (apache-arrow 17). arrow/go keeps its
// generated accessors internal, and they trust every offset, so the metadata is walked here by hand, bounds first.
const (
	metaVersionV4 = 3
	metaVersionV5 = 4

	headerSchema     = 1
	headerDictionary = 2
	headerRecord     = 3

	fbTypeUnion  = 14
	fbTypeStamp  = 10
	fbTypeRunEnd = 22

	compressionLZ4  = 0
	compressionZstd = 1
)

// flatReader reads one flatbuffer without trusting an offset in it. The first access out of bounds sets bad; from then on
// every access reads zero, so a walk needs to look at bad only where it loops or allocates, and once at its end.
type flatReader struct {
	b   []byte
	bad bool
}

func (f *flatReader) have(pos, n int) bool {
	if pos < 0 || n < 0 || pos > len(f.b)-n {
		f.bad = true
	}
	return !f.bad
}

func (f *flatReader) u8(pos int) uint8 {
	if !f.have(pos, 1) {
		return 0
	}
	return f.b[pos]
}

func (f *flatReader) u16(pos int) uint16 {
	if !f.have(pos, 2) {
		return 0
	}
	return binary.LittleEndian.Uint16(f.b[pos:])
}

func (f *flatReader) u32(pos int) uint32 {
	if !f.have(pos, 4) {
		return 0
	}
	return binary.LittleEndian.Uint32(f.b[pos:])
}

func (f *flatReader) i64(pos int) int64 {
	if !f.have(pos, 8) {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(f.b[pos:]))
}

// follow returns the position an unsigned offset stored at pos points to. Such an offset can only point forward, so a
// chain of them ends; that many can share one target is for the caller to bound.
func (f *flatReader) follow(pos int) int {
	off := f.u32(pos)
	if off < 4 || int64(pos)+int64(off) >= int64(len(f.b)) {
		f.bad = true
		return 0
	}
	return pos + int(off)
}

// table opens the table at pos and checks its vtable. The table's own length, which the vtable holds as well, says
// nothing: the builder for Go lets tables of several lengths share one vtable.
func (f *flatReader) table(pos int) flatTable {
	vt := int(int64(pos) - int64(int32(f.u32(pos))))
	vlen := int(f.u16(vt))
	if f.bad || vlen < 4 || vlen%2 != 0 || !f.have(vt, vlen) {
		f.bad = true
		return flatTable{f: f}
	}
	return flatTable{f: f, pos: pos, vt: vt, vlen: vlen}
}

// flatTable is one table of a flatbuffer. Its zero vlen means every field is absent.
type flatTable struct {
	f             *flatReader
	pos, vt, vlen int
}

// at returns where the field of size bytes in the vtable's slot lies, or 0 if it is absent.
func (t flatTable) at(slot, size int) int {
	if t.f.bad || slot+2 > t.vlen {
		return 0
	}
	off := int(t.f.u16(t.vt + slot))
	if off == 0 {
		return 0
	}
	if off < 4 || !t.f.have(t.pos+off, size) {
		t.f.bad = true
		return 0
	}
	return t.pos + off
}

func (t flatTable) u8(slot int) uint8 {
	if p := t.at(slot, 1); p != 0 {
		return t.f.u8(p)
	}
	return 0
}

func (t flatTable) i16(slot int) int16 {
	if p := t.at(slot, 2); p != 0 {
		return int16(t.f.u16(p))
	}
	return 0
}

func (t flatTable) i64(slot int) int64 {
	if p := t.at(slot, 8); p != 0 {
		return t.f.i64(p)
	}
	return 0
}

// child opens the table the slot refers to; ok is false if the field is absent.
func (t flatTable) child(slot int) (c flatTable, ok bool) {
	p := t.at(slot, 4)
	if p == 0 {
		return flatTable{f: t.f}, false
	}
	c = t.f.table(t.f.follow(p))
	return c, !t.f.bad
}

// vector returns the position of the first of n elements of size bytes, all of them inside the buffer.
func (t flatTable) vector(slot, size int) (pos, n int) {
	p := t.at(slot, 4)
	if p == 0 {
		return 0, 0
	}
	p = t.f.follow(p)
	count := int64(t.f.u32(p))
	if t.f.bad || count*int64(size) > int64(len(t.f.b)-p-4) {
		t.f.bad = true
		return 0, 0
	}
	return p + 4, int(count)
}

// str returns the string of a slot, in place.
func (t flatTable) str(slot int) []byte {
	p, n := t.vector(slot, 1)
	return t.f.b[p : p+n]
}

// arrowMessage is the part of a Message table that every kind shares.
type arrowMessage struct {
	version int16
	kind    uint8
	header  flatTable
	body    int64 // bytes
}

// parseArrowMessage opens the flatbuffer of one message. The result points into meta.
func parseArrowMessage(meta []byte) (arrowMessage, error) {
	f := &flatReader{b: meta}
	t := f.table(f.follow(0))
	m := arrowMessage{version: t.i16(4), kind: t.u8(6), body: t.i64(10)}
	var ok bool
	m.header, ok = t.child(8)
	switch {
	case f.bad || !ok:
		return m, arrowCorrupt("message metadata is not a valid flatbuffer")
	case m.version != metaVersionV4 && m.version != metaVersionV5:
		return m, arrowCorrupt("metadata version %d is not supported, want V4 or V5", m.version+1)
	case m.body < 0:
		return m, arrowCorrupt("message body length is %d", m.body)
	}
	return m, nil
}

// arrowField is the shape of one field of the schema: what a batch's nodes and buffers are matched against, with
// arrow/go's type, and which arrow/go does not tell, the dictionary's id.
type arrowField struct {
	dict     bool
	dictID   int64
	children []*arrowField
}

// arrowShape is the shape of a whole schema.
type arrowShape struct {
	fields []*arrowField
	v5only bool // has a type whose layout differs before V5
}

// parseArrowSchema walks a Schema table before arrow/go sees it, since arrow/go recurses into it without a limit and
// allocates what its vectors announce. The walk is iterative; nesting, fields and the bytes they cost are bounded. One
// flatbuffer can refer to the same field or string many times, so what counts is visits, not positions.
func parseArrowSchema(t flatTable, lim *arrowCaps) (*arrowShape, error) {
	type visit struct {
		pos, depth int
		into       *arrowField
	}
	var (
		f     = t.f
		shape arrowShape
		root  arrowField
		stack []visit
		count int
		cost  int64 // bytes arrow/go will copy out of the metadata
	)
	if t.i16(4) != 0 {
		return nil, arrowCorrupt("big-endian data is not supported")
	}
	push := func(t flatTable, slot, depth int, into *arrowField) error {
		pos, n := t.vector(slot, 4)
		if count += n; count > lim.fields {
			return arrowTooLarge("MaxFields", "schema has %d fields or more", int64(count), int64(lim.fields))
		}
		if n > 0 && depth > lim.depth {
			return arrowTooLarge("MaxDepth", "schema is nested %d deep or more", int64(depth), int64(lim.depth))
		}
		into.children = make([]*arrowField, n)
		for i := n - 1; i >= 0; i-- {
			into.children[i] = new(arrowField)
			stack = append(stack, visit{f.follow(pos + 4*i), depth, into.children[i]})
		}
		return nil
	}
	pairs := func(t flatTable, slot int) {
		pos, n := t.vector(slot, 4)
		for i := 0; i < n && !f.bad && cost <= lim.strings; i++ {
			kv := f.table(f.follow(pos + 4*i))
			cost += 32 + int64(len(kv.str(4))+len(kv.str(6)))
		}
	}
	if err := push(t, 6, 1, &root); err != nil {
		return nil, err
	}
	pairs(t, 8)
	for len(stack) > 0 && !f.bad && cost <= lim.strings {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		field := f.table(v.pos)
		name := field.str(4)
		cost += 16 + int64(len(name))
		if !utf8.Valid(name) {
			return nil, arrowCorrupt("a field's name is not UTF-8")
		}
		pairs(field, 16)
		if enc, ok := field.child(12); ok {
			v.into.dict, v.into.dictID = true, enc.i64(4)
		}
		typ, ok := field.child(10)
		if !ok {
			return nil, arrowCorrupt("field %.64q has no type", name)
		}
		switch field.u8(8) {
		case fbTypeUnion:
			shape.v5only = true
			if _, n := typ.vector(6, 4); n > 128 {
				return nil, arrowCorrupt("union %.64q has %d type ids", name, n)
			}
		case fbTypeRunEnd:
			shape.v5only = true
		case fbTypeStamp:
			cost += int64(len(typ.str(6)))
		}
		if err := push(field, 14, v.depth+1, v.into); err != nil {
			return nil, err
		}
	}
	if f.bad {
		return nil, arrowCorrupt("schema is not a valid flatbuffer")
	}
	if cost > lim.strings {
		return nil, arrowTooLarge("MaxMetadataBytes", "schema's names and metadata are %d bytes or more", cost, lim.strings)
	}
	shape.fields = root.children
	return &shape, nil
}

// arrowBatch is a RecordBatch table: its rows, and where its nodes and buffers lie in the metadata.
type arrowBatch struct {
	f                         *flatReader
	rows                      int64
	node, nodes               int
	buf, bufs                 int
	view, views               int
	compressed                bool
	codec                     int8
	lastBuf, lastNode, lastVC int // how many have been taken
}

// parseArrowBatch opens a RecordBatch table.
func parseArrowBatch(t flatTable, lim *arrowCaps) (*arrowBatch, error) {
	b := &arrowBatch{f: t.f, rows: t.i64(4)}
	b.node, b.nodes = t.vector(6, 16)
	b.buf, b.bufs = t.vector(8, 16)
	b.view, b.views = t.vector(12, 8)
	if c, ok := t.child(10); ok {
		b.compressed, b.codec = true, int8(c.u8(4))
		if method := c.u8(6); method != 0 {
			return nil, arrowCorrupt("compression method %d is not supported", method)
		}
		if b.codec != compressionLZ4 && b.codec != compressionZstd {
			return nil, arrowCorrupt("compression codec %d is not supported", b.codec)
		}
	}
	switch {
	case t.f.bad:
		return nil, arrowCorrupt("batch metadata is not a valid flatbuffer")
	case b.rows < 0:
		return nil, arrowCorrupt("batch has %d rows", b.rows)
	case b.rows > lim.rows:
		return nil, arrowTooLarge("MaxBatchRows", "batch has %d rows", b.rows, lim.rows)
	}
	return b, nil
}

// nextNode takes the next field node: how many values an array has, and how many of them are null.
func (b *arrowBatch) nextNode(lim *arrowCaps) (length, nulls int, err error) {
	if b.lastNode >= b.nodes {
		return 0, 0, arrowCorrupt("batch has %d field nodes, its schema needs more", b.nodes)
	}
	p := b.node + 16*b.lastNode
	b.lastNode++
	n, z := b.f.i64(p), b.f.i64(p+8)
	if n < 0 || z < 0 || z > n {
		return 0, 0, arrowCorrupt("field node says %d values, %d of them null", n, z)
	}
	if n > lim.values {
		return 0, 0, arrowTooLarge("MaxBodyBytes", "field node says %d values", n, lim.values)
	}
	return int(n), int(z), nil
}

// nextBuffer takes the next buffer: where it lies in the body.
func (b *arrowBatch) nextBuffer() (off, n int64, err error) {
	if b.lastBuf >= b.bufs {
		return 0, 0, arrowCorrupt("batch has %d buffers, its schema needs more", b.bufs)
	}
	p := b.buf + 16*b.lastBuf
	b.lastBuf++
	return b.f.i64(p), b.f.i64(p + 8), nil
}

// nextViews takes the next count of data buffers of a view column.
func (b *arrowBatch) nextViews() (int, error) {
	if b.lastVC >= b.views {
		return 0, arrowCorrupt("batch has %d variadic buffer counts, its schema needs more", b.views)
	}
	n := b.f.i64(b.view + 8*b.lastVC)
	b.lastVC++
	if n < 0 || n > int64(b.bufs-b.lastBuf) {
		return 0, arrowCorrupt("variadic buffer count is %d, batch has %d buffers", n, b.bufs)
	}
	return int(n), nil
}

// done checks that the schema used all that the batch holds.
func (b *arrowBatch) done() error {
	if b.lastNode != b.nodes || b.lastBuf != b.bufs || b.lastVC != b.views {
		return arrowCorrupt("batch has %d nodes, %d buffers and %d variadic counts, its schema uses %d, %d and %d",
			b.nodes, b.bufs, b.views, b.lastNode, b.lastBuf, b.lastVC)
	}
	return nil
}
