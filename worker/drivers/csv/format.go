package csv

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
)

// formatter appends one value of an array as pandas' to_csv prints it. The
// value is not null.
type formatter func(dst []byte, row int) ([]byte, error)

// appendFloat appends a float of 16, 32 or 64 bits as Python's repr and numpy's
// print it: the shortest text that reads back the same.
func appendFloat(dst []byte, v float64, width int) []byte {
	switch {
	case math.IsInf(v, 1):
		return append(dst, "inf"...)
	case math.IsInf(v, -1):
		return append(dst, "-inf"...)
	}
	high := 1e16
	switch width {
	case 32:
		high = 1e6
	case 16:
		high = 1e3
	}
	if a := math.Abs(v); a != 0 && (a < 1e-4 || a >= high) {
		return strconv.AppendFloat(dst, v, 'e', -1, max(width, 32))
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, v, 'f', -1, max(width, 32))
	for _, c := range dst[start:] {
		if c == '.' {
			return dst
		}
	}
	return append(dst, ".0"...)
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, "True"...)
	}
	return append(dst, "False"...)
}

// shape is what a whole column has in common: how many decimals its times
// need, and whether all are whole days.
type shape struct {
	decimals int
	clock    bool
}

// shapes reports whether values of the type are printed by their column's shape.
func shapes(t arrow.DataType) bool {
	switch t.ID() {
	case arrow.TIMESTAMP, arrow.DURATION:
		return true
	case arrow.DICTIONARY:
		return shapes(t.(*arrow.DictionaryType).ValueType)
	}
	return false
}

// observe takes in the times of an array.
func (s *shape) observe(a arrow.Array) {
	switch a := a.(type) {
	case *array.Dictionary:
		s.observe(a.Dictionary())
	case *array.Timestamp:
		per := unitsPerSecond(a.DataType().(*arrow.TimestampType).Unit)
		for i, v := range a.TimestampValues() {
			if a.IsValid(i) {
				s.add(int64(v), per)
			}
		}
	case *array.Duration:
		per := unitsPerSecond(a.DataType().(*arrow.DurationType).Unit)
		for i, v := range a.DurationValues() {
			if a.IsValid(i) {
				s.add(int64(v), per)
			}
		}
	}
}

func (s *shape) add(v, per int64) {
	seconds, nanos := split(v, per)
	if seconds%86400 != 0 || nanos != 0 {
		s.clock = true
	}
	switch {
	case nanos%1e3 != 0:
		s.decimals = 9
	case nanos%1e6 != 0:
		s.decimals = max(s.decimals, 6)
	case nanos != 0:
		s.decimals = max(s.decimals, 3)
	}
}

func unitsPerSecond(u arrow.TimeUnit) int64 { return int64(time.Second / u.Multiplier()) }

// split returns whole seconds, rounded down, and the rest in nanoseconds.
func split(v, per int64) (seconds, nanos int64) {
	seconds, rest := v/per, v%per
	if rest < 0 {
		seconds--
		rest += per
	}
	return seconds, rest * (1e9 / per)
}

// newFormatter returns the formatter of an array and whether its values are
// numbers, which quoting nonnumeric leaves bare. It fails for types that have
// no text.
func newFormatter(a arrow.Array, s shape) (f formatter, numeric bool, err error) {
	switch a := a.(type) {
	case *array.Null:
		return func(dst []byte, _ int) ([]byte, error) { return dst, nil }, false, nil
	case *array.Boolean:
		return func(dst []byte, i int) ([]byte, error) { return appendBool(dst, a.Value(i)), nil }, true, nil
	case *array.Float64:
		return func(dst []byte, i int) ([]byte, error) { return appendFloat(dst, a.Value(i), 64), nil }, true, nil
	case *array.Float32:
		return func(dst []byte, i int) ([]byte, error) { return appendFloat(dst, float64(a.Value(i)), 32), nil }, true, nil
	case *array.Float16:
		return func(dst []byte, i int) ([]byte, error) { return appendFloat16(dst, a.Value(i).Float32()), nil }, true, nil
	case *array.String:
		return func(dst []byte, i int) ([]byte, error) { return append(dst, a.Value(i)...), nil }, false, nil
	case *array.LargeString:
		return func(dst []byte, i int) ([]byte, error) { return append(dst, a.Value(i)...), nil }, false, nil
	case *array.Timestamp:
		f, err := timestampFormatter(a, s)
		return f, false, err
	case *array.Duration:
		per := unitsPerSecond(a.DataType().(*arrow.DurationType).Unit)
		return func(dst []byte, i int) ([]byte, error) { return appendDuration(dst, int64(a.Value(i)), per, s), nil }, false, nil
	case *array.Date32:
		return func(dst []byte, i int) ([]byte, error) { return appendDay(dst, a.Value(i).ToTime()), nil }, false, nil
	case *array.Date64:
		return func(dst []byte, i int) ([]byte, error) { return appendDay(dst, a.Value(i).ToTime()), nil }, false, nil
	case *array.Time32:
		per := unitsPerSecond(a.DataType().(*arrow.Time32Type).Unit)
		return func(dst []byte, i int) ([]byte, error) { return appendClock(dst, int64(a.Value(i)), per), nil }, false, nil
	case *array.Time64:
		per := unitsPerSecond(a.DataType().(*arrow.Time64Type).Unit)
		return func(dst []byte, i int) ([]byte, error) { return appendClock(dst, int64(a.Value(i)), per), nil }, false, nil
	case *array.Decimal128:
		scale := a.DataType().(*arrow.Decimal128Type).Scale
		return func(dst []byte, i int) ([]byte, error) { return append(dst, a.Value(i).ToString(scale)...), nil }, true, nil
	case *array.Decimal256:
		scale := a.DataType().(*arrow.Decimal256Type).Scale
		return func(dst []byte, i int) ([]byte, error) { return append(dst, a.Value(i).ToString(scale)...), nil }, true, nil
	case *array.Dictionary:
		inner, numeric, err := newFormatter(a.Dictionary(), s)
		if err != nil {
			return nil, false, err
		}
		return func(dst []byte, i int) ([]byte, error) {
			if k := a.GetValueIndex(i); a.Dictionary().IsValid(k) {
				return inner(dst, k)
			}
			return dst, nil
		}, numeric, nil
	case array.ExtensionArray:
		return newFormatter(a.Storage(), s)
	case *array.Struct, array.ListLike:
		return func(dst []byte, i int) ([]byte, error) {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(a.GetOneForMarshal(i)); err != nil {
				return dst, err
			}
			return append(dst, bytes.TrimRight(b.Bytes(), "\n")...), nil
		}, false, nil
	}
	if f := intFormatter(a); f != nil {
		return f, true, nil
	}
	return nil, false, fmt.Errorf("values of type %s have no text form; convert the column first", a.DataType())
}

func intFormatter(a arrow.Array) formatter {
	signed := func(at func(int) int64) formatter {
		return func(dst []byte, i int) ([]byte, error) { return strconv.AppendInt(dst, at(i), 10), nil }
	}
	unsigned := func(at func(int) uint64) formatter {
		return func(dst []byte, i int) ([]byte, error) { return strconv.AppendUint(dst, at(i), 10), nil }
	}
	switch a := a.(type) {
	case *array.Int64:
		return signed(a.Value)
	case *array.Int32:
		return signed(func(i int) int64 { return int64(a.Value(i)) })
	case *array.Int16:
		return signed(func(i int) int64 { return int64(a.Value(i)) })
	case *array.Int8:
		return signed(func(i int) int64 { return int64(a.Value(i)) })
	case *array.Uint64:
		return unsigned(a.Value)
	case *array.Uint32:
		return unsigned(func(i int) uint64 { return uint64(a.Value(i)) })
	case *array.Uint16:
		return unsigned(func(i int) uint64 { return uint64(a.Value(i)) })
	case *array.Uint8:
		return unsigned(func(i int) uint64 { return uint64(a.Value(i)) })
	}
	return nil
}

// appendFloat16 appends the shortest decimal that reads back as the same
// half-precision value.
func appendFloat16(dst []byte, v float32) []byte {
	f := float64(v)
	for digits := 1; digits < 5; digits++ {
		short, err := strconv.ParseFloat(strconv.FormatFloat(f, 'e', digits-1, 32), 64)
		if err == nil && halfStep(f) > 2*math.Abs(short-f) {
			f = short
			break
		}
	}
	return appendFloat(dst, f, 16)
}

// halfStep returns the distance between neighbours of f in half precision.
func halfStep(f float64) float64 {
	_, exp := math.Frexp(f)
	return math.Ldexp(1, max(exp, -13)-11)
}

func timestampFormatter(a *array.Timestamp, s shape) (formatter, error) {
	t := a.DataType().(*arrow.TimestampType)
	per := unitsPerSecond(t.Unit)
	zone := time.UTC
	if t.TimeZone != "" {
		var err error
		if zone, err = t.GetZone(); err != nil {
			return nil, fmt.Errorf("time zone %q: %w", t.TimeZone, err)
		}
	}
	return func(dst []byte, i int) ([]byte, error) {
		seconds, nanos := split(int64(a.Value(i)), per)
		at := time.Unix(seconds, 0).In(zone)
		dst = appendDay(dst, at)
		if t.TimeZone == "" && !s.clock {
			return dst, nil
		}
		h, m, sec := at.Clock()
		dst = appendHMS(append(dst, ' '), h, m, sec)
		dst = appendFraction(dst, nanos, s.decimals)
		if t.TimeZone != "" {
			_, offset := at.Zone()
			dst = append(dst, formatOffset(offset/60)...)
		}
		return dst, nil
	}, nil
}

func appendDay(dst []byte, t time.Time) []byte {
	y, m, d := t.Date()
	if y < 0 {
		dst = append(dst, '-')
		y = -y
	}
	dst = appendPadded(dst, int64(y), 4)
	dst = append(dst, '-')
	dst = appendPadded(dst, int64(m), 2)
	dst = append(dst, '-')
	return appendPadded(dst, int64(d), 2)
}

func appendHMS(dst []byte, h, m, s int) []byte {
	dst = appendPadded(dst, int64(h), 2)
	dst = append(dst, ':')
	dst = appendPadded(dst, int64(m), 2)
	dst = append(dst, ':')
	return appendPadded(dst, int64(s), 2)
}

func appendFraction(dst []byte, nanos int64, decimals int) []byte {
	if decimals == 0 {
		return dst
	}
	dst = appendPadded(append(dst, '.'), nanos, 9)
	return dst[:len(dst)-9+decimals]
}

func appendPadded(dst []byte, v int64, width int) []byte {
	limit := int64(1)
	for range width - 1 {
		limit *= 10
	}
	for ; limit > 1 && v < limit; limit /= 10 {
		dst = append(dst, '0')
	}
	return strconv.AppendInt(dst, v, 10)
}

// appendClock appends a time of day as Python's datetime.time prints it.
func appendClock(dst []byte, v, per int64) []byte {
	seconds, nanos := split(v, per)
	dst = appendHMS(dst, int(seconds/3600), int(seconds/60%60), int(seconds%60))
	switch {
	case nanos%1e3 != 0:
		return appendFraction(dst, nanos, 9)
	case nanos != 0:
		return appendFraction(dst, nanos, 6)
	}
	return dst
}

// appendDuration appends a duration as pandas prints a Timedelta.
func appendDuration(dst []byte, v, per int64, s shape) []byte {
	seconds, nanos := split(v, per)
	days := seconds / 86400
	rest := seconds % 86400
	if rest < 0 {
		days--
		rest += 86400
	}
	dst = append(strconv.AppendInt(dst, days, 10), " days"...)
	if !s.clock {
		return dst
	}
	dst = append(dst, ' ')
	if days < 0 {
		dst = append(dst, '+')
	}
	dst = appendHMS(dst, int(rest/3600), int(rest/60%60), int(rest%60))
	if s.decimals == 3 {
		s.decimals = 6
	}
	return appendFraction(dst, nanos, s.decimals)
}
