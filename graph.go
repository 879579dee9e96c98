package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// inputs returns what a step reads, by the names its driver sees: its own
// Inputs if it has any, else "df_<step>" for every step it needs that has the
// output "df", and "df" as well when that is one.
//
// The names are the reference implementation's: characters outside
// [0-9A-Za-z_] become "_", a leading digit gets "_" before it, and ids that
// become the same name all get the first 8 hex digits of their SHA-256 behind
// it.
func (s Step) inputs(hasTable func(id string) bool) map[string]InputRef {
	if len(s.Inputs) > 0 {
		return s.Inputs
	}
	count := make(map[string]int, len(s.Needs))
	var tables []string
	for _, id := range s.upstream() {
		count[safeName(id)]++
		if hasTable(id) {
			tables = append(tables, id)
		}
	}
	refs := make(map[string]InputRef, len(tables)+1)
	for _, id := range tables {
		name := safeName(id)
		if _, taken := refs["df_"+name]; taken || count[name] > 1 {
			name += "_" + sha256Hex([]byte(id))[:8]
		}
		refs["df_"+name] = InputRef{FromStep: id}
	}
	if len(tables) == 1 {
		refs[worker.DefaultOutput] = InputRef{FromStep: tables[0]}
	}
	return refs
}

func safeName(id string) string {
	var out []byte
	for i, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '_':
			out = append(out, byte(r))
		case r >= '0' && r <= '9':
			if i == 0 {
				out = append(out, '_')
			}
			out = append(out, byte(r))
		default:
			out = append(out, '_')
		}
	}
	return string(out)
}

func sha256Hex(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// graph runs the steps of a plan, each as soon as what it waits for is done.
type graph struct {
	steps     []Step
	execute   func(ctx context.Context, i int, req *rpc.ExecuteStep) (*rpc.StepResult, error)
	ready     func(i int) // told of a step that waits for nothing but its turn
	limit     int
	onFailure OnFailure
	timeout   time.Duration       // of a step; zero means none
	fetch     map[string][]string // keys of outputs that the host may fetch, by step
	configs   func(i int) (json.RawMessage, error)

	// Of a run that a host before this one has begun: what it decided follows
	// from the order in which it had the answers.
	answered []string // steps
	over     bool     // it has ended the run: no other step was to begin

	results []StepResult                        // by step
	tables  map[string]bool                     // steps that have put out "df"
	outputs map[string]map[string]rpc.OutputRef // by step and key
}

// run runs the graph and returns the first failure. Steps that are running
// when one fails, or when ctx ends, are waited for.
func (g *graph) run(ctx context.Context) error {
	n := len(g.steps)
	index := make(map[string]int, n)
	g.results = make([]StepResult, n)
	g.tables = make(map[string]bool)
	g.outputs = make(map[string]map[string]rpc.OutputRef)
	for i, s := range g.steps {
		index[s.ID] = i
		g.results[i] = StepResult{StepID: s.ID, Driver: s.DriverName(), Status: StepSkipped}
	}
	waiting := make([]int, n)      // upstream steps not done
	dependents := make([][]int, n) // in manifest order
	readers := make([]int, n)      // steps that may still read the outputs
	upstream := make([][]int, n)
	var ready []int
	for i, s := range g.steps {
		for _, id := range s.upstream() {
			u := index[id]
			upstream[i] = append(upstream[i], u)
			dependents[u] = append(dependents[u], i)
			readers[u]++
		}
		if waiting[i] = len(upstream[i]); waiting[i] == 0 {
			ready = append(ready, i)
			g.ready(i)
		}
	}

	type finished struct {
		step   int
		result *rpc.StepResult
		err    error
	}
	done := make(chan finished)
	running := 0
	stopped := false // nothing begins any more
	begun := make([]bool, n)
	early := make(map[int]finished) // those whose turn has not come
	known := make(map[int]bool, len(g.answered))
	for _, id := range g.answered {
		if i, ok := index[id]; ok {
			known[i] = true
		}
	}
	next := func() finished {
		for ; len(g.answered) > 0; g.answered = g.answered[1:] {
			i, ok := index[g.answered[0]]
			if !ok || !begun[i] {
				continue
			}
			for {
				if f, ok := early[i]; ok {
					delete(early, i)
					g.answered = g.answered[1:]
					return f
				}
				f := <-done
				early[f.step] = f
			}
		}
		for i, f := range early {
			delete(early, i)
			return f
		}
		return <-done
	}
	var (
		first   error
		release []string // outputs that nobody reads any more
	)
	for {
		for len(ready) > 0 && running < g.limit {
			i := ready[0]
			ready = ready[1:]
			if !known[i] && (stopped || g.over || ctx.Err() != nil) {
				continue
			}
			begun[i] = true
			req, err := g.request(i)
			if err != nil {
				g.results[i].Status, g.results[i].Error = StepFailed, err.Error()
				first, ready = err, nil
				break
			}
			req.Keep = readers[i] > 0
			req.Release, release = release, nil
			for _, u := range upstream[i] {
				if readers[u] == 1 { // this one is the last
					readers[u] = 0
					req.Release = append(req.Release, g.steps[u].ID)
				}
			}
			running++
			go func() {
				result, err := g.execute(ctx, i, req)
				done <- finished{i, result, err}
			}()
		}
		if running == 0 {
			break
		}
		f := next()
		running--
		r := &g.results[f.step]
		for _, u := range upstream[f.step] {
			if readers[u]--; readers[u] == 0 {
				release = append(release, g.steps[u].ID)
			}
		}
		if f.err == nil {
			r.succeed(f.result)
			g.outputs[r.StepID] = f.result.Outputs
			if _, ok := f.result.Outputs[worker.DefaultOutput]; ok {
				g.tables[r.StepID] = true
			}
			for _, d := range dependents[f.step] {
				if waiting[d]--; waiting[d] == 0 {
					ready = append(ready, d)
					g.ready(d)
				}
			}
			continue
		}
		r.fail(f.result, f.err)
		if first == nil {
			first = f.err
		}
		if !errors.As(f.err, new(*StepError)) || g.onFailure != StopDependents {
			stopped = true
		}
	}
	if first == nil && ctx.Err() != nil {
		first = context.Cause(ctx)
	}
	return first
}

func (r *StepResult) succeed(result *rpc.StepResult) {
	r.Status = StepSucceeded
	r.RowsIn, r.RowsOut = result.RowsIn, result.RowsOut
	r.DurationMS, r.Metrics = result.DurationMS, result.Metrics
}

// fail notes a failure, and how far the step came if that is known.
func (r *StepResult) fail(result *rpc.StepResult, err error) {
	r.Status, r.Error = StepFailed, err.Error()
	if result != nil {
		r.RowsIn, r.DurationMS, r.Metrics = result.RowsIn, result.DurationMS, result.Metrics
	}
	var step *StepError
	if errors.As(err, &step) {
		r.Error, r.ErrorType = step.Message, step.Type
	}
}

func (g *graph) request(i int) (*rpc.ExecuteStep, error) {
	s := g.steps[i]
	config, err := g.configs(i)
	if err != nil {
		return nil, err
	}
	inputs := make(map[string]rpc.InputRef)
	for name, ref := range s.inputs(func(id string) bool { return g.tables[id] }) {
		inputs[name] = rpc.InputRef(ref)
	}
	return &rpc.ExecuteStep{
		StepID:    s.ID,
		Driver:    s.DriverName(),
		Config:    config,
		CfgPath:   s.cfgPath(),
		Inputs:    inputs,
		Fetch:     g.fetch[s.ID],
		TimeoutMS: g.timeout.Milliseconds(),
	}, nil
}

// told is what a worker has told of a step; nil when that is nothing.
func told(result *rpc.StepResult, err error) *rpc.StepResult {
	if err != nil {
		return partial(err)
	}
	return result
}

// partial is how far a step came that has failed; nil when that is not known.
func partial(err error) *rpc.StepResult {
	var answer *rpc.Error
	if !errors.As(err, &answer) || answer.Data == nil {
		return nil
	}
	d := answer.Data
	return &rpc.StepResult{RowsIn: d.RowsIn, DurationMS: d.DurationMS, Metrics: d.Metrics, Usage: d.Usage}
}

// stepError turns an answer's error into the user's.
func stepError(ctx context.Context, s Step, err error) error {
	if errors.Is(err, errCallCancelled) {
		return &StepError{StepID: s.ID, Driver: s.DriverName(), Type: "cancelled", Message: err.Error(), Err: err}
	}
	var answer *rpc.Error
	if !errors.As(err, &answer) {
		return err
	}
	e := &StepError{StepID: s.ID, Driver: s.DriverName(), Message: answer.Message}
	if answer.Data != nil {
		e.Type, e.Traceback = answer.Data.Type, answer.Data.Traceback
	}
	switch answer.Code {
	case rpc.CodeTimeout:
		e.Err = ErrTimeout
	case rpc.CodeUnknownDriver:
		e.Err = ErrUnknownDriver
	case rpc.CodeCancelled:
		e.Err = context.Canceled
		if cause := context.Cause(ctx); cause != nil {
			e.Err = cause
			e.Message = fmt.Sprintf("stopped: %v", cause)
		}
	}
	return e
}
