package connections_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/secrets"
)

func answer(c *connections.Connection, err error) connections.ResolverFunc {
	return func(context.Context, connections.Reference) (*connections.Connection, error) { return c, err }
}

// What a vault returns is made safe, whatever it makes of its values.
func TestResolve(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fields := map[string]any{
		"host": "h", "port": 5, "license": "l-123", "password": "pw-1", "token": 7, "list": []any{"a-1", nil, true},
		"sealed": secrets.New("s-1"), "options": map[string]any{"key": []any{1.5}, "region": "eu"},
		"headers": map[string]any{"Host": "h-1"},
	}
	c, err := connections.Resolve(t.Context(), answer(&connections.Connection{Fields: fields, RefreshAt: at}, nil), ref(t, "@f.a"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"host": "h", "port": 5, "license": "secret l-123", "password": "secret pw-1", "token": "secret 7", "list": []any{"secret a-1", nil, true},
		"sealed": "secret s-1", "options": map[string]any{"key": []any{"secret 1.5"}, "region": "eu"},
		"headers": map[string]any{"Host": "secret h-1"},
	}
	if d := cmp.Diff(want, shown(c.Fields)); d != "" {
		t.Error(d)
	}
	if c.Family != "f" || c.Alias != "a" || !c.RefreshAt.Equal(at) {
		t.Errorf("it is %v", c)
	}
	if d := cmp.Diff([]string{"1.5", "7", "a-1", "h-1", "l-123", "pw-1", "s-1"}, c.Secrets()); d != "" {
		t.Error(d)
	}
	if fields["password"] != "pw-1" {
		t.Error("the resolver's own map was changed")
	}
	c.Fields["list"].([]any)[0] = "changed"
	if d := cmp.Diff("a-1", fields["list"].([]any)[0]); d != "" {
		t.Error(d)
	}

	// A connection that nobody has sealed tells its secrets all the same.
	byHand := &connections.Connection{Fields: map[string]any{"password": "pw-1", "port": 5}}
	if d := cmp.Diff([]string{"pw-1"}, byHand.Secrets()); d != "" {
		t.Error(d)
	}

	c, err = connections.Resolve(t.Context(), answer(&connections.Connection{Family: "f", Alias: "chosen"}, nil), ref(t, "@f"))
	if err != nil || c.Alias != "chosen" || c.Fields == nil || len(c.Fields) != 0 {
		t.Errorf("%v, %v", c, err)
	}
}

func TestResolveErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("vault is sealed")
	deep := map[string]any{}
	for m, i := deep, 0; i < 100; i++ {
		next := map[string]any{}
		m["x"], m = next, next
	}
	for name, tc := range map[string]struct {
		ctx      context.Context
		resolver connections.Resolver
		want     string
		is       error
	}{
		"cancelled":     {ctx, answer(nil, nil), "context canceled", context.Canceled},
		"nil":           {t.Context(), nil, "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"nothing":       {t.Context(), answer(nil, nil), "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"error":         {t.Context(), answer(nil, broken), "vault is sealed", broken},
		"zero file":     {t.Context(), &connections.File{}, "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"empty":         {t.Context(), connections.Static{}, "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"bad key":       {t.Context(), connections.Static{"f.a": nil}, "Invalid connection reference format: 'f.a'. Expected '@family.alias'", connections.ErrReference},
		"another":       {t.Context(), connections.Static{"@g.a": nil, "@b.a": nil}, "Connection family 'f' not found. Available families: b, g", connections.ErrNotConfigured},
		"type":          {t.Context(), connections.Static{"@f.a": {"x": map[string]any{"y": []string{"hunter2"}}}}, `connections: field "y" is a []string; a connection has texts, numbers, truth values, []any and map[string]any`, nil},
		"type of vault": {t.Context(), answer(&connections.Connection{Fields: map[string]any{"x": []byte("hunter2")}}, nil), `connections: field "x" is a []uint8; a connection has texts, numbers, truth values, []any and map[string]any`, nil},
		"deep":          {t.Context(), answer(&connections.Connection{Fields: deep}, nil), `connections: field "x" is nested more than 50 deep`, nil},
	} {
		c, err := connections.Resolve(tc.ctx, tc.resolver, ref(t, "@f.a"))
		if c != nil || text(err) != tc.want || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

func TestStatic(t *testing.T) {
	s := connections.Static{
		"@mysql.a":    {"host": "a", "password": "${PW}"},
		"@mysql.b":    {"host": "b", "default": true},
		"@mysql.c.d":  {"host": "d", "default": false},
		"@pg.default": {"url": "postgres://u:hunter2@h/db"},
	}
	for name, want := range map[string]map[string]any{
		"@mysql":     {"host": "b"},
		"@mysql.a":   {"host": "a", "password": "secret ${PW}"},
		"@mysql.c.d": {"host": "d"},
		"@pg":        {"url": "secret postgres://u:hunter2@h/db"},
	} {
		c, err := resolve(t, s, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(want, shown(c.Fields)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, still := s["@mysql.b"]["default"]; !still {
		t.Error("the map was changed")
	}
	c, err := s.Describe(ref(t, "@mysql.a"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{"host": "a", "password": secrets.Masked}, c.Fields); d != "" {
		t.Error(d)
	}
	if _, err := s.Describe(ref(t, "@f.a")); !errors.Is(err, connections.ErrNotConfigured) {
		t.Error(err)
	}
}

func TestFirst(t *testing.T) {
	broken := errors.New("vault is sealed")
	unknown := answer(nil, fmt.Errorf("vault: no %s: %w", "entry", connections.ErrNotConfigured))
	known := answer(&connections.Connection{Fields: map[string]any{"host": "vault"}}, nil)
	file := connections.Static{"@f.a": {"host": "file"}}
	for name, tc := range map[string]struct {
		resolvers []connections.Resolver
		host      string
		err       string
		is        error
	}{
		"first wins":    {[]connections.Resolver{known, file}, "vault", "", nil},
		"falls through": {[]connections.Resolver{nil, unknown, answer(nil, nil), file}, "file", "", nil},
		"error ends it": {[]connections.Resolver{unknown, answer(nil, broken), file}, "", "vault is sealed", broken},
		"nobody":        {[]connections.Resolver{unknown, connections.Static{"@g.a": nil}}, "", "vault: no entry: connection is not configured; Connection family 'f' not found. Available families: g", connections.ErrNotConfigured},
		"one":           {[]connections.Resolver{connections.Static{"@g.a": nil}}, "", "Connection family 'f' not found. Available families: g", connections.ErrNotConfigured},
		"none":          {nil, "", "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"said once":     {[]connections.Resolver{nil, nil}, "", "No connections configured. Create osiris_connections.yaml with f connections.", connections.ErrNotConfigured},
		"in another":    {[]connections.Resolver{connections.First(unknown), connections.First(file)}, "file", "", nil},
		"unset is an error": {[]connections.Resolver{parse(t, "connections: {f: {a: {x: '${Y}'}}}", nil), file}, "",
			"Environment variable 'Y' not set for x in f.a", nil},
	} {
		c, err := resolve(t, connections.First(tc.resolvers...), "@f.a")
		if text(err) != tc.err || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (c.Fields["host"] != tc.host || c.Family != "f" || c.Alias != "a") {
			t.Errorf("%s: %v", name, c)
		}
	}

	// What a file has filled in is still known behind others.
	c, err := resolve(t, connections.First(unknown, parse(t, "connections: {f: {a: {headers: {A: 'X ${Y}'}}}}", env{"Y": "y-1"})), "@f.a")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"X y-1", "y-1"}, c.Secrets()); d != "" {
		t.Error(d)
	}
}

func TestFirstDescribe(t *testing.T) {
	vault := answer(nil, errors.New("must not be asked"))
	file := connections.Static{"@f.a": {"host": "file", "password": "hunter2"}}
	other := connections.Static{"@g.a": {}}
	for name, tc := range map[string]struct {
		resolvers []connections.Resolver
		fields    map[string]any
		err       string
	}{
		"file":           {[]connections.Resolver{other, file}, map[string]any{"host": "file", "password": secrets.Masked}, ""},
		"behind a vault": {[]connections.Resolver{vault, file}, map[string]any{"host": "file", "password": secrets.Masked}, ""},
		"in the vault":   {[]connections.Resolver{vault, other}, nil, ""},
		"nobody":         {[]connections.Resolver{nil, other}, nil, "Connection family 'f' not found. Available families: g"},
		"error":          {[]connections.Resolver{connections.Static{"bad": nil}, file}, nil, "Invalid connection reference format: 'bad'. Expected '@family.alias'"},
	} {
		d := connections.First(tc.resolvers...).(connections.Describer)
		c, err := d.Describe(ref(t, "@f.a"))
		if text(err) != tc.err {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			continue
		}
		if d := cmp.Diff(tc.fields, c.Fields); d != "" || c.Family != "f" || c.Alias != "a" {
			t.Errorf("%s: %v %s", name, c, d)
		}
	}
}
