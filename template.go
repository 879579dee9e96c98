package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/worker/python"
)

// Errors of templates that runs have of their own.
var (
	// ErrTemplateBuild: a template could not be built, or may not be.
	// [*TemplateBuildError] says which step failed, and its last lines.
	ErrTemplateBuild = errors.New("template was not built")

	// ErrTemplateBuildUnsupported: the server, or what is in its place, builds no
	// templates.
	ErrTemplateBuildUnsupported = e2b.ErrBuildUnsupported
)

const (
	// builderVersion changes whenever a template of the same parts would be made in
	// another way.
	builderVersion = 1

	// derivedPrefix begins the names of derived templates.
	derivedPrefix = "osiris-"

	derivedBin   = "/opt/osiris/bin"   // has the worker program in a derived template; /tmp does not survive the build
	derivedCache = "/opt/osiris/cache" // has its packages

	maxImage = 500 // bytes of its name
)

// derivedName is what derived templates are called.
var derivedName = regexp.MustCompile(`^` + derivedPrefix + `[0-9a-f]{32}$`)

// imageName is [host[:port]/]path[:tag][@sha256:digest]. A first part is a host
// where it has a dot or a port, as everywhere.
var imageName = regexp.MustCompile(`^(?:(?:(?:localhost|` + hostPart + `(?:\.` + hostPart + `)+)(?::[0-9]{1,5})?|` + hostPart + `:[0-9]{1,5})/)?` +
	pathPart + `(?:/` + pathPart + `)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$`)

const (
	hostPart = `[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?`
	pathPart = `[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*`
)

// derivation is the template that a run would have of its own: what its size,
// image and packages make of the one that its Config names.
type derivation struct {
	derivedParts // zero where the run wants nothing that could be derived

	key    string         // by which an adapter remembers it
	worker *workerProgram // that is in it

	needed  choice
	reason  string // of that, for people
	allowed bool   // to be built
	ready   bool   // it is there
	going   bool   // it is being built, or was asked for

	// unbaked says why packages that the run's drivers need are not in it; empty
	// where they are, or there are none.
	unbaked string
}

// choice says whether a run takes a derived template.
type choice int

const (
	takeBase    choice = iota // the one that it names, as it is
	takeFitting               // that, unless a sandbox turns out to have another size
	takeDerived
)

// derivedParts is all that makes one derived template another one than the
// next: its name is a hash of it. It holds no secret, and no value of a
// variable.
type derivedParts struct {
	Builder  int      `json:"builder"`
	Template string   `json:"template,omitempty"` // it begins with; or
	Build    string   `json:"build,omitempty"`    // which version of that, if it is the account's
	Image    string   `json:"image,omitempty"`    // it begins with
	CPU      int      `json:"cpu,omitempty"`      // zero is E2B's default
	MemoryMB int      `json:"memory_mb,omitempty"`
	Packages []string `json:"packages,omitempty"` // normalised, sorted: all that drivers in Python need; none where there are none
	Python   string   `json:"python,omitempty"`   // interpreter; empty is the usual one
	Worker   string   `json:"worker"`             // SHA-256 of the program
}

func (d derivedParts) name() string {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	sum := sha256.Sum256(b)
	return derivedPrefix + hex.EncodeToString(sum[:16])
}

// from is what it begins with, for people.
func (d derivedParts) from() string {
	if d.Image != "" {
		return fmt.Sprintf("the image %q", d.Image)
	}
	return fmt.Sprintf("the template %q", d.Template)
}

// base is from for programs.
func (d derivedParts) base() string {
	if d.Image != "" {
		return d.Image
	}
	return d.Template
}

// String says what would be built.
func (d derivedParts) String() string {
	var b strings.Builder
	b.WriteString(d.name() + " from " + d.from())
	if d.CPU > 0 || d.MemoryMB > 0 {
		b.WriteString(" with " + describeSize(d.CPU, float64(d.MemoryMB)/1024))
	}
	switch n := len(d.Packages); {
	case n > 20:
		fmt.Fprintf(&b, ", the packages %s and %d more", strings.Join(d.Packages[:20], ", "), n-20)
	case n > 0:
		b.WriteString(", the packages " + strings.Join(d.Packages, ", "))
	}
	b.WriteString(" and the worker program")
	return b.String()
}

// validateTemplate checks what a Config says of templates.
func (c Config) validateTemplate() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("remote: %w: Config.%w", ErrInvalid, fmt.Errorf(format, args...))
	}
	switch {
	case c.Image != "" && !isImage(c.Image):
		return invalid("Image%s is no name of a container image as \"python:3.12\" or \"registry.example.com/team/image@sha256:\" and 64 hexadecimal digits", shownImage(c.Image))
	case c.Image != "" && c.Template != "":
		return invalid("Image is %.100q and Template is %.100q; set one of them: a template is made from the one, or taken as the other", c.Image, c.Template)
	case c.Image != "" && c.OpenSandbox != nil:
		return invalid("Image is %.100q: %w by OpenSandbox", c.Image, ErrTemplateBuildUnsupported)
	case c.AllowTemplateBuild && c.OpenSandbox != nil:
		return invalid("AllowTemplateBuild is set: %w by OpenSandbox", ErrTemplateBuildUnsupported)
	}
	if c.Image != "" || c.AllowTemplateBuild {
		if err := buildableSize(c.CPU, c.MemoryGB); err != nil {
			return invalid("%w", err)
		}
	}
	for _, p := range c.Packages {
		if strings.TrimSpace(p) == "" || strings.HasPrefix(strings.TrimSpace(p), "#") {
			return invalid("Packages has %.100q, which is no requirement as \"pandas>=2\"", p)
		}
	}
	if _, err := python.Requirements(c.Packages); err != nil {
		return invalid("Packages: %w", err)
	}
	return nil
}

// isImage reports whether a text has the shape of an image's name.
func isImage(name string) bool { return len(name) <= maxImage && imageName.MatchString(name) }

// shownImage is a text that is no image's name, to be put in an error. What stands
// before an "@" may be a password.
func shownImage(name string) string {
	before, digest, at := strings.Cut(name, "@")
	if at && (strings.Contains(before, "://") || !strings.HasPrefix(digest, "sha256:") || strings.Trim(digest[len("sha256:"):], "0123456789abcdefABCDEF") != "") {
		return " has an \"@\" that begins no digest, so it"
	}
	return fmt.Sprintf(" is %.100q, which", name)
}

// leastMemoryMB is that of a template, in MiB.
const leastMemoryMB = 128

// buildableSize refuses a size that no template can have. What else an account
// may have E2B says.
func buildableSize(cpu int, memoryGB float64) error {
	switch {
	case cpu > 1 && cpu%2 != 0:
		return fmt.Errorf("CPU is %d, and E2B builds templates with 1 core or an even number of them, such as %d", cpu, cpu+1)
	case memoryGB != 0 && evenMB(memoryGB) < leastMemoryMB:
		return fmt.Errorf("MemoryGB is %g, and E2B builds templates with %g or more", memoryGB, float64(leastMemoryMB)/1024)
	}
	return nil
}

// requirements are those of all packages that a run's drivers in Python need. A
// run without such drivers has none.
func (p *PreparedRun) requirements() ([]string, error) {
	if len(p.PythonDrivers) == 0 {
		return nil, nil
	}
	var all []string
	for _, d := range p.PythonDrivers {
		all = append(all, d.Requirements...)
	}
	return python.Requirements(append(all, p.SandboxConfig.Packages...))
}

// indexVariable returns a variable of a run that says where packages come from,
// or which; empty when it passes none. Its value may be a secret, and what is in
// a template all may see who may use that.
func indexVariable(names []string) string {
	for _, name := range names {
		if strings.HasPrefix(name, "PIP_") || strings.HasPrefix(name, "UV_") || name == "NETRC" {
			return name
		}
	}
	return ""
}

// mayDerive reports whether a run may have to wait for a template.
func (e *engine) mayDerive(p *PreparedRun) bool {
	return e.ships && (e.cfg.AllowTemplateBuild || p.SandboxConfig.Image != "")
}

// wanted is what a run wants that might be derived, by what it says itself.
func (a *E2BTransparentProxy) wanted(ctx context.Context, p *PreparedRun) (*derivation, error) {
	cfg := p.SandboxConfig
	d := &derivation{allowed: a.cfg.AllowTemplateBuild}
	if a.client == nil {
		return d, nil
	}
	packages, err := p.requirements()
	if err != nil {
		return nil, &ManifestError{Reason: err.Error()}
	}
	if name := indexVariable(p.RunParams.PassEnv); name != "" && len(packages) > 0 {
		packages = nil
		d.unbaked = fmt.Sprintf("the run passes the variable %s, which says where packages come from and may hold a secret", name)
	}
	switch {
	case cfg.Image != "":
		d.needed, d.reason = takeDerived, "the run asks for an image"
	case len(packages) > 0 && d.allowed:
		d.needed, d.reason = takeDerived, "its drivers in Python need packages"
	case cfg.CPU != 0 || cfg.MemoryGB != 0:
		d.needed, d.reason = takeFitting, "it asks for "+describeSize(cfg.CPU, cfg.MemoryGB)
	default:
		return d, nil
	}
	program, err := a.cfg.workerPath()
	if err == nil {
		d.worker, err = a.programs.load(ctx, program)
	}
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	d.derivedParts = derivedParts{
		Builder: builderVersion, Template: strings.ToLower(cfg.Template), Image: cfg.Image,
		CPU: cfg.CPU, MemoryMB: evenMB(cfg.MemoryGB), Packages: packages, Worker: d.worker.sha256,
	}
	if cfg.Image != "" {
		d.Template = ""
	}
	if len(packages) > 0 {
		d.Python = a.cfg.Python
	}
	d.key = d.name()
	return d, nil
}

// evenMB is a size of memory as E2B takes it.
func evenMB(gb float64) int { return 2 * int(math.Round(gb*512)) }

// compare completes what a run wants by what there is on the account, which is one
// request for a hundred templates.
func (a *E2BTransparentProxy) compare(ctx context.Context, d *derivation, cfg SandboxConfig) error {
	own, err := a.ownTemplates(ctx)
	if err != nil {
		return fmt.Errorf("remote: templates: %w", err)
	}
	name, tag, _ := strings.Cut(d.Template, ":")
	var base *e2b.Template
	if d.Image == "" {
		base = findTemplate(own, name)
	}
	switch {
	case base == nil: // its size only a sandbox tells
	case tag != "" && tag != "default":
		b, err := a.taggedBuild(ctx, base.ID, tag)
		switch {
		case err != nil:
			return fmt.Errorf("remote: templates: %w", err)
		case b == nil: // which whoever takes it will hear
		case b.Status != e2b.BuildReady:
			d.Build = b.ID
		default:
			d.takeSize(b.ID, b.CPU, b.MemoryMB, cfg)
		}
	default:
		d.takeSize(base.BuildID, base.CPU, base.MemoryMB, cfg)
	}
	if t := findTemplate(own, d.name()); t != nil {
		d.ready = t.BuildID != ""
		d.going = !d.ready && (t.BuildStatus == e2b.BuildRunning || t.BuildStatus == e2b.BuildWaiting)
	}
	return nil
}

// takeSize completes what a run wants by a build of the account's own template
// that it begins with.
func (d *derivation) takeSize(build string, cpu, memoryMB int, cfg SandboxConfig) {
	d.Build = build
	if cpu == 0 || memoryMB == 0 { // it is not ready, or the server does not tell
		return
	}
	has := SandboxInfo{CPU: cpu, MemoryGB: float64(memoryMB) / 1024}
	switch fits := sameSize(cfg, has); {
	case !fits && d.needed == takeFitting:
		d.needed = takeDerived
		d.reason += fmt.Sprintf(", and the template %q has %s", d.Template, describeSize(has.CPU, has.MemoryGB))
	case d.needed == takeFitting:
		d.needed = takeBase
	}
	if d.CPU == 0 {
		d.CPU = cpu
	}
	if d.MemoryMB == 0 {
		d.MemoryMB = memoryMB
	}
}

// taggedBuild returns the newest build of a template that was given a tag, or
// whose ID that is; nil when there is none.
func (a *E2BTransparentProxy) taggedBuild(ctx context.Context, id, tag string) (*e2b.BuildInfo, error) {
	tags, err := a.client.TemplateTags(ctx, id)
	if err != nil {
		return nil, err
	}
	build := tag
	for _, t := range tags {
		if t.Name == tag {
			build = t.BuildID
		}
	}
	for info, err := range a.client.Builds(ctx, id) {
		if err != nil {
			return nil, err
		}
		if info.ID == build {
			return &info, nil
		}
	}
	return nil, nil
}

func (a *E2BTransparentProxy) ownTemplates(ctx context.Context) ([]e2b.Template, error) {
	var own []e2b.Template
	for t, err := range a.client.Templates(ctx) {
		if err != nil {
			return nil, err
		}
		own = append(own, t)
	}
	return own, nil
}

// findTemplate finds a template by its ID or name; nil where there is none.
func findTemplate(own []e2b.Template, ref string) *e2b.Template {
	if i := slices.IndexFunc(own, func(t e2b.Template) bool { return t.Matches(ref) }); i >= 0 {
		return &own[i]
	}
	return nil
}

// templates is what an adapter remembers of them.
type templates struct {
	mu      sync.Mutex
	known   map[string]*derivation // by key: those that were found as they are, and do not change
	waiting map[string]*turn       // by name
}

// turn is what runs of one adapter that want the same template wait for. The one
// that has the lock has it built.
type turn struct {
	mutex
	ended  atomic.Int64 // how many have had it
	failed error        // why the last of them has no template, if the build has failed
}

// recall returns a derivation that was remembered; nil when none was.
func (t *templates) recall(key string) *derivation {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[key]
}

// remember keeps a derivation: its template is there, or is not needed. Nobody
// changes it any more.
func (t *templates) remember(d *derivation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = make(map[string]*derivation)
	}
	t.known[d.key] = d
}

// forget drops one whose template is gone.
func (t *templates) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, key)
}

// turn is that of a template.
func (t *templates) turn(name string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[name]
	if !ok {
		if t.waiting == nil {
			t.waiting = make(map[string]*turn)
		}
		w = &turn{mutex: make(mutex, 1)}
		t.waiting[name] = w
	}
	return w
}
