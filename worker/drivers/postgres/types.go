package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v17/arrow"
)

// kind says how a type's values are read and written.
type kind uint8

const (
	kOther kind = iota // its text is taken
	kBool
	kInt2
	kInt4
	kInt8
	kOID // and what else is an unsigned number of 32 bits
	kXID8
	kFloat4
	kFloat8
	kNumeric
	kMoney
	kText // the binary format is the text
	kJSON
	kJSONB
	kBytea
	kDate
	kTime
	kTimestamp
	kTimestampTZ
	kInterval
	kUUID
	kArray
)

// pgType is a type of the server.
type pgType struct {
	oid  uint32
	name string // as pg_type has it
	kind kind

	precision, scale int // kNumeric; precision 0: any
	elem             *pgType
	dims             int  // kArray: dimensions declared
	enum             bool // kOther, and its binary format is its text
}

// builtin returns the types that need no look into the catalog.
func builtin(oid uint32) (pgType, bool) {
	t := pgType{oid: oid}
	switch oid {
	case 16:
		t.name, t.kind = "bool", kBool
	case 17:
		t.name, t.kind = "bytea", kBytea
	case 20:
		t.name, t.kind = "int8", kInt8
	case 21:
		t.name, t.kind = "int2", kInt2
	case 23:
		t.name, t.kind = "int4", kInt4
	case 25:
		t.name, t.kind = "text", kText
	case 19:
		t.name, t.kind = "name", kText
	case 1042:
		t.name, t.kind = "bpchar", kText
	case 1043:
		t.name, t.kind = "varchar", kText
	case 705:
		t.name, t.kind = "unknown", kText
	case 142:
		t.name, t.kind = "xml", kText
	case 26:
		t.name, t.kind = "oid", kOID
	case 28:
		t.name, t.kind = "xid", kOID
	case 29:
		t.name, t.kind = "cid", kOID
	case 5069:
		t.name, t.kind = "xid8", kXID8
	case 700:
		t.name, t.kind = "float4", kFloat4
	case 701:
		t.name, t.kind = "float8", kFloat8
	case 1700:
		t.name, t.kind = "numeric", kNumeric
	case 790:
		t.name, t.kind = "money", kMoney
	case 114:
		t.name, t.kind = "json", kJSON
	case 3802:
		t.name, t.kind = "jsonb", kJSONB
	case 1082:
		t.name, t.kind = "date", kDate
	case 1083:
		t.name, t.kind = "time", kTime
	case 1114:
		t.name, t.kind = "timestamp", kTimestamp
	case 1184:
		t.name, t.kind = "timestamptz", kTimestampTZ
	case 1186:
		t.name, t.kind = "interval", kInterval
	case 2950:
		t.name, t.kind = "uuid", kUUID
	case 18:
		t.name = "char"
	case 869:
		t.name = "inet"
	case 650:
		t.name = "cidr"
	case 829:
		t.name = "macaddr"
	case 774:
		t.name = "macaddr8"
	case 1560:
		t.name = "bit"
	case 1562:
		t.name = "varbit"
	case 1266:
		t.name = "timetz"
	case 3614:
		t.name = "tsvector"
	case 3615:
		t.name = "tsquery"
	default:
		return t, false
	}
	return t, true
}

// numericMod takes the precision and scale out of a type modifier. The scale is
// of 11 bits with a sign, since PostgreSQL 15.
func numericMod(mod int32) (precision, scale int) {
	if mod < 4 {
		return 0, 0
	}
	mod -= 4
	return int(mod>>16) & 0xffff, int(mod&0x7ff^1024) - 1024
}

// catalog finds types, and remembers them.
type catalog struct {
	s     *session
	known map[uint32]catalogRow
	money int // decimals of the type money; -1: not asked for yet
}

// catalogRow is a type in the catalog.
type catalogRow struct {
	name       string
	typtype    string
	elem, base uint32
	mod        int32
}

func newCatalog(s *session) *catalog {
	return &catalog{s: s, known: make(map[uint32]catalogRow), money: -1}
}

// load looks up the types that are not built in, and those that they are made
// of.
func (c *catalog) load(ctx context.Context, oids []uint32) error {
	for len(oids) > 0 {
		var ask []string
		for _, oid := range oids {
			if _, ok := builtin(oid); ok {
				continue
			}
			if _, ok := c.known[oid]; !ok {
				ask = append(ask, strconv.FormatUint(uint64(oid), 10))
			}
		}
		oids = oids[:0]
		if len(ask) == 0 {
			return nil
		}
		// Only types that are the typarray of another are arrays as this driver
		// understands them: int2vector has elements, too.
		rows, err := c.s.query(ctx, `SELECT t.oid, t.typname, t.typtype, coalesce((SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray = t.oid LIMIT 1), 0),
			t.typbasetype, t.typtypmod FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1::pg_catalog.oid[])`, "{"+strings.Join(ask, ",")+"}")
		if err != nil {
			return err
		}
		for _, row := range rows {
			r := catalogRow{name: string(row[1]), typtype: string(row[2]), elem: number(row[3]), base: number(row[4])}
			mod, _ := strconv.ParseInt(string(row[5]), 10, 32)
			r.mod = int32(mod)
			c.known[number(row[0])] = r
			for _, oid := range []uint32{r.elem, r.base} {
				if oid != 0 {
					oids = append(oids, oid)
				}
			}
		}
	}
	return nil
}

func number(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32) // the server's own numbers
	return uint32(n)
}

// get returns a loaded type: a domain as what it is a domain over.
func (c *catalog) get(ctx context.Context, oid uint32, mod int32) (*pgType, error) {
	t, ok := builtin(oid)
	switch {
	case !ok:
		row := c.known[oid]
		t.name = row.name
		switch {
		case row.typtype == "d" && row.base != 0:
			base, err := c.get(ctx, row.base, row.mod)
			if err != nil {
				return nil, err
			}
			d := *base
			d.oid = oid
			return &d, nil
		case row.elem != 0:
			elem, err := c.get(ctx, row.elem, mod)
			if err != nil {
				return nil, err
			}
			t.kind, t.elem, t.dims = kArray, elem, 1
		case row.typtype == "e", row.name == "citext":
			t.enum = true
		}
	case t.kind == kNumeric:
		t.precision, t.scale = numericMod(mod)
	case t.kind == kMoney:
		if c.money < 0 {
			rows, err := c.s.query(ctx, "SELECT '0'::money::numeric") // as lc_monetary has it
			if err != nil {
				return nil, err
			}
			_, decimals, _ := strings.Cut(string(rows[0][0]), ".")
			c.money = len(decimals)
		}
		t.precision, t.scale = 19, c.money
	}
	return &t, nil
}

// arrowType returns what the type's values are in a table.
func (t *pgType) arrowType() arrow.DataType {
	switch t.kind {
	case kBool:
		return arrow.FixedWidthTypes.Boolean
	case kInt2:
		return arrow.PrimitiveTypes.Int16
	case kInt4:
		return arrow.PrimitiveTypes.Int32
	case kInt8:
		return arrow.PrimitiveTypes.Int64
	case kOID:
		return arrow.PrimitiveTypes.Uint32
	case kXID8:
		return arrow.PrimitiveTypes.Uint64
	case kFloat4:
		return arrow.PrimitiveTypes.Float32
	case kFloat8:
		return arrow.PrimitiveTypes.Float64
	case kNumeric, kMoney:
		switch precision, scale := t.decimal(); {
		case precision == 0 || precision > 76:
			return arrow.BinaryTypes.String
		case precision > 38:
			return &arrow.Decimal256Type{Precision: int32(precision), Scale: int32(scale)}
		default:
			return &arrow.Decimal128Type{Precision: int32(precision), Scale: int32(scale)}
		}
	case kBytea:
		return arrow.BinaryTypes.Binary
	case kDate:
		return arrow.FixedWidthTypes.Date32
	case kTime:
		return arrow.FixedWidthTypes.Time64us
	case kTimestamp:
		return &arrow.TimestampType{Unit: arrow.Microsecond}
	case kTimestampTZ:
		return &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
	case kInterval:
		return arrow.FixedWidthTypes.MonthDayNanoInterval
	case kArray:
		list := t.elem.arrowType()
		for range t.dims {
			list = arrow.ListOf(list)
		}
		return list
	}
	return arrow.BinaryTypes.String
}

// decimal returns precision and scale as Arrow's decimals have them: a scale
// from zero to the precision. numeric(3, -2) and numeric(2, 5) are allowed since
// PostgreSQL 15.
func (t *pgType) decimal() (precision, scale int) {
	switch {
	case t.precision == 0:
		return 0, 0
	case t.scale < 0:
		return t.precision - t.scale, 0
	}
	return max(t.precision, t.scale), t.scale
}

// binary reports whether values are read in the binary format.
func (t *pgType) binary() bool {
	if t.kind == kArray {
		return t.elem.binary() && t.elem.kind != kArray
	}
	return t.kind != kOther
}

// typeKey is the key of a field's metadata under which its type on the server
// stands, so that a table that is made from it has the same.
const typeKey = "postgres.type"

// label is what stands there.
func (t *pgType) label() string {
	if t.kind == kArray {
		return t.elem.label() + "[]"
	}
	return t.name
}

// quote returns an identifier for SQL.
func quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = quote(name)
	}
	return strings.Join(quoted, ", ")
}

// columnError says which value of a table was meant.
type columnError struct {
	column string
	row    int64 // from 1; 0: all
	err    error
}

func (e *columnError) Error() string {
	if e.row == 0 {
		return fmt.Sprintf("column %q: %v", e.column, e.err)
	}
	return fmt.Sprintf("column %q, row %d: %v", e.column, e.row, e.err)
}

func (e *columnError) Unwrap() error { return e.err }
