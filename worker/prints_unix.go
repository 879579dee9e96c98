//go:build unix

package worker

import "golang.org/x/sys/unix"

// read logs until the writing end is closed. Whoever holds the lock takes the
// bytes and logs them, so that flush can do it in the reader's place.
func (s *printStream) read() {
	defer close(s.done)
	defer s.r.Close()
	conn, err := s.r.SyscallConn()
	if err != nil {
		return
	}
	// Returning false waits until there is more to read.
	_ = conn.Read(func(fd uintptr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		ended := s.take(int(fd))
		if ended {
			s.lines.end()
		}
		return ended
	})
}

// take logs what is in the pipe. It reports whether the pipe has ended.
func (s *printStream) take(fd int) (ended bool) {
	for {
		n, err := unix.Read(fd, s.buf[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil || n == 0:
			return true
		default:
			s.lines.add(s.buf[:n])
		}
	}
}

func (s *printStream) flush() {
	conn, err := s.r.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.take(int(fd))
		s.lines.end()
	})
}
