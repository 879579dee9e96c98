package python

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

// pythons are the interpreters of this machine, by version: those of the
// versions that the bridge is for, and the one of the environment.
func pythons(t *testing.T) map[string]string {
	found := make(map[string]string)
	add := func(name string) {
		path, err := exec.LookPath(name)
		if err != nil {
			return
		}
		// pyenv has programs that only say that there is no such version.
		out, err := exec.Command(path, "-c", "import sys; print(sys.executable); print('%d.%d' % sys.version_info[:2])").Output()
		if path, version, ok := strings.Cut(strings.TrimSpace(string(out)), "\n"); err == nil && ok {
			found[version] = path
		}
	}
	for _, version := range []string{"3.9", "3.10", "3.11", "3.12", "3.13", "3.14"} {
		add("python" + version)
		if home, err := os.UserHomeDir(); err == nil {
			paths, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions", version+".*", "bin/python"))
			for _, p := range paths {
				add(p)
			}
		}
	}
	if p := os.Getenv(testPythonEnv); p != "" {
		add(p)
	}
	if len(found) == 0 {
		t.Skipf("set %s to a Python, or have python3.x in the path, to run the bridge with it", testPythonEnv)
	}
	return found
}

// TestBridge runs the bridge's own tests, and a few steps, with every Python
// there is. Those without pandas run what needs none.
func TestBridge(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("drivers in Python do not run on Windows")
	}
	for version, path := range pythons(t) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			out, err := exec.CommandContext(t.Context(), path, "testdata/test_bridge.py", ".").CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			p := newPool(poolOptions{dir: filepath.Join(t.TempDir(), "pool"), interpreter: interpreter{path: path, env: []string{"PYTHONDONTWRITEBYTECODE=1"}}})
			step, _ := newStep(t, "a", map[string]any{"secret": "x"})
			if _, err := p.run(t.Context(), driver("steps", "See"), step); err != nil {
				t.Error(err)
			}
			var de *worker.DriverError
			_, err = p.run(t.Context(), driver("steps", "Raise"), step)
			if !errors.As(err, &de) || !strings.Contains(de.Traceback, "steps.py") || strings.Contains(de.Traceback, "bridge.py") {
				t.Errorf("error %v", err)
			}
			if err := p.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBridgeRefuses has Pythons that are too old, and one without pandas.
func TestBridgeRefuses(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("drivers in Python do not run on Windows")
	}
	df := numbers(t, nil, 1, 1)
	defer df.Release()
	home, _ := os.UserHomeDir()
	old, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/3.[678].*/bin/python"))
	tests := map[string]string{}
	for _, path := range old {
		tests[path] = "drivers take Python 3.9 or later"
	}
	for _, path := range pythons(t) {
		if exec.Command(path, "-c", "import pandas").Run() != nil {
			tests[path] = "drivers in Python take pandas and pyarrow"
			break
		}
	}
	for path, want := range tests {
		p := newPool(poolOptions{dir: filepath.Join(t.TempDir(), "pool"), interpreter: interpreter{path: path}})
		step, _ := newStep(t, "a", nil)
		step.Inputs = map[string]*worker.DataFrame{"df": df}
		_, err := p.run(t.Context(), driver("steps", "Answer"), step)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
}
