package csv

import (
	"math"
	"strconv"
	"unsafe"
)

// view is b as a string without a copy; it is valid as long as b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }

func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// parse says how a field went as a number.
type parse int

const (
	parsed parse = iota
	notNumber
	overflow
)

// parseInt reads an int64 as pandas' str_to_int64 does: spaces around and a
// sign are allowed.
func parseInt(b []byte) (int64, parse) {
	if len(b) == 0 {
		return 0, notNumber
	}
	digits := b
	neg := false
	if c := b[0]; c == '-' || c == '+' {
		neg = c == '-'
		digits = b[1:]
	}
	if len(digits) > 18 || len(digits) == 0 {
		return parseIntSlow(b)
	}
	v := int64(0)
	for _, c := range digits {
		c -= '0'
		if c > 9 {
			return parseIntSlow(b)
		}
		v = v*10 + int64(c)
	}
	if neg {
		v = -v
	}
	return v, parsed
}

func parseIntSlow(b []byte) (int64, parse) {
	neg, v, p := parseMagnitude(b)
	switch {
	case p != parsed:
		return 0, p
	case neg && v <= 1<<63:
		return -int64(v), parsed
	case !neg && v <= math.MaxInt64:
		return int64(v), parsed
	}
	return 0, overflow
}

// parseUint reads a uint64. A negative number is no number.
func parseUint(b []byte) (uint64, parse) {
	neg, v, p := parseMagnitude(b)
	if neg && p == parsed {
		p = notNumber
	}
	return v, p
}

func parseMagnitude(b []byte) (neg bool, v uint64, p parse) {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg = b[0] == '-'
		b = b[1:]
	}
	i, tooBig := 0, false
	for ; i < len(b) && b[i]-'0' <= 9; i++ {
		d := uint64(b[i] - '0')
		if v > (math.MaxUint64-d)/10 {
			tooBig = true
			continue
		}
		v = v*10 + d
	}
	switch {
	case i == 0:
		return neg, 0, notNumber
	case tooBig && i < len(b):
		return neg, 0, notNumber // pandas looks at the end before the size
	case len(trimSpace(b[i:])) > 0:
		return neg, 0, notNumber
	case tooBig:
		return neg, 0, overflow
	}
	return neg, v, parsed
}

// appendBigInt appends an integer of any size as Python prints it. ok is false
// when int() would not read b.
func appendBigInt(dst, b []byte) (out []byte, ok bool) {
	b = trimSpace(b)
	neg := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg = b[0] == '-'
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 4300 || b[0] == '_' || b[len(b)-1] == '_' {
		return dst, false
	}
	start := len(dst)
	if neg {
		dst = append(dst, '-')
	}
	first := len(dst)
	for i, c := range b {
		switch {
		case c == '_' && b[i-1] != '_':
		case c-'0' <= 9:
			if c != '0' || len(dst) > first {
				dst = append(dst, c)
			}
		default:
			return dst[:start], false
		}
	}
	if len(dst) == first {
		return append(dst[:start], '0'), true
	}
	return dst, true
}

// parseFloat reads a float64 as pandas does: spaces around, a sign, digits
// before or after the point, an exponent with digits; inf and infinity in any
// case without spaces. The value is the nearest one; too large is infinite.
func parseFloat(b []byte) (float64, bool) {
	if v, ok := parsePlain(b); ok {
		return v, true
	}
	i, n := 0, len(b)
	for i < n && isSpace(b[i]) {
		i++
	}
	start := i
	neg := false
	if i < n && (b[i] == '-' || b[i] == '+') {
		neg = b[i] == '-'
		i++
	}
	mantissa := uint64(0)
	digits := 0 // significant ones; more than 19 do not fit
	any := false
	for ; i < n && b[i]-'0' <= 9; i++ {
		any = true
		if mantissa > 0 || b[i] != '0' {
			digits++
		}
		mantissa = mantissa*10 + uint64(b[i]-'0')
	}
	exp := 0
	if i < n && b[i] == '.' {
		for i++; i < n && b[i]-'0' <= 9; i++ {
			any = true
			if mantissa > 0 || b[i] != '0' {
				digits++
			}
			mantissa = mantissa*10 + uint64(b[i]-'0')
			exp--
		}
	}
	if !any {
		return parseInf(b)
	}
	hasExp := i < n && (b[i] == 'e' || b[i] == 'E')
	if hasExp {
		i++
		if i < n && (b[i] == '-' || b[i] == '+') {
			i++
		}
		from := i
		for i < n && b[i]-'0' <= 9 {
			i++
		}
		if i == from {
			return 0, false
		}
	}
	end := i
	for i < n && isSpace(b[i]) {
		i++
	}
	if i < n {
		return 0, false
	}
	if !hasExp && digits <= 19 && mantissa <= 1<<53 && exp >= -22 {
		// Both are exact, so the quotient is the nearest value.
		v := float64(mantissa) / exactPow10[-exp]
		if neg {
			v = -v
		}
		return v, true
	}
	v, err := strconv.ParseFloat(view(b[start:end]), 64)
	return v, err == nil || math.IsInf(v, 0)
}

// parsePlain reads a short number of digits, perhaps with a minus and a point,
// which is what most are. It says no more than that when ok is false.
func parsePlain(b []byte) (v float64, ok bool) {
	digits := b
	if len(b) > 0 && b[0] == '-' {
		digits = b[1:]
	}
	if len(digits) < 2 || len(digits) > 17 {
		return 0, false
	}
	mantissa, point := uint64(0), -1
	for i, c := range digits {
		if c -= '0'; c > 9 {
			if digits[i] != '.' || point >= 0 {
				return 0, false
			}
			point = i
			continue
		}
		mantissa = mantissa*10 + uint64(c)
	}
	v = float64(mantissa)
	if mantissa > 1<<53 {
		return 0, false
	}
	if point >= 0 {
		v /= exactPow10[len(digits)-1-point] // both are exact, so this is the nearest value
	}
	if len(digits) < len(b) {
		v = -v
	}
	return v, true
}

// plainFloat reports whether b is digits, a point and digits, perhaps with a
// minus: a number by all rules. It saves most values from parseFloat.
func plainFloat(b []byte) bool {
	if len(b) > 0 && b[0] == '-' {
		b = b[1:]
	}
	i := 0
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	if i == 0 || i == len(b) || b[i] != '.' {
		return false
	}
	for i++; i < len(b); i++ {
		if b[i]-'0' > 9 {
			return false
		}
	}
	return true
}

// exactPow10 are the powers of ten that a float64 holds exactly.
var exactPow10 = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12,
	1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

func parseInf(b []byte) (float64, bool) {
	sign := 1
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		if b[0] == '-' {
			sign = -1
		}
		b = b[1:]
	}
	if equalFold(b, "inf") || equalFold(b, "infinity") {
		return math.Inf(sign), true
	}
	return 0, false
}

// parseBool reads true and false in any case.
func parseBool(b []byte) (v, ok bool) {
	if equalFold(b, "true") {
		return true, true
	}
	return false, equalFold(b, "false")
}

// equalFold compares with a lower-case ASCII word.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c|0x20 != lower[i] {
			return false
		}
	}
	return true
}
