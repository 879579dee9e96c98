package e2b

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// script is a daemon that does with processes what a test says.
type script struct {
	start   func(header http.Header, req *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error
	connect func(send func(*envdpb.ProcessEvent)) error

	mu      sync.Mutex
	started []*envdpb.StartRequest
	signals []string
}

func (d *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.Handle(envdpb.ProcessStart, connect.NewServerStreamHandler(envdpb.ProcessStart,
		func(_ context.Context, req *connect.Request[envdpb.StartRequest], stream *connect.ServerStream[envdpb.StartResponse]) error {
			d.mu.Lock()
			d.started = append(d.started, req.Msg)
			d.mu.Unlock()
			return d.start(req.Header(), req.Msg, func(e *envdpb.ProcessEvent) { stream.Send(&envdpb.StartResponse{Event: e}) })
		}))
	mux.Handle(envdpb.ProcessConnect, connect.NewServerStreamHandler(envdpb.ProcessConnect,
		func(_ context.Context, _ *connect.Request[envdpb.ConnectRequest], stream *connect.ServerStream[envdpb.ConnectResponse]) error {
			return d.connect(func(e *envdpb.ProcessEvent) { stream.Send(&envdpb.ConnectResponse{Event: e}) })
		}))
	handle(mux, envdpb.ProcessList, func(*envdpb.ListRequest) (*envdpb.ListResponse, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		resp := &envdpb.ListResponse{}
		for _, req := range d.started {
			resp.Processes = append(resp.Processes, &envdpb.ProcessInfo{Pid: testPID, Tag: req.Tag, Config: req.GetProcess()})
		}
		return resp, nil
	})
	handle(mux, envdpb.ProcessSendSignal, func(req *envdpb.SendSignalRequest) (*envdpb.SendSignalResponse, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.signals = append(d.signals, fmt.Sprint(req.GetProcess().GetPid(), " ", req.GetSignal()))
		return &envdpb.SendSignalResponse{}, nil
	})
	mux.ServeHTTP(w, r)
}

func (d *script) seen() (started int, signals []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.started), d.signals
}

const testPID = 42

func startEvent() *envdpb.ProcessEvent {
	return &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Start{Start: &envdpb.ProcessEvent_StartEvent{Pid: testPID}}}
}

func stdoutEvent(s string) *envdpb.ProcessEvent {
	data := &envdpb.ProcessEvent_DataEvent{Output: &envdpb.ProcessEvent_DataEvent_Stdout{Stdout: []byte(s)}}
	return &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Data{Data: data}}
}

func endEvent(code int32) *envdpb.ProcessEvent {
	end := &envdpb.ProcessEvent_EndEvent{Exited: true, ExitCode: code}
	return &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_End{End: end}}
}

// cutOff ends a connection without a word.
func cutOff() error { panic(http.ErrAbortHandler) }

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestStartRequest(t *testing.T) {
	for _, test := range []struct {
		cmd  Command
		want map[string]string
	}{
		{Command{Path: "x"}, map[string]string{"Connect-Timeout-Ms": "", "Authorization": ""}},
		{Command{Path: "x", Timeout: 1500 * time.Millisecond}, map[string]string{"Connect-Timeout-Ms": "1500"}},
		{Command{Path: "x", Timeout: time.Microsecond}, map[string]string{"Connect-Timeout-Ms": "1"}},
		{Command{Path: "x", Timeout: 1<<63 - 1}, map[string]string{"Connect-Timeout-Ms": "9999999999"}},
		{Command{Path: "x", User: "me"}, map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"))}},
		{Command{Path: "x"}, map[string]string{
			"X-Access-Token": "token", "E2b-Sandbox-Id": "itest", "E2b-Sandbox-Port": "49983",
			"Keepalive-Ping-Interval": "30", "Connect-Accept-Encoding": "", "Content-Type": "application/connect+proto",
		}},
	} {
		var header http.Header
		var req *envdpb.StartRequest
		s := sandboxOf(t, &script{start: func(h http.Header, r *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
			header, req = h, r
			send(startEvent())
			send(endEvent(0))
			return nil
		}})
		p, err := s.Start(within(t), test.cmd) // its deadline must not get there
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(within(t)); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for name := range test.want {
			got[name] = header.Get(name)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("headers for %+v (-want +got):\n%s", test.cmd, diff)
		}
		if req.GetTag() == "" || req.Stdin == nil || req.GetStdin() {
			t.Errorf("request %v: want a tag and no input", req)
		}
	}
}

func TestStartRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		body   string
		want   error
	}{
		{"gone", 502, `{"sandboxId":"itest","message":"The sandbox was not found","code":502}`, ErrSandboxGone},
		{"port", 502, `{"sandboxId":"itest","message":"The sandbox is running but port is not open","port":49983,"code":502}`, ErrPortClosed},
		{"token", 401, `{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}`, ErrAuthentication},
		{"connect", 200, "\x02\x00\x00\x00\x2b" + `{"error":{"code":"invalid_argument"}}      `, ErrInvalid},
		{"throttle", 429, "slow down", ErrRateLimit},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/connect+proto")
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			if _, err := s.Start(within(t), Command{Path: "x"}); !errors.Is(err, test.want) {
				t.Errorf("Start: %v, want %v", err, test.want)
			}
			if _, err := s.Attach(within(t), 1); !errors.Is(err, test.want) {
				t.Errorf("Attach: %v, want %v", err, test.want)
			}
		})
	}
	if _, err := sandboxOf(t, &script{}).Start(within(t), Command{Path: "x", Timeout: -1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Start with a negative time-out: %v, want ErrInvalid", err)
	}
	if _, err := sandboxOf(t, &script{}).Attach(within(t), 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("Attach to process 0: %v, want ErrInvalid", err)
	}
}

// TestStartLost loses the answer to a start. The process must be found, and
// not be started again.
func TestStartLost(t *testing.T) {
	d := &script{
		start:   func(http.Header, *envdpb.StartRequest, func(*envdpb.ProcessEvent)) error { return cutOff() },
		connect: func(send func(*envdpb.ProcessEvent)) error { send(startEvent()); send(endEvent(7)); return nil },
	}
	p, err := sandboxOf(t, d).Start(within(t), Command{Path: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := p.Stdout().Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read: %d, %v; want an error that is not io.EOF", n, err)
	}
	status, err := p.Wait(within(t))
	if status != (ExitStatus{Code: 7}) || err != nil || p.PID() != testPID {
		t.Errorf("process %d ended with %v, %v", p.PID(), status, err)
	}
	if n, _ := d.seen(); n != 1 {
		t.Errorf("it was started %d times", n)
	}
}

// TestStartNeverArrived loses starts on their way. Only a command that may be
// repeated is started again, and none without a look for it.
func TestStartNeverArrived(t *testing.T) {
	for _, test := range []struct {
		name       string
		lost       int
		repeatable bool
		want       error
		sent       int
	}{
		{"once", 1, false, ErrNotStarted, 1},
		{"once, repeatable", 1, true, nil, 2},
		{"twice, repeatable", 2, true, nil, 3},
		{"always, repeatable", 9, true, ErrNotStarted, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
					send(startEvent())
					send(endEvent(0))
					return nil
				}}
				var mu sync.Mutex // late looks come beside
				var calls []string
				sent := 0
				s := sandboxInMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					calls = append(calls, path.Base(r.URL.Path))
					lost := false
					if strings.HasSuffix(r.URL.Path, "/Start") {
						sent++
						lost = sent <= test.lost
					}
					mu.Unlock()
					if lost {
						panic(http.ErrAbortHandler)
					}
					d.ServeHTTP(w, r)
				}))
				var retries int
				ctx := WithClientTrace(t.Context(), &ClientTrace{Retry: func(Retry) { retries++ }})
				p, err := s.Start(ctx, Command{Path: "x", Repeatable: test.repeatable})
				if !errors.Is(err, test.want) {
					t.Fatalf("Start: %v, want %v", err, test.want)
				}
				if err == nil {
					if status, err := p.Wait(t.Context()); err != nil || status != (ExitStatus{}) {
						t.Errorf("Wait: %v, %v", status, err)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if sent != test.sent || retries != test.sent-1 {
					t.Errorf("%d starts were sent and %d retries told, want %d", sent, retries, test.sent)
				}
				if before := slices.Index(calls[1:], "Start"); before >= 0 && before < 3 {
					t.Errorf("it was not looked for before it was started again: %q", calls)
				}
			})
		})
	}
}

// TestStartArrivesLate has a start carried out some time after its connection
// broke. The process must not live on.
func TestStartArrivesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &script{}
		d.start = func(_ http.Header, req *envdpb.StartRequest, _ func(*envdpb.ProcessEvent)) error { return nil }
		s := sandboxInMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/Start") {
				d.ServeHTTP(w, r)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			late := r.Clone(context.WithoutCancel(r.Context()))
			late.Body = io.NopCloser(bytes.NewReader(body))
			go func() {
				time.Sleep(6 * time.Second)
				d.ServeHTTP(httptest.NewRecorder(), late)
			}()
			panic(http.ErrAbortHandler)
		}))
		if _, err := s.Start(t.Context(), Command{Path: "x"}); !errors.Is(err, ErrNotStarted) {
			t.Errorf("Start: %v, want ErrNotStarted", err)
		}
		s.tasks.wait()
		if n, signals := d.seen(); n != 1 || !cmp.Equal(signals, []string{"42 SIGNAL_SIGKILL"}) {
			t.Errorf("%d starts, signals %q; want 1 and one SIGKILL", n, signals)
		}
	})
}

// TestStartTooLate has a process start after its time is over, which is then
// without a limit.
func TestStartTooLate(t *testing.T) {
	d := &script{start: func(http.Header, *envdpb.StartRequest, func(*envdpb.ProcessEvent)) error {
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("too late"))
	}}
	if _, err := sandboxOf(t, d).Start(within(t), Command{Path: "x", Timeout: time.Millisecond}); !errors.Is(err, ErrTimeout) {
		t.Errorf("Start: %v, want ErrTimeout", err)
	}
	if n, signals := d.seen(); n != 1 || !cmp.Equal(signals, []string{"42 SIGNAL_SIGKILL"}) {
		t.Errorf("%d starts, signals %q; want 1 and one SIGKILL", n, signals)
	}
}

// TestStartAbandonedAndLost gives up a start whose answer is lost then.
func TestStartAbandonedAndLost(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	d := &script{start: func(http.Header, *envdpb.StartRequest, func(*envdpb.ProcessEvent)) error {
		close(asked)
		<-answer
		return cutOff()
	}}
	s := sandboxOf(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := s.Start(ctx, Command{Path: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v, want context.Canceled", err)
	}
	close(answer)
	s.tasks.wait()
	if _, signals := d.seen(); !cmp.Equal(signals, []string{"42 SIGNAL_SIGKILL"}) {
		t.Errorf("signals: %q, want one SIGKILL", signals)
	}
}

// TestStartAbandoned gives up a start before it was answered. The process must
// not live on.
func TestStartAbandoned(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	d := &script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		close(asked)
		<-answer
		send(startEvent())
		return nil
	}}
	s := sandboxOf(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := s.Start(ctx, Command{Path: "x", Stderr: io.Discard}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v, want context.Canceled", err)
	}
	close(answer)
	s.tasks.wait()
	if _, signals := d.seen(); !cmp.Equal(signals, []string{"42 SIGNAL_SIGKILL"}) {
		t.Errorf("signals: %q, want one SIGKILL", signals)
	}
}

// TestCut cuts the stream of a running process.
func TestCut(t *testing.T) {
	again := 0
	for _, test := range []struct {
		name    string
		connect func(send func(*envdpb.ProcessEvent)) error
		status  ExitStatus
		want    error
	}{
		{"ended", func(send func(*envdpb.ProcessEvent)) error { send(startEvent()); send(endEvent(3)); return nil }, ExitStatus{Code: 3}, nil},
		{"cut again", func(send func(*envdpb.ProcessEvent)) error {
			if again++; again < 3 {
				send(startEvent())
				send(stdoutEvent("lost"))
				return cutOff()
			}
			send(startEvent())
			send(endEvent(4))
			return nil
		}, ExitStatus{Code: 4}, nil},
		{"forgotten", func(func(*envdpb.ProcessEvent)) error {
			return connect.NewError(connect.CodeNotFound, errors.New("process with pid 42 not found"))
		}, ExitStatus{}, ErrExitUnknown},
		{"no token", func(func(*envdpb.ProcessEvent)) error {
			return connect.NewError(connect.CodeUnauthenticated, errors.New("no"))
		}, ExitStatus{}, ErrAuthentication},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := sandboxOf(t, &script{
				start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
					send(startEvent())
					send(stdoutEvent("some"))
					return cutOff()
				},
				connect: test.connect,
			}).Start(within(t), Command{Path: "x"})
			if err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(p.Stdout())
			if string(out) != "some" || err == nil {
				t.Errorf("output %q, %v; want an error after \"some\"", out, err)
			}
			for range 2 {
				status, err := p.Wait(within(t))
				if status != test.status || !errors.Is(err, test.want) {
					t.Errorf("Wait: %v, %v; want %v, %v", status, err, test.status, test.want)
				}
			}
		})
	}
}

// TestCutAndGone cuts everything because the sandbox was killed.
func TestCutAndGone(t *testing.T) {
	started := false
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !started {
			started = true
			(&script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
				send(startEvent())
				return cutOff()
			}}).ServeHTTP(w, r)
		}
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, `{"sandboxId":"itest","message":"The sandbox was not found","code":502}`)
	}))
	p, err := s.Start(within(t), Command{Path: "x", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(within(t)); !errors.Is(err, ErrSandboxGone) {
		t.Errorf("Wait: %v, want ErrSandboxGone", err)
	}
	if _, err := p.Stdin().Write([]byte("x")); err == nil {
		t.Error("Write to a process of a sandbox that is gone succeeds")
	}
	if err := p.Stdin().Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestClose(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	p, err := sandboxOf(t, &script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		send(startEvent())
		for range 100 {
			send(stdoutEvent("nobody reads this"))
		}
		<-release
		return nil
	}}).Start(within(t), Command{Path: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := p.Wait(within(t)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait: %v, want os.ErrClosed", err)
	}
	if _, err := p.Stdout().Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v, want os.ErrClosed", err)
	}
}

func TestExitStatus(t *testing.T) {
	for _, test := range []struct {
		end  *envdpb.ProcessEvent_EndEvent
		want ExitStatus
		text string
	}{
		{&envdpb.ProcessEvent_EndEvent{Exited: true}, ExitStatus{}, "exit code 0"},
		{&envdpb.ProcessEvent_EndEvent{Exited: true, ExitCode: 3, Status: "exit status 3"}, ExitStatus{Code: 3}, "exit code 3"},
		{&envdpb.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: killed"}, ExitStatus{-1, "SIGKILL"}, "killed by SIGKILL"},
		{&envdpb.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: segmentation fault (core dumped)"}, ExitStatus{-1, "SIGSEGV"}, "killed by SIGSEGV"},
		{&envdpb.ProcessEvent_EndEvent{ExitCode: 143, Status: "terminated"}, ExitStatus{-1, "SIGTERM"}, "killed by SIGTERM"},
		{&envdpb.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: signal 34"}, ExitStatus{-1, "signal 34"}, "killed by signal 34"},
		{&envdpb.ProcessEvent_EndEvent{}, ExitStatus{-1, "unknown signal"}, "killed by unknown signal"},
	} {
		if got := exitStatus(test.end); got != test.want || got.String() != test.text {
			t.Errorf("exitStatus(%v): %+v (%s), want %+v (%s)", test.end, got, got, test.want, test.text)
		}
	}
}

func TestExecuteCommand(t *testing.T) {
	s := realSandbox(t)
	for _, test := range []struct {
		cmd  Command
		want CommandResult
	}{
		{Command{Path: "true"}, CommandResult{}},
		{Command{Path: "/bin/sh", Args: []string{"-c", `cat; echo "$V" "$1"; echo e >&2; exit 3`, "sh", "a b"}, Env: map[string]string{"V": "v"}},
			CommandResult{ExitStatus: ExitStatus{Code: 3}, Stdout: []byte("v a b\n"), Stderr: []byte("e\n")}},
		{Command{Path: "no such program"}, CommandResult{ExitStatus: ExitStatus{Code: 127}}},
		{Command{Path: "/bin/sh", Args: []string{"-c", `kill -9 $$`}}, CommandResult{ExitStatus: ExitStatus{Code: -1, Signal: "SIGKILL"}}},
		{Command{Path: "head", Args: []string{"-c", "20000000", "/dev/zero"}}, CommandResult{Stdout: make([]byte, maxCommandOutput), Truncated: true}},
	} {
		got, err := s.ExecuteCommand(within(t), test.cmd)
		if err != nil {
			t.Fatal(err)
		}
		if test.want.Code == 127 {
			got.Stderr = nil // the shell's own words
		}
		same := got.ExitStatus == test.want.ExitStatus && got.Truncated == test.want.Truncated
		if !same || !bytes.Equal(got.Stdout, test.want.Stdout) || !bytes.Equal(got.Stderr, test.want.Stderr) {
			t.Errorf("%v: %v, %d bytes, %q, %t; want %v, %d bytes, %q", test.cmd.Args, got.ExitStatus, len(got.Stdout), got.Stderr, got.Truncated, test.want.ExitStatus, len(test.want.Stdout), test.want.Stderr)
		}
	}
}

func TestExecuteCommandCancelled(t *testing.T) {
	s := realSandbox(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	ready := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	_, err := s.ExecuteCommand(ctx, Command{Path: "/bin/sh", Args: []string{"-c", "echo x >&2; exec sleep 1000"}, Tag: t.Name(), Stderr: ready})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ExecuteCommand: %v, want context.Canceled", err)
	}
	until(t, "the process is gone", func() bool {
		infos, err := s.Processes(within(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			if info.Tag == t.Name() {
				return false
			}
		}
		return true
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func TestTimeout(t *testing.T) {
	s := realSandbox(t)
	p, err := s.Start(within(t), Command{Path: "sleep", Args: []string{"1000"}, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, p.Stdout()); !errors.Is(err, ErrTimeout) {
		t.Errorf("read: %v, want ErrTimeout", err)
	}
	status, err := p.Wait(within(t))
	if status != (ExitStatus{-1, "SIGKILL"}) || !errors.Is(err, ErrTimeout) {
		t.Errorf("Wait: %v, %v; want SIGKILL and ErrTimeout", status, err)
	}
}

func TestAttach(t *testing.T) {
	s := realSandbox(t)
	first, err := s.Start(within(t), Command{Path: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	p, err := s.Attach(within(t), first.PID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.Stdin(), "hello"); err != nil {
		t.Fatal(err)
	}
	p.Stdin().Close()
	if out, err := io.ReadAll(p.Stdout()); string(out) != "hello" || err != nil {
		t.Errorf("output %q, %v", out, err)
	}
	if status, err := p.Wait(within(t)); status != (ExitStatus{}) || err != nil {
		t.Errorf("Wait: %v, %v", status, err)
	}
	late, err := s.Attach(within(t), first.PID())
	if err != nil {
		t.Fatalf("Attach after the end: %v", err)
	}
	if status, err := late.Wait(within(t)); status != (ExitStatus{}) || err != nil {
		t.Errorf("Wait after the end: %v, %v", status, err)
	}
	if _, err := s.Attach(within(t), 1<<31); !errors.Is(err, ErrNotFound) {
		t.Errorf("Attach to nothing: %v, want ErrNotFound", err)
	}
	if err := s.Signal(within(t), 1<<31, SignalTerm); err != nil {
		t.Errorf("Signal to nothing: %v", err)
	}
	if err := s.Signal(within(t), first.PID(), "SIGHUP"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Signal SIGHUP: %v, want ErrUnsupported", err)
	}
}

func TestProcesses(t *testing.T) {
	s := realSandbox(t)
	dir := t.TempDir()
	p, err := s.Start(within(t), Command{Path: "sleep", Args: []string{"1000"}, Tag: t.Name(), Dir: dir, Env: map[string]string{"A": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := s.Processes(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []ProcessInfo
	for _, info := range infos {
		if info.Tag == t.Name() {
			got = append(got, info)
		}
	}
	want := []ProcessInfo{{PID: p.PID(), Tag: t.Name(), Path: "sleep", Args: []string{"1000"}, Env: map[string]string{"A": "b"}, Dir: dir}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	if err := p.Signal(within(t), SignalKill); err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(within(t)); err != nil {
		t.Error(err)
	}
}

func TestStartInvalid(t *testing.T) {
	s := realSandbox(t)
	if _, err := s.Start(within(t), Command{Path: "true", Dir: t.TempDir() + "/missing"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Start in a missing directory: %v, want ErrInvalid", err)
	}
	if _, err := s.Start(within(t), Command{Path: "true", User: "nobody knows"}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "Command.User") {
		t.Errorf("Start as an unknown user: %v, want ErrInvalid and a word about Command.User", err)
	}
	p, err := s.Start(within(t), Command{Path: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.Stdin(), "x"); !errors.Is(err, ErrInvalid) {
		t.Errorf("Write without Command.Stdin: %v, want ErrInvalid", err)
	}
	if status, err := p.Wait(within(t)); status != (ExitStatus{}) || err != nil {
		t.Errorf("cat without input: %v, %v", status, err)
	}
}

// TestStderrFails checks that a writer of standard error that fails holds up
// nothing.
func TestStderrFails(t *testing.T) {
	s := realSandbox(t)
	broken := writerFunc(func([]byte) (int, error) { return 0, errors.New("broken") })
	p, err := s.Start(within(t), Command{Path: "/bin/sh", Args: []string{"-c", "head -c 1000000 /dev/zero >&2; echo done"}, Stderr: broken})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(p.Stdout()); strings.TrimSpace(string(out)) != "done" || err != nil {
		t.Errorf("output %q, %v", out, err)
	}
}
