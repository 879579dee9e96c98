package mysql

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
)

// encoder appends a value, which is not null, as a literal of SQL.
type encoder func(dst []byte, row int) ([]byte, error)

// target is a column of the table that is written to.
type target struct {
	name     string
	dataType string // as information_schema has it, "decimal"
	scale    int    // decimals of a number; -1 where there is no limit
	fraction int    // decimals of a second

	rounded int64 // values that had more than the column holds
}

// places returns how many decimals of a second the column keeps. ok is false
// where it is no time.
func (t *target) places() (n int, ok bool) {
	switch t.dataType {
	case "datetime", "timestamp", "time":
		return t.fraction, true
	case "date":
		return 0, true
	}
	return 0, false
}

// encoderOf returns how the values of an array are told to a column.
func encoderOf(values arrow.Array, t *target) (encoder, error) {
	switch a := values.(type) {
	case *array.Boolean:
		return func(dst []byte, row int) ([]byte, error) {
			if a.Value(row) {
				return append(dst, '1'), nil
			}
			return append(dst, '0'), nil
		}, nil
	case *array.Int8:
		return encodeInt(a.Value), nil
	case *array.Int16:
		return encodeInt(a.Value), nil
	case *array.Int32:
		return encodeInt(a.Value), nil
	case *array.Int64:
		return encodeInt(a.Value), nil
	case *array.Uint8:
		return encodeUint(a.Value), nil
	case *array.Uint16:
		return encodeUint(a.Value), nil
	case *array.Uint32:
		return encodeUint(a.Value), nil
	case *array.Uint64:
		return encodeUint(a.Value), nil
	case *array.Float16:
		return encodeFloat(func(row int) float64 { return float64(a.Value(row).Float32()) }, t), nil
	case *array.Float32:
		return encodeFloat(func(row int) float64 { return float64(a.Value(row)) }, t), nil
	case *array.Float64:
		return encodeFloat(a.Value, t), nil
	case *array.Decimal128:
		scale := a.DataType().(*arrow.Decimal128Type).Scale
		return encodeDecimal(func(row int) *big.Int { return a.Value(row).BigInt() }, int(scale), t), nil
	case *array.Decimal256:
		scale := a.DataType().(*arrow.Decimal256Type).Scale
		return encodeDecimal(func(row int) *big.Int { return a.Value(row).BigInt() }, int(scale), t), nil
	case *array.String:
		return encodeText(func(row int) string { return a.Value(row) }), nil
	case *array.LargeString:
		return encodeText(func(row int) string { return a.Value(row) }), nil
	case *array.Binary:
		return encodeBinary(a.Value), nil
	case *array.LargeBinary:
		return encodeBinary(a.Value), nil
	case *array.FixedSizeBinary:
		return encodeBinary(a.Value), nil
	case *array.Date32:
		return encodeDate(func(row int) int64 { return int64(a.Value(row)) }), nil
	case *array.Date64:
		return encodeDate(func(row int) int64 { return floorDiv(int64(a.Value(row)), 86400e3) }), nil
	case *array.Timestamp:
		return encodeTimestamp(a, t), nil
	case *array.Time32:
		unit := int64(a.DataType().(*arrow.Time32Type).Unit.Multiplier())
		return encodeClock(func(row int) (int64, int64) { return int64(a.Value(row)), unit }, t), nil
	case *array.Time64:
		unit := int64(a.DataType().(*arrow.Time64Type).Unit.Multiplier())
		return encodeClock(func(row int) (int64, int64) { return int64(a.Value(row)), unit }, t), nil
	case *array.Duration:
		unit := int64(a.DataType().(*arrow.DurationType).Unit.Multiplier())
		return encodeClock(func(row int) (int64, int64) { return int64(a.Value(row)), unit }, t), nil
	case *array.Null:
		return func(dst []byte, _ int) ([]byte, error) { return append(dst, "NULL"...), nil }, nil
	case *array.Dictionary:
		encode, err := encoderOf(a.Dictionary(), t)
		if err != nil {
			return nil, err
		}
		return func(dst []byte, row int) ([]byte, error) {
			if i := a.GetValueIndex(row); !a.Dictionary().IsNull(i) {
				return encode(dst, i)
			}
			return append(dst, "NULL"...), nil
		}, nil
	case array.ExtensionArray:
		return encoderOf(a.Storage(), t)
	case *array.List, *array.LargeList, *array.FixedSizeList, *array.Struct, *array.Map:
		return encodeJSON(a), nil
	}
	return nil, fmt.Errorf("values of type %s cannot be written to MySQL", values.DataType())
}

func encodeInt[T int8 | int16 | int32 | int64](value func(int) T) encoder {
	return func(dst []byte, row int) ([]byte, error) { return strconv.AppendInt(dst, int64(value(row)), 10), nil }
}

func encodeUint[T uint8 | uint16 | uint32 | uint64](value func(int) T) encoder {
	return func(dst []byte, row int) ([]byte, error) { return strconv.AppendUint(dst, uint64(value(row)), 10), nil }
}

// encodeFloat writes what is not a number as null, as pandas does: it means
// nothing else there.
func encodeFloat(value func(int) float64, t *target) encoder {
	whole := t.scale == 0 && t.dataType != "decimal"
	return func(dst []byte, row int) ([]byte, error) {
		f := value(row)
		switch {
		case math.IsNaN(f):
			return append(dst, "NULL"...), nil
		case math.IsInf(f, 0):
			return nil, errors.New("MySQL has no infinity")
		case whole && f != math.Trunc(f):
			t.rounded++
		}
		// With an exponent, or it would be taken for a DECIMAL.
		return strconv.AppendFloat(dst, f, 'e', -1, 64), nil
	}
}

func encodeDecimal(value func(int) *big.Int, scale int, t *target) encoder {
	var unit *big.Int // what the last decimal of the column is worth
	if t.scale >= 0 && scale > t.scale {
		unit = new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale-t.scale)), nil)
	}
	rest := new(big.Int)
	return func(dst []byte, row int) ([]byte, error) {
		n := value(row)
		if unit != nil && rest.Rem(n, unit).Sign() != 0 {
			t.rounded++
		}
		return appendDecimal(dst, n, scale), nil
	}
}

// appendDecimal writes n / 10^scale.
func appendDecimal(dst []byte, n *big.Int, scale int) []byte {
	if n.Sign() < 0 {
		dst = append(dst, '-')
	}
	digits := new(big.Int).Abs(n).String()
	for ; scale < 0; scale++ {
		digits += "0"
	}
	if scale == 0 {
		return append(dst, digits...)
	}
	for len(digits) <= scale {
		digits = "0" + digits
	}
	dst = append(dst, digits[:len(digits)-scale]...)
	dst = append(dst, '.')
	return append(dst, digits[len(digits)-scale:]...)
}

func encodeText(value func(int) string) encoder {
	return func(dst []byte, row int) ([]byte, error) {
		s := value(row)
		if !utf8.ValidString(s) {
			return nil, errors.New("the text is not valid UTF-8")
		}
		return appendQuoted(dst, s), nil
	}
}

func encodeBinary(value func(int) []byte) encoder {
	return func(dst []byte, row int) ([]byte, error) {
		return appendQuoted(append(dst, "_binary"...), value(row)), nil
	}
}

// appendQuoted quotes as MySQL does without NO_BACKSLASH_ESCAPES.
func appendQuoted[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '\'')
	from := 0
	for i := range len(s) {
		var c byte
		switch s[i] {
		case 0:
			c = '0'
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		case 0x1a:
			c = 'Z'
		case '\\', '\'':
			c = s[i]
		default:
			continue
		}
		dst = append(dst, s[from:i]...)
		dst = append(dst, '\\', c)
		from = i + 1
	}
	dst = append(dst, s[from:]...)
	return append(dst, '\'')
}

// appendName quotes the name of a table or a column.
func appendName(dst []byte, name string) []byte {
	dst = append(dst, '`')
	for i := range len(name) {
		if name[i] == '`' {
			dst = append(dst, '`')
		}
		dst = append(dst, name[i])
	}
	return append(dst, '`')
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}

func encodeDate(days func(int) int64) encoder {
	return func(dst []byte, row int) ([]byte, error) {
		dst, err := appendDay(append(dst, '\''), days(row))
		return append(dst, '\''), err
	}
}

// appendDay writes a day, given in days since 1970.
func appendDay(dst []byte, days int64) ([]byte, error) {
	const first, last = -719528, 2932896 // of the years 0 to 9999
	if days < first || days > last {
		return dst, errors.New("the year is not from 0 to 9999")
	}
	return time.Unix(days*86400, 0).UTC().AppendFormat(dst, time.DateOnly), nil
}

// fractionOf returns the 6 decimals that MySQL has at most, and whether the
// column keeps all there are.
func fractionOf(ns int64, places int, limited bool) (us int64, kept bool) {
	us = ns / 1000
	if !limited {
		places = 6
	}
	unit := int64(1e9)
	for range places {
		unit /= 10
	}
	return us, ns%unit == 0
}

func appendClock(dst []byte, seconds, us int64) []byte {
	dst = appendTwo(dst, seconds/3600)
	dst = appendTwo(append(dst, ':'), seconds/60%60)
	dst = appendTwo(append(dst, ':'), seconds%60)
	if us == 0 {
		return dst
	}
	dst = append(dst, '.')
	for unit := int64(100000); unit > 0; unit /= 10 {
		dst = append(dst, byte('0'+us/unit%10))
	}
	return dst
}

func appendTwo(dst []byte, n int64) []byte {
	if n < 10 {
		dst = append(dst, '0')
	}
	return strconv.AppendInt(dst, n, 10)
}

// encodeTimestamp writes the time of day in UTC where there is a zone: that is
// the session's.
func encodeTimestamp(a *array.Timestamp, t *target) encoder {
	perSecond := int64(time.Second) / int64(a.DataType().(*arrow.TimestampType).Unit.Multiplier())
	places, limited := t.places()
	return func(dst []byte, row int) ([]byte, error) {
		v := int64(a.Value(row))
		seconds := floorDiv(v, perSecond)
		us, kept := fractionOf((v-seconds*perSecond)*(1e9/perSecond), places, limited)
		days := floorDiv(seconds, 86400)
		seconds -= days * 86400
		if !kept || t.dataType == "date" && (seconds != 0 || us != 0) {
			t.rounded++
		}
		dst, err := appendDay(append(dst, '\''), days)
		dst = appendClock(append(dst, ' '), seconds, us)
		return append(dst, '\''), err
	}
}

// encodeClock writes a time of day, or a duration, given in units of so many
// nanoseconds.
func encodeClock(value func(int) (n, unit int64), t *target) encoder {
	places, limited := t.places()
	return func(dst []byte, row int) ([]byte, error) {
		n, unit := value(row)
		perSecond := int64(time.Second) / unit
		dst = append(dst, '\'')
		if n < 0 {
			dst = append(dst, '-')
		}
		// The sign is that of the parts, too: the least integer has no opposite.
		seconds, ns := n/perSecond, n%perSecond*unit
		if n < 0 {
			seconds, ns = -seconds, -ns
		}
		us, kept := fractionOf(ns, places, limited)
		if !kept {
			t.rounded++
		}
		return append(appendClock(dst, seconds, us), '\''), nil
	}
}

func encodeJSON(a arrow.Array) encoder {
	return func(dst []byte, row int) ([]byte, error) {
		b, err := json.Marshal(a.GetOneForMarshal(row))
		if err != nil {
			return nil, err
		}
		return appendQuoted(dst, b), nil
	}
}
