package csv_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// Copies a table from file to file, as a pipeline of two steps does.
func Example() {
	dir, err := os.MkdirTemp("", "csv")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	content := "user,active,score\nann,true,1\nbob,false,\n"
	if err := os.WriteFile(filepath.Join(dir, "users.csv"), []byte(content), 0o600); err != nil {
		panic(err)
	}

	ctx := context.Background()
	extract := &worker.Step{ID: "extract", BasePath: dir, Config: map[string]any{"path": "users.csv"}}
	res, err := new(csv.Extractor).Run(ctx, extract)
	if err != nil {
		panic(err)
	}
	out := res.Outputs[worker.DefaultOutput]
	users, err := worker.ReadDataFrame(out)
	out.Release()
	if err != nil {
		panic(err)
	}
	defer users.Release()

	write := &worker.Step{
		ID: "write", ArtifactsDir: dir,
		Config: map[string]any{"path": "sorted.csv"},
		Inputs: map[string]*worker.DataFrame{"df": users},
	}
	if _, err := new(csv.Writer).Run(ctx, write); err != nil {
		panic(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "sorted.csv"))
	if err != nil {
		panic(err)
	}
	fmt.Print(string(b))
	// Output:
	// active,score,user
	// True,1.0,ann
	// False,,bob
}
