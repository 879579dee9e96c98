package rpc

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"unicode/utf8"
)

// isObject reports whether b is a JSON object on one line, in UTF-8 and
// without space around it.
//
// Every event of a run passes through here, and encoding/json's scanner, which
// takes a step for every byte, would be most of a host's work. FuzzValid holds
// this one to the same verdicts.
func isObject(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	ok, newline, ascii := scan(b)
	return ok && !newline && (ascii || utf8.Valid(b))
}

// scan reports whether b is valid JSON, exactly as json.Valid does, whether a
// line ends between its tokens, and whether it is certain to be ASCII.
func scan(b []byte) (ok, newline, ascii bool) {
	s := scanner{b: b}
	return s.scan(), s.newline, s.high == 0
}

type scanner struct {
	b       []byte
	newline bool   // a line ends between tokens
	high    uint64 // not zero when there may be a byte above ASCII
}

// maxScanDepth is how deep it goes itself: one bit for each level.
const maxScanDepth = 64

func (s *scanner) scan() bool {
	b, i := s.b, 0
	depth, objects := 0, uint64(0) // the lowest bit of objects is the innermost level's
values:
	for {
		i = s.space(i)
		if i >= len(b) {
			return false
		}
		switch c := b[i]; c {
		case '{', '[':
			if depth == maxScanDepth {
				return s.deep()
			}
			depth++
			objects <<= 1
			i = s.space(i + 1)
			if i >= len(b) {
				return false
			}
			if b[i] == c+2 { // the closing one, in ASCII
				i++
				depth--
				objects >>= 1
				break
			}
			if c == '{' {
				objects |= 1
				if i = s.key(i); i < 0 {
					return false
				}
			}
			continue
		case '"':
			if i = s.text(i + 1); i < 0 {
				return false
			}
		case 't':
			if len(b)-i < 4 || string(b[i:i+4]) != "true" {
				return false
			}
			i += 4
		case 'f':
			if len(b)-i < 5 || string(b[i:i+5]) != "false" {
				return false
			}
			i += 5
		case 'n':
			if len(b)-i < 4 || string(b[i:i+4]) != "null" {
				return false
			}
			i += 4
		default:
			if i = s.number(i); i < 0 {
				return false
			}
		}
		for {
			i = s.space(i)
			if depth == 0 {
				return i == len(b)
			}
			if i >= len(b) {
				return false
			}
			c := b[i]
			i++
			if objects&1 != 0 {
				if c == ',' {
					if i = s.key(s.space(i)); i < 0 {
						return false
					}
					continue values
				}
				if c != '}' {
					return false
				}
			} else {
				if c == ',' {
					continue values
				}
				if c != ']' {
					return false
				}
			}
			depth--
			objects >>= 1
		}
	}
}

// deep leaves what is nested deeply to encoding/json, whose limit is 10,000.
func (s *scanner) deep() bool {
	s.high = 1
	for _, c := range s.b {
		s.newline = s.newline || c == '\n' || c == '\r'
	}
	return json.Valid(s.b)
}

// space returns where the space that starts at i ends.
func (s *scanner) space(i int) int {
	for i < len(s.b) && s.b[i] <= ' ' {
		switch s.b[i] {
		case '\n', '\r':
			s.newline = true
		case ' ', '\t':
		default:
			return i
		}
		i++
	}
	return i
}

// key returns where the value of the member that starts at i starts, or -1.
func (s *scanner) key(i int) int {
	if i >= len(s.b) || s.b[i] != '"' {
		return -1
	}
	if i = s.text(i + 1); i < 0 {
		return -1
	}
	if i < len(s.b) && s.b[i] == ':' {
		return i + 1
	}
	if i = s.space(i); i >= len(s.b) || s.b[i] != ':' {
		return -1
	}
	return i + 1
}

// text returns the index behind the string whose first character is at i, or
// -1.
func (s *scanner) text(i int) int {
	b := s.b
	for {
		for len(b)-i >= 8 {
			x := binary.LittleEndian.Uint64(b[i:])
			s.high |= x & highBits
			if m := special(x); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				if b[i] == '"' {
					return i + 1
				}
				break
			}
			i += 8
		}
		if i >= len(b) {
			return -1
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c == '\\':
			if i = s.escape(i + 1); i < 0 {
				return -1
			}
		case c < ' ':
			return -1
		default: // among the last seven bytes
			s.high |= uint64(c) & 0x80
			i++
		}
	}
}

// escape returns the index behind the escape sequence whose backslash is
// before i, or -1.
func (s *scanner) escape(i int) int {
	if i >= len(s.b) {
		return -1
	}
	switch s.b[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 1
	case 'u':
		if len(s.b)-i < 5 {
			return -1
		}
		for _, c := range s.b[i+1 : i+5] {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return -1
			}
		}
		return i + 5
	}
	return -1
}

// number returns the index behind the number that starts at i, or -1.
func (s *scanner) number(i int) int {
	b := s.b
	digits := func() bool {
		start := i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		return i > start
	}
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return -1
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// special marks, by their highest bits, the bytes of x that end a run of plain
// characters in a JSON string: quotes, backslashes and control characters. The
// lowest mark is right; above it there may be false ones.
func special(x uint64) uint64 {
	quote := x ^ lowBits*'"'
	slash := x ^ lowBits*'\\'
	return ((x-lowBits*' ')&^x | (quote-lowBits)&^quote | (slash-lowBits)&^slash) & highBits
}
