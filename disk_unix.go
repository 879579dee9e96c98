//go:build unix

package remote

import (
	"errors"
	"syscall"
)

// isDiskFull reports whether a file has found no room on its disk, or its owner
// may not have more.
func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
