//go:build !unix

package worker

// read logs until the writing end is closed.
func (s *printStream) read() {
	defer close(s.done)
	defer s.r.Close()
	for {
		n, err := s.r.Read(s.buf[:])
		s.mu.Lock()
		s.add(s.buf[:n])
		if err != nil {
			s.end()
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// flush cannot look into the pipe on this platform: what was printed last may
// be logged a moment later, under the next step.
func (s *printStream) flush() {}
