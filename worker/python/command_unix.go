//go:build unix

package python

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endCommand asks a process, and those that it has started, to end.
func endCommand(cmd *exec.Cmd)  { _ = unix.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
func killCommand(cmd *exec.Cmd) { _ = unix.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// lockFile takes a file for this process, once nobody else has it. No process
// inherits it: what a build has left running would keep it.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break // also where a file system has no locks
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close() //nolint:errcheck // nothing was written
			return nil, context.Cause(ctx)
		}
	}
	return func() {
		// Closing it would not, while a process that is being started has it, too.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close() //nolint:errcheck // nothing was written
	}, nil
}
