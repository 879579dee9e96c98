package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Step is one step as its driver sees it. The worker fills it in; a test of a
// driver may make one by hand: the zero value of every field works.
type Step struct {
	ID     string
	Driver string

	// Config is the step's configuration without the keys "component" and
	// "connection". Numbers are json.Number. What the host has resolved the
	// step's connection to stands under "resolved_connection", secrets included,
	// with the names of its family and alias under "_family" and "_alias".
	Config map[string]any

	// Connection is the reference of that connection, as "@family.alias", or
	// "@family" for the family's default; empty when there is none.
	Connection string

	// Current returns the fields of the connection as they are now: those of
	// Config, or newer ones that the host has sent meanwhile. Nil where there is
	// no connection, or it does not change. See [Step.ResolvedConnection].
	Current func() (map[string]any, error)

	// Inputs by name: "df_<step>" for every step this one needs, and "df" when
	// there is exactly one; or the names that the step's own inputs have in the
	// manifest. In df_<step>, characters of the id outside [0-9A-Za-z_] are "_", a
	// leading digit has "_" before it, and ids that would become the same name
	// have 8 hex digits of their SHA-256 behind it: "df_extract_users" is from
	// the step "extract-users". [Step.InputNames] lists what there is. A driver
	// must not release them.
	Inputs map[string]*DataFrame

	// TraceParent is the span of this step on the host, in the form of the W3C's
	// Trace Context, for a driver that goes on with the trace. Empty where the
	// host does not trace.
	TraceParent string

	// BasePath is where relative input paths start; empty means the current
	// directory.
	BasePath string

	// ArtifactsDir is this step's own directory; files in it are brought home.
	// Empty means the current directory.
	ArtifactsDir string

	// Files maps input paths, as the config gives them, to where they are on
	// this machine. A path that is not in it is taken as it stands.
	Files map[string]string

	FS        FS               // nil means this machine's
	Allocator memory.Allocator // nil means the default allocator
	Sink      StepSink         // nil discards events and metrics
	Logger    *slog.Logger     // nil discards

	// Env are the variables that were passed to the run; they are not
	// necessarily in the process's environment.
	Env map[string]string
}

// StepSink takes what a driver reports, until its outputs have been read to
// their ends.
type StepSink interface {
	Event(name string, fields map[string]any)
	Metric(name string, value float64, unit string)
}

// LogEvent reports something that happened, with the fields that say what.
// The step's id is added.
func (s *Step) LogEvent(name string, fields map[string]any) {
	if s.Sink != nil {
		s.Sink.Event(name, fields)
	}
}

// LogMetric reports a number. The unit is one of rows, ms, bytes, seconds,
// files, code, calls, or empty; the step's id is added as a tag.
func (s *Step) LogMetric(name string, value float64, unit string) {
	if s.Sink != nil {
		s.Sink.Metric(name, value, unit)
	}
}

// ResolvedConnection returns the fields of the step's connection, as they are
// now: credentials that last for a while may have been renewed since the step
// began. It is nil when the step has no connection.
func (s *Step) ResolvedConnection() (map[string]any, error) {
	if s.Current != nil {
		return s.Current()
	}
	fields, _ := s.Config[resolvedConnection].(map[string]any)
	return fields, nil
}

// Log returns the step's logger, which is never nil.
func (s *Step) Log() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

// Memory returns the step's allocator, which is never nil.
func (s *Step) Memory() memory.Allocator {
	if s.Allocator == nil {
		return memory.DefaultAllocator
	}
	return s.Allocator
}

// Input returns an input by name. The error lists the inputs there are.
func (s *Step) Input(name string) (*DataFrame, error) {
	if f, ok := s.Inputs[name]; ok {
		return f, nil
	}
	return nil, fmt.Errorf("input %q missing; the step has %s", name, s.inputList())
}

// OnlyInput returns the table of a driver that takes one, whatever its name. A
// step that has several is an error: which one was meant cannot be known.
func (s *Step) OnlyInput() (*DataFrame, error) {
	var only *DataFrame
	for _, name := range s.InputNames() {
		if df := s.Inputs[name]; only != nil && df != only {
			return nil, fmt.Errorf("one table is wanted; the step has %s", s.inputList())
		}
		only = s.Inputs[name]
	}
	if only == nil {
		return nil, fmt.Errorf("no table among the inputs; the step has %s", s.inputList())
	}
	return only, nil
}

// InputNames returns the names of the inputs, sorted.
func (s *Step) InputNames() []string {
	names := make([]string, 0, len(s.Inputs))
	for name := range s.Inputs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *Step) inputList() string {
	if len(s.Inputs) == 0 {
		return "no inputs"
	}
	return "inputs " + strings.Join(s.InputNames(), ", ")
}

// DecodeConfig decodes the config into v as encoding/json does, with fields of
// v by their json tags. Unknown keys are ignored, since compiled configs carry
// the component's defaults.
func (s *Step) DecodeConfig(v any) error {
	b, err := json.Marshal(s.Config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) {
			return fmt.Errorf("config key %q: want %s, have %s", typeErr.Field, typeErr.Type, typeErr.Value)
		}
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

// Open opens an input file by the path the config gives. A relative path
// starts at BasePath.
func (s *Step) Open(name string) (File, error) {
	f, err := s.fs().Open(s.InputPath(name))
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

// InputPath returns where [Step.Open] finds a file.
func (s *Step) InputPath(name string) string {
	if mapped, ok := s.Files[name]; ok {
		return mapped
	}
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.BasePath, name)
}

// Create makes an output file by the path the config gives, and the
// directories above it. The file is an artifact of the step: a relative path
// starts at ArtifactsDir, and so does an absolute one, less its root, so that
// a run leaves the same files wherever it runs. A path that leaves
// ArtifactsDir is an error.
func (s *Step) Create(name string) (File, error) {
	resolved, err := s.ArtifactPath(name)
	if err != nil {
		return nil, err
	}
	if err := s.fs().MkdirAll(filepath.Dir(resolved)); err != nil {
		return nil, pathError("create", name, err)
	}
	f, err := s.fs().Create(resolved)
	if err != nil {
		return nil, pathError("create", name, err)
	}
	return f, nil
}

// ArtifactPath returns where [Step.Create] puts a file.
func (s *Step) ArtifactPath(name string) (string, error) {
	local := filepath.Clean(strings.TrimLeft(filepath.ToSlash(name[len(filepath.VolumeName(name)):]), "/"))
	if name == "" || local == "." || !filepath.IsLocal(local) {
		return "", fmt.Errorf("output path %q leaves the step's artifacts directory; use a path without %q", name, "..")
	}
	if local == cleanedConfig {
		return "", fmt.Errorf("output path %q is the worker's own; use another name", name)
	}
	return filepath.Join(s.ArtifactsDir, local), nil
}

func (s *Step) fs() FS {
	if s.FS == nil {
		return OSFS{}
	}
	return s.FS
}

// pathError names the path as the config gives it, not where it was mapped to.
func pathError(op, name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
