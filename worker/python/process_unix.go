//go:build unix

package python

import "golang.org/x/sys/unix"

const supported = true

// signalGroup sends a signal to a child and to what it has started.
func signalGroup(pid int, sig stopSignal) {
	_ = unix.Kill(-pid, map[stopSignal]unix.Signal{interrupt: unix.SIGINT, terminate: unix.SIGTERM, kill: unix.SIGKILL}[sig])
}
