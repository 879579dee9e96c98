//go:build !linux

package dbtest

import "os/exec"

func own(*exec.Cmd) {}

func give(string) error { return nil }

func dieWithTests(*exec.Cmd) (unlock func()) { return func() {} }

func end(cmd *exec.Cmd) { cmd.Process.Kill() } //nolint:errcheck // it may have ended
