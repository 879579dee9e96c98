package python_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/worker/python"
)

// pythonEnv names a Python that has pip and uv.
const pythonEnv = "OSIRIS_TEST_PYTHON"

func TestEnv(t *testing.T) {
	for _, tt := range []struct {
		name    string
		indexes []python.Index
		want    map[string]string // of those that say where packages come from
	}{
		{"none", nil, map[string]string{"NETRC": os.DevNull}},
		{"one without credentials", []python.Index{parse(t, "https://a.example/simple/")}, map[string]string{
			"NETRC":         os.DevNull,
			"PIP_INDEX_URL": "https://a.example/simple/", "PIP_EXTRA_INDEX_URL": "",
			"UV_DEFAULT_INDEX": "https://a.example/simple/", "UV_INDEX": "", "UV_INDEX_URL": "", "UV_EXTRA_INDEX_URL": "",
		}},
		{"three", []python.Index{
			parse(t, "https://me:s3cret@a.example/simple/"), parse(t, "https://t0ken@b.example/"), parse(t, "file:///srv/simple"),
		}, map[string]string{
			"NETRC":         "a file",
			"PIP_INDEX_URL": "https://a.example/simple/", "PIP_EXTRA_INDEX_URL": "https://b.example/ file:///srv/simple",
			"UV_DEFAULT_INDEX": "file:///srv/simple", "UV_INDEX": "https://a.example/simple/ https://b.example/", "UV_INDEX_URL": "", "UV_EXTRA_INDEX_URL": "",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := credentials(t, tt.indexes...)
			got := map[string]string{}
			for _, pair := range c.Env() {
				name, value, _ := strings.Cut(pair, "=")
				if name == "NETRC" && value != os.DevNull {
					if _, err := os.Stat(value); err != nil {
						t.Error(err)
					}
					value = "a file"
				}
				if name == "NETRC" || strings.Contains(name, "INDEX") {
					got[name] = value
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("variables (-want +got):\n%s", diff)
			}
			if text := fmt.Sprintf("%v %+v %#v", c.Env(), tt.indexes, tt.indexes); strings.Contains(text, "s3cret") || strings.Contains(text, "t0ken") {
				t.Errorf("a secret shows: %s", text)
			}
		})
	}
}

func TestNewCredentialsErrors(t *testing.T) {
	a := withLogin("https://a.example/x/", "me", "s3cret")
	for _, tt := range []struct {
		name    string
		indexes []python.Index
		want    string // empty: no error
	}{
		{"the same twice", []python.Index{a, a}, ""},
		{"one account, two ports", []python.Index{a, withLogin("https://a.example:8443/", "me", "s3cret")}, ""},
		{"two hosts", []python.Index{a, withLogin("https://b.example/x/", "you", "s3cret2")}, ""},
		{"an open one on the same server", []python.Index{a, {URL: "https://A.example:443/y/"}}, ""},
		{"another password", []python.Index{a, withLogin("https://a.example/y/", "me", "s3cret2")}, `"a.example": two indexes`},
		{"another user", []python.Index{a, withLogin("https://a.example/y/", "you", "s3cret")}, `"a.example": two indexes`},
		{"another user, behind an open one", []python.Index{a, {URL: "https://a.example/z/"}, withLogin("https://a.example/y/", "you", "s3cret")}, `"a.example": two indexes`},
		{"an open one on another port", []python.Index{{URL: "https://a.example:8443/"}, a}, `"a.example": two indexes`},
		{"an open one without TLS", []python.Index{a, {URL: "http://a.example/"}}, `"a.example": two indexes`},
		{"credentials in the URL", []python.Index{{URL: "https://me:s3cret@a.example/"}}, "belong to Username and Password"},
		{"not a URL", []python.Index{{URL: "s3cret"}}, "not a URL"},
		{"two lines", []python.Index{withLogin("https://a.example/", "me", "x\nmachine b.example login me password s3cret")}, "ASCII"},
		{"a colon", []python.Index{withLogin("https://a.example/", "me:s3cret", "x")}, "colon"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := python.NewCredentials(tt.indexes...)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				return
			}
			if !errors.Is(err, python.ErrIndex) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want ErrIndex with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	c := credentials(t, parse(t, "https://me:s3cret@a.example/"), parse(t, "https://t0ken@b.example/"), parse(t, "https://c.example/"))
	if diff := cmp.Diff([]string{"s3cret", "t0ken"}, c.Secrets()); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}

func TestClose(t *testing.T) {
	c, err := python.NewCredentials(withLogin("https://a.example/", "me", "s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	path := variable(c.Env(), "NETRC")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "machine a.example login me password s3cret\n"; string(content) != want {
		t.Errorf("netrc %q, want %q", content, want)
	}
	if runtime.GOOS == "linux" && !strings.HasPrefix(path, fmt.Sprintf("/proc/%d/fd/", os.Getpid())) {
		t.Errorf("the netrc is at %s, not in memory", path)
	}
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		if _, err := f.WriteString("machine"); err == nil {
			t.Error("the netrc can be changed")
		}
		f.Close()
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), "s3cret") {
		t.Error("the netrc can be read after Close")
	}
	if s := c.Secrets(); len(s) > 0 {
		t.Error("there are secrets after Close")
	}
}

func TestHoldFile(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("TMP", tmp) // Windows
	path, closeFile, err := python.HoldFile([]byte("machine"))
	if err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "machine" {
		t.Errorf("content %q, error %v", content, err)
	}
	if runtime.GOOS != "windows" {
		for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
			if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, error %v, want %v", p, info.Mode(), err, want)
			}
		}
	}
	if err := closeFile(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

// logins are awkward in one way or another.
func logins() []python.Index {
	var all []python.Index
	add := func(username, password string) {
		all = append(all, withLogin(fmt.Sprintf("https://h%d.example/", len(all)), username, password))
	}
	add("me", "plain")
	for c := ' '; c <= '~'; c++ {
		add("me", string(c))
		add("me", "x"+string(c))
		add("me", string(c)+"x")
		add("me", "x"+string(c)+string(c)+"y")
		if c != ':' {
			add("m"+string(c)+"e", "x")
			add(string(c), "x")
		}
	}
	for _, p := range []string{
		`""`, `"x"`, `'x'`, `\\`, `\"`, `"\`, `\n`, "#", "# x", "x #y", "#unquoted", `"quoted`, "machine", "password", "default", "macdef",
		"  ", " x ", `a\ b`, `\" "\`, "%20", "${HOME}", "$HOME", "~/x", "../", "!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\"",
	} {
		add("me", p)
		if !strings.Contains(p, ":") {
			add(p, "x")
		}
	}
	add("token", "")
	add("", "token")
	add("to ken", "")
	add("", `to"k\en`)
	add("last", "plain")
	return all
}

// TestNetrc has every Python there is read the netrc.
func TestNetrc(t *testing.T) {
	var pythons []string
	for minor := 8; minor <= 20; minor++ {
		name := fmt.Sprintf("python3.%d", minor)
		if exec.Command(name, "-c", "").Run() == nil {
			pythons = append(pythons, name)
		}
	}
	if p := os.Getenv(pythonEnv); p != "" {
		pythons = append(pythons, p)
	}
	if len(pythons) == 0 {
		t.Skipf("set %s to a Python, or have python3.x in the path, to read a netrc with it", pythonEnv)
	}
	all := logins()
	// All in one file, each alone, and each between two others: what one needs
	// must not spoil the next.
	files := [][]python.Index{all}
	for i := range all {
		files = append(files, all[i:i+1], []python.Index{all[0], all[i], all[(i+7)%len(all)]})
	}
	var paths []string
	for _, indexes := range files {
		paths = append(paths, variable(credentials(t, indexes...).Env(), "NETRC"))
	}
	const script = `
import json, netrc, sys
read = [{h: [v[0] or "", v[2] or ""] for h, v in netrc.netrc(path).hosts.items()} for path in json.load(sys.stdin)]
json.dump({"old": sys.version_info < (3, 11), "read": read}, sys.stdout)`
	in, err := json.Marshal(paths)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pythons {
		t.Run(filepath.Base(name), func(t *testing.T) {
			cmd := exec.Command(name, "-c", script)
			cmd.Stdin = strings.NewReader(string(in))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Old  bool
				Read []map[string][2]string
			}
			if err := json.Unmarshal(out, &answer); err != nil {
				t.Fatal(err)
			}
			for i, indexes := range files {
				want := map[string][2]string{}
				for _, index := range indexes {
					user, password := index.Username.Reveal(), index.Password.Reveal()
					if answer.Old && (password == "" || strings.Contains(user+password, " ")) {
						continue // it has no way to say this
					}
					host := strings.TrimSuffix(strings.TrimPrefix(index.URL, "https://"), "/")
					want[host] = [2]string{user, password}
				}
				if diff := cmp.Diff(want, answer.Read[i]); diff != "" {
					content, _ := os.ReadFile(paths[i])
					t.Fatalf("read (-want +got):\n%s\nnetrc:\n%s", diff, content)
				}
			}
		})
	}
}

func credentials(tb testing.TB, indexes ...python.Index) *python.Credentials {
	tb.Helper()
	c, err := python.NewCredentials(indexes...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// variable returns the value of a variable.
func variable(env []string, name string) string {
	i := slices.IndexFunc(env, func(pair string) bool { return strings.HasPrefix(pair, name+"=") })
	if i < 0 {
		return ""
	}
	return env[i][len(name)+1:]
}
