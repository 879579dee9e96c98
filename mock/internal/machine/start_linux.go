package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

func (n *namespace) start(s spec) (child, error) { return n.starter(n, s) }

// startDirectly starts a process from a thread that has entered the
// namespaces. It takes root.
func (n *namespace) startDirectly(s spec) (child, error) {
	var p *os.Process
	err := onThread(func() (err error) {
		if err := n.enter(); err != nil {
			return err
		}
		p, err = os.StartProcess(s.path, s.argv, &os.ProcAttr{
			Dir:   s.dir,
			Env:   environ(s),
			Files: n.files(s.files...),
			Sys: &syscall.SysProcAttr{
				Setsid: true, Setctty: s.terminal,
				Credential: &syscall.Credential{Uid: uint32(s.user.UID), Gid: uint32(s.user.GID)},
			},
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return newOSChild(p, innerPID(p.Pid)), nil
}

// inherited returns the highest descriptor that this process has got from its
// parent and its children would get too: a directory among them would be a way
// out of the tree.
func inherited() int {
	entries, _ := os.ReadDir("/proc/self/fd") // without it there is no /proc to mount either
	highest := 0
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			highest = max(highest, fd)
		}
	}
	return highest
}

// files returns the open files of a new process. A nil one is closed.
func (n *namespace) files(open ...*os.File) []*os.File {
	return append(open, make([]*os.File, max(0, n.inherited+1-len(open)))...)
}

// environ returns the variables of a process: none, rather than ours.
func environ(s spec) []string {
	if s.env == nil {
		return []string{}
	}
	return s.env
}

// onThread runs f on a thread of its own, which then ends, so that nothing
// that f did to the thread outlives it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end. Occupied by this, it is not taken
			// again.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// enter takes this thread into the namespaces, where its children will live,
// and takes from these the capabilities that reach beyond.
func (n *namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter namespaces: %w", err)
	}
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	if n.network {
		flags |= unix.CLONE_NEWNET
	}
	if err := n.setns(flags); err != nil {
		return fmt.Errorf("enter namespaces: %w", err)
	}
	return dropCapabilities()
}

func (n *namespace) setns(flags int) error {
	return control(n.pidfd, func(fd int) error { return unix.Setns(fd, flags) })
}

// kept are the capabilities of root in a machine: those that containers have
// by custom, without that of making devices.
const kept uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SETFCAP

func dropCapabilities() error {
	for c := range 64 {
		if kept>>c&1 == 1 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err == unix.EINVAL {
			return nil // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// innerPID returns the number of a process in the innermost namespace.
func innerPID(pid int) int {
	inner := fields(statusOf(strconv.Itoa(pid)), "NSpid")
	if len(inner) == 0 {
		return pid
	}
	n, err := strconv.Atoi(inner[len(inner)-1])
	if err != nil {
		return pid
	}
	return n
}

func statusOf(pid string) string {
	status, _ := os.ReadFile(filepath.Join("/proc", pid, "status")) // it may be gone
	return string(status)
}

// fields returns what a line of /proc/PID/status has after its name.
func fields(status, name string) []string {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

// startByTools starts a process by nsenter and unshare of util-linux, for only
// a program with a single thread can enter a user namespace. The latter stays
// outside, waits for the process and ends as it did; when it is killed, so is
// the process. The tools have a pipe to us as their error output, and the
// process gets its own from number 3.
func (n *namespace) startByTools(s spec) (child, error) {
	args, err := n.toolArgs(s)
	if err != nil {
		return nil, err
	}
	report, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + searchPath}, // nothing that could change what the tools do
		Files: n.files(s.files[0], s.files[1], w, s.files[2]),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	closeAll(w)
	if err != nil {
		closeAll(report)
		return nil, err
	}
	c := &toolChild{newOSChild(p, 0), report}
	if c.number, err = readNumber(report); err != nil {
		_ = p.Kill()
		closeAll(report) // a process that writes to it must not block
		c.osChild.wait()
		return nil, fmt.Errorf("enter namespaces: %w", err)
	}
	return c, nil
}

// readNumber reads the number of a process, which is the first line. Anything
// else is why it did not get that far. What comes behind is left: a process that
// ends at once may have made the tools complain, see [toolChild.wait].
func readNumber(report *os.File) (int, error) {
	if err := report.SetReadDeadline(time.Now().Add(setupTime)); err != nil {
		return 0, err
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 512; line = append(line, b[0]) {
		if _, err := report.Read(b); err != nil && len(line) == 0 {
			return 0, err
		} else if err != nil || b[0] == '\n' {
			break
		}
	}
	text := strings.TrimSpace(string(line))
	number, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New(text)
	}
	return number, nil
}

// innermost is what runs first inside: $1 is the directory, then comes env.
const innermost = `cd "$1" || exit; shift; echo $$ >&2; exec 2>&3 3>&-; exec "$@"`

// toolArgs returns the command line that starts a process. No program of the
// tree, where processes may have replaced it, runs before all namespaces are
// entered: nsenter and unshare are the host's until then. The outer user
// namespace comes first, for a process of the inner one could otherwise reach
// the host's files by way of the tools.
func (n *namespace) toolArgs(s spec) ([]string, error) {
	nsenter, err := systemTool("nsenter")
	if err != nil {
		return nil, err
	}
	unshare, err := systemTool("unshare")
	if err != nil {
		return nil, err
	}
	holder := strconv.Itoa(n.holder.Pid)
	args := []string{
		nsenter, "--target", holder, "--preserve-credentials", "--no-fork",
		fmt.Sprintf("--user=/proc/%d/fd/%d", os.Getpid(), n.outer.Fd()), "--ipc", "--pid", "--",
		unshare, "--fork", "--kill-child", "--",
		nsenter, "--target", holder, "--preserve-credentials", "--mount", "--user", "--",
		"setsid",
	}
	if s.terminal {
		args = append(args, "--ctty")
	}
	args = append(args, "--", "/bin/sh", "-c", innermost, "sh", s.dir, "/usr/bin/env", "-i", "--")
	return append(args, envOperands(s)...), nil
}

// envOperands returns the operands of env(1): variables, then the program. One
// whose name looks like a variable is left to a shell.
func envOperands(s spec) []string {
	var args []string
	for _, v := range s.env {
		if strings.Index(v, "=") > 0 { // others are none
			args = append(args, v)
		}
	}
	if strings.Contains(s.path, "=") {
		args = append(args, "/bin/sh", "-c", `exec "$0" "$@"`)
	}
	return append(append(args, s.path), s.argv[1:]...)
}

// systemTool finds a program of the system, whatever our own PATH is.
func systemTool(name string) (string, error) {
	for dir := range strings.SplitSeq(searchPath, ":") {
		if file, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: %w", name, searchPath, exec.ErrNotFound)
}

// toolChild is the tool that waits for a process.
type toolChild struct {
	*osChild
	report *os.File
}

// wait makes good for what util-linux before 2.39 cannot do: to end as one that
// was killed. It complains, which it does for no other reason once the process
// has started.
func (c *toolChild) wait() envd.Status {
	status := c.osChild.wait()
	_ = c.report.SetReadDeadline(time.Now().Add(time.Second)) // all is written
	if k, _ := c.report.Read(make([]byte, 1)); k > 0 && status.Code == 1 {
		status = envd.Status{Code: -1, Signal: syscall.SIGKILL}
	}
	closeAll(c.report)
	return status
}

func (c *toolChild) signal(sig syscall.Signal) error {
	pid, err := childOf(c.process.Pid)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// childOf returns the one child of a process. Not every kernel lists them.
func childOf(parent int) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ppid := fields(statusOf(e.Name()), "PPid"); len(ppid) == 1 && ppid[0] == strconv.Itoa(parent) {
			return pid, nil
		}
	}
	return 0, os.ErrProcessDone
}
