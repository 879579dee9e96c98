package e2b

import (
	"fmt"
	"io"
	"io/fs"
)

// Layer is a set of files that a build copies into a template, see [CopyStep].
// Files that E2B has got for a template before are not uploaded again: a layer
// is known by a hash of all that it holds.
type Layer struct {
	hash    string
	entries []layerEntry
}

// LayerFile is a file of a [Layer], or a directory.
type LayerFile struct {
	// Name is where it is in the layer: a path with slashes, as io/fs has
	// them. The directories above it need not be named.
	Name string

	// Mode is its permissions; zero means 0644. With fs.ModeDir it is a
	// directory, which has nothing below but Name and Mode.
	Mode fs.FileMode

	Size int64 // bytes

	// Open opens its content. It is called once for the hash, and once more
	// when the layer is uploaded: it must give the same bytes each time.
	Open func() (io.ReadCloser, error)
}

type layerEntry struct {
	LayerFile
	sum [32]byte // SHA-256 of the content
}

// NewLayer makes a layer of files. It reads all of them.
func NewLayer(files ...LayerFile) (*Layer, error) {
	return nil, fmt.Errorf("make layer: %w", ErrUnsupported)
}

// NewLayerFS makes a layer of all that is in fsys, which must not have anything
// but files and directories. It reads all of them.
func NewLayerFS(fsys fs.FS) (*Layer, error) {
	return nil, fmt.Errorf("make layer: %w", ErrUnsupported)
}

// Hash is the SHA-256 of all that is in the layer, in hexadecimal: names,
// permissions and contents.
func (l *Layer) Hash() string { return l.hash }
