//go:build unix && !linux

package python

import "syscall"

// processAttr puts a child into a process group of its own. A child sees by the
// end of its requests that this process is no more.
func processAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
