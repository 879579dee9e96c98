package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

const (
	guardTick     = 250 * time.Millisecond
	guardSilence  = 5 * time.Second  // without a byte from the worker; then it is asked why
	guardInterval = 5 * time.Second  // between diagnoses of one silence
	lookTime      = 10 * time.Second // for one diagnosis
	recordTime    = 5 * time.Second  // to fetch a death record
	pollInterval  = time.Second      // of the state of a sandbox that is paused
)

// watchOver starts looking after a worker that sends heartbeats.
func (l *link) watchOver(heartbeat time.Duration) {
	l.silence.Store(int64(max(2*heartbeat, time.Second) + heartbeat))
	l.heard.Store(time.Now().UnixNano())
	l.wg.Go(func() { l.guard(max(guardSilence, 5*heartbeat)) })
}

// silent returns how long nothing has come from the worker. While the host is
// busy with what has come, that is no silence of the worker's.
func (l *link) silent(now time.Time) time.Duration {
	if r := l.reading.Load(); r != nil && r.waiting() == 0 {
		l.heard.Store(now.UnixNano())
		return 0
	}
	return time.Duration(now.UnixNano() - l.heard.Load())
}

// guard asks for the cause when the worker falls silent, says it once for each
// silence, and gives the worker up when its cause leaves no hope, or has lasted
// too long.
func (l *link) guard(limit time.Duration) {
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	clock := hostClock{tick: guardTick}
	var (
		warned  bool
		present Verdict
		since   time.Time // of the present verdict
		next    time.Time // when to look again
	)
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.down:
			return
		case <-tick.C:
		}
		now := time.Now()
		if stood := clock.stood(now); stood > 0 {
			d := observation{now: now, suspended: stood}.diagnose()
			l.lease.hurry()
			l.warnSilent(d, stood)
			l.heard.Store(now.UnixNano()) // the others had no chance to be heard
			warned = false
			l.renew()
			continue
		}
		silent := l.silent(now)
		if silent < limit {
			if warned {
				warned, present = false, ""
				l.session.logf(slog.LevelInfo, "the worker is heard again")
			}
			continue
		}
		if warned && now.Before(next) {
			continue
		}
		o := l.observe()
		if l.ctx.Err() != nil {
			return
		}
		now = time.Now()
		clock.last, next = now, now.Add(guardInterval)
		if l.silent(now) < limit {
			continue // it was heard meanwhile
		}
		d := o.diagnose()
		if d.verdict != present {
			present, since = d.verdict, now
			if warned {
				l.session.logf(slog.LevelWarn, "the worker is still silent: %s: %s", d.verdict, d.detail)
			}
		}
		if !warned {
			warned = true
			l.warnSilent(d, silent)
		}
		if d.verdict.dead() {
			l.bury(o) // and see what its journal has left to say
		}
		if patience := d.verdict.patience(); patience >= 0 && now.Sub(since) >= patience {
			l.condemn(d.crash(o, nil))
			return
		}
	}
}

// warnSilent says that the worker is silent, and why.
func (l *link) warnSilent(d diagnosis, silent time.Duration) {
	l.session.event("worker_silent", map[string]any{
		"verdict": string(d.verdict), "detail": d.detail, "silent_ms": milliseconds(silent),
	})
	l.session.logf(slog.LevelWarn, "the worker is silent for %s: %s: %s", silent.Round(time.Millisecond), d.verdict, d.detail)
}

// condemn gives the worker up.
func (l *link) condemn(c *WorkerCrashError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.condemned == nil {
		l.condemned = c
		close(l.lostHope)
	}
}

// renew gives up all connections to the worker: they did not outlive a pause,
// and would not say so.
func (l *link) renew() {
	if r := l.reading.Load(); r != nil {
		r.r.Close()
	}
	if p, ok := l.process().(inputRenewer); ok {
		p.RenewInput()
	}
}

// observe finds out what can be known of the worker.
func (l *link) observe() observation {
	ctx, cancel := context.WithTimeout(l.ctx, lookTime)
	defer cancel()
	o := observation{now: time.Now(), cursor: l.cursor.Load(), stderr: l.stderr.String()}
	l.observeExit(&o)
	state, err := l.state(ctx)
	if err == nil {
		o.sandbox = &state
	}
	o.sandboxErr = err
	if o.death != nil || err == nil && state.Phase != SandboxRunning {
		return o
	}
	o.status, o.statusErr = l.look(ctx, "status")
	if o.status != nil && o.status.Death != nil {
		l.setDeath(o.status.Death)
	}
	return o
}

// observeExit notes what the sandbox's daemon has said of the worker's process.
func (l *link) observeExit(o *observation) {
	select {
	case <-l.exited:
		o.exited = true
		if l.known {
			o.exit = &l.status
		}
	default:
	}
	l.mu.Lock()
	o.death = l.death
	l.mu.Unlock()
}

// state asks those who run the sandbox how it is.
func (l *link) state(ctx context.Context) (SandboxState, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime/2)
	defer cancel()
	state, err := l.sandbox.State(ctx)
	if err == nil {
		since := time.Now()
		if heard := l.heard.Load(); heard != 0 {
			since = time.Unix(0, heard)
		}
		l.session.meter.saw(state.Phase, since)
	}
	return state, err
}

// look runs one of the worker's commands that tell of it.
func (l *link) look(ctx context.Context, command string) (*rpc.WorkerStatus, error) {
	b, err := printed(ctx, l.place, command, worker.MaxDeath)
	if err != nil {
		return nil, err
	}
	var s rpc.WorkerStatus
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return &s, nil
}

// bury takes the worker for dead though its process's end did not arrive.
func (l *link) bury(o observation) {
	death := o.death
	if death == nil && o.status != nil {
		death = o.status.Death
	}
	if death != nil && !death.Unknown {
		l.end(ExitStatus{Code: death.ExitCode, Signal: death.Signal}, true)
		return
	}
	l.end(ExitStatus{}, false)
}

// setDeath notes the record of the worker's death, and logs what its drivers
// had printed and it had not come to log.
func (l *link) setDeath(d *rpc.Death) {
	l.mu.Lock()
	first := l.death == nil
	if first {
		l.death = d
	}
	l.mu.Unlock()
	if !first || d.Unknown {
		return
	}
	for _, p := range d.Prints {
		for line := range strings.Lines(p.Text) {
			l.session.workerLog(rpc.Log{
				Time: d.Time, Level: slog.LevelInfo.String(), Stream: p.Stream,
				Message: clip(strings.ToValidUTF8(strings.TrimRight(line, "\r\n"), "\uFFFD"), maxReason),
			})
		}
	}
}

// fetchDeath brings the record of the worker's death, if there is one.
func (l *link) fetchDeath() *rpc.Death {
	l.mu.Lock()
	d := l.death
	l.mu.Unlock()
	if d != nil {
		return d
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), recordTime)
	defer cancel()
	body, err := l.sandbox.Download(ctx, path.Join(filepath.ToSlash(l.dir), worker.DeathFile))
	if err != nil {
		return nil // a supervisor that was killed has left none
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, worker.MaxDeath))
	if err != nil {
		return nil
	}
	d = new(rpc.Death)
	if err := json.Unmarshal(b, d); err != nil {
		l.session.logf(slog.LevelDebug, "death record: %v", err)
		return nil
	}
	l.setDeath(d)
	return d
}

// crash describes the worker's end.
func (l *link) crash(err error) error {
	l.mu.Lock()
	c := l.condemned
	l.mu.Unlock()
	if c == nil {
		o := observation{now: time.Now(), cursor: l.cursor.Load(), stderr: l.stderr.String()}
		if errors.Is(err, ErrSandboxGone) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), lookTime)
			defer cancel()
			o.sandbox = &SandboxState{Phase: SandboxGone}
			if s, stateErr := l.state(ctx); stateErr == nil && s.Phase == SandboxGone {
				o.sandbox = &s
			}
		} else {
			o.death = l.fetchDeath()
		}
		l.observeExit(&o)
		c = o.diagnose().crash(o, err)
	}
	lost := *c // the same may be asked for at the same time
	c = &lost
	l.mu.Lock()
	defer l.mu.Unlock()
	c.OpenSteps = l.lost
	if l.pending != nil {
		c.OpenSteps = l.openStepsLocked()
	}
	if l.farewell != nil {
		c.Reason = l.farewell.Reason
	}
	return c
}

// untilRunning waits while the sandbox is paused. Its error matches
// [ErrSandboxGone] when it is gone for good.
func (l *link) untilRunning(gone error) error {
	for {
		state, err := l.state(l.ctx)
		switch {
		case l.ctx.Err() != nil:
			return l.ctx.Err()
		case err == nil && state.Phase == SandboxRunning:
			return nil
		case err == nil && state.Phase == SandboxGone, errors.Is(err, ErrSandboxGone):
			return gone
		}
		select {
		case <-time.After(pollInterval):
		case <-l.ctx.Done():
			return l.ctx.Err()
		case <-l.lostHope:
			return gone
		}
	}
}

// attacher is a sandbox where a process can be connected to again, after what
// has cut all connections.
type attacher interface {
	attach(ctx context.Context, pid int) (Process, error)
}

// reattach connects to the worker's process again. Its error matches
// errExitUnknown when there is no such process any more.
func (l *link) reattach() error {
	a, ok := l.sandbox.(attacher)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, lookTime)
	defer cancel()
	proc, err := a.attach(ctx, l.process().PID())
	if err != nil {
		return err
	}
	l.proc.Store(&processBox{proc})
	l.wg.Go(func() { l.drainStdout(proc) })
	l.session.logf(slog.LevelInfo, "connected to the worker's process again")
	return nil
}
