package machine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// startEnvd starts a daemon and checks, when the test is over, that nothing of
// it is left.
func startEnvd(t *testing.T, binary string) *machine.Envd {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := machine.StartEnvd(ctx, machine.EnvdOptions{Binary: binary, Dir: dir})
	if errors.Is(err, machine.ErrNotPermitted) {
		checkGone(t, dir)
		t.Skip("not here: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		checkGone(t, dir)
	})
	return e
}

func buildDaemon(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "daemon")
	build := exec.Command("go", "build", "-o", binary, "./testdata/daemon")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("a daemon cannot be built here: %v\n%s", err, out)
	}
	return binary
}

func TestEnvd(t *testing.T) {
	binary := buildDaemon(t)
	var daemons sync.WaitGroup
	for _, token := range []string{"one", "two"} { // at the same port
		e := startEnvd(t, binary)
		if err := e.Init(t.Context(), token, map[string]string{"A": "1"}, "user", ""); err != nil {
			t.Fatal(err)
		}
		if err := e.Init(t.Context(), "other", nil, "", ""); err == nil {
			t.Error("a second token was taken")
		}
		daemons.Go(func() {
			for range 20 {
				if got, want := get(t, e, "/look"), token+" 1 0 <nil>"; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
	daemons.Wait()
}

func get(t *testing.T, e *machine.Envd, path string) string {
	t.Helper()
	transport := e.Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	resp, err := client.Get("http://any.host" + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func TestEnvdFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := machine.StartEnvd(t.Context(), machine.EnvdOptions{Binary: dir + "/missing", Dir: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such luck >&2; exit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := machine.StartEnvd(t.Context(), machine.EnvdOptions{Binary: script, Dir: dir})
	if errors.Is(err, machine.ErrNotPermitted) {
		if os.Geteuid() == 0 {
			t.Skip("not here: ", err)
		}
		checkGone(t, dir)
		return
	}
	if err == nil || !strings.Contains(err.Error(), "exit code 9: no such luck") {
		t.Error(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := machine.StartEnvd(ctx, machine.EnvdOptions{Binary: script, Dir: dir}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	checkGone(t, dir)
}

// E2B's own, where there is one.
func TestRealEnvd(t *testing.T) {
	binary := os.Getenv("ENVD_BINARY")
	if binary == "" {
		t.Skip("ENVD_BINARY does not name E2B's daemon")
	}
	e := startEnvd(t, binary)
	if err := e.Init(t.Context(), "token", map[string]string{"GREETING": "hello"}, "user", ""); err != nil {
		t.Fatal(err)
	}
	transport := e.Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	call := func(method, path, contentType, body string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://envd"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("X-Access-Token", "token")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(text), err)
	}
	if got := call("POST", "/files?path=a/file", "application/octet-stream", "text"); !strings.HasPrefix(got, "200 ") {
		t.Error(got)
	}
	if got := call("POST", "/filesystem.Filesystem/Stat", "application/json", `{"path":"a/file"}`); !strings.Contains(got, `"owner":"user"`) {
		t.Error(got)
	}
	script := `{"process":{"cmd":"/bin/bash","args":["-l","-c","id -un; cat ~/a/file; echo $GREETING >~/out; exit 3"]},"stdin":false}`
	frame := string([]byte{0, 0, 0, 0, byte(len(script))}) + script
	if got := call("POST", "/process.Process/Start", "application/connect+json", frame); !strings.Contains(got, `"exitCode":3`) {
		t.Errorf("%q", got)
	}
	f, err := e.Machine().Open("/home/user/out")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(f); got != "hello\n" {
		t.Errorf("got %q", got)
	}
}
