package remote

import "testing"

// A worker that cannot run at E2B is no reason to begin with a build.
func TestExplainUnsuitableWorker(t *testing.T) {
	t.Parallel()
	for platform, refused := range map[string]bool{"linux/amd64": false, "darwin/arm64": true} {
		d := &derivation{needed: takeDerived, allowed: true, worker: &workerProgram{platform: platform}}
		for _, ready := range []bool{false, true} {
			d.ready = ready
			plan := new(StartPlan)
			plan.derive(d, true)
			if (plan.Refused != "") != (refused && !ready) {
				t.Errorf("%s, ready %t: refused: %q", platform, ready, plan.Refused)
			}
		}
	}
}
