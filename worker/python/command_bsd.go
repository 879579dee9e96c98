//go:build unix && !linux

package python

import "syscall"

// commandAttr gives a process a group of its own, so that those that it starts
// can be reached.
func commandAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
