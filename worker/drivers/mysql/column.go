package mysql

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"math/bits"
	"reflect"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/decimal128"
	"github.com/apache/arrow/go/v17/arrow/decimal256"
)

// result is what the client library's rows tell of their columns.
type result interface {
	driver.Rows
	driver.RowsColumnTypeDatabaseTypeName
	driver.RowsColumnTypePrecisionScale
}

// column is a column of a query's result.
type column struct {
	name  string
	typ   arrow.DataType
	parse parser
}

// parser appends a value, which is not null, to the column's builder.
type parser func(b array.Builder, v driver.Value) error

// maxDigits is the most that a DECIMAL has.
const maxDigits = 65

// columnsOf returns the columns of a result.
func columnsOf(rows result, cfg *extractConfig) ([]column, error) {
	names := rows.Columns()
	cols := make([]column, len(names))
	for i, name := range names {
		typ, parse := typeOf(rows, i, cfg)
		if typ == nil {
			return nil, fmt.Errorf("column %q has the type %q, which is not known here; CAST it in the query", name, rows.ColumnTypeDatabaseTypeName(i))
		}
		cols[i] = column{name: name, typ: typ, parse: parse}
	}
	return cols, nil
}

func typeOf(rows result, i int, cfg *extractConfig) (arrow.DataType, parser) {
	switch rows.ColumnTypeDatabaseTypeName(i) {
	case "TINYINT":
		return arrow.PrimitiveTypes.Int8, signed(8, func(b array.Builder, n int64) { b.(*array.Int8Builder).Append(int8(n)) })
	case "SMALLINT", "YEAR":
		return arrow.PrimitiveTypes.Int16, signed(16, func(b array.Builder, n int64) { b.(*array.Int16Builder).Append(int16(n)) })
	case "MEDIUMINT", "INT":
		return arrow.PrimitiveTypes.Int32, signed(32, func(b array.Builder, n int64) { b.(*array.Int32Builder).Append(int32(n)) })
	case "BIGINT":
		return arrow.PrimitiveTypes.Int64, signed(64, func(b array.Builder, n int64) { b.(*array.Int64Builder).Append(n) })
	case "UNSIGNED TINYINT":
		return arrow.PrimitiveTypes.Uint8, unsigned(8, func(b array.Builder, n uint64) { b.(*array.Uint8Builder).Append(uint8(n)) })
	case "UNSIGNED SMALLINT":
		return arrow.PrimitiveTypes.Uint16, unsigned(16, func(b array.Builder, n uint64) { b.(*array.Uint16Builder).Append(uint16(n)) })
	case "UNSIGNED MEDIUMINT", "UNSIGNED INT":
		return arrow.PrimitiveTypes.Uint32, unsigned(32, func(b array.Builder, n uint64) { b.(*array.Uint32Builder).Append(uint32(n)) })
	case "UNSIGNED BIGINT":
		return arrow.PrimitiveTypes.Uint64, unsigned(64, func(b array.Builder, n uint64) { b.(*array.Uint64Builder).Append(n) })
	case "FLOAT":
		return arrow.PrimitiveTypes.Float32, parseFloat32
	case "DOUBLE":
		return arrow.PrimitiveTypes.Float64, parseFloat64
	case "DECIMAL":
		if cfg.coerceFloat {
			return arrow.PrimitiveTypes.Float64, parseFloat64
		}
		return decimalOf(rows, i)
	case "BIT":
		if size, _, ok := sizeOf(rows, i); ok && size == 1 {
			return arrow.FixedWidthTypes.Boolean, parseBool
		}
		return arrow.PrimitiveTypes.Uint64, parseBits
	case "DATE":
		return arrow.FixedWidthTypes.Date32, parseDate
	case "DATETIME":
		return &arrow.TimestampType{Unit: arrow.Microsecond}, parseTimestamp
	case "TIMESTAMP":
		return &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}, parseTimestamp
	case "TIME":
		return arrow.FixedWidthTypes.Duration_us, parseDuration
	case "NULL":
		return arrow.Null, parseNothing
	case "CHAR", "VARCHAR", "TEXT", "TINYTEXT", "MEDIUMTEXT", "LONGTEXT", "ENUM", "SET", "JSON":
		return arrow.BinaryTypes.String, parseText
	case "BINARY", "VARBINARY", "BLOB", "TINYBLOB", "MEDIUMBLOB", "LONGBLOB", "GEOMETRY", "VECTOR":
		return arrow.BinaryTypes.Binary, parseBinary
	}
	return nil, nil
}

// sizeOf returns the display width of a column and whether it is unsigned, which
// the client library knows and does not tell, of DECIMAL and BIT at least.
// Its variables are read, not changed. Where a later version has others, ok is
// false: BIT(1) is then a number, and a DECIMAL has a digit more than it needs.
func sizeOf(rows driver.Rows, i int) (size int, unsigned, ok bool) {
	const flagUnsigned = 1 << 5
	v := reflect.Indirect(reflect.ValueOf(rows))
	for _, name := range []string{"rs", "columns"} {
		if v.Kind() != reflect.Struct {
			return 0, false, false
		}
		if v = v.FieldByName(name); !v.IsValid() {
			return 0, false, false
		}
	}
	if v.Kind() != reflect.Slice || i >= v.Len() || v.Index(i).Kind() != reflect.Struct {
		return 0, false, false
	}
	length, flags := v.Index(i).FieldByName("length"), v.Index(i).FieldByName("flags")
	if !length.IsValid() || !length.CanUint() || !flags.IsValid() || !flags.CanUint() {
		return 0, false, false
	}
	return int(length.Uint()), flags.Uint()&flagUnsigned != 0, true
}

// decimalOf returns the type of a DECIMAL with the precision it was declared
// with.
func decimalOf(rows result, i int) (arrow.DataType, parser) {
	precision, scale, _ := rows.ColumnTypePrecisionScale(i)
	if _, unsigned, ok := sizeOf(rows, i); unsigned || !ok {
		precision++ // the library takes a place for the sign off
	}
	if precision < 1 || precision > maxDigits {
		precision = maxDigits
	}
	precision = max(precision, scale)
	if precision <= 38 {
		return &arrow.Decimal128Type{Precision: int32(precision), Scale: int32(scale)}, func(b array.Builder, v driver.Value) error {
			n, negative, err := parseDecimal(v, int(precision), int(scale))
			if err != nil {
				return err
			}
			d := decimal128.New(int64(n[1]), n[0])
			if negative {
				d = d.Negate()
			}
			b.(*array.Decimal128Builder).Append(d)
			return nil
		}
	}
	return &arrow.Decimal256Type{Precision: int32(precision), Scale: int32(scale)}, func(b array.Builder, v driver.Value) error {
		n, negative, err := parseDecimal(v, int(precision), int(scale))
		if err != nil {
			return err
		}
		d := decimal256.New(n[3], n[2], n[1], n[0])
		if negative {
			d = d.Negate()
		}
		b.(*array.Decimal256Builder).Append(d)
		return nil
	}
}

// unexpected is the error for a value that is not what its type announces.
func unexpected(v driver.Value) error { return fmt.Errorf("unexpected %T from the server", v) }

var errNoNumber = errors.New("the server has sent a number that is none")

// parseDecimal reads a decimal number and returns its digits as an integer,
// little endian.
func parseDecimal(v driver.Value, precision, scale int) (n [4]uint64, negative bool, err error) {
	s, ok := v.([]byte)
	if !ok {
		return n, false, unexpected(v)
	}
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		negative, s = s[0] == '-', s[1:]
	}
	digits, decimals, point := 0, 0, false
	chunk, factor := uint64(0), uint64(1)
	add := func(digit uint64) {
		if digit != 0 || digits > 0 {
			digits++
		}
		chunk, factor = chunk*10+digit, factor*10
		if factor == 1e19 {
			shift(&n, factor, chunk)
			chunk, factor = 0, 1
		}
	}
	for _, c := range s {
		switch {
		case c == '.' && !point:
			point = true
			continue
		case c < '0' || c > '9':
			return n, false, errNoNumber
		}
		if point {
			if decimals++; decimals > scale {
				if c != '0' {
					return n, false, fmt.Errorf("the number has more than %d decimals; CAST it in the query", scale)
				}
				continue
			}
		}
		add(uint64(c - '0'))
		if digits > precision {
			break
		}
	}
	for ; decimals < scale && digits <= precision; decimals++ {
		add(0)
	}
	if digits > precision {
		return n, false, fmt.Errorf("the number has more than the %d digits of its column; CAST it in the query", precision)
	}
	if len(s) == 0 {
		return n, false, errNoNumber
	}
	shift(&n, factor, chunk)
	return n, negative, nil
}

// shift makes n*factor+add of n.
func shift(n *[4]uint64, factor, add uint64) {
	carry := add
	for i := range n {
		hi, lo := bits.Mul64(n[i], factor)
		var c uint64
		n[i], c = bits.Add64(lo, carry, 0)
		carry = hi + c
	}
}

func signed(size int, add func(array.Builder, int64)) parser {
	return func(b array.Builder, v driver.Value) error {
		n, ok := v.(int64)
		if !ok {
			return unexpected(v)
		}
		if size < 64 && (n < -1<<(size-1) || n >= 1<<(size-1)) {
			return fmt.Errorf("%d is out of the range of its column", n)
		}
		add(b, n)
		return nil
	}
}

func unsigned(size int, add func(array.Builder, uint64)) parser {
	return func(b array.Builder, v driver.Value) error {
		var n uint64
		switch v := v.(type) {
		case int64:
			n = uint64(v)
		case uint64:
			n = v
		case []byte: // above int64
			var err error
			if n, err = strconv.ParseUint(string(v), 10, 64); err != nil {
				return errNoNumber
			}
		default:
			return unexpected(v)
		}
		if size < 64 && n >= 1<<size {
			return fmt.Errorf("%d is out of the range of its column", n)
		}
		add(b, n)
		return nil
	}
}

func parseFloat32(b array.Builder, v driver.Value) error {
	f, ok := v.(float32)
	if !ok {
		return unexpected(v)
	}
	b.(*array.Float32Builder).Append(f)
	return nil
}

func parseFloat64(b array.Builder, v driver.Value) error {
	switch v := v.(type) {
	case float64:
		b.(*array.Float64Builder).Append(v)
	case []byte: // DECIMAL
		f, err := strconv.ParseFloat(string(v), 64)
		if err != nil {
			return errNoNumber
		}
		b.(*array.Float64Builder).Append(f)
	default:
		return unexpected(v)
	}
	return nil
}

func bitsOf(v driver.Value) (n uint64, err error) {
	s, ok := v.([]byte)
	if !ok || len(s) > 8 {
		return 0, unexpected(v)
	}
	for _, c := range s {
		n = n<<8 | uint64(c)
	}
	return n, nil
}

func parseBits(b array.Builder, v driver.Value) error {
	n, err := bitsOf(v)
	if err == nil {
		b.(*array.Uint64Builder).Append(n)
	}
	return err
}

func parseBool(b array.Builder, v driver.Value) error {
	n, err := bitsOf(v)
	if err == nil {
		b.(*array.BooleanBuilder).Append(n != 0)
	}
	return err
}

func parseNothing(b array.Builder, v driver.Value) error { return unexpected(v) }

func parseText(b array.Builder, v driver.Value) error {
	s, ok := v.([]byte)
	if !ok {
		return unexpected(v)
	}
	if !utf8.Valid(s) {
		return errors.New("the text is not valid UTF-8; CAST it AS BINARY in the query")
	}
	b.(*array.StringBuilder).BinaryBuilder.Append(s)
	return nil
}

func parseBinary(b array.Builder, v driver.Value) error {
	s, ok := v.([]byte)
	if !ok {
		return unexpected(v)
	}
	b.(*array.BinaryBuilder).Append(s)
	return nil
}

// errNoDate means that a date is none of the calendar, as 0000-00-00.
var errNoDate = errors.New("no such date")

var errNoTime = errors.New("the server has sent a time that is none")

// parseDate takes YYYY-MM-DD.
func parseDate(b array.Builder, v driver.Value) error {
	s, ok := v.([]byte)
	if !ok {
		return unexpected(v)
	}
	days, rest, err := dateOf(s)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return errNoTime
	}
	b.(*array.Date32Builder).Append(arrow.Date32(days))
	return nil
}

// dateOf reads YYYY-MM-DD as days since 1970.
func dateOf(s []byte) (days int64, rest []byte, err error) {
	if len(s) < 10 || s[4] != '-' || s[7] != '-' {
		return 0, nil, errNoTime
	}
	year, ok1 := digitsOf(s[:4])
	month, ok2 := digitsOf(s[5:7])
	day, ok3 := digitsOf(s[8:10])
	if !ok1 || !ok2 || !ok3 {
		return 0, nil, errNoTime
	}
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return 0, nil, errNoDate
	}
	return daysSince1970(year, month, day), s[10:], nil
}

func digitsOf(s []byte) (n int64, ok bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(s) > 0
}

func daysIn(year, month int64) int64 {
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

// daysSince1970 counts in years that begin in March, so that the day that comes
// and goes is the last of them.
func daysSince1970(year, month, day int64) int64 {
	if month <= 2 {
		year, month = year-1, month+12
	}
	year += 400 // the year 0 begins before March
	return 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - 719468 - 146097
}

// parseTimestamp takes YYYY-MM-DD HH:MM:SS with up to 6 decimals.
func parseTimestamp(b array.Builder, v driver.Value) error {
	s, ok := v.([]byte)
	if !ok {
		return unexpected(v)
	}
	days, rest, err := dateOf(s)
	if err != nil {
		return err
	}
	us := int64(0)
	if len(rest) > 0 {
		if rest[0] != ' ' {
			return errNoTime
		}
		if us, err = clockOf(rest[1:]); err != nil {
			return err
		}
	}
	b.(*array.TimestampBuilder).Append(arrow.Timestamp(days*86400e6 + us))
	return nil
}

// parseDuration takes [-]HHH:MM:SS with up to 6 decimals.
func parseDuration(b array.Builder, v driver.Value) error {
	s, ok := v.([]byte)
	if !ok {
		return unexpected(v)
	}
	negative := len(s) > 0 && s[0] == '-'
	if negative {
		s = s[1:]
	}
	us, err := clockOf(s)
	if err != nil {
		return err
	}
	if negative {
		us = -us
	}
	b.(*array.DurationBuilder).Append(arrow.Duration(us))
	return nil
}

// clockOf reads HH:MM:SS, with any number of hours and up to 6 decimals, as
// microseconds.
func clockOf(s []byte) (us int64, err error) {
	colon := 0
	for colon < len(s) && s[colon] != ':' {
		colon++
	}
	if colon < 1 || colon > 9 || len(s) < colon+6 || s[colon+3] != ':' {
		return 0, errNoTime
	}
	hours, ok1 := digitsOf(s[:colon])
	minutes, ok2 := digitsOf(s[colon+1 : colon+3])
	seconds, ok3 := digitsOf(s[colon+4 : colon+6])
	if !ok1 || !ok2 || !ok3 || minutes > 59 || seconds > 59 {
		return 0, errNoTime
	}
	us = ((hours*60+minutes)*60 + seconds) * int64(time.Second/time.Microsecond)
	rest := s[colon+6:]
	if len(rest) == 0 {
		return us, nil
	}
	decimals, ok := digitsOf(rest[1:])
	if rest[0] != '.' || !ok || len(rest) > 7 {
		return 0, errNoTime
	}
	for range 7 - len(rest) {
		decimals *= 10
	}
	return us + decimals, nil
}

// weight is about how many bytes a value takes in a batch.
func weight(v driver.Value) int {
	if s, ok := v.([]byte); ok {
		return len(s) + 4
	}
	return 8
}
