package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
)

// Attach goes on with a run whose host has died: with what the session
// directory holds it finds the sandbox, takes the worker over, and does what
// Execute would have done, from where that was. No step that has finished runs
// again, and none that is running is disturbed. The session directory becomes
// what it would have been. Then call Collect.
//
// The context is as for Execute; an empty SessionID, LogsDir or BasePath is
// filled in as the dead host had it. Sinks hear the items after the last
// checkpoint once more, by the same sequence numbers. ArtifactsDir and Outputs are
// not kept, and must be given again. The results are those of Prepare and
// Execute: where the result is nil there is nothing to collect. The run's
// timeout stands still while it has no host.
//
// When the worker had not been heard yet, what was made is removed and the run
// begins anew. A run that has ended and was not collected is only picked up for
// Collect. When the sandbox is gone, as its lease ended (at most [Config.Lease]
// after the host's death), the error matches [ErrSandboxGone], and the session keeps
// everything that was saved; a step that was running counts as failed, and
// sinks do not hear again what was saved. When it is not known whether the
// sandbox is gone, as without a network or with a wrong key, the result is nil,
// nothing has changed, and Attach may be called again.
//
// The error matches [ErrAlreadyExecuted] when all was done, [ErrNotExecuted]
// when nothing was begun, [ErrInvalid] while another process on this machine
// writes the session, and [ErrOwnershipLost] when another host attaches later.
func (a *E2BTransparentProxy) Attach(ctx context.Context, sessionDir string, ec *ExecutionContext) (*PreparedRun, *ExecResult, error) {
	if a.client == nil {
		return nil, nil, fmt.Errorf("remote: attach: %w: sandboxes of Config.OpenSandbox cannot be found again", ErrUnsupported)
	}
	c, _, err := readCheckpoint(sessionDir)
	if err != nil {
		return nil, nil, attachError(sessionDir, err)
	}
	if err := c.complete(ec, sessionDir); err != nil {
		return nil, nil, fmt.Errorf("remote: attach: %w", err)
	}
	s, err := openSession(ec)
	if err != nil {
		return nil, nil, err
	}
	// Read again, now that nobody else writes it.
	c, p, err := readCheckpoint(sessionDir)
	switch {
	case err != nil:
		err = attachError(sessionDir, err)
	case c.Phase == phaseCollected:
		err = errors.Join(fmt.Errorf("remote: attach: %w: %s was collected", ErrAlreadyExecuted, sessionDir), dropCheckpoint(sessionDir))
	case c.Adapter != a.name || c.SessionID != ec.SessionID:
		err = fmt.Errorf("remote: attach: %w: %s is session %q of the adapter %q", ErrInvalid, sessionDir, c.SessionID, c.Adapter)
	}
	if err == nil {
		err = p.validate()
	}
	if err == nil {
		err = a.refuses(ec.SessionID) // before anything is changed
	}
	if err == nil && c.Phase != phaseCreating { // where that is seen to with all else
		err = a.abandonCreates(c)
	}
	if err != nil {
		return nil, nil, errors.Join(err, s.close())
	}
	s.tidy(ec)
	known := a.newSecrets()
	switch c.Phase {
	case phaseCreating:
		result, err := a.restart(ctx, p, ec, s, c, known)
		return p, result, err
	case phaseRunning, phaseFinishing:
		result, err := a.rejoin(ctx, p, ec, s, c, known)
		return p, result, err
	}
	result, err := a.pickUp(ctx, p, ec, s, c, known)
	return p, result, err
}

// tidy removes the files that a dead host was writing. Their names are those of
// os.CreateTemp and os.MkdirTemp in this package.
func (s *session) tidy(ec *ExecutionContext) {
	for _, left := range [...]struct{ dir, prefix string }{
		{ec.LogsDir, ".tmp-"},
		{s.path("cfg"), ".tmp-"},
		{ec.artifactsDir(), ".collect-"},
		{filepath.Join(ec.artifactsDir(), systemArtifacts), ".tmp-"},
	} {
		entries, _ := os.ReadDir(left.dir) // where there is none, nothing was left
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), left.prefix) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(left.dir, e.Name())); err != nil {
				s.logf(slog.LevelWarn, "what the host before was writing: %v", err)
			}
		}
	}
}

// attachError says why there is nothing to attach to.
func attachError(dir string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remote: attach: %w", err)
	}
	if _, statErr := os.Stat(filepath.Join(dir, statusFile)); statErr == nil {
		return fmt.Errorf("remote: attach: %w: %s holds a finished session", ErrAlreadyExecuted, dir)
	}
	return fmt.Errorf("remote: attach: %w: %s holds no run of a sandbox that was begun (there is no %s)", ErrNotExecuted, dir, checkpointFile)
}

// complete fills in what a context leaves to the dead host's.
func (c *checkpoint) complete(ec *ExecutionContext, dir string) error {
	if ec != nil {
		ec.SessionID = cmp.Or(ec.SessionID, c.SessionID)
		ec.LogsDir = cmp.Or(ec.LogsDir, dir)
		ec.BasePath = cmp.Or(ec.BasePath, c.BasePath)
	}
	if err := ec.validate(); err != nil {
		return err
	}
	if !samePath(ec.LogsDir, dir) {
		return fmt.Errorf("%w: the session is in %s, the context names %s", ErrInvalid, dir, ec.LogsDir)
	}
	return nil
}

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

// restart begins a run anew whose worker was never heard, and removes what its
// dead host may have made.
func (a *E2BTransparentProxy) restart(ctx context.Context, p *PreparedRun, ec *ExecutionContext, s *session, c *checkpoint, known *runSecrets) (*ExecResult, error) {
	err := known.lookup(a.cfg, p)
	if err == nil {
		err = a.checkInputs(p, ec)
	}
	if err == nil {
		err = a.abandon(ctx, c)
	}
	if err == nil {
		_, err = s.rewind(&checkpoint{})
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return a.launch(ctx, p, ec, launch{
		started: time.Now(),
		secrets: known,
		session: s,
		work: func(ctx context.Context, r *run, s *session) error {
			r.creates = c.creates()
			return a.execute(ctx, r, s)
		},
	})
}

// creates are those that were not answered as far as is known. What they have
// made is looked for by every host until the run is over: the one that began
// with that may have died.
func (c *checkpoint) creates() []sandboxRecord {
	return slices.DeleteFunc(slices.Clone(c.Sandboxes), func(rec sandboxRecord) bool { return rec.ID != "" })
}

// abandonCreates removes what creates have made that nobody waits for.
func (a *E2BTransparentProxy) abandonCreates(c *checkpoint) error {
	for _, rec := range c.creates() {
		if err := a.client.Abandon(rec.Nonce, rec.Asked); err != nil {
			return fmt.Errorf("remote: attach: %w", err)
		}
	}
	return nil
}

// abandon removes the sandboxes of a dead host.
func (a *E2BTransparentProxy) abandon(ctx context.Context, c *checkpoint) error {
	if err := a.abandonCreates(c); err != nil {
		return err
	}
	for _, rec := range c.Sandboxes {
		if rec.ID == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, cleanupGrace)
		err := a.client.Kill(ctx, rec.ID)
		cancel()
		if err != nil {
			return fmt.Errorf("remote: attach: %w", err)
		}
	}
	return nil
}

// rejoin goes on with a run whose worker was heard. The sandbox is looked for
// before anything is changed: one that cannot be reached now may be later, and
// only one that is there tells again what is behind the checkpoint.
func (a *E2BTransparentProxy) rejoin(ctx context.Context, p *PreparedRun, ec *ExecutionContext, s *session, c *checkpoint, known *runSecrets) (*ExecResult, error) {
	// The run's own time may be over, and the sandbox is to be found all the
	// same: ctx is the caller's. What goes wrong here is no fault of the run.
	err := s.whole(c)
	var found *foundWorker
	if err == nil {
		found, err = a.findWorker(ctx, c, p.SandboxConfig)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	defer found.letGo()
	if pl := found.place; pl != nil { // for a worker that is started again
		if pl.tables, err = savedTables(ec.LogsDir, p); err != nil {
			s.logf(slog.LevelWarn, "a worker that is started again would have no tables of the host: %v", err)
		}
		pl.sent = tableSums(pl.tables)
	}
	var answers *stepAnswers
	if found.gone != nil {
		answers, err = s.keepAll(c)
	} else {
		answers, err = s.rewind(c)
	}
	built := time.Duration(0) // which the run's time stood still for
	if err == nil {
		c.Epoch++
		if c.Meter != nil {
			built = max(0, c.Meter.Phases.Build)
		}
		c.IdleSeconds += max(0, time.Since(c.SavedAt).Seconds())
		s.meter = a.resumeMeter(c, p, found.gone)
		err = s.useCheckpoint(c) // before the worker hears of it
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return a.launch(ctx, p, ec, launch{
		started: c.StartedAt,
		idle:    time.Duration(c.IdleSeconds*float64(time.Second)) + built,
		meter:   s.meter,
		secrets: known,
		session: s,
		work: func(ctx context.Context, r *run, s *session) error {
			return a.takeOver(ctx, r, s, c, found, answers)
		},
	})
}

// foundWorker is what there is of the worker of a dead host.
type foundWorker struct {
	place *place
	proc  Process // nil when the sandbox is gone, or it is not known which one it is
	gone  error   // the sandbox is
}

// findWorker looks for the worker of a dead host. Its error says nothing of the
// worker.
func (a *E2BTransparentProxy) findWorker(ctx context.Context, c *checkpoint, cfg SandboxConfig) (*foundWorker, error) {
	var found foundWorker
	pl, err := a.find(ctx, c, cfg)
	if err == nil {
		err = a.checkRequired(ctx, pl)
	}
	if err == nil && !c.Restarting {
		found.proc, err = attachProcess(ctx, pl.sandbox, c.last().PID)
	}
	switch {
	case errors.Is(err, ErrSandboxGone):
		return &foundWorker{gone: err}, nil
	case err != nil:
		return nil, err
	}
	found.place = pl
	return &found, nil
}

// letGo leaves a process that nobody has taken.
func (f *foundWorker) letGo() {
	if p, ok := f.proc.(io.Closer); ok {
		p.Close()
	}
}

// take returns the process, for who looks after it from now on.
func (f *foundWorker) take() Process {
	proc := f.proc
	f.proc = nil
	return proc
}

// takeOver is execute, from a checkpoint on.
func (a *E2BTransparentProxy) takeOver(ctx context.Context, r *run, s *session, c *checkpoint, found *foundWorker, answers *stepAnswers) error {
	r.sandboxID, r.steps = c.last().ID, r.replay(answers, nil, nil)
	if found.gone != nil {
		r.removed = true
		return r.end(s, c.last().Cursor, answers, found.gone)
	}
	pl := found.place
	pl.plan = r.prepared.Plan
	r.place = pl
	pl.lease.hold(ctx, s)
	if c.Restarting { // two workers would spoil each other's journal
		return r.end(s, c.last().Cursor, answers, &WorkerCrashError{Verdict: VerdictUnknown, Reason: "the host died while it started the worker again"})
	}
	s.logf(slog.LevelInfo, "this is host %d of the run, which goes on with it from %d in the journal", c.Epoch, c.last().Cursor)
	proc := found.take()
	// The worker has them already; another one may need them.
	if err := r.secrets.complete(ctx, a.cfg, r.prepared); err != nil {
		s.logf(slog.LevelWarn, "this host does not know all secrets of the run: %v", err)
	}
	pl.network = a.keepNetwork(ctx, r, s, pl.sandbox)
	l := redial(ctx, pl, s, newTracer(s), a.cfg.MaxJournal, proc, c.last().Cursor, answers)
	defer l.close()
	l.watchOver(a.cfg.heartbeat())
	if err := l.startMarking(); err != nil {
		return err
	}
	cpus := 1
	hello, err := a.handshake(ctx, l, r.prepared, r.place, r.secrets)
	switch {
	case err == nil:
		cpus = hello.CPUs
	case errors.Is(err, ErrOwnershipLost):
		return err
	case !l.isDown() && errors.Is(err, ErrTimeout) && ctx.Err() == nil:
		// It has answered another host before: that it does not now has a cause.
		o := l.observe()
		return o.diagnose().crash(o, nil)
	case !l.isDown():
		return err
	default: // it has ended, and what it has answered until then is here
		if l.ended() { // no step runs any more
			cpus = len(r.prepared.Plan.Steps)
		}
	}
	return a.work(ctx, r, l, cpus)
}

// find connects to the sandbox of a dead host, and wakes it if it is paused.
func (a *E2BTransparentProxy) find(ctx context.Context, c *checkpoint, cfg SandboxConfig) (*place, error) {
	rec := c.last()
	sb, err := a.connect(ctx, rec.ID, cfg.lease())
	if err != nil {
		return nil, fmt.Errorf("remote: attach: %w", err)
	}
	box := newE2BSandbox(sb, cfg.lease(), isNear(a.cfg.sandboxURL()))
	box.info.Template = rec.Template
	return &place{
		sandbox: box, lease: newLease(box, cfg.lease()), program: rec.Program, dir: rec.Dir, base: rec.Base, files: rec.Inputs, cache: rec.Cache, started: rec.PID != 0,
	}, nil
}

// connect waits for a sandbox to be one thing or the other: one that is being
// killed, or paused, is neither here nor gone.
func (a *E2BTransparentProxy) connect(ctx context.Context, id string, lease time.Duration) (*e2b.Sandbox, error) {
	limited, cancel := context.WithTimeout(ctx, cleanupGrace)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		sb, err := a.client.Connect(ctx, id, lease)
		if err == nil || !errors.Is(err, e2b.ErrConflict) {
			return sb, err
		}
		select {
		case <-time.After(wait):
		case <-limited.Done():
			return nil, err
		}
	}
}

// attachProcess connects to a process of a sandbox. One that has ended is no
// error: it is one that nothing is known of.
func attachProcess(ctx context.Context, sb Sandbox, pid int) (Process, error) {
	box, ok := sb.(attacher)
	if !ok {
		return nil, fmt.Errorf("remote: attach: %w", ErrUnsupported)
	}
	proc, err := box.attach(ctx, pid)
	if errors.Is(err, errExitUnknown) {
		return lostProcess(pid), nil
	}
	if err != nil {
		return nil, fmt.Errorf("remote: attach: %w", err)
	}
	return proc, nil
}

// lostProcess is one that has ended while nobody looked.
type lostProcess int

func (p lostProcess) PID() int                             { return int(p) }
func (p lostProcess) Stdin() io.WriteCloser                { return lostInput{} }
func (p lostProcess) Stdout() io.ReadCloser                { return io.NopCloser(eof{}) }
func (p lostProcess) Signal(context.Context, Signal) error { return nil }

func (p lostProcess) Wait(context.Context) (ExitStatus, error) {
	return ExitStatus{}, errExitUnknown
}

type lostInput struct{}

func (lostInput) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (lostInput) Close() error              { return nil }

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// isDown reports whether nothing will come from the worker any more.
func (l *link) isDown() bool {
	select {
	case <-l.down:
		return true
	default:
		return false
	}
}

// ended reports whether the worker has ended as it was told to.
func (l *link) ended() bool {
	if !l.isDown() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.farewell != nil && l.farewell.ExitCode == 0
}

// answeredBefore returns the steps that hosts before this one had the answers
// of, in the order of these.
func (l *link) answeredBefore() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.inherited.order)
}

// end ends a run of which no more can be heard, for a reason.
func (r *run) end(s *session, cursor int64, answers *stepAnswers, why error) error {
	started, err := s.startedSteps()
	if err != nil {
		why = errors.Join(why, err)
	}
	r.steps = r.replay(answers, started, why)
	s.startCleanup(cursor)
	return why
}

// replay tells what became of the steps, where no other answers can come than
// those that are here. Steps that were started and have none have failed.
func (r *run) replay(answers *stepAnswers, started map[string]bool, why error) []StepResult {
	results := make([]StepResult, len(r.prepared.Plan.Steps))
	for i, step := range r.prepared.Plan.Steps {
		res := &results[i]
		*res = StepResult{StepID: step.ID, Driver: step.DriverName(), Status: StepSkipped}
		resp := answers.byStep[step.ID]
		if resp == nil {
			if started[step.ID] {
				res.fail(nil, why)
			}
			continue
		}
		var ok rpc.StepResult
		if resp.Error != nil {
			res.fail(partial(resp.Error), stepError(context.Background(), step, resp.Error))
		} else if json.Unmarshal(resp.Result, &ok) == nil {
			res.succeed(&ok)
			if r.outputs == nil {
				r.outputs = make(map[string]map[string]rpc.OutputRef)
			}
			r.outputs[step.ID] = ok.Outputs
		}
	}
	return results
}

// pickUp takes a run that has ended, for Collect.
func (a *E2BTransparentProxy) pickUp(ctx context.Context, p *PreparedRun, ec *ExecutionContext, s *session, c *checkpoint, known *runSecrets) (*ExecResult, error) {
	r, gone, err := a.take(ctx, p, ec, s, c)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	r.secrets = known
	if err := a.enter(ec.SessionID, r); err != nil {
		return nil, err
	}
	close(r.executed)
	result := *c.Result
	if gone != nil && !r.fetched {
		r.check = nil
		return &result, errors.Join(gone, c.drop(ec.LogsDir)) // there is nothing to go on with
	}
	if !result.Success {
		return &result, r.failure(result.ErrorMessage)
	}
	return &result, nil
}

// take makes a run that has ended this host's: from now on another that has
// executed it, and lives, does not collect it, nor remove its sandbox. gone is
// set where there is none.
func (a *E2BTransparentProxy) take(ctx context.Context, p *PreparedRun, ec *ExecutionContext, s *session, c *checkpoint) (r *run, gone, err error) {
	if c.Result == nil || c.Status == nil {
		return nil, nil, fmt.Errorf("remote: attach: %w: %s has no result", ErrInvalid, checkpointFile)
	}
	r = newRun(ec, p, func(error) {})
	r.seq, r.check = c.Seq, c
	r.steps, r.status, r.sandboxID = c.Result.StepResults, *c.Status, c.last().ID
	if c.Phase == phaseFetched {
		var got fetchedArtifacts
		b, err := os.ReadFile(filepath.Join(ec.LogsDir, fetchedFile))
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("remote: attach: %s: %w", fetchedFile, err)
		}
		r.fetched, r.artifacts, r.skipped, r.skippedMore = true, got.Artifacts, got.Skipped, got.More
	}
	r.place, err = a.find(ctx, c, p.SandboxConfig)
	if errors.Is(err, ErrSandboxGone) {
		r.place, r.removed = nil, true
		gone, err = err, nil
	}
	r.meter = a.resumeMeter(c, p, gone)
	s.meter = r.meter
	if err == nil {
		err = s.whole(c)
	}
	if err == nil {
		var answers *stepAnswers
		if answers, err = s.rewind(c); err == nil {
			r.rememberOutputs(answers)
		}
	}
	if err == nil {
		c.Epoch++
		err = s.useCheckpoint(c)
	}
	return r, gone, err
}

// rememberOutputs finds the outputs that are kept in what the worker has answered
// to hosts of before.
func (r *run) rememberOutputs(answers *stepAnswers) {
	if r.place == nil {
		r.kept.leave(errCollected)
		return
	}
	for stepID := range r.prepared.fetchKeys() {
		var result rpc.StepResult
		if resp := answers.byStep[stepID]; resp != nil && resp.Error == nil && json.Unmarshal(resp.Result, &result) == nil {
			r.kept.add(r.place, nil, stepID, result.Outputs)
		}
	}
	r.kept.end()
}

// lost reports whether a run that was executed here is another host's by now:
// it has attached since. The directory tells, where there still is one.
func (r *run) lost() bool {
	if r.check == nil {
		return false
	}
	var c checkpoint
	b, err := os.ReadFile(filepath.Join(r.ec.LogsDir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) { // it has collected the run, too
		var st status
		b, err := os.ReadFile(filepath.Join(r.ec.LogsDir, statusFile))
		return err == nil && json.Unmarshal(b, &st) == nil && st.SessionCopied
	}
	return err == nil && json.Unmarshal(b, &c) == nil && c.Owner.Token != r.check.Owner.Token
}

// failure is the error that a run had whose host is dead.
func (r *run) failure(message string) error {
	for _, step := range r.steps {
		if step.Status == StepFailed {
			return &StepError{StepID: step.StepID, Driver: step.Driver, Type: step.ErrorType, Message: step.Error}
		}
	}
	return errors.New(message)
}
