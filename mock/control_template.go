package mock

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// templateAnswer describes a template in a list.
type templateAnswer struct {
	TemplateID    string      `json:"templateID"`
	BuildID       string      `json:"buildID"`
	CPUCount      int         `json:"cpuCount"`
	MemoryMB      int         `json:"memoryMB"`
	DiskSizeMB    int         `json:"diskSizeMB"`
	Public        bool        `json:"public"`
	Aliases       []string    `json:"aliases"`
	Names         []string    `json:"names"`
	CreatedAt     time.Time   `json:"createdAt"`
	UpdatedAt     time.Time   `json:"updatedAt"`
	CreatedBy     *struct{}   `json:"createdBy"`
	LastSpawnedAt *time.Time  `json:"lastSpawnedAt"`
	SpawnCount    int         `json:"spawnCount"`
	BuildCount    int         `json:"buildCount"`
	EnvdVersion   string      `json:"envdVersion"`
	BuildStatus   buildStatus `json:"buildStatus"`
}

// noBuild is the ID of a template's build where none is ready.
const noBuild = "00000000-0000-0000-0000-000000000000"

// describe tells of the newest build of the default tag that is ready, but the
// status of the newest.
func (t *template) describe() templateAnswer {
	a := templateAnswer{
		TemplateID:    t.id,
		BuildID:       noBuild,
		Public:        t.public,
		Aliases:       t.aliases(),
		Names:         append([]string{}, t.names...),
		CreatedAt:     t.createdAt.UTC(),
		UpdatedAt:     t.updatedAt.UTC(),
		LastSpawnedAt: t.spawnTime(),
		SpawnCount:    t.spawnCount,
		BuildCount:    t.buildCount,
		BuildStatus:   buildWaiting,
	}
	if b := t.tagged(defaultTag, true); b != nil {
		a.BuildID = b.id
		a.CPUCount, a.MemoryMB, a.DiskSizeMB, a.EnvdVersion = b.size.cpu, b.size.memoryMB, b.size.diskMB, b.size.envdVersion
	}
	if b := t.tagged(defaultTag, false); b != nil {
		a.BuildStatus = b.status
	}
	return a
}

func (t *template) spawnTime() *time.Time {
	if t.spawnCount == 0 {
		return nil
	}
	at := t.lastSpawned.UTC()
	return &at
}

func (c *control) listTemplates(http.ResponseWriter, *http.Request) (int, any, error) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return http.StatusOK, describeTemplates(c.server.ownTemplatesLocked()), nil
}

func (c *control) listTemplatesV2(w http.ResponseWriter, r *http.Request) (int, any, error) {
	q := r.URL.Query()
	q.Del("order")
	p, err := parsePage(q)
	if err != nil {
		return 0, nil, err
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	list := cut(p, w, c.server.ownTemplatesLocked(), (*template).position)
	return http.StatusOK, describeTemplates(list), nil
}

func (t *template) position() position {
	return position{t.createdAt.Truncate(time.Microsecond), t.id}
}

// ownTemplatesLocked lists the templates that are no snapshots, the newest
// first.
func (s *Server) ownTemplatesLocked() []*template {
	var list []*template
	for _, t := range s.templates {
		if !t.snapshot && !t.deleted && !t.foreign {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b *template) int { return newestFirst(a.position(), b.position()) })
	return list
}

func describeTemplates(templates []*template) []templateAnswer {
	list := make([]templateAnswer, 0, len(templates))
	for _, t := range templates {
		list = append(list, t.describe())
	}
	return list
}

// buildAnswer describes a build.
type buildAnswer struct {
	BuildID     string      `json:"buildID"`
	Status      buildStatus `json:"status"`
	CreatedAt   time.Time   `json:"createdAt"`
	UpdatedAt   time.Time   `json:"updatedAt"`
	FinishedAt  *time.Time  `json:"finishedAt,omitempty"`
	CPUCount    int         `json:"cpuCount"`
	MemoryMB    int         `json:"memoryMB"`
	DiskSizeMB  int         `json:"diskSizeMB,omitempty"`  // of one that is ready
	EnvdVersion string      `json:"envdVersion,omitempty"` // the same
}

func (b *build) describe() buildAnswer {
	a := buildAnswer{
		BuildID:   b.id,
		Status:    b.status,
		CreatedAt: b.createdAt.UTC(),
		UpdatedAt: b.updatedAt.UTC(),
		CPUCount:  b.size.cpu,
		MemoryMB:  b.size.memoryMB,
	}
	if !b.finishedAt.IsZero() {
		at := b.finishedAt.UTC()
		a.FinishedAt = &at
	}
	if b.status == buildReady {
		a.DiskSizeMB, a.EnvdVersion = b.size.diskMB, b.size.envdVersion
	}
	return a
}

// templateDetail describes a template by itself.
type templateDetail struct {
	TemplateID    string        `json:"templateID"`
	Public        bool          `json:"public"`
	Aliases       []string      `json:"aliases"`
	Names         []string      `json:"names"`
	CreatedAt     time.Time     `json:"createdAt"`
	UpdatedAt     time.Time     `json:"updatedAt"`
	LastSpawnedAt *time.Time    `json:"lastSpawnedAt"`
	SpawnCount    int           `json:"spawnCount"`
	Builds        []buildAnswer `json:"builds"`
}

// getTemplate takes an ID alone, no name.
func (c *control) getTemplate(w http.ResponseWriter, r *http.Request) (int, any, error) {
	id := r.PathValue("templateID")
	p, err := parsePage(r.URL.Query())
	if err != nil {
		return 0, nil, err
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t := c.server.templateLocked(id)
	if t == nil || t.id != id {
		return 0, nil, fail(http.StatusNotFound, "Template %s not found", id)
	}
	if t.foreign {
		return 0, nil, fail(http.StatusForbidden, "You don't have access to this sandbox template (%s)", id)
	}
	d := templateDetail{
		TemplateID:    t.id,
		Public:        t.public,
		Aliases:       t.aliases(),
		Names:         append([]string{}, t.names...),
		CreatedAt:     t.createdAt.UTC(),
		UpdatedAt:     t.updatedAt.UTC(),
		LastSpawnedAt: t.spawnTime(),
		SpawnCount:    t.spawnCount,
		Builds:        []buildAnswer{},
	}
	builds := slices.Clone(t.builds)
	at := func(b *build) position { return position{b.createdAt, b.id} }
	slices.SortFunc(builds, func(a, b *build) int { return newestFirst(at(a), at(b)) })
	for _, b := range cut(p, w, builds, at) {
		d.Builds = append(d.Builds, b.describe())
	}
	return http.StatusOK, d, nil
}

func (c *control) getAlias(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	identifier, tag, err := parseName(r.PathValue("alias"))
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid alias format: %v", err)
	}
	if namespace, _ := splitName(identifier); namespace != "" && namespace != teamSlug {
		return 0, nil, fail(http.StatusBadRequest, "namespace '%s' must match your team '%s'", namespace, teamSlug)
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t := c.server.templateLocked(identifier)
	if t == nil {
		return 0, nil, fail(http.StatusNotFound, "template '%s' not found", identifier)
	}
	if t.foreign {
		return 0, nil, fail(http.StatusForbidden, "You don't have access to this template alias")
	}
	if tag != "" && t.build(tag) == nil {
		return 0, nil, fail(http.StatusNotFound, "tag '%s' does not exist for template '%s'", tag, identifier)
	}
	return http.StatusOK, struct {
		TemplateID string `json:"templateID"`
		Public     bool   `json:"public"`
	}{t.id, t.public}, nil
}

func (c *control) deleteTemplate(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	identifier, _, err := parseName(r.PathValue("templateID"))
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid template ID: %v", err)
	}
	images, err := c.forget(identifier)
	if err != nil {
		return 0, nil, err
	}
	c.closeImages(images...)
	return http.StatusNoContent, nil, nil
}

// closeImages removes images that nobody uses any more.
func (c *control) closeImages(images ...envd.Machine) {
	for _, image := range images {
		if err := image.Close(); err != nil {
			c.server.log.Debug("image cannot be removed", "error", err)
		}
	}
}

// ownLocked finds a template that is the team's.
func (s *Server) ownLocked(identifier string) (*template, error) {
	t := s.templateLocked(identifier)
	switch {
	case t == nil:
		return nil, fail(http.StatusNotFound, "template '%s' not found", identifier)
	case t.foreign:
		return nil, fail(http.StatusForbidden, "You don't have access to template '%s'", identifier)
	}
	return t, nil
}

// forget deletes a template that is not in use, and returns its images. Its
// builds are cancelled.
func (c *control) forget(identifier string) ([]envd.Machine, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.ownLocked(identifier)
	if err != nil {
		return nil, err
	}
	for _, i := range s.order {
		if i.template != t || i.state.gone() {
			continue
		}
		use := "running"
		if i.publicState() == StatePaused {
			use = "paused"
		}
		return nil, fail(http.StatusBadRequest, "cannot delete template '%s' because there are %s sandboxes using it", t.id, use)
	}
	t.deleted = true
	var images []envd.Machine
	for _, b := range t.builds {
		b.cancelLocked(s.now())
		images = append(images, b.discardLocked()...)
	}
	return images, nil
}

// updateTemplate changes who may use a template.
func (c *control) updateTemplate(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req struct {
		Public *bool `json:"public"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	identifier, _, err := parseName(r.PathValue("templateID"))
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid template ID: %v", err)
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t, err := c.server.ownLocked(identifier)
	if err != nil {
		return 0, nil, err
	}
	if req.Public != nil {
		t.public = *req.Public
		t.updatedAt = c.server.now()
	}
	return http.StatusOK, struct {
		Names []string `json:"names"`
	}{append([]string{}, t.names...)}, nil
}

// metric is what a sandbox used at some time.
type metric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"`
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// measure returns what a sandbox uses now, if it runs.
func (s *Server) measure(id string) (metric, bool) {
	s.mu.Lock()
	i := s.instances[id]
	if i == nil || i.state != running {
		s.mu.Unlock()
		return metric{}, false
	}
	g := i.guest
	s.mu.Unlock()
	u, ok := g.usage()
	now := s.now().UTC()
	return metric{now, now.Unix(), u.CPUs, u.CPUPercent, u.MemUsed, u.MemTotal, u.MemCache, u.DiskUsed, u.DiskTotal}, ok
}

// metrics answers with the moment, which is all that is known.
func (c *control) metrics(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	q := r.URL.Query()
	start, err := queryInt(q, "start", 0, 1<<62, 0)
	if err != nil {
		return 0, nil, err
	}
	end, err := queryInt(q, "end", 0, 1<<62, 1<<62)
	if err != nil {
		return 0, nil, err
	}
	if start > end {
		return 0, nil, fail(http.StatusBadRequest, "start time cannot be after end time")
	}
	list := []metric{}
	if m, ok := c.server.measure(id); ok && m.TimestampUnix >= start && m.TimestampUnix <= end {
		list = append(list, m)
	}
	return http.StatusOK, list, nil
}

func (c *control) allMetrics(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	ids := r.URL.Query().Get("sandbox_ids")
	if ids == "" {
		return 0, nil, invalid(`parameter "sandbox_ids" in query`, "value is required but missing")
	}
	list := strings.Split(ids, ",")
	if len(list) > maxPage {
		return 0, nil, invalid(`parameter "sandbox_ids" in query`, "maximum number of items is %d", maxPage)
	}
	found := make(map[string]metric)
	for _, id := range list {
		id, err := shortID(id)
		if err != nil {
			return 0, nil, err
		}
		if m, ok := c.server.measure(id); ok {
			found[id] = m
		}
	}
	return http.StatusOK, struct {
		Sandboxes map[string]metric `json:"sandboxes"`
	}{found}, nil
}
