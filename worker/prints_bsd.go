//go:build unix && !linux

package worker

import "golang.org/x/sys/unix"

// take logs what is in the pipe, with all also a line that has no end yet. It
// reports whether the pipe has ended.
func (s *printStream) take(fd int, all bool) (ended bool) {
	for {
		n, err := unix.Read(fd, s.buf[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if all {
				s.end()
			}
			return false
		case err != nil || n == 0:
			s.end()
			return true
		default:
			s.add(s.buf[:n])
		}
	}
}

func (s *printStream) closeCopy() {}
