package machine

import (
	"context"
	"fmt"
	"net"
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
	l := layout{dir: dir, diskBytes: opts.DiskBytes, network: true, binds: []string{binary, daemonPath}}
	for _, name := range opts.ReadOnly {
		l.binds = append(l.binds, name, name)
	}
	n, err := newNamespace(l)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	m := isolatedMachine(Options{}, n)
	if err := onThread(n.loopbackUp); err != nil {
		err = fmt.Errorf("bring loopback up: %w", err)
		_ = n.kill()
		n.release()
		return nil, nil, err
	}
	return m, n.dial, nil
}

// enterNetwork takes this thread into the network.
func (n *namespace) enterNetwork() error { return n.setns(unix.CLONE_NEWNET) }

func (n *namespace) loopbackUp() error {
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
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
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
