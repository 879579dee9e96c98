//go:build !unix

package python

import (
	"io"
	"os"
)

// mapFile returns a file's content.
func mapFile(f *os.File) ([]byte, error) { return io.ReadAll(f) }

func unmapFile([]byte) {}
