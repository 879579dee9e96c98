package remote

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

// Table is a table of this machine that steps may have as an input: one of
// [ExecutionContext].Tables. [Records], [RecordsFrom], [ArrowFile], [CSVFile] and
// [ParquetFile] make one. A table of files may serve any number of runs.
type Table struct {
	format TableFormat
	file   string // empty for records
	config map[string]any
	open   func(context.Context) (array.RecordReader, error)
}

// TableFormat says what a [Table] is made from.
type TableFormat string

// The formats.
const (
	FormatRecords TableFormat = "records" // an array.RecordReader
	FormatArrow   TableFormat = "arrow"   // a file in Arrow IPC
	FormatCSV     TableFormat = "csv"
	FormatParquet TableFormat = "parquet"
)

// tableDrivers are the drivers that make tables of files where a run happens.
// Their packages are not imported here: the worker has them or not.
var tableDrivers = [...]struct {
	format TableFormat
	driver string
}{
	{FormatCSV, "filesystem.csv_extractor"},
	{FormatParquet, "filesystem.parquet_extractor"},
}

func (f TableFormat) driver() string {
	for _, d := range tableDrivers {
		if d.format == f {
			return d.driver
		}
	}
	return ""
}

// Records is the table that r has left. It is read once, by the one run that it
// is for, and not released.
func Records(r array.RecordReader) Table {
	var used atomic.Bool
	return RecordsFrom(func(context.Context) (array.RecordReader, error) {
		if r == nil {
			return nil, errors.New("the reader is nil")
		}
		if used.Swap(true) {
			return nil, errors.New("its reader was read already; use RecordsFrom where a run may begin again")
		}
		r.Retain()
		return r, nil
	})
}

// RecordsFrom is the table of a reader that open returns. It is called by every
// run, and by one that begins again; the reader is released.
func RecordsFrom(open func(ctx context.Context) (array.RecordReader, error)) Table {
	return Table{format: FormatRecords, open: open}
}

// ArrowFile is a file in Arrow IPC: a stream or a file with a footer, with or
// without compression. A relative name starts at [ExecutionContext].BasePath.
func ArrowFile(name string) Table { return Table{format: FormatArrow, file: name} }

// CSVFile is a CSV file. It is read where the run happens, by the driver
// filesystem.csv_extractor, which must be registered there (package
// worker/drivers/csv). config is that driver's, without a path; nil means its
// defaults.
func CSVFile(name string, config map[string]any) Table {
	return Table{format: FormatCSV, file: name, config: config}
}

// ParquetFile is a Parquet file. It is read where the run happens, by the driver
// filesystem.parquet_extractor, which must be registered there (package
// worker/drivers/parquet). config is that driver's, without a path; nil means its
// defaults.
func ParquetFile(name string, config map[string]any) Table {
	return Table{format: FormatParquet, file: name, config: config}
}

// PreparedTable is a table as a [PreparedRun] names it: its content is not part
// of that.
type PreparedTable struct {
	Name   string         `json:"name"`
	Format TableFormat    `json:"format"`
	Config map[string]any `json:"config,omitempty"` // of the driver that reads it
}

// prepareTables checks the tables of a run against the inputs that steps have.
func (e *engine) prepareTables(p *PreparedRun, ec *ExecutionContext) error {
	used := make(map[string]bool)
	for _, s := range p.Plan.Steps {
		for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
			table := s.Inputs[name].Table
			if table == "" {
				continue
			}
			if _, ok := ec.Tables[table]; !ok {
				return &ManifestError{StepID: s.ID, Reason: fmt.Sprintf("input %q is the table %q, which ExecutionContext.Tables does not have", name, table)}
			}
			used[table] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ec.Tables)) {
		t := ec.Tables[name]
		fail := func(format string, args ...any) error {
			return fmt.Errorf("remote: prepare: %w: ExecutionContext.Tables[%q] %s", ErrInvalid, name, fmt.Sprintf(format, args...))
		}
		switch {
		case t.format == "" || t.format == FormatRecords && t.open == nil:
			return fail("is empty; make it by Records, RecordsFrom, ArrowFile, CSVFile or ParquetFile")
		case !validName(name):
			return fail("has a name that cannot be an input's")
		case !used[name]:
			return fail("is no step's input; name it in a step's inputs, as {%q: {\"table\": %q}}", "df", name)
		case t.format != FormatRecords && t.file == "":
			return fail("names no file")
		case t.config["path"] != nil:
			return fail("has a path in its config, beside that of the file")
		}
		if t.format != FormatRecords {
			info, err := os.Stat(hostPath(ec, t.file))
			if err != nil {
				return fmt.Errorf("remote: prepare: %w: table %q: file %s: %w", ErrInvalid, name, t.file, cause(err))
			}
			if !info.Mode().IsRegular() {
				return fail("is %s, which is not a regular file", t.file)
			}
		}
		if driver := t.format.driver(); driver != "" && e.cfg.Drivers != nil && e.cfg.WorkerPath == "" {
			if _, err := e.cfg.Drivers.Lookup(driver); err != nil {
				return fmt.Errorf("remote: prepare: table %q is read by a driver: %w", name, err)
			}
		}
		if _, err := json.Marshal(t.config); err != nil {
			return fail("has a config that cannot be written as JSON: %v", err)
		}
		p.Tables = append(p.Tables, PreparedTable{Name: name, Format: t.format, Config: t.config})
	}
	return nil
}

// checkTables refuses a run that was prepared with other tables.
func (e *engine) checkTables(p *PreparedRun, ec *ExecutionContext) error {
	again := &PreparedRun{Plan: p.Plan}
	if err := e.prepareTables(again, ec); err != nil {
		return err
	}
	if !sameJSON(again.Tables, p.Tables) {
		return fmt.Errorf("remote: execute: %w: the run was prepared with other tables than ExecutionContext.Tables has; prepare it again", ErrInvalid)
	}
	return nil
}

// tableDriverNames are the drivers that read a run's tables.
func (p *PreparedRun) tableDriverNames() (names []string) {
	for _, t := range p.Tables {
		if driver := t.Format.driver(); driver != "" {
			names = append(names, driver)
		}
	}
	return names
}

// Sizes of what is sent of tables: this machine holds no more than all parts
// that are on their way, and one that is being filled.
const (
	tablePart   = 16 << 20
	partsAtOnce = 3
	partTries   = 3
)

// sentTables are tables that are where a run happens.
type sentTables struct {
	refs  map[string]rpc.TableRef
	parts int
	bytes int64

	sentParts int64 // that were not there
	sentBytes int64
}

// sendTables sends the tables of a run to files below dir that are named by
// their content, but for those that are there. join joins paths there.
func (e *engine) sendTables(ctx context.Context, sb Sandbox, p *PreparedRun, ec *ExecutionContext, dir string, join func(...string) string) (*sentTables, error) {
	sent := &sentTables{refs: make(map[string]rpc.TableRef)}
	sender := &partSender{sandbox: sb, dir: dir, join: join, size: cmp.Or(e.partSize, tablePart)}
	for _, t := range p.Tables {
		moved := meterOf(ctx).transfer()
		ref, err := sender.table(ctx, ec, t.Name, ec.Tables[t.Name])
		moved()
		if err != nil {
			return nil, fmt.Errorf("remote: table %q: %w", t.Name, err)
		}
		sent.refs[t.Name] = ref
		sent.parts += len(ref.Parts)
		sent.bytes += ref.Bytes
	}
	sent.sentParts, sent.sentBytes = sender.parts.Load(), sender.bytes.Load()
	return sent, nil
}

// tableSums are the files of tables that are to be verified before a driver reads
// them. Those of a stream are whenever it is read.
func tableSums(refs map[string]rpc.TableRef) []rpc.FileSum {
	var sums []rpc.FileSum
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		if refs[name].Driver != "" {
			sums = append(sums, refs[name].Parts...)
		}
	}
	return sums
}

// tell notes that the tables are there.
func (t *sentTables) tell(s *session, took time.Duration) {
	if len(t.refs) > 0 {
		s.event("tables_uploaded", map[string]any{
			"tables": len(t.refs), "parts": t.parts, "parts_sent": t.sentParts, "bytes": t.bytes, "bytes_sent": t.sentBytes, "duration_ms": milliseconds(took),
		})
	}
}

// partSender sends tables, in parts.
type partSender struct {
	sandbox Sandbox
	dir     string
	join    func(...string) string
	size    int // of a part

	parts, bytes atomic.Int64 // that were sent
}

func (s *partSender) table(ctx context.Context, ec *ExecutionContext, name string, t Table) (rpc.TableRef, error) {
	out := s.writer(ctx)
	ref, err := t.write(ctx, ec, out)
	switch {
	case err == nil:
		err = out.close()
	case errors.Is(err, errPartFailed):
		err = out.abandon() // says why
	default:
		_ = out.abandon()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if err != nil {
		return rpc.TableRef{}, err
	}
	ref.Parts, ref.Bytes = out.sums, out.total
	if driver := t.format.driver(); driver != "" {
		if t.config != nil {
			if ref.Config, err = json.Marshal(t.config); err != nil {
				return rpc.TableRef{}, err
			}
		}
		ref.Driver, ref.Path = driver, filepath.Base(t.file)
	}
	return ref, nil
}

// write writes the table as it is to be sent: a file for a driver as it is, any
// other as one Arrow stream.
func (t Table) write(ctx context.Context, ec *ExecutionContext, w io.Writer) (rpc.TableRef, error) {
	if t.format == FormatRecords {
		r, err := t.open(ctx)
		if err == nil && r == nil {
			err = errors.New("there is no reader")
		}
		if err != nil {
			return rpc.TableRef{}, err
		}
		defer r.Release()
		return writeRecords(ctx, r, w)
	}
	in := &input{file: hostPath(ec, t.file)}
	f, err := in.open()
	if err != nil {
		return rpc.TableRef{}, fmt.Errorf("file %s: %w", t.file, cause(err))
	}
	defer f.Close()
	if t.format != FormatArrow {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, &contextReader{ctx, f}, make([]byte, 1<<20))
		return rpc.TableRef{}, err
	}
	stream, err := arrowStream(f)
	if err != nil {
		return rpc.TableRef{}, fmt.Errorf("file %s: %w", t.file, err)
	}
	info, err := f.Stat()
	if err != nil {
		return rpc.TableRef{}, err
	}
	r, err := rpc.NewArrowReader(stream, ownLimits(info.Size()), nil)
	if err != nil {
		return rpc.TableRef{}, fmt.Errorf("file %s: %w", t.file, err)
	}
	defer r.Release()
	ref, err := writeRecords(ctx, r, w)
	if err != nil && r.Err() != nil {
		err = fmt.Errorf("file %s: %w", t.file, err)
	}
	return ref, err
}

// ownLimits are those of a file that the user vouches for.
func ownLimits(size int64) *rpc.ArrowLimits {
	return &rpc.ArrowLimits{MaxMetadataBytes: 64<<20 + size, MaxBodyBytes: 1<<30 + 8*size, MaxBatchRows: 1 << 40, MaxFields: 1 << 20}
}

// writeRecords writes what a reader has as one Arrow stream.
func writeRecords(ctx context.Context, r array.RecordReader, w io.Writer) (ref rpc.TableRef, err error) {
	out := rpc.NewArrowWriter(w, r.Schema(), memory.DefaultAllocator)
	for err == nil && r.Next() {
		if err = context.Cause(ctx); err == nil {
			err = out.Write(r.Record())
		}
	}
	if readErr := r.Err(); err == nil && readErr != nil {
		err = fmt.Errorf("read: %w", readErr)
	}
	err = errors.Join(err, out.Close())
	return rpc.TableRef{Rows: out.Rows(), Batches: out.Batches()}, err
}

// arrowStream is the stream in a file in Arrow IPC: the file, or what is between
// its magic and its footer.
func arrowStream(f *os.File) (io.Reader, error) {
	const magic = "ARROW1"
	head := make([]byte, 8)
	if _, err := io.ReadFull(f, head); err != nil || string(head[:len(magic)]) != magic {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	tail := make([]byte, 4+len(magic))
	if size < int64(len(head)+len(tail)) {
		return nil, fmt.Errorf("%w: it has no footer", rpc.ErrArrowCorrupt)
	}
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	footer := int64(binary.LittleEndian.Uint32(tail))
	end := size - int64(len(tail)) - footer
	if string(tail[4:]) != magic || end < int64(len(head)) {
		return nil, fmt.Errorf("%w: it has no footer", rpc.ErrArrowCorrupt)
	}
	// Not every writer marks the end of the stream, which the footer says, too.
	const mark = "\xff\xff\xff\xff\x00\x00\x00\x00"
	return io.MultiReader(io.NewSectionReader(f, int64(len(head)), end-int64(len(head))), bytes.NewReader([]byte(mark))), nil
}

// errPartFailed: the part that was sent says why.
var errPartFailed = errors.New("a part was not sent")

// partWriter sends what is written to it in parts, several at once.
type partWriter struct {
	*partSender
	ctx    context.Context
	group  *errgroup.Group
	cancel context.CancelFunc
	free   chan []byte // buffers, as many as there may be
	buf    []byte      // the part that is being filled
	total  int64

	mu   sync.Mutex
	sums []rpc.FileSum
}

func (s *partSender) writer(ctx context.Context) *partWriter {
	w := &partWriter{partSender: s, free: make(chan []byte, partsAtOnce+1)}
	ctx, w.cancel = context.WithCancel(ctx)
	w.group, w.ctx = errgroup.WithContext(ctx)
	for range partsAtOnce + 1 {
		w.free <- nil // made when they are needed
	}
	return w
}

// Write implements io.Writer.
func (w *partWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if len(w.buf) == 0 {
			select {
			case w.buf = <-w.free:
			case <-w.ctx.Done():
				return total - len(p), errPartFailed
			}
		}
		n := min(len(p), w.size-len(w.buf))
		if need := len(w.buf) + n; need > cap(w.buf) { // not beyond the part's size, as append would
			buf := make([]byte, len(w.buf), min(w.size, max(need, 4*cap(w.buf), 64<<10)))
			copy(buf, w.buf)
			w.buf = buf
		}
		w.buf, p = append(w.buf, p[:n]...), p[n:]
		if len(w.buf) == w.size {
			w.flush()
		}
	}
	return total, nil
}

func (w *partWriter) flush() {
	part := w.buf
	w.buf = nil
	w.total += int64(len(part))
	w.mu.Lock()
	i := len(w.sums)
	w.sums = append(w.sums, rpc.FileSum{})
	w.mu.Unlock()
	w.group.Go(func() error {
		sum, err := w.send(w.ctx, part)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.sums[i] = sum
		w.mu.Unlock()
		w.free <- part[:0]
		return nil
	})
}

// abandon breaks off what is being sent, and says what has failed of it before.
func (w *partWriter) abandon() error {
	failed := w.ctx.Err() != nil
	w.cancel()
	if err := w.group.Wait(); failed {
		return err
	}
	return nil
}

// close sends what is left, and waits for all parts.
func (w *partWriter) close() error {
	defer w.cancel()
	if len(w.buf) == 0 && w.total == 0 { // one part at least, if an empty one
		w.buf = <-w.free // there is no other part that could have them all
		w.flush()
	} else if len(w.buf) > 0 {
		w.flush()
	}
	return w.group.Wait()
}

// send sends one part, unless it is there.
func (s *partSender) send(ctx context.Context, part []byte) (rpc.FileSum, error) {
	size, xxh3, err := rpc.XXH3(bytes.NewReader(part))
	if err != nil {
		return rpc.FileSum{}, err
	}
	sum := rpc.FileSum{Path: s.join(s.dir, fmt.Sprintf("%s-%d", xxh3, size)), Size: size, XXH3: xxh3}
	for try := 1; ; try++ {
		if there, err := s.sandbox.Size(ctx, sum.Path); err == nil && there == size {
			return sum, nil
		}
		err := s.sandbox.Upload(ctx, sum.Path, bytes.NewReader(part), size)
		if err == nil {
			countSent(ctx, size)
			s.parts.Add(1)
			s.bytes.Add(size)
			return sum, nil
		}
		if try == partTries || ctx.Err() != nil || errors.Is(err, ErrSandboxGone) {
			return rpc.FileSum{}, fmt.Errorf("upload: %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond << try):
		case <-ctx.Done():
			return rpc.FileSum{}, context.Cause(ctx)
		}
	}
}

// tablesFile has, of a run that another process can go on with, where its tables
// are: what a reader of records had cannot be read again.
const tablesFile = "tables.json"

// saveTables keeps where the tables are for a successor.
func (s *session) saveTables(tables *sentTables) error {
	if s.check == nil || len(tables.refs) == 0 {
		return nil
	}
	if err := writeJSON(s.path(tablesFile), tables.refs); err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	return nil
}

// savedTables returns what a host before this one has kept.
func savedTables(dir string, p *PreparedRun) (map[string]rpc.TableRef, error) {
	if len(p.Tables) == 0 {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, tablesFile))
	if err != nil {
		return nil, fmt.Errorf("remote: attach: %s: %w", tablesFile, cause(err))
	}
	refs := make(map[string]rpc.TableRef)
	if err := json.Unmarshal(b, &refs); err != nil {
		return nil, fmt.Errorf("remote: attach: %w: %s: %w", ErrInvalid, tablesFile, err)
	}
	return refs, nil
}

// place puts the tables where a run happens.
func (t *sentTables) place(pl *place, s *session, verify bool) error {
	pl.tables = t.refs
	if verify {
		pl.sent = append(pl.sent, tableSums(t.refs)...)
	}
	return s.saveTables(t)
}

// tablesDir is where tables are in a sandbox: by their content, so that every
// run of it finds them.
func tablesDir(root string) string { return path.Join(root, "tables") }
