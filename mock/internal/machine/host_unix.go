//go:build darwin || freebsd || linux

package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// host is the tree and the processes of this computer.
type host struct {
	dir   string // private
	limit int64  // of what Create writes, in bytes; zero is none

	mu      sync.Mutex
	used    int64
	created []string     // what to remove, without what is below another
	groups  map[int]bool // of processes that may be alive
}

func newHost(opts Options, dir string) (*host, []envd.User, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, nil, err
	}
	var users []envd.User
	for _, name := range []string{"user", "root"} {
		u := envd.User{Name: name, UID: os.Getuid(), GID: os.Getgid(), Home: filepath.Join(dir, name)}
		if err := os.Mkdir(u.Home, 0o755); err != nil {
			return nil, nil, err
		}
		users = append(users, u)
	}
	return &host{dir: dir, limit: opts.DiskBytes, groups: make(map[int]bool)}, users, nil
}

func (h *host) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }
func (h *host) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(name) }
func (h *host) Readlink(name string) (string, error)       { return os.Readlink(name) }
func (h *host) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

func (h *host) ids(info fs.FileInfo) (uid, gid int) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(st.Uid), int(st.Gid)
}

// Open opens a file that is neither a directory nor something that would block.
func (h *host) Open(name string) (envd.File, error) {
	f, err := openFile(name, os.O_RDONLY, isNull)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func openRegular(name string, flags int) (*os.File, error) {
	return openFile(name, flags, func(fs.FileInfo) bool { return false })
}

// isNull tells /dev/null by its number, for it may have other names.
func isNull(info fs.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	if err != nil {
		return false
	}
	a, ok := info.Sys().(*syscall.Stat_t)
	b, isStat := null.Sys().(*syscall.Stat_t)
	return ok && isStat && info.Mode()&fs.ModeCharDevice != 0 && a.Rdev == b.Rdev
}

// openFile is openRegular that also opens what is accepted.
func openFile(name string, flags int, accept func(fs.FileInfo) bool) (*os.File, error) {
	f, err := os.OpenFile(name, flags|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = pathError("open", name, syscall.EISDIR)
	case !info.Mode().IsRegular() && !accept(info):
		err = pathError("open", name, syscall.EINVAL)
	default:
		return f, nil
	}
	return nil, errors.Join(err, f.Close())
}

func (h *host) Create(name string, _ envd.User) (io.WriteCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var freed int64
	_, err := os.Lstat(name)
	found := err == nil
	if found {
		freed = diskBytes(name)
	}
	f, err := openRegular(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	h.used -= min(freed, h.used)
	if !found {
		h.track(name)
	}
	return &limitedFile{f, h}, nil
}

// limitedFile counts what is written.
type limitedFile struct {
	file *os.File
	host *host
}

func (f *limitedFile) Close() error { return f.file.Close() }

func (f *limitedFile) Write(b []byte) (int, error) {
	if err := f.host.take(int64(len(b))); err != nil {
		return 0, pathError("write", f.file.Name(), err)
	}
	return f.file.Write(b)
}

func (h *host) take(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit > 0 && h.used+n > h.limit {
		return syscall.ENOSPC
	}
	h.used += n
	return nil
}

// diskBytes returns the size of all files below a name, or of one.
func diskBytes(name string) (total int64) {
	_ = filepath.WalkDir(name, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				total += info.Size()
			}
		}
		return nil
	})
	return total
}

// track remembers to remove what is new.
func (h *host) track(name string) {
	below := func(dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	if !below(h.dir) && !slices.ContainsFunc(h.created, below) {
		h.created = append(h.created, name)
	}
}

func (h *host) Mkdir(name string, _ envd.User) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	h.track(name)
	return nil
}

// Rename lets a thing that is ours be ours under its new name.
func (h *host) Rename(from, to string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := os.Lstat(to)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) && h.owns(from) {
		h.track(to)
	}
	return nil
}

func (h *host) owns(name string) bool {
	return slices.ContainsFunc(append(h.created, h.dir), func(dir string) bool {
		return name == dir || strings.HasPrefix(name, dir+"/")
	})
}

func (h *host) RemoveAll(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit > 0 {
		h.used -= min(diskBytes(name), h.used)
	}
	return os.RemoveAll(name)
}

func (h *host) SetMetadata(name string, metadata map[string]string) error {
	return pathError("setxattr", name, setAttributes(name, metadata))
}

func (h *host) Metadata(name string) (map[string]string, error) {
	metadata, err := attributes(name)
	return metadata, pathError("getxattr", name, err)
}

func (h *host) watchPath(name string, _ bool) (string, io.Closer, error) { return name, nil, nil }

func (h *host) openTerminal(envd.User) (ours, theirs *os.File, err error) { return pty.Open() }

func (h *host) Usage() envd.Usage {
	u := usageOf()
	u.DiskTotal, u.DiskUsed = diskUsage(h.dir)
	if h.limit > 0 {
		h.mu.Lock()
		defer h.mu.Unlock()
		u.DiskTotal, u.DiskUsed = h.limit, h.used
	}
	return u
}

// start starts a process as the leader of a group.
func (h *host) start(s spec) (child, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, err := os.StartProcess(s.path, s.argv, &os.ProcAttr{
		Dir:   s.dir,
		Env:   append([]string{}, s.env...),
		Files: s.files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: s.terminal},
	})
	if err != nil {
		return nil, err
	}
	h.groups[p.Pid] = true
	return &hostChild{newOSChild(p, p.Pid), h}, nil
}

// hostChild is the leader of a group.
type hostChild struct {
	*osChild
	host *host
}

// wait forgets the group if the leader was the last of it.
func (c *hostChild) wait() envd.Status {
	status := c.osChild.wait()
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if gone(c.process.Pid) {
		delete(c.host.groups, c.process.Pid)
	}
	return status
}

func gone(group int) bool { return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) }

func (h *host) signalAll(sig syscall.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for group := range h.groups {
		if err := syscall.Kill(-group, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (h *host) freeze(_ *Machine, frozen bool) error {
	if frozen {
		return h.signalAll(syscall.SIGSTOP)
	}
	return h.signalAll(syscall.SIGCONT)
}

func (h *host) copyTo(*Machine) error { return errors.ErrUnsupported }

// killTime bounds the wait for processes that were killed: those that are not
// our children are reaped by somebody else.
const killTime = 5 * time.Second

func (h *host) kill() error {
	if err := h.signalAll(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill processes: %w", err)
	}
	for deadline := time.Now().Add(killTime); !h.allGone(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("processes that were killed have not ended")
		}
	}
	return nil
}

func (h *host) allGone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for group := range h.groups {
		if !gone(group) {
			return false
		}
	}
	return true
}

func (h *host) remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, name := range append(h.created, h.dir) {
		errs = append(errs, os.RemoveAll(name))
	}
	return errors.Join(errs...)
}

// osChild is a child of this process.
type osChild struct {
	process *os.Process
	number  int
}

func newOSChild(p *os.Process, number int) *osChild { return &osChild{p, number} }

func (c *osChild) pid() int                        { return c.number }
func (c *osChild) signal(sig syscall.Signal) error { return c.process.Signal(sig) }

func (c *osChild) wait() envd.Status {
	state, err := c.process.Wait()
	if err != nil {
		return envd.Status{Code: -1}
	}
	status := envd.Status{Code: state.ExitCode()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status.Signal = ws.Signal()
	}
	return status
}

// diskUsage describes the file system that a file is on, in bytes.
func diskUsage(name string) (total, used int64) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, 0
	}
	size := int64(st.Bsize)
	return int64(st.Blocks) * size, (int64(st.Blocks) - int64(st.Bfree)) * size
}

// attribute begins the names of the attributes that metadata is kept in.
const attribute = "user.e2b."

func attributes(name string) (map[string]string, error) {
	list := make([]byte, 64<<10) // Linux's limit
	n, err := unix.Listxattr(name, list)
	if err != nil {
		return nil, err
	}
	metadata := make(map[string]string)
	for attr := range strings.SplitSeq(string(list[:n]), "\x00") {
		key, ok := strings.CutPrefix(attr, attribute)
		if !ok {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(name, attr, value)
		if err != nil {
			return nil, err
		}
		metadata[key] = string(value[:n])
	}
	return metadata, nil
}

func setAttributes(name string, metadata map[string]string) error {
	old, err := attributes(name)
	if err != nil {
		return err
	}
	for key := range old {
		if _, ok := metadata[key]; !ok {
			err = cmp.Or(err, unix.Removexattr(name, attribute+key))
		}
	}
	for key, value := range metadata {
		err = cmp.Or(err, unix.Setxattr(name, attribute+key, []byte(value), 0))
	}
	return err
}

func newShared(opts Options, dir, why string) (*Machine, error) {
	h, users, err := newHost(opts, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(filepath.Join(dir, "user")))
	}
	return &Machine{
		box:       h,
		opts:      opts,
		users:     users,
		isolation: "not isolated (" + why + "): processes see the host's files and run as whoever runs this program",
	}, nil
}
