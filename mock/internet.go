package mock

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// Host is a host on the internet of a [Server]'s sandboxes, see [WithHosts].
type Host struct {
	Name string     // by which sandboxes find it; may be empty
	Addr netip.Addr // of IPv4, as 203.0.113.7
	Port int
	// Serve answers a connection of a sandbox, which is closed when it
	// returns. It may be called concurrently.
	Serve func(net.Conn)
}

// WithHosts gives the sandboxes an internet, of these hosts and nothing else,
// and has the network rules of a sandbox enforced on the way there, as E2B
// does: names count on port 80, by the Host header, and on port 443, by the
// name in the TLS handshake; elsewhere addresses do. A connection that is
// denied is made, and closed at once.
//
// Real processes ([WithProcesses], [WithEnvd] with a path) then have a network
// of their own, which has the hosts' addresses, and names in /etc/hosts; that
// takes root on Linux, else NewServer fails. Programs in memory, and drivers
// under test, connect by [Server.Dial].
func WithHosts(hosts ...Host) ServerOption {
	return func(o *serverOptions) { o.hosts = hosts }
}

func checkHosts(hosts []Host) error {
	for i, h := range hosts {
		switch {
		case !h.Addr.Is4():
			return fmt.Errorf("host %d has the address %s, which is not of IPv4", i, h.Addr)
		case h.Port < 1 || h.Port > 65535 || h.Serve == nil:
			return fmt.Errorf("host %d has the port %d, or nothing to serve there", i, h.Port)
		}
	}
	return nil
}

// machineHosts is the hosts as a machine is to have them.
func machineHosts(hosts []Host) (list []machine.Host) {
	for _, h := range hosts {
		list = append(list, machine.Host{Name: h.Name, Addr: h.Addr})
	}
	return list
}

// ErrDenied is matched by the error of [Server.Dial] for a name that the
// sandbox may not look up, since its rules leave it no nameserver.
var ErrDenied = errors.New("denied by the network rules of the sandbox")

// nameserver is that of E2B's sandboxes.
const nameserver = "8.8.8.8"

// Dial connects as from within a sandbox, by its ID, to one of the hosts of
// [WithHosts]. As there, a connection that is denied is closed once it is made,
// at the first byte on ports 80 and 443. Names are found where the sandbox's
// rules allow it a nameserver, else the error matches [ErrDenied]; where there
// is no such host it is that of a network.
func (s *Server) Dial(ctx context.Context, sandbox, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", address, err)}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return fail(err)
	}
	rules, running := s.rules(sandbox)
	if !running {
		return fail(ErrNoSandbox)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if !rules.resolves() {
			return fail(fmt.Errorf("look up %s: %w", host, ErrDenied))
		}
		if addr = s.resolve(host); !addr.IsValid() {
			return fail(&net.DNSError{Err: "no such host", Name: host, IsNotFound: true})
		}
	}
	to := netip.AddrPortFrom(addr, uint16(n))
	if s.hostAt(to) == nil {
		return fail(syscall.ECONNREFUSED)
	}
	ours, theirs := net.Pipe()
	if !s.begin() {
		ours.Close()
		theirs.Close()
		return fail(http.ErrServerClosed)
	}
	go func() {
		defer s.work.Done()
		s.egress(sandbox, theirs, to)
	}()
	return ours, nil
}

func (s *Server) resolve(name string) netip.Addr {
	for _, h := range s.opts.hosts {
		if strings.EqualFold(h.Name, strings.TrimSuffix(name, ".")) {
			return h.Addr
		}
	}
	return netip.Addr{}
}

func (s *Server) hostAt(to netip.AddrPort) *Host {
	for i, h := range s.opts.hosts {
		if h.Addr == to.Addr() && h.Port == int(to.Port()) {
			return &s.opts.hosts[i]
		}
	}
	return nil
}

// egressRules is what a sandbox may reach, at a moment.
type egressRules struct{ allow, deny []string }

// buildOutlets is the ID of what builds, which may reach every host.
const buildOutlets = "build"

// rules returns those of a sandbox, if it runs.
func (s *Server) rules(id string) (rules egressRules, running bool) {
	if id == buildOutlets {
		return rules, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instanceLocked(id)
	if i == nil {
		return rules, false
	}
	if i.network != nil {
		rules = egressRules{slices.Clone(i.network.AllowOut), slices.Clone(i.network.DenyOut)}
	}
	if i.denyAll {
		rules.deny = []string{allTraffic}
	}
	return rules, true
}

// allows decides as E2B's firewall does (infra:
// packages/orchestrator/pkg/tcpfirewall/handlers.go). byName says that it was
// for the name.
func (r egressRules) allows(name string, addr netip.Addr) (ok, byName bool) {
	if alwaysDenied(addr) {
		return false, false
	}
	for _, a := range r.allow {
		if name != "" && !isAddress(a) && matchesDomain(name, a) {
			return true, true
		}
	}
	contains := func(s string) bool {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			return err == nil && a == addr
		}
		return p.Contains(addr)
	}
	if slices.ContainsFunc(r.allow, contains) {
		return true, false
	}
	return !slices.ContainsFunc(r.deny, contains), false
}

// resolves reports whether the nameserver can be asked: E2B allows it where
// there is a name in the rules.
func (r egressRules) resolves() bool {
	if slices.ContainsFunc(r.allow, func(s string) bool { return !isAddress(s) }) {
		return true
	}
	ok, _ := r.allows("", netip.MustParseAddr(nameserver))
	return ok
}

// alwaysDenied has the networks that no rule opens (infra:
// packages/shared/pkg/sandbox-network/firewall.go).
func alwaysDenied(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

func matchesDomain(name, pattern string) bool {
	name, pattern = strings.ToLower(name), strings.ToLower(pattern)
	suffix, star := strings.CutPrefix(pattern, "*")
	return pattern == "*" || name == pattern || star && strings.HasPrefix(suffix, ".") && strings.HasSuffix(name, suffix)
}

// egress leads a connection of a sandbox to its host, or closes it. It returns
// when that is over, at the latest when the server is closed.
func (s *Server) egress(sandbox string, conn net.Conn, to netip.AddrPort) {
	defer conn.Close()
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	name := ""
	switch to.Port() {
	case 80:
		name, conn = peek(conn, httpHost)
	case 443:
		name, conn = peek(conn, serverName)
	}
	rules, running := s.rules(sandbox)
	ok, byName := rules.allows(name, to.Addr())
	s.log.Debug("connection of a sandbox", "sandbox", sandbox, "to", to, "name", name, "allowed", running && ok)
	if !running || !ok {
		return
	}
	if byName { // E2B looks the name up itself
		if to = netip.AddrPortFrom(s.resolve(name), to.Port()); alwaysDenied(to.Addr()) {
			return
		}
	}
	if h := s.hostAt(to); h != nil {
		h.Serve(conn)
	}
}

// peek reads as much of a connection as it takes to find a name, and returns a
// connection that has all of it.
func peek(conn net.Conn, find func(io.Reader) string) (string, net.Conn) {
	var seen bytes.Buffer
	name := find(io.TeeReader(io.LimitReader(conn, 64<<10), &seen))
	return name, &peeked{conn, io.MultiReader(&seen, conn)}
}

type peeked struct {
	net.Conn
	r io.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func httpHost(r io.Reader) string {
	req, err := http.ReadRequest(bufio.NewReader(r))
	if err != nil {
		return ""
	}
	host, _, err := net.SplitHostPort(req.Host)
	if err != nil {
		host = req.Host
	}
	if isAddress(host) {
		return ""
	}
	return host
}

// serverName reads the first message of a TLS handshake.
func serverName(r io.Reader) (name string) {
	_ = tls.Server(readOnly{r: r}, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = hello.ServerName
		return nil, errors.New("that is all")
	}}).Handshake()
	return name
}

// readOnly is a connection that nothing is written to.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c readOnly) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c readOnly) Write(b []byte) (int, error)      { return len(b), nil }
func (c readOnly) Close() error                     { return nil }
func (c readOnly) SetDeadline(time.Time) error      { return nil }
func (c readOnly) SetReadDeadline(time.Time) error  { return nil }
func (c readOnly) SetWriteDeadline(time.Time) error { return nil }

// outlets are where the processes of a machine reach the server's hosts.
type outlets struct {
	listeners []net.Listener
	work      sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// openOutlets listens for a sandbox on the addresses of all hosts, within its
// network. Nil where there are none.
func (s *Server) openOutlets(id string, listen func(netip.AddrPort) (net.Listener, error)) (*outlets, error) {
	o := &outlets{conns: make(map[net.Conn]struct{})}
	opened := make(map[netip.AddrPort]bool)
	for _, h := range s.opts.hosts {
		to := netip.AddrPortFrom(h.Addr, uint16(h.Port))
		if opened[to] {
			continue
		}
		l, err := listen(to)
		if err != nil {
			o.close()
			return nil, fmt.Errorf("listen on %s in a sandbox: %w", to, err)
		}
		opened[to] = true
		o.listeners = append(o.listeners, l)
		o.work.Go(func() { o.accept(s, id, l, to) })
	}
	return o, nil
}

func (o *outlets) accept(s *Server, id string, l net.Listener, to netip.AddrPort) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !o.keep(conn) {
			conn.Close()
			return
		}
		o.work.Go(func() {
			s.egress(id, conn, to)
			o.mu.Lock()
			delete(o.conns, conn)
			o.mu.Unlock()
		})
	}
}

func (o *outlets) keep(conn net.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.conns[conn] = struct{}{}
	}
	return !o.closed
}

// close ends all connections, and waits for those who serve them.
func (o *outlets) close() {
	if o == nil {
		return
	}
	o.mu.Lock()
	o.closed = true
	for conn := range o.conns {
		conn.Close()
	}
	o.mu.Unlock()
	for _, l := range o.listeners {
		l.Close()
	}
	o.work.Wait()
}
