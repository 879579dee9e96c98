package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestBuild(t *testing.T) {
	const answer = `202 {"templateID":"t1","buildID":"b-1","names":["team/mine"],"tags":["v1"],"public":false,"aliases":["mine"]}`
	request := func(o BuildOptions) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) {
			b, err := c.RequestBuild(ctx, o)
			if b == nil {
				return nil, err
			}
			return b, err
		}
	}
	image := BuildOptions{Name: "mine", FromImage: "python:3.12"}
	const sent = `POST /v3/templates {"name":"mine"}`
	is := func(name, answer string, want error, text string) exchangeTest {
		return exchangeTest{name: name, call: request(image), answers: []string{answer}, requests: []string{sent}, is: want, text: text}
	}
	tests := []exchangeTest{
		{
			name:    "all",
			call:    request(BuildOptions{Name: "team/mine:v1", Tags: []string{"a.b"}, CPU: 4, MemoryMB: 8192, FromTemplate: "base"}),
			answers: []string{answer}, requests: []string{`POST /v3/templates {"name":"team/mine:v1","tags":["a.b"],"cpuCount":4,"memoryMB":8192}`},
			want: &Build{ID: "b-1", TemplateID: "t1", Names: []string{"team/mine"}, Tags: []string{"v1"}},
		},
		{name: "defaults", call: request(image), answers: []string{answer}, requests: []string{sent}},
		{name: "again", call: request(image), answers: []string{"502", answer}, requests: []string{sent, sent}},
		{name: "IDs", call: request(image), answers: []string{`202 {"templateID":"../x","buildID":"b"}`}, requests: []string{sent}, text: "no usable IDs"},
		is("plain 404", "404 404 page not found", ErrBuildUnsupported, ""),
		is("no operation", `404 {"code":404,"message":"no matching operation was found"}`, ErrBuildUnsupported, ""),
		is("not this method", "405", ErrBuildUnsupported, ""),
		is("not implemented", `501 {"code":501,"message":"m"}`, ErrBuildUnsupported, ""),
		is("deleted", `404 {"code":404,"message":"Template 't1' has been deleted and cannot be rebuilt"}`, ErrNotFound, "has been deleted"),
		is("limit", `429 {"code":429,"message":"you have reached the maximum number of concurrent template builds (20)"}`, ErrQuota, "wait for another build"),
		is("taken", `409 {"code":409,"message":"Alias 'mine' is already used"}`, ErrConflict, "already used"),
		is("size", `400 {"code":400,"message":"CPU count can't be higher than 8"}`, ErrInvalid, "higher than 8"),
	}
	runAll(t, tests)

	t.Run("deleted is not unsupported", func(t *testing.T) {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"code":404,"message":"Template 't1' has been deleted and cannot be rebuilt"}`)
		})))
		if _, err := c.RequestBuild(t.Context(), image); errors.Is(err, ErrBuildUnsupported) {
			t.Error(err)
		}
	})
}

// TestBuildOptionsSayWhatIsWrong has texts that tell apart what looks alike.
func TestBuildOptionsSayWhatIsWrong(t *testing.T) {
	for want, o := range map[string]BuildOptions{
		"nothing to begin with": {Name: "a"},
		"both given":            {Name: "a", FromImage: "i", FromTemplate: "t"},
		"MemoryMB is 64, and must be an even number of MiB, at least 128":  {Name: "a", MemoryMB: 64, FromImage: "i"},
		"step 2: invalid argument: \"A=B\" is not the name":                {Name: "a", FromImage: "i", Steps: []BuildStep{EnvStep("A.b-c", ""), EnvStep("A=B", "s3cret")}},
		"step 1: invalid argument: \"\" is not the name of an environment": {Name: "a", FromImage: "i", Steps: []BuildStep{EnvStep("", "s3cret")}},
	} {
		if err := o.check(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	o := BuildOptions{Name: "a", MemoryMB: 128, FromImage: "i"}
	if err := o.check(); err != nil {
		t.Error(err)
	}
}

// What the server would refuse, or worse, is not sent.
func TestBuildOptionsAreChecked(t *testing.T) {
	c := newTestClient(t, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s %s was sent", r.Method, r.URL)
		return nil, io.EOF
	}))
	layer, err := NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	step := func(s ...BuildStep) BuildOptions { return BuildOptions{Name: "mine", FromImage: "i", Steps: s} }
	for name, o := range map[string]BuildOptions{
		"no name":       {FromImage: "i"},
		"name":          {Name: "a b", FromImage: "i"},
		"slash":         {Name: "/a", FromImage: "i"},
		"slashes":       {Name: "a/b/c", FromImage: "i"},
		"long name":     {Name: strings.Repeat("a", 129), FromImage: "i"},
		"no tag":        {Name: "a:", FromImage: "i"},
		"tag":           {Name: "a", Tags: []string{"x:y"}, FromImage: "i"},
		"UUID":          {Name: "a", Tags: []string{"01234567-89ab-cdef-0123-456789ABCDEF"}, FromImage: "i"},
		"bare UUID":     {Name: "a", Tags: []string{strings.Repeat("0a", 16)}, FromImage: "i"},
		"odd CPU":       {Name: "a", CPU: 3, FromImage: "i"},
		"negative CPU":  {Name: "a", CPU: -2, FromImage: "i"},
		"odd memory":    {Name: "a", MemoryMB: 1023, FromImage: "i"},
		"little memory": {Name: "a", MemoryMB: 126, FromImage: "i"},
		"no variable":   step(EnvStep("", "v")),
		"assignment":    step(EnvStep("A=B", "v")),
		"spaces":        step(EnvStep("A B", "v")),
		"newline in it": step(EnvStep("A\n", "v")),
		"no beginning":  {Name: "a"},
		"two":           {Name: "a", FromImage: "i", FromTemplate: "t"},
		"no use":        {Name: "a", FromTemplate: "t", Registry: BasicRegistry("u", "p")},
		"zero step":     step(BuildStep{}),
		"no command":    step(RunStep("")),
		"no layer":      step(CopyStep(nil, "/x", "")),
		"zero layer":    step(CopyStep(&Layer{}, "/x", "")),
		"no directory":  step(CopyStep(layer, "", "")),
		"script in dir": step(CopyStep(layer, "/x$(reboot)", "")),
		"quote in dir":  step(CopyStep(layer, `/x"y`, "")),
		"newline":       step(CopyStep(layer, "/x", "root\nreboot")),
	} {
		if _, err := c.RequestBuild(t.Context(), o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: RequestBuild: %v, want ErrInvalid", name, err)
		}
		if err := c.StartBuild(t.Context(), &Build{ID: "b", TemplateID: "t"}, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: StartBuild: %v, want ErrInvalid", name, err)
		}
	}
	for _, b := range []*Build{nil, {}, {ID: "b/c", TemplateID: "t"}} {
		if err := c.StartBuild(t.Context(), b, step()); !errors.Is(err, ErrInvalid) {
			t.Errorf("StartBuild of %+v: %v, want ErrInvalid", b, err)
		}
	}
}

func TestStartBuild(t *testing.T) {
	const (
		waiting  = `200 {"status":"waiting","logEntries":[]}`
		building = `200 {"status":"building","logEntries":[]}`
		look     = "GET /templates/t1/builds/b1/status?limit=100&logsOffset=0"
		start    = `POST /v2/templates/t1/builds/b1 {"fromTemplate":"base","steps":[{"type":"RUN","args":["make","root"]}]}`
	)
	options := BuildOptions{Name: "mine", FromTemplate: "base", Steps: []BuildStep{RunStepAs("root", "make")}}
	call := func(ctx context.Context, c *Client) (any, error) {
		return nil, c.StartBuild(ctx, &Build{ID: "b1", TemplateID: "t1"}, options)
	}
	runAll(t, []exchangeTest{
		{name: "starts", call: call, answers: []string{waiting, "202"}, requests: []string{look, start}},
		{
			name: "all", call: func(ctx context.Context, c *Client) (any, error) {
				return nil, c.StartBuild(ctx, &Build{ID: "b1", TemplateID: "t1"}, BuildOptions{
					Name: "mine", FromImage: "i", Registry: AWSRegistry("id", "key", "eu"), Force: true, StartCommand: "s", ReadyCommand: "r",
					Steps: []BuildStep{RunStepAs("", "a"), WorkdirStep("/w"), UserStep("u"), EnvStep("K", "v")},
				})
			},
			answers: []string{waiting, "202"},
			requests: []string{look, `POST /v2/templates/t1/builds/b1 {"fromImage":"i","fromImageRegistry":{"awsAccessKeyId":"id","awsRegion":"eu","awsSecretAccessKey":"key","type":"aws"},` +
				`"steps":[{"type":"RUN","args":["a"]},{"type":"WORKDIR","args":["/w"]},{"type":"USER","args":["u"]},{"type":"ENV","args":["K","v"]}],"startCmd":"s","readyCmd":"r","force":true}`},
		},
		// A start that is refused cancels others all the same: it is not sent.
		{name: "runs", call: call, answers: []string{building}, requests: []string{look}, is: ErrBuildNotWaiting, text: "building"},
		{
			name: "superseded", call: call, requests: []string{look}, is: ErrBuildNotWaiting,
			answers: []string{`200 {"status":"error","reason":{"message":"The build was canceled because it was superseded by a newer one."}}`},
		},
		{
			name: "canceled", call: call, requests: []string{look}, is: ErrBuildCanceled,
			answers: []string{`200 {"status":"error","reason":{"message":"The build was canceled because it was superseded by a newer one."}}`},
		},
		{
			name: "too late", call: call, answers: []string{waiting, `400 {"code":400,"message":"build is not in waiting state"}`},
			requests: []string{look, start}, is: ErrBuildNotWaiting,
		},
		{name: "refused", call: call, answers: []string{waiting, `400 {"code":400,"message":"no such base"}`}, requests: []string{look, start}, is: ErrInvalid, text: "no such base"},
		{name: "no builder", call: call, answers: []string{waiting, "503", waiting, "202"}, requests: []string{look, start, look, start}},
		{name: "lost and started", call: call, answers: []string{waiting, "502", building}, requests: []string{look, start, look}},
		{name: "lost and ended", call: call, answers: []string{waiting, "504", `200 {"status":"error"}`}, requests: []string{look, start, look}},
		{name: "failed", call: call, answers: []string{waiting, `500 {"code":500,"message":"oh"}`, waiting}, requests: []string{look, start, look}, text: "oh"},
		{name: "unknown", call: call, answers: []string{`400 {"code":400,"message":"Build 'b1' not found"}`}, requests: []string{look}, is: ErrNotFound},
		{name: "deleted", call: call, answers: []string{waiting, `404 {"code":404,"message":"Error when getting template: no rows"}`}, requests: []string{look, start}, is: ErrNotFound},
		{name: "old server", call: call, answers: []string{waiting, `404 404 page not found`}, requests: []string{look, start}, is: ErrBuildUnsupported},
		{name: "no status", call: call, answers: []string{`200 {}`}, requests: []string{look}, text: "no status"},
	})
}

// A server that never lets a build begin is not asked for ever.
func TestStartBuildGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				starts++
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			io.WriteString(w, `{"status":"waiting"}`)
		})))
		err := c.StartBuild(t.Context(), &Build{ID: "b1", TemplateID: "t1"}, BuildOptions{Name: "mine", FromImage: "i"})
		if e := (*APIError)(nil); !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || starts != defaultRetries+1 {
			t.Errorf("%d starts, %v", starts, err)
		}
	})
}

const canary = "c4n4ry-s3cr3t"

// A server that gives back the registry's password does not get it into an
// error, a trace or a log.
func TestRegistrySecrets(t *testing.T) {
	registries := []*Registry{BasicRegistry(canary+"u", canary), AWSRegistry(canary+"i", canary, "eu"), GCPRegistry(`{"key":"` + canary + `"}`)}
	for _, r := range registries {
		o := BuildOptions{Name: "mine", FromImage: "i", Registry: r}
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		logger.Info("m", "options", o, "registry", r, "value", *r)
		encoded, err := json.Marshal(struct {
			O BuildOptions
			R Registry
		}{o, *r})
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%v %+v %#v %s %q %d %v %+v %#v %v", r, r, r, r, r, r, *r, o, o, &o) + string(encoded)
		for _, status := range []int{400, 500} {
			synctest.Test(t, func(t *testing.T) {
				c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						io.WriteString(w, `{"status":"waiting"}`)
						return
					}
					body, _ := io.ReadAll(r.Body)
					if !strings.Contains(string(body), canary) {
						t.Errorf("%s was sent", body)
					}
					w.WriteHeader(status)
					_ = json.NewEncoder(w).Encode(refusal{Message: "Value: " + string(body)})
				})), func(c *Config) { c.Logger = logger })
				ctx := WithClientTrace(t.Context(), &ClientTrace{Retry: func(r Retry) { text += fmt.Sprintf("%+v %v", r, r.Reason) }})
				err := c.StartBuild(ctx, &Build{ID: "b1", TemplateID: "t1"}, o)
				if e := (*APIError)(nil); !errors.As(err, &e) || e.Status != status {
					t.Errorf("error %v", err)
				}
				text += fmt.Sprintf("%v %+v %#v", err, err, err)
			})
		}
		if text += log.String(); strings.Contains(text, canary) {
			t.Errorf("%s", text)
		}
	}
}

// scriptedBuild answers to looks at a build.
type scriptedBuild struct {
	t     *testing.T
	looks []string // "status" or "status messages...", one look each; the last is repeated
	at    int
	log   []string
}

func (b *scriptedBuild) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.URL.Path != "/templates/t1/builds/b1/status" || q.Get("limit") != "100" || q.Get("level") != "" {
		b.t.Errorf("%s was asked for", r.URL)
	}
	words := strings.Fields(b.looks[min(b.at, len(b.looks)-1)])
	if b.at++; b.at <= len(b.looks) {
		b.log = append(b.log, words[1:]...)
	}
	if code, err := strconv.Atoi(words[0]); err == nil {
		w.WriteHeader(code)
		return
	}
	offset, err := strconv.Atoi(q.Get("logsOffset"))
	if err != nil || offset > len(b.log) {
		b.t.Errorf("the offset is %s, of %d", q.Get("logsOffset"), len(b.log))
		offset = len(b.log)
	}
	a := map[string]any{"status": words[0], "templateID": "t1", "buildID": "b1", "logs": []string{}}
	var entries []BuildLog
	for i, m := range b.log[offset:min(len(b.log), offset+100)] {
		step, message, _ := strings.Cut(m, "/")
		entries = append(entries, BuildLog{Time: time.Unix(int64(offset+i), 0).UTC(), Level: "info", Message: message, Step: step})
	}
	a["logEntries"] = entries
	if words[0] == "error" {
		a["reason"] = map[string]any{"message": "failed to run command 'x': exit status 1", "step": "2"}
	}
	_ = json.NewEncoder(w).Encode(a)
}

func TestWaitBuild(t *testing.T) {
	many := "building"
	for i := range 250 {
		many += fmt.Sprintf(" 1/%d", i)
	}
	lost := slices.Repeat([]string{"500"}, (maxLostPolls+1)*(defaultRetries+1))
	for _, test := range []struct {
		name  string
		looks []string
		log   int // lines
		is    error
		text  []string
		count int           // looks
		took  time.Duration // zero means that it does not matter
	}{
		{name: "ready", looks: []string{"waiting", "building base/a", "building base/b base/c", "ready finalize/d", "ready"}, log: 4, count: 5, took: 950 * time.Millisecond},
		{name: "late lines", looks: []string{"building 1/a", "ready 1/b", "ready 1/c", "ready"}, log: 3, count: 4},
		{name: "pages", looks: []string{many, "building", "building", "ready"}, log: 250, count: 4, took: 200 * time.Millisecond},
		{name: "long", looks: append(slices.Repeat([]string{"building"}, 7), "ready"), count: 8, took: 4625 * time.Millisecond},
		{name: "load balancer", looks: slices.Concat(slices.Repeat([]string{"502"}, 6), []string{"ready"}), count: 7},
		{name: "pages at the end", looks: []string{"ready" + strings.TrimPrefix(many, "building"), "ready"}, log: 250, count: 4},
		{name: "unknown status", looks: []string{"snoring 1/a", "ready"}, log: 1, count: 2},
		{
			name: "fails", looks: []string{"building 1/a 2/b", "error 2/c base/d", "error"}, log: 4, count: 3,
			is: ErrBuild, text: []string{"build of template t1 failed at step 2: failed to run command 'x': exit status 1; its last lines: | b | c"},
		},
		{name: "no lines of the step", looks: []string{"building 1/a", "error"}, log: 1, count: 2, is: ErrBuild, text: []string{"its last lines: | a"}},
		{name: "no lines", looks: []string{"error"}, is: ErrBuild, count: 1, text: []string{"exit status 1"}},
		{name: "E2B restarts", looks: slices.Concat(lost[:20], []string{"building 1/a"}, lost[:20], []string{"ready"}), log: 1, count: 42},
		{name: "no log service", looks: slices.Concat([]string{"building 1/a"}, lost[:10], []string{"ready"}), log: 1, count: 12},
		{name: "no log service at the end", looks: slices.Concat([]string{"building 1/a", "ready 1/b"}, lost), log: 2, count: 7},
		{name: "E2B is gone", looks: lost, count: len(lost), text: []string{"500"}},
		{name: "no key", looks: []string{"building 1/a", "401"}, log: 1, count: 2, is: ErrAuthentication},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &scriptedBuild{t: t, looks: test.looks}
				c := newTestClient(t, serve(t, b))
				var got []string
				begin := time.Now()
				err := c.WaitBuild(t.Context(), "t1", "b1", func(l BuildLog) { got = append(got, l.Step+"/"+l.Message) })
				if (test.is == nil) != (err == nil) && test.text == nil || !errors.Is(err, test.is) && test.is != nil {
					t.Errorf("error %v, want %v", err, test.is)
				}
				for _, text := range test.text {
					if !strings.Contains(fmt.Sprint(err), text) {
						t.Errorf("error %v lacks %s", err, text)
					}
				}
				if diff := cmp.Diff(b.log, got); diff != "" || len(got) != test.log {
					t.Errorf("%d lines, (-want +got):\n%s", len(got), diff)
				}
				if took := time.Since(begin); test.took != 0 && took != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
				if b.at != test.count {
					t.Errorf("%d looks, want %d", b.at, test.count)
				}
			})
		})
	}
}
