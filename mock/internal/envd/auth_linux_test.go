package envd_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/osiris-pipelines/remote/internal/envdpb"
)

func signature(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// TestToken is about a daemon that has a token, which it gets from its first
// request to /init and then keeps.
func TestToken(t *testing.T) {
	tg := newTarget(t)
	for range 2 {
		res, body := tg.do(request{path: "/init", body: strings.NewReader(`{"accessToken":"` + token + `"}`)})
		if res.StatusCode != http.StatusNoContent {
			t.Fatalf("init: %s %s", res.Status, body)
		}
	}
	dir := t.TempDir()
	name := write(t, dir+"/name", "x")
	past, future := fmt.Sprint(time.Now().Unix()-10), fmt.Sprint(time.Now().Unix()+1000)
	with := func(value string, r request) request {
		if r.header == nil {
			r.header = make(http.Header)
		}
		r.header.Set("X-Access-Token", value)
		return r
	}
	get := func(query ...string) request { return with("", request{path: files(query...)}) }
	list := request{path: pb.ProcessList, header: header("Content-Type", "application/json"), body: strings.NewReader("{}")}
	start := request{path: pb.ProcessStart, header: header("Content-Type", "application/connect+json", "Authorization", "Basic bm9ib2R5eDo="), body: strings.NewReader("")}
	post := func(query ...string) request {
		r := request{path: files(query...), header: header("Content-Type", form)}
		r.body = strings.NewReader(part("file", dir+"/posted", "x") + formEnd)
		return with("", r)
	}
	tests := map[string]struct {
		req    request
		status int
	}{
		"health":                   {with("", request{path: "/health"}), 204},
		"health, wrong":            {with("wrong", request{path: "/health"}), 204},
		"metrics":                  {with("", request{path: "/metrics"}), 401},
		"metrics, right":           {with(token, request{path: "/metrics"}), 200},
		"envs":                     {with("wrong", request{path: "/envs"}), 401},
		"unknown path":             {with("", request{path: "/nope"}), 401},
		"head":                     {with("", request{method: "HEAD", path: "/files"}), 401},
		"compose":                  {with("", request{path: "/files/compose", body: strings.NewReader("{}")}), 401},
		"list":                     {with("", list), 401},
		"start before its user":    {with("", start), 401},
		"init":                     {with("", request{path: "/init", body: strings.NewReader("{}")}), 401},
		"init, other token":        {with(token, request{path: "/init", body: strings.NewReader(`{"accessToken":"other"}`)}), 401},
		"get":                      {get("path", name), 401},
		"get, right":               {with(token, request{path: files("path", name)}), 200},
		"get, wrong and signed":    {with("wrong", request{path: files("path", name, "signature", signature(name, "read", "", token))}), 401},
		"get signed":               {get("path", name, "signature", signature(name, "read", "", token)), 200},
		"get signed for writing":   {get("path", name, "signature", signature(name, "write", "", token)), 401},
		"get signed for a while":   {get("path", name, "signature", signature(name, "read", "", token, future), "signature_expiration", future), 200},
		"get signed, too late":     {get("path", name, "signature", signature(name, "read", "", token, past), "signature_expiration", past), 401},
		"get signed, end unsigned": {get("path", name, "signature", signature(name, "read", "", token), "signature_expiration", future), 401},
		"get signed for a user":    {get("path", name, "username", self(t).Username, "signature", signature(name, "read", self(t).Username, token)), 200},
		"get signed for another":   {get("path", name, "username", self(t).Username, "signature", signature(name, "read", "", token)), 401},
		"get signed elsewhere":     {get("path", dir+"/./name", "signature", signature(name, "read", "", token)), 401},
		"post":                     {post(), 401},
		"post signed":              {post("signature", signature("", "write", "", token)), 200},
		"post signed for reading":  {post("signature", signature("", "read", "", token)), 401},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res, body := tg.do(tt.req)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d; body %s", res.StatusCode, tt.status, body)
			}
			if res.StatusCode == 401 && tt.req.method != "HEAD" && tt.req.path != "/init" {
				checkError(t, body, 401)
			}
		})
	}
	if got := read(t, dir+"/posted"); got != "x" {
		t.Errorf("posted file has %q", got)
	}
}

// TestUser is about requests that name another user than the default.
func TestUser(t *testing.T) {
	needRoot(t)
	tg := newTarget(t)
	const asDaemon, asNobody = "Basic ZGFlbW9uOg==", "Basic bm9ib2R5Og=="
	s := tg.open("json", pb.ProcessStart, shell("id -un; pwd; echo $HOME $USER $LOGNAME"), "Authorization", asDaemon)
	s.pid()
	u, err := user.Lookup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	if o, want := s.rest(), "daemon\n"+u.HomeDir+"\n"+u.HomeDir+" daemon daemon\n"; o.stdout != want {
		t.Errorf("stdout %q, want %q", o.stdout, want)
	}
	s = tg.open("json", pb.ProcessStart, shell("true"), "Authorization", asNobody)
	if end, ok := s.next(&pb.StartResponse{}); ok || end != "invalid_argument" {
		t.Errorf("a user without a home: %q", end)
	}
	dir := t.TempDir()
	if code := tg.call("json", pb.FilesystemMakeDir, &pb.MakeDirRequest{Path: dir + "/a/b"}, &pb.MakeDirResponse{}, "Authorization", asDaemon); code != "" {
		t.Errorf("MakeDir: %s", code)
	}
	res, body := tg.do(request{path: files("path", dir+"/c/d", "username", "daemon"), header: header("Content-Type", octets), body: strings.NewReader("x")})
	if res.StatusCode != http.StatusOK {
		t.Errorf("upload: %s", body)
	}
	write(t, dir+"/c/e", "")
	tg.do(request{path: files("path", dir+"/c/e", "username", "daemon"), header: header("Content-Type", octets), body: strings.NewReader("x")})
	for _, name := range []string{"/a", "/a/b", "/c", "/c/d", "/c/e"} {
		info, err := os.Stat(dir + name)
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 1 {
			t.Errorf("%s belongs to %d", name, uid)
		}
	}
}

// TestTokenShape shows that a missing token is a plain 401, even of a stream.
func TestTokenShape(t *testing.T) {
	tg := newTarget(t)
	tg.do(request{path: "/init", body: strings.NewReader(`{"accessToken":"` + token + `"}`)})
	body := string(envelope(codec("proto").marshal(t, &pb.StartRequest{Tag: proto.String("x")})))
	res, text := tg.do(request{
		path:   pb.ProcessStart,
		header: header("Content-Type", "application/connect+proto", "X-Access-Token", ""),
		body:   strings.NewReader(body),
	})
	if res.StatusCode != 401 || res.Header.Get("Content-Type") != jsonError {
		t.Errorf("%s, %v", res.Status, res.Header)
	}
	checkError(t, text, 401)
}
