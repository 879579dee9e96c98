package mock

import (
	"context"
	"syscall"
)

// Size implements remote.Sandbox.
func (s *Sandbox) Size(ctx context.Context, name string) (int64, error) {
	rec, err := s.begin(ctx, Call{Op: OpSize, Path: name})
	if err != nil {
		return 0, s.fail(rec, err)
	}
	info, err := s.host.Stat(name)
	if err == nil && info.IsDir() {
		err = syscall.EISDIR
	}
	if err = s.fail(rec, err); err != nil {
		return 0, err
	}
	return info.Size(), nil
}
