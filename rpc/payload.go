package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A chunk is the payload of an Arrow frame:
//
//	offset  size
//	0       4     stream: the number of the request it answers
//	4       4     1 in the last chunk of the stream, else 0
//	8       ...   bytes of the Arrow IPC stream
const chunkHeader = 8

// payloadChunk is how many bytes go into one frame: enough to make its cost
// disappear, little enough to let a heartbeat through in between.
const payloadChunk = 256 << 10

// PayloadWriter cuts a byte stream into Arrow frames. Close sends the last
// one. After an error every call returns that error.
type PayloadWriter struct {
	send func(typ FrameType, parts ...[]byte) error
	buf  []byte // the chunk's header, and what has gathered
	n    int64
	err  error
}

var errPayloadClosed = errors.New("rpc: payload is closed")

// NewPayloadWriter returns a writer that hands its frames to send, which must
// not keep them: [Journal.Append] fits.
func NewPayloadWriter(stream uint32, send func(typ FrameType, parts ...[]byte) error) *PayloadWriter {
	w := &PayloadWriter{send: send, buf: make([]byte, chunkHeader, payloadChunk)}
	binary.LittleEndian.PutUint32(w.buf, stream)
	return w
}

// Write implements io.Writer.
func (w *PayloadWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 && w.err == nil {
		room := payloadChunk - len(w.buf)
		if len(p) >= room { // a chunk's worth: no need to gather it first
			if w.flush(0, p[:room]) == nil {
				p = p[room:]
			}
			continue
		}
		w.buf = append(w.buf, p...)
		return total, nil
	}
	return total - len(p), w.err
}

// Close sends what is left, marked as the end. Closing again is no error.
func (w *PayloadWriter) Close() error {
	if w.err == nil && w.flush(1, nil) == nil {
		w.err = errPayloadClosed
	}
	if w.err == errPayloadClosed {
		return nil
	}
	return w.err
}

// Bytes returns how many bytes were sent.
func (w *PayloadWriter) Bytes() int64 { return w.n }

// flush sends what has gathered, and more after it.
func (w *PayloadWriter) flush(last uint32, more []byte) error {
	binary.LittleEndian.PutUint32(w.buf[4:], last)
	if w.err = w.send(FrameArrow, w.buf, more); w.err != nil {
		return w.err
	}
	w.n += int64(len(w.buf) - chunkHeader + len(more))
	w.buf = w.buf[:chunkHeader]
	return nil
}

// Chunk takes the payload of an Arrow frame apart. The error matches
// [ErrMessage].
func Chunk(payload []byte) (stream uint32, data []byte, last bool, err error) {
	if len(payload) < chunkHeader {
		return 0, nil, false, fmt.Errorf("rpc: %w: arrow chunk of %d bytes", ErrMessage, len(payload))
	}
	flags := binary.LittleEndian.Uint32(payload[4:])
	if flags > 1 {
		return 0, nil, false, fmt.Errorf("rpc: %w: arrow chunk with flags %#x", ErrMessage, flags)
	}
	return binary.LittleEndian.Uint32(payload), payload[chunkHeader:], flags == 1, nil
}

// PayloadReader reads one stream's bytes out of frames. Frames of other types
// and streams go to Other, whose error ends the stream: a response that comes
// before the last chunk is the place for one. After an error every call
// returns that error.
type PayloadReader struct {
	Frames *FrameReader
	Stream uint32
	Other  func(Frame) error // nil drops them

	chunk []byte
	last  bool
	err   error
}

// Read implements io.Reader. A stream that ends without its last chunk is
// io.ErrUnexpectedEOF.
func (r *PayloadReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.last:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		r.err = r.next()
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next takes the next frame.
func (r *PayloadReader) next() error {
	f, err := r.Frames.Next()
	if err == io.EOF {
		return fmt.Errorf("rpc: arrow stream ends without its last chunk: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	if f.Type == FrameArrow {
		stream, data, last, err := Chunk(f.Payload)
		if err != nil {
			return err
		}
		if stream == r.Stream {
			r.chunk, r.last = data, last
			return nil
		}
	}
	if r.Other != nil {
		return r.Other(f)
	}
	return nil
}
