package e2b

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxRefusalBytes = 64 << 10 // of an answer that says no, the rest is not read
	maxMessageBytes = 1 << 10  // of what goes into an error
)

// answerError makes the error of an answer that says no, an *APIError. It
// reads a bounded part of the body and closes it.
func answerError(op string, resp *http.Response) error { return refuse(op, resp) }

func refuse(op string, resp *http.Response) *APIError {
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBytes)) // what came says enough
	e := &APIError{Op: op, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	var header http.Header
	if r := resp.Request; r != nil {
		e.Method, e.Path, header = r.Method, r.URL.EscapedPath(), r.Header
		body = withoutSecrets(body, header)
	}
	e.judge(e.read(body))
	switch {
	case resp.StatusCode/100 == 3:
		e.fix = redirected(resp, header)
	case e.Status == http.StatusNotFound && !e.object && header.Get("X-Api-Key") != "":
		e.fix = "this is not what E2B's API says; check E2B_API_URL"
	}
	if e.Status == http.StatusUnauthorized && header.Get("E2b-Sandbox-Id") != "" {
		e.fix = "connect to the sandbox again"
	}
	return e
}

// byStorage makes it one of a storage, which knows neither keys nor sandboxes.
func (e *APIError) byStorage() {
	e.Op, e.fix = e.Op+": storage", ""
	switch {
	case e.Status/100 == 3:
		e.fix = "it redirects, which is not followed"
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden, e.Status == http.StatusNotFound:
		e.about, e.fix = nil, "the place that E2B named for it is good for 30 minutes; try again"
	case errors.Is(e.about, ErrUnsupported):
		e.about = nil
	}
}

// unquote leaves the server's words out where they may quote what is secret.
func (e *APIError) unquote() {
	if !e.notWaiting() {
		e.Message, e.fix = "", "the server's words are left out, as they may quote the registry's password"
	}
}

// redirected says what to do about an answer that leads elsewhere. It is not
// followed: that would hand the key to another host.
func redirected(resp *http.Response, header http.Header) string {
	variable := "E2B_API_URL"
	if header.Get("E2b-Sandbox-Id") != "" {
		variable = "E2B_SANDBOX_URL"
	}
	to, err := resp.Location()
	if err != nil {
		return "check " + variable
	}
	return fmt.Sprintf("it redirects to %s; set %s to where it should be", clip(to.Scheme+"://"+to.Host), variable)
}

// refusal is the JSON of an answer that says no. Code is a number from the
// control plane and the edge, and a string from Connect.
type refusal struct {
	Code      json.RawMessage `json:"code"`
	ErrorCode string          `json:"error_code"`
	Message   string          `json:"message"`
	SandboxID string          `json:"sandboxId"` // the edge's
	Port      json.RawMessage `json:"port"`      // the edge's, when the sandbox runs
}

// read takes what the body says, JSON or not.
func (e *APIError) read(body []byte) (said refusal) {
	if json.Unmarshal(body, &said) != nil {
		e.Message = plain(body)
		return refusal{}
	}
	e.object = len(said.Code) > 0 || said.Message != ""
	e.Code = clip(said.ErrorCode)
	if code := ""; e.Code == "" && json.Unmarshal(said.Code, &code) == nil {
		e.Code = clip(code)
	}
	e.Message = clip(said.Message)
	return said
}

// judge finds the sentinel, and what the caller can do.
func (e *APIError) judge(said refusal) {
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		e.about = ErrInvalid
	case http.StatusUnauthorized:
		e.about, e.fix = ErrAuthentication, "check E2B_API_KEY"
	case http.StatusForbidden:
		e.about = ErrForbidden
	case http.StatusNotFound:
		e.about = ErrNotFound
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		e.about = ErrTimeout
	case http.StatusConflict:
		e.about = ErrConflict
	case http.StatusTooManyRequests:
		e.about = ErrRateLimit
	case http.StatusNotImplemented:
		e.about = ErrUnsupported
	case http.StatusBadGateway:
		e.judgeEdge(said)
	case http.StatusServiceUnavailable:
		if e.Code == "sandbox_capacity_unavailable" {
			e.about = ErrCapacity
		}
	case http.StatusInsufficientStorage:
		e.about, e.fix = ErrDiskFull, "remove files in the sandbox, or use a template with a larger disk"
	}
}

// judgeEdge reads a 502. The edge in front of the sandboxes names the sandbox
// in it, and the port too when only that is closed.
func (e *APIError) judgeEdge(said refusal) {
	switch {
	case len(said.Port) > 0 && string(said.Port) != "null":
		e.about = ErrPortClosed
	case said.SandboxID != "":
		e.about = ErrSandboxGone
	}
}

// retryAfter reads the header of that name, seconds or a date. Zero means that
// there is none, or none that can be read; no wait at all becomes the shortest.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if s, err := strconv.ParseUint(value, 10, 31); err == nil {
		return max(time.Duration(s)*time.Second, time.Millisecond)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return max(at.Sub(now), time.Millisecond)
}

// plain is the text of a body that is not E2B's JSON; a page of HTML says
// nothing that is worth a line in an error.
func plain(body []byte) string {
	text := bytes.TrimSpace(body)
	if bytes.HasPrefix(text, []byte("<")) {
		return ""
	}
	return clip(string(text))
}

// clip makes foreign text fit for an error: bounded, printable, one line.
func clip(s string) string {
	if len(s) > maxMessageBytes {
		s = s[:maxMessageBytes] + "..."
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return strings.TrimSpace(s)
}

// secretHeaders carry what must not come back in an error that quotes a
// server's words.
var secretHeaders = [...]string{"X-Api-Key", "X-Access-Token", "E2b-Traffic-Access-Token", "Authorization"}

func withoutSecrets(body []byte, h http.Header) []byte {
	for _, name := range secretHeaders {
		if v := h.Get(name); v != "" {
			body = bytes.ReplaceAll(body, []byte(v), []byte("[secret]"))
		}
	}
	return body
}
