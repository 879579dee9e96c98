package remote_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// outcomes is a diagnosis as name to status.
func outcomes(d *remote.Diagnosis) map[string]remote.CheckStatus {
	out := make(map[string]remote.CheckStatus)
	for _, c := range d.Checks {
		out[c.Name] = c.Status
	}
	return out
}

func check(t *testing.T, d *remote.Diagnosis, name string) remote.Check {
	t.Helper()
	for _, c := range d.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, d)
	return remote.Check{}
}

func TestDoctor(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			server := newServer(t, kind, testDrivers())
			d, err := remote.Doctor(t.Context(), connect(remote.Config{Drivers: testDrivers()}, server))
			if err != nil {
				t.Fatal(err)
			}
			if !d.Healthy() || len(d.Checks) != 9 {
				t.Errorf("%+v", d.Checks)
			}
			contains(t, check(t, d, "daemon").Detail, "envd ")
			contains(t, check(t, d, "size").Detail, "2 CPUs")
		})
	}
}

// The doctor names what is wrong and what to do, and leaves no sandbox.
func TestDoctorFinds(t *testing.T) {
	t.Setenv("E2B_API_KEY", "")
	const skipped = remote.CheckSkipped
	for _, test := range []struct {
		name   string
		change func(c *remote.Config)
		opts   []mock.ServerOption
		failed string // the check
		fix    string // part of what to do
		detail string
	}{
		{"no key", func(c *remote.Config) { c.APIKey = "" }, nil, "API key", "E2B_API_KEY", "Config.APIKey"},
		{"wrong key", func(c *remote.Config) { c.APIKey = "e2b_00000000" }, nil, "API key", "check E2B_API_KEY", "401"},
		{"wrong configuration", func(c *remote.Config) { c.CPU = -1 }, nil, "configuration", "correct", "CPU is -1"},
		{"nobody there", func(c *remote.Config) { c.APIURL = "http://127.0.0.1:1" }, nil, "reachability", "network", "refused"},
		{"no template", func(c *remote.Config) { c.Template = "nowhere" }, nil, "template", "--e2b-template", "nowhere"},
		{"sandboxes elsewhere", func(c *remote.Config) { c.SandboxURL = "http://127.0.0.1:1" }, nil, "daemon", "E2B_SANDBOX_URL", "refused"},
		{"bad URL", func(c *remote.Config) { c.APIURL = "127.0.0.1" }, nil, "configuration", "correct", "Config.APIURL"},
		{"hardly any time", nil, []mock.ServerOption{mock.WithMaxTimeout(2 * time.Minute)}, "time limit", "live longer", "there is no time for a run"},
		{"other size", func(c *remote.Config) { c.CPU = 64 }, nil, "size", "another template", "the run asks for 64 CPUs"},
		{"too long", func(c *remote.Config) { c.Timeout = 2 * time.Hour }, []mock.ServerOption{mock.WithMaxTimeout(time.Hour)}, "time limit", "shorter", "set Config.Timeout to 55m0s or less"},
		{"no worker", func(c *remote.Config) { c.WorkerPath = "/nonexistent/worker" }, nil, "worker", "Config.WorkerPath", "is not a program"},
		{"quota", nil, []mock.ServerOption{mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if r.Method == http.MethodPost && r.Path == "/sandboxes" {
				return &mock.HTTPFault{Status: 429, Header: http.Header{"Content-Type": {"application/json"}}, Body: `{"code":429,"message":"too many"}`}
			}
			return nil
		})}, "template", "end sandboxes", "E2B quota exceeded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := newServer(t, "served", testDrivers(), test.opts...)
			cfg := connect(remote.Config{Drivers: testDrivers()}, server)
			if test.change != nil {
				test.change(&cfg)
			}
			d, err := remote.Doctor(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			c := check(t, d, test.failed)
			if d.Healthy() || c.Status != remote.CheckFailed || !strings.Contains(c.Fix, test.fix) || !strings.Contains(c.Detail, test.detail) {
				t.Errorf("%+v", d.Checks)
			}
			if test.failed == "configuration" && outcomes(d)["worker"] != skipped {
				t.Errorf("what comes after is not skipped: %+v", d.Checks)
			}
		})
	}
}

func TestDoctorCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Plane == mock.Edge {
			cancel()
		}
		return nil
	}))
	_, err := remote.Doctor(ctx, connect(remote.Config{Drivers: testDrivers()}, server))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// Artifacts that are wanted elsewhere are copied there.
func TestOutputs(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			to := filepath.Join(t.TempDir(), "deep", "n.txt")
			ec.Outputs = map[string]string{"d/out/n.txt": to}
			_, files, err := remote.Run(t.Context(), a, join(), ec)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "d", "out", "n.txt"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" || len(want) == 0 {
				t.Errorf("-artifact +output:\n%s", diff)
			}
			for _, f := range files.Artifacts {
				if (f.Output == to) != (f.Path == "d/out/n.txt") {
					t.Errorf("artifact %+v", f)
				}
			}
		})
	}
}

func TestOutputMissing(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	ec := newContext(t, "s")
	ec.Outputs = map[string]string{"d/nothing.txt": filepath.Join(t.TempDir(), "n.txt")}
	result, _, err := remote.Run(t.Context(), a, join(), ec)
	if !errors.Is(err, remote.ErrCollect) || result.Success {
		t.Fatalf("got %v, %+v", err, result)
	}
	contains(t, err.Error(), `the run left no artifact "d/nothing.txt"`, `it left "`, `"d/out/n.txt"`)

	for name, outputs := range map[string]map[string]string{
		"leaves": {"../x": "y"}, "absolute": {"/x": "y"}, "nowhere": {"x": ""}, "itself": {".": "y"},
		"no step": {"zz/x.csv": "y"}, "no file": {"d": "y"}, "a directory": {"d/x": t.TempDir()},
		"twice": {"d/x": "y", "a/x": "./y"},
	} {
		ec := newContext(t, "t")
		ec.Outputs = outputs
		if _, err := a.Prepare(t.Context(), join(), ec); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

// OSIRIS_RPC_DEBUG puts the frames into the log, without what is secret.
func TestTrace(t *testing.T) {
	t.Setenv("OSIRIS_RPC_DEBUG", "true")
	a, _ := newAdapter(t, "proxy", remote.Config{Env: map[string]string{
		"REMOTE_TEST_OTHER": "hunt", // the beginning of the other, which must be hidden whole
		"REMOTE_TEST_VALUE": `hunter2 "quoted"`,
	}}, nil)
	ec := newContext(t, "s")
	m := &remote.Manifest{Steps: []remote.Step{{ID: "env", Driver: "test.env", Config: map[string]any{"password": "${SECRET}", "path": "in.csv"}}}}
	if _, _, err := remote.Run(t.Context(), a, m, ec); err != nil {
		t.Fatal(err)
	}
	log := sessionLog(t, ec)
	contains(t, log, "rpc to worker: request at 0", "rpc from worker: response", "execute_step", "(sealed)", "rpc from worker: close")
	if strings.Contains(log, "er2") || strings.Contains(log, "quoted") {
		t.Errorf("the log shows a value:\n%s", log)
	}
}

// Nothing that is printed shows the key or the value of a variable.
func TestConfigPrintsNoSecret(t *testing.T) {
	cfg := remote.Config{Drivers: testDrivers(), APIKey: "e2b_5ec7e7", Env: map[string]string{"NAME": "5ec7e7"}, CPU: 2}
	proxy, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	local, err := remote.NewLocalAdapter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	for _, v := range []any{cfg, &cfg, proxy, local} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(format, v); strings.Contains(text, "5ec7e7") {
				t.Errorf("%s of %T shows a secret: %s", format, v, text)
			}
		}
	}
	contains(t, cfg.String(), "cpu:2", "env:NAME")

	// Handlers of package slog print what encoding/json makes of a value.
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("configurations", "remote", cfg, "e2b", e2b.Config{APIKey: "e2b_5ec7e7", Retries: 3})
	if strings.Contains(log.String(), "5ec7e7") {
		t.Errorf("the log shows a secret: %s", &log)
	}
	contains(t, log.String(), `"cpu":2`, `"Retries":3`)
}

// A sandbox that is of no use is removed, also when E2B does not answer well
// for a while.
func TestUselessSandboxIsRemoved(t *testing.T) {
	t.Parallel()
	busy := &mock.HTTPFault{Status: http.StatusServiceUnavailable, Body: "try later"}
	var (
		mu    sync.Mutex
		until time.Time
	)
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		mu.Lock()
		defer mu.Unlock()
		if r.Plane != mock.ControlPlane || r.Procedure == "POST /sandboxes" {
			return nil
		}
		if until.IsZero() {
			until = time.Now().Add(3 * time.Second) // longer than a call is repeated
		}
		if time.Now().Before(until) {
			return busy
		}
		return nil
	}))
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers()}, server))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = remote.Run(t.Context(), a, join(), newContext(t, "s"))
	if err == nil {
		t.Error("the run succeeded")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if alive := server.Alive(); len(alive) > 0 {
		t.Errorf("%d sandboxes are left", len(alive))
	}
}

// Input whose connection hangs is sent over another one.
func TestStalledInput(t *testing.T) {
	t.Parallel()
	for _, procedure := range []string{"process.Process/SendInput", "process.Process/StreamInput"} {
		t.Run(procedure, func(t *testing.T) {
			zero, hits := int64(0), atomic.Int64{}
			server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
				if r.Procedure == procedure && hits.Add(1) <= 2 {
					return &mock.HTTPFault{Stall: &zero}
				}
				return nil
			}))
			a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers(), Timeout: time.Minute}, server))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if _, _, err := remote.Run(t.Context(), a, fanOut(), newContext(t, "s")); err != nil {
				t.Error(err)
			}
			if hits.Load() == 0 {
				t.Errorf("%s was not called", procedure)
			}
		})
	}
}
