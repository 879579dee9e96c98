package mysql_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/dbtest"
)

// typeCase is a type of MySQL's, with values as SQL and as they are extracted.
type typeCase struct {
	sql    string // of a column
	arrow  string
	values [][2]string // literal, text; NULL is a value of each
}

// typeCases are all types, with their extremes. NULL is added to each.
func typeCases() []typeCase {
	nines := strings.Repeat("9", 35) + "." + strings.Repeat("9", 30)
	return []typeCase{
		{"TINYINT", "int8", [][2]string{{"-128", "-128"}, {"127", "127"}}},
		{"TINYINT(1)", "int8", [][2]string{{"TRUE", "1"}, {"-7", "-7"}}},
		{"TINYINT UNSIGNED", "uint8", [][2]string{{"0", "0"}, {"255", "255"}}},
		{"SMALLINT", "int16", [][2]string{{"-32768", "-32768"}, {"32767", "32767"}}},
		{"SMALLINT UNSIGNED", "uint16", [][2]string{{"0", "0"}, {"65535", "65535"}}},
		{"MEDIUMINT", "int32", [][2]string{{"-8388608", "-8388608"}, {"8388607", "8388607"}}},
		{"MEDIUMINT UNSIGNED", "uint32", [][2]string{{"0", "0"}, {"16777215", "16777215"}}},
		{"INT", "int32", [][2]string{{"-2147483648", "-2147483648"}, {"2147483647", "2147483647"}}},
		{"INT UNSIGNED", "uint32", [][2]string{{"0", "0"}, {"4294967295", "4294967295"}}},
		{"INT(8) ZEROFILL", "uint32", [][2]string{{"42", "42"}}},
		{"BIGINT", "int64", [][2]string{{"-9223372036854775808", "-9223372036854775808"}, {"9223372036854775807", "9223372036854775807"}}},
		{"BIGINT UNSIGNED", "uint64", [][2]string{{"9223372036854775808", "9223372036854775808"}, {"18446744073709551615", "18446744073709551615"}}},
		{"FLOAT", "float32", [][2]string{{"1.23456789", "1.2345679"}, {"-3.4028234663852886e38", "-3.4028235e+38"}, {"1.401298464324817e-45", "1e-45"}, {"16777216", "1.6777216e+07"}}},
		{"DOUBLE", "float64", [][2]string{{"0.1", "0.1"}, {"1.7976931348623157e308", "1.7976931348623157e+308"}, {"-2.2250738585072014e-308", "-2.2250738585072014e-308"}, {"0.30000000000000004", "0.30000000000000004"}}},
		{"DECIMAL(10,2)", "decimal(10, 2)", [][2]string{{"12345678.90", "12345678.90"}, {"-99999999.99", "-99999999.99"}, {"0.5", "0.50"}}},
		{"DECIMAL(10,2) UNSIGNED", "decimal(10, 2)", [][2]string{{"99999999.99", "99999999.99"}}},
		{"DECIMAL(5,5)", "decimal(5, 5)", [][2]string{{"-0.00001", "-0.00001"}, {"0.99999", "0.99999"}}},
		{"DECIMAL(38,0)", "decimal(38, 0)", [][2]string{{strings.Repeat("9", 38), strings.Repeat("9", 38)}, {"-" + strings.Repeat("9", 38), "-" + strings.Repeat("9", 38)}}},
		{"DECIMAL(38,10)", "decimal(38, 10)", [][2]string{{"-1.0000000001", "-1.0000000001"}}},
		{"DECIMAL(65,30)", "decimal256(65, 30)", [][2]string{{nines, nines}, {"-" + nines, "-" + nines}, {"0", "0." + strings.Repeat("0", 30)}}},
		{"BIT(1)", "bool", [][2]string{{"b'0'", "false"}, {"b'1'", "true"}}},
		{"BIT(8)", "uint64", [][2]string{{"b'10000001'", "129"}}},
		{"BIT(64)", "uint64", [][2]string{{"0xFFFFFFFFFFFFFFFF", "18446744073709551615"}, {"0", "0"}}},
		{"DATE", "date32", [][2]string{{"'0001-01-01'", "0001-01-01"}, {"'9999-12-31'", "9999-12-31"}, {"'2024-02-29'", "2024-02-29"}, {"'1969-12-31'", "1969-12-31"}}},
		{"DATETIME", "timestamp[us]", [][2]string{{"'0001-01-01 00:00:00'", "0001-01-01 00:00:00"}, {"'9999-12-31 23:59:59'", "9999-12-31 23:59:59"}}},
		{"DATETIME(3)", "timestamp[us]", [][2]string{{"'1969-12-31 23:59:59.999'", "1969-12-31 23:59:59.999"}}},
		{"DATETIME(6)", "timestamp[us]", [][2]string{{"'2024-03-31 02:30:00.000001'", "2024-03-31 02:30:00.000001"}}},
		// The server's time zone is +05:30.
		{"TIMESTAMP NULL", "timestamp[us, tz=UTC]", [][2]string{{"'1970-01-01 05:30:01'", "1970-01-01 00:00:01"}, {"'2038-01-19 08:44:07'", "2038-01-19 03:14:07"}}},
		{"TIMESTAMP(6) NULL", "timestamp[us, tz=UTC]", [][2]string{{"'2024-01-01 00:00:00.123456'", "2023-12-31 18:30:00.123456"}}},
		{"TIME", "duration[us]", [][2]string{{"'-838:59:59'", "-3020399000000"}, {"'838:59:59'", "3020399000000"}, {"'00:00:00'", "0"}}},
		{"TIME(6)", "duration[us]", [][2]string{{"'-00:00:00.000001'", "-1"}, {"'23:59:59.999999'", "86399999999"}, {"'-838:59:59.000000'", "-3020399000000"}}},
		{"YEAR", "int16", [][2]string{{"1901", "1901"}, {"2155", "2155"}, {"0", "0"}}},
		{"CHAR(10)", "utf8", [][2]string{{"'abc'", "abc"}, {"''", ""}, {"'😀 é'", "😀 é"}}},
		{"VARCHAR(100)", "utf8", [][2]string{{`'it\'s \\ "x" \0 \n \r \Z ; --'`, "it's \\ \"x\" \x00 \n \r \x1a ; --"}, {"'trailing  '", "trailing  "}}},
		{"VARCHAR(20) CHARACTER SET latin1", "utf8", [][2]string{{"'ÄÖÜ€'", "ÄÖÜ€"}}},
		{"TINYTEXT", "utf8", [][2]string{{"'t'", "t"}}},
		{"TEXT", "utf8", [][2]string{{"'山田'", "山田"}}},
		{"MEDIUMTEXT", "utf8", [][2]string{{"REPEAT('m', 70000)", strings.Repeat("m", 70000)}}},
		{"LONGTEXT", "utf8", [][2]string{{"'l'", "l"}}},
		{"BINARY(4)", "binary", [][2]string{{"X'00FF'", "00ff0000"}}},
		{"VARBINARY(20)", "binary", [][2]string{{"X'0027225C0A0D1AFF80'", "0027225c0a0d1aff80"}, {"''", ""}}},
		{"TINYBLOB", "binary", [][2]string{{"X'80'", "80"}}},
		{"BLOB", "binary", [][2]string{{"X'F0'", "f0"}}},
		{"MEDIUMBLOB", "binary", [][2]string{{"X'27'", "27"}}},
		{"LONGBLOB", "binary", [][2]string{{"X'5C27'", "5c27"}}},
		{"JSON", "utf8", [][2]string{{`'{"a": [1, null, "é\\n"]}'`, `{"a": [1, null, "é\n"]}`}, {"'null'", "null"}}},
		{"ENUM('red','it''s','')", "utf8", [][2]string{{"'red'", "red"}, {"'it''s'", "it's"}, {"''", ""}}},
		{"SET('a','b','c')", "utf8", [][2]string{{"'a,c'", "a,c"}, {"''", ""}}},
		{"GEOMETRY", "binary", [][2]string{{"ST_GeomFromText('POINT(1 2)')", "000000000101000000000000000000f03f0000000000000040"}}},
		{"POINT", "binary", [][2]string{{"Point(1, 2)", "000000000101000000000000000000f03f0000000000000040"}}},
		{"UUID", "utf8", [][2]string{{"'123e4567-e89b-12d3-a456-426655440000'", "123e4567-e89b-12d3-a456-426655440000"}}},
		{"INET6", "utf8", [][2]string{{"'2001:db8::ff00:42:8329'", "2001:db8::ff00:42:8329"}}},
	}
}

// typesTable makes the table "types": a column c0, c1, ... for each case, and the
// values of the cases in rows, as far as they go. Row 0 is all NULL.
func typesTable(tb testing.TB, db *dbtest.Database, cases []typeCase) (rows int) {
	tb.Helper()
	ddl, inserts := "CREATE TABLE types (id INT NOT NULL PRIMARY KEY", []string{"INSERT INTO types (id) VALUES (0)"}
	for i, c := range cases {
		ddl += fmt.Sprintf(", c%d %s", i, c.sql)
		rows = max(rows, len(c.values)+1)
	}
	for k := range rows - 1 {
		values := fmt.Sprint(k + 1)
		for _, c := range cases {
			if k < len(c.values) {
				values += ", " + c.values[k][0]
			} else {
				values += ", NULL"
			}
		}
		inserts = append(inserts, "INSERT INTO types VALUES ("+values+")")
	}
	db.Exec(tb, ddl+")")
	db.Exec(tb, inserts...)
	return rows
}

// TestTypes extracts every type and writes it back to a table like the first.
func TestTypes(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	cases := typeCases()
	rows := typesTable(t, db, cases)
	f := extract(t, db, "SELECT * FROM types ORDER BY id")
	got := render(f)
	for i, c := range cases {
		if typ := f.Schema().Field(i + 1).Type.String(); typ != c.arrow {
			t.Errorf("%s has the type %s, want %s", c.sql, typ, c.arrow)
		}
		want, column := []string{"<nil>"}, []string{}
		for _, v := range c.values {
			want = append(want, v[1])
		}
		for len(want) < rows {
			want = append(want, "<nil>")
		}
		for _, row := range got {
			column = append(column, row[i+1])
		}
		if diff := cmp.Diff(want, column); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.sql, diff)
		}
	}

	db.Exec(t, "CREATE TABLE copy LIKE types")
	s, err := write(context.Background(), db, f, map[string]any{"table": "copy"})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.metrics["rows_written rows"]; n != float64(rows) {
		t.Errorf("rows_written is %v, want %d", n, rows)
	}
	if len(s.events) > 0 {
		t.Errorf("events %v", s.events)
	}
	if sum(t, db, "types") != sum(t, db, "copy") {
		t.Errorf("the copy is another (-first +copy):\n%s", cmp.Diff(got, render(extract(t, db, "SELECT * FROM copy ORDER BY id"))))
	}
}

// sum is of all that is in a table.
func sum(tb testing.TB, db *dbtest.Database, table string) (n int64) {
	tb.Helper()
	var name string
	if err := db.QueryRow("CHECKSUM TABLE "+table).Scan(&name, &n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// TestTypesOfExpressions has the types that only a query makes.
func TestTypesOfExpressions(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE n (d DECIMAL(10,2), i INT); INSERT INTO n VALUES (1.25, 3), (2.50, NULL)")
	for _, c := range []struct{ expression, typ, value string }{
		{"NULL", "null", "<nil>"},
		{"1", "int32", "1"},
		{"1 = 1", "int32", "1"},
		{"1.50", "decimal(3, 2)", "1.50"},
		{"SUM(d)", "decimal(32, 2)", "3.75"},
		{"AVG(d)", "decimal(14, 6)", "1.875000"},
		{"SUM(i)", "decimal(32, 0)", "3"},
		{"COUNT(*)", "int64", "2"},
		{"-MAX(d)", "decimal(11, 2)", "-2.50"},
		{"MAX(d) * MAX(d) * MAX(d) * MAX(d) * MAX(d) * MAX(d) * MAX(d)", "decimal256(65, 14)", "610.35156250000000"},
		{"CAST(18446744073709551615 AS UNSIGNED)", "uint64", "18446744073709551615"},
		{"'x'", "utf8", "x"},
		{"X'78'", "binary", "78"},
		{"CONCAT(1, 'é')", "utf8", "1é"},
		{"CAST('2024-01-02' AS DATE)", "date32", "2024-01-02"},
		{"TIMEDIFF('2024-01-02 00:00:00.5', '2024-01-01 12:00:00.25')", "duration[us]", "43200250000"},
		{"CAST('2024-01-02 03:04:05.6' AS DATETIME(3))", "timestamp[us]", "2024-01-02 03:04:05.6"},
		{"JSON_OBJECT('a', 1)", "utf8", `{"a": 1}`},
		{"1e0 / 3", "float64", "0.3333333333333333"},
		{"'?'", "utf8", "?"},
		{"'100%'", "utf8", "100%"},
	} {
		f := extract(t, db, "SELECT "+c.expression+" AS v FROM n;")
		got := []string{f.Schema().Field(0).Type.String(), render(f)[0][0]}
		if diff := cmp.Diff([]string{c.typ, c.value}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.expression, diff)
		}
	}
	if f := extract(t, db, "SELECT 1 AS a, 2 AS a"); !f.Schema().HasField("a") || f.Schema().NumFields() != 2 {
		t.Errorf("columns %v, want a twice", f.Schema())
	}
}
