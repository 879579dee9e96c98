package envd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

func (d *Daemon) statFile(ctx context.Context, req *envdpb.StatRequest) (*envdpb.StatResponse, error) {
	_, name, err := d.actor(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := d.entry(name)
	if err != nil {
		return nil, err
	}
	return &envdpb.StatResponse{Entry: entry}, nil
}

func (d *Daemon) makeDir(ctx context.Context, req *envdpb.MakeDirRequest) (*envdpb.MakeDirResponse, error) {
	u, name, err := d.actor(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	info, err := d.stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil, rpcError(connect.CodeAlreadyExists, "directory already exists: %s", name)
	case err == nil:
		return nil, rpcError(connect.CodeInvalidArgument, "path is there and no directory: %s", name)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, rpcError(connect.CodeInternal, "look at path: %w", err)
	}
	if err := d.makeDirs(name, u); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	entry, err := d.entry(name)
	if err != nil {
		return nil, err
	}
	return &envdpb.MakeDirResponse{Entry: entry}, nil
}

func (d *Daemon) move(ctx context.Context, req *envdpb.MoveRequest) (*envdpb.MoveResponse, error) {
	_, from, err := d.actor(ctx, req.GetSource())
	if err != nil {
		return nil, err
	}
	u, to, err := d.actor(ctx, req.GetDestination())
	if err != nil {
		return nil, err
	}
	// The parents are made, even if there turns out to be nothing to move.
	if err := d.makeDirs(path.Dir(path.Clean(to)), u); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	err = d.rename(path.Clean(from), path.Clean(to))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, rpcError(connect.CodeNotFound, "source not found: %w", err)
	case err != nil:
		return nil, rpcError(connect.CodeInternal, "rename: %w", err)
	}
	entry, err := d.entry(to)
	if err != nil {
		return nil, err
	}
	return &envdpb.MoveResponse{Entry: entry}, nil
}

// rename renames a file as package os does: unlike rename(2) it does not
// replace a directory, even if that is empty.
func (d *Daemon) rename(from, to string) error {
	if _, err := d.machine.Lstat(from); err != nil {
		return err
	}
	if info, err := d.machine.Lstat(to); err == nil && info.IsDir() {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}
	}
	return d.machine.Rename(from, to)
}

func (d *Daemon) remove(ctx context.Context, req *envdpb.RemoveRequest) (*envdpb.RemoveResponse, error) {
	_, name, err := d.actor(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	if err := d.machine.RemoveAll(path.Clean(name)); err != nil {
		return nil, rpcError(connect.CodeInternal, "remove: %w", err)
	}
	return &envdpb.RemoveResponse{}, nil
}

func (d *Daemon) listDir(ctx context.Context, req *envdpb.ListDirRequest) (*envdpb.ListDirResponse, error) {
	_, name, err := d.actor(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	dir, err := d.evalLinks(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, rpcError(connect.CodeNotFound, "path not found: %w", err)
	case errors.Is(err, errTooManyLinks):
		return nil, rpcError(connect.CodeFailedPrecondition, "symbolic links at %q: %w", name, err)
	case err != nil:
		return nil, rpcError(connect.CodeInternal, "follow symbolic links: %w", err)
	}
	info, err := d.machine.Stat(dir)
	switch {
	case err != nil:
		return nil, statError(err)
	case !info.IsDir():
		return nil, rpcError(connect.CodeInvalidArgument, "path is not a directory: %s", dir)
	}
	depth := max(1, req.GetDepth())
	entries, err := d.walk(nil, dir, name, depth)
	if err != nil {
		return nil, rpcError(connect.CodeInternal, "read directory %s: %w", dir, err)
	}
	return &envdpb.ListDirResponse{Entries: entries}, nil
}

// walk appends what is in a directory, down to a depth, parents first. The
// entries have paths below shown.
func (d *Daemon) walk(entries []*envdpb.EntryInfo, dir, shown string, depth uint32) ([]*envdpb.EntryInfo, error) {
	children, err := d.machine.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		name := path.Join(dir, child.Name())
		entry, err := d.entry(name)
		if connect.CodeOf(err) == connect.CodeNotFound {
			continue // it went away in the meantime
		}
		if err != nil {
			return nil, err
		}
		entry.Path = path.Join(shown, child.Name())
		entries = append(entries, entry)
		if child.IsDir() && depth > 1 {
			if entries, err = d.walk(entries, name, entry.Path, depth-1); err != nil {
				return nil, err
			}
		}
	}
	return entries, nil
}

func statError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return rpcError(connect.CodeNotFound, "file not found: %w", err)
	}
	return rpcError(connect.CodeInternal, "look at file: %w", err)
}

// entry describes a file. A symbolic link has size, permissions and time of its
// own, but type and mode of what it leads to.
func (d *Daemon) entry(name string) (*envdpb.EntryInfo, error) {
	info, err := d.lstat(name)
	if err != nil {
		return nil, statError(err)
	}
	owner, group := d.machine.Owner(info)
	e := &envdpb.EntryInfo{
		Name:        path.Base(name),
		Path:        name,
		Size:        info.Size(),
		Permissions: info.Mode().String(),
		Owner:       owner,
		Group:       group,
		Metadata:    d.metadata(path.Clean(name)),
	}
	if t := info.ModTime(); !t.IsZero() {
		e.ModifiedTime = timestamppb.New(t)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target := d.target(name)
		e.SymlinkTarget = &target
		if info, err = d.stat(target); err != nil {
			return e, nil
		}
	}
	e.Type = fileType(info.Mode())
	e.Mode = uint32(info.Mode().Perm())
	return e, nil
}

// target returns where a symbolic link leads to, or the link itself if that is
// nowhere.
func (d *Daemon) target(name string) string {
	target, err := d.evalLinks(name)
	if err != nil {
		return name
	}
	return target
}

func fileType(m fs.FileMode) envdpb.FileType {
	switch {
	case m.IsRegular():
		return envdpb.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return envdpb.FileType_FILE_TYPE_DIRECTORY
	}
	return envdpb.FileType_FILE_TYPE_UNSPECIFIED
}
