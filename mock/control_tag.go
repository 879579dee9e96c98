package mock

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// tagAnswer describes a tag of a template.
type tagAnswer struct {
	Tag       string    `json:"tag"`
	BuildID   string    `json:"buildID"`
	CreatedAt time.Time `json:"createdAt"`
}

// ownTemplateLocked finds a template of the team by a name that may have no
// tag.
func (c *control) ownTemplateLocked(identifier, asked string) (*template, error) {
	t := c.server.templateLocked(identifier)
	switch {
	case t == nil:
		return nil, fail(http.StatusNotFound, "template '%s' not found", identifier)
	case t.foreign:
		return nil, fail(http.StatusForbidden, "You don't have access to sandbox template '%s'", asked)
	}
	return t, nil
}

// templateRest is what else there is below a template. The pattern of tags alone
// would not go together with that of aliases.
func (c *control) templateRest(w http.ResponseWriter, r *http.Request) (int, any, error) {
	if r.PathValue("rest") == "tags" {
		return c.listTags(w, r)
	}
	return notBuilt(w, r)
}

func (c *control) listTags(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	asked := r.PathValue("templateID")
	identifier, _, err := parseName(asked)
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid template reference: %v", err)
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t, err := c.ownTemplateLocked(identifier, asked)
	if err != nil {
		return 0, nil, err
	}
	list := []tagAnswer{}
	for _, a := range slices.Backward(t.tags) {
		if !slices.ContainsFunc(list, func(l tagAnswer) bool { return l.Tag == a.tag }) {
			list = append(list, tagAnswer{a.tag, a.build.id, a.at.UTC()})
		}
	}
	slices.SortFunc(list, func(a, b tagAnswer) int { return strings.Compare(a.Tag, b.Tag) })
	return http.StatusOK, list, nil
}

// teamName reads a name in the body of a request about tags.
func teamName(name, what string) (identifier, tag string, err error) {
	identifier, tag, err = parseName(name)
	if err != nil {
		return "", "", fail(http.StatusBadRequest, "Invalid %s format: %v", what, err)
	}
	if namespace, _ := splitName(identifier); namespace != "" && namespace != teamSlug {
		return "", "", fail(http.StatusBadRequest, "namespace '%s' must match your team '%s'", namespace, teamSlug)
	}
	return identifier, tag, nil
}

func (c *control) addTags(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req struct {
		Target *string  `json:"target"`
		Tags   []string `json:"tags"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	if req.Target == nil {
		return 0, nil, missing("AssignTemplateTagsRequest", "target")
	}
	if len(req.Tags) == 0 {
		return 0, nil, fail(http.StatusBadRequest, "At least one tag is required")
	}
	identifier, target, err := teamName(*req.Target, "target template")
	if err != nil {
		return 0, nil, err
	}
	if target == "" {
		target = defaultTag
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t := c.server.templateLocked(identifier)
	if t == nil {
		return 0, nil, fail(http.StatusNotFound, "template '%s' not found", identifier)
	}
	b := t.build(target)
	if b == nil {
		return 0, nil, fail(http.StatusNotFound, "Template '%s' with tag '%s' not found", *req.Target, target)
	}
	if t, err = c.ownTemplateLocked(identifier, identifier); err != nil {
		return 0, nil, err
	}
	tags, err := cleanTags(req.Tags)
	if err != nil {
		return 0, nil, err
	}
	now := c.server.now()
	for _, tag := range tags {
		t.tags = append(t.tags, assignment{tag, b, now})
	}
	return http.StatusCreated, struct {
		Tags    []string `json:"tags"`
		BuildID string   `json:"buildID"`
	}{tags, b.id}, nil
}

func (c *control) removeTags(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req struct {
		Name *string  `json:"name"`
		Tags []string `json:"tags"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	if req.Name == nil {
		return 0, nil, missing("DeleteTemplateTagsRequest", "name")
	}
	tags, err := cleanTags(req.Tags)
	switch {
	case err != nil:
		return 0, nil, err
	case len(tags) == 0:
		return 0, nil, fail(http.StatusBadRequest, "At least one tag is required")
	case slices.Contains(tags, defaultTag):
		return 0, nil, fail(http.StatusBadRequest, "Cannot delete the '%s' tag", defaultTag)
	}
	identifier, tag, err := teamName(*req.Name, "template name")
	if err != nil {
		return 0, nil, err
	}
	if tag != "" && tag != defaultTag {
		return 0, nil, fail(http.StatusBadRequest, "Template name should not contain a tag, use the 'tags' field instead")
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t, err := c.ownTemplateLocked(identifier, identifier)
	if err != nil {
		return 0, nil, err
	}
	t.tags = slices.DeleteFunc(t.tags, func(a assignment) bool { return slices.Contains(tags, a.tag) })
	return http.StatusNoContent, nil, nil
}
