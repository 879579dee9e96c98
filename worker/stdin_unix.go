//go:build unix

package worker

import (
	"os"

	"golang.org/x/sys/unix"
)

// pollable returns a file for the same descriptor whose reads park a goroutine
// instead of a thread. The processor of a thread that waits is taken up again
// only after a while, and with it the request that was just read.
func pollable(f *os.File) *os.File {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return f // others may share a terminal or a file
	}
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		return f
	}
	return os.NewFile(f.Fd(), f.Name())
}
