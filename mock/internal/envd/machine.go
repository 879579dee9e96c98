// Package envd is a stand-in for E2B's sandbox daemon, with its manners: it
// serves the files and processes of one [Machine] over HTTP, as the daemon
// serves those of a virtual machine.
package envd

import (
	"io"
	"io/fs"
	"syscall"
	"time"
)

// Machine is what a daemon serves: the files and processes of one sandbox.
// Paths are absolute and clean. Errors match fs.ErrNotExist, fs.ErrExist,
// syscall.ENOTDIR, EISDIR, ENOSPC and so on, as package os has them. All
// methods may be called concurrently.
type Machine interface {
	// User looks up a user. An empty name is the default user.
	User(name string) (User, error)

	// Stat describes what a path leads to, Lstat what is there: they differ
	// for a symbolic link.
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Readlink(name string) (string, error)
	// Owner names who owns the file that Stat or Lstat described.
	Owner(info fs.FileInfo) (user, group string)
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Open opens a regular file for reading.
	Open(name string) (File, error)
	// Create opens a file for writing, which then belongs to the user. One that
	// exists is cut to nothing in place. Symbolic links are followed.
	Create(name string, owner User) (io.WriteCloser, error)
	Mkdir(name string, owner User) error // one directory, mode 0755
	Rename(from, to string) error
	RemoveAll(name string) error
	// Watch reports what happens in a directory until stop is called. report
	// is called from one goroutine at a time and not after stop returned.
	Watch(dir string, recursive bool, report func(Event)) (stop func(), err error)

	// Start starts a process. It fails where fork and exec would: a working
	// directory that is none, not a program that does not exist.
	Start(cmd Command) (Process, error)

	// Freeze stops all processes, or lets them go on.
	Freeze(frozen bool) error
	// Usage tells what is used now.
	Usage() Usage
	// Clone returns a new machine with a copy of the files.
	Clone() (Machine, error)
	// Close kills all processes, waits for their end, and removes the files.
	Close() error
}

// Administrator is a machine whose files can be made as somebody else has them,
// for the building of templates. Links in the last element of a name are not
// followed.
type Administrator interface {
	Symlink(target, name string, owner User) error
	Chmod(name string, mode fs.FileMode) error
	Chown(name string, owner User) error
}

// User is a user of a machine.
type User struct {
	Name string
	UID  int
	GID  int
	Home string // absolute
}

// File is an open file.
type File interface {
	io.ReadSeekCloser
	Stat() (fs.FileInfo, error)
}

// Op is what happened to a file.
type Op int

// The operations.
const (
	OpCreate Op = iota + 1
	OpWrite
	OpRemove
	OpRename // away from this name
	OpChmod
)

// Event is something that happened in a watched directory.
type Event struct {
	Name string // relative to the directory
	Op   Op
}

// Command is a process to start. It is run as it is: no shell, no look-up but
// that of a Path without a slash, in the PATH of Env.
type Command struct {
	Path  string
	Args  []string // without the program's name
	Env   []string // all of it
	Dir   string
	User  User
	Stdin bool  // an open pipe; else nothing can be read
	PTY   *Size // a terminal in place of the three pipes
}

// Size is that of a terminal.
type Size struct{ Cols, Rows uint16 }

// Process is a process that was started.
type Process interface {
	// PID is the process's number as other processes of the machine see it.
	PID() int
	// Stdin is nil where Command.Stdin is false. A Write blocks while the
	// process does not read.
	Stdin() io.WriteCloser
	// Stdout ends when every process that holds its other end is gone. With a
	// terminal it has everything, and Stderr is nil.
	Stdout() io.ReadCloser
	Stderr() io.ReadCloser
	Resize(Size) error
	// Signal sends SIGKILL or SIGTERM, to this process alone.
	Signal(sig syscall.Signal) error
	// Wait returns when this process has ended; others may still hold its
	// pipes.
	Wait() Status
}

// Status is how a process ended.
type Status struct {
	Code   int            // exit code, -1 after a signal
	Signal syscall.Signal // that ended it, else zero
}

// Usage is what a machine has and uses, in bytes.
type Usage struct {
	Time                        time.Time
	CPUs                        int
	CPUPercent                  float64
	MemTotal, MemUsed, MemCache int64
	DiskTotal, DiskUsed         int64
}
