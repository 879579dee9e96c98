package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// Diagnosis is what [Doctor] found, in the order in which it looked.
type Diagnosis struct {
	Checks []Check `json:"checks"`
}

// Healthy reports whether a run could start.
func (d *Diagnosis) Healthy() bool {
	for _, c := range d.Checks {
		if c.Status == CheckFailed {
			return false
		}
	}
	return true
}

// Check is one thing that a run needs.
type Check struct {
	Name   string      `json:"name"` // as "API key"
	Status CheckStatus `json:"status"`
	Detail string      `json:"detail"`        // what was found
	Fix    string      `json:"fix,omitempty"` // what to do about it
}

// CheckStatus is the outcome of a [Check].
type CheckStatus string

// The outcomes.
const (
	CheckOK      CheckStatus = "ok"
	CheckWarning CheckStatus = "warning" // a run can start, and may meet it
	CheckFailed  CheckStatus = "failed"  // no run can start
	CheckSkipped CheckStatus = "skipped" // something before it failed
)

// Doctor finds out whether runs with this configuration can start: the API
// key, whether E2B can be reached, the template and its size, how long the
// account lets a sandbox live, the version of its daemon, and whether the
// worker program suits it. To see that, it makes a sandbox, which costs a few
// seconds of its time, and removes it again. It also says how runs would start, as
// [E2BTransparentProxy.Explain] does of one, with the drivers in Python and the
// packages that the configuration names. It builds no template: of one that runs
// would have built, it looks at what that is made from.
//
// What is wrong is in the diagnosis. The error is ctx's, or says that the
// sandbox could not be removed.
func Doctor(ctx context.Context, cfg Config) (*Diagnosis, error) {
	d := &doctor{cfg: cfg, found: make(map[string]Check)}
	err := d.examine(ctx)
	all := new(Diagnosis)
	for _, name := range []string{checkConfig, checkKey, checkReach, checkStart, checkTemplate, checkDaemon, checkSizes, checkLife, checkWorker} {
		c, ok := d.found[name]
		if !ok {
			c = Check{Name: name, Status: CheckSkipped, Detail: "not looked at"}
		}
		all.Checks = append(all.Checks, c)
	}
	return all, err
}

// The names of the checks.
const (
	checkConfig   = "configuration"
	checkKey      = "API key"
	checkReach    = "reachability"
	checkStart    = "start"
	checkTemplate = "template"
	checkSizes    = "size"
	checkLife     = "time limit"
	checkDaemon   = "daemon"
	checkWorker   = "worker"
)

type doctor struct {
	cfg    Config
	found  map[string]Check
	worker *workerProgram // nil when there is none
	plan   *StartPlan     // nil when there is none
}

func (d *doctor) add(name string, status CheckStatus, detail, fix string) {
	d.found[name] = Check{Name: name, Status: status, Detail: detail, Fix: fix}
}

func (d *doctor) examine(ctx context.Context) (err error) {
	if err := d.cfg.validate(); err != nil {
		d.add(checkConfig, CheckFailed, err.Error(), "correct it")
		return nil
	}
	d.loadWorker(ctx)
	client, err := d.cfg.e2bClient()
	if err != nil && !errors.Is(err, e2b.ErrAuthentication) {
		d.add(checkConfig, CheckFailed, err.Error(), "correct it")
		return nil
	}
	d.add(checkConfig, CheckOK, "valid", "")
	if err != nil {
		d.add(checkKey, CheckFailed, err.Error(), "set E2B_API_KEY to a key of the account")
		return nil
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupGrace)
		defer cancel()
		if closeErr := client.Shutdown(ctx); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("remote: doctor: %w", closeErr))
		}
	}()
	if !d.reach(ctx, client) {
		return ctx.Err()
	}
	cfg := d.start(ctx, client)
	start := time.Now()
	sb, err := client.CreateSandbox(ctx, e2b.CreateOptions{Template: cfg.Template, Timeout: time.Minute, Metadata: cfg.Metadata})
	if err != nil {
		d.template(cfg.Template, err)
		return ctx.Err()
	}
	d.add(checkTemplate, CheckOK, fmt.Sprintf("%q made a sandbox in %d ms", cfg.Template, time.Since(start).Milliseconds()), "")
	s := newE2BSandbox(sb, time.Minute, false)
	d.sandbox(ctx, s, cfg)

	if err := killSurely(context.WithoutCancel(ctx), s, cleanupGrace); err != nil {
		return fmt.Errorf("remote: doctor: %w", err)
	}
	return ctx.Err()
}

// reach lists the account's sandboxes, which takes a key and changes nothing.
func (d *doctor) reach(ctx context.Context, client *e2b.Client) bool {
	start := time.Now()
	running := 0
	for _, err := range client.List(ctx, e2b.ListOptions{}) {
		switch {
		case errors.Is(err, e2b.ErrAuthentication), errors.Is(err, e2b.ErrForbidden):
			d.add(checkKey, CheckFailed, err.Error(), "check E2B_API_KEY: is it this account's, and still valid?")
			return false
		case err != nil:
			d.add(checkReach, CheckFailed, err.Error(), "check the network, E2B_DOMAIN and E2B_API_URL")
			return false
		}
		running++
	}
	d.add(checkKey, CheckOK, "accepted", "")
	d.add(checkReach, CheckOK, fmt.Sprintf("answers in %d ms; sandboxes of the account: %d", time.Since(start).Milliseconds(), running), "")
	return true
}

// start says how runs would start, and returns what to make a sandbox of, to look
// at.
func (d *doctor) start(ctx context.Context, client *e2b.Client) SandboxConfig {
	cfg := d.cfg.sandboxConfig("doctor")
	p := &PreparedRun{Plan: new(Manifest), SandboxConfig: cfg, PythonDrivers: d.cfg.PythonDrivers, RunParams: RunParams{PassEnv: d.cfg.environment()}}
	if len(p.PythonDrivers) == 0 && len(cfg.Packages) > 0 {
		p.PythonDrivers = make([]PythonDriver, 1) // those of manifests, whose requirements are not known
	}
	cfg.Template = cmp.Or(cfg.Template, defaultTemplate) // in the place of one from an image
	if d.worker == nil {
		return cfg
	}
	a := &E2BTransparentProxy{engine: engine{cfg: d.cfg, ships: true}, client: client, starts: newStartBook(d.cfg.wheelhouseDir())}
	plan, err := a.Explain(ctx, p, ExplainOptions{})
	if err != nil {
		d.add(checkStart, CheckFailed, err.Error(), "see the error")
		return cfg
	}
	d.plan = plan
	detail := strings.Join(plan.lines(), "; ")
	switch {
	case plan.Refused != "" && plan.Status == TemplateMissing && plan.Derived == nil:
		d.add(checkStart, CheckFailed, detail, "name a template of the account in Config.Template or --e2b-template")
	case plan.Refused != "" && buildableSize(cfg.CPU, cfg.MemoryGB) != nil:
		d.add(checkStart, CheckFailed, detail, otherSizeFix)
	case plan.Refused != "" && plan.Derived != nil && plan.Derived.Allowed:
		d.add(checkStart, CheckFailed, detail, "correct that")
	case plan.Refused != "":
		d.add(checkStart, CheckFailed, detail, allowBuildFix+", or name no image and no size")
	case plan.Builds():
		d.add(checkStart, CheckWarning, detail, firstRunBuilds)
	case plan.Status == TemplateUnknown:
		d.add(checkStart, CheckWarning, detail, "see why")
	default:
		d.add(checkStart, CheckOK, detail, "")
		cfg.Template = plan.Template
	}
	return cfg
}

// What to do about a size.
const (
	allowBuildFix  = "allow a template to be built (allow_template_build, --e2b-allow-template-build)"
	otherSizeFix   = "name another template, or leave cpu and memory unset, or ask for a size that there may be"
	firstRunBuilds = "the first run has that built, and waits for minutes; the others find it"
)

// size judges the size of runs by that of a sandbox, which is not of their
// template where that is not built yet.
func (d *doctor) size(cfg SandboxConfig, has SandboxInfo) {
	err := checkSize(cfg, has)
	var derived *DerivedTemplate
	conditional := false
	if d.plan != nil {
		derived, conditional = d.plan.Derived, d.plan.Conditional
	}
	later := derived != nil && !conditional && derived.Status != TemplateReady
	switch {
	case later && d.plan.Builds() && (derived.FromImage != "" || err != nil):
		size := "E2B's default size"
		if derived.CPU > 0 || derived.MemoryGB > 0 {
			size = describeSize(derived.CPU, derived.MemoryGB)
		}
		d.add(checkSizes, CheckWarning, fmt.Sprintf("runs take the template %s, which will have %s", derived.Name, size), firstRunBuilds)
	case later && derived.FromImage != "":
		d.add(checkSizes, CheckSkipped, "there is no template from the image to look at", "")
	case err == nil:
		d.add(checkSizes, CheckOK, describeSize(has.CPU, has.MemoryGB), "")
	case conditional && derived.usable():
		d.add(checkSizes, CheckWarning, "runs take "+derived.parts.String(), firstRunBuilds)
	case buildableSize(cfg.CPU, cfg.MemoryGB) != nil:
		d.add(checkSizes, CheckFailed, err.Error(), otherSizeFix)
	default:
		d.add(checkSizes, CheckFailed, err.Error(), "name another template, leave cpu and memory unset, or "+allowBuildFix)
	}
}

func (d *doctor) template(name string, err error) {
	fix := "see the error"
	switch {
	case errors.Is(err, e2b.ErrTemplate):
		fix = "name a template of the account in Config.Template or --e2b-template"
	case errors.Is(err, e2b.ErrQuota):
		fix = "end sandboxes that are not needed, or raise the account's limit"
	case errors.Is(err, e2b.ErrCapacity), errors.Is(err, e2b.ErrRateLimit):
		fix = "try again later"
	}
	d.add(checkTemplate, CheckFailed, fmt.Sprintf("%q: %v", name, err), fix)
}

// sandbox looks at what the template made.
func (d *doctor) sandbox(ctx context.Context, s *e2bSandbox, cfg SandboxConfig) {
	if err := s.sb.Health(ctx); err != nil {
		d.add(checkDaemon, CheckFailed, err.Error(), "check the way to the sandboxes: the network, E2B_DOMAIN and E2B_SANDBOX_URL")
		return
	}
	d.add(checkDaemon, CheckOK, "envd "+s.sb.EnvdVersion(), "")
	run := d.cfg.timeout()
	info, err := s.sb.Info(ctx)
	if err == nil {
		s.describe(info, cfg.Template)
		err = s.lengthen(ctx, run)
	}
	if err == nil {
		info, err = s.sb.Info(ctx)
	}
	if err != nil {
		d.add(checkSizes, CheckFailed, err.Error(), "see the error")
		return
	}
	d.size(cfg, s.info)
	if err := checkEnd(run, info); err != nil {
		fix := "set a shorter timeout"
		if info.EndAt.Sub(info.StartedAt) <= collectLease {
			fix = "use an account whose sandboxes may live longer"
		}
		d.add(checkLife, CheckFailed, err.Error(), fix)
	} else {
		d.add(checkLife, CheckOK, fmt.Sprintf("a run of %s and the time to collect fit", run), "")
	}
	if d.worker != nil {
		d.workerSuits(ctx, s)
	}
}

// loadWorker looks at the worker program as far as that takes no sandbox.
func (d *doctor) loadWorker(ctx context.Context) {
	name, err := d.cfg.workerPath()
	if err != nil {
		d.add(checkWorker, CheckFailed, err.Error(), "name a worker program in Config.WorkerPath")
		return
	}
	w, err := new(programs).load(ctx, name)
	if err != nil {
		d.add(checkWorker, CheckFailed, err.Error(), "name a worker program in Config.WorkerPath")
		return
	}
	if !w.isWorker() {
		d.add(checkWorker, CheckFailed, w.stranger(), "name one whose main calls worker.Main in Config.WorkerPath")
		return
	}
	d.worker = w
}

// workerSuits asks a sandbox whether the worker program runs there.
func (d *doctor) workerSuits(ctx context.Context, s *e2bSandbox) {
	answer, err := ask(ctx, s, askPlatform)
	if err != nil {
		d.add(checkWorker, CheckFailed, err.Error(), "the sandbox runs no commands: try another template")
		return
	}
	w := d.worker
	if err := w.suits(answer); err != nil {
		d.add(checkWorker, CheckFailed, err.Error(), "build one for the sandbox")
		return
	}
	where := strings.Join(strings.Fields(answer), " ")
	if where == "" {
		where = "a sandbox that does not say what it is"
	}
	d.add(checkWorker, CheckOK, fmt.Sprintf("%s, %.1f MB, runs on %s", w.path, float64(w.size)/1e6, where), "")
}
