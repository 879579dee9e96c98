package python_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker/python"
)

func TestParseIndex(t *testing.T) {
	for _, tt := range []struct {
		in                          string
		wantURL, wantUser, wantPass string
	}{
		{"https://packages.example.com/simple/", "https://packages.example.com/simple/", "", ""},
		{"https://me:secret@packages.example.com/simple", "https://packages.example.com/simple", "me", "secret"},
		{"HTTPS://me:secret@Packages.Example.COM:8443/Simple/", "https://packages.example.com:8443/Simple/", "me", "secret"},
		{"https://t0ken@host/", "https://host/", "t0ken", ""},
		{"https://t0ken:@host/", "https://host/", "t0ken", ""},
		{"https://:t0ken@host/", "https://host/", "", "t0ken"},
		{"https://@host/", "https://host/", "", ""},
		{"https://me:a:b@host/", "https://host/", "me", "a:b"},
		{"https://me%40corp:p%40ss%2F%25%20%22%5c@host", "https://host", "me@corp", `p@ss/% "\`},
		{"https://me@corp:p@ss@host/", "https://host/", "me@corp", "p@ss"},
		{"https://me:a+b@host/", "https://host/", "me", "a+b"},
		{"https://pkgs.example.com/_packaging/feed@Local/pypi/simple/", "https://pkgs.example.com/_packaging/feed@Local/pypi/simple/", "", ""},
		{"https://me:p@pkgs.example.com:1/feed@Local/simple/", "https://pkgs.example.com:1/feed@Local/simple/", "me", "p"},
		{"http://127.0.0.1:8080/", "http://127.0.0.1:8080/", "", ""},
		{"http://[::1]:8080/", "http://[::1]:8080/", "", ""},
		{"file:///srv/simple", "file:///srv/simple", "", ""},
	} {
		got, err := python.ParseIndex(tt.in)
		if err != nil {
			t.Errorf("ParseIndex(%q): %v", tt.in, err)
			continue
		}
		want := []string{tt.wantURL, tt.wantUser, tt.wantPass}
		if diff := cmp.Diff(want, []string{got.URL, got.Username.Reveal(), got.Password.Reveal()}); diff != "" {
			t.Errorf("ParseIndex(%q) (-want +got):\n%s", tt.in, diff)
		}
	}
}

// Every text here has s3cret in it, where somebody may have put his password:
// errors do not.
func TestParseIndexErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "not a URL"},
		{"/srv/s3cret", "a directory of wheels is no index"},
		{`C:\s3cret`, "a directory of wheels is no index"},
		{"me:s3cret@host/simple", "not a URL"},
		{"ftp://me:s3cret@host/", "not https, http or file"},
		{"s3cret://host/", "not https, http or file"},
		{"https://me:s3cret@/simple", "no valid host"},
		{"https://me:s3cret@ho!st/simple", "no valid host"},
		{"https://me:s3cret@höst/simple", "percent-encoded"},
		{"https://me:s3cret@host:port/", "port"},
		{"https://me:s3cret@host:70000/", "port"},
		{"https://me:s3cret@host:+1/", "port"},
		{"https://me:s3c ret@host/", "percent-encoded"},
		{"https://me:${S3CRET}@host/", "${NAME}"},
		{"https://me:s3cret%@host/", "%25"},
		{"https://me:s3cret%2@host/", "%25"},
		{"https://me:s3cret%+1@host/", "%25"},
		{"https://me:s3cret/x@host/", "%2F"},
		{"https://me:1/s3cret@host/", "%2F"},
		{"https://me/x:s3cret@host/", "%2F"},
		{"https://me:s3cret#x@host/", "? or #"},
		{"https://me:s3cret?x@host/", "? or #"},
		{"https://host/?token=s3cret", "? or #"},
		{"https://me%3Ax:s3cret@host/", "colon"},
		{"https://me:s3cret%0A@host/", "ASCII"},
		{"https://me:s3cret%C3%BC@host/", "ASCII"},
		{"https://me:s3cret%FF@host/", "ASCII"},
		{"https://me:s3cret@[::1]:8080/", "IPv6"},
		{"file://me:s3cret@/srv", "file URL takes no"},
		{"file://s3cret/srv", "another computer"},
		{"file://", "no path"},
	} {
		got, err := python.ParseIndex(tt.in)
		if !errors.Is(err, python.ErrIndex) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseIndex(%q): error %v, want ErrIndex with %q", tt.in, err, tt.want)
			continue
		}
		if strings.Contains(strings.ToLower(err.Error()), "s3c") {
			t.Errorf("ParseIndex(%q): the error shows the password: %v", tt.in, err)
		}
		if got.URL != "" {
			t.Errorf("ParseIndex(%q) returned %q beside an error", tt.in, got.URL)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	for _, s := range []string{
		"https://me:secret@host:8080/simple/", "http://a%40b:c%2Fd@h", "file:///srv/simple", "https://[::1]/",
		"https://me:1/x@host/", "https://pkgs/_packaging/feed@Local/simple", "https://a@b:c@d@e/", "https://%", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		index, err := python.ParseIndex(s)
		if err != nil {
			if !errors.Is(err, python.ErrIndex) {
				t.Errorf("ParseIndex(%q): %v is no ErrIndex", s, err)
			}
			return
		}
		u, err := url.Parse(s)
		if err != nil {
			// What is after a user name without a port may be anything to us.
			if strings.Contains(err.Error(), "invalid userinfo") || strings.Contains(err.Error(), "invalid URL escape") {
				return
			}
			t.Fatalf("ParseIndex took %q; net/url does not: %v", s, err)
		}
		password, _ := u.User.Password()
		want := []string{u.Scheme, strings.ToLower(u.Host), u.EscapedPath(), u.User.Username(), password}
		bare, err := url.Parse(index.URL)
		if err != nil {
			t.Fatalf("ParseIndex(%q) gave %q: %v", s, index.URL, err)
		}
		got := []string{bare.Scheme, bare.Host, bare.EscapedPath(), index.Username.Reveal(), index.Password.Reveal()}
		if diff := cmp.Diff(want, got); diff != "" || bare.User != nil {
			t.Errorf("ParseIndex(%q) (-net/url +got):\n%s", s, diff)
		}
		again, err := python.ParseIndex(index.URL)
		if err != nil || again.URL != index.URL || !again.Username.IsZero() || !again.Password.IsZero() {
			t.Errorf("ParseIndex(%q) gave %q, which parses as %q, error %v", s, index.URL, again.URL, err)
		}
		if c, err := python.NewCredentials(index, index); err != nil {
			t.Errorf("NewCredentials with %q twice: %v", s, err)
		} else if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func parse(tb testing.TB, url string) python.Index {
	tb.Helper()
	index, err := python.ParseIndex(url)
	if err != nil {
		tb.Fatal(err)
	}
	return index
}

func withLogin(url, username, password string) python.Index {
	return python.Index{URL: url, Username: secrets.New(username), Password: secrets.New(password)}
}
