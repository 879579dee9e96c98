package mock

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxLayer bounds the files of a COPY, packed, in bytes.
	maxLayer = 1 << 30
	// layerURLLife is how long files can be uploaded to a URL.
	layerURLLife = 30 * time.Minute
)

// layers are the files that were uploaded for COPY, by the hash that the client
// gave them.
type layers struct {
	mu     sync.Mutex
	dir    string // private; empty as long as there is nothing in it
	closed bool
	files  map[string]string // by hash
}

// open opens a layer.
func (l *layers) open(hash string) (*os.File, error) {
	l.mu.Lock()
	name, ok := l.files[hash]
	l.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no files were uploaded with the hash %q", hash)
	}
	return os.Open(name)
}

func (l *layers) has(hash string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[hash] != ""
}

// create makes a file in the directory.
func (l *layers) create() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the server is closed")
	}
	if l.dir == "" {
		dir, err := os.MkdirTemp("", "osiris-layers-")
		if err != nil {
			return nil, err
		}
		l.dir = dir
	}
	return os.CreateTemp(l.dir, "layer-")
}

// put keeps what r has to its end, which replaces what is there. It takes size
// bytes, no more and no less.
func (l *layers) put(hash string, r io.Reader, size int64) error {
	f, err := l.create()
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files == nil {
		l.files = make(map[string]string)
	}
	l.files[hash] = f.Name() // one that it replaces may be in use, and stays
	return nil
}

// close removes all files.
func (l *layers) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(filepath.Clean(l.dir))
}

func isHash(s string) bool {
	return len(s) == 64 && !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// layerURL says whether files are there already, and where they can be uploaded
// to: a path of this server.
func (c *control) layerURL(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	hash, id := r.PathValue("hash"), r.PathValue("templateID")
	if !isHash(hash) {
		return 0, nil, fail(http.StatusBadRequest, "Invalid files hash")
	}
	s := c.server
	s.mu.Lock()
	t := s.templateLocked(id)
	found := t != nil && t.id == id && !t.foreign
	s.mu.Unlock()
	if !found {
		return 0, nil, fail(http.StatusNotFound, "Error when getting template: no rows in result set")
	}
	expires := strconv.FormatInt(s.now().Add(layerURLLife).Unix(), 10)
	at := url.URL{
		Scheme:   "http",
		Host:     r.Host,
		Path:     "/layers/" + hash,
		RawQuery: url.Values{"expires": {expires}, "signature": {s.layerSignature(hash, expires)}}.Encode(),
	}
	return http.StatusCreated, struct {
		Present bool   `json:"present"`
		URL     string `json:"url"`
	}{s.layers.has(hash), at.String()}, nil
}

func (s *Server) layerSignature(hash, expires string) string {
	return s.token("layer " + hash + " " + expires)
}

// putLayer takes an upload as a storage service does: who has the URL may, and
// must say how long it is.
func (c *control) putLayer(w http.ResponseWriter, r *http.Request) {
	hash, q := r.PathValue("hash"), r.URL.Query()
	expires, _ := strconv.ParseInt(q.Get("expires"), 10, 64)
	refuse := func(status int, code, message string) {
		w.Header().Set("Content-Type", "application/xml; charset=utf-8")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
	}
	switch {
	case !sameToken(q.Get("signature"), c.server.layerSignature(hash, q.Get("expires"))):
		refuse(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
	case c.server.now().Unix() >= expires:
		refuse(http.StatusBadRequest, "ExpiredToken", "The provided token has expired.")
	case len(r.TransferEncoding) > 0:
		refuse(http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented.")
	case r.ContentLength < 0:
		refuse(http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
	case r.ContentLength > maxLayer:
		refuse(http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.")
	default:
		if err := c.server.layers.put(hash, r.Body, r.ContentLength); err != nil {
			c.server.log.Debug("files of a build cannot be kept", "error", err)
			refuse(http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again.")
		}
	}
}
