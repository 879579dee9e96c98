package machine_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// The variables of a process have no effect before it is inside.
func TestVariablesStayInside(t *testing.T) {
	dir := openDir(t)
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "exit 3")
		cmd.Env = append(cmd.Env, "LD_DEBUG=statistics", "LD_DEBUG_OUTPUT="+dir+"/trace", "LD_PRELOAD=/no/such.so")
		if got := run(t, m, cmd); got.Status.Code != 3 {
			t.Errorf("%+v", got)
		}
		if traces, _ := filepath.Glob(dir + "/*"); len(traces) > 0 {
			t.Errorf("files of the host were written: %q", traces)
		}
	})
}

// openDir makes a directory that all may write to.
func openDir(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// No program of a machine runs as a process of the host, even where it takes
// the place of one that takes part in a start.
func TestReplacedTools(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		victim := exec.Command("sleep", "300")
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = victim.Process.Kill(), victim.Wait() }()
		home := user(t, m, "").Home
		for _, tool := range []string{"nsenter", "unshare", "setsid", "env", "sh"} {
			write(t, m, home+"/"+tool, fmt.Sprintf("#!/bin/bash\necho $$ >&2; kill -9 %d\n", victim.Process.Pid))
		}
		run(t, m, shell(t, m, "chmod 755 ~/*"))
		cmd := shell(t, m, "echo hi")
		cmd.Env = []string{"PATH=" + home + ":/usr/bin:/bin"}
		if got := run(t, m, cmd); got.Stdout != "hi\n" || got.Stderr != "" {
			t.Errorf("%+v", got)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", victim.Process.Pid))
		if err != nil || strings.Contains(string(status), "zombie") {
			t.Errorf("a process of the host is gone: %v\n%s", err, status)
		}
	})
}

// The system's directories cannot be made writable, moved, or laid bare, by
// root inside either, nor in namespaces that he makes.
func TestReadOnlyIsLocked(t *testing.T) {
	dir := openDir(t)
	name := dir + "/tool"
	if err := os.WriteFile(name, []byte("original"), 0o666); err != nil {
		t.Fatal(err)
	}
	forIsolated(t, machine.Options{ReadOnly: []string{dir}}, func(t *testing.T, m *machine.Machine) {
		for _, who := range []string{"user", "root"} {
			for what, script := range map[string]string{
				"remount": "mount -o remount,bind,rw " + dir + " && echo changed >" + name,
				"deeper":  "unshare --user --map-root-user --mount mount -o remount,bind,rw " + dir,
				"rebind":  "mkdir -p /tmp/b; mount --bind " + dir + " /tmp/b && mount -o remount,bind,rw /tmp/b",
				"write":   "echo changed >" + name,
				"unmask":  "umount /etc/passwd",
				"move":    "mv /etc /etc2",
				"kernel":  "mount -o remount,bind,rw /proc/sys",
				"outer":   "nsenter --target 1 --mount --user mount -o remount,bind,rw /etc",
				"root":    "ls /proc/1/root/sys/kernel",
			} {
				cmd := shell(t, m, script)
				cmd.User = user(t, m, who)
				if got := run(t, m, cmd); got.Status.Code == 0 {
					t.Errorf("%s by %s: %+v", what, who, got)
				}
			}
		}
		if text, err := os.ReadFile(name); string(text) != "original" {
			t.Errorf("a file of the host was changed: %q %v", text, err)
		}
	})
}

// A process that looks at others while they start does not see the host's files
// by way of the programs that start them.
func TestStartsUnderWatch(t *testing.T) {
	secret := openDir(t)
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "until [[ -e /tmp/end ]]; do for p in /proc/[0-9]*; do [[ ! -e $p/root"+secret+" && ! -e $p/cwd"+secret+" ]] || echo $p; done; done")
		cmd.User = user(t, m, "root")
		p, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			run(t, m, shell(t, m, "exit"))
		}
		write(t, m, "/tmp/end", "")
		if got := finish(t, p); got.Stdout != "" || got.Status.Code != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Odd variables and names get to where they belong.
func TestOddEnvironment(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		write(t, m, home+"/a=b", "#!/bin/bash\necho ran $1\n")
		run(t, m, shell(t, m, "chmod 755 a=b"))
		cmd := shell(t, m, "")
		cmd.Path, cmd.Args = home+"/a=b", []string{"x=y"}
		if got := run(t, m, cmd); got.Stdout != "ran x=y\n" {
			t.Errorf("a name like a variable: %+v", got)
		}
		cmd.Path, cmd.Args = "/usr/bin/env", nil
		cmd.Env = []string{"-u=1", "odd.name=2", "A==3", "B= 4\n5"}
		if got, want := run(t, m, cmd).Stdout, strings.Join(cmd.Env, "\n")+"\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// The files API has no more of the kernel than processes.
func TestKernelFiles(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		for _, name := range []string{"/proc/1/environ", "/proc/1/mem"} {
			if _, err := m.Open(name); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("open %s: %v", name, err)
			}
		}
		if _, err := m.Create("/proc/1/oom_score_adj", user(t, m, "root")); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("create: %v", err)
		}
		for _, name := range []string{"/proc/kmsg", "/proc/keys"} {
			f, err := m.Open(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // not every kernel has it
			}
			if err != nil {
				t.Errorf("open %s: %v", name, err)
			} else if got := read(f); got != "" {
				t.Errorf("%s is not hidden: %.40q", name, got)
			}
		}
		if got := content(t, m, "/proc/uptime"); got == "" {
			t.Error("/proc/uptime is empty")
		}
	})
}

func TestNullDevice(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		if got := content(t, m, "/dev/null"); got != "" {
			t.Errorf("content %q", got)
		}
		if _, err := m.Open("/dev/zero"); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("open /dev/zero: %v", err)
		}
	})
}

// What is not for everybody on the host is for nobody in a machine.
func TestSecretsOfTheSystem(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "find /etc -type f ! -perm -4 -size +0")
		cmd.User = user(t, m, "root")
		if got := run(t, m, cmd); got.Stdout != "" {
			t.Errorf("%+v", got)
		}
	})
}
