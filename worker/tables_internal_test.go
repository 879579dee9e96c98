package worker

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/iotest"
)

// joined writes content to files, cut at some places, and returns what joins
// them under a name.
func joined(t *testing.T, content []byte, cuts ...int) (joinedFS, string) {
	t.Helper()
	dir := t.TempDir()
	j := joinedFS{FS: OSFS{}, name: filepath.Join(dir, "joined")}
	for i, from := range append([]int{0}, cuts...) {
		to := len(content)
		if i < len(cuts) {
			to = cuts[i]
		}
		part := filePart{filepath.Join(dir, strconv.Itoa(i)), int64(to - from)}
		if err := os.WriteFile(part.path, content[from:to], 0o600); err != nil {
			t.Fatal(err)
		}
		j.parts = append(j.parts, part)
	}
	return j, j.name
}

func TestJoinedFile(t *testing.T) {
	content := make([]byte, 1000)
	for i := range content {
		content[i] = byte(i * 7)
	}
	for name, cuts := range map[string][]int{"one": nil, "three": {1, 999}, "with empty ones": {0, 500, 500, 1000}} {
		t.Run(name, func(t *testing.T) {
			j, file := joined(t, content, cuts...)
			f, err := j.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := iotest.TestReader(f, content); err != nil {
				t.Error(err)
			}
			info, err := f.Stat()
			if err != nil || info.Size() != 1000 || info.Name() != "joined" || !info.Mode().IsRegular() {
				t.Errorf("stat %v, %v", info, err)
			}
			if info, err := j.Stat(file); err != nil || info.Size() != 1000 {
				t.Errorf("stat %v, %v", info, err)
			}
			if _, err := f.Write([]byte("x")); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("write: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("read after Close: %v", err)
			}
			if f, err := j.Open(j.parts[0].path); err != nil {
				t.Error(err)
			} else if b, err := io.ReadAll(f); err != nil || !bytes.HasPrefix(content, b) {
				t.Errorf("another file: %v", err)
			} else {
				f.Close()
			}
		})
	}
}

// A part that is shorter than it was is no end of the file.
func TestJoinedFileDamaged(t *testing.T) {
	j, file := joined(t, make([]byte, 100), 40)
	if err := os.Truncate(j.parts[0].path, 30); err != nil {
		t.Fatal(err)
	}
	f, err := j.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := io.ReadAll(f); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", len(n), err)
	}
}
