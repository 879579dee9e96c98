package remote

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"

	"github.com/osiris-pipelines/remote/rpc"
)

// lineLimit is how much a run's worker may write to the session's files: lines
// of events, metrics and log together. Zero means no limit.
type lineLimit struct {
	lines, bytes int64
	essential    int64 // further lines that say what became of steps
}

// lineTally is what a run's worker has written, as far as the checkpoint goes
// that has it: what is read again is counted again.
type lineTally struct {
	Lines     int64 `json:"lines"`
	Bytes     int64 `json:"bytes"`
	Essential int64 `json:"essential,omitempty"` // lines beyond the limit that are in the files

	DroppedLines int64 `json:"dropped_lines,omitempty"`
	DroppedBytes int64 `json:"dropped_bytes,omitempty"`
}

// maxEssential is how long a line may be that is written beyond the limit.
const maxEssential = 64 << 10

// add counts lines, and reports whether they are to be written. Once there was
// too much, all else is dropped: a file with holes anywhere would not say where
// it ends to be whole.
func (t *lineTally) add(limit lineLimit, lines, bytes int64, essential bool) bool {
	fits := t.DroppedLines == 0 && (limit.lines == 0 || t.Lines+lines <= limit.lines) && (limit.bytes == 0 || t.Bytes+bytes <= limit.bytes)
	if !fits && essential && bytes <= maxEssential && t.Essential < limit.essential {
		t.Essential++
		return true
	}
	if !fits {
		t.DroppedLines += lines
		t.DroppedBytes += bytes
		return false
	}
	t.Lines += lines
	t.Bytes += bytes
	return true
}

// admit writes lines of the worker's, within the limit, and says when that was
// reached.
func (s *session) admit(lines, bytes int, essential bool, write func()) {
	s.mu.Lock()
	before := s.tally.DroppedLines
	if s.tally.add(s.limit, int64(lines), int64(bytes), essential) {
		write()
	}
	first := before == 0 && s.tally.DroppedLines > 0
	limit, tally := s.limit, s.tally
	s.mu.Unlock()
	if first {
		s.logf(slog.LevelWarn, "the worker has written %d lines with %d bytes; what it writes from now on is dropped (Config.MaxEvents is %d, MaxEventBytes %d)",
			tally.Lines, tally.Bytes, limit.lines, limit.bytes)
	}
}

// heartbeat records what the worker says of itself.
func (s *session) heartbeat(m rpc.Heartbeat) {
	const about = 150 // bytes of a line
	s.admit(3, 3*about, false, func() {
		s.hostMetric("worker_rss_bytes", float64(m.RSSBytes), "bytes")
		s.hostMetric("worker_cpu_seconds", m.CPUSeconds, "seconds")
		s.hostMetric("worker_open_steps", float64(len(m.OpenSteps)), "")
	})
}

// dropped says what was dropped of a run, if anything was.
func (s *session) dropped() (lines, bytes int64) {
	s.mu.Lock()
	limit, tally := s.limit, s.tally
	s.mu.Unlock()
	if tally.DroppedLines > 0 {
		s.event("lines_dropped", map[string]any{
			"lines": tally.DroppedLines, "bytes": tally.DroppedBytes,
			"max_events": limit.lines, "max_event_bytes": limit.bytes,
		})
	}
	return tally.DroppedLines, tally.DroppedBytes
}

// lineLimit is that of a run. Each of its steps may say three times, in every
// try, what becomes of it.
func (e *engine) lineLimit(p *PreparedRun) lineLimit {
	return lineLimit{
		lines: int64(cmp.Or(e.cfg.MaxEvents, defaultMaxEvents)), bytes: cmp.Or(e.cfg.MaxEventBytes, defaultMaxEventBytes),
		essential: int64(3 * len(p.Plan.Steps) * (1 + min(e.restarts(p), 100))),
	}
}

// maxStepMetrics is how many metrics of a step are kept in its result: results
// of all steps are in memory until the run is collected.
const maxStepMetrics = 1000

// fewMetrics leaves so many of a step's metrics, the first by name, and those
// that are counted over all steps.
func (s *session) fewMetrics(stepID string, all map[string]float64) map[string]float64 {
	if len(all) <= maxStepMetrics {
		return all
	}
	few := make(map[string]float64, maxStepMetrics)
	names := slices.Concat([]string{"rows_read", "rows_written"}, slices.Sorted(maps.Keys(all)))
	for _, name := range names {
		if v, ok := all[name]; ok && len(few) < maxStepMetrics {
			few[clip(name, maxReason/16)] = v
		}
	}
	s.logf(slog.LevelWarn, "the result of step %q has %d metrics; %d are kept", stepID, len(all), len(few))
	return few
}
