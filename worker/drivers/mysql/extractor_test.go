package mysql_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/memory"
	client "github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

// with returns fields with some of them changed; nil removes one.
func with(fields map[string]any, changes ...any) map[string]any {
	out := maps.Clone(fields)
	for i := 0; i < len(changes); i += 2 {
		out[changes[i].(string)] = changes[i+1]
	}
	return out
}

func TestExtractErrors(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE TABLE t (n INT)")
	query := map[string]any{"query": "SELECT 1"}
	tlsServer := httptest.NewTLSServer(nil)
	tlsServer.Close()
	stranger := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsServer.Certificate().Raw}))
	for _, c := range []struct {
		name               string
		config, connection map[string]any
		want               string
	}{
		{"no query", map[string]any{}, db.Connection, "Step s: 'query' is required in config"},
		{"blank query", map[string]any{"query": " \n"}, db.Connection, "Step s: 'query' is required in config"},
		{"no connection", query, nil, "Step s: 'resolved_connection' is required"},
		{"empty connection", query, map[string]any{}, "Step s: 'resolved_connection' is required"},
		{"no database", query, with(db.Connection, "database", nil), "Step s: 'database' is required in connection"},
		{"bad port", query, with(db.Connection, "port", "seven"), `connection field "port": want an integer from 1 to 65535`},
		{"bad batch size", with(query, "batch_size", 0), db.Connection, `config key "batch_size": want an integer from 1`},
		{"bad zero_dates", with(query, "zero_dates", "keep"), db.Connection, `config key "zero_dates": want one of null, error`},
		{"bad tls", query, with(db.Connection, "tls", "maybe"), `connection field "tls": want one of`},
		{"no such certificate", query, with(db.Connection, "ssl_ca", "/no/such/file"), `connection field "ssl_ca"`},
		{"no certificate", query, with(db.Connection, "ssl_ca", "-----BEGIN NOTHING-----"), `connection field "ssl_ca": there is no certificate in it`},
		{"unknown authority", query, with(db.Connection, "ssl_mode", "VERIFY_IDENTITY"), "MySQL connection failed for step s: tls: failed to verify"},
		{"another authority", query, with(db.Connection, "ssl_ca", stranger, "ssl_mode", "verify_ca"), "MySQL connection failed for step s: x509"},
		{"key in sight", query, with(db.Connection, "ssl_cert", stranger, "ssl_key", "-----BEGIN PRIVATE KEY-----"), `connection field "ssl_key": want the name of a file; the key itself may stand in "ssl_private_key"`},
		{"no key", query, with(db.Connection, "ssl_cert", stranger, "ssl_private_key", "hunter2"), `connection fields "ssl_cert" and "ssl_key": tls: failed to find any PEM data in key`},
		{"key without certificate", query, with(db.Connection, "ssl_key", "x"), `connection field "ssl_cert" is missing`},
		{"wrong password", query, with(db.Connection, "password", "hunter2-not-it"), "MySQL connection failed for step s: Error 1045"},
		{"no such database", query, with(db.Connection, "database", "nowhere"), "MySQL connection failed for step s: Error 1049"},
		{"syntax", map[string]any{"query": "SELEKT 1"}, db.Connection, "MySQL query failed: Error 1064"},
		{"no such table", map[string]any{"query": "SELECT * FROM nothing"}, db.Connection, "MySQL query failed: Error 1146"},
		{"two statements", map[string]any{"query": "SELECT 1; SELECT 2"}, db.Connection, "MySQL query failed: Error 1064"},
		{"placeholder", map[string]any{"query": "SELECT ?"}, db.Connection, "MySQL execution failed: the query has placeholders"},
		{"no rows", map[string]any{"query": "INSERT INTO t VALUES (1)"}, db.Connection, "MySQL execution failed: the query does not return rows"},
		{"fails on the way", map[string]any{"query": "SELECT IF(seq = 900, (SELECT 1 UNION SELECT 2), seq) FROM seq_1_to_1000", "batch_size": 10}, db.Connection, "MySQL query failed: Error 1242"},
	} {
		t.Run(c.name, func(t *testing.T) {
			step, s := newStep(c.config, c.connection)
			var logged strings.Builder
			step.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
			f, err := run(context.Background(), step)
			if err == nil {
				f.Release()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want %q in it", err, c.want)
			}
			for _, secret := range []string{"hunter2", db.Connection["password"].(string)} {
				if strings.Contains(err.Error()+logged.String(), secret) {
					t.Errorf("%q tells the password: %s", err, logged.String())
				}
			}
			if len(s.metrics) > 0 {
				t.Errorf("metrics %v", s.metrics)
			}
		})
	}
	if rows := render(extract(t, db, "SELECT * FROM t")); len(rows) > 0 {
		t.Errorf("what an extractor's query has changed was kept: %v", rows)
	}
	step, _ := newStep(map[string]any{"query": "SELECT * FROM nothing"}, db.Connection)
	_, err := run(context.Background(), step)
	var server *client.MySQLError
	if !errors.As(err, &server) || server.Number != 1146 {
		t.Errorf("error %v does not have the server's code", err)
	}
}

// TestExtractConnection has the fields in the forms that users give them.
func TestExtractConnection(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	port := fmt.Sprint(db.Connection["port"])
	db.Exec(t, "CREATE USER digits@'%' IDENTIFIED BY '12345'")
	t.Cleanup(func() { db.Exec(t, "DROP USER digits@'%'") })
	db.Exec(t, "GRANT SELECT ON *.* TO digits@'%'")
	for name, c := range map[string]map[string]any{
		"as it is":         db.Connection,
		"port as a text":   with(db.Connection, "port", port),
		"port as a number": with(db.Connection, "port", json.Number(port)),
		"localhost":        with(db.Connection, "host", nil),
		"pool and family":  with(db.Connection, "pool_size", 5, "max_overflow", 10, "_family", "mysql", "charset", "latin1", "timeout", 30),
		"plain":            with(db.Connection, "ssl", false),
		"preferred":        with(db.Connection, "ssl_mode", "PREFERRED"),
		"a number":         with(db.Connection, "user", "digits", "password", json.Number("12345")),
	} {
		t.Run(name, func(t *testing.T) {
			step, _ := newStep(map[string]any{"query": "SELECT 'é' AS v"}, c)
			f, err := run(context.Background(), step)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Release()
			if diff := cmp.Diff([][]string{{"é"}}, render(f)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestExtractEncryption has the ways to ask for encryption, and not to.
func TestExtractEncryption(t *testing.T) {
	server := servers.MariaDB(t)
	db := server.Database(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(server.CA), 0o600); err != nil {
		t.Fatal(err)
	}
	named := with(db.Connection, "host", "localhost")
	for _, c := range []struct {
		connection map[string]any
		encrypted  bool
	}{
		{db.Connection, true}, // where the server can
		{with(db.Connection, "tls", "preferred"), true},
		{with(db.Connection, "tls", "skip-verify"), true},
		{with(db.Connection, "ssl", true), true},
		{with(db.Connection, "ssl", false), false},
		{with(db.Connection, "tls", false), false},
		{with(db.Connection, "ssl_disabled", true), false},
		{with(db.Connection, "ssl_mode", "DISABLED"), false},
		{with(db.Connection, "sslmode", "required"), true},
		{with(db.Connection, "ssl_ca", server.CA), true},
		{with(db.Connection, "ssl_ca", "ca.pem"), true},
		{with(named, "ssl_ca", "ca.pem", "ssl_mode", "VERIFY_IDENTITY"), true},
		{with(named, "ssl", map[string]any{"ca": server.CA}), true},
		{with(named, "ssl", map[string]any{"ca": server.CA, "check_hostname": false}), true},
		{with(db.Connection, "ssl_ca", server.CA, "ssl_verify_identity", false), true},
		{with(db.Connection, "ssl_ca", server.CA, "ssl_mode", "VERIFY_CA"), true},
	} {
		step, _ := newStep(map[string]any{"query": "SHOW STATUS LIKE 'Ssl_cipher'"}, c.connection)
		step.BasePath = dir
		f, err := run(context.Background(), step)
		if err != nil {
			t.Errorf("%v: %v", c.connection, err)
			continue
		}
		if cipher := render(f)[0][1]; (cipher != "") != c.encrypted {
			t.Errorf("%v: the cipher is %q", c.connection, cipher)
		}
		f.Release()
	}
}

// TestExtractDeafServer has a server that takes connections and says nothing.
func TestExtractDeafServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connection := map[string]any{"host": "127.0.0.1", "port": l.Addr().(*net.TCPAddr).Port, "database": "d", "connect_timeout": 1}
	step, _ := newStep(map[string]any{"query": "SELECT 1"}, connection)
	if _, err := run(context.Background(), step); err == nil || !strings.Contains(err.Error(), "MySQL connection failed for step s: no answer within 1s") {
		t.Errorf("error %v", err)
	}
}

func TestExtractBatches(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	for _, c := range []struct {
		query   string
		size    int
		batches []int64
	}{
		{"SELECT seq FROM seq_1_to_10", 4, []int64{4, 4, 2}},
		{"SELECT seq FROM seq_1_to_8", 4, []int64{4, 4}},
		{"SELECT seq FROM seq_1_to_8 WHERE seq > 8", 4, nil},
		{"SELECT REPEAT('x', 12000) FROM seq_1_to_12", 100, []int64{9, 3}}, // 100 KiB are full
	} {
		step, s := newStep(map[string]any{"query": c.query, "batch_size": c.size}, db.Connection)
		res, err := mysql.SmallBatches(100<<10).Run(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		var got []int64
		rows := 0.0
		for r.Next() {
			got = append(got, r.Record().NumRows())
			rows += float64(r.Record().NumRows())
		}
		if r.Err() != nil || r.Next() {
			t.Errorf("%s: after the end: %v", c.query, r.Err())
		}
		r.Release()
		if diff := cmp.Diff(c.batches, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.query, diff)
		}
		if diff := cmp.Diff(map[string]float64{"rows_read rows": rows}, s.metrics); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
	}
}

// counter counts the bytes that are allocated, and their peak.
type counter struct {
	memory.Allocator
	now, peak atomic.Int64
}

func (c *counter) add(n int) {
	now := c.now.Add(int64(n))
	for peak := c.peak.Load(); now > peak && !c.peak.CompareAndSwap(peak, now); peak = c.peak.Load() {
	}
}

func (c *counter) Allocate(n int) []byte { c.add(n); return c.Allocator.Allocate(n) }

func (c *counter) Reallocate(n int, b []byte) []byte {
	c.add(n - len(b))
	return c.Allocator.Reallocate(n, b)
}

func (c *counter) Free(b []byte) { c.add(-len(b)); c.Allocator.Free(b) }

// TestExtractMemory reads tables of which one is 20 times the other.
func TestExtractMemory(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	peak := func(rows int) int64 {
		c := &counter{Allocator: memory.DefaultAllocator}
		step, _ := newStep(map[string]any{"query": fmt.Sprintf("SELECT seq, REPEAT('x', 100) AS x FROM seq_1_to_%d", rows), "batch_size": 500}, db.Connection)
		step.Allocator = c
		res, err := new(mysql.Extractor).Run(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		for r.Next() {
		}
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		r.Release()
		if left := c.now.Load(); left != 0 {
			t.Errorf("%d bytes are left", left)
		}
		return c.peak.Load()
	}
	small, large := peak(2000), peak(40000)
	if large > small {
		t.Errorf("40000 rows take %d bytes, 2000 rows %d", large, small)
	}
	if limit := int64(500 * 108 * 4); large > limit {
		t.Errorf("batches of 500 rows take %d bytes, want at most %d", large, limit)
	}
}

// running returns how many queries with a mark in them the server runs.
func running(tb testing.TB, db *dbtest.Database, mark string) (n int) {
	tb.Helper()
	err := db.QueryRow("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE ? AND ID <> CONNECTION_ID()", "%"+mark+"%").Scan(&n)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// await waits until what is asked for is so.
func await(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestExtractCancel cancels a query that computes, which the server would go on
// with.
func TestExtractCancel(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	for name, query := range map[string]string{
		"before the first row": "SELECT BENCHMARK(1000000000000, MD5('before_the_first'))",
		"on the way":           "SELECT REPEAT('on_the_way', IF(seq > 3000, BENCHMARK(1000000000000, 1), 1)) FROM seq_1_to_100000",
	} {
		t.Run(name, func(t *testing.T) {
			mark := strings.ReplaceAll(strings.TrimSuffix(name, " row"), " ", "_")
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			step, _ := newStep(map[string]any{"query": query, "batch_size": 10}, db.Connection)
			done := make(chan error, 1)
			go func() {
				f, err := run(ctx, step)
				if err == nil {
					f.Release()
				}
				done <- err
			}()
			await(t, "the query runs", func() bool { return running(t, db, mark) == 1 })
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want that of the context", err)
			}
			await(t, "the query is gone", func() bool { return running(t, db, mark) == 0 })
		})
	}
}

// TestExtractRelease has a reader that is released before its end.
func TestExtractRelease(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	c := &counter{Allocator: memory.DefaultAllocator}
	step, s := newStep(map[string]any{"query": "SELECT 'early_end' FROM seq_1_to_100000000", "batch_size": 10}, db.Connection)
	step.Allocator = c
	res, err := new(mysql.Extractor).Run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs[worker.DefaultOutput]
	r.Retain()
	if !r.Next() {
		t.Fatal(r.Err())
	}
	r.Release()
	if !r.Next() {
		t.Fatal("one of two owners has released it, and it is at its end")
	}
	r.Release()
	if r.Next() {
		t.Error("there are rows after its end")
	}
	await(t, "the query is gone", func() bool { return running(t, db, "early_end") == 0 })
	if left := c.now.Load(); left != 0 {
		t.Errorf("%d bytes are left", left)
	}
	if len(s.metrics) > 0 {
		t.Errorf("metrics %v", s.metrics)
	}
}

// TestExtractLost has a connection that ends while rows are read.
func TestExtractLost(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	step, s := newStep(map[string]any{"query": "SELECT 'is_lost', REPEAT('x', 1000) FROM seq_1_to_100000000", "batch_size": 10}, db.Connection)
	res, err := new(mysql.Extractor).Run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	if !r.Next() {
		t.Fatal(r.Err())
	}
	var id int64
	if err := db.QueryRow("SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE '%is_lost%' AND ID <> CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, fmt.Sprintf("KILL %d", id))
	for r.Next() {
	}
	if err := r.Err(); err == nil || !strings.HasPrefix(err.Error(), "MySQL execution failed: ") && !strings.HasPrefix(err.Error(), "MySQL query failed: ") {
		t.Errorf("error %v", err)
	}
	if len(s.metrics) > 0 {
		t.Errorf("metrics %v", s.metrics)
	}
}

// TestExtractCompiled has a config as the original's compiler makes it, with the
// component's defaults.
func TestExtractCompiled(t *testing.T) {
	db := servers.Movies(t)
	dec := json.NewDecoder(strings.NewReader(`{"batch_size":10000,"component":"mysql.extractor","connection":"@mysql.db_movies","echo":false,"host":"localhost",
		"mode":"extract","offset":0,"pool_recycle":3600,"pool_size":5,"port":3306,"query":"SELECT * FROM movies","schema":null}`))
	dec.UseNumber()
	var config map[string]any
	if err := dec.Decode(&config); err != nil {
		t.Fatal(err)
	}
	step, s := newStep(config, db.Connection)
	f, err := run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	if diff := cmp.Diff(map[string]float64{"rows_read rows": 5}, s.metrics); diff != "" || f.Rows() != 5 {
		t.Errorf("%d rows, metrics (-want +got):\n%s", f.Rows(), diff)
	}
}

func TestExtractZeroDates(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, `SET sql_mode = 'ALLOW_INVALID_DATES'; CREATE TABLE z (id INT, d DATE, dt DATETIME(3), ts TIMESTAMP);
		INSERT INTO z VALUES (1, '0000-00-00', '0000-00-00', '0000-00-00'), (2, '2024-00-15', '2024-02-00 10:00:00', '2024-01-01 05:30:00'), (3, '2023-02-29', NULL, '2024-01-01 05:30:00')`)
	query := "SELECT d, dt, ts FROM z ORDER BY id"
	step, s := newStep(map[string]any{"query": query}, db.Connection)
	f, err := run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	want := [][]string{{"<nil>", "<nil>", "<nil>"}, {"<nil>", "<nil>", "2024-01-01 00:00:00"}, {"<nil>", "<nil>", "2024-01-01 00:00:00"}}
	if diff := cmp.Diff(want, render(f)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	events := map[string]map[string]any{"zero_dates": {"values": int64(6), "columns": map[string]int64{"d": 3, "dt": 2, "ts": 1}}}
	if diff := cmp.Diff(events, s.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}

	step, _ = newStep(map[string]any{"query": query, "zero_dates": "error"}, db.Connection)
	if _, err := run(context.Background(), step); err == nil || !strings.Contains(err.Error(), `MySQL execution failed: column "d", row 1: no such date`) {
		t.Errorf("error %v", err)
	}
}

func TestExtractCoerceFloat(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	step, _ := newStep(map[string]any{"query": "SELECT 12.50 AS d UNION ALL SELECT NULL", "coerce_float": true}, db.Connection)
	f, err := run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	if typ := f.Schema().Field(0).Type.String(); typ != "float64" {
		t.Errorf("type %s", typ)
	}
	if diff := cmp.Diff([][]string{{"12.5"}, {"<nil>"}}, render(f)); diff != "" {
		t.Error(diff)
	}
}

// TestExtractProcedure has a statement that brings more than its rows.
func TestExtractProcedure(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	db.Exec(t, "CREATE PROCEDURE p() BEGIN SELECT 1.5 AS a; SELECT 'x' AS b; END")
	if diff := cmp.Diff([][]string{{"1.5"}}, render(extract(t, db, "CALL p()"))); diff != "" {
		t.Error(diff)
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct {
		connection any
		want       []string
	}{
		{nil, nil},
		{map[string]any{"database": "d"}, []string{"localhost:3306"}},
		{map[string]any{"host": "db.example.com"}, []string{"db.example.com:3306"}},
		{map[string]any{"host": "db.example.com", "port": "3307"}, []string{"db.example.com:3307"}},
		{map[string]any{"host": "2001:db8::1"}, []string{"[2001:db8::1]:3306"}},
		{map[string]any{"unix_socket": "/run/mysqld.sock"}, nil},
	} {
		// The host of the component's defaults is not the connection's.
		config := map[string]any{"host": "localhost", "port": 3306, "resolved_connection": c.connection}
		for _, d := range []worker.HostNamer{new(mysql.Extractor), new(mysql.Writer)} {
			got, err := d.Hosts(config)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%v (-want +got):\n%s", c.connection, diff)
			}
		}
	}
	if _, err := new(mysql.Extractor).Hosts(map[string]any{"resolved_connection": map[string]any{"port": "x"}}); err == nil {
		t.Error("a port that is none is no error")
	}
}
