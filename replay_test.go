package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
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

// recording is the output of a worker of the reference implementation in a
// real sandbox, translated into this library's frames: what it said up to each
// of its answers.
type recording struct {
	parts  [][]byte
	events []string // names, in order
}

// translate reads a recorded stream. Answers get the ids of the requests that
// a run of the same plan sends: the handshake, the steps, seal, shutdown.
func translate(t *testing.T, name, session string) recording {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var (
		rec     recording
		journal []byte
		start   int
		n       int64
	)
	frame := func(typ rpc.FrameType, payload []byte) {
		journal = rpc.AppendFrame(journal, typ, int64(len(journal)), payload)
	}
	data := func(typ rpc.FrameType, data []byte) {
		frame(typ, fmt.Appendf(nil, `{"type":%q,"data":%s}`, typ, data))
	}
	answer := func(r rpc.Response, result any) {
		n++
		r.ID = rpc.RequestID(n)
		if result != nil {
			r.Result, err = json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		frame(rpc.FrameResponse, b)
		rec.parts = append(rec.parts, journal[start:len(journal):len(journal)])
		start = len(journal)
	}
	for text := range strings.Lines(string(b)) {
		var m struct {
			Type, Name, Status string
			Timestamp          float64
			Data               map[string]any
			Value              float64
			Tags               map[string]string
			StepID             string  `json:"step_id"`
			Rows               int64   `json:"rows_processed"`
			DurationMS         float64 `json:"duration_ms"`
			Error              string
			ErrorType          string `json:"error_type"`
			Traceback          string
			Drivers            []string `json:"drivers_loaded"`
		}
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		sec, frac := math.Modf(m.Timestamp)
		line := rpc.Line{Time: time.Unix(int64(sec), int64(frac*1e9)), Session: session, Name: m.Name}
		switch {
		case m.Type == "event":
			line.StepID, _ = m.Data["step_id"].(string)
			data(rpc.FrameEvent, line.AppendEvent(nil, m.Data))
			rec.events = append(rec.events, m.Name)
		case m.Type == "metric":
			line.StepID = m.Tags["step"]
			data(rpc.FrameMetric, line.AppendMetric(nil, m.Value, ""))
		case m.Status == "ready":
			key, err := rpc.NewSealKey()
			if err != nil {
				t.Fatal(err)
			}
			answer(rpc.Response{}, rpc.HandshakeResult{Version: rpc.Version, Worker: "recorded", PID: 822, Drivers: m.Drivers, SealKey: key.Public()})
			answer(rpc.Response{}, struct{}{}) // to the secrets
		case m.Status == "complete" && m.Error != "":
			answer(rpc.Response{Error: &rpc.Error{Code: rpc.CodeStepFailed, Message: m.Error, Data: &rpc.ErrorData{
				StepID: m.StepID, Type: m.ErrorType, Traceback: m.Traceback,
			}}}, nil)
		case m.Status == "complete":
			answer(rpc.Response{}, rpc.StepResult{
				Status: "success", RowsOut: m.Rows, DurationMS: m.DurationMS,
				Outputs: map[string]rpc.OutputRef{"df": {Rows: m.Rows}},
			})
		case m.Status == "cleaned":
			answer(rpc.Response{}, rpc.SealResult{})
			answer(rpc.Response{}, struct{}{})
			data(rpc.FrameClose, []byte(`{"exit_code":0,"reason":"shutdown"}`))
			rec.parts[len(rec.parts)-1] = append(rec.parts[len(rec.parts)-1], journal[start:]...)
		}
	}
	return rec
}

// replay returns a worker that answers with a recording, and whose tail
// writes chunks of a size.
func (rec recording) replay(chunk int) mock.Program {
	var (
		mu    sync.Mutex
		asked int
		more  = make(chan struct{}, len(rec.parts))
	)
	return func(ctx context.Context, p *mock.Proc) int {
		args := slices.DeleteFunc(slices.Clone(p.Args), func(a string) bool { return a == worker.Arg })
		switch args[0] {
		case "supervise":
			frames := rpc.NewFrameReader(p.Stdin, -1, rpc.MaxInputFrame)
			for {
				f, err := frames.Next()
				if err != nil {
					return 1
				}
				if f.Type != rpc.FrameRequest {
					continue
				}
				mu.Lock()
				asked++
				done := asked == len(rec.parts)
				mu.Unlock()
				more <- struct{}{}
				if done {
					return 0
				}
			}
		case "tail":
			from, _ := strconv.Atoi(args[slices.Index(args, "-from")+1])
			pos := 0
			for i := 0; i < len(rec.parts); i++ {
				for {
					mu.Lock()
					ready := asked > i
					mu.Unlock()
					if ready {
						break
					}
					select {
					case <-more:
					case <-ctx.Done():
						return 1
					}
				}
				part := rec.parts[i]
				skip := min(max(from-pos, 0), len(part))
				pos += len(part)
				for c := range slices.Chunk(part[skip:], chunk) {
					if _, err := p.Stdout.Write(c); err != nil {
						return 1
					}
				}
			}
			return 0
		}
		return 2
	}
}

// TestRecordedStream feeds what a real worker said, cut at any place. The
// reference implementation lost events at such cuts, and reported this run as
// timed out.
func TestRecordedStream(t *testing.T) {
	const session = "run_1759247251182"
	rec := translate(t, "testdata/osiris/sessions/e2b_real_2025-09-30_worker_stdout.jsonl", session)
	if len(rec.parts) != 7 || len(rec.events) != 39 {
		t.Fatalf("%d answers, %d events", len(rec.parts), len(rec.events))
	}
	m, err := remote.LoadManifest("testdata/osiris/compiled/mysql-duckdb-supabase-demo/manifest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var first []string
	for _, chunk := range []int{1, 7, 700, 65536} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			provider := mock.NewProvider(&mock.Options{Programs: map[string]mock.Program{"osiris-worker": rec.replay(chunk)}})
			a, err := remote.NewE2BTransparentProxy(remote.Config{OpenSandbox: provider.OpenSandbox, Concurrency: 1, Connections: testConnections()})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			ec := newContext(t, session)
			var told []string
			ec.OnEvent = func(_ context.Context, e remote.Event) error {
				if slices.Contains(rec.events, e.Name) && e.Time.Year() == 2025 { // the recorded ones
					told = append(told, e.Name)
				}
				return nil
			}
			result, _, err := remote.Run(t.Context(), a, m, ec)
			var step *remote.StepError
			if !errors.As(err, &step) {
				t.Fatalf("error %v", err)
			}
			const want = "Supabase write failed: SupabaseWriterDriver._ddl_attempt() takes 1 positional argument but 6 were given"
			if step.StepID != "write-director-stats" || step.Message != want {
				t.Errorf("error %+v", step)
			}
			agree(t, ec, result, err)
			var got []string
			for _, e := range events(t, ec, "") {
				if strings.HasPrefix(e["ts"].(string), "2025-09-30") {
					b, _ := json.Marshal(e)
					got = append(got, string(b))
				}
			}
			if first == nil {
				first = got
			}
			if diff := cmp.Diff(first, got); diff != "" {
				t.Errorf("events differ from those of another chunk size:\n%s", diff)
			}
			if diff := cmp.Diff(rec.events, told); diff != "" {
				t.Errorf("events (-recorded +told):\n%s", diff)
			}
			var status []remote.StepStatus
			for _, s := range result.StepResults {
				status = append(status, s.Status)
			}
			if diff := cmp.Diff([]remote.StepStatus{"succeeded", "succeeded", "failed"}, status); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
