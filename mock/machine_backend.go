package mock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// backend makes the machines of a server's sandboxes.
type backend interface {
	isolation() string
	isolated() bool
	boot(ctx context.Context, c bootConfig) (guest, error)
	// workshop opens a machine to build a template in, with a copy of the files
	// of an image where there is one. The error matches errNoBuilds where there
	// cannot be any.
	workshop(image envd.Machine) (*workshop, error)
	builds() error // why there cannot be any
	close() error
}

// bootConfig is what a machine starts with.
type bootConfig struct {
	id       string
	template string // its ID
	size     size
	setup    setup
	image    envd.Machine // to be copied; nil means an empty one
	env      map[string]string
	token    string // empty means that its daemon asks for none
}

// guest is a machine and its daemon, which it serves.
type guest interface {
	http.Handler
	cut() // ends all streams
	freeze(frozen bool) error
	// reboot returns the machine as it starts anew, with nothing but its files.
	// The guest is gone then.
	reboot(c bootConfig) (guest, error)
	image() (envd.Machine, error)
	usage() (u envd.Usage, known bool)
	memory() *Sandbox // nil where the machine is not in memory
	// inside is for commands that are run as those of builds are. It must not be
	// closed.
	inside() *workshop
	close() error
}

// errNotCopied says that a back end cannot copy machines.
var errNotCopied = fmt.Errorf("%w: sandboxes of this server cannot be copied", errors.ErrUnsupported)

// machines is the back end whose daemon is our own.
type machines struct {
	server *Server
	apart  string
	own    bool              // files
	env    map[string]string // of all processes, unless their own says otherwise
	open   func(c bootConfig) (envd.Machine, error)
}

func newMemoryBackend(s *Server) (backend, error) {
	opts := s.opts.memory
	opts.Fault = nil
	if s.opts.clock && opts.Now == nil {
		opts.Now = s.opts.now
	}
	return &machines{
		server: s,
		apart:  "each sandbox is in memory; its programs are Go functions of this process",
		own:    true,
		open: func(c bootConfig) (envd.Machine, error) {
			return newMemoryMachine(&opts, c), nil
		},
	}, nil
}

func (b *machines) isolation() string { return b.apart }

func (b *machines) isolated() bool { return b.own }

func (b *machines) close() error { return nil }

func (b *machines) boot(_ context.Context, c bootConfig) (guest, error) {
	var m envd.Machine
	var err error
	if c.image != nil {
		m, err = c.image.Clone()
	} else {
		m, err = b.open(c)
	}
	if err != nil {
		return nil, err
	}
	return b.start(m, c)
}

// start starts the daemon of a machine, and closes it where that fails.
func (b *machines) start(m envd.Machine, c bootConfig) (guest, error) {
	if m, ok := m.(*memoryMachine); ok {
		m.sandbox.info.ID = c.id
		m.resize(c.size)
	}
	env := maps.Clone(b.env)
	if env == nil {
		env = make(map[string]string)
	}
	maps.Copy(env, c.env)
	var out *outlets
	if m, ok := m.(*machine.Machine); ok {
		var err error
		if out, err = b.server.openOutlets(c.id, m.Listen); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	daemon := envd.New(m, envd.Options{
		Token:   c.token,
		Env:     env,
		User:    c.setup.defaultUser(),
		Workdir: c.setup.workdir,
		Now:     b.server.opts.now,
		Version: c.size.envdVersion,
		Logger:  b.server.log,
	})
	return &machineGuest{Daemon: daemon, back: b, machine: m, outlets: out}, nil
}

// machineGuest is a machine with our daemon.
type machineGuest struct {
	*envd.Daemon
	back    *machines
	machine envd.Machine
	outlets *outlets // nil where nothing is to be reached
}

func (g *machineGuest) cut() { g.CutStreams() }

func (g *machineGuest) freeze(frozen bool) error { return g.machine.Freeze(frozen) }

func (g *machineGuest) reboot(c bootConfig) (guest, error) {
	copied, err := g.machine.Clone()
	if err != nil {
		return nil, err
	}
	if err := g.close(); err != nil {
		g.back.server.log.Debug("machine did not end well", "sandbox", c.id, "error", err)
	}
	return g.back.start(copied, c)
}

func (g *machineGuest) image() (envd.Machine, error) { return g.machine.Clone() }

func (g *machineGuest) usage() (envd.Usage, bool) { return g.machine.Usage(), true }

func (g *machineGuest) memory() *Sandbox {
	if m, ok := g.machine.(*memoryMachine); ok {
		return m.sandbox
	}
	return nil
}

func (g *machineGuest) inside() *workshop {
	return &workshop{machine: g.machine, env: g.back.env}
}

func (g *machineGuest) close() error {
	g.Daemon.Close()
	g.outlets.close()
	return g.machine.Close()
}
