//go:build !linux

package machine

import (
	"context"
	"fmt"
	"net"
	"runtime"
)

func newNetworked(EnvdOptions, string) (*Machine, func(context.Context) (net.Conn, error), error) {
	return nil, nil, fmt.Errorf("%w on %s", ErrNotPermitted, runtime.GOOS)
}
