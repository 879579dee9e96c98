package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"time"
)

// lookAgain bounds how long a tail trusts that no notice was lost, as on file
// systems that report no changes.
const lookAgain = 500 * time.Millisecond

// pollInterval is how often a tail looks that cannot watch.
const pollInterval = 20 * time.Millisecond

// Tail copies a journal to w from an offset that is the start of a frame.
//
// With follow it waits for more until it has copied the close frame, or ctx is
// done; a journal that does not exist yet is waited for. Without, it ends at
// the present end, which may lie inside a frame that was being written.
//
// The error matches [ErrJournalTrimmed] when the offset was acknowledged and
// dropped, [ErrFrameCorrupt] when it is not the start of a frame,
// [ErrFrameOffset] when it is negative or the journal does not reach that far,
// and ctx's when that ended first. Errors of w are returned as they are.
func Tail(ctx context.Context, store Store, from int64, follow bool, w io.Writer) error {
	if from < 0 {
		return fmt.Errorf("rpc: tail: %w: offset %d", ErrFrameOffset, from)
	}
	t := &tail{store: store, w: w, pos: from, missing: -1, frame: from, buf: make([]byte, 256<<10)}
	defer t.close()
	if !follow {
		_, err := t.copy(ctx)
		return err
	}
	interval := lookAgain
	changed, stop, err := store.Watch()
	if err == nil {
		defer stop()
	} else {
		interval = pollInterval // watches can run out
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		closed, err := t.copy(ctx)
		if closed || err != nil {
			return err
		}
		timer.Reset(interval)
		select {
		case _, ok := <-changed:
			if !ok {
				changed = nil // nothing watches any more: look from time to time
			}
		case <-timer.C:
			if err := t.checkTrimmed(); err != nil {
				return err
			}
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

	missing int64 // pos when a segment was seen behind it, and none there; else negative

	frame   int64  // where the next frame header starts
	head    []byte // the part of it that was copied so far
	closing bool   // the frame before it is the close frame
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
			good, walkErr := t.walk(t.buf[:n])
			if k, err := t.w.Write(t.buf[:good]); err != nil {
				return false, err
			} else if k < good {
				return false, io.ErrShortWrite
			}
			t.pos += int64(good)
			if walkErr != nil {
				return false, walkErr
			}
			if t.closing && t.pos == t.frame {
				return true, nil
			}
			if err != io.EOF {
				continue
			}
			// Who reads what was just written has waited long enough: in the
			// same process it goes first.
			runtime.Gosched()
		}
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("rpc: read journal at %d: %w", t.pos, err)
		}
		// The end of this segment: is there one that starts here? If this one
		// has grown meanwhile there is none, and a notice is waiting.
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
		if err != nil {
			return false, err
		}
		if len(bases) == 0 {
			return false, t.checkGone()
		}
		if bases[0] > t.pos {
			return false, trimmed(t.pos, bases[0])
		}
		next := int64(-1) // base of the segment behind the one that holds pos
		for _, b := range bases {
			if b > t.pos {
				next = b
				break
			}
			t.base = b
		}
		seg, err := t.store.Open(segmentName(t.base))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("rpc: open journal at %d: %w", t.base, err)
		}
		t.seg = seg
		// A host can only know offsets that it has read up to.
		if last := t.pos - t.base - 1; last >= 0 {
			n, err := seg.ReadAt(t.buf[:1], last)
			switch {
			case n == 1:
			case err != nil && err != io.EOF:
				return false, fmt.Errorf("rpc: read journal at %d: %w", t.pos, err)
			case next >= 0:
				return false, trimmed(t.pos, next)
			default:
				return false, fmt.Errorf("rpc: %w: the journal does not reach offset %d", ErrFrameOffset, t.pos)
			}
		}
		return true, nil
	}
	return false, fmt.Errorf("rpc: %w: offset %d", ErrJournalTrimmed, t.pos)
}

// checkTrimmed tells a tail that waits for a segment which was dropped already,
// because another tail went on, or which got lost, from one that waits for more.
func (t *tail) checkTrimmed() error {
	bases, err := segmentBases(t.store)
	if err != nil {
		return err
	}
	switch {
	case len(bases) == 0:
		return t.checkGone()
	case bases[0] > t.pos:
		return trimmed(t.pos, bases[0])
	}
	later, missing := slices.BinarySearch(bases, t.pos)
	missing = !missing && later < len(bases)
	// The writer may have gone on between the last look and this one; not so
	// where there was nothing to copy since this was first seen.
	if missing && t.missing == t.pos {
		return trimmed(t.pos, bases[later])
	}
	if t.missing = -1; missing {
		t.missing = t.pos
	}
	return nil
}

// checkGone is the error of a journal that is not there any more. One that has
// not begun is waited for; whoever knows an offset has read up to it.
func (t *tail) checkGone() error {
	if t.pos == 0 {
		return nil
	}
	return fmt.Errorf("rpc: %w: offset %d, there is no segment any more", ErrJournalTrimmed, t.pos)
}

func trimmed(pos, start int64) error {
	return fmt.Errorf("rpc: %w: offset %d, it starts at %d", ErrJournalTrimmed, pos, start)
}

// walk follows the frames in b, which starts at pos, up to the close frame. It
// returns how much of b may be copied.
func (t *tail) walk(b []byte) (good int, err error) {
	for {
		at := int(min(t.frame+int64(len(t.head))-t.pos, int64(len(b))))
		if at == len(b) || t.closing {
			return at, nil
		}
		n := min(HeaderSize-len(t.head), len(b)-at)
		t.head = append(t.head, b[at:at+n]...)
		if len(t.head) < HeaderSize {
			if n := min(len(t.head), len(magic)); string(t.head[:n]) != magic[:n] {
				return at, fmt.Errorf("rpc: journal at %d: %w: no frame header", t.frame, ErrFrameCorrupt)
			}
			return len(b), nil
		}
		h, err := parseHeader(t.head)
		switch {
		case err != nil:
		case h.offset != t.frame:
			err = fmt.Errorf("%w: its header says %d", ErrFrameCorrupt, h.offset)
		case h.length > MaxPayload:
			err = fmt.Errorf("%w: %d bytes", ErrFrameTooLarge, h.length)
		}
		if err != nil {
			return at, fmt.Errorf("rpc: journal at %d: %w", t.frame, err)
		}
		t.head = t.head[:0]
		t.frame += HeaderSize + int64(h.length)
		t.closing = h.typ == FrameClose
	}
}
