package python

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/apache/arrow/go/v17/arrow/array"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// bridge is what runs in a child.
//
//go:embed bridge.py
var bridge []byte

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

	// inArtifacts has it work in the step's artifacts directory, so that what it
	// writes by a relative name comes home; else it is in the step's base path.
	inArtifacts bool
}

// poolOptions configure a [pool].
type poolOptions struct {
	dir         string // for the bridge and hand-over files; the pool makes and removes it
	interpreter interpreter
	session     string            // what drivers get as ctx.session_id; may be empty
	redact      *secrets.Redactor // for what is printed; nil: nothing is redacted

	// printed gets each line that a step has printed, without its end. stream is
	// "stdout" or "stderr"; stepID is empty for what comes between two steps, as
	// from a thread that a driver has left behind. It is called by the pool's own
	// goroutines, one after another for a stream of a child, and never after
	// close has returned. A step's lines come before run returns. Nil discards.
	printed func(stepID, stream, line string)
}

// pool runs steps in children, Python processes that are used again. It is safe
// for concurrent use.
type pool struct {
	opts   poolOptions
	bridge string // the file
	files  *handover

	stop   context.CancelCauseFunc // of all that runs
	ctx    context.Context
	active sync.WaitGroup // calls of run
	spawn  chan func()    // see spawner

	mu      sync.Mutex
	begun   bool // the directory is there, and spawner runs
	closed  bool
	idle    []*process // the last one used is the last
	spawned chan struct{}
}

// errPoolClosed is the error of a step when its pool is closed.
var errPoolClosed = errors.New("the pool of Python processes is closed")

// newPool starts nothing: the first step does.
func newPool(opts poolOptions) *pool {
	// Children start in the directory, and would take relative names from there.
	opts.dir = absolute(opts.dir)
	if strings.ContainsRune(opts.interpreter.path, filepath.Separator) {
		opts.interpreter.path = absolute(opts.interpreter.path)
	}
	p := &pool{
		opts:    opts,
		bridge:  filepath.Join(opts.dir, "bridge.py"),
		files:   newHandover(opts.dir),
		spawn:   make(chan func()),
		spawned: make(chan struct{}),
	}
	p.ctx, p.stop = context.WithCancelCause(context.Background())
	return p
}

// absolute returns name as an absolute one, if the working directory is known.
func absolute(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// begin books a call of run, and makes what the first one needs.
func (p *pool) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errPoolClosed
	}
	if !supported {
		return fmt.Errorf("drivers in Python do not run on %s", runtime.GOOS)
	}
	if !p.begun {
		if err := os.MkdirAll(p.opts.dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(p.bridge, bridge, 0o600); err != nil {
			return err
		}
		p.begun = true
		go p.spawner()
	}
	p.active.Add(1)
	return nil
}

// spawner starts all children, on one thread that lives as long as they do:
// Linux kills a child when the thread that has started it ends, and with that
// thread the worker.
func (p *pool) spawner() {
	defer close(p.spawned)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for f := range p.spawn {
		f()
	}
}

// run executes one step, in a child that is idle or a new one. When ctx is done
// the driver gets a KeyboardInterrupt, and after a grace its process group is
// killed; run returns when that is over. An exception of the driver is a
// [*worker.DriverError].
func (p *pool) run(ctx context.Context, d driverClass, step *worker.Step) (*worker.Result, error) {
	if err := p.begin(); err != nil {
		return nil, err
	}
	defer p.active.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })()

	req, err := p.request(d, step)
	if err != nil {
		return nil, err
	}
	inputs, err := p.files.put(ctx, step)
	defer inputs.remove()
	if err != nil {
		return nil, err
	}
	req.Inputs = inputs.byName
	answer, err := p.ask(ctx, d, req, step)
	result := &worker.Result{}
	if err == nil {
		if result, err = p.result(answer, req, step); err == nil {
			return result, nil
		}
	}
	p.removeOutputs(req)
	return nil, err
}

func (p *pool) request(d driverClass, step *worker.Step) (*stepRequest, error) {
	req := &stepRequest{
		StepID:    step.ID,
		SessionID: p.opts.session,
		Driver:    d.name,
		Module:    d.module,
		Class:     d.class,
		Sources:   append([]string{}, d.sources...),
		Config:    step.Config,
		Output:    p.files.name("out"),
		Env:       step.Env,

		TraceParent: step.TraceParent,
	}
	if req.Config == nil {
		req.Config = map[string]any{}
	}
	if req.Env == nil {
		req.Env = map[string]string{}
	}
	if req.TraceParent != "" { // by which tracers of Python go on
		env := maps.Clone(req.Env)
		env["TRACEPARENT"] = req.TraceParent
		req.Env = env
	}
	var err error
	if req.BasePath, err = filepath.Abs(step.BasePath); err != nil {
		return nil, err
	}
	if req.ArtifactsDir, err = filepath.Abs(step.ArtifactsDir); err != nil {
		return nil, err
	}
	req.Cwd = req.BasePath
	if d.inArtifacts {
		req.Cwd = req.ArtifactsDir
	}
	return req, nil
}

// ask has a child run a step. A child that has answered is kept for the next.
func (p *pool) ask(ctx context.Context, d driverClass, req *stepRequest, step *worker.Step) (*message, error) {
	c, err := p.take(ctx, req.Sources)
	if err != nil {
		return nil, fmt.Errorf("driver %q: %w", d.name, err)
	}
	c.sources = req.Sources
	answer, err := c.do(ctx, req, step)
	if err != nil {
		return nil, fmt.Errorf("driver %q: %w", d.name, err)
	}
	p.mu.Lock()
	p.idle = append(p.idle, c) // close ends it, as soon as this call is over
	p.mu.Unlock()
	if answer.Type == "error" {
		return nil, &worker.DriverError{Type: answer.ErrorType, Message: answer.Message, Traceback: answer.Traceback}
	}
	return answer, nil
}

// take returns a child that is ready: an idle one, best one that has had these
// sources, or a new one.
func (p *pool) take(ctx context.Context, sources []string) (*process, error) {
	for {
		c := p.takeIdle(sources)
		if c == nil {
			break
		}
		if !c.dead() {
			return c, nil
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	type started struct {
		c   *process
		err error
	}
	start := make(chan started, 1)
	p.spawn <- func() {
		c, err := startProcess(p)
		start <- started{c, err}
	}
	s := <-start
	if s.err != nil {
		return nil, fmt.Errorf("start Python: %w", s.err)
	}
	select {
	case <-s.c.ready:
		return s.c, nil
	case <-s.c.exited:
		return nil, fmt.Errorf("%s does not run: %w", p.opts.interpreter.path, s.c.failure)
	case <-ctx.Done():
		s.c.kill()
		return nil, context.Cause(ctx)
	}
}

func (p *pool) takeIdle(sources []string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.idle) - 1; i >= 0; i-- {
		if c := p.idle[i]; slices.Equal(c.sources, sources) {
			p.idle = slices.Delete(p.idle, i, i+1)
			return c
		}
	}
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return c
	}
	return nil
}

// resultValues is the artifact with what a driver has returned beside tables.
const resultValues = "results.json"

// result makes a step's result of a child's answer.
func (p *pool) result(answer *message, req *stepRequest, step *worker.Step) (_ *worker.Result, err error) {
	result := &worker.Result{Outputs: make(map[string]array.RecordReader, len(answer.Outputs))}
	defer func() {
		if err != nil {
			for _, r := range result.Outputs {
				r.Release()
			}
		}
	}()
	for _, out := range answer.Outputs {
		files := make([]string, len(out.Files))
		for i, name := range out.Files {
			// Names are checked so that a child cannot have other files removed.
			if !strings.HasPrefix(name, filepath.Base(req.Output)) || filepath.Base(name) != name {
				return nil, fmt.Errorf("output %q: %q is no file of this step", out.Key, name)
			}
			files[i] = filepath.Join(filepath.Dir(req.Output), name)
		}
		if result.Outputs[out.Key] != nil {
			return nil, fmt.Errorf("output %q came twice", out.Key)
		}
		r, err := p.files.open(files, out.Rows, step.Memory())
		if err != nil {
			return nil, fmt.Errorf("output %q: %w", out.Key, err)
		}
		result.Outputs[out.Key] = r
	}
	if len(answer.Values) > 0 {
		b, err := json.MarshalIndent(answer.Values, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resultValues, err)
		}
		if p.opts.redact != nil { // a driver may return its config, say
			b = p.opts.redact.JSON(b)
		}
		f, err := step.Create(resultValues)
		if err != nil {
			return nil, err
		}
		_, err = f.Write(append(b, '\n'))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", resultValues, err)
		}
	}
	return result, nil
}

// removeOutputs removes what a step that has failed may have left.
func (p *pool) removeOutputs(req *stepRequest) {
	names, _ := filepath.Glob(globQuote(req.Output) + "*")
	for _, name := range names {
		os.Remove(name)
	}
}

// globQuote makes a pattern that matches s alone.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// close ends all children and removes the directory, and waits until all that
// is over. Steps that still run are stopped. Outputs that were handed out stay
// valid. A second close does nothing but wait.
func (p *pool) close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.active.Wait()
		<-p.spawned
		return nil
	}
	p.closed = true
	begun := p.begun
	p.mu.Unlock()
	p.stop(errPoolClosed)
	if !begun {
		close(p.spawned)
		return nil
	}
	p.active.Wait()
	var children sync.WaitGroup
	for _, c := range p.idle { // nobody else has it any more
		children.Go(func() { c.end(leaveGrace) })
	}
	children.Wait()
	err := os.RemoveAll(p.opts.dir)
	close(p.spawn)
	<-p.spawned
	return err
}
