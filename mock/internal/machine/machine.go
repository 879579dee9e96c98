// Package machine provides machines for the stand-in of E2B's sandbox daemon:
// real files and real processes on this computer, set apart from its own as
// far as the platform permits.
package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// Options are the settings of a [Machine]. The zero value is good.
type Options struct {
	// Dir is where the machine's private directory is made; empty means
	// os.TempDir().
	Dir string

	// DiskBytes limits the machine's files; zero means no limit of its own.
	// The files of an isolated machine live in memory, half of which they may
	// take unless a limit is set.
	DiskBytes int64

	// ReadOnly names files and directories of the host, such as a tool chain
	// in a home directory, that an isolated machine has too, at the same
	// absolute paths, to be read only. The system's own directories (/usr,
	// /etc and so on) need not be named. Without isolation all is there anyway.
	ReadOnly []string

	// Hosts gives the machine a network of its own, which has loopback and the
	// addresses of these, for [Machine.Listen]. It takes root on Linux;
	// elsewhere the error is [ErrNotPermitted].
	Hosts []Host

	// Shared asks for no isolation, even where it is possible.
	Shared bool
}

// Host is a host that a machine with a network of its own can reach.
type Host struct {
	Name string     // in the machine's /etc/hosts; may be empty
	Addr netip.Addr // of IPv4
}

// Machine is an [envd.Machine] of real files and processes. There are two
// kinds, which [Machine.Isolated] tells apart.
//
// An isolated machine (Linux, where namespaces are permitted) has a file tree,
// process numbers and System V IPC of its own, and the network of the host.
// Nothing of the host's files is there but the system's directories, to be
// read only, and no symbolic link changes that. Its end is that of all its
// processes and files; the end of the process that made it has the same effect.
// It is proof against mistakes, and has no known way out, but it shares the
// kernel and the network: it is no place for hostile programs.
//
// Any other machine shows the tree of the host. Processes run as whoever runs
// this program. Close kills their process groups, and removes what the methods
// of the machine created; what processes created elsewhere than in the private
// directory stays, and so does a process that left its group.
//
// There are two users: "root", and "user", who is the default. They differ in
// user ID (0 and 1000) where root made an isolated machine, else only in their
// home directory.
type Machine struct {
	box
	opts      Options
	users     []envd.User // the default one first
	isolated  bool
	isolation string

	mu        sync.RWMutex // held for reading by what must not race with Close
	closed    bool
	waits     sync.WaitGroup // one for each process
	closeOnce sync.Once
	closeErr  error
}

var (
	_ envd.Machine       = (*Machine)(nil)
	_ envd.Labeler       = (*Machine)(nil)
	_ envd.Administrator = (*Machine)(nil)
)

// box is the kind of a machine: where its files are, and how its processes are
// started.
type box interface {
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Readlink(name string) (string, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Open(name string) (envd.File, error)
	Create(name string, owner envd.User) (io.WriteCloser, error)
	Mkdir(name string, owner envd.User) error
	Rename(from, to string) error
	RemoveAll(name string) error
	SetMetadata(name string, metadata map[string]string) error
	Metadata(name string) (map[string]string, error)
	Usage() envd.Usage

	// ids returns the owner of a file in numbers.
	ids(info fs.FileInfo) (uid, gid int)
	// watchPath returns a name by which the operating system can watch a
	// directory, unique until pin, if any, is closed. That for the top of a
	// watch is unlike those for other directories even after that.
	watchPath(name string, top bool) (watch string, pin io.Closer, err error)
	openTerminal(owner envd.User) (ours, theirs *os.File, err error)
	start(spec) (child, error)
	freeze(m *Machine, frozen bool) error
	copyTo(*Machine) error
	// kill kills all processes and waits until they are gone, given that
	// somebody waits for those that start returned. remove comes after it.
	kill() error
	remove() error
}

// New makes a machine, isolated if that is possible. It must be closed.
func New(opts Options) (*Machine, error) {
	for _, name := range opts.ReadOnly {
		if err := checkReadOnly(name); err != nil {
			return nil, err
		}
	}
	dir, err := makeDir(opts.Dir, "osiris-sandbox-")
	if err != nil {
		return nil, err
	}
	m, err := newMachine(opts, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a machine: %w", err), os.Remove(dir))
	}
	return m, nil
}

// makeDir makes a private directory and returns its absolute path.
func makeDir(parent, prefix string) (string, error) {
	parent, err := filepath.Abs(cmp.Or(parent, os.TempDir()))
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", fmt.Errorf("make the directory of a machine: %w", err)
	}
	return dir, nil
}

func checkReadOnly(name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("read-only %q: not an absolute path", name)
	}
	if _, err := os.Stat(name); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	return nil
}

// Isolated reports whether the machine has files and process numbers of its
// own.
func (m *Machine) Isolated() bool { return m.isolated }

// Isolation describes for a user, in a sentence or two, how far the machine is
// set apart from the host, and where it is not, why.
func (m *Machine) Isolation() string { return m.isolation }

// User looks up "root" or "user"; an empty name is "user".
func (m *Machine) User(name string) (envd.User, error) {
	for _, u := range m.users {
		if name == "" || u.Name == name {
			return u, nil
		}
	}
	return envd.User{}, fmt.Errorf("user %q: unknown", name)
}

// Owner names the owner of a file. Where both users have one ID it is "user".
// "nobody" is any other where that cannot be told; else a number is the name.
func (m *Machine) Owner(info fs.FileInfo) (user, group string) {
	uid, gid := m.ids(info)
	user, group = fmt.Sprint(uid), fmt.Sprint(gid)
	switch uid {
	case 0:
		user = "root"
	case nobody:
		user = "nobody"
	}
	switch gid {
	case 0:
		group = "root"
	case nobody:
		group = "nogroup"
	}
	for i := len(m.users) - 1; i >= 0; i-- {
		if u := m.users[i]; u.UID == uid {
			user = u.Name
		}
		if u := m.users[i]; u.GID == gid {
			group = u.Name
		}
	}
	return user, group
}

// nobody is the user and group whose numbers mean nothing in a machine.
const nobody = 65534

// Freeze stops all processes, or lets all go on, even those that somebody else
// has stopped. One that is started meanwhile runs.
func (m *Machine) Freeze(frozen bool) error {
	m.mu.Lock() // none is stopped half started
	defer m.mu.Unlock()
	if err := m.freeze(m, frozen); err != nil {
		return fmt.Errorf("freeze a machine: %w", err)
	}
	return nil
}

// Clone returns a machine with the same settings and a copy of the files with
// their modes, owners and times; sockets, pipes and devices are left out, and
// so is what lies in memory, in /run and /dev/shm. A file that changes
// meanwhile may be caught half changed: freeze the machine first. Machines
// that are not isolated cannot be cloned, for two of them show one tree.
func (m *Machine) Clone() (envd.Machine, error) {
	if !m.isolated {
		return nil, fmt.Errorf("clone a machine that is not isolated: %w", errors.ErrUnsupported)
	}
	c, err := New(m.opts)
	if err != nil {
		return nil, err
	}
	if err := m.copyTo(c); err != nil {
		return nil, errors.Join(fmt.Errorf("clone a machine: %w", err), c.Close())
	}
	return c, nil
}

// Symlink is that of [envd.Administrator], for machines that are isolated.
func (m *Machine) Symlink(target, name string, owner envd.User) error {
	return m.administer("symlink", name, func(a envd.Administrator) error { return a.Symlink(target, name, owner) })
}

// Chmod is that of [envd.Administrator], for machines that are isolated.
func (m *Machine) Chmod(name string, mode fs.FileMode) error {
	return m.administer("chmod", name, func(a envd.Administrator) error { return a.Chmod(name, mode) })
}

// Chown is that of [envd.Administrator], for machines that are isolated.
func (m *Machine) Chown(name string, owner envd.User) error {
	return m.administer("chown", name, func(a envd.Administrator) error { return a.Chown(name, owner) })
}

func (m *Machine) administer(op, name string, f func(envd.Administrator) error) error {
	a, ok := m.box.(envd.Administrator)
	if !ok {
		return pathError(op, name, errors.ErrUnsupported)
	}
	return f(a)
}

// Listen listens within the network of a machine that has one of its own, on an
// address of its Hosts or of loopback. The listener must be closed.
func (m *Machine) Listen(addr netip.AddrPort) (net.Listener, error) {
	b, ok := m.box.(interface {
		listen(netip.AddrPort) (net.Listener, error)
	})
	if !ok {
		return nil, ErrNotPermitted
	}
	return b.listen(addr)
}

// Close kills all processes, waits for their end, and removes the files. Calls
// that come after it fail.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		m.mu.Unlock()
		m.closeErr = m.kill()
		m.waits.Wait()
		m.closeErr = errors.Join(m.closeErr, m.remove())
	})
	return m.closeErr
}

// usageOf describes this computer, without a disk.
func usageOf() envd.Usage {
	u := hostUsage()
	u.Time = time.Now()
	return u
}

// pathError is what package os returns for a failed call.
func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// split returns the parent of a file and its name there.
func split(op, name string) (dir, base string, err error) {
	dir, base = path.Split(path.Clean(name))
	if base == "" {
		return "", "", pathError(op, name, syscall.EBUSY) // the root
	}
	return dir, base, nil
}
