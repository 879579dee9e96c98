package machine_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

func TestProcess(t *testing.T) {
	tests := map[string]struct {
		script string
		want   result
	}{
		"output":      {"echo out; echo err >&2", result{"out\n", "err\n", envd.Status{}}},
		"exit code":   {"exit 3", result{Status: envd.Status{Code: 3}}},
		"code 137":    {"exit 137", result{Status: envd.Status{Code: 137}}},
		"terminated":  {"kill -TERM $$", result{Status: envd.Status{Code: -1, Signal: syscall.SIGTERM}}},
		"crashed":     {"ulimit -c 0; kill -SEGV $$", result{Status: envd.Status{Code: -1, Signal: syscall.SIGSEGV}}},
		"killed":      {"kill -KILL $$", result{Status: envd.Status{Code: -1, Signal: syscall.SIGKILL}}},
		"group":       {"trap '' TERM HUP INT; kill -TERM 0; kill -HUP 0; kill -INT 0; exit 4", result{Status: envd.Status{Code: 4}}},
		"no input":    {"cat; echo end", result{Stdout: "end\n"}},
		"directory":   {"cd; [[ $PWD == $OLDPWD ]] && echo same", result{Stdout: "same\n"}},
		"own session": {"[[ $(ps -o sid= -p $$ | tr -d ' ') == $$ ]] && echo leader", result{Stdout: "leader\n"}},
	}
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				if diff := cmp.Diff(tt.want, run(t, m, shell(t, m, tt.script))); diff != "" {
					t.Error("(-want +got)", diff)
				}
			})
		}
	})
}

func TestProcessEnvironment(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "")
		// A shell between us and the process may set PWD, and sorts.
		cmd.Path, cmd.Args, cmd.Env = "env", []string{"-u", "PATH", "-u", "PWD"}, []string{testPath, "A=1 1", "B=2"}
		if got, want := run(t, m, cmd).Stdout, "A=1 1\nB=2\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		cmd.Path, cmd.Args, cmd.Env = "/usr/bin/env", nil, nil
		if got := run(t, m, cmd).Stdout; strings.Contains(got, "GO") || strings.Contains(got, "HOME") {
			t.Errorf("variables of the host are there: %q", got)
		}
	})
}

// A process has no open file but its own three.
func TestDescriptors(t *testing.T) {
	fd, err := syscall.Open("/", syscall.O_RDONLY, 0) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "")
		cmd.Path, cmd.Args = "ls", []string{"/proc/self/fd"}
		if got := run(t, m, cmd).Stdout; got != "0\n1\n2\n3\n" { // the last is that of ls
			t.Errorf("descriptors %q", got)
		}
		cmd.Path, cmd.Args, cmd.User = "bash", []string{"-c", "ls /proc/1/fd || :"}, user(t, m, "root")
		eventually(t, "the first process has no other descriptors", func() bool { // it may not have become what it will be
			got := run(t, m, cmd).Stdout
			return got == "0\n1\n2\n" || got == ""
		})
	})
}

func TestStartFails(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		write(t, m, home+"/file", "")
		for dir, want := range map[string]error{
			home + "/missing":   fs.ErrNotExist,
			home + "/file":      syscall.ENOTDIR,
			home + "/file/more": syscall.ENOTDIR,
		} {
			cmd := shell(t, m, "true")
			cmd.Dir = dir
			if _, err := m.Start(cmd); !errors.Is(err, want) {
				t.Errorf("in %s: error %v, want %v", dir, err, want)
			}
		}
	})
}

func TestProgramCannotRun(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		write(t, m, home+"/file", "exit 5")
		for path, code := range map[string]int{"no-such-program": 127, "/no/such/program": 127, home + "/file": 126} {
			cmd := shell(t, m, "")
			cmd.Path, cmd.Args = path, nil
			got := run(t, m, cmd)
			if got.Status.Code != code || !strings.Contains(got.Stderr, path) {
				t.Errorf("%s: %+v, want exit code %d", path, got, code)
			}
		}
	})
}

func TestStdin(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "cat; echo end")
		if p, err := m.Start(cmd); err != nil || p.Stdin() != nil {
			t.Fatal("an input was not asked for", err)
		} else {
			finish(t, p)
		}
		cmd.Stdin = true
		p, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("0123456789abcdef", 1<<14) // more than a pipe holds
		var writer sync.WaitGroup
		writer.Go(func() {
			_, err := io.WriteString(p.Stdin(), text)
			if err := errors.Join(err, p.Stdin().Close()); err != nil {
				t.Error(err)
			}
		})
		if got := finish(t, p); got.Stdout != text+"end\n" {
			t.Errorf("%d bytes came back, status %+v", len(got.Stdout), got.Status)
		}
		writer.Wait()
	})
}

func TestPID(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		p, err := m.Start(shell(t, m, "echo $$"))
		if err != nil {
			t.Fatal(err)
		}
		if got := finish(t, p).Stdout; got != fmt.Sprintln(p.PID()) {
			t.Errorf("PID %d, the process says %s", p.PID(), got)
		}
	})
}

func TestSignal(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			p, err := m.Start(shell(t, m, "exec sleep 1000"))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Signal(sig); err != nil {
				t.Error(err)
			}
			if got := finish(t, p).Status; got != (envd.Status{Code: -1, Signal: sig}) {
				t.Errorf("after %v: %+v", sig, got)
			}
			if err := p.Signal(sig); err == nil {
				t.Error("a process that has ended took a signal")
			}
		}
	})
}

// A signal is for one process: what it left behind goes on, and holds the pipe.
func TestSignalAlone(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		p, err := m.Start(shell(t, m, "trap 'exit 7' TERM; sleep 4101.5 & echo ready; while :; do wait; done"))
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(p.Stdout())
		if line, err := r.ReadString('\n'); line != "ready\n" {
			t.Fatal(line, err)
		}
		// The shell has forked when it says that it is ready; what it forked may
		// still be a shell.
		eventually(t, "a grandchild", func() bool { return running(t, "sleep 4101.5") })
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if got := p.Wait(); got != (envd.Status{Code: 7}) {
			t.Errorf("status %+v", got)
		}
		if !running(t, "sleep 4101.5") {
			t.Error("a grandchild is gone")
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Error("after Close the output goes on:", err)
		}
		_, _ = p.Stdout().Close(), p.Stderr().Close()
	})
}

func TestTerminal(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "stty -echo; tty | grep -c ^/dev/; stty size; read -r line; stty size; echo got $line; ls /dev/tty; read -r line")
		cmd.PTY = &envd.Size{Cols: 90, Rows: 30}
		p, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if p.Stderr() != nil {
			t.Error("a terminal has no error output")
		}
		r := bufio.NewReader(p.Stdout())
		for _, want := range []string{"1\r\n", "30 90\r\n"} {
			if got, err := r.ReadString('\n'); got != want {
				t.Fatalf("got %q, want %q: %v", got, want, err)
			}
		}
		if err := p.Resize(envd.Size{Cols: 70, Rows: 20}); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(p.Stdin(), "hello\n"); err != nil {
			t.Error(err)
		}
		for _, want := range []string{"20 70\r\n", "got hello\r\n", "/dev/tty\r\n"} {
			if got, err := r.ReadString('\n'); got != want {
				t.Fatalf("got %q, want %q: %v", got, want, err)
			}
		}
		// It has waited with its end: the kernel throws away what of a terminal was
		// not read by then.
		if _, err := io.WriteString(p.Stdin(), "\n"); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("got %q, %v", rest, err)
		}
		if got := p.Wait(); got != (envd.Status{}) {
			t.Errorf("status %+v", got)
		}
		_ = p.Stdout().Close()
	})
}

func TestInteractiveShell(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "")
		cmd.Args, cmd.PTY = []string{"--norc", "-i"}, &envd.Size{Cols: 80, Rows: 24}
		cmd.Env = append(cmd.Env, "PS1=")
		p, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(p.Stdin(), "sleep 1000 & kill %1; wait; exit 6\n"); err != nil {
			t.Error(err)
		}
		got := finish(t, p)
		if got.Status.Code != 6 || strings.Contains(got.Stdout, "job control") {
			t.Errorf("%+v", got)
		}
	})
}

// Orphans do not stay as zombies.
func TestOrphans(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		run(t, m, shell(t, m, "for i in 1 2 3; do (setsid sleep 0.01 >/dev/null 2>&1 &); done"))
		eventually(t, "no process but two", func() bool {
			return run(t, m, shell(t, m, "ls -d /proc/[0-9]* | wc -l")).Stdout == "4\n" // 1, bash, ls, wc
		})
	})
}

func TestFreeze(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		p, err := m.Start(shell(t, m, "(while sleep 0.002; do echo; done) | cat"))
		if err != nil {
			t.Fatal(err)
		}
		lines := make(chan struct{})
		var reader sync.WaitGroup
		reader.Go(func() {
			defer close(lines)
			for s := bufio.NewScanner(p.Stdout()); s.Scan(); {
				lines <- struct{}{}
			}
		})
		<-lines
		if err := m.Freeze(true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all stopped", func() bool { return stopped(t, "sleep 0.002; do echo") })
		if err := m.Freeze(false); err != nil {
			t.Fatal(err)
		}
		for range 100 { // more than was on its way
			<-lines
		}
		if err := m.Freeze(true); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil { // of a frozen one
			t.Error(err)
		}
		for range lines {
		}
		reader.Wait()
		_, _ = p.Stdout().Close(), p.Stderr().Close()
	})
}

func TestCloseDuringStarts(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		var starters sync.WaitGroup
		started := make(chan struct{}, 100)
		cmd := shell(t, m, "sleep 1000")
		for range 4 {
			starters.Go(func() {
				for {
					p, err := m.Start(cmd)
					if errors.Is(err, fs.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					select {
					case started <- struct{}{}:
					default:
					}
					_, _ = p.Stdout().Close(), p.Stderr().Close()
				}
			})
		}
		for range 20 {
			<-started
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		starters.Wait()
	})
}

func BenchmarkNew(b *testing.B) {
	for kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				m, err := kinds[kind](machine.Options{Dir: b.TempDir()})
				if err != nil {
					b.Skip("not here: ", err)
				}
				if err := m.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkStart(b *testing.B) {
	for kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			m := newMachine(b, kind, machine.Options{})
			cmd := shell(b, m, "")
			cmd.Path, cmd.Args = "/bin/true", nil
			for b.Loop() {
				p, err := m.Start(cmd)
				if err != nil {
					b.Fatal(err)
				}
				p.Wait()
				_, _ = p.Stdout().Close(), p.Stderr().Close()
			}
		})
	}
}
