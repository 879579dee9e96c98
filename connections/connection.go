package connections

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/secrets"
)

// Connection is what a reference stands for.
type Connection struct {
	Family string
	Alias  string // as the file names it, also when it was found as the default
	// Fields are its settings: texts, numbers, truth values, nil, []any and
	// map[string]any. Placeholders are filled. Secret ones, at any depth, are
	// secrets.Value; the package comment says which ones are.
	Fields map[string]any
	// RefreshAt is when Resolve should be asked again, since its values change.
	// Zero: they hold for the run.
	RefreshAt time.Time

	// sealed: its secrets are secrets.Value already.
	sealed bool
	// parts are what has been filled into secret texts, and is as secret.
	parts []secrets.Value
}

// Resolver finds connections: in files, or in a host's vault.
//
// Resolve is called while a run begins, and again after RefreshAt, possibly by
// several goroutines at once. The caller may keep and change what it returns.
// A resolver that knows nothing of ref returns an error that wraps
// [ErrNotConfigured]; no error may hold a value. Call it through [Resolve].
type Resolver interface {
	Resolve(ctx context.Context, ref Reference) (*Connection, error)
}

// Describer is a [Resolver] that can tell about a connection without its
// values: placeholders stay as ${NAME}, secrets are masked. It is optional, and
// is asked by Prepare and in dry runs, where variables need not be set.
type Describer interface {
	Describe(ref Reference) (*Connection, error)
}

// Resolve asks a resolver for a connection and sees to it that Family and Alias
// are there and that secret values are [secrets.Value], whatever the resolver
// has made them. A nil resolver knows no connections.
func Resolve(ctx context.Context, r Resolver, ref Reference) (*Connection, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r == nil {
		return nil, notConfigured(ref)
	}
	c, err := r.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, notConfigured(ref)
	}
	out := *c
	if !out.sealed {
		if out.Fields, err = seal(c.Fields); err != nil {
			return nil, err
		}
		out.sealed = true
	}
	if out.Family == "" {
		out.Family = ref.Family
	}
	if out.Alias == "" {
		out.Alias = ref.Alias
	}
	return &out, nil
}

// notConfigured is of a resolver that has no connections at all.
func notConfigured(ref Reference) error {
	return errorOf(ErrNotConfigured, "No connections configured. Create osiris_connections.yaml with %s connections.", ref.Family)
}

// Plain returns a copy of Fields with the secrets in plain text. It is for the
// one place that hands them to a driver: what it returns must not be logged,
// stored or put into an error.
func (c *Connection) Plain() map[string]any {
	out, _ := plain(c.Fields).(map[string]any)
	return out
}

func plain(v any) any {
	switch v := v.(type) {
	case secrets.Value:
		return v.Reveal()
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	}
	return v
}

// Secrets returns every text that must not appear anywhere, for
// [secrets.NewRedactor]: the secret values, and the passwords and tokens within
// them, as they stand there and decoded. Sorted, without empty ones.
func (c *Connection) Secrets() []string {
	known := make(map[string]struct{})
	var j judge
	fields := c.Fields
	if !c.sealed {
		fields, _ = j.sealed(fields, "", true, false).(map[string]any)
	}
	walkSecrets(fields, func(v secrets.Value) {
		s := v.Reveal()
		known[s] = struct{}{}
		for _, part := range j.credentials(s, true) {
			known[part] = struct{}{}
		}
	})
	for _, part := range c.parts {
		known[part.Reveal()] = struct{}{}
	}
	delete(known, "")
	return slices.Sorted(maps.Keys(known))
}

func walkSecrets(v any, found func(secrets.Value)) {
	switch v := v.(type) {
	case secrets.Value:
		found(v)
	case map[string]any:
		for _, e := range v {
			walkSecrets(e, found)
		}
	case []any:
		for _, e := range v {
			walkSecrets(e, found)
		}
	}
}

// ResolverFunc is a function as a [Resolver]: a vault's client, say.
type ResolverFunc func(ctx context.Context, ref Reference) (*Connection, error)

// Resolve calls f.
func (f ResolverFunc) Resolve(ctx context.Context, ref Reference) (*Connection, error) {
	return f(ctx, ref)
}

// First asks several resolvers in their order. One that answers
// [ErrNotConfigured], or nil without an error, passes the question on; any
// other error ends the search. When none knows it, the error names the reasons
// of all.
func First(resolvers ...Resolver) Resolver { return first(resolvers) }

type first []Resolver

func (f first) Resolve(ctx context.Context, ref Reference) (*Connection, error) {
	var none reasons
	for _, r := range f {
		c, err := Resolve(ctx, r, ref)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, ErrNotConfigured) {
			return nil, err
		}
		none = append(none, err)
	}
	return nil, none.err(ref)
}

// Describe asks those resolvers that are a [Describer]. Where none of them
// knows it, and there are others, these may: then nothing is known of it, not
// even its fields.
func (f first) Describe(ref Reference) (*Connection, error) {
	var (
		none   reasons
		others bool
	)
	for _, r := range f {
		d, ok := r.(Describer)
		if !ok {
			others = others || r != nil
			continue
		}
		c, err := d.Describe(ref)
		if err == nil && c != nil {
			return c, nil
		}
		if err != nil && !errors.Is(err, ErrNotConfigured) {
			return nil, err
		}
		if err != nil {
			none = append(none, err)
		}
	}
	if others {
		return &Connection{Family: ref.Family, Alias: ref.Alias}, nil
	}
	return nil, none.err(ref)
}

// reasons are why none of several resolvers knows a connection.
type reasons []error

func (r reasons) err(ref Reference) error {
	switch len(r) {
	case 0:
		return notConfigured(ref)
	case 1:
		return r[0]
	}
	return r
}

func (r reasons) Error() string {
	texts := make([]string, len(r))
	for i, err := range r {
		texts[i] = err.Error()
	}
	return strings.Join(slices.Compact(texts), "; ")
}

func (r reasons) Unwrap() []error { return r }

// Static are connections in a program, for tests: fields by reference,
// "@mysql.db_movies". Defaults are chosen as in a file. Placeholders are text.
type Static map[string]map[string]any

// Resolve finds ref. Errors are [ErrNotConfigured], and [ErrReference] for a
// key that is none.
func (s Static) Resolve(_ context.Context, ref Reference) (*Connection, error) {
	var families []family
	for _, key := range slices.Sorted(maps.Keys(s)) {
		r, ok, err := ParseReference(key)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errorOf(ErrReference, "Invalid connection reference format: '%s'. Expected '@family.alias'", key)
		}
		i := slices.IndexFunc(families, func(f family) bool { return f.name == r.Family })
		if i < 0 {
			i = len(families)
			families = append(families, family{name: r.Family})
		}
		chosen, _ := s[key][defaultKey].(bool)
		families[i].aliases = append(families[i].aliases, alias{name: r.Alias, chosen: chosen})
	}
	a, err := choose(families, ref)
	if err != nil {
		return nil, err
	}
	fields, err := seal(s[Reference{ref.Family, a.name}.String()])
	if err != nil {
		return nil, err
	}
	delete(fields, defaultKey)
	return &Connection{Family: ref.Family, Alias: a.name, Fields: fields, sealed: true}, nil
}

// Describe is Resolve with the secrets masked.
func (s Static) Describe(ref Reference) (*Connection, error) {
	c, err := s.Resolve(context.Background(), ref)
	if err != nil {
		return nil, err
	}
	c.Fields, _ = masked(c.Fields).(map[string]any)
	return c, nil
}

// masked is a copy with masks in place of secrets.
func masked(v any) any {
	switch v := v.(type) {
	case secrets.Value:
		return secrets.Masked
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = masked(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = masked(e)
		}
		return out
	}
	return v
}

// defaultKey is the field that makes a connection its family's default. It is
// not passed on.
const defaultKey = "default"

// family has the connections of one kind, in the order of their file.
type family struct {
	name    string
	aliases []alias
}

type alias struct {
	name   string
	chosen bool    // default: true
	fields []field // of a file
}

// choose finds a reference's alias: by name, or the first with default: true,
// or the one that is called "default".
func choose(families []family, ref Reference) (alias, error) {
	if len(families) == 0 {
		return alias{}, notConfigured(ref)
	}
	i := slices.IndexFunc(families, func(f family) bool { return f.name == ref.Family })
	if i < 0 {
		names := make([]string, len(families))
		for i, f := range families {
			names[i] = f.name
		}
		return alias{}, errorOf(ErrNotConfigured, "Connection family '%s' not found. Available families: %s", ref.Family, list(names))
	}
	f := families[i]
	if len(f.aliases) == 0 {
		return alias{}, errorOf(ErrNotConfigured, "No connections defined for family '%s'", f.name)
	}
	wanted := ref.Alias
	if wanted == "" {
		for _, a := range f.aliases {
			if a.chosen {
				return a, nil
			}
		}
		wanted = "default"
	}
	names := make([]string, len(f.aliases))
	for i, a := range f.aliases {
		if a.name == wanted {
			return a, nil
		}
		names[i] = a.name
	}
	if ref.Alias == "" {
		return alias{}, errorOf(ErrNotConfigured, "No default connection for family '%s'. Available aliases: %s. "+
			"Either: 1) Set 'default: true' on an alias, 2) Name an alias 'default', or 3) Specify an alias explicitly.", f.name, list(names))
	}
	return alias{}, errorOf(ErrNotConfigured, "Connection alias '%s' not found in family '%s'. Available aliases: %s", ref.Alias, f.name, list(names))
}

func list(names []string) string {
	slices.Sort(names)
	return strings.Join(names, ", ")
}
