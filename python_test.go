package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
)

// pythonEvents are those that a run without drivers in Python does not have.
var pythonEvents = []string{"dependency_check", "wheelhouse_used", "dependency_installed", "dependency_install_complete", "wheelhouse_filled"}

// testPython is an interpreter with pandas, pyarrow and duckdb.
func testPython(t testing.TB) string {
	t.Helper()
	python := os.Getenv("OSIRIS_TEST_PYTHON")
	if python == "" {
		t.Skip("set OSIRIS_TEST_PYTHON to a Python with pandas, pyarrow and duckdb, as make test does")
	}
	return python
}

// shop declares the drivers of testdata/python.
func shop(t testing.TB, names map[string]string) []remote.PythonDriver {
	t.Helper()
	source, err := filepath.Abs("testdata/python/shop")
	if err != nil {
		t.Fatal(err)
	}
	var drivers []remote.PythonDriver
	for name, class := range names {
		drivers = append(drivers, remote.PythonDriver{
			Name: name, Module: "shop.drivers", Class: class, Sources: []string{source},
		})
	}
	return drivers
}

// The compiled examples with several inputs give what they should, their SQL in
// Python, or all of it.
func TestPythonPipeline(t *testing.T) {
	python := testPython(t)
	paid, err := os.ReadFile("testdata/osiris/ours/csv_join_duckdb.expected_paid_orders.csv")
	if err != nil {
		t.Fatal(err)
	}
	sql := map[string]string{"duckdb.processor": "DuckDBProcessor"}
	all := map[string]string{"duckdb.processor": "DuckDBProcessor", "filesystem.csv_extractor": "CsvExtractor", "filesystem.csv_writer": "CsvWriter"}
	for _, test := range []struct {
		kind, plan string
		drivers    map[string]string
		file, want string
		rows       float64
	}{
		{"in process", "csv-join-duckdb", sql, "write-paid-orders/output/paid_orders.csv", string(paid), 4},
		{"local", "csv-join-duckdb", all, "write-paid-orders/output/paid_orders.csv", string(paid), 4},
		{"local", "csv-key-collision", sql, "write-counts/output/counts.csv", "failed_charges,users\n1,5\n", 1},
	} {
		t.Run(test.plan+"/"+test.kind, func(t *testing.T) {
			a, _ := newAdapter(t, test.kind, remote.Config{Python: python, PythonDrivers: shop(t, test.drivers)}, nil)
			ec := newContext(t, "s")
			result, files, err := remote.Run(t.Context(), a, compiled(t, test.plan)(), ec)
			agree(t, ec, result, err)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, filepath.FromSlash(test.file)))
			if err != nil {
				t.Fatal(err, files.Artifacts)
			}
			if diff := cmp.Diff(test.want, string(got)); diff != "" {
				t.Error(diff)
			}
			if last := result.StepResults[len(result.StepResults)-1]; last.Metrics["rows_written"] != test.rows {
				t.Errorf("%+v", last)
			}
		})
	}
}

func keyed() connections.Resolver {
	return connections.Static{"@shop.main": {"password": "kn4ry-shop-key"}}
}

func oneOf(driver string) *remote.Manifest {
	m := one(driver)
	m.Steps[0].Config = map[string]any{"connection": "@shop.main"}
	return m
}

// What a driver in Python says arrives as that of one in Go does, and no secret
// in it.
func TestPythonReports(t *testing.T) {
	python := testPython(t)
	a, _ := newAdapter(t, "local", remote.Config{
		Python: python, Connections: keyed(), PythonDrivers: shop(t, map[string]string{"shop.reporter": "Reporter"}),
	}, nil)
	ec := newContext(t, "s")
	result, files, err := remote.Run(t.Context(), a, oneOf("shop.reporter"), ec)
	agree(t, ec, result, err)
	if err != nil {
		t.Fatal(err)
	}
	step := result.StepResults[0]
	if step.Metrics["customers"] != 3 || step.RowsOut != 3 {
		t.Errorf("%+v", step)
	}
	opened := events(t, ec, "shop_opened")
	if len(opened) != 1 || opened[0]["step"] != step.StepID || opened[0]["step_id"] != step.StepID || opened[0]["key"] != "***" {
		t.Errorf("%v", opened)
	}
	if check := events(t, ec, "dependency_check"); len(check) != 1 {
		t.Errorf("%v", check)
	}
	if started := events(t, ec, "worker_started"); !strings.HasPrefix(fmt.Sprint(started[0]["python_version"]), "3.") {
		t.Errorf("%v", started)
	}
	log, err := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf(`msg="printed by %s" step=%[1]s stream=stdout`, step.StepID),
		fmt.Sprintf(`msg="the key is ***" step=%s stream=stderr`, step.StepID),
		fmt.Sprintf(`msg="logged by %s"`, step.StepID),
	} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	if !slices.ContainsFunc(files.Artifacts, func(a remote.Artifact) bool { return a.Path == step.StepID+"/note.txt" }) {
		t.Errorf("%+v", files.Artifacts)
	}
}

// An exception is the step's error, in the words of Python, without secrets.
func TestPythonFails(t *testing.T) {
	python := testPython(t)
	a, _ := newAdapter(t, "local", remote.Config{
		Python: python, Connections: keyed(), PythonDrivers: shop(t, map[string]string{"shop.failing": "Failing", "shop.dying": "Dying"}),
	}, nil)
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, oneOf("shop.failing"), ec)
	agree(t, ec, result, err)
	var failed *remote.StepError
	if !errors.As(err, &failed) || failed.Type != "LookupError" || !strings.Contains(err.Error(), "no customer with the key ***") || !strings.Contains(failed.Traceback, "raise LookupError") {
		t.Errorf("%v\n%+v", err, failed)
	}
	if strings.Contains(fmt.Sprintf("%+v %+v", err, failed), "kn4ry") {
		t.Error("a secret is told")
	}
	// One that ends its process fails its step, and the worker lives on.
	ec = newContext(t, "t")
	result, _, err = remote.Run(t.Context(), a, oneOf("shop.dying"), ec)
	agree(t, ec, result, err)
	if !errors.As(err, &failed) || errors.Is(err, remote.ErrWorkerCrash) || !strings.Contains(err.Error(), "3") {
		t.Errorf("%v", err)
	}
	if n := len(events(t, ec, "cleanup_complete")); n != 1 {
		t.Errorf("%d events cleanup_complete", n)
	}
}

// A cancelled run leaves no Python behind, and says so.
func TestPythonIsCancelled(t *testing.T) {
	python := testPython(t)
	a, _ := newAdapter(t, "local", remote.Config{Python: python, PythonDrivers: shop(t, map[string]string{"shop.sleeping": "Sleeping"})}, nil)
	ec := newContext(t, "s")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "asleep" {
			cancel()
		}
		return nil
	}
	result, _, err := remote.Run(ctx, a, one("shop.sleeping"), ec)
	agree(t, ec, result, err)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, stage := range result.Stopped {
		if len(stage.Left) > 0 {
			t.Errorf("%+v", stage)
		}
	}
}

// What is missing is said before any step, with what allows it.
func TestMissingDependencies(t *testing.T) {
	python := testPython(t)
	drivers := shop(t, map[string]string{"shop.reporter": "Reporter"})
	drivers[0].Requirements = []string{"Surely_Not.There >= 3", "pandas"}
	a, _ := newAdapter(t, "local", remote.Config{Python: python, Connections: keyed(), PythonDrivers: drivers}, nil)
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, oneOf("shop.reporter"), ec)
	agree(t, ec, result, err)
	var missing *remote.MissingDependenciesError
	if !errors.As(err, &missing) || !errors.Is(err, remote.ErrMissingDependencies) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"surely-not-there>=3"}, missing.Missing); diff != "" {
		t.Error(diff)
	}
	contains(t, err.Error(), "Config.InstallDeps", "in E2B a template with them", "Config.AllowTemplateBuild, allow_template_build, --e2b-allow-template-build")
	if n := len(events(t, ec, "step_start")); n != 0 {
		t.Errorf("%d steps were started", n)
	}
	// And where there is no such Python.
	a, _ = newAdapter(t, "local", remote.Config{Python: "no-such-python", Connections: keyed(), PythonDrivers: drivers}, nil)
	_, _, err = remote.Run(t.Context(), a, oneOf("shop.reporter"), newContext(t, "t"))
	if !errors.Is(err, remote.ErrMissingDependencies) || !strings.Contains(err.Error(), "no-such-python") {
		t.Error(err)
	}
}

// The first sandbox installs from the index, a second one what the host has
// kept, and asks nobody.
func TestInstallDependencies(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it takes an embedded sandbox with a Python that can make environments")
	}
	testPython(t) // it is there in make test alone
	if testing.Short() {
		t.Skip("-short: it installs pandas, pyarrow and duckdb")
	}
	// A sandbox has the system's.
	pip := exec.Command("/usr/bin/env", "python3", "-c", "import pip, venv")
	pip.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := pip.CombinedOutput(); err != nil {
		t.Skipf("the system's Python cannot install packages: %v: %s", err, out)
	}
	house := t.TempDir()
	for _, kind := range servedKinds { // embedded, and then envd, whose sandboxes have no network
		if kind != "served" { // which is in memory
			t.Run(kind, func(t *testing.T) { installDependencies(t, kind, house) })
		}
	}
}

func installDependencies(t *testing.T, kind, house string) {
	want, err := os.ReadFile("testdata/osiris/ours/csv_join_duckdb.expected_paid_orders.csv")
	if err != nil {
		t.Fatal(err)
	}
	// Input files of the extractor are those of the driver in Go whose place it takes.
	drivers := shop(t, map[string]string{"duckdb.processor": "DuckDBProcessor", "filesystem.csv_extractor": "CsvExtractor", "filesystem.csv_writer": "CsvWriter"})
	drivers[0].Requirements = []string{"duckdb"}
	server := newServer(t, kind, testDrivers())
	run := func(id string, env map[string]string) (*remote.ExecutionContext, error) {
		cfg := connect(remote.Config{
			Drivers: testDrivers(), InstallDeps: true, Wheelhouse: house, PythonDrivers: drivers, Env: env, Timeout: 10 * time.Minute,
		}, server)
		a, err := remote.NewE2BTransparentProxy(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, id)
		result, files, err := remote.Run(t.Context(), a, compiled(t, "csv-join-duckdb")(), ec)
		agree(t, ec, result, err)
		if err != nil {
			return ec, err
		}
		got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write-paid-orders", "output", "paid_orders.csv"))
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Error(diff)
		}
		if _, logErr := os.Stat(filepath.Join(files.ArtifactsDir, "_system", "pip_install.log")); logErr != nil {
			t.Errorf("%v; %+v; %+v", logErr, files.Artifacts, files.Skipped)
		}
		return ec, err
	}
	off := indexVariables()
	off["PIP_NO_INDEX"], off["UV_NO_INDEX"], off["UV_OFFLINE"] = "1", "1", "1"
	var installed []map[string]any
	if kind == "embedded" {
		ec, err := run("closed", off)
		if err == nil || !strings.Contains(err.Error(), "install dependencies") {
			t.Errorf("with the index switched off: %v", err)
		}
		if b, err := os.ReadFile(filepath.Join(ec.LogsDir, "artifacts", "_system", "pip_install.log")); !strings.Contains(string(b), "$ ") {
			t.Errorf("the log of a failed installation: %v, %q", err, b)
		}
		ec, err = run("first", indexVariables())
		if err != nil {
			t.Fatal(err)
		}
		installed = events(t, ec, "dependency_installed")
		if len(installed) < 3 || len(events(t, ec, "wheelhouse_filled")) != 1 {
			t.Errorf("%v", events(t, ec, ""))
		}
	}
	ec, err := run("second", off)
	if err != nil {
		t.Fatal(err)
	}
	if len(events(t, ec, "wheelhouse_used")) != 1 {
		t.Errorf("%v", events(t, ec, ""))
	}
	again := events(t, ec, "dependency_installed")
	if diff := cmp.Diff(packages(installed), packages(again)); installed != nil && diff != "" {
		t.Error(diff)
	}
}

func packages(events []map[string]any) []string {
	var names []string
	for _, e := range events {
		names = append(names, fmt.Sprint(e["package"]))
	}
	slices.Sort(names)
	return names
}

// indexVariables are those of this process that say where packages come from.
func indexVariables() map[string]string {
	env := make(map[string]string)
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "PIP_") || strings.HasPrefix(name, "UV_") || name == "SSL_CERT_FILE" || strings.HasSuffix(strings.ToLower(name), "_proxy") {
			env[name] = value
		}
	}
	return env
}

// A manifest declares drivers, and no key of that is overlooked.
func TestManifestDeclaresPythonDrivers(t *testing.T) {
	const text = `{pipeline: {}, meta: {}, steps: [{id: a, driver: x, needs: []}], python_drivers: [{name: x, module: m, class: C, requirements: [pandas], sources: [src]}]}`
	m, err := remote.ParseManifest([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []remote.PythonDriver{{Name: "x", Module: "m", Class: "C", Requirements: []string{"pandas"}, Sources: []string{"src"}}}
	if diff := cmp.Diff(want, m.PythonDrivers); diff != "" {
		t.Error(diff)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := remote.ParseManifest(b, nil)
	if err != nil || cmp.Diff(m, again) != "" {
		t.Errorf("%v\n%s", err, cmp.Diff(m, again))
	}
	if _, err := remote.ParseManifest([]byte(strings.Replace(text, "requirements", "requires", 1)), nil); err == nil || !strings.Contains(err.Error(), "requires") {
		t.Errorf("a mistyped key: %v", err)
	}
}

// A prepared run that was changed meanwhile sends no other directories.
func TestPreparedPythonDrivers(t *testing.T) {
	a, _ := newAdapter(t, "in process", remote.Config{PythonDrivers: shop(t, map[string]string{"shop.reporter": "Reporter"})}, nil)
	ec := newContext(t, "s")
	p, err := a.Prepare(t.Context(), one("shop.reporter"), ec)
	if err != nil {
		t.Fatal(err)
	}
	p.PythonDrivers[0].Sources = []string{"/etc"}
	if _, err := a.Execute(t.Context(), p, ec); !errors.Is(err, remote.ErrInvalid) {
		t.Error(err)
	}
	cfg := remote.Config{PythonDrivers: []remote.PythonDriver{{Name: "x", Module: "m", Class: "C", Sources: []string{"no/such/directory"}}}}
	b, _ := newAdapter(t, "in process", cfg, nil)
	if _, err := b.Prepare(t.Context(), one("x"), newContext(t, "t")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A pointer that leads nowhere would lose what it means.
func TestPythonPointers(t *testing.T) {
	for name, test := range map[string]struct {
		driver remote.PythonDriver
		kind   string
		config map[string]any
		want   string
	}{
		"output":             {remote.PythonDriver{Name: "x", OutputFiles: []string{"/pth"}}, "in process", map[string]any{"path": "a"}, `"/pth"`},
		"input":              {remote.PythonDriver{Name: "x", InputFiles: []string{"/pth"}}, "in process", map[string]any{"path": "a"}, `"/pth"`},
		"in one step of two": {remote.PythonDriver{Name: "x", OutputFiles: []string{"/more"}}, "in process", map[string]any{"more": "a"}, ""},
		"absolute, in the place of a driver in Go": {remote.PythonDriver{Name: "filesystem.csv_extractor"}, "proxy", map[string]any{"path": "$abs"}, "input_files"},
		"there, in the place of a driver in Go":    {remote.PythonDriver{Name: "filesystem.csv_extractor"}, "proxy", map[string]any{"path": "csv/supabase_users.csv"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := test.driver
			d.Module, d.Class = "m", "C"
			if test.config["path"] == "$abs" {
				full, err := filepath.Abs("testdata/osiris/csv/supabase_users.csv")
				if err != nil {
					t.Fatal(err)
				}
				test.config["path"] = full
			}
			a, _ := newAdapter(t, test.kind, remote.Config{PythonDrivers: []remote.PythonDriver{d}}, nil)
			m := &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: d.Name, Config: test.config}, {ID: "b", Driver: "test.noop"}}}
			if name == "in one step of two" {
				m.Steps = append(m.Steps, remote.Step{ID: "c", Driver: d.Name})
			}
			p, err := a.Prepare(t.Context(), m, newContext(t, "s"))
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.kind == "proxy" && !slices.Equal(p.InputFiles, []string{"csv/supabase_users.csv"}) {
				t.Errorf("%v", p.InputFiles)
			}
		})
	}
}

// A sandbox in memory has no Python, and says so.
func TestPythonTakesAMachine(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{PythonDrivers: shop(t, map[string]string{"shop.reporter": "Reporter"})}, nil)
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, one("shop.reporter"), ec)
	agree(t, ec, result, err)
	if err == nil || !strings.Contains(err.Error(), "in memory") {
		t.Error(err)
	}
}

// A worker that goes on for another one has Python, too, and installs nothing
// that is there.
func TestPythonRestart(t *testing.T) {
	python := testPython(t)
	a, _ := newAdapter(t, "local", remote.Config{
		Python: python, Connections: keyed(), Restarts: 1, PythonDrivers: shop(t, map[string]string{"shop.reporter": "Reporter"}),
	}, nil)
	reporter := func(id string, needs ...string) remote.Step {
		return remote.Step{ID: id, Driver: "shop.reporter", Needs: needs, Repeatable: true, Config: map[string]any{"connection": "@shop.main"}}
	}
	m := &remote.Manifest{Steps: []remote.Step{
		reporter("a"),
		{ID: "b", Driver: "test.crash", Needs: []string{"a"}, Repeatable: true, Config: map[string]any{"crashes": 1}},
		reporter("c", "b"),
		{ID: "d", Driver: "test.concat", Needs: []string{"a"}, Inputs: map[string]remote.InputRef{"df_more": {FromStep: "a", Key: "more"}}},
	}}
	m.Steps[3].Needs = []string{"c"}
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, m, ec)
	agree(t, ec, result, err)
	if err != nil {
		t.Fatal(err)
	}
	checks := events(t, ec, "dependency_check")
	if len(checks) != 2 || len(events(t, ec, "worker_restarted")) != 1 || len(events(t, ec, "dependency_installed")) != 0 {
		t.Errorf("%v", checks)
	}
	// Its second output has crossed the worker's death on disk.
	if d := result.StepResults[3]; d.RowsIn != 2 {
		t.Errorf("%+v", d)
	}
}
