package remote_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// withPython is a manifest with a driver in Python that needs packages.
func withPython() *remote.Manifest {
	return &remote.Manifest{
		Steps:         []remote.Step{{ID: "a", Driver: "shop.extractor"}},
		PythonDrivers: []remote.PythonDriver{{Name: "shop.extractor", Module: "shop", Class: "Shop", Requirements: []string{"Pandas >= 2"}}},
	}
}

// listing is a server whose list of the account's templates is another one than it
// has.
func listing(list string) func(mock.HTTPRequest) *mock.HTTPFault {
	return func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Path == "/v2/templates" {
			return &mock.HTTPFault{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: list}
		}
		return nil
	}
}

// listed is a template in such a list.
func listed(name, build, status string) string {
	return fmt.Sprintf(`[{"templateID":"abc","buildID":%q,"buildStatus":%q,"names":[%q],"cpuCount":4,"memoryMB":512}]`, build, status, name)
}

const someBuild = "5f0c5f5b-0000-4000-8000-000000000000"

func explain(t *testing.T, cfg remote.Config, m *remote.Manifest, o remote.ExplainOptions) *remote.StartPlan {
	t.Helper()
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p, err := a.Prepare(t.Context(), m, newContext(t, "s"))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := a.Explain(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// A plan says which way a run starts, and why not, and asks E2B without making
// anything.
func TestExplain(t *testing.T) {
	t.Setenv("OSIRIS_E2B_INSTALL_DEPS", "")
	for _, test := range []struct {
		name   string
		config remote.Config
		python bool
		fault  func(mock.HTTPRequest) *mock.HTTPFault
		o      remote.ExplainOptions

		way     remote.StartWay
		status  remote.TemplateStatus
		derived remote.TemplateStatus // empty for none
		builds  bool
		text    []string // of what is printed
	}{
		{name: "as it is", way: remote.StartAsIs, status: remote.TemplateReady, text: []string{"start: from the template \"base\" (ready), as it is\n", "not known yet"}},
		{name: "the same size", config: remote.Config{CPU: 2, MemoryGB: 0.5}, way: remote.StartAsIs, status: remote.TemplateReady},
		{name: "no template", config: remote.Config{Template: "nowhere"}, way: remote.StartAsIs, status: remote.TemplateMissing, text: []string{`refused: there is no template "nowhere"`, "--e2b-template"}},
		{name: "another size", config: remote.Config{CPU: 4, MemoryGB: 8}, way: remote.StartDerived, status: remote.TemplateMissing, derived: remote.TemplateMissing,
			text: []string{"refused: it asks for 4 CPUs and 8 GiB of memory", `from the template "base" with 4 CPUs and 8 GiB of memory and the worker program`, "--e2b-allow-template-build"}},
		{name: "another size, allowed", config: remote.Config{CPU: 4, MemoryGB: 8, AllowTemplateBuild: true}, way: remote.StartDerived, status: remote.TemplateMissing, derived: remote.TemplateMissing, builds: true,
			text: []string{"would build osiris-", "allowed by Config.AllowTemplateBuild"}},
		{name: "a size that no template can have", config: remote.Config{CPU: 3}, way: remote.StartDerived, status: remote.TemplateMissing, derived: remote.TemplateMissing, text: []string{"refused: it asks for 3 CPUs", "no template can have that: CPU is 3", "such as 4"}},
		{name: "an image", config: remote.Config{Image: "python:3.12"}, way: remote.StartDerived, derived: remote.TemplateMissing, status: remote.TemplateMissing, text: []string{"refused: the run asks for an image", `from the image "python:3.12"`}},
		{name: "an image, allowed", config: remote.Config{Image: "python:3.12", AllowTemplateBuild: true}, way: remote.StartDerived, derived: remote.TemplateMissing, status: remote.TemplateMissing, builds: true},
		{name: "packages", python: true, way: remote.StartAsIs, status: remote.TemplateReady, text: []string{"need pandas>=2, pyarrow:", "--e2b-install-deps", "--e2b-allow-template-build"}},
		{name: "packages that may be installed", config: remote.Config{InstallDeps: true}, python: true, way: remote.StartWheelhouse, status: remote.TemplateReady, text: []string{"from the wheelhouse, or from an index"}},
		{name: "no wheelhouse", config: remote.Config{InstallDeps: true, Wheelhouse: "off"}, python: true, way: remote.StartIndex, status: remote.TemplateReady},
		{name: "packages in a template", config: remote.Config{AllowTemplateBuild: true, Packages: []string{"polars"}}, python: true, way: remote.StartDerived, status: remote.TemplateMissing, derived: remote.TemplateMissing, builds: true,
			text: []string{"the packages pandas>=2, polars, pyarrow and the worker program", "which will have all that it takes"}},
		{name: "packages that are in no template", config: remote.Config{AllowTemplateBuild: true, CPU: 4, Env: map[string]string{"UV_INDEX": "https://example.com"}}, python: true,
			way: remote.StartAsIs, status: remote.TemplateMissing, derived: remote.TemplateMissing, builds: true,
			text: []string{"not in a template: the run passes the variable UV_INDEX", "where the template \"base\" has not got them, the run fails; allow them to be installed, by Config.InstallDeps (install_deps, --e2b-install-deps)\n"}},
		{name: "packages without Python", config: remote.Config{AllowTemplateBuild: true, Packages: []string{"polars"}}, way: remote.StartAsIs, status: remote.TemplateReady},
		{name: "an index of one's own", config: remote.Config{AllowTemplateBuild: true, InstallDeps: true, CPU: 4, Env: map[string]string{"PIP_INDEX_URL": "https://secret@example.com"}}, python: true,
			way: remote.StartWheelhouse, status: remote.TemplateMissing, derived: remote.TemplateMissing, builds: true, text: []string{"PIP_INDEX_URL"}},
		{name: "not the account's", config: remote.Config{CPU: 4}, fault: listing("[]"), way: remote.StartAsIs, status: remote.TemplateReady, derived: remote.TemplateMissing, text: []string{"if a sandbox of that has another size", "the run is refused"}},
		{name: "not the account's, allowed", config: remote.Config{CPU: 4, AllowTemplateBuild: true}, fault: listing("[]"), way: remote.StartAsIs, status: remote.TemplateReady, derived: remote.TemplateMissing, text: []string{"as it is, if its size is right, which is not known", "if a sandbox of that has another size, would build osiris-"}},
		{name: "being built", config: remote.Config{Template: "slow"}, fault: listing(listed("slow", "", "building")), way: remote.StartAsIs, status: remote.TemplateBuilding},
		{name: "built anew", config: remote.Config{Template: "slow"}, fault: listing(listed("slow", someBuild, "building")), way: remote.StartAsIs, status: remote.TemplateReady},
		{name: "never built", config: remote.Config{Template: "broken"}, fault: listing(listed("broken", "", "error")), way: remote.StartAsIs, status: remote.TemplateMissing, text: []string{`refused: the template "broken" was never built`}},
		{name: "offline", config: remote.Config{CPU: 4, AllowTemplateBuild: true}, o: remote.ExplainOptions{Offline: true}, way: remote.StartAsIs, status: remote.TemplateUnknown, derived: remote.TemplateUnknown, text: []string{"E2B was not asked", "its name is another"}},
		{name: "offline with an image", config: remote.Config{Image: "python:3.12", AllowTemplateBuild: true}, o: remote.ExplainOptions{Offline: true}, way: remote.StartDerived, status: remote.TemplateUnknown, derived: remote.TemplateUnknown, text: []string{"would build osiris-"}},
		{name: "a wrong key", config: remote.Config{APIKey: "e2b_00000000", CPU: 4}, way: remote.StartAsIs, status: remote.TemplateUnknown, derived: remote.TemplateUnknown, text: []string{"E2B did not say", "401"}},
		{name: "no list", config: remote.Config{CPU: 4}, fault: func(r mock.HTTPRequest) *mock.HTTPFault {
			if r.Path == "/v2/templates" {
				return &mock.HTTPFault{Status: http.StatusForbidden, Body: `{"code":403,"message":"not for you"}`}
			}
			return nil
		}, way: remote.StartAsIs, status: remote.TemplateUnknown, derived: remote.TemplateUnknown, text: []string{"E2B did not say", "not for you"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := newServer(t, "served", testDrivers(), mock.WithFault(test.fault))
			key := test.config.APIKey
			test.config.Wheelhouse = cmp.Or(test.config.Wheelhouse, t.TempDir())
			cfg := connect(test.config, server)
			if key != "" {
				cfg.APIKey = key
			}
			m := join()
			if test.python {
				m = withPython()
			}
			plan := explain(t, cfg, m, test.o)
			derived := remote.TemplateStatus("")
			if plan.Derived != nil {
				derived = plan.Derived.Status
			}
			text := plan.String()
			if plan.Way != test.way || plan.Status != test.status || derived != test.derived || plan.Builds() != test.builds {
				t.Errorf("got %s, %s, %s, builds %t\n%s", plan.Way, plan.Status, derived, plan.Builds(), text)
			}
			contains(t, text, test.text...)
			if strings.Contains(text, "secret@") {
				t.Errorf("it tells a secret: %s", text)
			}
			if want := strings.Contains(strings.Join(test.text, "\n"), "refused:"); want != (plan.Refused != "") {
				t.Errorf("refused: %q", plan.Refused)
			}
			for _, r := range server.Requests() {
				if r.Method != http.MethodGet || test.o.Offline {
					t.Errorf("it has asked for %s %s", r.Method, r.Path)
				}
			}
			if _, err := json.Marshal(plan); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is refused, and that a context ends.
func TestExplainRefused(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	p, err := a.Prepare(t.Context(), join(), newContext(t, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.(*remote.E2BTransparentProxy).Explain(t.Context(), p, remote.ExplainOptions{}); !errors.Is(err, remote.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	b, _ := newAdapter(t, "served", remote.Config{}, nil)
	proxy := b.(*remote.E2BTransparentProxy)
	if _, err := proxy.Explain(t.Context(), nil, remote.ExplainOptions{}); !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// A tag names one build of a template, and a template without a tag has to have
// one that is the default.
func TestExplainTags(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	buildEmpty(t, server, e2b.BuildOptions{Name: "own", Tags: []string{"v1"}, CPU: 2, MemoryMB: 512, FromImage: "debian:13"})
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.RequestBuild(t.Context(), e2b.BuildOptions{Name: "own", Tags: []string{"v2"}, FromImage: "debian:13"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		template string
		status   remote.TemplateStatus
		refused  string
	}{
		{"own:v1", remote.TemplateReady, ""},
		{"own:v2", remote.TemplateBuilding, ""},
		{"own:v3", remote.TemplateMissing, `no build with the tag "v3"`},
		{"own", remote.TemplateMissing, `no build with the tag "default"`},
		{"own:default", remote.TemplateMissing, `no build with the tag "default"`},
		{"other:v1", remote.TemplateMissing, `no template "other:v1"`},
		{"base", remote.TemplateReady, ""},
		{"base:default", remote.TemplateReady, ""},
	} {
		plan := explain(t, connect(remote.Config{Template: test.template, Wheelhouse: t.TempDir()}, server), join(), remote.ExplainOptions{})
		if plan.Status != test.status || (plan.Refused == "") != (test.refused == "") || !strings.Contains(plan.Refused, test.refused) {
			t.Errorf("%s:\n%s", test.template, plan)
		}
	}
}

// A derived template is found while it is being built, and when it is ready.
func TestExplainFindsTemplate(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	cfg := connect(remote.Config{CPU: 4, MemoryGB: 8, Wheelhouse: t.TempDir()}, server)
	name := explain(t, cfg, join(), remote.ExplainOptions{}).Derived.Name
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	o := e2b.BuildOptions{Name: name, CPU: 4, MemoryMB: 8192, FromTemplate: "base"}
	b, err := client.RequestBuild(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	plan := explain(t, cfg, join(), remote.ExplainOptions{})
	if plan.Derived.Name != name || plan.Derived.Status != remote.TemplateBuilding || plan.Way != remote.StartDerived || plan.Builds() {
		t.Errorf("while it waits:\n%s", plan)
	}
	contains(t, plan.Refused, "is being built: try again when it is ready") // a run does not wait without permission
	cfg.AllowTemplateBuild = true
	if plan = explain(t, cfg, join(), remote.ExplainOptions{}); plan.Derived.Name != name || plan.Refused != "" || !plan.Builds() {
		t.Errorf("while it waits, with permission:\n%s", plan)
	}
	cfg.AllowTemplateBuild = false
	contains(t, plan.String(), "would wait for the build of "+name)
	if err := client.StartBuild(t.Context(), b, o); err != nil {
		t.Fatal(err)
	}
	if err := client.WaitBuild(t.Context(), b.TemplateID, b.ID, nil); err != nil {
		t.Fatal(err)
	}
	plan = explain(t, cfg, join(), remote.ExplainOptions{})
	if plan.Template != name || plan.Status != remote.TemplateReady || plan.Way != remote.StartDerived || plan.Builds() || plan.Refused != "" {
		t.Errorf("when it is ready:\n%s", plan)
	}
	cfg.CPU = 6
	if plan := explain(t, cfg, join(), remote.ExplainOptions{}); plan.Derived.Name == name || plan.Refused == "" {
		t.Errorf("of another size:\n%s", plan)
	}
}

// What a start has taken is known to the next, on this machine.
func TestStartsAreKept(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	house := t.TempDir()
	cfg := connect(remote.Config{Drivers: testDrivers(), Wheelhouse: house, Env: map[string]string{"TOKEN": "canary-5ec7e7"}}, server)
	run := func(cfg remote.Config, id string, m *remote.Manifest) error {
		t.Helper()
		a, err := remote.NewE2BTransparentProxy(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		_, _, err = remote.Run(t.Context(), a, m, newContext(t, id))
		return err
	}
	if err := run(cfg, "first", join()); err != nil {
		t.Fatal(err)
	}
	plan := explain(t, cfg, join(), remote.ExplainOptions{Offline: true})
	if len(plan.Last) != 1 {
		t.Fatalf("got %+v", plan.Last)
	}
	c := plan.Last[0]
	if c.Way != remote.StartAsIs || c.Template != "base" || c.UntilFirstStep <= 0 || c.UntilFirstStep < c.Dependencies || c.BytesSent <= 0 || c.CostUSD <= 0 || c.At.IsZero() {
		t.Errorf("got %+v", c)
	}
	contains(t, plan.String(), "the last time from the template as it is: ")

	// A run whose step fails has started, and takes the place of the first.
	if err := run(cfg, "second", &remote.Manifest{Steps: []remote.Step{{ID: "f", Driver: "test.fail"}}}); !errors.Is(err, remote.ErrStepFailed) {
		t.Fatal(err)
	}
	if plan := explain(t, cfg, join(), remote.ExplainOptions{Offline: true}); len(plan.Last) != 1 || plan.Last[0].BytesSent == c.BytesSent && plan.Last[0].UntilFirstStep == c.UntilFirstStep {
		t.Errorf("got %+v", plan.Last)
	}
	if plan := explain(t, connect(cfg, newServer(t, "served", testDrivers())), join(), remote.ExplainOptions{Offline: true}); len(plan.Last) != 1 {
		t.Errorf("of a server at another port: %+v", plan.Last)
	}
	other := cfg
	other.APIURL = "https://e2b.example.com"
	if plan := explain(t, other, join(), remote.ExplainOptions{Offline: true}); len(plan.Last) != 0 {
		t.Errorf("of another deployment: %+v", plan.Last)
	}
	other = cfg
	other.Template = "other"
	if plan := explain(t, other, join(), remote.ExplainOptions{Offline: true}); len(plan.Last) != 0 {
		t.Errorf("of another template: %+v", plan.Last)
	}
	b, err := os.ReadFile(filepath.Join(house, "starts.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"canary", "TOKEN", server.APIKey(), server.URL(), "session"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("the file has %q:\n%s", secret, b)
		}
	}

	// Where it cannot be kept, no run fails.
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{"off", blocked} {
		cfg.Wheelhouse = dir
		if err := run(cfg, fmt.Sprint("third-", i), join()); err != nil {
			t.Error(err)
		}
		if plan := explain(t, cfg, join(), remote.ExplainOptions{Offline: true}); len(plan.Last) != 0 {
			t.Errorf("%s: %+v", dir, plan.Last)
		}
	}
}

// Doctor says how runs start, and looks at what their sandboxes are made from. It
// builds nothing.
func TestDoctorStart(t *testing.T) {
	t.Setenv("OSIRIS_E2B_INSTALL_DEPS", "")
	const ok, warning, failed, skipped = remote.CheckOK, remote.CheckWarning, remote.CheckFailed, remote.CheckSkipped
	for _, test := range []struct {
		name       string
		config     remote.Config
		ready      bool // there is the derived template
		notOwn     bool // the account has no other
		start      remote.CheckStatus
		size       remote.CheckStatus
		text       []string // of the check "start"
		fix        string
		template   string // part of that check
		sizeDetail string
	}{
		{name: "another size", config: remote.Config{CPU: 4}, start: failed, size: failed, text: []string{"it asks for 4 CPUs", "from the template \"base\""}, fix: "--e2b-allow-template-build", template: `"base"`, sizeDetail: "the run asks for 4 CPUs"},
		{name: "another size, allowed", config: remote.Config{CPU: 4, AllowTemplateBuild: true}, start: warning, size: warning, text: []string{"would build osiris-"}, fix: "first run", template: `"base"`, sizeDetail: "which will have 4 CPUs"},
		{name: "the same size, and packages", config: remote.Config{CPU: 2, AllowTemplateBuild: true, Packages: []string{"polars"}}, start: warning, size: ok, text: []string{"would build osiris-"}, fix: "first run", template: `"base"`, sizeDetail: "2 CPUs"},
		{name: "a size that no template can have", config: remote.Config{CPU: 3}, start: failed, size: failed, text: []string{"no template can have that"}, fix: "a size that there may be", template: `"base"`, sizeDetail: "3 CPUs"},
		{name: "another size, there", config: remote.Config{CPU: 4, MemoryGB: 8}, ready: true, start: ok, size: ok, text: []string{"(ready)", "which has all that it takes"}, template: `"osiris-`, sizeDetail: "4 CPUs and 8 GiB"},
		{name: "an image", config: remote.Config{Image: "python:3.12"}, start: failed, size: skipped, text: []string{`from the image "python:3.12"`}, fix: "--e2b-allow-template-build", template: `"base"`},
		{name: "an image, allowed", config: remote.Config{Image: "python:3.12", CPU: 4, AllowTemplateBuild: true}, start: warning, size: warning, text: []string{`from the image "python:3.12" with 4 CPUs`}, fix: "first run", template: `"base"`, sizeDetail: "4 CPUs"},
		{name: "an image of any size, allowed", config: remote.Config{Image: "python:3.12", AllowTemplateBuild: true}, start: warning, size: warning, fix: "first run", template: `"base"`, sizeDetail: "E2B's default size"},
		{name: "packages", config: remote.Config{Packages: []string{"polars"}}, start: ok, size: ok, text: []string{"need pandas, polars, pyarrow"}, template: `"base"`},
		{name: "packages, allowed", config: remote.Config{Packages: []string{"polars"}, AllowTemplateBuild: true}, start: warning, size: ok, text: []string{"the packages pandas, polars, pyarrow"}, fix: "first run", template: `"base"`},
		{name: "not the account's", config: remote.Config{CPU: 4}, notOwn: true, start: ok, size: failed, text: []string{"the run is refused"}, template: `"base"`, sizeDetail: "the run asks for 4 CPUs"},
		{name: "not the account's, allowed", config: remote.Config{CPU: 4, AllowTemplateBuild: true}, notOwn: true, start: ok, size: warning, text: []string{"if a sandbox of that has another size"}, template: `"base"`, sizeDetail: "osiris-"},
		{name: "not the account's, there", config: remote.Config{CPU: 4}, notOwn: true, ready: true, start: ok, size: ok, text: []string{"(ready)"}, template: `"osiris-`, sizeDetail: "4 CPUs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := newServer(t, "served", testDrivers(), mock.WithTemplates(mock.Template{Names: []string{"base"}, OtherTeam: test.notOwn}))
			cfg := connect(test.config, server)
			cfg.Drivers, cfg.Wheelhouse = testDrivers(), t.TempDir()
			name := ""
			if test.ready {
				name = explain(t, cfg, join(), remote.ExplainOptions{}).Derived.Name
			}
			if name != "" {
				buildEmpty(t, server, e2b.BuildOptions{Name: name, CPU: 4, MemoryMB: 8192, FromTemplate: "base"})
			}
			before := len(server.Requests())
			d, err := remote.Doctor(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			start, size := check(t, d, "start"), check(t, d, "size")
			if start.Status != test.start || size.Status != test.size || d.Healthy() != (test.start != failed && test.size != failed) {
				t.Errorf("%+v", d.Checks)
			}
			contains(t, start.Detail, test.text...)
			contains(t, start.Fix, test.fix)
			contains(t, size.Detail, test.sizeDetail)
			contains(t, check(t, d, "template").Detail, test.template)
			for _, r := range server.Requests()[before:] {
				if r.Method == http.MethodPost && strings.Contains(r.Path, "/templates") {
					t.Errorf("it has asked for %s %s", r.Method, r.Path)
				}
			}
		})
	}
}

// buildEmpty builds a template.
func buildEmpty(t *testing.T, server *mock.Server, o e2b.BuildOptions) {
	t.Helper()
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.BuildTemplate(t.Context(), o, nil); err != nil {
		t.Fatal(err)
	}
}

// What the build of a template has taken is kept of the run that had it built, and
// then what a start from it takes.
func TestStartsOfDerivedTemplate(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	cfg := remote.Config{CPU: 4, MemoryGB: 8, Wheelhouse: t.TempDir(), Drivers: testDrivers(), AllowTemplateBuild: true}
	last := func(kept int) remote.StartCost {
		t.Helper()
		if _, _, err := runOn(t, server, cfg, one("test.noop")); err != nil {
			t.Fatal(err)
		}
		plan := explain(t, connect(cfg, server), one("test.noop"), remote.ExplainOptions{})
		if len(plan.Last) != kept || plan.Way != remote.StartDerived || plan.Status != remote.TemplateReady {
			t.Fatalf("got\n%s", plan)
		}
		if c := plan.Last[0]; c.Way != remote.StartDerived || c.Template != plan.Template || c.Build > c.UntilFirstStep {
			t.Errorf("got %+v", c)
		}
		return plan.Last[0]
	}
	first, second := last(1), last(2)
	contains(t, first.String(), "from a derived template: ", "for a build")
	if first.Build <= 0 || second.Build != 0 {
		t.Errorf("the builds took %s and %s", first.Build, second.Build)
	}

	// One that may not build finds it, and knows what the others have taken, and what
	// the build took, as does another worker program, which will have another template.
	cfg.AllowTemplateBuild = false
	plan := explain(t, connect(cfg, server), one("test.noop"), remote.ExplainOptions{})
	if plan.Refused != "" || plan.Way != remote.StartDerived || len(plan.Last) != 2 || plan.Last[1] != first {
		t.Errorf("got\n%s", plan)
	}
	cfg.AllowTemplateBuild, cfg.WorkerPath = true, filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(cfg.WorkerPath, []byte("another"), 0o700); err != nil {
		t.Fatal(err)
	}
	if plan := explain(t, connect(cfg, server), one("test.noop"), remote.ExplainOptions{}); !plan.Builds() || len(plan.Last) != 2 {
		t.Errorf("got\n%s", plan)
	}
}

// Of a template that is not the account's only a sandbox tells the size, unless an
// adapter has seen one, and one with the right size is there, even where its own
// base is not any more.
func TestExplainOfOthersTemplate(t *testing.T) {
	var list atomic.Pointer[string]
	empty := "[]"
	list.Store(&empty)
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault { return listing(*list.Load())(r) }))
	cfg := connect(remote.Config{CPU: 2, Drivers: testDrivers()}, server)
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	plan := func(id string) (*remote.PreparedRun, *remote.StartPlan) {
		t.Helper()
		p, err := a.Prepare(t.Context(), one("test.noop"), newContext(t, id))
		if err != nil {
			t.Fatal(err)
		}
		plan, err := a.Explain(t.Context(), p, remote.ExplainOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p, plan
	}
	if _, before := plan("before"); !before.Conditional || before.Builds() {
		t.Errorf("before a run:\n%s", before)
	}
	if _, _, err := remote.Run(t.Context(), a, one("test.noop"), newContext(t, "run")); err != nil {
		t.Fatal(err)
	}
	if _, after := plan("after"); after.Derived != nil || after.Way != remote.StartAsIs {
		t.Errorf("after it:\n%s", after)
	}

	for _, test := range []struct {
		allowed  bool
		template string
	}{{true, "base"}, {false, "base"}, {true, "gone"}} {
		cfg := connect(remote.Config{CPU: 4, AllowTemplateBuild: test.allowed, Template: test.template}, server)
		list.Store(&empty)
		name := explain(t, cfg, join(), remote.ExplainOptions{}).Derived.Name
		there := listed(name, someBuild, "ready")
		list.Store(&there)
		got := explain(t, cfg, join(), remote.ExplainOptions{})
		if got.Conditional || got.Template != name || got.Refused != "" || got.Derived.Status != remote.TemplateReady || got.Builds() {
			t.Errorf("%+v:\n%s", test, got)
		}
	}
}
