package remote_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// An Attach that cannot reach the sandbox says nothing of the run: it leaves
// everything to the next one.
func TestAttachFailsForNow(t *testing.T) {
	t.Parallel()
	var down atomic.Pointer[string]
	server := newServer(t, "served", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if p := down.Load(); p != nil && *p == "all" {
			return &mock.HTTPFault{Status: http.StatusBadGateway}
		} else if p != nil && strings.Contains(r.Procedure, *p) {
			return &mock.HTTPFault{Status: http.StatusForbidden, Header: http.Header{"Content-Type": {"application/json"}}, Body: `{"code":403,"message":"not now"}`}
		}
		return nil
	}))
	marks := filepath.Join(t.TempDir(), "marks")
	dir := orphan(t, server, marks)
	before := tree(t, dir)
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name  string
		ctx   context.Context
		fails string
	}{
		{"no connection to the sandbox", t.Context(), "/connect"},
		{"no connection to the process", t.Context(), "process.Process/Connect"},
		{"no way to E2B", t.Context(), "all"},
		{"cancelled", over, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.fails != "" {
				down.Store(&test.fails)
				defer down.Store(nil)
			}
			err := attach(test.ctx, cfg, dir)
			if err == nil || errors.Is(err, remote.ErrSandboxGone) || test.ctx == over && !errors.Is(err, context.Canceled) {
				t.Errorf("attach: %v", err)
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("the session has changed (-before +after):\n%.2000s", diff)
			}
			if n := len(server.Alive()); n != 1 {
				t.Errorf("%d sandboxes, want that of the run", n)
			}
		})
	}
	if err := attach(t.Context(), cfg, dir); err != nil {
		t.Errorf("attach after that: %v", err)
	}
	if got, err := os.ReadFile(marks); err != nil || string(got) != "mark-1\nmark-2\nmark-3\n" {
		t.Errorf("steps that ran: %q, %v", got, err)
	}
}

// A run whose time was over when somebody came for it has failed, and what it
// has made is there to be collected.
func TestAttachAfterTimeout(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	dir := orphan(t, server, "")
	rewrite(t, filepath.Join(dir, "prepared.json"), `"timeout_seconds": 300,`, `"timeout_seconds": 0.001,`)
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ec := &remote.ExecutionContext{}
	p, result, err := a.Attach(t.Context(), dir, ec)
	if !errors.Is(err, remote.ErrTimeout) {
		t.Fatalf("attach: %v", err)
	}
	agree(t, ec, result, err)
	files, err := a.Collect(t.Context(), p, ec)
	if err != nil || len(files.Artifacts) == 0 {
		t.Errorf("collect: %v, %+v", err, files)
	}
	if n := len(server.Alive()); n > 0 {
		t.Errorf("%d sandboxes are left", n)
	}
}

// rewrite changes a text in a file.
func rewrite(t *testing.T, name, from, to string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		t.Fatalf("no %s in %.2000s", from, b)
	}
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(b), from, to)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An adapter that cannot take a run leaves its session directory free.
func TestAttachRefusedByAdapter(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	dir := orphan(t, server, "")
	before := tree(t, dir)
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server)
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Attach(t.Context(), dir, &remote.ExecutionContext{}); !errors.Is(err, remote.ErrClosed) {
		t.Errorf("attach: %v", err)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("session directory (-before +after):\n%.1000s", diff)
	}
	if err := attach(t.Context(), cfg, dir); err != nil {
		t.Errorf("attach by another: %v", err)
	}
}

// A host may die while it writes an answer: the half line is no part of the
// run, for any of its successors.
func TestAttachTwice(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	marks := filepath.Join(t.TempDir(), "marks")
	dir := orphan(t, server, marks)
	f, err := os.OpenFile(filepath.Join(dir, "answers.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"step_id":"mark-1","respo`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server)
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Attach(t.Context(), dir, &remote.ExecutionContext{}); err != nil {
		t.Fatal(err)
	}
	// As it is when this host dies, too; that nobody has collected yet is all
	// the next one needs to know.
	second := filepath.Join(t.TempDir(), "s")
	copyTree(t, dir, second)
	for line := range bytes.Lines([]byte(tree(t, second)["answers.jsonl"])) {
		if !json.Valid(line) {
			t.Errorf("answers.jsonl has %.100q", line)
		}
	}
	if err := attach(t.Context(), cfg, second); err != nil {
		t.Errorf("attach: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(marks); err != nil || string(got) != "mark-1\nmark-2\nmark-3\n" {
		t.Errorf("steps that ran: %q, %v", got, err)
	}
}

// A run that failed before its worker was there has left nothing, whoever
// collects it.
func TestAttachToRunWithoutWorker(t *testing.T) {
	t.Parallel()
	server := newServer(t, "embedded", testDrivers(), mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		if r.Procedure == "POST /files" {
			return &mock.HTTPFault{Status: http.StatusInsufficientStorage, Body: `{"code":507,"message":"not enough disk space"}`}
		}
		return nil
	}))
	cfg := connect(remote.Config{Drivers: testDrivers()}, server)
	first, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ec := newContext(t, "s")
	p, err := first.Prepare(t.Context(), flood(1), ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Execute(t.Context(), p, ec); err == nil {
		t.Fatal("executed without a worker")
	}
	second, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	own := &remote.ExecutionContext{}
	q, result, err := second.Attach(t.Context(), ec.LogsDir, own)
	if err == nil {
		t.Fatalf("attach: %+v", result)
	}
	if _, err := second.Collect(t.Context(), q, own); err != nil {
		t.Errorf("collect: %v", err)
	}
}

// Of two hosts that believe a run theirs that has ended, the one that comes
// later has it: the other neither removes its sandbox nor calls it a failure.
func TestTwoHostsCollect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		late func(t *testing.T, first *remote.E2BTransparentProxy, p *remote.PreparedRun, ec *remote.ExecutionContext)
	}{
		{"collect", func(t *testing.T, first *remote.E2BTransparentProxy, p *remote.PreparedRun, ec *remote.ExecutionContext) {
			if _, err := first.Collect(t.Context(), p, ec); !errors.Is(err, remote.ErrOwnershipLost) {
				t.Errorf("first host collects: %v", err)
			}
		}},
		{"close", func(t *testing.T, first *remote.E2BTransparentProxy, _ *remote.PreparedRun, _ *remote.ExecutionContext) {
			if err := first.Close(); err != nil {
				t.Errorf("first host closes: %v", err)
			}
		}},
	} {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/before=%v", test.name, before), func(t *testing.T) {
				t.Parallel()
				server := newServer(t, "served", testDrivers())
				cfg := connect(remote.Config{Drivers: testDrivers()}, server)
				first, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer first.Close()
				ec := newContext(t, "s")
				p, err := first.Prepare(t.Context(), flood(1), ec)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := first.Execute(t.Context(), p, ec); err != nil {
					t.Fatal(err)
				}
				second, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer second.Close()
				own := &remote.ExecutionContext{}
				q, _, err := second.Attach(t.Context(), ec.LogsDir, own)
				if err != nil {
					t.Fatal(err)
				}
				if before {
					test.late(t, first, p, ec)
				}
				if _, err := second.Collect(t.Context(), q, own); err != nil {
					t.Errorf("collect: %v", err)
				}
				if !before {
					test.late(t, first, p, ec)
				}
				if st := readStatus(t, own); !st.OK || !st.SessionCopied {
					t.Errorf("status %+v", st)
				}
				for _, name := range []string{"sandbox.json", "answers.jsonl"} {
					if _, err := os.Stat(filepath.Join(own.LogsDir, name)); err == nil {
						t.Errorf("%s is left", name)
					}
				}
			})
		}
	}
}

// A run that failed, and whose host died before it had said so, has failed of
// the same cause for the next host: not of the end of a worker that was told to
// end, nor of the steps that were stopped.
func TestAttachToFailure(t *testing.T) {
	t.Parallel()
	step := func(id, driver string, needs ...string) remote.Step {
		return remote.Step{ID: id, Driver: driver, Config: map[string]any{}, Needs: needs}
	}
	for _, onFailure := range []remote.OnFailure{remote.StopAll, remote.StopDependents} {
		for _, kind := range servedKinds {
			t.Run(fmt.Sprintf("%s/%s", onFailure, kind), func(t *testing.T) {
				t.Parallel()
				m := &remote.Manifest{Name: "fail", Steps: []remote.Step{
					step("well", "test.noop"), step("fail", "test.fail"), step("after", "test.noop", "fail"), step("last", "test.noop", "well"),
				}}
				server := newServer(t, kind, testDrivers())
				cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 3, OnFailure: onFailure}, server)
				first, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer first.Close()
				ec := newContext(t, "s")
				dir := filepath.Join(t.TempDir(), "s")
				ec.OnEvent = func(_ context.Context, e remote.Event) error {
					if e.Name == "cleanup_complete" { // the verdict waits for this
						copyTree(t, ec.LogsDir, dir)
					}
					return nil
				}
				p, err := first.Prepare(t.Context(), m, ec)
				if err != nil {
					t.Fatal(err)
				}
				want, wantErr := first.Execute(t.Context(), p, ec)
				second, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer second.Close()
				own := &remote.ExecutionContext{}
				q, got, err := second.Attach(t.Context(), dir, own)
				if diff := cmp.Diff(fmt.Sprint(wantErr), fmt.Sprint(err)); diff != "" {
					t.Errorf("error (-first +second):\n%s", diff)
				}
				ignore := cmpopts.IgnoreFields(remote.StepResult{}, "DurationMS", "Metrics")
				if diff := cmp.Diff(want.StepResults, got.StepResults, ignore); diff != "" {
					t.Errorf("steps (-first +second):\n%s", diff)
				}
				if _, err := second.Collect(t.Context(), q, own); err != nil {
					t.Errorf("collect: %v", err)
				}
			})
		}
	}
}

// A run that its host was stopping when it died was stopped, and did not crash.
func TestAttachToStoppedRun(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	cfg := connect(remote.Config{Drivers: testDrivers(), Concurrency: 1}, server)
	first, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ec := newContext(t, "s")
	dir := filepath.Join(t.TempDir(), "s")
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		switch e.Name {
		case "waiting":
			cancel()
		case "cleanup_complete":
			copyTree(t, ec.LogsDir, dir)
		}
		return nil
	}
	step := func(id, driver string) remote.Step {
		return remote.Step{ID: id, Driver: driver, Config: map[string]any{}}
	}
	p, err := first.Prepare(t.Context(), &remote.Manifest{Name: "stopped", Steps: []remote.Step{
		step("well", "test.noop"), step("wait", "test.wait"), step("never", "test.noop"),
	}}, ec)
	if err != nil {
		t.Fatal(err)
	}
	want, err := first.Execute(ctx, p, ec)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	second, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	own := &remote.ExecutionContext{}
	q, got, err := second.Attach(t.Context(), dir, own)
	var stopped *remote.StepError
	if !errors.As(err, &stopped) || stopped.StepID != "wait" || stopped.Type != "cancelled" {
		t.Errorf("attach: %v", err)
	}
	ignore := cmpopts.IgnoreFields(remote.StepResult{}, "DurationMS", "Metrics", "Error")
	if diff := cmp.Diff(want.StepResults, got.StepResults, ignore); diff != "" {
		t.Errorf("steps (-first +second):\n%s", diff)
	}
	if _, err := second.Collect(t.Context(), q, own); err != nil {
		t.Errorf("collect: %v", err)
	}
}

// A create that nobody waits for any more is not forgotten with the host that
// looks for what it has made.
func TestAttachRemembersCreates(t *testing.T) {
	t.Parallel()
	server := newServer(t, "served", testDrivers())
	dir := orphan(t, server, "")
	name := filepath.Join(dir, "sandbox.json")
	lost := server.Alive()[0]
	rewrite(t, name, lost.ID, "") // as if the host had died before it was answered
	rewrite(t, name, `"phase": "running"`, `"phase": "creating"`)
	a, err := remote.NewE2BTransparentProxy(connect(remote.Config{Drivers: testDrivers()}, server))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	checked := false
	ec := &remote.ExecutionContext{OnEvent: func(_ context.Context, e remote.Event) error {
		if e.Name == "step_start" && !checked {
			checked = true
			if b, err := os.ReadFile(name); err != nil || !strings.Contains(string(b), lost.Metadata["osiris_nonce"]) {
				t.Errorf("no nonce %s: %v in %s", lost.Metadata["osiris_nonce"], err, b)
			}
		}
		return nil
	}}
	p, _, err := a.Attach(t.Context(), dir, ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Error(err)
	}
}

// A worker that is frozen when somebody attaches is called that.
func TestAttachToFrozenWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		drivers := sleepers()
		c := newCloud(t, mock.WithOptions(mock.Options{Drivers: drivers, Programs: map[string]mock.Program{"osiris-worker": q.program(drivers)}}))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		first, net := c.proxy(remote.Config{Timeout: 2 * time.Hour})
		ec := newContext(t, "s")
		running.Go(func() { _, _, _ = remote.Run(ctx, first, sleep(time.Hour), ec) })
		time.Sleep(time.Minute)
		net.die()
		q.freeze("T")
		defer q.thaw()
		dir := filepath.Join(t.TempDir(), "s")
		copyTree(t, ec.LogsDir, dir)
		second, _ := c.proxy(remote.Config{Timeout: 2 * time.Hour})
		_, _, err := second.Attach(t.Context(), dir, &remote.ExecutionContext{})
		var crash *remote.WorkerCrashError
		if !errors.As(err, &crash) || crash.Verdict != remote.VerdictFrozen {
			t.Errorf("attach: %v", err)
		}
	})
}
