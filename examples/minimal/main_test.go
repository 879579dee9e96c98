package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

// asProgram in the environment makes the test binary the program.
const asProgram = "MINIMAL_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || len(os.Args) > 1 && os.Args[1] == worker.Arg {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestMinimal(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "quickstart", "pipeline"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "manifest.yaml")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "true 3 artifacts in run_logs") {
		t.Errorf("%v\n%s", err, out)
	}
}
