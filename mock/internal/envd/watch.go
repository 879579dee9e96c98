package envd

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

func (d *Daemon) watchDir(ctx context.Context, req *connect.Request[envdpb.WatchDirRequest], stream *connect.ServerStream[envdpb.WatchDirResponse]) error {
	dir, err := d.watchable(ctx, req.Msg.GetPath())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan Event)
	stop, err := d.machine.Watch(path.Clean(dir), req.Msg.GetRecursive(), func(e Event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	})
	if err != nil {
		cancel()
		return rpcError(connect.CodeInternal, "watch: %w", err)
	}
	defer stop()
	defer cancel() // first, that no report is under way
	if err := stream.Send(&envdpb.WatchDirResponse{Event: &envdpb.WatchDirResponse_Start{Start: &envdpb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	alive := newKeepalive(req.Header())
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			err = stream.Send(&envdpb.WatchDirResponse{Event: &envdpb.WatchDirResponse_Keepalive{Keepalive: &envdpb.WatchDirResponse_KeepAlive{}}})
		case e := <-events:
			ev := d.event(dir, e, req.Msg.GetIncludeEntry())
			err = stream.Send(&envdpb.WatchDirResponse{Event: &envdpb.WatchDirResponse_Filesystem{Filesystem: ev}})
			alive.restart()
		}
		if err != nil {
			return err
		}
	}
}

// watchable returns the absolute form of a directory that can be watched.
func (d *Daemon) watchable(ctx context.Context, name string) (string, error) {
	_, dir, err := d.actor(ctx, name)
	if err != nil {
		return "", err
	}
	info, err := d.stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", rpcError(connect.CodeNotFound, "path %s not found: %w", dir, err)
	case err != nil:
		return "", rpcError(connect.CodeInternal, "look at path: %w", err)
	case !info.IsDir():
		return "", rpcError(connect.CodeInvalidArgument, "path %s is not a directory", dir)
	}
	return dir, nil
}

// event describes what happened in dir, with what is there now if that is
// wanted and can still be found.
func (d *Daemon) event(dir string, e Event, entry bool) *envdpb.FilesystemEvent {
	ev := &envdpb.FilesystemEvent{Name: e.Name, Type: eventType(e.Op)}
	if entry && (e.Op == OpCreate || e.Op == OpWrite || e.Op == OpChmod) {
		ev.Entry, _ = d.entry(path.Join(dir, e.Name))
	}
	return ev
}

func eventType(op Op) envdpb.EventType {
	switch op {
	case OpCreate:
		return envdpb.EventType_EVENT_TYPE_CREATE
	case OpWrite:
		return envdpb.EventType_EVENT_TYPE_WRITE
	case OpRemove:
		return envdpb.EventType_EVENT_TYPE_REMOVE
	case OpRename:
		return envdpb.EventType_EVENT_TYPE_RENAME
	case OpChmod:
		return envdpb.EventType_EVENT_TYPE_CHMOD
	}
	return envdpb.EventType_EVENT_TYPE_UNSPECIFIED
}

// watcher collects events until they are asked for.
type watcher struct {
	stop func()

	mu     sync.Mutex
	events []*envdpb.FilesystemEvent
}

func (w *watcher) add(ev *envdpb.FilesystemEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, ev)
}

func (w *watcher) drain() []*envdpb.FilesystemEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

func (d *Daemon) createWatcher(ctx context.Context, req *envdpb.CreateWatcherRequest) (*envdpb.CreateWatcherResponse, error) {
	dir, err := d.watchable(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	w := &watcher{}
	w.stop, err = d.machine.Watch(path.Clean(dir), req.GetRecursive(), func(e Event) {
		w.add(d.event(dir, e, req.GetIncludeEntry()))
	})
	if err != nil {
		return nil, rpcError(connect.CodeInternal, "watch: %w", err)
	}
	id := "w" + strings.ToLower(rand.Text())[:20]
	if !d.keep(id, w) {
		w.stop()
		return nil, rpcError(connect.CodeUnavailable, "the daemon is closed")
	}
	return &envdpb.CreateWatcherResponse{WatcherId: id}, nil
}

func (d *Daemon) keep(id string, w *watcher) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.watchers[id] = w
	return true
}

func (d *Daemon) watcher(id string) (*watcher, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.watchers[id]
	if !ok {
		return nil, rpcError(connect.CodeNotFound, "watcher with id %s not found", id)
	}
	return w, nil
}

func (d *Daemon) watcherEvents(_ context.Context, req *envdpb.GetWatcherEventsRequest) (*envdpb.GetWatcherEventsResponse, error) {
	w, err := d.watcher(req.GetWatcherId())
	if err != nil {
		return nil, err
	}
	return &envdpb.GetWatcherEventsResponse{Events: w.drain()}, nil
}

func (d *Daemon) removeWatcher(_ context.Context, req *envdpb.RemoveWatcherRequest) (*envdpb.RemoveWatcherResponse, error) {
	w, err := d.watcher(req.GetWatcherId())
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	delete(d.watchers, req.GetWatcherId())
	d.mu.Unlock()
	w.stop()
	return &envdpb.RemoveWatcherResponse{}, nil
}
