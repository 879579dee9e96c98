//go:build !linux

package worker

// machineMemory returns zero: this platform is not asked.
func machineMemory() int64 { return 0 }

// diskSpace returns false: this platform is not asked.
func diskSpace(string) (free, total int64, ok bool) { return 0, 0, false }
