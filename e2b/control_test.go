package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// exchangeTest is one call, the requests it makes, and their answers.
type exchangeTest struct {
	name     string
	call     func(context.Context, *Client) (any, error)
	answers  []string // "204" or "200 body"; the last one is repeated
	requests []string // method, URI and body, as the server sees them
	want     any
	is       error
	text     string
}

func (test *exchangeTest) run(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests []string
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			requests = append(requests, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
			status, answer, _ := strings.Cut(test.answers[min(len(requests), len(test.answers))-1], " ")
			code, err := strconv.Atoi(status)
			if err != nil {
				t.Error(err)
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, answer)
		})))
		got, err := test.call(t.Context(), c)
		if test.is == nil && test.text == "" && err != nil || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("error %v, want %v", err, test.is)
		}
		if test.text != "" && !strings.Contains(fmt.Sprint(err), test.text) {
			t.Errorf("error %v lacks %q", err, test.text)
		}
		if diff := cmp.Diff(test.requests, requests); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		if test.want == nil {
			return
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func runAll(t *testing.T, tests []exchangeTest) {
	for _, test := range tests {
		t.Run(test.name, test.run)
	}
}

const gone404 = `404 {"code":404,"message":"sandbox \"i1\" doesn't exist"}`

func TestSandboxCalls(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	info := `200 {"templateID":"t1","alias":"base","sandboxID":"i1","clientID":"6532622b","startedAt":"2026-01-02T03:04:05Z","endAt":"2026-01-02T03:09:05Z",
		"cpuCount":2,"memoryMB":1024,"diskSizeMB":2048,"metadata":{"a":"b"},"state":"paused","envdVersion":"0.6.13","envdAccessToken":"feed","volumeMounts":[]}`
	runAll(t, []exchangeTest{
		{
			name:     "get",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Get(ctx, "i1") },
			answers:  []string{info},
			requests: []string{"GET /sandboxes/i1"},
			want: &SandboxInfo{
				ID: "i1", TemplateID: "t1", Alias: "base", EnvdVersion: "0.6.13", StartedAt: start, EndAt: start.Add(5 * time.Minute),
				CPU: 2, MemoryMB: 1024, DiskMB: 2048, Metadata: map[string]string{"a": "b"}, State: Paused,
			},
		},
		{
			name:     "get what is gone",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Get(ctx, "i1-6532622b") },
			answers:  []string{gone404},
			requests: []string{"GET /sandboxes/i1-6532622b"},
			is:       ErrSandboxGone,
			text:     "get sandbox: sandbox is gone: 404",
		},
		{
			name:    "get nonsense",
			call:    func(ctx context.Context, c *Client) (any, error) { return c.Get(ctx, "i1/../../x") },
			answers: []string{info},
			is:      ErrInvalid,
		},
		{
			name:     "get from something else",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Get(ctx, "i1") },
			answers:  []string{"200 <html>"},
			requests: []string{"GET /sandboxes/i1"},
			text:     "the answer is not what E2B's API says",
		},
		{
			name:     "kill",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Kill(ctx, "i1") },
			answers:  []string{"204"},
			requests: []string{"DELETE /sandboxes/i1"},
		},
		{
			name:     "kill what is gone",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Kill(ctx, "i1") },
			answers:  []string{gone404},
			requests: []string{"DELETE /sandboxes/i1"},
		},
		{
			name:     "kill that fails on the node",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Kill(ctx, "i1") },
			answers:  []string{`500 {"code":500,"message":"m"}`, gone404},
			requests: []string{"DELETE /sandboxes/i1", "DELETE /sandboxes/i1"},
		},
		{
			name: "timeout is rounded up",
			call: func(ctx context.Context, c *Client) (any, error) {
				return nil, c.SetTimeout(ctx, "i1", 1001*time.Millisecond)
			},
			answers:  []string{"204"},
			requests: []string{`POST /sandboxes/i1/timeout {"timeout":2}`},
		},
		{
			name:    "timeout zero",
			call:    func(ctx context.Context, c *Client) (any, error) { return nil, c.SetTimeout(ctx, "i1", 0) },
			answers: []string{"204"},
			is:      ErrInvalid,
			text:    "kill it",
		},
		{
			name:    "timeout too long",
			call:    func(ctx context.Context, c *Client) (any, error) { return nil, c.SetTimeout(ctx, "i1", 1<<62) },
			answers: []string{"204"},
			is:      ErrInvalid,
		},
		{
			name:     "timeout of a paused one",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.SetTimeout(ctx, "i1", time.Minute) },
			answers:  []string{gone404},
			requests: []string{`POST /sandboxes/i1/timeout {"timeout":60}`},
			is:       ErrSandboxGone,
		},
		{
			name:     "refresh",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Refresh(ctx, "i1", time.Hour) },
			answers:  []string{"503 text", "204"},
			requests: []string{`POST /sandboxes/i1/refreshes {"duration":3600}`, `POST /sandboxes/i1/refreshes {"duration":3600}`},
		},
		{
			name:    "refresh too long",
			call:    func(ctx context.Context, c *Client) (any, error) { return nil, c.Refresh(ctx, "i1", time.Hour+1) },
			answers: []string{"204"},
			is:      ErrInvalid,
		},
		{
			name:     "pause",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Pause(ctx, "i1") },
			answers:  []string{"204"},
			requests: []string{"POST /sandboxes/i1/pause {}"},
		},
		{
			name:     "pause what is paused",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Pause(ctx, "i1") },
			answers:  []string{`409 {"code":409,"message":"m"}`, info},
			requests: []string{"POST /sandboxes/i1/pause {}", "GET /sandboxes/i1"},
		},
		{
			name:     "pause in transition",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.Pause(ctx, "i1") },
			answers:  []string{`409 {"code":409,"message":"m"}`, `200 {"state":"running"}`},
			requests: []string{"POST /sandboxes/i1/pause {}", "GET /sandboxes/i1"},
			is:       ErrConflict,
		},
		{
			name: "connect",
			call: func(ctx context.Context, c *Client) (any, error) {
				s, err := c.Connect(ctx, "i1", 0)
				return s.ID() + s.EnvdVersion(), err
			},
			answers:  []string{`502 text`, `201 {"sandboxID":"i1","envdVersion":"0.6.13"}`},
			requests: []string{`POST /sandboxes/i1/connect {"timeout":300}`, `POST /sandboxes/i1/connect {"timeout":300}`},
			want:     "i10.6.13",
		},
		{
			name:     "connect to what is gone",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Connect(ctx, "i1", time.Minute) },
			answers:  []string{gone404},
			requests: []string{`POST /sandboxes/i1/connect {"timeout":60}`, `POST /v2/sandboxes/i1/connect {"timeout":60}`},
			is:       ErrSandboxGone,
		},
		{
			name:     "connect for too long",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Connect(ctx, "i1", 100*time.Hour) },
			answers:  []string{`400 {"code":400,"message":"Timeout cannot be greater than 24 hours"}`},
			requests: []string{`POST /sandboxes/i1/connect {"timeout":360000}`},
			is:       ErrInvalid,
		},
		{
			name:     "connect, hostile answer",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Connect(ctx, "i1", time.Second) },
			answers:  []string{`200 {"sandboxID":"i1.evil.test/"}`},
			requests: []string{`POST /sandboxes/i1/connect {"timeout":1}`},
			text:     "no usable ID",
		},
	})
}

func TestMetricsAndLogs(t *testing.T) {
	start, end := time.Unix(1700000000, 999), time.Unix(1700000060, 0)
	entry := LogEntry{Time: time.Unix(1700000000, 0).UTC(), Level: "info", Message: "m", Fields: map[string]string{"k": "v"}}
	runAll(t, []exchangeTest{
		{
			name: "metrics",
			call: func(ctx context.Context, c *Client) (any, error) { return c.Metrics(ctx, "i1", start, end) },
			answers: []string{`200 [{"timestamp":"2023-11-14T22:13:20Z","timestampUnix":1700000001,"cpuCount":2,"cpuUsedPct":12.5,
				"memUsed":1,"memTotal":2,"memCache":3,"diskUsed":4,"diskTotal":5000000000}]`},
			requests: []string{"GET /sandboxes/i1/metrics?end=1700000060&start=1700000000"},
			want: []Metrics{{Time: time.Unix(1700000001, 0), CPU: 2, CPUUsed: 12.5, MemUsed: 1, MemTotal: 2, MemCache: 3,
				DiskUsed: 4, DiskTotal: 5000000000}},
		},
		{
			name: "metrics, any time",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.Metrics(ctx, "i1", time.Time{}, time.Time{})
			},
			answers:  []string{`200 []`},
			requests: []string{"GET /sandboxes/i1/metrics"},
			want:     []Metrics{},
		},
		{
			name:    "metrics, backward",
			call:    func(ctx context.Context, c *Client) (any, error) { return c.Metrics(ctx, "i1", end, start) },
			answers: []string{`200 []`},
			is:      ErrInvalid,
		},
		{
			name:     "logs",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Logs(ctx, "i1", LogOptions{}) },
			answers:  []string{`200 {"logs":[{"timestamp":"2023-11-14T22:13:20Z","level":"info","message":"m","fields":{"k":"v"}}]}`},
			requests: []string{"GET /v2/sandboxes/i1/logs?direction=forward"},
			want:     []LogEntry{entry},
		},
		{
			name: "logs, all options",
			call: func(ctx context.Context, c *Client) (any, error) {
				return c.Logs(ctx, "i1", LogOptions{From: start, NewestFirst: true, Limit: 7, Level: "warn", Search: "a b"})
			},
			answers:  []string{`200 {"logs":[]}`},
			requests: []string{"GET /v2/sandboxes/i1/logs?cursor=1700000000000&direction=backward&level=warn&limit=7&search=a+b"},
		},
		{
			name:    "logs, too many",
			call:    func(ctx context.Context, c *Client) (any, error) { return c.Logs(ctx, "i1", LogOptions{Limit: 1001}) },
			answers: []string{"200 {}"},
			is:      ErrInvalid,
		},
		{
			name:     "logs of what is gone",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.Logs(ctx, "i1", LogOptions{}) },
			answers:  []string{gone404},
			requests: []string{"GET /v2/sandboxes/i1/logs?direction=forward"},
			is:       ErrSandboxGone,
		},
	})
}

func TestSnapshots(t *testing.T) {
	runAll(t, []exchangeTest{
		{
			name:     "create",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.CreateSnapshot(ctx, "i1", "mine:v1") },
			answers:  []string{`201 {"snapshotID":"team/mine:v1","names":["team/mine:v1"]}`},
			requests: []string{`POST /sandboxes/i1/snapshots {"name":"mine:v1"}`},
			want:     &Snapshot{ID: "team/mine:v1", Names: []string{"team/mine:v1"}},
		},
		{
			name:     "create fails, and is not repeated",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.CreateSnapshot(ctx, "i1", "") },
			answers:  []string{`503 {"code":503,"message":"node busy"}`},
			requests: []string{`POST /sandboxes/i1/snapshots {}`},
			text:     "node busy",
		},
		{
			name:     "create of nothing",
			call:     func(ctx context.Context, c *Client) (any, error) { return c.CreateSnapshot(ctx, "i1", "") },
			answers:  []string{"201 {}"},
			requests: []string{`POST /sandboxes/i1/snapshots {}`},
			text:     "no ID",
		},
		{
			name: "list",
			call: func(ctx context.Context, c *Client) (any, error) {
				var ids []string
				for s, err := range c.Snapshots(ctx, SnapshotOptions{SandboxID: "i1", Name: "a/b:c"}) {
					if err != nil {
						return nil, err
					}
					ids = append(ids, s.ID)
				}
				return ids, nil
			},
			answers:  []string{`200 [{"snapshotID":"a/b:c","names":[]},{"snapshotID":"t2:default"}]`},
			requests: []string{"GET /snapshots?limit=100&name=a%2Fb%3Ac&sandboxID=i1"},
			want:     []string{"a/b:c", "t2:default"},
		},
		{
			name:     "delete",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.DeleteSnapshot(ctx, "a/b:c d") },
			answers:  []string{"204"},
			requests: []string{"DELETE /templates/a%2Fb%3Ac%20d"},
		},
		{
			name:     "delete what is gone",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.DeleteSnapshot(ctx, "..") },
			answers:  []string{`404 {"code":404,"message":"m"}`},
			requests: []string{"DELETE /templates/%2E%2E"},
		},
		{
			name:     "delete what is used",
			call:     func(ctx context.Context, c *Client) (any, error) { return nil, c.DeleteSnapshot(ctx, "t1") },
			answers:  []string{`400 {"code":400,"message":"there are paused sandboxes"}`},
			requests: []string{"DELETE /templates/t1"},
			is:       ErrInvalid,
		},
		{
			name:    "delete nothing",
			call:    func(ctx context.Context, c *Client) (any, error) { return nil, c.DeleteSnapshot(ctx, "") },
			answers: []string{"204"},
			is:      ErrInvalid,
		},
	})
}

func TestTemplate(t *testing.T) {
	list := `200 [{"templateID":"t0","names":["team/other"],"aliases":["other"]},
		{"templateID":"t1","names":["team/mine"],"aliases":["mine"],"public":true,"cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"envdVersion":"0.6.0","buildStatus":"ready"}]`
	mine := &Template{Own: true, ID: "t1", Names: []string{"team/mine"}, Public: true, CPU: 2, MemoryMB: 512, DiskMB: 1024, EnvdVersion: "0.6.0", BuildStatus: "ready"}
	find := func(ref string) func(ctx context.Context, c *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) { return c.Template(ctx, ref) }
	}
	const listed = "GET /v2/templates?limit=100"
	runAll(t, []exchangeTest{
		{name: "ID", call: find("t1"), answers: []string{list}, requests: []string{listed}, want: mine},
		{name: "name", call: find("mine"), answers: []string{list}, requests: []string{listed}, want: mine},
		{name: "full name", call: find("team/mine"), answers: []string{list}, requests: []string{listed}, want: mine},
		{
			name: "tag", call: find("mine:v2"), answers: []string{list, `200 {"templateID":"t1","public":true}`},
			requests: []string{listed, "GET /templates/aliases/mine%3Av2"}, want: mine,
		},
		{
			name: "no such tag", call: find("mine:v9"), answers: []string{list, `404 {"code":404,"message":"tag 'v9' does not exist"}`},
			requests: []string{listed, "GET /templates/aliases/mine%3Av9"}, is: ErrTemplate, text: "tag 'v9'",
		},
		{
			name: "of others", call: find("base"), answers: []string{list, `403 {"code":403,"message":"m"}`},
			requests: []string{listed, "GET /templates/aliases/base"}, want: &Template{},
		},
		{
			name: "not listed", call: find("new"), answers: []string{"200 []", `200 {"templateID":"t3"}`},
			requests: []string{listed, "GET /templates/aliases/new"}, want: &Template{Own: true, ID: "t3", Names: []string{"new"}},
		},
		{
			name: "none", call: find("nope"), answers: []string{list, `404 {"code":404,"message":"m"}`},
			requests: []string{listed, "GET /templates/aliases/nope"}, is: ErrNotFound, text: `"nope"`,
		},
		{name: "no key", call: find("t1"), answers: []string{`401 {"code":401,"message":"m"}`}, requests: []string{listed}, is: ErrAuthentication},
		{name: "empty", call: find(""), answers: []string{list}, is: ErrInvalid},
	})
}

// E2B shortens a timeout without a word; the end that counts is the one read.
func TestTimeoutIsReadBack(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	end := now
	c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			var in seconds
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			end = now.Add(min(time.Duration(in.Timeout)*time.Second, time.Hour))
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_ = json.NewEncoder(w).Encode(SandboxInfo{ID: "i1", EndAt: end})
	})))
	if err := c.SetTimeout(t.Context(), "i1", 5*time.Hour); err != nil {
		t.Fatal(err)
	}
	info, err := c.Get(t.Context(), "i1")
	if err != nil || !info.EndAt.Equal(now.Add(time.Hour)) {
		t.Errorf("end %v, error %v", info, err)
	}
}

func collect(t *testing.T, c *Client, o ListOptions) (ids []string, err error) {
	t.Helper()
	for info, err := range c.List(t.Context(), o) {
		if err != nil {
			return ids, err
		}
		ids = append(ids, info.ID)
	}
	return ids, nil
}

// pager answers with one sandbox a page.
func pager(next func(token string) string) (http.Handler, *[]string) {
	var queries []string
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		token := r.URL.Query().Get("nextToken")
		if n := next(token); n != "" {
			w.Header().Set("X-Next-Token", n)
		}
		fmt.Fprintf(w, `[{"sandboxID":"i%s"}]`, token)
	}), &queries
}

func TestListPages(t *testing.T) {
	h, queries := pager(func(token string) string { return map[string]string{"": "1", "1": "2"}[token] })
	c := newTestClient(t, serve(t, h))
	list := ListOptions{
		States: []State{Running, Paused}, Template: "t1", OldestFirst: true,
		StartedAfter: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600)),
	}
	ids, err := collect(t, c, list)
	if diff := cmp.Diff([]string{"i", "i1", "i2"}, ids); diff != "" || err != nil {
		t.Errorf("error %v %s", err, diff)
	}
	const first = "limit=100&order=asc&startedAfter=2026-01-02T02%3A04%3A05.000006Z&state=running%2Cpaused&template=t1"
	want := []string{first, strings.Replace(first, "&order", "&nextToken=1&order", 1), strings.Replace(first, "&order", "&nextToken=2&order", 1)}
	if diff := cmp.Diff(want, *queries); diff != "" {
		t.Error(diff)
	}
}

func TestListStops(t *testing.T) {
	h, queries := pager(func(token string) string { return token + "1" })
	c := newTestClient(t, serve(t, h))
	for range c.List(t.Context(), ListOptions{}) {
		break
	}
	if len(*queries) != 1 {
		t.Errorf("%d pages were asked for", len(*queries))
	}
}

func TestListWithoutEnd(t *testing.T) {
	h, _ := pager(func(string) string { return "1" })
	ids, err := collect(t, newTestClient(t, serve(t, h)), ListOptions{})
	if !errors.Is(err, errEndless) || len(ids) != 2 {
		t.Errorf("%d sandboxes, error %v", len(ids), err)
	}
}

func TestListHugeToken(t *testing.T) {
	h, queries := pager(func(token string) string { return strings.Repeat("x", maxToken) + token })
	ids, err := collect(t, newTestClient(t, serve(t, h)), ListOptions{})
	if !errors.Is(err, errEndless) || len(ids) != 2 || len(*queries) != 2 {
		t.Errorf("%d sandboxes of %d pages, error %v", len(ids), len(*queries), err)
	}
}

func TestListFails(t *testing.T) {
	requests := 0
	c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests++
		if requests == 2 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("X-Next-Token", "1")
		fmt.Fprint(w, `[{"sandboxID":"i1"}]`)
	})))
	ids, err := collect(t, c, ListOptions{})
	if !errors.Is(err, ErrForbidden) || len(ids) != 1 {
		t.Errorf("%d sandboxes, error %v", len(ids), err)
	}
}

func FuzzMetadataFilter(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("a&b", "c=d", "100%", "x+y z")
	f.Add("%2B", "é\x00", "", "&=%+")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		want := map[string]string{k1: v1, k2: v2}
		o := ListOptions{Metadata: maps.Clone(want)}
		query, err := url.ParseQuery(o.query().Encode())
		if err != nil {
			t.Fatal(err)
		}
		got := newPlane(t).decodeFilter(query.Get("metadata"))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"i1": true, "iabc123-6532622b": true, "0": true,
		"": false, "-": false, "a-": false, "-a": false, "a-b-c": false, "A": false, "a.b": false, "a/b": false, "é": false,
		strings.Repeat("a", 128): true, strings.Repeat("a", 129): false,
	} {
		if validID(id) != want {
			t.Errorf("validID(%q) is %t", id, !want)
		}
	}
}

func TestOlderThan(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"0.0.9", "0.1.0", true}, {"0.1.0", "0.1.0", false}, {"0.6.13", "0.6.2", false}, {"0.6.2", "0.6.13", true},
		{"v1.0.0", "0.6.0", false}, {"0.5.2-rc1", "0.5.3", true}, {"99.99.99", "0.1.0", false},
		{"", "0.1.0", false}, {"0.1", "0.1.1", false}, {"x.y.z", "0.1.0", false}, {"-1.0.0", "0.1.0", false},
	} {
		if got := olderThan(test.a, test.b); got != test.want {
			t.Errorf("%q is older than %q: %t", test.a, test.b, got)
		}
	}
}

func FuzzOlderThan(f *testing.F) {
	f.Add("0.6.13", "0.6.2")
	f.Add("v1.0.0-x", "1..")
	f.Fuzz(func(t *testing.T, a, b string) {
		if olderThan(a, b) && olderThan(b, a) {
			t.Errorf("%q and %q are both older", a, b)
		}
	})
}

func TestNewClient(t *testing.T) {
	for _, name := range []string{"E2B_API_KEY", "E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG", "E2B_VALIDATE_API_KEY"} {
		t.Setenv(name, "")
	}
	tests := []struct {
		name string
		env  map[string]string
		cfg  Config
		url  string // of the API
		is   error
	}{
		{"key only", nil, Config{APIKey: testKey}, "https://api.e2b.app", nil},
		{"environment", map[string]string{"E2B_API_KEY": testKey, "E2B_DOMAIN": "example.com"}, Config{}, "https://api.example.com", nil},
		{"field before environment", map[string]string{"E2B_API_KEY": "bad", "E2B_API_URL": "http://x"}, Config{APIKey: testKey, APIURL: "http://y/"}, "http://y", nil},
		{"no key", nil, Config{}, "", ErrAuthentication},
		{"bad key", nil, Config{APIKey: "sk-123"}, "", ErrAuthentication},
		{"other key", map[string]string{"E2B_VALIDATE_API_KEY": "false"}, Config{APIKey: "sk-123"}, "https://api.e2b.app", nil},
		{"bad API URL", nil, Config{APIKey: testKey, APIURL: "api.e2b.app"}, "", ErrInvalid},
		{"URL with a password", nil, Config{APIKey: testKey, SandboxURL: "https://a:b@c"}, "", ErrInvalid},
		{"bad domain", nil, Config{APIKey: testKey, Domain: "a/b"}, "", ErrInvalid},
		{"bad time", nil, Config{APIKey: testKey, RequestTimeout: -1}, "", ErrInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			c, err := NewClient(test.cfg)
			if !errors.Is(err, test.is) {
				t.Fatalf("error %v, want %v", err, test.is)
			}
			if err != nil {
				if strings.Contains(err.Error(), "sk-123") {
					t.Errorf("the key is in %v", err)
				}
				return
			}
			defer func() { _ = c.Close() }()
			if c.cfg.APIURL != test.url {
				t.Errorf("API at %s, want %s", c.cfg.APIURL, test.url)
			}
		})
	}
}
