package mock_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock"
)

// stream is the answer to a request that starts a process.
type stream struct {
	t    *testing.T
	body io.ReadCloser
}

// startStream starts a process in a sandbox.
func (a *api) startStream(id, cmd string, args ...string) *stream {
	a.t.Helper()
	s, err := a.tryStart(id, cmd, args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

func (a *api) tryStart(id, cmd string, args ...string) (*stream, error) {
	a.t.Helper()
	message, err := json.Marshal(object{"process": object{"cmd": cmd, "args": args}})
	if err != nil {
		a.t.Fatal(err)
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	req, err := http.NewRequestWithContext(a.t.Context(), "POST", a.server.URL()+"/process.Process/Start", strings.NewReader(string(frame)))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", id)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("Content-Type", "application/connect+json")
	res, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != 200 {
		res.Body.Close()
		return nil, fmt.Errorf("start: %s", res.Status)
	}
	return &stream{a.t, res.Body}, nil
}

func (s *stream) Close() { s.body.Close() }

// next reads a message.
func (s *stream) next() (object, error) {
	var header [5]byte
	if _, err := io.ReadFull(s.body, header[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(header[1:]))
	if _, err := io.ReadFull(s.body, b); err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	if header[0] == 2 {
		return o, io.EOF
	}
	event, _ := o["event"].(object)
	return event, nil
}

// result is how a process ended, and what it wrote.
type result struct {
	Stdout, Stderr string
	Code           int
	Status         string
}

// wait reads a stream to its end.
func (s *stream) wait() (r result, err error) {
	defer s.Close()
	for {
		event, err := s.next()
		if err == io.EOF {
			if failure := event["error"]; failure != nil {
				return r, fmt.Errorf("%v", failure)
			}
			return r, nil
		}
		if err != nil {
			return r, err
		}
		data, _ := event["data"].(object)
		for name, into := range map[string]*string{"stdout": &r.Stdout, "stderr": &r.Stderr} {
			if text, ok := data[name].(string); ok {
				b, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					return r, err
				}
				*into += string(b)
			}
		}
		if end, ok := event["end"].(object); ok {
			code, _ := end["exitCode"].(float64)
			r.Code = int(code)
			r.Status, _ = end["status"].(string)
		}
	}
}

// run runs a command to its end.
func (a *api) run(id, cmd string, args ...string) result {
	a.t.Helper()
	r, err := a.startStream(id, cmd, args...).wait()
	if err != nil {
		a.t.Fatalf("%s %q: %v", cmd, args, err)
	}
	return r
}

func TestEdgeErrors(t *testing.T) {
	a := newAPI(t)
	id := a.sandbox()
	private := a.create(`{"templateID":"base","timeout":60,"secure":true,"network":{"allowPublicTraffic":false}}`)
	secret := private["sandboxID"].(string)
	traffic := private["trafficAccessToken"].(string)
	stopped := a.sandbox()
	a.do("POST", "/sandboxes/"+stopped+"/pause", "")

	notFound := func(id string) object {
		return object{"sandboxId": id, "message": "The sandbox was not found", "code": 502.0}
	}
	closed := func(id string, port float64) object {
		return object{"sandboxId": id, "message": "The sandbox is running but port is not open", "port": port, "code": 502.0}
	}
	internal := object{"message": "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL", "code": 404.0}
	with := func(o object, key string, value any) object {
		o = map[string]any{"message": o["message"], "code": o["code"]}
		o[key] = value
		return o
	}
	to := func(id, port string) []string { return []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", port} }
	for _, test := range []struct {
		name, path string
		header     []string
		status     int
		json       object
		text       string
	}{
		{"daemon", "/health", to(id, "49983"), 204, nil, ""},
		{"daemon by host", "/health", []string{"Host", "49983-" + id + ".e2b.app"}, 204, nil, ""},
		{"daemon by old host", "/health", []string{"Host", "49983-" + id + "-6532622b.e2b.app:80"}, 204, nil, ""},
		{"daemon by shared host", "/health", append(to(id, "49983"), "Host", "sandbox.e2b.app"), 204, nil, ""},
		{"host counts more than headers", "/health", append(to("inone", "49983"), "Host", "49983-"+id+".e2b.app"), 204, nil, ""},
		{"unknown", "/health", to("inone", "49983"), 502, notFound("inone"), ""},
		{"paused", "/health", to(stopped, "49983"), 502, notFound(stopped), ""},
		{"unknown by host", "/health", []string{"Host", "49983-inone.e2b.app"}, 502, notFound("inone"), ""},
		{"port", "/", to(id, "8080"), 502, closed(id, 8080), ""},
		{"init", "/init", to(id, "49983"), 404, with(internal, "path", "/init"), ""},
		{"init, not clean", "/a/..//freeze", to(id, "49983"), 404, with(internal, "path", "/a/..//freeze"), ""},
		{"init of unknown", "/init", to("inone", "49983"), 502, notFound("inone"), ""},
		{"no traffic token", "/", to(secret, "80"), 403, object{"sandboxId": secret, "code": 403.0,
			"message": "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"}, ""},
		{"wrong traffic token", "/", append(to(secret, "80"), "e2b-traffic-access-token", "x"), 403, object{"sandboxId": secret, "code": 403.0,
			"message": "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"}, ""},
		{"traffic token", "/", append(to(secret, "80"), "e2b-traffic-access-token", traffic), 502, closed(secret, 80), ""},
		{"daemon needs no traffic token", "/health", to(secret, "49983"), 204, nil, ""},
		{"daemon's own token", "/metrics", to(secret, "49983"), 401, nil, ""},
		{"no port", "/", []string{"E2b-Sandbox-Id", id}, 400, nil, "missing header\n"},
		{"no ID", "/", []string{"E2b-Sandbox-Port", "1"}, 400, nil, "missing header\n"},
		{"bad ID", "/", to("I-1", "1"), 400, nil, "Invalid sandbox ID\n"},
		{"bad host", "/", []string{"Host", "sandbox.e2b.app"}, 400, nil, "Invalid host\n"},
		{"bad port", "/", to(id, "x"), 500, nil, "Unexpected error when routing request: invalid sandbox port \"x\"\n"},
		{"browser", "/", append(to(id, "8080"), "User-Agent", "Mozilla/5.0"), 502, nil,
			"<!doctype html>\n<title>502</title>\n<h1>Bad Gateway</h1>\n<p>The sandbox is running but port is not open</p>\n"},
		{"browser's script", "/", append(to(id, "8080"), "User-Agent", "Mozilla/5.0", "Sec-Fetch-Mode", "cors"), 502, closed(id, 8080), ""},
		{"browser that wants JSON", "/", append(to(id, "8080"), "User-Agent", "Mozilla/5.0", "Accept", "application/json"), 502, closed(id, 8080), ""},
		{"control plane by host", "/health", []string{"Host", "api.e2b.app"}, 200, nil, "Health check successful"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := a.do("GET", test.path, "", test.header...)
			if r.Status != test.status || test.text != "" && r.Body != test.text {
				t.Fatalf("%+v; want status %d %q", r, test.status, test.text)
			}
			if test.json != nil {
				if diff := cmp.Diff(test.json, r.json(t)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestAutoResume(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now), mock.WithConcurrency(2))
	sandbox := a.create(`{"templateID":"base","timeout":20,"autoPause":true,"autoResume":{"enabled":true},"secure":true}`)
	id, token := sandbox["sandboxID"].(string), sandbox["envdAccessToken"].(string)
	detail := a.do("GET", "/sandboxes/"+id, "").json(t)
	if diff := cmp.Diff(object{"autoResume": true, "onTimeout": "pause"}, detail["lifecycle"]); diff != "" {
		t.Error(diff)
	}
	if err := a.server.Expire(id); err != nil {
		t.Fatal(err)
	}
	denied := a.edge(id, "GET", "/health", "", "X-Access-Token", "wrong")
	if denied.Status != 403 || !strings.Contains(denied.Body, "can't be resumed with the credentials") {
		t.Errorf("wrong token: %+v", denied)
	}
	if r := a.edge(id, "GET", "/health", "", "X-Access-Token", token); r.Status != 204 {
		t.Errorf("health: %+v", r)
	}
	got := a.server.Sandboxes()[0]
	if got.State != mock.StateRunning || got.EndAt.Sub(got.StartedAt) != 5*time.Minute {
		t.Errorf("after the wake-up: %+v", got)
	}

	a.server.Pause(id)
	a.sandbox()
	a.sandbox()
	if r := a.edge(id, "GET", "/health", "", "X-Access-Token", token); r.Status != 429 {
		t.Errorf("over the limit: %+v", r)
	}
}

func TestFilesOnlyIsNotWoken(t *testing.T) {
	a := newAPI(t)
	id := a.create(`{"templateID":"base","timeout":60,"autoResume":{"enabled":true}}`)["sandboxID"].(string)
	a.do("POST", "/sandboxes/"+id+"/pause", `{"memory":false}`)
	if r := a.edge(id, "GET", "/health", ""); r.Status != 502 {
		t.Errorf("%+v", r)
	}
}

// waiting programs write once and end with their context.
func waitingOptions() mock.ServerOption { return mock.WithOptions(*waiting) }

// TestStreamsAreReset ends a sandbox in several ways while a stream is open.
func TestStreamsAreReset(t *testing.T) {
	for name, strike := range map[string]func(a *api, id string) error{
		"kill":        func(a *api, id string) error { return a.server.Kill(id) },
		"expire":      func(a *api, id string) error { return a.server.Expire(id) },
		"pause":       func(a *api, id string) error { return a.server.Pause(id) },
		"connections": func(a *api, _ string) error { a.server.CutConnections(); return nil },
		"request": func(a *api, id string) error {
			if r := a.do("DELETE", "/sandboxes/"+id, ""); r.Status != 204 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, waitingOptions())
			id := a.sandbox()
			s := a.startStream(id, waitPath, "x")
			for {
				event, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				if event["data"] != nil {
					break
				}
			}
			if err := strike(a, id); err != nil {
				t.Fatal(err)
			}
			if _, err := s.next(); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && err == io.EOF {
				t.Errorf("the stream ends with %v, want a reset", err)
			}
			s.Close()
		})
	}
}

// TestPauseKeepsProcesses pauses a sandbox in which a program counts, and
// finds it where it was.
func TestPauseKeepsProcesses(t *testing.T) {
	step := make(chan struct{})
	a := newAPI(t, mock.WithOptions(mock.Options{Programs: map[string]mock.Program{
		"count": func(ctx context.Context, p *mock.Proc) int {
			for n := 1; ; n++ {
				select {
				case <-step:
				case <-ctx.Done():
					return 0
				}
				f, err := p.FS.Create("/tmp/count")
				if err != nil {
					return 1
				}
				fmt.Fprint(f, n)
				f.Close()
			}
		},
	}}))
	id := a.sandbox()
	s := a.startStream(id, "count")
	defer s.Close()
	count := func() string {
		b, err := a.server.Sandbox(id).ReadFile("/tmp/count")
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	step <- struct{}{}
	eventually(t, "it counts", func() bool { return count() == "1" })
	if err := a.server.Pause(id); err != nil {
		t.Fatal(err)
	}
	step <- struct{}{} // and now it waits for its file
	if got := count(); got != "1" {
		t.Errorf("a paused sandbox counts: %s", got)
	}
	if r := a.do("POST", "/sandboxes/"+id+"/connect", `{"timeout":60}`); r.Status != 201 {
		t.Fatalf("%+v", r)
	}
	eventually(t, "it counts again", func() bool { return count() == "2" })

	if r := a.do("POST", "/sandboxes/"+id+"/pause", `{"memory":false}`); r.Status != 204 {
		t.Fatalf("%+v", r)
	}
	if got := count(); got != "2" {
		t.Errorf("the file of a rebooted sandbox has %s", got)
	}
	if got := a.server.Sandbox(id).Processes(); len(got) != 0 {
		t.Errorf("processes of a rebooted sandbox: %+v", got)
	}
}
