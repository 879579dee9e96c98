package rpc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/rpc"
)

const benchEvents = 100_000

// benchTime is the time of all events: formatting it is a part of the price.
var benchTime = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

// benchFields makes the fields of an event whose line has about 200 bytes.
func benchFields(i int) map[string]any {
	return map[string]any{
		"rows_written": int64(i),
		"total_rows":   int64(benchEvents),
		"table":        "public.orders_2026",
		"channel_used": "http_sql",
	}
}

// benchLines returns what is written, so that both sides of a comparison
// carry the same bytes.
func benchLine(dst []byte, i int, fields map[string]any) []byte {
	l := rpc.Line{Time: benchTime, Session: "run_20260102_0001", Name: "write.progress", StepID: "load_orders"}
	fields["rows_written"] = int64(i)
	return l.AppendEvent(dst, fields)
}

// BenchmarkEvents carries 100,000 events of 200 bytes from a writer to a file
// through a pipe: bare copies the finished lines, journal takes the whole way
// from fields to the host's file.
func BenchmarkEvents(b *testing.B) {
	size := int64(len(benchLine(nil, 12345, benchFields(0))) + 1)

	b.Run("bare", func(b *testing.B) {
		var lines [][]byte
		for i := range benchEvents {
			lines = append(lines, append(benchLine(nil, i, benchFields(i)), '\n'))
		}
		dir := b.TempDir()
		b.SetBytes(size * benchEvents)
		b.ReportAllocs()
		for b.Loop() {
			pr, pw := must2(os.Pipe())
			go func() {
				w := bufio.NewWriterSize(pw, 64<<10)
				for _, l := range lines {
					w.Write(l)
				}
				w.Flush()
				pw.Close()
			}()
			f := must(os.Create(filepath.Join(dir, "events.jsonl")))
			// Not io.Copy to the file itself: that would splice in the kernel.
			n := must(io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{pr}, make([]byte, 64<<10)))
			f.Close()
			pr.Close()
			if n < (size-8)*benchEvents {
				b.Fatalf("%d bytes", n)
			}
		}
		b.ReportMetric(float64(benchEvents)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})

	b.Run("journal", func(b *testing.B) {
		dir := b.TempDir()
		b.SetBytes(size * benchEvents)
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			store := dirStore(filepath.Join(dir, fmt.Sprint(n)))
			j := must(rpc.NewJournal(store, nil))
			go func() {
				var line []byte
				fields := benchFields(0)
				for i := range benchEvents {
					line = benchLine(line[:0], i, fields)
					if err := j.AppendData(rpc.FrameEvent, line); err != nil {
						panic(err)
					}
				}
				j.Close([]byte(`{"exit_code":0,"reason":"shutdown"}`))
			}()
			pr, pw := must2(os.Pipe())
			go func() {
				if err := rpc.Tail(context.Background(), store, 0, true, pw); err != nil {
					panic(err)
				}
				pw.Close()
			}()
			f := must(os.Create(filepath.Join(dir, "events.jsonl")))
			w := bufio.NewWriterSize(f, 256<<10)
			frames := rpc.NewFrameReader(pr, 0, 0)
			count := 0
			for {
				frame, err := frames.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					b.Fatal(err)
				}
				data, err := rpc.Data(frame.Type, frame.Payload)
				if err != nil {
					b.Fatal(err)
				}
				if frame.Type == rpc.FrameEvent {
					w.Write(data)
					w.WriteByte('\n')
					count++
				}
			}
			w.Flush()
			f.Close()
			pr.Close()
			if count != benchEvents {
				b.Fatalf("%d events", count)
			}
			b.StopTimer()
			os.RemoveAll(string(store))
			b.StartTimer()
		}
		b.ReportMetric(float64(benchEvents)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkJournal is the worker's side alone: an event from its fields into a
// journal whose store discards.
func BenchmarkJournal(b *testing.B) {
	j := must(rpc.NewJournal(discardStore{}, &rpc.JournalOptions{MaxUnacked: 1 << 60}))
	defer j.Close([]byte(`{"exit_code":0,"reason":""}`))
	fields := benchFields(0)
	line := benchLine(nil, 12345, fields)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		line = benchLine(line[:0], 12345, fields)
		if err := j.AppendData(rpc.FrameEvent, line); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkLine(b *testing.B) {
	fields := benchFields(0)
	line := benchLine(nil, 12345, fields)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		line = benchLine(line[:0], 12345, fields)
	}
}

// BenchmarkData is the host's check of one event, beside json.Valid alone.
func BenchmarkData(b *testing.B) {
	line := benchLine(nil, 12345, benchFields(0))
	payload := fmt.Appendf(nil, `{"type":"event","data":%s}`, line)
	b.Run("json.Valid", func(b *testing.B) {
		b.SetBytes(int64(len(line)))
		for b.Loop() {
			if !json.Valid(line) {
				b.Fatal("not valid")
			}
		}
	})
	b.Run("Data", func(b *testing.B) {
		b.SetBytes(int64(len(line)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := rpc.Data(rpc.FrameEvent, payload); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchTable returns a million rows in batches of 65,536.
func benchTable() (*arrow.Schema, []arrow.Record) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "amount", Type: arrow.PrimitiveTypes.Float64},
		{Name: "customer", Type: arrow.BinaryTypes.String},
		{Name: "at", Type: arrow.FixedWidthTypes.Timestamp_us},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	var recs []arrow.Record
	for i := range 1_000_000 {
		b.Field(0).(*array.Int64Builder).Append(int64(i))
		b.Field(1).(*array.Float64Builder).Append(float64(i) / 7)
		b.Field(2).(*array.StringBuilder).Append(fmt.Sprintf("customer-%06d", i%1000))
		b.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(1_700_000_000_000_000 + i))
		if (i+1)%65536 == 0 {
			recs = append(recs, b.NewRecord())
		}
	}
	return schema, append(recs, b.NewRecord())
}

// BenchmarkPayload carries a table of a million rows through a pipe: bare as an
// Arrow stream, frames as an Arrow stream in frames, and rpc also through the
// reader that checks what arrives.
func BenchmarkPayload(b *testing.B) {
	schema, recs := benchTable()
	size := int64(0)
	for _, rec := range recs {
		for _, col := range rec.Columns() {
			for _, buf := range col.Data().Buffers() {
				if buf != nil {
					size += int64(buf.Len())
				}
			}
		}
	}
	write := func(w io.Writer) {
		buf := bufio.NewWriterSize(w, 256<<10) // ipc.Writer makes many small writes
		out := ipc.NewWriter(buf, ipc.WithSchema(schema))
		for _, rec := range recs {
			if err := out.Write(rec); err != nil {
				panic(err)
			}
		}
		out.Close()
		buf.Flush()
	}
	read := func(r array.RecordReader) {
		defer r.Release()
		rows := int64(0)
		for r.Next() {
			rows += r.Record().NumRows()
		}
		if r.Err() != nil || rows != 1_000_000 {
			b.Fatalf("%d rows, %v", rows, r.Err())
		}
	}
	frames := func(open func(io.Reader) array.RecordReader) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				pr, pw := must2(os.Pipe())
				go func() {
					var frame []byte
					offset := int64(0)
					payload := rpc.NewPayloadWriter(1, func(typ rpc.FrameType, parts ...[]byte) error {
						frame = rpc.AppendFrame(frame[:0], typ, offset, parts...)
						offset += int64(len(frame))
						_, err := pw.Write(frame)
						return err
					})
					write(payload)
					payload.Close()
					pw.Close()
				}()
				read(open(&rpc.PayloadReader{Frames: rpc.NewFrameReader(pr, 0, 0), Stream: 1}))
				pr.Close()
			}
		}
	}
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			pr, pw := must2(os.Pipe())
			go func() {
				write(pw)
				pw.Close()
			}()
			read(must(ipc.NewReader(pr)))
			pr.Close()
		}
	})
	b.Run("frames", frames(func(r io.Reader) array.RecordReader { return must(ipc.NewReader(r)) }))
	b.Run("rpc", frames(func(r io.Reader) array.RecordReader { return must(rpc.NewArrowReader(r, nil, nil)) }))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func must2[T, U any](v T, u U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, u
}
