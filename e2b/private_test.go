package e2b_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
)

// TestPrivateTraffic knocks at a port of a private sandbox, with its token and
// without, as its maker and as who has connected to it.
func TestPrivateTraffic(t *testing.T) {
	server, err := mock.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := e2b.NewClient(e2b.Config{APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	knock := func(s *e2b.Sandbox, withToken bool) (status int, port bool) {
		t.Helper()
		req, err := s.NewRequest(t.Context(), http.MethodGet, 8080, "/")
		if err != nil {
			t.Fatal(err)
		}
		if !withToken {
			req.Header.Del("E2b-Traffic-Access-Token")
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body struct{ Port int }
		_ = json.NewDecoder(resp.Body).Decode(&body)
		return resp.StatusCode, body.Port == 8080
	}
	made, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{PrivateTraffic: true})
	if err != nil {
		t.Fatal(err)
	}
	found, err := client.Connect(t.Context(), made.ID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*e2b.Sandbox{made, found} {
		if !s.Private() {
			t.Error("it is not private")
		}
		if status, port := knock(s, true); status != 502 || !port { // it was let in, and nobody listens
			t.Errorf("with the token: %d, %t", status, port)
		}
		if status, _ := knock(s, false); status != 403 {
			t.Errorf("without: %d", status)
		}
	}
	public, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if status, port := knock(public, true); public.Private() || status != 502 || !port {
		t.Errorf("public: %d, %t", status, port)
	}
	if err := public.SetNetwork(t.Context(), e2b.Network{DenyOut: []string{e2b.AllTraffic}}); err != nil {
		t.Error(err)
	}
	info, err := public.Info(t.Context())
	if err != nil || len(info.Network.DenyOut) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}
