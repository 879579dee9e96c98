package mock

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// listedSandbox describes a sandbox in a list.
type listedSandbox struct {
	TemplateID   string            `json:"templateID"`
	Alias        string            `json:"alias,omitempty"`
	SandboxID    string            `json:"sandboxID"`
	ClientID     string            `json:"clientID"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	CPUCount     int               `json:"cpuCount"`
	MemoryMB     int               `json:"memoryMB"`
	DiskSizeMB   int               `json:"diskSizeMB"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	State        State             `json:"state"`
	EnvdVersion  string            `json:"envdVersion"`
	VolumeMounts []struct{}        `json:"volumeMounts"`
}

// sandboxDetail describes a sandbox by itself.
type sandboxDetail struct {
	listedSandbox
	EnvdAccessToken     string         `json:"envdAccessToken,omitempty"`
	AllowInternetAccess *bool          `json:"allowInternetAccess,omitempty"`
	Network             *networkConfig `json:"network,omitempty"`
	Lifecycle           lifecycle      `json:"lifecycle"`
}

type lifecycle struct {
	AutoResume bool   `json:"autoResume"`
	OnTimeout  string `json:"onTimeout"`
}

func (i *instance) listed() listedSandbox {
	return listedSandbox{
		TemplateID:   i.template.id,
		Alias:        i.template.alias(),
		SandboxID:    i.id,
		ClientID:     clientID,
		StartedAt:    i.startedAt.UTC(),
		EndAt:        i.endAt.UTC(),
		CPUCount:     i.size.cpu,
		MemoryMB:     i.size.memoryMB,
		DiskSizeMB:   i.size.diskMB,
		Metadata:     i.config.metadata,
		State:        i.publicState(),
		EnvdVersion:  i.size.envdVersion,
		VolumeMounts: []struct{}{},
	}
}

// find looks up the sandbox in a request's path.
func (c *control) find(r *http.Request) (*instance, error) {
	id, err := sandboxID(r)
	if err != nil {
		return nil, err
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if i := c.server.instanceLocked(id); i != nil {
		return i, nil
	}
	return nil, noSandbox(id)
}

// state returns the phase of a sandbox.
func (s *Server) state(i *instance) phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return i.state
}

func (c *control) get(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	i, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	d := sandboxDetail{
		listedSandbox:       i.listed(),
		AllowInternetAccess: i.allowEgress,
		Network:             i.network,
		Lifecycle:           lifecycle{AutoResume: i.config.autoResume, OnTimeout: "kill"},
	}
	if i.config.autoPause {
		d.Lifecycle.OnTimeout = "pause"
	}
	if i.config.secure {
		d.EnvdAccessToken = c.server.token(i.id)
	}
	return http.StatusOK, d, nil
}

func (c *control) kill(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	c.server.mu.Lock()
	i := c.server.instances[id]
	there := i != nil && i.state != dead
	c.server.mu.Unlock()
	if !there {
		return 0, nil, noSandbox(id)
	}
	if err := c.server.end(i, StateKilled); err != nil {
		return 0, nil, fail(http.StatusInternalServerError, "Error killing sandbox: %v", err)
	}
	return http.StatusNoContent, nil, nil
}

// changing says why a sandbox in some phase cannot be changed.
func changing(id string, p phase) error {
	switch p {
	case killing:
		return fail(http.StatusConflict, "Sandbox %q is being killed", id)
	case pausing:
		return fail(http.StatusConflict, "Sandbox %q is being paused", id)
	case snapshotting:
		return fail(http.StatusConflict, "Sandbox %q is being snapshotted", id)
	}
	return fail(http.StatusConflict, "Sandbox %q is in %s state", id, p)
}

// keepAlive sets the end of a running sandbox to d from now, or what is left of
// the longest time it may have. Unless it may be shorter, an end that is later
// stays.
func (c *control) keepAlive(id string, d time.Duration, shorter bool) (*instance, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instances[id]
	switch {
	case i == nil || i.state == dead || i.state == paused:
		return nil, noSandbox(id)
	case i.state != running:
		return nil, changing(id, i.state)
	}
	now := s.now()
	left := s.opts.maxTimeout - now.Sub(i.startedAt)
	if left < 0 {
		return nil, fail(http.StatusBadRequest, "Max instance length exceeded")
	}
	if end := now.Add(min(left, d)); shorter || end.After(i.endAt) {
		i.endAt = end
	}
	return i, nil
}

func (c *control) timeout(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	var req struct {
		Timeout *seconds `json:"timeout"`
	}
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	if req.Timeout == nil {
		return 0, nil, missing("SandboxTimeoutRequest", "timeout")
	}
	if _, err := c.keepAlive(id, req.Timeout.duration(), true); err != nil {
		return 0, nil, err
	}
	c.server.endDue()
	return http.StatusNoContent, nil, nil
}

func missing(schema, property string) error {
	return invalid("request body", `doesn't match schema #/components/schemas/%s: Error at "/%s": property "%s" is missing`, schema, property, property)
}

func (c *control) refresh(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	var req struct {
		Duration seconds `json:"duration"`
	}
	if err := decode(r, false, &req); err != nil {
		return 0, nil, err
	}
	if req.Duration > 3600 {
		return 0, nil, invalid("request body", `doesn't match schema #/components/schemas/SandboxRefreshRequest: Error at "/duration": number must be at most 3600`)
	}
	if _, err := c.keepAlive(id, max(req.Duration.duration(), defaultTimeout), false); err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, nil
}

// resumeRequest is the body of a request that may resume a sandbox.
type resumeRequest struct {
	Timeout   *seconds `json:"timeout"`
	AutoPause *bool    `json:"autoPause"`
	Memory    *bool    `json:"memory"`
}

func (c *control) connectV1(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req resumeRequest
	if err := decode(r, true, &req); err != nil {
		return 0, nil, err
	}
	if req.Timeout == nil {
		return 0, nil, missing("ConnectSandbox", "timeout")
	}
	return c.connect(r, req, req.Timeout.duration())
}

func (c *control) connectV2(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req resumeRequest
	if err := decode(r, false, &req); err != nil {
		return 0, nil, err
	}
	timeout := defaultTimeoutV2
	if req.Timeout != nil {
		timeout = req.Timeout.duration()
	}
	return c.connect(r, req, timeout)
}

// maxConnects is how often connect waits for a sandbox in transition.
const maxConnects = 3

func (c *control) connect(r *http.Request, req resumeRequest, timeout time.Duration) (int, any, error) {
	if err := c.checkMax(timeout); err != nil {
		return 0, nil, err
	}
	i, err := c.find(r)
	if err != nil {
		id, bad := sandboxID(r)
		if bad == nil && c.beingKilled(id) {
			err = changing(id, killing)
		}
		return 0, nil, err
	}
	for range maxConnects {
		if _, err := c.keepAlive(i.id, timeout, false); err == nil {
			return http.StatusOK, c.server.sandboxAnswer(i), nil
		} else if !c.server.state(i).transient() && c.server.state(i) != paused {
			return 0, nil, err
		}
		if err := c.settle(r.Context(), i); err != nil {
			return 0, nil, err
		}
		if c.server.state(i) == paused {
			err := c.wake(i, req, timeout)
			var state *stateError
			if !errors.As(err, &state) {
				return http.StatusCreated, c.server.sandboxAnswer(i), err
			}
		}
	}
	return 0, nil, changing(i.id, c.server.state(i))
}

func (c *control) beingKilled(id string) bool {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	i := c.server.instances[id]
	return i != nil && i.state == killing
}

// settle waits for the end of a transition, other than a sandbox's death.
func (c *control) settle(ctx context.Context, i *instance) error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if i.state == killing {
		return changing(i.id, killing)
	}
	if err := c.server.settleLocked(ctx, i); err != nil {
		return fail(http.StatusInternalServerError, "Error waiting for sandbox state change")
	}
	return nil
}

// wake resumes a paused sandbox.
func (c *control) wake(i *instance, req resumeRequest, timeout time.Duration) error {
	c.server.mu.Lock()
	filesOnly := i.filesOnly
	c.server.mu.Unlock()
	if req.Memory != nil && !*req.Memory && !filesOnly {
		disabled := fail(http.StatusBadRequest, "Resuming without memory (memory: false) is not enabled for this team; a plain resume still restores memory")
		disabled.ErrorCode = "sandbox_memory_override_disabled"
		return disabled
	}
	err := c.server.resume(i, timeout)
	if errors.Is(err, errLimit) {
		return c.creationError(err)
	}
	return err
}

func (c *control) resume(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req resumeRequest
	if err := decode(r, false, &req); err != nil {
		return 0, nil, err
	}
	timeout, err := c.checkTimeout(req.Timeout, defaultTimeout)
	if err != nil {
		return 0, nil, err
	}
	i, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	switch c.server.state(i) {
	case running:
		return 0, nil, fail(http.StatusConflict, "Sandbox %s is already running", i.id)
	case snapshotting:
		return 0, nil, fail(http.StatusConflict, "Sandbox snapshot is currently being created for sandbox '%s'", i.id)
	}
	if err := c.settle(r.Context(), i); err != nil {
		return 0, nil, err
	}
	if err := c.wake(i, req, timeout); err != nil {
		var state *stateError
		if errors.As(err, &state) {
			err = changing(i.id, state.state)
		}
		return 0, nil, err
	}
	if req.AutoPause != nil {
		c.server.mu.Lock()
		i.config.autoPause = *req.AutoPause
		c.server.mu.Unlock()
	}
	return http.StatusCreated, c.server.sandboxAnswer(i), nil
}

func (c *control) pause(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req struct {
		Memory *bool `json:"memory"`
	}
	if err := decode(r, false, &req); err != nil {
		return 0, nil, err
	}
	i, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	err = c.server.pause(i, req.Memory == nil || *req.Memory)
	var state *stateError
	switch {
	case err == nil:
		return http.StatusNoContent, nil, nil
	case errors.As(err, &state) && state.state == paused:
		return 0, nil, fail(http.StatusConflict, "Error pausing sandbox - sandbox '%s' is already paused", i.id)
	case errors.As(err, &state):
		return 0, nil, cannot(i.id, "paused", state.state)
	case errors.Is(err, errors.ErrUnsupported):
		return 0, nil, fail(http.StatusNotImplemented, "%v", err)
	}
	return 0, nil, fail(http.StatusInternalServerError, "Error pausing sandbox: %v", err)
}

// cannot says that something cannot be done with a sandbox in a phase.
func cannot(id, done string, p phase) error {
	if p == dead {
		return noSandbox(id)
	}
	return fail(http.StatusConflict, "Sandbox '%s' cannot be %s while in '%s' state", id, done, p)
}

func (c *control) setNetwork(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	id, err := sandboxID(r)
	if err != nil {
		return 0, nil, err
	}
	var req struct {
		networkConfig
		AllowEgress *bool `json:"allow_internet_access"`
	}
	if err := decode(r, true, &req, "egressProxy"); err != nil {
		return 0, nil, err
	}
	if err := req.check(); err != nil {
		return 0, nil, err
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instances[id]
	switch {
	case i == nil || i.state == dead || i.state == paused:
		return 0, nil, noSandbox(id)
	case i.state != running:
		return 0, nil, changing(id, i.state)
	}
	// What comes in cannot be changed.
	next := networkConfig{AllowOut: req.AllowOut, DenyOut: req.DenyOut, Rules: req.Rules}
	if i.network != nil {
		next.AllowPublicTraffic, next.MaskRequestHost = i.network.AllowPublicTraffic, i.network.MaskRequestHost
	}
	i.network, i.denyAll = &next, req.AllowEgress != nil && !*req.AllowEgress
	if req.AllowEgress != nil { // else a sandbox that is resumed has the old one
		i.allowEgress = req.AllowEgress
	}
	return http.StatusNoContent, nil, nil
}
