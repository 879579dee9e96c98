package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// ErrNotPermitted means that this platform, or this user, cannot have network
// namespaces. One daemon, started elsewhere and shared, may do instead.
var ErrNotPermitted = errors.New("network namespaces are not permitted")

// Port is where a daemon listens, as in E2B's sandboxes.
const Port = 49983

// EnvdOptions are the settings of an [Envd]. Binary is required.
type EnvdOptions struct {
	// Binary is the path of E2B's daemon, a static program for Linux.
	Binary string

	// Dir, DiskBytes, ReadOnly and Hosts are as in [Options].
	Dir       string
	DiskBytes int64
	ReadOnly  []string
	Hosts     []Host

	// Image is a machine whose files the daemon's machine gets a copy of, as
	// [Machine.Clone] does. Nil means none.
	Image *Machine
}

// Envd is E2B's own daemon in an isolated machine with a network of its own,
// which has nothing but loopback. It must be closed.
type Envd struct {
	machine *Machine
	process envd.Process
	output  tail
	readers sync.WaitGroup // of its output
	waiter  sync.WaitGroup // for its end
	client  *http.Client
	dial    func(context.Context) (net.Conn, error)

	restarting sync.Mutex // held by Restart and Close
}

// StartEnvd starts a daemon and waits until it is healthy. It takes root on
// Linux; elsewhere the error is [ErrNotPermitted].
func StartEnvd(ctx context.Context, opts EnvdOptions) (*Envd, error) {
	if _, err := os.Stat(opts.Binary); err != nil {
		return nil, fmt.Errorf("start envd: %w", err)
	}
	for _, name := range opts.ReadOnly {
		if err := checkReadOnly(name); err != nil {
			return nil, err
		}
	}
	dir, err := makeDir(opts.Dir, "envd-")
	if err != nil {
		return nil, err
	}
	m, dial, err := newNetworked(opts, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start envd: %w", err), os.Remove(dir))
	}
	if opts.Image != nil {
		if err := opts.Image.copyTo(m); err != nil {
			return nil, errors.Join(fmt.Errorf("start envd: copy an image: %w", err), m.Close())
		}
	}
	e := &Envd{machine: m, dial: dial}
	e.client = &http.Client{Transport: e.Transport()}
	if err := e.run(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start envd: %w", err), e.Close())
	}
	return e, nil
}

// Listen is [Machine.Listen].
func (e *Envd) Listen(addr netip.AddrPort) (net.Listener, error) { return e.machine.Listen(addr) }

// Restart kills the daemon, and nothing else of the machine, and starts another
// one, which must be given what [Envd.Init] gave the first.
func (e *Envd) Restart(ctx context.Context) error {
	e.restarting.Lock()
	defer e.restarting.Unlock()
	if err := e.process.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("restart envd: %w", err)
	}
	e.process.Wait()
	e.waiter.Wait()
	e.client.CloseIdleConnections()
	if err := e.run(ctx); err != nil {
		return fmt.Errorf("restart envd: %w", err)
	}
	return nil
}

func (e *Envd) run(ctx context.Context) error {
	root, err := e.machine.User("root")
	if err != nil {
		return err
	}
	e.process, err = e.machine.Start(envd.Command{
		Path: daemonPath,
		Args: []string{"-isnotfc", "-no-cgroups", "-port", fmt.Sprint(Port)},
		Env:  []string{"PATH=" + systemPath, "HOME=/root", "USER=root", "LOGNAME=root"},
		Dir:  "/",
		User: root,
	})
	if err != nil {
		return err
	}
	for _, r := range []io.ReadCloser{e.process.Stdout(), e.process.Stderr()} {
		e.readers.Go(func() {
			_, _ = io.Copy(&e.output, r)
			_ = r.Close()
		})
	}
	return e.awaitHealth(ctx)
}

const (
	// daemonPath is where the daemon is in its machine.
	daemonPath = "/run/envd"
	// systemPath is the PATH of the daemon, which its processes inherit.
	systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// healthInterval is short, as the daemon takes a few milliseconds to start.
	healthInterval = 2 * time.Millisecond
)

func (e *Envd) awaitHealth(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.waiter.Go(func() {
		e.readers.Wait() // for its last words
		status := e.process.Wait()
		cancel(fmt.Errorf("ended early, exit code %d: %s", status.Code, e.output.String()))
	})
	for {
		err := e.do(ctx, http.MethodGet, "/health", nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until it is healthy: %w", context.Cause(ctx))
		case <-time.After(healthInterval):
		}
	}
}

// Init does what the control plane does when a sandbox has started: it sets
// the access token, the global variables, and the user and working directory of
// who names none. Nothing that is empty is set. A token can be set once only.
func (e *Envd) Init(ctx context.Context, token string, envs map[string]string, user, workdir string) error {
	body, err := json.Marshal(struct {
		AccessToken string            `json:"accessToken,omitempty"`
		EnvVars     map[string]string `json:"envVars,omitempty"`
		DefaultUser string            `json:"defaultUser,omitempty"`
		Workdir     string            `json:"defaultWorkdir,omitempty"`
	}{token, envs, user, workdir})
	if err != nil {
		return fmt.Errorf("init envd: %w", err)
	}
	if err := e.do(ctx, http.MethodPost, "/init", body); err != nil {
		return fmt.Errorf("init envd: %w", err)
	}
	return nil
}

// do sends a request that is answered by 204.
func (e *Envd) do(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", Port, path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}

// Dial connects to the daemon.
func (e *Envd) Dial(ctx context.Context) (net.Conn, error) { return e.dial(ctx) }

// Transport returns a new transport that connects every request to the daemon,
// whatever its host is. Its idle connections are the caller's to close.
func (e *Envd) Transport() *http.Transport {
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx) },
		MaxIdleConnsPerHost: 16, // all are to one host
		DisableCompression:  true,
	}
}

// Machine returns the files and processes that the daemon serves. It must not
// be closed.
func (e *Envd) Machine() envd.Machine { return e.machine }

// Close kills the daemon and all that it started, and removes the files.
func (e *Envd) Close() error {
	e.client.CloseIdleConnections()
	err := e.machine.Close() // which also ends a Restart
	e.restarting.Lock()
	defer e.restarting.Unlock()
	e.waiter.Wait()
	return err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if extra := len(t.last) - tailBytes; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.last))
}
