package machine_test

import (
	"errors"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
	"github.com/osiris-pipelines/remote/mock/internal/machine"
)

// events keeps what was reported.
type events struct {
	mu   sync.Mutex
	list []envd.Event
}

func (l *events) add(e envd.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, e)
}

func (l *events) has(want ...envd.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(want, func(e envd.Event) bool { return !slices.Contains(l.list, e) })
}

func (l *events) await(t *testing.T, want ...envd.Event) {
	t.Helper()
	defer func() {
		if t.Failed() {
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Log("events:", l.list)
		}
	}()
	for _, e := range want {
		eventually(t, e.Name, func() bool { return l.has(e) })
	}
}

func TestWatch(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		run(t, m, shell(t, m, "mkdir -p dir/sub; ln -s dir link"))
		var l events
		stop, err := m.Watch(home+"/link", false, l.add)
		if err != nil {
			t.Fatal(err)
		}
		run(t, m, shell(t, m, "cd dir; echo x >a; chmod 600 a; mv a b; rm b; echo >sub/unseen"))
		l.await(t,
			envd.Event{Name: "a", Op: envd.OpCreate}, envd.Event{Name: "a", Op: envd.OpWrite},
			envd.Event{Name: "a", Op: envd.OpChmod}, envd.Event{Name: "a", Op: envd.OpRename},
			envd.Event{Name: "b", Op: envd.OpCreate}, envd.Event{Name: "b", Op: envd.OpRemove},
		)
		if l.has(envd.Event{Name: "sub/unseen", Op: envd.OpCreate}) {
			t.Error("an event of a subdirectory")
		}
		run(t, m, shell(t, m, "rm -r dir"))
		l.await(t, envd.Event{Name: ".", Op: envd.OpRemove})
		stop()
	})
}

func TestWatchRecursive(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		run(t, m, shell(t, m, "mkdir -p dir/sub/deep"))
		var l events
		stop, err := m.Watch(home+"/dir", true, l.add)
		if err != nil {
			t.Fatal(err)
		}
		run(t, m, shell(t, m, "cd dir; echo >sub/deep/a; mkdir -p new/er; echo >new/er/b"))
		l.await(t,
			envd.Event{Name: "sub/deep/a", Op: envd.OpCreate}, envd.Event{Name: "new", Op: envd.OpCreate},
			envd.Event{Name: "new/er", Op: envd.OpCreate}, envd.Event{Name: "new/er/b", Op: envd.OpCreate},
		)
		run(t, m, shell(t, m, "cd dir; mv new/er new/name"))
		l.await(t, envd.Event{Name: "new/name", Op: envd.OpCreate}, envd.Event{Name: "new/name/b", Op: envd.OpCreate})
		write(t, m, home+"/dir/new/name/c", "")
		l.await(t, envd.Event{Name: "new/name/c", Op: envd.OpCreate})
		run(t, m, shell(t, m, "rm -r dir/sub"))
		l.await(t, envd.Event{Name: "sub", Op: envd.OpRemove})
		stop()
		before := len(l.list) // nobody adds any more
		write(t, m, home+"/dir/late", "")
		if len(l.list) != before {
			t.Error("an event after the end")
		}
	})
}

func TestWatchFails(t *testing.T) {
	forEach(t, machine.Options{}, func(t *testing.T, m *machine.Machine) {
		home := user(t, m, "").Home
		write(t, m, home+"/file", "")
		if _, err := m.Watch(home+"/file", false, nil); !errors.Is(err, syscall.ENOTDIR) {
			t.Error(err)
		}
		if _, err := m.Watch(home+"/missing", false, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}
