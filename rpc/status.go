package rpc

import "time"

// What the supervisor leaves in a run's folder, and what the commands that
// look at it print. See section 10 of docs/protocol.md.

// Processes names the processes that run the steps. The supervisor writes it
// once it has started the worker.
type Processes struct {
	Supervisor ProcessID `json:"supervisor"`
	Worker     ProcessID `json:"worker"`
	BootID     string    `json:"boot_id,omitempty"` // of the kernel; empty where the platform has none
	Time       time.Time `json:"ts"`
}

// ProcessID names a process for good: numbers are used again.
type ProcessID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start,omitempty"` // clock ticks since the boot; zero where the platform does not tell
	Name  string `json:"name,omitempty"`
}

// Death says how a worker ended, and what became of what it had started.
type Death struct {
	Time     time.Time `json:"ts"`
	ExitCode int       `json:"exit_code"`        // -1 when a signal ended it, or when it is not known
	Signal   string    `json:"signal,omitempty"` // name of that signal, as "SIGKILL"

	// Unknown: there was no supervisor left to see how the worker ended.
	Unknown bool `json:"unknown,omitempty"`

	PeakRSSBytes int64  `json:"peak_rss_bytes"` // the most resident memory it had; zero where the platform does not tell
	OOMKills     int64  `json:"oom_kills"`      // processes that the kernel killed meanwhile for want of memory
	Stderr       string `json:"stderr"`         // what its process wrote to standard error: all, or the first and the last of it
	BootID       string `json:"boot_id,omitempty"`

	// Prints were made before the end and are in no log of the journal.
	Prints []Print `json:"prints,omitempty"`

	Remains
}

// Remains is what was left of a run's processes once its worker was dead.
type Remains struct {
	// Observed: all processes that the run had started were looked for. Without,
	// Left says nothing.
	Observed bool        `json:"observed"`
	Killed   []ProcessID `json:"killed,omitempty"` // outlived the worker; gone now
	Left     []ProcessID `json:"left,omitempty"`   // outlived the worker; not gone
}

// Print is what was printed to a standard stream.
type Print struct {
	Stream string `json:"stream"` // stdout or stderr
	Text   string `json:"text"`
}

// WorkerStatus is what the commands status and reap print.
type WorkerStatus struct {
	Time          time.Time     `json:"ts"`
	BootID        string        `json:"boot_id,omitempty"`
	UptimeSeconds float64       `json:"uptime_seconds"` // of the machine, without its pauses; zero where the platform does not tell
	Supervisor    *ProcessState `json:"supervisor,omitempty"`
	Worker        *ProcessState `json:"worker,omitempty"` // nil when it is not known who it is
	JournalEnd    int64         `json:"journal_end"`      // -1 when there is no journal
	Death         *Death        `json:"death,omitempty"`
	Remains       *Remains      `json:"remains,omitempty"` // of reap: what it found and did
}

// ProcessState is how a process is.
type ProcessState struct {
	PID          int    `json:"pid"`
	Alive        bool   `json:"alive"`           // a zombie is not
	State        string `json:"state,omitempty"` // R running, S sleeping, D in the kernel, T stopped, Z zombie
	RSSBytes     int64  `json:"rss_bytes"`
	PeakRSSBytes int64  `json:"peak_rss_bytes"`
}
