package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

// asProgram in the environment makes the test binary the program.
const asProgram = "TABLES_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || len(os.Args) > 1 && os.Args[1] == worker.Arg {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTables(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "orders.csv"), []byte("id,name\n1,a\n2,\n3,c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "orders.csv")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	if want := "id int64 3 0\nname utf8 2 1\n"; err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
}
