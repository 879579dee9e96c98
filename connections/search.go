package connections

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Search is a [Resolver] and a [Describer] that looks for osiris_connections.yaml
// each time it is asked, so that a change is seen by the next run. The zero
// Search does as the reference implementation.
type Search struct {
	// Dir is where relative directories start and what "working directory"
	// means below. Empty: that of the process.
	Dir string
	// More are directories that are searched last, the reference
	// implementation's installation, say.
	More []string
	// DotEnv has variables that are not set looked for in .env files, too: in
	// $OSIRIS_HOME, in the working directory, and in the project's root, which is
	// the closest directory from there upwards that has an osiris.py. The first
	// that has the variable wins. The process's environment is not changed.
	DotEnv bool
	// Lookup finds variables, OSIRIS_HOME as well as those of placeholders. Nil is
	// os.LookupEnv.
	Lookup func(name string) (string, bool)
}

// Find returns the path of the file: that in $OSIRIS_HOME, in the working
// directory, in its parent, or in one of More, the first there is. Errors are
// fs.ErrNotExist when there is none, and those of reading a .env file.
func (s Search) Find() (string, error) {
	lookup, err := s.Env()
	if err != nil {
		return "", err
	}
	return s.find(lookup)
}

func (s Search) find(lookup func(string) (string, bool)) (string, error) {
	var dirs []string
	if home := homeOf(lookup); home != "" {
		dirs = append(dirs, s.at(home))
	}
	dir, err := s.dir()
	if err != nil {
		return "", err
	}
	dirs = append(dirs, dir, filepath.Dir(dir))
	for _, more := range s.More {
		dirs = append(dirs, s.at(more))
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, FileName)
		switch _, err := os.Stat(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return "", &fs.PathError{Op: "find", Path: FileName, Err: fs.ErrNotExist}
}

// Load reads the file; where there is none, it returns one without connections.
// Errors are [*FileError], of the file or of a .env file, and those of os.Open.
func (s Search) Load() (*File, error) {
	lookup, err := s.Env()
	if err != nil {
		return nil, err
	}
	path, err := s.find(lookup)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{Lookup: lookup}, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := Load(path)
	if err != nil {
		return nil, err
	}
	f.Lookup = lookup
	return f, nil
}

// Resolve is [File.Resolve] of the file that is there now.
func (s Search) Resolve(ctx context.Context, ref Reference) (*Connection, error) {
	f, err := s.Load()
	if err != nil {
		return nil, err
	}
	return f.Resolve(ctx, ref)
}

// Describe is [File.Describe] of the file that is there now.
func (s Search) Describe(ref Reference) (*Connection, error) {
	f, err := s.Load()
	if err != nil {
		return nil, err
	}
	return f.Describe(ref)
}

// Env returns what placeholders are filled from: Lookup, and with DotEnv the
// .env files behind it, as they are now. A variable that is set, even to
// nothing, is never taken from a file.
func (s Search) Env() (func(name string) (string, bool), error) {
	lookup := s.Lookup
	if lookup == nil {
		lookup = os.LookupEnv
	}
	if !s.DotEnv {
		return lookup, nil
	}
	dirs, err := s.envDirs(lookup)
	if err != nil {
		return nil, err
	}
	vars := make(map[string]string)
	known := func(name string) (string, bool) {
		if v, ok := lookup(name); ok {
			return v, true
		}
		v, ok := vars[name]
		return v, ok
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, ".env")
		data, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := parseEnv(data, known, func(name, value string) {
			if _, ok := vars[name]; !ok {
				vars[name] = value
			}
		}); err != nil {
			return nil, inFile(err, path)
		}
	}
	return known, nil
}

// envDirs are the directories of .env files, the winner first.
func (s Search) envDirs(lookup func(string) (string, bool)) ([]string, error) {
	var dirs []string
	if home := homeOf(lookup); home != "" {
		dirs = append(dirs, s.at(home))
	}
	dir, err := s.dir()
	if err != nil {
		return nil, err
	}
	dirs = append(dirs, dir)
	for root := dir; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "osiris.py")); err == nil {
			return append(dirs, root), nil
		}
		if root == filepath.Dir(root) {
			return dirs, nil
		}
	}
}

func homeOf(lookup func(string) (string, bool)) string {
	home, _ := lookup("OSIRIS_HOME")
	return strings.TrimSpace(home)
}

// dir is the working directory, as an absolute path, which has a parent.
func (s Search) dir() (string, error) { return filepath.Abs(s.Dir) }

func (s Search) at(dir string) string {
	if filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(s.Dir, dir)
}
