package e2b

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"
)

// Config is what a client is made from. An empty field takes its value from
// the environment variable that its comment names, and then the default.
type Config struct {
	APIKey     string `json:"-"` // E2B_API_KEY; required. Made at https://e2b.dev/dashboard
	Domain     string // E2B_DOMAIN; default "e2b.app"
	APIURL     string // E2B_API_URL; default "https://api." and the domain
	SandboxURL string // E2B_SANDBOX_URL; default: by the domain. One URL for all sandboxes, which are told apart by header

	// (Where APIURL leads away from E2B's cloud, Domain or SandboxURL must be
	// set, too, or the server must name a domain: nothing is sent to sandboxes
	// of another deployment.)

	// RequestTimeout bounds one control-plane call with all its retries, and
	// the wait for the first answer of any other. Zero means 60 s, as in the
	// official SDKs.
	RequestTimeout time.Duration

	// Retries is how often a call that failed is made again, where that is
	// safe. Zero means 4, negative none. The first wait is up to 100 ms, the
	// others longer, or what the server asks for.
	Retries int

	// MaxSandboxes is how many sandboxes that this client has made may run at
	// once, and CreateRate how many it creates in a second, as 0.5; zero means
	// no limit. Whoever shares an account sets both to his part of what the
	// account may have. [Client.CreateSandbox] waits for its turn, in the order
	// of the calls. A sandbox counts until it is killed or paused by this
	// client, is found to be gone, or its time is over as this client set it.
	MaxSandboxes int
	CreateRate   float64

	// CreateWait bounds the wait of one create for its turn: by the two fields
	// above, when E2B answers that there are too many requests, and when the
	// account has as many sandboxes as it may while some of them are this
	// client's. (A full account of others' sandboxes is an error at once.) Zero
	// means 5 minutes.
	CreateWait time.Duration

	// Transport carries all requests, for tests and unusual networks. Nil
	// means transports of the client's own, which [Client.Close] closes.
	Transport http.RoundTripper

	// Logger gets warnings, and every request at debug level. Nil means none,
	// unless E2B_DEBUG is "true": then all goes to slog.Default at info level.
	// (The official SDKs give that variable another meaning, a sandbox on
	// localhost; set E2B_API_URL and E2B_SANDBOX_URL for that.)
	Logger *slog.Logger

	// UserAgent is put before this library's own.
	UserAgent string
}

const (
	defaultDomain         = "e2b.app"
	defaultRequestTimeout = 60 * time.Second
	defaultRetries        = 4
)

// keyPattern is that of the official SDKs. E2B_VALIDATE_API_KEY=false turns
// the check off, as it does there.
const keyPattern = `^e2b_[0-9a-f]+$`

// String says where the configuration leads, and leaves out the key.
func (c Config) String() string {
	return fmt.Sprintf("E2B at %s (key set: %t)", cmp.Or(c.APIURL, c.Domain, defaultDomain), c.APIKey != "")
}

// GoString is String: the key must not get into a log by %#v either.
func (c Config) GoString() string { return c.String() }

// fromEnvironment fills what is empty.
func (c Config) fromEnvironment() Config {
	set := func(field *string, names string) {
		if *field == "" {
			*field = strings.TrimSpace(os.Getenv(names))
		}
	}
	set(&c.APIKey, "E2B_API_KEY")
	set(&c.Domain, "E2B_DOMAIN")
	set(&c.APIURL, "E2B_API_URL")
	set(&c.SandboxURL, "E2B_SANDBOX_URL")
	if c.Domain == "" && !c.elsewhere() {
		c.Domain = defaultDomain
	}
	if c.APIURL == "" {
		c.APIURL = "https://api." + c.Domain
	}
	if c.CreateWait == 0 {
		c.CreateWait = defaultCreateWait
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultRequestTimeout
	}
	switch {
	case c.Retries == 0:
		c.Retries = defaultRetries
	case c.Retries < 0:
		c.Retries = 0
	}
	if c.Logger == nil && os.Getenv("E2B_DEBUG") == "true" {
		c.Logger = slog.New(&atLeastInfo{slog.Default().Handler()})
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// elsewhere reports whether the API is named, and not that of E2B's cloud, whose
// domain then says nothing about where sandboxes are.
func (c Config) elsewhere() bool {
	u, err := url.Parse(c.APIURL)
	if c.APIURL == "" || err != nil {
		return false
	}
	host := u.Hostname()
	return host != defaultDomain && !strings.HasSuffix(host, "."+defaultDomain)
}

// validate looks at the configuration, of which given is what the caller set.
func (c Config) validate(given Config) error {
	if c.APIKey == "" {
		return fmt.Errorf("e2b: %w: there is no API key; set E2B_API_KEY or Config.APIKey, keys are made at https://e2b.dev/dashboard", ErrAuthentication)
	}
	if os.Getenv("E2B_VALIDATE_API_KEY") != "false" && !regexp.MustCompile(keyPattern).MatchString(c.APIKey) {
		return fmt.Errorf("e2b: %w: the API key is not \"e2b_\" and hexadecimal digits; check E2B_API_KEY or Config.APIKey, or set E2B_VALIDATE_API_KEY=false for a server with other keys", ErrAuthentication)
	}
	if strings.ContainsAny(c.Domain, "/@? ") {
		return fmt.Errorf("e2b: %w: the domain %q is not a host name; check %s", ErrInvalid, c.Domain, origin(given.Domain, "Domain", "E2B_DOMAIN"))
	}
	if fault := urlFault(c.APIURL); fault != "" {
		return fmt.Errorf("e2b: %w: %s %s; it should be like https://api.e2b.app", ErrInvalid, origin(given.APIURL, "APIURL", "E2B_API_URL"), fault)
	}
	if fault := urlFault(c.SandboxURL); c.SandboxURL != "" && fault != "" {
		return fmt.Errorf("e2b: %w: %s %s; it should be like https://sandbox.e2b.app", ErrInvalid, origin(given.SandboxURL, "SandboxURL", "E2B_SANDBOX_URL"), fault)
	}
	if c.RequestTimeout < 0 {
		return fmt.Errorf("e2b: %w: Config.RequestTimeout is %s", ErrInvalid, c.RequestTimeout)
	}
	if c.MaxSandboxes < 0 || !(c.CreateRate >= 0) || c.CreateWait < 0 {
		return fmt.Errorf("e2b: %w: Config.MaxSandboxes is %d, CreateRate %g and CreateWait %s; none may be negative", ErrInvalid, c.MaxSandboxes, c.CreateRate, c.CreateWait)
	}
	return nil
}

// origin names where a value was set.
func origin(given, field, variable string) string {
	if given != "" {
		return "Config." + field
	}
	return variable
}

// urlFault says what is wrong with a URL, without quoting what may be secret
// in it, or nothing.
func urlFault(value string) string {
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return "is not a URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "does not begin with http:// or https://"
	case u.Host == "":
		return "has no host"
	case u.User != nil:
		return "has a user"
	case u.RawQuery != "" || u.Fragment != "":
		return "has a query or a fragment"
	}
	return ""
}

// storageFault says what is wrong with a URL that a server has named, or
// nothing. It has a query, its signature, which is not quoted.
func storageFault(value string) string {
	u, err := url.Parse(value)
	switch {
	case value == "":
		return "is missing"
	case err != nil:
		return "is not a URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "is not one for HTTP"
	case u.Host == "":
		return "has no host"
	case u.User != nil:
		return "has a user"
	}
	return ""
}
