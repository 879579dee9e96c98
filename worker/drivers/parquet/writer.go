package parquet

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/flight"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/parquet"
	"github.com/apache/arrow/go/v17/parquet/compress"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"

	"github.com/osiris-pipelines/remote/worker"
)

const defaultRowGroup = 1 << 20

// Writer is the driver filesystem.parquet_writer. The package comment has its
// config and semantics.
type Writer struct{}

type writeConfig struct {
	Path         string `json:"path"`
	Compression  string `json:"compression"`
	RowGroupSize *int64 `json:"row_group_size"`
	BatchSize    *int64 `json:"batch_size"`

	codec compress.Compression
}

func decodeWrite(step *worker.Step) (*writeConfig, error) {
	cfg := new(writeConfig)
	if err := step.DecodeConfig(cfg); err != nil {
		return nil, err
	}
	if cfg.Path == "" {
		return nil, errors.New("'path' is required in config")
	}
	if cfg.Compression == "" {
		cfg.Compression = "snappy"
		if v, ok := step.Config["compression"]; ok && v == nil {
			cfg.Compression = "none" // pandas: None is no compression
		}
	}
	switch cfg.Compression {
	case "snappy":
		cfg.codec = compress.Codecs.Snappy
	case "zstd":
		cfg.codec = compress.Codecs.Zstd
	case "gzip":
		cfg.codec = compress.Codecs.Gzip
	case "brotli":
		cfg.codec = compress.Codecs.Brotli
	case "none", "uncompressed":
		cfg.codec = compress.Codecs.Uncompressed
	default:
		return nil, fmt.Errorf("config key %q: want one of snappy, zstd, gzip, brotli, none, have %q", "compression", cfg.Compression)
	}
	if cfg.RowGroupSize == nil {
		cfg.RowGroupSize = cfg.BatchSize
	}
	if cfg.RowGroupSize == nil {
		cfg.RowGroupSize = new(int64(defaultRowGroup))
	}
	if *cfg.RowGroupSize < 1 {
		return nil, fmt.Errorf("config key %q: want at least 1, have %d", "row_group_size", *cfg.RowGroupSize)
	}
	return cfg, nil
}

// Run writes the step's table to the file. On an error the file keeps what was
// written up to it, which is no Parquet file.
//
//   - Shapes: no outputs; the file has the columns in the table's order.
//   - Units: the metric rows_written counts rows.
//   - Errors: a missing table names the inputs there are; ctx's error; the rest
//     begins with "parquet writing failed" and names the file.
func (*Writer) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeWrite(step)
	if err != nil {
		return nil, err
	}
	frame, err := step.OnlyInput()
	if err != nil {
		return nil, fmt.Errorf("%s requires a table in inputs: %w", WriterName, err)
	}
	f, err := step.Create(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("parquet writing failed: %w", err)
	}
	err = guard(func() error { return write(ctx, step, cfg, frame, f) })
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("parquet writing failed: %s: %w", cfg.Path, err)
	}
	step.LogMetric("rows_written", float64(frame.Rows()), "rows")
	return nil, nil
}

func write(ctx context.Context, step *worker.Step, cfg *writeConfig, frame *worker.DataFrame, f io.Writer) error {
	schema, stored, err := fileSchema(frame.Schema())
	if err != nil {
		return err
	}
	props := parquet.NewWriterProperties(parquet.WithCompression(cfg.codec), parquet.WithAllocator(step.Memory()), parquet.WithCreatedBy("osiris"))
	out := &sink{f}
	w, err := pqarrow.NewFileWriter(schema, out, props, pqarrow.NewArrowWriterProperties(pqarrow.WithAllocator(step.Memory())))
	if err != nil {
		return err
	}
	// What Parquet has no types for is told by Arrow's schema, as Arrow's other
	// implementations do it.
	encoded := base64.StdEncoding.EncodeToString(flight.SerializeSchema(stored, step.Memory()))
	if err := w.AppendKeyValueMetadata(storedSchema, encoded); err != nil {
		return errors.Join(err, w.Close())
	}
	if err := writeGroups(ctx, cfg, w, schema, frame, step.Memory()); err != nil {
		out.Writer = io.Discard // a footer would make a whole file of the groups before
		_ = w.Close()           // gives its memory back
		return err
	}
	return w.Close()
}

// sink is what a file is written to: no more than an [io.Writer].
type sink struct{ io.Writer }

// fileSchema returns the columns as they are written, and as they are told.
func fileSchema(s *arrow.Schema) (written, stored *arrow.Schema, err error) {
	fields, told := make([]arrow.Field, s.NumFields()), make([]arrow.Field, s.NumFields())
	for i, f := range s.Fields() {
		f.Metadata = ownMetadata(f.Metadata)
		f.Type = plainType(f.Type)
		told[i] = f
		if f.Type.ID() == arrow.DURATION {
			f.Type = arrow.PrimitiveTypes.Int64
		}
		if reason := unwritable(f.Type); reason != "" {
			return nil, nil, fmt.Errorf("column %q: %s cannot be written to Parquet: %s", f.Name, s.Field(i).Type, reason)
		}
		fields[i] = f
	}
	return arrow.NewSchema(fields, nil), arrow.NewSchema(told, nil), nil
}

// unwritable says why a type cannot be written, or nothing.
func unwritable(dt arrow.DataType) string {
	switch dt := dt.(type) {
	case *arrow.DictionaryType:
		return unwritable(dt.ValueType)
	case *arrow.StructType:
		if dt.NumFields() == 0 {
			return "a struct without fields has no counterpart"
		}
		for _, f := range dt.Fields() {
			if reason := unwritable(f.Type); reason != "" {
				return reason
			}
		}
		return ""
	case *arrow.MapType:
		if reason := unwritable(dt.KeyType()); reason != "" {
			return reason
		}
		return unwritable(dt.ItemType())
	case *arrow.ListType:
		return unwritable(dt.Elem())
	}
	switch dt.ID() {
	case arrow.INTERVAL_MONTHS, arrow.INTERVAL_DAY_TIME, arrow.INTERVAL_MONTH_DAY_NANO, arrow.DURATION, arrow.SPARSE_UNION, arrow.DENSE_UNION,
		arrow.STRING_VIEW, arrow.BINARY_VIEW, arrow.LARGE_LIST, arrow.FIXED_SIZE_LIST, arrow.LIST_VIEW, arrow.LARGE_LIST_VIEW, arrow.RUN_END_ENCODED, arrow.EXTENSION:
		return "there is no counterpart for " + dt.Name() + "; make it text or numbers before"
	}
	return ""
}

// writeGroups writes row groups, of the batches as they are: a group's columns
// are written one after the other.
func writeGroups(ctx context.Context, cfg *writeConfig, w *pqarrow.FileWriter, schema *arrow.Schema, frame *worker.DataFrame, mem memory.Allocator) error {
	r := frame.Reader()
	defer r.Release()
	var batches []arrow.Record
	rows := int64(0)
	defer func() {
		for _, b := range batches {
			b.Release()
		}
	}()
	flush := func() error {
		if rows == 0 {
			return nil
		}
		w.NewRowGroup()
		for i := range schema.NumFields() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := writeColumn(w, schema.Field(i).Type, batches, i, rows, mem); err != nil {
				return fmt.Errorf("column %q: %w", schema.Field(i).Name, err)
			}
		}
		for _, b := range batches {
			b.Release()
		}
		batches, rows = nil, 0
		return nil
	}
	for r.Next() {
		rec := r.Record()
		for at := int64(0); at < rec.NumRows(); {
			n := min(rec.NumRows()-at, *cfg.RowGroupSize-rows)
			batches = append(batches, rec.NewSlice(at, at+n))
			at, rows = at+n, rows+n
			if rows == *cfg.RowGroupSize {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	return flush()
}

func writeColumn(w *pqarrow.FileWriter, typ arrow.DataType, batches []arrow.Record, column int, rows int64, mem memory.Allocator) error {
	chunks := make([]arrow.Array, len(batches))
	defer func() {
		for _, c := range chunks {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i, b := range batches {
		a := b.Column(column)
		if a.DataType().ID() == arrow.DURATION {
			data := array.NewData(typ, a.Len(), a.Data().Buffers(), nil, a.NullN(), a.Data().Offset())
			chunks[i] = array.MakeFromData(data)
			data.Release()
			continue
		}
		p, err := plain(a, mem)
		if err != nil {
			return err
		}
		chunks[i] = p
	}
	all := arrow.NewChunked(typ, chunks)
	defer all.Release()
	return w.WriteColumnChunked(all, 0, rows)
}
