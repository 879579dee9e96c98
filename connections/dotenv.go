package connections

import (
	"bytes"
	"strings"
)

// parseEnv reads a .env file: NAME=value lines, with an optional "export "
// before them and # comments. Values may be in quotes, also over several
// lines: in '...' \' and \\ are escapes, in "..." the usual ones are. Outside of
// quotes a value ends before " #", and white space around it goes. In values
// that are not in '...', ${NAME} and ${NAME:-default} stand for other variables.
// A NAME alone sets nothing.
func parseEnv(data []byte, lookup func(string) (string, bool), set func(name, value string)) error {
	p := envParser{rest: string(bytes.TrimPrefix(data, []byte("\ufeff"))), line: 1}
	own := make(map[string]string)
	find := func(name string) string {
		// Earlier lines of this file do not count where the variable is set.
		if v, ok := lookup(name); ok {
			return v
		}
		return own[name]
	}
	for p.rest != "" {
		line := p.line
		name, value, ok, err := p.entry(find)
		if err != "" {
			return &FileError{Line: line, Reason: err}
		}
		if ok {
			own[name] = value
		}
	}
	for name, value := range own {
		set(name, value)
	}
	return nil
}

type envParser struct {
	rest string
	line int
}

// take cuts n bytes off.
func (p *envParser) take(n int) string {
	s := p.rest[:n]
	p.rest = p.rest[n:]
	p.line += strings.Count(s, "\n")
	return s
}

// toEnd takes the rest of the line, with its end.
func (p *envParser) toEnd() string {
	n := strings.IndexByte(p.rest, '\n')
	if n < 0 {
		return p.take(len(p.rest))
	}
	return p.take(n + 1)
}

func (p *envParser) blanks() {
	p.take(len(p.rest) - len(strings.TrimLeft(p.rest, " \t\r")))
}

// entry reads a line, or several when a value in quotes has them. Err is why it
// cannot.
func (p *envParser) entry(find func(string) string) (name, value string, ok bool, err string) {
	p.blanks()
	n := strings.IndexAny(p.rest, "=#\n")
	if n < 0 || p.rest[n] != '=' { // empty, a comment, or a name alone
		p.toEnd()
		return "", "", false, ""
	}
	name = strings.TrimSpace(p.take(n))
	p.take(1)
	if after, exported := strings.CutPrefix(name, "export"); exported && strings.TrimLeft(after, " \t") != after {
		name = strings.TrimLeft(after, " \t")
	}
	if unquoted, quoted := strings.CutPrefix(name, "'"); quoted && strings.HasSuffix(unquoted, "'") {
		name = strings.TrimSuffix(unquoted, "'")
	}
	if name == "" || strings.ContainsAny(name, " \t'\"") {
		return "", "", false, "it does not begin with NAME="
	}
	value = strings.TrimLeft(p.rest, " \t\r")
	if value == "" || value[0] != '\'' && value[0] != '"' {
		value = p.toEnd()
		for i := 1; i < len(value); i++ {
			if value[i] == '#' && (value[i-1] == ' ' || value[i-1] == '\t') {
				value = value[:i]
				break
			}
		}
		return name, expand(strings.TrimSpace(value), find), true, ""
	}
	p.blanks()
	quote := p.take(1)[0]
	end := closing(p.rest, quote)
	if end < 0 {
		return "", "", false, "its value has no closing quote"
	}
	value = p.take(end)
	p.take(1)
	if after := strings.TrimSpace(p.toEnd()); after != "" && after[0] != '#' {
		return "", "", false, "there is more behind the closing quote"
	}
	value = unescape(value, quote)
	if quote == '"' {
		value = expand(value, find)
	}
	return name, value, true, ""
}

// closing is where the quote is closed, -1 if it is not.
func closing(s string, quote byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case quote:
			return i
		}
	}
	return -1
}

func unescape(s string, quote byte) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		c := s[i]
		switch {
		case c == '\\' || c == quote:
		case quote == '\'':
			b.WriteByte('\\')
		default:
			j := strings.IndexByte("abfnrtv", c)
			if j < 0 {
				b.WriteByte('\\')
				break
			}
			c = "\a\b\f\n\r\t\v"[j]
		}
		b.WriteByte(c)
	}
	return b.String()
}

// expand fills in ${NAME} and ${NAME:-default}; what is not set is empty.
func expand(s string, find func(string) string) string {
	var b strings.Builder
	for {
		before, name, after := cutPlaceholder(s)
		b.WriteString(before)
		if name == "" {
			return b.String()
		}
		name, other, _ := strings.Cut(name, ":-")
		value := find(name)
		if value == "" {
			value = other
		}
		b.WriteString(value)
		s = after
	}
}
