package mysql

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/go-sql-driver/mysql"
)

// table is what is written to.
type table struct {
	name    string // quoted, with its schema where one is named
	columns []*target
	created bool // by this step
}

func newTable(cfg *writeConfig) *table {
	name := appendName(nil, cfg.table)
	if cfg.schema != "" {
		name = appendName(append(appendName(nil, cfg.schema), '.'), cfg.table)
	}
	return &table{name: string(name)}
}

// column returns a column by its name, whose case does not matter.
func (t *table) column(name string) *target {
	for _, c := range t.columns {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// schemaOf is the schema that a table is looked for in.
const schemaOf = "COALESCE(NULLIF(?, ''), DATABASE())"

// describe reads the table's columns; there are none where it does not exist.
func (t *table) describe(s *session, cfg *writeConfig) error {
	rows, err := s.ask(`SELECT COLUMN_NAME, LOWER(DATA_TYPE), NUMERIC_SCALE, DATETIME_PRECISION
		FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = `+schemaOf+` AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION`, cfg.schema, cfg.table)
	if err != nil {
		return err
	}
	t.columns = nil
	for _, row := range rows {
		c := &target{name: row[0], dataType: row[1], scale: -1}
		if n, err := strconv.Atoi(row[2]); err == nil && c.dataType != "float" && c.dataType != "double" {
			c.scale = n
		}
		c.fraction, _ = strconv.Atoi(row[3]) //nolint:errcheck // empty where it is no time
		t.columns = append(t.columns, c)
	}
	return nil
}

// keepsAll reports whether the table's engine undoes a write that fails.
func (t *table) keepsAll(s *session, cfg *writeConfig) (engine string, undoes bool, err error) {
	rows, err := s.ask(`SELECT t.ENGINE, e.TRANSACTIONS FROM information_schema.TABLES t
		LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
		WHERE t.TABLE_SCHEMA = `+schemaOf+` AND t.TABLE_NAME = ?`, cfg.schema, cfg.table)
	if err != nil || len(rows) == 0 || rows[0][0] == "" { // a view
		return "", true, err
	}
	return rows[0][0], rows[0][1] == "YES", nil
}

// checkKeys makes sure that an index of the table tells rows apart by the keys:
// without one nothing would be a duplicate.
func (t *table) checkKeys(s *session, cfg *writeConfig) error {
	rows, err := s.ask(`SELECT INDEX_NAME, LOWER(COLUMN_NAME), NULLABLE = 'YES' OR SUB_PART IS NOT NULL FROM information_schema.STATISTICS
		WHERE TABLE_SCHEMA = `+schemaOf+` AND TABLE_NAME = ? AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX`, cfg.schema, cfg.table)
	if err != nil {
		return err
	}
	want := make([]string, len(cfg.keys))
	for i, key := range cfg.keys {
		want[i] = strings.ToLower(key)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	indexes, weak := make(map[string][]string), make(map[string]bool)
	for _, row := range rows {
		indexes[row[0]] = append(indexes[row[0]], row[1])
		weak[row[0]] = weak[row[0]] || row[2] != "0" // of nulls, or of beginnings, there may be several
	}
	for name, columns := range indexes {
		slices.Sort(columns)
		if slices.Equal(columns, want) && !weak[name] {
			return nil
		}
	}
	return fmt.Errorf("table %s has no primary key or unique index of NOT NULL columns on exactly %s, which upsert needs", t.name, strings.Join(cfg.keys, ", "))
}

// errTableExists is the server's code for a table that is there already.
const errTableExists = 1050

// create makes the table for a schema's columns.
func (t *table) create(s *session, cfg *writeConfig, schema *arrow.Schema) error {
	ddl := []byte("CREATE TABLE " + t.name + " (")
	if schema.NumFields() == 0 {
		return errors.New("a table without columns cannot be created")
	}
	for i, f := range schema.Fields() {
		key := slices.ContainsFunc(cfg.keys, func(k string) bool { return strings.EqualFold(k, f.Name) })
		typ, err := sqlType(f.Type, key)
		if err != nil {
			return fmt.Errorf("column %q: %w; create the table before", f.Name, err)
		}
		if i > 0 {
			ddl = append(ddl, ", "...)
		}
		ddl = append(appendName(ddl, f.Name), " "+typ...)
		switch {
		case key:
			ddl = append(ddl, " NOT NULL"...)
		default:
			ddl = append(ddl, " NULL"...) // or an old server's TIMESTAMP would not be
		}
	}
	for i, key := range cfg.keys {
		ddl = append(ddl, map[bool]string{true: ", PRIMARY KEY (", false: ", "}[i == 0]...)
		ddl = appendName(ddl, key)
	}
	if len(cfg.keys) > 0 {
		ddl = append(ddl, ')')
	}
	_, err := s.exec(string(append(ddl, ") DEFAULT CHARACTER SET utf8mb4"...)))
	var mine *mysql.MySQLError
	if errors.As(err, &mine) && mine.Number == errTableExists {
		return nil // somebody else was faster
	}
	t.created = err == nil
	return err
}

// sqlType returns the type for a column of a new table.
func sqlType(typ arrow.DataType, key bool) (string, error) {
	switch t := typ.(type) {
	case *arrow.BooleanType:
		return "BOOLEAN", nil
	case *arrow.Int8Type:
		return "TINYINT", nil
	case *arrow.Int16Type:
		return "SMALLINT", nil
	case *arrow.Int32Type:
		return "INT", nil
	case *arrow.Int64Type:
		return "BIGINT", nil
	case *arrow.Uint8Type:
		return "TINYINT UNSIGNED", nil
	case *arrow.Uint16Type:
		return "SMALLINT UNSIGNED", nil
	case *arrow.Uint32Type:
		return "INT UNSIGNED", nil
	case *arrow.Uint64Type:
		return "BIGINT UNSIGNED", nil
	case *arrow.Float16Type, *arrow.Float32Type:
		return "FLOAT", nil
	case *arrow.Float64Type:
		return "DOUBLE", nil
	case arrow.DecimalType:
		return decimalType(int(t.GetPrecision()), int(t.GetScale()))
	case *arrow.StringType, *arrow.LargeStringType:
		if key {
			return "VARCHAR(255)", nil
		}
		return "LONGTEXT", nil
	case *arrow.BinaryType, *arrow.LargeBinaryType:
		if key {
			return "VARBINARY(255)", nil
		}
		return "LONGBLOB", nil
	case *arrow.FixedSizeBinaryType:
		if t.ByteWidth <= 255 {
			return fmt.Sprintf("BINARY(%d)", t.ByteWidth), nil
		}
		return "LONGBLOB", nil
	case *arrow.Date32Type, *arrow.Date64Type:
		return "DATE", nil
	case *arrow.TimestampType:
		if t.TimeZone != "" {
			return "TIMESTAMP" + decimalsOf(t.Unit), nil
		}
		return "DATETIME" + decimalsOf(t.Unit), nil
	case *arrow.Time32Type:
		return "TIME" + decimalsOf(t.Unit), nil
	case *arrow.Time64Type:
		return "TIME" + decimalsOf(t.Unit), nil
	case *arrow.DurationType:
		return "TIME" + decimalsOf(t.Unit), nil
	case *arrow.DictionaryType:
		return sqlType(t.ValueType, key)
	case arrow.ExtensionType:
		return sqlType(t.StorageType(), key)
	case *arrow.ListType, *arrow.LargeListType, *arrow.FixedSizeListType, *arrow.StructType, *arrow.MapType:
		return "JSON", nil
	case *arrow.NullType:
		return "LONGTEXT", nil
	}
	return "", fmt.Errorf("there is no type of MySQL for %s", typ)
}

func decimalType(precision, scale int) (string, error) {
	if scale < 0 {
		precision, scale = precision-scale, 0
	}
	precision = max(precision, scale)
	if precision > maxDigits || scale > 30 {
		return "", fmt.Errorf("DECIMAL(%d,%d) is more than MySQL has, which is 65 digits and 30 decimals", precision, scale)
	}
	return fmt.Sprintf("DECIMAL(%d,%d)", precision, scale), nil
}

func decimalsOf(unit arrow.TimeUnit) string {
	return map[arrow.TimeUnit]string{arrow.Second: "", arrow.Millisecond: "(3)", arrow.Microsecond: "(6)", arrow.Nanosecond: "(6)"}[unit]
}
