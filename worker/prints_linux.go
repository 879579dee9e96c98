package worker

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// take logs what is in the pipe: whole lines, or with all also one that has no
// end yet. Bytes are taken from the pipe once they are logged, so that what
// this process has not come to say when it dies is still there for its
// supervisor. It reports whether the pipe has ended.
func (s *printStream) take(fd int, all bool) (ended bool) {
	for {
		if s.over {
			return true
		}
		n, err := s.peek(fd)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil || n == 0:
			return true
		}
		k := bytes.LastIndexByte(s.buf[:n], '\n') + 1
		cut := false
		if k == 0 && (all || n >= s.most(fd)) {
			k, cut = n, !all
		}
		if k == 0 && !s.isLast(fd) {
			return false
		}
		if k == 0 { // nobody is left to end the line
			k = n
		}
		s.add(s.buf[:k])
		if cut { // where a secret may be, whose beginning waits for its end
			s.lines.end()
		} else {
			s.end()
		}
		if _, err := unix.Read(fd, s.buf[:k]); err != nil {
			return true
		}
	}
}

// peek copies what is in the pipe, and leaves it there.
func (s *printStream) peek(fd int) (int, error) {
	if s.copy == ([2]int{}) {
		if err := unix.Pipe2(s.copy[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return 0, err
		}
	}
	n, err := unix.Tee(fd, s.copy[1], len(s.buf), unix.SPLICE_F_NONBLOCK)
	if err != nil || n == 0 {
		return 0, err
	}
	for got := 0; got < int(n); {
		k, err := unix.Read(s.copy[0], s.buf[got:n])
		if err != nil {
			return 0, err
		}
		got += k
	}
	return int(n), nil
}

// most is how much of a line is waited for: a pipe that is full gets no more.
// Where a user has many of them they are small.
func (s *printStream) most(fd int) int {
	n := len(s.buf)
	for _, fd := range []int{fd, s.copy[0]} {
		if size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil {
			n = min(n, size/2)
		}
	}
	return n
}

// isLast reports whether the pipe's writing end is closed, so that nothing will
// follow what is in it.
func (s *printStream) isLast(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, _ = unix.Poll(p, 0)
	return p[0].Revents&unix.POLLHUP != 0
}

// closeCopy lets go of what peek needs.
func (s *printStream) closeCopy() {
	s.over = true
	if s.copy != ([2]int{}) {
		unix.Close(s.copy[0])
		unix.Close(s.copy[1])
	}
}
