package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// put makes a segment with a content.
func (s *memStore) put(name string, content []byte) {
	s.segments[name] = &memSegment{store: s, name: name, data: bytes.Clone(content), closed: true}
}

// tailed returns the frames of a journal from an offset, read by a tail.
func tailed(t testing.TB, store rpc.Store, from int64) []rpc.Frame {
	t.Helper()
	var b bytes.Buffer
	if err := rpc.Tail(context.Background(), store, from, false, &b); err != nil {
		t.Fatal(err)
	}
	fr := rpc.NewFrameReader(&b, from, 0)
	var frames []rpc.Frame
	for {
		f, err := fr.Next()
		if err == io.EOF {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Payload = bytes.Clone(f.Payload)
		frames = append(frames, f)
	}
}

// A journal is gone on with after its writer's death at any byte: the whole
// frames stay, the next one is where the torn one was.
func TestOpenJournalTornAtEveryByte(t *testing.T) {
	var whole []byte
	starts := []int64{0}
	for i := range 5 {
		whole = rpc.AppendFrame(whole, rpc.FrameEvent, int64(len(whole)), bytes.Repeat([]byte{'a' + byte(i)}, 9*i))
		starts = append(starts, int64(len(whole)))
	}
	for cut := range len(whole) + 1 {
		for _, kind := range []string{"memory", "directory"} {
			if kind == "directory" && cut%7 != 0 && cut != len(whole) {
				continue // the disk says the same, slower
			}
			var store rpc.Store
			if kind == "memory" {
				s := newMemStore()
				s.put(segment(0), whole[:cut])
				store = s
			} else {
				d := dirStore(t.TempDir())
				w, err := d.Create(segment(0))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(whole[:cut]); err != nil {
					t.Fatal(err)
				}
				w.Close()
				store = d
			}
			n := 0 // whole frames
			for n+1 < len(starts) && starts[n+1] <= int64(cut) {
				n++
			}
			if cut%2 == 0 { // it makes no difference
				if size, err := rpc.CutJournal(store); err != nil || size != starts[n] {
					t.Errorf("cut at %d: %d bytes are left, %v, want %d", cut, size, err, starts[n])
				}
			}
			j, err := rpc.OpenJournal(store, nil)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if j.Size() != starts[n] {
				t.Errorf("cut at %d: size %d, want %d", cut, j.Size(), starts[n])
			}
			if err := j.Append(rpc.FrameArrow, []byte("next")); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(closeReason); err != nil {
				t.Fatal(err)
			}
			for from := 0; from <= n; from++ { // every cursor a host may have
				frames := tailed(t, store, starts[from])
				if len(frames) != n-from+2 {
					t.Fatalf("cut at %d: %d frames from %d, want %d", cut, len(frames), starts[from], n-from+2)
				}
				if f := frames[n-from]; f.Offset != starts[n] || string(f.Payload) != "next" {
					t.Errorf("cut at %d: %s %q at %d", cut, f.Type, f.Payload, f.Offset)
				}
				if frames[n-from+1].Type != rpc.FrameClose {
					t.Errorf("cut at %d: it ends with %s", cut, frames[n-from+1].Type)
				}
			}
		}
	}
}

// Segments that were acknowledged and dropped are no obstacle, and those that
// are left can be acknowledged.
func TestOpenJournalWithDroppedSegments(t *testing.T) {
	store := newMemStore()
	r := rand.New(rand.NewPCG(1, 2))
	whole, starts := writeJournal(t, r, store, 60, 1000)
	names := store.names()
	if len(names) < 5 {
		t.Fatalf("%d segments", len(names))
	}
	// Without its close frame, and without its first two segments.
	last := store.segments[names[len(names)-1]]
	end := starts[len(starts)-1]
	last.data = last.data[:len(last.data)-(len(whole)-int(end))]
	for _, name := range names[:2] {
		delete(store.segments, name)
	}
	var first int64
	fmt.Sscanf(names[2], "%d", &first)
	limit := end - first + 100
	j, err := rpc.OpenJournal(store, &rpc.JournalOptions{SegmentBytes: 1000, MaxUnacked: limit})
	if err != nil {
		t.Fatal(err)
	}
	if j.Size() != end {
		t.Errorf("size %d, want %d", j.Size(), end)
	}
	if err := appendSized(j, 50); err != nil { // there is room: what was dropped does not count
		t.Fatal(err)
	}
	frames := tailed(t, store, first)
	var got []byte
	for _, f := range frames[:len(frames)-1] {
		got = rpc.AppendFrame(got, f.Type, f.Offset, f.Payload)
	}
	if !bytes.Equal(got, whole[first:end]) {
		t.Error("what was written before has changed")
	}
	if err := j.Ack(j.Size()); err != nil {
		t.Fatal(err)
	}
	if left := store.names(); len(left) != 1 {
		t.Errorf("segments %v are left", left)
	}
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
}

func TestOpenJournalRefuses(t *testing.T) {
	frame := func(typ rpc.FrameType, offset int64, payload string) []byte {
		return rpc.AppendFrame(nil, typ, offset, []byte(payload))
	}
	event := frame(rpc.FrameEvent, 0, `{"type":"event","data":{}}`)
	n := int64(len(event))
	damaged := bytes.Clone(event)
	damaged[len(damaged)-1] ^= 1
	huge := bytes.Clone(event)
	huge[10] = 0x7f // the payload's length
	for _, test := range []struct {
		name     string
		segments map[int64][]byte
		want     error
	}{
		{"no journal", nil, fs.ErrNotExist},
		{"closed", map[int64][]byte{0: append(bytes.Clone(event), frame(rpc.FrameClose, n, `{"type":"close","data":{}}`)...)}, rpc.ErrJournalClosed},
		{"closed in the last segment", map[int64][]byte{0: event, n: frame(rpc.FrameClose, n, `{"type":"close","data":{}}`)}, rpc.ErrJournalClosed},
		{"damaged frame", map[int64][]byte{0: append(damaged, frame(rpc.FrameEvent, n, "x")...)}, rpc.ErrFrameCorrupt},
		{"damaged last frame", map[int64][]byte{0: damaged}, rpc.ErrFrameCorrupt},
		{"no frame", map[int64][]byte{0: bytes.Repeat([]byte("x"), 100)}, rpc.ErrFrameCorrupt},
		{"huge frame", map[int64][]byte{0: huge}, rpc.ErrFrameTooLarge},
		{"frame out of place", map[int64][]byte{0: frame(rpc.FrameEvent, 5, "x")}, rpc.ErrFrameOffset},
		{"segment out of reach", map[int64][]byte{math.MaxInt64 - 3: nil}, rpc.ErrFrameOffset},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := newMemStore()
			for base, b := range test.segments {
				store.put(segment(base), b)
			}
			before := store.bytes()
			if _, err := rpc.OpenJournal(store, nil); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if _, err := rpc.CutJournal(store); !errors.Is(err, test.want) {
				t.Errorf("cut: error %v, want %v", err, test.want)
			}
			if diff := cmp.Diff(before, store.bytes()); diff != "" {
				t.Errorf("it was changed (-before +after):\n%s", diff)
			}
		})
	}
}

// Flush returns when a flood is in the store.
func TestJournalFlush(t *testing.T) {
	store := newMemStore()
	j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 10_000})
	for range 2000 {
		if err := appendSized(j, 60); err != nil {
			t.Fatal(err)
		}
	}
	size := j.Size()
	if err := j.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := int64(len(store.bytes())); got != size {
		t.Errorf("%d bytes are in the store, want %d", got, size)
	}
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
	if err := j.Flush(); err != nil {
		t.Errorf("flush of a closed journal: %v", err)
	}
}

func TestJournalFlushFails(t *testing.T) {
	store := newMemStore()
	j := newJournal(t, store, nil)
	store.write = func(string, []byte) (int, error) { return 0, errors.New("disk is full") }
	if err := appendSized(j, 60); !errors.Is(err, rpc.ErrJournalFailed) {
		t.Errorf("append: %v", err)
	}
	if err := j.Flush(); !errors.Is(err, rpc.ErrJournalFailed) {
		t.Errorf("flush: %v", err)
	}
	_ = j.Close(closeReason)
}

// Whatever a segment holds, opening it neither panics nor costs much memory,
// and what is opened can be gone on with.
func FuzzOpenJournal(f *testing.F) {
	_, encoded := randomFrames(rand.New(rand.NewPCG(1, 2)), 0, 4, 40)
	f.Add(encoded, int64(0))
	f.Add(encoded[:len(encoded)-1], int64(0))
	f.Add([]byte{}, int64(math.MaxInt64))
	f.Add(rpc.AppendFrame(nil, rpc.FrameClose, 7), int64(7))
	huge := bytes.Clone(encoded)
	huge[10] = 0x0f // just below the limit: it is read only as far as it is there
	f.Add(huge, int64(0))
	f.Fuzz(func(t *testing.T, content []byte, base int64) {
		if base < 0 {
			return
		}
		store := newMemStore()
		store.put(segment(base), content)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		j, err := rpc.OpenJournal(store, nil)
		runtime.ReadMemStats(&after)
		if cost := after.TotalAlloc - before.TotalAlloc; cost > 4<<20 {
			t.Errorf("opening %d bytes took %d", len(content), cost)
		}
		if err != nil {
			if !errors.Is(err, rpc.ErrJournalClosed) && !typed(err) {
				t.Errorf("error is %v", err)
			}
			return
		}
		size := j.Size()
		if size < base || size > base+int64(len(content)) || !bytes.Equal(store.bytes(), content[:size-base]) {
			t.Errorf("size %d, of %d bytes at %d", size, len(content), base)
		}
		if err := j.Append(rpc.FrameArrow, []byte("next")); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(closeReason); err != nil {
			t.Fatal(err)
		}
		if frames := tailed(t, store, size); len(frames) != 2 || string(frames[0].Payload) != "next" {
			t.Errorf("then it has %d frames", len(frames))
		}
	})
}
