package remote

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/osiris-pipelines/remote/rpc"
)

// ArtifactPolicy says which files of a run are brought home. The zero value
// means all of them. What it leaves behind is in [CollectedArtifacts].Skipped;
// what [ExecutionContext].Outputs names is brought home whatever it says.
//
// Globs are matched with paths as those of [Artifact]: "*", "?" and "[a-z]" as in
// path.Match stand for what is in one element of a path, and an element "**" for
// any number of elements, also none: "step/**/*.csv", "**/*.parquet".
type ArtifactPolicy struct {
	Include []string // of which one has to match; none means every file
	Exclude []string // of which none may match

	// MaxFileBytes is how many bytes a file may have. Zero means no limit. A
	// larger file is not read in the sandbox either.
	MaxFileBytes int64
}

// Verify says how an artifact is compared with what the sandbox has sealed.
type Verify string

// The ways to verify. SHA-256 takes a core for some 350 MB/s where the processor
// has no instructions for it; XXH3 runs at the speed of memory, and finds damage
// but no malice, of which only the sandbox itself would be capable.
const (
	VerifySHA256 Verify = "sha256" // the default
	VerifyXXH3   Verify = "xxh3"   // the SHA-256 of a result is then the sandbox's word
	VerifyNone   Verify = "none"   // only sizes are compared
)

// The variables of the reference implementation, which set what Config.Artifacts
// leaves open.
const (
	dataArtifactsVariable = "E2B_DOWNLOAD_DATA_ARTIFACTS"
	artifactMaxVariable   = "E2B_ARTIFACT_MAX_MB"
)

const (
	// defaultArtifactMB is the reference implementation's limit of a file where
	// data is not wanted.
	defaultArtifactMB = 5
	// maxPolicyBytes bounds the globs of a policy, and maxWanted what a command
	// is told of it: an argument of a Linux process is no longer than 128 KiB.
	maxPolicyBytes = 64 << 10
	maxWanted      = 120 << 10
)

// policy is what a run brings home: Config.Artifacts and the variables.
//
// E2B_DOWNLOAD_DATA_ARTIFACTS=0 is the reference implementation's filter: what
// its system writes, and .txt, .json and .sql up to a size.
func (c Config) policy() (rpc.SealArtifacts, error) {
	p := rpc.SealArtifacts{Include: c.Artifacts.Include, Exclude: c.Artifacts.Exclude, MaxFileBytes: c.Artifacts.MaxFileBytes}
	fail := func(name, value, want string) (rpc.SealArtifacts, error) {
		return rpc.SealArtifacts{}, fmt.Errorf("remote: %w: the variable %s is %.40q, want %s", ErrInvalid, name, value, want)
	}
	limit := int64(0)
	if text := os.Getenv(artifactMaxVariable); text != "" {
		mb, err := strconv.ParseInt(text, 10, 64)
		if err != nil || mb < 1 || mb > 1<<40 {
			return fail(artifactMaxVariable, text, "a number of megabytes, 1 or more")
		}
		limit = mb << 20
	}
	data, given := true, false
	if text := os.Getenv(dataArtifactsVariable); text != "" {
		var err error
		if data, err = strconv.ParseBool(text); err != nil {
			return fail(dataArtifactsVariable, text, "0 or 1")
		}
		given = true
	}
	switch {
	case given && data:
		limit = 0
	case given:
		if limit == 0 {
			limit = defaultArtifactMB << 20
		}
		if len(p.Include) == 0 {
			p.Include = []string{"_system/**", "**/*.txt", "**/*.json", "**/*.sql"}
			p.Always = []string{"_system/**", "**/*run_card.json", "**/*cleaned_config.json"}
		}
	}
	if p.MaxFileBytes == 0 {
		p.MaxFileBytes = limit
	}
	return p, nil
}

// validate says what is wrong with a policy, as invalid says it of a Config.
func (p ArtifactPolicy) validate(invalid func(format string, args ...any) error) error {
	if p.MaxFileBytes < 0 {
		return invalid("Artifacts.MaxFileBytes is %d", p.MaxFileBytes)
	}
	total := 0
	for name, globs := range map[string][]string{"Include": p.Include, "Exclude": p.Exclude} {
		for _, glob := range globs {
			if err := rpc.CheckGlob(glob); err != nil {
				return invalid("Artifacts.%s: %w", name, err)
			}
			total += len(glob)
		}
	}
	if total > maxPolicyBytes {
		return invalid("Artifacts has globs of %d bytes, limit is %d", total, maxPolicyBytes)
	}
	return nil
}

// wantedOutputs adds the files that are wanted whatever the policy says.
func wantedOutputs(p rpc.SealArtifacts, outputs map[string]string) rpc.SealArtifacts {
	if len(p.Include) == 0 && len(p.Exclude) == 0 && p.MaxFileBytes == 0 {
		return p
	}
	p.Always = slices.Clone(p.Always)
	for _, name := range slices.Sorted(maps.Keys(outputs)) {
		p.Always = append(p.Always, rpc.EscapeGlob(name))
	}
	return p
}

// artifactsFile lists in a session directory what was brought home, and what was
// not.
const artifactsFile = "artifacts.json"

// artifactList is artifacts.json.
type artifactList struct {
	SchemaVersion int               `json:"schema_version"`
	SessionID     string            `json:"session_id"`
	Status        CollectStatus     `json:"status"`
	Artifacts     []Artifact        `json:"artifacts"`
	Skipped       []SkippedArtifact `json:"skipped"`
	SkippedMore   int               `json:"skipped_more"` // without a name
	Failed        []SkippedArtifact `json:"failed"`
}

// writeArtifacts writes what a collection has brought.
func (s *session) writeArtifacts(got *CollectedArtifacts, failed []SkippedArtifact) error {
	err := writeJSON(s.path(artifactsFile), artifactList{
		SchemaVersion: SchemaVersion, SessionID: s.id, Status: got.Status,
		Artifacts: got.Artifacts, Skipped: append([]SkippedArtifact{}, got.Skipped...), SkippedMore: got.SkippedMore,
		Failed: append([]SkippedArtifact{}, failed...),
	})
	if err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	return nil
}
