package worker

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// FS is the file system a worker works on: the machine's own ([OSFS]) or one
// in memory (package mock). Names are absolute paths; errors match
// [fs.ErrNotExist] and [fs.ErrExist] where they apply.
type FS interface {
	// Open opens a file for reading.
	Open(name string) (File, error)
	// Create makes or truncates a file and opens it for writing. Its directory must exist.
	Create(name string) (File, error)
	// Append opens a file that exists for writing behind its first size
	// bytes. What is behind them is cut off.
	Append(name string, size int64) (File, error)
	// MkdirAll makes a directory and its parents; one that exists is no error.
	MkdirAll(name string) error
	// RemoveAll removes a file or a whole directory; a missing one is no error.
	RemoveAll(name string) error
	// Rename moves a file, replacing what is there.
	Rename(from, to string) error
	// Stat describes a file without following a symbolic link at its end.
	Stat(name string) (fs.FileInfo, error)
	// ReadDir lists a directory in name order.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Watch reports changes below a directory (its own entries and their
	// content, not those of its subdirectories) on the returned channel,
	// coalesced: one pending notice stands for any number of changes.
	// stop ends it and waits.
	Watch(dir string) (changed <-chan struct{}, stop func(), err error)
}

// File is an open file of an [FS].
type File interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Writer
	io.Closer
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// OSFS is the file system of this machine.
type OSFS struct{}

// Open implements [FS].
func (OSFS) Open(name string) (File, error) { return osFile(os.Open(name)) }

// Create implements [FS].
func (OSFS) Create(name string) (File, error) { return osFile(os.Create(name)) }

// Append implements [FS].
func (OSFS) Append(name string, size int64) (File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0) // a file opened with O_APPEND cannot be truncated on Windows
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(size); err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// MkdirAll implements [FS]. Directories are for their owner and group alone.
func (OSFS) MkdirAll(name string) error { return os.MkdirAll(name, 0o750) }

// RemoveAll implements [FS].
func (OSFS) RemoveAll(name string) error { return os.RemoveAll(name) }

// Rename implements [FS].
func (OSFS) Rename(from, to string) error { return os.Rename(from, to) }

// Stat implements [FS].
func (OSFS) Stat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

// ReadDir implements [FS].
func (OSFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

var errNotRegular = errors.New("it is not a regular file")

// openRegular opens a file of the run's folder. A driver may have put a pipe in
// its place, which would hold up whoever opens it, also the host on its machine.
func openRegular(fsys FS, name string) (File, error) {
	info, err := fsys.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	return fsys.Open(name)
}

func osFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err // not a nil *os.File in a non-nil File
	}
	return f, nil
}
