package mock_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/osiris-pipelines/remote/mock"
)

// greet says who it is, as servers of databases do.
func greet(name string) func(net.Conn) {
	return func(c net.Conn) { io.WriteString(c, name+"\n") }
}

// serveHTTP answers one request.
func serveHTTP(name string) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
		}
	}
}

func host(name, addr string, port int, serve func(net.Conn)) mock.Host {
	return mock.Host{Name: name, Addr: netip.MustParseAddr(addr), Port: port, Serve: serve}
}

func TestDial(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	serveTLS := func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: web.TLS.Certificates})
		defer s.Close()
		serveHTTP("tls")(s)
	}
	a := newAPI(t, mock.WithHosts(
		host("db.example", "203.0.113.1", 3306, greet("db")),
		host("web.example", "203.0.113.2", 80, serveHTTP("web")),
		host("other.example", "203.0.113.3", 80, serveHTTP("other")),
		host("tls.example", "203.0.113.4", 443, serveTLS),
		host("private.example", "10.0.0.1", 3306, greet("private")),
		host("inside.example", "10.0.0.2", 80, serveHTTP("inside")),
	))
	// How a client speaks: not first, HTTP, or TLS.
	listen := func(c net.Conn, _ string) string {
		b, _ := io.ReadAll(c)
		return strings.TrimSpace(string(b))
	}
	get := func(c net.Conn, name string) string {
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", name)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return ""
		}
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	getTLS := func(c net.Conn, name string) string {
		return get(tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}), name)
	}
	tests := []struct {
		name    string
		network string // of the sandbox, as JSON
		address string
		speak   func(net.Conn, string) string
		as      string // name that the client gives
		want    string // empty: it was closed
		err     error
	}{
		{"open", `{}`, "db.example:3306", listen, "", "db", nil},
		{"open web", `{}`, "web.example:80", get, "web.example", "web", nil},
		{"private, open", `{}`, "private.example:3306", listen, "", "", nil},
		{"denied", `{"denyOut":["0.0.0.0/0"]}`, "203.0.113.1:3306", listen, "", "", nil},
		{"denied network", `{"denyOut":["203.0.113.0/30"]}`, "203.0.113.1:3306", listen, "", "", nil},
		{"outside the denied network", `{"denyOut":["203.0.112.0/24"]}`, "203.0.113.1:3306", listen, "", "db", nil},
		{"no nameserver", `{"denyOut":["0.0.0.0/0"],"allowOut":["203.0.113.1"]}`, "db.example:3306", listen, "", "", mock.ErrDenied},
		{"nameserver", `{"denyOut":["0.0.0.0/0"],"allowOut":["203.0.113.1","8.8.8.8"]}`, "db.example:3306", listen, "", "db", nil},
		{"by network", `{"denyOut":["0.0.0.0/0"],"allowOut":["203.0.113.0/24"]}`, "203.0.113.1:3306", listen, "", "db", nil},
		{"names do not count there", `{"denyOut":["0.0.0.0/0"],"allowOut":["db.example"]}`, "db.example:3306", listen, "", "", nil},
		{"by name", `{"denyOut":["0.0.0.0/0"],"allowOut":["web.example"]}`, "web.example:80", get, "web.example", "web", nil},
		{"by name with a port", `{"denyOut":["0.0.0.0/0"],"allowOut":["web.example"]}`, "web.example:80", get, "WEB.example:80", "web", nil},
		{"another name", `{"denyOut":["0.0.0.0/0"],"allowOut":["web.example"]}`, "other.example:80", get, "other.example", "", nil},
		{"a name that leads elsewhere", `{"denyOut":["0.0.0.0/0"],"allowOut":["web.example"]}`, "other.example:80", get, "web.example", "web", nil},
		{"a name that leads inside", `{"denyOut":["0.0.0.0/0"],"allowOut":["*.example"]}`, "web.example:80", get, "inside.example", "", nil},
		{"no HTTP", `{"denyOut":["0.0.0.0/0"],"allowOut":["web.example"]}`, "web.example:80", func(c net.Conn, _ string) string {
			io.WriteString(c, "\x16\x03\r\n\r\n")
			return listen(c, "")
		}, "", "", nil},
		{"tls by name", `{"denyOut":["0.0.0.0/0"],"allowOut":["tls.example"]}`, "tls.example:443", getTLS, "tls.example", "tls", nil},
		{"tls by star", `{"denyOut":["0.0.0.0/0"],"allowOut":["*.example"]}`, "tls.example:443", getTLS, "tls.example", "tls", nil},
		{"tls, another name", `{"denyOut":["0.0.0.0/0"],"allowOut":["a.example"]}`, "tls.example:443", getTLS, "tls.example", "", nil},
		{"tls by address", `{"denyOut":["0.0.0.0/0"],"allowOut":["203.0.113.4"]}`, "203.0.113.4:443", getTLS, "x.example", "tls", nil},
		{"no such name", `{}`, "nowhere.example:80", get, "", "", &net.DNSError{}},
		{"no such port", `{}`, "db.example:3307", listen, "", "", syscall.ECONNREFUSED},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id := a.create(`{"templateID":"base","timeout":60,"network":` + test.network + `}`)["sandboxID"].(string)
			conn, err := a.server.Dial(t.Context(), id, "tcp", test.address)
			if test.err != nil {
				var dns *net.DNSError
				if ok := errors.Is(err, test.err) || errors.As(test.err, &dns) && errors.As(err, &dns); !ok {
					t.Errorf("error %v, want %v", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := test.speak(conn, test.as); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDialEnds(t *testing.T) {
	a := newAPI(t, mock.WithHosts(host("db.example", "203.0.113.1", 3306, func(c net.Conn) { io.Copy(io.Discard, c) })))
	if _, err := a.server.Dial(t.Context(), "inone", "tcp", "db.example:3306"); !errors.Is(err, mock.ErrNoSandbox) {
		t.Errorf("error %v", err)
	}
	id := a.sandbox()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.server.Dial(ctx, id, "tcp", "db.example:3306"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	conn, err := a.server.Dial(t.Context(), id, "tcp", "db.example:3306")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still there")
	}
}

func TestHostsRefused(t *testing.T) {
	for _, h := range []mock.Host{
		{Addr: netip.MustParseAddr("2001:db8::1"), Port: 1, Serve: greet("")},
		{Addr: netip.MustParseAddr("203.0.113.1"), Serve: greet("")},
		{Addr: netip.MustParseAddr("203.0.113.1"), Port: 1},
	} {
		if s, err := mock.NewServer(mock.WithHosts(h)); err == nil {
			t.Errorf("%+v was taken", h)
			s.Close()
		}
	}
}
