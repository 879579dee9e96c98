package e2b

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// BuildLog is a line of what a build says.
type BuildLog struct {
	Time    time.Time `json:"timestamp"`
	Level   string    `json:"level"` // debug, info, warn or error
	Message string    `json:"message"`
	Step    string    `json:"step,omitempty"` // "base", "finalize", or the number of the step, from 1; empty for what is about none
}

// BuildError is a build that failed. It matches [ErrBuild], and
// [ErrBuildCanceled] where another build has taken its place.
type BuildError struct {
	TemplateID string
	BuildID    string
	Step       string     // that failed, as in BuildLog; may be empty
	Message    string     // E2B's own words
	Log        []BuildLog // the last lines of the step, as they came
}

const (
	maxErrorLines = 8   // of a build's log in its error
	maxLineBytes  = 300 // of each
)

func (e *BuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "build of template %s failed", clip(e.TemplateID))
	if e.Step != "" {
		fmt.Fprintf(&b, " at step %s", clip(e.Step))
	}
	if e.Message != "" {
		b.WriteString(": " + clip(e.Message))
	}
	if lines := e.Log[max(0, len(e.Log)-maxErrorLines):]; len(lines) > 0 {
		b.WriteString("; its last lines:")
		for _, l := range lines {
			line := clip(l.Message)
			if len(line) > maxLineBytes {
				line = strings.ToValidUTF8(line[:maxLineBytes], "") + "..."
			}
			b.WriteString(" | " + line)
		}
	}
	return b.String()
}

// Is reports whether target is [ErrBuild] or what it is about.
func (e *BuildError) Is(target error) bool {
	return target == ErrBuild || target == ErrBuildCanceled && e.canceled()
}

// canceled goes by the server's words, since it says it in no other way
// (infra: packages/api/internal/template/register_build.go,
// packages/orchestrator/pkg/template/build/builderrors/errors.go).
func (e *BuildError) canceled() bool {
	return strings.Contains(e.Message, "superseded") || strings.Contains(e.Message, "build was cancelled")
}

const (
	pollFirst = 200 * time.Millisecond // between two looks at a build, as in the official SDKs
	pollMost  = time.Second

	// maxLostPolls is how often in a row a build may not be seen: E2B restarts,
	// and the build goes on.
	maxLostPolls = 5

	// lastPages is how many pages of a log are read after the end of a build.
	lastPages = 1000

	keptLines     = 200     // of a build's log, to be found there when it fails
	maxErrorLog   = 50      // of them in its error
	maxKeptBytes  = 4 << 10 // of each
	maxLogEntries = 1000    // of a page; E2B gives a hundred
)

// buildAnswer is what E2B says of a build.
type buildAnswer struct {
	Status BuildStatus       `json:"status"`
	Log    bounded[BuildLog] `json:"logEntries"`
	Reason struct {
		Message string            `json:"message"`
		Step    string            `json:"step"`
		Log     bounded[BuildLog] `json:"logEntries"`
	} `json:"reason"`
}

// buildStatus looks at a build, and at its log from an offset. There is no
// other way to the status of one build.
//
// Source: infra, packages/api/internal/handlers/template_build_status.go.
func (c *Client) buildStatus(ctx context.Context, op, templateID, buildID string, offset int) (*buildAnswer, error) {
	a := &buildAnswer{}
	a.Log.most, a.Reason.Log.most = maxLogEntries, maxLogEntries
	_, err := c.send(ctx, apiCall{
		op: op, method: http.MethodGet, path: "/templates/" + templateID + "/builds/" + buildID + "/status",
		query: url.Values{"logsOffset": {strconv.Itoa(offset)}, "limit": {strconv.Itoa(pageSize)}},
		out:   a, safe: true,
	})
	if e := (*APIError)(nil); errors.As(err, &e) && e.Status == http.StatusBadRequest && strings.Contains(e.Message, "not found") {
		e.about = ErrNotFound // for which E2B has another status everywhere else
	}
	if err == nil && a.Status == "" {
		err = fmt.Errorf("%s: the answer has no status", op)
	}
	return a, err
}

// instead is what a build is that does not wait.
func (a *buildAnswer) instead(templateID, buildID string) error {
	if a.Status == BuildFailed {
		return a.failure(templateID, buildID, nil)
	}
	return fmt.Errorf("build %s of template %s is %s", buildID, templateID, clip(string(a.Status)))
}

// failure is the error of a build, with the lines of its log that are about
// what has failed.
func (a *buildAnswer) failure(templateID, buildID string, log []BuildLog) error {
	r := &a.Reason
	e := &BuildError{TemplateID: templateID, BuildID: buildID, Step: r.Step, Message: r.Message}
	own := slices.DeleteFunc(slices.Clone(log), func(l BuildLog) bool { return l.Step != r.Step })
	switch {
	case len(own) > 0:
		e.Log = own
	case len(r.Log.items) > 0:
		e.Log = r.Log.items
	default:
		e.Log = slices.Clone(log)
	}
	e.Log = slices.Delete(e.Log, 0, max(0, len(e.Log)-maxErrorLog))
	return e
}

// buildWait is a wait for a build.
type buildWait struct {
	onLog func(BuildLog)
	seen  int        // lines
	last  []BuildLog // of them
}

func (w *buildWait) take(page []BuildLog) {
	w.seen += len(page)
	for _, l := range page {
		if w.onLog != nil {
			w.onLog(l)
		}
		if len(l.Message) > maxKeptBytes {
			l.Message = strings.ToValidUTF8(l.Message[:maxKeptBytes], "") + "..."
		}
		w.last = append(w.last, l)
	}
	w.last = slices.Delete(w.last, 0, max(0, len(w.last)-keptLines))
}

func (c *Client) waitBuild(ctx context.Context, templateID, buildID string, onLog func(BuildLog)) error {
	const op = "wait for build"
	if !isID(templateID) || !isID(buildID) {
		return fmt.Errorf("%s: %w: %q and %q are not the IDs of a template and a build", op, ErrInvalid, clip(templateID), clip(buildID))
	}
	w := &buildWait{onLog: onLog}
	wait, lost := pollFirst, 0
	for {
		a, err := c.buildStatus(ctx, op, templateID, buildID, w.seen)
		switch {
		case err == nil && a.Status.ended():
			return c.endBuild(ctx, op, templateID, buildID, a, w)
		case err == nil:
			w.take(a.Log.items)
			lost = 0
		case ctx.Err() != nil || lost == maxLostPolls || !isPassingLook(err):
			return err
		default:
			lost++
		}
		if err == nil && len(a.Log.items) >= pageSize {
			continue // there is more
		}
		if !sleep(ctx, wait) {
			return fmt.Errorf("%s: %w", op, context.Cause(ctx))
		}
		wait = min(wait*3/2, pollMost)
	}
}

// isPassingLook reports whether a look at a build that failed says nothing
// about the next. The build's log comes from another service, whose faults are
// E2B's status 500.
func isPassingLook(err error) bool {
	e := (*APIError)(nil)
	switch {
	case errors.As(err, new(*finalError)):
		return false
	case errors.As(err, &e):
		return e.Status == http.StatusInternalServerError || isPassing(e)
	}
	return errors.As(err, new(*sendError))
}

// endBuild reads the rest of the log of a build that has ended: what came with
// its end need not be all. What cannot be read changes nothing about the build.
func (c *Client) endBuild(ctx context.Context, op, templateID, buildID string, a *buildAnswer, w *buildWait) error {
	page := a.Log.items
	for range lastPages {
		w.take(page)
		if len(page) == 0 {
			break
		}
		next, err := c.buildStatus(ctx, op, templateID, buildID, w.seen)
		if err != nil {
			break
		}
		page = next.Log.items
	}
	if a.Status == BuildFailed {
		return a.failure(templateID, buildID, w.last)
	}
	return nil
}

// notWaiting says whether it is about a build that was to be started and does
// not wait.
func (e *APIError) notWaiting() bool {
	return e.Status == http.StatusBadRequest && strings.Contains(e.Message, "not in waiting state")
}
