package rpc

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// BenchmarkArrowGuard sends 1,000,000 rows (int64, float64, string, timestamp) in batches of 65,536 through a pipe of the
// system: bare is arrow/go's writer and reader, guarded is ours.
func BenchmarkArrowGuard(b *testing.B) {
	schema, recs, size := benchRecords(1_000_000, 65_536)
	run := func(b *testing.B, write func(io.Writer) error, read func(io.Reader) (int64, error)) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				err := write(w)
				w.Close()
				done <- err
			}()
			rows, err := read(r)
			if err != nil || rows != 1_000_000 {
				b.Fatalf("read %d rows, error %v", rows, err)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	}
	b.Run("bare", func(b *testing.B) {
		run(b, func(w io.Writer) error {
			iw := ipc.NewWriter(w, ipc.WithSchema(schema))
			for _, rec := range recs {
				if err := iw.Write(rec); err != nil {
					return err
				}
			}
			return iw.Close()
		}, func(r io.Reader) (rows int64, err error) {
			ir, err := ipc.NewReader(r)
			if err != nil {
				return 0, err
			}
			defer ir.Release()
			for ir.Next() {
				rows += ir.Record().NumRows()
			}
			return rows, ir.Err()
		})
	})
	b.Run("guarded", func(b *testing.B) {
		run(b, func(w io.Writer) error {
			aw := NewArrowWriter(w, schema, nil)
			for _, rec := range recs {
				if err := aw.Write(rec); err != nil {
					return err
				}
			}
			return aw.Close()
		}, func(r io.Reader) (int64, error) {
			ar, err := NewArrowReader(r, nil, nil)
			if err != nil {
				return 0, err
			}
			defer ar.Release()
			for ar.Next() {
			}
			return ar.Rows(), ar.Err()
		})
	})
}

// BenchmarkCheckRecord is the check alone, of one batch of 65,536 rows.
func BenchmarkCheckRecord(b *testing.B) {
	_, recs, size := benchRecords(65_536, 65_536)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckRecord(recs[0]); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRecords(rows, batch int) (schema *arrow.Schema, recs []arrow.Record, size int64) {
	schema = arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64}, {Name: "amount", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		{Name: "name", Type: arrow.BinaryTypes.String}, {Name: "at", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}},
	}, nil)
	for at := 0; at < rows; at += batch {
		rb := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for i := at; i < min(at+batch, rows); i++ {
			rb.Field(0).(*array.Int64Builder).Append(int64(i))
			if i%10 == 0 {
				rb.Field(1).AppendNull()
			} else {
				rb.Field(1).(*array.Float64Builder).Append(float64(i) / 7)
			}
			rb.Field(2).(*array.StringBuilder).Append(fmt.Sprintf("order-%d", i))
			rb.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(i * 1000))
		}
		rec := rb.NewRecord()
		rb.Release()
		recs = append(recs, rec)
		for _, c := range rec.Columns() {
			size += int64(c.Data().SizeInBytes())
		}
	}
	return schema, recs, size
}
