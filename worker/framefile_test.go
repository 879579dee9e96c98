package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/rpc"
)

// numbersIn writes batches of a hundred numbers as one stream.
func numbersIn(t *testing.T, batches int) (stream []byte, f frameFile) {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	var b bytes.Buffer
	w := rpc.NewArrowWriter(&b, schema, nil)
	for i := range batches {
		build := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for j := range 100 {
			build.Field(0).(*array.Int64Builder).Append(int64(100*i + j))
		}
		if err := w.Write(build.NewRecord()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, sum, err := rpc.XXH3(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), frameFile{fs: OSFS{}, rows: int64(100 * batches), batches: int64(batches), xxh3: sum}
}

// cutInto writes a stream to files, cut at some offsets.
func cutInto(t *testing.T, dir string, stream []byte, cuts ...int) (parts []filePart) {
	t.Helper()
	from := 0
	for i, to := range append(cuts, len(stream)) {
		p := filePart{filepath.Join(dir, string(rune('a'+i))), int64(to - from)}
		if err := os.WriteFile(p.path, stream[from:to], 0o600); err != nil {
			t.Fatal(err)
		}
		parts, from = append(parts, p), to
	}
	return parts
}

// A table in files is read like one in memory, by many at once, wherever its
// stream is cut, and the last owner removes it.
func TestFrameFile(t *testing.T) {
	stream, f := numbersIn(t, 7)
	for name, cuts := range map[string][]int{
		"one file": nil, "two": {1000}, "in its schema": {3}, "with empty ones": {0, 0, 500, 500, len(stream)}, "in every message": {100, 1100, 2222, 2223, 4001},
	} {
		t.Run(name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			f := f
			f.mem, f.parts = mem, cutInto(t, t.TempDir(), stream, cuts...)
			removed := 0
			df, err := openDataFrame(f, 5600, func() { removed++ })
			if err != nil {
				t.Fatal(err)
			}
			if !df.onDisk() || df.Rows() != 700 || df.bytes != 5600 || f.size() != int64(len(stream)) {
				t.Errorf("%d rows, %d bytes", df.Rows(), df.bytes)
			}
			var wg sync.WaitGroup
			for range 4 {
				r := df.Reader()
				wg.Go(func() {
					defer r.Release()
					next := int64(0)
					for r.Next() {
						for _, n := range r.Record().Column(0).(*array.Int64).Int64Values() {
							if n != next {
								t.Errorf("%d in place of %d", n, next)
								return
							}
							next++
						}
					}
					if r.Err() != nil || next != 700 || !r.Schema().Equal(df.Schema()) {
						t.Errorf("%d rows, %v", next, r.Err())
					}
				})
			}
			half := df.Reader()
			half.Next()
			df.Release()
			wg.Wait()
			if removed != 0 {
				t.Error("removed under a reader")
			}
			half.Release()
			if removed != 1 {
				t.Errorf("removed %d times", removed)
			}
		})
	}
}

// Whatever is missing or wrong ends a reader with an error.
func TestFrameFileDamaged(t *testing.T) {
	stream, f := numbersIn(t, 3)
	change := func(p filePart, do func([]byte) []byte) {
		b, err := os.ReadFile(p.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.path, do(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	short, _ := numbersIn(t, 2)
	for _, test := range []struct {
		name   string
		damage func(f *frameFile)
		want   string
	}{
		{"gone", func(f *frameFile) { os.Remove(f.parts[1].path) }, "no such file"},
		{"shorter", func(f *frameFile) { change(f.parts[1], func(b []byte) []byte { return b[1:] }) }, "is not what was written: it has"},
		{"longer", func(f *frameFile) { change(f.parts[1], func(b []byte) []byte { return append(b, 0) }) }, "is not what was written: it has"},
		{"another value", func(f *frameFile) { change(f.parts[1], func(b []byte) []byte { b[len(b)-20] ^= 1; return b }) }, "its hash is"},
		{"no stream", func(f *frameFile) { change(f.parts[0], func(b []byte) []byte { clear(b); return b }) }, "corrupt"},
		{"a pipe's place", func(f *frameFile) {
			os.Remove(f.parts[1].path)
			os.Mkdir(f.parts[1].path, 0o700)
		}, "not a regular file"},
		{"another length", func(f *frameFile) { f.xxh3, f.rows = "", 301 }, "300 rows in 3 batches, not 301 in 3"},
		{"other batches", func(f *frameFile) { f.xxh3, f.batches = "", 4 }, "300 rows in 3 batches, not 300 in 4"},
		{"cut between messages", func(f *frameFile) {
			change(f.parts[0], func([]byte) []byte { return short })
			change(f.parts[1], func([]byte) []byte { return nil })
			f.parts[0].size, f.parts[1].size = int64(len(short)), 0
		}, "200 rows in 2 batches"},
		{"more behind it", func(f *frameFile) {
			change(f.parts[1], func(b []byte) []byte { return append(b, 0, 0) })
			f.parts[1].size += 2
		}, "2 bytes are behind its end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
			defer mem.AssertSize(t, 0)
			f := f
			f.mem, f.parts = mem, cutInto(t, t.TempDir(), stream, len(stream)/2)
			df, err := openDataFrame(f, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer df.Release()
			test.damage(df.file)
			r := df.Reader()
			for r.Next() {
			}
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if r.Next() || !r.Schema().Equal(df.Schema()) {
				t.Error("it goes on")
			}
			r.Release()
		})
	}
	f.parts = []filePart{{filepath.Join(t.TempDir(), "missing"), 10}}
	if _, err := openDataFrame(f, 0, nil); err == nil {
		t.Error("a missing file is opened")
	}
}
