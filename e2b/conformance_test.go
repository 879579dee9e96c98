//go:build unix

package e2b_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock/mocktest"
)

// TestConformance runs the suite for sandboxes on a real daemon, which runs as
// root on this computer and nowhere else: the tests kill its processes.
func TestConformance(t *testing.T) {
	daemon := os.Getenv("E2B_ENVD_URL")
	if daemon == "" {
		t.Skip("E2B_ENVD_URL does not name a daemon of E2B to test against")
	}
	for _, test := range []struct {
		name string
		edge func(http.Handler) http.Handler
	}{
		{"Edge", func(h http.Handler) http.Handler { return h }},
		{"BufferingEdge", buffering},
	} {
		t.Run(test.name, func(t *testing.T) {
			mocktest.TestSandbox(t, func(t *testing.T) mocktest.Env {
				return mocktest.Env{
					Sandbox: openSandbox(t, daemon, test.edge),
					Dir:     t.TempDir(),
					Command: mocktest.Shell,
					Running: func(pid int) bool { return syscall.Kill(pid, 0) == nil },
				}
			})
		})
	}
}

// cloud is a control plane and an edge in front of a daemon.
type cloud struct {
	daemon *httputil.ReverseProxy
	gone   atomic.Bool
	edge   *httptest.Server
}

func openSandbox(t *testing.T, daemon string, wrap func(http.Handler) http.Handler) *adapter {
	target, err := url.Parse(daemon)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	c := &cloud{daemon: &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	c.edge = httptest.NewServer(wrap(http.HandlerFunc(c.serveEdge)))
	t.Cleanup(func() { c.edge.Close(); transport.CloseIdleConnections() })
	control := httptest.NewServer(http.HandlerFunc(c.serveControl))
	t.Cleanup(control.Close)

	client, err := e2b.NewClient(e2b.Config{APIKey: "e2b_0123", APIURL: control.URL, SandboxURL: c.edge.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	s, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	direct, err := e2b.NewClient(e2b.Config{APIKey: "e2b_0123", APIURL: control.URL, SandboxURL: daemon})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { direct.Close() })
	behind, err := direct.CreateSandbox(t.Context(), e2b.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &adapter{s: s, cloud: c, behind: behind}
}

// serveEdge passes requests on to the daemon, until the sandbox is gone.
func (c *cloud) serveEdge(w http.ResponseWriter, r *http.Request) {
	if c.gone.Load() {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprintf(w, `{"sandboxId":%q,"message":"The sandbox was not found","code":502}`, r.Header.Get("E2b-Sandbox-Id"))
		return
	}
	// Otherwise the answers to open requests are held back.
	_ = http.NewResponseController(w).EnableFullDuplex()
	c.daemon.ServeHTTP(w, r)
}

func (c *cloud) serveControl(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && path.Base(r.URL.Path) == "sandboxes":
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"sandboxID":"i0123456789abcdefghij","templateID":"base","clientID":"6532622b","envdVersion":"0.6.13"}`)
	case c.gone.Load():
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"code":404,"message":"sandbox not found"}`)
	case r.Method == http.MethodDelete:
		c.gone.Store(true)
		c.edge.CloseClientConnections()
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodGet:
		fmt.Fprint(w, `{"sandboxID":"i0123456789abcdefghij","templateID":"base","clientID":"6532622b","envdVersion":"0.6.13","state":"running",`+
			`"startedAt":"2026-01-02T03:04:05Z","endAt":"2026-01-02T03:09:05Z","cpuCount":2,"memoryMB":512}`)
	default: // the time-out
		w.WriteHeader(http.StatusNoContent)
	}
}

// buffering holds a request back until all of it is there, as some proxies do.
func buffering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(w, r)
	})
}

// adapter makes a remote.Sandbox of a Sandbox.
type adapter struct {
	s      *e2b.Sandbox
	cloud  *cloud
	behind *e2b.Sandbox // the same machine, without an edge

	uploaded sync.Map // paths; the daemon makes nothing executable
}

func (a *adapter) Info() remote.SandboxInfo {
	return remote.SandboxInfo{ID: a.s.ID(), Template: a.s.TemplateID()}
}

func (a *adapter) Upload(ctx context.Context, name string, r io.Reader, size int64) error {
	a.uploaded.Store(name, true)
	return translate(a.s.Upload(ctx, name, r, size))
}

func (a *adapter) Download(ctx context.Context, name string) (io.ReadCloser, error) {
	d, err := a.s.Download(ctx, name)
	if err != nil {
		return nil, translate(err)
	}
	return d, nil
}

func (a *adapter) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	c := e2b.Command{Path: cmd.Path, Args: cmd.Args, Dir: cmd.Dir, Stderr: cmd.Stderr, Stdin: true}
	if _, ok := a.uploaded.Load(cmd.Path); ok {
		c.Path, c.Args = "/bin/sh", append([]string{"-c", `chmod 755 "$0" && exec "$0" "$@"`, cmd.Path}, cmd.Args...)
	}
	p, err := a.s.Start(ctx, c)
	if err != nil {
		return nil, translate(err)
	}
	return &adapterProcess{p}, nil
}

func (a *adapter) Extend(ctx context.Context, d time.Duration) error {
	return translate(a.s.SetTimeout(ctx, d))
}

func (a *adapter) State(ctx context.Context) (remote.SandboxState, error) {
	info, err := a.s.Info(ctx)
	if errors.Is(err, e2b.ErrSandboxGone) {
		return remote.SandboxState{Phase: remote.SandboxGone}, nil
	}
	if err != nil {
		return remote.SandboxState{}, err
	}
	return remote.SandboxState{Phase: remote.SandboxPhase(info.State), StartedAt: info.StartedAt, EndAt: info.EndAt}, nil
}

// Kill ends what the machine would have ended with itself.
func (a *adapter) Kill(ctx context.Context) error {
	if err := a.s.Kill(ctx); err != nil {
		return translate(err)
	}
	processes, err := a.behind.Processes(ctx)
	for _, p := range processes {
		err = errors.Join(err, a.behind.Signal(ctx, p.PID, e2b.SignalKill))
	}
	return err
}

type adapterProcess struct{ *e2b.Process }

func (p *adapterProcess) Wait(ctx context.Context) (remote.ExitStatus, error) {
	status, err := p.Process.Wait(ctx)
	return remote.ExitStatus(status), translate(err)
}

func (p *adapterProcess) Signal(ctx context.Context, sig remote.Signal) error {
	return translate(p.Process.Signal(ctx, e2b.Signal(sig)))
}

// translate makes errors match those of remote.
func translate(err error) error {
	if errors.Is(err, e2b.ErrSandboxGone) || errors.Is(err, e2b.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", remote.ErrSandboxGone, err)
	}
	return err
}

func (a *adapter) Size(ctx context.Context, name string) (int64, error) {
	info, err := a.s.Stat(ctx, name)
	return info.Size, translate(err)
}
