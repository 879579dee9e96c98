package worker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/zeebo/xxh3"

	"github.com/osiris-pipelines/remote/rpc"
)

// outputFile is the name of a step's i-th output in its folder below
// outputsDir. The output's key may not be a name for a file.
func outputFile(i int) string { return strconv.Itoa(i) + ".arrow" }

// spillWriter writes a table to a file: one Arrow IPC stream, not compressed.
// Codecs are slower than the disks of sandboxes (see BenchmarkSpill), and what
// is not compressed can be mapped, and sent as it is.
type spillWriter struct {
	fs   FS
	mem  memory.Allocator
	name string
	file File
	hash *xxh3.Hasher128
	out  *rpc.ArrowWriter
}

func newSpillWriter(fsys FS, name string, schema *arrow.Schema, mem memory.Allocator) (*spillWriter, error) {
	f, err := fsys.Create(name)
	if err != nil {
		return nil, err
	}
	w := &spillWriter{fs: fsys, mem: mem, name: name, file: f, hash: xxh3.New128()}
	w.out = rpc.NewArrowWriter(io.MultiWriter(f, w.hash), schema, mem)
	return w, nil
}

// close ends the stream and says what is in the file. After an error the file is
// gone.
func (w *spillWriter) close() (frameFile, error) {
	if err := errors.Join(w.out.Close(), w.file.Close()); err != nil {
		return frameFile{}, errors.Join(err, w.fs.RemoveAll(w.name))
	}
	return frameFile{
		fs: w.fs, mem: w.mem, parts: []filePart{{w.name, w.out.Bytes()}},
		rows: w.out.Rows(), batches: w.out.Batches(), xxh3: sumOf(w.hash),
	}, nil
}

// abort removes the file.
func (w *spillWriter) abort() error {
	_ = w.out.Close() // it has failed, or is not wanted any more
	return errors.Join(w.file.Close(), w.fs.RemoveAll(w.name))
}

// writeFrame writes a table to a file.
func writeFrame(fsys FS, name string, df *DataFrame, mem memory.Allocator) (frameFile, error) {
	w, err := newSpillWriter(fsys, name, df.Schema(), mem)
	if err != nil {
		return frameFile{}, err
	}
	r := df.Reader()
	defer r.Release()
	for err == nil && r.Next() {
		err = w.out.Write(r.Record())
	}
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return frameFile{}, errors.Join(err, w.abort())
	}
	return w.close()
}

// gather reads a step's i-th output to its end and holds it: in memory, if the
// budget has room for it, else in a file of the run's folder, from the first
// batch on. It does not release r.
func (s *stepRun) gather(key string, i int, r array.RecordReader) (df *DataFrame, err error) {
	g := gathering{s: s, key: key, dir: s.w.path(outputsDir, s.p.StepID), name: outputFile(i), fetched: slices.Contains(s.p.Fetch, key)}
	return g.gather(r)
}

func (g *gathering) gather(r array.RecordReader) (df *DataFrame, err error) {
	s := g.s
	g.held.budget = s.w.budget
	defer func() {
		if df == nil { // also when r panics
			err = errors.Join(err, g.abort())
		}
	}()
	for r.Next() {
		if !s.heard() {
			return nil, errStopping // the step was answered without its driver
		}
		if err := g.add(r.Record()); err != nil {
			return nil, err
		}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("read output: %w", err)
	}
	if g.spill == nil && g.fetched {
		if err := g.begin(r.Schema()); err != nil {
			return nil, g.failed(err)
		}
	}
	if g.spill == nil {
		df = &DataFrame{schema: r.Schema(), rows: g.rows, bytes: g.bytes, batches: g.batches, drop: g.held.release}
		df.refs.Store(1)
		return df, nil
	}
	return g.close()
}

// gathering is an output that is being read.
type gathering struct {
	s    *stepRun
	key  string
	dir  string // of its file
	name string // of its file

	fetched bool // the host may fetch it: it goes to its file in any case, and stays there

	rows    int64
	bytes   int64          // that the batches took in memory, or would
	batches []arrow.Record // in memory
	held    heldMemory     // by batches
	spill   *spillWriter   // nil while everything is in memory

	checked    bool
	unwritable error // why it cannot go to disk
}

// add takes a batch in.
func (g *gathering) add(rec arrow.Record) error {
	g.rows += rec.NumRows()
	if g.spill == nil && !g.fetched && (g.held.take(rec, false) || g.stays(rec)) {
		g.bytes = g.held.bytes
		rec.Retain()
		g.batches = append(g.batches, rec)
		return nil
	}
	if g.spill == nil {
		if err := g.begin(rec.Schema()); err != nil {
			return g.failed(err)
		}
	}
	g.bytes += recordBytes(rec)
	if err := g.spill.out.Write(rec); err != nil {
		return g.failed(err)
	}
	return nil
}

// stays reports whether a batch must be held in memory although there is no
// room: Arrow's streams have no place for its types.
func (g *gathering) stays(rec arrow.Record) bool {
	if !g.checked {
		g.checked = true
		// A writer that has nothing to write only finds out whether it could.
		g.unwritable = rpc.NewArrowWriter(io.Discard, rec.Schema(), g.s.w.opts.Memory).Close()
		if g.unwritable != nil {
			g.s.w.log(rpc.Log{Level: slog.LevelWarn.String(), StepID: g.s.p.StepID, Message: fmt.Sprintf(
				"output %q does not fit into the memory budget and stays in memory all the same: %v", g.key, g.unwritable)}, false)
		}
	}
	return g.unwritable != nil && g.held.take(rec, true)
}

// begin puts what was gathered into a file.
func (g *gathering) begin(schema *arrow.Schema) error {
	w := g.s.w
	if err := w.opts.FS.MkdirAll(g.dir); err != nil {
		return err
	}
	var err error
	if g.spill, err = newSpillWriter(w.opts.FS, filepath.Join(g.dir, g.name), schema, w.opts.Memory); err != nil {
		return err
	}
	for _, rec := range g.batches {
		if err := g.spill.out.Write(rec); err != nil {
			return err
		}
	}
	g.free()
	return nil
}

// free gives back the memory.
func (g *gathering) free() {
	g.held.release()
	for _, rec := range g.batches {
		rec.Release()
	}
	g.batches = nil
}

// abort leaves nothing behind.
func (g *gathering) abort() error {
	g.free()
	if g.spill == nil {
		return nil
	}
	spill := g.spill
	g.spill = nil
	return spill.abort()
}

// close makes a table of the file.
func (g *gathering) close() (*DataFrame, error) {
	w := g.s.w
	spill := g.spill
	g.spill = nil
	f, err := spill.close()
	if err != nil {
		return nil, g.failed(err)
	}
	f.owned = new(atomic.Bool)
	f.owned.Store(!g.fetched)
	remove := func() {
		if f.owned.Load() {
			_ = f.fs.RemoveAll(spill.name) // what cannot be removed goes with the run's folder
		}
	}
	df, err := openDataFrame(f, f.size(), remove) // who reads all of it has that much
	if err != nil {
		return nil, errors.Join(g.failed(err), f.fs.RemoveAll(spill.name))
	}
	event := "output_spilled"
	if g.fetched {
		event = "output_kept"
	}
	g.s.Event(event, map[string]any{
		"key": g.key, "rows": f.rows, "batches": f.batches, "bytes": f.size(), "memory_bytes": g.bytes,
		"path": w.relative(spill.name),
	})
	return df, nil
}

// failed says what was to be done and could not be.
func (g *gathering) failed(err error) error {
	w := g.s.w
	e := &spillError{key: g.key, dir: w.path(outputsDir), fetched: g.fetched, err: err}
	e.budget, e.used = w.budget.state()
	if _, ok := w.opts.FS.(OSFS); ok {
		e.free, e.total, e.known = diskSpace(w.opts.Dir)
	}
	return e
}

// relative returns the slash-separated path of a file in the run's folder.
func (w *ProxyWorker) relative(name string) string {
	rel, err := filepath.Rel(w.opts.Dir, name)
	if err != nil {
		return path.Base(filepath.ToSlash(name))
	}
	return filepath.ToSlash(rel)
}

// spillError: an output has no place on disk, where it has to be.
type spillError struct {
	key          string
	fetched      bool // since the host may fetch it
	budget, used int64
	dir          string
	free, total  int64 // of the disk, where that is known
	known        bool
	err          error
}

func (e *spillError) Error() string {
	disk := e.dir
	if e.known {
		disk = fmt.Sprintf("%s: %s of %s are free", e.dir, byteSize(e.free), byteSize(e.total))
	}
	if e.fetched {
		return fmt.Sprintf("output %q, which the host may fetch, could not be written to disk (%s): %v", e.key, disk, e.err)
	}
	return fmt.Sprintf("output %q does not fit into the memory budget (%s, of which %s are in use) and could not be written to disk (%s): %v",
		e.key, byteSize(e.budget), byteSize(e.used), disk, e.err)
}

func (e *spillError) Unwrap() error { return e.err }
