package remote_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
)

func TestLoadManifest(t *testing.T) {
	dirs, err := filepath.Glob("testdata/osiris/compiled/*/manifest.yaml")
	if err != nil || len(dirs) != 7 {
		t.Fatalf("%d manifests, %v", len(dirs), err)
	}
	for _, name := range dirs {
		t.Run(filepath.Base(filepath.Dir(name)), func(t *testing.T) {
			m, err := remote.LoadManifest(name)
			if err != nil {
				t.Fatal(err)
			}
			var plan struct{ Steps []struct{ ID, Driver string } }
			b, err := os.ReadFile(filepath.Join(filepath.Dir(name), "plan.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &plan); err != nil {
				t.Fatal(err)
			}
			if len(plan.Steps) != len(m.Steps) {
				t.Fatalf("%d steps, want %d", len(m.Steps), len(plan.Steps))
			}
			for i, s := range m.Steps {
				if s.ID != plan.Steps[i].ID || s.DriverName() != plan.Steps[i].Driver {
					t.Errorf("step %d is %s with %s", i, s.ID, s.DriverName())
				}
				if s.Config["component"] != s.Component || s.Component == "" {
					t.Errorf("step %s: config %v", s.ID, s.Config)
				}
			}
			if m.ID() == "" || m.Profile() != "dev" || m.Metadata["source_manifest_path"] != name {
				t.Errorf("id %q, profile %q, metadata %v", m.ID(), m.Profile(), m.Metadata)
			}
			// JSON is read as YAML is, and what is written is read again.
			b, err = json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			again, err := remote.ParseManifest(b, os.DirFS(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m, again); diff != "" {
				t.Errorf("read again (-first +again):\n%s", diff)
			}
		})
	}
}

func TestManifestKeepsUnknownKeys(t *testing.T) {
	m, err := remote.ParseManifest([]byte(`
pipeline: {id: p, extra: [1, 2]}
meta: {generated_at: 2026-01-02T03:04:05Z, big: 12345678901234567890}
owner: somebody
steps:
- {id: a, driver: d, retries: 3, config: {limit: 9007199254740993}}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"meta":{"big":12345678901234567890,"generated_at":"2026-01-02T03:04:05Z"},"owner":"somebody",` +
		`"pipeline":{"extra":[1,2],"id":"p"},"steps":[{"config":{"limit":9007199254740993},"driver":"d","id":"a","needs":[],"retries":3}]}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestManifestIsRefused(t *testing.T) {
	steps := func(s string) string { return "pipeline: {id: p}\nmeta: {}\nsteps:\n" + s }
	for _, tt := range []struct {
		name, doc string
		want      []string
	}{
		{"empty", "", []string{"empty"}},
		{"a list", "- 1", []string{"not a mapping"}},
		{"broken YAML", "steps: [", []string{"line 1"}},
		{"broken JSON", `{"steps": [}`, []string{"did not find expected"}},
		{"two documents", "a: 1\n---\nb: 2", []string{"more than one"}},
		{"trailing JSON", `{"steps":[]} x`, []string{""}},
		{"no steps", "pipeline: {}\nmeta: {}", []string{"no steps"}},
		{"empty steps", steps(" []"), []string{"no steps"}},
		{"no meta", "pipeline: {}\nsteps: [{id: a, driver: d}]", []string{`no "meta"`}},
		{"no pipeline", "meta: {}\nsteps: [{id: a, driver: d}]", []string{`no "pipeline"`}},
		{"OML", "oml_version: 0.1.0\nsteps: [{id: a, component: d}]", []string{"OML pipeline", "compile it"}},
		{"steps of another type", "pipeline: {}\nmeta: {}\nsteps: {a: 1}", []string{`"steps"`}},
		{"a step of another type", steps("- 7"), []string{"not an object"}},
		{"needs of another type", steps("- {id: a, driver: d, needs: b}"), []string{`"needs"`}},
		{"no id", steps("- {driver: d}"), []string{"step 1", "no id"}},
		{"no driver", steps("- {id: a}"), []string{`"a"`, "no driver"}},
		{"duplicate id", steps("- {id: a, driver: d}\n- {id: b, driver: d}\n- {id: a, driver: d}"), []string{`"a"`, "steps 1 and 3"}},
		{"id with a separator", steps("- {id: a/b, driver: d}"), []string{"cannot name a folder"}},
		{"id that climbs", steps("- {id: .., driver: d}"), []string{"cannot name a folder"}},
		{"id of the system", steps("- {id: _system, driver: d}"), []string{"reserved"}},
		{"unknown need", steps("- {id: a, driver: d, needs: [b]}"), []string{`"a"`, `needs "b"`, "no such step"}},
		{"unknown input", steps("- {id: a, driver: d, inputs: {x: {from_step: b}}}"), []string{`input "x"`, `"b"`}},
		{"needs itself", steps("- {id: a, driver: d, needs: [a]}"), []string{"a needs a"}},
		{"cycle", steps("- {id: a, driver: d, needs: [c]}\n- {id: b, driver: d, needs: [a]}\n- {id: c, driver: d, needs: [b]}\n- {id: e, driver: d, needs: [a]}"), []string{"wait for each other", "a needs c needs b needs a"}},
		{"cycle through inputs", steps("- {id: a, driver: d, inputs: {x: {from_step: b}}}\n- {id: b, driver: d, needs: [a]}"), []string{"a needs b needs a"}},
		{"missing cfg", steps("- {id: a, driver: d, cfg_path: cfg/none.json}"), []string{`"a"`, "cfg/none.json", "does not exist"}},
		{"cfg path that climbs", steps("- {id: a, driver: d, cfg_path: ../x.json}"), []string{"below"}},
		{"absolute cfg path", steps("- {id: a, driver: d, cfg_path: /etc/passwd}"), []string{"below"}},
		{"cfg path outside cfg", steps("- {id: a, driver: d, cfg_path: status.json}"), []string{"below cfg/"}},
		{"broken cfg", steps("- {id: a, driver: d, cfg_path: cfg/broken.json}"), []string{`"a"`, "cfg/broken.json"}},
		{"legacy driver", steps("- {id: a, driver: extractors.supabase@0.1, cfg_path: cfg/gone.json}"), []string{"extractors.supabase@0.1", "old manifest", "compile"}},
		{"duplicate key", "pipeline: {}\npipeline: {}\nmeta: {}\nsteps: [{id: a, driver: d}]", []string{"pipeline"}},
		{"not a number", steps("- {id: a, driver: d, config: {x: .nan}}"), []string{"NaN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fstest.MapFS{"cfg/broken.json": {Data: []byte(`{"a": `)}, "status.json": {Data: []byte("{}")}}
			m, err := remote.ParseManifest([]byte(tt.doc), cfg)
			var me *remote.ManifestError
			if !errors.Is(err, remote.ErrInvalid) || !errors.As(err, &me) {
				t.Fatalf("manifest %v, error %v", m, err)
			}
			contains(t, err.Error(), tt.want...)
		})
	}
}

func TestOtherDocumentsAreRefused(t *testing.T) {
	for name, want := range map[string][]string{
		"pipelines_invalid/pre_oml_sample_pipeline.yaml":        {"extract/transform/load"},
		"pipelines_invalid/scenario_broken.yaml":                {"step 1", `"type"`, "before OML"},
		"pipelines_invalid/scenario_broken_fixed.yaml":          {"step 1", `"type"`, "before OML"},
		"pipelines_invalid/scenario_unfixable.yaml":             {"step 1", `"type"`, "before OML"},
		"pipelines_invalid/scenario_valid_legacy_type_key.yaml": {"step 1", `"type"`, "before OML"},
		"compiled/golden_manifest_legacy.yaml":                  {"extract_customers", "extractors.supabase@0.1", "old manifest"},
		"pipelines/supabase_to_mysql_legacy_uses_with.yaml":     {""},
		"pipelines/mysql_to_local_csv_all_tables.yaml":          {"OML", "compile"},
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			name := filepath.Join("testdata", "osiris", filepath.FromSlash(name))
			_, err := remote.LoadManifest(name)
			if !errors.Is(err, remote.ErrInvalid) {
				t.Fatal(err)
			}
			contains(t, err.Error(), append(want, name)...)
		})
	}
	if _, err := remote.LoadManifest("testdata/none.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing manifest: %v", err)
	}
}

// TestLongChain: a chain as long as the manifest is no problem, nor is a cycle
// at its end.
func TestLongChain(t *testing.T) {
	m := &remote.Manifest{}
	for i := range 100_000 {
		s := remote.Step{ID: fmt.Sprint("s", i), Driver: "d"}
		if i > 0 {
			s.Needs = []string{fmt.Sprint("s", i-1)}
		}
		m.Steps = append(m.Steps, s)
	}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	m.Steps[0].Needs = []string{"s99999"}
	if err := m.Validate(); err == nil || !strings.Contains(err.Error(), "s0 needs s99999 needs s99998") {
		t.Fatalf("%.100v", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	for _, pattern := range []string{"compiled/*/manifest.yaml", "compiled/*.yaml", "pipelines/*", "pipelines_invalid/*"} {
		names, _ := filepath.Glob(filepath.Join("testdata", "osiris", filepath.FromSlash(pattern)))
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil {
				f.Add(b)
			}
		}
	}
	f.Add([]byte(`{"pipeline":{},"meta":{},"steps":[{"id":"a","driver":"d","needs":[],"inputs":{"x":{"from_step":"a"}}}]}`))
	f.Add([]byte("pipeline: &a {b: *a}\nmeta: {}\nsteps: []"))
	cfg := fstest.MapFS{"cfg/a.json": {Data: []byte(`{"path":"x"}`)}}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := remote.ParseManifest(data, cfg)
		if err != nil {
			if m != nil || !errors.Is(err, remote.ErrInvalid) {
				t.Fatalf("manifest %v beside error %v", m, err)
			}
			return
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := remote.ParseManifest(b, cfg)
		if err != nil {
			t.Fatalf("%v of %s", err, b)
		}
		b2, err := json.Marshal(again)
		if err != nil || string(b) != string(b2) {
			t.Fatalf("%v\n%s\n%s", err, b, b2)
		}
	})
}
