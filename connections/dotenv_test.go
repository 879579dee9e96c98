package connections

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readEnv(content string, vars map[string]string) (map[string]string, error) {
	got := make(map[string]string)
	err := parseEnv([]byte(content), func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}, func(name, value string) { got[name] = value })
	return got, err
}

func TestParseEnv(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		want    map[string]string
	}{
		"nothing":        {"", nil},
		"comments":       {"# A=1\n\n   # B=2\n\t\n#", nil},
		"plain":          {"A=1\nB = 2 \nexport C=3\nexport  D =4\nE=\nF", map[string]string{"A": "1", "B": "2", "C": "3", "D": "4", "E": ""}},
		"names":          {"export=1\nexportA=2\n'Q'=3\na.b-c=4", map[string]string{"export": "1", "exportA": "2", "Q": "3", "a.b-c": "4"}},
		"no value":       {"A\nB=1\nexport C", map[string]string{"B": "1"}},
		"CRLF":           {"A=1\r\nB='2'\r\nC=\"3\"\r\n", map[string]string{"A": "1", "B": "2", "C": "3"}},
		"byte order":     {"\ufeffA=1", map[string]string{"A": "1"}},
		"inner comments": {"A=1 # x\nB=1#2\nC=#3\nD= # x\nE='1 # 2' # x\nF=\"1 # 2\"# x\nG=a b\t# c", map[string]string{"A": "1", "B": "1#2", "C": "#3", "D": "", "E": "1 # 2", "F": "1 # 2", "G": "a b"}},
		"quotes":         {`A='a b'` + "\n" + `B="a b"` + "\n" + `C=it's` + "\n" + `D=a"b"` + "\n" + `E=''` + "\n" + `F= "x" `, map[string]string{"A": "a b", "B": "a b", "C": "it's", "D": `a"b"`, "E": "", "F": "x"}},
		"escapes":        {`A='a\'b\\c\nd'` + "\n" + `B="a\"b\\c\nd\te\qf\'"` + "\n" + `C=a\nb\\`, map[string]string{"A": `a'b\c\nd`, "B": "a\"b\\c\nd\te\\qf\\'", "C": `a\nb\\`}},
		"several lines":  {"A='1\n2'\nB=\"3\n# 4\"\nC=5", map[string]string{"A": "1\n2", "B": "3\n# 4", "C": "5"}},
		"equals signs":   {"A=b=c==\nB=postgres://u:p@h/db?x=1&y=2", map[string]string{"A": "b=c==", "B": "postgres://u:p@h/db?x=1&y=2"}},
		"last one":       {"A=1\nA=2", map[string]string{"A": "2"}},
		"variables": {"A=1\nB=${A}${SET}\nC='${A}'\nD=\"${A}\"\nE=$A\nF=${NONE}\nG=${NONE:-x y}\nH=${A:-x}\nI=${SET2}\nSET2=file\nJ=${SET2}",
			map[string]string{"A": "1", "B": "1set", "C": "${A}", "D": "1", "E": "$A", "F": "", "G": "x y", "H": "1", "I": "set2", "SET2": "file", "J": "set2"}},
	} {
		got, err := readEnv(tc.content, map[string]string{"SET": "set", "SET2": "set2"})
		if tc.want == nil {
			tc.want = map[string]string{}
		}
		if d := cmp.Diff(tc.want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, d)
		}
	}
}

func TestParseEnvErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		content, want string
	}{
		"open":        {"A=1\nB='hunter2\nC=3\n", "line 2: its value has no closing quote"},
		"open double": {"\n\nB=\"hunter2\\\"", "line 3: its value has no closing quote"},
		"behind":      {"A='1\n2'\nB='a' hunter2", "line 3: there is more behind the closing quote"},
		"no name":     {"=hunter2", "line 1: it does not begin with NAME="},
		"two names":   {"A=1\nhunter2 B=2", "line 2: it does not begin with NAME="},
		"quoted":      {"\"A\"=2", "line 1: it does not begin with NAME="},
	} {
		got, err := readEnv(tc.content, nil)
		if fe := (*FileError)(nil); !errors.As(err, &fe) || err.Error() != "connections: "+tc.want || len(got) != 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Whatever can be quoted reads back.
func FuzzParseEnv(f *testing.F) {
	for _, s := range []string{"", "A=1", "export A='x\\'y'", "A=\"x\\n\"", "A=${B:-c}", "#", "'A'=1 # x", "A='\n'\nB=\"", "${"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := readEnv(s, nil)
		if err != nil {
			if fe := (*FileError)(nil); !errors.As(err, &fe) || fe.Line < 1 || fe.Line > 1+strings.Count(s, "\n") || len(got) > 0 {
				t.Fatalf("%v, %v", got, err)
			}
		}
		for name := range maps.Keys(got) {
			if name == "" {
				t.Fatal("a variable without a name")
			}
		}
		quoted := "A='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
		back, err := readEnv(quoted, nil)
		if err != nil || back["A"] != s || len(back) != 1 {
			t.Fatalf("%q reads back as %q, %v", quoted, back, err)
		}
	})
}
