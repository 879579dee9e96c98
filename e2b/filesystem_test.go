package e2b

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestStatAndList(t *testing.T) {
	eachDaemon(t, func(t *testing.T, s *Sandbox) {
		dir := t.TempDir()
		file := filepath.Join(dir, "sub", "file")
		if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o750), os.WriteFile(file, []byte("12345"), 0o640)); err != nil {
			t.Fatal(err)
		}
		info, err := s.Stat(within(t), file)
		if err != nil {
			t.Fatal(err)
		}
		want := FileInfo{Name: "file", Path: file, Type: TypeFile, Size: 5, Mode: 0o640}
		ignore := cmpopts.IgnoreFields(FileInfo{}, "ModTime", "Owner", "Group")
		if diff := cmp.Diff(want, info, ignore); diff != "" || time.Since(info.ModTime) > time.Hour {
			t.Errorf("Stat, changed at %s (-want +got):\n%s", info.ModTime, diff)
		}
		infos, err := s.List(within(t), dir, 2)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, info := range infos {
			got = append(got, string(info.Type)+" "+info.Path)
		}
		if diff := cmp.Diff([]string{"directory " + filepath.Dir(file), "file " + file}, got); diff != "" {
			t.Errorf("List (-want +got):\n%s", diff)
		}
		if _, err := s.List(within(t), dir, -1); !errors.Is(err, ErrInvalid) {
			t.Errorf("List to depth -1: %v, want ErrInvalid", err)
		}
	})
}

func TestMissing(t *testing.T) {
	eachDaemon(t, func(t *testing.T, s *Sandbox) {
		missing := filepath.Join(t.TempDir(), "missing")
		_, statErr := s.Stat(within(t), missing)
		_, listErr := s.List(within(t), missing, 1)
		for name, err := range map[string]error{"Stat": statErr, "List": listErr, "Move": s.Move(within(t), missing, missing+"2")} {
			if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v, want fs.ErrNotExist and ErrNotFound", name, err)
			}
		}
		if err := s.Remove(within(t), missing); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if ok, err := s.Exists(within(t), missing); ok || err != nil {
			t.Errorf("Exists: %t, %v", ok, err)
		}
	})
}

func TestDirectories(t *testing.T) {
	s := realSandbox(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := s.MakeDir(within(t), dir); err != nil {
			t.Fatalf("MakeDir: %v", err)
		}
	}
	to := filepath.Join(filepath.Dir(dir), "c", "d")
	if err := s.Move(within(t), dir, to); err != nil {
		t.Fatalf("Move: %v", err)
	}
	if ok, err := s.Exists(within(t), to); !ok || err != nil {
		t.Errorf("Exists: %t, %v", ok, err)
	}
	if err := s.Remove(within(t), filepath.Dir(dir)); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestWatch(t *testing.T) {
	s := realSandbox(t)
	dir := t.TempDir()
	w, err := s.Watch(within(t), dir, WatchOptions{Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	name := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(name, []byte("x"), 0o600), os.Chmod(name, 0o640), os.Rename(name, name+"2"), os.Remove(name+"2")); err != nil {
		t.Fatal(err)
	}
	seen := map[WatchEvent]bool{}
	for e, err := range w.Events() {
		if err != nil {
			t.Fatal(err)
		}
		if seen[e] = true; e.Op == OpRemove {
			break
		}
	}
	want := map[WatchEvent]bool{{"file", OpCreate}: true, {"file", OpWrite}: true, {"file", OpChmod}: true, {"file", OpRename}: true, {"file2", OpCreate}: true, {"file2", OpRemove}: true}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if _, err := s.Watch(within(t), dir+"x", WatchOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Watch of nothing: %v, want fs.ErrNotExist", err)
	}
}

func TestWatchCancelled(t *testing.T) {
	s := realSandbox(t)
	ctx, cancel := context.WithCancel(within(t))
	w, err := s.Watch(ctx, t.TempDir(), WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cancel()
	for _, err := range w.Events() {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the last event has %v, want context.Canceled", err)
		}
	}
}
