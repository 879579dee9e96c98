//go:build unix

package remote_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock/mocktest"
)

// TestLocalSandbox runs the suite that every sandbox must pass on this
// machine as LocalAdapter uses it.
func TestLocalSandbox(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("the helper programs of the suite are shell scripts, and there is no /bin/sh")
	}
	mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
		dir := filepath.Join(t.TempDir(), "run")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return mocktest.Env{
			Sandbox: remote.NewLocalSandbox(dir),
			Dir:     dir,
			Command: mocktest.Shell,
			Running: func(pid int) bool { return syscall.Kill(pid, 0) == nil },
		}
	})
}
