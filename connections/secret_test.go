package connections_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/secrets"
)

// Which values are secret, and what of them has to be redacted besides
// themselves.
func TestSecrets(t *testing.T) {
	vars := env{
		"PW": "p@ss/w", "ESC": "p%40ss%2Fw", "X": "value-x", "USER_NAME": "mysql", "TOKEN": "tok-12345", "N": "30", "YES": "true",
		"DSN": "postgres://u:pw-123@h/db", "HOOK": "https://hooks.example.com/services/T00000000/B00000000/XXXXXXXXabcdef12345678",
		"PLAIN_URL": "https://api.example.com/v1/graphql", "LONG": "1234567", "PIN": "1234", "HOST": "db.example.com", "S3": "s3://bucket/export-20240101-full/",
	}
	for name, tc := range map[string]struct {
		fields string
		secret string   // the fields that are secret, in order
		known  []string // beyond their values
	}{
		"by key":                   {`{password: a1, token: b2, api_key: c3, dsn: d4, service_role_key: e5, anon_key: f6}`, "anon_key api_key dsn password service_role_key token", nil},
		"by key, of connections":   {`{key: a1, auth_username: b2, private_key_id: c3, db_pass: d4, sasToken: e5, DBKey: f6, api_key_2: g7, slack-token: h8}`, "DBKey api_key_2 auth_username db_pass key private_key_id sasToken slack-token", nil},
		"not by key":               {`{primary_key: id, sort_key: x, keyspace: k, tokens_used: 3, author: a, monkey: m, key_file: /x, ssl_key: /k.pem, auth_type: basic, access_key_id: AK}`, "", nil},
		"numbers and truth values": {`{password: 0123, token: true, secret: 1.50, key: yes, pwd: }`, "key password secret token", nil},
		"empty":                    {`{password: ''}`, "password", nil},
		"below a secret key":       {`{credentials: {type: t1, list: [a1, {b: 2}]}, password: [a3, b4]}`, "credentials.list[0] credentials.list[1].b credentials.type password[0] password[1]", nil},
		"headers":                  {`{headers: {Accept: text/html, X-Rate: 5, Authorization: "Bearer tok-1"}}`, "headers.Accept headers.Authorization headers.X-Rate", []string{"tok-1"}},
		"headers as a list":        {`{headers: ["X-Api-Key: k-1", "Authorization: Basic dXNlcjpwYXNzLTE="]}`, "headers[0] headers[1]", []string{"k-1", "Basic dXNlcjpwYXNzLTE=", "dXNlcjpwYXNzLTE=", "pass-1"}},
		"bearer from a variable":   {`{headers: {Authorization: "Bearer ${X}"}}`, "headers.Authorization", []string{"value-x"}},
		"harmless, from variables": {`{host: "${X}", user: "${USER_NAME}", database: "${X}", url: "${PLAIN_URL}", region: "${X}", base_dir: "${X}/data", path: "${S3}"}`, "", nil},
		"unknown, from variables":  {`{license: "${X}", access_key_id: "${X}", options: {x: "a-${X}"}}`, "access_key_id license options.x", []string{"value-x"}},
		"unknown, in the file":     {`{license: abc, access_key_id: AKIA, options: {x: y}}`, "", nil},
		"short, from variables":    {`{interval: "${N}", flag: "${YES}", count: "${LONG}"}`, "count", nil},
		"short, secret key":        {`{pin: "${PIN}", password: "${N}"}`, "password pin", nil},
		"secret variable":          {`{host: "${TOKEN}.example.com", user: "${TOKEN}"}`, "host user", []string{"tok-12345"}},
		"webhook":                  {`{url: "${HOOK}"}`, "url", nil},
		"URL with a password":      {`{url: "postgres://u:pw-123@h:5/db"}`, "url", []string{"pw-123"}},
		"URL with an escaped one":  {`{dsn: "postgres://u:${ESC}@h/db"}`, "dsn", []string{"p%40ss%2Fw", "p@ss/w"}},
		"URL with an odd one":      {`{dsn: "postgres://u:${PW}@h/db"}`, "dsn", []string{"p", "p@ss/w"}},
		"URL of variables":         {`{dsn: "postgres://${USER_NAME}:${X}@${HOST}/db"}`, "dsn", []string{"value-x"}},
		"URL with plus signs":      {`{url: "https://u:p+1%40@h/"}`, "url", []string{"p+1%40", "p+1@", "p 1@"}},
		"URL with a fragment":      {`{url: "https://h/?token=tok-1#x"}`, "url", []string{"tok-1"}},
		"token in a path":          {`{url: "https://h/${TOKEN}/x"}`, "url", []string{"tok-12345"}},
		"short, in a header":       {`{headers: {A: "n ${N}"}}`, "headers.A", nil},
		"URL from a variable":      {`{url: "${DSN}"}`, "url", []string{"pw-123"}},
		"URL with a user":          {`{url: "postgres://reader@h/db"}`, "", nil},
		"URL with a token as user": {`{url: "https://tok-1@h/x"}`, "url", []string{"tok-1"}},
		"URL with a token before":  {`{url: "git+https://tok-1:x-oauth-basic@h/x"}`, "url", []string{"tok-1", "x-oauth-basic"}},
		"URL with a query":         {`{url: "https://h/?a=1&api_key=k%2B1&b=2#c"}`, "url", []string{"k%2B1", "k+1"}},
		"JDBC":                     {`{url: "jdbc:postgresql://h/db?user=u&password=pw-1"}`, "url", []string{"pw-1"}},
		"ODBC":                     {`{server: "Server=h;Uid=u;Pwd={a b;c};Database=d"}`, "server", []string{"a b;c"}},
		"ODBC with spaces":         {`{server: "Server=h;Password=a b;Database=d"}`, "server", []string{"a b"}},
		"libpq":                    {`{server: "host=h password='x y' user=u"}`, "server", []string{"x y"}},
		"libpq without quotes":     {`{server: "host=h password=xy user=u"}`, "server", []string{"xy"}},
		"MySQL":                    {`{server: "u:p:w@1@tcp(h:3306)/db"}`, "server", []string{"p:w@1"}},
		"MySQL, without tcp":       {`{dsn: "u:pw-1@h/db"}`, "dsn", []string{"pw-1"}},
		"text with an @":           {`{password: "a:b@c", token: "say so: b@c/d", description: "x:y@z/1", path: "https://h:80/@user", url: "http://[::1]/@x"}`, "password token", nil},
		"token shapes":             {`{license: ghp_0123456789abcdefghijABCDEFGHIJ012345, account: "x AKIAABCDEFGHIJKLMNOP", database: eyJhbGciOiJub25l}`, "account database license", nil},
		"PEM":                      {"{ssl_key: \"-----BEGIN RSA PRIVATE KEY-----\\nabc\\n-----END RSA PRIVATE KEY-----\"}", "ssl_key", nil},
		"certificate":              {"{ssl_ca: \"-----BEGIN CERTIFICATE-----\\nabc\"}", "", nil},
		"JSON":                     {`{account: '{"license": "lic-1", "private_key": "pk-1", "nested": {"token": "tok-1"}}'}`, "account", []string{"pk-1", "tok-1"}},
		"JSON without":             {`{account: '{"type": "service_account"}'}`, "", nil},
	} {
		f := parse(t, "connections: {f: {a: "+tc.fields+"}}", vars)
		c, err := resolve(t, f, "@f.a")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		secret := map[string]string{}
		paths("", c.Fields, secret)
		var names []string
		want := slices.Clone(tc.known)
		for k, v := range secret {
			names = append(names, k)
			if v != "" {
				want = append(want, v)
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tc.secret {
			t.Errorf("%s: secret are %q, want %q", name, got, tc.secret)
		}
		slices.Sort(want)
		if d := cmp.Diff(slices.Compact(want), c.Secrets()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// paths collects the secrets of fields by their path.
func paths(path string, v any, out map[string]string) {
	switch v := v.(type) {
	case secrets.Value:
		out[path] = v.Reveal()
	case map[string]any:
		for k, e := range v {
			paths(strings.TrimPrefix(path+"."+k, "."), e, out)
		}
	case []any:
		for i, e := range v {
			paths(fmt.Sprintf("%s[%d]", path, i), e, out)
		}
	}
}

func TestSecretsAreTheTextOfTheFile(t *testing.T) {
	c, err := resolve(t, parse(t, "connections: {f: {a: {password: 0123, token: 1.50, secret: Yes, key: 1_000, pwd: ~}}}", nil), "@f.a")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"password": "0123", "token": "1.50", "secret": "Yes", "key": "1_000", "pwd": nil}
	if d := cmp.Diff(want, c.Plain()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"0123", "1.50", "1_000", "Yes"}, c.Secrets()); d != "" {
		t.Error(d)
	}
}

// Nothing that prints a connection shows a secret, nor what was filled into one.
func TestConnectionPrints(t *testing.T) {
	c, err := resolve(t, parse(t, `connections: {f: {a: {password: "${SENTINEL}", headers: {A: "Bearer ${SENTINEL}"}, host: h}}}`, env{"SENTINEL": "canary-1"}), "@f.a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(b), fmt.Sprint(c), fmt.Sprintf("%v %+v %#v", *c, *c, *c), fmt.Sprintf("%+v", c.Fields)} {
		if strings.Contains(s, "canary") {
			t.Errorf("it shows in %s", s)
		}
	}
	if got := c.Secrets(); !slices.Contains(got, "canary-1") {
		t.Errorf("the test's secret is not known: %q", got)
	}
}

func TestDescribe(t *testing.T) {
	for text, want := range map[string]string{
		// a field's value, and what is told of it
		`password: hunter2`:                                 secrets.Masked,
		`password: 0123`:                                    secrets.Masked,
		`password: "${PW}"`:                                 "${PW}",
		`password: "${A}${B}"`:                              "${A}${B}",
		`password: "x${PW}"`:                                secrets.Masked,
		`password: ""`:                                      "",
		`host: db`:                                          "db",
		`host: "${HOST}"`:                                   "${HOST}",
		`license: "a-${X}"`:                                 "a-${X}",
		`token: "Bearer ${TOKEN}"`:                          "Bearer ${TOKEN}",
		`token: "Bearer tok-1"`:                             secrets.Masked,
		`token: "https://h/x"`:                              secrets.Masked,
		`url: "postgres://u:hunter2@h/db"`:                  "postgres://u:***@h/db",
		`dsn: "postgres://u:hunter2@h/db"`:                  "postgres://u:***@h/db",
		`dsn: "postgres://u:${PW}@h/db"`:                    "postgres://u:${PW}@h/db",
		`dsn: "postgres://u:hunter2${PW}@h/db"`:             "postgres://u:***${PW}@h/db",
		`dsn: "postgres://u:hun${PW}ter2@h/db"`:             secrets.Masked,
		`url: "https://h/?api_key=hunter2&x=1"`:             "https://h/?api_key=***&x=1",
		`url: "https://u:hunter2@h/?token=hunter2-long"`:    "https://u:***@h/?token=***",
		`dsn: "host=h password=${PW}"`:                      secrets.Masked,
		`server: "host=h password=hunter2"`:                 secrets.Masked,
		`server: "host=h password=${PW}"`:                   "host=h password=${PW}",
		`license: ghp_0123456789abcdefghijABCDEFGHIJ012345`: secrets.Masked,
		`server: "u:hunter2@tcp(h)/d"`:                      secrets.Masked,
		`ssl_key: "-----BEGIN PRIVATE KEY-----\nhunter2 postgres://u:p@h"`: secrets.Masked,
	} {
		f := parse(t, "connections: {f: {a: {"+text+"}}}", nil)
		c, err := f.Describe(ref(t, "@f.a"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		key, _, _ := strings.Cut(text, ":")
		if c.Fields[key] != want {
			t.Errorf("%s\nbecomes %v\nwant    %s", text, c.Fields[key], want)
		}
	}
	f := parse(t, "connections: {f: {a: {headers: {A: x, B: '${B}', C: [1, y, ~]}, port: 5}, b: {}}}", nil)
	c, err := f.Describe(ref(t, "@f.a"))
	want := map[string]any{"headers": map[string]any{"A": secrets.Masked, "B": "${B}", "C": []any{secrets.Masked, secrets.Masked, nil}}, "port": 5}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, c.Fields); d != "" {
		t.Error(d)
	}
	if _, err := f.Describe(ref(t, "@f")); text(err) == "" {
		t.Error("there is no default")
	}
}

// Time is linear in a text that looks like many secrets.
func TestLongTexts(t *testing.T) {
	for _, part := range []string{"password=", "a=", "key='", "x:y@", "Bearer ", "{", "://", "${"} {
		s := strings.Repeat(part, 1<<16/len(part))
		c, err := connections.Resolve(t.Context(), connections.Static{"@f.a": {"license": s, "dsn": s}}, ref(t, "@f.a"))
		if err != nil {
			t.Fatal(err)
		}
		if known := c.Secrets(); !slices.Contains(known, s) {
			t.Errorf("%s: is not known", part)
		}
	}
}
