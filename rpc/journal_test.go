package rpc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

var closeReason = []byte(`{"exit_code":0,"reason":"shutdown"}`)

func segment(base int64) string { return fmt.Sprintf("%020d.journal", base) }

// newJournal starts a journal that is closed at the end of the test.
func newJournal(t testing.TB, store rpc.Store, opts *rpc.JournalOptions) *rpc.Journal {
	t.Helper()
	j, err := rpc.NewJournal(store, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close(closeReason) })
	return j
}

func TestJournalSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 100})
		var want []byte
		var names []string
		full := true
		for i := range 40 {
			if full {
				names, full = append(names, segment(int64(len(want)))), false
			}
			payload := bytes.Repeat([]byte{'a' + byte(i%26)}, i)
			want = rpc.AppendFrame(want, rpc.FrameResponse, int64(len(want)), payload)
			if err := j.Append(rpc.FrameResponse, payload[:i/2], payload[i/2:]); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the writer has written it
			var last int
			fmt.Sscanf(names[len(names)-1], "%d", &last)
			full = len(want)-last >= 100
			if got := j.Size(); got != int64(len(want)) {
				t.Fatalf("Size() = %d, want %d", got, len(want))
			}
		}
		if full {
			names = append(names, segment(int64(len(want))))
		}
		if err := j.Close(closeReason); err != nil {
			t.Fatal(err)
		}
		want = rpc.AppendFrame(want, rpc.FrameClose, int64(len(want)), []byte(`{"type":"close","data":`), closeReason, []byte("}"))
		if diff := cmp.Diff(names, store.created); diff != "" {
			t.Errorf("segments: -want +got\n%s", diff)
		}
		if !bytes.Equal(want, store.bytes()) {
			t.Errorf("the journal holds other bytes")
		}
		if j.Size() != int64(len(want)) {
			t.Errorf("Size() = %d, want %d", j.Size(), len(want))
		}
	})
}

func TestJournalData(t *testing.T) {
	store := newMemStore()
	j := newJournal(t, store, nil)
	data := `{"a":1}`
	types := []rpc.FrameType{rpc.FrameEvent, rpc.FrameMetric, rpc.FrameLog, rpc.FrameHeartbeat}
	for _, typ := range types {
		if err := j.AppendData(typ, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, typ := range []rpc.FrameType{rpc.FrameResponse, rpc.FrameArrow, rpc.FrameRequest, 0} {
		if err := j.AppendData(typ, []byte(data)); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("AppendData of a %s: %v", typ, err)
		}
		if err := j.AppendUrgent(typ, []byte(data)); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("AppendUrgent of a %s: %v", typ, err)
		}
	}
	big := make([]byte, rpc.MaxPayload)
	if err := j.AppendData(rpc.FrameEvent, big); !errors.Is(err, rpc.ErrFrameTooLarge) {
		t.Errorf("AppendData of %d bytes: %v", len(big), err)
	}
	if err := j.Append(rpc.FrameResponse, big, []byte("1")); !errors.Is(err, rpc.ErrFrameTooLarge) {
		t.Errorf("Append of one byte too many: %v", err)
	}
	if err := j.Append(rpc.FrameResponse, big[:1], big[1:]); err != nil {
		t.Errorf("Append of the most there may be: %v", err)
	}
	if err := j.Close(closeReason); err != nil {
		t.Fatal(err)
	}
	fr := rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0)
	for _, typ := range types {
		f, err := fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		got, err := rpc.Data(f.Type, f.Payload)
		if f.Type != typ || err != nil || string(got) != data {
			t.Errorf("%s: %s %s, %v", typ, f.Type, got, err)
		}
	}
}

func TestJournalCloseReason(t *testing.T) {
	for _, tc := range []struct {
		reason string
		want   rpc.Close
	}{
		{string(closeReason), rpc.Close{ExitCode: 0, Reason: "shutdown"}},
		{"", rpc.Close{ExitCode: 1, Reason: "closed with 0 bytes that are no reason"}},
		{"null", rpc.Close{ExitCode: 1, Reason: "closed with 4 bytes that are no reason"}},
		{"{\"exit_code\":\n0}", rpc.Close{ExitCode: 1, Reason: "closed with 16 bytes that are no reason"}},
		{`{"reason":"` + strings.Repeat("x", rpc.MaxPayload) + `"}`, rpc.Close{ExitCode: 1, Reason: "closed with 1048589 bytes that are no reason"}},
	} {
		store := newMemStore()
		j := newJournal(t, store, nil)
		if err := j.Close([]byte(tc.reason)); err != nil {
			t.Fatal(err)
		}
		f, err := rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0).Next()
		if err != nil {
			t.Fatal(err)
		}
		data, err := rpc.Data(f.Type, f.Payload)
		if err != nil {
			t.Fatalf("reason %.40q: %v", tc.reason, err)
		}
		var got rpc.Close
		if err := json.Unmarshal(data, &got); err != nil || got != tc.want {
			t.Errorf("reason %.40q: %+v, %v", tc.reason, got, err)
		}
	}
}

func TestJournalClosed(t *testing.T) {
	store := newMemStore()
	j := newJournal(t, store, nil)
	for range 2 {
		if err := j.Close(closeReason); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	size := j.Size()
	for name, err := range map[string]error{
		"Append":       j.Append(rpc.FrameResponse, []byte("{}")),
		"AppendData":   j.AppendData(rpc.FrameEvent, []byte("{}")),
		"AppendUrgent": j.AppendUrgent(rpc.FrameEvent, []byte("{}")),
	} {
		if !errors.Is(err, rpc.ErrJournalClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if j.Size() != size || int64(len(store.bytes())) != size {
		t.Errorf("size changed from %d to %d", size, j.Size())
	}
	if err := j.Ack(size); err != nil {
		t.Errorf("Ack: %v", err)
	}
}

func TestJournalNotEmpty(t *testing.T) {
	for _, name := range []string{segment(0), segment(500)} {
		store := newMemStore()
		if _, err := store.Create(name); err != nil {
			t.Fatal(err)
		}
		if _, err := rpc.NewJournal(store, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("with %s: %v", name, err)
		}
	}
}

// appendSized appends a frame of n bytes, header included.
func appendSized(j *rpc.Journal, n int) error {
	return j.Append(rpc.FrameResponse, make([]byte, n-rpc.HeaderSize))
}

func TestJournalAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 100})
		for range 10 { // segments start at 0, 120, 240, 360, 480, 600
			if err := appendSized(j, 60); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		for _, tc := range []struct {
			offset int64
			first  int64 // segment that remains
		}{
			{-1, 0}, {0, 0}, {60, 0}, {119, 0}, {120, 120}, {60, 120}, {300, 240}, {0, 240}, {480, 480}, {540, 480}, {600, 600}, {600, 600},
		} {
			if err := j.Ack(tc.offset); err != nil {
				t.Fatal(err)
			}
			if got := store.names(); got[0] != segment(tc.first) || len(got) != int(600-tc.first)/120+1 {
				t.Errorf("after ack of %d: %v", tc.offset, got)
			}
		}
		if err := j.Ack(601); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("ack beyond the end: %v", err)
		}
	})
}

// The acknowledgement of a whole segment can come before the journal knows
// that the next one exists.
func TestJournalAckWhileSwitching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		var j *rpc.Journal
		store.create = func(name string) error {
			if j != nil {
				return j.Ack(j.Size())
			}
			return nil
		}
		j = newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 50})
		if err := appendSized(j, 60); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{segment(60)}, store.names()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

func TestJournalFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		var warnings []int64
		var j *rpc.Journal
		j = newJournal(t, store, &rpc.JournalOptions{MaxUnacked: 1000, Full: func(unacked int64) {
			warnings = append(warnings, unacked)
			if err := j.AppendUrgent(rpc.FrameLog, []byte(`{"message":"full"}`)); err != nil {
				t.Error(err)
			}
		}})
		warning := int64(rpc.HeaderSize + len(`{"type":"log","data":{"message":"full"}}`))
		var returned atomic.Int64
		var wg sync.WaitGroup
		start := func(n int) {
			for range n {
				wg.Go(func() {
					if err := appendSized(j, 100); err != nil {
						t.Error(err)
					}
					returned.Add(1)
				})
			}
			synctest.Wait()
		}
		check := func(what string, wantReturned, wantSize int64, wantWarnings ...int64) {
			t.Helper()
			synctest.Wait()
			if n := returned.Load(); n != wantReturned {
				t.Fatalf("%s: %d appends returned, want %d", what, n, wantReturned)
			}
			if n := j.Size(); n != wantSize {
				t.Fatalf("%s: size %d, want %d", what, n, wantSize)
			}
			if diff := cmp.Diff(wantWarnings, warnings); diff != "" {
				t.Fatalf("%s: warnings: -want +got\n%s", what, diff)
			}
		}
		start(10)
		check("at the limit", 10, 1000)
		start(8)
		check("blocked", 10, 1000+warning, 1000)
		j.Ack(100) // the warning took this place
		check("acknowledged a little", 10, 1000+warning, 1000)
		j.Ack(300)
		check("acknowledged 300", 12, 1200+warning, 1000)
		j.Ack(400)
		check("room for one, and full again, but the host is still behind", 13, 1300+warning, 1000)
		j.Ack(1300)
		check("all pass", 18, 1800+warning, 1000)
		start(6)
		check("full once more", 22, 2200+2*warning, 1000, 900+warning)
		j.Ack(j.Size())
		check("all acknowledged", 24, 2400+2*warning, 1000, 900+warning)
		wg.Wait()
	})
}

// A frame larger than the limit is let through when nothing waits.
func TestJournalFullLargeFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warnings int
		j := newJournal(t, newMemStore(), &rpc.JournalOptions{MaxUnacked: 1, Full: func(int64) { warnings++ }})
		for i := range 3 {
			done := make(chan error)
			go func() { done <- appendSized(j, 500) }()
			synctest.Wait()
			if i > 0 {
				if err := j.Ack(j.Size()); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if warnings != 2 {
			t.Errorf("%d warnings, want 2", warnings)
		}
	})
}

func TestJournalCloseWhileFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		j := newJournal(t, store, &rpc.JournalOptions{MaxUnacked: 100})
		if err := appendSized(j, 100); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 5)
		for range cap(errs) {
			go func() { errs <- appendSized(j, 100) }()
		}
		synctest.Wait()
		if err := j.Close(closeReason); err != nil {
			t.Fatal(err)
		}
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, rpc.ErrJournalClosed) {
				t.Errorf("append: %v", err)
			}
		}
		frames, err := readFrames(rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0))
		if len(frames) != 2 || frames[1].Type != rpc.FrameClose || err != io.EOF {
			t.Errorf("%d frames, %v", len(frames), err)
		}
	})
}

// Nothing follows the close frame, also not while it is being written.
func TestJournalAppendWhileClosing(t *testing.T) {
	store := newMemStore()
	var j *rpc.Journal
	during := 0
	store.write = func(_ string, p []byte) (int, error) {
		if bytes.Contains(p, closeReason) {
			during++
			for name, err := range map[string]error{
				"Append":       appendSized(j, 100),
				"AppendData":   j.AppendData(rpc.FrameEvent, []byte(`{}`)),
				"AppendUrgent": j.AppendUrgent(rpc.FrameEvent, []byte(`{}`)),
			} {
				if !errors.Is(err, rpc.ErrJournalClosed) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		return len(p), nil
	}
	j = newJournal(t, store, nil)
	var closing sync.WaitGroup
	for range 4 {
		closing.Go(func() {
			if err := j.Close(closeReason); err != nil {
				t.Error(err)
			}
		})
	}
	closing.Wait()
	frames, err := readFrames(rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0))
	if len(frames) != 1 || err != io.EOF || during != 1 {
		t.Errorf("%d frames, %v; written %d times", len(frames), err, during)
	}
}

// Full may end the journal, and may panic.
func TestJournalFullCallback(t *testing.T) {
	t.Run("close", func(t *testing.T) {
		var j *rpc.Journal
		j = newJournal(t, newMemStore(), &rpc.JournalOptions{MaxUnacked: 100, Full: func(int64) { j.Close(closeReason) }})
		if err := appendSized(j, 100); err != nil {
			t.Fatal(err)
		}
		if err := appendSized(j, 100); !errors.Is(err, rpc.ErrJournalClosed) {
			t.Errorf("append: %v", err)
		}
	})
	t.Run("ack", func(t *testing.T) {
		var j *rpc.Journal
		j = newJournal(t, newMemStore(), &rpc.JournalOptions{MaxUnacked: 100, Full: func(int64) { j.Ack(j.Size()) }})
		for range 10 {
			if err := appendSized(j, 100); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("panic", func(t *testing.T) {
		j := newJournal(t, newMemStore(), &rpc.JournalOptions{MaxUnacked: 100, Full: func(int64) { panic("full") }})
		if err := appendSized(j, 100); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if r := recover(); r != "full" {
					t.Errorf("recovered %v", r)
				}
			}()
			appendSized(j, 100)
		}()
		if err := j.Ack(100); err != nil { // the lock is free
			t.Fatal(err)
		}
		if err := appendSized(j, 100); err != nil {
			t.Fatal(err)
		}
	})
}

// A disk that is full at any byte leaves whole frames, and an error that every
// later call returns.
func TestJournalWriteError(t *testing.T) {
	const frame = 50
	for limit := range 4*frame + 1 { // one write for each
		synctest.Test(t, func(t *testing.T) {
			store := newMemStore()
			room := limit
			store.write = func(_ string, p []byte) (int, error) {
				n := min(room, len(p))
				room -= n
				if n < len(p) {
					return n, syscall.ENOSPC
				}
				return n, nil
			}
			j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 120})
			var err error
			appended := 0
			for ; appended < 10 && err == nil; appended++ {
				err = appendSized(j, frame)
				synctest.Wait()
			}
			if !errors.Is(err, rpc.ErrJournalFailed) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("room for %d bytes: error is %v", limit, err)
			}
			if got := j.Close(closeReason); got != err {
				t.Errorf("room for %d bytes: Close: %v", limit, got)
			}
			if got := j.AppendUrgent(rpc.FrameLog, []byte(`{}`)); got != err {
				t.Errorf("room for %d bytes: AppendUrgent: %v", limit, got)
			}
			frames, readErr := readFrames(rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0))
			if len(frames) != limit/frame || readErr != io.EOF {
				t.Errorf("room for %d bytes: %d frames, %v", limit, len(frames), readErr)
			}
			if want := int64(limit / frame * frame); j.Size() != want {
				t.Errorf("room for %d bytes: Size() = %d, want %d", limit, j.Size(), want)
			}
		})
	}
}

// The same for a batch that has gathered while another write took its time.
func TestJournalWriteErrorInBatch(t *testing.T) {
	const frame, frames = 50, 5
	for limit := range frame*frames + 1 {
		synctest.Test(t, func(t *testing.T) {
			store := newMemStore()
			gate := make(chan struct{})
			writes := 0
			store.write = func(_ string, p []byte) (int, error) {
				switch writes++; writes {
				case 1:
					<-gate
				case 2:
					if len(p) != frame*frames {
						t.Errorf("a batch of %d bytes, want %d", len(p), frame*frames)
					}
					if limit < len(p) {
						return limit, syscall.ENOSPC
					}
				}
				return len(p), nil
			}
			j := newJournal(t, store, nil)
			first := make(chan error)
			go func() { first <- appendSized(j, frame) }()
			synctest.Wait()
			// They wait for the write they are part of, and learn how it went.
			batch := make(chan error)
			for range frames {
				go func() { batch <- appendSized(j, frame) }()
			}
			synctest.Wait()
			close(gate)
			if err := <-first; err != nil {
				t.Error(err)
			}
			for range frames {
				if err := <-batch; errors.Is(err, syscall.ENOSPC) != (limit < frame*frames) {
					t.Errorf("room for %d bytes: Append: %v", limit, err)
				}
			}
			whole := 1 + limit/frame
			if n := int64(whole * frame); j.Size() != n {
				t.Errorf("room for %d bytes: Size() = %d, want %d", limit, j.Size(), n)
			}
			err := j.Close(closeReason)
			if failed := limit < frame*frames; failed != errors.Is(err, syscall.ENOSPC) {
				t.Errorf("room for %d bytes: Close: %v", limit, err)
			} else if !failed {
				whole++ // the close frame
			}
			got, err := readFrames(rpc.NewFrameReader(bytes.NewReader(store.bytes()), 0, 0))
			if len(got) != whole || err != io.EOF {
				t.Errorf("room for %d bytes: %d frames, %v; want %d", limit, len(got), err, whole)
			}
		})
	}
}

// failingSegment fails where the test says.
type failingSegment struct {
	rpc.SegmentWriter
	closeErr, truncErr error
}

func (s failingSegment) Close() error {
	s.SegmentWriter.Close()
	return s.closeErr
}

func (s failingSegment) Truncate(size int64) error {
	if s.truncErr != nil {
		return s.truncErr
	}
	return s.SegmentWriter.Truncate(size)
}

type failingStore struct {
	*memStore
	closeErr, truncErr error
}

func (s *failingStore) Create(name string) (rpc.SegmentWriter, error) {
	w, err := s.memStore.Create(name)
	if err != nil {
		return nil, err
	}
	return failingSegment{w, s.closeErr, s.truncErr}, nil
}

func TestJournalStoreErrors(t *testing.T) {
	broken := errors.New("broken")
	// Appends until that fails, one write for each, over many segments.
	check := func(t *testing.T, store rpc.Store, mem *memStore, want ...error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 300})
			var err error
			for range 100 {
				if err = appendSized(j, 100); err != nil {
					break
				}
				synctest.Wait()
			}
			for _, want := range append(want, rpc.ErrJournalFailed) {
				if !errors.Is(err, want) {
					t.Fatalf("error is %v, want %v", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
		})
		mem.mu.Lock()
		defer mem.mu.Unlock()
		for name, seg := range mem.segments {
			if !seg.closed {
				t.Errorf("%s was left open", name)
			}
		}
	}
	t.Run("create", func(t *testing.T) {
		store := newMemStore()
		store.create = func(name string) error {
			if name != segment(0) {
				return broken
			}
			return nil
		}
		check(t, store, store, broken)
	})
	t.Run("create the first", func(t *testing.T) {
		store := newMemStore()
		store.create = func(string) error { return broken }
		if _, err := rpc.NewJournal(store, nil); !errors.Is(err, broken) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		mem := newMemStore()
		check(t, &failingStore{memStore: mem, closeErr: broken}, mem, broken)
	})
	t.Run("close the last", func(t *testing.T) {
		mem := newMemStore()
		j := newJournal(t, &failingStore{memStore: mem, closeErr: broken}, nil)
		if err := j.Close(closeReason); !errors.Is(err, broken) || !errors.Is(err, rpc.ErrJournalFailed) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("truncate", func(t *testing.T) {
		mem := newMemStore()
		mem.write = func(_ string, p []byte) (int, error) { return len(p) / 2, syscall.ENOSPC }
		check(t, &failingStore{memStore: mem, truncErr: broken}, mem, broken, syscall.ENOSPC)
	})
	t.Run("short write", func(t *testing.T) {
		store := newMemStore()
		store.write = func(_ string, p []byte) (int, error) { return len(p) - 1, nil }
		check(t, store, store, io.ErrShortWrite)
	})
	t.Run("impossible counts", func(t *testing.T) {
		for _, n := range []int{-1, 1 << 40} {
			store := newMemStore()
			store.write = func(_ string, p []byte) (int, error) { return n, syscall.EIO }
			check(t, store, store, syscall.EIO)
		}
	})
	t.Run("list", func(t *testing.T) {
		if _, err := rpc.NewJournal(unlistable{}, nil); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("error is %v", err)
		}
	})
}

type unlistable struct{ discardStore }

func (unlistable) List() ([]string, error) { return nil, fs.ErrPermission }

// A slow disk holds writers up instead of filling the memory, and Close waits
// for it.
func TestJournalSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		gate := make(chan struct{})
		var largest int
		store.write = func(_ string, p []byte) (int, error) {
			<-gate
			largest = max(largest, len(p))
			return len(p), nil
		}
		j := newJournal(t, store, nil)
		var appended atomic.Int64
		done := make(chan error, 1)
		go func() {
			for range 100 {
				if err := appendSized(j, 100<<10); err != nil {
					done <- err
					return
				}
				appended.Add(1)
			}
			done <- j.Close(closeReason)
		}()
		synctest.Wait()
		if n := appended.Load() * 100 << 10; n > 3<<20 {
			t.Errorf("%d bytes were taken while nothing could be written", n)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if largest > 3<<20 {
			t.Errorf("a write of %d bytes", largest)
		}
		if n := len(store.bytes()); int64(n) != j.Size() {
			t.Errorf("%d bytes written of %d", n, j.Size())
		}
	})
}

// Many writers, acknowledgements and a small limit: every frame comes through
// whole, in the order of its writer.
func TestJournalConcurrent(t *testing.T) {
	const writers, each = 8, 300
	store := newMemStore()
	j := newJournal(t, store, &rpc.JournalOptions{SegmentBytes: 1000, MaxUnacked: 1500})
	pr, pw := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { pw.CloseWithError(rpc.Tail(t.Context(), store, 0, true, pw)) })
	var appending sync.WaitGroup
	for w := range writers {
		appending.Go(func() {
			for i := range each {
				if err := j.AppendData(rpc.FrameEvent, fmt.Appendf(nil, `{"writer":%d,"n":%d}`, w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		appending.Wait()
		if err := j.Close(closeReason); err != nil {
			t.Error(err)
		}
	})
	next := make(map[int]int)
	fr := rpc.NewFrameReader(pr, 0, 0)
	for {
		f, err := fr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Type != rpc.FrameEvent {
			continue
		}
		var e struct{ Writer, N int }
		data, err := rpc.Data(f.Type, f.Payload)
		if err == nil {
			err = json.Unmarshal(data, &e)
		}
		if err != nil || e.N != next[e.Writer] {
			t.Fatalf("event %+v after %d, %v", e, next[e.Writer], err)
		}
		next[e.Writer]++
		if err := j.Ack(fr.Offset()); err != nil {
			t.Fatal(err)
		}
	}
	for w := range writers {
		if next[w] != each {
			t.Errorf("writer %d: %d events", w, next[w])
		}
	}
	wg.Wait()
}

// An event costs the worker no allocation on its way into the journal.
func TestJournalAllocs(t *testing.T) {
	j := newJournal(t, discardStore{}, nil)
	fields := map[string]any{"rows": int64(1000), "table": "orders", "ok": true}
	l := rpc.Line{Time: benchTime, Session: "s", Name: "write.progress", StepID: "a"}
	var line []byte
	if n := testing.AllocsPerRun(10_000, func() {
		line = l.AppendEvent(line[:0], fields)
		if err := j.AppendData(rpc.FrameEvent, line); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for an event", n)
	}
}
