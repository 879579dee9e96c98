package e2b

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// TestErrorsQuoteSafely has a daemon whose error messages are long, have
// several lines, and give back the token.
func TestErrorsQuoteSafely(t *testing.T) {
	words := "\x1b[2Jbad\nline " + strings.Repeat("A", 1<<20)
	failure := func(h http.Header) error {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("key "+h.Get("X-Access-Token")+words))
	}
	mux := http.NewServeMux()
	mux.Handle(envdpb.ProcessStart, connect.NewServerStreamHandler(envdpb.ProcessStart,
		func(_ context.Context, req *connect.Request[envdpb.StartRequest], _ *connect.ServerStream[envdpb.StartResponse]) error {
			return failure(req.Header())
		}))
	mux.HandleFunc(envdpb.FilesystemStat, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/"+r.Header.Get("X-Access-Token")+strings.Repeat("A", 100_000))
	})
	s := sandboxOf(t, mux)
	_, started := s.Start(within(t), Command{Path: "x"})
	if !errors.Is(started, ErrInvalid) {
		t.Errorf("Start: %v, want ErrInvalid", started)
	}
	_, stat := s.Stat(within(t), "/x")
	for _, err := range []error{started, stat} {
		if err == nil {
			t.Fatal("no error")
		}
		text := err.Error()
		if len(text) > 2*maxMessageBytes || strings.ContainsAny(text, "\n\x1b") || strings.Contains(text, "key token") || strings.Contains(text, "text/token") {
			t.Errorf("%d bytes: %.200q", len(text), text)
		}
	}
}

// TestErrorWords checks what errors of the daemon look like.
func TestErrorWords(t *testing.T) {
	for _, test := range []struct {
		err  *connect.Error
		want string
		is   error
	}{
		{connect.NewError(connect.CodeNotFound, errors.New("path not found")), "op: not found: path not found", ErrNotFound},
		{connect.NewError(connect.CodeInternal, errors.New("oh")), "op: internal: oh", nil},
		{connect.NewError(connect.CodeUnauthenticated, errors.New("invalid username: 'x'")), "op: invalid argument: invalid username: 'x'; check Command.User", ErrInvalid},
		{connect.NewError(connect.CodeUnauthenticated, errors.New("no")), "op: authentication failed: no", ErrAuthentication},
	} {
		err := sandboxAt(t, "http://x").connectError("op", test.err)
		if err.Error() != test.want || !errors.Is(err, test.is) && test.is != nil {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

func TestCommandTimeoutWords(t *testing.T) {
	d := &script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		send(startEvent())
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	}, connect: func(send func(*envdpb.ProcessEvent)) error {
		send(endEvent(1))
		return nil
	}}
	p, err := sandboxOf(t, d).Start(within(t), Command{Path: "x", Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const want = `start "x": timed out: command ran longer than 300ms`
	if _, err := p.Wait(within(t)); !errors.Is(err, ErrTimeout) || err.Error() != want {
		t.Errorf("Wait: %v, want %s", err, want)
	}
}

// TestLongReplies has a daemon whose messages are longer than they may be.
func TestLongReplies(t *testing.T) {
	for path, size := range map[string]int{
		envdpb.FilesystemStat:    maxReply,
		envdpb.FilesystemListDir: maxListing,
		envdpb.ProcessList:       maxProcesses,
	} {
		s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/proto")
			w.Write(bytes.Repeat([]byte{0x0a, 0x00}, size/2+1))
		}))
		s.client.cfg.Retries = 0
		var err error
		switch path {
		case envdpb.FilesystemStat:
			_, err = s.Stat(within(t), "/x")
		case envdpb.FilesystemListDir:
			_, err = s.List(within(t), "/x", 1)
		default:
			_, err = s.Processes(within(t))
		}
		if err == nil || !strings.Contains(err.Error(), "larger than configured max") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestManyItems has a daemon whose lists have very many empty items.
func TestManyItems(t *testing.T) {
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/proto")
		w.Write(bytes.Repeat([]byte{0x0a, 0x00}, maxItems+1))
	}))
	s.client.cfg.Retries = 0
	if infos, err := s.List(within(t), "/x", 1); err == nil || !strings.Contains(err.Error(), "items, more than") {
		t.Errorf("List: %d files, %v", len(infos), err)
	}
	if infos, err := s.Processes(within(t)); err == nil || !strings.Contains(err.Error(), "items, more than") {
		t.Errorf("Processes: %d, %v", len(infos), err)
	}
}

// TestLongPage has a control plane that sends more than it was asked for.
func TestLongPage(t *testing.T) {
	for name, body := range map[string]string{
		"items": "[" + strings.Repeat("{},", pageSize) + "{}]",
		"bytes": `[{"alias":"` + strings.Repeat("x", maxAnswerBytes) + `"}]`,
	} {
		c := newTestClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })))
		for info, err := range c.List(t.Context(), ListOptions{}) {
			if err == nil {
				t.Fatalf("%s: List gives %v, want an error", name, info)
			}
		}
	}
}

// TestRetryAfterIsCapped has a daemon that asks for a wait of weeks.
func TestRetryAfterIsCapped(t *testing.T) {
	var connects atomic.Int32
	d := &script{start: func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		send(startEvent())
		return cutOff()
	}, connect: func(send func(*envdpb.ProcessEvent)) error {
		send(endEvent(3))
		return nil
	}}
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == envdpb.ProcessList || r.URL.Path == envdpb.ProcessConnect && connects.Add(1) == 1 {
			w.Header().Set("Retry-After", "2147483")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		d.ServeHTTP(w, r)
	}))
	s.client.cfg.RequestTimeout = time.Second
	p, err := s.Start(within(t), Command{Path: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(within(t)); status.Code != 3 || err != nil {
		t.Errorf("Wait: %v, %v; want exit code 3", status, err)
	}
	p.Close() // nothing reads the configuration any more
	s.client.cfg.RequestTimeout = time.Hour
	if _, err := s.Processes(within(t)); !errors.Is(err, ErrRateLimit) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Processes: %v, want ErrRateLimit at once", err)
	}
}

// TestStartUnanswered starts a process whose first event does not come.
func TestStartUnanswered(t *testing.T) {
	d := &script{start: func(http.Header, *envdpb.StartRequest, func(*envdpb.ProcessEvent)) error { return nil },
		connect: func(send func(*envdpb.ProcessEvent)) error {
			send(endEvent(0))
			return nil
		}}
	release := make(chan struct{})
	d.start = func(http.Header, *envdpb.StartRequest, func(*envdpb.ProcessEvent)) error {
		<-release
		return nil
	}
	s := sandboxOf(t, d)
	defer close(release)
	s.client.cfg.RequestTimeout = 50 * time.Second
	begin := time.Now()
	p, err := s.Start(within(t), Command{Path: "x"})
	if err != nil || p.PID() != testPID {
		t.Fatalf("Start: %v", err)
	}
	defer p.Close()
	if took := time.Since(begin); took > 40*time.Second {
		t.Errorf("Start took %s", took)
	}
	if _, err := p.Wait(within(t)); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if n, _ := d.seen(); n != 1 {
		t.Errorf("%d processes were started", n)
	}
}

// TestDownloadOverrun resumes with ranges that are not what was asked for.
func TestDownloadOverrun(t *testing.T) {
	for _, test := range []struct {
		name, span, length string
		body               string
	}{
		{"long", "bytes 5-9/10", "9", "567890123"},
		{"endless", "bytes 5-9/10", "", strings.Repeat("x", 100_000)},
		{"short", "bytes 5-7/10", "3", "567"},
		{"right", "bytes 5-9/10", "5", "56789"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var n atomic.Int32
			s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if n.Add(1) == 1 {
					w.Header().Set("Content-Length", "10")
					io.WriteString(w, "01234")
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Content-Range", test.span)
				if test.length != "" {
					w.Header().Set("Content-Length", test.length)
				}
				w.WriteHeader(http.StatusPartialContent)
				io.WriteString(w, test.body)
			}))
			d, err := s.Download(within(t), "/f")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			got, err := io.ReadAll(d)
			if right := test.name == "right"; int64(len(got)) > d.Size() || right != (err == nil) || right != (string(got) == "0123456789") {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// TestDownloadMore has a body that is longer than it was announced, which only
// an unusual transport lets through.
func TestDownloadMore(t *testing.T) {
	s := sandboxAt(t, "http://x")
	d := &Download{sandbox: s, ctx: t.Context(), cancel: func() {}, op: "download", size: 5, body: io.NopCloser(strings.NewReader("0123456789"))}
	if got, err := io.ReadAll(d); string(got) != "01234" || err == nil {
		t.Errorf("read %q, %v; want an error after 5 bytes", got, err)
	}
}

func TestArtifactsLimit(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := sandboxOf(t, diskDaemon(nil))
	_, err := s.DownloadArtifacts(within(t), dir, t.TempDir(), ArtifactOptions{MaxBytes: 299})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "299 bytes") {
		t.Errorf("above the limit: %v, want ErrTooLarge", err)
	}
	for _, most := range []int64{-1, 0, 300} {
		if got, err := s.DownloadArtifacts(within(t), dir, t.TempDir(), ArtifactOptions{MaxBytes: most}); err != nil || len(got) != 3 {
			t.Errorf("with a limit of %d: %d files, %v", most, len(got), err)
		}
	}
}

func TestReadAndWriteFile(t *testing.T) {
	s := sandboxOf(t, diskDaemon(nil))
	name := filepath.Join(t.TempDir(), "file")
	if err := s.WriteFile(within(t), name, []byte("data")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadFile(within(t), name); string(got) != "data" || err != nil {
		t.Errorf("ReadFile: %q, %v", got, err)
	}
	if err := os.Truncate(name, maxReadFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadFile(within(t), name); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile of a large file: %v, want ErrTooLarge", err)
	}
	if _, err := s.ReadFile(within(t), name+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile of nothing: %v, want fs.ErrNotExist", err)
	}
}

// TestUploadTriesApart checks that no try of an upload writes to the file of
// another, and that nothing of them is left.
func TestUploadTriesApart(t *testing.T) {
	var names []string
	s := sandboxOf(t, diskDaemon(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/files" {
			return false
		}
		names = append(names, r.URL.Query().Get("path"))
		if len(names) > 1 {
			return false
		}
		serveUpload(w, r)
		panic(http.ErrAbortHandler)
	}))
	dir := t.TempDir()
	if err := s.WriteFile(within(t), filepath.Join(dir, "file"), []byte("data")); err != nil {
		t.Fatal(err)
	}
	if len(names) != 2 || names[0] == names[1] {
		t.Errorf("tries wrote to %q", names)
	}
	if got := namesIn(t, dir); !slices.Equal(got, []string{"file"}) {
		t.Errorf("afterwards there are %q", got)
	}
}

// TestNoSecretsPrinted prints what has a token or an environment inside.
func TestNoSecretsPrinted(t *testing.T) {
	c, err := NewClient(Config{APIKey: "e2b_5ec4e7"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := newSandbox(c, sandboxAnswer{SandboxID: "itest", EnvdAccessToken: "5ec4e7", TrafficAccessToken: "5ec4e7"})
	p := s.newProcess(Command{Path: "x", Env: map[string]string{"K": "5ec4e7"}})
	values := []any{c, s, p, &Watcher{sandbox: s, op: "watch"}, &Download{sandbox: s, op: "download"}}
	for _, v := range values {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(format, v); strings.Contains(text, "5ec4e7") || v != any(c) && !strings.Contains(text, "itest") {
				t.Errorf("%s of %T: %s", format, v, text)
			}
		}
	}
}

func TestStartWithoutPath(t *testing.T) {
	if _, err := sandboxOf(t, &script{}).Start(within(t), Command{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Start: %v, want ErrInvalid", err)
	}
}

func TestWatcherClosed(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(envdpb.FilesystemWatchDir, connect.NewServerStreamHandler(envdpb.FilesystemWatchDir,
		func(ctx context.Context, _ *connect.Request[envdpb.WatchDirRequest], stream *connect.ServerStream[envdpb.WatchDirResponse]) error {
			start := &envdpb.WatchDirResponse{Event: &envdpb.WatchDirResponse_Start{Start: &envdpb.WatchDirResponse_StartEvent{}}}
			if err := stream.Send(start); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}))
	w, err := sandboxOf(t, mux).Watch(within(t), "/x", WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	closing := time.AfterFunc(10*time.Millisecond, func() { w.Close() })
	defer closing.Stop()
	for e, err := range w.Events() {
		t.Errorf("after Close: %v, %v", e, err)
	}
}

func TestConfigNamesSource(t *testing.T) {
	for name, test := range map[string]struct {
		env, value string
		cfg        Config
		want       []string
	}{
		"variable":     {"E2B_API_URL", "api.e2b.app", Config{}, []string{"E2B_API_URL", "begin with http"}},
		"field":        {"E2B_API_URL", "https://ok", Config{APIURL: "https://"}, []string{"Config.APIURL", "no host"}},
		"secret":       {"E2B_API_URL", "https://u:5ec4e7@x", Config{}, []string{"E2B_API_URL", "has a user"}},
		"unparsable":   {"E2B_API_URL", "https://5ec4e7:%zz", Config{}, []string{"E2B_API_URL", "not a URL"}},
		"sandbox":      {"E2B_SANDBOX_URL", "https://x?q", Config{}, []string{"E2B_SANDBOX_URL", "query"}},
		"domain":       {"E2B_DOMAIN", "https://x", Config{}, []string{"E2B_DOMAIN"}},
		"domain field": {"E2B_DOMAIN", "x", Config{Domain: "a/b"}, []string{"Config.Domain"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(test.env, test.value)
			test.cfg.APIKey = "e2b_00"
			_, err := NewClient(test.cfg)
			if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "5ec4e7") {
				t.Fatalf("NewClient: %v, want ErrInvalid", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("NewClient: %v, want %q in it", err, want)
				}
			}
		})
	}
}
