package mock

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// buildStatus is what became of a build.
type buildStatus string

// The statuses, as E2B names them.
const (
	buildWaiting buildStatus = "waiting" // to be started
	buildRunning buildStatus = "building"
	buildReady   buildStatus = "ready"
	buildFailed  buildStatus = "error"
)

// build is a version of a template. What comes after sandbox is guarded by the
// server's lock.
type build struct {
	id        string
	createdAt time.Time
	log       buildLog
	sandbox   string // of which it is a snapshot

	size       size
	status     buildStatus
	reason     *buildReason
	updatedAt  time.Time
	finishedAt time.Time
	cancel     context.CancelFunc // while it runs
	setup      setup
	image      envd.Machine // nil means an empty machine
	holds      int          // who uses the image
	discarded  bool         // the image is to go when nobody holds it
}

// buildReason is why a build failed.
type buildReason struct {
	Message    string          `json:"message"`
	Step       *string         `json:"step,omitempty"`
	LogEntries []buildLogEntry `json:"logEntries"`
}

// setup is what a build leaves beside files: how its sandboxes, and templates
// that are built from it, begin.
type setup struct {
	user    string // who acts where nobody is named; empty means "user"
	workdir string // empty means the user's home
	env     []pair // of builds and of the start command, in the order in which they were set
	start   *startCommand
}

// pair is a variable.
type pair struct{ name, value string }

// startCommand is what runs in every sandbox of a build.
type startCommand struct {
	command string // empty means none
	ready   string // says by its success that a sandbox is ready; empty means that nothing says it
	within  setup  // without a start command of its own
}

func (s setup) defaultUser() string {
	if s.user == "" {
		return "user"
	}
	return s.user
}

// still returns the setup without the start command.
func (s setup) still() setup {
	s.start = nil
	return s
}

// with returns the setup with another variable.
func (s setup) with(name, value string) setup {
	s.env = slices.DeleteFunc(slices.Clone(s.env), func(p pair) bool { return p.name == name })
	s.env = append(s.env, pair{name, value})
	return s
}

func newBuild(z size, now time.Time) *build {
	return &build{id: newUUID(), size: z, status: buildWaiting, createdAt: now, updatedAt: now}
}

// active reports whether a build counts for the limit.
func (b *build) active() bool { return b.status == buildWaiting || b.status == buildRunning }

func (b *build) finishLocked(status buildStatus, now time.Time) {
	b.status, b.updatedAt, b.finishedAt = status, now, now
	b.cancel = nil
}

// failLocked ends a build that has not ended. An empty step is none.
func (b *build) failLocked(message string, step *string, now time.Time) {
	if !b.active() {
		return
	}
	if b.cancel != nil {
		b.cancel()
	}
	b.reason = &buildReason{Message: message, Step: step}
	b.finishLocked(buildFailed, now)
}

const cancelled = "build was cancelled"

// cancelLocked ends a build that runs or waits, at somebody's request.
func (b *build) cancelLocked(now time.Time) {
	step := ""
	b.failLocked(cancelled, &step, now)
}

// discardLocked gives up the image. It returns what is to be closed now.
func (b *build) discardLocked() []envd.Machine {
	b.discarded = true
	if b.holds > 0 || b.image == nil {
		return nil
	}
	image := b.image
	b.image = nil
	return []envd.Machine{image}
}

// release is called by who has used the image of a build and counted for it.
func (s *Server) release(b *build) {
	s.mu.Lock()
	b.holds--
	var images []envd.Machine
	if b.discarded {
		images = b.discardLocked()
	}
	s.mu.Unlock()
	s.control.closeImages(images...)
}

// maxBuildWait is how long a build may wait for its start.
const maxBuildWait = 40 * time.Minute

// The bounds of a build's log: of its lines, of a line in bytes, and of all of
// them together.
const (
	maxBuildLog      = 100_000
	maxBuildLogLine  = 16 << 10
	maxBuildLogBytes = 32 << 20
)

// buildLogEntry is a line of a build's log.
type buildLogEntry struct {
	Timestamp time.Time `json:"timestamp"`
	Message   string    `json:"message"`
	Level     string    `json:"level"`
	Step      string    `json:"step,omitempty"`
}

// buildLog is what a build has said.
type buildLog struct {
	mu      sync.Mutex
	entries []buildLogEntry
	bytes   int // of their messages
}

// add appends a line. The times of lines never go back.
func (l *buildLog) add(now time.Time, level, step, message string) {
	if len(message) > maxBuildLogLine {
		message = message[:maxBuildLogLine]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.entries); n >= maxBuildLog || l.bytes+len(message) > maxBuildLogBytes {
		return
	} else if n > 0 && now.Before(l.entries[n-1].Timestamp) {
		now = l.entries[n-1].Timestamp
	}
	l.bytes += len(message)
	l.entries = append(l.entries, buildLogEntry{now.UTC(), message, level, step})
}

// page returns the lines of a level and above, at most limit of those that come
// after offset others.
func (l *buildLog) page(level string, offset, limit int) []buildLogEntry {
	least := slices.Index(logLevels(), level)
	l.mu.Lock()
	defer l.mu.Unlock()
	page := make([]buildLogEntry, 0, min(limit, maxBuildPage))
	for _, e := range l.entries {
		if len(page) >= limit {
			break
		}
		if slices.Index(logLevels(), e.Level) < least {
			continue
		}
		if offset--; offset < 0 {
			page = append(page, e)
		}
	}
	return page
}

// logLevels are those of logs, the lowest first.
func logLevels() []string { return []string{"debug", "info", "warn", "error"} }
