package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrInvalid: the manifest, the configuration or the context cannot be
	// run. Nothing was started.
	ErrInvalid = errors.New("invalid")

	// ErrUnknownDriver: a step needs a driver that the worker does not have.
	ErrUnknownDriver = worker.ErrUnknownDriver

	// ErrStepFailed: a step ran and failed. [*StepError] says which and why.
	ErrStepFailed = errors.New("step failed")

	// ErrTimeout: the run, a step, or a request to E2B took longer than it may.
	ErrTimeout = e2b.ErrTimeout

	// ErrWorkerCrash: the worker ended, or fell silent, before the run did.
	// [*WorkerCrashError] says how.
	ErrWorkerCrash = errors.New("worker crashed")

	// ErrJournalLost: the worker's journal cannot be read on, because it is
	// damaged or was trimmed. What came before is in the session's files, whole;
	// what came after is not known. The error also matches
	// [rpc.ErrJournalTrimmed], [rpc.ErrFrameCorrupt] or another one of package
	// rpc.
	ErrJournalLost = errors.New("journal cannot be read on")

	// ErrBudget: the run has reached Config.MaxCost or MaxDuration; a
	// [*BudgetError] says which.
	ErrBudget = errors.New("the run's budget is used up")

	// ErrProtocol: the worker, or the sandbox, has sent what no worker sends, as an
	// answer to nothing, a line of another session, or an artifact outside its
	// directory.
	ErrProtocol = errors.New("protocol violation")

	// ErrAlreadyExecuted: Execute was called twice for one session.
	ErrAlreadyExecuted = errors.New("session was executed already")

	// ErrOwnershipLost: another host has taken the run over by Attach. The
	// sandbox is that one's.
	ErrOwnershipLost = errors.New("another host has taken the run over")

	// ErrNotExecuted: Collect was called for a session that Execute has not
	// seen.
	ErrNotExecuted = errors.New("session was not executed")

	// ErrSink: OnEvent or OnMetric returned an error.
	ErrSink = errors.New("event sink failed")

	// ErrCollect: an artifact could not be brought home. [*CollectError] says
	// which, and what is here.
	ErrCollect = errors.New("artifacts not collected")

	// ErrClosed: the adapter was closed.
	ErrClosed = errors.New("adapter is closed")

	// ErrAuthentication: there is no API key, or E2B does not accept it.
	ErrAuthentication = e2b.ErrAuthentication

	// ErrQuota: the account has as many sandboxes as it may have.
	ErrQuota = e2b.ErrQuota

	// ErrUnsupported: E2B has nothing of the kind.
	ErrUnsupported = e2b.ErrUnsupported

	// ErrSandboxSize: the sandbox has other cores or memory than the run asks
	// for.
	ErrSandboxSize = errors.New("sandbox has another size")

	// ErrMissingDependencies: the place of the run has not got what drivers in
	// Python need, and nothing was to be installed there; a
	// [*MissingDependenciesError] has the names.
	ErrMissingDependencies = errors.New("dependencies are missing")

	// ErrWorkerPlatform: the worker program does not suit the sandbox.
	ErrWorkerPlatform = errors.New("worker program does not suit the sandbox")

	// ErrSandboxGone is matched by the error of any use of a sandbox that was
	// killed or whose time is over.
	ErrSandboxGone = e2b.ErrSandboxGone
)

// Errors of making a sandbox. Their texts begin as the specification has them;
// package e2b has further ones, which they match.
type (
	QuotaExceededError = e2b.QuotaExceededError // "E2B quota exceeded"
	TimeoutError       = e2b.TimeoutError       // "Sandbox creation timeout"
	SandboxError       = e2b.SandboxError       // "Failed to create sandbox"
)

// ManifestError says what is wrong with a manifest. It matches [ErrInvalid].
type ManifestError struct {
	Path   string // of the file; may be empty
	StepID string // may be empty
	Reason string
}

func (e *ManifestError) Error() string {
	var b strings.Builder
	b.WriteString("remote: manifest")
	if e.Path != "" {
		fmt.Fprintf(&b, " %s", e.Path)
	}
	if e.StepID != "" {
		fmt.Fprintf(&b, ": step %q", e.StepID)
	}
	b.WriteString(": " + e.Reason)
	return b.String()
}

// Is reports whether target is ErrInvalid.
func (e *ManifestError) Is(target error) bool { return target == ErrInvalid }

// StepError reports a step that did not finish. It matches [ErrStepFailed],
// and [ErrTimeout], [ErrUnknownDriver] or context.Canceled where that is why.
// The driver's own error stays with the worker: of it there are the text and
// the name of its type.
type StepError struct {
	StepID    string
	Driver    string
	Type      string // of the driver's error, as "*fs.PathError", or "panic"; may be empty
	Message   string
	Traceback string // the stack of a panic; else empty
	Err       error  // one of the errors above, or nil
}

// Error is text that can be printed: what a terminal would obey is escaped.
// Message and Traceback are as the worker has sent them.
func (e *StepError) Error() string {
	return rpc.Printable(fmt.Sprintf("remote: step %q: %s", e.StepID, e.Message))
}

// Unwrap returns ErrStepFailed and the kind of failure.
func (e *StepError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrStepFailed}
	}
	return []error{ErrStepFailed, e.Err}
}

// WorkerCrashError reports a worker that ended, or was lost, before its work was
// done. It matches [ErrWorkerCrash], and [ErrSandboxGone] where its sandbox is
// gone.
type WorkerCrashError struct {
	Verdict Verdict // what has become of it
	Detail  string  // of the verdict, for a person

	Status          *ExitStatus // how the process ended; nil when that is not known
	PeakMemoryBytes int64       // the most it had; zero when that is not known
	Reason          string      // the worker's own last word, or what was observed
	Stderr          string      // the last lines it wrote to its standard error, or those where Go's runtime says why it crashed; what drivers print is in osiris.log
	OpenSteps       []string    // running when it was last heard of
	Err             error       // what went wrong on the way to it; may be nil
}

// Error is text that can be printed, as that of a [StepError].
func (e *WorkerCrashError) Error() string {
	var b strings.Builder
	b.WriteString("remote: worker crashed")
	if e.Status != nil {
		fmt.Fprintf(&b, " (%s)", e.Status)
	}
	if e.Verdict != "" && e.Verdict != VerdictExited && e.Verdict != VerdictKilled || e.Status == nil && e.Detail != "" {
		fmt.Fprintf(&b, ": %s: %s", e.Verdict, e.Detail)
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	if len(e.OpenSteps) > 0 {
		fmt.Fprintf(&b, "; running: %s", strings.Join(e.OpenSteps, ", "))
	}
	if e.Err != nil {
		fmt.Fprintf(&b, "; %v", e.Err)
	}
	if e.Stderr != "" {
		fmt.Fprintf(&b, "; its last words: %s", e.Stderr)
	}
	return rpc.Printable(b.String())
}

// Unwrap returns ErrWorkerCrash and the underlying error.
func (e *WorkerCrashError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrWorkerCrash}
	}
	return []error{ErrWorkerCrash, e.Err}
}

// errorType names the type of an error for a log: "cancelled", "timeout", or the
// first type of Go in its chain that does more than hold a text.
func errorType(err error) string {
	switch {
	case errors.Is(err, ErrTimeout):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	if name := ownType(err); name != "" {
		return name
	}
	return fmt.Sprintf("%T", err)
}

func ownType(err error) string {
	switch name := fmt.Sprintf("%T", err); name {
	case "<nil>", "*errors.errorString":
		return ""
	case "*fmt.wrapError", "*fmt.wrapErrors", "*errors.joinError", "*remote.redactedError", "*remote.protocolError":
	default:
		return name
	}
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		return ownType(wrapper.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			if name := ownType(inner); name != "" {
				return name
			}
		}
	}
	return ""
}

// CollectError reports that not all is here that is wanted of a run's artifacts. It
// matches [ErrCollect], and [ErrSandboxGone], [ErrProtocol], an error of the
// disk or another where that is why. While the sandbox lives Collect may be
// called again, also by another process after Attach: what is here is then not
// downloaded again, and a large file goes on where it was cut.
type CollectError struct {
	Got    *CollectedArtifacts // what is here, verified
	Failed []SkippedArtifact   // what is not, and why; empty when the list could not be had
	Err    error               // why, of the first few
}

// Error is text that can be printed.
func (e *CollectError) Error() string {
	return rpc.Printable(fmt.Sprintf("remote: %v: %v", ErrCollect, e.Err))
}

// Unwrap returns ErrCollect and what went wrong.
func (e *CollectError) Unwrap() []error { return []error{ErrCollect, e.Err} }
