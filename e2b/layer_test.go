package e2b

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func layerFile(name, content string, mode fs.FileMode) LayerFile {
	return LayerFile{Name: name, Mode: mode, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

func newTestLayer(t *testing.T, files ...LayerFile) *Layer {
	t.Helper()
	l, err := NewLayer(files...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLayerPrints prints what it is, and not where it is in memory.
func TestLayerPrints(t *testing.T) {
	l := newTestLayer(t, layerFile("a/b", "x", 0), layerFile("c", "y", 0))
	want := "layer " + l.Hash() + " (files: 2)"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, l); got != want {
			t.Errorf("%s: %q, want %q", verb, got, want)
		}
	}
	if got := fmt.Sprint(&Layer{}); got != "layer without a hash (files: 0)" {
		t.Errorf("of none: %q", got)
	}
	if got := fmt.Sprint((*Layer)(nil)); got != "<nil>" {
		t.Errorf("of nil: %q", got)
	}
}

// unpack lists what is in an archive.
func unpack(t *testing.T, archive []byte) (list []string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %s %q", h.FileInfo().Mode(), h.Name, content))
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%+v", h)
		}
	}
	if _, err := io.Copy(io.Discard, zip); err != nil {
		t.Error(err)
	}
	return list
}

func archive(t *testing.T, l *Layer) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLayer(t *testing.T) {
	files := []LayerFile{
		layerFile("b/c/d", "deep", 0o600),
		layerFile("a", "", 0),
		layerFile("b/a", "run", 0o755),
		{Name: "e", Mode: fs.ModeDir},
		{Name: "b", Mode: fs.ModeDir | 0o700},
	}
	l := newTestLayer(t, files...)
	packed := archive(t, l)
	want := []string{
		`-rw-r--r-- a ""`,
		`drwx------ b/ ""`,
		`-rwxr-xr-x b/a "run"`,
		`drwxr-xr-x b/c/ ""`,
		`-rw------- b/c/d "deep"`,
		`drwxr-xr-x e/ ""`,
	}
	if diff := cmp.Diff(want, unpack(t, packed)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	turned := newTestLayer(t, files[3], files[2], files[1], files[4], files[0])
	if turned.Hash() != l.Hash() || !bytes.Equal(archive(t, turned), packed) {
		t.Error("the order of the files matters")
	}
	// It is in the names of what was built with it: another recipe would
	// build all of it anew.
	if recipe := "91af1e9c72fc4b094578420af4eb9e5cafb591f2f5b9ddb9bee5e07672fa0353"; l.Hash() != recipe {
		t.Errorf("its hash is %s", l.Hash())
	}
}

func TestLayerHash(t *testing.T) {
	seen := map[string]string{}
	for name, files := range map[string][]LayerFile{
		"empty":      nil,
		"file":       {layerFile("a", "x", 0)},
		"content":    {layerFile("a", "y", 0)},
		"more":       {layerFile("a", "xx", 0)},
		"name":       {layerFile("b", "x", 0)},
		"mode":       {layerFile("a", "x", 0o755)},
		"two":        {layerFile("a", "x", 0), layerFile("b", "x", 0)},
		"other two":  {layerFile("a", "x", 0), layerFile("b", "y", 0)},
		"empty file": {layerFile("a", "", 0)},
		"directory":  {{Name: "a", Mode: fs.ModeDir | 0o644}},
		"newline":    {layerFile("a 644 false 1 \n1:b", "x", 0)},
	} {
		hash := newTestLayer(t, files...).Hash()
		if len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != "" {
			t.Errorf("%s: E2B does not take the hash %q", name, hash)
		}
		if other, ok := seen[hash]; ok {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[hash] = name
	}
	if a, b := newTestLayer(t, layerFile("a/b", "x", 0)), newTestLayer(t, LayerFile{Name: "a", Mode: fs.ModeDir}, layerFile("a/b", "x", 0o644)); a.Hash() != b.Hash() {
		t.Error("what is meant and what is said have different hashes")
	}
}

func TestLayerErrors(t *testing.T) {
	failing := layerFile("a", "", 0)
	failing.Open = func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(fs.ErrPermission)), nil }
	failing.Size = 1
	closed := layerFile("a", "", 0)
	closed.Open = func() (io.ReadCloser, error) { return nil, fs.ErrClosed }
	short, long := layerFile("a", "abc", 0), layerFile("a", "abc", 0)
	short.Size, long.Size = 4, 2
	for name, test := range map[string]struct {
		files []LayerFile
		is    error
	}{
		"absolute":       {[]LayerFile{layerFile("/a", "", 0)}, ErrInvalid},
		"above":          {[]LayerFile{layerFile("../a", "", 0)}, ErrInvalid},
		"within":         {[]LayerFile{layerFile("a/../../b", "", 0)}, ErrInvalid},
		"root":           {[]LayerFile{layerFile(".", "", 0)}, ErrInvalid},
		"no name":        {[]LayerFile{layerFile("", "", 0)}, ErrInvalid},
		"no text":        {[]LayerFile{layerFile("\xff", "", 0)}, ErrInvalid},
		"link":           {[]LayerFile{layerFile("a", "", fs.ModeSymlink|0o777)}, ErrInvalid},
		"device":         {[]LayerFile{layerFile("a", "", fs.ModeDevice|0o666)}, ErrInvalid},
		"set-user-ID":    {[]LayerFile{layerFile("a", "", fs.ModeSetuid|0o755)}, ErrInvalid},
		"twice":          {[]LayerFile{layerFile("a", "", 0), layerFile("a", "x", 0)}, ErrInvalid},
		"below a file":   {[]LayerFile{layerFile("a", "", 0), layerFile("a/b/c", "", 0)}, ErrInvalid},
		"no content":     {[]LayerFile{{Name: "a"}}, ErrInvalid},
		"full directory": {[]LayerFile{layerFile("a", "x", fs.ModeDir)}, ErrInvalid},
		"negative":       {[]LayerFile{{Name: "a", Size: -1, Open: failing.Open}}, ErrInvalid},
		"short":          {[]LayerFile{short}, ErrInvalid},
		"long":           {[]LayerFile{long}, ErrInvalid},
		"no right":       {[]LayerFile{failing}, fs.ErrPermission},
		"no file":        {[]LayerFile{closed}, fs.ErrClosed},
	} {
		if l, err := NewLayer(test.files...); !errors.Is(err, test.is) || l != nil {
			t.Errorf("%s: %v, %v, want %v", name, l, err, test.is)
		}
	}
	if _, err := NewLayerFS(os.DirFS(t.TempDir() + "/none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("NewLayerFS: %v, want fs.ErrNotExist", err)
	}
}

func TestLayerFS(t *testing.T) {
	l, err := NewLayerFS(fstest.MapFS{
		"a/b": {Data: []byte("x"), Mode: 0o755},
		"c":   {Data: []byte("y"), Mode: 0o444},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`dr-xr-xr-x a/ ""`, `-rwxr-xr-x a/b "x"`, `-r--r--r-- c "y"`}
	if diff := cmp.Diff(want, unpack(t, archive(t, l))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := NewLayerFS(fstest.MapFS{"a": {Mode: fs.ModeSymlink}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a link: %v, want ErrInvalid", err)
	}
}

// storage is E2B's side of an upload, and what has come.
type storage struct {
	t       *testing.T
	present bool
	url     string                                                   // the place that is named; empty means its own
	put     func(n int, w http.ResponseWriter, r *http.Request) bool // answers the n-th, or else takes it

	asked, puts int
	got         []byte
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/status"):
		io.WriteString(w, `{"status":"waiting"}`)
	case r.Method == http.MethodPost:
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		s.asked++
		url := s.url
		if url == "" {
			url = "http://storage.test/bucket/x?signature=" + canary
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"present":%t,"url":%q}`, s.present, url)
	default:
		s.puts++
		for name := range r.Header {
			if name != "User-Agent" {
				s.t.Errorf("the storage is sent %s: %s", name, r.Header.Get(name))
			}
		}
		if r.Method != http.MethodPut || r.URL.String() != "http://storage.test/bucket/x?signature="+canary {
			s.t.Errorf("%s %s", r.Method, r.URL)
		}
		if s.put != nil && s.put(s.puts, w, r) {
			return
		}
		var err error
		if s.got, err = io.ReadAll(r.Body); err != nil || int64(len(s.got)) != r.ContentLength {
			s.t.Errorf("%d of %d bytes, %v", len(s.got), r.ContentLength, err)
		}
	}
}

func TestUploadLayer(t *testing.T) {
	status := func(statuses ...int) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, _ *http.Request) bool {
			status := statuses[min(n, len(statuses))-1]
			if status == 0 {
				panic(http.ErrAbortHandler)
			}
			if status == 307 {
				w.Header().Set("Location", "http://elsewhere.test/")
			}
			w.WriteHeader(status)
			io.WriteString(w, "<Error/>")
			return status != 200
		}
	}
	for _, test := range []struct {
		name    string
		storage storage
		puts    int
		text    string // of the error; empty means none
	}{
		{name: "new", puts: 1},
		{name: "there", storage: storage{present: true}},
		{name: "unwilling", storage: storage{put: status(503, 0, 200)}, puts: 3},
		{name: "forbidden", storage: storage{put: status(403)}, puts: 1, text: "upload layer: storage: 403 Forbidden; the place that E2B named"},
		{name: "redirects", storage: storage{put: status(307)}, puts: 1, text: "redirects, which is not followed"},
		{name: "chunks", storage: storage{put: status(501)}, puts: 1, text: "501 Not Implemented"},
		{name: "no place", storage: storage{url: " "}, text: "the place that the server names"},
		{name: "a file", storage: storage{url: "file:///etc/passwd"}, text: "is not one for HTTP"},
		{name: "a user", storage: storage{url: "http://u:p@storage.test/"}, text: "has a user"},
		{name: "no host", storage: storage{url: "http:///x"}, text: "has no host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			temp := t.TempDir()
			for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
				t.Setenv(name, temp)
			}
			synctest.Test(t, func(t *testing.T) {
				s := test.storage
				s.t = t
				c := newTestClient(t, serve(t, &s))
				l := newTestLayer(t, layerFile("bin/w", "program", 0o755))
				o := BuildOptions{Name: "mine", FromImage: "i", Steps: []BuildStep{CopyStep(l, "/opt", "root"), CopyStep(l, "/usr", "")}}
				err := c.StartBuild(t.Context(), &Build{ID: "b1", TemplateID: "t1"}, o)
				if test.text == "" && err != nil || test.text != "" && !strings.Contains(fmt.Sprint(err), test.text) {
					t.Errorf("error %v, want %q", err, test.text)
				}
				if strings.Contains(fmt.Sprint(err), canary) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrBuildUnsupported) {
					t.Errorf("error %v", err)
				}
				if s.puts != test.puts || s.asked != 1 {
					t.Errorf("%d questions, %d uploads, want %d", s.asked, s.puts, test.puts)
				}
				if test.puts > 0 && test.text == "" {
					if diff := cmp.Diff([]string{`drwxr-xr-x bin/ ""`, `-rwxr-xr-x bin/w "program"`}, unpack(t, s.got)); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				}
			})
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// The step names the layer, and copies all of it.
func TestCopyStep(t *testing.T) {
	l := newTestLayer(t, layerFile("a", "x", 0))
	o := BuildOptions{Steps: []BuildStep{CopyStep(l, "/opt", "root:staff")}}
	want := []stepBody{{Kind: "COPY", Args: []string{".", "/opt", "root:staff", ""}, Hash: l.Hash()}}
	if diff := cmp.Diff(want, o.start().Steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A file that changes between the hash and the upload would be known by the
// hash of what it was.
func TestLayerChanges(t *testing.T) {
	for name, then := range map[string]string{"content": "y", "size": "xx", "nothing left": ""} {
		content := "x"
		f := layerFile("a", "x", 0)
		f.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
		l := newTestLayer(t, f)
		content = then
		synctest.Test(t, func(t *testing.T) {
			s := &storage{t: t}
			c := newTestClient(t, serve(t, s))
			o := BuildOptions{Name: "mine", FromImage: "i", Steps: []BuildStep{CopyStep(l, "/opt", "")}}
			if err := c.StartBuild(t.Context(), &Build{ID: "b1", TemplateID: "t1"}, o); !errors.Is(err, ErrChanged) || s.puts != 0 {
				t.Errorf("%s: %d uploads, %v", name, s.puts, err)
			}
		})
	}
}

func TestLayerWriteEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	f := layerFile("a", "x", 0)
	open := f.Open
	opened := 0
	f.Open = func() (io.ReadCloser, error) {
		if opened++; opened > 1 {
			cancel(errors.New("enough"))
		}
		return open()
	}
	l := newTestLayer(t, f)
	if err := l.write(ctx, io.Discard); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("error %v", err)
	}
}
