package connections_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/secrets"
)

// shown is a copy of fields with secrets as texts that say so.
func shown(v any) any {
	switch v := v.(type) {
	case secrets.Value:
		return "secret " + v.Reveal()
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = shown(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = shown(e)
		}
		return out
	}
	return v
}

type env map[string]string

func (e env) lookup(name string) (string, bool) {
	v, ok := e[name]
	return v, ok
}

func parse(t testing.TB, content string, vars env) *connections.File {
	t.Helper()
	f, err := connections.Parse([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	f.Lookup = vars.lookup
	return f
}

func ref(t testing.TB, s string) connections.Reference {
	t.Helper()
	if !strings.Contains(s, ".") {
		return connections.Reference{Family: strings.TrimPrefix(s, "@")}
	}
	r, ok, err := connections.ParseReference(s)
	if err != nil || !ok {
		t.Fatal(s, err)
	}
	return r
}

// resolve finds a connection, "@mysql" for a default.
func resolve(t testing.TB, r connections.Resolver, s string) (*connections.Connection, error) {
	t.Helper()
	return connections.Resolve(t.Context(), r, ref(t, s))
}

// Every message of the reference implementation.
func TestMessages(t *testing.T) {
	const (
		two  = "connections:\n  supabase: {main: {url: u}}\n  mysql: {b: {host: h}, a: {host: h}}\n  empty: {}\n  null_one:\n"
		vars = `
connections:
  mysql:
    main: {host: h, password: "${MYSQL_PASSWORD}"}
    default: {host: "${HOST:-localhost}"}
    nested: {options: {auth: {key: "${DEEP}"}}}
    list: {hosts: [a, "x${EMPTY}y"]}
    listed: {pools: [{size: "${SIZE}"}]}
    several: {host: "${SET}-${FIRST}-${SECOND}", other: "${THIRD}"}
  defaulted:
    chosen: {default: true, token: "${TOKEN}"}
`
	)
	for _, tc := range []struct {
		content, ref string
		want         string
		kind         error
	}{
		{"", "@mysql.a", "No connections configured. Create osiris_connections.yaml with mysql connections.", connections.ErrNotConfigured},
		{"version: 1", "@mysql", "No connections configured. Create osiris_connections.yaml with mysql connections.", connections.ErrNotConfigured},
		{"connections:", "@mysql.a", "No connections configured. Create osiris_connections.yaml with mysql connections.", connections.ErrNotConfigured},
		{"connections: {}", "@mysql.a", "No connections configured. Create osiris_connections.yaml with mysql connections.", connections.ErrNotConfigured},
		{two, "@posthog.a", "Connection family 'posthog' not found. Available families: empty, mysql, null_one, supabase", connections.ErrNotConfigured},
		{two, "@posthog", "Connection family 'posthog' not found. Available families: empty, mysql, null_one, supabase", connections.ErrNotConfigured},
		{two, "@empty.a", "No connections defined for family 'empty'", connections.ErrNotConfigured},
		{two, "@null_one", "No connections defined for family 'null_one'", connections.ErrNotConfigured},
		{two, "@mysql.db.prod", "Connection alias 'db.prod' not found in family 'mysql'. Available aliases: a, b", connections.ErrNotConfigured},
		{two, "@mysql", "No default connection for family 'mysql'. Available aliases: a, b. Either: 1) Set 'default: true' on an alias, 2) Name an alias 'default', or 3) Specify an alias explicitly.", connections.ErrNotConfigured},
		{vars, "@mysql.main", "Environment variable 'MYSQL_PASSWORD' not set for password in mysql.main", nil},
		{vars, "@mysql", "Environment variable 'HOST:-localhost' not set for host in mysql.default", nil},
		{vars, "@mysql.nested", "Environment variable 'DEEP' not set for key in mysql.nested", nil},
		{vars, "@mysql.list", "Environment variable 'EMPTY' not set for hosts[1] in mysql.list", nil},
		{vars, "@mysql.listed", "Environment variable 'SIZE' not set for size in mysql.listed", nil},
		{vars, "@mysql.several", "Environment variable 'FIRST' not set for host in mysql.several", nil},
		{vars, "@defaulted", "Environment variable 'TOKEN' not set for token in defaulted.chosen", nil},
	} {
		f := parse(t, tc.content, env{"EMPTY": "", "SET": "s"})
		c, err := resolve(t, f, tc.ref)
		if c != nil || text(err) != tc.want {
			t.Errorf("%s: %v\nwant %s", tc.ref, err, tc.want)
		}
		unset := (*connections.UnsetError)(nil)
		if is := errors.As(err, &unset); is != (tc.kind == nil) || tc.kind != nil && !errors.Is(err, tc.kind) {
			t.Errorf("%s: the error is a %T", tc.ref, err)
		}
		if unset != nil && (unset.Reference.Family != ref(t, tc.ref).Family || unset.Reference.Alias == "") {
			t.Errorf("%s: the error has %v", tc.ref, unset.Reference)
		}
	}
}

func TestDefaultChoice(t *testing.T) {
	for name, tc := range map[string]struct{ aliases, want string }{
		"flag":             {"{a: {}, b: {default: true}}", "b"},
		"first flag":       {"{a: {default: false}, c: {default: true}, b: {default: true}}", "c"},
		"name":             {"{a: {}, default: {}}", "default"},
		"flag before name": {"{default: {}, b: {default: true}}", "b"},
		"yes":              {"{a: {}, b: {default: yes}}", "b"},
		"nothing":          {"{a: {}, b: {default: }, default: {}}", "default"},
		"merged":           {"{a: &a {default: true, x: 1}, b: {<<: *a, default: false}}", "a"},
		"null alias":       {"{default: }", "default"},
	} {
		c, err := resolve(t, parse(t, "connections: {duckdb: "+tc.aliases+"}", nil), "@duckdb")
		if err != nil || c.Family != "duckdb" || c.Alias != tc.want {
			t.Errorf("%s: %v, %v", name, c, err)
			continue
		}
		if _, kept := c.Fields["default"]; kept {
			t.Errorf("%s: the flag is among the fields", name)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	f := parse(t, `
connections:
  mysql:
    main:
      host: ${HOST}
      port: ${PORT}
      database: a${X}b${Y}c
      path: ["${X}", {file: "/${Y}/${X}"}, 5]
      schema: $X ${} $$ ${ ${X
      region: ${Y}}
      name: "${WEIRD NAME:-x}"
      user: ${LOOKS_LIKE_ONE}
      pool_size: 5
`, env{"HOST": "db", "PORT": "3306", "X": "1", "Y": "2", "WEIRD NAME:-x": "w", "LOOKS_LIKE_ONE": "${HOST}"})
	want := map[string]any{
		"host": "db", "port": "3306", "database": "a1b2c",
		"path":   []any{"1", map[string]any{"file": "/2/1"}, 5},
		"schema": "$X ${} $$ ${ ${X", "region": "2}", "name": "w",
		"user":      "${HOST}", // a value is not searched again
		"pool_size": 5,
	}
	for range 2 { // nothing is filled into the file itself
		c, err := resolve(t, f, "@mysql.main")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, c.Fields); d != "" {
			t.Error(d)
		}
		c.Fields["path"].([]any)[1].(map[string]any)["file"] = "changed"
	}
}

// Values are what YAML 1.1 says, where JSON can hold it.
func TestYAML(t *testing.T) {
	f := parse(t, `
base: &base
  host: h
  port: 1
  options: {a: 1}
more: &more {port: 2, user: m}
connections:
  f: &all
    scalars: {i: 12, neg: -3, f: 1.5, t: true, y: yes, n: Off, s: "yes", nul: , tilde: ~, date: 2024-01-01, month: 2024-01,
      exp: 1e3, hex: 0x10, big: 12345678901234567890123, zero: 0899, inf: .inf, nan: .nan, oct: 0o17, block: "a\nb"}
    merged: {<<: *base, port: 9}
    list: {<<: [*more, *base], x: 1}
    alias: *base
  g: {<<: *all, own: {1: one, true: t, yes: y}}
`, nil)
	for s, want := range map[string]map[string]any{
		"@f.scalars": {
			"i": 12, "neg": -3, "f": 1.5, "t": true, "y": true, "n": false, "s": "yes", "nul": nil, "tilde": nil, "date": "2024-01-01", "month": "2024-01",
			"exp": "1e3", "hex": 16, "big": json.Number("12345678901234567890123"), "zero": "0899", "inf": ".inf", "nan": ".nan", "oct": "0o17", "block": "a\nb",
		},
		"@f.merged": {"host": "h", "port": 9, "options": map[string]any{"a": 1}},
		"@f.list":   {"host": "h", "port": 2, "user": "m", "options": map[string]any{"a": 1}, "x": 1},
		"@f.alias":  {"host": "h", "port": 1, "options": map[string]any{"a": 1}},
		"@g.own":    {"1": "one", "true": "t", "yes": "y"},
		"@g.alias":  {"host": "h", "port": 1, "options": map[string]any{"a": 1}},
	} {
		c, err := resolve(t, f, s)
		if err != nil {
			t.Fatal(s, err)
		}
		if d := cmp.Diff(want, c.Fields); d != "" {
			t.Errorf("%s: %s", s, d)
		}
		if _, err := json.Marshal(c.Fields); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	const secret = "hunter2secret"
	for name, tc := range map[string]struct{ content, want string }{
		"a list":           {"- a", "line 1: the file is not a mapping"},
		"a text":           {secret, "line 1: the file is not a mapping"},
		"connections":      {"connections: [a]", "line 1: connections is not a mapping"},
		"family":           {"connections:\n  mysql: " + secret, "line 2: the family mysql is not a mapping"},
		"alias":            {"connections:\n  mysql:\n    main: " + secret, "line 3: mysql.main is not a mapping"},
		"twice":            {"connections:\n  mysql:\n    main:\n      password: " + secret + "\n      host: h\n      password: x", `line 6: "password" stands in mysql.main again, after line 4`},
		"alias twice":      {"connections: {mysql: {a: {}, b: {}, a: {}}}", `line 1: "a" stands in the family mysql again, after line 1`},
		"family twice":     {"connections:\n  a: {}\n  a: {}", `line 3: "a" stands in connections again, after line 2`},
		"section twice":    {"connections: {}\nconnections: {}", `line 2: "connections" stands in the file again, after line 1`},
		"nested twice":     {"connections: {a: {b: {c: [{d: 1, d: 2}]}}}", `line 1: "d" stands in a.b.c[0] again, after line 1`},
		"merge twice":      {"connections: {a: {b: {<<: {}, <<: {}}}}", `line 1: "<<" stands in a.b again, after line 1`},
		"merge of a text":  {"connections: {a: {b: {<<: " + secret + "}}}", "line 1: what << merges is not a mapping"},
		"key":              {"connections: {a: {b: {? [x] : 1}}}", "line 1: a key of a.b is not a text"},
		"null key":         {"connections: {a: {b: {~: 1, '': 2}}}", "line 1: a key of a.b is not a text"},
		"long key":         {"connections: {a: {b: {" + strings.Repeat("x", 257) + ": 1}}}", "line 1: a key of a.b has more than 256 bytes"},
		"default":          {"connections: {a: {b: {default: " + secret + "}}}", "line 1: default of a.b is neither true nor false"},
		"default number":   {"connections: {a: {b: {default: 1}}}", "line 1: default of a.b is neither true nor false"},
		"unknown anchor":   {"connections:\n  a:\n    b: {password: *" + secret + "}", "line 3: a value begins with * and so refers to an anchor that is not there; put it into quotes"},
		"tag":              {"connections:\n  a:\n    b: {password: !" + secret + " x}", "line 3: a.b.password has a tag that is not supported; put values that begin with ! into quotes"},
		"tag of a mapping": {"connections:\n  a:\n    b: {password: !" + secret + " {x: 1}}", "line 3: a.b.password has a tag that is not supported; put values that begin with ! into quotes"},
		"tag of a list":    {"connections:\n  a:\n    b: {password: !" + secret + " [x]}", "line 3: a.b.password has a tag that is not supported; put values that begin with ! into quotes"},
		"wrong tag":        {"connections:\n  a:\n    b: {port: !!int " + secret + "}", "line 3: a.b.port is not what its tag says"},
		"binary":           {"connections: {a: {b: {c: !!binary aGk=}}}", "line 1: a.b.c has a tag that is not supported; put values that begin with ! into quotes"},
		"documents":        {"a: 1\n---\nb: 2", "line 2: there is more than one YAML document"},
		"indentation":      {"connections:\n  a:\n    b: c: d", "line 3: mapping values are not allowed in this context"},
		"itself":           {"connections: {a: {b: &b {c: *b}}}", "line 1: it is nested more than 50 deep, or an alias (*name) contains itself"},
		"merges itself":    {"connections: {a: {b: &b {<<: [*b, *b]}}}", "line 1: it is nested more than 50 deep, or an alias (*name) contains itself"},
		"list of itself":   {"connections: {a: {b: {c: &c [*c, *c]}}}", "line 1: it is nested more than 50 deep, or an alias (*name) contains itself"},
		"large":            {"#" + strings.Repeat("x", 1<<20), "it is larger than 1 MiB"},
	} {
		f, err := connections.Parse([]byte(tc.content))
		if f != nil || text(err) != "connections: "+tc.want {
			t.Errorf("%s: %v\nwant %s", name, err, tc.want)
		}
		if fe := (*connections.FileError)(nil); !errors.As(err, &fe) {
			t.Errorf("%s: the error is a %T", name, err)
		}
		if strings.Contains(text(err), secret) {
			t.Errorf("%s: the error quotes the file", name)
		}
	}
}

// Aliases that grow exponentially are refused before they cost memory.
func TestBombs(t *testing.T) {
	level := func(least, format string) string {
		const n = 40
		var b strings.Builder
		b.WriteString("l0: &l0 " + least + "\n")
		for i := range n {
			a := fmt.Sprintf("*l%d", i)
			fmt.Fprintf(&b, "l%d: &l%d %s\n", i+1, i+1, fmt.Sprintf(format, a, a, a))
		}
		return b.String() + fmt.Sprintf("connections: {a: {b: {c: *l%d}}}\n", n)
	}
	long := strings.Repeat("x", 1<<17)
	for name, content := range map[string]string{
		"lists":        level("x", "[%s, %s, %s]"),
		"mappings":     level("x", "{a: %s, b: %s, c: %s}"),
		"merges":       level("{}", "{<<: [%s, %s, %s]}"),
		"empty merges": "l0: &l0 {}\nl1: &l1 {<<: [" + strings.Repeat("*l0, ", 1000) + "]}\nconnections: {a: {b: {c: [" + strings.Repeat("{<<: *l1}, ", 1000) + "]}}}",
		"texts":        "l0: &l0 " + long + "\nconnections: {a: {b: {c: [" + strings.Repeat("*l0, ", 100) + "]}}}",
	} {
		_, err := connections.Parse([]byte(content))
		if fe := (*connections.FileError)(nil); !errors.As(err, &fe) || !strings.Contains(fe.Reason, "expanded it has more than 100000 values or 4 MiB") {
			t.Errorf("%s: %.200v", name, err)
		}
	}
	// What YAML files of this size may really have is not refused.
	content := "connections:\n  a:\n    b: {c: [" + strings.Repeat("1,", 30_000) + "]}\n"
	if _, err := connections.Parse([]byte(content)); err != nil {
		t.Error(err)
	}
}

// The files of the reference implementation: all connections resolve, with the
// secrets sealed that are secret, and can be described without a variable.
func TestReferenceFiles(t *testing.T) {
	value := func(name string) (string, bool) { return "value-of-" + name, true }
	for file, refs := range map[string]map[string]map[string]any{
		"init_template.yaml": {
			"@mysql":              {"host": "${MYSQL_HOST}", "port": 3306, "user": "${MYSQL_USER}", "password": "secret ${MYSQL_PASSWORD}", "database": "${MYSQL_DATABASE}", "pool_size": 5, "timeout": 30},
			"@supabase":           {"project_id": "${SUPABASE_PROJECT_ID}", "anon_key": "secret ${SUPABASE_ANON_PUBLIC_KEY}", "service_role_key": "secret ${SUPABASE_SERVICE_ROLE_KEY}"},
			"@duckdb":             {"database": ":memory:"},
			"@filesystem":         {"base_dir": "${OSIRIS_HOME}/data", "description": "Local filesystem data directory"},
			"@filesystem.exports": {"base_dir": "${OSIRIS_HOME}/exports", "description": "Export files directory"},
		},
		"osiris_connections.example.yaml": {
			"@mysql":                {"host": "mysql.example.internal", "port": 3306, "database": "movies", "user": "reader", "password": "secret ${MYSQL_PASSWORD}", "pool_size": 5, "max_overflow": 10},
			"@mysql.db_analytics":   {"host": "mysql-analytics.prod.internal", "port": 3306, "database": "analytics", "user": "svc_analytics", "password": "secret ${MYSQL_ANALYTICS_PASSWORD}", "ssl_ca": "/path/to/ca.pem", "pool_size": 10, "max_overflow": 20},
			"@mysql.local":          {"host": "localhost", "port": 3306, "database": "test_db", "user": "root", "password": "secret ${MYSQL_LOCAL_PASSWORD}"},
			"@supabase":             {"url": "https://example.supabase.co", "service_role_key": "secret ${SUPABASE_SERVICE_ROLE_KEY}", "schema": "public"},
			"@supabase.staging":     {"url": "https://staging-xyz.supabase.com", "service_role_key": "secret ${SUPABASE_STAGING_KEY}", "schema": "staging"},
			"@supabase.development": {"url": "http://localhost:54321", "service_role_key": "secret ${SUPABASE_DEV_KEY}", "anon_key": "secret ${SUPABASE_DEV_ANON_KEY}"},
			"@duckdb":               {"path": "./data/local.duckdb", "read_only": false},
			"@duckdb.memory":        {"path": ":memory:", "read_only": false},
			"@duckdb.analytics":     {"path": "/shared/analytics/main.duckdb", "read_only": true},
			"@postgresql.warehouse": {"host": "postgres.warehouse.internal", "port": 5432, "database": "warehouse", "user": "etl_user", "password": "secret ${POSTGRES_WAREHOUSE_PASSWORD}", "sslmode": "require"},
			"@snowflake.analytics":  {"account": "mycompany", "warehouse": "COMPUTE_WH", "database": "ANALYTICS", "schema": "PUBLIC", "user": "etl_service", "password": "secret ${SNOWFLAKE_PASSWORD}", "role": "ETL_ROLE"},
			"@s3":                   {"bucket": "company-data-lake", "region": "us-east-1", "access_key_id": "secret ${AWS_ACCESS_KEY_ID}", "secret_access_key": "secret ${AWS_SECRET_ACCESS_KEY}", "role_arn": "arn:aws:iam::123456789012:role/DataLakeReader"},
			"@s3.backup":            {"bucket": "company-backups", "region": "eu-west-1", "access_key_id": "secret ${AWS_BACKUP_ACCESS_KEY}", "secret_access_key": "secret ${AWS_BACKUP_SECRET_KEY}"},
		},
		"shopify_connections.example.yaml": {
			"@shopify":         {"shop_domain": "prod-store.myshopify.com", "access_token": "secret ${SHOPIFY_PROD_ACCESS_TOKEN}", "api_version": "2024-01"},
			"@shopify.default": {"shop_domain": "mystore.myshopify.com", "access_token": "secret ${SHOPIFY_ACCESS_TOKEN}", "api_version": "2024-01", "rate_limit": 2},
			"@shopify.dev":     {"shop_domain": "dev-store.myshopify.com", "access_token": "secret ${SHOPIFY_DEV_ACCESS_TOKEN}", "api_version": "2023-10"},
		},
	} {
		f, err := connections.Load(filepath.Join("testdata/osiris", file))
		if err != nil {
			t.Fatal(err)
		}
		for s, want := range refs {
			f.Lookup = value
			c, err := resolve(t, f, s)
			if err != nil {
				t.Errorf("%s: %s: %v", file, s, err)
				continue
			}
			filled, plain := map[string]any{}, map[string]any{}
			var known []string
			for k, v := range want {
				filled[k] = v
				if text, ok := v.(string); ok {
					filled[k] = os.Expand(text, func(name string) string { return "value-of-" + name })
					text, secret := strings.CutPrefix(text, "secret ")
					want[k] = text
					if secret {
						known = append(known, os.Expand(text, func(name string) string { return "value-of-" + name }))
					}
				}
				plain[k] = filled[k]
				if text, ok := plain[k].(string); ok {
					plain[k] = strings.TrimPrefix(text, "secret ")
				}
			}
			if d := cmp.Diff(filled, shown(c.Fields)); d != "" {
				t.Errorf("%s: %s resolved: %s", file, s, d)
			}
			if d := cmp.Diff(plain, c.Plain()); d != "" {
				t.Errorf("%s: %s in plain text: %s", file, s, d)
			}
			if d := cmp.Diff(len(known), len(c.Secrets())); d != "" {
				t.Errorf("%s: %s has the secrets %q", file, s, c.Secrets())
			}
			f.Lookup = func(name string) (string, bool) {
				t.Errorf("%s: Describe asked for %s", file, name)
				return "", false
			}
			d, err := f.Describe(ref(t, s))
			if err != nil {
				t.Errorf("%s: %s: %v", file, s, err)
				continue
			}
			if d := cmp.Diff(want, d.Fields); d != "" {
				t.Errorf("%s: %s described: %s", file, s, d)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.yaml")
	if _, err := connections.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	write(t, path, "connections: [")
	_, err := connections.Load(path)
	if fe := (*connections.FileError)(nil); !errors.As(err, &fe) || fe.Path != path || fe.Line != 1 || !strings.HasPrefix(text(err), "connections: "+path+": line 1: ") {
		t.Error(err)
	}
	write(t, path, strings.Repeat("#", 1<<20+1))
	if _, err := connections.Load(path); text(err) != "connections: "+path+": it is larger than 1 MiB" {
		t.Error(err)
	}
	if _, err := connections.Load(dir); err == nil {
		t.Error("a directory was read")
	}
	write(t, path, "connections: {a: {b: {c: 1}}}")
	f, err := connections.Load(path)
	if err != nil || f.Path != path {
		t.Error(f, err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever a file has: it is refused with a FileError, or everything in it can
// be described, and resolves into what JSON can hold, or has an unset variable.
func FuzzFile(f *testing.F) {
	for _, name := range []string{"init_template.yaml", "osiris_connections.example.yaml", "shopify_connections.example.yaml"} {
		b, err := os.ReadFile(filepath.Join("testdata/osiris", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{
		"connections: {a: {default: {x: &x {y: ${Z}}, <<: [*x, {q: 1}], default: yes}}}",
		"connections: {a: {default: {url: 'postgres://u:p@${A}/b?password=x', dsn: 'u:p@tcp(h)/d', j: '{\"password\": 1}'}}}",
		"connections: {a: {default: {headers: [{A: Bearer x}, 'B: Basic dTpw'], n: [1, 1e9, .inf, 0o7, 08, !!float 1, 2020-01-01]}}}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := connections.Parse(data)
		if err != nil {
			if fe := (*connections.FileError)(nil); !errors.As(err, &fe) {
				t.Fatalf("the error is a %T: %v", err, err)
			}
			return
		}
		file.Lookup = func(name string) (string, bool) { return "v-" + name, name != "UNSET" }
		for _, ref := range file.References() {
			c, err := connections.Resolve(t.Context(), file, ref)
			if unset := (*connections.UnsetError)(nil); err != nil && !errors.As(err, &unset) {
				t.Fatalf("%s: %v", ref, err)
			}
			d, descErr := file.Describe(ref)
			if descErr != nil {
				t.Fatalf("%s: %v", ref, descErr)
			}
			if _, err := json.Marshal(d.Fields); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				continue
			}
			if _, err := json.Marshal(c.Plain()); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.Plain(), c.Plain()); d != "" {
				t.Fatal(d)
			}
			known := c.Secrets()
			walk(c.Fields, func(v secrets.Value) {
				if s := v.Reveal(); s != "" && !contains(known, s) {
					t.Fatalf("%q is not among the secrets", s)
				}
			})
		}
	})
}

func walk(v any, f func(secrets.Value)) {
	switch v := v.(type) {
	case secrets.Value:
		f(v)
	case map[string]any:
		for _, e := range v {
			walk(e, f)
		}
	case []any:
		for _, e := range v {
			walk(e, f)
		}
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}
