//go:build !unix

package remote

import (
	"os"
	"os/exec"
)

func ownGroup(*exec.Cmd) {}

// killGroup kills a process. What it started lives on: this platform has no
// process groups that could be killed.
func killGroup(cmd *exec.Cmd) { _ = cmd.Process.Kill() }

func terminate(cmd *exec.Cmd) error { return cmd.Process.Kill() }

func exitStatus(state *os.ProcessState) ExitStatus { return ExitStatus{Code: state.ExitCode()} }
