package envd

import (
	"slices"
	"sync"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// backlog is how many chunks of output wait for their readers.
const backlog = 64

// fanout hands the output of a process to all who subscribed, one after the
// other and without dropping any: one who does not take his events holds up
// the others and, once the backlog is full, the process.
type fanout struct {
	source chan *envdpb.ProcessEvent

	mu     sync.Mutex
	subs   []*subscription
	closed bool
}

// subscription gets events until they are all there were, or it is ended.
type subscription struct {
	events chan *envdpb.ProcessEvent
	over   chan struct{}
	once   sync.Once
}

func newFanout() *fanout {
	return &fanout{source: make(chan *envdpb.ProcessEvent, backlog)}
}

// run hands out what comes from the source until it is closed.
func (f *fanout) run() {
	for ev := range f.source {
		for _, s := range f.subscribers() {
			select {
			case <-s.over:
			case s.events <- ev:
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, s := range f.subs {
		close(s.events)
	}
	f.subs = nil
}

func (f *fanout) subscribers() []*subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.subs)
}

// publish sends an event to those who are subscribed now. Where there are
// none, it is lost.
func (f *fanout) publish(ev *envdpb.ProcessEvent) {
	if len(f.subscribers()) > 0 {
		f.source <- ev
	}
}

func (f *fanout) subscribe() *subscription {
	s := &subscription{events: make(chan *envdpb.ProcessEvent), over: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		close(s.events)
	} else {
		f.subs = append(f.subs, s)
	}
	return s
}

// unsubscribe ends a subscription. It may be called more than once.
func (f *fanout) unsubscribe(s *subscription) {
	s.once.Do(func() { close(s.over) })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs = slices.DeleteFunc(f.subs, func(o *subscription) bool { return o == s })
}
