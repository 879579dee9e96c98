package worker

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// usage returns the resident memory in bytes and the processor time in
// seconds of this process.
func usage() (rss int64, cpu float64) {
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(b); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			rss = pages * int64(os.Getpagesize())
		}
	}
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		cpu = float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
	}
	return rss, cpu
}
