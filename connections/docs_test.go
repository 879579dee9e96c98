package connections

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The examples of docs/connections.md are read as it says.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/connections.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, _ := strings.Cut(string(b), "```"+language+"\n")
		text, _, found := strings.Cut(rest, "```")
		if !found {
			t.Fatal("there is no example of", language)
		}
		return text
	}
	f, err := Parse([]byte(block("yaml")))
	if err != nil {
		t.Fatal(err)
	}
	f.Lookup = func(name string) (string, bool) { return "value of " + name, true }
	c, err := Resolve(t.Context(), f, Reference{Family: "graphql"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"endpoint": "https://api.example.com/graphql", "headers": map[string]any{"Authorization": "Bearer value of GRAPHQL_TOKEN"}}
	if d := cmp.Diff(want, c.Plain()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"Bearer value of GRAPHQL_TOKEN", "value of GRAPHQL_TOKEN"}, c.Secrets()); d != "" {
		t.Error(d)
	}
	if c, err := Resolve(t.Context(), f, Reference{Family: "mysql"}); err != nil || c.Alias != "db_movies" {
		t.Error(c, err)
	}

	vars, err := readEnv(block("sh"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"MYSQL_PASSWORD": "correct horse", "TOKEN": `as it stands: ${X} # \ `, "URL": "https://localhost/\n"}, vars); d != "" {
		t.Error(d)
	}

	for _, key := range []string{"host", "port", "database", "schema", "user", "url", "endpoint", "region", "account", "warehouse", "role",
		"bucket", "path", "base_dir", "project_id", "sslmode", "api_version", "shop_domain"} {
		if !harmless(key) || sensitive(key) {
			t.Errorf("%s is not harmless", key)
		}
	}
}
