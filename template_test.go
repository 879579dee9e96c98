package remote_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
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

// built counts the builds that were started.
func built(server *mock.Server) int {
	return asked(server, http.MethodPost, "/v2/templates/*/builds/*")
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
func needPip(t *testing.T) {
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
				PythonDrivers: []remote.PythonDriver{{
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
			ec, _, err := runOn(t, server, cfg, one("test.counting_extractor"))
			if err != nil {
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
			if n := built(server); n != 1 || builders != 1 || len(names) != 1 {
				t.Errorf("%d builds were started, by %d runs, of %v", n, builders, names)
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

var _ = context.Background
var _ = cmp.Diff
