package envd_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/osiris-pipelines/remote/internal/envdpb"
	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// TestCutStreams shows that everything that is under way ends without another
// byte, that processes go on, and that later requests are served.
func TestCutStreams(t *testing.T) {
	tg := newFake(t, envd.Options{})
	dir := t.TempDir()
	started := tg.open("json", pb.ProcessStart, piped("sleep", "60"))
	pid := started.pid()
	connected := tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
	connected.pid()
	watching := tg.open("json", pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: t.TempDir()})
	watching.next(&pb.WatchDirResponse{})
	unread := tg.open("json", pb.ProcessStart, shell("exec cat /dev/zero"))
	flood := unread.pid()

	var failed sync.WaitGroup
	try := func(what string, r request) {
		failed.Go(func() {
			if res, err := tg.try(r); err == nil {
				res.Body.Close()
				t.Errorf("%s: %s", what, res.Status)
			}
		})
	}
	input := &pb.SendInputRequest{Process: byPID(pid), Input: stdin(strings.Repeat("x", 100_000))}
	try("blocked input", request{
		path:   pb.ProcessSendInput,
		header: header("Content-Type", "application/proto"),
		body:   strings.NewReader(string(codec("proto").marshal(t, input))),
	})
	body, w := io.Pipe()
	defer w.Close()
	try("upload", request{path: files("path", dir+"/up"), header: header("Content-Type", octets), body: body})
	if _, err := io.WriteString(w, "some"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload", func() bool { _, err := os.Stat(dir + "/up"); return err == nil })
	eventually(t, "blocked input", func() bool { return inPipe(t, pid, 0) == pipeSize })
	eventually(t, "blocked output", func() bool { return inPipe(t, flood, 1) == pipeSize })

	tg.fake.CutStreams()
	for name, s := range map[string]*stream{"Start": started, "Connect": connected, "WatchDir": watching} {
		if end, ok := s.next(&pb.StartResponse{}); ok || end != errCut.Error() {
			t.Errorf("%s ended with %q", name, end)
		}
	}
	if o := unread.rest(); o.code != errCut.Error() {
		t.Errorf("the flood ended with %q", o.code)
	}
	w.Close()
	failed.Wait()

	for _, pid := range []uint32{pid, flood} {
		s := tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: byPID(pid)})
		s.pid()
		tg.kill(pid)
		checkEnd(t, s.rest(), killed("killed"), "")
	}
}

// TestClose shows that nothing is left behind a daemon, whatever it did.
func TestClose(t *testing.T) {
	tg := newFake(t, envd.Options{})
	dir := t.TempDir()
	running := tg.open("json", pb.ProcessStart, piped("sleep", "60"))
	parent := tg.open("json", pb.ProcessStart, shell("sleep 20 & exit"))
	parent.pid()
	tg.must("json", pb.FilesystemCreateWatcher, &pb.CreateWatcherRequest{Path: dir}, &pb.CreateWatcherResponse{})
	pid := running.pid()
	start := time.Now()
	tg.fake.Close()
	tg.fake.Close()
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("closing took %v", took)
	}
	if err := syscall.Kill(int(pid), 0); err != syscall.ESRCH {
		t.Errorf("the process is still there: %v", err)
	}
	if res, err := tg.try(request{path: "/health"}); err == nil {
		res.Body.Close()
		t.Errorf("a closed daemon answers %s", res.Status)
	}
}

// TestExitForgotten shows for how long an exit is kept.
func TestExitForgotten(t *testing.T) {
	var elapsed atomic.Int64 // nanoseconds
	base := time.Now()
	tg := newFake(t, envd.Options{Now: func() time.Time { return base.Add(time.Duration(elapsed.Load())) }})
	req := shell("exit 3")
	req.Tag = proto.String("it")
	s := tg.open("json", pb.ProcessStart, req)
	pid := s.pid()
	s.rest()
	for _, sel := range []*pb.ProcessSelector{byPID(pid), byTag("it")} {
		elapsed.Store(int64(30*time.Second - 1))
		s = tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: sel})
		s.pid()
		checkEnd(t, s.rest(), exited(3), "")
		elapsed.Store(int64(31 * time.Second))
		s = tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: sel})
		checkEnd(t, s.rest(), nil, "not_found")
	}
}

// TestExitReplaced shows that a new process with the same tag takes the place
// of an old one's exit.
func TestExitReplaced(t *testing.T) {
	tg := newTarget(t)
	for range 2 {
		req := shell("exit 3")
		req.Tag = proto.String("again")
		s := tg.open("json", pb.ProcessStart, req)
		pid := s.pid()
		s.rest()
		s = tg.open("json", pb.ProcessConnect, &pb.ConnectRequest{Process: byTag("again")})
		if got := s.pid(); got != pid {
			t.Errorf("the exit is that of %d, want %d", got, pid)
		}
	}
}

// TestNoKeepalive shows what an interval of no time does here: the real daemon
// would die of it.
func TestNoKeepalive(t *testing.T) {
	tg := newFake(t, envd.Options{})
	for _, interval := range []string{"0", "-1"} {
		s := tg.open("json", pb.ProcessStart, shell("exec sleep 60"), "Keepalive-Ping-Interval", interval)
		s.pid()
		if o := s.rest(); o.code != errCut.Error() {
			t.Errorf("interval %s: ended with %q", interval, o.code)
		}
	}
	if o := tg.run("json", "echo x", "Keepalive-Ping-Interval", "soon"); o.stdout != "x\n" {
		t.Errorf("stdout %q", o.stdout)
	}
}

// TestOptions shows what a daemon takes from its options.
func TestOptions(t *testing.T) {
	needRoot(t)
	const dir = "/usr"
	tg := newFake(t, envd.Options{Token: token, User: "daemon", Workdir: dir, Version: "9.9.9", Env: map[string]string{"PATH": "/bin", "G": "1"}})
	s := tg.open("json", pb.ProcessStart, shell("/usr/bin/id -un; pwd; echo $PATH $G"))
	s.pid()
	if o, want := s.rest(), "daemon\n"+dir+"\n/bin 1\n"; o.stdout != want {
		t.Errorf("stdout %q, stderr %q, want %q", o.stdout, o.stderr, want)
	}
	res, _ := tg.do(request{path: "/envs", header: header("X-Access-Token", "")})
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %s", res.Status)
	}
	res, _ = tg.do(request{path: "/init", body: strings.NewReader(`{"accessToken":"` + token + `","defaultUser":"root"}`)})
	if res.Header.Get("X-Envd-Version") != "9.9.9" {
		t.Errorf("init: %v", res.Header)
	}
	stat := &pb.StatResponse{}
	tg.must("json", pb.FilesystemStat, &pb.StatRequest{Path: ""}, stat)
	if stat.GetEntry().GetPath() != dir {
		t.Errorf("the empty path is %v", stat)
	}
	tg.must("json", pb.FilesystemStat, &pb.StatRequest{Path: "."}, stat)
	if stat.GetEntry().GetPath() != home(t) {
		t.Errorf("a relative path is %v", stat)
	}
	broken := newFake(t, envd.Options{User: "nobodyx"})
	s = broken.open("json", pb.ProcessStart, shell("true"))
	if o := s.rest(); o.code != "unauthenticated" {
		t.Errorf("unknown default user: %q", o.code)
	}
}

// full is a machine whose disk is full, and whose files have no attributes.
type full struct{ envd.Machine }

type fullFile struct{}

func (fullFile) Write([]byte) (int, error) { return 0, syscall.ENOSPC }
func (fullFile) Close() error              { return nil }

func (full) Create(string, envd.User) (io.WriteCloser, error) { return fullFile{}, nil }

func TestFullDisk(t *testing.T) {
	tg := serve(t, envd.New(full{host{}}, envd.Options{}))
	dir := t.TempDir()
	src := write(t, dir+"/src", "x")
	for _, r := range []request{
		{path: files("path", dir+"/x"), header: header("Content-Type", octets), body: strings.NewReader("content")},
		{path: "/files/compose", body: strings.NewReader(`{"source_paths":["` + src + `"],"destination":"` + dir + `/y"}`)},
	} {
		res, body := tg.do(r)
		if res.StatusCode != http.StatusInsufficientStorage {
			t.Errorf("%s: %s", r.path, res.Status)
		}
		checkError(t, body, http.StatusInsufficientStorage)
	}
	if got := read(t, src); got != "x" {
		t.Errorf("source has %q", got)
	}
}
