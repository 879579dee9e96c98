package mysql_test

import (
	"context"
	"testing"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

const benchRows = 1_000_000

// benchTable makes a table of a million rows with 12 columns of mixed types.
func benchTable(b *testing.B) *dbtest.Database {
	b.Helper()
	db := servers.MariaDB(b).Database(b)
	db.Exec(b, `CREATE TABLE big (
		id BIGINT UNSIGNED NOT NULL PRIMARY KEY, qty INT, flag TINYINT(1) NOT NULL, price DECIMAL(12,2), ratio DOUBLE,
		name VARCHAR(40), note TEXT, day DATE, created DATETIME, updated TIMESTAMP(6) NULL, kind ENUM('red','green','blue'), data VARBINARY(16))`,
		`INSERT INTO big SELECT seq, IF(seq % 13 = 0, NULL, CAST(seq * 7 % 100000 AS SIGNED) - 50000), seq % 2, seq * 1.37, seq / 3.0,
		CONCAT('name number ', seq), IF(seq % 5 = 0, NULL, CONCAT('a note that is somewhat longer ', seq)),
		DATE_ADD('1990-01-01', INTERVAL seq % 12000 DAY), DATE_ADD('2000-01-01', INTERVAL seq * 37 SECOND),
		DATE_ADD('2005-01-01', INTERVAL seq * 1000003 MICROSECOND), ELT(seq % 3 + 1, 'red', 'green', 'blue'), UNHEX(MD5(seq))
		FROM seq_1_to_1000000`)
	return db
}

// BenchmarkExtract reads the table by the driver, and once by the original's
// way: SQLAlchemy, PyMySQL and pandas.read_sql.
func BenchmarkExtract(b *testing.B) {
	db := benchTable(b)
	rows := int64(0)
	for b.Loop() {
		// PyMySQL does not encrypt unless it is told to.
		step, _ := newStep(map[string]any{"query": "SELECT * FROM big"}, with(db.Connection, "ssl", false))
		res, err := new(mysql.Extractor).Run(context.Background(), step)
		if err != nil {
			b.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		for r.Next() {
			rows += r.Record().NumRows()
		}
		if err := r.Err(); err != nil {
			b.Fatal(err)
		}
		r.Release()
	}
	own := float64(rows) / b.Elapsed().Seconds()
	b.ReportMetric(own, "rows/s")
	b.StopTimer()
	var answers []struct{ Rows, Seconds float64 }
	peer(b, db, &answers, true, "SELECT 1", "SELECT * FROM big")
	theirs := answers[1].Rows / answers[1].Seconds
	b.ReportMetric(theirs, "pandas-rows/s")
	b.ReportMetric(own/theirs, "times-pandas")
}

// BenchmarkWrite writes the table to another.
func BenchmarkWrite(b *testing.B) {
	db := benchTable(b)
	f := extract(b, db, "SELECT * FROM big")
	db.Exec(b, "CREATE TABLE copy LIKE big")
	for b.Loop() {
		b.StopTimer()
		db.Exec(b, "TRUNCATE copy")
		b.StartTimer()
		if _, err := write(context.Background(), db, f, map[string]any{"table": "copy"}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(benchRows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
