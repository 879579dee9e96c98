package worker

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/osiris-pipelines/remote/rpc"
)

// selfPath is this program, also where its file was replaced meanwhile.
func selfPath() (string, error) {
	const self = "/proc/self/exe"
	if _, err := os.Readlink(self); err == nil {
		return self, nil
	}
	return os.Executable()
}

// becomeSubreaper makes this process the parent of all below it whose own
// parent ends, so that none gets out of sight.
func becomeSubreaper() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

func workerAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

func maxRSS(u syscall.Rusage) int64 { return int64(u.Maxrss) << 10 }

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// oomCounter counts the processes that the kernel kills for want of memory: in
// this control group, or where there is none to read, on this machine.
type oomCounter struct {
	file  string
	begin int64
}

func newOOMCounter() oomCounter {
	c := oomCounter{file: "/proc/vmstat"}
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(b)) {
			if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				file := filepath.Join("/sys/fs/cgroup", group, "memory.events")
				if _, err := os.Stat(file); err == nil {
					c.file = file
				}
			}
		}
	}
	c.begin = c.read()
	return c
}

func (c oomCounter) read() int64 {
	b, _ := os.ReadFile(c.file)
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			count, _ := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			return count
		}
	}
	return 0
}

func (c oomCounter) kills() int64 { return max(0, c.read()-c.begin) }

// process is what /proc tells of one.
type process struct {
	id     rpc.ProcessID
	state  string
	parent int
	group  int
	rss    int64
}

// inspect reads what a process is. ok is false when there is none.
func inspect(pid int) (p process, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, false
	}
	// The name may hold anything, a closing parenthesis too.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, false
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 22 {
		return p, false
	}
	p.id = rpc.ProcessID{PID: pid, Name: text(b[open+1 : end])}
	p.id.Start, _ = strconv.ParseUint(fields[19], 10, 64)
	p.state = fields[0]
	p.parent, _ = strconv.Atoi(fields[1])
	p.group, _ = strconv.Atoi(fields[2])
	pages, _ := strconv.ParseInt(fields[21], 10, 64)
	p.rss = pages * int64(os.Getpagesize())
	return p, true
}

// dead: nothing of it runs, though its parent may not have noticed.
func (p process) dead() bool { return p.state == "Z" || p.state == "X" }

func identify(pid int) rpc.ProcessID {
	p, ok := inspect(pid)
	if !ok {
		return rpc.ProcessID{PID: pid}
	}
	return p.id
}

// processes lists those of the machine that live, this one apart.
func processes() (list []process, err error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, ok := inspect(pid); ok && !p.dead() {
			list = append(list, p)
		}
	}
	return list, nil
}

// marked reports whether a process carries the mark of a run. That of another
// user's does not show.
func marked(pid int, mark []byte) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && (bytes.HasPrefix(env, mark) || bytes.Contains(env, append([]byte{0}, mark...)))
}

// belonging returns the processes of a run: those with its mark, the roots, and
// all their descendants. This process is never among them, though it may be a
// root.
func belonging(dir string, roots ...int) ([]process, error) {
	list, err := processes()
	if err != nil {
		return nil, err
	}
	mark := append([]byte(runVariable+"="+dir), 0)
	ours := make(map[int]bool)
	for _, pid := range roots {
		ours[pid] = true
	}
	var found []process
	for _, p := range list {
		if !ours[p.id.PID] && marked(p.id.PID, mark) {
			ours[p.id.PID] = true
		}
	}
	for grown := true; grown; { // until no further child is found
		grown = false
		for _, p := range list {
			if !ours[p.id.PID] && ours[p.parent] {
				ours[p.id.PID], grown = true, true
			}
		}
	}
	for _, p := range list {
		if ours[p.id.PID] {
			found = append(found, p)
		}
	}
	return found, nil
}

// sweep ends all that is left of a run, and reaps what are children of this
// process. It looks again until there is nothing: a process that is being
// killed may just have started another. group is the worker's, and may be zero.
func sweep(dir string, group int, roots ...int) rpc.Remains {
	var r rpc.Remains
	if group != 0 {
		roots = append(roots, os.Getpid())
	}
	seen := make(map[rpc.ProcessID]bool)
	deadline := time.Now().Add(sweepTime)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		for group != 0 {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
				break
			}
		}
		found, err := belonging(dir, roots...)
		if err != nil {
			return r
		}
		r.Left = nil
		for _, p := range found {
			seen[p.id] = true
			r.Left = append(r.Left, p.id)
			_ = unix.Kill(p.id.PID, unix.SIGKILL)
		}
		if group != 0 {
			_ = unix.Kill(-group, unix.SIGKILL)
		}
		if len(found) == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(wait)
	}
	r.Observed = true
	for _, id := range r.Left {
		delete(seen, id)
	}
	for id := range seen {
		r.Killed = append(r.Killed, id)
	}
	slices.SortFunc(r.Killed, func(a, b rpc.ProcessID) int { return a.PID - b.PID })
	r.Killed, r.Left = limitList(r.Killed), limitList(r.Left)
	return r
}

// limitList bounds the record of a run that has started thousands.
func limitList(ids []rpc.ProcessID) []rpc.ProcessID { return ids[:min(len(ids), 100)] }

// look finds out how the processes of a run are, and with reap ends them.
func look(fsys FS, dir string, reap bool, s *rpc.WorkerStatus) {
	s.BootID = bootID()
	if b, err := os.ReadFile("/proc/uptime"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		s.UptimeSeconds, _ = strconv.ParseFloat(first, 64)
	}
	var known rpc.Processes
	var roots []int
	if readRecord(fsys, dir, ProcessesFile, &known) == nil {
		s.Supervisor = state(known.Supervisor, known.BootID == s.BootID)
		s.Worker = state(known.Worker, known.BootID == s.BootID)
		for _, p := range []*rpc.ProcessState{s.Supervisor, s.Worker} {
			if p.Alive {
				roots = append(roots, p.PID)
			}
		}
	}
	if !reap {
		return
	}
	r := sweep(dir, 0, roots...)
	s.Remains = &r
	if s.Death == nil {
		s.Death = readDeath(fsys, dir) // by now the supervisor may have written it
	}
	if s.Death != nil {
		return
	}
	s.Death = &rpc.Death{Time: time.Now().UTC(), ExitCode: -1, Unknown: true, BootID: s.BootID, Remains: r}
	if err := writeRecord(fsys, dir, DeathFile, s.Death); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.Death.Stderr = err.Error()
	}
}

// state says how a process is; another that has its number is not it.
func state(id rpc.ProcessID, sameBoot bool) *rpc.ProcessState {
	s := &rpc.ProcessState{PID: id.PID}
	p, ok := inspect(id.PID)
	if !sameBoot || !ok || id.Start != 0 && p.id.Start != id.Start {
		return s
	}
	s.State, s.Alive, s.RSSBytes = p.state, !p.dead(), p.rss
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/status"); err == nil {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				s.PeakRSSBytes = kb << 10
			}
		}
	}
	return s
}
