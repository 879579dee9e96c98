package envd_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/osiris-pipelines/remote/internal/envdpb"
)

func exited(code int32) *pb.ProcessEvent_EndEvent {
	e := &pb.ProcessEvent_EndEvent{ExitCode: code, Exited: true, Status: fmt.Sprintf("exit status %d", code)}
	if code != 0 {
		e.Error = proto.String(e.Status)
	}
	return e
}

func killed(signal string) *pb.ProcessEvent_EndEvent {
	return &pb.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: " + signal, Error: proto.String("signal: " + signal)}
}

func checkEnd(t *testing.T, o output, want *pb.ProcessEvent_EndEvent, code string) {
	t.Helper()
	if diff := cmp.Diff(want, o.end, protocmp.Transform()); diff != "" || o.code != code {
		t.Errorf("stream ended with %q, want %q; end event (-want +got):\n%s", o.code, code, diff)
	}
}

func TestStart(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	tests := map[string]struct {
		script         string
		stdout, stderr string
		end            *pb.ProcessEvent_EndEvent
	}{
		"silence":        {"true", "", "", exited(0)},
		"both pipes":     {"echo out; echo err >&2; exit 7", "out\n", "err\n", exited(7)},
		"half a rune":    {`printf '\303'; sleep 0.1; printf '\251'`, "\u00e9", "", exited(0)},
		"kills itself":   {"kill -TERM $$", "", "", killed("terminated")},
		"no stdin":       {"cat", "", "", exited(0)},
		"grandchild":     {"(sleep 0.3; echo late) & echo early", "early\nlate\n", "", exited(0)},
		"closed pipes":   {"exec >&- 2>&-; sleep 0.2; exit 3", "", "", exited(3)},
		"much of it":     {"head -c 1000000 /dev/zero | tr '\\0' x", strings.Repeat("x", 1000000), "", exited(0)},
		"home directory": {"pwd", home(t) + "\n", "", exited(0)},
	}
	for _, c := range codecs {
		for name, tt := range tests {
			t.Run(string(c)+" "+name, func(t *testing.T) {
				o := tg.run(c, tt.script)
				if o.stdout != tt.stdout || o.stderr != tt.stderr {
					t.Errorf("stdout %.100q, stderr %.100q", o.stdout, o.stderr)
				}
				if o.largest > 32<<10 {
					t.Errorf("a chunk has %d bytes", o.largest)
				}
				checkEnd(t, o, tt.end, "")
			})
		}
		t.Run(string(c)+" arguments", func(t *testing.T) {
			s := tg.open(c, pb.ProcessStart, &pb.StartRequest{Stdin: proto.Bool(false), Process: &pb.ProcessConfig{
				Cmd: "printf", Args: []string{"%s,", "$HOME", "*", "a b", ""}, Cwd: &dir,
			}})
			s.pid()
			if o := s.rest(); o.stdout != "$HOME,*,a b,," {
				t.Errorf("stdout %q", o.stdout)
			}
		})
	}
}

func TestStartEnvironment(t *testing.T) {
	tg := newTarget(t)
	res, _ := tg.do(request{path: "/init", body: strings.NewReader(`{"accessToken":"` + token + `","envVars":{"A":"global","B":"global","E2B_SANDBOX":"mine"}}`)})
	if res.StatusCode != http.StatusNoContent || res.Header.Get("X-Envd-Version") != "0.6.13" {
		t.Fatalf("init: %v", res)
	}
	_, body := tg.do(request{path: "/envs"})
	var vars map[string]string
	if err := json.Unmarshal([]byte(body), &vars); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"A": "global", "B": "global", "E2B_SANDBOX": "false"}, vars); diff != "" {
		t.Errorf("global (-want +got):\n%s", diff)
	}
	s := tg.open("json", pb.ProcessStart, &pb.StartRequest{Stdin: proto.Bool(false), Process: &pb.ProcessConfig{
		Cmd: "env", Envs: map[string]string{"B": "own", "USER": "x"}, Cwd: proto.String("/"),
	}})
	s.pid()
	got := make(map[string]string)
	for line := range strings.Lines(s.rest().stdout) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		got[name] = value
	}
	if got["PATH"] == "" {
		t.Error("no PATH")
	}
	delete(got, "PATH")
	want := map[string]string{"HOME": home(t), "USER": "x", "LOGNAME": self(t).Username, "A": "global", "B": "own", "E2B_SANDBOX": "false", "PWD": "/"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestStartErrors(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	file := write(t, dir+"/file", "")
	in := func(cwd string) *pb.StartRequest {
		req := shell("true")
		req.Process.Cwd = &cwd
		return req
	}
	terminal := in(file)
	terminal.Pty = &pb.PTY{}
	tests := map[string]struct {
		req    *pb.StartRequest
		header []string
		want   string
	}{
		"missing directory":  {in(dir + "/no"), nil, "invalid_argument"},
		"no directory":       {in(file), nil, "invalid_argument"},
		"terminal":           {terminal, nil, "invalid_argument"},
		"other's home":       {in("~bob"), nil, "invalid_argument"},
		"user":               {in(""), []string{"Authorization", "Basic bm9ib2R5eDo="}, "unauthenticated"},
		"timeout no number":  {in(""), []string{"Connect-Timeout-Ms", "x"}, "invalid_argument"},
		"timeout too long":   {in(""), []string{"Connect-Timeout-Ms", "12345678901"}, "invalid_argument"},
		"compression":        {in(""), []string{"Connect-Content-Encoding", "br"}, "unimplemented"},
		"protocol version":   {in(""), []string{"Connect-Protocol-Version", "2"}, "invalid_argument"},
		"directory as a tag": {in(dir + "/no/"), nil, "invalid_argument"},
	}
	for _, c := range codecs {
		for name, tt := range tests {
			t.Run(string(c)+" "+name, func(t *testing.T) {
				s := tg.open(c, pb.ProcessStart, tt.req, tt.header...)
				if end, ok := s.next(&pb.StartResponse{}); ok || end != tt.want {
					t.Errorf("%q, want %q", end, tt.want)
				}
			})
		}
	}
}

// TestStartEnvelopes shows that there must be one message, neither less nor
// more.
func TestStartEnvelopes(t *testing.T) {
	tg := newTarget(t)
	one := envelope(codec("json").marshal(t, shell("true")))
	for name, body := range map[string][]byte{"none": nil, "two": append(one, one...)} {
		res := tg.send(request{path: pb.ProcessStart, header: header("Content-Type", "application/connect+json"), body: bytes.NewReader(body)})
		s := &stream{t: t, codec: "json", res: res}
		if end, ok := s.next(&pb.StartResponse{}); ok || end != "unimplemented" {
			t.Errorf("%s: %q", name, end)
		}
	}
}

// TestMissingProgram shows that it is a process that fails, not a request.
func TestMissingProgram(t *testing.T) {
	tg := newTarget(t)
	s := tg.open("json", pb.ProcessStart, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "no-such-program"}})
	s.pid()
	o := s.rest()
	if !strings.Contains(o.stderr, "no-such-program") || o.stdout != "" {
		t.Errorf("stdout %q, stderr %q", o.stdout, o.stderr)
	}
	checkEnd(t, o, exited(127), "")
}

// TestCompression shows that all frames of a stream are compressed, if asked.
func TestCompression(t *testing.T) {
	tg := newTarget(t)
	s := tg.open("json", pb.ProcessStart, shell("echo hello"), "Connect-Accept-Encoding", "gzip")
	var text strings.Builder
	for {
		payload, err := s.frame()
		if err != nil {
			break
		}
		zr, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil || s.flags&1 == 0 {
			t.Fatalf("frame with flags %d: %v", s.flags, err)
		}
		b, err := io.ReadAll(zr)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	if !strings.Contains(text.String(), "aGVsbG8K") || !strings.HasSuffix(text.String(), "{}") || s.flags != 3 {
		t.Errorf("flags %d, frames %s", s.flags, text.String())
	}
}

// TestTimeout shows that the time of a request is that of the process, that
// its end is then not told, and that its children live on.
func TestTimeout(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			dir := t.TempDir()
			start := time.Now()
			s := tg.open(c, pb.ProcessStart, shell("(sleep 1; echo x >"+dir+"/late) & echo hi; exec sleep 60"), "Connect-Timeout-Ms", "300")
			pid := s.pid()
			o := s.rest()
			if o.stdout != "hi\n" || time.Since(start) > 30*time.Second {
				t.Errorf("stdout %q after %v", o.stdout, time.Since(start))
			}
			checkEnd(t, o, nil, "deadline_exceeded")
			eventually(t, "the exit that was kept", func() bool {
				s := tg.open(c, pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
				s.pid()
				o = s.rest()
				return o.end != nil
			})
			checkEnd(t, o, killed("killed"), "")
			eventually(t, "the child that lives on", func() bool { _, err := os.Stat(dir + "/late"); return err == nil })
		})
	}
}

// find returns the number of the process with a tag, as List has it.
func (tg *target) find(tag string) (pid uint32) {
	tg.t.Helper()
	res := &pb.ListResponse{}
	tg.must("proto", pb.ProcessList, &pb.ListRequest{}, res)
	for _, p := range res.GetProcesses() {
		if p.GetTag() == tag {
			pid = p.GetPid()
		}
	}
	return pid
}

// TestNoTime shows that a time of zero ends the stream and not the process.
func TestNoTime(t *testing.T) {
	tg := newTarget(t)
	req := shell("exec sleep 60")
	req.Tag = proto.String("no-time")
	s := tg.open("json", pb.ProcessStart, req, "Connect-Timeout-Ms", "0")
	if o := s.rest(); o.code != "deadline_exceeded" {
		t.Errorf("ended with %q", o.code)
	}
	pid := tg.find("no-time")
	if pid == 0 {
		t.Fatal("there is no process")
	}
	tg.kill(pid)
}

func TestKeepalive(t *testing.T) {
	tg := newTarget(t)
	s := tg.open("json", pb.ProcessStart, shell("sleep 2.5; echo x"), "Keepalive-Ping-Interval", "1")
	s.pid()
	if o := s.rest(); o.keepalives < 2 || o.stdout != "x\n" {
		t.Errorf("%d keep-alive events, stdout %q", o.keepalives, o.stdout)
	}
}

// TestDetached shows that a process outlives its stream, that what it says
// meanwhile is lost, and that its end can be had.
func TestDetached(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			dir := t.TempDir()
			wait := func(name string) string { return "; while [ ! -e " + dir + "/" + name + " ]; do sleep 0.02; done; " }
			s := tg.open(c, pb.ProcessStart, shell("echo one"+wait("1")+"echo two; touch "+dir+"/said"+wait("2")+"echo three; exit 5"))
			pid := s.pid()
			if got := s.saying("one\n"); got != "one\n" {
				t.Errorf("stdout %q", got)
			}
			s.close()
			write(t, dir+"/1", "")
			eventually(t, "the second word", func() bool { _, err := os.Stat(dir + "/said"); return err == nil })
			eventually(t, "the reading of it", func() bool { return inPipe(t, pid, 1) == 0 })
			s = tg.open(c, pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
			if got := s.pid(); got != pid {
				t.Errorf("connected to %d, want %d", got, pid)
			}
			write(t, dir+"/2", "")
			o := s.rest()
			if o.stdout != "three\n" {
				t.Errorf("stdout %q", o.stdout)
			}
			checkEnd(t, o, exited(5), "")
			s = tg.open(c, pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
			s.pid()
			checkEnd(t, s.rest(), exited(5), "")
		})
	}
}

func TestConnectTimeout(t *testing.T) {
	tg := newTarget(t)
	s := tg.open("json", pb.ProcessStart, shell("exec sleep 60"))
	pid := s.pid()
	other := tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)}, "Connect-Timeout-Ms", "50")
	other.pid()
	checkEnd(t, other.rest(), nil, "deadline_exceeded")
	if code := tg.call("json", pb.ProcessCloseStdin, &pb.CloseStdinRequest{Process: byPID(pid)}, &pb.CloseStdinResponse{}); code != "" {
		t.Errorf("the process is gone: %s", code)
	}
	tg.kill(pid)
	checkEnd(t, s.rest(), killed("killed"), "")
}

func TestSelectorErrors(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		for want, sel := range map[string]*pb.ProcessSelector{"not_found": byPID(999999999), "unimplemented": nil} {
			s := tg.open(c, pb.ProcessConnect, &pb.ConnectRequest{Process: sel})
			if end, ok := s.next(&pb.ConnectResponse{}); ok || end != want {
				t.Errorf("Connect: %q, want %q", end, want)
			}
			for procedure, m := range map[string][2]proto.Message{
				pb.ProcessSendInput:  {&pb.SendInputRequest{Process: sel}, &pb.SendInputResponse{}},
				pb.ProcessSendSignal: {&pb.SendSignalRequest{Process: sel}, &pb.SendSignalResponse{}},
				pb.ProcessCloseStdin: {&pb.CloseStdinRequest{Process: sel}, &pb.CloseStdinResponse{}},
				pb.ProcessUpdate:     {&pb.UpdateRequest{Process: sel}, &pb.UpdateResponse{}},
			} {
				if code := tg.call(c, procedure, m[0], m[1]); code != want {
					t.Errorf("%s: %q, want %q", procedure, code, want)
				}
			}
		}
	}
	s := tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: byTag("nobody has it")})
	if end, ok := s.next(&pb.ConnectResponse{}); ok || end != "not_found" {
		t.Errorf("unknown tag: %q", end)
	}
}

// TestTags shows that a tag finds its process only while no other tag is there.
func TestTags(t *testing.T) {
	tg := newTarget(t)
	start := func(tag string) uint32 {
		req := shell("exec sleep 60")
		if tag != "" {
			req.Tag = &tag
		}
		s := tg.open("json", pb.ProcessStart, req)
		pid := s.pid()
		t.Cleanup(func() { tg.kill(pid) })
		return pid
	}
	found := func(tag string) bool {
		code := tg.call("json", pb.ProcessUpdate, &pb.UpdateRequest{Process: byTag(tag)}, &pb.UpdateResponse{})
		return code == ""
	}
	start("")
	start("tag0")
	start("tag0")
	if !found("tag0") {
		t.Error("the only tag is not found")
	}
	n := 0
	for i := 1; i < 6; i++ {
		start(fmt.Sprint("tag", i))
	}
	for i := range 6 {
		if found(fmt.Sprint("tag", i)) {
			n++
		}
	}
	if n > 1 {
		t.Errorf("%d of six tags are found", n)
	}
}

func TestList(t *testing.T) {
	tg := newTarget(t)
	req := shell("exec sleep 60")
	req.Process.Envs = map[string]string{"SECRET": "1"}
	req.Tag = proto.String("listed")
	s := tg.open("json", pb.ProcessStart, req)
	want := &pb.ProcessInfo{Config: req.Process, Pid: s.pid(), Tag: req.Tag}
	res := &pb.ListResponse{}
	tg.must("json", pb.ProcessList, &pb.ListRequest{}, res)
	var got *pb.ProcessInfo
	for _, p := range res.GetProcesses() {
		if p.GetPid() == want.GetPid() {
			got = p
		}
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	tg.kill(want.GetPid())
	s.rest()
	if pid := tg.find("listed"); pid != 0 {
		t.Errorf("process %d is listed after its end", pid)
	}
}

func (tg *target) signal(pid uint32, sig pb.Signal) string {
	tg.t.Helper()
	return tg.call("proto", pb.ProcessSendSignal, &pb.SendSignalRequest{Process: byPID(pid), Signal: sig}, &pb.SendSignalResponse{})
}

// TestSignals shows that a signal goes to the process alone, whose end is then
// told at once.
func TestSignals(t *testing.T) {
	tg := newTarget(t)
	for sig, want := range map[pb.Signal]string{pb.Signal_SIGNAL_SIGKILL: "killed", pb.Signal_SIGNAL_SIGTERM: "terminated"} {
		dir := t.TempDir()
		s := tg.open("json", pb.ProcessStart, shell("(until [ -e "+dir+"/go ]; do sleep 0.1; done; echo >"+dir+"/late) & echo ready; exec sleep 60"))
		pid := s.pid()
		s.event() // the child is there
		for _, bad := range []pb.Signal{0, 2} {
			if code := tg.signal(pid, bad); code != "unimplemented" {
				t.Errorf("signal %d: %q", bad, code)
			}
		}
		if code := tg.signal(pid, sig); code != "" {
			t.Errorf("%v: %s", sig, code)
		}
		checkEnd(t, s.rest(), killed(want), "") // the child has the output open still
		if code := tg.signal(pid, sig); code != "not_found" {
			t.Errorf("again: %q", code)
		}
		if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the child that lives on", func() bool { _, err := os.Stat(dir + "/late"); return err == nil })
	}
}

// pipeSize is what a pipe holds on Linux, in bytes.
const pipeSize = 64 << 10

// inPipe returns how many bytes wait in a pipe of a process.
func inPipe(t *testing.T, pid uint32, fd int) int {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func stdin(s string) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte(s)}}
}

func terminalInput(s string) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte(s)}}
}

func (tg *target) input(c codec, pid uint32, in *pb.ProcessInput) string {
	tg.t.Helper()
	return tg.call(c, pb.ProcessSendInput, &pb.SendInputRequest{Process: byPID(pid), Input: in}, &pb.SendInputResponse{})
}

func (tg *target) closeStdin(pid uint32) string {
	tg.t.Helper()
	return tg.call("json", pb.ProcessCloseStdin, &pb.CloseStdinRequest{Process: byPID(pid)}, &pb.CloseStdinResponse{})
}

// piped asks for a program whose stdin is open, because nothing is said of it.
func piped(name string, args ...string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: name, Args: args}}
}

func TestInput(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			s := tg.open(c, pb.ProcessStart, piped("cat"))
			pid := s.pid()
			for in, want := range map[*pb.ProcessInput]string{stdin("hello"): "", terminalInput("x"): "internal", nil: "unimplemented"} {
				if code := tg.input(c, pid, in); code != want {
					t.Errorf("input %v: %q, want %q", in, code, want)
				}
			}
			if code := tg.call(c, pb.ProcessUpdate, &pb.UpdateRequest{Process: byPID(pid), Pty: &pb.PTY{}}, &pb.UpdateResponse{}); code != "internal" {
				t.Errorf("resize: %q", code)
			}
			if got := s.saying("hello"); got != "hello" {
				t.Errorf("stdout %q", got)
			}
			if code := tg.closeStdin(pid); code != "" {
				t.Errorf("close: %q", code)
			}
			checkEnd(t, s.rest(), exited(0), "")
		})
	}
}

func TestClosedStdin(t *testing.T) {
	tg := newTarget(t)
	closed := tg.open("json", pb.ProcessStart, piped("sleep", "60")).pid()
	disabled := tg.open("json", pb.ProcessStart, shell("exec sleep 60")).pid()
	unread := tg.open("json", pb.ProcessStart, piped("sh", "-c", "exec <&-; exec sleep 60")).pid()
	for _, pid := range []uint32{closed, disabled, closed} {
		if code := tg.closeStdin(pid); code != "" {
			t.Errorf("close: %q", code)
		}
		if code := tg.input("json", pid, stdin("x")); code != "internal" {
			t.Errorf("input: %q", code)
		}
	}
	eventually(t, "a broken pipe", func() bool { return tg.input("json", unread, stdin("x")) == "internal" })
	for _, pid := range []uint32{closed, disabled, unread} {
		tg.kill(pid)
	}
}

// TestInputBlocks shows that input beyond what a pipe holds waits for the
// process, whoever gives up meanwhile, and that other calls wait behind it.
func TestInputBlocks(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	s := tg.open("json", pb.ProcessStart, piped("sh", "-c", "while [ ! -e "+dir+"/go ]; do sleep 0.02; done; wc -c"))
	pid := s.pid()
	const size = 200_000
	sent := make(chan string, 1)
	go func() { sent <- tg.input("json", pid, stdin(strings.Repeat("x", size))) }()
	eventually(t, "a full pipe", func() bool { return inPipe(t, pid, 0) == pipeSize })
	closed := make(chan string, 1)
	go func() { closed <- tg.closeStdin(pid) }()
	select {
	case code := <-sent:
		t.Errorf("input did not block: %q", code)
	case code := <-closed:
		t.Errorf("closing did not block: %q", code)
	case <-time.After(300 * time.Millisecond):
	}
	write(t, dir+"/go", "")
	if a, b := <-sent, <-closed; a != "" || b != "" {
		t.Errorf("input: %q, close: %q", a, b)
	}
	if o := s.rest(); strings.TrimSpace(o.stdout) != fmt.Sprint(size) {
		t.Errorf("%q bytes came", o.stdout)
	}
}

func TestStreamInput(t *testing.T) {
	tg := newTarget(t)
	start := func(pid uint32) *pb.StreamInputRequest {
		return &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(pid)}}}
	}
	data := func(in *pb.ProcessInput) *pb.StreamInputRequest {
		return &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: in}}}
	}
	alive := &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Keepalive{Keepalive: &pb.StreamInputRequest_KeepAlive{}}}
	for _, c := range codecs {
		send := func(msgs ...*pb.StreamInputRequest) (string, error) {
			var body bytes.Buffer
			for _, m := range msgs {
				body.Write(envelope(c.marshal(t, m)))
			}
			res, err := tg.try(request{path: pb.ProcessStreamInput, header: header("Content-Type", "application/connect+"+string(c)), body: &body})
			if err != nil {
				return "", err
			}
			defer res.Body.Close()
			s := &stream{t: t, codec: c, res: res}
			if end, ok := s.next(&pb.StreamInputResponse{}); !ok {
				return end, nil
			}
			end, _ := s.next(&pb.StreamInputResponse{})
			return end, nil
		}
		t.Run(string(c), func(t *testing.T) {
			s := tg.open(c, pb.ProcessStart, piped("cat"))
			pid := s.pid()
			tests := map[string]struct {
				msgs []*pb.StreamInputRequest
				want string
			}{
				"nothing":  {nil, ""},
				"input":    {[]*pb.StreamInputRequest{start(pid), data(stdin("a")), alive, start(pid), data(stdin("b"))}, ""},
				"no input": {[]*pb.StreamInputRequest{start(pid), data(nil)}, "unimplemented"},
				"no event": {[]*pb.StreamInputRequest{{}}, "unimplemented"},
				"missing":  {[]*pb.StreamInputRequest{start(999999999)}, "not_found"},
				"terminal": {[]*pb.StreamInputRequest{start(pid), data(terminalInput("x"))}, "internal"},
			}
			for name, tt := range tests {
				if end, err := send(tt.msgs...); end != tt.want || err != nil {
					t.Errorf("%s: %q, want %q; %v", name, end, tt.want, err)
				}
			}
			if end, err := send(data(stdin("x"))); err == nil {
				t.Errorf("data without a process is answered: %q", end)
			}
			tg.closeStdin(pid)
			if o := s.rest(); o.stdout != "ab" {
				t.Errorf("stdout %q", o.stdout)
			}
		})
	}
}

// TestStreamInputGoesOn shows that input arrives while the request is still
// being sent.
func TestStreamInputGoesOn(t *testing.T) {
	tg := newTarget(t)
	s := tg.open("proto", pb.ProcessStart, piped("cat"))
	pid := s.pid()
	body, w := io.Pipe()
	done := make(chan string, 1)
	go func() {
		res, err := tg.try(request{path: pb.ProcessStreamInput, header: header("Content-Type", "application/connect+proto"), body: body})
		if err != nil {
			done <- err.Error()
			return
		}
		defer res.Body.Close()
		s := &stream{t: t, codec: "proto", res: res}
		s.next(&pb.StreamInputResponse{})
		end, _ := s.next(&pb.StreamInputResponse{})
		done <- end
	}()
	for _, m := range []*pb.StreamInputRequest{
		{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(pid)}}},
		{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: stdin("now")}}},
	} {
		if _, err := w.Write(envelope(codec("proto").marshal(t, m))); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.saying("now"); got != "now" {
		t.Errorf("stdout %q", got)
	}
	w.Close()
	if end := <-done; end != "" {
		t.Errorf("ended with %q", end)
	}
	tg.kill(pid)
}

func TestTerminal(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			size := func(cols, rows uint32) *pb.PTY { return &pb.PTY{Size: &pb.PTY_Size{Cols: cols, Rows: rows}} }
			// It waits before it exits: the kernel throws away what of a terminal
			// was not read when the leader of its session ends.
			req := piped("sh", "-c", "stty size; read x; stty size; echo got $x >&2; read x; exit 4")
			req.Pty = size(81, 31)
			s := tg.open(c, pb.ProcessStart, req)
			pid := s.pid()
			if got := s.saying("31 81\r\n"); got != "31 81\r\n" {
				t.Errorf("terminal says %q", got)
			}
			if code := tg.call(c, pb.ProcessUpdate, &pb.UpdateRequest{Process: byPID(pid), Pty: size(65536+90, 40)}, &pb.UpdateResponse{}); code != "" {
				t.Errorf("resize: %q", code)
			}
			if code := tg.input(c, pid, stdin("x")); code != "internal" {
				t.Errorf("stdin: %q", code)
			}
			if code := tg.closeStdin(pid); code != "unknown" {
				t.Errorf("close: %q", code)
			}
			if code := tg.input(c, pid, terminalInput("word\n")); code != "" {
				t.Errorf("input: %q", code)
			}
			const want = "word\r\n40 90\r\ngot word\r\n"
			if got := s.saying(want); got != want {
				t.Errorf("terminal says %q", got)
			}
			if code := tg.input(c, pid, terminalInput("\n")); code != "" {
				t.Errorf("input: %q", code)
			}
			o := s.rest()
			if strings.TrimSpace(o.pty) != "" || o.stdout+o.stderr != "" {
				t.Errorf("terminal says %q, stdout %q", o.pty, o.stdout)
			}
			checkEnd(t, o, exited(4), "")
		})
	}
}

// TestSlowReader shows that one who does not read stops the process and all
// other readers, until he leaves.
func TestSlowReader(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	s := tg.open("proto", pb.ProcessStart, shell("while [ ! -e "+dir+"/go ]; do sleep 0.02; done; head -c 50000000 /dev/zero; touch "+dir+"/done"))
	pid := s.pid()
	other := tg.open("proto", pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
	other.pid()
	write(t, dir+"/go", "")
	all := make(chan output, 1)
	go func() { all <- other.rest() }()
	select {
	case <-all:
		t.Fatal("the other reader was not held up")
	case <-time.After(500 * time.Millisecond):
	}
	if _, err := os.Stat(dir + "/done"); err == nil {
		t.Error("the process was not held up")
	}
	s.close()
	o := <-all
	if len(o.stdout) != 50000000 {
		t.Errorf("the other reader got %d bytes", len(o.stdout))
	}
	checkEnd(t, o, exited(0), "")
}
