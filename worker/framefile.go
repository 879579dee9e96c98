package worker

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/zeebo/xxh3"

	"github.com/osiris-pipelines/remote/rpc"
)

// frameFile is a table in files: one Arrow IPC stream, cut into parts. A stream
// that was cut between two messages looks like a shorter table, so that all
// there is to count is counted, whenever it has been read to its end.
type frameFile struct {
	fs  FS
	mem memory.Allocator

	parts   []filePart // one or more
	sums    []string   // of each part, see [rpc.XXH3]; nil where they are not known
	rows    int64
	batches int64
	xxh3    string // of the stream, see [rpc.XXH3]; empty where it is not known

	owned *atomic.Bool // the table removes the file when it is released; nil if it never does
}

// filePart is a file with a piece of a stream.
type filePart struct {
	path string // absolute
	size int64
}

// openDataFrame returns the table that is in files, which must hold what f says
// of them. bytes is what the table would take in memory. remove is called when
// the last owner has released the table, not after an error; it may be nil.
func openDataFrame(f frameFile, bytes int64, remove func()) (*DataFrame, error) {
	if f.mem == nil {
		f.mem = memory.DefaultAllocator
	}
	src := &partReader{fs: f.fs, parts: f.parts, sums: f.sums}
	defer src.close()
	r, err := f.open(src)
	if err != nil {
		return nil, err
	}
	defer r.Release()
	df := &DataFrame{schema: r.Schema(), rows: f.rows, bytes: bytes, file: &f, drop: remove}
	df.refs.Store(1)
	return df, nil
}

// size returns how many bytes the stream has.
func (f *frameFile) size() (n int64) {
	for _, p := range f.parts {
		n += p.size
	}
	return n
}

// open reads the stream's schema.
func (f *frameFile) open(src *partReader) (*rpc.ArrowReader, error) {
	src.mem = f.mem
	src.left = f.size()
	// What this machine has written may be as large as it was.
	limit := 256<<20 + 8*src.left
	return rpc.NewPlainArrowReader(src, &rpc.ArrowLimits{MaxMetadataBytes: limit, MaxBodyBytes: limit, MaxBatchRows: 1 << 40, MaxFields: 1 << 30}, f.mem)
}

// verify reads a table to its end.
func (f *DataFrame) verify() error {
	r := f.Reader()
	defer r.Release()
	for r.Next() {
	}
	return r.Err()
}

// reader returns a reader of the whole table, which retains df.
func (f *frameFile) reader(df *DataFrame) *fileReader {
	df.Retain()
	r := &fileReader{df: df, file: f, src: &partReader{fs: f.fs, parts: f.parts, sums: f.sums}}
	r.refs.Store(1)
	if f.xxh3 != "" {
		r.src.hash = xxh3.New128()
	}
	if r.in, r.err = f.open(r.src); r.err == nil && !r.in.Schema().Equal(df.schema) {
		r.err = errors.New("it is not what was written: it has other columns")
	}
	if r.err != nil {
		r.finish()
	}
	return r
}

// fileReader reads a table in files. It implements [array.RecordReader].
type fileReader struct {
	refs atomic.Int64
	df   *DataFrame
	file *frameFile // nil at the end
	src  *partReader
	in   *rpc.ArrowReader // nil if it could not be opened
	err  error
}

func (r *fileReader) Schema() *arrow.Schema {
	if r.in != nil {
		return r.in.Schema()
	}
	return r.df.schema
}

func (r *fileReader) Record() arrow.Record {
	if r.in != nil {
		return r.in.Record()
	}
	return nil
}

func (r *fileReader) Err() error { return r.err }
func (r *fileReader) Retain()    { r.refs.Add(1) }

func (r *fileReader) Release() {
	if r.refs.Add(-1) == 0 {
		r.finish()
		if r.in != nil {
			r.in.Release()
		}
	}
}

func (r *fileReader) Next() bool {
	if r.file == nil || r.err != nil {
		return false
	}
	if r.in.Next() {
		return true
	}
	r.err = r.in.Err()
	if r.err == nil {
		r.err = r.check()
	}
	r.finish()
	return false
}

// check compares what was read with what was written.
func (r *fileReader) check() error {
	rest, err := io.Copy(io.Discard, r.src) // behind the end of the stream there is nothing
	if err != nil {
		return err
	}
	switch {
	case rest > 0:
		err = fmt.Errorf("it is not what was written: %d bytes are behind its end", rest)
	case r.in.Rows() != r.file.rows || r.in.Batches() != r.file.batches:
		err = fmt.Errorf("it is not what was written: it has %d rows in %d batches, not %d in %d", r.in.Rows(), r.in.Batches(), r.file.rows, r.file.batches)
	case r.src.hash != nil && r.src.sum() != r.file.xxh3:
		err = fmt.Errorf("it is not what was written: its hash is %s, not %.64s", r.src.sum(), r.file.xxh3)
	}
	return err
}

// finish closes the file, and lets go of the table. It says where an error came
// up.
func (r *fileReader) finish() {
	if r.file == nil {
		return
	}
	if r.err != nil {
		r.err = fmt.Errorf("read table in %s: %w", filepath.Base(r.file.parts[0].path), r.err)
	}
	r.src.close()
	r.file = nil
	r.df.Release()
}

// readChunk is how much is read at once: what was read is hashed while it is still
// in the processor's cache.
const readChunk = 256 << 10

// partReader reads the parts of a stream, one file open at a time. It implements
// [rpc.ArrowBodyReader], so that a body is read into memory of its size, once.
type partReader struct {
	fs    FS
	mem   memory.Allocator
	parts []filePart // the first one is being read
	file  File       // nil until it is opened
	off   int64      // in file
	left  int64      // of all parts
	hash  *xxh3.Hasher128

	sums []string // of the parts; nil where they are not known
	part *xxh3.Hasher128
}

func (r *partReader) Read(p []byte) (int, error) {
	for len(r.parts) > 0 {
		if r.file == nil {
			if err := r.open(); err != nil {
				return 0, err
			}
		}
		part := r.parts[0]
		if r.off < part.size {
			n, err := r.file.ReadAt(p[:min(int64(len(p)), part.size-r.off, readChunk)], r.off)
			if n == 0 && err == io.EOF {
				err = fmt.Errorf("%s is not what was written: it ends at %d bytes", filepath.Base(part.path), r.off)
			}
			if n > 0 {
				err = nil
				r.off, r.left = r.off+int64(n), r.left-int64(n)
				if r.hash != nil {
					r.hash.Write(p[:n])
				}
				if r.sums != nil {
					r.part.Write(p[:n])
				}
			}
			return n, err
		}
		if err := r.checkPart(); err != nil {
			return 0, err
		}
		r.close()
		r.parts, r.off = r.parts[1:], 0
	}
	return 0, io.EOF
}

// checkPart compares the part that was read with its sum.
func (r *partReader) checkPart() error {
	if r.sums == nil {
		return nil
	}
	want := r.sums[0]
	r.sums = r.sums[1:]
	if got := sumOf(r.part); got != want {
		return fmt.Errorf("%s is not what was sent: its XXH3 hash is %s, not %.64s", filepath.Base(r.parts[0].path), got, want)
	}
	return nil
}

// open opens the first part, which must have the size that it had.
func (r *partReader) open() error {
	part := r.parts[0]
	file, err := openRegular(r.fs, part.path)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Size() != part.size {
		err = fmt.Errorf("%s is not what was written: it has %d bytes, not %d", filepath.Base(part.path), info.Size(), part.size)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	r.file = file
	if r.sums != nil {
		r.part = xxh3.New128()
	}
	return nil
}

// ReadArrowBody implements [rpc.ArrowBodyReader].
func (r *partReader) ReadArrowBody(n int64) (*memory.Buffer, error) {
	if n > r.left {
		return nil, io.ErrUnexpectedEOF
	}
	// Memory of its own for each: many a driver keeps a string of a batch that it
	// has let go, and a buffer that is used again would change it.
	buf := memory.NewResizableBuffer(r.mem)
	buf.Resize(int(n))
	if _, err := io.ReadFull(r, buf.Bytes()); err != nil {
		buf.Release()
		return nil, err
	}
	return buf, nil
}

func (r *partReader) sum() string { return sumOf(r.hash) }

func (r *partReader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// sumOf is the sum of a hash as [rpc.XXH3] writes it.
func sumOf(h *xxh3.Hasher128) string {
	b := h.Sum128().Bytes()
	return hex.EncodeToString(b[:])
}
