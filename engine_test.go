package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/rpc"
)

// fakeSandbox does what its functions do.
type fakeSandbox struct {
	Sandbox
	kill     func(ctx context.Context) error
	download func(ctx context.Context, name string) (io.ReadCloser, error)
}

func (f *fakeSandbox) Info() SandboxInfo              { return SandboxInfo{ID: "fake"} }
func (f *fakeSandbox) Kill(ctx context.Context) error { return f.kill(ctx) }
func (f *fakeSandbox) Download(ctx context.Context, name string) (io.ReadCloser, error) {
	return f.download(ctx, name)
}

// A removal that is not answered is tried again, and one that never is ends.
func TestKillSurely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		stalls := int64(1)
		sb := &fakeSandbox{kill: func(ctx context.Context) error {
			if tries.Add(1) > stalls {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		if err := killSurely(t.Context(), sb, cleanupGrace); err != nil || tries.Load() != 2 {
			t.Errorf("%d tries, error %v", tries.Load(), err)
		}
		stalls = 1000
		start := time.Now()
		if err := killSurely(t.Context(), sb, cleanupGrace); err == nil || !strings.Contains(err.Error(), "fake") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took > cleanupGrace+killPatience {
			t.Errorf("it took %s", took)
		}
	})
}

func TestCheckEnd(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name string
		end  time.Time
		want string // of the error; empty for none
	}{
		{"unknown", time.Time{}, ""},
		{"just enough", start.Add(time.Hour + collectLease - time.Second), ""},
		{"too short", start.Add(time.Hour), "set Config.Timeout to 55m0s or less"},
		{"no time at all", start.Add(time.Minute), "there is no time for a run"},
		{"no limit", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), ""},
		{"nonsense", start.Add(-time.Hour), "there is no time for a run"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := checkEnd(time.Hour, &e2b.SandboxInfo{StartedAt: start, EndAt: test.end})
			if (err == nil) != (test.want == "") || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// What takes long is given up with the context.
func TestHashingIsCancelled(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&input{file: name}).read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("input: %v", err)
	}
	if _, err := new(programs).load(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("worker: %v", err)
	}
}

func TestClip(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""}, {"12345678", "12345678"}, {"123456789", "12345678... (9 bytes)"}, {"1234567é", "1234567... (9 bytes)"},
	} {
		if got := clip(test.in, 8); got != test.want {
			t.Errorf("clip(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

// A worker cannot fill the host's memory and disk with answers that nobody has
// asked for.
func TestInheritedAnswers(t *testing.T) {
	l := &link{
		place:   &place{plan: &Manifest{Steps: []Step{{ID: "a"}, {ID: "b"}}}},
		session: &session{}, pending: make(map[int64]*pendingCall), early: make(map[int64]struct{}),
	}
	waiting := &pendingCall{stepID: "b", answer: make(chan *rpc.Response, 1)}
	l.pending[7] = waiting
	for i := range 1000 {
		for _, result := range []string{`{"step_id":"a"}`, `{"step_id":"b"}`, fmt.Sprintf(`{"step_id":"x%d"}`, i), `{"step_id":7}`, `{}`} {
			if err := l.inherit(&rpc.Response{ID: "req_1", Result: json.RawMessage(result)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff([]string{"a"}, l.inherited.order); diff != "" {
		t.Errorf("kept answers (-want +got):\n%s", diff)
	}
	if len(l.settled) != 2 || len(waiting.answer) != 1 || len(l.pending) != 0 {
		t.Errorf("%d steps are settled, %d answers arrived, %d wait", len(l.settled), len(waiting.answer), len(l.pending))
	}
}
