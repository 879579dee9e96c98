package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// ErrMessage is matched by the error for a payload that is not the message its
// frame type announces.
var ErrMessage = errors.New("malformed message")

// Methods of the worker. An unknown one is answered with
// [CodeMethodNotFound].
const (
	MethodHandshake     = "handshake"
	MethodSecrets       = "secrets"
	MethodVerifyFiles   = "verify_files"
	MethodCheckDeps     = "check_dependencies"
	MethodInstallDeps   = "install_dependencies"
	MethodExecuteStep   = "execute_step"
	MethodFetchOutput   = "fetch_output"
	MethodCancel        = "cancel"
	MethodSealArtifacts = "seal_artifacts"
	MethodShutdown      = "shutdown"
	MethodPing          = "ping"
)

// Request asks the worker to do something.
type Request struct {
	ID         string          `json:"id"` // see [RequestID]
	Method     string          `json:"method"`
	Params     json.RawMessage `json:"params,omitempty"`
	ParamsFile *FileRef        `json:"params_file,omitempty"` // holds the params instead, where they exceed a frame
	Answered   int64           `json:"answered,omitempty"`    // every request up to this number has its answer
	Epoch      int64           `json:"epoch,omitempty"`       // of the host that asks; see [Handshake]
}

// RequestID returns the id of the n-th request, "req_<n>". Numbers start at 1
// and rise by one.
func RequestID(n int64) string { return "req_" + strconv.FormatInt(n, 10) }

// FirstRequest returns the number of the first request in an epoch: epochs
// start at 1, and have room for 2^32 requests each, so that no answer is taken
// for one to another host's request.
func FirstRequest(epoch int64) int64 { return max(epoch-1, 0)<<32 + 1 }

// RequestNumber is the inverse of [RequestID].
func RequestNumber(id string) (int64, error) {
	digits, ok := strings.CutPrefix(id, "req_")
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || digits[0] < '1' || digits[0] > '9' { // no sign, no zeros in front
		return 0, fmt.Errorf("rpc: %w: request id %.40q is not of the form req_<n>", ErrMessage, id)
	}
	return n, nil
}

// Response answers the request with the same id, with a result or an error.
type Response struct {
	ID     string          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Code classifies an [Error]. The negative numbers below -32000 are those of
// JSON-RPC 2.0.
type Code int

// The codes. They do not change.
const (
	CodeInvalidRequest Code = -32600
	CodeMethodNotFound Code = -32601
	CodeInvalidParams  Code = -32602
	CodeInternal       Code = -32603

	CodeStepFailed    Code = 1 // the driver returned an error or panicked
	CodeCancelled     Code = 2 // the request was cancelled
	CodeTimeout       Code = 3 // the step ran out of time
	CodeUnknownDriver Code = 4
	CodeMissingInput  Code = 5 // an input the step refers to does not exist
	CodeProtocol      Code = 6 // no protocol version in common
	CodeDamagedFile   Code = 7 // a file is not what the host sent
	CodeOwnershipLost Code = 8 // another host has taken the run over

	CodeMissingRuntime Code = 9  // there is nothing that could run declared drivers
	CodeInstallFailed  Code = 10 // packages could not be installed
)

// Error is the error of a [Response].
type Error struct {
	Code    Code       `json:"code"`
	Message string     `json:"message"`
	Data    *ErrorData `json:"data,omitempty"`
}

// ErrorData says more about an [Error]. Any field may be empty.
type ErrorData struct {
	StepID    string   `json:"step_id,omitempty"`
	Driver    string   `json:"driver,omitempty"`
	Type      string   `json:"error_type,omitempty"` // of the driver's error, as "*fs.PathError", or "panic"
	Traceback string   `json:"traceback,omitempty"`  // the stack of a panic
	Available []string `json:"available,omitempty"`  // drivers, for CodeUnknownDriver

	// Of a step, as far as it came: as in StepResult.
	RowsIn     int64              `json:"rows_in,omitempty"`
	DurationMS float64            `json:"duration_ms,omitempty"`
	Metrics    map[string]float64 `json:"metrics,omitempty"`
	Usage      *StepUsage         `json:"usage,omitempty"`
}

// Error returns the message as [Printable] text; Message has it as it came.
func (e *Error) Error() string { return Printable(e.Message) }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Ack tells the worker that the host has everything of the journal before
// Offset, and never asks for it again. The worker ignores one of a host that is
// not its owner any more.
type Ack struct {
	Offset int64 `json:"offset"`
	Epoch  int64 `json:"epoch,omitempty"`
}

// Handshake is a host's first request: who the run is and what it needs.
//
// The host that is heard last with a higher epoch than all before it owns the
// worker: what is still asked with a lower one, or by another host with the
// same, is answered with [CodeOwnershipLost]. A host that takes a run over says
// a higher epoch than the one before, and numbers its requests from
// [FirstRequest] on.
type Handshake struct {
	MinVersion int `json:"min_version"` // protocol versions the host speaks
	MaxVersion int `json:"max_version"`

	Epoch int64  `json:"epoch,omitempty"` // counts the hosts of a run
	Owner string `json:"owner,omitempty"` // random, so that two hosts of one epoch are told apart

	SessionID   string            `json:"session_id"`
	Drivers     []string          `json:"drivers"`         // that the run needs; a missing one fails the handshake
	BasePath    string            `json:"base_path"`       // where relative input paths start
	Files       map[string]string `json:"files,omitempty"` // input paths as configs give them, to where they are
	HeartbeatMS int64             `json:"heartbeat_ms"`    // between heartbeats; zero means 1000

	Declared []DeclaredDriver `json:"declared,omitempty"`  // further drivers, in the place of the program's of the same names
	Python   string           `json:"python,omitempty"`    // the interpreter, a path or a name; empty means python3
	CacheDir string           `json:"cache_dir,omitempty"` // for what other runs on the same machine may use again; empty means the run's folder

	MemoryBudget int64 `json:"memory_budget,omitempty"` // bytes that outputs may take in memory; zero means the worker's own, half of the machine's

	Tables map[string]TableRef `json:"tables,omitempty"` // that the host has sent, by the names that inputs have for them
}

// TableRef is a table of the host's, in files that it has sent. The parts, one
// behind the other, are one Arrow IPC stream without compressed buffers, or a
// file that a driver reads.
type TableRef struct {
	Parts []FileSum `json:"parts"`
	Bytes int64     `json:"bytes"` // of all parts

	Rows    int64 `json:"rows,omitempty"`    // of an Arrow stream
	Batches int64 `json:"batches,omitempty"` // of an Arrow stream

	// Driver is the one that makes the table of the file, as its output "df";
	// empty means an Arrow stream. It has its config, and the file at Path.
	Driver string          `json:"driver,omitempty"`
	Path   string          `json:"path,omitempty"`
	Config json.RawMessage `json:"config,omitempty"`
}

// DeclaredDriver is a driver that is not part of the worker program: a class
// in another language, which a runtime of the program runs.
type DeclaredDriver struct {
	Name    string `json:"name"`
	Mode    string `json:"mode"`    // extract, transform or write
	Runtime string `json:"runtime"` // "python"
	Module  string `json:"module"`  // dotted
	Class   string `json:"class"`   // in the module

	// Requirements are packages that it imports, in the words of the runtime's
	// packagers: for Python a name with versions, as in PEP 508.
	Requirements []string `json:"requirements,omitempty"`

	// Sources are where its module is looked for first: absolute paths of
	// directories, or of zip files of their content.
	Sources []string `json:"sources,omitempty"`

	// JSON pointers into its config: to paths of input files, which the driver
	// gets as absolute ones, to paths that become artifacts, and to what is
	// secret.
	InputFiles  []string `json:"input_files,omitempty"`
	OutputFiles []string `json:"output_files,omitempty"`
	Secrets     []string `json:"secrets,omitempty"`
}

// CheckDeps asks what of the packages is there that the declared drivers need.
// A machine without the runtime, as without Python, is answered with
// [CodeMissingRuntime].
type CheckDeps struct {
	Runtime string `json:"runtime"`
}

// CheckDepsResult answers a [CheckDeps].
type CheckDepsResult struct {
	Version  string   `json:"version"`  // of the runtime, as "3.11.7"
	Platform string   `json:"platform"` // what built packages have to fit
	Key      string   `json:"key"`      // names the packages for this platform: 16 to 64 hex digits
	Required []string `json:"required"` // sorted; each is either present or missing
	Present  []string `json:"present"`  // sorted
	Missing  []string `json:"missing"`  // sorted; when empty, steps may be executed
}

// InstallDeps installs what was missing. The worker reports each package as it
// is installed. A failure is answered with [CodeInstallFailed]; nothing half is
// left then.
type InstallDeps struct {
	Runtime string `json:"runtime"`

	// Packages are files that the host has sent, all that is to be installed:
	// with them no index is asked. Without any it comes from the index that the
	// run's variables, or the machine's configuration, name.
	Packages []FileRef `json:"packages,omitempty"`

	// Keep has the files that were installed from left in the run's folder,
	// for the host to keep.
	Keep bool `json:"keep,omitempty"`

	TimeoutMS int64 `json:"timeout_ms,omitempty"` // zero means 10 minutes
}

// InstallDepsResult answers an [InstallDeps].
type InstallDepsResult struct {
	Installed []string  `json:"installed"`          // name==version, in the order they were installed in
	Packages  []FileRef `json:"packages,omitempty"` // what was kept
}

// Sealed is a part of [Secrets], sealed for the worker, see [SealSecrets]. The
// parts come after the handshake, in their order and each once; part 0 begins a
// message anew. They never go by file. The result is empty.
type Sealed struct {
	Part int    `json:"part"`
	More bool   `json:"more,omitempty"` // another part follows
	Data []byte `json:"data"`           // base64 in JSON
}

// Secrets is what a worker must know and nobody else: values that are never
// written anywhere in the sandbox. It may come several times: variables and
// connections replace those of the same names, and what is to be redacted adds
// up.
type Secrets struct {
	Env         map[string]string          `json:"env,omitempty"`         // variables for the drivers
	Connections map[string]json.RawMessage `json:"connections,omitempty"` // fields by reference, as "@mysql.db"
	Redact      []string                   `json:"redact,omitempty"`      // values that must not appear in what the worker says
}

// VerifyFiles asks whether files arrived as they were sent. One that did not is
// answered with [CodeDamagedFile]; the result is empty.
type VerifyFiles struct {
	Files []FileSum `json:"files"`
}

// FileSum is a file of the sandbox and what it must hold.
type FileSum struct {
	Path string `json:"path"` // absolute
	Size int64  `json:"size"`
	XXH3 string `json:"xxh3"` // see [XXH3]
}

// Version is the protocol version of this package.
const Version = 1

// HandshakeResult answers a [Handshake].
type HandshakeResult struct {
	Version       int      `json:"version"` // the highest both ends speak
	Worker        string   `json:"worker"`  // name and version of the program
	PID           int      `json:"pid"`
	OS            string   `json:"os"`
	Arch          string   `json:"arch"`
	CPUs          int      `json:"cpus"`                    // that the worker may use
	MemoryBytes   int64    `json:"memory_bytes,omitempty"`  // that the worker may use; zero where the platform does not tell
	MemoryBudget  int64    `json:"memory_budget,omitempty"` // bytes that outputs may take in memory
	PythonVersion string   `json:"python_version,omitempty"`
	Drivers       []string `json:"drivers"`  // registered, sorted
	SealKey       []byte   `json:"seal_key"` // what [Secrets] are sealed with, see [SealSecrets]
}

// FileRef refers to a file in the run's folder.
type FileRef struct {
	Path   string `json:"path"` // slash-separated, relative to the run's folder
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// ExecuteStep runs one step.
type ExecuteStep struct {
	StepID  string          `json:"step_id"`
	Driver  string          `json:"driver"`
	Config  json.RawMessage `json:"config,omitempty"`
	CfgPath string          `json:"cfg_path,omitempty"` // name of the config, for events

	// Connection is the reference whose fields the driver gets as
	// "resolved_connection"; empty for none.
	Connection string `json:"connection,omitempty"`

	Inputs map[string]InputRef `json:"inputs"` // by the name the driver sees

	TimeoutMS int64    `json:"timeout_ms,omitempty"` // zero means none
	Release   []string `json:"release,omitempty"`    // steps whose outputs nobody reads after this one
	Fetch     []string `json:"fetch,omitempty"`      // keys of outputs that the host may fetch, until the worker's end and from the run's folder after it
	Keep      bool     `json:"keep,omitempty"`       // somebody will read this step's outputs

	// TraceParent is the span of the step on the host, by which its driver can go
	// on with the trace; see [ValidTraceParent]. Empty means none.
	TraceParent string `json:"traceparent,omitempty"`
}

// InputRef names an output of an earlier step, or a table of the host's.
type InputRef struct {
	FromStep string `json:"from_step,omitempty"`
	Key      string `json:"key"`             // empty means "df"
	Table    string `json:"table,omitempty"` // by its name in [Handshake]; then the other two are empty
}

// StepResult answers an [ExecuteStep] that succeeded.
type StepResult struct {
	StepID     string               `json:"step_id"`
	Status     string               `json:"status"` // "success"
	Outputs    map[string]OutputRef `json:"outputs"`
	Metrics    map[string]float64   `json:"metrics"` // rows_read, rows_written and what else the driver counted
	RowsIn     int64                `json:"rows_in"`
	RowsOut    int64                `json:"rows_out"`
	Mode       string               `json:"mode"` // extract, transform or write
	DurationMS float64              `json:"duration_ms"`
	Usage      *StepUsage           `json:"usage,omitempty"`
}

// StepUsage is what a step has used.
type StepUsage struct {
	StartedAt    time.Time `json:"started_at"`               // its driver began, by the worker's clock
	DriverMS     float64   `json:"driver_ms"`                // until its outputs were read to their ends, or it was left behind
	PeakRSSBytes int64     `json:"peak_rss_bytes,omitempty"` // the worker's, as it was seen meanwhile
}

// OutputRef describes an output that the worker holds.
type OutputRef struct {
	Rows    int64    `json:"rows"`
	Columns []string `json:"columns"`
	Bytes   int64    `json:"bytes,omitempty"` // that it takes in memory, or would

	Spilled *SpilledOutput `json:"spilled,omitempty"` // where it is if it is not in memory

	// Stream is where the host finds an output that it may fetch; nil for any
	// other.
	Stream *StreamRef `json:"stream,omitempty"`
}

// SpilledOutput is an output on disk: one Arrow IPC stream, not compressed.
type SpilledOutput struct {
	Path  string `json:"path"` // slash-separated, relative to the run's folder
	Bytes int64  `json:"bytes"`
}

// StreamRef is an Arrow IPC stream in a file of the run's folder.
type StreamRef struct {
	Path    string `json:"path"` // slash-separated, relative to the run's folder
	Rows    int64  `json:"rows"`
	Batches int64  `json:"batches"`
	Bytes   int64  `json:"bytes"`
	XXH3    string `json:"xxh3"` // see [XXH3]
}

// MaxFetch is the size of an Arrow stream that is worth being sent in frames.
// For a larger one frames are slower than files.
const MaxFetch = 1 << 20

// FetchOutput asks for an output, which comes as Arrow frames with the number
// of the request as stream, before the answer.
type FetchOutput struct {
	StepID string `json:"step_id"`
	Key    string `json:"key"`
}

// FetchOutputResult answers a [FetchOutput].
type FetchOutputResult struct {
	Rows    int64 `json:"rows"`
	Batches int64 `json:"batches"`
	Bytes   int64 `json:"bytes"` // of the Arrow stream
}

// Cancel asks the worker to stop a request. The request itself is answered
// with [CodeCancelled] once it has stopped.
type Cancel struct {
	ID string `json:"id"`
}

// Artifact is a file that the run leaves behind.
type Artifact struct {
	Path   string      `json:"path"` // slash-separated, relative to the artifacts directory
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`         // hex
	XXH3   string      `json:"xxh3,omitempty"` // see [XXH3]
	Mode   fs.FileMode `json:"mode,omitempty"` // its permissions
	StepID string      `json:"step_id,omitempty"`
}

// SealResult lists the artifacts, sorted by path, and what in the artifacts
// directory is none, or is not wanted.
type SealResult struct {
	Artifacts []Artifact        `json:"artifacts"`
	Skipped   []SkippedArtifact `json:"skipped,omitempty"`
}

// SkippedArtifact is something that is not brought home: a symbolic link, a
// pipe, a file that cannot be read, or that nobody wants.
type SkippedArtifact struct {
	Path   string `json:"path"`
	Size   int64  `json:"size,omitempty"` // of a file that was not read
	Reason string `json:"reason"`
}

// RecoverResult says what a worker that died has left: what another one that
// is started with -resume can go on with.
type RecoverResult struct {
	Journal  int64      `json:"journal"`         // its length, without a torn last frame
	Finished []string   `json:"finished"`        // steps whose results are on disk with what is still needed of their outputs, sorted
	Begun    []string   `json:"begun,omitempty"` // steps that may have had effects, and have not finished, sorted
	Lost     []LostStep `json:"lost,omitempty"`  // steps that have finished, and left damage
}

// LostStep is a step whose result or outputs did not survive.
type LostStep struct {
	StepID string `json:"step_id"`
	Reason string `json:"reason"`
}

// Log is a log record, or a line that a driver printed.
type Log struct {
	Time    time.Time      `json:"ts"`
	Level   string         `json:"level"` // DEBUG, INFO, WARN, ERROR
	Message string         `json:"message"`
	StepID  string         `json:"step_id,omitempty"`
	Stream  string         `json:"stream,omitempty"` // stdout or stderr, for what was printed
	Attrs   map[string]any `json:"attrs,omitempty"`
}

// Heartbeat says that the worker lives and what it uses.
type Heartbeat struct {
	Time       time.Time `json:"ts"`
	RSSBytes   int64     `json:"rss_bytes"`   // resident memory; zero where the platform does not tell
	CPUSeconds float64   `json:"cpu_seconds"` // used so far, user and system
	OpenSteps  []string  `json:"open_steps"`  // running now, sorted
	Journal    int64     `json:"journal"`     // its length before this frame
	Epoch      int64     `json:"epoch"`       // of the worker's owner
}

// Close is the worker's last word.
type Close struct {
	ExitCode int    `json:"exit_code"`
	Reason   string `json:"reason"` // why it ends: shutdown, end of input, or an error
}

// envelope returns what stands before the data of a frame; after it stands a
// closing brace.
func envelope(typ FrameType) (prefix string, ok bool) {
	switch typ {
	case FrameEvent:
		return `{"type":"event","data":`, true
	case FrameMetric:
		return `{"type":"metric","data":`, true
	case FrameLog:
		return `{"type":"log","data":`, true
	case FrameHeartbeat:
		return `{"type":"heartbeat","data":`, true
	case FrameClose:
		return `{"type":"close","data":`, true
	}
	return "", false
}

// Data returns the data of an event, metric, log, heartbeat or close frame: a
// JSON object on one line, in UTF-8, without characters that a terminal obeys
// ([EscapeControls]). It aliases the payload where it can. The error matches
// [ErrMessage].
func Data(typ FrameType, payload []byte) (json.RawMessage, error) {
	prefix, ok := envelope(typ)
	if !ok {
		return nil, fmt.Errorf("rpc: %w: a %s has no envelope", ErrMessage, typ)
	}
	// What our own worker writes: one pass to validate, nothing decoded.
	if n := len(payload) - 1; n > len(prefix) && string(payload[:len(prefix)]) == prefix && payload[n] == '}' {
		if data := payload[len(prefix):n:n]; isObject(data) {
			return EscapeControls(data), nil
		}
	}
	// Another order, more keys, or spaces between them.
	var env struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(payload, &env); err != nil {
		return nil, fmt.Errorf("rpc: %w: %s: %v", ErrMessage, typ, err)
	}
	if env.Type != typ.String() {
		return nil, fmt.Errorf("rpc: %w: a %s frame holds a message of type %.40q", ErrMessage, typ, env.Type)
	}
	data := env.Data
	if bytes.ContainsAny(data, "\r\n") { // between tokens: strings cannot hold them
		var line bytes.Buffer
		if err := json.Compact(&line, data); err != nil {
			return nil, fmt.Errorf("rpc: %w: %s: %v", ErrMessage, typ, err)
		}
		data = line.Bytes()
	}
	if !isObject(data) {
		return nil, fmt.Errorf("rpc: %w: the data of a %s is not an object in UTF-8", ErrMessage, typ)
	}
	return EscapeControls(data), nil
}

// DecodeRequest decodes and checks a request. The error matches [ErrMessage].
func DecodeRequest(payload []byte) (*Request, error) {
	var r Request
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, fmt.Errorf("rpc: %w: request: %v", ErrMessage, err)
	}
	if _, err := RequestNumber(r.ID); err != nil {
		return nil, err
	}
	if r.Method == "" {
		return nil, fmt.Errorf("rpc: %w: request %s has no method", ErrMessage, r.ID)
	}
	if r.Answered < 0 {
		return nil, fmt.Errorf("rpc: %w: request %s: answered is negative", ErrMessage, r.ID)
	}
	return &r, nil
}

// DecodeResponse decodes and checks a response: it has an id, and either a
// result or an error. The error matches [ErrMessage].
func DecodeResponse(payload []byte) (*Response, error) {
	var r Response
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, fmt.Errorf("rpc: %w: response: %v", ErrMessage, err)
	}
	if _, err := RequestNumber(r.ID); err != nil {
		return nil, err
	}
	if (len(r.Result) == 0) == (r.Error == nil) {
		return nil, fmt.Errorf("rpc: %w: response %s needs a result or an error", ErrMessage, r.ID)
	}
	return &r, nil
}

// DecodeAck decodes an acknowledgement. The error matches [ErrMessage].
func DecodeAck(payload []byte) (Ack, error) {
	var a Ack
	if err := json.Unmarshal(payload, &a); err != nil {
		return Ack{}, fmt.Errorf("rpc: %w: ack: %v", ErrMessage, err)
	}
	if a.Offset < 0 {
		return Ack{}, fmt.Errorf("rpc: %w: ack of offset %d", ErrMessage, a.Offset)
	}
	return a, nil
}

// Negotiate returns the highest protocol version within both ranges.
func Negotiate(minA, maxA, minB, maxB int) (int, error) {
	v := min(maxA, maxB)
	if v < max(minA, minB) {
		return 0, &Error{Code: CodeProtocol, Message: fmt.Sprintf(
			"no protocol version in common: host speaks %d to %d, worker %d to %d; use a worker built from the host's version of this module",
			minA, maxA, minB, maxB)}
	}
	return v, nil
}
