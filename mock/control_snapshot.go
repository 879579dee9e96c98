package mock

import (
	"cmp"
	"errors"
	"net/http"
	"slices"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// snapshotAnswer describes a snapshot.
type snapshotAnswer struct {
	SnapshotID string   `json:"snapshotID"`
	Names      []string `json:"names"`
}

func describeSnapshot(t *template, tag string) snapshotAnswer {
	name := t.id
	if len(t.names) > 0 {
		name = t.names[0]
	}
	return snapshotAnswer{SnapshotID: name + ":" + tag, Names: append([]string{}, t.names...)}
}

func (c *control) snapshot(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req struct {
		Name *string `json:"name"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	name, tag := "", defaultTag
	if req.Name != nil {
		var err error
		if name, tag, err = ownName(*req.Name); err != nil {
			return 0, nil, err
		}
	}
	i, image, err := c.copy(r, "snapshotted")
	if err != nil {
		return 0, nil, err
	}
	answer, replaced := c.keep(i, image, name, cmp.Or(tag, defaultTag))
	c.closeImages(replaced...)
	return http.StatusCreated, answer, nil
}

// ownName reads the name of something that belongs to the team, and returns it
// with its namespace.
func ownName(name string) (full, tag string, err error) {
	identifier, tag, err := parseName(name)
	if err != nil {
		return "", "", fail(http.StatusBadRequest, "Invalid name: %v", err)
	}
	namespace, alias := splitName(identifier)
	if namespace != "" && namespace != teamSlug {
		return "", "", fail(http.StatusBadRequest, "namespace '%s' must match your team '%s'", namespace, teamSlug)
	}
	return teamSlug + "/" + alias, tag, nil
}

// copy copies the files of the sandbox in a request's path.
func (c *control) copy(r *http.Request, what string) (*instance, envd.Machine, error) {
	i, err := c.find(r)
	if err != nil {
		return nil, nil, err
	}
	image, err := c.server.image(i)
	var state *stateError
	switch {
	case err == nil:
		return i, image, nil
	case errors.As(err, &state) && state.state == paused && what == "forked":
		return nil, nil, fail(http.StatusConflict, "Sandbox '%s' is paused and cannot be forked; resume it first", i.id)
	case errors.As(err, &state) && state.state == paused:
		return nil, nil, noSandbox(i.id)
	case errors.As(err, &state):
		return nil, nil, cannot(i.id, what, state.state)
	case errors.Is(err, errors.ErrUnsupported):
		return nil, nil, fail(http.StatusNotImplemented, "%v", err)
	}
	return nil, nil, fail(http.StatusInternalServerError, "Error creating snapshot template: %v", err)
}

// keep makes a template of an image, or a new build of the one of that name.
// It returns the image that was in its place, too.
func (c *control) keep(i *instance, image envd.Machine, name, tag string) (snapshotAnswer, []envd.Machine) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var t *template
	if name != "" {
		t = s.templateLocked(name)
	}
	if t == nil {
		t = &template{id: newID(), snapshot: true, createdAt: now}
		if name != "" {
			t.names = []string{name}
		}
		s.templates = append(s.templates, t)
	}
	var replaced []envd.Machine
	if old := t.tagged(tag, true); old != nil {
		replaced = old.discardLocked()
		t.builds = slices.DeleteFunc(t.builds, func(b *build) bool { return b == old })
		t.tags = slices.DeleteFunc(t.tags, func(a assignment) bool { return a.build == old })
	}
	b := newBuild(i.size, now)
	b.image, b.sandbox, b.setup = image, i.id, i.setup.still()
	b.finishLocked(buildReady, now)
	t.addLocked(b, now, tag)
	return describeSnapshot(t, tag), replaced
}

func (c *control) listSnapshots(w http.ResponseWriter, r *http.Request) (int, any, error) {
	q := r.URL.Query()
	q.Del("order")
	p, err := parsePage(q)
	if err != nil {
		return 0, nil, err
	}
	sandbox, name, tag := "", "", ""
	if q.Has("sandboxID") {
		if sandbox, err = shortID(q.Get("sandboxID")); err != nil {
			return 0, nil, err
		}
	}
	if q.Has("name") {
		if name, tag, err = ownName(q.Get("name")); err != nil {
			return 0, nil, err
		}
	}
	type entry struct {
		snapshotAnswer
		at position
	}
	var found []entry
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	for _, t := range c.server.templates {
		if !t.snapshot || t.deleted || name != "" && t != c.server.templateLocked(name) {
			continue
		}
		for _, a := range t.tags {
			if (sandbox == "" || a.build.sandbox == sandbox) && (tag == "" || a.tag == tag) {
				found = append(found, entry{describeSnapshot(t, a.tag), position{a.build.createdAt, a.build.id}})
			}
		}
	}
	slices.SortFunc(found, func(a, b entry) int { return newestFirst(a.at, b.at) })
	found = cut(p, w, found, func(e entry) position { return e.at })
	list := make([]snapshotAnswer, 0, len(found))
	for _, e := range found {
		list = append(list, e.snapshotAnswer)
	}
	return http.StatusOK, list, nil
}

// maxForks is how many forks one request can ask for.
const maxForks = 100

// forkAnswer is what became of a fork.
type forkAnswer struct {
	Sandbox *sandboxAnswer `json:"sandbox,omitempty"`
	Error   *apiError      `json:"error,omitempty"`
}

func (c *control) fork(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	req := struct {
		Timeout *seconds `json:"timeout"`
		Count   *seconds `json:"count"`
	}{}
	if err := decode(r, false, &req); err != nil {
		return 0, nil, err
	}
	timeout, err := c.checkTimeout(req.Timeout, defaultTimeout)
	if err != nil {
		return 0, nil, err
	}
	count := 1
	if req.Count != nil {
		count = int(*req.Count)
	}
	limit := c.server.opts.maxConcurrency
	switch {
	case count < 1:
		return 0, nil, invalid("request body", `doesn't match schema: Error at "/count": number must be at least 1`)
	case count > maxForks:
		return 0, nil, invalid("request body", `doesn't match schema: Error at "/count": number must be at most %d`, maxForks)
	case limit > 0 && count >= limit:
		return 0, nil, fail(http.StatusBadRequest, "Count must be lower than the maximum number of concurrent sandboxes (%d)", limit)
	}
	i, image, err := c.copy(r, "forked")
	if err != nil {
		return 0, nil, err
	}
	defer image.Close()
	c.server.mu.Lock()
	l := launch{
		template: i.template, image: image, size: i.size, setup: i.setup.still(),
		config: i.config, network: i.network, allow: i.allowEgress, timeout: timeout,
	}
	c.server.mu.Unlock()
	results := make([]forkAnswer, count)
	for k := range results {
		fork, err := c.server.create(r.Context(), l)
		if err != nil {
			errors.As(c.creationError(err), &results[k].Error)
			continue
		}
		answer := c.server.sandboxAnswer(fork)
		results[k].Sandbox = &answer
	}
	return http.StatusCreated, results, nil
}
