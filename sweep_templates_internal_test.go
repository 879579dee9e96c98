package remote

import (
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// What is not known, or being built, is left.
func TestJudgeTemplate(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, test := range map[string]struct {
		template e2b.Template
		unused   bool
		reason   string
	}{
		"never used":            {e2b.Template{CreatedAt: ago(90 * time.Hour), UpdatedAt: ago(60 * time.Hour), BuildStatus: e2b.BuildReady}, true, "nobody has used it for 60h0m0s"},
		"used, then built":      {e2b.Template{LastSpawnedAt: ago(60 * time.Hour), UpdatedAt: ago(time.Hour), BuildStatus: e2b.BuildReady}, false, "used in the last 50h"},
		"built, then used":      {e2b.Template{LastSpawnedAt: ago(time.Hour), UpdatedAt: ago(60 * time.Hour), BuildStatus: e2b.BuildReady}, false, "used in the last 50h"},
		"used lately":           {e2b.Template{LastSpawnedAt: ago(50*time.Hour - 1), BuildStatus: e2b.BuildReady}, false, "used in the last 50h"},
		"used before that":      {e2b.Template{LastSpawnedAt: ago(50 * time.Hour), BuildStatus: e2b.BuildReady}, true, "nobody has used it"},
		"failed":                {e2b.Template{UpdatedAt: ago(60 * time.Hour), BuildStatus: e2b.BuildFailed}, true, "nobody has used it"},
		"of a later server":     {e2b.Template{UpdatedAt: ago(60 * time.Hour), BuildStatus: "thinking"}, true, "nobody has used it"},
		"building":              {e2b.Template{UpdatedAt: ago(60 * time.Hour), BuildStatus: e2b.BuildRunning}, false, "being built"},
		"about to be built":     {e2b.Template{UpdatedAt: ago(23 * time.Hour), BuildStatus: e2b.BuildWaiting}, false, "about to be started"},
		"waiting for long":      {e2b.Template{UpdatedAt: ago(25 * time.Hour), BuildStatus: e2b.BuildWaiting}, false, "used in the last 50h"},
		"waiting for ever":      {e2b.Template{UpdatedAt: ago(60 * time.Hour), BuildStatus: e2b.BuildWaiting}, true, "never started"},
		"a server without time": {e2b.Template{BuildStatus: e2b.BuildReady}, false, "does not say"},
		"of the future":         {e2b.Template{UpdatedAt: now.Add(time.Hour), BuildStatus: e2b.BuildReady}, false, "used in the last 50h"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.template.SeenAt = now
			s := judgeTemplate(test.template, "osiris-x", 50*time.Hour)
			if s.Unused != test.unused || !strings.Contains(s.Reason, test.reason) {
				t.Errorf("got %+v", s)
			}
			test.template.SeenAt = time.Time{}
			if s := judgeTemplate(test.template, "osiris-x", 50*time.Hour); s.Unused {
				t.Errorf("by an unknown clock: %+v", s)
			}
		})
	}
}
