package e2b

import (
	"fmt"
	"strings"
	"time"
)

// BuildLog is a line of what a build says.
type BuildLog struct {
	Time    time.Time `json:"timestamp"`
	Level   string    `json:"level"` // info, warn or error
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
