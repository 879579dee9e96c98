package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// asProgram in the environment makes the test binary the program: with "main"
// as it is, with "drivers" with the drivers of the tests.
const asProgram = "RUN_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	worker.Main(testDrivers())
	switch os.Getenv(asProgram) {
	case "main":
		main()
	case "drivers":
		os.Exit(program(testDrivers()))
	}
	os.Exit(m.Run())
}

// wait is a driver that waits for its end.
type wait struct{}

func (wait) Run(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// until is a driver that waits for a file.
type until struct{}

func (until) Run(ctx context.Context, s *worker.Step) (*worker.Result, error) {
	name, _ := s.Config["file"].(string)
	for {
		if _, err := os.Stat(name); err == nil {
			return nil, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func testDrivers() *worker.Registry {
	r := worker.NewRegistry()
	csv.Register(r)
	r.Register("test.until", worker.Transform, func() worker.Driver { return until{} })
	r.Register("test.wait", worker.Transform, func() worker.Driver { return wait{} })
	return r
}

// outcome is what a user sees of a program.
type outcome struct {
	code           int
	stdout, stderr string
}

// command is the program with its arguments, to be run in testdata.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Dir = "testdata"
	// Without the user's account, and his cache directory.
	cmd.Env = append(os.Environ(), asProgram+"=main", "E2B_API_KEY=", "XDG_CACHE_HOME="+t.TempDir())
	if os.Getenv("GORACE") == "" {
		cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0") // a second at each exit otherwise
	}
	return cmd
}

func start(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func invoke(t *testing.T, args ...string) outcome {
	t.Helper()
	return start(t, command(t, args...))
}

func (o outcome) want(t *testing.T, code int, stderr ...string) {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", o.code, code, o.stdout, o.stderr)
	}
	for _, text := range stderr {
		if !strings.Contains(o.stderr, text) {
			t.Errorf("stderr lacks %q:\n%s", text, o.stderr)
		}
	}
}

// status reads a session's verdict.
func status(t *testing.T, session string) (ok bool, exitCode int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(session, "status.json"))
	if err != nil {
		t.Fatal(err)
	}
	var st struct {
		OK       *bool `json:"ok"`
		ExitCode *int  `json:"exit_code"`
	}
	if err := json.Unmarshal(b, &st); err != nil || st.OK == nil || st.ExitCode == nil {
		t.Fatalf("status.json: %v\n%s", err, b)
	}
	return *st.OK, *st.ExitCode
}

// tree reads the files below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		files[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRun(t *testing.T) {
	want, err := os.ReadFile("testdata/users_expected.csv")
	if err != nil {
		t.Fatal(err)
	}
	const manifest = "csv-copy/manifest.yaml"
	for _, tt := range []struct {
		name string
		args func(dir string) []string
	}{
		{"default", func(dir string) []string { return []string{manifest, "--session-dir", dir} }},
		{"local, flags before", func(dir string) []string { return []string{"--local", "--session-dir", dir, manifest} }},
		{"local, equals sign", func(dir string) []string { return []string{"--session-dir=" + dir, manifest, "--local"} }},
		{"embedded", func(dir string) []string { return []string{manifest, "--e2b-embedded", "--session-dir", dir} }},
		{"embedded, flags around", func(dir string) []string {
			return []string{"--timeout=1m", "--session-dir", dir, manifest, "--concurrency", "1", "--e2b-embedded"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new", "session")
			o := invoke(t, tt.args(dir)...)
			o.want(t, 0)
			if o.stderr != "" {
				t.Errorf("stderr: %s", o.stderr)
			}
			if ok, code := status(t, dir); !ok || code != 0 {
				t.Errorf("status.json says ok %t, exit code %d", ok, code)
			}
			files := tree(t, dir)
			if diff := cmp.Diff(string(want), files["artifacts/write-users/output/users.csv"]); diff != "" {
				t.Errorf("users.csv (-want +got):\n%s", diff)
			}
			for _, name := range []string{
				"manifest.yaml", "cfg/extract-users.json", "cfg/write-users.json", "events.jsonl", "metrics.jsonl",
				"osiris.log", "status.json", "artifacts/_system/run_card.json",
			} {
				if _, ok := files[name]; !ok {
					t.Errorf("the session has no %s", name)
				}
			}
			for _, text := range []string{
				"run csv-copy", "extract-users: started", "extract-users: done, 5 rows in", "write-users: done, 5 rows in",
				"succeeded: 2 of 2 steps", "session: " + dir, "400 bytes  write-users/output/users.csv",
			} {
				if !strings.Contains(o.stdout, text) {
					t.Errorf("stdout lacks %q:\n%s", text, o.stdout)
				}
			}
		})
	}
}

func TestDefaultSessionDir(t *testing.T) {
	manifest, err := filepath.Abs("testdata/csv-copy/manifest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	base, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, manifest, "--base", base)
	cmd.Dir = t.TempDir()
	start(t, cmd).want(t, 0)
	sessions, err := filepath.Glob(filepath.Join(cmd.Dir, "run_logs", "run_*", "status.json"))
	if err != nil || len(sessions) != 1 {
		t.Errorf("sessions: %q, %v", sessions, err)
	}
}

// Both ways of running leave the same artifacts.
func TestParity(t *testing.T) {
	local, embedded := t.TempDir(), t.TempDir()
	invoke(t, "csv-copy/manifest.yaml", "--session-dir", local).want(t, 0)
	invoke(t, "csv-copy/manifest.yaml", "--session-dir", embedded, "--e2b-embedded").want(t, 0)
	normal := func(dir string) map[string]string {
		files := tree(t, filepath.Join(dir, "artifacts"))
		delete(files, "_system/run_card.json") // has durations
		return files
	}
	if diff := cmp.Diff(normal(local), normal(embedded)); diff != "" {
		t.Errorf("artifacts (-local +embedded):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	drivers := []string{`"duckdb.processor"`, "filesystem.csv_extractor, filesystem.csv_writer"}
	for _, tt := range []struct {
		manifest string
		want     []string
	}{
		{"csv-join-duckdb/manifest.yaml", append(drivers, `"join-paid-orders"`)},
		{"csv-key-collision/manifest.yaml", append(drivers, `"count-both"`)},
		{"golden_manifest_legacy.yaml", []string{`"extractors.supabase@0.1"`, "compile the pipeline anew"}},
		{"pipelines_invalid/pre_oml_sample_pipeline.yaml", []string{"extract/transform/load"}},
		{"pipelines_invalid/scenario_broken.yaml", []string{`old key "type"`}},
		{"pipelines_invalid/scenario_broken_fixed.yaml", []string{`old key "type"`}},
		{"pipelines_invalid/scenario_unfixable.yaml", []string{`old key "type"`}},
		{"pipelines_invalid/scenario_valid_legacy_type_key.yaml", []string{`old key "type"`}},
		{"missing.yaml", []string{"missing.yaml"}},
		{"csv", []string{"manifest csv"}},
		{"users_expected.csv", []string{"users_expected.csv"}},
	} {
		for _, adapter := range []string{"--local", "--e2b-embedded"} {
			t.Run(tt.manifest+adapter, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "session")
				o := invoke(t, tt.manifest, adapter, "--session-dir", dir)
				o.want(t, 2, tt.want...)
				if o.stdout != "" {
					t.Errorf("stdout: %s", o.stdout)
				}
				if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a session directory was made: %v", err)
				}
			})
		}
	}
}

func TestUsage(t *testing.T) {
	const manifest = "csv-copy/manifest.yaml"
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "name a manifest"},
		{"unknown flag", []string{manifest, "--nope"}, "-nope"},
		{"unknown flag before", []string{"--nope", manifest}, "-nope"},
		{"no value", []string{manifest, "--session-dir"}, "-session-dir"},
		{"bad duration", []string{manifest, "--timeout", "soon"}, "-timeout"},
		{"bad number", []string{manifest, "--concurrency=many"}, "-concurrency"},
		{"two manifests", []string{manifest, "other.yaml"}, "other.yaml"},
		{"E2B and embedded", []string{manifest, "--e2b", "--e2b-embedded"}, "exclude each other"},
		{"two adapters", []string{manifest, "--local", "--e2b-embedded"}, "exclude each other"},
		{"attach and a manifest", []string{manifest, "--attach", "d", "--e2b"}, "--attach takes the manifest"},
		{"attach here", []string{"--attach", "d"}, "needs --e2b"},
		{"no name", []string{manifest, "--e2b-env", "=hunter2"}, "NAME=VALUE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := invoke(t, tt.args...)
			o.want(t, 2, tt.want, "usage: run MANIFEST")
			if strings.Contains(o.stderr, "hunter2") {
				t.Errorf("stderr shows a value:\n%s", o.stderr)
			}
		})
	}
	o := invoke(t, manifest, "--help")
	o.want(t, 0)
	if !strings.HasPrefix(o.stdout, "usage: run MANIFEST") {
		t.Errorf("--help prints %q", o.stdout)
	}
}

func TestInvalidConfig(t *testing.T) {
	const manifest = "csv-copy/manifest.yaml"
	invoke(t, manifest, "--timeout", "-1s").want(t, 2, "-timeout")
	invoke(t, manifest, "--concurrency", "-1").want(t, 2, "Concurrency")
	invoke(t, manifest, "--e2b-pass-env", "E2B_API_KEY").want(t, 2, "E2B_API_KEY")
	invoke(t, manifest, "--base", t.TempDir()).want(t, 2, "csv/supabase_users.csv", "--base")
}

// With the variables of a deployment the pipeline runs there.
func TestE2B(t *testing.T) {
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		t.Skip("no sandboxes of processes on this system: ", err)
	}
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "s")
	cmd := command(t, "csv-copy/manifest.yaml", "--e2b", "--e2b-timeout", "60", "--session-dir", dir)
	cmd.Env = append(cmd.Env, server.Env()...)
	start(t, cmd).want(t, 0)
	if ok, code := status(t, dir); !ok || code != 0 {
		t.Errorf("status ok %v, exit code %d", ok, code)
	}
	if n := len(server.Sandboxes()); n != 1 || len(server.Alive()) > 0 {
		t.Errorf("%d sandboxes were made, %d are left", n, len(server.Alive()))
	}
}

// Without a key nothing starts, and the way without one is named.
func TestNoAPIKey(t *testing.T) {
	cmd := command(t, "csv-copy/manifest.yaml", "--e2b", "--session-dir", filepath.Join(t.TempDir(), "s"))
	cmd.Env = append(cmd.Env, "E2B_API_KEY=")
	start(t, cmd).want(t, 2, "E2B_API_KEY", "--e2b-embedded")
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want options
	}{
		{[]string{"m"}, options{manifest: "m"}},
		{[]string{"--", "--m"}, options{manifest: "--m"}},
		{[]string{"--dry-run", "--", "-m"}, options{manifest: "-m", dryRun: true}},
		{[]string{"m", "--e2b-env", "A=1", "--e2b-env=B=x=y", "--e2b-env", "C="}, options{manifest: "m", config: remote.Config{Env: map[string]string{"A": "1", "B": "x=y", "C": ""}}}},
		{[]string{"--e2b-pass-env", "A", "m", "--e2b-pass-env=B"}, options{manifest: "m", config: remote.Config{PassEnv: []string{"A", "B"}}}},
		{[]string{"m", "--e2b", "--e2b-timeout", "90", "--e2b-cpu=2"}, options{manifest: "m", e2b: true, config: remote.Config{Timeout: 90 * time.Second, CPU: 2}}},
		{[]string{"-timeout=90s", "m", "-base", "b"}, options{manifest: "m", config: remote.Config{Timeout: 90 * time.Second}, base: "b"}},
	} {
		got, err := parse(tt.args)
		if err != nil {
			t.Errorf("parse(%q): %v", tt.args, err)
			continue
		}
		if diff := cmp.Diff(tt.want, *got, cmp.AllowUnexported(options{}), cmpopts.IgnoreFields(remote.Config{}, "OpenSandbox")); diff != "" {
			t.Errorf("parse(%q) (-want +got):\n%s", tt.args, diff)
		}
	}
}

// The values of variables are nowhere: not in what is printed, not in files.
func TestVariablesStaySecret(t *testing.T) {
	for _, adapter := range []string{"--local", "--e2b-embedded"} {
		for _, dry := range []bool{true, false} {
			dir := filepath.Join(t.TempDir(), "session")
			args := []string{"csv-copy/manifest.yaml", adapter, "--session-dir", dir, "--e2b-pass-env", "RUN_TEST_PASSED", "--e2b-env", "RUN_TEST_GIVEN=tr0ub4dor"}
			if dry {
				args = append(args, "--dry-run")
			}
			cmd := command(t, args...)
			cmd.Env = append(cmd.Env, "RUN_TEST_PASSED=correct-horse")
			o := start(t, cmd)
			o.want(t, 0)
			texts := map[string]string{"stdout": o.stdout, "stderr": o.stderr}
			if dry {
				var p remote.PreparedRun
				if err := json.Unmarshal([]byte(o.stdout), &p); err != nil {
					t.Fatalf("%v\n%s", err, o.stdout)
				}
				if want := []string{"RUN_TEST_GIVEN", "RUN_TEST_PASSED"}; !slices.Equal(p.RunParams.PassEnv, want) {
					t.Errorf("pass_env is %q, want %q", p.RunParams.PassEnv, want)
				}
				if got := p.InputFiles; !slices.Equal(got, []string{"csv/supabase_users.csv"}) {
					t.Errorf("input_files is %q", got)
				}
				if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("--dry-run made the session directory: %v", err)
				}
			} else {
				for name, text := range tree(t, dir) {
					texts[name] = text
				}
			}
			for name, text := range texts {
				for _, value := range []string{"tr0ub4dor", "correct-horse"} {
					if strings.Contains(text, value) {
						t.Errorf("%s, dry run %t: %s holds a variable's value", adapter, dry, name)
					}
				}
			}
		}
	}
}

// --dry-run says what the sandbox could reach, beside what it would be sent.
func TestNetworkShown(t *testing.T) {
	o := invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b", "--e2b-allow-host", "203.0.113.7", "--e2b-allow-host=*.example.com")
	o.want(t, 0, "network: nothing but 2 targets (limited)", "*.example.com: Config.AllowHosts", "203.0.113.7: Config.AllowHosts")
	o = invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b", "--e2b-egress", "open")
	o.want(t, 0, "network: open")
	o = invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b", "--e2b-allow-host", "http://x")
	o.want(t, 2, "Config.AllowHosts")
}

// --dry-run says how the sandbox would start, and asks E2B where there is a key.
func TestStartShown(t *testing.T) {
	o := invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b", "--e2b-image", "python:3.12", "--e2b-allow-template-build")
	o.want(t, 0, "start: from the template \"osiris-", "start: would build osiris-", `from the image "python:3.12"`, "E2B was not asked, since", "set E2B_API_KEY")
	o = invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b-embedded", "--e2b-cpu", "4")
	o.want(t, 1, "start: refused: it asks for 4 CPUs", "--e2b-allow-template-build", "it could not start")
	if o = invoke(t, "csv-copy/manifest.yaml", "--dry-run"); strings.Contains(o.stderr, "start:") {
		t.Errorf("of a run on this machine:\n%s", o.stderr)
	}

	server, err := mock.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cmd := command(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b")
	cmd.Env = append(cmd.Env, server.Env()...)
	start(t, cmd).want(t, 0, "network: ", `start: from the template "base" (ready), as it is`, "what it takes is not known yet")
	for _, r := range server.Requests() {
		if r.Method != http.MethodGet {
			t.Errorf("it has asked for %s %s", r.Method, r.Path)
		}
	}
}

func TestUnsetVariable(t *testing.T) {
	o := invoke(t, "csv-copy/manifest.yaml", "--dry-run", "--e2b-pass-env", "RUN_TEST_UNSET")
	o.want(t, 0, "RUN_TEST_UNSET is not set")
}

func TestUnwritableSessionDir(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, adapter := range []string{"--local", "--e2b-embedded"} {
		invoke(t, "csv-copy/manifest.yaml", adapter, "--session-dir", filepath.Join(file, "session")).want(t, 1, "session directory", file)
	}
}

func TestSecondRunIsRefused(t *testing.T) {
	dir := t.TempDir()
	invoke(t, "csv-copy/manifest.yaml", "--session-dir", dir).want(t, 0)
	before := tree(t, dir)
	invoke(t, "csv-copy/manifest.yaml", "--session-dir", dir).want(t, 2, dir, "use another directory")
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("the session changed (-before +after):\n%s", diff)
	}
}

// pipeline writes a manifest with one step, and returns its path.
func pipeline(t *testing.T, name, driver string, config map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cfg/step.json", config)
	write("manifest.json", map[string]any{
		"name": name, "pipeline": map[string]any{"id": name}, "meta": map[string]any{},
		"steps": []any{map[string]any{"id": "step", "driver": driver, "cfg_path": "cfg/step.json", "needs": []string{}}},
	})
	return filepath.Join(dir, "manifest.json")
}

// Names and messages may hold what a terminal takes for a command.
func TestFailureAndHostileText(t *testing.T) {
	input := filepath.Join(t.TempDir(), "in.csv")
	if err := os.WriteFile(input, []byte("a\n1\n2,\x1b[31m3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	manifest := pipeline(t, "evil \x1b]0;title\a\u202e", "filesystem.csv_extractor", map[string]any{"path": input})
	for _, adapter := range []string{"--local", "--e2b-embedded"} {
		dir := t.TempDir()
		o := invoke(t, manifest, adapter, "--session-dir", dir)
		o.want(t, 1, `step "step"`)
		if ok, code := status(t, dir); ok || code != 1 {
			t.Errorf("%s: status.json says ok %t, exit code %d", adapter, ok, code)
		}
		if strings.ContainsAny(o.stdout+o.stderr, "\x1b\a\u202e") {
			t.Errorf("%s: control characters in\n%q\n%q", adapter, o.stdout, o.stderr)
		}
		for _, text := range []string{`run evil \x1b]0;title\a\u202e`, "step: FAILED after", "FAILED: 0 of 1 step"} {
			if !strings.Contains(o.stdout, text) {
				t.Errorf("%s: stdout lacks %q:\n%s", adapter, text, o.stdout)
			}
		}
	}
}

func TestInterrupt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted here")
	}
	manifest := pipeline(t, "waits", "test.wait", map[string]any{})
	for _, adapter := range []string{"--local", "--e2b-embedded"} {
		t.Run(adapter, func(t *testing.T) {
			dir, temp := t.TempDir(), t.TempDir()
			cmd := command(t, manifest, adapter, "--session-dir", dir)
			cmd.Env = append(cmd.Env, asProgram+"=drivers", "TMPDIR="+temp)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for lines := bufio.NewScanner(stdout); lines.Scan(); {
				out.WriteString(lines.Text() + "\n")
				if strings.Contains(lines.Text(), "step: started") {
					if err := cmd.Process.Signal(os.Interrupt); err != nil {
						t.Fatal(err)
					}
				}
			}
			err = cmd.Wait()
			outcome{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}.want(t, 1, "interrupt")
			if err == nil || !strings.Contains(out.String(), "FAILED: 0 of 1 step") {
				t.Errorf("error %v, stdout:\n%s", err, out.String())
			}
			if ok, code := status(t, dir); ok || code != 1 {
				t.Errorf("status.json says ok %t, exit code %d", ok, code)
			}
			if left := tree(t, temp); len(left) > 0 {
				t.Errorf("left in the temporary directory: %v", left)
			}
		})
	}
}

// The run of a program that was killed is gone on with by another.
func TestAttach(t *testing.T) {
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		t.Skip("no sandboxes of processes on this system: ", err)
	}
	defer server.Close()
	program := func(args ...string) *exec.Cmd {
		cmd := command(t, append(args, "--e2b")...)
		cmd.Env = append(append(cmd.Env, asProgram+"=drivers"), server.Env()...)
		return cmd
	}
	dir := filepath.Join(t.TempDir(), "s")
	file := fmt.Sprintf("/tmp/go-on-%d-%d", os.Getpid(), time.Now().UnixNano())
	killed := program(pipeline(t, "waits", "test.until", map[string]any{"file": file}), "--session-dir", dir)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		b, _ := os.ReadFile(filepath.Join(dir, "events.jsonl"))
		if strings.Contains(string(b), `"step_start"`) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_ = killed.Process.Kill()
	if killed.Wait() == nil {
		t.Fatal("the program was not killed")
	}
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sb, err := client.Connect(t.Context(), server.Alive()[0].ID, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Upload(t.Context(), file, strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	start(t, program("--attach", dir)).want(t, 0)
	if ok, code := status(t, dir); !ok || code != 0 {
		t.Errorf("status ok %v, exit code %d", ok, code)
	}
	if n := len(server.Sandboxes()); n != 1 || len(server.Alive()) > 0 {
		t.Errorf("%d sandboxes were made, %d are left", n, len(server.Alive()))
	}
	start(t, program("--attach", dir)).want(t, 1, "executed already")
	start(t, program("--attach", t.TempDir())).want(t, 1, "not executed")
}

// Who stops reading what is printed, as head does, leaves no sandbox behind.
func TestNobodyReads(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no such signals here")
	}
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	dir := t.TempDir()
	cmd := command(t, pipeline(t, "waits", "test.wait", map[string]any{}), "--e2b", "--session-dir", dir)
	cmd.Env = append(append(cmd.Env, asProgram+"=drivers"), server.Env()...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ends with %v", err)
	}
	if n := len(server.Sandboxes()); n != 1 || len(server.Alive()) > 0 {
		t.Errorf("%d sandboxes were made, %d are left", n, len(server.Alive()))
	}
	if ok, code := status(t, dir); ok || code != 1 {
		t.Errorf("status.json says ok %t, exit code %d", ok, code)
	}
}

// A config with a secret in it is refused, and the secret is not repeated.
func TestInlineSecret(t *testing.T) {
	manifest := pipeline(t, "secret", "filesystem.csv_extractor", map[string]any{"path": "csv/supabase_users.csv", "password": "hunter2"})
	for _, args := range [][]string{{manifest}, {manifest, "--dry-run"}} {
		o := invoke(t, args...)
		o.want(t, 2, `"password"`, "${NAME}")
		if strings.Contains(o.stdout+o.stderr, "hunter2") {
			t.Errorf("the secret is printed:\n%s\n%s", o.stdout, o.stderr)
		}
	}
}
