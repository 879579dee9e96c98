package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// How long things may take before something is done about them.
const (
	handshakeTimeout = 30 * time.Second
	tailStartTimeout = 10 * time.Second       // the way may be over a connection that is dead, too; one that starts late ends the next
	cancelGrace      = 8 * time.Second        // for a step to be answered once it was cancelled
	farewellIdle     = 500 * time.Millisecond // without a byte of the tail once the worker's process has ended
	firstSilence     = 5 * time.Second        // before the handshake has said how often heartbeats come
	tailEndPatience  = 2 * time.Second        // for the exit code of a tail whose output has ended
	resendFirst      = 5 * time.Second        // until a request without an answer is sent again; then twice as long
	resendMax        = time.Minute
	inputPatience    = 3 * time.Second // for a frame to be taken; then another connection is tried
	ackInterval      = time.Second
	ackBytes         = 4 << 20
)

// link is the host's end of the wire: it starts the worker and its journal's
// tail, sends requests, and puts what comes back where it belongs. It owns
// all its goroutines; close waits for them.
type link struct {
	*place
	session *session
	trace   *tracer // nil for none

	proc   atomic.Pointer[processBox]
	stderr *lastLines
	ending sync.Once     // guards the three below
	status ExitStatus    // of proc, once exited is closed
	known  bool          // status is known
	exited chan struct{} // proc has ended, or is beyond reach

	input  chan []byte   // frames to send
	taking atomic.Int64  // since when a frame waits to be taken, in Unix nanoseconds; zero when none does
	ackDue chan struct{} // there is something to acknowledge
	cursor atomic.Int64  // everything before it is in the session's files

	handling sync.Mutex // held from a frame's handling until the cursor is behind it

	silence atomic.Int64               // after which a tail is replaced, in nanoseconds; zero means never
	heard   atomic.Int64               // when something last came, in Unix nanoseconds
	reading atomic.Pointer[idleReader] // of the present tail; nil between two

	lostHope chan struct{} // closed when condemned is set

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	down    chan struct{} // nothing will come any more
	downErr error         // why; nil after a close frame

	attachable bool // there may be another host
	epoch      int64
	owner      string
	patience   time.Duration // for the handshake
	sealKey    []byte        // of the worker, once it has answered that
	disowns    atomic.Bool   // the worker is another host's

	mu       sync.Mutex
	first    int64 // number of the first request
	last     int64 // number of the last request
	pending  map[int64]*pendingCall
	answered int64              // every request up to here has its answer
	early    map[int64]struct{} // answered above it
	farewell *rpc.Close
	lost     []string // steps that were running when everything was over

	steps map[string]bool // of the plan, for checkLine; guarded by handling

	// Of steps that a host before this one has asked for.
	inherited stepAnswers     // and the answers
	settled   map[string]bool // steps whose answers came to another host's request
	unsent    []string        // outputs to be released with the next step

	death     *rpc.Death        // the record of the worker's end, once it is known
	condemned *WorkerCrashError // why the worker counts as lost though it may run
	ackEvery  int64             // bytes that are acknowledged at once
	unstarted int               // tails in a row that did not start, for follow alone
}

// processBox holds a process: it may be another connection to the same one.
type processBox struct{ Process }

func (l *link) process() Process { return l.proc.Load().Process }

// pendingCall is a request without an answer. It is sent again from time to
// time, since a connection that breaks may take it along without a word; the
// worker executes it once all the same.
type pendingCall struct {
	answer chan *rpc.Response // has room for one
	stepID string             // of an execute_step

	payload *payload // of a fetch_output; guarded by the link's lock

	cancelled bool // it was asked to stop
	frame     []byte
	resend    time.Time
	wait      time.Duration
}

func newLink(ctx context.Context, pl *place, s *session, t *tracer, maxJournal int64) *link {
	epoch, token, attachable := s.ownership()
	first := rpc.FirstRequest(epoch)
	l := &link{
		place: pl, session: s, trace: t,
		stderr: &lastLines{session: s},
		exited: make(chan struct{}),

		lostHope: make(chan struct{}),

		input:   make(chan []byte),
		ackDue:  make(chan struct{}, 1),
		down:    make(chan struct{}),
		pending: make(map[int64]*pendingCall),
		early:   make(map[int64]struct{}),
		epoch:   epoch, owner: token, attachable: attachable, patience: handshakeTimeout,
		first: first, last: first - 1, answered: first - 1,
	}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.silence.Store(int64(firstSilence))
	if l.ackEvery = ackBytes; maxJournal > 0 { // or a small journal would stand full until the next second
		l.ackEvery = min(l.ackEvery, max(maxJournal/4, 1))
	}
	return l
}

// serving is how a worker is started.
type serving struct {
	maxJournal int64
	keep       bool  // outputs of finished steps are to outlive it
	after      *link // the one whose worker died; nil for a run's first
}

func (v serving) args() []string {
	args := []string{"supervise", "-max-journal", strconv.FormatInt(v.maxJournal, 10)}
	switch {
	case v.after != nil:
		return append(args, "-resume")
	case v.keep:
		return append(args, "-keep")
	}
	return args
}

// dial starts the worker and its tail.
func dial(ctx context.Context, pl *place, s *session, t *tracer, v serving) (*link, error) {
	l := newLink(ctx, pl, s, t, v.maxJournal)
	if v.after != nil {
		l.follows(v.after)
	}
	// Both take some milliseconds to start, and a tail waits for its journal.
	l.wg.Go(l.follow)
	proc, err := l.start(ctx, l.stderr, v.args()...)
	if err != nil {
		l.cancel()
		l.wg.Wait()
		return nil, fmt.Errorf("remote: start worker: %w", err)
	}
	l.attend(proc)
	return l, nil
}

// redial goes on with a worker that another host has started.
func redial(ctx context.Context, pl *place, s *session, t *tracer, maxJournal int64, proc Process, cursor int64, inherited *stepAnswers) *link {
	l := newLink(ctx, pl, s, t, maxJournal)
	l.cursor.Store(cursor)
	l.inherited, l.patience = *inherited, networkPatience
	l.wg.Go(l.follow)
	l.attend(proc)
	return l
}

// attend does all that has to be done about a worker's process.
func (l *link) attend(proc Process) {
	l.proc.Store(&processBox{proc})
	l.wg.Go(func() { l.drainStdout(proc) })
	l.wg.Go(l.await)
	l.wg.Go(l.write)
	l.wg.Go(l.relieve)
}

func (l *link) start(ctx context.Context, stderr io.Writer, args ...string) (Process, error) {
	args = append([]string{worker.Arg, args[0], "-dir", l.dir}, args[1:]...)
	return l.sandbox.Start(ctx, Command{Path: l.program, Args: args, Stderr: stderr})
}

// close ends what still runs and waits for everything.
func (l *link) close() {
	owned := !l.disowns.Load()
	if owned && !l.hasEnded(0) {
		l.stop(time.Time{})
	}
	l.cancel()
	proc := l.process()
	if p, ok := proc.(io.Closer); ok && !owned {
		p.Close() // lets go: to end its input would end it
	} else {
		proc.Stdin().Close()
		proc.Stdout().Close()
	}
	l.wg.Wait()
}

// drainStdout logs what the worker's process prints past its drivers'
// streams, as C libraries do. It never is part of the protocol.
func (l *link) drainStdout(proc Process) {
	w := &lastLines{session: l.session, stream: "stdout"}
	_, err := io.Copy(w, proc.Stdout())
	w.flush()
	if err != nil && l.ctx.Err() == nil {
		l.session.logf(slog.LevelDebug, "standard output of the worker's process: %v", err)
	}
}

// await notes how the worker's process ends. A pause of its sandbox is no end,
// though it looks like one from outside.
func (l *link) await() {
	defer l.stderr.flush()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		status, err := l.process().Wait(l.ctx)
		if err == nil {
			l.end(status, true)
			return
		}
		if errors.Is(err, ErrSandboxGone) {
			if l.untilRunning(err) == nil {
				err = l.reattach()
			} else if l.ctx.Err() == nil {
				l.end(ExitStatus{}, false)
				return
			}
		}
		if errors.Is(err, errExitUnknown) {
			l.end(ExitStatus{}, false)
			return
		}
		select { // not knowing is not an end
		case <-time.After(wait):
		case <-l.exited: // somebody else knows
			return
		case <-l.ctx.Done():
			l.end(ExitStatus{}, false)
			return
		}
	}
}

// end notes that the worker's process has ended, and how if that is known.
func (l *link) end(status ExitStatus, known bool) {
	l.ending.Do(func() {
		l.status, l.known = status, known
		close(l.exited)
	})
}

// write sends frames to the worker.
func (l *link) write() {
	acked, ackedAt := int64(0), time.Time{}
	ack := func() {
		ackedAt = time.Now()
		b, _ := json.Marshal(rpc.Ack{Offset: acked, Epoch: l.epoch})
		if frame, err := rpc.EncodeInput(rpc.FrameAck, b); err == nil {
			l.put(frame)
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case frame := <-l.input:
			l.put(frame)
		case <-l.ackDue:
			offset := l.cursor.Load()
			if offset == acked {
				continue
			}
			acked = offset
			ack()
		case now := <-tick.C:
			frames := l.overdue(now)
			// A worker whose journal is full says nothing before it is
			// acknowledged, and that may be what got lost.
			patience := max(resendFirst, time.Duration(l.silence.Load()))
			again := acked > 0 && now.Sub(ackedAt) >= patience && l.silent(now) >= patience
			if p, ok := l.process().(inputRenewer); ok && (again || len(frames) > 0) {
				p.RenewInput()
			}
			if again {
				ack()
			}
			for _, frame := range frames {
				l.put(frame)
			}
		}
	}
}

// put writes a frame to the worker's input, and tries again until it is
// taken or there is nobody to take it.
func (l *link) put(frame []byte) {
	l.trace.frame("to worker", rpc.Frame{Type: rpc.FrameType(frame[4]), Payload: frame[rpc.HeaderSize:]})
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		l.taking.Store(time.Now().UnixNano())
		_, err := l.process().Stdin().Write(frame)
		l.taking.Store(0)
		if err == nil {
			l.session.meter.count(int64(len(frame)), 0)
			return
		}
		l.session.logf(slog.LevelDebug, "input to the worker: %v", err)
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
			return
		case <-l.exited:
			return
		case <-l.down:
			return
		}
	}
}

// inputRenewer is a process whose input can be sent over another connection.
type inputRenewer interface{ RenewInput() }

// arrived notes that the worker runs these steps, so that their requests need
// not be sent again soon.
func (l *link) arrived(steps []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.pending {
		if c.stepID != "" && slices.Contains(steps, c.stepID) {
			c.wait = resendMax
			c.resend = time.Now().Add(c.wait)
		}
	}
}

// relieve has the input sent over another connection when a frame waits too
// long: the worker reads at once, so it is the way to it that is blocked.
func (l *link) relieve() {
	if _, ok := l.process().(inputRenewer); !ok {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case now := <-tick.C:
			if since := l.taking.Load(); since != 0 && now.Sub(time.Unix(0, since)) > inputPatience {
				l.session.logf(slog.LevelWarn, "input to the worker is held up; trying another connection")
				if p, ok := l.process().(inputRenewer); ok {
					p.RenewInput()
				}
			}
		}
	}
}

// overdue returns the requests that are to be sent again.
func (l *link) overdue(now time.Time) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var frames [][]byte
	for _, c := range l.pending {
		if c.frame != nil && now.After(c.resend) {
			c.wait = min(2*c.wait, resendMax)
			c.resend = now.Add(c.wait)
			frames = append(frames, c.frame)
		}
	}
	return frames
}

// follow reads the journal through one tail after the other until its close
// frame, or until nothing more can come.
func (l *link) follow() {
	err := l.readJournal()
	if err != nil && l.ctx.Err() != nil {
		err = l.ctx.Err()
	}
	if flushErr := l.session.flush(); err == nil {
		err = flushErr
	}
	l.mu.Lock()
	l.downErr = err
	l.lost = l.openStepsLocked()
	pending := l.pending
	l.pending = nil
	l.mu.Unlock()
	close(l.down)
	for _, c := range pending {
		close(c.answer)
	}
}

func (l *link) readJournal() error {
	wait := time.Duration(0)
	final := 0 // fruitless tails after the worker's end
	for {
		before := l.cursor.Load()
		last := false
		select {
		case <-l.exited:
			last = true // a tail that does not wait sees all there is
		default:
		}
		closed, err := l.readOn(!last)
		if closed || l.ctx.Err() != nil {
			return nil
		}
		var broken *protocolError
		if errors.As(err, &broken) || errors.Is(err, ErrOwnershipLost) || errors.Is(err, ErrJournalLost) {
			return err
		}
		if l.cursor.Load() > before {
			wait, final = 0, 0
			continue
		}
		if errors.Is(err, ErrSandboxGone) {
			if err := l.untilRunning(err); err != nil && l.ctx.Err() == nil {
				return l.crash(err)
			}
		}
		select {
		case <-l.lostHope:
			return l.crash(nil)
		default:
		}
		if last && err == nil {
			return l.crash(nil) // the journal ends without the worker's last word
		}
		if last && (errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, new(*tailError))) {
			if final++; final >= 3 {
				return l.crash(nil) // or in a frame that it was writing when it died, or no tail runs there
			}
		}
		if err != nil {
			l.session.logf(slog.LevelWarn, "journal read up to %d, continuing from there: %v", l.cursor.Load(), err)
		}
		wait = min(max(2*wait, 20*time.Millisecond), time.Second)
		select {
		case <-time.After(wait):
		case <-l.lostHope:
		case <-l.ctx.Done():
		}
	}
}

// protocolError is something a worker must not send. It matches [ErrProtocol].
type protocolError struct{ err error }

func (e *protocolError) Error() string {
	return fmt.Sprintf("remote: worker: %v: %s", ErrProtocol, rpc.Printable(e.err.Error()))
}
func (e *protocolError) Unwrap() []error { return []error{ErrProtocol, e.err} }

// openStepsLocked returns the steps that wait for their answers.
func (l *link) openStepsLocked() []string {
	var ids []string
	for _, p := range l.pending {
		if p.stepID != "" {
			ids = append(ids, p.stepID)
		}
	}
	slices.Sort(ids)
	return ids
}

// tailError is why a tail ended early, in its own words.
type tailError struct{ text string }

func (e *tailError) Error() string { return rpc.Printable(e.text) }

// readTail starts a tail at the cursor and reads it to its end. It reports
// whether that was the close frame.
func (l *link) readTail(follow bool) (closed bool, err error) {
	stderr := &lastLines{}
	startCtx, started := context.WithTimeout(l.ctx, tailStartTimeout)
	tail, err := l.start(startCtx, stderr, "tail",
		"-from", strconv.FormatInt(l.cursor.Load(), 10), "-follow="+strconv.FormatBool(follow))
	started()
	if err != nil {
		return false, &startError{err}
	}
	stdout := &idleReader{r: tail.Stdout(), idle: l.idle, heard: &l.heard, meter: l.session.meter}
	stdout.since.Store(time.Now().UnixNano()) // nothing has come yet
	l.reading.Store(stdout)
	defer l.reading.Store(nil)

	stop := make(chan struct{})
	var watching sync.WaitGroup
	var cut atomic.Pointer[string]
	watching.Go(func() {
		if why := l.watch(stop, stdout, follow); why != "" {
			cut.Store(&why)
			stdout.r.Close()
		}
	})
	closed, err = l.readFrames(rpc.NewFrameReader(stdout, l.cursor.Load(), 0))
	close(stop)
	watching.Wait()

	// Whatever is left of it would read the journal for nobody. Its end may be
	// long in coming where the connection is what broke.
	tail.Stdin().Close()
	tail.Stdout().Close()
	why := cut.Load()
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 5*time.Second)
		defer cancel()
		err := tail.Signal(ctx, SignalKill)
		if err == nil && why == nil { // else the news of its end comes by the connection that broke
			_, err = tail.Wait(ctx)
		}
		if err != nil && !errors.Is(err, ErrSandboxGone) {
			l.session.logf(slog.LevelDebug, "end of tail: %v", err)
		}
	})
	if why != nil && !closed {
		err = errors.New(*why)
	}
	if err == io.EOF || err == nil {
		err = nil
		if text := stderr.String(); text != "" && !closed {
			err = l.tailEnd(tail, text)
		}
	}
	return closed, err
}

// tailEnd is the error of a tail that has ended by itself, and said why.
func (l *link) tailEnd(tail Process, text string) error {
	ctx, cancel := context.WithTimeout(l.ctx, tailEndPatience)
	defer cancel()
	status, err := tail.Wait(ctx)
	switch {
	case err != nil: // so it is tried again
	case status.Code == worker.ExitTrimmed:
		return journalLost(fmt.Errorf("%w: %s", rpc.ErrJournalTrimmed, text))
	case status.Code == worker.ExitCorrupt:
		return journalLost(fmt.Errorf("%w: %s", rpc.ErrFrameCorrupt, text))
	}
	return &tailError{text}
}

// watch waits for a reason to give up a tail, and returns it; empty means that
// the tail ended first.
func (l *link) watch(stop <-chan struct{}, stdout *idleReader, follow bool) string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return ""
		case <-l.ctx.Done():
			return "closed"
		case <-l.lostHope:
			return "the worker is given up"
		case <-tick.C:
		}
		limit := time.Duration(l.silence.Load())
		why := fmt.Sprintf("no sign of life for %s", limit)
		if follow {
			select {
			case <-l.exited: // a tail that does not wait tells whether there is more
				limit, why = farewellIdle, "the worker's process has ended"
			default:
			}
		}
		if stdout.waiting() > limit {
			return why
		}
	}
}

// idle is called before every read that may wait.
func (l *link) idle(lastAck *time.Time, ackedTo *int64) {
	if l.session.flush() != nil {
		return // what could not be written must not be dropped
	}
	cursor := l.cursor.Load()
	if cursor-*ackedTo >= l.ackEvery || cursor > *ackedTo && time.Since(*lastAck) >= ackInterval {
		if !l.session.reached(cursor) {
			return // a successor would ask for it again
		}
		*lastAck, *ackedTo = time.Now(), cursor
		select {
		case l.ackDue <- struct{}{}:
		default:
		}
	}
}

// readFrames handles frames until the stream ends.
func (l *link) readFrames(frames *rpc.FrameReader) (closed bool, err error) {
	for {
		f, err := frames.Next()
		if errors.Is(err, rpc.ErrFrameCorrupt) || errors.Is(err, rpc.ErrFrameTooLarge) || errors.Is(err, rpc.ErrFrameOffset) {
			return false, &protocolError{fmt.Errorf("%w: %w", ErrJournalLost, err)}
		}
		if err != nil {
			return false, err
		}
		l.handling.Lock()
		if err = l.handle(f); err == nil {
			l.cursor.Store(frames.Offset())
		}
		l.handling.Unlock()
		switch {
		case errors.Is(err, ErrOwnershipLost), errors.As(err, new(*protocolError)):
			return false, err
		case err != nil:
			return false, &protocolError{err}
		}
		if f.Type == rpc.FrameClose {
			return true, nil
		}
	}
}

func (l *link) handle(f rpc.Frame) error {
	l.trace.frame("from worker", f)
	switch f.Type {
	case rpc.FrameResponse:
		resp, err := rpc.DecodeResponse(f.Payload)
		if err != nil {
			return err
		}
		if e := resp.Error; e != nil {
			e.Message = clip(e.Message, maxReason)
			if e.Data != nil {
				e.Data.Type, e.Data.Traceback = clip(e.Data.Type, maxReason/16), clip(e.Data.Traceback, maxReason)
			}
		}
		return l.deliver(resp)
	case rpc.FrameArrow:
		return l.chunk(f.Payload)
	}
	data, err := rpc.Data(f.Type, f.Payload)
	if err != nil {
		return err
	}
	switch f.Type {
	case rpc.FrameEvent:
		essential, err := l.checkLine(data, eventKey)
		if err != nil {
			return err
		}
		l.session.workerEvent(data, essential)
	case rpc.FrameMetric:
		if _, err := l.checkLine(data, metricKey); err != nil {
			return err
		}
		l.session.workerMetric(data)
	case rpc.FrameLog:
		var m rpc.Log
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("log: %w", err)
		}
		l.session.workerLog(m)
	case rpc.FrameHeartbeat:
		var m rpc.Heartbeat
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		if m.Epoch > l.epoch {
			return l.disown(m.Epoch)
		}
		l.session.meter.resumed()
		l.arrived(m.OpenSteps)
		l.session.heartbeat(m)
	case rpc.FrameClose:
		var m rpc.Close
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		m.Reason = clip(m.Reason, maxReason)
		l.mu.Lock()
		l.farewell = &m
		l.mu.Unlock()
	}
	return nil
}

// deliver hands an answer to its call. An answer that came before is dropped.
func (l *link) deliver(resp *rpc.Response) error {
	n, err := rpc.RequestNumber(resp.ID)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n >= rpc.FirstRequest(l.epoch+1) {
		return l.disown(l.epoch + 1)
	}
	if n > l.last && l.epoch > 1 {
		return l.disown(l.epoch) // a rival has come as the same successor
	}
	if n > l.last {
		return fmt.Errorf("answer to %s, which was not asked", resp.ID)
	}
	if n < l.first {
		return l.inherit(resp)
	}
	if call, ok := l.pending[n]; ok {
		if call.stepID != "" {
			if call.cancelled || !isCancelled(resp) {
				l.session.answered(call.stepID, resp)
			}
		}
		l.answer(n, call, resp)
	}
	return nil
}

// isCancelled reports whether a step was stopped. Where nobody has asked for
// that, its worker is ending: that is no outcome of the step to be kept for a
// successor.
func isCancelled(resp *rpc.Response) bool {
	return resp.Error != nil && resp.Error.Code == rpc.CodeCancelled
}

// answer ends a call. The caller has the lock.
func (l *link) answer(n int64, call *pendingCall, resp *rpc.Response) {
	delete(l.pending, n)
	l.early[n] = struct{}{}
	for {
		if _, ok := l.early[l.answered+1]; !ok {
			break
		}
		l.answered++
		delete(l.early, l.answered)
	}
	call.answer <- resp
}

// inherit takes an answer to a host before this one. That to a step is the
// step's, whoever asked. The caller has the lock.
func (l *link) inherit(resp *rpc.Response) error {
	var of struct {
		StepID string `json:"step_id"`
	}
	if resp.Error == nil {
		if json.Unmarshal(resp.Result, &of) != nil {
			return nil // an answer to something else
		}
	} else if resp.Error.Data != nil && resp.Error.Code != rpc.CodeOwnershipLost {
		of.StepID = resp.Error.Data.StepID
	}
	// The sandbox may say what it likes, as often as it likes.
	if !l.plan.hasStep(of.StepID) || l.settled[of.StepID] || l.inherited.byStep[of.StepID] != nil {
		return nil
	}
	if l.settled == nil {
		l.settled = make(map[string]bool)
	}
	l.settled[of.StepID] = true
	l.session.answered(of.StepID, resp)
	for n, call := range l.pending {
		if call.stepID == of.StepID {
			l.answer(n, call, resp)
			return nil
		}
	}
	l.inherited.add(of.StepID, resp)
	return nil
}

// disown is for a worker that another host has taken over: it is left alone.
func (l *link) disown(epoch int64) error {
	if !l.attachable {
		return &protocolError{fmt.Errorf("it claims to have another host (epoch %d), which a run of this adapter cannot have", epoch)}
	}
	l.disowns.Store(true)
	return &ownershipError{epoch}
}

// ownershipError matches [ErrOwnershipLost].
type ownershipError struct{ epoch int64 }

func (e *ownershipError) Error() string {
	return fmt.Sprintf("remote: %v: the worker listens to the host of epoch %d", ErrOwnershipLost, e.epoch)
}

func (e *ownershipError) Unwrap() error { return ErrOwnershipLost }

// maxReason bounds what a worker may put into an error.
const maxReason = 64 << 10

// clip shortens foreign text.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + fmt.Sprintf("... (%d bytes)", len(s))
}

// errCallCancelled: the call's context ended, and its answer did not come in
// the grace after that.
var errCallCancelled = errors.New("no answer after cancellation")

// call sends a request and waits for its answer, which it decodes into result.
// When ctx ends first the worker is asked to cancel, and has a grace to answer.
// The error is an [*rpc.Error] when the worker answered with one.
func (l *link) call(ctx context.Context, method string, params, result any) error {
	n, answer, err := l.send(ctx, method, params)
	if err != nil {
		return err
	}
	if n == 0 { // the answer is here, and there is nothing to cancel
		ctx = context.WithoutCancel(ctx)
	}
	var resp *rpc.Response
	var ok bool
	select {
	case resp, ok = <-answer:
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelGrace)
		defer cancel()
		if method != rpc.MethodCancel {
			l.mu.Lock()
			if call, ok := l.pending[n]; ok {
				call.cancelled = true
			}
			l.mu.Unlock()
			_, _, err := l.send(grace, rpc.MethodCancel, rpc.Cancel{ID: rpc.RequestID(n)})
			if err != nil {
				l.session.logf(slog.LevelDebug, "cancel %s: %v", rpc.RequestID(n), err)
			}
		}
		select {
		case resp, ok = <-answer:
		case <-grace.Done():
			return fmt.Errorf("%w: %w", errCallCancelled, context.Cause(ctx))
		}
	}
	if !ok {
		return l.gone()
	}
	if resp.Error != nil && resp.Error.Code == rpc.CodeOwnershipLost {
		if !l.attachable {
			return l.disown(l.epoch + 1)
		}
		l.disowns.Store(true)
		return fmt.Errorf("remote: %w: %s", ErrOwnershipLost, resp.Error.Message)
	}
	if isCancelled(resp) && ctx.Err() == nil {
		// Nobody has asked for that: the worker is ending, and says why.
		select {
		case <-l.down:
			if !l.ended() { // else a host before this one had that stopped
				return l.gone()
			}
		case <-time.After(cancelGrace):
		case <-ctx.Done():
		}
	}
	if resp.Error != nil {
		return resp.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Result, result); err != nil {
		return &protocolError{fmt.Errorf("answer to %s: %w", method, err)}
	}
	return nil
}

// gone says why no answer will come.
func (l *link) gone() error {
	<-l.down
	if l.downErr != nil {
		return l.downErr
	}
	return l.crash(nil)
}

func (l *link) send(ctx context.Context, method string, params any) (int64, <-chan *rpc.Response, error) {
	call := &pendingCall{answer: make(chan *rpc.Response, 1), wait: resendFirst}
	if step, ok := params.(*rpc.ExecuteStep); ok {
		call.stepID = step.StepID
		if l.recall(call, step) {
			return 0, call.answer, nil
		}
	}
	if fetch, ok := params.(*fetchRequest); ok {
		call.payload = fetch.payload
	}
	raw, err := json.Marshal(params)
	if err != nil {
		return 0, nil, fmt.Errorf("remote: %s: %w", method, err)
	}
	l.mu.Lock()
	if l.pending == nil {
		l.mu.Unlock()
		return 0, nil, l.gone()
	}
	l.last++
	n := l.last
	l.pending[n] = call
	req := rpc.Request{ID: rpc.RequestID(n), Method: method, Params: raw, Answered: l.answered, Epoch: l.epoch}
	l.mu.Unlock()

	frame, err := l.encode(ctx, &req)
	if err == nil {
		select {
		case l.input <- frame:
			l.mu.Lock()
			call.frame, call.resend = frame, time.Now().Add(call.wait)
			l.mu.Unlock()
			return n, call.answer, nil
		case <-l.down:
			err = l.gone()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	l.mu.Lock()
	delete(l.pending, n)
	if n == l.last {
		l.last-- // it was never sent
	} else {
		l.early[n] = struct{}{}
	}
	l.mu.Unlock()
	return 0, nil, err
}

// recall answers the call of a step that was done before this host came. What
// was to be released with it is released with the next.
func (l *link) recall(call *pendingCall, step *rpc.ExecuteStep) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if resp := l.inherited.byStep[step.StepID]; resp != nil {
		l.unsent = append(l.unsent, step.Release...)
		call.answer <- resp
		return true
	}
	step.Release = append(step.Release, l.unsent...)
	l.unsent = nil
	return false
}

// encode makes a request's frame; parameters that do not fit go by file, unless
// they may be secret.
func (l *link) encode(ctx context.Context, req *rpc.Request) ([]byte, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("remote: %s: %w", req.Method, err)
	}
	frame, err := rpc.EncodeInput(rpc.FrameRequest, b)
	if !errors.Is(err, rpc.ErrFrameTooLarge) || req.Method == rpc.MethodSecrets {
		return frame, err
	}
	ref := &rpc.FileRef{Path: "requests/" + req.ID + ".json", Size: int64(len(req.Params)), SHA256: sha256Hex(req.Params)}
	if err := l.sandbox.Upload(ctx, path.Join(l.dir, ref.Path), bytes.NewReader(req.Params), ref.Size); err != nil {
		return nil, fmt.Errorf("remote: %s: %w", req.Method, err)
	}
	countSent(ctx, ref.Size)
	req.Params, req.ParamsFile = nil, ref
	if b, err = json.Marshal(req); err != nil {
		return nil, fmt.Errorf("remote: %s: %w", req.Method, err)
	}
	return rpc.EncodeInput(rpc.FrameRequest, b)
}

// idleReader tells when its reader is about to wait, and for how long it has.
type idleReader struct {
	r       io.ReadCloser
	idle    func(lastAck *time.Time, ackedTo *int64)
	lastAck time.Time
	ackedTo int64
	since   atomic.Int64  // start of the present read; zero between reads
	heard   *atomic.Int64 // when a byte last came; may be nil
	meter   *meter        // counts them; may be nil
}

func (r *idleReader) Read(p []byte) (int, error) {
	r.idle(&r.lastAck, &r.ackedTo)
	r.since.Store(time.Now().UnixNano())
	n, err := r.r.Read(p)
	r.meter.count(0, int64(n))
	if n > 0 && r.heard != nil {
		r.heard.Store(time.Now().UnixNano())
	}
	r.since.Store(0)
	return n, err
}

// waiting returns how long the present read has waited.
func (r *idleReader) waiting() time.Duration {
	since := r.since.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(time.Now().UnixNano() - since)
}

// lastLines keeps the last lines written to it, and logs them all when it has
// a session.
type lastLines struct {
	session *session // nil logs nothing
	stream  string   // empty means stderr

	mu      sync.Mutex
	clean   *secrets.Writer // in front of split, since a value may stand where a long line is cut; nil without a session
	lines   []string
	partial []byte
}

// Limits of what is kept of a process's standard error.
const (
	keepLines   = 20
	keepLineLen = 4 << 10
)

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil {
		l.split(p)
		return len(p), nil
	}
	if l.clean == nil {
		l.clean = l.session.redact.Writer(splitter{l})
	}
	_, _ = l.clean.Write(p)
	if bytes.HasSuffix(p, []byte("\n")) {
		_ = l.clean.Flush()
	}
	return len(p), nil
}

// splitter is lastLines behind its redactor.
type splitter struct{ l *lastLines }

func (s splitter) Write(p []byte) (int, error) {
	s.l.split(p)
	return len(p), nil
}

func (l *lastLines) split(p []byte) {
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			l.partial = append(l.partial, rest...)
			if len(l.partial) >= keepLineLen {
				l.endLine()
			}
			break
		}
		l.partial = append(l.partial, rest[:i]...)
		l.endLine()
		rest = rest[i+1:]
	}
}

func (l *lastLines) endLine() {
	line := strings.ToValidUTF8(string(bytes.TrimRight(l.partial, "\r")), "\uFFFD")
	l.partial = l.partial[:0]
	if l.session != nil {
		stream := l.stream
		if stream == "" {
			stream = "stderr"
		}
		l.session.workerLog(rpc.Log{Time: time.Now(), Level: slog.LevelInfo.String(), Message: line, Stream: stream})
	}
	if len(line) > keepLineLen {
		line = line[:keepLineLen]
	}
	l.lines = append(l.lines, line)
	if len(l.lines) > keepLines {
		l.lines = l.lines[1:]
	}
}

func (l *lastLines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clean != nil {
		_ = l.clean.Flush()
	}
	if len(l.partial) > 0 {
		l.endLine()
	}
}

func (l *lastLines) String() string {
	l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}
