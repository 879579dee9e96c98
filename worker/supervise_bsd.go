//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package worker

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/rpc"
)

func selfPath() (string, error) { return os.Executable() }

// becomeSubreaper does nothing: orphans go to the first process here.
func becomeSubreaper() {}

func workerAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// maxRSS: Darwin counts bytes, the others KiB.
func maxRSS(u syscall.Rusage) int64 {
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss)
	}
	return int64(u.Maxrss) << 10
}

func bootID() string { return "" }

type oomCounter struct{}

func newOOMCounter() oomCounter { return oomCounter{} }

func (oomCounter) kills() int64 { return 0 }

func identify(pid int) rpc.ProcessID { return rpc.ProcessID{PID: pid} }

// sweep kills the worker's process group. What left it is out of sight here.
func sweep(_ string, group int, _ ...int) rpc.Remains {
	deadline := time.Now().Add(sweepTime)
	for group > 0 && unix.Kill(-group, unix.SIGKILL) == nil && time.Now().Before(deadline) {
		_, _ = syscall.Wait4(-group, nil, syscall.WNOHANG, nil)
		time.Sleep(time.Millisecond)
	}
	return rpc.Remains{}
}

// look finds out how the processes of a run are, and with reap ends them.
func look(fsys FS, dir string, reap bool, s *rpc.WorkerStatus) {
	var known rpc.Processes
	if readRecord(fsys, dir, ProcessesFile, &known) == nil {
		alive := func(pid int) *rpc.ProcessState {
			return &rpc.ProcessState{PID: pid, Alive: s.Death == nil && unix.Kill(pid, 0) == nil}
		}
		s.Supervisor, s.Worker = alive(known.Supervisor.PID), alive(known.Worker.PID)
	}
	if !reap {
		return
	}
	r := rpc.Remains{}
	if s.Death == nil && s.Worker != nil {
		_ = unix.Kill(known.Supervisor.PID, unix.SIGKILL)
		r = sweep(dir, known.Worker.PID)
	}
	s.Remains = &r
}
