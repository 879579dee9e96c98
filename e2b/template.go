package e2b

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Template is what E2B tells of a template.
type Template struct {
	// Own says that it is the account's. Of others, such as "base", E2B tells
	// nothing but that there is one: all other fields are empty then, and only
	// a create shows whether it may be used.
	Own bool

	ID          string
	Names       []string
	Public      bool
	CPU         int // of a sandbox made from it; zero when not known
	MemoryMB    int // MiB
	DiskMB      int // MiB
	EnvdVersion string
	BuildStatus string // waiting, building, ready, error; empty when not known
}

// listedTemplate is a template in E2B's list.
type listedTemplate struct {
	ID          string   `json:"templateID"`
	Names       []string `json:"names"`
	Aliases     []string `json:"aliases"` // older servers
	Public      bool     `json:"public"`
	CPU         int      `json:"cpuCount"`
	MemoryMB    int      `json:"memoryMB"`
	DiskMB      int      `json:"diskSizeMB"`
	EnvdVersion string   `json:"envdVersion"`
	BuildStatus string   `json:"buildStatus"`
}

func (t *listedTemplate) template() *Template {
	names := t.Names
	if len(names) == 0 {
		names = t.Aliases
	}
	return &Template{
		Own: true, ID: t.ID, Names: names, Public: t.Public,
		CPU: t.CPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB,
		EnvdVersion: t.EnvdVersion, BuildStatus: t.BuildStatus,
	}
}

// matches says whether it is the one with an ID or a name, which may lack the
// account's namespace.
func (t *listedTemplate) matches(ref string) bool {
	return t.ID == ref || slices.ContainsFunc(slices.Concat(t.Names, t.Aliases), func(name string) bool {
		return name == ref || strings.HasSuffix(name, "/"+ref)
	})
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
	for t, err := range pages[listedTemplate](ctx, c, op, "/v2/templates", url.Values{}, nil) {
		if err != nil {
			return nil, err
		}
		if t.matches(ref) {
			return t.template(), nil
		}
	}
	return nil, nil
}
