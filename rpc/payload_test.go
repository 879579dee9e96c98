package rpc_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/osiris-pipelines/remote/rpc"
)

// frameLog gathers frames as a journal would hold them.
type frameLog struct{ bytes.Buffer }

func (l *frameLog) send(typ rpc.FrameType, parts ...[]byte) error {
	l.Write(rpc.AppendFrame(nil, typ, int64(l.Len()), parts...))
	return nil
}

// writeRandomly writes b in pieces.
func writeRandomly(t *testing.T, r *rand.Rand, w io.Writer, b []byte, between func()) {
	t.Helper()
	for len(b) > 0 {
		n := min(r.IntN(1<<r.IntN(20)+1), len(b))
		if k, err := w.Write(b[:n]); k != n || err != nil {
			t.Fatalf("wrote %d of %d bytes: %v", k, n, err)
		}
		b = b[n:]
		between()
	}
}

func TestPayloadRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRand(t)
	for _, size := range []int{0, 1, 100, 256<<10 - 9, 256<<10 - 8, 256<<10 - 7, 256 << 10, 3 << 20} {
		want := randomBytes(r, size)
		other := randomBytes(r, 300<<10)
		var log frameLog
		w := rpc.NewPayloadWriter(7, log.send)
		w2 := rpc.NewPayloadWriter(8, log.send)
		events := 0
		writeRandomly(t, r, w, want, func() {
			n := r.IntN(1000)
			w2.Write(other[:n])
			if r.IntN(3) == 0 {
				log.send(rpc.FrameEvent, []byte(`{"type":"event","data":{}}`))
				events++
			}
		})
		w2.Write(other)
		for range 2 {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if w.Bytes() != int64(size) {
			t.Errorf("Bytes() = %d, want %d", w.Bytes(), size)
		}
		log.send(rpc.FrameResponse, []byte(`{"id":"req_7","result":{}}`)) // stays for others to read

		frames := rpc.NewFrameReader(iotest.HalfReader(&log), 0, 0)
		got, err := io.ReadAll(iotest.OneByteReader(&rpc.PayloadReader{Frames: frames, Stream: 7, Other: func(f rpc.Frame) error {
			if f.Type == rpc.FrameEvent {
				events--
			} else if stream, _, _, err := rpc.Chunk(f.Payload); f.Type != rpc.FrameArrow || err != nil || stream != 8 {
				t.Errorf("unexpected %s, %v", f.Type, err)
			}
			return nil
		}}))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("size %d: read %d bytes, %v", size, len(got), err)
		}
		if events != 0 {
			t.Errorf("%d events are missing", events)
		}
		if f, err := frames.Next(); err != nil || f.Type != rpc.FrameResponse {
			t.Errorf("behind the stream: %s, %v", f.Type, err)
		}
	}
}

func TestPayloadFrameSize(t *testing.T) {
	var log frameLog
	w := rpc.NewPayloadWriter(1, log.send)
	w.Write(make([]byte, 2<<20))
	w.Close()
	frames, err := readFrames(rpc.NewFrameReader(&log, 0, 0))
	if err != io.EOF {
		t.Fatal(err)
	}
	for i, f := range frames {
		if _, _, last, err := rpc.Chunk(f.Payload); err != nil || last != (i == len(frames)-1) {
			t.Errorf("frame %d: last %v, %v", i, last, err)
		}
		if len(f.Payload) > 256<<10 {
			t.Errorf("frame %d has %d bytes", i, len(f.Payload))
		}
	}
}

func TestPayloadReaderErrors(t *testing.T) {
	broken := errors.New("broken")
	chunk := func(stream, last byte, data string) []byte {
		return append([]byte{stream, 0, 0, 0, last, 0, 0, 0}, data...)
	}
	type frame struct {
		typ     rpc.FrameType
		payload []byte
	}
	for _, tc := range []struct {
		name   string
		frames []frame
		cut    int
		other  error
		want   string
		err    error
	}{
		{"nothing", nil, 0, nil, "", io.ErrUnexpectedEOF},
		{"no last chunk", []frame{{rpc.FrameArrow, chunk(1, 0, "abc")}}, 0, nil, "abc", io.ErrUnexpectedEOF},
		{"only another stream", []frame{{rpc.FrameArrow, chunk(2, 1, "abc")}}, 0, nil, "", io.ErrUnexpectedEOF},
		{"cut", []frame{{rpc.FrameArrow, chunk(1, 0, "abc")}, {rpc.FrameArrow, chunk(1, 1, "def")}}, 1, nil, "abc", io.ErrUnexpectedEOF},
		{"short chunk", []frame{{rpc.FrameArrow, chunk(1, 0, "abc")}, {rpc.FrameArrow, []byte("1234567")}, {rpc.FrameArrow, chunk(1, 1, "def")}}, 0, nil, "abc", rpc.ErrMessage},
		{"flags", []frame{{rpc.FrameArrow, chunk(1, 2, "abc")}, {rpc.FrameArrow, chunk(1, 1, "def")}}, 0, nil, "", rpc.ErrMessage},
		{"other", []frame{{rpc.FrameResponse, nil}, {rpc.FrameArrow, chunk(1, 1, "def")}}, 0, broken, "", broken},
		{"empty chunks", []frame{{rpc.FrameArrow, chunk(1, 0, "")}, {rpc.FrameArrow, chunk(1, 0, "a")}, {rpc.FrameArrow, chunk(1, 1, "")}, {rpc.FrameArrow, chunk(1, 1, "b")}}, 0, nil, "a", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log frameLog
			for _, f := range tc.frames {
				log.send(f.typ, f.payload)
			}
			log.Truncate(log.Len() - tc.cut)
			r := &rpc.PayloadReader{Frames: rpc.NewFrameReader(&log, 0, 0), Stream: 1}
			if tc.other != nil {
				r.Other = func(rpc.Frame) error { return tc.other }
			}
			got, err := io.ReadAll(r)
			if string(got) != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("read %q, %v; want %q, %v", got, err, tc.want, tc.err)
			}
			if n, again := r.Read(make([]byte, 10)); n != 0 || again != err && (err != nil || again != io.EOF) {
				t.Errorf("then %d bytes, %v", n, again)
			}
		})
	}
	r := &rpc.PayloadReader{} // a read of nothing needs no frames
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("Read(nil) = %d, %v", n, err)
	}
}

func TestPayloadWriterErrors(t *testing.T) {
	broken := errors.New("broken")
	sent := 0
	w := rpc.NewPayloadWriter(1, func(rpc.FrameType, ...[]byte) error {
		if sent++; sent == 2 {
			return broken
		}
		return nil
	})
	b := make([]byte, 256<<10-8)
	if n, err := w.Write(b); n != len(b) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := w.Write(append(b, 1)); n != 0 || err != broken {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := w.Write([]byte("x")); n != 0 || err != broken {
		t.Errorf("after an error: %d, %v", n, err)
	}
	for range 2 {
		if err := w.Close(); err != broken {
			t.Errorf("Close: %v", err)
		}
	}
	if sent != 2 || w.Bytes() != int64(len(b)) {
		t.Errorf("sent %d frames, %d bytes", sent, w.Bytes())
	}

	w = rpc.NewPayloadWriter(1, new(frameLog).send)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write([]byte("x")); n != 0 || err == nil {
		t.Errorf("after Close: %d, %v", n, err)
	}
}
