package remote

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// sandboxURL is where sandboxes are reached; empty means by E2B's domain.
func (c Config) sandboxURL() string { return cmp.Or(c.SandboxURL, os.Getenv("E2B_SANDBOX_URL")) }

// e2bClient returns the client of the account that a Config names.
func (c Config) e2bClient() (*e2b.Client, error) {
	client, err := e2b.NewClient(e2b.Config{
		APIKey: c.APIKey, Domain: c.Domain, APIURL: c.APIURL, SandboxURL: c.SandboxURL,
		MaxSandboxes: c.MaxSandboxes, CreateRate: c.CreateRate, CreateWait: c.createWait(),
	})
	if err != nil {
		return nil, &configError{err}
	}
	return client, nil
}

// configError is a Config that no client can be made from. It matches
// [ErrInvalid].
type configError struct{ err error }

func (e *configError) Error() string        { return "remote: " + strings.TrimPrefix(e.err.Error(), "e2b: ") }
func (e *configError) Unwrap() error        { return e.err }
func (e *configError) Is(target error) bool { return target == ErrInvalid }

// The keys of the metadata that every sandbox of this library has in E2B. Sweep
// finds and judges sandboxes by them.
const (
	sessionKey = "osiris_session" // ExecutionContext.SessionID
	libraryKey = "osiris_library" // always libraryMark
	ownerKey   = "osiris_owner"   // the adapter that has made it
	leaseKey   = "osiris_lease"   // how long a renewal lasts, in seconds
	timeoutKey = "osiris_timeout" // of the run, in seconds

	libraryMark = "remote"
)

// newOwner names an adapter, and no other.
func newOwner() string { return strings.ToLower(rand.Text()) }

// openE2B makes a sandbox in E2B that has the size the run asks for. Whether it
// has the time, too, is for checkLife to find out.
func openE2B(client *e2b.Client, owner string, near bool) func(context.Context, SandboxConfig, *egressPlan) (Sandbox, error) {
	longest := new(atomic.Int64)
	return func(ctx context.Context, cfg SandboxConfig, plan *egressPlan) (Sandbox, error) {
		metadata := maps.Clone(cfg.Metadata)
		if metadata == nil {
			metadata = make(map[string]string)
		}
		metadata[libraryKey], metadata[ownerKey] = libraryMark, owner
		metadata[leaseKey] = strconv.Itoa(int(cfg.lease() / time.Second))
		metadata[timeoutKey] = strconv.Itoa(cfg.TimeoutSeconds)
		s, err := createLimited(ctx, client, e2b.CreateOptions{
			Template: cfg.Template, Timeout: cfg.lease(), Metadata: metadata, AutoPause: cfg.OnHostLoss == Pause,
			PrivateTraffic: true,
		}, cfg, plan, near)
		if err != nil {
			return nil, err
		}
		s.longest = longest
		if err := s.fit(ctx, cfg, plan); err != nil {
			return nil, errors.Join(err, killSurely(context.WithoutCancel(ctx), s, cleanupGrace))
		}
		return s, nil
	}
}

// createLimited makes a sandbox with its ports private and its network limited.
// A server that refuses that is asked for one without, where the policy allows
// it: what was refused has made nothing.
func createLimited(ctx context.Context, client *e2b.Client, o e2b.CreateOptions, cfg SandboxConfig, plan *egressPlan, near bool) (*e2bSandbox, error) {
	required := false
	if plan != nil {
		o.Network, required = plan.rules().network(), plan.in.policy == EgressRequired
	}
	sb, err := client.CreateSandbox(ctx, o)
	if err == nil {
		return newE2BSandbox(sb, cfg.lease(), near), nil
	}
	if !refusesNetwork(err) || required {
		return nil, err
	}
	o.Network, o.PrivateTraffic = e2b.Network{}, false
	sb, plainErr := client.CreateSandbox(ctx, o)
	if plainErr != nil {
		return nil, plainErr // that was not it
	}
	s := newE2BSandbox(sb, cfg.lease(), near)
	s.notLimited = fmt.Errorf("the server makes no sandbox with network rules: %w", err)
	return s, nil
}

// refusesNetwork reports whether a create may have failed for its network: a
// server that does not know that part of it says so in many ways.
func refusesNetwork(err error) bool {
	var refused *e2b.APIError
	if errors.Is(err, e2b.ErrTemplate) || errors.Is(err, e2b.ErrQuota) || !errors.As(err, &refused) {
		return false
	}
	switch refused.Status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusNotImplemented:
		return true
	}
	return false
}

// newE2BSandbox is a sandbox that lives for a while from now.
func newE2BSandbox(sb *e2b.Sandbox, life time.Duration, near bool) *e2bSandbox {
	return &e2bSandbox{
		sb: sb, info: SandboxInfo{ID: sb.ID()}, near: near,
		end: make(mutex, 1), endAt: time.Now().Add(life), uploaded: make(map[string]bool), longest: new(atomic.Int64),
	}
}

// fit checks that a new sandbox has the size of its run, and its rules.
func (s *e2bSandbox) fit(ctx context.Context, cfg SandboxConfig, plan *egressPlan) error {
	info, err := s.sb.Info(ctx)
	if err != nil {
		return err
	}
	s.describe(info, cfg.Template)
	if err := checkSize(cfg, s.info); err != nil || plan == nil || plan.in.policy == EgressOpen {
		return err
	}
	if s.notLimited == nil {
		s.notLimited = checkNetwork(plan.rules().network(), info.Network)
	}
	if s.notLimited != nil && plan.in.policy == EgressRequired {
		return fmt.Errorf("%w: %w; Config.Egress is %q", ErrUnsupported, s.notLimited, EgressRequired)
	}
	return nil
}

// checkNetwork compares the rules that were asked for with those in force: a
// server that does not know them takes them without a word.
func checkNetwork(want, got e2b.Network) error {
	if !slices.Contains(got.DenyOut, e2b.AllTraffic) {
		return errors.New("the server has taken the network rules, and has none in force")
	}
	for _, target := range got.AllowOut {
		if !slices.Contains(want.AllowOut, target) {
			return fmt.Errorf("the server allows %.100q, which was not asked for", target)
		}
	}
	return nil
}

// unlimited implements limiter.
func (s *e2bSandbox) unlimited() error { return s.notLimited }

// openPorts implements limiter.
func (s *e2bSandbox) openPorts() bool { return !s.sb.Private() }

// setNetwork implements limiter.
func (s *e2bSandbox) setNetwork(ctx context.Context, n e2b.Network) error {
	return s.sb.SetNetwork(ctx, n)
}

// checkLife finds out whether the account allows the run its time, and the time
// to collect, by asking for it and taking it back. What was once allowed is not
// asked for again.
func (s *e2bSandbox) checkLife(ctx context.Context, cfg SandboxConfig) error {
	run := time.Duration(cfg.TimeoutSeconds) * time.Second
	if need := run + collectLease; need <= cfg.lease() || int64(need) <= s.longest.Load() {
		return nil
	}
	if err := s.end.lock(ctx); err != nil { // a renewal meanwhile would look like a limit
		return err
	}
	defer s.end.unlock()
	if err := s.lengthen(ctx, run); err != nil {
		return err
	}
	info, err := s.sb.Info(ctx)
	_ = s.setEnd(ctx, cfg.lease()) // else the next renewal does it
	if err != nil {
		return err
	}
	if err := checkEnd(run, info); err != nil {
		return err
	}
	for known := s.longest.Load(); known < int64(run+collectLease); known = s.longest.Load() {
		s.longest.CompareAndSwap(known, int64(run+collectLease))
	}
	return nil
}

// lengthen asks for the time of a run and of collecting what it leaves.
func (s *e2bSandbox) lengthen(ctx context.Context, run time.Duration) error {
	if err := s.setEnd(ctx, run+collectLease); err != nil {
		return fmt.Errorf("give the sandbox %s: %w", run+collectLease, err)
	}
	return nil
}

func (s *e2bSandbox) describe(info *e2b.SandboxInfo, template string) {
	s.info = SandboxInfo{ID: s.sb.ID(), Template: template, CPU: info.CPU, MemoryGB: float64(info.MemoryMB) / 1024}
}

// checkSize refuses a sandbox that has another size than the run asks for.
func checkSize(cfg SandboxConfig, info SandboxInfo) error {
	if sameSize(cfg, info) {
		return nil
	}
	return fmt.Errorf("%w: the run asks for %s, and the template %q makes sandboxes with %s; "+
		"E2B sets both on the template: name one that has them in Config.Template, or leave Config.CPU and Config.MemoryGB zero to take what there is",
		ErrSandboxSize, describeSize(cfg.CPU, cfg.MemoryGB), cfg.Template, describeSize(info.CPU, info.MemoryGB))
}

// sameSize reports whether a sandbox has the size that a run asks for. E2B has
// even numbers of MiB.
func sameSize(cfg SandboxConfig, info SandboxInfo) bool {
	return (cfg.CPU == 0 || cfg.CPU == info.CPU) &&
		(cfg.MemoryGB == 0 || evenMB(cfg.MemoryGB) == evenMB(info.MemoryGB) || math.Abs(cfg.MemoryGB-info.MemoryGB) < 1.0/1024)
}

func describeSize(cpu int, memoryGB float64) string {
	switch {
	case cpu == 0:
		return fmt.Sprintf("%g GiB of memory", memoryGB)
	case memoryGB == 0:
		return fmt.Sprintf("%d CPUs", cpu)
	}
	return fmt.Sprintf("%d CPUs and %g GiB of memory", cpu, memoryGB)
}

// checkEnd refuses a run that the account's limit would cut: E2B shortens a
// sandbox's life without a word. Both times are the server's, whose clock need
// not be ours.
func checkEnd(run time.Duration, info *e2b.SandboxInfo) error {
	const tolerance = 2 * time.Second // E2B counts in seconds
	if info.StartedAt.IsZero() || info.EndAt.IsZero() {
		return nil
	}
	life := info.EndAt.Sub(info.StartedAt) // at most 292 years, also where there is no limit
	if life >= run+collectLease-tolerance {
		return nil
	}
	most := (life - collectLease).Round(time.Second)
	if most <= 0 {
		return fmt.Errorf("%w: the account's limit ends the sandbox %s after its start, and %s of that are kept to collect the artifacts: there is no time for a run; use an account that allows more",
			ErrInvalid, life.Round(time.Second), collectLease)
	}
	return fmt.Errorf("%w: the run may take %s, and %s more to collect, but the account's limit ends the sandbox %s after its start; set Config.Timeout to %s or less",
		ErrInvalid, run, collectLease, life.Round(time.Second), most)
}

// e2bSandbox is a sandbox of E2B as an adapter sees one.
type e2bSandbox struct {
	sb   *e2b.Sandbox
	info SandboxInfo
	near bool // not over the internet

	notLimited error // why the network rules that were asked for are not in force
	end        mutex // held while the sandbox's end is moved

	longest *atomic.Int64 // life that the account is known to allow, in nanoseconds; its sandboxes share it

	mu       sync.Mutex
	uploaded map[string]bool // by path: it is not executable yet
	endAt    time.Time       // as it was last set, by this machine's clock
}

func (s *e2bSandbox) Info() SandboxInfo { return s.info }

func (s *e2bSandbox) Upload(ctx context.Context, path string, r io.Reader, size int64) error {
	return s.note(path, s.sb.Upload(ctx, path, r, size))
}

// note remembers an uploaded file.
func (s *e2bSandbox) note(path string, err error) error {
	if err == nil {
		s.makeExecutable(path)
	}
	return err
}

// makeExecutable has a file made executable before it is started.
func (s *e2bSandbox) makeExecutable(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploaded[path] = true
}

// uploadProgram compresses the worker, to less than half, where the way is
// longer than to the next machine: a processor core compresses some 60 MB/s,
// and the daemon unpacks 100 MB/s.
func (s *e2bSandbox) uploadProgram(ctx context.Context, to string, f *os.File, w *workerProgram) error {
	if s.near {
		return s.Upload(ctx, to, f, w.size)
	}
	return s.note(to, s.sb.Upload(ctx, to, f, w.size, e2b.WithGzip()))
}

// isNear reports whether a URL of sandboxes leads to this machine or its
// network. Empty means E2B's cloud.
func isNear(sandboxURL string) bool {
	u, err := url.Parse(sandboxURL)
	if err != nil || sandboxURL == "" {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && (addr.IsLoopback() || addr.IsPrivate())
}

func (s *e2bSandbox) Size(ctx context.Context, path string) (int64, error) {
	info, err := s.sb.Stat(ctx, path)
	if err != nil {
		return 0, err
	}
	return info.Size, nil
}

func (s *e2bSandbox) Download(ctx context.Context, path string) (io.ReadCloser, error) {
	d, err := s.sb.Download(ctx, path)
	if err != nil {
		return nil, err // not a nil pointer in a non-nil interface
	}
	return d, nil
}

// Start starts a process. The daemon makes no file executable, so one that was
// uploaded is started by way of a shell that does.
func (s *e2bSandbox) Start(ctx context.Context, cmd Command) (Process, error) {
	// All that an adapter starts may be started twice: a second worker finds a
	// journal that is not its own and ends, and the others only read.
	c := e2b.Command{Path: cmd.Path, Args: cmd.Args, Dir: cmd.Dir, Stdin: true, Stderr: cmd.Stderr, Repeatable: true}
	s.mu.Lock()
	uploaded := s.uploaded[cmd.Path]
	s.mu.Unlock()
	if uploaded {
		c.Path, c.Args = "/bin/sh", append([]string{"-c", `chmod 755 "$0" && exec "$0" "$@"`, cmd.Path}, cmd.Args...)
	}
	p, err := s.sb.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return &e2bProcess{p}, nil
}

func (s *e2bSandbox) Kill(ctx context.Context) error { return s.sb.Kill(ctx) }

func (s *e2bSandbox) Extend(ctx context.Context, d time.Duration) error {
	if err := s.end.lock(ctx); err != nil {
		return err
	}
	defer s.end.unlock()
	return s.setEnd(ctx, d)
}

// setEnd is Extend for who has the lock.
func (s *e2bSandbox) setEnd(ctx context.Context, d time.Duration) error {
	at := time.Now().Add(d)
	err := s.sb.SetTimeout(ctx, d)
	if err == nil {
		s.mu.Lock()
		s.endAt = at
		s.mu.Unlock()
	}
	return err
}

// State implements Sandbox. The end is by this machine's clock, that of E2B
// need not agree with it.
func (s *e2bSandbox) State(ctx context.Context) (SandboxState, error) {
	info, err := s.sb.Info(ctx)
	s.mu.Lock()
	state := SandboxState{Phase: SandboxRunning, EndAt: s.endAt}
	s.mu.Unlock()
	switch {
	case errors.Is(err, ErrSandboxGone):
		state.Phase = SandboxGone
		return state, nil
	case err != nil:
		return SandboxState{}, err
	case info.State == e2b.Paused:
		state.Phase = SandboxPaused
	}
	state.StartedAt = info.StartedAt
	return state, nil
}

// attach connects to a process that runs already. What it writes to its
// standard error meanwhile is lost.
func (s *e2bSandbox) attach(ctx context.Context, pid int) (Process, error) {
	p, err := s.sb.Attach(ctx, pid)
	if errors.Is(err, e2b.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", errExitUnknown, err)
	}
	if err != nil {
		return nil, err
	}
	return &e2bProcess{p}, nil
}

// errExitUnknown is matched by the error of Wait for a process that has ended
// too long ago to know how.
var errExitUnknown = e2b.ErrExitUnknown

// e2bProcess is a process of E2B as an adapter sees one.
type e2bProcess struct{ *e2b.Process }

func (p *e2bProcess) Wait(ctx context.Context) (ExitStatus, error) {
	status, err := p.Process.Wait(ctx)
	return ExitStatus{Code: status.Code, Signal: status.Signal}, err
}

func (p *e2bProcess) Signal(ctx context.Context, sig Signal) error {
	return p.Process.Signal(ctx, e2b.Signal(sig))
}
