package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// runSecrets is what a run needs and nobody else may know: values that were
// found on this host, are in its memory, and go to the worker sealed.
type runSecrets struct {
	redact *secrets.Redactor // knows all of them
	env    map[string]string

	sending sync.Mutex                                               // held while a message is on its way: it has parts
	tap     func(ctx context.Context, l *link, m *rpc.Secrets) error // for tests: gets each message before it is sealed

	mu          sync.Mutex
	connections map[string]*connections.Connection // by reference
	absent      map[string]bool                    // defaults that are not configured
	past        []string                           // what they have had before, the newest at the end
}

// mostPast is how many values of the past a worker that is started again is told
// not to tell.
const mostPast = 1000

// resolveTimeout bounds one question to a resolver.
const resolveTimeout = 30 * time.Second

// newSecrets returns what is known before anything was looked for: the key of
// the account.
func (e *engine) newSecrets() *runSecrets {
	k := &runSecrets{redact: secrets.NewRedactor(e.cfg.apiKeys()...), connections: make(map[string]*connections.Connection), absent: make(map[string]bool)}
	if e.unprotect != nil {
		e.unprotect(k)
	}
	return k
}

// lookup finds the variables that a run passes, once.
func (k *runSecrets) lookup(cfg Config, p *PreparedRun) error {
	if k.env != nil {
		return nil
	}
	env, err := cfg.lookupEnv(p.RunParams.PassEnv)
	if err != nil {
		return err
	}
	for _, v := range env {
		k.redact.Add(withParts(v)...)
	}
	k.env = env
	return nil
}

// withParts returns a value of a variable, and the secrets in it: of the URL of a
// package index its password or token, of a DSN its password.
func withParts(value string) []string {
	fields := map[string]any{"": secrets.New(value)}
	for _, part := range strings.Fields(value) { // a list of URLs
		if strings.Contains(part, "://") {
			fields[part] = secrets.New(part)
		}
	}
	return (&connections.Connection{Fields: fields}).Secrets()
}

// complete finds what is not known yet, for a host that has not begun the run.
// What one connection lacks keeps no other from being known.
func (k *runSecrets) complete(ctx context.Context, cfg Config, p *PreparedRun) error {
	failed := k.lookup(cfg, p)
	asked := make(map[connections.Reference]bool)
	for _, step := range p.Plan.Steps {
		ref, ok := p.connection(step)
		if !ok || asked[ref] {
			continue
		}
		asked[ref] = true
		if _, err := k.resolve(ctx, cfg.resolver(), ref); err != nil {
			failed = errors.Join(failed, &connectionError{step.ID, err})
		}
	}
	return failed
}

// connectionError is why a step's connection is not known.
type connectionError struct {
	step string
	err  error
}

func (e *connectionError) Error() string {
	return fmt.Sprintf("remote: step %q: connection: %v", e.step, e.err)
}

func (e *connectionError) Unwrap() error { return e.err }

// parseRef is the inverse of Reference.String.
func parseRef(name string) (connections.Reference, error) {
	if family, ok := strings.CutPrefix(name, "@"); ok && !strings.Contains(family, ".") {
		return connections.Reference{Family: family}, nil // its default
	}
	ref, _, err := connections.ParseReference(name)
	return ref, err
}

// connectionRef returns the connection that a step's config refers to, or the
// default one of its family; ok is false when it has none.
func connectionRef(s Step, config map[string]any) (ref connections.Reference, ok bool, err error) {
	text, isText := config["connection"].(string)
	if config["connection"] != nil && !isText {
		return ref, false, errors.New("connection is not a text")
	}
	component := cmp.Or(s.Component, s.DriverName())
	ref, ok, err = connections.ParseReference(text)
	switch {
	case err != nil:
		return ref, false, err
	case ok:
		return ref, true, connections.CheckFamily(component, ref)
	}
	ref, ok = connections.Default(component)
	return ref, ok, nil
}

// describe notes in a prepared run what a step's connection is, without its
// values.
func (e *engine) describe(p *PreparedRun, s Step, config map[string]any) error {
	ref, ok, err := connectionRef(s, config)
	if err != nil || !ok {
		return err
	}
	name := ref.String()
	if _, known := p.ResolvedConnections[name]; known {
		return nil
	}
	described := ConnectionRef{Ref: name}
	if d, ok := e.cfg.resolver().(connections.Describer); ok {
		c, err := guarded("the resolver", func() (*connections.Connection, error) { return d.Describe(ref) })
		if ref.Alias == "" && errors.Is(err, connections.ErrNotConfigured) {
			return nil // it has none, and may need none
		}
		if err != nil {
			return err
		}
		described.Fields = c.Fields
	}
	p.ResolvedConnections[name], p.Package.Connections[name] = described, described
	return nil
}

// connection returns a step's connection as it was listed when the run was
// prepared. What was not is not looked for.
func (p *PreparedRun) connection(s Step) (connections.Reference, bool) {
	ref, ok, err := connectionRef(s, p.CfgIndex[s.cfgPath()])
	_, listed := p.ResolvedConnections[ref.String()]
	return ref, err == nil && ok && listed
}

// resolve finds the connections of a run, and tells of every step's.
func (e *engine) resolve(ctx context.Context, p *PreparedRun, s *session, known *runSecrets) error {
	for _, step := range p.Plan.Steps {
		ref, ok := p.connection(step)
		if !ok {
			continue
		}
		fields := map[string]any{"step_id": step.ID, "family": ref.Family, "alias": aliasName(ref.Alias)}
		s.event("connection_resolve_start", fields)
		found, err := known.resolve(ctx, e.cfg.resolver(), ref)
		if err == nil && !found {
			fields["ok"], fields["configured"] = true, false
			s.event("connection_resolve_complete", fields)
			continue
		}
		if err != nil {
			err = &connectionError{step.ID, err}
			fields["ok"], fields["error"] = false, err.Error()
			s.event("connection_resolve_complete", fields)
			return err
		}
		fields["ok"] = true
		s.event("connection_resolve_complete", fields)
	}
	return nil
}

// reference returns what a step's connection is called between host and worker;
// empty when it has none.
func (k *runSecrets) reference(p *PreparedRun, s Step) string {
	ref, ok := p.connection(s)
	name := ref.String()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !ok || k.absent[name] {
		return ""
	}
	return name
}

// aliasName is the alias as events show it.
func aliasName(alias string) string {
	if alias == "" {
		return "default"
	}
	return alias
}

// resolve asks for a connection, once. found is false for a default that is not
// configured.
func (k *runSecrets) resolve(ctx context.Context, r connections.Resolver, ref connections.Reference) (found bool, err error) {
	k.mu.Lock()
	have, absent := k.connections[ref.String()] != nil, k.absent[ref.String()]
	k.mu.Unlock()
	if have || absent {
		return have, nil
	}
	c, err := askResolver(ctx, r, ref)
	if ref.Alias == "" && errors.Is(err, connections.ErrNotConfigured) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.absent[ref.String()] = true
		return false, nil
	}
	if err != nil {
		return false, err
	}
	k.learn(ref.String(), c)
	return true, nil
}

func askResolver(ctx context.Context, r connections.Resolver, ref connections.Reference) (*connections.Connection, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, resolveTimeout, fmt.Errorf("%w: the resolver did not answer in %s", ErrTimeout, resolveTimeout))
	defer cancel()
	return guarded("the resolver", func() (*connections.Connection, error) { return connections.Resolve(ctx, r, ref) })
}

// guarded calls what a user has given and what knows secrets. It may be called
// where nobody would catch its panic, whose text is nobody's to tell.
func guarded[T any](who string, f func() (T, error)) (result T, err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case runtime.Error:
			err = fmt.Errorf("%s panicked: %w", who, v)
		default:
			err = fmt.Errorf("%s panicked with a %T", who, v)
		}
	}()
	return f()
}

func (k *runSecrets) connection(ref string) *connections.Connection {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.connections[ref]
}

// all returns the connections, by reference.
func (k *runSecrets) all() map[string]*connections.Connection {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.connections)
}

// learn takes a connection in the place of an older one.
func (k *runSecrets) learn(ref string, c *connections.Connection) {
	k.redact.Add(c.Secrets()...)
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.connections[ref]; old != nil {
		k.past = append(k.past, old.Secrets()...)
		k.past = slices.Clone(k.past[max(0, len(k.past)-mostPast):])
	}
	k.connections[ref] = c
}

// message is what the worker is told of some connections.
func (k *runSecrets) message(env map[string]string, conns map[string]*connections.Connection) (*rpc.Secrets, error) {
	m := &rpc.Secrets{Env: env, Connections: make(map[string]json.RawMessage, len(conns))}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		m.Redact = append(m.Redact, withParts(env[name])...)
	}
	for _, ref := range slices.Sorted(maps.Keys(conns)) {
		c := conns[ref]
		fields := c.Plain()
		fields["_family"], fields["_alias"] = c.Family, aliasName(c.Alias)
		b, err := json.Marshal(fields)
		if err != nil { // its text may tell of a value
			return nil, fmt.Errorf("remote: %w: the connection %s cannot be written as JSON", ErrInvalid, ref)
		}
		m.Connections[ref] = b
		m.Redact = append(m.Redact, c.Secrets()...)
	}
	return m, nil
}

// send tells the worker all it has to know.
func (k *runSecrets) send(ctx context.Context, l *link) error {
	k.mu.Lock()
	past := slices.Clone(k.past)
	k.mu.Unlock()
	return k.tell(ctx, l, k.env, k.all(), past)
}

func (k *runSecrets) tell(ctx context.Context, l *link, env map[string]string, conns map[string]*connections.Connection, past []string) error {
	if len(env) == 0 && len(conns) == 0 {
		return nil
	}
	m, err := k.message(env, conns)
	if err != nil {
		return err
	}
	m.Redact = append(m.Redact, past...)
	k.sending.Lock()
	defer k.sending.Unlock()
	if k.tap != nil {
		if err := k.tap(ctx, l, m); err != nil {
			return err
		}
	}
	parts, err := rpc.SealSecrets(l.sealKey, l.session.id, m)
	if err != nil {
		return fmt.Errorf("remote: seal secrets: %w", err)
	}
	for _, part := range parts {
		if err := l.call(ctx, rpc.MethodSecrets, &part, nil); err != nil {
			return fmt.Errorf("remote: send secrets: %w", err)
		}
	}
	return nil
}

// Times between two questions to a resolver: the least, so that one which asks
// to be asked at once is not asked all the time, and the first and longest one
// after a failure.
const (
	refreshLeast = time.Second
	refreshFirst = 5 * time.Second
	refreshMost  = time.Minute
)

// refresh asks for connections anew when their time has come, and sends them to
// the worker that link returns then, until ctx is done. Before that the sandbox's
// network is opened for what they name.
func (k *runSecrets) refresh(ctx context.Context, r connections.Resolver, s *session, network *networkWatch, link func() *link) {
	failed := make(map[string]time.Duration) // how long to wait after a failure
	next := make(map[string]time.Time)
	when := func(ref string, c *connections.Connection) time.Time {
		if again, ok := next[ref]; ok {
			return again
		}
		return c.RefreshAt
	}
	for {
		var due time.Time
		for ref, c := range k.all() {
			at := when(ref, c)
			if !at.IsZero() && (due.IsZero() || at.Before(due)) {
				due = at
			}
		}
		if due.IsZero() {
			return // nothing changes in this run
		}
		timer := time.NewTimer(max(time.Until(due), refreshLeast))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		now := time.Now()
		for ref, c := range k.all() {
			at := when(ref, c)
			if at.IsZero() || at.After(now) {
				continue
			}
			fields := map[string]any{"family": c.Family, "alias": aliasName(c.Alias)}
			if err := k.renew(ctx, r, ref, func() { network.look(ctx, s, false) }, link); err != nil {
				if ctx.Err() != nil {
					return
				}
				failed[ref] = min(max(2*failed[ref], refreshFirst), refreshMost)
				next[ref] = time.Now().Add(failed[ref])
				s.logf(slog.LevelWarn, "the connection %s was not refreshed, its old values stay; the next try is in %s: %v", ref, failed[ref], err)
				fields["ok"], fields["error"] = false, err.Error()
			} else {
				delete(failed, ref)
				delete(next, ref)
				fields["ok"] = true
			}
			s.event("connection_refreshed", fields)
		}
	}
}

// refresh keeps the connections of a run fresh until stop is called, which
// waits.
func (w *restarter) refresh(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.r.secrets.refresh(ctx, w.e.cfg.resolver(), w.session, w.r.place.network, w.link) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// renew asks for a connection anew, and tells the worker when its hosts may be
// reached.
func (k *runSecrets) renew(ctx context.Context, r connections.Resolver, name string, open func(), link func() *link) error {
	ref, err := parseRef(name)
	if err != nil {
		return err
	}
	c, err := askResolver(ctx, r, ref)
	if err != nil {
		return err
	}
	k.learn(name, c) // a worker that is started from now on gets it, too
	open()
	return k.tell(ctx, link(), nil, map[string]*connections.Connection{name: c}, nil)
}

// redactedError is an error whose text holds no secret value.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

// redacted returns an error as it may be told.
func (s *session) redacted(err error) error { return redactedBy(s.redact, err) }

func redactedBy(r *secrets.Redactor, err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if clean := r.String(text); clean != text {
		return &redactedError{clean, err}
	}
	return err
}

// resolver returns what finds the values of connections.
func (c Config) resolver() connections.Resolver {
	if c.Connections == nil {
		return connections.Search{}
	}
	return c.Connections
}

// apiKeys are the account's keys, which no sandbox and no file may have: the one
// in use, and the one in the environment where Config has another.
func (c Config) apiKeys() []string {
	keys := []string{c.APIKey, os.Getenv(apiKeyVariable)}
	return slices.DeleteFunc(keys, func(key string) bool { return key == "" })
}
