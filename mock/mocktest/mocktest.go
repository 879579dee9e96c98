// Package mocktest holds the tests that every implementation of
// remote.Sandbox must pass: the one in memory of package mock, and those of
// real machines.
//
//	func TestSandbox(t *testing.T) {
//		mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
//			s := mock.NewSandbox(&mock.Options{Programs: mocktest.Programs()})
//			return mocktest.Env{Sandbox: s, Dir: "/tmp", Command: mocktest.Installed}
//		})
//	}
//
// For a machine with a shell, Command is [Shell].
package mocktest

import (
	"context"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote"
)

// patience is how long a single step of a test may take before it counts as
// hanging.
const patience = 30 * time.Second

// Env is a fresh sandbox with what the tests need to know about it.
type Env struct {
	Sandbox remote.Sandbox

	// Dir is an absolute path in the sandbox under which the tests may write.
	// It exists.
	Dir string

	// Command returns the command of a helper program: one of the constants
	// of this package.
	Command func(name string, args ...string) remote.Command

	// Running reports whether a process still runs on the machine, other than
	// by asking the sandbox. Nil means that it cannot be known.
	Running func(pid int) bool
}

// TestSandbox tests an implementation of remote.Sandbox. Each of its tests
// calls open for a sandbox of its own and kills it in the end. What open
// starts for itself should be ended by t.Cleanup: no goroutine may be left.
func TestSandbox(t *testing.T, open func(t *testing.T) Env) {
	for _, test := range []struct {
		name string
		run  func(h *harness)
	}{
		{"Info", testInfo},
		{"UploadDownload", testUploadDownload},
		{"UploadReplaces", testUploadReplaces},
		{"UploadFails", testUploadFails},
		{"UploadWhole", testUploadWhole},
		{"DownloadMissing", testDownloadMissing},
		{"Names", testNames},
		{"Echo", testEcho},
		{"StartContext", testStartContext},
		{"StdinWhole", testStdinWhole},
		{"StdinAfterExit", testStdinAfterExit},
		{"ExitCode", testExitCode},
		{"Signal", testSignal},
		{"Wait", testWait},
		{"StartMissing", testStartMissing},
		{"StartUploaded", testStartUploaded},
		{"Arguments", testArguments},
		{"Dir", testDir},
		{"Stderr", testStderr},
		{"BackPressure", testBackPressure},
		{"StdoutClosed", testStdoutClosed},
		{"Cancelled", testCancelled},
		{"Extend", testExtend},
		{"State", testState},
		{"Kill", testKill},
		{"KillWhileUsed", testKillWhileUsed},
		{"Concurrent", testConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			t.Cleanup(func() { // after all other clean-ups
				if !t.Failed() {
					goleak.VerifyNone(t, leaks)
				}
			})
			h := &harness{T: t, Env: open(t)}
			t.Cleanup(func() {
				if err := h.Sandbox.Kill(h.ctx()); err != nil {
					t.Errorf("Kill in the end: %v", err)
				}
			})
			test.run(h)
		})
	}
}

// harness is what the tests use a sandbox through.
type harness struct {
	*testing.T
	Env
}

// ctx returns a context for one step.
func (h *harness) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	h.T.Cleanup(cancel)
	return ctx
}

// path returns a name in the test's directory.
func (h *harness) path(name string) string { return path.Join(h.Dir, name) }

func (h *harness) upload(name, data string) {
	h.Helper()
	if err := h.Sandbox.Upload(h.ctx(), name, strings.NewReader(data), int64(len(data))); err != nil {
		h.Fatalf("Upload(%q): %v", name, err)
	}
}

func (h *harness) download(name string) string {
	h.Helper()
	data, err := h.tryDownload(h.ctx(), name)
	if err != nil {
		h.Fatalf("Download(%q): %v", name, err)
	}
	return data
}

func (h *harness) tryDownload(ctx context.Context, name string) (string, error) {
	r, err := h.Sandbox.Download(ctx, name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func (h *harness) start(cmd remote.Command) remote.Process {
	h.Helper()
	p, err := h.Sandbox.Start(h.ctx(), cmd)
	if err != nil {
		h.Fatalf("Start(%q): %v", cmd.Path, err)
	}
	return p
}

// wait returns how a process ended.
func (h *harness) wait(p remote.Process) remote.ExitStatus {
	h.Helper()
	status, err := p.Wait(h.ctx())
	if err != nil {
		h.Fatalf("Wait: %v", err)
	}
	return status
}

// read reads a process's output to its end. It may run in any goroutine.
func (h *harness) read(p remote.Process) string {
	out, err := io.ReadAll(p.Stdout())
	if err != nil {
		h.Errorf("read stdout: %v", err)
	}
	return string(out)
}

// output runs a helper that needs no input.
func (h *harness) output(cmd remote.Command) string {
	h.Helper()
	p := h.start(cmd)
	out := h.read(p)
	if status := h.wait(p); status != (remote.ExitStatus{}) {
		h.Errorf("%q ended with %v", cmd.Path, status)
	}
	return out
}

// sleeper starts a process that runs until it is signalled, and waits until
// it does.
func (h *harness) sleeper() remote.Process {
	h.Helper()
	p := h.start(h.Command(Sleep))
	ready := make([]byte, len("ready"))
	if _, err := io.ReadFull(p.Stdout(), ready); err != nil {
		h.Fatalf("read stdout: %v", err)
	}
	return p
}

// within fails the test when f takes too long.
func (h *harness) within(what string, f func()) {
	h.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		h.Fatalf("%s hangs", what)
	}
}

// eventually waits for a condition of a machine that cannot be waited for.
func (h *harness) eventually(what string, ok func() bool) {
	h.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.Errorf("in vain: %s", what)
			return
		}
	}
}
