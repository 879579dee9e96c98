package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/inproc"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// storeSandbox has files, and processes that pack them.
type storeSandbox struct {
	Sandbox
	files     map[string][]byte
	pack      func(paths []string, stdout io.Writer) int // the real one where it is nil
	startErr  error
	fetch     func(name string) error // before a download
	starts    atomic.Int64
	downloads atomic.Int64
}

func (s *storeSandbox) content(name string) ([]byte, error) {
	b, ok := s.files[strings.TrimPrefix(name, "/run/artifacts/")]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return b, nil
}

func (s *storeSandbox) Download(_ context.Context, name string) (io.ReadCloser, error) {
	s.downloads.Add(1)
	if s.fetch != nil {
		if err := s.fetch(name); err != nil {
			return nil, err
		}
	}
	b, err := s.content(name)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (s *storeSandbox) Start(_ context.Context, cmd Command) (Process, error) {
	s.starts.Add(1)
	if s.startErr != nil {
		return nil, s.startErr
	}
	paths := cmd.Args[slices.Index(cmd.Args, "--")+1:]
	return &goProcess{inproc.Start(func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
		if s.pack != nil {
			return s.pack(paths, stdout)
		}
		for i, name := range paths {
			writePacked(stdout, i, false, s.files[name])
		}
		return 0
	}, cmd.Stderr)}, nil
}

func writePacked(w io.Writer, index int, failed bool, content []byte) {
	var b [rpc.PackHeaderSize]byte
	rpc.PackHeader{Index: uint32(index), Failed: failed, Size: uint32(len(content))}.Put(&b)
	_, _ = w.Write(b[:])
	_, _ = w.Write(content)
}

// newStore makes a sandbox with files, and the list of these.
func newStore(sizes ...int) (*storeSandbox, *sealed) {
	random := rand.NewChaCha8([32]byte{7})
	sb := &storeSandbox{files: make(map[string][]byte)}
	list := &sealed{}
	for i, size := range sizes {
		content := make([]byte, size)
		_, _ = random.Read(content)
		a := sealedFile(fmt.Sprintf("a/%03d", i), content)
		sb.files[a.Path] = content
		list.artifacts = append(list.artifacts, a)
	}
	return sb, list
}

func sealedFile(name string, content []byte) rpc.Artifact {
	_, sum, _ := rpc.XXH3(bytes.NewReader(content))
	return rpc.Artifact{Path: name, Size: int64(len(content)), SHA256: sha256Hex(content), XXH3: sum, Mode: 0o644}
}

func manySizes(n, size int) []int { return slices.Repeat([]int{size}, n) }

// fetchAll downloads a list into a directory of its own, or the same again.
func fetchAll(ctx context.Context, sb Sandbox, list *sealed, dir string, verify Verify) (*CollectedArtifacts, error) {
	got := &CollectedArtifacts{ArtifactsDir: dir}
	err := download(ctx, &place{sandbox: sb, dir: "/run", program: "/worker"}, list, got, verify, func(slog.Level, string, ...any) {}, func() error { return nil })
	return got, err
}

// checkFiles compares what is in a directory with what a sandbox has, but for some.
func checkFiles(t *testing.T, dir string, files map[string][]byte, missing ...string) {
	t.Helper()
	for name, content := range files {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if slices.Contains(missing, name) {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is there: %v", name, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever a sandbox sends for an archive, files come home right or not at all,
// and the rest is asked for one by one.
func TestArchiveHostile(t *testing.T) {
	t.Parallel()
	const count = 100
	header := func(index, status, size uint32) []byte {
		var b [rpc.PackHeaderSize]byte
		rpc.PackHeader{Index: index, Size: size}.Put(&b)
		b[4] = byte(status)
		return b[:]
	}
	pour := func(w io.Writer, b []byte) int {
		for {
			if _, err := w.Write(b); err != nil {
				return 0
			}
		}
	}
	type sandbox = *storeSandbox
	for _, test := range []struct {
		name      string
		pack      func(sb sandbox, paths []string, w io.Writer) int
		starts    int64
		downloads int64
		failed    []string
	}{
		{name: "honest", starts: 1},
		{name: "order", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range slices.Backward(paths) {
				writePacked(w, i, false, sb.files[name])
			}
			return 0
		}, starts: 1, downloads: count},
		{name: "twice", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths {
				writePacked(w, i, false, sb.files[name])
				writePacked(w, i, false, sb.files[name])
			}
			return 0
		}, starts: 1, downloads: count - 1},
		{name: "huge", pack: func(_ sandbox, _ []string, w io.Writer) int {
			_, _ = w.Write(header(0, 0, 1<<32-1))
			return pour(w, make([]byte, 1<<16))
		}, starts: 1, downloads: count},
		{name: "long reason", pack: func(_ sandbox, _ []string, w io.Writer) int {
			_, _ = w.Write(header(0, 1, rpc.MaxPackedError+1))
			return pour(w, make([]byte, 1<<16))
		}, starts: 1, downloads: count},
		{name: "unknown", pack: func(_ sandbox, _ []string, w io.Writer) int {
			_, _ = w.Write(header(0, 2, 0))
			return 0
		}, starts: 1, downloads: count},
		{name: "zeros", pack: func(_ sandbox, _ []string, w io.Writer) int { return pour(w, make([]byte, 1<<16)) }, starts: 1, downloads: count - 1, failed: []string{"a/000"}},
		{name: "text", pack: func(_ sandbox, _ []string, w io.Writer) int { return pour(w, []byte("Segmentation fault\n")) }, starts: 1, downloads: count},
		{name: "nothing", pack: func(sandbox, []string, io.Writer) int { return 1 }, starts: archiveTries, downloads: count},
		{name: "early end", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths[:min(len(paths), 30)] {
				writePacked(w, i, false, sb.files[name])
			}
			_, _ = w.Write(header(0, 0, 1)[:5])
			return 0
		}, starts: 4},
		{name: "in the middle of a file", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths[:min(len(paths), 40)] {
				writePacked(w, i, false, sb.files[name])
			}
			_, _ = w.Write(append(header(40, 0, 1000), 1, 2, 3))
			return 0
		}, starts: 3},
		{name: "endless", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths {
				writePacked(w, i, false, sb.files[name])
			}
			return pour(w, []byte("more"))
		}, starts: 1},
		{name: "other content", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths {
				content := slices.Clone(sb.files[name])
				if i == 3 {
					content[500]++
				}
				writePacked(w, i, false, content)
			}
			return 0
		}, starts: 1, failed: []string{"a/003"}},
		{name: "other sizes", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths {
				switch i {
				case 5:
					writePacked(w, i, false, sb.files[name][:999])
				case 6:
					writePacked(w, i, false, append(slices.Clone(sb.files[name]), 0))
				case 7:
					writePacked(w, i, false, nil)
				default:
					writePacked(w, i, false, sb.files[name])
				}
			}
			return 0
		}, starts: 1, failed: []string{"a/005", "a/006", "a/007"}},
		{name: "reasons", pack: func(sb sandbox, paths []string, w io.Writer) int {
			for i, name := range paths {
				if i%50 == 1 {
					writePacked(w, i, true, []byte("\x1b[2J\nowned\xff"))
				} else {
					writePacked(w, i, false, sb.files[name])
				}
			}
			return 0
		}, starts: 1, failed: []string{"a/001", "a/051"}},
		{name: "older worker", pack: func(sandbox, []string, io.Writer) int { return 2 }, starts: 1, downloads: count},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			sb, list := newStore(manySizes(count, 1000)...)
			if test.pack != nil {
				sb.pack = func(paths []string, w io.Writer) int { return test.pack(sb, paths, w) }
			}
			dir := t.TempDir()
			got, err := fetchAll(t.Context(), sb, list, dir, "")
			var failed []string
			var partial *CollectError
			if errors.As(err, &partial) {
				for _, f := range partial.Failed {
					failed = append(failed, f.Path)
					if printableName(f.Reason) != f.Reason || f.Reason == "" {
						t.Errorf("reason %q", f.Reason)
					}
				}
			}
			if diff := cmp.Diff(test.failed, failed); diff != "" || (err != nil) != (len(failed) > 0) {
				t.Errorf("failed (-want +got):\n%s\n%v", diff, err)
			}
			checkFiles(t, dir, sb.files, test.failed...)
			if len(got.Artifacts)+len(failed) != count {
				t.Errorf("%d artifacts are here, %d are not", len(got.Artifacts), len(failed))
			}
			if s, d := sb.starts.Load(), sb.downloads.Load(); s != test.starts || d != test.downloads {
				t.Errorf("%d processes and %d downloads, want %d and %d", s, d, test.starts, test.downloads)
			}
		})
	}
}

// Where no process starts, or one says nothing for long, files come one by one.
func TestArchiveWithoutProcess(t *testing.T) {
	t.Parallel()
	t.Run("not started", func(t *testing.T) {
		sb, list := newStore(manySizes(2*fewArtifacts, 10)...)
		sb.startErr = errors.New("no more processes")
		dir := t.TempDir()
		if _, err := fetchAll(t.Context(), sb, list, dir, ""); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, dir, sb.files)
		if n := sb.starts.Load(); n != 1 {
			t.Errorf("%d processes were tried", n)
		}
	})
	t.Run("silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sb, list := newStore(manySizes(2*fewArtifacts, 10)...)
			ended := make(chan struct{})
			sb.pack = func([]string, io.Writer) int {
				<-ended
				return 0
			}
			dir := t.TempDir()
			if _, err := fetchAll(t.Context(), sb, list, dir, ""); err != nil {
				t.Fatal(err)
			}
			close(ended)
			checkFiles(t, dir, sb.files)
		})
	})
}

// An archive that is anything takes no more memory than a file may have, and is
// refused by an error of a known kind.
func FuzzArchive(f *testing.F) {
	var good bytes.Buffer
	writePacked(&good, 0, false, []byte("abc"))
	writePacked(&good, 1, true, []byte("it is not there"))
	f.Add(good.Bytes(), int64(3))
	f.Add([]byte("Segmentation fault\n"), int64(19))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		in := newArchiveReader(bytes.NewReader(b))
		var buf []byte
		for i := 0; ; i++ {
			content, failed, err := in.next(i, size, buf)
			buf = content
			switch {
			case len(content) > rpc.MaxPacked, failed != "" && len(content) > rpc.MaxPackedError:
				t.Fatalf("%d bytes", len(content))
			case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, ErrProtocol):
				return
			case errors.Is(err, errNotAsSealed):
			case err != nil:
				t.Fatal(err)
			case failed == "" && int64(len(content)) != size:
				t.Fatalf("a file of %d bytes counts as one of %d", len(content), size)
			}
		}
	})
}

// rangeSandbox has one file that is read in parts.
type rangeSandbox struct {
	storeSandbox
	mu  sync.Mutex
	cut func(offset, n int64) (give int64, err error) // of a request
	got int64                                         // bytes that went
}

func (s *rangeSandbox) ReadRange(ctx context.Context, name string, offset, n int64) (io.ReadCloser, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	b, err := s.content(name)
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	give := n
	if s.cut != nil {
		if give, err = s.cut(offset, n); err != nil && give == 0 {
			return nil, 0, err
		}
	}
	s.got += give
	r := io.Reader(bytes.NewReader(b[offset : offset+give]))
	if give < n {
		r = io.MultiReader(r, &failingReader{io.ErrUnexpectedEOF})
	}
	return io.NopCloser(r), int64(len(b)), nil
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// A file that comes in parts, of which many are cut, is whole; one that has
// another size, or cannot be read on, is what had come in order, and the error.
func TestRanged(t *testing.T) {
	t.Parallel()
	const size = 9 << 20
	sb := &rangeSandbox{}
	store, list := newStore(size)
	sb.files = store.files
	want := sb.files[list.artifacts[0].Path]
	broken := errors.New("broken")
	for _, test := range []struct {
		name   string
		offset int64
		size   int64
		cut    func(offset, n int64) (int64, error)
		least  int64 // that comes
		want   error
	}{
		{name: "whole", size: size},
		{name: "rest", offset: 5<<20 + 3, size: size},
		{name: "nothing", offset: size, size: size},
		{name: "cuts", size: size, cut: func(_, n int64) (int64, error) {
			if n > 300<<10 {
				return n * 2 / 3, broken
			}
			return n, nil
		}},
		{name: "resized", size: size - 1, want: errResized},
		{name: "broken", size: size, cut: func(offset, n int64) (int64, error) {
			if end := int64(5 << 20); offset+n > end {
				return max(0, end-offset), broken
			}
			return n, nil
		}, least: 5 << 20, want: broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sb := &rangeSandbox{storeSandbox: storeSandbox{files: sb.files}, cut: test.cut}
				r := openRanged(t.Context(), sb, "/run/artifacts/"+list.artifacts[0].Path, test.offset, test.size, 0)
				defer r.Close()
				var got bytes.Buffer
				var err error
				if test.offset%2 == 0 {
					_, err = r.WriteTo(&got)
				} else {
					_, err = got.ReadFrom(struct{ io.Reader }{r})
				}
				if !errors.Is(err, test.want) || test.want == nil && err != nil {
					t.Errorf("error %v, want %v", err, test.want)
				}
				end := test.offset + int64(got.Len())
				if test.want == nil && end != size || end < test.least || !bytes.Equal(got.Bytes(), want[test.offset:end]) {
					t.Errorf("%d bytes came", got.Len())
				}
			})
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		sb := &rangeSandbox{storeSandbox: storeSandbox{files: sb.files}, cut: func(offset, n int64) (int64, error) {
			cancel(broken)
			return 0, broken
		}}
		r := openRanged(ctx, sb, "/run/artifacts/"+list.artifacts[0].Path, 0, size, 0)
		defer r.Close()
		if n, err := r.WriteTo(io.Discard); n != 0 || !errors.Is(err, broken) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("then %d bytes, %v", n, err)
		}
	})
}

// What is compared with what was sealed, and what the result says of that.
func TestVerify(t *testing.T) {
	t.Parallel()
	const size = 100
	for _, test := range []struct {
		verify    Verify
		change    func(a *rpc.Artifact)
		ok        bool
		verified  Verify
		otherSize bool
	}{
		{verify: "", ok: true, verified: VerifySHA256},
		{verify: VerifySHA256, ok: true, verified: VerifySHA256},
		{verify: VerifySHA256, change: func(a *rpc.Artifact) { a.SHA256 = "0" }},
		{verify: VerifySHA256, change: func(a *rpc.Artifact) { a.XXH3 = "0" }, ok: true, verified: VerifySHA256},
		{verify: VerifyXXH3, ok: true, verified: VerifyXXH3},
		{verify: VerifyXXH3, change: func(a *rpc.Artifact) { a.SHA256 = "0" }, ok: true, verified: VerifyXXH3},
		{verify: VerifyXXH3, change: func(a *rpc.Artifact) { a.XXH3 = "0" }},
		{verify: VerifyXXH3, change: func(a *rpc.Artifact) { a.XXH3 = "" }, ok: true, verified: VerifySHA256},
		{verify: VerifyXXH3, change: func(a *rpc.Artifact) { a.XXH3, a.SHA256 = "", "0" }},
		{verify: VerifyNone, change: func(a *rpc.Artifact) { a.XXH3, a.SHA256 = "0", "0" }, ok: true, verified: VerifyNone},
		{verify: VerifyNone, change: func(a *rpc.Artifact) { a.Size++ }},
		{verify: VerifyNone, change: func(a *rpc.Artifact) { a.Size-- }},
	} {
		for _, files := range []int{1, fewArtifacts} { // by themselves, and in an archive
			sb, list := newStore(manySizes(files, size)...)
			if test.change != nil {
				test.change(&list.artifacts[0])
			}
			sealed := list.artifacts[0]
			got, err := fetchAll(t.Context(), sb, list, t.TempDir(), test.verify)
			if (err == nil) != test.ok || err != nil && !errors.Is(err, errNotAsSealed) {
				t.Errorf("%s, sealed as %+v: %v", test.verify, sealed, err)
			}
			want := []Artifact{{Path: sealed.Path, Size: sealed.Size, SHA256: sealed.SHA256, Verified: test.verified, Mode: 0o644, StepID: "a"}}
			if test.ok {
				if diff := cmp.Diff(want, got.Artifacts[:1]); diff != "" {
					t.Errorf("%s: (-want +got):\n%s", test.verify, diff)
				}
			}
		}
	}
}

// Where nothing comes any more it is not tried for every file; where one file is
// wrong it is.
func TestDownloadGivesUp(t *testing.T) {
	t.Parallel()
	const count = 200
	broken := errors.New("connection refused")
	sb, list := newStore(manySizes(count, 10)...)
	sb.startErr = broken
	sb.fetch = func(string) error { return broken }
	got, err := fetchAll(t.Context(), sb, list, t.TempDir(), "")
	var partial *CollectError
	if !errors.As(err, &partial) || !errors.Is(err, broken) || len(partial.Failed) != count || len(got.Artifacts) != 0 || got.Status != CollectPartial {
		t.Errorf("%+v, %v", got, err)
	}
	if n := sb.downloads.Load(); n > lostInARow+singleStreams {
		t.Errorf("%d files were asked for", n)
	}
	sb.downloads.Store(0)
	sb.fetch = func(string) error { return fs.ErrNotExist }
	if _, err := fetchAll(t.Context(), sb, list, t.TempDir(), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if n := sb.downloads.Load(); n != count {
		t.Errorf("%d files were asked for, want %d", n, count)
	}
	sb.fetch = func(string) error { return ErrSandboxGone }
	sb.downloads.Store(0)
	if _, err := fetchAll(t.Context(), sb, list, t.TempDir(), ""); !errors.Is(err, ErrSandboxGone) || sb.downloads.Load() > singleStreams {
		t.Errorf("%d files were asked for, %v", sb.downloads.Load(), err)
	}
}

// A large file that was cut goes on behind what is there; what is there and wrong
// is found, and comes anew.
func TestDownloadGoesOn(t *testing.T) {
	t.Parallel()
	const size = largeArtifact + 12345
	store, list := newStore(size, 10, 20)
	broken := errors.New("broken")
	half := func(offset, n int64) (int64, error) {
		if end := int64(size / 2); offset+n > end {
			return max(0, end-offset), broken
		}
		return n, nil
	}
	for _, test := range []struct {
		name   string
		change func(t *testing.T, part string)
		most   int64 // bytes that come again
	}{
		{"as it was", func(*testing.T, string) {}, size/2 + 1},
		{"damaged", func(t *testing.T, part string) {
			f, err := os.OpenFile(part, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("damage"), 1000)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Error(err)
			}
		}, size + size/2 + 1},
		{"too long", func(t *testing.T, part string) {
			if err := os.Truncate(part, size+1); err != nil {
				t.Error(err)
			}
		}, size},
		{"gone", func(t *testing.T, part string) {
			if err := os.Remove(part); err != nil {
				t.Error(err)
			}
		}, size},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			sb := &rangeSandbox{storeSandbox: storeSandbox{files: store.files}, cut: half}
			dir := t.TempDir()
			got, err := fetchAll(t.Context(), sb, list, dir, "")
			if !errors.Is(err, broken) || len(got.Artifacts) != 2 {
				t.Fatalf("%+v, %v", got, err)
			}
			parts, err := filepath.Glob(filepath.Join(dir, stagingDir, "*"+partSuffix))
			if err != nil || len(parts) != 1 {
				t.Fatalf("parts %q, %v", parts, err)
			}
			if info, err := os.Stat(parts[0]); err != nil || info.Size() != size/2 {
				t.Errorf("the part: %+v, %v", info, err)
			}
			test.change(t, parts[0])
			sb.cut, sb.got = nil, 0
			sb.downloads.Store(0)
			if got, err = fetchAll(t.Context(), sb, list, dir, ""); err != nil || len(got.Artifacts) != 3 || got.Status != CollectComplete {
				t.Fatalf("%+v, %v", got, err)
			}
			if sb.got > test.most || sb.downloads.Load() != 0 {
				t.Errorf("%d bytes of the large file and %d other files came again", sb.got, sb.downloads.Load())
			}
			checkFiles(t, dir, sb.files)
			if _, err := os.Lstat(filepath.Join(dir, stagingDir)); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		})
	}
}

// The beginning of a large file goes with the next try when the file is another
// one by then: each try could leave one.
func TestDownloadForgets(t *testing.T) {
	t.Parallel()
	store, list := newStore(largeArtifact)
	dir := t.TempDir()
	var left []string
	for _, sum := range []string{"0", "1", "1", "2"} {
		sb := &rangeSandbox{storeSandbox: storeSandbox{files: store.files}, cut: func(offset, n int64) (int64, error) {
			if offset > 0 {
				return 0, ErrSandboxGone
			}
			return n, nil
		}}
		list.artifacts[0].SHA256 = sum
		if _, err := fetchAll(t.Context(), sb, list, dir, ""); !errors.Is(err, ErrSandboxGone) {
			t.Fatal(err)
		}
		parts, err := filepath.Glob(filepath.Join(dir, stagingDir, "*"+partSuffix))
		if err != nil || len(parts) != 1 {
			t.Errorf("%q are there, %v", parts, err)
		}
		left = parts
	}
	if want := filepath.Join(dir, stagingDir, partName(list.artifacts[0])); left[0] != want {
		t.Errorf("%s is there, want %s", left[0], want)
	}
}

// What an earlier try has brought and a newer list does not have goes: it would be
// in the directory, and in no list.
func TestDownloadOfAnotherList(t *testing.T) {
	t.Parallel()
	sb, list := newStore(10, 10, 10)
	dir := t.TempDir()
	keep := filepath.Join(dir, "a", "of the host")
	if err := errors.Join(os.Mkdir(filepath.Dir(keep), 0o750), os.WriteFile(keep, nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	last := list.artifacts[2].Path
	sb.fetch = func(name string) error {
		if strings.HasSuffix(name, last) {
			return errors.New("cut")
		}
		return nil
	}
	if got, err := fetchAll(t.Context(), sb, list, dir, ""); !errors.Is(err, ErrCollect) || len(got.Artifacts) != 2 {
		t.Fatalf("%d artifacts, %v", len(got.Artifacts), err)
	}
	// One is gone from the sandbox, and another a directory now.
	sb.fetch = nil
	content := []byte("below")
	below := sealedFile(list.artifacts[1].Path+"/x", content)
	delete(sb.files, list.artifacts[0].Path)
	delete(sb.files, list.artifacts[1].Path)
	sb.files[below.Path] = content
	got, err := fetchAll(t.Context(), sb, &sealed{artifacts: []rpc.Artifact{below, list.artifacts[2]}}, dir, "")
	if err != nil || got.Status != CollectComplete {
		t.Fatal(got.Status, err)
	}
	sb.files["a/of the host"] = nil
	checkFiles(t, dir, sb.files)
}

// What the real command packs is what is read.
func TestPackAndRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sb, list := newStore(0, 1, 1000, rpc.MaxPacked)
	var paths []string
	for _, a := range list.artifacts {
		paths = append(paths, a.Path)
		name := filepath.Join(dir, filepath.FromSlash(a.Path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o750), os.WriteFile(name, sb.files[a.Path], 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := worker.Pack(t.Context(), worker.OSFS{}, dir, append(paths, "a/none"), &out); err != nil {
		t.Fatal(err)
	}
	in := newArchiveReader(&out)
	for i, a := range list.artifacts {
		content, failed, err := in.next(i, a.Size, nil)
		if err != nil || failed != "" || !bytes.Equal(content, sb.files[a.Path]) {
			t.Errorf("%s: %d bytes, %q, %v", a.Path, len(content), failed, err)
		}
	}
	if _, failed, err := in.next(len(paths), 1, nil); err != nil || failed == "" {
		t.Errorf("a file that is not there: %q, %v", failed, err)
	}
	if _, _, err := in.next(len(paths)+1, 1, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("behind the end: %v", err)
	}
}
