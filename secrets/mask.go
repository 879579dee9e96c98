// Package secrets keeps secret values out of what is written.
//
// A value is taken for a secret by its key. The keys, in any case and with
// dashes or underscores, are: password, passwd, pwd, token, secret, secret_key,
// service_key, service_role_key, api_key, apikey, access_token, refresh_token,
// auth_token, bearer_token, client_secret, client_key, private_key, access_key,
// secret_access_key, session_key, encryption_key, dsn, pg_dsn,
// connection_string, anon_key, authorization.
package secrets

import (
	"maps"
	"slices"
	"strings"
)

// Masked stands in place of a secret value.
const Masked = "***MASKED***"

// sensitive are the keys, in lower case and without dashes, whose values are
// secret: the reference implementation's compiler refuses inline values under
// them, plus the keys of the connections it knows.
func sensitive(key string) bool {
	switch strings.ReplaceAll(strings.ToLower(key), "-", "_") {
	case "password", "passwd", "pwd", "token", "secret", "secret_key", "service_key", "service_role_key",
		"api_key", "apikey", "access_token", "refresh_token", "auth_token", "bearer_token", "client_secret",
		"client_key", "private_key", "access_key", "secret_access_key", "session_key", "encryption_key",
		"dsn", "pg_dsn", "connection_string", "anon_key", "authorization":
		return true
	}
	return false
}

// Sensitive reports whether values under a key are secret.
func Sensitive(key string) bool { return sensitive(key) }

// Mask returns a copy of a config, as JSON decodes one, in which the values
// under secret keys are replaced by [Masked], at any depth. Empty values and
// ${NAME} placeholders stay: they tell nothing.
func Mask(config map[string]any, pointers ...string) map[string]any {
	if config == nil {
		return nil
	}
	out := make(map[string]any, len(config))
	for k, v := range config {
		switch {
		case !sensitive(k):
			out[k] = maskValue(v)
		case harmless(v):
			out[k] = v
		default:
			out[k] = Masked
		}
	}
	return out
}

func maskValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return Mask(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = maskValue(e)
		}
		return out
	}
	return v
}

// Inline returns the keys of a config, as paths like "auth/password", that
// hold secret values, sorted.
func Inline(config map[string]any, pointers ...string) []string {
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(config)) {
		if sensitive(k) {
			if !harmless(config[k]) {
				keys = append(keys, k)
			}
			continue
		}
		for _, sub := range inlineIn(config[k]) {
			keys = append(keys, k+"/"+sub)
		}
	}
	return keys
}

func inlineIn(v any) (keys []string) {
	switch v := v.(type) {
	case map[string]any:
		return Inline(v)
	case []any:
		for _, e := range v {
			keys = append(keys, inlineIn(e)...)
		}
	}
	return keys
}

// harmless reports whether a value under a secret key tells nothing: it is
// empty, masked already, or nothing but placeholders.
func harmless(v any) bool {
	switch v := v.(type) {
	case nil:
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
