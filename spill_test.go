package remote_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
)

// cardStep is what run_card.json says of where a step's tables were.
type cardStep struct {
	InMemory bool     `json:"has_df_in_memory"`
	Spilled  bool     `json:"spill_used"`
	Paths    []string `json:"spill_paths"`
}

func cardSteps(t *testing.T, files *remote.CollectedArtifacts) map[string]cardStep {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "_system", "run_card.json"))
	if err != nil {
		t.Fatal(err)
	}
	var card struct {
		Steps []struct {
			ID string `json:"step_id"`
			cardStep
		} `json:"steps"`
	}
	if err := json.Unmarshal(b, &card); err != nil {
		t.Fatal(err)
	}
	steps := make(map[string]cardStep)
	for _, s := range card.Steps {
		steps[s.ID] = s.cardStep
	}
	return steps
}

// A run whose tables go to disk gives what one does whose tables stay in memory,
// also where a driver is in Python, and says where they were.
func TestMemoryBudget(t *testing.T) {
	const join, copied = "write-paid-orders/output/paid_orders.csv", "write-users/output/users.csv"
	joined, err := os.ReadFile("testdata/osiris/ours/csv_join_duckdb.expected_paid_orders.csv")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{join: string(joined)} // or what the first one gives
	for _, test := range []struct {
		plan, kind, file string
		budget           int64
	}{
		{"csv-copy", "in process", copied, 1 << 30},
		{"csv-copy", "in process", copied, 1},
		{"csv-copy", "proxy", copied, 1},
		{"csv-join-duckdb", "local", join, 1},
	} {
		t.Run(fmt.Sprintf("%s/%s/%d", test.plan, test.kind, test.budget), func(t *testing.T) {
			cfg := remote.Config{MemoryBudget: test.budget}
			if test.file == join {
				cfg.Python, cfg.PythonDrivers = testPython(t), shop(t, map[string]string{"duckdb.processor": "DuckDBProcessor"})
			}
			a, _ := newAdapter(t, test.kind, cfg, nil)
			ec := newContext(t, "s")
			result, files, err := remote.Run(t.Context(), a, compiled(t, test.plan)(), ec)
			agree(t, ec, result, err)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, filepath.FromSlash(test.file)))
			if err != nil {
				t.Fatal(err, files.Artifacts)
			}
			if want[test.file] == "" {
				want[test.file] = string(got)
			}
			if diff := cmp.Diff(want[test.file], string(got)); diff != "" || len(got) == 0 {
				t.Error(diff)
			}
			started := events(t, ec, "worker_started")[0]
			if started["memory_budget"] != float64(test.budget) || runtime.GOOS == "linux" && started["memory_bytes"] == nil {
				t.Errorf("the worker's budget: %v", started)
			}
			spills := test.budget == 1
			cards := make(map[string]cardStep)
			tables := 0
			for _, step := range result.StepResults {
				card := cardStep{Paths: []string{}}
				if step.RowsOut > 0 {
					tables++
					card.InMemory, card.Spilled = !spills, spills
				}
				if card.Spilled {
					card.Paths = append(card.Paths, "outputs/"+step.StepID+"/0.arrow")
				}
				cards[step.StepID] = card
			}
			if diff := cmp.Diff(cards, cardSteps(t, files)); diff != "" {
				t.Errorf("run card (-want +got):\n%s", diff)
			}
			if n := len(events(t, ec, "output_spilled")); spills && n != tables || !spills && n != 0 || tables == 0 {
				t.Errorf("%d of %d outputs went to disk", n, tables)
			}
			for _, e := range events(t, ec, "inputs_resolved") {
				if e["from_spill"] != spills || e["from_memory"] != !spills {
					t.Errorf("%v", e)
				}
			}
		})
	}
}
