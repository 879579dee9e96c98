package mock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// phase is what a sandbox is doing.
type phase string

// The phases, named as E2B's messages have them.
const (
	running      phase = "running"
	pausing      phase = "pausing"
	paused       phase = "paused"
	snapshotting phase = "snapshotting"
	killing      phase = "killing"
	dead         phase = "killed"
)

func (p phase) gone() bool { return p == killing || p == dead }

func (p phase) transient() bool {
	return p == pausing || p == snapshotting || p == killing
}

// instance is a sandbox of the server. What comes after config is guarded by
// the server's lock.
type instance struct {
	id       string
	template *template
	size     size
	setup    setup
	config   instanceConfig

	network     *networkConfig
	allowEgress *bool // allow_internet_access
	denyAll     bool  // in force, whatever denyOut says
	state       phase
	final       State         // once it is being killed
	changed     chan struct{} // closed when state changes
	startedAt   time.Time     // of this run
	endAt       time.Time     // of a paused one, when it was paused
	timeout     time.Duration // that it was made with
	filesOnly   bool          // it was paused without its memory
	guest       guest
	memory      *Sandbox // behind guest; nil where it is not in memory
	started     *started // the start command of the template's build
	flights     map[*flight]struct{}
	logs        []logEntry
}

// instanceConfig is what a sandbox keeps for its life.
type instanceConfig struct {
	metadata        map[string]string
	env             map[string]string
	secure          bool
	private         bool // other ports ask for a token
	autoPause       bool
	autoPauseMemory bool
	autoResume      bool
}

// flight is a request that is being served by a sandbox.
type flight struct {
	conn   *conn
	cancel context.CancelFunc
}

// stateError says that a sandbox is in the wrong phase for what was asked.
type stateError struct{ state phase }

func (e *stateError) Error() string { return fmt.Sprintf("it is in the state %q", e.state) }
func (e *stateError) Unwrap() error { return ErrNoSandbox }

// errLimit says that there are too many sandboxes.
var errLimit = errors.New("too many sandboxes run")

func (i *instance) publicState() State {
	switch i.state {
	case killing, dead:
		return i.final
	case pausing, paused:
		return StatePaused
	}
	return StateRunning
}

// pageTime is the time by which lists are sorted, no finer than E2B keeps it.
func (i *instance) pageTime() time.Time { return i.startedAt.Truncate(time.Microsecond) }

// enterLocked changes the phase.
func (i *instance) enterLocked(p phase, at time.Time) {
	i.state = p
	i.logs = append(i.logs, logEntry{Timestamp: at, Level: "info", Message: "Sandbox is " + string(p)})
	i.logs = i.logs[max(0, len(i.logs)-maxLogs):]
	close(i.changed)
	i.changed = make(chan struct{})
}

// settleLocked waits until a sandbox is not in transition. The lock is
// released meanwhile.
func (s *Server) settleLocked(ctx context.Context, i *instance) error {
	for i.state.transient() {
		changed := i.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// launch is what it takes to make a sandbox.
type launch struct {
	template *template
	build    *build       // it is made from, with its image, or
	image    envd.Machine // without a build
	size     size
	setup    setup
	config   instanceConfig
	network  *networkConfig
	allow    *bool
	timeout  time.Duration
}

// create makes a sandbox.
func (s *Server) create(ctx context.Context, l launch) (*instance, error) {
	s.mu.Lock()
	if limit := s.opts.maxConcurrency; limit > 0 && s.runningLocked() >= limit {
		s.mu.Unlock()
		return nil, errLimit
	}
	image := l.image
	if l.build != nil {
		if l.build.discarded {
			s.mu.Unlock()
			return nil, fail(http.StatusNotFound, "template '%s' not found", l.template.id)
		}
		image = l.build.image
		l.build.holds++
		defer s.release(l.build)
	}
	s.starting++
	s.mu.Unlock()

	i := &instance{
		id:          "i" + newID(),
		template:    l.template,
		size:        l.size,
		setup:       l.setup,
		config:      l.config,
		network:     l.network,
		allowEgress: l.allow,
		denyAll:     l.allow != nil && !*l.allow,
		timeout:     l.timeout,
		changed:     make(chan struct{}),
		flights:     make(map[*flight]struct{}),
	}
	guest, err := s.back.boot(ctx, s.bootConfig(i, image, l.config.env))
	if err == nil && i.setup.start != nil {
		say := func(_, message string) { s.log.Debug("start command", "sandbox", i.id, "message", message) }
		if i.started, err = guest.inside().begin(ctx, i.setup.start, say); err != nil {
			err, guest = errors.Join(err, guest.close()), nil
		}
	}

	if added := s.add(i, guest); err == nil && !added {
		err = errors.Join(errors.New("the server is closed"), guest.close())
		i.started.stop()
	}
	if err != nil {
		return nil, err
	}
	return i, nil
}

// add makes a sandbox known that starts now. Without a guest it did not start.
func (s *Server) add(i *instance, g guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting--
	if g == nil || s.closed {
		return false
	}
	i.guest, i.memory = g, g.memory()
	i.startedAt = s.now()
	i.endAt = i.startedAt.Add(i.timeout)
	i.enterLocked(running, i.startedAt)
	s.instances[i.id] = i
	s.order = append(s.order, i)
	i.template.spawned(i.startedAt)
	return true
}

func (s *Server) bootConfig(i *instance, image envd.Machine, env map[string]string) bootConfig {
	c := bootConfig{id: i.id, template: i.template.id, size: i.size, setup: i.setup, image: image, env: maps.Clone(env)}
	if c.env == nil {
		c.env = make(map[string]string)
	}
	c.env["E2B_SANDBOX"] = "true"
	c.env["E2B_SANDBOX_ID"] = i.id
	c.env["E2B_TEMPLATE_ID"] = i.template.id
	if i.config.secure {
		c.token = s.token(i.id)
	}
	return c
}

// cut ends what a sandbox is serving, as if its machine had gone away.
func (s *Server) cut(i *instance) {
	s.mu.Lock()
	flights := maps.Clone(i.flights)
	guest := i.guest
	s.mu.Unlock()
	for f := range flights {
		f.conn.reset()
		f.cancel()
	}
	guest.cut()
}

// end kills a sandbox and waits until it is gone.
func (s *Server) end(i *instance, final State) error {
	s.mu.Lock()
	if i.state != killing {
		s.settleLocked(context.Background(), i)
	}
	if i.state.gone() {
		defer s.mu.Unlock()
		return s.settleLocked(context.Background(), i)
	}
	s.beginEndLocked(i, final)
	s.mu.Unlock()
	return s.finishEnd(i)
}

func (s *Server) beginEndLocked(i *instance, final State) {
	i.final = final
	i.enterLocked(killing, s.now())
}

func (s *Server) finishEnd(i *instance) error {
	s.cut(i)
	err := i.guest.close()
	i.started.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	i.enterLocked(dead, s.now())
	s.log.Debug("sandbox ended", "sandbox", i.id, "state", i.final)
	return err
}

// pause pauses a running sandbox.
func (s *Server) pause(i *instance, memory bool) error {
	s.mu.Lock()
	if i.state != running {
		defer s.mu.Unlock()
		return &stateError{i.state}
	}
	i.enterLocked(pausing, s.now())
	s.mu.Unlock()
	return s.finishPause(i, memory)
}

func (s *Server) finishPause(i *instance, memory bool) error {
	s.cut(i)
	guest := i.guest
	err := guest.freeze(true)
	if err == nil && !memory {
		guest, err = guest.reboot(s.bootConfig(i, nil, nil))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		i.guest.freeze(false)
		i.enterLocked(running, s.now())
		return err
	}
	i.guest, i.memory = guest, guest.memory()
	i.filesOnly = !memory
	i.endAt = s.now()
	i.enterLocked(paused, i.endAt)
	return nil
}

// resume lets a paused sandbox run again.
func (s *Server) resume(i *instance, timeout time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.state != paused {
		return &stateError{i.state}
	}
	if limit := s.opts.maxConcurrency; limit > 0 && s.runningLocked() >= limit {
		return errLimit
	}
	if err := i.guest.freeze(false); err != nil {
		return err
	}
	i.denyAll = i.allowEgress != nil && !*i.allowEgress // as E2B remembers it
	i.startedAt = s.now()
	i.endAt = i.startedAt.Add(timeout)
	i.enterLocked(running, i.startedAt)
	return nil
}

// image copies the files of a running sandbox.
func (s *Server) image(i *instance) (envd.Machine, error) {
	s.mu.Lock()
	if i.state != running {
		defer s.mu.Unlock()
		return nil, &stateError{i.state}
	}
	i.enterLocked(snapshotting, s.now())
	guest := i.guest
	s.mu.Unlock()
	image, err := guest.image()
	s.mu.Lock()
	defer s.mu.Unlock()
	i.enterLocked(running, s.now())
	return image, err
}

// endDue begins the end of those sandboxes whose time is over, and ends the wait
// of builds that nobody starts.
func (s *Server) endDue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, t := range s.templates {
		for _, b := range t.builds {
			if b.status == buildWaiting && now.Sub(b.createdAt) > maxBuildWait {
				b.failLocked("build is in waiting state for too long", nil, now)
			}
		}
	}
	for _, i := range s.order {
		if s.closed || i.state != running || now.Before(i.endAt) {
			continue
		}
		finish := func() error { return s.finishEnd(i) }
		if i.config.autoPause {
			i.enterLocked(pausing, now)
			finish = func() error { return s.finishPause(i, i.config.autoPauseMemory) }
		} else {
			s.beginEndLocked(i, StateExpired)
		}
		s.work.Go(func() {
			if err := finish(); err != nil {
				s.log.Debug("sandbox did not end well", "sandbox", i.id, "error", err)
			}
		})
	}
}

// maxTransition is how long the edge waits for a sandbox in transition.
const maxTransition = time.Minute

// visit is a request that a sandbox is serving.
type visit struct {
	instance *instance
	guest    guest
	request  *http.Request
	leave    func() // to be called in the end
}

// admit finds the sandbox that is to serve a request, waking it if it is
// paused and wants that.
func (s *Server) admit(r *http.Request, t target) (*visit, error) {
	ctx, cancel := context.WithTimeout(r.Context(), maxTransition)
	defer cancel()
	for {
		s.mu.Lock()
		i := s.instanceLocked(t.sandbox)
		switch {
		case i == nil, !i.config.autoResume && (i.state == pausing || i.state == paused):
			s.mu.Unlock()
			return nil, ErrNoSandbox
		case i.state == running, i.state == snapshotting:
			v := s.boardLocked(r, i)
			s.mu.Unlock()
			return v, nil
		}
		err := s.settleLocked(ctx, i)
		wake := i.state == paused
		s.mu.Unlock()
		if err == nil && wake {
			err = s.wake(i, r, t)
		}
		if err != nil {
			return nil, err
		}
	}
}

// boardLocked registers a request with its sandbox.
func (s *Server) boardLocked(r *http.Request, i *instance) *visit {
	x := r.Context().Value(exchangeKey{}).(*exchange)
	ctx, cancel := context.WithCancel(r.Context())
	f := &flight{conn: x.conn, cancel: cancel}
	i.flights[f] = struct{}{}
	return &visit{instance: i, guest: i.guest, request: r.WithContext(ctx), leave: func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(i.flights, f)
	}}
}

// minWake is the least time for which traffic wakes a sandbox.
const minWake = 5 * time.Minute

// wake resumes a sandbox because somebody wants to talk to it.
func (s *Server) wake(i *instance, r *http.Request, t target) error {
	s.mu.Lock()
	filesOnly, timeout := i.filesOnly, i.timeout
	s.mu.Unlock()
	switch {
	case filesOnly:
		return ErrNoSandbox
	case t.port == envdPort && i.config.secure && !sameToken(r.Header.Get("X-Access-Token"), s.token(i.id)),
		t.port != envdPort && i.config.private && !sameToken(r.Header.Get(trafficHeader), s.trafficToken(i.id)):
		return errResumeDenied
	}
	err := s.resume(i, min(max(timeout, minWake), s.opts.maxTimeout))
	var state *stateError
	if errors.As(err, &state) {
		return nil // somebody else was faster
	}
	return err
}
