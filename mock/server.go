package mock

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ErrNoSandbox is matched by the errors of methods that name a sandbox which
// the server does not have, or not in a state in which it can be done.
var ErrNoSandbox = errors.New("no such sandbox")

// pollInterval is how often sandboxes are looked at that are due, as E2B's
// evictor does.
const pollInterval = 50 * time.Millisecond

// Server is E2B's API on the loopback interface, for tests of programs that
// use E2B: its control plane, and the sandboxes with their daemons. Where a
// program takes the address of E2B's API and that of its sandboxes (as
// E2B_API_URL and E2B_SANDBOX_URL), both are [Server.URL].
//
// What is in a sandbox depends on the options: by default it is a [Sandbox] in
// memory, whose programs are Go functions ([WithOptions]).
//
// All methods may be called concurrently. A Server must be closed.
type Server struct {
	opts     serverOptions
	listener *listener
	http     *http.Server
	control  *control
	back     backend
	secret   []byte // of the access tokens
	log      *slog.Logger
	requests requestLog
	layers   layers

	ctx    context.Context // until Close
	cancel context.CancelFunc
	work   sync.WaitGroup // requests, and what the server does by itself; added to by begin alone
	conns  sync.WaitGroup // connections; none is new once work has ended

	mu        sync.Mutex
	closed    bool
	starting  int                  // sandboxes that are about to run
	instances map[string]*instance // by ID, those that are gone included
	order     []*instance          // as they were made
	templates []*template          // and snapshots, as they were made
}

// NewServer starts a server on a free port of 127.0.0.1. Without options it
// has one template, "base", whose sandboxes are in memory and run the worker
// without drivers.
func NewServer(opts ...ServerOption) (*Server, error) {
	s := &Server{opts: newServerOptions(opts), instances: make(map[string]*instance), secret: make([]byte, 32)}
	rand.Read(s.secret) // never fails
	s.log = s.opts.logger
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.control = newControl(s)
	for _, t := range s.opts.templates {
		s.templates = append(s.templates, newTemplate(t, s.now()))
	}
	err := checkHosts(s.opts.hosts)
	if err == nil {
		s.back, err = s.opts.newBackend(s)
	}
	if err != nil {
		return nil, fmt.Errorf("mock: start server: %w", err)
	}
	inner := s.opts.listener
	if inner == nil {
		if inner, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			s.back.close()
			return nil, fmt.Errorf("mock: start server: %w", err)
		}
	}
	s.listener = newListener(inner)
	s.http = &http.Server{
		Handler:     http.HandlerFunc(s.serve),
		ConnContext: s.listener.context,
		ConnState:   s.countConn,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.work.Go(func() { s.http.Serve(s.listener) }) // ends with Close
	s.work.Go(s.watchTime)
	return s, nil
}

// URL returns the server's address, as "http://127.0.0.1:34567".
func (s *Server) URL() string { return "http://" + s.listener.Addr().String() }

// APIKey returns the key that the control plane asks for.
func (s *Server) APIKey() string { return s.opts.apiKey }

// Env returns the variables by which programs find the server, as NAME=value.
func (s *Server) Env() []string {
	return []string{
		"E2B_API_KEY=" + s.APIKey(),
		"E2B_API_URL=" + s.URL(),
		"E2B_SANDBOX_URL=" + s.URL(),
	}
}

// Isolation says what keeps the processes of a sandbox apart from this machine
// and from each other, in a few words.
func (s *Server) Isolation() string { return s.back.isolation() }

// Isolated reports whether a process of a sandbox sees the sandbox's files in
// place of this machine's, the system's directories apart.
func (s *Server) Isolated() bool { return s.back.isolated() }

// Close resets all connections, kills all sandboxes, and waits for everything
// the server started. The error names processes that could not be ended.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	instances := slices.Clone(s.order)
	templates := s.templates
	s.mu.Unlock()

	s.cancel()
	s.listener.resetAll()
	s.http.Close()
	var errs []error
	for _, i := range instances {
		errs = append(errs, s.end(i, StateKilled))
	}
	s.work.Wait()
	s.conns.Wait()
	for _, t := range templates {
		errs = append(errs, t.close())
	}
	errs = append(errs, s.layers.close(), s.back.close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mock: close server: %w", err)
	}
	return nil
}

// countConn counts the goroutines of connections: package http waits for none
// of them.
func (s *Server) countConn(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.conns.Done()
	}
}

// begin reports whether the server is open, and then counts one more piece of
// work, for which the caller calls s.work.Done.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.work.Add(1)
	}
	return !s.closed
}

func (s *Server) now() time.Time { return s.opts.now() }

// watchTime ends the sandboxes that are due.
func (s *Server) watchTime() {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			s.endDue()
		}
	}
}

// token makes an access token, the same one for the same name.
func (s *Server) token(name string) string {
	mac := hmac.New(sha256.New, s.secret)
	mac.Write([]byte(name))
	return hex.EncodeToString(mac.Sum(nil))
}

// alphabet is that of E2B's identifiers.
const alphabet = "abcdefghijklmnopqrstuvwxyz1234567890"

// newID returns 20 random characters.
func newID() string {
	b := make([]byte, 20)
	rand.Read(b)
	for i, c := range b {
		b[i] = alphabet[int(c)%len(alphabet)]
	}
	return string(b)
}

// State is what became of a sandbox.
type State string

// The states. One that is about to change has the state it will have.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateKilled  State = "killed"  // on request
	StateExpired State = "expired" // when its time was over
)

// SandboxState describes a sandbox of a [Server].
type SandboxState struct {
	ID        string
	Template  string // its ID
	State     State
	Metadata  map[string]string
	EnvVars   []string // names, sorted, of the variables it was created with
	Secure    bool     // its daemon asks for an access token
	StartedAt time.Time
	EndAt     time.Time // of a paused one: when it was paused
}

// Sandboxes returns all sandboxes, in the order in which they were made; those
// that are gone too.
func (s *Server) Sandboxes() []SandboxState {
	s.endDue()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]SandboxState, 0, len(s.order))
	for _, i := range s.order {
		list = append(list, SandboxState{
			ID:        i.id,
			Template:  i.template.id,
			State:     i.publicState(),
			Metadata:  maps.Clone(i.config.metadata),
			EnvVars:   slices.Sorted(maps.Keys(i.config.env)),
			Secure:    i.config.secure,
			StartedAt: i.startedAt,
			EndAt:     i.endAt,
		})
	}
	return list
}

// Alive returns those sandboxes that run or are paused: what costs money.
func (s *Server) Alive() []SandboxState {
	return slices.DeleteFunc(s.Sandboxes(), func(i SandboxState) bool {
		return i.State != StateRunning && i.State != StatePaused
	})
}

// Sandbox returns the machine in memory behind a sandbox, to look at and to
// prepare. To end it use [Server.Kill] and [Server.Expire], since the server
// does not learn of the sandbox's own methods. It is nil for an unknown ID and
// where sandboxes are not in memory. A sandbox that is gone still has its
// [Sandbox.Processes]. Resuming a sandbox that was paused without its memory
// makes a new machine.
func (s *Server) Sandbox(id string) *Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.instances[id]; i != nil {
		return i.memory
	}
	return nil
}

// Kill ends a sandbox as a request to the control plane does.
func (s *Server) Kill(id string) error { return s.strike(id, StateKilled) }

// Expire ends a sandbox as its time does: it is paused if that is what it was
// created for, else killed.
func (s *Server) Expire(id string) error { return s.strike(id, StateExpired) }

func (s *Server) strike(id string, final State) error {
	s.mu.Lock()
	i := s.instances[id]
	s.mu.Unlock()
	if i == nil {
		return fmt.Errorf("mock: sandbox %q: %w", id, ErrNoSandbox)
	}
	if final == StateExpired && i.config.autoPause {
		return s.Pause(id)
	}
	if err := s.end(i, final); err != nil {
		return fmt.Errorf("mock: sandbox %q: %w", id, err)
	}
	return nil
}

// Pause pauses a sandbox, memory and all.
func (s *Server) Pause(id string) error {
	s.mu.Lock()
	i := s.instances[id]
	s.mu.Unlock()
	if i == nil {
		return fmt.Errorf("mock: sandbox %q: %w", id, ErrNoSandbox)
	}
	if err := s.pause(i, true); err != nil {
		return fmt.Errorf("mock: pause sandbox %q: %w", id, err)
	}
	return nil
}

// RestartDaemon kills the daemon of a sandbox and starts another, as when it has
// crashed: the sandbox's processes go on without it, with closed pipes. It takes
// [WithEnvd] with a program; else the error matches errors.ErrUnsupported.
func (s *Server) RestartDaemon(id string) error {
	if !s.begin() {
		return fmt.Errorf("mock: sandbox %q: %w", id, ErrNoSandbox)
	}
	defer s.work.Done()
	s.mu.Lock()
	i := s.instanceLocked(id)
	var g guest
	if i != nil {
		g = i.guest
	}
	s.mu.Unlock()
	if g == nil {
		return fmt.Errorf("mock: sandbox %q: %w", id, ErrNoSandbox)
	}
	daemon, ok := g.(interface{ restart(context.Context) error })
	if !ok {
		return fmt.Errorf("mock: restart the daemon of sandbox %q: %w", id, errors.ErrUnsupported)
	}
	if err := daemon.restart(s.ctx); err != nil {
		return fmt.Errorf("mock: restart the daemon of sandbox %q: %w", id, err)
	}
	return nil
}

// CutConnections resets every connection that is open now, also one that a
// fault has stalled. Sandboxes and their processes go on.
func (s *Server) CutConnections() { s.listener.resetAll() }

// Requests returns the requests that came, in that order: the last 10,000.
func (s *Server) Requests() []HTTPRequest { return s.requests.list() }

// serve handles a request, with the faults that were asked for, wherever it
// belongs.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.work.Done()
	s.endDue()
	handler, seen := s.route(r)
	x := s.newExchange(w, r, seen)
	x.serve(handler)
}

// route tells who handles a request, and what is known of it by then.
func (s *Server) route(r *http.Request) (http.Handler, HTTPRequest) {
	seen := HTTPRequest{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Time: s.now()}
	if !onEdge(r) {
		seen.Plane = ControlPlane
		seen.Procedure, seen.Sandbox = s.control.procedure(r)
		return s.control, seen
	}
	seen.Plane = Edge
	seen.Procedure = edgeProcedure(r)
	target, err := parseTarget(r)
	seen.Sandbox, seen.Port = target.sandbox, target.port
	return s.edge(target, err), seen
}

// instanceLocked finds a sandbox that is not gone.
func (s *Server) instanceLocked(id string) *instance {
	if i := s.instances[id]; i != nil && !i.state.gone() {
		return i
	}
	return nil
}

// runningLocked counts the sandboxes that count for the limit.
func (s *Server) runningLocked() int {
	n := s.starting
	for _, i := range s.order {
		if !i.state.gone() && i.state != paused {
			n++
		}
	}
	return n
}

// Connections returns how many connections are open.
func (s *Server) Connections() int { return s.listener.open() }
