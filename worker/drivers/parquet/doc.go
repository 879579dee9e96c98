// Package parquet has the drivers filesystem.parquet_extractor, which reads a
// Parquet file as a table, and filesystem.parquet_writer, which writes a table
// as one.
//
//	registry := worker.NewRegistry()
//	parquet.Register(registry)
//
// It is not among the drivers of the ready-made worker program: what it imports
// adds 24 MB to a program. docs/parquet.md has the types and what is lost, for
// users.
//
// # Extractor
//
// The output "df" is a stream of Arrow batches, read from one row group after
// the other. The metric rows_read is logged when the stream ends.
//
//	path        file to read; required. Relative to the step's BasePath
//	columns     subset of the columns, in the order to output
//	limit       most rows to read; default all
//	batch_size  most rows in one batch; default 10000. Large rows come in smaller batches
//
// # Writer
//
// The input is the step's only table. Its columns keep their order, other than
// with filesystem.csv_writer, which sorts them. The metric rows_written is
// logged when the file is closed.
//
//	path            file to write; required. Below the step's ArtifactsDir
//	compression     snappy (default), zstd, gzip, brotli, none
//	row_group_size  rows in one row group; default 1048576
//	batch_size      the same as row_group_size, where that is not given
package parquet

import "github.com/osiris-pipelines/remote/worker"

// The names under which [Register] adds the drivers.
const (
	ExtractorName = "filesystem.parquet_extractor"
	WriterName    = "filesystem.parquet_writer"
)

// Register adds both drivers to r. It panics when one of the names is taken.
func Register(r *worker.Registry) {
	r.Register(ExtractorName, worker.Extract, func() worker.Driver { return &Extractor{} })
	r.Register(WriterName, worker.Write, func() worker.Driver { return &Writer{} })
}
