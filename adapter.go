package remote

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
)

// ExecutionAdapter runs a manifest somewhere. One adapter serves any number
// of runs, also at the same time; a run is known by its session id.
type ExecutionAdapter interface {
	// Prepare checks a manifest and makes the run that Execute takes. It
	// starts nothing and connects to nothing. Errors match [ErrInvalid],
	// [ErrUnknownDriver], or fs.ErrNotExist for a file that a config names.
	Prepare(ctx context.Context, m *Manifest, ec *ExecutionContext) (*PreparedRun, error)

	// Execute runs a prepared run. While it does, events and metrics reach
	// the session directory and the context's sinks.
	//
	// The error is nil exactly when the run succeeded. The result is nil when
	// nothing was started; otherwise it tells of every step, also beside an
	// error. A failed step is a [*StepError]. When ctx ends, running steps are
	// asked to stop, then the worker is killed; the error matches ctx's.
	//
	// A session can be executed once: [ErrAlreadyExecuted].
	Execute(ctx context.Context, p *PreparedRun, ec *ExecutionContext) (*ExecResult, error)

	// Collect brings a run's artifacts home, verifies them, and removes the
	// place it ran in. It waits for an Execute that is still running, and
	// works after one that failed. It may be repeated: after a success it
	// returns the same again, after an error it tries again.
	Collect(ctx context.Context, p *PreparedRun, ec *ExecutionContext) (*CollectedArtifacts, error)
}

// collectGrace bounds what Run does after ctx has ended.
const collectGrace = time.Minute

// Run prepares, executes and collects, and leaves nothing behind but the
// session directory, whatever happens: also when the run fails or ctx ends,
// what there is is collected, and the sandbox is gone when Run returns. (Of an
// adapter that is not this package's, when Collect has succeeded: it has nothing
// else to end a run with.)
//
// The results are what Execute and Collect returned, either may be nil; the
// verdict of the result covers the collection, too.
func Run(ctx context.Context, a ExecutionAdapter, m *Manifest, ec *ExecutionContext) (*ExecResult, *CollectedArtifacts, error) {
	p, err := a.Prepare(ctx, m, ec)
	if err != nil {
		return nil, nil, err
	}
	result, err := a.Execute(ctx, p, ec)
	if result == nil {
		return nil, nil, err // nothing was started
	}
	after := &lateContext{Context: context.WithoutCancel(ctx)}
	defer after.cancel()
	collectCtx := ctx
	if ctx.Err() != nil {
		collectCtx = after.start()
	}
	files, collectErr := a.Collect(collectCtx, p, ec)
	if collectErr != nil && collectCtx == ctx && ctx.Err() != nil {
		files, collectErr = a.Collect(after.start(), p, ec)
	}
	if own, ok := a.(ownAdapter); ok {
		if collectErr != nil {
			removeErr := own.remove(after.start(), ec.SessionID)
			if errors.Is(collectErr, errNotRemoved) && removeErr == nil { // now all is done
				files, collectErr = a.Collect(after.start(), p, ec)
			} else {
				collectErr = errors.Join(collectErr, removeErr)
			}
		}
		if stage := own.removal(ec.SessionID); stage != nil && len(result.Stopped) > 0 {
			result.Stopped = append(result.Stopped, *stage)
		}
		if receipt := own.lastReceipt(ec.SessionID); receipt != nil {
			result.Receipt = receipt
			if files != nil {
				files.Receipt = receipt
			}
		}
	}
	if collectErr != nil && result.Success {
		result.Success, result.ExitCode, result.ErrorMessage = false, 1, collectErr.Error()
	}
	return result, files, errors.Join(err, collectErr)
}

// ownAdapter is an adapter of this package, of which Run knows more.
type ownAdapter interface {
	remove(ctx context.Context, sessionID string) error
	removal(sessionID string) *StopStage
	lastReceipt(sessionID string) *Receipt
}

var (
	_ ownAdapter = (*LocalAdapter)(nil)
	_ ownAdapter = (*E2BTransparentProxy)(nil)
)

// lateContext is a context whose time starts when it is first needed.
type lateContext struct {
	context.Context
	ctx  context.Context
	stop context.CancelFunc
}

func (l *lateContext) start() context.Context {
	if l.ctx == nil {
		l.ctx, l.stop = context.WithTimeout(l.Context, collectGrace)
	}
	return l.ctx
}

func (l *lateContext) cancel() {
	if l.stop != nil {
		l.stop()
	}
}

// E2BTransparentProxy runs manifests in sandboxes, as if they ran in this
// process.
type E2BTransparentProxy struct {
	engine
	open     func(context.Context, SandboxConfig, *egressPlan) (Sandbox, error)
	client   *e2b.Client // nil with Config.OpenSandbox
	owner    string      // names this adapter in its sandboxes' metadata
	programs programs
	starts   *startBook // what its runs' starts have taken; nil keeps nothing

	templates     templates     // that its runs have derived
	startPatience time.Duration // with builds that others have asked for; zero is the usual one, tests have less
}

var _ ExecutionAdapter = (*E2BTransparentProxy)(nil)

// NewE2BTransparentProxy returns an adapter that makes a sandbox for every
// run. It connects to nothing yet. The caller should Close it. An error matches
// [ErrInvalid], and [e2b.ErrAuthentication] when there is no usable API key.
func NewE2BTransparentProxy(cfg Config) (*E2BTransparentProxy, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.InProcess {
		return nil, fmt.Errorf("remote: %w: Config.InProcess is for LocalAdapter", ErrInvalid)
	}
	if !path.IsAbs(cfg.sandboxRoot()) {
		return nil, fmt.Errorf("remote: %w: Config.Root %q is not an absolute path", ErrInvalid, cfg.Root)
	}
	a := &E2BTransparentProxy{owner: newOwner()}
	if open := cfg.OpenSandbox; open != nil {
		a.open = func(ctx context.Context, cfg SandboxConfig, _ *egressPlan) (Sandbox, error) { return open(ctx, cfg) }
	} else {
		client, err := cfg.e2bClient()
		if err != nil {
			return nil, err
		}
		if _, err := cfg.workerPath(); err != nil {
			return nil, errors.Join(fmt.Errorf("remote: %w", err), client.Close())
		}
		a.client, a.open = client, openE2B(client, a.owner, isNear(cfg.sandboxURL()))
	}
	a.engine = engine{cfg: cfg, name: "e2b_transparent_proxy", ships: true, attachable: a.client != nil, settle: a.settle}
	if a.client != nil {
		a.starts, a.noteStart = newStartBook(cfg.wheelhouseDir()), a.keepStart
	}
	return a, nil
}

// String names the adapter, and shows nothing of its Config, which holds a key.
func (a *E2BTransparentProxy) String() string { return "remote.E2BTransparentProxy" }

// GoString is String.
func (a *E2BTransparentProxy) GoString() string { return a.String() }

// Close stops what is running, removes what was never collected, and waits
// for both. The adapter cannot be used after it. Closing again is no error.
func (a *E2BTransparentProxy) Close() error {
	err := a.engine.Close()
	if a.client != nil {
		err = errors.Join(err, a.client.Close())
	}
	return err
}

// settle makes a sandbox and sends the worker and the input files. What takes
// time here happens while E2B makes the sandbox.
func (a *E2BTransparentProxy) settle(ctx context.Context, p *PreparedRun, s *session, plan *egressPlan) (*place, error) {
	if a.cfg.Drivers == nil {
		s.logf(slog.LevelWarn, "Config.Drivers is nil: files that configs name are not found here, and not sent to the sandbox")
	}
	root := a.cfg.sandboxRoot()
	dir := path.Join(root, runFolder(s.id))
	base := path.Join(dir, "base")
	var (
		sb     Sandbox
		inputs []input
	)
	var (
		held    *lease
		network *networkWatch
		derived *derivation // nil where the sandbox is made from the run's template as it is
	)
	group, groupCtx := errgroup.WithContext(ctx)
	cfg, err := s.intend(p.SandboxConfig, dir, base)
	if err != nil {
		return nil, err
	}
	group.Go(func() (err error) {
		start := time.Now()
		if sb, derived, err = a.openFitting(groupCtx, cfg, plan, p, s); err != nil {
			return err
		}
		held = newLease(sb, p.SandboxConfig.lease())
		held.hold(ctx, s)
		info := sb.Info()
		s.meter.runs(info)
		s.meter.enter(phaseUpload) // whose files are read meanwhile, or now
		if err := s.save(func(c *checkpoint) { c.last().ID, c.last().Template = info.ID, info.Template }); err != nil {
			return err
		}
		s.event("sandbox_created", map[string]any{
			"sandbox_id": info.ID, "template": info.Template, "duration_ms": milliseconds(time.Since(start)),
		})
		if a.cfg.MaxCost > 0 && info.CPU <= 0 && info.MemoryGB <= 0 {
			return fmt.Errorf("remote: %w: %w", ErrUnsupported, errSizeUnknown)
		}
		plan.tellNetwork(s, sb)
		network = plan.watch(ctx, s, sb)
		return nil
	})
	group.Go(func() (err error) {
		inputs, err = findInputs(groupCtx, a.contextOf(p), p.InputFiles, dir, base)
		return err
	})
	var sources []input
	remove := func() {}
	group.Go(func() error {
		found, done, err := packSources(groupCtx, a.contextOf(p), p, dir)
		if err == nil {
			sources, remove = found, done
		}
		return err
	})
	err = group.Wait()
	defer func() { remove() }()
	if sb == nil {
		return nil, err
	}
	pl := &place{sandbox: sb, lease: held, network: network, dir: dir, base: base, files: make(map[string]string)}
	if err != nil {
		return pl, err
	}
	if derived != nil && len(derived.Packages) > 0 {
		pl.cache = derivedCache
	}
	for _, in := range inputs {
		pl.files[in.name] = in.sum.Path
		pl.sent = append(pl.sent, in.sum)
	}
	for _, in := range sources {
		pl.sent = append(pl.sent, in.sum)
	}
	if err := a.send(ctx, pl, append(inputs, sources...), p, s, derived); err != nil {
		return pl, err
	}
	return pl, s.save(func(c *checkpoint) {
		rec := c.last()
		rec.Program, rec.Inputs, rec.Cache = pl.program, pl.files, pl.cache
	})
}

// intend writes down that a sandbox will be asked for, and returns what to ask
// for: with a mark by which it is found if its maker cannot tell any more.
func (s *session) intend(cfg SandboxConfig, dir, base string) (SandboxConfig, error) {
	if s.check == nil {
		return cfg, nil
	}
	rec := sandboxRecord{Nonce: rand.Text(), Asked: time.Now().UTC(), Dir: dir, Base: base}
	cfg.Metadata = maps.Clone(cfg.Metadata)
	if cfg.Metadata == nil {
		cfg.Metadata = make(map[string]string)
	}
	cfg.Metadata[e2b.NonceKey] = rec.Nonce
	return cfg, s.save(func(c *checkpoint) { c.Sandboxes = append(c.Sandboxes, rec) })
}

// createError is that of a sandbox that was not made. Those of E2B say so
// themselves.
func createError(err error) error {
	if errors.As(err, new(*QuotaExceededError)) || errors.As(err, new(*TimeoutError)) || errors.As(err, new(*SandboxError)) {
		return fmt.Errorf("remote: %w", err)
	}
	return fmt.Errorf("remote: create sandbox: %w", err)
}

// limitedLife is a sandbox whose life the account may limit.
type limitedLife interface {
	// checkLife refuses a sandbox that cannot live as long as the run needs it.
	checkLife(ctx context.Context, cfg SandboxConfig) error
}

// send uploads the worker, unless it is in the template, and the input files.
// Meanwhile it is asked whether the account allows the run its time.
func (a *E2BTransparentProxy) send(ctx context.Context, pl *place, inputs []input, p *PreparedRun, s *session, d *derivation) error {
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	if sb, ok := pl.sandbox.(limitedLife); ok {
		group.Go(func() error { return sb.checkLife(ctx, p.SandboxConfig) })
	}
	if pl.program = pl.sandbox.Info().WorkerPath; pl.program == "" {
		group.Go(func() error {
			sum, err := a.sendWorker(ctx, pl.sandbox, d)
			pl.program = sum.Path
			if err != nil {
				return fmt.Errorf("remote: upload worker: %w", err)
			}
			pl.worker = &sum
			return nil
		})
	}
	var tables *sentTables
	var took time.Duration
	group.Go(func() (err error) {
		tables, err = a.sendTables(ctx, pl.sandbox, p, a.contextOf(p), tablesDir(a.cfg.sandboxRoot()), path.Join)
		took = time.Since(start)
		return err
	})
	var sent int64
	group.Go(func() (err error) {
		sent, err = sendInputs(ctx, pl.sandbox, inputs)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	s.event("sandbox_inputs_uploaded", map[string]any{
		"files": len(inputs), "bytes": sent, "duration_ms": milliseconds(time.Since(start)),
	})
	tables.tell(s, took)
	return tables.place(pl, s, true)
}

// contextOf returns the context that a run is executed with.
func (e *engine) contextOf(p *PreparedRun) *ExecutionContext {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[p.RunParams.SessionID].ec
}

// sendWorker sends the worker program, if it suits the sandbox and is not there,
// and returns what must be there then.
func (a *E2BTransparentProxy) sendWorker(ctx context.Context, sb Sandbox, d *derivation) (rpc.FileSum, error) {
	if d != nil {
		to := d.program()
		if size, err := sb.Size(ctx, to); err == nil && size == d.worker.size {
			return rpc.FileSum{Path: to, Size: size, XXH3: d.worker.xxh3}, nil
		}
	}
	name, err := a.cfg.workerPath()
	if err != nil {
		return rpc.FileSum{}, err
	}
	w, err := a.programs.load(ctx, name)
	if err != nil {
		return rpc.FileSum{}, err
	}
	if err := w.check(ctx, sb); err != nil {
		return rpc.FileSum{}, err
	}
	to, err := w.send(ctx, sb, a.cfg.sandboxRoot())
	return rpc.FileSum{Path: to, Size: w.size, XXH3: w.xxh3}, err
}
