package machine_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// Close ends what has left its session, ignores signals, or was orphaned.
func TestCloseKillsAll(t *testing.T) {
	forIsolated(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		script := "trap '' TERM HUP INT; setsid sleep 4103.5 & (setsid setsid sleep 4103.5 &); echo ready; wait"
		p, err := m.Start(shell(t, m, script))
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(p.Stdout()).ReadString('\n'); line != "ready\n" {
			t.Fatal(line, err)
		}
		eventually(t, "grandchild", func() bool { return running(t, "sleep 4103.5") })
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if running(t, "sleep 4103.5") {
			t.Error("a grandchild is alive")
		}
		_, _ = p.Stdout().Close(), p.Stderr().Close()
	})
}

// No thread of this process stays in a namespace of a machine.
func TestThreads(t *testing.T) {
	self, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, "isolated", machine.Options{})
	var starters sync.WaitGroup
	for range 8 {
		starters.Go(func() {
			for range 20 {
				run(t, m, shell(t, m, "exit"))
			}
		})
	}
	starters.Wait()
	eventually(t, "all threads here", func() bool {
		links, err := filepath.Glob("/proc/self/task/*/ns/mnt")
		if err != nil || len(links) == 0 {
			t.Fatal(links, err)
		}
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && ns != self {
				return false
			}
		}
		return true
	})
}

// When the process that made it is killed, a machine goes with it.
func TestMakerIsKilled(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	maker := exec.Command(self)
	maker.Env = append(os.Environ(), "MACHINE_TEST_VICTIM="+dir)
	out, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(line, "true") {
		eventually(t, "process of the machine", func() bool { return running(t, "sleep "+victimSleep(dir)) })
	}
	if err := maker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = maker.Wait()
	if !strings.HasPrefix(line, "true <nil>") {
		t.Skip("no isolation here: ", line)
	}
	eventually(t, "end of the machine", func() bool { return !running(t, "sleep "+victimSleep(dir)) && !running(t, dir) })
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	// Its files are gone; the mark of where it was can be removed.
	if err := os.Remove(dir + "/" + entries[0].Name()); err != nil {
		t.Error(err)
	}
}
