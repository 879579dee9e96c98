//go:build unix

package worker

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
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closeCopy()
	}()
	_ = conn.Read(func(fd uintptr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.take(int(fd), false)
	})
}

func (s *printStream) flush() {
	conn, err := s.r.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.take(int(fd), true)
	})
}
