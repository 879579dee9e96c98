package postgres_test

import (
	"context"
	"testing"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
)

const benchRows = 200_000

func benchTable(b *testing.B) *dbtest.Database {
	b.Helper()
	db := servers.Postgres(b).Database(b)
	db.Exec(b, `CREATE TABLE bench AS SELECT n::bigint AS id, (n % 1000)::integer AS a, (n % 7)::smallint AS b, n * 0.25::double precision AS f,
		(n * 1.01)::numeric(12, 2) AS amount, n % 2 = 0 AS flag, 'name ' || n AS name, md5(n::text) AS hash, date '2024-01-01' + n % 365 AS day,
		timestamp '2024-01-01' + n * interval '1 second' AS at, timestamptz '2024-01-01' + n * interval '1 second' AS zoned, nullif(n % 3, 0) AS gaps
		FROM generate_series(1, 200000) AS n`)
	return db
}

// BenchmarkExtract reads a table of 12 columns of different types.
func BenchmarkExtract(b *testing.B) {
	db := benchTable(b)
	rows := int64(0)
	for b.Loop() {
		step := &worker.Step{Config: map[string]any{"query": "SELECT * FROM bench", "resolved_connection": db.Connection}}
		res, err := new(postgres.Extractor).Run(context.Background(), step)
		if err != nil {
			b.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		for r.Next() {
			rows += r.Record().NumRows()
		}
		if r.Err() != nil {
			b.Fatal(r.Err())
		}
		r.Release()
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkWrite writes the same table.
func BenchmarkWrite(b *testing.B) {
	db := benchTable(b)
	df := mustExtract(b, db, "SELECT * FROM bench", nil)
	for b.Loop() {
		if _, err := write(db, df, map[string]any{"table": "bench", "write_mode": "replace", "truncate_before": true}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(benchRows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
