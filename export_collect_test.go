package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	"github.com/osiris-pipelines/remote/worker"
)

// Sealed is a place with artifacts, for benchmarks of their download.
type Sealed struct {
	place *place
	list  *sealed
}

// Seal lists what is below the artifacts directory of a folder in a sandbox.
func Seal(ctx context.Context, sb Sandbox, program, dir string, steps ...string) (*Sealed, error) {
	s := &Sealed{place: &place{sandbox: sb, program: program, dir: dir}}
	limit := collecting{steps: make(map[string]bool), files: defaultMaxArtifacts, bytes: 1 << 50}
	for _, step := range steps {
		limit.steps[step] = true
	}
	var err error
	s.list, err = seal(ctx, s.place, limit)
	return s, err
}

// Download brings all of it to a directory, which exists.
func (s *Sealed) Download(ctx context.Context, to string, verify Verify) (*CollectedArtifacts, error) {
	got := &CollectedArtifacts{ArtifactsDir: to}
	err := download(ctx, s.place, s.list, got, verify, func(_ slog.Level, f string, args ...any) { fmt.Printf(f+"\n", args...) }, func() error { return nil })
	return got, err
}

// RunIn runs a command in a sandbox to its end.
func RunIn(ctx context.Context, sb Sandbox, name string, args ...string) error {
	_, status, err := capture(ctx, sb, Command{Path: name, Args: args}, 1<<20)
	if err == nil && status != (ExitStatus{}) {
		err = errors.New(status.String())
	}
	return err
}

// InstallWorker uploads a worker program, and makes it executable.
func InstallWorker(ctx context.Context, a *E2BTransparentProxy, sb Sandbox) (string, error) {
	sum, err := a.sendWorker(ctx, sb, nil)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return sum.Path, RunIn(ctx, sb, sum.Path, worker.Arg, "version")
}

// ArtifactsOf is the folder of a step's artifacts in a run's folder.
func ArtifactsOf(dir, step string) string { return path.Join(dir, "artifacts", step) }
