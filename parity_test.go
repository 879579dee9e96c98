package remote_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote"
)

// fanOut is a plan of ten sources and a join of three of them.
func fanOut() *remote.Manifest {
	m := &remote.Manifest{Name: "fan-out"}
	for i := range 10 {
		m.Steps = append(m.Steps, remote.Step{
			ID: fmt.Sprintf("source-%d", i), Driver: "test.rows", Config: map[string]any{"start": i * 10, "rows": i},
		})
	}
	m.Steps = append(m.Steps,
		remote.Step{ID: "join", Driver: "test.concat", Needs: []string{"source-1", "source-2", "source-9"}},
		remote.Step{ID: "write", Driver: "test.write", Needs: []string{"join"}, Config: map[string]any{"path": "/abs/n.txt"}},
		remote.Step{ID: "after", Driver: "test.noop", Needs: []string{"write"}},
	)
	return m
}

func compiled(t testing.TB, name string) func() *remote.Manifest {
	return func() *remote.Manifest {
		m, err := remote.LoadManifest("testdata/osiris/compiled/" + name + "/manifest.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

func failing() *remote.Manifest {
	m := fanOut()
	m.Steps[10].Driver = "test.panic"
	return m
}

// TestParity runs manifests on every adapter and compares all they leave
// behind: only times, ids and durations may differ.
func TestParity(t *testing.T) {
	t.Parallel()
	for name, manifest := range map[string]func() *remote.Manifest{
		"fan-out": fanOut, "join": join, "failing": failing,
		"csv-copy":                      compiled(t, "csv-copy"),
		"mysql-to-local-csv-all-tables": compiled(t, "mysql-to-local-csv-all-tables"),
	} {
		t.Run(name, func(t *testing.T) {
			var first session
			for _, kind := range kinds {
				cfg := remote.Config{Concurrency: 3}
				if strings.HasPrefix(name, "mysql") {
					cfg.Egress = remote.EgressOpen // its configs name localhost, and the driver here connects to nothing
				}
				a, _ := newAdapter(t, kind, cfg, nil)
				ec := newContext(t, "s")
				result, _, _ := remote.Run(t.Context(), a, manifest(), ec)
				got := normalized(t, ec, result)
				if kind == kinds[0] {
					first = got
					continue
				}
				if diff := cmp.Diff(first, got, cmpopts.IgnoreUnexported(session{})); diff != "" {
					t.Errorf("%s differs from %s (-%s +%s):\n%s", kind, kinds[0], kinds[0], kind, diff)
				}
			}
			checkOrder(t, manifest(), first)
			if name == "failing" {
				return
			}
			for _, event := range []string{"step_start", "step_complete", "cfg_opened", "artifact_created"} {
				n := 0
				for _, of := range first.Steps {
					for _, e := range of {
						if strings.Contains(e, `"event":"`+event+`"`) {
							n++
						}
					}
				}
				if want := len(manifest().Steps); n != want {
					t.Errorf("%d events %s of %d steps", n, event, want)
				}
			}
		})
	}
}

// session is what a run leaves behind, without what may differ.
type session struct {
	Result    string
	Run       []string            // run-level events, in order
	Steps     map[string][]string // events by step, in order
	Metrics   map[string][]string // by step, in order; the run's by name
	Artifacts map[string]string
	Files     []string
	Status    string
	Config    map[string]string
	order     []string // step starts and ends, as they came
}

func normalized(t *testing.T, ec *remote.ExecutionContext, result *remote.ExecResult) session {
	t.Helper()
	got := session{Steps: map[string][]string{}, Metrics: map[string][]string{}, Artifacts: map[string]string{}, Config: map[string]string{}}
	got.Result = plain(t, result)
	for _, e := range lines(t, filepath.Join(ec.LogsDir, "events.jsonl")) {
		name, step := e["event"].(string), fmt.Sprint(e["step_id"])
		switch {
		case strings.HasPrefix(name, "sandbox_"), strings.HasPrefix(name, "network_"): // the sandbox's own
		case e["step_id"] == nil:
			got.Run = append(got.Run, plain(t, e))
		default:
			got.Steps[step] = append(got.Steps[step], plain(t, e))
			if name == "step_start" || name == "step_complete" || name == "step_failed" {
				got.order = append(got.order, name+" "+step)
			}
		}
	}
	for _, m := range lines(t, filepath.Join(ec.LogsDir, "metrics.jsonl")) {
		name := m["metric"].(string)
		if strings.HasPrefix(name, "worker_") { // heartbeats
			continue
		}
		if strings.Contains(name, "duration") || strings.HasSuffix(name, "_ms") || name == "artifacts_bytes_total" {
			m["value"] = nil
		}
		key := fmt.Sprint(m["step_id"])
		if m["step_id"] == nil {
			key = "metric " + name
		}
		got.Metrics[key] = append(got.Metrics[key], plain(t, m))
	}
	for name, content := range tree(t, ec.LogsDir) {
		got.Files = append(got.Files, name)
		switch {
		case name == "status.json":
			got.Status = normalJSON(t, content)
		case name == "artifacts/_system/run_card.json":
			got.Artifacts[name] = normalJSON(t, content)
		case strings.HasPrefix(name, "artifacts/"):
			got.Artifacts[name] = content
		case strings.HasPrefix(name, "cfg/"), name == "manifest.yaml":
			got.Config[name] = content
		}
	}
	slices.Sort(got.Files)
	return got
}

// plain prints a value without times, ids and durations.
func plain(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return normalJSON(t, string(b))
}

func normalJSON(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	b, _ := json.Marshal(normalize(v))
	return string(b)
}

func normalize(v any) any {
	switch v := v.(type) {
	case map[string]any:
		v = maps.Clone(v)
		for k, e := range v {
			switch k {
			case "receipt", "ts", "end_time", "duration_ms", "duration_seconds", "pid", "sandbox_id", "session_path", "traceback":
				v[k] = "*"
			default:
				v[k] = normalize(e)
			}
		}
		return v
	case []any:
		v = slices.Clone(v)
		for i, e := range v {
			v[i] = normalize(e)
		}
		return v
	}
	return v
}

// checkOrder checks that every step started after what it needs was complete.
func checkOrder(t *testing.T, m *remote.Manifest, s session) {
	t.Helper()
	at := map[string]int{}
	for i, what := range s.order {
		at[what] = i + 1
	}
	for _, step := range m.Steps {
		for _, need := range step.Needs {
			started, done := at["step_start "+step.ID], at["step_complete "+need]
			if started > 0 && (done == 0 || done > started) {
				t.Errorf("step %s started before %s was complete", step.ID, need)
			}
		}
	}
}
