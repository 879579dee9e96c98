package python

import "syscall"

// commandAttr gives a process a group of its own, so that those that it starts
// can be reached, and lets it end with this one, however that ends.
func commandAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
