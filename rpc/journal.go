package rpc

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Store is the directory that holds a journal's segments.
type Store interface {
	// Create makes a segment that does not exist yet.
	Create(name string) (SegmentWriter, error)
	// Append opens a segment that exists for writing behind its first size
	// bytes. What is behind them is cut off.
	Append(name string, size int64) (SegmentWriter, error)
	// Open opens a segment for reading, also while it is written. The error
	// matches fs.ErrNotExist when there is none.
	Open(name string) (SegmentReader, error)
	// Remove removes a segment; one that is open stays readable.
	Remove(name string) error
	// List returns the names of the segments. A directory that does not exist
	// yet is an empty one.
	List() ([]string, error)
	// Watch reports on the channel that a segment was made or grew: one
	// notice for any number of changes. It may be called before there is a
	// directory. stop ends it and waits.
	Watch() (changed <-chan struct{}, stop func(), err error)
}

// SegmentWriter appends to a segment.
type SegmentWriter interface {
	io.WriteCloser
	Truncate(size int64) error
}

// SegmentReader reads a segment. ReadAt returns io.EOF at its present end.
type SegmentReader interface {
	io.ReaderAt
	io.Closer
}

// The errors of a journal.
var (
	// ErrJournalClosed: the journal has its close frame.
	ErrJournalClosed = errors.New("journal is closed")
	// ErrJournalFailed: the journal cannot be written any more, as when the
	// disk is full. What was written before is whole.
	ErrJournalFailed = errors.New("journal cannot be written")
	// ErrJournalTrimmed: the offset was acknowledged, and dropped.
	ErrJournalTrimmed = errors.New("journal no longer has this offset")
)

// JournalOptions are the limits of a [Journal]. Nil, and zero fields, mean the
// defaults.
type JournalOptions struct {
	SegmentBytes int64 // a segment that has reached it is followed by another; zero means 8 MiB
	MaxUnacked   int64 // bytes that are not acknowledged; beyond, Append blocks. Zero means 256 MiB

	// Full is called, from an Append that is about to block, once for every
	// time the limit is reached: not again before less than half of it is
	// waiting. It may use AppendUrgent; an Append in it would block too.
	Full func(unacked int64)
}

// maxPending is how far writers may be ahead of the disk.
const maxPending = 1 << 20

// Journal is an append-only file of frames, in segments named by the offset
// they start at. All methods may be called concurrently.
//
// Who appends to a journal that is idle writes to the store at once; under load
// a writer goroutine hands over what has gathered in one write.
type Journal struct {
	store      Store
	segment    int64 // size limit
	maxUnacked int64
	full       func(int64)

	mu       sync.Mutex
	work     *sync.Cond // the writer waits here, for pending or closed
	change   *sync.Cond // those who append wait here, for anything else
	pending  []byte     // encoded, not handed to the writer yet
	size     int64      // with what is pending
	acked    int64
	segments []int64 // start offsets of those in the store
	isFull   bool    // the limit was reached and Full was called
	closed   bool
	err      error // sticky, matches ErrJournalFailed

	writing  bool      // somebody is in put
	spare    []byte    // the other buffer
	window   time.Time // start of the present millisecond
	inWindow int       // frames since
	flood    bool      // there were many in the one before

	// Of the present segment, for who has set writing.
	w      SegmentWriter
	base   int64
	length int64

	dropping sync.Mutex    // held while segments are removed; taken before mu
	stopped  chan struct{} // the writer has ended
}

// NewJournal starts a journal at offset 0 in an empty store; the error for one
// that is not empty matches fs.ErrExist. The caller must Close it.
func NewJournal(store Store, opts *JournalOptions) (*Journal, error) {
	// Segments of another journal would be taken for a part of this one.
	bases, err := segmentBases(store)
	if err != nil {
		return nil, err
	}
	if len(bases) > 0 {
		return nil, fmt.Errorf("rpc: create journal: %w: there is a segment at %d", fs.ErrExist, bases[0])
	}
	w, err := store.Create(segmentName(0))
	if err != nil {
		return nil, fmt.Errorf("rpc: create journal: %w", err)
	}
	j := newJournal(store, opts)
	j.w, j.segments = w, []int64{0}
	go j.write()
	return j, nil
}

// OpenJournal goes on with a journal whose writer has died. A last frame that
// it left torn is cut off, and the next one takes its offset, so that whatever
// offset of a whole frame's end a reader has is one to continue from. A reader
// that has a part of the torn frame must start again from the end of the frame
// before: there must be no other writer, and should be no tail, meanwhile. What
// was dropped before the first segment counts as acknowledged.
//
// The error matches fs.ErrNotExist when there is no journal, [ErrJournalClosed]
// when it has its close frame, and [ErrFrameCorrupt], [ErrFrameTooLarge] or
// [ErrFrameOffset] when its last segment holds what no writer that dies leaves
// behind. Nothing is changed then. The caller must Close the journal.
func OpenJournal(store Store, opts *JournalOptions) (*Journal, error) {
	bases, err := segmentBases(store)
	if err != nil {
		return nil, err
	}
	if len(bases) == 0 {
		return nil, fmt.Errorf("rpc: open journal: %w: there is no segment", fs.ErrNotExist)
	}
	base := bases[len(bases)-1]
	length, _, err := scanSegment(store, base)
	if err != nil {
		return nil, fmt.Errorf("rpc: open journal: %w", err)
	}
	w, err := store.Append(segmentName(base), length)
	if err != nil {
		return nil, fmt.Errorf("rpc: open journal: %w", err)
	}
	j := newJournal(store, opts)
	j.w, j.base, j.length, j.segments = w, base, length, bases
	j.size, j.acked = base+length, bases[0]
	go j.write()
	return j, nil
}

// CutJournal does of [OpenJournal] what must not happen under the eyes of a
// reader: it cuts off a torn last frame. It returns the journal's length, and
// OpenJournal's errors.
func CutJournal(store Store) (size int64, err error) {
	bases, err := segmentBases(store)
	if err != nil {
		return 0, err
	}
	if len(bases) == 0 {
		return 0, fmt.Errorf("rpc: cut journal: %w: there is no segment", fs.ErrNotExist)
	}
	base := bases[len(bases)-1]
	length, torn, err := scanSegment(store, base)
	if err == nil && torn {
		var w SegmentWriter
		if w, err = store.Append(segmentName(base), length); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return 0, fmt.Errorf("rpc: cut journal: %w", err)
	}
	return base + length, nil
}

func newJournal(store Store, opts *JournalOptions) *Journal {
	if opts == nil {
		opts = &JournalOptions{}
	}
	j := &Journal{
		store:      store,
		segment:    opts.SegmentBytes,
		maxUnacked: opts.MaxUnacked,
		full:       opts.Full,
		stopped:    make(chan struct{}),
	}
	if j.segment <= 0 {
		j.segment = 8 << 20
	}
	if j.maxUnacked <= 0 {
		j.maxUnacked = 256 << 20
	}
	j.work, j.change = sync.NewCond(&j.mu), sync.NewCond(&j.mu)
	return j
}

// maxOffset is the end of the longest journal that is opened again: what is
// appended must not overflow.
const maxOffset = math.MaxInt64 - 1<<50

// scanSegment returns the length of a segment's whole frames, and whether there
// is more behind them. Writes are whole
// frames one after the other, so that a writer's death leaves the beginning of
// one at the most: anything else is damage, which must not be cut off with what
// the host has not read.
func scanSegment(store Store, base int64) (length int64, torn bool, err error) {
	seg, err := store.Open(segmentName(base))
	if err != nil {
		return 0, false, err
	}
	defer seg.Close()
	frames := NewFrameReader(io.NewSectionReader(seg, 0, math.MaxInt64), base, 0)
	for {
		f, err := frames.Next()
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			if frames.Offset() > maxOffset {
				return 0, false, fmt.Errorf("%w: a segment ends at %d", ErrFrameOffset, frames.Offset())
			}
			return frames.Offset() - base, err != io.EOF, nil
		case err != nil:
			return 0, false, err
		case f.Type == FrameClose:
			return 0, false, fmt.Errorf("%w at %d", ErrJournalClosed, f.Offset)
		}
	}
}

// Append adds a frame whose payload is the concatenation of parts. It returns
// once the frame is written, or, where frames come by the thousand a second, has
// its place. It blocks while more than MaxUnacked bytes wait to be
// acknowledged.
//
// The error matches [ErrFrameTooLarge] for a payload above [MaxPayload],
// [ErrJournalClosed] or [ErrJournalFailed].
func (j *Journal) Append(typ FrameType, parts ...[]byte) error {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.waitLocked(typ, length, false); err != nil {
		return err
	}
	j.pending = AppendFrame(j.pending, typ, j.size, parts...)
	j.grownLocked(length)
	return j.err
}

// AppendData adds an event, metric, log or heartbeat frame around data, which
// must be a JSON object on one line.
func (j *Journal) AppendData(typ FrameType, data []byte) error {
	return j.appendData(typ, data, false)
}

// AppendUrgent is AppendData that does not wait for acknowledgements: for the
// warning that the journal is full.
func (j *Journal) AppendUrgent(typ FrameType, data []byte) error {
	return j.appendData(typ, data, true)
}

func (j *Journal) appendData(typ FrameType, data []byte, urgent bool) error {
	prefix, ok := envelope(typ)
	if !ok {
		return fmt.Errorf("rpc: %w: a %s has no envelope", ErrMessage, typ)
	}
	length := len(prefix) + len(data) + 1
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.waitLocked(typ, length, urgent); err != nil {
		return err
	}
	j.addLocked(typ, prefix, data)
	return j.err
}

// addLocked adds a frame with an envelope.
func (j *Journal) addLocked(typ FrameType, prefix string, data []byte) {
	length := len(prefix) + len(data) + 1
	start := len(j.pending)
	b := appendHeader(j.pending, typ, j.size, length)
	b = append(append(append(b, prefix...), data...), '}')
	j.pending = seal(b, start)
	j.grownLocked(length)
}

// grownLocked counts a frame that was added to pending, and sees to its being
// written; for that it may release the lock.
func (j *Journal) grownLocked(length int) {
	j.size += HeaderSize + int64(length)
	end := j.size
	j.inWindow++
	if now := time.Now(); now.Sub(j.window) > time.Millisecond {
		j.flood = j.inWindow > inline && now.Sub(j.window) < 10*time.Millisecond
		j.window, j.inWindow = now, 1
	}
	if j.flood || j.inWindow > inline {
		j.work.Signal()
		return
	}
	for j.writing && j.err == nil {
		j.change.Wait()
	}
	if j.err == nil && j.base+j.length < end { // else somebody took it along
		j.flushLocked()
	}
}

// waitLocked waits until a frame may be added.
func (j *Journal) waitLocked(typ FrameType, length int, urgent bool) error {
	if length > MaxPayload {
		return fmt.Errorf("rpc: %w: %s of %d bytes, limit is %d", ErrFrameTooLarge, typ, length, MaxPayload)
	}
	frame := int64(HeaderSize + length)
	for j.err == nil && !j.closed {
		unacked := j.size - j.acked
		switch {
		case !urgent && unacked > 0 && unacked+frame > j.maxUnacked:
			if !j.isFull {
				j.isFull = true
				if j.full != nil {
					j.callFullLocked(unacked)
					continue
				}
			}
			j.change.Wait()
		case len(j.pending) >= maxPending:
			j.change.Wait()
		default:
			return nil
		}
	}
	if j.err != nil {
		return j.err
	}
	return fmt.Errorf("rpc: append %s: %w", typ, ErrJournalClosed)
}

// callFullLocked calls Full without the lock, and has it again also when Full
// panics.
func (j *Journal) callFullLocked(unacked int64) {
	j.mu.Unlock()
	defer j.mu.Lock()
	j.full(unacked)
}

// Lift ends the limit of what may wait to be acknowledged, for a writer that is
// about to close its journal and whose host may be gone: nothing blocks any
// more.
func (j *Journal) Lift() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.maxUnacked = math.MaxInt64
	j.change.Broadcast()
}

// Flush returns once every frame appended before is in the store.
func (j *Journal) Flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	end := j.size
	for j.err == nil {
		switch {
		case j.writing:
			j.change.Wait()
		case j.base+j.length >= end:
			return nil
		default:
			j.flushLocked()
		}
	}
	return j.err
}

// Size returns the offset behind the last frame.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

// Ack drops what the host has: the segments that end at or before offset. The
// error matches [ErrMessage] when the journal does not reach that far.
func (j *Journal) Ack(offset int64) error {
	j.mu.Lock()
	if offset > j.size {
		defer j.mu.Unlock()
		return fmt.Errorf("rpc: %w: ack of offset %d, the journal ends at %d", ErrMessage, offset, j.size)
	}
	if offset <= j.acked {
		j.mu.Unlock()
		return nil // late or sent twice
	}
	j.acked = offset
	if j.size-j.acked <= j.maxUnacked/2 {
		j.isFull = false
	}
	j.change.Broadcast()
	j.mu.Unlock()
	j.drop()
	return nil
}

// drop removes the segments that end at or before what is acknowledged, oldest
// first, without holding up those who append.
func (j *Journal) drop() {
	j.dropping.Lock()
	defer j.dropping.Unlock()
	j.mu.Lock()
	n := 0
	for n+1 < len(j.segments) && j.segments[n+1] <= j.acked {
		n++
	}
	old := j.segments[:n:n]
	j.segments = j.segments[n:]
	j.mu.Unlock()
	for _, base := range old {
		// A segment that cannot be removed now goes with the run's folder.
		_ = j.store.Remove(segmentName(base))
	}
}

// Close appends the close frame, writes what is pending and ends the journal.
// Calls that wait in Append return [ErrJournalClosed]. Closing again is no
// error.
//
// The reason is the JSON of a [Close]. One that is not a JSON object of at
// most 1 MiB is replaced by a Close with exit code 1 that says so: a host must
// not mistake it for success.
func (j *Journal) Close(reason []byte) error {
	prefix, _ := envelope(FrameClose)
	if len(prefix)+len(reason)+1 > MaxPayload || !isObject(reason) {
		reason = fmt.Appendf(nil, `{"exit_code":1,"reason":"closed with %d bytes that are no reason"}`, len(reason))
	}
	j.mu.Lock()
	again := j.closed
	j.closed = true // before the frame: while that is written nothing may follow it
	if !again && j.err == nil {
		j.addLocked(FrameClose, prefix, reason)
	}
	j.work.Signal()
	j.change.Broadcast()
	j.mu.Unlock()
	<-j.stopped
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// inline bounds how many frames of a millisecond are written by those who
// append them. A frame that is in the store when Append returns survives even
// the death of the process, and has no goroutine to wait for; a flood is
// cheaper in batches.
const inline = 32

// In a flood the writer waits for gatherTime before it writes less than
// gatherBytes: each write also wakes the tail, and whoever reads from it.
const (
	gatherBytes = 64 << 10
	gatherTime  = 500 * time.Microsecond
)

// flushLocked writes what is pending, without the lock. The caller has seen
// that nobody else is writing.
func (j *Journal) flushLocked() {
	j.writing = true
	batch := j.pending
	j.pending = j.spare[:0]
	j.mu.Unlock()
	err := j.put(batch)
	j.mu.Lock()
	j.spare = batch
	j.writing = false
	if err != nil {
		j.err = fmt.Errorf("rpc: %w: %w", ErrJournalFailed, err)
		j.size = j.base + j.length // what was pending is lost
		j.pending = nil
	}
	if len(j.pending) > 0 || j.closed || err != nil {
		j.work.Signal()
	}
	j.change.Broadcast() // room for more
}

// put writes a batch of frames to the store, and starts another segment when
// this one has reached its size. Only who has set writing may call it.
func (j *Journal) put(batch []byte) error {
	n, err := j.w.Write(batch)
	n = min(max(n, 0), len(batch))
	if err == nil && n < len(batch) {
		err = io.ErrShortWrite
	}
	if err != nil {
		// A torn frame would stop every reader: keep the whole ones.
		j.length += wholeFrames(batch[:n])
		if truncErr := j.w.Truncate(j.length); truncErr != nil {
			err = fmt.Errorf("%w (and cutting off the torn frame: %w)", err, truncErr)
		}
		j.w.Close() // the write's error says more
		return err
	}
	j.length += int64(n)
	if j.length < j.segment {
		return nil
	}
	j.mu.Lock()
	done := j.closed && len(j.pending) == 0
	j.mu.Unlock()
	if done {
		return nil
	}
	next, err := j.store.Create(segmentName(j.base + j.length))
	if closeErr := j.w.Close(); closeErr != nil && err == nil {
		err = closeErr
		next.Close()
	}
	if err != nil {
		return err
	}
	j.w, j.base, j.length = next, j.base+j.length, 0
	j.mu.Lock()
	j.segments = append(j.segments, j.base)
	j.mu.Unlock()
	j.drop() // an acknowledgement may have come before the segment was there
	return nil
}

// write is the writer goroutine: it writes what those who append leave to it,
// and ends the journal.
func (j *Journal) write() {
	defer close(j.stopped)
	j.mu.Lock()
	defer j.mu.Unlock()
	gathered := false
	for {
		switch {
		case j.writing:
			j.work.Wait()
		case j.err != nil:
			return
		case len(j.pending) > 0 && len(j.pending) < gatherBytes && j.flood && !j.closed && !gathered:
			gathered = true
			j.mu.Unlock()
			time.Sleep(gatherTime)
			j.mu.Lock()
		case len(j.pending) > 0:
			gathered = false
			j.flushLocked()
		case j.closed:
			if err := j.w.Close(); err != nil {
				j.err = fmt.Errorf("rpc: %w: %w", ErrJournalFailed, err)
			}
			return
		default:
			j.work.Wait()
		}
	}
}

// wholeFrames returns how many bytes of b belong to whole frames.
func wholeFrames(b []byte) int64 {
	whole := 0
	for len(b)-whole >= HeaderSize {
		h, err := parseHeader(b[whole:])
		if err != nil || len(b)-whole-HeaderSize < h.length {
			break
		}
		whole += HeaderSize + h.length
	}
	return int64(whole)
}

const segmentSuffix = ".journal"

// segmentName is the offset of a segment's first frame in 20 digits.
func segmentName(base int64) string { return fmt.Sprintf("%020d%s", base, segmentSuffix) }

// segmentBases returns the offsets at which the segments in a store start, in
// order. Other names are ignored.
func segmentBases(store Store) ([]int64, error) {
	names, err := store.List()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("rpc: list journal: %w", err)
	}
	var bases []int64
	for _, name := range names {
		if len(name) != 20+len(segmentSuffix) || name[20:] != segmentSuffix {
			continue
		}
		if base, err := strconv.ParseInt(name[:20], 10, 64); err == nil && base >= 0 {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, nil
}
