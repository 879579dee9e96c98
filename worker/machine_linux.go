package worker

import (
	"bufio"
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// machineMemory returns how much memory this process may use: the least of the
// machine's and of what its control groups allow. Zero means that it is not
// known.
func machineMemory() int64 {
	least := int64(0)
	limit := func(n int64) {
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		limit(memTotal(b))
	}
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for _, name := range cgroupLimits(b) {
			if b, err := os.ReadFile(name); err == nil {
				n, _ := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64) // "max" is none
				limit(n)
			}
		}
	}
	return least
}

// memTotal returns the bytes of the line MemTotal in /proc/meminfo.
func memTotal(meminfo []byte) int64 {
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil || n < 0 || n > 1<<52 {
				return 0
			}
			return n << 10
		}
	}
	return 0
}

// cgroupLimits returns the files that may limit the memory of a process with
// this /proc/self/cgroup: those of its group and of all above, in version 2 and
// in version 1. In a container the path may be one outside, so that only the
// root is there.
func cgroupLimits(cgroup []byte) (files []string) {
	lines := bufio.NewScanner(bytes.NewReader(cgroup))
	for lines.Scan() {
		_, rest, _ := strings.Cut(lines.Text(), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		if !ok || !path.IsAbs(group) {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		switch {
		case controllers == "":
		case strings.Contains(","+controllers+",", ",memory,"):
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for group = path.Clean(group); ; group = path.Dir(group) {
			files = append(files, path.Join(root, group, file))
			if group == "/" {
				break
			}
		}
	}
	return files
}

// diskSpace returns the bytes of the disk that has dir, and those that are free.
func diskSpace(dir string) (free, total int64, ok bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return 0, 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), int64(s.Blocks) * int64(s.Bsize), true
}
