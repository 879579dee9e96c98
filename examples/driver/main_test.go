package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/workertest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain lets the test binary be its own worker, as the program is.
func TestMain(m *testing.M) {
	worker.Main(drivers())
	os.Exit(m.Run())
}

// The pipeline runs in a sandbox in memory, which a test has to itself.
func TestPipeline(t *testing.T) {
	sandboxes := mock.NewProvider(&mock.Options{Drivers: drivers()})
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{Drivers: drivers(), OpenSandbox: sandboxes.OpenSandbox})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { adapter.Close() })
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("a,b\n1,x\n2,y\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	ec := &remote.ExecutionContext{SessionID: "test", BasePath: dir, LogsDir: filepath.Join(dir, "session")}
	_, files, err := remote.Run(t.Context(), adapter, pipeline("in.csv"), ec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write", "count.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "rows\n2\n"; string(got) != want {
		t.Errorf("count.csv is %q, want %q", got, want)
	}
	if left := sandboxes.Alive(); len(left) > 0 {
		t.Errorf("%d sandboxes were left behind", len(left))
	}
}

// The worker as a process of its own.
func TestLocal(t *testing.T) {
	name := filepath.Join(t.TempDir(), "in.csv")
	if err := os.WriteFile(name, []byte("a\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(context.Background(), name); err != nil {
		t.Fatal(err)
	}
}

// What is asked of every driver, and what this one does.
func TestCountRows(t *testing.T) {
	newDriver := func() worker.Driver { return countRows{} }
	c := workertest.Case{Inputs: map[string]*worker.DataFrame{"df": workertest.CSV(t, "a,b\n1,x\n2,y\n")}}
	result, err := workertest.Run(t, newDriver(), c)
	if err != nil {
		t.Fatal(err)
	}
	result.Golden(t, "testdata/count_rows.txt", *update)
	workertest.CheckMemory(t, newDriver, c)
	workertest.CheckSecrets(t, newDriver, c)
}
