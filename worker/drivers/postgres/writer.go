package postgres

import (
	"context"
	"errors"

	"github.com/osiris-pipelines/remote/worker"
)

// Writer is the driver postgres.writer. The package comment has its config and
// semantics.
type Writer struct{}

// Run writes the step's table.
func (*Writer) Run(context.Context, *worker.Step) (*worker.Result, error) {
	return nil, errors.New("not written yet")
}
