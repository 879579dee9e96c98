// Package postgres has the drivers postgres.extractor, which reads the rows of
// a query from PostgreSQL, and postgres.writer, which writes a table to it.
//
//	registry := worker.NewRegistry()
//	postgres.Register(registry)
//
// Both take their connection from the step's "resolved_connection", with the
// fields host (default localhost), port (5432), database or dbname (required),
// user (postgres), password, sslmode (prefer), sslrootcert, sslcert, sslkey and
// connect_timeout; or dsn or pg_dsn, a URL or name=value pairs as libpq has
// them. docs/postgres.md has the types and what is lost, for users.
//
// # Extractor
//
// The output "df" is a stream of Arrow batches that are read from the server as
// they are asked for, in its binary format: memory does not grow with the
// result. The query runs in one transaction, which is committed when all rows
// have been read, and rolled back when they have not. The metric rows_read is
// logged at the end.
//
//	query           a statement that returns rows; required
//	batch_size      most rows in one batch; default 10000. A batch also ends after 16 MiB
//	special_values  error (default) or null: what becomes of infinity, NaN in a numeric with a
//	                precision, 24:00:00, and what else Arrow's types have no room for. How many
//	                became null is logged, and told by the event special_values
//
// # Writer
//
// The input is the step's only table; its columns are those of the table on the
// server that have the same names, in any order. Rows go to the server by COPY
// in its binary format, all in one transaction: a step that fails leaves nothing
// behind. The metrics rows_written, of rows inserted and updated, and
// duration_ms are logged at the end.
//
//	table              required; its name alone
//	schema             default public
//	write_mode, mode   append (default), insert: the same; upsert; replace
//	primary_key        column or list of columns, required for upsert; also upsert_keys
//	create_if_missing  default false; true makes a table that is not there
//	truncate_before    default false; true makes replace use TRUNCATE in place of DELETE
//
// An upsert takes a unique index on primary_key; of rows with one key, the last
// counts. A replace locks the table against other writers, and readers see the
// old rows until it is complete. batch_size is accepted, and does nothing.
package postgres

import "github.com/osiris-pipelines/remote/worker"

// The names under which [Register] adds the drivers.
const (
	ExtractorName = "postgres.extractor"
	WriterName    = "postgres.writer"
)

// Register adds both drivers to r. It panics when one of the names is taken.
func Register(r *worker.Registry) {
	r.Register(ExtractorName, worker.Extract, func() worker.Driver { return &Extractor{} })
	r.Register(WriterName, worker.Write, func() worker.Driver { return &Writer{} })
}
