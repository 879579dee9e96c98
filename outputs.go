package remote

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// checkOutputs refuses what placeOutputs could not do, before a run is made and
// paid for.
func checkOutputs(m *Manifest, ec *ExecutionContext) error {
	taken := make(map[string]string, len(ec.Outputs))
	for _, name := range slices.Sorted(maps.Keys(ec.Outputs)) {
		refuse := func(format string, args ...any) error {
			return fmt.Errorf("remote: %w: ExecutionContext.Outputs[%q]: %s", ErrInvalid, name, fmt.Sprintf(format, args...))
		}
		step, file, _ := strings.Cut(name, "/")
		if !slices.ContainsFunc(m.Steps, func(s Step) bool { return s.ID == step }) {
			return refuse("there is no step %q; an artifact's name begins with its step's id, as in \"step/file.csv\"", step)
		}
		if file == "" {
			return refuse("it names a step and no file of it")
		}
		to := hostPath(ec, ec.Outputs[name])
		if full, err := filepath.Abs(to); err == nil {
			to = full
		}
		if other, ok := taken[to]; ok {
			return refuse("it goes to %s, and so does %q", to, other)
		}
		taken[to] = name
		if info, err := os.Stat(to); err == nil && info.IsDir() {
			return refuse("it goes to %s, which is a directory; name a file", to)
		}
	}
	return nil
}

// placeOutputs copies artifacts to where ExecutionContext.Outputs wants them.
func placeOutputs(ctx context.Context, ec *ExecutionContext, got *CollectedArtifacts, complete bool) error {
	for _, name := range slices.Sorted(maps.Keys(ec.Outputs)) {
		i := slices.IndexFunc(got.Artifacts, func(a Artifact) bool { return a.Path == name })
		if i < 0 && !complete {
			continue
		}
		to := hostPath(ec, ec.Outputs[name])
		if j := slices.IndexFunc(got.Skipped, func(s SkippedArtifact) bool { return s.Path == name }); i < 0 && j >= 0 {
			return fmt.Errorf("the artifact %q to copy to %s was not brought home: %s", name, to, got.Skipped[j].Reason)
		}
		if i < 0 {
			return fmt.Errorf("the run left no artifact %q to copy to %s; it left %s", name, to, artifactNames(got.Artifacts))
		}
		if err := copyFile(ctx, filepath.Join(got.ArtifactsDir, filepath.FromSlash(name)), to); err != nil {
			return fmt.Errorf("copy artifact %q to %s: %w", name, to, cause(err))
		}
		got.Artifacts[i].Output = to
	}
	return nil
}

// artifactNames lists the artifacts that a user may have meant.
func artifactNames(artifacts []Artifact) string {
	const most = 20
	if len(artifacts) == 0 {
		return "none"
	}
	var names []string
	for i, a := range artifacts {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(artifacts)-most))
			break
		}
		names = append(names, strconv.Quote(a.Path))
	}
	return strings.Join(names, ", ")
}

// copyFile makes a copy that appears whole or not at all.
func copyFile(ctx context.Context, from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".output-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	_, err = io.Copy(out, &contextReader{ctx, in})
	if chmodErr := out.Chmod(0o640); err == nil {
		err = chmodErr
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}
