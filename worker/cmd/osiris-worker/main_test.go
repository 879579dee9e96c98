package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// asProgram in the environment makes the test binary the program.
const asProgram = "WORKER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || len(os.Args) > 1 && os.Args[1] == worker.Arg {
		main()
	}
	os.Exit(m.Run())
}

func TestByHand(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("ended with %v, want exit code 2", err)
	}
	for _, text := range []string{"WorkerPath", csv.ExtractorName, csv.WriterName} {
		if !strings.Contains(string(out), text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
}

// A host without drivers of its own runs a pipeline with this worker.
func TestAsWorker(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	adapter, err := remote.NewLocalAdapter(remote.Config{WorkerPath: exe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := adapter.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("b,a\n1,true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(session string, steps ...remote.Step) (*remote.CollectedArtifacts, error) {
		ec := &remote.ExecutionContext{SessionID: session, BasePath: dir, LogsDir: filepath.Join(dir, session)}
		_, files, err := remote.Run(t.Context(), adapter, &remote.Manifest{Name: session, Steps: steps}, ec)
		return files, err
	}
	files, err := run("good",
		remote.Step{ID: "r", Driver: csv.ExtractorName, Config: map[string]any{"path": "in.csv"}},
		remote.Step{ID: "w", Driver: csv.WriterName, Needs: []string{"r"}, Config: map[string]any{"path": "out.csv"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "w", "out.csv"))
	if want := "a,b\nTrue,1\n"; err != nil || string(got) != want {
		t.Errorf("out.csv is %q, want %q (%v)", got, want, err)
	}
	_, err = run("unknown", remote.Step{ID: "s", Driver: "duckdb.processor"})
	if !errors.Is(err, remote.ErrUnknownDriver) || !strings.Contains(err.Error(), csv.WriterName) {
		t.Errorf("an unknown driver: %v", err)
	}
}
