package remote_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// processKinds are the adapters whose workers are processes.
var processKinds = slices.DeleteFunc(slices.Clone(kinds), func(kind string) bool {
	return kind != "local" && kind != "embedded" && kind != "envd"
})

// addProcessDrivers adds drivers that do to their process what can happen to
// it.
func addProcessDrivers(add func(name string, mode worker.Mode, f driverFunc)) {
	add("test.core", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		var own unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &own); err != nil {
			return nil, err
		}
		child, err := exec.CommandContext(ctx, "sh", "-c", "ulimit -c").Output()
		s.LogEvent("core", map[string]any{"own": own.Cur, "child": strings.TrimSpace(string(child))})
		return nil, err
	})
	add("test.die", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		fmt.Println("a whole line")
		fmt.Print("no end of a line")
		s.LogEvent("waiting", nil)
		switch s.Config["how"] {
		case "exit":
			os.Exit(3)
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		case "segv":
			_ = unix.Kill(os.Getpid(), unix.SIGABRT)
		case "kill supervisor":
			_ = unix.Kill(os.Getppid(), unix.SIGKILL)
		case "stop":
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		case "panic":
			go func() { panic("driver bug") }()
		case "memory": // as under ulimit -v
			var all [][]byte
			limit := &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
			if err := unix.Setrlimit(unix.RLIMIT_AS, limit); err != nil {
				return nil, err
			}
			for {
				b := make([]byte, 8<<20)
				all = append(all, b)
				b[len(all)] = 1
			}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	add("test.leave", worker.Transform, runLeave)
	add("test.until", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("waiting", nil)
		name, _ := s.Config["file"].(string)
		for ctx.Err() == nil {
			if _, err := os.Stat(name); err == nil {
				return nil, nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil, ctx.Err()
	})
}

// runLeave leaves processes behind, in every way there is: in its process
// group, in sessions of their own, as children of one that has ended, without
// its environment, deaf to SIGTERM, with its standard output open. All have the
// config's token among their arguments.
func runLeave(ctx context.Context, s *worker.Step) (*worker.Result, error) {
	token, _ := s.Config["marker"].(string)
	out, err := unix.Dup(1)
	if err != nil {
		return nil, err
	}
	stdout := os.NewFile(uintptr(out), "stdout")
	defer stdout.Close()
	const sleep = `trap "" TERM; while :; do sleep 1000; done`
	for _, c := range []struct {
		script string
		setsid bool
		env    []string
	}{
		{script: sleep},
		{script: sleep, setsid: true},
		{script: `(` + sleep + `) & exit`, setsid: true},
		{script: `( (` + sleep + `) & ) & exit`, setsid: true, env: []string{"PATH=/usr/bin:/bin"}},
	} {
		if c.env != nil && s.Config["then"] == "kill supervisor" {
			continue // nothing ties it to the run any more but the sandbox
		}
		cmd := exec.Command("/bin/sh", "-c", c.script, "sh", token)
		cmd.Env, cmd.Stdout, cmd.Stderr = c.env, stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: c.setsid}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if strings.HasSuffix(c.script, "exit") {
			if err := cmd.Wait(); err != nil {
				return nil, err
			}
		}
	}
	s.LogEvent("waiting", nil)
	switch s.Config["then"] {
	case "exit":
		os.Exit(3)
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "kill supervisor":
		_ = unix.Kill(os.Getppid(), unix.SIGKILL)
		time.Sleep(time.Hour)
	case "deaf":
		time.Sleep(time.Hour)
	case "stop":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, nil
}

// leftovers are the processes of this machine that have a token among their
// arguments or in their environment.
func leftovers(t testing.TB, token string) []string {
	t.Helper()
	var found []string
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if name == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		args, _ := os.ReadFile(name + "/cmdline")
		env, _ := os.ReadFile(name + "/environ")
		if bytes.Contains(args, []byte(token)) || bytes.Contains(env, []byte(token)) {
			found = append(found, fmt.Sprintf("%s: %.200q", name, args))
		}
	}
	return found
}

// newToken names the session of a test, so that the run's folder, and with it
// all its processes, can be told from others'.
func newToken() string { return "token" + strings.ToLower(rand.Text()) }

func dieStep(how string) *remote.Manifest {
	m := one("test.die")
	m.Steps[0].Config = map[string]any{"how": how}
	return m
}

// Every kind of death has its verdict, and leaves neither a process nor a gap in
// what was printed.
func TestDeaths(t *testing.T) {
	t.Parallel()
	for _, kind := range processKinds {
		for _, test := range []struct {
			how     string
			verdict remote.Verdict
			status  remote.ExitStatus
			stderr  string
			prints  bool
		}{
			{how: "exit", verdict: remote.VerdictExited, status: remote.ExitStatus{Code: 3}, prints: true},
			{how: "kill", verdict: remote.VerdictKilled, status: remote.ExitStatus{Code: -1, Signal: "SIGKILL"}, prints: true},
			{how: "segv", verdict: remote.VerdictExited, status: remote.ExitStatus{Code: 2}, stderr: "SIGABRT", prints: true},
			{how: "panic", verdict: remote.VerdictExited, status: remote.ExitStatus{Code: 2}, stderr: "driver bug", prints: true},
			{how: "memory", verdict: remote.VerdictOutOfMemory, status: remote.ExitStatus{Code: 2}, stderr: "memory", prints: true},
			{how: "kill supervisor", verdict: remote.VerdictKilled, status: remote.ExitStatus{Code: -1, Signal: "SIGKILL"}},
		} {
			t.Run(kind+"/"+test.how, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				if test.how == "memory" && raceEnabled {
					t.Skip("the race detector needs more address space than can be left")
				}
				token := newToken()
				a, _ := newAdapter(t, kind, remote.Config{}, nil)
				ec := newContext(t, token)
				result, _, err := remote.Run(t.Context(), a, dieStep(test.how), ec)
				agree(t, ec, result, err)
				var crash *remote.WorkerCrashError
				if !errors.As(err, &crash) {
					t.Fatalf("error %v", err)
				}
				if crash.Verdict != test.verdict || crash.Detail == "" || crash.Status == nil || *crash.Status != test.status {
					t.Errorf("verdict %s (%s), status %v; want %s, %v", crash.Verdict, crash.Detail, crash.Status, test.verdict, test.status)
				}
				contains(t, crash.Stderr, test.stderr)
				if !slices.Equal(crash.OpenSteps, []string{"step"}) {
					t.Errorf("running: %v", crash.OpenSteps)
				}
				if test.how != "kill supervisor" && crash.PeakMemoryBytes < 1<<20 {
					t.Errorf("peak memory is %d", crash.PeakMemoryBytes)
				}
				if log := sessionLog(t, ec); test.prints {
					contains(t, log, "a whole line", "no end of a line")
					if n := strings.Count(log, "no end of a line"); n != 1 {
						t.Errorf("it was logged %d times", n)
					}
				}
				if left := leftovers(t, token); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				if len(result.Stopped) > 0 {
					t.Errorf("the run was not stopped, but: %+v", result.Stopped)
				}
			})
		}
	}
}

// What a run has started ends with it, whatever it has done to get away.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	for _, kind := range processKinds {
		for _, then := range []string{"end", "exit", "kill", "kill supervisor", "wait", "deaf", "stop"} {
			t.Run(kind+"/"+then, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				token := newToken()
				a, _ := newAdapter(t, kind, remote.Config{}, nil)
				ec := newContext(t, token)
				m := one("test.leave")
				m.Steps[0].Config = map[string]any{"marker": token, "then": then}
				ctx := t.Context()
				cancels := then == "wait" || then == "deaf" || then == "stop"
				if cancels {
					ctx = untilWaiting(t, ec)
				}
				p, err := a.Prepare(ctx, m, ec)
				if err != nil {
					t.Fatal(err)
				}
				result, err := a.Execute(ctx, p, ec)
				agree(t, ec, result, err)
				if ok := then == "end"; ok != (err == nil) || cancels != errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
				// Before the sandbox ends, and takes all along.
				if left := leftovers(t, token); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				if cancels {
					receipt(t, result.Stopped, then)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if left := leftovers(t, token); len(left) > 0 {
					t.Errorf("left in the end: %v", left)
				}
			})
		}
	}
}

// receipt checks what a stopped run says of that.
func receipt(t *testing.T, stages []remote.StopStage, then string) {
	t.Helper()
	var names []string
	for _, s := range stages {
		names = append(names, s.Stage)
		last := s.Stage == remote.StageProcesses
		if last && (!s.Gone || len(s.Left) > 0 || s.Error != "") {
			t.Errorf("stage %+v", s)
		}
	}
	want := []string{remote.StageCancel, remote.StageProcesses}
	if then == "stop" {
		want = []string{remote.StageCancel, remote.StageTerminate, remote.StageProcesses}
	}
	if !slices.Equal(names, want) {
		t.Errorf("stages %+v, want %v", stages, want)
	}
}

// The receipt of a run that is cancelled ends with its sandbox.
func TestReceipt(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			result, _, err := remote.Run(untilWaiting(t, ec), a, one("test.wait"), ec)
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
			var names []string
			for _, s := range result.Stopped {
				names = append(names, s.Stage)
				if !s.Gone || s.Error != "" || s.DurationMS < 0 {
					t.Errorf("stage %+v", s)
				}
			}
			if want := []string{remote.StageCancel, remote.StageProcesses, remote.StageSandbox}; !slices.Equal(names, want) {
				t.Errorf("stages %v, want %v", names, want)
			}
		})
	}
}

// A worker that is stopped is found out, and ended.
func TestStoppedWorker(t *testing.T) {
	t.Parallel()
	for _, kind := range processKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			token := newToken()
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, token)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == "worker_silent" {
					cancel()
				}
				return nil
			}
			result, _, err := remote.Run(ctx, a, dieStep("stop"), ec)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			agree(t, ec, result, err)
			silent := events(t, ec, "worker_silent")
			if len(silent) != 1 || silent[0]["verdict"] != "frozen" || !strings.Contains(fmt.Sprint(silent[0]["detail"]), "stopped") {
				t.Errorf("events %v", silent)
			}
			if left := leftovers(t, token); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// strike runs a step in a sandbox of a server, and does something to that while
// it runs. The step ends when there is a file of the given name; silent is closed
// once the worker is said to be silent, or the run has ended.
func strike(t *testing.T, kind string, do func(server *mock.Server, sb *e2b.Client, id, file string, silent <-chan struct{}) error) (*remote.ExecutionContext, error) {
	t.Helper()
	server := newServer(t, kind, testDrivers())
	cfg := connect(remote.Config{Drivers: testDrivers(), Timeout: 5 * time.Minute}, server)
	client, err := e2b.NewClient(e2b.Config{APIKey: cfg.APIKey, APIURL: cfg.APIURL, SandboxURL: cfg.SandboxURL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ec := newContext(t, newToken())
	file := "/tmp/" + ec.SessionID
	struck, silent := make(chan error, 1), make(chan struct{})
	close := sync.OnceFunc(func() { close(silent) })
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		switch e.Name {
		case "waiting":
			go func() { struck <- do(server, client, server.Alive()[0].ID, file, silent) }()
		case "worker_silent":
			close()
		}
		return nil
	}
	m := one("test.until")
	m.Steps[0].Config = map[string]any{"file": file}
	result, _, err := remote.Run(t.Context(), a, m, ec)
	close()
	if strikeErr := <-struck; strikeErr != nil {
		t.Error(strikeErr)
	}
	agree(t, ec, result, err)
	if closeErr := a.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	if left := leftovers(t, ec.SessionID); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	return ec, err
}

// letGo ends the step of strike.
func letGo(client *e2b.Client, id, file string) error {
	ctx := context.Background()
	sb, err := client.Connect(ctx, id, 5*time.Minute)
	if err != nil {
		return err
	}
	return sb.Upload(ctx, file, strings.NewReader("x"), 1)
}

// What happens to a sandbox from outside has its verdict, and ends the run only
// where it must.
func TestSandboxIsStruck(t *testing.T) {
	t.Parallel()
	for _, kind := range processKinds {
		if kind == "local" {
			continue
		}
		t.Run(kind+"/paused and resumed", func(t *testing.T) {
			t.Parallel() // most of it is waiting
			ec, err := strike(t, kind, func(server *mock.Server, client *e2b.Client, id, file string, silent <-chan struct{}) error {
				if err := server.Pause(id); err != nil {
					return err
				}
				<-silent
				return letGo(client, id, file)
			})
			if err != nil {
				t.Errorf("error %v", err)
			}
			silent := events(t, ec, "worker_silent")
			if len(silent) != 1 || silent[0]["verdict"] != "sandbox_paused" {
				t.Errorf("events %v", silent)
			}
		})
		t.Run(kind+"/connections cut", func(t *testing.T) {
			t.Parallel() // most of it is waiting
			ec, err := strike(t, kind, func(server *mock.Server, client *e2b.Client, id, file string, _ <-chan struct{}) error {
				for range 5 {
					server.CutConnections()
					time.Sleep(100 * time.Millisecond)
				}
				return letGo(client, id, file)
			})
			if err != nil {
				t.Errorf("error %v", err)
			}
			if silent := events(t, ec, "worker_silent"); len(silent) != 0 {
				t.Errorf("events %v", silent)
			}
		})
		for name, test := range map[string]struct {
			do   func(server *mock.Server, id string) error
			want remote.Verdict
		}{
			"killed": {(*mock.Server).Kill, remote.VerdictSandboxGone},
			// The server ends it before its end has come by any clock of ours.
			"expired": {(*mock.Server).Expire, remote.VerdictSandboxGone},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				_, err := strike(t, kind, func(server *mock.Server, _ *e2b.Client, id, _ string, _ <-chan struct{}) error {
					return test.do(server, id)
				})
				var crash *remote.WorkerCrashError
				if !errors.As(err, &crash) || crash.Verdict != test.want || !errors.Is(err, remote.ErrSandboxGone) {
					t.Errorf("error %v, want the verdict %s", err, test.want)
				}
			})
		}
	}
}

// TestNoCoreFiles: a crash does not put the worker's memory on disk.
func TestNoCoreFiles(t *testing.T) {
	for _, kind := range processKinds {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			ec := newContext(t, "s")
			if _, _, err := remote.Run(t.Context(), a, one("test.core"), ec); err != nil {
				t.Fatal(err)
			}
			if e := events(t, ec, "core")[0]; e["own"] != 0.0 || e["child"] != "0" {
				t.Errorf("limits of core files: %v", e)
			}
		})
	}
}
