// Package sdktest uses a mock.Server as others do: through E2B's own packages
// for Python and JavaScript. scripts/test-setup installs them.
package sdktest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/mock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// pythonEnv names a Python that has E2B's package.
	pythonEnv = "OSIRIS_TEST_PYTHON"
	// nodeEnv names the directory that node_modules with E2B's package is in.
	nodeEnv = "OSIRIS_TEST_NODE"
	// envdEnv names the program of E2B's own daemon.
	envdEnv = "E2B_ENVD_BIN"
)

// patience is how long a program may take. Alone on a computer it takes a
// quarter of a minute.
const patience = 4 * time.Minute

// TestPython runs sdk.py, which says what is tested.
func TestPython(t *testing.T) {
	python := os.Getenv(pythonEnv)
	if python == "" {
		t.Skipf("set %s to a Python with the package e2b to test with it", pythonEnv)
	}
	find := `import importlib.util, sys; sys.exit(importlib.util.find_spec("e2b") is None)`
	if exec.Command(python, "-c", find).Run() != nil {
		t.Skipf("%s has no package e2b: run scripts/test-setup", python)
	}
	testServers(t, python, "sdk.py")
}

// TestJavaScript runs sdk.mjs, which does what sdk.py does.
func TestJavaScript(t *testing.T) {
	dir := os.Getenv(nodeEnv)
	if dir == "" {
		t.Skipf("set %s to a directory with the package e2b in node_modules to test with it", nodeEnv)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "e2b")); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s has no package e2b: run scripts/test-setup", dir)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skipf("node.js is not installed: %v", err)
	}
	testServers(t, node, "sdk.mjs")
}

// testServers runs a program against every kind of server. The program is told
// what there is beside files and simple commands.
func testServers(t *testing.T, program ...string) {
	t.Run("memory", func(t *testing.T) {
		s := newServer(t)
		run(t, s, append(program, "control,copies")...)
	})
	t.Run("processes", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("mock.WithProcesses does not work on Windows")
		}
		s := newServer(t, mock.WithProcesses())
		features := "control,shell"
		if strings.HasPrefix(s.Isolation(), "isolated") {
			features += ",copies,templates"
		}
		run(t, s, append(program, features)...)
	})
	t.Run("envd", func(t *testing.T) {
		daemon := os.Getenv(envdEnv)
		if daemon == "" {
			t.Skipf("set %s to E2B's daemon to see that the real one passes these tests too", envdEnv)
		}
		s := newServer(t, mock.WithEnvd(daemon))
		run(t, s, append(program, "control,shell,templates")...)
	})
}

func newServer(t *testing.T, options ...mock.ServerOption) *mock.Server {
	s, err := mock.NewServer(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if alive := s.Alive(); len(alive) > 0 {
			t.Errorf("the program left sandboxes behind: %v", alive)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("isolation: %s", s.Isolation())
	return s
}

// run runs a program that uses a server.
func run(t *testing.T, s *mock.Server, program ...string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), isE2B), s.Env()...)
	cmd.WaitDelay = 5 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		t.Errorf("%s: %v\n%s", program[1], err, &output)
	} else if testing.Verbose() {
		t.Logf("%s\n%s", program[1], &output)
	}
}

// isE2B reports whether a variable of the environment is one of E2B's, such as
// E2B_DEBUG, which would lead the packages elsewhere.
func isE2B(variable string) bool { return strings.HasPrefix(variable, "E2B_") }
