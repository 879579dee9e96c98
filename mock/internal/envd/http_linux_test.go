package envd_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	return name
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func files(query ...string) string {
	v := make(url.Values)
	for i := 0; i < len(query); i += 2 {
		v.Add(query[i], query[i+1])
	}
	return "/files?" + v.Encode()
}

func compressed(t *testing.T, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, s)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	textPlain = "text/plain; charset=utf-8"
	jsonError = "application/json; charset=utf-8"
	octets    = "application/octet-stream"
	form      = "multipart/form-data; boundary=B"
)

// part is a part of a form.
func part(name, filename, content string) string {
	s := "--B\r\nContent-Disposition: form-data; name=\"" + name + "\""
	if filename != "" {
		s += "; filename=\"" + filename + "\""
	}
	return s + "\r\n\r\n" + content + "\r\n"
}

const formEnd = "--B--\r\n"

// TestHTTP is about all answers outside the procedures.
func TestHTTP(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	hello := write(t, dir+"/hello.txt", "hello, world")
	blank := write(t, dir+"/empty", "")
	raw := header("Content-Type", octets)
	upload := func(name, content string, h ...string) request {
		hd := header(h...)
		hd.Set("Content-Type", octets)
		return request{path: files("path", dir+name), header: hd, body: strings.NewReader(content)}
	}
	multi := func(query []string, parts ...string) request {
		return request{path: files(query...), header: header("Content-Type", form), body: strings.NewReader(strings.Join(parts, "") + formEnd)}
	}
	compose := func(body string) request { return request{path: "/files/compose", body: strings.NewReader(body)} }

	tests := map[string]struct {
		req    request
		status int
		kind   string // content type
		header http.Header
		body   string // all of it, unless the content type is of JSON errors
	}{
		"health":               {request{path: "/health"}, 204, "", header("Cache-Control", "no-store", "Vary", "Origin"), ""},
		"health by POST":       {request{path: "/health", body: strings.NewReader("")}, 405, "", header("Allow", "GET"), ""},
		"health with /":        {request{path: "/health/"}, 404, textPlain, nil, "404 page not found\n"},
		"unknown":              {request{path: "/nope"}, 404, textPlain, nil, "404 page not found\n"},
		"head":                 {request{method: "HEAD", path: "/files"}, 405, "", nil, ""},
		"delete":               {request{method: "DELETE", path: "/files"}, 405, "", nil, ""},
		"compose by GET":       {request{path: "/files/compose"}, 405, "", header("Allow", "POST"), ""},
		"origin":               {request{path: "/health", header: header("Origin", "http://x")}, 204, "", header("Access-Control-Allow-Origin", "*"), ""},
		"preflight":            {request{method: "OPTIONS", path: "/files", header: header("Origin", "http://x", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-foo")}, 204, "", header("Access-Control-Allow-Origin", "*", "Access-Control-Allow-Methods", "POST", "Access-Control-Allow-Headers", "x-foo", "Access-Control-Max-Age", "7200"), ""},
		"preflight of another": {request{method: "OPTIONS", path: "/files", header: header("Origin", "http://x", "Access-Control-Request-Method", "FOO")}, 204, "", header("Access-Control-Allow-Origin", ""), ""},
		"escaped":              {request{path: "/he%61lth"}, 404, textPlain, nil, "404 page not found\n"},
		"options":              {request{method: "OPTIONS", path: "/files"}, 405, "", nil, ""},
		"unknown user":         {request{path: "/health", header: header("Authorization", "Basic bm9ib2R5eDo=")}, 401, "application/json", nil, `{"code":"unauthenticated","message":"invalid username: 'nobodyx'"}`},
		"nameless user":        {request{path: "/health", header: header("Authorization", "Basic Og==")}, 401, "application/json", nil, `{"code":"unauthenticated","message":"invalid username: ''"}`},
		"no basic auth":        {request{path: "/health", header: header("Authorization", "Bearer x")}, 204, "", nil, ""},
		"procedure by GET":     {request{path: "/process.Process/List"}, 405, "", header("Allow", "POST"), ""},
		"no procedure":         {request{path: "/process.Process/Nope", body: strings.NewReader("{}")}, 404, textPlain, nil, "404 page not found\n"},
		"no codec":             {request{path: "/process.Process/List", header: header("Content-Type", "text/plain"), body: strings.NewReader("{}")}, 415, "", nil, ""},
		"stream as unary":      {request{path: "/process.Process/Start", header: header("Content-Type", "application/json"), body: strings.NewReader("{}")}, 415, "", nil, ""},
		"unary as stream":      {request{path: "/process.Process/List", header: header("Content-Type", "application/connect+json"), body: strings.NewReader("{}")}, 415, "", nil, ""},
		"bad JSON":             {request{path: "/process.Process/SendInput", header: header("Content-Type", "application/json", "Authorization", ""), body: strings.NewReader("{}")}, 501, "application/json", header("Accept-Encoding", "gzip"), ""},

		"get":               {request{path: files("path", hello)}, 200, textPlain, header("Content-Length", "12", "Accept-Ranges", "bytes", "Content-Disposition", "inline; filename=hello.txt", "Vary", "Accept-Encoding"), "hello, world"},
		"get empty":         {request{path: files("path", blank)}, 200, textPlain, header("Content-Length", "0"), ""},
		"get not clean":     {request{path: files("path", dir+"/../"+filepath.Base(dir)+"//hello.txt")}, 200, textPlain, nil, "hello, world"},
		"get range":         {request{path: files("path", hello), header: header("Range", "bytes=7-8", "Accept-Encoding", "gzip")}, 206, textPlain, header("Content-Range", "bytes 7-8/12"), "wo"},
		"get range beyond":  {request{path: files("path", hello), header: header("Range", "bytes=99-")}, 416, textPlain, header("Content-Range", "bytes */12"), "invalid range: failed to overlap\n"},
		"get unmodified":    {request{path: files("path", hello), header: header("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT")}, 304, "", nil, ""},
		"get gzip":          {request{path: files("path", hello), header: header("Accept-Encoding", "br, gzip;q=0.5")}, 200, textPlain, header("Content-Encoding", "gzip", "Vary", "Accept-Encoding"), string(compressed(t, "hello, world"))},
		"get gzip, no name": {request{path: files("path", blank), header: header("Accept-Encoding", "gzip")}, 200, octets, nil, string(compressed(t, ""))},
		"get identity":      {request{path: files("path", hello), header: header("Accept-Encoding", "gzip;q=0.1, identity")}, 200, textPlain, header("Content-Encoding", ""), "hello, world"},
		"get anything":      {request{path: files("path", hello), header: header("Accept-Encoding", "*")}, 200, textPlain, header("Content-Encoding", ""), "hello, world"},
		"get any but plain": {request{path: files("path", hello), header: header("Accept-Encoding", "identity;q=0, *;q=0.1")}, 200, textPlain, header("Content-Encoding", "gzip"), string(compressed(t, "hello, world"))},
		"get nothing":       {request{path: files("path", hello), header: header("Accept-Encoding", "*;q=0")}, 406, jsonError, nil, ""},
		"get gzip range":    {request{path: files("path", hello), header: header("Accept-Encoding", "gzip, identity;q=0", "Range", "bytes=1-2")}, 406, jsonError, nil, ""},
		"get missing":       {request{path: files("path", dir+"/no")}, 404, jsonError, nil, ""},
		"get directory":     {request{path: files("path", dir)}, 400, jsonError, nil, ""},
		"get below file":    {request{path: files("path", hello+"/x")}, 500, jsonError, nil, ""},
		"get file with /":   {request{path: files("path", hello+"/")}, 500, jsonError, nil, ""},
		"get home":          {request{path: "/files"}, 400, jsonError, nil, ""},
		"get other's home":  {request{path: files("path", "~bob/x")}, 400, jsonError, nil, ""},
		"get unknown user":  {request{path: files("path", hello, "username", "nobodyx")}, 401, jsonError, nil, ""},
		"get nameless user": {request{path: files("path", hello, "username", "")}, 401, jsonError, nil, ""},
		"get two paths":     {request{path: files("path", hello, "path", hello)}, 400, textPlain, nil, "*"},
		"get bad expiry":    {request{path: files("path", hello, "signature_expiration", "x")}, 400, textPlain, nil, "*"},

		"put":                 {upload("/a/b/new", "x"), 200, textPlain, nil, `[{"name":"new","path":"` + dir + `/a/b/new","type":"file"}]`},
		"put metadata":        {upload("/meta", "x", "X-Metadata-Some-Key", "v w"), 200, textPlain, nil, `[{"metadata":{"some-key":"v w"},"name":"meta","path":"` + dir + `/meta","type":"file"}]`},
		"put bad metadata":    {upload("/bad", "x", "X-Metadata-K", "\u00e9"), 400, jsonError, nil, ""},
		"put long metadata":   {upload("/bad", "x", "X-Metadata-K", strings.Repeat("v", 4090)), 400, jsonError, nil, ""},
		"put long key":        {upload("/bad", "x", "X-Metadata-"+strings.Repeat("k", 247), "v"), 400, jsonError, nil, ""},
		"put no path":         {request{path: "/files", header: raw, body: strings.NewReader("x")}, 400, jsonError, nil, ""},
		"put home":            {request{path: files("path", ""), header: raw, body: strings.NewReader("x")}, 400, jsonError, nil, ""},
		"put on directory":    {upload("", "x"), 400, jsonError, nil, ""},
		"put below file":      {upload("/hello.txt/x/y", "x"), 500, jsonError, nil, ""},
		"put no type":         {request{path: files("path", dir+"/bad"), body: strings.NewReader("x")}, 400, jsonError, nil, ""},
		"put br":              {upload("/bad", "x", "Content-Encoding", "br"), 400, jsonError, nil, ""},
		"put no gzip":         {upload("/bad", "no gzip at all", "Content-Encoding", "gzip"), 400, jsonError, nil, ""},
		"put cut gzip":        {upload("/cut", string(compressed(t, "hello")[:15]), "Content-Encoding", "gzip"), 500, jsonError, nil, ""},
		"put unknown user":    {request{path: files("path", dir+"/bad", "username", "nobodyx"), header: raw, body: strings.NewReader("x")}, 401, jsonError, nil, ""},
		"form":                {multi(nil, part("other", "", "o"), part("file", dir+"/f/1", "one"), part("file", dir+"/f/2", "two")), 200, textPlain, nil, `[{"name":"1","path":"` + dir + `/f/1","type":"file"},{"name":"2","path":"` + dir + `/f/2","type":"file"}]`},
		"form with path":      {multi([]string{"path", dir + "/f/3"}, part("file", "ignored", "x")), 200, textPlain, nil, `[{"name":"3","path":"` + dir + `/f/3","type":"file"}]`},
		"form, no file":       {multi(nil, part("other", "", "o")), 200, textPlain, nil, `[]`},
		"form, no name":       {multi(nil, part("file", "", "o")), 400, jsonError, nil, ""},
		"form, same twice":    {multi(nil, part("file", dir+"/f/4", "first"), part("file", dir+"/f/4", "second")), 400, jsonError, nil, ""},
		"form, no boundary":   {request{path: "/files", header: header("Content-Type", "multipart/form-data"), body: strings.NewReader("x")}, 500, jsonError, nil, ""},
		"form, cut":           {request{path: "/files", header: header("Content-Type", form), body: strings.NewReader(part("file", dir+"/f/5", "x"))}, 500, jsonError, nil, ""},
		"compose no JSON":     {compose("{"), 400, jsonError, nil, ""},
		"compose nothing":     {compose(`{"source_paths":[],"destination":"` + dir + `/c"}`), 400, jsonError, nil, ""},
		"compose to nothing":  {compose(`{"source_paths":["` + hello + `"]}`), 400, jsonError, nil, ""},
		"compose itself":      {compose(`{"source_paths":["` + hello + `"],"destination":"` + hello + `"}`), 400, jsonError, nil, ""},
		"compose missing":     {compose(`{"source_paths":["` + dir + `/no"],"destination":"` + dir + `/c"}`), 404, jsonError, nil, ""},
		"compose directory":   {compose(`{"source_paths":["` + dir + `"],"destination":"` + dir + `/c"}`), 400, jsonError, nil, ""},
		"compose user":        {compose(`{"source_paths":["` + hello + `"],"destination":"` + dir + `/c","username":"nobodyx"}`), 401, jsonError, nil, ""},
		"compose onto parent": {compose(`{"source_paths":["` + hello + `"],"destination":"` + blank + `/c"}`), 500, jsonError, nil, ""},
		"compose onto dir":    {compose(`{"source_paths":["` + hello + `"],"destination":"` + dir + `"}`), 500, jsonError, nil, ""},
		"init bad JSON":       {request{path: "/init", body: strings.NewReader("{")}, 400, "", header("X-Envd-Version", "0.6.13"), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res, body := tg.do(tt.req)
			if res.StatusCode != tt.status || res.Header.Get("Content-Type") != tt.kind {
				t.Errorf("status %d, type %q, want %d, %q; body %s", res.StatusCode, res.Header.Get("Content-Type"), tt.status, tt.kind, body)
			}
			for name := range tt.header {
				if got, want := res.Header.Get(name), tt.header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			switch {
			case tt.kind == jsonError:
				checkError(t, body, tt.status)
			case tt.kind != "application/json" && tt.body != "*" && body != tt.body:
				t.Errorf("body %q, want %q", body, tt.body)
			case tt.kind == "application/json" && tt.body != "" && body != tt.body:
				t.Errorf("body %q, want %q", body, tt.body)
			}
		})
	}
	for name, want := range map[string]string{"/f/1": "one", "/f/4": "first", "/hello.txt": "hello, world", "/a/b/new": "x"} {
		if got := read(t, dir+name); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	if m, err := filepath.Glob(dir + "/*bad*"); err != nil || len(m) > 0 {
		t.Errorf("refused uploads left %v, %v", m, err)
	}
}

// checkError checks the body of an error outside the procedures, whose code is
// a number.
func checkError(t *testing.T, body string, status int) {
	t.Helper()
	var e struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Code != status || e.Message == "" {
		t.Errorf("body %q, want code %d and a message", body, status)
	}
}

func TestMetrics(t *testing.T) {
	tg := newTarget(t)
	res, body := tg.do(request{path: "/metrics"})
	if res.StatusCode != 200 || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("status %d, %v", res.StatusCode, res.Header)
	}
	var got map[string]float64
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ts", "cpu_count", "cpu_used_pct", "mem_total_mib", "mem_used_mib", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"} {
		if _, ok := got[name]; !ok {
			t.Errorf("no %s in %s", name, body)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("unexpected: %v", got)
	}
}

// TestUploadInPlace shows that an upload truncates what is there, keeps its
// mode, follows links, and replaces all metadata.
func TestUploadInPlace(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	name := write(t, dir+"/file", "a long old content")
	if err := os.Symlink(name, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	put := func(content string, h ...string) string {
		hd := header(h...)
		hd.Set("Content-Type", octets)
		_, body := tg.do(request{path: files("path", dir+"/link"), header: hd, body: strings.NewReader(content)})
		return body
	}
	if body := put("1", "X-Metadata-A", "1", "X-Metadata-B", "2"); !strings.Contains(body, `"metadata":{"a":"1","b":"2"}`) {
		t.Errorf("body %s", body)
	}
	if body := put(string(compressed(t, "new")), "X-Metadata-B", "3", "Content-Encoding", "gzip"); !strings.Contains(body, `"metadata":{"b":"3"}`) {
		t.Errorf("body %s", body)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, name); got != "new" || info.Mode() != 0o640 {
		t.Errorf("content %q, mode %v", got, info.Mode())
	}
	if body := put("new"); strings.Contains(body, "metadata") {
		t.Errorf("metadata was kept: %s", body)
	}
}

// TestUploadAborted shows that an upload which ends early leaves what came.
func TestUploadAborted(t *testing.T) {
	tg := newTarget(t)
	name := write(t, t.TempDir()+"/file", "old content")
	body, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := tg.try(request{path: files("path", name), header: header("Content-Type", octets), body: body})
		done <- err
	}()
	if _, err := io.WriteString(w, "new"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first bytes", func() bool { return read(t, name) == "new" })
	w.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-done; err == nil {
		t.Error("the request succeeded")
	}
	if got := read(t, name); got != "new" {
		t.Errorf("content %q", got)
	}
}

func TestCompose(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	a, b := write(t, dir+"/a", "A"), write(t, dir+"/b", "B")
	dest := dir + "/sub/dest"
	req, _ := json.Marshal(map[string]any{"source_paths": []string{a, b, a}, "destination": dest})
	res, body := tg.do(request{path: "/files/compose", body: bytes.NewReader(req)})
	if want := `{"name":"dest","path":"` + dest + `","type":"file"}` + "\n"; body != want || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("body %q, want %q; %v", body, want, res.Header)
	}
	if got := read(t, dest); got != "ABA" {
		t.Errorf("content %q", got)
	}
	left, err := filepath.Glob(dir + "/*")
	if diff := cmp.Diff([]string{dir + "/sub"}, left); diff != "" || err != nil {
		t.Errorf("left over (-want +got):\n%s%v", diff, err)
	}
}
