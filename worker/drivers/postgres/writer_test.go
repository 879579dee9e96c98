package postgres_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/osiris-pipelines/remote/worker"
)

func TestWriteModes(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	rows := `[{"id": 2, "name": "b2"}, {"id": 3, "name": "c"}, {"id": 3, "name": "c3"}, {"id": 4, "name": null}]`
	df := frame(t, rows, field("id", arrow.PrimitiveTypes.Int64), field("name", arrow.BinaryTypes.String))
	unique := frame(t, `[{"id": 5, "name": "e"}]`, field("id", arrow.PrimitiveTypes.Int64), field("name", arrow.BinaryTypes.String))
	keys := frame(t, `[{"id": 1}, {"id": 9}]`, field("id", arrow.PrimitiveTypes.Int64))
	empty := frame(t, `[]`, field("id", arrow.PrimitiveTypes.Int64))
	for _, c := range []struct {
		name    string
		create  string
		df      *worker.DataFrame
		config  map[string]any
		want    []string // id:name:extra
		written float64
		err     string
	}{
		{name: "append", df: unique, config: map[string]any{"write_mode": "append"}, want: []string{"1:a:x", "2:b:x", "5:e:new"}, written: 1},
		{name: "insert", df: unique, config: map[string]any{"mode": "insert", "batch_size": 1}, want: []string{"1:a:x", "2:b:x", "5:e:new"}, written: 1},
		{name: "default", df: unique, config: map[string]any{"mode": "write"}, want: []string{"1:a:x", "2:b:x", "5:e:new"}, written: 1},
		{name: "taken", df: df, want: []string{"1:a:x", "2:b:x"}, err: `duplicate key value violates unique constraint "t_pkey" (SQLSTATE 23505); detail: Key (id)=(2) already exists.; where: COPY t, line 1`},
		{name: "upsert", df: df, config: map[string]any{"write_mode": "upsert", "primary_key": "id"},
			want: []string{"1:a:x", "2:b2:x", "3:c3:new", "4:-:new"}, written: 3},
		{name: "upsert keys alone", df: keys, config: map[string]any{"write_mode": "upsert", "upsert_keys": []any{"id"}}, want: []string{"1:a:x", "2:b:x", "9:-:new"}, written: 1},
		{name: "upsert null keys", create: "CREATE TABLE t (id integer UNIQUE, name text, extra text DEFAULT 'new'); INSERT INTO t VALUES (1, 'a', 'x')",
			df:     frame(t, `[{"id": null, "name": "p"}, {"id": null, "name": "q"}, {"id": 1, "name": "z"}]`, field("id", arrow.PrimitiveTypes.Int8), field("name", arrow.BinaryTypes.String)),
			config: map[string]any{"write_mode": "upsert", "primary_key": "id"}, want: []string{"1:z:x", "-:p:new", "-:q:new"}, written: 3},
		{name: "upsert without index", create: "CREATE TABLE t (id integer, name text, extra text)", df: df,
			config: map[string]any{"write_mode": "upsert", "primary_key": "id"}, err: `upsert takes a primary key or unique index on ("id")`, want: []string{}},
		{name: "upsert without key", df: df, config: map[string]any{"write_mode": "upsert"}, err: "'primary_key' is required", want: []string{"1:a:x", "2:b:x"}},
		{name: "upsert by another", df: df, config: map[string]any{"write_mode": "upsert", "primary_key": "nr"}, err: `the input has no column "nr"`, want: []string{"1:a:x", "2:b:x"}},
		{name: "replace", df: unique, config: map[string]any{"write_mode": "replace"}, want: []string{"5:e:new"}, written: 1},
		{name: "replace by truncate", df: unique, config: map[string]any{"mode": "replace", "truncate_before": true, "primary_key": "id"}, want: []string{"5:e:new"}, written: 1},
		{name: "replace by nothing", df: empty, config: map[string]any{"write_mode": "replace"}, want: []string{}},
		{name: "replace that fails", df: df, config: map[string]any{"write_mode": "replace"}, err: "duplicate key value", want: []string{"1:a:x", "2:b:x"}},
		{name: "truncate that fails", df: df, config: map[string]any{"write_mode": "replace", "truncate_before": true}, err: "duplicate key value", want: []string{"1:a:x", "2:b:x"}},
		{name: "identity", create: "CREATE TABLE t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, extra text DEFAULT 'new')", df: df,
			config: map[string]any{"write_mode": "upsert", "primary_key": "id"}, want: []string{"2:b2:new", "3:c3:new", "4:-:new"}, written: 3},
		{name: "mode", df: df, config: map[string]any{"write_mode": "update"}, err: `config key "write_mode"`, want: []string{"1:a:x", "2:b:x"}},
		{name: "batch size", df: df, config: map[string]any{"batch_size": -1}, err: `config key "batch_size"`, want: []string{"1:a:x", "2:b:x"}},
		{name: "keys", df: df, config: map[string]any{"primary_key": []any{"id", "id"}}, err: `config key "primary_key"`, want: []string{"1:a:x", "2:b:x"}},
		{name: "no table", df: df, config: map[string]any{"table": ""}, err: "'table' is required", want: []string{"1:a:x", "2:b:x"}},
		{name: "missing", df: df, config: map[string]any{"table": "public.t"}, err: `the table does not exist and create_if_missing is false; if "public" is a schema`, want: []string{"1:a:x", "2:b:x"}},
		{name: "no schema", df: df, config: map[string]any{"schema": "nowhere", "create_if_missing": true}, err: `schema "nowhere" does not exist`, want: []string{"1:a:x", "2:b:x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			create := c.create
			if create == "" {
				create = "CREATE TABLE t (id integer PRIMARY KEY, name text, extra text DEFAULT 'new'); INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'x')"
			}
			db.Exec(t, "DROP TABLE IF EXISTS t; "+create)
			s, err := write(db, c.df, with(map[string]any{"table": "t"}, c.config))
			switch {
			case c.err == "" && err != nil:
				t.Fatal(err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("error %v, want %q", err, c.err)
			case c.err != "" && len(s.metrics) > 0:
				t.Errorf("metrics %v after an error", s.metrics)
			case c.err == "" && s.metrics["rows_written"] != c.written:
				t.Errorf("rows_written %v, want %v", s.metrics["rows_written"], c.written)
			}
			if _, ok := s.metrics["duration_ms"]; ok != (c.err == "") {
				t.Errorf("metrics %v", s.metrics)
			}
			got := query(t, db, "SELECT coalesce(id::text, '-') || ':' || coalesce(name, '-') || ':' || coalesce(extra, '-') FROM t ORDER BY id, name")
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("no input", func(t *testing.T) {
		step := &worker.Step{Config: map[string]any{"table": "t", "resolved_connection": db.Connection}}
		if _, err := newWriter().Run(t.Context(), step); err == nil || !strings.Contains(err.Error(), "postgres.writer requires a table in inputs") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no columns", func(t *testing.T) {
		none := frameOf(t, array.NewRecord(arrow.NewSchema(nil, nil), nil, 0))
		if s, err := write(db, none, map[string]any{"table": "t", "write_mode": "replace"}); err != nil || s.metrics["rows_written"] != 0 {
			t.Errorf("%v, %v", s.metrics, err)
		}
		if got := query(t, db, "SELECT count(*) FROM t"); got[0] != "0" {
			t.Errorf("%s rows", got[0])
		}
	})
}

// TestCreate makes tables, whose names need quotes.
func TestCreate(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	db.Exec(t, `CREATE SCHEMA "My Schema"`)
	df := frame(t, `[{"id": 1, "Na\"me": "x"}]`, field("id", arrow.PrimitiveTypes.Int64), field(`Na"me`, arrow.BinaryTypes.String))
	config := map[string]any{"table": `my"table; DROP TABLE t`, "schema": "My Schema", "create_if_missing": true, "primary_key": "id"}
	if _, err := write(db, df, config); err != nil {
		t.Fatal(err)
	}
	_, err := write(db, df, config)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23505" {
		t.Errorf("without a primary key? error %v", err)
	}
	if got := query(t, db, `SELECT "Na""me" FROM "My Schema"."my""table; DROP TABLE t"`); got[0] != "x" {
		t.Errorf("got %v", got)
	}
	// A failed step leaves no table behind.
	bad := frame(t, `[{"id": 1, "at": 9223372036854775807}]`, field("id", arrow.PrimitiveTypes.Int64), field("at", arrow.FixedWidthTypes.Timestamp_s))
	if _, err := write(db, bad, map[string]any{"table": "bad", "create_if_missing": true}); err == nil || !strings.Contains(err.Error(), `column "at", row 1: `) {
		t.Errorf("error %v", err)
	}
	if got := query(t, db, "SELECT count(*) FROM pg_class WHERE relname = 'bad'"); got[0] != "0" {
		t.Error("the table is there")
	}
	// What a column's metadata says is not believed.
	hostile := field("v", arrow.BinaryTypes.String)
	hostile.Metadata = arrow.NewMetadata([]string{"postgres.type"}, []string{"int); DROP SCHEMA public CASCADE; --"})
	if _, err := write(db, frame(t, `[{"v": "x"}]`, hostile), map[string]any{"table": "h", "create_if_missing": true}); err != nil {
		t.Error(err)
	}
}

// TestConversions writes values of every type of Arrow to columns of other
// types.
func TestConversions(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	db.Exec(t, "CREATE TYPE mood AS ENUM ('happy')")
	list := arrow.ListOf
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	for i, c := range []struct {
		arrow arrow.DataType
		value string // as JSON
		sql   string
		want  string // the column's text, or the error
	}{
		{arrow.PrimitiveTypes.Int8, "-128", "smallint", "-128"},
		{arrow.PrimitiveTypes.Uint8, "255", "smallint", "255"},
		{arrow.PrimitiveTypes.Uint16, "65535", "integer", "65535"},
		{arrow.PrimitiveTypes.Uint32, "4294967295", "bigint", "4294967295"},
		{arrow.PrimitiveTypes.Uint64, `"18446744073709551615"`, "numeric", "18446744073709551615"},
		{arrow.PrimitiveTypes.Uint64, `"18446744073709551615"`, "bigint", "error: out of range"},
		{arrow.PrimitiveTypes.Uint64, `"18446744073709551615"`, "double precision", "1.8446744073709552e+19"},
		{arrow.PrimitiveTypes.Int64, "32768", "smallint", "error: 32768 is out of range; the column takes -32768 to 32767"},
		{arrow.PrimitiveTypes.Int64, "-1", "oid", "error: out of range"},
		{arrow.PrimitiveTypes.Int64, "12", "text", "12"},
		{arrow.PrimitiveTypes.Int64, "-9223372036854775808", "numeric(38,2)", "-9223372036854775808.00"},
		{arrow.PrimitiveTypes.Int64, "1", "boolean", "error: type"},
		{arrow.PrimitiveTypes.Float64, "3", "integer", "3"},
		{arrow.PrimitiveTypes.Float64, "3.5", "integer", "error: 3.5 is no integer"},
		{arrow.PrimitiveTypes.Float64, `"NaN"`, "integer", "<nil>"},
		{arrow.PrimitiveTypes.Float64, `"NaN"`, "double precision", "NaN"},
		{arrow.PrimitiveTypes.Float64, "1e300", "integer", "error: out of range"},
		{arrow.PrimitiveTypes.Float64, "1e300", "real", "error: out of the range of type real"},
		{arrow.PrimitiveTypes.Float64, "0.1", "numeric", "0.1"},
		{arrow.PrimitiveTypes.Float64, "-1.5e-7", "numeric", "-0.00000015"},
		{arrow.PrimitiveTypes.Float64, "1e22", "numeric", "10000000000000000000000"},
		{arrow.PrimitiveTypes.Float64, "123456.789", "numeric(10,2)", "123456.79"},
		{arrow.PrimitiveTypes.Float64, `"NaN"`, "numeric", "NaN"},
		{arrow.PrimitiveTypes.Float64, `"+Inf"`, "numeric", "Infinity"},
		{arrow.PrimitiveTypes.Float32, "0.1", "numeric", "0.1"},
		{arrow.FixedWidthTypes.Float16, "0.5", "real", "0.5"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"12.00"`, "integer", "12"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"12.01"`, "integer", "error: no integer"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"12.01"`, "double precision", "12.01"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"12.01"`, "money", "$12.01"},
		{&arrow.Decimal128Type{Precision: 38, Scale: 0}, `"99999999999999999999999999999999999999"`, "numeric", "99999999999999999999999999999999999999"},
		{&arrow.Decimal256Type{Precision: 76, Scale: 3}, `"123456789012345678901234567890123456789012345.125"`, "numeric", "123456789012345678901234567890123456789012345.125"},
		{&arrow.Decimal128Type{Precision: 10, Scale: 2}, `"1000.00"`, "numeric(4,2)", "error: numeric field overflow"},
		{arrow.FixedWidthTypes.Boolean, "true", "boolean", "true"},
		{arrow.FixedWidthTypes.Boolean, "true", "text", "true"},
		{arrow.BinaryTypes.String, `"42"`, "integer", "42"},
		{arrow.BinaryTypes.String, `"x"`, "integer", `error: invalid input syntax for type integer: "x"`},
		{arrow.BinaryTypes.String, `"abcdef"`, "character varying(3)", "error: value too long"},
		{arrow.BinaryTypes.LargeString, `"abc"`, "character varying(3)", "abc"},
		{arrow.BinaryTypes.String, `"nul\u0000"`, "text", "error: invalid byte sequence"},
		{arrow.BinaryTypes.String, `"2024-01-15 10:00:00"`, "timestamptz", "2024-01-15 15:30:00+05:30"},
		{arrow.BinaryTypes.String, `"2024-01-15"`, "date", "2024-01-15"},
		{arrow.BinaryTypes.String, `"1011"`, "bit(3)", "error: bit string length 4 does not match type bit(3)"},
		{arrow.BinaryTypes.String, `"happy"`, "mood", "happy"},
		{arrow.BinaryTypes.String, `"sad"`, "mood", "error: invalid input value for enum mood"},
		{arrow.BinaryTypes.String, `"{A0EEBC99-9C0B-4EF8-BB6D6BB9BD380A11}"`, "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
		{arrow.BinaryTypes.String, `"a0eebc99"`, "uuid", `error: "a0eebc99" is no uuid`},
		{&arrow.FixedSizeBinaryType{ByteWidth: 16}, `"oO68mZwLTvi7bWu5vTgKEQ=="`, "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
		{&arrow.FixedSizeBinaryType{ByteWidth: 2}, `"AAE="`, "bytea", "\\x0001"},
		{arrow.BinaryTypes.LargeBinary, `"AAE="`, "bytea", "\\x0001"},
		{arrow.BinaryTypes.String, `"{\"a\": 1}"`, "jsonb", `{"a": 1}`},
		{arrow.BinaryTypes.String, `"{"`, "json", "error: invalid input syntax for type json"},
		{dict, `"happy"`, "text", "happy"},
		{dict, `"happy"`, "mood", "happy"},
		{dict, `"7"`, "integer", "7"},
		{arrow.FixedWidthTypes.Date32, `"2024-02-29"`, "timestamp", "2024-02-29 00:00:00"},
		{arrow.FixedWidthTypes.Date64, `"2024-02-29"`, "date", "2024-02-29"},
		{arrow.FixedWidthTypes.Timestamp_ns, `"2024-02-29 12:34:56.123456789"`, "timestamp", "2024-02-29 12:34:56.123456"},
		{arrow.FixedWidthTypes.Timestamp_ns, `"1969-12-31 23:59:59.999999999"`, "timestamptz", "1970-01-01 05:29:59.999999+05:30"},
		{arrow.FixedWidthTypes.Timestamp_ms, `"2024-02-29 00:00:00"`, "date", "2024-02-29"},
		{arrow.FixedWidthTypes.Timestamp_ms, `"2024-02-29 01:00:00"`, "date", "error: has a time of day"},
		{arrow.FixedWidthTypes.Timestamp_s, "raw 9223372036854775807", "timestamp", "error: out of the range"},
		{arrow.FixedWidthTypes.Timestamp_us, "raw -9223372036854775808", "timestamp", "error: out of the range"},
		{arrow.FixedWidthTypes.Timestamp_us, "raw -9222425352054775808", "timestamp", "error: is out of the range of type timestamp"}, // which would be -infinity
		{arrow.FixedWidthTypes.Timestamp_us, "raw 9223372036854775807", "timestamp", "294247-01-10 04:00:54.775807"},
		{arrow.PrimitiveTypes.Date32, "2147483647", "date", "error: date out of range"},
		{arrow.PrimitiveTypes.Date32, "-2147472692", "date", "error: is out of the range of type date"}, // which would be -infinity
		{arrow.PrimitiveTypes.Date32, "2145042905", "date", "5874897-12-31"},
		{arrow.FixedWidthTypes.Time32s, `"23:59:59"`, "time", "23:59:59"},
		{arrow.FixedWidthTypes.Time32ms, `"23:59:59.999"`, "time", "23:59:59.999"},
		{arrow.FixedWidthTypes.Time64ns, `"23:59:59.999999999"`, "time", "23:59:59.999999"},
		{arrow.FixedWidthTypes.Duration_s, `"90s"`, "interval", "00:01:30"},
		{arrow.FixedWidthTypes.Duration_ns, `"1001ns"`, "interval", "00:00:00.000001"},
		{arrow.FixedWidthTypes.MonthInterval, `{"months": 14}`, "interval", "1 year 2 mons"},
		{arrow.FixedWidthTypes.DayTimeInterval, `{"days": 1, "milliseconds": 500}`, "interval", "1 day 00:00:00.5"},
		{arrow.Null, "null", "integer", "<nil>"},
		{list(arrow.PrimitiveTypes.Int64), "[1, null, 3]", "integer[]", "{1,NULL,3}"},
		{list(arrow.PrimitiveTypes.Int64), "[1, null, 3]", "text[]", "{1,NULL,3}"},
		{list(arrow.PrimitiveTypes.Int64), "[]", "integer[]", "{}"},
		{list(arrow.PrimitiveTypes.Int64), "[1]", "jsonb", "[1]"},
		{list(arrow.PrimitiveTypes.Int64), "[1, 32768]", "smallint[]", "error: 32768 is out of range"},
		{list(list(arrow.PrimitiveTypes.Int64)), "[[1, 2], [3, 4]]", "integer[]", "{{1,2},{3,4}}"},
		{list(list(arrow.PrimitiveTypes.Int64)), "[[1, 2], [3]]", "integer[]", "error: inner lists are not all of one length"},
		{list(list(arrow.PrimitiveTypes.Int64)), "[[]]", "integer[]", "error: inner lists are not all of one length"},
		{list(arrow.BinaryTypes.String), `["abcd"]`, "character varying(3)[]", "error: value too long"},
		{list(arrow.BinaryTypes.String), `["10.0.0.1"]`, "inet[]", "{10.0.0.1}"},
		{list(arrow.BinaryTypes.String), `["101"]`, "bit(2)[]", "error: bit string length 3"},
		{arrow.FixedSizeListOf(2, arrow.PrimitiveTypes.Float32), "[1.5, 2]", "real[]", "{1.5,2}"},
		{arrow.StructOf(field("x", arrow.PrimitiveTypes.Int64), field("y", list(arrow.BinaryTypes.String))), `{"x": 1, "y": ["q\"", null]}`, "jsonb", `{"x": 1, "y": ["q\"", null]}`},
		{arrow.StructOf(field("x", arrow.PrimitiveTypes.Float64)), `{"x": "NaN"}`, "jsonb", "error: NaN cannot be written as JSON"},
		{arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Int64), `[{"key": "k", "value": 1}]`, "json", `{"k":1}`},
		{arrow.MapOf(arrow.PrimitiveTypes.Int64, arrow.FixedWidthTypes.Boolean), `[{"key": 5, "value": true}]`, "json", `[[5,true]]`},
	} {
		t.Run(c.arrow.String()+" to "+c.sql, func(t *testing.T) {
			f := field("v", c.arrow)
			if ts, ok := c.arrow.(*arrow.TimestampType); ok {
				f.Type = &arrow.TimestampType{Unit: ts.Unit}
			}
			b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{field("n", arrow.PrimitiveTypes.Int64), f}, nil))
			defer b.Release()
			b.Field(0).(*array.Int64Builder).AppendValues([]int64{0, 1}, nil)
			b.Field(1).AppendNull()
			if raw, ok := strings.CutPrefix(c.value, "raw "); ok { // JSON goes by way of a float
				n, err := strconv.ParseInt(raw, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(n))
			} else if err := b.Field(1).UnmarshalJSON([]byte("[" + c.value + "]")); err != nil {
				t.Fatal(err)
			}
			df := frameOf(t, b.NewRecord())
			db.Exec(t, "DROP TABLE IF EXISTS c; CREATE TABLE c (n integer, v "+c.sql+")")
			s, err := write(db, df, map[string]any{"table": "c"})
			if want, fails := strings.CutPrefix(c.want, "error: "); fails {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%d: error %v, want %q", i, err, want)
				}
				return
			}
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			cut := strings.Contains(c.arrow.String(), "[ns") // all of these have some
			if cut != (len(s.events) == 1) || cut && s.events[0] != "values_rounded map[columns:map[v:1] values:1]" {
				t.Errorf("%d: events %v", i, s.events)
			}
			if diff := cmp.Diff([]string{"<nil>", c.want}, query(t, db, "SELECT v::text FROM c ORDER BY n")); diff != "" {
				t.Errorf("%d (-want +got):\n%s", i, diff)
			}
		})
	}
}

// TestDuplicateColumns cannot be written by name.
func TestDuplicateColumns(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	df := mustExtract(t, db, "SELECT 1 AS a, 2 AS a", nil)
	if _, err := write(db, df, map[string]any{"table": "d", "create_if_missing": true}); err == nil || !strings.Contains(err.Error(), `two columns of the name "a"`) {
		t.Errorf("error %v", err)
	}
	db.Exec(t, "CREATE TABLE g (a integer, b integer GENERATED ALWAYS AS (a + 1) STORED)")
	for query, want := range map[string]string{
		"SELECT 1 AS a, 2 AS c, 3 AS d": `the table has no column "c", "d"; it has "a", "b"`,
		"SELECT 1 AS b":                 `column "b" is generated by the server`,
	} {
		if _, err := write(db, mustExtract(t, db, query, nil), map[string]any{"table": "g"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", query, err, want)
		}
	}
}
