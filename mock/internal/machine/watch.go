package machine

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// watch reports what happens in a directory.
type watch struct {
	box       box
	notify    *fsnotify.Watcher
	dir       string
	recursive bool
	report    func(envd.Event)
	dirs      map[string]watched // by the name that the notifier has for it
}

// watched is a directory under watch.
type watched struct {
	name string // relative to the top
	pin  io.Closer
}

// Watch implements [envd.Machine]. A recursive one reports, once for each, the
// files that are found in a new directory. stop must not be called by report.
func (m *Machine) Watch(dir string, recursive bool, report func(envd.Event)) (stop func(), err error) {
	info, err := m.Stat(dir)
	if err != nil {
		return nil, pathError("watch", dir, err)
	}
	if !info.IsDir() {
		return nil, pathError("watch", dir, syscall.ENOTDIR)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watch{m.box, notify, dir, recursive, report, make(map[string]watched)}
	if err := w.add(".", nil); err != nil {
		w.close()
		return nil, pathError("watch", dir, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.run()
	}()
	return func() {
		_ = notify.Close()
		<-done
	}, nil
}

func (w *watch) close() {
	_ = w.notify.Close()
	for _, d := range w.dirs {
		d.close()
	}
}

func (d watched) close() {
	if d.pin != nil {
		_ = d.pin.Close()
	}
}

// add watches a directory and, if asked to, those below it. What they contain
// goes to found, if that is not nil.
func (w *watch) add(name string, found func(name string)) error {
	watchPath, pin, err := w.box.watchPath(path.Join(w.dir, name), name == ".")
	if err != nil {
		return err
	}
	d := watched{name, pin}
	err = w.notify.Add(watchPath)
	if err != nil || name == "." {
		d.close() // an open top would not be seen to be removed
		d.pin = nil
	}
	if err != nil {
		return err
	}
	w.dirs[watchPath] = d
	if !w.recursive {
		return nil
	}
	entries, err := w.box.ReadDir(path.Join(w.dir, name))
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := path.Join(name, e.Name())
		if found != nil {
			found(child)
		}
		if e.Type() == fs.ModeDir {
			_ = w.add(child, found) // it may be gone by now
		}
	}
	return nil
}

// drop forgets a directory and those below it.
func (w *watch) drop(name string) {
	for watchPath, d := range w.dirs {
		if d.name == name || strings.HasPrefix(d.name, name+"/") {
			_ = w.notify.Remove(watchPath)
			d.close()
			delete(w.dirs, watchPath)
		}
	}
}

// run reports events until the notifier is closed.
func (w *watch) run() {
	defer w.close()
	errs := w.notify.Errors
	for {
		select {
		case e, ok := <-w.notify.Events:
			if !ok {
				return
			}
			w.handle(e)
		case _, ok := <-errs:
			if !ok {
				errs = nil // lost events are lost
			}
		}
	}
}

// operations are in the order in which the daemon reports those of one event.
var operations = [...]struct {
	is fsnotify.Op
	op envd.Op
}{
	{fsnotify.Create, envd.OpCreate},
	{fsnotify.Rename, envd.OpRename},
	{fsnotify.Chmod, envd.OpChmod},
	{fsnotify.Write, envd.OpWrite},
	{fsnotify.Remove, envd.OpRemove},
}

func (w *watch) handle(e fsnotify.Event) {
	name, ok := w.name(e.Name)
	if !ok {
		return
	}
	for _, o := range operations {
		if e.Has(o.is) {
			w.report(envd.Event{Name: name, Op: o.op})
		}
	}
	if !w.recursive || name == "." {
		return
	}
	if e.Has(fsnotify.Rename) || e.Has(fsnotify.Remove) {
		w.drop(name)
	}
	if e.Has(fsnotify.Create) {
		w.created(name)
	}
}

// name returns what an event is about, unless it is one of a directory itself
// that the one above reports too: under a name of its own, where this one is
// known by a number.
func (w *watch) name(full string) (string, bool) {
	if d, ok := w.dirs[full]; ok {
		return d.name, d.pin == nil
	}
	dir, base := path.Split(full)
	d, ok := w.dirs[path.Clean(dir)]
	return path.Join(d.name, base), ok
}

func (w *watch) created(name string) {
	info, err := w.box.Lstat(path.Join(w.dir, name))
	if err != nil || !info.IsDir() {
		return
	}
	_ = w.add(name, func(child string) { w.report(envd.Event{Name: child, Op: envd.OpCreate}) })
}
