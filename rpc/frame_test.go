package rpc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// newRand returns a source whose seed a failing test prints.
func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %#x", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// randomFrames returns n frames in a row, and their encoding.
func randomFrames(r *rand.Rand, offset int64, n, maxPayload int) (frames []rpc.Frame, encoded []byte) {
	types := []rpc.FrameType{rpc.FrameRequest, rpc.FrameResponse, rpc.FrameEvent, rpc.FrameArrow, 99}
	for range n {
		f := rpc.Frame{
			Type:    types[r.IntN(len(types))],
			Offset:  offset + int64(len(encoded)),
			Payload: randomBytes(r, r.IntN(maxPayload+1)),
		}
		frames = append(frames, f)
		cut := r.IntN(len(f.Payload) + 1)
		encoded = rpc.AppendFrame(encoded, f.Type, f.Offset, f.Payload[:cut], nil, f.Payload[cut:])
	}
	return frames, encoded
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// readFrames reads to the first error.
func readFrames(fr *rpc.FrameReader) (frames []rpc.Frame, err error) {
	for {
		f, err := fr.Next()
		if err != nil {
			return frames, err
		}
		f.Payload = append([]byte{}, f.Payload...)
		frames = append(frames, f)
	}
}

// chunked reads n bytes at a time.
type chunked struct {
	r io.Reader
	n int
}

func (c chunked) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.n)]) }

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRand(t)
	readers := map[string]func(io.Reader) io.Reader{
		"1":            func(r io.Reader) io.Reader { return chunked{r, 1} },
		"7":            func(r io.Reader) io.Reader { return chunked{r, 7} },
		"700":          func(r io.Reader) io.Reader { return chunked{r, 700} },
		"65536":        func(r io.Reader) io.Reader { return chunked{r, 65536} },
		"all":          func(r io.Reader) io.Reader { return r },
		"one byte":     iotest.OneByteReader,
		"half":         iotest.HalfReader,
		"data and err": iotest.DataErrReader,
	}
	sizes := map[string]struct{ frames, payload int }{
		"empty":  {20, 0},
		"small":  {1000, 100},
		"medium": {100, 20_000},
		"large":  {3, rpc.MaxPayload},
	}
	for sizeName, size := range sizes {
		offset := r.Int64N(1 << 40)
		want, encoded := randomFrames(r, offset, size.frames, size.payload)
		for name, wrap := range readers {
			t.Run(sizeName+"/"+name, func(t *testing.T) {
				fr := rpc.NewFrameReader(wrap(bytes.NewReader(encoded)), offset, 0)
				got, err := readFrames(fr)
				if err != io.EOF {
					t.Fatalf("error is %v, want io.EOF", err)
				}
				if !slices.EqualFunc(got, want, equalFrames) {
					t.Fatalf("read %d frames that differ from the %d written", len(got), len(want))
				}
				if got, want := fr.Offset(), offset+int64(len(encoded)); got != want {
					t.Errorf("Offset() = %d, want %d", got, want)
				}
				if _, again := fr.Next(); again != err {
					t.Errorf("the error changed from %v to %v", err, again)
				}
			})
		}
	}
}

func equalFrames(a, b rpc.Frame) bool {
	return a.Type == b.Type && a.Offset == b.Offset && bytes.Equal(a.Payload, b.Payload)
}

// The frame of the specification, checked against the layout by hand.
func TestFrameLayout(t *testing.T) {
	got := rpc.AppendFrame([]byte("before"), rpc.FrameEvent, 0x0102030405060708, []byte("pay"), []byte("load"))
	want := append([]byte("before"), "OSR1\x11\x00\x00\x00\x07\x00\x00\x00\x08\x07\x06\x05\x04\x03\x02\x01"...)
	sum := got[len(want):][:4]
	want = append(append(want, sum...), "payload"...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// A payload belongs to its reader until the next call, and appending to it
// must not change the frame behind it.
func TestFramePayloadAppend(t *testing.T) {
	_, encoded := randomFrames(newRand(t), 0, 3, 100)
	fr := rpc.NewFrameReader(bytes.NewReader(encoded), 0, 0)
	for range 3 {
		f, err := fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		_ = append(f.Payload, "0123456789012345678901234567890"...)
	}
}

// typed reports whether an error is one that the documentation names.
func typed(err error) bool {
	return errors.Is(err, rpc.ErrFrameCorrupt) || errors.Is(err, rpc.ErrFrameTooLarge) ||
		errors.Is(err, rpc.ErrFrameOffset) || errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF
}

func TestFrameCorruption(t *testing.T) {
	r := newRand(t)
	const offset = 1 << 20
	want, encoded := randomFrames(r, offset, 5, 60)
	check := func(t *testing.T, b []byte, wantErr error) {
		t.Helper()
		got, err := readFrames(rpc.NewFrameReader(bytes.NewReader(b), offset, 0))
		if len(got) >= len(want) || !slices.EqualFunc(got, want[:len(got)], equalFrames) {
			t.Fatalf("got %d frames, which are not the first of those written", len(got))
		}
		if !typed(err) || (wantErr != nil && !errors.Is(err, wantErr)) {
			t.Fatalf("error is %v, want %v", err, wantErr)
		}
	}
	t.Run("flipped", func(t *testing.T) {
		for i := range encoded {
			for bit := range 8 {
				b := bytes.Clone(encoded)
				b[i] ^= 1 << bit
				check(t, b, nil)
			}
		}
	})
	t.Run("truncated", func(t *testing.T) {
		ends := map[int]bool{0: true, len(encoded): true}
		for _, f := range want {
			ends[int(f.Offset-offset)] = true
		}
		for n := range encoded {
			wantErr := io.ErrUnexpectedEOF
			if ends[n] {
				wantErr = io.EOF
			}
			check(t, encoded[:n], wantErr)
		}
	})
	second := int(want[1].Offset - offset)
	third := int(want[2].Offset - offset)
	t.Run("gap", func(t *testing.T) {
		check(t, slices.Concat(encoded[:second], encoded[third:]), rpc.ErrFrameOffset)
	})
	t.Run("duplicate", func(t *testing.T) {
		check(t, slices.Concat(encoded[:third], encoded[second:]), rpc.ErrFrameOffset)
	})
	t.Run("late start", func(t *testing.T) {
		check(t, encoded[second:], rpc.ErrFrameOffset)
	})
	t.Run("middle of a frame", func(t *testing.T) {
		check(t, encoded[1:], rpc.ErrFrameCorrupt)
	})
	t.Run("unchecked", func(t *testing.T) {
		fr := rpc.NewFrameReader(bytes.NewReader(slices.Concat(encoded[third:], encoded)), -5, 0)
		if got, err := readFrames(fr); len(got) != len(want)-2+len(want) || err != io.EOF {
			t.Errorf("%d frames, %v", len(got), err)
		}
		if fr.Offset() >= 0 {
			t.Errorf("Offset() = %d without offsets", fr.Offset())
		}
	})
}

func TestFrameOffsetRange(t *testing.T) {
	for _, offset := range []int64{-1, math.MinInt64, math.MaxInt64, math.MaxInt64 - rpc.HeaderSize, math.MaxInt64 - rpc.HeaderSize - 2} {
		t.Run(fmt.Sprint(offset), func(t *testing.T) {
			b := rpc.AppendFrame(nil, rpc.FrameEvent, offset, []byte("abc"))
			for _, from := range []int64{-1, max(offset, 0)} {
				if f, err := rpc.NewFrameReader(bytes.NewReader(b), from, 0).Next(); !errors.Is(err, rpc.ErrFrameOffset) {
					t.Errorf("from %d: %+v, %v", from, f, err)
				}
			}
		})
	}
	// The last frame that a journal can hold, and nothing after it.
	last := int64(math.MaxInt64 - rpc.HeaderSize - 3)
	b := rpc.AppendFrame(nil, rpc.FrameEvent, last, []byte("abc"))
	fr := rpc.NewFrameReader(bytes.NewReader(append(b, b...)), last, 0)
	if _, err := fr.Next(); err != nil {
		t.Fatal(err)
	}
	if fr.Offset() != math.MaxInt64 {
		t.Errorf("Offset() = %d", fr.Offset())
	}
	if _, err := fr.Next(); !errors.Is(err, rpc.ErrFrameOffset) {
		t.Errorf("error is %v", err)
	}
}

// What a header announces costs nothing until it arrives.
func TestFrameAnnouncedLength(t *testing.T) {
	for _, length := range []uint32{math.MaxUint32, 1 << 31, 1<<31 - 1, rpc.MaxPayload + 1} {
		header := rpc.AppendFrame(nil, rpc.FrameEvent, 0)
		binary.LittleEndian.PutUint32(header[8:], length)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := rpc.NewFrameReader(bytes.NewReader(header), 0, 0).Next()
		runtime.ReadMemStats(&after)
		if !errors.Is(err, rpc.ErrFrameTooLarge) {
			t.Errorf("length %d: error is %v", length, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 200<<10 {
			t.Errorf("length %d: allocated %d bytes", length, n)
		}
	}
}

func TestFrameLimit(t *testing.T) {
	for _, tc := range []struct {
		limit, size int
		ok          bool
	}{
		{0, rpc.MaxPayload, true},
		{0, rpc.MaxPayload + 1, false},
		{100, 100, true},
		{100, 101, false},
		{-1, 5, true},
		{math.MaxInt, 3 << 20, true},
		{3 << 20, 3 << 20, true},
	} {
		b := rpc.AppendFrame(nil, rpc.FrameLog, 0, make([]byte, tc.size))
		f, err := rpc.NewFrameReader(bytes.NewReader(b), 0, tc.limit).Next()
		if tc.ok && (err != nil || len(f.Payload) != tc.size) {
			t.Errorf("limit %d, size %d: %d bytes, %v", tc.limit, tc.size, len(f.Payload), err)
		}
		if !tc.ok && !errors.Is(err, rpc.ErrFrameTooLarge) {
			t.Errorf("limit %d, size %d: error is %v", tc.limit, tc.size, err)
		}
	}
}

func TestEncodeInput(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), rpc.MaxInputFrame-rpc.HeaderSize)
	b, err := rpc.EncodeInput(rpc.FrameRequest, payload)
	if err != nil || len(b) != rpc.MaxInputFrame {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	f, err := rpc.NewFrameReader(bytes.NewReader(b), -1, rpc.MaxInputFrame).Next()
	if diff := cmp.Diff(rpc.Frame{Type: rpc.FrameRequest, Payload: payload}, f); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := rpc.EncodeInput(rpc.FrameRequest, append(payload, 'x')); !errors.Is(err, rpc.ErrFrameTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
}

// errReader returns data and an error at once, and then another error.
type errReader struct {
	data []byte
	err  error
}

func (r *errReader) Read(p []byte) (int, error) {
	n := copy(p, r.data)
	r.data = r.data[n:]
	if len(r.data) > 0 {
		return n, nil
	}
	err := r.err
	r.err = errors.New("read again after an error")
	return n, err
}

func TestFrameReaderErrors(t *testing.T) {
	cut := errors.New("connection cut")
	want, encoded := randomFrames(newRand(t), 0, 3, 50)
	for n := range len(encoded) + 1 {
		got, err := readFrames(rpc.NewFrameReader(&errReader{encoded[:n], cut}, 0, 0))
		if err != cut {
			t.Fatalf("after %d bytes: error is %v, want that of the reader", n, err)
		}
		if !slices.EqualFunc(got, want[:len(got)], equalFrames) {
			t.Fatalf("after %d bytes: wrong frames", n)
		}
	}
	if _, err := rpc.NewFrameReader(iotest.ErrReader(cut), 0, 0).Next(); err != cut {
		t.Errorf("error is %v", err)
	}
	if _, err := rpc.NewFrameReader(iotest.TimeoutReader(bytes.NewReader(encoded)), 0, 0).Next(); err != nil && err != iotest.ErrTimeout {
		t.Errorf("error is %v", err)
	}
	if _, err := rpc.NewFrameReader(idle{}, 0, 0).Next(); err != io.ErrNoProgress {
		t.Errorf("error of a reader that returns nothing: %v", err)
	}
	if _, err := rpc.NewFrameReader(liar(1<<40), 0, 0).Next(); err == nil {
		t.Error("no error for a reader that returns more than was asked for")
	}
	if _, err := rpc.NewFrameReader(liar(-1), 0, 0).Next(); err == nil {
		t.Error("no error for a reader that returns a negative count")
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

type liar int

func (l liar) Read([]byte) (int, error) { return int(l), nil }

// A reader of many frames allocates its buffer and nothing for each frame.
func TestFrameAllocs(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 200)
	buf := make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(100, func() { buf = rpc.AppendFrame(buf[:0], rpc.FrameEvent, 0, payload, payload) }); n != 0 {
		t.Errorf("AppendFrame allocates %v times", n)
	}
	var encoded []byte
	for range 1100 {
		encoded = rpc.AppendFrame(encoded, rpc.FrameEvent, int64(len(encoded)), payload)
	}
	fr := rpc.NewFrameReader(bytes.NewReader(encoded), 0, 0)
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := fr.Next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Next allocates %v times", n)
	}
}

func TestFrameTypeString(t *testing.T) {
	seen := make(map[string]rpc.FrameType)
	for typ := range rpc.FrameType(30) {
		s := typ.String()
		if other, dup := seen[s]; s == "" || dup {
			t.Errorf("%q names %d and %d", s, typ, other)
		}
		seen[s] = typ
	}
}

// Whatever is read was written so, and costs no more than the limit.
func FuzzFrameReader(f *testing.F) {
	_, encoded := randomFrames(rand.New(rand.NewPCG(1, 2)), 0, 4, 40)
	f.Add(encoded, uint16(0), int64(0))
	f.Add(encoded[:len(encoded)-1], uint16(1), int64(-1))
	f.Add(rpc.AppendFrame(nil, rpc.FrameEvent, math.MaxInt64-rpc.HeaderSize), uint16(7), int64(math.MaxInt64-rpc.HeaderSize))
	f.Add(rpc.AppendFrame(nil, rpc.FrameEvent, -1), uint16(7), int64(-1))
	huge := bytes.Clone(encoded)
	huge[11] = 0xff
	f.Add(huge, uint16(3), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, chunk uint16, offset int64) {
		const limit = 1 << 12
		var r io.Reader = bytes.NewReader(b)
		if chunk > 0 {
			r = chunked{r, int(chunk)}
		}
		fr := rpc.NewFrameReader(r, offset, limit)
		var again []byte
		next := offset
		for {
			f, err := fr.Next()
			if err != nil {
				if !typed(err) {
					t.Errorf("error is %v", err)
				}
				if whole := len(again) == len(b); whole != (err == io.EOF) {
					t.Errorf("error is %v after %d of %d bytes", err, len(again), len(b))
				}
				break
			}
			if len(f.Payload) > limit || f.Offset < 0 || offset >= 0 && f.Offset != next {
				t.Errorf("read a frame of %d bytes at %d, want it at %d", len(f.Payload), f.Offset, next)
			}
			again = rpc.AppendFrame(again, f.Type, f.Offset, f.Payload)
			if next += int64(rpc.HeaderSize + len(f.Payload)); offset >= 0 && fr.Offset() != next {
				t.Errorf("Offset() = %d, want %d", fr.Offset(), next)
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("read %x from %x", again, b)
		}
		// Input that is read byte by byte, and a tail that copies it, agree.
		frames, _ := readFrames(rpc.NewFrameReader(iotest.OneByteReader(bytes.NewReader(b)), offset, limit))
		size := 0
		for _, f := range frames {
			size += rpc.HeaderSize + len(f.Payload)
		}
		if size != len(again) {
			t.Errorf("read %d bytes of frames at once, %d byte by byte", len(again), size)
		}
	})
}
