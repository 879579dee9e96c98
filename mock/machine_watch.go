package mock

import (
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// Watch implements [envd.Machine]. The disk only says that something changed
// in a directory; what it was is found by comparison, so that changes in quick
// succession may be reported as one.
func (m *memoryMachine) Watch(dir string, recursive bool, report func(envd.Event)) (stop func(), err error) {
	info, err := m.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, pathError("watch", dir, syscall.ENOTDIR)
	}
	w := &memoryWatch{
		disk:      m.sandbox.disk,
		dir:       dir,
		recursive: recursive,
		report:    report,
		changed:   make(chan struct{}, 1),
		stops:     make(map[*node]func()),
	}
	w.seen = w.scan()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { w.run(done) })
	return sync.OnceFunc(func() { close(done); wg.Wait() }), nil
}

// memoryWatch compares a directory with what it was.
type memoryWatch struct {
	disk      *disk
	dir       string
	recursive bool
	report    func(envd.Event)
	changed   chan struct{}
	stops     map[*node]func() // of the directories watched
	seen      map[string]watched
}

// watched is what is known of a file.
type watched struct {
	node    *node
	content *content
	size    int64
	modTime time.Time
}

func (w *memoryWatch) run(done <-chan struct{}) {
	defer func() {
		for _, stop := range w.stops {
			stop()
		}
	}()
	for {
		select {
		case <-done:
			return
		case <-w.changed:
			now := w.scan()
			w.compare(now)
			w.seen = now
		}
	}
}

// scan lists the directory by relative names, and watches all it finds.
func (w *memoryWatch) scan() map[string]watched {
	root, err := w.disk.lookup(w.dir)
	if err != nil {
		return nil
	}
	w.disk.mu.RLock()
	defer w.disk.mu.RUnlock()
	found := make(map[string]watched)
	w.scanLocked(root, "", found)
	return found
}

func (w *memoryWatch) scanLocked(dir *node, prefix string, found map[string]watched) {
	if w.stops[dir] == nil {
		w.stops[dir] = dir.watch(w.changed)
	}
	for base, n := range dir.children {
		entry := watched{node: n, content: n.content}
		if n.content != nil {
			entry.size, entry.modTime = n.content.stat()
		}
		found[prefix+base] = entry
		if w.recursive && n.content == nil {
			w.scanLocked(n, prefix+base+"/", found)
		}
	}
}

// compare reports what changed, in the order of names: what went, then what
// came or was written.
func (w *memoryWatch) compare(now map[string]watched) {
	left := func(e watched) bool { // it is still there, elsewhere
		for _, other := range now {
			if other.node == e.node {
				return true
			}
		}
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		if _, ok := now[name]; ok {
			continue
		}
		op := envd.OpRemove
		if left(w.seen[name]) {
			op = envd.OpRename
		}
		w.report(envd.Event{Name: name, Op: op})
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		was, is := w.seen[name], now[name]
		switch {
		case was.node == nil, was.content != is.content:
			w.report(envd.Event{Name: name, Op: envd.OpCreate})
			if is.size > 0 {
				w.report(envd.Event{Name: name, Op: envd.OpWrite})
			}
		case was.node != is.node: // its mode was changed
			w.report(envd.Event{Name: name, Op: envd.OpChmod})
		case was.size != is.size || !was.modTime.Equal(is.modTime):
			w.report(envd.Event{Name: name, Op: envd.OpWrite})
		}
	}
}
