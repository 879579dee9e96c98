package remote

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

// pythonRuntime is the runtime of drivers in Python, as workers know it.
const pythonRuntime = "python"

// packagesDir is where a worker has packages, in the run's folder.
const packagesDir = "packages"

// settleDependencies makes sure, before the first step, that there is what
// drivers in Python import: it is there, or was installed before, or is
// installed now. keep is not nil where what was installed is worth bringing
// home; it does that.
func (e *engine) settleDependencies(ctx context.Context, l *link, p *PreparedRun) (keep func(context.Context), err error) {
	if len(p.PythonDrivers) == 0 {
		return nil, nil
	}
	var check rpc.CheckDepsResult
	if err := l.call(ctx, rpc.MethodCheckDeps, &rpc.CheckDeps{Runtime: pythonRuntime}, &check); err != nil {
		if errors.Is(err, &rpc.Error{Code: rpc.CodeMissingRuntime}) {
			advice := "install one"
			if e.ships {
				advice = "use a template that has one"
			}
			return nil, fmt.Errorf("remote: %w: %w; %s, or name the interpreter, as it is where the run happens, in Config.Python (python, --e2b-python)", ErrMissingDependencies, err, advice)
		}
		return nil, fmt.Errorf("remote: check dependencies: %w", err)
	}
	if len(check.Missing) == 0 {
		return nil, nil
	}
	if !e.cfg.installDeps() {
		return nil, &MissingDependenciesError{Missing: printable(check.Missing), Python: rpc.Printable(check.Version)}
	}
	install := rpc.InstallDeps{Runtime: pythonRuntime}
	house, err := e.wheelhouse(check.Key)
	if err != nil {
		return nil, fmt.Errorf("remote: wheelhouse: %w", err)
	}
	if house != nil {
		files, err := house.load(ctx)
		if err != nil {
			l.session.logf(slog.LevelWarn, "the wheelhouse is not used, and filled anew: %v", err)
		}
		if len(files) > 0 {
			if install.Packages, err = house.send(ctx, l, files); err != nil {
				return nil, err
			}
		}
		install.Keep = len(files) == 0
	}
	var got rpc.InstallDepsResult
	if err := l.call(ctx, rpc.MethodInstallDeps, &install, &got); err != nil {
		return nil, fmt.Errorf("remote: install dependencies: %w", err)
	}
	if l.place.way = StartIndex; len(install.Packages) > 0 {
		l.place.way = StartWheelhouse
	}
	if !install.Keep || len(got.Packages) == 0 {
		return nil, nil
	}
	return func(ctx context.Context) { house.keep(ctx, l, got.Packages) }, nil
}

func printable(texts []string) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = rpc.Printable(clip(t, 1<<10))
	}
	return out
}

// interpreter is what runs drivers in Python, as a worker finds it: a path on
// this machine starts here, and not where the worker is.
func (e *engine) interpreter() string {
	if name := e.cfg.Python; !e.ships && strings.ContainsRune(name, filepath.Separator) {
		if full, err := filepath.Abs(name); err == nil {
			return full
		}
	}
	return e.cfg.Python
}

// cacheDir is where a worker may keep what other runs on its machine use again.
func (e *engine) cacheDir() string {
	if e.ships {
		return path.Join(e.cfg.sandboxRoot(), "cache")
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, cacheName)
	}
	return ""
}

// cacheName is this library's directory in a user's cache directory.
const cacheName = "osiris-remote"

// wheelhouse keeps files that packages are installed from, on this machine:
//
//	files/<sha256>       what they hold
//	sets/<key>.json      which of them are installed together, with their names
type wheelhouse struct {
	dir string
	key string
}

// wheelhouse is nil where what is installed stays on the machine, and where it
// is not to be kept.
func (e *engine) wheelhouse(key string) (*wheelhouse, error) {
	dir := e.cfg.wheelhouseDir()
	if !e.ships || dir == "" {
		return nil, nil
	}
	if !wheelSetKey.MatchString(key) {
		return nil, &protocolError{fmt.Errorf("the key of the packages is %.80q", key)}
	}
	return &wheelhouse{dir: dir, key: key}, nil
}

// wheelhouseDir is where what sandboxes had is kept; empty where it is not.
func (c Config) wheelhouseDir() string {
	switch c.Wheelhouse {
	case "off":
		return ""
	case "":
		cache, err := os.UserCacheDir()
		if err != nil {
			return "" // as for a service without a home
		}
		return filepath.Join(cache, cacheName, "wheelhouse")
	}
	return c.Wheelhouse
}

// wheelFile is a file of a set.
type wheelFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

// Limits of a set: the largest that are known, of machine learning, have some
// 200 files and 3 GiB.
const (
	maxWheels     = 2_000
	maxWheelBytes = 16 << 30
	maxWheelSet   = 1 << 20 // bytes of what lists them
)

var wheelSetKey = regexp.MustCompile(`^[0-9a-f]{16,64}$`)

var wheelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}$`)

func checkWheels(files []wheelFile) error {
	total := int64(0)
	seen := make(map[string]bool)
	for _, f := range files {
		if !wheelName.MatchString(f.Name) || seen[f.Name] || f.Size < 0 || !isSHA256(f.SHA256) {
			return fmt.Errorf("a package has the name %.80q, %d bytes and the checksum %.80q", f.Name, f.Size, f.SHA256)
		}
		seen[f.Name] = true
		total = min(total, maxWheelBytes) + min(f.Size, maxWheelBytes+1)
	}
	if len(files) > maxWheels || total > maxWheelBytes {
		return fmt.Errorf("the packages are %d files and %d bytes, more than %d or %d GiB", len(files), total, maxWheels, maxWheelBytes>>30)
	}
	return nil
}

func (h *wheelhouse) set() string { return filepath.Join(h.dir, "sets", h.key+".json") }

func (h *wheelhouse) file(sum string) string { return filepath.Join(h.dir, "files", sum) }

// load returns the files of the set; none where there is no set. One that is not
// whole, or damaged, is an error, and is removed: it will be filled anew.
func (h *wheelhouse) load(ctx context.Context) ([]wheelFile, error) {
	b, err := readSmall(h.set(), maxWheelSet)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var files []wheelFile
	if err == nil {
		err = json.Unmarshal(b, &files)
	}
	if err == nil {
		err = checkWheels(files)
	}
	for _, f := range files {
		if err == nil {
			err = h.verify(ctx, f)
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, os.Remove(h.set()))
		}
		return nil, fmt.Errorf("%s: %w", h.set(), err)
	}
	return files, nil
}

// verify checks a file, and removes one that is not what its name says.
func (h *wheelhouse) verify(ctx context.Context, f wheelFile) error {
	name := h.file(f.SHA256)
	in := input{file: name}
	r, err := in.open()
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, &contextReader{ctx, r})
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if n != f.Size || hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
		return errors.Join(fmt.Errorf("%s: the file %s was changed", f.Name, name), os.Remove(name))
	}
	return nil
}

// send uploads the files of the set. The worker checks what has arrived.
func (h *wheelhouse) send(ctx context.Context, l *link, files []wheelFile) ([]rpc.FileRef, error) {
	start := time.Now()
	var refs []rpc.FileRef
	var sent int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, f := range files {
		refs = append(refs, rpc.FileRef{Path: path.Join(packagesDir, f.Name), Size: f.Size, SHA256: f.SHA256})
		sent += f.Size
		group.Go(func() error {
			in := input{file: h.file(f.SHA256), sum: rpc.FileSum{Path: path.Join(l.place.dir, packagesDir, f.Name), Size: f.Size}}
			if err := in.send(ctx, l.place.sandbox); err != nil {
				return fmt.Errorf("remote: upload package %s: %w", f.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	l.session.event("wheelhouse_used", map[string]any{
		"key": h.key, "files": len(files), "bytes": sent, "duration_ms": milliseconds(time.Since(start)),
	})
	return refs, nil
}

// keep brings the files of a set home. That it cannot is no failure of a run:
// the next one asks the index.
func (h *wheelhouse) keep(ctx context.Context, l *link, refs []rpc.FileRef) {
	start := time.Now()
	files := make([]wheelFile, len(refs))
	for i, ref := range refs {
		files[i] = wheelFile{strings.TrimPrefix(ref.Path, packagesDir+"/"), ref.Size, ref.SHA256}
	}
	got, err := int64(0), checkWheels(files)
	if err == nil {
		got, err = h.fetch(ctx, l.place, files)
	}
	if err != nil {
		l.session.logf(slog.LevelWarn, "the packages are not kept in the wheelhouse: %v", err)
		return
	}
	l.session.event("wheelhouse_filled", map[string]any{
		"key": h.key, "files": len(files), "bytes": got, "duration_ms": milliseconds(time.Since(start)),
	})
}

// fetch downloads what is not there, and then writes down the set.
func (h *wheelhouse) fetch(ctx context.Context, pl *place, files []wheelFile) (bytes int64, err error) {
	for _, dir := range []string{"files", "sets"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o700); err != nil {
			return 0, err
		}
	}
	sizes := make([]int64, len(files))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, f := range files {
		group.Go(func() error {
			if h.verify(groupCtx, f) == nil {
				return nil
			}
			sizes[i] = f.Size
			if err := h.download(groupCtx, pl, f); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	for _, n := range sizes {
		bytes += n
	}
	b, err := json.Marshal(files)
	if err != nil {
		return bytes, err
	}
	return bytes, writeFile(h.set(), b)
}

func (h *wheelhouse) download(ctx context.Context, pl *place, f wheelFile) error {
	r, err := pl.sandbox.Download(ctx, path.Join(pl.dir, packagesDir, f.Name))
	if err != nil {
		return err
	}
	defer r.Close()
	return writeWhole(h.file(f.SHA256), func(w io.Writer) error {
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, f.Size+1))
		countReceived(ctx, n)
		if err == nil && (n != f.Size || hex.EncodeToString(sum.Sum(nil)) != f.SHA256) {
			err = errors.New("it does not have the size and checksum that the worker has announced")
		}
		return err
	})
}

// MissingDependenciesError says which packages drivers in Python need and the
// place of the run has not. It matches [ErrMissingDependencies].
type MissingDependenciesError struct {
	Missing []string // requirements, sorted
	Python  string   // version of the interpreter
}

func (e *MissingDependenciesError) Error() string {
	return fmt.Sprintf("remote: %v: Python %s has not got %s; allow them to be installed (Config.InstallDeps, install_deps, --e2b-install-deps or %s=1), or in E2B a template with them to be built (Config.AllowTemplateBuild, allow_template_build, --e2b-allow-template-build), or use one that has them",
		ErrMissingDependencies, cmp.Or(e.Python, "(of an unknown version)"), strings.Join(e.Missing, ", "), installDepsVariable)
}

// Is reports whether target is ErrMissingDependencies.
func (e *MissingDependenciesError) Is(target error) bool { return target == ErrMissingDependencies }
