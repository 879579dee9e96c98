package remote

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestSuits(t *testing.T) {
	const linux = "Linux x86_64\nglibc 2.36\n"
	static := workerProgram{path: "w", platform: "linux/amd64"}
	dynamic := workerProgram{path: "w", platform: "linux/amd64", dynamic: true, glibc: version{2, 34}}
	for _, test := range []struct {
		name    string
		program workerProgram
		answer  string
		want    string // in the error; empty means that it suits
	}{
		{"static", static, linux, ""},
		{"static without glibc", static, "Linux x86_64\n", ""},
		{"other processor", static, "Linux aarch64\nglibc 2.36\n", "on linux/arm64: it is built for linux/amd64"},
		{"arm", workerProgram{platform: "linux/arm64"}, "Linux aarch64\n", ""},
		{"no Linux program", workerProgram{}, linux, "it is not a Linux program"},
		{"no Linux sandbox", workerProgram{}, "Darwin arm64\n", ""},
		{"old enough", dynamic, linux, ""},
		{"as old", dynamic, "Linux x86_64\nglibc 2.34\n", ""},
		{"too new", dynamic, "Linux x86_64\nglibc 2.31\n", "it needs glibc 2.34, the sandbox has 2.31"},
		{"other C library", dynamic, "Linux x86_64\n", "the sandbox has none that is glibc"},
		{"no answer", dynamic, "", ""},
		{"strange answer", dynamic, "sh: uname: not found\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.program.suits(test.answer)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrWorkerPlatform) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "go build") {
				t.Errorf("got %v, want %q and how to build one", err, test.want)
			}
		})
	}
}

// A program says where it runs.
func TestInspect(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command to build programs with")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\nfunc main() { println(1) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ os, arch, want string }{
		{"linux", "amd64", "linux/amd64"},
		{"linux", "arm64", "linux/arm64"},
		{"darwin", "arm64", ""},
	} {
		out := filepath.Join(dir, test.os+test.arch)
		cmd := exec.Command("go", "build", "-o", out, source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+test.os, "GOARCH="+test.arch, "GOFLAGS=")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		w, err := readProgram(t.Context(), out)
		if err != nil {
			t.Fatal(err)
		}
		if w.platform != test.want || w.dynamic || len(w.sha256) != 64 || len(w.xxh3) != 32 || w.size == 0 {
			t.Errorf("%s/%s: %+v", test.os, test.arch, w)
		}
	}
}

// The ready worker is as small as the documentation says. The limits are those
// of a quick start over a slow link.
func TestWorkerSize(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it builds the worker")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command to build the worker with")
	}
	out := filepath.Join(t.TempDir(), "osiris-worker")
	cmd := exec.Command("go", "build", "-tags", "tinygo", "-trimpath", "-ldflags=-s -w", "-o", out, "./worker/cmd/osiris-worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	w, err := readProgram(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 9<<20 + 256<<10 // of which crypto/hpke with all its curves has half a MiB
	if w.size > limit || w.mustAsk() {
		t.Errorf("the worker has %d bytes, limit is %d; %+v", w.size, limit, w)
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return
	}
	if b, err := exec.Command(out, "osiris-worker", "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(b), "osiris-worker/") {
		t.Errorf("it does not run here: %v\n%s", err, b)
	}
}

func TestIsNear(t *testing.T) {
	for url, want := range map[string]bool{
		"": false, "http://127.0.0.1:3": true, "http://localhost:3": true, "http://[::1]:3": true, "http://10.1.2.3": true,
		"https://sandbox.e2b.app": false, "https://8.8.8.8": false, "%": false,
	} {
		if got := isNear(url); got != want {
			t.Errorf("isNear(%q) = %v", url, got)
		}
	}
}

// DuckDB is lost in a program that is built without cgo.
func TestTakesC(t *testing.T) {
	for path, want := range map[string]bool{"github.com/duckdb/duckdb-go-bindings": true, "github.com/go-sql-driver/mysql": false} {
		if got := takesC(&debug.BuildInfo{Deps: []*debug.Module{{Path: path}}}); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
