package mock

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote/worker"
)

// disk is a tree of files in memory.
type disk struct {
	now   func() time.Time
	limit int64 // bytes; zero means none
	used  atomic.Int64

	mu   sync.RWMutex // guards the tree: names, not contents
	root *node
}

// node is a name in the tree.
type node struct {
	mode     fs.FileMode
	content  *content         // of a file
	children map[string]*node // of a directory, and never nil there; guarded by disk.mu
	modTime  time.Time        // of a directory, guarded by disk.mu

	watchMu  sync.Mutex
	watchers atomic.Pointer[[]chan struct{}] // of a directory; replaced whole
}

func newDisk(limit int64, now func() time.Time) *disk {
	d := &disk{now: now, limit: limit}
	d.root = d.newDir()
	return d
}

func (d *disk) newDir() *node {
	return &node{mode: fs.ModeDir | 0o755, children: make(map[string]*node), modTime: d.now()}
}

// take takes up to n bytes of the free space and returns how many it got.
func (d *disk) take(n int64) int64 {
	for {
		used := d.used.Load()
		got := n
		if d.limit > 0 {
			got = max(0, min(n, d.limit-used))
		}
		if d.used.CompareAndSwap(used, used+got) {
			return got
		}
	}
}

func (d *disk) free(n int64) { d.used.Add(-n) }

// notify tells those who watch the directory.
func (n *node) notify() {
	if n == nil {
		return
	}
	watchers := n.watchers.Load()
	if watchers == nil {
		return
	}
	for _, c := range *watchers {
		select {
		case c <- struct{}{}:
		default: // a notice is pending
		}
	}
}

// watch sends notices to c, which needs room for one, until stop is called.
func (n *node) watch(c chan struct{}) (stop func()) {
	change := func(edit func([]chan struct{}) []chan struct{}) {
		n.watchMu.Lock()
		defer n.watchMu.Unlock()
		var old []chan struct{}
		if p := n.watchers.Load(); p != nil {
			old = slices.Clone(*p)
		}
		if edited := edit(old); len(edited) > 0 {
			n.watchers.Store(&edited)
		} else {
			n.watchers.Store(nil)
		}
	}
	change(func(l []chan struct{}) []chan struct{} { return append(l, c) })
	return sync.OnceFunc(func() {
		change(func(l []chan struct{}) []chan struct{} {
			return slices.DeleteFunc(l, func(w chan struct{}) bool { return w == c })
		})
	})
}

// cleanPath returns the elements of an absolute path; none for the root.
func cleanPath(name string) ([]string, error) {
	if !strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		return nil, fs.ErrInvalid
	}
	if name = path.Clean(name); name == "/" {
		return nil, nil
	}
	return strings.Split(name[1:], "/"), nil
}

// walkLocked finds a directory's or file's node.
func (d *disk) walkLocked(elems []string) (*node, error) {
	n := d.root
	for _, e := range elems {
		if n.children == nil {
			return nil, syscall.ENOTDIR
		}
		if n = n.children[e]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

func (d *disk) lookup(name string) (*node, error) {
	elems, err := cleanPath(name)
	if err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.walkLocked(elems)
}

// parentLocked finds the directory of a name and the name's last element.
func (d *disk) parentLocked(elems []string) (*node, string, error) {
	if len(elems) == 0 {
		return nil, "", syscall.EBUSY // the root
	}
	dir, err := d.walkLocked(elems[:len(elems)-1])
	if err == nil && dir.children == nil {
		err = syscall.ENOTDIR
	}
	return dir, elems[len(elems)-1], err
}

func (d *disk) mkdirLocked(elems []string) (*node, error) {
	n := d.root
	for _, e := range elems {
		child := n.children[e]
		if child == nil {
			child = d.newDir()
			d.setLocked(n, e, child)
		}
		if child.children == nil {
			return nil, syscall.ENOTDIR
		}
		n = child
	}
	return n, nil
}

// setLocked puts a node, or nothing, under a name.
func (d *disk) setLocked(dir *node, base string, n *node) {
	if n == nil {
		delete(dir.children, base)
	} else {
		dir.children[base] = n
		if n.content != nil {
			n.content.dir.Store(dir)
		}
	}
	dir.modTime = d.now()
	dir.notify()
}

// dropLocked ends what lay under a name.
func (d *disk) dropLocked(n *node) {
	if n.content != nil {
		n.content.dir.Store(nil)
		n.content.release()
		return
	}
	for _, child := range n.children {
		d.dropLocked(child)
	}
	clear(n.children)
	n.notify()
}

func (d *disk) mkdirAll(name string) error {
	elems, err := cleanPath(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err = d.mkdirLocked(elems)
	return err
}

// mkdir makes one directory.
func (d *disk) mkdir(name string) error {
	elems, err := cleanPath(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(elems) == 0 {
		return syscall.EEXIST
	}
	dir, base, err := d.parentLocked(elems)
	if err != nil {
		return err
	}
	if dir.children[base] != nil {
		return syscall.EEXIST
	}
	d.setLocked(dir, base, d.newDir())
	return nil
}

// chmod sets a file's mode. The node is replaced, since others read its mode
// without a lock. The mode of a directory means nothing here and stays.
func (d *disk) chmod(name string, mode fs.FileMode) error {
	elems, err := cleanPath(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.walkLocked(elems)
	if err != nil || n.content == nil {
		return err
	}
	dir, base, err := d.parentLocked(elems)
	if err != nil {
		return err
	}
	d.setLocked(dir, base, &node{mode: mode, content: n.content})
	return nil
}

// clone returns a disk with a copy of everything.
func (d *disk) clone() *disk {
	copied := newDisk(d.limit, d.now)
	d.mu.RLock()
	defer d.mu.RUnlock()
	copied.copyLocked(copied.root, d.root)
	return copied
}

// copyLocked copies what is in a directory of another disk, whose lock is held.
func (d *disk) copyLocked(to, from *node) {
	to.modTime = from.modTime
	for base, n := range from.children {
		var child *node
		if n.content == nil {
			child = d.newDir()
			d.copyLocked(child, n)
		} else {
			child = &node{mode: n.mode, content: n.content.clone(d)}
			child.content.dir.Store(to)
		}
		to.children[base] = child
	}
}

// place puts a content under a name, making the directories above it.
func (d *disk) place(name string, mode fs.FileMode, c *content) error {
	elems, err := cleanPath(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, err := d.walkLocked(elems); err == nil && n.children != nil {
		return syscall.EISDIR
	}
	dir, err := d.mkdirLocked(elems[:len(elems)-1])
	if err != nil {
		return err
	}
	base := elems[len(elems)-1]
	if old := dir.children[base]; old != nil {
		d.dropLocked(old)
	}
	d.setLocked(dir, base, &node{mode: mode, content: c})
	return nil
}

func (d *disk) create(name string) (*node, error) {
	elems, err := cleanPath(name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(elems) == 0 {
		return nil, syscall.EISDIR
	}
	dir, base, err := d.parentLocked(elems)
	if err != nil {
		return nil, err
	}
	n := dir.children[base]
	switch {
	case n == nil:
		n = &node{mode: 0o644, content: d.newContent()}
		d.setLocked(dir, base, n)
	case n.children != nil:
		return nil, syscall.EISDIR
	default:
		n.content.truncate(0)
		dir.notify()
	}
	n.content.users.Add(1)
	return n, nil
}

func (d *disk) open(name string) (*node, error) {
	elems, err := cleanPath(name)
	if err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, err := d.walkLocked(elems)
	if err == nil && n.content != nil {
		n.content.users.Add(1)
	}
	return n, err
}

func (d *disk) removeAll(name string) error {
	elems, err := cleanPath(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, base, err := d.parentLocked(elems)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if n := dir.children[base]; n != nil {
		d.dropLocked(n)
		d.setLocked(dir, base, nil)
	}
	return nil
}

func (d *disk) rename(from, to string) error {
	src, err := cleanPath(from)
	if err != nil {
		return err
	}
	dst, err := cleanPath(to)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fromDir, fromBase, err := d.parentLocked(src)
	if err != nil {
		return err
	}
	n := fromDir.children[fromBase]
	if n == nil {
		return syscall.ENOENT
	}
	toDir, toBase, err := d.parentLocked(dst)
	if err != nil {
		return err
	}
	old := toDir.children[toBase]
	switch {
	case old == n:
		return nil
	case n.children != nil && len(dst) > len(src) && slices.Equal(dst[:len(src)], src):
		return syscall.EINVAL // into itself
	case old == nil:
	case n.children == nil && old.children != nil:
		return syscall.EEXIST // as os.Rename, not rename(2), has it
	case n.children != nil && old.children == nil:
		return syscall.ENOTDIR
	case len(old.children) > 0:
		return syscall.ENOTEMPTY
	}
	if old != nil {
		d.dropLocked(old)
	}
	d.setLocked(fromDir, fromBase, nil)
	d.setLocked(toDir, toBase, n)
	return nil
}

// files lists the paths of all files, sorted.
func (d *disk) files() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var list []string
	var walk func(prefix string, n *node)
	walk = func(prefix string, n *node) {
		for base, child := range n.children {
			if child.children == nil {
				list = append(list, prefix+"/"+base)
			} else {
				walk(prefix+"/"+base, child)
			}
		}
	}
	walk("", d.root)
	slices.Sort(list)
	return list
}

// clear drops everything.
func (d *disk) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked(d.root)
}

// info describes a node under a name.
func (d *disk) info(name string, n *node) fileInfo {
	fi := fileInfo{name: path.Base(name), mode: n.mode}
	if n.content != nil {
		fi.size, fi.modTime = n.content.stat()
		return fi
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	fi.modTime = n.modTime
	return fi
}

// fileInfo implements [fs.FileInfo].
type fileInfo struct {
	name    string
	size    int64
	mode    fs.FileMode
	modTime time.Time
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return i.modTime }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }

// view is a disk as one process sees it: until the process is killed. It
// implements [worker.FS].
type view struct {
	disk *disk
	wait func() // before every use; nil where nothing stops the view

	mu   sync.RWMutex // held by every use, so that nothing changes after revoke
	gone error
}

var _ worker.FS = (*view)(nil)

// revoke makes every use of the view and its files fail with err, and wakes
// nobody.
func (v *view) revoke(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone == nil {
		v.gone = err
	}
}

// use calls f unless the view is revoked.
func (v *view) use(f func() error) error {
	if v.wait != nil {
		v.wait()
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.gone != nil {
		return v.gone
	}
	return f()
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Open implements [worker.FS].
func (v *view) Open(name string) (worker.File, error) { return v.handle("open", name, v.disk.open) }

// Create implements [worker.FS].
func (v *view) Create(name string) (worker.File, error) {
	return v.handle("create", name, v.disk.create)
}

// Append implements [worker.FS].
func (v *view) Append(name string, size int64) (worker.File, error) {
	f, err := v.handle("append", name, v.disk.open)
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(size); err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (v *view) handle(op, name string, open func(string) (*node, error)) (worker.File, error) {
	h := &handle{view: v, name: name, writable: op != "open"}
	err := v.use(func() (err error) {
		h.node, err = open(name)
		return err
	})
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return h, nil
}

// MkdirAll implements [worker.FS].
func (v *view) MkdirAll(name string) error {
	return pathError("mkdir", name, v.use(func() error { return v.disk.mkdirAll(name) }))
}

// RemoveAll implements [worker.FS].
func (v *view) RemoveAll(name string) error {
	return pathError("remove", name, v.use(func() error { return v.disk.removeAll(name) }))
}

// Rename implements [worker.FS].
func (v *view) Rename(from, to string) error {
	if err := v.use(func() error { return v.disk.rename(from, to) }); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Stat implements [worker.FS].
func (v *view) Stat(name string) (fi fs.FileInfo, err error) {
	err = v.use(func() error {
		n, err := v.disk.lookup(name)
		if err == nil {
			fi = v.disk.info(path.Clean(name), n)
		}
		return err
	})
	return fi, pathError("stat", name, err)
}

// ReadDir implements [worker.FS].
func (v *view) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = v.use(func() error {
		n, err := v.disk.lookup(name)
		if err != nil {
			return err
		}
		if !n.mode.IsDir() {
			return syscall.ENOTDIR
		}
		v.disk.mu.RLock()
		children := maps.Clone(n.children)
		v.disk.mu.RUnlock()
		for _, base := range slices.Sorted(maps.Keys(children)) {
			list = append(list, fs.FileInfoToDirEntry(v.disk.info(base, children[base])))
		}
		return nil
	})
	return list, pathError("readdir", name, err)
}

// Watch implements [worker.FS]. The end of the sandbox is a change too.
func (v *view) Watch(dir string) (changed <-chan struct{}, stop func(), err error) {
	err = v.use(func() error {
		n, err := v.disk.lookup(dir)
		if err != nil {
			return err
		}
		if !n.mode.IsDir() {
			return syscall.ENOTDIR
		}
		c := make(chan struct{}, 1)
		changed, stop = c, n.watch(c)
		return nil
	})
	return changed, stop, pathError("watch", dir, err)
}

// handle is an open file. It implements [worker.File].
type handle struct {
	view     *view
	node     *node
	name     string
	writable bool

	mu     sync.Mutex // held while the position is used
	pos    int64
	closed atomic.Bool
}

// use calls f with the file's content.
func (h *handle) use(op string, f func(c *content) error) error {
	err := h.view.use(func() error {
		switch {
		case h.closed.Load():
			return fs.ErrClosed
		case h.node.content == nil:
			return syscall.EISDIR
		}
		return f(h.node.content)
	})
	if err == io.EOF {
		return err
	}
	return pathError(op, h.name, err)
}

func (h *handle) Read(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err = h.use("read", func(c *content) (err error) {
		n, err = c.readAt(b, h.pos)
		if n > 0 || len(b) == 0 {
			err = nil
		}
		h.pos += int64(n)
		return err
	})
	return n, err
}

func (h *handle) ReadAt(b []byte, off int64) (n int, err error) {
	err = h.use("read", func(c *content) (err error) {
		n, err = c.readAt(b, off)
		return err
	})
	return n, err
}

func (h *handle) Write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err = h.use("write", func(c *content) (err error) {
		if !h.writable {
			return syscall.EBADF
		}
		n, err = c.writeAt(b, h.pos)
		h.pos += int64(n)
		if n > 0 {
			c.dir.Load().notify()
		}
		return err
	})
	return n, err
}

func (h *handle) Truncate(size int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.use("truncate", func(c *content) error {
		if !h.writable {
			return syscall.EINVAL
		}
		if err := c.truncate(size); err != nil {
			return err
		}
		c.dir.Load().notify()
		return nil
	})
}

func (h *handle) Seek(offset int64, whence int) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.use("seek", func(c *content) error {
		switch whence {
		case io.SeekStart:
		case io.SeekCurrent:
			offset += h.pos
		case io.SeekEnd:
			size, _ := c.stat()
			offset += size
		default:
			return syscall.EINVAL
		}
		if offset < 0 {
			return syscall.EINVAL
		}
		h.pos = offset
		return nil
	})
	return h.pos, err
}

func (h *handle) Stat() (fi fs.FileInfo, err error) {
	err = h.view.use(func() error {
		if h.closed.Load() {
			return fs.ErrClosed
		}
		fi = h.view.disk.info(path.Clean(h.name), h.node)
		return nil
	})
	return fi, pathError("stat", h.name, err)
}

// Close works on a revoked view too: a program's deferred calls need no
// answer, and the space is given back.
func (h *handle) Close() error {
	h.mu.Lock() // no write may follow that would take space
	defer h.mu.Unlock()
	if h.closed.Swap(true) {
		return pathError("close", h.name, fs.ErrClosed)
	}
	if h.node.content != nil {
		h.node.content.release()
	}
	return nil
}
