package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// How long each stage of stopping a worker may take.
const (
	terminateTime = 8 * time.Second // more than its supervisor gives it
	killTime      = 3 * time.Second
	reapTime      = 8 * time.Second
)

// stop ends a worker, by force where it must, with all that it has started,
// and says what it saw of that. A worker that has said goodbye has the time
// to end by itself. began is when the run was cancelled; zero means that it was
// not, and then a worker that ended well is not asked for more.
func (l *link) stop(began time.Time) []StopStage {
	var stages []StopStage
	cancelled := !began.IsZero()
	if !cancelled {
		began = time.Now()
	}
	ctx := context.WithoutCancel(l.ctx)
	add := func(name string, begin time.Time, gone bool, left []rpc.ProcessID, err error) {
		s := StopStage{Stage: name, DurationMS: milliseconds(time.Since(begin)), Gone: gone}
		for _, id := range left {
			s.Left = append(s.Left, fmt.Sprintf("%d (%s)", id.PID, id.Name))
		}
		if err != nil {
			s.Error = err.Error()
		}
		stages = append(stages, s)
		l.logStage(s, cancelled)
	}
	l.mu.Lock()
	parting := l.farewell != nil
	l.mu.Unlock()
	wait := time.Duration(0)
	if parting {
		wait = terminateTime
	}
	gone := l.hasEnded(wait)
	var why error
	if !gone && !parting {
		why = errors.New("it did not answer")
	}
	if cancelled || !gone {
		add(StageCancel, began, gone, nil, why)
	}
	for _, stage := range []struct {
		name   string
		signal Signal
		time   time.Duration
	}{{StageTerminate, SignalTerm, terminateTime}, {StageKill, SignalKill, killTime}} {
		if gone {
			break
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(ctx, stage.time)
		err := l.process().Signal(ctx, stage.signal)
		cancel()
		if errors.Is(err, ErrSandboxGone) {
			l.end(ExitStatus{}, false)
			err = nil
		}
		gone = l.hasEnded(stage.time - time.Since(begin))
		add(stage.name, begin, gone, nil, err)
	}
	begin := time.Now()
	clean := parting && gone && l.known && l.status == ExitStatus{}
	if clean && !cancelled {
		return stages // its supervisor has seen to the rest
	}
	remains, err := l.remains(ctx)
	if remains == nil {
		if errors.Is(err, ErrSandboxGone) {
			add(StageProcesses, begin, true, nil, nil) // with their machine
		} else {
			add(StageProcesses, begin, false, nil, err)
		}
		return stages
	}
	if !remains.Observed {
		err = errors.New("this platform does not show all that a run has started")
	}
	add(StageProcesses, begin, remains.Observed && len(remains.Left) == 0, remains.Left, err)
	return stages
}

// logStage logs what is worth it: all of a run that was cancelled, else what is
// not known to be gone.
func (l *link) logStage(s StopStage, cancelled bool) {
	switch {
	case s.Gone && cancelled:
		l.session.logf(slog.LevelInfo, "stop: %s: gone after %.0f ms", s.Stage, s.DurationMS)
	case s.Gone:
	case len(s.Left) > 0:
		l.session.logf(slog.LevelWarn, "stop: %s: left after %.0f ms: %s", s.Stage, s.DurationMS, strings.Join(s.Left, ", "))
	default:
		l.session.logf(slog.LevelWarn, "stop: %s: not seen to be gone after %.0f ms: %s", s.Stage, s.DurationMS, s.Error)
	}
}

// remains finds out what is left of what the run has started, and ends it.
func (l *link) remains(ctx context.Context) (*rpc.Remains, error) {
	if d := l.fetchDeath(); d != nil && !d.Unknown && len(d.Left) == 0 {
		return &d.Remains, nil
	}
	ctx, cancel := context.WithTimeout(ctx, reapTime)
	defer cancel()
	s, err := l.look(ctx, "reap")
	if err != nil {
		return nil, err
	}
	if s.Death != nil {
		l.setDeath(s.Death)
	}
	if s.Remains == nil {
		return nil, errors.New("the worker program does not tell")
	}
	return s.Remains, nil
}

// hasEnded reports whether the worker's process ends within a time.
func (l *link) hasEnded(within time.Duration) bool {
	select {
	case <-l.exited:
		return true
	default:
	}
	timer := time.NewTimer(max(within, 0))
	defer timer.Stop()
	select {
	case <-l.exited:
		return true
	case <-timer.C:
		return false
	}
}
