package secrets

import (
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"encoding/base64"
	"encoding/hex"
	"encoding/json"
)

// Redacted stands in place of a secret value that was found in text.
const Redacted = "***"

// Redactor replaces the secret values it knows in text by [Redacted]. It is safe
// for concurrent use. A nil Redactor changes nothing.
type Redactor struct {
	mu    sync.Mutex // held by Add
	known atomic.Pointer[[]string]
}

// NewRedactor returns a Redactor that knows the values.
func NewRedactor(values ...string) *Redactor {
	r := new(Redactor)
	r.Add(values...)
	return r
}

// Add makes values known from now on.
func (r *Redactor) Add(values ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var known []string
	if p := r.known.Load(); p != nil {
		known = append(known, *p...)
	}
	for _, v := range values {
		if len(v) < 6 {
			continue
		}
		known = append(known, v, base64.StdEncoding.EncodeToString([]byte(v)), hex.EncodeToString([]byte(v)))
		b, _ := json.Marshal(v)
		known = append(known, string(b[1:len(b)-1]))
	}
	r.known.Store(&known)
}

// String returns s without secrets.
func (r *Redactor) String(s string) string {
	if r == nil {
		return s
	}
	for _, v := range *r.known.Load() {
		s = strings.ReplaceAll(s, v, Redacted)
	}
	return s
}

// Bytes returns b without secrets, b itself where nothing is found.
func (r *Redactor) Bytes(b []byte) []byte {
	if s := r.String(string(b)); s != string(b) {
		return []byte(s)
	}
	return b
}

// JSON redacts strings and keys of a JSON document.
func (r *Redactor) JSON(doc []byte, keep ...string) []byte { return r.Bytes(doc) }

// Writer returns a Writer that passes what is written to it on to w, without secrets.
func (r *Redactor) Writer(w io.Writer) *Writer { return &Writer{r: r, w: w} }

// Writer redacts a stream.
type Writer struct {
	r   *Redactor
	w   io.Writer
	buf []byte
}

// Write takes p in.
func (w *Writer) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// Flush passes on what is held.
func (w *Writer) Flush() error {
	_, err := w.w.Write(w.r.Bytes(w.buf))
	w.buf = nil
	return err
}

// Close is Flush.
func (w *Writer) Close() error { return w.Flush() }
