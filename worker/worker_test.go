package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// TestMain lets the test binary be the program of those tests that need one.
func TestMain(m *testing.M) {
	worker.Main(worker.NewRegistry())
	goleak.VerifyTestMain(m)
}

type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

func registry(drivers map[string]driverFunc) *worker.Registry {
	r := worker.NewRegistry()
	for name, f := range drivers {
		mode := worker.Transform
		if strings.HasSuffix(name, ".extractor") {
			mode = worker.Extract
		}
		r.Register(name, mode, func() worker.Driver { return f })
	}
	return r
}

// host talks to a worker that runs in this process.
type host struct {
	t      *testing.T
	dir    string
	stdin  *io.PipeWriter
	frames *rpc.FrameReader
	exit   chan int
	last   int64
	epoch  int64

	got []rpc.Frame // everything but answers, in order
}

func start(t *testing.T, drivers map[string]driverFunc, args ...string) *host {
	t.Helper()
	return startIn(t, worker.Program{Drivers: registry(drivers)}, t.TempDir(), 0, args...)
}

// startIn starts a worker in a folder, and reads its journal from an offset.
func startIn(t *testing.T, program worker.Program, dir string, from int64, args ...string) *host {
	t.Helper()
	h := &host{t: t, dir: dir, exit: make(chan int, 1)}
	in, stdin := io.Pipe()
	h.stdin = stdin
	go func() {
		h.exit <- program.Run(context.Background(), append([]string{"serve", "-dir", h.dir}, args...), in, io.Discard, os.Stderr)
	}()
	tailIn, tailEnd := io.Pipe()
	out, w := io.Pipe()
	tailed := make(chan struct{})
	go func() {
		defer close(tailed)
		tail := worker.Program{} // it outlives the worker's file system
		code := tail.Run(context.Background(), []string{"tail", "-dir", h.dir, "-from", fmt.Sprint(from)}, tailIn, w, os.Stderr)
		w.CloseWithError(fmt.Errorf("tail ended with %d: %w", code, io.EOF))
		tailIn.Close()
	}()
	h.frames = rpc.NewFrameReader(out, from, 0)
	t.Cleanup(func() {
		stdin.Close()
		tailEnd.Close()
		out.Close()
		<-tailed
		select {
		case <-h.exit:
		default:
		}
	})
	return h
}

func (h *host) send(req rpc.Request) {
	h.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		h.t.Fatal(err)
	}
	frame, err := rpc.EncodeInput(rpc.FrameRequest, b)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.stdin.Write(frame); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ask(method string, params any) string {
	h.t.Helper()
	b, err := json.Marshal(params)
	if err != nil {
		h.t.Fatal(err)
	}
	h.last++
	id := rpc.RequestID(h.last)
	h.send(rpc.Request{ID: id, Method: method, Params: b, Epoch: h.epoch})
	return id
}

func (h *host) next() rpc.Frame {
	h.t.Helper()
	f, err := h.frames.Next()
	if err != nil {
		h.t.Fatal(err)
	}
	f.Payload = append([]byte(nil), f.Payload...)
	return f
}

// answer reads up to the next answer.
func (h *host) answer() *rpc.Response {
	h.t.Helper()
	for {
		f := h.next()
		if f.Type == rpc.FrameResponse {
			resp, err := rpc.DecodeResponse(f.Payload)
			if err != nil {
				h.t.Fatal(err)
			}
			return resp
		}
		h.got = append(h.got, f)
	}
}

func (h *host) call(method string, params, result any) *rpc.Error {
	h.t.Helper()
	id := h.ask(method, params)
	resp := h.answer()
	if resp.ID != id {
		h.t.Fatalf("answer to %s, want %s", resp.ID, id)
	}
	if resp.Error == nil && result != nil {
		if err := json.Unmarshal(resp.Result, result); err != nil {
			h.t.Fatal(err)
		}
	}
	return resp.Error
}

func (h *host) handshake() {
	h.t.Helper()
	var r rpc.HandshakeResult
	if err := h.call(rpc.MethodHandshake, rpc.Handshake{MinVersion: 1, MaxVersion: 9, SessionID: "s"}, &r); err != nil {
		h.t.Fatal(err)
	}
	if r.Version != rpc.Version || r.PID == 0 || !strings.HasPrefix(r.Worker, "osiris-worker/") {
		h.t.Errorf("handshake %+v", r)
	}
}

// events returns the names of the events and metrics so far.
func (h *host) events() []string {
	var names []string
	for _, f := range h.got {
		if f.Type != rpc.FrameEvent && f.Type != rpc.FrameMetric {
			continue
		}
		data, err := rpc.Data(f.Type, f.Payload)
		if err != nil {
			h.t.Fatal(err)
		}
		var line struct{ Event, Metric string }
		if err := json.Unmarshal(data, &line); err != nil {
			h.t.Fatal(err)
		}
		if line.Metric != "" {
			line.Event = "#" + line.Metric
		}
		names = append(names, line.Event)
	}
	return names
}

func numbers(n int64) driverFunc {
	return func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
		b := array.NewRecordBuilder(s.Memory(), schema)
		defer b.Release()
		for i := range n {
			b.Field(0).(*array.Int64Builder).Append(i)
		}
		rec := b.NewRecord()
		defer rec.Release()
		r, err := array.NewRecordReader(schema, []arrow.Record{rec})
		if err != nil {
			return nil, err
		}
		return worker.Output(r), nil
	}
}

func TestSteps(t *testing.T) {
	h := start(t, map[string]driverFunc{
		"rows.extractor": numbers(5),
		"count": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			df, err := s.Input("df")
			if err != nil {
				return nil, err
			}
			s.LogEvent("counted", map[string]any{"rows": df.Rows()})
			s.LogMetric("mine", float64(df.Rows()), "rows")
			s.Log().Warn("so many", "rows", df.Rows())
			return nil, nil
		},
	})
	if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a"}, nil); err == nil || err.Code != rpc.CodeInvalidRequest {
		t.Errorf("step before the handshake: %v", err)
	}
	h.handshake()
	if err := h.call(rpc.MethodHandshake, rpc.Handshake{MinVersion: 1, MaxVersion: 1, SessionID: "s"}, nil); err == nil {
		t.Error("second handshake")
	}
	if err := h.call("dance", nil, nil); err == nil || err.Code != rpc.CodeMethodNotFound {
		t.Errorf("unknown method: %v", err)
	}
	var r rpc.StepResult
	config := json.RawMessage(`{"component":"x","connection":"@a.b","path":"p","api_key":"canary"}`)
	if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "rows.extractor", Config: config, CfgPath: "cfg/a.json", Keep: true}, &r); err != nil {
		t.Fatal(err)
	}
	want := rpc.StepResult{
		StepID: "a", Status: "success", Mode: "extract", RowsOut: 5, Metrics: map[string]float64{"rows_out": 5, "rows_read": 5},
		Outputs: map[string]rpc.OutputRef{"df": {Rows: 5, Columns: []string{"n"}}},
	}
	r.DurationMS = 0
	if n := r.Outputs["df"].Bytes; n < 5*8 || n > 4096 {
		t.Errorf("the output takes %d bytes", n)
	}
	if diff := cmp.Diff(want, r, cmpopts.IgnoreFields(rpc.OutputRef{}, "Bytes"), cmpopts.IgnoreFields(rpc.StepResult{}, "Usage")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantEvents := []string{
		"cfg_opened", "step_start", "artifacts_dir_created", "config_meta_stripped", "artifact_created",
		"#rows_out", "#rows_read", "#steps_completed", "#rows_processed", "#step_duration_ms", "step_complete",
	}
	if diff := cmp.Diff(wantEvents, h.events()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b, err := os.ReadFile(filepath.Join(h.dir, "artifacts", "a", "cleaned_config.json"))
	if err != nil || string(b) != "{\n  \"api_key\": \"***MASKED***\",\n  \"path\": \"p\"\n}" {
		t.Errorf("cleaned config %s, %v", b, err)
	}

	h.got = nil
	inputs := map[string]rpc.InputRef{"df": {FromStep: "a"}, "df_a": {FromStep: "a"}}
	if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "b", Driver: "count", Inputs: inputs, Release: []string{"a"}}, &r); err != nil {
		t.Fatal(err)
	}
	wantEvents = []string{
		"cfg_opened", "inputs_resolved", "#rows_in", "step_start", "artifacts_dir_created", "artifact_created",
		"counted", "#mine", "#steps_completed", "#rows_processed", "#step_duration_ms", "step_complete",
	}
	if diff := cmp.Diff(wantEvents, h.events()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.RowsIn != 5 || r.Metrics["mine"] != 5 {
		t.Errorf("result %+v", r)
	}
	// It was released with its last reader.
	err2 := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "c", Driver: "count", Inputs: inputs}, nil)
	if err2 == nil || err2.Code != rpc.CodeMissingInput || err2.Data.StepID != "c" {
		t.Errorf("released input: %+v", err2)
	}

	var sealed rpc.SealResult
	if err := h.call(rpc.MethodSealArtifacts, struct{}{}, &sealed); err != nil {
		t.Fatal(err)
	}
	if len(sealed.Artifacts) != 2 || sealed.Artifacts[0].StepID != "a" || sealed.Artifacts[0].Size != int64(len(b)) {
		t.Errorf("sealed %+v", sealed)
	}
	if err := h.call(rpc.MethodShutdown, nil, nil); err == nil || err.Code != 0 {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.expectClose(0, "shutdown")
}

func (h *host) expectClose(code int, reason string) {
	h.t.Helper()
	for {
		f := h.next()
		if f.Type != rpc.FrameClose {
			continue
		}
		data, err := rpc.Data(f.Type, f.Payload)
		var c rpc.Close
		if err == nil {
			err = json.Unmarshal(data, &c)
		}
		if err != nil || c.ExitCode != code || !strings.Contains(c.Reason, reason) {
			h.t.Errorf("close %+v, %v; want %d %q", c, err, code, reason)
		}
		break
	}
	if got := <-h.exit; got != code {
		h.t.Errorf("exit code %d, want %d", got, code)
	}
}

// TestRequestSentTwice: it is executed once and answered twice, until the
// host says that it has the answer.
func TestRequestSentTwice(t *testing.T) {
	var ran atomic.Int64
	h := start(t, map[string]driverFunc{"count": func(context.Context, *worker.Step) (*worker.Result, error) {
		ran.Add(1)
		return nil, nil
	}})
	h.handshake()
	params, _ := json.Marshal(rpc.ExecuteStep{StepID: "a", Driver: "count"})
	req := rpc.Request{ID: rpc.RequestID(7), Method: rpc.MethodExecuteStep, Params: params}
	h.send(req)
	first := h.answer()
	h.send(req)
	second := h.answer()
	if diff := cmp.Diff(first, second); diff != "" || first.ID != "req_7" {
		t.Errorf("answers differ:\n%s", diff)
	}
	h.send(rpc.Request{ID: rpc.RequestID(8), Method: rpc.MethodPing, Answered: 7})
	if r := h.answer(); r.ID != "req_8" {
		t.Errorf("answer %+v", r)
	}
	h.send(req) // late: the host has the answer
	h.send(rpc.Request{ID: rpc.RequestID(9), Method: rpc.MethodPing})
	if r := h.answer(); r.ID != "req_9" {
		t.Errorf("answer %+v", r)
	}
	if ran.Load() != 1 {
		t.Errorf("the step ran %d times", ran.Load())
	}
}

func TestCancel(t *testing.T) {
	started := make(chan struct{})
	h := start(t, map[string]driverFunc{"wait": func(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
		close(started)
		<-ctx.Done()
		return nil, fmt.Errorf("query: %w", ctx.Err())
	}})
	h.handshake()
	step := h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "wait"})
	<-started
	h.ask(rpc.MethodCancel, rpc.Cancel{ID: step})
	answers := map[string]*rpc.Response{}
	for range 2 {
		r := h.answer()
		answers[r.ID] = r
	}
	if e := answers[step].Error; e == nil || e.Code != rpc.CodeCancelled || e.Message != "cancelled by the host" || e.Data.Type != "cancelled" {
		t.Errorf("answer %+v", answers[step])
	}
	if err := h.call(rpc.MethodCancel, rpc.Cancel{ID: "req_99"}, nil); err != nil {
		t.Errorf("cancel of nothing: %v", err)
	}
}

func TestEndOfInput(t *testing.T) {
	started := make(chan struct{})
	stopped := make(chan struct{})
	h := start(t, map[string]driverFunc{"wait": func(ctx context.Context, _ *worker.Step) (*worker.Result, error) {
		close(started)
		<-ctx.Done()
		close(stopped)
		return nil, ctx.Err()
	}})
	h.handshake()
	h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "wait"})
	<-started
	h.stdin.Close()
	<-stopped
	h.expectClose(1, "end of input")
}

func TestBadInputEndsWorker(t *testing.T) {
	for name, write := range map[string]func(h *host){
		"garbage":       func(h *host) { h.stdin.Write([]byte(strings.Repeat("x", 64))) },
		"a wrong frame": func(h *host) { h.stdin.Write(rpc.AppendFrame(nil, rpc.FrameEvent, 0, []byte(`{}`))) },
		"a wrong message": func(h *host) {
			h.stdin.Write(rpc.AppendFrame(nil, rpc.FrameRequest, 0, []byte(`{"id":1}`)))
		},
		"too large": func(h *host) {
			h.stdin.Write(rpc.AppendFrame(nil, rpc.FrameRequest, 0, make([]byte, rpc.MaxInputFrame+1)))
		},
		"ack beyond the end": func(h *host) {
			h.stdin.Write(rpc.AppendFrame(nil, rpc.FrameAck, 0, []byte(`{"offset":1000000000}`)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, nil)
			h.handshake()
			go write(h)
			h.expectClose(1, "input")
		})
	}
}

func TestHandshakeRefuses(t *testing.T) {
	h := start(t, map[string]driverFunc{"b": numbers(1), "a": numbers(1)})
	ok := rpc.Handshake{MinVersion: 1, MaxVersion: 1, SessionID: "s"}
	for name, tt := range map[string]struct {
		change func(p *rpc.Handshake)
		code   rpc.Code
		want   string
	}{
		"version":    {func(p *rpc.Handshake) { p.MinVersion, p.MaxVersion = 2, 3 }, rpc.CodeProtocol, "no protocol version in common"},
		"session":    {func(p *rpc.Handshake) { p.SessionID = "" }, rpc.CodeInvalidParams, "session id"},
		"driver":     {func(p *rpc.Handshake) { p.Drivers = []string{"a", "x"} }, rpc.CodeUnknownDriver, `driver "x" not registered; available drivers: a, b`},
		"no drivers": {func(p *rpc.Handshake) { p.Drivers = []string{""} }, rpc.CodeUnknownDriver, "not registered"},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			p := ok
			tt.change(&p)
			err := h.call(rpc.MethodHandshake, p, nil)
			if err == nil || err.Code != tt.code || !strings.Contains(err.Message, tt.want) {
				t.Errorf("error %+v", err)
			}
		})
	}
	h.t = t
	h.handshake() // and it may be tried again
}

func TestFetchOutput(t *testing.T) {
	const rows = 200_000 // several chunks
	h := start(t, map[string]driverFunc{"rows": numbers(rows)})
	h.handshake()
	if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "rows", Keep: true}, nil); err != nil {
		t.Fatal(err)
	}
	h.ask(rpc.MethodFetchOutput, rpc.FetchOutput{StepID: "a", Key: "df"})
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	payload := &rpc.PayloadReader{Frames: h.frames, Stream: uint32(h.last), Other: func(f rpc.Frame) error { return nil }}
	r, err := rpc.NewArrowReader(payload, nil, mem)
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for r.Next() {
		col := r.Record().Column(0).(*array.Int64)
		for i := range col.Len() {
			sum += col.Value(i)
		}
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if r.Rows() != rows || sum != rows*(rows-1)/2 {
		t.Errorf("%d rows, sum %d", r.Rows(), sum)
	}
	r.Release()
	if _, err := io.Copy(io.Discard, payload); err != nil {
		t.Fatal(err)
	}
	var result rpc.FetchOutputResult
	if err := json.Unmarshal(h.answer().Result, &result); err != nil || result.Rows != rows || result.Bytes < rows*8 {
		t.Errorf("result %+v, %v", result, err)
	}
	if err := h.call(rpc.MethodFetchOutput, rpc.FetchOutput{StepID: "b"}, nil); err == nil || err.Code != rpc.CodeMissingInput {
		t.Errorf("missing output: %v", err)
	}
}

// TestFullJournal: a host that does not acknowledge stops the worker from
// saying more, once with a warning, and goes on when it does.
func TestFullJournal(t *testing.T) {
	h := start(t, map[string]driverFunc{"talk": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		for i := range 2000 {
			s.LogEvent("word", map[string]any{"n": i, "text": strings.Repeat("x", 100)})
		}
		return nil, nil
	}}, "-max-journal", "65536")
	h.handshake()
	h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "talk"})
	warnings, words := 0, 0
	for {
		f := h.next()
		switch f.Type {
		case rpc.FrameResponse:
			if words != 2000 {
				t.Errorf("%d events", words)
			}
			if warnings < 2 {
				t.Errorf("%d warnings", warnings)
			}
			return
		case rpc.FrameEvent:
			if strings.Contains(string(f.Payload), `"event":"word"`) {
				words++
			}
		case rpc.FrameLog:
			if !strings.Contains(string(f.Payload), "journal full") {
				t.Errorf("log %s", f.Payload)
			}
			warnings++
			// Nothing is said now but heartbeats: everything so far is read.
			b, _ := json.Marshal(rpc.Ack{Offset: h.frames.Offset()})
			frame, _ := rpc.EncodeInput(rpc.FrameAck, b)
			if _, err := h.stdin.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFullJournalAndNoHost: a worker that waits for a host which is gone ends.
func TestFullJournalAndNoHost(t *testing.T) {
	h := start(t, map[string]driverFunc{"talk": func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		for ctx.Err() == nil {
			s.LogEvent("word", map[string]any{"text": strings.Repeat("x", 1000)})
		}
		return nil, ctx.Err()
	}}, "-max-journal", "65536")
	h.handshake()
	h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "talk"})
	for h.next().Type != rpc.FrameLog { // the warning that it is full
	}
	h.stdin.Close()
	h.expectClose(1, "end of input")
}

func TestOutputErrors(t *testing.T) {
	boom := errors.New("boom")
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	h := start(t, map[string]driverFunc{
		"late": func(context.Context, *worker.Step) (*worker.Result, error) {
			return worker.Output(&failingReader{schema: schema, err: boom}), nil
		},
		"nil": func(context.Context, *worker.Step) (*worker.Result, error) { return worker.Output(nil), nil },
		"panic": func(context.Context, *worker.Step) (*worker.Result, error) {
			return worker.Output(&failingReader{}), nil
		},
		"exit": func(context.Context, *worker.Step) (*worker.Result, error) {
			runtimeGoexit()
			return nil, nil
		},
		"hostile": func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogEvent("evil\nname", map[string]any{"a\"b": "c\nd", "ch": make(chan int), "session": "other", "big": strings.Repeat("x", 2<<20)})
			s.Log().Info(strings.Repeat("y", 3<<20))
			return nil, errors.New(strings.Repeat("z", 3<<20))
		},
	})
	h.handshake()
	for driver, want := range map[string]string{
		"late": "read output: boom", "nil": `no reader for output "df"`, "panic": "panic: runtime error", "exit": "ended its goroutine", "hostile": "zzz",
	} {
		err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: driver, Driver: driver, Keep: driver != "nil"}, nil)
		if err == nil || err.Code != rpc.CodeStepFailed || !strings.Contains(err.Message, want) {
			t.Errorf("%s: %.200v", driver, err)
		}
	}
	if err := h.call(rpc.MethodPing, nil, nil); err != nil {
		t.Errorf("the worker is not well after all this: %v", err)
	}
	for _, id := range []string{"", "..", "a/b", "/abs"} {
		if err := h.call(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: id, Driver: "late"}, nil); err == nil || err.Code != rpc.CodeInvalidParams {
			t.Errorf("step id %q: %v", id, err)
		}
	}
}

func runtimeGoexit() {
	var t testing.T
	t.SkipNow() // ends the goroutine, as a test helper used in a driver would
}

type failingReader struct {
	schema *arrow.Schema
	err    error
}

func (r *failingReader) Retain()               {}
func (r *failingReader) Release()              {}
func (r *failingReader) Schema() *arrow.Schema { return r.schema }
func (r *failingReader) Next() bool            { return false }
func (r *failingReader) Record() arrow.Record  { return nil }
func (r *failingReader) Err() error            { return r.err }

func TestStepPaths(t *testing.T) {
	dir := t.TempDir()
	s := &worker.Step{ArtifactsDir: dir, BasePath: filepath.Join("testdata"), Files: map[string]string{"/abs/in.csv": filepath.Join(dir, "mapped")}}
	for name, want := range map[string]string{
		"out.csv": "out.csv", "a/b.csv": "a/b.csv", "/abs/c.csv": "abs/c.csv", "a/../d.csv": "d.csv", "./e": "e", "//f": "f",
	} {
		got, err := s.ArtifactPath(name)
		if err != nil || got != filepath.Join(dir, filepath.FromSlash(want)) {
			t.Errorf("%q is at %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../x", "a/../../x", "/", "/..", "cleaned_config.json", "./a/../cleaned_config.json"} {
		if got, err := s.ArtifactPath(name); err == nil {
			t.Errorf("%q is at %q", name, got)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "mapped"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open("/abs/in.csv")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := s.Open("none.csv"); !errors.Is(err, os.ErrNotExist) || err.Error() != "open none.csv: file does not exist" && err.Error() != "open none.csv: no such file or directory" {
		t.Errorf("missing file: %v", err)
	}
}

func TestRegistry(t *testing.T) {
	r := worker.NewRegistry()
	r.Register("b", worker.Write, func() worker.Driver { return nil })
	for name, register := range map[string]func(){
		"twice":          func() { r.Register("b", worker.Write, func() worker.Driver { return nil }) },
		"no name":        func() { r.Register("", worker.Write, func() worker.Driver { return nil }) },
		"no constructor": func() { r.Register("c", worker.Write, nil) },
		"no mode":        func() { r.Register("c", "walk", func() worker.Driver { return nil }) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			register()
		}()
	}
	_, err := r.Lookup("x")
	if !errors.Is(err, worker.ErrUnknownDriver) || err.Error() != `driver "x" not registered; available drivers: b` {
		t.Error(err)
	}
}

// Where the worker is no process, its end is recorded all the same.
func TestSuperviseInMemory(t *testing.T) {
	dir := t.TempDir()
	p := worker.Program{}
	if code := p.Run(t.Context(), []string{"supervise", "-dir", dir}, strings.NewReader(""), io.Discard, io.Discard); code != 1 {
		t.Errorf("exit code %d", code)
	}
	var out strings.Builder
	if code := p.Run(t.Context(), []string{"reap", "-dir", dir}, strings.NewReader(""), &out, io.Discard); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var s rpc.WorkerStatus
	if err := json.Unmarshal([]byte(out.String()), &s); err != nil {
		t.Fatal(err)
	}
	if s.Death == nil || s.Death.ExitCode != 1 || s.Death.Unknown || s.Worker != nil || s.JournalEnd <= 0 || s.Remains == nil || !s.Remains.Observed {
		t.Errorf("status %+v", s)
	}
}

func TestProgramUsage(t *testing.T) {
	p := worker.Program{}
	for _, args := range [][]string{{}, {"serve"}, {"serve", "-dir", "relative"}, {"dance", "-dir", "/x"}, {"tail", "-dir", "/x", "-from", "-1"}, {"seal", "-dir", "/x", "more"}, {"serve", "-wrong"}} {
		var stderr strings.Builder
		if code := p.Run(t.Context(), args, strings.NewReader(""), io.Discard, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, stderr.String())
		}
	}
	var out strings.Builder
	if code := p.Run(t.Context(), []string{worker.Arg, "version"}, strings.NewReader(""), &out, io.Discard); code != 0 || !strings.HasPrefix(out.String(), "osiris-worker/") {
		t.Errorf("version: %d %q", code, out.String())
	}
}

func TestSealSkipsWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	artifacts := filepath.Join(dir, "artifacts", "a")
	if err := os.MkdirAll(filepath.Join(artifacts, "sub dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"x": "1", "sub dir/new\nline": "22", "empty": ""} {
		if err := os.WriteFile(filepath.Join(artifacts, filepath.FromSlash(name)), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(artifacts, "link")); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if code := (worker.Program{}).Run(t.Context(), []string{"seal", "-dir", dir}, strings.NewReader(""), &out, os.Stderr); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	var got rpc.SealResult
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, a := range got.Artifacts {
		paths = append(paths, fmt.Sprint(a.Path, " ", a.Size, " ", a.StepID))
	}
	if diff := cmp.Diff([]string{"a/empty 0 a", "a/sub dir/new\nline 2 a", "a/x 1 a"}, paths); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(got.Skipped) != 1 || got.Skipped[0].Path != "a/link" {
		t.Errorf("skipped %+v", got.Skipped)
	}
}

// TestDataFrame: several readers at once, and nothing left behind.
func TestDataFrame(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.DefaultAllocator)
	defer mem.AssertSize(t, 0)
	result, err := numbers(1000)(t.Context(), &worker.Step{Allocator: mem})
	if err != nil {
		t.Fatal(err)
	}
	r := result.Outputs["df"]
	df, err := worker.ReadDataFrame(r)
	r.Release()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		df.Retain()
		wg.Go(func() {
			defer df.Release()
			r := df.Reader()
			defer r.Release()
			rows := int64(0)
			for r.Next() {
				rows += r.Record().NumRows()
			}
			if rows != df.Rows() || rows != 1000 {
				t.Errorf("%d rows", rows)
			}
		})
	}
	df.Release()
	wg.Wait()
}

// A worker listens to the host that took it over last, and tells all others.
func TestOwnership(t *testing.T) {
	release := make(chan struct{})
	h := start(t, map[string]driverFunc{"wait": func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("waiting", nil)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}})
	hello := func(epoch int64, owner string) *rpc.Error {
		t.Helper()
		h.epoch = epoch
		if first := rpc.FirstRequest(epoch); h.last < first {
			h.last = first - 1
		}
		return h.call(rpc.MethodHandshake, rpc.Handshake{
			MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Epoch: epoch, Owner: owner,
		}, nil)
	}
	code := func(err *rpc.Error) rpc.Code {
		if err == nil {
			return 0
		}
		return err.Code
	}
	if err := hello(1, "a"); err != nil {
		t.Fatal(err)
	}
	if got := code(hello(1, "b")); got != rpc.CodeOwnershipLost {
		t.Errorf("another host of the same epoch: code %d", got)
	}
	running := h.ask(rpc.MethodExecuteStep, rpc.ExecuteStep{StepID: "a", Driver: "wait"})
	for h.next().Type != rpc.FrameEvent {
	}
	if err := hello(3, "c"); err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []int64{1, 2} {
		h.epoch = epoch
		if got := code(h.call(rpc.MethodPing, struct{}{}, nil)); got != rpc.CodeOwnershipLost {
			t.Errorf("request of epoch %d: code %d", epoch, got)
		}
		if got := code(h.call(rpc.MethodHandshake, rpc.Handshake{
			MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Epoch: epoch, Owner: "a",
		}, nil)); got != rpc.CodeOwnershipLost {
			t.Errorf("handshake of epoch %d: code %d", epoch, got)
		}
	}
	h.epoch = 4
	if got := code(h.call(rpc.MethodPing, struct{}{}, nil)); got != rpc.CodeInvalidRequest {
		t.Errorf("request before its handshake: code %d", got)
	}
	h.epoch = 3
	if got := code(h.call(rpc.MethodPing, struct{}{}, nil)); got != 0 {
		t.Errorf("request of the owner: code %d", got)
	}
	close(release) // what an earlier host has started goes on, and is answered
	answer := h.answer()
	var result rpc.StepResult
	if err := json.Unmarshal(answer.Result, &result); err != nil || answer.ID != running || result.StepID != "a" {
		t.Errorf("answer to the first host: %+v, %v", answer, err)
	}
}

// Heartbeats come as often as the host of now expects them, which need not be
// as often as the one before did.
func TestHeartbeatsOfNextHost(t *testing.T) {
	h := start(t, nil)
	for i, ms := range []int64{3_600_000, 1} {
		h.epoch = int64(i + 1)
		h.last = rpc.FirstRequest(h.epoch) - 1
		if err := h.call(rpc.MethodHandshake, rpc.Handshake{
			MinVersion: rpc.Version, MaxVersion: rpc.Version, SessionID: "s", Epoch: h.epoch, HeartbeatMS: ms,
		}, nil); err != nil {
			t.Fatal(err)
		}
		for beats := 0; ms == 1 && beats < 2; {
			f := h.next()
			if f.Type != rpc.FrameHeartbeat {
				t.Fatalf("a frame %s", f.Type)
			}
			data, err := rpc.Data(f.Type, f.Payload)
			if err != nil {
				t.Fatal(err)
			}
			var beat rpc.Heartbeat
			if err := json.Unmarshal(data, &beat); err != nil {
				t.Fatal(err)
			}
			if beat.Epoch == h.epoch {
				beats++
			}
		}
	}
}
