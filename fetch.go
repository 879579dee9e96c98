package remote

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/zeebo/xxh3"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// OutputName names an output of a step.
type OutputName struct {
	StepID string `json:"step_id"`
	Key    string `json:"key"` // empty means "df"
}

func (n OutputName) key() string { return cmp.Or(n.Key, worker.DefaultOutput) }

// OutputFetcher is an adapter that reads outputs of its runs. Those of this
// package do.
type OutputFetcher interface {
	// FetchOutput reads an output that [ExecutionContext].Keep names; an empty
	// key means "df". It waits for the step to succeed, so that it may be called
	// once Execute is running; from Execute's return to Collect it finds what the
	// steps that have succeeded have left. An output may be read any number of
	// times, also at once.
	//
	// The caller must Release the reader; ctx bounds all of its reading. A batch
	// is valid until the next call of Next unless it is retained. What was read is
	// the whole output, as the step has put it out, only once Next has returned
	// false and Err nil: size, hash, rows and batches are compared then. Errors
	// match [ErrProtocol] or those of package rpc for what is not a table, and
	// [rpc.ErrArrowTooLarge] for one with batches beyond the defaults of
	// [rpc.ArrowLimits], 256 MiB each.
	//
	// Errors match [ErrInvalid] for an output that is not kept, [ErrNotExecuted]
	// where Execute was not called, [ErrStepFailed] where the step has not
	// succeeded, and [ErrSandboxGone] after Collect or Close.
	FetchOutput(ctx context.Context, p *PreparedRun, ec *ExecutionContext, step, key string) (array.RecordReader, error)
}

var (
	_ OutputFetcher = (*LocalAdapter)(nil)
	_ OutputFetcher = (*E2BTransparentProxy)(nil)
)

// prepareKeep takes in which outputs are kept.
func prepareKeep(p *PreparedRun, ec *ExecutionContext) error {
	for _, name := range ec.Keep {
		if !p.Plan.hasStep(name.StepID) {
			return fmt.Errorf("remote: prepare: %w: ExecutionContext.Keep names the step %q, which the manifest does not have", ErrInvalid, name.StepID)
		}
		name.Key = name.key()
		if !slices.Contains(p.Keep, name) {
			p.Keep = append(p.Keep, name)
		}
	}
	return nil
}

// fetchKeys are the outputs to keep, by step.
func (p *PreparedRun) fetchKeys() map[string][]string {
	keys := make(map[string][]string)
	for _, name := range p.Keep {
		keys[name.StepID] = append(keys[name.StepID], name.key())
	}
	return keys
}

// outputBook says what a run has put out that is kept.
type outputBook struct {
	mu      sync.Mutex
	steps   map[string]map[string]rpc.OutputRef // that have succeeded
	place   *place
	worker  *restarter    // nil while there is none
	ended   bool          // no step will succeed any more
	gone    error         // why nothing can be read any more
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// change makes a change, and wakes who waits for it.
func (b *outputBook) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// add takes in what a step has put out.
func (b *outputBook) add(pl *place, w *restarter, stepID string, outputs map[string]rpc.OutputRef) {
	b.change(func() {
		if b.steps == nil {
			b.steps = make(map[string]map[string]rpc.OutputRef)
		}
		b.steps[stepID], b.place, b.worker = outputs, pl, w
	})
}

// detach says that the worker is about to end.
func (b *outputBook) detach() { b.change(func() { b.worker = nil }) }

// end says that no step will succeed any more.
func (b *outputBook) end() { b.change(func() { b.ended, b.worker = true, nil }) }

// leave says that nothing can be read any more.
func (b *outputBook) leave(why error) {
	b.change(func() {
		b.ended, b.worker, b.place = true, nil, nil
		if b.gone == nil {
			b.gone = why
		}
	})
}

// keptOutput is one that can be read.
type keptOutput struct {
	name   OutputName
	ref    rpc.OutputRef
	place  *place
	worker *restarter // nil when there is none
	after  bool       // the run has ended
	meter  *meter
}

// find waits until an output is there, or cannot be there any more.
func (b *outputBook) find(ctx context.Context, name OutputName) (*keptOutput, error) {
	for {
		b.mu.Lock()
		outputs, done := b.steps[name.StepID]
		out := &keptOutput{name: name, ref: outputs[name.Key], place: b.place, worker: b.worker, after: b.ended}
		gone, ended := b.gone, b.ended
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		_, has := outputs[name.Key]
		switch {
		case gone != nil:
			return nil, gone
		case has:
			return out, nil
		case done:
			return nil, fmt.Errorf("%w: step %q has no output %q; it has %q", ErrInvalid, name.StepID, name.Key, slices.Sorted(maps.Keys(outputs)))
		case ended:
			return nil, fmt.Errorf("%w: step %q has not succeeded", ErrStepFailed, name.StepID)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// errCollected: outputs go with the place of the run.
var errCollected = fmt.Errorf("%w: outputs are gone with the place of the run; fetch them before Collect", ErrSandboxGone)

// FetchOutput implements [OutputFetcher].
func (e *engine) FetchOutput(ctx context.Context, p *PreparedRun, ec *ExecutionContext, step, key string) (array.RecordReader, error) {
	r, err := e.fetchOutput(ctx, p, ec, OutputName{step, cmp.Or(key, worker.DefaultOutput)})
	if err != nil { // not a nil *outputReader in a non-nil interface
		return nil, fmt.Errorf("remote: fetch output %q of step %q: %w", cmp.Or(key, worker.DefaultOutput), step, err)
	}
	return r, nil
}

func (e *engine) fetchOutput(ctx context.Context, p *PreparedRun, ec *ExecutionContext, name OutputName) (*outputReader, error) {
	if err := ec.validate(); err != nil {
		return nil, err
	}
	switch {
	case p == nil || p.RunParams.SessionID != ec.SessionID:
		return nil, fmt.Errorf("%w: the run was not prepared for session %q", ErrInvalid, ec.SessionID)
	case !slices.Contains(p.Keep, name):
		return nil, fmt.Errorf("%w: it is not kept; name it in ExecutionContext.Keep before Prepare", ErrInvalid)
	}
	e.mu.Lock()
	r := e.runs[ec.SessionID]
	e.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotExecuted, ec.SessionID)
	}
	out, err := r.kept.find(ctx, name)
	if err != nil {
		return nil, err
	}
	out.meter = r.meter
	return out.read(ctx, int64(e.partSize))
}

// check refuses a description of an output that no worker gives.
func (o *keptOutput) check() error {
	s := o.ref.Stream
	if s == nil {
		return fmt.Errorf("%w: the worker has not kept it; it is an older one", ErrUnsupported)
	}
	sum, err := hex.DecodeString(s.XXH3)
	if !fs.ValidPath(s.Path) || !strings.HasPrefix(s.Path, "outputs/") || strings.Contains(s.Path, `\`) ||
		s.Bytes < 0 || s.Rows < 0 || s.Batches < 0 || err != nil || len(sum) != xxh3Size {
		return &protocolError{fmt.Errorf("output %q of step %q is said to be %d bytes, %d rows and %d batches in %.200q with the hash %.64q, which cannot be",
			o.name.Key, o.name.StepID, s.Bytes, s.Rows, s.Batches, s.Path, s.XXH3)}
	}
	return nil
}

// read opens the output: a small one comes in frames while there is a worker.
func (o *keptOutput) read(ctx context.Context, part int64) (*outputReader, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if o.worker != nil && o.ref.Stream.Bytes <= rpc.MaxFetch {
		l := o.worker.link()
		b, err := l.fetch(ctx, o.name, o.ref.Stream.Bytes)
		if err == nil && o.matches(b) {
			return o.reader(ctx, io.NopCloser(bytes.NewReader(b)))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// The worker may be ending: its files stay.
	}
	src, err := o.open(ctx, part)
	if err != nil {
		return nil, err
	}
	return o.reader(ctx, o.meter.reading(src))
}

// matches reports whether a stream in memory is the output's.
func (o *keptOutput) matches(b []byte) bool {
	size, sum, err := rpc.XXH3(bytes.NewReader(b))
	return err == nil && size == o.ref.Stream.Bytes && sum == o.ref.Stream.XXH3
}

// open opens the output's file, to be read in parts where that can be.
func (o *keptOutput) open(ctx context.Context, part int64) (io.ReadCloser, error) {
	name := path.Join(filepath.ToSlash(o.place.dir), o.ref.Stream.Path)
	if filepath.Separator != '/' && !o.place.isRemote() {
		name = filepath.FromSlash(name)
	}
	ranges, ok := o.place.sandbox.(rangeReader)
	if !ok {
		return o.place.sandbox.Download(ctx, name)
	}
	if o.after {
		ranges = &touchingReader{ranges, o.place.lease}
	}
	return openRanged(ctx, ranges, name, 0, o.ref.Stream.Bytes, part), nil
}

// touchingReader keeps a sandbox whose run has ended for who still reads from it.
type touchingReader struct {
	rangeReader
	lease *lease
}

// ReadRange implements rangeReader.
func (r *touchingReader) ReadRange(ctx context.Context, path string, offset, n int64) (io.ReadCloser, int64, error) {
	r.lease.touch(ctx)
	return r.rangeReader.ReadRange(ctx, path, offset, n)
}

// isRemote reports whether paths of the place are not this machine's.
func (p *place) isRemote() bool {
	_, local := p.sandbox.(*localSandbox)
	return !local
}

// reader reads the output from src, which it closes.
func (o *keptOutput) reader(ctx context.Context, src io.ReadCloser) (*outputReader, error) {
	r := &outputReader{ctx: ctx, want: *o.ref.Stream, src: src, sum: xxh3.New128()}
	r.refs.Store(1)
	in, err := rpc.NewArrowReader(r.bytes(), nil, nil)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	r.in = in
	return r, nil
}

// outputReader reads an output, and compares it at its end with what it was said
// to be. It implements [array.RecordReader].
type outputReader struct {
	refs atomic.Int64
	want rpc.StreamRef
	ctx  context.Context
	in   *rpc.ArrowReader
	src  io.ReadCloser // nil once it is closed
	sum  *xxh3.Hasher128
	n    int64
	err  error
}

// bytes are those of src, counted and hashed: as many as were announced, and one
// that shows that there are more.
func (r *outputReader) bytes() io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if left := r.want.Bytes - r.n; left < 0 {
			return 0, io.EOF
		} else if int64(len(p))-1 > left {
			p = p[:left+1]
		}
		n, err := r.src.Read(p)
		r.n += int64(n)
		_, _ = r.sum.Write(p[:n]) // cannot fail
		return n, err
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (r *outputReader) Schema() *arrow.Schema { return r.in.Schema() }
func (r *outputReader) Record() arrow.Record  { return r.in.Record() }
func (r *outputReader) Err() error            { return r.err }
func (r *outputReader) Retain()               { r.refs.Add(1) }

func (r *outputReader) Release() {
	if r.refs.Add(-1) == 0 {
		r.close()
		r.in.Release()
	}
}

func (r *outputReader) close() {
	if r.src != nil {
		r.src.Close()
		r.src = nil
	}
}

func (r *outputReader) Next() bool {
	if r.src == nil {
		return false
	}
	if r.ctx.Err() == nil && r.in.Next() {
		return true
	}
	switch r.err = cmp.Or(context.Cause(r.ctx), r.in.Err()); {
	case r.err == nil:
		r.err = r.check()
	case errors.Is(r.err, errResized):
		r.err = &protocolError{fmt.Errorf("the output: %w", r.err)}
	}
	if r.err != nil {
		r.err = fmt.Errorf("remote: read output: %w", r.err)
	}
	r.close()
	return false
}

// check compares what was read with what the worker has said of it.
func (r *outputReader) check() error {
	rest, err := io.Copy(io.Discard, io.LimitReader(r.bytes(), 1))
	if err != nil {
		return err
	}
	sum := r.sum.Sum128().Bytes()
	switch got := hex.EncodeToString(sum[:]); {
	case rest > 0 || r.n != r.want.Bytes:
		err = fmt.Errorf("it has not the %d bytes that were announced, but %d, or more", r.want.Bytes, r.n)
	case r.in.Rows() != r.want.Rows || r.in.Batches() != r.want.Batches:
		err = fmt.Errorf("it has %d rows in %d batches, and %d in %d were announced", r.in.Rows(), r.in.Batches(), r.want.Rows, r.want.Batches)
	case got != r.want.XXH3:
		err = fmt.Errorf("its XXH3 hash is %s, and %.32s was announced", got, r.want.XXH3)
	default:
		return nil
	}
	return &protocolError{err}
}

// fetchRequest asks for an output in frames.
type fetchRequest struct {
	rpc.FetchOutput
	payload *payload
}

// payload is what comes in frames before an answer.
type payload struct {
	limit int64
	b     []byte
	last  bool  // its end has come
	err   error // it is more than it may be
}

// add takes a chunk.
func (p *payload) add(data []byte, last bool) {
	switch {
	case p.err != nil:
	case p.last || int64(len(p.b)+len(data)) > p.limit:
		p.b, p.err = nil, fmt.Errorf("%w: more than the %d bytes that were announced", ErrProtocol, p.limit)
	default:
		p.b, p.last = append(p.b, data...), last
	}
}

// fetch has the worker send an output of at most so many bytes in frames.
func (l *link) fetch(ctx context.Context, name OutputName, limit int64) ([]byte, error) {
	if l.isDown() {
		return nil, fmt.Errorf("%w: the worker has ended", ErrWorkerCrash)
	}
	p := &payload{limit: limit}
	err := l.call(ctx, rpc.MethodFetchOutput, &fetchRequest{rpc.FetchOutput{StepID: name.StepID, Key: name.Key}, p}, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && p.err == nil && !p.last {
		err = io.ErrUnexpectedEOF
	}
	return p.b, errors.Join(err, p.err)
}

// chunk takes a piece of an output. One that nobody waits for is dropped.
func (l *link) chunk(b []byte) error {
	stream, data, last, err := rpc.Chunk(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The upper half of a request's number is that of its epoch.
	if call := l.pending[l.first-1+int64(stream)]; call != nil && call.payload != nil {
		call.payload.add(data, last)
	}
	return nil
}

// touch gives a sandbox whose run has ended time for who still reads from it.
func (l *lease) touch(ctx context.Context) {
	if l == nil {
		return
	}
	if next, _ := l.due(); time.Now().Before(next) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, extendPatience)
	defer cancel()
	_ = l.extend(ctx, collectLease+l.life-l.life/renewAfter) // the next part tries again
}
