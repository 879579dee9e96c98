package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"
)

// ExecutionContext says where a run belongs: its session, its directories,
// and who is told what happens. The same context is given to Prepare, Execute
// and Collect.
type ExecutionContext struct {
	// SessionID names the run. It is required, and becomes part of file
	// names: no separators or control characters. See [NewSessionID].
	SessionID string

	// BasePath is where relative paths in step configs start; empty means the
	// current directory.
	BasePath string

	// LogsDir is the session directory, required: events.jsonl, status.json
	// and the rest are made there.
	LogsDir string

	// ArtifactsDir is where artifacts are brought; empty means
	// LogsDir/artifacts.
	ArtifactsDir string

	// Outputs names artifacts that are wanted elsewhere, too: by their paths, as
	// "write_users/users.csv" (the step, and the path its config gives), the
	// files of this machine that Collect copies them to. A relative one starts
	// at BasePath. After a run that succeeded each of them must be there.
	Outputs map[string]string

	// Tables are tables of this machine that steps have as inputs: by the names
	// that a step's inputs in the manifest have for them, as {"df": {"table":
	// "orders"}}. A run of a sandbox sends them there.
	Tables map[string]Table

	// Keep names outputs of steps that are kept where the run happens until
	// Collect, for [OutputFetcher]. Of any other output nothing is left when
	// nobody needs it any more.
	Keep []OutputName

	// StartedAt is the run's start; every time that Prepare writes is this
	// one. Zero means the moment Prepare first needs it, which makes its
	// result differ from call to call.
	StartedAt time.Time

	// OnEvent and OnMetric are told what happens while it happens: serially,
	// in order, each item once. They run on one goroutine of their own; one
	// that is slow first fills a small buffer and then slows the run down. An
	// error fails the run. After the run's end or cancellation they have ten
	// seconds for what is left, then their context is cancelled, which they
	// must heed: Execute and Collect wait for them. They must not wait for
	// their own run, as Collect and Close do. Nil means nobody is told; the
	// session's files are written either way.
	OnEvent  func(ctx context.Context, e Event) error
	OnMetric func(ctx context.Context, m Metric) error

	// Tracer makes spans of the run. Nil makes none.
	Tracer Tracer

	// Logger is told what happens between the host and the worker: what is
	// retried, given up or cut short. Nil discards; osiris.log has it either
	// way.
	Logger *slog.Logger
}

// NewExecutionContext returns the context of a run that starts now: with a new
// session id, and a session directory of that name under root.
func NewExecutionContext(root string) *ExecutionContext {
	now := time.Now()
	id := NewSessionID(now)
	return &ExecutionContext{SessionID: id, LogsDir: filepath.Join(root, id), StartedAt: now}
}

// NewSessionID returns a session id for a run that starts at t, as
// "run_1759247251182_9f3c": the milliseconds since 1970, as the reference
// implementation names its runs, and a random part.
func NewSessionID(t time.Time) string {
	return fmt.Sprintf("run_%d_%04x", t.UnixMilli(), rand.N(1<<16))
}

func (ec *ExecutionContext) validate() error {
	if ec == nil {
		return fmt.Errorf("%w: execution context is nil", ErrInvalid)
	}
	if !validName(ec.SessionID) {
		return fmt.Errorf("%w: session id %q cannot name a folder; use NewSessionID", ErrInvalid, ec.SessionID)
	}
	if ec.LogsDir == "" {
		return fmt.Errorf("%w: ExecutionContext.LogsDir is empty: name the directory for the session's files", ErrInvalid)
	}
	for name, to := range ec.Outputs {
		if to == "" || !fs.ValidPath(name) || name == "." {
			return fmt.Errorf("%w: ExecutionContext.Outputs[%q] is %q; map an artifact's path, as \"step/file.csv\", to a file", ErrInvalid, name, to)
		}
	}
	return nil
}

func (ec *ExecutionContext) artifactsDir() string {
	if ec.ArtifactsDir != "" {
		return ec.ArtifactsDir
	}
	return filepath.Join(ec.LogsDir, "artifacts")
}

func (ec *ExecutionContext) logger() *slog.Logger {
	if ec.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return ec.Logger
}

// validName reports whether a name can be a file name everywhere: one path
// element without characters that a system, a terminal or a URL might take
// amiss.
func validName(name string) bool {
	if name == "" || len(name) > 200 || !filepath.IsLocal(name) || name == "." || strings.HasSuffix(name, ".") {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r == 0x7f || strings.ContainsRune(`/\:*?"<>|`, r) || r == '\uFFFD'
	})
}

// Event is something that happened: one line of events.jsonl.
type Event struct {
	Seq     int64 // counts the run's events and metrics together, from 1
	Time    time.Time
	Session string
	Name    string          // as "step_complete"
	StepID  string          // empty for what belongs to the run
	Line    json.RawMessage // the line as it stands in the file: an object with all fields
}

// Decode decodes the event's fields into v, as encoding/json does.
func (e Event) Decode(v any) error { return json.Unmarshal(e.Line, v) }

// Metric is a number that was reported: one line of metrics.jsonl.
type Metric struct {
	Seq     int64 // counts the run's events and metrics together, from 1
	Time    time.Time
	Session string
	Name    string // as "rows_read"
	Value   float64
	Unit    string          // rows, ms, bytes, seconds, files, code, calls, or empty
	StepID  string          // empty for what belongs to the run
	Line    json.RawMessage // the line as it stands in the file
}
