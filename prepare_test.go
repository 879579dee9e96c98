package remote_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file under testdata/golden.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got), rewrite it with -update:\n%s", path, diff)
	}
}

func csvDrivers() *worker.Registry {
	r := worker.NewRegistry()
	csv.Register(r)
	return r
}

func TestPrepareIsDeterministic(t *testing.T) {
	t.Setenv("MYSQL_PASSWORD", "hunter2-canary")
	for _, name := range []string{"csv-copy", "mysql-to-supabase-all-tables"} {
		for _, kind := range []string{"local", "proxy"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				cfg := remote.Config{
					Drivers: csvDrivers(), Connections: testConnections(), PassEnv: []string{"MYSQL_PASSWORD", "REMOTE_TEST_UNSET"}, Env: map[string]string{"EXTRA": "canary-2"},
					CPU: 2, MemoryGB: 4,
				}
				if name != "csv-copy" {
					cfg.Drivers = nil // the drivers are another worker's
				}
				var a adapter
				var err error
				if kind == "local" {
					a, err = remote.NewLocalAdapter(cfg)
				} else {
					cfg.OpenSandbox = mock.NewProvider(nil).OpenSandbox
					a, err = remote.NewE2BTransparentProxy(cfg)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				ec := newContext(t, "run_1")
				var first []byte
				for range 3 {
					m, err := remote.LoadManifest("testdata/osiris/compiled/" + name + "/manifest.yaml")
					if err != nil {
						t.Fatal(err)
					}
					p, err := a.Prepare(t.Context(), m, ec)
					if err != nil {
						t.Fatal(err)
					}
					b, err := json.MarshalIndent(p, "", "  ")
					if err != nil {
						t.Fatal(err)
					}
					if first == nil {
						first = b
					}
					if !bytes.Equal(first, b) {
						t.Fatalf("prepared twice:\n%s", cmp.Diff(string(first), string(b)))
					}
					for _, secret := range []string{"canary", ec.LogsDir} {
						if bytes.Contains(b, []byte(secret)) {
							t.Errorf("it contains %q", secret)
						}
					}
					// What was stored can be used.
					var stored remote.PreparedRun
					if err := json.Unmarshal(b, &stored); err != nil {
						t.Fatal(err)
					}
					if again, err := json.MarshalIndent(&stored, "", "  "); err != nil || !bytes.Equal(b, again) {
						t.Errorf("stored and read: %v\n%s", err, cmp.Diff(string(b), string(again)))
					}
				}
				golden(t, "prepared-"+name+"-"+kind+".json", first)
			})
		}
	}
	if entries, err := os.ReadDir("run_logs"); err == nil {
		t.Errorf("Prepare wrote files: %v", entries)
	}
}

func TestPrepareRefuses(t *testing.T) {
	a, err := remote.NewLocalAdapter(remote.Config{Drivers: csvDrivers(), InProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	extract := func(config map[string]any) *remote.Manifest {
		return &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "filesystem.csv_extractor", Config: config}}}
	}
	for _, tt := range []struct {
		name string
		m    *remote.Manifest
		is   error
		want []string
	}{
		{"nil", nil, remote.ErrInvalid, []string{"no steps"}},
		{"inline secret", extract(map[string]any{"path": "csv/supabase_users.csv", "auth": map[string]any{"password": "x"}}), remote.ErrInvalid, []string{`"a"`, "auth/password", "${NAME}"}},
		{"missing file", extract(map[string]any{"path": "csv/none.csv"}), os.ErrNotExist, []string{`"a"`, "csv/none.csv"}},
		{"no path", extract(map[string]any{}), remote.ErrInvalid, []string{`"a"`, "path"}},
		{"config path", &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "d", CfgPath: "../../x"}}}, remote.ErrInvalid, []string{"below cfg/"}},
		{"same config", &remote.Manifest{Steps: []remote.Step{
			{ID: "a", Driver: "filesystem.csv_writer", CfgPath: "cfg/x.json", Config: map[string]any{}}, {ID: "b", Driver: "filesystem.csv_writer", CfgPath: "cfg/x.json", Config: map[string]any{}},
		}}, remote.ErrInvalid, []string{"cfg/x.json"}},
		{"config not loaded", &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "filesystem.csv_writer", CfgPath: "cfg/x.json"}}}, remote.ErrInvalid, []string{"cfg/x.json was not loaded"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.Prepare(t.Context(), tt.m, newContext(t, "s"))
			if !errors.Is(err, tt.is) {
				t.Fatalf("error %v", err)
			}
			contains(t, err.Error(), tt.want...)
		})
	}
	for _, id := range []string{"", "a/b", "..", "a\nb", "."} {
		ec := newContext(t, "s")
		ec.SessionID = id
		if _, err := a.Prepare(t.Context(), extract(map[string]any{"path": "csv/supabase_users.csv"}), ec); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("session id %q: %v", id, err)
		}
	}
}

func TestConfigIsRefused(t *testing.T) {
	open := mock.NewProvider(nil).OpenSandbox
	for name, cfg := range map[string]remote.Config{
		"cpu":         {OpenSandbox: open, CPU: -1},
		"memory":      {OpenSandbox: open, MemoryGB: -1},
		"timeout":     {OpenSandbox: open, Timeout: -1},
		"policy":      {OpenSandbox: open, OnFailure: "continue"},
		"root":        {OpenSandbox: open, Root: "relative"},
		"variable":    {OpenSandbox: open, PassEnv: []string{"A=B"}},
		"no sandbox":  {},
		"in process":  {OpenSandbox: open, InProcess: true},
		"concurrency": {OpenSandbox: open, Concurrency: -1},
	} {
		if _, err := remote.NewE2BTransparentProxy(cfg); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
