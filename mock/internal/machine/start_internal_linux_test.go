package machine

import (
	"io"
	"os"
	"testing"
)

// A process that has ended already has left its number, and a complaint of the
// tools behind it.
func TestReadNumber(t *testing.T) {
	for said, want := range map[string]struct {
		number int
		rest   string
		err    string
	}{
		"22\n": {number: 22},
		"22\nunshare: sigprocmask unblock failed: Invalid argument\n": {number: 22, rest: "unshare: sigprocmask unblock failed: Invalid argument\n"},
		"nsenter: no such namespace\n":                                {err: "nsenter: no such namespace"},
		"cut":                                                         {err: "cut"},
		"":                                                            {err: io.EOF.Error()},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(said); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		number, err := readNumber(r)
		if number != want.number || (err == nil) != (want.err == "") || err != nil && err.Error() != want.err {
			t.Errorf("%q: %d, %v", said, number, err)
		}
		rest, err := io.ReadAll(r)
		if err != nil || string(rest) != want.rest {
			t.Errorf("%q: %q is left, %v", said, rest, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
