package worker_test

import (
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/worker"
)

func TestOnlyInput(t *testing.T) {
	a, b := new(worker.DataFrame), new(worker.DataFrame)
	for _, test := range []struct {
		name   string
		inputs map[string]*worker.DataFrame
		want   *worker.DataFrame
		err    string
	}{
		{"none", nil, nil, "no inputs"},
		{"of one need", map[string]*worker.DataFrame{"df": a, "df_a": a}, a, ""},
		{"of the step's own", map[string]*worker.DataFrame{"movies": a}, a, ""},
		{"of two needs", map[string]*worker.DataFrame{"df_a": a, "df_b": b}, nil, "inputs df_a, df_b"},
		{"two of the step's own", map[string]*worker.DataFrame{"df": a, "movies": b}, nil, "inputs df, movies"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := (&worker.Step{Inputs: test.inputs}).OnlyInput()
			if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %p, %v", got, err)
			}
		})
	}
}
