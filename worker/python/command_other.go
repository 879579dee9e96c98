//go:build !unix

package python

import (
	"context"
	"os"
	"os/exec"
)

func prepareCommand(*exec.Cmd, *os.File) {}

func endCommand(cmd *exec.Cmd)  { _ = cmd.Process.Kill() }
func killCommand(cmd *exec.Cmd) { _ = cmd.Process.Kill() }

// lockFile cannot lock here: workers run on Unix.
func lockFile(_ context.Context, path string) (f *os.File, unlock func(), err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}
