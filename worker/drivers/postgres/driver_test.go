package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
)

func field(name string, t arrow.DataType) arrow.Field {
	return arrow.Field{Name: name, Type: t, Nullable: true}
}

func TestRegister(t *testing.T) {
	r := worker.NewRegistry()
	postgres.Register(r)
	if diff := cmp.Diff([]string{"postgres.extractor", "postgres.writer"}, r.Names()); diff != "" {
		t.Error(diff)
	}
	for name, mode := range map[string]worker.Mode{"postgres.extractor": worker.Extract, "postgres.writer": worker.Write} {
		if e, err := r.Lookup(name); err != nil || e.Mode != mode || e.New() == nil {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestExtractConfig(t *testing.T) {
	connection := map[string]any{"host": "127.0.0.1", "port": 1, "database": "d", "password": "hunter2hunter2"}
	for _, c := range []struct {
		name   string
		config map[string]any
		want   string
	}{
		{"no query", map[string]any{"resolved_connection": connection}, "'query' is required in config"},
		{"blank query", map[string]any{"query": " \n", "resolved_connection": connection}, "'query' is required in config"},
		{"query type", map[string]any{"query": 1, "resolved_connection": connection}, `config key "query"`},
		{"batch size", map[string]any{"query": "SELECT 1", "batch_size": 0, "resolved_connection": connection}, `config key "batch_size"`},
		{"special values", map[string]any{"query": "SELECT 1", "special_values": "drop", "resolved_connection": connection}, `config key "special_values"`},
		{"no connection", map[string]any{"query": "SELECT 1"}, "a connection is required"},
		{"no database", map[string]any{"query": "SELECT 1", "resolved_connection": map[string]any{"host": "h"}}, "'database' is required"},
		{"port", map[string]any{"query": "SELECT 1", "resolved_connection": with(connection, map[string]any{"port": "99999"})}, `port is "99999"`},
		{"sslmode", map[string]any{"query": "SELECT 1", "resolved_connection": with(connection, map[string]any{"sslmode": "on"})}, `sslmode is "on"`},
		{"field type", map[string]any{"query": "SELECT 1", "resolved_connection": with(connection, map[string]any{"user": []any{"u"}})}, "fields of the connection are texts"},
		{"root cert", map[string]any{"query": "SELECT 1", "resolved_connection": with(connection, map[string]any{"sslmode": "verify-full", "sslrootcert": "/nowhere/root.crt"})}, "sslrootcert"},
		{"dsn", map[string]any{"query": "SELECT 1", "resolved_connection": map[string]any{"dsn": "postgres://u:hunter2hunter2@[h/d"}}, "the connection's dsn cannot be used"},
		{"dsn pairs", map[string]any{"query": "SELECT 1", "resolved_connection": map[string]any{"pg_dsn": "password=hunter2hunter2 port=x"}}, "the connection's dsn cannot be used"},
		{"unreachable", map[string]any{"query": "SELECT 1", "resolved_connection": connection}, "PostgreSQL connection failed for step s: "},
		{"unreachable dsn", map[string]any{"query": "SELECT 1", "resolved_connection": map[string]any{"dsn": "postgres://u:hunter2hunter2@127.0.0.1:1/d"}}, "PostgreSQL connection failed for step s: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := new(postgres.Extractor).Run(context.Background(), &worker.Step{ID: "s", Config: c.config})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), "hunter2") {
					t.Errorf("the password is in %v", e)
				}
			}
		})
	}
}

func TestConnections(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	c := db.Connection
	dsn := fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", c["user"], c["password"], net.JoinHostPort(c["host"].(string), fmt.Sprint(c["port"])), c["database"])
	for name, connection := range map[string]map[string]any{
		"port as text":  with(c, map[string]any{"port": fmt.Sprint(c["port"])}),
		"other names":   {"host": c["host"], "port": c["port"], "dbname": c["database"], "username": c["user"], "password": c["password"]},
		"dsn":           {"dsn": dsn},
		"pg_dsn":        {"pg_dsn": dsn, "host": "elsewhere.example"},
		"dsn, password": {"dsn": strings.Replace(dsn, ":"+c["password"].(string), "", 1), "password": c["password"]},
	} {
		t.Run(name, func(t *testing.T) {
			other := *db
			other.Connection = connection
			df := mustExtract(t, &other, "SELECT current_database(), current_setting('client_encoding')", nil)
			if got := texts(df, 0)[0] + " " + texts(df, 1)[0]; got != c["database"].(string)+" UTF8" {
				t.Errorf("connected to %s", got)
			}
		})
	}
	other := *db
	other.Connection = with(c, map[string]any{"password": "wrong-horse-battery"})
	_, err := extract(t, &worker.Step{}, &other, map[string]any{"query": "SELECT 1"})
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "28P01" || !strings.HasPrefix(err.Error(), "PostgreSQL connection failed for step extract: ") {
		t.Errorf("wrong password: %v", err)
	}
	if strings.Contains(err.Error(), "wrong-horse") {
		t.Errorf("the password is in %v", err)
	}
}

func TestQueries(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	db.Exec(t, "CREATE TABLE t (n integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 25)")
	t.Run("batches", func(t *testing.T) {
		s := &sink{}
		step := &worker.Step{Sink: s, Config: map[string]any{"query": "SELECT n FROM t ORDER BY n", "batch_size": 10, "resolved_connection": db.Connection}}
		res, err := new(postgres.Extractor).Run(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs["df"]
		defer r.Release()
		var sizes []int64
		for r.Next() {
			sizes = append(sizes, r.Record().NumRows())
		}
		if diff := cmp.Diff([]int64{10, 10, 5}, sizes); diff != "" || r.Err() != nil || r.Next() {
			t.Errorf("batches %v, error %v", sizes, r.Err())
		}
		if s.metrics["rows_read"] != 25 {
			t.Errorf("metrics %v", s.metrics)
		}
	})
	t.Run("no rows", func(t *testing.T) {
		s := &sink{}
		df, err := extract(t, &worker.Step{Sink: s}, db, map[string]any{"query": "SELECT n FROM t WHERE n < 0;"})
		if n, ok := s.metrics["rows_read"]; err != nil || df.Rows() != 0 || !ok || n != 0 {
			t.Errorf("error %v, metrics %v", err, s.metrics)
		}
	})
	t.Run("returning", func(t *testing.T) {
		mustExtract(t, db, "DELETE FROM t WHERE n > 20 RETURNING n", nil)
		if got := query(t, db, "SELECT count(*) FROM t"); got[0] != "20" {
			t.Errorf("%s rows are left, want 20: the transaction was not committed", got[0])
		}
	})
	t.Run("show", func(t *testing.T) {
		if got := texts(mustExtract(t, db, "SHOW server_version_num", nil), 0); len(got[0]) != 6 {
			t.Errorf("got %v", got)
		}
	})
	for _, c := range []struct{ name, query, want string }{
		{"syntax", "SELEC 1", "PostgreSQL query failed: ERROR: syntax error at or near \"SELEC\" (SQLSTATE 42601) at character 1"},
		{"late", "SELECT 10 / (15 - n) FROM t ORDER BY n", "PostgreSQL query failed: ERROR: division by zero"},
		{"two", "SELECT 1; SELECT 2", "cannot insert multiple commands"},
		{"no rows returned", "DELETE FROM t", "the query returns no columns"},
		{"parameters", "SELECT $1::int", "the query has 1 parameters"},
		{"dimensions", "SELECT '{{1}}'::int[] AS a", `column "a", row 1: the array has 2 dimensions`},
		{"dimensions of text", "SELECT '{{10.0.0.1}}'::inet[] AS a", `column "a", row 1: the array has 2 dimensions`},
		{"at the end", "WITH d AS (INSERT INTO late VALUES (1) RETURNING n) SELECT * FROM d", "PostgreSQL query failed: ERROR: insert or update on table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "at the end" {
				db.Exec(t, "CREATE TABLE late (n integer REFERENCES t DEFERRABLE INITIALLY DEFERRED); DELETE FROM t WHERE n = 1")
			}
			s := &sink{}
			_, err := extract(t, &worker.Step{Sink: s}, db, map[string]any{"query": c.query, "batch_size": 3})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if len(s.metrics) > 0 {
				t.Errorf("metrics %v after an error", s.metrics)
			}
		})
	}
}

// TestEncodings has databases whose texts are not UTF-8.
func TestEncodings(t *testing.T) {
	server := servers.Postgres(t)
	latin := server.Database(t, "TEMPLATE template0 ENCODING 'LATIN1'")
	if got := texts(mustExtract(t, latin, "SELECT chr(233)", nil), 0); got[0] != "é" {
		t.Errorf("LATIN1: read %q", got)
	}
	ascii := server.Database(t, "TEMPLATE template0 ENCODING 'SQL_ASCII'")
	_, err := extract(t, &worker.Step{}, ascii, map[string]any{"query": `SELECT convert_from('\xe9', 'SQL_ASCII') AS v`})
	if err == nil || !strings.Contains(err.Error(), "invalid byte sequence") {
		t.Errorf("SQL_ASCII: %v", err)
	}
}

// TestCancel stops steps while they run.
func TestCancel(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	gone := func(t *testing.T) {
		t.Helper()
		// The server's process has ended, or at least the query, which by itself
		// would take longer.
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if query(t, db, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'osiris' AND state <> 'idle'")[0] == "0" {
				return
			}
		}
		t.Error("the query still runs")
	}
	t.Run("before rows", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer cancel()
			for query(t, db, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")[0] == "0" {
			}
		}()
		step := &worker.Step{Config: map[string]any{"query": "SELECT pg_sleep(60)", "resolved_connection": db.Connection}}
		res, err := new(postgres.Extractor).Run(ctx, step)
		if err == nil {
			r := res.Outputs["df"]
			defer r.Release()
			for r.Next() {
			}
			err = r.Err()
		}
		<-done
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		gone(t)
	})
	t.Run("between batches", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
		defer mem.AssertSize(t, 0)
		step := &worker.Step{Allocator: mem, Config: map[string]any{"query": "SELECT generate_series(1, 100000000) AS n", "batch_size": 10, "resolved_connection": db.Connection}}
		res, err := new(postgres.Extractor).Run(ctx, step)
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs["df"]
		defer r.Release()
		if !r.Next() {
			t.Fatal(r.Err())
		}
		cancel()
		for r.Next() {
		}
		if !errors.Is(r.Err(), context.Canceled) {
			t.Errorf("error %v", r.Err())
		}
		gone(t)
	})
	t.Run("released early", func(t *testing.T) {
		for _, sql := range []string{"SELECT generate_series(1, 100000000)", "SELECT n, CASE WHEN n > 5000 THEN pg_sleep(60) END FROM generate_series(1, 10000) n"} {
			step := &worker.Step{Config: map[string]any{"query": sql, "resolved_connection": db.Connection}}
			res, err := new(postgres.Extractor).Run(context.Background(), step)
			if err != nil {
				t.Fatal(err)
			}
			res.Outputs["df"].Release()
			gone(t)
		}
	})
	t.Run("not begun", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		step := &worker.Step{Config: map[string]any{"query": "SELECT 1", "resolved_connection": db.Connection}}
		if _, err := new(postgres.Extractor).Run(ctx, step); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("write", func(t *testing.T) {
		db.Exec(t, "CREATE TABLE slow (n bigint); CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'; CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION slow()")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer cancel()
			for query(t, db, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'")[0] == "0" {
			}
		}()
		df := frame(t, `[{"n": 1}]`, field("n", arrow.PrimitiveTypes.Int64))
		_, err := new(postgres.Writer).Run(ctx, &worker.Step{Inputs: map[string]*worker.DataFrame{"df": df}, Config: map[string]any{"table": "slow", "resolved_connection": db.Connection}})
		<-done
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		gone(t)
	})
}

// TestMemory reads far more than it may hold.
func TestMemory(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	mem := &peak{Allocator: memory.DefaultAllocator}
	step := &worker.Step{Allocator: mem, Config: map[string]any{
		"query": "SELECT n, repeat('x', 1000) AS text FROM generate_series(1, 30000) AS n", "batch_size": 1000, "resolved_connection": db.Connection,
	}}
	res, err := new(postgres.Extractor).Run(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs["df"]
	defer r.Release()
	rows := int64(0)
	for r.Next() {
		rows += r.Record().NumRows()
	}
	if r.Err() != nil || rows != 30000 {
		t.Fatalf("%d rows, %v", rows, r.Err())
	}
	if mem.most > 8<<20 {
		t.Errorf("%d bytes at once, for batches of 1 MB", mem.most)
	}
}

// peak counts what is allocated.
type peak struct {
	memory.Allocator
	now, most int
}

func (p *peak) add(n int) {
	p.now += n
	p.most = max(p.most, p.now)
}

func (p *peak) Allocate(size int) []byte {
	p.add(size)
	return p.Allocator.Allocate(size)
}

func (p *peak) Reallocate(size int, b []byte) []byte {
	p.add(size) // the old is there until the new is filled
	b2 := p.Allocator.Reallocate(size, b)
	p.add(-len(b))
	return b2
}

func (p *peak) Free(b []byte) {
	p.add(-len(b))
	p.Allocator.Free(b)
}

// TestReusedBatches holds batches back while others are read.
func TestReusedBatches(t *testing.T) {
	db := servers.Postgres(t).Database(t)
	df := mustExtract(t, db, "SELECT n::text AS v FROM generate_series(1, 50) AS n", map[string]any{"batch_size": 7})
	want := make([]string, 50)
	for i := range want {
		want[i] = fmt.Sprint(i + 1)
	}
	if diff := cmp.Diff(want, texts(df, 0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
