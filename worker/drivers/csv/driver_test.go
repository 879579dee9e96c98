package csv

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/osiris-pipelines/remote/worker"
)

const (
	smallBZ2 = "QlpoOTFBWSZTWdR78W4AAALZgAAQAAQgADAAAEAgACGmmaDAKBULC7kinChIaj34twA=" // "a,b\n1,x\n"
	smallXZ  = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAHYSxiCjEseAoAe4okWw8zy8YAASAIuxnZux+2830BAAAAAARZWg=="
)

// fakeFS opens files that a function makes, and counts those left open.
type fakeFS struct {
	worker.OSFS
	content func() io.Reader
	open    atomic.Int64
}

func (f *fakeFS) Open(string) (worker.File, error) {
	f.open.Add(1)
	return &fakeFile{r: f.content(), fs: f}, nil
}

type fakeFile struct {
	worker.File // nil: what the extractor does not use
	r           io.Reader
	fs          *fakeFS
}

func (f *fakeFile) Read(p []byte) (int, error)        { return f.r.Read(p) }
func (f *fakeFile) Stat() (fs.FileInfo, error)        { return nil, errors.ErrUnsupported }
func (f *fakeFile) Close() error                      { f.fs.open.Add(-1); return nil }
func (f *fakeFile) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

func TestRegister(t *testing.T) {
	r := worker.NewRegistry()
	Register(r)
	if diff := cmp.Diff([]string{ExtractorName, WriterName}, r.Names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	for name, mode := range map[string]worker.Mode{ExtractorName: worker.Extract, WriterName: worker.Write} {
		e, err := r.Lookup(name)
		if err != nil || e.Mode != mode {
			t.Errorf("%s: mode %s, error %v, want %s", name, e.Mode, err, mode)
		}
	}
	files, err := (&Extractor{}).InputFiles(map[string]any{"path": "a/b.csv"})
	if diff := cmp.Diff([]string{"a/b.csv"}, files); diff != "" || err != nil {
		t.Errorf("input files: %v (-want +got):\n%s", err, diff)
	}
	if _, err := (&Extractor{}).InputFiles(nil); err == nil {
		t.Error("input files without a path: no error")
	}
}

// A relative path starts at its connection's base_dir, for the host that sends
// the file as for the driver that reads it.
func TestBaseDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.csv"), []byte("a\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, base, path, want string }{
		{"relative", dir, "in.csv", filepath.Join(dir, "in.csv")},
		{"absolute", "/elsewhere", filepath.Join(dir, "in.csv"), filepath.Join(dir, "in.csv")},
		{"none", "", "in.csv", "in.csv"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := map[string]any{"path": test.path, "resolved_connection": map[string]any{"base_dir": test.base}}
			files, err := (&Extractor{}).InputFiles(config)
			if diff := cmp.Diff([]string{test.want}, files); diff != "" || err != nil {
				t.Fatalf("input files: %v (-want +got):\n%s", err, diff)
			}
			step := &worker.Step{Config: config, Connection: "@filesystem.local", BasePath: dir}
			result, err := (&Extractor{}).Run(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			for _, out := range result.Outputs {
				out.Release()
			}
		})
	}
	_, err := (&Extractor{}).Run(t.Context(), &worker.Step{Config: map[string]any{"path": "in.csv"}, Connection: "@filesystem.local"})
	if err == nil || !strings.Contains(err.Error(), "@filesystem.local") {
		t.Errorf("a connection that is not resolved: %v", err)
	}
}

func TestUsersRoundTrip(t *testing.T) {
	content, err := os.ReadFile("testdata/supabase_users.csv")
	if err != nil {
		t.Fatal(err)
	}
	f, err := extract(t, content, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	got, err := write(t, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "consent_marketing,created_at,data_residency,email,last_login,phone,user_id\n" +
		"True,2023-01-15,EU,john.doe@example.com,2024-09-15,555-0101,1\n"
	if !strings.HasPrefix(string(got), want) {
		t.Errorf("got %q, want prefix %q", got, want)
	}
}

func TestExtractErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, content string
		config        map[string]any
		connection    string
		want          []string
		is            error
	}{
		{name: "no path", config: map[string]any{"path": ""}, want: []string{"'path' is required in config"}},
		{name: "missing file", config: map[string]any{"path": "gone.csv"}, want: []string{"CSV file not found", "gone.csv"}, is: fs.ErrNotExist},
		{name: "directory", config: map[string]any{"path": "d"}, want: []string{"Path is not a file", "d"}},
		{name: "connection", connection: "@filesystem.local", want: []string{`"connection"`, "not resolved", "@filesystem.local"}},
		{name: "long row", content: "a,b\n\n1,\"x\ny\"\n1,2,3\n", want: []string{"CSV parsing failed", "in.csv", "Expected 2 fields in line 5, saw 3"}},
		{name: "unterminated", content: "a,b\n1,2\n\"3\n,4\n", want: []string{"CSV parsing failed", "EOF inside string starting at line 3"}},
		{name: "index", content: "a,b\n1,2,3\n", want: []string{"CSV parsing failed", "line 2 has 3 fields, the header 2", "index"}},
		{name: "utf-8", content: "a,b\n1,2\n3,\xff\n", want: []string{"CSV encoding error (tried utf-8)", "line 3", "0xff"}},
		{name: "ascii", content: "a,b\n1,é\n", config: map[string]any{"encoding": "ascii"}, want: []string{"CSV encoding error (tried ascii)", "line 2"}},
		{name: "utf-16 cut", content: "\xff\xfea\x00\n", config: map[string]any{"encoding": "utf-16"}, want: []string{"CSV encoding error (tried utf-16)"}},
		{name: "utf-16 surrogate", content: "\xff\xfea\x00\n\x00\x00\xd8a\x00", config: map[string]any{"encoding": "utf-16"}, want: []string{"CSV encoding error (tried utf-16)", "line 2", "surrogate"}},
		{name: "unknown encoding", content: "a", config: map[string]any{"encoding": "klingon"}, want: []string{`"encoding"`, "klingon"}},
		{name: "unknown column", content: "a,b\n1,2\n", config: map[string]any{"columns": []any{"b", "z"}}, want: []string{"ValueError", `not found: "z"`, `"a", "b"`}},
		{name: "dtype value", content: "a,b\n1,2\n\n1,x\n", config: map[string]any{"dtype": map[string]any{"b": "int64"}}, want: []string{"CSV extraction failed", "ValueError", `column "b"`, "row 2", "line 4", `"x"`, "int64"}},
		{name: "dtype name", content: "a\n1\n", config: map[string]any{"dtype": map[string]any{"a": "bogus"}}, want: []string{`"dtype"`, `"bogus" not understood`}},
		{name: "delimiter", content: "a\n", config: map[string]any{"delimiter": ",,"}, want: []string{`"delimiter"`, `",,"`}},
		{name: "limit", content: "a\n", config: map[string]any{"limit": "many"}, want: []string{`"limit"`, `"many"`}},
		{name: "chunk", content: "a\n", config: map[string]any{"chunk_size": 0}, want: []string{`"chunk_size"`, "at least 1"}},
		{name: "header", content: "a\n", config: map[string]any{"header": "yes"}, want: []string{`"header"`}},
		{name: "header beyond", content: "a\n", config: map[string]any{"header": json.Number("3")}, want: []string{"CSV parsing failed", "Passed header=3 but only 1 lines in file"}},
		{name: "bad lines", content: "a\n", config: map[string]any{"on_bad_lines": "ignore"}, want: []string{`"on_bad_lines"`, "error, skip, warn"}},
		{name: "compression", content: "a\n", config: map[string]any{"compression": "rar"}, want: []string{`"compression"`}},
		{name: "not gzip", content: "a,b\n1,2\n", config: map[string]any{"compression": "gzip"}, want: []string{"CSV extraction failed", "gzip"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
			defer mem.AssertSize(t, 0)
			s := &sink{}
			var content []byte
			if c.content != "" {
				content = []byte(c.content)
			}
			_, err := extractWith(t, &Extractor{}, &worker.Step{BasePath: dir, Connection: c.connection, Allocator: mem, Sink: s}, content, c.config)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not have %q", err, w)
				}
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v is not %v", err, c.is)
			}
			if len(s.metrics) > 0 {
				t.Errorf("metrics %v after an error", s.metrics)
			}
		})
	}
}

func TestExtractMetric(t *testing.T) {
	for content, want := range map[string]string{"": "rows_read=0 rows", "a,b\n": "rows_read=0 rows", "a\n1\n2\n": "rows_read=2 rows"} {
		s := &sink{}
		f, err := extractWith(t, &Extractor{}, &worker.Step{Sink: s}, []byte(content), map[string]any{"unknown": 1, "mode": "extract"})
		if err != nil {
			t.Fatal(err)
		}
		f.Release()
		if diff := cmp.Diff([]string{want}, s.metrics); diff != "" {
			t.Errorf("%q: metrics (-want +got):\n%s", content, diff)
		}
	}
}

func TestChunkSize(t *testing.T) {
	var b strings.Builder
	b.WriteString("a,b,c\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "%d,text \"%d\",%d.5\n", i, i, i)
	}
	var want []tableColumn
	for _, chunk := range []int{10000, 1, 7, 999, 1000} {
		for _, fill := range []int{0, 16, 100} {
			mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
			f, err := extractWith(t, &Extractor{fillSize: fill}, &worker.Step{Allocator: mem}, []byte(b.String()), map[string]any{"chunk_size": json.Number(fmt.Sprint(chunk))})
			if err != nil {
				t.Fatal(err)
			}
			r := f.Reader()
			for r.Next() {
				if n := r.Record().NumRows(); n > int64(chunk) {
					t.Errorf("batch of %d rows, chunk_size is %d", n, chunk)
				}
			}
			r.Release()
			got := render(f)
			if want == nil {
				want = got
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("chunk_size %d, buffer %d: (-want +got):\n%s", chunk, fill, diff)
			}
			f.Release()
			mem.AssertSize(t, 0)
		}
	}
}

func TestCompression(t *testing.T) {
	const content = "a,b\n1,x\n"
	var gz, zipped, two bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write([]byte(content)) //nolint:errcheck // in memory
	w.Close()                //nolint:errcheck // in memory
	for buf, n := range map[*bytes.Buffer]int{&zipped: 1, &two: 2} {
		z := zip.NewWriter(buf)
		for i := range n {
			f, err := z.Create(fmt.Sprintf("f%d.csv", i))
			if err != nil {
				t.Fatal(err)
			}
			f.Write([]byte(content)) //nolint:errcheck // in memory
		}
		z.Close() //nolint:errcheck // in memory
	}
	for _, c := range []struct {
		path        string
		content     []byte
		compression string
		wantErr     string
	}{
		{path: "a.csv.gz", content: gz.Bytes()},
		{path: "a.csv.GZ", content: gz.Bytes(), compression: "infer"},
		{path: "a.csv", content: gz.Bytes(), compression: "gzip"},
		{path: "a.bz2", content: unbase64(t, smallBZ2)},
		{path: "a.xz", content: unbase64(t, smallXZ)},
		{path: "a.zip", content: zipped.Bytes()},
		{path: "a.gz", content: []byte(content), compression: "none"},
		{path: "two.zip", content: two.Bytes(), wantErr: "the archive has 2 files"},
		{path: "a.csv.zst", content: []byte(content), wantErr: "zstd"},
		{path: "a.tar.gz", content: gz.Bytes(), wantErr: "tar"},
		{path: "cut.gz", content: gz.Bytes()[:gz.Len()-6], wantErr: "unexpected EOF"},
		{path: "bad.xz", content: []byte(content), wantErr: "xz"},
		{path: "bad.zip", content: []byte(content), wantErr: "zip"},
		{path: "bad.bz2", content: []byte(content), wantErr: "bzip2"},
	} {
		t.Run(c.path, func(t *testing.T) {
			config := map[string]any{"path": c.path}
			if c.compression != "" {
				config["compression"] = c.compression
			}
			f, err := extract(t, c.content, config)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v, want %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Release()
			one, x := "1", "x"
			want := []tableColumn{{"a", "int64", []*string{&one}}, {"b", "utf8", []*string{&x}}}
			if diff := cmp.Diff(want, render(f)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestContext(t *testing.T) {
	content := "a,b\n" + strings.Repeat("1,x\n", 10000)
	files := &fakeFS{content: func() io.Reader { return strings.NewReader(content) }}
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	s := &sink{}
	step := &worker.Step{FS: files, Allocator: mem, Sink: s, Config: map[string]any{"path": "/in.csv", "chunk_size": 100}}
	ctx, cancel := context.WithCancel(context.Background())
	res, err := (&Extractor{}).Run(ctx, step)
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs[worker.DefaultOutput]
	if !r.Next() {
		t.Fatal(r.Err())
	}
	cancel()
	if r.Next() || !errors.Is(r.Err(), context.Canceled) {
		t.Errorf("after cancel: error %v", r.Err())
	}
	r.Release()
	if _, err := (&Extractor{}).Run(ctx, step); !errors.Is(err, context.Canceled) {
		t.Errorf("Run with a cancelled context: %v", err)
	}
	if n := files.open.Load(); n != 0 || len(s.metrics) != 0 {
		t.Errorf("%d files open, metrics %v", n, s.metrics)
	}
	table := frame(t, []tableColumn{{Name: "a", Type: "int64", Values: []*string{nil}}})
	defer table.Release()
	out := &worker.Step{ArtifactsDir: t.TempDir(), Sink: s, Config: map[string]any{"path": "o.csv"}, Inputs: map[string]*worker.DataFrame{"df": table}}
	if _, err := (&Writer{}).Run(ctx, out); !errors.Is(err, context.Canceled) || len(s.metrics) != 0 {
		t.Errorf("writer with a cancelled context: error %v, metrics %v", err, s.metrics)
	}
}

// TestReleaseEarly leaves a stream before its end.
func TestReleaseEarly(t *testing.T) {
	content := "a,b\n" + strings.Repeat("1,x\n", 10000)
	files := &fakeFS{content: func() io.Reader { return strings.NewReader(content) }}
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	for _, batches := range []int{0, 1, 3} {
		step := &worker.Step{FS: files, Allocator: mem, Config: map[string]any{"path": "/in.csv", "chunk_size": 100}}
		res, err := (&Extractor{}).Run(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		r := res.Outputs[worker.DefaultOutput]
		r.Retain()
		for range batches {
			r.Next()
		}
		r.Release()
		r.Release()
		if n := files.open.Load(); n != 0 {
			t.Errorf("%d files open after %d batches", n, batches)
		}
	}
}

// TestFileChanged gives the second pass another file than the first.
func TestFileChanged(t *testing.T) {
	for _, second := range []string{"a,b\n1,x\n2,y\n", "a,b\n1,x\nz,y\n3,z\n", "a\n1\n2\n3\n", "", "a,b\n1,\xff"} {
		passes := 0
		files := &fakeFS{content: func() io.Reader {
			if passes++; passes == 1 {
				return strings.NewReader("a,b\n1,x\n2,y\n3,z\n")
			}
			return strings.NewReader(second)
		}}
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		s := &sink{}
		_, err := extractWith(t, &Extractor{}, &worker.Step{FS: files, Allocator: mem, Sink: s}, nil, map[string]any{"chunk_size": 1})
		if err == nil || len(s.metrics) != 0 {
			t.Errorf("second pass %q: error %v, metrics %v", second, err, s.metrics)
		}
		mem.AssertSize(t, 0)
		if n := files.open.Load(); n != 0 {
			t.Errorf("%d files open", n)
		}
	}
}

func TestReadError(t *testing.T) {
	broken := errors.New("disk on fire")
	files := &fakeFS{content: func() io.Reader {
		return io.MultiReader(strings.NewReader("a,b\n1,2\n3,"), iotest.ErrReader(broken))
	}}
	_, err := extractWith(t, &Extractor{}, &worker.Step{FS: files}, nil, nil)
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "in.csv") {
		t.Errorf("error %v, want %v with the path", err, broken)
	}
}

func TestRowTooLong(t *testing.T) {
	files := &fakeFS{content: func() io.Reader {
		return io.MultiReader(strings.NewReader("a,b\n1,\""), repeat(strings.Repeat("x", 1<<20), maxRowBytes+1<<20))
	}}
	_, err := extractWith(t, &Extractor{}, &worker.Step{FS: files}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "row in line 2 is longer than 64 MiB") {
		t.Errorf("error %v", err)
	}
}

// repeat reads s again and again, size bytes in all.
func repeat(s string, size int) io.Reader { return &repeater{s: s, left: size} }

type repeater struct {
	s        string
	at, left int
}

func (r *repeater) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && r.left > 0 {
		c := copy(p[n:min(len(p), n+r.left)], r.s[r.at:])
		n += c
		r.left -= c
		r.at = (r.at + c) % len(r.s)
	}
	return n, nil
}

// TestMemory extracts a file of which no pass is kept, and watches the heap.
func TestMemory(t *testing.T) {
	const row = "123456,0.25,some text that is in every row,2024-01-15T10:00:00,true\n"
	size, keep, limit := 30_000_000, 8<<20, int64(20<<20)
	if stress, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); stress {
		size, keep, limit = 200_000_000, keepBytes, 64<<20
	}
	rows := size / len(row)
	files := &fakeFS{content: func() io.Reader {
		return io.MultiReader(strings.NewReader("id,v,text,at,ok\n"), repeat(strings.Repeat(row, 1000), rows*len(row)))
	}}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	res, err := (&Extractor{keepBytes: keep}).Run(context.Background(), &worker.Step{FS: files, Config: map[string]any{"path": "/in.csv"}})
	if err != nil {
		t.Fatal(err)
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	read, peak := int64(0), uint64(0)
	for i := 0; r.Next(); i++ {
		read += r.Record().NumRows()
		if i%10 == 0 {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}
	if r.Err() != nil || read != int64(rows) {
		t.Fatalf("%d rows of %d, error %v", read, rows, r.Err())
	}
	growth := int64(peak) - int64(before.HeapAlloc)
	t.Logf("heap grew by %.1f MiB", float64(growth)/(1<<20))
	if growth > limit {
		t.Errorf("heap grew by %d bytes", growth)
	}
}

func TestWriteErrors(t *testing.T) {
	text := func(values ...string) []*string {
		var out []*string
		for _, v := range values {
			out = append(out, &v)
		}
		return out
	}
	table := frame(t, []tableColumn{{"n", "int64", text("1", "2")}, {"name", "utf8", text("ok", "ž")}})
	defer table.Release()
	b := array.NewBinaryBuilder(memory.DefaultAllocator, arrow.BinaryTypes.Binary)
	b.Append([]byte("x"))
	a := b.NewArray()
	schema := arrow.NewSchema([]arrow.Field{{Name: "blob", Type: arrow.BinaryTypes.Binary}}, nil)
	binary := frameOf(t, schema, array.NewRecord(schema, []arrow.Array{a}, 1))
	a.Release()
	b.Release()
	defer binary.Release()
	for _, c := range []struct {
		name   string
		inputs map[string]*worker.DataFrame
		config map[string]any
		want   []string
	}{
		{"no path", map[string]*worker.DataFrame{"df": table}, map[string]any{}, []string{"'path' is required in config"}},
		{"no input", nil, map[string]any{"path": "o.csv"}, []string{"requires a table in inputs", "no inputs"}},
		{"two inputs", map[string]*worker.DataFrame{"df": table, "other": binary}, map[string]any{"path": "o.csv"}, []string{"requires a table in inputs", "one table is wanted", "df, other"}},
		{"outside", map[string]*worker.DataFrame{"df": table}, map[string]any{"path": "../o.csv"}, []string{"CSV writing failed", "../o.csv"}},
		{"misfit", map[string]*worker.DataFrame{"df": table}, map[string]any{"path": "o.csv", "encoding": "latin-1"}, []string{"o.csv", "CSV encoding error (tried latin-1)", `column "name" in row 2`, "'ž'"}},
		{"misfit other", map[string]*worker.DataFrame{"df": table}, map[string]any{"path": "o.csv", "encoding": "iso-8859-7"}, []string{`column "name" in row 2`, "'ž'"}},
		{"binary", map[string]*worker.DataFrame{"df": binary}, map[string]any{"path": "o.csv"}, []string{"o.csv", `column "blob"`, "binary"}},
		{"newline", map[string]*worker.DataFrame{"df": table}, map[string]any{"path": "o.csv", "newline": "nl"}, []string{`"newline"`, "lf, crlf, cr"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &sink{}
			_, err := (&Writer{}).Run(context.Background(), &worker.Step{ArtifactsDir: t.TempDir(), Config: c.config, Inputs: c.inputs, Sink: s})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not have %q", err, w)
				}
			}
			if len(s.metrics) > 0 {
				t.Errorf("metrics %v after an error", s.metrics)
			}
		})
	}
}

func TestWriteMetric(t *testing.T) {
	one := "1"
	for want, values := range map[string][]*string{"rows_written=0 rows": {}, "rows_written=2 rows": {&one, nil}} {
		s := &sink{}
		f := frame(t, []tableColumn{{"a", "int64", values}})
		dir := t.TempDir()
		res, err := (&Writer{}).Run(context.Background(), &worker.Step{
			ArtifactsDir: dir, Config: map[string]any{"path": "/deep/er/o.csv", "chunk_size": 1, "create_dirs": true}, Inputs: map[string]*worker.DataFrame{"df_x": f}, Sink: s,
		})
		f.Release()
		if err != nil || res != nil {
			t.Fatalf("result %v, error %v", res, err)
		}
		if diff := cmp.Diff([]string{want}, s.metrics); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
		if _, err := os.Stat(filepath.Join(dir, "deep", "er", "o.csv")); err != nil {
			t.Error(err)
		}
	}
}

// failFile fails when it is closed.
type failFile struct{ worker.File }

func (f failFile) Close() error { f.File.Close(); return errors.New("quota exceeded") } //nolint:errcheck // fails anyway

type failFS struct{ worker.OSFS }

func (f failFS) Create(name string) (worker.File, error) {
	file, err := f.OSFS.Create(name)
	return failFile{file}, err
}

func TestWriteCloseError(t *testing.T) {
	f := frame(t, []tableColumn{{"a", "int64", nil}})
	defer f.Release()
	_, err := (&Writer{}).Run(context.Background(), &worker.Step{FS: failFS{}, ArtifactsDir: t.TempDir(), Config: map[string]any{"path": "o.csv"}, Inputs: map[string]*worker.DataFrame{"df": f}})
	if err == nil || !strings.Contains(err.Error(), "quota exceeded") || !strings.Contains(err.Error(), "o.csv") {
		t.Errorf("error %v", err)
	}
}

// TestWriteNested covers what pandas has no counterpart for.
func TestWriteNested(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Int64), Nullable: true},
		{Name: "struct", Type: arrow.StructOf(arrow.Field{Name: "x", Type: arrow.BinaryTypes.String}), Nullable: true},
		{Name: "dict", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}, Nullable: true},
		{Name: "none", Type: arrow.Null, Nullable: true},
		{Name: "large", Type: arrow.BinaryTypes.LargeString, Nullable: true},
	}, nil)
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(
		`[{"list":[1,2],"struct":{"x":"<a>"},"dict":"v","none":null,"large":"z"},{"list":null,"struct":null,"dict":null,"none":null,"large":null}]`))
	if err != nil {
		t.Fatal(err)
	}
	f := frameOf(t, schema, rec)
	defer f.Release()
	got, err := write(t, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "dict,large,list,none,struct\nv,z,\"[1,2]\",,\"{\"\"x\"\":\"\"<a>\"\"}\"\n,,,,\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
