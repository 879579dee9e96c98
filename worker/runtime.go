package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// Runtime runs drivers that are not part of the program: classes in another
// language, which a host declares for a run. Package python has one. A worker
// makes one for itself and closes it when it ends.
type Runtime interface {
	// Load takes the drivers in, before anything else, and returns the version
	// of the language that there is; empty means none, which Check tells of.
	Load(ctx context.Context, drivers []rpc.DeclaredDriver) (version string, err error)

	// Driver returns a declared driver, for one step.
	Driver(name string) Driver

	// Check looks for the packages that the drivers need, and Install installs
	// what it has found missing. Both are called once at a time.
	Check(ctx context.Context) (*rpc.CheckDepsResult, error)
	Install(ctx context.Context, p *rpc.InstallDeps) (*rpc.InstallDepsResult, error)

	// Close ends what the runtime has started, and waits for it.
	Close() error
}

// RuntimeOptions are what a worker has for a [Runtime].
type RuntimeOptions struct {
	Dir      string // the run's folder, an absolute path; the runtime makes directories of its own in it
	CacheDir string // for what other runs may use again; it may be missing
	Program  string // the interpreter, a path or a name; empty means the usual one
	Session  string // the run's id

	// Template says that packages are installed into a template and that there
	// is no run: errors leave out what is in the output of the installation,
	// which stands before them, and do not speak of a run's variables.
	Template bool

	Redactor *secrets.Redactor        // knows what must not be said
	Env      func() map[string]string // the variables of the run, as they are now: a copy

	// Event reports something that happened, and Print a line that a step has
	// printed to stdout or stderr. The step's id may be empty. Both redact.
	Event func(stepID, name string, fields map[string]any)
	Print func(stepID, stream, line string)

	// Artifact opens a file of the run's own artifacts for writing at its end,
	// and returns its name, which is relative to the run's folder.
	Artifact func(name string) (f io.WriteCloser, artifact string, err error)
}

// NewRuntime makes a [Runtime].
type NewRuntime func(RuntimeOptions) (Runtime, error)

// AddRuntime adds a runtime for declared drivers, by the name that declarations
// have. It panics when there is one already.
func (r *Registry) AddRuntime(name string, new NewRuntime) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.runtimes[name]; taken || name == "" || new == nil {
		panic(fmt.Sprintf("worker: runtime %q has no name or constructor, or is added twice", name))
	}
	if r.runtimes == nil {
		r.runtimes = make(map[string]NewRuntime)
	}
	r.runtimes[name] = new
}

func (r *Registry) runtime(name string) NewRuntime {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.runtimes[name]
}

// declared are the drivers that the host has declared, and what runs them.
type declared struct {
	entries  map[string]Registration
	runtimes map[string]Runtime
	version  string // of Python, if it is one of them
}

// systemDir has the artifacts that are the run's own, and no step's.
const systemDir = "_system"

// declare makes the runtimes of declared drivers.
func (w *ProxyWorker) declare(p *rpc.Handshake) (*declared, error) {
	d := &declared{entries: make(map[string]Registration), runtimes: make(map[string]Runtime)}
	by := make(map[string][]rpc.DeclaredDriver)
	for _, driver := range p.Declared {
		switch Mode(driver.Mode) {
		case Extract, Transform, Write:
		default:
			return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("declared driver %q has the mode %q, which is none of extract, transform, write", driver.Name, driver.Mode)}
		}
		if _, twice := d.entries[driver.Name]; twice || driver.Name == "" {
			return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("driver %q is declared twice, or without a name", driver.Name)}
		}
		d.entries[driver.Name] = Registration{
			Name: driver.Name, Mode: Mode(driver.Mode), Secrets: driver.Secrets, WholeTables: true, // DataFrames of pandas
			New: func() Driver { return d.runtimes[driver.Runtime].Driver(driver.Name) },
		}
		by[driver.Runtime] = append(by[driver.Runtime], driver)
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		if err := w.addRuntime(d, p, name, by[name]); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

func (w *ProxyWorker) addRuntime(d *declared, p *rpc.Handshake, name string, drivers []rpc.DeclaredDriver) error {
	make := w.opts.Drivers.runtime(name)
	if make == nil {
		return &rpc.Error{
			Code:    rpc.CodeUnknownDriver,
			Data:    &rpc.ErrorData{Driver: drivers[0].Name, Available: w.opts.Drivers.Names()},
			Message: fmt.Sprintf("driver %q is declared as one in %s, which this worker program cannot run: add the runtime to its registry, as python.Register does", drivers[0].Name, name),
		}
	}
	if _, ok := w.opts.FS.(OSFS); !ok {
		return &rpc.Error{Code: rpc.CodeMissingRuntime, Message: fmt.Sprintf("driver %q is in %s, which takes a machine: this sandbox is only in memory", drivers[0].Name, name)}
	}
	rt, err := make(RuntimeOptions{
		Dir: w.opts.Dir, CacheDir: cmp.Or(p.CacheDir, w.path("cache")), Program: p.Python, Session: p.SessionID, Redactor: w.known.redact,
		Env: func() map[string]string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return maps.Clone(w.known.env)
		},
		Event: func(stepID, name string, fields map[string]any) {
			w.event(stepID, w.known.redact.String(name), fields)
		},
		Print: func(stepID, stream, line string) {
			w.log(rpc.Log{Level: "INFO", Message: line, StepID: stepID, Stream: stream}, false)
		},
		Artifact: w.systemArtifact,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	d.runtimes[name] = rt
	// It may have to start an interpreter, which nothing waits for for long.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	version, err := rt.Load(ctx, drivers)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if name == "python" {
		d.version = version
	}
	return nil
}

// systemArtifact opens an artifact of the run itself.
func (w *ProxyWorker) systemArtifact(name string) (io.WriteCloser, string, error) {
	if err := w.opts.FS.MkdirAll(w.path(artifactsDir, systemDir)); err != nil {
		return nil, "", err
	}
	full := w.path(artifactsDir, systemDir, name)
	artifact := path.Join(artifactsDir, systemDir, name)
	info, err := w.opts.FS.Stat(full)
	if err != nil {
		f, err := w.opts.FS.Create(full)
		return f, artifact, err
	}
	f, err := w.opts.FS.Append(full, info.Size())
	return f, artifact, err
}

// names returns the declared drivers and those of the program, sorted.
func (d *declared) names(program []string) []string {
	if d == nil {
		return program
	}
	names := slices.AppendSeq(slices.Clone(program), maps.Keys(d.entries))
	slices.Sort(names)
	return slices.Compact(names)
}

func (d *declared) pythonVersion() string {
	if d == nil {
		return ""
	}
	return d.version
}

// close ends the runtimes.
func (d *declared) close() error {
	if d == nil {
		return nil
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(d.runtimes)) {
		errs = append(errs, d.runtimes[name].Close())
	}
	return errors.Join(errs...)
}

// driver returns the entry of a driver: a declared one, or the program's.
func (w *ProxyWorker) driver(name string) (Registration, error) {
	w.mu.Lock()
	d := w.declared
	w.mu.Unlock()
	if d != nil {
		if e, ok := d.entries[name]; ok {
			return e, nil
		}
	}
	return w.opts.Drivers.Lookup(name)
}

// dependencies has a runtime check or install packages, one at a time.
func (w *ProxyWorker) dependencies(name string, do func(Runtime) (any, error)) (any, error) {
	w.mu.Lock()
	d := w.declared
	w.mu.Unlock()
	var rt Runtime
	if d != nil {
		rt = d.runtimes[name]
	}
	if rt == nil {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("no driver was declared for the runtime %q", name)}
	}
	w.installing.Lock()
	defer w.installing.Unlock()
	result, err := do(rt)
	if err != nil {
		return nil, w.known.rpcError("", err)
	}
	return result, nil
}
