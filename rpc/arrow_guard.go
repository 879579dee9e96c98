package rpc

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
)

// maxCheckDepth bounds the recursion of [CheckRecord] into types built in memory; a stream's depth is bounded before.
const maxCheckDepth = 1000

// CheckRecord reports whether every value of rec can be read without a panic or a wrong answer, which arrow/go (v17)
// takes on trust. [ArrowReader] has already done this for what it hands out; use it for records from elsewhere.
//
//   - Shapes: every column as long as the record; buffers long enough for their rows; null counts that match the bitmap;
//     offsets rising and inside the data, views, list views, dictionary indices and union type ids in range; run ends rising
//     and covering the rows; strings UTF-8. Null slots may hold any index or view, but not any offset. Dictionaries and
//     children are checked too. Decimals must have a precision and scale arrow/go can print, timestamps a known time zone
//     (on a host without a zone database: one that looks like a zone).
//   - Units: one pass over the offsets, indices, views, bitmaps and string bytes; other values are not touched. Next to
//     nothing is allocated.
//   - Errors: [ErrArrowCorrupt], naming the column.
//   - Source: Arrow columnar format, "Physical Memory Layout"; arrow C++ 17 array/validate.cc for what ValidateFull checks.
func CheckRecord(rec arrow.Record) (err error) {
	defer recoverArrow(&err)
	schema := rec.Schema()
	if int64(schema.NumFields()) != rec.NumCols() {
		return arrowCorrupt("record has %d columns, its schema %d", rec.NumCols(), schema.NumFields())
	}
	c := arrowChecker{types: true, dicts: true}
	for i, col := range rec.Columns() {
		f := schema.Field(i)
		if int64(col.Len()) != rec.NumRows() {
			return arrowCorrupt("column %.64q has %d rows, its record %d", f.Name, col.Len(), rec.NumRows())
		}
		if !arrow.TypeEqual(f.Type, col.DataType()) {
			return arrowCorrupt("column %.64q is %s, its schema says %s", f.Name, col.DataType(), f.Type)
		}
		if err := c.check(col.Data(), 0); err != nil {
			return arrowWithin(err, "column %.64q", f.Name)
		}
	}
	return nil
}

// arrowChecker checks array data. Its zero value leaves out what a reader checks once a stream instead of once a batch.
type arrowChecker struct {
	types bool // check the types' parameters
	dicts bool // check the dictionaries' values
}

// check checks one array and what is below it.
func (c *arrowChecker) check(d arrow.ArrayData, depth int) error {
	if depth > maxCheckDepth {
		return arrowCorrupt("nested deeper than %d", maxCheckDepth)
	}
	dt := storageOf(d.DataType())
	if c.types {
		if err := checkType(dt); err != nil {
			return err
		}
	}
	n, off := d.Len(), d.Offset()
	if n < 0 || off < 0 || off > math.MaxInt-n-64 {
		return arrowCorrupt("%s array has offset %d and length %d", dt.Name(), off, n)
	}
	a := arrowData{d: d, dt: dt, off: off, n: n}
	if err := a.checkBitmap(); err != nil {
		return err
	}
	if err := a.checkValues(c.dicts); err != nil {
		return err
	}
	for _, child := range d.Children() {
		if err := c.check(child, depth+1); err != nil {
			return err
		}
	}
	if _, ok := dt.(*arrow.DictionaryType); ok && c.dicts {
		if dict := dictOf(d); dict != nil {
			return c.check(dict, depth+1)
		}
	}
	return nil
}

func storageOf(dt arrow.DataType) arrow.DataType {
	for {
		ext, ok := dt.(arrow.ExtensionType)
		if !ok {
			return dt
		}
		dt = ext.StorageType()
	}
}

// dictOf returns the dictionary of d, nil without the type that hides it.
func dictOf(d arrow.ArrayData) arrow.ArrayData {
	if dict, ok := d.Dictionary().(*array.Data); ok && dict != nil {
		return dict
	}
	return nil
}

// checkType refuses parameters that arrow/go accepts and later panics on.
func checkType(dt arrow.DataType) error {
	switch dt := dt.(type) {
	case *arrow.Decimal128Type:
		return checkDecimal(dt, dt.Precision, dt.Scale, 38)
	case *arrow.Decimal256Type:
		return checkDecimal(dt, dt.Precision, dt.Scale, 76)
	case *arrow.FixedSizeBinaryType:
		if dt.ByteWidth < 0 {
			return arrowCorrupt("fixed size binary has width %d", dt.ByteWidth)
		}
	case *arrow.TimestampType:
		return checkZone(dt)
	}
	return nil
}

func checkDecimal(dt arrow.DataType, precision, scale, most int32) error {
	if precision < 1 || precision > most || scale < -most || scale > most {
		return arrowCorrupt("%s has a precision or scale beyond %d", dt.Name(), most)
	}
	return nil
}

// checkZone refuses a time zone arrow/go cannot resolve, as its Timestamp.ValueStr then calls a nil function. A host may
// have no zone database (a small container; import time/tzdata to bring one): there a name that could be one passes.
func checkZone(dt *arrow.TimestampType) error {
	if len(dt.TimeZone) <= 64 {
		if _, err := dt.GetZone(); err == nil {
			return nil
		}
		if _, err := time.LoadLocation("Europe/London"); err != nil && zoneLike(dt.TimeZone) {
			return nil
		}
	}
	return arrowCorrupt("time zone %.64q is not known here", dt.TimeZone)
}

func zoneLike(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && (c >= '0' && c <= '9' || c == '/' || c == '_' || c == '-' || c == '+') {
			continue
		}
		return false
	}
	return true
}

// arrowData is one array under check: n values from off on.
type arrowData struct {
	d      arrow.ArrayData
	dt     arrow.DataType
	off, n int
}

// bytes returns the i-th buffer, empty if there is none.
func (a *arrowData) bytes(i int) []byte {
	if bufs := a.d.Buffers(); i < len(bufs) && bufs[i] != nil {
		return bufs[i].Bytes()
	}
	return nil
}

func (a *arrowData) null(i int) bool {
	bm := a.bytes(0)
	return len(bm) > 0 && !bitutil.BitIsSet(bm, a.off+i)
}

// need checks that the i-th buffer holds count values of width bytes.
func (a *arrowData) need(i, count, width int) error {
	if b := a.bytes(i); width > 0 && len(b)/width < count {
		return arrowCorrupt("%s buffer has %d bytes, %d values of %d bytes need more", a.dt.Name(), len(b), count, width)
	}
	return nil
}

// child returns the i-th child, which must be there.
func (a *arrowData) child(i int) (arrow.ArrayData, error) {
	if kids := a.d.Children(); i < len(kids) && kids[i] != nil {
		return kids[i], nil
	}
	return nil, arrowCorrupt("%s array has %d children", a.dt.Name(), len(a.d.Children()))
}

func (a *arrowData) checkBitmap() error {
	nulls := a.d.NullN()
	if nulls < array.UnknownNullCount || nulls > a.n {
		return arrowCorrupt("%s array has %d values and %d nulls", a.dt.Name(), a.n, nulls)
	}
	if _, ok := a.dt.(*arrow.NullType); ok {
		return nil
	}
	bufs := a.d.Buffers()
	if len(bufs) == 0 || bufs[0] == nil || bufs[0].Bytes() == nil {
		if nulls > 0 {
			return arrowCorrupt("%s array has %d nulls and no validity bitmap", a.dt.Name(), nulls)
		}
		return nil
	}
	bm := bufs[0].Bytes()
	if len(bm) < (a.off+a.n+7)/8 {
		return arrowCorrupt("%s validity bitmap has %d bytes, %d values need more", a.dt.Name(), len(bm), a.off+a.n)
	}
	if nulls < 0 {
		return nil
	}
	if got := a.n - bitutil.CountSetBits(bm, a.off, a.n); got != nulls {
		return arrowCorrupt("%s array says %d nulls, its bitmap %d", a.dt.Name(), nulls, got)
	}
	return nil
}

// checkValues checks what lies in the array itself, and how long its children are.
func (a *arrowData) checkValues(dicts bool) error {
	if want := bufferCount(a.dt); len(a.d.Buffers()) < want {
		return arrowCorrupt("%s array has %d buffers, want %d", a.dt.Name(), len(a.d.Buffers()), want)
	}
	switch dt := a.dt.(type) {
	case *arrow.NullType:
		return nil
	case *arrow.BooleanType:
		return a.need(1, (a.off+a.n+7)/8, 1)
	case *arrow.DictionaryType:
		return a.checkDictionary(dt)
	case arrow.BinaryViewDataType:
		return a.checkViews(dt.IsUtf8())
	case *arrow.StringType, *arrow.BinaryType:
		return checkBinary[int32](a, a.dt.ID() == arrow.STRING)
	case *arrow.LargeStringType, *arrow.LargeBinaryType:
		return checkBinary[int64](a, a.dt.ID() == arrow.LARGE_STRING)
	case *arrow.MapType:
		if err := a.checkMap(); err != nil {
			return err
		}
		return checkList[int32](a)
	case *arrow.ListType:
		return checkList[int32](a)
	case *arrow.LargeListType:
		return checkList[int64](a)
	case *arrow.ListViewType:
		return checkListView[int32](a)
	case *arrow.LargeListViewType:
		return checkListView[int64](a)
	case *arrow.FixedSizeListType:
		child, err := a.child(0)
		if err != nil {
			return err
		}
		if size := int(dt.Len()); size > 0 && child.Len()/size < a.off+a.n {
			return arrowCorrupt("fixed size list of %d by %d has %d child values", a.off+a.n, size, child.Len())
		}
		return nil
	case *arrow.StructType:
		return a.checkChildren(dt.NumFields())
	case *arrow.SparseUnionType:
		if err := a.checkChildren(dt.NumFields()); err != nil {
			return err
		}
		return a.checkUnion(dt)
	case *arrow.DenseUnionType:
		return a.checkUnion(dt)
	case *arrow.RunEndEncodedType:
		return a.checkRunEnds()
	case arrow.FixedWidthDataType:
		return a.need(1, a.off+a.n, dt.BitWidth()/8)
	}
	return arrowCorrupt("type %s is not supported", a.dt.Name())
}

// bufferCount is how many buffers arrow/go indexes into without looking.
func bufferCount(dt arrow.DataType) int {
	switch dt.(type) {
	case *arrow.NullType, *arrow.RunEndEncodedType:
		return 0
	case *arrow.StructType, *arrow.FixedSizeListType:
		return 1
	case arrow.BinaryViewDataType:
		return 2
	case arrow.BinaryDataType, *arrow.ListViewType, *arrow.LargeListViewType, *arrow.DenseUnionType:
		return 3
	}
	return 2
}

// checkChildren checks that there are want children, each covering the parent.
func (a *arrowData) checkChildren(want int) error {
	kids := a.d.Children()
	if len(kids) != want {
		return arrowCorrupt("%s array has %d children, its type %d", a.dt.Name(), len(kids), want)
	}
	for _, kid := range kids {
		if kid == nil || kid.Len() < a.off+a.n {
			return arrowCorrupt("%s array of %d values has a child that is shorter", a.dt.Name(), a.off+a.n)
		}
	}
	return nil
}

// checkMap checks what arrow/go's Map constructor panics on.
func (a *arrowData) checkMap() error {
	pairs, err := a.child(0)
	if err != nil {
		return err
	}
	if pairs.DataType().ID() != arrow.STRUCT || len(pairs.Children()) != 2 || pairs.NullN() != 0 {
		return arrowCorrupt("map entries are not structs of two without nulls")
	}
	if pairs.Children()[0].NullN() != 0 {
		return arrowCorrupt("map has null keys")
	}
	return nil
}

// arrowOffset is the type of a position in the format.
type arrowOffset interface{ int32 | int64 }

// arrowInt is what offsets, indices and run ends are made of.
type arrowInt interface {
	int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64
}

// castSlice views b as a slice of T, without the bytes that do not make a whole one.
func castSlice[T arrowInt](b []byte) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/sizeOf[T]())
}

func sizeOf[T arrowInt]() int {
	var z T
	return int(unsafe.Sizeof(z))
}

// offsetsOf returns the offsets of an array, one more than it has values, checked to rise from zero or more to no more
// than limit; nil for an array without values.
func offsetsOf[T arrowOffset](a *arrowData, limit int) ([]T, error) {
	if a.n == 0 {
		return nil, nil
	}
	if err := a.need(1, a.off+a.n+1, sizeOf[T]()); err != nil {
		return nil, err
	}
	offs := castSlice[T](a.bytes(1))[a.off : a.off+a.n+1]
	if !risingOffsets(offs) {
		return nil, arrowCorrupt("%s offsets do not rise", a.dt.Name())
	}
	if last := offs[a.n]; uint64(last) > uint64(limit) {
		return nil, arrowCorrupt("%s offset %d is beyond its %d values", a.dt.Name(), last, limit)
	}
	return offs, nil
}

// risingOffsets reports whether offs starts at zero or more and never falls. Values and differences are or-ed, so that one look
// at the sign tells all: where no value is negative no difference can overflow. Two sums let the loads overlap.
func risingOffsets[T arrowOffset](offs []T) bool {
	var a, b T
	i := 0
	for ; i+4 < len(offs); i += 4 {
		s := offs[i : i+5 : i+5]
		a |= s[0] | (s[1] - s[0]) | (s[2] - s[1])
		b |= s[2] | (s[3] - s[2]) | (s[4] - s[3])
		a |= s[1]
		b |= s[3]
	}
	for ; i < len(offs); i++ {
		a |= offs[i]
		if i+1 < len(offs) {
			a |= offs[i+1] - offs[i]
		}
	}
	return a|b >= 0
}

func checkBinary[T arrowOffset](a *arrowData, text bool) error {
	data := a.bytes(2)
	offs, err := offsetsOf[T](a, len(data))
	if err != nil || offs == nil || !text {
		return err
	}
	all := data[offs[0]:offs[a.n]]
	if isASCII(all) {
		return nil
	}
	if utf8.Valid(all) {
		whole := true
		for _, o := range offs[:a.n] {
			whole = whole && (int(o) == len(data) || utf8.RuneStart(data[o]))
		}
		if whole {
			return nil
		}
	}
	// Not valid as a whole, which garbage in null slots may cause.
	for i := range a.n {
		if !utf8.Valid(data[offs[i]:offs[i+1]]) && !a.null(i) {
			return arrowCorrupt("%s value %d is not UTF-8", a.dt.Name(), i)
		}
	}
	return nil
}

// isASCII reports whether b has no byte above 127.
func isASCII(b []byte) bool {
	var acc uint64
	for len(b) >= 32 {
		acc |= binary.LittleEndian.Uint64(b) | binary.LittleEndian.Uint64(b[8:]) |
			binary.LittleEndian.Uint64(b[16:]) | binary.LittleEndian.Uint64(b[24:])
		b = b[32:]
	}
	var tail byte
	for _, c := range b {
		tail |= c
	}
	return acc&0x8080808080808080 == 0 && tail < utf8.RuneSelf
}

func (a *arrowData) checkViews(text bool) error {
	if err := a.need(1, a.off+a.n, arrow.ViewHeaderSizeBytes); err != nil || a.n == 0 {
		return err
	}
	bufs := a.d.Buffers()[2:]
	for _, b := range bufs {
		if b == nil {
			return arrowCorrupt("%s array lacks a data buffer", a.dt.Name())
		}
	}
	views := arrow.ViewHeaderTraits.CastFromBytes(a.bytes(1))[a.off : a.off+a.n]
	for i := range views {
		v := &views[i]
		value, ok := viewed(v, func(j int) []byte { return bufs[j].Bytes() }, len(bufs))
		if ok && (!text || utf8.Valid(value)) || a.null(i) {
			continue
		}
		if !ok {
			return arrowCorrupt("%s value %d points outside its buffers", a.dt.Name(), i)
		}
		return arrowCorrupt("%s value %d is not UTF-8", a.dt.Name(), i)
	}
	return nil
}

// viewed returns the bytes a view points to.
func viewed(v *arrow.ViewHeader, buf func(int) []byte, bufs int) ([]byte, bool) {
	n := v.Len()
	if n < 0 {
		return nil, false
	}
	if v.IsInline() {
		return v.InlineBytes(), true
	}
	j, off := int(v.BufferIndex()), int(v.BufferOffset())
	if j < 0 || j >= bufs || off < 0 {
		return nil, false
	}
	b := buf(j)
	if off > len(b) || n > len(b)-off {
		return nil, false
	}
	b = b[off : off+n]
	return b, [4]byte(b) == v.Prefix()
}

func checkList[T arrowOffset](a *arrowData) error {
	child, err := a.child(0)
	if err != nil {
		return err
	}
	_, err = offsetsOf[T](a, child.Len())
	return err
}

func checkListView[T arrowOffset](a *arrowData) error {
	child, err := a.child(0)
	if err != nil || a.n == 0 {
		return err
	}
	for i := 1; i <= 2; i++ {
		if err := a.need(i, a.off+a.n, sizeOf[T]()); err != nil {
			return err
		}
	}
	offs := castSlice[T](a.bytes(1))[a.off : a.off+a.n]
	sizes := castSlice[T](a.bytes(2))[a.off : a.off+a.n]
	limit := int64(child.Len())
	for i := range offs {
		if o, s := int64(offs[i]), int64(sizes[i]); o < 0 || s < 0 || o > limit || s > limit-o {
			return arrowCorrupt("%s value %d is outside its %d child values", a.dt.Name(), i, child.Len())
		}
	}
	return nil
}

func (a *arrowData) checkDictionary(dt *arrow.DictionaryType) error {
	width, ok := dt.IndexType.(arrow.FixedWidthDataType)
	if !ok {
		return arrowCorrupt("dictionary index type is %s", dt.IndexType)
	}
	if err := a.need(1, a.off+a.n, width.BitWidth()/8); err != nil {
		return err
	}
	dict := dictOf(a.d)
	if dict == nil {
		if a.n > 0 {
			return arrowCorrupt("dictionary array has no dictionary")
		}
		return nil
	}
	if !arrow.TypeEqual(dt.ValueType, dict.DataType()) {
		return arrowCorrupt("dictionary values are %s, their type says %s", dict.DataType().Name(), dt.ValueType.Name())
	}
	if dict.Len() < 0 {
		return arrowCorrupt("dictionary has %d values", dict.Len())
	}
	switch dt.IndexType.ID() {
	case arrow.INT8:
		return checkIndices[int8](a, dict.Len())
	case arrow.INT16:
		return checkIndices[int16](a, dict.Len())
	case arrow.INT32:
		return checkIndices[int32](a, dict.Len())
	case arrow.INT64:
		return checkIndices[int64](a, dict.Len())
	case arrow.UINT8:
		return checkIndices[uint8](a, dict.Len())
	case arrow.UINT16:
		return checkIndices[uint16](a, dict.Len())
	case arrow.UINT32:
		return checkIndices[uint32](a, dict.Len())
	case arrow.UINT64:
		return checkIndices[uint64](a, dict.Len())
	}
	return arrowCorrupt("dictionary index type is %s", dt.IndexType)
}

func checkIndices[T arrowInt](a *arrowData, values int) error {
	for i, v := range castSlice[T](a.bytes(1))[a.off : a.off+a.n] {
		if uint64(v) >= uint64(values) && !a.null(i) {
			return arrowCorrupt("dictionary index %d of value %d is outside its %d values", v, i, values)
		}
	}
	return nil
}

func (a *arrowData) checkUnion(dt arrow.UnionType) error {
	kids := a.d.Children()
	if len(kids) != dt.NumFields() {
		return arrowCorrupt("%s array has %d children, its type %d", a.dt.Name(), len(kids), dt.NumFields())
	}
	if err := a.need(1, a.off+a.n, 1); err != nil || a.n == 0 {
		return err
	}
	ids := dt.ChildIDs()
	codes := castSlice[int8](a.bytes(1))[a.off : a.off+a.n]
	for i, code := range codes {
		if code < 0 || int(code) >= len(ids) || ids[code] == arrow.InvalidUnionChildID {
			return arrowCorrupt("union value %d has type id %d, which its type lacks", i, code)
		}
	}
	if dt.Mode() != arrow.DenseMode {
		return nil
	}
	if err := a.need(2, a.off+a.n, 4); err != nil {
		return err
	}
	var next [256]int32 // by child, the least offset its next value may have
	for i, o := range castSlice[int32](a.bytes(2))[a.off : a.off+a.n] {
		kid := ids[codes[i]]
		if o < next[kid] || int(o) >= kids[kid].Len() {
			return arrowCorrupt("union value %d has offset %d, out of order or outside its child's %d values", i, o, kids[kid].Len())
		}
		next[kid] = o
	}
	return nil
}

func (a *arrowData) checkRunEnds() error {
	if len(a.d.Children()) != 2 {
		return arrowCorrupt("run-end encoded array has %d children", len(a.d.Children()))
	}
	ends, values := a.d.Children()[0], a.d.Children()[1]
	if ends.NullN() != 0 {
		return arrowCorrupt("run ends have nulls")
	}
	if values.Len() < ends.Len() {
		return arrowCorrupt("%d run ends have %d values", ends.Len(), values.Len())
	}
	e := arrowData{d: ends, dt: ends.DataType(), off: ends.Offset(), n: ends.Len()}
	switch ends.DataType().ID() {
	case arrow.INT16:
		return checkRuns[int16](&e, a.off+a.n)
	case arrow.INT32:
		return checkRuns[int32](&e, a.off+a.n)
	case arrow.INT64:
		return checkRuns[int64](&e, a.off+a.n)
	}
	return arrowCorrupt("run ends are %s", ends.DataType())
}

func checkRuns[T int16 | int32 | int64](e *arrowData, rows int) error {
	if e.off < 0 || e.n < 0 || e.off > math.MaxInt-e.n {
		return arrowCorrupt("run ends have offset %d and length %d", e.off, e.n)
	}
	if err := e.need(1, e.off+e.n, sizeOf[T]()); err != nil {
		return err
	}
	var last T
	if e.n > 0 {
		for i, end := range castSlice[T](e.bytes(1))[e.off : e.off+e.n] {
			if end <= last {
				return arrowCorrupt("run end %d is %d, the one before is %d", i, end, last)
			}
			last = end
		}
	}
	if int64(last) < int64(rows) {
		return arrowCorrupt("run ends cover %d of %d rows", last, rows)
	}
	return nil
}
