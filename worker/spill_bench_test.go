package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// benchBytes is the size of the tables, 256 MiB unless OSIRIS_BENCH_BYTES says
// otherwise.
func benchBytes(b *testing.B) int64 {
	if s := os.Getenv("OSIRIS_BENCH_BYTES"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	return 256 << 20
}

// benchRecord is a batch of what tables have: ids, times, amounts, names, and a
// word of a few, 64 Ki rows.
func benchRecord() arrow.Record {
	const rows = 64 << 10
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "at", Type: arrow.FixedWidthTypes.Timestamp_us, Nullable: true},
		{Name: "amount", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "state", Type: arrow.BinaryTypes.String},
	}, nil)
	build := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer build.Release()
	seed := uint64(1)
	for i := range rows {
		seed = seed*6364136223846793005 + 1442695040888963407
		build.Field(0).(*array.Int64Builder).Append(int64(i))
		build.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(1_700_000_000_000_000 + int64(i)*1000 + int64(seed>>54)))
		if i%10 == 0 {
			build.Field(2).AppendNull()
		} else {
			build.Field(2).(*array.Float64Builder).Append(float64(seed>>40) / 100)
		}
		build.Field(3).(*array.StringBuilder).Append(fmt.Sprintf("customer-%x", seed>>34))
		build.Field(4).(*array.StringBuilder).Append([]string{"new", "paid", "sent", "returned"}[seed>>62])
	}
	return build.NewRecord()
}

// BenchmarkSpill writes and reads a table as a spilled output, and beside it
// arrow's own writer and reader do, bare, with each codec there is.
func BenchmarkSpill(b *testing.B) {
	rec := benchRecord()
	defer rec.Release()
	size := recordBytes(rec)
	batches := int(benchBytes(b) / size)
	size *= int64(batches)

	// measure writes and reads, and says how many bytes went to disk.
	measure := func(name string, write func(name string) error, read func(name string) (rows int64, err error)) {
		file := filepath.Join(b.TempDir(), "table.arrow")
		b.Run("write/"+name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if err := write(file); err != nil {
					b.Fatal(err)
				}
			}
			if info, err := os.Stat(file); err == nil {
				b.ReportMetric(float64(info.Size())/float64(size), "of-memory")
			}
		})
		b.Run("read/"+name, func(b *testing.B) {
			if _, err := os.Stat(file); err != nil {
				if err := write(file); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if rows, err := read(file); err != nil || rows != int64(batches)*rec.NumRows() {
					b.Fatalf("%d rows, %v", rows, err)
				}
			}
		})
		os.Remove(file)
	}

	var spilled frameFile
	measure("ours", func(name string) error {
		w, err := newSpillWriter(OSFS{}, name, rec.Schema(), memory.DefaultAllocator)
		if err != nil {
			return err
		}
		for range batches {
			if err := w.out.Write(rec); err != nil {
				return err
			}
		}
		spilled, err = w.close()
		return err
	}, func(string) (rows int64, err error) {
		df, err := openDataFrame(spilled, size, nil)
		if err != nil {
			return 0, err
		}
		defer df.Release()
		r := df.Reader()
		defer r.Release()
		for r.Next() {
			rows += r.Record().NumRows()
		}
		return rows, r.Err()
	})

	for _, peer := range []struct {
		name string
		opts []ipc.Option
	}{{"bare", nil}, {"bare-lz4", []ipc.Option{ipc.WithLZ4()}}, {"bare-zstd", []ipc.Option{ipc.WithZstd()}}} {
		measure(peer.name, func(name string) error {
			f, err := os.Create(name)
			if err != nil {
				return err
			}
			defer f.Close()
			w := ipc.NewWriter(f, append(peer.opts, ipc.WithSchema(rec.Schema()))...)
			for range batches {
				if err := w.Write(rec); err != nil {
					return err
				}
			}
			if err := w.Close(); err != nil {
				return err
			}
			return f.Close()
		}, func(name string) (rows int64, err error) {
			f, err := os.Open(name)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			r, err := ipc.NewReader(f)
			if err != nil {
				return 0, err
			}
			defer r.Release()
			for r.Next() {
				rows += r.Record().NumRows()
			}
			return rows, r.Err()
		})
	}
}
