package machine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// newNetworked makes an isolated machine with a network of its own, and a
// function that connects to the daemon in it.
func newNetworked(opts EnvdOptions, dir string) (*Machine, func(context.Context) (net.Conn, error), error) {
	if os.Geteuid() != 0 {
		return nil, nil, fmt.Errorf("%w to user %d", ErrNotPermitted, os.Geteuid())
	}
	binary, err := filepath.Abs(opts.Binary)
	if err != nil {
		return nil, nil, err
	}
	l := layout{dir: dir, diskBytes: opts.DiskBytes, network: true, hosts: opts.Hosts, binds: []string{binary, daemonPath}}
	for _, name := range opts.ReadOnly {
		l.binds = append(l.binds, name, name)
	}
	n, err := newNamespace(l)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return isolatedMachine(Options{}, n), n.dial, nil
}

// enterNetwork takes this thread into the network.
func (n *namespace) enterNetwork() error { return n.setns(unix.CLONE_NEWNET) }

// raiseNetwork brings loopback up, with the addresses of the hosts.
func (n *namespace) raiseNetwork() error {
	return onThread(func() error {
		if err := n.enterNetwork(); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		lo.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
			return fmt.Errorf("bring loopback up: %w", err)
		}
		added := make(map[netip.Addr]bool)
		for _, h := range n.hosts {
			if h.Addr.IsLoopback() || added[h.Addr] {
				continue
			}
			if err := addAddress(fd, len(added), h.Addr); err != nil {
				return fmt.Errorf("add the address %s: %w", h.Addr, err)
			}
			added[h.Addr] = true
		}
		return nil
	})
}

// addAddress gives loopback one more address, and no network around it.
func addAddress(fd, number int, addr netip.Addr) error {
	for _, set := range []struct {
		call uint
		addr [4]byte
	}{{unix.SIOCSIFADDR, addr.As4()}, {unix.SIOCSIFNETMASK, [4]byte{255, 255, 255, 255}}} {
		req, err := unix.NewIfreq(fmt.Sprintf("lo:%d", number))
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(set.addr[:]); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.call, req); err != nil {
			return err
		}
	}
	return nil
}

// writeHosts writes the machine's /etc/hosts to a file, which is to be mounted
// there.
func writeHosts(name string, hosts []Host) error {
	text := []byte("127.0.0.1\tlocalhost\n")
	for _, h := range hosts {
		if h.Name != "" {
			text = fmt.Appendf(text, "%s\t%s\n", h.Addr, h.Name)
		}
	}
	return os.WriteFile(name, text, 0o644)
}

// listen listens from within the network.
func (n *namespace) listen(addr netip.AddrPort) (l net.Listener, err error) {
	if !n.network {
		return nil, ErrNotPermitted
	}
	err = onThread(func() (err error) {
		if err := n.enterNetwork(); err != nil {
			return fmt.Errorf("enter the network of a machine: %w", err)
		}
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return l, err
}

// dial connects from within the network. A connection stays in the network
// that its socket was made in. An address that is a number needs no other
// thread.
func (n *namespace) dial(ctx context.Context) (conn net.Conn, err error) {
	err = onThread(func() (err error) {
		if err := n.enterNetwork(); err != nil {
			return fmt.Errorf("enter the network of a machine: %w", err)
		}
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(Port)))
		return err
	})
	return conn, err
}
