package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"

	"github.com/osiris-pipelines/remote/rpc"
)

// Pack writes files below an artifacts directory one behind the other, as
// [rpc.PackHeader] says, in the order of their slash-separated paths. A file
// that cannot be read, or has more than [rpc.MaxPacked] bytes, is one with an
// error. It follows no links; one that takes a directory's place while it is
// being read is found by the host, which compares the content.
func Pack(ctx context.Context, fsys FS, dir string, paths []string, w io.Writer) error {
	out := bufio.NewWriterSize(w, 256<<10)
	p := &packing{fsys: fsys, dir: dir}
	var header [rpc.PackHeaderSize]byte
	for i, name := range paths {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("pack artifacts: %w", err)
		}
		h := rpc.PackHeader{Index: uint32(i)}
		content, err := p.read(name)
		if err != nil {
			text := rpc.Printable(causeOf(err).Error())
			h.Failed, content = true, []byte(text[:min(len(text), rpc.MaxPackedError)])
		}
		h.Size = uint32(len(content))
		h.Put(&header)
		_, _ = out.Write(header[:]) // a bufio.Writer keeps its error
		if _, err := out.Write(content); err != nil {
			return fmt.Errorf("pack artifacts: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("pack artifacts: %w", err)
	}
	return nil
}

// packing is a directory whose files are read.
type packing struct {
	fsys FS
	dir  string
	last string // a directory in it that is known to be one; empty for itself
	buf  []byte
}

var errTooLarge = errors.New("it is too large to be packed")

// read reads a file. What it returns is valid until the next call.
func (p *packing) read(name string) ([]byte, error) {
	if !filepath.IsLocal(filepath.FromSlash(name)) || path.Clean(name) != name {
		return nil, errors.New("it is not the path of an artifact")
	}
	if err := p.enter(path.Dir(name)); err != nil {
		return nil, err
	}
	f, err := openRegular(p.fsys, filepath.Join(p.dir, filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errNotRegular
	case info.Size() > rpc.MaxPacked:
		return nil, errTooLarge
	}
	if need := int(info.Size()) + 1; cap(p.buf) < need { // a byte more shows that it has grown
		p.buf = make([]byte, min(2*need, rpc.MaxPacked+1))
	}
	n, err := io.ReadFull(f, p.buf[:info.Size()+1])
	if err == nil {
		return nil, errWritten
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	return p.buf[:n], nil
}

// enter makes sure that a directory is no link, nor below one.
func (p *packing) enter(dir string) error {
	if dir == "." || dir == p.last {
		return nil
	}
	if err := p.enter(path.Dir(dir)); err != nil {
		return err
	}
	info, err := p.fsys.Stat(filepath.Join(p.dir, filepath.FromSlash(dir)))
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("it is not in a directory")
	}
	p.last = dir
	return nil
}
