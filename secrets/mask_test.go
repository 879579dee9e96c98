package secrets_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

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

// The package's documentation lists the keys, and no others.
func TestKeysDocumented(t *testing.T) {
	b, err := os.ReadFile("mask.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, code, _ := strings.Cut(string(b), "package secrets\n")
	_, doc, _ = strings.Cut(doc, "The keys are:")
	doc, _, _ = strings.Cut(doc, ". So are keys")
	_, code, _ = strings.Cut(code, "func Sensitive")
	code, _, _ = strings.Cut(code, "return true")
	var want, got []string
	for _, m := range regexp.MustCompile(`"([a-z]+)"`).FindAllStringSubmatch(code, -1) {
		if m[1] != "" {
			want = append(want, m[1])
		}
	}
	for _, key := range regexp.MustCompile(`[a-z_]+`).FindAllString(doc, -1) {
		got = append(got, strings.ReplaceAll(key, "_", ""))
		if !secrets.Sensitive(key) {
			t.Errorf("%s is none", key)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 20 {
		t.Errorf("(-code +documentation):\n%s", diff)
	}
}

// The leaks and the false hits of the original that were measured, and the ways
// to write a key.
func TestSensitive(t *testing.T) {
	for _, key := range []string{"password", "PASSWORD", "pg_dsn", "pgDsn", "api_key", "apiKey", "api-key", "APIKEY", "auth_token", "authToken", "authorization", "Authorization",
		"Proxy-Authorization", "x-api-key", "X-API-Key", "X-Supabase-Api-Key", "service_role_key", "serviceRoleKey", "anon_key", "MYSQL_PASSWORD", "db_password", "X-Hasura-Admin-Secret",
		"X-Shopify-Access-Token", "secret_access_key", "Cookie", "Set-Cookie", "bearer", "private_key", "connection_string", "SUPABASE_SERVICE_ROLE_KEY"} {
		if !secrets.Sensitive(key) {
			t.Errorf("%s is not sensitive", key)
		}
	}
	for _, key := range []string{"author", "auth_type", "auth_header_name", "auth_username", "primary_key", "primaryKey", "tokens_used", "token_count", "key", "MY_KEYBOARD", "keys", "upsert_keys",
		"passwords", "", "-", "path", "access_key_id", "dsn_name", "next_page_token", "secretary", "url", "headers", "resolved_connection", "key_column", "monkey"} {
		if secrets.Sensitive(key) {
			t.Errorf("%s is sensitive", key)
		}
	}
}

type spec struct {
	Secrets  []string `yaml:"secrets"`
	XSecret  []string `yaml:"x-secret"`
	Examples []struct {
		Title  string         `yaml:"title"`
		Config map[string]any `yaml:"config"`
	} `yaml:"examples"`
}

// All example configs of all components, as they are and as a resolved
// connection, with and without the pointers of their specs; and all connections.
func TestMaskComponents(t *testing.T) {
	files, err := filepath.Glob("testdata/osiris/components/*/spec.yaml")
	if err != nil || len(files) != 9 {
		t.Fatalf("%d components, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			var s spec
			readYAML(t, file, &s)
			pointers := slices.Concat(s.Secrets, s.XSecret)
			var list []any
			for _, e := range s.Examples {
				list = append(list, map[string]any{
					"title":              e.Title,
					"with pointers":      secrets.Mask(e.Config, pointers...),
					"inline":             secrets.Inline(e.Config, pointers...),
					"by key":             secrets.Mask(e.Config),
					"inline, by key":     secrets.Inline(e.Config),
					"when in connection": secrets.Mask(map[string]any{"resolved_connection": e.Config}, pointers...),
				})
			}
			golden(t, filepath.Base(filepath.Dir(file)), list)
		})
	}
	files, err = filepath.Glob("testdata/osiris/connections/*.yaml")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files of connections, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			var all struct {
				Connections map[string]map[string]map[string]any `yaml:"connections"`
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// Once with what the placeholders stand for.
			filled := regexp.MustCompile(`\$\{[A-Z_]+\}`).ReplaceAllString(string(b), "filled")
			for name, text := range map[string]string{"": string(b), "-filled": filled} {
				if err := yaml.Unmarshal([]byte(text), &all); err != nil {
					t.Fatal(err)
				}
				out := make(map[string]any)
				for family, aliases := range all.Connections {
					for alias, fields := range aliases {
						out[family+"."+alias] = secrets.Mask(fields)
						if inline := secrets.Inline(fields); name == "" && len(inline) > 0 {
							t.Errorf("%s.%s: placeholders count as secrets: %v", family, alias, inline)
						}
					}
				}
				golden(t, filepath.Base(file)+name, out)
			}
		})
	}
}

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata/golden", name+".json")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "\r\n", "\n"), b.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func readYAML(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestMaskPointers(t *testing.T) {
	const config = `{"a/b":"1","c~d":{"e":"2"},"list":[{"x":"3"},"4"],"key":"5","resolved_connection":{"key":"6","host":"h","n":7,"e":""},"inputs":{"df":{"from_step":"s","key":"df"}}}`
	for _, tt := range []struct {
		pointers []string
		want     string   // what differs from config
		found    []string // besides the key of the connection
	}{
		{nil, `{}`, nil},
		{[]string{"/a~1b", "/c~0d/e"}, `{"a/b":"***MASKED***","c~d":{"e":"***MASKED***"}}`, []string{"a/b", "c~d/e"}},
		{[]string{"/c~0d"}, `{"c~d":"***MASKED***"}`, []string{"c~d"}},
		{[]string{"/list/0/x"}, `{"list":[{"x":"***MASKED***"},"4"]}`, []string{"list/x"}},
		{[]string{"/list/1"}, `{"list":[{"x":"3"},"***MASKED***"]}`, []string{"list"}},
		{[]string{"/list"}, `{"list":"***MASKED***"}`, []string{"list"}},
		{[]string{"/key"}, `{"key":"***MASKED***"}`, []string{"key"}},
		{[]string{"/resolved_connection/n", "/resolved_connection/e"}, `{"resolved_connection":{"key":"***MASKED***","host":"h","n":"***MASKED***","e":""}}`, []string{"resolved_connection/n"}},
		{[]string{"/nowhere/0", "/list/7", "/list/-", "/key/deeper", "/"}, `{}`, nil},
	} {
		var in, want map[string]any
		if err := json.Unmarshal([]byte(config), &in); err != nil {
			t.Fatal(err)
		}
		_ = json.Unmarshal([]byte(config), &want)
		want["resolved_connection"].(map[string]any)["key"] = secrets.Masked
		var differs map[string]any
		_ = json.Unmarshal([]byte(tt.want), &differs)
		maps.Copy(want, differs)
		if diff := cmp.Diff(want, secrets.Mask(in, tt.pointers...)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.pointers, diff)
		}
		found := append([]string{"resolved_connection/key"}, tt.found...)
		slices.Sort(found)
		if diff := cmp.Diff(found, secrets.Inline(in, tt.pointers...)); diff != "" {
			t.Errorf("%q: Inline (-want +got):\n%s", tt.pointers, diff)
		}
	}
	whole := secrets.Mask(map[string]any{"a": "b", "c": map[string]any{"d": 1}}, "")
	if diff := cmp.Diff(map[string]any{"a": secrets.Masked, "c": secrets.Masked}, whole); diff != "" {
		t.Errorf("the empty pointer (-want +got):\n%s", diff)
	}
}

func TestMaskValues(t *testing.T) {
	v := secrets.New("x")
	for _, tt := range []struct {
		name     string
		in, want any // of the member "m"
	}{
		{"a Value", v, secrets.Masked},
		{"a pointer to one", &v, secrets.Masked},
		{"one in a list", []any{1, v}, []any{1, secrets.Masked}},
		{"a map of strings", map[string]string{"password": "p", "user": "u"}, map[string]any{"password": secrets.Masked, "user": "u"}},
		{"a list of maps", []map[string]any{{"token": "t"}}, []any{map[string]any{"token": secrets.Masked}}},
		{"bytes", []byte("abc"), []byte("abc")},
		{"a URL", "postgresql://u:p@h/db", "postgresql://u:***@h/db"},
		{"with an @ in the password", "mysql://root:p@ss@h:3306/db?x=1", "mysql://root:***@h:3306/db?x=1"},
		{"a DSN", "root:pw@tcp(h:3306)/db", "root:***@tcp(h:3306)/db"},
		{"over a socket", "root:pw@unix(/run/my.sock)/db", "root:***@unix(/run/my.sock)/db"},
		{"a parameter", "https://h/p?api_key=abc&page=2&access_token=def#x", "https://h/p?api_key=***&page=2&access_token=***#x"},
		{"no password", "https://user@h:80/a@b?key=1", "https://user@h:80/a@b?key=1"},
		{"a placeholder", "postgresql://u:${PW}@h/db", "postgresql://u:${PW}@h/db"},
		{"masked", "postgresql://u:***@h/db", "postgresql://u:***@h/db"},
		{"an address", "mail me@example.com: now", "mail me@example.com: now"},
	} {
		if diff := cmp.Diff(map[string]any{"m": tt.want}, secrets.Mask(map[string]any{"m": tt.in})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		changed := cmp.Diff(tt.want, tt.in) != ""
		_, lists := tt.in.(map[string]string)
		if _, list := tt.in.([]map[string]any); !lists && !list && changed != (len(secrets.Inline(map[string]any{"m": tt.in})) > 0) {
			t.Errorf("%s: Inline finds %v", tt.name, secrets.Inline(map[string]any{"m": tt.in}))
		}
	}
	headers := map[string]any{"headers": map[string]any{"Authorization": "Bearer x", "X-API-Key": "k", "Cookie": "c", "X-Auth-Token": "t", "Content-Type": "text/plain", "User-Agent": "a", "Idempotency-Key": "i"}}
	want := map[string]any{"headers": map[string]any{"Authorization": secrets.Masked, "X-API-Key": secrets.Masked, "Cookie": secrets.Masked, "X-Auth-Token": secrets.Masked, "Content-Type": "text/plain", "User-Agent": "a", "Idempotency-Key": "i"}}
	if diff := cmp.Diff(want, secrets.Mask(headers)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}
