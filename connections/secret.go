package connections

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/osiris-pipelines/remote/secrets"
)

// The rule that the package comment states: sensitive, credentials and harmless
// are its three parts, secretText puts them together.

// judge tells what is secret in a connection. The zero judge is ready.
type judge struct {
	shapes *secrets.Redactor // knows the looks of tokens; made when it is needed, since that takes its time
}

// secretText reports whether a text is secret. Filled: it is not in the file,
// but from a variable (vars), or from a vault. Below: it is under a key that
// names a secret.
func (j *judge) secretText(key, text string, filled bool, vars []variable, below bool) bool {
	switch {
	case below || sensitive(key), j.hasCredentials(text):
		return true
	case !filled || trivial(text):
		return false
	case slices.ContainsFunc(vars, func(v variable) bool { return sensitive(v.name) && !trivial(v.value) }):
		return true
	}
	return !harmless(key) || tokenInURL(text)
}

// variable has been filled into a text.
type variable struct{ name, value string }

// secretWithin reports whether a variable is a secret in itself, and not only as
// a part of a text that is one: not the host in a DSN, but the token behind
// "Bearer".
func (v variable) secretWithin(text string) bool {
	if trivial(v.value) {
		return false
	}
	return sensitive(v.name) || !strings.ContainsAny(text, "=@") && !strings.Contains(text, "://")
}

// sensitive reports whether a field's, or a variable's, name says that its value
// is secret. In a connection that is so of more names than elsewhere: its "key"
// is no column.
func sensitive(key string) bool {
	if secrets.Sensitive(key) {
		return true
	}
	k := strings.TrimRight(normal(key), "0123456789_") // api_key_2
	switch k {
	case "key", "headers", "cookie", "cookies", "credential", "credentials", "auth_username", "pat", "sas", "signature", "pgpassword", "sslpassword", "password_hash", "private_key_id", "credentials_json",
		"service_account", "service_account_json", "keyfile_json":
		return true
	case "primary_key", "foreign_key", "partition_key", "sort_key", "public_key", "ssl_key":
		return false
	}
	_, last, _ := cutLast(k, "_")
	switch last {
	case "password", "passwd", "pwd", "pass", "pw", "passphrase", "passcode", "pin", "secret", "token", "key", "dsn", "credentials":
		return true
	}
	return false
}

// harmless reports whether a name says that its value, from wherever it is, may
// be read by everyone. User names are among them: to redact one like "mysql"
// would tear up every line.
func harmless(key string) bool {
	switch normal(key) {
	case "host", "hostname", "hosts", "server", "address", "port", "ports",
		"url", "base_url", "custom_base_url", "api_url", "endpoint", "endpoint_url", "domain", "shop_domain",
		"scheme", "protocol", "method", "api_version", "version",
		"database", "dbname", "db", "schema", "schemas", "catalog", "dataset", "table", "collection", "topic", "queue",
		"user", "username", "role", "role_arn", "account", "warehouse", "cluster", "organization", "workspace",
		"project", "project_id", "region", "zone", "location", "environment", "env", "profile", "tenant",
		"bucket", "container", "prefix", "path", "base_dir", "dir", "directory", "file", "filename",
		"ssl", "sslmode", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", "tls", "ca_file", "verify",
		"charset", "encoding", "collation", "timezone", "time_zone", "locale", "format", "delimiter",
		"driver", "engine", "dialect", "type", "kind", "auth_type", "mode", "read_only",
		"timeout", "pool_size", "max_overflow", "rate_limit", "page_size", "batch_size", "retries",
		"name", "title", "description", "comment", "application_name", "app_name":
		return true
	}
	return false
}

// normal is a name in lower case, its words parted by underscores.
func normal(key string) string {
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		switch {
		case c == '-' || c == '.' || c == ' ':
			c = '_'
		case upper(c):
			// apiKey, APIKey
			if i > 0 && (lower(key[i-1]) || upper(key[i-1]) && i+1 < len(key) && lower(key[i+1])) {
				b.WriteByte('_')
			}
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

func upper(c byte) bool { return 'A' <= c && c <= 'Z' }
func lower(c byte) bool { return 'a' <= c && c <= 'z' }

// trivial reports whether a text is a truth value or a short number.
func trivial(s string) bool {
	switch strings.ToLower(s) {
	case "", "true", "false", "yes", "no", "on", "off", "none", "null":
		return true
	}
	return len(s) < 6 && strings.Trim(s, "0123456789.") == ""
}

// hasCredentials reports whether a text gives away, by its form, that there is
// a secret in it.
func (j *judge) hasCredentials(s string) bool {
	if strings.Contains(s, privateKey) || len(j.credentials(s, false)) > 0 {
		return true
	}
	if len(s) < shortestToken {
		return false
	}
	if j.shapes == nil {
		j.shapes = secrets.NewRedactor()
	}
	return j.shapes.String(s) != s
}

// shortestToken is less than any text with a token has that is known by its
// looks.
const shortestToken = 12

// privateKey is in the first line of a PEM file that has one.
const privateKey = "PRIVATE KEY-----"

// credentials returns the secrets within a text: passwords of URLs and DSNs,
// values behind password= and the like, tokens of an Authorization header, and
// what a JSON document has under secret keys; as they are and decoded. Known: the
// text is known to be secret, so that looser forms are taken for one, too.
func (j *judge) credentials(s string, known bool) []string {
	var out []string
	add := func(part string) {
		if part == "" || part == secrets.Redacted {
			return
		}
		out = append(out, part)
		if decoded, err := url.PathUnescape(part); err == nil && decoded != part {
			out = append(out, decoded)
		}
		if decoded, err := url.QueryUnescape(part); err == nil && decoded != part {
			out = append(out, decoded)
		}
	}
	scheme, rest, isURL := strings.Cut(s, "://")
	switch {
	case isURL:
		for _, info := range userinfos(rest) {
			user, password, _ := strings.Cut(info, ":")
			add(password)
			// A token that stands for a user, as in https://TOKEN@host.
			if web(scheme) && (password == "" || strings.HasPrefix(password, "x-oauth")) {
				add(user)
			}
		}
	default: // user:password@tcp(host)/db, and user:password@host/db
		info, address, _ := cutLast(s, "@")
		user, password, ok := strings.Cut(info, ":")
		if ok && !strings.ContainsAny(user, " \t\r\n=") && (strings.HasPrefix(address, "tcp(") || strings.HasPrefix(address, "unix(") || known && strings.Contains(address, "/")) {
			add(password)
		}
	}
	for _, part := range assigned(s) {
		add(part)
	}
	if known {
		for _, part := range authorization(s) {
			add(part)
		}
	}
	if t := strings.TrimSpace(s); strings.HasPrefix(t, "{") {
		var doc map[string]any
		if json.Unmarshal([]byte(t), &doc) == nil {
			walkSecrets(j.sealed(doc, "", false, false), func(v secrets.Value) { add(v.Reveal()) })
		}
	}
	return out
}

// userinfos returns what may be the user's part of a URL, given what is behind
// "://". Where a password has a slash that is not escaped, there may be two.
func userinfos(rest string) (out []string) {
	if strings.HasPrefix(rest, "[") { // an address of IPv6
		return nil
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	user, port, _ := cutLast(authority, ":")
	info, _, ok := cutLast(authority, "@")
	if ok {
		out = append(out, info)
	}
	if info, _, more := cutLast(rest, "@"); more && len(info) > len(authority) && user != "" && strings.Trim(port, "0123456789") != "" {
		out = append(out, info)
	}
	return out
}

// assigned returns the values behind password=, token= and so on, in queries
// and in DSNs like "host=db password='x y'" or "Server=db;Pwd=x".
func assigned(s string) (out []string) {
	ends := " \t\r\n&;"
	if strings.Contains(s, ";") {
		ends = ";" // values may have spaces
	}
	if strings.Contains(s, "?") {
		ends += "&#"
	}
	for {
		before, after, ok := strings.Cut(s, "=")
		if !ok {
			return out
		}
		s = after
		name := strings.TrimRight(before, " ")
		if i := strings.LastIndexAny(name, "?&;, \t\r\n"); i >= 0 {
			name = name[i+1:]
		}
		if name == "" || !sensitive(name) {
			continue
		}
		value := strings.TrimLeft(after, " ")
		switch {
		case value == "":
		case value[0] == '\'' || value[0] == '"':
			value, s, _ = strings.Cut(value[1:], value[:1])
		case value[0] == '{':
			value, s, _ = strings.Cut(value[1:], "}")
		default:
			if i := strings.IndexAny(value, ends); i >= 0 {
				value = value[:i]
			}
			s = strings.TrimLeft(after, " ")[len(value):]
		}
		if value != "" {
			out = append(out, value)
		}
	}
}

// authorization returns the credentials of "Bearer TOKEN" and "Basic BASE64",
// also behind a header's name.
func authorization(s string) (out []string) {
	if name, value, ok := strings.Cut(s, ": "); ok && headerName(name) {
		s = value
		out = append(out, strings.TrimSpace(value))
	}
	scheme, token, ok := strings.Cut(strings.TrimSpace(s), " ")
	token = strings.TrimSpace(token)
	if !ok || !authScheme(scheme) {
		return out
	}
	out = append(out, token)
	if strings.EqualFold(scheme, "basic") {
		if pair, err := base64.StdEncoding.DecodeString(token); err == nil {
			if _, password, ok := strings.Cut(string(pair), ":"); ok {
				out = append(out, password)
			}
		}
	}
	return out
}

func headerName(s string) bool {
	return strings.Trim(s, "-_") != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '-' || r == '_')
	})
}

func authScheme(s string) bool {
	switch strings.ToLower(s) {
	case "bearer", "basic", "token", "apikey", "api-key", "key", "digest":
		return true
	}
	return false
}

// tokenInURL reports whether a URL's path has a part that looks like a token,
// as those of webhooks have.
func tokenInURL(s string) bool {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !web(scheme) {
		return false
	}
	_, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut(path, "?")
	return slices.ContainsFunc(strings.Split(path, "/"), func(part string) bool {
		return len(part) >= 16 && strings.ContainsAny(part, "0123456789") &&
			strings.ContainsFunc(part, func(r rune) bool { return 'a' <= r|0x20 && r|0x20 <= 'z' })
	})
}

// web reports whether a URL's scheme is http or https, also behind "git+".
func web(scheme string) bool {
	scheme = strings.ToLower(scheme)
	return strings.HasSuffix(scheme, "http") || strings.HasSuffix(scheme, "https")
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// describe masks a text for a dry run. Its placeholders tell nothing.
func (j *judge) describe(s string, below bool) string {
	var literal strings.Builder
	placeholders := false
	for rest := s; rest != ""; {
		before, name, after := cutPlaceholder(rest)
		literal.WriteString(before)
		placeholders = placeholders || name != ""
		rest = after
	}
	own := strings.TrimSpace(literal.String())
	parts := j.credentials(own, false)
	switch {
	case own == "" || authScheme(own):
		return s
	case strings.Contains(own, privateKey):
		return secrets.Masked
	case strings.Contains(s, "://") && (len(parts) > 0 || below && placeholders):
		// The host may be seen. Longer parts first: one may be in another.
		slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) })
		for _, part := range parts {
			if !strings.Contains(s, part) && strings.Contains(own, part) {
				return secrets.Masked // parted by a placeholder
			}
			s = strings.ReplaceAll(s, part, secrets.Redacted)
		}
		return s
	case below || j.hasCredentials(own):
		return secrets.Masked
	}
	return s
}

// seal makes secrets of the fields of a connection that is not from a file. It
// copies, and refuses what JSON has no like of.
func seal(fields map[string]any) (map[string]any, error) {
	if err := checkTypes(fields, "", 0); err != nil {
		return nil, err
	}
	out, _ := new(judge).sealed(fields, "", true, false).(map[string]any)
	return out, nil
}

func checkTypes(v any, name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("connections: field %q is nested more than %d deep", name, maxDepth)
	}
	switch v := v.(type) {
	case nil, string, bool, int, int64, uint64, float64, json.Number, secrets.Value:
		return nil
	case map[string]any:
		for k, e := range v {
			if err := checkTypes(e, k, depth+1); err != nil {
				return err
			}
		}
		return nil
	case []any:
		for _, e := range v {
			if err := checkTypes(e, name, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("connections: field %q is a %T; a connection has texts, numbers, truth values, []any and map[string]any", name, v)
}

func (j *judge) sealed(v any, key string, filled, below bool) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = j.sealed(e, k, filled, below || sensitive(k))
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = j.sealed(e, key, filled, below)
		}
		return out
	case string:
		if j.secretText(key, v, filled, nil, below) {
			return secrets.New(v)
		}
		return v
	case secrets.Value, nil:
		return v
	}
	if below {
		return secrets.New(fmt.Sprint(v))
	}
	return v
}
