package e2b

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrChanged is matched by the error of a [Download] whose file was changed
// while the connection was lost, so that it cannot go on.
var ErrChanged = errors.New("file has changed while it was read")

// ErrTooLarge is matched by the error of a read that would exceed its limit.
var ErrTooLarge = errors.New("too large")

const (
	// maxReadFile bounds what ReadFile takes into memory.
	maxReadFile = 64 << 20
	// resumeTries is how often in a row a download is taken up again without
	// getting on.
	resumeTries = 4
	// cleanUpTime bounds the removal of what a failed upload has left.
	cleanUpTime        = 10 * time.Second
	hurriedCleanUpTime = 2 * time.Second
)

// UploadOption changes how [Sandbox.Upload] works.
type UploadOption func(*uploadOptions)

type uploadOptions struct{ gzip bool }

// WithGzip compresses a file on its way. It pays on links slower than some
// 20 MB/s.
func WithGzip() UploadOption { return func(o *uploadOptions) { o.gzip = true } }

// Upload writes a file of exactly size bytes, and makes the directories above
// it. The file appears whole or not at all, also when it replaces another; a
// reader that fails, or has fewer or more bytes, is an error and changes
// nothing. The file belongs to the sandbox's default user and is not
// executable; see [Command] for how to start it.
//
// ctx bounds the whole upload; one without a byte in 60 s fails. When r is an
// io.ReaderAt and io.Seeker, as files and bytes.Reader are, the upload begins
// again after the connection was cut. r may still be read from for a moment
// after Upload has failed.
func (s *Sandbox) Upload(ctx context.Context, name string, r io.Reader, size int64, opts ...UploadOption) error {
	op := fmt.Sprintf("upload %q", name)
	dir, base := path.Split(name)
	switch {
	case base == "" || base == "." || base == "..":
		return fmt.Errorf("%s: %w: it is not the name of a file", op, ErrInvalid)
	case size < 0:
		return fmt.Errorf("%s: %w: the size is %d", op, ErrInvalid, size)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	var options uploadOptions
	for _, set := range opts {
		set(&options)
	}
	parts, err := s.uploadPart(ctx, op, dir, r, size, options)
	if last := len(parts) - 1; err == nil {
		if err = s.place(ctx, op, parts[last], name, size); err == nil {
			parts = parts[:last]
		}
	}
	if !errors.Is(err, ErrSandboxGone) {
		var removing sync.WaitGroup
		for _, part := range parts {
			removing.Go(func() { s.removePart(ctx, part) })
		}
		removing.Wait()
	}
	return err
}

// WriteFile writes a small file, as [Sandbox.Upload].
func (s *Sandbox) WriteFile(ctx context.Context, name string, data []byte) error {
	return s.Upload(ctx, name, bytes.NewReader(data), int64(len(data)))
}

// ReadFile reads a small file, as [Sandbox.Download]. The error matches
// [ErrTooLarge] when it has more than 64 MiB.
func (s *Sandbox) ReadFile(ctx context.Context, name string) ([]byte, error) {
	d, err := s.Download(ctx, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if d.Size() > maxReadFile {
		return nil, fmt.Errorf("read %q: %w: it has %d bytes, and the limit is %d; use Download", name, ErrTooLarge, d.Size(), maxReadFile)
	}
	return io.ReadAll(d)
}

// uploadPart uploads to a temporary name, the last of those that it returns.
// Each try has another: what is left of one that was cut must not write over
// the next.
func (s *Sandbox) uploadPart(ctx context.Context, op, dir string, r io.Reader, size int64, opts uploadOptions) (parts []string, err error) {
	if err := s.placed(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	src := newSource(r, size)
	req := &request{
		op: op, method: http.MethodPost, url: s.base + "/files", header: s.fileHeader(),
		target: func(u *url.URL) {
			part := dir + "." + rand.Text() + ".part"
			parts = append(parts, part)
			u.RawQuery = pathQuery(part)
		},
		body: src.open, size: size, inside: true, once: !src.again, safe: true, idle: transferIdle,
	}
	req.header.Set("Content-Type", "application/octet-stream")
	if opts.gzip {
		req.header.Set("Content-Encoding", "gzip")
		req.body, req.size = func() (io.Reader, error) { return compressed(src) }, -1
	}
	resp, err := s.client.do(ctx, s.client.files, req)
	if readErr := src.check(err == nil); readErr != nil {
		err = fmt.Errorf("%s: %w", op, readErr)
	}
	if resp != nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxRefusalBytes)) // so that the connection can be used again
		_ = resp.Body.Close()
	}
	return parts, err
}

// place moves a part to its name, once it has the right size. When the answer
// is lost it looks where the file is.
func (s *Sandbox) place(ctx context.Context, op, part, name string, size int64) error {
	info, err := s.Stat(ctx, part)
	if err != nil {
		return err
	}
	if info.Size != size {
		return fmt.Errorf("%s: %d of %d bytes have arrived: %w", op, info.Size, size, io.ErrUnexpectedEOF)
	}
	for try := 0; ; try++ {
		err := s.Move(ctx, part, name)
		switch {
		case err == nil:
			return nil
		case try > 0 && errors.Is(err, fs.ErrNotExist): // the try before has done it
			info, err := s.Stat(ctx, name)
			if err == nil && info.Size != size {
				err = fmt.Errorf("%s: %w", op, ErrChanged)
			}
			return err
		case try >= s.client.cfg.Retries, !mayRepeat(err, true), !s.client.pause(ctx, op, try, err):
			return err
		}
	}
}

// removePart removes what a failed upload has left, also after its context has
// ended.
func (s *Sandbox) removePart(ctx context.Context, part string) {
	limit := cleanUpTime
	if ctx.Err() != nil { // the caller is in a hurry
		limit = hurriedCleanUpTime
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := s.Remove(ctx, part); err != nil {
		s.client.cfg.Logger.Warn("e2b: a failed upload has left a file", "sandbox", s.ID(), "path", part, "error", err)
	}
}

// source is what an upload reads, and checks its size.
type source struct {
	size  int64
	again bool // it can be read again
	first func() io.Reader

	mu   sync.Mutex
	last *exactReader
}

func newSource(r io.Reader, size int64) *source {
	at, ok := r.(io.ReaderAt)
	seeker, seeks := r.(io.Seeker)
	if ok && seeks {
		if begin, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			return &source{size: size, again: true, first: func() io.Reader { return io.NewSectionReader(at, begin, size+1) }}
		}
	}
	return &source{size: size, first: func() io.Reader { return r }}
}

func (s *source) open() (io.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = &exactReader{r: s.first(), left: s.size}
	return s.last, nil
}

// check returns what went wrong with the reader. It reads on where an upload
// that went well has not reached the end.
func (s *source) check(uploaded bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		if !uploaded { // the reader was not needed
			return nil
		}
		s.last = &exactReader{r: s.first(), left: s.size}
	}
	return s.last.check(uploaded)
}

// exactReader reads as many bytes as it should, or fails.
type exactReader struct {
	r    io.Reader
	mu   sync.Mutex
	left int64
	err  error // io.EOF when all was right
}

func (e *exactReader) Read(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil || len(b) == 0 {
		return 0, e.err
	}
	n, err := e.r.Read(b[:min(int64(len(b)), max(e.left, 1))])
	e.left -= int64(n)
	switch {
	case e.left < 0:
		n, e.err = 0, errors.New("the reader has more bytes than it should")
	case err == io.EOF && e.left > 0:
		e.err = fmt.Errorf("the reader has %d bytes less than it should: %w", e.left, io.ErrUnexpectedEOF)
	case err != nil:
		e.err = err
	}
	return n, e.err
}

func (e *exactReader) check(toEnd bool) error {
	if toEnd {
		_, _ = io.Copy(io.Discard, e) // Read keeps the error
	}
	if !e.mu.TryLock() {
		return nil // it is being read from, so it is not what has failed
	}
	defer e.mu.Unlock()
	if e.err == io.EOF {
		return nil
	}
	return e.err
}

// compressed reads what gzip makes of a source.
func compressed(src *source) (io.Reader, error) {
	in, err := src.open()
	if err != nil {
		return nil, err
	}
	return &gzipReader{in: in}, nil
}

// gzipReader compresses as it is read, so that no goroutine is needed.
type gzipReader struct {
	in  io.Reader
	out bytes.Buffer
	zip *gzip.Writer
	err error
}

func (g *gzipReader) Read(b []byte) (int, error) {
	if g.zip == nil {
		g.zip, _ = gzip.NewWriterLevel(&g.out, gzip.BestSpeed) // the level is valid
	}
	for g.out.Len() == 0 {
		if g.err != nil {
			return 0, g.err
		}
		g.fill()
	}
	return g.out.Read(b)
}

// fill compresses the next piece.
func (g *gzipReader) fill() {
	if _, g.err = io.CopyN(g.zip, g.in, 256<<10); g.err == io.EOF {
		if err := g.zip.Close(); err != nil {
			g.err = err
		}
	}
}

func (s *Sandbox) fileURL(name string) string {
	return s.base + "/files?" + pathQuery(name)
}

func pathQuery(name string) string { return url.Values{"path": {name}}.Encode() }

func (s *Sandbox) fileHeader() http.Header {
	h := http.Header{}
	s.authorize(h)
	h.Set("Accept-Encoding", "identity")
	return h
}

// Download is a file that is being read. After a cut it goes on from where it
// was.
type Download struct {
	sandbox *Sandbox
	ctx     context.Context
	cancel  context.CancelFunc
	op      string
	name    string

	mu     sync.Mutex // held while body is replaced or closed
	body   io.ReadCloser
	closed bool

	size    int64
	changed string // Last-Modified of the file
	offset  int64
	tries   int // without getting on
}

// Download opens a file for reading. ctx bounds the whole transfer; one without
// a byte in 60 s fails. The error matches [fs.ErrNotExist] when there is no
// such file.
func (s *Sandbox) Download(ctx context.Context, name string) (*Download, error) {
	d := &Download{sandbox: s, op: fmt.Sprintf("download %q", name), name: name}
	d.ctx, d.cancel = context.WithCancel(ctx)
	resp, err := s.get(d.ctx, d.op, name, "")
	if err != nil {
		d.cancel()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		d.cancel()
		return nil, fmt.Errorf("%s: %w", d.op, answerError("", resp))
	}
	if resp.ContentLength < 0 {
		d.cancel()
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s: the daemon does not say how large the file is", d.op)
	}
	d.body, d.size, d.changed = resp.Body, resp.ContentLength, resp.Header.Get("Last-Modified")
	return d, nil
}

func (s *Sandbox) get(ctx context.Context, op, name, part string) (*http.Response, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if err := s.placed(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	req := &request{
		op: op, method: http.MethodGet, url: s.fileURL(name), header: s.fileHeader(),
		inside: true, safe: true, idle: transferIdle,
	}
	if part != "" {
		req.ok = []int{http.StatusRequestedRangeNotSatisfiable}
		req.header.Set("Range", part)
	}
	resp, err := s.client.do(ctx, s.client.files, req)
	return resp, fileError(err)
}

// String names the download.
func (d *Download) String() string { return d.op + " from " + d.sandbox.String() }

// GoString is String: nothing secret must get into a log by %#v either.
func (d *Download) GoString() string { return d.String() }

// Size returns the size of the file in bytes.
func (d *Download) Size() int64 { return d.size }

// Read reads on. The error matches [ErrChanged] when the connection was cut
// and the file is not the same any more.
func (d *Download) Read(b []byte) (int, error) {
	for {
		n, err := d.body.Read(b)
		d.offset += int64(n)
		if d.offset > d.size {
			over := d.offset - d.size
			d.offset = d.size
			return n - int(over), fmt.Errorf("%s: the daemon sends more than the %d bytes that it announced", d.op, d.size)
		}
		if n > 0 {
			d.tries = 0
			return n, nil // the error comes again
		}
		switch {
		case err == nil:
			return 0, nil
		case d.offset == d.size:
			return 0, io.EOF
		case d.isClosed():
			return 0, fmt.Errorf("%s: %w", d.op, fs.ErrClosed)
		case d.ctx.Err() != nil:
			return 0, fmt.Errorf("%s: %w", d.op, context.Cause(d.ctx))
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err := d.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume takes up the download where it was cut.
func (d *Download) resume(cause error) error {
	cause = fmt.Errorf("%s: after %d of %d bytes: %w", d.op, d.offset, d.size, cause)
	switch {
	case d.tries >= resumeTries, d.tries > 0 && !d.sandbox.client.pause(d.ctx, d.op, d.tries, cause):
		return cause
	case d.tries == 0:
		traceRetry(d.ctx, Retry{Op: d.op, Attempt: 2, Reason: cause})
	}
	d.tries++
	resp, err := d.sandbox.get(d.ctx, d.op, d.name, fmt.Sprintf("bytes=%d-", d.offset))
	if errors.Is(err, io.EOF) { // which would look like the end of the file
		return fmt.Errorf("%w; then: %v", cause, err)
	}
	if err != nil {
		return err
	}
	rest := byteRange{d.offset, d.size - 1, d.size}
	got, ok := contentRange(resp.Header.Get("Content-Range"))
	if resp.StatusCode != http.StatusPartialContent || !ok || got != rest || resp.Header.Get("Last-Modified") != d.changed {
		_ = resp.Body.Close()
		return fmt.Errorf("%s: %w", d.op, ErrChanged)
	}
	if resp.ContentLength != rest.length() {
		_ = resp.Body.Close()
		return fmt.Errorf("%s: the daemon answers with %d bytes for %d", d.op, resp.ContentLength, rest.length())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = resp.Body.Close()
		return fmt.Errorf("%s: %w", d.op, fs.ErrClosed)
	}
	_ = d.body.Close()
	d.body = resp.Body
	return nil
}

// Close ends the transfer, and a Read that waits.
func (d *Download) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	defer d.cancel()
	return d.body.Close()
}

func (d *Download) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// ReadRange opens n bytes of a file from an offset on, or what there is of
// them, and returns the file's size. With n < 0 it opens all to the end. An
// offset at or behind the end gives no bytes, and no error. The caller closes
// the reader, and finds the end of a file that grows by asking again.
func (s *Sandbox) ReadRange(ctx context.Context, name string, offset, n int64) (r io.ReadCloser, size int64, err error) {
	op := fmt.Sprintf("read %q from byte %d on", name, offset)
	if offset < 0 || n == 0 {
		return nil, 0, fmt.Errorf("%s: %w: no range of %d bytes begins there", op, ErrInvalid, n)
	}
	asked, last := fmt.Sprintf("bytes=%d-", offset), int64(math.MaxInt64)
	if n > 0 {
		last = offset + min(n-1, math.MaxInt64-offset)
		asked += strconv.FormatInt(last, 10)
	}
	resp, err := s.get(ctx, op, name, asked)
	if err != nil {
		return nil, 0, err
	}
	got, ok := contentRange(resp.Header.Get("Content-Range"))
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && ok:
		_ = resp.Body.Close()
		return io.NopCloser(strings.NewReader("")), got.size, nil
	case resp.StatusCode == http.StatusOK && resp.ContentLength == 0: // an empty file has no ranges
		return resp.Body, 0, nil
	case resp.StatusCode == http.StatusPartialContent && ok && got.first == offset && got.last <= last && resp.ContentLength == got.length():
		return resp.Body, got.size, nil
	}
	_ = resp.Body.Close()
	return nil, 0, fmt.Errorf("%s: the daemon answers with another range: status %d", op, resp.StatusCode)
}

// byteRange is a part of a file: its first and last byte, and the size of the
// whole file.
type byteRange struct{ first, last, size int64 }

func (r byteRange) length() int64 { return r.last - r.first + 1 }

// contentRange reads "bytes 7-9/10" and, with first and last -1, "bytes */10".
func contentRange(s string) (r byteRange, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, total, cut := strings.Cut(s, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if !ok || !cut || err != nil || size < 0 {
		return byteRange{}, false
	}
	if span == "*" {
		return byteRange{-1, -1, size}, true
	}
	begin, end, cut := strings.Cut(span, "-")
	first, err := strconv.ParseInt(begin, 10, 64)
	last, endErr := strconv.ParseInt(end, 10, 64)
	if !cut || err != nil || endErr != nil || first < 0 || first > last || last >= size {
		return byteRange{}, false
	}
	return byteRange{first, last, size}, true
}
