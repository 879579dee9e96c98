package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v17/arrow/array"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// ExecuteStep runs a step: it resolves the inputs, hands them to the driver,
// keeps the outputs, and reports all of it as events and metrics. The error is
// an [*rpc.Error]; a driver's panic is one too.
//
// A step runs once in a worker's life, whoever asks for it: while it runs,
// others who ask wait for its end, and afterwards they get the same answer.
func (w *ProxyWorker) ExecuteStep(ctx context.Context, p *rpc.ExecuteStep) (*rpc.StepResult, error) {
	defer w.release(p.Release)
	ctx, call, first := w.enter(ctx, p)
	if call == nil {
		return nil, &rpc.Error{Code: rpc.CodeInvalidRequest, Data: &rpc.ErrorData{StepID: p.StepID, Driver: p.Driver},
			Message: fmt.Sprintf("step %q was executed with another driver, config or inputs", p.StepID)}
	}
	if !first {
		return call.join(ctx)
	}
	defer close(call.done)
	defer call.cancel(nil)
	call.err = &rpc.Error{Code: rpc.CodeInternal, Message: fmt.Sprintf("step %q did not end", p.StepID)}
	call.result, call.err = w.executeStep(ctx, p, call.request)
	return call.result, call.err
}

// stepCall is the one execution of a step.
type stepCall struct {
	request string                  // what was asked, see requestSum
	cancel  context.CancelCauseFunc // stops it
	done    chan struct{}           // it has ended

	result *rpc.StepResult // valid when done is closed
	err    error
}

// join waits for the end of a step that somebody else has begun. Who gives up
// waiting stops it, as if he had begun it.
func (c *stepCall) join(ctx context.Context) (*rpc.StepResult, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		c.cancel(context.Cause(ctx))
		<-c.done // soon: a driver that ignores its context is left behind
	}
	return c.result, c.err
}

// enter books the execution of a step. The first who asks for it has to execute
// it with the context that is returned; the call is nil when what he asks for is
// not what was asked before.
func (w *ProxyWorker) enter(ctx context.Context, p *rpc.ExecuteStep) (context.Context, *stepCall, bool) {
	request := requestSum(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if call := w.steps[p.StepID]; call != nil {
		if call.request != request {
			return ctx, nil, false
		}
		return ctx, call, false
	}
	call := &stepCall{request: request, done: make(chan struct{})}
	ctx, call.cancel = context.WithCancelCause(ctx)
	w.steps[p.StepID] = call
	return ctx, call, true
}

// requestSum tells what a step is asked to do from other things it might be.
func requestSum(p *rpc.ExecuteStep) string {
	b, err := json.Marshal([]any{p.Driver, p.Config, p.Inputs})
	if err != nil { // the config is no JSON
		b = fmt.Appendf(nil, "%q %q %q", p.Driver, p.Config, p.Inputs)
	}
	return sum(b)
}

func (w *ProxyWorker) executeStep(ctx context.Context, p *rpc.ExecuteStep, request string) (*rpc.StepResult, error) {
	start := time.Now()
	s := &stepRun{w: w, p: p, metrics: make(map[string]float64)}
	defer s.releaseInputs()

	w.mu.Lock()
	w.running[p.StepID]++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		if w.running[p.StepID]--; w.running[p.StepID] == 0 {
			delete(w.running, p.StepID)
		}
		w.mu.Unlock()
	}()

	result, err := s.run(ctx)
	if w.prints != nil {
		w.prints.flush() // while its lines still belong to this step
	}
	if err != nil {
		rpcErr := w.known.rpcError(p.StepID, err)
		rpcErr.Data.Driver = p.Driver
		rpcErr.Data.DurationMS = milliseconds(time.Since(start))
		rpcErr.Data.RowsIn, rpcErr.Data.Metrics = s.sofar()
		rpcErr.Data.Usage = s.used()
		w.event(p.StepID, "step_failed", map[string]any{
			"driver":      p.Driver,
			"error":       rpcErr.Message,
			"error_type":  rpcErr.Data.Type,
			"traceback":   rpcErr.Data.Traceback,
			"duration_ms": rpcErr.Data.DurationMS,
		})
		return nil, rpcErr
	}
	result.StepID, result.Status = p.StepID, "success"
	result.DurationMS, result.Usage = milliseconds(time.Since(start)), s.used()
	processed := result.RowsOut
	if result.Mode == string(Write) {
		processed = int64(result.Metrics["rows_written"])
	}
	w.counting.Lock() // so that the counts appear in their order
	w.completed++
	w.metric("", "steps_completed", float64(w.completed), "")
	w.counting.Unlock()
	w.metric(p.StepID, "rows_processed", float64(processed), "rows")
	w.metric(p.StepID, "step_duration_ms", result.DurationMS, "ms")
	w.event(p.StepID, "step_complete", map[string]any{
		"driver":         p.Driver,
		"rows_processed": processed,
		"duration_ms":    result.DurationMS,
	})
	if s.keeps {
		if err := w.keepStep(&keptStep{StepID: p.StepID, Request: request, Result: result, Outputs: s.kept}); err != nil {
			s.notKept(err)
		}
	}
	return result, nil
}

// notKept says that a step will not survive the worker's death. That is no
// failure of the step.
func (s *stepRun) notKept(err error) {
	s.keeps = false
	s.w.log(rpc.Log{Level: slog.LevelWarn.String(), StepID: s.p.StepID, Message: fmt.Sprintf("the step is not kept on disk, and lost if the worker dies: %v", err)}, false)
}

// stepRun is one execution of a step.
type stepRun struct {
	w      *ProxyWorker
	p      *rpc.ExecuteStep
	inputs map[string]*DataFrame
	keeps  bool         // the step is being kept on disk
	kept   []keptOutput // on disk

	mu      sync.Mutex
	rowsIn  int64
	metrics map[string]float64
	done    bool // the step was answered: a driver left behind is not heard
	usage   rpc.StepUsage
	left    bool // it was answered without its driver
}

func (s *stepRun) run(ctx context.Context) (*rpc.StepResult, error) {
	w, p := s.w, s.p
	if !validStepID(p.StepID) {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("step id %q cannot name a folder", p.StepID)}
	}
	if w.opts.Keep {
		if err := w.beginStep(p.StepID); err != nil {
			return nil, err
		}
	}
	if p.TraceParent != "" && !rpc.ValidTraceParent(p.TraceParent) {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("traceparent of step %q is not of the form that the W3C has", p.StepID)}
	}
	if p.TimeoutMS > 0 {
		timeout := time.Duration(p.TimeoutMS) * time.Millisecond
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, &timeoutError{timeout})
		defer cancel()
	}
	entry, err := w.driver(p.Driver)
	if err != nil {
		return nil, err
	}
	config, err := s.config()
	if err != nil {
		return nil, err
	}
	rowsIn, err := s.resolveInputs(ctx)
	if err != nil {
		return nil, err
	}
	if entry.WholeTables {
		s.warnOfSize()
	}
	w.event(p.StepID, "step_start", map[string]any{"driver": p.Driver})

	dir := w.path(artifactsDir, p.StepID)
	if w.opts.Resume { // what an earlier try has left would pass for this one's
		if err := w.opts.FS.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	if err := w.opts.FS.MkdirAll(dir); err != nil {
		return nil, err
	}
	w.event(p.StepID, "artifacts_dir_created", map[string]any{"relative_path": path.Join(artifactsDir, p.StepID)})

	var removed []string
	for _, key := range []string{"component", "connection"} {
		if _, ok := config[key]; ok {
			delete(config, key)
			removed = append(removed, key)
		}
	}
	if len(removed) > 0 {
		w.event(p.StepID, "config_meta_stripped", map[string]any{"keys_removed": removed})
	}
	var current func() (map[string]any, error)
	if p.Connection != "" {
		current = func() (map[string]any, error) { return w.connection(p.Connection) }
		if config[resolvedConnection], err = current(); err != nil {
			return nil, err
		}
	}
	if err := s.writeCleanedConfig(dir, config, entry.Secrets); err != nil {
		return nil, err
	}

	w.mu.Lock()
	step := &Step{
		ID:           p.StepID,
		Driver:       p.Driver,
		Config:       config,
		Connection:   p.Connection,
		Current:      current,
		TraceParent:  p.TraceParent,
		Inputs:       s.inputs,
		BasePath:     w.hello.BasePath,
		ArtifactsDir: dir,
		Files:        w.hello.Files,
		FS:           w.opts.FS,
		Allocator:    w.opts.Memory,
		Sink:         s,
		Logger:       slog.New(&logHandler{w: w, stepID: p.StepID}),
		Env:          maps.Clone(w.known.env),
	}
	w.mu.Unlock()
	stop := s.measure()
	outputs, err := s.drive(ctx, entry, step)
	stop()
	if err != nil {
		return nil, err
	}

	result := &rpc.StepResult{StepID: p.StepID, RowsIn: rowsIn, Mode: string(entry.Mode), Outputs: make(map[string]rpc.OutputRef)}
	for key, out := range outputs {
		result.RowsOut += out.ref.Rows
		result.Outputs[w.known.redact.String(key)] = out.ref
	}
	if len(outputs) > 0 {
		s.Metric("rows_out", float64(result.RowsOut), "rows")
	}
	s.mu.Lock()
	_, counted := s.metrics["rows_read"]
	s.mu.Unlock()
	if entry.Mode == Extract && !counted {
		s.Metric("rows_read", float64(result.RowsOut), "rows")
	}
	s.mu.Lock()
	result.Metrics = s.metrics
	s.done = true
	s.mu.Unlock()

	w.keepFetched(p, outputs)
	if p.Keep {
		kept := make(map[string]*DataFrame, len(outputs))
		for key, out := range outputs {
			kept[key] = out.df
		}
		w.mu.Lock()
		old := w.outputs[p.StepID]
		w.outputs[p.StepID] = kept
		w.mu.Unlock()
		for _, df := range old {
			df.Release()
		}
	}
	if s.keeps = w.opts.Keep; s.keeps {
		w.mu.Lock()
		kept := maps.Clone(w.outputs[p.StepID])
		w.mu.Unlock()
		if s.kept, err = w.keepOutputs(p.StepID, kept, p.Fetch); err != nil {
			s.notKept(err)
		}
	}
	return result, nil
}

// measure starts to measure what the step uses, until stop is called.
func (s *stepRun) measure() (stop func()) {
	start := time.Now()
	s.mu.Lock()
	s.usage.StartedAt = start.UTC()
	s.mu.Unlock()
	s.w.mu.Lock()
	s.w.measured[s] = true
	s.w.mu.Unlock()
	rss, _ := usage()
	s.seen(rss)
	return func() {
		rss, _ := usage()
		s.seen(rss)
		s.w.mu.Lock()
		delete(s.w.measured, s)
		s.w.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.usage.DriverMS = milliseconds(time.Since(start))
	}
}

// seen notes how much resident memory the worker has.
func (s *stepRun) seen(rss int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usage.PeakRSSBytes = max(s.usage.PeakRSSBytes, rss)
}

// used is what the step has used.
func (s *stepRun) used() *rpc.StepUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.usage
	return &u
}

// validStepID reports whether an id can name a folder.
func validStepID(id string) bool {
	return id != "" && id != "." && id != ".." && filepath.IsLocal(id) && path.Base(filepath.ToSlash(id)) == id
}

// config decodes the step's config.
func (s *stepRun) config() (map[string]any, error) {
	raw := s.p.Config
	config := make(map[string]any)
	if len(raw) > 0 && !bytes.Equal(raw, []byte("null")) {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		if err := dec.Decode(&config); err != nil {
			return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("config of step %q: %v", s.p.StepID, err)}
		}
	}
	s.w.event(s.p.StepID, "cfg_opened", map[string]any{
		"path":   s.p.CfgPath,
		"sha256": sum(raw),
		"keys":   append([]string{}, slices.Sorted(maps.Keys(config))...),
	})
	return config, nil
}

// resolveInputs finds the inputs. The same output under two names, as with
// "df" and "df_<step>", is reported and counted once, under the longer name.
func (s *stepRun) resolveInputs(ctx context.Context) (rows int64, err error) {
	s.inputs = make(map[string]*DataFrame, len(s.p.Inputs))
	seen := make(map[rpc.InputRef]bool)
	names := slices.Sorted(maps.Keys(s.p.Inputs))
	slices.Reverse(names) // "df_a" before "df"
	var reported []string
	for _, name := range names {
		ref := s.p.Inputs[name]
		df, err := s.input(ctx, ref)
		switch {
		case err != nil && ctx.Err() != nil: // a driver that reads a table of the host's was stopped, or is waited for
			return 0, &stoppedError{cause: context.Cause(ctx), err: fmt.Errorf("input %q: %w", name, err)}
		case err != nil:
			return 0, rpcErrorf(err, "input %q: %v", name, err)
		}
		s.inputs[name] = df
		if !seen[ref] {
			seen[ref] = true
			rows += df.Rows()
			reported = append(reported, name)
		}
	}
	slices.Sort(reported)
	for _, name := range reported {
		ref, df := s.p.Inputs[name], s.inputs[name]
		fields := map[string]any{"key": name, "rows": df.Rows(), "from_memory": !df.onDisk(), "from_spill": df.onDisk()}
		if ref.Table != "" {
			fields["table"] = ref.Table
		} else {
			fields["from_step"] = ref.FromStep
		}
		s.w.event(s.p.StepID, "inputs_resolved", fields)
	}
	s.mu.Lock()
	s.rowsIn = rows
	s.mu.Unlock()
	if len(reported) > 0 {
		s.Metric("rows_in", float64(rows), "rows")
	}
	return rows, nil
}

// warnOfSize says that a driver which needs whole tables may get more than there
// is room for.
func (s *stepRun) warnOfSize() {
	var names []string
	total := int64(0)
	seen := make(map[*DataFrame]bool)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(s.inputs))) { // "df_a" before "df"
		if df := s.inputs[name]; !seen[df] {
			seen[df] = true
			total += df.bytes
			names = append(names, fmt.Sprintf("%s %s", name, byteSize(df.bytes)))
		}
	}
	budget, _ := s.w.budget.state()
	if total <= budget {
		return
	}
	slices.Reverse(names)
	s.w.log(rpc.Log{Level: slog.LevelWarn.String(), StepID: s.p.StepID, Message: fmt.Sprintf(
		"driver %q has whole tables in memory, and its inputs take %s there (%s), more than the memory budget of %s: it may run out of memory",
		s.p.Driver, byteSize(total), strings.Join(names, ", "), byteSize(budget))}, false)
}

func (s *stepRun) releaseInputs() {
	for _, df := range s.inputs {
		df.Release()
	}
}

// cleanedConfig is the artifact that shows a step's config.
const cleanedConfig = "cleaned_config.json"

// writeCleanedConfig keeps the config the driver gets as an artifact, with its
// secrets masked.
func (s *stepRun) writeCleanedConfig(dir string, config map[string]any, pointers []string) error {
	const name = cleanedConfig
	b, err := json.MarshalIndent(secrets.Mask(config, pointers...), "", "  ")
	if err != nil {
		return fmt.Errorf("cleaned config: %w", err)
	}
	b = s.w.known.redact.JSON(b)
	f, err := s.w.opts.FS.Create(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("cleaned config: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cleaned config: %w", err)
	}
	s.w.event(s.p.StepID, "artifact_created", map[string]any{
		"artifact_type": "cleaned_config",
		"path":          path.Join(artifactsDir, s.p.StepID, name),
	})
	return nil
}

type output struct {
	df  *DataFrame // nil when nobody will read it
	ref rpc.OutputRef
}

// drive runs the driver and reads its outputs, and returns at the latest a
// grace after ctx is done.
func (s *stepRun) drive(ctx context.Context, entry Registration, step *Step) (map[string]output, error) {
	type outcome struct {
		outputs map[string]output
		err     error
	}
	finished := make(chan outcome, 1)
	inputs := s.inputs
	go func() {
		o := outcome{err: &panicError{value: "the driver ended its goroutine (runtime.Goexit)"}}
		defer func() {
			if v := recover(); v != nil {
				o = outcome{err: &panicError{value: v, stack: debug.Stack()}}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.left {
				releaseOutputs(o.outputs)
				for _, df := range inputs { // it has them no more
					df.Release()
				}
				return
			}
			finished <- o
		}()
		outputs, err := s.runDriver(ctx, entry.New(), step)
		o = outcome{outputs, err}
	}()

	wait := func() (outcome, bool) {
		timer := time.NewTimer(stopGrace)
		defer timer.Stop()
		select {
		case o := <-finished:
			return o, true
		case <-timer.C:
			return outcome{}, false
		}
	}
	var o outcome
	select {
	case o = <-finished:
	case <-ctx.Done():
		var stopped bool
		if o, stopped = wait(); !stopped {
			s.mu.Lock()
			s.done, s.left = true, true
			select {
			case o := <-finished: // too late, but the driver is gone
				releaseOutputs(o.outputs)
				s.left = false
			default:
			}
			stays := s.left
			s.mu.Unlock()
			s.w.mu.Lock()
			s.w.abandoned++
			s.w.mu.Unlock()
			if stays { // it still reads its inputs: leave them to it
				s.inputs = nil
			}
			return nil, &abandonedError{cause: context.Cause(ctx)}
		}
	}
	if o.err != nil && ctx.Err() != nil && !isPanic(o.err) {
		return nil, &stoppedError{cause: context.Cause(ctx), err: o.err}
	}
	return o.outputs, o.err
}

func releaseOutputs(outputs map[string]output) {
	for _, out := range outputs {
		if out.df != nil {
			out.df.Release()
		}
	}
}

// runDriver runs a driver and reads its outputs to their ends.
func (s *stepRun) runDriver(ctx context.Context, d Driver, step *Step) (held map[string]output, err error) {
	result, err := d.Run(ctx, step)
	if result == nil {
		result = &Result{}
	}
	outputs := make(map[string]output, len(result.Outputs))
	defer func() {
		for _, r := range result.Outputs {
			if r != nil {
				r.Release()
			}
		}
		if held == nil { // also when a reader panics
			releaseOutputs(outputs)
		}
	}()
	if err != nil {
		return nil, err
	}
	for i, key := range slices.Sorted(maps.Keys(result.Outputs)) {
		r := result.Outputs[key]
		if r == nil {
			return nil, fmt.Errorf("driver returned no reader for output %q", key)
		}
		out := output{}
		for _, f := range r.Schema().Fields() {
			out.ref.Columns = append(out.ref.Columns, s.w.known.redact.String(f.Name))
		}
		fetched := slices.Contains(s.p.Fetch, key)
		if s.p.Keep || fetched {
			df, err := s.gather(key, i, r)
			if err != nil {
				return nil, err
			}
			out.df, out.ref.Rows, out.ref.Bytes = df, df.Rows(), df.bytes
			if df.onDisk() {
				out.ref.Spilled = &rpc.SpilledOutput{Path: s.w.relative(df.file.parts[0].path), Bytes: df.file.size()}
			}
			if fetched {
				out.ref.Stream = s.w.streamRef(df.file)
			}
		} else if out.ref.Rows, err = countRows(r); err != nil {
			return nil, err
		}
		outputs[key] = out
	}
	return outputs, nil
}

func countRows(r array.RecordReader) (rows int64, err error) {
	for r.Next() {
		rows += r.Record().NumRows()
	}
	return rows, r.Err()
}

// Event implements [StepSink].
func (s *stepRun) Event(name string, fields map[string]any) {
	if s.heard() {
		s.w.event(s.p.StepID, s.w.known.redact.String(name), fields)
	}
}

// maxMetricName bounds a metric's name: the last value of each is in the answer.
const maxMetricName = 1 << 10

// Metric implements [StepSink].
func (s *stepRun) Metric(name string, value float64, unit string) {
	name, unit = s.w.known.redact.String(name), s.w.known.redact.String(unit)
	if len(name) > maxMetricName { // half a secret would not be known
		name = strings.ToValidUTF8(name[:maxMetricName], "")
	}
	s.mu.Lock()
	heard := !s.done
	if heard {
		s.metrics[name] = value
	}
	s.mu.Unlock()
	if heard {
		s.w.metric(s.p.StepID, name, value, unit)
	}
}

// sofar returns what a step that has failed has counted; nothing is counted any
// more.
func (s *stepRun) sofar() (rowsIn int64, metrics map[string]float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	return s.rowsIn, s.metrics
}

func (s *stepRun) heard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.done
}

// timeoutError is the cause of a step's end by its own timeout.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string {
	return fmt.Sprintf("step timeout of %s exceeded", e.after)
}

// stoppedError: the driver returned because its context was done.
type stoppedError struct{ cause, err error }

func (e *stoppedError) Error() string   { return e.cause.Error() }
func (e *stoppedError) Unwrap() []error { return []error{e.cause, e.err} }

// abandonedError: the driver did not return although its context was done.
type abandonedError struct{ cause error }

func (e *abandonedError) Error() string {
	return fmt.Sprintf("%v; the driver ignored it for %s and is still running", e.cause, stopGrace)
}
func (e *abandonedError) Unwrap() error { return e.cause }

// panicError is a driver's panic.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func isPanic(err error) bool {
	var p *panicError
	return errors.As(err, &p)
}

// maxErrorText bounds what an error message or a stack may take in an answer.
const maxErrorText = 64 << 10

// rpcError turns a step's error into the answer's. It is redacted before it is
// cut: half a value would not be known.
func (c *workerSecrets) rpcError(stepID string, err error) *rpc.Error {
	out := &rpc.Error{Code: rpc.CodeStepFailed, Message: truncate(c.redact.String(err.Error()), maxErrorText)}
	out.Data = &rpc.ErrorData{StepID: stepID, Type: errorType(err)}
	var (
		rpcErr  *rpc.Error
		unknown *UnknownDriverError
		panicky *panicError
		timeout *timeoutError
		driver  *DriverError
	)
	switch {
	case errors.As(err, &rpcErr):
		out.Code = rpcErr.Code
	case errors.As(err, &unknown):
		out.Code = rpc.CodeUnknownDriver
		out.Data.Driver, out.Data.Available = unknown.Driver, unknown.Available
	case errors.As(err, &panicky):
		out.Data.Type = "panic"
		out.Data.Traceback = truncate(c.redact.String(string(panicky.stack)), maxErrorText)
	case errors.As(err, &timeout):
		out.Code = rpc.CodeTimeout
	case errors.Is(err, errCancelled), errors.Is(err, errStopping):
		out.Code = rpc.CodeCancelled
	case errors.As(err, &driver):
		out.Data.Type = truncate(c.redact.String(driver.Type), maxErrorText)
		out.Data.Traceback = truncate(c.redact.String(driver.Traceback), maxErrorText)
	}
	return out
}

func rpcErrorf(err error, format string, args ...any) *rpc.Error {
	out := &rpc.Error{Code: rpc.CodeInternal, Message: fmt.Sprintf(format, args...)}
	var rpcErr *rpc.Error
	if errors.As(err, &rpcErr) {
		out.Code = rpcErr.Code
	}
	return out
}

// errorType names the type of the first error in the chain that says more
// than "wrapped".
func errorType(err error) string {
	for err != nil {
		switch name := reflect.TypeOf(err).String(); name {
		case "*fmt.wrapError":
			err = errors.Unwrap(err)
		case "*worker.stoppedError", "*worker.abandonedError":
			if errors.As(err, new(*timeoutError)) {
				return "timeout"
			}
			return "cancelled"
		default:
			return name
		}
	}
	return ""
}

func truncate(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit/2] + "\n... (shortened) ...\n" + s[len(s)-limit/2:]
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
