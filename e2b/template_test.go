package e2b

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTemplates(t *testing.T) {
	list := func(ctx context.Context, c *Client) (any, error) {
		var all []Template
		for t, err := range c.Templates(ctx) {
			if err != nil {
				return nil, err
			}
			all = append(all, t)
		}
		return all, nil
	}
	runAll(t, []exchangeTest{
		{
			// As the server writes it: no build has an ID of zeros, and no
			// sandbox a null.
			name: "list", call: list, requests: []string{"GET /v2/templates?limit=100"},
			answers: []string{`200 [{"templateID":"t1","buildID":"b1","cpuCount":4,"memoryMB":8192,"diskSizeMB":1024,"public":true,"aliases":["mine"],"names":["team/mine"],
				"createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:06Z","createdBy":null,"lastSpawnedAt":"2026-01-02T03:04:07Z","spawnCount":7,"buildCount":2,"envdVersion":"0.6.0","buildStatus":"building"},
				{"templateID":"t2","buildID":"00000000-0000-0000-0000-000000000000","cpuCount":0,"memoryMB":0,"diskSizeMB":0,"public":false,"aliases":["x"],"names":[],
				"createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:05Z","createdBy":{"id":"u","email":"e"},"lastSpawnedAt":null,"spawnCount":0,"buildCount":1,"envdVersion":"","buildStatus":"error"}]`},
			want: []Template{
				{
					Own: true, ID: "t1", Names: []string{"team/mine"}, Public: true, CPU: 4, MemoryMB: 8192, DiskMB: 1024, EnvdVersion: "0.6.0",
					BuildID: "b1", BuildStatus: BuildRunning, BuildCount: 2, SpawnCount: 7,
					CreatedAt: at(5), UpdatedAt: at(6), LastSpawnedAt: at(7),
				},
				{Own: true, ID: "t2", Names: []string{"x"}, BuildStatus: BuildFailed, BuildCount: 1, CreatedAt: at(5), UpdatedAt: at(5)},
			},
		},
		{name: "no key", call: list, answers: []string{"401"}, requests: []string{"GET /v2/templates?limit=100"}, is: ErrAuthentication},
		{name: "no list", call: list, answers: []string{`200 {"a":1}`}, requests: []string{"GET /v2/templates?limit=100"}, text: "no list"},
	})
}

func at(second int) time.Time { return time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC) }

func TestDeleteTemplate(t *testing.T) {
	remove := func(ref string) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) { return nil, c.DeleteTemplate(ctx, ref) }
	}
	runAll(t, []exchangeTest{
		{name: "name", call: remove("team/mine"), answers: []string{"204"}, requests: []string{"DELETE /templates/team%2Fmine"}},
		{name: "gone", call: remove("t1"), answers: []string{`404 {"code":404,"message":"m"}`}, requests: []string{"DELETE /templates/t1"}},
		{
			name: "used", call: remove("t1"), answers: []string{`400 {"code":400,"message":"cannot delete template 't1' because there are running sandboxes using it"}`},
			requests: []string{"DELETE /templates/t1"}, is: ErrInvalid, text: "running sandboxes",
		},
		// The server would leave the tag out, and delete all.
		{name: "tag", call: remove("mine:v1"), is: ErrInvalid, text: "whole template"},
		{name: "nothing", call: remove(""), is: ErrInvalid},
		{name: "up", call: remove(".."), is: ErrInvalid},
	})
}

func TestSetTemplatePublic(t *testing.T) {
	set := func(ref string, public bool) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) {
			return nil, c.SetTemplatePublic(ctx, ref, public)
		}
	}
	runAll(t, []exchangeTest{
		{name: "public", call: set("mine", true), answers: []string{`200 {"names":["team/mine"]}`}, requests: []string{`PATCH /v2/templates/mine {"public":true}`}},
		{name: "private", call: set("t1", false), answers: []string{"200 {}"}, requests: []string{`PATCH /v2/templates/t1 {"public":false}`}},
		{name: "none", call: set("t1", true), answers: []string{`404 {"code":404,"message":"m"}`}, requests: []string{`PATCH /v2/templates/t1 {"public":true}`}, is: ErrTemplate},
		{name: "not found", call: set("t1", true), answers: []string{`404 {"code":404,"message":"m"}`}, requests: []string{`PATCH /v2/templates/t1 {"public":true}`}, is: ErrNotFound},
		{name: "of others", call: set("t1", true), answers: []string{`403 {"code":403,"message":"m"}`}, requests: []string{`PATCH /v2/templates/t1 {"public":true}`}, is: ErrForbidden},
		{name: "tag", call: set("mine:v1", true), is: ErrInvalid},
	})
}

func TestTemplateTags(t *testing.T) {
	list := func(ctx context.Context, c *Client) (any, error) { return c.TemplateTags(ctx, "mine") }
	add := func(target string, tags ...string) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) { return c.AddTemplateTags(ctx, target, tags...) }
	}
	remove := func(name string, tags ...string) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) {
			return nil, c.RemoveTemplateTags(ctx, name, tags...)
		}
	}
	const none = `404 {"code":404,"message":"m"}`
	runAll(t, []exchangeTest{
		{
			name: "list", call: list, requests: []string{"GET /templates/mine/tags"},
			answers: []string{`200 [{"tag":"default","buildID":"b2","createdAt":"2026-01-02T03:04:06Z"},{"tag":"v1","buildID":"b1","createdAt":"2026-01-02T03:04:05Z"}]`},
			want:    []TemplateTag{{"default", "b2", at(6)}, {"v1", "b1", at(5)}},
		},
		{name: "list of none", call: list, answers: []string{none}, requests: []string{"GET /templates/mine/tags"}, is: ErrTemplate},
		{
			name: "add", call: add("mine:v1", "v2", "v3"), answers: []string{`201 {"tags":["v2","v3"],"buildID":"b1"}`},
			requests: []string{`POST /templates/tags {"target":"mine:v1","tags":["v2","v3"]}`}, want: "b1",
		},
		{name: "add to none", call: add("mine", "v2"), answers: []string{none}, requests: []string{`POST /templates/tags {"target":"mine","tags":["v2"]}`}, is: ErrNotFound},
		{name: "add nothing", call: add("mine"), is: ErrInvalid},
		{name: "add no tag", call: add("mine", "a/b"), is: ErrInvalid},
		{name: "add to no name", call: add("", "a"), is: ErrInvalid},
		{name: "remove", call: remove("mine", "v1"), answers: []string{"204"}, requests: []string{`DELETE /templates/tags {"name":"mine","tags":["v1"]}`}},
		{name: "remove of none", call: remove("mine", "v1"), answers: []string{none}, requests: []string{`DELETE /templates/tags {"name":"mine","tags":["v1"]}`}, is: ErrTemplate},
		{name: "remove default", call: remove("mine", "v1", "default"), is: ErrInvalid, text: "cannot be removed"},
		{name: "remove nothing", call: remove("mine"), is: ErrInvalid},
		{name: "remove from a tag", call: remove("mine:v1", "v2"), is: ErrInvalid},
	})
}

func TestBuilds(t *testing.T) {
	list := func(id string) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) {
			var all []BuildInfo
			for b, err := range c.Builds(ctx, id) {
				if err != nil {
					return nil, err
				}
				all = append(all, b)
			}
			return all, nil
		}
	}
	const asked = "GET /templates/t1?limit=100"
	runAll(t, []exchangeTest{
		{
			name: "list", call: list("t1"), requests: []string{asked},
			answers: []string{`200 {"templateID":"t1","builds":[
				{"buildID":"b2","status":"waiting","createdAt":"2026-01-02T03:04:06Z","updatedAt":"2026-01-02T03:04:06Z","cpuCount":2,"memoryMB":512},
				{"buildID":"b1","status":"ready","createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:07Z","finishedAt":"2026-01-02T03:04:07Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"envdVersion":"0.6.0"}]}`},
			want: []BuildInfo{
				{ID: "b2", Status: BuildWaiting, CPU: 2, MemoryMB: 512, CreatedAt: at(6), UpdatedAt: at(6)},
				{ID: "b1", Status: BuildReady, CPU: 2, MemoryMB: 512, DiskMB: 1024, EnvdVersion: "0.6.0", CreatedAt: at(5), UpdatedAt: at(7), FinishedAt: at(7)},
			},
		},
		{name: "none", call: list("t1"), answers: []string{`404 {"code":404,"message":"Template t1 not found"}`}, requests: []string{asked}, is: ErrTemplate, text: "takes the ID of a template"},
		{name: "no list", call: list("t1"), answers: []string{`200 {"builds":{}}`}, requests: []string{asked}, text: "no list"},
		{name: "name", call: list("team/mine"), is: ErrInvalid},
	})
}

func TestTemplateNames(t *testing.T) {
	for ref, want := range map[string][2]string{
		"a":                            {"a", ""},
		"A-b_c":                        {"A-b_c", ""},
		"ns/a:v1.0":                    {"ns/a", "v1.0"},
		"a:" + strings.Repeat("0", 33): {"a", strings.Repeat("0", 33)},
	} {
		name, tag, err := splitTemplate(ref)
		if diff := cmp.Diff(want, [2]string{name, tag}); diff != "" || err != nil {
			t.Errorf("%s: %v %s", ref, err, diff)
		}
	}
}
