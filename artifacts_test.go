package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// oddNames are names of files that a run may leave and Linux can have.
var oddNames = []string{
	"plain.csv", "with space.txt", " leading and trailing ", "-rf", "--", "-", ".hidden", "...", "~", "a'b\"c`d", "$HOME", "%41%2F", "a&b;c|d>e",
	"back\\slash", "C:drive", "nul.txt", "trailing.", "*", "?", "[a-z]", "{a,b}", "#", "@", "é", "e\u0301", "ß", "日本語.csv", "😀", "\u00a0", "Case", "case", "CASE",
	"cleaned.tmp", ".collect", ".tmp-1", "df", strings.Repeat("n", 255), "deep/er/and/deeper/still.bin", "deep/er/x", "same/Folder/x", "same/folder/x",
}

// runArtifacts leaves artifacts of all kinds in a real directory: names that can
// be brought home, and in the folder "not" what cannot.
func runArtifacts(_ context.Context, s *worker.Step) (*worker.Result, error) {
	var cfg struct {
		Big, Files int
		Odd        bool
		Sparse     int64
	}
	if err := s.DecodeConfig(&cfg); err != nil {
		return nil, err
	}
	var errs []error
	write := func(name string, content []byte, mode os.FileMode) {
		name = filepath.Join(s.ArtifactsDir, filepath.FromSlash(name))
		errs = append(errs, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, mode), os.Chmod(name, mode))
	}
	random := rand.NewChaCha8([32]byte{1})
	content := func(n int) []byte {
		b := make([]byte, n)
		_, _ = random.Read(b) // which does not fail
		return b
	}
	for i := range cfg.Files {
		write(fmt.Sprintf("many/%d/%d", i/1000, i), content(i%100), 0o644)
	}
	if cfg.Big > 0 {
		write("big.bin", content(cfg.Big), 0o600)
	}
	if cfg.Sparse > 0 {
		write("sparse.bin", nil, 0o644)
		errs = append(errs, os.Truncate(filepath.Join(s.ArtifactsDir, "sparse.bin"), cfg.Sparse))
	}
	if cfg.Odd {
		for i, name := range oddNames {
			write("odd/"+name, content(i*i), 0o644)
		}
		write("empty", nil, 0o644)
		write("run.sh", []byte("#!/bin/sh\n"), 0o755)
		write("middle.bin", content(3<<20), 0o640)
		for _, name := range []string{"a\nb", "a\x1b[2Jb", "a\xff", "a\tb", "a\u202eb"} {
			write("not/"+name, []byte("x"), 0o644)
		}
		for name, to := range map[string]string{"passwd": "/etc/passwd", "dangling": "nowhere", "out": "../../..", "self": ".", "file": "../empty"} {
			errs = append(errs, os.Symlink(to, filepath.Join(s.ArtifactsDir, "not", name)))
		}
		errs = append(errs, mkfifo(filepath.Join(s.ArtifactsDir, "not", "fifo")), os.MkdirAll(filepath.Join(s.ArtifactsDir, "not", "nothing"), 0o755))
	}
	return nil, errors.Join(errs...)
}

// notHome is what of runArtifacts is skipped, as it is named, by step a.
var notHome = map[string]string{
	`a/not/a\nb`: "its name has control characters", `a/not/a\x1b[2Jb`: "its name has control characters", `a/not/a\tb`: "its name has control characters",
	`a/not/a\u202eb`: "its name has control characters", `a/not/a\xff`: "its name is not UTF-8",
	"a/not/passwd": "it is a symbolic link, not a regular file", "a/not/dangling": "it is a symbolic link, not a regular file", "a/not/out": "it is a symbolic link, not a regular file",
	"a/not/self": "it is a symbolic link, not a regular file", "a/not/file": "it is a symbolic link, not a regular file", "a/not/fifo": "it is a named pipe, not a regular file",
}

// artifactKinds are adapters whose sandboxes have real files.
func artifactKinds(t *testing.T) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("other systems cannot have all these names")
	}
	kinds := []string{"local", "embedded"}
	if os.Getenv("E2B_ENVD_BIN") != "" {
		kinds = append(kinds, "envd")
	}
	return kinds
}

func artifactManifest(config map[string]any) *remote.Manifest {
	return &remote.Manifest{Name: "artifacts", Steps: []remote.Step{{ID: "a", Driver: "test.artifacts", Config: config}}}
}

// checkSkipped compares what was skipped.
func checkSkipped(t *testing.T, want map[string]string, got []remote.SkippedArtifact) {
	t.Helper()
	reasons := make(map[string]string)
	for _, s := range got {
		reasons[s.Path] = s.Reason
	}
	if diff := cmp.Diff(want, reasons); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
}

// Files of all kinds come home with their bytes, on every adapter the same ones;
// whatever does not is named with the reason. A sparse file of 20 GiB is neither
// read nor sent.
func TestArtifactsOfAllKinds(t *testing.T) {
	t.Parallel()
	var first map[string]string
	kinds := artifactKinds(t)
	for _, kind := range kinds {
		cfg := remote.Config{Artifacts: remote.ArtifactPolicy{MaxFileBytes: 8 << 20, Exclude: []string{"**/*.tmp"}}}
		a, _ := newAdapter(t, kind, cfg, nil)
		ec := newContext(t, "s")
		_, got, err := remote.Run(t.Context(), a, artifactManifest(map[string]any{"odd": true, "sparse": int64(20) << 30, "files": 100}), ec)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		want := map[string]string{
			"a/sparse.bin":      "it has 21474836480 bytes, more than the 8388608 that a file may have",
			"a/odd/cleaned.tmp": `the glob "**/*.tmp" excludes it`,
		}
		for name, why := range notHome {
			want[name] = why
		}
		checkSkipped(t, want, got.Skipped)
		if n := len(got.Artifacts); n != len(oddNames)-1+3+100+1 || got.Status != remote.CollectComplete {
			t.Errorf("%s: %d artifacts, %s", kind, n, got.Status)
		}
		for _, artifact := range got.Artifacts {
			info, err := os.Lstat(filepath.Join(got.ArtifactsDir, filepath.FromSlash(artifact.Path)))
			if err != nil {
				t.Fatal(err)
			}
			mode, here := os.FileMode(0o644), os.FileMode(0o640)
			switch artifact.Path {
			case "a/run.sh":
				mode, here = 0o755, 0o750
			case "a/middle.bin":
				mode = 0o640
			case "a/cleaned_config.json":
				mode = artifact.Mode // as the worker makes it
			}
			if info.Size() != artifact.Size || info.Mode() != here || artifact.Mode != mode || artifact.Verified != remote.VerifySHA256 {
				t.Errorf("%s: %s has mode %v here, %+v", kind, artifact.Path, info.Mode(), artifact)
			}
		}
		all := tree(t, got.ArtifactsDir)
		all["artifacts.json"] = normalJSON(t, tree(t, ec.LogsDir)["artifacts.json"])
		all["_system/run_card.json"] = normalJSON(t, all["_system/run_card.json"])
		if kind == kinds[0] {
			first = all
		} else if diff := cmp.Diff(first, all); diff != "" {
			t.Errorf("%s differs from %s (-%s +%s):\n%s", kind, kinds[0], kinds[0], kind, diff)
		}
	}
}

// A collection that is cut in the middle keeps what it has, and says so; repeated,
// by the same host or by another one, it downloads only the rest.
func TestCollectRepeated(t *testing.T) {
	t.Parallel()
	kinds := slices.DeleteFunc(artifactKinds(t), func(kind string) bool { return kind == "local" })
	for _, kind := range kinds {
		for _, who := range []string{"same", "another"} {
			t.Run(kind+"/"+who, func(t *testing.T) {
				big := 32 << 20
				if stressed() {
					big = 1 << 30
				}
				testCollectRepeated(t, kind, big, who == "another")
			})
		}
	}
}

// A file that has changed since it was listed is listed again, and so is one that
// never stops: that one is missing, and the run has failed.
func TestCollectOfChangedFiles(t *testing.T) {
	for _, test := range []struct {
		name    string
		changes int
		want    error
	}{
		{"once", 1, nil},
		{"twice", 2, nil},
		{"ever", 100, remote.ErrCollect},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var provider *mock.Provider
			var changed int
			opts := &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
				if c.Op != mock.OpDownload || !strings.HasSuffix(c.Path, "file-000000.txt") || c.Bytes > 0 || changed == test.changes {
					return nil
				}
				changed++
				for _, sb := range provider.Sandboxes() {
					return sb.WriteFile(c.Path, []byte(strings.Repeat("x", changed)))
				}
				return nil
			}}
			var a *remote.E2BTransparentProxy
			adapter, p := newAdapter(t, "proxy", remote.Config{}, opts)
			provider, a = p, adapter.(*remote.E2BTransparentProxy)
			ec := newContext(t, "s")
			m := one("test.files")
			m.Steps[0].Config = map[string]any{"files": 2}
			_, got, err := remote.Run(t.Context(), a, m, ec)
			if !errors.Is(err, test.want) {
				t.Fatal(err)
			}
			want := 3 // and the config
			if err != nil {
				want--
			}
			if got == nil || len(got.Artifacts) != want {
				t.Errorf("%+v", got)
			}
			if _, err := os.Stat(filepath.Join(got.ArtifactsDir, ".collect")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what a next try would need is there, and there is none: %v", err)
			}
		})
	}
}

var errCut = errors.New("cut by the test")

func testCollectRepeated(t *testing.T, kind string, big int, another bool) {
	// A part is asked for when the one four before it is in the file: the tenth of
	// sixteen, or the more of a larger file, comes with the half of it here.
	var ranges, stop atomic.Int64
	var cut atomic.Pointer[context.CancelCauseFunc]
	server := newServer(t, kind, nil, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Procedure == "GET /files" && strings.Contains(r.Query, "big.bin") && ranges.Add(1) == stop.Load() {
			(*cut.Load())(errCut)
		}
		return nil
	}))
	proxy, err := mock.NewProxy(server.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	adapter := func() *remote.E2BTransparentProxy {
		cfg := connect(remote.Config{Drivers: testDrivers()}, server)
		cfg.APIURL, cfg.SandboxURL = proxy.URL(), proxy.URL()
		a, err := remote.NewE2BTransparentProxy(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := a.Close(); err != nil {
				t.Errorf("close adapter: %v", err)
			}
		})
		return a
	}
	a, ec := adapter(), newContext(t, "s")
	p := executed(t, a, ec, artifactManifest(map[string]any{"odd": true, "files": 200, "big": big}))

	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	cut.Store(&cancel)
	part := min(max(big/16, 2<<20), 8<<20)
	stop.Store(int64(big/2/part + 5))
	got, err := a.Collect(ctx, p, ec)
	var failed *remote.CollectError
	if !errors.As(err, &failed) || !errors.Is(err, remote.ErrCollect) || failed.Got != got {
		t.Fatalf("got %+v, %v", got, err)
	}
	if got.Status != remote.CollectPartial || len(failed.Failed) == 0 {
		t.Errorf("%s, failed %+v", got.Status, failed.Failed)
	}
	checkSkipped(t, notHome, got.Skipped)
	all := len(oddNames) + 3 + 200 + 2
	if n := len(got.Artifacts) + len(failed.Failed); n != all {
		t.Errorf("%d artifacts are here and %d are not, of %d", len(got.Artifacts), len(failed.Failed), all)
	}
	var list struct {
		Status            string
		Artifacts, Failed []json.RawMessage
	}
	if err := json.Unmarshal([]byte(tree(t, ec.LogsDir)["artifacts.json"]), &list); err != nil || list.Status != "partial" || len(list.Artifacts)+len(list.Failed) != all {
		t.Errorf("artifacts.json is %s with %d and %d artifacts, %v", list.Status, len(list.Artifacts), len(list.Failed), err)
	}
	rest := int64(0)
	for _, s := range failed.Failed {
		rest += s.Size
	}
	for name, content := range tree(t, filepath.Join(got.ArtifactsDir, ".collect")) {
		if strings.HasSuffix(name, ".part") {
			rest -= int64(len(content))
		}
	}
	if rest > int64(big)*6/10+4<<20 { // with the files beside it
		t.Errorf("%d bytes are missing of a file of %d that was cut behind its half", rest, big)
	}

	stop.Store(-1)
	before := proxy.Stats().Down
	if another {
		a = adapter()
		ec = &remote.ExecutionContext{LogsDir: ec.LogsDir}
		if p, _, err = a.Attach(t.Context(), ec.LogsDir, ec); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	came := proxy.Stats().Down - before
	t.Logf("%d bytes of %d were missing, %d came", rest, big, came)
	if came > rest+rest/50+1<<20 { // with what is around them
		t.Errorf("%d bytes came for the %d that were missing", came, rest)
	}
	if got.Status != remote.CollectComplete || len(got.Artifacts) != all {
		t.Errorf("%s with %d artifacts of %d", got.Status, len(got.Artifacts), all)
	}
	checkSkipped(t, notHome, got.Skipped)
	for _, artifact := range got.Artifacts {
		b, err := os.ReadFile(filepath.Join(got.ArtifactsDir, filepath.FromSlash(artifact.Path)))
		if err != nil || artifact.SHA256 != sha256Of(b) {
			t.Errorf("%s: %v", artifact.Path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(got.ArtifactsDir, ".collect")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf(".collect is still there: %v", err)
	}
}

// Very many files come home.
func TestArtifactsMany(t *testing.T) {
	t.Parallel()
	files := 2000
	if stressed() {
		files = 99_000 // with directories, what Config.MaxArtifacts allows
	}
	kind := artifactKinds(t)[1]
	a, _ := newAdapter(t, kind, remote.Config{Timeout: 10 * time.Minute}, nil)
	ec := newContext(t, "s")
	_, got, err := remote.Run(t.Context(), a, artifactManifest(map[string]any{"files": files}), ec)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Artifacts) != files+1 || len(got.Skipped) > 0 {
		t.Errorf("%d artifacts, %+v", len(got.Artifacts), got.Skipped)
	}
}

// A disk of the host that is full is named; where there is room again the rest
// comes.
func TestCollectDiskFull(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("mounts a small disk: only on Linux, as root")
	}
	dir := t.TempDir()
	mount := func(flags uintptr, size string) error {
		return mountTmpfs(dir, flags, size)
	}
	if err := mount(0, "4m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	})
	a, _ := newAdapter(t, "embedded", remote.Config{}, nil)
	ec := newContext(t, "s")
	ec.ArtifactsDir = filepath.Join(dir, "artifacts")
	p := executed(t, a, ec, artifactManifest(map[string]any{"files": 100, "big": 20 << 20}))
	got, err := a.Collect(t.Context(), p, ec)
	var failed *remote.CollectError
	if !errors.As(err, &failed) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "disk of this machine that holds "+ec.ArtifactsDir) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, content := range tree(t, ec.ArtifactsDir) {
		if name == "a/big.bin" || strings.HasPrefix(name, "a/many/") && len(content) != atoi(t, filepath.Base(name))%100 {
			t.Errorf("%s is in its place with %d bytes", name, len(content))
		}
	}
	if err := mount(syscallRemount, "64m"); err != nil {
		t.Fatal(err)
	}
	if got, err = a.Collect(t.Context(), p, ec); err != nil || len(got.Artifacts) != 102 || got.Status != remote.CollectComplete {
		t.Fatalf("got %+v, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(ec.ArtifactsDir, "a", "big.bin")); err != nil || len(b) != 20<<20 || bytes.Contains(b, make([]byte, 64)) {
		t.Errorf("big.bin has %d bytes, %v", len(b), err)
	}
}

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
