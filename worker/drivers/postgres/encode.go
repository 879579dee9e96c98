package postgres

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/decimal128"
	"github.com/apache/arrow/go/v17/arrow/decimal256"
)

// encoder appends a value of an array in the server's binary format. The value
// is not null.
type encoder func(b []byte, row int) ([]byte, error)

// binder makes the encoder of an array.
type binder func(a arrow.Array) encoder

// errNull says that a value is null on the server, though it is none in Arrow:
// NaN in a column of integers, which is how pandas has them.
var errNull = errors.New("null")

// loss counts values that became others.
type loss struct {
	nanos int64 // times whose nanoseconds were cut off
}

// bind returns how values of an Arrow type are written to a type of the server;
// nil where the server has to convert them.
func bind(dt arrow.DataType, t *pgType, lost *loss) binder {
	switch dt := dt.(type) {
	case *arrow.DictionaryType:
		values := bind(dt.ValueType, t, lost)
		if values == nil {
			return nil
		}
		return func(a arrow.Array) encoder {
			d := a.(*array.Dictionary)
			encode := values(d.Dictionary())
			return func(b []byte, row int) ([]byte, error) { return encode(b, d.GetValueIndex(row)) }
		}
	case arrow.ExtensionType:
		values := bind(dt.StorageType(), t, lost)
		if values == nil {
			return nil
		}
		return func(a arrow.Array) encoder { return values(a.(array.ExtensionArray).Storage()) }
	}
	if dt.ID() == arrow.NULL {
		return func(arrow.Array) encoder {
			return func(b []byte, _ int) ([]byte, error) { return b, errNull }
		}
	}
	switch t.kind {
	case kBool:
		if dt.ID() == arrow.BOOL {
			return func(a arrow.Array) encoder {
				v := a.(*array.Boolean)
				return func(b []byte, row int) ([]byte, error) {
					if v.Value(row) {
						return append(b, 1), nil
					}
					return append(b, 0), nil
				}
			}
		}
	case kInt2:
		return bindInts(dt, math.MinInt16, math.MaxInt16, func(b []byte, v int64) []byte { return binary.BigEndian.AppendUint16(b, uint16(v)) })
	case kInt4:
		return bindInts(dt, math.MinInt32, math.MaxInt32, func(b []byte, v int64) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) })
	case kInt8:
		return bindInts(dt, math.MinInt64, math.MaxInt64, func(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) })
	case kOID:
		return bindInts(dt, 0, math.MaxUint32, func(b []byte, v int64) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) })
	case kFloat4, kFloat8:
		return bindFloats(dt, t.kind == kFloat4)
	case kNumeric:
		return bindNumeric(dt)
	case kText, kOther:
		if isText(dt) && (t.kind == kText || t.enum) {
			return bindText("")
		}
	case kJSON, kJSONB:
		version := ""
		if t.kind == kJSONB {
			version = "\x01"
		}
		switch {
		case isText(dt):
			return bindText(version)
		case arrow.IsNested(dt.ID()):
			return func(a arrow.Array) encoder {
				return func(b []byte, row int) ([]byte, error) { return appendJSON(append(b, version...), a, row) }
			}
		}
	case kBytea:
		switch dt.ID() {
		case arrow.BINARY, arrow.LARGE_BINARY, arrow.BINARY_VIEW, arrow.FIXED_SIZE_BINARY:
			return func(a arrow.Array) encoder {
				v := a.(interface{ Value(int) []byte })
				return func(b []byte, row int) ([]byte, error) { return append(b, v.Value(row)...), nil }
			}
		}
	case kDate:
		if dt.ID() == arrow.DATE32 {
			return func(a arrow.Array) encoder {
				v := a.(*array.Date32)
				return func(b []byte, row int) ([]byte, error) {
					days := int64(v.Value(row)) - epochDays
					if days <= math.MinInt32 { // -infinity, or beyond
						return b, outOfRange(a, row, t)
					}
					return binary.BigEndian.AppendUint32(b, uint32(int32(days))), nil
				}
			}
		}
		if micros := bindMicros(dt, lost); micros != nil {
			return func(a arrow.Array) encoder {
				at := micros(a)
				return func(b []byte, row int) ([]byte, error) {
					v, err := at(row)
					if err != nil {
						return b, err
					}
					if v%dayMicros != 0 {
						return b, fmt.Errorf("%s has a time of day, and the column is of type date", a.ValueStr(row))
					}
					days := v/dayMicros - epochDays
					if days <= math.MinInt32 || days >= math.MaxInt32 { // infinity
						return b, outOfRange(a, row, t)
					}
					return binary.BigEndian.AppendUint32(b, uint32(int32(days))), nil
				}
			}
		}
	case kTimestamp, kTimestampTZ:
		if micros := bindMicros(dt, lost); micros != nil {
			return func(a arrow.Array) encoder {
				at := micros(a)
				return func(b []byte, row int) ([]byte, error) {
					v, err := at(row)
					if err != nil {
						return b, err
					}
					if v <= math.MinInt64+epochMicros { // -infinity
						return b, outOfRange(a, row, t)
					}
					return binary.BigEndian.AppendUint64(b, uint64(v-epochMicros)), nil
				}
			}
		}
	case kTime:
		return bindTime(dt, lost)
	case kInterval:
		return bindInterval(dt, lost)
	case kUUID:
		return bindUUID(dt)
	case kArray:
		if list, ok := dt.(arrow.ListLikeType); ok && dt.ID() != arrow.MAP {
			return bindArray(list, t.elem, lost)
		}
	}
	return nil
}

func outOfRange(a arrow.Array, row int, t *pgType) error {
	return fmt.Errorf("%s is out of the range of type %s", a.ValueStr(row), t.name)
}

func isText(dt arrow.DataType) bool {
	switch dt.ID() {
	case arrow.STRING, arrow.LARGE_STRING, arrow.STRING_VIEW:
		return true
	}
	return false
}

func bindText(prefix string) binder {
	return func(a arrow.Array) encoder {
		v := a.(interface{ Value(int) string })
		return func(b []byte, row int) ([]byte, error) { return append(append(b, prefix...), v.Value(row)...), nil }
	}
}

// integer returns the values of an array of numbers as integers. The error is
// for those that are none, or do not fit.
func integer(a arrow.Array) func(row int) (int64, error) {
	switch a := a.(type) {
	case *array.Int8:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Int16:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Int32:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Int64:
		return func(row int) (int64, error) { return a.Value(row), nil }
	case *array.Uint8:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Uint16:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Uint32:
		return func(row int) (int64, error) { return int64(a.Value(row)), nil }
	case *array.Uint64:
		return func(row int) (int64, error) {
			v := a.Value(row)
			if v > math.MaxInt64 {
				return 0, errors.New("out of range")
			}
			return int64(v), nil
		}
	case *array.Decimal128, *array.Decimal256:
		big := bigDecimal(a)
		return func(row int) (int64, error) {
			v, scale := big(row)
			if v, exact := shift(v, scale); exact && v.IsInt64() {
				return v.Int64(), nil
			}
			return 0, errors.New("no integer of the column's type")
		}
	}
	if float := float(a); float != nil {
		return func(row int) (int64, error) {
			v := float(row)
			switch {
			case math.IsNaN(v):
				return 0, errNull
			case v != math.Trunc(v):
				return 0, errors.New("no integer")
			case v < math.MinInt64 || v >= math.MaxInt64:
				return 0, errors.New("out of range")
			}
			return int64(v), nil
		}
	}
	return nil
}

// shift returns v / 10^scale, and whether that is exact.
func shift(v *big.Int, scale int) (*big.Int, bool) {
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(scale, -scale))), nil)
	if scale <= 0 {
		return power.Mul(v, power), true
	}
	rest := new(big.Int)
	q, _ := new(big.Int).QuoRem(v, power, rest)
	return q, rest.Sign() == 0
}

// bigDecimal returns the values of an array of decimals, with their scale.
func bigDecimal(a arrow.Array) func(row int) (*big.Int, int) {
	switch a := a.(type) {
	case *array.Decimal128:
		scale := int(a.DataType().(*arrow.Decimal128Type).Scale)
		return func(row int) (*big.Int, int) { return a.Value(row).BigInt(), scale }
	case *array.Decimal256:
		scale := int(a.DataType().(*arrow.Decimal256Type).Scale)
		return func(row int) (*big.Int, int) { return a.Value(row).BigInt(), scale }
	}
	return nil
}

// float returns the values of an array of floats.
func float(a arrow.Array) func(row int) float64 {
	switch a := a.(type) {
	case *array.Float16:
		return func(row int) float64 { return float64(a.Value(row).Float32()) }
	case *array.Float32:
		return func(row int) float64 { return float64(a.Value(row)) }
	case *array.Float64:
		return a.Value
	}
	return nil
}

func isNumber(dt arrow.DataType) bool {
	return arrow.IsInteger(dt.ID()) || arrow.IsFloating(dt.ID()) || arrow.IsDecimal(dt.ID())
}

func bindInts(dt arrow.DataType, low, high int64, put func(b []byte, v int64) []byte) binder {
	if !isNumber(dt) {
		return nil
	}
	return func(a arrow.Array) encoder {
		at := integer(a)
		return func(b []byte, row int) ([]byte, error) {
			v, err := at(row)
			if err == nil && (v < low || v > high) {
				err = errors.New("out of range")
			}
			if err != nil {
				if !errors.Is(err, errNull) {
					err = fmt.Errorf("%s is %w; the column takes %d to %d", a.ValueStr(row), err, low, high)
				}
				return b, err
			}
			return put(b, v), nil
		}
	}
}

func bindFloats(dt arrow.DataType, single bool) binder {
	if !isNumber(dt) {
		return nil
	}
	return func(a arrow.Array) encoder {
		at := float(a)
		switch a := a.(type) {
		case *array.Uint64:
			at = func(row int) float64 { return float64(a.Value(row)) }
		case *array.Decimal128:
			scale := a.DataType().(*arrow.Decimal128Type).Scale
			at = func(row int) float64 { return decimalFloat(a.Value(row).ToString(scale)) }
		case *array.Decimal256:
			scale := a.DataType().(*arrow.Decimal256Type).Scale
			at = func(row int) float64 { return decimalFloat(a.Value(row).ToString(scale)) }
		}
		if at == nil {
			whole := integer(a)
			at = func(row int) float64 {
				v, _ := whole(row) // every integer is one
				return float64(v)
			}
		}
		return func(b []byte, row int) ([]byte, error) {
			v := at(row)
			if !single {
				return binary.BigEndian.AppendUint64(b, math.Float64bits(v)), nil
			}
			f := float32(v)
			if math.IsInf(float64(f), 0) && !math.IsInf(v, 0) {
				return b, fmt.Errorf("%s is out of the range of type real", a.ValueStr(row))
			}
			return binary.BigEndian.AppendUint32(b, math.Float32bits(f)), nil
		}
	}
}

func decimalFloat(s string) float64 {
	v, _ := strconv.ParseFloat(s, 64) // a number by its making; the nearest float
	return v
}

func bindNumeric(dt arrow.DataType) binder {
	if !isNumber(dt) {
		return nil
	}
	return func(a arrow.Array) encoder {
		var text []byte
		switch a := a.(type) {
		case *array.Uint64:
			return func(b []byte, row int) ([]byte, error) {
				text = strconv.AppendUint(text[:0], a.Value(row), 10)
				return appendNumeric(b, text, 0), nil
			}
		case *array.Decimal128:
			scale := int(a.DataType().(*arrow.Decimal128Type).Scale)
			return func(b []byte, row int) ([]byte, error) {
				text = appendDecimal128(text[:0], a.Value(row))
				return appendNumeric(b, text, scale), nil
			}
		case *array.Decimal256:
			scale := int(a.DataType().(*arrow.Decimal256Type).Scale)
			return func(b []byte, row int) ([]byte, error) {
				text = appendDecimal256(text[:0], a.Value(row))
				return appendNumeric(b, text, scale), nil
			}
		}
		if at := float(a); at != nil {
			bits := 64
			if a.DataType().ID() != arrow.FLOAT64 {
				bits = 32
			}
			return func(b []byte, row int) ([]byte, error) {
				v := at(row)
				switch {
				case math.IsNaN(v):
					return appendSpecial(b, numericNaN), nil
				case math.IsInf(v, 1):
					return appendSpecial(b, numericInf), nil
				case math.IsInf(v, -1):
					return appendSpecial(b, numericNegInf), nil
				}
				// The shortest digits that mean this float, as text would have them.
				text = strconv.AppendFloat(text[:0], v, 'e', -1, bits)
				mantissa, exponent, _ := strings.Cut(string(text), "e")
				whole, decimals, _ := strings.Cut(mantissa, ".")
				e, _ := strconv.Atoi(exponent)
				text = append(append(text[:0], whole...), decimals...)
				scale := len(decimals) - e
				for ; scale < 0; scale++ {
					text = append(text, '0')
				}
				return appendNumeric(b, text, scale), nil
			}
		}
		at := integer(a)
		return func(b []byte, row int) ([]byte, error) {
			v, err := at(row)
			text = strconv.AppendInt(text[:0], v, 10)
			return appendNumeric(b, text, 0), err
		}
	}
}

func appendDecimal128(b []byte, v decimal128.Num) []byte {
	if v.HighBits() == int64(v.LowBits())>>63 {
		return strconv.AppendInt(b, int64(v.LowBits()), 10)
	}
	return v.BigInt().Append(b, 10)
}

func appendDecimal256(b []byte, v decimal256.Num) []byte { return v.BigInt().Append(b, 10) }

func appendSpecial(b []byte, sign uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, sign)
	return append(b, 0, 0)
}

// appendNumeric appends a number of digits, of which scale are decimals.
func appendNumeric(b, digits []byte, scale int) []byte {
	sign := uint16(0)
	if digits[0] == '-' {
		sign, digits = numericNegative, digits[1:]
	}
	// Position 0 is the digit before the point.
	first := len(digits) - 1 - scale
	at := func(position int) int {
		i := first - position
		if i < 0 || i >= len(digits) {
			return 0
		}
		return int(digits[i] - '0')
	}
	group := func(w int) int { // of weight 10000^w
		return at(4*w+3)*1000 + at(4*w+2)*100 + at(4*w+1)*10 + at(4*w)
	}
	high, low := floorDiv(first, 4), floorDiv(-scale, 4)
	for high >= low && group(high) == 0 {
		high--
	}
	for low <= high && group(low) == 0 {
		low++
	}
	if high < low { // zero
		high, low, sign = 0, 1, 0
	}
	b = binary.BigEndian.AppendUint16(b, uint16(high-low+1))
	b = binary.BigEndian.AppendUint16(b, uint16(int16(high)))
	b = binary.BigEndian.AppendUint16(b, sign)
	b = binary.BigEndian.AppendUint16(b, uint16(max(scale, 0)))
	for w := high; w >= low; w-- {
		b = binary.BigEndian.AppendUint16(b, uint16(group(w)))
	}
	return b
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}

// bindMicros returns the values of dates and timestamps as microseconds since
// 1970.
func bindMicros(dt arrow.DataType, lost *loss) func(a arrow.Array) func(row int) (int64, error) {
	scaled := func(a arrow.Array, value func(row int) int64, by int64) func(row int) (int64, error) {
		return func(row int) (int64, error) {
			v := value(row)
			if v > math.MaxInt64/by || v < math.MinInt64/by {
				return 0, fmt.Errorf("%d %s is out of the range of PostgreSQL's times", v, a.DataType())
			}
			return v * by, nil
		}
	}
	switch dt := dt.(type) {
	case *arrow.Date32Type:
		return func(a arrow.Array) func(row int) (int64, error) {
			return scaled(a, func(row int) int64 { return int64(a.(*array.Date32).Value(row)) }, dayMicros)
		}
	case *arrow.Date64Type:
		return func(a arrow.Array) func(row int) (int64, error) {
			return scaled(a, func(row int) int64 { return int64(a.(*array.Date64).Value(row)) }, 1000)
		}
	case *arrow.TimestampType:
		by := int64(1)
		switch dt.Unit {
		case arrow.Second:
			by = 1_000_000
		case arrow.Millisecond:
			by = 1000
		case arrow.Nanosecond:
			return func(a arrow.Array) func(row int) (int64, error) {
				v := a.(*array.Timestamp)
				return func(row int) (int64, error) { return lost.micros(int64(v.Value(row))), nil }
			}
		}
		return func(a arrow.Array) func(row int) (int64, error) {
			v := a.(*array.Timestamp)
			return scaled(a, func(row int) int64 { return int64(v.Value(row)) }, by)
		}
	}
	return nil
}

// micros cuts nanoseconds off, and counts where there were some.
func (l *loss) micros(nanos int64) int64 {
	micros := nanos / 1000
	if rest := nanos % 1000; rest != 0 {
		l.nanos++
		if rest < 0 {
			micros--
		}
	}
	return micros
}

func bindTime(dt arrow.DataType, lost *loss) binder {
	put := func(b []byte, micros int64) ([]byte, error) {
		if micros < 0 || micros > dayMicros {
			return b, errors.New("the time is not within a day")
		}
		return binary.BigEndian.AppendUint64(b, uint64(micros)), nil
	}
	switch dt := dt.(type) {
	case *arrow.Time32Type:
		by := int64(1000)
		if dt.Unit == arrow.Second {
			by = 1_000_000
		}
		return func(a arrow.Array) encoder {
			v := a.(*array.Time32)
			return func(b []byte, row int) ([]byte, error) { return put(b, int64(v.Value(row))*by) }
		}
	case *arrow.Time64Type:
		return func(a arrow.Array) encoder {
			v := a.(*array.Time64)
			return func(b []byte, row int) ([]byte, error) {
				if dt.Unit == arrow.Nanosecond {
					return put(b, lost.micros(int64(v.Value(row))))
				}
				return put(b, int64(v.Value(row)))
			}
		}
	}
	return nil
}

func bindInterval(dt arrow.DataType, lost *loss) binder {
	put := func(b []byte, micros int64, days, months int32) []byte {
		b = binary.BigEndian.AppendUint64(b, uint64(micros))
		b = binary.BigEndian.AppendUint32(b, uint32(days))
		return binary.BigEndian.AppendUint32(b, uint32(months))
	}
	switch dt := dt.(type) {
	case *arrow.DurationType:
		return func(a arrow.Array) encoder {
			v := a.(*array.Duration)
			return func(b []byte, row int) ([]byte, error) {
				n := int64(v.Value(row))
				by := int64(1)
				switch dt.Unit {
				case arrow.Nanosecond:
					n = lost.micros(n)
				case arrow.Millisecond:
					by = 1000
				case arrow.Second:
					by = 1_000_000
				}
				if n > math.MaxInt64/by || n < math.MinInt64/by {
					return b, fmt.Errorf("%d %s is out of the range of type interval", n, dt)
				}
				return put(b, n*by, 0, 0), nil
			}
		}
	case *arrow.MonthIntervalType:
		return func(a arrow.Array) encoder {
			v := a.(*array.MonthInterval)
			return func(b []byte, row int) ([]byte, error) { return put(b, 0, 0, int32(v.Value(row))), nil }
		}
	case *arrow.DayTimeIntervalType:
		return func(a arrow.Array) encoder {
			v := a.(*array.DayTimeInterval)
			return func(b []byte, row int) ([]byte, error) {
				return put(b, int64(v.Value(row).Milliseconds)*1000, v.Value(row).Days, 0), nil
			}
		}
	case *arrow.MonthDayNanoIntervalType:
		return func(a arrow.Array) encoder {
			v := a.(*array.MonthDayNanoInterval)
			return func(b []byte, row int) ([]byte, error) {
				return put(b, lost.micros(v.Value(row).Nanoseconds), v.Value(row).Days, v.Value(row).Months), nil
			}
		}
	}
	return nil
}

func bindUUID(dt arrow.DataType) binder {
	if fixed, ok := dt.(*arrow.FixedSizeBinaryType); ok && fixed.ByteWidth == 16 {
		return func(a arrow.Array) encoder {
			v := a.(*array.FixedSizeBinary)
			return func(b []byte, row int) ([]byte, error) { return append(b, v.Value(row)...), nil }
		}
	}
	if !isText(dt) {
		return nil
	}
	return func(a arrow.Array) encoder {
		v := a.(interface{ Value(int) string })
		plain := strings.NewReplacer("-", "", "{", "", "}", "")
		return func(b []byte, row int) ([]byte, error) {
			digits := plain.Replace(v.Value(row))
			var id [16]byte
			if n, err := hex.Decode(id[:], []byte(digits[:min(len(digits), 34)])); err != nil || n != 16 || len(digits) != 32 {
				return b, fmt.Errorf("%q is no uuid", clip(v.Value(row)))
			}
			return append(b, id[:]...), nil
		}
	}
}

// bindArray writes lists as arrays, and lists of lists as arrays of more
// dimensions.
func bindArray(dt arrow.ListLikeType, t *pgType, lost *loss) binder {
	depth, elem := 1, dt.Elem()
	for {
		inner, ok := elem.(arrow.ListLikeType)
		if !ok || elem.ID() == arrow.MAP || t.kind == kJSON || t.kind == kJSONB {
			break
		}
		depth, elem = depth+1, inner.Elem()
	}
	values := bind(elem, t, lost)
	if values == nil || depth > 6 { // MAXDIM
		return nil
	}
	return func(a arrow.Array) encoder {
		lists := []array.ListLike{a.(array.ListLike)}
		for range depth - 1 {
			lists = append(lists, lists[len(lists)-1].ListValues().(array.ListLike))
		}
		leaves := lists[depth-1].ListValues()
		encode := values(leaves)
		size := func(level, at int) int {
			start, end := lists[level].ValueOffsets(at)
			return int(end - start)
		}
		return func(b []byte, row int) ([]byte, error) {
			sizes := make([]int, depth)
			for level, at := 0, row; level < depth; level++ {
				if sizes[level] = size(level, at); sizes[level] == 0 {
					if level > 0 {
						return b, errRagged
					}
					b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
					return binary.BigEndian.AppendUint32(b, t.oid), nil
				}
				start, _ := lists[level].ValueOffsets(at)
				at = int(start)
			}
			b = binary.BigEndian.AppendUint32(b, uint32(depth))
			b = binary.BigEndian.AppendUint32(b, 1) // there may be nulls
			b = binary.BigEndian.AppendUint32(b, t.oid)
			for _, n := range sizes {
				b = binary.BigEndian.AppendUint32(b, uint32(n))
				b = binary.BigEndian.AppendUint32(b, 1) // counted from
			}
			var write func(level, at int) error
			write = func(level, at int) error {
				if lists[level].IsNull(at) || size(level, at) != sizes[level] {
					return errRagged
				}
				start, end := lists[level].ValueOffsets(at)
				for i := int(start); i < int(end); i++ {
					var err error
					if level+1 < depth {
						err = write(level+1, i)
					} else {
						b, err = appendField(b, leaves, i, encode)
					}
					if err != nil {
						return err
					}
				}
				return nil
			}
			err := write(0, row)
			return b, err
		}
	}
}

var errRagged = errors.New("the inner lists are not all of one length, as PostgreSQL's arrays are")

// appendField appends a value with its length before it.
func appendField(b []byte, a arrow.Array, row int, encode encoder) ([]byte, error) {
	at := len(b)
	if isNull(a, row) {
		return append(b, 0xff, 0xff, 0xff, 0xff), nil
	}
	b, err := encode(append(b, 0, 0, 0, 0), row)
	if errors.Is(err, errNull) {
		return append(b[:at], 0xff, 0xff, 0xff, 0xff), nil
	}
	if err != nil {
		return b, err
	}
	if len(b)-at-4 > math.MaxInt32 {
		return b, errors.New("the value is longer than 2 GiB")
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b, nil
}

func isNull(a arrow.Array, row int) bool {
	if a.IsNull(row) {
		return true
	}
	d, ok := a.(*array.Dictionary)
	return ok && d.Dictionary().IsNull(d.GetValueIndex(row))
}

// appendJSON appends a value as JSON: structs and maps with text keys are
// objects, other maps lists of pairs.
func appendJSON(b []byte, a arrow.Array, row int) ([]byte, error) {
	if isNull(a, row) {
		return append(b, "null"...), nil
	}
	var err error
	list := func(open, end byte, values arrow.Array, from, to int, each func(i int) error) error {
		b = append(b, open)
		for i := from; i < to; i++ {
			if i > from {
				b = append(b, ',')
			}
			if each != nil {
				if err := each(i); err != nil {
					return err
				}
			}
			if b, err = appendJSON(b, values, i); err != nil {
				return err
			}
		}
		b = append(b, end)
		return nil
	}
	switch a := a.(type) {
	case *array.Dictionary:
		return appendJSON(b, a.Dictionary(), a.GetValueIndex(row))
	case array.ExtensionArray:
		return appendJSON(b, a.Storage(), row)
	case *array.Struct:
		fields := a.DataType().(*arrow.StructType).Fields()
		b = append(b, '{')
		for i, f := range fields {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendQuoted(b, f.Name), ':')
			if b, err = appendJSON(b, a.Field(i), row); err != nil {
				return b, err
			}
		}
		return append(b, '}'), nil
	case *array.Map:
		from, to := a.ValueOffsets(row)
		keys, ok := a.Keys().(interface{ Value(int) string })
		if !ok {
			b = append(b, '[')
			for i := int(from); i < int(to); i++ {
				if i > int(from) {
					b = append(b, ',')
				}
				if b, err = appendJSON(append(b, '['), a.Keys(), i); err != nil {
					return b, err
				}
				if b, err = appendJSON(append(b, ','), a.Items(), i); err != nil {
					return b, err
				}
				b = append(b, ']')
			}
			return append(b, ']'), nil
		}
		err = list('{', '}', a.Items(), int(from), int(to), func(i int) error {
			b = append(appendQuoted(b, keys.Value(i)), ':')
			return nil
		})
		return b, err
	case array.ListLike:
		from, to := a.ValueOffsets(row)
		err = list('[', ']', a.ListValues(), int(from), int(to), nil)
		return b, err
	case *array.Boolean:
		return strconv.AppendBool(b, a.Value(row)), nil
	case *array.Decimal128:
		return append(b, a.Value(row).ToString(a.DataType().(*arrow.Decimal128Type).Scale)...), nil
	case *array.Decimal256:
		return append(b, a.Value(row).ToString(a.DataType().(*arrow.Decimal256Type).Scale)...), nil
	case *array.Binary:
		return appendQuoted(b, base64.StdEncoding.EncodeToString(a.Value(row))), nil
	case *array.Uint64:
		return strconv.AppendUint(b, a.Value(row), 10), nil
	}
	if at := float(a); at != nil {
		v := at(row)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return b, fmt.Errorf("%v cannot be written as JSON", v)
		}
		bits := 64
		if a.DataType().ID() != arrow.FLOAT64 {
			bits = 32
		}
		return strconv.AppendFloat(b, v, 'g', -1, bits), nil
	}
	if at := integer(a); at != nil {
		v, err := at(row)
		return strconv.AppendInt(b, v, 10), err
	}
	if text, ok := a.(interface{ Value(int) string }); ok {
		return appendQuoted(b, text.Value(row)), nil
	}
	return appendQuoted(b, a.ValueStr(row)), nil
}

func appendQuoted(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil { // strings can be written
		return b
	}
	return append(b, q...)
}
