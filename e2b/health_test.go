package e2b

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

func TestWhereSandboxesAre(t *testing.T) {
	for _, name := range []string{"E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL"} {
		t.Setenv(name, "")
	}
	type places struct{ Daemon, Port string }
	for _, test := range []struct {
		name   string
		cfg    Config
		answer string // the domain that the server names
		want   places
	}{
		{"cloud", Config{}, "", places{"https://sandbox.e2b.app", "3000-itest.e2b.app"}},
		{"cloud's other domain", Config{Domain: "e2b.dev"}, "", places{"https://sandbox.e2b.dev", "3000-itest.e2b.dev"}},
		{"cloud's API", Config{APIURL: "https://api.e2b.app"}, "", places{"https://sandbox.e2b.app", "3000-itest.e2b.app"}},
		{"own domain", Config{Domain: "example.com"}, "", places{"https://49983-itest.example.com", "3000-itest.example.com"}},
		{"own cluster", Config{}, "example.org", places{"https://49983-itest.example.org", "3000-itest.example.org"}},
		{"own API and sandboxes", Config{APIURL: "http://a", SandboxURL: "http://s"}, "", places{"http://s", ""}},
		{"own API and domain", Config{APIURL: "http://a", Domain: "example.com"}, "", places{"https://49983-itest.example.com", "3000-itest.example.com"}},
		{"own API, which names a domain", Config{APIURL: "http://a"}, "example.org", places{"https://49983-itest.example.org", "3000-itest.example.org"}},
		{"own API alone", Config{APIURL: "https://api.e2b.app.example.com"}, "", places{nowhere, ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.APIKey = testKey
			c, err := NewClient(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s := newSandbox(c, sandboxAnswer{SandboxID: "itest", Domain: test.answer})
			host, err := s.Host(3000)
			if (err == nil) != (host != "") || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("Host: %q, %v", host, err)
			}
			if diff := cmp.Diff(test.want, places{s.base, host}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Nothing is sent to the sandboxes of another deployment than the API's.
func TestSandboxesOfNoKnownPlace(t *testing.T) {
	for _, name := range []string{"E2B_DOMAIN", "E2B_SANDBOX_URL"} {
		t.Setenv(name, "")
	}
	c := newTestClient(t, roundTripFunc(func(req *http.Request) (*http.Response, error) {
		t.Errorf("%s is asked", req.URL)
		return nil, io.ErrUnexpectedEOF
	}))
	s := newSandbox(c, sandboxAnswer{SandboxID: "itest"})
	for name, use := range map[string]func() error{
		"upload":   func() error { return s.WriteFile(t.Context(), "f", []byte("x")) },
		"download": func() error { _, err := s.Download(t.Context(), "f"); return err },
		"stat":     func() error { _, err := s.Stat(t.Context(), "f"); return err },
		"start":    func() error { _, err := s.Start(t.Context(), Command{Path: "x"}); return err },
		"watch":    func() error { _, err := s.Watch(t.Context(), "d", WatchOptions{}); return err },
		"health":   func() error { return s.Health(t.Context()) },
	} {
		if err := use(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "set E2B_SANDBOX_URL or E2B_DOMAIN") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHealth(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		body   string
		want   error
	}{
		{"well", http.StatusNoContent, "", nil},
		{"gone", http.StatusBadGateway, `{"sandboxId":"itest","message":"The sandbox was not found","code":502}`, ErrSandboxGone},
		{"daemon ended", http.StatusBadGateway, `{"sandboxId":"itest","message":"The sandbox is running but port is not open","port":49983,"code":502}`, ErrPortClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/health" || r.Header.Get("E2b-Sandbox-Id") != "itest" {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			if err := s.Health(within(t)); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
	s := sandboxAt(t, "http://127.0.0.1:1")
	for name, err := range map[string]error{"call": s.Health(within(t)), "procedure": s.Remove(within(t), "x")} {
		if err == nil || !strings.Contains(err.Error(), "check the network, E2B_DOMAIN and E2B_SANDBOX_URL") {
			t.Errorf("%s where nobody listens: %v", name, err)
		}
	}
}

func TestUsage(t *testing.T) {
	body := `{"ts":1759247251,"cpu_count":2,"cpu_used_pct":12.5,"mem_total":1000,"mem_used":300,"mem_cache":20,"disk_used":5,"disk_total":70,"new":{}}`
	s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" || r.Header.Get("X-Access-Token") != "token" {
			t.Errorf("%s, token %q", r.URL, r.Header.Get("X-Access-Token"))
		}
		io.WriteString(w, body)
	}))
	got, err := s.Usage(within(t))
	want := Metrics{Time: time.Unix(1759247251, 0), CPU: 2, CPUUsed: 12.5, MemUsed: 300, MemTotal: 1000, MemCache: 20, DiskUsed: 5, DiskTotal: 70}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	body = `{"ts":"now"}`
	if _, err := s.Usage(within(t)); err == nil || !strings.Contains(err.Error(), "get usage") {
		t.Errorf("an answer of another shape: %v", err)
	}
}

// What a command wrote before it was given up is not lost.
func TestExecuteCommandKeepsOutput(t *testing.T) {
	ctx, cancel := context.WithCancel(within(t))
	wrote, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	d := &script{}
	d.start = func(_ http.Header, _ *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		send(startEvent())
		send(stdoutEvent("partial"))
		send(stderrEvent("warning"))
		<-wrote
		cancel()
		<-over // it goes on
		return nil
	}
	s := sandboxOf(t, d)
	var stderr strings.Builder
	told := writerFunc(func(b []byte) (int, error) { close(wrote); return stderr.Write(b) })
	got, err := s.ExecuteCommand(ctx, Command{Path: "x", Stderr: told})
	if !errors.Is(err, context.Canceled) || got == nil {
		t.Fatalf("result %v, error %v", got, err)
	}
	if string(got.Stdout) != "partial" || stderr.String() != "warning" || got.Code != -1 {
		t.Errorf("%v, stdout %q, stderr %q", got.ExitStatus, got.Stdout, &stderr)
	}
	if _, signals := d.seen(); len(signals) != 1 {
		t.Errorf("signals %v", signals)
	}
}

func stderrEvent(s string) *envdpb.ProcessEvent {
	data := &envdpb.ProcessEvent_DataEvent{Output: &envdpb.ProcessEvent_DataEvent_Stderr{Stderr: []byte(s)}}
	return &envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_Data{Data: data}}
}

// What stands in front of a sandbox may fail for a moment.
func TestPassingRefusals(t *testing.T) {
	for _, test := range []struct {
		status int
		header string // Retry-After
		body   string
		again  bool
	}{
		{http.StatusBadGateway, "", "<html>bad gateway</html>", true},
		{http.StatusServiceUnavailable, "1", "", true},
		{http.StatusGatewayTimeout, "", "", true},
		{http.StatusBadGateway, "", `{"sandboxId":"itest","message":"The sandbox was not found","code":502}`, false},
		{http.StatusForbidden, "", "", false},
	} {
		t.Run(fmt.Sprint(test.status, test.again), func(t *testing.T) {
			var calls atomic.Int64
			next := diskDaemon(nil)
			s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) > 1 {
					next.ServeHTTP(w, r)
					return
				}
				if test.header != "" {
					w.Header().Set("Retry-After", test.header)
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			_, err := s.Stat(within(t), t.TempDir())
			if (err == nil) != test.again || (calls.Load() > 1) != test.again {
				t.Errorf("%d calls, error %v", calls.Load(), err)
			}
		})
	}
}

// A part of a file, or none, is not taken for the file.
func TestDownloadOfAPart(t *testing.T) {
	for _, status := range []int{http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable, http.StatusNoContent} {
		s := sandboxOf(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-4/1000")
			w.WriteHeader(status)
			if status != http.StatusNoContent {
				io.WriteString(w, "hello")
			}
		}))
		if b, err := s.ReadFile(within(t), "f"); err == nil {
			t.Errorf("%d: read %q", status, b)
		}
	}
}
