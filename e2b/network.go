package e2b

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/internal/hostname"
)

// AllTraffic is every address there is, for Network.DenyOut.
const AllTraffic = "0.0.0.0/0"

// Network says what a sandbox may reach. What AllowOut has may be reached in
// spite of DenyOut; what neither has may be reached.
//
// E2B looks at names only on port 80, at the Host header, and on port 443, at
// the name in the TLS handshake. On every other port, and for all that is not
// TCP, only addresses count. Private, link-local and loopback addresses are
// never reached, whatever is allowed, and no rule knows ports.
//
// The nameserver of sandboxes is 8.8.8.8. E2B allows it by itself where
// AllowOut has a name; where that has only addresses, and DenyOut all, it
// takes a rule of its own. Networks that overlap within a list may be mistaken
// for others, for what is not TCP.
//
// Sources: e2b-dev/infra, packages/orchestrator/pkg/tcpfirewall, its
// pkg/sandbox/network/firewall.go, and
// packages/api/internal/orchestrator/create_instance.go.
type Network struct {
	AllowOut []string `json:"allowOut,omitempty"` // addresses, networks, names, and "*.example.com" for the names below one
	DenyOut  []string `json:"denyOut,omitempty"`  // addresses and networks; [AllTraffic] where AllowOut has names
}

// check refuses what E2B refuses, and what it takes without a word and never
// matches.
func (n Network) check() error {
	for _, s := range n.DenyOut {
		if err := checkAddress(s); err != nil {
			return fmt.Errorf("%w: DenyOut: %w", ErrInvalid, err)
		}
	}
	for _, s := range n.AllowOut {
		if !looksLikeAddress(s) {
			if !validDomain(s) {
				return fmt.Errorf("%w: AllowOut: %q is neither an address, a network, nor a name; ports and URLs have no place there", ErrInvalid, clip(s))
			}
			if !slices.Contains(n.DenyOut, AllTraffic) {
				return fmt.Errorf("%w: AllowOut has the name %q, which takes %s in DenyOut", ErrInvalid, clip(s), AllTraffic)
			}
		} else if err := checkAddress(s); err != nil {
			return fmt.Errorf("%w: AllowOut: %w", ErrInvalid, err)
		}
	}
	return nil
}

func looksLikeAddress(s string) bool {
	addr, _, _ := strings.Cut(s, "/")
	_, err := netip.ParseAddr(addr)
	return err == nil
}

// checkAddress takes addresses and networks of IPv4. E2B would take an address
// of IPv6 for one of IPv4 networks, with a mask of 32 bits.
func checkAddress(s string) error {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		var p netip.Prefix
		if p, err = netip.ParsePrefix(s); err != nil {
			return fmt.Errorf("%q is no address and no network", clip(s))
		}
		addr = p.Addr()
	}
	switch {
	case !addr.Is4():
		return fmt.Errorf("%q is of IPv6, and E2B's sandboxes have only IPv4", clip(s))
	case addr.IsUnspecified() && s != AllTraffic:
		return fmt.Errorf("%q is no address that can be reached; everything is %s", clip(s), AllTraffic)
	}
	return nil
}

// validDomain takes the names of hosts, those below one as "*.example.com",
// and "*" for all.
func validDomain(s string) bool {
	if s == "*" {
		return true
	}
	return hostname.Valid(strings.TrimPrefix(s, "*."))
}

// SetNetwork replaces what the sandbox may reach: what n does not say is gone,
// also what [CreateOptions] NoInternet said. Connections that are open stay
// open. It may be called as often as one likes.
//
// The error matches [ErrInvalid] for rules that cannot be, [ErrUnsupported]
// where the server has no such call, [ErrSandboxGone] when the sandbox is gone
// or paused, and [ErrConflict] while it is between two states.
func (s *Sandbox) SetNetwork(ctx context.Context, n Network) error {
	const op = "set network of sandbox"
	if err := n.check(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	path, err := sandboxPath(s.ID(), "/network")
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	body := struct {
		Network
		Internet bool `json:"allow_internet_access"` // else a resumed sandbox may remember another
	}{n, true}
	_, err = s.client.send(ctx, apiCall{op: op, method: http.MethodPut, path: path, in: body, safe: true})
	if !noRoute(err) {
		return err
	}
	// The route may be what was not found.
	info, gone := s.client.Get(ctx, s.ID())
	switch {
	case gone == nil && info.State == Running:
		return fmt.Errorf("%w: the server cannot change a sandbox's network: %w", ErrUnsupported, err)
	case errors.Is(gone, ErrSandboxGone):
		return gone
	}
	return aboutSandbox(err)
}

const trafficHeader = "E2b-Traffic-Access-Token"

// NewRequest makes a request to a server that listens on a port in the
// sandbox, with what leads it there and lets it in: the traffic token, where
// the sandbox was made with [CreateOptions] PrivateTraffic. path begins with a
// slash and may have a query.
//
// The request holds a secret; it should not be logged, and not follow
// redirections to other hosts.
func (s *Sandbox) NewRequest(ctx context.Context, method string, port int, path string) (*http.Request, error) {
	const op = "request to sandbox"
	if port < 1 || port > 65535 || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%s: %w: port %d, path %q", op, ErrInvalid, port, clip(path))
	}
	if err := s.placed(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	number, base := strconv.Itoa(port), s.client.cfg.SandboxURL
	if base == "" {
		base = "https://" + number + "-" + s.ID() + "." + s.domain()
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: the method or path cannot be used", op, ErrInvalid)
	}
	req.Header.Set("E2b-Sandbox-Id", s.ID())
	req.Header.Set("E2b-Sandbox-Port", number)
	if number == envdPort {
		s.authorize(req.Header) // the daemon's port knows its own token only
	} else if s.answer.TrafficAccessToken != "" {
		req.Header.Set(trafficHeader, s.answer.TrafficAccessToken)
	}
	return req, nil
}

// Private reports whether the sandbox's ports, but for the daemon's, take a
// traffic token, as [CreateOptions] PrivateTraffic asks for. A server that
// does not know of that makes sandboxes whose ports are open.
func (s *Sandbox) Private() bool { return s.answer.TrafficAccessToken != "" }
