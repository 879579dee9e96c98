package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
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
// what there is is collected, and the sandbox is gone when Run returns.
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
	if collectErr != nil {
		if r, ok := a.(interface {
			remove(ctx context.Context, sessionID string) error
		}); ok {
			collectErr = errors.Join(collectErr, r.remove(after.start(), ec.SessionID))
		}
		if result.Success {
			result.Success, result.ExitCode, result.ErrorMessage = false, 1, collectErr.Error()
		}
	}
	return result, files, errors.Join(err, collectErr)
}

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
type E2BTransparentProxy struct{ engine }

var _ ExecutionAdapter = (*E2BTransparentProxy)(nil)

// NewE2BTransparentProxy returns an adapter that makes a sandbox for every
// run. The caller should Close it. An error matches [ErrInvalid].
func NewE2BTransparentProxy(cfg Config) (*E2BTransparentProxy, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.OpenSandbox == nil {
		return nil, fmt.Errorf("remote: %w: Config.OpenSandbox is nil; this version has no client for E2B's cloud yet, use mock.Provider's OpenSandbox", ErrInvalid)
	}
	if cfg.InProcess {
		return nil, fmt.Errorf("remote: %w: Config.InProcess is for LocalAdapter", ErrInvalid)
	}
	if !path.IsAbs(cfg.sandboxRoot()) {
		return nil, fmt.Errorf("remote: %w: Config.Root %q is not an absolute path", ErrInvalid, cfg.Root)
	}
	a := &E2BTransparentProxy{}
	a.engine = engine{cfg: cfg, name: "e2b_transparent_proxy", settle: a.settle}
	return a, nil
}

// settle makes a sandbox and sends the worker and the input files.
func (a *E2BTransparentProxy) settle(ctx context.Context, p *PreparedRun, s *session) (*place, error) {
	start := time.Now()
	sb, err := a.cfg.OpenSandbox(ctx, p.SandboxConfig)
	if err != nil {
		return nil, fmt.Errorf("remote: create sandbox: %w", err)
	}
	info := sb.Info()
	s.event("sandbox_created", map[string]any{
		"sandbox_id": info.ID, "template": info.Template, "duration_ms": milliseconds(time.Since(start)),
	})
	root := a.cfg.sandboxRoot()
	dir := path.Join(root, runFolder(s.id))
	pl := &place{sandbox: sb, program: info.WorkerPath, dir: dir, base: path.Join(dir, "base"), files: make(map[string]string)}

	start = time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	sent := make([]int64, len(p.InputFiles))
	if pl.program == "" {
		pl.program = path.Join(root, "bin", "osiris-worker-"+strings.TrimPrefix(path.Base(dir), s.id+"-"))
		group.Go(func() error { return a.uploadWorker(ctx, sb, pl.program) })
	}
	ec := a.contextOf(p)
	for i, name := range p.InputFiles {
		to := path.Join(pl.base, filepath.ToSlash(name))
		if !filepath.IsLocal(name) {
			to = path.Join(dir, "inputs", fmt.Sprint(i), filepath.Base(name))
		}
		pl.files[name] = to
		group.Go(func() error {
			n, err := upload(ctx, sb, hostPath(ec, name), to)
			sent[i] = n
			if err != nil {
				return fmt.Errorf("remote: upload %s: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return pl, err
	}
	total := int64(0)
	for _, n := range sent {
		total += n
	}
	s.event("sandbox_inputs_uploaded", map[string]any{
		"files": len(sent), "bytes": total, "duration_ms": milliseconds(time.Since(start)),
	})
	return pl, nil
}

// contextOf returns the context that a run is executed with.
func (e *engine) contextOf(p *PreparedRun) *ExecutionContext {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[p.RunParams.SessionID].ec
}

// uploadWorker sends the worker program.
func (a *E2BTransparentProxy) uploadWorker(ctx context.Context, sb Sandbox, to string) error {
	name, err := a.cfg.workerPath()
	if err == nil {
		_, err = upload(ctx, sb, name, to)
	}
	if err != nil {
		return fmt.Errorf("remote: upload worker: %w", err)
	}
	return nil
}

// workerPath returns the worker program on this machine.
func (c Config) workerPath() (string, error) {
	if c.WorkerPath != "" {
		return filepath.Abs(c.WorkerPath)
	}
	return os.Executable()
}
