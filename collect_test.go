package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote/rpc"
)

// What no run can leave is an error, what this machine should not have stays
// behind, and the rest is taken.
func TestChoose(t *testing.T) {
	const (
		take = iota
		leave
		refuse
	)
	for _, test := range []struct {
		goos, path string
		want       int
	}{
		{"linux", "a/x", take},
		{"linux", "a/deep/er/ä 日本.csv", take},
		{"linux", "a/..x", take},
		{"linux", "a/...", take},
		{"linux", `a/b\c:d?.`, take},
		{"linux", "a/nul.txt", take},
		{"linux", "../x", refuse},
		{"linux", "a/../../x", refuse},
		{"linux", "a/..", refuse},
		{"linux", "..", refuse},
		{"linux", ".", refuse},
		{"linux", "", refuse},
		{"linux", "/etc/passwd", refuse},
		{"linux", "//host/share", refuse},
		{"linux", "a//x", refuse},
		{"linux", "a/./x", refuse},
		{"linux", "./a/x", refuse},
		{"linux", "a/x/", refuse},
		{"linux", "a/\x00", refuse},
		{"linux", "_system", refuse},
		{"linux", "_system/x", refuse},
		{"linux", "a", leave},
		{"linux", "status.json", leave},
		{"linux", "b/x", leave},
		{"linux", `..\x`, leave},
		{"linux", "C:/x", leave},
		{"linux", "a/\x1b[2J", leave},
		{"linux", "a/x\ny", leave},
		{"linux", "a/x\ty", leave},
		{"linux", "a/\x7f", leave},
		{"linux", "a/\u009b", leave},
		{"linux", "a/\u202exls.exe", leave},
		{"linux", "a/\xff", leave},
		{"linux", "a/" + strings.Repeat("x", 255), take},
		{"linux", "a/" + strings.Repeat("x", 256), leave},
		{"linux", "a" + strings.Repeat("/d", 63), take},
		{"linux", "a" + strings.Repeat("/d", 64), leave},
		{"linux", "a" + strings.Repeat("/"+strings.Repeat("d", 200), 6), leave},
		{"windows", "a/x", take},
		{"windows", "a/console.txt", take},
		{"windows", "a/com10", take},
		{"windows", `a/..\..\x`, leave},
		{"windows", `a/C:\x`, leave},
		{"windows", "a/x:stream", leave},
		{"windows", "a/x?", leave},
		{"windows", "a/x.", leave},
		{"windows", "a/x ", leave},
		{"windows", "a/x./y", leave},
		{"windows", "a/NUL", leave},
		{"windows", "a/nul.txt", leave},
		{"windows", "a/Com1.tar.gz", leave},
		{"windows", "a/LPT¹", leave},
		{"windows", "a/con /x", leave},
		{"windows", "a/CONIN$", leave},
	} {
		c := collecting{steps: map[string]bool{"a": true}, files: 1000, bytes: 1000, goos: test.goos}
		got, err := c.choose(&rpc.SealResult{Artifacts: []rpc.Artifact{{Path: test.path}}})
		is := refuse
		if err == nil && len(got.artifacts) == 1 && len(got.skipped) == 0 {
			is = take
		} else if err == nil && len(got.artifacts) == 0 && len(got.skipped) == 1 && got.skipped[0].Reason != "" {
			is = leave
		}
		if is != test.want || (is == refuse) != errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %.80q: got %d, want %d (%v)", test.goos, test.path, is, test.want, err)
		}
	}
}

// A list that is read gives the same as one in memory, wherever it is cut into
// pieces.
func TestChooseRead(t *testing.T) {
	list := &rpc.SealResult{
		Artifacts: []rpc.Artifact{
			{Path: "a/1", Size: 10}, {Path: "a/big", Size: 1 << 40}, {Path: "a/dir/2", Size: 20}, {Path: "a/dir/3"}, {Path: "a/dir/4"}, {Path: "a/wanted"}, {Path: "a/z"},
		},
		Skipped: []rpc.SkippedArtifact{{Path: "a/link", Reason: "it is a symbolic link"}},
	}
	c := collecting{steps: map[string]bool{"a": true}, wanted: map[string]string{"a/wanted": "/x"}, files: 4, bytes: 100}
	want, err := c.choose(list)
	if err != nil {
		t.Fatal(err)
	}
	var taken, left []string
	for _, a := range want.artifacts {
		taken = append(taken, a.Path)
	}
	for _, s := range want.skipped {
		left = append(left, s.Path)
	}
	// The directory a, two files in it, and a/dir, which has no room for a file.
	if diff := cmp.Diff([]string{"a/1", "a/dir/2", "a/wanted"}, taken); diff != "" {
		t.Errorf("taken (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a/link", "a/big", "a/dir/3", "a/dir/4", "a/z"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(b), ` {"x":[1,{"a":2}],"artifacts":[]}`, `{"artifacts":[{"path":"a/1","further":{"x":1}}],"skipped":null}`} {
		var all rpc.SealResult
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatal(err)
		}
		want, err := c.choose(&all)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []io.Reader{strings.NewReader(text), &slowReader{[]byte(text)}} {
			got, err := c.read(r)
			if err != nil {
				t.Fatal(err)
			}
			byPath := cmpopts.SortSlices(func(a, b SkippedArtifact) bool { return a.Path < b.Path }) // read in another order
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(sealed{}), byPath, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: -want +got:\n%s", text, diff)
			}
		}
	}
}

// slowReader gives a byte at a time.
type slowReader struct{ b []byte }

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:1], r.b)
	r.b = r.b[n:]
	return n, nil
}

// What the sandbox prints as a list never costs more memory than an entry, and
// is an error of a known kind.
func FuzzChooseRead(f *testing.F) {
	f.Add([]byte(`{"artifacts":[{"path":"a/1","size":1,"sha256":"0"}],"skipped":[{"path":"x","reason":"y"}]}`))
	f.Add([]byte(`{"artifacts":[[[`))
	f.Add([]byte(`{"skipped":[]}`))
	c := collecting{steps: map[string]bool{"a": true}, files: 10, bytes: 100}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := c.read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error %v", err)
			}
			return
		}
		var list rpc.SealResult
		if json.Unmarshal(b, &list) == nil && len(list.Artifacts) > 0 && len(got.artifacts)+len(got.skipped)+got.more == 0 {
			t.Fatalf("%q: nothing was seen", b)
		}
	})
}

// Two names that are the same on this machine do not overwrite each other, and a
// link in the artifacts directory leads nowhere.
func TestDownloadStaysInside(t *testing.T) {
	sb := &fakeSandbox{download: func(_ context.Context, name string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("")), nil
	}}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	outer := t.TempDir()
	got := &CollectedArtifacts{ArtifactsDir: filepath.Join(outer, "artifacts")}
	if err := os.Mkdir(got.ArtifactsDir, 0o750); err != nil {
		t.Fatal(err)
	}
	list := &sealed{artifacts: []rpc.Artifact{
		{Path: "a/f", SHA256: empty}, {Path: "a/f", SHA256: empty}, {Path: "a/f/g", SHA256: empty}, {Path: "b/f", SHA256: empty},
	}}
	bring := func(list *sealed) error {
		c, err := newCollector(t.Context(), &place{sandbox: sb}, list, got, "", func(slog.Level, string, ...any) {})
		if err != nil {
			return err
		}
		defer c.close()
		c.claim = true
		return c.collect(list)
	}
	if err := bring(list); err != nil {
		t.Fatal(err)
	}
	if len(got.Artifacts) != 2 || len(got.Skipped) != 2 {
		t.Errorf("%+v", got)
	}
	if err := os.Symlink(outer, filepath.Join(got.ArtifactsDir, "c")); err != nil {
		t.Skip(err)
	}
	err := bring(&sealed{artifacts: []rpc.Artifact{{Path: "c/f", SHA256: empty}}})
	if err == nil {
		t.Error("a file was put behind a link")
	}
	if _, err := os.Lstat(filepath.Join(outer, "f")); err == nil {
		t.Error("a file is outside of the artifacts directory")
	}
}
