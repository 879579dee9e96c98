// Package dbtest starts database servers for tests: private ones, in temporary
// directories, on loopback, and one of a kind for each test binary.
//
//	var servers dbtest.Servers
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		db := servers.MariaDB(t).Database(t)
//		...
//	}
//
// A server that is not installed makes the test skip, and says so.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Servers are the servers of a test binary. Each starts when a test first asks
// for it. The zero value is ready.
type Servers struct {
	mariadb  once[*MariaDB]
	postgres once[*Postgres]
}

// Main returns what to pass to goleak.VerifyTestMain, or to call Run of: the
// tests of m, and then the end of the servers.
func (s *Servers) Main(m *testing.M) *Main { return &Main{m, s} }

// Main runs the tests of a binary and stops its servers.
type Main struct {
	m       *testing.M
	servers *Servers
}

// Run returns the exit code.
func (m *Main) Run() int {
	defer m.servers.stop()
	return m.m.Run()
}

func (s *Servers) stop() {
	s.mariadb.stop(func(m *MariaDB) { m.process.kill() })
	s.postgres.stop((*Postgres).end)
}

// Database is a database of its own for one test.
type Database struct {
	*sql.DB // with rights to everything

	// Connection is what a step finds under "resolved_connection".
	Connection map[string]any
}

// Exec runs statements and fails the test where one fails.
func (d *Database) Exec(tb testing.TB, statements ...string) {
	tb.Helper()
	for _, s := range statements {
		if _, err := d.DB.ExecContext(context.Background(), s); err != nil {
			if len(s) > 500 {
				s = s[:500] + "..."
			}
			tb.Fatalf("%v: %s", err, s)
		}
	}
}

// once starts a server at the first call of get.
type once[T any] struct {
	mu      sync.Mutex
	started bool
	server  T
	err     error
}

// errMissing means that a server's programs are not on this machine.
var errMissing = errors.New("is not installed")

func (o *once[T]) get(tb testing.TB, start func() (T, error)) T {
	tb.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.started {
		o.started = true
		o.server, o.err = start()
	}
	if errors.Is(o.err, errMissing) {
		tb.Skipf("%v; scripts/test-setup installs it", o.err)
	}
	if o.err != nil {
		tb.Fatal(o.err)
	}
	return o.server
}

func (o *once[T]) stop(f func(T)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started && o.err == nil {
		f(o.server)
	}
}

// find returns the path of the first program that is there: by name, or by a
// pattern of paths, of which the last in order is taken.
func find(names ...string) (string, error) {
	for _, name := range names {
		if strings.ContainsAny(name, "*/") {
			if list, _ := filepath.Glob(name); len(list) > 0 {
				return list[len(list)-1], nil
			}
		} else if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s %w", names[0], errMissing)
}

// process is a server that runs in a directory of its own, which goes with it.
type process struct {
	dir  string
	exit chan struct{} // closed when it has ended
	err  error         // then
	stop func()
}

// run runs a program to its end in dir, as the user that owns it.
func run(dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	own(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, last(out))
	}
	return nil
}

// launch starts a server's program in dir. What it prints goes to the file log
// there.
func launch(dir, program string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the server's
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	own(cmd)
	p := &process{dir: dir, exit: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(p.exit)
		unlock := dieWithTests(cmd)
		defer unlock()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.stop = func() { end(cmd) }
	return p, nil
}

// await calls ready until it returns nil, the server has ended or half a minute
// is over.
func (p *process) await(ready func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exit:
			return fmt.Errorf("%w: %s", errEnded, p.log())
		case <-ctx.Done():
			return fmt.Errorf("does not answer: %w: %s", err, p.log())
		case <-tick.C:
		}
	}
}

// errEnded means that a server has ended by itself.
var errEnded = errors.New("the server has ended")

// log returns the end of what the server has printed.
func (p *process) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return last(b)
}

func last(b []byte) string {
	s := strings.TrimSpace(string(b))
	return s[max(0, len(s)-2000):]
}

// kill ends the server at once: nobody needs what it has stored.
func (p *process) kill() {
	p.stop()
	<-p.exit
	os.RemoveAll(p.dir) //nolint:errcheck // a temporary directory
}

// freePort returns a port of loopback that is free now. Another process may
// take it before the server does, which then ends: try again with another.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // nobody has connected
	return l.Addr().(*net.TCPAddr).Port, nil
}

// attempts is how many ports are tried.
const attempts = 5

// serve starts a server in dir, on a port that it can have.
func serve(dir, program string, args func(port int) []string, ready func(ctx context.Context, port int) error) (*process, int, error) {
	for i := 1; ; i++ {
		port, err := freePort()
		if err != nil {
			return nil, 0, err
		}
		p, err := launch(dir, program, args(port)...)
		if err != nil {
			return nil, 0, err
		}
		err = p.await(func(ctx context.Context) error { return ready(ctx, port) })
		if err == nil {
			return p, port, nil
		}
		p.stop()
		<-p.exit
		if !errors.Is(err, errEnded) || i == attempts {
			return nil, 0, err
		}
	}
}

// tempDir makes a directory that a server's user owns.
func tempDir(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	if err := give(dir); err != nil {
		os.RemoveAll(dir) //nolint:errcheck // empty
		return "", err
	}
	return dir, nil
}

// password returns a new one: who answers to it is the server that was started,
// whatever else may listen on its port.
func password() string { return rand.Text() }
