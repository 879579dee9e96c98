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
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// writeJournal writes n frames of random sizes and closes the journal. It
// returns what it consists of, and where its frames start.
func writeJournal(t testing.TB, r *rand.Rand, store rpc.Store, n int, segmentBytes int64) (whole []byte, starts []int64) {
	t.Helper()
	j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: segmentBytes})
	add := func(typ rpc.FrameType, payload []byte) {
		starts = append(starts, int64(len(whole)))
		whole = rpc.AppendFrame(whole, typ, int64(len(whole)), payload)
	}
	for range n {
		payload := randomBytes(r, r.IntN(300))
		if err := j.Append(rpc.FrameArrow, payload); err != nil {
			t.Fatal(err)
		}
		add(rpc.FrameArrow, payload)
	}
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
	add(rpc.FrameClose, fmt.Appendf(nil, `{"type":"close","data":%s}`, closeReason))
	return whole, starts
}

// onlyWriter hides all methods but Write.
type onlyWriter struct{ io.Writer }

func TestTailFromEveryFrame(t *testing.T) {
	t.Parallel()
	r := newRand(t)
	for name, store := range map[string]rpc.Store{"memory": newMemStore(), "directory": dirStore(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			whole, starts := writeJournal(t, r, store, 60, 700)
			for _, from := range starts {
				for _, follow := range []bool{true, false} {
					var got bytes.Buffer
					if err := rpc.Tail(t.Context(), store, from, follow, &got); err != nil {
						t.Fatalf("from %d: %v", from, err)
					}
					if !bytes.Equal(got.Bytes(), whole[from:]) {
						t.Fatalf("from %d: %d bytes, want %d", from, got.Len(), len(whole)-int(from))
					}
				}
			}
			var got bytes.Buffer // nothing comes after the close frame
			if err := rpc.Tail(t.Context(), store, int64(len(whole)), false, &got); err != nil || got.Len() > 0 {
				t.Errorf("from the end: %d bytes, %v", got.Len(), err)
			}
		})
	}
}

func TestTailWrongOffset(t *testing.T) {
	r := newRand(t)
	store := newMemStore()
	whole, starts := writeJournal(t, r, store, 8, 300)
	isStart := make(map[int64]bool)
	for _, s := range starts {
		isStart[s] = true
	}
	for from := range int64(len(whole)) {
		if isStart[from] {
			continue
		}
		for _, follow := range []bool{true, false} {
			// A few bytes at the end of a segment can begin like a header.
			if whole[from] == 'O' {
				continue
			}
			var got bytes.Buffer
			err := rpc.Tail(t.Context(), store, from, follow, &got)
			if !errors.Is(err, rpc.ErrFrameCorrupt) || got.Len() > 0 {
				t.Fatalf("from %d: copied %d bytes, %v", from, got.Len(), err)
			}
		}
	}
	for _, from := range []int64{-1, math.MinInt64, int64(len(whole)) + 1, 1 << 40, math.MaxInt64} {
		for _, follow := range []bool{true, false} {
			if err := rpc.Tail(t.Context(), store, from, follow, io.Discard); !errors.Is(err, rpc.ErrFrameOffset) {
				t.Errorf("from %d: %v", from, err)
			}
		}
	}
	// A payload that looks like a frame is at the wrong place.
	store = newMemStore()
	j := newJournal(t, store, nil)
	if err := j.Append(rpc.FrameArrow, rpc.AppendFrame(nil, rpc.FrameArrow, 0)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
	if err := rpc.Tail(t.Context(), store, rpc.HeaderSize, true, io.Discard); !errors.Is(err, rpc.ErrFrameCorrupt) {
		t.Errorf("from a frame in a payload: %v", err)
	}
}

// store with one segment that holds b.
func storeOf(t *testing.T, b []byte) *memStore {
	t.Helper()
	store := newMemStore()
	w, err := store.Create(segment(0))
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	return store
}

func TestTailBrokenJournal(t *testing.T) {
	good := rpc.AppendFrame(nil, rpc.FrameEvent, 0, []byte("good"))
	at := int64(len(good))
	for _, tc := range []struct {
		name string
		next []byte
		want error
	}{
		{"no frame", make([]byte, 30), rpc.ErrFrameCorrupt},
		{"wrong place", rpc.AppendFrame(nil, rpc.FrameEvent, at+1), rpc.ErrFrameCorrupt},
		{"too large", rpc.AppendFrame(nil, rpc.FrameEvent, at, make([]byte, rpc.MaxPayload+1)), rpc.ErrFrameTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got bytes.Buffer
			err := rpc.Tail(t.Context(), storeOf(t, append(bytes.Clone(good), tc.next...)), 0, true, &got)
			if !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if !bytes.Equal(got.Bytes(), good) {
				t.Errorf("copied %q, want the good frame", got.Bytes())
			}
		})
	}
}

// Without follow a tail ends where the journal does, also inside a frame, and
// with follow it goes on from there.
func TestTailTornEnd(t *testing.T) {
	whole, _ := randomFrames(newRand(t), 0, 3, 50)
	var encoded []byte
	for _, f := range whole {
		encoded = rpc.AppendFrame(encoded, f.Type, int64(len(encoded)), f.Payload)
	}
	encoded = rpc.AppendFrame(encoded, rpc.FrameClose, int64(len(encoded)), []byte("x"))
	for n := range len(encoded) + 1 {
		store := storeOf(t, encoded[:n])
		var got bytes.Buffer
		if err := rpc.Tail(t.Context(), store, 0, false, &got); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if !bytes.Equal(got.Bytes(), encoded[:n]) {
			t.Fatalf("%d bytes: copied %d", n, got.Len())
		}
		synctest.Test(t, func(t *testing.T) {
			store := storeOf(t, encoded[:n])
			done := make(chan error, 1)
			var got bytes.Buffer
			go func() { done <- rpc.Tail(t.Context(), store, 0, true, &got) }()
			for i := n; i < len(encoded); i++ {
				synctest.Wait()
				if !bytes.Equal(got.Bytes(), encoded[:i]) {
					t.Fatalf("%d bytes: copied %d", i, got.Len())
				}
				store.segments[segment(0)].Write(encoded[i : i+1])
			}
			if err := <-done; err != nil || !bytes.Equal(got.Bytes(), encoded) {
				t.Fatalf("copied %d bytes of %d, %v", got.Len(), len(encoded), err)
			}
		})
	}
}

func TestTailEmptyStore(t *testing.T) {
	for name, store := range map[string]rpc.Store{
		"memory": newMemStore(), "directory": dirStore(t.TempDir()), "no directory": dirStore(filepath.Join(t.TempDir(), "none")),
	} {
		if err := rpc.Tail(t.Context(), store, 0, false, io.Discard); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A tail may be started before the journal.
func TestTailBeforeJournal(t *testing.T) {
	for name, store := range map[string]rpc.Store{"memory": newMemStore(), "directory": dirStore(filepath.Join(t.TempDir(), "journal"))} {
		t.Run(name, func(t *testing.T) {
			pr, pw := io.Pipe()
			go func() { pw.CloseWithError(rpc.Tail(t.Context(), store, 0, true, pw)) }()
			j := newJournal(t, store, nil)
			for i := range 3 { // each arrives before the next is written
				if err := j.Append(rpc.FrameResponse, []byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, rpc.HeaderSize+1)
				if _, err := io.ReadFull(pr, b); err != nil || b[rpc.HeaderSize] != byte(i) {
					t.Fatalf("%x, %v", b, err)
				}
			}
			if err := j.Close(closeReason); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, pr); err != nil {
				t.Error(err)
			}
		})
	}
}

// A store that gives no notices, or whose watcher has ended, is looked at from
// time to time.
func TestTailWithoutNotices(t *testing.T) {
	for _, closed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			store := newMemStore()
			store.silent = true
			var watched rpc.Store = store
			if closed {
				watched = unwatched{store}
			}
			var got bytes.Buffer
			done := make(chan error, 1)
			go func() { done <- rpc.Tail(t.Context(), watched, 0, true, &got) }()
			synctest.Wait()
			j := newJournal(t, store, nil)
			start := time.Now()
			if err := j.Close(closeReason); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil || int64(got.Len()) != j.Size() {
				t.Errorf("%d bytes of %d, %v", got.Len(), j.Size(), err)
			}
			if waited := time.Since(start); waited > time.Second {
				t.Errorf("took %v", waited)
			}
		})
	}
}

type unwatched struct{ *memStore }

func (unwatched) Watch() (<-chan struct{}, func(), error) {
	c := make(chan struct{})
	close(c)
	return c, func() {}, nil
}

func TestTailTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 100})
		for range 10 {
			if err := appendSized(j, 60); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if err := j.Ack(250); err != nil {
			t.Fatal(err)
		}
		for from := int64(0); from < 600; from += 60 {
			err := rpc.Tail(t.Context(), store, from, false, io.Discard)
			if from < 240 && !errors.Is(err, rpc.ErrJournalTrimmed) || from >= 240 && err != nil {
				t.Errorf("from %d: %v", from, err)
			}
			if from >= 240 {
				continue // one that follows would wait for more
			}
			if err := rpc.Tail(t.Context(), store, from, true, io.Discard); !errors.Is(err, rpc.ErrJournalTrimmed) {
				t.Errorf("from %d, following: %v", from, err)
			}
		}
	})
}

// A segment can be dropped between the look into the directory and its
// opening, and once all are gone that is an error and no endless loop.
func TestTailTrimmedWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 50})
		for range 5 {
			if err := appendSized(j, 60); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		store.open = func(name string) {
			if name != segment(300) {
				j.Ack(300)
			}
		}
		if err := rpc.Tail(t.Context(), store, 0, true, io.Discard); !errors.Is(err, rpc.ErrJournalTrimmed) {
			t.Errorf("error is %v", err)
		}
	})

	stuck := stuckStore{newMemStore()}
	if _, err := stuck.Create(segment(0)); err != nil {
		t.Fatal(err)
	}
	if err := rpc.Tail(t.Context(), stuck, 0, true, io.Discard); !errors.Is(err, rpc.ErrJournalTrimmed) {
		t.Errorf("error is %v", err)
	}
}

// stuckStore lists segments that cannot be opened.
type stuckStore struct{ *memStore }

func (stuckStore) Open(name string) (rpc.SegmentReader, error) { return nil, fs.ErrNotExist }

// A tail that fell behind another one, whose host acknowledged what it read,
// must not wait for segments that are gone.
func TestTailLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 100})
		add := func(n int) {
			for range n {
				if err := appendSized(j, 60); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		add(1)
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- rpc.Tail(t.Context(), store, 0, true, pw) }()
		synctest.Wait() // it has the first segment open and waits for its reader
		add(10)
		if err := j.Ack(j.Size()); err != nil {
			t.Fatal(err)
		}
		n := make(chan int64)
		go func() {
			copied, _ := io.Copy(io.Discard, pr)
			n <- copied
		}()
		err := <-done
		pw.Close()
		if !errors.Is(err, rpc.ErrJournalTrimmed) {
			t.Errorf("error is %v", err)
		}
		if got := <-n; got != 120 {
			t.Errorf("copied %d bytes, want the whole segment of 120", got)
		}
	})
}

// unwatchable is a store that has run out of watches.
type unwatchable struct{ *memStore }

func (unwatchable) Watch() (<-chan struct{}, func(), error) {
	return nil, nil, errors.New("too many open files")
}

// TestTailWithoutWatch: a tail that cannot watch looks from time to time.
func TestTailWithoutWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j, err := rpc.NewJournal(store, nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		done := make(chan error, 1)
		go func() { done <- rpc.Tail(t.Context(), unwatchable{store}, 0, true, &out) }()
		for range 10 {
			time.Sleep(time.Second) // of the bubble's clock: the tail is at its end
			if err := j.AppendData(rpc.FrameEvent, []byte(`{}`)); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close([]byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), store.bytes()) {
			t.Errorf("copied %d of %d bytes", out.Len(), len(store.bytes()))
		}
	})
}

func TestTailErrors(t *testing.T) {
	broken := errors.New("broken")
	store := newMemStore()
	writeJournal(t, newRand(t), store, 10, 100)
	for _, tc := range []struct {
		name  string
		store rpc.Store
		w     io.Writer
		want  error
	}{
		{"writer", store, writerFunc(func([]byte) (int, error) { return 0, broken }), broken},
		{"short writer", store, writerFunc(func(p []byte) (int, error) { return len(p) / 2, nil }), io.ErrShortWrite},
		{"list", unlistable{}, io.Discard, fs.ErrPermission},
		{"open", brokenStore{store, broken, nil}, io.Discard, broken},
		{"read", brokenStore{store, nil, broken}, io.Discard, broken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := rpc.Tail(t.Context(), tc.store, 0, true, tc.w); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
		})
	}
	err := rpc.Tail(t.Context(), store, 0, true, writerFunc(func([]byte) (int, error) { return 0, broken }))
	if err != broken {
		t.Errorf("the writer's error was wrapped: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type brokenStore struct {
	*memStore
	open, read error
}

func (s brokenStore) Open(name string) (rpc.SegmentReader, error) {
	if s.open != nil {
		return nil, s.open
	}
	return brokenReader{s.read}, nil
}

type brokenReader struct{ err error }

func (r brokenReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }
func (r brokenReader) Close() error                      { return nil }

func TestTailCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, exists := range map[string]bool{"no journal": false, "idle": true} {
			store := newMemStore()
			if exists {
				j := newJournal(t, store, nil)
				if err := j.AppendData(rpc.FrameEvent, []byte(`{}`)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- rpc.Tail(ctx, store, 0, true, io.Discard) }()
			synctest.Wait()
			start := time.Now()
			cancel()
			if err := <-done; err != context.Canceled {
				t.Errorf("%s: %v", name, err)
			}
			if waited := time.Since(start); waited > 0 {
				t.Errorf("%s: took %v", name, waited)
			}
		}
		// Also while there is always more.
		ctx, cancel := context.WithCancel(t.Context())
		endless := storeOf(t, rpc.AppendFrame(nil, rpc.FrameEvent, 0, make([]byte, rpc.MaxPayload)))
		n := 0
		err := rpc.Tail(ctx, endless, 0, true, writerFunc(func(p []byte) (int, error) {
			if n++; n == 2 {
				cancel()
			}
			return len(p), nil
		}))
		if err != context.Canceled || n != 2 {
			t.Errorf("%v after %d writes", err, n)
		}
	})
}

// A tail follows a journal that is written meanwhile, over many segments.
func TestTailWhileWritten(t *testing.T) {
	for _, kind := range []string{"memory", "directory"} {
		for _, segmentBytes := range []int64{1, 700, 20_000} {
			t.Run(fmt.Sprintf("%s/%d", kind, segmentBytes), func(t *testing.T) {
				r := newRand(t)
				var store rpc.Store = newMemStore()
				if kind == "directory" {
					store = dirStore(t.TempDir())
				}
				seed := r.Uint64()
				var want []byte
				written := make(chan struct{})
				go func() {
					defer close(written)
					want, _ = writeJournal(t, rand.New(rand.NewPCG(seed, 1)), store, 2000, segmentBytes)
				}()
				var tails sync.WaitGroup
				results := make([]bytes.Buffer, 3)
				for i := range results {
					tails.Go(func() {
						if err := rpc.Tail(t.Context(), store, 0, true, &results[i]); err != nil {
							t.Error(err)
						}
					})
				}
				tails.Wait()
				<-written
				for i := range results {
					if !bytes.Equal(results[i].Bytes(), want) {
						t.Errorf("tail %d: %d bytes, want %d", i, results[i].Len(), len(want))
					}
				}
			})
		}
	}
}

// cutReader fails after n bytes, as a lost connection.
type cutReader struct {
	r io.Reader
	n int
}

var errCut = errors.New("connection cut")

func (c *cutReader) Read(p []byte) (int, error) {
	if c.n == 0 {
		return 0, errCut
	}
	n, err := c.r.Read(p[:min(len(p), c.n)])
	c.n -= n
	return n, err
}

// TestExactlyOnce cuts the connection at random bytes: every event arrives
// once and in order all the same.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	total := stress(40_000, 3_000_000)
	for _, kind := range []string{"memory", "directory"} {
		t.Run(kind, func(t *testing.T) {
			r := newRand(t)
			var store rpc.Store = newMemStore()
			if kind == "directory" {
				store = dirStore(t.TempDir())
			}
			j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 64 << 10, MaxUnacked: 1 << 20})
			go func() {
				var line []byte
				l := rpc.Line{Time: benchTime, Session: "s", Name: "n"}
				fields := map[string]any{}
				for i := range total {
					fields["n"] = i
					line = l.AppendEvent(line[:0], fields)
					if err := j.AppendData(rpc.FrameEvent, line); err != nil {
						t.Error(err)
						break
					}
				}
				if err := j.Close(closeReason); err != nil {
					t.Error(err)
				}
			}()
			offset, next, cuts, closed := int64(0), 0, 0, false
			connect := func() {
				ctx, cancel := context.WithCancel(t.Context())
				pr, pw := io.Pipe()
				done := make(chan struct{})
				from := offset // a cut at the first byte does not wait for the tail
				go func() {
					defer close(done)
					pw.CloseWithError(rpc.Tail(ctx, store, from, true, onlyWriter{pw}))
				}()
				defer func() {
					cancel()
					pr.Close()
					<-done
				}()
				fr := rpc.NewFrameReader(&cutReader{pr, r.IntN(200_000)}, offset, 0)
				for {
					f, err := fr.Next()
					if offset = fr.Offset(); err == errCut {
						cuts++
						return
					}
					if err == io.EOF && closed {
						return
					}
					if err != nil {
						t.Fatalf("after event %d: %v", next-1, err)
					}
					data, err := rpc.Data(f.Type, f.Payload)
					if err != nil {
						t.Fatal(err)
					}
					if f.Type == rpc.FrameClose {
						closed = true
						continue
					}
					if !bytes.HasSuffix(data, fmt.Appendf(nil, `,"n":%d}`, next)) {
						t.Fatalf("event %d is %s", next, data)
					}
					next++
					if r.IntN(1000) == 0 || r.IntN(10) == 0 && j.Size()-offset > 500<<10 {
						if err := j.Ack(offset - r.Int64N(min(offset, 1000))); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			for !closed {
				connect()
			}
			if next != total {
				t.Errorf("%d events, want %d", next, total)
			}
			if offset != j.Size() {
				t.Errorf("read up to %d of %d", offset, j.Size())
			}
			t.Logf("%d events, %d cuts, %d bytes", next, cuts, offset)
		})
	}
}

// Segments are found by name alone: others in the directory do not matter.
func TestTailIgnoresOtherNames(t *testing.T) {
	store := newMemStore()
	for _, name := range []string{"00000000000000000000.journal.tmp", "-0000000000000000001.journal", "99999999999999999999.journal", "0000000000000000000x.journal"} {
		if _, err := store.Create(name); err != nil {
			t.Fatal(err)
		}
	}
	j := newJournal(t, store, nil)
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := rpc.Tail(t.Context(), store, 0, true, &got); err != nil {
		t.Fatal(err)
	}
	frames, err := readFrames(rpc.NewFrameReader(&got, 0, 0))
	if len(frames) != 1 || err != io.EOF {
		t.Errorf("%d frames, %v", len(frames), err)
	}
	if diff := cmp.Diff(rpc.FrameClose, frames[0].Type); diff != "" {
		t.Error(diff)
	}
}

// Segments that are gone, all or some, will not come: that is an error, and not
// a wait.
func TestTailLostSegments(t *testing.T) {
	for _, test := range []struct {
		name string
		lost []int64
		from int64
	}{
		{"all", []int64{0, 60, 120, 180, 240}, 60},
		{"one in the middle", []int64{120}, 60},
		{"one in the middle, where it starts", []int64{120}, 120},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemStore()
				j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 50})
				for range 4 {
					if err := appendSized(j, 60); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				for _, base := range test.lost {
					if err := store.Remove(segment(base)); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := rpc.Tail(ctx, store, test.from, true, io.Discard); !errors.Is(err, rpc.ErrJournalTrimmed) {
					t.Errorf("error is %v", err)
				}
			})
		})
	}
}
