//go:build darwin || freebsd

package machine

import "fmt"

func newMachine(opts Options, dir string) (*Machine, error) {
	if len(opts.Hosts) > 0 {
		return nil, fmt.Errorf("%w on this system", ErrNotPermitted)
	}
	return newShared(opts, dir, "this system has no namespaces")
}
