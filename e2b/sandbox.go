package e2b

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// envdPort is the port of the daemon in every sandbox.
const envdPort = "49983"

// sharedDomains have one host for the daemons of all sandboxes. Other domains
// have one host name for each. The list is that of the official SDKs.
func sharedDomains() []string {
	return []string{"e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"}
}

// Sandbox is a running sandbox. Its methods may be called concurrently.
//
// Paths in a sandbox are absolute, or relative to the home directory of the
// sandbox's default user.
type Sandbox struct {
	client *Client
	answer sandboxAnswer
	base   string // URL of the daemon, without a slash at the end
	rpc    daemon

	ctx    context.Context // ends when the sandbox is known to be gone
	cancel context.CancelCauseFunc
	tasks  tasks // what the sandbox itself does in the background
	probe  inputProbe
}

func newSandbox(c *Client, a sandboxAnswer) *Sandbox {
	s := &Sandbox{client: c, answer: a}
	s.base = s.daemonURL()
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.rpc = newDaemon(s)
	return s
}

// domain is that of the sandbox's deployment; empty where it is not known.
func (s *Sandbox) domain() string {
	if s.answer.Domain != "" {
		return s.answer.Domain
	}
	return s.client.cfg.Domain
}

// daemonURL is where the daemon of a sandbox is reached.
func (s *Sandbox) daemonURL() string {
	domain := s.domain()
	switch {
	case s.client.cfg.SandboxURL != "":
		return s.client.cfg.SandboxURL
	case domain == "":
		return nowhere
	case slices.Contains(sharedDomains(), domain):
		return "https://sandbox." + domain
	default:
		return "https://" + envdPort + "-" + s.ID() + "." + domain
	}
}

// nowhere stands for the daemon of a sandbox when it is not known where it is.
// Nothing has a name under this domain (RFC 2606).
const nowhere = "https://sandbox.invalid"

// placed returns an error when it is not known where the sandbox is.
func (s *Sandbox) placed() error {
	if s.base != nowhere {
		return nil
	}
	return fmt.Errorf("%w: the API is not that of E2B's cloud, and nothing says where its sandboxes are; set E2B_SANDBOX_URL or E2B_DOMAIN, or Config.SandboxURL or Config.Domain", ErrInvalid)
}

// authorize sets the headers that lead a request to this sandbox and let it
// in.
func (s *Sandbox) authorize(h http.Header) {
	h.Set("E2b-Sandbox-Id", s.answer.SandboxID)
	h.Set("E2b-Sandbox-Port", envdPort)
	if s.answer.EnvdAccessToken != "" {
		h.Set("X-Access-Token", s.answer.EnvdAccessToken)
	}
}

// String names the sandbox, and leaves out its token.
func (s *Sandbox) String() string { return "sandbox " + s.ID() }

// GoString is String: the token must not get into a log by %#v either.
func (s *Sandbox) GoString() string { return s.String() }

// ID returns the sandbox's ID.
func (s *Sandbox) ID() string { return s.answer.SandboxID }

// TemplateID returns the ID of the template that the sandbox was made from.
func (s *Sandbox) TemplateID() string { return s.answer.TemplateID }

// EnvdVersion returns the version of the sandbox's daemon, as "0.6.13".
func (s *Sandbox) EnvdVersion() string { return s.answer.EnvdVersion }

// Kill removes the sandbox with all its processes and files, as [Client.Kill],
// and lets go of everyone who waits for something in it.
func (s *Sandbox) Kill(ctx context.Context) error {
	if err := s.client.Kill(ctx, s.ID()); err != nil {
		return err
	}
	s.cancel(fmt.Errorf("%w: it was killed", ErrSandboxGone))
	s.tasks.wait()
	return nil
}

// SetTimeout sets the sandbox's end, as [Client.SetTimeout].
func (s *Sandbox) SetTimeout(ctx context.Context, d time.Duration) error {
	return s.client.SetTimeout(ctx, s.ID(), d)
}

// Refresh moves the sandbox's end, as [Client.Refresh].
func (s *Sandbox) Refresh(ctx context.Context, d time.Duration) error {
	return s.client.Refresh(ctx, s.ID(), d)
}

// Info describes the sandbox as it is now, as [Client.Get].
func (s *Sandbox) Info(ctx context.Context) (*SandboxInfo, error) {
	return s.client.Get(ctx, s.ID())
}

// Pause pauses the sandbox, as [Client.Pause]. That cuts the connections to
// its processes; once it runs again they are found by [Sandbox.Attach].
func (s *Sandbox) Pause(ctx context.Context) error {
	return s.client.Pause(ctx, s.ID())
}

// CreateSnapshot makes a snapshot of the sandbox, as [Client.CreateSnapshot].
func (s *Sandbox) CreateSnapshot(ctx context.Context, name string) (*Snapshot, error) {
	return s.client.CreateSnapshot(ctx, s.ID(), name)
}

// Metrics measures the sandbox, as [Client.Metrics].
func (s *Sandbox) Metrics(ctx context.Context, start, end time.Time) ([]Metrics, error) {
	return s.client.Metrics(ctx, s.ID(), start, end)
}

// Logs reads the sandbox's log, as [Client.Logs].
func (s *Sandbox) Logs(ctx context.Context, o LogOptions) ([]LogEntry, error) {
	return s.client.Logs(ctx, s.ID(), o)
}

// tasks are goroutines with an owner, who can wait until they have ended and
// no other starts.
type tasks struct {
	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
}

// start runs f in a goroutine, or not at all once wait was called.
func (t *tasks) start(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.wg.Go(f)
	}
}

func (t *tasks) wait() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.wg.Wait()
}
