package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"

	"github.com/osiris-pipelines/remote/rpc"
)

// tablesDir has what drivers have made of the host's tables.
const tablesDir = "tables"

// hostTable is a table that the host has sent.
type hostTable struct {
	ref  rpc.TableRef
	file string // for what a driver makes of it, should it not fit into memory

	making chan struct{} // has an element while it is read by a driver
	df     *DataFrame    // nil before that; guarded by making
}

// setTables takes in what the host has sent.
func (w *ProxyWorker) setTables(refs map[string]rpc.TableRef) {
	w.tables = make(map[string]*hostTable, len(refs))
	for i, name := range slices.Sorted(maps.Keys(refs)) {
		w.tables[name] = &hostTable{ref: refs[name], file: strconv.Itoa(i) + ".arrow", making: make(chan struct{}, 1)}
	}
}

// releaseTables lets go of the tables.
func (w *ProxyWorker) releaseTables() {
	for _, t := range w.tables {
		t.making <- struct{}{}
		if t.df != nil {
			t.df.Release()
			t.df = nil
		}
		<-t.making
	}
}

// input returns what an input names. The caller must Release it.
func (s *stepRun) input(ctx context.Context, ref rpc.InputRef) (*DataFrame, error) {
	if ref.Table == "" {
		return s.w.output(ref)
	}
	t := s.w.tables[ref.Table]
	if t == nil {
		return nil, &rpc.Error{Code: rpc.CodeMissingInput, Message: fmt.Sprintf("the host has sent no table %q; it has sent %q", ref.Table, slices.Sorted(maps.Keys(s.w.tables)))}
	}
	select { // another step may have its driver read it, for long
	case t.making <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("table %q: %w", ref.Table, context.Cause(ctx))
	}
	defer func() { <-t.making }()
	if t.df == nil {
		df, err := s.open(ctx, ref.Table, t)
		if err != nil {
			return nil, fmt.Errorf("table %q: %w", ref.Table, err)
		}
		t.df = df
	}
	t.df.Retain()
	return t.df, nil
}

// open opens a table: a stream where it lies, and a file through its driver,
// once for all steps.
func (s *stepRun) open(ctx context.Context, name string, t *hostTable) (*DataFrame, error) {
	w := s.w
	var parts []filePart
	var sums []string
	var size int64
	for _, p := range t.ref.Parts {
		parts = append(parts, filePart{p.Path, p.Size})
		sums = append(sums, p.XXH3)
		size += p.Size
	}
	if len(parts) == 0 || size != t.ref.Bytes {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("its %d parts have %d bytes, not %d", len(parts), size, t.ref.Bytes)}
	}
	if t.ref.Driver != "" {
		return s.extract(ctx, name, t, parts)
	}
	return openDataFrame(frameFile{fs: w.opts.FS, mem: w.opts.Memory, parts: parts, sums: sums, rows: t.ref.Rows, batches: t.ref.Batches}, size, nil)
}

// extract has a driver read a table.
func (s *stepRun) extract(ctx context.Context, name string, t *hostTable, parts []filePart) (df *DataFrame, err error) {
	defer func() {
		if v := recover(); v != nil {
			df, err = nil, &panicError{value: v, stack: debug.Stack()}
		}
	}()
	w := s.w
	entry, err := w.opts.Drivers.Lookup(t.ref.Driver)
	if err != nil {
		return nil, err
	}
	config := make(map[string]any)
	if len(t.ref.Config) > 0 {
		if err := decodeNumbers(t.ref.Config, &config); err != nil {
			return nil, fmt.Errorf("config of %s: %w", t.ref.Driver, err)
		}
	}
	config["path"] = t.ref.Path
	file := w.path(tablesDir, "joined", t.file) // that no other file has
	result, err := entry.New().Run(ctx, &Step{
		ID: s.p.StepID, Driver: t.ref.Driver, Config: config,
		BasePath: w.hello.BasePath, Files: map[string]string{t.ref.Path: file}, FS: joinedFS{w.opts.FS, file, parts},
		ArtifactsDir: w.path(artifactsDir, s.p.StepID), Allocator: w.opts.Memory,
		Logger: slog.New(&logHandler{w: w, stepID: s.p.StepID}),
	})
	if err != nil {
		return nil, err
	}
	if result == nil || result.Outputs[DefaultOutput] == nil {
		return nil, fmt.Errorf("the driver %s has no output %q", t.ref.Driver, DefaultOutput)
	}
	defer func() {
		for _, r := range result.Outputs {
			r.Release()
		}
	}()
	g := gathering{s: s, key: name, dir: w.path(tablesDir), name: t.file}
	return g.gather(result.Outputs[DefaultOutput])
}

// keepFetched holds what the host may fetch.
func (w *ProxyWorker) keepFetched(p *rpc.ExecuteStep, outputs map[string]output) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, out := range outputs {
		if out.ref.Stream == nil {
			continue
		}
		if w.fetched == nil {
			w.fetched = make(map[rpc.FetchOutput]*DataFrame)
		}
		name := rpc.FetchOutput{StepID: p.StepID, Key: key}
		if old := w.fetched[name]; old != nil { // of a try before this one
			old.Release()
		}
		w.fetched[name] = out.df
		if p.Keep { // it belongs to the steps that need it, too
			out.df.Retain()
		}
	}
}

// streamRef tells the host where an output is.
func (w *ProxyWorker) streamRef(f *frameFile) *rpc.StreamRef {
	return &rpc.StreamRef{Path: w.relative(f.parts[0].path), Rows: f.rows, Batches: f.batches, Bytes: f.size(), XXH3: f.xxh3}
}

// fetchKept sends an output that is kept for the host, as it is in its file; ok is
// false where there is none.
func (w *ProxyWorker) fetchKept(ctx context.Context, stream uint32, p rpc.FetchOutput) (_ *rpc.FetchOutputResult, ok bool, err error) {
	w.mu.Lock()
	df := w.fetched[p]
	if df != nil {
		df.Retain()
	}
	w.mu.Unlock()
	if df == nil {
		return nil, false, nil
	}
	defer df.Release()
	payload := rpc.NewPayloadWriter(stream, w.journal.Append)
	src := &partReader{fs: df.file.fs, parts: df.file.parts}
	defer src.close()
	if _, err := io.Copy(payload, &contextReader{ctx, src}); err != nil {
		return nil, true, err
	}
	if err := payload.Close(); err != nil {
		return nil, true, err
	}
	return &rpc.FetchOutputResult{Rows: df.file.rows, Batches: df.file.batches, Bytes: payload.Bytes()}, true, nil
}

// joinedFS has one file more than the one below it: some parts, one behind the
// other.
type joinedFS struct {
	FS
	name  string
	parts []filePart
}

// Open implements [FS].
func (j joinedFS) Open(name string) (File, error) {
	if name != j.name {
		return j.FS.Open(name)
	}
	f := &joinedFile{fs: j.FS, name: filepath.Base(name)}
	for _, p := range j.parts {
		f.parts = append(f.parts, joinedPart{filePart: p, begin: f.size})
		f.size += p.size
	}
	return f, nil
}

// Stat implements [FS].
func (j joinedFS) Stat(name string) (fs.FileInfo, error) {
	if name != j.name {
		return j.FS.Stat(name)
	}
	f, err := j.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// joinedFile reads parts as one file. All methods but ReadAt are for one
// goroutine.
type joinedFile struct {
	fs    FS
	name  string
	parts []joinedPart
	size  int64
	at    int64 // of Read

	mu     sync.Mutex
	open   File // the part that was read last
	opened int  // its number
	closed bool
}

type joinedPart struct {
	filePart
	begin int64 // in the joined file
}

func (f *joinedFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p[:min(int64(len(p)), max(f.size-f.at, 0))], f.at)
	f.at += int64(n)
	if n == 0 && len(p) > 0 && err == nil {
		err = io.EOF
	}
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements [io.ReaderAt].
func (f *joinedFile) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
	}
	for n < len(p) {
		at := offset + int64(n)
		if at >= f.size {
			return n, io.EOF
		}
		i, found := slices.BinarySearchFunc(f.parts, at, func(part joinedPart, at int64) int {
			switch {
			case part.begin+part.size <= at:
				return -1
			case part.begin > at:
				return 1
			}
			return 0
		})
		if !found {
			return n, io.ErrUnexpectedEOF
		}
		m, err := f.readPart(i, p[n:min(int64(len(p)), int64(n)+f.parts[i].begin+f.parts[i].size-at)], at-f.parts[i].begin)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// readPart fills p from a part.
func (f *joinedFile) readPart(i int, p []byte, offset int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	if f.open == nil || f.opened != i {
		file, err := openRegular(f.fs, f.parts[i].path)
		if err != nil {
			return 0, err
		}
		if f.open != nil {
			f.open.Close()
		}
		f.open, f.opened = file, i
	}
	n, err := f.open.ReadAt(p, offset)
	if n == len(p) {
		return n, nil
	}
	if err == io.EOF {
		err = fmt.Errorf("%s is not what was sent: %w", filepath.Base(f.parts[i].path), io.ErrUnexpectedEOF)
	}
	return n, err
}

func (f *joinedFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	f.at = offset
	return offset, nil
}

func (f *joinedFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	if f.open != nil {
		return f.open.Close()
	}
	return nil
}

func (f *joinedFile) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }
func (f *joinedFile) Truncate(int64) error      { return errors.ErrUnsupported }

func (f *joinedFile) Stat() (fs.FileInfo, error) {
	file, err := openRegular(f.fs, f.parts[0].path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	return joinedInfo{info, f}, err
}

// joinedInfo is that of the first part, but for name and size.
type joinedInfo struct {
	fs.FileInfo
	f *joinedFile
}

func (i joinedInfo) Name() string { return i.f.name }
func (i joinedInfo) Size() int64  { return i.f.size }

func decodeNumbers(b json.RawMessage, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return dec.Decode(v)
}
