//go:build !linux

package remote

import "os/exec"

// reap waits for a process and kills what it left behind in its group.
func reap(cmd *exec.Cmd) error {
	err := cmd.Wait()
	killGroup(cmd)
	return err
}
