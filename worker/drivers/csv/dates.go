package csv

import (
	"fmt"
	"math"
)

// dateLayout is the shape of a date's text. All values of a column must share
// the shape of the first, as in pandas, which guesses a format from it.
type dateLayout struct {
	order    dateOrder
	sep      byte
	timeSep  byte // 0: no time
	parts    int  // of the time: hours, minutes, seconds
	fraction bool
	zone     bool
}

type dateOrder int

const (
	ymd dateOrder = iota
	mdy
	dmy
	compactYMD
	yearMonth
	yearOnly
)

// date is one parsed value.
type date struct {
	layout  dateLayout
	seconds int64 // since 1970, in the value's own zone less offset
	nanos   int64
	digits  int // of the fraction
	offset  int // minutes east of UTC
}

// dateInference learns whether a column is all dates and of what kind.
type dateInference struct {
	rows     int64
	seen     bool
	bad      bool
	nanos    bool // a value has more than six decimals
	narrow   bool // a value does not fit int64 nanoseconds
	first    date
	dayFirst bool
}

func (c *dateInference) observe(b *block, col int, na *naSet) {
	c.rows += int64(b.rows)
	for row := 0; row < b.rows && !c.bad; row++ {
		v := b.text(row, col)
		if na.has(v) || isNaT(v) {
			continue
		}
		if !c.seen {
			d, ok := parseDate(v, false)
			if !ok {
				d, ok = parseDate(v, true)
				c.dayFirst = ok
			}
			c.seen, c.bad, c.first = true, !ok, d
		}
		d, ok := c.parse(v)
		c.bad = c.bad || !ok
		c.nanos = c.nanos || d.digits > 6
		c.narrow = c.narrow || d.seconds >= math.MaxInt64/int64(1e9) || d.seconds <= math.MinInt64/int64(1e9)
	}
}

// parse reads a value in the column's layout.
func (c *dateInference) parse(v []byte) (date, bool) {
	d, ok := parseDate(v, c.dayFirst)
	return d, ok && d.layout == c.first.layout && d.offset == c.first.offset
}

// ok reports whether the column is one of timestamps.
func (c *dateInference) ok() bool { return c.rows > 0 && !c.bad && (!c.nanos || !c.narrow) }

// zone returns the column's time zone as Arrow names it; empty for none.
func (c *dateInference) zone() string {
	if !c.first.layout.zone {
		return ""
	}
	if c.first.offset == 0 {
		return "UTC"
	}
	return formatOffset(c.first.offset)
}

func formatOffset(minutes int) string {
	sign := '+'
	if minutes < 0 {
		sign, minutes = '-', -minutes
	}
	return fmt.Sprintf("%c%02d:%02d", sign, minutes/60, minutes%60)
}

func isNaT(v []byte) bool { return equalFold(v, "nat") }

// value returns d in the column's unit.
func (c *dateInference) value(d date) int64 {
	if c.nanos {
		return d.seconds*1e9 + d.nanos
	}
	return d.seconds*1e6 + d.nanos/1e3
}

// parseDate reads a date in one of the layouts pandas guesses. dayFirst takes
// the first of two ambiguous numbers as the day.
func parseDate(b []byte, dayFirst bool) (d date, ok bool) {
	s := &dateScanner{b: trimSpace(b)}
	year, month, day := s.date(&d.layout, dayFirst)
	if s.bad || month < 1 || month > 12 || day < 1 || day > daysIn(year, month) || year < 1 {
		return d, false
	}
	d.seconds = daysFromCivil(year, month, day) * 86400
	if s.done() {
		return d, true
	}
	if d.layout.order >= yearMonth || (s.b[s.i] != 'T' && s.b[s.i] != ' ') {
		return d, false
	}
	d.layout.timeSep = s.b[s.i]
	s.i++
	d.seconds += s.clock(&d)
	if !s.done() {
		d.layout.zone = true
		d.offset = s.zone()
		d.seconds -= int64(d.offset) * 60
	}
	return d, !s.bad && s.done()
}

type dateScanner struct {
	b   []byte
	i   int
	bad bool
}

func (s *dateScanner) done() bool { return s.i >= len(s.b) }

func (s *dateScanner) peek() byte {
	if s.done() {
		return 0
	}
	return s.b[s.i]
}

// number reads least to most digits.
func (s *dateScanner) number(least, most int) int {
	v, n := 0, 0
	for ; n < most && !s.done() && s.b[s.i]-'0' <= 9; n++ {
		v = v*10 + int(s.b[s.i]-'0')
		s.i++
	}
	if n < least {
		s.bad = true
	}
	return v
}

func (s *dateScanner) date(l *dateLayout, dayFirst bool) (year, month, day int) {
	digits := 0
	for digits < len(s.b) && s.b[digits]-'0' <= 9 {
		digits++
	}
	switch {
	case digits == 8:
		l.order = compactYMD
		return s.number(4, 4), s.number(2, 2), s.number(2, 2)
	case digits == 4:
		year = s.number(4, 4)
		if s.done() {
			l.order = yearOnly
			return year, 1, 1
		}
		l.sep = s.separator()
		month = s.number(1, 2)
		if s.done() && l.sep == '-' {
			l.order = yearMonth
			return year, month, 1
		}
		s.expect(l.sep)
		return year, month, s.number(1, 2)
	case digits == 1 || digits == 2:
		month = s.number(1, 2)
		l.sep = s.separator()
		day = s.number(1, 2)
		s.expect(l.sep)
		year = s.number(4, 4)
		l.order = mdy
		if dayFirst {
			l.order = dmy
			month, day = day, month
		}
		return year, month, day
	}
	s.bad = true
	return 0, 0, 0
}

func (s *dateScanner) separator() byte {
	c := s.peek()
	if c != '-' && c != '/' {
		s.bad = true
	}
	s.i++
	return c
}

func (s *dateScanner) expect(c byte) {
	if s.peek() != c {
		s.bad = true
	}
	s.i++
}

func (s *dateScanner) clock(d *date) int64 {
	h := s.number(2, 2)
	m, sec := 0, 0
	d.layout.parts = 1
	if s.peek() == ':' {
		s.i++
		m = s.number(2, 2)
		d.layout.parts = 2
		if s.peek() == ':' {
			s.i++
			sec = s.number(2, 2)
			d.layout.parts = 3
			if s.peek() == '.' {
				s.i++
				from := s.i
				n := s.number(1, 9)
				d.digits = s.i - from
				for k := d.digits; k < 9; k++ {
					n *= 10
				}
				d.nanos = int64(n)
				d.layout.fraction = true
			}
		}
	}
	s.bad = s.bad || h > 23 || m > 59 || sec > 59
	return int64(h)*3600 + int64(m)*60 + int64(sec)
}

func (s *dateScanner) zone() int {
	if s.peek() == 'Z' {
		s.i++
		return 0
	}
	if s.peek() == ' ' {
		s.i++
	}
	sign := 1
	switch s.peek() {
	case '+':
	case '-':
		sign = -1
	default:
		s.bad = true
		return 0
	}
	s.i++
	h, m := s.number(2, 2), 0
	if !s.done() {
		if s.peek() == ':' {
			s.i++
		}
		m = s.number(2, 2)
	}
	s.bad = s.bad || h > 23 || m > 59
	return sign * (h*60 + m)
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// daysFromCivil counts the days since 1970-01-01 in the proleptic Gregorian
// calendar (H. Hinnant, chrono-compatible low-level date algorithms).
func daysFromCivil(y, m, d int) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	era := y / 400
	if y < 0 {
		era = (y - 399) / 400
	}
	yoe := y - era*400
	doy := (153*(m-3)+2)/5 + d - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return int64(era)*146097 + int64(doe) - 719468
}
