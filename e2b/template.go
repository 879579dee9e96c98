package e2b

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Template is what E2B tells of a template.
type Template struct {
	// Own says that it is the account's. Of others, such as "base", E2B tells
	// nothing but that there is one: all other fields are empty then, and only
	// a create shows whether it may be used.
	Own bool

	ID          string
	Names       []string // with the account's namespace
	Public      bool     // other accounts may use it, too
	CPU         int      // of a sandbox made from it; zero when not known
	MemoryMB    int      // MiB
	DiskMB      int      // MiB
	EnvdVersion string

	// BuildID is the newest build with the tag "default" that is ready: what a
	// sandbox is made from. Empty means that there is none, or that it is not
	// known.
	BuildID string

	// BuildStatus is that of the newest build with the tag "default", which
	// need not be BuildID: a template with a failed build goes on with the one
	// before. Empty means not known.
	BuildStatus BuildStatus
	BuildCount  int // how often it was built

	CreatedAt, UpdatedAt time.Time // zero when not known
	LastSpawnedAt        time.Time // when the last sandbox was made from it; zero means never, or not known
	SpawnCount           int       // how many sandboxes were made from it

	// SeenAt is the server's time when it said this, as in [SandboxInfo].
	SeenAt time.Time
}

// listedTemplate is a template in E2B's list. Its builds are those with the
// tag "default" alone (infra: packages/db/queries/get_team_templates_with_cursor.sql).
type listedTemplate struct {
	ID            string      `json:"templateID"`
	Names         []string    `json:"names"`
	Aliases       []string    `json:"aliases"` // older servers
	Public        bool        `json:"public"`
	CPU           int         `json:"cpuCount"`
	MemoryMB      int         `json:"memoryMB"`
	DiskMB        int         `json:"diskSizeMB"`
	EnvdVersion   string      `json:"envdVersion"`
	BuildID       string      `json:"buildID"`
	BuildStatus   BuildStatus `json:"buildStatus"`
	BuildCount    int         `json:"buildCount"`
	CreatedAt     time.Time   `json:"createdAt"`
	UpdatedAt     time.Time   `json:"updatedAt"`
	LastSpawnedAt time.Time   `json:"lastSpawnedAt"` // null for never
	SpawnCount    int         `json:"spawnCount"`

	seenAt time.Time
}

// seen takes the server's time from an answer.
func (t *listedTemplate) seen(h http.Header) {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		t.seenAt = at
	}
}

// noBuild is the ID that a list has for none.
const noBuild = "00000000-0000-0000-0000-000000000000"

func (t *listedTemplate) template() *Template {
	names := t.Names
	if len(names) == 0 {
		names = t.Aliases
	}
	build := t.BuildID
	if build == noBuild {
		build = ""
	}
	return &Template{
		Own: true, ID: t.ID, Names: names, Public: t.Public,
		CPU: t.CPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB, EnvdVersion: t.EnvdVersion,
		BuildID: build, BuildStatus: t.BuildStatus, BuildCount: t.BuildCount,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
		LastSpawnedAt: t.LastSpawnedAt, SpawnCount: t.SpawnCount, SeenAt: t.seenAt,
	}
}

// Matches reports whether it is the template with an ID or a name, which may
// lack the account's namespace. Capital letters count as small ones.
func (t *Template) Matches(ref string) bool {
	ref = strings.ToLower(ref) // as the server does
	return t.ID == ref || slices.ContainsFunc(t.Names, func(name string) bool {
		return name == ref || strings.HasSuffix(name, "/"+ref)
	})
}

// Templates lists the account's templates, the newest first, as [Client.List]
// does sandboxes. Snapshots are not among them: see [Client.Snapshots].
func (c *Client) Templates(ctx context.Context) iter.Seq2[Template, error] {
	return func(yield func(Template, error) bool) {
		for t, err := range pages[listedTemplate](ctx, c, "list templates", "/v2/templates", url.Values{}, (*listedTemplate).seen) {
			if err != nil {
				yield(Template{}, err)
				return
			}
			if !yield(*t.template(), nil) {
				return
			}
		}
	}
}

// Template looks up a template by its ID or name, with or without a tag. It
// makes nothing and costs nothing. The error matches [ErrTemplate] and
// [ErrNotFound] when there is none.
func (c *Client) Template(ctx context.Context, ref string) (*Template, error) {
	const op = "look up template"
	if ref == "" {
		return nil, fmt.Errorf("%s: %w: there is no name", op, ErrInvalid)
	}
	name, tag, _ := strings.Cut(ref, ":")
	t, err := c.ownTemplate(ctx, op, name)
	if err != nil || t != nil && tag == "" {
		return t, err
	}
	var alias struct {
		ID     string `json:"templateID"`
		Public bool   `json:"public"`
	}
	_, err = c.send(ctx, apiCall{op: op, method: http.MethodGet, path: "/templates/aliases/" + segment(ref), out: &alias, safe: true})
	switch {
	case errors.Is(err, ErrForbidden):
		return &Template{}, nil
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w %q: %w", ErrTemplate, ref, err)
	case err != nil:
		return nil, err
	case t != nil:
		return t, nil
	}
	return &Template{Own: true, ID: alias.ID, Names: []string{name}, Public: alias.Public}, nil
}

// ownTemplate looks a template up in the account's list; nil means that it is
// not there.
func (c *Client) ownTemplate(ctx context.Context, op, ref string) (*Template, error) {
	for t, err := range pages[listedTemplate](ctx, c, op, "/v2/templates", url.Values{}, (*listedTemplate).seen) {
		if err != nil {
			return nil, err
		}
		if own := t.template(); own.Matches(ref) {
			return own, nil
		}
	}
	return nil, nil
}

// DeleteTemplate deletes one of the account's templates, by its ID or name,
// with all its builds and tags. It is no error when there is none. E2B refuses,
// and the error matches [ErrInvalid], while sandboxes that were made from it
// run or are paused. A deleted template cannot be built again; its name can.
func (c *Client) DeleteTemplate(ctx context.Context, ref string) error {
	const op = "delete template"
	path, err := templatePath(op, ref, "") // of "name:tag" the server would delete all that "name" has
	if err != nil {
		return err
	}
	_, err = c.send(ctx, apiCall{op: op, method: http.MethodDelete, path: path, safe: true, ok: []int{http.StatusNotFound}})
	return err
}

// SetTemplatePublic says whether other accounts may make sandboxes from one of
// the account's templates. The error matches [ErrNotFound] when there is none.
func (c *Client) SetTemplatePublic(ctx context.Context, ref string, public bool) error {
	const op = "publish template"
	path, err := templatePath(op, ref, "")
	if err != nil {
		return err
	}
	in := struct {
		Public bool `json:"public"`
	}{public}
	_, err = c.send(ctx, apiCall{op: op, method: http.MethodPatch, path: "/v2" + path, in: in, safe: true})
	return aboutTemplate(err, ref)
}

// TemplateTag is a tag of a template: a name for one of its builds.
type TemplateTag struct {
	Name      string    `json:"tag"`
	BuildID   string    `json:"buildID"`
	CreatedAt time.Time `json:"createdAt"` // when the build got it
}

// TemplateTags returns the tags of one of the account's templates. "default"
// is the one that a name without a tag stands for. The error matches
// [ErrNotFound] when there is no such template.
func (c *Client) TemplateTags(ctx context.Context, ref string) ([]TemplateTag, error) {
	const op = "list tags"
	path, err := templatePath(op, ref, "/tags")
	if err != nil {
		return nil, err
	}
	tags := bounded[TemplateTag]{most: maxTags}
	_, err = c.send(ctx, apiCall{op: op, method: http.MethodGet, path: path, out: &tags, safe: true})
	return tags.items, aboutTemplate(err, ref)
}

// maxTags bounds a list that has no pages.
const maxTags = 10_000

// AddTemplateTags gives tags to the build that target, "name" or "name:tag",
// stands for, and takes them from other builds of the template. It returns the
// ID of the build.
func (c *Client) AddTemplateTags(ctx context.Context, target string, tags ...string) (buildID string, err error) {
	const op = "add tags"
	if _, _, err := splitTemplate(target); err != nil {
		return "", fmt.Errorf("%s: %w", op, err)
	}
	if err := checkTags(tags); err != nil {
		return "", fmt.Errorf("%s: %w", op, err)
	}
	in := struct {
		Target string   `json:"target"`
		Tags   []string `json:"tags"`
	}{target, tags}
	var out struct {
		BuildID string `json:"buildID"`
	}
	_, err = c.send(ctx, apiCall{op: op, method: http.MethodPost, path: "/templates/tags", in: in, out: &out, safe: true})
	return out.BuildID, aboutTemplate(err, target)
}

// RemoveTemplateTags removes tags from a template. The builds stay, and it is
// no error when there is no such tag. The tag "default" cannot be removed.
func (c *Client) RemoveTemplateTags(ctx context.Context, name string, tags ...string) error {
	const op = "remove tags"
	if err := checkTags(tags); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if slices.Contains(tags, defaultTag) {
		return fmt.Errorf("%s: %w: the tag %q cannot be removed", op, ErrInvalid, defaultTag)
	}
	if _, err := templatePath(op, name, ""); err != nil {
		return err
	}
	in := struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, tags}
	_, err := c.send(ctx, apiCall{op: op, method: http.MethodDelete, path: "/templates/tags", in: in, safe: true})
	return aboutTemplate(err, name)
}

// aboutTemplate makes an answer "not found" or "not allowed" about a template
// match ErrTemplate.
func aboutTemplate(err error, ref string) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) {
		return fmt.Errorf("%w %q: %w", ErrTemplate, clip(ref), err)
	}
	return err
}

const (
	defaultTag      = "default"
	maxTemplateName = 128 // bytes, with namespace and tag
)

// splitTemplate takes a reference to a template apart: an ID or a name, which
// may have a namespace, and perhaps a tag. What is refused here, the server
// would refuse (infra: packages/shared/pkg/id/id.go), which takes capital
// letters for small ones.
func splitTemplate(ref string) (name, tag string, err error) {
	name, tag, tagged := strings.Cut(ref, ":")
	namespace, alias, spaced := strings.Cut(name, "/")
	switch {
	case ref == "":
		err = fmt.Errorf("%w: there is no name of a template", ErrInvalid)
	case len(ref) > maxTemplateName:
		err = fmt.Errorf("%w: the name %q is longer than %d bytes", ErrInvalid, clip(ref), maxTemplateName)
	case !isWord(namespace, "-_"), spaced && !isWord(alias, "-_"):
		err = fmt.Errorf("%w: %q is not a template's name: that is letters, digits, - and _, perhaps after the account's namespace and a slash", ErrInvalid, clip(name))
	case tagged:
		err = checkTags([]string{tag})
	}
	return name, tag, err
}

func checkTags(tags []string) error {
	if len(tags) == 0 {
		return fmt.Errorf("%w: there is no tag", ErrInvalid)
	}
	for _, tag := range tags {
		if len(tag) > maxTemplateName || !isWord(tag, "-_.") || isUUID(tag) {
			return fmt.Errorf("%w: %q is not a tag: that is letters, digits, -, _ and ., and not a UUID", ErrInvalid, clip(tag))
		}
	}
	return nil
}

// isWord says whether s is made of ASCII letters, digits and what else may be
// in it.
func isWord(s, others string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// isUUID takes every form that the server takes for one.
func isUUID(s string) bool {
	s = strings.ToLower(s)
	digits := strings.ReplaceAll(s, "-", "")
	if len(digits) != 32 || strings.ContainsFunc(digits, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') }) {
		return false
	}
	return len(s) == 32 || len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-'
}

// templatePath is the path of a call about a whole template.
func templatePath(op, ref, rest string) (string, error) {
	_, tag, err := splitTemplate(ref)
	if err == nil && tag != "" {
		err = fmt.Errorf("%w: %q has a tag, and this is about a whole template", ErrInvalid, ref)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", op, err)
	}
	return "/templates/" + segment(ref) + rest, nil
}
