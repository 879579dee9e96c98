package python

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// Paths that are declared are absolute ones of this machine; others stay, and
// so does the step's own config.
func TestLocalize(t *testing.T) {
	artifacts := t.TempDir()
	newStep := func(config map[string]any) *worker.Step {
		return &worker.Step{
			ID: "s", BasePath: "/base", ArtifactsDir: artifacts, Config: config,
			Files: map[string]string{"/home/me/a.csv": "/inputs/0/a.csv", "b.csv": "/base/b.csv"},
		}
	}
	d := &declaredDriver{declared: rpc.DeclaredDriver{InputFiles: []string{"/path", "/more/1/file", "/none"}, OutputFiles: []string{"/out", "/report"}}}
	step := newStep(map[string]any{
		"path": "/home/me/a.csv", "more": []any{"b.csv", map[string]any{"file": "b.csv"}},
		"out": "/data/out.csv", "report": "deep/er/report.txt", "other": "/home/me/a.csv", "n": json.Number("1"),
	})
	got, err := d.localize(step)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"path": "/inputs/0/a.csv", "more": []any{"b.csv", map[string]any{"file": "/base/b.csv"}},
		"out": filepath.Join(artifacts, "data", "out.csv"), "report": filepath.Join(artifacts, "deep", "er", "report.txt"),
		"other": "/home/me/a.csv", "n": json.Number("1"),
	}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Error(diff)
	}
	if step.Config["path"] != "/home/me/a.csv" || step.Config["more"].([]any)[1].(map[string]any)["file"] != "b.csv" {
		t.Errorf("the step's own config was changed: %v", step.Config)
	}
	if _, err := os.Stat(filepath.Join(artifacts, "deep", "er")); err != nil {
		t.Error(err)
	}
	if _, err := d.localize(newStep(map[string]any{"out": "../../etc/passwd"})); err == nil || !strings.Contains(err.Error(), "/out") {
		t.Errorf("an output outside: %v", err)
	}
}

// A check that is cancelled says that, and nothing about what there is.
func TestCheckCancelled(t *testing.T) {
	python := filepath.Join(t.TempDir(), "python3.exe") // it is not started
	if err := os.WriteFile(python, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	rt, err := newRuntime(worker.RuntimeOptions{
		Dir: t.TempDir(), CacheDir: t.TempDir(), Program: python, Redactor: secrets.NewRedactor(),
		Env: func() map[string]string { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	why := errors.New("cancelled by the host")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := rt.Check(ctx); !errors.Is(err, why) || errors.As(err, new(*rpc.Error)) {
		t.Errorf("Check: %v", err)
	}
}

// What the host sends is in the folder of packages, and is what it says.
func TestVerifyPackage(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, packagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"outside", packagesDir + "/a.whl"} {
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &pythonRuntime{opts: worker.RuntimeOptions{Dir: dir}}
	listed, err := listPackages(filepath.Join(dir, packagesDir))
	if err != nil || len(listed) != 1 || r.verify(listed[0]) != nil {
		t.Fatalf("%v %v", listed, err)
	}
	good := listed[0]
	for name, edit := range map[string]func(*rpc.FileRef){
		"outside":  func(f *rpc.FileRef) { f.Path = "outside" },
		"parent":   func(f *rpc.FileRef) { f.Path = packagesDir + "/../outside" },
		"absolute": func(f *rpc.FileRef) { f.Path = filepath.Join(dir, packagesDir, "a.whl") },
		"size":     func(f *rpc.FileRef) { f.Size++ },
		"checksum": func(f *rpc.FileRef) { f.SHA256 = strings.Repeat("0", 64) },
		"missing":  func(f *rpc.FileRef) { f.Path = packagesDir + "/b.whl" },
	} {
		ref := good
		edit(&ref)
		if r.verify(ref) == nil {
			t.Errorf("%s: %+v is taken", name, ref)
		}
	}
}
