//go:build !linux

package remote_test

import "errors"

const syscallRemount = 0

func mountTmpfs(string, uintptr, string) error { return errors.ErrUnsupported }
func unmount(string) error                     { return errors.ErrUnsupported }
