package parquet_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/parquet"
)

// Makes a Parquet file of a CSV file, as a pipeline of two steps does, and reads
// one of its columns.
func Example() {
	dir, err := os.MkdirTemp("", "parquet")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "users.csv"), []byte("user,score\nann,1\nbob,2\n"), 0o600); err != nil {
		panic(err)
	}
	run := func(d worker.Driver, step *worker.Step) *worker.DataFrame {
		res, err := d.Run(context.Background(), step)
		if err != nil {
			panic(err)
		}
		if res == nil {
			return nil
		}
		out := res.Outputs[worker.DefaultOutput]
		defer out.Release()
		df, err := worker.ReadDataFrame(out)
		if err != nil {
			panic(err)
		}
		return df
	}

	users := run(new(csv.Extractor), &worker.Step{BasePath: dir, Config: map[string]any{"path": "users.csv"}})
	defer users.Release()
	run(new(parquet.Writer), &worker.Step{
		ArtifactsDir: dir,
		Config:       map[string]any{"path": "users.parquet", "compression": "zstd"},
		Inputs:       map[string]*worker.DataFrame{"df": users},
	})

	scores := run(new(parquet.Extractor), &worker.Step{BasePath: dir, Config: map[string]any{"path": "users.parquet", "columns": []any{"score"}}})
	defer scores.Release()
	r := scores.Reader()
	defer r.Release()
	for r.Next() {
		fmt.Println(r.Record().ColumnName(0), r.Record().Column(0))
	}
	// Output: score [1 2]
}
