package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

// people is a table of some ids and names.
func people(tb testing.TB, rows string) *worker.DataFrame {
	tb.Helper()
	return frame(tb, rows, field("id", arrow.PrimitiveTypes.Int64), field("name", arrow.BinaryTypes.String))
}

// content returns a table's rows, as "1 ann|2 bob".
func content(tb testing.TB, db *dbtest.Database, table string) string {
	tb.Helper()
	var lines []string
	for _, row := range render(extract(tb, db, "SELECT * FROM "+table+" ORDER BY 1")) {
		lines = append(lines, strings.Join(row, " "))
	}
	return strings.Join(lines, "|")
}

func TestWriteModes(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	rows := `[{"id": 2, "name": "Bob"}, {"id": 3, "name": null}]`
	for _, c := range []struct {
		config map[string]any
		rows   string // default: rows
		want   string
		err    string
		count  float64 // of rows written
	}{
		{config: map[string]any{}, err: "Duplicate entry '2'"},
		{config: map[string]any{}, rows: `[{"id": 3, "name": "cy"}]`, want: "1 ann|2 bob|3 cy", count: 1},
		{config: map[string]any{"mode": "append"}, rows: `[]`, want: "1 ann|2 bob"},
		{config: map[string]any{"mode": "write"}, rows: `[{"id": 3, "name": "cy"}]`, want: "1 ann|2 bob|3 cy", count: 1},
		{config: map[string]any{"write_mode": "insert", "mode": "append"}, rows: `[{"id": 0, "name": "zero"}]`, want: "0 zero|1 ann|2 bob", count: 1},
		{config: map[string]any{"write_mode": "replace", "mode": "append"}, want: "2 Bob|3 <nil>", count: 2},
		{config: map[string]any{"mode": "replace"}, rows: `[]`, want: ""},
		{config: map[string]any{"mode": "replace"}, rows: `[{"id": 5, "name": "x"}, {"id": 5, "name": "y"}]`, err: "rows 1 to 2: Error 1062"},
		{config: map[string]any{"truncate_before": true}, want: "2 Bob|3 <nil>", count: 2},
		{config: map[string]any{"mode": "upsert", "upsert_keys": []any{"id"}}, want: "1 ann|2 Bob|3 <nil>", count: 2},
		{config: map[string]any{"write_mode": "upsert", "primary_key": "ID"}, want: "1 ann|2 Bob|3 <nil>", count: 2},
		{config: map[string]any{"mode": "upsert", "primary_key": "id"}, rows: `[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]`, want: "1 b|2 bob", count: 2},
		{config: map[string]any{"mode": "upsert"}, err: "'primary_key' or 'upsert_keys' is required when the mode is 'upsert'"},
		{config: map[string]any{"mode": "upsert", "primary_key": "name"}, err: "no primary key or unique index of NOT NULL columns on exactly name"},
		{config: map[string]any{"mode": "upsert", "primary_key": []any{"id", "name"}}, err: "no primary key or unique index"},
		{config: map[string]any{"mode": "upsert", "primary_key": "key"}, err: `key column "key" is not in the input`},
		{config: map[string]any{"mode": "merge"}, err: `config key "mode": want one of append, insert, upsert, replace`},
		{config: map[string]any{"table": ""}, err: "'table' is required in config"},
		{config: map[string]any{"table": "none"}, err: "MySQL write failed: Table none does not exist and create_if_missing is false"},
		{config: map[string]any{"table": "other"}, err: `MySQL write failed: table other has no column "name"`},
	} {
		t.Run(fmt.Sprint(c.config), func(t *testing.T) {
			db.Exec(t, `DROP TABLE IF EXISTS p, other; CREATE TABLE other (id INT); CREATE TABLE p (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(5));
				INSERT INTO p VALUES (1, 'ann'), (2, 'bob')`)
			in := rows
			if c.rows != "" {
				in = c.rows
			}
			config := map[string]any{"table": "p"}
			for k, v := range c.config {
				config[k] = v
			}
			s, err := write(context.Background(), db, people(t, in), config)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q in it", err, c.err)
				}
				if got := content(t, db, "p"); got != "1 ann|2 bob" {
					t.Errorf("a write that failed has left %s", got)
				}
				if len(s.metrics) > 0 {
					t.Errorf("metrics %v", s.metrics)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, db, "p"); got != c.want {
				t.Errorf("table %s, want %s", got, c.want)
			}
			if n, ok := s.metrics["rows_written rows"]; !ok || n != c.count {
				t.Errorf("rows_written is %v, want %v", n, c.count)
			}
			if _, ok := s.metrics["duration_ms ms"]; !ok {
				t.Errorf("metrics %v, want duration_ms too", s.metrics)
			}
		})
	}
}

// TestWriteRefused has values that a column cannot hold: nothing is written, not
// even the batches before.
func TestWriteRefused(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	for _, c := range []struct {
		column, value string // of the table
		typ           arrow.DataType
		want          string
	}{
		{"TINYINT", `128`, arrow.PrimitiveTypes.Int64, "Out of range"},
		{"INT UNSIGNED", `-1`, arrow.PrimitiveTypes.Int64, "Out of range"},
		{"VARCHAR(3)", `"abcd"`, arrow.BinaryTypes.String, "Data too long"},
		{"VARCHAR(9) CHARACTER SET latin1", `"山"`, arrow.BinaryTypes.String, "Incorrect string value"},
		{"DECIMAL(4,2)", `"100.00"`, &arrow.Decimal128Type{Precision: 10, Scale: 2}, "Out of range"},
		{"FLOAT", `1e300`, arrow.PrimitiveTypes.Float64, "Out of range"},
		{"ENUM('a')", `"b"`, arrow.BinaryTypes.String, "Data truncated"},
		{"DATE", `"2024-02-30"`, arrow.BinaryTypes.String, "Incorrect date value"},
		{"DATE", `"0000-00-00"`, arrow.BinaryTypes.String, "Incorrect date value"},
		{"INT", `"12abc"`, arrow.BinaryTypes.String, "Data truncated"},
		{"TIME", `3020400`, arrow.FixedWidthTypes.Duration_s, "Incorrect time value"},
		{"TIMESTAMP", `"2038-01-20T00:00:00"`, &arrow.TimestampType{Unit: arrow.Second, TimeZone: "UTC"}, "Incorrect datetime value"},
		{"BIT(2)", `4`, arrow.PrimitiveTypes.Int8, "Data too long"},
		{"JSON", `"{"`, arrow.BinaryTypes.String, "CONSTRAINT"},
		{"INT NOT NULL", `null`, arrow.PrimitiveTypes.Int8, "cannot be null"},
		{"INT CHECK (v < 5)", `5`, arrow.PrimitiveTypes.Int8, "CONSTRAINT"},
		{"DATETIME", `253402300800`, arrow.FixedWidthTypes.Timestamp_s, "the year is not from 0 to 9999"},
	} {
		t.Run(c.column+" "+c.value, func(t *testing.T) {
			db.Exec(t, "CREATE OR REPLACE TABLE v (id INT PRIMARY KEY, v "+c.column+")")
			f := frame(t, fmt.Sprintf(`[{"id": 1, "v": %s}]`, c.value), field("id", arrow.PrimitiveTypes.Int32), field("v", c.typ))
			_, err := write(context.Background(), db, f, map[string]any{"table": "v"})
			if err == nil || !strings.HasPrefix(err.Error(), "MySQL write failed: row") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
			if got := content(t, db, "v"); got != "" {
				t.Errorf("the table has %s", got)
			}
		})
	}
}

// TestWriteTransaction has a row that fails behind others that were sent.
func TestWriteTransaction(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	f := people(t, `[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}, {"id": 1, "name": "d"}]`)
	for _, c := range []struct {
		ddl    string
		config map[string]any
		want   string
	}{
		{"ENGINE=InnoDB", map[string]any{}, "9 old"},
		{"ENGINE=InnoDB", map[string]any{"mode": "replace"}, "9 old"},
		{"ENGINE=InnoDB", map[string]any{"single_transaction": false}, "1 a|2 b|9 old"},
		{"ENGINE=MyISAM", map[string]any{}, "1 a|2 b|3 c|9 old"}, // which cannot undo
	} {
		db.Exec(t, "CREATE OR REPLACE TABLE p (id INT PRIMARY KEY, name VARCHAR(5)) "+c.ddl, "INSERT INTO p VALUES (9, 'old')")
		config := with(c.config, "table", "p", "batch_size", 2)
		if _, err := write(context.Background(), db, f, config); err == nil || !strings.Contains(err.Error(), "rows 3 to 4: Error 1062") {
			t.Errorf("%v: error %v", c, err)
		}
		if got := content(t, db, "p"); got != c.want {
			t.Errorf("%v: the table has %s, want %s", c, got, c.want)
		}
	}
}

func TestWriteCreate(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	fields := []arrow.Field{
		field("id", arrow.PrimitiveTypes.Int64), field("it`s", arrow.BinaryTypes.String), field("on", arrow.FixedWidthTypes.Boolean),
		field("f", arrow.PrimitiveTypes.Float32), field("d", &arrow.Decimal128Type{Precision: 12, Scale: 3}),
		field("day", arrow.FixedWidthTypes.Date32), field("at", arrow.FixedWidthTypes.Timestamp_us),
		field("naive", &arrow.TimestampType{Unit: arrow.Millisecond}), field("long", arrow.FixedWidthTypes.Duration_us),
		field("clock", arrow.FixedWidthTypes.Time64us), field("list", arrow.ListOf(arrow.PrimitiveTypes.Int8)),
		field("kind", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}),
		field("nothing", arrow.Null), field("u", arrow.PrimitiveTypes.Uint64), field("wide", &arrow.Decimal256Type{Precision: 60, Scale: 10}),
	}
	f := frame(t, `[
		{"id": 7, "it`+"`"+`s": "x'\\", "on": true, "f": 0.1, "d": "-12.500", "day": "1969-12-31", "at": "2024-05-06T07:08:09.000001Z",
		 "naive": "1960-01-01T00:00:00.250", "long": -1500000, "clock": "23:59:59.999999", "list": [1, null], "kind": "red", "nothing": null, "u": "18446744073709551615", "wide": "-1.5"},
		{"id": 8}]`, fields...)
	config := map[string]any{"table": "new `table`", "create_if_missing": true, "primary_key": []any{"id", "it`s"}}
	if _, err := write(context.Background(), db, f, config); err == nil || !strings.Contains(err.Error(), "cannot be null") {
		t.Fatalf("error %v, want one for a key that is null", err)
	}
	if rows := render(extract(t, db, "SHOW TABLES")); len(rows) > 0 {
		t.Errorf("a write that failed has left the table it had made: %v", rows)
	}
	config["primary_key"] = "id"
	if _, err := write(context.Background(), db, f, config); err != nil {
		t.Fatal(err)
	}
	got := extract(t, db, "SELECT * FROM `new ``table``` ORDER BY id")
	var types []string
	for _, f := range got.Schema().Fields() {
		types = append(types, f.Name+" "+f.Type.String())
	}
	want := []string{"id int64", "it`s utf8", "on int8", "f float32", "d decimal(12, 3)", "day date32", "at timestamp[us, tz=UTC]", "naive timestamp[us]",
		"long duration[us]", "clock duration[us]", "list utf8", "kind utf8", "nothing utf8", "u uint64", "wide decimal256(60, 10)"}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	none := "<nil>"
	rows := [][]string{
		{"7", `x'\`, "1", "0.1", "-12.500", "1969-12-31", "2024-05-06 07:08:09.000001", "1960-01-01 00:00:00.25", "-1500000", "86399999999", "[1,null]", "red", none, "18446744073709551615", "-1.5000000000"},
		{"8", none, none, none, none, none, none, none, none, none, none, none, none, none, none},
	}
	if diff := cmp.Diff(rows, render(got)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if _, err := write(context.Background(), db, f, with(config, "mode", "upsert")); err != nil {
		t.Errorf("upsert to the table that is there: %v", err)
	}

	f = frame(t, `[{"x": {"months": 1, "days": 2}}]`, field("x", arrow.FixedWidthTypes.DayTimeInterval))
	if _, err := write(context.Background(), db, f, map[string]any{"table": "i", "create_table": true}); err == nil || !strings.Contains(err.Error(), `column "x": there is no type of MySQL for day_time_interval`) {
		t.Errorf("error %v", err)
	}
}

// TestWriteRounded has values with more decimals than their columns: MySQL does
// not refuse them, so they are counted.
func TestWriteRounded(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE r (d DECIMAL(10,1), n INT, f INT, t DATETIME(3), day DATE, same DATETIME(6), e DECIMAL(10,3))")
	ns := &arrow.TimestampType{Unit: arrow.Nanosecond}
	dec := &arrow.Decimal128Type{Precision: 10, Scale: 2}
	f := frame(t, `[
		{"d": "1.24", "n": "1.50", "f": 2.5, "t": "2024-01-01T00:00:00.0001", "day": "2024-01-01T00:00:01", "same": "2024-01-01T00:00:00.000001", "e": "1.25"},
		{"d": "1.20", "n": "1.00", "f": 2.0, "t": "2024-01-01T00:00:00.001", "day": "2024-01-01T00:00:00", "same": "2024-01-01T00:00:00", "e": null},
		{"d": "1.29", "n": null, "f": null, "t": "2024-01-01T00:00:00.000000001", "day": null, "same": "2024-01-01T00:00:00.000000001", "e": null}]`,
		field("d", dec), field("n", dec), field("f", arrow.PrimitiveTypes.Float64), field("t", ns), field("day", ns), field("same", ns), field("e", dec))
	s, err := write(context.Background(), db, f, map[string]any{"table": "r"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{"values_rounded": {"values": int64(8), "columns": map[string]int64{"d": 2, "n": 1, "f": 1, "t": 2, "day": 1, "same": 1}}}
	if diff := cmp.Diff(want, s.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestWriteFloats(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE f (d DOUBLE)")
	ints := frame(t, `[{"d": -7}]`, field("d", arrow.PrimitiveTypes.Int32))
	if _, err := write(context.Background(), db, ints, map[string]any{"table": "f"}); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{"NaN": "", "+Inf": "MySQL has no infinity", "-Inf": "MySQL has no infinity"} {
		f := frame(t, `[{"d": "`+value+`"}]`, field("d", arrow.PrimitiveTypes.Float64))
		_, err := write(context.Background(), db, f, map[string]any{"table": "f"})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v, want %q", value, err, want)
		}
	}
	if got := content(t, db, "f"); got != "<nil>|-7" {
		t.Errorf("table %s, want <nil>|-7", got)
	}
}

// TestWriteOtherIndex has a row whose key is new, but which another unique
// index takes for a duplicate of a row that nobody meant.
func TestWriteOtherIndex(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	for _, typ := range []string{"INT", "VARCHAR(10)", "DATE"} {
		key := map[string]string{"INT": "7", "VARCHAR(10)": "'7'", "DATE": "'2024-01-07'"}[typ]
		db.Exec(t, "CREATE OR REPLACE TABLE u (k "+typ+" NOT NULL PRIMARY KEY, name VARCHAR(9) UNIQUE)", "INSERT INTO u VALUES ("+key+", 'ann')")
		before := content(t, db, "u")
		for _, rows := range []string{
			`[{"k": "2024-01-08", "name": "ann"}]`,
			`[{"k": "2024-01-07", "name": "bea"}, {"k": "2024-01-08", "name": "bea"}]`,
		} {
			if typ != "DATE" {
				rows = strings.ReplaceAll(rows, "2024-01-0", "")
			}
			f := frame(t, rows, field("k", arrow.BinaryTypes.String), field("name", arrow.BinaryTypes.String))
			_, err := write(context.Background(), db, f, map[string]any{"table": "u", "mode": "upsert", "primary_key": "k"})
			if err == nil || !strings.Contains(err.Error(), "another unique index") {
				t.Errorf("%s: error %v", typ, err)
			}
			if got := content(t, db, "u"); got != before {
				t.Errorf("%s: the table has %s, want %s", typ, got, before)
			}
		}
	}
}

// TestWriteWeakIndex has unique indexes that do not tell all rows apart.
func TestWriteWeakIndex(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	for _, ddl := range []string{"id INT UNIQUE, name VARCHAR(9)", "id INT NOT NULL, name VARCHAR(9), KEY (id)", "id VARCHAR(9) NOT NULL, name VARCHAR(9), UNIQUE (id(2))"} {
		db.Exec(t, "CREATE OR REPLACE TABLE w ("+ddl+")")
		_, err := write(context.Background(), db, people(t, `[{"id": 1, "name": "a"}]`), map[string]any{"table": "w", "mode": "upsert", "primary_key": "id"})
		if err == nil || !strings.Contains(err.Error(), "no primary key or unique index of NOT NULL columns on exactly id") {
			t.Errorf("%s: error %v", ddl, err)
		}
	}
	db.Exec(t, "CREATE OR REPLACE TABLE w (other INT PRIMARY KEY AUTO_INCREMENT, id INT NOT NULL, name VARCHAR(9) NOT NULL, UNIQUE (name, id))")
	for range 2 {
		if _, err := write(context.Background(), db, people(t, `[{"id": 1, "name": "a"}]`), map[string]any{"table": "w", "mode": "upsert", "primary_key": []any{"id", "Name"}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, db, "w"); got != "1 1 a" {
		t.Errorf("table %s", got)
	}
}

// TestWriteNotUTF8 has a text that is none.
func TestWriteNotUTF8(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE n (s TEXT)")
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{field("s", arrow.BinaryTypes.String)}, nil))
	defer b.Release()
	b.Field(0).(*array.StringBuilder).AppendValues([]string{"a", "\xff"}, nil)
	rec := b.NewRecord()
	defer rec.Release()
	_, err := write(context.Background(), db, frameOf(t, rec), map[string]any{"table": "n"})
	if err == nil || err.Error() != `MySQL write failed: row 2: column "s": the text is not valid UTF-8` {
		t.Errorf("error %v", err)
	}
}

// TestWriteLarge has rows of which few fit into what the server takes at once,
// and one that does not.
func TestWriteLarge(t *testing.T) {
	server := servers.MariaDB(t)
	db := server.Database(t)
	var limit int
	if err := db.QueryRow("SELECT @@global.max_allowed_packet").Scan(&limit); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "SET GLOBAL max_allowed_packet = 65536")
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("SET GLOBAL max_allowed_packet = %d", limit)) })
	db.Exec(t, "CREATE TABLE l (id INT, name LONGTEXT)")
	row := func(id, n int) string { return fmt.Sprintf(`{"id": %d, "name": %q}`, id, strings.Repeat("x", n)) }
	f := people(t, "["+row(1, 30000)+","+row(2, 30000)+","+row(3, 30000)+","+row(4, 65000)+","+row(5, 1)+"]")
	if _, err := write(context.Background(), db, f, map[string]any{"table": "l"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"5", "155001"}}, render(extract(t, db, "SELECT COUNT(*), SUM(LENGTH(name)) FROM l"))); diff != "" {
		t.Error(diff)
	}
	f = people(t, "["+row(6, 1)+","+row(7, 66000)+"]")
	if _, err := write(context.Background(), db, f, map[string]any{"table": "l"}); err == nil || !strings.Contains(err.Error(), "rows 2 to 2: the statement has 66") || !strings.Contains(err.Error(), "max_allowed_packet") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([][]string{{"5"}}, render(extract(t, db, "SELECT COUNT(*) FROM l"))); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// TestWriteCancel cancels a write that waits for a lock.
func TestWriteCancel(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE p (id INT PRIMARY KEY, name VARCHAR(20)); INSERT INTO p VALUES (9, 'old')")
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE p SET name = 'locked' WHERE id = 9"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := people(t, `[{"id": 1, "name": "write_waits"}, {"id": 9, "name": "write_waits"}]`)
	done := make(chan error, 1)
	go func() {
		_, err := write(ctx, db, f, map[string]any{"table": "p", "mode": "upsert", "primary_key": "id"})
		done <- err
	}()
	await(t, "the write waits", func() bool { return running(t, db, "write_waits") == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	await(t, "the write is gone", func() bool { return running(t, db, "write_waits") == 0 })
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, db, "p"); got != "9 old" {
		t.Errorf("the table has %s, want what it had", got)
	}
}

// TestWriteCancelCreate cancels a write to a table that it has created.
func TestWriteCancelCreate(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := extract(t, db, "SELECT seq AS id, REPEAT('x', 100) AS name FROM seq_1_to_100000")
	done := make(chan error, 1)
	go func() {
		_, err := write(ctx, db, f, map[string]any{"table": "made_late", "create_table": true, "batch_size": 100})
		done <- err
	}()
	await(t, "rows are written", func() bool { return running(t, db, "INSERT INTO `made_late`") == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if rows := render(extract(t, db, "SHOW TABLES")); len(rows) > 0 {
		t.Errorf("tables %v, want none", rows)
	}
}

func TestWriteInputs(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE p (id INT PRIMARY KEY, name VARCHAR(20) NOT NULL DEFAULT 'nobody', CONSTRAINT c CHECK (id > 0))")
	step, _ := newStep(map[string]any{"table": "p"}, db.Connection)
	if _, err := new(mysql.Writer).Run(context.Background(), step); err == nil || !strings.Contains(err.Error(), "mysql.writer requires a table in inputs") {
		t.Errorf("no input: error %v", err)
	}
	twice := frame(t, `[]`, field("id", arrow.PrimitiveTypes.Int64), field("ID", arrow.PrimitiveTypes.Int64))
	if _, err := write(context.Background(), db, twice, map[string]any{"table": "p"}); err == nil || !strings.Contains(err.Error(), `the input has the column "ID" twice`) {
		t.Errorf("a column twice: error %v", err)
	}
	// What the input does not have, the table's defaults fill.
	few := frame(t, `[{"id": 1}]`, field("id", arrow.PrimitiveTypes.Int64))
	other := db.Connection["database"].(string)
	step, _ = newStep(map[string]any{"table": "p", "schema": other}, with(db.Connection, "database", "mysql"))
	step.Inputs = map[string]*worker.DataFrame{"df_x": few}
	if _, err := new(mysql.Writer).Run(context.Background(), step); err != nil {
		t.Fatal(err)
	}
	if got := content(t, db, "p"); got != "1 nobody" {
		t.Errorf("table %s", got)
	}
	f := frame(t, `[{"id": 2, "name": "a"}]`, field("id", arrow.PrimitiveTypes.Int64), field("name", arrow.BinaryTypes.String))
	if _, err := write(context.Background(), db, f, map[string]any{"table": "p", "batch_size": "x"}); err == nil {
		t.Error("a batch_size that is no number is no error")
	}
}
