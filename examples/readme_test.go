// Package examples holds programs to run and copy, a directory each.
package examples

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every block of code in the README, and in the page about writing drivers, is a
// piece of an example here, or of those in the documentation, so that it compiles
// and runs.
func TestReadmeCode(t *testing.T) {
	var sources []string
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".py")) {
			var b []byte
			b, err = os.ReadFile(name)
			sources = append(sources, unindent(string(b)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("..", "example_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	sources = append(sources, unindent(string(b)))
	page, err := os.ReadFile(filepath.Join("..", "docs", "drivers.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(?:go|python)\n(.*?)```").FindAllStringSubmatch(readme(t)+string(page), -1)
	if len(blocks) < 8 {
		t.Fatalf("there are %d", len(blocks))
	}
	for _, block := range blocks {
		found := false
		for _, source := range sources {
			found = found || strings.Contains(source, unindent(block[1]))
		}
		if !found {
			t.Errorf("no example has this:\n%s", block[1])
		}
	}
}

// What the documents link to is there, and the README leads to all of them.
func TestDocumentLinks(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("..", "docs", "*.md"))
	if err != nil || len(names) == 0 {
		t.Fatal("there are none", err)
	}
	for _, name := range names {
		if !strings.Contains(readme(t), "](docs/"+filepath.Base(name)+")") {
			t.Errorf("the README does not link to docs/%s", filepath.Base(name))
		}
	}
	more, err := filepath.Glob(filepath.Join("..", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, more...) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(string(b), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), filepath.FromSlash(link[1]))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// unindent removes the tabs before lines: a piece of a function may stand
// alone.
func unindent(text string) string {
	return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(strings.ReplaceAll(text, "\r\n", "\n"), "")
}
