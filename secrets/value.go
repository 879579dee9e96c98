package secrets

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"

	"encoding/json"
)

// Value holds a secret. Whatever prints, logs or encodes it, by itself or in an
// exported or unexported field, a map or behind a pointer, gives [Masked] or
// the address of a function, never the secret. [Value.Reveal] is the one way to
// it; call it where the secret is used, and keep the result nowhere.
//
// The zero Value is the empty secret. Values are compared by [Value.Equal]; ==
// does not compile.
type Value struct {
	// A closure, since fmt and other users of reflection do not call methods of
	// values in unexported fields, but print what they find there, also behind
	// pointers.
	reveal func() string
}

var errValue = errors.New("secrets: a secret value has to be a string")

// New returns the secret s.
func New(s string) Value {
	if s == "" {
		return Value{}
	}
	return Value{reveal: func() string { return s }}
}

// Reveal returns the secret itself.
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}

// IsZero reports whether the secret is empty.
func (v Value) IsZero() bool { return v.reveal == nil }

// Equal reports whether both are the same secret.
func (v Value) Equal(o Value) bool { return v.Reveal() == o.Reveal() }

// String gives [Masked].
func (v Value) String() string { return Masked }

// GoString gives [Masked], quoted.
func (v Value) GoString() string { return strconv.Quote(Masked) }

// Format gives [Masked] for every verb; width and flags are ignored.
func (v Value) Format(f fmt.State, verb rune) {
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		_, _ = io.WriteString(f, v.GoString())
		return
	}
	_, _ = io.WriteString(f, Masked)
}

// LogValue gives [Masked].
func (v Value) LogValue() slog.Value { return slog.StringValue(Masked) }

// MarshalJSON gives [Masked].
func (v Value) MarshalJSON() ([]byte, error) { return []byte(v.GoString()), nil }

// MarshalText gives [Masked]; XML and YAML use it.
func (v Value) MarshalText() ([]byte, error) { return []byte(Masked), nil }

// UnmarshalJSON takes a JSON string in; null leaves the value as it is.
func (v *Value) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var s string
	if json.Unmarshal(b, &s) != nil { // its error may quote the value
		return errValue
	}
	*v = New(s)
	return nil
}

// UnmarshalText takes b in as it is.
func (v *Value) UnmarshalText(b []byte) error {
	*v = New(string(b))
	return nil
}
