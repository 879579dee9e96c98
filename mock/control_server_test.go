package mock_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote/mock"
)

// object is a JSON object.
type object = map[string]any

// api talks to a server.
type api struct {
	t      *testing.T
	server *mock.Server
	client *http.Client
}

func newAPI(t *testing.T, opts ...mock.ServerOption) *api {
	t.Helper()
	server, err := mock.NewServer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &api{t: t, server: server, client: &http.Client{Transport: transport}}
}

// reply is a response whose body was read.
type reply struct {
	Status int
	Header http.Header
	Body   string
}

func (r reply) json(t *testing.T) object {
	t.Helper()
	var o object
	if err := json.Unmarshal([]byte(r.Body), &o); err != nil {
		t.Fatalf("%d %q: %v", r.Status, r.Body, err)
	}
	return o
}

func (r reply) list(t *testing.T) []object {
	t.Helper()
	var l []object
	if err := json.Unmarshal([]byte(r.Body), &l); err != nil {
		t.Fatalf("%d %q: %v", r.Status, r.Body, err)
	}
	return l
}

// try sends a request with the key and a body of JSON, unless header says
// otherwise; a header without a value is left out.
func (a *api) try(ctx context.Context, method, path, body string, header ...string) (reply, error) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, a.server.URL()+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", a.server.APIKey())
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k := 0; k+1 < len(header); k += 2 {
		switch {
		case header[k] == "Host":
			req.Host = header[k+1]
		case header[k+1] == "":
			req.Header.Del(header[k])
		default:
			req.Header.Set(header[k], header[k+1])
		}
	}
	res, err := a.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b)}, err
}

func (a *api) do(method, path, body string, header ...string) reply {
	a.t.Helper()
	r, err := a.try(a.t.Context(), method, path, body, header...)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

// create makes a sandbox and returns what the server says of it.
func (a *api) create(body string) object {
	a.t.Helper()
	r := a.do("POST", "/sandboxes", body)
	if r.Status != 201 {
		a.t.Fatalf("create: %d %s", r.Status, r.Body)
	}
	return r.json(a.t)
}

// sandbox makes an ordinary sandbox and returns its ID.
func (a *api) sandbox() string {
	a.t.Helper()
	return a.create(`{"templateID":"base","timeout":300}`)["sandboxID"].(string)
}

// edge sends a request to a sandbox's daemon.
func (a *api) edge(id, method, path, body string, header ...string) reply {
	a.t.Helper()
	header = append([]string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983", "Content-Type", "application/octet-stream"}, header...)
	return a.do(method, path, body, header...)
}

// clock is a clock that goes when it is told to.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestControlErrors sends what E2B refuses.
func TestControlErrors(t *testing.T) {
	a := newAPI(t, mock.WithMaxTimeout(time.Hour), mock.WithConcurrency(5))
	id := a.sandbox()
	stopped := a.sandbox()
	if r := a.do("POST", "/sandboxes/"+stopped+"/pause", ""); r.Status != 204 {
		t.Fatalf("pause: %+v", r)
	}
	wrongKey := "e2b_" + strings.Repeat("0", 40)
	for _, test := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		message                  string // what the message has
	}{
		{"no key", "GET", "/sandboxes", "", []string{"X-API-Key", ""}, 401, "authorization header is missing"},
		{"key without prefix", "GET", "/sandboxes", "", []string{"X-API-Key", "abc"}, 401, "authorization header is malformed"},
		{"key without hexadecimal digits", "GET", "/sandboxes", "", []string{"X-API-Key", "e2b_xyz"}, 401, "Invalid API key format"},
		{"unknown key", "GET", "/sandboxes", "", []string{"X-API-Key", wrongKey}, 401, "Cannot get the team"},
		{"unknown route", "GET", "/nothing", "", nil, 404, "no matching operation was found"},
		{"unknown route, no key", "GET", "/nothing", "", []string{"X-API-Key", ""}, 404, "no matching operation was found"},
		{"unclean path", "GET", "/sandboxes//x", "", nil, 404, "no matching operation was found"},
		{"wrong method", "PATCH", "/sandboxes", "", nil, 400, "method not allowed"},
		{"not built", "POST", "/v2/templates", "{}", nil, 501, "it has no"},

		{"create: no body", "POST", "/sandboxes", "", nil, 400, "value is required"},
		{"create: no JSON", "POST", "/sandboxes", "{", nil, 400, "validation error"},
		{"create: no object", "POST", "/sandboxes", "[]", nil, 400, "object"},
		{"create: content type", "POST", "/sandboxes", `{"templateID":"base"}`, []string{"Content-Type", "text/plain"}, 400, "Content-Type"},
		{"create: no template", "POST", "/sandboxes", `{"timeout":5}`, nil, 400, "templateID"},
		{"create: unknown template", "POST", "/sandboxes", `{"templateID":"none"}`, nil, 404, "template 'none' not found"},
		{"create: unknown tag", "POST", "/sandboxes", `{"templateID":"base:v2"}`, nil, 404, "tag 'v2' does not exist"},
		{"create: bad template", "POST", "/sandboxes", `{"templateID":"a b"}`, nil, 400, "Invalid template reference"},
		{"create: text for a number", "POST", "/sandboxes", `{"templateID":"base","timeout":"5"}`, nil, 400, "validation error"},
		{"create: fraction", "POST", "/sandboxes", `{"templateID":"base","timeout":1.5}`, nil, 400, "validation error"},
		{"create: negative", "POST", "/sandboxes", `{"templateID":"base","timeout":-1}`, nil, 400, "at least 0"},
		{"create: too large", "POST", "/sandboxes", `{"templateID":"base","timeout":3000000000}`, nil, 400, "validation error"},
		{"create: zero", "POST", "/sandboxes", `{"templateID":"base","timeout":0}`, nil, 400, "Timeout must be greater than 0"},
		{"create: too long", "POST", "/sandboxes", `{"templateID":"base","timeout":3601}`, nil, 400, "Timeout cannot be greater than 1 hours"},
		{"create: null", "POST", "/sandboxes", `{"templateID":"base","metadata":null}`, nil, 400, "not nullable"},
		{"create: number for text", "POST", "/sandboxes", `{"templateID":"base","metadata":{"a":1}}`, nil, 400, "validation error"},
		{"create: memory without pause", "POST", "/sandboxes", `{"templateID":"base","autoPauseMemory":false}`, nil, 400, "autoPauseMemory=false only applies"},
		{"create: memory and resume", "POST", "/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}`, nil, 400, "cannot be combined with autoResume"},
		{"create: empty resume", "POST", "/sandboxes", `{"templateID":"base","autoResume":{}}`, nil, 400, "enabled"},
		{"create: private without secure", "POST", "/sandboxes", `{"templateID":"base","network":{"allowPublicTraffic":false}}`, nil, 400, "without public access"},
		{"create: domain without block", "POST", "/sandboxes", `{"templateID":"base","network":{"allowOut":["example.com"]}}`, nil, 400, "ALL_TRAFFIC"},
		{"create: denied domain", "POST", "/sandboxes", `{"templateID":"base","network":{"denyOut":["example.com"]}}`, nil, 400, "invalid denied CIDR"},
		{"create: denied zeros", "POST", "/sandboxes", `{"templateID":"base","network":{"denyOut":["0.0.0.0"]}}`, nil, 400, "invalid denied CIDR"},
		{"create: allowed zeros", "POST", "/sandboxes", `{"templateID":"base","network":{"allowOut":["0.0.0.0/8"]}}`, nil, 400, "invalid allowed address"},
		{"create: proxy", "POST", "/sandboxes", `{"templateID":"base","network":{"egressProxy":{"address":"a:1"}}}`, nil, 403, "not enabled"},
		{"create: volumes", "POST", "/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"a","path":"/a"}]}`, nil, 400, "Volume mounts"},
		{"create: iam", "POST", "/sandboxes", `{"templateID":"base","iam":{"tokens":{"a":{"audience":"b","tokenType":"JWT-SVID"}}}}`, nil, 400, "IAM"},
		{"create: too much", "POST", "/sandboxes", `{"templateID":"` + strings.Repeat("a", 17<<20) + `"}`, nil, 413, "too large"},

		{"get: bad ID", "GET", "/sandboxes/ABC", "", nil, 400, "Invalid sandbox ID"},
		{"get: too composite", "GET", "/sandboxes/a-b-c", "", nil, 400, "Invalid sandbox ID"},
		{"get: unknown", "GET", "/sandboxes/inone", "", nil, 404, `Sandbox "inone" doesn't exist`},
		{"kill: unknown", "DELETE", "/sandboxes/inone", "", nil, 404, "doesn't exist"},
		{"timeout: missing", "POST", "/sandboxes/" + id + "/timeout", "{}", nil, 400, "timeout"},
		{"timeout: paused", "POST", "/sandboxes/" + stopped + "/timeout", `{"timeout":5}`, nil, 404, "doesn't exist"},
		{"refresh: too long", "POST", "/sandboxes/" + id + "/refreshes", `{"duration":3601}`, nil, 400, "at most 3600"},
		{"connect: missing", "POST", "/sandboxes/" + id + "/connect", "{}", nil, 400, "timeout"},
		{"connect: too long", "POST", "/sandboxes/" + id + "/connect", `{"timeout":3601}`, nil, 400, "cannot be greater"},
		{"connect: unknown", "POST", "/sandboxes/inone/connect", `{"timeout":5}`, nil, 404, "doesn't exist"},
		{"connect: without memory", "POST", "/sandboxes/" + stopped + "/connect", `{"timeout":5,"memory":false}`, nil, 400, "not enabled"},
		{"resume: running", "POST", "/sandboxes/" + id + "/resume", "", nil, 409, "is already running"},
		{"pause: paused", "POST", "/sandboxes/" + stopped + "/pause", "", nil, 409, "is already paused"},
		{"pause: unknown", "POST", "/sandboxes/inone/pause", "", nil, 404, "doesn't exist"},
		{"network: paused", "PUT", "/sandboxes/" + stopped + "/network", "{}", nil, 404, "doesn't exist"},
		{"snapshot: no body", "POST", "/sandboxes/" + id + "/snapshots", "", nil, 400, "required"},
		{"snapshot: paused", "POST", "/sandboxes/" + stopped + "/snapshots", "{}", nil, 404, "doesn't exist"},
		{"snapshot: other team", "POST", "/sandboxes/" + id + "/snapshots", `{"name":"them/x"}`, nil, 400, "must match your team"},
		{"fork: paused", "POST", "/sandboxes/" + stopped + "/fork", "", nil, 409, "resume it first"},
		{"fork: none", "POST", "/sandboxes/" + id + "/fork", `{"count":0}`, nil, 400, "at least 1"},
		{"fork: many", "POST", "/sandboxes/" + id + "/fork", `{"count":101}`, nil, 400, "at most 100"},
		{"fork: more than the limit", "POST", "/sandboxes/" + id + "/fork", `{"count":5}`, nil, 400, "concurrent sandboxes (5)"},
		{"metrics: backwards", "GET", "/sandboxes/" + id + "/metrics?start=2&end=1", "", nil, 400, "after end"},
		{"metrics: no list", "GET", "/sandboxes/metrics", "", nil, 400, "sandbox_ids"},
		{"logs: limit", "GET", "/v2/sandboxes/" + id + "/logs?limit=1001", "", nil, 400, "at most 1000"},
		{"logs: direction", "GET", "/v2/sandboxes/" + id + "/logs?direction=up", "", nil, 400, "allowed values"},
		{"list: limit 0", "GET", "/v2/sandboxes?limit=0", "", nil, 400, "at least 1"},
		{"list: limit 101", "GET", "/v2/sandboxes?limit=101", "", nil, 400, "at most 100"},
		{"list: limit x", "GET", "/v2/sandboxes?limit=x", "", nil, 400, "invalid integer"},
		{"list: order", "GET", "/v2/sandboxes?order=up", "", nil, 400, "allowed values"},
		{"list: state", "GET", "/v2/sandboxes?state=dead", "", nil, 400, "allowed values"},
		{"list: time", "GET", "/v2/sandboxes?startedAfter=now", "", nil, 400, "date-time"},
		{"list: token", "GET", "/v2/sandboxes?nextToken=x", "", nil, 400, "Invalid next token"},
		{"list: tag", "GET", "/v2/sandboxes?template=base:v1", "", nil, 400, "tags are not supported"},
		{"list: metadata", "GET", "/v2/sandboxes?metadata=a", "", nil, 400, "Error parsing metadata"},
		{"template: unknown", "GET", "/templates/none", "", nil, 404, "Template none not found"},
		{"template: by name", "GET", "/templates/base", "", nil, 404, "Template base not found"},
		{"template: in use", "DELETE", "/templates/base", "", nil, 400, "running sandboxes"},
		{"alias: free", "GET", "/templates/aliases/none", "", nil, 404, "template 'none' not found"},
		{"alias: other team", "GET", "/templates/aliases/them%2Fx", "", nil, 400, "must match your team"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := a.do(test.method, test.path, test.body, test.header...)
			got := r.json(t)
			message, _ := got["message"].(string)
			if r.Status != test.status || got["code"] != float64(test.status) || !strings.Contains(message, test.message) {
				t.Errorf("%d %s; want status and code %d, a message with %q", r.Status, r.Body, test.status, test.message)
			}
			if got := r.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
				t.Errorf("Content-Type is %q", got)
			}
		})
	}
	if n := len(a.server.Alive()); n != 2 {
		t.Errorf("%d sandboxes are alive, want 2", n)
	}
}

func TestCreateDefaults(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now))
	for _, test := range []struct {
		name, path, body string
		secure           bool
		lives            time.Duration
	}{
		{"v1", "/sandboxes", `{"templateID":"base","unknown":1}`, false, 15 * time.Second},
		{"v1 secure", "/sandboxes", `{"templateID":"BASE:default","secure":true,"timeout":60,"mcp":null}`, true, time.Minute},
		{"v2", "/v2/sandboxes", `{"templateID":"mock-team/base"}`, true, 5 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := a.do("POST", test.path, test.body)
			if r.Status != 201 {
				t.Fatalf("%+v", r)
			}
			got := r.json(t)
			id, _ := got["sandboxID"].(string)
			if len(id) != 21 || id[0] != 'i' {
				t.Errorf("sandboxID is %q", id)
			}
			token, secure := got["envdAccessToken"].(string)
			if secure != test.secure || secure && len(token) != 64 {
				t.Errorf("envdAccessToken is %q, want one: %t", token, test.secure)
			}
			delete(got, "sandboxID")
			delete(got, "envdAccessToken")
			want := object{"templateID": "rki5dems9wqfm4r03t7g", "alias": "base", "clientID": "6532622b", "envdVersion": "0.6.13"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			detail := a.do("GET", "/sandboxes/"+id+"-6532622b", "").json(t)
			want = object{
				"templateID": "rki5dems9wqfm4r03t7g", "alias": "base", "clientID": "6532622b", "envdVersion": "0.6.13",
				"sandboxID": id, "cpuCount": 2.0, "memoryMB": 512.0, "diskSizeMB": 10240.0, "state": "running",
				"startedAt": c.Now().Format(time.RFC3339Nano), "endAt": c.Now().Add(test.lives).Format(time.RFC3339Nano),
				"lifecycle": object{"autoResume": false, "onTimeout": "kill"}, "volumeMounts": []any{},
			}
			if test.secure {
				want["envdAccessToken"] = token
			}
			if diff := cmp.Diff(want, detail); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now), mock.WithMaxTimeout(time.Hour))
	id := a.sandbox()
	start := c.Now()
	lives := func() time.Duration {
		t.Helper()
		end, err := time.Parse(time.RFC3339Nano, a.do("GET", "/sandboxes/"+id, "").json(t)["endAt"].(string))
		if err != nil {
			t.Fatal(err)
		}
		return end.Sub(start)
	}
	for _, test := range []struct {
		name, path, body string
		after            time.Duration
		status           int
		lives            time.Duration
	}{
		{"shorter", "timeout", `{"timeout":60}`, time.Second, 204, 61 * time.Second},
		{"connect does not shorten", "connect", `{"timeout":30}`, 0, 200, 61 * time.Second},
		{"connect extends", "connect", `{"timeout":120}`, 0, 200, 121 * time.Second},
		{"refresh does not shorten", "refreshes", ``, 0, 204, 121 * time.Second},
		{"refresh extends", "refreshes", `{"duration":300}`, 0, 204, 301 * time.Second},
		{"clamped", "timeout", `{"timeout":999999}`, 0, 204, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.advance(test.after)
			if r := a.do("POST", "/sandboxes/"+id+"/"+test.path, test.body); r.Status != test.status {
				t.Errorf("%+v", r)
			}
			if got := lives(); got != test.lives {
				t.Errorf("it lives for %v, want %v", got, test.lives)
			}
		})
	}
	t.Run("v2 connect", func(t *testing.T) {
		id := a.create(`{"templateID":"base"}`)["sandboxID"].(string)
		if r := a.do("POST", "/v2/sandboxes/"+id+"/connect", ""); r.Status != 200 {
			t.Errorf("%+v", r)
		}
		if got, want := a.do("GET", "/sandboxes/"+id, "").json(t)["endAt"], c.Now().Add(5*time.Minute).Format(time.RFC3339Nano); got != want {
			t.Errorf("it ends at %v, want %v", got, want)
		}
	})
	t.Run("zero", func(t *testing.T) {
		if r := a.do("POST", "/sandboxes/"+id+"/timeout", `{"timeout":0}`); r.Status != 204 {
			t.Errorf("%+v", r)
		}
		if r := a.do("GET", "/sandboxes/"+id, ""); r.Status != 404 {
			t.Errorf("%+v", r)
		}
		eventually(t, "expired", func() bool { return a.server.Sandboxes()[0].State == mock.StateExpired })
	})
}

func TestExpiry(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now))
	killed := a.create(`{"templateID":"base","timeout":10}`)["sandboxID"].(string)
	stopped := a.create(`{"templateID":"base","timeout":10,"autoPause":true}`)["sandboxID"].(string)
	c.advance(9 * time.Second)
	if n := len(a.server.Alive()); n != 2 {
		t.Fatalf("%d sandboxes are alive, want 2", n)
	}
	c.advance(time.Second)
	eventually(t, "both ended", func() bool { // nobody asks: the server looks by itself
		r := a.server.Sandboxes()
		return r[0].State == mock.StateExpired && r[1].State == mock.StatePaused
	})
	eventually(t, "the expired one is gone", func() bool {
		return a.do("DELETE", "/sandboxes/"+killed, "").Status == 404
	})
	if r := a.do("POST", "/sandboxes/"+stopped+"/connect", `{"timeout":10}`); r.Status != 201 {
		t.Errorf("resume: %+v", r)
	}
	if r := a.do("DELETE", "/sandboxes/"+stopped, ""); r.Status != 204 {
		t.Errorf("kill: %+v", r)
	}
	if got := a.server.Alive(); len(got) != 0 {
		t.Errorf("alive: %+v", got)
	}
}

func TestConcurrencyLimit(t *testing.T) {
	a := newAPI(t, mock.WithConcurrency(2))
	first := a.sandbox()
	second := a.sandbox()
	refused := func(what string, r reply) {
		t.Helper()
		if r.Status != 429 || r.Header.Get("Retry-After") != "" || !strings.Contains(r.Body, "maximum number of concurrent E2B sandboxes (2)") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	refused("create", a.do("POST", "/sandboxes", `{"templateID":"base"}`))
	if r := a.do("POST", "/sandboxes/"+first+"/pause", "{}"); r.Status != 204 {
		t.Fatalf("pause: %+v", r)
	}
	third := a.sandbox()
	refused("connect", a.do("POST", "/sandboxes/"+first+"/connect", `{"timeout":60}`))
	a.do("DELETE", "/sandboxes/"+third, "")
	// One fork has room, two have not: the answer is 201 all the same.
	a.do("DELETE", "/sandboxes/"+second, "")
	a.do("POST", "/sandboxes/"+first+"/connect", `{"timeout":60}`)
	a.sandbox()
	r := a.do("POST", "/sandboxes/"+first+"/fork", `{"timeout":60}`)
	got := r.list(t)
	if r.Status != 201 || len(got) != 1 || got[0]["sandbox"] != nil || got[0]["error"].(object)["code"] != 429.0 {
		t.Errorf("fork: %+v", r)
	}
}

func ids(list []object) []string {
	var ids []string
	for _, o := range list {
		ids = append(ids, o["sandboxID"].(string))
	}
	return ids
}

func TestListPages(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now))
	var made []string // the oldest first
	for k := range 5 {
		made = append(made, a.create(fmt.Sprintf(`{"templateID":"base","timeout":3600,"metadata":{"k":"%d"}}`, k%2))["sandboxID"].(string))
		c.advance(time.Second)
	}
	a.do("POST", "/sandboxes/"+made[1]+"/pause", "")
	newest := []string{made[4], made[3], made[2], made[1], made[0]}
	for _, test := range []struct {
		query string
		want  []string
		total string
	}{
		{"", newest, "4"},
		{"order=desc&limit=2", newest, "4"},
		{"order=asc&limit=2", made, "4"},
		{"limit=1&state=running", []string{made[4], made[3], made[2], made[0]}, "4"},
		{"limit=1&state=paused", []string{made[1]}, ""},
		{"state=running,paused&limit=5", newest, "4"},
		{"metadata=k%3D1", []string{made[3], made[1]}, "1"},
		{"metadata=k%3D1%26x%3D2", nil, "0"},
		{"template=base&limit=3", newest, "4"},
		{"template=none", nil, "0"},
		{"startedAfter=2026-01-02T03:04:07Z", []string{made[4], made[3], made[2]}, "3"},
	} {
		t.Run(test.query, func(t *testing.T) {
			var got []string
			token := ""
			for range 10 {
				r := a.do("GET", "/v2/sandboxes?"+test.query+token, "")
				if r.Status != 200 || r.Header.Get("X-Total-Running") != test.total {
					t.Fatalf("%+v; want X-Total-Running %q", r, test.total)
				}
				got = append(got, ids(r.list(t))...)
				next := r.Header.Get("X-Next-Token")
				if next == "" {
					break
				}
				token = "&nextToken=" + url.QueryEscape(next)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("other order", func(t *testing.T) {
		next := a.do("GET", "/v2/sandboxes?limit=1", "").Header.Get("X-Next-Token")
		if r := a.do("GET", "/v2/sandboxes?limit=1&order=asc&nextToken="+url.QueryEscape(next), ""); r.Status != 400 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("v1", func(t *testing.T) {
		got := ids(a.do("GET", "/sandboxes", "").list(t))
		if diff := cmp.Diff([]string{made[4], made[3], made[2], made[0]}, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestMetadataFilter looks for metadata that breaks unless its parts are
// encoded twice and the whole once more.
func TestMetadataFilter(t *testing.T) {
	a := newAPI(t)
	for value, breaks := range map[string]bool{
		"plain": false, "a b": false, "ünï": false, "a&b=c": true, "50%": true, "1+1": true, "%41": true,
	} {
		t.Run(value, func(t *testing.T) {
			metadata, err := json.Marshal(map[string]string{"key": value})
			if err != nil {
				t.Fatal(err)
			}
			id := a.create(fmt.Sprintf(`{"templateID":"base","timeout":60,"metadata":%s}`, metadata))["sandboxID"].(string)
			twice := url.QueryEscape(url.QueryEscape(value))
			r := a.do("GET", "/v2/sandboxes?metadata="+url.QueryEscape("key="+twice), "")
			if diff := cmp.Diff([]string{id}, ids(r.list(t))); diff != "" {
				t.Errorf("encoded three times: %s", diff)
			}
			r = a.do("GET", "/v2/sandboxes?metadata="+url.QueryEscape("key="+value), "")
			if found := r.Status == 200 && len(r.list(t)) > 0; found == breaks {
				t.Errorf("encoded once: %+v", r)
			}
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	a := newAPI(t)
	sandbox := a.create(`{"templateID":"base","timeout":300,"secure":true,"network":{"allowPublicTraffic":false}}`)
	id, token := sandbox["sandboxID"].(string), sandbox["envdAccessToken"].(string)
	if r := a.edge(id, "POST", "/files?path=a", "hello", "X-Access-Token", token); r.Status != 200 {
		t.Fatalf("upload: %+v", r)
	}
	for _, test := range []struct {
		name, pause, path, body string
		status                  int
	}{
		{"connect", "", "/sandboxes/" + id + "/connect", `{"timeout":300}`, 201},
		{"connect, v2", "{}", "/v2/sandboxes/" + id + "/connect", "", 201},
		{"resume", `{"memory":true}`, "/sandboxes/" + id + "/resume", "", 201},
		{"without memory", `{"memory":false}`, "/sandboxes/" + id + "/connect", `{"timeout":300,"memory":false}`, 201},
	} {
		t.Run(test.name, func(t *testing.T) {
			if r := a.do("POST", "/sandboxes/"+id+"/pause", test.pause); r.Status != 204 {
				t.Fatalf("pause: %+v", r)
			}
			if r := a.edge(id, "GET", "/health", ""); r.Status != 502 {
				t.Errorf("health of a paused one: %+v", r)
			}
			if r := a.do("GET", "/sandboxes/"+id, ""); r.json(t)["state"] != "paused" {
				t.Errorf("get: %+v", r)
			}
			r := a.do("POST", test.path, test.body)
			if r.Status != test.status {
				t.Fatalf("resume: %+v", r)
			}
			if diff := cmp.Diff(sandbox, r.json(t)); diff != "" {
				t.Errorf("what resume says differs from what create said: %s", diff)
			}
			if r := a.edge(id, "GET", "/files?path=a", "", "X-Access-Token", token); r.Status != 200 || r.Body != "hello" {
				t.Errorf("download: %+v", r)
			}
		})
	}
}

// TestBeingKilled holds a sandbox up while it is killed.
func TestBeingKilled(t *testing.T) {
	release := make(chan struct{})
	a := newAPI(t, mock.WithOptions(mock.Options{Programs: map[string]mock.Program{
		"stuck": func(context.Context, *mock.Proc) int { <-release; return 0 },
	}}))
	id := a.sandbox()
	done := make(chan reply, 2)
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	start := a.startStream(id, "stuck")
	defer start.Close()
	for range 2 { // the second is fine too
		go func() {
			r, _ := a.try(context.Background(), "DELETE", "/sandboxes/"+id, "")
			done <- r
		}()
	}
	eventually(t, "it is being killed", func() bool { return a.server.Sandboxes()[0].State == mock.StateKilled })
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "", "", 404},
		{"POST", "/connect", `{"timeout":60}`, 409},
		{"POST", "/timeout", `{"timeout":60}`, 409},
		{"POST", "/pause", ``, 404},
	} {
		if r := a.do(test.method, "/sandboxes/"+id+test.path, test.body); r.Status != test.status {
			t.Errorf("%s %s: %+v, want %d", test.method, test.path, r, test.status)
		}
	}
	eventually(t, "both are being answered", func() bool {
		n := 0
		for _, r := range a.server.Requests() {
			if r.Method == "DELETE" {
				n++
			}
		}
		return n == 2
	})
	free()
	// One of them may still have come too late.
	if a, b := <-done, <-done; max(a.Status, b.Status) != 204 && (min(a.Status, b.Status) != 204 || max(a.Status, b.Status) != 404) {
		t.Errorf("kill: %+v, %+v", a, b)
	}
	if r := a.do("DELETE", "/sandboxes/"+id, ""); r.Status != 404 {
		t.Errorf("kill again: %+v", r)
	}
}

func TestSnapshots(t *testing.T) {
	a := newAPI(t)
	id := a.sandbox()
	a.edge(id, "POST", "/files?path=a", "one")
	named := a.do("POST", "/sandboxes/"+id+"/snapshots", `{"name":"saved:v1"}`)
	if diff := cmp.Diff(object{"snapshotID": "mock-team/saved:v1", "names": []any{"mock-team/saved"}}, named.json(t)); named.Status != 201 || diff != "" {
		t.Fatalf("%+v: %s", named, diff)
	}
	a.edge(id, "POST", "/files?path=a", "two")
	unnamed := a.do("POST", "/sandboxes/"+id+"/snapshots", `{}`).json(t)["snapshotID"].(string)
	if !strings.HasSuffix(unnamed, ":default") {
		t.Errorf("unnamed: %q", unnamed)
	}
	for snapshot, want := range map[string]string{"mock-team/saved:v1": "one", "saved:v1": "one", unnamed: "two"} {
		copied := a.create(fmt.Sprintf(`{"templateID":%q,"timeout":60}`, snapshot))["sandboxID"].(string)
		if r := a.edge(copied, "GET", "/files?path=a", ""); r.Body != want {
			t.Errorf("%s has %+v, want %q", snapshot, r, want)
		}
		a.edge(copied, "POST", "/files?path=a", "changed")
		if r := a.do("DELETE", "/templates/"+url.PathEscape(snapshot), ""); r.Status != 400 {
			t.Errorf("delete while in use: %+v", r)
		}
		a.do("DELETE", "/sandboxes/"+copied, "")
	}
	for query, want := range map[string][]string{
		"":                             {unnamed, "mock-team/saved:v1"},
		"?sandboxID=" + id:             {unnamed, "mock-team/saved:v1"},
		"?sandboxID=inone":             nil,
		"?name=saved":                  {"mock-team/saved:v1"},
		"?name=mock-team%2Fsaved%3Av2": nil,
		"?limit=1":                     {unnamed},
	} {
		r := a.do("GET", "/snapshots"+query, "")
		var got []string
		for _, s := range r.list(t) {
			got = append(got, s["snapshotID"].(string))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", query, diff)
		}
		if more := r.Header.Get("X-Next-Token") != ""; more != (query == "?limit=1") {
			t.Errorf("%q: X-Next-Token is there: %t", query, more)
		}
	}
	for _, snapshot := range []string{"mock-team/saved:v1", unnamed} {
		if r := a.do("DELETE", "/templates/"+url.PathEscape(snapshot), ""); r.Status != 204 {
			t.Errorf("delete %s: %+v", snapshot, r)
		}
		if r := a.do("POST", "/sandboxes", fmt.Sprintf(`{"templateID":%q}`, snapshot)); r.Status != 404 {
			t.Errorf("create from %s: %+v", snapshot, r)
		}
	}
}

func TestFork(t *testing.T) {
	a := newAPI(t)
	id := a.sandbox()
	a.edge(id, "POST", "/files?path=a", "one")
	r := a.do("POST", "/sandboxes/"+id+"/fork", `{"timeout":60,"count":3}`)
	if r.Status != 201 || len(r.list(t)) != 3 {
		t.Fatalf("%+v", r)
	}
	for _, result := range r.list(t) {
		fork := result["sandbox"].(object)["sandboxID"].(string)
		if r := a.edge(fork, "GET", "/files?path=a", ""); r.Body != "one" {
			t.Errorf("fork has %+v", r)
		}
	}
}

func TestTemplates(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now), mock.WithTemplates(
		mock.Template{ID: "aaa", Names: []string{"small", "mock-team/tiny"}, CPU: 1, MemoryMB: 128, DiskMB: 5, EnvdVersion: "0.4.0"},
		mock.Template{ID: "bbb"},
	))
	a.do("POST", "/sandboxes", `{"templateID":"tiny"}`)
	for _, path := range []string{"/templates", "/v2/templates"} {
		got := a.do("GET", path, "").list(t)
		now := c.Now().Format(time.RFC3339)
		want := []object{
			{"templateID": "aaa", "cpuCount": 1.0, "memoryMB": 128.0, "diskSizeMB": 5.0, "public": false,
				"aliases": []any{"small", "tiny"}, "names": []any{"small", "mock-team/tiny"}, "createdAt": now, "updatedAt": now,
				"createdBy": nil, "lastSpawnedAt": now, "spawnCount": 1.0, "buildCount": 1.0, "envdVersion": "0.4.0", "buildStatus": "ready"},
			{"templateID": "bbb", "cpuCount": 2.0, "memoryMB": 512.0, "diskSizeMB": 10240.0, "public": false,
				"aliases": []any{}, "names": []any{}, "createdAt": now, "updatedAt": now,
				"createdBy": nil, "lastSpawnedAt": nil, "spawnCount": 0.0, "buildCount": 1.0, "envdVersion": "0.6.13", "buildStatus": "ready"},
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreMapEntries(func(k string, _ any) bool { return k == "buildID" })); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	if r := a.do("GET", "/templates/aaa", ""); r.Status != 200 || len(r.json(t)["builds"].([]any)) != 1 {
		t.Errorf("get: %+v", r)
	}
	for _, alias := range []string{"small", "tiny", "mock-team%2Ftiny", "tiny%3Adefault"} {
		if r := a.do("GET", "/templates/aliases/"+alias, ""); r.Status != 200 || r.json(t)["templateID"] != "aaa" {
			t.Errorf("alias %s: %+v", alias, r)
		}
	}
	if r := a.do("DELETE", "/templates/bbb", ""); r.Status != 204 {
		t.Errorf("delete: %+v", r)
	}
	if r := a.do("GET", "/templates/bbb", ""); r.Status != 404 {
		t.Errorf("get a deleted one: %+v", r)
	}
}

func TestNetwork(t *testing.T) {
	a := newAPI(t)
	id := a.create(`{"templateID":"base","secure":true,"timeout":60,"allow_internet_access":false,
		"network":{"allowPublicTraffic":false,"denyOut":["10.0.0.0/8"]}}`)["sandboxID"].(string)
	got := a.do("GET", "/sandboxes/"+id, "").json(t)
	if diff := cmp.Diff(object{"allowPublicTraffic": false, "denyOut": []any{"10.0.0.0/8"}}, got["network"]); diff != "" || got["allowInternetAccess"] != false {
		t.Errorf("%v: %s", got, diff)
	}
	if r := a.do("PUT", "/sandboxes/"+id+"/network", `{"allowOut":["example.com"],"denyOut":["0.0.0.0/0"],"rules":{"a.b":[{"transform":{}}]}}`); r.Status != 204 {
		t.Fatalf("%+v", r)
	}
	got = a.do("GET", "/sandboxes/"+id, "").json(t)
	want := object{"allowPublicTraffic": false, "allowOut": []any{"example.com"}, "denyOut": []any{"0.0.0.0/0"},
		"rules": object{"a.b": []any{object{"transform": object{}}}}}
	if diff := cmp.Diff(want, got["network"]); diff != "" || got["allowInternetAccess"] != false {
		t.Errorf("%v: %s", got, diff)
	}
	if r := a.do("PUT", "/sandboxes/"+id+"/network", `{"allow_internet_access":true}`); r.Status != 204 {
		t.Fatalf("%+v", r)
	}
	got = a.do("GET", "/sandboxes/"+id, "").json(t)
	if diff := cmp.Diff(object{"allowPublicTraffic": false}, got["network"]); diff != "" || got["allowInternetAccess"] != true {
		t.Errorf("%v: %s", got, diff)
	}
}

func TestMetricsAndLogs(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now), mock.WithOptions(mock.Options{DiskBytes: 1 << 20}))
	id := a.sandbox()
	a.edge(id, "POST", "/files?path=a", "12345")
	metric := object{
		"timestamp": "2026-01-02T03:04:05Z", "timestampUnix": float64(c.Now().Unix()), "cpuCount": 2.0, "cpuUsedPct": 0.0,
		"memUsed": 0.0, "memTotal": float64(512 << 20), "memCache": 0.0, "diskUsed": 5.0, "diskTotal": float64(1 << 20),
	}
	for path, want := range map[string][]object{
		"/sandboxes/" + id + "/metrics":                        {metric},
		"/sandboxes/" + id + "/metrics?end=1":                  {},
		"/sandboxes/" + id + "/metrics?start=0&end=9999999999": {metric},
		"/sandboxes/inone/metrics":                             {},
	} {
		if diff := cmp.Diff(want, a.do("GET", path, "").list(t)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	all := a.do("GET", "/sandboxes/metrics?sandbox_ids=inone,"+id, "").json(t)
	if diff := cmp.Diff(object{"sandboxes": object{id: metric}}, all); diff != "" {
		t.Error(diff)
	}

	c.advance(time.Second)
	a.do("POST", "/sandboxes/"+id+"/pause", "")
	entry := func(at, message string) any {
		return object{"timestamp": at, "level": "info", "message": message, "fields": object{"sandboxID": id}}
	}
	first := entry("2026-01-02T03:04:05Z", "Sandbox is running")
	second, third := entry("2026-01-02T03:04:06Z", "Sandbox is pausing"), entry("2026-01-02T03:04:06Z", "Sandbox is paused")
	ms := c.Now().UnixMilli()
	for query, want := range map[string][]any{
		"":                   {third, second, first},
		"?limit=1":           {third},
		"?direction=forward": {first, second, third},
		fmt.Sprintf("?direction=forward&cursor=%d", ms): {second, third},
		fmt.Sprintf("?cursor=%d", ms-1):                 {first},
		"?level=warn":                                   {},
		"?search=running":                               {first},
	} {
		if diff := cmp.Diff(object{"logs": want}, a.do("GET", "/v2/sandboxes/"+id+"/logs"+query, "").json(t)); diff != "" {
			t.Errorf("%q: %s", query, diff)
		}
	}
	v1 := a.do("GET", fmt.Sprintf("/sandboxes/%s/logs?start=%d&limit=1", id, ms), "").json(t)
	want := object{"logs": []any{object{"timestamp": "2026-01-02T03:04:06Z", "line": `{"level":"info","message":"Sandbox is pausing"}`}}, "logEntries": []any{second}}
	if diff := cmp.Diff(want, v1); diff != "" {
		t.Error(diff)
	}
}

func TestHealth(t *testing.T) {
	a := newAPI(t)
	if r := a.do("GET", "/health", "", "X-API-Key", ""); r.Status != 200 {
		t.Errorf("%+v", r)
	}
}
