package machine_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

func TestUsers(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		if got := user(t, m, ""); got.Name != "user" {
			t.Errorf("the default user is %+v", got)
		}
		if _, err := m.User("nobody"); err == nil {
			t.Error("nobody is a user")
		}
		for _, name := range []string{"user", "root"} {
			u := user(t, m, name)
			if info, err := m.Stat(u.Home); err != nil || !info.IsDir() {
				t.Errorf("home of %s: %v", name, err)
			}
			cmd := envd.Command{Path: "bash", Args: []string{"-c", "echo $UID; : >~/file"}, Env: []string{testPath, "HOME=" + u.Home}, Dir: u.Home, User: u}
			if got, want := run(t, m, cmd), (result{Stdout: fmt.Sprintln(u.UID)}); got != want {
				t.Errorf("%s: got %+v, want %+v", name, got, want)
			}
		}
	})
}

func TestFiles(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		u := user(t, m, "")
		dir := u.Home + "/dir"
		if err := m.Mkdir(dir, u); err != nil {
			t.Fatal(err)
		}
		write(t, m, dir+"/b", "long text")
		write(t, m, dir+"/b", "text")
		write(t, m, dir+"/a", "")
		run(t, m, shell(t, m, "ln -s b dir/link; ln -s nowhere dir/broken; chmod 705 dir/b"))
		write(t, m, dir+"/link", "through a link")

		entries, err := m.ReadDir(dir)
		if diff := cmp.Diff([]string{"a", "b", "broken", "link"}, names(entries)); diff != "" || err != nil {
			t.Error(diff, err)
		}
		if got := content(t, m, dir+"/b"); got != "through a link" {
			t.Errorf("content %q", got)
		}
		info, err := m.Stat(dir + "/link")
		if err != nil || info.Mode() != 0o705 || info.Size() != 14 || info.Name() != "link" {
			t.Error("Stat:", info, err)
		}
		if owner, group := m.Owner(info); owner != "user" || group != "user" {
			t.Errorf("owner %s, group %s", owner, group)
		}
		info, err = m.Lstat(dir + "/link")
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			t.Error("Lstat:", info, err)
		}
		if target, err := m.Readlink(dir + "/link"); target != "b" || err != nil {
			t.Error("Readlink:", target, err)
		}
		if err := m.Rename(dir+"/b", u.Home+"/c"); err != nil {
			t.Error(err)
		}
		if got := content(t, m, u.Home+"/c"); got != "through a link" {
			t.Errorf("content %q", got)
		}
		if err := m.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if err := m.RemoveAll(dir); err != nil {
			t.Error("removing what is not there:", err)
		}
		if _, err := m.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Error("after RemoveAll:", err)
		}
	})
}

func TestFileErrors(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		u := user(t, m, "")
		write(t, m, u.Home+"/file", "")
		run(t, m, shell(t, m, "mkdir dir; ln -s loop loop; mkfifo fifo"))
		open := func(name string) error { _, err := m.Open(u.Home + name); return err }
		create := func(name string) error { _, err := m.Create(u.Home+name, u); return err }
		list := func(name string) error { _, err := m.ReadDir(u.Home + name); return err }
		link := func(name string) error { _, err := m.Readlink(u.Home + name); return err }
		for name, tt := range map[string]struct{ got, want error }{
			"open nothing":        {open("/nothing"), fs.ErrNotExist},
			"open below file":     {open("/file/x"), syscall.ENOTDIR},
			"open loop":           {open("/loop"), syscall.ELOOP},
			"open directory":      {open("/dir"), syscall.EISDIR},
			"open pipe":           {open("/fifo"), syscall.EINVAL},
			"create in nothing":   {create("/nothing/x"), fs.ErrNotExist},
			"create below file":   {create("/file/x"), syscall.ENOTDIR},
			"create directory":    {create("/dir"), syscall.EISDIR},
			"create pipe":         {create("/fifo"), syscall.ENXIO},
			"mkdir there":         {m.Mkdir(u.Home+"/file", u), fs.ErrExist},
			"mkdir in nothing":    {m.Mkdir(u.Home+"/nothing/x", u), fs.ErrNotExist},
			"mkdir below file":    {m.Mkdir(u.Home+"/file/x", u), syscall.ENOTDIR},
			"list file":           {list("/file"), syscall.ENOTDIR},
			"list nothing":        {list("/nothing"), fs.ErrNotExist},
			"readlink of file":    {link("/file"), syscall.EINVAL},
			"readlink of nothing": {link("/nothing"), fs.ErrNotExist},
			"rename nothing":      {m.Rename(u.Home+"/nothing", u.Home+"/x"), fs.ErrNotExist},
		} {
			if !errors.Is(tt.got, tt.want) {
				t.Errorf("%s: %v, want %v", name, tt.got, tt.want)
			}
			if tt.got != nil && strings.Contains(tt.got.Error(), "/proc/") {
				t.Errorf("%s: the error has a name from the host: %v", name, tt.got)
			}
		}
	})
}

func TestMetadata(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		name := user(t, m, "").Home + "/file"
		write(t, m, name, "")
		for _, want := range []map[string]string{{"a": "1", "b": ""}, {"b": "2"}, {}} {
			if err := m.SetMetadata(name, want); errors.Is(err, errors.ErrUnsupported) {
				t.Skip("the file system has no attributes")
			} else if err != nil {
				t.Fatal(err)
			}
			got, err := m.Metadata(name)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Error(diff, err)
			}
		}
		if _, err := m.Metadata(name + "x"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}

// What the host has is not there, and what is there of the host's can be read
// only, even by root.
func TestIsolation(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MACHINE_TEST_SECRET", "secret")
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		for _, name := range []string{secret, filepath.Dir(secret), "/sys/kernel", "/boot", "/.old"} {
			if _, err := m.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"/home", "/tmp", "/root", "/var", "/mnt", home} {
			entries, _ := m.ReadDir(name)
			if got := strings.Join(names(entries), " "); got != "" && got != "user" && got != "tmp" {
				t.Errorf("in %s: %s", name, got)
			}
		}
		for name, script := range map[string]string{
			"temp file":  "cat " + secret,
			"system":     ": >/usr/machine-test",
			"etc":        ": >>/etc/hosts",
			"opt":        `for d in /opt/*/; do : >"$d/machine-test" && exit; done; exit 1`,
			"first root": "ls /proc/1/root/usr && cat /proc/1/root" + secret,
			"variables":  "cat /proc/*/environ | tr '\\0' '\\n' | grep MACHINE_TEST",
			"others":     "grep -a [m]achine.test /proc/*/cmdline",
			"kernel":     "echo x >/proc/sys/kernel/hostname",
			"passwords":  "cat /etc/shadow | grep .",
		} {
			for _, u := range []string{"user", "root"} {
				cmd := shell(t, m, script)
				cmd.User = user(t, m, u)
				if got := run(t, m, cmd); got.Status.Code == 0 {
					t.Errorf("%s by %s: %+v", name, u, got)
				}
			}
		}
		// /opt itself is the machine's.
		if err := m.Mkdir("/opt/machine-test", user(t, m, "root")); err != nil || exists("/opt/machine-test") {
			t.Errorf("a directory in /opt: %v, on the host: %v", err, exists("/opt/machine-test"))
		}
		if _, err := m.Create("/usr/machine-test", user(t, m, "root")); err == nil {
			t.Error("a file in /usr was created")
		}
		if err := m.RemoveAll("/usr/share"); err == nil {
			t.Error("/usr/share was removed")
		}
	})
}

// Root in a machine that root made could reach the host by these.
func TestCapabilities(t *testing.T) {
	m := newMachine(t, "isolated", machine.Options{})
	if user(t, m, "").UID == 0 {
		t.Skip("only the root of the host has them to lose")
	}
	for name, script := range map[string]string{
		"remount": "mount -o remount,rw /usr",
		"mount":   "mount -t tmpfs none /mnt",
		"device":  "mknod /tmp/disk b 254 0",
		"enter":   "nsenter --target 1 --mount true",
		"network": "ip link add type dummy",
		"module":  "mount -t debugfs none /mnt",
		"time":    "date -s 2020-01-01",
	} {
		cmd := shell(t, m, script)
		cmd.User, cmd.Dir = user(t, m, "root"), "/"
		if got := run(t, m, cmd); got.Status.Code == 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// No link that is planted in a machine leads to the host.
func TestLinks(t *testing.T) {
	outside := t.TempDir()
	for _, name := range []string{"open", "create", "remove", "rename"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("host"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		u := user(t, m, "root")
		for name, target := range map[string]string{
			"absolute": outside, "relative": up + outside, "process": "/proc/1/root" + outside,
			"own": "/proc/self/root" + outside, "descriptor": "/proc/self/fd/0",
		} {
			link := "/tmp/" + name
			if got := run(t, m, shell(t, m, "ln -s "+target+" "+link)); got.Status.Code != 0 {
				t.Fatal(got)
			}
			if _, err := m.Open(link + "/open"); err == nil {
				t.Errorf("%s: opened", name)
			}
			if _, err := m.Stat(link); err == nil {
				t.Errorf("%s: found", name)
			}
			if _, err := m.ReadDir(link); err == nil {
				t.Errorf("%s: listed", name)
			}
			if _, err := m.Create(link+"/create", u); err == nil {
				t.Errorf("%s: created", name)
			}
			if err := m.Mkdir(link+"/mkdir", u); err == nil {
				t.Errorf("%s: made", name)
			}
			if err := m.Rename(link+"/rename", "/tmp/got"); err == nil {
				t.Errorf("%s: renamed", name)
			}
			if _, err := m.Watch(link, true, func(envd.Event) {}); err == nil {
				t.Errorf("%s: watched", name)
			}
			_ = m.RemoveAll(link + "/remove")
			if err := m.RemoveAll(link); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"open", "create", "remove", "rename"} {
			if text, err := os.ReadFile(filepath.Join(outside, name)); string(text) != "host" {
				t.Errorf("%s: %q %v", name, text, err)
			}
		}
		if exists(filepath.Join(outside, "mkdir")) {
			t.Error("a directory was made on the host")
		}
	})
}

// Links lead to where a process of the machine would get.
func TestLinksInside(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		run(t, m, shell(t, m, "mkdir -p a; ln -s /tmp/file one; ln -s ../../../../../tmp/file two; ln -s /home/user/a three; ln -s /etc/passwd passwd"))
		home := user(t, m, "").Home
		write(t, m, home+"/one", "1") // created through a link
		if got := content(t, m, "/tmp/file"); got != "1" {
			t.Errorf("content %q", got)
		}
		write(t, m, home+"/two", "2")
		if got := content(t, m, "/tmp/file"); got != "2" {
			t.Errorf("content %q", got)
		}
		write(t, m, home+"/three/x", "3")
		if got := content(t, m, home+"/a/x"); got != "3" {
			t.Errorf("content %q", got)
		}
		if got := content(t, m, home+"/passwd"); !strings.Contains(got, "user:x:") {
			t.Errorf("not the machine's users: %q", got)
		}
		write(t, m, "/tmp/host", "4")
		if exists("/tmp/host") {
			t.Error("a file is on the host")
		}
		if err := m.RemoveAll(home + "/three"); err != nil {
			t.Error(err)
		}
		if got := content(t, m, home+"/a/x"); got != "3" {
			t.Error("RemoveAll followed a link")
		}
	})
}

// What a shared machine creates on the host is removed, nothing else.
func TestSharedRemovesItsOwn(t *testing.T) {
	dir := t.TempDir()
	m := newMachine(t, "shared", machine.Options{})
	if m.Isolated() || !strings.HasPrefix(m.Isolation(), "not isolated") {
		t.Error(m.Isolation())
	}
	if err := os.WriteFile(dir+"/host", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u := user(t, m, "")
	if err := m.Mkdir(dir+"/a", u); err != nil {
		t.Fatal(err)
	}
	write(t, m, dir+"/a/file", "")
	write(t, m, dir+"/file", "")
	write(t, m, dir+"/host", "")
	if err := m.Rename(dir+"/file", dir+"/renamed"); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if diff := cmp.Diff([]string{"host"}, names(entries)); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestDiskLimit(t *testing.T) {
	forEach(t, machine.Options{DiskBytes: 1 << 20}, func(t *testing.T, m *machine.Machine) {
		u := user(t, m, "")
		fill := func() error {
			f, err := m.Create(u.Home+"/big", u)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, io.LimitReader(zeros{}, 2<<20))
			return errors.Join(err, f.Close())
		}
		if err := fill(); !errors.Is(err, syscall.ENOSPC) {
			t.Error("2 MiB on a disk of 1 MiB:", err)
		}
		if got := m.Usage(); got.DiskTotal != 1<<20 || got.DiskUsed < 1<<19 || got.DiskUsed > 1<<20 {
			t.Errorf("used %d of %d", got.DiskUsed, got.DiskTotal)
		}
		if err := m.RemoveAll(u.Home + "/big"); err != nil {
			t.Error(err)
		}
		write(t, m, u.Home+"/small", strings.Repeat("x", 1<<19))
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestUsage(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		u := m.Usage()
		if time.Since(u.Time) > time.Minute || u.CPUs < 1 || u.CPUPercent < 0 || u.CPUPercent > 100 {
			t.Errorf("%+v", u)
		}
		if u.MemTotal < u.MemUsed || u.MemUsed <= 0 || u.DiskTotal < u.DiskUsed || u.DiskTotal <= 0 {
			t.Errorf("%+v", u)
		}
	})
}

func TestClone(t *testing.T) {
	t.Run("isolated", func(t *testing.T) {
		m := newMachine(t, "isolated", machine.Options{})
		run(t, m, shell(t, m, "mkdir -m 1701 d; echo text >d/f; chmod 4751 d/f; touch -d 2001-02-03 d/f; ln -s ../x d/l; mkfifo /var/tmp/p; ln -s /etc d/e; touch -h -d 2002-03-04 d/l d/e"))
		run(t, m, shell(t, m, "echo tmp >/tmp/t; echo shared >/dev/shm/s"))
		if err := m.SetMetadata("/home/user/d/f", map[string]string{"k": "v"}); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		if owner := user(t, m, "root"); m.Mkdir("/tmp/roots", owner) != nil {
			t.Error("no directory of root")
		}
		list := "cd /; stat -c '%n %F %a %u %g %Y %s' . root tmp tmp/* home/user home/user/d home/user/d/* | sort; readlink home/user/d/*; cat /tmp/t"
		want := run(t, m, shell(t, m, list))
		c, err := m.Clone()
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		clone, ok := c.(*machine.Machine)
		if !ok {
			t.Fatalf("the clone is a %T", c)
		}
		got := run(t, clone, shell(t, clone, list))
		// The top is made anew, and its times are not kept.
		got.Stdout, want.Stdout = withoutTop(got.Stdout), withoutTop(want.Stdout)
		if diff := cmp.Diff(want, got); diff != "" || got.Status.Code != 0 {
			t.Error("(-want +got)", diff, got.Status)
		}
		metadata, _ := m.Metadata("/home/user/d/f")
		cloned, err := clone.Metadata("/home/user/d/f")
		if diff := cmp.Diff(metadata, cloned); diff != "" || err != nil {
			t.Error(diff, err)
		}
		write(t, clone, "/tmp/t", "clone")
		if got := content(t, m, "/tmp/t"); got != "tmp\n" {
			t.Errorf("the clone writes to the original: %q", got)
		}
	})
	m := newMachine(t, "shared", machine.Options{})
	if _, err := m.Clone(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error("a shared one:", err)
	}
}

func withoutTop(s string) string {
	_, rest, _ := strings.Cut(s, "\n")
	return rest
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a b/c/file", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	forIsolated(t, machine.Options{ReadOnly: []string{dir + "/a b"}}, func(t *testing.T, m *machine.Machine) {
		if got := content(t, m, dir+"/a b/c/file"); got != "text" {
			t.Errorf("content %q", got)
		}
		got := run(t, m, shell(t, m, "cat '"+dir+"/a b/c/file'; echo >'"+dir+"/a b/c/file'"))
		if got.Stdout != "text" || got.Status.Code == 0 {
			t.Errorf("%+v", got)
		}
	})
	for _, name := range []string{"relative", dir + "/missing"} {
		empty := t.TempDir()
		if _, err := machine.New(machine.Options{Dir: empty, ReadOnly: []string{name}}); err == nil {
			t.Errorf("%s: no error", name)
		}
		checkGone(t, empty)
	}
}

func TestNewFails(t *testing.T) {
	if _, err := machine.New(machine.Options{Dir: filepath.Join(t.TempDir(), "missing")}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// A tree too small to be made: nothing is left, and the machine is shared.
	dir := t.TempDir()
	m, err := machine.New(machine.Options{Dir: dir, DiskBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if m.Isolated() {
		t.Error("isolated in one byte")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	checkGone(t, dir)
}

func TestClosed(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		cmd := shell(t, m, "true")
		for range 2 {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := m.Start(cmd); !errors.Is(err, fs.ErrClosed) {
			t.Error("Start:", err)
		}
		if _, err := m.Stat(cmd.Dir); err == nil {
			t.Error("Stat finds the home")
		}
		if err := m.Freeze(true); err == nil && m.Isolated() {
			t.Error("frozen")
		}
	})
}

func TestConcurrentFiles(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		var writers sync.WaitGroup
		for i := range 8 {
			writers.Go(func() {
				name := home + "/" + fmt.Sprint(i)
				for range 20 {
					write(t, m, name, name)
					if got := content(t, m, name); got != name {
						t.Errorf("content %q", got)
					}
				}
			})
		}
		writers.Wait()
	})
}
