package python

import (
	"strings"
)

// entry is an entry of a netrc.
type entry struct{ host, username, password string }

// netrc writes a netrc that Python and uv read alike.
//
// There are two grammars. Python 3.11 and later, and uv, which follows it, know
// quotes and escapes: "a\"b" is a"b. Before, Python split at white space and took
// everything else as it is; there is no way for an empty password or a space. Most
// entries are the same in both. For the others the file has two versions, each
// hidden from whom it is not for:
//
//   - The name of a macro may have quotes around it. The newer grammar reads the
//     two lines below as a macro whose name ends with a new line, and which is
//     empty. In the older one the name is "quoted, and the macro goes on until the
//     next empty line.
//
//     macdef "quoted
//     "
//
//   - In the newer grammar a # at the beginning of a word that begins a line starts
//     a comment; in the older one it does so only if it stands alone.
//
//     #unquoted machine ...
//
// Source: netrc.py of CPython 3.8 to 3.13, crates/uv-netrc of uv.
func netrc(entries []entry) []byte {
	var plain, quoted, unquoted strings.Builder
	for _, e := range entries {
		if same(e.username) && same(e.password) && e.password != "" {
			e.write(&plain, "", func(s string) string { return s })
			continue
		}
		e.write(&quoted, "", quote)
		if e.password != "" && !strings.Contains(e.username+e.password, " ") {
			e.write(&unquoted, "#unquoted ", func(s string) string { return s })
		}
	}
	if quoted.Len() > 0 {
		plain.WriteString("macdef \"quoted\n\"\n" + quoted.String() + "\n")
	}
	if unquoted.Len() > 0 {
		// A comment counts only if the last word before it has ended with its
		// line, and not with a quote: that is this # here, a comment of its own.
		plain.WriteString("#\n" + unquoted.String())
	}
	return []byte(plain.String())
}

// same reports whether a value means the same in both grammars.
func same(s string) bool {
	return !strings.ContainsAny(s, ` \`) && !strings.HasPrefix(s, `"`)
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// write writes the entry. An empty user name is left out: that is how the older
// grammar has it.
func (e entry) write(b *strings.Builder, prefix string, value func(string) string) {
	b.WriteString(prefix + "machine " + e.host)
	if e.username != "" {
		b.WriteString(" login " + value(e.username))
	}
	b.WriteString(" password " + value(e.password) + "\n")
}
