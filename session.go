package remote

import (
	"bufio"
	"bytes"
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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/semaphore"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// Names in a session directory. They are those of the reference
// implementation.
const (
	eventsFile      = "events.jsonl"
	metricsFile     = "metrics.jsonl"
	logFile         = "osiris.log"
	statusFile      = "status.json"
	manifestFile    = "manifest.yaml"
	systemArtifacts = "_system"
	installLog      = systemArtifacts + "/pip_install.log" // the one of them that the worker makes
)

// session is a session directory that is being written: the one place where
// a run's events, metrics and log come together, from the worker and from the
// host, in the order everybody sees them.
type session struct {
	id     string
	dir    string
	logger *slog.Logger
	redact *secrets.Redactor // in front of all that is written or told
	meter  *meter            // of the run; may be nil

	mu      sync.Mutex
	events  *lineFile
	metrics *lineFile
	log     *lineFile
	answers *lineFile // of steps; nil when nobody could go on with the run
	seq     int64
	check   *checkpoint // nil when nobody could go on with the run
	marking bool        // see startMarking
	out     *delivery   // nil when nobody is told
	err     error       // first failure to write

	limit lineLimit // of what the worker may write
	tally lineTally // of what it has

	failed func(error) // told of err once; may be nil
}

// lineFile is a file of lines behind a buffer.
type lineFile struct {
	f    *os.File
	w    *bufio.Writer
	size int64 // with what is in the buffer
}

func openLineFile(name string) (*lineFile, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &lineFile{f, bufio.NewWriterSize(f, 256<<10), info.Size()}, nil
}

func (l *lineFile) line(b []byte) error {
	l.size += int64(len(b)) + 1
	l.w.Write(b) // a bufio.Writer keeps its error
	return l.w.WriteByte('\n')
}

func (l *lineFile) close() error {
	err := l.w.Flush()
	unlock(l.f)
	return errors.Join(err, l.f.Close())
}

// newSession makes the session directory of a run.
func newSession(ec *ExecutionContext) (*session, error) {
	s, err := openSession(ec)
	if err != nil {
		return nil, err
	}
	// Looked at again, now that it is ours alone.
	if info, err := s.events.f.Stat(); err != nil || info.Size() > 0 {
		s.close()
		return nil, fmt.Errorf("remote: execute: %w: %s holds another session; use another directory", ErrInvalid, ec.LogsDir)
	}
	return s, nil
}

// openSession makes the session directory, or opens it again, and keeps others
// from doing so until it is closed.
func openSession(ec *ExecutionContext) (*session, error) {
	for _, dir := range []string{ec.LogsDir, ec.artifactsDir()} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("remote: session directory: %w", err)
		}
	}
	s := &session{id: ec.SessionID, dir: ec.LogsDir, logger: ec.logger()}
	for name, target := range map[string]**lineFile{eventsFile: &s.events, metricsFile: &s.metrics, logFile: &s.log} {
		f, err := openLineFile(filepath.Join(ec.LogsDir, name))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("remote: session directory: %w", err)
		}
		*target = f
	}
	if !tryLock(s.events.f) {
		s.close()
		return nil, fmt.Errorf("remote: %w: the session directory %s is being written by another run", ErrInvalid, ec.LogsDir)
	}
	return s, nil
}

func (s *session) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// event records what the host did or saw, and makes it visible.
func (s *session) event(name string, fields map[string]any) {
	s.note(name, fields)
	s.flush()
}

// note is event for one of many: it becomes visible with the next flush.
func (s *session) note(name string, fields map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := rpc.Line{Time: time.Now(), Session: s.id, Name: name}
	s.eventLine(s.redactLine(rpc.FrameEvent, line.AppendEvent(nil, fields)))
}

// metric records a number of the host's.
func (s *session) metric(name string, value float64, unit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hostMetric(name, value, unit)
}

func (s *session) hostMetric(name string, value float64, unit string) {
	line := rpc.Line{Time: time.Now(), Session: s.id, Name: name}
	s.metricLine(s.redactLine(rpc.FrameMetric, line.AppendMetric(nil, value, unit)))
}

// workerEvent records a line that the worker wrote. It copies it.
func (s *session) workerEvent(line []byte, essential bool) {
	line = s.redactLine(rpc.FrameEvent, line)
	s.admit(1, len(line)+1, essential, func() { s.eventLine(line) })
}

// workerMetric records a line that the worker wrote. It copies it.
func (s *session) workerMetric(line []byte) {
	line = s.redactLine(rpc.FrameMetric, line)
	s.admit(1, len(line)+1, false, func() { s.metricLine(line) })
}

// redactLine returns a line as it may be written. It stays one.
func (s *session) redactLine(kind rpc.FrameType, line []byte) []byte {
	return s.redact.JSON(line, rpc.LineKeys(kind)...)
}

func (s *session) eventLine(line []byte) {
	s.seq++
	s.keep(s.events.line(line))
	if s.out != nil {
		s.out.send(item{seq: s.seq, line: line})
	}
}

func (s *session) metricLine(line []byte) {
	s.seq++
	s.keep(s.metrics.line(line))
	if s.out != nil {
		s.out.send(item{seq: s.seq, line: line, metric: true})
	}
}

// workerLog records what the worker has logged or printed.
func (s *session) workerLog(l rpc.Log) {
	if line := logLine(l, s.redact); line != nil {
		s.admit(1, len(line)+1, false, func() { s.keep(s.log.line(line)) })
	}
}

// logLine returns a record as a line of osiris.log, redacted, in the form of
// slog's text handler; nil when it cannot be written.
func logLine(l rpc.Log, redact *secrets.Redactor) []byte {
	var level slog.Level
	if level.UnmarshalText([]byte(l.Level)) != nil {
		level = slog.LevelInfo
	}
	r := slog.NewRecord(l.Time, level, redact.String(l.Message), 0)
	if l.StepID != "" {
		r.AddAttrs(slog.String("step", l.StepID))
	}
	if l.Stream != "" {
		r.AddAttrs(slog.String("stream", l.Stream))
	}
	for _, k := range slices.Sorted(maps.Keys(l.Attrs)) {
		name := k
		switch k {
		case slog.TimeKey, slog.LevelKey, slog.MessageKey, "step", "stream": // else it could pass for that
			name = "attr." + k
		}
		r.AddAttrs(slog.Any(name, l.Attrs[k]))
	}
	var b bytes.Buffer
	if err := slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug - 100}).Handle(context.Background(), r); err != nil {
		return nil
	}
	return redact.Bytes(bytes.TrimRight(b.Bytes(), "\n"))
}

// logf logs what the host itself has to say, to osiris.log and the user's
// logger.
func (s *session) logf(level slog.Level, format string, args ...any) {
	text := s.redact.String(fmt.Sprintf(format, args...))
	s.logger.Log(context.Background(), level, rpc.Printable(text), "session", s.id) // not every handler escapes it
	line := logLine(rpc.Log{Time: time.Now(), Level: level.String(), Message: text}, s.redact)
	if line == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(s.log.line(line))
}

// keep keeps the first failure to write.
func (s *session) keep(err error) {
	if err != nil && s.err == nil {
		s.err = fmt.Errorf("remote: session directory: %w", err)
		if s.failed != nil {
			s.failed(s.err)
		}
	}
}

// flush writes what is buffered. It returns the first failure to write there
// was.
func (s *session) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

func (s *session) flushLocked() error {
	for _, f := range [...]*lineFile{s.events, s.metrics, s.log, s.answers} {
		if f != nil {
			s.keep(f.w.Flush())
		}
	}
	return s.err
}

// files are those that grow, by their names.
func (s *session) files() map[string]*lineFile {
	files := map[string]*lineFile{eventsFile: s.events, metricsFile: s.metrics, logFile: s.log}
	if s.answers != nil {
		files[answersFile] = s.answers
	}
	return files
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range [...]*lineFile{s.log, s.metrics, s.answers, s.events} {
		if f == nil {
			continue
		}
		if f == s.events { // the last one, since it has the lock
			s.keep(f.w.Flush())
			unlock(f.f)
		}
		s.keep(f.close())
	}
	return s.err
}

// writeFile puts a file in place, whole or not at all.
func writeFile(name string, b []byte) error {
	return writeWhole(name, func(w io.Writer) error { _, err := w.Write(b); return err })
}

// writeWhole is writeFile for what is not in memory.
func writeWhole(name string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o640), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// writeJSON puts a document in place.
func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(name, append(rpc.EscapeControls(b), '\n'))
}

// materialize writes the manifest and the configs of a run.
func (s *session) materialize(p *PreparedRun) error {
	for _, step := range p.Plan.Steps {
		name := step.cfgPath()
		b, err := json.Marshal(p.CfgIndex[name])
		if err == nil {
			err = s.writeConfig(name, b)
		}
		if err != nil {
			return fmt.Errorf("remote: session directory: %w", err)
		}
		s.note("cfg_materialized", map[string]any{"path": name, "size_bytes": len(b), "sha256": sha256Hex(b)})
	}
	doc, err := json.Marshal(p.Plan)
	if err != nil {
		return fmt.Errorf("remote: manifest: %w", err)
	}
	var plain any // numbers as YAML writes them
	if err := yaml.Unmarshal(doc, &plain); err != nil {
		return fmt.Errorf("remote: manifest: %w", err)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(plain), enc.Close()); err != nil {
		return fmt.Errorf("remote: manifest: %w", err)
	}
	if err := writeFile(s.path(manifestFile), b.Bytes()); err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	s.event("manifest_materialized", map[string]any{"path": manifestFile, "size": b.Len(), "sha256": sha256Hex(b.Bytes())})
	return nil
}

// writeConfig writes a step's config.
func (s *session) writeConfig(name string, b []byte) error {
	target := s.path(filepath.FromSlash(name))
	err := os.WriteFile(target, b, 0o640)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(target), 0o750); err == nil {
			err = os.WriteFile(target, b, 0o640)
		}
	}
	return err
}

// status is status.json: the verdict of the run.
type status struct {
	SandboxID         string `json:"sandbox_id"`
	ExitCode          int    `json:"exit_code"`
	StepsCompleted    int    `json:"steps_completed"`
	StepsTotal        int    `json:"steps_total"`
	OK                bool   `json:"ok"`
	SessionPath       string `json:"session_path"`
	SessionCopied     bool   `json:"session_copied"` // the artifacts are here
	EventsJSONLExists bool   `json:"events_jsonl_exists"`
	Reason            string `json:"reason"`
}

// writeStatus writes the verdict.
func (s *session) writeStatus(st status) error {
	st.Reason = s.redact.String(st.Reason)
	_, err := os.Stat(s.path(eventsFile))
	st.EventsJSONLExists = err == nil
	if err := writeJSON(s.path(statusFile), st); err != nil {
		err = fmt.Errorf("remote: session directory: %w", err)
		if st.OK { // whoever gets the error takes it for a failure
			st.OK, st.ExitCode, st.Reason = false, 1, err.Error()
		}
		s.retract(st)
		return err
	}
	return nil
}

// retract sees to it that a success does not stand that is none: where there is
// no room for another file the verdict goes over the old one, or that goes.
func (s *session) retract(st status) {
	name := s.path(statusFile)
	b, err := json.MarshalIndent(st, "", "  ")
	b = rpc.EscapeControls(b)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(name, os.O_WRONLY, 0)
	}
	if err == nil {
		_, err = f.Write(append(b, '\n'))
		err = errors.Join(err, f.Truncate(int64(len(b)+1)), f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		os.Remove(name)
	}
}

// runCard is artifacts/_system/run_card.json.
type runCard struct {
	SessionID string        `json:"session_id"`
	Steps     []runCardStep `json:"steps"`
}

type runCardStep struct {
	StepID        string     `json:"step_id"`
	Driver        string     `json:"driver"`
	RowsIn        int64      `json:"rows_in"`
	RowsOut       int64      `json:"rows_out"`
	DurationMS    float64    `json:"duration_ms"`
	Status        StepStatus `json:"status"`
	Artifacts     []string   `json:"artifacts"`
	HasDFInMemory bool       `json:"has_df_in_memory"`
	SpillUsed     bool       `json:"spill_used"`
	SpillPaths    []string   `json:"spill_paths"`
	Error         string     `json:"error,omitempty"`
}

// delivery hands items to the user's sinks, on a goroutine of its own.
type delivery struct {
	ec      *ExecutionContext
	cancel  context.CancelFunc
	ctx     context.Context
	items   chan item
	room    *semaphore.Weighted // bytes of lines that wait; a line never has more than there is
	done    chan struct{}
	once    sync.Once    // closes items
	failed  func(error)  // told once
	calling atomic.Int64 // since when a sink is at work, in Unix nanoseconds; zero when none is
	watch   sync.WaitGroup

	err error // set before done is closed
}

type item struct {
	barrier chan struct{} // closed when everything before it was told; else nil

	seq    int64
	line   []byte
	metric bool
}

// bytes is what the item takes of delivery.room.
func (it item) bytes() int64 { return min(int64(len(it.line)), sinkBytes) }

// sinkBuffer is how many items may wait for the sinks, and sinkBytes how many
// bytes they may have: lines are of up to 1 MiB.
const (
	sinkBuffer = 256
	sinkBytes  = 16 << 20
)

// sinkGrace is how long the sinks have for what is left at the end.
const sinkGrace = 10 * time.Second

// startDelivery starts telling the context's sinks. failed is called with the
// first error. It returns nil when there are no sinks.
func startDelivery(ctx context.Context, ec *ExecutionContext, failed func(error)) *delivery {
	if ec.OnEvent == nil && ec.OnMetric == nil {
		return nil
	}
	d := &delivery{ec: ec, items: make(chan item, sinkBuffer), room: semaphore.NewWeighted(sinkBytes), done: make(chan struct{}), failed: failed}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.watch.Go(func() { d.hurry(ctx) })
	go d.run()
	return d
}

// hurry gives a sink no longer than the grace for one item once the run's
// context has ended: it would hold up the stopping of the run.
func (d *delivery) hurry(run context.Context) {
	select {
	case <-run.Done():
	case <-d.done:
		return
	}
	end := time.Now().UnixNano()
	tick := time.NewTicker(sinkGrace / 10)
	defer tick.Stop()
	for {
		select {
		case <-d.done:
			return
		case now := <-tick.C:
			if since := d.calling.Load(); since != 0 && now.UnixNano()-max(since, end) >= int64(sinkGrace) {
				d.cancel()
				return
			}
		}
	}
}

// send queues an item, and blocks while the queue is full. It copies the line.
func (d *delivery) send(it item) {
	if d.room.Acquire(d.ctx, it.bytes()) != nil {
		return // nobody listens any more
	}
	it.line = bytes.Clone(it.line)
	select {
	case d.items <- it:
	case <-d.ctx.Done():
	}
}

func (d *delivery) run() {
	ended := false
	defer close(d.done)
	defer func() {
		if !ended { // the sink has ended this goroutine
			d.err = fmt.Errorf("remote: %w: it ended its goroutine (runtime.Goexit)", ErrSink)
			d.cancel()
			d.failed(d.err)
		}
	}()
	for it := range d.items {
		if it.barrier != nil {
			close(it.barrier)
			continue
		}
		d.room.Release(it.bytes())
		if d.err != nil {
			continue
		}
		d.calling.Store(time.Now().UnixNano())
		err := d.tell(it)
		d.calling.Store(0)
		if err != nil {
			d.err = fmt.Errorf("remote: %w: %w", ErrSink, err)
			d.cancel() // nobody waits for this queue any more
			d.failed(d.err)
		}
	}
	ended = true
}

// drain waits until the sinks have what is queued. It reports false, and why,
// when nothing more can be told.
func (d *delivery) drain() (bool, error) {
	if d == nil {
		return true, nil
	}
	timer := time.AfterFunc(sinkGrace, d.cancel)
	defer timer.Stop()
	b := make(chan struct{})
	select {
	case d.items <- item{barrier: b}:
		select {
		case <-b:
			if d.ctx.Err() == nil {
				return true, nil
			}
		case <-d.done:
		case <-d.ctx.Done():
		}
	case <-d.ctx.Done():
	}
	return false, d.stop()
}

func (d *delivery) tell(it item) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	if err := d.ctx.Err(); err != nil {
		return fmt.Errorf("it did not return in %s; %d items were not delivered", sinkGrace, len(d.items)+1)
	}
	kind := eventKey
	if it.metric {
		kind = metricKey
	}
	line, err := parseHead(it.line, kind)
	if err != nil { // what a worker writes was looked at before
		return err
	}
	ts, _ := time.Parse(time.RFC3339Nano, string(line.ts))
	if it.metric {
		if d.ec.OnMetric == nil {
			return nil
		}
		return d.ec.OnMetric(d.ctx, Metric{
			Seq: it.seq, Time: ts, Session: string(line.session), Name: string(line.name),
			Value: line.value, Unit: string(line.unit), StepID: string(line.stepID), Line: it.line,
		})
	}
	if d.ec.OnEvent == nil {
		return nil
	}
	return d.ec.OnEvent(d.ctx, Event{
		Seq: it.seq, Time: ts, Session: string(line.session), Name: string(line.name), StepID: string(line.stepID), Line: it.line,
	})
}

// drain waits until the sinks have what there is so far, and returns their
// error.
func (s *session) drain() error {
	s.mu.Lock()
	out := s.out
	s.mu.Unlock()
	more, err := out.drain()
	if !more {
		s.mu.Lock()
		s.out = nil
		s.mu.Unlock()
	}
	return err
}

// lastEvent tells the sinks of an event before it writes it, and does not
// write it when they fail.
func (s *session) lastEvent(name string, fields map[string]any) error {
	line := s.redactLine(rpc.FrameEvent, (rpc.Line{Time: time.Now(), Session: s.id, Name: name}).AppendEvent(nil, fields))
	s.mu.Lock()
	s.seq++
	if s.out != nil {
		s.out.send(item{seq: s.seq, line: line})
	}
	s.mu.Unlock()
	if err := s.drain(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(s.events.line(line))
	return s.flushLocked()
}

// stopDelivery waits until the sinks have what there is, and returns their
// error.
func (s *session) stopDelivery() error {
	err := s.out.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = nil
	return err
}

// stop waits until the sinks have what is queued, at most the grace, and
// returns their error.
func (d *delivery) stop() error {
	if d == nil {
		return nil
	}
	d.once.Do(func() { close(d.items) })
	timer := time.AfterFunc(sinkGrace, d.cancel)
	<-d.done
	timer.Stop()
	d.watch.Wait()
	d.cancel()
	return d.err
}
