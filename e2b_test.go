package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// TestE2BExecution runs a pipeline against whatever E2B_API_KEY, E2B_API_URL and
// E2B_SANDBOX_URL name.
func TestE2BExecution(t *testing.T) {
	if os.Getenv("E2B_API_KEY") == "" {
		t.Skip("E2B_API_KEY is not set; make test runs this against mock.Server")
	}
	cfg := remote.Config{Drivers: testDrivers(), Template: os.Getenv("E2B_TEST_TEMPLATE"), WorkerPath: os.Getenv("E2B_TEST_WORKER")}
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	ec := newContext(t, remote.NewSessionID(time.Now()))
	prepared, err := a.Prepare(t.Context(), compiled(t, "csv-copy")(), ec)
	if err != nil {
		t.Fatal(err)
	}
	result, err := a.Execute(t.Context(), prepared, ec)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	files, err := a.Collect(t.Context(), prepared, ec)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/osiris/expected/users.csv")
	if errors.Is(err, os.ErrNotExist) {
		want, err = os.ReadFile("examples/quickstart/expected/users.csv")
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write-users", "output", "users.csv"))
	if err != nil || string(got) != string(want) {
		t.Errorf("users.csv: %v\n%s\nwant\n%s", err, got, want)
	}
}

// Without a key nothing is started, and the error says what to set.
func TestNoAPIKey(t *testing.T) {
	t.Setenv("E2B_API_KEY", "")
	_, err := remote.NewE2BTransparentProxy(remote.Config{})
	if !errors.Is(err, remote.ErrAuthentication) || !errors.Is(err, remote.ErrInvalid) {
		t.Fatalf("got %v", err)
	}
	contains(t, err.Error(), "E2B_API_KEY", "Config.APIKey")
}

// The run's inputs may go once they are uploaded.
func TestInputsMoveAway(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			base := t.TempDir()
			if err := os.CopyFS(base, os.DirFS("testdata/osiris")); err != nil {
				t.Fatal(err)
			}
			ec := newContext(t, "s")
			ec.BasePath = base
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "sandbox_inputs_uploaded" {
					return os.RemoveAll(base)
				}
				return nil
			}
			m := compiled(t, "csv-copy")()
			// The first step waits until the files are gone.
			for i, s := range m.Steps {
				if len(s.Needs) == 0 {
					m.Steps[i].Needs = []string{"first"}
				}
			}
			m.Steps = append(m.Steps, remote.Step{ID: "first", Driver: "test.events"})
			result, _, err := remote.Run(t.Context(), a, m, ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
		})
	}
}

// E2B sets the size on the template: a run that asks for another is refused
// before anything is uploaded.
func TestSandboxSize(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  remote.Config
		want string // in the error; empty means that the run is fine
	}{
		{"what the template has", remote.Config{}, ""},
		{"the same", remote.Config{CPU: 4, MemoryGB: 8}, ""},
		{"cores", remote.Config{CPU: 2}, "the run asks for 2 CPUs"},
		{"memory", remote.Config{CPU: 4, MemoryGB: 4}, "the run asks for 4 CPUs and 4 GiB of memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			drivers := testDrivers()
			server := newServer(t, "served", drivers, mock.WithTemplates(mock.Template{ID: "big", CPU: 4, MemoryMB: 8192}))
			test.cfg.Drivers, test.cfg.Template = drivers, "big"
			a, err := remote.NewE2BTransparentProxy(connect(test.cfg, server))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := newContext(t, "s")
			_, _, err = remote.Run(t.Context(), a, join(), ec)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, remote.ErrSandboxSize) {
				t.Fatalf("got %v, want ErrSandboxSize", err)
			}
			contains(t, err.Error(), test.want, `the template "big" makes sandboxes with 4 CPUs and 8 GiB of memory`, "Config.Template")
			for _, r := range server.Requests() {
				if strings.HasPrefix(r.Path, "/files") {
					t.Errorf("%s %s was sent all the same", r.Method, r.Path)
				}
			}
		})
	}
}

// E2B shortens a sandbox's life to the account's limit without a word.
func TestAccountTimeLimit(t *testing.T) {
	drivers := testDrivers()
	server := newServer(t, "served", drivers, mock.WithMaxTimeout(time.Hour))
	for _, test := range []struct {
		timeout time.Duration
		ok      bool
	}{
		{54 * time.Minute, true},
		{56 * time.Minute, false},
		{3 * time.Hour, false},
	} {
		t.Run(test.timeout.String(), func(t *testing.T) {
			a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers, Timeout: test.timeout}, server))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			_, _, err = remote.Run(t.Context(), a, join(), newContext(t, "s"))
			switch {
			case test.ok && err != nil:
				t.Fatal(err)
			case !test.ok && !errors.Is(err, remote.ErrInvalid):
				t.Fatalf("got %v, want ErrInvalid", err)
			case !test.ok:
				contains(t, err.Error(), "the account's limit ends the sandbox 1h0m0s after its start", "set Config.Timeout to 55m0s or less")
			}
		})
	}
}

// A server whose clock is hours away changes nothing.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{-26 * time.Hour, 26 * time.Hour} {
		drivers := testDrivers()
		server := newServer(t, "served", drivers, mock.WithMaxTimeout(time.Hour), mock.WithClock(func() time.Time { return time.Now().Add(skew) }))
		a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers, Timeout: 50 * time.Minute}, server))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := remote.Run(t.Context(), a, join(), newContext(t, "s")); err != nil {
			t.Errorf("skew %s: %v", skew, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The values of variables are neither in the sandbox's environment nor in that
// of its processes, where the daemon shows them to everyone.
func TestVariablesAreNotShown(t *testing.T) {
	const secret = "correct-horse-battery"
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			drivers := testDrivers()
			server := newServer(t, kind, drivers)
			cfg := connect(remote.Config{Drivers: drivers, Env: map[string]string{"REMOTE_TEST_VALUE": secret}}, server)
			a, err := remote.NewE2BTransparentProxy(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ec := newContext(t, "s")
			looked := false
			ec.OnEvent = func(ctx context.Context, e remote.Event) error {
				if e.Name != "waiting" {
					return nil
				}
				defer cancel()
				client, err := e2b.NewClient(e2b.Config{APIKey: cfg.APIKey, APIURL: cfg.APIURL, SandboxURL: cfg.SandboxURL})
				if err != nil {
					return err
				}
				defer client.Close()
				state := server.Alive()[0]
				sb, err := client.Connect(ctx, state.ID, time.Minute)
				if err != nil {
					return err
				}
				processes, err := sb.Processes(ctx)
				if err != nil {
					return err
				}
				if len(processes) < 2 || len(state.EnvVars) > 0 {
					t.Errorf("%d processes, variables of the sandbox %q", len(processes), state.EnvVars)
				}
				for _, p := range processes {
					if len(p.Env) > 0 || strings.Contains(strings.Join(p.Args, " "), secret) {
						t.Errorf("process %+v", p)
					}
				}
				looked = true
				return nil
			}
			m := &remote.Manifest{Steps: []remote.Step{{ID: "w", Driver: "test.wait"}}}
			if _, _, err := remote.Run(ctx, a, m, ec); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if !looked {
				t.Error("nobody looked")
			}
		})
	}
}

// Cancelling at any phase leaves no sandbox, and with it no process, whatever
// the phase was about to do. The context ends while the n-th request to the
// server is on its way.
func TestCancelAtEveryRequest(t *testing.T) {
	t.Parallel()
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) { cancelAtEveryRequest(t, kind) })
	}
}

func cancelAtEveryRequest(t *testing.T, kind string) {
	drivers := testDrivers()
	run := func(t *testing.T, ctx context.Context, server *mock.Server) error {
		a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = remote.Run(ctx, a, join(), newContext(t, "s"))
		if closeErr := a.Close(); closeErr != nil {
			t.Errorf("close: %v", closeErr)
		}
		if alive := server.Alive(); len(alive) > 0 {
			t.Errorf("%d sandboxes are left", len(alive))
		}
		return err
	}
	whole := newServer(t, kind, drivers)
	if err := run(t, t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	step := 2
	switch {
	case kind == "served" && stressed():
		step = 1
	case kind != "served" && !stressed():
		step = 8 // each uploads the worker
	}
	for n := int(seed(t) % uint64(step)); n < len(whole.Requests()); n += step {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var seen atomic.Int64
			server := newServer(t, kind, drivers, mock.WithFault(func(mock.HTTPRequest) *mock.HTTPFault {
				if seen.Add(1) == int64(n+1) {
					cancel()
				}
				return nil
			}))
			if err := run(t, ctx, server); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What E2B says of a create becomes a typed error with the specification's
// text.
func TestCreateErrors(t *testing.T) {
	answer := func(status int, message string) *mock.HTTPFault {
		return &mock.HTTPFault{Status: status, Header: http.Header{"Content-Type": {"application/json"}},
			Body: fmt.Sprintf(`{"code":%d,"message":%q}`, status, message)}
	}
	for _, test := range []struct {
		name  string
		fault *mock.HTTPFault
		want  error
		text  string
	}{
		{"quota", answer(429, "concurrent sandboxes"), remote.ErrQuota, "E2B quota exceeded"},
		{"key", answer(401, "Invalid API key"), remote.ErrAuthentication, "Failed to create sandbox"},
		{"forbidden", answer(403, "team is blocked"), nil, "Failed to create sandbox"},
	} {
		t.Run(test.name, func(t *testing.T) {
			drivers := testDrivers()
			server := newServer(t, "served", drivers, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
				if r.Method == http.MethodPost && strings.HasSuffix(r.Path, "/sandboxes") {
					return test.fault
				}
				return nil
			}))
			a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := newContext(t, "s")
			result, _, err := remote.Run(t.Context(), a, join(), ec)
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			contains(t, err.Error(), test.text)
			agree(t, ec, result, err)
		})
	}
}
