//go:build !unix

package python

import (
	"context"
	"os"
	"os/exec"
	"syscall"
)

func commandAttr() *syscall.SysProcAttr { return nil }

func endCommand(cmd *exec.Cmd)  { _ = cmd.Process.Kill() }
func killCommand(cmd *exec.Cmd) { _ = cmd.Process.Kill() }

// lockFile cannot lock here: workers run on Unix.
func lockFile(_ context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}
