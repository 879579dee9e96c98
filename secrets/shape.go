package secrets

import (
	"bytes"
	"strings"
)

// A shape is a secret that is known by its looks.
type shape struct {
	prefix string // what it starts with; of some, a part in the middle
	window int    // where in prefix the five bytes are that it is found by
	fold   bool   // in any case
	find   func(s *scan, at int, h *shape)
	class  class // of the characters it goes on with
	least  int   // so many of them at least
}

// A class is a set of characters.
type class uint8

const (
	tokenChars  class = iota // letters, digits, - and _
	jwtChars                 // and . =
	capitals                 // capital letters and digits
	headerChars              // what is printed, without blanks, quotes and separators
	classes
)

func (k class) has(c byte) bool {
	switch {
	case c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	case k == capitals:
		return false
	case c >= 'a' && c <= 'z', c == '-', c == '_':
		return true
	case k == tokenChars:
		return false
	case k == jwtChars:
		return c == '.' || c == '='
	}
	switch c {
	case '"', '\'', '`', '\\', ',', ';', '*', '&', '<', '>', '(', ')', '[', ']', '{', '}':
		return false
	}
	return c > ' ' && c < 0x7f
}

const (
	maxUser     = 128 // bytes of a user name in a URL or DSN
	maxPassword = 512
	maxDSN      = 256      // user name and password before @tcp(
	maxPEM      = 16 << 10 // bytes of a key block
)

// tokens are the prefixes of tokens, a line for each class and least length.
func tokens() [6]tokenKind {
	return [...]tokenKind{
		{jwtChars, 4, "eyJhbGciOi eyJ0eXAiOi eyJraWQiOi eyJlbmMiOi eyJ4NXQiOi eyJqa3UiOi eyJjdHkiOi eyJ6aXAiOi"},
		{capitals, 16, "AKIA ASIA"},
		{tokenChars, 20, "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- e2b_ sk-ant- sk-proj-"},
		{tokenChars, 10, "xoxb- xoxp- xoxa- xoxr- xoxs- xoxe-"},
		{tokenChars, 16, "sk_live_ sk_test_ rk_live_ rk_test_ shpat_ shpss_ shpca_ shppa_"},
		{tokenChars, 30, "AIza npm_"},
	}
}

type tokenKind struct {
	class    class
	least    int
	prefixes string
}

// pairs are the keys whose values are secret wherever they are written.
const pairs = "password passwd api_key apikey api-key access_token auth_token refresh_token client_secret secret_key access_key role_key"

func shapes() []shape {
	list := []shape{
		{prefix: "BEGIN ", find: (*scan).pem},
		{prefix: "://", find: (*scan).userinfo},
		{prefix: "@tcp(", find: (*scan).dsn},
		{prefix: "@unix(", find: (*scan).dsn},
		{prefix: "bearer ", find: (*scan).bearer, fold: true, least: 16},
		{prefix: "authorization", window: 1, find: (*scan).authorization, fold: true},
	}
	for _, t := range tokens() {
		for p := range strings.FieldsSeq(t.prefixes) {
			list = append(list, shape{prefix: p, find: (*scan).run, class: t.class, least: t.least})
		}
	}
	for key := range strings.FieldsSeq(pairs) {
		list = append(list, shape{prefix: key, window: 1, find: (*scan).pair, fold: true})
	}
	return list
}

// run is a prefix with characters of a class behind it.
func (s *scan) run(at int, h *shape) {
	if !has(s.b, at, h.prefix) {
		return
	}
	from := at + len(h.prefix)
	if end := s.runEnd(from, h.class); end-from >= h.least {
		s.addRun(at, at, end, h.class)
	}
}

// runEnd returns the end of the characters of a class at p.
func (s *scan) runEnd(p int, k class) int {
	last := &s.runs[k]
	if p >= last.from && p <= last.to {
		return last.to // not again: the runs of many shapes may overlap
	}
	end := p
	for end < len(s.b) && k.has(s.b[end]) {
		end++
	}
	*last = span{p, end}
	return end
}

// addRun is add for what goes on as long as the characters of a class do.
func (s *scan) addRun(start, from, end int, k class) {
	if s.add(start, from, end) && end == len(s.b) {
		s.open[k] = true
	}
}

// pem is the block of a private key. It ends with its last line, or before what
// is not part of such a block.
func (s *scan) pem(at int, h *shape) {
	const dashes = "-----"
	start := at - len(dashes)
	if start < 0 || !has(s.b, start, dashes) || !has(s.b, at, h.prefix) {
		return
	}
	head := s.b[at:min(len(s.b), at+48)]
	title, _, ok := bytes.Cut(head, []byte(dashes))
	if !ok || !bytes.Contains(title, []byte("PRIVATE KEY")) || start < s.pemEnd || start >= s.limit {
		return
	}
	end := at + len(title) + len(dashes)
	s.cover(start, end)
	s.inPEM(end, start+maxPEM)
}

// inPEM goes on within a key block, at p; it ends at most at the given limit.
func (s *scan) inPEM(p, limit int) {
	const last, line = "-----END", 80
	from := p
	for ; p < len(s.b) && p < limit; p++ {
		c := s.b[p]
		if c == '-' {
			if p+line > len(s.b) && !s.final {
				break
			}
			if has(s.b, p, last) {
				rest := s.b[p+len(last) : min(len(s.b), p+line)]
				p += len(last)
				if i := bytes.Index(rest, []byte("-----")); i >= 0 {
					p += i + 5
				}
				limit = p
				break
			}
			continue
		}
		if !jwtChars.has(c) && strings.IndexByte("+/ \t\r\n\\:,", c) < 0 {
			limit = p
			break
		}
	}
	s.cover(from, p)
	s.pemEnd, s.pemLimit = p, limit
}

// secretless reports whether what stands in the place of a password tells nothing.
func secretless(p []byte) bool {
	if len(p) == 0 || bytes.Contains(p, []byte(Redacted)) {
		return true
	}
	switch string(p) {
	case "%s", "None", "null", "nil", "true", "false", "True", "False":
		return true
	}
	p = bytes.TrimPrefix(p, []byte("$"))
	if len(p) < 3 || p[0] != '{' || p[len(p)-1] != '}' {
		return false
	}
	for _, c := range p[1 : len(p)-1] {
		if !plain(c) {
			return false
		}
	}
	return true
}

// apart reports whether c ends a URL or DSN in text.
func apart(c byte) bool {
	return c <= ' ' || c == '"' || c == '\'' || c == '`' || c == '<' || c == '>'
}

// schemeChar reports whether a URL's scheme may end with c.
func schemeChar(c byte) bool { return tokenChars.has(c) && c != '-' && c != '_' }

// userChar reports whether a user name in a URL may start with c. An asterisk
// would be what was redacted.
func userChar(c byte) bool {
	return c < 0x7f && !apart(c) && c != '/' && c != '@' && c != '?' && c != '#' && c != '*'
}

// userinfo is the password in scheme://user:password@host.
func (s *scan) userinfo(at int, h *shape) {
	user := at + len(h.prefix)
	if !has(s.b, at, h.prefix) || at == 0 || user == len(s.b) || !schemeChar(s.b[at-1]) || !userChar(s.b[user]) {
		return
	}
	p := user
	for ; ; p++ {
		if p == len(s.b) || p-user > maxUser || apart(s.b[p]) || s.b[p] < 0x7f && !userChar(s.b[p]) {
			return
		}
		if s.b[p] == ':' {
			break
		}
	}
	from, end := p+1, 0
	for p++; p < len(s.b) && p-from <= maxPassword && !apart(s.b[p]) && s.b[p] != '/'; p++ {
		if s.b[p] == '@' {
			end = p
		}
	}
	if end > 0 && !secretless(s.b[from:end]) {
		s.add(at-1, from, end)
	}
}

// dsn is the password in user:password@tcp(host), as MySQL drivers of Go write it.
func (s *scan) dsn(at int, h *shape) {
	if !has(s.b, at, h.prefix) {
		return
	}
	start := at
	for at-start < maxDSN {
		if start == 0 {
			if s.cut && !apart(s.before) {
				return // it starts before b, and was looked at there
			}
			break
		}
		if apart(s.b[start-1]) {
			break
		}
		start--
	}
	from := start
	if i := bytes.LastIndex(s.b[from:at], []byte(Redacted)); i >= 0 {
		from += i + len(Redacted) // what is before it was looked at when it was made
	}
	if i := bytes.Index(s.b[from:at], []byte("://")); i >= 0 {
		from += i + 3
	}
	i := bytes.IndexByte(s.b[from:at], ':')
	if from += i + 1; i >= 0 && !secretless(s.b[from:at]) {
		s.add(start, from, at)
	}
}

// bearer is a token behind "Bearer": long, and with a digit, unlike a word.
func (s *scan) bearer(at int, h *shape) {
	if !s.fold(at, h.prefix) {
		return
	}
	from := at + len(h.prefix)
	end := s.runEnd(from, headerChars)
	if end-from >= h.least && hasDigit(s.b[from:from+h.least]) {
		s.addRun(at, from, end, headerChars)
	}
}

func hasDigit(b []byte) bool {
	for _, c := range b {
		if c >= '0' && c <= '9' {
			return true
		}
	}
	return false
}

func (s *scan) fold(at int, lower string) bool {
	if at < 0 || len(s.b)-at < len(lower) {
		return false
	}
	for i := range len(lower) {
		c := s.b[at+i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

const (
	maxBlanks = 8  // between a key and its value
	maxScheme = 64 // bytes of a word that may be the scheme of an Authorization header
)

// quote passes over a quotation mark, also an escaped one.
func (s *scan) quote(p int) int {
	q := p
	for q < len(s.b) && s.b[q] == '\\' && q-p < backslashes {
		q++
	}
	if q < len(s.b) && (s.b[q] == '"' || s.b[q] == '\'') {
		return q + 1
	}
	return p
}

func (s *scan) blanks(p int) int {
	for from := p; p < len(s.b) && s.b[p] == ' ' && p-from < maxBlanks; {
		p++
	}
	return p
}

// value finds the value to a key that ends at p, 0 if there is none. A colon is
// enough behind quoted keys and where it may be a header.
func (s *scan) value(p int, header bool) int {
	q := s.quote(p)
	sep := s.blanks(q)
	if sep == len(s.b) || s.b[sep] != '=' && (s.b[sep] != ':' || q == p && !header) {
		return 0
	}
	return s.quote(s.blanks(sep + 1))
}

// pair is the value in password=value, "password": "value", X-API-Key: value.
func (s *scan) pair(at int, h *shape) {
	if !s.fold(at, h.prefix) {
		return
	}
	from := s.value(at+len(h.prefix), h.prefix == "api-key")
	if from == 0 || has(s.b, from, "${") || has(s.b, from, "$*") { // a placeholder
		return
	}
	end := s.runEnd(from, headerChars)
	if end > from && !(end-from < 8 && secretless(s.b[from:end])) {
		s.addRun(at, from, end, headerChars)
	}
}

// authorization is the value of an Authorization header, without its scheme.
func (s *scan) authorization(at int, h *shape) {
	if !s.fold(at, h.prefix) {
		return
	}
	from := s.value(at+len(h.prefix), true)
	if from == 0 {
		return
	}
	end := s.runEnd(from, headerChars)
	next := s.blanks(end)
	last := s.runEnd(next, headerChars)
	switch known := end-from <= len("negotiate") && scheme(string(s.b[from:end])); {
	case known && (next > end || has(s.b, end, "*")):
		from, end = next, last
	case next > end && last > next && end-from <= maxScheme:
		end = last
	}
	if end > from {
		s.addRun(at, from, end, headerChars)
	}
}

// scheme reports whether a word is how the value of an Authorization header starts.
func scheme(word string) bool {
	switch strings.ToLower(word) {
	case "basic", "bearer", "digest", "token", "apikey", "negotiate":
		return true
	}
	return false
}
