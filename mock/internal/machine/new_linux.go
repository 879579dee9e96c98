package machine

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// newMachine makes an isolated machine if that works.
func newMachine(opts Options, dir string) (*Machine, error) {
	if opts.Shared {
		return newShared(opts, dir, "as was asked for")
	}
	n, err := newIsolated(opts, dir)
	if err != nil && len(opts.Hosts) > 0 {
		return nil, err
	}
	if err != nil {
		return newShared(opts, dir, err.Error())
	}
	return isolatedMachine(opts, n), nil
}

func newIsolated(opts Options, dir string) (*namespace, error) {
	l := layout{dir: dir, diskBytes: opts.DiskBytes, network: len(opts.Hosts) > 0, hosts: opts.Hosts}
	if l.network && os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w to user %d", ErrNotPermitted, os.Geteuid())
	}
	for _, name := range opts.ReadOnly {
		name = filepath.Clean(name)
		l.binds = append(l.binds, name, name)
	}
	l.user = os.Geteuid() != 0 // root's processes would be root on the host
	return newNamespace(l)
}

func isolatedMachine(opts Options, n *namespace) *Machine {
	uid, how := userID, "its own files, processes and IPC"
	if n.user {
		uid, how = 0, how+", by user namespaces in which all users are one"
	}
	network := "the host's, read-only, and so is the network"
	if n.network {
		network = "the host's, read-only, and the network is its own"
	}
	return &Machine{
		box:      n,
		opts:     opts,
		isolated: true,
		users: []envd.User{
			{Name: "user", UID: uid, GID: uid, Home: "/home/user"},
			{Name: "root", Home: "/root"},
		},
		isolation: "isolated: " + how + "; the system's directories are " + network,
	}
}
