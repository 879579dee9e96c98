package remote

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// Files by which another process goes on with a run whose host has died. They
// are gone once the run is collected.
const (
	checkpointFile = "sandbox.json"
	preparedFile   = "prepared.json"
	answersFile    = "answers.jsonl"  // of steps, each as the worker gave it
	fetchedFile    = "collected.json" // what is home, before the sandbox goes
)

// phase is how far a run had come.
type phase string

const (
	// phaseCreating: nothing was asked of a worker that a new one could not be
	// asked again.
	phaseCreating phase = "creating"
	// phaseRunning: the worker has been heard, and the steps are its.
	phaseRunning phase = "running"
	// phaseFinishing: all steps are done, and the event of that is written.
	phaseFinishing phase = "finishing"
	// phaseExecuted: the verdict is written; the artifacts may not be here.
	phaseExecuted phase = "executed"
	// phaseFetched: the artifacts are here; the sandbox may be, too.
	phaseFetched phase = "fetched"
	// phaseCollected: all is done but to remove the files above.
	phaseCollected phase = "collected"
)

// checkpoint is sandbox.json: a state of the run from which another host can go
// on. It holds no token and no secret value.
type checkpoint struct {
	SchemaVersion int              `json:"schema_version"`
	SessionID     string           `json:"session_id"`
	Adapter       string           `json:"adapter"`
	Phase         phase            `json:"phase"`
	Epoch         int64            `json:"epoch"`
	Owner         owner            `json:"owner"`
	LeaseSeconds  float64          `json:"lease_seconds"` // that the sandbox outlives its host
	StartedAt     time.Time        `json:"started_at"`    // of Execute
	SavedAt       time.Time        `json:"saved_at"`
	IdleSeconds   float64          `json:"idle_seconds,omitempty"` // that it had no host
	BasePath      string           `json:"base_path"`              // of the dead host
	Sandboxes     []sandboxRecord  `json:"sandboxes"`
	Files         map[string]int64 `json:"files"`                // lengths in bytes of what belongs to this state
	Seq           int64            `json:"seq"`                  // of the last event or metric in them
	Tally         lineTally        `json:"tally"`                // of the worker's lines in them
	Restarts      int              `json:"restarts,omitempty"`   // of the worker so far
	Restarting    bool             `json:"restarting,omitempty"` // there may be a worker whose pid is not here
	Meter         *meterState      `json:"meter,omitempty"`
	Result        *ExecResult      `json:"result,omitempty"`
	Status        *status          `json:"status,omitempty"`
}

// owner is the host that a run has.
type owner struct {
	Token string `json:"token"` // random
	Host  string `json:"host"`  // name of its machine
	PID   int    `json:"pid"`
}

// sandboxRecord is a sandbox that a run has, or may have.
type sandboxRecord struct {
	Nonce    string    `json:"nonce"`        // in its metadata
	ID       string    `json:"id,omitempty"` // empty until its create was answered
	Asked    time.Time `json:"asked"`        // when it was asked for
	Template string    `json:"template,omitempty"`
	Dir      string    `json:"dir"`               // the run's folder there
	Base     string    `json:"base"`              // where relative input paths start there
	Program  string    `json:"program,omitempty"` // the worker's path there
	Cache    string    `json:"cache,omitempty"`   // what a derived template has for it

	// Inputs are input paths as configs give them, to where they are there.
	Inputs map[string]string `json:"inputs,omitempty"`

	PID    int   `json:"pid,omitempty"` // of the worker's process
	Cursor int64 `json:"cursor"`        // of its journal: everything before it is in the files
}

func thisHost() owner {
	host, _ := os.Hostname()
	return owner{Token: rand.Text(), Host: host, PID: os.Getpid()}
}

// startCheckpoint writes the first state of a run: before anything is made that
// could be left behind.
func (s *session) startCheckpoint(r *run, adapter string, lease time.Duration) error {
	base, err := filepath.Abs(r.ec.BasePath)
	if err != nil {
		return fmt.Errorf("remote: base path: %w", err)
	}
	if err := os.Remove(s.path(answersFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	if err := writeJSON(s.path(preparedFile), r.prepared); err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	return s.useCheckpoint(&checkpoint{
		SchemaVersion: SchemaVersion, SessionID: s.id, Adapter: adapter, Phase: phaseCreating,
		Epoch: 1, LeaseSeconds: lease.Seconds(), StartedAt: time.Now().UTC(), BasePath: base,
		Sandboxes: r.creates,
	})
}

// useCheckpoint has the session keep a checkpoint from now on.
func (s *session) useCheckpoint(c *checkpoint) error {
	answers, err := openLineFile(s.path(answersFile))
	if err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	// What a dead host wrote after its checkpoint comes again, and may end in
	// half a line.
	if size := c.Files[answersFile]; size < answers.size {
		if err := answers.truncate(size); err != nil {
			return fmt.Errorf("remote: session directory: %w", errors.Join(err, answers.close()))
		}
	}
	s.mu.Lock()
	s.check, s.answers = c, answers
	s.mu.Unlock()
	return s.save(func(c *checkpoint) { c.Owner = thisHost() })
}

// save writes the checkpoint with a change. The host's death at any moment
// leaves the state before or the one after it.
func (s *session) save(change func(*checkpoint)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check == nil {
		return nil
	}
	return s.saveLocked(change)
}

func (s *session) saveLocked(change func(*checkpoint)) error {
	if err := s.flushLocked(); err != nil {
		return err
	}
	change(s.check)
	if s.meter != nil {
		s.check.Meter = s.meter.state()
	}
	s.check.SavedAt = time.Now().UTC()
	err := writeJSON(s.path(checkpointFile), s.check)
	if err != nil {
		err = fmt.Errorf("remote: session directory: %w", err)
		s.keep(err)
	}
	return err
}

// mark makes the present lengths of the files those of the checkpoint. It is
// called within a change.
func (s *session) mark() {
	s.check.Files = make(map[string]int64)
	for name, f := range s.files() {
		s.check.Files[name] = f.size
	}
	s.check.Seq, s.check.Tally = s.seq, s.tally
}

// reached saves that everything of the journal before an offset is in the
// files, and reports whether it needs to be heard no more.
func (s *session) reached(cursor int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check == nil {
		return true
	}
	if !s.marking {
		return false
	}
	return s.saveLocked(func(c *checkpoint) {
		s.mark()
		if c.Phase == phaseCreating {
			c.Phase = phaseRunning
		}
		c.last().Cursor = cursor
	}) == nil
}

// ownership returns the epoch of this host, and what tells it from others, if
// there can be others.
func (s *session) ownership() (epoch int64, token string, attachable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check == nil {
		return 1, rand.Text(), false
	}
	return s.check.Epoch, s.check.Owner.Token, true
}

// startMarking says that the journal's cursor tells from now on what the files
// hold. What the host writes before the worker's first answer, and after the
// worker's end, a successor writes again.
func (l *link) startMarking() error {
	l.handling.Lock()
	defer l.handling.Unlock()
	s := l.session
	s.mu.Lock()
	s.marking = true
	s.mu.Unlock()
	if !s.reached(l.cursor.Load()) {
		return s.flush()
	}
	return nil
}

// startCleanup says that no step runs any more, once however many hosts a run
// has.
func (l *link) startCleanup() {
	l.handling.Lock()
	defer l.handling.Unlock()
	l.session.startCleanup(l.cursor.Load())
}

func (s *session) startCleanup(cursor int64) {
	s.mu.Lock()
	started := s.check != nil && s.check.Phase == phaseFinishing
	s.mu.Unlock()
	if started {
		return
	}
	s.event("cleanup_start", nil)
	_ = s.save(func(c *checkpoint) { // the session keeps the error
		s.mark()
		c.Phase, c.last().Cursor = phaseFinishing, cursor
	})
}

// stepAnswer is a line of answers.jsonl.
type stepAnswer struct {
	StepID   string        `json:"step_id"`
	Response *rpc.Response `json:"response"`
}

// answered keeps a step's answer for a successor.
func (s *session) answered(stepID string, resp *rpc.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		return
	}
	b, err := json.Marshal(stepAnswer{stepID, resp})
	if err == nil {
		err = s.answers.line(rpc.EscapeControls(b))
	}
	s.keep(err)
}

// last is the sandbox that the run has now.
func (c *checkpoint) last() *sandboxRecord {
	if len(c.Sandboxes) == 0 {
		c.Sandboxes = append(c.Sandboxes, sandboxRecord{})
	}
	return &c.Sandboxes[len(c.Sandboxes)-1]
}

// readCheckpoint reads the state of the run in a session directory.
func readCheckpoint(dir string) (*checkpoint, *PreparedRun, error) {
	var c checkpoint
	var p PreparedRun
	for name, v := range map[string]any{checkpointFile: &c, preparedFile: &p} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			if name == preparedFile && errors.Is(err, fs.ErrNotExist) {
				continue // decided by the phase
			}
			return nil, nil, err
		}
		if err := json.Unmarshal(b, v); err != nil {
			return nil, nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
		}
	}
	switch {
	case c.SchemaVersion != SchemaVersion:
		return nil, nil, fmt.Errorf("%w: %s has schema version %d, this is %d", ErrInvalid, checkpointFile, c.SchemaVersion, SchemaVersion)
	case c.Phase == phaseCollected:
	case p.Plan == nil:
		return nil, nil, fmt.Errorf("%w: %s is missing, which %s needs", ErrInvalid, preparedFile, checkpointFile)
	case c.Phase != phaseCreating && len(c.Sandboxes) == 0:
		return nil, nil, fmt.Errorf("%w: %s names no sandbox", ErrInvalid, checkpointFile)
	case p.RunParams.SessionID != c.SessionID:
		return nil, nil, fmt.Errorf("%w: %s is of session %q, %s of %q", ErrInvalid, checkpointFile, c.SessionID, preparedFile, p.RunParams.SessionID)
	}
	return &c, &p, nil
}

// whole fails where the files are shorter than their checkpoint.
func (s *session) whole(c *checkpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.files() {
		if size := c.Files[name]; size < 0 || size > f.size {
			return fmt.Errorf("remote: attach: %w: %s has %d bytes, and %d by its checkpoint: the session directory is not whole", ErrInvalid, name, f.size, size)
		}
	}
	_, err := s.savedAnswers(c.Files[answersFile])
	return err
}

func (s *session) savedAnswers(size int64) (*stepAnswers, error) {
	answers, err := readAnswers(s.path(answersFile), size)
	if err != nil {
		return nil, fmt.Errorf("remote: attach: %s: %w", answersFile, err)
	}
	return answers, nil
}

// rewind takes from the files, which are whole, what was written after the
// checkpoint, and returns the answers that are in it.
func (s *session) rewind(c *checkpoint) (*stepAnswers, error) {
	return s.cutTo(c, c.Files, c.Seq)
}

// keepAll is rewind where what was written after the checkpoint cannot come
// again: it takes away only what the dead host wrote at the run's end, which
// its successor writes itself, and a last line that is not whole.
func (s *session) keepAll(c *checkpoint) (*stepAnswers, error) {
	sizes := make(map[string]int64)
	seq := c.Seq
	for name, end := range map[string]string{eventsFile: "cleanup_start", metricsFile: "execution_duration", logFile: "", answersFile: ""} {
		b, err := readFrom(s.path(name), c.Files[name])
		if err != nil {
			return nil, fmt.Errorf("remote: attach: %w", err)
		}
		sizes[name] = c.Files[name]
		for line := range bytes.Lines(b) {
			if line[len(line)-1] != '\n' || end != "" && isOfRun(line, end) {
				break
			}
			sizes[name] += int64(len(line))
			if name == eventsFile || name == metricsFile {
				seq++
			}
		}
	}
	return s.cutTo(c, sizes, seq)
}

// isOfRun reports whether a line is the event or the metric of this name, and
// of no step.
func isOfRun(line []byte, name string) bool {
	if !bytes.Contains(line, []byte(name)) {
		return false
	}
	for _, kind := range [...]string{eventKey, metricKey} {
		if h, err := parseHead(line, kind); err == nil && len(h.stepID) == 0 && string(h.name) == name {
			return true
		}
	}
	return false
}

// readFrom reads a file from an offset on. One that does not exist is empty.
func readFrom(name string, from int64) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// cutTo shortens the files, makes the checkpoint one of what is left, and
// returns the answers in it. The file of these is cut where it is opened, by
// useCheckpoint.
func (s *session) cutTo(c *checkpoint, sizes map[string]int64, seq int64) (*stepAnswers, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers, err := s.savedAnswers(sizes[answersFile])
	if err != nil {
		return nil, err
	}
	for name, f := range s.files() {
		if err := f.truncate(sizes[name]); err != nil {
			return nil, fmt.Errorf("remote: attach: %w", err)
		}
	}
	c.Files, c.Seq = sizes, seq
	s.seq, s.tally = seq, c.Tally
	return answers, nil
}

// stepAnswers are what a worker has answered to hosts of before.
type stepAnswers struct {
	byStep map[string]*rpc.Response
	order  []string // of the steps, as they were answered
}

func (a *stepAnswers) add(stepID string, resp *rpc.Response) {
	if a.byStep == nil {
		a.byStep = make(map[string]*rpc.Response)
	}
	if a.byStep[stepID] == nil {
		a.order = append(a.order, stepID)
	}
	a.byStep[stepID] = resp
}

// startedSteps are those that have the event step_start.
func (s *session) startedSteps() (map[string]bool, error) {
	f, err := os.Open(s.path(eventsFile))
	if err != nil {
		return nil, fmt.Errorf("remote: session directory: %w", err)
	}
	defer f.Close()
	started := make(map[string]bool)
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if bytes.Contains(line, []byte(`"step_start"`)) {
			if h, err := parseHead(line, eventKey); err == nil && string(h.name) == "step_start" {
				started[string(h.stepID)] = true
			}
		}
		if err == io.EOF {
			return started, nil
		}
		if err != nil {
			return nil, fmt.Errorf("remote: session directory: %w", err)
		}
	}
}

// readAnswers reads the answers in the first size bytes of a file.
func readAnswers(name string, size int64) (*stepAnswers, error) {
	answers := new(stepAnswers)
	if size == 0 {
		return answers, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if size < 0 || size > int64(len(b)) {
		return nil, fmt.Errorf("%w: it has %d bytes, and %d by its checkpoint", ErrInvalid, len(b), size)
	}
	for line := range bytes.Lines(b[:size]) {
		var a stepAnswer
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if a.Response == nil || (a.Response.Error == nil) == (len(a.Response.Result) == 0) {
			return nil, fmt.Errorf("%w: a line has no answer", ErrInvalid)
		}
		answers.add(a.StepID, a.Response)
	}
	return answers, nil
}

// truncate shortens the file to a length that it has had, and throws away what
// is in the buffer.
func (l *lineFile) truncate(size int64) error {
	l.w.Reset(l.f)
	l.size = size
	return l.f.Truncate(size)
}

// dropCheckpoint removes the files of a run that needs no successor. The
// checkpoint itself goes last, so that nothing is left that nobody knows of.
func dropCheckpoint(dir string) error {
	var errs []error
	for _, name := range []string{answersFile, fetchedFile, tablesFile, preparedFile, checkpointFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remote: session directory: %w", err))
		}
	}
	return errors.Join(errs...)
}

// drop removes the files of a run that nobody can go on with. A host that dies
// in the middle of that leaves a checkpoint which says so, rather than one that
// misses what was removed before it.
func (c *checkpoint) drop(dir string) error {
	name := filepath.Join(dir, checkpointFile)
	if _, err := os.Stat(name); err == nil { // else all of it may be gone
		over := *c
		over.Phase = phaseCollected
		if err := writeJSON(name, &over); err != nil {
			return fmt.Errorf("remote: session directory: %w", err)
		}
	}
	return dropCheckpoint(dir)
}

// dropCheckpoint ends the session's checkpoint, and removes it.
func (s *session) dropCheckpoint() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check == nil {
		return nil
	}
	s.check = nil
	err := errors.Join(s.answers.close(), dropCheckpoint(s.dir))
	s.answers = nil
	return err
}

// saveFetched saves that the artifacts are here: a sandbox that a successor
// does not find has then taken none along.
func (s *session) saveFetched(r *run) error {
	if s.check == nil {
		return nil
	}
	if err := writeJSON(s.path(fetchedFile), fetchedArtifacts{r.artifacts, r.skipped, r.skippedMore}); err != nil {
		return fmt.Errorf("remote: session directory: %w", err)
	}
	return s.save(func(c *checkpoint) { c.Phase = phaseFetched })
}

// fetchedArtifacts is collected.json.
type fetchedArtifacts struct {
	Artifacts []Artifact        `json:"artifacts"`
	Skipped   []SkippedArtifact `json:"skipped,omitempty"`
	More      int               `json:"skipped_more,omitempty"`
}
