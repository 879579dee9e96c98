package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// engine is what the adapters share: all of a run but the place it runs in.
type engine struct {
	cfg  Config
	name string // of the adapter, in files and errors

	ships bool // input files are sent to where it runs

	attachable bool // another process can go on with a run

	lookup lookup // of hosts; nil means the system's

	// settle makes the place of a run, which is to reach no more than the plan
	// says. It emits the events of doing so.
	settle func(ctx context.Context, p *PreparedRun, s *session, network *egressPlan) (*place, error)

	// noteStart keeps what the start of a run has taken; nil where nobody asks.
	noteStart func(p *PreparedRun, c *StartCost) error

	partSize int // of tables on their way; zero means what is best, tests take less

	unprotect func(*runSecrets) // for tests: lets secrets out, so that they can be found

	mu     sync.Mutex
	runs   map[string]*run // by session id
	closed bool
}

// place is where a run happens.
type place struct {
	sandbox Sandbox
	plan    *Manifest
	program string            // the worker's path there
	dir     string            // the run's folder there
	base    string            // where relative input paths start there
	files   map[string]string // input paths as configs give them, to where they are
	sent    []rpc.FileSum     // input files that were sent
	worker  *rpc.FileSum      // the worker program, if it was sent
	lease   *lease            // the sandbox's; nil where it has no end
	network *networkWatch     // keeps the sandbox's rules right; nil where there is none
	started bool              // the worker answered, so that it may have left something
	way     StartWay          // how packages came there; empty where none had to

	tables map[string]rpc.TableRef // the host's, where they are
	cache  string                  // what a worker may keep for other runs; empty: where it usually does
}

// run is one session of an adapter.
type run struct {
	cancel   context.CancelCauseFunc
	executed chan struct{} // closed when Execute is done
	timer    *timer        // of Config.Timeout, where that can stand still; else nil

	stopCollect context.CancelCauseFunc // of a Collect that is running; guarded by the engine's lock

	mu        mutex // serialises Execute, Collect and removal
	removed   bool  // the place is gone, and its artifacts with it
	yielded   bool  // another host has the run
	ec        *ExecutionContext
	prepared  *PreparedRun
	secrets   *runSecrets
	seq       int64
	check     *checkpoint     // nil when nobody could go on with the run
	creates   []sandboxRecord // of hosts that died before they were answered
	place     *place          // nil when nothing was made, or all is removed
	sandboxID string
	sealed    *sealed // nil: to be asked for
	steps     []StepResult
	outputs   map[string]map[string]rpc.OutputRef // by step and key
	stopped   []StopStage
	meter     *meter
	start     *StartCost // nil while no step could begin
	receipt   *Receipt   // the last that was taken
	removal   *StopStage // of the place, once that was tried
	status    status     // Execute's verdict
	fetched   bool       // artifacts and skipped are home
	artifacts []Artifact
	skipped   []SkippedArtifact
	collected *CollectedArtifacts

	skippedMore int // without a name

	kept outputBook // outputs for the host
}

// cleanupGrace bounds what is done after a run has ended or was cancelled.
const cleanupGrace = 30 * time.Second

// sealPatience is how long a worker may take for the list of its artifacts before
// that is left to Collect, which has more time.
const sealPatience = 20 * time.Second

// collectLease is how long a sandbox lives after Execute, at least, for
// Collect.
const collectLease = 5 * time.Minute

// extendPatience bounds a change of a sandbox's end that may fail.
const extendPatience = 5 * time.Second

// killPatience bounds one try to remove a sandbox: another may go over a
// connection that is well.
const killPatience = 10 * time.Second

// Prepare implements [ExecutionAdapter].
func (e *engine) Prepare(ctx context.Context, m *Manifest, ec *ExecutionContext) (*PreparedRun, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := ec.validate(); err != nil {
		return nil, fmt.Errorf("remote: prepare: %w", err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if err := checkOutputs(m, ec); err != nil {
		return nil, err
	}
	started := ec.StartedAt
	if started.IsZero() {
		started = time.Now()
	}
	env := e.cfg.environment()
	p := &PreparedRun{
		SchemaVersion:       SchemaVersion,
		Plan:                m,
		ResolvedConnections: make(map[string]ConnectionRef),
		CfgIndex:            make(map[string]map[string]any, len(m.Steps)),
		IOLayout: map[string]string{
			"logs": logFile, "artifacts": "artifacts", "events": eventsFile, "metrics": metricsFile,
			"status": statusFile, "manifest": manifestFile, "cfg": "cfg",
		},
		RunParams: RunParams{
			SessionID: ec.SessionID, StartedAt: formatTime(started), Adapter: e.name,
			Concurrency: e.cfg.Concurrency, StepTimeoutSeconds: e.cfg.StepTimeout.Seconds(),
			OnFailure: e.cfg.OnFailure, Restarts: e.cfg.Restarts, PassEnv: env,
		},
		Constraints: Constraints{
			TimeoutSeconds: e.cfg.timeout().Seconds(), MaxMemoryGB: e.cfg.MemoryGB, CPUCount: e.cfg.CPU,
		},
		Metadata: RunMetadata{
			SessionID: ec.SessionID, CreatedAt: formatTime(started),
			PipelineName: m.Name, PipelineID: m.ID(), StepCount: len(m.Steps),
		},
		Package: Package{
			Manifest:    m.document(true),
			Connections: make(map[string]ConnectionRef),
			Environment: make(map[string]string, len(env)),
		},
		SandboxConfig: e.cfg.sandboxConfig(ec.SessionID),
		InputFiles:    []string{},
	}
	if p.RunParams.OnFailure == "" {
		p.RunParams.OnFailure = StopAll
	}
	if hash, ok := m.Meta["manifest_hash"].(string); ok {
		p.Metadata.ManifestHash = hash
	}
	if source, ok := m.Metadata["source_manifest_path"].(string); ok && source != "" {
		root := filepath.Dir(source)
		p.CompiledRoot = &root
	}
	for _, name := range env {
		p.Package.Environment[name] = "${" + name + "}"
	}
	var err error
	if p.PythonDrivers, err = e.cfg.pythonDrivers(m); err != nil {
		return nil, &ManifestError{Reason: err.Error()}
	}
	for _, source := range p.sourceDirs() {
		info, err := os.Stat(hostPath(ec, source))
		if err == nil && !info.IsDir() {
			err = errors.New("it is not a directory")
		}
		if err != nil {
			return nil, fmt.Errorf("remote: prepare: sources of drivers: %s: %w", source, cause(err))
		}
	}
	for _, s := range m.Steps {
		if err := e.prepareStep(p, s, ec); err != nil {
			return nil, err
		}
	}
	if err := p.checkPointers(); err != nil {
		return nil, &ManifestError{Reason: err.Error()}
	}
	if err := e.prepareTables(p, ec); err != nil {
		return nil, err
	}
	if err := prepareKeep(p, ec); err != nil {
		return nil, err
	}
	slices.Sort(p.InputFiles)
	p.InputFiles = slices.Compact(p.InputFiles)
	return p, nil
}

func (e *engine) prepareStep(p *PreparedRun, s Step, ec *ExecutionContext) error {
	fail := func(format string, args ...any) error {
		return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf(format, args...)}
	}
	if _, taken := p.CfgIndex[s.cfgPath()]; taken {
		return fail("its config %s is another step's, too", s.cfgPath())
	}
	config := s.Config
	if config == nil && s.CfgPath != "" {
		return fail("its config %s was not loaded; read the manifest by LoadManifest or ParseManifest, or set Step.Config", s.CfgPath)
	}
	if config == nil {
		config = map[string]any{}
	}
	var entry worker.Registration
	python, declared := p.pythonDriver(s.DriverName())
	if declared {
		entry.Secrets = python.Secrets
		entry.New = e.cfg.filerInPlaceOf(python)
	} else if e.cfg.Drivers != nil {
		var err error
		// Another program than this may have more drivers: it is asked by the handshake.
		if entry, err = e.cfg.Drivers.Lookup(s.DriverName()); err != nil && e.cfg.WorkerPath == "" {
			var unknown *worker.UnknownDriverError
			if errors.As(err, &unknown) {
				unknown.StepID = s.ID
			}
			return fmt.Errorf("remote: prepare: %w", err)
		}
	}
	if inline := secrets.Inline(config, entry.Secrets...); len(inline) > 0 {
		return fail("the config holds a secret value under %q; use a connection, or a ${NAME} placeholder that the driver fills from its variables", inline[0])
	}
	if _, err := json.Marshal(config); err != nil {
		return fail("the config cannot be written as JSON: %v", err)
	}
	p.CfgIndex[s.cfgPath()] = config
	if err := e.describe(p, s, config); err != nil {
		return fmt.Errorf("remote: prepare: step %q: connection: %w", s.ID, err)
	}
	names := filesAt(config, python.InputFiles)
	if entry.New != nil {
		if filer, ok := entry.New().(worker.InputFiler); ok {
			var err error
			if names, err = filer.InputFiles(config); err != nil {
				return fail("%v", err)
			}
		}
	}
	for _, name := range names {
		info, err := os.Stat(hostPath(ec, name))
		if err != nil {
			return fmt.Errorf("remote: prepare: step %q: input file %s: %w", s.ID, name, cause(err))
		}
		switch {
		case info.IsDir():
			return fail("input file %s is a directory", name)
		case e.ships && declared && filepath.IsAbs(name) && len(python.InputFiles) == 0:
			return fail("input file %s is an absolute path, which the driver in Python would not find in a sandbox; declare the config's field in its input_files", name)
		case e.ships && !info.Mode().IsRegular():
			return fail("input file %s is a pipe or device, which cannot be sent to a sandbox", name)
		}
		p.InputFiles = append(p.InputFiles, name)
	}
	return nil
}

// hostPath returns where an input file is on this machine.
func hostPath(ec *ExecutionContext, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(ec.BasePath, name)
}

func (c Config) sandboxConfig(sessionID string) SandboxConfig {
	s := SandboxConfig{
		Template: c.template(), CPU: c.CPU, MemoryGB: c.MemoryGB,
		TimeoutSeconds: int((c.timeout() + time.Second - 1) / time.Second),
		Metadata:       map[string]string{sessionKey: sessionID},
	}
	if c.Lease != 0 && c.Lease != defaultLease {
		s.LeaseSeconds = int((c.Lease + time.Second - 1) / time.Second)
	}
	if c.OnHostLoss != Kill {
		s.OnHostLoss = c.OnHostLoss
	}
	if s.Image, s.Packages = c.Image, slices.Clone(c.Packages); c.Image != "" {
		s.Template = ""
	}
	return s
}

// Execute implements [ExecutionAdapter].
func (e *engine) Execute(ctx context.Context, p *PreparedRun, ec *ExecutionContext) (*ExecResult, error) {
	started := time.Now()
	if err := e.check(p, ec); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.checkInputs(p, ec); err != nil {
		return nil, err
	}
	known := e.newSecrets()
	if err := known.lookup(e.cfg, p); err != nil {
		return nil, err
	}
	return e.launch(ctx, p, ec, launch{
		started: started,
		secrets: known,
		open:    func() (*session, error) { return newSession(ec) },
		work:    e.execute,
	})
}

// launch is how a host comes to do a run: from its beginning, or where another
// has left it.
type launch struct {
	started time.Time // of the run
	secrets *runSecrets
	idle    time.Duration // that it has had no host: its timeout stood still
	meter   *meter        // of hosts before; nil where there was none
	session *session      // that is open already, and launch's to close; else there is open
	open    func() (*session, error)
	work    func(ctx context.Context, r *run, s *session) error
}

func (e *engine) launch(ctx context.Context, p *PreparedRun, ec *ExecutionContext, how launch) (*ExecResult, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := newRun(ec, p, cancel)
	s := how.session
	if err := e.enter(p.RunParams.SessionID, r); err != nil {
		if s != nil {
			err = errors.Join(err, s.close())
		}
		return nil, err
	}
	defer close(r.executed)
	defer r.kept.end() // wherever it ends
	if timeout := p.Constraints.TimeoutSeconds; timeout > 0 {
		d := time.Duration(timeout * float64(time.Second))
		end := how.started.Add(how.idle + d)
		why := fmt.Errorf("remote: %w: the run took longer than %s (Config.Timeout)", ErrTimeout, d)
		if e.mayDerive(p) { // what a template takes is not the run's time
			r.timer = startTimer(time.Until(end), func() { cancel(why) })
			defer r.timer.stop()
		} else {
			var stop context.CancelFunc
			ctx, stop = context.WithDeadlineCause(ctx, end, why)
			defer stop()
		}
	}

	_ = r.mu.lock(context.Background()) // nobody else has it yet
	defer r.mu.unlock()
	if s == nil {
		var err error
		if s, err = how.open(); err != nil {
			e.leave(p.RunParams.SessionID)
			return nil, err
		}
	}
	r.secrets, s.redact = how.secrets, how.secrets.redact
	if r.meter = how.meter; r.meter == nil {
		r.meter = e.newMeter(how.started)
	}
	s.meter = r.meter
	defer r.meter.enter(phaseIdle)
	defer r.meter.watch(cancel)()
	ctx, span := ec.startSpan(r.meter.into(ctx), "osiris.execute", slog.String("osiris.session_id", s.id), slog.String("osiris.adapter", e.name))
	untraced := r.meter.traceBy(ctx, ec.Tracer)
	result, err := e.perform(ctx, r, s, how)
	untraced()
	if result != nil {
		span.SetAttributes(result.Receipt.attributes()...)
	}
	span.End(err)
	return result, err
}

// perform does what launch has made ready.
func (e *engine) perform(ctx context.Context, r *run, s *session, how launch) (*ExecResult, error) {
	p, ec, cancel := r.prepared, r.ec, r.cancel
	s.failed, s.limit = cancel, e.lineLimit(p)
	s.out = startDelivery(ctx, ec, func(err error) { cancel(err) })
	witness := &witness{session: s}
	runErr := how.work(witness.watch(ctx), r, s)
	witness.stop()
	r.meter.enter(phaseFinish)
	if errors.Is(runErr, ErrOwnershipLost) {
		return e.yield(r, s, runErr, time.Since(how.started))
	}
	if r.place != nil {
		if why := r.place.lease.lapsed(); why != nil && errors.Is(runErr, ErrSandboxGone) {
			r.place.lease.lose(s, why)
			runErr = fmt.Errorf("%w; its lease was over: %w", runErr, why)
		}
		r.place.network.release()
		r.place.lease.release(ctx, s)
	}
	if runErr != nil && ctx.Err() != nil {
		// What the run ended of, rather than what broke when it was stopped.
		if why := context.Cause(ctx); !errors.Is(runErr, why) {
			runErr = fmt.Errorf("%w (%w)", why, runErr)
		}
	}
	return e.conclude(r, s, runErr, time.Since(how.started))
}

// check refuses a run that was not prepared for this context.
func (e *engine) check(p *PreparedRun, ec *ExecutionContext) error {
	if err := ec.validate(); err != nil {
		return fmt.Errorf("remote: execute: %w", err)
	}
	switch {
	case p == nil || p.Plan == nil:
		return fmt.Errorf("remote: execute: %w: there is no prepared run", ErrInvalid)
	case p.SchemaVersion != SchemaVersion:
		return fmt.Errorf("remote: execute: %w: the run was prepared with schema version %d, this is %d; prepare it again", ErrInvalid, p.SchemaVersion, SchemaVersion)
	case p.RunParams.SessionID != ec.SessionID:
		return fmt.Errorf("remote: execute: %w: the run was prepared for session %q, the context is of session %q", ErrInvalid, p.RunParams.SessionID, ec.SessionID)
	case p.RunParams.Adapter != e.name:
		return fmt.Errorf("remote: execute: %w: the run was prepared by the adapter %q, this is %q", ErrInvalid, p.RunParams.Adapter, e.name)
	}
	if _, err := os.Stat(filepath.Join(ec.LogsDir, statusFile)); err == nil {
		return fmt.Errorf("remote: execute: %w: %w: %s holds a finished session (%s exists); use another directory", ErrInvalid, ErrAlreadyExecuted, ec.LogsDir, statusFile)
	}
	if info, err := os.Stat(filepath.Join(ec.LogsDir, eventsFile)); err == nil && info.Size() > 0 {
		return fmt.Errorf("remote: execute: %w: %s holds a session that did not end (%s is not empty); go on with it by Attach, or use another directory", ErrInvalid, ec.LogsDir, eventsFile)
	}
	if err := p.Plan.Validate(); err != nil {
		return err
	}
	if err := checkOutputs(p.Plan, ec); err != nil {
		return err
	}
	return p.validate()
}

// checkInputs refuses a run that would send other files of this machine than
// its configs name.
func (e *engine) checkInputs(p *PreparedRun, ec *ExecutionContext) error {
	again := &PreparedRun{CfgIndex: make(map[string]map[string]any), ResolvedConnections: make(map[string]ConnectionRef),
		Package: Package{Connections: make(map[string]ConnectionRef)}}
	var err error
	if again.PythonDrivers, err = e.cfg.pythonDrivers(p.Plan); err != nil {
		return &ManifestError{Reason: err.Error()}
	}
	if !sameJSON(again.PythonDrivers, append([]PythonDriver{}, p.PythonDrivers...)) {
		return fmt.Errorf("remote: execute: %w: the run has other drivers in Python than its manifest and this adapter's Config declare; prepare it again", ErrInvalid)
	}
	for _, s := range p.Plan.Steps {
		s.Config = p.CfgIndex[s.cfgPath()]
		if err := e.prepareStep(again, s, ec); err != nil {
			return err
		}
	}
	if err := e.checkTables(p, ec); err != nil {
		return err
	}
	for _, name := range p.InputFiles {
		if !slices.Contains(again.InputFiles, name) {
			return fmt.Errorf("remote: execute: %w: the run lists the input file %q, which no config names", ErrInvalid, name)
		}
	}
	return nil
}

// sameJSON reports whether two values that JSON has come from or goes to are
// the same there.
func sameJSON(a, b any) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

// refuses returns why the adapter would not take a run now; nil when it would.
func (e *engine) refuses(sessionID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refusesLocked(sessionID)
}

func (e *engine) refusesLocked(sessionID string) error {
	if e.closed {
		return fmt.Errorf("remote: execute: %w", ErrClosed)
	}
	if _, known := e.runs[sessionID]; known {
		return fmt.Errorf("remote: execute: %w: %s", ErrAlreadyExecuted, sessionID)
	}
	return nil
}

func (e *engine) enter(sessionID string, r *run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.refusesLocked(sessionID); err != nil {
		return err
	}
	if e.runs == nil {
		e.runs = make(map[string]*run)
	}
	e.runs[sessionID] = r
	return nil
}

func (e *engine) leave(sessionID string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.runs, sessionID)
}

// execute runs the run up to its last step, and leaves the place for Collect.
func (e *engine) execute(ctx context.Context, r *run, s *session) error {
	p := r.prepared
	if e.attachable {
		if err := s.startCheckpoint(r, e.name, p.SandboxConfig.lease()); err != nil {
			return err
		}
	}
	s.event("run_start", map[string]any{
		"pipeline_id": p.Plan.ID(), "manifest_path": manifestFile, "profile": p.Plan.Profile(),
	})
	s.metric("steps_total", float64(len(p.Plan.Steps)), "")
	if err := s.materialize(p); err != nil {
		return err
	}
	if err := e.resolve(ctx, p, s, r.secrets); err != nil {
		return err
	}
	network, err := e.egress(ctx, p, r.secrets)
	if err != nil {
		return err
	}
	r.meter.enter(phaseCreate)
	pl, err := e.settle(ctx, p, s, network)
	if pl != nil {
		r.place, r.sandboxID = pl, pl.sandbox.Info().ID
	}
	if err != nil {
		return err
	}
	pl.plan = p.Plan
	start := time.Now()
	r.meter.enter(phaseWorkerStart)
	l, hello, err := e.begin(ctx, p, pl, s, r.secrets)
	if err != nil {
		return err
	}
	defer l.close()
	pl.started = true
	if err := s.save(func(c *checkpoint) { c.last().PID = l.process().PID() }); err != nil {
		return err
	}
	r.meter.enter(phaseUpload) // which is verified first
	fields := map[string]any{
		"pid": hello.PID, "worker": hello.Worker, "protocol": hello.Version,
		"os": hello.OS, "arch": hello.Arch, "duration_ms": milliseconds(time.Since(start)),
	}
	if hello.PythonVersion != "" {
		fields["python_version"] = hello.PythonVersion
	}
	for name, n := range map[string]int64{"memory_bytes": hello.MemoryBytes, "memory_budget": hello.MemoryBudget} {
		if n > 0 {
			fields[name] = n
		}
	}
	s.event("worker_started", fields)
	s.event("drivers_registered", map[string]any{
		"drivers": hello.Drivers, "fingerprint": sha256Hex([]byte(strings.Join(hello.Drivers, "|"))),
	})
	l.watchOver(e.cfg.heartbeat())
	if err := l.verify(ctx); err != nil {
		return err
	}
	r.meter.enter(phaseDependencies)
	keep, err := e.settleDependencies(ctx, l, p)
	if err != nil {
		return err
	}
	if keep != nil { // while the steps run: another run is to have them
		defer background(ctx, keep, keepGrace)()
	}
	r.meter.enter(phaseWorkerStart) // the last of it
	if err := l.startMarking(); err != nil {
		return err
	}
	r.start = startCost(r.meter.receipt(nil), pl)
	return e.work(ctx, r, l, hello.CPUs)
}

// keepGrace is how long packages may still be brought home once the steps have
// ended: a sandbox decides how much that is, and how slowly it comes.
const keepGrace = time.Minute

// background does something beside what goes on; wait waits for it, for the grace
// at most, and then breaks it off.
func background(ctx context.Context, do func(context.Context), grace time.Duration) (wait func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	return func() {
		defer cancel()
		defer time.AfterFunc(grace, cancel).Stop()
		<-done
	}
}

// work runs the steps, and has the worker end.
func (e *engine) work(ctx context.Context, r *run, l *link, cpus int) error {
	p := r.prepared
	r.meter.enter(phaseSteps)
	w := e.newRestarter(r, l)
	defer w.close()
	defer w.refresh(ctx)()
	cancelled, stopWaiting := whenDone(ctx)
	defer stopWaiting()
	g := &graph{
		steps:     p.Plan.Steps,
		limit:     p.RunParams.Concurrency,
		onFailure: p.RunParams.OnFailure,
		timeout:   time.Duration(p.RunParams.StepTimeoutSeconds * float64(time.Second)),
		fetch:     p.fetchKeys(),
		configs: func(i int) (json.RawMessage, error) {
			return json.Marshal(p.CfgIndex[p.Plan.Steps[i].cfgPath()])
		},
		ready: func(i int) { r.meter.ready(p.Plan.Steps[i].ID) },
		execute: func(ctx context.Context, i int, req *rpc.ExecuteStep) (_ *rpc.StepResult, err error) {
			req.Connection = r.secrets.reference(p, p.Plan.Steps[i])
			span := r.ec.traceStep(ctx, l.session, p.Plan.Steps[i], req)
			defer func() { span.End(l.session.redacted(err)) }()
			r.meter.asked(req, l.place.tables)
			result, err := w.step(ctx, req)
			r.meter.answered(req.StepID, told(result, err))
			if err != nil {
				part := partial(err)
				if part != nil {
					part.Metrics = l.session.fewMetrics(req.StepID, part.Metrics)
				}
				return part, stepError(ctx, p.Plan.Steps[i], err)
			}
			if result.Status != "success" {
				return nil, &protocolError{fmt.Errorf("step %q has the result %.40q, which is neither success nor an error", req.StepID, result.Status)}
			}
			if result.StepID != "" && result.StepID != req.StepID {
				return nil, &protocolError{fmt.Errorf("step %q has the result of step %.200q", req.StepID, result.StepID)}
			}
			result.Metrics = l.session.fewMetrics(req.StepID, result.Metrics)
			if req.Fetch != nil {
				r.kept.add(r.place, w, req.StepID, result.Outputs)
			}
			return result, nil
		},
	}
	if g.limit <= 0 {
		g.limit = max(cpus, 1)
	}
	g.answered, g.over = l.answeredBefore(), l.ended()
	err := g.run(ctx)
	r.meter.enter(phaseFinish)
	r.steps, r.outputs = g.results, g.outputs
	if errors.Is(err, ErrOwnershipLost) {
		return err
	}
	r.kept.detach()
	w.link().startCleanup()
	switch {
	case errors.Is(err, errCallCancelled): // it does not answer, and Collect seals
	case err == nil:
		err = w.finish(ctx)
	default:
		_ = e.finish(ctx, r, w.link()) // the first error says more
	}
	stages := w.link().stop(cancelled())
	if ctx.Err() != nil {
		r.stopped = stages
	}
	return err
}

// whenDone returns a function that tells when a context ended; zero before
// that. stop ends the waiting for it.
func whenDone(ctx context.Context) (at func() time.Time, stop func() bool) {
	var when atomic.Int64
	stop = context.AfterFunc(ctx, func() { when.CompareAndSwap(0, time.Now().UnixNano()) })
	return func() time.Time {
		if ctx.Err() == nil {
			return time.Time{}
		}
		when.CompareAndSwap(0, time.Now().UnixNano())
		return time.Unix(0, when.Load())
	}, stop
}

// begin starts the worker and waits for its first answer. A program that was
// just uploaded may be busy: a process that the sandbox's daemon was starting
// meanwhile holds it open for writing, until it is that process.
func (e *engine) begin(ctx context.Context, p *PreparedRun, pl *place, s *session, known *runSecrets) (*link, *rpc.HandshakeResult, error) {
	const tries = 6 // 3 s in all
	t := newTracer(s)
	for try := 1; ; try++ {
		l, err := dial(ctx, pl, s, t, serving{maxJournal: e.cfg.MaxJournal, keep: e.restarts(p) > 0})
		if err != nil {
			return nil, nil, err
		}
		hello, err := e.handshake(ctx, l, p, pl, known)
		if err == nil {
			return l, hello, nil
		}
		l.close()
		if try == tries || !isBusy(err) {
			return nil, nil, err
		}
		s.logf(slog.LevelWarn, "the worker program is still busy, starting it again")
		select {
		case <-time.After(50 * time.Millisecond << try):
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}

// isBusy reports whether a worker has never run because its file was open for
// writing, in the words that a shell has for it.
func isBusy(err error) bool {
	var c *WorkerCrashError
	return errors.As(err, &c) && c.Status != nil && c.Status.Code == 126 && strings.Contains(c.Stderr, "Text file busy")
}

func (e *engine) handshake(ctx context.Context, l *link, p *PreparedRun, pl *place, known *runSecrets) (*rpc.HandshakeResult, error) {
	var drivers []string
	for _, s := range p.Plan.Steps {
		drivers = append(drivers, s.DriverName())
	}
	drivers = append(drivers, p.tableDriverNames()...)
	slices.Sort(drivers)
	ctx, cancel := context.WithTimeoutCause(ctx, l.patience, fmt.Errorf(
		"%w: the worker did not answer in %s; does the program at %s call worker.Main first?", ErrTimeout, l.patience, pl.program))
	defer cancel()
	var hello rpc.HandshakeResult
	err := l.call(ctx, rpc.MethodHandshake, &rpc.Handshake{
		MinVersion: rpc.Version, MaxVersion: rpc.Version,
		SessionID:   p.RunParams.SessionID,
		Drivers:     slices.Compact(drivers),
		BasePath:    pl.base,
		Files:       pl.files,
		Tables:      pl.tables,
		HeartbeatMS: e.cfg.heartbeat().Milliseconds(),
		Epoch:       l.epoch,
		Owner:       l.owner,
		Declared:    p.declared(pl.dir),
		Python:      e.interpreter(),
		CacheDir:    cmp.Or(pl.cache, e.cacheDir()),

		MemoryBudget: e.cfg.MemoryBudget,
	}, &hello)
	var answer *rpc.Error
	if errors.As(err, &answer) {
		if answer.Code == rpc.CodeUnknownDriver {
			return nil, fmt.Errorf("remote: %w: the worker says: %s", ErrUnknownDriver, answer.Message)
		}
		return nil, fmt.Errorf("remote: handshake: %w", err)
	}
	if errors.Is(err, ErrWorkerCrash) {
		return nil, fmt.Errorf("remote: the program at %s ended before it answered; does it call worker.Main first? (%w)", pl.program, err)
	}
	if err != nil {
		return nil, err
	}
	if hello.Version < 1 || hello.Version > rpc.Version {
		return nil, fmt.Errorf("remote: handshake: %w", &protocolError{fmt.Errorf("it chose protocol version %d", hello.Version)})
	}
	l.sealKey = hello.SealKey
	if err := known.send(ctx, l); err != nil {
		return nil, err
	}
	return &hello, nil
}

// finish has a worker that is well seal its artifacts and end, and gives
// Collect time to fetch them.
func (e *engine) finish(ctx context.Context, r *run, l *link) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
	defer cancel()
	if l.ended() { // at the word of a host that has died
		sealed, err := seal(ctx, l.place, e.collecting(r))
		r.sealed = sealed
		return err
	}
	var extending sync.WaitGroup
	defer extending.Wait()
	// What it fails to do, or does late, is no fault of the run.
	extending.Go(func() { l.lease.release(ctx, l.session) })
	var list rpc.SealResult
	limit := e.collecting(r)
	sealing, stop := context.WithTimeout(ctx, sealPatience)
	err := l.call(sealing, rpc.MethodSealArtifacts, limit.policy, &list)
	stop()
	if err != nil && sealing.Err() != nil && ctx.Err() == nil {
		err = &rpc.Error{Code: rpc.CodeCancelled, Message: "it takes long"}
	}
	if err == nil && list.Artifacts == nil {
		err = &rpc.Error{Code: rpc.CodeInternal, Message: "the answer has no artifacts"}
	}
	if err == nil {
		if r.sealed, err = limit.choose(&list); err != nil {
			return fmt.Errorf("remote: seal artifacts: %w", err)
		}
	} else if !errors.As(err, new(*rpc.Error)) {
		return err
	} else {
		// A driver may still be writing, the list be too long for an answer, or the
		// files take long to read: Collect asks again, of a process of its own.
		l.session.logf(slog.LevelDebug, "seal artifacts: %v", err)
	}
	if err := l.call(ctx, rpc.MethodShutdown, struct{}{}, nil); err != nil {
		return err
	}
	select {
	case <-l.down:
		return l.downErr
	case <-ctx.Done():
		return fmt.Errorf("remote: the worker did not end in %s", cleanupGrace)
	}
}

// yield leaves a run, its sandbox and its files to the host that has it now.
func (e *engine) yield(r *run, s *session, runErr error, took time.Duration) (*ExecResult, error) {
	if r.place != nil {
		r.place.network.release()
		r.place.lease.drop()
	}
	r.place, r.yielded = nil, true
	r.kept.leave(ErrOwnershipLost)
	err := errors.Join(s.redacted(runErr), s.stopDelivery(), s.close())
	return &ExecResult{ExitCode: 1, DurationSeconds: took.Seconds(), ErrorMessage: err.Error(), StepResults: r.steps}, err
}

// failedStep returns the step that is why a run failed, and what kind of error
// it was; empty when it was none.
func failedStep(err error) (id, kind string) {
	var (
		step       *StepError
		connection *connectionError
		host       *HostError
	)
	switch {
	case errors.As(err, &step):
		return step.StepID, step.Type
	case errors.As(err, &connection):
		return connection.step, fmt.Sprintf("%T", connection.err)
	case errors.As(err, &host):
		return host.Step, fmt.Sprintf("%T", host)
	}
	return "", ""
}

// conclude writes the run's verdict everywhere it is kept, and returns it.
func (e *engine) conclude(r *run, s *session, runErr error, took time.Duration) (*ExecResult, error) {
	p := r.prepared
	if r.kept.end(); r.place == nil {
		r.kept.leave(errCollected)
	}
	if e.noteStart != nil && r.start != nil {
		if err := e.noteStart(p, r.start); err != nil {
			s.logf(slog.LevelDebug, "what the start has taken is not kept: %v", err)
		}
	}
	runErr = s.redacted(runErr)
	if r.steps == nil { // not one was started
		r.steps = make([]StepResult, len(p.Plan.Steps))
		for i, step := range p.Plan.Steps {
			r.steps[i] = StepResult{StepID: step.ID, Driver: step.DriverName(), Status: StepSkipped}
		}
	}
	for i := range r.steps { // an error may be the host's
		r.steps[i].Error = s.redact.String(r.steps[i].Error)
	}
	completed, written, read := 0, 0.0, 0.0
	for _, step := range r.steps {
		if step.Status == StepSucceeded {
			completed++
			written += step.Metrics["rows_written"]
			read += step.Metrics["rows_read"]
		}
	}
	rows := written
	if rows == 0 {
		rows = read
	}
	if err := e.writeRunCard(r, s); err != nil && runErr == nil {
		runErr = err
	}
	receipt, err := r.takeReceipt(s.path)
	if err != nil && runErr == nil {
		runErr = err
	}
	droppedLines, droppedBytes := s.dropped()
	s.event("cleanup_complete", map[string]any{"steps_executed": completed, "total_rows": rows})
	if runErr == nil && completed != len(r.steps) {
		runErr = fmt.Errorf("remote: %w: %d of %d steps completed", ErrStepFailed, completed, len(r.steps))
	}
	s.metric("execution_duration", took.Seconds(), "seconds")
	// The sinks have a say before the verdict, and on it: it is written once.
	if err := s.drain(); err != nil && runErr == nil {
		runErr = err
	}
	if runErr == nil {
		runErr = s.lastEvent("run_complete", map[string]any{"pipeline_id": p.Plan.ID(), "steps_executed": completed})
	}
	if runErr != nil {
		fields := map[string]any{"error": runErr.Error(), "error_type": errorType(runErr)}
		if id, kind := failedStep(runErr); id != "" {
			fields["failed_step"], fields["error_type"] = id, kind
		}
		s.event("run_error", fields)
		s.logf(slog.LevelError, "%v", runErr)
	}
	if err := s.stopDelivery(); err != nil && runErr == nil {
		runErr = err
	}
	if err := s.flush(); err != nil && runErr == nil {
		runErr = err
	}

	result := &ExecResult{Success: runErr == nil, Receipt: receipt, DurationSeconds: took.Seconds(), StepResults: r.steps, Stopped: r.stopped, DroppedLines: droppedLines, DroppedBytes: droppedBytes}
	r.status = status{
		SandboxID: r.sandboxID, StepsCompleted: completed, StepsTotal: len(r.steps), OK: runErr == nil,
		SessionPath: r.ec.LogsDir,
	}
	if runErr == nil {
		if err := s.writeStatus(r.status); err != nil {
			runErr, result.Success = err, false
		}
	}
	if runErr != nil {
		result.ExitCode, result.ErrorMessage = 1, runErr.Error()
		r.status.OK, r.status.ExitCode, r.status.Reason = false, 1, runErr.Error()
		runErr = errors.Join(runErr, s.writeStatus(r.status))
	}
	r.seq, r.check = s.seq, s.check
	err = s.save(func(c *checkpoint) {
		s.mark()
		c.Phase, c.Result, c.Status = phaseExecuted, result, &r.status
		if r.place == nil { // there is nothing to go on with
			c.Phase = phaseCollected
		}
	})
	if r.place == nil && err == nil {
		r.check, err = nil, s.dropCheckpoint()
	}
	if err = errors.Join(err, s.close()); err != nil {
		runErr = errors.Join(runErr, err)
		result.Success, result.ExitCode, result.ErrorMessage = false, 1, runErr.Error()
		r.status.OK, r.status.ExitCode, r.status.Reason = false, 1, runErr.Error()
		runErr = errors.Join(runErr, s.writeStatus(r.status))
	}
	return result, runErr
}

func (e *engine) writeRunCard(r *run, s *session) error {
	const name = "run_card.json"
	card := runCard{SessionID: s.id, Steps: []runCardStep{}}
	for _, step := range r.steps {
		if step.Status == StepSkipped {
			continue
		}
		c := runCardStep{
			StepID: step.StepID, Driver: step.Driver, RowsIn: step.RowsIn, RowsOut: step.RowsOut,
			DurationMS: step.DurationMS, Status: step.Status, Error: step.Error,
			Artifacts: []string{}, SpillPaths: []string{},
		}
		outputs := r.outputs[step.StepID]
		for _, key := range slices.Sorted(maps.Keys(outputs)) {
			switch spilled := outputs[key].Spilled; {
			case spilled == nil:
				c.HasDFInMemory = c.HasDFInMemory || outputs[key].Bytes > 0 // else nobody was to read it
			case filepath.IsLocal(filepath.FromSlash(spilled.Path)):
				c.SpillUsed, c.SpillPaths = true, append(c.SpillPaths, spilled.Path)
			}
		}
		if r.sealed != nil {
			for _, a := range r.sealed.artifacts {
				if folderOf(a.Path) == step.StepID {
					c.Artifacts = append(c.Artifacts, "artifacts/"+a.Path)
				}
			}
		}
		card.Steps = append(card.Steps, c)
	}
	if err := writeJSON(filepath.Join(r.ec.artifactsDir(), systemArtifacts, name), card); err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	s.event("artifact_created", map[string]any{"artifact_type": "run_card", "path": path.Join("artifacts", systemArtifacts, name)})
	return nil
}

// Collect implements [ExecutionAdapter].
func (e *engine) Collect(ctx context.Context, p *PreparedRun, ec *ExecutionContext) (*CollectedArtifacts, error) {
	if err := ec.validate(); err != nil {
		return nil, fmt.Errorf("remote: collect: %w", err)
	}
	e.mu.Lock()
	r := e.runs[ec.SessionID]
	e.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("remote: collect: %w: %s", ErrNotExecuted, ec.SessionID)
	}
	select {
	case <-r.executed:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := r.mu.lock(ctx); err != nil {
		return nil, err
	}
	defer r.mu.unlock()
	if r.collected != nil {
		c := *r.collected
		return &c, nil
	}
	if r.yielded {
		return nil, fmt.Errorf("remote: collect: %w", ErrOwnershipLost)
	}
	if r.removed && !r.fetched {
		return nil, fmt.Errorf("remote: %w: the run's place was removed before they were fetched", ErrCollect)
	}
	if ec.LogsDir != r.ec.LogsDir {
		return nil, fmt.Errorf("remote: collect: %w: the session was executed in %s, the context names %s", ErrInvalid, r.ec.LogsDir, ec.LogsDir)
	}
	s, err := openSession(ec)
	if err != nil {
		return nil, err
	}
	r.meter.enter(phaseCollect)
	defer r.meter.enter(phaseIdle)
	if r.lost() { // looked at now that nobody else writes it
		r.place, r.yielded = nil, true
		r.kept.leave(ErrOwnershipLost)
		return nil, errors.Join(fmt.Errorf("remote: collect: %w", ErrOwnershipLost), s.close())
	}
	s.seq, s.redact, s.meter = r.seq, r.secrets.redact, r.meter
	if r.check != nil {
		if err := s.useCheckpoint(r.check); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	ctx, stop := context.WithTimeoutCause(ctx, collectLease, fmt.Errorf("remote: %w: collecting took longer than %s", ErrTimeout, collectLease))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.mu.Lock()
	r.stopCollect = cancel
	if e.closed {
		cancel(ErrClosed)
	}
	e.mu.Unlock()
	s.out = startDelivery(ctx, ec, func(err error) { cancel(err) })
	ctx, span := ec.startSpan(r.meter.into(ctx), "osiris.collect", slog.String("osiris.session_id", s.id))
	untraced := r.meter.traceBy(ctx, ec.Tracer)
	got, err := e.collect(ctx, r, s)
	err = s.redacted(err)
	untraced()
	if err != nil { // else it was taken before the last events
		var receiptErr error
		got.Receipt, receiptErr = r.takeReceipt(s.path)
		err = errors.Join(err, receiptErr)
	}
	span.SetAttributes(got.Receipt.attributes()...)
	span.End(err)
	for _, endErr := range []error{s.stopDelivery(), s.flush()} {
		if err == nil {
			err = endErr
		}
	}
	st := r.status
	st.SessionCopied = err == nil
	if err != nil && st.OK {
		st.OK, st.ExitCode, st.Reason = false, 1, err.Error()
	}
	err = errors.Join(err, s.writeStatus(st))
	r.seq = s.seq
	if err == nil {
		if err = s.save(func(c *checkpoint) { c.Phase = phaseCollected }); err == nil {
			r.check, err = nil, s.dropCheckpoint()
		}
	} else { // what is written now stays
		err = errors.Join(err, s.save(func(*checkpoint) { s.mark() }))
	}
	err = errors.Join(err, s.close())
	if err != nil {
		return got, err
	}
	r.collected = got
	r.meter.forget()
	r.prepared, r.steps, r.outputs, r.sealed, r.artifacts, r.skipped = nil, nil, nil, nil, nil, nil // an adapter may serve runs for years
	c := *got
	return &c, nil
}

func (e *engine) collect(ctx context.Context, r *run, s *session) (*CollectedArtifacts, error) {
	start := time.Now()
	s.event("collect_start", nil)
	got := &CollectedArtifacts{
		EventsLog: s.path(eventsFile), MetricsLog: s.path(metricsFile), ExecutionLog: s.path(logFile),
		ArtifactsDir: r.ec.artifactsDir(), Artifacts: []Artifact{},
		Metadata: CollectMetadata{Adapter: e.name, SessionID: s.id, SandboxID: r.sandboxID, CollectedAt: start.UTC()},
	}
	fail := func(err error) (*CollectedArtifacts, error) {
		var failed *CollectError
		if !errors.As(err, &failed) {
			failed = &CollectError{Got: got, Err: err}
		}
		got.Status, err = CollectPartial, failed
		if writeErr := s.writeArtifacts(got, failed.Failed); writeErr != nil {
			err = errors.Join(err, writeErr)
		}
		s.event("collect_error", map[string]any{"error": err.Error()})
		return got, err
	}
	if r.fetched {
		got.Status = CollectComplete
		got.Artifacts, got.Skipped, got.SkippedMore = r.artifacts, r.skipped, r.skippedMore
	}
	if pl := r.place; pl != nil {
		witness := &witness{session: s}
		defer witness.stop()
		ctx := witness.watch(ctx)
		pl.lease.hold(ctx, s)
		if err := r.fetch(ctx, got, e.collecting(r), e.cfg.Verify, s); err != nil {
			pl.lease.release(ctx, s)
			return fail(err)
		}
		if err := s.saveFetched(r); err != nil {
			pl.lease.release(ctx, s)
			return fail(err)
		}
		pl.lease.drop()
		err := r.kill(ctx)
		witness.stop()
		if err != nil {
			err = fmt.Errorf("remote: %w: %w", errNotRemoved, err)
			s.event("collect_error", map[string]any{"error": err.Error()})
			return got, err
		}
		r.place = nil
	}
	total := int64(0)
	for _, a := range got.Artifacts {
		total += a.Size
	}
	s.metric("artifacts_bytes_total", float64(total), "bytes")
	s.metric("artifacts_files_total", float64(len(got.Artifacts)), "files")
	s.metric("artifacts_copy_ms", milliseconds(time.Since(start)), "ms")
	s.event("collect_complete", map[string]any{
		"artifacts_collected": len(got.Artifacts), "artifacts_skipped": len(got.Skipped) + got.SkippedMore,
	})
	receipt, err := r.takeReceipt(s.path)
	if err != nil {
		return got, err
	}
	got.Receipt = receipt
	s.event("run_receipt", map[string]any{"path": receiptFile, "receipt": receipt})
	now := time.Now().UTC()
	s.event("run_end", map[string]any{
		"duration_seconds": now.Sub(r.startedAt()).Seconds(), "end_time": now.Format(rpc.TimeFormat),
	})
	if err := s.flush(); err != nil {
		return got, err
	}
	got.Metadata = CollectMetadata{
		Adapter: e.name, SessionID: s.id, SandboxID: r.sandboxID, CollectedAt: now,
		ArtifactsCount: len(got.Artifacts), ArtifactsBytes: total,
		EventsSize: fileSize(got.EventsLog), MetricsSize: fileSize(got.MetricsLog), LogSize: fileSize(got.ExecutionLog),
	}
	return got, nil
}

// errNotRemoved: the artifacts are here, and the sandbox is, too.
var errNotRemoved = errors.New("the artifacts are here, but the sandbox was not removed")

// relistings is how often a collection asks for another list of artifacts.
const relistings = 2

// isRelisted reports whether a collection has failed since the files are not those
// that were listed.
func isRelisted(err error) bool {
	var c *CollectError
	return errors.As(err, &c) && len(c.Failed) > 0 && errors.Is(err, errNotAsSealed)
}

// fetch brings the artifacts home, once: whether the sandbox is still there is
// not known after a removal that failed.
func (r *run) fetch(ctx context.Context, got *CollectedArtifacts, limit collecting, verify Verify, s *session) error {
	if r.fetched {
		return nil
	}
	if !r.place.started {
		r.sealed = &sealed{} // nothing can have been left
	}
	if r.sealed == nil {
		sealed, err := seal(ctx, r.place, limit)
		if err != nil {
			return err
		}
		r.sealed = sealed
	}
	bring := func() error {
		return download(ctx, r.place, r.sealed, got, verify, s.logf, func() error {
			if err := placeOutputs(ctx, r.ec, got, r.status.OK); err != nil {
				return err
			}
			return s.writeArtifacts(got, nil)
		})
	}
	err := bring()
	for range relistings { // what has changed since it was listed is listed again
		if !isRelisted(err) || ctx.Err() != nil {
			break
		}
		s.logf(slog.LevelWarn, "artifacts have changed since they were listed: %v", err)
		list, sealErr := seal(ctx, r.place, limit)
		if sealErr != nil {
			break
		}
		r.sealed = list.withLost(r.sealed)
		err = bring()
	}
	if errors.Is(err, errNotAsSealed) || errors.Is(err, fs.ErrNotExist) {
		r.sealed = nil // it is another list by now
	}
	if err != nil {
		return err
	}
	r.fetched, r.artifacts, r.skipped, r.skippedMore = true, got.Artifacts, got.Skipped, got.SkippedMore
	return nil
}

func (r *run) startedAt() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, r.prepared.RunParams.StartedAt)
	return t
}

func fileSize(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return info.Size()
}

// remove kills what is left of a run, however it went.
func (e *engine) remove(ctx context.Context, sessionID string) error {
	e.mu.Lock()
	r := e.runs[sessionID]
	e.mu.Unlock()
	if r == nil {
		return nil
	}
	if err := r.mu.lock(ctx); err != nil {
		return fmt.Errorf("remote: remove sandbox: %w", err)
	}
	defer r.mu.unlock()
	if r.place == nil {
		return nil
	}
	if r.lost() {
		r.place, r.yielded = nil, true
		r.kept.leave(ErrOwnershipLost)
		return nil
	}
	if err := r.kill(ctx); err != nil {
		return fmt.Errorf("remote: %w", err)
	}
	r.place, r.removed = nil, true
	if r.prepared != nil && !r.prepared.Plan.hasStep(stagingDir) { // nobody can go on with it
		_ = os.RemoveAll(filepath.Join(r.ec.artifactsDir(), stagingDir))
	}
	if r.prepared != nil && r.receipt != nil {
		_, _ = r.takeReceipt(r.path) // which is there without this, too
	}
	if c := r.check; c != nil {
		r.check = nil
		return c.drop(r.ec.LogsDir)
	}
	return nil
}

// kill removes the run's place, and notes what was seen of that.
func (r *run) kill(ctx context.Context) error {
	begin := time.Now()
	defer r.meter.within(phaseKill)()
	err := killSurely(ctx, r.place.sandbox, cleanupGrace)
	if err == nil {
		r.meter.paused(time.Now(), true)
	}
	r.removal = &StopStage{Stage: StageSandbox, DurationMS: milliseconds(time.Since(begin)), Gone: err == nil}
	if err != nil {
		r.removal.Left, r.removal.Error = []string{"sandbox " + r.sandboxID}, err.Error()
	} else {
		r.kept.leave(errCollected)
	}
	return err
}

// path is a file in the run's session directory.
func (r *run) path(elem ...string) string {
	return filepath.Join(append([]string{r.ec.LogsDir}, elem...)...)
}

// lastReceipt returns the last receipt of a run; nil when there is none.
func (e *engine) lastReceipt(sessionID string) *Receipt {
	e.mu.Lock()
	r := e.runs[sessionID]
	e.mu.Unlock()
	if r == nil || r.mu.lock(context.Background()) != nil {
		return nil
	}
	defer r.mu.unlock()
	return r.receipt
}

// removal returns what was seen of the removal of a run's place; nil when it
// was not tried.
func (e *engine) removal(sessionID string) *StopStage {
	e.mu.Lock()
	r := e.runs[sessionID]
	e.mu.Unlock()
	if r == nil || r.mu.lock(context.Background()) != nil {
		return nil
	}
	defer r.mu.unlock()
	return r.removal
}

// killSurely removes a sandbox, in as many tries as there is time for.
func killSurely(ctx context.Context, sb Sandbox, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		try, cancel := context.WithTimeout(ctx, killPatience)
		err := sb.Kill(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("remove sandbox %s: %w", sb.Info().ID, err)
		}
	}
}

// Close stops what is running, removes what was never collected, and waits
// for both. The adapter cannot be used after it. Closing again is no error.
func (e *engine) Close() error {
	e.mu.Lock()
	e.closed = true
	runs := make(map[string]*run, len(e.runs))
	for id, r := range e.runs {
		runs[id] = r
	}
	e.mu.Unlock()
	for _, r := range runs {
		r.cancel(ErrClosed)
		e.mu.Lock()
		if r.stopCollect != nil {
			r.stopCollect(ErrClosed)
		}
		e.mu.Unlock()
	}
	var removing errgroup.Group
	removing.SetLimit(32)
	var mu sync.Mutex
	var errs []error
	for id, r := range runs {
		removing.Go(func() error {
			<-r.executed
			ctx, cancel := context.WithTimeout(context.Background(), cleanupGrace)
			defer cancel()
			if err := e.remove(ctx, id); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = removing.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// mutex is a lock that can be waited for with a context.
type mutex chan struct{}

func (m mutex) lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m mutex) unlock() { <-m }

func newRun(ec *ExecutionContext, p *PreparedRun, cancel context.CancelCauseFunc) *run {
	return &run{ec: ec, prepared: p, cancel: cancel, executed: make(chan struct{}), mu: make(mutex, 1)}
}

// runFolder names a run's folder: the session, and a token that keeps two runs
// of the same name apart.
func runFolder(sessionID string) string {
	token := make([]byte, 4)
	rand.Read(token)
	return sessionID + "-" + hex.EncodeToString(token)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
