package rpc

import (
	"encoding/binary"
	"fmt"
)

// Limits of what is packed: see [PackHeader].
const (
	MaxPacked      = 1 << 20 // bytes of a file
	MaxPackedError = 1 << 10 // bytes of what is said of one that cannot be read
)

// PackHeaderSize is the size of a [PackHeader] in bytes.
const PackHeaderSize = 12

// PackHeader stands before each file of an archive, which is nothing but such
// pairs, in the order in which they were asked for. On the wire it is three
// little-endian integers of 32 bits: Index, 0 or 1 for Failed, and Size.
type PackHeader struct {
	Index  uint32 // of the path that was asked for, from 0 on
	Failed bool   // the file could not be read, and what follows is why
	Size   uint32 // bytes that follow
}

// Put writes the header.
func (h PackHeader) Put(b *[PackHeaderSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], h.Index)
	binary.LittleEndian.PutUint32(b[4:], 0)
	if h.Failed {
		b[4] = 1
	}
	binary.LittleEndian.PutUint32(b[8:], h.Size)
}

// ParsePackHeader reads a header, of an archive that may be anything. The error
// matches [ErrMessage].
func ParsePackHeader(b *[PackHeaderSize]byte) (PackHeader, error) {
	h := PackHeader{Index: binary.LittleEndian.Uint32(b[0:]), Size: binary.LittleEndian.Uint32(b[8:])}
	status, most := binary.LittleEndian.Uint32(b[4:]), uint32(MaxPacked)
	if h.Failed = status == 1; h.Failed {
		most = MaxPackedError
	}
	if status > 1 || h.Size > most {
		return PackHeader{}, fmt.Errorf("rpc: %w: an archive has the header %x", ErrMessage, b[:])
	}
	return h, nil
}
