package connections

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/osiris-pipelines/remote/secrets"
)

// FileName is what a file of connections is called.
const FileName = "osiris_connections.yaml"

// Limits of a file. Those on what it contains hold after its aliases (*name)
// are expanded.
const (
	maxFileBytes = 1 << 20
	maxTextBytes = 4 << 20
	maxValues    = 100_000
	maxDepth     = 50
	maxKeyBytes  = 256
)

// File is the content of an osiris_connections.yaml. It is a [Resolver] and a
// [Describer]. The zero File has no connections.
type File struct {
	// Path of the file, for messages.
	Path string
	// Lookup finds the variables of placeholders. Nil is os.LookupEnv. It is
	// asked at each Resolve.
	Lookup func(name string) (string, bool)

	families []family
}

// Load reads a file, 1 MiB at most. Errors are [*FileError], and those of
// os.Open.
func Load(path string) (*File, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	f, err := Parse(data)
	if err != nil {
		return nil, inFile(err, path)
	}
	f.Path = path
	return f, nil
}

// Parse reads the content of a file: a YAML mapping whose "connections" has
// families, with aliases, with fields. Other keys beside it mean nothing; an
// empty file, or none of them, has no connections. Anchors and merges work. A
// key that stands twice in a mapping, which YAML forbids and the reference
// implementation overlooks, is an error. Errors are [*FileError].
func Parse(data []byte) (*File, error) {
	if len(data) > maxFileBytes {
		return nil, tooLarge(maxFileBytes)
	}
	root, err := parseYAML(data)
	if err != nil {
		return nil, err
	}
	f := &File{}
	if root == nil {
		return f, nil
	}
	r := &reader{}
	top, err := r.members(root, "the file")
	if err != nil {
		return nil, err
	}
	for _, section := range top {
		if section.key != "connections" {
			continue
		}
		families, err := r.members(section.value, "connections")
		if err != nil {
			return nil, err
		}
		for _, member := range families {
			fam := family{name: member.key}
			aliases, err := r.members(member.value, "the family "+member.key)
			if err != nil {
				return nil, err
			}
			for _, m := range aliases {
				a, err := r.alias(m, fam.name)
				if err != nil {
					return nil, err
				}
				fam.aliases = append(fam.aliases, a)
			}
			f.families = append(f.families, fam)
		}
	}
	return f, nil
}

// Resolve finds ref and fills in its placeholders. Errors are
// [ErrNotConfigured] and [*UnsetError].
func (f *File) Resolve(ctx context.Context, ref Reference) (*Connection, error) {
	a, err := choose(f.families, ref)
	if err != nil {
		return nil, err
	}
	fill := filler{lookup: f.Lookup, ref: Reference{ref.Family, a.name}}
	if fill.lookup == nil {
		fill.lookup = os.LookupEnv
	}
	fields, err := fill.members(a.fields, false)
	if err != nil {
		return nil, err
	}
	return &Connection{Family: ref.Family, Alias: a.name, Fields: fields, sealed: true, parts: fill.parts}, nil
}

// Describe finds ref and leaves its placeholders as they are. Secrets in the
// file itself are masked; of a URL only its passwords. Errors are
// [ErrNotConfigured].
func (f *File) Describe(ref Reference) (*Connection, error) {
	a, err := choose(f.families, ref)
	if err != nil {
		return nil, err
	}
	fill := filler{ref: Reference{ref.Family, a.name}}
	fields, err := fill.members(a.fields, false)
	if err != nil {
		return nil, err
	}
	return &Connection{Family: ref.Family, Alias: a.name, Fields: fields, sealed: true}, nil
}

// References are all connections of the file, in its order.
func (f *File) References() []Reference {
	var refs []Reference
	for _, fam := range f.families {
		for _, a := range fam.aliases {
			refs = append(refs, Reference{fam.name, a.name})
		}
	}
	return refs
}

// readFile reads a file that must not be large.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = inFile(tooLarge(maxFileBytes), path)
	}
	return data, err
}

func tooLarge(limit int) error {
	return &FileError{Reason: fmt.Sprintf("it is larger than %d MiB", limit>>20)}
}

func inFile(err error, path string) error {
	if fe := (*FileError)(nil); errors.As(err, &fe) {
		fe.Path = path
	}
	return err
}

// parseYAML returns the root of the only document, nil for an empty one.
func parseYAML(data []byte) (*yaml.Node, error) {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case err == io.EOF:
		return nil, nil
	case err != nil:
		return nil, yamlError(err, data)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &FileError{Line: second.Line, Reason: "there is more than one YAML document"}
	case err != io.EOF:
		return nil, yamlError(err, data)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// yamlError makes an error of the parser ours. One of them quotes the file.
func yamlError(err error, data []byte) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if name, ok := strings.CutPrefix(text, "unknown anchor '"); ok {
		name = strings.TrimSuffix(name, "' referenced")
		e := &FileError{Reason: "a value begins with * and so refers to an anchor that is not there; put it into quotes"}
		if before, _, found := bytes.Cut(data, []byte("*"+name)); found {
			e.Line = 1 + bytes.Count(before, []byte("\n"))
		}
		return e
	}
	e := &FileError{Reason: text}
	var line int
	if _, err := fmt.Sscanf(text, "line %d:", &line); err == nil {
		_, e.Reason, _ = strings.Cut(text, ": ")
		e.Line = line
	}
	return e
}

// field is a member of a mapping, in the file's order. Its value is a text, a
// scalar, nil, []field or []any.
type field struct {
	key   string
	value any
}

// scalar is a number or a truth value.
type scalar struct {
	text  string // as the file has it
	value any
}

// reader makes fields of YAML nodes and bounds what they come to.
type reader struct {
	values, bytes int
}

// member is a member of a mapping that is not read yet.
type member struct {
	key   string
	value *yaml.Node
}

func (r *reader) spend(n *yaml.Node, text string) error {
	r.values++
	r.bytes += len(text)
	if r.values > maxValues || r.bytes > maxTextBytes {
		return &FileError{Line: n.Line, Reason: fmt.Sprintf("with its aliases (*name) expanded it has more than %d values or %d MiB", maxValues, maxTextBytes>>20)}
	}
	return nil
}

// target follows an alias.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// members reads a mapping; null is an empty one. What is merged into it comes
// first, and gives way to what it says itself.
func (r *reader) members(n *yaml.Node, what string) ([]member, error) {
	return r.merged(n, what, 0)
}

func (r *reader) merged(n *yaml.Node, what string, depth int) ([]member, error) {
	n = target(n)
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, &FileError{Line: n.Line, Reason: what + " is not a mapping"}
	}
	if depth > maxDepth {
		return nil, tooDeep(n)
	}
	if err := checkTag(n, "!!map", what); err != nil {
		return nil, err
	}
	var (
		out   []member
		index = make(map[string]int)
		own   = make(map[string]int) // the line of a key
		set   = func(m member, over bool) {
			i, there := index[m.key]
			switch {
			case !there:
				index[m.key] = len(out)
				out = append(out, m)
			case over:
				out[i].value = m.value
			}
		}
		merge = func(source *yaml.Node) error {
			if target(source).Kind != yaml.MappingNode {
				return &FileError{Line: source.Line, Reason: "what << merges is not a mapping"}
			}
			if err := r.spend(source, ""); err != nil {
				return err
			}
			ms, err := r.merged(source, what, depth+1)
			for _, m := range ms {
				set(m, false)
			}
			return err
		}
	)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" {
			continue
		}
		sources := []*yaml.Node{n.Content[i+1]}
		if t := target(sources[0]); t.Kind == yaml.SequenceNode {
			sources = t.Content
		}
		for _, source := range sources {
			if err := merge(source); err != nil {
				return nil, err
			}
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := target(n.Content[i])
		if k.Kind != yaml.ScalarNode || k.Value == "" {
			return nil, &FileError{Line: n.Content[i].Line, Reason: "a key of " + what + " is not a text"}
		}
		if len(k.Value) > maxKeyBytes {
			return nil, &FileError{Line: n.Content[i].Line, Reason: fmt.Sprintf("a key of %s has more than %d bytes", what, maxKeyBytes)}
		}
		if err := r.spend(k, k.Value); err != nil {
			return nil, err
		}
		name := k.Value
		if k.ShortTag() == "!!merge" {
			name = "\x00<<" // only for the check
		}
		if first, twice := own[name]; twice {
			return nil, &FileError{Line: n.Content[i].Line, Reason: fmt.Sprintf("%q stands in %s again, after line %d", k.Value, what, first)}
		}
		own[name] = n.Content[i].Line
		if k.ShortTag() != "!!merge" {
			set(member{name, n.Content[i+1]}, true)
		}
	}
	return out, nil
}

func (r *reader) alias(m member, family string) (alias, error) {
	name := family + "." + m.key
	a := alias{name: m.key}
	fields, err := r.fields(m.value, name, 0)
	if err != nil {
		return a, err
	}
	kept := make([]field, 0, len(fields))
	for _, f := range fields {
		if f.key != defaultKey {
			kept = append(kept, f)
			continue
		}
		switch v := f.value.(type) {
		case nil:
		case scalar:
			b, ok := v.value.(bool)
			if !ok {
				return a, &FileError{Line: m.value.Line, Reason: "default of " + name + " is neither true nor false"}
			}
			a.chosen = b
		default:
			return a, &FileError{Line: m.value.Line, Reason: "default of " + name + " is neither true nor false"}
		}
	}
	a.fields = kept
	return a, nil
}

func (r *reader) fields(n *yaml.Node, what string, depth int) ([]field, error) {
	ms, err := r.members(n, what)
	if err != nil {
		return nil, err
	}
	out := make([]field, len(ms))
	for i, m := range ms {
		v, err := r.value(m.value, what+"."+m.key, depth+1)
		if err != nil {
			return nil, err
		}
		out[i] = field{m.key, v}
	}
	return out, nil
}

func (r *reader) value(n *yaml.Node, what string, depth int) (any, error) {
	n = target(n)
	if depth > maxDepth {
		return nil, tooDeep(n)
	}
	if err := r.spend(n, n.Value); err != nil {
		return nil, err
	}
	switch n.Kind {
	case yaml.MappingNode:
		return r.fields(n, what, depth)
	case yaml.SequenceNode:
		if err := checkTag(n, "!!seq", what); err != nil {
			return nil, err
		}
		out := make([]any, len(n.Content))
		for i, e := range n.Content {
			v, err := r.value(e, fmt.Sprintf("%s[%d]", what, i), depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	}
	return readScalar(n, what)
}

func tooDeep(n *yaml.Node) error {
	return &FileError{Line: n.Line, Reason: fmt.Sprintf("it is nested more than %d deep, or an alias (*name) contains itself", maxDepth)}
}

// checkTag refuses what only programs of another language can make of a value.
// It does not quote the tag: a password that is not in quotes may begin with !.
func checkTag(n *yaml.Node, want, what string) error {
	if n.ShortTag() == want {
		return nil
	}
	return &FileError{Line: n.Line, Reason: what + " has a tag that is not supported; put values that begin with ! into quotes"}
}

// readScalar reads a value as YAML 1.1 has it, the version of the reference
// implementation: yes, no, on and off are truth values, and 1e3 is a text. What
// looks like a time stays the text it is, and so does what JSON cannot hold.
func readScalar(n *yaml.Node, what string) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!str":
		if n.Style == 0 { // neither in quotes nor a block
			switch n.Value {
			case "yes", "Yes", "YES", "on", "On", "ON":
				return scalar{n.Value, true}, nil
			case "no", "No", "NO", "off", "Off", "OFF":
				return scalar{n.Value, false}, nil
			}
		}
		return n.Value, nil
	case "!!timestamp", "!!merge":
		return n.Value, nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, &FileError{Line: n.Line, Reason: what + " is not what its tag says"}
		}
		switch f, isFloat := v.(float64); {
		case strings.HasPrefix(n.Value, "0o"), isFloat && (math.IsInf(f, 0) || math.IsNaN(f)):
			return n.Value, nil
		case isFloat && strings.Trim(n.Value, "0123456789") == "" && n.Value[0] != '0':
			return scalar{n.Value, json.Number(n.Value)}, nil // a whole number that does not fit
		case isFloat && !strings.Contains(n.Value, "."):
			return n.Value, nil
		}
		return scalar{n.Value, v}, nil
	}
	return nil, checkTag(n, "!!str", what)
}

// filler makes the fields of a connection. Without a lookup it describes.
type filler struct {
	judge
	lookup func(string) (string, bool)
	ref    Reference
	parts  []secrets.Value
}

// members fills a mapping; below: everything in it is secret.
func (f *filler) members(fields []field, below bool) (map[string]any, error) {
	out := make(map[string]any, len(fields))
	for _, m := range fields {
		v, err := f.value(m.value, m.key, m.key, below || sensitive(m.key))
		if err != nil {
			return nil, err
		}
		out[m.key] = v
	}
	return out, nil
}

func (f *filler) value(v any, key, name string, below bool) (any, error) {
	switch v := v.(type) {
	case []field:
		return f.members(v, below)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			var err error
			if out[i], err = f.value(e, key, fmt.Sprintf("%s[%d]", name, i), below); err != nil {
				return nil, err
			}
		}
		return out, nil
	case scalar:
		switch {
		case !below:
			return v.value, nil
		case f.lookup == nil:
			return secrets.Masked, nil
		}
		return secrets.New(v.text), nil
	case string:
		if f.lookup == nil {
			return f.describe(v, below), nil
		}
		return f.text(v, key, name, below)
	}
	return v, nil // nil
}

// text fills in a text's placeholders, and seals it if it is secret.
func (f *filler) text(s, key, name string, below bool) (any, error) {
	var (
		out  strings.Builder
		vars []variable
	)
	for rest := s; rest != ""; {
		before, varName, after := cutPlaceholder(rest)
		out.WriteString(before)
		if rest = after; varName == "" {
			break
		}
		value, _ := f.lookup(varName)
		if value == "" {
			return nil, &UnsetError{Variable: varName, Field: name, Reference: f.ref}
		}
		out.WriteString(value)
		vars = append(vars, variable{varName, value})
	}
	text := out.String()
	if !f.secretText(key, text, vars != nil, vars, below) {
		return text, nil
	}
	for _, v := range vars {
		if v.secretWithin(s) {
			f.parts = append(f.parts, secrets.New(v.value))
		}
	}
	return secrets.New(text), nil
}

// cutPlaceholder cuts s around its first ${NAME}; name is empty if there is
// none. A name is everything up to the next brace: there is no syntax for
// defaults.
func cutPlaceholder(s string) (before, name, after string) {
	for at := 0; ; {
		i := strings.Index(s[at:], "${")
		if i < 0 {
			return s, "", ""
		}
		at += i
		n := strings.IndexByte(s[at+2:], '}')
		if n < 0 {
			return s, "", ""
		}
		if n > 0 {
			return s[:at], s[at+2 : at+2+n], s[at+3+n:]
		}
		at += 2
	}
}
