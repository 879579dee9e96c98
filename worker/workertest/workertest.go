// Package workertest tests drivers: it runs one as a worker does, on tables of
// CSV or of Go values, and checks what is asked of every driver: that it ends
// when it is told to, frees its memory, leaves its inputs alone, and tells no
// secrets.
package workertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/worker"
)

// Case is one use of a driver.
type Case struct {
	Config map[string]any // numbers are json.Number, as a worker gives them

	// Inputs are tables by the names that the driver sees, as "df_extract_users",
	// of [CSV] or [Rows]. They stay the caller's.
	Inputs map[string]*worker.DataFrame

	BasePath string // where relative paths of input files start
}

// Result is what a driver has done.
type Result struct {
	Outputs map[string]*worker.DataFrame // freed when the test ends
	Events  []string                     // "name map[...]", in their order
	Metrics map[string]float64           // by name; the last of each
	Log     string                       // one record a line
	Files   map[string]string            // what it has written to its artifacts, by path
}

// Run runs a driver and reads its outputs to their ends. The error is the
// driver's; Result has what there was until then.
func Run(t testing.TB, d worker.Driver, c Case) (*Result, error) {
	t.Helper()
	r := newRun(t, c, nil)
	err := r.drive(t.Context(), d, readAll)
	t.Cleanup(r.release)
	return r.result(t), err
}

// run is a step that records what its driver does.
type run struct {
	step *worker.Step
	sign func() // called at every sign of life

	mu      sync.Mutex
	events  []string
	metrics map[string]float64
	log     bytes.Buffer
	outputs map[string]*worker.DataFrame
}

func newRun(t testing.TB, c Case, mem memory.Allocator) *run {
	r := &run{metrics: make(map[string]float64), outputs: make(map[string]*worker.DataFrame), sign: func() {}}
	r.step = &worker.Step{
		ID: "step", Config: maps.Clone(c.Config), Inputs: maps.Clone(c.Inputs), BasePath: c.BasePath,
		ArtifactsDir: t.TempDir(), Allocator: mem, Sink: r,
		Logger: slog.New(slog.NewTextHandler(writer{r}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: withoutTime})),
	}
	return r
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// writer is where the run's log goes.
type writer struct{ r *run }

func (w writer) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.log.Write(p)
	w.r.sign()
	return len(p), nil
}

// Event implements worker.StepSink.
func (r *run) Event(name string, fields map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprint(name, " ", fields))
	r.sign()
}

// Metric implements worker.StepSink.
func (r *run) Metric(name string, value float64, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metrics[name] = value
	r.sign()
}

// How much of its outputs is read.
const (
	readAll = iota
	readOne
	readNone
)

// drive runs the driver and reads its outputs, as a worker does.
func (r *run) drive(ctx context.Context, d worker.Driver, read int) error {
	res, err := d.Run(ctx, r.step)
	if err != nil || res == nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(res.Outputs)) {
		out := res.Outputs[key]
		if err == nil {
			var df *worker.DataFrame
			switch read {
			case readAll:
				df, err = worker.ReadDataFrame(signer{out, r.sign})
			case readOne:
				out.Next()
				err = out.Err()
			}
			if df != nil {
				r.outputs[key] = df
			}
		}
		out.Release()
	}
	return err
}

// signer takes every batch for a sign of life.
type signer struct {
	array.RecordReader
	sign func()
}

func (s signer) Next() bool {
	ok := s.RecordReader.Next()
	s.sign()
	return ok
}

func (r *run) release() {
	for _, df := range r.outputs {
		df.Release()
	}
}

func (r *run) result(t testing.TB) *Result {
	t.Helper()
	files := make(map[string]string)
	root := r.step.ArtifactsDir
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(root, name)
		files[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &Result{Outputs: r.outputs, Events: r.events, Metrics: r.metrics, Log: r.log.String(), Files: files}
}

// String returns outputs, metrics, events and files as text, the same for the
// same: what [Result.Golden] compares.
func (r *Result) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(r.Outputs)) {
		fmt.Fprintf(&b, "== output %s\n", key)
		df := r.Outputs[key]
		for i, f := range df.Schema().Fields() {
			fmt.Fprintf(&b, "%s%s:%s", []string{"", "|"}[min(i, 1)], f.Name, f.Type)
		}
		b.WriteByte('\n')
		rows := df.Reader()
		for rows.Next() {
			for i := range int(rows.Record().NumRows()) {
				for k, c := range rows.Record().Columns() {
					fmt.Fprintf(&b, "%s%s", []string{"", "|"}[min(k, 1)], c.ValueStr(i))
				}
				b.WriteByte('\n')
			}
		}
		rows.Release()
	}
	for _, name := range slices.Sorted(maps.Keys(r.Metrics)) {
		fmt.Fprintf(&b, "== metric %s %v\n", name, r.Metrics[name])
	}
	for _, e := range r.Events {
		fmt.Fprintf(&b, "== event %s\n", e)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		fmt.Fprintf(&b, "== file %s\n%s\n", name, strings.TrimSuffix(r.Files[name], "\n"))
	}
	return b.String()
}

// Golden compares the result with a file. With update, the value of a flag of
// the test's own, it writes the file instead.
func (r *Result) Golden(t testing.TB, file string, update bool) {
	t.Helper()
	if update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o777), os.WriteFile(file, []byte(r.String()), 0o666)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with its update flag to write it", err)
	}
	if got := r.String(); got != string(want) {
		t.Errorf("the result is not that of %s\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// grace is how long a worker waits for a driver that was cancelled.
const grace = 5 * time.Second

// CheckCancel checks that a driver ends when its context does: one that is done
// before, and one that ends at the driver's first sign of life, an event, a
// metric, a message or a batch. It must then return within the 5 s that a worker
// waits for it, and the first time with the context's error.
func CheckCancel(t testing.TB, newDriver func() worker.Driver, c Case) {
	t.Helper()
	for _, when := range []string{"before it begins", "at its first sign of life"} {
		ctx, cancel := context.WithCancel(t.Context())
		r := newRun(t, c, nil)
		before := when == "before it begins"
		if before {
			cancel()
		} else {
			r.sign = cancel
		}
		ended := make(chan error, 1)
		go func() {
			defer r.release()
			ended <- r.drive(ctx, newDriver(), readAll)
		}()
		// The grace runs from the cancellation on; one that gives no sign of life
		// is cancelled when it has had as long.
		select {
		case <-ctx.Done():
		case err := <-ended:
			ended <- err
		case <-time.After(grace):
		}
		cancel()
		select {
		case err := <-ended:
			if before && !errors.Is(err, context.Canceled) || err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled %s, the driver ends with error %v, want the context's", when, err)
			}
		case <-time.After(grace):
			t.Errorf("cancelled %s, the driver does not end within %v", when, grace)
		}
	}
}

// CheckMemory checks that all that a driver takes of its step's allocator is
// freed, whether its outputs are read to their ends, in part, or not at all, and
// that it leaves its inputs to whom they belong.
func CheckMemory(t testing.TB, newDriver func() worker.Driver, c Case) {
	t.Helper()
	for read, how := range []string{"to their ends", "in part", "not at all"} {
		mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
		r := newRun(t, c, mem)
		if err := r.drive(t.Context(), newDriver(), read); err != nil {
			t.Errorf("outputs read %s: %v", how, err)
		}
		r.release()
		if n := mem.CurrentAlloc(); n != 0 {
			t.Errorf("outputs read %s: %d bytes of the step's allocator are not freed", how, n)
		}
		for _, name := range slices.Sorted(maps.Keys(c.Inputs)) {
			rows, in := int64(0), c.Inputs[name].Reader()
			for in.Next() {
				rows += in.Record().NumRows()
			}
			in.Release()
			if rows != c.Inputs[name].Rows() {
				t.Errorf("outputs read %s: input %q was released by the driver", how, name)
				return // what else it has of it would be no memory of its own
			}
		}
	}
}

// CheckSecrets checks that none of the values, secrets of the case's config or
// connection, is in anything that the driver tells: events, metrics, log, error
// and files. A worker redacts them once more, but not in files.
func CheckSecrets(t testing.TB, newDriver func() worker.Driver, c Case, values ...string) {
	t.Helper()
	r := newRun(t, c, nil)
	err := r.drive(t.Context(), newDriver(), readAll)
	res := r.result(t)
	r.release()
	told := map[string]string{"an event": strings.Join(res.Events, "\n"), "the log": res.Log, "the error": fmt.Sprint(err)}
	for name := range res.Metrics {
		told["a metric"] += name + "\n"
	}
	for name, text := range res.Files {
		told["the file "+name] = name + text
	}
	for _, value := range values {
		for _, where := range slices.Sorted(maps.Keys(told)) {
			if value != "" && strings.Contains(told[where], value) {
				t.Errorf("%s has a secret value", where)
			}
		}
	}
}
