package e2b

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// FileType says what a file is.
type FileType string

// The types. A symbolic link has the type of what it points to.
const (
	TypeFile      FileType = "file"
	TypeDirectory FileType = "directory"
	TypeOther     FileType = "other" // a device, pipe, or socket, or a link to nothing
)

// FileInfo describes a file in a sandbox.
type FileInfo struct {
	Name     string
	Path     string
	Type     FileType
	Size     int64       // bytes; of a symbolic link, its own
	Mode     fs.FileMode // permission bits
	ModTime  time.Time
	Owner    string // name, or number where there is no name
	Group    string // name, or number where there is no name
	LinkedTo string // where a symbolic link points; empty for anything else
}

func fileInfo(e *envdpb.EntryInfo) FileInfo {
	types := map[envdpb.FileType]FileType{
		envdpb.FileType_FILE_TYPE_FILE:      TypeFile,
		envdpb.FileType_FILE_TYPE_DIRECTORY: TypeDirectory,
	}
	info := FileInfo{
		Name: e.GetName(), Path: e.GetPath(), Type: TypeOther, Size: e.GetSize(),
		Mode: fs.FileMode(e.GetMode()).Perm(), ModTime: e.GetModifiedTime().AsTime(),
		Owner: e.GetOwner(), Group: e.GetGroup(), LinkedTo: e.GetSymlinkTarget(),
	}
	if t, ok := types[e.GetType()]; ok {
		info.Type = t
	}
	return info
}

// Stat describes a file. The error matches [fs.ErrNotExist] when there is none.
func (s *Sandbox) Stat(ctx context.Context, path string) (FileInfo, error) {
	resp, err := call(ctx, s, fmt.Sprintf("stat %q", path), s.rpc.stat, &envdpb.StatRequest{Path: path}, true)
	if err != nil {
		return FileInfo{}, fileError(err)
	}
	return fileInfo(resp.GetEntry()), nil
}

// Exists reports whether there is a file or directory.
func (s *Sandbox) Exists(ctx context.Context, path string) (bool, error) {
	_, err := s.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// List lists a directory, and those in it down to depth: 1 is the directory
// alone, and so is 0. Directories come before what is in them. Symbolic links
// are not followed. The error matches [fs.ErrNotExist] when there is no such
// directory.
func (s *Sandbox) List(ctx context.Context, dir string, depth int) ([]FileInfo, error) {
	if depth < 0 {
		return nil, fmt.Errorf("list %q: %w: the depth is %d", dir, ErrInvalid, depth)
	}
	msg := &envdpb.ListDirRequest{Path: dir, Depth: uint32(depth)}
	resp, err := call(ctx, s, fmt.Sprintf("list %q", dir), s.rpc.listDir, msg, true)
	if err != nil {
		return nil, fileError(err)
	}
	infos := make([]FileInfo, len(resp.GetEntries()))
	for i, e := range resp.GetEntries() {
		infos[i] = fileInfo(e)
	}
	return infos, nil
}

// MakeDir makes a directory and those above it. One that is there already is
// no error.
func (s *Sandbox) MakeDir(ctx context.Context, path string) error {
	_, err := call(ctx, s, fmt.Sprintf("make directory %q", path), s.rpc.makeDir, &envdpb.MakeDirRequest{Path: path}, true)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

// Move renames a file or directory, and makes the directories above the new
// name. It replaces a file that has that name. The error matches
// [fs.ErrNotExist] when there is nothing to move.
func (s *Sandbox) Move(ctx context.Context, from, to string) error {
	msg := &envdpb.MoveRequest{Source: from, Destination: to}
	_, err := call(ctx, s, fmt.Sprintf("move %q to %q", from, to), s.rpc.move, msg, false)
	return fileError(err)
}

// Remove removes a file, or a directory with all that is in it. One that is
// not there is no error.
func (s *Sandbox) Remove(ctx context.Context, path string) error {
	_, err := call(ctx, s, fmt.Sprintf("remove %q", path), s.rpc.remove, &envdpb.RemoveRequest{Path: path}, true)
	return err
}

// WatchOptions say what to watch; without any, the directory alone.
type WatchOptions struct {
	Recursive     bool // directories below it, too, also those made later
	NetworkMounts bool // allow a directory on a network file system, whose changes from elsewhere do not show
}

// WatchOp is what happened to a file.
type WatchOp string

// What happens to files. A rename is an OpRename of the old name and an
// OpCreate of the new one.
const (
	OpCreate WatchOp = "create"
	OpWrite  WatchOp = "write"
	OpRemove WatchOp = "remove"
	OpRename WatchOp = "rename"
	OpChmod  WatchOp = "chmod"
)

// WatchEvent is a change in a directory.
type WatchEvent struct {
	Name string // relative to the directory
	Op   WatchOp
}

// Watcher reports changes in a directory.
type Watcher struct {
	sandbox *Sandbox

	ctx    context.Context
	cancel context.CancelCauseFunc
	stream *connect.ServerStreamForClient[envdpb.WatchDirResponse]
	op     string
}

// Watch watches a directory. All that happens once it has returned is
// reported, as long as ctx lives; the caller closes the watcher.
func (s *Sandbox) Watch(ctx context.Context, dir string, o WatchOptions) (*Watcher, error) {
	req := connect.NewRequest(&envdpb.WatchDirRequest{Path: dir, Recursive: o.Recursive, AllowNetworkMounts: o.NetworkMounts})
	setKeepAlive(req.Header())
	w := &Watcher{sandbox: s, op: fmt.Sprintf("watch %q", dir)}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.within(s.client.cfg.RequestTimeout).Stop()
	var err error
	if w.stream, err = s.rpc.watchDir.CallServerStream(withoutDeadline{w.ctx}, req); err != nil {
		w.cancel(nil)
		return nil, fileError(w.sandbox.rpcError(w.ctx, w.op, err))
	}
	if !w.stream.Receive() { // the start event
		defer w.Close()
		return nil, fileError(w.sandbox.rpcError(w.ctx, w.op, w.stream.Err()))
	}
	return w, nil
}

// within returns a timer that ends the watch.
func (w *Watcher) within(d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() { w.cancel(fmt.Errorf("%w: no sign of life within %s", ErrTimeout, d)) })
}

// Events are the changes, until the watcher or its context ends. Unless it was
// closed, the last comes with an error, which says why there are no more. It
// must be read by one reader, without long pauses.
func (w *Watcher) Events() iter.Seq2[WatchEvent, error] {
	ops := map[envdpb.EventType]WatchOp{
		envdpb.EventType_EVENT_TYPE_CREATE: OpCreate,
		envdpb.EventType_EVENT_TYPE_WRITE:  OpWrite,
		envdpb.EventType_EVENT_TYPE_REMOVE: OpRemove,
		envdpb.EventType_EVENT_TYPE_RENAME: OpRename,
		envdpb.EventType_EVENT_TYPE_CHMOD:  OpChmod,
	}
	return func(yield func(WatchEvent, error) bool) {
		watchdog := w.within(silence)
		defer watchdog.Stop()
		for w.stream.Receive() {
			watchdog.Stop() // it does not watch over the reader
			e := w.stream.Msg().GetFilesystem()
			if op, ok := ops[e.GetType()]; ok && !yield(WatchEvent{Name: e.GetName(), Op: op}, nil) {
				return
			}
			watchdog.Reset(silence)
		}
		err := w.stream.Err()
		if context.Cause(w.ctx) == errWatcherClosed {
			return
		}
		if err == nil {
			err = errors.New("the stream has ended")
		}
		yield(WatchEvent{}, w.sandbox.rpcError(w.ctx, w.op, err))
	}
}

// Close ends the watch.
func (w *Watcher) Close() error {
	w.cancel(errWatcherClosed)
	_ = w.stream.Close() // of what was cancelled
	return nil
}

var errWatcherClosed = fmt.Errorf("the watcher is closed: %w", fs.ErrClosed)

// String names the watcher.
func (w *Watcher) String() string { return w.op + " in " + w.sandbox.String() }

// GoString is String: nothing secret must get into a log by %#v either.
func (w *Watcher) GoString() string { return w.String() }

// withoutDeadline hides a context's deadline, which Connect would send along.
// The context ends all the same.
type withoutDeadline struct{ context.Context }

func (withoutDeadline) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
