package python

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// Credentials let pip and uv use indexes without a secret in URLs.
//
// They are in a netrc that only processes of the same user can read. On Linux it
// is in memory, a memfd of this process, which [Credentials.Env] names as
// /proc/<pid>/fd/<n>: it ends with this process, however that ends. Elsewhere,
// and where /proc cannot be read, it is a file of mode 0600 in a directory of its
// own for temporary files; a process that is killed leaves it behind.
type Credentials struct {
	env     []string
	secrets []string
	close   func() error
}

// NewCredentials prepares the credentials of indexes. Call Close once the
// processes that use them have ended.
//
// A netrc has one user name and password for a host, whatever the port, scheme
// and path. Indexes of one host with different ones are refused, and so are
// those of which one needs none, unless it is the same server: it would get what
// is for the other. Errors match [ErrIndex], but for those of the system.
func NewCredentials(indexes ...Index) (*Credentials, error) {
	type login struct {
		origin
		index Index
	}
	var (
		c       = &Credentials{close: func() error { return nil }}
		urls    []string
		logins  []login
		entries []entry
	)
	for _, index := range indexes {
		o, err := index.check()
		if err != nil {
			return nil, err
		}
		urls = append(urls, index.URL)
		l := login{o, index}
		for _, other := range logins {
			same := index.Username.Equal(other.index.Username) && index.Password.Equal(other.index.Password)
			if o.host == other.host && !same && (o != other.origin || !l.index.open() && !other.index.open()) {
				return nil, fmt.Errorf("%w: %q: two indexes of this host have different credentials; pip and uv know only one for a host (give one of them another name in DNS, or one account for both)", ErrIndex, o.host)
			}
		}
		logins = append(logins, l)
		e := entry{o.host, index.Username.Reveal(), index.Password.Reveal()}
		if index.open() || slices.Contains(entries, e) {
			continue
		}
		entries = append(entries, e)
		if e.password != "" {
			c.secrets = append(c.secrets, e.password)
		} else {
			c.secrets = append(c.secrets, e.username)
		}
	}
	path := os.DevNull
	if len(entries) > 0 {
		var err error
		content := netrc(entries)
		path, c.close, err = hold(content)
		clear(content)
		if err != nil {
			return nil, fmt.Errorf("python: keep the netrc of package indexes: %w", err)
		}
	}
	c.close = sync.OnceValue(c.close)
	c.env = environment(path, urls)
	return c, nil
}

// open reports whether an index needs no credentials.
func (i Index) open() bool { return i.Username.IsZero() && i.Password.IsZero() }

// Env returns variables for pip and uv, as "NAME=value", none of them secret. They
// go behind those that a process would have otherwise, and replace them where
// they have the same names.
//
// With them pip and uv use the given indexes and credentials, and no others:
// neither configuration files, such as pip.conf and uv.toml, nor ~/.netrc, a
// keyring or what "uv auth login" has stored count, and nobody is asked for a
// password. Options for pip and uv that were in those files can be given as
// variables, such as PIP_CERT. Directories of wheels, in PIP_FIND_LINKS and
// UV_FIND_LINKS, stay as they are. Without any index the variables do not say
// where packages come from.
//
// uv asks the indexes in their order, and takes the first that knows a package.
// pip takes the best version that any of them has: where somebody may put a
// package of the same name on a public one, use only one index, or uv.
//
// pip keeps no cache, since its cache holds the credentials where an index sends
// "Vary: Authorization".
func (c *Credentials) Env() []string { return slices.Clone(c.env) }

func environment(netrc string, urls []string) []string {
	env := []string{
		"NETRC=" + netrc,
		"PIP_CONFIG_FILE=" + os.DevNull, // pip then reads no other, either
		"PIP_NO_INPUT=1",
		"PIP_KEYRING_PROVIDER=disabled",
		"PIP_NO_CACHE_DIR=1",
		"PIP_DISABLE_PIP_VERSION_CHECK=1",
		"UV_CONFIG_FILE=" + os.DevNull, // empty, and uv then reads no other
		"UV_KEYRING_PROVIDER=disabled",
		"UV_CREDENTIALS_DIR=" + os.DevNull, // nothing can be in there
	}
	if len(urls) == 0 {
		return env
	}
	last := len(urls) - 1
	return append(env,
		"PIP_INDEX_URL="+urls[0],
		"PIP_EXTRA_INDEX_URL="+strings.Join(urls[1:], " "),
		// uv asks the default one last.
		"UV_INDEX="+strings.Join(urls[:last], " "),
		"UV_DEFAULT_INDEX="+urls[last],
		// The old names still count beside the new ones, also their credentials.
		"UV_INDEX_URL=",
		"UV_EXTRA_INDEX_URL=",
	)
}

// Secrets returns the values that must not be shown, for a [secrets.Redactor]:
// the passwords, and the user names that have none.
//
// [secrets.Redactor]: https://pkg.go.dev/github.com/osiris-pipelines/remote/secrets#Redactor
func (c *Credentials) Secrets() []string { return slices.Clone(c.secrets) }

// Close forgets the credentials. Later calls do nothing.
func (c *Credentials) Close() error {
	err := c.close()
	c.secrets = nil
	return err
}

// holdFile keeps content in a temporary file.
func holdFile(content []byte) (path string, closeFile func() error, err error) {
	dir, err := os.MkdirTemp("", "netrc-") // mode 0700
	if err != nil {
		return "", nil, err
	}
	path = dir + string(os.PathSeparator) + "netrc"
	if err := os.WriteFile(path, content, 0o600); err != nil {
		os.RemoveAll(dir) //nolint:errcheck // the first error says why
		return "", nil, err
	}
	return path, func() error { return os.RemoveAll(dir) }, nil
}
