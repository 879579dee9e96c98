package remote_test

import (
	"context"
	"os"
	"slices"
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

func (b *busySandbox) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	program := cmd.Path
	if slices.Contains(cmd.Args, "supervise") {
		if b.starts++; b.starts == 1 {
			f, err := os.OpenFile(program, os.O_WRONLY, 0)
			if err != nil {
				return nil, err
			}
			b.holding = f
		} else if err := b.holding.Close(); err != nil {
			return nil, err
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
	if err != nil || busy.starts != 2 {
		t.Fatalf("after %d starts: %v", busy.starts, err)
	}
	agree(t, ec, result, err)
	contains(t, sessionLog(t, ec), "still busy")
}
