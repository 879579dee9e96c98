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

// prepareCommand gives a process a group of its own, so that those that it
// starts can be reached, and the file that it holds.
func prepareCommand(cmd *exec.Cmd, held *os.File) {
	cmd.SysProcAttr = commandAttr()
	if held != nil {
		cmd.ExtraFiles = []*os.File{held}
	}
}

func endCommand(cmd *exec.Cmd)  { _ = unix.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
func killCommand(cmd *exec.Cmd) { _ = unix.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// lockFile takes a file for this process, and those that inherit it, once
// nobody else has it.
func lockFile(ctx context.Context, path string) (f *os.File, unlock func(), err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
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
			return nil, nil, context.Cause(ctx)
		}
	}
	return f, func() {
		// Closing it would not, while a process has it, too.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close() //nolint:errcheck // nothing was written
	}, nil
}
