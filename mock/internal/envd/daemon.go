package envd

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// DefaultVersion is the version of the daemon whose manners are copied.
const DefaultVersion = "0.6.13"

// Options are the settings of a [Daemon]. The zero value is an open daemon
// without global variables.
type Options struct {
	Token   string            // access token; empty means that anybody may use it
	Env     map[string]string // of every process, unless its own say otherwise
	User    string            // who acts where a request names nobody; empty means the machine's default
	Workdir string            // of processes that name none; empty means the user's home
	Now     func() time.Time  // for exits and signatures that expire; nil means time.Now
	Version string            // empty means DefaultVersion
	Logger  *slog.Logger      // nil discards
}

// Daemon serves the files and processes of a machine over HTTP/1.1 or HTTP/2.
// It must be closed.
type Daemon struct {
	machine Machine
	now     func() time.Time
	version string
	log     *slog.Logger
	routes  map[string]route
	refuse  *connect.ErrorWriter

	processes sync.Map // pid (uint32) to *process; its order is why tags fail, see lookup

	mu       sync.Mutex
	settings settings
	exits    map[uint32]exit
	watchers map[string]*watcher
	calls    map[*call]struct{}
	closed   bool

	wg sync.WaitGroup // requests, and what they left behind
}

// route has the handlers of a path: one for each method, or one for all.
type route struct {
	allow    []string
	handlers map[string]http.HandlerFunc
	rpc      http.Handler
}

// New returns the daemon of a machine.
func New(m Machine, opts Options) *Daemon {
	d := &Daemon{
		machine:  m,
		now:      opts.Now,
		version:  opts.Version,
		log:      opts.Logger,
		refuse:   connect.NewErrorWriter(),
		settings: newSettings(opts),
		exits:    make(map[uint32]exit),
		watchers: make(map[string]*watcher),
		calls:    make(map[*call]struct{}),
	}
	if d.now == nil {
		d.now = time.Now
	}
	if d.version == "" {
		d.version = DefaultVersion
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.routes = d.newRoutes()
	return d
}

func (d *Daemon) newRoutes() map[string]route {
	get := func(h http.HandlerFunc) route {
		return route{allow: []string{"GET"}, handlers: map[string]http.HandlerFunc{"GET": h}}
	}
	post := func(h http.HandlerFunc) route {
		return route{allow: []string{"POST"}, handlers: map[string]http.HandlerFunc{"POST": h}}
	}
	routes := map[string]route{
		"/health":        get(health),
		"/metrics":       get(d.metrics),
		"/envs":          get(d.envs),
		"/init":          post(d.initialize),
		"/files/compose": post(d.compose),
		"/files": {allow: []string{"GET", "POST"}, handlers: map[string]http.HandlerFunc{
			"GET": d.download, "POST": d.upload,
		}},
	}
	for procedure, h := range d.procedures() {
		routes[procedure] = route{rpc: h}
	}
	return routes
}

// ServeHTTP serves one request. It drops the connection, by panicking with
// [http.ErrAbortHandler], where the real daemon would: see
// [Daemon.CutStreams].
func (d *Daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ctx := d.enter(w, r)
	defer d.leave(c)
	if allowOrigin(c, r) {
		return
	}
	if !d.authorized(r) {
		writeError(c, http.StatusUnauthorized, errors.New("the access token is missing or wrong"))
		return
	}
	if name, _, ok := r.BasicAuth(); ok {
		u, err := d.named(name)
		if err != nil {
			err = connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
			_ = d.refuse.Write(c, r, err)
			return
		}
		ctx = context.WithValue(ctx, userKey{}, u)
	}
	d.dispatch(c, r.WithContext(ctx))
}

func (d *Daemon) dispatch(w http.ResponseWriter, r *http.Request) {
	rt, ok := d.routes[r.URL.EscapedPath()]
	switch {
	case !ok:
		http.NotFound(w, r)
	case rt.rpc != nil:
		rt.rpc.ServeHTTP(w, r)
	case rt.handlers[r.Method] == nil:
		w.Header()["Allow"] = rt.allow
		w.WriteHeader(http.StatusMethodNotAllowed)
	default:
		rt.handlers[r.Method](w, r)
	}
}

// allowOrigin sets the headers that browsers ask for, and reports whether that
// was all there was to do.
func allowOrigin(w http.ResponseWriter, r *http.Request) (done bool) {
	h := w.Header()
	method := r.Header.Get("Access-Control-Request-Method")
	if r.Method == http.MethodOptions && method != "" {
		h.Set("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
		if r.Header.Get("Origin") != "" && slices.Contains([]string{"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"}, method) {
			h.Set("Access-Control-Allow-Origin", "*")
			h.Set("Access-Control-Allow-Methods", method)
			if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
				h.Set("Access-Control-Allow-Headers", asked)
			}
			h.Set("Access-Control-Max-Age", "7200") // seconds
		}
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	h.Set("Vary", "Origin")
	if r.Header.Get("Origin") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", strings.Join([]string{
			"Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin", "Location", "Cache-Control", "X-Content-Type-Options",
		}, ", "))
	}
	return false
}

// authorized checks the access token. Some paths see to it themselves.
func (d *Daemon) authorized(r *http.Request) bool {
	switch r.Method + r.URL.Path {
	case "GET/health", "GET/files", "POST/files", "POST/init":
		return true
	}
	token := d.current().token
	return token == "" || same(token, r.Header.Get(tokenHeader))
}

const tokenHeader = "X-Access-Token"

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// call is a request that is being served. It is the response writer of its
// handler, so that it can be silenced.
type call struct {
	http.ResponseWriter
	cancel context.CancelFunc

	mu  sync.Mutex
	cut bool
}

// goneKey finds the channel in a request's context that is closed when the
// client is gone or cut off. Unlike the context it knows no deadline.
type goneKey struct{}

func gone(ctx context.Context) <-chan struct{} {
	ch, _ := ctx.Value(goneKey{}).(<-chan struct{})
	return ch
}

func (d *Daemon) enter(w http.ResponseWriter, r *http.Request) (*call, context.Context) {
	ctx, cancel := context.WithCancel(r.Context())
	ctx = context.WithValue(ctx, goneKey{}, ctx.Done())
	c := &call{ResponseWriter: w, cancel: cancel}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		cancel()
		panic(http.ErrAbortHandler)
	}
	d.calls[c] = struct{}{}
	d.wg.Add(1)
	return c, ctx
}

func (d *Daemon) leave(c *call) {
	defer d.wg.Done()
	c.cancel()
	d.mu.Lock()
	delete(d.calls, c)
	d.mu.Unlock()
	if c.isCut() {
		panic(http.ErrAbortHandler)
	}
}

// sever makes the handler of a call end without another byte for its client.
func (c *call) sever() {
	c.mu.Lock()
	c.cut = true
	c.mu.Unlock()
	c.cancel()
	// Reads and writes that are under way end by a deadline in the past.
	rc := http.NewResponseController(c.ResponseWriter)
	_ = rc.SetReadDeadline(time.Unix(1, 0))
	_ = rc.SetWriteDeadline(time.Unix(1, 0))
}

func (c *call) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

func (c *call) Write(p []byte) (int, error) {
	if c.isCut() {
		return 0, errors.New("the connection was cut")
	}
	return c.ResponseWriter.Write(p)
}

// Flush makes a call an http.Flusher, for connect.
func (c *call) Flush() {
	if !c.isCut() {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
	}
}

// CutStreams resets all open streams and requests, as pausing or killing a
// sandbox does: their connections end without another byte. Processes go on.
// A request that comes after it is served.
func (d *Daemon) CutStreams() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.calls {
		c.sever()
	}
}

// Close cuts all streams, kills the processes that were started, stops the
// watchers, and waits for the end of all of it. Requests that come after it
// are dropped. It does not close the machine, which may be closed before or
// after.
func (d *Daemon) Close() {
	d.mu.Lock()
	d.closed = true
	watchers := d.watchers
	d.watchers = nil
	d.mu.Unlock()
	d.CutStreams()
	for _, w := range watchers {
		w.stop()
	}
	d.processes.Range(func(_, p any) bool {
		p.(*process).abandon()
		return true
	})
	d.wg.Wait()
}

// outlive runs f, which may block for as long as a process likes, and waits
// for it while the client is there. The client's leaving does not stop f.
func (d *Daemon) outlive(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	d.wg.Go(func() { done <- f() })
	select {
	case err := <-done:
		return err
	case <-gone(ctx):
		return context.Canceled
	}
}
