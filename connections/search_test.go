package connections_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/connections"
)

// The first directory that has the file is used.
func TestSearch(t *testing.T) {
	root := t.TempDir()
	at := func(dir string) string { return filepath.Join(root, dir, connections.FileName) }
	dirs := []string{"home", "project/work", "project", "more1", "more2"}
	s := connections.Search{
		Dir:    filepath.Join(root, "project/work"),
		More:   []string{filepath.Join(root, "more1"), "../../more2"},
		Lookup: env{"OSIRIS_HOME": " " + filepath.Join(root, "home") + " "}.lookup,
	}
	for _, dir := range dirs {
		write(t, at(dir), "connections: {f: {default: {host: "+dir+"}}}")
	}
	write(t, filepath.Join(root, connections.FileName), "connections: {f: {default: {host: grandparent}}}")
	for _, dir := range dirs {
		path, err := s.Find()
		if err != nil || path != at(dir) {
			t.Fatalf("found %s, %v, want %s", path, err, at(dir))
		}
		c, err := resolve(t, s, "@f")
		if err != nil || c.Fields["host"] != dir {
			t.Errorf("%v, %v", c, err)
		}
		f, err := s.Load()
		if err != nil || f.Path != at(dir) {
			t.Errorf("%v, %v", f, err)
		}
		d, err := s.Describe(ref(t, "@f"))
		if err != nil || d.Fields["host"] != dir {
			t.Errorf("%v, %v", d, err)
		}
		if err := os.Remove(at(dir)); err != nil {
			t.Fatal(err)
		}
	}
	if path, err := s.Find(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("found %s, %v", path, err)
	}
	if _, err := resolve(t, s, "@f"); text(err) != "No connections configured. Create osiris_connections.yaml with f connections." {
		t.Error(err)
	}
	if _, err := s.Describe(ref(t, "@f")); !errors.Is(err, connections.ErrNotConfigured) {
		t.Error(err)
	}
	write(t, at("project"), "connections: [")
	if _, err := resolve(t, s, "@f"); !errors.As(err, new(*connections.FileError)) {
		t.Error(err)
	}
	if _, err := s.Describe(ref(t, "@f")); !errors.As(err, new(*connections.FileError)) {
		t.Error(err)
	}
}

// The zero Search uses the process's own directory and variables.
func TestZeroSearch(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("OSIRIS_HOME", "")
	t.Setenv("CONNECTIONS_TEST_HOST", "h")
	write(t, connections.FileName, "connections: {f: {a: {host: '${CONNECTIONS_TEST_HOST}'}}}")
	c, err := resolve(t, connections.Search{}, "@f.a")
	if err != nil || c.Fields["host"] != "h" {
		t.Errorf("%v, %v", c, err)
	}
	f, err := connections.Load(connections.FileName)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := resolve(t, f, "@f.a"); err != nil || c.Fields["host"] != "h" {
		t.Errorf("%v, %v", c, err)
	}
	t.Setenv("OSIRIS_HOME", "elsewhere")
	write(t, "elsewhere/"+connections.FileName, "connections: {f: {a: {host: other}}}")
	if c, err := resolve(t, connections.Search{}, "@f.a"); err != nil || c.Fields["host"] != "other" {
		t.Errorf("%v, %v", c, err)
	}
}

// Variables of .env files are behind those that are set, and each file behind
// those before it.
func TestDotEnvFiles(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "home/.env"), "A=home\nSET=home\nNOTHING=home\n")
	write(t, filepath.Join(root, "project/deep/here/.env"), "A=here\nB=here\nREF=${A}-${SET}-${C:-none}\n")
	write(t, filepath.Join(root, "project/deep/.env"), "D=between\n")
	write(t, filepath.Join(root, "project/.env"), "A=project\nB=project\nC=project\n")
	write(t, filepath.Join(root, "project/osiris.py"), "")
	write(t, filepath.Join(root, ".env"), "D=above\n")
	write(t, filepath.Join(root, "project/deep/here", connections.FileName), `
connections:
  f:
    a: {host: "${A} ${B} ${C} ${SET} ${REF}"}
    b: {host: "${NOTHING}"}
    c: {host: "${D}"}
`)
	s := connections.Search{
		Dir:    filepath.Join(root, "project/deep/here"),
		Lookup: env{"OSIRIS_HOME": filepath.Join(root, "home"), "SET": "set", "NOTHING": ""}.lookup,
	}
	if _, err := resolve(t, s, "@f.a"); text(err) != "Environment variable 'A' not set for host in f.a" {
		t.Errorf("without DotEnv: %v", err)
	}
	s.DotEnv = true
	c, err := resolve(t, s, "@f.a")
	if err != nil || c.Fields["host"] != "home here project set home-set-none" {
		t.Errorf("%v, %v", c, err)
	}
	for _, alias := range []string{"b", "c"} {
		if _, err := resolve(t, s, "@f."+alias); !errors.As(err, new(*connections.UnsetError)) {
			t.Errorf("%s: %v", alias, err)
		}
	}
	if v, set := os.LookupEnv("REF"); set {
		t.Errorf("the process's own environment has %q", v)
	}

	write(t, filepath.Join(root, "project/.env"), "A=1\nB='hunter2\n")
	_, err = resolve(t, s, "@f.a")
	if text(err) != "connections: "+filepath.Join(root, "project/.env")+": line 2: its value has no closing quote" {
		t.Error(err)
	}
	write(t, filepath.Join(root, "project/.env"), strings.Repeat("#", 1<<20+1))
	if _, err := s.Env(); text(err) != "connections: "+filepath.Join(root, "project/.env")+": it is larger than 1 MiB" {
		t.Error(err)
	}
	if _, err := s.Find(); err == nil {
		t.Error("Find overlooks it")
	}
	if err := os.Remove(filepath.Join(root, "project/.env")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "project/.env"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Env(); err == nil {
		t.Error("a directory was read")
	}
}

// OSIRIS_HOME may itself be in a .env file.
func TestDotEnvHome(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "work/.env"), "OSIRIS_HOME=../home")
	write(t, filepath.Join(root, "home", connections.FileName), "")
	write(t, filepath.Join(root, "work", connections.FileName), "")
	s := connections.Search{Dir: filepath.Join(root, "work"), Lookup: env{}.lookup, DotEnv: true}
	if path, err := s.Find(); err != nil || path != filepath.Join(root, "home", connections.FileName) {
		t.Error(path, err)
	}
}
