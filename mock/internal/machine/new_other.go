//go:build darwin || freebsd

package machine

func newMachine(opts Options, dir string) (*Machine, error) {
	return newShared(opts, dir, "this system has no namespaces")
}
