package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/worker"
)

const null = "(null)"

// typeCase is a type of the server: how its values are read, and that they are
// the same when they are written again.
type typeCase struct {
	sql    string // the type
	arrow  string
	values []string // SQL literals
	want   []string // as Arrow has them; nil: the same, less quotes
	made   string   // type of the column that create_if_missing makes; empty: the same
}

func typeCases() []typeCase {
	return []typeCase{
		{sql: "boolean", arrow: "bool", values: []string{"true", "false"}},
		{sql: "smallint", arrow: "int16", values: []string{"-32768", "0", "32767"}},
		{sql: "integer", arrow: "int32", values: []string{"-2147483648", "2147483647"}},
		{sql: "bigint", arrow: "int64", values: []string{"-9223372036854775808", "9223372036854775807"}},
		{sql: "oid", arrow: "uint32", values: []string{"0", "4294967295"}, made: "bigint"},
		{sql: "real", arrow: "float32", values: []string{"'-3.4028235e+38'", "'1e-45'", "0.1", "'NaN'", "'Infinity'", "'-Infinity'"},
			want: []string{"-3.4028235e+38", "1e-45", "0.1", "NaN", "+Inf", "-Inf"}},
		{sql: "double precision", arrow: "float64", values: []string{"'1.7976931348623157e+308'", "'5e-324'", "0.1", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'"},
			want: []string{"1.7976931348623157e+308", "5e-324", "0.1", "-0", "NaN", "+Inf", "-Inf"}},
		{sql: "numeric(10,2)", arrow: "decimal(10, 2)", values: []string{"-99999999.99", "0", "0.01", "-0.10", "12345678.90"},
			want: []string{"-99999999.99", "0.00", "0.01", "-0.10", "12345678.90"}},
		{sql: "numeric(38,10)", arrow: "decimal(38, 10)", values: []string{"9999999999999999999999999999.9999999999", "-9999999999999999999999999999.9999999999", "0.0000000001", "10000", "100000000.00001"},
			want: []string{"9999999999999999999999999999.9999999999", "-9999999999999999999999999999.9999999999", "0.0000000001", "10000.0000000000", "100000000.0000100000"}},
		{sql: "numeric(38,0)", arrow: "decimal(38, 0)", values: []string{"99999999999999999999999999999999999999", "-1", "10000000000000000"}},
		{sql: "numeric(38,38)", arrow: "decimal(38, 38)", values: []string{"0.99999999999999999999999999999999999999", "-0.00000000000000000000000000000000000001"}},
		{sql: "numeric(76,6)", arrow: "decimal256(76, 6)", values: []string{strings.Repeat("9", 70) + ".999999", "-0.000001", "123456789012345678901234567890.500000"}},
		{sql: "numeric(3,-2)", arrow: "decimal(5, 0)", values: []string{"99900", "-100"}, made: "numeric(5,0)"},
		{sql: "numeric(2,5)", arrow: "decimal(5, 5)", values: []string{"0.00099", "-0.00001"}, made: "numeric(5,5)"},
		{sql: "numeric", arrow: "utf8", values: []string{"0", "1.50", "-0.001", "'NaN'", "'Infinity'", "'-Infinity'", "1e130", "3.14159265358979323846264338327950288419716939937510"},
			want: []string{"0", "1.50", "-0.001", "NaN", "Infinity", "-Infinity", "1" + strings.Repeat("0", 130), "3.14159265358979323846264338327950288419716939937510"}},
		{sql: "numeric(100,2)", arrow: "utf8", values: []string{strings.Repeat("1", 98) + ".25"}, made: "numeric"},
		{sql: "money", arrow: "decimal(19, 2)", values: []string{"'-92233720368547758.08'", "'92233720368547758.07'", "'1.5'"},
			want: []string{"-92233720368547758.08", "92233720368547758.07", "1.50"}, made: "numeric(19,2)"},
		{sql: "text", arrow: "utf8", values: []string{"''", "'žluťoučký 🐎'", "e'tab\\tline\\n\\\\'", "'NULL'"}, want: []string{"", "žluťoučký 🐎", "tab\tline\n\\", "NULL"}},
		{sql: "character varying(5)", arrow: "utf8", values: []string{"'ab'", "'ščřžý'"}, made: "text"},
		{sql: "character(4)", arrow: "utf8", values: []string{"'ab'"}, want: []string{"ab  "}, made: "text"},
		{sql: `"char"`, arrow: "utf8", values: []string{"'x'"}, made: "text"},
		{sql: "name", arrow: "utf8", values: []string{"'pg_class'"}, made: "text"},
		{sql: "citext", arrow: "utf8", values: []string{"'AbC'"}, made: "text"},
		{sql: "bytea", arrow: "binary", values: []string{`'\x'`, `'\x00ff'`}, want: []string{"", "AP8="}},
		{sql: "date", arrow: "date32", values: []string{"'2024-02-29'", "'1969-12-31'", "'4713-01-01 BC'", "'0001-01-01 BC'", "'9999-12-31'"},
			want: []string{"2024-02-29", "1969-12-31", "-4712-01-01", "0000-01-01", "9999-12-31"}},
		{sql: "time without time zone", arrow: "time64[us]", values: []string{"'00:00'", "'23:59:59.999999'"}, want: []string{"00:00:00.000000", "23:59:59.999999"}},
		{sql: "time(3) without time zone", arrow: "time64[us]", values: []string{"'12:34:56.789'"}, want: []string{"12:34:56.789000"}, made: "time without time zone"},
		{sql: "time with time zone", arrow: "utf8", values: []string{"'12:34:56.789+05:30'", "'24:00:00-15:59'"}, want: []string{"12:34:56.789+05:30", "24:00:00-15:59"}},
		{sql: "timestamp without time zone", arrow: "timestamp[us]", values: []string{"'2024-02-29 12:34:56.789012'", "'4713-01-01 00:00:00 BC'", "'1969-12-31 23:59:59.999999'", "'294246-12-31 23:59:59.999999'"},
			want: []string{"2024-02-29 12:34:56.789012Z", "-4712-01-01 00:00:00Z", "1969-12-31 23:59:59.999999Z", "294246-12-31 23:59:59.999999Z"}},
		{sql: "timestamp with time zone", arrow: "timestamp[us, tz=UTC]", values: []string{"'2024-02-29 12:34:56.789012+05:30'", "'1970-01-01 00:00:00+00'"},
			want: []string{"2024-02-29 07:04:56.789012Z", "1970-01-01 00:00:00Z"}},
		{sql: "interval", arrow: "month_day_nano_interval", values: []string{"'1 year 2 months -3 days 04:05:06.789012'", "'-2562047:47:16.854775'", "'2147483647 months'"},
			want: []string{`{"months":14,"days":-3,"nanoseconds":14706789012000}`, `{"months":0,"days":0,"nanoseconds":-9223372036854775000}`, `{"months":2147483647,"days":0,"nanoseconds":0}`}},
		{sql: "uuid", arrow: "utf8", values: []string{"'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"}},
		{sql: "json", arrow: "utf8", values: []string{`'{"a": [1,  2]}'`, `'null'`}},
		{sql: "jsonb", arrow: "utf8", values: []string{`'{"a":[1,  2]}'`, `'1e2'`}, want: []string{`{"a": [1, 2]}`, "100"}},
		{sql: "xml", arrow: "utf8", values: []string{`'<a>1</a>'`}},
		{sql: "mood", arrow: "utf8", values: []string{"'happy'", "'so so'"}, made: "text"},
		{sql: "posint", arrow: "int32", values: []string{"1", "7"}, made: "integer"},
		{sql: "price", arrow: "decimal(8, 3)", values: []string{"1.125"}, made: "numeric(8,3)"},
		{sql: "inet", arrow: "utf8", values: []string{"'192.168.0.1'", "'10.0.0.0/8'", "'::1'"}},
		{sql: "cidr", arrow: "utf8", values: []string{"'10.0.0.0/8'", "'2001:db8::/32'"}},
		{sql: "macaddr", arrow: "utf8", values: []string{"'08:00:2b:01:02:03'"}},
		{sql: "macaddr8", arrow: "utf8", values: []string{"'08:00:2b:01:02:03:04:05'"}},
		{sql: "bit(3)", arrow: "utf8", values: []string{"B'101'"}, want: []string{"101"}, made: "bit varying"},
		{sql: "bit varying", arrow: "utf8", values: []string{"B'10101'", "B''"}, want: []string{"10101", ""}},
		{sql: "tsvector", arrow: "utf8", values: []string{"'a:1 b:2'"}, want: []string{"'a':1 'b':2"}},
		{sql: "point", arrow: "utf8", values: []string{"'(1.5,2)'"}, made: "text"},
		{sql: "int4range", arrow: "utf8", values: []string{"'[1,5)'", "'empty'"}, made: "text"},
		{sql: "tstzrange", arrow: "utf8", values: []string{`'["2024-01-01 05:30:00+05:30",)'`}, made: "text"},
		{sql: "pair", arrow: "utf8", values: []string{`'(1,"a, b")'`}, made: "text"},
		{sql: "hstore", arrow: "utf8", values: []string{`'"a"=>"1", "b"=>NULL'`}, made: "text"},
		{sql: "integer[]", arrow: "list<item: int32, nullable>", values: []string{"'{}'", "'{1,NULL,-3}'"}, want: []string{"[]", "[1,null,-3]"}},
		{sql: "integer[][]", arrow: "list<item: list<item: int32, nullable>, nullable>", values: []string{"'{}'", "'{{1,2},{NULL,4}}'"}, want: []string{"[]", "[[1,2],[null,4]]"}, made: "integer[]"},
		{sql: "text[]", arrow: "list<item: utf8, nullable>", values: []string{`'{"a,b","q\"uote",NULL,"NULL",""}'`}, want: []string{`["a,b","q\"uote",null,"NULL",""]`}},
		{sql: "character varying(3)[]", arrow: "list<item: utf8, nullable>", values: []string{`'{abc}'`}, want: []string{`["abc"]`}, made: "text[]"},
		{sql: "numeric(5,2)[]", arrow: "list<item: decimal(5, 2), nullable>", values: []string{`'{1.25,NULL}'`}, want: []string{`["1.25",null]`}},
		{sql: "timestamp with time zone[]", arrow: "list<item: timestamp[us, tz=UTC], nullable>", values: []string{`'{"2024-01-01 00:00:00+00"}'`}, want: []string{`["2024-01-01 00:00:00Z"]`}},
		{sql: "uuid[]", arrow: "list<item: utf8, nullable>", values: []string{`'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'`}, want: []string{`["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]`}},
		{sql: "inet[]", arrow: "list<item: utf8, nullable>", values: []string{`'{10.0.0.1,NULL}'`, `'[0:1]={10.0.0.1,10.0.0.2}'`}, want: []string{`["10.0.0.1",null]`, `["10.0.0.1","10.0.0.2"]`}},
		{sql: "mood[]", arrow: "list<item: utf8, nullable>", values: []string{`'{happy,"so so"}'`}, want: []string{`["happy","so so"]`}, made: "text[]"},
		{sql: "posint[]", arrow: "list<item: int32, nullable>", values: []string{`'{1,2}'`}, want: []string{`[1,2]`}, made: "integer[]"},
		{sql: "box[]", arrow: "list<item: utf8, nullable>", values: []string{`'{(1,1),(0,0);(2,2),(1,1)}'`}, want: []string{`["(1,1),(0,0)","(2,2),(1,1)"]`}, made: "text[]"},
	}
}

const typesSetup = `CREATE EXTENSION citext; CREATE EXTENSION hstore;
	CREATE TYPE mood AS ENUM ('happy', 'so so'); CREATE DOMAIN posint AS integer CHECK (VALUE > 0); CREATE DOMAIN price AS numeric(8,3);
	CREATE TYPE pair AS (a integer, b text)`

// TestTypes reads every type, extremes and nulls, and writes it again.
func TestTypes(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	db.Exec(t, typesSetup)
	cases := typeCases()
	columns := []string{"n integer"}
	var values []map[string]string
	for i, c := range cases {
		columns = append(columns, fmt.Sprintf("c%d %s", i, c.sql))
		for n, v := range c.values {
			for n >= len(values) {
				values = append(values, map[string]string{})
			}
			values[n][fmt.Sprintf("c%d", i)] = v
		}
	}
	values = append(values, map[string]string{}) // nulls
	db.Exec(t, "CREATE TABLE original ("+strings.Join(columns, ", ")+"); CREATE TABLE copied (LIKE original)")
	for n, row := range values {
		names, literals := []string{"n"}, []string{fmt.Sprint(n)}
		for name, v := range row {
			names, literals = append(names, name), append(literals, v)
		}
		db.Exec(t, "INSERT INTO original ("+strings.Join(names, ", ")+") VALUES ("+strings.Join(literals, ", ")+")")
	}

	df := mustExtract(t, db, "SELECT * FROM original ORDER BY n", nil)
	for _, target := range []string{"copied", "made"} {
		s, err := write(db, df, map[string]any{"table": target, "create_if_missing": true})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.metrics["rows_written"]; got != float64(len(values)) {
			t.Errorf("rows_written %v, want %d", got, len(values))
		}
	}
	// What was made has other types in part, but gives the same table.
	again := mustExtract(t, db, "SELECT * FROM made ORDER BY n", nil)
	types := query(t, db, "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'made'::regclass AND attnum > 0 ORDER BY attnum")
	for i, c := range cases {
		t.Run(c.sql, func(t *testing.T) {
			want := c.want
			if want == nil {
				for _, v := range c.values {
					want = append(want, strings.Trim(v, "'"))
				}
			}
			for len(want) < len(values) {
				want = append(want[:len(want):len(want)], null)
			}
			if got := df.Schema().Field(i + 1).Type.String(); got != c.arrow {
				t.Errorf("type %s, want %s", got, c.arrow)
			}
			got := texts(df, i+1)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, texts(again, i+1)); diff != "" {
				t.Errorf("made table, read again (-want +got):\n%s", diff)
			}
			made := c.made
			if made == "" {
				made = c.sql
			}
			if got := types[i+1]; got != made {
				t.Errorf("create_if_missing made a column of type %s, want %s", got, made)
			}
			// The same values, told by their texts. Where an array begins to count
			// is lost.
			text := func(table string) []string {
				return query(t, db, fmt.Sprintf("SELECT regexp_replace(c%d::text, '^\\[.*\\]=', '') FROM %s ORDER BY n", i, table))
			}
			if diff := cmp.Diff(text("original"), text("copied")); diff != "" {
				t.Errorf("written again (-want +got):\n%s", diff)
			}
		})
	}

	// And no rows at all.
	empty := mustExtract(t, db, "SELECT * FROM original WHERE false", nil)
	if diff := cmp.Diff(df.Schema().String(), empty.Schema().String()); diff != "" || empty.Rows() != 0 {
		t.Errorf("without rows: %d rows, schema (-want +got):\n%s", empty.Rows(), diff)
	}
	if s, err := write(db, empty, map[string]any{"table": "copied"}); err != nil || s.metrics["rows_written"] != 0 {
		t.Errorf("writing no rows: %v, %v", s.metrics, err)
	}
}

// TestSpecialValues has values that Arrow's types have no room for.
func TestSpecialValues(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	for i, c := range []struct{ typ, v string }{
		{"date", "infinity"}, {"date", "-infinity"}, {"timestamp", "infinity"}, {"timestamptz", "-infinity"}, {"timestamp", "294276-12-31"},
		{"time", "24:00"}, {"numeric(5,2)", "NaN"}, {"numeric(50,2)", "NaN"}, {"interval", "9223372036854 seconds"}, {"interval", "-9223372036854 seconds"},
	} {
		db.Exec(t, fmt.Sprintf("CREATE TABLE s%d (n integer, v %s, list %[2]s[]); INSERT INTO s%[1]d (n) VALUES (1); INSERT INTO s%[1]d VALUES (2, '%[3]s', '{\"%[3]s\",NULL}')", i, c.typ, c.v))
		_, err := extract(t, &worker.Step{}, db, map[string]any{"query": fmt.Sprintf("SELECT * FROM s%d ORDER BY n", i)})
		if err == nil || !strings.Contains(err.Error(), `column "v", row 2: `) || !strings.Contains(err.Error(), "special_values") {
			t.Errorf("%s %s: error %v", c.typ, c.v, err)
		}
		s := &sink{}
		df, err := extract(t, &worker.Step{Sink: s}, db, map[string]any{"special_values": "null", "query": fmt.Sprintf("SELECT v, list FROM s%d WHERE n = 2", i)})
		if err != nil {
			t.Errorf("%s %s: %v", c.typ, c.v, err)
			continue
		}
		if a, b := texts(df, 0)[0], texts(df, 1)[0]; a != null || b != "[null,null]" {
			t.Errorf("%s %s: read as %s, %s", c.typ, c.v, a, b)
		}
		if len(s.events) != 1 || s.events[0] != "special_values map[columns:map[list:1 v:1] values:2]" {
			t.Errorf("%s %s: events %v", c.typ, c.v, s.events)
		}
	}
}
