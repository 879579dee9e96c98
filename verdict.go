package remote

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// Verdict is why a worker is not heard any more.
type Verdict string

// The verdicts. After the first three the worker is dead, after SandboxGone and
// LeaseOver its sandbox is; else the run goes on for as long as patience lasts.
const (
	VerdictExited        Verdict = "exited"         // its process ended by itself, with an exit code
	VerdictKilled        Verdict = "killed"         // a signal ended it
	VerdictOutOfMemory   Verdict = "out_of_memory"  // it was refused memory, or killed for having too much
	VerdictFrozen        Verdict = "frozen"         // it is there, and does nothing, for a minute
	VerdictUnreachable   Verdict = "unreachable"    // only the network is at fault, for five minutes
	VerdictSandboxPaused Verdict = "sandbox_paused" // the sandbox stands still until it is resumed
	VerdictSandboxGone   Verdict = "sandbox_gone"   // somebody killed the sandbox
	VerdictLeaseOver     Verdict = "lease_over"     // the sandbox reached its end
	VerdictHostSuspended Verdict = "host_suspended" // this machine or process stood still itself
	VerdictUnknown       Verdict = "unknown"        // nothing speaks for any of them
)

// observation is all that can be known about a silent worker.
type observation struct {
	now       time.Time
	suspended time.Duration // how long this host stood still

	sandbox    *SandboxState // by those who run it; nil when they did not answer
	sandboxErr error

	exited bool        // the worker's process, by the sandbox's daemon
	exit   *ExitStatus // how; nil when not known
	death  *rpc.Death  // the record of it; nil when there is none
	stderr string      // what is known of its last words

	status    *rpc.WorkerStatus // from inside; nil when there was no answer
	statusErr error
	cursor    int64 // what has been read of its journal
}

// diagnosis is what an observation means.
type diagnosis struct {
	verdict Verdict
	detail  string
}

// dead: the worker's process is over. Its journal may have more to say.
func (v Verdict) dead() bool {
	return v == VerdictExited || v == VerdictKilled || v == VerdictOutOfMemory
}

// final: nothing will come any more.
func (v Verdict) final() bool { return v == VerdictSandboxGone || v == VerdictLeaseOver }

// How long a run goes on without its worker. What is not here has no limit but
// the run's.
const (
	frozenPatience  = time.Minute
	networkPatience = 5 * time.Minute
)

// patience returns how long a verdict may stand before the worker counts as
// lost; negative means for ever.
func (v Verdict) patience() time.Duration {
	switch v {
	case VerdictSandboxGone, VerdictLeaseOver:
		return 0
	case VerdictUnreachable:
		return networkPatience
	case VerdictSandboxPaused, VerdictHostSuspended:
		return -1
	}
	return frozenPatience
}

// diagnose judges. What is known for sure comes first: how the worker died,
// what became of its sandbox; then what may only explain the silence.
func (o observation) diagnose() diagnosis {
	death := o.death
	if death == nil && o.status != nil {
		death = o.status.Death
	}
	switch {
	case death != nil && !death.Unknown:
		return o.ofDeath(death)
	case o.sandbox != nil && o.sandbox.Phase == SandboxGone:
		return o.ofSandbox()
	case o.exited || death != nil:
		return o.ofExit()
	case o.sandbox != nil && o.sandbox.Phase == SandboxPaused:
		return diagnosis{VerdictSandboxPaused, "somebody paused the sandbox; the run goes on when it is resumed"}
	case o.suspended > 0:
		return diagnosis{VerdictHostSuspended, fmt.Sprintf("this host stood still for %s", o.suspended.Round(time.Millisecond))}
	case o.status != nil:
		return o.ofStatus()
	case o.statusErr != nil && o.sandbox != nil:
		return diagnosis{VerdictUnreachable, fmt.Sprintf("the sandbox runs, but cannot be reached: %v", o.statusErr)}
	case o.statusErr != nil && o.sandboxErr != nil:
		return diagnosis{VerdictUnreachable, fmt.Sprintf("neither the sandbox nor those who run it can be reached: %v", o.sandboxErr)}
	}
	return diagnosis{VerdictUnknown, "nothing is known"}
}

func (o observation) ofDeath(d *rpc.Death) diagnosis {
	if words := memoryWords(d.Stderr); words != "" {
		return diagnosis{VerdictOutOfMemory, words}
	}
	switch {
	case d.Signal == "SIGKILL" && d.OOMKills > 0:
		return diagnosis{VerdictOutOfMemory, "the kernel killed it for want of memory"}
	case d.Signal != "":
		return diagnosis{VerdictKilled, "a signal ended it: " + d.Signal}
	}
	return diagnosis{VerdictExited, fmt.Sprintf("its process ended with exit code %d", d.ExitCode)}
}

// ofExit is for a death that left no record.
func (o observation) ofExit() diagnosis {
	if words := memoryWords(o.stderr); words != "" {
		return diagnosis{VerdictOutOfMemory, words}
	}
	switch {
	case o.exit == nil:
		return diagnosis{VerdictKilled, "it is dead, and nothing has recorded how it died"}
	case o.exit.Signal != "":
		return diagnosis{VerdictKilled, "a signal ended it: " + o.exit.Signal}
	}
	return diagnosis{VerdictExited, fmt.Sprintf("its process ended with exit code %d", o.exit.Code)}
}

func (o observation) ofSandbox() diagnosis {
	// The ends of sandboxes are counted in seconds.
	if end := o.sandbox.EndAt; !end.IsZero() && o.now.After(end.Add(-2*time.Second)) {
		return diagnosis{VerdictLeaseOver, fmt.Sprintf("the sandbox was to end at %s", end.UTC().Format(time.RFC3339))}
	}
	return diagnosis{VerdictSandboxGone, "the sandbox was removed before its end"}
}

// ofStatus is for a sandbox that answers.
func (o observation) ofStatus() diagnosis {
	s := o.status
	w, sup := s.Worker, s.Supervisor
	switch {
	case s.JournalEnd > o.cursor:
		return diagnosis{VerdictUnreachable, fmt.Sprintf("the worker has written %d bytes that did not arrive", s.JournalEnd-o.cursor)}
	case w == nil:
		return diagnosis{VerdictFrozen, "the worker writes nothing; whether its process lives is not known"}
	case !w.Alive && sup != nil && sup.Alive:
		return diagnosis{VerdictUnknown, "the worker is dead, and its supervisor is about to record how it died"}
	case !w.Alive:
		return diagnosis{VerdictKilled, "neither the worker nor its supervisor is there any more, and nothing has recorded their end; they were killed, or the sandbox was started anew"}
	case w.State == "T" || w.State == "t":
		return diagnosis{VerdictFrozen, "the worker's process is stopped (SIGSTOP, or a debugger)"}
	case w.State == "D":
		return diagnosis{VerdictFrozen, "the worker's process waits for a disk or device, or is frozen"}
	}
	return diagnosis{VerdictFrozen, fmt.Sprintf("the worker's process is there (%s), and writes nothing", w.State)}
}

// memoryWords finds in a process's last words that it had too little memory,
// as Go's runtime and others say it.
func memoryWords(stderr string) string {
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		lower := strings.ToLower(line)
		fatal := strings.HasPrefix(lower, "fatal error:") || strings.HasPrefix(lower, "runtime:") ||
			strings.HasPrefix(lower, "fatal:") || strings.HasPrefix(lower, "terminate called") || strings.HasPrefix(lower, "memoryerror")
		if fatal && (strings.Contains(lower, "out of memory") || strings.Contains(lower, "cannot allocate") ||
			strings.Contains(lower, "bad_alloc") || strings.HasPrefix(lower, "memoryerror")) {
			return clip(line, 200)
		}
	}
	return ""
}

// crash makes the error of a worker that is lost.
func (d diagnosis) crash(o observation, err error) *WorkerCrashError {
	c := &WorkerCrashError{Verdict: d.verdict, Detail: d.detail, Err: err, Stderr: o.stderr}
	if o.exited && o.exit != nil {
		c.Status = o.exit
	}
	death := o.death
	if death == nil && o.status != nil {
		death = o.status.Death
		if w := o.status.Worker; w != nil {
			c.PeakMemoryBytes = w.PeakRSSBytes
		}
	}
	if death != nil {
		if !death.Unknown {
			c.Status = &ExitStatus{Code: death.ExitCode, Signal: death.Signal}
		}
		c.PeakMemoryBytes = death.PeakRSSBytes
		if words := lastWords(death.Stderr); words != "" {
			c.Stderr = words
		}
	}
	if d.verdict.final() && !errors.Is(err, ErrSandboxGone) {
		c.Err = errors.Join(err, ErrSandboxGone)
	}
	return c
}

// lastWords returns the last lines of a process's standard error, or, where
// Go's runtime has crashed, those from where it says why: after them come the
// stacks of all goroutines.
func lastWords(stderr string) string {
	var l lastLines
	_, _ = l.Write([]byte(stderr))
	all := strings.Split(stderr, "\n")
	for i, line := range all {
		for _, prefix := range []string{"panic: ", "fatal error: ", "runtime: ", "SIG"} {
			if strings.HasPrefix(line, prefix) && len(all)-i > keepLines {
				return clip(strings.Join(all[i:i+keepLines], "\n"), keepLineLen)
			}
		}
	}
	return l.String()
}

// hostClock notices that this host stood still: that the machine was
// suspended, by a wall clock that ran on while the other did not, or that the
// process was stopped, by a tick that came late.
type hostClock struct {
	last time.Time     // with its monotonic reading
	tick time.Duration // how often it is asked
}

// hostGap is how long a host may stand still before it is worth a word. A
// smaller step of the wall clock is that of a clock being set.
const hostGap = 2 * time.Second

// stood returns for how long the host stood still since it was last asked;
// zero when it did not.
func (c *hostClock) stood(now time.Time) time.Duration {
	last := c.last
	c.last = now
	if last.IsZero() {
		return 0
	}
	return gap(c.tick, now.Sub(last), now.Round(0).Sub(last.Round(0)))
}

// gap returns for how long a host stood still that was to look after a tick,
// and did when so much had passed by the monotonic clock and the wall's.
func gap(tick, monotonic, wall time.Duration) time.Duration {
	stood := max(monotonic-tick, wall-monotonic)
	if stood < hostGap {
		return 0
	}
	return stood
}
