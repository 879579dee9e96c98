package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
)

// TestMain lets the test binary be its own worker, as the program is.
func TestMain(m *testing.M) {
	worker.Main(drivers())
	os.Exit(m.Run())
}

func TestPipeline(t *testing.T) {
	interpreter := os.Getenv("OSIRIS_TEST_PYTHON")
	if interpreter == "" {
		t.Skip("set OSIRIS_TEST_PYTHON to a Python with pandas and pyarrow, as make test does")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("a,b\n1,x\n2,y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Abs("drivers")
	if err != nil {
		t.Fatal(err)
	}
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers(), Python: interpreter})
	if err != nil {
		t.Fatal(err)
	}
	defer adapter.Close()
	ec := &remote.ExecutionContext{SessionID: "test", BasePath: dir, LogsDir: filepath.Join(dir, "session")}
	_, files, err := remote.Run(t.Context(), adapter, pipeline("in.csv", sources), ec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write", "count.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "rows,table\n2,df_read\n"; string(got) != want {
		t.Errorf("count.csv is %q, want %q", got, want)
	}
}
