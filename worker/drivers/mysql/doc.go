// Package mysql has the drivers.
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
