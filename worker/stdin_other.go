//go:build !linux

package worker

import "os"

func pollable(f *os.File) *os.File { return f }
