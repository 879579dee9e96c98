package secrets

// Stands in until the value type is there.

import "fmt"

const Redacted = "***"

type Value struct{ reveal func() string }

func New(s string) Value { return Value{func() string { return s }} }
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}
func (v Value) IsZero() bool                 { return v.Reveal() == "" }
func (v Value) Equal(o Value) bool           { return v.Reveal() == o.Reveal() }
func (v Value) String() string               { return Masked }
func (v Value) Format(f fmt.State, _ rune)   { fmt.Fprint(f, Masked) }
func (v Value) MarshalText() ([]byte, error) { return []byte(Masked), nil }
func Sensitive(key string) bool              { return sensitive(key) }
