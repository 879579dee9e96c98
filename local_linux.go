package remote

import (
	"os/exec"

	"golang.org/x/sys/unix"
)

// reap waits for a process and kills what it left behind in its group: before
// the process is waited for, since then its pid, and with it the group's, may
// be another's.
func reap(cmd *exec.Cmd) error {
	for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	killGroup(cmd)
	return cmd.Wait()
}
