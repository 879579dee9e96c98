package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// hostile is a worker program that means harm. It speaks the protocol by hand.
type hostile struct {
	fs     worker.FS
	dir    string
	stdout io.Writer
	stderr io.Writer

	journal worker.File
	at      int64
	session string
	outer   string // a directory of the host, from the step's config
}

// attack is what a hostile worker does, and what has to come of it.
type attack struct {
	name    string
	hello   func(h *hostile, r *rpc.HandshakeResult)
	step    func(h *hostile, id string) // with the id of the request; the answer is a success of step a
	silent  bool                        // there is no answer
	result  string                      // or this one
	sealed  func(h *hostile) *rpc.SealResult
	printed func(h *hostile) // by the command seal; what is sealed by request is then refused
	parting func(h *hostile) // before the close frame
	last    func(h *hostile) // after it

	want  []error // of the run; none: it succeeds
	kinds string  // of adapters it makes sense on; empty: all
	cfg   func(*remote.Config)
	check func(t *testing.T, ec *remote.ExecutionContext, result *remote.ExecResult, got *remote.CollectedArtifacts, err error)
}

func artifact(name, content string) rpc.Artifact {
	sum := sha256.Sum256([]byte(content))
	return rpc.Artifact{Path: name, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:]), StepID: "a"}
}

func only(artifacts ...rpc.Artifact) func(*hostile) *rpc.SealResult {
	return func(*hostile) *rpc.SealResult { return &rpc.SealResult{Artifacts: artifacts} }
}

func data(typ rpc.FrameType, data string) func(*hostile, string) {
	return func(h *hostile, _ string) {
		h.frame(typ, `{"type":"`+typ.String()+`","data":`+strings.ReplaceAll(data, "SESSION", h.session)+`}`)
	}
}

const evil = "\x1b[2J\x1b]0;owned\a\r\u009b31m\u202egnp.exe\x7f\nFAKE level=ERROR line"

// attacks are all there are; full asks for as many files and events as can be
// meant seriously.
func attacks(full bool) []attack {
	count := func(reduced, all int) int {
		if full {
			return all
		}
		return reduced
	}
	const head = `{"ts":"2026-01-02T03:04:05.000006Z","session":"SESSION"`
	protocol := []error{remote.ErrProtocol}
	message := []error{remote.ErrProtocol, rpc.ErrMessage}
	lost := []error{remote.ErrJournalLost}
	notCollected := []error{remote.ErrCollect}
	notBelieved := []error{remote.ErrCollect, remote.ErrProtocol}
	deep := strings.Repeat("[", 500_000) + strings.Repeat("]", 500_000)
	return []attack{
		{name: "nothing"},

		// Paths.
		{name: "parent", sealed: only(artifact("../../evil", "x")), want: protocol},
		{name: "parent_within", sealed: only(artifact("a/../../evil", "x")), want: protocol},
		{name: "absolute", sealed: func(h *hostile) *rpc.SealResult { return only(artifact(h.outer+"/evil", "x"))(h) }, want: protocol},
		{name: "parent_printed", printed: func(h *hostile) { h.print(only(artifact("../evil", "x"))(h)) }, want: notBelieved},
		{name: "system", sealed: only(artifact("_system/run_card.json", "{}")), want: protocol},
		{name: "twice_listed", sealed: only(artifact("a/f", "x"), artifact("a/f", "y")), want: protocol},
		{name: "file_as_directory", sealed: only(artifact("a/f", "x"), artifact("a/f/g", "y")), want: protocol},
		{name: "outside_of_steps", sealed: only(artifact("status.json", "{}"), artifact("b/x", "")), check: skipped(2)},
		{name: "names", sealed: only(artifact("a/\x1b[2J", ""), artifact("a/\u202e", ""), artifact("a/x\ny", ""), artifact("a/"+strings.Repeat("n", 256), ""),
			artifact("a"+strings.Repeat("/d", 100), "")), check: skipped(5)},

		// Files that are not what was announced.
		{name: "wrong_sum", step: func(h *hostile, _ string) { h.write("a/f", "right") }, printed: func(h *hostile) { h.print(only(artifact("a/f", "wrong"))(h)) }, want: notCollected},
		{name: "grown", step: func(h *hostile, _ string) { h.write("a/f", strings.Repeat("x", 1<<20)) }, printed: func(h *hostile) { h.print(only(artifact("a/f", "x"))(h)) }, want: notCollected},
		{name: "missing", sealed: only(artifact("a/f", "x")), want: notCollected},
		{name: "swapped", step: func(h *hostile, _ string) { h.write("a/f", "x") }, parting: func(h *hostile) {
			_ = h.fs.RemoveAll(h.path("a/f"))
			h.write("a/f", "y")
		}, check: func(t *testing.T, _ *remote.ExecutionContext, _ *remote.ExecResult, got *remote.CollectedArtifacts, _ error) {
			// It is listed again, as it is then.
			if len(got.Artifacts) == 0 || got.Artifacts[0].Path != "a/f" || got.Artifacts[0].SHA256 != sha256Of([]byte("y")) {
				t.Errorf("%+v", got.Artifacts)
			}
		}},
		{name: "link", kinds: "local", parting: func(h *hostile) {
			_ = h.fs.RemoveAll(h.path("a/f"))
			_ = os.Symlink(filepath.Join(h.outer, "secret"), h.path("a/f"))
		}, sealed: only(artifact("a/f", "of the host")), want: notBelieved},
		{name: "link_above", kinds: "local", parting: func(h *hostile) {
			_ = h.fs.RemoveAll(h.path("a"))
			_ = os.Symlink(h.outer, h.path("a"))
		}, sealed: only(artifact("a/secret", "of the host")), want: notCollected},
		{name: "huge_size", sealed: only(rpc.Artifact{Path: "a/f", Size: 1<<63 - 1, SHA256: "0"}), check: skipped(1)},
		{name: "many_files", step: func(h *hostile, id string) {
			for i := range count(1500, 1_000_000) {
				if i%20_000 == 0 { // else it counts as frozen
					data(rpc.FrameHeartbeat, `{}`)(h, id)
				}
				h.write(fmt.Sprintf("a/%d/%d", i/1000, i), "")
			}
		}, cfg: func(c *remote.Config) { c.MaxArtifacts, c.Timeout = count(500, 20_000), time.Hour }, check: func(t *testing.T, _ *remote.ExecutionContext, _ *remote.ExecResult, got *remote.CollectedArtifacts, _ error) {
			most, all := count(500, 20_000), count(1500, 1_000_000)
			if n := len(got.Artifacts); n > most || n < most-count(100, 1000) || n+len(got.Skipped)+got.SkippedMore != all || len(got.Skipped) > 100_000 {
				t.Errorf("%d artifacts, %d skipped by name, %d without", n, len(got.Skipped), got.SkippedMore)
			}
		}},
		{name: "many_bytes", step: func(h *hostile, _ string) {
			for _, name := range []string{"a/1", "a/2", "a/3"} {
				h.write(name, strings.Repeat("x", 1000))
			}
		}, cfg: func(c *remote.Config) { c.MaxArtifactBytes = 2500 }, check: skipped(1)},

		// Lists without end.
		{name: "endless_entry", printed: func(h *hostile) {
			io.WriteString(h.stdout, `{"artifacts":["`)
			h.pour("x")
		}, want: notBelieved},
		{name: "endless_key", printed: func(h *hostile) {
			io.WriteString(h.stdout, `{"`)
			h.pour("x")
		}, want: notBelieved},
		{name: "endless_space", printed: func(h *hostile) { h.pour(" ") }, want: notBelieved},
		{name: "endless_brackets", printed: func(h *hostile) { h.pour("[") }, want: notBelieved},
		{name: "endless_unknown", printed: func(h *hostile) {
			io.WriteString(h.stdout, `{"x":[`)
			h.pour("0,")
		}, want: notBelieved},
		{name: "half_a_list", printed: func(h *hostile) { io.WriteString(h.stdout, `{"artifacts":[`) }, want: notBelieved},
		{name: "deep_list", printed: func(h *hostile) { io.WriteString(h.stdout, `{"artifacts":[`+deep+`]}`) }, want: notBelieved},
		{name: "million_skipped", printed: func(h *hostile) {
			io.WriteString(h.stdout, `{"artifacts":[],"skipped":[{}`)
			for range count(100, 1000) {
				io.WriteString(h.stdout, strings.Repeat(`,{"path":"x","reason":"y"}`, 1000))
			}
			io.WriteString(h.stdout, "]}")
		}, check: skipped(count(100, 1000)*1000 + 1)},

		// Frames.
		{name: "frame_4gib", step: func(h *hostile, _ string) { h.header(1<<32 - 1) }, silent: true, want: lost},
		{name: "frame_2gib", step: func(h *hostile, _ string) { h.header(1<<31 - 1) }, silent: true, want: lost},
		{name: "frame_above", step: func(h *hostile, _ string) { h.header(rpc.MaxPayload + 1) }, silent: true, want: lost},
		{name: "frame_sum", step: func(h *hostile, _ string) {
			f := rpc.AppendFrame(nil, rpc.FrameEvent, h.at, []byte("{}"))
			f[20]++
			h.raw(f)
		}, silent: true, want: lost},
		{name: "frame_offset", step: func(h *hostile, _ string) { h.raw(rpc.AppendFrame(nil, rpc.FrameEvent, h.at+1, []byte("{}"))) }, silent: true, want: lost},
		{name: "no_frame", step: func(h *hostile, _ string) { h.raw(bytes.Repeat([]byte("x"), 1<<20)) }, silent: true, want: lost},
		{name: "journal_pipe", kinds: "local", step: func(h *hostile, _ string) {
			const next = "00000000000000000000.journal"
			_ = h.fs.RemoveAll(filepath.Join(h.dir, "journal"))
			_ = h.fs.MkdirAll(filepath.Join(h.dir, "journal"))
			for _, name := range []string{"journal/" + next, "tail", worker.DeathFile, worker.ProcessesFile} {
				_ = h.fs.RemoveAll(filepath.Join(h.dir, name))
				_ = mkfifo(filepath.Join(h.dir, name))
			}
			os.Exit(1)
		}, silent: true, want: lost},
		{name: "pipe", kinds: "local", parting: func(h *hostile) {
			_ = h.fs.RemoveAll(h.path("a/f"))
			_ = mkfifo(h.path("a/f"))
		}, sealed: only(artifact("a/f", "x")), want: notBelieved},
		{name: "frame_unknown", step: func(h *hostile, _ string) { h.frame(99, "{}") }, want: message},
		{name: "frame_to_worker", step: func(h *hostile, _ string) { h.frame(rpc.FrameAck, `{"offset":9223372036854775807}`) }, want: message},
		{name: "arrow_rows", step: func(h *hostile, _ string) {
			for range 100 { // the host has asked for none
				h.frame(rpc.FrameArrow, "\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f"+strings.Repeat("\xff", 1<<19))
			}
		}},

		// Messages.
		{name: "deep_event", step: data(rpc.FrameEvent, `{"x":`+deep+`}`), want: message},
		{name: "deep_result", result: deep, want: protocol},
		{name: "no_utf8", step: data(rpc.FrameEvent, head+`,"event":"`+"\xff"+`","step_id":"a"}`), want: message},
		{name: "huge_number", step: data(rpc.FrameMetric, head+`,"metric":"m","value":1e999}`), want: protocol},
		{name: "huge_metric", result: `{"step_id":"a","status":"success","metrics":{"rows_read":1e999}}`, want: protocol},
		{name: "largest_metric", result: `{"step_id":"a","status":"success","metrics":{"rows_read":1.7e308,"rows_written":1.7e308},"duration_ms":-1e308,"rows_in":-9223372036854775808}`},
		{name: "heartbeat_numbers", step: data(rpc.FrameHeartbeat, `{"rss_bytes":-9223372036854775808,"cpu_seconds":1e308,"journal":-1,"epoch":-9223372036854775808}`)},
		{name: "heartbeat_overflow", step: data(rpc.FrameHeartbeat, `{"rss_bytes":9223372036854775808}`), want: protocol},
		{name: "heartbeat_steps", step: data(rpc.FrameHeartbeat, `{"open_steps":[`+strings.Repeat(`"",`, count(100_000, 300_000))+`""]}`)},
		{name: "another_step", result: `{"step_id":"b","status":"success"}`, want: protocol},
		{name: "no_success", result: `{"step_id":"a","status":"maybe"}`, want: protocol},
		{name: "not_asked", step: func(h *hostile, _ string) { h.answer("req_999", `{}`) }, want: protocol},
		{name: "no_request", step: func(h *hostile, _ string) { h.answer("req_-1", `{}`) }, want: message},
		{name: "other_host", kinds: "local", step: func(h *hostile, _ string) { h.answer(rpc.RequestID(rpc.FirstRequest(9)), `{}`) }, want: protocol},
		{name: "other_host_taken", kinds: "embedded", step: func(h *hostile, _ string) { h.answer(rpc.RequestID(rpc.FirstRequest(9)), `{}`) }, want: []error{remote.ErrOwnershipLost}},
		{name: "answer_twice", step: func(h *hostile, id string) {
			for range 1000 {
				h.answer(id, `{"step_id":"a","status":"success"}`)
			}
		}},
		{name: "absurd_lists", hello: func(_ *hostile, r *rpc.HandshakeResult) {
			r.Drivers, r.CPUs, r.PID = make([]string, count(100_000, 300_000)), -1, 1<<62
			r.OS = strings.Repeat(evil, 1000)
		}, result: `{"step_id":"a","status":"success","outputs":{"df":{"rows":-1,"columns":[` + strings.Repeat(`"",`, count(100_000, 300_000)) + `""]}}}`},
		{name: "absurd_metrics", result: `{"step_id":"a","status":"success","metrics":{"m0":0` + manyMembers(count(20_000, 60_000)) + `}}`},

		// Lines that are not its own.
		{name: "run_complete", step: data(rpc.FrameEvent, head+`,"event":"run_complete","pipeline_id":"x"}`), want: protocol},
		{name: "run_error_escaped", step: data(rpc.FrameEvent, head+`,"event":"run_\u0065rror"}`), want: protocol},
		{name: "run_metric", step: data(rpc.FrameMetric, head+`,"metric":"execution_duration","value":0}`), want: protocol},
		{name: "named_twice", step: data(rpc.FrameEvent, head+`,"event":"x","step_id":"a","event":"run_complete"}`), want: protocol},
		{name: "named_twice_escaped", step: data(rpc.FrameEvent, head+`,"event":"x","step_id":"a","s\u0074ep_id":""}`), want: protocol},
		{name: "other_session", step: data(rpc.FrameEvent, `{"ts":"","session":"x","event":"x","step_id":"a"}`), want: protocol},
		{name: "no_session", step: data(rpc.FrameEvent, `{"event":"x","step_id":"a"}`), want: protocol},
		{name: "other_step", step: data(rpc.FrameEvent, head+`,"event":"x","step_id":"../b"}`), want: protocol},
		{name: "of_the_step", step: data(rpc.FrameEvent, head+`,"event":"run_complete","step_id":"a","EVENT":"run_error","Step_ID":""}`)},
		{name: "old_times", step: data(rpc.FrameEvent, `{"ts":"9999-99-99T99:99:99.999999Z","session":"SESSION","event":"x","step_id":"a"}`)},

		// Floods.
		{name: "events", step: func(h *hostile, _ string) { h.flood(count(15_000, 10_000_000)) },
			cfg:   func(c *remote.Config) { c.MaxEvents, c.Timeout = count(5000, 5_000_000), time.Hour },
			check: dropped(count(15_000, 10_000_000) - count(5000, 5_000_000))},
		{name: "event_bytes", step: func(h *hostile, _ string) { h.flood(20_000) }, cfg: func(c *remote.Config) { c.MaxEventBytes = 1 << 20 }, check: dropped(10_000)},
		{name: "heartbeats", step: func(h *hostile, id string) {
			for range 20_000 {
				data(rpc.FrameHeartbeat, `{}`)(h, id)
			}
		}, cfg: func(c *remote.Config) { c.MaxEvents = 30_000 }, check: dropped(29_000)},
		{name: "log_lines", step: func(h *hostile, id string) {
			for range count(5000, 20_000) {
				data(rpc.FrameLog, `{"message":"x"}`)(h, id)
			}
		}, cfg: func(c *remote.Config) { c.MaxEvents = 1000 }, check: dropped(count(4000, 19_000))},
		{name: "endless_print", step: func(h *hostile, _ string) {
			long := bytes.Repeat([]byte("x"), 1<<20)
			for range count(4, 64) {
				_, _ = h.stderr.Write(long)
				_, _ = h.stdout.Write(long)
			}
		}, cfg: func(c *remote.Config) { c.MaxEventBytes = 1 << 20 }, check: dropped(1)},
		{name: "long_lines", step: func(h *hostile, id string) {
			for range count(10, 100) {
				data(rpc.FrameEvent, head+`,"event":"x","step_id":"a","x":"`+strings.Repeat("x", rpc.MaxPayload-1000)+`"}`)(h, id)
			}
		}},

		// Ends.
		{name: "close_early", step: func(h *hostile, _ string) {
			h.frame(rpc.FrameClose, `{"type":"close","data":{"exit_code":0,"reason":"`+strings.Repeat("x", 1<<19)+`"}}`)
			h.flood(1000)
		}, silent: true, want: []error{remote.ErrWorkerCrash}},
		{name: "after_close", last: func(h *hostile) {
			data(rpc.FrameEvent, head+`,"event":"run_error"}`)(h, "")
			h.flood(1000)
		}},
		{name: "endless_journal", kinds: "local", step: func(h *hostile, id string) {
			for {
				data(rpc.FrameHeartbeat, `{}`)(h, id)
				time.Sleep(time.Millisecond)
			}
		}, cfg: func(c *remote.Config) { c.Timeout = time.Second }, want: []error{remote.ErrTimeout}},
		{name: "long_death", step: func(h *hostile, _ string) {
			f, err := h.fs.Create(filepath.Join(h.dir, worker.DeathFile))
			if err != nil {
				return
			}
			_, _ = f.Write([]byte(`{"exit_code":1,"stderr":"` + strings.Repeat("x", 64<<20) + `"}`))
			_ = f.Close()
			os.Exit(1)
		}, silent: true, want: []error{remote.ErrWorkerCrash}},
		{name: "death_words", step: func(h *hostile, _ string) {
			f, err := h.fs.Create(filepath.Join(h.dir, worker.DeathFile))
			if err != nil {
				return
			}
			_ = json.NewEncoder(f).Encode(rpc.Death{Signal: evil, Stderr: evil, Remains: rpc.Remains{Observed: true}, Prints: []rpc.Print{{Stream: evil, Text: evil}}})
			_ = f.Close()
			os.Exit(1)
		}, silent: true, want: []error{remote.ErrWorkerCrash}, check: printable},

		// Words that a terminal obeys. FAKE would be a line of its own.
		{name: "words", step: func(h *hostile, id string) {
			text, _ := json.Marshal(evil)
			raw := strings.NewReplacer(`\u007f`, "\x7f").Replace(string(text))
			data(rpc.FrameLog, `{"message":`+raw+`,"level":`+raw+`,"step_id":`+raw+`,"stream":`+raw+`,"attrs":{"msg":`+raw+`,`+raw+`:`+raw+`}}`)(h, id)
			data(rpc.FrameEvent, head+`,"event":`+raw+`,"step_id":"a",`+raw+`:`+raw+`}`)(h, id)
			_, _ = io.WriteString(h.stderr, evil+"\n")
			h.frame(rpc.FrameResponse, `{"id":"`+id+`","error":{"code":1,"message":`+raw+`,"data":{"step_id":"a","error_type":`+raw+`,"traceback":`+raw+`}}}`)
		}, silent: true, want: []error{remote.ErrStepFailed}, check: printable},
		{name: "words_of_seal", printed: func(h *hostile) {
			_, _ = io.WriteString(h.stderr, evil)
			os.Exit(1)
		}, want: notCollected, check: printable},
		{name: "words_of_skipped", sealed: func(*hostile) *rpc.SealResult {
			return &rpc.SealResult{Artifacts: []rpc.Artifact{}, Skipped: []rpc.SkippedArtifact{{Path: "a/" + evil, Reason: evil}}}
		}, check: printable},
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":%d`, i+1, i)
	}
	return b.String()
}

// skipped checks that so many files stayed behind, with a reason each.
func skipped(n int) func(*testing.T, *remote.ExecutionContext, *remote.ExecResult, *remote.CollectedArtifacts, error) {
	return func(t *testing.T, _ *remote.ExecutionContext, _ *remote.ExecResult, got *remote.CollectedArtifacts, _ error) {
		if len(got.Skipped)+got.SkippedMore != n {
			t.Errorf("skipped: %+.1000v and %d more, want %d", got.Skipped, got.SkippedMore, n)
		}
	}
}

// dropped checks that at least so many lines were dropped, and that it is said.
func dropped(n int) func(*testing.T, *remote.ExecutionContext, *remote.ExecResult, *remote.CollectedArtifacts, error) {
	return func(t *testing.T, ec *remote.ExecutionContext, result *remote.ExecResult, _ *remote.CollectedArtifacts, _ error) {
		said := events(t, ec, "lines_dropped")
		if len(said) != 1 {
			t.Fatalf("%d events say that lines were dropped", len(said))
		}
		if result.DroppedLines < int64(n) || said[0]["lines"] != float64(result.DroppedLines) || said[0]["bytes"] != float64(result.DroppedBytes) {
			t.Errorf("%d lines are dropped, want %d; the event says %v", result.DroppedLines, n, said[0])
		}
		if n := strings.Count(sessionLog(t, ec), "is dropped"); n != 1 {
			t.Errorf("the log says %d times that lines are dropped", n)
		}
	}
}

// printable checks that nothing of the session, and no error, has what a terminal
// obeys.
func printable(t *testing.T, ec *remote.ExecutionContext, _ *remote.ExecResult, _ *remote.CollectedArtifacts, err error) {
	all := tree(t, ec.LogsDir)
	if err != nil {
		all["the error"] = err.Error()
	}
	for name, text := range all {
		if got := strings.ReplaceAll(text, "\n", "\n "); rpc.Printable(got) != got {
			t.Errorf("%s: %.2000q", name, text)
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "FAKE") {
				t.Errorf("%s has the line %q", name, line)
			}
		}
	}
}

// hostileMain turns the test binary into a hostile worker, when the run's folder
// says so.
func hostileMain() {
	if len(os.Args) < 5 || os.Args[1] != worker.Arg || os.Args[3] != "-dir" {
		return
	}
	a, ok := attackOf(os.Args[4])
	if !ok {
		return
	}
	h := &hostile{fs: worker.OSFS{}, dir: os.Args[4], stdout: os.Stdout, stderr: os.Stderr}
	if code := h.run(a, os.Args[2], os.Stdin); code >= 0 {
		os.Exit(code)
	}
}

// How sessions with a hostile worker are named, before the attack.
const (
	hostileSession = "hostile."
	fullSession    = "hostile_full."
)

// attackOf finds the attack in the name of a run's folder.
func attackOf(dir string) (attack, bool) {
	prefix := hostileSession
	if strings.Contains(filepath.Base(dir), fullSession) {
		prefix = fullSession
	}
	_, name, ok := strings.Cut(filepath.Base(dir), prefix)
	name, _, _ = strings.Cut(name, "-")
	if ok {
		for _, a := range attacks(prefix == fullSession) {
			if a.name == name {
				return a, true
			}
		}
	}
	return attack{}, false
}

// run runs one of the worker's commands; -1 means that it is left to the real
// worker.
func (h *hostile) run(a attack, command string, stdin io.Reader) int {
	switch {
	case command == "supervise":
		return h.serve(a, stdin)
	case command == "seal" && a.printed != nil:
		a.printed(h)
		return 0
	}
	return -1
}

func (h *hostile) serve(a attack, stdin io.Reader) int {
	dir := filepath.Join(h.dir, "journal")
	if err := errors.Join(h.fs.MkdirAll(dir), h.fs.MkdirAll(filepath.Join(h.dir, "artifacts", "a"))); err != nil {
		return 1
	}
	var err error
	if h.journal, err = h.fs.Create(filepath.Join(dir, "00000000000000000000.journal")); err != nil {
		return 1
	}
	frames := rpc.NewFrameReader(stdin, -1, rpc.MaxInputFrame)
	done := make(map[string]bool)
	for {
		f, err := frames.Next()
		if err != nil {
			return 1
		}
		if f.Type != rpc.FrameRequest {
			continue
		}
		req, err := rpc.DecodeRequest(f.Payload)
		if err != nil || done[req.ID] {
			continue
		}
		done[req.ID] = true
		switch req.Method {
		case rpc.MethodHandshake:
			var p rpc.Handshake
			if json.Unmarshal(req.Params, &p) != nil {
				return 1
			}
			h.session = p.SessionID
			r := rpc.HandshakeResult{Version: rpc.Version, Worker: "hostile", PID: 1, Drivers: p.Drivers, CPUs: 1}
			if a.hello != nil {
				a.hello(h, &r)
			}
			h.answerJSON(req.ID, r)
		case rpc.MethodExecuteStep:
			var p rpc.ExecuteStep
			var cfg struct{ Outer string }
			if json.Unmarshal(req.Params, &p) != nil || json.Unmarshal(p.Config, &cfg) != nil {
				return 1
			}
			h.outer = cfg.Outer
			if a.step != nil {
				a.step(h, req.ID)
			}
			switch {
			case a.silent:
			case a.result != "":
				h.answer(req.ID, a.result)
			default:
				h.answerJSON(req.ID, rpc.StepResult{StepID: p.StepID, Status: "success"})
			}
		case rpc.MethodSealArtifacts:
			switch {
			case a.printed != nil:
				h.frame(rpc.FrameResponse, `{"id":"`+req.ID+`","error":{"code":-32603,"message":"`+strings.Repeat("x", 100_000)+`"}}`)
			case a.sealed != nil:
				h.answerJSON(req.ID, a.sealed(h))
			default:
				list, err := worker.Seal(context.Background(), h.fs, filepath.Join(h.dir, "artifacts"), nil)
				if b, _ := json.Marshal(list); err != nil || len(b) > rpc.MaxPayload/2 {
					h.frame(rpc.FrameResponse, `{"id":"`+req.ID+`","error":{"code":-32603,"message":"too long"}}`)
					continue
				}
				h.answerJSON(req.ID, list)
			}
		case rpc.MethodShutdown:
			h.answer(req.ID, "{}")
			if a.parting != nil {
				a.parting(h)
			}
			h.frame(rpc.FrameClose, `{"type":"close","data":{"exit_code":0,"reason":"shutdown"}}`)
			if a.last != nil {
				a.last(h)
			}
			return 0
		default:
			h.answer(req.ID, "{}")
		}
	}
}

func (h *hostile) raw(b []byte) {
	if _, err := h.journal.Write(b); err != nil {
		os.Exit(1)
	}
	h.at += int64(len(b))
}

func (h *hostile) frame(typ rpc.FrameType, payload string) {
	h.raw(rpc.AppendFrame(nil, typ, h.at, []byte(payload)))
}

// header writes a frame's header that announces so many bytes, and some of them.
func (h *hostile) header(length uint32) {
	f := rpc.AppendFrame(nil, rpc.FrameEvent, h.at)
	binary.LittleEndian.PutUint32(f[8:], length)
	h.raw(append(f, make([]byte, 1<<16)...))
}

func (h *hostile) answer(id, result string) {
	h.frame(rpc.FrameResponse, `{"id":"`+id+`","result":`+result+`}`)
}

func (h *hostile) answerJSON(id string, result any) {
	b, err := json.Marshal(result)
	if err != nil {
		panic(err)
	}
	h.answer(id, string(b))
}

// flood writes events of 200 bytes.
func (h *hostile) flood(n int) {
	line := fmt.Sprintf(`{"type":"event","data":{"ts":"2026-01-02T03:04:05.000006Z","session":%q,"event":"flood","step_id":"a","x":"%s"}}`, h.session, strings.Repeat("x", 80))
	payload := []byte(line)
	var b []byte
	for range n {
		b = rpc.AppendFrame(b, rpc.FrameEvent, h.at+int64(len(b)), payload)
		if len(b) > 1<<20 {
			h.raw(b)
			b = b[:0]
		}
	}
	h.raw(b)
}

func (h *hostile) path(name string) string {
	return filepath.Join(h.dir, "artifacts", filepath.FromSlash(name))
}

func (h *hostile) write(name, content string) {
	if path.Base(name) == "0" || !strings.HasSuffix(name, "1") {
		_ = h.fs.MkdirAll(filepath.Dir(h.path(name)))
	}
	f, err := h.fs.Create(h.path(name))
	if err != nil {
		return
	}
	_, _ = io.WriteString(f, content)
	_ = f.Close()
}

func (h *hostile) print(v any) { _ = json.NewEncoder(h.stdout).Encode(v) }

// pour prints without end.
func (h *hostile) pour(s string) {
	b := bytes.Repeat([]byte(s), 1<<15)
	for {
		if _, err := h.stdout.Write(b); err != nil {
			return
		}
	}
}

// heapBound is how much memory a host may have in use while it is attacked, above
// what it had before: garbage, the session's buffers, two frames of 1 MiB each
// way, 16 MiB that wait for sinks. On the embedded server the sandbox is in the
// same process.
const heapBound = 128 << 20

// TestHostileWorker has a worker that means harm, as a process of its own and in
// a sandbox behind E2B's protocol. The host gives an error of a known kind, stays
// within its memory, and nothing around the session changes.
func TestHostileWorker(t *testing.T) {
	kinds := []string{"local"}
	if runtime.GOOS != "windows" {
		kinds = append(kinds, "embedded")
	}
	seed, _ := testSeed(t)
	t.Logf("OSIRIS_SEED=%d", seed)
	sample := rand.New(rand.NewPCG(seed, 1)) // of those that are made again behind E2B's protocol
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			var server *mock.Server
			if kind != "local" {
				server = newServer(t, kind, nil)
			}
			peak := peakHeap(func() {
				t.Run("attacks", func(t *testing.T) { // returns when all of them have ended
					for _, a := range attacks(stressed()) {
						if a.kinds == "" && (kind == "local" || stressed() || !a.aboveLink() && sample.IntN(8) == 0) || a.kinds == kind {
							t.Run(a.name, func(t *testing.T) {
								if !stressed() { // most of the time goes into waiting for restarts
									t.Parallel()
								}
								a.run(t, server)
							})
						}
					}
				})
			})
			if peak > 2*heapBound && !stressed() { // where each is looked at by itself, and the looking at a full count takes more
				t.Errorf("all attacks, some at once, took %d MiB, at most %d are allowed", peak>>20, 2*heapBound>>20)
			}
		})
	}
}

// aboveLink reports whether an attack is only of frames that arrive well: how they
// come makes no difference.
func (a attack) aboveLink() bool {
	return (a.step != nil || a.result != "") && a.check == nil && a.parting == nil && a.sealed == nil && !a.silent
}

func (a attack) run(t *testing.T, server *mock.Server) {
	cfg := remote.Config{Timeout: 5 * time.Minute, Restarts: 1}
	if a.cfg != nil {
		a.cfg(&cfg)
	}
	adapter, err := a.adapter(cfg, server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := adapter.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	outer := t.TempDir()
	for name, content := range map[string]string{"secret": "of the host", "in/run_1/status.json": "{}", "in/other": ""} {
		file := filepath.Join(outer, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o750), os.WriteFile(file, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, outer)
	id := hostileSession + a.name
	if stressed() {
		id = fullSession + a.name
	}
	ec := &remote.ExecutionContext{SessionID: id, LogsDir: filepath.Join(outer, "in", id)}
	ec.OnEvent = func(context.Context, remote.Event) error { return nil }
	m := &remote.Manifest{
		Pipeline: map[string]any{"id": "p"},
		Steps:    []remote.Step{{ID: "a", Driver: "x", Config: map[string]any{"outer": filepath.ToSlash(outer)}}},
	}
	var result *remote.ExecResult
	var got *remote.CollectedArtifacts
	run := func() { result, got, err = remote.Run(t.Context(), adapter, m, ec) }
	if stressed() { // it is alone
		peak := peakHeap(run)
		t.Logf("peak %d MiB, error %.200v", peak>>20, err)
		if peak > heapBound {
			t.Errorf("the host took %d MiB, at most %d are allowed", peak>>20, heapBound>>20)
		}
	} else {
		run()
	}
	if (err == nil) != (len(a.want) == 0) {
		t.Fatalf("error %v, want %v", err, a.want)
	}
	for _, want := range a.want {
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	if err != nil {
		if text := err.Error(); len(text) > 1<<20 {
			t.Errorf("an error of %d bytes", len(text))
		}
		printable(t, ec, result, got, err)
	}
	if errors.Is(err, remote.ErrOwnershipLost) { // then the sandbox is another's
		for _, s := range server.Alive() {
			if s.Metadata["osiris_session"] != ec.SessionID {
				continue
			}
			if err := server.Kill(s.ID); err != nil {
				t.Error(err)
			}
		}
	}
	if a.check != nil {
		a.check(t, ec, result, got, err)
	}
	if err := os.RemoveAll(filepath.Join(outer, "in", ec.SessionID)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, tree(t, outer)); diff != "" {
		t.Errorf("around the session (-before +after):\n%s", diff)
	}
}

func (a attack) adapter(cfg remote.Config, server *mock.Server) (adapter, error) {
	if server == nil {
		return newLocalAdapter(cfg)
	}
	return remote.NewE2BTransparentProxy(connect(cfg, server))
}

// peakHeap returns how much the objects on the heap grow at most while f runs.
func peakHeap(f func()) uint64 {
	debug.FreeOSMemory()
	read := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	begin := read()
	stop := make(chan struct{})
	peak := begin
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, read())
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	f()
	close(stop)
	watching.Wait()
	return peak - begin
}
