package remote_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// adapter is what every adapter of the library can do.
type adapter interface {
	remote.ExecutionAdapter
	Close() error
}

// kinds are the adapters that every behaviour must be the same on: "proxy" has
// sandboxes in memory, "served" the same behind E2B's protocol, "embedded"
// sandboxes of real processes behind it, and "envd" E2B's own daemon.
var kinds = append([]string{"in process", "local", "proxy"}, servedKinds...)

var servedKinds = func() []string {
	kinds := []string{"served"}
	if runtime.GOOS != "windows" {
		kinds = append(kinds, "embedded")
	}
	if os.Getenv("E2B_ENVD_BIN") != "" {
		kinds = append(kinds, "envd")
	}
	return kinds
}()

// newServer returns a server of E2B's protocol for a kind of adapter.
func newServer(t testing.TB, kind string, drivers *worker.Registry, opts ...mock.ServerOption) *mock.Server {
	t.Helper()
	switch kind {
	case "served":
		opts = append([]mock.ServerOption{mock.WithOptions(mock.Options{Drivers: drivers})}, opts...)
	case "embedded":
		opts = append(opts, mock.WithProcesses())
	case "envd":
		opts = append(opts, mock.WithEnvd(os.Getenv("E2B_ENVD_BIN")))
	default:
		t.Fatalf("no server of kind %q", kind)
	}
	server, err := mock.NewServer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if alive := server.Alive(); len(alive) > 0 {
			t.Errorf("%d sandboxes are left", len(alive))
		}
		if err := server.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
	})
	return server
}

// connect points a configuration at a server. Sandboxes in memory get a small
// worker: theirs is the real one whatever the file holds. Nothing is kept for
// other runs, unless the configuration says where.
func connect(cfg remote.Config, server *mock.Server) remote.Config {
	cfg.APIKey, cfg.APIURL, cfg.SandboxURL = server.APIKey(), server.URL(), server.URL()
	cfg.Wheelhouse = cmp.Or(cfg.Wheelhouse, "off")
	switch {
	case cfg.WorkerPath != "":
	case strings.Contains(server.Isolation(), "in memory"):
		cfg.WorkerPath = filepath.Join("testdata", "worker.txt")
	default:
		cfg.WorkerPath = plainWorker()
	}
	return cfg
}

// plainWorker names the tests' worker program where it is not this one: built
// without the race detector, with which a process takes many times as long.
// scripts/gotest makes it. Workers in this process have the detector, and with
// OSIRIS_STRESS=1 all have it.
func plainWorker() string {
	if stressed() {
		return ""
	}
	return os.Getenv("OSIRIS_TEST_WORKER")
}

// newAdapter returns an adapter of a kind, and the provider behind a proxy
// whose sandboxes are in memory.
func newAdapter(t testing.TB, kind string, cfg remote.Config, opts *mock.Options) (adapter, *mock.Provider) {
	t.Helper()
	if cfg.Drivers == nil {
		cfg.Drivers = testDrivers()
	}
	if cfg.Connections == nil {
		cfg.Connections = testConnections()
	}
	var (
		a        adapter
		provider *mock.Provider
		err      error
	)
	switch kind {
	case "in process":
		cfg.InProcess = true
		a, err = remote.NewLocalAdapter(cfg)
	case "local":
		a, err = newLocalAdapter(cfg)
	case "proxy":
		if opts == nil {
			opts = &mock.Options{}
		}
		if opts.Drivers == nil {
			opts.Drivers = cfg.Drivers
		}
		provider = mock.NewProvider(opts)
		cfg.OpenSandbox = provider.OpenSandbox
		a, err = remote.NewE2BTransparentProxy(cfg)
	default:
		a, err = remote.NewE2BTransparentProxy(connect(cfg, newServer(t, kind, cfg.Drivers)))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close adapter: %v", err)
		}
		if provider != nil {
			if alive := provider.Alive(); len(alive) > 0 {
				t.Errorf("%d sandboxes are left", len(alive))
			}
		}
	})
	return a, provider
}

func newLocalAdapter(cfg remote.Config) (adapter, error) {
	if cfg.WorkerPath == "" {
		cfg.WorkerPath = plainWorker()
	}
	return remote.NewLocalAdapter(cfg)
}

// newContext returns a context with a session directory of its own.
func newContext(t testing.TB, id string) *remote.ExecutionContext {
	t.Helper()
	return &remote.ExecutionContext{
		SessionID: id,
		BasePath:  filepath.Join("testdata", "osiris"),
		LogsDir:   filepath.Join(t.TempDir(), id),
		StartedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// lines reads a file of JSON lines.
func lines(t testing.TB, name string) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]any
	for line := range bytes.Lines(b) {
		m := make(map[string]any)
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %v in %q", name, err, line)
		}
		out = append(out, m)
	}
	return out
}

// events returns the session's events with a name, or all of them.
func events(t testing.TB, ec *remote.ExecutionContext, name string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, e := range lines(t, filepath.Join(ec.LogsDir, "events.jsonl")) {
		if name == "" || e["event"] == name {
			out = append(out, e)
		}
	}
	return out
}

type statusFile struct {
	SandboxID      string `json:"sandbox_id"`
	ExitCode       int    `json:"exit_code"`
	StepsCompleted int    `json:"steps_completed"`
	StepsTotal     int    `json:"steps_total"`
	OK             bool   `json:"ok"`
	SessionCopied  bool   `json:"session_copied"`
	EventsExist    bool   `json:"events_jsonl_exists"`
	Reason         string `json:"reason"`
}

func readStatus(t testing.TB, ec *remote.ExecutionContext) statusFile {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(ec.LogsDir, "status.json"))
	if err != nil {
		t.Fatal(err)
	}
	var st statusFile
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// agree checks that there is one verdict, wherever it stands.
func agree(t testing.TB, ec *remote.ExecutionContext, result *remote.ExecResult, err error) {
	t.Helper()
	st := readStatus(t, ec)
	ok := err == nil
	if result.Success != ok || st.OK != ok || (result.ExitCode == 0) != ok || st.ExitCode != result.ExitCode || (st.Reason == "") != ok || (result.ErrorMessage == "") != ok {
		t.Errorf("verdicts differ: error %v, result %+v, status %+v", err, result, st)
	}
	want := "run_complete"
	if !ok {
		want = "run_error"
	}
	if n := len(events(t, ec, want)); n != 1 {
		t.Errorf("%d events %s, want 1", n, want)
	}
}

// tree returns the files below a directory with their content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if strings.HasPrefix(d.Name(), ".tmp-") && errors.Is(err, fs.ErrNotExist) {
			return nil // while the run goes on: it was moved into place meanwhile
		}
		rel, _ := filepath.Rel(dir, name)
		out[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sessionLog(t testing.TB, ec *remote.ExecutionContext) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in %q", part, text)
		}
	}
}
