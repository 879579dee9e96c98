// Package secrets keeps secret values out of what is written: by a type that
// does not show what it holds ([Value]), by key in configs ([Mask]), and by value
// in text ([Redactor]).
//
// # Keys
//
// A value is taken for a secret by its key, in any case, with dashes, with
// underscores or in camel case. The keys are: password, passwd, pwd, passphrase,
// token, secret, secret_key, service_key, service_role_key, api_key, x_api_key,
// access_token, refresh_token, auth_token, bearer_token, session_token, id_token,
// client_secret, client_key, private_key, access_key, secret_access_key, account_key,
// session_key, encryption_key, signing_key, dsn, pg_dsn, connection_string,
// anon_key, authorization, proxy_authorization, cookie, set_cookie, credentials,
// bearer. So are keys that end with one of password, passwd, passphrase,
// secret, api_key, secret_key, private_key, access_token, auth_token,
// refresh_token, role_key, behind another word: db_password, X-Hasura-Admin-Secret.
//
// "key" is one only directly inside of resolved_connection, or where a component
// says so; "key": "df" of an input is none. In a map named headers, those are that
// have a word such as key, token, auth or cookie in their names.
package secrets

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Masked stands in place of a secret value.
const Masked = "***MASKED***"

// folded is a key in lower case, without what separates its words.
func folded(key string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "", ".", "").Replace(strings.ToLower(key))
}

// Sensitive reports whether values under a key are secret, wherever it is: the
// reference implementation's compiler refuses inline values under most of these,
// the others are those of the connections and headers it knows. The package's
// documentation lists them.
func Sensitive(key string) bool {
	switch folded(key) {
	case "password", "passwd", "pwd", "passphrase", "token", "secret", "secretkey", "servicekey", "servicerolekey",
		"apikey", "xapikey", "accesstoken", "refreshtoken", "authtoken", "bearertoken", "sessiontoken", "idtoken",
		"clientsecret", "clientkey", "privatekey", "accesskey", "secretaccesskey", "accountkey",
		"sessionkey", "encryptionkey", "signingkey", "dsn", "pgdsn", "connectionstring",
		"anonkey", "authorization", "proxyauthorization", "cookie", "setcookie", "credentials", "bearer":
		return true
	}
	words := wordsOf(key)
	for i := 1; i < len(words); i++ {
		switch strings.Join(words[i:], "_") {
		case "password", "passwd", "passphrase", "secret", "api_key", "apikey", "secret_key", "private_key", "access_token",
			"auth_token", "refresh_token", "role_key":
			return true
		}
	}
	return false
}

// wordsOf takes a key apart: "X-Api-Key", "x_api_key" and "xApiKey" are the same.
func wordsOf(key string) []string {
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		switch {
		case c == '-' || c == '.' || c == ' ':
			c = '_'
		case c >= 'A' && c <= 'Z' && i > 0 && key[i-1] >= 'a' && key[i-1] <= 'z':
			b.WriteByte('_')
		}
		b.WriteByte(c)
	}
	return strings.Split(strings.ToLower(b.String()), "_")
}

// sensitiveHeader reports whether a header's value is secret.
func sensitiveHeader(name string) bool {
	if folded(name) == "idempotencykey" {
		return false
	}
	for _, w := range wordsOf(name) {
		switch w {
		case "key", "apikey", "token", "auth", "authorization", "cookie", "secret", "password", "signature", "credential", "credentials", "session":
			return true
		}
	}
	return Sensitive(name)
}

// Mask returns a copy of a config in which secret values are replaced by
// [Masked]: those under secret keys, at any depth (see [Sensitive]), those that
// pointers show, and every [Value]. In other strings that are URLs or DSNs the
// password is replaced by [Redacted], as are secret parameters of URLs. Empty
// values, true and false, and ${NAME} placeholders stay: they tell nothing.
//
// Pointers are JSON pointers (RFC 6901) as the fields secrets and x-secret of a
// component have them; they count within resolved_connection, too, where the fields
// of a config may come from. One that leads to an object or a list masks all of it; one
// that leads nowhere does nothing.
func Mask(config map[string]any, pointers ...string) map[string]any {
	if config == nil {
		return nil
	}
	m := masker{pointers: parsePointers(pointers)}
	return m.object(config, nil)
}

// Inline returns the keys of a config, as paths like "auth/password", that hold
// what [Mask] would replace, sorted.
func Inline(config map[string]any, pointers ...string) []string {
	m := masker{pointers: parsePointers(pointers)}
	m.object(config, nil)
	slices.Sort(m.found)
	return slices.Compact(m.found)
}

// A masker copies a config.
type masker struct {
	pointers [][]string
	found    []string // paths of secrets, without indexes of lists
}

// resolved is where a config has the fields of its connection.
const resolved = "resolved_connection"

func parsePointers(pointers []string) [][]string {
	var list [][]string
	for _, p := range pointers {
		path := strings.Split(strings.TrimPrefix(p, "/"), "/")
		if p == "" {
			path = nil
		}
		for i := range path {
			path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(path[i])
		}
		list = append(list, path)
		if len(path) > 0 {
			list = append(list, append([]string{resolved}, path...))
		}
	}
	return list
}

// A step on the way to a value. index is a place in a list, -1 in an object.
type pathStep struct {
	key   string
	index int
}

func (m *masker) pointed(path []pathStep) bool {
	for _, p := range m.pointers {
		if slices.EqualFunc(p, path, func(token string, s pathStep) bool { return token == s.key }) {
			return true
		}
	}
	return slices.ContainsFunc(m.pointers, func(p []string) bool { return len(p) == 0 })
}

func (m *masker) object(config map[string]any, path []pathStep) map[string]any {
	out := make(map[string]any, len(config))
	for _, k := range slices.Sorted(maps.Keys(config)) {
		out[k] = m.member(k, config[k], append(slices.Clip(path), pathStep{k, -1}))
	}
	return out
}

func (m *masker) member(key string, v any, path []pathStep) any {
	parent := ""
	if len(path) > 1 {
		parent = path[len(path)-2].key
	}
	secret := Sensitive(key) || key == "key" && parent == resolved ||
		strings.HasSuffix(strings.ToLower(parent), "headers") && sensitiveHeader(key)
	return m.value(v, path, secret)
}

// value is what stands for v.
func (m *masker) value(v any, path []pathStep, secret bool) any {
	if _, ok := v.(Value); ok || (secret || m.pointed(path)) && !harmless(v) {
		m.note(path)
		return Masked
	}
	switch v := v.(type) {
	case nil:
		return nil
	case *Value:
		m.note(path)
		return Masked
	case string:
		clean := maskURL(v)
		if clean != v {
			m.note(path)
		}
		return clean
	case map[string]any:
		return m.object(v, path)
	case []any:
		return m.list(v, path)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Map: // such as map[string]string
		if r.Type().Key().Kind() != reflect.String {
			break
		}
		object := make(map[string]any, r.Len())
		for i := r.MapRange(); i.Next(); {
			object[i.Key().String()] = i.Value().Interface()
		}
		return m.object(object, path)
	case reflect.Slice:
		if r.Type().Elem().Kind() == reflect.Uint8 {
			break
		}
		list := make([]any, r.Len())
		for i := range list {
			list[i] = r.Index(i).Interface()
		}
		return m.list(list, path)
	}
	return v
}

func (m *masker) list(list []any, path []pathStep) []any {
	out := make([]any, len(list))
	for i, e := range list {
		out[i] = m.value(e, append(slices.Clip(path), pathStep{strconv.Itoa(i), i}), false)
	}
	return out
}

func (m *masker) note(path []pathStep) {
	var keys []string
	for _, s := range path {
		if s.index < 0 {
			keys = append(keys, s.key)
		}
	}
	m.found = append(m.found, strings.Join(keys, "/"))
}

// maskURL replaces the passwords in URLs and DSNs, and secret parameters.
func maskURL(v string) string {
	if !strings.Contains(v, "://") && !strings.Contains(v, "@tcp(") && !strings.Contains(v, "@unix(") {
		return v
	}
	s := scan{b: []byte(v), limit: len(v) + 1, final: true}
	for at := range len(v) {
		switch v[at] {
		case ':':
			s.userinfo(at, &shape{prefix: "://"})
		case '@':
			s.dsn(at, &shape{prefix: "@tcp("})
			s.dsn(at, &shape{prefix: "@unix("})
		case '?', '&':
			name, rest, ok := strings.Cut(v[at+1:], "=")
			if !ok || !Sensitive(name) {
				break
			}
			from := len(v) - len(rest)
			end := from
			for end < len(v) && !apart(v[end]) && v[end] != '&' && v[end] != '#' {
				end++
			}
			if !secretless(s.b[from:end]) {
				s.cover(from, end)
			}
		}
	}
	if len(s.spans) == 0 {
		return v
	}
	s.merge()
	return string(s.redact(nil, len(v)))
}

// harmless reports whether a value under a secret key tells nothing: it is
// empty, masked already, or nothing but placeholders.
func harmless(v any) bool {
	switch v := v.(type) {
	case nil, bool:
		return true
	case string:
		if v == "" || v == Masked {
			return true
		}
		for v != "" {
			rest, ok := strings.CutPrefix(v, "${")
			if !ok {
				return false
			}
			name, after, ok := strings.Cut(rest, "}")
			if !ok || name == "" || strings.ContainsAny(name, "${ ") {
				return false
			}
			v = after
		}
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}
