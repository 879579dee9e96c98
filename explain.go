package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// ExplainOptions says what [E2BTransparentProxy.Explain] does.
type ExplainOptions struct {
	Offline bool // ask nobody, and say what can be said without E2B
}

// StartPlan says how a run would start, as far as that is known before it does.
type StartPlan struct {
	// Way is how the run would come to its packages. [StartWheelhouse] stands for
	// [StartIndex], too, which is what happens while the wheelhouse has not got
	// them, and neither happens where the template has them.
	Way StartWay `json:"way"`

	Template string         `json:"template"` // that the sandbox would be made from
	Status   TemplateStatus `json:"template_status"`

	// Derived is the template of the run's own that it takes, or would take if the
	// other turns out to make sandboxes of another size: then Conditional is set,
	// since of a template that is not the account's only a sandbox tells. Nil where
	// the run has no use for one.
	Derived     *DerivedTemplate `json:"derived,omitempty"`
	Conditional bool             `json:"conditional,omitempty"`

	// Refused says why no run could start, and what to do; empty where one could.
	Refused string   `json:"refused,omitempty"`
	Notes   []string `json:"notes"` // what else there is to know

	// Last is what starts with the same template, size and packages have taken, the
	// last of each way on this machine, with a build and without, the newest first.
	Last []StartCost `json:"last"`
}

// DerivedTemplate is a template that is made from another, or from an image,
// for runs that want the same of it.
type DerivedTemplate struct {
	Name         string         `json:"name"` // a hash of all that follows, and of the build of FromTemplate
	FromTemplate string         `json:"from_template,omitempty"`
	FromImage    string         `json:"from_image,omitempty"`
	CPU          int            `json:"cpu,omitempty"`       // zero is what FromTemplate has, or E2B's default
	MemoryGB     float64        `json:"memory_gb,omitempty"` // also
	Packages     []string       `json:"packages,omitempty"`  // requirements of Python packages
	Worker       string         `json:"worker"`              // SHA-256 of the worker program
	Status       TemplateStatus `json:"status"`
	Allowed      bool           `json:"allowed"` // to be built, by Config.AllowTemplateBuild
	Reason       string         `json:"reason"`  // that the run takes it

	parts derivedParts
}

// TemplateStatus says whether there is a template.
type TemplateStatus string

// What there is to say.
const (
	TemplateReady    TemplateStatus = "ready"
	TemplateBuilding TemplateStatus = "building" // by another run, or it was asked for
	TemplateMissing  TemplateStatus = "missing"
	TemplateUnknown  TemplateStatus = "unknown" // E2B was not asked, or did not say
)

// Builds reports whether the run would have a template built, or wait for that.
func (p *StartPlan) Builds() bool {
	d := p.Derived
	return d != nil && !p.Conditional && (d.Status == TemplateBuilding || d.Status == TemplateMissing) && (d.Allowed || d.waits())
}

// explainPatience bounds what is asked of E2B.
const explainPatience = 10 * time.Second

// How a template may be allowed, and packages.
const (
	allowBuild   = "Config.AllowTemplateBuild (allow_template_build, --e2b-allow-template-build)"
	allowInstall = "Config.InstallDeps (install_deps, --e2b-install-deps)"
)

// Explain says how a prepared run would start: from which template, with what
// built first, and what that took the last time. It only asks, for ten seconds
// at most, and makes nothing. What E2B does not answer is not known, which is
// no error.
//
// It fails with [ErrUnsupported] on an adapter with Config.OpenSandbox.
func (a *E2BTransparentProxy) Explain(ctx context.Context, p *PreparedRun, o ExplainOptions) (*StartPlan, error) {
	if a.client == nil {
		return nil, fmt.Errorf("remote: explain: %w: the adapter's sandboxes are not E2B's (Config.OpenSandbox)", ErrUnsupported)
	}
	if p == nil || p.Plan == nil {
		return nil, fmt.Errorf("remote: explain: %w: there is no prepared run", ErrInvalid)
	}
	asking, cancel := context.WithTimeoutCause(ctx, explainPatience, fmt.Errorf("%w: no answer in %s", ErrTimeout, explainPatience))
	defer cancel()
	plan, err := a.explain(asking, p, o.Offline)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return plan, nil
}

func (a *E2BTransparentProxy) explain(ctx context.Context, p *PreparedRun, offline bool) (*StartPlan, error) {
	d, err := a.wanted(ctx, p)
	if err != nil {
		return nil, err
	}
	plan := &StartPlan{Template: p.SandboxConfig.Template, Status: TemplateUnknown, Notes: []string{}}
	if known := a.templates.recall(d.key); known != nil && known.needed == takeBase {
		d = known // the size of its template was seen to be right
	}
	asked := errors.New("E2B was not asked, since all was to be said offline")
	if !offline {
		if asked = a.askTemplates(ctx, d, p.SandboxConfig, plan); asked != nil {
			asked = fmt.Errorf("E2B did not say: %w", asked)
		}
	}
	if d.needed != takeBase {
		plan.derive(d, asked == nil)
	}
	plan.choose(a.cfg, d, p)
	if asked != nil && plan.Refused == "" {
		plan.note("%v: whether the template is there is not known", asked)
	}
	key, err := a.startKey(p)
	if err != nil {
		return nil, err
	}
	plan.Last = a.starts.last(key)
	return plan, nil
}

func (p *StartPlan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// askTemplates asks E2B for the template that a run names, and for its own.
func (a *E2BTransparentProxy) askTemplates(ctx context.Context, d *derivation, cfg SandboxConfig, plan *StartPlan) error {
	if d.needed != takeBase {
		if err := a.compare(ctx, d, cfg); err != nil {
			return err
		}
	}
	if cfg.Image != "" {
		return nil
	}
	t, err := a.client.Template(ctx, cfg.Template)
	name, tag, tagged := strings.Cut(cfg.Template, ":")
	if tagged && errors.Is(err, e2b.ErrTemplate) { // of none with a build that is ready and has the tag
		t, err = a.client.Template(ctx, name)
	} else if tagged && err == nil {
		plan.Status = TemplateReady
		return nil
	}
	switch {
	case errors.Is(err, e2b.ErrTemplate), err == nil && tagged && t.ID == "":
		plan.missing("there is no template %q; name one of the account in Config.Template (template, --e2b-template)", cfg.Template)
		return nil
	case err != nil:
		return err
	case !tagged && (t.BuildID != "" || t.BuildStatus == ""):
		plan.Status = TemplateReady
		return nil
	}
	status := t.BuildStatus
	if tagged || status == e2b.BuildWaiting { // which E2B says also where there is none
		newest, err := a.taggedBuild(ctx, t.ID, cmp.Or(tag, "default"))
		if err != nil {
			return err
		}
		if newest == nil {
			plan.missing("the template %q has no build with the tag %q; name one of its tags in Config.Template (template, --e2b-template), as %q",
				name, cmp.Or(tag, "default"), name+":tag")
			return nil
		}
		status = newest.Status
	}
	switch status {
	case e2b.BuildReady:
		plan.Status = TemplateReady
	case e2b.BuildFailed:
		plan.missing("the template %q was never built; its build has failed", cfg.Template)
	default:
		plan.Status = TemplateBuilding
	}
	return nil
}

// missing refuses a run whose template is not there.
func (p *StartPlan) missing(format string, args ...any) {
	p.Status, p.Refused = TemplateMissing, fmt.Sprintf(format, args...)
}

// derive says which template of its own the run takes, or may take.
func (p *StartPlan) derive(d *derivation, asked bool) {
	status := TemplateMissing
	switch {
	case d.ready:
		status = TemplateReady
	case d.going:
		status = TemplateBuilding
	case !asked:
		status = TemplateUnknown
	}
	p.Derived = &DerivedTemplate{
		Name: d.name(), FromTemplate: d.Template, FromImage: d.Image, CPU: d.CPU, MemoryGB: float64(d.MemoryMB) / 1024,
		Packages: d.Packages, Worker: d.Worker, Status: status, Allowed: d.allowed, Reason: d.reason, parts: d.derivedParts,
	}
	p.Conditional = d.needed == takeFitting && !d.ready
	impossible := buildableSize(d.CPU, float64(d.MemoryMB)/1024)
	switch {
	case !asked && d.Template != "":
		p.note("its name is another if the template %q is the account's", d.Template)
	case p.Conditional && !p.Derived.usable() && impossible != nil:
		p.note("if the template %q makes sandboxes of another size the run is refused: %v", d.Template, impossible)
	case p.Conditional && !p.Derived.usable():
		p.note("if the template %q makes sandboxes of another size the run is refused: allow a template to be built, by %s", d.Template, allowBuild)
	}
	if p.Conditional {
		return
	}
	switch {
	case p.Derived.usable() || p.Derived.waits() || status == TemplateUnknown || p.Refused != "":
	case status == TemplateBuilding:
		p.Refused = fmt.Sprintf("%s, and the template for that is being built: try again when it is ready, or let runs wait for it, by %s", d.reason, allowBuild)
	case impossible != nil:
		p.Refused = fmt.Sprintf("%s, and no template can have that: %v", d.reason, impossible)
	default:
		p.Refused = fmt.Sprintf("%s, and the template for that is missing; it would be built, once: %s; allow that by %s", d.reason, d.derivedParts, allowBuild)
	}
	if err := d.worker.mayRunAtE2B(); err != nil && status == TemplateMissing && p.Refused == "" {
		p.Refused = err.Error()
	}
	if p.Template, p.Status = p.Derived.Name, status; status == TemplateReady {
		p.Refused = "" // whatever became of the template that it was made from
	}
}

// usable reports whether the run gets it, now or when it is built.
func (t *DerivedTemplate) usable() bool { return t.Allowed || t.Status == TemplateReady }

// waits reports whether a run that may not have it built waits for it where
// somebody else has: it has no other.
func (t *DerivedTemplate) waits() bool { return t.FromImage != "" && t.Status == TemplateBuilding }

// choose finds the way of the run's packages.
func (p *StartPlan) choose(cfg Config, d *derivation, run *PreparedRun) {
	needed, _ := run.requirements() // which was looked at
	derived := p.Derived != nil && !p.Conditional
	switch {
	case len(needed) == 0 || derived && len(d.Packages) > 0:
		p.Way = StartAsIs
		if derived {
			p.Way = StartDerived
		}
	case !cfg.installDeps():
		p.Way = StartAsIs
		advice := "allow them to be installed, by " + allowInstall
		if d.unbaked == "" && !cfg.AllowTemplateBuild {
			advice += ", or a template with them to be built, by " + allowBuild
		}
		which := "the template"
		if derived {
			which = d.from()
		}
		p.note("the drivers in Python need %s: where %s has not got them, the run fails; %s", someOf(needed), which, advice)
	default:
		p.Way = StartWheelhouse
		if cfg.wheelhouseDir() == "" {
			p.Way = StartIndex
		}
	}
	if d.unbaked != "" && (d.allowed || derived) {
		p.note("the packages are not in a template: %s", d.unbaked)
	}
}

// someOf lists a few of many.
func someOf(texts []string) string {
	const few = 20
	if len(texts) <= few {
		return strings.Join(texts, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(texts[:few], ", "), len(texts)-few)
}

// String is for people, a line for each thing to know.
func (p *StartPlan) String() string {
	var b strings.Builder
	for _, line := range p.lines() {
		fmt.Fprintln(&b, "start:", line)
	}
	return b.String()
}

func (p *StartPlan) lines() []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if p.Refused != "" {
		add("refused: %s", p.Refused)
	} else {
		how := p.Way.explain()
		if p.Way == StartDerived && p.Status != TemplateReady {
			how = "which will have all that it takes"
		}
		if p.Conditional {
			how += ", if its size is right, which is not known"
		}
		add("from the template %q (%s), %s", p.Template, p.Status, how)
	}
	if d := p.Derived; d != nil && p.Refused == "" && buildableSize(d.CPU, d.MemoryGB) == nil {
		what := "its template is"
		switch {
		case p.Conditional && !d.usable():
			what = "the template for that is"
		case d.Status == TemplateBuilding:
			what = "would wait for the build of"
		case d.Status != TemplateReady:
			what = "would build"
		}
		if p.Conditional {
			what = "if a sandbox of that has another size, " + what
		}
		add("%s %s (%s), since %s", what, d.parts, d.Status, d.Reason)
		if d.Status != TemplateReady {
			verb := "is not allowed; allow it by"
			if d.Allowed {
				verb = "is allowed by"
			}
			add("building it %s %s", verb, allowBuild)
		}
	}
	lines = append(lines, p.Notes...)
	for _, c := range p.Last {
		when := "the last time"
		if c.Build > 0 {
			when = "the last time that a template was built for it,"
		}
		add("%s %s", when, c)
	}
	if len(p.Last) == 0 {
		add("what it takes is not known yet")
	}
	return lines
}

// explain is the way for people.
func (w StartWay) explain() string {
	switch w {
	case StartWheelhouse:
		return "with packages from the wheelhouse, or from an index where that has not got them"
	case StartIndex:
		return "with packages from an index"
	case StartDerived:
		return "which has all that it takes"
	}
	return "as it is"
}

// startKey names what starts have to have in common to be compared. The way is
// not in it, nor what is allowed, nor the worker program: the next version of a
// program is to know what this one has taken.
func (a *E2BTransparentProxy) startKey(p *PreparedRun) (string, error) {
	packages, err := p.requirements()
	if err != nil {
		return "", &ManifestError{Reason: err.Error()}
	}
	cfg := p.SandboxConfig
	api := cmp.Or(a.cfg.APIURL, os.Getenv("E2B_API_URL"))
	if u, err := url.Parse(api); err == nil && isNear(api) {
		api = u.Hostname() // servers on this machine have another port every time
	}
	b, err := json.Marshal([]any{
		api, cmp.Or(a.cfg.Domain, os.Getenv("E2B_DOMAIN")),
		cfg.Template, cfg.Image, cfg.CPU, evenMB(cfg.MemoryGB), packages, a.cfg.Python,
	})
	if err != nil {
		return "", err
	}
	return sha256Hex(b)[:32], nil
}

// keepStart is noteStart of an adapter with E2B's sandboxes.
func (a *E2BTransparentProxy) keepStart(p *PreparedRun, c *StartCost) error {
	if a.starts == nil {
		return nil
	}
	key, err := a.startKey(p)
	if err != nil {
		return err
	}
	return a.starts.note(key, *c)
}
