package remote_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// asked counts the requests of a server by method and path, in which a * stands
// for an ID.
func asked(server *mock.Server, method, pattern string) int {
	n := 0
	for _, r := range server.Requests() {
		p, _, _ := strings.Cut(r.Path, "?")
		if ok, _ := path.Match(pattern, p); ok && r.Method == method {
			n++
		}
	}
	return n
}

// built counts the builds that were started. One that does not wait any more is
// refused.
func built(server *mock.Server) int {
	n := 0
	for _, r := range server.Requests() {
		if ok, _ := path.Match("/v2/templates/*/builds/*", r.Path); ok && r.Method == http.MethodPost && r.Status == http.StatusAccepted {
			n++
		}
	}
	return n
}

// readyBuilds counts the builds of derived templates that are ready.
func readyBuilds(t *testing.T, server *mock.Server) int {
	t.Helper()
	c, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := 0
	for _, own := range ownTemplates(t, server) {
		for b, err := range c.Builds(t.Context(), own.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if b.Status == e2b.BuildReady {
				n++
			}
		}
	}
	return n
}

// packageIndex serves wheels on loopback: those that DataFrames take, which are
// empty, and one that has a driver.
type packageIndex struct {
	*httptest.Server
	asked atomic.Int64
}

const driverModule = `
class Counter:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        ctx.log_metric("counted", 3)
        return {}
`

func newIndex(t testing.TB) *packageIndex {
	i := new(packageIndex)
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		name, rest, ok := strings.Cut(path.Base(r.URL.Path), "-")
		version, _, _ := strings.Cut(rest, "-")
		if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.NotFound(w, r)
			return
		}
		module := "version = 1\n"
		if name == "counting" {
			module = driverModule
		}
		w.Write(pureWheel(t, name, version, module))
	}))
	t.Cleanup(i.Close)
	return i
}

// requirement is that of a package at its URL.
func (i *packageIndex) requirement(name, version string) string {
	return fmt.Sprintf("%s @ %s/%s-%s-py3-none-any.whl", name, i.URL, name, version)
}

// bridge are the packages that DataFrames take.
func (i *packageIndex) bridge() []string {
	return []string{i.requirement("pandas", "9.0"), i.requirement("pyarrow", "9.0")}
}

func pureWheel(t testing.TB, name, version, module string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	info := name + "-" + version + ".dist-info/"
	record := ""
	for _, f := range [][2]string{
		{name + ".py", module},
		{info + "METADATA", fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\n", name, version)},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", ""},
	} {
		record += f[0] + ",,\n"
		w, err := z.Create(f[0])
		if err == nil && f[1] == "" {
			f[1] = record
		}
		if err == nil {
			_, err = w.Write([]byte(f[1]))
		}
		if err != nil {
			t.Error(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Error(err)
	}
	return b.Bytes()
}

// needPip skips a test where an embedded sandbox has no Python that could
// install packages.
func needPip(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("it takes an embedded sandbox with a Python that can make environments")
	}
	pip := exec.Command("/usr/bin/env", "python3", "-c", "import pip, venv")
	pip.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := pip.CombinedOutput(); err != nil {
		t.Skipf("the system's Python cannot install packages: %v: %s", err, out)
	}
}

// runOn runs a manifest as another host would: by an adapter of its own.
func runOn(t *testing.T, server *mock.Server, cfg remote.Config, m *remote.Manifest) (*remote.ExecutionContext, *remote.ExecResult, error) {
	t.Helper()
	if cfg.Drivers == nil {
		cfg.Drivers = testDrivers()
	}
	a, err := remote.NewE2BTransparentProxy(connect(cfg, server))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	ec := newContext(t, fmt.Sprintf("s%d", len(server.Requests())))
	result, _, err := remote.Run(t.Context(), a, m, ec)
	if result != nil {
		agree(t, ec, result, err)
	}
	return ec, result, err
}

// templateUsed returns what a run's sandbox was made from.
func templateUsed(t *testing.T, ec *remote.ExecutionContext) (name string, derived, built bool) {
	t.Helper()
	used := events(t, ec, "template_used")
	if len(used) != 1 {
		t.Fatalf("%d templates were used: %v", len(used), events(t, ec, ""))
	}
	name, _ = used[0]["template"].(string)
	derived, _ = used[0]["derived"].(bool)
	built, _ = used[0]["built"].(bool)
	return name, derived, built
}

// A run whose size is not its template's has one built that has it, once: another
// host finds it, and sends nothing.
func TestDerivedTemplate(t *testing.T) {
	for _, kind := range servedKinds {
		if kind == "embedded" { // TestDerivedTemplateHoldsPackages has one
			continue
		}
		t.Run(kind, func(t *testing.T) {
			server := newServer(t, kind, testDrivers())
			cfg := remote.Config{CPU: 4, MemoryGB: 8, AllowTemplateBuild: true}
			first, result, err := runOn(t, server, cfg, one("test.noop"))
			if err != nil {
				t.Fatal(err)
			}
			name, derived, wasBuilt := templateUsed(t, first)
			if !derived || !wasBuilt || !strings.HasPrefix(name, "osiris-") || len(name) != len("osiris-")+32 {
				t.Errorf("the first run used %q, derived %t, built %t", name, derived, wasBuilt)
			}
			if r := result.Receipt; r.CPU != 4 || r.MemoryGB != 8 || r.Phases.Build <= 0 || r.Phases.Total() != r.Wall {
				t.Errorf("%+v", r)
			}
			for _, e := range []string{"template_build_started", "template_build_progress", "template_build_complete"} {
				if len(events(t, first, e)) == 0 {
					t.Errorf("there is no event %s", e)
				}
			}
			before := len(server.Requests())
			second, result, err := runOn(t, server, cfg, one("test.noop"))
			if err != nil {
				t.Fatal(err)
			}
			again, derived, wasBuilt := templateUsed(t, second)
			if again != name || !derived || wasBuilt || result.Receipt.Phases.Build != 0 {
				t.Errorf("the second run used %q, derived %t, built %t, %+v", again, derived, wasBuilt, result.Receipt)
			}
			lists, others := 0, []string{}
			for _, r := range server.Requests()[before:] {
				switch {
				case r.Path == "/v2/templates":
					lists++
				case strings.Contains(r.Path, "/templates"), r.Method == http.MethodPost && r.Path == "/files":
					others = append(others, r.Method+" "+r.Path)
				}
			}
			if lists != 1 || len(others) > 0 {
				t.Errorf("the second run listed templates %d times, and asked for %v", lists, others)
			}
			if n := built(server); n != 1 {
				t.Errorf("%d builds were started", n)
			}
		})
	}
}

// What drivers in Python need is in the template: a second run uploads nothing,
// and installs nothing.
func TestDerivedTemplateHoldsPackages(t *testing.T) {
	needPip(t)
	for _, kind := range servedKinds {
		if kind == "served" { // which is in memory
			continue
		}
		t.Run(kind, func(t *testing.T) {
			index := newIndex(t)
			cfg := remote.Config{
				CPU: 4, MemoryGB: 8, AllowTemplateBuild: true, Packages: index.bridge(), Wheelhouse: "off",
				Drivers: testDrivers(), PythonDrivers: []remote.PythonDriver{{
					Name: "test.counting_extractor", Module: "counting", Class: "Counter",
					Requirements: []string{index.requirement("counting", "1.0")},
				}},
			}
			server := newServer(t, kind, testDrivers())
			first, _, err := runOn(t, server, cfg, one("test.counting_extractor"))
			if err != nil {
				t.Fatal(err)
			}
			name, _, wasBuilt := templateUsed(t, first)
			if !wasBuilt {
				t.Error("nothing was built")
			}
			said := fmt.Sprint(events(t, first, "template_build_progress"))
			if !strings.Contains(said, "Successfully installed counting-1.0 pandas-9.0 pyarrow-9.0") {
				t.Errorf("the build does not say what it installs: %s", said)
			}
			before, requests := index.asked.Load(), len(server.Requests())
			a, ec := newProxy(t, connect(cfg, server), nil), newContext(t, "second")
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "step_start" { // another host would find the packages, too
					b, err := os.ReadFile(filepath.Join(ec.LogsDir, "sandbox.json"))
					if err != nil || !strings.Contains(string(b), `"cache": "/opt/osiris/cache"`) {
						t.Errorf("%v, %s", err, b)
					}
				}
				return nil
			}
			if _, _, err := remote.Run(t.Context(), a, one("test.counting_extractor"), ec); err != nil {
				t.Fatal(err)
			}
			if again, derived, wasBuilt := templateUsed(t, ec); again != name || !derived || wasBuilt {
				t.Errorf("it used %q, built %t", again, wasBuilt)
			}
			check := events(t, ec, "dependency_check")
			if len(check) != 1 || len(check[0]["missing"].([]any)) != 0 || len(check[0]["present"].([]any)) != 3 {
				t.Errorf("%v", check)
			}
			if n := len(events(t, ec, "dependency_installed")) + len(events(t, ec, "dependency_install_complete")); n != 0 {
				t.Errorf("%d packages were installed", n)
			}
			for _, r := range server.Requests()[requests:] {
				if r.Method == http.MethodPost && (r.Path == "/files" || strings.Contains(r.Path, "templates")) {
					t.Errorf("%s %s", r.Method, r.Path)
				}
			}
			if n := index.asked.Load(); n != before {
				t.Errorf("the index was asked %d times more", n-before)
			}

		})
	}
}

// The same with pandas itself, and a driver that reads and writes with it.
func TestDerivedTemplateHoldsPandas(t *testing.T) {
	needPip(t)
	if !stressed() {
		t.Skip("it installs pandas and pyarrow, and takes as long: set OSIRIS_STRESS=1")
	}
	reach := exec.Command("/usr/bin/env", "python3", "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", t.TempDir(), "six")
	reach.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} // as in a build
	if out, err := reach.CombinedOutput(); err != nil {
		t.Skipf("the index cannot be reached: %v: %s", err, out)
	}
	server := newServer(t, "embedded", testDrivers())
	cfg := remote.Config{
		CPU: 4, MemoryGB: 8, AllowTemplateBuild: true, Wheelhouse: "off", Packages: []string{"pandas>=2"}, Timeout: time.Minute,
		PythonDrivers: shop(t, map[string]string{"filesystem.csv_extractor": "CsvExtractor", "filesystem.csv_writer": "CsvWriter"}),
	}
	var sent []int64
	for range 2 {
		ec, result, err := runOn(t, server, cfg, compiled(t, "csv-copy")())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(events(t, ec, "dependency_installed")); n != 0 {
			t.Errorf("%d packages were installed in the run", n)
		}
		t.Logf("%+v, %d bytes sent", result.Receipt.Phases, result.Receipt.BytesSent)
		sent = append(sent, result.Receipt.BytesSent)
	}
	if built(server) != 1 || sent[1] > 1<<20 {
		t.Errorf("%d builds; bytes sent: %v", built(server), sent)
	}
}

// Sixteen that want the same at one moment have it built once, be they of one
// adapter or of sixteen.
func TestDerivedTemplateIsBuiltOnce(t *testing.T) {
	const hosts = 16
	for _, adapters := range []int{1, hosts} {
		t.Run(fmt.Sprint(adapters), func(t *testing.T) {
			server := newServer(t, "served", testDrivers())
			cfg := connect(remote.Config{Drivers: testDrivers(), CPU: 4, MemoryGB: 8, AllowTemplateBuild: true}, server)
			var all []*remote.E2BTransparentProxy
			for range adapters {
				all = append(all, newProxy(t, cfg, nil))
			}
			var group sync.WaitGroup
			contexts := make([]*remote.ExecutionContext, hosts)
			for i := range hosts {
				contexts[i] = newContext(t, fmt.Sprintf("s%d", i))
				group.Go(func() {
					result, _, err := remote.Run(t.Context(), all[i%adapters], one("test.noop"), contexts[i])
					if err != nil || result.Receipt.CPU != 4 {
						t.Error(err)
					}
				})
			}
			group.Wait()
			names, builders := map[string]bool{}, 0
			for _, ec := range contexts {
				name, derived, built := templateUsed(t, ec)
				if names[name] = true; !derived {
					t.Errorf("%s is not derived", name)
				}
				if built {
					builders++
				}
			}
			// A start that comes late may cancel what another has started, which then
			// begins anew: E2B has no lock. It is built once all the same.
			if n := readyBuilds(t, server); n != 1 || builders != 1 || len(names) != 1 {
				t.Errorf("%d builds are ready, by %d runs, of %v", n, builders, names)
			}
		})
	}
}

// Without permission nothing is built, and what would be is said.
func TestTemplateBuildNotAllowed(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	for _, test := range []struct {
		cfg  remote.Config
		is   error
		want []string
	}{
		{remote.Config{CPU: 4, MemoryGB: 8}, remote.ErrSandboxSize, []string{`from the template "base" with 4 CPUs and 8 GiB`, "Config.AllowTemplateBuild", "osiris-"}},
		{remote.Config{Image: "python:3.12"}, remote.ErrTemplateBuild, []string{`from the image "python:3.12"`, "Config.AllowTemplateBuild", "osiris-"}},
	} {
		_, _, err := runOn(t, server, test.cfg, one("test.noop"))
		if !errors.Is(err, test.is) {
			t.Errorf("%v", err)
		}
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		}
	}
	_, _, err := runOn(t, server, remote.Config{CPU: 3}, one("test.noop"))
	if !errors.Is(err, remote.ErrSandboxSize) || !strings.Contains(err.Error(), "1 core or an even number") || strings.Contains(err.Error(), "AllowTemplateBuild") {
		t.Errorf("a size that no template can have: %v", err)
	}
	if n := asked(server, http.MethodPost, "/v3/templates"); n != 0 {
		t.Errorf("%d builds were requested", n)
	}
	// One that somebody with permission has had built is used.
	for _, cfg := range []remote.Config{{CPU: 4, MemoryGB: 8}, {Image: "python:3.12"}} {
		allowed := cfg
		allowed.AllowTemplateBuild = true
		ec, _, err := runOn(t, server, allowed, one("test.noop"))
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := templateUsed(t, ec)
		ec, _, err = runOn(t, server, cfg, one("test.noop"))
		if err != nil {
			t.Fatal(err)
		}
		if again, derived, built := templateUsed(t, ec); again != name || !derived || built {
			t.Errorf("%q, derived %t, built %t; want %q", again, derived, built, name)
		}
	}
}

// A template that has what the run wants is taken as it is, whoever it belongs
// to.
func TestTemplateThatFits(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		t.Run(fmt.Sprint("another team's ", foreign), func(t *testing.T) {
			server := newServer(t, "served", testDrivers(), mock.WithTemplates(mock.Template{Names: []string{"big"}, CPU: 4, MemoryMB: 8192, OtherTeam: foreign}))
			a := newProxy(t, connect(remote.Config{Drivers: testDrivers(), Template: "big", CPU: 4, MemoryGB: 8, AllowTemplateBuild: true}, server), nil)
			for i := range 2 {
				ec := newContext(t, fmt.Sprint("s", i))
				if _, _, err := remote.Run(t.Context(), a, one("test.noop"), ec); err != nil {
					t.Fatal(err)
				}
				if name, derived, _ := templateUsed(t, ec); name != "big" || derived {
					t.Errorf("it used %q", name)
				}
			}
			if lists, requests := asked(server, http.MethodGet, "/v2/templates"), asked(server, http.MethodPost, "/v3/templates"); lists != 1 || requests != 0 {
				t.Errorf("%d lists, %d requests for builds", lists, requests)
			}
			// And one of another size, which only a sandbox tells of another team's.
			ec, result, err := runOn(t, server, remote.Config{Template: "big", CPU: 2, AllowTemplateBuild: true}, one("test.noop"))
			if err != nil {
				t.Fatal(err)
			}
			if name, derived, _ := templateUsed(t, ec); !derived || result.Receipt.CPU != 2 {
				t.Errorf("it used %q, with %d CPUs", name, result.Receipt.CPU)
			}
			if got := result.Receipt.MemoryGB; !foreign && got != 8 {
				t.Errorf("the memory that nobody asked for is %g GiB", got)
			}
		})
	}
}

// What is left open comes from the build that a tag names, not from the template's
// newest.
func TestTemplateTagHasSize(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	buildEmpty(t, server, e2b.BuildOptions{Name: "own", CPU: 2, MemoryMB: 512, FromImage: "debian:13"})
	buildEmpty(t, server, e2b.BuildOptions{Name: "own", Tags: []string{"big"}, CPU: 4, MemoryMB: 4096, FromImage: "debian:13"})
	for _, test := range []struct {
		template string
		memory   float64
		cpu      int
		derived  bool
	}{
		{"own:big", 8, 4, true},
		{"own:big", 4, 4, false},
		{"own:default", 8, 2, true},
		{"own", 8, 2, true},
	} {
		ec, result, err := runOn(t, server, remote.Config{Template: test.template, MemoryGB: test.memory, AllowTemplateBuild: true}, one("test.noop"))
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		if _, derived, _ := templateUsed(t, ec); derived != test.derived || result.Receipt.CPU != test.cpu || result.Receipt.MemoryGB != test.memory {
			t.Errorf("%+v: derived %t, %d CPUs, %g GiB", test, derived, result.Receipt.CPU, result.Receipt.MemoryGB)
		}
	}
}

// Without permission, too, what somebody has had built is found at once: no sandbox
// is made first of another team's template, which has another size. Where the
// account's templates cannot be listed that goes on as it is.
func TestTemplateFoundFirst(t *testing.T) {
	var broken atomic.Bool
	server := newServer(t, "served", testDrivers(), mock.WithTemplates(mock.Template{Names: []string{"base"}, OtherTeam: true}),
		mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if broken.Load() && r.Path == "/v2/templates" {
				return &mock.HTTPFault{Status: http.StatusForbidden, Body: `{"code":403,"message":"not for you"}`}
			}
			return nil
		}))
	for _, test := range []struct {
		cfg       remote.Config
		broken    bool
		sandboxes int
		fails     bool
	}{
		{cfg: remote.Config{CPU: 4}, sandboxes: 1, fails: true},
		{cfg: remote.Config{CPU: 4, AllowTemplateBuild: true}, sandboxes: 2}, // the first tells the size
		{cfg: remote.Config{CPU: 4}, sandboxes: 1},
		{cfg: remote.Config{CPU: 2}, broken: true, sandboxes: 1},
		{cfg: remote.Config{CPU: 4}, broken: true, sandboxes: 1, fails: true},
	} {
		broken.Store(test.broken)
		before := asked(server, http.MethodPost, "/sandboxes")
		_, _, err := runOn(t, server, test.cfg, one("test.noop"))
		if test.fails != errors.Is(err, remote.ErrSandboxSize) || !test.fails && err != nil {
			t.Errorf("%+v: %v", test, err)
		}
		if n := asked(server, http.MethodPost, "/sandboxes") - before; n != test.sandboxes {
			t.Errorf("%+v: %d sandboxes were made", test, n)
		}
	}
}

// A template that fitted and was built anew, with another size, fits no more.
func TestTemplateThatFittedOnce(t *testing.T) {
	server := newServer(t, "served", testDrivers(), mock.WithTemplates(mock.Template{Names: []string{"mine"}, CPU: 4, MemoryMB: 1024}))
	a := newProxy(t, connect(remote.Config{Drivers: testDrivers(), Template: "mine", CPU: 4, AllowTemplateBuild: true}, server), nil)
	for i, derivedWant := range []bool{false, true} {
		ec := newContext(t, fmt.Sprint("s", i))
		result, _, err := remote.Run(t.Context(), a, one("test.noop"), ec)
		if err != nil {
			t.Fatal(err)
		}
		if name, derived, _ := templateUsed(t, ec); derived != derivedWant || result.Receipt.CPU != 4 {
			t.Errorf("run %d used %q, with %d CPUs", i, name, result.Receipt.CPU)
		}
		if i == 0 {
			rebuild(t, server, "mine")
		}
	}
}

// rebuild builds a template anew, with two CPUs.
func rebuild(t *testing.T, server *mock.Server, name string) {
	t.Helper()
	c, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.BuildTemplate(t.Context(), e2b.BuildOptions{Name: name, CPU: 2, MemoryMB: 512, FromImage: "debian:13"}, nil); err != nil {
		t.Fatal(err)
	}
}

// One that is gone is built again.
func TestDerivedTemplateGone(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	cfg := connect(remote.Config{Drivers: testDrivers(), CPU: 4, AllowTemplateBuild: true}, server)
	a := newProxy(t, cfg, nil)
	var name string
	for i := range 3 {
		ec := newContext(t, fmt.Sprint("s", i))
		if _, _, err := remote.Run(t.Context(), a, one("test.noop"), ec); err != nil {
			t.Fatal(err)
		}
		used, _, wasBuilt := templateUsed(t, ec)
		if name != "" && used != name || wasBuilt != (i != 1) {
			t.Errorf("run %d used %q, built %t", i, used, wasBuilt)
		}
		name = used
		if i == 1 {
			deleteTemplate(t, server, name)
		}
	}
}

func deleteTemplate(t *testing.T, server *mock.Server, name string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, server.URL()+"/templates/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", server.APIKey())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}
}

// ofTemplates reports whether a request is about templates.
func ofTemplates(r mock.HTTPRequest) bool {
	return strings.Contains(r.Path, "/templates") || strings.HasPrefix(r.Path, "/layers/")
}

// ownTemplates lists what the server has of derived templates.
func ownTemplates(t *testing.T, server *mock.Server) []e2b.Template {
	t.Helper()
	c, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []e2b.Template
	for own, err := range c.Templates(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprint(own.Names), "osiris-") {
			all = append(all, own)
		}
	}
	return all
}

// atEachTemplateRequest runs f for each request about templates that a first run
// makes, with a server that calls happen when it comes.
func atEachTemplateRequest(t *testing.T, f func(t *testing.T, n int, newServer func(happen func() *mock.HTTPFault) *mock.Server)) {
	plain := newServer(t, "served", testDrivers())
	cfg := remote.Config{CPU: 4, AllowTemplateBuild: true}
	if _, _, err := runOn(t, plain, cfg, one("test.noop")); err != nil {
		t.Fatal(err)
	}
	count, last := 0, false
	for _, r := range plain.Requests() {
		status := strings.HasSuffix(r.Path, "/status") && asked(plain, http.MethodGet, r.Path) > 0
		if ofTemplates(r) && !(status && last) { // of those that only wait, one
			count++
		}
		last = status
	}
	for n := range count {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			f(t, n, func(happen func() *mock.HTTPFault) *mock.Server {
				var seen atomic.Int64
				return newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
					if ofTemplates(r) && seen.Add(1) == int64(n+1) {
						return happen()
					}
					return nil
				}))
			})
		})
	}
}

// Whatever request of a build is cut, the run has its template, and there is one
// of it.
func TestTemplateBuildCut(t *testing.T) {
	t.Parallel()
	zero, first := int64(0), int64(1)
	for name, fault := range map[string]*mock.HTTPFault{
		"never arrived": {CutRequest: &zero}, "lost answer": {LoseAnswer: true}, "cut in the answer": {CutResponse: &first},
	} {
		t.Run(name, func(t *testing.T) {
			atEachTemplateRequest(t, func(t *testing.T, n int, newServer func(func() *mock.HTTPFault) *mock.Server) {
				server := newServer(func() *mock.HTTPFault { return fault })
				ec, _, err := runOn(t, server, remote.Config{CPU: 4, AllowTemplateBuild: true}, one("test.noop"))
				if err != nil {
					t.Fatal(err)
				}
				name, derived, _ := templateUsed(t, ec)
				own := ownTemplates(t, server)
				if !derived || len(own) != 1 || own[0].BuildID == "" || !strings.Contains(fmt.Sprint(own[0].Names), name) {
					t.Errorf("used %q; there is %+v", name, own)
				}
			})
		})
	}
}

// A run that is stopped at whatever request of a build leaves nothing that is
// half built: no template, or one whose build goes on at E2B and serves the next.
func TestTemplateBuildCancelled(t *testing.T) {
	t.Parallel()
	atEachTemplateRequest(t, func(t *testing.T, n int, newServer func(func() *mock.HTTPFault) *mock.Server) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		server := newServer(func() *mock.HTTPFault { cancel(); return nil })
		cfg := remote.Config{Drivers: testDrivers(), CPU: 4, AllowTemplateBuild: true}
		a := newProxy(t, connect(cfg, server), nil)
		ec := newContext(t, "s")
		result, _, err := remote.Run(ctx, a, one("test.noop"), ec)
		agree(t, ec, result, err)
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if errors.Is(err, remote.ErrTemplateBuild) && len(events(t, ec, "template_build_started")) > 0 && !strings.Contains(err.Error(), "goes on at E2B") {
			t.Errorf("%v does not say what goes on", err)
		}
		for _, own := range ownTemplates(t, server) {
			if own.BuildStatus != e2b.BuildRunning && own.BuildStatus != e2b.BuildReady {
				t.Errorf("left behind: %+v", own)
			}
		}
		if _, _, err := runOn(t, server, cfg, one("test.noop")); err != nil {
			t.Errorf("the next run: %v", err)
		}
		if own := ownTemplates(t, server); len(own) != 1 || own[0].BuildID == "" {
			t.Errorf("after the next run there is %+v", own)
		}
	})
}

// A step that fails is said with its own last lines, and leaves no template.
func TestTemplateBuildFails(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers()) // where no packages can be installed: it is in memory
	cfg := connect(remote.Config{Drivers: testDrivers(), AllowTemplateBuild: true, PythonDrivers: []remote.PythonDriver{{Name: "test.counting", Module: "m", Class: "C"}}}, server)
	var group sync.WaitGroup
	for i := range 4 {
		a := newProxy(t, cfg, nil)
		ec := newContext(t, fmt.Sprint("s", i))
		group.Go(func() {
			result, _, err := remote.Run(t.Context(), a, one("test.counting"), ec)
			if result == nil || result.Success {
				t.Errorf("%+v", result)
			}
			var failed *remote.TemplateBuildError
			if !errors.As(err, &failed) || !errors.Is(err, remote.ErrTemplateBuild) {
				t.Errorf("%v", err)
				return
			}
			if failed.Step != "the installation of packages" || !strings.Contains(strings.Join(failed.Log, "\n"), "only in memory") {
				t.Errorf("%+v", failed)
			}
			for _, want := range []string{failed.Template, "only in memory", "pandas, pyarrow", `the template "base"`} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
	group.Wait()
	if own := ownTemplates(t, server); len(own) != 0 {
		t.Errorf("left behind: %+v", own)
	}
}

// A build that fails is not repeated by the runs of an adapter that have waited
// for it.
func TestTemplateBuildFailsOnce(t *testing.T) {
	t.Parallel()
	const runs = 8
	var listed atomic.Int64
	all := make(chan struct{})
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		switch p, _, _ := strings.Cut(r.Path, "?"); {
		case p == "/v2/templates" && listed.Add(1) == runs+1: // each for what there is, and one to have it built
			close(all)
		case r.Method == http.MethodPost && p == "/v3/templates":
			<-all
		}
		return nil
	}))
	cfg := remote.Config{Drivers: testDrivers(), AllowTemplateBuild: true, PythonDrivers: []remote.PythonDriver{{Name: "test.counting", Module: "m", Class: "C"}}}
	a := newProxy(t, connect(cfg, server), nil)
	var group sync.WaitGroup
	for i := range runs {
		ec := newContext(t, fmt.Sprint("s", i))
		group.Go(func() {
			_, _, err := remote.Run(t.Context(), a, one("test.counting"), ec)
			var failed *remote.TemplateBuildError
			if !errors.As(err, &failed) || failed.Step != "the installation of packages" {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := built(server); n != 1 {
		t.Errorf("%d builds were started", n)
	}
}

// A derived template that somebody else has built with another size is not taken,
// and what helps is said.
func TestDerivedTemplateOfAnotherSize(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	a := newProxy(t, connect(remote.Config{Drivers: testDrivers(), CPU: 4, AllowTemplateBuild: true}, server), nil)
	c, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := e2b.BuildOptions{Name: a.DerivedName(t, one("test.noop")), FromTemplate: "base"}
	for i, size := range [][2]int{{2, 512}, {4, 1024}} { // neither has both that were asked for, and left open
		o.CPU, o.MemoryMB = size[0], size[1]
		if _, err := c.BuildTemplate(t.Context(), o, nil); err != nil {
			t.Fatal(err)
		}
		_, _, err := remote.Run(t.Context(), a, one("test.noop"), newContext(t, fmt.Sprint("before", i)))
		if !errors.Is(err, remote.ErrSandboxSize) || !strings.Contains(err.Error(), "delete it") {
			t.Errorf("%v: %v", size, err)
		}
	}
	deleteTemplate(t, server, o.Name)
	if _, _, err := remote.Run(t.Context(), a, one("test.noop"), newContext(t, "after")); err != nil {
		t.Error(err)
	}
}

// What the server refuses is not asked for again and again, and its words are
// said.
func TestTemplateBuildRefused(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		status       int
		most         int // requests for a build
	}{
		{http.MethodGet, "/templates/*/files/*", http.StatusBadRequest, 1},
		{http.MethodPut, "/layers/*", http.StatusRequestEntityTooLarge, 1},
		{http.MethodPost, "/v2/templates/*/builds/*", http.StatusBadRequest, 1},
		{http.MethodPost, "/v2/templates/*/builds/*", http.StatusNotFound, 4},
	} {
		t.Run(fmt.Sprint(tt.path, " ", tt.status), func(t *testing.T) {
			t.Parallel()
			server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
				p, _, _ := strings.Cut(r.Path, "?")
				if ok, _ := path.Match(tt.path, p); ok && r.Method == tt.method {
					return &mock.HTTPFault{Status: tt.status, Body: fmt.Sprintf(`{"code":%d,"message":"the moon is full"}`, tt.status)}
				}
				return nil
			}))
			_, _, err := runOn(t, server, remote.Config{CPU: 4, AllowTemplateBuild: true}, one("test.noop"))
			if !errors.Is(err, remote.ErrTemplateBuild) || !strings.Contains(err.Error(), "the moon is full") {
				t.Error(err)
			}
			if n := asked(server, http.MethodPost, "/v3/templates"); n > tt.most {
				t.Errorf("a build was requested %d times", n)
			}
			if own := ownTemplates(t, server); len(own) != 0 {
				t.Errorf("left behind: %+v", own)
			}
		})
	}
}

// A build whose host has died before it was started is taken over.
func TestTemplateBuildTakenOver(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	cfg := remote.Config{Drivers: testDrivers(), CPU: 4, AllowTemplateBuild: true}
	a := newProxy(t, connect(cfg, server), nil)
	a.SetStartPatience(time.Millisecond)
	name := a.DerivedName(t, one("test.noop"))
	c, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dead, err := c.RequestBuild(t.Context(), e2b.BuildOptions{Name: name, FromTemplate: "base"})
	if err != nil {
		t.Fatal(err)
	}
	ec := newContext(t, "s")
	if _, _, err := remote.Run(t.Context(), a, one("test.noop"), ec); err != nil {
		t.Fatal(err)
	}
	if used, _, built := templateUsed(t, ec); used != name || !built {
		t.Errorf("used %q, built %t", used, built)
	}
	waited := events(t, ec, "template_build_waiting")
	if len(waited) != 2 || waited[0]["template"] != name {
		t.Fatalf("it waited for %v", waited)
	}
	contains(t, fmt.Sprint(waited[0]["for"]), "another host to start")
	contains(t, fmt.Sprint(waited[1]["for"]), "the upload of the worker program")
	if own := ownTemplates(t, server); len(own) != 1 || own[0].ID != dead.TemplateID || own[0].BuildID == dead.ID {
		t.Errorf("there is %+v", own)
	}
}

// What comes before a build is said once, and not where there is nothing to wait
// for: E2B has the worker program from the build before.
func TestTemplateBuildWaits(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	for i, want := range []int{1, 0} {
		ec, _, err := runOn(t, server, remote.Config{CPU: 4 + 2*i, AllowTemplateBuild: true}, one("test.noop"))
		if err != nil {
			t.Fatal(err)
		}
		waited, ready := events(t, ec, "template_build_waiting"), events(t, ec, "template_build_complete")
		if len(waited) != want || len(ready) != 1 {
			t.Errorf("build %d waited for %v, and was ready %d times", i, waited, len(ready))
		}
	}
}

// Another host goes on in a derived template, with what that has.
func TestAttachInDerivedTemplate(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	marks := filepath.Join(t.TempDir(), "marks")
	dir := orphan(t, server, marks, "REMOTE_TEST_CPU=4")
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1, Heartbeat: 100 * time.Millisecond, CPU: 4, AllowTemplateBuild: true}, server)
	if err := attach(t.Context(), cfg, dir); err != nil {
		t.Fatal(err)
	}
	used, requested := 0, built(server)
	for _, e := range lines(t, filepath.Join(dir, "events.jsonl")) {
		if e["event"] == "template_used" && e["derived"] == true {
			used++
		}
	}
	if used != 1 || requested != 1 {
		t.Errorf("%d derived templates were used, %d were built", used, requested)
	}
}

// A server without builds says so, and what to do.
func TestTemplateBuildUnsupported(t *testing.T) {
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Path == "/v3/templates" {
			return &mock.HTTPFault{Status: http.StatusNotFound, Body: "404 page not found"}
		}
		return nil
	}))
	_, _, err := runOn(t, server, remote.Config{CPU: 4, AllowTemplateBuild: true}, one("test.noop"))
	if !errors.Is(err, remote.ErrTemplateBuildUnsupported) || !errors.Is(err, remote.ErrTemplateBuild) || !strings.Contains(err.Error(), "Config.Template") {
		t.Error(err)
	}
	for _, cfg := range []remote.Config{{Image: "python:3.12"}, {AllowTemplateBuild: true}} {
		cfg.OpenSandbox = mock.NewProvider(nil).OpenSandbox
		if _, err := remote.NewE2BTransparentProxy(cfg); !errors.Is(err, remote.ErrTemplateBuildUnsupported) || !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%v: %v", cfg, err)
		}
	}
}

// The name is that of all that makes a template another one.
func TestDerivedName(t *testing.T) {
	server := newServer(t, "served", testDrivers(), mock.WithTemplates(mock.Template{Names: []string{"base"}, OtherTeam: true}, mock.Template{Names: []string{"mine"}}))
	driver := []remote.PythonDriver{{Name: "p", Module: "m", Class: "C", Requirements: []string{"orders>=1"}}}
	other := []remote.PythonDriver{{Name: "p", Module: "other", Class: "Other", Requirements: []string{"Orders >= 1", "pandas"}}}
	worker := filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(worker, []byte("another"), 0o700); err != nil {
		t.Fatal(err)
	}
	name := func(cfg remote.Config) string {
		t.Helper()
		cfg.AllowTemplateBuild, cfg.Drivers = true, testDrivers()
		return newProxy(t, connect(cfg, server), nil).DerivedName(t, steps(step("p", "", nil), step("test.noop", "", nil)))
	}
	for why, pair := range map[string][2]remote.Config{
		"order and spelling":             {{PythonDrivers: driver, Packages: []string{"b", "A_x<2,>=1"}}, {PythonDrivers: driver, Packages: []string{"a-x >= 1, < 2", "b", "b"}}},
		"capital letters":                {{PythonDrivers: driver, Template: "mine"}, {PythonDrivers: driver, Template: "Mine"}},
		"another class":                  {{PythonDrivers: driver}, {PythonDrivers: other}},
		"values of variables":            {{PythonDrivers: driver, Env: map[string]string{"A": "1"}}, {PythonDrivers: driver, Env: map[string]string{"A": "2"}}},
		"the size that its template has": {{PythonDrivers: driver, Template: "mine"}, {PythonDrivers: driver, Template: "mine", CPU: 2}},
		"time":                           {{PythonDrivers: driver}, {PythonDrivers: driver, Timeout: time.Minute}},
	} {
		if a, b := name(pair[0]), name(pair[1]); a != b || a == "" {
			t.Errorf("%s: %q and %q", why, a, b)
		}
	}
	seen := make(map[string]string)
	for why, cfg := range map[string]remote.Config{
		"base": {PythonDrivers: driver}, "cpu": {PythonDrivers: driver, CPU: 4}, "memory": {PythonDrivers: driver, MemoryGB: 4},
		"packages": {PythonDrivers: driver, Packages: []string{"more"}}, "version": {PythonDrivers: driver, Packages: []string{"more>1"}},
		"template": {PythonDrivers: driver, Template: "mine"}, "image": {PythonDrivers: driver, Image: "python:3.12"}, "another image": {PythonDrivers: driver, Image: "python:3.13"},
		"python": {PythonDrivers: driver, Python: "python3.12"}, "worker": {PythonDrivers: driver, WorkerPath: worker},
		"where packages come from": {PythonDrivers: driver, CPU: 4, Env: map[string]string{"PIP_INDEX_URL": "https://index.example.com"}},
	} {
		n := name(cfg)
		if old, taken := seen[n]; taken || n == "" {
			t.Errorf("%s and %s are both %q", why, old, n)
		}
		seen[n] = why
	}
	// A template that was built again is another base.
	before := name(remote.Config{PythonDrivers: driver, Template: "mine"})
	rebuild(t, server, "mine")
	if after := name(remote.Config{PythonDrivers: driver, Template: "mine"}); after == before {
		t.Errorf("%q also after its template was built again", after)
	}
}

// What decides where packages come from may be a secret: they are not baked then.
func TestPackagesOfPrivateIndexAreNotBaked(t *testing.T) {
	server := newServer(t, "served", testDrivers())
	cfg := remote.Config{AllowTemplateBuild: true, Env: map[string]string{"PIP_INDEX_URL": "https://me:hunter22@index.example.com/simple"},
		PythonDrivers: []remote.PythonDriver{{Name: "test.counting", Module: "m", Class: "C"}}}
	ec, _, err := runOn(t, server, cfg, one("test.counting"))
	if err == nil || !strings.Contains(err.Error(), "only in memory") { // where it would have been installed
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
	if err != nil || !strings.Contains(string(log), "PIP_INDEX_URL") || strings.Contains(string(log), "hunter22") {
		t.Errorf("%v, %s", err, log)
	}
	if n := asked(server, http.MethodPost, "/v3/templates"); n != 0 {
		t.Errorf("%d builds were requested", n)
	}
}

// The settings say what is wrong with them.
func TestTemplateSettings(t *testing.T) {
	for _, test := range []struct {
		cfg  remote.Config
		want string // empty: nothing is
	}{
		{remote.Config{Image: "python:3.12", Template: "base"}, "Image"},
		{remote.Config{Image: "python 3"}, "Image is \"python 3\", which is no name"},
		{remote.Config{Image: "Python"}, "Image"},
		{remote.Config{Image: "team/Python"}, "Image"},
		{remote.Config{Image: "python:"}, "Image"},
		{remote.Config{Image: "python:3.12:slim"}, "Image"},
		{remote.Config{Image: "python:a/b"}, "Image"},
		{remote.Config{Image: "/python"}, "Image"},
		{remote.Config{Image: "python/"}, "Image"},
		{remote.Config{Image: "a//b"}, "Image"},
		{remote.Config{Image: "-python"}, "Image"},
		{remote.Config{Image: "python\n"}, "Image"},
		{remote.Config{Image: "python@sha256:0123"}, "Image is \"python@sha256:0123\", which is no name"},
		{remote.Config{Image: "python@md5:" + strings.Repeat("0", 64)}, "Image"},
		{remote.Config{Image: "me:hunter22@registry.example.com/team/image"}, "Image has an \"@\" that begins no digest"},
		{remote.Config{Image: "https://me:hunter22@registry.example.com/image@sha256:" + strings.Repeat("0", 64)}, "Image"},
		{remote.Config{Image: "me:hunter22@sha256:0/image"}, "Image"},
		{remote.Config{Image: strings.Repeat("a", 501)}, "Image"},
		{remote.Config{Image: "python"}, ""},
		{remote.Config{Image: "python:3.12-slim_X.1"}, ""},
		{remote.Config{Image: "ghcr.io/a/b__c.d-e/f:v1"}, ""},
		{remote.Config{Image: "localhost/a"}, ""},
		{remote.Config{Image: "host:5000/a:5"}, ""},
		{remote.Config{Image: "Registry.Example.com/a"}, ""},
		{remote.Config{Image: "$(python)"}, "Image"},
		{remote.Config{Image: "https://registry.example.com/python"}, "Image"},
		{remote.Config{Image: "registry.example.com:5000/team/python@sha256:" + strings.Repeat("0", 64)}, ""},
		{remote.Config{Packages: []string{"pandas>=2", "orders @ https://h/orders-1-py3-none-any.whl", "git+ssh @ git+ssh://git@h/x"}}, "Packages"},
		{remote.Config{Packages: []string{"pandas>=2", "orders @ https://h/orders-1-py3-none-any.whl", "x @ git+ssh://git@h/x"}}, ""},
		{remote.Config{Packages: []string{"--index-url=https://h"}}, "Packages"},
		{remote.Config{CPU: 3, AllowTemplateBuild: true}, "CPU is 3, and E2B builds templates with 1 core or an even number of them"},
		{remote.Config{CPU: 3, Image: "python:3.12"}, "CPU is 3"},
		{remote.Config{CPU: 1, AllowTemplateBuild: true}, ""},
		{remote.Config{CPU: 3}, ""},
		{remote.Config{MemoryGB: 0.1, AllowTemplateBuild: true}, "MemoryGB is 0.1, and E2B builds templates with 0.125 or more"},
		{remote.Config{MemoryGB: 0.0001, AllowTemplateBuild: true}, "MemoryGB is 0.0001"},
		{remote.Config{MemoryGB: 0.1245, AllowTemplateBuild: true}, ""}, // the next even MiB
		{remote.Config{MemoryGB: math.NaN()}, "MemoryGB"},
		{remote.Config{Packages: []string{""}}, "Packages"},
		{remote.Config{Packages: []string{"# nothing"}}, "Packages"},
		{remote.Config{Packages: []string{"a @ https://me:hunter22@h/a.whl"}}, "Packages"},
	} {
		_, err := remote.NewLocalAdapter(test.cfg)
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), "Config."+test.want)) {
			t.Errorf("%v: %v", test.cfg, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter22") {
			t.Error(err)
		}
	}
}

// docs/session.md names the events of builds, and their fields.
func TestTemplateEventsDocumented(t *testing.T) {
	b, err := os.ReadFile("docs/session.md")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(t, "served", testDrivers())
	good, _, err := runOn(t, server, remote.Config{CPU: 4, AllowTemplateBuild: true}, one("test.noop"))
	if err != nil {
		t.Fatal(err)
	}
	bad, _, err := runOn(t, server, remote.Config{AllowTemplateBuild: true, PythonDrivers: []remote.PythonDriver{{Name: "test.counting", Module: "m", Class: "C"}}}, one("test.counting"))
	if err == nil {
		t.Fatal("packages were installed in memory")
	}
	seen := make(map[string]bool)
	for _, e := range append(events(t, good, ""), events(t, bad, "")...) {
		name := fmt.Sprint(e["event"])
		if !strings.HasPrefix(name, "template_") {
			continue
		}
		seen[name] = true
		for field := range e {
			for _, word := range []string{name, field} {
				if !strings.Contains(string(b), "`"+word+"`") {
					t.Errorf("docs/session.md does not name %s of %s", word, name)
				}
			}
		}
	}
	if len(seen) != 6 {
		t.Errorf("%v", seen)
	}
}

// The worker's command "install" says why it cannot.
func TestInstallCommand(t *testing.T) {
	for _, test := range []struct {
		name    string
		drivers *worker.Registry
		args    []string
		code    int
		want    string
	}{
		{"no cache", testDrivers(), nil, 2, "usage"},
		{"relative cache", testDrivers(), []string{"-cache", "cache"}, 2, "usage"},
		{"no such interpreter", testDrivers(), []string{"-cache", t.TempDir(), "-python", "no-such-python"}, 1, "no-such-python is not there"},
		{"no list", testDrivers(), []string{"-cache", t.TempDir(), "-requirements", "pandas"}, 1, "no list"},
		{"no runtime", worker.NewRegistry(), []string{"-cache", t.TempDir()}, 1, "python.Register"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := worker.Program{Drivers: test.drivers}.Run(t.Context(), append([]string{"install"}, test.args...), strings.NewReader(""), &stdout, &stderr)
			if code != test.code || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("code %d, %s%s", code, &stdout, &stderr)
			}
		})
	}
}
