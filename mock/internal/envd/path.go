package envd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"connectrpc.com/connect"
)

// userKey finds the user whom a request named in its context.
type userKey struct{}

// user returns who acts in a procedure.
func (d *Daemon) user(ctx context.Context) (User, error) {
	if u, ok := ctx.Value(userKey{}).(User); ok {
		return u, nil
	}
	u, err := d.machine.User(d.current().user)
	if err != nil {
		return User{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("default user: %w", err))
	}
	return u, nil
}

// named looks up a user by a name that was given, if only as an empty one.
func (d *Daemon) named(name string) (User, error) {
	if name == "" {
		return User{}, errors.New("the user has no name")
	}
	return d.machine.User(name)
}

var errTilde = errors.New("the home of another user cannot be expanded")

// resolve returns the absolute form of a path that a client sent. An absolute
// one is taken as it is, cleaned or not, for it comes back in answers.
func (d *Daemon) resolve(name string, u User) (string, error) {
	if name == "" {
		name = d.current().workdir
	}
	if strings.HasPrefix(name, "~") {
		if len(name) > 1 && name[1] != '/' && name[1] != '\\' {
			return "", fmt.Errorf("path %q: %w", name, errTilde)
		}
		name = path.Join(u.Home, name[1:])
	}
	if path.IsAbs(name) {
		return name, nil
	}
	return path.Join(u.Home, name), nil
}

// actor returns who acts in a procedure, and a path in absolute form.
func (d *Daemon) actor(ctx context.Context, name string) (User, string, error) {
	u, err := d.user(ctx)
	if err != nil {
		return User{}, "", err
	}
	name, err = d.resolve(name, u)
	if err != nil {
		return User{}, "", connect.NewError(connect.CodeInvalidArgument, err)
	}
	return u, name, nil
}

// stat describes what a path leads to. A slash at its end stands for a
// directory.
func (d *Daemon) stat(name string) (fs.FileInfo, error) {
	info, err := d.machine.Stat(path.Clean(name))
	if err == nil && strings.HasSuffix(name, "/") && !info.IsDir() {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: syscall.ENOTDIR}
	}
	return info, err
}

// lstat describes what is at a path.
func (d *Daemon) lstat(name string) (fs.FileInfo, error) {
	if strings.HasSuffix(name, "/") {
		return d.stat(name)
	}
	return d.machine.Lstat(path.Clean(name))
}

// makeDirs makes a directory and those above it.
func (d *Daemon) makeDirs(dir string, owner User) error {
	dir = path.Clean(dir)
	info, err := d.machine.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("path is a file: %s", dir)
	case !errors.Is(err, fs.ErrNotExist) || dir == "/":
		return fmt.Errorf("look at directory: %w", err)
	}
	if err := d.makeDirs(path.Dir(dir), owner); err != nil {
		return err
	}
	if err := d.machine.Mkdir(dir, owner); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// maxLinks bounds the symbolic links in a path, as Go's path/filepath does.
const maxLinks = 255

var errTooManyLinks = errors.New("too many links")

// evalLinks returns a path without symbolic links.
func (d *Daemon) evalLinks(name string) (string, error) {
	at, rest := "/", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		next := path.Join(at, part)
		info, err := d.machine.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", errTooManyLinks
		}
		target, err := d.machine.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}
