package mock_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock"
)

func TestCommands(t *testing.T) {
	a := newAPI(t, mock.WithOptions(mock.Options{Programs: map[string]mock.Program{
		"shout": func(_ context.Context, p *mock.Proc) int {
			fmt.Fprint(p.Stdout, strings.ToUpper(strings.Join(p.Args, " ")))
			fmt.Fprint(p.Stderr, p.Dir)
			return 3
		},
		"env": func(_ context.Context, p *mock.Proc) int {
			env := slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return !strings.HasPrefix(v, "MY_") })
			slices.Sort(env)
			fmt.Fprint(p.Stdout, strings.Join(env, " "))
			return 0
		},
	}}))
	id := a.create(`{"templateID":"base","timeout":60,"envVars":{"MY_A":"1","MY_B":"2"}}`)["sandboxID"].(string)
	a.edge(id, "POST", "/files?path=/opt/shout", "not executable")
	a.edge(id, "POST", "/files?path=/tmp/text", "some text\n")
	shout := result{Stdout: "A B", Stderr: "/home/user", Code: 3, Status: "exit status 3"}
	ok := func(stdout string) result { return result{Stdout: stdout, Status: "exit status 0"} }
	fails := func(code int, stderr string) result {
		return result{Stderr: stderr, Code: code, Status: fmt.Sprintf("exit status %d", code)}
	}
	for _, test := range []struct {
		name string
		cmd  string
		args []string
		want result
	}{
		{"by name", "shout", []string{"a", "b"}, shout},
		{"by path", "/usr/local/bin/shout", []string{"a", "b"}, shout},
		{"in a shell", "/bin/bash", []string{"-l", "-c", "shout a  b"}, shout},
		{"made executable", "/bin/sh", []string{"-c", `chmod 755 "$0" && exec "$0" "$@"`, "/opt/shout", "a", "b"}, shout},
		{"through a shell", "/bin/sh", []string{"-c", `exec "$0" "$@"`, "shout", "a", "b"}, shout},
		{"chmod of nothing", "/bin/sh", []string{"-c", `chmod 755 "$0" && exec "$0" "$@"`, "/opt/none"},
			fails(1, "chmod: cannot access '/opt/none': no such file or directory\n")},
		{"environment", "env", nil, ok("MY_A=1 MY_B=2")},
		{"echo", "/bin/bash", []string{"-l", "-c", "echo hello  you"}, ok("hello you\n")},
		{"echo by path", "/bin/echo", []string{"x y"}, ok("x y\n")},
		{"cat", "/bin/bash", []string{"-c", "cat /tmp/text"}, ok("some text\n")},
		{"cat of nothing", "cat", []string{"none"}, fails(1, "cat: none: no such file or directory\n")},
		{"exit", "/bin/bash", []string{"-l", "-c", "exit 42"}, result{Code: 42, Status: "exit status 42"}},
		{"true", "true", nil, ok("")},
		{"false", "false", nil, result{Code: 1, Status: "exit status 1"}},
		{"sleep", "/bin/sleep", []string{"0.01"}, ok("")},
		{"not found", "/bin/bash", []string{"-l", "-c", "none"}, fails(127, "bash: line 1: none: command not found\n")},
		{"not executable", "/bin/bash", []string{"-l", "-c", "/tmp/text"}, fails(126, "bash: line 1: /tmp/text: permission denied\n")},
		{"no shell", "/bin/bash", []string{"-l", "-c", "echo a | cat"},
			fails(2, "a sandbox in memory has no shell and runs plain words alone; a server with mock.WithProcesses has one: echo a | cat\n")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, a.run(id, test.cmd, test.args...)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("no program", func(t *testing.T) {
		if got := a.run(id, "/nowhere/program"); got.Code != 127 || got.Stderr == "" {
			t.Errorf("%+v", got)
		}
	})
}

// TestSandboxOfServer looks at a sandbox from the inside.
func TestSandboxOfServer(t *testing.T) {
	a := newAPI(t, waitingOptions())
	id := a.sandbox()
	sandbox := a.server.Sandbox(id)
	if got := sandbox.Info().ID; got != id {
		t.Errorf("its ID is %q, want %q", got, id)
	}
	if err := sandbox.WriteFile("/home/user/in", []byte("from the test")); err != nil {
		t.Fatal(err)
	}
	if r := a.edge(id, "GET", "/files?path=in", ""); r.Body != "from the test" {
		t.Errorf("%+v", r)
	}
	s := a.startStream(id, "/bin/sh", "-c", `exec "$0" "$@"`, waitPath, "x")
	defer s.Close()
	got := sandbox.Processes()
	if len(got) != 1 || got[0].Command.Path != waitPath || !slices.Equal(got[0].Command.Args, []string{"x"}) {
		t.Fatalf("processes: %+v", got)
	}
	sandbox.KillProcess(got[0].PID)
	r, err := s.wait()
	if err != nil || r.Code != -1 || r.Status != "signal: killed" {
		t.Errorf("%+v, %v", r, err)
	}
	if a.server.Sandbox("inone") != nil {
		t.Error("there is a sandbox nobody made")
	}
}

// TestDiskFull fills a disk.
func TestDiskFull(t *testing.T) {
	a := newAPI(t, mock.WithOptions(mock.Options{DiskBytes: 10}))
	id := a.sandbox()
	if r := a.edge(id, "POST", "/files?path=a", "more than ten bytes"); r.Status != 507 {
		t.Errorf("%+v", r)
	}
}

// rpc calls a unary procedure of a sandbox's daemon.
func (a *api) rpc(id, procedure, message string) reply {
	a.t.Helper()
	return a.edge(id, "POST", "/"+procedure, message, "Content-Type", "application/json")
}

func TestFilesOfServer(t *testing.T) {
	a := newAPI(t)
	id := a.sandbox()
	watcher := a.rpc(id, "filesystem.Filesystem/CreateWatcher", `{"path":"/home/user","recursive":true}`).json(t)["watcherId"]
	a.edge(id, "POST", "/files?path=dir/a", "hello", "X-Metadata-Color", "red")
	for _, test := range []struct {
		procedure, message string
		status             int
		want               string // in the answer
	}{
		{"Stat", `{"path":"dir/a"}`, 200, `"size":"5"`},
		{"Stat", `{"path":"dir/a"}`, 200, `"color":"red"`},
		{"Stat", `{"path":"dir/a"}`, 200, `"owner":"user"`},
		{"Stat", `{"path":"none"}`, 404, "not_found"},
		{"ListDir", `{"path":"/home/user","depth":2}`, 200, `"path":"/home/user/dir/a"`},
		{"MakeDir", `{"path":"b/c"}`, 200, `"path":"/home/user/b/c"`},
		{"MakeDir", `{"path":"b/c"}`, 409, "already_exists"},
		{"Move", `{"source":"dir/a","destination":"b/c/d"}`, 200, `"name":"d"`},
		{"Remove", `{"path":"dir"}`, 200, ""},
		{"Stat", `{"path":"dir"}`, 404, "not_found"},
	} {
		r := a.rpc(id, "filesystem.Filesystem/"+test.procedure, test.message)
		if r.Status != test.status || !strings.Contains(strings.ReplaceAll(r.Body, " ", ""), test.want) {
			t.Errorf("%s %s: %+v; want %d with %s", test.procedure, test.message, r, test.status, test.want)
		}
	}
	a.edge(id, "POST", "/files?path=b/c/d", "more than hello")

	var events []string
	want := []string{"CREATE dir", "CREATE b/c/d", "WRITE b/c/d", "REMOVE dir"}
	eventually(t, "events", func() bool {
		r := a.rpc(id, "filesystem.Filesystem/GetWatcherEvents", fmt.Sprintf(`{"watcherId":%q}`, watcher)).json(t)
		list, _ := r["events"].([]any)
		for _, e := range list {
			event := e.(object)
			events = append(events, strings.TrimPrefix(event["type"].(string), "EVENT_TYPE_")+" "+event["name"].(string))
		}
		return !slices.ContainsFunc(want, func(e string) bool { return !slices.Contains(events, e) })
	})
}

func TestSignalsAndInput(t *testing.T) {
	a := newAPI(t, waitingOptions())
	id := a.sandbox()
	begin := func(cmd string, args ...string) (*stream, string) {
		s := a.startStream(id, cmd, args...)
		event, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		return s, fmt.Sprint(event["start"].(object)["pid"])
	}
	for signal, want := range map[string]string{"SIGNAL_SIGTERM": "signal: terminated", "SIGNAL_SIGKILL": "signal: killed"} {
		s, pid := begin(waitPath)
		if r := a.rpc(id, "process.Process/SendSignal", fmt.Sprintf(`{"process":{"pid":%s},"signal":%q}`, pid, signal)); r.Status != 200 {
			t.Errorf("%s: %+v", signal, r)
		}
		if r, err := s.wait(); err != nil || r.Code != -1 || r.Status != want {
			t.Errorf("%s: %+v, %v", signal, r, err)
		}
	}
	s, pid := begin("cat")
	if r := a.rpc(id, "process.Process/SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"stdin":"aGVsbG8="}}`, pid)); r.Status != 200 {
		t.Errorf("SendInput: %+v", r)
	}
	if r := a.rpc(id, "process.Process/CloseStdin", fmt.Sprintf(`{"process":{"pid":%s}}`, pid)); r.Status != 200 {
		t.Errorf("CloseStdin: %+v", r)
	}
	if r, err := s.wait(); err != nil || r.Stdout != "hello" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestWorkerIsThere starts the worker, installed and uploaded.
func TestWorkerIsThere(t *testing.T) {
	a := newAPI(t)
	id := a.sandbox()
	a.edge(id, "POST", "/files?path=/tmp/osiris-worker-1a2b", "whatever")
	for _, args := range [][]string{
		{"/usr/local/bin/osiris-worker", "version"},
		{"/bin/sh", "-c", `chmod 755 "$0" && exec "$0" "$@"`, "/tmp/osiris-worker-1a2b", "osiris-worker", "version"},
	} {
		if got := a.run(id, args[0], args[1:]...); got.Code != 0 || !strings.Contains(got.Stdout, "osiris-worker/") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
