package machine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/creack/pty"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// spec is what a box starts.
type spec struct {
	path     string // of the program, resolved
	argv     []string
	env      []string
	dir      string
	user     envd.User
	files    []*os.File // standard input, output and error
	terminal bool       // they are one
}

// child is a process that a box started.
type child interface {
	pid() int
	signal(syscall.Signal) error
	wait() envd.Status // to be called once
}

// process is an [envd.Process]. What it does not have is nil.
type process struct {
	child
	stdin          io.WriteCloser
	stdout, stderr io.ReadCloser
	terminal       *os.File
	ended          chan struct{}
	status         envd.Status // once ended is closed
}

// Start starts a process in a session of its own. A program that cannot be run
// is a process all the same: a shell's, which says so and ends with 127 or 126,
// as it is in E2B's sandboxes. See [Machine] for the user it runs as.
func (m *Machine) Start(cmd envd.Command) (envd.Process, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.startLocked(cmd)
}

// startLocked is Start for who holds the lock.
func (m *Machine) startLocked(cmd envd.Command) (envd.Process, error) {
	if m.closed {
		return nil, fmt.Errorf("start %s: the machine is closed: %w", cmd.Path, fs.ErrClosed)
	}
	if err := m.checkDir(cmd.Dir); err != nil {
		return nil, err
	}
	s, err := m.openStdio(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer s.closeTheirs()
	c, err := m.launch(cmd, s)
	if err != nil {
		s.closeOurs()
		return nil, fmt.Errorf("start %s in %s: %w", cmd.Path, cmd.Dir, err)
	}
	p := s.process(c)
	m.waits.Go(p.reap)
	return p, nil
}

func (m *Machine) checkDir(dir string) error {
	info, err := m.Stat(dir)
	if err != nil {
		return pathError("chdir", dir, err)
	}
	if !info.IsDir() {
		return pathError("chdir", dir, syscall.ENOTDIR)
	}
	return nil
}

// launch starts the program, or a shell that fails to.
func (m *Machine) launch(cmd envd.Command, s *stdio) (child, error) {
	sp := spec{env: cmd.Env, dir: cmd.Dir, user: cmd.User, files: s.theirs, terminal: cmd.PTY != nil}
	if sp.path = m.lookPath(cmd); sp.path != "" {
		sp.argv = append([]string{cmd.Path}, cmd.Args...)
		if c, err := m.start(sp); err == nil {
			return c, nil
		}
	}
	sp.path = "/bin/sh"
	sp.argv = append([]string{"sh", "-c", `exec "$0" "$@"`, cmd.Path}, cmd.Args...)
	return m.start(sp)
}

// lookPath finds a program as execvp does. It returns nothing for one that is
// not there.
func (m *Machine) lookPath(cmd envd.Command) string {
	if strings.Contains(cmd.Path, "/") {
		return cmd.Path
	}
	var search string
	for _, v := range cmd.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			search = value
		}
	}
	for dir := range strings.SplitSeq(search, ":") {
		name := path.Join(dir, cmd.Path)
		if !path.IsAbs(name) {
			name = path.Join(cmd.Dir, name)
		}
		if info, err := m.Stat(name); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return name
		}
	}
	return ""
}

// stdio has both ends of the standard files of a process.
type stdio struct {
	theirs         []*os.File
	stdin          *os.File
	stdout, stderr *os.File
	terminal       *os.File
}

func (m *Machine) openStdio(cmd envd.Command) (*stdio, error) {
	if cmd.PTY == nil {
		return openPipes(cmd.Stdin)
	}
	ours, theirs, err := m.openTerminal(cmd.User)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	s := &stdio{terminal: ours, theirs: []*os.File{theirs, theirs, theirs}}
	if err := resize(ours, *cmd.PTY); err != nil {
		s.closeTheirs()
		s.closeOurs()
		return nil, err
	}
	return s, nil
}

func openPipes(stdin bool) (_ *stdio, err error) {
	s := &stdio{theirs: make([]*os.File, 3)}
	defer func() {
		if err != nil {
			s.closeTheirs()
			s.closeOurs()
		}
	}()
	if stdin {
		s.theirs[0], s.stdin, err = os.Pipe()
	} else {
		s.theirs[0], err = os.Open(os.DevNull)
	}
	if err != nil {
		return nil, err
	}
	if s.stdout, s.theirs[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	s.stderr, s.theirs[2], err = os.Pipe()
	return s, err
}

func (s *stdio) closeTheirs() { closeAll(s.theirs...) }
func (s *stdio) closeOurs()   { closeAll(s.stdin, s.stdout, s.stderr, s.terminal) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (s *stdio) process(c child) *process {
	p := &process{child: c, ended: make(chan struct{}), terminal: s.terminal}
	if s.terminal != nil {
		p.stdin, p.stdout = s.terminal, terminal{s.terminal}
		return p
	}
	if s.stdin != nil {
		p.stdin = s.stdin
	}
	p.stdout, p.stderr = s.stdout, s.stderr
	return p
}

// terminal is our end of one. When nobody has the other end, Linux calls that
// an error.
type terminal struct{ *os.File }

func (t terminal) Read(b []byte) (int, error) {
	n, err := t.File.Read(b)
	if errors.Is(err, syscall.EIO) {
		err = io.EOF
	}
	return n, err
}

func resize(tty *os.File, s envd.Size) error {
	if err := pty.Setsize(tty, &pty.Winsize{Cols: s.Cols, Rows: s.Rows}); err != nil {
		return fmt.Errorf("resize a terminal: %w", err)
	}
	return nil
}

func (p *process) reap() {
	p.status = p.wait()
	close(p.ended)
}

func (p *process) PID() int              { return p.pid() }
func (p *process) Stdin() io.WriteCloser { return p.stdin } // of a terminal too
func (p *process) Stdout() io.ReadCloser { return p.stdout }
func (p *process) Stderr() io.ReadCloser { return p.stderr }

func (p *process) Wait() envd.Status {
	<-p.ended
	return p.status
}

func (p *process) Signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return os.ErrProcessDone
	default:
		return p.signal(sig)
	}
}

func (p *process) Resize(s envd.Size) error {
	if p.terminal == nil {
		return errors.New("the process has no terminal")
	}
	return resize(p.terminal, s)
}
