//go:build unix

package python

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// mapFile returns a file's content, which must not be written to.
func mapFile(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return data, nil
}

func unmapFile(data []byte) { _ = unix.Munmap(data) }
