package connections

import (
	"errors"
	"fmt"
)

// Kinds of errors, for errors.Is.
var (
	// ErrReference is of a text that begins as a reference and is none.
	ErrReference = errors.New("invalid connection reference")
	// ErrFamily is of a step whose connection is another family's.
	ErrFamily = errors.New("connection of another family")
	// ErrNotConfigured is of a reference that a resolver knows nothing of:
	// there are no connections, not this family, not this alias, or no default.
	// Resolvers of other packages wrap it so that [First] goes on to the next.
	ErrNotConfigured = errors.New("connection is not configured")
)

// kindError has a text of the reference implementation, and a kind.
type kindError struct {
	kind error
	text string
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

func errorOf(kind error, format string, args ...any) error {
	return &kindError{kind, fmt.Sprintf(format, args...)}
}

// UnsetError is of a connection with a placeholder whose variable is not set,
// or empty.
type UnsetError struct {
	Variable  string
	Field     string    // the innermost, "password" or "hosts[1]"
	Reference Reference // with the alias as the file names it
}

func (e *UnsetError) Error() string {
	return fmt.Sprintf("Environment variable '%s' not set for %s in %s.%s", e.Variable, e.Field, e.Reference.Family, e.Reference.Alias)
}

// FileError is of a file that cannot be used: osiris_connections.yaml, or .env.
// It never quotes the file.
type FileError struct {
	Path   string // empty: it was given as bytes
	Line   int    // 0: not known
	Reason string
}

func (e *FileError) Error() string {
	text := "connections: "
	if e.Path != "" {
		text += e.Path + ": "
	}
	if e.Line > 0 {
		text += fmt.Sprintf("line %d: ", e.Line)
	}
	return text + e.Reason
}
