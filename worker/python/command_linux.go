package python

import "syscall"

// commandAttr lets a process end with this one, however that ends.
func commandAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
