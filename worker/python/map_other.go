//go:build !unix

package python

import (
	"io"
	"os"
)

func openFile(name string) (*os.File, error) { return os.Open(name) }

// mapFile returns a file's content.
func mapFile(f *os.File) ([]byte, error) { return io.ReadAll(f) }

func unmapFile([]byte) {}
