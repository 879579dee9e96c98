//go:build unix && !linux

package python

import "syscall"

func commandAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
