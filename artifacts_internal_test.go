package remote

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

// What Config.Artifacts leaves open is set by the variables of the reference
// implementation, and those that make no sense are refused.
func TestPolicy(t *testing.T) {
	const mb = 1 << 20
	filter := []string{"_system/**", "**/*.txt", "**/*.json", "**/*.sql"}
	system := []string{"_system/**", "**/*run_card.json", "**/*cleaned_config.json"}
	for _, test := range []struct {
		data, max string
		policy    ArtifactPolicy
		want      rpc.SealArtifacts
		fault     string // in the error
	}{
		{},
		{max: "7", want: rpc.SealArtifacts{MaxFileBytes: 7 * mb}},
		{data: "1", max: "7"},
		{data: "0", want: rpc.SealArtifacts{Include: filter, Always: system, MaxFileBytes: 5 * mb}},
		{data: "0", max: "7", want: rpc.SealArtifacts{Include: filter, Always: system, MaxFileBytes: 7 * mb}},
		{data: "0", policy: ArtifactPolicy{Include: []string{"a/**"}}, want: rpc.SealArtifacts{Include: []string{"a/**"}, MaxFileBytes: 5 * mb}},
		{data: "0", policy: ArtifactPolicy{MaxFileBytes: 3}, want: rpc.SealArtifacts{Include: filter, Always: system, MaxFileBytes: 3}},
		{data: "1", policy: ArtifactPolicy{MaxFileBytes: 3, Exclude: []string{"b"}}, want: rpc.SealArtifacts{MaxFileBytes: 3, Exclude: []string{"b"}}},
		{max: "7", policy: ArtifactPolicy{MaxFileBytes: 3}, want: rpc.SealArtifacts{MaxFileBytes: 3}},
		{max: "0", fault: "E2B_ARTIFACT_MAX_MB"},
		{max: "-1", fault: "E2B_ARTIFACT_MAX_MB"},
		{max: "5MB", fault: "E2B_ARTIFACT_MAX_MB"},
		{max: "99999999999999999999", fault: "E2B_ARTIFACT_MAX_MB"},
		{data: "all", fault: "E2B_DOWNLOAD_DATA_ARTIFACTS"},
		{policy: ArtifactPolicy{MaxFileBytes: -1}, fault: "MaxFileBytes"},
		{policy: ArtifactPolicy{Include: []string{"a/["}}, fault: `Artifacts.Include: "a/["`},
		{policy: ArtifactPolicy{Exclude: []string{"/a"}}, fault: "Artifacts.Exclude"},
		{policy: ArtifactPolicy{Exclude: []string{strings.Repeat("x", 5000)}}, fault: "too long"},
		{policy: ArtifactPolicy{Exclude: manyGlobs()}, fault: "limit"},
	} {
		t.Setenv("E2B_DOWNLOAD_DATA_ARTIFACTS", test.data)
		t.Setenv("E2B_ARTIFACT_MAX_MB", test.max)
		cfg := Config{Artifacts: test.policy}
		if err := cfg.validate(); test.fault != "" || err != nil {
			if !errors.Is(err, ErrInvalid) || test.fault == "" || !strings.Contains(err.Error(), test.fault) {
				t.Errorf("%+v: %v", test, err)
			}
			continue
		}
		got, err := cfg.policy()
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("%+v: (-want +got):\n%s%v", test, diff, err)
		}
	}
}

func manyGlobs() (globs []string) {
	for range 100 {
		globs = append(globs, strings.Repeat("x", 1000))
	}
	return globs
}

// The reference implementation's filter, as a table of what it takes; and files
// that ExecutionContext.Outputs names, whatever they are called.
func TestPolicyOfReference(t *testing.T) {
	t.Setenv("E2B_DOWNLOAD_DATA_ARTIFACTS", "0")
	t.Setenv("E2B_ARTIFACT_MAX_MB", "")
	policy, err := Config{}.policy()
	if err != nil {
		t.Fatal(err)
	}
	policy = wantedOutputs(policy, map[string]string{"a/wanted[1].parquet": "/x"})
	for name, want := range map[string][2]bool{ // small and large
		"_system/pip_install.log":     {true, true},
		"a/run_card.json":             {true, true},
		"a/deep/cleaned_config.json":  {true, true},
		"a/x.txt":                     {true, false},
		"a/x.json":                    {true, false},
		"a/deep/x.sql":                {true, false},
		"a/output.pkl":                {false, false},
		"a/output.parquet":            {false, false},
		"a/x.feather":                 {false, false},
		"a/x.csv":                     {false, false},
		"a/wanted[1].parquet":         {true, true},
		"a/wanted1.parquet":           {false, false},
		"a/sub/a/wanted[1].parquet":   {false, false},
		"a/wanted[1].parquet/as/a/di": {false, false},
	} {
		for i, size := range []int64{5 << 20, 5<<20 + 1} {
			if got := policy.Unwanted(name, size) == ""; got != want[i] {
				t.Errorf("%s of %d bytes: wanted %t", name, size, got)
			}
		}
	}
}

// A file that a newer list does not mention stays on it, to be missing.
func TestWithLost(t *testing.T) {
	files := func(names ...string) (list []rpc.Artifact) {
		for _, name := range names {
			list = append(list, rpc.Artifact{Path: name})
		}
		return list
	}
	older := &sealed{artifacts: files("a/changed", "a/gone", "a/skipped")}
	got := (&sealed{artifacts: files("a/changed", "a/new"), skipped: []SkippedArtifact{{Path: "a/skipped"}}}).withLost(older)
	if diff := cmp.Diff(files("a/changed", "a/new", "a/gone"), got.artifacts); diff != "" {
		t.Error(diff)
	}
	// What was skipped without a name may be any of them.
	if got := (&sealed{artifacts: files("a/changed"), more: 1}).withLost(older); len(got.artifacts) != 1 {
		t.Errorf("%+v", got.artifacts)
	}
}
