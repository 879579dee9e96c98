//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package worker

import (
	"context"
	"io"

	"github.com/osiris-pipelines/remote/rpc"
)

// supervise is not done by a process of its own on this platform.
func (Program) supervise(context.Context, string, []string, io.Reader, FS, io.Writer) int { return -1 }

func inherited() ([]printPipe, func([]string) error) { return nil, nil }

// look knows nothing of processes on this platform.
func look(_ FS, _ string, reap bool, s *rpc.WorkerStatus) {
	if reap {
		s.Remains = &rpc.Remains{}
	}
}
