package mock

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// The bounds of what a COPY unpacks.
const (
	maxCopyFiles = 500_000
	maxCopyBytes = 16 << 30
)

// copyStep does a COPY: its files were uploaded as a tar of the paths that its
// source matches.
func (c *construction) copyStep(ctx context.Context, kind string, step buildStep) error {
	args := step.Args
	switch {
	case len(args) < 2:
		return errors.New("COPY requires a local path and a container path argument")
	case step.FilesHash == "":
		return fmt.Errorf("%s requires files hash to be set", kind)
	}
	args = append(slices.Clone(args), "", "")
	files, ok := c.machine.(envd.Administrator)
	if !ok {
		return errNoBuilds
	}
	user, err := c.machine.User(c.setup.user)
	if err != nil {
		return err
	}
	owner, err := c.owner(args[2])
	if err != nil {
		return fmt.Errorf("failed to move files in sandbox: %w", err)
	}
	root, err := c.machine.User("root")
	if err != nil {
		return err
	}
	cp := copying{workshop: c.workshop, files: files, source: withoutPattern(args[0]), target: args[1], owner: owner, root: root}
	if !path.IsAbs(cp.target) {
		dir := c.setup.workdir
		if dir == "" {
			dir = user.Home
		}
		cp.target = dir + "/" + cp.target
	}
	if args[3] != "" {
		bits, err := strconv.ParseUint(args[3], 8, 12)
		if err != nil {
			return fmt.Errorf("failed to move files in sandbox: invalid mode: '%s'", args[3])
		}
		cp.mode = unixMode(bits)
		cp.hasMode = true
	}
	layer, err := c.server.layers.open(step.FilesHash)
	if err != nil {
		return fmt.Errorf("failed to open files object from storage: %w", err)
	}
	defer layer.Close()
	if err := cp.unpack(ctx, layer); err != nil {
		return fmt.Errorf("failed to move files in sandbox: %w", err)
	}
	return nil
}

// owner reads "user:group", of which the group may be missing. Empty is the
// build's user.
func (c *construction) owner(name string) (envd.User, error) {
	if name == "" {
		name = c.setup.user
	}
	name, group, ok := strings.Cut(name, ":")
	if !ok {
		group = name
	}
	u, err := c.account(name)
	if err != nil {
		return u, fmt.Errorf("chown: invalid user: '%s'", name)
	}
	g, err := c.account(group)
	if err != nil {
		return u, fmt.Errorf("chown: invalid group: '%s'", group)
	}
	u.GID = g.GID
	return u, nil
}

// account looks up a user by name or number.
func (c *construction) account(name string) (envd.User, error) {
	if id, err := strconv.Atoi(name); err == nil {
		for _, n := range []string{"root", "user"} {
			if u, err := c.machine.User(n); err == nil && u.UID == id {
				return u, nil
			}
		}
	}
	if name == "" {
		return envd.User{}, errors.New("there is no name")
	}
	return c.machine.User(name)
}

// unixMode makes a mode of its bits.
func unixMode(bits uint64) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// withoutPattern returns the part of a source that is before the first element
// with a pattern, without a slash at its end; empty for all that was uploaded.
func withoutPattern(source string) string {
	var plain []string
	for element := range strings.SplitSeq(source, "/") {
		bare := strings.NewReplacer(`\\`, "", `\*`, "", `\?`, "", `\[`, "", `\{`, "").Replace(element)
		if strings.ContainsAny(bare, "*?[{") {
			break
		}
		plain = append(plain, strings.ReplaceAll(element, `\`, ""))
	}
	return strings.TrimPrefix(path.Clean("/"+strings.Join(plain, "/")), "/")
}

// copying puts files into a machine as Docker's COPY does.
type copying struct {
	*workshop
	files   envd.Administrator
	source  string // relative, empty for all
	target  string // absolute
	owner   envd.User
	root    envd.User
	mode    fs.FileMode
	hasMode bool

	began bool
	modes []func() error // of directories, which are set in the end
	count int
	bytes int64
}

// unpack reads a tar, which may be compressed.
func (c *copying) unpack(ctx context.Context, r io.Reader) error {
	buffered := bufio.NewReaderSize(r, 64<<10)
	r = buffered
	if magic, err := buffered.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		r = z
	}
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = c.entry(header, &budgetReader{ctx, archive, &c.bytes})
		}
		if err != nil {
			return err
		}
	}
	for _, set := range slices.Backward(c.modes) {
		if err := set(); err != nil {
			return err
		}
	}
	if !c.began {
		return fmt.Errorf("source path does not exist: %s", c.source)
	}
	return nil
}

// budgetReader reads until too much was read.
type budgetReader struct {
	ctx  context.Context
	r    io.Reader
	read *int64
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if *b.read += int64(n); *b.read > maxCopyBytes {
		return n, errors.New("the files are too large")
	}
	return n, err
}

// within returns a path of the archive relative to the source.
func (c *copying) within(name string) (rel string, ok bool) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	switch {
	case c.source == "" || name == c.source:
		return strings.TrimPrefix(name, c.source), true
	case strings.HasPrefix(name, c.source+"/"):
		return name[len(c.source)+1:], true
	}
	return "", false
}

func (c *copying) entry(header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	rel, ok := c.within(header.Name)
	if !ok {
		return nil
	}
	if c.count++; c.count > maxCopyFiles {
		return errors.New("there are too many files")
	}
	if !c.began {
		if err := c.begin(rel == "" && header.Typeflag != tar.TypeDir); err != nil {
			return err
		}
		c.began = true
	}
	name := path.Join(c.target, rel)
	if rel != "" {
		if err := c.makeParents(name); err != nil {
			return err
		}
	}
	mode := header.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if c.hasMode {
		mode = c.mode
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return c.dir(name, mode)
	case tar.TypeReg:
		return c.file(name, mode, content)
	case tar.TypeSymlink:
		if err := c.clear(name); err != nil {
			return err
		}
		return c.files.Symlink(header.Linkname, name, c.owner)
	case tar.TypeLink:
		return c.link(name, mode, header.Linkname)
	}
	return fmt.Errorf("%s: entry is neither file, directory, nor symlink", header.Name)
}

// begin makes the directory that the target is in, or is. A single file goes
// into a directory that is there under its own name.
func (c *copying) begin(single bool) error {
	slash := strings.HasSuffix(c.target, "/")
	c.target = path.Clean(c.target)
	dir := c.target
	if single && !slash {
		dir = path.Dir(dir)
	}
	if _, err := c.makeDirs(dir, c.root); err != nil {
		return err
	}
	if !single {
		return nil
	}
	if info, err := c.machine.Stat(c.target); err == nil && info.IsDir() {
		c.target = path.Join(c.target, path.Base(c.source))
	}
	return nil
}

// makeParents makes directories that the archive does not name.
func (c *copying) makeParents(name string) error {
	dir := path.Dir(name)
	first, err := c.makeDirs(dir, c.owner)
	if err != nil || first == "" || !c.hasMode {
		return err
	}
	for ; len(dir) >= len(first); dir = path.Dir(dir) {
		c.setLater(dir, c.mode)
	}
	return nil
}

func (c *copying) setLater(name string, mode fs.FileMode) {
	c.modes = append(c.modes, func() error { return c.files.Chmod(name, mode) })
}

// dir makes a directory. One that is there stays as it is.
func (c *copying) dir(name string, mode fs.FileMode) error {
	if info, err := c.machine.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	if err := c.machine.Mkdir(name, c.owner); err != nil {
		return err
	}
	c.setLater(name, mode)
	return nil
}

// clear removes what is in the way of a file, but for a directory.
func (c *copying) clear(name string) error {
	info, err := c.machine.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.IsDir() {
		return fmt.Errorf("cannot overwrite directory '%s' with non-directory", name)
	}
	if err != nil {
		return err
	}
	return c.machine.RemoveAll(name)
}

func (c *copying) file(name string, mode fs.FileMode, content io.Reader) error {
	if err := c.clear(name); err != nil {
		return err
	}
	f, err := c.machine.Create(name, c.owner)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return c.files.Chmod(name, mode)
}

// link copies a file that came before.
func (c *copying) link(name string, mode fs.FileMode, target string) error {
	rel, ok := c.within(target)
	if !ok {
		return fmt.Errorf("%s: a link to %s, which is not copied", name, target)
	}
	f, err := c.machine.Open(path.Join(c.target, rel))
	if err != nil {
		return err
	}
	defer f.Close()
	return c.file(name, mode, f)
}
