package machine_test

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("MACHINE_TEST_VICTIM"); dir != "" {
		victim(dir)
	}
	goleak.VerifyTestMain(m)
}

// victimSleep is an argument of sleep that no other process has.
func victimSleep(dir string) string {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return fmt.Sprintf("4102.%d", h.Sum32())
}

// kinds are the ways to make a machine.
var kinds = map[string]func(machine.Options) (*machine.Machine, error){
	"isolated": machine.New,
	"user namespace": func(opts machine.Options) (*machine.Machine, error) {
		return machine.NewInUserNamespace(opts)
	},
	"shared": func(opts machine.Options) (*machine.Machine, error) {
		opts.Shared = true
		return machine.New(opts)
	},
}

// forEach runs a test on a machine of every kind.
func forEach(t *testing.T, opts machine.Options, test func(*testing.T, *machine.Machine)) {
	for name := range kinds {
		t.Run(name, func(t *testing.T) { test(t, newMachine(t, name, opts)) })
	}
}

// forIsolated runs a test on a machine of every kind that is isolated.
func forIsolated(t *testing.T, opts machine.Options, test func(*testing.T, *machine.Machine)) {
	for _, name := range []string{"isolated", "user namespace"} {
		t.Run(name, func(t *testing.T) { test(t, newMachine(t, name, opts)) })
	}
}

// newMachine makes a machine and checks, when the test is over, that nothing of
// it is left.
func newMachine(t testing.TB, kind string, opts machine.Options) *machine.Machine {
	t.Helper()
	opts.Dir = t.TempDir()
	m, err := kinds[kind](opts)
	if err != nil {
		if kind == "user namespace" {
			t.Skip("user namespaces are not permitted here: ", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error("Close:", err)
		}
		checkGone(t, opts.Dir)
	})
	if kind == "isolated" && !m.Isolated() {
		t.Skip("no isolation here: ", m.Isolation())
	}
	return m
}

// checkGone checks that a directory is empty and that no mount and no process
// has to do with it.
func checkGone(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Error("left behind:", entries, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Error("a mount is left behind", err)
	}
	for pid, cmdline := range processes(t) {
		if strings.Contains(cmdline, dir) && pid != os.Getpid() {
			t.Errorf("process %d is left behind: %q", pid, cmdline)
		}
	}
}

func processes(t testing.TB) map[int]string {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[int]string)
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			found[pid] = string(bytes.ReplaceAll(text, []byte{0}, []byte(" ")))
		}
	}
	return found
}

// running reports whether a process has a text in its command line.
func running(t testing.TB, text string) bool {
	for _, cmdline := range processes(t) {
		if strings.Contains(cmdline, text) {
			return true
		}
	}
	return false
}

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time:", what)
		}
	}
}

const testPath = "PATH=/usr/local/bin:/usr/bin:/bin"

func user(t testing.TB, m *machine.Machine, name string) envd.User {
	t.Helper()
	u, err := m.User(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// shell is a command of the default user, in his home directory.
func shell(t testing.TB, m *machine.Machine, script string) envd.Command {
	u := user(t, m, "")
	return envd.Command{Path: "/bin/bash", Args: []string{"-c", script}, Env: []string{testPath, "HOME=" + u.Home}, Dir: u.Home, User: u}
}

// result is what a process did.
type result struct {
	Stdout, Stderr string
	Status         envd.Status
}

func run(t testing.TB, m *machine.Machine, cmd envd.Command) result {
	t.Helper()
	p, err := m.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return finish(t, p)
}

func finish(t testing.TB, p envd.Process) result {
	t.Helper()
	errs := make(chan string, 1)
	go func() {
		if p.Stderr() == nil {
			errs <- ""
			return
		}
		errs <- read(p.Stderr())
	}()
	r := result{Stdout: read(p.Stdout())}
	r.Stderr = <-errs
	r.Status = p.Wait()
	return r
}

func read(r io.ReadCloser) string {
	text, err := io.ReadAll(r)
	if err := r.Close(); err != nil {
		return fmt.Sprint("close: ", err)
	}
	if err != nil {
		return fmt.Sprint("read: ", err)
	}
	return string(text)
}

func write(t testing.TB, m *machine.Machine, name, text string) {
	t.Helper()
	f, err := m.Create(name, user(t, m, ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func content(t testing.TB, m *machine.Machine, name string) string {
	t.Helper()
	f, err := m.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return read(f)
}

// exists looks at the host.
func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func names(entries []fs.DirEntry) []string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// stopped reports whether all processes with a text in their command line are
// stopped, and there is one.
func stopped(t testing.TB, text string) bool {
	found := false
	for pid, cmdline := range processes(t) {
		if !strings.Contains(cmdline, text) || strings.Contains(cmdline, "--preserve-credentials") {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, rest, _ := strings.Cut(string(status), ") "); !strings.HasPrefix(rest, "T") {
			return false
		}
		found = true
	}
	return found
}

// victim makes a machine with a process, and waits to be killed.
func victim(dir string) {
	m, err := machine.New(machine.Options{Dir: dir})
	if err == nil && m.Isolated() { // elsewhere it would outlive its maker
		u, _ := m.User("")
		_, err = m.Start(envd.Command{Path: "setsid", Args: []string{"sleep", victimSleep(dir)}, Env: []string{testPath}, Dir: "/", User: u})
	}
	fmt.Println(m.Isolated(), err)
	select {}
}
