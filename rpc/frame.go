package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
)

// FrameType says what a frame's payload is.
type FrameType uint8

// Frame types. Towards the worker go requests and acknowledgements, everything
// else comes from it.
const (
	FrameRequest   FrameType = 1  // [Request]
	FrameAck       FrameType = 2  // [Ack]
	FrameResponse  FrameType = 16 // [Response]
	FrameEvent     FrameType = 17 // envelope with an event line, see [Line]
	FrameMetric    FrameType = 18 // envelope with a metric line
	FrameLog       FrameType = 19 // envelope with a [Log]
	FrameHeartbeat FrameType = 20 // envelope with a [Heartbeat]
	FrameArrow     FrameType = 21 // a chunk of an Arrow IPC stream, see [PayloadWriter]
	FrameClose     FrameType = 22 // envelope with a [Close]; the last frame of a journal
)

func (t FrameType) String() string {
	switch t {
	case FrameRequest:
		return "request"
	case FrameAck:
		return "ack"
	case FrameResponse:
		return "response"
	case FrameEvent:
		return "event"
	case FrameMetric:
		return "metric"
	case FrameLog:
		return "log"
	case FrameHeartbeat:
		return "heartbeat"
	case FrameArrow:
		return "arrow"
	case FrameClose:
		return "close"
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

// Sizes in bytes.
const (
	HeaderSize = 24

	// MaxInputFrame bounds a frame towards the worker, header included. envd
	// delivers an input message of this size whole or not at all.
	MaxInputFrame = 64 << 10

	// MaxPayload bounds the payload of a frame from the worker.
	MaxPayload = 1 << 20
)

// The errors of a broken frame stream. A stream that ends inside a frame is
// io.ErrUnexpectedEOF, one that ends between frames io.EOF.
var (
	// ErrFrameCorrupt: the bytes are no frame, or its checksum is wrong.
	ErrFrameCorrupt = errors.New("corrupt frame")
	// ErrFrameTooLarge: a payload above the limit, found before it is read.
	ErrFrameTooLarge = errors.New("frame too large")
	// ErrFrameOffset: a frame is not at the journal position that follows the
	// one before: bytes are missing, or come twice.
	ErrFrameOffset = errors.New("frame out of place")
)

// Frame is one unit of the wire:
//
//	offset  size
//	 0      4     magic "OSR1"
//	 4      1     type
//	 5      3     zero
//	 8      4     length of the payload in bytes
//	12      8     position of this header in the journal; zero towards the worker
//	20      4     crc32c of the 20 bytes before and the payload
//	24      ...   payload
//
// All numbers are little-endian.
type Frame struct {
	Type    FrameType
	Offset  int64
	Payload []byte
}

const magic = "OSR1"

// crc32c is the checksum of iSCSI, which processors compute in hardware.
var crc32c = crc32.MakeTable(crc32.Castagnoli)

// AppendFrame appends a frame whose payload is the concatenation of parts,
// which must be shorter than 4 GiB; readers accept [MaxPayload].
func AppendFrame(dst []byte, typ FrameType, offset int64, parts ...[]byte) []byte {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	start := len(dst)
	dst = appendHeader(dst, typ, offset, length)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return seal(dst, start)
}

// appendHeader appends a header without its checksum, and makes room for the
// payload.
func appendHeader(dst []byte, typ FrameType, offset int64, length int) []byte {
	dst = slices.Grow(dst, HeaderSize+length)
	dst = append(dst, magic...)
	dst = append(dst, byte(typ), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(length))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(offset))
	return append(dst, 0, 0, 0, 0)
}

// seal writes the checksum of the frame at dst[start:].
func seal(dst []byte, start int) []byte {
	binary.LittleEndian.PutUint32(dst[start+sumAt:], checksum(dst[start:]))
	return dst
}

// sumAt is where in a header the checksum stands.
const sumAt = 20

func checksum(frame []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[:sumAt], crc32c), crc32c, frame[HeaderSize:])
}

// EncodeInput makes the frame that carries payload towards the worker. The
// error matches [ErrFrameTooLarge] when it would exceed [MaxInputFrame].
func EncodeInput(typ FrameType, payload []byte) ([]byte, error) {
	if len(payload) > MaxInputFrame-HeaderSize {
		return nil, fmt.Errorf("rpc: %w: %s of %d bytes, limit is %d; send it as a file",
			ErrFrameTooLarge, typ, len(payload), MaxInputFrame-HeaderSize)
	}
	return AppendFrame(nil, typ, 0, payload), nil
}

// header is a parsed frame header.
type header struct {
	typ    FrameType
	length int
	offset int64
	sum    uint32
}

func parseHeader(b []byte) (header, error) {
	if string(b[:4]) != magic || b[5] != 0 || b[6] != 0 || b[7] != 0 {
		return header{}, fmt.Errorf("%w: no frame header in %x", ErrFrameCorrupt, b[:8])
	}
	length := binary.LittleEndian.Uint32(b[8:])
	if length > 1<<31-1 {
		return header{}, fmt.Errorf("%w: %d bytes", ErrFrameTooLarge, length)
	}
	return header{
		typ:    FrameType(b[4]),
		length: int(length),
		offset: int64(binary.LittleEndian.Uint64(b[12:])),
		sum:    binary.LittleEndian.Uint32(b[sumAt:]),
	}, nil
}

// FrameReader reads frames. It holds at most one frame beyond what it reads
// ahead, whatever the stream announces.
type FrameReader struct {
	r     io.Reader
	max   int
	buf   []byte // buf[lo:hi] is read ahead
	lo    int
	hi    int
	next  int64 // journal position of the next frame; negative when unchecked
	rdErr error // of r, for when buf is used up
	err   error // sticky
}

const (
	// readAhead is how much is read at once while frames are small.
	readAhead = 64 << 10

	// maxFramePayload is the highest limit: its sizes fit an int everywhere.
	maxFramePayload = 1 << 30
)

// NewFrameReader returns a reader of frames whose payloads are at most
// maxPayload bytes; zero means [MaxPayload], and 1 GiB is the most.
//
// Offset is where in the journal the first frame must be; every further one
// must follow it without a gap. A negative offset leaves offsets unchecked, as
// for frames towards the worker.
func NewFrameReader(r io.Reader, offset int64, maxPayload int) *FrameReader {
	if maxPayload <= 0 {
		maxPayload = MaxPayload
	}
	return &FrameReader{r: r, max: min(maxPayload, maxFramePayload), next: max(offset, -1), buf: make([]byte, readAhead)}
}

// Offset returns the journal position behind the last frame: where another
// reader has to continue. It is negative when offsets are unchecked.
func (fr *FrameReader) Offset() int64 { return fr.next }

// Next returns the next frame. Its payload is valid until the call after.
// After an error every call returns that error.
func (fr *FrameReader) Next() (Frame, error) {
	if fr.err != nil {
		return Frame{}, fr.err
	}
	f, err := fr.read()
	if err != nil {
		fr.err = err
		return Frame{}, err
	}
	return f, nil
}

func (fr *FrameReader) read() (Frame, error) {
	if err := fr.fill(HeaderSize); err != nil {
		return Frame{}, err
	}
	h, err := parseHeader(fr.buf[fr.lo:fr.hi])
	if err != nil {
		return Frame{}, fmt.Errorf("rpc: %w", err)
	}
	if h.length > fr.max {
		return Frame{}, fmt.Errorf("rpc: %w: %s of %d bytes, limit is %d", ErrFrameTooLarge, h.typ, h.length, fr.max)
	}
	size := HeaderSize + h.length
	if fr.next >= 0 && h.offset != fr.next {
		return Frame{}, fmt.Errorf("rpc: %w: %s at %d, expected at %d", ErrFrameOffset, h.typ, h.offset, fr.next)
	}
	if h.offset < 0 || h.offset > math.MaxInt64-int64(size) {
		return Frame{}, fmt.Errorf("rpc: %w: %s at %d, where no journal reaches", ErrFrameOffset, h.typ, uint64(h.offset))
	}
	if err := fr.fill(size); err != nil {
		return Frame{}, err
	}
	frame := fr.buf[fr.lo : fr.lo+size : fr.lo+size] // an append to it must not reach what follows
	if sum := checksum(frame); sum != h.sum {
		return Frame{}, fmt.Errorf("rpc: %w: checksum of %s at %d is %08x, should be %08x", ErrFrameCorrupt, h.typ, h.offset, sum, h.sum)
	}
	fr.lo += size
	if fr.next >= 0 {
		fr.next += int64(size)
	}
	return Frame{Type: h.typ, Offset: h.offset, Payload: frame[HeaderSize:]}, nil
}

// fill reads until n bytes are buffered.
func (fr *FrameReader) fill(n int) error {
	if fr.hi-fr.lo >= n {
		return nil
	}
	if fr.lo == fr.hi {
		fr.lo, fr.hi = 0, 0
	}
	if fr.lo+n > len(fr.buf) {
		buf := fr.buf
		if n > len(buf) {
			buf = make([]byte, max(n, min(n+n/4, HeaderSize+fr.max)))
		}
		fr.hi = copy(buf, fr.buf[fr.lo:fr.hi])
		fr.lo = 0
		fr.buf = buf
	}
	// Behind a large frame read no more than the next header: what else was
	// read would have to be moved to make room for the next large frame.
	end := len(fr.buf)
	if n > readAhead {
		end = min(end, fr.lo+n+HeaderSize)
	}
	empty := 0
	for fr.hi-fr.lo < n {
		if fr.rdErr != nil {
			if fr.rdErr == io.EOF && fr.hi > fr.lo {
				return fmt.Errorf("rpc: stream ends inside a frame: %w", io.ErrUnexpectedEOF)
			}
			return fr.rdErr
		}
		k, err := fr.r.Read(fr.buf[fr.hi:end])
		if k < 0 || k > end-fr.hi {
			return errors.New("rpc: reader returned an impossible count")
		}
		fr.hi += k
		fr.rdErr = err
		if k > 0 || err != nil {
			empty = 0
		} else if empty++; empty > 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}
