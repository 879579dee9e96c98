//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

const (
	// runVariable marks the environment of all that a run starts, with the
	// run's folder.
	runVariable = "OSIRIS_RUN_DIR"

	// terminateGrace is how long a worker has to end once it was told to: as
	// long as its drivers have, and a moment to say goodbye.
	terminateGrace = stopGrace + 500*time.Millisecond

	// sweepTime bounds the killing of what outlives the worker.
	sweepTime = 3 * time.Second
)

// supervisor starts the worker as a child, and sees how it ends.
type supervisor struct {
	dir    string
	stderr io.Writer
	fsys   FS

	worker int      // its pid, and that of its process group
	pipe   *os.File // its standard error
	prints [2]int   // reading ends of what drivers print to stdout and stderr
	said   excerpt
	copied chan struct{} // said is complete
	hidden *sharedSecrets
	oom    oomCounter
}

// supervise runs a worker in a process of its own, in a process group of its
// own, and ends as that does: with its exit code, or killed by SIGKILL where a
// signal has killed it. Before that it ends all that the worker has left, and
// writes the death record.
//
// The worker has its standard input and output from the supervisor, which
// lets go of both: the end of either means what it would mean without one.
func (p Program) supervise(ctx context.Context, dir string, args []string, stdin io.Reader, fsys FS, stderr io.Writer) int {
	in, ok := stdin.(*os.File)
	if !ok || !p.ownProcess {
		return -1
	}
	// What has become of the host is no reason to end before the worker has.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	runtime.LockOSThread() // the worker is killed with the thread that started it
	s := &supervisor{dir: dir, stderr: stderr, fsys: fsys, copied: make(chan struct{})}
	if err := s.start(in, args); err != nil {
		fmt.Fprintln(stderr, "worker: start:", err)
		return 1
	}
	runtime.GOMAXPROCS(1) // it does next to nothing, and the worker much
	go s.copyErrors()
	go s.hidden.read()
	err := fsys.MkdirAll(dir) // the worker may not have come to it
	if err == nil {
		err = writeRecord(fsys, dir, ProcessesFile, s.processes())
	}
	if err != nil {
		fmt.Fprintln(stderr, "worker: record of processes:", err)
	}
	s.oom = newOOMCounter()
	status, usage := s.wait(ctx)
	d := s.bury(status, usage)
	if err := writeRecord(fsys, dir, DeathFile, d); err != nil {
		fmt.Fprintln(stderr, "worker: death record:", err)
	}
	if d.Signal != "" {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // it takes a moment
	}
	return d.ExitCode
}

// start starts the worker.
func (s *supervisor) start(stdin *os.File, args []string) error {
	becomeSubreaper()
	// A core file would have the secrets on disk. Where that may not be set it
	// was not possible before, either.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	var fds [8]int // stdout and stderr of prints, stderr of the process, and what to redact: reading end, writing end
	for i := 0; i < len(fds); i += 2 {
		if err := pipe(fds[i : i+2]); err != nil {
			return err
		}
	}
	self, err := selfPath()
	if err != nil {
		return err
	}
	s.worker, err = syscall.ForkExec(self, append([]string{os.Args[0], Arg, "serve", "-supervised"}, args...), &syscall.ProcAttr{
		Env: append(os.Environ(), runVariable+"="+s.dir),
		Files: []uintptr{stdin.Fd(), 1, uintptr(fds[5]),
			uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2]), uintptr(fds[3]), uintptr(fds[7])},
		Sys: workerAttr(),
	})
	if err != nil {
		return err
	}
	stdin.Close()
	os.Stdout.Close()
	for _, fd := range []int{fds[1], fds[3], fds[5], fds[7]} {
		unix.Close(fd)
	}
	s.prints = [2]int{fds[0], fds[2]}
	for _, fd := range []int{fds[0], fds[2], fds[4], fds[6]} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	s.pipe = os.NewFile(uintptr(fds[4]), "standard error of the worker")
	s.hidden = newSharedSecrets(os.NewFile(uintptr(fds[6]), "what to redact"))
	return nil
}

// pipe makes a pipe that no other process gets.
func pipe(fds []int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := syscall.Pipe(fds); err != nil {
		return err
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	return nil
}

func (s *supervisor) processes() rpc.Processes {
	return rpc.Processes{
		Supervisor: identify(os.Getpid()), Worker: identify(s.worker),
		BootID: bootID(), Time: time.Now().UTC(),
	}
}

// copyErrors passes on what the worker's process writes to its standard error:
// what the runtime says of a crash, and libraries past the drivers' streams.
func (s *supervisor) copyErrors() {
	defer close(s.copied)
	out := s.hidden.redact.Writer(writerFunc(func(b []byte) (int, error) {
		_, _ = s.said.Write(b)
		_, _ = s.stderr.Write(b) // who reads it may be gone
		return len(b), nil
	}))
	defer out.Flush()
	buf := make([]byte, 4<<10)
	for {
		n, err := s.pipe.Read(buf)
		s.hidden.now() // what the worker knew when it wrote this
		_, _ = out.Write(buf[:n])
		if n > 0 && buf[n-1] == '\n' {
			_ = out.Flush()
		}
		if err != nil {
			return
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// sharedSecrets learns from the worker what must not be told of it: this process
// writes to disk what a worker that dies has left in its pipes.
type sharedSecrets struct {
	r      *os.File
	conn   syscall.RawConn
	redact *secrets.Redactor

	mu   sync.Mutex // held while bytes are taken from r
	line []byte
	buf  [4 << 10]byte
}

func newSharedSecrets(r *os.File) *sharedSecrets {
	c := &sharedSecrets{r: r, redact: secrets.NewRedactor()}
	c.conn, _ = r.SyscallConn() // of a file that is open
	return c
}

// read learns until the worker is gone.
func (c *sharedSecrets) read() { _ = c.conn.Read(func(fd uintptr) bool { return c.take(int(fd)) }) }

// now learns what the worker has said so far.
func (c *sharedSecrets) now() { _ = c.conn.Control(func(fd uintptr) { c.take(int(fd)) }) }

func (c *sharedSecrets) take(fd int) (ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		n, err := unix.Read(fd, c.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err != unix.EAGAIN
		}
		c.line = append(c.line, c.buf[:n]...)
		if bytes.IndexByte(c.buf[:n], '\n') < 0 { // not all of it is looked at each time
			continue
		}
		for {
			line, rest, ok := bytes.Cut(c.line, []byte{'\n'})
			if !ok {
				break
			}
			var values []string
			if json.Unmarshal(line, &values) == nil {
				c.redact.Add(values...)
			}
			c.line = rest
		}
	}
}

// shareBy returns how a worker tells its supervisor what it must not tell.
func shareBy(w *os.File) func(values []string) error {
	return func(values []string) error {
		b, err := json.Marshal(values)
		if err != nil {
			return err
		}
		_, err = w.Write(append(b, '\n'))
		return err
	}
}

// wait reaps orphans until the worker is dead. When ctx is done the worker's
// process group is told to end, and made to after a grace.
func (s *supervisor) wait(ctx context.Context) (syscall.WaitStatus, syscall.Rusage) {
	var (
		status syscall.WaitStatus
		usage  syscall.Rusage
	)
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		for {
			pid, err := syscall.Wait4(-1, &status, 0, &usage)
			if pid == s.worker && !status.Stopped() || err != nil && err != syscall.EINTR {
				return
			}
		}
	}()
	select {
	case <-dead:
		return status, usage
	case <-ctx.Done():
	}
	s.signal(unix.SIGTERM)
	s.signal(unix.SIGCONT) // one that is stopped cannot end
	timer := time.NewTimer(terminateGrace)
	defer timer.Stop()
	select {
	case <-dead:
	case <-timer.C:
		s.signal(unix.SIGKILL)
		<-dead
	}
	return status, usage
}

// signal sends a signal to the worker and what it has started, unless that
// went to a process group of its own.
func (s *supervisor) signal(sig syscall.Signal) { _ = unix.Kill(-s.worker, sig) }

// bury ends what the worker has left, and says how it died.
func (s *supervisor) bury(status syscall.WaitStatus, usage syscall.Rusage) rpc.Death {
	d := rpc.Death{
		Time: time.Now().UTC(), ExitCode: status.ExitStatus(), BootID: bootID(),
		PeakRSSBytes: maxRSS(usage), OOMKills: s.oom.kills(),
	}
	if status.Signaled() {
		d.ExitCode, d.Signal = -1, unix.SignalName(status.Signal())
	}
	d.Remains = sweep(s.dir, s.worker)
	s.hidden.now()
	for i, stream := range []string{"stdout", "stderr"} {
		if printed := s.hidden.redact.Bytes(drain(s.prints[i])); len(printed) > 0 {
			d.Prints = append(d.Prints, rpc.Print{Stream: stream, Text: text(printed)})
		}
	}
	// All who could have it open are dead, or could not be killed.
	_ = s.pipe.SetReadDeadline(time.Now().Add(printGrace))
	<-s.copied
	d.Stderr = s.said.String()
	return d
}

// drain reads what is in a pipe that does not block: at most what one holds.
func drain(fd int) []byte {
	var all []byte
	buf := make([]byte, 16<<10)
	for len(all) < 64<<10 {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		all = append(all, buf[:n]...)
	}
	return all
}

// inherited returns the pipes that a supervisor has made for prints, and how it
// is told what to redact.
func inherited() (pipes []printPipe, share func([]string) error) {
	for fd := 3; fd < 7; fd += 2 {
		for _, fd := range []int{fd, fd + 1} {
			unix.CloseOnExec(fd)
			_ = unix.SetNonblock(fd, true)
		}
		pipes = append(pipes, printPipe{os.NewFile(uintptr(fd), "prints"), os.NewFile(uintptr(fd+1), "prints")})
	}
	unix.CloseOnExec(7)
	return pipes, shareBy(os.NewFile(7, "what to redact"))
}
