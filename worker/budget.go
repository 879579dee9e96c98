package worker

import (
	"fmt"
	"math"
	"runtime/debug"
	"sync"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// memoryBudget bounds what the outputs that a worker holds take in memory, all
// together. It counts the buffers that batches keep alive, each once, whoever
// else has it: the whole of it where a column is a slice.
type memoryBudget struct {
	mu    sync.Mutex
	limit int64
	used  int64
	held  map[*memory.Buffer]*heldBuffer
}

// heldBuffer is a buffer that outputs hold.
type heldBuffer struct {
	size int64
	refs int // of outputs
}

// unknownMemoryBudget is the budget on a machine that does not tell how much
// memory it has.
const unknownMemoryBudget = 1 << 30

func newMemoryBudget(limit int64) *memoryBudget {
	if limit <= 0 {
		limit = unknownMemoryBudget
		if m := machineMemory(); m > 0 {
			limit = m / 2
		}
	}
	return &memoryBudget{limit: limit, held: make(map[*memory.Buffer]*heldBuffer)}
}

// setLimit changes the limit. What is held already stays.
func (b *memoryBudget) setLimit(limit int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = limit
}

// state returns the limit, and how much of it is used.
func (b *memoryBudget) state() (limit, used int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit, b.used
}

// What batches take beside their buffers.
const (
	recordSize = 256
	arraySize  = 256
)

// heldMemory is what an output takes of a budget. It is for one goroutine.
type heldMemory struct {
	budget  *memoryBudget
	buffers map[*memory.Buffer]bool
	rest    int64 // beside the buffers
	bytes   int64 // of all
}

// take counts a batch, and reports whether there was room for it. If not,
// nothing is counted, unless it has to be.
func (h *heldMemory) take(rec arrow.Record, must bool) bool {
	m := measured{seen: make(map[*memory.Buffer]bool)}
	m.record(rec)
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	more := m.rest
	for buf := range m.seen {
		if b.held[buf] == nil {
			more += int64(buf.Cap())
		}
	}
	if more > b.limit-b.used && !must {
		return false
	}
	b.used += more
	if h.buffers == nil {
		h.buffers = make(map[*memory.Buffer]bool)
	}
	for buf := range m.seen {
		if h.buffers[buf] {
			continue // it came with a batch before
		}
		h.buffers[buf] = true
		h.bytes += int64(buf.Cap())
		if b.held[buf] == nil {
			b.held[buf] = &heldBuffer{size: int64(buf.Cap())}
		}
		b.held[buf].refs++
	}
	h.rest += m.rest
	h.bytes += m.rest
	return true
}

// release gives back what was taken. It comes before the batches are released.
func (h *heldMemory) release() {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	for buf := range h.buffers {
		held := b.held[buf]
		if held.refs--; held.refs == 0 {
			b.used -= held.size
			delete(b.held, buf)
		}
	}
	b.used -= h.rest
	h.buffers, h.rest = nil, 0
}

// recordBytes is what a batch takes in memory.
func recordBytes(rec arrow.Record) int64 {
	m := measured{seen: make(map[*memory.Buffer]bool)}
	m.record(rec)
	return m.bytes()
}

// measured are the buffers that a batch keeps alive, each once.
type measured struct {
	seen map[*memory.Buffer]bool
	rest int64
}

func (m *measured) bytes() int64 {
	n := m.rest
	for buf := range m.seen {
		n += int64(buf.Cap())
	}
	return n
}

func (m *measured) record(rec arrow.Record) {
	m.rest += recordSize
	for _, c := range rec.Columns() {
		m.array(c.Data())
	}
}

func (m *measured) array(d arrow.ArrayData) {
	m.rest += arraySize
	for _, buf := range d.Buffers() {
		if buf == nil {
			continue
		}
		for buf.Parent() != nil { // a slice keeps all of it
			buf = buf.Parent()
		}
		if buf.Cap() > 0 {
			m.seen[buf] = true
		}
	}
	for _, c := range d.Children() {
		m.array(c)
	}
	// A type that hides its dictionary has a nil *Data in a non-nil ArrayData.
	if dict, ok := d.Dictionary().(*array.Data); ok && dict != nil {
		m.array(dict)
	}
}

// limitProcess has this process's collector work harder when three quarters of
// the machine's memory are in use: it lets a heap grow to twice of what is
// needed, and half is what outputs may take. A limit that GOMEMLIMIT sets stays.
func limitProcess() {
	if m := machineMemory(); m > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(m / 4 * 3)
	}
}

// byteSize writes a number of bytes as a person would.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
