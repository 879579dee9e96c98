package python

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// Name is that of the runtime in a [worker.Registry] and in declarations.
const Name = "python"

// Register lets a worker program run the drivers in Python that a host
// declares. It adds no driver by itself.
func Register(r *worker.Registry) { r.AddRuntime(Name, newRuntime) }

// bridgeRequirements are the packages that DataFrames cross with.

func bridgeRequirements() []string { return []string{"pandas", "pyarrow"} }

// pythonRuntime is what a worker has of Python: what there is of packages, and a
// pool of processes.
type pythonRuntime struct {
	opts worker.RuntimeOptions

	declared     map[string]rpc.DeclaredDriver
	classes      map[string]driverClass
	requirements []string
	sources      map[string]string // zip files, to the directories they are to be in

	mu       sync.Mutex
	pool     *pool
	using    string // the pool's interpreter
	closed   bool
	unpacked bool
}

func newRuntime(opts worker.RuntimeOptions) (worker.Runtime, error) {
	return &pythonRuntime{
		opts: opts, declared: make(map[string]rpc.DeclaredDriver), classes: make(map[string]driverClass),
		sources: make(map[string]string),
	}, nil
}

// Directories of the runtime, in the run's folder.
const (
	runtimeDir  = "python"   // children's hand-over files, sources
	packagesDir = "packages" // wheels that the host has sent, or is to fetch
)

// environmentsDir has the environments, in the cache directory.
const environmentsDir = "environments"

// Load implements [worker.Runtime].
func (r *pythonRuntime) Load(ctx context.Context, drivers []rpc.DeclaredDriver) (string, error) {
	for _, d := range drivers {
		class := driverClass{name: d.Name, module: d.Module, class: d.Class, inArtifacts: d.Mode == string(worker.Write)}
		for _, source := range d.Sources {
			if strings.HasSuffix(source, ".zip") {
				name := strings.TrimSuffix(filepath.Base(source), ".zip")
				r.sources[source] = filepath.Join(r.opts.Dir, runtimeDir, "sources", name)
				source = r.sources[source]
			}
			class.sources = append(class.sources, source)
		}
		r.declared[d.Name], r.classes[d.Name] = d, class
		r.requirements = append(r.requirements, d.Requirements...)
	}
	r.requirements = append(r.requirements, bridgeRequirements()...)
	i, done, err := r.installer(nil)
	if err != nil {
		return "", err
	}
	defer done()
	p, err := i.base(ctx, nil)
	if err != nil {
		return "", nil // Check says why
	}
	return p.Version, nil
}

// Driver implements [worker.Runtime].
func (r *pythonRuntime) Driver(name string) worker.Driver {
	return &declaredDriver{r, r.declared[name], r.classes[name]}
}

type declaredDriver struct {
	r        *pythonRuntime
	declared rpc.DeclaredDriver
	class    driverClass
}

// Run implements [worker.Driver].
func (d *declaredDriver) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	d.r.mu.Lock()
	pool := d.r.pool
	d.r.mu.Unlock()
	if pool == nil {
		return nil, errors.New("the packages that drivers in Python need were not checked")
	}
	step, err := d.localize(step)
	if err != nil {
		return nil, err
	}
	return pool.run(ctx, d.class, step)
}

// localize returns a step whose config has the paths of this machine, as far as
// it is declared which fields are paths. A driver in Go asks the step for them.
func (d *declaredDriver) localize(step *worker.Step) (*worker.Step, error) {
	out := *step
	if len(d.declared.InputFiles)+len(d.declared.OutputFiles) > 0 {
		config, ok := cloneJSON(step.Config).(map[string]any)
		if !ok {
			config = map[string]any{}
		}
		out.Config = config
	}
	for _, pointer := range d.declared.InputFiles {
		if name, set, ok := rpc.StringAt(out.Config, pointer); ok && name != "" {
			set(step.InputPath(name))
		}
	}
	for _, pointer := range d.declared.OutputFiles {
		name, set, ok := rpc.StringAt(out.Config, pointer)
		if !ok || name == "" {
			continue
		}
		to, err := step.ArtifactPath(name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pointer, err)
		}
		set(to)
	}
	return &out, nil
}

func cloneJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = cloneJSON(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = cloneJSON(e)
		}
		return out
	}
	return v
}

// Check implements [worker.Runtime].
func (r *pythonRuntime) Check(ctx context.Context) (*rpc.CheckDepsResult, error) {
	i, done, err := r.installer(nil)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := i.check(ctx, r.requirements)
	if errors.Is(err, errRequirement) {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: err.Error()}
	}
	if err != nil && ctx.Err() != nil {
		return nil, err // it was not looked at to the end: there may be one
	}
	if err != nil {
		return nil, &rpc.Error{Code: rpc.CodeMissingRuntime, Message: err.Error()}
	}
	if c.Environment != "" {
		if err := r.use(ctx, c.Environment); err != nil {
			return nil, err
		}
	}
	return &rpc.CheckDepsResult{
		Version: c.Target.Version, Platform: c.Target.Platform, Key: c.Key,
		Required: c.Required, Present: c.Present, Missing: c.Missing,
	}, nil
}

// Install implements [worker.Runtime].
func (r *pythonRuntime) Install(ctx context.Context, p *rpc.InstallDeps) (*rpc.InstallDepsResult, error) {
	failed := func(err error) error { return &rpc.Error{Code: rpc.CodeInstallFailed, Message: err.Error()} }
	f, artifact, err := r.opts.Artifact("pip_install.log")
	if err != nil {
		return nil, fmt.Errorf("log of the installation: %w", err)
	}
	log := r.opts.Redactor.Writer(f)
	defer func() {
		_ = log.Close() // what it holds back
		f.Close()
		r.opts.Event("", "artifact_created", map[string]any{"artifact_type": "pip_log", "path": artifact})
	}()
	i, done, err := r.installer(log)
	if err != nil {
		return nil, failed(err)
	}
	defer done()
	i.logPath = artifact
	o := installOptions{Requirements: r.requirements, Timeout: time.Duration(p.TimeoutMS) * time.Millisecond}
	packages := filepath.Join(r.opts.Dir, packagesDir)
	switch {
	case len(p.Packages) > 0:
		for _, ref := range p.Packages {
			if err := r.verify(ref); err != nil {
				return nil, failed(fmt.Errorf("package %s: %w", path.Base(ref.Path), err))
			}
		}
		o.Wheels = packages
	case p.Keep:
		o.Collect = packages
	}
	got, err := i.install(ctx, o)
	if err != nil {
		return nil, failed(err)
	}
	if err := r.use(ctx, got.Interpreter); err != nil {
		return nil, err
	}
	result := &rpc.InstallDepsResult{Installed: got.Installed}
	if o.Collect != "" && len(got.Wheels) > 0 {
		if result.Packages, err = listPackages(packages); err != nil {
			return nil, fmt.Errorf("packages to keep: %w", err)
		}
	}
	return result, nil
}

// Compile compiles the modules of the environment in use, so that no process has
// to that imports them first: in a template that is read by many. A module that
// cannot be compiled, as those of packages for other versions, is left as it is.
func (r *pythonRuntime) Compile(ctx context.Context) error {
	r.mu.Lock()
	python := r.using
	r.mu.Unlock()
	dir := filepath.Dir(filepath.Dir(python))
	if !complete(dir) { // of the system's packages others take care
		return nil
	}
	packages, err := packagesIn(dir)
	if err != nil {
		return err
	}
	err = (&command{
		argv: []string{python, "-m", "compileall", "-q", "-j", "0", packages},
		dir:  r.opts.Dir, env: os.Environ(), log: io.Discard,
	}).run(ctx)
	if ctx.Err() != nil {
		return err
	}
	return nil
}

// installer prepares an installer; done ends it. Without a log it only checks.
func (r *pythonRuntime) installer(log io.Writer) (i *installer, done func(), err error) {
	variables := r.opts.Env()
	indexes, rest, err := indexesFrom(variables)
	if err != nil {
		return nil, nil, err
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		_, passed := variables[name] // it is in rest, or in the credentials
		return passed
	})
	env = append(env, rest...)
	done = func() {}
	if log == nil {
		log = io.Discard
	} else if len(indexes) > 0 {
		credentials, err := NewCredentials(indexes...)
		if err != nil {
			return nil, nil, err
		}
		r.opts.Redactor.Add(credentials.Secrets()...)
		env = append(env, credentials.Env()...)
		done = func() { credentials.Close() }
	}
	return &installer{
		root: filepath.Join(r.opts.CacheDir, environmentsDir), python: r.opts.Program, env: env, log: log, redact: r.opts.Redactor.String, template: r.opts.Template,
		event: func(name string, fields map[string]any) { r.opts.Event("", name, fields) },
	}, done, nil
}

// use has steps run with an interpreter from now on.
func (r *pythonRuntime) use(ctx context.Context, python string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("the worker ends")
	}
	if !r.unpacked {
		for archive, dir := range r.sources {
			if err := unpack(ctx, python, archive, dir); err != nil {
				return fmt.Errorf("sources of drivers: %w", err)
			}
		}
		r.unpacked = true
	}
	if r.pool != nil && r.using == python {
		return nil
	}
	if r.pool != nil {
		if err := r.pool.close(); err != nil {
			return err
		}
	}
	r.using = python
	r.pool = newPool(poolOptions{
		dir: filepath.Join(r.opts.Dir, runtimeDir, "pool"), interpreter: interpreter{path: python},
		session: r.opts.Session, redact: r.opts.Redactor, printed: r.opts.Print,
	})
	return nil
}

// Close implements [worker.Runtime].
func (r *pythonRuntime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.pool == nil {
		return nil
	}
	return r.pool.close()
}

// verify checks that a file of the run's folder is what the host sent.
func (r *pythonRuntime) verify(ref rpc.FileRef) error {
	if !filepath.IsLocal(ref.Path) || path.Dir(ref.Path) != packagesDir {
		return fmt.Errorf("%q is not in the folder of packages", ref.Path)
	}
	size, sum, err := hashFile(filepath.Join(r.opts.Dir, filepath.FromSlash(ref.Path)))
	if err == nil && (size != ref.Size || sum != ref.SHA256) {
		err = errors.New("it does not have the size and sha256 that the host has announced")
	}
	return err
}

func listPackages(dir string) ([]rpc.FileRef, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var refs []rpc.FileRef
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		size, sum, err := hashFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		refs = append(refs, rpc.FileRef{Path: path.Join(packagesDir, e.Name()), Size: size, SHA256: sum})
	}
	return refs, nil
}
