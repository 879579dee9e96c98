package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// mortalFS is a file system as a process sees it: once that is killed, nothing
// of it reaches the disk.
type mortalFS struct {
	worker.OSFS

	mu   sync.RWMutex
	dead bool
	deny func(name string) error // may refuse to create a file
}

var errDead = errors.New("process was killed")

func (m *mortalFS) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

// alive calls f unless the process is dead.
func (m *mortalFS) alive(f func() error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.dead {
		return errDead
	}
	return f()
}

func (m *mortalFS) Create(name string) (f worker.File, err error) {
	err = m.alive(func() error {
		if m.deny != nil {
			if err := m.deny(name); err != nil {
				return err
			}
		}
		f, err = m.OSFS.Create(name)
		return err
	})
	return mortalFile{f, m}, err
}

func (m *mortalFS) Append(name string, size int64) (f worker.File, err error) {
	err = m.alive(func() error { f, err = m.OSFS.Append(name, size); return err })
	return mortalFile{f, m}, err
}

func (m *mortalFS) MkdirAll(name string) error {
	return m.alive(func() error { return m.OSFS.MkdirAll(name) })
}
func (m *mortalFS) RemoveAll(name string) error {
	return m.alive(func() error { return m.OSFS.RemoveAll(name) })
}
func (m *mortalFS) Rename(from, to string) error {
	return m.alive(func() error { return m.OSFS.Rename(from, to) })
}

type mortalFile struct {
	worker.File
	m *mortalFS
}

func (f mortalFile) Write(p []byte) (n int, err error) {
	err = f.m.alive(func() error { n, err = f.File.Write(p); return err })
	return n, err
}

func (f mortalFile) Truncate(size int64) error {
	return f.m.alive(func() error { return f.File.Truncate(size) })
}

// die kills a worker and waits for its end. It returns where its host stands.
func (h *host) die(m *mortalFS) (cursor int64) {
	h.t.Helper()
	cursor = h.frames.Offset()
	m.kill()
	h.stdin.Close()
	h.exit <- <-h.exit // for the cleanup
	return cursor
}

// recovered runs the command that comes before a resume.
func recovered(t *testing.T, dir string) (r rpc.RecoverResult) {
	t.Helper()
	var out, stderr bytes.Buffer
	if code := (worker.Program{}).Run(t.Context(), []string{"recover", "-dir", dir}, strings.NewReader(""), &out, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// appendTo appends to a run's journal what a write that is cut leaves.
func appendTo(t *testing.T, dir string, b []byte) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "journal", "*.journal"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	f, err := os.OpenFile(segments[len(segments)-1], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// crashDrivers count how often they run. "crash" waits in its first run.
type crashDrivers struct {
	rows, crash, count atomic.Int64
	reached            chan struct{} // the first run of crash has come so far
}

func (c *crashDrivers) registry() map[string]driverFunc {
	c.reached = make(chan struct{})
	return map[string]driverFunc{
		"rows.extractor": func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			c.rows.Add(1)
			return numbers(5)(ctx, s)
		},
		"crash": func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			name := "first.txt"
			if c.crash.Add(1) > 1 {
				name = "second.txt"
			}
			f, err := s.Create(name)
			if err != nil {
				return nil, err
			}
			f.Close()
			if name == "first.txt" {
				close(c.reached)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return numbers(3)(ctx, s)
		},
		"count": func(context.Context, *worker.Step) (*worker.Result, error) {
			c.count.Add(1)
			return nil, nil
		},
	}
}

// A worker that is started after another's death goes on where that was: what
// has finished is known, what has not runs again and leaves one try's files.
func TestResume(t *testing.T) {
	var drivers crashDrivers
	m := &mortalFS{}
	program := worker.Program{Drivers: registry(drivers.registry()), FS: m}
	h := startIn(t, program, t.TempDir(), 0, "-keep")
	h.handshake()
	rows := rpc.ExecuteStep{StepID: "a", Driver: "rows.extractor", Keep: true}
	crash := rpc.ExecuteStep{StepID: "b", Driver: "crash", Keep: true, Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}}, Release: []string{"a"}}
	var first rpc.StepResult
	if err := h.call(rpc.MethodExecuteStep, rows, &first); err != nil {
		t.Fatal(err)
	}
	h.ask(rpc.MethodExecuteStep, crash)
	<-drivers.reached
	for names := h.events(); names[len(names)-1] != "artifact_created" || len(names) < 12; names = h.events() {
		h.got = append(h.got, h.next())
	}
	cursor := h.die(m)
	torn := rpc.AppendFrame(nil, rpc.FrameEvent, cursor, []byte(`{"type":"event","data":{}}`))
	appendTo(t, h.dir, torn[:len(torn)-1])

	want := rpc.RecoverResult{Journal: cursor, Finished: []string{"a"}, Begun: []string{"b"}}
	if diff := cmp.Diff(want, recovered(t, h.dir)); diff != "" {
		t.Errorf("recovered (-want +got):\n%s", diff)
	}
	m = &mortalFS{}
	program.FS = m
	h = startIn(t, program, h.dir, cursor, "-resume")
	h.handshake()
	var again rpc.StepResult
	if err := h.call(rpc.MethodExecuteStep, rows, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" || drivers.rows.Load() != 1 {
		t.Errorf("ran %d times; answers (-first +again):\n%s", drivers.rows.Load(), diff)
	}
	if got := h.events(); len(got) > 0 {
		t.Errorf("it reports %v", got)
	}
	if err := h.call(rpc.MethodExecuteStep, crash, &again); err != nil {
		t.Fatal(err)
	}
	if again.RowsIn != 5 || again.RowsOut != 3 {
		t.Errorf("result %+v", again)
	}
	h.expectLine("inputs_resolved", "from_spill", true)
	h.expectLine("#steps_completed", "value", 2.0)
	entries, err := os.ReadDir(filepath.Join(h.dir, "artifacts", "b"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"cleaned_config.json", "second.txt"}, names); diff != "" {
		t.Errorf("artifacts (-want +got):\n%s", diff)
	}

	// What was released is gone, and still known; and a second death is as good
	// as the first.
	if kept, _ := filepath.Glob(filepath.Join(h.dir, "outputs", "a", "*.arrow")); len(kept) > 0 {
		t.Errorf("%v are kept", kept)
	}
	cursor = h.die(m)
	want = rpc.RecoverResult{Journal: cursor, Finished: []string{"a", "b"}}
	if diff := cmp.Diff(want, recovered(t, h.dir)); diff != "" {
		t.Errorf("recovered (-want +got):\n%s", diff)
	}
	program.FS = &mortalFS{}
	h = startIn(t, program, h.dir, cursor, "-resume")
	h.handshake()
	count := func(step, from string) *rpc.Error {
		return h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: step, Driver: "count", Inputs: map[string]rpc.InputRef{"df": {FromStep: from}}}, nil)
	}
	if err := count("c", "b"); err != nil {
		t.Error(err)
	}
	if err := count("d", "a"); err == nil || err.Code != rpc.CodeMissingInput {
		t.Errorf("the output that was released: %v", err)
	}
	if err := h.call(rpc.MethodShutdown, nil, nil); err != nil {
		t.Error(err)
	}
	h.expectClose(0, "shutdown")
}

// expectLine looks for the last event or metric of a name, and a field of it.
func (h *host) expectLine(name, field string, want any) {
	h.t.Helper()
	for i := len(h.got) - 1; i >= 0; i-- {
		f := h.got[i]
		if f.Type != rpc.FrameEvent && f.Type != rpc.FrameMetric {
			continue
		}
		data, err := rpc.Data(f.Type, f.Payload)
		if err != nil {
			h.t.Fatal(err)
		}
		line := make(map[string]any)
		if err := json.Unmarshal(data, &line); err != nil {
			h.t.Fatal(err)
		}
		if line["event"] == name || line["metric"] != nil && "#"+line["metric"].(string) == name {
			if line[field] != want {
				h.t.Errorf("%s: %s is %v, want %v", name, field, line[field], want)
			}
			return
		}
	}
	h.t.Errorf("no %s in %v", name, h.events())
}

// Whatever is wrong with a kept output is found before the run goes on, and
// again by who reads it.
func TestResumeDamaged(t *testing.T) {
	edit := func(name string, change func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), change(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
	}
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string // in recover's reason; empty means that the step is not there
		read   string // in the error of who reads it; empty means that it is as if there had never been one
	}{
		{"cut", edit("0.arrow", func(b []byte) []byte { return b[:len(b)-8] }), "bytes with the XXH3", "did not survive"},
		{"longer", edit("0.arrow", func(b []byte) []byte { return append(b, 0) }), "bytes with the XXH3", "is not what was written"},
		{"other byte", edit("0.arrow", func(b []byte) []byte { b[len(b)-16] ^= 1; return b }), "bytes with the XXH3", "did not survive"},
		{"no stream", edit("0.arrow", func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) }), "bytes with the XXH3", "did not survive"},
		{"no file", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "0.arrow")); err != nil {
				t.Fatal(err)
			}
		}, "0.arrow", "did not survive"},
		{"no record", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "step.json")); err != nil {
				t.Fatal(err)
			}
		}, "", ""},
		{"torn record", edit("step.json", func(b []byte) []byte { return b[:len(b)/2] }), "damaged", ""},
		{"empty record", edit("step.json", func([]byte) []byte { return nil }), "damaged", ""},
		{"another step's", edit("step.json", replace(`"step_id":"a"`, `"step_id":"b"`)), "not of this step", ""},
		{"huge record", edit("step.json", func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 9<<20)...) }), "damaged", ""},
		{"file elsewhere", edit("step.json", replace(`"0.arrow"`, `"../0.arrow"`)), "cannot be", ""},
		{"other rows", edit("step.json", replace(`"rows":5,"batches"`, `"rows":6,"batches"`)), "-", "is not what was written"},
		{"negative size", edit("step.json", replace(`"batches":1,"bytes":`, `"batches":1,"bytes":-`)), "cannot be", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var drivers crashDrivers
			m := &mortalFS{}
			program := worker.Program{Drivers: registry(drivers.registry()), FS: m}
			h := startIn(t, program, t.TempDir(), 0, "-keep")
			h.handshake()
			if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "rows.extractor", Keep: true}, nil); err != nil {
				t.Fatal(err)
			}
			cursor := h.die(m)
			test.damage(t, filepath.Join(h.dir, "outputs", "a"))
			got := recovered(t, h.dir)
			switch test.want {
			case "":
				if len(got.Finished)+len(got.Lost) > 0 || len(got.Begun) != 1 {
					t.Errorf("recovered %+v", got)
				}
			case "-": // only a reader counts rows
				if len(got.Finished) != 1 || len(got.Lost) > 0 {
					t.Errorf("recovered %+v", got)
				}
			default:
				if len(got.Finished) > 0 || len(got.Lost) != 1 || got.Lost[0].StepID != "a" || !strings.Contains(got.Lost[0].Reason, test.want) {
					t.Errorf("recovered %+v", got)
				}
			}
			program.FS = &mortalFS{}
			h = startIn(t, program, h.dir, cursor, "-resume")
			h.handshake()
			err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "c", Driver: "count", Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}}}, nil)
			if err == nil || err.Code != rpc.CodeMissingInput || !strings.Contains(err.Message, test.read) || drivers.count.Load() > 0 {
				t.Errorf("reading it: %v", err)
			}
		})
	}
}

// A journal that has its last word is not gone on with.
func TestRecoverClosed(t *testing.T) {
	h := start(t, nil)
	h.handshake()
	if err := h.call(rpc.MethodShutdown, nil, nil); err != nil {
		t.Fatal(err)
	}
	h.expectClose(0, "shutdown")
	for _, args := range [][]string{{"recover", "-dir", h.dir}, {"serve", "-dir", h.dir, "-resume"}, {"recover", "-dir", t.TempDir()}} {
		var stderr bytes.Buffer
		code := (worker.Program{}).Run(t.Context(), args, strings.NewReader(""), io.Discard, &stderr)
		if want := "journal is closed"; code != 1 || args[2] == h.dir && !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: exit code %d: %s", args, code, &stderr)
		}
	}
}

// A step that cannot be kept succeeds all the same, and says so.
func TestKeepFails(t *testing.T) {
	for _, file := range []string{"0.arrow", "step.json.part"} {
		t.Run(file, func(t *testing.T) {
			m := &mortalFS{deny: func(name string) error {
				if filepath.Base(name) == file {
					return &fs.PathError{Op: "write", Path: name, Err: errors.New("no space left on device")}
				}
				return nil
			}}
			h := startIn(t, worker.Program{Drivers: registry(map[string]driverFunc{"rows": numbers(5)}), FS: m}, t.TempDir(), 0, "-keep")
			h.handshake()
			if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "rows", Keep: true}, nil); err != nil {
				t.Fatal(err)
			}
			warned := false
			for _, f := range h.got {
				warned = warned || f.Type == rpc.FrameLog && bytes.Contains(f.Payload, []byte("not kept on disk")) && bytes.Contains(f.Payload, []byte("no space left"))
			}
			if !warned {
				t.Error("nothing was said")
			}
			h.die(m)
			if got := recovered(t, h.dir); len(got.Finished) > 0 {
				t.Errorf("recovered %+v", got)
			}
		})
	}
}

// What a step has reported is in the journal before the step counts as
// finished, however much it was.
func TestKeptStepHasReported(t *testing.T) {
	const n = 5000
	m := &mortalFS{}
	died := make(chan struct{})
	m.deny = func(name string) error {
		if strings.HasSuffix(name, "step.json.part") {
			// The worker dies as soon as the record stands: it is let through, and
			// nothing that comes later is.
			go func() { defer close(died); m.kill() }()
		}
		return nil
	}
	h := startIn(t, worker.Program{FS: m, Drivers: registry(map[string]driverFunc{"flood": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		for i := range n {
			s.LogEvent("tick", map[string]any{"n": i})
		}
		return nil, nil
	}})}, t.TempDir(), 0, "-keep")
	h.handshake()
	h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "flood"})
	<-died
	h.die(m)
	var out bytes.Buffer
	recovered(t, h.dir)
	if code := (worker.Program{}).Run(t.Context(), []string{"tail", "-dir", h.dir, "-follow=false"}, strings.NewReader(""), &out, os.Stderr); code != 0 {
		t.Fatalf("tail ended with %d", code)
	}
	if got := bytes.Count(out.Bytes(), []byte(`"event":"tick"`)); got != n {
		t.Errorf("%d events are in the journal, want %d", got, n)
	}
	if !bytes.Contains(out.Bytes(), []byte("step_complete")) {
		t.Error("the step's end is not in the journal")
	}
}

// A step that is asked for twice, as by two hosts, runs once.
func TestStepAskedTwice(t *testing.T) {
	var ran atomic.Int64
	begun, leave := make(chan struct{}), make(chan struct{})
	drivers := map[string]driverFunc{
		"slow": func(context.Context, *worker.Step) (*worker.Result, error) {
			ran.Add(1)
			close(begun)
			<-leave
			return nil, nil
		},
		"wait": func(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
			ran.Add(1)
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"fail": func(context.Context, *worker.Step) (*worker.Result, error) {
			ran.Add(1)
			return nil, errors.New("broken")
		},
	}
	setup := func(t *testing.T) *host {
		ran.Store(0)
		begun, leave = make(chan struct{}), make(chan struct{})
		h := start(t, drivers)
		h.handshake()
		return h
	}
	t.Run("while it runs", func(t *testing.T) {
		h := setup(t)
		step := rpc.ExecuteStep{StepID: "a", Driver: "slow"}
		h.ask(rpc.MethodExecuteStep, step)
		<-begun
		h.ask(rpc.MethodExecuteStep, step)
		if err := h.ping(); err != nil { // the second request has arrived
			t.Fatal(err)
		}
		close(leave)
		one, two := h.answer(), h.answer()
		if one.ID == two.ID || !bytes.Equal(one.Result, two.Result) || one.Error != nil || ran.Load() != 1 {
			t.Errorf("it ran %d times: %+v, %+v", ran.Load(), one, two)
		}
		var third rpc.StepResult
		if err := h.call(rpc.MethodExecuteStep, step, &third); err != nil || third.StepID != "a" || ran.Load() != 1 {
			t.Errorf("afterwards: %+v, %v", third, err)
		}
		step.Config = json.RawMessage(`{"other":1}`)
		if err := h.call(rpc.MethodExecuteStep, step, nil); err == nil || err.Code != rpc.CodeInvalidRequest || err.Data.StepID != "a" {
			t.Errorf("with another config: %v", err)
		}
	})
	t.Run("cancelled by the second", func(t *testing.T) {
		h := setup(t)
		step := rpc.ExecuteStep{StepID: "a", Driver: "wait"}
		h.ask(rpc.MethodExecuteStep, step)
		<-begun
		second := h.ask(rpc.MethodExecuteStep, step)
		h.ask(rpc.MethodCancel, rpc.Cancel{ID: second})
		cancelled := 0
		for range 3 {
			if r := h.answer(); r.Error != nil && r.Error.Code == rpc.CodeCancelled && r.Error.Data.StepID == "a" {
				cancelled++
			}
		}
		if cancelled != 2 {
			t.Errorf("%d of 2 requests were answered as cancelled", cancelled)
		}
	})
	t.Run("failed", func(t *testing.T) {
		h := setup(t)
		step := rpc.ExecuteStep{StepID: "a", Driver: "fail"}
		one := h.call(rpc.MethodExecuteStep, step, nil)
		two := h.call(rpc.MethodExecuteStep, step, nil)
		if diff := cmp.Diff(one, two); diff != "" || one == nil || ran.Load() != 1 {
			t.Errorf("it ran %d times; (-one +two):\n%s", ran.Load(), diff)
		}
	})
}

// ping asks for an answer and skips no other.
func (h *host) ping() *rpc.Error { return h.call(rpc.MethodPing, nil, nil) }

// The order of reports of a worker that keeps is that of one that does not.
func TestKeepChangesNoEvents(t *testing.T) {
	got := make(map[string][]string)
	for _, args := range [][]string{nil, {"-keep"}} {
		h := start(t, map[string]driverFunc{"rows.extractor": numbers(5)}, args...)
		h.handshake()
		if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "rows.extractor", Keep: true}, nil); err != nil {
			t.Fatal(err)
		}
		got[strings.Join(args, " ")] = h.events()
	}
	if diff := cmp.Diff(got[""], got["-keep"]); diff != "" {
		t.Errorf("(-without +with):\n%s", diff)
	}
}
