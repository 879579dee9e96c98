package worker

import (
	"os"

	"golang.org/x/sys/unix"
)

// pollable takes the worker's input from where drivers, and what they start,
// could read it: another descriptor has it, and standard input is empty.
//
// Reads of the file it returns park a goroutine instead of a thread. The
// processor of a thread that waits is taken up again only after a while, and
// with it the request that was just read.
func pollable(f *os.File) *os.File {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return f // others may share a terminal or a file
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return f
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return f
	}
	if null, err := os.Open(os.DevNull); err == nil {
		_ = unix.Dup3(int(null.Fd()), int(f.Fd()), 0)
		null.Close()
	}
	return os.NewFile(uintptr(fd), "requests")
}
