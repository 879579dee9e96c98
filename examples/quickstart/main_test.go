package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

// asProgram in the environment makes the test binary the program.
const asProgram = "QUICKSTART_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || len(os.Args) > 1 && os.Args[1] == worker.Arg {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func quickstartIn(t *testing.T, temp string) (stdout, stderr string, code int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+temp, "TMP="+temp, "TEMP="+temp, "XDG_CACHE_HOME="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code tells
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestQuickstart(t *testing.T) {
	temp := t.TempDir()
	stdout, stderr, code := quickstartIn(t, temp)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d\nstdout:\n%s\nstderr:\n%s", code, stdout, stderr)
	}
	for _, text := range []string{"extract-users: done, 5 rows", "succeeded: 2 of 2 steps", "byte for byte"} {
		if !strings.Contains(stdout, text) {
			t.Errorf("stdout lacks %q:\n%s", text, stdout)
		}
	}
	outputs, err := filepath.Glob(filepath.Join(temp, "osiris-quickstart-*", "session", "artifacts", "write-users", "output", "users.csv"))
	if err != nil || len(outputs) != 1 {
		t.Fatalf("outputs: %q, %v", outputs, err)
	}
	if !strings.Contains(stdout, "output: "+outputs[0]+"\n") {
		t.Errorf("stdout does not name %s:\n%s", outputs[0], stdout)
	}
	got, err := os.ReadFile(outputs[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, expected) {
		t.Errorf("users.csv is\n%s\nwant\n%s", got, expected)
	}
}

func TestNoTemporaryDirectory(t *testing.T) {
	stdout, stderr, code := quickstartIn(t, filepath.Join(t.TempDir(), "missing"))
	if code != 1 || !strings.HasPrefix(stderr, "quickstart: ") {
		t.Fatalf("exit code %d\nstdout:\n%s\nstderr:\n%s", code, stdout, stderr)
	}
}
