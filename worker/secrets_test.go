package worker

import (
	"slices"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// What is printed is logged at the end of its line.
func TestPrintsAreNotHeldBack(t *testing.T) {
	var got []string
	s := &printStream{lines: lineSplitter{emit: func(line string) { got = append(got, line) }}}
	s.redact = secrets.NewRedactor("kn4ry-printed").Writer(&s.lines)
	for _, part := range []string{"one\ntwo ", "kn4ry-", "printed\n", "three"} {
		s.add([]byte(part))
	}
	if want := []string{"one", "two ***"}; !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
	if s.end(); len(got) != 3 || got[2] != "three" {
		t.Errorf("logged %q", got)
	}
}

// A supervisor that is slow to hear what to redact, and values that take their
// time, do not hold up what else the worker does, as its heartbeats.
func TestSecretsHoldUpNothing(t *testing.T) {
	asked, answer := make(chan []string), make(chan struct{})
	w, err := New(Options{Dir: t.TempDir(), share: func(values []string) error {
		asked <- values
		<-answer
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.journal.Close(nil)
	parts, err := rpc.SealSecrets(w.known.key.Public(), "", &rpc.Secrets{Env: map[string]string{"A": "b"}, Redact: []string{"kn4ry-value"}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- w.secrets(&parts[0]) }()
	if values := <-asked; len(values) != 1 {
		t.Errorf("the supervisor is told %q", values)
	}
	if !w.mu.TryLock() {
		t.Error("the worker is held up")
	} else {
		if w.known.env["A"] != "" {
			t.Error("a value is there before all know that it is secret")
		}
		w.mu.Unlock()
	}
	close(answer)
	if err := <-done; err != nil || w.known.env["A"] != "b" {
		t.Error(err, w.known.env)
	}
}
