package machine_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

func zzRun(t *testing.T, m *machine.Machine, who string, env []string, script string) string {
	t.Helper()
	p, err := m.Start(envd.Command{Path: "/bin/bash", Args: []string{"-c", script}, Env: env, Dir: "/", User: user(t, m, who)})
	if err != nil {
		return "START: " + err.Error()
	}
	done := make(chan string, 1)
	go func() { e, _ := io.ReadAll(p.Stderr()); done <- string(e) }()
	b, _ := io.ReadAll(p.Stdout())
	s := p.Wait()
	return fmt.Sprintf("%s|%s|%+v", b, <-done, s)
}

func zzPut(t *testing.T, m *machine.Machine, name, text string) {
	t.Helper()
	w, err := m.Create(name, user(t, m, "user"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	w.Close()
}

func zzNew(t *testing.T, o machine.Options) *machine.Machine {
	m := newMachine(t, "user namespace", o)
	if !m.Isolated() {
		t.Skip(m.Isolation())
	}
	return m
}

// A variable of a sandboxed process reaches nsenter while it is outside.
func TestZZLoaderVariablesReachTheHost(t *testing.T) {
	m := zzNew(t, machine.Options{})
	out := filepath.Join(t.TempDir(), "escaped")
	os.Chmod(filepath.Dir(out), 0o777)
	r := zzRun(t, m, "user", []string{testPath, "LD_DEBUG=all", "LD_DEBUG_OUTPUT=" + out}, "echo hi")
	files, _ := filepath.Glob(out + "*")
	if len(files) > 0 {
		b, _ := os.ReadFile(files[0])
		t.Errorf("written on the HOST by a sandboxed command's env: %v (%d bytes) result %.100q", files, len(b), r)
	}
}

// PATH of the sandboxed process picks the program "unshare" that runs in the host's pid namespace.
func TestZZPathPicksUnshare(t *testing.T) {
	m := zzNew(t, machine.Options{})
	victim := exec.Command("sleep", "300")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- victim.Wait() }()
	zzPut(t, m, "/home/user/unshare", fmt.Sprintf("#!/bin/bash\necho $$ >&2\nkill -9 %d\nsleep 0.2\n", victim.Process.Pid))
	t.Log(zzRun(t, m, "user", []string{testPath}, "chmod 755 /home/user/unshare"))
	r := zzRun(t, m, "user", []string{"PATH=/home/user:/usr/bin:/bin"}, "echo hi")
	select {
	case err := <-ended:
		t.Errorf("a HOST process was killed from inside: %v; %q", err, r)
	case <-time.After(2 * time.Second):
		t.Logf("victim lives: %q", r)
		victim.Process.Kill()
		<-ended
	}
}

// LD_PRELOAD through /proc/<holder>/root
func TestZZPreload(t *testing.T) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc")
	}
	m := zzNew(t, machine.Options{})
	dir := t.TempDir()
	proof := filepath.Join(dir, "proof")
	os.Chmod(dir, 0o777)
	src := filepath.Join(dir, "x.c")
	os.WriteFile(src, []byte(`#include <stdio.h>
#include <unistd.h>
#include <fcntl.h>
__attribute__((constructor)) static void f(void){int fd=open("`+proof+`",O_CREAT|O_WRONLY,0644); if(fd>=0){char b[64];int n=snprintf(b,64,"host pid %d uid %d\n",getpid(),getuid());write(fd,b,n);close(fd);}}
`), 0o644)
	if b, err := exec.Command(cc, "-shared", "-fPIC", "-o", filepath.Join(dir, "x.so"), src).CombinedOutput(); err != nil {
		t.Skip(string(b))
	}
	so, _ := os.ReadFile(filepath.Join(dir, "x.so"))
	zzPut(t, m, "/home/user/x.so", string(so))
	// the attacker guesses the holder's number: a list of paths may be given
	var holders []string
	for pid, c := range processes(t) {
		if strings.Contains(c, "cat") || strings.Contains(c, "holder") {
			holders = append(holders, fmt.Sprintf("/proc/%d/root/home/user/x.so", pid))
		}
	}
	r := zzRun(t, m, "user", []string{testPath, "LD_PRELOAD=" + strings.Join(holders, ":")}, "echo hi")
	b, err := os.ReadFile(proof)
	if err == nil {
		t.Errorf("code of the sandbox ran on the HOST: %s %.200q", b, r)
	} else {
		t.Logf("%v %v %.300q", holders, err, r)
	}
}

// what is to be read only can be remounted
func TestZZReadOnlyRemount(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	f := filepath.Join(dir, "tool")
	os.WriteFile(f, []byte("original"), 0o644)
	m := zzNew(t, machine.Options{ReadOnly: []string{dir}})
	r := zzRun(t, m, "root", []string{testPath}, fmt.Sprintf("mount -o remount,bind,rw %s; echo changed >%s; id -u; grep -i capeff /proc/self/status", dir, f))
	b, _ := os.ReadFile(f)
	if string(b) != "original" {
		t.Errorf("a ReadOnly file of the HOST was changed from inside: %q; %q", b, r)
	} else {
		t.Log(r)
	}
}

// system directories in user ns
func TestZZSystemRemount(t *testing.T) {
	m := zzNew(t, machine.Options{})
	r := zzRun(t, m, "root", []string{testPath}, "mount -o remount,bind,rw /etc; touch /etc/zz-escape && echo WROTE; touch /usr/zz-escape && echo WROTE")
	if _, err := os.Stat("/etc/zz-escape"); err == nil {
		os.Remove("/etc/zz-escape")
		t.Error("wrote to /etc of the host")
	}
	t.Log(r)
}

func TestZZKcore(t *testing.T) {
	for _, kind := range []string{"isolated", "user namespace"} {
		t.Run(kind, func(t *testing.T) {
			m := newMachine(t, kind, machine.Options{})
			for _, name := range []string{"/proc/kcore", "/proc/kmsg", "/proc/1/environ", "/proc/1/mem", "/proc/keys", "/proc/sys/kernel/core_pattern"} {
				f, err := m.Open(name)
				if err != nil {
					t.Log(name, err)
					continue
				}
				info, _ := f.Stat()
				b := make([]byte, 16)
				n, err := f.Read(b)
				f.Close()
				t.Logf("FILES API opens %s: size %d, read %d %q %v", name, info.Size(), n, b[:n], err)
			}
			for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj", "/sys/kernel/mm/transparent_hugepage/enabled"} {
				w, err := m.Create(name, user(t, m, "user"))
				if err == nil {
					w.Close()
					t.Log("FILES API opens for writing:", name)
				} else {
					t.Log(err)
				}
			}
			t.Log(zzRun(t, m, "root", []string{testPath}, `cat /proc/mounts | awk '{print $2,$3,$4}'; grep Cap /proc/self/status; ls -la /proc/1/fd /proc/1/root /proc/self/fd; cat /proc/1/environ; ls /dev; head -c 4 /proc/kcore | od -c; find /etc /usr /opt -xdev -type f ! -perm -o=r 2>/dev/null | while read f; do [ -r "$f" ] && [ -s "$f" ] && echo READABLE "$f"; done | head -20`))
		})
	}
}
