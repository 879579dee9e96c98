package remote

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

func TestDiagnose(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	running := &SandboxState{Phase: SandboxRunning, EndAt: now.Add(time.Hour)}
	alive := func(state string) *rpc.WorkerStatus {
		return &rpc.WorkerStatus{
			Supervisor: &rpc.ProcessState{PID: 1, Alive: true, State: "S"},
			Worker:     &rpc.ProcessState{PID: 2, Alive: true, State: state}, JournalEnd: 100,
		}
	}
	lost := errors.New("connection refused")
	const goMemory = "noise\nruntime: out of memory: cannot allocate 4194304-byte block (3825106944 in use)\nfatal error: out of memory\n\ngoroutine 1 [running]:\n"
	for _, test := range []struct {
		name string
		o    observation
		want Verdict
	}{
		{"record of an exit", observation{death: &rpc.Death{ExitCode: 3}, sandbox: running}, VerdictExited},
		{"record of a signal", observation{death: &rpc.Death{ExitCode: -1, Signal: "SIGKILL"}}, VerdictKilled},
		{"record of a signal while the kernel killed for memory", observation{death: &rpc.Death{ExitCode: -1, Signal: "SIGKILL", OOMKills: 1}}, VerdictOutOfMemory},
		{"another signal meanwhile", observation{death: &rpc.Death{ExitCode: -1, Signal: "SIGSEGV", OOMKills: 1}}, VerdictKilled},
		{"an exit meanwhile", observation{death: &rpc.Death{ExitCode: 1, OOMKills: 1}}, VerdictExited},
		{"Go's own words", observation{death: &rpc.Death{ExitCode: 2, Stderr: goMemory}}, VerdictOutOfMemory},
		{"Go's own words, no record", observation{exited: true, exit: &ExitStatus{Code: 2}, stderr: goMemory}, VerdictOutOfMemory},
		{"a driver that speaks of memory", observation{death: &rpc.Death{ExitCode: 1, Stderr: "table is out of memory range"}}, VerdictExited},
		{"record seen from inside", observation{sandbox: running, status: &rpc.WorkerStatus{Death: &rpc.Death{ExitCode: 3}}}, VerdictExited},
		{"exit without a record", observation{exited: true, exit: &ExitStatus{Code: 3}, sandbox: running}, VerdictExited},
		{"signal without a record", observation{exited: true, exit: &ExitStatus{Code: -1, Signal: "SIGKILL"}}, VerdictKilled},
		{"end of unknown kind", observation{exited: true, sandbox: running}, VerdictKilled},
		{"reaped without a record", observation{sandbox: running, status: &rpc.WorkerStatus{Death: &rpc.Death{Unknown: true}}}, VerdictKilled},
		{"stopped", observation{sandbox: running, status: alive("T"), cursor: 100}, VerdictFrozen},
		{"in the kernel", observation{sandbox: running, status: alive("D"), cursor: 100}, VerdictFrozen},
		{"idle", observation{sandbox: running, status: alive("S"), cursor: 100}, VerdictFrozen},
		{"no process known", observation{sandbox: running, status: &rpc.WorkerStatus{JournalEnd: 100}, cursor: 100}, VerdictFrozen},
		{"written, not arrived", observation{sandbox: running, status: alive("S"), cursor: 99}, VerdictUnreachable},
		{"dead, record to come", observation{sandbox: running, status: &rpc.WorkerStatus{
			Supervisor: &rpc.ProcessState{Alive: true}, Worker: &rpc.ProcessState{}}}, VerdictUnknown},
		{"both dead", observation{sandbox: running, status: &rpc.WorkerStatus{
			Supervisor: &rpc.ProcessState{}, Worker: &rpc.ProcessState{}}}, VerdictKilled},
		{"sandbox cannot be reached", observation{sandbox: running, statusErr: lost}, VerdictUnreachable},
		{"nobody can be reached", observation{sandboxErr: lost, statusErr: lost}, VerdictUnreachable},
		{"paused", observation{sandbox: &SandboxState{Phase: SandboxPaused}}, VerdictSandboxPaused},
		{"killed sandbox", observation{sandbox: &SandboxState{Phase: SandboxGone, EndAt: now.Add(time.Minute)}}, VerdictSandboxGone},
		{"killed sandbox of unknown end", observation{sandbox: &SandboxState{Phase: SandboxGone}}, VerdictSandboxGone},
		{"killed sandbox, and its process with it", observation{exited: true, sandbox: &SandboxState{Phase: SandboxGone}}, VerdictSandboxGone},
		{"expired sandbox", observation{sandbox: &SandboxState{Phase: SandboxGone, EndAt: now.Add(-time.Second)}}, VerdictLeaseOver},
		{"host was suspended", observation{suspended: time.Minute}, VerdictHostSuspended},
		{"host was suspended, and the sandbox is gone", observation{suspended: time.Minute, sandbox: &SandboxState{Phase: SandboxGone, EndAt: now}}, VerdictLeaseOver},
		{"nothing", observation{}, VerdictUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.o.now = now
			d := test.o.diagnose()
			if d.verdict != test.want || d.detail == "" {
				t.Errorf("got %+v, want %s", d, test.want)
			}
			c := d.crash(test.o, nil)
			if gone := d.verdict.final(); errors.Is(c, ErrSandboxGone) != gone || !errors.Is(c, ErrWorkerCrash) {
				t.Errorf("%v: gone %t", c, gone)
			}
		})
	}
}

// What a crash says comes from the record where there is one.
func TestCrashFromRecord(t *testing.T) {
	o := observation{
		exited: true, exit: &ExitStatus{Code: -1, Signal: "SIGKILL"}, // the supervisor's, which repeats it so
		death: &rpc.Death{ExitCode: -1, Signal: "SIGSEGV", PeakRSSBytes: 7 << 20, Stderr: "one\ntwo\n"},
	}
	c := o.diagnose().crash(o, nil)
	want := &WorkerCrashError{
		Verdict: VerdictKilled, Detail: "a signal ended it: SIGSEGV",
		Status: &ExitStatus{Code: -1, Signal: "SIGSEGV"}, PeakMemoryBytes: 7 << 20, Stderr: "one\ntwo",
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	const text = "remote: worker crashed (killed by SIGSEGV); its last words: one\n\ttwo"
	if c.Error() != text {
		t.Errorf("got %q", c.Error())
	}
}

func TestHostClock(t *testing.T) {
	// A time with its monotonic reading, as the clocks of a machine have them.
	start := time.Now()
	tick := 250 * time.Millisecond
	for _, test := range []struct {
		name string
		next time.Time
		want time.Duration
	}{
		{"on time", start.Add(tick), 0},
		{"a little late", start.Add(time.Second), 0},
		{"stopped", start.Add(10*time.Second + tick), 10 * time.Second},
		// Without a monotonic reading the difference is that of the wall clocks.
		{"clock set back", start.Round(0).Add(-time.Hour), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := hostClock{tick: tick}
			if got := c.stood(start); got != 0 {
				t.Errorf("at first it stood still for %s", got)
			}
			if got := c.stood(test.next); got != test.want {
				t.Errorf("it stood still for %s, want %s", got, test.want)
			}
		})
	}
	if got := gap(tick, tick, tick+time.Minute); got != time.Minute {
		t.Errorf("a suspended machine stood still for %s", got)
	}
	if got := gap(tick, tick, tick-time.Minute); got != 0 {
		t.Errorf("with its clock set back it stood still for %s", got)
	}
}
