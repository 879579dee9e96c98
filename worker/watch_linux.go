package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Watch implements [FS]. It asks the kernel itself, since the library that
// other systems use hands every change through three goroutines: on the way
// of each answer to the host, half of the time it takes.
func (OSFS) Watch(dir string) (<-chan struct{}, func(), error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "watch", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), "inotify")
	const changes = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	if _, err := unix.InotifyAddWatch(fd, dir, changes); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), f.Close())
	}
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 16<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				return // closed
			}
			// What has changed does not matter, nor that the kernel may have
			// dropped some: the reader looks at all there is.
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, func() { f.Close(); <-done }, nil
}
