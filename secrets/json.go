package secrets

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// JSON redacts the strings and keys of a JSON document; it stays one, with its
// order, its white space and its numbers. A number becomes a string if all of it
// is a known value of at least six digits. Top-level members that are named in
// keep stay as they are. The result is doc itself where nothing is found. What is
// not JSON is redacted like Bytes does.
func (r *Redactor) JSON(doc []byte, keep ...string) []byte {
	t := r.table()
	if t == nil {
		return doc
	}
	// A letter may be written as \u0041: what has escapes has to be decoded.
	escapes := bytes.IndexByte(doc, '\\') >= 0
	if !escapes && t.silent(doc) {
		return doc
	}
	hits := t.scan(doc).spans
	if len(hits) == 0 && !escapes {
		return doc
	}
	if !json.Valid(doc) {
		return r.Bytes(doc)
	}
	j := jsonRedactor{t: t, doc: doc, numbers: len(hits) > 0, keep: slices.Clone(keep)} // so that callers need not allocate theirs
	j.run()
	if j.out == nil {
		return doc
	}
	return append(j.out, doc[j.done:]...)
}

type jsonRedactor struct {
	t       *table
	doc     []byte
	out     []byte // nil: nothing was found
	done    int    // bytes of doc that are in out
	numbers bool   // there may be numbers to redact
	keep    []string
}

// run goes through a valid document.
func (j *jsonRedactor) run() {
	depth, kept := 0, false
	for i := 0; i < len(j.doc); i++ {
		switch c := j.doc[i]; c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 1 {
				kept = false
			}
		case '"':
			end := stringEnd(j.doc, i)
			if !kept && depth == 1 && len(j.keep) > 0 && j.doc[0+skipBlanks(j.doc, 0)] == '{' && isKey(j.doc, end) {
				kept = slices.Contains(j.keep, unquote(j.doc[i:end]))
			}
			if !kept {
				j.text(i, end)
			}
			i = end - 1
		default:
			if c != '-' && (c < '0' || c > '9') {
				break
			}
			end := i + 1
			for end < len(j.doc) && strings.IndexByte("0123456789+-.eE", j.doc[end]) >= 0 {
				end++
			}
			if _, known := j.t.values[string(j.doc[i:end])]; known && j.numbers && !kept && end-i >= wordLen {
				j.replace(i, end, Redacted)
			}
			i = end - 1
		}
	}
}

// text redacts the string doc[i:end].
func (j *jsonRedactor) text(i, end int) {
	if raw := j.doc[i+1 : end-1]; bytes.IndexByte(raw, '\\') < 0 {
		if b := j.t.redact(raw); b != nil {
			j.replace(i, end, string(b))
		}
		return
	}
	if b := j.t.redact([]byte(unquote(j.doc[i:end]))); b != nil {
		j.replace(i, end, string(b))
	}
}

func (j *jsonRedactor) replace(i, end int, s string) {
	j.out = append(j.out, j.doc[j.done:i]...)
	j.done = end
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(s) != nil { // strings always can be
		b.Reset()
		b.WriteString(`"` + Redacted + `"`)
	}
	j.out = append(j.out, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

// stringEnd returns the end of the string that starts at doc[i].
func stringEnd(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(doc)
}

func skipBlanks(doc []byte, i int) int {
	for i < len(doc) && strings.IndexByte(" \t\r\n", doc[i]) >= 0 {
		i++
	}
	return i
}

// isKey reports whether a colon follows.
func isKey(doc []byte, i int) bool {
	i = skipBlanks(doc, i)
	return i < len(doc) && doc[i] == ':'
}

func unquote(literal []byte) string {
	var s string
	_ = json.Unmarshal(literal, &s) // it was found valid
	return s
}
