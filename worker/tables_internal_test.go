package worker

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/rpc"
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

// TestDamagedTable: what is not what the host has sent fails who reads it.
func TestDamagedTable(t *testing.T) {
	var stream bytes.Buffer
	w := rpc.NewArrowWriter(&stream, arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil), nil)
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.AppendValues(make([]int64, 100), nil)
	col := b.NewArray()
	defer col.Release()
	rec := array.NewRecord(arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil), []arrow.Array{col}, 100)
	defer rec.Release()
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		t.Fatal(err)
	}
	half := stream.Len() / 2
	for name, test := range map[string]struct {
		damage func(dir string, ref *rpc.TableRef) error
		want   string // empty: it is read
	}{
		"whole": {func(string, *rpc.TableRef) error { return nil }, ""},
		"a byte of the first part": {func(dir string, _ *rpc.TableRef) error {
			return os.WriteFile(filepath.Join(dir, "0"), bytes.Repeat([]byte{1}, half), 0o600)
		}, "arrow stream is corrupt"},
		"a byte of the last part": {func(dir string, _ *rpc.TableRef) error {
			part := bytes.Clone(stream.Bytes()[half:])
			part[len(part)-20] ^= 1 // of the column's values
			return os.WriteFile(filepath.Join(dir, "1"), part, 0o600)
		}, "1 is not what was sent: its XXH3 hash is"},
		"a part is missing": {func(dir string, _ *rpc.TableRef) error { return os.Remove(filepath.Join(dir, "1")) }, "no such file"},
		"a part is shorter": {func(dir string, _ *rpc.TableRef) error { return os.Truncate(filepath.Join(dir, "1"), 5) }, "it has 5 bytes"},
		"rows":              {func(_ string, ref *rpc.TableRef) error { ref.Rows++; return nil }, "it has 100 rows in 1 batches, not 101"},
		"bytes":             {func(_ string, ref *rpc.TableRef) error { ref.Bytes++; return nil }, "its 2 parts have"},
		"no parts":          {func(_ string, ref *rpc.TableRef) error { ref.Parts = nil; return nil }, "its 0 parts have"},
		"no driver":         {func(_ string, ref *rpc.TableRef) error { ref.Driver = "nobody's"; return nil }, "nobody's"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ref := rpc.TableRef{Bytes: int64(stream.Len()), Rows: 100, Batches: 1}
			for i, part := range [][]byte{stream.Bytes()[:half], stream.Bytes()[half:]} {
				name := filepath.Join(dir, strconv.Itoa(i))
				if err := os.WriteFile(name, part, 0o600); err != nil {
					t.Fatal(err)
				}
				_, sum, _ := rpc.XXH3(bytes.NewReader(part))
				ref.Parts = append(ref.Parts, rpc.FileSum{Path: name, Size: int64(len(part)), XXH3: sum})
			}
			if err := test.damage(dir, &ref); err != nil {
				t.Fatal(err)
			}
			w, err := New(Options{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer w.journal.Close(nil)
			w.setTables(map[string]rpc.TableRef{"orders": ref})
			defer w.releaseTables()
			s := &stepRun{w: w, p: &rpc.ExecuteStep{StepID: "a"}}
			df, err := s.input(t.Context(), rpc.InputRef{Table: "orders"})
			if err == nil {
				r := df.Reader()
				for r.Next() {
				}
				err = r.Err()
				r.Release()
				df.Release()
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if _, err := s.input(t.Context(), rpc.InputRef{Table: "other"}); !errors.Is(err, &rpc.Error{Code: rpc.CodeMissingInput}) {
				t.Errorf("a table that was not sent: %v", err)
			}
		})
	}
}
