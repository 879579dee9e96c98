package python

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// installTimeout is for all of an installation.
const installTimeout = 10 * time.Minute

// errNoInstaller means that there is nothing to install packages with.
var errNoInstaller = errors.New("python: there is neither uv nor pip in the sandbox, and no ensurepip to make one from: have uv, or the Debian packages python3-pip or python3-venv, in the template")

// install makes the environment of requirements: a virtual environment of its
// own, which sees the packages of the interpreter that it is based on, and has
// what is missing there or has to be of another version.
//
// It is there entirely or not at all: a marker is written last, a failed
// installation is removed at once, and one whose process was killed the next
// time. Of several at once, in whatever processes, one installs and the others
// wait for it.
func (i *installer) install(ctx context.Context, o installOptions) (_ *installed, err error) {
	began := time.Now()
	parsed, err := parseRequirements(o.Requirements)
	if err != nil {
		return nil, err
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = installTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, &installTimeoutError{timeout})
	defer cancel()
	base, err := i.base(ctx, parsed)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(i.root, 0o700); err != nil {
		return nil, fmt.Errorf("python: make a directory for environments: %w", err)
	}
	key := i.key(parsed, base)
	n := &installation{
		installer: i, options: o, base: base, requirements: parsed, key: key,
		dir: i.dir(key), tmp: i.dir(key) + ".tmp",
	}
	unlock, err := lockFile(ctx, i.dir(key)+".lock")
	if err != nil {
		return nil, fmt.Errorf("python: wait for another installation of the same packages: %w", err)
	}
	defer unlock()
	if complete(n.dir) {
		// Another process has made it since it was checked.
		i.reportComplete(n, nil, base.Required, nil, "environment", began)
		return &installed{Interpreter: interpreterIn(n.dir)}, nil
	}
	defer func() {
		leftover := removeAll(n.tmp)
		if err != nil {
			err = errors.Join(fmt.Errorf("python: install packages: %w", err), removeAll(n.dir), leftover)
		}
	}()
	if err := removeAll(n.dir, n.tmp); err != nil {
		return nil, fmt.Errorf("remove an unfinished environment: %w", err)
	}
	if err := os.MkdirAll(n.tmp, 0o700); err != nil {
		return nil, err
	}
	return n.install(ctx, began)
}

func (i *installer) reportComplete(n *installation, packages, present, missing []string, source string, began time.Time) {
	i.report("dependency_install_complete", map[string]any{
		"installed": list(packages), "now_present": list(present), "still_missing": list(missing),
		"log_path": i.logPath, "duration_ms": time.Since(began).Milliseconds(), "source": source,
	})
}

// installTimeoutError tells that an installation has taken too long.
type installTimeoutError struct{ after time.Duration }

func (e *installTimeoutError) Error() string {
	return fmt.Sprintf("not done within %v (allow more time, have the packages in the template, or keep a wheelhouse)", e.after)
}

func (e *installTimeoutError) Unwrap() error { return context.DeadlineExceeded }

// installation is one environment that is being made.
type installation struct {
	*installer
	options      installOptions
	base         *probe
	requirements []requirement
	key          string
	dir          string // of the environment
	tmp          string // for everything else
	uv           string // empty: there is none
}

func (n *installation) install(ctx context.Context, began time.Time) (*installed, error) {
	var kept []string
	if n.options.Wheels != "" {
		var err error
		if kept, err = verifyWheels(ctx, n.options.Wheels, n.key); err != nil {
			return nil, err
		}
	}
	if err := n.makeEnvironment(ctx); err != nil {
		return nil, err
	}
	packages, err := packagesIn(n.dir)
	if err != nil {
		return nil, err
	}
	if err := n.seeBase(packages); err != nil {
		return nil, err
	}
	w := watchPackages(packages, began, n.report)
	var wheels string // where they are
	source := "index"
	if n.options.Wheels != "" {
		source = "wheels"
	}
	if len(n.base.Missing) == 0 {
		// There is nothing to install.
	} else if n.options.Wheels != "" {
		err = n.installFiles(ctx, kept)
	} else if n.uv != "" {
		wheels, err = n.installWithUV(ctx)
	} else {
		wheels, err = n.installWithPip(ctx)
	}
	done := w.close(err == nil)
	if err != nil {
		return nil, n.explain(err)
	}
	result := &installed{Interpreter: interpreterIn(n.dir), Installed: done}
	now, err := n.probe(ctx, result.Interpreter, n.requirements, false)
	if err != nil {
		return nil, fmt.Errorf("look at what was installed: %w", err)
	}
	if wheels != "" && n.options.Collect != "" {
		if result.Wheels, err = n.collect(wheels, done); err != nil {
			return nil, fmt.Errorf("keep the wheels: %w", err)
		}
	}
	if len(now.Missing) == 0 {
		if err := n.writeMarker(done); err != nil {
			return nil, err
		}
	}
	n.reportComplete(n, done, now.Present, now.Missing, source, began)
	if len(now.Missing) > 0 {
		return nil, fmt.Errorf("still missing: %s", strings.Join(now.Missing, ", "))
	}
	return result, nil
}

func (n *installation) writeMarker(packages []string) error {
	b, err := json.MarshalIndent(map[string]any{
		"requirements": lines(n.requirements), "python": n.base.Version, "platform": n.base.Platform, "installed": list(packages),
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(n.dir, completeName), b)
}

func lines(requirements []requirement) []string {
	s := make([]string, len(requirements))
	for n, r := range requirements {
		s[n] = r.String()
	}
	return s
}

// makeEnvironment makes a virtual environment without any package.
func (n *installation) makeEnvironment(ctx context.Context) error {
	n.uv = n.findUV()
	switch {
	case n.uv != "":
		return n.do(ctx, n.environment(), n.uv, "venv", "--no-project", "--python", n.base.path, n.dir)
	case !n.base.Venv:
		return fmt.Errorf("%s has no module venv, and there is no uv: have uv, or the Debian package python3-venv, in the template", n.base.path)
	case !n.base.Pip && !n.base.Ensurepip:
		return errNoInstaller
	}
	// Without pip in it, which takes seconds: it sees that of the base.
	if err := n.do(ctx, n.environment(), n.base.path, "-m", "venv", "--without-pip", n.dir); err != nil {
		return err
	}
	if n.base.Pip {
		return nil
	}
	return n.do(ctx, n.environment(), interpreterIn(n.dir), "-m", "ensurepip")
}

// findUV finds uv on PATH, or beside the interpreter.
func (n *installation) findUV() string {
	if path := n.lookPath("uv"); path != "" {
		return path
	}
	return n.lookPath(filepath.Join(filepath.Dir(n.base.path), "uv"))
}

// seeBase lets an environment see the packages of its base behind its own. That
// a base may be a virtual environment itself is why this is not left to
// --system-site-packages: it would show what is behind that one instead.
func (n *installation) seeBase(packages string) error {
	var b strings.Builder
	for _, dir := range n.base.Sites {
		fmt.Fprintf(&b, "import site; site.addsitedir(%s)\n", strconv.QuoteToASCII(dir))
	}
	return os.WriteFile(filepath.Join(packages, "base-packages.pth"), []byte(b.String()), 0o600)
}

// do runs a command of the installation.
func (n *installation) do(ctx context.Context, env []string, argv ...string) error {
	return n.run(ctx, &command{argv: argv, dir: n.tmp, env: env})
}

// environment is that of the installer without what would lead pip and uv
// elsewhere, and with what lets them speak to a log.
func (n *installation) environment() []string {
	elsewhere := []string{
		"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_DRY_RUN", "PIP_REPORT", "PIP_REQUIREMENT", "PIP_EDITABLE",
		"PIP_WHEEL_DIR", "PIP_DEST", "PIP_SRC", "PIP_QUIET", "PIP_IGNORE_INSTALLED", "PIP_PREFER_BINARY", "PIP_COMPILE", "PIP_NO_COMPILE",
		"VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_PROJECT", "UV_WORKING_DIR",
		"UV_PROJECT_ENVIRONMENT", "UV_MANAGED_PYTHON", "UV_NO_MANAGED_PYTHON", "UV_PYTHON_PREFERENCE", "UV_VENV_SEED", "UV_VENV_CLEAR", "UV_REQUIRE_HASHES",
		"__PYVENV_LAUNCHER__",
	}
	env := slices.DeleteFunc(slices.Clone(n.environ()), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.Contains(elsewhere, name)
	})
	env = append(env,
		"PIP_NO_INPUT=1", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_PROGRESS_BAR=off", "NO_COLOR=1",
		"UV_NO_PROGRESS=1", "UV_PYTHON_DOWNLOADS=never",
		"TMPDIR="+n.tmp, "TMP="+n.tmp, "TEMP="+n.tmp, // so that nothing of it stays
	)
	// What one of them is told about directories of wheels and certificates, the
	// other is to know, too.
	if links := n.variable("PIP_FIND_LINKS"); links != "" && n.variable("UV_FIND_LINKS") == "" {
		words := strings.Fields(links)
		for w := range words {
			words[w] = listedLink(words[w])
		}
		env = append(env, "UV_FIND_LINKS="+strings.Join(words, ","))
	} else if links := n.variable("UV_FIND_LINKS"); links != "" && n.variable("PIP_FIND_LINKS") == "" {
		words := strings.Split(links, ",")
		for w := range words {
			words[w] = listedLink(words[w])
		}
		env = append(env, "PIP_FIND_LINKS="+strings.Join(words, " "))
	}
	if file := n.variable("PIP_CERT"); file != "" && n.variable("SSL_CERT_FILE") == "" {
		env = append(env, "SSL_CERT_FILE="+file)
	} else if file := n.variable("SSL_CERT_FILE"); file != "" && n.variable("PIP_CERT") == "" {
		env = append(env, "PIP_CERT="+file)
	}
	return env
}

// closedEnvironment is for commands that must not ask anybody for anything.
func (n *installation) closedEnvironment() []string {
	keep := []string{"PIP_NO_INPUT", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_PROGRESS_BAR", "UV_NO_PROGRESS", "UV_PYTHON_DOWNLOADS", "UV_LINK_MODE", "UV_CONCURRENT_INSTALLS"}
	env := slices.DeleteFunc(n.environment(), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return (strings.HasPrefix(name, "PIP_") || strings.HasPrefix(name, "UV_")) && !slices.Contains(keep, name)
	})
	return append(env, "PIP_NO_INDEX=1", "PIP_CONFIG_FILE="+os.DevNull, "PIP_NO_CACHE_DIR=1", "UV_OFFLINE=1", "UV_NO_CONFIG=1",
		// Where the environment is, so that files need not be copied; what is
		// unpacked from these wheels is of no use to others.
		"UV_CACHE_DIR="+filepath.Join(n.tmp, "uv"))
}

// noIndex reports whether the run has closed the indexes.
func (n *installation) noIndex() bool {
	on := func(name string) bool {
		v := strings.ToLower(n.variable(name))
		return v != "" && v != "0" && v != "false" && v != "no" && v != "off"
	}
	return on("PIP_NO_INDEX") || on("UV_NO_INDEX") || on("UV_OFFLINE")
}

func (n *installation) pip(args ...string) []string {
	return append([]string{interpreterIn(n.dir), "-m", "pip"}, args...)
}

// installWithPip has pip choose, and install. To keep the wheels, it first makes
// or loads all that might be needed: "pip wheel" does not look at what is there,
// so that what the base has is given to it as stubs.
func (n *installation) installWithPip(ctx context.Context) (wheels string, err error) {
	var closed []string
	if n.noIndex() {
		closed = []string{"--no-index"}
	}
	if n.options.Collect == "" {
		args := append([]string{"install", "--no-user", "--no-compile", "--prefer-binary"}, closed...)
		return "", n.do(ctx, n.environment(), n.pip(append(args, lines(n.requirements)...)...)...)
	}
	wheels = filepath.Join(n.tmp, "wheels")
	args := append(n.pip("wheel", "--prefer-binary", "--wheel-dir", wheels), append(closed, lines(n.requirements)...)...)
	if err := n.chooseOverBase(ctx, args); err != nil {
		return "", err
	}
	copies, err := filepath.Glob(filepath.Join(wheels, "*-"+stubBuild+"-*.whl"))
	if err != nil {
		return "", err
	}
	for _, stub := range copies {
		if err := os.Remove(stub); err != nil {
			return "", err
		}
	}
	args = []string{"install", "--no-user", "--no-compile", "--no-index", "--find-links", wheels}
	return wheels, n.do(ctx, n.closedEnvironment(), n.pip(append(args, lines(n.requirements)...)...)...)
}

// chooseOverBase runs a command that chooses versions: with those of the base,
// if that can be, and otherwise with whatever it takes.
func (n *installation) chooseOverBase(ctx context.Context, argv []string) error {
	stubs, constraints, err := n.describeBase()
	if err != nil {
		return err
	}
	env := n.environment()
	withStubs := n.withLinks(env, stubs)
	if constraints != "" {
		err = n.do(ctx, withStubs, append(slices.Clone(argv), "--constraint", constraints)...)
	}
	if isConflict(err) {
		n.note("not with all packages of the base as they are; once more with others")
	}
	if constraints == "" || isConflict(err) {
		err = n.do(ctx, withStubs, argv...)
	}
	if failed := (*commandError)(nil); errors.As(err, &failed) && failed.said(stubBuild) {
		n.note("the base has metadata that cannot be read; without it")
		err = n.do(ctx, env, argv...)
	}
	return err
}

// isConflict reports whether versions that somebody wants do not go together.
func isConflict(err error) bool {
	var failed *commandError
	return errors.As(err, &failed) && failed.said("No solution found", "No matching distribution", "conflict", "ResolutionImpossible")
}

// installWithUV has uv choose, and install. It does not know that an environment
// sees the packages of its base: they are stubs, too, and not installed.
func (n *installation) installWithUV(ctx context.Context) (wheels string, err error) {
	pins, err := n.resolve(ctx)
	if err != nil {
		return "", err
	}
	var hashed, other strings.Builder
	for _, p := range pins {
		switch version, there := n.base.Distributions[p.name]; {
		case there && p.version == version:
		case strings.Contains(p.text, "--hash="):
			hashed.WriteString(p.text)
		default:
			other.WriteString(p.text)
		}
	}
	var files []string
	for _, f := range []struct{ name, content string }{{"hashed.txt", hashed.String()}, {"pins.txt", other.String()}} {
		if f.content == "" {
			continue
		}
		path := filepath.Join(n.tmp, f.name)
		if err := os.WriteFile(path, []byte(f.content), 0o600); err != nil {
			return "", err
		}
		files = append(files, path)
	}
	if len(files) == 0 {
		return "", nil // all of it is in the base
	}
	env, closed := n.environment(), []string{}
	if n.noIndex() {
		closed = append(closed, "--no-index")
	}
	if n.options.Collect != "" {
		wheels = filepath.Join(n.tmp, "wheels")
		pip, err := n.pipBesideUV(ctx, env, closed)
		if err != nil {
			return "", err
		}
		if pip == nil {
			n.note("there is no pip, which uv takes to keep wheels: they are not kept")
			wheels = ""
		}
		for _, file := range files {
			if pip == nil {
				break
			}
			args := append(append(slices.Clone(pip), "wheel", "--no-deps", "--wheel-dir", wheels, "--requirement", file), closed...)
			if err := n.do(ctx, env, args...); err != nil {
				return "", err
			}
		}
	}
	if wheels != "" {
		names, err := filepath.Glob(filepath.Join(wheels, "*.whl"))
		if err != nil {
			return "", err
		}
		return wheels, n.installFiles(ctx, names)
	}
	for _, file := range files {
		args := append([]string{n.uv, "pip", "install", "--python", interpreterIn(n.dir), "--no-deps", "--requirement", file}, closed...)
		if err := n.do(ctx, env, args...); err != nil {
			return "", err
		}
	}
	return "", nil
}

// pipBesideUV returns how to call pip; nil if there is none, nor one to be had.
func (n *installation) pipBesideUV(ctx context.Context, env, closed []string) ([]string, error) {
	if n.base.Pip {
		return n.pip(), nil
	}
	dir := filepath.Join(n.tmp, "pip")
	args := append([]string{n.uv, "pip", "install", "--python", interpreterIn(n.dir), "--target", dir, "pip"}, closed...)
	if err := n.do(ctx, env, args...); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, nil
	}
	return []string{interpreterIn(n.dir), filepath.Join(dir, "pip")}, nil
}

// pin is a package that uv has chosen.
type pin struct {
	name, version string // normalised; no version: it is at a URL
	text          string // of a file of requirements
}

// resolve has uv choose versions.
func (n *installation) resolve(ctx context.Context) ([]pin, error) {
	in, out := filepath.Join(n.tmp, "requirements.in"), filepath.Join(n.tmp, "resolved.txt")
	if err := os.WriteFile(in, []byte(strings.Join(lines(n.requirements), "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	// With hashes, pip takes the files that uv has chosen, and no others of the
	// same version from another index.
	args := []string{n.uv, "pip", "compile", in, "--python", interpreterIn(n.dir), "--quiet", "--no-header", "--no-annotate", "--generate-hashes", "--output-file", out}
	if n.noIndex() {
		args = append(args, "--no-index")
	}
	if err := n.chooseOverBase(ctx, args); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	return parsePins(string(content))
}

// parsePins parses what "uv pip compile" has written.
func parsePins(content string) (pins []pin, err error) {
	s := bufio.NewScanner(strings.NewReader(content))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "#"):
		case strings.HasPrefix(line, " ") && len(pins) > 0: // its hashes
			pins[len(pins)-1].text += line + "\n"
		default:
			r, err := parseRequirement(strings.TrimSpace(strings.TrimSuffix(line, `\`)))
			if err != nil {
				return nil, err
			}
			p := pin{name: r.name, text: line + "\n"}
			if len(r.specifiers) == 1 {
				p.version = strings.TrimPrefix(r.specifiers[0], "==")
			}
			pins = append(pins, p)
		}
	}
	if s.Err() == nil && len(pins) > 0 { // the last hash is followed by nothing
		return pins, nil
	}
	return pins, s.Err()
}

// installFiles installs wheels, which are all there is to install, and asks
// nobody for anything.
func (n *installation) installFiles(ctx context.Context, files []string) error {
	if len(files) == 0 {
		return nil
	}
	args := n.pip("install", "--no-user", "--no-compile", "--no-index", "--no-deps")
	if n.uv != "" {
		args = []string{n.uv, "pip", "install", "--python", interpreterIn(n.dir), "--no-index", "--no-deps", "--offline"}
	}
	return n.do(ctx, n.closedEnvironment(), append(args, files...)...)
}

// explain says what to do about an error.
func (n *installation) explain(err error) error {
	var failed *commandError
	if !errors.As(err, &failed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	hint := ""
	switch {
	case failed.said("No space left on device", "Disk quota exceeded", "os error 28"):
		hint = "the disk of the sandbox is full: take a template with more, or with the packages in it"
	case failed.said("metadata-generation-failed", "Failed building wheel", "Failed to build", "error: subprocess-exited-with-error", "build backend"):
		hint = "a package has no wheel for Python " + n.base.Version + " on " + n.base.Platform + ", and could not be built here: require a version that has one, or have what it takes in the template"
	case failed.said("No matching distribution", "No solution found", "ResolutionImpossible", "conflict"):
		hint = "check the names and versions that the drivers require"
		if !n.template {
			hint += "; where packages come from is said by PIP_INDEX_URL, PIP_FIND_LINKS and PIP_NO_INDEX (and UV_...)"
		}
	case failed.said("Connection", "connect", "timed out", "Temporary failure in name resolution", "dns error", "Max retries", "Retrying", "401", "403"):
		if n.template {
			hint = "the index cannot be reached from where templates are built, or does not let us in"
			break
		}
		hint = "the index cannot be reached or does not let us in: allow its host in the sandbox's network, give its credentials (PIP_INDEX_URL), or keep a wheelhouse"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w\n(%s)", err, hint)
}

// watchInterval is how often an environment is looked at while packages come.
const watchInterval = 25 * time.Millisecond

// packageWatch reports packages as they get into an environment. pip tells of
// them at the end, and uv not one by one.
type packageWatch struct {
	dir    string
	report func(name string, fields map[string]any)
	stop   chan struct{}
	done   chan struct{}

	// Of the goroutine, and then of close.
	seen     map[string]bool // directories
	packages []string
	last     time.Time
}

func watchPackages(dir string, began time.Time, report func(string, map[string]any)) *packageWatch {
	w := &packageWatch{dir: dir, report: report, stop: make(chan struct{}), done: make(chan struct{}), seen: map[string]bool{}, last: began}
	w.look(true) // what ensurepip has installed is not ours
	w.packages = nil
	go func() {
		defer close(w.done)
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.look(false)
			case <-w.stop:
				return
			}
		}
	}()
	return w
}

// close ends the watch, and returns what has come, in its order. complete says
// whether a last look is worth it.
func (w *packageWatch) close(complete bool) []string {
	close(w.stop)
	<-w.done
	if complete {
		w.look(false)
	}
	return w.packages
}

// look finds packages whose RECORD, which is written last, is there.
func (w *packageWatch) look(quiet bool) {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return // close has the last word
	}
	for _, e := range entries {
		stem, ok := strings.CutSuffix(e.Name(), ".dist-info")
		if !ok || w.seen[stem] {
			continue
		}
		info, err := os.Stat(filepath.Join(w.dir, e.Name(), "RECORD"))
		if err != nil || info.Size() == 0 {
			continue
		}
		w.seen[stem] = true
		name, version := packageName(filepath.Join(w.dir, e.Name()), stem)
		w.packages = append(w.packages, name+"=="+version)
		if quiet {
			continue
		}
		now := time.Now()
		w.report("dependency_installed", map[string]any{
			"package": name + "==" + version, "duration_ms": now.Sub(w.last).Milliseconds(),
		})
		w.last = now
	}
}

// maxName is how much of the name or version of a package is shown.
const maxName = 100

// packageName returns name and version of an installed package, in characters
// that they may have.
func packageName(dir, stem string) (name, version string) {
	name, version, _ = strings.Cut(stem, "-")
	if f, err := os.Open(filepath.Join(dir, "METADATA")); err == nil {
		defer f.Close()
		s := bufio.NewScanner(io.LimitReader(f, 64<<10))
		for s.Scan() && s.Text() != "" {
			if v, ok := strings.CutPrefix(s.Text(), "Name:"); ok && validName(strings.TrimSpace(v)) {
				name = strings.TrimSpace(v)
			}
			if v, ok := strings.CutPrefix(s.Text(), "Version:"); ok && strings.TrimSpace(v) != "" {
				version = strings.TrimSpace(v)
			}
		}
	}
	version = strings.Map(func(c rune) rune {
		if isNameByte(c) || c == '+' || c == '!' {
			return c
		}
		return '?'
	}, version)
	return bounded(normaliseName(name)), bounded(version)
}

func bounded(s string) string { return s[:min(len(s), maxName)] }

// writeFileAtomic writes a file that is there entirely or not at all.
func writeFileAtomic(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		if runtime.GOOS == "windows" {
			_ = os.Remove(path)
		}
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
