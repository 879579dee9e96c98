package mock_test

import (
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// TestProcesses runs a sandbox of real processes through its life.
func TestProcesses(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no /bin/sh")
	}
	a := newAPI(t, mock.WithProcesses())
	if a.server.Isolation() == "" {
		t.Error("Isolation() is empty")
	}
	lives(t, a)
	id := a.sandbox()
	if a.server.Sandbox(id) != nil {
		t.Error("the sandbox is in memory")
	}
	r := a.do("POST", "/sandboxes/"+id+"/fork", `{"timeout":60}`)
	if r.Status != 201 || len(r.list(t)) != 1 {
		t.Errorf("fork: %+v", r)
	}
}

// lives runs commands before and after a pause.
func lives(t *testing.T, a *api) {
	t.Helper()
	sandbox := a.create(`{"templateID":"base","timeout":300,"envVars":{"MY_VAR":"x y"}}`)
	id := sandbox["sandboxID"].(string)
	got := a.run(id, "/bin/sh", "-c", `echo "$MY_VAR $E2B_SANDBOX_ID"; echo err >&2; exit 3`)
	if want := (result{"x y " + id + "\n", "err\n", 3, "exit status 3"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if r := a.edge(id, "POST", "/files?path=a", "hello"); r.Status != 200 {
		t.Fatalf("upload: %+v", r)
	}
	counter := a.startStream(id, "/bin/sh", "-c", "while :; do echo x; sleep 0.01; done")
	defer counter.Close()
	for range 5 {
		if _, err := counter.next(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.server.Pause(id); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := counter.next(); err != nil {
			break // what was under way before the reset
		}
	}
	if r := a.edge(id, "GET", "/health", ""); r.Status != 502 {
		t.Errorf("health of a paused one: %+v", r)
	}
	if r := a.do("POST", "/sandboxes/"+id+"/connect", `{"timeout":300}`); r.Status != 201 {
		t.Fatalf("connect: %+v", r)
	}
	if r := a.edge(id, "GET", "/files?path=a", ""); r.Body != "hello" {
		t.Errorf("download: %+v", r)
	}
	if got := a.run(id, "/bin/sh", "-c", "cat a"); got.Stdout != "hello" {
		t.Errorf("cat: %+v", got)
	}
	if r := a.do("GET", "/sandboxes/"+id+"/metrics", ""); r.Status != 200 || len(r.list(t)) != 1 {
		t.Errorf("metrics: %+v", r)
	}
	if r := a.do("DELETE", "/sandboxes/"+id, ""); r.Status != 204 {
		t.Errorf("kill: %+v", r)
	}
}

// TestEnvd runs E2B's own daemon, where there is one.
func TestEnvd(t *testing.T) {
	binary := os.Getenv("E2B_ENVD_BIN")
	if binary == "" {
		t.Skip("E2B_ENVD_BIN does not name a daemon")
	}
	a := newAPI(t, mock.WithEnvd(binary))
	lives(t, a)
	id := a.create(`{"templateID":"base","timeout":300,"secure":true}`)["sandboxID"].(string)
	for path, want := range map[string]int{"/health": 204, "/metrics": 401, "/init": 404} {
		if r := a.edge(id, "GET", path, ""); r.Status != want {
			t.Errorf("%s: %+v, want %d", path, r, want)
		}
	}
	for path, body := range map[string]string{"snapshots": "{}", "fork": "", "pause": `{"memory":false}`} {
		if r := a.do("POST", "/sandboxes/"+id+"/"+path, body); r.Status != 501 {
			t.Errorf("%s: %+v, want 501", path, r)
		}
	}
	if r := a.edge(id, "GET", "/health", ""); r.Status != 204 {
		t.Errorf("after a pause that failed: %+v", r)
	}
}

// TestSharedDaemon has two sandboxes of one daemon.
func TestSharedDaemon(t *testing.T) {
	sandbox := mock.NewSandbox(waiting)
	daemon := envd.New(mock.MachineOf(sandbox), envd.Options{Env: map[string]string{"A": "b"}})
	server := httptest.NewServer(daemon)
	t.Cleanup(func() { kill(t, sandbox) })
	t.Cleanup(server.Close)
	t.Cleanup(daemon.Close)
	a := newAPI(t, mock.WithEnvd(server.URL))
	if got := a.server.Isolation(); !strings.HasPrefix(got, "none") {
		t.Errorf("Isolation() = %q", got)
	}
	first, second := a.sandbox(), a.sandbox()
	a.edge(first, "POST", "/files?path=a", "hello")
	if r := a.edge(second, "GET", "/files?path=a", ""); r.Body != "hello" {
		t.Errorf("%+v", r)
	}
	s := a.startStream(first, waitPath, "x")
	defer s.Close()
	if _, err := s.next(); err != nil {
		t.Fatal(err)
	}
	a.server.Kill(first)
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := s.next(); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the stream goes on")
		}
	}
	if r := a.edge(second, "GET", "/health", ""); r.Status != 204 {
		t.Errorf("%+v", r)
	}
	server.Close()
	if r := a.edge(second, "GET", "/health", ""); r.Status != 502 || !strings.Contains(r.Body, `"port":49983`) {
		t.Errorf("of a daemon that is gone: %+v", r)
	}
}
