package rpc

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable makes foreign text fit for a terminal or a text log. Control
// characters, those that change the direction of text, separators of lines but
// "\n", and what is not UTF-8 become escapes as in Go's strings ("\x1b",
// "\u202e"). A line break stays, and what follows is indented: no line of the
// text can pass for one of the log. All else stays as it is; so does a text
// that is printable already.
func Printable(s string) string {
	if isPrintable(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + len(s)/4)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\r' && strings.HasPrefix(s[i:], "\r\n"):
		case r == '\n':
			b.WriteByte('\n')
			if isFlush(s[i+1:]) {
				b.WriteByte('\t')
			}
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x`)
			b.WriteByte(hexDigits[s[i]>>4])
			b.WriteByte(hexDigits[s[i]&15])
		case isUnsafe(r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

const hexDigits = "0123456789abcdef"

func isPrintable(s string) bool {
	for i, r := range s {
		switch {
		case r == '\n':
			if isFlush(s[i+1:]) {
				return false
			}
		case isUnsafe(r), r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			return false
		}
	}
	return true
}

// isFlush reports whether a line starts at the margin with something.
func isFlush(line string) bool {
	return line != "" && line[0] != '\n' && line[0] != ' ' && line[0] != '\t'
}

// isUnsafe reports whether a terminal, or a viewer of text, may do something
// else than show a character. Tabs and line breaks are not among them.
func isUnsafe(r rune) bool {
	switch {
	case r < ' ':
		return r != '\n' && r != '\t'
	case r < 0x7f:
		return false
	case r <= 0x9f: // DEL and C1
		return true
	}
	return isFormat(r)
}

// isFormat reports whether a character separates lines, or changes the direction
// of text.
func isFormat(r rune) bool {
	return r == 0x061c || r == 0x200e || r == 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// EscapeControls returns a JSON document with the characters escaped that JSON
// lets stand and a terminal would obey: DEL, the C1 controls, separators of
// lines, and what changes the direction of text. It means the same. Where there
// is none it is doc itself.
func EscapeControls(doc []byte) []byte {
	if isHarmless(doc) {
		return doc
	}
	var out []byte
	done := 0 // what is in out
	for i := 0; i < len(doc); {
		c := doc[i]
		if c < 0x7f || c > 0x7f && c < 0xc2 || c > 0xe2 {
			i++
			continue
		}
		r, n := rune(c), 1
		if c >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(doc[i:])
		}
		if n > 0 && (r == utf8.RuneError || r > 0x9f && !isFormat(r)) {
			i += n
			continue
		}
		out = append(out, doc[done:i]...)
		out = append(out, '\\', 'u')
		for shift := 12; shift >= 0; shift -= 4 {
			out = append(out, hexDigits[r>>shift&15])
		}
		i += n
		done = i
	}
	if done == 0 {
		return doc
	}
	return append(out, doc[done:]...)
}

// isHarmless reports whether b is ASCII without DEL.
func isHarmless(b []byte) bool {
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		if (x|(x+lowBits))&highBits != 0 { // a carry comes only from a byte that has the bit itself
			return false
		}
		b = b[8:]
	}
	return bytes.IndexFunc(b, func(r rune) bool { return r >= 0x7f }) < 0
}
