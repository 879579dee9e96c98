package remote_test

import (
	"context"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote"
)

// busySandbox is a sandbox on this machine whose worker program is open for
// writing when it is started for the first time, as where the daemon forked
// while it received it.
type busySandbox struct {
	remote.Sandbox
	holding *os.File
	starts  int
}

// Upload holds the program from when it is there: once it runs, as the tail's,
// it could not be opened for writing.
func (b *busySandbox) Upload(ctx context.Context, name string, r io.Reader, size int64) error {
	err := b.Sandbox.Upload(ctx, name, r, size)
	if err == nil && strings.HasPrefix(path.Base(name), "osiris-worker-") {
		b.holding, err = os.OpenFile(name, os.O_WRONLY, 0)
	}
	return err
}

func (b *busySandbox) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	program := cmd.Path
	if slices.Contains(cmd.Args, "supervise") {
		if b.starts++; b.starts == 2 {
			if err := b.holding.Close(); err != nil {
				return nil, err
			}
		}
	}
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"-c", `exec "$0" "$@"`, program}, cmd.Args...)
	return b.Sandbox.Start(ctx, cmd)
}

func TestBusyProgramIsStartedAgain(t *testing.T) {
	dir := t.TempDir()
	busy := &busySandbox{Sandbox: remote.NewLocalSandbox(dir)}
	drivers := testDrivers()
	a, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers, Root: dir,
		OpenSandbox: func(context.Context, remote.SandboxConfig) (remote.Sandbox, error) { return busy, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	ec := newContext(t, "s")
	result, _, err := remote.Run(t.Context(), a, join(), ec)
	if err != nil || busy.starts < 2 { // a process that is just being started may hold it, too
		t.Fatalf("after %d starts: %v", busy.starts, err)
	}
	agree(t, ec, result, err)
	contains(t, sessionLog(t, ec), "still busy")
}
