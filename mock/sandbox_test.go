package mock_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBoom = errors.New("boom")

// wait is a program that writes its arguments and then waits.
func wait(ctx context.Context, p *mock.Proc) int {
	for _, a := range p.Args {
		io.WriteString(p.Stdout, a)
	}
	<-ctx.Done()
	return 0
}

var waiting = &mock.Options{Programs: map[string]mock.Program{"wait": wait}}

const waitPath = "/usr/local/bin/wait"

func start(t *testing.T, s remote.Sandbox, path string, args ...string) remote.Process {
	t.Helper()
	p, err := s.Start(t.Context(), remote.Command{Path: path, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func upload(ctx context.Context, s remote.Sandbox, name, data string) error {
	return s.Upload(ctx, name, strings.NewReader(data), int64(len(data)))
}

func download(ctx context.Context, s remote.Sandbox, name string) (string, error) {
	r, err := s.Download(ctx, name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func kill(t *testing.T, s remote.Sandbox) {
	t.Helper()
	if err := s.Kill(context.Background()); err != nil {
		t.Errorf("Kill: %v", err)
	}
}

// TestNoTesting keeps the test framework's flags out of programs that use the
// fake for a demonstration.
func TestNoTesting(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	if slices.Contains(strings.Fields(string(out)), "testing") {
		t.Error("package mock depends on package testing")
	}
}

// TestRootDoesNotImportMock keeps the fake out of the product.
func TestRootDoesNotImportMock(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "..").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "remote/mock") {
		t.Error("package remote depends on package mock")
	}
}

func TestWorkerVersion(t *testing.T) {
	for name, opts := range map[string]*mock.Options{"baked in": nil, "uploaded": {WithoutWorker: true}} {
		t.Run(name, func(t *testing.T) {
			s := mock.NewSandbox(opts)
			defer kill(t, s)
			path := s.Info().WorkerPath
			args := []string{"version"}
			if opts != nil {
				if path != "" {
					t.Errorf("WorkerPath is %q without a worker", path)
				}
				path = "/tmp/osiris-worker-0123abcd"
				if err := upload(t.Context(), s, path, "ELF"); err != nil {
					t.Fatal(err)
				}
				args = []string{"osiris-worker", "version"} // as a host's own program is told
			}
			var stderr bytes.Buffer
			p, err := s.Start(t.Context(), remote.Command{Path: path, Args: args, Stderr: &stderr})
			if err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(p.Stdout())
			if err != nil {
				t.Error(err)
			}
			status, err := p.Wait(t.Context())
			if err != nil || status.Code != 0 || len(bytes.TrimSpace(out)) == 0 {
				t.Errorf("version: %v, %v, stdout %q, stderr %q", status, err, out, stderr.String())
			}
		})
	}
}

func TestProvider(t *testing.T) {
	provider := mock.NewProvider(nil)
	open := func(cfg remote.SandboxConfig) *mock.Sandbox {
		t.Helper()
		s, err := provider.OpenSandbox(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s.(*mock.Sandbox)
	}
	a := open(remote.SandboxConfig{Template: "base"})
	b := open(remote.SandboxConfig{Template: "big", CPU: 8, MemoryGB: 16, TimeoutSeconds: 60, Metadata: map[string]string{"run": "r1"}})
	for _, test := range []struct {
		sandbox *mock.Sandbox
		want    remote.SandboxInfo
		ttl     time.Duration
	}{
		{a, remote.SandboxInfo{ID: "mock-1", Template: "base", CPU: 2, MemoryGB: 0.5, WorkerPath: "/usr/local/bin/osiris-worker"}, 0},
		{b, remote.SandboxInfo{ID: "mock-2", Template: "big", CPU: 8, MemoryGB: 16, WorkerPath: "/usr/local/bin/osiris-worker"}, 2 * time.Minute},
	} {
		if diff := cmp.Diff(test.want, test.sandbox.Info()); diff != "" {
			t.Errorf("Info (-want +got):\n%s", diff)
		}
		if got := test.sandbox.TTL(); got != test.ttl {
			t.Errorf("TTL of %s is %v, want %v", test.want.ID, got, test.ttl)
		}
	}
	if got := b.Config().Metadata["run"]; got != "r1" {
		t.Errorf("metadata is %q", got)
	}
	kill(t, a)
	if got := provider.Alive(); !slices.Equal(got, []*mock.Sandbox{b}) {
		t.Errorf("Alive returns %d sandboxes, want the second", len(got))
	}
	if got := provider.Sandboxes(); !slices.Equal(got, []*mock.Sandbox{a, b}) {
		t.Errorf("Sandboxes returns %d, want both", len(got))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := provider.OpenSandbox(ctx, remote.SandboxConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenSandbox: %v, want context.Canceled", err)
	}
	if got := len(provider.Sandboxes()); got != 2 {
		t.Errorf("a cancelled OpenSandbox made a sandbox")
	}
}

func TestTimeToLive(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	opts := *waiting
	opts.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	provider := mock.NewProvider(&opts)
	s, err := provider.OpenSandbox(t.Context(), remote.SandboxConfig{TimeoutSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, s, waitPath)
	pass(119 * time.Second)
	if err := s.Extend(t.Context(), time.Hour); err != nil {
		t.Errorf("Extend: %v", err)
	}
	pass(time.Hour - 1)
	if len(provider.Alive()) != 1 {
		t.Error("the sandbox ended too early")
	}
	pass(1)
	if len(provider.Alive()) != 0 {
		t.Error("the sandbox outlived its time")
	}
	if err := s.Extend(t.Context(), time.Hour); !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("Extend: %v, want ErrSandboxGone", err)
	}
	if _, err := p.Wait(t.Context()); !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("Wait: %v, want ErrSandboxGone", err)
	}
	kill(t, s)
}

func TestExpire(t *testing.T) {
	s := mock.NewSandbox(waiting)
	p := start(t, s, waitPath)
	s.Expire()
	if _, err := io.ReadAll(p.Stdout()); !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("read stdout: %v, want ErrSandboxGone", err)
	}
	if err := s.WriteFile("/tmp/file", nil); !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("WriteFile: %v, want ErrSandboxGone", err)
	}
	if files := s.Files(); len(files) != 0 {
		t.Errorf("files are left: %q", files)
	}
	kill(t, s)
}

func TestDownloadEndsWithSandbox(t *testing.T) {
	s := mock.NewSandbox(nil)
	s.WriteFile("/tmp/file", []byte("0123456789"))
	r, err := s.Download(t.Context(), "/tmp/file")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f := put(t, s.FS(), "/tmp/open", "data")
	changed, stop, err := s.FS().Watch("/tmp")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	kill(t, s)
	if n, err := r.Read(make([]byte, 4)); n != 0 || !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("Read: %d, %v; want ErrSandboxGone", n, err)
	}
	if n, err := f.Write([]byte("x")); n != 0 || !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("Write: %d, %v; want ErrSandboxGone", n, err)
	}
	<-changed // the end is a change
}

func TestStartErrors(t *testing.T) {
	s := mock.NewSandbox(waiting)
	defer kill(t, s)
	s.WriteFile("/tmp/unknown", nil)
	f, err := s.FS().Create("/tmp/wait")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, test := range []struct {
		cmd  remote.Command
		want error
	}{
		{remote.Command{Path: "/tmp/missing"}, fs.ErrNotExist},
		{remote.Command{Path: "/tmp"}, fs.ErrPermission},
		{remote.Command{Path: "/tmp/wait"}, fs.ErrPermission},
		{remote.Command{Path: "wait"}, fs.ErrInvalid},
		{remote.Command{Path: "/tmp/unknown"}, syscall.ENOEXEC},
		{remote.Command{Path: waitPath, Dir: "/missing"}, fs.ErrNotExist},
		{remote.Command{Path: waitPath, Dir: "/tmp/unknown"}, syscall.ENOTDIR},
	} {
		if _, err := s.Start(t.Context(), test.cmd); !errors.Is(err, test.want) {
			t.Errorf("Start(%+v): %v, want %v", test.cmd, err, test.want)
		}
	}
	if got := s.Processes(); len(got) != 0 {
		t.Errorf("processes: %+v", got)
	}
}

func TestFaults(t *testing.T) {
	type seam struct {
		s *mock.Sandbox
		p remote.Process
	}
	calls := map[mock.Op]func(ctx context.Context, x seam) error{
		mock.OpUpload:   func(ctx context.Context, x seam) error { return upload(ctx, x.s, "/tmp/file", "new!") },
		mock.OpDownload: func(ctx context.Context, x seam) error { _, err := download(ctx, x.s, "/tmp/file"); return err },
		mock.OpStart: func(ctx context.Context, x seam) error {
			_, err := x.s.Start(ctx, remote.Command{Path: waitPath})
			return err
		},
		mock.OpExtend: func(ctx context.Context, x seam) error { return x.s.Extend(ctx, time.Hour) },
		mock.OpKill:   func(ctx context.Context, x seam) error { return x.s.Kill(ctx) },
		mock.OpStdin:  func(ctx context.Context, x seam) error { _, err := x.p.Stdin().Write([]byte("in")); return err },
		mock.OpSignal: func(ctx context.Context, x seam) error { return x.p.Signal(ctx, remote.SignalKill) },
		mock.OpWait: func(ctx context.Context, x seam) error {
			x.s.KillProcess(x.p.PID())
			_, err := x.p.Wait(ctx)
			return err
		},
	}
	// state is what the calls change.
	state := func(x seam) map[mock.Op]bool {
		data, _ := x.s.ReadFile("/tmp/file")
		procs := x.s.Processes()
		return map[mock.Op]bool{
			mock.OpUpload: string(data) == "new!",
			mock.OpStart:  len(procs) > 1,
			mock.OpExtend: x.s.TTL() == time.Hour,
			mock.OpKill:   !x.s.Alive(),
			mock.OpSignal: procs[0].Exited,
		}
	}
	for _, mode := range []struct {
		name    string
		fault   error
		effect  bool
		succeed bool
	}{
		{"none", nil, true, true},
		{"at once", errBoom, false, false},
		{"late", mock.FailLate(errBoom), true, false},
		{"after bytes", mock.FailAfter(2, errBoom), false, false},
		{"after more bytes than there are", mock.FailAfter(20, errBoom), false, false},
	} {
		for op, call := range calls {
			t.Run(mode.name+"/"+string(op), func(t *testing.T) {
				opts := *waiting
				armed := false
				opts.Fault = func(_ context.Context, c mock.Call) error {
					if armed && c.Op == op {
						return mode.fault
					}
					return nil
				}
				s := mock.NewSandbox(&opts)
				x := seam{s, start(t, s, waitPath)}
				if err := s.WriteFile("/tmp/file", []byte("old")); err != nil {
					t.Fatal(err)
				}
				armed = true
				err := call(t.Context(), x)
				armed = false

				succeed, effect := mode.succeed, mode.effect
				if streams := op == mock.OpUpload || op == mock.OpDownload; streams && strings.HasPrefix(mode.name, "after more") {
					succeed, effect = true, true
				}
				if succeed && err != nil || !succeed && !errors.Is(err, errBoom) {
					t.Errorf("%v, want success %t", err, succeed)
				}
				if got, known := state(x)[op]; known && got != effect {
					t.Errorf("effect %t, want %t", got, effect)
				}
				last := s.Calls()[len(s.Calls())-1]
				if last.Op != op || succeed != (last.Err == nil) {
					t.Errorf("last call is %+v", last)
				}
				kill(t, s)
			})
		}
	}
}

func TestOpenFaults(t *testing.T) {
	fault := errBoom
	provider := mock.NewProvider(&mock.Options{Fault: func(context.Context, mock.Call) error { return fault }})
	for want, f := range []error{errBoom, mock.FailLate(errBoom)} {
		fault = f
		if s, err := provider.OpenSandbox(t.Context(), remote.SandboxConfig{}); s != nil || !errors.Is(err, errBoom) {
			t.Errorf("OpenSandbox: %v, %v", s, err)
		}
		if got := len(provider.Alive()); got != want {
			t.Errorf("%d sandboxes are alive, want %d", got, want)
		}
	}
}

func TestDownloadFault(t *testing.T) {
	s := mock.NewSandbox(&mock.Options{Fault: func(context.Context, mock.Call) error { return mock.FailAfter(5, errBoom) }})
	s.WriteFile("/tmp/file", []byte("0123456789"))
	if data, err := download(t.Context(), s, "/tmp/file"); data != "01234" || !errors.Is(err, errBoom) {
		t.Errorf("Download: %q, %v", data, err)
	}
	if c := s.Calls()[0]; c.Bytes != 5 || !errors.Is(c.Err, errBoom) {
		t.Errorf("recorded as %+v", c)
	}
}

func TestDownloadWhileWritten(t *testing.T) {
	s := mock.NewSandbox(nil)
	f := put(t, s.FS(), "/tmp/file", "0123456789")
	read := func(change func() error) (string, error) {
		t.Helper()
		r, err := s.Download(t.Context(), "/tmp/file")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		return string(b), err
	}
	if got, err := read(func() error { _, err := f.Write([]byte("more")); return err }); got != "0123456789" || err != nil {
		t.Errorf("a file that grows: %q, %v", got, err)
	}
	if got, err := read(func() error { return s.FS().RemoveAll("/tmp/file") }); got != "0123456789more" || err != nil {
		t.Errorf("a file that is removed: %q, %v", got, err)
	}
	f = put(t, s.FS(), "/tmp/file", "0123456789")
	if got, err := read(func() error { return f.Truncate(3) }); got != "012" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrinks: %q, %v", got, err)
	}
}

// TestFaultHoldsUp blocks a call by its fault, and lets it go by its context.
func TestFaultHoldsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := *waiting
		opts.Fault = func(ctx context.Context, c mock.Call) error {
			if c.Op == mock.OpStdin || c.Op == mock.OpUpload {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		s := mock.NewSandbox(&opts)
		p := start(t, s, waitPath)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := upload(ctx, s, "/tmp/file", "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Upload: %v, want context.DeadlineExceeded", err)
		}
		wrote := make(chan error)
		go func() {
			_, err := p.Stdin().Write([]byte("x"))
			wrote <- err
		}()
		synctest.Wait()
		s.KillProcess(p.PID())
		if err := <-wrote; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write: %v, want EPIPE", err)
		}
		kill(t, s)
	})
}

func TestDropStdout(t *testing.T) {
	wrote := make(chan struct{})
	s := mock.NewSandbox(&mock.Options{Programs: map[string]mock.Program{"flood": func(_ context.Context, p *mock.Proc) int {
		defer close(wrote)
		for range 100 {
			if _, err := p.Stdout.Write(make([]byte, 100_000)); err != nil {
				return 1
			}
		}
		return 7
	}}})
	defer kill(t, s)
	p := start(t, s, "/usr/local/bin/flood")
	if _, err := io.ReadFull(p.Stdout(), make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	s.DropStdout(p.PID())
	if _, err := p.Stdout().Read(make([]byte, 10)); err == nil || err == io.EOF || errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("Read: %v, want an error of its own", err)
	}
	<-wrote
	if status, err := p.Wait(t.Context()); status.Code != 7 || err != nil {
		t.Errorf("Wait: %v, %v", status, err)
	}
}

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mock.NewSandbox(waiting)
		p := start(t, s, waitPath, "some output")
		s.Freeze(p.PID())
		read := make(chan error, 1)
		go func() {
			_, err := p.Stdout().Read(make([]byte, 10))
			read <- err
		}()
		s.KillProcess(p.PID())
		if status, err := p.Wait(t.Context()); status.Signal != "SIGKILL" || err != nil {
			t.Errorf("Wait: %v, %v", status, err)
		}
		synctest.Wait()
		select {
		case err := <-read:
			t.Fatalf("Read of a frozen output: %v", err)
		default:
		}
		p.Stdout().Close()
		if err := <-read; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Read: %v, want fs.ErrClosed", err)
		}
		kill(t, s)
	})
}

// TestKilledProcessIsHarmless checks that a function which outlives its
// process can do no more.
func TestKilledProcessIsHarmless(t *testing.T) {
	synctest.Test(t, testKilledProcessIsHarmless)
}

func testKilledProcessIsHarmless(t *testing.T) {
	release, result := make(chan struct{}), make(chan error, 3)
	s := mock.NewSandbox(&mock.Options{Programs: map[string]mock.Program{"stuck": func(_ context.Context, p *mock.Proc) int {
		f, err := p.FS.Create("/tmp/file")
		if err != nil {
			t.Error(err)
		}
		defer f.Close()
		io.WriteString(f, "before")
		io.WriteString(p.Stdout, "r")
		<-release
		_, err = io.WriteString(f, "after")
		result <- err
		result <- p.FS.RemoveAll("/tmp/file")
		_, err = p.FS.Open("/tmp/file")
		result <- err
		return 0
	}}})
	p := start(t, s, "/usr/local/bin/stuck", "now")
	io.ReadFull(p.Stdout(), make([]byte, 1))
	if err := p.Signal(t.Context(), remote.SignalKill); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(t.Context()); status.Signal != "SIGKILL" || err != nil {
		t.Errorf("Wait: %v, %v", status, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if data, err := download(t.Context(), s, "/tmp/file"); data != "before" || err != nil {
		t.Errorf("the file holds %q, %v", data, err)
	}
	err := s.Kill(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 (/usr/local/bin/stuck now)") {
		t.Errorf("Kill: %v, want an error that names the process", err)
	}
	if s.Alive() {
		t.Error("the sandbox is alive")
	}
	close(release)
	for range 3 {
		if err := <-result; err == nil {
			t.Error("a killed process uses the files")
		}
	}
	kill(t, s) // waits for the rest
}

func TestCalls(t *testing.T) {
	provider := mock.NewProvider(waiting)
	s, err := provider.OpenSandbox(t.Context(), remote.SandboxConfig{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	upload(t.Context(), s, "/tmp/file", "data")
	download(t.Context(), s, "/tmp/file")
	download(t.Context(), s, "/tmp/missing")
	p := start(t, s, waitPath, "a", "b")
	p.Stdin().Write([]byte("in"))
	p.Signal(t.Context(), remote.SignalTerm)
	p.Wait(t.Context())
	p.Signal(t.Context(), "SIGHUP")
	s.Extend(t.Context(), time.Minute)
	kill(t, s)
	upload(t.Context(), s, "/tmp/late", "data")
	want := []mock.Call{
		{Op: mock.OpOpen},
		{Op: mock.OpUpload, Path: "/tmp/file", Bytes: 4},
		{Op: mock.OpDownload, Path: "/tmp/file", Bytes: 4},
		{Op: mock.OpDownload, Path: "/tmp/missing", Err: fs.ErrNotExist},
		{Op: mock.OpStart, Path: waitPath, Args: []string{"a", "b"}, PID: 1},
		{Op: mock.OpStdin, PID: 1, Bytes: 2},
		{Op: mock.OpSignal, PID: 1, Args: []string{"SIGTERM"}},
		{Op: mock.OpWait, PID: 1},
		{Op: mock.OpSignal, PID: 1, Args: []string{"SIGHUP"}, Err: cmpopts.AnyError},
		{Op: mock.OpExtend, TTL: time.Minute},
		{Op: mock.OpKill},
		{Op: mock.OpUpload, Path: "/tmp/late", Err: remote.ErrSandboxGone},
	}
	for i := range want {
		want[i].Sandbox = "mock-1"
	}
	for name, got := range map[string][]mock.Call{"sandbox": provider.Sandboxes()[0].Calls(), "provider": provider.Calls()} {
		if diff := cmp.Diff(want, got, cmpopts.EquateErrors(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("Calls of the %s (-want +got):\n%s", name, diff)
		}
	}
	procs := provider.Sandboxes()[0].Processes()
	if len(procs) != 1 || !procs[0].Exited || procs[0].Status.Signal != "SIGTERM" || procs[0].Command.Path != waitPath {
		t.Errorf("Processes returns %+v", procs)
	}
}
