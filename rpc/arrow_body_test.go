package rpc

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// inPlace hands bodies out where they are, and counts those in use.
type inPlace struct {
	bytes.Reader
	data  []byte
	inUse int
}

func (r *inPlace) ReadArrowBody(n int64) (*memory.Buffer, error) {
	at := len(r.data) - r.Len()
	if n > int64(r.Len()) {
		return nil, io.ErrUnexpectedEOF
	}
	_, err := r.Seek(n, io.SeekCurrent)
	r.inUse++
	return memory.NewBufferWithAllocator(r.data[at:at+int(n)], r), err
}

func (r *inPlace) Allocate(int) []byte           { panic("not here") }
func (r *inPlace) Reallocate(int, []byte) []byte { panic("not here") }
func (r *inPlace) Free([]byte)                   { r.inUse-- }

func TestArrowBodyReader(t *testing.T) {
	stream := streamOf(t, 20, []arrow.DataType{arrow.PrimitiveTypes.Int64, arrow.BinaryTypes.String})
	want, err := readAll(bytes.NewReader(stream), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func(data []byte, limits *ArrowLimits) (*inPlace, *ArrowReader) {
		src := &inPlace{data: data}
		src.Reset(data)
		r, err := NewArrowReader(src, limits, nil)
		if err != nil {
			t.Fatal(err)
		}
		return src, r
	}

	src, r := open(stream, nil)
	var got [][]string
	for r.Next() {
		got = append(got, render(r.Record()))
		values := r.Record().Column(0).(*array.Int64).Int64Values()
		if p, first := uintptr(unsafe.Pointer(&values[0])), uintptr(unsafe.Pointer(&stream[0])); p < first || p >= first+uintptr(len(stream)) {
			t.Error("a body was copied")
		}
		if src.inUse != 1 {
			t.Errorf("%d bodies in use", src.inUse)
		}
	}
	if len(got) != len(want) || r.Err() != nil {
		t.Errorf("%d batches, want %d: %v", len(got), len(want), r.Err())
	}
	r.Release()
	if src.inUse != 0 {
		t.Errorf("%d bodies are not released", src.inUse)
	}

	_, r = open(stream[:len(stream)-100], nil)
	for r.Next() {
	}
	if err := r.Err(); !errors.Is(err, ErrArrowCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	r.Release()

	src, r = open(stream, &ArrowLimits{MaxTotalBytes: int64(len(stream) - 100)})
	for r.Next() {
	}
	if err := r.Err(); !errors.Is(err, ErrArrowTooLarge) {
		t.Errorf("too large: %v", err)
	}
	r.Release()
	if src.inUse != 0 {
		t.Errorf("%d bodies are not released", src.inUse)
	}
}
