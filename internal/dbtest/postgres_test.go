package dbtest_test

import "testing"

func TestPostgres(t *testing.T) {
	server := servers.Postgres(t)
	a, b := server.Database(t), server.Database(t)
	if a.Connection["database"] == b.Connection["database"] {
		t.Errorf("both databases are %v", a.Connection["database"])
	}
	a.Exec(t, "CREATE TABLE t (n INT); INSERT INTO t VALUES (1), (2)")
	var n int
	if err := a.QueryRow("SELECT sum(n) FROM t").Scan(&n); err != nil || n != 3 {
		t.Errorf("sum = %d, %v, want 3", n, err)
	}
	if err := b.QueryRow("SELECT sum(n) FROM t").Scan(&n); err == nil {
		t.Error("a table is seen from another database")
	}
	if again := servers.Postgres(t); again != server {
		t.Error("another server was started")
	}
}
