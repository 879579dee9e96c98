package python

import (
	"context"
	"errors"

	"github.com/osiris-pipelines/remote/worker"
)

// interpreter is a Python that can run drivers: 3.9 or later, with pandas and
// pyarrow.
type interpreter struct {
	path string
	env  []string // what its processes get beside the worker's own environment
}

// driverClass says where a driver in Python is.
type driverClass struct {
	name    string   // as the manifest calls it
	module  string   // dotted
	class   string   // within the module
	sources []string // absolute directories, put in front of sys.path in their order
}

// poolOptions configure a [pool].
type poolOptions struct {
	dir         string // for the bridge and hand-over files; the pool makes and removes it
	interpreter interpreter

	// printed gets each line that a step has printed, without its end. stream is
	// "stdout" or "stderr"; stepID is empty for what comes between two steps, as
	// from a thread that a driver has left behind. It is called by the pool's own
	// goroutines, one after another for a stream of a process, and never after
	// close has returned. A step's lines come before run returns. Nil discards.
	printed func(stepID, stream, line string)
}

// pool runs steps in children, Python processes that are used again. It is safe
// for concurrent use.
type pool struct {
	opts poolOptions
}

// newPool starts nothing: the first step does.
func newPool(opts poolOptions) *pool {
	return &pool{opts: opts}
}

// run executes one step, in a child that is idle or a new one. When ctx is done
// the driver gets a KeyboardInterrupt, and after a grace its process group is
// killed; run returns when that is over. An exception of the driver is a
// [*worker.DriverError].
func (p *pool) run(ctx context.Context, d driverClass, step *worker.Step) (*worker.Result, error) {
	return nil, errors.New("python: not yet")
}

// close ends all children and removes the directory, and waits until all that
// is over. Steps that still run are stopped. Outputs that were handed out stay
// valid. A second close does nothing.
func (p *pool) close() error { return nil }
