package remote

import (
	"io/fs"
	"time"
)

// ExecResult says how a run went. It is the same verdict that status.json
// holds.
type ExecResult struct {
	Success         bool         `json:"success"`
	ExitCode        int          `json:"exit_code"` // 0 on success, else 1
	DurationSeconds float64      `json:"duration_seconds"`
	ErrorMessage    string       `json:"error_message,omitempty"` // the first failure
	StepResults     []StepResult `json:"step_results"`            // in the manifest's order, one for every step

	// DroppedLines and DroppedBytes are what the worker wrote of events, metrics
	// and log beyond [Config].MaxEvents and MaxEventBytes: they are in no file,
	// and the event lines_dropped says so.
	DroppedLines int64 `json:"dropped_lines,omitempty"`
	DroppedBytes int64 `json:"dropped_bytes,omitempty"`

	// Stopped says, of a run that was cancelled or ran too long, how it was
	// stopped and what was seen to be gone, in the order of what was tried.
	// Empty for any other run.
	Stopped []StopStage `json:"stopped,omitempty"`

	// Receipt is what the run has taken until its verdict; after [Run], until its
	// end. Nil of a run that another host has taken over.
	Receipt *Receipt `json:"receipt,omitempty"`
}

// StopStage is one thing that was done to stop a run. Each takes a bounded
// time.
type StopStage struct {
	Stage      string   `json:"stage"` // one of [StageCancel] and the other stages
	DurationMS float64  `json:"duration_ms"`
	Gone       bool     `json:"gone"`            // what it is about was observed to be gone
	Left       []string `json:"left,omitempty"`  // what was observed not to be gone: processes, as "1234 (sleep)"
	Error      string   `json:"error,omitempty"` // why more is not known
}

// The stages of stopping a run. Later ones of the first three are tried only
// where those before have failed.
const (
	StageCancel    = "cancel"    // the steps are told to stop, and the worker to end
	StageTerminate = "terminate" // SIGTERM to the worker's process group
	StageKill      = "kill"      // SIGKILL
	StageProcesses = "processes" // all that the worker has started, also in sessions of its own
	StageSandbox   = "sandbox"   // the sandbox is removed; set by [Run]
)

// StepStatus says what became of a step.
type StepStatus string

// What can become of a step.
const (
	StepSucceeded StepStatus = "succeeded"
	StepFailed    StepStatus = "failed"
	StepSkipped   StepStatus = "skipped" // not started, since the run failed or was cancelled
)

// StepResult says how a step went.
type StepResult struct {
	StepID     string             `json:"step_id"`
	Driver     string             `json:"driver"`
	Status     StepStatus         `json:"status"`
	RowsIn     int64              `json:"rows_in"`
	RowsOut    int64              `json:"rows_out"`
	DurationMS float64            `json:"duration_ms"`
	Metrics    map[string]float64 `json:"metrics,omitempty"` // rows_read, rows_written, ...
	Error      string             `json:"error,omitempty"`
	ErrorType  string             `json:"error_type,omitempty"`
}

// CollectedArtifacts is what a run brought home. Paths are those of files on
// this machine; empty means that the run has none.
type CollectedArtifacts struct {
	EventsLog    string `json:"events_log"`
	MetricsLog   string `json:"metrics_log"`
	ExecutionLog string `json:"execution_log"`
	ArtifactsDir string `json:"artifacts_dir"`

	// Status is [CollectPartial] where a file that is wanted is not here: a
	// [*CollectError] says why.
	Status    CollectStatus     `json:"status"`
	Artifacts []Artifact        `json:"artifacts"` // verified, sorted by path
	Skipped   []SkippedArtifact `json:"skipped,omitempty"`
	Metadata  CollectMetadata   `json:"metadata"`

	// SkippedMore is how many more were skipped than Skipped names, which has the
	// first 100,000, or fewer with very long names.
	SkippedMore int `json:"skipped_more,omitempty"`

	// Receipt is what the run has taken, this collection included, also beside an
	// error.
	Receipt *Receipt `json:"receipt,omitempty"`
}

// CollectStatus says whether all is here that is wanted.
type CollectStatus string

// What a collection can be.
const (
	CollectComplete CollectStatus = "complete"
	CollectPartial  CollectStatus = "partial"
)

// Artifact is a file that the run left behind.
type Artifact struct {
	Path   string `json:"path"` // slash-separated, relative to the artifacts directory
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`

	// Verified says how the file was compared with what was sealed. Unless it is
	// [VerifySHA256], SHA256 is what the sandbox says.
	Verified Verify `json:"verified"`

	// Mode are the file's permissions where the run was: reading, writing,
	// executing. Here it has 0640, or 0750
	// where its owner could execute it.
	Mode fs.FileMode `json:"mode,omitempty"`

	StepID string `json:"step_id,omitempty"`
	Output string `json:"output,omitempty"` // where ExecutionContext.Outputs had a copy made
}

// SkippedArtifact is something in the run's artifacts directory that was not
// brought home, and why. What a terminal would obey is escaped in both.
type SkippedArtifact struct {
	Path   string `json:"path"`
	Size   int64  `json:"size,omitempty"` // of a file, where it is known
	Reason string `json:"reason"`
}

// CollectMetadata describes a collection.
type CollectMetadata struct {
	Adapter        string    `json:"adapter"`
	SessionID      string    `json:"session_id"`
	SandboxID      string    `json:"sandbox_id"`
	CollectedAt    time.Time `json:"collected_at"`
	ArtifactsCount int       `json:"artifacts_count"`
	ArtifactsBytes int64     `json:"artifacts_bytes"`
	EventsSize     int64     `json:"events_size"`
	MetricsSize    int64     `json:"metrics_size"`
	LogSize        int64     `json:"log_size"`
}
