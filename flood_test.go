package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

func TestLineTally(t *testing.T) {
	limit := lineLimit{lines: 3, bytes: 100, essential: 2}
	for _, test := range []struct {
		name  string
		lines []int // bytes of each; negative is one that matters
		kept  []bool
		want  lineTally
	}{
		{"up to the limit", []int{50, 50}, []bool{true, true}, lineTally{Lines: 2, Bytes: 100}},
		{"too many lines", []int{1, 1, 1, 1, 1}, []bool{true, true, true, false, false}, lineTally{Lines: 3, Bytes: 3, DroppedLines: 2, DroppedBytes: 2}},
		{"too many bytes, and nothing after", []int{50, 51, 1}, []bool{true, false, false}, lineTally{Lines: 1, Bytes: 50, DroppedLines: 2, DroppedBytes: 52}},
		{"what matters", []int{101, -60, -60, -60, -70_000}, []bool{false, true, true, false, false},
			lineTally{Essential: 2, DroppedLines: 3, DroppedBytes: 101 + 60 + 70_000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tally lineTally
			var kept []bool
			for _, n := range test.lines {
				kept = append(kept, tally.add(limit, 1, int64(max(n, -n)), n < 0))
			}
			if diff := cmp.Diff(test.kept, kept); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.want, tally); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	var none lineTally
	if !none.add(lineLimit{}, 1<<40, 1<<60, false) {
		t.Error("no limit is one")
	}
}

// A host that dies at any line, and one that goes on from its checkpoint, leave
// the same files, sequence numbers and counts as one that lives: lines that are
// dropped are no exception.
func TestFloodAcrossHosts(t *testing.T) {
	const lines, most = 30, 20
	line := func(i int) []byte { return fmt.Appendf(nil, `{"session":"s","event":"e","step_id":"a","n":%d}`, i) }
	open := func(t *testing.T, dir string) *session {
		s, err := openSession(&ExecutionContext{SessionID: "s", LogsDir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s.limit = lineLimit{lines: most}
		return s
	}
	for saved := range lines {
		for died := saved; died < lines; died += 3 {
			dir := t.TempDir()
			s := open(t, dir)
			if err := s.useCheckpoint(&checkpoint{SessionID: "s", Sandboxes: []sandboxRecord{{}}}); err != nil {
				t.Fatal(err)
			}
			s.marking = true
			for i := range died {
				if i == saved && !s.reached(int64(i)) {
					t.Fatal("not saved")
				}
				s.workerEvent(line(i), i == 25)
			}
			if saved == died && !s.reached(int64(saved)) {
				t.Fatal("not saved")
			}
			if err := s.close(); err != nil { // with all that was in its buffers
				t.Fatal(err)
			}
			var c checkpoint
			if err := readJSON(t, filepath.Join(dir, checkpointFile), &c); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			if _, err := s.rewind(&c); err != nil {
				t.Fatal(err)
			}
			for i := int(c.last().Cursor); i < lines; i++ {
				s.workerEvent(line(i), i == 25)
			}
			if s.seq != most || s.tally != (lineTally{Lines: most, Bytes: s.tally.Bytes, DroppedLines: lines - most, DroppedBytes: s.tally.DroppedBytes}) {
				t.Fatalf("saved at %d, died at %d: %d items, %+v", saved, died, s.seq, s.tally)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(dir, eventsFile))
			if err != nil {
				t.Fatal(err)
			}
			var want strings.Builder
			for i := range most {
				want.Write(append(line(i), '\n'))
			}
			if diff := cmp.Diff(want.String(), string(b)); diff != "" {
				t.Fatalf("saved at %d, died at %d (-want +got):\n%s", saved, died, diff)
			}
			log, err := os.ReadFile(filepath.Join(dir, logFile))
			if n := strings.Count(string(log), "is dropped"); n != 1 || err != nil {
				t.Fatalf("saved at %d, died at %d: the log says %d times that lines are dropped, %v", saved, died, n, err)
			}
		}
	}
}

// Lines that wait for a sink take no more memory than they may.
func TestSinkBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		ec := &ExecutionContext{OnEvent: func(context.Context, Event) error {
			<-hold
			return nil
		}}
		d := startDelivery(t.Context(), ec, func(error) {})
		line := append([]byte(`{"event":"x","y":"`), strings.Repeat("x", 1<<20-20)...)
		line = append(line, `"}`...)
		sent := make(chan int, 100)
		go func() {
			for i := range 100 {
				d.send(item{seq: int64(i), line: line})
				sent <- i
			}
			close(sent)
		}()
		synctest.Wait()
		if n, most := len(sent), sinkBytes/len(line)+1; n != most { // one is with the sink
			t.Errorf("%d lines of 1 MiB wait for the sink, want %d", n, most)
		}
		close(hold)
		for range sent {
		}
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestLogLine(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := string(logLine(rpc.Log{Time: at, Level: "nonsense", Message: "a\nb\x1b[2J\u202e", StepID: "s=\"1\" level=ERROR", Attrs: map[string]any{
		"msg": "forged", "level": "ERROR", "step": "x", "a b=": "c\rd", "n": 1.5,
	}}, nil))
	const want = `time=2026-01-02T03:04:05.000Z level=INFO msg="a\nb\x1b[2J\u202e" step="s=\"1\" level=ERROR" ` +
		`"a b="="c\rd" attr.level=ERROR attr.msg=forged n=1.5 attr.step=x`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// The head of a line is what package json reads, but for keys in other letters and
// those that stand twice.
func TestParseHead(t *testing.T) {
	for _, test := range []struct {
		line, kind string
		want       []string // ts, session, name, step_id, unit; nil: an error
	}{
		{`{}`, eventKey, []string{"", "", "", "", ""}},
		{`{"ts":"t","session":"s","event":"e","step_id":"a","x":1}`, eventKey, []string{"t", "s", "e", "a", ""}},
		{` { "session" : "s" , "event":"e"} `[1:], eventKey, []string{"", "s", "e", "", ""}},
		{`{"x":{"event":"no","y":[{"session":"no"}]},"event":"e","z":"}\",{\"event\":\"no"}`, eventKey, []string{"", "", "e", "", ""}},
		{`{"\u0065vent":"\u0065\n"}`, eventKey, []string{"", "", "e\n", "", ""}},
		{`{"EVENT":"no","Session":1,"event":"e"}`, eventKey, []string{"", "", "e", "", ""}},
		{`{"metric":"m","value":1.5,"unit":"rows","tags":{"step":"a"}}`, metricKey, []string{"", "", "m", "", "rows"}},
		{`{"metric":"m","value":null}`, metricKey, []string{"", "", "m", "", ""}},
		{`{"event":"e","metric":7,"value":"v","unit":[],"value":2}`, eventKey, []string{"", "", "e", "", ""}},
		{`{"event":"e","event":"f"}`, eventKey, nil},
		{`{"event":"e","e\u0076ent":"f"}`, eventKey, nil},
		{`{"event":1}`, eventKey, nil},
		{`{"step_id":null}`, eventKey, nil},
		{`{"metric":"m","value":"1"}`, metricKey, nil},
		{`{"metric":"m","value":1e999}`, metricKey, nil},
		{`{"metric":"m","value":1,"value":2}`, metricKey, nil},
	} {
		h, err := parseHead([]byte(test.line), test.kind)
		if (err != nil) != (test.want == nil) {
			t.Errorf("%s: error %v", test.line, err)
			continue
		}
		got := []string{string(h.ts), string(h.session), string(h.name), string(h.stepID), string(h.unit)}
		if diff := cmp.Diff(test.want, got); diff != "" && test.want != nil {
			t.Errorf("%s: -want +got:\n%s", test.line, diff)
		}
	}
}

func readJSON(t *testing.T, name string, v any) error {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// FuzzParseHead holds it to package json, which reads the line into a map.
func FuzzParseHead(f *testing.F) {
	f.Add([]byte(`{"ts":"t","session":"s","event":"e","step_id":"a","x":{"y":["\"",1]}}`))
	f.Add([]byte(`{"a":"\\","event":"\u00e9"} `))
	f.Fuzz(func(t *testing.T, line []byte) {
		var want map[string]any
		if json.Unmarshal(line, &want) != nil || want == nil || line[0] != '{' {
			return
		}
		h, err := parseHead(line, eventKey)
		if err != nil {
			return
		}
		for key, got := range map[string][]byte{"ts": h.ts, "session": h.session, "event": h.name, "step_id": h.stepID} {
			text, _ := want[key].(string)
			if strings.ToValidUTF8(string(got), "\ufffd") != strings.ToValidUTF8(text, "\ufffd") && utf8.Valid(line) {
				t.Fatalf("%q: %s is %q, package json has %q", line, key, got, text)
			}
			if _, there := want[key]; there && got == nil {
				t.Fatalf("%q: %s is missed", line, key)
			}
		}
	})
}
