package envd

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// statusError is an answer to a request about files.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }

func failure(status int, format string, args ...any) error {
	return &statusError{status, fmt.Errorf(format, args...)}
}

// answerError writes an error with its status, or 500 if it has none.
func answerError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if e, ok := errors.AsType[*statusError](err); ok {
		status = e.status
	}
	writeError(w, status, err)
}

// fileQuery has the parameters of a request about a file; nil means absent.
type fileQuery struct {
	path, username, signature *string
	expires                   *int64 // Unix seconds
}

func parseFileQuery(r *http.Request) (q fileQuery, err error) {
	values := r.URL.Query()
	var expires *string
	for name, p := range map[string]**string{
		"path": &q.path, "username": &q.username, "signature": &q.signature, "signature_expiration": &expires,
	} {
		if *p, err = single(values, name); err != nil {
			return q, err
		}
	}
	if expires != nil {
		n, err := strconv.ParseInt(*expires, 10, 64)
		if err != nil {
			return q, fmt.Errorf("parameter signature_expiration: %w", err)
		}
		q.expires = &n
	}
	return q, nil
}

func single(values url.Values, name string) (*string, error) {
	switch v := values[name]; len(v) {
	case 0:
		return nil, nil
	case 1:
		return &v[0], nil
	default:
		return nil, fmt.Errorf("parameter %s has %d values", name, len(v))
	}
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// allow checks token or signature of a request about a file. A token that is
// there alone decides.
func (d *Daemon) allow(r *http.Request, q fileQuery, op string) error {
	token := d.current().token
	sent := r.Header.Get(tokenHeader)
	switch {
	case token == "" || sent != "" && same(token, sent):
		return nil
	case sent != "":
		return failure(http.StatusUnauthorized, "the access token is wrong")
	case q.signature == nil:
		return failure(http.StatusUnauthorized, "neither access token nor signature")
	case !same(sign(q, op, token), *q.signature):
		return failure(http.StatusUnauthorized, "the signature is wrong")
	case q.expires != nil && *q.expires < d.now().Unix():
		return failure(http.StatusUnauthorized, "the signature has expired")
	}
	return nil
}

// sign returns the signature that a URL for a file must have.
func sign(q fileQuery, op, token string) string {
	parts := []string{orEmpty(q.path), op, orEmpty(q.username), token}
	if q.expires != nil {
		parts = append(parts, strconv.FormatInt(*q.expires, 10))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// fileUser returns who acts in a request about files.
func (d *Daemon) fileUser(name *string) (u User, err error) {
	if name == nil {
		u, err = d.machine.User(d.current().user)
	} else {
		u, err = d.named(*name)
	}
	if err != nil {
		return User{}, failure(http.StatusUnauthorized, "look up user %q: %w", orEmpty(name), err)
	}
	return u, nil
}

func (d *Daemon) download(w http.ResponseWriter, r *http.Request) {
	q, err := parseFileQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.sendFile(w, r, q); err != nil {
		answerError(w, err)
	}
}

func (d *Daemon) sendFile(w http.ResponseWriter, r *http.Request, q fileQuery) error {
	name, info, err := d.readable(r, q)
	if err != nil {
		return err
	}
	coding, err := responseCoding(r)
	if err != nil {
		return failure(http.StatusNotAcceptable, "%w", err)
	}
	f, err := d.machine.Open(path.Clean(name))
	if err != nil {
		return fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	w.Header().Set("Vary", "Accept-Encoding")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": path.Base(name)}))
	if coding != gzipped {
		http.ServeContent(w, r, orEmpty(q.path), info.ModTime(), f)
		return nil
	}
	d.sendCompressed(w, name, f)
	return nil
}

// readable returns the path of a file that a request may have.
func (d *Daemon) readable(r *http.Request, q fileQuery) (string, fs.FileInfo, error) {
	if err := d.allow(r, q, "read"); err != nil {
		return "", nil, err
	}
	u, err := d.fileUser(q.username)
	if err != nil {
		return "", nil, err
	}
	name, err := d.resolve(orEmpty(q.path), u)
	if err != nil {
		return "", nil, failure(http.StatusBadRequest, "%w", err)
	}
	info, err := d.stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, failure(http.StatusNotFound, "path '%s' does not exist", name)
	case err != nil:
		return "", nil, fmt.Errorf("look at path: %w", err)
	case info.IsDir():
		return "", nil, failure(http.StatusBadRequest, "path '%s' is a directory", name)
	}
	return name, info, nil
}

// sendCompressed sends a file without saying how long it is. If reading fails,
// what was sent still looks complete: so it is with the daemon.
func (d *Daemon) sendCompressed(w http.ResponseWriter, name string, f File) {
	kind := mime.TypeByExtension(path.Ext(name))
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Encoding", gzipped)
	zw := gzip.NewWriter(w)
	_, err := io.Copy(zw, f)
	if err = errors.Join(err, zw.Close()); err != nil {
		d.log.Debug("send compressed file", "path", name, "error", err)
	}
}

// written describes a file that was uploaded.
type written struct {
	Metadata map[string]string `json:"metadata,omitempty"`
	Name     string            `json:"name"`
	Path     string            `json:"path"`
	Type     string            `json:"type"`
}

func (d *Daemon) written(name string) written {
	return written{Metadata: d.metadata(path.Clean(name)), Name: path.Base(name), Path: name, Type: "file"}
}

func (d *Daemon) upload(w http.ResponseWriter, r *http.Request) {
	q, err := parseFileQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	files, err := d.receive(r, q)
	if err != nil {
		answerError(w, err)
		return
	}
	// No content type is set, so the answer goes as text/plain.
	data, _ := json.Marshal(files)
	_, _ = w.Write(data)
}

// uploader writes the files of one request.
type uploader struct {
	daemon   *Daemon
	user     User
	path     *string
	length   int64 // of the request, -1 if unknown
	metadata map[string]string
}

func (d *Daemon) receive(r *http.Request, q fileQuery) ([]written, error) {
	if err := d.allow(r, q, "write"); err != nil {
		return nil, err
	}
	length := r.ContentLength
	body, err := decoded(r)
	if err != nil {
		return nil, failure(http.StatusBadRequest, "%w", err)
	}
	defer body.Close()
	r.Body = body
	u, err := d.fileUser(q.username)
	if err != nil {
		return nil, err
	}
	metadata, err := metadataOf(r.Header)
	if err != nil {
		return nil, failure(http.StatusBadRequest, "%w", err)
	}
	up := &uploader{daemon: d, user: u, path: q.path, length: length, metadata: metadata}
	header := r.Header.Get("Content-Type")
	kind, _, _ := mime.ParseMediaType(header)
	switch {
	case kind == "application/octet-stream":
		return up.raw(r.Body)
	case strings.HasPrefix(kind, "multipart/"):
		return up.parts(r)
	}
	return nil, failure(http.StatusBadRequest, "content type %q is neither multipart nor application/octet-stream", header)
}

// raw takes a body as one file.
func (up *uploader) raw(body io.Reader) ([]written, error) {
	if up.path == nil {
		return nil, failure(http.StatusBadRequest, "parameter path is missing")
	}
	name, err := up.daemon.resolve(*up.path, up.user)
	if err != nil {
		return nil, failure(http.StatusBadRequest, "%w", err)
	}
	if err := up.write(name, body); err != nil {
		return nil, err
	}
	return []written{up.daemon.written(name)}, nil
}

// parts takes every part that is named "file" as a file.
func (up *uploader) parts(r *http.Request) ([]written, error) {
	mr, err := r.MultipartReader()
	if err != nil {
		return nil, fmt.Errorf("read form: %w", err)
	}
	files := []written{}
	for {
		part, err := mr.NextPart()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read form: %w", err)
		}
		if part.FormName() != "file" {
			continue
		}
		name, err := up.target(part, files)
		if err != nil {
			return nil, failure(http.StatusBadRequest, "%w", err)
		}
		if err := up.write(name, part); err != nil {
			return nil, err
		}
		files = append(files, up.daemon.written(name))
	}
}

// target returns where a part goes: where the request says, else by its full
// file name, directories included.
func (up *uploader) target(part *multipart.Part, before []written) (string, error) {
	name := up.path
	if name == nil {
		_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil {
			return "", fmt.Errorf("part of form: %w", err)
		}
		filename, ok := params["filename"]
		if !ok {
			return "", errors.New("a part of the form has no file name")
		}
		name = &filename
	}
	abs, err := up.daemon.resolve(*name, up.user)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(before, func(f written) bool { return f.Path == abs }) {
		return "", fmt.Errorf("path '%s' is there twice, the first file was written", abs)
	}
	return abs, nil
}

// write writes a file in place: what was there is gone before the new content
// has arrived.
func (up *uploader) write(name string, content io.Reader) error {
	clean := path.Clean(name)
	if err := up.daemon.makeDirs(path.Dir(clean), up.user); err != nil {
		return fmt.Errorf("make directories: %w", err)
	}
	info, err := up.daemon.machine.Stat(clean)
	switch {
	case err == nil && info.IsDir():
		return failure(http.StatusBadRequest, "path is a directory: %s", name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look at path: %w", err)
	}
	f, err := up.daemon.machine.Create(clean, up.user)
	if err != nil {
		return full(fmt.Errorf("open file: %w", err))
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		if up.length > 0 {
			err = fmt.Errorf("request of %d bytes: %w", up.length, err)
		}
		return full(fmt.Errorf("write file: %w", err))
	}
	if err := up.daemon.setMetadata(clean, up.metadata); err != nil {
		return full(fmt.Errorf("write metadata: %w", err))
	}
	return nil
}

// full gives the error of a full disk its status.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return failure(http.StatusInsufficientStorage, "not enough space: %w", err)
	}
	return err
}
