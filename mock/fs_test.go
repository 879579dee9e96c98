package mock_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// both runs a test on the file system in memory and on the machine's, so that
// the one is checked against the other.
func both(t *testing.T, test func(t *testing.T, fsys worker.FS, dir string)) {
	t.Run("memory", func(t *testing.T) {
		fsys := mock.NewSandbox(nil).FS()
		if err := fsys.MkdirAll("/area"); err != nil {
			t.Fatal(err)
		}
		test(t, fsys, "/area")
	})
	t.Run("machine", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("Windows has other rules")
		}
		test(t, worker.OSFS{}, t.TempDir())
	})
}

func put(t *testing.T, fsys worker.FS, name, data string) worker.File {
	t.Helper()
	f, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func get(t *testing.T, fsys worker.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// class is what callers may test an error for.
func class(err error) string {
	for _, target := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrClosed, fs.ErrInvalid, io.EOF,
		syscall.ENOTDIR, syscall.EISDIR, syscall.EBADF, syscall.EINVAL} {
		if errors.Is(err, target) {
			return target.Error()
		}
	}
	if err != nil {
		return "other: " + err.Error()
	}
	return "ok"
}

func TestFSTree(t *testing.T) {
	both(t, func(t *testing.T, fsys worker.FS, dir string) {
		at := func(name string) string { return dir + "/" + name }
		check := func(what string, err error, want error) {
			t.Helper()
			if got := class(err); got != class(want) {
				t.Errorf("%s: %v, want %s", what, err, class(want))
			}
		}
		open := func(name string) error { f, err := fsys.Open(name); closeIf(f, err); return err }
		create := func(name string) error { f, err := fsys.Create(name); closeIf(f, err); return err }
		stat := func(name string) error { _, err := fsys.Stat(name); return err }
		list := func(name string) error { _, err := fsys.ReadDir(name); return err }
		watch := func(name string) error {
			_, stop, err := fsys.Watch(name)
			if err == nil {
				stop()
			}
			return err
		}
		if err := fsys.MkdirAll(at("a/b/c")); err != nil {
			t.Fatal(err)
		}
		check("MkdirAll again", fsys.MkdirAll(at("a/b")), nil)
		put(t, fsys, at("a/file"), "data")
		put(t, fsys, at("a/other"), "other")

		check("MkdirAll over a file", fsys.MkdirAll(at("a/file")), syscall.ENOTDIR)
		check("MkdirAll through a file", fsys.MkdirAll(at("a/file/x")), syscall.ENOTDIR)
		check("Open missing", open(at("missing")), fs.ErrNotExist)
		check("Open in missing", open(at("missing/x")), fs.ErrNotExist)
		check("Open through a file", open(at("a/file/x")), syscall.ENOTDIR)
		check("Open a directory", open(at("a")), nil)
		check("Create in missing", create(at("missing/x")), fs.ErrNotExist)
		check("Create over a directory", create(at("a/b")), syscall.EISDIR)
		check("Stat missing", stat(at("missing")), fs.ErrNotExist)
		check("ReadDir missing", list(at("missing")), fs.ErrNotExist)
		check("ReadDir of a file", list(at("a/file")), syscall.ENOTDIR)
		check("Watch missing", watch(at("missing")), fs.ErrNotExist)
		check("Watch a directory", watch(at("a")), nil)
		check("RemoveAll missing", fsys.RemoveAll(at("missing/x")), nil)
		check("RemoveAll through a file", fsys.RemoveAll(at("a/file/x")), syscall.ENOTDIR)

		check("Rename missing", fsys.Rename(at("missing"), at("a/x")), fs.ErrNotExist)
		check("Rename to missing", fsys.Rename(at("a/file"), at("missing/x")), fs.ErrNotExist)
		check("Rename to itself", fsys.Rename(at("a/file"), at("a/file")), nil)
		check("Rename a file over a directory", fsys.Rename(at("a/file"), at("a/b")), fs.ErrExist)
		check("Rename a directory over a file", fsys.Rename(at("a/b"), at("a/file")), syscall.ENOTDIR)
		check("Rename into itself", fsys.Rename(at("a"), at("a/b/x")), syscall.EINVAL)
		check("Rename over an empty directory", fsys.Rename(at("a/b"), at("a/e")), nil)
		check("MkdirAll", fsys.MkdirAll(at("full/x")), nil)
		check("Rename over a full directory", fsys.Rename(at("a/e"), at("full")), fs.ErrExist)
		check("Rename over a file", fsys.Rename(at("a/file"), at("a/other")), nil)
		check("Stat the old name", stat(at("a/file")), fs.ErrNotExist)
		if got := get(t, fsys, at("a/other")); got != "data" {
			t.Errorf("renamed file holds %q", got)
		}
		check("Stat in the renamed directory", stat(at("a/e/c")), nil)

		entries, err := fsys.ReadDir(at("a"))
		check("ReadDir", err, nil)
		var names []string
		for _, e := range entries {
			names = append(names, fmt.Sprint(e.Name(), " ", e.IsDir()))
		}
		if diff := cmp.Diff([]string{"e true", "other false"}, names); diff != "" {
			t.Errorf("ReadDir (-want +got):\n%s", diff)
		}
		fi, err := fsys.Stat(at("a/../a/other"))
		check("Stat", err, nil)
		if fi.Name() != "other" || fi.Size() != 4 || fi.IsDir() || fi.ModTime().IsZero() {
			t.Errorf("Stat gives %s %d %v %v", fi.Name(), fi.Size(), fi.Mode(), fi.ModTime())
		}

		check("RemoveAll", fsys.RemoveAll(at("a")), nil)
		check("Stat a removed file", stat(at("a/other")), fs.ErrNotExist)
	})
}

func closeIf(f worker.File, err error) {
	if err == nil {
		f.Close()
	}
}

func TestFSRelativeNames(t *testing.T) {
	fsys := mock.NewSandbox(nil).FS()
	for _, name := range []string{"", "file", "./file", "../file", "a\x00b"} {
		if _, err := fsys.Create(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Create(%q): %v, want fs.ErrInvalid", name, err)
		}
	}
	if err := fsys.RemoveAll("/"); err == nil {
		t.Error("RemoveAll of the root succeeds")
	}
}

func TestFSHandles(t *testing.T) {
	both(t, func(t *testing.T, fsys worker.FS, dir string) {
		name := dir + "/file"
		w := put(t, fsys, name, "0123456789")
		r, err := fsys.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4)
		steps := []struct {
			name string
			do   func() (any, error)
			want any
			err  error
		}{
			{"Read", func() (any, error) { n, err := r.Read(buf); return string(buf[:n]), err }, "0123", nil},
			{"ReadAt", func() (any, error) { n, err := r.ReadAt(buf, 5); return string(buf[:n]), err }, "5678", nil},
			{"ReadAt at the end", func() (any, error) { n, err := r.ReadAt(buf, 8); return string(buf[:n]), err }, "89", io.EOF},
			{"ReadAt past the end", func() (any, error) { n, err := r.ReadAt(buf, 80); return n, err }, 0, io.EOF},
			{"Seek", func() (any, error) { return r.Seek(-2, io.SeekEnd) }, int64(8), nil},
			{"Read after Seek", func() (any, error) { n, err := r.Read(buf); return string(buf[:n]), err }, "89", nil},
			{"Read at the end", func() (any, error) { n, err := r.Read(buf); return n, err }, 0, io.EOF},
			{"Read nothing", func() (any, error) { n, err := r.Read(nil); return n, err }, 0, nil},
			{"Write goes on", func() (any, error) { return w.Write([]byte("ab")) }, 2, nil},
			{"Read what came", func() (any, error) { n, err := r.Read(buf); return string(buf[:n]), err }, "ab", nil},
			{"Seek before the start", func() (any, error) { _, err := r.Seek(-1, io.SeekStart); return nil, err }, nil, syscall.EINVAL},
			{"Write to a reader", func() (any, error) { return r.Write([]byte("x")) }, 0, syscall.EBADF},
			{"Truncate a reader", func() (any, error) { return nil, r.Truncate(0) }, nil, syscall.EINVAL},
			{"Truncate", func() (any, error) { return nil, w.Truncate(3) }, nil, nil},
			{"Write beyond the end", func() (any, error) { return w.Write([]byte("z")) }, 1, nil},
			{"the hole", func() (any, error) { return get(t, fsys, name), nil }, "012" + strings.Repeat("\x00", 9) + "z", nil},
			{"Truncate longer", func() (any, error) { return nil, w.Truncate(16) }, nil, nil},
			{"zeros", func() (any, error) { return get(t, fsys, name), nil }, "012" + strings.Repeat("\x00", 9) + "z\x00\x00\x00", nil},
			{"Rename", func() (any, error) { return nil, fsys.Rename(name, name+"2") }, nil, nil},
			{"Write to a renamed file", func() (any, error) { return w.Write([]byte("r")) }, 1, nil},
			{"RemoveAll", func() (any, error) { return nil, fsys.RemoveAll(name + "2") }, nil, nil},
			{"Write to a removed file", func() (any, error) { return w.Write([]byte("R")) }, 1, nil},
			{"Read of a removed file", func() (any, error) { n, err := r.ReadAt(buf[:3], 12); return string(buf[:n]), err }, "zrR", nil},
			{"Stat of a removed file", func() (any, error) { fi, err := r.Stat(); return fi.Size(), err }, int64(16), nil},
			{"Close", func() (any, error) { return nil, r.Close() }, nil, nil},
			{"Close again", func() (any, error) { return nil, r.Close() }, nil, fs.ErrClosed},
			{"Read after Close", func() (any, error) { n, err := r.Read(buf); return n, err }, 0, fs.ErrClosed},
		}
		for _, step := range steps {
			got, err := step.do()
			if diff := cmp.Diff(step.want, got); diff != "" || class(err) != class(step.err) {
				t.Errorf("%s: %v, want %v (-want +got):\n%s", step.name, err, step.err, diff)
			}
		}
		d, err := fsys.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if _, err := d.Read(buf); class(err) != class(syscall.EISDIR) {
			t.Errorf("Read of a directory: %v", err)
		}
	})
}

// TestFSModel does the same random steps to a file in memory and to a slice.
func TestFSModel(t *testing.T) {
	fsys := mock.NewSandbox(nil).FS()
	f := put(t, fsys, "/tmp/file", "")
	rnd := rand.New(rand.NewPCG(1, 2))
	const most = 3 << 20 // some chunks
	var model []byte
	for i := range 1000 {
		switch off, n := rnd.IntN(most), rnd.IntN(1<<rnd.IntN(20)); rnd.IntN(10) {
		case 0:
			if err := f.Truncate(int64(off)); err != nil {
				t.Fatal(err)
			}
			model = append(model, make([]byte, max(0, off-len(model)))...)[:off:off]
		case 1, 2, 3, 4:
			data := bytes.Repeat([]byte{byte(i), byte(i >> 8), 1}, n/3+1)[:n]
			f.Seek(int64(off), io.SeekStart)
			if k, err := f.Write(data); k != n || err != nil {
				t.Fatalf("Write: %d, %v", k, err)
			}
			if n > 0 {
				model = append(model, make([]byte, max(0, off+n-len(model)))...)
			}
			copy(model[min(off, len(model)):], data)
		default:
			got := make([]byte, n)
			k, err := f.ReadAt(got, int64(off))
			want := model[min(off, len(model)):min(off+n, len(model))]
			if !bytes.Equal(got[:k], want) || (err == io.EOF) != (k < n) {
				t.Fatalf("step %d: ReadAt(%d, %d) gives %d bytes, %v; want %d", i, off, n, k, err, len(want))
			}
		}
	}
}

func TestFSFollow(t *testing.T) {
	both(t, func(t *testing.T, fsys worker.FS, dir string) {
		w := put(t, fsys, dir+"/journal", "")
		r, err := fsys.Open(dir + "/journal")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		changed, stop, err := fsys.Watch(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		const lines = 2000
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range lines {
				fmt.Fprintf(w, "line %8d\n", i)
			}
		})
		var got bytes.Buffer
		for got.Len() < lines*14 {
			n, err := io.Copy(&got, r)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				<-changed // a lost notice hangs here
			}
		}
		wg.Wait()
		for i := range lines {
			if line, _ := got.ReadString('\n'); line != fmt.Sprintf("line %8d\n", i) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
	})
}

func TestFSWatch(t *testing.T) {
	both(t, func(t *testing.T, fsys worker.FS, dir string) {
		if err := fsys.MkdirAll(dir + "/sub"); err != nil {
			t.Fatal(err)
		}
		f := put(t, fsys, dir+"/file", "x")
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"write", func() error { _, err := f.Write([]byte("y")); return err }},
			{"truncate", func() error { return f.Truncate(0) }},
			{"create", func() error { n, err := fsys.Create(dir + "/new"); closeIf(n, err); return err }},
			{"mkdir", func() error { return fsys.MkdirAll(dir + "/newdir") }},
			{"rename", func() error { return fsys.Rename(dir+"/new", dir+"/renamed") }},
			{"rename away", func() error { return fsys.Rename(dir+"/renamed", dir+"/sub/renamed") }},
			{"rename here", func() error { return fsys.Rename(dir+"/sub/renamed", dir+"/renamed") }},
			{"remove", func() error { return fsys.RemoveAll(dir + "/renamed") }},
		} {
			changed, stop, err := fsys.Watch(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := step.do(); err != nil {
				t.Errorf("%s: %v", step.name, err)
			}
			<-changed // hangs when there is none
			stop()
			stop()
		}
	})

	fsys := mock.NewSandbox(nil).FS() // below, no notice may come
	fsys.MkdirAll("/area/sub")
	changed, stop, err := fsys.Watch("/area")
	if err != nil {
		t.Fatal(err)
	}
	silent := func(what string) {
		t.Helper()
		select {
		case <-changed:
			t.Errorf("notice of %s", what)
		default:
		}
	}
	f := put(t, fsys, "/area/sub/file", "")
	silent("a change in a subdirectory")
	for range 10 {
		fsys.Rename("/area/sub/file", "/area/file")
		fsys.Rename("/area/file", "/area/sub/file")
	}
	<-changed
	silent("more than one change at once")
	f.Write([]byte("x"))
	silent("a file that was moved away")
	stop()
	fsys.MkdirAll("/area/more")
	silent("a change after stop")
}

func TestFSFull(t *testing.T) {
	s := mock.NewSandbox(&mock.Options{DiskBytes: 100})
	fsys := s.FS()
	a := put(t, fsys, "/tmp/a", strings.Repeat("a", 60))
	b, err := fsys.Create("/tmp/b")
	if err != nil {
		t.Fatal(err)
	}
	full := func(what string, n int, err error, want int) {
		t.Helper()
		if n != want || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %d, %v; want %d, ENOSPC", what, n, err, want)
		}
	}
	n, err := b.Write(make([]byte, 50))
	full("Write", n, err, 40)
	n, err = b.Write(make([]byte, 1))
	full("Write when full", n, err, 0)
	full("Truncate", 0, b.Truncate(41), 0)
	a.Seek(0, io.SeekStart)
	if n, err := a.Write(make([]byte, 60)); n != 60 || err != nil {
		t.Errorf("Write in place: %d, %v", n, err)
	}
	full("Upload", 0, s.Upload(t.Context(), "/tmp/c", strings.NewReader("c"), 1), 0)
	if err := a.Truncate(59); err != nil {
		t.Error(err)
	}
	a.Seek(1000, io.SeekStart)
	n, err = a.Write([]byte("x"))
	full("Write far beyond the end", n, err, 0)
	if err := s.Upload(t.Context(), "/tmp/c", strings.NewReader("c"), 1); err != nil {
		t.Errorf("Upload into the last byte: %v", err)
	}
	fsys.RemoveAll("/tmp/b")
	full("WriteFile while a removed file is open", 0, s.WriteFile("/tmp/d", make([]byte, 40)), 0)
	b.Close()
	if err := s.WriteFile("/tmp/d", make([]byte, 40)); err != nil {
		t.Errorf("WriteFile after Close: %v", err)
	}
	if err := s.WriteFile("/tmp/d", nil); err != nil {
		t.Errorf("WriteFile that replaces: %v", err)
	}
	fsys.RemoveAll("/tmp")
	a.Close()
	fsys.MkdirAll("/tmp")
	if err := s.WriteFile("/tmp/e", make([]byte, 100)); err != nil {
		t.Errorf("WriteFile on an empty disk: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, dir := range map[string]struct {
		fsys worker.FS
		dir  string
	}{"memory": {mock.NewSandbox(nil).FS(), "/tmp"}, "machine": {worker.OSFS{}, b.TempDir()}} {
		b.Run(name, func(b *testing.B) {
			f, err := dir.fsys.Create(filepath.Join(dir.dir, "file"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 16<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := f.Write(buf); err != nil {
					b.Fatal(err)
				}
				if at, _ := f.Seek(0, io.SeekCurrent); at > 512<<20 {
					f.Truncate(0)
					f.Seek(0, io.SeekStart)
				}
			}
		})
	}
}

// What is appended follows what is kept, and the rest is gone.
func TestFSAppend(t *testing.T) {
	both(t, func(t *testing.T, fsys worker.FS, dir string) {
		name := dir + "/file"
		put(t, fsys, name, "kept and cut").Close()
		for _, part := range []string{"then", "again"} {
			f, err := fsys.Append(name, 5)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.WriteString(f, part)
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			if got := get(t, fsys, name); got != "kept "+part {
				t.Errorf("the file holds %q", got)
			}
		}
		if f, err := fsys.Append(dir+"/none", 0); !errors.Is(err, fs.ErrNotExist) {
			closeIf(f, err)
			t.Errorf("append to nothing: %v", err)
		}
	})
}
