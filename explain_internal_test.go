package remote

import (
	"os"
	"testing"
)

// A worker that cannot run at E2B, or is none, is no reason to begin with a build.
func TestExplainUnsuitableWorker(t *testing.T) {
	t.Parallel()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for worker, refused := range map[workerProgram]bool{
		{path: own, platform: "linux/amd64"}:             false,
		{path: own, platform: "darwin/arm64"}:            true,
		{path: "/nowhere/true", platform: "linux/amd64"}: true, // it is not in Go
		{path: "/nowhere/worker.sh"}:                     false,
	} {
		d := &derivation{needed: takeDerived, allowed: true, worker: &worker}
		for _, ready := range []bool{false, true} {
			d.ready = ready
			plan := new(StartPlan)
			plan.derive(d, true)
			if (plan.Refused != "") != (refused && !ready) {
				t.Errorf("%+v, ready %t: refused: %q", worker, ready, plan.Refused)
			}
		}
	}
}
