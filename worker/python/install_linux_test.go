package python_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/worker/python"
)

// These tests install packages from private indexes on loopback with the real
// pip and the real uv. Whenever one of their processes, also one that builds a
// package, asks the index for something, it is held until everything that
// others could see was searched for the password.

// installer is pip or uv.
type installer struct {
	name string
	argv []string // the packages follow
}

// installers returns those there are; for every other one a test is skipped.
func installers(t *testing.T, test func(t *testing.T, i installer)) {
	py := os.Getenv(pythonEnv)
	if py == "" {
		t.Skipf("set %s to a Python with pip and uv to install with them", pythonEnv)
	}
	uv := filepath.Join(filepath.Dir(py), "uv")
	for _, i := range []installer{
		{"pip", []string{py, "-m", "pip", "install", "-vvv", "--target"}},
		{"uv", []string{uv, "pip", "install", "-vv", "--python", py, "--target"}},
	} {
		t.Run(i.name, func(t *testing.T) {
			if i.name == "uv" {
				if _, err := os.Stat(uv); err != nil {
					t.Skipf("%s has no uv beside it: run scripts/test-setup", py)
				}
			}
			test(t, i)
		})
	}
}

// canary is a password, or a user name, to be searched for. What is awkward in it
// is around a core that looks the same in most encodings.
type canary struct {
	core, value string
	forms       map[string][]byte // in which the core may show
}

func newCanary(before, after string) canary {
	b := make([]byte, 12)
	rand.Read(b) //nolint:errcheck // it never fails
	core := "c4nary" + hex.EncodeToString(b)
	c := canary{core, before + core + after, map[string][]byte{
		"raw": []byte(core),
		"hex": []byte(hex.EncodeToString([]byte(core))),
		"HEX": []byte(strings.ToUpper(hex.EncodeToString([]byte(core)))),
	}}
	for offset := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.URLEncoding} {
			text := encoding.EncodeToString([]byte(strings.Repeat("x", offset) + core))
			// What depends on nothing but the core.
			c.forms[fmt.Sprintf("%s at %d", name, offset)] = []byte(text[(offset*8+5)/6 : (offset+len(core))*8/6])
		}
	}
	return c
}

// sightings says where something was seen: a kind of place, and there a form.
type sightings map[string]bool

func (s sightings) search(place string, content []byte, c canary) {
	for form, b := range c.forms {
		if bytes.Contains(content, b) {
			s[place+": "+form] = true
		}
	}
}

func (s sightings) in(place string) bool {
	for at := range s {
		if strings.HasPrefix(at, place+": ") {
			return true
		}
	}
	return false
}

func (s sightings) String() string {
	var all []string
	for at := range s {
		all = append(all, at)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// bench is where packages are installed: a home of somebody who has set up
// everything for other indexes, or against us.
type bench struct {
	t    *testing.T
	root string
	// evil must not be asked for anything.
	evil *index
	// look is searched for; others are the arguments of processes, a string each.
	look []canary

	mu     sync.Mutex
	seen   sightings
	others []string
}

func newBench(t *testing.T, netrc string, look ...canary) *bench {
	b := &bench{t: t, root: t.TempDir(), look: look, seen: sightings{}}
	b.evil = newIndex(t, &index{login: [2]string{"nobody", "nobody"}})
	evil := b.evil.url("/simple/")
	for name, content := range map[string]string{
		"home/.netrc":               netrc,
		"home/.config/pip/pip.conf": "[global]\nindex-url = " + evil + "\nextra-index-url = " + evil + "\nfind-links = " + evil + "\n",
		"home/.pip/pip.conf":        "[global]\nindex-url = " + evil + "\n",
		"home/.config/uv/uv.toml":   "[[index]]\nurl = \"" + evil + "\"\n",
		"work/uv.toml":              "[[index]]\nurl = \"" + evil + "\"\n",
		"bin/keyring":               "#!/bin/sh\necho \"$@\" >>\"$HOME\"/keyring-was-asked\necho evil\n",
		"tmp/x":                     "",
	} {
		b.write(name, content, 0o700)
	}
	return b
}

func (b *bench) write(name, content string, mode fs.FileMode) {
	b.t.Helper()
	path := filepath.Join(b.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		b.t.Fatal(err)
	}
}

// store does what "uv auth login" does.
func (b *bench) store(i *index, username, password string) {
	b.t.Helper()
	b.write("home/.local/share/uv/credentials/credentials.toml",
		fmt.Sprintf("[[credential]]\nservice = %q\nscheme = \"basic\"\nusername = %q\npassword = %q\n", i.URL, username, password), 0o600)
}

// keyringAsked reports whether somebody has asked the keyring.
func (b *bench) keyringAsked() bool {
	_, err := os.Stat(filepath.Join(b.root, "home/keyring-was-asked"))
	return err == nil
}

// environ is what processes have before our variables.
func (b *bench) environ() []string {
	evil := b.evil.url("/simple/")
	return []string{
		"PATH=" + filepath.Join(b.root, "bin") + ":/usr/bin:/bin", "HOME=" + filepath.Join(b.root, "home"), "TMPDIR=" + filepath.Join(b.root, "tmp"), "LANG=C.UTF-8",
		"PIP_INDEX_URL=" + evil, "PIP_EXTRA_INDEX_URL=" + evil, "PIP_KEYRING_PROVIDER=subprocess", "UV_KEYRING_PROVIDER=subprocess",
		"UV_INDEX=" + evil, "UV_DEFAULT_INDEX=" + evil, "UV_INDEX_URL=" + evil, "UV_EXTRA_INDEX_URL=" + evil,
	}
}

// scan searches all that other processes and users can see while packages are
// installed.
func (b *bench) scan() {
	b.mu.Lock()
	defer b.mu.Unlock()
	search := func(place string, content []byte) {
		for _, c := range b.look {
			b.seen.search(place, content, c)
		}
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		b.t.Error(err)
	}
	for _, p := range processes {
		if strings.Trim(p.Name(), "0123456789") != "" {
			continue
		}
		for _, place := range []string{"cmdline", "environ"} {
			// Processes end, and some are not ours.
			content, _ := os.ReadFile(filepath.Join("/proc", p.Name(), place))
			search(place, content)
			if place == "cmdline" {
				b.others = append(b.others, string(bytes.ReplaceAll(content, []byte{0}, []byte{' '})))
			}
		}
	}
	err = filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // they come and go
		}
		content, _ := os.ReadFile(path)
		search("files", append(content, path...))
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
}

// install runs an installer, and returns what it printed.
func (b *bench) install(i installer, env []string, packages ...string) (output string, err error) {
	b.t.Helper()
	argv := append(slices.Clone(i.argv), filepath.Join(b.root, "target"))
	argv = append(argv, packages...)
	cmd := exec.CommandContext(b.t.Context(), argv[0], argv[1:]...)
	cmd.Dir = filepath.Join(b.root, "work")
	cmd.Env = append(b.environ(), env...)
	out, err := cmd.CombinedOutput()
	b.scan()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.look {
		b.seen.search("output", out, c)
	}
	return string(out), err
}

// index is a private index, on loopback.
type index struct {
	*httptest.Server
	tls      bool
	ca       []byte            // who has signed its certificate, in PEM
	files    map[string][]byte // by project, "/" and file name
	moved    string            // where files are, if not here
	login    [2]string         // what it takes, if anything
	redirect bool              // moved files are linked here, and redirected
	astray   bool              // everything is redirected to where files are
	asked    func()            // called by every request, if not nil

	mu  sync.Mutex
	got []string // path and login of every request
}

// newIndex starts an index. It does not change any more.
func newIndex(t *testing.T, i *index) *index {
	i.Server = httptest.NewUnstartedServer(i)
	if i.tls {
		i.startTLS(t)
	} else {
		i.Start()
	}
	t.Cleanup(i.Close)
	return i
}

// startTLS starts it as localhost: some versions of pip know no IP addresses in
// certificates. uv takes no certificate that has signed itself.
func (i *index) startTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(cert, by *x509.Certificate) *x509.Certificate {
		cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, cert, by, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err = x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca = sign(ca, ca)
	leaf := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca)
	i.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	i.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
	i.StartTLS()
	i.URL = strings.Replace(i.URL, "127.0.0.1", "localhost", 1)
}

func (i *index) url(path string) string { return i.URL + path }

// withUserinfo returns the URL of the index as people have it: with all in it.
func (i *index) withUserinfo() string {
	return strings.Replace(i.url("/simple/"), "://", "://"+url.UserPassword(i.login[0], i.login[1]).String()+"@", 1)
}

func (i *index) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	i.mu.Lock()
	i.got = append(i.got, fmt.Sprintf("%s %q", r.URL.Path, []string{user, password}))
	i.mu.Unlock()
	if i.asked != nil {
		i.asked()
	}
	if r.URL.Path == "/asked" { // by a build
		return
	}
	if i.astray {
		http.Redirect(w, r, i.moved+r.URL.Path, http.StatusFound)
		return
	}
	if i.login != [2]string{} && i.login != [2]string{user, password} {
		w.Header().Set("WWW-Authenticate", `Basic realm="packages"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	// As some indexes do; caches keep the header that is named here.
	w.Header().Set("Vary", "Authorization")
	w.Header().Set("Cache-Control", "max-age=600")
	path := strings.TrimPrefix(r.URL.Path, "/")
	if content, ok := i.files[strings.TrimPrefix(path, "files/")]; ok && i.moved == "" {
		w.Write(content) //nolint:errcheck // the client notices
		return
	}
	if name, ok := strings.CutPrefix(path, "files/"); ok && i.moved != "" {
		http.Redirect(w, r, i.moved+"/files/"+name, http.StatusFound)
		return
	}
	project := strings.TrimSuffix(strings.TrimPrefix(path, "simple/"), "/")
	var page strings.Builder
	for name, content := range i.files {
		if dir, file := filepath.Split(name); dir == project+"/" {
			base := "/files/"
			if i.moved != "" && !i.redirect {
				base = i.moved + base
			}
			fmt.Fprintf(&page, "<a href=\"%s%s#sha256=%x\">%s</a>\n", base, name, sha256.Sum256(content), file)
		}
	}
	if page.Len() == 0 {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, "<!DOCTYPE html><html><body>%s</body></html>", page.String())
}

// requests returns the requests for paths with a prefix.
func (i *index) requests(prefix string) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(i.got), func(s string) bool { return !strings.HasPrefix(s, prefix) })
}

// wheel makes a package of one module.
func wheel(t *testing.T, name, module string) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	info := name + "-1.0.dist-info/"
	for _, f := range [][2]string{
		{name + ".py", module},
		{info + "METADATA", "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", name + ".py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	} {
		w, err := z.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(f[1])) //nolint:errcheck // to memory
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// backend builds wheels, and asks somebody while it does.
const backend = `
import os, urllib.request, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(os.environ["TEST_ASK"]).read()
    info = "canary_app-1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(wheel_directory, "canary_app-1.0-py3-none-any.whl"), "w") as z:
        z.writestr("canary_app.py", "import canary_lib\n")
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: canary-app\nVersion: 1.0\nRequires-Dist: canary-lib\n")
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(info + "RECORD", "".join(n + ",,\n" for n in z.namelist()) + info + "RECORD,,\n")
    return "canary_app-1.0-py3-none-any.whl"
`

// sdist makes a package that takes the backend to build.
func sdist(t *testing.T) []byte {
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	w := tar.NewWriter(g)
	for _, f := range [][2]string{
		{"PKG-INFO", "Metadata-Version: 2.1\nName: canary-app\nVersion: 1.0\n"},
		{"pyproject.toml", "[build-system]\nrequires = [\"canary-backend\"]\nbuild-backend = \"canary_backend\"\n"},
	} {
		if err := w.WriteHeader(&tar.Header{Name: "canary_app-1.0/" + f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(f[1])) //nolint:errcheck // to memory
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packages(t *testing.T) map[string][]byte {
	return map[string][]byte{
		"canary-app/canary_app-1.0.tar.gz":                   sdist(t),
		"canary-backend/canary_backend-1.0-py3-none-any.whl": wheel(t, "canary_backend", backend),
		"canary-lib/canary_lib-1.0-py3-none-any.whl":         wheel(t, "canary_lib", ""),
	}
}

// TestInstall installs a package that has to be built, with what it takes to
// build and to run: all from a private index.
func TestInstall(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		secret := newCanary(`"p4 \ #`, ` ss\"#'%@/?&${HOME}`)
		password, token := [2]string{`me@c "o\r p`, secret.value}, [2]string{secret.value, ""}
		for _, tt := range []struct {
			name  string
			login [2]string
			// env returns variables, and may set up what they refer to.
			env  func(t *testing.T, i *index) []string
			want map[string][]string // by installer, places in which the secret is seen
		}{
			{"password", password, netrcOnly, nil},
			// uv logs user names, at its highest level.
			{"token", token, netrcOnly, map[string][]string{"uv": {"output"}}},
			// And so it is otherwise: the search finds what there is.
			{"userinfo", password, userinfo, map[string][]string{"pip": {"cmdline", "environ"}, "uv": {"environ", "files"}}},
			{"cache", password, withCache, map[string][]string{"pip": {"files"}}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBench(t, "default login evil password evil\n", secret)
				// With TLS, without which pip has no cache.
				i := newIndex(t, &index{tls: true, files: packages(t), login: tt.login, asked: b.scan})
				b.store(i, "stored", "stored")
				ca := filepath.Join(b.root, "ca.pem")
				b.write("ca.pem", string(i.ca), 0o600)
				env := append(tt.env(t, i), "TEST_ASK="+i.url("/asked"), "PIP_CERT="+ca, "SSL_CERT_FILE="+ca)
				out, err := b.install(with, env, "canary-app")
				if err != nil {
					t.Fatalf("%v\n%s\nrequests: %s", err, out, i.requests(""))
				}
				for _, module := range []string{"canary_app.py", "canary_lib.py"} {
					if _, err := os.Stat(filepath.Join(b.root, "target", module)); err != nil {
						t.Error(err)
					}
				}
				if n := len(b.evil.requests("")); n > 0 {
					t.Errorf("another index was asked: %s", b.evil.requests(""))
				}
				for _, r := range i.requests("") {
					if strings.Contains(r, "evil") || strings.Contains(r, "stored") {
						t.Errorf("credentials that are not ours were used: %s", r)
					}
				}
				for _, place := range []string{"cmdline", "environ", "files", "output"} {
					if want := slices.Contains(tt.want[with.name], place); b.seen.in(place) != want {
						t.Errorf("the secret is in %s: %v, want %v; seen: %s", place, !want, want, b.seen)
					}
				}
				// Were the processes there that were to be searched?
				if len(i.requests("/asked")) != 1 {
					t.Error("nothing was built")
				}
				inner := func(s string) bool { return strings.Contains(s, " install ") && strings.Contains(s, " -i ") }
				if with.name == "pip" && !slices.ContainsFunc(b.others, inner) {
					t.Error("no other pip was started for the build")
				}
			})
		}
	})
}

func netrcOnly(t *testing.T, i *index) []string {
	return credentials(t, withLogin(i.url("/simple/"), i.login[0], i.login[1])).Env()
}

func userinfo(t *testing.T, i *index) []string {
	return append(credentials(t).Env(), "PIP_INDEX_URL="+i.withUserinfo(), "PIP_EXTRA_INDEX_URL=",
		"UV_DEFAULT_INDEX="+i.withUserinfo(), "UV_INDEX=", "UV_INDEX_URL=", "UV_EXTRA_INDEX_URL=")
}

// withCache is with pip's cache; a 0 would not turn it on.
func withCache(t *testing.T, i *index) []string {
	return append(netrcOnly(t, i), "PIP_NO_CACHE_DIR=")
}

// TestInstallRefused has indexes that do not take what they get.
func TestInstallRefused(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		for _, tt := range []struct{ name, password string }{{"wrong password", "wr0ng"}, {"no password", ""}} {
			t.Run(tt.name, func(t *testing.T) {
				right, wrong := newCanary("", ""), newCanary(tt.password, "")
				// What would be right is there, but not for us.
				b := newBench(t, "machine 127.0.0.1 login me password "+right.value+"\n", wrong)
				i := newIndex(t, &index{files: packages(t), login: [2]string{"me", right.value}, asked: b.scan})
				b.store(i, "me", right.value)
				ours := python.Index{URL: i.url("/simple/")}
				if tt.password != "" {
					ours = withLogin(ours.URL, "me", wrong.value)
				}
				env := []string{"UV_INDEX_URL=" + i.withUserinfo(), "UV_EXTRA_INDEX_URL=" + i.withUserinfo(), "PIP_EXTRA_INDEX_URL=" + i.withUserinfo(), "UV_HTTP_RETRIES=0"}
				out, err := b.install(with, append(env, credentials(t, ours).Env()...), "canary-lib")
				if err == nil {
					t.Errorf("it was installed")
				}
				if !strings.Contains(out, "401") {
					t.Errorf("the output does not tell why:\n%s", out)
				}
				if strings.Contains(out, "User for") || strings.Contains(out, "Password:") {
					t.Errorf("somebody was asked:\n%s", out)
				}
				if len(b.seen) > 0 {
					t.Errorf("the password is seen in %s", b.seen)
				}
				if r := strings.Join(i.requests(""), "\n"); strings.Contains(r, right.core) || tt.password != "" && !strings.Contains(r, wrong.core) {
					t.Errorf("not only our credentials were used:\n%s", r)
				}
				if b.keyringAsked() {
					t.Error("the keyring was asked")
				}
				if n := len(b.evil.requests("")); n > 0 {
					t.Errorf("another index was asked: %s", b.evil.requests(""))
				}
			})
		}
	})
}

// TestInstallElsewhere has an index whose files are on another host: that does
// not get the index's credentials, but its own if there are.
func TestInstallElsewhere(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		for _, redirect := range []bool{true, false} {
			for _, own := range []bool{true, false} {
				t.Run(fmt.Sprintf("redirect=%v,own=%v", redirect, own), func(t *testing.T) {
					secret, other := newCanary("", ""), newCanary("", "")
					b := newBench(t, "", secret, other)
					far := &index{files: packages(t)}
					if own {
						far.login = [2]string{"you", other.value}
					}
					newIndex(t, far)
					farURL := strings.Replace(far.URL, "127.0.0.1", "localhost", 1)
					near := newIndex(t, &index{
						files: far.files, login: [2]string{"me", secret.value}, moved: farURL, redirect: redirect, asked: b.scan,
					})
					indexes := []python.Index{withLogin(near.url("/simple/"), "me", secret.value)}
					if own {
						indexes = append(indexes, withLogin(farURL+"/simple/", "you", other.value))
					}
					out, err := b.install(with, credentials(t, indexes...).Env(), "canary-lib")
					if err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
					got := strings.Join(far.requests("/files/"), "\n")
					if got == "" || strings.Contains(got, secret.core) || strings.Contains(got, other.core) != own {
						t.Errorf("requests to the other host:\n%s", got)
					}
					if len(b.seen) > 0 {
						t.Errorf("passwords are seen in %s", b.seen)
					}
				})
			}
		}
	})
}

// TestInstallLedAstray has an index that redirects to a URL which begins like
// that of another one, so that it gets what is for the other (CVE-2024-47081).
func TestInstallLedAstray(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		if with.name == "pip" {
			const fixed = "from pip._vendor import requests; print(tuple(map(int, requests.__version__.split('.'))) >= (2, 32, 4))"
			out, err := exec.Command(with.argv[0], "-c", fixed).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if string(out) != "True\n" {
				t.Skip("this pip has a version of requests that can be led astray; docs/indexes.md says so")
			}
		}
		secret := newCanary("", "")
		b := newBench(t, "")
		// Both want some login, so that uv gives what it has.
		far := newIndex(t, &index{login: [2]string{"nobody", "nobody"}})
		near := newIndex(t, &index{moved: strings.Replace(far.URL, "://", "://localhost:@", 1), astray: true})
		c := credentials(t, python.Index{URL: near.url("/simple/")}, withLogin("http://localhost:9/simple/", "me", secret.value))
		if _, err := b.install(with, append(c.Env(), "PIP_RETRIES=0", "UV_HTTP_RETRIES=0"), "canary-lib"); err == nil {
			t.Error("it was installed")
		}
		if got := strings.Join(far.requests(""), "\n"); got == "" || strings.Contains(got, secret.core) {
			t.Errorf("requests to the wrong index:\n%s", got)
		}
	})
}

// TestInstallOrder has two indexes with the same package.
func TestInstallOrder(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		b := newBench(t, "")
		first, second := newIndex(t, &index{files: packages(t)}), newIndex(t, &index{files: packages(t)})
		c := credentials(t, python.Index{URL: first.url("/simple/")}, python.Index{URL: second.url("/simple/")})
		if out, err := b.install(with, c.Env(), "canary-lib"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := first.requests("/simple/canary-lib/"); len(got) == 0 {
			t.Error("the first index was not asked")
		}
		// pip has no order; that is why the documentation warns.
		if got := second.requests("/simple/canary-lib/"); len(got) > 0 != (with.name == "pip") {
			t.Errorf("requests to the second index: %s", got)
		}
	})
}

// TestHostileHome makes sure that the home of the other tests has an effect.
func TestHostileHome(t *testing.T) {
	installers(t, func(t *testing.T, with installer) {
		run := func(netrc string, env ...string) (b *bench, requests string) {
			b = newBench(t, netrc)
			b.store(b.evil, "stored", "stored")
			out, err := b.install(with, append(env, "PIP_NO_INPUT=1", "UV_HTTP_RETRIES=0"), "canary-lib")
			if err == nil {
				t.Errorf("it was installed")
			}
			requests = strings.Join(b.evil.requests("/simple/canary-lib/"), "\n")
			if requests == "" {
				t.Errorf("the other index was not asked:\n%s", out)
			}
			return b, requests
		}
		fromFiles := []string{"PIP_INDEX_URL=", "PIP_EXTRA_INDEX_URL=", "UV_INDEX=", "UV_DEFAULT_INDEX=", "UV_INDEX_URL=", "UV_EXTRA_INDEX_URL="}
		if _, got := run("machine 127.0.0.1 login evil password evil\n", fromFiles...); !strings.Contains(got, `"evil" "evil"`) {
			t.Errorf("~/.netrc was not used: %s", got)
		}
		if _, got := run(""); with.name == "uv" && !strings.Contains(got, `"stored" "stored"`) {
			t.Errorf("stored credentials were not used: %s", got)
		}
		// These versions ask it only about a user whom they know.
		named := newIndex(t, &index{login: [2]string{"me", "evil"}})
		url := strings.Replace(named.url("/simple/"), "://", "://me@", 1)
		if b, _ := run("", "PIP_INDEX_URL="+url, "UV_INDEX="+url); !b.keyringAsked() {
			t.Errorf("the keyring was not asked")
		}
	})
}
