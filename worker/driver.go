package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/apache/arrow/go/v17/arrow/array"
)

// Driver does the work of one kind of step: it reads the step's config and
// inputs and returns its outputs.
//
// The worker makes a new Driver for every step, and calls Run once. Run should
// return soon after ctx is done; a step that does not cannot be stopped except
// by stopping the worker. A returned error, or a panic, fails the step and
// leaves the worker running.
type Driver interface {
	Run(ctx context.Context, step *Step) (*Result, error)
}

// InputFiler is an optional interface of a [Driver]: it names the files of the
// host that a config refers to, so that they can be checked before a run
// starts and sent to the sandbox with it.
//
// The names are returned as the config gives them; a relative name is resolved
// against the run's base path.
type InputFiler interface {
	InputFiles(config map[string]any) ([]string, error)
}

// HostNamer is an optional interface of a [Driver]: it names the hosts that a
// config makes it connect to, so that a sandbox whose network is limited may
// reach them. Without it the usual fields of connections and configs are gone
// by.
//
// config has the connection, if any, under "resolved_connection", with its
// secret values in plain; an error should not quote them. A host is a URL, a
// name or an address, with or without a port, or "*.example.com". Hosts runs on
// the host, before there is a sandbox, and connects to nothing.
type HostNamer interface {
	Hosts(config map[string]any) ([]string, error)
}

// Result is what a driver hands back. A nil *Result means no outputs.
type Result struct {
	// Outputs by key; "df" is the key downstream steps read unless they ask
	// for another. The worker reads each one to its end and releases it, also
	// when another output fails.
	Outputs map[string]array.RecordReader
}

// Output returns the result of a driver with a single output, "df".
func Output(r array.RecordReader) *Result {
	return &Result{Outputs: map[string]array.RecordReader{DefaultOutput: r}}
}

// DefaultOutput is the output key that a step's dependents read.
const DefaultOutput = "df"

// Mode says what a driver does with rows; run totals are counted by it.
type Mode string

// The modes, by the names component specifications use.
const (
	Extract   Mode = "extract"   // brings rows in
	Transform Mode = "transform" // makes rows from rows
	Write     Mode = "write"     // takes rows out
)

// ErrUnknownDriver is matched by the error for a driver that no registry entry
// names.
var ErrUnknownDriver = errors.New("unknown driver")

// DriverError is the failure of a driver that is not written in Go, as its own
// language tells it. The worker redacts it like any other error.
type DriverError struct {
	Type      string // of the exception, as "sqlalchemy.exc.OperationalError"
	Message   string
	Traceback string // the driver's own frames; may be empty
}

func (e *DriverError) Error() string { return e.Message }

// UnknownDriverError names a driver that is missing and those that exist. It
// matches [ErrUnknownDriver].
type UnknownDriverError struct {
	Driver    string
	StepID    string   // the step that asked for it; may be empty
	Available []string // sorted
}

func (e *UnknownDriverError) Error() string {
	available := "(none)"
	if len(e.Available) > 0 {
		available = strings.Join(e.Available, ", ")
	}
	msg := fmt.Sprintf("driver %q not registered; available drivers: %s", e.Driver, available)
	if e.StepID != "" {
		return fmt.Sprintf("step %q: %s", e.StepID, msg)
	}
	return msg
}

// Is reports whether target is ErrUnknownDriver.
func (e *UnknownDriverError) Is(target error) bool { return target == ErrUnknownDriver }

// Registry maps driver names to drivers. It is safe for concurrent use.
type Registry struct {
	mu       sync.RWMutex
	entries  map[string]Registration
	runtimes map[string]NewRuntime
}

// Registration is one entry of a [Registry].
type Registration struct {
	Name string
	Mode Mode
	New  func() Driver // called once per step

	// Secrets are JSON pointers to what is secret in this driver's config beside
	// what its keys tell of, as "/headers" or "/resolved_connection/key": the
	// component specification's x-secret. They are masked in what is kept of the
	// config, and a manifest must not hold values there.
	Secrets []string

	// WholeTables says that the driver has all of its inputs in memory at once,
	// where others read batch by batch. The worker warns before it starts such a
	// step with inputs that take more than its memory budget.
	WholeTables bool
}

// NewRegistry returns a registry with the given entries.
func NewRegistry(entries ...Registration) *Registry {
	r := &Registry{}
	for _, e := range entries {
		r.Add(e)
	}
	return r
}

// Register adds a driver. It panics when the name is empty or taken, the mode
// is none of the three or new is nil: those are mistakes of the program, not
// of its input.
func (r *Registry) Register(name string, mode Mode, new func() Driver) {
	r.Add(Registration{Name: name, Mode: mode, New: new})
}

// Add is Register for an entry with all that there is.
func (r *Registry) Add(e Registration) {
	switch e.Mode {
	case Extract, Transform, Write:
	default:
		panic(fmt.Sprintf("worker: driver %q: mode %q is none of extract, transform, write", e.Name, e.Mode))
	}
	if e.Name == "" || e.New == nil {
		panic(fmt.Sprintf("worker: driver %q: a driver needs a name and a constructor", e.Name))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.entries[e.Name]; taken {
		panic(fmt.Sprintf("worker: driver %q is registered twice", e.Name))
	}
	if r.entries == nil {
		r.entries = make(map[string]Registration)
	}
	r.entries[e.Name] = e
}

// Lookup returns the entry of a driver. The error is an [*UnknownDriverError].
func (r *Registry) Lookup(name string) (Registration, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e, ok := r.entries[name]; ok {
		return e, nil
	}
	return Registration{}, &UnknownDriverError{Driver: name, Available: slices.Sorted(maps.Keys(r.entries))}
}

// Names returns the registered names, sorted.
func (r *Registry) Names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.entries))
}
