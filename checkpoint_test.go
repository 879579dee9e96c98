package remote

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is kept of a run whose sandbox is gone is kept by the checkpoint, too:
// the death of the host that keeps it loses none of it.
func TestKeepAllTwice(t *testing.T) {
	ec := &ExecutionContext{SessionID: "s", LogsDir: t.TempDir()}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(ec.LogsDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const first = `{"event":"step_start","step_id":"a"}` + "\n"
	const second = `{"event":"step_complete","step_id":"a"}` + "\n"
	const answer = `{"step_id":"a","response":{"id":"req_1","result":{"step_id":"a","status":"success"}}}` + "\n"
	write(eventsFile, first+second+`{"event":"cleanup_start"}`+"\n")
	write(answersFile, answer+`{"step_id":"b","resp`)
	c := &checkpoint{Files: map[string]int64{eventsFile: int64(len(first))}, Seq: 1}
	for range 2 { // each host dies before it comes to more
		s, err := openSession(ec)
		if err != nil {
			t.Fatal(err)
		}
		answers, err := s.keepAll(c)
		if err == nil {
			err = s.useCheckpoint(c)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(answers.order, []string{"a"}) {
			t.Errorf("answers of the steps %v", answers.order)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{eventsFile: first + second, answersFile: answer} {
			got, err := os.ReadFile(filepath.Join(ec.LogsDir, name))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		if c.Seq != 2 || c.Files[answersFile] != int64(len(answer)) {
			t.Errorf("checkpoint: seq %d, files %v", c.Seq, c.Files)
		}
	}
}
