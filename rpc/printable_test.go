package rpc

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", "tab\tand \"quotes\" \\ äöü 日本 👩‍👩‍👧", "tab\tand \"quotes\" \\ äöü 日本 👩‍👩‍👧"},
		{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"title", "\x1b]0;owned\a", `\x1b]0;owned\a`},
		{"return", "good\rbad", `good\rbad`},
		{"lines", "a\nb", "a\n\tb"},
		{"lines of Windows", "a\r\nb", "a\n\tb"},
		{"indented lines", "a\n\tb\n  c\n\nd\n", "a\n\tb\n  c\n\n\td\n"},
		{"NUL, BS, DEL", "\x00\b\x7f", `\x00\b\x7f`},
		{"C1", "\u009b31m\u0085", `\u009b31m\u0085`},
		{"direction", "a\u202eb\u2066c\u200fd\u061ce", `a\u202eb\u2066c\u200fd\u061ce`},
		{"separators", "a\u2028b\u2029c", `a\u2028b\u2029c`},
		{"no UTF-8", "a\xff\x9bb", `a\xff\x9bb`},
		{"replacement", "a\ufffdb", "a\ufffdb"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Printable(test.in)
			if got != test.want {
				t.Errorf("Printable(%q) = %q, want %q", test.in, got, test.want)
			}
			if again := Printable(got); again != got {
				t.Errorf("once more it is %q", again)
			}
		})
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\r\nb\x1b[2J\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := Printable(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, isUnsafe) || Printable(got) != got {
			t.Fatalf("Printable(%q) = %q", s, got)
		}
		for line := range strings.Lines(strings.TrimPrefix(got, firstLine(got))) {
			if line != "\n" && line[0] != ' ' && line[0] != '\t' {
				t.Fatalf("Printable(%q) = %q, which has a line at the margin", s, got)
			}
		}
	})
}

func firstLine(s string) string {
	before, _, _ := strings.Cut(s, "\n")
	return s[:min(len(before)+1, len(s))]
}

func TestEscapeControls(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`{}`, `{}`},
		{`{"a":"plain text, long enough for a word"}`, `{"a":"plain text, long enough for a word"}`},
		{`{"ä":"日本 👩 é ü ÿ"}`, `{"ä":"日本 👩 é ü ÿ"}`},
		{"[\"\x7f\"]", `["\u007f"]`},
		{"[\"12345678\x7f\"]", `["12345678\u007f"]`},
		{"[\"\u0080\u009b\u009f\u00a0\"]", "[\"\\u0080\\u009b\\u009f\u00a0\"]"},
		{"[\"\u202e\u2066\u2069\u2028\u200e\u061c\"]", `["\u202e\u2066\u2069\u2028\u200e\u061c"]`},
		{"[\"\u202f\u2065\u206a\u2027\u200d\u061b\"]", "[\"\u202f\u2065\u206a\u2027\u200d\u061b\"]"},
	} {
		if got := string(EscapeControls([]byte(test.in))); got != test.want {
			t.Errorf("EscapeControls(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

func FuzzEscapeControls(f *testing.F) {
	f.Add("a\x7fb\u009b\u202e\u00e9")
	f.Fuzz(func(t *testing.T, s string) {
		doc, err := json.Marshal([]string{s})
		if err != nil {
			t.Fatal(err)
		}
		got := EscapeControls(doc)
		var before, after []string
		if json.Unmarshal(doc, &before) != nil || json.Unmarshal(got, &after) != nil || !reflect.DeepEqual(before, after) {
			t.Fatalf("%q became %q", doc, got)
		}
		if strings.ContainsFunc(string(got), isUnsafe) {
			t.Fatalf("%q has a control character", got)
		}
	})
}

// What a worker writes reaches files with nothing in it that a terminal obeys.
func TestDataEscapes(t *testing.T) {
	got, err := Data(FrameEvent, []byte("{\"type\":\"event\",\"data\":{\"event\":\"a\x7f\u009b\u202e\"}}"))
	if want := `{"event":"a\u007f\u009b\u202e"}`; string(got) != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
