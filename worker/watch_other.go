//go:build !linux

package worker

import (
	"fmt"

	"github.com/fsnotify/fsnotify"
)

// Watch implements [FS].
func (OSFS) Watch(dir string) (<-chan struct{}, func(), error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if err := w.Add(dir); err != nil {
		w.Close()
		return nil, nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(done)
		for {
			select {
			case _, ok := <-w.Events:
				if !ok {
					return
				}
				notify()
			case _, ok := <-w.Errors:
				if !ok {
					return
				}
				notify() // an overflow lost events: look again
			}
		}
	}()
	return changed, func() { w.Close(); <-done }, nil
}
