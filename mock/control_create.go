package mock

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

const (
	clientID = "6532622b" // of every answer, for old clients

	defaultTimeout   = 15 * time.Second
	defaultTimeoutV2 = 5 * time.Minute
)

// seconds is a number of the API: an integer of 32 bits that is not negative.
type seconds int32

func (n *seconds) UnmarshalJSON(b []byte) error {
	var i int32
	if err := json.Unmarshal(b, &i); err != nil {
		return err
	}
	if i < 0 {
		return errors.New("number must be at least 0")
	}
	*n = seconds(i)
	return nil
}

func (n seconds) duration() time.Duration { return time.Duration(n) * time.Second }

// newSandboxRequest is the body of a request to create a sandbox.
type newSandboxRequest struct {
	TemplateID      *string           `json:"templateID"`
	Timeout         *seconds          `json:"timeout"`
	AutoPause       bool              `json:"autoPause"`
	AutoPauseMemory *bool             `json:"autoPauseMemory"`
	AutoResume      *autoResume       `json:"autoResume"`
	Secure          bool              `json:"secure"`
	AllowEgress     *bool             `json:"allow_internet_access"`
	Network         *networkConfig    `json:"network"`
	Metadata        map[string]string `json:"metadata"`
	EnvVars         map[string]string `json:"envVars"`
	MCP             map[string]any    `json:"mcp"`
	IAM             struct {
		Tokens map[string]struct {
			Audience  string `json:"audience"`
			TokenType string `json:"tokenType"`
		} `json:"tokens"`
	} `json:"iam"`
	VolumeMounts []struct {
		Name string `json:"name"`
		Path string `json:"path"`
	} `json:"volumeMounts"`
}

type autoResume struct {
	Enabled *bool `json:"enabled"`
}

// allTraffic is every address there is.
const allTraffic = "0.0.0.0/0"

// networkConfig is what the network of a sandbox lets through. The server
// remembers it; what goes out is held to it with [WithHosts].
type networkConfig struct {
	AllowPublicTraffic *bool            `json:"allowPublicTraffic,omitempty"`
	AllowOut           []string         `json:"allowOut,omitempty"`
	DenyOut            []string         `json:"denyOut,omitempty"`
	EgressProxy        *egressProxy     `json:"egressProxy,omitempty"`
	MaskRequestHost    *string          `json:"maskRequestHost,omitempty"`
	Rules              map[string][]any `json:"rules,omitempty"`
}

type egressProxy struct {
	Address string `json:"address"`
}

func (n *networkConfig) private() bool {
	return n != nil && n.AllowPublicTraffic != nil && !*n.AllowPublicTraffic
}

// check refuses what E2B refuses.
func (n *networkConfig) check() error {
	switch {
	case n == nil:
		return nil
	case n.EgressProxy != nil:
		return fail(http.StatusForbidden, "Egress proxy (network.egressProxy) is not enabled for this team.")
	}
	for _, address := range n.DenyOut {
		if !isSpecified(address) {
			return fail(http.StatusBadRequest, "invalid denied CIDR %s", address)
		}
	}
	for _, address := range n.AllowOut {
		if isAddress(address) && !isSpecified(address) {
			return fail(http.StatusBadRequest, "invalid allowed address %s", address)
		}
	}
	domains := slices.ContainsFunc(n.AllowOut, func(s string) bool { return !isAddress(s) })
	if domains && !slices.Contains(n.DenyOut, allTraffic) {
		return fail(http.StatusBadRequest, "When specifying allowed domains in allow out, "+
			"you must include 'ALL_TRAFFIC' in deny out to block all other traffic.")
	}
	return nil
}

func isAddress(s string) bool {
	if _, err := netip.ParsePrefix(s); err == nil {
		return true
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

// isSpecified reports whether s is an address or network that E2B takes: of
// those that begin with zeros it is the one that is everything.
func isSpecified(s string) bool {
	if p, err := netip.ParsePrefix(s); err == nil {
		return s == allTraffic || !p.Addr().IsUnspecified()
	}
	a, err := netip.ParseAddr(s)
	return err == nil && !a.IsUnspecified()
}

// sandboxAnswer describes a sandbox to who may use it.
type sandboxAnswer struct {
	TemplateID         string `json:"templateID"`
	SandboxID          string `json:"sandboxID"`
	Alias              string `json:"alias"`
	ClientID           string `json:"clientID"`
	EnvdVersion        string `json:"envdVersion"`
	EnvdAccessToken    string `json:"envdAccessToken,omitempty"`
	TrafficAccessToken string `json:"trafficAccessToken,omitempty"`
}

func (s *Server) sandboxAnswer(i *instance) sandboxAnswer {
	a := sandboxAnswer{
		TemplateID:  i.template.id,
		SandboxID:   i.id,
		Alias:       i.template.alias(),
		ClientID:    clientID,
		EnvdVersion: i.size.envdVersion,
	}
	if i.config.secure {
		a.EnvdAccessToken = s.token(i.id)
	}
	if i.config.private {
		a.TrafficAccessToken = s.trafficToken(i.id)
	}
	return a
}

func (s *Server) trafficToken(id string) string { return s.token("sandbox-traffic-" + id) }

func (c *control) createV1(w http.ResponseWriter, r *http.Request) (int, any, error) {
	return c.create(w, r, defaultTimeout, false)
}

func (c *control) createV2(w http.ResponseWriter, r *http.Request) (int, any, error) {
	return c.create(w, r, defaultTimeoutV2, true)
}

func (c *control) create(w http.ResponseWriter, r *http.Request, timeout time.Duration, secure bool) (int, any, error) {
	if err := c.admitCreate(w); err != nil {
		return 0, nil, err
	}
	var req newSandboxRequest
	if err := decode(r, true, &req, "mcp"); err != nil {
		return 0, nil, err
	}
	if req.TemplateID == nil {
		return 0, nil, invalid("request body", `doesn't match schema #/components/schemas/NewSandbox: Error at "/templateID": property "templateID" is missing`)
	}
	req.Secure = req.Secure || secure
	l, err := c.launch(&req)
	if err != nil {
		return 0, nil, err
	}
	if l.timeout, err = c.checkTimeout(req.Timeout, timeout); err != nil {
		return 0, nil, err
	}
	if err := req.check(); err != nil {
		return 0, nil, err
	}
	i, err := c.server.create(r.Context(), l)
	if err != nil {
		return 0, nil, c.creationError(err)
	}
	r.Context().Value(exchangeKey{}).(*exchange).update(func(e *HTTPRequest) { e.Sandbox = i.id })
	return http.StatusCreated, c.server.sandboxAnswer(i), nil
}

// launch finds the template.
func (c *control) launch(req *newSandboxRequest) (launch, error) {
	identifier, tag, err := parseName(*req.TemplateID)
	if err != nil {
		return launch{}, fail(http.StatusBadRequest, "Invalid template reference: %v", err)
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	t := c.server.templateLocked(identifier)
	if t == nil {
		return launch{}, fail(http.StatusNotFound, "template '%s' not found", identifier)
	}
	if tag == "" {
		tag = defaultTag
	}
	b := t.build(tag)
	if b == nil {
		return launch{}, fail(http.StatusNotFound, "tag '%s' does not exist for template '%s'", tag, identifier)
	}
	return launch{
		template: t,
		build:    b,
		size:     b.size,
		setup:    b.setup,
		network:  req.Network,
		allow:    req.AllowEgress,
		config: instanceConfig{
			metadata:        req.Metadata,
			env:             req.EnvVars,
			secure:          req.Secure,
			private:         req.Network.private(),
			autoPause:       req.AutoPause,
			autoPauseMemory: req.AutoPauseMemory == nil || *req.AutoPauseMemory,
			autoResume:      req.AutoResume != nil && req.AutoResume.Enabled != nil && *req.AutoResume.Enabled,
		},
	}, nil
}

// check refuses what E2B refuses after the schema.
func (req *newSandboxRequest) check() error {
	filesOnly := req.AutoPauseMemory != nil && !*req.AutoPauseMemory
	switch {
	case req.AutoResume != nil && req.AutoResume.Enabled == nil:
		return invalid("request body", `doesn't match schema: Error at "/autoResume/enabled": property "enabled" is missing`)
	case filesOnly && !req.AutoPause:
		return fail(http.StatusBadRequest, "autoPauseMemory=false only applies when autoPause is true.")
	case filesOnly && req.AutoResume != nil && *req.AutoResume.Enabled:
		return fail(http.StatusBadRequest, "autoPauseMemory=false (filesystem-only auto-pause) cannot be combined with autoResume: "+
			"a filesystem-only snapshot cannot be auto-resumed by traffic and must be resumed explicitly.")
	case len(req.IAM.Tokens) > 0:
		return fail(http.StatusBadRequest, "Sandbox IAM workload tokens are not available for your team.")
	}
	if err := req.Network.check(); err != nil {
		return err
	}
	switch {
	case req.Network.private() && !req.Secure:
		return fail(http.StatusBadRequest, "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.")
	case len(req.VolumeMounts) > 0:
		return fail(http.StatusBadRequest, "Volume mounts are not enabled.")
	}
	return nil
}

// checkTimeout refuses times that E2B refuses.
func (c *control) checkTimeout(asked *seconds, otherwise time.Duration) (time.Duration, error) {
	switch {
	case asked == nil:
		return otherwise, nil
	case *asked == 0:
		return 0, fail(http.StatusBadRequest, "Timeout must be greater than 0")
	}
	return asked.duration(), c.checkMax(asked.duration())
}

func (c *control) checkMax(d time.Duration) error {
	if limit := c.server.opts.maxTimeout; d > limit {
		return fail(http.StatusBadRequest, "Timeout cannot be greater than %v hours", math.Floor(limit.Hours()*100)/100)
	}
	return nil
}

// creationError is the answer where no sandbox could be started.
func (c *control) creationError(err error) error {
	if errors.Is(err, errLimit) {
		return fail(http.StatusTooManyRequests, "%s", c.limitMessage())
	}
	var known *apiError
	if errors.As(err, &known) {
		return known
	}
	c.server.log.Debug("sandbox cannot be created", "error", err)
	failed := fail(http.StatusInternalServerError, "Failed to create sandbox: %v", err)
	failed.ErrorCode = "sandbox_create_failed"
	return failed
}

func (c *control) limitMessage() string { return limitMessage(c.server.opts.maxConcurrency) }
