package machine

import "os"

// NewInUserNamespace makes a machine as New does for those who are not root.
func NewInUserNamespace(opts Options) (*Machine, error) {
	dir, err := os.MkdirTemp(opts.Dir, "machine-")
	if err != nil {
		return nil, err
	}
	l := layout{dir: dir, diskBytes: opts.DiskBytes, user: true}
	for _, name := range opts.ReadOnly {
		l.binds = append(l.binds, name, name)
	}
	n, err := newNamespace(l)
	if err != nil {
		_ = os.Remove(dir)
		return nil, err
	}
	return isolatedMachine(opts, n), nil
}
