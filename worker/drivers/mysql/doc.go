// Package mysql has the drivers mysql.extractor, which reads the rows of a query
// from a MySQL or MariaDB server as a table, and mysql.writer, which writes a
// table to one.
//
//	registry := worker.NewRegistry()
//	mysql.Register(registry)
//
// docs/mysql.md is for who writes pipelines: connections, config keys, types,
// modes, errors. In short:
//
// # Extractor
//
// The semantics are those of the Python driver of the same name, which calls
// pandas.read_sql with SQLAlchemy and PyMySQL, but types are those of the
// columns, not what pandas makes of the values. Rows are read from the server
// as the output "df" is read: memory is bounded by a batch. The session's time
// zone is UTC. What a query changes is not kept.
//
//	query         required; one statement that returns rows
//	batch_size    most rows of a batch; default 10000. A batch also ends after 64 MiB
//	zero_dates    null (default) or error: dates that are none, as 0000-00-00
//	coerce_float  true: DECIMAL as float64, as pandas does; default false
//
// # Writer
//
// The original has a specification of this component, but no driver; the modes
// are those of its supabase.writer. All is written in one transaction and in
// strict mode: a column's values are refused, not cut.
//
//	table               required
//	schema              default: the connection's database
//	mode, write_mode    append (default; insert is the same), upsert, replace
//	upsert_keys         columns of upsert, a name or a list; primary_key is the same
//	batch_size          most rows of a statement; default 1000. It also ends after 1 MiB
//	create_table        make a table that is missing; create_if_missing is the same; default false
//	truncate_before     remove what is there, as replace does; default false
//	single_transaction  default true; false: every statement by itself
//
// Other keys of both are ignored, since compiled configs carry the component's
// defaults.
//
// # Cancelling
//
// When the context of a step is done its connection is closed, and what it does
// on the server is killed there by another one.
package mysql

import "github.com/osiris-pipelines/remote/worker"

// The names under which [Register] adds the drivers.
const (
	ExtractorName = "mysql.extractor"
	WriterName    = "mysql.writer"
)

// Register adds both drivers to r. It panics when one of the names is taken.
func Register(r *worker.Registry) {
	r.Register(ExtractorName, worker.Extract, func() worker.Driver { return &Extractor{} })
	r.Register(WriterName, worker.Write, func() worker.Driver { return &Writer{} })
}
