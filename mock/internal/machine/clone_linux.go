package machine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyTo copies what is in the tree itself, not on other file systems in it.
func (n *namespace) copyTo(m *Machine) error {
	to, ok := m.box.(*namespace)
	if !ok {
		return fmt.Errorf("a machine of another kind: %w", errors.ErrUnsupported)
	}
	top, err := n.Stat("/")
	if err != nil {
		return err
	}
	c := copier{from: &n.tree, to: &to.tree, dev: statOf(top).Dev}
	return c.dir("/")
}

func statOf(info fs.FileInfo) *syscall.Stat_t {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return &syscall.Stat_t{}
	}
	return st
}

// timesOf returns when a file was last read and written.
func timesOf(st *syscall.Stat_t) []unix.Timespec {
	return []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}
}

type copier struct {
	from, to *tree
	dev      uint64
}

func (c copier) dir(name string) error {
	entries, err := c.from.ReadDir(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := path.Join(name, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if statOf(info).Dev != c.dev || child == "/dev" {
			continue
		}
		if err := c.entry(child, info); err != nil {
			return err
		}
	}
	return nil
}

func (c copier) entry(name string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case 0:
		return c.file(name, info)
	case fs.ModeSymlink:
		return c.link(name, info)
	case fs.ModeDir:
		if err := c.mkdir(name); err != nil {
			return err
		}
		if err := c.dir(name); err != nil {
			return err
		}
		return c.adorn(name, info)
	}
	return nil
}

// mkdir makes a directory that nobody else can use as yet.
func (c copier) mkdir(name string) error {
	return c.to.inParent("mkdir", name, func(dir *os.File, base string) error {
		err := unix.Mkdirat(int(dir.Fd()), base, 0o700)
		if err == unix.EEXIST {
			return nil
		}
		return err
	})
}

func (c copier) link(name string, info fs.FileInfo) error {
	target, err := c.from.Readlink(name)
	if err != nil {
		return err
	}
	return c.to.inParent("symlink", name, func(dir *os.File, base string) error {
		err := unix.Symlinkat(target, int(dir.Fd()), base)
		if err == unix.EEXIST {
			return nil // of the system: every tree has it
		}
		if err != nil {
			return err
		}
		st := statOf(info)
		err = unix.Fchownat(int(dir.Fd()), base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(int(dir.Fd()), base, timesOf(st), unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (c copier) file(name string, info fs.FileInfo) (err error) {
	in, err := c.from.openRegular(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone by now
	}
	if err != nil {
		return err
	}
	defer closeAll(in)
	out, err := c.to.openRegular(name, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return c.adorn(name, info)
}

// adorn gives a copy the owner, mode, metadata and time of the original. The
// owner comes first, for a new one takes some bits of the mode away.
func (c copier) adorn(name string, info fs.FileInfo) error {
	f, err := c.to.openat("copy", name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer closeAll(f)
	st := statOf(info)
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return pathError("chown", name, err)
	}
	if err := unix.Fchmod(int(f.Fd()), st.Mode&0o7777); err != nil {
		return pathError("chmod", name, err)
	}
	if metadata, err := c.from.Metadata(name); err == nil && len(metadata) > 0 {
		if err := c.to.SetMetadata(name, metadata); err != nil {
			return err
		}
	}
	return pathError("chtimes", name, unix.UtimesNanoAt(unix.AT_FDCWD, procPath(f), timesOf(st), 0))
}
