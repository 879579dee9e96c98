//go:build !unix && !windows

package remote

// isDiskFull reports whether a file has found no room on its disk, as far as that
// is known here.
func isDiskFull(error) bool { return false }
