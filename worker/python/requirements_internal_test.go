package python

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRequirements(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"none", nil, nil},
		{"union", []string{"b", "A", "a", "  ", "# comment", "b # why"}, []string{"a", "b"}},
		{"URL and name", []string{"a", "a @ https://h/a.whl", "b", "b @ https://h/b.whl ; os_name == 'posix'", "c>=1", "c @ https://h/c.whl"},
			[]string{"a @ https://h/a.whl", "b", "b @ https://h/b.whl ; os_name == 'posix'", "c @ https://h/c.whl", "c>=1"}},
		{"names", []string{"Zope.Interface", "zope_interface", "zope--interface"}, []string{"zope-interface"}},
		{"versions and name", []string{"a", "a==99.0", "b[x]", "b", "b[x]<3", "c", "c>1 ; os_name == 'posix'", "d ; os_name == 'posix'", "d>1 ; os_name == 'posix'", "e", "e[x]", "f[x]", "f>1"},
			[]string{"a==99.0", "b[x]<3", "c", "c>1 ; os_name == 'posix'", "d>1 ; os_name == 'posix'", "e", "e[x]", "f>1", "f[x]"}},
		{"extras", []string{"a[Y, x]", "a [x,y,x]", "a[y_y]>=1"}, []string{"a[x,y]", "a[y-y]>=1"}},
		{"specifiers", []string{"a >= 1 , < 2", "a (<2,>=1)", "a==1.*", "a===1.0+cpu", "a~=1.0", "a!=1!2"}, []string{"a!=1!2", "a<2,>=1", "a==1.*", "a===1.0+cpu", "a~=1.0"}},
		{"markers", []string{"a>1;python_version<'3.9'", "b ;  os_name ==  'posix'"}, []string{"a>1 ; python_version<'3.9'", "b ; os_name == 'posix'"}},
		{"URLs", []string{"a@https://h/a-1-py3-none-any.whl#sha256=ab", "b @ git+https://h/b@v1 ; os_name == 'posix'", "c @ git+ssh://git@h/c"},
			[]string{"a @ https://h/a-1-py3-none-any.whl#sha256=ab", "b @ git+https://h/b@v1 ; os_name == 'posix'", "c @ git+ssh://git@h/c"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parsed, err := parseRequirements(tt.lines)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, append([]string(nil), lines(parsed)...)); diff != "" {
				t.Errorf("requirements (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRequirementsRefused(t *testing.T) {
	for line, want := range map[string]string{
		"-r requirements.txt":                  "option of pip",
		"--index-url https://me:s3cret@h/":     "option of pip",
		"-e .":                                 "editable",
		"--editable=.":                         "editable",
		"a --hash=sha256:00":                   "options of pip",
		"a;x\t--index-url=https://h":           "options of pip",
		"./a":                                  "path",
		"/srv/a-1-py3-none-any.whl":            "path",
		"a/b":                                  "path",
		"https://h/a.whl":                      "path or URL alone",
		"git+https://h/a":                      "path or URL alone",
		"a @ file:///srv/a-1-py3-none-any.whl": "PIP_FIND_LINKS",
		"a @ git+file:///srv/a":                "PIP_FIND_LINKS",
		"a @ https://me:s3cret@h/a.whl":        "private index",
		"a @ https://s3cret@h/a.whl":           "private index",
		"a @ git+https://s3cret@h/a":           "private index",
		"a @ git+ssh://git:s3cret@h/a":         "private index",
		"a @ https://${TOKEN}@h/a.whl":         "not a URL",
		"a @ ftp://h/a.whl":                    "not a URL",
		"a @ nonsense+https://h/a":             "not a URL",
		"a @":                                  "not a URL",
		"a b":                                  "version specifier",
		"a>":                                   "version specifier",
		"a>=1,":                                "version specifier",
		"a>=1 2":                               "version specifier",
		"a>=$(x)":                              "version specifier",
		"a[":                                   "not closed",
		"a[x y]":                               "name of an extra",
		"a[]":                                  "name of an extra",
		"a (>=1":                               "not closed",
		"a ()":                                 "not closed",
		"a;":                                   "semicolon",
		"a-":                                   "name of a package",
		"_a":                                   "name of a package",
		">=1":                                  "name of a package",
		"ä":                                    "ASCII",
		"a\nb":                                 "ASCII",
		"a==" + strings.Repeat("1", maxRequirementSize): "longer",
	} {
		_, err := parseRequirements([]string{line})
		if !errors.Is(err, errRequirement) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", line, err, want)
		} else if strings.Contains(err.Error(), "s3cret") || len(err.Error()) > 600 {
			t.Errorf("%q: error %v", line, err)
		}
	}
	many := make([]string, maxRequirements+1)
	for n := range many {
		many[n] = "a==" + strings.Repeat("1", n%900+1) + strings.Repeat(".1", n/900)
	}
	if _, err := parseRequirements(many); !errors.Is(err, errRequirement) {
		t.Errorf("too many: %v", err)
	}
}

// FuzzParseRequirement: what is accepted says the same when it is parsed again.
func FuzzParseRequirement(f *testing.F) {
	for _, line := range []string{"a", "A.b[x,Y] >= 1, <2 ; os_name == 'posix'", "a (==1.*)", "a @ git+ssh://git@h/c#egg=a;b ; python_version<'3'", "-r x", "a @ https://u:p@h/"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		r, err := parseRequirement(strings.TrimSpace(line))
		if err != nil {
			return
		}
		text := r.String()
		again, err := parseRequirement(text)
		if err != nil {
			t.Fatalf("%q, from %q: %v", text, line, err)
		}
		if again.String() != text {
			t.Errorf("%q, from %q, is %q", text, line, again)
		}
		if strings.HasPrefix(text, "-") || strings.ContainsAny(text, "\n\r\x00") {
			t.Errorf("%q, from %q, is more than an argument", text, line)
		}
	})
}

// FuzzParseLock: a lock names only wheels beside it.
func FuzzParseLock(f *testing.F) {
	f.Add([]byte(`{"format":1,"key":"k","wheels":[{"name":"a-1-py3-none-any.whl","size":1,"sha256":"` + strings.Repeat("0a", 32) + `"}]}`))
	f.Add([]byte(`{"format":1,"wheels":[{"name":"../a-1-py3-none-any.whl"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		lock, err := parseLock(b)
		if err != nil {
			return
		}
		for _, w := range lock.Wheels {
			if strings.ContainsAny(w.Name, "/\\\x00") || strings.HasPrefix(w.Name, "-") || !strings.HasSuffix(w.Name, ".whl") {
				t.Errorf("%q is accepted", w.Name)
			}
		}
	})
}

// FuzzParsePins: what uv prints is parsed or refused.
func FuzzParsePins(f *testing.F) {
	f.Add("a==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\nb @ https://h/b.whl\n")
	f.Fuzz(func(t *testing.T, content string) {
		pins, err := parsePins(content)
		for _, p := range pins {
			if err == nil && !validName(p.name) {
				t.Errorf("%q has %q", content, p.name)
			}
		}
	})
}

func TestIndexesFrom(t *testing.T) {
	const (
		private = "https://me:s3cret@private.example.com/simple/"
		mirror  = "https://mirror.example.com/simple"
	)
	for _, tt := range []struct {
		name string
		env  map[string]string
		want []string // URL, user name and password
		rest []string
	}{
		{"none", map[string]string{"B": "2", "A": "1", "PIP_NO_INDEX": "1"}, nil, []string{"A=1", "B=2", "PIP_NO_INDEX=1"}},
		{"pip", map[string]string{"PIP_INDEX_URL": private}, []string{"https://private.example.com/simple/ me s3cret"}, nil},
		{"pip, beside the default one", map[string]string{"PIP_EXTRA_INDEX_URL": private + " " + mirror},
			[]string{"https://private.example.com/simple/ me s3cret", mirror + "  ", defaultIndex + "  "}, nil},
		{"uv", map[string]string{"UV_INDEX": "corp=" + private, "UV_DEFAULT_INDEX": mirror}, []string{"https://private.example.com/simple/ me s3cret", mirror + "  "}, nil},
		{"uv, with variables for a login", map[string]string{"UV_INDEX": "my-corp=https://private.example.com/simple/", "UV_INDEX_MY_CORP_USERNAME": "me", "UV_INDEX_MY_CORP_PASSWORD": "s3cret", "UV_INDEX_URL": mirror},
			[]string{"https://private.example.com/simple/ me s3cret", mirror + "  "}, nil},
		{"both, the same", map[string]string{"UV_EXTRA_INDEX_URL": private, "PIP_EXTRA_INDEX_URL": private, "UV_DEFAULT_INDEX": mirror, "PIP_INDEX_URL": mirror},
			[]string{"https://private.example.com/simple/ me s3cret", mirror + "  "}, nil},
		{"directories of wheels", map[string]string{"PIP_FIND_LINKS": "/srv/wheels https://h/links/"}, nil, []string{"PIP_FIND_LINKS=/srv/wheels https://h/links/"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			indexes, rest, err := indexesFrom(tt.env)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range indexes {
				got = append(got, i.URL+" "+i.Username.Reveal()+" "+i.Password.Reveal())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("indexes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rest, rest); diff != "" {
				t.Errorf("rest (-want +got):\n%s", diff)
			}
			if _, err := NewCredentials(indexes...); err != nil {
				t.Error(err)
			}
		})
	}
	for name, env := range map[string]map[string]string{
		"links with a password": {"PIP_FIND_LINKS": "https://me:s3cret@h/links/"},
		"two default ones":      {"PIP_INDEX_URL": private + " " + mirror},
		"no URL":                {"UV_INDEX": "s3cret"},
		"not filled":            {"PIP_INDEX_URL": "https://me:${s3cret}@h/"},
	} {
		if _, _, err := indexesFrom(env); !errors.Is(err, ErrIndex) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
