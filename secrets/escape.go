package secrets

import (
	"fmt"
	"unicode/utf8"
)

// plain reports whether no encoder ever writes c in another way.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c == '_' || c == '-' || c == '.'
}

const backslashes = 7 // so many in a row at most: three levels of escaping

// ends appends to dst where the character c may end that starts at b[p]:
// as it is, or escaped for URLs, JSON, Go, Python, C, shells, CSV and HTML,
// also twice. r is its code, negative for a byte that is no UTF-8.
func ends(dst []int, b []byte, p int, c string, r rune) []int {
	if p >= len(b) {
		return dst
	}
	if len(b)-p >= len(c) && string(b[p:p+len(c)]) == c {
		dst = append(dst, p+len(c))
	}
	if plain(c[0]) {
		return dst
	}
	switch b[p] {
	case '%':
		for _, lead := range [...]string{"%", "%25"} {
			if q := hexBytes(b, p, c, lead); q > 0 {
				dst = append(dst, q)
			}
		}
		if r == ' ' && (has(b, p, "%2B") || has(b, p, "%2b")) { // a plus, escaped
			dst = append(dst, p+3)
		}
	case '+':
		if r == ' ' {
			dst = append(dst, p+1)
		}
	case '\\':
		dst = backslashed(dst, b, p, c, r)
	case '"':
		if r == '"' && p+1 < len(b) && b[p+1] == '"' {
			dst = append(dst, p+2)
		}
	case '\'':
		if r != '\'' {
			break
		}
		if p+1 < len(b) && b[p+1] == '\'' {
			dst = append(dst, p+2)
		}
		for _, form := range [...]string{`'\''`, `'\\''`, `'"'"'`, `'\"'\"'`} {
			if has(b, p, form) {
				dst = append(dst, p+len(form))
			}
		}
	case '&':
		for _, form := range entities(r) {
			if has(b, p, form) {
				dst = append(dst, p+len(form))
			}
		}
	}
	return dst
}

func has(b []byte, p int, s string) bool {
	return p >= 0 && len(b)-p >= len(s) && string(b[p:p+len(s)]) == s
}

// backslashed is ends for what starts with a backslash.
func backslashed(dst []int, b []byte, p int, c string, r rune) []int {
	q := p
	for q < len(b) && b[q] == '\\' && q-p <= backslashes {
		q++
	}
	if r == '\\' {
		for n := 2; n <= q-p; n *= 2 {
			dst = append(dst, p+n)
		}
	}
	if q == len(b) || q-p > backslashes {
		return dst
	}
	lead := string(b[p:q])
	switch b[q] {
	case 'u':
		v, ok := hexValue(b, q+1, 4)
		if !ok || r < 0 {
			break
		}
		if r < 0x10000 {
			if v == r {
				dst = append(dst, q+5)
			}
			break
		}
		if q += 5; v == 0xd800+(r-0x10000)>>10 && has(b, q, lead) && has(b, q+len(lead), "u") {
			if v, ok = hexValue(b, q+len(lead)+1, 4); ok && v == 0xdc00+(r-0x10000)&0x3ff {
				dst = append(dst, q+len(lead)+5)
			}
		}
		return dst
	case 'U':
		if v, ok := hexValue(b, q+1, 8); ok && v == r {
			dst = append(dst, q+9)
		}
	case 'x':
		if end := hexBytes(b, p, c, lead+"x"); end > 0 {
			dst = append(dst, end)
		}
		if v, ok := hexValue(b, q+1, 2); ok && v == r && len(c) > 1 {
			dst = append(dst, q+3)
		}
	case '0', '1', '2', '3':
		for i := 0; ; i++ {
			if i == len(c) {
				dst = append(dst, p)
				break
			}
			if !has(b, p, lead) || !has(b, p+len(lead), octal(c[i])) {
				break
			}
			p += len(lead) + 3
		}
	case letter(r):
		dst = append(dst, q+1)
	case c[0]:
		if r != '\\' && c[0] < utf8.RuneSelf {
			dst = append(dst, q+1)
		}
	}
	return dst
}

// letter is what stands behind a backslash for a control character, a space
// for none.
func letter(r rune) byte {
	switch r {
	case '\n':
		return 'n'
	case '\r':
		return 'r'
	case '\t':
		return 't'
	case '\b':
		return 'b'
	case '\f':
		return 'f'
	case '\v':
		return 'v'
	case '\a':
		return 'a'
	case 0x1b:
		return 'e'
	}
	return ' '
}

// entities are the ways HTML and XML write r.
func entities(r rune) []string {
	switch r {
	case '&':
		return []string{"&amp;"}
	case '<':
		return []string{"&lt;"}
	case '>':
		return []string{"&gt;"}
	case '"':
		return []string{"&#34;", "&quot;"}
	case '\'':
		return []string{"&#39;", "&#x27;", "&apos;"}
	}
	return nil
}

func octal(c byte) string { return string([]byte{'0' + c>>6, '0' + c>>3&7, '0' + c&7}) }

// hexBytes returns the end of the bytes of c at b[p], each written as lead and
// two hexadecimal digits, or 0.
func hexBytes(b []byte, p int, c, lead string) int {
	for i := range len(c) {
		if !has(b, p, lead) {
			return 0
		}
		v, ok := hexValue(b, p+len(lead), 2)
		if !ok || v != rune(c[i]) {
			return 0
		}
		p += len(lead) + 2
	}
	return p
}

func hexValue(b []byte, p, digits int) (v rune, ok bool) {
	if len(b)-p < digits {
		return 0, false
	}
	for _, c := range b[p : p+digits] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		v = v<<4 | rune(c)
	}
	return v, true
}

// short is what stands for r in a string of C and its descendants, if not a
// number: a letter behind lead, or the character itself behind quote.
func short(lead, quote, c string, r rune) []string {
	switch l := letter(r); {
	case l != ' ':
		return []string{lead + string(l)}
	case r == '\\':
		return []string{quote + `\`}
	case r >= ' ' && r < utf8.RuneSelf:
		return []string{quote + c}
	}
	return nil
}

const schemes = 11

// spell returns the ways in which the encoders of one scheme write the
// character c, besides c itself. Together the schemes know the beginnings, as
// far as a window goes, of all that [ends] does.
func spell(scheme int, c string, r rune) (list []string) {
	if plain(c[0]) {
		return nil
	}
	add := func(s ...string) { list = append(list, s...) }
	each := func(lead, digits string) {
		s := ""
		for i := range len(c) {
			s += lead + fmt.Sprintf(digits, c[i])
		}
		add(s)
	}
	escaped := func(lead, quote, digits string) {
		if r < 0 {
			return
		}
		u := r
		if r >= 0x10000 {
			u = 0xd800 + (r-0x10000)>>10
		}
		add(lead + "u" + fmt.Sprintf(digits, u))
		add(short(lead, quote, c, r)...)
	}
	upper := "%02X"
	switch scheme {
	case 0, 6:
		upper = "%02x"
		fallthrough
	case 1, 7:
		if scheme > 1 {
			each(`\x`, upper)
			if r >= utf8.RuneSelf {
				add(`\x`+fmt.Sprintf(upper, r), `\U`+fmt.Sprintf("%08x", r))
			}
			add(short(`\`, `\`, c, r)...)
			break
		}
		each("%", upper)
		if r == ' ' {
			add("+")
		}
	case 2:
		each("%25", upper)
		if r == ' ' {
			add("%2B", "%2b")
		}
	case 3:
		escaped(`\`, `\`, "%04x")
	case 4:
		escaped(`\\`, `\\\`, "%04x")
	case 5:
		escaped(`\`, `\`, "%04X")
	case 8:
		s := ""
		for i := range len(c) {
			s += `\` + octal(c[i])
		}
		add(s)
		add(short(`\`, `\`, c, r)...)
	case 9:
		return entities(r)
	case 10:
		switch r {
		case '"':
			add(`""`)
		case '\'':
			add(`''`, `'\''`, `'"'"'`)
		}
	}
	return list
}
