package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// workerProgram is the worker on this machine, ready to be sent.
type workerProgram struct {
	path    string
	size    int64
	modTime time.Time
	sha256  string // names it in the sandbox
	xxh3    string // tells whether it arrived

	platform string  // as "linux/amd64"; empty when it is not an ELF file
	glibc    version // the least it needs; zero for a static one
	dynamic  bool
}

// programs reads the worker program once, and again when it has changed.
type programs struct {
	mu   sync.Mutex
	last *workerProgram
}

func (p *programs) load(ctx context.Context, name string) (*workerProgram, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if w := p.last; w != nil && w.path == name && w.size == info.Size() && w.modTime.Equal(info.ModTime()) {
		return w, nil
	}
	w, err := readProgram(ctx, name)
	if err != nil {
		return nil, err
	}
	w.modTime = info.ModTime()
	p.last = w
	return w, nil
}

func readProgram(ctx context.Context, name string) (*workerProgram, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := &workerProgram{path: name}
	h := sha256.New()
	if w.size, w.xxh3, err = rpc.XXH3(io.TeeReader(&contextReader{ctx, f}, h)); err != nil {
		return nil, err
	}
	w.sha256 = hex.EncodeToString(h.Sum(nil))
	if err := w.inspect(f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return w, nil
}

// inspect finds out where the program can run.
func (w *workerProgram) inspect(r io.ReaderAt) error {
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := r.ReadAt(magic, 0); err != nil || string(magic) != elf.ELFMAG {
		return nil
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("%w: it is no whole program: %w", ErrWorkerPlatform, err)
	}
	w.platform = "linux/" + elfArch(f)
	for _, p := range f.Progs {
		w.dynamic = w.dynamic || p.Type == elf.PT_INTERP
	}
	if !w.dynamic {
		return nil
	}
	symbols, err := f.ImportedSymbols()
	if err != nil {
		return err
	}
	for _, s := range symbols {
		if text, ok := strings.CutPrefix(s.Version, "GLIBC_"); ok {
			if v := parseVersion(text); w.glibc.less(v) {
				w.glibc = v
			}
		}
	}
	return nil
}

func elfArch(f *elf.File) string {
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64"
	case elf.EM_AARCH64:
		return "arm64"
	}
	return strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_"))
}

// version is a version of two numbers.
type version struct{ major, minor int }

func parseVersion(s string) version {
	major, rest, _ := strings.Cut(s, ".")
	minor, _, _ := strings.Cut(rest, ".")
	var v version
	v.major, _ = strconv.Atoi(major)
	v.minor, _ = strconv.Atoi(minor)
	return v
}

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// e2bPlatform is that of E2B's sandboxes.
const e2bPlatform = "linux/amd64"

// askPlatform is what a sandbox is asked to know its platform: a line as
// "Linux x86_64" and one as "glibc 2.36".
const askPlatform = "uname -sm; getconf GNU_LIBC_VERSION"

// suits reports why the program cannot run in a sandbox that answered
// askPlatform so. Nil means that nothing speaks against it, also where the
// answer says nothing: starting the worker will tell.
func (w *workerProgram) suits(answer string) error {
	system, rest, _ := strings.Cut(answer, "\n")
	target := parsePlatform(system)
	if target == "" {
		return nil
	}
	libc, hasGlibc := strings.CutPrefix(strings.TrimSpace(rest), "glibc ")
	switch {
	case w.platform == "" && !strings.HasPrefix(target, "linux/"):
		return nil // a sandbox on this machine, which is no Linux
	case w.platform == "":
		return w.unsuitable(target, "it is not a Linux program")
	case w.platform != target:
		return w.unsuitable(target, "it is built for "+w.platform)
	case w.dynamic && !hasGlibc && w.glibc != version{}:
		return w.unsuitable(target, "it needs the system's C library, and the sandbox has none that is glibc")
	case w.dynamic && parseVersion(libc).less(w.glibc):
		return w.unsuitable(target, fmt.Sprintf("it needs glibc %s, the sandbox has %s", w.glibc, parseVersion(libc)))
	}
	return nil
}

// mustAsk reports whether the program may not run in a usual sandbox, so that
// this one must be asked.
func (w *workerProgram) mustAsk() bool { return w.dynamic || w.platform != e2bPlatform }

func (w *workerProgram) unsuitable(target, why string) error {
	system, arch, _ := strings.Cut(target, "/")
	if info, err := buildinfo.ReadFile(w.path); err == nil && takesC(info) {
		return fmt.Errorf("%w: %s cannot run on %s: %s; it has DuckDB, which is built with cgo: build it on %s/%s, on a system whose glibc is no newer than the sandbox's (make worker-duckdb), and name it in Config.WorkerPath",
			ErrWorkerPlatform, w.path, target, why, system, arch)
	}
	return fmt.Errorf("%w: %s cannot run on %s: %s; build one with\n  CGO_ENABLED=0 GOOS=%s GOARCH=%s go build -trimpath -ldflags='-s -w' -o osiris-worker %s\nand name it in Config.WorkerPath",
		ErrWorkerPlatform, w.path, target, why, system, arch, mainPackage(w.path))
}

// takesC reports whether a program has a part that cannot be built without cgo:
// of those of this library that is DuckDB alone.
func takesC(info *debug.BuildInfo) bool {
	return slices.ContainsFunc(info.Deps, func(m *debug.Module) bool { return strings.HasPrefix(m.Path, "github.com/duckdb/") })
}

// mainPackage returns the package that a Go program was built from, so that it
// can be built for another platform; that of the ready worker when it is not
// known.
func mainPackage(program string) string {
	const ready = "github.com/osiris-pipelines/remote/worker/cmd/osiris-worker"
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		if own, ok := debug.ReadBuildInfo(); ok {
			info = own
		}
	}
	if info == nil || info.Path == "" || info.Path == "command-line-arguments" || strings.HasSuffix(info.Path, ".test") {
		return ready
	}
	return info.Path
}

// isWorker reports whether the program may be a worker: one in Go without this
// module is none. Of other programs nothing is known.
func (w *workerProgram) isWorker() bool {
	const module = "github.com/osiris-pipelines/remote"
	info, err := buildinfo.ReadFile(w.path)
	if err != nil {
		return w.platform == "" // a script, or what stands for a worker in tests
	}
	if info.Main.Path == module {
		return true
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return true
		}
	}
	return false
}

// stranger says what a program is that isWorker says is none.
func (w *workerProgram) stranger() string {
	return w.path + " is a program without this library, so it cannot be a worker"
}

func parsePlatform(line string) string {
	system, machine, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch system {
	case "Linux", "Darwin", "FreeBSD":
	default:
		return ""
	}
	switch machine {
	case "x86_64":
		machine = "amd64"
	case "aarch64":
		machine = "arm64"
	}
	return strings.ToLower(system) + "/" + machine
}

// check asks the sandbox what it is where that matters.
func (w *workerProgram) check(ctx context.Context, sb Sandbox) error {
	if !w.mustAsk() {
		return nil
	}
	answer, err := ask(ctx, sb, askPlatform)
	if err != nil {
		return nil // starting the worker will tell
	}
	return w.suits(answer)
}

// ask runs a shell command and returns what it prints, whether or not it
// succeeds.
func ask(ctx context.Context, sb Sandbox, command string) (string, error) {
	const maxAnswer = 4 << 10
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, _, err := capture(ctx, sb, Command{Path: "/bin/sh", Args: []string{"-c", command}}, maxAnswer)
	if err != nil {
		return "", err
	}
	return string(bytes.ToValidUTF8(b, nil)), nil
}

// send uploads the program under its checksum, unless the sandbox has it, and
// returns where it is.
func (w *workerProgram) send(ctx context.Context, sb Sandbox, root string) (string, error) {
	to := path.Join(root, "bin", "osiris-worker-"+w.sha256)
	sender, special := sb.(programSender)
	if size, err := sb.Size(ctx, to); err == nil && size == w.size {
		if special {
			sender.makeExecutable(to)
		}
		return to, nil
	}
	f, err := os.Open(w.path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if special {
		err = sender.uploadProgram(ctx, to, f, w)
	} else {
		err = sb.Upload(ctx, to, f, w.size)
	}
	if err == nil {
		countSent(ctx, w.size)
	}
	return to, err
}

// programSender is a sandbox where programs are not sent as other files are.
type programSender interface {
	uploadProgram(ctx context.Context, to string, f *os.File, w *workerProgram) error
	makeExecutable(path string) // before it is started
}

// workerPath returns the worker program on this machine.
func (c Config) workerPath() (string, error) {
	if c.WorkerPath == "" && !worker.MainCalled() {
		return "", fmt.Errorf("%w: this program cannot be its own worker, since it has not called worker.Main; call it first in main (in tests: in TestMain), or name a worker in Config.WorkerPath", ErrInvalid)
	}
	if c.WorkerPath == "" {
		return os.Executable()
	}
	if info, err := os.Stat(c.WorkerPath); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: Config.WorkerPath %q is not a program; build one, or leave it empty", ErrInvalid, c.WorkerPath)
	}
	return filepath.Abs(c.WorkerPath)
}
