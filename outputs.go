package remote

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// placeOutputs copies artifacts to where ExecutionContext.Outputs wants them.
func placeOutputs(ctx context.Context, ec *ExecutionContext, got *CollectedArtifacts, complete bool) error {
	for _, name := range slices.Sorted(maps.Keys(ec.Outputs)) {
		i := slices.IndexFunc(got.Artifacts, func(a Artifact) bool { return a.Path == name })
		if i < 0 && !complete {
			continue
		}
		to := hostPath(ec, ec.Outputs[name])
		if i < 0 {
			return fmt.Errorf("the run left no artifact %q to copy to %s", name, to)
		}
		if err := copyFile(ctx, filepath.Join(got.ArtifactsDir, filepath.FromSlash(name)), to); err != nil {
			return fmt.Errorf("copy artifact %q to %s: %w", name, to, cause(err))
		}
		got.Artifacts[i].Output = to
	}
	return nil
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
