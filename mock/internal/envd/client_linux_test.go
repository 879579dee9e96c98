package envd_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/osiris-pipelines/remote/internal/envdpb"
	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// token is what a daemon under test may have been given by an earlier test.
const token = "a-token"

// target is a daemon under test: the fake one, or the real one that the
// environment variable E2B_ENVD_URL names. What is asserted of a target holds
// for both. The real one must run as root on this computer, and so must the test.
type target struct {
	t    *testing.T
	url  string
	fake *envd.Daemon // nil if it is real
	http *http.Client
}

func newTarget(t *testing.T) *target {
	if url := os.Getenv("E2B_ENVD_URL"); url != "" {
		return &target{t: t, url: url, http: newClient(t)}
	}
	return newFake(t, envd.Options{Env: map[string]string{"E2B_SANDBOX": "false"}})
}

// newFake returns a fake daemon, for what cannot be asked of a real one.
func newFake(t *testing.T, opts envd.Options) *target {
	return serve(t, envd.New(host{}, opts))
}

func serve(t *testing.T, d *envd.Daemon) *target {
	srv := httptest.NewServer(d)
	t.Cleanup(func() {
		d.Close()
		srv.Close()
	})
	return &target{t: t, url: srv.URL, fake: d, http: newClient(t)}
}

func newClient(t *testing.T) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// request is what a test sends. Without a method it is a POST if there is a
// body, else a GET. Every request has the token, unless it says otherwise.
type request struct {
	method string
	path   string
	header http.Header
	body   io.Reader
}

func header(pairs ...string) http.Header {
	h := make(http.Header)
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func (tg *target) send(r request) *http.Response {
	tg.t.Helper()
	res, err := tg.try(r)
	if err != nil {
		tg.t.Fatalf("%s: %v", r.path, err)
	}
	tg.t.Cleanup(func() { res.Body.Close() })
	return res
}

func (tg *target) try(r request) (*http.Response, error) {
	method := r.method
	if method == "" {
		method = http.MethodGet
		if r.body != nil {
			method = http.MethodPost
		}
	}
	req, err := http.NewRequest(method, tg.url+r.path, r.body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Access-Token", token)
	for name, values := range r.header {
		req.Header[name] = values
		if len(values) == 1 && values[0] == "" {
			req.Header.Del(name)
		}
	}
	return tg.http.Do(req)
}

func (tg *target) do(r request) (*http.Response, string) {
	tg.t.Helper()
	res := tg.send(r)
	body, err := io.ReadAll(res.Body)
	if err != nil {
		tg.t.Fatalf("%s: read answer: %v", r.path, err)
	}
	return res, string(body)
}

// codec is one of the two in which messages travel.
type codec string

var codecs = []codec{"json", "proto"}

func (c codec) marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	f := proto.Marshal
	if c == "json" {
		f = protojson.Marshal
	}
	b, err := f(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c codec) unmarshal(t *testing.T, b []byte, m proto.Message) {
	t.Helper()
	f := proto.Unmarshal
	if c == "json" {
		f = protojson.Unmarshal
	}
	if err := f(b, m); err != nil {
		t.Fatalf("unmarshal %q: %v", b, err)
	}
}

// rpcStatus is the error of a procedure, as it is sent.
type rpcStatus struct {
	Code string `json:"code"`
}

// call calls a unary procedure, and returns the code of its error. The answer
// goes to res.
func (tg *target) call(c codec, procedure string, req, res proto.Message, h ...string) string {
	tg.t.Helper()
	hd := header(h...)
	hd.Set("Content-Type", "application/"+string(c))
	answer, body := tg.do(request{path: procedure, header: hd, body: bytes.NewReader(c.marshal(tg.t, req))})
	if answer.StatusCode == http.StatusOK {
		c.unmarshal(tg.t, []byte(body), res)
		return ""
	}
	var e rpcStatus
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		tg.t.Fatalf("%s: status %d, %q: %v", procedure, answer.StatusCode, body, err)
	}
	if want := httpStatus[e.Code]; answer.StatusCode != want {
		tg.t.Errorf("%s: code %s has status %d, want %d", procedure, e.Code, answer.StatusCode, want)
	}
	return e.Code
}

var httpStatus = map[string]int{
	"canceled": 499, "unknown": 500, "invalid_argument": 400, "deadline_exceeded": 504, "not_found": 404,
	"already_exists": 409, "failed_precondition": 400, "unimplemented": 501, "internal": 500, "unauthenticated": 401,
}

// must calls a procedure that succeeds.
func (tg *target) must(c codec, procedure string, req, res proto.Message) {
	tg.t.Helper()
	if code := tg.call(c, procedure, req, res); code != "" {
		tg.t.Fatalf("%s: %s", procedure, code)
	}
}

// envelope frames a message of a stream.
func envelope(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// stream is the answer of a streaming procedure.
type stream struct {
	t     *testing.T
	codec codec
	res   *http.Response
	flags byte // of the last frame
}

func (tg *target) open(c codec, procedure string, req proto.Message, h ...string) *stream {
	tg.t.Helper()
	hd := header(h...)
	hd.Set("Content-Type", "application/connect+"+string(c))
	body := bytes.NewReader(envelope(c.marshal(tg.t, req)))
	res := tg.send(request{path: procedure, header: hd, body: body})
	if res.StatusCode != http.StatusOK {
		tg.t.Fatalf("%s: status %s", procedure, res.Status)
	}
	return &stream{t: tg.t, codec: c, res: res}
}

func (s *stream) close() { s.res.Body.Close() }

// errCut is the end of a stream without a frame that says so.
var errCut = errors.New("cut")

// frame reads one frame. It returns io.EOF after the last.
func (s *stream) frame() ([]byte, error) {
	if s.flags&2 != 0 {
		return nil, io.EOF
	}
	var prefix [5]byte
	if _, err := io.ReadFull(s.res.Body, prefix[:]); err != nil {
		return nil, errCut
	}
	payload := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
	if _, err := io.ReadFull(s.res.Body, payload); err != nil {
		return nil, errCut
	}
	s.flags = prefix[0]
	return payload, nil
}

// next reads a message. If there is none, it returns false and how the stream
// ended: "" is well, "cut" is without a last frame, the rest are codes.
func (s *stream) next(m proto.Message) (end string, ok bool) {
	s.t.Helper()
	payload, err := s.frame()
	if err != nil {
		return err.Error(), false
	}
	if s.flags&2 == 0 {
		s.codec.unmarshal(s.t, payload, m)
		return "", true
	}
	var last struct{ Error *rpcStatus }
	if err := json.Unmarshal(payload, &last); err != nil {
		s.t.Fatalf("last frame %q: %v", payload, err)
	}
	if last.Error != nil {
		return last.Error.Code, false
	}
	return "", false
}

// event reads the next event of a process, which must be there.
func (s *stream) event() *envdpb.ProcessEvent {
	s.t.Helper()
	res := &envdpb.StartResponse{} // that of Connect has the same fields
	if end, ok := s.next(res); !ok {
		s.t.Fatalf("the stream ended: %q", end)
	}
	return res.GetEvent()
}

// saying reads what a process says until it is as long as want, for it may come
// in pieces.
func (s *stream) saying(want string) string {
	s.t.Helper()
	var got []byte
	for len(got) < len(want) {
		data := s.event().GetData()
		got = append(append(got, data.GetStdout()...), data.GetPty()...)
	}
	return string(got)
}

// pid reads the first event of a process.
func (s *stream) pid() uint32 {
	s.t.Helper()
	ev := s.event()
	if ev.GetStart() == nil {
		s.t.Fatalf("first event is %v", ev)
	}
	return ev.GetStart().GetPid()
}

// output is what a process said, and how its stream ended.
type output struct {
	stdout, stderr, pty string
	end                 *envdpb.ProcessEvent_EndEvent
	keepalives          int
	largest             int
	code                string
}

// rest reads all events up to the end of the stream.
func (s *stream) rest() (o output) {
	s.t.Helper()
	var stdout, stderr, pty strings.Builder
	for {
		res := &envdpb.StartResponse{}
		end, ok := s.next(res)
		if !ok {
			o.code, o.stdout, o.stderr, o.pty = end, stdout.String(), stderr.String(), pty.String()
			return o
		}
		ev := res.GetEvent()
		data := ev.GetData()
		stdout.Write(data.GetStdout())
		stderr.Write(data.GetStderr())
		pty.Write(data.GetPty())
		o.largest = max(o.largest, len(data.GetStdout()), len(data.GetPty()))
		if ev.GetKeepalive() != nil {
			o.keepalives++
		}
		if ev.GetEnd() != nil {
			o.end = ev.GetEnd()
		}
	}
}

// run starts a shell command without stdin, and returns all it says.
func (tg *target) run(c codec, script string, h ...string) output {
	tg.t.Helper()
	s := tg.open(c, envdpb.ProcessStart, shell(script), h...)
	s.pid()
	return s.rest()
}

// shell asks for a shell command without stdin.
func shell(script string) *envdpb.StartRequest {
	return &envdpb.StartRequest{
		Process: &envdpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
		Stdin:   proto.Bool(false),
	}
}

func byPID(pid uint32) *envdpb.ProcessSelector {
	return &envdpb.ProcessSelector{Selector: &envdpb.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *envdpb.ProcessSelector {
	return &envdpb.ProcessSelector{Selector: &envdpb.ProcessSelector_Tag{Tag: tag}}
}

// kill kills a process, if it is there.
func (tg *target) kill(pid uint32) {
	tg.t.Helper()
	req := &envdpb.SendSignalRequest{Process: byPID(pid), Signal: envdpb.Signal_SIGNAL_SIGKILL}
	if code := tg.call("json", envdpb.ProcessSendSignal, req, &envdpb.SendSignalResponse{}); code != "" && code != "not_found" {
		tg.t.Errorf("kill %d: %s", pid, code)
	}
}

// self is who runs the test, and the default user of both daemons.
func self(t *testing.T) *user.User {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func home(t *testing.T) string { return self(t).HomeDir }

// needRoot is for tests that act as other users.
func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can act as another user")
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
