package dbtest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/internal/dbtest"
)

var servers dbtest.Servers

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

func TestMariaDB(t *testing.T) {
	server := servers.MariaDB(t)
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
	if again := servers.MariaDB(t); again != server {
		t.Error("another server was started")
	}
}

func TestMovies(t *testing.T) {
	db := servers.Movies(t)
	for table, want := range map[string]int{"actors": 6, "directors": 4, "movies": 5, "movie_actors": 8, "reviews": 6} {
		var n int
		if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil || n != want {
			t.Errorf("%s has %d rows, %v, want %d", table, n, err, want)
		}
	}
}
