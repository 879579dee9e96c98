package mock

import (
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// chunkBytes is the unit a file's content is stored in. Appending never moves
// what is there, except inside the last chunk while it grows to this size.
const chunkBytes = 256 << 10

var errNegative = errors.New("negative position")

// content is the bytes of a file, which outlive its name while a handle is
// open.
type content struct {
	disk *disk

	mu      sync.RWMutex
	chunks  [][]byte // each chunkBytes long, but for the last, or short of it: the rest is zeros
	size    int64
	modTime time.Time
	labels  map[string]string // metadata that a [Server] was given with it

	dir   atomic.Pointer[node] // where the file is; nil when it has no name
	users atomic.Int32         // its name and the open handles; at zero its space is free again
}

func (d *disk) newContent() *content {
	c := &content{disk: d, modTime: d.now()}
	c.users.Store(1)
	return c
}

// clone returns a copy on another disk, which has room for it.
func (c *content) clone(d *disk) *content {
	c.mu.RLock()
	defer c.mu.RUnlock()
	copied := d.newContent()
	copied.size, copied.modTime, copied.labels = c.size, c.modTime, maps.Clone(c.labels)
	for _, chunk := range c.chunks {
		copied.chunks = append(copied.chunks, slices.Clone(chunk))
	}
	d.used.Add(c.size)
	return copied
}

// release gives the space back when nobody is left who could see it.
func (c *content) release() {
	if c.users.Add(-1) > 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disk.free(c.size)
	c.chunks, c.size = nil, 0
}

func (c *content) stat() (size int64, modTime time.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.size, c.modTime
}

func (c *content) readAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := 0
	for n < len(b) && off < c.size {
		want := b[n:min(int64(len(b)), int64(n)+c.size-off)]
		want = want[:min(len(want), chunkBytes-int(off%chunkBytes))]
		var have []byte
		if chunk, at := c.chunks[off/chunkBytes], int(off%chunkBytes); at < len(chunk) {
			have = chunk[at:]
		}
		clear(want[copy(want, have):])
		n, off = n+len(want), off+int64(len(want))
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// writeAt writes what there is room for.
func (c *content) writeAt(b []byte, off int64) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if end := off + int64(len(b)); end > c.size {
		got := c.disk.take(end - c.size)
		if c.size+got < end {
			err = syscall.ENOSPC
			end = c.size + got
			b = b[:max(0, end-off)]
		}
		if len(b) > 0 {
			c.resizeLocked(end)
		} else {
			c.disk.free(got) // a hole that nothing would follow
		}
	}
	for n < len(b) {
		chunk, at := c.chunks[off/chunkBytes], int(off%chunkBytes)
		k := min(len(b)-n, chunkBytes-at)
		chunk = grow(chunk, at+k, off >= chunkBytes)
		copy(chunk[at:], b[n:n+k])
		c.chunks[off/chunkBytes] = chunk
		n, off = n+k, off+int64(k)
	}
	if n > 0 {
		c.modTime = c.disk.now()
	}
	return n, err
}

// grow returns the chunk with at least size bytes. In a file that is large
// already it gets its full capacity at once.
func grow(chunk []byte, size int, large bool) []byte {
	if size <= len(chunk) {
		return chunk
	}
	if size > cap(chunk) {
		room := min(chunkBytes, max(2*cap(chunk), size, 512))
		if large {
			room = chunkBytes
		}
		bigger := make([]byte, len(chunk), room)
		copy(bigger, chunk)
		chunk = bigger
	}
	return chunk[:size] // zeros beyond the old length: truncate clears what it cuts off
}

func (c *content) truncate(size int64) error {
	if size < 0 {
		return syscall.EINVAL
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if size > c.size {
		more := size - c.size
		if got := c.disk.take(more); got < more {
			c.disk.free(got)
			return syscall.ENOSPC
		}
	} else {
		c.disk.free(c.size - size)
	}
	c.resizeLocked(size)
	c.modTime = c.disk.now()
	return nil
}

// resizeLocked sets the size, whose space is accounted for.
func (c *content) resizeLocked(size int64) {
	count := int((size + chunkBytes - 1) / chunkBytes)
	if count < len(c.chunks) {
		clear(c.chunks[count:])
		c.chunks = c.chunks[:count]
	}
	for len(c.chunks) < count {
		c.chunks = append(c.chunks, nil)
	}
	if size < c.size && count > 0 {
		if last, keep := c.chunks[count-1], int(size-int64(count-1)*chunkBytes); keep < len(last) {
			clear(last[keep:])
			c.chunks[count-1] = last[:keep]
		}
	}
	c.size = size
}
