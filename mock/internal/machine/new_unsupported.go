//go:build !darwin && !freebsd && !linux

package machine

import (
	"errors"
	"fmt"
	"runtime"
)

func newMachine(Options, string) (*Machine, error) {
	return nil, fmt.Errorf("machines of real processes need Linux or macOS, not %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
