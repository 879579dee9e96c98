//go:build unix

package python

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// poolHelperEnv makes the test's program a worker that is going to die: it has
// the directory of its pool.
const poolHelperEnv = "OSIRIS_TEST_POOL_HELPER"

// TestWorkerDies has a worker that is killed: its children go with it, the one
// that runs a driver and the one that is idle.
func TestWorkerDies(t *testing.T) {
	if dir := os.Getenv(poolHelperEnv); dir != "" {
		helpPool(t, dir)
		return
	}
	t.Parallel()
	testPython(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWorkerDies$")
	cmd.Env = append(os.Environ(), poolHelperEnv+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(out); len(pids) < 2 && lines.Scan(); {
		var pid int
		if _, err := fmt.Sscanf(lines.Text(), "child %d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(pids) != 2 {
		t.Fatalf("children %v", pids)
	}
	for _, pid := range pids {
		processGone(t, pid)
	}
}

func helpPool(t *testing.T, dir string) {
	p := newPool(poolOptions{dir: filepath.Join(dir, "pool"), interpreter: testPython(t)})
	run := func(how string) {
		step, r := newStep(t, how, map[string]any{"how": how, "dir": dir, "steps": 0})
		r.seen = map[string]chan float64{"pid": make(chan float64, 1)}
		go func() { fmt.Printf("child %d\n", int(<-r.seen["pid"])) }()
		_, _ = p.run(context.Background(), driver("steps", "Wait"), step)
	}
	go run("stubborn")
	go run("once")
	time.Sleep(time.Minute) // it is killed before
}

// processGone waits for the end of a process that is no child of this one.
func processGone(t *testing.T, pid int) {
	for deadline := time.Now().Add(time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && zombie(string(b)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs", pid)
		}
	}
}

// zombie reports whether a process has ended, and only its parent has not heard.
func zombie(stat string) bool { return strings.Contains(stat, ") Z ") }
