package secrets_test

import (
	"testing"

	"github.com/osiris-pipelines/remote/secrets"
)

func TestTry(t *testing.T) {
	r := secrets.NewRedactor("hunter22", "p@ss!w\"rd", "s&cré t", "!@#$%^&*()", "abc***def", "zzz")
	for _, s := range []string{"x hunter22 y", "aHVudGVyMjI=", "p%40ss%21w%22rd", `p@ss!w\"rd`, `{"a":"p@ss!w\\\"rd"}`, "s%26cr%C3%A9+t", `s\u0026cr\u00e9 t`, "!@#$%^&*()",
		"%21%40%23%24%25%5E%26%2A%28%29", "abchunter22def", "a zzz b xzzz zzz", "postgresql://u:p@h/db", "root:pw@tcp(h:1)/x", "Authorization: Bearer abc.def", `{"Authorization": "Basic xyz"}`, "eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.abc rest",
		"ghp_0123456789012345678901 x", "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "password=foo bar", `"password": "foo" 1`, "(using password: YES)", "primary_key=3 tokens_used=4 author=x"} {
		t.Logf("%-50s %s", s, r.String(s))
		if a := r.String(s); r.String(a) != a {
			t.Errorf("again: %s", r.String(a))
		}
	}
}
