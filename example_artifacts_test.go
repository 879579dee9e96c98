package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// reports is a driver that leaves two files.
type reports struct{}

func (reports) Run(_ context.Context, s *worker.Step) (*worker.Result, error) {
	for _, name := range []string{"report.csv", "scratch/notes.tmp"} {
		f, err := s.Create(name)
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintln(f, "a,b")
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func ExampleArtifactPolicy() {
	drivers := worker.NewRegistry()
	drivers.Register("example.reports", worker.Write, func() worker.Driver { return reports{} })
	provider := mock.NewProvider(&mock.Options{Drivers: drivers}) // in the place of E2B
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers:     drivers,
		OpenSandbox: provider.OpenSandbox,
		Artifacts:   remote.ArtifactPolicy{Exclude: []string{"**/*.tmp"}, MaxFileBytes: 1 << 30},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "session-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	m := &remote.Manifest{Name: "reports", Steps: []remote.Step{{ID: "make", Driver: "example.reports"}}}
	_, files, err := remote.Run(context.Background(), adapter, m, &remote.ExecutionContext{SessionID: "s", LogsDir: dir})
	if err != nil {
		var partial *remote.CollectError
		if errors.As(err, &partial) {
			fmt.Println("missing:", partial.Failed)
		}
		fmt.Println(err)
		return
	}
	fmt.Println(files.Status)
	for _, a := range files.Artifacts {
		fmt.Println("here:", a.Path, a.Size, a.Verified)
	}
	for _, s := range files.Skipped {
		fmt.Println("not here:", s.Path, s.Reason)
	}
	// Output:
	// complete
	// here: make/cleaned_config.json 2 sha256
	// here: make/report.csv 4 sha256
	// not here: make/scratch/notes.tmp the glob "**/*.tmp" excludes it
}
