package remote

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Sandbox is the machine that a run has to itself, as an adapter needs it: a
// place for files, processes, and an end. [OpenSandbox] makes one. Package
// mock has one in memory, and mock/mocktest the tests that any implementation
// must pass.
//
// While a run goes on its adapter calls Extend every third of
// [SandboxConfig.LeaseSeconds].
//
// All methods may be called concurrently. After Kill, or once its time is
// over, every method but Info, State and Kill fails with an error that matches
// [ErrSandboxGone].
type Sandbox interface {
	// Info describes the sandbox. It does not change.
	Info() SandboxInfo

	// State says whether the sandbox runs, as those know who run it: the
	// sandbox itself is not touched, so that one that is paused stays so. That
	// it is gone is no error.
	State(ctx context.Context) (SandboxState, error)

	// Upload writes a file of exactly size bytes, readable and executable by
	// its owner, and makes the directories above it. The file appears whole
	// or not at all, also when it replaces another or r fails.
	Upload(ctx context.Context, path string, r io.Reader, size int64) error

	// Size returns the size of a file in bytes. The error matches
	// fs.ErrNotExist when there is none.
	Size(ctx context.Context, path string) (int64, error)

	// Download opens a file for reading. The error matches fs.ErrNotExist
	// when there is none. The caller closes the reader; ctx bounds the whole
	// transfer.
	Download(ctx context.Context, path string) (io.ReadCloser, error)

	// Start starts a process. ctx bounds the start alone: the process lives
	// until it ends, is signalled, or the sandbox is killed.
	Start(ctx context.Context, cmd Command) (Process, error)

	// Kill removes the sandbox with all its processes and files. A nil error
	// means that it is gone; killing one that is already gone is no error.
	Kill(ctx context.Context) error

	// Extend sets the sandbox's end to d from now. One that has no end of its
	// own ignores it.
	Extend(ctx context.Context, d time.Duration) error
}

// SandboxInfo describes a sandbox.
type SandboxInfo struct {
	ID       string
	Template string
	CPU      int     // cores; zero when unknown
	MemoryGB float64 // zero when unknown

	// WorkerPath is a worker program the sandbox holds from the start, so that
	// none is uploaded. Empty means none.
	WorkerPath string
}

// SandboxPhase says whether a sandbox runs.
type SandboxPhase string

// The phases of a sandbox.
const (
	SandboxRunning SandboxPhase = "running"
	SandboxPaused  SandboxPhase = "paused" // its processes stand still until it is resumed
	SandboxGone    SandboxPhase = "gone"   // it was killed, or its time is over
)

// SandboxState is how a sandbox is at a moment.
type SandboxState struct {
	Phase     SandboxPhase
	StartedAt time.Time // zero when not known

	// EndAt is when the sandbox ends unless it is extended; of one that is
	// gone, when it was to end. Zero means no end, or none that is known.
	EndAt time.Time
}

// Command is a process to start.
type Command struct {
	Path string   // absolute path of the program, in the sandbox
	Args []string // arguments, without the program's name
	Dir  string   // working directory, which must exist; empty leaves it to the sandbox

	// Stderr receives what the process writes to its standard error, from one
	// goroutine at a time, until Wait returns. Nil discards it.
	Stderr io.Writer
}

// Process is a running process of a [Sandbox].
type Process interface {
	PID() int

	// Stdin writes to the process. One Write arrives whole and in order, or,
	// where the connection breaks, not at all. Close ends the process's input
	// once it has read what was written, and does not block.
	Stdin() io.WriteCloser

	// Stdout reads what the process writes, from the start. io.EOF means that
	// the process closed it; any other error, that the connection was lost
	// while the process may go on. Whoever starts a process must read it, or
	// the process will block.
	// Close gives up reading: the process goes on, its output is discarded.
	Stdout() io.ReadCloser

	// Wait returns how the process ended, as often as it is asked. The error
	// is ctx's when ctx ends first. Of a process that ended with its sandbox,
	// Wait may know the status, or fail with [ErrSandboxGone].
	Wait(ctx context.Context) (ExitStatus, error)

	// Signal sends a signal to the process. A process that has ended is no
	// error.
	Signal(ctx context.Context, sig Signal) error
}

// Signal is a signal that every sandbox can send.
type Signal string

// The signals.
const (
	SignalTerm Signal = "SIGTERM" // asks the process to end
	SignalKill Signal = "SIGKILL" // ends it
)

// ExitStatus says how a process ended.
type ExitStatus struct {
	Code   int    // exit code; -1 when a signal ended the process
	Signal string // name of that signal, as "SIGKILL"; else empty
}

func (s ExitStatus) String() string {
	if s.Signal != "" {
		return "killed by " + s.Signal
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// SandboxConfig is what a sandbox is made from. It is part of a
// [PreparedRun].
type SandboxConfig struct {
	Template       string            `json:"template"`
	CPU            int               `json:"cpu,omitempty"`       // cores; zero means what the template has
	MemoryGB       float64           `json:"memory_gb,omitempty"` // zero means what the template has
	TimeoutSeconds int               `json:"timeout"`             // of the run
	Metadata       map[string]string `json:"metadata,omitempty"`
	Image          string            `json:"image,omitempty"`    // that a template is to be made from, in the place of Template
	Packages       []string          `json:"packages,omitempty"` // requirements of Python packages, beside those of the drivers

	// LeaseSeconds is how long the sandbox is to live from its creation, and
	// from each call of Extend while its host lives; zero means 300.
	LeaseSeconds int        `json:"lease,omitempty"`
	OnHostLoss   OnHostLoss `json:"on_host_loss,omitempty"` // empty means Kill
}

// lease is LeaseSeconds as a duration.
func (c SandboxConfig) lease() time.Duration {
	if c.LeaseSeconds == 0 {
		return defaultLease
	}
	return time.Duration(c.LeaseSeconds) * time.Second
}

// OpenSandbox makes a sandbox. When it returns an error it has left none
// behind.
type OpenSandbox func(ctx context.Context, cfg SandboxConfig) (Sandbox, error)
