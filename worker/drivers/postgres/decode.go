package postgres

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/decimal128"
	"github.com/apache/arrow/go/v17/arrow/decimal256"
)

// PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01.
const (
	epochDays   = 10957
	epochMicros = epochDays * 86400 * 1_000_000
	dayMicros   = 86400 * 1_000_000
)

// errSpecial is matched by the error for a value that Arrow's type has no room
// for: infinity, NaN in a decimal, a time of 24:00:00.
var errSpecial = errors.New("has no counterpart in Arrow")

func special(v string) error {
	return fmt.Errorf("%s %w; set special_values: \"null\" to read it as null, or cast the column to text in the query", v, errSpecial)
}

// errFormat is the error for bytes that are no value of their type.
var errFormat = errors.New("the server sent a value that is malformed")

// decoder appends a value, as the server sent it, to a builder.
type decoder func(b []byte) error

// specials is what is done with values that Arrow's types have no room for.
type specials struct {
	null  bool  // they become null; otherwise they are an error
	count int64 // of those that did
}

// newDecoder returns the decoder of a type. The builder is one of the type's
// arrowType.
func newDecoder(t *pgType, builder array.Builder, s *specials) decoder {
	decode := newValueDecoder(t, builder, s)
	if !s.null {
		return decode
	}
	switch t.kind {
	case kNumeric, kDate, kTime, kTimestamp, kTimestampTZ, kInterval:
		return func(b []byte) error {
			err := decode(b)
			if errors.Is(err, errSpecial) {
				s.count++
				builder.AppendNull()
				return nil
			}
			return err
		}
	}
	return decode
}

func newValueDecoder(t *pgType, builder array.Builder, s *specials) decoder {
	switch t.kind {
	case kBool:
		out := builder.(*array.BooleanBuilder)
		return fixed(1, func(b []byte) error { out.Append(b[0] != 0); return nil })
	case kInt2:
		out := builder.(*array.Int16Builder)
		return fixed(2, func(b []byte) error { out.Append(int16(binary.BigEndian.Uint16(b))); return nil })
	case kInt4:
		out := builder.(*array.Int32Builder)
		return fixed(4, func(b []byte) error { out.Append(int32(binary.BigEndian.Uint32(b))); return nil })
	case kInt8:
		out := builder.(*array.Int64Builder)
		return fixed(8, func(b []byte) error { out.Append(int64(binary.BigEndian.Uint64(b))); return nil })
	case kOID:
		out := builder.(*array.Uint32Builder)
		return fixed(4, func(b []byte) error { out.Append(binary.BigEndian.Uint32(b)); return nil })
	case kXID8:
		out := builder.(*array.Uint64Builder)
		return fixed(8, func(b []byte) error { out.Append(binary.BigEndian.Uint64(b)); return nil })
	case kFloat4:
		out := builder.(*array.Float32Builder)
		return fixed(4, func(b []byte) error { out.Append(math.Float32frombits(binary.BigEndian.Uint32(b))); return nil })
	case kFloat8:
		out := builder.(*array.Float64Builder)
		return fixed(8, func(b []byte) error { out.Append(math.Float64frombits(binary.BigEndian.Uint64(b))); return nil })
	case kNumeric:
		return newNumericDecoder(t, builder)
	case kMoney:
		out := builder.(*array.Decimal128Builder)
		return fixed(8, func(b []byte) error {
			out.Append(decimal128.FromI64(int64(binary.BigEndian.Uint64(b))))
			return nil
		})
	case kJSONB:
		out := builder.(*array.StringBuilder)
		return func(b []byte) error {
			if len(b) == 0 || b[0] != 1 {
				return errFormat // of another version
			}
			return appendText(out, b[1:])
		}
	case kBytea:
		out := builder.(*array.BinaryBuilder)
		return func(b []byte) error { out.Append(b); return nil }
	case kDate:
		out := builder.(*array.Date32Builder)
		return fixed(4, func(b []byte) error {
			days := int32(binary.BigEndian.Uint32(b))
			if days == math.MaxInt32 || days == math.MinInt32 {
				return special(infinity(days > 0))
			}
			out.Append(arrow.Date32(days + epochDays)) // dates end in 5874897
			return nil
		})
	case kTime:
		out := builder.(*array.Time64Builder)
		return fixed(8, func(b []byte) error {
			micros := int64(binary.BigEndian.Uint64(b))
			if micros == dayMicros {
				return special("24:00:00")
			}
			if micros < 0 || micros > dayMicros {
				return errFormat
			}
			out.Append(arrow.Time64(micros))
			return nil
		})
	case kTimestamp, kTimestampTZ:
		out := builder.(*array.TimestampBuilder)
		return fixed(8, func(b []byte) error {
			micros := int64(binary.BigEndian.Uint64(b))
			switch {
			case micros == math.MaxInt64 || micros == math.MinInt64:
				return special(infinity(micros > 0))
			case micros > math.MaxInt64-epochMicros:
				return special("a time after the year 294246")
			}
			out.Append(arrow.Timestamp(micros + epochMicros))
			return nil
		})
	case kInterval:
		out := builder.(*array.MonthDayNanoIntervalBuilder)
		return fixed(16, func(b []byte) error {
			micros := int64(binary.BigEndian.Uint64(b))
			days, months := int32(binary.BigEndian.Uint32(b[8:])), int32(binary.BigEndian.Uint32(b[12:]))
			switch {
			case days == months && (micros == math.MaxInt64 && days == math.MaxInt32 || micros == math.MinInt64 && days == math.MinInt32):
				return special(infinity(days > 0))
			case micros > math.MaxInt64/1000 || micros < math.MinInt64/1000:
				return special("an interval of more than 2562047 hours")
			}
			out.Append(arrow.MonthDayNanoInterval{Months: months, Days: days, Nanoseconds: micros * 1000})
			return nil
		})
	case kUUID:
		out := builder.(*array.StringBuilder)
		var text [36]byte
		return fixed(16, func(b []byte) error {
			putUUID(&text, b)
			out.BinaryBuilder.Append(text[:])
			return nil
		})
	case kArray:
		return newArrayDecoder(t, builder.(*array.ListBuilder), s)
	case kText, kJSON:
		out := builder.(*array.StringBuilder)
		return func(b []byte) error { return appendText(out, b) }
	}
	out := builder.(*array.StringBuilder)
	if t.oid == 18 { // "char" is a byte of any value
		return func(b []byte) error {
			if !utf8.Valid(b) {
				b = fmt.Appendf(nil, `\%03o`, b[0])
			}
			return appendText(out, b)
		}
	}
	return func(b []byte) error { return appendText(out, b) }
}

// fixed checks the length of a value.
func fixed(size int, decode decoder) decoder {
	return func(b []byte) error {
		if len(b) != size {
			return errFormat
		}
		return decode(b)
	}
}

func infinity(positive bool) string {
	if positive {
		return "infinity"
	}
	return "-infinity"
}

// appendText takes a text, which is UTF-8: the server was asked for it.
func appendText(out *array.StringBuilder, b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("the text is not valid UTF-8")
	}
	out.BinaryBuilder.Append(b)
	return nil
}

func putUUID(text *[36]byte, b []byte) {
	hex.Encode(text[:8], b[:4])
	hex.Encode(text[9:13], b[4:6])
	hex.Encode(text[14:18], b[6:8])
	hex.Encode(text[19:23], b[8:10])
	hex.Encode(text[24:], b[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
}

// numeric is the binary format of numeric: digits of base 10000, the first of
// weight 10000^weight.
type numeric struct {
	digits []byte // two bytes each
	weight int
	sign   uint16
	dscale int // decimals to show
}

const (
	numericNegative = 0x4000
	numericNaN      = 0xC000
	numericInf      = 0xD000
	numericNegInf   = 0xF000
)

func parseNumeric(b []byte) (n numeric, err error) {
	if len(b) < 8 || len(b) != 8+2*int(binary.BigEndian.Uint16(b)) {
		return n, errFormat
	}
	n = numeric{
		digits: b[8:],
		weight: int(int16(binary.BigEndian.Uint16(b[2:]))),
		sign:   binary.BigEndian.Uint16(b[4:]),
		dscale: int(binary.BigEndian.Uint16(b[6:])),
	}
	for i := 0; i < len(n.digits); i += 2 {
		if binary.BigEndian.Uint16(n.digits[i:]) > 9999 {
			return n, errFormat
		}
	}
	switch n.sign {
	case 0, numericNegative, numericNaN, numericInf, numericNegInf:
		return n, nil
	}
	return n, errFormat
}

// special returns the name of a number that is none.
func (n *numeric) special() string {
	switch n.sign {
	case numericNaN:
		return "NaN"
	case numericInf:
		return "Infinity"
	case numericNegInf:
		return "-Infinity"
	}
	return ""
}

func (n *numeric) digit(i int) int {
	if i < 0 || 2*i >= len(n.digits) {
		return 0
	}
	return int(binary.BigEndian.Uint16(n.digits[2*i:]))
}

// appendText appends the number as the server would write it.
func (n *numeric) appendText(b []byte) []byte {
	if s := n.special(); s != "" {
		return append(b, s...)
	}
	if n.sign == numericNegative {
		b = append(b, '-')
	}
	if n.weight < 0 {
		b = append(b, '0')
	} else {
		b = strconv.AppendInt(b, int64(n.digit(0)), 10)
		for i := 1; i <= n.weight; i++ {
			b = appendDigit(b, n.digit(i))
		}
	}
	if n.dscale == 0 {
		return b
	}
	b = append(b, '.')
	end := len(b) + n.dscale
	for i := n.weight + 1; len(b) < end; i++ {
		b = appendDigit(b, n.digit(i))
	}
	return b[:end]
}

func appendDigit(b []byte, d int) []byte {
	return append(b, byte('0'+d/1000), byte('0'+d/100%10), byte('0'+d/10%10), byte('0'+d%10))
}

// decimal128 returns the number as an integer of the scale. It reports false
// where it takes more than the fast way.
func (n *numeric) decimal128(scale int) (decimal128.Num, bool) {
	var hi, lo uint64
	mul := func(by, add uint64) bool {
		over, h1 := bits.Mul64(hi, by)
		h2, l := bits.Mul64(lo, by)
		l, carry := bits.Add64(l, add, 0)
		h, carry := bits.Add64(h1, h2, carry)
		hi, lo = h, l
		return over == 0 && carry == 0
	}
	count := len(n.digits) / 2
	for i := range count {
		if !mul(10000, uint64(n.digit(i))) {
			return decimal128.Num{}, false
		}
	}
	exponent := 4*(n.weight-count+1) + scale
	for ; exponent > 0 && hi|lo != 0; exponent-- {
		if !mul(10, 0) {
			return decimal128.Num{}, false
		}
	}
	for ; exponent < 0; exponent++ {
		var r uint64
		hi, r = hi/10, hi%10
		if lo, r = bits.Div64(r, lo, 10); r != 0 {
			return decimal128.Num{}, false
		}
	}
	if hi>>63 != 0 {
		return decimal128.Num{}, false
	}
	v := decimal128.New(int64(hi), lo)
	if n.sign == numericNegative {
		v = v.Negate()
	}
	return v, true
}

// bigInt returns the number as an integer of the scale; false if it has more
// decimals.
func (n *numeric) bigInt(scale int) (*big.Int, bool) {
	v, base := new(big.Int), big.NewInt(10000)
	count := len(n.digits) / 2
	for i := range count {
		v.Mul(v, base).Add(v, big.NewInt(int64(n.digit(i))))
	}
	exponent := 4*(n.weight-count+1) + scale
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exponent, -exponent))), nil)
	exact := true
	if exponent >= 0 {
		v.Mul(v, power)
	} else {
		rest := new(big.Int)
		v.QuoRem(v, power, rest)
		exact = rest.Sign() == 0
	}
	if n.sign == numericNegative {
		v.Neg(v)
	}
	return v, exact
}

func newNumericDecoder(t *pgType, builder array.Builder) decoder {
	precision, scale := t.decimal()
	value := func(b []byte) (n numeric, err error) {
		if n, err = parseNumeric(b); err == nil {
			if s := n.special(); s != "" {
				return n, special(s)
			}
		}
		return n, err
	}
	exact := func(n *numeric) (*big.Int, error) {
		if n.weight > 40 || n.weight < -40 { // beyond any decimal, and Exp would take long
			return nil, errFormat
		}
		v, ok := n.bigInt(scale)
		if !ok || len(v.Text(10)) > precision+1 {
			return nil, errFormat
		}
		return v, nil
	}
	switch out := builder.(type) {
	case *array.Decimal128Builder:
		return func(b []byte) error {
			n, err := value(b)
			if err != nil {
				return err
			}
			if v, ok := n.decimal128(scale); ok && v.FitsInPrecision(int32(precision)) {
				out.Append(v)
				return nil
			}
			v, err := exact(&n)
			if err != nil || v.BitLen() > 127 {
				return errFormat
			}
			out.Append(decimal128.FromBigInt(v))
			return nil
		}
	case *array.Decimal256Builder:
		return func(b []byte) error {
			n, err := value(b)
			if err != nil {
				return err
			}
			v, err := exact(&n)
			if err != nil || v.BitLen() > 255 {
				return errFormat
			}
			out.Append(decimal256.FromBigInt(v))
			return nil
		}
	}
	out := builder.(*array.StringBuilder)
	var text []byte
	return func(b []byte) error {
		n, err := parseNumeric(b) // as text, NaN is no special value
		if err != nil {
			return err
		}
		text = n.appendText(text[:0])
		out.BinaryBuilder.Append(text)
		return nil
	}
}
