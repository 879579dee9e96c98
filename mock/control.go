package mock

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxBody bounds the body of a request to the control plane, as E2B does.
const maxBody = 16 << 20

// control is the control plane.
type control struct {
	server  *Server
	creates rateLimit
	routes  *http.ServeMux // by method and path
	paths   *http.ServeMux // by path alone
}

// action handles a request whose key was checked. The answer is written as
// JSON; nil means that there is none.
type action func(w http.ResponseWriter, r *http.Request) (status int, answer any, err error)

// apiError is an error as the control plane answers it.
type apiError struct {
	Code      int    `json:"code"`
	ErrorCode string `json:"error_code,omitempty"`
	Message   string `json:"message"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

func fail(code int, format string, args ...any) *apiError {
	return &apiError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// invalid is the answer of E2B's schema validation.
func invalid(where, format string, args ...any) *apiError {
	return fail(http.StatusBadRequest, "validation error: error in openapi3filter.RequestError: %s has an error: %s",
		where, fmt.Sprintf(format, args...))
}

func newControl(s *Server) *control {
	c := &control{server: s, routes: http.NewServeMux(), paths: http.NewServeMux()}
	seen := make(map[string]bool)
	handle := func(pattern string, h http.Handler) {
		c.routes.Handle(pattern, h)
		if _, p, _ := strings.Cut(pattern, " "); !seen[p] {
			seen[p] = true
			c.paths.Handle(p, http.NotFoundHandler())
		}
	}
	handle("GET /health", http.HandlerFunc(healthy))
	handle("PUT /layers/{hash}", http.HandlerFunc(c.putLayer))
	for pattern, a := range c.actions() {
		handle(pattern, c.guard(a))
	}
	for _, pattern := range absent {
		handle(pattern, c.guard(notBuilt))
	}
	return c
}

func (c *control) actions() map[string]action {
	return map[string]action{
		"POST /sandboxes":                        c.createV1,
		"POST /v2/sandboxes":                     c.createV2,
		"GET /sandboxes":                         c.listV1,
		"GET /v2/sandboxes":                      c.listV2,
		"GET /sandboxes/metrics":                 c.allMetrics,
		"GET /sandboxes/{sandboxID}":             c.get,
		"DELETE /sandboxes/{sandboxID}":          c.kill,
		"POST /sandboxes/{sandboxID}/timeout":    c.timeout,
		"POST /sandboxes/{sandboxID}/refreshes":  c.refresh,
		"POST /sandboxes/{sandboxID}/connect":    c.connectV1,
		"POST /v2/sandboxes/{sandboxID}/connect": c.connectV2,
		"POST /sandboxes/{sandboxID}/resume":     c.resume,
		"POST /sandboxes/{sandboxID}/pause":      c.pause,
		"POST /sandboxes/{sandboxID}/snapshots":  c.snapshot,
		"POST /sandboxes/{sandboxID}/fork":       c.fork,
		"PUT /sandboxes/{sandboxID}/network":     c.setNetwork,
		"GET /sandboxes/{sandboxID}/metrics":     c.metrics,
		"GET /sandboxes/{sandboxID}/logs":        c.logsV1,
		"GET /v2/sandboxes/{sandboxID}/logs":     c.logsV2,
		"GET /snapshots":                         c.listSnapshots,
		"GET /templates":                         c.listTemplates,
		"GET /v2/templates":                      c.listTemplatesV2,
		"GET /templates/{templateID}":            c.getTemplate,
		"DELETE /templates/{templateID}":         c.deleteTemplate,
		"GET /templates/aliases/{alias}":         c.getAlias,
		"PATCH /v2/templates/{templateID}":       c.updateTemplate,
		"POST /v3/templates":                     c.requestBuild,
		"GET /templates/{templateID}/{rest}":     c.templateRest,
		"POST /templates/tags":                   c.addTags,
		"DELETE /templates/tags":                 c.removeTags,

		"GET /templates/{templateID}/files/{hash}":            c.layerURL,
		"POST /v2/templates/{templateID}/builds/{buildID}":    c.startBuild,
		"GET /templates/{templateID}/builds/{buildID}/status": c.buildStatus,
		"GET /templates/{templateID}/builds/{buildID}/logs":   c.buildLogs,
	}
}

// absent are the routes of E2B that the server knows and does not have.
var absent = [...]string{
	"POST /templates",
	"POST /v2/templates",
	"PATCH /templates/{templateID}",
	"POST /templates/{templateID}",
	"POST /templates/{templateID}/builds/{buildID}",
	"GET /teams",
	"GET /volumes",
	"POST /volumes",
	"GET /volumes/{volumeID}",
	"DELETE /volumes/{volumeID}",
	"GET /secrets",
	"POST /secrets",
	"GET /secrets/{secretID}",
	"POST /secrets/{secretID}",
	"DELETE /secrets/{secretID}",
}

func notBuilt(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	return 0, nil, fail(http.StatusNotImplemented, "the mock server does not have %s: it has no builds of the first version, teams, volumes or secrets", r.Pattern)
}

func healthy(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "Health check successful")
}

// procedure names what a request asks for, and the sandbox.
func (c *control) procedure(r *http.Request) (pattern, sandbox string) {
	if _, pattern = c.routes.Handler(r); pattern == "" {
		return "", ""
	}
	if rest, ok := strings.CutSuffix(pattern, "{rest}"); ok {
		return rest + path.Base(r.URL.Path), ""
	}
	_, rest, _ := strings.Cut(pattern, "/sandboxes/{sandboxID}")
	if rest == "" && !strings.HasSuffix(pattern, "{sandboxID}") {
		return pattern, ""
	}
	_, sandbox, _ = strings.Cut(r.URL.Path, "/sandboxes/")
	sandbox, _, _ = strings.Cut(sandbox, "/")
	sandbox, _, _ = strings.Cut(sandbox, "-")
	return pattern, sandbox
}

// ServeHTTP implements http.Handler.
func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path.Clean(r.URL.Path) == r.URL.Path { // else the mux would redirect
		if _, pattern := c.routes.Handler(r); pattern != "" {
			c.routes.ServeHTTP(w, r)
			return
		}
		if _, pattern := c.paths.Handler(r); pattern != "" {
			answer(w, http.StatusBadRequest, fail(http.StatusBadRequest, "validation error: method not allowed"))
			return
		}
	}
	answer(w, http.StatusNotFound, fail(http.StatusNotFound, "validation error: no matching operation was found"))
}

// guard checks the key, calls an action and writes its answer.
func (c *control) guard(a action) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", c.server.now().UTC().Format(http.TimeFormat))
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		status, body, err := 0, any(nil), c.authorize(r)
		if err == nil {
			status, body, err = a(w, r)
		}
		if err != nil {
			var known *apiError
			if !errors.As(err, &known) {
				known = fail(http.StatusInternalServerError, "%v", err)
			}
			c.server.log.Debug("request refused", "request", r.Pattern, "status", known.Code, "message", known.Message)
			status, body = known.Code, known
		}
		answer(w, status, body)
	})
}

func answer(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	b, err := json.Marshal(body)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b)
}

const badKey = "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n"

func (c *control) authorize(r *http.Request) error {
	key := r.Header.Get("X-API-Key")
	digits, ok := strings.CutPrefix(key, "e2b_")
	message := ""
	switch {
	case key == "":
		message = "authorization header is missing"
	case !ok:
		message = "authorization header is malformed"
	case key == c.server.APIKey():
		return nil
	default:
		message = badKey + "Cannot get the team for the given API key"
		if _, err := hex.DecodeString(digits); err != nil {
			message = badKey + "Invalid API key format"
		}
	}
	return fail(http.StatusUnauthorized, "%s", message)
}

// decode reads a request's body. Properties that are unknown are ignored, and
// so is null where nullable names the property.
func decode(r *http.Request, required bool, into any, nullable ...string) error {
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fail(http.StatusRequestEntityTooLarge, "request too large")
	case err != nil:
		return fail(http.StatusBadRequest, "Error when parsing request: %v", err)
	case len(bytes.TrimSpace(body)) == 0 && !required:
		return nil
	case len(bytes.TrimSpace(body)) == 0:
		return invalid("request body", "value is required but missing")
	}
	if media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(media) != "application/json" {
		return invalid("request body", "header Content-Type has unexpected value: %q", r.Header.Get("Content-Type"))
	}
	var properties map[string]json.RawMessage
	if err := json.Unmarshal(body, &properties); err != nil || properties == nil {
		return invalid("request body", "failed to decode request body: value must be an object")
	}
	for name, value := range properties {
		if string(value) == "null" && !slices.Contains(nullable, name) {
			return invalid("request body", "doesn't match schema: Error at %q: Value is not nullable", "/"+name)
		}
	}
	var wrong *json.UnmarshalTypeError
	if err := json.Unmarshal(body, into); errors.As(err, &wrong) {
		return invalid("request body", "doesn't match schema: Error at %q: value must be %s", "/"+strings.ReplaceAll(wrong.Field, ".", "/"), wrong.Type)
	} else if err != nil {
		return invalid("request body", "failed to decode request body: %v", err)
	}
	return nil
}

// sandboxID reads the ID in a path. One with the old client's suffix is fine.
func sandboxID(r *http.Request) (string, error) { return shortID(r.PathValue("sandboxID")) }

func shortID(id string) (string, error) {
	short, rest, _ := strings.Cut(id, "-")
	if !validID(short) || strings.Contains(rest, "-") {
		return "", fail(http.StatusBadRequest, "Invalid sandbox ID")
	}
	return short, nil
}

// validID reports whether a sandbox could have the ID.
func validID(id string) bool {
	return id != "" && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

func noSandbox(id string) error {
	return fail(http.StatusNotFound, "Sandbox %q doesn't exist or you don't have access to it", id)
}

// queryInt reads a number from the query. It returns otherwise when there is
// none.
func queryInt(q url.Values, name string, least, most, otherwise int64) (int64, error) {
	if !q.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	where := fmt.Sprintf("parameter %q in query", name)
	switch {
	case err != nil:
		return 0, invalid(where, "value %s: an invalid integer: invalid syntax", q.Get(name))
	case n < least:
		return 0, invalid(where, "number must be at least %d", least)
	case n > most:
		return 0, invalid(where, "number must be at most %d", most)
	}
	return n, nil
}

// queryEnum reads one of some words from the query, the first when there is
// none.
func queryEnum(q url.Values, name string, words ...string) (string, error) {
	if !q.Has(name) {
		return words[0], nil
	}
	if word := q.Get(name); slices.Contains(words, word) {
		return word, nil
	}
	return "", invalid(fmt.Sprintf("parameter %q in query", name), "value is not one of the allowed values %q", words)
}
