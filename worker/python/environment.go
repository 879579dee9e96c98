package python

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// installer looks at what Python packages there are in a sandbox, and installs
// those that are missing into environments of their own.
type installer struct {
	// root is an absolute directory; <root>/<key> is an environment.
	root string
	// python is the interpreter that environments are based on. Empty: python3 or
	// python, the first on PATH that is new enough.
	python string
	// env is the environment of its processes, Credentials.Env included.
	env []string
	// event reports dependency_check, dependency_installed and
	// dependency_install_complete; calls do not overlap.
	event func(name string, fields map[string]any)
	// log gets what pip and uv print, and before it each command, after "$ ".
	log io.Writer
	// logPath is where the log will be found, for dependency_install_complete.
	logPath string
	// redact takes secrets out of what errors quote of that. Nil: nothing.
	redact func(string) string
	// template says that it is one that packages are installed into, see
	// worker.RuntimeOptions.
	template bool
}

// target is what wheels have to fit.
type target struct {
	Python   string // path of the interpreter
	Version  string // such as 3.11.7
	Platform string // such as cp311-manylinux_2_36_x86_64
}

// check is what there is of requirements.
type check struct {
	Target target
	// Required are the requirements that count on this target, normalised and
	// sorted; each is either Present or Missing.
	Required, Present, Missing []string
	// Key is that of the environment, and of the wheels for it.
	Key string
	// Environment is the path of the interpreter that has them all; empty when
	// something is missing.
	Environment string
}

// wheel is a file that packages are installed from.
type wheel struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // in hexadecimal
}

type installOptions struct {
	Requirements []string
	// Wheels is a directory that install has left in Collect, for the same key:
	// everything is installed from it alone, without any index. Empty: from the
	// index.
	Wheels string
	// Collect is a directory to leave the used wheels in, with their lock.json.
	// Empty: they are not kept.
	Collect string
	Timeout time.Duration // zero: 10 minutes
}

type installed struct {
	Interpreter string   // of the environment
	Installed   []string // name==version, in the order in which they were installed
	// Wheels are those in Collect; nil if there are none, also because there is no
	// pip to collect them with.
	Wheels []wheel
}

//go:embed probe.py
var probeScript string

// probe is what probe.py answers.
type probe struct {
	path          string
	Version       string
	New           bool // enough for drivers
	Platform      string
	Sites         []string          // directories with packages, in their order
	Distributions map[string]string // versions, by normalised name
	Paths         map[string]string // of their metadata
	Required      []string
	Present       []string
	Missing       []string
	Unfit         []string // names of those that are there, but not as required
	Judged        bool     // false: there is no packaging to judge versions with
	Invalid       string   // a requirement that packaging does not understand
	Pip           bool
	Ensurepip     bool
	Venv          bool
}

const (
	probeTimeout = time.Minute
	maxProbe     = 16 << 20
)

// completeName is the last file of an environment that is written.
const completeName = "osiris-complete.json"

// check finds the interpreter that satisfies requirements, if there is one: that
// of the environment that install has made of them, or else the one that
// environments are based on.
func (i *installer) check(ctx context.Context, requirements []string) (*check, error) {
	parsed, err := parseRequirements(requirements)
	if err != nil {
		return nil, err
	}
	base, err := i.base(ctx, parsed)
	if err != nil {
		return nil, err
	}
	c := &check{
		Target:   target{Python: base.path, Version: base.Version, Platform: base.Platform},
		Required: base.Required, Present: base.Present, Missing: base.Missing,
		Key: i.key(parsed, base),
	}
	if len(c.Missing) == 0 {
		c.Environment = base.path
	} else if complete(i.dir(c.Key)) {
		c.Environment, c.Present, c.Missing = interpreterIn(i.dir(c.Key)), c.Required, nil
	}
	i.report("dependency_check", map[string]any{
		"required": list(c.Required), "present": list(c.Present), "missing": list(c.Missing),
	})
	return c, nil
}

// list is for fields of events, which have no null.
func list(s []string) []string { return append([]string{}, s...) }

func (i *installer) report(name string, fields map[string]any) {
	if i.event != nil {
		i.event(name, fields)
	}
}

// dir is where the environment of a key is; what is made on the way there is
// beside it.
func (i *installer) dir(key string) string { return filepath.Join(i.root, key) }

// complete reports whether an environment is: its last file is there, and the
// interpreter that it is based on still is.
func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, completeName))
	if err == nil {
		_, err = os.Stat(interpreterIn(dir))
	}
	return err == nil
}

func interpreterIn(dir string) string {
	if runtime.GOOS == "windows" {
		return filepath.Join(dir, "Scripts", "python.exe")
	}
	return filepath.Join(dir, "bin", "python")
}

// packagesIn returns where an environment has its packages.
func packagesIn(dir string) (string, error) {
	pattern := filepath.Join(dir, "lib", "*", "site-packages")
	if runtime.GOOS == "windows" {
		pattern = filepath.Join(dir, "Lib", "site-packages")
	}
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%s has %d directories for packages, want one", dir, len(found))
	}
	return found[0], nil
}

// base probes the interpreter that environments are based on.
func (i *installer) base(ctx context.Context, requirements []requirement) (*probe, error) {
	candidates := []string{"python3", "python"}
	if i.python != "" {
		candidates = []string{i.python}
	}
	var seen []string
	for _, name := range candidates {
		path := i.lookPath(name)
		if path == "" {
			seen = append(seen, name+" is not there")
			continue
		}
		p, err := i.probe(ctx, path, requirements, true)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("python: look at %s: %w", path, context.Cause(ctx))
		case errors.Is(err, errRequirement):
			return nil, err
		case err != nil:
			seen = append(seen, fmt.Sprintf("%s does not run: %v", path, err))
		case !p.New:
			seen = append(seen, fmt.Sprintf("%s is %s", path, p.Version))
		default:
			return p, nil
		}
	}
	return nil, fmt.Errorf("python: there is no Python 3.9 or later: %s; PATH is %q",
		strings.Join(seen, ", "), i.variable("PATH"))
}

// variable returns a variable of the processes.
func (i *installer) variable(name string) string { return lastVariable(i.environ(), name) }

// lastVariable returns the value that counts where a name is there several times.
func lastVariable(env []string, name string) (value string) {
	for _, pair := range env {
		if v, ok := strings.CutPrefix(pair, name+"="); ok {
			value = v
		}
	}
	return value
}

func (i *installer) environ() []string {
	if i.env == nil {
		return os.Environ()
	}
	return i.env
}

// lookPath finds a program as the processes would. Empty: there is none.
func (i *installer) lookPath(name string) string {
	dirs := filepath.SplitList(i.variable("PATH"))
	if filepath.Base(name) != name {
		dirs = []string{""}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if !filepath.IsAbs(path) {
			continue // it would depend on where a process runs
		}
		for _, path := range []string{path, path + ".exe"} {
			info, err := os.Stat(path)
			if err == nil && info.Mode().IsRegular() && (info.Mode()&0o111 != 0 || runtime.GOOS == "windows") {
				return path
			}
		}
	}
	return ""
}

// probe looks at what an interpreter has. urls says whether a package that a
// requirement has at a URL must have come from there: in an environment it comes
// from a wheel that was made of it.
func (i *installer) probe(ctx context.Context, path string, requirements []requirement, urls bool) (*probe, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no answer within %v", probeTimeout))
	defer cancel()
	marker := rand.Text()
	lines := make([]string, len(requirements))
	for n, r := range requirements {
		lines[n] = r.String()
	}
	question, err := json.Marshal(map[string]any{"marker": marker, "requirements": lines, "urls": urls})
	if err != nil {
		return nil, err
	}
	out := &boundedBuffer{limit: maxProbe}
	err = i.run(ctx, &command{
		argv: []string{path, "-c", probeScript}, env: i.environ(), dir: os.TempDir(),
		stdin: string(question), out: out, log: io.Discard,
	})
	if err != nil {
		return nil, err
	}
	// Whatever packages print before or behind it.
	_, answer, ok := bytes.Cut(out.Bytes(), []byte("\n"+marker))
	answer, _, ended := bytes.Cut(answer, []byte("\n"))
	p := &probe{path: path}
	if err := json.Unmarshal(answer, p); !ok || !ended || err != nil {
		return nil, fmt.Errorf("%s has not answered what there is: %w", path, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	if p.Invalid != "" {
		return nil, fmt.Errorf("%w %s", errRequirement, i.redacted(p.Invalid))
	}
	if p.New && !p.Judged && len(requirements) > 0 {
		i.note("%s has neither packaging nor pip: of what is there only names, and versions by ==, are compared", path)
	}
	slices.Sort(p.Required)
	slices.Sort(p.Present)
	slices.Sort(p.Missing)
	return p, nil
}

// key is a hash of everything that decides what is installed, but for what the
// indexes have at the time.
func (i *installer) key(requirements []requirement, base *probe) string {
	content := struct {
		Format       int
		Requirements []string
		Version      string
		Platform     string
		Base         map[string]string
		Settings     map[string]string
	}{1, nil, base.Version, base.Platform, base.Distributions, map[string]string{}}
	for _, r := range requirements {
		content.Requirements = append(content.Requirements, r.String())
	}
	for _, name := range decidingVariables() {
		if value := i.variable(name); value != "" {
			content.Settings[name] = withoutUserinfo(value)
		}
	}
	b, err := json.Marshal(content)
	if err != nil {
		panic(err) // strings alone
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// decidingVariables are those that say which packages there are to choose from.
// Those that only close the index (PIP_NO_INDEX) do not count: what was there
// before stays what it is.
func decidingVariables() []string {
	return []string{
		"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT", "PIP_PRE", "PIP_NO_BINARY", "PIP_ONLY_BINARY",
		"UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONSTRAINT", "UV_OVERRIDE",
		"UV_PRERELEASE", "UV_RESOLUTION", "UV_EXCLUDE_NEWER", "UV_INDEX_STRATEGY", "UV_TORCH_BACKEND",
	}
}

// withoutUserinfo takes the credentials out of URLs, so that a new password
// makes no new environment.
func withoutUserinfo(value string) string {
	words := strings.Fields(value)
	for n, word := range words {
		if u, err := url.Parse(word); err == nil && u.User != nil {
			u.User = nil
			words[n] = u.String()
		}
	}
	return strings.Join(words, " ")
}

// note writes a line to the log.
func (i *installer) note(format string, args ...any) {
	if i.log != nil {
		fmt.Fprintf(i.log, "# "+format+"\n", args...)
	}
}

func (i *installer) redacted(s string) string {
	if i.redact == nil {
		return s
	}
	return i.redact(s)
}

// run runs a command, and takes the secrets out of its error.
func (i *installer) run(ctx context.Context, c *command) error {
	logged := c.log == nil
	if logged {
		c.log = cmp.Or[io.Writer](i.log, io.Discard)
	}
	err := c.run(ctx)
	var failed *commandError
	if errors.As(err, &failed) {
		failed.seen = i.template && logged
		failed.tail = strings.Split(i.redacted(strings.Join(failed.tail, "\n")), "\n")
		if failed.tail[0] == "" {
			failed.tail = nil
		}
	}
	return err
}

// removeAll removes a directory that processes which are about to end may still
// write to.
func removeAll(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		err := os.RemoveAll(dir)
		for try := 0; err != nil && try < 5 && !errors.Is(err, fs.ErrPermission); try++ {
			time.Sleep(20 * time.Millisecond)
			err = os.RemoveAll(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sortedNames returns the names of a set.
func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
