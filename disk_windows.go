package remote

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isDiskFull reports whether a file has found no room on its disk, or its owner
// may not have more.
func isDiskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}
