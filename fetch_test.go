package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/internal/arrowtest"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// fetcher is an adapter that reads outputs.
type fetcher interface {
	adapter
	remote.OutputFetcher
}

// readOutput reads an output to its end and returns its rows.
func readOutput(ctx context.Context, a remote.OutputFetcher, p *remote.PreparedRun, ec *remote.ExecutionContext, step, key string) (int64, error) {
	r, err := a.FetchOutput(ctx, p, ec, step, key)
	if err != nil {
		return 0, err
	}
	defer r.Release()
	rows := int64(0)
	for r.Next() {
		rows += r.Record().NumRows()
	}
	return rows, r.Err()
}

// TestTableTypes: all types of Arrow go to a worker and come back, with their
// batches, some of which have no rows.
func TestTableTypes(t *testing.T) {
	types := arrowtest.Types()
	fields := make([]arrow.Field, len(types))
	for i, dt := range types {
		fields[i] = arrow.Field{Name: fmt.Sprint("c", i), Type: dt, Nullable: true}
	}
	meta := arrow.NewMetadata([]string{"k"}, []string{"v"})
	schema := arrow.NewSchema(fields, &meta)
	sample := func() (batches []arrow.Record) { // Arrow's arrays keep what they have looked up
		for _, n := range []int{5, 0, 9, 0} {
			cols := make([]arrow.Array, len(types))
			for i, dt := range types {
				cols[i] = arrowtest.Sample(memory.DefaultAllocator, dt, n)
			}
			batches = append(batches, array.NewRecord(schema, cols, int64(n)))
		}
		return batches
	}
	of := func(batches []arrow.Record) remote.Table {
		return remote.RecordsFrom(func(context.Context) (array.RecordReader, error) { return array.NewRecordReader(schema, batches) })
	}
	for _, kind := range []string{"in process", "served"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			remote.SetPartSize(a, 1000) // parts end anywhere
			batches := sample()
			ec := newContext(t, "types")
			ec.Tables = map[string]remote.Table{"all": of(batches), "none": of(nil), "hollow": of(batches[1:2])}
			keepAll(ec)
			p, err := a.Prepare(t.Context(), passing("all", "none", "hollow"), ec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			for key, want := range map[string][]arrow.Record{"all": batches, "none": nil, "hollow": batches[1:2]} {
				r, err := a.(fetcher).FetchOutput(t.Context(), p, ec, "pass", key)
				if err != nil {
					t.Fatal(err)
				}
				if !r.Schema().Equal(schema) || !r.Schema().Metadata().Equal(schema.Metadata()) {
					t.Errorf("%s: schema %s", key, r.Schema())
				}
				n := 0
				for ; r.Next(); n++ {
					if n < len(want) && !array.RecordEqual(r.Record(), want[n]) {
						t.Errorf("%s: batch %d is another", key, n)
					}
				}
				if n != len(want) || r.Err() != nil {
					t.Errorf("%s: %d batches, want %d; %v", key, n, len(want), r.Err())
				}
				r.Release()
			}
		})
	}
}

// gated has a driver that waits for a gate to be opened, and says that it does.
type gated struct {
	reached, open chan struct{}
	once          sync.Once
}

func newGate() *gated {
	return &gated{reached: make(chan struct{}), open: make(chan struct{})}
}

func (g *gated) drivers() *worker.Registry {
	r := testDrivers()
	r.Register("test.gate", worker.Transform, func() worker.Driver {
		return driverFunc(func(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
			g.once.Do(func() { close(g.reached) })
			select {
			case <-g.open:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	})
	return r
}

// gatedManifest hands a table on, waits for the gate, and hands it on again.
func gatedManifest() *remote.Manifest {
	table := map[string]remote.InputRef{"df": {Table: "df"}}
	return &remote.Manifest{Name: "gated", Steps: []remote.Step{
		{ID: "pass", Driver: "test.pass", Inputs: table},
		{ID: "gate", Driver: "test.gate", Needs: []string{"pass"}},
		{ID: "after", Driver: "test.pass", Inputs: table, Needs: []string{"gate"}},
		{ID: "fail", Driver: "test.fail", Needs: []string{"after"}},
	}}
}

// TestFetchWhileItRuns: an output may be read once its step has succeeded, a
// small one without its file; another is waited for, or is said not to come.
func TestFetchWhileItRuns(t *testing.T) {
	gate := newGate()
	drivers := gate.drivers()
	var files sync.Map // outputs that were read as files
	a, _ := newAdapter(t, "proxy", remote.Config{Drivers: drivers, Concurrency: 1}, &mock.Options{Drivers: drivers, Fault: func(_ context.Context, c mock.Call) error {
		if c.Op == mock.OpDownload && strings.Contains(c.Path, "/outputs/") {
			files.Store(c.Path, true)
		}
		return nil
	}})
	ec := newContext(t, "while")
	ec.Tables = map[string]remote.Table{"df": numberedFrom(1000, 100)}
	ec.Keep = []remote.OutputName{{StepID: "pass"}, {StepID: "after", Key: "df"}, {StepID: "after", Key: "other"}, {StepID: "fail"}}
	p, err := a.Prepare(t.Context(), gatedManifest(), ec)
	if err != nil {
		t.Fatal(err)
	}
	f := a.(fetcher)
	if _, err := f.FetchOutput(t.Context(), p, ec, "pass", ""); !errors.Is(err, remote.ErrNotExecuted) {
		t.Errorf("before Execute: %v", err)
	}
	executed := make(chan error, 1)
	go func() {
		_, err := a.Execute(t.Context(), p, ec)
		executed <- err
	}()
	<-gate.reached
	for range 2 {
		if n, err := readOutput(t.Context(), f, p, ec, "pass", ""); n != 1000 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
	}
	files.Range(func(name, _ any) bool { t.Errorf("%s was read as a file", name); return true })
	if _, err := f.FetchOutput(t.Context(), p, ec, "gate", ""); !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), "ExecutionContext.Keep") {
		t.Errorf("an output that is not kept: %v", err)
	}
	impatient, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrNoProgress)
	if _, err := f.FetchOutput(impatient, p, ec, "after", ""); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("with a context that has ended: %v", err)
	}
	waited := make(chan error, 1)
	go func() {
		n, err := readOutput(t.Context(), f, p, ec, "after", "")
		if n != 1000 {
			err = errors.Join(err, fmt.Errorf("%d rows", n))
		}
		waited <- err
	}()
	close(gate.open)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := <-executed; !errors.Is(err, remote.ErrStepFailed) {
		t.Error(err)
	}
	if n, err := readOutput(t.Context(), f, p, ec, "pass", ""); n != 1000 || err != nil {
		t.Errorf("after Execute: %d rows, %v", n, err)
	}
	if _, err := f.FetchOutput(t.Context(), p, ec, "after", "other"); !errors.Is(err, remote.ErrInvalid) || !strings.Contains(err.Error(), `has no output "other"; it has ["df"]`) {
		t.Errorf("an output that the step has not: %v", err)
	}
	if _, err := f.FetchOutput(t.Context(), p, ec, "fail", ""); !errors.Is(err, remote.ErrStepFailed) {
		t.Errorf("an output of a failed step: %v", err)
	}
	r, err := f.FetchOutput(t.Context(), p, ec, "pass", "")
	if err != nil {
		t.Fatal(err)
	}
	r.Release() // before its end
	if _, err := a.Collect(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	if _, err := f.FetchOutput(t.Context(), p, ec, "pass", ""); !errors.Is(err, remote.ErrSandboxGone) {
		t.Errorf("after Collect: %v", err)
	}
}

// TestTablesAttached: another host goes on with a run whose table came from a
// reader that it does not have, and reads what was put out before and after.
func TestTablesAttached(t *testing.T) {
	const rows = 5000
	gate := newGate()
	drivers := gate.drivers()
	server := newServer(t, "served", drivers)
	cfg := connect(remote.Config{Drivers: drivers, Concurrency: 1}, server)
	first, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ec := newContext(t, "s")
	ec.Tables = map[string]remote.Table{"df": remote.Records(numbered(rows, 100))}
	ec.Keep = []remote.OutputName{{StepID: "pass"}, {StepID: "after"}}
	m := gatedManifest()
	m.Steps = m.Steps[:3]
	p, err := first.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan error, 1)
	go func() {
		_, err := first.Execute(t.Context(), p, ec)
		lost <- err
	}()
	<-gate.reached
	elsewhere := filepath.Join(t.TempDir(), "copy")
	copyTree(t, ec.LogsDir, elsewhere)
	second, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	own := &remote.ExecutionContext{}
	taken := make(chan struct{})
	own.OnEvent = func(context.Context, remote.Event) error { return nil }
	go func() {
		if err := <-lost; !errors.Is(err, remote.ErrOwnershipLost) {
			t.Errorf("first host: %v", err)
		}
		close(gate.open)
		close(taken)
	}()
	q, result, err := second.Attach(t.Context(), elsewhere, own)
	if err != nil {
		t.Fatal(err)
	}
	<-taken
	agree(t, own, result, err)
	for _, step := range []string{"pass", "after"} {
		r, err := second.FetchOutput(t.Context(), q, own, step, "")
		if err != nil {
			t.Fatal(err)
		}
		sameTable(t, r, numbered(rows, 100))
		r.Release()
	}
	if _, err := first.FetchOutput(t.Context(), p, ec, "pass", ""); !errors.Is(err, remote.ErrOwnershipLost) {
		t.Errorf("first host: %v", err)
	}
	// A third one picks up what has ended.
	third, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	its := &remote.ExecutionContext{}
	last := filepath.Join(t.TempDir(), "copy")
	copyTree(t, elsewhere, last)
	if q, _, err = third.Attach(t.Context(), last, its); err != nil {
		t.Fatal(err)
	}
	if n, err := readOutput(t.Context(), third, q, its, "after", ""); n != rows || err != nil {
		t.Errorf("third host: %d rows, %v", n, err)
	}
	if _, err := third.Collect(t.Context(), q, its); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(last, "tables.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tables.json after Collect: %v", err)
	}
}

// TestTablesRestarted: tables and kept outputs outlive the worker.
func TestTablesRestarted(t *testing.T) {
	const rows = 3000
	for _, kind := range restartKinds {
		t.Run(kind, func(t *testing.T) {
			if kind == "local" {
				t.Skip("as embedded, in less time for all tests")
			}
			t.Parallel()
			a, provider := newAdapter(t, kind, remote.Config{Restarts: 2, Concurrency: 1, Env: map[string]string{"REMOTE_TEST_CRASHES": "1"}}, nil)
			ec := newContext(t, "restarted")
			killAtCrash(t, ec, provider)
			ec.Tables = map[string]remote.Table{"df": remote.Records(numbered(rows, 100))}
			ec.Keep = []remote.OutputName{{StepID: "pass"}, {StepID: "after"}}
			m := gatedManifest()
			m.Steps = m.Steps[:3]
			m.Steps[1] = remote.Step{ID: "gate", Driver: "test.crash", Needs: []string{"pass"}, Repeatable: true, Config: map[string]any{"crashes": 0, "events": 1}}
			p, err := a.Prepare(t.Context(), m, ec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			if n := len(events(t, ec, "worker_restarted")); n != 1 {
				t.Errorf("%d restarts", n)
			}
			for _, step := range []string{"pass", "after"} {
				r, err := a.(fetcher).FetchOutput(t.Context(), p, ec, step, "")
				if err != nil {
					t.Fatal(err)
				}
				sameTable(t, r, numbered(rows, 100))
				r.Release()
			}
			if _, err := a.Collect(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestTablesCut: all connections are reset when half of a table is there, and
// when half of it has come back. Only what was on its way is sent again.
func TestTablesCut(t *testing.T) {
	const (
		part  = 64 << 10
		size  = 2 << 20 // and not a byte of it compresses into less
		inWay = 4 * part
		slack = 512 << 10 // for what is not the table
	)
	for _, kind := range servedKinds {
		t.Run(kind, func(t *testing.T) {
			if kind == "embedded" {
				t.Skip("its worker is larger than the table")
			}
			drivers := testDrivers()
			server := newServer(t, kind, drivers)
			run := func(dir, text string, cut func(p *mock.Proxy, up bool)) mock.ProxyStats {
				proxy, err := mock.NewProxy(server.URL(), script(t, text))
				if err != nil {
					t.Fatal(err)
				}
				defer proxy.Close()
				cfg := connect(remote.Config{Drivers: drivers}, server)
				cfg.SandboxURL = proxy.URL()
				a, err := remote.NewE2BTransparentProxy(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				remote.SetPartSize(a, part)
				ec := newContext(t, dir)
				ec.Tables = map[string]remote.Table{"df": remote.RecordsFrom(func(context.Context) (array.RecordReader, error) { return newEndless(size), nil })}
				keepAll(ec)
				p, err := a.Prepare(t.Context(), passing("df"), ec)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := a.Execute(t.Context(), p, ec); err != nil {
					t.Fatal(err)
				}
				if n, err := readOutput(t.Context(), a, p, ec, "pass", ""); n != size/32 || err != nil {
					t.Errorf("%d rows, %v", n, err)
				}
				sent := events(t, ec, "tables_uploaded")[0]
				if sent["parts"] != sent["parts_sent"] || sent["parts"].(float64) < size/part {
					t.Errorf("event %v", sent)
				}
				if _, err := a.Collect(t.Context(), p, ec); err != nil {
					t.Fatal(err)
				}
				return proxy.Stats()
			}
			whole := run("whole", "", nil)
			for _, dir := range []string{"up", "down"} {
				stats := run(dir, fmt.Sprintf("after %d %s: reset all", size/2, dir), nil)
				if stats.Struck != 1 {
					t.Errorf("%s: struck %d times", dir, stats.Struck)
				}
				if more := stats.Up - whole.Up; more > inWay+slack {
					t.Errorf("%s: %d bytes more were sent", dir, more)
				}
				if more := stats.Down - whole.Down; more > inWay+slack {
					t.Errorf("%s: %d bytes more were read", dir, more)
				}
			}
		})
	}
}

// TestHostileOutputs: what a worker says of an output, and what is in its file,
// is not believed.
func TestHostileOutputs(t *testing.T) {
	var stream strings.Builder
	w := rpc.NewArrowWriter(&stream, numbered(0, 1).Schema(), nil)
	for r := numbered(10, 5); r.Next(); {
		if err := w.Write(r.Record()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	good := stream.String()
	_, sum, _ := rpc.XXH3(strings.NewReader(good))
	ref := rpc.StreamRef{Path: "outputs/a/0.arrow", Rows: 10, Batches: 2, Bytes: int64(len(good)), XXH3: sum}
	change := func(f func(*rpc.StreamRef)) rpc.StreamRef {
		changed := ref
		f(&changed)
		return changed
	}
	sized := func(content string) rpc.StreamRef {
		return change(func(r *rpc.StreamRef) {
			r.Bytes = int64(len(content))
			_, r.XXH3, _ = rpc.XXH3(strings.NewReader(content))
		})
	}
	for _, test := range []struct {
		name    string
		ref     rpc.StreamRef
		content string
		want    error // nil: it is read
	}{
		{"good", ref, good, nil},
		{"rows", change(func(r *rpc.StreamRef) { r.Rows = 11 }), good, remote.ErrProtocol},
		{"batches", change(func(r *rpc.StreamRef) { r.Batches = 1 << 40 }), good, remote.ErrProtocol},
		{"hash", change(func(r *rpc.StreamRef) { r.XXH3 = strings.Repeat("0", 32) }), good, remote.ErrProtocol},
		{"no hash", change(func(r *rpc.StreamRef) { r.XXH3 = "" }), good, remote.ErrProtocol},
		{"negative", change(func(r *rpc.StreamRef) { r.Bytes = -1 }), good, remote.ErrProtocol},
		{"huge", change(func(r *rpc.StreamRef) { r.Bytes = 1 << 62 }), good, remote.ErrProtocol},
		{"more", change(func(r *rpc.StreamRef) { r.Bytes += 8 }), good, remote.ErrProtocol},
		{"fewer", change(func(r *rpc.StreamRef) { r.Bytes -= 8 }), good, rpc.ErrArrowCorrupt},
		{"bytes behind", ref, good + "more", remote.ErrProtocol},
		{"bytes behind, announced", sized(good + "more"), good + "more", remote.ErrProtocol},
		{"another batch", sized(good[:len(good)-8] + good[len(good)-8:]), good[:len(good)-8], rpc.ErrArrowCorrupt},
		{"out", change(func(r *rpc.StreamRef) { r.Path = "outputs/../../../secret" }), good, remote.ErrProtocol},
		{"absolute", change(func(r *rpc.StreamRef) { r.Path = "/etc/passwd" }), good, remote.ErrProtocol},
		{"other folder", change(func(r *rpc.StreamRef) { r.Path = "journal/x" }), good, remote.ErrProtocol},
		{"backslash", change(func(r *rpc.StreamRef) { r.Path = `outputs/..\..\x` }), good, remote.ErrProtocol},
		{"missing", change(func(r *rpc.StreamRef) { r.Path = "outputs/a/1.arrow" }), good, fs.ErrNotExist},
		{"empty", sized(""), "", rpc.ErrArrowCorrupt},
		{"no table", sized("not a table"), "not a table", rpc.ErrArrowCorrupt},
		{"cut", sized(good[:len(good)/2]), good[:len(good)/2], rpc.ErrArrowCorrupt},
		{"metadata of 2 GiB", sized("\xff\xff\xff\xff\xff\xff\xff\x7f"), "\xff\xff\xff\xff\xff\xff\xff\x7f", rpc.ErrArrowTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			result, err := json.Marshal(rpc.StepResult{StepID: "a", Status: "success", Outputs: map[string]rpc.OutputRef{"df": {Stream: &test.ref}}})
			if err != nil {
				t.Fatal(err)
			}
			a := attack{result: string(result), step: func(h *hostile, _ string) {
				dir := filepath.Join(h.dir, "outputs", "a")
				if err := h.fs.MkdirAll(dir); err != nil {
					panic(err)
				}
				f, err := h.fs.Create(filepath.Join(dir, "0.arrow"))
				if err != nil {
					panic(err)
				}
				if _, err := f.Write([]byte(test.content)); err != nil {
					panic(err)
				}
				f.Close()
				for n := range 5 { // frames that nobody waits for, and those of requests to come
					h.frame(rpc.FrameArrow, fmt.Sprintf("%c\x00\x00\x00\x00\x00\x00\x00garbage", n))
					h.frame(rpc.FrameArrow, fmt.Sprintf("%c\x00\x00\x00\x01\x00\x00\x00", n))
				}
			}}
			program := func(_ context.Context, p *mock.Proc) int {
				h := &hostile{fs: p.FS, dir: p.Args[3], stdout: p.Stdout, stderr: p.Stderr}
				if code := h.run(a, p.Args[1], p.Stdin); code >= 0 {
					return code
				}
				w := worker.Program{FS: p.FS}
				return w.Run(t.Context(), p.Args, p.Stdin, p.Stdout, p.Stderr)
			}
			adapter, _ := newAdapter(t, "proxy", remote.Config{}, &mock.Options{Programs: map[string]mock.Program{"osiris-worker": program}})
			ec := newContext(t, "hostile")
			ec.Keep = []remote.OutputName{{StepID: "a"}}
			p, err := adapter.Prepare(t.Context(), &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "test.noop"}}}, ec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := adapter.Execute(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			rows, err := readOutput(t.Context(), adapter.(fetcher), p, ec, "a", "")
			if test.want == nil && (err != nil || rows != 10) || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%d rows, error %v, want %v", rows, err, test.want)
			}
			if _, err := adapter.Collect(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
		})
	}
}
