package remote

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// tryLock takes a file for this process, until it is closed. It reports false
// when another has it; a file system without locks gives it to everybody. What
// is locked is a byte that no file has, so that all can be read.
func tryLock(f *os.File) bool {
	at := windows.Overlapped{Offset: ^uint32(0), OffsetHigh: 1<<31 - 1}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	return !errors.Is(err, windows.ERROR_LOCK_VIOLATION)
}

// unlock gives it back.
func unlock(f *os.File) {
	at := windows.Overlapped{Offset: ^uint32(0), OffsetHigh: 1<<31 - 1}
	_ = windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, &at)
}
