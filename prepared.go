package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Manifest is a compiled pipeline: what to run, with which drivers, in which
// order. [LoadManifest] reads the compiler's files; a program may also make
// one by hand, from Steps alone.
type Manifest struct {
	Name     string
	Pipeline map[string]any // id, version, fingerprints
	Meta     map[string]any // profile, oml_version, manifest_hash, ...
	Metadata map[string]any // intent, source_manifest_path, ...
	Steps    []Step

	// PythonDrivers declares drivers in Python that steps may name.
	PythonDrivers []PythonDriver

	Extra map[string]any // keys that are none of the above, kept
}

// Step is one step of a [Manifest].
type Step struct {
	ID        string
	Component string
	Driver    string              // empty means Component
	CfgPath   string              // where the config came from, as "cfg/<id>.json"; may be empty
	Config    map[string]any      // numbers may be json.Number
	Needs     []string            // ids of the steps that must succeed first
	Inputs    map[string]InputRef // by name; empty means the "df" of every step in Needs

	// Repeatable says that the step may run again when the worker died in it,
	// see [Config].Restarts: that a try which was broken off has left nothing
	// outside of the step's artifacts that a second one would double or miss.
	Repeatable bool

	Extra map[string]any // keys that are none of the above, kept
}

// InputRef names an output of another step, or a table of the host's.
type InputRef struct {
	FromStep string `json:"from_step,omitempty"`
	Key      string `json:"key"`             // empty means "df"
	Table    string `json:"table,omitempty"` // of [ExecutionContext].Tables; the other two are empty then
}

// DriverName returns Driver, or Component where that is empty.
func (s Step) DriverName() string {
	if s.Driver != "" {
		return s.Driver
	}
	return s.Component
}

// hasStep reports whether there is a step of this id.
func (m *Manifest) hasStep(id string) bool {
	return m != nil && slices.ContainsFunc(m.Steps, func(s Step) bool { return s.ID == id })
}

// ID returns the pipeline's id, or its name where it has none.
func (m *Manifest) ID() string {
	if id, ok := m.Pipeline["id"].(string); ok && id != "" {
		return id
	}
	return m.Name
}

// Profile returns the profile that the pipeline was compiled for; may be empty.
func (m *Manifest) Profile() string {
	p, _ := m.Meta["profile"].(string)
	return p
}

// maxManifestBytes bounds a manifest, and each config file beside it.
const maxManifestBytes = 64 << 20

// LoadManifest reads a compiled manifest, YAML or JSON, and the config files
// that its steps name, from the manifest's own directory. Its path is kept as
// given under Metadata["source_manifest_path"]. An error about its content is
// a [*ManifestError].
func LoadManifest(name string) (*Manifest, error) {
	b, err := readFile(os.DirFS(filepath.Dir(name)), filepath.Base(name))
	if err != nil {
		return nil, fmt.Errorf("remote: manifest %s: %w", name, cause(err))
	}
	m, err := ParseManifest(b, os.DirFS(filepath.Dir(name)))
	if err != nil {
		var me *ManifestError
		if errors.As(err, &me) {
			me.Path = name
		}
		return nil, err
	}
	if m.Metadata == nil {
		m.Metadata = make(map[string]any)
	}
	m.Metadata["source_manifest_path"] = name
	return m, nil
}

// ParseManifest decodes a compiled manifest, YAML or JSON, and reads the
// config files that its steps name from cfg. Nil cfg means that there are
// none, and a step that names one is an error.
func ParseManifest(data []byte, cfg fs.FS) (*Manifest, error) {
	doc, err := decodeDocument(data)
	if err != nil {
		return nil, &ManifestError{Reason: err.Error()}
	}
	if err := refuseOtherDocuments(doc); err != nil {
		return nil, err
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, &ManifestError{Reason: err.Error()}
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, &ManifestError{Reason: strings.TrimPrefix(err.Error(), "json: ")}
	}
	for i := range m.Steps {
		if err := m.Steps[i].loadConfig(cfg); err != nil {
			return nil, &ManifestError{StepID: m.Steps[i].ID, Reason: err.Error()}
		}
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// refuseOtherDocuments tells a compiled manifest from what users confuse it
// with, and says what to do.
func refuseOtherDocuments(doc map[string]any) error {
	has := func(key string) bool { _, ok := doc[key]; return ok }
	refuse := func(reason string) error { return &ManifestError{Reason: reason} }
	steps, _ := doc["steps"].([]any)
	switch {
	case has("oml_version"):
		return refuse("this is an OML pipeline, not a compiled manifest; compile it first, and pass the manifest.yaml that comes out")
	case !has("steps") && (has("extract") || has("transform") || has("load")):
		return refuse("this is a pipeline in the extract/transform/load format from before OML, which cannot be run; rewrite it as OML and compile it")
	case !has("steps"):
		return refuse("it has no steps, so this is not a compiled manifest")
	}
	for i, s := range steps {
		step, _ := s.(map[string]any)
		if _, typed := step["type"]; typed && step["id"] == nil {
			return refuse(fmt.Sprintf("step %d has the old key %q and no id; this is a pipeline in a format before OML, which cannot be run; rewrite it as OML and compile it", i+1, "type"))
		}
		if _, uses := step["uses"]; uses {
			return refuse(fmt.Sprintf("step %d has the old key %q; this is a pipeline in a format before OML, which cannot be run; rewrite it as OML and compile it", i+1, "uses"))
		}
	}
	for _, key := range []string{"pipeline", "meta"} {
		if !has(key) {
			return refuse(fmt.Sprintf("it has no %q, so this is not a compiled manifest; compile the pipeline first", key))
		}
	}
	return nil
}

// legacyDriver reports whether a name is a versioned one of manifests before
// 0.5, as "extractors.supabase@0.1".
func legacyDriver(name string) bool {
	kind, rest, _ := strings.Cut(name, ".")
	return (kind == "extractors" || kind == "transforms" || kind == "writers") && strings.Contains(rest, "@")
}

func (s *Step) loadConfig(cfg fs.FS) error {
	if s.CfgPath == "" {
		return nil
	}
	if !fs.ValidPath(s.CfgPath) || s.CfgPath == "." {
		return fmt.Errorf("cfg_path %q must be a relative path below the manifest's directory", s.CfgPath)
	}
	if legacyDriver(s.DriverName()) {
		return nil // Validate refuses it with a better reason than a missing file
	}
	if cfg == nil {
		return fmt.Errorf("cfg_path %q, but there are no config files", s.CfgPath)
	}
	b, err := readFile(cfg, s.CfgPath)
	if err != nil {
		return fmt.Errorf("config file %s: %w", s.CfgPath, cause(err))
	}
	config, err := decodeDocument(b)
	if err != nil {
		return fmt.Errorf("config file %s: %w", s.CfgPath, err)
	}
	s.Config = config
	return nil
}

// Validate checks what can be checked without running: ids and drivers are
// there, ids are unique and can name folders, needs and inputs refer to other
// steps, and nothing waits for itself. The error is a [*ManifestError].
func (m *Manifest) Validate() error {
	if m == nil || len(m.Steps) == 0 {
		return &ManifestError{Reason: "it has no steps"}
	}
	index := make(map[string]int, len(m.Steps))
	for i, s := range m.Steps {
		fail := func(format string, args ...any) error {
			return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf(format, args...)}
		}
		switch first, taken := index[s.ID]; {
		case s.ID == "":
			return &ManifestError{Reason: fmt.Sprintf("step %d has no id", i+1)}
		case taken:
			return fail("the id is used by steps %d and %d; ids must be unique", first+1, i+1)
		case strings.EqualFold(s.ID, systemArtifacts):
			return fail("the id is reserved for the run's own artifacts")
		case !validName(s.ID):
			return fail("the id cannot name a folder; use letters, digits, dots, dashes and underscores")
		case s.CfgPath != "" && (!fs.ValidPath(s.CfgPath) || !strings.HasPrefix(s.CfgPath, "cfg/")):
			return fail("cfg_path %q must be a relative path below cfg/", s.CfgPath)
		case s.DriverName() == "":
			return fail("it has no driver")
		case legacyDriver(s.DriverName()):
			return fail("driver %q is a versioned name of an old manifest, which cannot be run; compile the pipeline anew", s.DriverName())
		}
		index[s.ID] = i
	}
	for _, s := range m.Steps {
		for _, need := range s.Needs {
			if _, ok := index[need]; !ok {
				return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf("it needs %q, and there is no such step", need)}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
			ref := s.Inputs[name]
			from := ref.FromStep
			if ref.Table != "" {
				if from != "" || ref.Key != "" || name == "" {
					return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf("input %q is the table %q and an output of a step at once, or has no name", name, ref.Table)}
				}
				continue
			}
			if _, ok := index[from]; !ok || name == "" {
				return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf("input %q is from step %q, and there is no such step", name, from)}
			}
		}
	}
	if cycle := m.findCycle(index); cycle != nil {
		return &ManifestError{StepID: cycle[0], Reason: "steps wait for each other: " + strings.Join(cycle, " needs ")}
	}
	return nil
}

// upstream returns the steps that s waits for: its needs and where its inputs
// come from, each once.
func (s Step) upstream() []string {
	seen := make(map[string]bool, len(s.Needs))
	var ids []string
	add := func(id string) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, id := range s.Needs {
		add(id)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
		if s.Inputs[name].Table == "" {
			add(s.Inputs[name].FromStep)
		}
	}
	return ids
}

// findCycle returns the ids along a cycle, the first one again at the end, or
// nil. It does not recurse: a chain may be as long as the manifest.
func (m *Manifest) findCycle(index map[string]int) []string {
	const (
		unseen = iota
		onPath
		done
	)
	state := make([]int, len(m.Steps))
	type frame struct {
		step int
		ups  []string
	}
	for start := range m.Steps {
		if state[start] != unseen {
			continue
		}
		path := []frame{{start, m.Steps[start].upstream()}}
		state[start] = onPath
		for len(path) > 0 {
			top := &path[len(path)-1]
			if len(top.ups) == 0 {
				state[top.step] = done
				path = path[:len(path)-1]
				continue
			}
			next := index[top.ups[0]]
			top.ups = top.ups[1:]
			switch state[next] {
			case unseen:
				state[next] = onPath
				path = append(path, frame{next, m.Steps[next].upstream()})
			case onPath:
				var cycle []string
				for _, f := range path {
					if f.step == next || len(cycle) > 0 {
						cycle = append(cycle, m.Steps[f.step].ID)
					}
				}
				return append(cycle, m.Steps[next].ID)
			}
		}
	}
	return nil
}

// MarshalJSON writes the manifest with the compiler's keys, the unknown ones
// included. The config of a step that came from a file is left out, as in the
// compiler's own output.
func (m *Manifest) MarshalJSON() ([]byte, error) { return json.Marshal(m.document(false)) }

// document returns the manifest as its file has it; withConfigs puts every
// config into its step.
func (m *Manifest) document(withConfigs bool) map[string]any {
	doc := maps.Clone(m.Extra)
	if doc == nil {
		doc = make(map[string]any)
	}
	set := func(key string, v map[string]any) {
		if v != nil {
			doc[key] = v
		}
	}
	if m.Name != "" {
		doc["name"] = m.Name
	}
	set("pipeline", m.Pipeline)
	set("meta", m.Meta)
	set("metadata", m.Metadata)
	steps := make([]any, len(m.Steps))
	for i, s := range m.Steps {
		steps[i] = s.document(withConfigs)
	}
	doc["steps"] = steps
	if len(m.PythonDrivers) > 0 {
		doc["python_drivers"] = m.PythonDrivers
	}
	return doc
}

func (s Step) document(withConfig bool) map[string]any {
	doc := maps.Clone(s.Extra)
	if doc == nil {
		doc = make(map[string]any)
	}
	for key, v := range map[string]string{"id": s.ID, "component": s.Component, "driver": s.Driver, "cfg_path": s.CfgPath} {
		if v != "" {
			doc[key] = v
		}
	}
	doc["needs"] = append([]string{}, s.Needs...)
	if len(s.Inputs) > 0 {
		doc["inputs"] = s.Inputs
	}
	if s.Repeatable {
		doc["repeatable"] = true
	}
	if s.Config != nil && (withConfig || s.CfgPath == "") {
		doc["config"] = s.Config
	}
	return doc
}

// UnmarshalJSON reads what MarshalJSON writes, and the compiler's manifests.
func (m *Manifest) UnmarshalJSON(b []byte) error {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	*m = Manifest{}
	return takeKeys("manifest", doc, &m.Extra, map[string]any{
		"name": &m.Name, "pipeline": &m.Pipeline, "meta": &m.Meta, "metadata": &m.Metadata, "steps": &m.Steps,
		"python_drivers": &m.PythonDrivers,
	})
}

// UnmarshalJSON reads a step of a manifest.
func (s *Step) UnmarshalJSON(b []byte) error {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("a step is not an object")
	}
	*s = Step{}
	return takeKeys("step", doc, &s.Extra, map[string]any{
		"id": &s.ID, "component": &s.Component, "driver": &s.Driver, "cfg_path": &s.CfgPath,
		"config": &s.Config, "needs": &s.Needs, "inputs": &s.Inputs, "repeatable": &s.Repeatable,
	})
}

// takeKeys decodes the keys of doc that are known and puts the others into
// extra.
func takeKeys(what string, doc map[string]json.RawMessage, extra *map[string]any, known map[string]any) error {
	for key, raw := range doc {
		if target, ok := known[key]; ok {
			if err := decodeNumbers(raw, target); err != nil {
				return fmt.Errorf("%s key %q: %s", what, key, strings.TrimPrefix(err.Error(), "json: "))
			}
			continue
		}
		var v any
		if err := decodeNumbers(raw, &v); err != nil {
			return err
		}
		if *extra == nil {
			*extra = make(map[string]any)
		}
		(*extra)[key] = v
	}
	return nil
}

func decodeNumbers(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return dec.Decode(v)
}

// decodeDocument decodes YAML or JSON into what encoding/json decodes into,
// with json.Number for numbers.
func decodeDocument(data []byte) (map[string]any, error) {
	trimmed := bytes.TrimLeft(bytes.TrimPrefix(data, []byte("\ufeff")), " \t\r\n")
	if len(trimmed) > 0 && trimmed[0] == '{' {
		dec := json.NewDecoder(bytes.NewReader(trimmed))
		dec.UseNumber()
		var doc map[string]any
		err := dec.Decode(&doc)
		if err == nil {
			if _, more := dec.Token(); more != io.EOF {
				err = errors.New("there is more after the JSON document")
			}
		}
		if err == nil {
			return doc, nil
		}
		if json.Valid(trimmed) {
			return nil, err
		}
		// A YAML flow mapping may look like JSON; if it is neither, the YAML
		// error has the line.
	}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&root); err != nil {
		if err == io.EOF {
			return nil, errors.New("it is empty")
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var second yaml.Node
	if err := dec.Decode(&second); err != io.EOF {
		return nil, errors.New("there is more than one YAML document")
	}
	keepText(&root)
	var v any
	if err := root.Decode(&v); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("it is not a mapping")
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	out := make(map[string]any)
	return out, decodeNumbers(b, &out)
}

// keepText keeps what YAML takes for a time as the text it was written as.
func keepText(root *yaml.Node) {
	nodes := []*yaml.Node{root}
	for len(nodes) > 0 {
		n := nodes[len(nodes)-1]
		nodes = append(nodes[:len(nodes)-1], n.Content...)
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!timestamp" {
			n.Tag = "!!str"
		}
	}
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err == nil && len(b) > maxManifestBytes {
		err = fmt.Errorf("file is larger than %d MiB", maxManifestBytes>>20)
	}
	return b, err
}

// cause strips the operation and path from a file error: the message around
// it has the path as the user gave it.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// PreparedRun is a run that is ready to be executed, here or on another host, by
// an adapter of the kind that prepared it: it holds no secret value and no host
// path except as given, and the same manifest, context and Config give the same
// bytes.
type PreparedRun struct {
	SchemaVersion int `json:"schema_version"`

	Plan                *Manifest                 `json:"plan"`
	ResolvedConnections map[string]ConnectionRef  `json:"resolved_connections"` // by reference, as "@mysql.db"
	CfgIndex            map[string]map[string]any `json:"cfg_index"`            // configs by path, as "cfg/<step>.json"
	IOLayout            map[string]string         `json:"io_layout"`            // names in the session directory
	RunParams           RunParams                 `json:"run_params"`
	Constraints         Constraints               `json:"constraints"`
	Metadata            RunMetadata               `json:"metadata"`
	CompiledRoot        *string                   `json:"compiled_root"` // the manifest's directory as given; null when it came from no file

	Package       Package       `json:"package"`
	SandboxConfig SandboxConfig `json:"sandbox_config"`

	// InputFiles are the files that configs refer to, as they name them. They
	// are sent to a sandbox with the run.
	InputFiles []string `json:"input_files"`

	// Tables are the tables of the host that steps have as inputs, sorted by name,
	// and Keep the outputs that are kept for it.
	Tables []PreparedTable `json:"tables,omitempty"`
	Keep   []OutputName    `json:"keep,omitempty"`

	// PythonDrivers are the drivers of the plan that are in Python, as the Config
	// or the manifest declares them, sorted by name.
	PythonDrivers []PythonDriver `json:"python_drivers,omitempty"`
}

// UnmarshalJSON reads a run that was stored. Numbers in configs keep their
// text.
func (p *PreparedRun) UnmarshalJSON(b []byte) error {
	type plain PreparedRun
	return decodeNumbers(b, (*plain)(p))
}

// validate checks what may have happened to a run while it was stored.
func (p *PreparedRun) validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("remote: execute: %w: the prepared run %s; prepare it again", ErrInvalid, fmt.Sprintf(format, args...))
	}
	for _, s := range p.Plan.Steps {
		if p.CfgIndex[s.cfgPath()] == nil {
			return fail("has no config %s", s.cfgPath())
		}
	}
	if float64(p.SandboxConfig.TimeoutSeconds) < p.Constraints.TimeoutSeconds {
		return fail("may take %g seconds, and its sandbox has %d", p.Constraints.TimeoutSeconds, p.SandboxConfig.TimeoutSeconds)
	}
	for _, seconds := range []float64{p.Constraints.TimeoutSeconds, p.RunParams.StepTimeoutSeconds} {
		if !(seconds >= 0 && seconds < 1e9) {
			return fail("has a timeout of %g seconds", seconds)
		}
	}
	if s := p.SandboxConfig; s.LeaseSeconds < 0 || s.LeaseSeconds > 0 && s.lease() < minLease || s.lease() > maxLease {
		return fail("has a lease of %d seconds", s.LeaseSeconds)
	}
	switch p.SandboxConfig.OnHostLoss {
	case "", Kill, Pause:
	default:
		return fail("has the choice on_host_loss %q", p.SandboxConfig.OnHostLoss)
	}
	if p.RunParams.OnFailure != StopAll && p.RunParams.OnFailure != StopDependents {
		return fail("has the failure policy %q", p.RunParams.OnFailure)
	}
	if p.RunParams.Concurrency < 0 {
		return fail("has a concurrency of %d", p.RunParams.Concurrency)
	}
	if p.RunParams.Restarts < 0 {
		return fail("has %d restarts", p.RunParams.Restarts)
	}
	return nil
}

// SchemaVersion is the version of [PreparedRun]'s JSON form.
const SchemaVersion = 1

// ConnectionRef stands for a connection that a step refers to.
type ConnectionRef struct {
	Ref      string `json:"ref"`      // as "@family.alias", or "@family" for the family's default
	Resolved bool   `json:"resolved"` // always false in a PreparedRun: values are not kept

	// Fields are those of the connection, with their ${NAME} placeholders and
	// without secret values, where Config.Connections can describe it.
	Fields map[string]any `json:"fields,omitempty"`
}

// RunParams are the choices of a run.
type RunParams struct {
	SessionID          string    `json:"session_id"`
	StartedAt          string    `json:"started_at"` // RFC 3339, UTC
	Adapter            string    `json:"adapter"`    // "local" or "e2b_transparent_proxy"
	Concurrency        int       `json:"concurrency"`
	StepTimeoutSeconds float64   `json:"step_timeout_seconds"` // zero means none
	OnFailure          OnFailure `json:"on_failure"`
	Restarts           int       `json:"restarts,omitempty"` // of a worker that dies
	PassEnv            []string  `json:"pass_env"`           // names of the variables that will be passed
}

// Constraints are the limits of a run. Zero means none.
type Constraints struct {
	TimeoutSeconds float64 `json:"timeout_seconds"`
	MaxMemoryGB    float64 `json:"max_memory_gb"`
	CPUCount       int     `json:"cpu_count"`
}

// RunMetadata describes a run to people and indexes.
type RunMetadata struct {
	SessionID    string `json:"session_id"`
	CreatedAt    string `json:"created_at"` // RFC 3339, UTC
	PipelineName string `json:"pipeline_name"`
	PipelineID   string `json:"pipeline_id"`
	StepCount    int    `json:"step_count"`
	ManifestHash string `json:"manifest_hash,omitempty"` // as the compiler gave it
}

// Package is the specification's package: what a run is made of. Where the
// specification has values of connections and variables, this has ${NAME}
// placeholders, so that it can be stored and shown.
type Package struct {
	Manifest    map[string]any           `json:"manifest"` // with every config in its step
	Connections map[string]ConnectionRef `json:"connections"`
	Environment map[string]string        `json:"environment"` // name to "${name}"
}

// formatTime writes times as PreparedRun keeps them.
func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// cfgPath is where a step's config is kept in a session directory.
func (s Step) cfgPath() string {
	if s.CfgPath != "" {
		return s.CfgPath
	}
	return path.Join("cfg", s.ID+".json")
}
