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
	TemplateID    string     `json:"templateID"`
	BuildID       string     `json:"buildID"`
	CPUCount      int        `json:"cpuCount"`
	MemoryMB      int        `json:"memoryMB"`
	DiskSizeMB    int        `json:"diskSizeMB"`
	Public        bool       `json:"public"`
	Aliases       []string   `json:"aliases"`
	Names         []string   `json:"names"`
	CreatedAt     time.Time  `json:"createdAt"`
	UpdatedAt     time.Time  `json:"updatedAt"`
	CreatedBy     *struct{}  `json:"createdBy"`
	LastSpawnedAt *time.Time `json:"lastSpawnedAt"`
	SpawnCount    int        `json:"spawnCount"`
	BuildCount    int        `json:"buildCount"`
	EnvdVersion   string     `json:"envdVersion"`
	BuildStatus   string     `json:"buildStatus"`
}

func (t *template) describe() templateAnswer {
	return templateAnswer{
		TemplateID:    t.ID,
		BuildID:       t.builds[len(t.builds)-1].id,
		CPUCount:      t.CPU,
		MemoryMB:      t.MemoryMB,
		DiskSizeMB:    t.DiskMB,
		Aliases:       t.aliases(),
		Names:         append([]string{}, t.Names...),
		CreatedAt:     t.createdAt.UTC(),
		UpdatedAt:     t.updatedAt.UTC(),
		LastSpawnedAt: t.spawnTime(),
		SpawnCount:    t.spawnCount,
		BuildCount:    len(t.builds),
		EnvdVersion:   t.EnvdVersion,
		BuildStatus:   "ready",
	}
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
	return position{t.createdAt.Truncate(time.Microsecond), t.ID}
}

// ownTemplatesLocked lists the templates that are no snapshots, the newest
// first.
func (s *Server) ownTemplatesLocked() []*template {
	var list []*template
	for _, t := range s.templates {
		if !t.snapshot && !t.deleted {
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
	BuildID     string    `json:"buildID"`
	Status      string    `json:"status"`
	CreatedAt   time.Time `json:"createdAt"`
	UpdatedAt   time.Time `json:"updatedAt"`
	FinishedAt  time.Time `json:"finishedAt"`
	CPUCount    int       `json:"cpuCount"`
	MemoryMB    int       `json:"memoryMB"`
	DiskSizeMB  int       `json:"diskSizeMB"`
	EnvdVersion string    `json:"envdVersion"`
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
	if t == nil || t.ID != id {
		return 0, nil, fail(http.StatusNotFound, "Template %s not found", id)
	}
	d := templateDetail{
		TemplateID:    t.ID,
		Aliases:       t.aliases(),
		Names:         append([]string{}, t.Names...),
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
		created := b.createdAt.UTC()
		d.Builds = append(d.Builds, buildAnswer{b.id, "ready", created, created, created, t.CPU, t.MemoryMB, t.DiskMB, t.EnvdVersion})
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
	if tag != "" && t.build(tag) == nil {
		return 0, nil, fail(http.StatusNotFound, "tag '%s' does not exist for template '%s'", tag, identifier)
	}
	return http.StatusOK, struct {
		TemplateID string `json:"templateID"`
		Public     bool   `json:"public"`
	}{TemplateID: t.ID}, nil
}

func (c *control) deleteTemplate(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	identifier, _, err := parseName(r.PathValue("templateID"))
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid template ID: %v", err)
	}
	t, images, err := c.forget(identifier)
	if err != nil {
		return 0, nil, err
	}
	for _, image := range images {
		if err := image.Close(); err != nil {
			c.server.log.Debug("image cannot be removed", "template", t.ID, "error", err)
		}
	}
	return http.StatusNoContent, nil, nil
}

// forget deletes a template that is not in use, and returns its images.
func (c *control) forget(identifier string) (*template, []envd.Machine, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.templateLocked(identifier)
	if t == nil {
		return nil, nil, fail(http.StatusNotFound, "template '%s' not found", identifier)
	}
	for _, i := range s.order {
		if i.template != t || i.state.gone() {
			continue
		}
		use := "running"
		if i.publicState() == StatePaused {
			use = "paused"
		}
		return nil, nil, fail(http.StatusBadRequest, "cannot delete template '%s' because there are %s sandboxes using it", t.ID, use)
	}
	t.deleted = true
	var images []envd.Machine
	for _, b := range t.builds {
		if b.image != nil {
			images = append(images, b.image)
			b.image = nil
		}
	}
	return t, images, nil
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
