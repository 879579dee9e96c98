package e2b

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

func mustGunzip(r io.Reader) io.Reader {
	z, err := gzip.NewReader(r)
	if err != nil {
		panic(err)
	}
	return z
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// onlyReader hides that a reader can be read again.
type onlyReader struct{ io.Reader }

func TestUpload(t *testing.T) {
	data := randomBytes(300_000)
	broken := errors.New("broken")
	for _, test := range []struct {
		name string
		r    io.Reader
		size int64
		opts []UploadOption
		want error // nil means any
		ok   bool
	}{
		{name: "again", r: bytes.NewReader(data), size: 300_000, ok: true},
		{name: "once", r: onlyReader{bytes.NewReader(data)}, size: 300_000, ok: true},
		{name: "small reads", r: iotest.OneByteReader(bytes.NewReader(data[:999])), size: 999, ok: true},
		{name: "gzip", r: bytes.NewReader(data), size: 300_000, opts: []UploadOption{WithGzip()}, ok: true},
		{name: "gzip once", r: onlyReader{bytes.NewReader(data)}, size: 300_000, opts: []UploadOption{WithGzip()}, ok: true},
		{name: "empty", r: bytes.NewReader(nil), ok: true},
		{name: "empty gzip", r: bytes.NewReader(nil), opts: []UploadOption{WithGzip()}, ok: true},
		{name: "short", r: bytes.NewReader(data), size: 300_001, want: io.ErrUnexpectedEOF},
		{name: "short gzip", r: bytes.NewReader(data), size: 300_001, opts: []UploadOption{WithGzip()}, want: io.ErrUnexpectedEOF},
		{name: "long", r: bytes.NewReader(data), size: 299_999},
		{name: "long gzip", r: bytes.NewReader(data), size: 299_999, opts: []UploadOption{WithGzip()}},
		{name: "long once", r: onlyReader{bytes.NewReader(data)}, size: 299_999},
		{name: "not empty", r: bytes.NewReader(data), size: 0},
		{name: "broken", r: io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), size: 400_000, want: broken},
		{name: "broken at once", r: iotest.ErrReader(broken), size: 0, want: broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := sandboxOf(t, orderly(diskDaemon(nil)))
			name := filepath.Join(dir, "new", "file")
			err := s.Upload(t.Context(), name, test.r, test.size, test.opts...)
			if (err == nil) != test.ok || test.want != nil && !errors.Is(err, test.want) {
				t.Fatalf("Upload: %v, want %v", err, test.want)
			}
			var want []string
			if test.ok {
				want = []string{"file"}
				got, err := os.ReadFile(name)
				if err != nil || !bytes.Equal(got, data[:test.size]) {
					t.Errorf("the file has %d bytes, %v; want %d", len(got), err, test.size)
				}
			}
			if diff := cmp.Diff(want, namesIn(t, filepath.Dir(name))); diff != "" {
				t.Errorf("files afterwards (-want +got):\n%s", diff)
			}
		})
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestUploadFromPosition(t *testing.T) {
	r := strings.NewReader("skipped and read")
	if _, err := r.Seek(int64(len("skipped and ")), io.SeekStart); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := sandboxOf(t, diskDaemon(nil)).Upload(t.Context(), name, r, 4); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); string(got) != "read" || err != nil {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

// TestUploadCut checks that an upload begins again after a cut, where it can.
func TestUploadCut(t *testing.T) {
	data := randomBytes(1 << 20)
	for _, test := range []struct {
		name  string
		r     io.Reader
		tries int32
		ok    bool
	}{
		{"again", bytes.NewReader(data), 2, true},
		{"once", onlyReader{bytes.NewReader(data)}, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tries atomic.Int32
			s := sandboxOf(t, diskDaemon(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost || r.URL.Path != "/files" || tries.Add(1) > 1 {
					return false
				}
				io.CopyN(io.Discard, r.Body, 100_000)
				panic(http.ErrAbortHandler)
			}))
			name := filepath.Join(t.TempDir(), "file")
			err := s.Upload(t.Context(), name, test.r, int64(len(data)))
			if (err == nil) != test.ok || tries.Load() != test.tries {
				t.Fatalf("Upload: %v after %d tries; want success %t after %d", err, tries.Load(), test.ok, test.tries)
			}
			if got, _ := os.ReadFile(name); test.ok && !bytes.Equal(got, data) {
				t.Error("the file differs")
			}
		})
	}
}

// TestUploadMoveLost loses the answer to the move that makes a file appear.
func TestUploadMoveLost(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprintf("done %t", done), func(t *testing.T) {
			var moves atomic.Int32
			var disk http.Handler
			s := sandboxOf(t, diskDaemon(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != envdpb.FilesystemMove || moves.Add(1) > 1 {
					return false
				}
				if done {
					disk.ServeHTTP(discardResponse{}, r)
				}
				panic(http.ErrAbortHandler)
			}))
			disk = diskDaemon(nil)
			name := filepath.Join(t.TempDir(), "file")
			if err := s.Upload(t.Context(), name, strings.NewReader("data"), 4); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(name); string(got) != "data" || err != nil {
				t.Errorf("the file holds %q, %v", got, err)
			}
		})
	}
}

type discardResponse struct{}

func (discardResponse) Header() http.Header         { return http.Header{} }
func (discardResponse) Write(b []byte) (int, error) { return len(b), nil }
func (discardResponse) WriteHeader(int)             {}

func TestUploadRefused(t *testing.T) {
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/files" {
			w.WriteHeader(http.StatusInsufficientStorage)
			io.WriteString(w, `{"code":507,"message":"not enough disk space available"}`)
		}
	}))
	err := s.Upload(t.Context(), "/x", bytes.NewReader(make([]byte, 1<<20)), 1<<20)
	if !errors.Is(err, ErrDiskFull) {
		t.Errorf("Upload to a full disk: %v, want ErrDiskFull", err)
	}
	for _, name := range []string{"", "/", "dir/", "dir/.", ".."} {
		if err := s.Upload(t.Context(), name, strings.NewReader(""), 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("Upload to %q: %v, want ErrInvalid", name, err)
		}
	}
}

// cutter cuts answers to downloads after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(b []byte) (int, error) {
	if c.left -= len(b); c.left < 0 {
		c.ResponseWriter.Write(b[:max(0, c.left+len(b))])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

func TestDownloadResumes(t *testing.T) {
	data := randomBytes(1_000_000)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int32
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		diskDaemon(nil).ServeHTTP(&cutter{w, 150_000}, r)
	}))
	d, err := s.Download(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size() != int64(len(data)) {
		t.Errorf("Size is %d, want %d", d.Size(), len(data))
	}
	got, err := io.ReadAll(d)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v; want the %d of the file", len(got), err, len(data))
	}
	if n := requests.Load(); n < 5 {
		t.Errorf("%d requests: nothing was cut", n)
	}
}

func TestDownloadFails(t *testing.T) {
	for _, test := range []struct {
		name  string
		after func(name string) // once the first answer was cut
		want  error
	}{
		{"changed", func(name string) { os.WriteFile(name, randomBytes(1_000_001), 0o600) }, ErrChanged},
		{"touched", func(name string) { os.Chtimes(name, time.Time{}, time.Now().Add(time.Hour)) }, ErrChanged},
		{"shrunk", func(name string) { os.Truncate(name, 10) }, ErrChanged},
		{"removed", func(name string) { os.Remove(name) }, fs.ErrNotExist},
		{"no progress", func(string) {}, io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(name, randomBytes(1_000_000), 0o600); err != nil {
				t.Fatal(err)
			}
			var requests atomic.Int32
			s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				left := 500_000
				if requests.Add(1) > 1 {
					left = 0
				}
				diskDaemon(nil).ServeHTTP(&cutter{w, left}, r)
			}))
			d, err := s.Download(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := io.ReadFull(d, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			test.after(name)
			if n, err := io.Copy(io.Discard, d); !errors.Is(err, test.want) {
				t.Errorf("read %d bytes, %v; want %v", n, err, test.want)
			}
		})
	}
}

func TestDownloadMissing(t *testing.T) {
	s := sandboxOf(t, diskDaemon(nil))
	_, err := s.Download(t.Context(), filepath.Join(t.TempDir(), "missing"))
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrNotFound) {
		t.Errorf("Download: %v, want fs.ErrNotExist and ErrNotFound", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Download(ctx, "/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Download: %v, want context.Canceled", err)
	}
}

func TestDownloadClosed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, randomBytes(10_000_000), 0o600); err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int32
	d, err := sandboxOf(t, diskDaemon(func(http.ResponseWriter, *http.Request) bool {
		requests.Add(1)
		return false
	})).Download(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) || requests.Load() != 1 {
		t.Errorf("Read after Close: %v with %d requests, want fs.ErrClosed", err, requests.Load())
	}
}

func TestReadRange(t *testing.T) {
	dir := t.TempDir()
	name, empty := filepath.Join(dir, "file"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(name, []byte("0123456789"), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	type result struct {
		Data string
		Size int64
	}
	for _, test := range []struct {
		name      string
		offset, n int64
		want      result
		is        error
	}{
		{name, 0, -1, result{"0123456789", 10}, nil},
		{name, 3, 4, result{"3456", 10}, nil},
		{name, 8, 100, result{"89", 10}, nil},
		{name, 8, 1<<63 - 1, result{"89", 10}, nil},
		{name, 10, -1, result{"", 10}, nil},
		{name, 99, 5, result{"", 10}, nil},
		{empty, 0, -1, result{"", 0}, nil},
		{empty, 7, -1, result{"", 0}, nil},
		{name, -1, -1, result{}, ErrInvalid},
		{name, 0, 0, result{}, ErrInvalid},
		{name + "x", 0, -1, result{}, fs.ErrNotExist},
	} {
		eachDaemon(t, func(t *testing.T, s *Sandbox) {
			var got result
			r, size, err := s.ReadRange(t.Context(), test.name, test.offset, test.n)
			if err == nil {
				defer r.Close()
				data, readErr := io.ReadAll(r)
				got, err = result{string(data), size}, readErr
			}
			if !errors.Is(err, test.is) {
				t.Fatalf("ReadRange(%q, %d, %d): %v, want %v", test.name, test.offset, test.n, err, test.is)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("ReadRange(%q, %d, %d) (-want +got):\n%s", test.name, test.offset, test.n, diff)
			}
		})
	}
}

// eachDaemon runs a test on the daemon of the tests, and on the real one where
// there is one, which must be on this computer.
func eachDaemon(t *testing.T, run func(t *testing.T, s *Sandbox)) {
	t.Run("Fake", func(t *testing.T) { run(t, sandboxOf(t, diskDaemon(nil))) })
	t.Run("Real", func(t *testing.T) { run(t, realSandbox(t)) })
}

func TestContentRange(t *testing.T) {
	for s, want := range map[string]byteRange{
		"bytes 0-9/10":                   {0, 9, 10},
		"bytes 7-8/10":                   {7, 8, 10},
		"bytes */10":                     {-1, -1, 10},
		"bytes 7-10/10":                  {},
		"bytes 9-7/10":                   {},
		"bytes -1-2/10":                  {},
		"bytes 7-9/*":                    {},
		"bytes 7/10":                     {},
		"bytes */-1":                     {},
		"7-9/10":                         {},
		"":                               {},
		"bytes 0-9/1e1":                  {},
		"bytes 0-9/99999999999999999999": {},
	} {
		if got, ok := contentRange(s); got != want || ok != (want != byteRange{}) {
			t.Errorf("contentRange(%q) = %v, %t; want %v", s, got, ok, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-9/10")
	f.Add("bytes */10")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := contentRange(s)
		if none := (byteRange{-1, -1, r.size}); ok && (r.size < 0 || r != none && (r.first < 0 || r.last < r.first || r.last >= r.size)) {
			t.Errorf("contentRange(%q) = %v", s, r)
		}
	})
}

func TestUploadPackage(t *testing.T) {
	dir := t.TempDir()
	var files []File
	var want []string
	for i := range 20 {
		name := fmt.Sprintf("file-%02d", i)
		want = append(want, name)
		files = append(files, File{
			Path: filepath.Join(dir, name), Size: int64(len(name)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(name)), nil },
		})
	}
	eachDaemon(t, func(t *testing.T, s *Sandbox) {
		if err := s.UploadPackage(t.Context(), files); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, namesIn(t, dir)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		broken := errors.New("broken")
		err := s.UploadPackage(t.Context(), []File{{Path: dir + "/x", Open: func() (io.ReadCloser, error) { return nil, broken }}})
		if !errors.Is(err, broken) {
			t.Errorf("UploadPackage of a file that cannot be opened: %v", err)
		}
	})
}

func TestDownloadArtifacts(t *testing.T) {
	from := t.TempDir()
	for name, data := range map[string]string{"a": "1", "sub/b": "22", "sub/deep/c": "", "sub/x.part": "333"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(from, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(from, name), []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"link", "dangling", "dir-link"} {
		target := map[string]string{"link": "a", "dangling": "nothing", "dir-link": "sub"}[link]
		if err := os.Symlink(target, filepath.Join(from, link)); err != nil {
			t.Fatal(err)
		}
	}
	eachDaemon(t, func(t *testing.T, s *Sandbox) {
		to := filepath.Join(t.TempDir(), "new")
		skipped := map[string]bool{}
		infos, err := s.DownloadArtifacts(t.Context(), from, to, ArtifactOptions{Skipped: func(i FileInfo) { skipped[i.Name] = true }})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, info := range infos {
			rel, err := filepath.Rel(from, info.Path)
			if err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(filepath.Join(to, rel))
			if err != nil || info.Size != int64(len(data)) {
				t.Errorf("%s: %d bytes, %v; want %d", rel, len(data), err, info.Size)
			}
			got[rel] = string(data)
		}
		if diff := cmp.Diff(map[string]string{"a": "1", "sub/b": "22", "sub/deep/c": "", "sub/x.part": "333"}, got); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]bool{"link": true, "dangling": true, "dir-link": true}, skipped); diff != "" {
			t.Errorf("skipped (-want +got):\n%s", diff)
		}
		if _, err := s.DownloadArtifacts(t.Context(), from+"x", to, ArtifactOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("DownloadArtifacts of a missing directory: %v, want fs.ErrNotExist", err)
		}
	})
}

// TestDownloadArtifactsHostile checks that no name leads out of the local
// directory.
func TestDownloadArtifactsHostile(t *testing.T) {
	for _, name := range []string{"/top/../../evil", "/elsewhere/evil", "/top/", "/topper/evil", "evil", ""} {
		mux := http.NewServeMux()
		handle(mux, envdpb.FilesystemStat, func(*envdpb.StatRequest) (*envdpb.StatResponse, error) {
			return &envdpb.StatResponse{Entry: &envdpb.EntryInfo{Path: "/top", Type: envdpb.FileType_FILE_TYPE_DIRECTORY}}, nil
		})
		handle(mux, envdpb.FilesystemListDir, func(*envdpb.ListDirRequest) (*envdpb.ListDirResponse, error) {
			return &envdpb.ListDirResponse{Entries: []*envdpb.EntryInfo{{Path: name, Type: envdpb.FileType_FILE_TYPE_FILE}}}, nil
		})
		mux.HandleFunc("GET /files", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "evil") })
		outer := t.TempDir()
		infos, err := sandboxOf(t, mux).DownloadArtifacts(t.Context(), "/top", filepath.Join(outer, "in", "local"), ArtifactOptions{})
		if err == nil || len(infos) != 0 {
			t.Errorf("DownloadArtifacts of %q: %v, %v; want an error", name, infos, err)
		}
		if diff := cmp.Diff([]string{"in"}, namesIn(t, outer)); diff != "" {
			t.Errorf("%q gets out (-want +got):\n%s", name, diff)
		}
	}
}
