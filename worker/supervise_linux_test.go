package worker_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// program starts this test as a worker program.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(self, append([]string{worker.Arg}, args...)...)
}

// record reads a JSON file.
func record(t *testing.T, name string, v any) bool {
	t.Helper()
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func ask(t *testing.T, command, dir string) (s rpc.WorkerStatus) {
	t.Helper()
	b, err := program(t, command, "-dir", dir).Output()
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return s
}

// until waits for what another process does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func dead(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
	return rest[0] == 'Z' || rest[0] == 'X'
}

func TestSupervise(t *testing.T) {
	const killed = "signal: killed"
	for _, test := range []struct {
		name  string
		end   func(p rpc.Processes, stdin io.Closer) error
		exit  string // of the supervisor
		death *rpc.Death
	}{
		{"end of input", func(_ rpc.Processes, stdin io.Closer) error { return stdin.Close() },
			"exit status 1", &rpc.Death{ExitCode: 1}},
		{"told to terminate", func(p rpc.Processes, _ io.Closer) error { return syscall.Kill(p.Supervisor.PID, syscall.SIGTERM) },
			"exit status 1", &rpc.Death{ExitCode: 1}},
		{"told to terminate while it is stopped", func(p rpc.Processes, _ io.Closer) error {
			if err := syscall.Kill(p.Worker.PID, syscall.SIGSTOP); err != nil {
				return err
			}
			return syscall.Kill(p.Supervisor.PID, syscall.SIGTERM)
		}, "exit status 1", &rpc.Death{ExitCode: 1}},
		{"worker killed", func(p rpc.Processes, _ io.Closer) error { return syscall.Kill(p.Worker.PID, syscall.SIGKILL) },
			killed, &rpc.Death{ExitCode: -1, Signal: "SIGKILL"}},
		{"worker killed by another signal", func(p rpc.Processes, _ io.Closer) error { return syscall.Kill(p.Worker.PID, syscall.SIGHUP) },
			killed, &rpc.Death{ExitCode: -1, Signal: "SIGHUP"}},
		{"supervisor killed", func(p rpc.Processes, _ io.Closer) error { return syscall.Kill(p.Supervisor.PID, syscall.SIGKILL) },
			killed, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.death != nil && test.death.Signal == "SIGHUP" && signal.Ignored(syscall.SIGHUP) {
				t.Skip("this process ignores SIGHUP, as below nohup, and so do those it starts")
			}
			dir := t.TempDir()
			cmd := program(t, "supervise", "-dir", dir)
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var p rpc.Processes
			until(t, "worker.json", func() bool { return record(t, filepath.Join(dir, worker.ProcessesFile), &p) })
			until(t, "journal", func() bool { return ask(t, "status", dir).JournalEnd == 0 })
			s := ask(t, "status", dir)
			if s.Death != nil || !s.Worker.Alive || !s.Supervisor.Alive || s.Worker.PID != p.Worker.PID ||
				s.Worker.PeakRSSBytes < 1<<20 || s.BootID != p.BootID || s.UptimeSeconds <= 0 || s.Remains != nil {
				t.Errorf("status %+v", s)
			}
			if p.Supervisor.PID != cmd.Process.Pid || p.Worker.PID == p.Supervisor.PID || p.Worker.Start == 0 {
				t.Errorf("processes %+v", p)
			}
			if err := test.end(p, stdin); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if err == nil || err.Error() != test.exit {
				t.Errorf("the supervisor ended with %v, want %s", err, test.exit)
			}
			until(t, "the worker is dead", func() bool { return dead(p.Worker.PID) })
			s = ask(t, "reap", dir)
			if s.Worker.Alive || s.Supervisor.Alive || s.Remains == nil || !s.Remains.Observed || len(s.Remains.Left) > 0 {
				t.Errorf("after it: %+v", s)
			}
			var d rpc.Death
			if !record(t, filepath.Join(dir, worker.DeathFile), &d) {
				t.Fatal("there is no record")
			}
			if test.death == nil {
				if !d.Unknown || d.ExitCode != -1 {
					t.Errorf("record %+v", d)
				}
				return
			}
			if d.Time.IsZero() || d.PeakRSSBytes < 1<<20 || d.BootID == "" || !d.Observed {
				t.Errorf("record %+v", d)
			}
			got := rpc.Death{ExitCode: d.ExitCode, Signal: d.Signal, Prints: d.Prints}
			if diff := cmp.Diff(*test.death, got); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}
