package e2b

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// Client talks to E2B: to the control plane, and to the daemons of its
// sandboxes. It may be used concurrently, and should be closed.
type Client struct {
	cfg Config

	// Three sets of connections, so that streams that stay open for hours and
	// long transfers cannot hold up short calls.
	api     http.RoundTripper // control plane
	files   http.RoundTripper // file transfers and short calls to sandboxes
	streams http.RoundTripper // process and watch streams, and input

	own []*http.Transport // to be closed

	births    *background // creates that nobody waits for any more
	admission *admission  // decides when a create is sent
	v2        atomic.Bool // the server has only the newer routes of create and connect
}

// NewClient returns a client. It connects to nothing yet. The error matches
// [ErrAuthentication] when there is no usable API key, else [ErrInvalid].
func NewClient(cfg Config) (*Client, error) {
	given := cfg
	cfg = cfg.fromEnvironment()
	if err := cfg.validate(given); err != nil {
		return nil, err
	}
	cfg.APIURL = strings.TrimRight(cfg.APIURL, "/")
	cfg.SandboxURL = strings.TrimRight(cfg.SandboxURL, "/")
	c := &Client{cfg: cfg, api: cfg.Transport, files: cfg.Transport, streams: cfg.Transport, births: newBackground(), admission: newAdmission(cfg)}
	if cfg.Transport == nil {
		for _, p := range []*http.RoundTripper{&c.api, &c.files, &c.streams} {
			t := newTransport()
			*p, c.own = t, append(c.own, t)
		}
	}
	return c, nil
}

// String names the server, and leaves out the key.
func (c *Client) String() string { return "E2B client of " + c.cfg.APIURL }

// GoString is String: the key must not get into a log by %#v either.
func (c *Client) GoString() string { return c.String() }

// Close clears up and closes idle connections. Sandboxes live on; what is
// under way with them goes on, too, and should be ended first. A create that
// waits for its turn fails.
//
// A [Client.CreateSandbox] whose answer was lost, or whose caller went away,
// may have made a sandbox that nobody knows of. Close waits until such ones
// are found and killed, or it is certain that there are none. Mostly that
// takes no time, but where no answer came it lasts until E2B would have given
// up, 80 s after the request; [Client.Shutdown] waits less. The error says
// which sandboxes may have been left behind.
func (c *Client) Close() error { return c.Shutdown(context.Background()) }

// Shutdown is [Client.Close], but waits no longer than until ctx ends.
func (c *Client) Shutdown(ctx context.Context) error {
	c.admission.shut()
	err := c.births.close(ctx)
	for _, t := range c.own {
		t.CloseIdleConnections()
	}
	if err != nil {
		return fmt.Errorf("e2b: close: %w", err)
	}
	return nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          0,
		MaxIdleConnsPerHost:   128,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		// envd compresses at some 23 MB/s when it is asked to, and Go asks
		// unless told not to.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 1 << 20,
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}
