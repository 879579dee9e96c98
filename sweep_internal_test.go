package remote

import (
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/e2b"
)

// One look at a sandbox decides by E2B's times and its metadata alone.
func TestJudge(t *testing.T) {
	now := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	info := func(edit func(*e2b.SandboxInfo)) e2b.SandboxInfo {
		i := e2b.SandboxInfo{
			ID: "i1", State: e2b.Running, StartedAt: now.Add(-time.Hour), EndAt: now.Add(time.Minute), SeenAt: now,
			Metadata: map[string]string{libraryKey: libraryMark, sessionKey: "s", ownerKey: "other", leaseKey: "300", timeoutKey: "36000"},
		}
		edit(&i)
		return i
	}
	left := func(d time.Duration) func(*e2b.SandboxInfo) {
		return func(i *e2b.SandboxInfo) { i.EndAt = now.Add(d) }
	}
	metadata := func(key, value string) func(*e2b.SandboxInfo) {
		return func(i *e2b.SandboxInfo) { i.Metadata[key] = value }
	}
	for _, test := range []struct {
		name   string
		edit   func(*e2b.SandboxInfo)
		older  time.Duration
		orphan bool
		reason string
	}{
		{"renewed just now", left(300 * time.Second), 0, false, "renewed lately"},
		{"to be renewed now", left(200 * time.Second), 0, false, "renewed lately"},
		{"a little late", left(176 * time.Second), 0, false, "renewed lately"},
		{"late", left(174 * time.Second), 0, true, "was not renewed, and has 2m54s left"},
		{"over", left(-time.Second), 0, true, "has 0s left"},
		{"short lease, renewed", metadata(leaseKey, "60"), 0, false, "its lease of 1m0s was renewed lately"},
		{"long lease, not renewed", metadata(leaseKey, "3600"), 0, true, "was not renewed"},
		{"waits for Collect at the end of its grace", left(200 * time.Second), 0, false, "renewed lately"},
		{"own", metadata(ownerKey, "me"), 0, false, "own"},
		{"young", left(time.Second), 2 * time.Hour, false, "not older than 2h0m0s"},
		{"old enough", left(time.Second), time.Hour, true, "was not renewed"},
		{"no lease", metadata(leaseKey, ""), 0, false, "does not say"},
		{"no lease of this world", metadata(leaseKey, "99999999999999999999"), 0, false, "does not say"},
		{"negative lease", metadata(leaseKey, "-5"), 0, false, "does not say"},
		{"at the account's limit", func(i *e2b.SandboxInfo) {
			i.Metadata[timeoutKey], i.StartedAt, i.EndAt = "3300", now.Add(-58*time.Minute), now.Add(2*time.Minute)
		}, 0, false, "as late as it may be"},
		{"no timeout", metadata(timeoutKey, ""), 0, true, "was not renewed"},
		{"no clock", func(i *e2b.SandboxInfo) { i.SeenAt = time.Time{} }, 0, true, "does not move"},
		{"no clock, and an age asked for", func(i *e2b.SandboxInfo) { i.SeenAt = time.Time{} }, time.Minute, false, "not older"},
		{"paused", func(i *e2b.SandboxInfo) { i.State, i.EndAt = e2b.Paused, now.Add(-time.Minute) }, 0, true, "paused"},
		{"paused lately", func(i *e2b.SandboxInfo) { i.State, i.EndAt = e2b.Paused, now.Add(-time.Minute) }, 2 * time.Minute, false, "not older"},
		{"another state", func(i *e2b.SandboxInfo) { i.State = "melting" }, 0, false, "not known"},
		{"no metadata", func(i *e2b.SandboxInfo) { i.Metadata = nil }, 0, false, "does not say"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := judge(info(test.edit), "me", test.older)
			if got.Orphan != test.orphan || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("orphan: %t, since %s; want %t, %q", got.Orphan, got.Reason, test.orphan, test.reason)
			}
		})
	}
}
