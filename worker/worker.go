package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/apache/arrow/go/v17/arrow/memory"

	"github.com/osiris-pipelines/remote/rpc"
)

// Folders of a run, below its directory.
const (
	journalDir   = "journal"   // what the worker says
	artifactsDir = "artifacts" // one folder a step
)

// stopGrace is how long a driver has to return after its context is done,
// before its step is answered without it.
const stopGrace = 5 * time.Second

// Options are what a [ProxyWorker] is made of.
type Options struct {
	Dir     string    // the run's folder, an absolute path
	Drivers *Registry // nil means none
	FS      FS        // nil means this machine's

	// Keep writes what finished steps have put out to disk, so that a worker
	// that is made after this one's death can go on with it. Resume makes such a
	// worker, in a folder that [Recover] has looked at; it keeps, too.
	Keep   bool
	Resume bool

	Journal *rpc.JournalOptions // nil means the defaults; Full is set by the worker
	Memory  memory.Allocator    // for drivers; nil means the default allocator

	// MemoryBudget is how many bytes of memory the outputs of steps may take, all
	// together; what is beyond goes to files in the run's folder. Zero means half
	// of the machine's memory, or of what this process may have of it, and 1 GiB
	// where the platform does not tell. A host may set another one.
	MemoryBudget int64

	// stderr is told why the journal failed; nil means this process's.
	stderr io.Writer

	// ownProcess: the process is the worker's alone, so that its environment
	// and its standard streams are the worker's to set.
	ownProcess bool

	// share tells a supervisor what must not appear in what it says of the
	// worker; nil where there is none.
	share func(values []string) error

	// prints are the pipes for what drivers print to stdout and stderr, where
	// a supervisor takes what is left in them; empty means own ones.
	prints []printPipe
}

// ProxyWorker runs steps at a host's request and reports through its journal.
type ProxyWorker struct {
	opts    Options
	journal *rpc.Journal
	calls   rpc.Calls
	prints  *printCapture // nil when prints are not captured
	budget  *memoryBudget // of outputs
	lines   sync.Pool     // of *[]byte, for events and metrics

	tasks sync.WaitGroup // requests being handled
	pace  chan struct{}  // a host has said how often it wants heartbeats
	stop  chan struct{}  // closed when the worker has to end
	once  sync.Once      // guards stop and the two below
	code  int            // exit code
	why   string         // reason of the end

	counting  sync.Mutex
	completed int // steps

	loading    sync.Mutex // held while outputs are read from disk
	greeting   sync.Mutex // held during a handshake
	installing sync.Mutex // held while a runtime checks or installs packages

	mu        sync.Mutex
	session   string // empty before the handshake
	epoch     int64  // of the host that owns this worker
	owner     string
	hello     rpc.Handshake
	known     *workerSecrets
	declared  *declared // nil until a host has declared drivers
	outputs   map[string]map[string]*DataFrame
	requests  map[string]context.CancelCauseFunc // running, by request id
	running   map[string]int                     // step ids, with how often
	steps     map[string]*stepCall               // by step id, for the worker's life
	measured  map[*stepRun]bool                  // whose drivers run
	kept      map[string]*keptStep               // on disk, by step id
	tables    map[string]*hostTable              // of the host; set by the handshake
	fetched   map[rpc.FetchOutput]*DataFrame     // that the host may fetch
	abandoned int                                // drivers that were left behind
}

// New makes a worker in a folder of its own and starts its journal. The caller
// must call Run.
func New(opts Options) (*ProxyWorker, error) {
	if !filepath.IsAbs(opts.Dir) {
		return nil, fmt.Errorf("worker: run folder %q is not an absolute path", opts.Dir)
	}
	if opts.FS == nil {
		opts.FS = OSFS{}
	}
	if opts.Drivers == nil {
		opts.Drivers = NewRegistry()
	}
	if opts.Memory == nil {
		opts.Memory = memory.DefaultAllocator
	}
	if opts.stderr == nil {
		opts.stderr = os.Stderr
	}
	opts.Keep = opts.Keep || opts.Resume
	w := &ProxyWorker{
		opts:     opts,
		budget:   newMemoryBudget(opts.MemoryBudget),
		pace:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		outputs:  make(map[string]map[string]*DataFrame),
		requests: make(map[string]context.CancelCauseFunc),
		running:  make(map[string]int),
		steps:    make(map[string]*stepCall),
		measured: make(map[*stepRun]bool),
		kept:     make(map[string]*keptStep),
	}
	var err error
	if w.known, err = newWorkerSecrets(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	for _, dir := range []string{journalDir, artifactsDir} {
		if err := opts.FS.MkdirAll(w.path(dir)); err != nil {
			return nil, fmt.Errorf("worker: %w", err)
		}
	}
	journalOpts := rpc.JournalOptions{}
	if opts.Journal != nil {
		journalOpts = *opts.Journal
	}
	journalOpts.Full = func(unacked int64) {
		w.log(rpc.Log{
			Level:   slog.LevelWarn.String(),
			Message: fmt.Sprintf("journal full: %d bytes are not acknowledged; the run waits for the host", unacked),
		}, true)
	}
	var (
		steps []*keptStep
		lost  []rpc.LostStep
	)
	open := rpc.NewJournal
	if opts.Resume {
		open = rpc.OpenJournal
		if steps, _, lost, err = readSteps(opts.FS, opts.Dir); err != nil {
			return nil, fmt.Errorf("worker: resume: %w", err)
		}
	}
	w.journal, err = open(journalStore{opts.FS, w.path(journalDir)}, &journalOpts)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w.resume(steps, lost)
	return w, nil
}

// Run handles the requests that arrive on stdin until the host says shutdown,
// the input ends, the journal fails or ctx is done. It stops what is running,
// closes the journal and returns the worker's exit code: 0 after a shutdown.
// Stdin is closed if it can be.
//
// A driver that does not return when its context is done is left behind; only
// the end of the process stops it.
func (w *ProxyWorker) Run(ctx context.Context, stdin io.Reader) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	if w.opts.ownProcess {
		limitProcess()
		w.prints = capturePrints(w.opts.prints, w.known.redact, w.printed)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		w.end(w.read(ctx, stdin))
	}()
	beats := make(chan struct{})
	go func() {
		defer close(beats)
		w.heartbeats()
	}()

	select {
	case <-w.stop:
	case <-ctx.Done():
		w.end(1, "terminated")
	}
	if c, ok := stdin.(io.Closer); ok {
		c.Close() // ends the reader, where a read can be interrupted
	}
	cancel(errStopping)
	w.journal.Lift() // what waits for a host that is gone must end, too
	w.tasks.Wait()   // ExecuteStep gives up on drivers that ignore their context
	<-beats
	if err := w.declared.close(); err != nil {
		w.log(rpc.Log{Level: slog.LevelWarn.String(), Message: fmt.Sprintf("end of the runtimes: %v", err)}, false)
	}
	if w.prints != nil {
		w.prints.stop()
	}
	w.releaseAll()
	reason, _ := json.Marshal(rpc.Close{ExitCode: w.code, Reason: w.why})
	if err := w.journal.Close(reason); err != nil && w.code == 0 {
		w.code = 3
		fmt.Fprintln(w.opts.stderr, "worker:", err)
	}
	return w.code
}

var errStopping = errors.New("the worker is stopping")

// end notes the first reason to end.
func (w *ProxyWorker) end(code int, why string) {
	w.once.Do(func() {
		w.code, w.why = code, why
		close(w.stop)
	})
}

// read dispatches what arrives, and returns why nothing more will.
func (w *ProxyWorker) read(ctx context.Context, stdin io.Reader) (code int, why string) {
	frames := rpc.NewFrameReader(stdin, -1, rpc.MaxInputFrame)
	for {
		f, err := frames.Next()
		if err == io.EOF {
			return 1, "end of input: the host is gone"
		}
		if err != nil {
			return 1, "input: " + err.Error()
		}
		switch f.Type {
		case rpc.FrameAck:
			ack, err := rpc.DecodeAck(f.Payload)
			if err == nil && w.owned(ack.Epoch) == nil {
				err = w.journal.Ack(ack.Offset)
			}
			if err != nil {
				return 1, "input: " + err.Error()
			}
		case rpc.FrameRequest:
			req, err := rpc.DecodeRequest(f.Payload)
			if err != nil {
				return 1, "input: " + err.Error()
			}
			w.dispatch(ctx, req)
		default:
			return 1, fmt.Sprintf("input: unexpected %s", f.Type)
		}
	}
}

// dispatch executes a request, once however often it arrives.
func (w *ProxyWorker) dispatch(ctx context.Context, req *rpc.Request) {
	if err := w.owned(req.Epoch); err != nil && req.Method != rpc.MethodHandshake {
		// Not booked: the numbers are those of another host.
		w.tasks.Go(func() { w.answer(&rpc.Response{ID: req.ID, Error: err}) })
		return
	}
	verdict, answer, err := w.calls.Begin(req)
	if err != nil || verdict == rpc.Ignore {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	w.requests[req.ID] = cancel
	w.mu.Unlock()
	w.tasks.Go(func() {
		if verdict == rpc.Execute {
			answer = w.HandleRPC(ctx, req)
			w.calls.End(answer)
		}
		w.mu.Lock()
		delete(w.requests, req.ID)
		w.mu.Unlock()
		cancel(nil)
		w.answer(answer)
		if req.Method == rpc.MethodShutdown {
			w.end(0, "shutdown")
		}
	})
}

// owned reports whether a host of this epoch may tell the worker what to do.
func (w *ProxyWorker) owned(epoch int64) *rpc.Error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case epoch < w.epoch:
		return ownershipLost(w.epoch)
	case epoch > w.epoch && w.session != "":
		return &rpc.Error{Code: rpc.CodeInvalidRequest, Message: fmt.Sprintf("request of epoch %d before its handshake", epoch)}
	}
	return nil
}

func ownershipLost(epoch int64) *rpc.Error {
	return &rpc.Error{Code: rpc.CodeOwnershipLost, Message: fmt.Sprintf("another host has taken the run over (epoch %d)", epoch)}
}

func (w *ProxyWorker) answer(resp *rpc.Response) {
	b, err := json.Marshal(resp)
	if err == nil && len(b) > rpc.MaxPayload {
		b, err = json.Marshal(&rpc.Response{ID: resp.ID, Error: &rpc.Error{
			Code:    rpc.CodeInternal,
			Message: fmt.Sprintf("the answer has %d bytes, limit is %d", len(b), rpc.MaxPayload),
		}})
	}
	if err == nil {
		err = w.journal.Append(rpc.FrameResponse, b)
	}
	w.journalFailed(err)
}

// journalFailed ends a worker that cannot speak any more.
func (w *ProxyWorker) journalFailed(err error) {
	if err != nil && !errors.Is(err, rpc.ErrJournalClosed) {
		fmt.Fprintln(w.opts.stderr, "worker:", err)
		w.end(3, err.Error())
	}
}

// HandleRPC executes one request and returns its answer. It neither looks for
// repeated requests nor writes the answer to the journal: Run does.
func (w *ProxyWorker) HandleRPC(ctx context.Context, req *rpc.Request) *rpc.Response {
	result, err := w.call(ctx, req)
	resp := &rpc.Response{ID: req.ID}
	if err == nil {
		resp.Result, err = json.Marshal(result)
	}
	if err != nil {
		resp.Result = nil
		if !errors.As(err, &resp.Error) {
			resp.Error = &rpc.Error{Code: rpc.CodeInternal, Message: err.Error()}
		}
		resp.Error = w.known.redacted(resp.Error)
	}
	return resp
}

func (w *ProxyWorker) call(ctx context.Context, req *rpc.Request) (any, error) {
	empty := struct{}{}
	switch req.Method {
	case rpc.MethodPing:
		return empty, nil
	case rpc.MethodHandshake:
		var p rpc.Handshake
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return w.handshake(&p)
	case rpc.MethodCancel:
		var p rpc.Cancel
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		w.mu.Lock()
		cancel := w.requests[p.ID]
		w.mu.Unlock()
		if cancel != nil {
			cancel(errCancelled)
		}
		return empty, nil
	case rpc.MethodShutdown:
		return empty, nil
	}
	w.mu.Lock()
	ready := w.session != ""
	w.mu.Unlock()
	if !ready {
		return nil, &rpc.Error{Code: rpc.CodeInvalidRequest, Message: fmt.Sprintf("method %q before the handshake", req.Method)}
	}
	switch req.Method {
	case rpc.MethodSecrets:
		var p rpc.Sealed
		if req.ParamsFile != nil {
			return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: "secrets do not go by file"}
		}
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return empty, w.secrets(&p)
	case rpc.MethodVerifyFiles:
		var p rpc.VerifyFiles
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return empty, w.verifyFiles(ctx, p.Files)
	case rpc.MethodCheckDeps:
		var p rpc.CheckDeps
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return w.dependencies(p.Runtime, func(rt Runtime) (any, error) { return rt.Check(ctx) })
	case rpc.MethodInstallDeps:
		var p rpc.InstallDeps
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return w.dependencies(p.Runtime, func(rt Runtime) (any, error) { return rt.Install(ctx, &p) })
	case rpc.MethodExecuteStep:
		var p rpc.ExecuteStep
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return w.ExecuteStep(ctx, &p)
	case rpc.MethodFetchOutput:
		var p rpc.FetchOutput
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		return w.fetchOutput(ctx, req.ID, &p)
	case rpc.MethodSealArtifacts:
		var p rpc.SealArtifacts
		if err := w.params(req, &p); err != nil {
			return nil, err
		}
		w.mu.Lock()
		abandoned := w.abandoned
		w.mu.Unlock()
		if abandoned > 0 {
			return nil, &rpc.Error{Code: rpc.CodeInvalidRequest, Message: "a driver that ignored its context may still be writing"}
		}
		return Seal(ctx, w.opts.FS, w.path(artifactsDir), &p)
	}
	return nil, &rpc.Error{Code: rpc.CodeMethodNotFound, Message: fmt.Sprintf("unknown method %q", req.Method)}
}

var errCancelled = errors.New("cancelled by the host")

// enterBase makes the base path where it is the run's own, and goes there where
// the process is the worker's, so that a driver which opens a relative path by
// itself finds it.
func (w *ProxyWorker) enterBase(dir string) error {
	if dir == "" {
		return nil
	}
	if rel, err := filepath.Rel(w.opts.Dir, dir); err == nil && filepath.IsLocal(rel) {
		if err := w.opts.FS.MkdirAll(dir); err != nil {
			return err
		}
	}
	if w.opts.ownProcess {
		return os.Chdir(dir)
	}
	return nil
}

// params decodes a request's parameters, from the request or the file it
// names.
func (w *ProxyWorker) params(req *rpc.Request, v any) error {
	b := []byte(req.Params)
	if req.ParamsFile != nil {
		var err error
		if b, err = w.readFile(req.ParamsFile); err != nil {
			return &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("params of %s: %v", req.Method, err)}
		}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("params of %s: %v", req.Method, err)}
	}
	return nil
}

// readFile reads a file of the run's folder, checks it and removes it.
func (w *ProxyWorker) readFile(ref *rpc.FileRef) ([]byte, error) {
	if !filepath.IsLocal(ref.Path) {
		return nil, fmt.Errorf("path %q leaves the run's folder", ref.Path)
	}
	f, err := w.opts.FS.Open(w.path(ref.Path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, ref.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != ref.Size || sum(b) != ref.SHA256 {
		return nil, fmt.Errorf("%s does not have the size and sha256 announced", ref.Path)
	}
	return b, w.opts.FS.RemoveAll(w.path(ref.Path))
}

// Version names this worker in the handshake.
func Version() string {
	version := "devel"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
			if m.Path == "github.com/osiris-pipelines/remote" && m.Version != "" && m.Version != "(devel)" {
				version = m.Version
			}
		}
	}
	return "osiris-worker/" + version
}

func (w *ProxyWorker) handshake(p *rpc.Handshake) (*rpc.HandshakeResult, error) {
	version, err := rpc.Negotiate(p.MinVersion, p.MaxVersion, rpc.Version, rpc.Version)
	if err != nil {
		return nil, err
	}
	if p.SessionID == "" {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: "handshake without a session id"}
	}
	w.greeting.Lock()
	defer w.greeting.Unlock()
	own := make(map[string]bool, len(p.Declared))
	for _, d := range p.Declared {
		own[d.Name] = true
	}
	for _, name := range p.Drivers {
		if _, err := w.opts.Drivers.Lookup(name); err != nil && !own[name] {
			return nil, w.known.rpcError("", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case p.Epoch < w.epoch || p.Epoch == w.epoch && p.Owner != w.owner && w.session != "":
		return nil, ownershipLost(w.epoch)
	case w.session != "" && p.SessionID != w.session:
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("the worker runs session %q", w.session)}
	case w.session != "" && p.Epoch == w.epoch:
		return nil, &rpc.Error{Code: rpc.CodeInvalidRequest, Message: "second handshake"}
	case w.session != "": // another host takes over; what runs goes on
		w.epoch, w.owner = p.Epoch, p.Owner
		w.setPaceLocked(p.HeartbeatMS)
		return w.helloLocked(version), nil
	}
	if err := w.enterBase(p.BasePath); err != nil {
		return nil, &rpc.Error{Code: rpc.CodeInvalidParams, Message: fmt.Sprintf("base path: %v", err)}
	}
	if len(p.Declared) > 0 {
		// Others want the worker's lock meanwhile; a second handshake waits for greeting.
		w.mu.Unlock()
		d, err := w.declare(p)
		w.mu.Lock()
		if err != nil {
			return nil, w.known.rpcError("", err)
		}
		w.declared = d
	}
	if p.MemoryBudget > 0 {
		w.budget.setLimit(p.MemoryBudget)
	}
	w.setTables(p.Tables)
	w.session, w.hello = p.SessionID, *p
	w.epoch, w.owner = p.Epoch, p.Owner
	w.setPaceLocked(p.HeartbeatMS)
	return w.helloLocked(version), nil
}

// setPaceLocked has heartbeats come as often as the host expects them.
func (w *ProxyWorker) setPaceLocked(ms int64) {
	w.hello.HeartbeatMS = ms
	select {
	case w.pace <- struct{}{}:
	default:
	}
}

func (w *ProxyWorker) helloLocked(version int) *rpc.HandshakeResult {
	budget, _ := w.budget.state()
	return &rpc.HandshakeResult{
		Version: version,
		Worker:  Version(),
		PID:     os.Getpid(),
		OS:      runtime.GOOS,
		Arch:    runtime.GOARCH,
		CPUs:    runtime.GOMAXPROCS(0),
		Drivers: w.declared.names(w.opts.Drivers.Names()),
		SealKey: w.known.key.Public(),

		MemoryBytes:  machineMemory(),
		MemoryBudget: budget,

		PythonVersion: w.declared.pythonVersion(),
	}
}

// fetchOutput sends an output as Arrow frames.
func (w *ProxyWorker) fetchOutput(ctx context.Context, id string, p *rpc.FetchOutput) (*rpc.FetchOutputResult, error) {
	n, err := rpc.RequestNumber(id)
	if err != nil {
		return nil, err
	}
	if result, ok, err := w.fetchKept(ctx, uint32(n), rpc.FetchOutput{StepID: p.StepID, Key: cmp.Or(p.Key, DefaultOutput)}); ok || err != nil {
		return result, err
	}
	df, err := w.output(rpc.InputRef{FromStep: p.StepID, Key: p.Key})
	if err != nil {
		return nil, err
	}
	defer df.Release()
	payload := rpc.NewPayloadWriter(uint32(n), w.journal.Append)
	out := rpc.NewArrowWriter(payload, df.Schema(), w.opts.Memory)
	reader := df.Reader()
	defer reader.Release()
	for reader.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := out.Write(reader.Record()); err != nil {
			return nil, err
		}
	}
	if err := reader.Err(); err != nil {
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	if err := payload.Close(); err != nil {
		return nil, err
	}
	return &rpc.FetchOutputResult{Rows: out.Rows(), Batches: out.Batches(), Bytes: payload.Bytes()}, nil
}

// output returns what a reference names. The caller must Release it.
func (w *ProxyWorker) output(ref rpc.InputRef) (*DataFrame, error) {
	key := ref.Key
	if key == "" {
		key = DefaultOutput
	}
	w.mu.Lock()
	df := w.outputs[ref.FromStep][key]
	if df != nil {
		df.Retain()
	}
	w.mu.Unlock()
	if df != nil {
		return df, nil
	}
	return w.load(ref.FromStep, key)
}

// release frees the outputs of steps that nobody reads any more.
func (w *ProxyWorker) release(steps []string) {
	w.mu.Lock()
	for _, id := range steps {
		for _, df := range w.outputs[id] {
			df.Release()
		}
		delete(w.outputs, id)
	}
	w.mu.Unlock()
	if w.opts.Keep {
		w.unkeep(steps)
	}
}

func (w *ProxyWorker) releaseAll() {
	w.releaseTables()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, df := range w.fetched {
		df.Release()
		delete(w.fetched, name)
	}
	for id, outputs := range w.outputs {
		for _, df := range outputs {
			df.Release()
		}
		delete(w.outputs, id)
	}
}

// heartbeats reports until the worker ends.
func (w *ProxyWorker) heartbeats() {
	for {
		interval := time.Second
		w.mu.Lock()
		if w.hello.HeartbeatMS > 0 {
			interval = time.Duration(w.hello.HeartbeatMS) * time.Millisecond
		}
		w.mu.Unlock()
		timer := time.NewTimer(interval)
		select {
		case <-w.stop:
			timer.Stop()
			return
		case <-w.pace:
			timer.Stop()
			continue
		case <-timer.C:
		}
		w.mu.Lock()
		ready := w.session != ""
		epoch := w.epoch
		open := make([]string, 0, len(w.running))
		for id := range w.running {
			open = append(open, id)
		}
		measured := slices.Collect(maps.Keys(w.measured))
		w.mu.Unlock()
		if !ready {
			continue
		}
		slices.Sort(open)
		rss, cpu := usage()
		for _, s := range measured {
			s.seen(rss)
		}
		b, err := json.Marshal(rpc.Heartbeat{
			Time: time.Now().UTC(), RSSBytes: rss, CPUSeconds: cpu, OpenSteps: open, Journal: w.journal.Size(), Epoch: epoch,
		})
		if err == nil {
			err = w.journal.AppendData(rpc.FrameHeartbeat, b)
		}
		w.journalFailed(err)
	}
}

// event appends an event's line to the journal.
func (w *ProxyWorker) event(stepID, name string, fields map[string]any) {
	line := rpc.Line{Time: time.Now(), Session: w.sessionID(), Name: name, StepID: stepID}
	w.appendLine(rpc.FrameEvent, func(b []byte) []byte { return line.AppendEvent(b, fields) })
}

// appendLine appends what write appends to its buffer to the journal, which
// copies it, so that the buffer can serve again.
func (w *ProxyWorker) appendLine(typ rpc.FrameType, write func([]byte) []byte) {
	const keep = 64 << 10
	buf, _ := w.lines.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, 0, 512)
		buf = &b
	}
	*buf = write((*buf)[:0])
	err := w.journal.AppendData(typ, w.known.redact.JSON(*buf, rpc.LineKeys(typ)...))
	if cap(*buf) <= keep {
		w.lines.Put(buf)
	}
	w.journalFailed(err)
}

// metric appends a metric's line to the journal.
func (w *ProxyWorker) metric(stepID, name string, value float64, unit string) {
	line := rpc.Line{Time: time.Now(), Session: w.sessionID(), Name: name, StepID: stepID}
	w.appendLine(rpc.FrameMetric, func(b []byte) []byte { return line.AppendMetric(b, value, unit) })
}

// log appends a log record to the journal.
func (w *ProxyWorker) log(l rpc.Log, urgent bool) {
	l.Time = time.Now().UTC()
	b, err := json.Marshal(l)
	if err != nil {
		l.Attrs = nil // an attribute that JSON cannot express
		b, err = json.Marshal(l)
	}
	if err == nil {
		b = w.known.redact.JSON(b, "ts", "level", "step_id", "stream")
		if urgent {
			err = w.journal.AppendUrgent(rpc.FrameLog, b)
		} else {
			err = w.journal.AppendData(rpc.FrameLog, b)
		}
	}
	if errors.Is(err, rpc.ErrFrameTooLarge) {
		text := w.known.redact.String(l.Message) // before it is cut
		l.Message, l.Attrs = fmt.Sprintf("%.4096s... (%d bytes)", text, len(text)), nil
		w.log(l, urgent)
		return
	}
	w.journalFailed(err)
}

// printed logs a line that was printed. It belongs to the step that runs;
// where several do, to none of them, since a process has one standard output.
func (w *ProxyWorker) printed(stream, line string) {
	l := rpc.Log{Level: slog.LevelInfo.String(), Message: line, Stream: stream}
	w.mu.Lock()
	if len(w.running) == 1 {
		for id := range w.running {
			l.StepID = id
		}
	} else if len(w.running) > 1 {
		open := make([]string, 0, len(w.running))
		for id := range w.running {
			open = append(open, id)
		}
		slices.Sort(open)
		l.Attrs = map[string]any{"open_steps": open}
	}
	w.mu.Unlock()
	w.log(l, false)
}

func (w *ProxyWorker) sessionID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.session
}

func (w *ProxyWorker) path(elem ...string) string {
	return filepath.Join(append([]string{w.opts.Dir}, elem...)...)
}

// journalStore keeps a journal in a directory.
type journalStore struct {
	fs  FS
	dir string
}

func (s journalStore) Create(name string) (rpc.SegmentWriter, error) {
	return s.fs.Create(filepath.Join(s.dir, name))
}

func (s journalStore) Append(name string, size int64) (rpc.SegmentWriter, error) {
	return s.fs.Append(filepath.Join(s.dir, name), size)
}

func (s journalStore) Open(name string) (rpc.SegmentReader, error) {
	f, err := openRegular(s.fs, filepath.Join(s.dir, name))
	if errors.Is(err, errNotRegular) {
		return nil, fmt.Errorf("%w: %w", rpc.ErrFrameCorrupt, err)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s journalStore) Remove(name string) error { return s.fs.RemoveAll(filepath.Join(s.dir, name)) }

func (s journalStore) List() ([]string, error) {
	entries, err := s.fs.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (s journalStore) Watch() (<-chan struct{}, func(), error) {
	if err := s.fs.MkdirAll(s.dir); err != nil { // a tail may be started first
		return nil, nil, err
	}
	return s.fs.Watch(s.dir)
}
