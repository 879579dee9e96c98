package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/python"
)

func registry() *worker.Registry {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	python.Register(drivers)
	return drivers
}

// TestMain lets the test binary be its own worker, as the program is.
func TestMain(m *testing.M) {
	worker.Main(registry())
	os.Exit(m.Run())
}

// The second run finds what the first has built.
func TestTemplates(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getenv("OSIRIS_TEST_PYTHON") == "" {
		t.Skip("it installs pandas in a sandbox of Linux: set OSIRIS_TEST_PYTHON, as make test does")
	}
	pip := exec.Command("/usr/bin/env", "python3", "-c", "import pip, venv")
	pip.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := pip.CombinedOutput(); err != nil {
		t.Skipf("the system's Python cannot install packages: %v: %s", err, out)
	}
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil || !strings.HasPrefix(server.Isolation(), "isolated") {
		t.Skipf("templates take sandboxes with files of their own; these are %s; %v", server.Isolation(), err)
	}
	var out strings.Builder
	if err := templates(t.Context(), registry(), nil, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	first, second, ok := strings.Cut(out.String(), "\nsecond run:\n")
	const want = "amount,month\n15,2026-01\n7,2026-02\n"
	switch {
	case !ok || !strings.Contains(first, want) || !strings.HasSuffix(second, want):
		t.Errorf("not what it should be:\n%s", &out)
	case !strings.Contains(first, "building template osiris-") || strings.Contains(second, "building template"):
		t.Errorf("it is built by the second run, or not by the first:\n%s", &out)
	case strings.Contains(second, "installed") || !strings.Contains(second, "is made from template osiris-"):
		t.Errorf("the second run installs:\n%s", &out)
	}
}
