package worker

import (
	"context"
	"io"
)

// Program is the worker as a program: what [Main] runs, and what a sandbox in
// memory runs in process.
type Program struct {
	Drivers *Registry // nil means none
	FS      FS        // nil means this machine's

	// capturePrints redirects the process's standard output and error into
	// log messages. Only a process of its own can do that.
	capturePrints bool
}

// Run runs the program with its arguments (without its name) and returns its
// exit code:
//
//	serve -dir DIR             run steps as requests on stdin say
//	tail -dir DIR -from N      copy the journal from offset N to stdout and follow it
//	seal -dir DIR              list the artifacts with their checksums as JSON on stdout
//	version                    print the worker's version
//
// DIR is the run's folder, an absolute path.
func (p Program) Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	panic("replaced below")
}
