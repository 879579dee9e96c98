package secrets_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/secrets"
)

func TestMask(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"secret keys", `{"password":"p","API-Key":"k","pg_dsn":"d"}`, `{"API-Key":"***MASKED***","password":"***MASKED***","pg_dsn":"***MASKED***"}`},
		{"at any depth", `{"a":[{"b":{"token":"t"}}],"c":{"secret":{"x":1}}}`, `{"a":[{"b":{"token":"***MASKED***"}}],"c":{"secret":"***MASKED***"}}`},
		{"numbers too", `{"token":7}`, `{"token":"***MASKED***"}`},
		{"no false hits", `{"author":"a","primary_key":"id","tokens_used":3,"key":"df","auth_type":"basic","passwords":"x"}`, `{"auth_type":"basic","author":"a","key":"df","passwords":"x","primary_key":"id","tokens_used":3}`},
		{"what tells nothing", `{"password":"","token":null,"dsn":"${DB_DSN}","secret":"${A}${B}","api_key":"***MASKED***"}`, `{"api_key":"***MASKED***","dsn":"${DB_DSN}","password":"","secret":"${A}${B}","token":null}`},
		{"almost a placeholder", `{"password":"x${A}","token":"${A","dsn":"${}","secret":"${a b}"}`, `{"dsn":"***MASKED***","password":"***MASKED***","secret":"***MASKED***","token":"***MASKED***"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var config map[string]any
			if err := json.Unmarshal([]byte(tt.config), &config); err != nil {
				t.Fatal(err)
			}
			before := fmt.Sprint(config)
			got, err := json.Marshal(secrets.Mask(config))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if fmt.Sprint(config) != before {
				t.Error("the config itself was changed")
			}
		})
	}
	if secrets.Mask(nil) != nil {
		t.Error("nil became something")
	}
}

func TestInline(t *testing.T) {
	var config map[string]any
	if err := json.Unmarshal([]byte(`{"z":{"password":"p"},"list":[{"token":"t"}],"dsn":"${DSN}","api_key":"k","path":"x"}`), &config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"api_key", "list/token", "z/password"}, secrets.Inline(config)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func ExampleMask() {
	config := map[string]any{"user": "reader", "password": "hunter2"}
	fmt.Println(secrets.Mask(config))
	// Output: map[password:***MASKED*** user:reader]
}

// The package's documentation lists the keys.
func TestKeysDocumented(t *testing.T) {
	b, err := os.ReadFile("mask.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, code, _ := strings.Cut(string(b), "package secrets\n")
	_, code, _ = strings.Cut(code, "func sensitive")
	code, _, _ = strings.Cut(code, "return true")
	keys := regexp.MustCompile(`"([a-z_]{3,})"`).FindAllStringSubmatch(code, -1)
	if len(keys) < 20 {
		t.Fatalf("found %d keys", len(keys))
	}
	for _, key := range keys {
		if !regexp.MustCompile(`[ ,:]` + key[1] + `[,.]`).MatchString(doc) {
			t.Errorf("%s is not in the documentation", key[1])
		}
	}
}
