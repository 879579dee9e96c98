package remote

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
)

const (
	// buildLimit is how long a run waits for a template, at most.
	buildLimit = 30 * time.Minute

	// startPatience is how long a build may wait for the host that has asked for
	// it, which uploads what it takes. Then that is taken for dead.
	startPatience = 2 * time.Minute

	// maxLooks is how often a build may turn out to be another one than it was.
	maxLooks = 20

	// maxGone is how often a build may be gone before it has ended: somebody
	// deletes what we build, or has found out before us that it fails.
	maxGone = 3

	// failureSeen is how long a build that has failed stays, for other hosts that
	// follow it to see why. They look every second.
	failureSeen = 2 * time.Second

	answerGrace = 10 * time.Second // for the answer to a request when the run is stopped

	quotaPause = 5 * time.Second // where the account has no room for another build

	maxBuildLines = 1000 // of a build's log that become events
	maxBuildLine  = 1000 // bytes of each
	keptLines     = 20   // of a failed step, in the error
)

// TemplateBuildError says why there is no template of a run's own. It matches
// [ErrTemplateBuild], and [ErrTemplateBuildUnsupported], [ErrTimeout] or another
// error where that is why.
type TemplateBuildError struct {
	Template string   // its name
	What     string   // of what it would be made
	Step     string   // that failed; empty where none did
	Message  string   // E2B's words about that
	Log      []string // the last lines of the step
	Err      error
}

// Error is text that can be printed.
func (e *TemplateBuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "remote: %v: %s", ErrTemplateBuild, cmp.Or(e.What, e.Template))
	if e.Step == "" {
		fmt.Fprintf(&b, ": %v", e.Err)
		return rpc.Printable(b.String())
	}
	fmt.Fprintf(&b, ": %s failed: %s", e.Step, e.Message)
	if len(e.Log) > 0 {
		b.WriteString("; its last lines:")
	}
	text := rpc.Printable(b.String())
	for _, line := range e.Log {
		text += "\n  " + rpc.Printable(line)
	}
	return text
}

// Is reports whether target is ErrTemplateBuild.
func (e *TemplateBuildError) Is(target error) bool { return target == ErrTemplateBuild }

// Unwrap returns what went wrong.
func (e *TemplateBuildError) Unwrap() error { return e.Err }

// program is where the worker program is in the template.
func (d *derivation) program() string {
	return path.Join(derivedBin, "osiris-worker-"+d.worker.sha256)
}

// openFitting makes the sandbox of a run: from its template as it is, or from a
// derived one, which it then returns, too, and may have to have built.
func (a *E2BTransparentProxy) openFitting(ctx context.Context, cfg SandboxConfig, plan *egressPlan, p *PreparedRun, s *session) (Sandbox, *derivation, error) {
	d, err := a.wanted(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	if d.unbaked != "" && d.allowed {
		s.logf(slog.LevelInfo, "the packages of drivers in Python are not in the template: %s", d.unbaked)
	}
	known := a.templates.recall(d.key)
	listed := known != nil
	if known != nil {
		d = known
	} else if d.needed != takeBase {
		err := a.compare(ctx, d, p.SandboxConfig)
		if err != nil && (d.needed == takeDerived || d.allowed) {
			return nil, nil, d.fail(err)
		}
		listed = err == nil // else a sandbox may have the size all the same
	}
	if d.needed == takeBase || !d.ready && (d.needed == takeFitting || !d.allowed && d.Image == "") {
		sb, err := a.open(ctx, cfg, plan)
		switch {
		case err == nil && d.key == "":
			return sb, nil, nil
		case err == nil:
			as := *d
			as.needed = takeBase // its size is right
			a.templates.remember(&as)
			s.usesTemplate(sb.Info().Template, false, false)
			return sb, nil, nil
		case known != nil && errors.Is(err, ErrSandboxSize): // it was built anew
			a.templates.forget(d.key)
			return a.openFitting(ctx, cfg, plan, p, s)
		case d.needed == takeBase || !errors.Is(err, ErrSandboxSize):
			return nil, nil, createError(err)
		}
		if !d.allowed && !listed {
			_ = a.compare(ctx, d, p.SandboxConfig) // where that fails, nothing is known to be ready
		}
		if !d.allowed && !d.ready {
			return nil, nil, fmt.Errorf("%w; %s", createError(err), d.permission())
		}
		s.logf(slog.LevelInfo, "the template %q makes sandboxes of another size than the run asks for", cfg.Template)
	}
	return a.openDerived(ctx, cfg, plan, d, s)
}

// openDerived makes a sandbox from a derived template. One that is there no more
// is built again.
func (a *E2BTransparentProxy) openDerived(ctx context.Context, cfg SandboxConfig, plan *egressPlan, d *derivation, s *session) (Sandbox, *derivation, error) {
	cfg.Template, cfg.Image, cfg.Packages = d.name(), "", nil
	cfg.CPU = cmp.Or(cfg.CPU, d.CPU) // also what was left open and the name promises
	cfg.MemoryGB = cmp.Or(cfg.MemoryGB, float64(d.MemoryMB)/1024)
	for again := false; ; again = true {
		built, err := a.obtain(ctx, d, s)
		if err != nil {
			return nil, nil, err
		}
		sb, err := a.open(ctx, cfg, plan)
		if err == nil {
			s.usesTemplate(d.name(), true, built)
			return sb, d, nil
		}
		if errors.Is(err, ErrSandboxSize) {
			a.templates.forget(d.key)
			return nil, nil, fmt.Errorf("%w; but this template is one that this library makes, and somebody else has built it with another size: delete it, and it is built again", createError(err))
		}
		if !errors.Is(err, e2b.ErrTemplate) || built || again {
			return nil, nil, createError(err)
		}
		s.logf(slog.LevelWarn, "the template %s is not there any more: %v", d.name(), err)
		a.templates.forget(d.key)
		gone := *d
		gone.ready = false
		d = &gone
	}
}

// usesTemplate says which template a run that might have had one of its own has.
func (s *session) usesTemplate(name string, derived, built bool) {
	s.event("template_used", map[string]any{"template": name, "derived": derived, "built": built})
}

// permission says what would be built, and by what it may be; or that nothing
// can be.
func (d *derivation) permission() string {
	if err := buildableSize(d.CPU, float64(d.MemoryMB)/1024); err != nil {
		return fmt.Sprintf("nor can one be built: %v", err)
	}
	return fmt.Sprintf("or allow Config.AllowTemplateBuild (allow_template_build, --e2b-allow-template-build), which has one built, once: %s", d)
}

// fail is why there is no template.
func (d *derivation) fail(err error) error {
	failed := &TemplateBuildError{Template: d.name(), What: d.String(), Err: err}
	if errors.Is(err, ErrTemplateBuildUnsupported) {
		failed.Err = fmt.Errorf("%w; name a template that the server has in Config.Template, with the size, and leave Config.Image and Config.AllowTemplateBuild alone", err)
	}
	var step *e2b.BuildError
	if errors.As(err, &step) {
		failed.Step, failed.Message = d.stepName(step.Step), clip(step.Message, maxBuildLine)
		for _, l := range step.Log[max(0, len(step.Log)-keptLines):] {
			failed.Log = append(failed.Log, clip(l.Message, maxBuildLine))
		}
		if hint := d.hint(step.Step); hint != "" {
			failed.Message += " (" + hint + ")"
		}
	}
	return failed
}

// obtain returns when the template of a derivation is ready, and whether this
// run has had it built. Of the runs of this adapter that want it one does, and
// the others wait.
func (a *E2BTransparentProxy) obtain(ctx context.Context, d *derivation, s *session) (built bool, err error) {
	if d.ready {
		a.templates.remember(d)
		return false, nil
	}
	defer s.meter.within(phaseBuild)()
	defer a.runOf(s.id).timer.stand()()
	ctx, cancel := context.WithTimeoutCause(ctx, buildLimit, fmt.Errorf("%w: it was not ready within %s", ErrTimeout, buildLimit))
	defer cancel()
	turn := a.templates.turn(d.name())
	before := turn.ended.Load()
	if err := turn.lock(ctx); err != nil {
		return false, d.fail(err)
	}
	defer turn.unlock()
	if a.templates.recall(d.key) != nil {
		return false, nil
	}
	if err := turn.failed; err != nil && turn.ended.Load() != before {
		s.logf(slog.LevelInfo, "template %s: the build that this run has waited for has failed", d.name())
		return false, err
	}
	defer func() {
		turn.failed = nil
		if errors.Is(err, e2b.ErrBuild) && ctx.Err() == nil {
			turn.failed = err
		}
		turn.ended.Add(1)
	}()
	b := &building{client: a.client, d: d, session: s, patience: cmp.Or(a.startPatience, startPatience), asked: make(map[string]bool), told: make(map[string]bool)}
	if err := b.run(ctx); err != nil {
		if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
			err = fmt.Errorf("%w (%w)", why, err)
		}
		return false, d.fail(err)
	}
	done := *d
	done.ready, done.going = true, false
	a.templates.remember(&done)
	return b.own, nil
}

// runOf returns the run of a session, which this adapter executes.
func (e *engine) runOf(sessionID string) *run {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[sessionID]
}

// building is a template on its way to be ready, for one run. Other hosts may
// want it at the same moment, and E2B has no lock: the newest build that was
// asked for counts, and to start one cancels those that run. So nothing is
// started while something runs, and all follow what does.
type building struct {
	client   *e2b.Client
	d        *derivation
	session  *session
	patience time.Duration
	options  e2b.BuildOptions // zero until they are needed
	asked    map[string]bool  // IDs of builds that this run has asked for
	askedAt  time.Time        // when it asked for the last of these
	told     map[string]bool  // what it has said that it waits for

	own     bool // this run has started the build that it followed last
	lines   int  // of that, which became events
	omitted int
}

// builds is what there is of a template.
type builds struct {
	template string // its ID; empty where there is none
	ready    string // its newest build that is; or empty
	running  string
	waiting  string
	count    int
}

// run returns when there is a build that is ready.
func (b *building) run(ctx context.Context) error {
	pause := 100 * time.Millisecond
	var last error
	gone := 0
	for range maxLooks {
		now, err := b.look(ctx)
		if err != nil {
			return err
		}
		idle := func() bool { return now.ready == "" && now.running == "" }
		if idle() && now.waiting != "" && !b.asked[now.waiting] {
			if now, err = b.awaitStart(ctx, now); err != nil {
				return err
			}
		}
		if idle() && !b.asked[now.waiting] {
			if now, err = b.request(ctx, &pause); err != nil {
				return err
			}
		}
		switch {
		case now.ready != "":
			b.own = b.asked[now.ready]
			return nil
		case now.running != "":
			b.own = b.asked[now.running]
			err = b.follow(ctx, now.template, now.running)
		case b.asked[now.waiting]:
			err = b.start(ctx, &e2b.Build{ID: now.waiting, TemplateID: now.template})
		default:
			continue // superseded
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, e2b.ErrBuildNotWaiting), errors.Is(err, e2b.ErrBuildCanceled):
		case errors.Is(err, e2b.ErrNotFound) && ctx.Err() == nil && gone < maxGone: // somebody has cleaned up
			gone++
		default:
			return err
		}
		b.session.logf(slog.LevelInfo, "template %s: another build takes the place: %v", b.d.name(), err)
		last = err
	}
	err := fmt.Errorf("its build was replaced by another %d times", maxLooks)
	if last != nil {
		err = fmt.Errorf("%w, the last time: %w", err, last)
	}
	return err
}

// look finds the template by its name.
func (b *building) look(ctx context.Context) (builds, error) {
	for t, err := range b.client.Templates(ctx) {
		if err != nil {
			return builds{}, err
		}
		if t.Matches(b.d.name()) {
			return b.lookAt(ctx, t.ID)
		}
	}
	return builds{}, nil
}

// lookAt finds the builds of the template.
func (b *building) lookAt(ctx context.Context, id string) (builds, error) {
	now := builds{template: id}
	for info, err := range b.client.Builds(ctx, id) {
		switch {
		case errors.Is(err, e2b.ErrNotFound):
			return builds{}, nil
		case err != nil:
			return now, err
		}
		now.count++
		switch info.Status {
		case e2b.BuildReady:
			now.ready = cmp.Or(now.ready, info.ID)
		case e2b.BuildWaiting:
			now.waiting = cmp.Or(now.waiting, info.ID)
		case e2b.BuildFailed:
		default:
			now.running = cmp.Or(now.running, info.ID)
		}
	}
	return now, nil
}

// awaitStart waits while a build is to be started by another host, for as long
// as that may take, and returns what there is then.
func (b *building) awaitStart(ctx context.Context, now builds) (builds, error) {
	b.waits("another host to start the build that it has asked for")
	first := now.waiting
	until := time.Now().Add(b.patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if err := wait(ctx, min(pause, max(0, time.Until(until)))); err != nil {
			return now, err
		}
		next, err := b.lookAt(ctx, now.template)
		switch {
		case err != nil:
			return now, err
		case next.ready != "" || next.running != "" || next.waiting == "":
			return next, nil
		case next.waiting != first: // of a host that lives
			first, until = next.waiting, time.Now().Add(b.patience)
		case !time.Now().Before(until):
			return builds{template: now.template}, nil // as if there was none
		}
		now = next
	}
}

// waits says, once, what stands before the build.
func (b *building) waits(what string) {
	if b.told[what] {
		return
	}
	b.told[what] = true
	b.session.event("template_build_waiting", map[string]any{"template": b.d.name(), "for": what})
	b.session.logf(slog.LevelInfo, "template %s: waiting for %s", b.d.name(), what)
}

// wait returns after a time, or with why ctx has ended before that.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// request asks for a build, which is not started, and returns what there is
// then. That may be nothing to go on with.
func (b *building) request(ctx context.Context, pause *time.Duration) (builds, error) {
	if !b.d.allowed {
		return builds{}, errors.New("it is not there, and Config.AllowTemplateBuild (allow_template_build, --e2b-allow-template-build) does not allow it to be built")
	}
	if err := b.d.worker.mayRunAtE2B(); err != nil {
		return builds{}, err
	}
	if err := b.makeOptions(); err != nil {
		return builds{}, err
	}
	for {
		at := time.Now()
		requested, err := b.requestWhole(ctx)
		switch {
		case err == nil:
			b.asked[requested.ID], b.askedAt = true, at
			now, err := b.lookAt(ctx, requested.TemplateID)
			if err != nil {
				b.discard(ctx, requested.TemplateID)
			}
			return now, err
		case errors.Is(err, ErrQuota):
			b.waits("room for another build on the account")
			if wait(ctx, quotaPause) != nil {
				return builds{}, err
			}
			if now, err := b.look(ctx); err != nil || now.ready != "" || now.running != "" { // another host had more luck
				return now, err
			}
		case errors.Is(err, e2b.ErrConflict), errors.Is(err, e2b.ErrForbidden), errors.Is(err, e2b.ErrNotFound) && !errors.Is(err, ErrTemplateBuildUnsupported):
			// Another host has the same name just now, or has just deleted it.
			if *pause > 5*time.Second {
				return builds{}, err
			}
			if err := wait(ctx, *pause); err != nil {
				return builds{}, err
			}
			*pause *= 2
			return builds{}, nil
		default:
			if !errors.As(err, new(*e2b.APIError)) { // else it was refused
				b.discardUnanswered(ctx)
			}
			return builds{}, err
		}
	}
}

// requestWhole asks for a build. Its answer is waited for a while longer than
// ctx: it says what there is to remove.
func (b *building) requestWhole(ctx context.Context) (*e2b.Build, error) {
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(answerGrace):
			cancel()
		case <-whole.Done():
		}
	})
	defer ended()
	return b.client.RequestBuild(whole, b.options)
}

// discardUnanswered deletes what a request has made whose answer did not come: a
// template with that build alone. Where it is another host's after all, that
// host asks again.
func (b *building) discardUnanswered(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
	defer cancel()
	now, err := b.look(ctx)
	if err == nil && now.waiting != "" && now.count == 1 {
		b.asked[now.waiting] = true
		b.discard(ctx, now.template)
	}
}

// makeOptions makes the options of the build, which takes a look at all of the
// worker program.
func (b *building) makeOptions() error {
	if b.options.Name != "" {
		return nil
	}
	w := b.d.worker
	made := false
	layer, err := e2b.NewLayer(e2b.LayerFile{
		Name: path.Base(b.d.program()), Mode: 0o755, Size: w.size,
		Open: func() (io.ReadCloser, error) {
			if made { // StartBuild sends it, where E2B has not got it
				b.waits("the upload of the worker program")
			}
			return os.Open(w.path)
		},
	})
	made = true
	if err != nil {
		return fmt.Errorf("the worker program: %w", err)
	}
	steps := []e2b.BuildStep{e2b.CopyStep(layer, derivedBin, "root")}
	for _, c := range b.d.commands() {
		steps = append(steps, c.step)
	}
	b.options = e2b.BuildOptions{
		Name: b.d.name(), CPU: b.d.CPU, MemoryMB: b.d.MemoryMB, FromImage: b.d.Image, FromTemplate: b.d.Template, Steps: steps,
	}
	return nil
}

// buildCommand is a step of a build that runs something.
type buildCommand struct {
	name string // of what it does
	hint string // where it fails
	step e2b.BuildStep
}

// commands are the steps after the worker program was copied.
func (d *derivation) commands() []buildCommand {
	worker := d.program() + " osiris-worker "
	if len(d.Packages) == 0 {
		return []buildCommand{{
			"the worker program", "is it one for the template's platform, built with CGO_ENABLED=0?",
			e2b.RunStep(worker + "version"),
		}}
	}
	requirements, err := json.Marshal(d.Packages)
	if err != nil {
		panic(err) // texts alone
	}
	install := worker + "install -cache " + derivedCache + " -requirements " + quoted(string(requirements))
	if d.Python != "" {
		install += " -python " + quoted(d.Python)
	}
	return []buildCommand{
		{"the directory of packages", "", e2b.RunStepAs("root", "install -d -m 1777 "+derivedCache)},
		{"the installation of packages", "check what is required, and that the template has Python", e2b.RunStep(install)},
	}
}

// quoted is a word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// stepName is a step as E2B numbers it, in words.
func (d *derivation) stepName(step string) string {
	commands := d.commands()
	switch n, err := strconv.Atoi(step); {
	case step == "base" && d.Image != "":
		return "the image"
	case step == "base":
		return "the template that it begins with"
	case step == "finalize":
		return "the first start"
	case err == nil && n == 1:
		return "the copy of the worker program"
	case err == nil && n >= 2 && n-2 < len(commands):
		return commands[n-2].name
	case step == "":
		return "the build"
	}
	return fmt.Sprintf("step %.40s", step)
}

// hint says what may help where a step fails.
func (d *derivation) hint(step string) string {
	commands := d.commands()
	n, err := strconv.Atoi(step)
	switch {
	case step == "base" && d.Image != "":
		return "is the image public, with a Debian or Ubuntu for linux/amd64 in it?"
	case err == nil && n >= 2 && n-2 < len(commands):
		return commands[n-2].hint
	}
	return ""
}

// mayRunAtE2B refuses a program that no template can run, or that is no worker.
// Whether a certain one can, the build finds out.
func (w *workerProgram) mayRunAtE2B() error {
	if !w.isWorker() {
		return fmt.Errorf("%w: %s; name one whose main calls worker.Main in Config.WorkerPath", ErrWorkerPlatform, w.stranger())
	}
	if strings.HasPrefix(w.platform, "linux/") {
		return nil
	}
	if _, err := buildinfo.ReadFile(w.path); w.platform == "" && err != nil {
		return nil // a script, or what stands for a worker in tests
	}
	return w.unsuitable(e2bPlatform, "it is not a Linux program")
}

// start starts the build that was requested, and follows it.
func (b *building) start(ctx context.Context, requested *e2b.Build) error {
	err := b.client.StartBuild(ctx, requested, b.options)
	if errors.Is(err, e2b.ErrBuildNotWaiting) {
		return err
	}
	if err != nil {
		if now, lookErr := b.lookAgain(ctx, requested.TemplateID); lookErr != nil || now.running != requested.ID && now.ready != requested.ID {
			b.discard(ctx, requested.TemplateID)
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; its build goes on at E2B, and the next run finds it", err)
		}
		b.session.logf(slog.LevelWarn, "template %s: its build has begun, although: %v", b.d.name(), err)
	}
	b.own = true
	return b.follow(ctx, requested.TemplateID, requested.ID)
}

// lookAgain is lookAt, also where ctx has ended.
func (b *building) lookAgain(ctx context.Context, id string) (builds, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
	defer cancel()
	return b.lookAt(ctx, id)
}

// follow tells what a build says until it is ready. It is not stopped with ctx.
func (b *building) follow(ctx context.Context, template, build string) error {
	began := time.Now()
	if b.own {
		began = b.askedAt
	}
	b.lines, b.omitted = 0, 0
	packages := b.d.Packages
	if packages == nil {
		packages = []string{}
	}
	b.session.event("template_build_started", map[string]any{
		"template": b.d.name(), "build_id": build, "own": b.own, "from": b.d.base(),
		"cpu": b.d.CPU, "memory_gb": float64(b.d.MemoryMB) / 1024, "packages": packages, "reason": b.d.reason,
	})
	b.session.logf(slog.LevelInfo, "building the template %s (%s)", b.d, b.d.reason)
	err := b.client.WaitBuild(ctx, template, build, b.tell)
	if err == nil {
		b.session.event("template_build_complete", map[string]any{
			"template": b.d.name(), "build_id": build, "duration_ms": milliseconds(time.Since(began)), "lines_left_out": b.omitted,
		})
		b.session.logf(slog.LevelInfo, "the template %s is ready, after %s", b.d.name(), time.Since(began).Round(time.Millisecond))
		return nil
	}
	b.session.event("template_build_failed", map[string]any{
		"template": b.d.name(), "build_id": build, "duration_ms": milliseconds(time.Since(began)), "lines_left_out": b.omitted, "error": err.Error(),
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w; its build goes on at E2B, and the next run finds it", err)
	case errors.Is(err, e2b.ErrBuild) && !errors.Is(err, e2b.ErrBuildCanceled):
		now, lookErr := b.lookAgain(ctx, template)
		if lookErr == nil && (now.ready != "" || now.running != "") {
			return fmt.Errorf("%w: %w", e2b.ErrBuildCanceled, err) // there is another already
		}
		_ = wait(ctx, failureSeen)
		b.discard(ctx, template) // one that waits would fail in the same step
	}
	return err
}

// tell makes a line of the build's log an event, unless there are too many.
func (b *building) tell(l e2b.BuildLog) {
	if b.lines++; b.lines > maxBuildLines {
		b.omitted++
		return
	}
	step := ""
	if l.Step != "" {
		step = b.d.stepName(l.Step)
	}
	b.session.event("template_build_progress", map[string]any{
		"template": b.d.name(), "step": step, "message": rpc.Printable(clip(l.Message, maxBuildLine)),
	})
}

// discard deletes a template of which nothing is ready, or on its way but for
// what this run has asked for.
func (b *building) discard(ctx context.Context, template string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
	defer cancel()
	now, err := b.lookAt(ctx, template)
	if err == nil && (now.template == "" || now.ready != "" || now.running != "" || now.waiting != "" && !b.asked[now.waiting]) {
		return
	}
	if err == nil {
		err = b.client.DeleteTemplate(ctx, template)
	}
	if err != nil {
		b.session.logf(slog.LevelWarn, "template %s: nothing of it is ready, and it could not be deleted: %v", b.d.name(), err)
	}
}
