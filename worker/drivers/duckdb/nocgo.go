//go:build !cgo

package duckdb

import (
	"context"
	"errors"

	"github.com/osiris-pipelines/remote/worker"
)

// Run fails, since DuckDB takes cgo.
func (*Processor) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	if _, err := decode(step); err != nil {
		return nil, err
	}
	return nil, errors.New("this worker was built without DuckDB, which takes cgo: build worker/drivers/duckdb/cmd/osiris-worker-duckdb with CGO_ENABLED=1 and name it in Config.WorkerPath")
}
