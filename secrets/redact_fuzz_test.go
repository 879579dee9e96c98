package secrets_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/osiris-pipelines/remote/secrets"
)

// encodings are the ways a secret may be written, each as encoders do.
func encodings(s string) map[string]string {
	m := map[string]string{
		"raw":           s,
		"hex":           hex.EncodeToString([]byte(s)),
		"HEX":           strings.ToUpper(hex.EncodeToString([]byte(s))),
		"query":         url.QueryEscape(s),
		"path":          url.PathEscape(s),
		"query, lower":  lowerPercent(url.QueryEscape(s)),
		"path, lower":   lowerPercent(url.PathEscape(s)),
		"query, twice":  url.QueryEscape(url.QueryEscape(s)),
		"userinfo":      url.UserPassword("u", s).String()[2:],
		"all percent":   everyPercent(s),
		"shell":         strings.ReplaceAll(s, "'", `'\''`),
		"python shell":  strings.ReplaceAll(s, "'", `'"'"'`),
		"csv":           strings.ReplaceAll(s, `"`, `""`),
		"sql":           strings.ReplaceAll(s, `'`, `''`),
		"html":          strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(s),
		"html, python":  strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;").Replace(s),
		"bash %q":       backslashPunctuation(s),
		"base64 in URL": url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))),
	}
	if utf8.ValidString(s) {
		b, _ := json.Marshal(s)
		m["json"] = string(b[1 : len(b)-1])
		b, _ = json.Marshal(string(b))
		m["json, twice"] = string(b[3 : len(b)-3])
		var plain bytes.Buffer
		enc := json.NewEncoder(&plain)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s)
		m["json, no html"] = string(plain.Bytes()[1 : plain.Len()-2])
		m["python json"] = pythonJSON(s)
		m["go"] = strconv.Quote(s)[1 : len(strconv.Quote(s))-1]
		m["go, ascii"] = strconv.QuoteToASCII(s)[1 : len(strconv.QuoteToASCII(s))-1]
	}
	for lead := range 3 {
		for _, tail := range []string{"", "z", "zz"} {
			for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding, "raw std": base64.RawStdEncoding, "raw url": base64.RawURLEncoding} {
				m[fmt.Sprintf("base64 %s %d %d", name, lead, len(tail))] = enc.EncodeToString([]byte("xy"[:lead] + s + tail))
			}
		}
	}
	return m
}

func everyPercent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("_-.", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func lowerPercent(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:], bytes.ToLower(b[i:i+3]))
		}
	}
	return string(b)
}

func backslashPunctuation(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c < 0x7f && !(c|0x20 >= 'a' && c|0x20 <= 'z') && !(c >= '0' && c <= '9') && strings.IndexByte("_-./:,@%+=", c) < 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func pythonJSON(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r >= ' ' && r < 0x7f:
			b.WriteRune(r)
		default:
			for _, u := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, u)
			}
		}
	}
	return b.String()
}

// core is what of base64 depends on the secret alone, for what starts behind lead bytes.
func core(enc string, lead, n int) string {
	return enc[[]int{0, 2, 3}[lead] : (lead+n)*8/6]
}

// usable reports whether a fuzzed secret is one that is promised to be found.
func usable(secret string) bool {
	if len(secret) < 6 || len(secret) > 200 || strings.TrimSpace(secret) != secret {
		return false
	}
	plain := secrets.NewRedactor(secret)
	return plain.String("\x01"+secret+"\x01") == "\x01***\x01" // not a common word, say
}

var shapesOfTokens = []string{
	"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijkl", "AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
	"postgresql://u:p4ss@h/db", "root:p4ss@tcp(h:3306)/db", "Authorization: Bearer abc.def", "password=p4ss", `"password": "p4ss"`,
	"-----BEGIN PRIVATE KEY-----\nMIIE\nabcd\n-----END PRIVATE KEY-----\n", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n", "bearer abcdefghij0123456789",
	"X-API-Key: k1", "xoxb-0123456789-abcdef", "://", "://u:", "@tcp(", "@", ":", "-----", "-----END", "BEGIN ", "eyJhbGciOi", "AKIA", "***", "*", "password=", "Authorization: ",
}

// mixture makes a text of some KiB out of what may matter.
func mixture(rnd *rand.Rand, text string, known []string) string {
	var b strings.Builder
	parts := append([]string{text, " ", "\n", "x", "0", "\\", "%", "'"}, shapesOfTokens...)
	for _, s := range known {
		all := encodings(s)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			parts = append(parts, all[name])
		}
		parts = append(parts, s, s[:len(s)-1], s[1:])
	}
	for size := rnd.IntN(20000); b.Len() < size; {
		switch rnd.IntN(8) {
		case 0:
			b.WriteString(strings.Repeat("filler text ", rnd.IntN(300)))
		case 1:
			b.WriteString(strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(1500)))
		default:
			for range rnd.IntN(5) {
				b.WriteString(parts[rnd.IntN(len(parts))])
			}
		}
	}
	return b.String()
}

// Any chunking of any text gives the same, and it is stable.
func FuzzChunks(f *testing.F) {
	f.Add("some text", "hunter22", "abc", uint64(1))
	f.Add("***", "a***bcd", "***", uint64(2))
	f.Add("\\\\", `\"\"\\n`, "\\u", uint64(3))
	f.Add("word", "päss wörd", "a*b", uint64(4))
	// What was found: a scheme without a value, a value with an edge of its own, the
	// second word of a long header, backslashes at a cut, a colon in front of a DSN.
	f.Add("word", "päss wörd", "a*\x10", uint64(4))
	f.Add("0om7XtZxB", "7A021", "Z0 ", uint64(1))
	f.Add("J", "\xd1h\xc3f\xb8\xd9JC", "a\xfd\xfd\xfd\xfd\xfd\xfd\xfdbc", uint64(116))
	f.Add(`\\`, `\0\"\\n`, "\x11\x11\x11\x11\x11DDDDD-DD\\u", uint64(20))
	f.Add("0", "*!!!!!!!!!!!!!!!!:", "***", uint64(20))
	f.Add("2", "päs w", "*aO", uint64(45))
	f.Fuzz(func(t *testing.T, text, secret, second string, seed uint64) {
		if len(secret) > 300 || len(second) > 300 || len(secret) == 0 || len(second) == 0 || len(text) > 10000 {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := secrets.NewRedactor(secret, second)
		all := mixture(rnd, text, []string{secret, second})
		want := r.String(all)
		if again := r.String(want); again != want {
			t.Errorf("redacted again, %q\nbecomes %q", cut(want, again), cut(again, want))
		}
		var out bytes.Buffer
		w := r.Writer(&out)
		for rest := all; rest != ""; {
			n := 1 + rnd.IntN([]int{1, 10, 3000, 9000}[rnd.IntN(4)])
			n = min(n, len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != want {
			t.Errorf("in pieces: %q\nas one: %q", cut(got, want), cut(want, got))
		}
	})
}

// cut is the part of a around where it differs from b.
func cut(a, b string) string {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	return a[max(0, i-60):min(len(a), i+100)]
}

// No secret of six bytes or more survives, in any encoding.
func FuzzSurvivors(f *testing.F) {
	f.Add("some text", "hunter22", "more")
	f.Add("***", "a***bcd", "***")
	f.Add("\\\\", `p"'<\n&é`, "\\u")
	f.Add("a", "!@#$%^&*()", "\\u")
	f.Add("", "0123456789", "")
	f.Add("", "00 000", "0")      // found: a blank as %2B
	f.Add("0", "00\"\x100A", "0") // found: two kinds of escapes in one string of Go
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		if !usable(secret) || len(before)+len(after) > 5000 {
			return
		}
		r := secrets.NewRedactor(secret)
		for name, e := range encodings(secret) {
			got := r.String(before + " " + e + " " + after)
			find := e
			if strings.HasPrefix(name, "base64 ") && name != "base64 in URL" {
				lead, _ := strconv.Atoi(name[len(name)-3 : len(name)-2])
				find = core(e, lead, len(secret))
			}
			if strings.Contains(got, find) {
				t.Errorf("%s: %q is in %q", name, find, got)
			}
			if strings.Contains(got, secret) {
				t.Errorf("%s: the secret %q is in %q", name, secret, got)
			}
		}
		for _, s := range []string{before + secret + after, secret + secret, secret[:3] + secret + secret[3:], "***" + secret, secret + "***", before + "\\" + secret, "%25" + secret + "%"} {
			if got := r.String(s); strings.Contains(got, secret) {
				t.Errorf("%q is in %q of %q", secret, got, s)
			} else if r.String(got) != got {
				t.Errorf("%q is not stable", got)
			}
		}
	})
}

// Text without secrets is unchanged.
func FuzzUnchanged(f *testing.F) {
	f.Add([]byte("some text, tokens used 3, author me, primary key id\n"))
	f.Add([]byte(`{"event":"x"}`))
	known := randomSecrets(20)
	for i, s := range known {
		known[i] = "Q" + s + "Q"
	}
	r := secrets.NewRedactor(append(known, "Q!Q!Q!Q!", "Qab", "Q\"\\'&%Q")...)
	f.Fuzz(func(t *testing.T, text []byte) {
		// What all secrets and shapes have is not in the text.
		text = bytes.Map(func(r rune) rune {
			if strings.ContainsRune("QAEB:=@_-", r) {
				return -1
			}
			return r
		}, text)
		if got := r.Bytes(text); !bytes.Equal(got, text) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// JSON stays JSON, and decoded strings hold no secret.
func FuzzJSON(f *testing.F) {
	f.Add(`{"a":"hunter22","b":[1,2.50,{"c":null}]}`, "hunter22", uint64(1))
	f.Add(`["hunter\u00322"]`, "hunter22", uint64(2))
	f.Add(`[123456789, 1234567]`, "1234567", uint64(3))
	f.Add(`"\ud83d\ude00"`, "😀😀", uint64(3))
	f.Fuzz(func(t *testing.T, doc, secret string, seed uint64) {
		if !usable(secret) || len(doc) > 5000 || !utf8.ValidString(secret) {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 2))
		r := secrets.NewRedactor(secret)
		escaped := jsonString(rnd, "x"+secret+"y")
		for _, d := range []string{doc, `{"k":` + escaped + `,` + jsonString(rnd, secret) + `:[` + jsonString(rnd, doc) + `,1.50]}`, escaped} {
			got := r.JSON([]byte(d))
			if !json.Valid([]byte(d)) {
				if !bytes.Equal(got, r.Bytes([]byte(d))) {
					t.Errorf("invalid: %q became %q", d, got)
				}
				continue
			}
			if !json.Valid(got) {
				t.Fatalf("%q became %q, which is not valid", d, got)
			}
			if !bytes.Equal(r.JSON(got), got) {
				t.Errorf("%q is not stable: %q", got, r.JSON(got))
			}
			dec := json.NewDecoder(bytes.NewReader(got))
			dec.UseNumber()
			for {
				tok, err := dec.Token()
				if err != nil {
					break
				}
				if strings.Contains(fmt.Sprint(tok), secret) {
					if _, number := tok.(json.Number); !number {
						t.Errorf("%q is in %q of %q", secret, tok, got)
					}
				}
			}
		}
	})
}

// jsonString writes s with some characters escaped that need not be.
func jsonString(rnd *rand.Rand, s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		if r < ' ' || r == '"' || r == '\\' || rnd.IntN(4) == 0 {
			for _, u := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, []string{`\u%04x`, `\u%04X`}[rnd.IntN(2)], u)
			}
			continue
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}
