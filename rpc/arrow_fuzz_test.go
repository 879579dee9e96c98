package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
)

// FuzzArrowGuard reads what the fuzzer makes of sound and of hostile streams. Whatever the reader lets through must be
// readable value by value without a panic, and must come out the same when it is written and read again; what it refuses
// must be refused with one of the two errors; neither may cost much memory or leak any.
func FuzzArrowGuard(f *testing.F) {
	types := arrowTypes()
	for i, dt := range types {
		f.Add(streamOf(f, 5, []arrow.DataType{dt}))
		f.Add(streamOf(f, 5, []arrow.DataType{dt, types[(i+7)%len(types)]}, ipc.WithZstd()))
		f.Add(streamOf(f, 5, []arrow.DataType{dt}, ipc.WithLZ4()))
	}
	f.Add(deltaStream(f))
	for _, h := range append(hostileStreams(f), hostileTypes(f)...) {
		if len(h.data) < 64<<10 {
			f.Add(h.data)
		}
	}
	f.Fuzz(fuzzArrow)
}

func fuzzArrow(t *testing.T, data []byte) {
	const ceiling = 32 << 20
	lim := &ArrowLimits{MaxMetadataBytes: 64 << 10, MaxBodyBytes: 256 << 10, MaxBatchRows: 1 << 12, MaxFields: 200, MaxTotalBytes: 1 << 20}
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)

	var schema *arrow.Schema
	var recs []arrow.Record
	var err error
	defer func() {
		for _, rec := range recs {
			rec.Release()
		}
	}()
	got := allocated(func() {
		var r *ArrowReader
		if r, err = NewArrowReader(bytes.NewReader(data), lim, mem); err != nil {
			return
		}
		defer r.Release()
		schema = r.Schema()
		for r.Next() {
			rec := r.Record()
			rec.Retain()
			recs = append(recs, rec)
		}
		err = r.Err()
	})
	if got > ceiling {
		t.Errorf("%d bytes of input cost %d bytes of memory", len(data), got)
	}
	if err != nil && !errors.Is(err, ErrArrowCorrupt) && !errors.Is(err, ErrArrowTooLarge) {
		t.Errorf("error %v is neither of ours", err)
	}
	if schema == nil {
		return
	}

	touch := toucher{budget: 20_000}
	var want [][]string
	for _, rec := range recs {
		if err := CheckRecord(rec); err != nil {
			t.Errorf("CheckRecord disagrees: %v", err)
		}
		want = append(want, touch.render(rec))
	}
	if touch.budget <= 0 || err != nil {
		return
	}
	var buf bytes.Buffer
	w := NewArrowWriter(&buf, schema, mem)
	for _, rec := range recs {
		if err := w.Write(rec); err != nil {
			w.Close()
			t.Logf("arrow/go cannot write it: %v", err)
			return
		}
	}
	if err := w.Close(); err != nil {
		return
	}
	again, err := readAll(io.Reader(&buf), nil, mem)
	if err != nil {
		t.Fatalf("written again it is refused: %v\n%s", err, schema)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("written again it differs, -want +got\n%s", diff)
	}
}

// TestArrowMutations does what the fuzzer does with a better aim: it overwrites one to three aligned words of a stream
// with values that sit on an edge, a few thousand times, always the same ones.
func TestArrowMutations(t *testing.T) {
	rounds := 8
	if on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); on {
		rounds = 3000
	}
	if testing.Short() {
		rounds = 4
	}
	edges := []int64{0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 63, 64, 65, 127, 128, 255, 256, 1 << 12, 1<<15 - 1, 1 << 16, 1<<31 - 1, 1 << 31, 1 << 32, 1 << 40,
		1<<63 - 1, -1, -2, -8, -1 << 31, -1 << 63}
	rnd := rand.New(rand.NewPCG(17, 42))
	var seeds [][]byte
	types := arrowTypes()
	for i, dt := range types {
		seeds = append(seeds, streamOf(t, 5, []arrow.DataType{dt}), streamOf(t, 9, []arrow.DataType{dt, types[(i+3)%len(types)]}),
			streamOf(t, 5, []arrow.DataType{dt}, ipc.WithZstd()), streamOf(t, 5, []arrow.DataType{dt}, ipc.WithLZ4()))
	}
	seeds = append(seeds, deltaStream(t))
	for i, seed := range seeds {
		for range rounds {
			data := bytes.Clone(seed)
			for range 1 + rnd.IntN(3) {
				width := []int{1, 2, 4, 8}[rnd.IntN(4)]
				pos := rnd.IntN(len(data)/width) * width
				v := edges[rnd.IntN(len(edges))]
				if rnd.IntN(3) == 0 {
					v = rnd.Int64()
				}
				if rnd.IntN(4) == 0 { // a little off
					v = int64(data[pos]) + v%5
				}
				copy(data[pos:pos+width], binary.LittleEndian.AppendUint64(nil, uint64(v)))
			}
			if !t.Run("", func(t *testing.T) { fuzzArrow(t, data) }) {
				t.Fatalf("seed %d: %#v", i, string(data))
			}
		}
	}
}
