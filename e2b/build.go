package e2b

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// What an error about the build of a template is about, beside the others.
var (
	ErrBuild            = errors.New("build failed")           // a *BuildError
	ErrBuildCanceled    = errors.New("build was canceled")     // another build of the same template took its place; a *BuildError, too
	ErrBuildNotWaiting  = errors.New("build does not wait")    // it was started already, or another took its place
	ErrBuildUnsupported = errors.New("no builds of templates") // the server has no routes for them
)

// BuildStatus says how far a build is.
type BuildStatus string

// The statuses of a build. One that a client does not know is taken for
// BuildRunning, as in the server.
const (
	BuildWaiting BuildStatus = "waiting" // requested, and to be started by who requested it
	BuildRunning BuildStatus = "building"
	BuildReady   BuildStatus = "ready"
	BuildFailed  BuildStatus = "error"
)

// ended says whether the status will not change any more.
func (s BuildStatus) ended() bool { return s == BuildReady || s == BuildFailed }

// BuildOptions says what template is built, and how. Name, and one of FromImage
// and FromTemplate, are required.
type BuildOptions struct {
	// Name of the template, perhaps with a tag: "name" or "name:tag". One of
	// the account's with that name gets a new build.
	Name string

	// Tags of the build, beside that in Name. A build without any gets the tag
	// "default", and one with others does not: who uses the template by its
	// name alone gets the newest build with "default", or, where there is none,
	// an error that matches ErrTemplate. To have both, name it: Tags
	// {"v1", "default"}.
	Tags []string

	CPU      int // of sandboxes made from it: 1, or an even number; zero means 2
	MemoryMB int // MiB, an even number from 128 on; zero means 1024

	FromImage    string    // begin with a container image, as "python:3.12"
	Registry     *Registry // where FromImage is not public
	FromTemplate string    // begin with a template: an ID, or a name, perhaps with a tag

	Steps []BuildStep // done in order

	// StartCommand is run at the end of the build and goes on in every sandbox
	// made from the template. ReadyCommand is repeated until it succeeds,
	// which ends the build, for at most 10 minutes; without one the build ends
	// 20 s after the start of a StartCommand. Where both are empty, they are
	// those of FromTemplate.
	StartCommand, ReadyCommand string

	Force bool // do all steps, also those that E2B has the result of
}

// BuildStep is one step of a build. Steps run as the user "user", who is made
// where there is none and may use sudo, whatever user the template had that the
// build begins with. They run in the directory of that template, else in his
// home. [UserStep] and [WorkdirStep] change that. What is in /tmp at the end of
// a build is not in the template.
//
// E2B keeps the steps of a template, and shows their output to whoever may see
// the build: they are no place for secrets.
type BuildStep struct {
	kind  string
	args  []string
	layer *Layer
}

// RunStep runs a command, by bash -l -c.
func RunStep(command string) BuildStep { return BuildStep{kind: "RUN", args: []string{command}} }

// RunStepAs is [RunStep] as another user; empty means that of the step.
func RunStepAs(user, command string) BuildStep {
	if user == "" {
		return RunStep(command)
	}
	return BuildStep{kind: "RUN", args: []string{command, user}}
}

// CopyStep copies all that is in a layer into a directory, which is made where
// there is none; files that are there already are replaced. They belong to
// owner, "user" or "user:group"; empty means the user of the step. Their
// permissions are those in the layer.
func CopyStep(layer *Layer, dir, owner string) BuildStep {
	return BuildStep{kind: "COPY", args: []string{".", dir, owner, ""}, layer: layer}
}

// WorkdirStep makes a directory, where there is none, that of the steps that
// follow and of sandboxes made from the template.
func WorkdirStep(dir string) BuildStep { return BuildStep{kind: "WORKDIR", args: []string{dir}} }

// UserStep makes a user, who is made where there is none, that of the steps
// that follow and of sandboxes made from the template.
func UserStep(user string) BuildStep { return BuildStep{kind: "USER", args: []string{user}} }

// EnvStep sets an environment variable for the steps that follow. Sandboxes do
// not have it. E2B replaces $NAME in the value.
func EnvStep(name, value string) BuildStep {
	return BuildStep{kind: "ENV", args: []string{name, value}}
}

// Build is a build that was requested.
type Build struct {
	ID         string   `json:"buildID"`
	TemplateID string   `json:"templateID"`
	Names      []string `json:"names"` // of the template, with the account's namespace
	Tags       []string `json:"tags"`  // of the build
}

// RequestBuild registers a build, and the template where there is none of that
// name. Nothing runs until [Client.StartBuild]; E2B takes a build that was not
// started for 40 minutes for failed.
//
// A request cancels other builds of the template that were not started and
// have a tag in common with it. (So does a repetition of it after its answer
// was lost, which cancels the first: it takes no more than one.)
//
// The error matches [ErrBuildUnsupported] when the server has no builds,
// [ErrQuota] when the account has as many of them as it may, [ErrConflict] or
// [ErrForbidden] when the name is taken, and [ErrInvalid].
//
// Source: infra, packages/api/internal/handlers/template_request_build_v3.go
// and packages/api/internal/template/register_build.go.
func (c *Client) RequestBuild(ctx context.Context, o BuildOptions) (*Build, error) {
	const op = "request build"
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	in := struct {
		Name     string   `json:"name"`
		Tags     []string `json:"tags,omitempty"`
		CPU      int      `json:"cpuCount,omitempty"`
		MemoryMB int      `json:"memoryMB,omitempty"`
	}{o.Name, o.Tags, o.CPU, o.MemoryMB}
	b := &Build{}
	_, err := c.send(ctx, apiCall{op: op, method: http.MethodPost, path: "/v3/templates", in: in, out: b, safe: true})
	if err != nil {
		return nil, aboutBuilds(err)
	}
	if !isID(b.TemplateID) || !isID(b.ID) {
		return nil, fmt.Errorf("%s: the answer has no usable IDs", op)
	}
	return b, nil
}

// aboutBuilds finds what a refusal of a route of builds is about.
func aboutBuilds(err error) error {
	e := (*APIError)(nil)
	if !errors.As(err, &e) {
		return err
	}
	switch e.Status {
	case http.StatusTooManyRequests:
		if e.RetryAfter == 0 {
			e.about, e.fix = ErrQuota, "wait for another build of the account to end, or ask E2B for more"
		}
	case http.StatusNotFound:
		if !e.object || isNoRoute(e.Message) {
			return fmt.Errorf("%w: %w", ErrBuildUnsupported, err)
		}
	case http.StatusMethodNotAllowed, http.StatusGone, http.StatusNotImplemented:
		return fmt.Errorf("%w: %w", ErrBuildUnsupported, err)
	}
	return err
}

// isNoRoute says whether the words of a 404 are about the route, and not about
// a template.
func isNoRoute(message string) bool {
	m := strings.ToLower(message)
	return m == "not found" || strings.Contains(m, "no matching operation") || strings.Contains(m, "route") || strings.Contains(m, "page not found")
}

// minMemoryMB is the server's (infra: spec/openapi.yml, MemoryMB).
const minMemoryMB = 128

func (o *BuildOptions) check() error {
	if _, _, err := splitTemplate(o.Name); err != nil {
		return err
	}
	if len(o.Tags) > 0 {
		if err := checkTags(o.Tags); err != nil {
			return err
		}
	}
	switch {
	case o.CPU < 0 || o.CPU > 1 && o.CPU%2 != 0:
		return fmt.Errorf("%w: CPU is %d, and must be 1 or an even number", ErrInvalid, o.CPU)
	case o.MemoryMB != 0 && (o.MemoryMB < minMemoryMB || o.MemoryMB%2 != 0):
		return fmt.Errorf("%w: MemoryMB is %d, and must be an even number of MiB, at least %d", ErrInvalid, o.MemoryMB, minMemoryMB)
	case o.FromImage == "" && o.FromTemplate == "":
		return fmt.Errorf("%w: there is nothing to begin with: give FromImage or FromTemplate", ErrInvalid)
	case o.FromImage != "" && o.FromTemplate != "":
		return fmt.Errorf("%w: FromImage and FromTemplate are both given, and a build begins with one", ErrInvalid)
	case o.Registry != nil && o.FromImage == "":
		return fmt.Errorf("%w: Registry is for FromImage, and there is none", ErrInvalid)
	}
	for i, s := range o.Steps {
		if err := s.check(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *BuildStep) check() error {
	switch {
	case s.kind == "":
		return fmt.Errorf("%w: it is empty", ErrInvalid)
	case s.kind == "ENV" && !isVariable(s.args[0]):
		return fmt.Errorf("%w: %q is not the name of an environment variable", ErrInvalid, clip(s.args[0]))
	case s.args[0] == "":
		return fmt.Errorf("%w: %s without an argument", ErrInvalid, s.kind)
	case s.kind != "COPY":
		return nil
	case s.layer == nil || s.layer.hash == "":
		return fmt.Errorf("%w: COPY without a layer, which NewLayer makes", ErrInvalid)
	case s.args[1] == "":
		return fmt.Errorf("%w: COPY without a directory", ErrInvalid)
	}
	// They get between the double quotes of a script.
	for _, arg := range s.args {
		if strings.ContainsAny(arg, "\"$`\\\n") {
			return fmt.Errorf("%w: COPY cannot have %q", ErrInvalid, clip(arg))
		}
	}
	return nil
}

// isVariable says whether a program could have got a variable of that name, and
// it is not one that was given with its value.
func isVariable(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) })
}

// isID checks an ID before it becomes part of a URL: what E2B and its fakes
// make, not what it may be.
func isID(id string) bool { return len(id) <= maxTemplateName && isWord(id, "-_") }

// BuildInfo describes a build.
type BuildInfo struct {
	ID          string      `json:"buildID"`
	Status      BuildStatus `json:"status"`
	CPU         int         `json:"cpuCount"`
	MemoryMB    int         `json:"memoryMB"`    // MiB
	DiskMB      int         `json:"diskSizeMB"`  // MiB; zero when not known
	EnvdVersion string      `json:"envdVersion"` // empty until it is ready
	CreatedAt   time.Time   `json:"createdAt"`   // when it was requested
	UpdatedAt   time.Time   `json:"updatedAt"`
	FinishedAt  time.Time   `json:"finishedAt"` // zero until it has ended
}

// Builds lists the builds of one of the account's templates, the newest first,
// as [Client.List] does sandboxes. It takes an ID: E2B knows no names here. The
// error matches [ErrNotFound] when there is no such template.
func (c *Client) Builds(ctx context.Context, templateID string) iter.Seq2[BuildInfo, error] {
	const op = "list builds"
	return func(yield func(BuildInfo, error) bool) {
		if !isID(templateID) {
			yield(BuildInfo{}, fmt.Errorf("%s: %w: %q is not the ID of a template", op, ErrInvalid, clip(templateID)))
			return
		}
		in := func(list *bounded[BuildInfo]) any {
			return &struct {
				Builds *bounded[BuildInfo] `json:"builds"`
			}{list}
		}
		for b, err := range pagesIn(ctx, c, op, "/templates/"+templateID, url.Values{}, in, nil) {
			if e := (*APIError)(nil); errors.As(err, &e) && errors.Is(err, ErrNotFound) && e.fix == "" {
				e.fix = "this takes the ID of a template, which Client.Template finds by a name"
			}
			if !yield(b, aboutTemplate(err, templateID)) || err != nil {
				return
			}
		}
	}
}

// StartBuild uploads the layers that E2B has not got, and starts a build that
// was requested with the same options. It returns when the build has begun;
// [Client.WaitBuild] waits for its end.
//
// A start cancels the builds of the template that run and have a tag in common
// with it, and does so even when it is itself refused. So StartBuild first
// looks whether the build still waits, which leaves but a moment for that. The
// error matches [ErrBuildNotWaiting] when it does not: it was started before,
// or a newer request has canceled it.
//
// Source: infra, packages/api/internal/handlers/template_start_build_v2.go.
func (c *Client) StartBuild(ctx context.Context, b *Build, o BuildOptions) error {
	const op = "start build"
	if err := o.check(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if b == nil || !isID(b.TemplateID) || !isID(b.ID) {
		return fmt.Errorf("%s: %w: there is no build", op, ErrInvalid)
	}
	if err := c.uploadLayers(ctx, b.TemplateID, o.Steps); err != nil {
		return err
	}
	call := apiCall{
		op: op, method: http.MethodPost, path: "/v2/templates/" + b.TemplateID + "/builds/" + b.ID,
		in: o.start(), secret: o.Registry != nil,
	}
	var lost error // of a start that may have been carried out
	for try := 0; ; try++ {
		s, err := c.buildStatus(ctx, op, b.TemplateID, b.ID, 0)
		switch {
		case lost != nil && (err != nil || s.Status == BuildWaiting && (try > c.cfg.Retries || !mayRepeat(lost, true))):
			return lost
		case err != nil:
			return err
		case lost != nil && s.Status != BuildWaiting:
			return nil
		case s.Status != BuildWaiting:
			return fmt.Errorf("%s: %w: %w", op, ErrBuildNotWaiting, s.instead(b.TemplateID, b.ID))
		}
		_, err = c.send(ctx, call)
		if e := (*APIError)(nil); errors.As(err, &e) && e.Status/100 == 4 && e.Status != http.StatusRequestTimeout {
			if e.notWaiting() {
				err = fmt.Errorf("%w: %w", ErrBuildNotWaiting, err)
			}
			return aboutBuilds(err)
		}
		if err == nil || !c.pause(ctx, op, try, err) {
			return err
		}
		lost = err
	}
}

// uploadLayers uploads each layer once.
func (c *Client) uploadLayers(ctx context.Context, templateID string, steps []BuildStep) error {
	done := make(map[string]bool)
	for _, s := range steps {
		if s.layer == nil || done[s.layer.hash] {
			continue
		}
		if err := c.uploadLayer(ctx, templateID, s.layer); err != nil {
			return err
		}
		done[s.layer.hash] = true
	}
	return nil
}

// buildStart is what a start sends.
type buildStart struct {
	FromImage    string            `json:"fromImage,omitempty"`
	Registry     map[string]string `json:"fromImageRegistry,omitempty"`
	FromTemplate string            `json:"fromTemplate,omitempty"`
	Steps        []stepBody        `json:"steps"`
	StartCommand string            `json:"startCmd,omitempty"`
	ReadyCommand string            `json:"readyCmd,omitempty"`
	Force        bool              `json:"force,omitempty"`
}

type stepBody struct {
	Kind string   `json:"type"`
	Args []string `json:"args"`
	Hash string   `json:"filesHash,omitempty"`
}

func (o *BuildOptions) start() buildStart {
	b := buildStart{
		FromImage: o.FromImage, Registry: o.Registry.body(), FromTemplate: o.FromTemplate,
		Steps:        []stepBody{},
		StartCommand: o.StartCommand, ReadyCommand: o.ReadyCommand, Force: o.Force,
	}
	for _, s := range o.Steps {
		step := stepBody{Kind: s.kind, Args: s.args}
		if s.layer != nil {
			step.Hash = s.layer.hash
		}
		b.Steps = append(b.Steps, step)
	}
	return b
}

// WaitBuild waits for a build to be ready. onLog, unless nil, is told what the
// build says, in order, by the goroutine of the call; the text is that of
// programs which run in the build, and may have anything in it.
//
// A build that fails gives a [*BuildError]. The wait ends with ctx; the build
// does not: it goes on for up to an hour, and cannot be stopped but by another
// one of its template. A build that was never started is waited for, too.
func (c *Client) WaitBuild(ctx context.Context, templateID, buildID string, onLog func(BuildLog)) error {
	return c.waitBuild(ctx, templateID, buildID, onLog)
}

// BuildTemplate builds a template and waits until it is ready:
// [Client.RequestBuild], [Client.StartBuild] and [Client.WaitBuild], see there.
// After an error there may be a template without a build that is ready, which
// [Client.DeleteTemplate] removes. The Build is nil only where none was
// requested.
func (c *Client) BuildTemplate(ctx context.Context, o BuildOptions, onLog func(BuildLog)) (*Build, error) {
	b, err := c.RequestBuild(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := c.StartBuild(ctx, b, o); err != nil {
		return b, err
	}
	return b, c.WaitBuild(ctx, b.TemplateID, b.ID, onLog)
}
