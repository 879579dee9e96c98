package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// floodNumbers checks that a session has the events of a flood up to n, once
// and in order.
func floodNumbers(t *testing.T, ec *remote.ExecutionContext, n int) {
	t.Helper()
	o := &inOrder{t: t, of: "events.jsonl"}
	for _, e := range events(t, ec, "flood") {
		o.next(int(e["n"].(float64)))
	}
	if o.n != n {
		t.Errorf("%d events came, want %d", o.n, n)
	}
}

// Where no process can be started any more, the run goes on: its journal is
// read by file.
func TestJournalByFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		drivers := testDrivers()
		provider := mock.NewProvider(&mock.Options{Drivers: drivers, Fault: func(_ context.Context, call mock.Call) error {
			if call.Op == mock.OpStart && full.Load() {
				return syscall.EAGAIN
			}
			return nil
		}})
		a, err := remote.NewE2BTransparentProxy(remote.Config{Drivers: drivers, OpenSandbox: provider.OpenSandbox, MaxJournal: 1 << 20, Timeout: 20 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			if e.Name == "flood" && full.CompareAndSwap(false, true) {
				s := provider.Sandboxes()[0]
				for _, p := range s.Processes() {
					if slices.Contains(p.Command.Args, "tail") {
						s.KillProcess(p.PID)
					}
				}
			}
			return nil
		}
		m := flood(5000)
		m.Steps[0].Config["bytes"] = 1700 // two segments, the second of which is small: it is read from its begin again and again
		m.Steps = append(m.Steps, remote.Step{ID: "more", Driver: "test.pause", Config: map[string]any{"ms": 330_000}, Needs: []string{"flood"}})
		result, _, err := remote.Run(t.Context(), a, m, ec)
		if err != nil {
			t.Errorf("%v\n%s", err, sessionLog(t, ec))
		}
		agree(t, ec, result, err)
		floodNumbers(t, ec, 5000)
		contains(t, sessionLog(t, ec), "reading the journal by file")
		if silent := events(t, ec, "worker_silent"); len(silent) > 0 {
			t.Errorf("a worker that is heard by file is said to be silent: %v", silent)
		}
	})
}

// The same over E2B's protocol, by ranges.
func TestJournalByRange(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, kind string) {
		var full atomic.Bool
		drivers := testDrivers()
		server := newServer(t, kind, drivers, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
			if r.Procedure == "process.Process/Start" && full.Load() {
				return &mock.HTTPFault{Status: http.StatusInternalServerError, Header: http.Header{"Content-Type": {"application/json"}},
					Body: `{"code":"internal","message":"fork/exec: resource temporarily unavailable"}`}
			}
			return nil
		}))
		a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: drivers, Heartbeat: 100 * time.Millisecond}, server))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			if e.Name == "flood" && full.CompareAndSwap(false, true) {
				server.CutConnections()
			}
			return nil
		}
		m := flood(2000)
		m.Steps[0].Config["bytes"] = 1500
		m.Steps = append(m.Steps, remote.Step{ID: "more", Driver: "test.pause", Config: map[string]any{"ms": 1000}, Needs: []string{"flood"}})
		result, _, err := remote.Run(t.Context(), a, m, ec)
		if err != nil {
			t.Errorf("%v\n%s", err, sessionLog(t, ec))
		}
		agree(t, ec, result, err)
		floodNumbers(t, ec, 2000)
		contains(t, sessionLog(t, ec), "reading the journal by file")
	})
}

// A worker that dies where no tail can be started leaves all that it wrote.
func TestDeadWorkersJournalByFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		drivers := testDrivers()
		provider := mock.NewProvider(&mock.Options{Drivers: drivers, Fault: func(_ context.Context, call mock.Call) error {
			if call.Op == mock.OpStart && full.Load() {
				return syscall.ENOMEM
			}
			return nil
		}})
		a, err := remote.NewE2BTransparentProxy(remote.Config{Drivers: drivers, OpenSandbox: provider.OpenSandbox})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			if e.Name == "waiting" {
				full.Store(true)
				s := provider.Sandboxes()[0]
				for _, p := range s.Processes() {
					s.KillProcess(p.PID)
				}
			}
			return nil
		}
		m := flood(5000)
		m.Steps = append(m.Steps, remote.Step{ID: "wait", Driver: "test.wait", Needs: []string{"flood"}})
		_, _, err = remote.Run(t.Context(), a, m, ec)
		if !errors.Is(err, remote.ErrWorkerCrash) {
			t.Errorf("got %v, want ErrWorkerCrash", err)
		}
		floodNumbers(t, ec, 5000)
	})
}

// A journal that cannot be read on ends the run with an error of its own, and
// never by leaving something out.
func TestJournalLost(t *testing.T) {
	for _, test := range []struct {
		name   string
		byTail bool // else by file
		spoil  func(b []byte)
		is     error
	}{
		{"header, tail", true, func(b []byte) { copy(b, "XXXX") }, rpc.ErrFrameCorrupt},
		{"header, file", false, func(b []byte) { copy(b, "XXXX") }, rpc.ErrFrameCorrupt},
		{"payload", true, func(b []byte) { b[40] ^= 1 }, rpc.ErrFrameCorrupt},
		{"trimmed, tail", true, nil, rpc.ErrJournalTrimmed},
		{"trimmed, file", false, nil, rpc.ErrJournalTrimmed},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var full atomic.Bool
				drivers := testDrivers()
				provider := mock.NewProvider(&mock.Options{Drivers: drivers, Fault: func(_ context.Context, call mock.Call) error {
					if call.Op == mock.OpStart && full.Load() && !test.byTail {
						return syscall.EAGAIN
					}
					return nil
				}})
				a, err := remote.NewE2BTransparentProxy(remote.Config{Drivers: drivers, OpenSandbox: provider.OpenSandbox})
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				ec := newContext(t, "s")
				n := 0
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if e.Name != "waiting" {
						return nil
					}
					full.Store(true)
					s := provider.Sandboxes()[0]
					for _, name := range s.Files() {
						if !strings.HasSuffix(name, ".journal") {
							continue
						}
						n++
						if test.spoil == nil {
							if err := s.FS().Rename(name, path.Join(path.Dir(name), fmt.Sprintf("%020d.journal", 1<<40))); err != nil {
								t.Error(err)
							}
							continue
						}
						if err := spoilFrames(s, name, test.spoil); err != nil {
							t.Error(err)
						}
					}
					for _, p := range s.Processes() { // only now: the next tail must open what is there then
						if slices.Contains(p.Command.Args, "tail") {
							s.KillProcess(p.PID)
						}
					}
					return nil
				}
				_, _, err = remote.Run(t.Context(), a, &remote.Manifest{Steps: []remote.Step{{ID: "wait", Driver: "test.wait"}}}, ec)
				if n == 0 {
					t.Fatal("there is no journal")
				}
				if !errors.Is(err, remote.ErrJournalLost) || !errors.Is(err, test.is) {
					t.Errorf("got %v, want ErrJournalLost and %v", err, test.is)
				}
			})
		})
	}
}

// A tail whose host is gone ends, though its input stays open: when another one
// is started, or when the journal has not grown for long because the worker is
// dead.
func TestOrphanedTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mock.NewSandbox(&mock.Options{Drivers: testDrivers()})
		defer s.Kill(context.Background())
		start := func(args ...string) (remote.Process, *bytes.Buffer) {
			said := &bytes.Buffer{}
			args = append([]string{worker.Arg, args[0], "-dir", "/run/s"}, args[1:]...)
			p, err := s.Start(t.Context(), remote.Command{Path: s.Info().WorkerPath, Args: args, Stderr: said})
			if err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, p.Stdout())
			return p, said
		}
		serve, _ := start("serve")
		first, why := start("tail")
		time.Sleep(4 * time.Minute)
		if s.Processes()[1].Exited {
			t.Fatal("a tail has ended that was alone")
		}
		second, whySecond := start("tail")
		if status, err := first.Wait(t.Context()); err != nil || status.Code != 0 {
			t.Errorf("the first tail: %v, %v", status, err)
		}
		contains(t, why.String(), "another one was started")
		s.KillProcess(serve.PID())
		if status, err := second.Wait(t.Context()); err != nil || status.Code != 0 {
			t.Errorf("the second tail: %v, %v", status, err)
		}
		contains(t, whySecond.String(), "nothing was copied")
	})
}

// A tail that writes to somebody who does not read any more ends, too.
func TestOrphanedTailThatIsBlocked(t *testing.T) {
	dir := t.TempDir()
	start := func(args ...string) (*exec.Cmd, io.WriteCloser) {
		cmd := exec.Command(os.Args[0], append([]string{worker.Arg, args[0], "-dir", dir}, args[1:]...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		return cmd, in
	}
	journal := filepath.Join(dir, "journal")
	if err := os.MkdirAll(journal, 0o750); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for range 10 { // more than a pipe takes
		b = rpc.AppendFrame(b, rpc.FrameEvent, int64(len(b)), make([]byte, 64<<10))
	}
	if err := os.WriteFile(filepath.Join(journal, "00000000000000000000.journal"), b, 0o640); err != nil {
		t.Fatal(err)
	}
	first, _ := start("tail")
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	second, end := start("tail")
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	if err := waitProcess(first); err != nil {
		t.Errorf("the first tail: %v", err)
	}
	end.Close()
	if err := second.Wait(); err != nil {
		t.Errorf("the second tail: %v", err)
	}
}

// waitProcess waits for a process without reading what it has written.
func waitProcess(cmd *exec.Cmd) error {
	state, err := cmd.Process.Wait()
	if err == nil && !state.Success() {
		err = errors.New(state.String())
	}
	return err
}

// spoilFrames appends frames to a segment that are none, so that the next tail
// meets them at its cursor or behind it.
func spoilFrames(s *mock.Sandbox, name string, spoil func([]byte)) error {
	b, err := s.ReadFile(name)
	if err != nil {
		return err
	}
	frame := rpc.AppendFrame(nil, rpc.FrameEvent, int64(len(b)), []byte(`{"type":"event","data":{"event":"never"}}`))
	spoil(frame)
	return s.WriteFile(name, append(b, frame...))
}
