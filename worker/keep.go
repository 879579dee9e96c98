package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/osiris-pipelines/remote/rpc"
)

// outputsDir is where a worker that keeps ([Options.Keep]) puts what finished
// steps have put out: a folder a step, with an Arrow stream for every output and
// stepFile, which is written last.
const (
	outputsDir = "outputs"
	stepFile   = "step.json"
)

// maxStepFile bounds what is read of a stepFile.
const maxStepFile = 8 << 20

// keptStep is a step that has finished, as its stepFile has it.
type keptStep struct {
	StepID   string          `json:"step_id"`
	Request  string          `json:"request"` // see requestSum
	Result   *rpc.StepResult `json:"result"`
	Released bool            `json:"released,omitempty"` // nobody reads the outputs any more, and they may be gone
	Outputs  []keptOutput    `json:"outputs,omitempty"`
}

// keptOutput is an output on disk. A stream that was cut between two messages
// looks like a shorter table, so that all there is to count is counted.
type keptOutput struct {
	Key     string `json:"key"`
	File    string `json:"file"`
	Rows    int64  `json:"rows"`
	Batches int64  `json:"batches"`
	Bytes   int64  `json:"bytes"`
	Fetch   bool   `json:"fetch,omitempty"` // the host may fetch it, also when no step needs it any more
	XXH3    string `json:"xxh3"`            // it finds damage, and who wants to change a file here can do so anyway
}

func (k *keptStep) output(key string) (keptOutput, bool) {
	for _, out := range k.Outputs {
		if out.Key == key && !k.Released {
			return out, true
		}
	}
	return keptOutput{}, false
}

// beginStep makes a step's folder: from now on it has been begun, and may have
// had effects. Whatever an earlier try has left goes.
func (w *ProxyWorker) beginStep(stepID string) error {
	dir := w.path(outputsDir, stepID)
	if err := w.opts.FS.RemoveAll(dir); err != nil {
		return err
	}
	return w.opts.FS.MkdirAll(dir)
}

// keepOutputs writes a step's outputs, but for those that are on disk already.
func (w *ProxyWorker) keepOutputs(stepID string, outputs map[string]*DataFrame, fetch []string) ([]keptOutput, error) {
	dir := w.path(outputsDir, stepID)
	var kept []keptOutput
	for i, key := range slices.Sorted(maps.Keys(outputs)) {
		f := outputs[key].file
		if f == nil {
			written, err := writeFrame(w.opts.FS, filepath.Join(dir, outputFile(i)), outputs[key], w.opts.Memory)
			if err != nil {
				return nil, fmt.Errorf("output %q: %w", key, err)
			}
			f = &written
		}
		kept = append(kept, keptOutput{Key: key, Fetch: slices.Contains(fetch, key), File: filepath.Base(f.parts[0].path), Rows: f.rows, Batches: f.batches, Bytes: f.size(), XXH3: f.xxh3})
	}
	return kept, nil
}

// keepStep notes that a step has finished. What it has reported must be in the
// journal before: nobody will report it again.
func (w *ProxyWorker) keepStep(k *keptStep) error {
	if err := w.journal.Flush(); err != nil {
		return err
	}
	if err := writeStep(w.opts.FS, w.path(outputsDir, k.StepID), k); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept[k.StepID] = k
	for _, df := range w.outputs[k.StepID] {
		if df.file != nil && df.file.owned != nil {
			df.file.owned.Store(false) // unkeep removes it, once the record says so
		}
	}
	return nil
}

func writeStep(fsys FS, dir string, k *keptStep) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	part := filepath.Join(dir, stepFile+".part")
	f, err := fsys.Create(part)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return fsys.Rename(part, filepath.Join(dir, stepFile))
}

// unkeep removes the outputs of steps that nobody reads any more. What stays
// behind because of an error goes with the run's folder.
func (w *ProxyWorker) unkeep(steps []string) {
	for _, id := range steps {
		w.mu.Lock()
		k := w.kept[id]
		if k == nil || k.Released {
			w.mu.Unlock()
			continue
		}
		released := *k
		released.Released = true
		w.kept[id] = &released
		w.mu.Unlock()
		dir := w.path(outputsDir, id)
		if err := writeStep(w.opts.FS, dir, &released); err != nil {
			continue // they count as needed, so they have to stay
		}
		for _, out := range k.Outputs {
			if !out.Fetch {
				_ = w.opts.FS.RemoveAll(filepath.Join(dir, out.File))
			}
		}
	}
}

// readSteps reads what steps have left in a run's folder: those that have
// finished, those that have only begun, and those whose files are damaged.
func readSteps(fsys FS, dir string) (steps []*keptStep, begun []string, lost []rpc.LostStep, err error) {
	entries, err := fsys.ReadDir(filepath.Join(dir, outputsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		k, err := readStep(fsys, filepath.Join(dir, outputsDir, e.Name()), e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			begun = append(begun, e.Name())
		case err != nil:
			lost = append(lost, rpc.LostStep{StepID: e.Name(), Reason: err.Error()})
		default:
			steps = append(steps, k)
		}
	}
	return steps, begun, lost, nil
}

func readStep(fsys FS, dir, stepID string) (*keptStep, error) {
	f, err := fsys.Open(filepath.Join(dir, stepFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStepFile+1))
	if err != nil {
		return nil, err
	}
	var k keptStep
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&k); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", stepFile, err)
	}
	if len(b) > maxStepFile || k.StepID != stepID || k.Result == nil {
		return nil, fmt.Errorf("%s is damaged: it is not of this step", stepFile)
	}
	for _, out := range k.Outputs {
		if !validStepID(out.File) || out.Rows < 0 || out.Batches < 0 || out.Bytes < 0 {
			return nil, fmt.Errorf("%s is damaged: output %q cannot be", stepFile, out.Key)
		}
	}
	return &k, nil
}

// Recover makes the folder of a run whose worker died ready for another one
// ([Options.Resume]): it cuts a torn last frame off the journal, and says which
// steps need not run again. No worker may run, and no tail should.
func Recover(ctx context.Context, fsys FS, dir string) (*rpc.RecoverResult, error) {
	size, err := rpc.CutJournal(journalStore{fsys, filepath.Join(dir, journalDir)})
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	steps, begun, lost, err := readSteps(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	result := &rpc.RecoverResult{Journal: size, Finished: []string{}, Begun: begun, Lost: lost}
	for _, k := range steps {
		if err := checkKept(ctx, fsys, filepath.Join(dir, outputsDir, k.StepID), k); err != nil {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("recover: %w", context.Cause(ctx))
			}
			result.Lost = append(result.Lost, rpc.LostStep{StepID: k.StepID, Reason: err.Error()})
			continue
		}
		result.Finished = append(result.Finished, k.StepID)
	}
	for _, name := range []string{DeathFile, ProcessesFile} { // what is read there next is of the next worker
		if err := fsys.RemoveAll(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("recover: %w", err)
		}
	}
	return result, nil
}

// checkKept compares a step's outputs on disk with what was written.
func checkKept(ctx context.Context, fsys FS, dir string, k *keptStep) error {
	if k.Released {
		return nil
	}
	for _, out := range k.Outputs {
		size, sum, err := sumFile(ctx, fsys, filepath.Join(dir, out.File))
		if err == nil && (size != out.Bytes || sum != out.XXH3) {
			err = fmt.Errorf("%s has %d bytes with the XXH3 %s, it was written with %d and %.64s", out.File, size, sum, out.Bytes, out.XXH3)
		}
		if err != nil {
			return fmt.Errorf("output %q: %w", out.Key, err)
		}
	}
	return nil
}

func sumFile(ctx context.Context, fsys FS, name string) (size int64, sum string, err error) {
	f, err := openRegular(fsys, name)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	return rpc.XXH3(&contextReader{ctx, f})
}

// resume takes over what finished steps have left.
func (w *ProxyWorker) resume(steps []*keptStep, lost []rpc.LostStep) {
	for _, k := range steps {
		w.kept[k.StepID] = k
		w.steps[k.StepID] = &stepCall{request: k.Request, cancel: func(error) {}, done: closedChannel(), result: k.Result}
	}
	w.completed = len(steps)
	for _, l := range lost {
		w.log(rpc.Log{Level: slog.LevelWarn.String(), StepID: l.StepID, Message: "what the step has left is lost: " + l.Reason}, true)
	}
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// load finds an output that an earlier worker has kept. It is read through once,
// so that a driver does not begin with what is damaged, and then stays where it
// is. The caller must Release it.
func (w *ProxyWorker) load(stepID, key string) (*DataFrame, error) {
	w.loading.Lock()
	defer w.loading.Unlock()
	w.mu.Lock()
	df := w.outputs[stepID][key]
	var out keptOutput
	var kept bool
	if k := w.kept[stepID]; k != nil {
		out, kept = k.output(key)
	}
	if df != nil {
		df.Retain() // another step has loaded it meanwhile
	}
	w.mu.Unlock()
	if df != nil {
		return df, nil
	}
	if !kept {
		return nil, &rpc.Error{Code: rpc.CodeMissingInput, Message: fmt.Sprintf("step %q has no output %q", stepID, key)}
	}
	df, err := openDataFrame(frameFile{
		fs: w.opts.FS, mem: w.opts.Memory, parts: []filePart{{w.path(outputsDir, stepID, out.File), out.Bytes}},
		rows: out.Rows, batches: out.Batches, xxh3: out.XXH3,
	}, out.Bytes, nil)
	if err == nil {
		if err = df.verify(); err != nil {
			df.Release()
		}
	}
	if err != nil {
		return nil, &rpc.Error{Code: rpc.CodeMissingInput, Message: fmt.Sprintf("output %q of step %q did not survive the worker's death: %v", key, stepID, err)}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.outputs[stepID] == nil {
		w.outputs[stepID] = make(map[string]*DataFrame)
	}
	w.outputs[stepID][key] = df
	df.Retain()
	return df, nil
}
