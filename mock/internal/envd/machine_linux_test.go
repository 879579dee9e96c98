package envd_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// host is this computer as a machine, so that a daemon on it can be held
// against a real one beside it.
type host struct{}

var _ envd.Labeler = host{}

func (host) User(name string) (envd.User, error) {
	u, err := user.Current()
	if name != "" {
		u, err = user.Lookup(name)
	}
	if err != nil {
		return envd.User{}, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return envd.User{Name: u.Username, UID: uid, GID: gid, Home: u.HomeDir}, nil
}

func (host) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }
func (host) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(name) }
func (host) Readlink(name string) (string, error)       { return os.Readlink(name) }
func (host) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (host) Open(name string) (envd.File, error)        { return os.Open(name) }
func (host) Rename(from, to string) error               { return os.Rename(from, to) }
func (host) RemoveAll(name string) error                { return os.RemoveAll(name) }

func (host) Owner(info fs.FileInfo) (string, string) {
	st := info.Sys().(*syscall.Stat_t)
	owner, group := strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return owner, group
}

func (host) Create(name string, owner envd.User) (io.WriteCloser, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, err
	}
	return f, f.Chown(owner.UID, owner.GID)
}

func (host) Mkdir(name string, owner envd.User) error {
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	return os.Chown(name, owner.UID, owner.GID)
}

func (host) Watch(dir string, recursive bool, report func(envd.Event)) (func(), error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(dir); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range w.Events {
			name, _ := filepath.Rel(dir, e.Name)
			for bit, op := range map[fsnotify.Op]envd.Op{
				fsnotify.Create: envd.OpCreate, fsnotify.Write: envd.OpWrite, fsnotify.Remove: envd.OpRemove,
				fsnotify.Rename: envd.OpRename, fsnotify.Chmod: envd.OpChmod,
			} {
				if e.Has(bit) {
					report(envd.Event{Name: name, Op: op})
				}
			}
		}
	}()
	return func() { _ = w.Close(); <-done }, nil
}

func (host) Freeze(bool) error            { return nil }
func (host) Clone() (envd.Machine, error) { return nil, errors.ErrUnsupported }
func (host) Close() error                 { return nil }
func (host) Usage() envd.Usage {
	return envd.Usage{Time: time.Unix(1e9, 0), CPUs: 2, CPUPercent: 1.234, MemTotal: 3 << 20, MemUsed: 2 << 20, DiskTotal: 10, DiskUsed: 5}
}

const attribute = "user.e2b."

func (host) SetMetadata(name string, metadata map[string]string) error {
	old, err := host{}.Metadata(name)
	if err != nil {
		return err
	}
	for key := range old {
		if err := unix.Removexattr(name, attribute+key); err != nil {
			return err
		}
	}
	for key, value := range metadata {
		if err := unix.Setxattr(name, attribute+key, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func (host) Metadata(name string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(name, buf)
	if err != nil {
		return nil, err
	}
	metadata := make(map[string]string)
	for attr := range strings.SplitSeq(string(buf[:n]), "\x00") {
		key, ok := strings.CutPrefix(attr, attribute)
		if !ok {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Getxattr(name, attr, value)
		if err != nil {
			return nil, err
		}
		metadata[key] = string(value[:n])
	}
	return metadata, nil
}

// running is a process of the host. The shell in front of it makes a program
// that does not exist a process that says so.
type running struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr io.ReadCloser
	terminal       *os.File
}

func (host) Start(c envd.Command) (envd.Process, error) {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$@"`, "--", c.Path}, c.Args...)...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	if c.User.UID != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.User.UID), Gid: uint32(c.User.GID)}}
	}
	if c.PTY != nil {
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: c.PTY.Cols, Rows: c.PTY.Rows})
		if err != nil {
			return nil, err
		}
		return &running{cmd: cmd, stdin: tty, stdout: tty, terminal: tty}, nil
	}
	return startPipes(cmd, c.Stdin)
}

func startPipes(cmd *exec.Cmd, stdin bool) (envd.Process, error) {
	r := &running{cmd: cmd}
	var ours, theirs []io.Closer
	open := func() (read, write *os.File) {
		read, write, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		return read, write
	}
	if stdin {
		in, w := open()
		cmd.Stdin, r.stdin = in, w
		ours, theirs = append(ours, w), append(theirs, in)
	}
	out, w := open()
	errs, ew := open()
	cmd.Stdout, cmd.Stderr, r.stdout, r.stderr = w, ew, out, errs
	ours, theirs = append(ours, out, errs), append(theirs, w, ew)
	err := cmd.Start()
	for _, c := range theirs {
		_ = c.Close()
	}
	if err != nil {
		for _, c := range ours {
			_ = c.Close()
		}
		return nil, err
	}
	return r, nil
}

func (r *running) PID() int                        { return r.cmd.Process.Pid }
func (r *running) Stdin() io.WriteCloser           { return r.stdin }
func (r *running) Stdout() io.ReadCloser           { return r.stdout }
func (r *running) Stderr() io.ReadCloser           { return r.stderr }
func (r *running) Signal(sig syscall.Signal) error { return r.cmd.Process.Signal(sig) }
func (r *running) Resize(s envd.Size) error {
	return pty.Setsize(r.terminal, &pty.Winsize{Cols: s.Cols, Rows: s.Rows})
}

func (r *running) Wait() envd.Status {
	state, err := r.cmd.Process.Wait()
	if err != nil {
		return envd.Status{Code: -1}
	}
	status := envd.Status{Code: state.ExitCode()}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		status.Signal = ws.Signal()
	}
	return status
}
