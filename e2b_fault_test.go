package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// TestE2BExecutionOnServer runs TestE2BExecution as a user would, with the
// variables that name a server.
func TestE2BExecutionOnServer(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			server := newServer(t, kind, testDrivers())
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestE2BExecution$", "-test.v", "-test.count=1")
			cmd.Env = append(os.Environ(), server.Env()...)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestE2BExecution ") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// every runs f once for every request that a run makes and want chooses, with a
// server where that request meets fault: for every other one, and for those
// between them the next time, where full counts are not asked for.
func every(t *testing.T, kind string, fault *mock.HTTPFault, f func(t *testing.T, server *mock.Server, hit func() string), want func(procedure string) bool) {
	drivers := testDrivers()
	server := newServer(t, kind, drivers)
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := remote.Run(t.Context(), a, join(), newContext(t, "s")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	var wanted []int
	for n, r := range server.Requests() {
		if want(r.Procedure) {
			wanted = append(wanted, n)
		}
	}
	if len(wanted) == 0 {
		t.Fatal("the run makes none of these requests")
	}
	first, step := 0, 1
	if len(wanted) > 5 && !stressed() {
		first, step = int(seed(t)%2), 2
	}
	for i := first; i < len(wanted); i += step {
		n := wanted[i]
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			var (
				seen atomic.Int64
				met  atomic.Pointer[string]
			)
			server := newServer(t, kind, drivers, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
				if seen.Add(1) != int64(n+1) {
					return nil
				}
				met.Store(&r.Procedure)
				if !want(r.Procedure) {
					return nil
				}
				return fault
			}))
			f(t, server, func() string {
				if p := met.Load(); p != nil {
					return *p
				}
				return "nothing"
			})
		})
	}
}

// Whatever answer is lost, once, the run succeeds all the same: what may be
// repeated is, and what may not is found again.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	zero, one := int64(0), int64(1)
	jsonType := http.Header{"Content-Type": {"application/json"}}
	for _, test := range []struct {
		name  string
		fault *mock.HTTPFault
		only  string // procedure; empty means any
	}{
		{name: "lost answer", fault: &mock.HTTPFault{CutResponse: &zero}},
		{name: "cut in the answer", fault: &mock.HTTPFault{CutResponse: &one}},
		{name: "told to wait", fault: &mock.HTTPFault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}, Body: `{"code":429,"message":"slow down"}`}},
		{name: "no capacity", only: "POST /sandboxes", fault: &mock.HTTPFault{Status: http.StatusServiceUnavailable, Header: jsonType,
			Body: `{"code":503,"message":"Failed to place sandbox","error_code":"sandbox_capacity_unavailable"}`}},
		{name: "never arrived", fault: &mock.HTTPFault{CutRequest: &zero}},
	} {
		t.Run(test.name, func(t *testing.T) {
			every(t, "served", test.fault, func(t *testing.T, server *mock.Server, hit func() string) {
				drivers := testDrivers()
				a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
				if err != nil {
					t.Fatal(err)
				}
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, join(), ec)
				if err != nil {
					t.Errorf("%s: %v", hit(), err)
				}
				if result != nil {
					agree(t, ec, result, err)
				}
				if err := a.Close(); err != nil {
					t.Errorf("%s: close: %v", hit(), err)
				}
				for _, s := range join().Steps {
					if n := len(stepEvents(t, ec, "step_start", s.ID)); n > 1 {
						t.Errorf("%s: step %s was started %d times", hit(), s.ID, n)
					}
				}
			}, func(procedure string) bool {
				if test.name == "never arrived" && procedure == "POST /sandboxes" {
					return false // the client looks for the sandbox until E2B's own deadline; package e2b tests that
				}
				return test.only == "" || test.only == procedure
			})
		})
	}
}

func stepEvents(t *testing.T, ec *remote.ExecutionContext, name, step string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, e := range events(t, ec, name) {
		if e["step_id"] == step {
			out = append(out, e)
		}
	}
	return out
}

// behind starts reverse proxies in a row in front of a server.
func behind(t *testing.T, server *mock.Server, handlers ...func(http.Handler) http.Handler) string {
	t.Helper()
	target := server.URL()
	for _, wrap := range handlers {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DisableCompression: true}
		proxy := &httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host },
			FlushInterval: -1, Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
		}
		s := httptest.NewServer(wrap(proxy))
		t.Cleanup(func() {
			s.CloseClientConnections()
			s.Close()
			transport.CloseIdleConnections()
		})
		target = s.URL
	}
	return target
}

// duplex lets a proxy answer before it has read the request, as E2B's do.
func duplex(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		next.ServeHTTP(w, r)
	})
}

// collecting passes a request on when it has all of it, as some proxies do.
func collecting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		next.ServeHTTP(w, r)
	})
}

// Proxies between host and sandbox change nothing, not even one that holds
// requests back until they are complete.
func TestBehindProxies(t *testing.T) {
	t.Parallel()
	for name, handlers := range map[string][]func(http.Handler) http.Handler{
		"two in a row": {duplex, duplex},
		"collecting":   {collecting},
		"both":         {duplex, collecting},
	} {
		for _, kind := range servedKinds {
			if kind != "served" && name != "both" && !stressed() {
				continue // the worker program passes through them
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				drivers := testDrivers()
				server := newServer(t, kind, drivers)
				cfg := connect(remote.Config{Drivers: drivers}, server)
				cfg.SandboxURL = behind(t, server, handlers...)
				cfg.APIURL = cfg.SandboxURL
				a, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, fanOut(), ec)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, ec, result, err)
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				for _, s := range fanOut().Steps {
					if n := len(stepEvents(t, ec, "step_start", s.ID)); n != 1 {
						t.Errorf("step %s was started %d times", s.ID, n)
					}
				}
			})
		}
	}
}

// Many runs at once share a client and leave nothing behind.
func TestManySandboxes(t *testing.T) {
	runs := 32
	if stressed() {
		runs = 64
	}
	drivers := testDrivers()
	server := newServer(t, "served", drivers)
	leaks := goleak.IgnoreCurrent()
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers, Timeout: 5 * time.Minute}, server))
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for i := range runs {
		ec := newContext(t, fmt.Sprint("s", i))
		group.Go(func() error {
			_, _, err := remote.Run(t.Context(), a, join(), ec)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if n := len(server.Sandboxes()); n != runs {
		t.Errorf("%d sandboxes were made, want %d", n, runs)
	}
	if alive := server.Alive(); len(alive) > 0 {
		t.Errorf("%d sandboxes are left", len(alive))
	}
	server.CutConnections() // those the server keeps for a client are its own affair
	goleak.VerifyNone(t, leaks)
}

// A step sees the files of its sandbox, not those of this machine.
func TestHostFilesAreNotThere(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "host-file")
	if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := &remote.Manifest{Steps: []remote.Step{{ID: "open", Driver: "test.open", Config: map[string]any{"file": secret}}}}

	a, _ := newAdapter(t, "local", remote.Config{}, nil)
	if _, _, err := remote.Run(t.Context(), a, m, newContext(t, "s")); err != nil {
		t.Errorf("on this machine: %v", err)
	}
	server := newServer(t, "embedded", testDrivers())
	if !server.Isolated() {
		t.Skipf("the embedded sandbox does not isolate here: %s", server.Isolation())
	}
	b, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers()}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, _, err = remote.Run(t.Context(), b, m, newContext(t, "s"))
	if !errors.Is(err, remote.ErrStepFailed) {
		t.Fatalf("in the sandbox: %v, want ErrStepFailed", err)
	}
	contains(t, err.Error(), "no such file")
}

// A run that is cancelled while its step runs in a real process leaves neither
// sandbox nor process.
func TestCancelLeavesNoProcess(t *testing.T) {
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			drivers := testDrivers()
			server := newServer(t, kind, drivers)
			a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ec := newContext(t, "s")
			var once sync.Once
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "waiting" {
					once.Do(cancel)
				}
				return nil
			}
			m := &remote.Manifest{Steps: []remote.Step{{ID: "w", Driver: "test.wait"}}}
			_, _, err = remote.Run(ctx, a, m, ec)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if alive := server.Alive(); len(alive) > 0 {
				t.Errorf("%d sandboxes are left", len(alive))
			}
		})
	}
}

// Whatever E2B refuses, once, with whatever status, and without a word on when
// to come again: the run succeeds, or says that this is why it does not; it
// leaves nothing, and runs no step twice.
func TestRefusals(t *testing.T) {
	t.Parallel()
	statuses := []int{http.StatusTooManyRequests, http.StatusInsufficientStorage}
	if stressed() {
		statuses = append(statuses, http.StatusInternalServerError, http.StatusServiceUnavailable)
	}
	for _, status := range statuses {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			fault := &mock.HTTPFault{Status: status, Header: http.Header{"Content-Type": {"application/json"}},
				Body: fmt.Sprintf(`{"code":%d,"message":"refused for the test"}`, status)}
			every(t, "served", fault, func(t *testing.T, server *mock.Server, hit func() string) {
				drivers := testDrivers()
				a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers}, server))
				if err != nil {
					t.Fatal(err)
				}
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, join(), ec)
				if err != nil && !strings.Contains(err.Error(), "refused for the test") && !strings.Contains(err.Error(), fmt.Sprint(status)) {
					t.Errorf("%s: %v", hit(), err)
				}
				if result != nil && !errors.Is(err, remote.ErrCollect) {
					agree(t, ec, result, err)
				}
				if err := a.Close(); err != nil {
					t.Errorf("%s: close: %v", hit(), err)
				}
				if alive := server.Alive(); len(alive) > 0 {
					t.Errorf("%s: %d sandboxes are left", hit(), len(alive))
				}
				if result == nil {
					return
				}
				for _, s := range join().Steps {
					if n := len(stepEvents(t, ec, "step_start", s.ID)); n > 1 {
						t.Errorf("%s: step %s was started %d times", hit(), s.ID, n)
					}
				}
			}, func(procedure string) bool {
				// A create that may have been made is looked for until E2B's own
				// deadline; package e2b tests that.
				return procedure != "POST /sandboxes" || status == http.StatusTooManyRequests
			})
		})
	}
}
