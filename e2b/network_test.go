package e2b

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNetworkCheck(t *testing.T) {
	all := []string{AllTraffic}
	tests := []struct {
		name string
		n    Network
		want string // of the error; empty for none
	}{
		{"nothing", Network{}, ""},
		{"deny all", Network{DenyOut: all}, ""},
		{"addresses without a deny", Network{AllowOut: []string{"203.0.113.7", "198.51.100.0/24"}}, ""},
		{"names", Network{AllowOut: []string{"example.com", "*.Example.com", "*", "a_b.c-d.e", "localhost"}, DenyOut: all}, ""},
		{"names without a deny", Network{AllowOut: []string{"example.com"}, DenyOut: []string{"10.0.0.0/8"}}, "takes 0.0.0.0/0"},
		{"denied name", Network{DenyOut: []string{"example.com"}}, "no address and no network"},
		{"unspecified", Network{DenyOut: []string{"0.0.0.0"}}, "everything is 0.0.0.0/0"},
		{"everything else than everything", Network{AllowOut: []string{"0.0.0.0/8"}, DenyOut: all}, "everything is 0.0.0.0/0"},
		{"ipv6", Network{AllowOut: []string{"2001:db8::1"}, DenyOut: all}, "only IPv4"},
		{"ipv6 network", Network{DenyOut: []string{"2001:db8::/32"}}, "only IPv4"},
		{"mask too long", Network{AllowOut: []string{"203.0.113.7/33"}, DenyOut: all}, "no address and no network"},
		{"port", Network{AllowOut: []string{"example.com:443"}, DenyOut: all}, "neither"},
		{"url", Network{AllowOut: []string{"https://example.com"}, DenyOut: all}, "neither"},
		{"star within", Network{AllowOut: []string{"a.*.com"}, DenyOut: all}, "neither"},
		{"short address", Network{AllowOut: []string{"10.1"}, DenyOut: all}, "neither"},
		{"empty label", Network{AllowOut: []string{"a..b"}, DenyOut: all}, "neither"},
		{"empty", Network{AllowOut: []string{""}, DenyOut: all}, "neither"},
		{"dash", Network{AllowOut: []string{"-a.b"}, DenyOut: all}, "neither"},
		{"long", Network{AllowOut: []string{strings.Repeat("a", 64) + ".b"}, DenyOut: all}, "neither"},
		{"control", Network{AllowOut: []string{"a\x1b.b"}, DenyOut: all}, "neither"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.n.check()
			if test.want == "" && err == nil {
				return
			}
			if !errors.Is(err, ErrInvalid) || test.want == "" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestSetNetwork(t *testing.T) {
	n := Network{AllowOut: []string{"example.com"}, DenyOut: []string{AllTraffic}}
	set := func(n Network) func(context.Context, *Client) (any, error) {
		return func(ctx context.Context, c *Client) (any, error) {
			return nil, newSandbox(c, sandboxAnswer{SandboxID: "i1"}).SetNetwork(ctx, n)
		}
	}
	const (
		put = `PUT /sandboxes/i1/network {"allowOut":["example.com"],"denyOut":["0.0.0.0/0"],"allow_internet_access":true}`
		get = "GET /sandboxes/i1"
	)
	runAll(t, []exchangeTest{
		{name: "set", call: set(n), answers: []string{"204"}, requests: []string{put}},
		{name: "everything", call: set(Network{}), answers: []string{"204"}, requests: []string{`PUT /sandboxes/i1/network {"allow_internet_access":true}`}},
		{name: "again after a fault", call: set(n), answers: []string{`500 {"code":500,"message":"m"}`, "204"}, requests: []string{put, put}},
		{name: "between states", call: set(n), answers: []string{`409 {"code":409,"message":"m"}`}, requests: []string{put}, is: ErrConflict},
		{name: "refused", call: set(n), answers: []string{`400 {"code":400,"message":"m"}`}, requests: []string{put}, is: ErrInvalid},
		{name: "gone", call: set(n), answers: []string{gone404}, requests: []string{put, get}, is: ErrSandboxGone},
		{name: "no such call", call: set(n), answers: []string{"404 404 page not found", `200 {"sandboxID":"i1","state":"running"}`},
			requests: []string{put, get}, is: ErrUnsupported, text: "the server cannot change a sandbox's network"},
		{name: "paused", call: set(n), answers: []string{gone404, `200 {"sandboxID":"i1","state":"paused"}`}, requests: []string{put, get}, is: ErrSandboxGone},
		{name: "invalid", call: set(Network{AllowOut: []string{"example.com"}}), answers: []string{"204"}, is: ErrInvalid},
	})
}

func TestNetworkIsTold(t *testing.T) {
	runAll(t, []exchangeTest{{
		name:     "get",
		call:     func(ctx context.Context, c *Client) (any, error) { return c.Get(ctx, "i1") },
		answers:  []string{`200 {"sandboxID":"i1","network":{"allowPublicTraffic":false,"allowOut":["a.b"],"denyOut":["0.0.0.0/0"],"egressProxy":{"address":"x:1"}}}`},
		requests: []string{"GET /sandboxes/i1"},
		want:     &SandboxInfo{ID: "i1", Network: Network{AllowOut: []string{"a.b"}, DenyOut: []string{"0.0.0.0/0"}}},
	}})
}

func TestNewRequest(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		port   int
		path   string
		url    string
		header http.Header
		fails  bool
	}{
		{"cloud", Config{APIKey: "e2b_1"}, 8080, "/a?b=c", "https://8080-i1.e2b.app/a?b=c",
			http.Header{"E2b-Sandbox-Id": {"i1"}, "E2b-Sandbox-Port": {"8080"}, "E2b-Traffic-Access-Token": {"traffic"}}, false},
		{"daemon", Config{APIKey: "e2b_1"}, 49983, "/health", "https://49983-i1.e2b.app/health",
			http.Header{"E2b-Sandbox-Id": {"i1"}, "E2b-Sandbox-Port": {"49983"}, "X-Access-Token": {"daemon"}}, false},
		{"elsewhere", Config{APIKey: "e2b_1", SandboxURL: "http://127.0.0.1:3000"}, 80, "/", "http://127.0.0.1:3000/",
			http.Header{"E2b-Sandbox-Id": {"i1"}, "E2b-Sandbox-Port": {"80"}, "E2b-Traffic-Access-Token": {"traffic"}}, false},
		{"nowhere", Config{APIKey: "e2b_1", APIURL: "http://127.0.0.1:3000"}, 80, "/", "", nil, true},
		{"no port", Config{APIKey: "e2b_1"}, 0, "/", "", nil, true},
		{"no path", Config{APIKey: "e2b_1"}, 80, "@evil.example/", "", nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, name := range []string{"E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG"} {
				t.Setenv(name, "")
			}
			c, err := NewClient(test.config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s := newSandbox(c, sandboxAnswer{SandboxID: "i1", EnvdAccessToken: "daemon", TrafficAccessToken: "traffic"})
			req, err := s.NewRequest(t.Context(), "GET", test.port, test.path)
			if test.fails {
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if req.URL.String() != test.url {
				t.Errorf("URL %s, want %s", req.URL, test.url)
			}
			if diff := cmp.Diff(test.header, req.Header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
		})
	}
}
