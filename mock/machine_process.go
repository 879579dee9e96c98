package mock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// bootTimeout bounds the start of a real daemon.
const bootTimeout = 30 * time.Second

func newProcessBackend(s *Server) (backend, error) {
	opts := machine.Options{DiskBytes: s.opts.memory.DiskBytes, Hosts: machineHosts(s.opts.hosts)}
	first, err := machine.New(opts) // to see what it is like
	if err != nil {
		return nil, err
	}
	return &machines{
		server: s,
		apart:  first.Isolation(),
		own:    first.Isolated(),
		env:    toolVariables(),
		open:   func(bootConfig) (envd.Machine, error) { return machine.New(opts) },
	}, first.Close()
}

// toolVariables are what programs with the race detector, or counting coverage,
// go by: tests start themselves as workers.
func toolVariables() map[string]string {
	env := make(map[string]string)
	for _, name := range []string{"GORACE", "GOCOVERDIR"} {
		if v := os.Getenv(name); v != "" {
			env[name] = v
		}
	}
	return env
}

// daemons is the back end of E2B's own daemon.
type daemons struct {
	server *Server
	apart  string
	own    bool // files
	start  func(ctx context.Context, image *machine.Machine) (*proxyGuest, error)
}

func newEnvdBackend(s *Server, path string) (backend, error) {
	if strings.HasPrefix(path, "http://") {
		return newSharedBackend(s, path)
	}
	b := &daemons{server: s, own: true, apart: "each sandbox is a machine with files, processes and a network of its own, in Linux namespaces"}
	b.start = func(ctx context.Context, image *machine.Machine) (*proxyGuest, error) {
		d, err := machine.StartEnvd(ctx, machine.EnvdOptions{
			Binary: path, DiskBytes: s.opts.memory.DiskBytes, Hosts: machineHosts(s.opts.hosts), Image: image,
		})
		if err != nil {
			return nil, err
		}
		return &proxyGuest{daemon: d, transport: d.Transport()}, nil
	}
	first, err := b.boot(s.ctx, bootConfig{}) // to see whether it can be
	if errors.Is(err, machine.ErrNotPermitted) {
		return nil, fmt.Errorf("%w; give mock.WithEnvd the URL of a daemon that runs already, for all sandboxes to share", err)
	}
	if err != nil {
		return nil, err
	}
	return b, first.close()
}

// newSharedBackend is the reduced mode for machines without namespaces.
func newSharedBackend(s *Server, address string) (backend, error) {
	if len(s.opts.hosts) > 0 {
		return nil, fmt.Errorf("%w: hosts for sandboxes that share a daemon", errors.ErrUnsupported)
	}
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	return &daemons{
		server: s,
		apart: "none: all sandboxes share the files and processes of one daemon, at " + target.Host +
			"; its access token is not set, and pausing or killing a sandbox ends its connections alone",
		start: func(context.Context, *machine.Machine) (*proxyGuest, error) {
			return &proxyGuest{shared: target, transport: &http.Transport{DisableCompression: true}}, nil
		},
	}, nil
}

func (b *daemons) isolation() string { return b.apart }

func (b *daemons) isolated() bool { return b.own }

func (b *daemons) close() error { return nil }

func (b *daemons) boot(ctx context.Context, c bootConfig) (guest, error) {
	image, ok := c.image.(*machine.Machine)
	if c.image != nil && !ok {
		return nil, errNotCopied
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	g, err := b.start(ctx, image)
	if err != nil {
		return nil, err
	}
	if g.daemon != nil {
		if err := g.daemon.Init(ctx, c.token, c.env, c.setup.defaultUser(), c.setup.workdir); err != nil {
			return nil, errors.Join(err, g.close())
		}
		if g.outlets, err = b.server.openOutlets(c.id, g.daemon.Listen); err != nil {
			return nil, errors.Join(err, g.close())
		}
	}
	g.config = c
	g.proxy = &httputil.ReverseProxy{
		Rewrite:       g.rewrite,
		Transport:     g.transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(b.server.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, _ error) {
			refuse(w, r, target{sandbox: c.id, port: envdPort}, errPortClosed, 0)
		},
	}
	return g, nil
}

// proxyGuest is a real daemon.
type proxyGuest struct {
	config    bootConfig
	daemon    *machine.Envd // of its own, or
	shared    *url.URL
	outlets   *outlets
	transport *http.Transport
	proxy     *httputil.ReverseProxy
}

func (g *proxyGuest) rewrite(r *httputil.ProxyRequest) {
	to := g.shared
	if to == nil {
		to = &url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", machine.Port)}
	}
	r.SetURL(to)
	r.Out.Host = r.In.Host
}

// ServeHTTP passes a request on. The daemon may answer before it has read all
// of a request; without full duplex the server would then close the connection.
func (g *proxyGuest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	g.proxy.ServeHTTP(w, r)
}

// restart kills the daemon and starts another.
func (g *proxyGuest) restart(ctx context.Context) error {
	if g.daemon == nil {
		return fmt.Errorf("%w: the daemon is shared", errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := g.daemon.Restart(ctx); err != nil {
		return err
	}
	g.transport.CloseIdleConnections()
	return g.daemon.Init(ctx, g.config.token, g.config.env, g.config.setup.defaultUser(), g.config.setup.workdir)
}

func (g *proxyGuest) cut() { g.transport.CloseIdleConnections() }

func (g *proxyGuest) freeze(frozen bool) error {
	if g.daemon == nil {
		return nil
	}
	return g.daemon.Machine().Freeze(frozen)
}

func (g *proxyGuest) reboot(bootConfig) (guest, error) { return nil, errNotCopied }

func (g *proxyGuest) image() (envd.Machine, error) { return nil, errNotCopied }

func (g *proxyGuest) usage() (envd.Usage, bool) {
	if g.daemon == nil {
		return envd.Usage{}, false
	}
	return g.daemon.Machine().Usage(), true
}

func (g *proxyGuest) memory() *Sandbox { return nil }

func (g *proxyGuest) inside() *workshop {
	return &workshop{machine: g.daemon.Machine(), env: toolVariables()}
}

func (g *proxyGuest) close() error {
	g.transport.CloseIdleConnections()
	g.outlets.close()
	if g.daemon == nil {
		return nil
	}
	return g.daemon.Close()
}
