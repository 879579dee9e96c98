package rpc

import (
	"errors"
	"path"
	"strings"
	"testing"
)

func TestMatchGlob(t *testing.T) {
	for _, test := range []struct {
		glob, name string
		want       bool
	}{
		{"a/x.csv", "a/x.csv", true},
		{"a/x.csv", "a/y.csv", false},
		{"*.csv", "x.csv", true},
		{"*.csv", "a/x.csv", false},
		{"a/*", "a/x", true},
		{"a/*", "a/b/x", false},
		{"a/*", "a", false},
		{"**", "a", true},
		{"**", "a/b/c", true},
		{"**/*.csv", "x.csv", true},
		{"**/*.csv", "a/b/x.csv", true},
		{"**/*.csv", "a/b/x.csv/y", false},
		{"a/**", "a", true},
		{"a/**", "a/b/c", true},
		{"a/**", "b/a/c", false},
		{"a/**/x", "a/x", true},
		{"a/**/x", "a/b/c/x", true},
		{"a/**/x", "a/b/c/y", false},
		{"a/**/b/**/c", "a/1/b/2/3/c", true},
		{"a/**/b/**/c", "a/b/x/b/c", true},
		{"a/**/b/**/c", "a/1/2/c", false},
		{"**/**/x", "x", true},
		{"**/a/**/a/**", "a/a", true},
		{"**/a/**/a/**", "a/b", false},
		{"a**", "abc", true},
		{"a**", "a/bc", false},
		{"a/?", "a/é", true},
		{"a/[x-z]", "a/y", true},
		{"a/[^x]", "a/x", false},
		{`a/\*`, "a/*", true},
		{`a/\*`, "a/x", false},
		{"", "", false},
		{"/a", "/a", false},
		{"a/", "a/", false},
		{"a//b", "a//b", false},
		{"a/[", "a/[", false},
	} {
		if got := matchGlob(test.glob, test.name); got != test.want {
			t.Errorf("%q matches %q: %t", test.glob, test.name, got)
		}
	}
}

// slowMatch tries everything.
func slowMatch(globs, names []string) bool {
	if len(globs) == 0 {
		return len(names) == 0
	}
	if globs[0] == "**" {
		return slowMatch(globs[1:], names) || len(names) > 0 && slowMatch(globs, names[1:])
	}
	if len(names) == 0 {
		return false
	}
	ok, err := path.Match(globs[0], names[0])
	return ok && err == nil && slowMatch(globs[1:], names[1:])
}

// A glob matches what it says, and one of an escaped name that name alone.
func FuzzMatchGlob(f *testing.F) {
	f.Add("a/**/*.csv", "a/b/x.csv")
	f.Add("**/a/**/a/**", "a/b/a")
	f.Add(`a/\[`, "a/[")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if strings.Count(glob, "**") > 4 || strings.Count(name, "/") > 8 {
			return // it would take slowMatch long
		}
		want := CheckGlob(glob) == nil && slowMatch(strings.Split(glob, "/"), strings.Split(name, "/"))
		if got := matchGlob(glob, name); got != want {
			t.Errorf("%q matches %q: %t, want %t", glob, name, got, want)
		}
		if name == "" || path.Clean(name) != name || name[0] == '/' || len(name) > 1024 || strings.Count(name, "/") > 60 || name == "." {
			return
		}
		if !matchGlob(EscapeGlob(name), name) || matchGlob(EscapeGlob(name), name+"x") {
			t.Errorf("%q is not the glob of %q alone", EscapeGlob(name), name)
		}
	})
}

func TestUnwanted(t *testing.T) {
	for _, test := range []struct {
		s    SealArtifacts
		name string
		size int64
		want string // in the reason; empty means that it is wanted
	}{
		{SealArtifacts{}, "a/x", 1 << 60, ""},
		{SealArtifacts{Include: []string{"a/*"}}, "a/x", 0, ""},
		{SealArtifacts{Include: []string{"a/*"}}, "b/x", 0, "no glob includes it"},
		{SealArtifacts{Exclude: []string{"b/*", "a/*"}}, "a/x", 0, `"a/*" excludes`},
		{SealArtifacts{Include: []string{"a/**"}, Exclude: []string{"**/*.tmp"}}, "a/x.tmp", 0, "excludes"},
		{SealArtifacts{MaxFileBytes: 10}, "a/x", 10, ""},
		{SealArtifacts{MaxFileBytes: 10}, "a/x", 11, "11 bytes"},
		{SealArtifacts{MaxFileBytes: 10, Exclude: []string{"**"}, Include: []string{"b"}, Always: []string{"a/x"}}, "a/x", 11, ""},
	} {
		got := test.s.Unwanted(test.name, test.size)
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%+v: %s of %d bytes: %q", test.s, test.name, test.size, got)
		}
	}
}

// A header is read as it was written, or not at all.
func FuzzPackHeader(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < PackHeaderSize {
			return
		}
		in := [PackHeaderSize]byte(b)
		h, err := ParsePackHeader(&in)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Error(err)
			}
			return
		}
		if h.Size > MaxPacked || h.Failed && h.Size > MaxPackedError {
			t.Errorf("%+v", h)
		}
		var out [PackHeaderSize]byte
		if h.Put(&out); out != in {
			t.Errorf("%x became %+v and %x", in, h, out)
		}
	})
}
