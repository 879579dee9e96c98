package machine

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

func hostUsage() envd.Usage {
	mem := memory()
	available := mem["MemFree"] + mem["Buffers"] + mem["Cached"] + mem["SReclaimable"]
	return envd.Usage{
		CPUs:       runtime.NumCPU(),
		CPUPercent: busyPercent(),
		MemTotal:   mem["MemTotal"],
		MemUsed:    mem["MemTotal"] - available,
		MemCache:   mem["Cached"] + mem["SReclaimable"],
	}
}

// memory returns /proc/meminfo in bytes.
func memory() map[string]int64 {
	text, _ := os.ReadFile("/proc/meminfo") // without it nothing is known
	mem := make(map[string]int64)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		mem[strings.TrimSuffix(f[0], ":")] = kib << 10
	}
	return mem
}

// busyPercent is the share of the processors' time, since the system's start,
// in which they had something to do.
func busyPercent() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	var total, idle float64
	for i, f := range strings.Fields(line) {
		ticks, _ := strconv.ParseFloat(f, 64)
		total += ticks
		if i == 4 || i == 5 { // idle, and waiting for a disk
			idle += ticks
		}
	}
	if total == 0 {
		return 0
	}
	return 100 * (total - idle) / total
}
