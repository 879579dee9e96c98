package remote

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shelf is a sandbox that has files to download.
type shelf struct {
	Sandbox
	files map[string]string
}

func (s shelf) Download(_ context.Context, name string) (io.ReadCloser, error) {
	content, ok := s.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(content)), nil
}

func wheelOf(name, content string) wheelFile {
	sum := sha256.Sum256([]byte(content))
	return wheelFile{name, int64(len(content)), hex.EncodeToString(sum[:])}
}

// A wheelhouse takes nothing that is not what was announced, and is whole or not
// there.
func TestWheelhouse(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	a, b := wheelOf("a-1.0-py3-none-any.whl", "of a"), wheelOf("lock.json", "{}")
	pl := &place{dir: "/run", sandbox: shelf{files: map[string]string{
		path.Join("/run", packagesDir, a.Name): "of a", path.Join("/run", packagesDir, b.Name): "{}",
	}}}
	house := func(t *testing.T) *wheelhouse { return &wheelhouse{dir: filepath.Join(t.TempDir(), "house"), key: key} }

	h := house(t)
	if files, err := h.load(t.Context()); err != nil || files != nil {
		t.Errorf("an empty one has %v, %v", files, err)
	}
	if n, err := h.fetch(t.Context(), pl, []wheelFile{a, b}); err != nil || n != a.Size+b.Size {
		t.Errorf("%d bytes, %v", n, err)
	}
	files, err := h.load(t.Context())
	if diff := cmp.Diff([]wheelFile{a, b}, files); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if n, err := (&wheelhouse{dir: h.dir, key: key[1:] + "0"}).fetch(t.Context(), pl, []wheelFile{a}); err != nil || n != 0 {
		t.Errorf("what is there came again: %d bytes, %v", n, err)
	}
	damage := func(how string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if files, err := h.load(t.Context()); err == nil || files != nil || !strings.Contains(err.Error(), a.Name) {
			t.Errorf("%s: a damaged one has %v, %v", how, files, err)
		}
		if files, err := h.load(t.Context()); err != nil || files != nil { // it is to be filled anew
			t.Errorf("%s: then it has %v, %v", how, files, err)
		}
		if _, err := h.fetch(t.Context(), pl, []wheelFile{a, b}); err != nil {
			t.Errorf("%s: a damaged one is not mended: %v", how, err)
		}
		if files, err := h.load(t.Context()); err != nil || len(files) != 2 {
			t.Errorf("%s: a mended one has %v, %v", how, files, err)
		}
	}
	damage("cut", os.Truncate(h.file(a.SHA256), 1))
	damage("changed", os.WriteFile(h.file(a.SHA256), []byte("of A"), 0o600))
	damage("removed", os.Remove(h.file(a.SHA256)))

	other := wheelOf(a.Name, "of another")
	other.Size = a.Size
	missing := wheelOf("c-1.0-py3-none-any.whl", "of c")
	for _, wrong := range []wheelFile{other, missing} {
		h := house(t)
		if _, err := h.fetch(t.Context(), pl, []wheelFile{b, wrong}); err == nil {
			t.Errorf("%v was taken", wrong)
		}
		if files, err := h.load(t.Context()); err != nil || files != nil {
			t.Errorf("after a failure there are %v, %v", files, err)
		}
		if _, err := os.Stat(h.file(wrong.SHA256)); err == nil {
			t.Errorf("%v is there", wrong)
		}
	}

	if err := os.WriteFile(h.set(), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.load(t.Context()); err == nil {
		t.Error("a torn set is no error")
	}
}

// What a sandbox announces cannot leave the wheelhouse, or fill the disk.
func TestCheckWheels(t *testing.T) {
	good := wheelOf("numpy-2.0.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", "x")
	with := func(edit func(*wheelFile)) wheelFile {
		f := good
		edit(&f)
		return f
	}
	many := make([]wheelFile, maxWheels+1)
	for i := range many {
		many[i] = with(func(f *wheelFile) { f.Name = fmt.Sprintf("a%d.whl", i) })
	}
	for name, files := range map[string][]wheelFile{
		"parent":        {with(func(f *wheelFile) { f.Name = "../x.whl" })},
		"absolute":      {with(func(f *wheelFile) { f.Name = "/x.whl" })},
		"hidden":        {with(func(f *wheelFile) { f.Name = ".x.whl" })},
		"empty":         {with(func(f *wheelFile) { f.Name = "" })},
		"newline":       {with(func(f *wheelFile) { f.Name = "a\nb" })},
		"backslash":     {with(func(f *wheelFile) { f.Name = `a\b` })},
		"twice":         {good, good},
		"checksum":      {with(func(f *wheelFile) { f.SHA256 = "../../etc/passwd" })},
		"upper case":    {with(func(f *wheelFile) { f.SHA256 = strings.ToUpper(good.SHA256) })},
		"negative":      {with(func(f *wheelFile) { f.Size = -1 })},
		"large":         {with(func(f *wheelFile) { f.Size = maxWheelBytes + 1 })},
		"overflow":      {with(func(f *wheelFile) { f.Size = 1<<63 - 1 }), with(func(f *wheelFile) { f.Name, f.Size = "b.whl", 1<<63-1 })},
		"large for two": {with(func(f *wheelFile) { f.Size = maxWheelBytes }), with(func(f *wheelFile) { f.Name = "b.whl" })},
		"many":          many,
	} {
		if checkWheels(files) == nil {
			t.Errorf("%s: %d files are taken", name, len(files))
		}
	}
	if err := checkWheels([]wheelFile{good, with(func(f *wheelFile) { f.Name = "lock.json" })}); err != nil {
		t.Error(err)
	}
}

// Sources depend on nothing but names and content, and have no more than what a
// driver imports.
func TestPackDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pack := func(dir string) ([]byte, map[string]string) {
		t.Helper()
		to := filepath.Join(t.TempDir(), "a.zip")
		if err := packDir(t.Context(), dir, to); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for _, f := range r.File {
			in, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			got[f.Name] = string(content)
		}
		return b, got
	}
	write("shop/drivers.py", "x = 1\n")
	write("shop/data/table.bin", "\x00")
	write("shop/__pycache__/drivers.cpython-311.pyc", "no")
	write("shop/old.pyc", "no")
	write(".git/config", "no")
	write("shop/.env", "SECRET=no")
	if err := os.Symlink("drivers.py", filepath.Join(dir, "shop", "link.py")); err != nil {
		t.Skip("there are no symbolic links:", err)
	}
	first, got := pack(dir)
	want := map[string]string{"shop/drivers.py": "x = 1\n", "shop/data/table.bin": "\x00", "shop/link.py": "x = 1\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := os.Chtimes(filepath.Join(dir, "shop", "drivers.py"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if again, _ := pack(dir); !bytes.Equal(first, again) {
		t.Error("other times make another file")
	}

	// A package is sent under its name.
	write("shop/__init__.py", "")
	want["shop/__init__.py"] = ""
	if _, got = pack(filepath.Join(dir, "shop")); cmp.Diff(want, got) != "" {
		t.Error(cmp.Diff(want, got))
	}

	// The directory itself may be a link, whose name counts.
	link := filepath.Join(t.TempDir(), "boutique")
	if err := os.Symlink(filepath.Join(dir, "shop"), link); err != nil {
		t.Fatal(err)
	}
	_, linked := pack(link)
	for name, content := range want {
		if at := "boutique" + strings.TrimPrefix(name, "shop"); linked[at] != content || len(linked) != len(want) {
			t.Errorf("%s is not %q: %v", at, content, linked)
		}
	}
	if err := packDir(t.Context(), filepath.Join(dir, "shop", "drivers.py"), filepath.Join(t.TempDir(), "d.zip")); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}

	if err := os.Symlink("/etc", filepath.Join(dir, "shop", "etc")); err != nil {
		t.Fatal(err)
	}
	if err := packDir(t.Context(), dir, filepath.Join(t.TempDir(), "b.zip")); err == nil || !strings.Contains(err.Error(), "etc") {
		t.Errorf("a link to a directory: %v", err)
	}
	if err := packDir(t.Context(), t.TempDir(), filepath.Join(t.TempDir(), "c.zip")); err == nil {
		t.Error("an empty directory is no error")
	}
}

func TestPythonDriverIsChecked(t *testing.T) {
	good := PythonDriver{Name: "a.extractor", Module: "shop.drivers", Class: "Outer.Inner", Requirements: []string{"pandas>=2"}, InputFiles: []string{"/path"}}
	for name, edit := range map[string]func(*PythonDriver){
		"no name":      func(d *PythonDriver) { d.Name = "" },
		"no module":    func(d *PythonDriver) { d.Module = "" },
		"path":         func(d *PythonDriver) { d.Module = "../shop" },
		"empty part":   func(d *PythonDriver) { d.Module = "shop..drivers" },
		"digit":        func(d *PythonDriver) { d.Class = "1a" },
		"call":         func(d *PythonDriver) { d.Class = "f()" },
		"mode":         func(d *PythonDriver) { d.Mode = "read" },
		"option":       func(d *PythonDriver) { d.Requirements = []string{"--index-url=http://x"} },
		"two lines":    func(d *PythonDriver) { d.Requirements = []string{"a\n-r b"} },
		"empty":        func(d *PythonDriver) { d.Requirements = []string{" "} },
		"pointer":      func(d *PythonDriver) { d.OutputFiles = []string{"path"} },
		"empty source": func(d *PythonDriver) { d.Sources = []string{""} },
	} {
		d := good
		edit(&d)
		if err := d.validate(); err == nil {
			t.Errorf("%s: %+v is taken", name, d)
		}
	}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, mode := range map[string]string{"x.extractor": "extract", "filesystem.csv_writer": "write", "duckdb.processor": "transform", "x": "transform"} {
		if got := (PythonDriver{Name: name}).mode(); string(got) != mode {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Declared twice is a mistake, declared by both means that the Config counts,
// and what no step uses is not sent.
func TestPythonDriversOfPlan(t *testing.T) {
	d := func(name, class string) PythonDriver { return PythonDriver{Name: name, Module: "m", Class: class} }
	m := &Manifest{
		Steps:         []Step{{ID: "1", Driver: "b"}, {ID: "2", Component: "a"}, {ID: "3", Driver: "b"}},
		PythonDrivers: []PythonDriver{d("a", "OfManifest"), d("b", "OfManifest"), d("unused", "X")},
	}
	got, err := Config{PythonDrivers: []PythonDriver{d("b", "OfConfig"), d("c", "X")}}.pythonDrivers(m)
	if diff := cmp.Diff([]PythonDriver{d("a", "OfManifest"), d("b", "OfConfig")}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	m.PythonDrivers = slices.Concat(m.PythonDrivers, m.PythonDrivers[:1])
	if _, err := (Config{}).pythonDrivers(m); err == nil {
		t.Error("declared twice is no error")
	}
}

// What goes on beside a run is broken off a while after its end.
func TestBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, takes := range []time.Duration{time.Second, time.Hour} {
			var err error
			wait := background(t.Context(), func(ctx context.Context) {
				select {
				case <-time.After(takes):
				case <-ctx.Done():
					err = ctx.Err()
				}
			}, keepGrace)
			start := time.Now()
			wait()
			if took := time.Since(start); took != min(takes, keepGrace) || (err == nil) != (takes < keepGrace) {
				t.Errorf("of %s it took %s: %v", takes, took, err)
			}
		}
	})
}
