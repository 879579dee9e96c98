package machine

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

//go:embed holder.sh
var holderScript string

// searchPath is where the system's programs are.
const searchPath = systemPath

// userID is that of "user", where there are several.
const userID = 1000

// setupTime bounds how long a tree may take to be made: some mounts, which
// take milliseconds.
const setupTime = 20 * time.Second

// layout is what a namespace is to have.
type layout struct {
	dir       string
	diskBytes int64
	binds     []string // pairs of paths: of the host, in the tree
	user      bool     // a user namespace, for those who are not root
	network   bool     // a network of its own
	hosts     []Host   // that it has, with the network
}

// namespace is a tree and a set of processes of its own. It lives as long as
// the holder, its first process, and the holder lives until life is closed, at
// the latest by the end of this process.
type namespace struct {
	tree
	layout
	starter   starter
	inherited int // the highest descriptor to be closed in processes
	holder    *os.Process
	life      *os.File
	pidfd     *os.File // the holder
	outer     *os.File // the user namespace that the holder's is in, if it has one
}

// starter starts a process in a namespace.
type starter func(*namespace, spec) (child, error)

func newNamespace(l layout) (_ *namespace, err error) {
	n := &namespace{layout: l, starter: (*namespace).startDirectly, inherited: inherited()}
	if l.user {
		n.starter = (*namespace).startByTools
	}
	if len(l.hosts) > 0 {
		file := l.dir + ".hosts" // it stays mounted when it is removed
		if err := writeHosts(file, l.hosts); err != nil {
			return nil, err
		}
		defer func() { _ = os.Remove(file) }()
		n.binds = append(slices.Clip(n.binds), file, "/etc/hosts")
	}
	if err := n.hold(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = n.kill()
			n.release()
		}
	}()
	n.tree.chown = !l.user
	n.tree.root, err = os.OpenFile(fmt.Sprintf("/proc/%d/root", n.holder.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(n.holder.Pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open a process: %w", err)
	}
	n.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if n.user {
		if n.outer, err = outerNamespace(n.holder.Pid); err != nil {
			return nil, fmt.Errorf("open a user namespace: %w", err)
		}
	}
	if err := errors.Join(n.furnish(), n.try()); err != nil || !n.network {
		return n, err
	}
	return n, n.raiseNetwork()
}

// outerNamespace opens the user namespace that a process's own is in.
func outerNamespace(pid int) (*os.File, error) {
	inner, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil, err
	}
	defer closeAll(inner)
	var outer int
	err = control(inner, func(fd int) (err error) {
		outer, err = unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(outer), "user"), nil
}

// furnish completes the tree: what takes no mount is done from here, for the
// holder would need a program for each step.
func (n *namespace) furnish() error {
	home := os.FileMode(0o700)
	for _, name := range n.binds {
		if strings.HasPrefix(name, "/root/") {
			home = 0o711 // not only root has to get there
		}
	}
	links := map[string]string{
		"/dev/ptmx": "pts/ptmx", "/dev/fd": "/proc/self/fd",
		"/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	}
	var errs []error
	for name, target := range links {
		errs = append(errs, n.symlink(target, name))
	}
	for _, name := range []string{"/.old", "/.fstab", "/.passwd", "/.group"} {
		errs = append(errs, n.unlink(name))
	}
	return errors.Join(append(errs,
		n.chmod("/root", home),
		n.chmod("/tmp", 0o777|os.ModeSticky),
		n.chmod("/var/tmp", 0o777|os.ModeSticky),
		n.give("/home/user"),
		n.copyResolver(),
	)...)
}

func (n *namespace) chmod(name string, mode os.FileMode) error {
	f, err := n.openat("chmod", name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer closeAll(f)
	return f.Chmod(mode)
}

func (n *namespace) give(name string) error {
	if !n.chown {
		return nil
	}
	f, err := n.openat("chown", name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer closeAll(f)
	return f.Chown(userID, userID)
}

// copyResolver copies the settings for the look-up of hosts, where the file in
// /etc is a link to one elsewhere.
func (n *namespace) copyResolver() error {
	name, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil || strings.HasPrefix(name, "/etc/") {
		return nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	if _, err := n.Lstat(name); err == nil {
		return nil
	}
	if err := n.mkdirAll(filepath.Dir(name)); err != nil {
		return err
	}
	f, err := n.create(name, envd.User{})
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

func (n *namespace) mkdirAll(dir string) error {
	err := n.Mkdir(dir, envd.User{})
	if errors.Is(err, os.ErrNotExist) {
		if err := n.mkdirAll(filepath.Dir(dir)); err != nil {
			return err
		}
		err = n.Mkdir(dir, envd.User{})
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// try starts a process, to see whether that works.
func (n *namespace) try() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	c, err := n.start(spec{path: "/bin/sh", argv: []string{"sh", "-c", "exit 0"}, dir: "/", files: []*os.File{null, null, null}})
	if err != nil {
		return fmt.Errorf("start a process in a namespace: %w", err)
	}
	if s := c.wait(); s.Code != 0 {
		return fmt.Errorf("run a process in a namespace: exit code %d, signal %d", s.Code, s.Signal)
	}
	return nil
}

// hold starts the holder.
func (n *namespace) hold() error {
	bash, err := exec.LookPath("bash")
	if err != nil {
		return err
	}
	in, life, err := os.Pipe()
	if err != nil {
		return err
	}
	out, w, err := os.Pipe()
	if err != nil {
		closeAll(in, life)
		return err
	}
	n.life = life
	n.holder, err = os.StartProcess(bash, n.holderArgs(), &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + searchPath}, // nothing of ours
		Files: n.files(in, w, w),
		Sys:   n.holderAttr(),
	})
	closeAll(in, w)
	defer closeAll(out)
	if err != nil {
		n.release()
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := awaitReady(out); err != nil {
		err = errors.Join(err, n.kill())
		n.release()
		return err
	}
	return nil
}

func (n *namespace) holderArgs() []string {
	size, uid := "", strconv.Itoa(userID)
	if n.diskBytes > 0 {
		size = strconv.FormatInt(n.diskBytes, 10)
	}
	if n.user {
		uid = "0"
	}
	return append([]string{"bash", "-c", holderScript, "holder", n.dir, size, uid}, n.binds...)
}

func (n *namespace) holderAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Setsid:       true,
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Unshareflags: unix.CLONE_NEWNS, // that way its mounts are private
	}
	if n.network {
		attr.Cloneflags |= unix.CLONE_NEWNET
	}
	if n.user {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// awaitReady reads what the holder has to say until it is ready. Anything else
// is why it failed.
func awaitReady(out *os.File) error {
	if err := out.SetReadDeadline(time.Now().Add(setupTime)); err != nil {
		return err
	}
	var said bytes.Buffer
	buf := make([]byte, 4<<10)
	for said.Len() < 64<<10 {
		k, err := out.Read(buf)
		said.Write(buf[:k])
		if bytes.HasSuffix(said.Bytes(), []byte("ready\n")) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("make a file tree: %w", err)
		}
	}
	return fmt.Errorf("make a file tree: %s", strings.TrimSpace(said.String()))
}

// kill ends the holder. The kernel then kills all other processes, and the
// holder is not gone before they are.
func (n *namespace) kill() error {
	if err := n.holder.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_, err := n.holder.Wait()
	return err
}

func (n *namespace) release() { closeAll(n.life, n.pidfd, n.outer, n.tree.root) }

// remove removes the directory that the tree was mounted on. It is empty, for
// the mounts were never visible here; so nothing else than it is removed.
func (n *namespace) remove() error {
	n.release()
	return os.Remove(n.dir)
}

// freeze signals all processes but the first and the one that does it.
func (n *namespace) freeze(m *Machine, frozen bool) error {
	name := "CONT"
	if frozen {
		name = "STOP"
	}
	p, err := m.startLocked(envd.Command{
		Path: "/bin/sh",
		Args: []string{"-c", "kill -s " + name + " -- -1 2>/dev/null || :"}, // there may be none
		Dir:  "/",
		User: envd.User{Name: "root"},
	})
	if err != nil {
		return err
	}
	defer func() { _, _ = p.Stdout().Close(), p.Stderr().Close() }()
	if s := p.Wait(); s.Code != 0 {
		return fmt.Errorf("signal all processes: exit code %d, signal %d", s.Code, s.Signal)
	}
	return nil
}
