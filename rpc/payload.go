package rpc

import (
	"encoding/binary"
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
// one.
type PayloadWriter struct {
	send func(typ FrameType, parts ...[]byte) error
	buf  []byte
	n    int64
}

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
	for len(p) > 0 {
		n := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(0); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// Close sends what is left, marked as the end.
func (w *PayloadWriter) Close() error { return w.flush(1) }

// Bytes returns how many bytes were sent.
func (w *PayloadWriter) Bytes() int64 { return w.n }

func (w *PayloadWriter) flush(last uint32) error {
	binary.LittleEndian.PutUint32(w.buf[4:], last)
	if err := w.send(FrameArrow, w.buf); err != nil {
		return err
	}
	w.n += int64(len(w.buf) - chunkHeader)
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
// and streams go to Other.
type PayloadReader struct {
	Frames *FrameReader
	Stream uint32
	Other  func(Frame) error // nil drops them

	chunk []byte
	last  bool
}

// Read implements io.Reader. A stream that ends without its last chunk is
// io.ErrUnexpectedEOF.
func (r *PayloadReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if r.last {
			return 0, io.EOF
		}
		f, err := r.Frames.Next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		if f.Type == FrameArrow {
			stream, data, last, err := Chunk(f.Payload)
			if err != nil {
				return 0, err
			}
			if stream == r.Stream {
				r.chunk, r.last = data, last
				continue
			}
		}
		if r.Other != nil {
			if err := r.Other(f); err != nil {
				return 0, err
			}
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}
