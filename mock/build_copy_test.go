package mock

import (
	"archive/tar"
	"bytes"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

func TestWithoutPattern(t *testing.T) {
	for source, want := range map[string]string{
		"": "", ".": "", "./": "", "a": "a", "a/b/": "a/b", "./a/../b": "b", "../a": "a", "/a": "a",
		"*": "", "*.txt": "", "a/*.txt": "a", "a/**/b": "a", "a/b?": "a", "[ab]/c": "", "{a,b}": "",
		`a\*b/c`: "a*b/c", `a/\[x]`: "a/[x]",
	} {
		if got := withoutPattern(source); got != want {
			t.Errorf("withoutPattern(%q) = %q, want %q", source, got, want)
		}
	}
}

func TestPlainWords(t *testing.T) {
	for script, want := range map[string][]string{
		"": nil, "  ": nil, "a": {"a"}, " a\tb  c ": {"a", "b", "c"}, `'a b'c '' '{"x":[1]}'`: {"a bc", "", `{"x":[1]}`},
	} {
		got, ok := plainWords(script)
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("%q: %t (-want +got):\n%s", script, ok, diff)
		}
	}
	for _, script := range []string{"a; b", "a 'b", `a "b"`, "a\nb", "$a", "a\\b"} {
		if got, ok := plainWords(script); ok {
			t.Errorf("%q: %q", script, got)
		}
	}
}

// FuzzUnpack unpacks anything, which must stay where it is sent.
func FuzzUnpack(f *testing.F) {
	for _, headers := range [][]tar.Header{
		{{Name: "a", Typeflag: tar.TypeReg}},
		{{Name: "a/", Typeflag: tar.TypeDir}, {Name: "a/b", Typeflag: tar.TypeReg}, {Name: "a/c", Typeflag: tar.TypeLink, Linkname: "a/b"}},
		{{Name: "../../x", Typeflag: tar.TypeReg}, {Name: "/etc/x", Typeflag: tar.TypeReg}},
		{{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "a/b", Typeflag: tar.TypeReg}},
		{{Name: "a", Typeflag: tar.TypeFifo}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		for _, source := range []string{".", "a", "a/*", "x"} {
			f.Add(b.Bytes(), source)
		}
	}
	f.Add([]byte{0x1f, 0x8b}, ".")
	f.Fuzz(func(t *testing.T, layer []byte, source string) {
		m := newMemoryMachine(&Options{DiskBytes: 1 << 20}, bootConfig{})
		defer func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}()
		const target = "/there/it"
		before := m.sandbox.disk.files()
		c := copying{
			workshop: &workshop{machine: m}, files: m, source: withoutPattern(source), target: target,
			owner: envd.User{Name: "user"}, root: envd.User{Name: "root"},
		}
		_ = c.unpack(t.Context(), bytes.NewReader(layer)) // most are no archives
		after := slices.DeleteFunc(m.sandbox.disk.files(), func(name string) bool {
			return name == target || strings.HasPrefix(path.Clean(name), target+"/")
		})
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("outside of %s (-before +after):\n%s", target, diff)
		}
	})
}
