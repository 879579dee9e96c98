package python

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/worker"
)

// These tests make environments with the real pip and the real uv, from a
// directory of wheels and from an index on loopback.

const pythonEnvInternal = "OSIRIS_TEST_PYTHON"

// testPackage is a package whose module holds its version, or something else.
type testPackage struct {
	name, version string
	requires      []string
	module        string // by itself: VERSION = "..."
}

func (p testPackage) file() string {
	return fmt.Sprintf("%s-%s-py3-none-any.whl", strings.ReplaceAll(p.name, "-", "_"), p.version)
}

func (p testPackage) stem() string { return strings.ReplaceAll(p.name, "-", "_") }

func (p testPackage) files() [][2]string {
	info := p.stem() + "-" + p.version + ".dist-info/"
	metadata := "Metadata-Version: 2.1\nName: " + p.name + "\nVersion: " + p.version + "\n"
	extras := map[string]bool{}
	for _, r := range p.requires {
		metadata += "Requires-Dist: " + r + "\n"
		if _, extra, ok := strings.Cut(r, `extra == "`); ok && !extras[extra] {
			extras[extra] = true
			metadata += "Provides-Extra: " + strings.TrimSuffix(extra, `"`) + "\n"
		}
	}
	module := p.module
	if module == "" {
		module = fmt.Sprintf("VERSION = %q\n", p.version)
	}
	files := [][2]string{
		{p.stem() + ".py", module},
		{info + "METADATA", metadata + "\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	record := ""
	for _, f := range files {
		record += f[0] + ",,\n"
	}
	return append(files, [2]string{info + "RECORD", record + info + "RECORD,,\n"})
}

func (p testPackage) wheel(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range p.files() {
		w, err := z.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// source returns a package that takes a backend to build.
func (p testPackage) source(t *testing.T, backend string) []byte {
	t.Helper()
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	w := tar.NewWriter(g)
	dir := p.stem() + "-" + p.version + "/"
	for _, f := range [][2]string{
		{"PKG-INFO", "Metadata-Version: 2.1\nName: " + p.name + "\nVersion: " + p.version + "\n"},
		{"pyproject.toml", "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n"},
		{"backend.py", backend},
	} {
		if err := w.WriteHeader(&tar.Header{Name: dir + f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), g.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// backend builds the wheel of a package, after it has done something.
func (p testPackage) backend(before string) string {
	var b strings.Builder
	b.WriteString("import os, sys, time, zipfile\ndef build_wheel(wheel_directory, config_settings=None, metadata_directory=None):\n")
	b.WriteString("    " + strings.ReplaceAll(before, "\n", "\n    ") + "\n")
	fmt.Fprintf(&b, "    with zipfile.ZipFile(os.path.join(wheel_directory, %q), 'w') as z:\n", p.file())
	for _, f := range p.files() {
		fmt.Fprintf(&b, "        z.writestr(%q, %q)\n", f[0], f[1])
	}
	fmt.Fprintf(&b, "    return %q\n", p.file())
	return b.String()
}

// sandbox is a machine with a Python of its own, and with pip, uv or both.
type sandbox struct {
	t      *testing.T
	dir    string
	python string
	env    []string

	mu     sync.Mutex
	events []sandboxEvent
	log    bytes.Buffer
}

type sandboxEvent struct {
	name   string
	fields map[string]any
}

// Write is the log.
func (s *sandbox) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *sandbox) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// newSandbox makes one. Its Python has the given packages beside pip.
func newSandbox(t *testing.T, tools string, base ...testPackage) *sandbox {
	t.Helper()
	py := os.Getenv(pythonEnvInternal)
	if py == "" {
		t.Skipf("set %s to a Python with pip and uv to make environments with them", pythonEnvInternal)
	}
	if runtime.GOOS == "windows" {
		t.Skip("workers run on Unix")
	}
	s := &sandbox{t: t, dir: t.TempDir()}
	home := filepath.Join(s.dir, "python")
	if out, err := exec.Command(py, "-m", "venv", "--without-pip", home).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.python = interpreterIn(home)
	site, err := packagesIn(home)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range base {
		for _, f := range p.files() {
			writeTestFile(t, filepath.Join(site, f[0]), []byte(f[1]))
		}
	}
	bin := filepath.Join(s.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tools, "pip") {
		theirs, err := packagesIn(filepath.Dir(filepath.Dir(py)))
		if err != nil {
			t.Skipf("%s is not in a virtual environment: %v", py, err)
		}
		found, _ := filepath.Glob(filepath.Join(theirs, "pip-*.dist-info"))
		for _, path := range append(found, filepath.Join(theirs, "pip")) {
			if err := os.Symlink(path, filepath.Join(site, filepath.Base(path))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if strings.Contains(tools, "uv") {
		uv := filepath.Join(filepath.Dir(py), "uv")
		if _, err := os.Stat(uv); err != nil {
			t.Skipf("%s has no uv beside it: run scripts/test-setup", py)
		}
		if err := os.Symlink(uv, filepath.Join(bin, "uv")); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{
		"PATH=" + bin + string(filepath.ListSeparator) + "/usr/bin" + string(filepath.ListSeparator) + "/bin", "HOME=" + s.dir, "LANG=C.UTF-8",
		"UV_CACHE_DIR=" + filepath.Join(s.dir, "uv-cache"), "UV_HTTP_RETRIES=0", "PIP_RETRIES=0", "PIP_CONFIG_FILE=" + os.DevNull,
	}
	return s
}

// installer returns one that has its environments below the sandbox.
func (s *sandbox) installer(env ...string) *installer {
	return &installer{
		root: filepath.Join(s.dir, "environments"), python: s.python, env: append(slices.Clone(s.env), env...),
		log: s, logPath: "artifacts/_system/pip_install.log",
		event: func(name string, fields map[string]any) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, sandboxEvent{name, fields})
		},
	}
}

// take returns the events since the last call, without what depends on time.
func (s *sandbox) take() (events []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if d, ok := e.fields["duration_ms"].(int64); ok && d >= 0 {
			delete(e.fields, "duration_ms")
		}
		var b strings.Builder
		j := json.NewEncoder(&b)
		j.SetEscapeHTML(false)
		if err := j.Encode(e.fields); err != nil {
			s.t.Error(err)
		}
		events = append(events, e.name+" "+strings.TrimSpace(b.String()))
	}
	s.events = nil
	return events
}

// leftover returns what is below the root of environments, but for lock files.
func (s *sandbox) leftover() (names []string) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "environments"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Error(err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// eval returns what an interpreter prints for an expression.
func eval(t *testing.T, python, module, expression string) string {
	t.Helper()
	cmd := exec.Command(python, "-c", "import "+module+"; print("+expression+")")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func writeTestFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// links makes a directory of wheels, and returns the variables that name it and
// close all indexes.
func (s *sandbox) links(packages ...testPackage) []string {
	dir := filepath.Join(s.dir, "links")
	for _, p := range packages {
		writeTestFile(s.t, filepath.Join(dir, p.file()), p.wheel(s.t))
	}
	return []string{"PIP_FIND_LINKS=" + dir, "PIP_NO_INDEX=1"}
}

// testIndex is an index that must be asked, or must not be.
type testIndex struct {
	*httptest.Server
	files map[string][]byte
	hold  func(r *http.Request) // may keep an answer

	mu    sync.Mutex
	asked []string
}

func newTestIndex(t *testing.T, files map[string][]byte, hold func(r *http.Request)) *testIndex {
	i := &testIndex{files: files, hold: hold}
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	return i
}

func (i *testIndex) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked = append(i.asked, r.URL.Path)
	i.mu.Unlock()
	if i.hold != nil {
		i.hold(r)
	}
	if r.URL.Path == "/asked" { // by a build
		return
	}
	if content, ok := i.files[strings.TrimPrefix(r.URL.Path, "/files/")]; ok {
		w.Write(content) //nolint:errcheck // the client notices
		return
	}
	project := strings.Trim(strings.TrimPrefix(r.URL.Path, "/simple/"), "/")
	var page strings.Builder
	for name := range i.files {
		if stem, _, _ := strings.Cut(name, "-"); normaliseName(stem) == project {
			fmt.Fprintf(&page, "<a href=\"/files/%s\">%s</a>\n", name, name)
		}
	}
	if page.Len() == 0 {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, "<!DOCTYPE html><html><body>%s</body></html>", page.String())
}

func (i *testIndex) requests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.asked)
}

// closed are variables with which every connection fails, and is seen.
func closed(t *testing.T) (env []string, forbidden *testIndex) {
	forbidden = newTestIndex(t, nil, nil)
	return []string{
		"PIP_INDEX_URL=" + forbidden.URL + "/simple/", "UV_DEFAULT_INDEX=" + forbidden.URL + "/simple/", "PIP_CONSTRAINT=" + forbidden.URL + "/c.txt",
		"UV_FIND_LINKS=" + forbidden.URL + "/links/", "PIP_FIND_LINKS=" + forbidden.URL + "/links/",
		"http_proxy=" + forbidden.URL, "https_proxy=" + forbidden.URL, "all_proxy=" + forbidden.URL,
	}, forbidden
}

// eachTool runs a test with pip, and with uv, which takes pip to keep wheels.
func eachTool(t *testing.T, test func(t *testing.T, tools string)) {
	for _, tools := range []string{"pip", "uv and pip"} {
		t.Run(tools, func(t *testing.T) {
			t.Parallel()
			test(t, tools)
		})
	}
}

// TestInstallLife makes an environment in a first sandbox from a directory of
// wheels, and in a second one from those that the first has left.
func TestInstallLife(t *testing.T) {
	eachTool(t, func(t *testing.T, tools string) {
		there := testPackage{name: "there", version: "1.5"}
		requirements := []string{"Orders[fast] >=1, <2", "there>1", "orders<2,>=1 ", "nothing; python_version < '3'"}
		first := newSandbox(t, tools, there)
		env := first.links(
			testPackage{name: "orders", version: "1.0", requires: []string{"customers", "there", `speed; extra == "fast"`}},
			testPackage{name: "orders", version: "2.0"}, testPackage{name: "customers", version: "3.1"}, testPackage{name: "customers", version: "3.0"},
			testPackage{name: "speed", version: "0.1"}, testPackage{name: "there", version: "9.0"},
		)
		i := first.installer(env...)
		found, err := i.check(t.Context(), requirements)
		if err != nil {
			t.Fatal(err)
		}
		if found.Environment != "" || found.Target.Python != first.python || !strings.HasPrefix(found.Target.Version, "3.") {
			t.Errorf("check: %+v", found)
		}
		const required = `"required":["orders<2,>=1","orders[fast]<2,>=1","there>1"]`
		want := []string{`dependency_check {"missing":["orders<2,>=1","orders[fast]<2,>=1"],"present":["there>1"],` + required + `}`}
		if diff := cmp.Diff(want, first.take()); diff != "" {
			t.Errorf("events of the check (-want +got):\n%s", diff)
		}

		kept := filepath.Join(first.dir, "kept")
		done, err := i.install(t.Context(), installOptions{Requirements: requirements, Collect: kept})
		if err != nil {
			t.Fatalf("%v\n%s", err, first.logged())
		}
		checkInstalled(t, first, done, "index")
		if got := eval(t, done.Interpreter, "orders, customers, speed, there", "orders.VERSION, customers.VERSION, speed.VERSION, there.VERSION"); got != "1.0 3.1 0.1 1.5" {
			t.Errorf("versions in the environment: %s", got)
		}
		if got := first.logged(); !strings.Contains(got, "$ "+first.python+" -m venv") && !strings.Contains(got, "uv venv") || !strings.Contains(got, "orders") {
			t.Errorf("log:\n%s", got)
		}
		var names []string
		for _, w := range done.Wheels {
			names = append(names, w.Name)
		}
		if diff := cmp.Diff([]string{"customers-3.1-py3-none-any.whl", "orders-1.0-py3-none-any.whl", "speed-0.1-py3-none-any.whl"}, names); diff != "" {
			t.Errorf("wheels (-want +got):\n%s", diff)
		}

		// It is there now: nothing is installed again.
		again, err := i.check(t.Context(), slices.Concat([]string{"there > 1"}, requirements))
		if err != nil {
			t.Fatal(err)
		}
		if again.Environment != done.Interpreter || len(again.Missing) != 0 || again.Key != found.Key {
			t.Errorf("check after the installation: %+v", again)
		}
		first.take()
		nothing, err := i.install(t.Context(), installOptions{Requirements: requirements})
		if err != nil || nothing.Interpreter != done.Interpreter || len(nothing.Installed) != 0 {
			t.Errorf("second installation: %+v, %v", nothing, err)
		}
		want = []string{`dependency_install_complete {"installed":[],"log_path":"artifacts/_system/pip_install.log","now_present":["orders<2,>=1","orders[fast]<2,>=1","there>1"],"source":"environment","still_missing":[]}`}
		if diff := cmp.Diff(want, first.take()); diff != "" {
			t.Errorf("events of the second installation (-want +got):\n%s", diff)
		}

		// Another sandbox, with the same settings, and everything closed.
		second := newSandbox(t, tools, there)
		shut, forbidden := closed(t)
		i = second.installer(slices.Concat(env, shut)...)
		i.env = append(i.env, env...)
		found, err = i.check(t.Context(), requirements)
		if err != nil {
			t.Fatal(err)
		}
		second.take()
		lockKey(t, kept, found.Key) // the settings of where it is closed are others
		done, err = i.install(t.Context(), installOptions{Requirements: requirements, Wheels: kept})
		if err != nil {
			t.Fatalf("%v\n%s", err, second.logged())
		}
		checkInstalled(t, second, done, "wheels")
		if got := eval(t, done.Interpreter, "orders, customers, speed, there", "orders.VERSION, customers.VERSION, speed.VERSION, there.VERSION"); got != "1.0 3.1 0.1 1.5" {
			t.Errorf("versions in the second environment: %s", got)
		}
		if got := forbidden.requests(); len(got) > 0 {
			t.Errorf("somebody was asked: %s", got)
		}
		if names := second.leftover(); len(names) != 1 {
			t.Errorf("beside the environment: %s", names)
		}
	})
}

// lockKey changes the key of a lock.
func lockKey(t *testing.T, dir, key string) {
	t.Helper()
	path := filepath.Join(dir, lockName)
	lock, err := readLock(path)
	if err != nil {
		t.Fatal(err)
	}
	lock.Key = key
	b, err := json.Marshal(lock)
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, path, b)
}

// checkInstalled checks the events of the installation of TestInstallLife.
func checkInstalled(t *testing.T, s *sandbox, done *installed, source string) {
	t.Helper()
	got := s.take()
	sorted := slices.Sorted(slices.Values(done.Installed))
	if diff := cmp.Diff([]string{"customers==3.1", "orders==1.0", "speed==0.1"}, sorted); diff != "" {
		t.Errorf("installed (-want +got):\n%s", diff)
	}
	var want []string
	for _, p := range done.Installed {
		want = append(want, fmt.Sprintf(`dependency_installed {"package":%q}`, p))
	}
	order, _ := json.Marshal(done.Installed)
	want = append(want, `dependency_install_complete {"installed":`+string(order)+
		`,"log_path":"artifacts/_system/pip_install.log","now_present":["orders<2,>=1","orders[fast]<2,>=1","there>1"],"source":"`+source+`","still_missing":[]}`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events of the installation (-want +got):\n%s", diff)
	}
}

// TestInstallOverBase requires what does not go with the versions of the base.
func TestInstallOverBase(t *testing.T) {
	eachTool(t, func(t *testing.T, tools string) {
		s := newSandbox(t, tools, testPackage{name: "library", version: "1.0"}, testPackage{name: "reader", version: "1.0", requires: []string{"library"}})
		i := s.installer(s.links(
			testPackage{name: "writer", version: "1.0", requires: []string{"library>=2", "reader"}}, testPackage{name: "library", version: "2.0"},
			testPackage{name: "reader", version: "1.0"}, testPackage{name: "reader", version: "1.1"},
		)...)
		kept := filepath.Join(s.dir, "kept")
		done, err := i.install(t.Context(), installOptions{Requirements: []string{"writer", "library"}, Collect: kept})
		if err != nil {
			t.Fatalf("%v\n%s", err, s.logged())
		}
		if got := eval(t, done.Interpreter, "writer, library", "library.VERSION"); got != "2.0" {
			t.Errorf("the environment has version %s of the library", got)
		}
		if got := eval(t, s.python, "library", "library.VERSION"); got != "1.0" {
			t.Errorf("the base has version %s of the library now", got)
		}
	})
}

// TestInstallBuilds has a package that must be built: the next sandbox gets a wheel.
func TestInstallBuilds(t *testing.T) {
	eachTool(t, func(t *testing.T, tools string) {
		p := testPackage{name: "made-here", version: "1.0"}
		index := newTestIndex(t, map[string][]byte{"made_here-1.0.tar.gz": p.source(t, p.backend("print('\\x00\\xff noise')"))}, nil)
		s := newSandbox(t, tools)
		i := s.installer("PIP_INDEX_URL="+index.URL+"/simple/", "UV_DEFAULT_INDEX="+index.URL+"/simple/")
		kept := filepath.Join(s.dir, "kept")
		done, err := i.install(t.Context(), installOptions{Requirements: []string{"made.here"}, Collect: kept})
		if err != nil {
			t.Fatalf("%v\n%s", err, s.logged())
		}
		if len(done.Wheels) != 1 || done.Wheels[0].Name != p.file() {
			t.Errorf("wheels: %+v", done.Wheels)
		}
	})
}

// TestInstallUVAlone has no pip: nothing is kept, and the log says so.
func TestInstallUVAlone(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "uv")
	i := s.installer(s.links(testPackage{name: "orders", version: "1.0"})...)
	done, err := i.install(t.Context(), installOptions{Requirements: []string{"orders"}, Collect: filepath.Join(s.dir, "kept")})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.logged())
	}
	if len(done.Wheels) != 0 || !strings.Contains(s.logged(), "# there is no pip") || eval(t, done.Interpreter, "orders", "orders.VERSION") != "1.0" {
		t.Errorf("%+v\n%s", done, s.logged())
	}
}

// TestInstallFails has installations that fail: the error has what was said and
// what to do, and nothing is left.
func TestInstallFails(t *testing.T) {
	secret := "pa55-of-the-build"
	broken := testPackage{name: "broken", version: "1.0"}
	for _, tt := range []struct {
		name        string
		requirement string
		want        []string
	}{
		{"no such version", "orders>7", []string{"orders", "check the names and versions"}},
		{"build", "broken", []string{"the compiler says ***", "has no wheel for Python 3."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachTool(t, func(t *testing.T, tools string) {
				s := newSandbox(t, tools)
				env := s.links(testPackage{name: "orders", version: "1.0"})
				writeTestFile(t, filepath.Join(s.dir, "links", "broken-1.0.tar.gz"), broken.source(t, broken.backend("raise RuntimeError('the compiler says "+secret+"')")))
				i := s.installer(env...)
				i.redact = func(s string) string { return strings.ReplaceAll(s, secret, "***") }
				_, err := i.install(t.Context(), installOptions{Requirements: []string{tt.requirement}})
				if err == nil {
					t.Fatal("it was installed")
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error does not hold %q:\n%v", want, err)
					}
				}
				if strings.Contains(err.Error(), secret) || strings.Count(err.Error(), "\n") > quotedLines+3 {
					t.Errorf("error:\n%v", err)
				}
				if names := s.leftover(); len(names) > 0 {
					t.Errorf("left: %s", names)
				}
			})
		})
	}
}

// TestInstallStops has an installation that does not end by itself.
func TestInstallStops(t *testing.T) {
	for tools, cancelled := range map[string]bool{"pip": true, "uv": false} {
		t.Run(fmt.Sprintf("%s,cancelled=%v", tools, cancelled), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			building := make(chan struct{})
			never := testPackage{name: "never", version: "1.0"}
			var once sync.Once
			ready := newTestIndex(t, nil, func(*http.Request) { once.Do(func() { close(building) }) })
			s := newSandbox(t, tools)
			// Its child is to end, too.
			env := s.links()
			pids := filepath.Join(s.dir, "pids")
			writeTestFile(t, filepath.Join(s.dir, "links", "never-1.0.tar.gz"), never.source(t, never.backend(fmt.Sprintf(`
import signal, subprocess, urllib.request
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
with open(%q, "w") as f:
    f.write("%%d %%d" %% (os.getpid(), child.pid))
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(%q)
time.sleep(600)`, pids, ready.URL+"/asked"))))
			writeTestFile(t, pids, nil)
			i := s.installer(env...)
			o := installOptions{Requirements: []string{"never"}}
			if !cancelled {
				// The build has begun by then, or nothing has to be ended.
				o.Timeout = 3 * time.Second
			} else {
				go func() {
					select {
					case <-building:
					case <-ctx.Done():
					}
					cancel()
				}()
			}
			_, err := i.install(ctx, o)
			want := context.DeadlineExceeded
			if cancelled {
				want = context.Canceled
			}
			if !errors.Is(err, want) || !cancelled && !strings.Contains(err.Error(), "not done within 3s") {
				t.Errorf("error: %v", err)
			}
			if names := s.leftover(); len(names) > 0 {
				t.Errorf("left: %s", names)
			}
			content, err := os.ReadFile(pids)
			if err != nil {
				t.Fatal(err)
			}
			if cancelled && len(content) == 0 {
				t.Error("nothing was built")
			}
			for _, pid := range strings.Fields(string(content)) {
				if !gone(pid) {
					t.Errorf("process %s is still there", pid)
				}
			}
		})
	}
}

// gone waits until a process has ended; one that was killed takes a moment.
func gone(pid string) bool {
	for range 6000 {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// TestInstallTwice has two that want the same environment at once.
func TestInstallTwice(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "uv")
	env := s.links(testPackage{name: "orders", version: "1.0"})
	var wg sync.WaitGroup
	results := make([]*installed, 3)
	for n := range results {
		i := s.installer(env...)
		wg.Go(func() {
			var err error
			if results[n], err = i.install(t.Context(), installOptions{Requirements: []string{"orders"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	total := 0
	for _, r := range results {
		if r != nil {
			total += len(r.Installed)
		}
	}
	if total != 1 {
		t.Errorf("the package was installed %d times", total)
	}
	if got := strings.Count(s.logged(), "uv venv"); got != 1 {
		t.Errorf("%d environments were made", got)
	}
}

const (
	killedEnv    = "OSIRIS_TEST_KILLED" // what TestInstallKilled runs again
	killedPython = "OSIRIS_TEST_KILLED_PYTHON"
)

// TestInstallKilled kills a process that installs, and installs again.
func TestInstallKilled(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		i := &installer{root: filepath.Join(dir, "environments"), python: os.Getenv(killedPython)}
		_, err := i.install(t.Context(), installOptions{Requirements: []string{"never"}})
		t.Fatalf("it has ended: %v", err)
	}
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere what was started is not ended")
	}
	s := newSandbox(t, "uv")
	never := testPackage{name: "never", version: "1.0"}
	env := s.links()
	source := filepath.Join(s.dir, "links", "never-1.0.tar.gz")
	building := make(chan struct{})
	var once sync.Once
	ready := newTestIndex(t, nil, func(*http.Request) { once.Do(func() { close(building) }) })
	orphan := filepath.Join(s.dir, "pid")
	writeTestFile(t, source, never.source(t, never.backend(fmt.Sprintf(`
import urllib.request
with open(%q, "w") as f:
    f.write("%%d %%d" %% (os.getpid(), os.getppid()))
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(%q)
time.sleep(600)`, orphan, ready.URL+"/asked"))))
	defer func() { // what uv has started ends with neither
		content, err := os.ReadFile(orphan)
		if err != nil {
			t.Error(err)
		}
		for _, pid := range strings.Fields(string(content)) {
			if n, err := strconv.Atoi(pid); err != nil {
				t.Error(err)
			} else if p, err := os.FindProcess(n); err == nil {
				p.Kill() //nolint:errcheck // it may have ended
			}
		}
	}()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	i := s.installer(env...)
	cmd := exec.Command(self, "-test.run=^TestInstallKilled$")
	cmd.Env = append(slices.Clone(i.env), killedEnv+"="+s.dir, killedPython+"="+s.python)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }() //nolint:errcheck // it is killed
	select {
	case <-building:
	case <-ended:
		t.Fatal("it has ended before anything was built")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-ended
	content, err := os.ReadFile(orphan)
	if err != nil {
		t.Fatal(err)
	}
	if pids := strings.Fields(string(content)); len(pids) != 2 || !gone(pids[1]) {
		t.Errorf("of processes %s uv is still there", pids)
	}
	if names := s.leftover(); len(names) == 0 {
		t.Error("it has left nothing: was there an installation?")
	}
	found, err := i.check(t.Context(), []string{"never"})
	if err != nil || found.Environment != "" {
		t.Errorf("check: %+v, %v", found, err)
	}
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	s.links(never)
	done, err := i.install(t.Context(), installOptions{Requirements: []string{"never"}})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.logged())
	}
	if got := eval(t, done.Interpreter, "never", "never.VERSION"); got != "1.0" {
		t.Errorf("version %s", got)
	}
	if names := s.leftover(); len(names) != 1 {
		t.Errorf("beside the environment: %s", names)
	}
}

// wheelhouse makes a directory with a wheel and its lock.
func wheelhouse(t *testing.T, p testPackage, key string, change func(lock *wheelLock, dir string)) (dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, p.file())
	writeTestFile(t, path, p.wheel(t))
	w := wheel{Name: p.file()}
	var err error
	if w.Size, w.SHA256, err = hashFile(path); err != nil {
		t.Fatal(err)
	}
	lock := &wheelLock{Format: 1, Key: key, Wheels: []wheel{w}}
	change(lock, dir)
	b, err := json.Marshal(lock)
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(dir, lockName), b)
	return dir
}

// TestVerifyWheels has a wheelhouse that is not what it says.
func TestVerifyWheels(t *testing.T) {
	orders := testPackage{name: "orders", version: "1.0"}
	for _, tt := range []struct {
		name   string
		change func(lock *wheelLock, dir string)
		want   string // empty: no error
	}{
		{"as it was", func(*wheelLock, string) {}, ""},
		{"another content", func(_ *wheelLock, dir string) {
			p := orders
			p.module = "VERSION = 'evil'\n"
			writeTestFile(t, filepath.Join(dir, orders.file()), p.wheel(t))
		}, "is not what lock.json says"},
		{"a wheel is missing", func(l *wheelLock, dir string) { os.Remove(filepath.Join(dir, orders.file())) }, "is not there"},
		{"a directory", func(l *wheelLock, dir string) {
			path := filepath.Join(dir, orders.file())
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Error(err)
			}
		}, "is not there as a file"},
		{"another key", func(l *wheelLock, _ string) { l.Key = "0123" }, "another environment"},
		{"a path", func(l *wheelLock, _ string) { l.Wheels[0].Name = "../" + l.Wheels[0].Name }, "not the name of a wheel"},
		{"an option", func(l *wheelLock, _ string) { l.Wheels[0].Name = "--index-url=x-1-py3-none-any.whl" }, "not the name of a wheel"},
		{"no hash", func(l *wheelLock, _ string) { l.Wheels[0].SHA256 = "" }, "no SHA-256"},
		{"another format", func(l *wheelLock, _ string) { l.Format = 2 }, "format 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := wheelhouse(t, orders, "k", tt.change)
			paths, err := verifyWheels(t.Context(), dir, "k")
			switch {
			case tt.want == "":
				if err != nil || len(paths) != 1 || paths[0] != filepath.Join(dir, orders.file()) {
					t.Errorf("%s, %v", paths, err)
				}
			case !errors.Is(err, errWheels) || !strings.Contains(err.Error(), tt.want) || paths != nil:
				t.Errorf("%s, %v, want %q", paths, err, tt.want)
			}
		})
	}
}

// TestInstallWheelsRefused has a wheelhouse with another content, and one that
// lacks something: nothing is asked for it, and nothing is left.
func TestInstallWheelsRefused(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "pip")
	shut, forbidden := closed(t)
	i := s.installer(shut...)
	orders := testPackage{name: "orders", version: "1.0", requires: []string{"customers"}}
	found, err := i.check(t.Context(), []string{"orders", "customers"})
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*wheelLock, string){
		"is not what lock.json says": func(l *wheelLock, _ string) { l.Wheels[0].SHA256 = strings.Repeat("00", 32) },
		"still missing: customers":   func(*wheelLock, string) {},
	} {
		_, err = i.install(t.Context(), installOptions{Requirements: []string{"orders", "customers"}, Wheels: wheelhouse(t, orders, found.Key, change)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error: %v, want %q", err, want)
		}
		if names := s.leftover(); len(names) > 0 {
			t.Errorf("left: %s", names)
		}
	}
	if got := forbidden.requests(); len(got) > 0 {
		t.Errorf("somebody was asked: %s", got)
	}
}

// TestCheck compares requirements with what a Python has.
func TestCheck(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "pip", testPackage{name: "Orders.Core", version: "1.5", requires: []string{`speed>1; extra == "fast"`, `gone; extra == "slow"`, `orders-core[slow]; extra == "all"`}},
		testPackage{name: "speed", version: "2.0rc1"}, testPackage{name: "local", version: "2.1+cpu"})
	// Whatever packages print.
	site, err := packagesIn(filepath.Dir(filepath.Dir(s.python)))
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(site, "noise.pth"), []byte(`import sys; sys.stdout.write("noise {\"version\": \"9\"}\n"); sys.stderr.write("noise"); import atexit; atexit.register(lambda: sys.stdout.write("more noise"))`+"\n"))
	writeTestFile(t, filepath.Join(site, "~peed-1.0.dist-info", "METADATA"), []byte("Name: ~peed\n"))
	writeTestFile(t, filepath.Join(site, "half-1.0.dist-info", "RECORD"), nil)
	writeTestFile(t, filepath.Join(site, "old-0.9-py3.9.egg-info", "PKG-INFO"), []byte("Metadata-Version: 1.0\nName: old\nVersion: 0.9\n"))
	wants := map[string]bool{
		"orders_core": true, "Orders-Core>=1,<2": true, "orders.core==1.5": true, "orders-core>1.5": false, "orders-core ~= 1.4": true,
		"orders-core[fast]": true, "orders-core[slow]": false, "orders-core[all]": false, "orders-core[unknown]": true,
		"speed>1": true, "speed==2.0rc1": true, "speed>=2": false, "local==2.1": true, "local==2.1+cpu": true, "local===2.1+cpu": true,
		"peed": false, "half": false, "old>0.8": true, "nowhere": false, "orders-core @ https://example.com/orders_core-1.5-py3-none-any.whl": false,
	}
	all := []string{"other; python_version < '3'"}
	var present, missing []string
	for text, there := range wants {
		all = append(all, text)
		r, err := parseRequirement(text)
		if err != nil {
			t.Fatal(err)
		}
		if there {
			present = append(present, r.String())
		} else {
			missing = append(missing, r.String())
		}
	}
	slices.Sort(present)
	slices.Sort(missing)
	got, err := s.installer().check(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(present, got.Present); diff != "" {
		t.Errorf("present (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(missing, got.Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if len(got.Required) != len(wants) || got.Environment != "" {
		t.Errorf("check: %+v", got)
	}
	got, err = s.installer().check(t.Context(), present)
	if err != nil || len(got.Missing) > 0 || got.Environment != s.python {
		t.Errorf("check of what is there: %+v, %v", got, err)
	}
	if _, err := s.installer().check(t.Context(), []string{"orders; nonsense == 1"}); !errors.Is(err, errRequirement) {
		t.Errorf("a marker that nobody knows: %v", err)
	}
}

// TestCheckWithoutPackaging has a Python that cannot compare versions.
func TestCheckWithoutPackaging(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "", testPackage{name: "orders", version: "1.5"})
	got, err := s.installer().check(t.Context(), []string{"orders", "orders==1.5", "orders==1.4", "orders>1"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"orders==1.4", "orders>1"}, got.Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if !strings.Contains(s.logged(), "neither packaging nor pip") {
		t.Errorf("the log does not say so:\n%s", s.logged())
	}
}

// TestKey has what decides, and what does not.
func TestKey(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "")
	key := func(requirements []string, env ...string) string {
		t.Helper()
		found, err := s.installer(env...).check(t.Context(), requirements)
		if err != nil {
			t.Fatal(err)
		}
		return found.Key
	}
	want := key([]string{"orders>=1,<2", "customers"}, "PIP_INDEX_URL=https://me:old@index.example.com/simple/")
	for _, tt := range []struct {
		name         string
		requirements []string
		env          []string
		same         bool
	}{
		{"another order and spelling", []string{"Customers", "orders <2, >=1", "customers", "# why"}, []string{"PIP_INDEX_URL=https://me:new@index.example.com/simple/"}, true},
		{"no index any more", []string{"orders>=1,<2", "customers"}, []string{"PIP_INDEX_URL=https://index.example.com/simple/", "PIP_NO_INDEX=1"}, true},
		{"another index", []string{"orders>=1,<2", "customers"}, []string{"PIP_INDEX_URL=https://other.example.com/simple/"}, false},
		{"another version", []string{"orders>=1,<3", "customers"}, []string{"PIP_INDEX_URL=https://index.example.com/simple/"}, false},
	} {
		if got := key(tt.requirements, tt.env...); (got == want) != tt.same {
			t.Errorf("%s: same=%v", tt.name, got == want)
		}
	}
	site, err := packagesIn(filepath.Dir(filepath.Dir(s.python)))
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(site, "new-1.0.dist-info", "METADATA"), nil)
	if got := key([]string{"orders>=1,<2", "customers"}, "PIP_INDEX_URL=https://index.example.com/simple/"); got == want {
		t.Error("another base has the same key")
	}
}

// TestNoPython has no interpreter, or none that will do.
func TestNoPython(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("it takes a shell")
	}
	dir := t.TempDir()
	i := &installer{root: t.TempDir(), env: []string{"PATH=" + dir}}
	write := func(name, script string) {
		t.Helper()
		writeTestFile(t, filepath.Join(dir, name), []byte("#!/bin/sh\n"+script))
		if err := os.Chmod(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check := func(wants ...string) {
		t.Helper()
		_, err := i.check(t.Context(), []string{"orders"})
		for _, want := range append(wants, "no Python 3.9 or later", dir) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error: %v, want %q in it", err, want)
			}
		}
	}
	check("python3 is not there", "python is not there")
	write("python3", "read -r q\nm=${q#*marker\\\":\\\"}\nm=${m%%\\\"*}\nprintf '\\n%s{\"version\":\"3.8.10\",\"new\":false}\\n' \"$m\"\n")
	write("python", "echo no such luck >&2; exit 3\n")
	check("python3 is 3.8.10", "python does not run", "exit status 3", "no such luck")
	i.python = filepath.Join(dir, "mine")
	check("mine is not there")
}

// TestNoInstaller has nothing to install with.
func TestNoInstaller(t *testing.T) {
	t.Parallel()
	s := newSandbox(t, "")
	writeTestFile(t, filepath.Join(s.dir, "hide", "sitecustomize.py"), []byte("import sys\nsys.modules['ensurepip'] = None\nimport importlib.util\nreal = importlib.util.find_spec\nimportlib.util.find_spec = lambda n, *a: None if n == 'ensurepip' else real(n, *a)\n"))
	_, err := s.installer("PYTHONPATH="+filepath.Join(s.dir, "hide")).install(t.Context(), installOptions{Requirements: []string{"orders"}})
	if !errors.Is(err, errNoInstaller) {
		t.Errorf("error: %v", err)
	}
}

// TestWatchNames has packages with names that nobody should see as they are.
func TestWatchNames(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("x", 150)
	for stem, metadata := range map[string]string{
		"plain-1.0":         "Name: Pl.ain\nVersion: 1.0\n\nName: body\n",
		"escape-1.0":        "Name: \x1b[31mred\nVersion: 1\x1b[2J\n",
		"nothing-2.0":       "",
		long + "-1.0":       "Name: " + long + "\nVersion: 1.0\n",
		"unfinished-1.0":    "Name: unfinished\nVersion: 1.0\n",
		"without_version":   "",
		"no-dist-info-here": "",
	} {
		path := filepath.Join(dir, stem+".dist-info")
		writeTestFile(t, filepath.Join(path, "METADATA"), []byte(metadata))
		if stem != "unfinished-1.0" {
			writeTestFile(t, filepath.Join(path, "RECORD"), []byte("x,,\n"))
		}
	}
	w := &packageWatch{dir: dir, seen: map[string]bool{}, report: func(string, map[string]any) {}, last: time.Now()}
	w.look(false)
	w.look(false)
	want := []string{"escape==1??2J", "no==dist-info-here", "nothing==2.0", "pl-ain==1.0", "without-version==", strings.Repeat("x", 100) + "==1.0"}
	got := slices.Sorted(slices.Values(w.packages))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
}

// TestExplain has what pip and uv say about things that are hard to bring about.
func TestExplain(t *testing.T) {
	n := &installation{installer: &installer{}, base: &probe{Version: "3.11.7"}}
	for said, want := range map[string]string{
		"ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "the disk of the sandbox is full",
		"error: Failed to fetch: `https://x/simple/`\n  Caused by: dns error":                     "cannot be reached",
		"ERROR: something new": "",
	} {
		err := n.explain(&commandError{argv: []string{"/usr/bin/python3", "-m", "pip", "install", "--quiet", "x"}, tail: strings.Split(said, "\n"), err: errors.New("exit status 1")})
		if !strings.HasPrefix(err.Error(), "python3 pip install: exit status 1; it said:\n  ") || !strings.Contains(err.Error(), want) || want == "" && strings.Contains(err.Error(), "\n(") {
			t.Errorf("%s: %v", said, err)
		}
	}
}

// TestExplainInTemplate has hints that are of use where there is no run.
func TestExplainInTemplate(t *testing.T) {
	n := &installation{installer: &installer{template: true}, base: &probe{Version: "3.11.7"}}
	for said, want := range map[string]string{
		"ERROR: No matching distribution found for pandas==99.0": "(check the names and versions that the drivers require)",
		"error: Failed to fetch\n  Caused by: dns error":         "(the index cannot be reached from where templates are built",
		"ERROR: something new":                                   "exit status 1",
	} {
		failed := &commandError{argv: []string{"pip"}, tail: strings.Split(said, "\n"), seen: true, err: errors.New("exit status 1")}
		err := n.explain(failed)
		if text := err.Error(); !strings.Contains(text, want) || strings.Contains(text, "PIP_") || strings.Contains(text, said) {
			t.Errorf("%s: %v", said, err)
		}
	}
}

// TestLinesAreSaidOnce has a command that fails, whose lines are in the log.
func TestLinesAreSaidOnce(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		name     string
		template bool
		own      io.Writer // log of the command
		quoted   bool
	}{
		{"run", false, nil, true},
		{"template", true, nil, false},
		{"template, not in the log", true, io.Discard, true},
	} {
		var log bytes.Buffer
		i := &installer{template: tt.template, log: &log}
		err := i.run(t.Context(), &command{argv: []string{sh, "-c", "echo no such luck; exit 3"}, log: tt.own})
		if err == nil || strings.Contains(err.Error(), "no such luck") != tt.quoted || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("%s: %v", tt.name, err)
		}
		if has := strings.Contains(log.String(), "\nno such luck"); has != (tt.own == nil) {
			t.Errorf("%s: the log has %q", tt.name, log.String())
		}
	}
}

// TestInstallCommandFails has the command of a worker program that installs
// packages for a template ask for a version that nobody has.
func TestInstallCommandFails(t *testing.T) {
	py := os.Getenv(pythonEnvInternal)
	if py == "" {
		t.Skipf("set %s to a Python with pip", pythonEnvInternal)
	}
	for name, value := range map[string]string{"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.DevNull, "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"} {
		t.Setenv(name, value)
	}
	drivers := worker.NewRegistry()
	Register(drivers)
	var stdout, stderr bytes.Buffer
	code := worker.Program{Drivers: drivers}.Run(t.Context(), []string{"install", "-cache", t.TempDir(), "-python", py, "-requirements", `["pandas==99.0"]`}, strings.NewReader(""), &stdout, &stderr)
	if code != 1 {
		t.Errorf("code %d", code)
	}
	out := stdout.String() // uv's words, or pip's
	if !strings.Contains(out, "no version of pandas==99.0") && !strings.Contains(out, "found for pandas==99.0") || strings.Contains(out, "conflict") {
		t.Errorf("stdout: %s", out)
	}
	if out := stderr.String(); !strings.Contains(out, "check the names and versions") || strings.Contains(out, "PIP_INDEX_URL") || strings.Contains(out, "it said") {
		t.Errorf("stderr: %s", out)
	}
	t.Logf("stdout:\n%s\nstderr:\n%s", &stdout, &stderr)
}

// TestLastLines keeps what the end of a long output says.
func TestLastLines(t *testing.T) {
	l := &lastLines{}
	fmt.Fprintf(l, "first\n%s\n", strings.Repeat("y", 10000))
	for n := range 19 {
		fmt.Fprintf(l, "li")
		fmt.Fprintf(l, "ne %d\r\n\n", n)
	}
	fmt.Fprintf(l, "the\x1b e\xffnd")
	got := l.lines()
	if len(got) != quotedLines || got[0] != "line 0" || got[19] != "the e?nd" {
		t.Errorf("lines: %q", got)
	}
	fmt.Fprintf(l, "%s\n", strings.Repeat("z", 10000))
	if got := l.lines(); len(got[19]) != quotedLine {
		t.Errorf("a line of %d bytes", len(got[19]))
	}
}

// TestInstallReal installs what drivers are made for, from the real index.
func TestInstallReal(t *testing.T) {
	if os.Getenv("OSIRIS_STRESS") == "" {
		t.Skip("set OSIRIS_STRESS to install pandas, pyarrow and duckdb from the real index")
	}
	for _, tools := range []string{"pip", "uv and pip", "uv"} {
		t.Run(tools, func(t *testing.T) {
			s := newSandbox(t, tools)
			var env []string
			for _, pair := range os.Environ() {
				if strings.HasPrefix(pair, "PIP_") {
					env = append(env, pair)
				}
			}
			requirements := []string{"pandas", "pyarrow", "duckdb"}
			kept := filepath.Join(s.dir, "kept")
			i := s.installer(env...)
			began := time.Now()
			done, err := i.install(t.Context(), installOptions{Requirements: requirements, Collect: kept})
			if err != nil {
				t.Fatalf("%v\n%s", err, s.logged())
			}
			t.Logf("from the index: %v", time.Since(began))
			const use = "duckdb.sql('select 42 as x').df()['x'][0], pyarrow.array([1])[0]"
			if got := eval(t, done.Interpreter, "duckdb, pandas, pyarrow", use); got != "42 1" {
				t.Error(got)
			}
			if done.Wheels == nil {
				t.Fatal("no wheels were kept")
			}
			i.root = filepath.Join(s.dir, "second")
			began = time.Now()
			if done, err = i.install(t.Context(), installOptions{Requirements: requirements, Wheels: kept}); err != nil {
				t.Fatal(err)
			}
			t.Logf("from wheels: %v", time.Since(began))
			if got := eval(t, done.Interpreter, "duckdb, pandas, pyarrow", use); got != "42 1" {
				t.Error(got)
			}
		})
	}
}
