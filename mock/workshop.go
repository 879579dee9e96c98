package mock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// errNoBuilds says that a server cannot build templates.
var errNoBuilds = errors.New("the mock server cannot build templates here")

// workshop is a machine in which a template is built.
type workshop struct {
	machine envd.Machine
	env     map[string]string // of all processes, unless their own says otherwise
	outlets *outlets          // nil where nothing is to be reached
}

func (w *workshop) close() error {
	w.outlets.close()
	return w.machine.Close()
}

// builds implements backend.
func (b *machines) builds() error {
	if !b.own {
		return fmt.Errorf("%w: its sandboxes have no files of their own (%s)", errNoBuilds, b.apart)
	}
	return nil
}

// workshop implements backend.
func (b *machines) workshop(image envd.Machine) (*workshop, error) {
	if err := b.builds(); err != nil {
		return nil, err
	}
	open := func() (envd.Machine, error) { return b.open(bootConfig{}) }
	return openWorkshop(b.server, image, open, b.env)
}

// builds implements backend.
func (b *daemons) builds() error {
	if !b.own {
		return fmt.Errorf("%w: its sandboxes share one daemon", errNoBuilds)
	}
	return nil
}

// workshop implements backend.
func (b *daemons) workshop(image envd.Machine) (*workshop, error) {
	if err := b.builds(); err != nil {
		return nil, err
	}
	open := func() (envd.Machine, error) {
		return machine.New(machine.Options{DiskBytes: b.server.opts.memory.DiskBytes, Hosts: machineHosts(b.server.opts.hosts)})
	}
	return openWorkshop(b.server, image, open, toolVariables())
}

func openWorkshop(s *Server, image envd.Machine, open func() (envd.Machine, error), env map[string]string) (*workshop, error) {
	if image != nil {
		open = image.Clone
	}
	m, err := open()
	if err != nil {
		return nil, err
	}
	w := &workshop{machine: m, env: env}
	if m, ok := m.(*machine.Machine); ok {
		if w.outlets, err = s.openOutlets(buildOutlets, m.Listen); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return w, nil
}

// searchPath is the PATH of processes.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a script that is run as E2B runs those of builds.
func (w *workshop) command(script, user string, s setup) (envd.Command, error) {
	u, err := w.machine.User(user)
	if err != nil {
		return envd.Command{}, err
	}
	env := map[string]string{"PATH": searchPath, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name, "E2B_SANDBOX": "true"}
	maps.Copy(env, w.env)
	for _, p := range s.env {
		env[p.name] = p.value
		if p.name == "PATH" {
			env[p.name] += ":" + searchPath
		}
	}
	c := envd.Command{Path: "/bin/bash", Args: []string{"-l", "-c", script}, Dir: s.workdir, User: u}
	if c.Dir == "" {
		c.Dir = u.Home
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		c.Env = append(c.Env, name+"="+env[name])
	}
	return c, nil
}

// exitError is a process that did not end well.
type exitError struct{ status envd.Status }

func (e *exitError) Error() string {
	if e.status.Signal != 0 {
		return "signal: " + e.status.Signal.String()
	}
	return fmt.Sprintf("exit status %d", e.status.Code)
}

// run runs a command until it has ended, and all who hold its output. say gets
// every line of it, with the name of the stream, from one goroutine at a time.
func (w *workshop) run(ctx context.Context, cmd envd.Command, say func(stream, line string)) error {
	p, err := w.machine.Start(cmd)
	if err != nil {
		return fmt.Errorf("command failed: %w", err)
	}
	var mu sync.Mutex
	read := func(stream string, r io.Reader) {
		lines := bufio.NewReaderSize(r, maxBuildLogLine)
		for {
			line, err := lines.ReadSlice('\n')
			if text := strings.TrimSpace(string(line)); text != "" {
				mu.Lock()
				say(stream, strings.ToValidUTF8(text, "�"))
				mu.Unlock()
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	}
	var readers sync.WaitGroup
	readers.Go(func() { read("stdout", p.Stdout()) })
	readers.Go(func() { read("stderr", p.Stderr()) })
	stop := context.AfterFunc(ctx, func() {
		_ = p.Signal(syscall.SIGKILL)
		_, _ = p.Stdout().Close(), p.Stderr().Close() // somebody else may hold them
	})
	readers.Wait()
	status := p.Wait()
	if stop() {
		_, _ = p.Stdout().Close(), p.Stderr().Close()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case status != envd.Status{}:
		return &exitError{status}
	}
	return nil
}

// makeDirs makes a directory and those above it, for a user. It returns the
// topmost that was made, if one was.
func (w *workshop) makeDirs(dir string, owner envd.User) (first string, err error) {
	info, err := w.machine.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return "", nil
	case err == nil:
		return "", &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	parent := dir[:strings.LastIndex(dir, "/")]
	if parent == "" {
		parent = "/"
	}
	if dir != "/" {
		if first, err = w.makeDirs(parent, owner); err != nil {
			return "", err
		}
	}
	if first == "" {
		first = dir
	}
	return first, w.machine.Mkdir(dir, owner)
}
