package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// lookAgain bounds how long a tail trusts that no notice was lost, as on file
// systems that report no changes.
const lookAgain = 500 * time.Millisecond

// Tail copies a journal to w from an offset that is the start of a frame.
//
// With follow it waits for more until it has copied the close frame, or ctx is
// done; a journal that does not exist yet is waited for. Without, it ends at
// the present end, which may lie inside a frame that was being written.
//
// The error matches [ErrJournalTrimmed] when the offset was acknowledged and
// dropped, [ErrFrameCorrupt] when it is not the start of a frame, and ctx's
// when that ended first. Errors of w are returned as they are.
func Tail(ctx context.Context, store Store, from int64, follow bool, w io.Writer) error {
	t := &tail{store: store, w: w, pos: from, buf: make([]byte, 256<<10)}
	defer t.close()
	if !follow {
		_, err := t.copy(ctx)
		return err
	}
	changed, stop, err := store.Watch()
	if err != nil {
		return fmt.Errorf("rpc: tail: %w", err)
	}
	defer stop()
	timer := time.NewTimer(lookAgain)
	defer timer.Stop()
	for {
		closed, err := t.copy(ctx)
		if closed || err != nil {
			return err
		}
		timer.Reset(lookAgain)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type tail struct {
	store Store
	w     io.Writer
	buf   []byte

	pos  int64 // next byte to copy
	base int64 // of the open segment
	seg  SegmentReader

	head    []byte // the part of a frame header that was copied so far
	rest    int64  // bytes of the present frame's payload still to come
	closing bool   // the present frame is the close frame
}

func (t *tail) close() {
	if t.seg != nil {
		t.seg.Close()
		t.seg = nil
	}
}

// copy copies up to the present end. It reports whether that was the close
// frame.
func (t *tail) copy(ctx context.Context) (closed bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if t.seg == nil {
			if ok, err := t.open(); !ok || err != nil {
				return false, err
			}
		}
		n, err := t.seg.ReadAt(t.buf, t.pos-t.base)
		if n > 0 {
			done, walkErr := t.walk(t.buf[:n])
			if walkErr != nil {
				return false, walkErr
			}
			if _, err := t.w.Write(t.buf[:n]); err != nil {
				return false, err
			}
			t.pos += int64(n)
			if done {
				return true, nil
			}
			continue
		}
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("rpc: read journal at %d: %w", t.pos, err)
		}
		// The end of this segment: is there one that starts here?
		if t.pos == t.base {
			return false, nil
		}
		next, err := t.store.Open(segmentName(t.pos))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("rpc: open journal at %d: %w", t.pos, err)
		}
		t.close()
		t.seg, t.base = next, t.pos
	}
}

// open opens the segment that holds pos. It reports false when there is no
// journal yet.
func (t *tail) open() (bool, error) {
	for range 10 { // a segment can be dropped between List and Open
		bases, err := segmentBases(t.store)
		if err != nil || len(bases) == 0 {
			return false, err
		}
		if bases[0] > t.pos {
			return false, fmt.Errorf("rpc: %w: offset %d, it starts at %d", ErrJournalTrimmed, t.pos, bases[0])
		}
		for _, b := range bases {
			if b <= t.pos {
				t.base = b
			}
		}
		t.seg, err = t.store.Open(segmentName(t.base))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("rpc: open journal at %d: %w", t.base, err)
		}
	}
	return false, fmt.Errorf("rpc: %w: offset %d", ErrJournalTrimmed, t.pos)
}

// walk follows the frames in b, which continues what was walked before, and
// reports whether it ends with the close frame.
func (t *tail) walk(b []byte) (closed bool, err error) {
	for len(b) > 0 {
		if t.rest > 0 {
			n := min(t.rest, int64(len(b)))
			t.rest -= n
			b = b[n:]
		} else {
			n := min(HeaderSize-len(t.head), len(b))
			t.head = append(t.head, b[:n]...)
			b = b[n:]
			if len(t.head) < HeaderSize {
				return false, nil
			}
			h, err := parseHeader(t.head)
			if err != nil {
				return false, fmt.Errorf("rpc: journal near %d: %w", t.pos, err)
			}
			t.head = t.head[:0]
			t.rest = int64(h.length)
			t.closing = h.typ == FrameClose
		}
		if t.rest == 0 && len(t.head) == 0 && t.closing {
			return true, nil
		}
	}
	return false, nil
}
