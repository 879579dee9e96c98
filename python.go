package remote

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// PythonDriver declares a driver in Python: a class that is made without
// arguments and has a method
//
//	def run(self, *, step_id, config, inputs, ctx):
//
// over pandas DataFrames. It runs in a Python process beside the worker, whose
// program must have called python.Register of package worker/python. A driver of
// the program that has the same name is not used then.
//
// See docs/python.md, and docs/dependencies.md for what is installed.
type PythonDriver struct {
	Name   string `json:"name"`   // as steps name it
	Module string `json:"module"` // dotted, as "osiris.drivers.mysql_extractor_driver"
	Class  string `json:"class"`  // in the module

	// Mode says what the driver does with rows. Empty goes by the name: one that
	// ends in "extractor" extracts, in "writer" writes, and any other transforms.
	Mode worker.Mode `json:"mode,omitempty"`

	// Requirements are the packages that it imports, as in PEP 508:
	// "sqlalchemy>=2". Those of all drivers in a plan are installed together.
	Requirements []string `json:"requirements,omitempty"`

	// Sources are directories of this machine where its module is looked for
	// first; relative ones start at the run's base path. They are sent with the
	// run, without hidden files and __pycache__. Of a directory with an
	// __init__.py, a package, only that package is sent.
	Sources []string `json:"sources,omitempty"`

	// InputFiles and OutputFiles are JSON pointers to paths in its config, as
	// "/path". A file of the first kind is sent with the run, one of the second
	// becomes an artifact of the step; the driver finds an absolute path in
	// their place. Without a pointer, a relative path starts at the base path,
	// or for one that writes, at the step's artifacts; and a driver in the place of
	// one of the program has the same input files as that.
	InputFiles  []string `json:"input_files,omitempty"`
	OutputFiles []string `json:"output_files,omitempty"`

	// Secrets are JSON pointers to what is secret in its config, as in
	// [worker.Registration].
	Secrets []string `json:"secrets,omitempty"`
}

// UnmarshalJSON refuses a key that is none of these.
func (d *PythonDriver) UnmarshalJSON(b []byte) error {
	type plain PythonDriver
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode((*plain)(d))
}

// Limits of what drivers' sources may have.
const (
	maxSourceFiles = 20_000
	maxSourceBytes = 512 << 20
)

func (d PythonDriver) mode() worker.Mode {
	switch {
	case d.Mode != "":
		return d.Mode
	case strings.HasSuffix(d.Name, "extractor"):
		return worker.Extract
	case strings.HasSuffix(d.Name, "writer"):
		return worker.Write
	}
	return worker.Transform
}

func (d PythonDriver) validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("driver %q in Python: %s", d.Name, fmt.Sprintf(format, args...))
	}
	switch d.mode() {
	case worker.Extract, worker.Transform, worker.Write:
	default:
		return fail("the mode %q is none of extract, transform and write", d.Mode)
	}
	switch {
	case d.Name == "":
		return errors.New("a driver in Python has no name")
	case !isDotted(d.Module):
		return fail("the module %q is no dotted name", d.Module)
	case !isDotted(d.Class):
		return fail("the class %q is no name", d.Class)
	}
	for _, r := range d.Requirements {
		if strings.TrimSpace(r) == "" || strings.ContainsAny(r, "\r\n\x00") || strings.HasPrefix(strings.TrimSpace(r), "-") {
			return fail("the requirement %q is no package; as in \"pandas>=2\"", r)
		}
	}
	for _, pointers := range [][]string{d.InputFiles, d.OutputFiles, d.Secrets} {
		for _, p := range pointers {
			if !strings.HasPrefix(p, "/") {
				return fail("%q is no JSON pointer to a field of its config; as in \"/path\"", p)
			}
		}
	}
	if slices.Contains(d.Sources, "") {
		return fail("a source has no name")
	}
	return nil
}

// isDotted reports whether s is one name of Python, or several with dots
// between them.
func isDotted(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		for i, r := range part {
			if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
				return false
			}
		}
		if part == "" {
			return false
		}
	}
	return true
}

// pythonDrivers returns what is declared of the drivers that a plan uses, by
// the Config or else by the manifest, sorted by name.
func (c Config) pythonDrivers(m *Manifest) ([]PythonDriver, error) {
	byName := make(map[string]PythonDriver)
	for _, declared := range [][]PythonDriver{m.PythonDrivers, c.PythonDrivers} {
		here := make(map[string]bool, len(declared))
		for _, d := range declared {
			if err := d.validate(); err != nil {
				return nil, err
			}
			if here[d.Name] {
				return nil, fmt.Errorf("driver %q in Python is declared twice", d.Name)
			}
			here[d.Name] = true
			byName[d.Name] = d
		}
	}
	drivers := []PythonDriver{}
	for _, s := range m.Steps {
		if d, ok := byName[s.DriverName()]; ok {
			drivers = append(drivers, d)
			delete(byName, d.Name)
		}
	}
	slices.SortFunc(drivers, func(a, b PythonDriver) int { return strings.Compare(a.Name, b.Name) })
	return drivers, nil
}

// pythonFault is what is wrong with the declarations of a Config.
func (c Config) pythonFault() error {
	_, err := c.pythonDrivers(&Manifest{})
	return err
}

// pythonDriver returns the declaration of a driver.
func (p *PreparedRun) pythonDriver(name string) (PythonDriver, bool) {
	for _, d := range p.PythonDrivers {
		if d.Name == name {
			return d, true
		}
	}
	return PythonDriver{}, false
}

// filerInPlaceOf returns the constructor of the program's driver whose place one
// in Python takes, where that knows which files its config names and the
// declaration does not say: both read the same config.
func (c Config) filerInPlaceOf(d PythonDriver) func() worker.Driver {
	if c.Drivers == nil || len(d.InputFiles) > 0 {
		return nil
	}
	entry, err := c.Drivers.Lookup(d.Name)
	if err != nil {
		return nil
	}
	return entry.New
}

// checkPointers refuses pointers to files that lead nowhere in any step: what a
// mistyped one means would be lost, without a word.
func (p *PreparedRun) checkPointers() error {
	leads := func(driver, pointer string) bool {
		return slices.ContainsFunc(p.Plan.Steps, func(s Step) bool {
			return s.DriverName() == driver && len(filesAt(p.CfgIndex[s.cfgPath()], []string{pointer})) > 0
		})
	}
	for _, d := range p.PythonDrivers {
		for _, pointer := range slices.Concat(d.InputFiles, d.OutputFiles) {
			if !leads(d.Name, pointer) {
				return fmt.Errorf("driver %q in Python: its input_files or output_files have %q, and no step of it has a path there in its config", d.Name, pointer)
			}
		}
	}
	return nil
}

// filesAt returns the paths that pointers lead to in a config, as they stand
// there.
func filesAt(config map[string]any, pointers []string) []string {
	var names []string
	for _, pointer := range pointers {
		if name, _, ok := rpc.StringAt(config, pointer); ok && name != "" {
			names = append(names, name)
		}
	}
	return names
}

// sourceDirs lists the directories that drivers' sources are in, each once, in
// their order.
func (p *PreparedRun) sourceDirs() []string {
	var dirs []string
	for _, d := range p.PythonDrivers {
		for _, source := range d.Sources {
			if !slices.Contains(dirs, source) {
				dirs = append(dirs, source)
			}
		}
	}
	return dirs
}

// sourcePath is where a directory of sources is sent to, as a zip file: its
// place among them names it, so that it is known without reading it.
func (p *PreparedRun) sourcePath(runDir, source string) string {
	return path.Join(filepath.ToSlash(runDir), "sources", strconv.Itoa(slices.Index(p.sourceDirs(), source))+".zip")
}

// declared tells a worker of the drivers in Python.
func (p *PreparedRun) declared(runDir string) []rpc.DeclaredDriver {
	var out []rpc.DeclaredDriver
	for _, d := range p.PythonDrivers {
		declared := rpc.DeclaredDriver{
			Name: d.Name, Mode: string(d.mode()), Runtime: "python", Module: d.Module, Class: d.Class,
			Requirements: slices.Concat(d.Requirements, p.SandboxConfig.Packages), InputFiles: d.InputFiles, OutputFiles: d.OutputFiles, Secrets: d.Secrets,
		}
		for _, source := range d.Sources {
			declared.Sources = append(declared.Sources, p.sourcePath(runDir, source))
		}
		out = append(out, declared)
	}
	return out
}

// packSources packs the sources of a run's drivers into zip files of this
// machine, which done removes, and says where each goes.
func packSources(ctx context.Context, ec *ExecutionContext, p *PreparedRun, runDir string) (inputs []input, done func(), err error) {
	dirs := p.sourceDirs()
	if len(dirs) == 0 {
		return nil, func() {}, nil
	}
	temp, err := os.MkdirTemp("", "osiris-sources-")
	if err != nil {
		return nil, nil, fmt.Errorf("remote: sources of drivers: %w", err)
	}
	done = func() { os.RemoveAll(temp) }
	for i, source := range dirs {
		in := input{name: source, file: filepath.Join(temp, strconv.Itoa(i)+".zip")}
		if err := packDir(ctx, hostPath(ec, source), in.file); err != nil {
			done()
			return nil, nil, fmt.Errorf("remote: sources of drivers: %s: %w", source, cause(err))
		}
		if err := in.read(ctx); err != nil {
			done()
			return nil, nil, fmt.Errorf("remote: sources of drivers: %s: %w", source, cause(err))
		}
		in.sum.Path = p.sourcePath(runDir, source)
		inputs = append(inputs, in)
	}
	return inputs, done, nil
}

// packDir writes the files of a directory, or of the package that it is, into a
// zip file that depends on nothing but their names and content.
func packDir(ctx context.Context, dir, to string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := zip.NewWriter(f)
	prefix := ""
	if _, err := os.Stat(filepath.Join(dir, "__init__.py")); err == nil {
		full, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		prefix = filepath.Base(full)
	}
	// A link to a directory is not walked into. This one was named.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return cmp.Or(err, errors.New("it is not a directory"))
	}
	files, size := 0, int64(0)
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || name == dir {
			return err
		}
		if base := e.Name(); strings.HasPrefix(base, ".") || base == "__pycache__" || strings.HasSuffix(base, ".pyc") {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		in := input{file: name}
		src, err := in.open() // what a symbolic link leads to, too
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		defer src.Close()
		dst, err := w.Create(path.Join(prefix, filepath.ToSlash(rel)))
		if err != nil {
			return err
		}
		n, err := io.Copy(dst, &contextReader{ctx, io.LimitReader(src, maxSourceBytes-size+1)})
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		files, size = files+1, size+n
		if files > maxSourceFiles || size > maxSourceBytes {
			return fmt.Errorf("it has more than %d files or %d MiB; name a directory that has the drivers' modules alone", maxSourceFiles, maxSourceBytes>>20)
		}
		return nil
	})
	if err == nil && files == 0 {
		err = errors.New("there is no file in it")
	}
	return errors.Join(err, w.Close())
}
