//go:build unix

package python

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// testPythonEnv names a Python with pandas and pyarrow.
const testPythonEnv = "OSIRIS_TEST_PYTHON"

func testPython(t testing.TB) interpreter {
	path := os.Getenv(testPythonEnv)
	if path == "" {
		t.Skipf("set %s to a Python with pandas and pyarrow to run drivers with it", testPythonEnv)
	}
	return interpreter{path: path, env: []string{"PYTHONDONTWRITEBYTECODE=1"}} // beside the test's drivers
}

type printedLine struct{ Step, Stream, Line string }

// testPool is a pool whose prints are kept.
type testPool struct {
	*pool
	t  testing.TB
	mu sync.Mutex
	// what was printed, by all steps
	lines []printedLine
}

func newTestPool(t testing.TB, options ...func(*poolOptions)) *testPool {
	p := &testPool{t: t}
	opts := poolOptions{
		dir:         filepath.Join(t.TempDir(), "pool"),
		interpreter: testPython(t),
		session:     "session-1",
		printed: func(step, stream, line string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lines = append(p.lines, printedLine{step, stream, line})
		},
	}
	for _, o := range options {
		o(&opts)
	}
	p.pool = newPool(opts)
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(opts.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pool's directory is still there: %v", err)
		}
	})
	return p
}

// printed returns what a step has printed to a stream.
func (p *testPool) printed(step, stream string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, l := range p.lines {
		if l.Step == step && l.Stream == stream {
			out = append(out, l.Line)
		}
	}
	return out
}

func driver(module, class string) driverClass {
	dir, _ := filepath.Abs("testdata/drivers")
	return driverClass{name: "test." + class, module: module, class: class, sources: []string{dir}}
}

// recorder keeps what a step reports.
type recorder struct {
	mu       sync.Mutex
	reported []string
	seen     map[string]chan float64 // metrics that somebody waits for
}

func (r *recorder) add(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reported = append(r.reported, s)
}

func (r *recorder) Event(name string, fields map[string]any) {
	b, _ := json.Marshal(fields)
	r.add(fmt.Sprintf("event %s %s", name, b))
}

func (r *recorder) Metric(name string, value float64, unit string) {
	r.add(fmt.Sprintf("metric %s %v %s", name, value, unit))
	if c := r.seen[name]; c != nil {
		c <- value
	}
}

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *recorder) WithGroup(string) slog.Handler            { return r }
func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	s := fmt.Sprintf("log %s %s", rec.Level, rec.Message)
	rec.Attrs(func(a slog.Attr) bool { s += " " + a.String(); return true })
	r.add(s)
	return nil
}

func newStep(t testing.TB, id string, config map[string]any) (*worker.Step, *recorder) {
	r := &recorder{}
	return &worker.Step{ID: id, Config: config, BasePath: t.TempDir(), ArtifactsDir: t.TempDir(), Sink: r, Logger: slog.New(r)}, r
}

// values returns what a driver has returned beside tables.
func values(t testing.TB, step *worker.Step) map[string]any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(step.ArtifactsDir, resultValues))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func mustRun(t *testing.T, p *testPool, d driverClass, step *worker.Step) *worker.Result {
	t.Helper()
	res, err := p.run(t.Context(), d, step)
	if err != nil {
		var de *worker.DriverError
		if errors.As(err, &de) {
			t.Log(de.Traceback)
		}
		t.Fatal(err)
	}
	return res
}

func releaseResult(res *worker.Result) {
	for _, r := range res.Outputs {
		r.Release()
	}
}

func TestPool(t *testing.T) {
	p := newTestPool(t)

	t.Run("sees", func(t *testing.T) {
		step, _ := newStep(t, "a-1", map[string]any{"int": json.Number("12345678901234567890"), "float": json.Number("1.0"), "text": "<é>", "none": nil})
		step.Env = map[string]string{"STEP_VARIABLE": "v", "TRACEPARENT": "another's"}
		step.TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		mustRun(t, p, driver("steps", "See"), step)
		got := values(t, step)
		delete(got, "pid")
		base, _ := filepath.EvalSymlinks(step.BasePath)
		want := map[string]any{
			"step_id": "a-1",
			"config":  map[string]any{"int": json.Number("12345678901234567890"), "float": json.Number("1.0"), "text": "<é>", "none": nil},
			"types":   map[string]any{"int": "int", "float": "float", "text": "str", "none": "NoneType"},
			"inputs":  map[string]any{},
			"ctx": map[string]any{
				"step_id": []any{"str", "a-1"}, "session_id": []any{"str", "session-1"}, "base_path": []any{"PurePath", step.BasePath},
				"artifacts_dir": []any{"PurePath", step.ArtifactsDir}, "output_dir": []any{"PurePath", step.ArtifactsDir},
			},
			"cwd": base, "env": "v", "stdin": "", "helper": "drivers", "traced": []any{step.TraceParent, step.TraceParent},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if step.Env["TRACEPARENT"] != "another's" {
			t.Errorf("the step's variables were changed: %q", step.Env)
		}
		// The next step of the same process is no part of that trace.
		next, _ := newStep(t, "a-2", nil)
		mustRun(t, p, driver("steps", "See"), next)
		if d := cmp.Diff([]any{nil, nil}, values(t, next)["traced"]); d != "" {
			t.Error(d)
		}
	})

	t.Run("reports", func(t *testing.T) {
		step, r := newStep(t, "b", nil)
		mustRun(t, p, driver("steps", "Report"), step)
		for i, s := range r.reported { // a traceback's lines differ between versions
			if first, rest, ok := strings.Cut(s, "\n"); ok {
				r.reported[i] = first + "..." + rest[strings.LastIndex(rest, "ZeroDivisionError"):]
			}
		}
		want := []string{
			"metric rows_read 5 ",
			"metric took 1.5 ms",
			"log WARN metric 'nothing' is no finite number and is left out: nan",
			`event begun {"n":1152921504606846976,"table":"t"}`,
			`event failed {"bad":null,"error":"no","path":"/x"}`,
			"log ERROR said code=7",
			"log INFO first 1 logger=steps",
			"log WARN second logger=steps",
			"log ERROR third...ZeroDivisionError: division by zero logger=other",
		}
		if d := cmp.Diff(want, r.reported); d != "" {
			t.Error(d)
		}
	})

	t.Run("prints", func(t *testing.T) {
		const n = 3*maxPrintLine + 5
		step, _ := newStep(t, "c", map[string]any{"n": n})
		mustRun(t, p, driver("steps", "Print"), step)
		z := strings.Repeat("z", n)
		const last = `\udcff é`
		z = last + z
		want := []string{"one", "halffrom C", "from a child", z[:maxPrintLine], z[maxPrintLine : 2*maxPrintLine], z[2*maxPrintLine : 3*maxPrintLine], z[3*maxPrintLine:]}
		if d := cmp.Diff(want, p.printed("c", "stdout")); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]string{"to stderr"}, p.printed("c", "stderr")); d != "" {
			t.Error(d)
		}
	})

	t.Run("streams closed", func(t *testing.T) {
		step, _ := newStep(t, "c2", nil)
		if _, err := p.run(t.Context(), driver("steps", "Close"), step); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"before"}, p.printed("c2", "stdout")); d != "" {
			t.Error(d)
		}
	})

	t.Run("errors", func(t *testing.T) {
		dir := driver("", "").sources[0]
		tests := map[string]struct {
			d      driverClass
			config map[string]any
			want   *worker.DriverError // its message's beginning, its traceback's last line
		}{
			"raise":        {driver("steps", "Raise"), map[string]any{"secret": "x"}, &worker.DriverError{Type: "helper.Refused", Message: "no: x", Traceback: "helper.Refused: no: x"}},
			"empty":        {driver("steps", "Silent"), nil, &worker.DriverError{Type: "ValueError", Message: "ValueError", Traceback: "ValueError"}},
			"exit":         {driver("steps", "Exit"), map[string]any{"code": 0}, &worker.DriverError{Type: "SystemExit", Message: "the driver has called sys.exit(0)", Traceback: "SystemExit: 0"}},
			"recursion":    {driver("steps", "Deep"), nil, &worker.DriverError{Type: "RecursionError", Message: "maximum recursion depth", Traceback: "RecursionError: maximum"}},
			"unspeakable":  {driver("steps", "Unspeakable"), nil, &worker.DriverError{Type: "steps.Unspeakable.run.<locals>.Broken", Message: "(its message cannot be read: RuntimeError)"}},
			"no dict":      {driver("steps", "Answer"), map[string]any{"return": "x"}, &worker.DriverError{Type: "TypeError", Message: `run() has returned a str; it must return a dict`}},
			"no module":    {driver("steps.none", "A"), nil, &worker.DriverError{Type: "ModuleNotFoundError", Message: `driver 'test.A': there is no module 'steps.none': looked in ` + dir}},
			"no such":      {driver("nowhere", "A"), nil, &worker.DriverError{Type: "ModuleNotFoundError", Message: `driver 'test.A': there is no module 'nowhere': looked in ` + dir}},
			"its import":   {driver("broken", "A"), nil, &worker.DriverError{Type: "ModuleNotFoundError", Message: `No module named 'module_that_nobody_has'`, Traceback: "ModuleNotFoundError: No module"}},
			"no class":     {driver("helper", "A"), nil, &worker.DriverError{Type: "AttributeError", Message: `driver 'test.A': module 'helper' (` + dir + `/helper.py) has no class 'A'; it has Refused`}},
			"not a class":  {driver("steps", "not_a_class"), nil, &worker.DriverError{Type: "TypeError", Message: `driver 'test.not_a_class': steps.not_a_class is a int, not a class`}},
			"no run":       {driver("steps", "NoRun"), nil, &worker.DriverError{Type: "AttributeError", Message: `driver 'test.NoRun': class steps.NoRun has no method run`}},
			"an argument":  {driver("steps", "Argument"), nil, &worker.DriverError{Type: "TypeError", Message: ""}},
			"series":       {driver("tables", "Wrong"), map[string]any{"what": "series"}, &worker.DriverError{Type: "TypeError", Message: `result 'df' is a Series`}},
			"list":         {driver("tables", "Wrong"), map[string]any{"what": "list"}, &worker.DriverError{Type: "TypeError", Message: `run() has returned a list`}},
			"key":          {driver("tables", "Wrong"), map[string]any{"what": "key"}, &worker.DriverError{Type: "TypeError", Message: `run() has returned the key 1`}},
			"object":       {driver("tables", "Wrong"), map[string]any{"what": "object"}, &worker.DriverError{Type: "TypeError", Message: `result 'x' is a object; a result is a table or what JSON can hold`}},
			"double names": {driver("tables", "Wrong"), map[string]any{"what": "twice"}, &worker.DriverError{Type: "ValueError", Message: `output 'df': more than one column is called a`}},
			"second":       {driver("tables", "Wrong"), map[string]any{"what": "half"}, &worker.DriverError{Type: "TypeError", Message: `output 'b', column 'a': `}},
			"mixed column": {driver("tables", "Wrong"), map[string]any{"what": "mixed"}, &worker.DriverError{Type: "TypeError", Message: `output 'df', column 'a': `}},
		}
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				step, _ := newStep(t, "d", test.config)
				_, err := p.run(t.Context(), test.d, step)
				var de *worker.DriverError
				if !errors.As(err, &de) {
					t.Fatalf("error %v, want a DriverError", err)
				}
				if de.Type != test.want.Type || !strings.HasPrefix(de.Message, test.want.Message) {
					t.Errorf("%s: %s, want %s: %s", de.Type, de.Message, test.want.Type, test.want.Message)
				}
				if strings.Contains(de.Traceback, "bridge.py") || strings.Contains(de.Traceback, "<frozen importlib") {
					t.Errorf("the traceback has frames that are not the driver's:\n%s", de.Traceback)
				}
				if want := test.want.Traceback; want != "" {
					lines := strings.Split(strings.TrimSpace(de.Traceback), "\n")
					if !strings.HasPrefix(lines[len(lines)-1], want) {
						t.Errorf("traceback ends with %q, want %q", lines[len(lines)-1], want)
					}
				}
			})
		}
	})

	if left := listDir(t, p.opts.dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// All of the above was one child.
	if n := len(p.idle); n != 1 || p.idle[0].seq < 20 {
		t.Errorf("%d idle children", n)
	}

	t.Run("nothing is left for the next", func(t *testing.T) {
		step, left := newStep(t, "e", nil)
		mustRun(t, p, driver("steps", "Leave"), step)
		next, r := newStep(t, "f", nil)
		mustRun(t, p, driver("steps", "See"), next)
		if got := values(t, next); got["env"] != nil || got["cwd"] == "/" || got["helper"] != "drivers" {
			t.Errorf("%v", got)
		}
		again, _ := newStep(t, "f2", nil)
		mustRun(t, p, driver("steps", "Report"), again)
		if len(left.reported) > 0 || len(r.reported) > 0 {
			t.Errorf("reported %q, %q", left.reported, r.reported)
		}
	})

	t.Run("other sources", func(t *testing.T) {
		pids := make(map[any]bool)
		for _, name := range []string{"other", "drivers", "other"} {
			step, _ := newStep(t, "g", nil)
			dir, _ := filepath.Abs(filepath.Join("testdata", name))
			mustRun(t, p, driverClass{name: "x", module: "steps", class: "See", sources: []string{dir}}, step)
			got := values(t, step)
			pids[got["pid"]] = true
			if got["helper"] != name {
				t.Errorf("module of %v, want that of %s", got["helper"], name)
			}
		}
		if len(pids) != 1 {
			t.Errorf("%d children, want one", len(pids))
		}
	})

	t.Run("at once", func(t *testing.T) {
		dir := t.TempDir()
		var wg sync.WaitGroup
		steps := make([]*worker.Step, 3)
		for i := range steps {
			steps[i], _ = newStep(t, fmt.Sprint("h", i), map[string]any{"dir": dir, "steps": len(steps)})
			wg.Go(func() {
				if _, err := p.run(t.Context(), driver("steps", "Barrier"), steps[i]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		pids := make(map[any]bool)
		for _, s := range steps {
			pids[values(t, s)["pid"]] = true
		}
		if len(pids) != len(steps) || len(p.idle) != len(steps) {
			t.Errorf("%d children, %d idle, want %d", len(pids), len(p.idle), len(steps))
		}
	})
}

func TestPoolDeath(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	for how, want := range map[string]string{
		"exit":     "the Python process has ended: exit status 3; the last it has printed to stderr:\nlast words",
		"kill":     "signal: killed (was there enough memory?); ",
		"segfault": "signal: segmentation fault",
		"protocol": "after a mistake in what it has sent: invalid character",
	} {
		step, _ := newStep(t, "a", map[string]any{"how": how})
		_, err := p.run(t.Context(), driver("steps", "Die"), step)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "last words") {
			t.Errorf("%s: error %v, want %q", how, err, want)
		}
		if !slices.Contains(p.printed("a", "stderr"), "last words") {
			t.Errorf("%s: lines are missing: %q", how, p.lines)
		}
	}
	if len(p.idle) != 0 {
		t.Error("a dead child is kept")
	}
	step, _ := newStep(t, "b", nil)
	mustRun(t, p, driver("steps", "See"), step)

	// One that dies while it is idle is not used.
	p.idle[0].kill()
	step, _ = newStep(t, "c", nil)
	mustRun(t, p, driver("steps", "See"), step)
}

func TestPoolStop(t *testing.T) {
	for how, cleans := range map[string]bool{"wait": true, "swallow": true, "child": true, "ignore": false, "stubborn": false} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := newTestPool(t)
			step, r := newStep(t, "a", map[string]any{"how": how})
			r.seen = map[string]chan float64{"pid": make(chan float64, 1), "child": make(chan float64, 1)}
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("nobody wants it")
			go func() { <-r.seen["pid"]; cancel(cause) }()
			_, err := p.run(ctx, driver("steps", "Wait"), step)
			if !errors.Is(err, cause) {
				t.Errorf("error %v, want %v", err, cause)
			}
			var de *worker.DriverError
			if errors.As(err, &de) {
				t.Errorf("it is the driver's: %v", err)
			}
			if got := slices.Contains(r.reported, "event cleaned_up null") || slices.Contains(r.reported, "event cleaned_up {}"); got != cleans {
				t.Errorf("cleaned up: %v, want %v: %q", got, cleans, r.reported)
			}
			if len(p.idle) != 0 {
				t.Error("the child is kept")
			}
			if how == "child" {
				processGone(t, int(<-r.seen["child"]))
			}
		})
	}
}

func TestPoolClose(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	step, r := newStep(t, "a", map[string]any{"how": "wait"})
	r.seen = map[string]chan float64{"pid": make(chan float64, 1)}
	done := make(chan error, 1)
	go func() {
		_, err := p.run(context.Background(), driver("steps", "Wait"), step)
		done <- err
	}()
	<-r.seen["pid"]
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errPoolClosed) {
		t.Errorf("error %v, want %v", err, errPoolClosed)
	}
	if _, err := p.run(context.Background(), driver("steps", "See"), step); !errors.Is(err, errPoolClosed) {
		t.Errorf("error %v, want %v", err, errPoolClosed)
	}
}

// FuzzPrintStream has the same prints in one piece and in many.
func FuzzPrintStream(f *testing.F) {
	const marker = "\x00osiris-M\n"
	for _, s := range []string{"", "a\nb", "a\r\n\n", "x" + marker, marker + marker + "y\n", "\x00osiris-\x00osiris-M\n\x00", strings.Repeat("long ", maxPrintLine) + marker} {
		f.Add([]byte(s), uint8(1))
		f.Add([]byte(s), uint8(7))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		read := func(size int) (lines []string, markers int) {
			s := newPrintStream(nil, []byte(marker), nil, func(step, line string) { lines = append(lines, step+":"+line) })
			s.begin("a")
			buf := make([]byte, len(marker)+size)
			held := 0
			for rest := data; ; {
				n := copy(buf[held:held+size], rest)
				rest = rest[n:]
				held = s.take(buf[:held+n], len(rest) == 0)
				select {
				case <-s.marked:
					markers++
				default:
				}
				if len(rest) == 0 {
					s.flush()
					return lines, markers
				}
			}
		}
		whole, markers := read(max(len(data), 1))
		parts, _ := read(int(size) + 1)
		if d := cmp.Diff(whole, parts); d != "" {
			t.Error(d)
		}
		if want := bytes.Contains(data, []byte(marker)); (markers > 0) != want {
			t.Errorf("%d markers seen, want some: %v", markers, want)
		}
		for _, l := range whole {
			if len(l) > maxPrintLine+2 || strings.Contains(l, "\n") {
				t.Errorf("a line of %d bytes", len(l))
			}
		}
	})
}

func TestPoolRelative(t *testing.T) {
	python, d := testPython(t), driver("steps", "See")
	t.Chdir(t.TempDir())
	python.path = filepath.Join("bin", "python")
	if err := os.Mkdir("bin", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.Getenv(testPythonEnv), python.path); err != nil {
		t.Fatal(err)
	}
	p := newTestPool(t, func(o *poolOptions) { o.dir, o.interpreter = "pool", python })
	step, _ := newStep(t, "a", nil)
	step.BasePath, step.ArtifactsDir = "", "artifacts"
	if err := os.Mkdir("artifacts", 0o700); err != nil {
		t.Fatal(err)
	}
	mustRun(t, p, d, step)
	want, _ := os.Getwd()
	if got := values(t, step)["cwd"]; got != want {
		t.Errorf("works in %v, want %s", got, want)
	}
}

func TestPoolInArtifacts(t *testing.T) {
	t.Parallel()
	p := newTestPool(t)
	step, _ := newStep(t, "a", nil)
	d := driver("steps", "See")
	d.inArtifacts = true
	mustRun(t, p, d, step)
	want, _ := filepath.EvalSymlinks(step.ArtifactsDir)
	if got := values(t, step)["cwd"]; got != want {
		t.Errorf("works in %v, want %s", got, want)
	}
}

// TestPoolRedacts has a secret that stands where a long line is cut.
func TestPoolRedacts(t *testing.T) {
	t.Parallel()
	const secret = "zzzz-not-for-you"
	p := newTestPool(t, func(o *poolOptions) {
		o.redact = secrets.NewRedactor()
		o.redact.Add(secret)
	})
	step, _ := newStep(t, "a", map[string]any{"before": maxPrintLine - 5, "secret": secret})
	_, err := p.run(t.Context(), driver("steps", "Tell"), step)
	all := fmt.Sprint(p.lines, err)
	if strings.Contains(all, "not-for") || strings.Contains(all, "for-you") || len(p.printed("a", "stdout")) != 2 {
		t.Errorf("%d lines, %.100q ...", len(p.lines), all)
	}
}

func TestPoolInterpreter(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho not today >&2\nexit 5\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "start Python: ",
		script:                             "does not run: exit status 5; the last it has printed to stderr:\nnot today",
	} {
		p := newPool(poolOptions{dir: filepath.Join(t.TempDir(), "pool"), interpreter: interpreter{path: path}})
		_, err := p.run(t.Context(), driver("steps", "See"), &worker.Step{ID: "a"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
}
