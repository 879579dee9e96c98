package mock

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"time"
)

// ServerOption is a setting of a [Server].
type ServerOption func(*serverOptions)

type serverOptions struct {
	memory         Options
	newBackend     func(*Server) (backend, error)
	templates      []Template
	apiKey         string
	maxTimeout     time.Duration
	maxConcurrency int
	maxBuilds      int
	createRate     float64 // a second; zero means no limit
	createBurst    int
	now            func() time.Time
	clock          bool // now was set
	listener       net.Listener
	hosts          []Host
	fault          func(HTTPRequest) *HTTPFault
	logger         *slog.Logger
}

func newServerOptions(opts []ServerOption) serverOptions {
	o := serverOptions{
		newBackend: newMemoryBackend,
		maxTimeout: 24 * time.Hour,
		now:        time.Now,
		logger:     slog.New(slog.DiscardHandler),
	}
	for _, opt := range opts {
		opt(&o)
	}
	if o.apiKey == "" {
		key := make([]byte, 20)
		rand.Read(key) // never fails
		o.apiKey = "e2b_" + hex.EncodeToString(key)
	}
	if len(o.templates) == 0 {
		o.templates = []Template{baseTemplate()}
	}
	return o
}

// WithOptions sets what the sandboxes in memory hold: drivers, programs, room
// for files. Fault is not used, see [WithFault]; nor does Now end sandboxes,
// see [WithClock]. Of WithProcesses and WithEnvd it sets DiskBytes alone.
func WithOptions(opts Options) ServerOption {
	return func(o *serverOptions) { o.memory = opts }
}

// WithProcesses makes sandboxes whose processes are those of this machine, each
// in a tree of files of its own. How well they are kept apart depends on the
// system, see [Server.Isolation]; run only what may run here.
func WithProcesses() ServerOption {
	return func(o *serverOptions) { o.newBackend = newProcessBackend }
}

// WithEnvd makes sandboxes that are served by E2B's own daemon, a program of
// that path, each in Linux namespaces of its own; where those are not
// permitted, which takes root, NewServer fails. Such sandboxes cannot be
// copied: snapshots, forks and pauses without memory are refused.
//
// A path that begins with "http://" is the address of a daemon that runs
// already, for all sandboxes to share: a reduced mode, see [Server.Isolation].
func WithEnvd(path string) ServerOption {
	return func(o *serverOptions) {
		o.newBackend = func(s *Server) (backend, error) { return newEnvdBackend(s, path) }
	}
}

// WithTemplates sets the templates. Without it there is one, "base", with the
// 2 CPUs and 512 MiB of E2B's own.
func WithTemplates(templates ...Template) ServerOption {
	return func(o *serverOptions) { o.templates = templates }
}

// WithAPIKey sets the key that the control plane asks for, "e2b_" and an even
// number of hexadecimal digits. Without it the server makes one.
func WithAPIKey(key string) ServerOption {
	return func(o *serverOptions) { o.apiKey = key }
}

// WithMaxTimeout sets how long a sandbox may run without a pause. Without it
// that is 24 hours.
func WithMaxTimeout(d time.Duration) ServerOption {
	return func(o *serverOptions) { o.maxTimeout = d }
}

// WithConcurrency sets how many sandboxes may run at once: one more is refused
// with status 429. Zero means no limit.
func WithConcurrency(n int) ServerOption {
	return func(o *serverOptions) { o.maxConcurrency = n }
}

// WithBuildConcurrency sets how many builds of templates may wait or run at once:
// a request for one more is refused with status 429. Zero means no limit.
func WithBuildConcurrency(n int) ServerOption {
	return func(o *serverOptions) { o.maxBuilds = n }
}

// WithClock sets the server's clock, by which sandboxes end. It is looked at
// 20 times a second, and at every request.
func WithClock(now func() time.Time) ServerOption {
	return func(o *serverOptions) { o.now, o.clock = now, true }
}

// WithListener has the server take its connections from l, which it closes, in
// place of a port of 127.0.0.1. One in memory, made of [net.Pipe], lets a test
// run in a bubble of package testing/synctest; clients then need its own way to
// connect.
func WithListener(l net.Listener) ServerOption {
	return func(o *serverOptions) { o.listener = l }
}

// WithFault makes requests fail: fault is asked about each before it is
// handled, and nil means that it is not touched. It may be called
// concurrently.
func WithFault(fault func(HTTPRequest) *HTTPFault) ServerOption {
	return func(o *serverOptions) { o.fault = fault }
}

// WithLogger sets where the server says what it does, at the level of
// debugging. Without it that is nowhere.
func WithLogger(log *slog.Logger) ServerOption {
	return func(o *serverOptions) { o.logger = log }
}
