//go:build unix

package python

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

func hostileStep(t *testing.T, how string) (*worker.Step, *recorder) {
	return newStep(t, how, map[string]any{"how": how})
}

// What a driver does to its process does not reach the next step in it.
func TestNextStep(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	for _, how := range []string{"closes_streams", "redirects", "replaces", "silences", "sets_alarm", "forks"} {
		t.Run(how, func(t *testing.T) {
			step, _ := hostileStep(t, how)
			mustRun(t, p, driver("hostile", "Hostile"), step)
			child := p.idle[0]
			step, r := hostileStep(t, "next")
			step.ID += how
			mustRun(t, p, driver("hostile", "Hostile"), step)
			if len(p.idle) != 1 || p.idle[0] != child {
				t.Error("it was another process")
			}
			if got := p.printed(step.ID, "stdout"); !slices.Equal(got, []string{"printed"}) {
				t.Errorf("printed %q", got)
			}
			if want := []string{"log INFO logged logger=hostile"}; !slices.Equal(r.reported, want) {
				t.Errorf("reported %q, want %q", r.reported, want)
			}
		})
	}
}

func TestUnreadableErrors(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	for how, want := range map[string]string{
		"raises_unreadable":     "(the driver's exception cannot be read: SystemExit)",
		"raises_without_module": "(the driver's exception cannot be read: SystemExit)",
		"raises_much":           "bytes is too large",
	} {
		step, _ := hostileStep(t, how)
		_, err := p.run(t.Context(), driver("hostile", "Hostile"), step)
		var de *worker.DriverError
		if !errors.As(err, &de) || !strings.Contains(de.Message, want) {
			t.Errorf("%s: error %v, want %q", how, err, want)
		}
		if len(p.idle) != 1 {
			t.Fatalf("%s: the process has ended", how)
		}
	}
}

// Processes that a driver has forked use the pipe, too.
func TestForkedWorkersLog(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	step, r := hostileStep(t, "forked_workers_log")
	mustRun(t, p, driver("hostile", "Hostile"), step)
	for i := range 4 {
		for n := range 20 {
			if want := fmt.Sprintf("log INFO %d %d %s logger=hostile", i, n, strings.Repeat("x", 50_000)); !slices.Contains(r.reported, want) {
				t.Fatalf("of process %d line %d is missing", i, n)
			}
		}
	}
	if got := fmt.Sprint(values(t, step)["codes"]); got != "[0 0 0]" {
		t.Errorf("exit codes %v", got)
	}
}

func TestOddMetric(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	step, r := hostileStep(t, "odd_metrics")
	mustRun(t, p, driver("hostile", "Hostile"), step)
	if want := []string{`log WARN metric 'huge' is no finite number and is left out: int`}; !slices.Equal(r.reported, want) {
		t.Errorf("reported %.300q, want %q", r.reported, want)
	}
}

// What is no file is not waited for, and a link is not followed.
func TestNoFile(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"leaves_fifo", "leaves_link"} {
		p := newTestPool(t) // pyarrow is not what it was
		step, _ := hostileStep(t, how)
		if _, err := p.run(t.Context(), driver("hostile", "Hostile"), step); err == nil || !strings.Contains(err.Error(), `output "df"`) {
			t.Errorf("%s: error %v", how, err)
		}
		if left, err := filepath.Glob(filepath.Join(p.opts.dir, "out-*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %q is left, %v", how, left, err)
		}
	}
}

// The library writes down what a driver returns, so it must not be a secret.
func TestReturnedSecret(t *testing.T) {
	t.Parallel()
	p := newTestPool(t, func(o *poolOptions) { o.redact = secrets.NewRedactor("zzzz-not-for-you") })
	step, _ := newStep(t, "a", map[string]any{"how": "returns_secret", "secret": "zzzz-not-for-you"})
	mustRun(t, p, driver("hostile", "Hostile"), step)
	if got := fmt.Sprint(values(t, step)["values"]); got != "map[***:1 key:***]" {
		t.Error(got)
	}
}
