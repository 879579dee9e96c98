package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/secrets"
)

// connected is a manifest of one step that has a connection.
func connected(driver, connection string, config map[string]any) *remote.Manifest {
	c := map[string]any{}
	for k, v := range config {
		c[k] = v
	}
	if connection != "" {
		c["connection"] = connection
	}
	return &remote.Manifest{Steps: []remote.Step{{ID: "step", Driver: driver, Config: c}}}
}

// TestConnections: what a driver gets, and what is told of it, is the same on
// every adapter.
func TestConnections(t *testing.T) {
	file := func(text string) connections.Resolver {
		f, err := connections.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		f.Lookup = func(name string) (string, bool) {
			v, ok := map[string]string{"DB_PASSWORD": "canary-password", "DB_HOST": "203.0.113.5"}[name]
			return v, ok
		}
		return f
	}
	const text = `
connections:
  test:
    main: {host: "${DB_HOST}", port: 3306, password: "${DB_PASSWORD}", nested: {list: [1, "a"]}}
    other: {host: 203.0.113.6, default: true}
`
	for _, tt := range []struct {
		name       string
		connection string
		file       string
		want       map[string]any // of the event that the driver emits
		resolve    []any          // alias, ok
		cleaned    string
	}{
		{
			name: "reference", connection: "@test.main", file: text,
			want: map[string]any{
				"connection": "@test.main", "family": "test", "alias": "main", "password": sum("canary-password"),
				"host": "203.0.113.5", "port": "3306", "nested": "map[list:[1 a]]", "keys": "_alias _family host nested password port", "left": "",
			},
			resolve: []any{"main", true},
			cleaned: `"password": "***MASKED***"`,
		},
		{
			name: "default", file: text,
			want: map[string]any{
				"connection": "@test", "family": "test", "alias": "other", "password": sum(nil), "host": "203.0.113.6", "port": "<nil>", "nested": "<nil>",
				"keys": "_alias _family host", "left": "",
			},
			resolve: []any{"default", true},
			cleaned: `"_alias": "other"`,
		},
		{
			name: "none", file: "connections: {mysql: {a: {host: h}}}",
			want: map[string]any{
				"connection": "", "family": "<nil>", "alias": "<nil>", "password": sum(nil), "host": "<nil>", "port": "<nil>", "nested": "<nil>", "keys": "", "left": "",
			},
			cleaned: `{}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range kinds {
				t.Run(kind, func(t *testing.T) {
					a, _ := newAdapter(t, kind, remote.Config{Connections: file(tt.file)}, nil)
					ec := newContext(t, "s")
					result, _, err := remote.Run(t.Context(), a, connected("test.connection", tt.connection, nil), ec)
					if err != nil {
						t.Fatal(err)
					}
					agree(t, ec, result, err)
					got := events(t, ec, "connection")[0]
					for _, k := range []string{"ts", "session", "event", "step_id"} {
						delete(got, k)
					}
					if diff := cmp.Diff(tt.want, got); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
					var resolve []any
					for _, e := range events(t, ec, "connection_resolve_complete") {
						if e["step_id"] != "step" || e["family"] != "test" {
							t.Errorf("event %v", e)
						}
						resolve = append(resolve, e["alias"], e["ok"])
					}
					if diff := cmp.Diff(tt.resolve, resolve); diff != "" || len(events(t, ec, "connection_resolve_start")) != len(resolve)/2 {
						t.Errorf("events (-want +got):\n%s", diff)
					}
					b, err := os.ReadFile(filepath.Join(ec.LogsDir, "artifacts", "step", "cleaned_config.json"))
					if err != nil || !strings.Contains(string(b), tt.cleaned) {
						t.Errorf("cleaned config %s, error %v", b, err)
					}
				})
			}
		})
	}
}

// TestConnectionErrors: what is wrong with a connection is said before a
// sandbox is made, in the reference implementation's words.
func TestConnectionErrors(t *testing.T) {
	f, err := connections.Parse([]byte(`connections: {mysql: {a: {password: "${REMOTE_TEST_UNSET}"}, b: {}}, empty: {}}`))
	if err != nil {
		t.Fatal(err)
	}
	vault := connections.ResolverFunc(func(context.Context, connections.Reference) (*connections.Connection, error) {
		return nil, errors.New("the vault is closed")
	})
	for _, tt := range []struct {
		name, driver, connection string
		resolver                 connections.Resolver
		prepares                 bool // the error is Execute's
		is                       error
		want                     string
	}{
		{name: "no dot", connection: "@mysql", is: connections.ErrReference, want: "Invalid connection reference format: '@mysql'. Expected '@family.alias'"},
		{name: "empty part", connection: "@mysql.", is: connections.ErrReference, want: "Invalid connection reference format: '@mysql.'. Family and alias cannot be empty"},
		{name: "no connections", connection: "@mysql.a", resolver: &connections.File{}, is: connections.ErrNotConfigured, want: "No connections configured. Create osiris_connections.yaml with mysql connections."},
		{name: "unknown family", driver: "other.x", connection: "@other.a", is: connections.ErrNotConfigured, want: "Connection family 'other' not found. Available families: empty, mysql"},
		{name: "unknown alias", connection: "@mysql.c", is: connections.ErrNotConfigured, want: "Connection alias 'c' not found in family 'mysql'. Available aliases: a, b"},
		{name: "mismatch", driver: "supabase.writer", connection: "@mysql.a", is: connections.ErrFamily, want: "Connection family mismatch: step uses supabase, ref is mysql"},
		{name: "unset variable", connection: "@mysql.a", prepares: true, want: "Environment variable 'REMOTE_TEST_UNSET' not set for password in mysql.a"},
		{name: "vault", connection: "@mysql.a", resolver: vault, prepares: true, want: "the vault is closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			provider := mock.NewProvider(nil)
			cfg := remote.Config{OpenSandbox: provider.OpenSandbox, Connections: f}
			if tt.resolver != nil {
				cfg.Connections = tt.resolver
			}
			if tt.driver == "" {
				tt.driver = "mysql.extractor"
			}
			a, err := remote.NewE2BTransparentProxy(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := newContext(t, "s")
			p, err := a.Prepare(t.Context(), connected(tt.driver, tt.connection, nil), ec)
			if tt.prepares {
				if err != nil {
					t.Fatal(err)
				}
				_, err = a.Execute(t.Context(), p, ec)
				done := events(t, ec, "connection_resolve_complete")
				if len(done) != 1 || done[0]["ok"] != false || !strings.Contains(fmt.Sprint(done[0]["error"]), tt.want) {
					t.Errorf("events %v", done)
				}
				if ended := events(t, ec, "run_error"); len(ended) != 1 || ended[0]["failed_step"] != "step" {
					t.Errorf("events %v", ended)
				}
				if _, err := a.Network(t.Context(), p); err == nil || !strings.Contains(err.Error(), `step "step"`) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("network: error %v", err)
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `step "step"`) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if len(provider.Sandboxes()) != 0 {
				t.Error("a sandbox was made")
			}
		})
	}
}

// TestConnectionRefresh: credentials that last for a moment are renewed while a
// step runs, and a failure to do so is survived.
func TestConnectionRefresh(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			vault := connections.ResolverFunc(func(_ context.Context, ref connections.Reference) (*connections.Connection, error) {
				n := asked.Add(1)
				if n == 2 {
					return nil, errors.New("the vault is closed")
				}
				return &connections.Connection{
					Family: ref.Family, Alias: ref.Alias, RefreshAt: time.Now().Add(time.Millisecond),
					Fields: map[string]any{"password": secrets.New(fmt.Sprintf("canary-password-%d", n)), "n": n},
				}, nil
			})
			a, _ := newAdapter(t, kind, remote.Config{Connections: vault}, nil)
			ec := newContext(t, "s")
			result, _, err := remote.Run(t.Context(), a, connected("test.refreshed", "@test.short", map[string]any{"n": 3}), ec)
			agree(t, ec, result, err)
			if err != nil {
				t.Fatal(err)
			}
			refreshed := events(t, ec, "connection_refreshed")
			if len(refreshed) < 2 || refreshed[0]["ok"] != false || refreshed[1]["ok"] != true {
				t.Errorf("events %v", refreshed)
			}
			for name, text := range tree(t, ec.LogsDir) {
				if strings.Contains(text, "canary-password") {
					t.Errorf("%s has a password", name)
				}
			}
		})
	}
}

// TestSecretsOfRestarts: a worker that takes another's place is told the
// secrets, too.
func TestSecretsOfRestarts(t *testing.T) {
	for _, kind := range append([]string{"local"}, servedKinds[1:]...) {
		t.Run(kind, func(t *testing.T) {
			a, _ := newAdapter(t, kind, remote.Config{
				Restarts: 1, Connections: connections.Static{"@test.main": {"password": "canary-password"}},
				Env: map[string]string{"REMOTE_TEST_VALUE": "canary-variable"},
			}, nil)
			ec := newContext(t, "s")
			m := connected("test.die-once", "@test.main", map[string]any{"file": "died"})
			m.Steps[0].Repeatable = true
			result, _, err := remote.Run(t.Context(), a, m, ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
			if got := events(t, ec, "secrets"); len(got) != 1 || got[0]["password"] != sum("canary-password") || got[0]["variable"] != sum("canary-variable") {
				t.Errorf("events %v", got)
			}
			if len(events(t, ec, "worker_restarted")) != 1 {
				t.Error("the worker was not restarted")
			}
		})
	}
}

// TestKeyNeverPassed: the account's key does not go into a sandbox under
// another name, either.
func TestKeyNeverPassed(t *testing.T) {
	t.Setenv("E2B_API_KEY", "e2b_canary")
	t.Setenv("REMOTE_TEST_VALUE", "e2b_canary")
	other := remote.Config{APIKey: "e2b_another", Env: map[string]string{"OTHER": "e2b_canary"}} // of a server on this machine, say
	if _, err := remote.NewLocalAdapter(other); !errors.Is(err, remote.ErrInvalid) || strings.Contains(err.Error(), "e2b_canary") {
		t.Errorf("Env, beside another key: error %v", err)
	}
	if _, err := remote.NewLocalAdapter(remote.Config{Env: map[string]string{"OTHER": "e2b_canary"}}); !errors.Is(err, remote.ErrInvalid) || strings.Contains(err.Error(), "e2b_canary") {
		t.Errorf("Env: error %v", err)
	}
	a, _ := newAdapter(t, "in process", remote.Config{PassEnv: []string{"REMOTE_TEST_VALUE"}}, nil)
	if _, _, err := remote.Run(t.Context(), a, one("test.env"), newContext(t, "s")); !errors.Is(err, remote.ErrInvalid) || strings.Contains(err.Error(), "e2b_canary") {
		t.Errorf("PassEnv: error %v", err)
	}
}
