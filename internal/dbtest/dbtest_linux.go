package dbtest

import (
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"syscall"
)

// serverUser returns the ids that servers run under where the tests run as
// root, which servers refuse to be.
func serverUser() (uid, gid int, other bool) {
	if os.Getuid() != 0 {
		return 0, 0, false
	}
	uid, gid = 65534, 65534
	if u, err := user.Lookup("nobody"); err == nil {
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
	}
	return uid, gid, true
}

// own makes a program that is not started yet run as the servers' user.
func own(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if uid, gid, other := serverUser(); other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
}

// give makes a file or directory the servers' user's.
func give(path string) error {
	uid, gid, other := serverUser()
	if !other {
		return nil
	}
	return os.Chown(path, uid, gid)
}

// dieWithTests has the kernel kill a server whose tests have died. It does so at
// the end of the thread that has started it, which must wait for it.
func dieWithTests(cmd *exec.Cmd) (unlock func()) {
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

func end(cmd *exec.Cmd) { cmd.Process.Kill() } //nolint:errcheck // it may have ended
