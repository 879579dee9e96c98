package python

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// lockName is the file that says which wheels there are.
const lockName = "lock.json"

const (
	maxLock   = 4 << 20
	maxWheels = 5000
)

// wheelLock is everything that an environment was installed from.
type wheelLock struct {
	Format       int      `json:"format"` // 1
	Key          string   `json:"key"`
	Python       string   `json:"python"`
	Platform     string   `json:"platform"`
	Requirements []string `json:"requirements"`
	Installed    []string `json:"installed"`
	Wheels       []wheel  `json:"wheels"`
}

// errWheels is matched by errors about wheels that do not fit their lock.
var errWheels = errors.New("wheels of the wheelhouse")

// collect leaves those wheels that packages were installed from in Collect, and
// at last their lock.
func (n *installation) collect(from string, packages []string) ([]wheel, error) {
	to := n.options.Collect
	if err := os.MkdirAll(to, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, err
	}
	files := map[string]string{} // by name and version
	for _, e := range entries {
		if id, ok := parseWheelName(e.Name()); ok && e.Type().IsRegular() {
			files[id] = e.Name()
		}
	}
	wheels := []wheel{}
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "==")
		file, ok := files[wheelID(name, version)]
		if !ok {
			return nil, fmt.Errorf("%s was installed from none of them", p)
		}
		if err := move(filepath.Join(from, file), filepath.Join(to, file)); err != nil {
			return nil, err
		}
		w := wheel{Name: file}
		if w.Size, w.SHA256, err = hashFile(filepath.Join(to, file)); err != nil {
			return nil, err
		}
		wheels = append(wheels, w)
	}
	slices.SortFunc(wheels, func(a, b wheel) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(wheelLock{
		Format: 1, Key: n.key, Python: n.base.Version, Platform: n.base.Platform,
		Requirements: lines(n.requirements), Installed: list(packages), Wheels: wheels,
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	return wheels, writeFileAtomic(filepath.Join(to, lockName), b)
}

// verifyWheels returns the paths of the wheels of a directory, after it has
// compared them with their lock: nothing is installed that was changed.
func verifyWheels(ctx context.Context, dir, key string) ([]string, error) {
	lock, err := readLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	if lock.Key != key {
		return nil, fmt.Errorf("%w: %s is for another environment: key %.32q, want %q", errWheels, lockName, lock.Key, key)
	}
	var paths []string
	for _, w := range lock.Wheels {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		path := filepath.Join(dir, w.Name)
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%w: %s is not there as a file (take it out of the wheelhouse, so that it is made anew)", errWheels, w.Name)
		}
		size, sum, err := hashFile(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errWheels, err)
		}
		if size != w.Size || sum != w.SHA256 {
			return nil, fmt.Errorf("%w: %s is not what %s says: %d bytes with SHA-256 %s, want %d with %s (remove its entry from the wheelhouse, so that it is made anew)",
				errWheels, w.Name, lockName, size, sum, w.Size, w.SHA256)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// readLock reads a lock, and checks that it names nothing but wheels beside it.
func readLock(path string) (*wheelLock, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errWheels, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxLock+1))
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", errWheels, lockName, err)
	}
	return parseLock(b)
}

func parseLock(b []byte) (*wheelLock, error) {
	if len(b) > maxLock {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", errWheels, lockName, maxLock)
	}
	lock := &wheelLock{}
	if err := json.Unmarshal(b, lock); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errWheels, lockName, err)
	}
	if lock.Format != 1 {
		return nil, fmt.Errorf("%w: %s has format %d, want 1", errWheels, lockName, lock.Format)
	}
	if len(lock.Wheels) > maxWheels {
		return nil, fmt.Errorf("%w: %s names more than %d", errWheels, lockName, maxWheels)
	}
	for _, w := range lock.Wheels {
		if _, ok := parseWheelName(w.Name); !ok {
			return nil, fmt.Errorf("%w: %s: %.100q is not the name of a wheel", errWheels, lockName, w.Name)
		}
		if sum, err := hex.DecodeString(w.SHA256); err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("%w: %s: %s has no SHA-256", errWheels, lockName, w.Name)
		}
	}
	return lock, nil
}

// parseWheelName returns what wheelID does for a file name of PEP 427.
func parseWheelName(file string) (id string, ok bool) {
	stem, ok := strings.CutSuffix(file, ".whl")
	parts := strings.Split(stem, "-")
	if !ok || len(file) > 255 || len(parts) != 5 && len(parts) != 6 || !validName(parts[0]) || parts[1] == "" {
		return "", false
	}
	if strings.ContainsFunc(stem, func(c rune) bool { return !isNameByte(c) && c != '+' && c != '!' }) {
		return "", false
	}
	return wheelID(parts[0], parts[1]), true
}

// wheelID names a package and its version in the same way, whoever has written them.
func wheelID(name, version string) string {
	return normaliseName(name) + "==" + strings.NewReplacer("_", "-").Replace(strings.ToLower(version))
}

// move moves a file, also to another file system.
func move(from, to string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func hashFile(path string) (size int64, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return size, hex.EncodeToString(h.Sum(nil)), err
}
