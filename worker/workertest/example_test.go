package workertest_test

import (
	"testing"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/workertest"
)

// A test of a driver: here, that of the CSV writer. The golden file is written
// by "go test -update", with a flag of the test's own.
func Example() {
	_ = func(t *testing.T) { // TestWriter
		c := workertest.Case{
			Config: map[string]any{"path": "people.csv"},
			Inputs: map[string]*worker.DataFrame{
				"df_people": workertest.Rows(t, []string{"id", "name"}, []any{1, "ann"}, []any{2, nil}),
			},
		}
		newWriter := func() worker.Driver { return &csv.Writer{} }

		result, err := workertest.Run(t, newWriter(), c)
		if err != nil {
			t.Fatal(err)
		}
		result.Golden(t, "testdata/writer.txt", *update)
		workertest.CheckCancel(t, newWriter, c)
		workertest.CheckMemory(t, newWriter, c)
		workertest.CheckSecrets(t, newWriter, c, "the password of its connection")
	}
}
