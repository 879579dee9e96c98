package e2b

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"slices"
)

// Layer is a set of files that a build copies into a template, see [CopyStep].
// E2B keeps the layers of a template, and one that it has got is not uploaded
// again: a layer is known by a hash of all that it holds.
type Layer struct {
	hash    string
	entries []layerEntry // sorted, a directory before what is in it
}

// LayerFile is a file of a [Layer], or a directory.
type LayerFile struct {
	// Name is where it is in the layer: a path with slashes, as io/fs has
	// them. The directories above it need not be in the layer.
	Name string

	// Mode is its permissions; zero means 0644. With fs.ModeDir it is a
	// directory, with 0755 for zero, and has neither Size nor Open.
	Mode fs.FileMode

	Size int64 // bytes

	// Open opens its content. It is called once for the hash, and again when
	// the layer is uploaded, and must give the same bytes each time.
	Open func() (io.ReadCloser, error)
}

type layerEntry struct {
	LayerFile
	sum [sha256.Size]byte // of the content
}

// NewLayer makes a layer of files, and reads all of them. The error matches
// [ErrInvalid] where they cannot be in one layer.
func NewLayer(files ...LayerFile) (*Layer, error) {
	l := &Layer{}
	seen := make(map[string]bool, len(files))
	for _, f := range files {
		e, err := newLayerEntry(f)
		if err != nil {
			return nil, fmt.Errorf("make layer: %w", err)
		}
		if seen[f.Name] {
			return nil, fmt.Errorf("make layer: %w: %q is there twice", ErrInvalid, clip(f.Name))
		}
		seen[f.Name] = true
		l.entries = append(l.entries, e)
	}
	if err := l.addParents(seen); err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	slices.SortFunc(l.entries, func(a, b layerEntry) int { return cmp.Compare(a.Name, b.Name) })
	l.hash = l.sum()
	return l, nil
}

// NewLayerFS makes a layer of all that is in a file system, which must have
// nothing but files and directories, and reads all of it.
func NewLayerFS(fsys fs.FS) (*Layer, error) {
	var files []LayerFile
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := LayerFile{Name: name, Mode: info.Mode()}
		if !d.IsDir() {
			f.Size, f.Open = info.Size(), func() (io.ReadCloser, error) { return fsys.Open(name) }
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	return NewLayer(files...)
}

func newLayerEntry(f LayerFile) (e layerEntry, err error) {
	switch dir := f.Mode.IsDir(); {
	case !fs.ValidPath(f.Name) || f.Name == ".":
		return e, fmt.Errorf("%w: %q is not a name in a layer: that is a path with slashes which does not begin with one", ErrInvalid, clip(f.Name))
	case f.Mode&^(fs.ModeDir|fs.ModePerm) != 0:
		return e, fmt.Errorf("%w: %q is neither a file nor a directory, or has a special mode: %s", ErrInvalid, clip(f.Name), f.Mode)
	case dir && (f.Size != 0 || f.Open != nil):
		return e, fmt.Errorf("%w: the directory %q has a content", ErrInvalid, clip(f.Name))
	case !dir && (f.Size < 0 || f.Open == nil):
		return e, fmt.Errorf("%w: the file %q has no content", ErrInvalid, clip(f.Name))
	case f.Mode == fs.ModeDir:
		f.Mode |= 0o755
	case f.Mode == 0:
		f.Mode = 0o644
	}
	e.LayerFile = f
	if f.Open == nil {
		return e, nil
	}
	e.sum, err = e.read(io.Discard)
	return e, err
}

// read writes the content, and returns its sum.
func (e *layerEntry) read(w io.Writer) (sum [sha256.Size]byte, err error) {
	r, err := e.Open()
	if err != nil {
		return sum, err
	}
	defer func() { _ = r.Close() }()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(r, e.Size))
	if err == nil && n == e.Size {
		n, err = io.Copy(h, io.LimitReader(r, 1)) // there should be no more
		n += e.Size
	}
	if err == nil && n != e.Size {
		err = fmt.Errorf("%w: it does not have the %d bytes that it should", ErrInvalid, e.Size)
	}
	if err != nil {
		return sum, fmt.Errorf("%q: %w", clip(e.Name), err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// addParents adds the directories that are not there, so that what the layer
// does is not left to whoever unpacks it.
func (l *Layer) addParents(seen map[string]bool) error {
	files := make(map[string]bool)
	for _, e := range l.entries {
		files[e.Name] = !e.Mode.IsDir()
	}
	for _, e := range l.entries {
		for dir := path.Dir(e.Name); dir != "."; dir = path.Dir(dir) {
			if files[dir] {
				return fmt.Errorf("%w: %q is a file, and %q is below it", ErrInvalid, clip(dir), clip(e.Name))
			}
			if !seen[dir] {
				seen[dir] = true
				l.entries = append(l.entries, layerEntry{LayerFile: LayerFile{Name: dir, Mode: fs.ModeDir | 0o755}})
			}
		}
	}
	return nil
}

// sum is the hash of all. E2B takes any, and looks at what it has got by it
// (infra: packages/api/internal/handlers/template_layer_files_upload.go), so
// the content is in it whole; that of the official SDKs has the arguments of
// the step, too.
func (l *Layer) sum() string {
	h := sha256.New()
	_, _ = io.WriteString(h, "osiris layer 1\n")
	for _, e := range l.entries {
		_, _ = fmt.Fprintf(h, "%d:%s %o %t %d %x\n", len(e.Name), e.Name, e.Mode.Perm(), e.Mode.IsDir(), e.Size, e.sum)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Hash is the SHA-256 of all that is in the layer, in hexadecimal: names,
// permissions and contents.
func (l *Layer) Hash() string { return l.hash }

// Format writes the hash and the number of files, whatever the verb.
func (l Layer) Format(f fmt.State, _ rune) {
	files := 0
	for _, e := range l.entries {
		if !e.Mode.IsDir() {
			files++
		}
	}
	_, _ = fmt.Fprintf(f, "layer %s (files: %d)", cmp.Or(l.hash, "without a hash"), files)
}

// write writes the archive, which E2B unpacks with tar -xz. It is the same for
// the same content.
func (l *Layer) write(ctx context.Context, w io.Writer) error {
	zip, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
	archive := tar.NewWriter(zip)
	for _, e := range l.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: e.Name, Mode: int64(e.Mode.Perm()), Size: e.Size}
		if e.Mode.IsDir() {
			header.Typeflag, header.Name = tar.TypeDir, e.Name+"/"
		}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if e.Mode.IsDir() {
			continue
		}
		switch sum, err := e.read(&contextWriter{ctx, archive}); {
		case errors.Is(err, ErrInvalid), err == nil && !bytes.Equal(sum[:], e.sum[:]):
			return fmt.Errorf("%q: %w", clip(e.Name), ErrChanged)
		case err != nil:
			return err
		}
	}
	return errors.Join(archive.Close(), zip.Close())
}

// contextWriter writes until its context ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *contextWriter) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(b)
}

// uploadLayer sends a layer to where E2B wants it, unless it is there.
//
// The storage has no use for a body in chunks, so the archive is made first, in
// a temporary file; and it is not E2B's own, so it gets no key.
func (c *Client) uploadLayer(ctx context.Context, templateID string, l *Layer) error {
	const op = "upload layer"
	var to struct {
		Present bool   `json:"present"`
		URL     string `json:"url"`
	}
	call := apiCall{op: op, method: http.MethodGet, path: "/templates/" + templateID + "/files/" + l.hash, out: &to, safe: true}
	if _, err := c.send(ctx, call); err != nil || to.Present {
		return aboutBuilds(err)
	}
	if fault := storageFault(to.URL); fault != "" {
		return fmt.Errorf("%s: the place that the server names for it %s", op, fault)
	}
	file, err := os.CreateTemp("", "e2b-layer-*.tar.gz")
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	if err := l.write(ctx, file); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return c.putLayer(ctx, op, to.URL, file, size)
}

func (c *Client) putLayer(ctx context.Context, op, to string, file io.ReaderAt, size int64) error {
	resp, err := c.do(ctx, c.files, &request{
		op: op, method: http.MethodPut, url: to, storage: true,
		body: func() (io.Reader, error) { return io.NewSectionReader(file, 0, size), nil }, size: size,
		safe: true, idle: transferIdle, whole: maxRefusalBytes,
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
