package secrets

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"
)

// How it is found: every form of a secret (as it is, in base64, in hex) is found
// by a window, five bytes of it as they stand in text. scan looks at four bytes
// at every second place, so that one of the two fours of a window is seen
// wherever it stands. A bit set of 32 KiB says whether four bytes may be part of
// a window; what passes is compared from the window in both directions, one
// character at a time in any spelling (see [ends]). Forms are short, long
// values are known piece by piece: so a comparison takes a bounded time, and a
// hit has a bounded length.

const (
	windowLen = 5
	pieceLen  = 48   // bytes of a secret in one form, at most
	reach     = 1024 // bytes of text in which a hit is decided: a piece in its longest spelling, or a shape
	wordLen   = 6    // shorter values count as whole words only
	shortest  = 3    // what is shorter is never looked for
)

// A form is a piece of a secret in one encoding.
type form struct {
	text        string
	stiff       bool // there is one spelling only
	left, right bool // in base64: the character beside it holds bits of it
}

// An entry says where a gram stands.
type entry struct {
	gram uint32
	form int32 // in forms, below zero: -1-i is a shape
	at   uint8 // in the form's text, the beginning of the window
	off  uint8 // of the gram in the window: 0 or 1; for shapes in the prefix, plus 1
	odd  bool  // the gram is the second of the window
	more int16 // the byte of the window that is not in the gram, -1 for any
}

const filterBits = 18

// A table is all that scan needs. It is not changed once it is in use.
type table struct {
	values  map[string]bool // what was added, and what follows from it
	forms   []form
	words   []word
	parts   bool // some words count within others
	shapes  []shape
	filter  *[1 << filterBits / 64]uint64
	wordSet *[1 << 12 / 64]uint64
	heads   []uint32 // where the entries of a bucket start
	entries []entry
	shift   uint8
}

// A word is a value of few bytes; part says that it counts within words, too.
type word struct {
	text string
	part bool
}

func hash(gram uint32) uint32 { return gram * 0x9e3779b1 }

// build makes the table for values.
func build(values map[string]bool) *table {
	t := &table{values: values, shapes: shapes(), filter: new([1 << filterBits / 64]uint64)}
	w := windows{t: t, grams: make(map[uint32][]entry)}
	for i := range t.shapes {
		w.shape(i)
	}
	for _, v := range slices.Sorted(maps.Keys(values)) {
		w.value(v)
	}
	n := 0
	for _, list := range w.grams {
		n += len(list)
	}
	size := bits.Len(uint(n))
	t.shift = uint8(32 - size)
	t.heads = make([]uint32, 1<<size+1)
	for g, list := range w.grams {
		h := hash(g)
		t.filter[h>>(32-filterBits+6)] |= 1 << (g & 63)
		t.heads[h>>t.shift+1] += uint32(len(list))
	}
	for i := range 1 << size {
		t.heads[i+1] += t.heads[i]
	}
	t.entries = make([]entry, n)
	fill := slices.Clone(t.heads)
	for g, list := range w.grams {
		i := &fill[hash(g)>>t.shift]
		*i += uint32(copy(t.entries[*i:], list))
	}
	if len(t.words) > 0 {
		t.wordSet = new([1 << 12 / 64]uint64)
		for _, w := range t.words {
			h := wordHash(w.text[0], w.text[1], w.text[2])
			t.wordSet[h>>6] |= 1 << (h & 63)
		}
	}
	return t
}

func wordHash(a, b, c byte) uint32 {
	return hash(uint32(a)|uint32(b)<<8|uint32(c)<<16) >> (32 - 12)
}

// windows chooses the windows of the forms of a table.
type windows struct {
	t     *table
	grams map[uint32][]entry
}

func gramOf(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

// gram adds an entry for one of the two grams of a window. All of the window has
// to be there, or it would matter at which places scan looks.
func (w *windows) gram(window string, off int, e entry) {
	e.gram, e.odd = gramOf(window[off:]), off == 1
	if e.more == 0 {
		e.more = int16(window[4*(1-off)])
	}
	if !slices.Contains(w.grams[e.gram], e) {
		w.grams[e.gram] = append(w.grams[e.gram], e)
	}
}

func (w *windows) window(s string, form, at int) {
	for off := range 2 {
		w.gram(s, off, entry{form: int32(form), at: uint8(at), off: uint8(off)})
	}
}

// shape adds the windows of a shape; an entry's off is then where the gram is in
// the prefix, plus 1.
func (w *windows) shape(i int) {
	h := &w.t.shapes[i]
	add := func(s string, at int) {
		for off := range 2 {
			w.gram(s, off, entry{form: int32(-1 - i), off: uint8(at + off + 1)})
		}
	}
	switch {
	case h.prefix == "://":
		for c := range byte(0x7f) {
			if schemeChar(c) {
				w.gram(string(c)+h.prefix+" ", 0, entry{form: int32(-1 - i), off: 0, more: -1})
			}
			if userChar(c) {
				w.gram(" "+h.prefix+string(c), 1, entry{form: int32(-1 - i), off: 1, more: -1})
			}
		}
	case len(h.prefix) < windowLen:
		for c := range byte(0x7f) {
			if h.class.has(c) {
				add(h.prefix+string(c), 0)
			}
		}
	case h.fold:
		upper, proper := strings.ToUpper(h.prefix), title(h.prefix)
		for _, s := range []string{h.prefix, upper, proper, upper[:3] + proper[3:]} { // as in X-API-Key
			add(s[h.window:h.window+windowLen], h.window)
		}
	default:
		add(h.prefix[h.window:h.window+windowLen], h.window)
	}
}

// title is s with capital letters where words start, as names of headers are written.
func title(s string) string {
	b := []byte(s)
	for i, c := range b {
		if (i == 0 || !capitals.has(b[i-1]&^0x20)) && c >= 'a' && c <= 'z' {
			b[i] &^= 0x20
		}
	}
	return string(b)
}

// value adds the forms of a value.
func (w *windows) value(v string) {
	if len(v) < wordLen {
		w.t.words = append(w.t.words, word{text: v, part: w.t.values[v]})
		w.t.parts = w.t.parts || w.t.values[v]
		return
	}
	for _, piece := range pieces(v) {
		w.form(form{text: piece})
		lower := hex.EncodeToString([]byte(piece))
		w.form(form{text: lower})
		if upper := strings.ToUpper(lower); upper != lower {
			w.form(form{text: upper})
		}
		for lead := range 3 {
			b := append(make([]byte, lead), piece...)
			std := base64.RawStdEncoding.EncodeToString(b)
			whole := len(b) * 8 / 6 // characters that depend on nothing else
			std = std[[]int{0, 2, 3}[lead]:whole]
			f := form{text: std, left: lead > 0, right: len(b)%3 > 0}
			w.form(f)
			if f.text = strings.NewReplacer("+", "-", "/", "_").Replace(std); f.text != std {
				w.form(f)
			}
		}
	}
}

// pieces cuts a value into parts of at most pieceLen bytes, of about the same
// length, between characters.
func pieces(v string) []string {
	var list []string
	for n := (len(v) + pieceLen - 4) / (pieceLen - 3); n > 1; n-- {
		cut := len(v) / n
		for i := 0; i < utf8.UTFMax-1 && !utf8.RuneStart(v[cut]); i++ {
			cut++
		}
		list = append(list, v[:cut])
		v = v[cut:]
	}
	return append(list, v)
}

// form adds a form, with its windows: where few spellings are possible, and
// where no other form has its own.
func (w *windows) form(f form) {
	f.stiff = true
	for i := range len(f.text) {
		f.stiff = f.stiff && plain(f.text[i])
	}
	id := len(w.t.forms)
	w.t.forms = append(w.t.forms, f)
	best, least := 0, int(^uint(0)>>1)
	for at := range len(f.text) - windowLen + 1 {
		if !utf8.RuneStart(f.text[at]) && startOf(f.text, at) != at {
			continue
		}
		s := f.text[at : at+windowLen]
		cost, kinds := 0, 0
		for i := range len(s) {
			switch c := s[i]; {
			case !plain(c):
				cost += 100000
			case c >= '0' && c <= '9':
				cost, kinds = cost+5, kinds|1
			case strings.IndexByte("etaoinsr-_.", c) >= 0:
				cost, kinds = cost+6, kinds|2
			case c >= 'a' && c <= 'z':
				cost, kinds = cost+4, kinds|2
			default:
				cost, kinds = cost+3, kinds|4
			}
		}
		cost += 20 * (3 - bits.OnesCount(uint(kinds))) // text mixes them rarely
		if cost >= least {
			continue
		}
		cost += 1000 * (len(w.grams[gramOf(s)]) + len(w.grams[gramOf(s[1:])]))
		if cost < least {
			best, least = at, cost
		}
	}
	w.window(f.text[best:best+windowLen], id, best)
	if least < 100000 {
		return
	}
	for scheme := range schemes {
		w.spellings(f.text[best:], "", scheme, id, best)
	}
}

// startOf returns where the character starts that holds the byte at i.
func startOf(s string, i int) int {
	for j := max(0, i-utf8.UTFMax+1); j < i; j++ {
		if r, n := utf8.DecodeRuneInString(s[j:]); j+n > i && (r != utf8.RuneError || n > 1) {
			return j
		}
	}
	return i
}

// spellings adds windows for all ways to spell the beginning of text by a
// scheme, after what is spelled already.
func (w *windows) spellings(text, spelled string, scheme, id, at int) {
	if len(spelled) >= windowLen {
		w.window(spelled[:windowLen], id, at)
		return
	}
	r, n := decode(text)
	w.spellings(text[n:], spelled+text[:n], scheme, id, at)
	for _, s := range spell(scheme, text[:n], r) {
		w.spellings(text[n:], spelled+s, scheme, id, at)
	}
}

// decode is the first character; its code is -1 if it is no UTF-8.
func decode(s string) (rune, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		r = -1
	}
	return r, n
}

type span struct{ from, to int }

// state is what a stream knows from what it has passed on already. Positions
// count from the beginning of what is looked at next.
type state struct {
	cut      bool          // something is before it:
	before   byte          // its last byte,
	hidden   bool          // which was part of a hit
	spans    []span        // hits that were decided already
	open     [classes]bool // tokens that go on at len
	pemEnd   int           // the end of the last key block,
	pemLimit int           // and where it has to end; it goes on if that is more
	seen     int           // bytes in which open tokens were followed
}

// A scan finds the hits in b.
type scan struct {
	t     *table
	b     []byte
	limit int // hits that start here or later are not decided yet
	final bool
	runs  [classes]span
	state
}

// add notes the hit from..to that depends on nothing before start, and reports
// whether it is decided.
func (s *scan) add(start, from, to int) bool {
	if start >= s.limit {
		return false
	}
	s.cover(from, to)
	return true
}

func (s *scan) cover(from, to int) {
	if n := len(s.spans) - 1; n >= 0 && from >= s.spans[n].from && from <= s.spans[n].to {
		s.spans[n].to = max(s.spans[n].to, to)
	} else if from < to {
		s.spans = append(s.spans, span{from, to})
	}
}

// all finds the hits. They are in order then, and apart.
func (s *scan) all() {
	for k := range classes {
		s.runs[k] = span{-1, -1}
		if s.open[k] {
			s.open[k] = false
			s.addRun(-1, s.seen, s.runEnd(s.seen, k), k)
		}
	}
	if s.pemEnd < s.pemLimit {
		s.inPEM(s.pemEnd, s.pemLimit)
	}
	s.filter()
	s.merge()
	if s.t.wordSet != nil {
		if s.t.parts {
			s.words(true)
			s.merge()
		}
		s.words(false)
		s.merge()
	}
	s.seen = len(s.b)
}

// byStart sorts spans: the generic functions would take more of the worker's size.
type byStart []span

func (l byStart) Len() int           { return len(l) }
func (l byStart) Less(i, j int) bool { return l[i].from < l[j].from }
func (l byStart) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }

// merge makes one of spans that touch, and puts them in order.
func (s *scan) merge() {
	if len(s.spans) < 2 {
		return
	}
	sort.Sort(byStart(s.spans))
	list := s.spans[:1]
	for _, next := range s.spans[1:] {
		if last := &list[len(list)-1]; next.from <= last.to {
			last.to = max(last.to, next.to)
		} else {
			list = append(list, next)
		}
	}
	s.spans = list
}

// filter looks at every second four of bytes.
func (s *scan) filter() {
	p := 0
	for {
		if p = s.t.pass(s.b, p); p < 0 {
			return
		}
		s.lookAll(p, p+16)
		p += 16
	}
}

// pass returns the first of the blocks of 16 bytes from p on that has something
// to look at, and -1 when there is none.
func (t *table) pass(b []byte, p int) int {
	f := t.filter
	const shift = 32 - filterBits + 6
	for ; len(b)-p >= 18; p += 16 {
		c := (*[18]byte)(b[p:])
		x0 := binary.LittleEndian.Uint32(c[0:])
		x1 := binary.LittleEndian.Uint32(c[2:])
		x2 := binary.LittleEndian.Uint32(c[4:])
		x3 := binary.LittleEndian.Uint32(c[6:])
		x4 := binary.LittleEndian.Uint32(c[8:])
		x5 := binary.LittleEndian.Uint32(c[10:])
		x6 := binary.LittleEndian.Uint32(c[12:])
		x7 := binary.LittleEndian.Uint32(c[14:])
		m := f[hash(x0)>>shift]>>(x0&63) | f[hash(x1)>>shift]>>(x1&63) | f[hash(x2)>>shift]>>(x2&63) | f[hash(x3)>>shift]>>(x3&63) |
			f[hash(x4)>>shift]>>(x4&63) | f[hash(x5)>>shift]>>(x5&63) | f[hash(x6)>>shift]>>(x6&63) | f[hash(x7)>>shift]>>(x7&63)
		if m&1 != 0 {
			return p
		}
	}
	for q := p; len(b)-q >= 4; q += 2 {
		if x := binary.LittleEndian.Uint32(b[q:]); f[hash(x)>>shift]>>(x&63)&1 != 0 {
			return p
		}
	}
	return -1
}

// lookAll looks at every second place from..to that passes the filter.
func (s *scan) lookAll(from, to int) {
	b, f := s.b, s.t.filter
	const shift = 32 - filterBits + 6
	for p := from; p < to && len(b)-p >= 4; p += 2 {
		if x := binary.LittleEndian.Uint32(b[p:]); f[hash(x)>>shift]&(1<<(x&63)) != 0 {
			s.look(p)
		}
	}
}

// look compares what the gram at p may be part of.
func (s *scan) look(p int) {
	t := s.t
	gram := binary.LittleEndian.Uint32(s.b[p:])
	h := hash(gram) >> t.shift
	for _, e := range t.entries[t.heads[h]:t.heads[h+1]] {
		if e.gram != gram {
			continue
		}
		more := p + 4
		if e.odd {
			more = p - 1
		}
		if e.more >= 0 && (more < 0 || more >= len(s.b) || int16(s.b[more]) != e.more) {
			continue
		}
		if e.form < 0 {
			h := &t.shapes[-1-e.form]
			h.find(s, p-int(e.off)+1, h)
			continue
		}
		s.compare(&t.forms[e.form], int(e.at), p-int(e.off))
	}
}

// compare looks for a form whose byte at stands at b[p].
func (s *scan) compare(f *form, at, p int) {
	if p < 0 {
		return
	}
	from, to := p-at, p-at+len(f.text)
	if f.stiff {
		if !has(s.b, from, f.text) {
			return
		}
	} else if s.hopeless(f, at, p) {
		return
	} else if from, to = s.spelled(f, at, p); from < 0 {
		return
	}
	if f.left && from > 0 && base64Char(s.b[from-1]) {
		from--
	}
	if f.right && to < len(s.b) && base64Char(s.b[to]) {
		to++
		for i := 0; i < 2 && to < len(s.b) && s.b[to] == '='; i++ {
			to++
		}
	}
	s.add(from, from, to)
}

func base64Char(c byte) bool { return tokenChars.has(c) || c == '+' || c == '/' }

// hopeless reports whether a form cannot stand there in any spelling, as far as
// that is seen without trying all of them.
func (s *scan) hopeless(f *form, at, p int) bool {
	twoWays := false
	i, q := at, p
	for i < len(f.text) && q < len(s.b) && f.text[i] == s.b[q] {
		twoWays = twoWays || escape(f.text[i])
		i, q = i+1, q+1
	}
	if i < len(f.text) && !twoWays && (q == len(s.b) || plain(f.text[i]) || !escape(s.b[q])) {
		// Bytes of a character may have been the same.
		return q == len(s.b) || f.text[i] < utf8.RuneSelf || s.b[q] >= utf8.RuneSelf
	}
	special := false
	for i, q = at-1, p-1; i >= 0 && q >= 0 && f.text[i] == s.b[q]; i, q = i-1, q-1 {
		special = special || !plain(f.text[i])
	}
	return i >= 0 && (q < 0 || plain(f.text[i]) && !special)
}

// escape reports whether c may start the spelling of another character.
func escape(c byte) bool {
	switch c {
	case '%', '+', '\\', '"', '\'', '&':
		return true
	}
	return false
}

// spelled looks for a form in any spelling; the window stands at p, and at at in
// the form. Where a character can be read in several ways all are followed, so
// that it does not depend on what was cut off before b. from is -1 for none.
func (s *scan) spelled(f *form, at, p int) (from, to int) {
	var store [3][32]int
	now, next := append(store[0][:0], p), store[1][:0]
	for rest := f.text[at:]; rest != ""; {
		if c := rest[0]; c < utf8.RuneSelf && !escape(c) && len(now) == 1 && now[0] < len(s.b) && s.b[now[0]] == c {
			now[0]++ // in one way only, as nearly always
			rest = rest[1:]
			continue
		}
		r, n := decode(rest)
		next = next[:0]
		for _, q := range now {
			next = ends(next, s.b, q, rest[:n], r)
		}
		if now, next = distinct(next), now; len(now) == 0 {
			return -1, -1
		}
		rest = rest[n:]
	}
	to = now[len(now)-1]
	now = append(now[:0], p)
	for rest := f.text[:at]; rest != ""; {
		if c, q := rest[len(rest)-1], now[0]; len(now) == 1 && c < utf8.RuneSelf {
			same := q > 0 && s.b[q-1] == c
			if !same && plain(c) {
				return -1, -1
			}
			if same && (plain(c) || q == 1 || s.b[q-2] != '\\' && s.b[q-2] != '\'' && s.b[q-2] != '"') {
				now[0]-- // in one way only
				rest = rest[:len(rest)-1]
				continue
			}
		}
		c := rest[startOf(rest, len(rest)-1):]
		r, _ := decode(c)
		next = next[:0]
		for _, q := range now {
			if plain(c[0]) {
				if q > 0 && s.b[q-1] == c[0] {
					next = append(next, q-1)
				}
				continue
			}
			for start := max(0, q-maxSpelling); start < q; start++ {
				if slices.Contains(ends(store[2][:0], s.b[:q], start, c, r), q) {
					next = append(next, start)
				}
			}
		}
		if now, next = distinct(next), now; len(now) == 0 {
			return -1, -1
		}
		rest = rest[:len(rest)-len(c)]
	}
	return now[0], to
}

const maxSpelling = 2 * (backslashes + 5) // of a character

// distinct sorts a short list and drops what is in it twice.
func distinct(list []int) []int {
	out := list[:0]
	for _, v := range list {
		i := len(out)
		for i > 0 && out[i-1] > v {
			i--
		}
		if i > 0 && out[i-1] == v {
			continue
		}
		out = append(out, 0)
		copy(out[i+1:], out[i:])
		out[i] = v
	}
	return out
}

// words finds the values that count as whole words. The edge of a hit is an edge
// of a word, too: it will be one when the hit is replaced.
func (s *scan) words(part bool) {
	b, set, hits := s.b, s.t.wordSet, len(s.spans)
	hidden := func(p int) bool {
		i := sort.Search(hits, func(i int) bool { return s.spans[i].to > p })
		return i < hits && s.spans[i].from <= p
	}
	for p := 0; p+shortest <= len(b); p++ {
		h := wordHash(b[p], b[p+1], b[p+2])
		if set[h>>6]>>(h&63)&1 == 0 {
			continue
		}
		for _, w := range s.t.words {
			if w.part != part || !has(b, p, w.text) || p >= s.limit {
				continue
			}
			end := p + len(w.text)
			if !part && wordChar(b[p]) && (p > 0 && wordChar(b[p-1]) && !hidden(p-1) || p == 0 && s.cut && wordChar(s.before) && !s.hidden) {
				continue
			}
			if !part && wordChar(b[end-1]) && end < len(b) && wordChar(b[end]) && !hidden(end) {
				continue
			}
			s.spans = append(s.spans, span{p, end})
		}
	}
}

func wordChar(c byte) bool {
	return c >= 0x80 || c == '_' || tokenChars.has(c) && c != '-'
}

// next is the state behind the first n bytes.
func (s *scan) next(n int) state {
	st := s.state
	if n > 0 {
		st.cut, st.before, st.hidden = true, s.b[n-1], false
	}
	st.spans = nil
	for _, a := range s.spans {
		if n > 0 && a.from < n && a.to >= n {
			st.hidden = true
		}
		if a.to > n {
			st.spans = append(st.spans, span{max(a.from-n, 0), a.to - n})
		}
	}
	st.pemEnd, st.pemLimit, st.seen = s.pemEnd-n, s.pemLimit-n, s.seen-n
	return st
}

// redact appends the first n bytes to dst, without the hits.
func (s *scan) redact(dst []byte, n int) []byte {
	p, hidden := 0, s.hidden
	for _, a := range s.spans {
		if a.from >= n {
			break
		}
		dst = append(dst, s.b[p:a.from]...)
		if a.from > 0 || !hidden {
			dst = append(dst, Redacted...)
		}
		p = min(a.to, n)
	}
	return append(dst, s.b[p:n]...)
}
