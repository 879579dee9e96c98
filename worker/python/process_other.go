//go:build !unix

package python

import "syscall"

const supported = false // children get their pipes as descriptors 3 and 4

func processAttr() *syscall.SysProcAttr { return nil }

func signalGroup(int, stopSignal) {}
