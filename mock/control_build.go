package mock

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// maxTemplateName is the length of a template's name with its tag, in bytes.
const maxTemplateName = 128

// The sizes that E2B builds.
const (
	maxTemplateCPU        = 32
	minTemplateMemoryMB   = 128
	defaultTemplateCPU    = 2
	defaultTemplateMemory = 1024
)

// requestedBuild answers a request for a build.
type requestedBuild struct {
	TemplateID string   `json:"templateID"`
	BuildID    string   `json:"buildID"`
	Public     bool     `json:"public"`
	Names      []string `json:"names"`
	Tags       []string `json:"tags"`
	Aliases    []string `json:"aliases"`
}

func (c *control) requestBuild(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	if err := c.server.back.builds(); err != nil {
		return 0, nil, fail(http.StatusNotImplemented, "%v", err)
	}
	var req struct {
		Name     *string  `json:"name"`
		Alias    *string  `json:"alias"`
		Tags     []string `json:"tags"`
		CPU      *int32   `json:"cpuCount"`
		MemoryMB *int32   `json:"memoryMB"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	name := req.Name
	if name == nil {
		name = req.Alias
	}
	if name == nil {
		return 0, nil, fail(http.StatusBadRequest, "Name is required")
	}
	if len(*name) > maxTemplateName {
		return 0, nil, invalid("request body", `doesn't match schema: Error at "/name": maximum string length is %d`, maxTemplateName)
	}
	full, tag, err := ownName(*name)
	if err != nil {
		return 0, nil, err
	}
	if tag != "" && tag != defaultTag {
		req.Tags = append([]string{tag}, req.Tags...)
	}
	tags, err := cleanTags(req.Tags)
	if err != nil {
		return 0, nil, err
	}
	if len(tags) == 0 {
		tags = []string{defaultTag}
	}
	z, err := buildSize(req.CPU, req.MemoryMB)
	if err != nil {
		return 0, nil, err
	}
	answer, err := c.register(full, tags, z)
	return http.StatusAccepted, answer, err
}

// cleanTags checks tags, and returns each once.
func cleanTags(tags []string) ([]string, error) {
	var list []string
	for _, tag := range tags {
		cleaned, err := clean(tag, "tag", "-_.")
		if err == nil && isUUID(cleaned) {
			err = errors.New("tag cannot be a UUID")
		}
		if err != nil {
			return nil, fail(http.StatusBadRequest, "Invalid tag: invalid tag '%s': %v", tag, err)
		}
		if !slices.Contains(list, cleaned) {
			list = append(list, cleaned)
		}
	}
	return list, nil
}

func isUUID(s string) bool {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	_, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && strings.Count(s, "-") == 4
}

// buildSize refuses what E2B refuses.
func buildSize(cpu, memoryMB *int32) (size, error) {
	z := size{cpu: defaultTemplateCPU, memoryMB: defaultTemplateMemory, diskMB: defaultDiskMB, envdVersion: envd.DefaultVersion}
	if cpu != nil {
		switch z.cpu = int(*cpu); {
		case z.cpu < 1:
			return z, invalid("request body", `doesn't match schema: Error at "/cpuCount": number must be at least 1`)
		case z.cpu > maxTemplateCPU:
			return z, fail(http.StatusBadRequest, "CPU count must be at most %d", maxTemplateCPU)
		case z.cpu != 1 && z.cpu%2 != 0:
			return z, fail(http.StatusBadRequest, "CPU count must be 1 or an even number")
		}
	}
	if memoryMB != nil {
		switch z.memoryMB = int(*memoryMB); {
		case z.memoryMB < minTemplateMemoryMB:
			return z, invalid("request body", `doesn't match schema: Error at "/memoryMB": number must be at least %d`, minTemplateMemoryMB)
		case z.memoryMB%2 != 0:
			return z, fail(http.StatusBadRequest, "Memory must be divisible by 2")
		}
	}
	return z, nil
}

// register makes a build that waits, of a new template or of the team's of that
// name. Builds of the same tags that wait for their start will wait no more.
func (c *control) register(name string, tags []string, z size) (*requestedBuild, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	t := s.templateLocked(name)
	if limit := s.opts.maxBuilds; limit > 0 && s.activeBuildsLocked(t, tags) >= limit {
		return nil, fail(http.StatusTooManyRequests, "you have reached the maximum number of concurrent template builds (%d). "+
			"Please wait for existing builds to complete or contact support if you need more concurrent builds.", limit)
	}
	_, alias := splitName(name)
	if slices.ContainsFunc(s.templates, func(t *template) bool { return t.id == alias && !t.deleted }) {
		return nil, fail(http.StatusConflict, "Alias '%s' is already used", alias)
	}
	if t == nil {
		t = &template{id: newID(), createdAt: now}
		s.templates = append(s.templates, t)
	}
	if !slices.Contains(t.names, name) {
		t.names = []string{name}
	}
	for _, b := range t.sharingLocked(tags) {
		if b.status == buildWaiting {
			b.failLocked("The build was canceled because it was superseded by a newer one.", nil, now)
		}
	}
	b := newBuild(z, now)
	t.addLocked(b, now, tags...)
	return &requestedBuild{t.id, b.id, t.public, []string{name}, tags, []string{alias}}, nil
}

// sharingLocked returns the builds that were given one of some tags.
func (t *template) sharingLocked(tags []string) []*build {
	var list []*build
	for _, a := range t.tags {
		if slices.Contains(tags, a.tag) && !slices.Contains(list, a.build) {
			list = append(list, a.build)
		}
	}
	return list
}

// tagsOfLocked returns the tags that a build was given.
func (t *template) tagsOfLocked(b *build) []string {
	var list []string
	for _, a := range t.tags {
		if a.build == b {
			list = append(list, a.tag)
		}
	}
	return list
}

// activeBuildsLocked counts the builds that wait or run, but for those of a
// template that share a tag with the one that is to come.
func (s *Server) activeBuildsLocked(except *template, tags []string) int {
	n := 0
	for _, t := range s.templates {
		if t.deleted {
			continue
		}
		for _, b := range t.builds {
			if b.active() && !(t == except && slices.Contains(t.sharingLocked(tags), b)) {
				n++
			}
		}
	}
	return n
}

// startRequest says how a template is built.
type startRequest struct {
	FromImage    *string     `json:"fromImage"`
	FromTemplate *string     `json:"fromTemplate"`
	Steps        []buildStep `json:"steps"`
	StartCmd     string      `json:"startCmd"`
	ReadyCmd     string      `json:"readyCmd"`
}

// buildStep is one of a build's steps.
type buildStep struct {
	Type      *string  `json:"type"`
	Args      []string `json:"args"`
	FilesHash string   `json:"filesHash"`
}

// startBuild starts a build that waits. As at E2B, others of the template with
// one of its tags are cancelled where they run, even if this one cannot start.
func (c *control) startBuild(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req startRequest
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	for k, step := range req.Steps {
		if step.Type == nil {
			return 0, nil, invalid("request body", `doesn't match schema: Error at "/steps/%d/type": property "type" is missing`, k)
		}
	}
	if !isUUID(r.PathValue("buildID")) {
		return 0, nil, fail(http.StatusBadRequest, "Invalid build ID: %s", r.PathValue("buildID"))
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	t, b := s.buildLocked(r)
	if b == nil {
		return 0, nil, fail(http.StatusNotFound, "Error when getting template: no rows in result set")
	}
	now := s.now()
	for _, other := range t.sharingLocked(t.tagsOfLocked(b)) {
		if other != b && other.status == buildRunning {
			other.cancelLocked(now)
		}
	}
	if b.status != buildWaiting {
		return 0, nil, fail(http.StatusBadRequest, "build is not in waiting state")
	}
	hasTemplate := req.FromTemplate != nil && *req.FromTemplate != ""
	if (req.FromImage != nil) == hasTemplate {
		problem := "must specify either fromImage or fromTemplate"
		if hasTemplate {
			problem = "cannot specify both fromImage and fromTemplate"
		}
		problem = "failed to set template source: " + problem
		b.failLocked("error when building env: "+problem, nil, now)
		return 0, nil, fail(http.StatusInternalServerError, "Error when starting template build: %s", problem)
	}
	var from *build
	if hasTemplate {
		var err error
		if from, err = s.sourceLocked(*req.FromTemplate); err != nil {
			step := "base"
			b.failLocked(err.Error(), &step, now)
			return http.StatusAccepted, nil, nil
		}
	}
	s.beginBuildLocked(t, b, from, &req)
	return http.StatusAccepted, nil, nil
}

// buildLocked finds the build in a request's path.
func (s *Server) buildLocked(r *http.Request) (*template, *build) {
	for _, t := range s.templates {
		if t.id == r.PathValue("templateID") && !t.deleted && !t.foreign {
			return t, t.buildByID(r.PathValue("buildID"))
		}
	}
	return nil, nil
}

// sourceLocked finds the build that another is built from.
func (s *Server) sourceLocked(reference string) (*build, error) {
	identifier, tag, err := parseName(reference)
	if err != nil {
		return nil, fmt.Errorf("invalid template reference: %w", err)
	}
	if tag == "" {
		tag = defaultTag
	}
	t := s.templateLocked(identifier)
	if t == nil {
		return nil, fmt.Errorf("template '%s' not found", identifier)
	}
	b := t.build(tag)
	if b == nil {
		return nil, fmt.Errorf("tag '%s' does not exist for template '%s'", tag, identifier)
	}
	return b, nil
}

// lookUpBuild finds the build in a request's path for who wants to know about
// it.
func (c *control) lookUpBuild(r *http.Request) (*build, error) {
	id := r.PathValue("buildID")
	if !isUUID(id) {
		return nil, fail(http.StatusBadRequest, "Invalid build id")
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	_, b := c.server.buildLocked(r)
	if b == nil {
		return nil, fail(http.StatusBadRequest, "Build '%s' not found", id)
	}
	return b, nil
}

// maxBuildPage bounds the lines of an answer about a build.
const maxBuildPage = 100

func (c *control) buildStatus(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	q := r.URL.Query()
	offset, err := queryInt(q, "logsOffset", 0, 1<<31-1, 0)
	if err != nil {
		return 0, nil, err
	}
	limit, err := queryInt(q, "limit", 0, maxBuildPage, maxBuildPage)
	if err != nil {
		return 0, nil, err
	}
	level, err := queryEnum(q, "level", logLevels()...)
	if err != nil {
		return 0, nil, err
	}
	b, err := c.lookUpBuild(r)
	if err != nil {
		return 0, nil, err
	}
	answer := struct {
		TemplateID string          `json:"templateID"`
		BuildID    string          `json:"buildID"`
		Status     buildStatus     `json:"status"`
		Logs       []string        `json:"logs"`
		LogEntries []buildLogEntry `json:"logEntries"`
		Reason     *buildReason    `json:"reason,omitempty"`
	}{TemplateID: r.PathValue("templateID"), BuildID: b.id, Logs: []string{}}
	// The status comes before the lines, so that none is missing when it says
	// that there will be no more.
	c.server.mu.Lock()
	answer.Status = b.status
	if b.reason != nil {
		reason := *b.reason
		answer.Reason = &reason
	}
	c.server.mu.Unlock()
	answer.LogEntries = b.log.page(level, int(offset), int(limit))
	if answer.Reason != nil {
		answer.Reason.LogEntries = []buildLogEntry{}
		for _, e := range answer.LogEntries {
			if answer.Reason.Step != nil && e.Step == *answer.Reason.Step && (e.Level == "warn" || e.Level == "error") {
				answer.Reason.LogEntries = append(answer.Reason.LogEntries, e)
			}
		}
	}
	return http.StatusOK, answer, nil
}

func (c *control) buildLogs(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	q := r.URL.Query()
	limit, err := queryInt(q, "limit", 0, maxBuildPage, maxBuildPage)
	if err != nil {
		return 0, nil, err
	}
	direction, err := queryEnum(q, "direction", "forward", "backward")
	if err != nil {
		return 0, nil, err
	}
	cursor, err := queryInt(q, "cursor", 0, 1<<62, -1)
	if err != nil {
		return 0, nil, err
	}
	level, err := queryEnum(q, "level", logLevels()...)
	if err != nil {
		return 0, nil, err
	}
	b, err := c.lookUpBuild(r)
	if err != nil {
		return 0, nil, err
	}
	list := slices.DeleteFunc(b.log.page(level, 0, maxBuildLog), func(e buildLogEntry) bool {
		ms := e.Timestamp.UnixMilli()
		return cursor >= 0 && (direction == "forward" && ms < cursor || direction == "backward" && ms > cursor)
	})
	if direction == "backward" {
		slices.Reverse(list)
	}
	return http.StatusOK, struct {
		Logs []buildLogEntry `json:"logs"`
	}{list[:min(int(limit), len(list))]}, nil
}
