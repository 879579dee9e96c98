package worker

import (
	"fmt"
	"sync/atomic"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
)

// DataFrame is a table at rest: the batches a step put out, held for the steps
// that read them, in memory or in files. Any number of readers may read it at
// once.
type DataFrame struct {
	schema *arrow.Schema
	rows   int64
	bytes  int64 // that it takes in memory, or would

	batches []arrow.Record // in memory
	file    *frameFile     // nil for a table in memory
	drop    func()         // called when the last owner has released it; may be nil

	refs atomic.Int64
}

// ReadDataFrame reads r to its end and holds its batches in memory. It does not
// release r.
func ReadDataFrame(r array.RecordReader) (*DataFrame, error) {
	f := &DataFrame{schema: r.Schema()}
	f.refs.Store(1)
	for r.Next() {
		rec := r.Record()
		rec.Retain()
		f.batches = append(f.batches, rec)
		f.rows += rec.NumRows()
	}
	if err := r.Err(); err != nil {
		f.Release()
		return nil, fmt.Errorf("read output: %w", err)
	}
	return f, nil
}

// Schema returns the columns.
func (f *DataFrame) Schema() *arrow.Schema { return f.schema }

// Rows returns the number of rows.
func (f *DataFrame) Rows() int64 { return f.rows }

// Reader returns a new reader over all batches. The caller must Release it;
// a batch is valid until the next call of Next unless it is retained.
//
// A table in files is read batch by batch. What fails to be opened or read, or
// is not what was written, ends the reader, and its Err tells why.
func (f *DataFrame) Reader() array.RecordReader {
	if f.file != nil {
		return f.file.reader(f)
	}
	r, err := array.NewRecordReader(f.schema, f.batches)
	if err != nil {
		// The batches came from one reader with this schema.
		panic("worker: data frame: " + err.Error())
	}
	return r
}

// Files returns the files that the table lies in, as absolute paths: one Arrow IPC
// stream, not compressed, which is cut into them. There are none for a table in
// memory. They are there while the caller owns the table, and must not be changed.
func (f *DataFrame) Files() []string {
	if f.file == nil {
		return nil
	}
	names := make([]string, len(f.file.parts))
	for i, p := range f.file.parts {
		names[i] = p.path
	}
	return names
}

// onDisk reports whether the table is in files.
func (f *DataFrame) onDisk() bool { return f.file != nil }

// Retain adds an owner.
func (f *DataFrame) Retain() { f.refs.Add(1) }

// Release drops an owner; the last one frees the batches, or removes the files
// if they are the table's own. A reader of files is an owner until it is at its
// end.
func (f *DataFrame) Release() {
	if f.refs.Add(-1) == 0 {
		for _, b := range f.batches {
			b.Release()
		}
		f.batches = nil
		if f.drop != nil {
			f.drop()
		}
	}
}
