package python

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hold keeps content where processes of the same user find it at path: in a
// memfd that this process has open, and which no process inherits. Where they
// could not, it takes a file.
func hold(content []byte) (path string, closeHeld func() error, err error) {
	path, closeHeld, err = holdMemory(content)
	if err != nil {
		return holdFile(content)
	}
	return path, closeHeld, nil
}

func holdMemory(content []byte) (path string, closeMemory func() error, err error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// Some systems insist on MFD_NOEXEC_SEAL; before Linux 6.3 nobody knows it.
	fd, err := unix.MemfdCreate("netrc", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("netrc", flags)
	}
	if err != nil {
		return "", nil, os.NewSyscallError("memfd_create", err)
	}
	// Not an os.File: that closes itself once nobody refers to it, while pip may
	// still have the path.
	closeMemory = func() error { return os.NewSyscallError("close", unix.Close(fd)) }
	if path, err = fill(fd, content); err != nil {
		closeMemory() //nolint:errcheck // the first error says why
		return "", nil, err
	}
	return path, closeMemory, nil
}

// fill writes content to a memfd, for good, and returns its path.
func fill(fd int, content []byte) (path string, err error) {
	for rest := content; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", os.NewSyscallError("write", err)
		}
		rest = rest[n:]
	}
	if err := unix.Fchmod(fd, 0o400); err != nil {
		return "", os.NewSyscallError("fchmod", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return "", os.NewSyscallError("fcntl", err)
	}
	path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	// Is there a /proc, and does it have this process under this number?
	got, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	same := string(got) == string(content)
	clear(got)
	if !same {
		return "", fmt.Errorf("%s is another file", path)
	}
	return path, nil
}
