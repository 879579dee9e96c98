package envd

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Labeler is a [Machine] that keeps metadata with its files, as extended
// attributes do. Without it, metadata of uploads is checked and then dropped,
// which is what the daemon does on a file system without such attributes.
// Symbolic links are followed.
type Labeler interface {
	// SetMetadata replaces all metadata of a file; none clears it.
	SetMetadata(name string, metadata map[string]string) error
	// Metadata returns all metadata of a file.
	Metadata(name string) (map[string]string, error)
}

const (
	metadataHeader = "X-Metadata-"
	// attributePrefix begins the names of the extended attributes.
	attributePrefix = "user.e2b."
	// maxAttribute is Linux's limit for the name of an attribute, in bytes.
	maxAttribute = 255
	// maxMetadata bounds all names and values of a file: a block of ext4.
	maxMetadata = 4096
)

// metadataOf returns the metadata that the headers of an upload give.
func metadataOf(h http.Header) (map[string]string, error) {
	metadata, total := make(map[string]string), 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, metadataHeader)
		if !ok || key == "" || len(values) == 0 {
			continue
		}
		key = strings.ToLower(key)
		if len(attributePrefix)+len(key) > maxAttribute {
			return nil, fmt.Errorf("metadata key %q is longer than %d bytes", key, maxAttribute-len(attributePrefix))
		}
		if !printable(key) || !printable(values[0]) {
			return nil, fmt.Errorf("metadata %q is not printable ASCII", key)
		}
		metadata[key] = values[0]
		total += len(attributePrefix) + len(key) + len(values[0])
	}
	if total > maxMetadata {
		return nil, fmt.Errorf("metadata takes %d bytes, the limit is %d", total, maxMetadata)
	}
	return metadata, nil
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

func (d *Daemon) setMetadata(name string, metadata map[string]string) error {
	l, ok := d.machine.(Labeler)
	if !ok {
		return nil
	}
	err := l.SetMetadata(name, metadata)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// metadata returns what is known: having none is no reason to fail.
func (d *Daemon) metadata(name string) map[string]string {
	l, ok := d.machine.(Labeler)
	if !ok {
		return nil
	}
	metadata, err := l.Metadata(name)
	if err != nil {
		d.log.Debug("read metadata", "path", name, "error", err)
	}
	return metadata
}
