package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"time"
)

// unpack unpacks a zip file into a directory, by Python itself, so that a
// worker program that needs it for nothing else has no such code.
func unpack(ctx context.Context, python, archive, dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err // by a worker before this one
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	half := dir + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := os.MkdirAll(half, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, python, "-I", "-m", "zipfile", "-e", archive, half)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w: %s", archive, err, bytes.TrimSpace(out[max(0, len(out)-1<<10):]))
	}
	return os.Rename(half, dir)
}
