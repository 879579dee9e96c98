package python

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// Tables go to and from a child as files, each an Arrow IPC stream, which the
// reader maps into memory. A large table is cut by rows into several files, so
// that they are written side by side: the kernel lets one file be written by one
// thread at a time.
const (
	partBytes = 32 << 20 // of a file, at least, where a table is cut
	maxParts  = 4        // as in the bridge
)

// handover has the files of a pool. It is safe for concurrent use.
type handover struct {
	dir    string
	unique string // in the names of its files
	next   atomic.Int64

	mu     sync.Mutex
	tables map[*arrow.Schema]*fileTable // what children have put out, and is still in use
}

func newHandover(dir string) *handover {
	// A table that outlives its pool must not remove a file of the next one.
	return &handover{dir: dir, unique: rand.Text()[:8], tables: make(map[*arrow.Schema]*fileTable)}
}

// name returns the beginning of the names of files that nobody else has.
func (h *handover) name(kind string) string {
	return filepath.Join(h.dir, fmt.Sprintf("%s-%s-%d-", kind, h.unique, h.next.Add(1)))
}

// inputFiles are the files of a step's inputs.
type inputFiles struct {
	byName map[string][]string
	made   []string // to be removed after the step
}

func (f *inputFiles) remove() {
	for _, name := range f.made {
		os.Remove(name)
	}
}

// put writes the inputs of a step to files, but for those that are in files
// already. Whoever calls it removes them, also after an error.
func (h *handover) put(ctx context.Context, step *worker.Step) (*inputFiles, error) {
	inputs := &inputFiles{byName: make(map[string][]string, len(step.Inputs))}
	done := make(map[*worker.DataFrame][]string, len(step.Inputs))
	for _, name := range step.InputNames() {
		df := step.Inputs[name]
		parts, ok := done[df]
		if !ok {
			parts = h.found(df)
		}
		if files := df.Files(); !ok && len(files) == 1 { // it is what a child maps
			if err := intact(ctx, df); err != nil {
				return inputs, fmt.Errorf("hand over input %q: %w", name, err)
			}
			parts = files
		}
		if parts == nil {
			var err error
			parts, err = h.write(ctx, df, step.Memory())
			inputs.made = append(inputs.made, parts...)
			if err != nil {
				return inputs, fmt.Errorf("hand over input %q: %w", name, err)
			}
		}
		done[df], inputs.byName[name] = parts, parts
	}
	return inputs, nil
}

// write writes a table to new files and returns their names, also after an
// error.
func (h *handover) write(ctx context.Context, df *worker.DataFrame, mem memory.Allocator) ([]string, error) {
	var records []arrow.Record
	defer func() {
		for _, r := range records {
			r.Release()
		}
	}()
	var size int64
	r := df.Reader()
	defer r.Release()
	if len(df.Files()) > 0 { // batch by batch: there may be no room for all of them
		name := h.name("in") + "0"
		return []string{name}, copyTable(ctx, name, r, mem)
	}
	for r.Next() {
		rec := r.Record()
		rec.Retain()
		records = append(records, rec)
		for _, c := range rec.Columns() {
			size += dataSize(c.Data())
		}
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	parts := min(maxParts, runtime.GOMAXPROCS(0), int(size/partBytes))
	prefix := h.name("in")
	var names []string
	g, ctx := errgroup.WithContext(ctx)
	for i, part := range cutRecords(records, df.Rows(), max(parts, 1)) {
		name := fmt.Sprintf("%s%d", prefix, i)
		names = append(names, name)
		g.Go(func() error {
			defer releaseAll(part)
			return writeFile(ctx, name, df.Schema(), part, mem)
		})
	}
	return names, g.Wait()
}

// dataSize is how many bytes an array refers to, about.
func dataSize(d arrow.ArrayData) (n int64) {
	for _, b := range d.Buffers() {
		if b != nil {
			n += int64(b.Len())
		}
	}
	for _, c := range d.Children() {
		n += dataSize(c)
	}
	return n
}

func releaseAll(records []arrow.Record) {
	for _, r := range records {
		r.Release()
	}
}

// cutRecords cuts records into parts of the same number of rows, about. The
// caller releases them.
func cutRecords(records []arrow.Record, rows int64, parts int) [][]arrow.Record {
	out := make([][]arrow.Record, 1, parts)
	size := (rows + int64(parts) - 1) / int64(parts)
	room := size
	for _, rec := range records {
		for from := int64(0); ; {
			left := rec.NumRows() - from
			if left > 0 && room == 0 && len(out) < parts {
				out, room = append(out, nil), size
			}
			take := left
			if len(out) < parts {
				take = min(left, room)
			}
			out[len(out)-1] = append(out[len(out)-1], rec.NewSlice(from, from+take))
			room -= min(room, take)
			if from += take; from == rec.NumRows() {
				break
			}
		}
	}
	return out
}

// intact finds out whether a table in a file is what was written. A child maps the
// file and has nothing to compare it with: a message that has become the mark of the
// stream's end would leave it a shorter table.
func intact(ctx context.Context, df *worker.DataFrame) error {
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return r.Err()
}

// copyTable writes what r reads to a new file.
func copyTable(ctx context.Context, name string, r array.RecordReader, mem memory.Allocator) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := rpc.NewArrowWriter(f, r.Schema(), mem)
	for err == nil && r.Next() {
		if err = context.Cause(ctx); err == nil {
			err = w.Write(r.Record())
		}
	}
	return errors.Join(err, r.Err(), w.Close(), f.Close())
}

func writeFile(ctx context.Context, name string, schema *arrow.Schema, records []arrow.Record, mem memory.Allocator) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := rpc.NewArrowWriter(f, schema, mem)
	for _, rec := range records {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			err = w.Write(rec)
		}
	}
	return errors.Join(err, w.Close(), f.Close())
}

// fileTable is a table that a child has put out, in its files.
type fileTable struct {
	files   []string
	records []arrow.Record // compared, not kept
	open    atomic.Int64   // files that are still mapped
}

// found returns the files of a table that has been put out by a child and is as
// it was, or nil.
func (h *handover) found(df *worker.DataFrame) []string {
	h.mu.Lock()
	t := h.tables[df.Schema()]
	h.mu.Unlock()
	if t == nil {
		return nil
	}
	r := df.Reader()
	defer r.Release()
	n := 0
	for ; r.Next(); n++ {
		if n >= len(t.records) || r.Record() != t.records[n] {
			return nil
		}
	}
	if n != len(t.records) {
		return nil
	}
	return t.files
}

// mappedFile is a file in memory, read only. It counts the buffers that are parts
// of it, and is unmapped and removed with the last one.
type mappedFile struct {
	data    []byte
	refs    atomic.Int64
	dropped func()
}

// Allocate implements [memory.Allocator] for buffers that are never made larger.
func (m *mappedFile) Allocate(int) []byte { panic("python: a mapped file allocates nothing") }

// Reallocate implements [memory.Allocator], as Allocate.
func (m *mappedFile) Reallocate(int, []byte) []byte {
	panic("python: a mapped file allocates nothing")
}

// Free implements [memory.Allocator]: a buffer is not used any more.
func (m *mappedFile) Free([]byte) { m.release() }

func (m *mappedFile) release() {
	if m.refs.Add(-1) == 0 {
		unmapFile(m.data)
		m.data = nil
		m.dropped()
	}
}

// mappedReader reads a mapped file from its beginning. It implements
// [rpc.ArrowBodyReader].
type mappedReader struct {
	file *mappedFile
	off  int
}

func (r *mappedReader) Read(p []byte) (int, error) {
	n := copy(p, r.file.data[r.off:])
	r.off += n
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *mappedReader) ReadArrowBody(n int64) (*memory.Buffer, error) {
	switch {
	case n > int64(len(r.file.data)-r.off):
		return nil, io.ErrUnexpectedEOF
	case r.off%8 != 0:
		return nil, fmt.Errorf("%w: body is not aligned to 8 bytes", rpc.ErrArrowCorrupt)
	}
	end := r.off + int(n)
	r.file.refs.Add(1)
	buf := memory.NewBufferWithAllocator(r.file.data[r.off:end:end], r.file)
	r.off = end
	return buf, nil
}

// tableReader reads the files of one table, one after another. It implements
// [array.RecordReader].
type tableReader struct {
	refs    atomic.Int64
	h       *handover
	table   *fileTable
	parts   []*rpc.ArrowReader // those that are not read to their ends
	files   []*mappedFile      // of parts
	schema  *arrow.Schema
	rows    int64 // that the child has written
	records []arrow.Record
	record  arrow.Record
	err     error
}

var _ array.RecordReader = (*tableReader)(nil)

// open maps the files of a table with that many rows. They are removed when the
// last batch is released; after an error, at once.
func (h *handover) open(files []string, rows int64, mem memory.Allocator) (_ *tableReader, err error) {
	if len(files) == 0 {
		return nil, errors.New("no files")
	}
	r := &tableReader{h: h, table: &fileTable{files: files}, rows: rows}
	r.refs.Store(1)
	r.table.open.Store(int64(len(files)))
	defer func() {
		if err != nil {
			r.Release()
		}
	}()
	for i, name := range files {
		file, err := h.mapFile(name, r)
		if err != nil {
			for _, rest := range files[i:] {
				os.Remove(rest)
			}
			return nil, err
		}
		r.files = append(r.files, file)
		limits := rpc.ArrowLimits{
			MaxMetadataBytes: math.MaxInt32,
			MaxBodyBytes:     1 << 40,          // the file is the limit
			MaxBatchRows:     max(rows, 1<<26), // it is for values of dictionaries, too
			MaxFields:        1 << 20,
		}
		part, err := rpc.NewPlainArrowReader(&mappedReader{file: file}, &limits, mem)
		if err != nil {
			return nil, err
		}
		r.parts = append(r.parts, part)
		if i == 0 {
			r.schema = part.Schema()
		} else if !part.Schema().Equal(r.schema) {
			return nil, fmt.Errorf("%w: its files have different columns", rpc.ErrArrowCorrupt)
		}
	}
	return r, nil
}

func (h *handover) mapFile(name string, r *tableReader) (*mappedFile, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := mapFile(f)
	if err != nil {
		return nil, err
	}
	file := &mappedFile{data: data}
	file.refs.Store(1) // the reader's
	schema := &r.schema
	table := r.table
	file.dropped = func() {
		os.Remove(name)
		if table.open.Add(-1) == 0 {
			h.mu.Lock()
			delete(h.tables, *schema)
			h.mu.Unlock()
		}
	}
	return file, nil
}

func (r *tableReader) Schema() *arrow.Schema { return r.schema }
func (r *tableReader) Record() arrow.Record  { return r.record }
func (r *tableReader) Err() error            { return r.err }
func (r *tableReader) Retain()               { r.refs.Add(1) }

func (r *tableReader) Release() {
	if r.refs.Add(-1) == 0 {
		r.drop()
		for len(r.files) > 0 {
			r.shift()
		}
	}
}

func (r *tableReader) drop() {
	if r.record != nil {
		r.record.Release()
		r.record = nil
	}
}

// shift is done with the first part.
func (r *tableReader) shift() {
	if len(r.parts) > 0 {
		r.parts[0].Release()
		r.parts = r.parts[1:]
	}
	r.files[0].release()
	r.files = r.files[1:]
}

func (r *tableReader) Next() bool {
	r.drop()
	for r.err == nil && len(r.parts) > 0 {
		part := r.parts[0]
		if part.Next() {
			r.record = part.Record()
			r.record.Retain()
			r.rows -= r.record.NumRows()
			r.records = append(r.records, r.record)
			return true
		}
		if r.err = part.Err(); r.err != nil {
			return false
		}
		r.shift()
		if len(r.parts) > 0 {
			continue
		}
		if r.rows != 0 {
			r.err = fmt.Errorf("%w: %d rows are missing", rpc.ErrArrowCorrupt, r.rows)
			return false
		}
		// Whoever holds all of it may hand it to a child again as it is.
		r.h.mu.Lock()
		if r.table.open.Load() == int64(len(r.table.files)) {
			r.table.records = r.records
			r.h.tables[r.schema] = r.table
		}
		r.h.mu.Unlock()
	}
	return false
}
