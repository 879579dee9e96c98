package worker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// watchedFS is this machine's files; it tells of what is opened, and does
// something when a file is read.
type watchedFS struct {
	worker.OSFS
	mu     sync.Mutex
	opened map[string]int
	onRead func(name string, times int)
	refuse func(name string) error
}

func (w *watchedFS) Open(name string) (worker.File, error) {
	w.mu.Lock()
	if w.opened == nil {
		w.opened = make(map[string]int)
	}
	base := filepath.Base(name)
	w.opened[base]++
	times := w.opened[base]
	w.mu.Unlock()
	if w.refuse != nil {
		if err := w.refuse(name); err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
	f, err := w.OSFS.Open(name)
	if err != nil || w.onRead == nil {
		return f, err
	}
	return &watchedFile{File: f, read: sync.OnceFunc(func() { w.onRead(name, times) })}, nil
}

func (w *watchedFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if w.refuse != nil {
		if err := w.refuse(name); err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
	return w.OSFS.ReadDir(name)
}

type watchedFile struct {
	worker.File
	read func()
}

func (f *watchedFile) Read(b []byte) (int, error) {
	f.read()
	return f.File.Read(b)
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
}

func skippedBy(list *rpc.SealResult) map[string]string {
	got := make(map[string]string)
	for _, s := range list.Skipped {
		got[s.Path] = s.Reason
	}
	return got
}

// A list has both checksums, modes and steps; what is not wanted is not read.
func TestSealWanted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a/x.csv": "1,2\n", "a/run.sh": "#!", "b/x.csv": "3", "b/big": "12345678901", "b/out": "12345678901", "b/x.tmp": ""})
	if err := errors.Join(os.Chmod(filepath.Join(dir, "a", "run.sh"), 0o755), os.Truncate(filepath.Join(dir, "b", "big"), 20<<30)); err != nil {
		t.Skip(err)
	}
	fsys := &watchedFS{}
	list, err := worker.Seal(t.Context(), fsys, dir, &rpc.SealArtifacts{MaxFileBytes: 10, Exclude: []string{"**/*.tmp"}, Always: []string{"b/out"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []rpc.Artifact{
		{Path: "a/run.sh", Size: 2, Mode: 0o755, StepID: "a"}, {Path: "a/x.csv", Size: 4, Mode: 0o640, StepID: "a"},
		{Path: "b/out", Size: 11, Mode: 0o640, StepID: "b"}, {Path: "b/x.csv", Size: 1, Mode: 0o640, StepID: "b"},
	}
	for i, a := range want {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(a.Path)))
		if err != nil {
			t.Fatal(err)
		}
		_, want[i].XXH3, _ = rpc.XXH3(bytes.NewReader(b))
		want[i].SHA256 = hexSHA256(b)
		if runtime.GOOS == "windows" {
			want[i].Mode = list.Artifacts[i].Mode
		}
	}
	if diff := cmp.Diff(want, list.Artifacts); diff != "" {
		t.Errorf("artifacts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]rpc.SkippedArtifact{
		{Path: "b/big", Size: 20 << 30, Reason: "it has 21474836480 bytes, more than the 10 that a file may have"},
		{Path: "b/x.tmp", Reason: `the glob "**/*.tmp" excludes it`},
	}, list.Skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"run.sh": 1, "x.csv": 2, "out": 1}, fsys.opened); diff != "" {
		t.Errorf("opened (-want +got):\n%s", diff)
	}
}

// A file that is being written is read again, and skipped where that goes on; one
// that cannot be read keeps no other from being listed.
func TestSealWhileWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a/still": "x", "a/once": "x", "a/always": "x", "a/shrinks": strings.Repeat("x", 1000), "a/touched": "x", "a/refused": "x", "a/shut/x": "x"})
	denied := errors.New("denied")
	fsys := &watchedFS{
		onRead: func(name string, times int) {
			base := filepath.Base(name)
			switch {
			case base == "once" && times == 1, base == "always":
				f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					_, err = f.WriteString("more")
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					t.Error(err)
				}
			case base == "shrinks":
				if err := os.Truncate(name, int64(100-times)); err != nil {
					t.Error(err)
				}
			case base == "touched" && times < 3:
				at := time.Unix(int64(1_000_000*times), 0)
				if err := os.Chtimes(name, at, at); err != nil {
					t.Error(err)
				}
			}
		},
		refuse: func(name string) error {
			if base := filepath.Base(name); base == "refused" || base == "shut" {
				return denied
			}
			return nil
		},
	}
	synctest.Test(t, func(t *testing.T) { // so that it does not wait
		list, err := worker.Seal(t.Context(), fsys, dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range list.Artifacts {
			got = append(got, fmt.Sprint(a.Path, " ", a.Size))
		}
		if diff := cmp.Diff([]string{"a/once 5", "a/still 1", "a/touched 1"}, got); diff != "" {
			t.Errorf("artifacts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]string{
			"a/always": "it was being written", "a/shrinks": "it was being written", "a/refused": "denied", "a/shut": "the directory cannot be read: denied",
		}, skippedBy(list)); diff != "" {
			t.Errorf("skipped (-want +got):\n%s", diff)
		}
	})
}

// Who does not wait for a list gets none, and no half of one.
func TestSealCancelled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a/x": "x", "a/y": "y"})
	ctx, cancel := context.WithCancel(t.Context())
	list, err := worker.Seal(ctx, &watchedFS{onRead: func(string, int) { cancel() }}, dir, nil)
	if !errors.Is(err, context.Canceled) || list != nil {
		t.Errorf("got %+v, %v", list, err)
	}
}

// What is packed is what is there, and no link leads out.
func TestPack(t *testing.T) {
	t.Parallel()
	outer := t.TempDir()
	dir := filepath.Join(outer, "artifacts")
	writeFiles(t, outer, map[string]string{"secret": "s", "artifacts/a/x": "1", "artifacts/a/sub dir/y": "22", "artifacts/a/empty": "", "artifacts/a/large": strings.Repeat("x", rpc.MaxPacked+1)})
	if err := errors.Join(os.Symlink(filepath.Join(outer, "secret"), filepath.Join(dir, "a", "link")), os.Symlink(outer, filepath.Join(dir, "out"))); err != nil {
		t.Skip(err)
	}
	paths := []string{"a/x", "a/sub dir/y", "a/link", "out/secret", "../secret", "/etc/passwd", "a/../a/x", "a", "a/none", "a/empty", "a/x/y", "a/large", "a/x"}
	want := []string{"1", "22", "!", "!", "!", "!", "!", "!", "!", "", "!", "!", "1"}
	var out bytes.Buffer
	var stderr strings.Builder
	if code := (worker.Program{}).Run(t.Context(), append([]string{"pack", "-dir", outer, "--"}, paths...), strings.NewReader(""), &out, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	var got []string
	for i := range paths {
		var b [rpc.PackHeaderSize]byte
		if _, err := io.ReadFull(&out, b[:]); err != nil {
			t.Fatal(err)
		}
		h, err := rpc.ParsePackHeader(&b)
		if err != nil || h.Index != uint32(i) {
			t.Fatalf("header %d is %+v, %v", i, h, err)
		}
		content := string(out.Next(int(h.Size)))
		if h.Failed && content != "" {
			content = "!"
		}
		got = append(got, content)
	}
	if diff := cmp.Diff(want, got); diff != "" || out.Len() > 0 {
		t.Errorf("(-want +got):\n%s and %d bytes more", diff, out.Len())
	}
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
