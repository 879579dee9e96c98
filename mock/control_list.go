package mock

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const maxPage = 100

// parseMetadata reads a filter: pairs whose parts are encoded once more than
// the query needs, in a whole that is, too.
func parseMetadata(q url.Values) (map[string]string, error) {
	if !q.Has("metadata") {
		return nil, nil
	}
	whole, err := url.QueryUnescape(q.Get("metadata"))
	if err != nil {
		return nil, fmt.Errorf("error when unescaping query: %w", err)
	}
	filter := make(map[string]string)
	for pair := range strings.SplitSeq(whole, "&") {
		parts := strings.Split(pair, "=")
		if len(parts) != 2 {
			return nil, errors.New("invalid key value pair in query")
		}
		key, err := url.QueryUnescape(parts[0])
		if err != nil {
			return nil, fmt.Errorf("error when unescaping key: %w", err)
		}
		if filter[key], err = url.QueryUnescape(parts[1]); err != nil {
			return nil, fmt.Errorf("error when unescaping value: %w", err)
		}
	}
	return filter, nil
}

// has reports whether a sandbox has all of some metadata.
func (i *instance) has(metadata map[string]string) bool {
	for key, value := range metadata {
		if have, ok := i.config.metadata[key]; !ok || have != value {
			return false
		}
	}
	return true
}

func (c *control) listV1(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	metadata, err := parseMetadata(r.URL.Query())
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Error parsing metadata: error parsing metadata: %v", err)
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	found := c.server.selectLocked(func(i *instance) bool { return i.state == running && i.has(metadata) })
	return http.StatusOK, describeAll(found), nil
}

// selectLocked returns the sandboxes that a list has, the newest first.
func (s *Server) selectLocked(want func(*instance) bool) []*instance {
	var found []*instance
	for _, i := range s.order {
		if !i.state.gone() && want(i) {
			found = append(found, i)
		}
	}
	slices.SortFunc(found, func(a, b *instance) int { return newestFirst(a.position(), b.position()) })
	return found
}

func describeAll(found []*instance) []listedSandbox {
	list := make([]listedSandbox, 0, len(found))
	for _, i := range found {
		list = append(list, i.listed())
	}
	return list
}

// position is where in a list something is.
type position struct {
	time time.Time
	id   string
}

func (i *instance) position() position { return position{i.pageTime(), i.id} }

func newestFirst(a, b position) int {
	if order := b.time.Compare(a.time); order != 0 {
		return order
	}
	return strings.Compare(a.id, b.id)
}

// page is which part of a list is asked for.
type page struct {
	limit  int
	oldest bool // first
	after  *position
}

func parsePage(q url.Values) (page, error) {
	limit, err := queryInt(q, "limit", 1, maxPage, maxPage)
	if err != nil {
		return page{}, err
	}
	order, err := queryEnum(q, "order", "desc", "asc")
	if err != nil {
		return page{}, err
	}
	p := page{limit: int(limit), oldest: order == "asc"}
	if token := q.Get("nextToken"); token != "" {
		if p.after, err = p.parseToken(token); err != nil {
			return page{}, fail(http.StatusBadRequest, "Invalid next token")
		}
	}
	return p, nil
}

func (p page) parseToken(token string) (*position, error) {
	decoded, err := base64.URLEncoding.DecodeString(token)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(string(decoded), "__")
	oldest := len(parts) == 3 && parts[2] == "asc"
	if len(parts) != 2 && !oldest || oldest != p.oldest {
		return nil, errors.New("not a token of this order")
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	return &position{at, parts[1]}, err
}

func (p page) token(at position) string {
	token := at.time.UTC().Format(time.RFC3339Nano) + "__" + at.id
	if p.oldest {
		token += "__asc"
	}
	return base64.URLEncoding.EncodeToString([]byte(token))
}

// cut returns a page of a list that has the newest first, and names the next
// one in the header.
func cut[T any](p page, w http.ResponseWriter, list []T, at func(T) position) []T {
	if p.oldest {
		slices.Reverse(list)
	}
	start := 0
	if p.after != nil {
		start = len(list)
		for k, item := range list {
			if order := newestFirst(at(item), *p.after); order > 0 && !p.oldest || order < 0 && p.oldest {
				start = k
				break
			}
		}
	}
	list = list[start:]
	if len(list) > p.limit {
		list = list[:p.limit]
		w.Header().Set("X-Next-Token", p.token(at(list[p.limit-1])))
	}
	return list
}

func (c *control) listV2(w http.ResponseWriter, r *http.Request) (int, any, error) {
	q := r.URL.Query()
	states, err := parseStates(q)
	if err != nil {
		return 0, nil, err
	}
	p, err := parsePage(q)
	if err != nil {
		return 0, nil, err
	}
	metadata, err := parseMetadata(q)
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Error parsing metadata")
	}
	var after time.Time
	if q.Has("startedAfter") {
		if after, err = time.Parse(time.RFC3339, q.Get("startedAfter")); err != nil {
			return 0, nil, invalid(`parameter "startedAfter" in query`, "string doesn't match the format \"date-time\"")
		}
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	wanted, err := c.templateFilterLocked(q)
	if err != nil {
		return 0, nil, err
	}
	found := c.server.selectLocked(func(i *instance) bool {
		return wanted(i.template) && i.has(metadata) && !i.pageTime().Before(after.Truncate(time.Microsecond)) &&
			slices.Contains(states, i.publicState())
	})
	if slices.Contains(states, StateRunning) {
		n := 0
		for _, i := range found {
			if i.publicState() == StateRunning {
				n++
			}
		}
		w.Header().Set("X-Total-Running", strconv.Itoa(n))
	}
	return http.StatusOK, describeAll(cut(p, w, found, (*instance).position)), nil
}

func parseStates(q url.Values) ([]State, error) {
	if !q.Has("state") {
		return []State{StateRunning, StatePaused}, nil
	}
	var states []State
	for state := range strings.SplitSeq(q.Get("state"), ",") {
		if state != string(StateRunning) && state != string(StatePaused) {
			return nil, invalid(`parameter "state" in query`, `value is not one of the allowed values ["running","paused"]`)
		}
		states = append(states, State(state))
	}
	return states, nil
}

// templateFilterLocked reads which templates a list is about.
func (c *control) templateFilterLocked(q url.Values) (func(*template) bool, error) {
	if !q.Has("template") {
		return func(*template) bool { return true }, nil
	}
	name := q.Get("template")
	if strings.Contains(name, ":") {
		return nil, fail(http.StatusBadRequest, "Invalid template: tags are not supported here because sandboxes are not tag-scoped")
	}
	identifier, _, err := parseName(name)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "Invalid template: %v", err)
	}
	wanted := c.server.templateLocked(identifier)
	return func(t *template) bool { return t == wanted }, nil
}
