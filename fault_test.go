package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// executed prepares and executes a run.
func executed(t *testing.T, a adapter, ec *remote.ExecutionContext, m *remote.Manifest) *remote.PreparedRun {
	t.Helper()
	p, err := a.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	return p
}

func artifactPaths(files *remote.CollectedArtifacts) []string {
	var paths []string
	for _, a := range files.Artifacts {
		paths = append(paths, a.Path)
	}
	return paths
}

// A Collect that failed after all was brought home returns all of it the next
// time.
func TestCollectAfterLateFailure(t *testing.T) {
	a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
	ec := newContext(t, "s")
	p := executed(t, a, ec, join())
	sick := errors.New("sick")
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "run_end" {
			return sick
		}
		return nil
	}
	first, err := a.Collect(t.Context(), p, ec)
	if !errors.Is(err, sick) || first == nil || len(first.Artifacts) == 0 {
		t.Fatalf("got %+v, %v", first, err)
	}
	ec.OnEvent = nil
	again, err := a.Collect(t.Context(), p, ec)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(artifactPaths(first), artifactPaths(again)); diff != "" || again.Metadata.ArtifactsCount != len(first.Artifacts) {
		t.Errorf("(-first +again) %+v:\n%s", again.Metadata, diff)
	}
}

// A sandbox that does not let itself be removed at once is no failure of its
// run, nor one whose end cannot be moved.
func TestPassingFaultsOfTheEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		op   mock.Op
		n    int64 // calls that fail
		wait bool  // instead of failing, they never return
	}{
		{"kill refused", mock.OpKill, 1, false},
		{"kill refused for a while", mock.OpKill, 5, false},
		{"kill stalls", mock.OpKill, 1, true},
		{"extend refused", mock.OpExtend, 9, false},
		{"extend stalls", mock.OpExtend, 9, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				a, _ := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: func(ctx context.Context, c mock.Call) error {
					if c.Op != test.op || calls.Add(1) > test.n {
						return nil
					}
					if test.wait {
						<-ctx.Done()
						return ctx.Err()
					}
					return errors.New("not now")
				}})
				ec := newContext(t, "s")
				start := time.Now()
				result, files, err := remote.Run(t.Context(), a, join(), ec)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, ec, result, err)
				if calls.Load() == 0 || len(files.Artifacts) != 5 {
					t.Errorf("%d calls, %d artifacts", calls.Load(), len(files.Artifacts))
				}
				if took := time.Since(start); took > 30*time.Second {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// Close removes any number of sandboxes, also where each takes its time.
func TestCloseRemovesMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, provider := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
			if c.Op == mock.OpKill {
				time.Sleep(5 * time.Second)
			}
			return nil
		}})
		for i := range 100 {
			executed(t, a, newContext(t, fmt.Sprint("s", i)), one("test.noop"))
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if n := len(provider.Alive()); n > 0 {
			t.Errorf("%d of 100 sandboxes are left", n)
		}
	})
}

// A Collect that comes late has time all the same.
func TestCollectLengthensTheLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Now: time.Now, Fault: func(_ context.Context, c mock.Call) error {
			if c.Op == mock.OpDownload {
				time.Sleep(40 * time.Second)
			}
			return nil
		}})
		ec := newContext(t, "s")
		p := executed(t, a, ec, join())
		time.Sleep(4*time.Minute + 40*time.Second)
		if _, err := a.Collect(t.Context(), p, ec); err != nil {
			t.Error(err)
		}
	})
}

// A second Collect does not wait longer for the first than its context.
func TestCollectWaitsWithContext(t *testing.T) {
	held, release := make(chan struct{}, 8), make(chan struct{})
	a, _ := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
		if c.Op == mock.OpDownload {
			held <- struct{}{}
			<-release
		}
		return nil
	}})
	ec := newContext(t, "s")
	p := executed(t, a, ec, join())
	first := make(chan error)
	go func() {
		_, err := a.Collect(t.Context(), p, ec)
		first <- err
	}()
	<-held
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Collect(ctx, p, ec); !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("first: %v", err)
	}
}

// Of two sessions in one directory one is refused.
func TestOneSessionADirectory(t *testing.T) {
	a, _ := newAdapter(t, "in process", remote.Config{}, nil)
	for i := range 20 {
		dir := t.TempDir()
		errs := make(chan error)
		for k := range 2 {
			go func() {
				ec := newContext(t, fmt.Sprint("s", i, k))
				ec.LogsDir = dir
				_, _, err := remote.Run(t.Context(), a, join(), ec)
				errs <- err
			}()
		}
		one, two := <-errs, <-errs
		if (one == nil) == (two == nil) || !errors.Is(errors.Join(one, two), remote.ErrInvalid) {
			t.Fatalf("%v; %v", one, two)
		}
		sessions := make(map[any]bool)
		for _, e := range lines(t, filepath.Join(dir, "events.jsonl")) {
			sessions[e["session"]] = true
		}
		if len(sessions) != 1 {
			t.Errorf("events of the sessions %v", sessions)
		}
	}
}

// What would arrive changed is not passed.
func TestVariablesAreText(t *testing.T) {
	a, _ := newAdapter(t, "in process", remote.Config{Env: map[string]string{"NAME": "caf\xe9"}}, nil)
	_, _, err := remote.Run(t.Context(), a, join(), newContext(t, "s"))
	if !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), "NAME") || strings.Contains(err.Error(), "caf") {
		t.Errorf("error %v", err)
	}
	if _, err := remote.NewLocalAdapter(remote.Config{PassEnv: []string{"N\xff"}}); !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("a name that is no text: %v", err)
	}
}

// A sink that does not return in time fails the run; it does not hold it up
// for longer.
func TestSlowSinkAtTheEnd(t *testing.T) {
	for _, name := range []string{"cleanup_complete", "run_complete"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
				ec := newContext(t, "s")
				ec.OnEvent = func(ctx context.Context, e remote.Event) error {
					if e.Name == name {
						<-ctx.Done()
					}
					return ctx.Err()
				}
				start := time.Now()
				result, _, err := remote.Run(t.Context(), a, join(), ec)
				if !errors.Is(err, remote.ErrSink) {
					t.Errorf("error %v", err)
				}
				agree(t, ec, result, err)
				if took := time.Since(start); took > 15*time.Second {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// A run that takes long to be stopped tells its sinks all the same.
func TestSinksOfASlowStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deaf atomic.Bool
		a, _ := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Fault: func(ctx context.Context, c mock.Call) error {
			if deaf.Load() && (c.Op == mock.OpStdin || c.Op == mock.OpSignal) {
				time.Sleep(4 * time.Second)
				return errors.New("not now")
			}
			return nil
		}})
		ec := newContext(t, "s")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var told []string
		ec.OnEvent = func(_ context.Context, e remote.Event) error {
			told = append(told, e.Name)
			if e.Name == "waiting" {
				deaf.Store(true)
				cancel()
			}
			return nil
		}
		start := time.Now()
		result, _, err := remote.Run(ctx, a, one("test.wait"), ec)
		if !errors.Is(err, context.Canceled) || errors.Is(err, remote.ErrSink) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took < 11*time.Second {
			t.Errorf("it took only %s", took)
		}
		agree(t, ec, result, err)
		if !slices.Contains(told, "run_error") || !slices.Contains(told, "run_end") {
			t.Errorf("told %v", told)
		}
	})
}

// Pipes cannot be sent, and reading one would never end.
func TestPipeAsInput(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	makePipe(t, name)
	a, provider := newAdapter(t, "proxy", remote.Config{}, nil)
	m := &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "filesystem.csv_extractor", Config: map[string]any{"path": name}}}}
	if _, err := a.Prepare(t.Context(), m, newContext(t, "s")); !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), "is a pipe") {
		t.Errorf("prepare: %v", err)
	}
	// It may become one in the meantime.
	if err := os.Rename(name, name+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("a\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ec := newContext(t, "t")
	p, err := a.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+"2", name); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Execute(t.Context(), p, ec); !errors.Is(err, remote.ErrInvalid) {
		t.Errorf("execute: %v", err)
	}
	if n := len(provider.Sandboxes()); n > 0 {
		t.Errorf("%d sandboxes were made", n)
	}
}

// A run whose events cannot be written any more ends, rather than go on for
// nothing; and status.json never says that it succeeded.
func TestFullHostDisk(t *testing.T) {
	fill := func(dir string) {
		f, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		f.Close()
	}
	for _, at := range []string{"step_start", "collect_start"} {
		t.Run(at, func(t *testing.T) {
			dir := smallDisk(t, 400<<10)
			a, _ := newAdapter(t, "proxy", remote.Config{}, nil)
			ec := newContext(t, "s")
			ec.LogsDir = filepath.Join(dir, "session")
			var filled atomic.Bool
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if e.Name == at && !filled.Swap(true) {
					fill(dir)
				}
				return nil
			}
			m := join()
			if at == "step_start" {
				m = &remote.Manifest{Steps: []remote.Step{
					{ID: "a", Driver: "test.flood", Config: map[string]any{"events": 5000}}, {ID: "b", Driver: "test.wait", Needs: []string{"a"}},
				}}
			}
			result, _, err := remote.Run(t.Context(), a, m, ec)
			if err == nil || errors.Is(err, remote.ErrTimeout) || result.Success {
				t.Errorf("result %+v, error %v", result, err)
			}
			b, readErr := os.ReadFile(filepath.Join(ec.LogsDir, "status.json"))
			if readErr == nil && strings.Contains(string(b), `"ok": true`) {
				t.Errorf("status.json says %s", b)
			}
			if !slices.ContainsFunc([]string{"no space left", "not written"}, func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("error %v", err)
			}
		})
	}
}
