package mock

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
)

const (
	envdPort = 49983 // of the daemon in every sandbox

	sandboxIDHeader = "E2b-Sandbox-Id"
	portHeader      = "E2b-Sandbox-Port"
	trafficHeader   = "e2b-traffic-access-token"
)

// target is where in which sandbox a request goes.
type target struct {
	sandbox string
	port    int
}

func hostname(r *http.Request) string { return (&url.URL{Host: r.Host}).Hostname() }

// takesHeaders reports whether requests to a host are routed by their headers:
// a local one, or the one that all sandboxes share.
func takesHeaders(host string) bool {
	return host == "localhost" || net.ParseIP(host) != nil || strings.HasPrefix(host, "sandbox.")
}

// onEdge reports whether a request is for a sandbox.
func onEdge(r *http.Request) bool {
	host := hostname(r)
	if strings.HasPrefix(host, "sandbox.") {
		return true
	}
	if takesHeaders(host) {
		return r.Header.Get(sandboxIDHeader) != "" || r.Header.Get(portHeader) != ""
	}
	label, _, dotted := strings.Cut(host, ".")
	return dotted && strings.Contains(label, "-")
}

// routeError is a request that leads to no sandbox.
type routeError struct {
	status  int
	message string
}

func (e *routeError) Error() string { return e.message }

func parseTarget(r *http.Request) (target, error) {
	id, port := r.Header.Get(sandboxIDHeader), r.Header.Get(portHeader)
	if !takesHeaders(hostname(r)) || id == "" && port == "" {
		label, _, dotted := strings.Cut(r.Host, ".")
		parts := strings.Split(label, "-")
		if !dotted || len(parts) < 2 {
			return target{}, &routeError{http.StatusBadRequest, "Invalid host"}
		}
		port, id = parts[0], parts[1]
	} else if id == "" || port == "" {
		return target{sandbox: id}, &routeError{http.StatusBadRequest, "missing header"}
	}
	n, err := strconv.ParseUint(port, 10, 31)
	if err != nil {
		return target{sandbox: id}, &routeError{http.StatusInternalServerError,
			fmt.Sprintf("Unexpected error when routing request: invalid sandbox port %q", port)}
	}
	t := target{sandbox: id, port: int(n)}
	if !validID(id) {
		return t, &routeError{http.StatusBadRequest, "Invalid sandbox ID"}
	}
	return t, nil
}

// edgeProcedure names what a request asks of a daemon.
func edgeProcedure(r *http.Request) string {
	if name := strings.TrimPrefix(r.URL.Path, "/"); strings.Count(name, "/") == 1 && strings.Contains(name, ".") {
		return name
	}
	return r.Method + " " + r.URL.Path
}

// edge leads a request to its sandbox, unless err says that there is no way.
func (s *Server) edge(t target, err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err != nil {
			refuse(w, r, t, err, 0)
			return
		}
		v, err := s.admit(r, t)
		if err != nil {
			refuse(w, r, t, err, s.opts.maxConcurrency)
			return
		}
		defer v.leave()
		if err := s.pass(v.instance, r, t); err != nil {
			refuse(w, r, t, err, 0)
			return
		}
		v.guest.ServeHTTP(w, v.request)
	})
}

// The errors of the edge that have an answer of their own.
var (
	errResumeDenied   = errors.New("wrong token for a paused sandbox")
	errInternalPath   = errors.New("a path of the control plane's")
	errPortClosed     = errors.New("nobody listens on the port")
	errTrafficMissing = errors.New("the traffic token is missing")
	errTrafficWrong   = errors.New("the traffic token is wrong")
)

// pass says why a request to a sandbox that runs is refused.
func (s *Server) pass(i *instance, r *http.Request, t target) error {
	if t.port == envdPort {
		if internalPath(r.URL.Path) {
			return errInternalPath
		}
		return nil
	}
	if i.config.private {
		switch token := r.Header.Get(trafficHeader); {
		case token == "":
			return errTrafficMissing
		case !sameToken(token, s.trafficToken(i.id)):
			return errTrafficWrong
		}
	}
	return errPortClosed
}

// internalPath reports whether a path is one by which the control plane steers
// a daemon.
func internalPath(name string) bool {
	switch path.Clean("/" + name) {
	case "/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade":
		return true
	}
	return false
}

func sameToken(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// refusal is the body of an error of the edge.
type refusal struct {
	SandboxID string `json:"sandboxId,omitempty"`
	Message   string `json:"message"`
	Path      string `json:"path,omitempty"`
	Port      int    `json:"port,omitempty"`
	Code      int    `json:"code"`
}

func refuse(w http.ResponseWriter, r *http.Request, t target, err error, limit int) {
	var route *routeError
	if errors.As(err, &route) {
		http.Error(w, route.message, route.status)
		return
	}
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody listens
	}
	body := describe(r, t, err, limit)
	if wantsHTML(r) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(body.Code)
		fmt.Fprintf(w, "<!doctype html>\n<title>%d</title>\n<h1>%s</h1>\n<p>%s</p>\n",
			body.Code, html.EscapeString(http.StatusText(body.Code)), html.EscapeString(body.Message))
		return
	}
	b, _ := json.Marshal(body) // cannot fail
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(body.Code)
	w.Write(b)
}

func describe(r *http.Request, t target, err error, limit int) refusal {
	b := refusal{SandboxID: t.sandbox}
	switch {
	case errors.Is(err, errInternalPath):
		b = refusal{Path: r.URL.Path, Code: http.StatusNotFound}
		b.Message = "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
	case errors.Is(err, errPortClosed):
		b.Code, b.Port, b.Message = http.StatusBadGateway, t.port, "The sandbox is running but port is not open"
	case errors.Is(err, errResumeDenied):
		b.Code, b.Message = http.StatusForbidden, "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
	case errors.Is(err, errTrafficMissing):
		b.Code, b.Message = http.StatusForbidden, fmt.Sprintf("Sandbox is secured with traffic access token. Token header '%s' is missing", trafficHeader)
	case errors.Is(err, errTrafficWrong):
		b.Code, b.Message = http.StatusForbidden, fmt.Sprintf("Sandbox is secured with traffic access token. Provided token in header '%s' is invalid", trafficHeader)
	case errors.Is(err, errLimit):
		b.Code, b.Message = http.StatusTooManyRequests, limitMessage(limit)
	case errors.Is(err, ErrNoSandbox):
		b.Code, b.Message = http.StatusBadGateway, "The sandbox was not found"
	default: // it took too long
		b.Code, b.Message = http.StatusConflict, "The sandbox is still transitioning. Try again in a moment."
	}
	return b
}

func limitMessage(limit int) string {
	return fmt.Sprintf("you have reached the maximum number of concurrent E2B sandboxes (%d). If you need more, "+
		"please visit 'https://e2b.dev/docs/billing'", limit)
}

// wantsHTML reports whether a request is a browser's that shows a page.
func wantsHTML(r *http.Request) bool {
	accept := strings.ToLower(r.Header.Get("Accept"))
	if strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html") {
		return false
	}
	switch strings.ToLower(r.Header.Get("Sec-Fetch-Mode")) {
	case "cors", "no-cors", "same-origin", "websocket":
		return false
	case "navigate":
	default:
		if r.Header.Get("X-Requested-With") != "" {
			return false
		}
	}
	agent := strings.ToLower(r.UserAgent())
	for _, browser := range []string{"mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"} {
		if strings.Contains(agent, browser) {
			return true
		}
	}
	return false
}
