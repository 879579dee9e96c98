package secrets

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Redacted stands in place of a secret that was found in text.
const Redacted = "***"

// A Redactor replaces the secrets that it finds in text by [Redacted]; hits that
// touch or overlap become one. What it has redacted it leaves as it is.
//
// It finds
//
//   - the values it was given, as they are, in hexadecimal, in base64 (any
//     alignment, both alphabets), each of them also with characters escaped as
//     encoders of URLs, JSON, Go, Python, C, shells, CSV and HTML do, also twice;
//   - parts of them that are secrets, too: every longer line, passwords in URLs
//     and DSNs, what follows "Bearer ", secret members of a JSON object; of a value
//     of more than 48 bytes every piece;
//   - what looks like a secret: JSON web tokens, keys of well-known services (AWS,
//     GitHub, GitLab, Slack, Stripe, Google, npm, Shopify, E2B, ...), blocks of private
//     keys, the value of an Authorization header, and the password in
//     scheme://user:password@host and user:password@tcp(host);
//   - what is behind a name that ends with password, passwd, api_key, access_token,
//     auth_token, refresh_token, client_secret, secret_key, access_key or role_key
//     and "=" or, where the name is in quotes, ":". Names such as token or pwd stand
//     in ordinary text too often.
//
// Short values could be anywhere: those of less than six bytes are found as whole
// words only, as they are, and those of less than three, or less than six digits,
// never. Nor are words such as true, null, root or localhost, and values of
// which no three characters in a row are other than an asterisk.
//
// A value that is broken in two is not found: by a line break that an encoder puts
// into base64, by [Writer.Flush], or by markup.
//
// It takes about 150 KiB for a hundred secrets of usual length. All methods are
// safe for concurrent use. A nil Redactor changes nothing.
type Redactor struct {
	adding sync.Mutex
	known  atomic.Pointer[table] // readers take what there is
}

// NewRedactor returns a Redactor that knows the values.
func NewRedactor(values ...string) *Redactor {
	r := new(Redactor)
	r.known.Store(build(nil))
	r.Add(values...)
	return r
}

// Add makes more values known, for good. Writers use them from their next Write
// on.
func (r *Redactor) Add(values ...string) {
	if r == nil {
		return
	}
	r.adding.Lock()
	defer r.adding.Unlock()
	l := learner{values: make(map[string]bool)}
	old := r.known.Load()
	if old != nil {
		maps.Copy(l.values, old.values)
	}
	before := len(l.values)
	for _, v := range values {
		l.learn(v)
	}
	if old == nil || len(l.values) > before {
		r.known.Store(build(l.values))
	}
}

func (r *Redactor) table() *table {
	if r == nil {
		return nil
	}
	return r.known.Load()
}

// String returns s without secrets.
func (r *Redactor) String(s string) string {
	if t := r.table(); t != nil {
		// Bytes of a string, to be read only.
		if b := t.redact(unsafe.Slice(unsafe.StringData(s), len(s))); b != nil {
			return string(b)
		}
	}
	return s
}

// Bytes returns b without secrets: b itself where nothing is found, else a new
// slice.
func (r *Redactor) Bytes(b []byte) []byte {
	if t := r.table(); t != nil {
		if out := t.redact(b); out != nil {
			return out
		}
	}
	return b
}

// redact returns b without secrets, nil if there are none.
func (t *table) redact(b []byte) []byte {
	if t.silent(b) {
		return nil
	}
	s := t.scan(b)
	if len(s.spans) == 0 {
		return nil
	}
	return s.redact(make([]byte, 0, len(b)), len(b))
}

// silent reports whether there is nothing in b to look at, as in most texts:
// which is found out without a scan.
func (t *table) silent(b []byte) bool { return t.wordSet == nil && t.pass(b, 0) < 0 }

// scan finds the hits in a whole text.
func (t *table) scan(b []byte) *scan {
	s := &scan{t: t, b: b, limit: len(b) + wordLen + 1, final: true}
	s.all()
	return s
}

// Writer returns a Writer that passes on to w what is written to it, without
// secrets.
func (r *Redactor) Writer(w io.Writer) *Writer { return &Writer{r: r, w: w} }

const (
	held    = reach + 2*wordLen // bytes that a hit may still hide
	batch   = 4 << 10           // bytes that are looked at together, at least
	largest = 64 << 10          // and at most
)

// A Writer redacts a stream: its output is that of [Redactor.Bytes] for all of
// it, however it is cut into writes. It holds back less than 4 KiB, until
// Flush. It is for one goroutine at a time.
type Writer struct {
	r     *Redactor
	w     io.Writer
	buf   []byte // not passed on
	out   []byte
	state state
	err   error
}

// Write takes p. Its error is that of the writer below, also of an earlier call.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err == nil && w.r.table() == nil && len(w.buf) == 0 {
		n, err := w.w.Write(p)
		w.err = err
		return n, err
	}
	n := 0
	for n < len(p) && w.err == nil {
		k := min(len(p)-n, largest-len(w.buf))
		w.buf = append(w.buf, p[n:n+k]...)
		n += k
		if len(w.buf) >= batch {
			w.pass(false)
		}
	}
	return n, w.err
}

// Flush passes on what is held, as if nothing followed: a secret of which a part
// is still to come is not found. Call it at ends of lines. Tokens and key blocks
// that were found already still end where they end.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		w.pass(true)
	}
	return w.err
}

// Close flushes. It does not close the writer below; further writes fail.
func (w *Writer) Close() error {
	err := w.Flush()
	if w.err == nil {
		w.err = errors.New("secrets: write after Close")
	}
	return err
}

func (w *Writer) pass(final bool) {
	t := w.r.table()
	if t == nil {
		t = new(table)
	}
	s := scan{t: t, b: w.buf, limit: len(w.buf) + wordLen + 1, final: final, state: w.state}
	n := len(w.buf)
	if !final {
		n -= held
		s.limit = len(w.buf) - reach
	}
	if t.filter != nil {
		s.all()
	}
	w.out = s.redact(w.out[:0], n)
	w.state = s.next(n)
	w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	_, w.err = w.w.Write(w.out)
	if final && cap(w.buf) > 2*batch {
		w.buf, w.out = nil, nil
	}
}

// A learner collects what a value makes known.
type learner struct {
	values map[string]bool // true: also where it is part of a word
	looks  *table          // knows no values
}

// learn makes v known, and the secrets in it.
func (l *learner) learn(v string) {
	l.value(v)
	trimmed := strings.TrimSpace(v)
	l.value(trimmed)
	if strings.Contains(trimmed, "\n") {
		for line := range strings.Lines(trimmed) {
			if line = strings.TrimSpace(line); len(line) >= longLine && !strings.HasPrefix(line, "-----") {
				l.value(line)
			}
		}
	}
	if word, rest, ok := strings.Cut(trimmed, " "); ok && scheme(word) {
		l.value(strings.TrimSpace(rest))
	}
	if strings.HasPrefix(trimmed, "{") {
		var object map[string]any
		if json.Unmarshal([]byte(trimmed), &object) == nil {
			l.members(object)
		}
	}
	if l.looks == nil {
		l.looks = build(nil)
	}
	for _, a := range l.looks.scan([]byte(v)).spans {
		l.value(v[a.from:a.to])
		l.value(unescape(v[a.from:a.to]))
	}
}

const longLine = 16 // bytes of a line that is a secret by itself

// members learns the secret members of a JSON object.
func (l *learner) members(object map[string]any) {
	for key, v := range object {
		switch v := v.(type) {
		case string:
			if Sensitive(key) {
				l.learn(v)
			}
		case map[string]any:
			l.members(v)
		}
	}
}

// unescape resolves %XX.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if v, ok := hexValue([]byte(s), i+1, 2); ok && s[i] == '%' {
			b = append(b, byte(v))
			i += 2
		} else {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// value makes v known, unless it tells nothing.
func (l *learner) value(v string) {
	if len(v) < shortest || len(v) < wordLen && strings.Trim(v, "0123456789") == "" || common(v) || harmless(v) || v == Redacted {
		return
	}
	core := lasting(v)
	if len(core) < shortest {
		return
	}
	if core != v {
		if len(v) < wordLen {
			return
		}
		l.values[core] = true
	}
	if !l.values[v] {
		l.values[v] = false
	}
}

// lasting returns the longest part of v that [Redacted], in the place of
// something else, cannot become a part of. As long as that is not in the output,
// v is not there either.
func lasting(v string) string {
	best := ""
	for part := range strings.SplitSeq(v, Redacted) {
		if part = strings.Trim(part, "*"); len(part) > len(best) {
			best = part
		}
	}
	return best
}

// common reports whether a word is too common to be hidden wherever it stands.
func common(v string) bool {
	switch strings.ToLower(v) {
	case "true", "false", "null", "none", "nil", "undefined", "yes", "off", "root", "admin", "user", "guest", "test", "local",
		"localhost", "default", "public", "postgres", "mysql", "main", "dev", "prod", "string":
		return true
	}
	return false
}
