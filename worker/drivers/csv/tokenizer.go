package csv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"unicode/utf8"
)

const (
	// maxRowBytes bounds the memory of one row.
	maxRowBytes = 64 << 20

	blockBytes = 512 << 10 // read at once; small enough for the processor's cache
	blockSpans = 512 << 10 // most fields in a block
)

// dialect is how the bytes of a file are cut into rows.
type dialect struct {
	delimiter  byte
	comment    byte // 0: none
	keepBlank  bool // blank lines are rows of missing values
	skipLines  int64
	badLines   badLines
	dropExtra  bool // fields beyond the width are dropped, not an error
	dropFirst  bool // in the first data row, too
	checkUTF8  bool // the bytes are text as they come: check them
	checkASCII bool
}

type badLines int

const (
	badError badLines = iota
	badSkip
	badWarn
)

// span is one field: the bytes [start, end) of the block's buffer.
type span struct{ start, end uint32 }

// rawFlag marks, in span.end, a field whose quotes are still in place.
const rawFlag = 1 << 31

// block is some complete rows: width fields for each. It is valid until the
// tokenizer's next call.
type block struct {
	buf   []byte
	spans []span
	lines []int64 // the file line each row starts in, from 1
	rows  int
	width int
}

// text returns a field of the block.
func (b *block) text(row, col int) []byte {
	s := b.spans[row*b.width+col]
	return b.buf[s.start:s.end]
}

// tokenizer cuts a stream into rows as the tokenizer of pandas' C engine does
// (pandas 3.1.1, pandas/_libs/src/parser/tokenizer.cpp).
type tokenizer struct {
	dialect
	src      io.Reader
	fillSize int // bytes to read at once; at least 16
	warn     func(line int64, want, have int)

	buf    []byte // data is buf[:n]; a sentinel and room for wide reads follow
	n      int
	pos    int // start of the next record
	carry  []byte
	srcErr error // io.EOF, or why the data ends at n

	started bool  // data has been read
	width   int   // fields in a row; -1 until known
	first   bool  // no data row has been seen yet
	bare    bool  // there is no header: the first row has the width
	line    int64 // complete lines
	skipped int64
	spans   []span
	lines   []int64
	storage *storage // of the block, when it has its own
}

// storage is the memory of one block.
type storage struct {
	buf   []byte
	spans []span
	lines []int64
}

// use makes s the memory of the next block. The block before keeps its own.
func (t *tokenizer) use(s *storage) {
	left := t.buf[t.pos:t.n]
	if need := len(left) + t.fillSize + len(t.carry) + 2*wide; len(s.buf) < need {
		s.buf = make([]byte, need+wide) // a little more, since what is left differs
	}
	n := copy(s.buf, left)
	s.buf[n] = '\n' // the sentinel
	t.pos, t.n = 0, n
	t.buf, s.buf = s.buf, nil
	t.spans, t.lines = s.spans, s.lines
	t.storage = s
}

func newTokenizer(src io.Reader, d dialect) *tokenizer {
	return &tokenizer{dialect: d, src: src, width: -1, first: true, fillSize: blockBytes}
}

// parseError is a file that is no CSV table. The words are pandas' where it has
// some, so that they can be searched for.
type parseError string

func (e parseError) Error() string { return string(e) }

func parseErrorf(format string, args ...any) error { return parseError(fmt.Sprintf(format, args...)) }

// errMore is scan's result when the data ends within a record.
var errMore = errors.New("more data needed")

// next returns up to limit rows. At the end it returns io.EOF and no block.
func (t *tokenizer) next(limit int) (*block, error) {
	t.spans, t.lines = t.spans[:0], t.lines[:0]
	for {
		err := t.scan(min(limit, max(1, blockSpans/max(1, t.width))))
		if rows := len(t.lines); rows > 0 && (err == nil || errors.Is(err, errMore)) {
			if t.storage != nil {
				*t.storage = storage{t.buf, t.spans, t.lines}
			}
			return &block{buf: t.buf, spans: t.spans, lines: t.lines, rows: rows, width: t.width}, nil
		}
		if !errors.Is(err, errMore) {
			return nil, err
		}
		if err := t.fill(); err != nil {
			return nil, err
		}
	}
}

// record returns the fields of the next record, whatever their number.
func (t *tokenizer) record() ([]string, error) {
	saved, first := t.width, t.first
	t.width, t.first = -1, true
	b, err := t.next(1)
	t.width, t.first = saved, first
	if err != nil {
		return nil, err
	}
	fields := make([]string, b.width)
	for i := range fields {
		fields[i] = string(b.text(0, i))
	}
	return fields, nil
}

// fill moves what is left to the front of the buffer and reads on.
func (t *tokenizer) fill() error {
	if t.srcErr != nil {
		return t.srcErr
	}
	left := copy(t.buf, t.buf[t.pos:t.n])
	t.pos, t.n = 0, left
	if left > maxRowBytes {
		return parseErrorf("row in line %d is longer than %d MiB", t.line+1, maxRowBytes>>20)
	}
	if need := left + t.fillSize + len(t.carry) + 2*wide; need > len(t.buf) {
		grown := make([]byte, max(need, min(2*left, maxRowBytes+t.fillSize)+2*wide))
		copy(grown, t.buf[:left])
		t.buf = grown
	}
	start := t.n
	end := start + copy(t.buf[start:], t.carry)
	t.carry = t.carry[:0]
	limit := min(len(t.buf)-2*wide, end+max(t.fillSize, left)) // a buffer may have grown for other rows
	for end < limit {
		n, err := t.src.Read(t.buf[end:limit])
		end += n
		if err != nil {
			t.srcErr = err
			break
		}
	}
	t.n = end
	if t.checkUTF8 || t.checkASCII {
		t.validate(start)
	}
	if !t.started && bytes.HasPrefix(t.buf[:t.n], []byte("\ufeff")) {
		t.pos = len("\ufeff")
	}
	t.started = true
	t.buf[t.n] = '\n' // ends every search; never taken for data
	return nil
}

// validate ends the data before the first byte from start on that is not text.
func (t *tokenizer) validate(start int) {
	fresh := t.buf[start:t.n]
	if t.checkASCII {
		if i := bytes.IndexFunc(fresh, func(r rune) bool { return r >= utf8.RuneSelf }); i >= 0 {
			t.srcErr = &encodingError{encoding: "ascii", value: fresh[i]}
			t.n = start + i
		}
		return
	}
	tail := 0
	if t.srcErr == nil {
		for tail < utf8.UTFMax && tail < len(fresh) && !utf8.RuneStart(fresh[len(fresh)-1-tail]) {
			tail++
		}
		if tail < len(fresh) {
			tail++
		}
		if utf8.FullRune(fresh[len(fresh)-tail:]) {
			tail = 0
		}
	}
	good := fresh[:len(fresh)-tail]
	if !utf8.Valid(good) {
		i := 0
		for {
			r, size := utf8.DecodeRune(good[i:])
			if r == utf8.RuneError && size <= 1 {
				break
			}
			i += size
		}
		t.srcErr = &encodingError{encoding: "utf-8", value: good[i]}
		t.n = start + i
		return
	}
	t.carry = append(t.carry[:0], fresh[len(good):]...)
	t.n = start + len(good)
}

// atEnd reports whether no byte follows the data.
func (t *tokenizer) atEnd() bool { return t.srcErr == io.EOF }

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
	lows  = 0x7f * ones

	wide = 64 // bytes that one bitmap covers
)

// bitmap returns a bit for each of the bytes that may end an unquoted field:
// the delimiter, the comment byte and all below 14, where the line ends are.
func bitmap(b *[wide]byte, delimiter, comment uint64) (m uint64) {
	for i := 0; i < wide; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		d := w ^ delimiter
		c := w ^ comment
		// A byte's high bit is clear when it is below 14, or equal to the
		// delimiter, or to the comment byte.
		clear := ((w & lows) + (0x80-14)*ones | w) & ((d & lows) + lows | d) & ((c & lows) + lows | c)
		m |= (^clear & highs >> 7) * 0x0102040810204080 >> 56 << i
	}
	return m
}

// bitmapPlain is bitmap without a comment byte, unrolled: most of the time of
// a file without quotes is spent here.
func bitmapPlain(b *[wide]byte, delimiter uint64) uint64 {
	return candidates(word(b[0:8]), delimiter) | candidates(word(b[8:16]), delimiter)<<8 |
		candidates(word(b[16:24]), delimiter)<<16 | candidates(word(b[24:32]), delimiter)<<24 |
		candidates(word(b[32:40]), delimiter)<<32 | candidates(word(b[40:48]), delimiter)<<40 |
		candidates(word(b[48:56]), delimiter)<<48 | candidates(word(b[56:64]), delimiter)<<56
}

// candidates is the part of bitmapPlain for eight bytes.
func candidates(w, delimiter uint64) uint64 {
	d := w ^ delimiter
	clear := ((w & lows) + (0x80-14)*ones | w) & ((d & lows) + lows | d)
	return (^clear & highs >> 7) * 0x0102040810204080 >> 56
}

// search returns the position of the next byte from i on that ends an unquoted
// field. There is always one: the sentinel.
func (t *tokenizer) search(b []byte, i int) int {
	for ; ; i++ {
		c := b[i]
		if c == t.delimiter || c == '\n' || c == '\r' || (c == t.comment && t.comment != 0) {
			return i
		}
	}
}

// scan appends complete rows, up to limit of them. It returns errMore when the
// data ends within a record, or the error of a bad record.
func (t *tokenizer) scan(limit int) error {
	b, n := t.buf, t.n
	delimiter, comment := t.delimiter, t.comment
	delimiters, comments := uint64(delimiter)*ones, uint64(comment)*ones
	base, mask := t.pos-wide, uint64(0) // mask has the candidates of b[base:] not yet looked at
	for len(t.lines) < limit {
		i := t.pos
		if i >= n {
			return errMore
		}
		if t.skipped < t.skipLines {
			if err := t.skipLine(); err != nil {
				return err
			}
			continue
		}
		if c := b[i]; c <= ' ' || c == comment {
			done, err := t.lead()
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}

		first := len(t.spans)
		raw := false
		breaks := int64(0) // line ends inside quotes
		var end int        // where the record's line end starts
	fields:
		for {
			if b[i] == '"' && i < n {
				s, next, err := t.quoted(b, i)
				if err != nil {
					t.spans = t.spans[:first]
					return err
				}
				breaks += countBreaks(b[i:next])
				t.spans = append(t.spans, s)
				raw = raw || s.end&rawFlag != 0
				i = next
				if i >= base+wide {
					base, mask = i-wide, 0
				}
			} else {
				for {
					for mask == 0 {
						base += wide
						if comment == 0 {
							mask = bitmapPlain((*[wide]byte)(b[base:]), delimiters)
						} else {
							mask = bitmap((*[wide]byte)(b[base:]), delimiters, comments)
						}
					}
					j := base + bits.TrailingZeros64(mask)
					mask &= mask - 1
					if j < i {
						continue
					}
					if c := b[j]; c != delimiter && c != '\n' && c != '\r' && (c != comment || comment == 0) {
						continue
					}
					t.spans = append(t.spans, span{uint32(i), uint32(j)})
					i = j
					break
				}
			}
			// i is at what ended the field.
			if i >= n {
				if !t.atEnd() {
					t.spans = t.spans[:first]
					return errMore
				}
				end = n
				break fields
			}
			switch c := b[i]; {
			case c == delimiter:
				i++
			case c == '\n' || c == '\r':
				end = i
				break fields
			default: // comment
				j := indexLineEnd(b[i:n])
				if j < 0 && !t.atEnd() {
					t.spans = t.spans[:first]
					return errMore
				}
				end = n
				if j >= 0 {
					end = i + j
				}
				break fields
			}
		}
		next, ok := t.lineEnd(end)
		if !ok {
			t.spans = t.spans[:first]
			return errMore
		}
		t.pos = next
		if raw {
			t.unquote(first)
		}
		line := t.line + 1
		t.line += 1 + breaks
		if len(t.spans)-first == t.width {
			t.lines = append(t.lines, line)
			t.first = false
			continue
		}
		if err := t.fit(first, line); err != nil {
			return err
		}
	}
	return nil
}

// unquote takes the quotes out of the fields from first on that have some left.
func (t *tokenizer) unquote(first int) {
	for k := first; k < len(t.spans); k++ {
		if s := &t.spans[k]; s.end&rawFlag != 0 {
			s.end &^= rawFlag
			s.end = s.start + uint32(unquote(t.buf[s.start:s.end]))
		}
	}
}

// fit makes the fields from base on a row of the table's width.
func (t *tokenizer) fit(base int, line int64) error {
	have := len(t.spans) - base
	switch {
	case t.width < 0 && have == 0 && t.bare:
		return errNoColumns // whatever follows, as in pandas
	case t.width < 0:
		t.width = have
	case have < t.width:
		for ; have < t.width; have++ {
			t.spans = append(t.spans, span{})
		}
	case t.first && !t.dropFirst:
		return parseErrorf("line %d has %d fields, the header %d: pandas would take the first %d as an index; "+
			"name every column in the header", line, have, t.width, have-t.width)
	case t.dropExtra:
		t.spans = t.spans[:base+t.width]
	case t.badLines == badError:
		return parseErrorf("Error tokenizing data: Expected %d fields in line %d, saw %d", t.width, line, have)
	default:
		t.spans = t.spans[:base]
		if t.badLines == badWarn && t.warn != nil {
			t.warn(line, t.width, have)
		}
		return nil
	}
	t.first = false
	t.lines = append(t.lines, line)
	return nil
}

// lead handles what a record may start with: line ends, blanks and comments.
// It reports whether it consumed a line.
func (t *tokenizer) lead() (bool, error) {
	b, i, n := t.buf, t.pos, t.n
	c := b[i]
	switch {
	case c == '\n' || c == '\r':
		next, ok := t.lineEnd(i)
		if !ok {
			return false, errMore
		}
		t.pos = next
		t.line++
		if t.keepBlank {
			return true, t.fit(len(t.spans), t.line)
		}
		return true, nil
	case t.comment != 0 && c == t.comment:
		return t.dropLine(i)
	case (c == ' ' || c == '\t') && c != t.delimiter && !t.keepBlank:
		for i < n && (b[i] == ' ' || b[i] == '\t') && b[i] != t.delimiter {
			i++
		}
		if i >= n && !t.atEnd() {
			return false, errMore
		}
		if i >= n || b[i] == '\n' || b[i] == '\r' {
			return t.dropLine(i)
		}
	}
	return false, nil
}

// dropLine consumes what is left of the line at i.
func (t *tokenizer) dropLine(i int) (bool, error) {
	end := t.n
	if j := indexLineEnd(t.buf[i:t.n]); j >= 0 {
		end = i + j
	} else if !t.atEnd() {
		return false, errMore
	}
	next, ok := t.lineEnd(end)
	if !ok {
		return false, errMore
	}
	t.pos = next
	t.line++
	return true, nil
}

// skipLine consumes one line of those to skip. Line ends inside quotes do not
// end it.
func (t *tokenizer) skipLine() error {
	b, n := t.buf, t.n
	start := true // at the start of a field
	breaks := int64(0)
	i := t.pos
	for ; i < n; i++ {
		c := b[i]
		if c == '\n' || c == '\r' {
			break
		}
		if c == '"' && start {
			from := i
			for i++; i < n; i++ {
				if b[i] == '"' {
					if i+1 < n && b[i+1] == '"' {
						i++
						continue
					}
					break
				}
			}
			if i >= n {
				break
			}
			breaks += countBreaks(b[from:i])
			start = false
			continue
		}
		start = c == t.delimiter
	}
	if i >= n {
		i = n
		if !t.atEnd() {
			return errMore
		}
	}
	next, ok := t.lineEnd(i)
	if !ok {
		return errMore
	}
	t.pos = next
	t.line += 1 + breaks
	t.skipped++
	return nil
}

// lineEnd returns what follows the line end at i. It fails when that depends
// on data that has not been read.
func (t *tokenizer) lineEnd(i int) (int, bool) {
	switch {
	case i >= t.n:
		return t.n, true
	case t.buf[i] == '\n':
		return i + 1, true
	case i+1 < t.n:
		if t.buf[i+1] == '\n' {
			return i + 2, true
		}
		return i + 1, true
	}
	return i + 1, t.atEnd()
}

// quoted scans the field whose opening quote is at i. It returns the field and
// the position of what ended it.
func (t *tokenizer) quoted(b []byte, i int) (span, int, error) {
	n := t.n
	raw := uint32(0)
	for k := i + 1; ; {
		q := bytes.IndexByte(b[k:n], '"')
		if q < 0 {
			if t.atEnd() {
				return span{}, 0, parseErrorf("Error tokenizing data: EOF inside string starting at line %d",
					t.line+1+countBreaks(b[t.pos:i]))
			}
			return span{}, 0, errMore
		}
		q += k
		if q+1 >= n {
			if !t.atEnd() {
				return span{}, 0, errMore
			}
			return closed(i, q, raw), n, nil
		}
		switch c := b[q+1]; {
		case c == '"':
			raw = rawFlag
			k = q + 2
		case c == t.delimiter || c == '\n' || c == '\r':
			return closed(i, q, raw), q + 1, nil
		default:
			// The byte after the quote is text even when it is the comment byte.
			j := t.search(b, q+2)
			return span{uint32(i), uint32(min(j, n)) | rawFlag}, j, nil
		}
	}
}

func closed(open, quote int, raw uint32) span {
	if raw != 0 {
		return span{uint32(open), uint32(quote+1) | raw}
	}
	return span{uint32(open + 1), uint32(quote)}
}

// unquote takes the quotes of a field away in place and returns what is left.
func unquote(f []byte) int {
	w := 0
	for r := 1; r < len(f); r++ {
		if f[r] == '"' {
			if r+1 >= len(f) || f[r+1] != '"' {
				return w + copy(f[w:], f[r+1:])
			}
			r++
		}
		f[w] = f[r]
		w++
	}
	return w
}

func indexLineEnd(b []byte) int {
	for i, c := range b {
		if c == '\n' || c == '\r' {
			return i
		}
	}
	return -1
}

// countBreaks counts the line ends LF, CRLF and CR.
func countBreaks(b []byte) int64 {
	n := bytes.Count(b, []byte{'\n'})
	if bytes.IndexByte(b, '\r') >= 0 {
		for i, c := range b {
			if c == '\r' && (i+1 == len(b) || b[i+1] != '\n') {
				n++
			}
		}
	}
	return int64(n)
}
