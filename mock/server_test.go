package mock_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/osiris-pipelines/remote/mock"
)

// faulty is a server whose next request that matches fails.
type faulty struct {
	*api
	mu    sync.Mutex
	path  string
	fault *mock.HTTPFault
}

func newFaulty(t *testing.T, opts ...mock.ServerOption) *faulty {
	f := &faulty{}
	f.api = newAPI(t, append(opts, mock.WithFault(func(r mock.HTTPRequest) *mock.HTTPFault {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.fault == nil || r.Path != f.path {
			return nil
		}
		fault := f.fault
		f.fault = nil
		return fault
	}))...)
	return f
}

// next sets the fault of the next request with that path.
func (f *faulty) next(path string, fault mock.HTTPFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path, f.fault = path, &fault
}

// leave makes a request whose client leaves once the fault has met it.
func (f *faulty) leave(t *testing.T, method, path, body string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := make(chan error, 1)
	go func() {
		r, err := f.try(ctx, method, path, body)
		if err == nil {
			err = fmt.Errorf("%+v", r)
		}
		left <- err
	}()
	eventually(t, "the request arrives", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.fault == nil
	})
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

const newSandbox = `{"templateID":"base","timeout":60}`

func TestFaultStatus(t *testing.T) {
	f := newFaulty(t)
	f.next("/sandboxes", mock.HTTPFault{Status: 503, Header: http.Header{"retry-after": {"7"}}, Body: "busy"})
	r := f.do("POST", "/sandboxes", newSandbox)
	if r.Status != 503 || r.Header.Get("Retry-After") != "7" || r.Body != "busy" {
		t.Errorf("%+v", r)
	}
	if got := f.server.Sandboxes(); len(got) != 0 {
		t.Errorf("sandboxes: %+v", got)
	}
}

// TestFaultsOfCreate loses requests and answers.
func TestFaultsOfCreate(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault mock.HTTPFault
		made  bool
	}{
		{"request cut at once", mock.HTTPFault{CutRequest: new(int64(0))}, false},
		{"request cut", mock.HTTPFault{CutRequest: new(int64(5))}, false},
		{"answer lost", mock.HTTPFault{LoseAnswer: true}, true},
		{"answer cut at once", mock.HTTPFault{CutResponse: new(int64(0))}, true},
		{"answer cut", mock.HTTPFault{CutResponse: new(int64(10))}, true},
		{"late", mock.HTTPFault{Late: true}, true},
		{"late and slow", mock.HTTPFault{Late: true, Delay: 20 * time.Millisecond}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFaulty(t)
			f.next("/sandboxes", test.fault)
			r, err := f.try(t.Context(), "POST", "/sandboxes", newSandbox)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%+v, %v; want a reset", r, err)
			}
			if test.made {
				eventually(t, "a sandbox", func() bool { return len(f.server.Alive()) == 1 })
			} else if got := f.server.Sandboxes(); len(got) != 0 {
				t.Errorf("sandboxes: %+v", got)
			}
		})
	}
}

func TestFaultCutResponse(t *testing.T) {
	f := newFaulty(t)
	id := f.sandbox()
	f.edge(id, "POST", "/files?path=a", "0123456789")
	f.next("/files", mock.HTTPFault{CutResponse: new(int64(4))})
	r, err := f.try(t.Context(), "GET", "/files?path=a", "", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983", "Accept-Encoding", "identity")
	if r.Body != "0123" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFaultCutRequest(t *testing.T) {
	f := newFaulty(t)
	id := f.sandbox()
	f.next("/files", mock.HTTPFault{CutRequest: new(int64(4))})
	_, err := f.try(t.Context(), "POST", "/files?path=a", "0123456789", "E2b-Sandbox-Id", id,
		"E2b-Sandbox-Port", "49983", "Content-Type", "application/octet-stream")
	if err == nil {
		t.Error("the upload succeeds")
	}
	eventually(t, "a short file", func() bool {
		b, _ := f.server.Sandbox(id).ReadFile("/home/user/a")
		return string(b) == "0123"
	})
}

// TestFaultStall gets no more than the beginning of a stream, until the
// connection is reset.
func TestFaultStall(t *testing.T) {
	for name, heal := range map[string]func(f *faulty, s *stream){
		"cut connections": func(f *faulty, _ *stream) { f.server.CutConnections() },
		"kill":            func(f *faulty, _ *stream) { f.server.Kill(f.server.Sandboxes()[0].ID) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t, waitingOptions())
			id := f.sandbox()
			f.next("/process.Process/Start", mock.HTTPFault{Stall: new(int64(1))})
			s := f.startStream(id, waitPath, "x")
			defer s.Close()
			first := make([]byte, 1)
			if _, err := io.ReadFull(s.body, first); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				_, err := s.body.Read(first)
				read <- err
			}()
			select {
			case err := <-read:
				t.Fatalf("the stream goes on: %v", err)
			case <-time.After(50 * time.Millisecond): // the test of a thing that does not happen
			}
			heal(f, s)
			if err := <-read; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read: %v, want a reset", err)
			}
		})
	}
	t.Run("client leaves", func(t *testing.T) {
		f := newFaulty(t)
		f.next("/sandboxes", mock.HTTPFault{Stall: new(int64(0))})
		f.leave(t, "GET", "/sandboxes", "")
	})
}

func TestFaultDelay(t *testing.T) {
	f := newFaulty(t)
	f.next("/sandboxes", mock.HTTPFault{Delay: time.Hour})
	f.leave(t, "POST", "/sandboxes", newSandbox)
	f.next("/sandboxes", mock.HTTPFault{Delay: 30 * time.Millisecond})
	start := time.Now()
	if r := f.do("POST", "/sandboxes", newSandbox); r.Status != 201 || time.Since(start) < 30*time.Millisecond {
		t.Errorf("%+v after %v", r, time.Since(start))
	}
	if got := f.server.Sandboxes(); len(got) != 1 {
		t.Errorf("sandboxes: %+v", got)
	}
}

// TestFaultBufferBody sends a body whose end is long in coming: nothing of it
// may arrive before that.
func TestFaultBufferBody(t *testing.T) {
	f := newFaulty(t)
	id := f.sandbox()
	f.next("/files", mock.HTTPFault{BufferBody: true})
	body, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", f.server.URL()+"/files?path=a", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", id)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("Content-Type", "application/octet-stream")
	done := make(chan error, 1)
	go func() {
		res, err := f.client.Do(req)
		if err == nil {
			res.Body.Close()
		}
		done <- err
	}()
	io.WriteString(w, "first")
	eventually(t, "the first part is read", func() bool {
		all := f.server.Requests()
		return all[len(all)-1].BytesIn == 5
	})
	if _, err := f.server.Sandbox(id).ReadFile("/home/user/a"); err == nil {
		t.Error("there is a file before the request is whole")
	}
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b, err := f.server.Sandbox(id).ReadFile("/home/user/a"); string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestCloseEndsEverything closes a server that holds all sorts of things up.
func TestCloseEndsEverything(t *testing.T) {
	var delay sync.Once
	server, err := mock.NewServer(waitingOptions(), mock.WithFault(func(r mock.HTTPRequest) (fault *mock.HTTPFault) {
		switch r.Path {
		case "/process.Process/Start":
			return &mock.HTTPFault{Stall: new(int64(1))}
		case "/v2/sandboxes":
			delay.Do(func() { fault = &mock.HTTPFault{Delay: time.Hour, Late: true} })
		case "/templates":
			return &mock.HTTPFault{Delay: time.Hour}
		}
		return fault
	}))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	a := &api{t: t, server: server, client: &http.Client{Transport: transport}}
	id := a.sandbox()
	a.do("POST", "/sandboxes/"+id+"/snapshots", "{}")
	s := a.startStream(id, waitPath)
	defer s.Close()
	a.try(t.Context(), "POST", "/v2/sandboxes", newSandbox)
	var wg sync.WaitGroup
	wg.Go(func() {
		if r, err := a.try(context.Background(), "GET", "/templates", ""); err == nil {
			t.Errorf("%+v", r)
		}
	})
	eventually(t, "all requests are there", func() bool { return len(server.Requests()) == 5 })
	for range 2 {
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	wg.Wait()
	if got := server.Alive(); len(got) != 0 {
		t.Errorf("alive: %+v", got)
	}
	if r, err := a.try(t.Context(), "GET", "/sandboxes", ""); err == nil {
		t.Errorf("a closed server answers: %+v", r)
	}
}

func TestRequests(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now))
	id := a.sandbox()
	a.edge(id, "POST", "/files?path=a", "12345")
	a.do("GET", "/nothing", "")
	a.do("GET", "/health", "")
	a.run(id, "true")
	a.do("DELETE", "/sandboxes/"+id+"-6532622b", "")
	want := []mock.HTTPRequest{
		{Method: "POST", Path: "/sandboxes", Plane: mock.ControlPlane, Sandbox: id, Procedure: "POST /sandboxes", Status: 201, BytesIn: 35},
		{Method: "POST", Path: "/files", Query: "path=a", Plane: mock.Edge, Sandbox: id, Port: 49983, Procedure: "POST /files", Status: 200, BytesIn: 5},
		{Method: "GET", Path: "/nothing", Plane: mock.ControlPlane, Status: 404},
		{Method: "GET", Path: "/health", Plane: mock.ControlPlane, Procedure: "GET /health", Status: 200},
		{Method: "POST", Path: "/process.Process/Start", Plane: mock.Edge, Sandbox: id, Port: 49983, Procedure: "process.Process/Start", Status: 200, BytesIn: 43},
		{Method: "DELETE", Path: "/sandboxes/" + id + "-6532622b", Plane: mock.ControlPlane, Sandbox: id, Procedure: "DELETE /sandboxes/{sandboxID}", Status: 204},
	}
	for k := range want {
		want[k].Seq, want[k].Time = k+1, c.Now()
	}
	got := a.server.Requests()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(mock.HTTPRequest{}, "BytesOut")); diff != "" {
		t.Error(diff)
	}
	for _, r := range got {
		if (r.BytesOut > 0) != (r.Status != 204) {
			t.Errorf("%d bytes went out with %+v", r.BytesOut, r)
		}
	}
}

func TestServerStates(t *testing.T) {
	c := newClock()
	a := newAPI(t, mock.WithClock(c.Now))
	id := a.create(`{"templateID":"base","timeout":60,"secure":true,"metadata":{"a":"b"},"envVars":{"Y":"1","X":"2"}}`)["sandboxID"].(string)
	want := mock.SandboxState{
		ID: id, Template: "rki5dems9wqfm4r03t7g", State: mock.StateRunning, Metadata: map[string]string{"a": "b"},
		EnvVars: []string{"X", "Y"}, Secure: true, StartedAt: c.Now(), EndAt: c.Now().Add(time.Minute),
	}
	check := func(what string) {
		t.Helper()
		if diff := cmp.Diff([]mock.SandboxState{want}, a.server.Sandboxes()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("created")
	if err := a.server.Pause(id); err != nil {
		t.Fatal(err)
	}
	want.State, want.EndAt = mock.StatePaused, c.Now()
	check("paused")
	if err := a.server.Pause(id); !errors.Is(err, mock.ErrNoSandbox) {
		t.Errorf("pause again: %v", err)
	}
	if err := a.server.Kill(id); err != nil {
		t.Fatal(err)
	}
	want.State = mock.StateKilled
	check("killed")
	for what, strike := range map[string]func(string) error{"kill": a.server.Kill, "expire": a.server.Expire, "pause": a.server.Pause} {
		if err := strike("inone"); !errors.Is(err, mock.ErrNoSandbox) {
			t.Errorf("%s an unknown one: %v", what, err)
		}
	}
}

func TestServerAddress(t *testing.T) {
	key := "e2b_" + strings.Repeat("ab", 20)
	a := newAPI(t, mock.WithAPIKey(key))
	url := a.server.URL()
	if !strings.HasPrefix(url, "http://127.0.0.1:") || a.server.APIKey() != key {
		t.Errorf("URL %q, key %q", url, a.server.APIKey())
	}
	want := []string{"E2B_API_KEY=" + key, "E2B_API_URL=" + url, "E2B_SANDBOX_URL=" + url}
	if got := a.server.Env(); !slices.Equal(got, want) {
		t.Errorf("Env() = %q", got)
	}
	if made := newAPI(t).server.APIKey(); len(made) != 44 || !strings.HasPrefix(made, "e2b_") {
		t.Errorf("the key is %q", made)
	}
	if a.server.Isolation() == "" {
		t.Error("Isolation() is empty")
	}
}
