package python

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/secrets"
)

// ErrIndex is matched by every error about an index or its credentials. No such
// error holds a user name, a password, or more of a URL than its host.
var ErrIndex = errors.New("python: package index")

// Index is an index of packages, in the sense of PEP 503.
type Index struct {
	// URL has no user name and no password. Its scheme is https, http or file.
	URL string
	// Username and Password are for HTTP's basic authentication; both empty for an
	// index that needs none. Tokens often come as a user name without a password,
	// so it is a secret, too.
	//
	// They consist of printable ASCII, and a user name has no colon: HTTP has no
	// way for control characters and colons, and pip and uv encode what is beyond
	// ASCII in two ways.
	Username, Password secrets.Value
}

// String returns the URL.
func (i Index) String() string { return i.URL }

// ParseIndex takes a URL apart: https://user:password@host/path, of which user
// and password may be missing. What is special in them is percent-encoded.
//
// A directory of wheels is not an index: pip and uv know it by PIP_FIND_LINKS
// and UV_FIND_LINKS. Errors match [ErrIndex].
func ParseIndex(url string) (Index, error) {
	scheme, authority, path, err := splitURL(url)
	if err != nil {
		return Index{}, err
	}
	at := strings.LastIndexByte(authority, '@')
	userinfo, host := authority[:max(at, 0)], authority[at+1:]
	// An unescaped slash in a password ends what is searched for it, and the
	// rest would count as path.
	if late := strings.IndexByte(path, '@'); at < 0 && late >= 0 && strings.Contains(authority+path[:late], ":") {
		return Index{}, fmt.Errorf("%w: a / in a user name or password has to be written as %%2F", ErrIndex)
	}
	username, password, _ := strings.Cut(userinfo, ":")
	index := Index{URL: scheme + "://" + strings.ToLower(host) + path}
	if index.Username, err = unescape(username); err != nil {
		return Index{}, err
	}
	if index.Password, err = unescape(password); err != nil {
		return Index{}, err
	}
	if _, err := index.check(); err != nil {
		return Index{}, err
	}
	return index, nil
}

// splitURL returns the parts of a URL that consists of what RFC 3986 allows. A
// query or a fragment makes no sense in an index, whose URL is the beginning of
// others.
func splitURL(url string) (scheme, authority, path string, err error) {
	scheme, rest, ok := strings.Cut(url, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case !ok || strings.ContainsAny(scheme, "/\\@"):
		return "", "", "", fmt.Errorf("%w: not a URL such as https://host/simple/ (a directory of wheels is no index, but for PIP_FIND_LINKS and UV_FIND_LINKS)", ErrIndex)
	case scheme != "https" && scheme != "http" && scheme != "file":
		return "", "", "", fmt.Errorf("%w: the scheme of its URL is not https, http or file", ErrIndex)
	case strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"<>\\^`{|}", r) }):
		return "", "", "", fmt.Errorf("%w: its URL has characters that have to be percent-encoded, or a ${NAME} that nobody has filled", ErrIndex)
	case strings.ContainsAny(rest, "?#"):
		return "", "", "", fmt.Errorf("%w: its URL has a ? or #, which has to be percent-encoded in a password and may not stand elsewhere", ErrIndex)
	}
	authority, path, ok = strings.Cut(rest, "/")
	if ok {
		path = "/" + path
	}
	return scheme, authority, path, nil
}

// unescape decodes a user name or a password.
func unescape(s string) (secrets.Value, error) {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return secrets.Value{}, errEscape()
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil { // it would quote a part of the secret
			return secrets.Value{}, errEscape()
		}
		b = append(b, byte(c))
		i += 2
	}
	return secrets.New(string(b)), nil
}

func errEscape() error {
	return fmt.Errorf("%w: a %% in a user name or password has to be written as %%25", ErrIndex)
}

// origin says where an index is.
type origin struct{ scheme, host, port string }

// check returns where a valid index is.
func (i Index) check() (origin, error) {
	scheme, authority, path, err := splitURL(i.URL)
	if err != nil {
		return origin{}, err
	}
	if strings.Contains(authority, "@") {
		return origin{}, fmt.Errorf("%w: its URL holds credentials, which belong to Username and Password", ErrIndex)
	}
	o, ipv6, err := parseAuthority(scheme, strings.ToLower(authority))
	if err != nil {
		return origin{}, err
	}
	if i.Username.IsZero() && i.Password.IsZero() {
		if o.scheme == "file" && path == "" {
			return origin{}, fmt.Errorf("%w: its file URL has no path", ErrIndex)
		}
		return o, nil
	}
	switch user := i.Username.Reveal(); {
	case o.scheme == "file":
		return origin{}, fmt.Errorf("%w: a file URL takes no user name and no password", ErrIndex)
	case ipv6:
		return origin{}, fmt.Errorf("%w: %q: with a user name or password it needs a name or an IPv4 address (netrc files do not know IPv6)", ErrIndex, o.host)
	case strings.Contains(user, ":"):
		return origin{}, fmt.Errorf("%w: %q: its user name has a colon, for which HTTP has no way", ErrIndex, o.host)
	case !printable(user) || !printable(i.Password.Reveal()):
		return origin{}, fmt.Errorf("%w: %q: its user name or password has characters beyond printable ASCII, which pip and uv send in different ways or not at all", ErrIndex, o.host)
	}
	return o, nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// parseAuthority parses host or host:port, in lower case. Its errors quote
// nothing: what is no host may be a piece of a password.
func parseAuthority(scheme, authority string) (o origin, ipv6 bool, err error) {
	o = origin{scheme: scheme, host: authority}
	if scheme == "file" {
		if authority != "" && authority != "localhost" {
			return origin{}, false, fmt.Errorf("%w: its file URL names another computer", ErrIndex)
		}
		return o, false, nil
	}
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		o.host, o.port = authority[:i], authority[i+1:]
		if _, err := strconv.ParseUint(o.port, 10, 16); err != nil {
			return origin{}, false, fmt.Errorf("%w: the port of its URL is not a number up to 65535", ErrIndex)
		}
	}
	name := o.host
	allowed := "-._"
	if ipv6 = strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]"); ipv6 {
		name, allowed = name[1:len(name)-1], ":."
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(allowed, r)
	}) {
		return origin{}, false, fmt.Errorf("%w: its URL has no valid host (beyond ASCII it is written as xn--...)", ErrIndex)
	}
	if o.port == "" || o.port == "443" && scheme == "https" || o.port == "80" && scheme == "http" {
		o.port = "default"
	}
	return o, ipv6, nil
}
