package python

import "syscall"

// processAttr puts a child into a process group of its own, and has it killed
// when the thread that has started it ends: see [pool.spawn].
func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
