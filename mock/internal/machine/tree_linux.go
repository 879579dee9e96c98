package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// tree is a file tree of its own. The kernel resolves names in it as for a
// process whose root it is: no link leads out of it.
type tree struct {
	root  *os.File // its root directory
	chown bool     // files can be given away
}

// openat opens a file. Links are followed, unless flags say not to.
func (t *tree) openat(op, name string, flags int, mode uint32) (*os.File, error) {
	var fd int
	err := control(t.root, func(root int) (err error) {
		fd, err = openIn(root, name, flags, mode)
		return err
	})
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// control calls f with the descriptor of a file, which is not closed meanwhile.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) { inner = f(int(fd)) })
	return cmp.Or(err, inner)
}

// openIn repeats what a signal, or a concurrent rename, has kept from being
// done.
func openIn(root int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Mode:    uint64(mode),
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

func (t *tree) stat(op, name string, flags int) (fs.FileInfo, error) {
	f, err := t.openat(op, name, unix.O_PATH|flags, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	return info, pathError(op, name, err)
}

func (t *tree) Stat(name string) (fs.FileInfo, error)  { return t.stat("stat", name, 0) }
func (t *tree) Lstat(name string) (fs.FileInfo, error) { return t.stat("lstat", name, unix.O_NOFOLLOW) }

func (t *tree) ids(info fs.FileInfo) (uid, gid int) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	switch {
	case t.chown:
		return int(st.Uid), int(st.Gid)
	case int(st.Uid) == os.Geteuid():
		return 0, 0
	}
	return nobody, nobody // as processes see it, for only one user is mapped
}

func (t *tree) Readlink(name string) (string, error) {
	f, err := t.openat("readlink", name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err == unix.ENOENT {
		err = unix.EINVAL // what it means for an empty name: no link
	}
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	return string(buf[:n]), nil
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	dir, err := t.openat("open", name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	slices.Sort(names)
	entries := make([]fs.DirEntry, 0, len(names))
	for _, base := range names {
		if info, err := lstatIn(dir, base); err == nil { // else it is gone by now
			entries = append(entries, fs.FileInfoToDirEntry(info))
		}
	}
	return entries, nil
}

func lstatIn(dir *os.File, base string) (fs.FileInfo, error) {
	fd, err := openIn(int(dir.Fd()), base, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), base)
	defer func() { _ = f.Close() }()
	return f.Stat()
}

// Open reads /dev/null too: that is what a file is that not everybody may read.
func (t *tree) Open(name string) (envd.File, error) {
	f, err := t.openFile(name, unix.O_RDONLY, 0, isNull)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openRegular opens a file that is neither a directory, which cannot be read,
// nor something that would block.
func (t *tree) openRegular(name string, flags int, mode uint32) (*os.File, error) {
	return t.openFile(name, flags, mode, func(fs.FileInfo) bool { return false })
}

// openFile is openRegular that also opens what is accepted.
func (t *tree) openFile(name string, flags int, mode uint32, accept func(fs.FileInfo) bool) (*os.File, error) {
	f, err := t.openat("open", name, flags|unix.O_NONBLOCK|unix.O_NOCTTY, mode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = syscall.EISDIR
	case !info.Mode().IsRegular() && !accept(info):
		err = syscall.EINVAL
	default:
		err = checkKernel(f, info, flags)
	}
	if err != nil {
		_ = f.Close()
		return nil, pathError("open", name, err)
	}
	return f, nil
}

// checkKernel refuses what the kernel would let us do to itself and to
// processes, by the files in /proc, but not everybody.
func checkKernel(f *os.File, info fs.FileInfo, flags int) error {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return err
	}
	if st.Type == unix.PROC_SUPER_MAGIC && (flags&unix.O_ACCMODE != unix.O_RDONLY || info.Mode()&0o004 == 0) {
		return syscall.EACCES
	}
	return nil
}

func (t *tree) Create(name string, owner envd.User) (io.WriteCloser, error) {
	f, err := t.create(name, owner)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (t *tree) create(name string, owner envd.User) (*os.File, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT
	f, err := t.openRegular(name, flags|unix.O_EXCL, 0o666)
	found := errors.Is(err, fs.ErrExist)
	if found {
		f, err = t.openRegular(name, flags, 0o666)
	}
	if err != nil {
		return nil, err
	}
	if t.chown {
		err = f.Chown(owner.UID, owner.GID)
	}
	if err == nil && found {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// inParent calls f with the directory that a file is in, and its name there.
func (t *tree) inParent(op, name string, f func(dir *os.File, base string) error) error {
	parent, base, err := split(op, name)
	if err != nil {
		return err
	}
	dir, err := t.openat(op, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return pathError(op, name, err)
	}
	defer func() { _ = dir.Close() }()
	return pathError(op, name, f(dir, base))
}

func (t *tree) Mkdir(name string, owner envd.User) error {
	return t.inParent("mkdir", name, func(dir *os.File, base string) error {
		err := unix.Mkdirat(int(dir.Fd()), base, 0o755)
		if err == nil && t.chown {
			err = unix.Fchownat(int(dir.Fd()), base, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		return err
	})
}

// Symlink, Chmod and Chown are those of [envd.Administrator].
func (t *tree) Symlink(target, name string, owner envd.User) error {
	if err := t.symlink(target, name); err != nil {
		return err
	}
	return t.Chown(name, owner)
}

func (t *tree) Chmod(name string, mode fs.FileMode) error {
	f, err := t.openat("chmod", name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer closeAll(f)
	return pathError("chmod", name, f.Chmod(mode))
}

func (t *tree) Chown(name string, owner envd.User) error {
	if !t.chown {
		return nil
	}
	return t.inParent("chown", name, func(dir *os.File, base string) error {
		return unix.Fchownat(int(dir.Fd()), base, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (t *tree) symlink(target, name string) error {
	return t.inParent("symlink", name, func(dir *os.File, base string) error {
		return unix.Symlinkat(target, int(dir.Fd()), base)
	})
}

func (t *tree) Rename(from, to string) error {
	return t.inParent("rename", from, func(fromDir *os.File, fromBase string) error {
		return t.inParent("rename", to, func(toDir *os.File, toBase string) error {
			return unix.Renameat(int(fromDir.Fd()), fromBase, int(toDir.Fd()), toBase)
		})
	})
}

func (t *tree) RemoveAll(name string) error {
	err := t.inParent("remove", name, func(dir *os.File, base string) error {
		root, err := os.OpenRoot(procPath(dir))
		if err != nil {
			return err
		}
		return errors.Join(root.RemoveAll(base), root.Close())
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unlink removes a file, or a directory that is empty.
func (t *tree) unlink(name string) error {
	return t.inParent("remove", name, func(dir *os.File, base string) error {
		root, err := os.OpenRoot(procPath(dir))
		if err != nil {
			return err
		}
		return errors.Join(root.Remove(base), root.Close())
	})
}

// procPath returns a name that leads straight to an open file.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// watchPath names an open directory by its number, which no other gets before
// it is closed.
func (t *tree) watchPath(name string, top bool) (string, io.Closer, error) {
	dir, err := t.openat("watch", name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	if top {
		return fmt.Sprintf("/proc/thread-self/fd/%d", dir.Fd()), dir, nil
	}
	return procPath(dir), dir, nil
}

func (t *tree) SetMetadata(name string, metadata map[string]string) error {
	f, err := t.openat("setxattr", name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return pathError("setxattr", name, setAttributes(procPath(f), metadata))
}

func (t *tree) Metadata(name string) (map[string]string, error) {
	f, err := t.openat("getxattr", name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	metadata, err := attributes(procPath(f))
	return metadata, pathError("getxattr", name, err)
}

func (t *tree) Usage() envd.Usage {
	u := usageOf()
	u.DiskTotal, u.DiskUsed = diskUsage(procPath(t.root))
	return u
}

// openTerminal opens one of the tree's own, so that its name is right there.
func (t *tree) openTerminal(owner envd.User) (ours, theirs *os.File, err error) {
	ours, err = t.openat("open", "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs, err = t.openOther(ours)
	if err == nil && t.chown {
		err = theirs.Chown(owner.UID, -1)
	}
	if err != nil {
		closeAll(ours, theirs)
		return nil, nil, err
	}
	return ours, theirs, nil
}

// openOther opens the other end of a terminal.
func (t *tree) openOther(ours *os.File) (*os.File, error) {
	var number uint32
	err := control(ours, func(fd int) (err error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t.openat("open", path.Join("/dev/pts", fmt.Sprint(number)), unix.O_RDWR|unix.O_NOCTTY, 0)
}
