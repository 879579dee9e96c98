package mock_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/mock"
)

// builder builds templates on a server.
type builder struct{ *api }

// file is an entry of a layer. A directory's name ends with a slash; one with
// a link is a symbolic link.
type file struct {
	name, text, link string
	mode             int64
}

// pack makes a layer.
func pack(t *testing.T, compress bool, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(&b)
	if compress {
		w = tar.NewWriter(z)
	}
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if compress {
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// request asks for a build and returns the IDs of the template and the build.
func (b builder) request(body string) (template, build string) {
	b.t.Helper()
	r := b.do("POST", "/v3/templates", body)
	if r.Status != http.StatusAccepted {
		b.t.Fatalf("request: %d %s", r.Status, r.Body)
	}
	o := r.json(b.t)
	return o["templateID"].(string), o["buildID"].(string)
}

// put uploads a layer, and returns its hash.
func (b builder) put(template string, layer []byte) string {
	b.t.Helper()
	sum := sha256.Sum256(layer)
	hash := hex.EncodeToString(sum[:])
	r := b.do("GET", "/templates/"+template+"/files/"+hash, "")
	if r.Status != http.StatusCreated {
		b.t.Fatalf("files: %d %s", r.Status, r.Body)
	}
	at, err := url.Parse(r.json(b.t)["url"].(string))
	if err != nil {
		b.t.Fatal(err)
	}
	if r := b.do("PUT", at.RequestURI(), string(layer), "X-API-Key", "", "Content-Type", ""); r.Status != http.StatusOK {
		b.t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	return hash
}

func (b builder) start(template, build string, body any) reply {
	b.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do("POST", "/v2/templates/"+template+"/builds/"+build, string(text))
}

func (b builder) status(template, build string) object {
	b.t.Helper()
	r := b.do("GET", "/templates/"+template+"/builds/"+build+"/status", "")
	if r.Status != http.StatusOK {
		b.t.Fatalf("status: %d %s", r.Status, r.Body)
	}
	return r.json(b.t)
}

// await waits for the end of a build.
func (b builder) await(template, build string) (status object) {
	b.t.Helper()
	eventually(b.t, "the build has ended", func() bool {
		status = b.status(template, build)
		return status["status"] == "ready" || status["status"] == "error"
	})
	return status
}

// step is a step of a build.
func step(kind string, args ...string) object { return object{"type": kind, "args": args} }

func copyStep(hash string, args ...string) object {
	return object{"type": "COPY", "args": args, "filesHash": hash}
}

// build builds a template from "base" and returns its end.
func (b builder) build(name string, steps ...object) (template string, status object) {
	b.t.Helper()
	template, build := b.request(fmt.Sprintf(`{"name":%q}`, name))
	if r := b.start(template, build, object{"fromTemplate": "base", "steps": append([]object{}, steps...)}); r.Status != http.StatusAccepted || r.Body != "" {
		b.t.Fatalf("start: %d %s", r.Status, r.Body)
	}
	return template, b.await(template, build)
}

// messages are those of a log's entries, with their level and step.
func messages(status object) (list []string) {
	for _, e := range status["logEntries"].([]any) {
		entry := e.(object)
		at, _ := entry["step"].(string)
		list = append(list, fmt.Sprintf("%s %s %s", entry["level"], at, entry["message"]))
	}
	return list
}

// isolatedServer is a server with machines of their own, or skips.
func isolatedServer(t *testing.T, opts ...mock.ServerOption) builder {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("mock.WithProcesses does not work on Windows")
	}
	b := builder{newAPI(t, append(opts, mock.WithProcesses())...)}
	if !b.server.Isolated() {
		t.Skip("needs sandboxes with files of their own:", b.server.Isolation())
	}
	return b
}

func TestBuild(t *testing.T) {
	t.Run("processes", func(t *testing.T) { testBuild(t, isolatedServer(t)) })
	t.Run("envd", func(t *testing.T) {
		binary := os.Getenv("E2B_ENVD_BIN")
		if binary == "" {
			t.Skip("E2B_ENVD_BIN does not name a daemon")
		}
		testBuild(t, builder{newAPI(t, mock.WithEnvd(binary))})
	})
}

func testBuild(t *testing.T, b builder) {
	template, build := b.request(`{"name":"tools","cpuCount":4,"memoryMB":2048}`)
	hash := b.put(template, pack(t, true,
		file{name: "app/", mode: 0o755}, file{name: "app/run.sh", text: "echo $0 runs", mode: 0o755},
		file{name: "app/lib/data.txt", text: "data\n"}, file{name: "app/link", link: "lib/data.txt"},
		file{name: "other.txt", text: "not copied"},
	))
	if r := b.start(template, build, object{"fromTemplate": "base", "steps": []object{
		step("ENV", "GREETING", "hello $HOME"),
		copyStep(hash, "app", "/opt/tools/", "root", ""),
		step("WORKDIR", "/srv/work"),
		step("RUN", `echo "$GREETING"; pwd; whoami; echo oops >&2; echo made > file; touch /tmp/lost`),
		step("RUN", "whoami; mkdir -m 1777 /opt/cache", "root"),
	}}); r.Status != http.StatusAccepted {
		t.Fatalf("start: %d %s", r.Status, r.Body)
	}
	status := b.await(template, build)
	if status["status"] != "ready" {
		t.Fatal(status)
	}
	for _, want := range []string{
		"info base [base] FROM TEMPLATE base",
		"info 4 [builder 4/5] [stdout]: hello /root",
		"info 4 [builder 4/5] [stdout]: /srv/work",
		"info 4 [builder 4/5] [stdout]: user",
		"info 4 [builder 4/5] [stderr]: oops",
		"info 5 [builder 5/5] [stdout]: root",
		"info finalize [finalize] Finalizing template build",
	} {
		if !slices.Contains(messages(status), want) {
			t.Errorf("the log has no %q: %q", want, messages(status))
		}
	}
	id := b.create(`{"templateID":"tools","timeout":300}`)["sandboxID"].(string)
	for cmd, want := range map[string]string{
		"/opt/tools/run.sh":     "/opt/tools/run.sh runs\n",
		"cat /opt/tools/link":   "data\n",
		"pwd; whoami; cat file": "/srv/work\nuser\nmade\n",
		"stat -c '%U %a' /opt/tools/lib/data.txt /opt/cache /srv/work file": "root 644\nroot 1777\nuser 755\nuser 644\n",
		`echo "[$GREETING]"; ls /tmp`:                                       "[]\n",
		"ls /opt/tools":                                                     "lib\nlink\nrun.sh\n",
	} {
		got := b.run(id, "/bin/bash", "-c", cmd)
		if diff := cmp.Diff(result{want, "", 0, "exit status 0"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", cmd, diff)
		}
	}
}

// holding is a program that tells of its start, and waits for release.
type holding struct {
	entered chan struct{}
	release chan struct{}
}

func newHolding() *holding { return &holding{make(chan struct{}, 16), make(chan struct{})} }

func (h *holding) run(ctx context.Context, p *mock.Proc) int {
	fmt.Fprintln(p.Stdout, "holding")
	h.entered <- struct{}{}
	select {
	case <-h.release:
		return 0
	case <-ctx.Done():
		return 1
	}
}

// holdingServer has the program "hold", and sandboxes in memory.
func holdingServer(t *testing.T, opts ...mock.ServerOption) (builder, *holding) {
	h := newHolding()
	opts = append(opts, mock.WithOptions(mock.Options{Programs: map[string]mock.Program{"hold": h.run}}))
	return builder{newAPI(t, opts...)}, h
}

var holdSteps = object{"fromTemplate": "base", "steps": []object{step("RUN", "hold")}}

func (b builder) expect(what string, r reply, status int, message string) {
	b.t.Helper()
	if r.Status != status || !strings.Contains(r.Body, message) {
		b.t.Errorf("%s: %d %s, want %d %q", what, r.Status, r.Body, status, message)
	}
}

// reason is the status of a build and why it has that.
func reason(status object) string {
	r, _ := status["reason"].(object)
	if r == nil {
		return status["status"].(string)
	}
	at, _ := r["step"].(string)
	return fmt.Sprintf("%s at %q: %s", status["status"], at, r["message"])
}

// TestBuildsOfOneTemplate is what several clients see that want the same.
func TestBuildsOfOneTemplate(t *testing.T) {
	const superseded = `error at "": The build was canceled because it was superseded by a newer one.`
	b, h := holdingServer(t)
	template, first := b.request(`{"name":"t"}`)
	again, second := b.request(`{"name":"mock-team/T:default"}`)
	if again != template || second == first {
		t.Errorf("the second request: template %s, build %s; the first: %s, %s", again, second, template, first)
	}
	if got := reason(b.status(template, first)); got != superseded {
		t.Errorf("the first: %s", got)
	}
	if _, tagged := b.request(`{"name":"t","tags":["v1","v1"]}`); reason(b.status(template, second)) != "waiting" {
		t.Errorf("a request for another tag, %s, ended the second: %s", tagged, reason(b.status(template, second)))
	}
	b.expect("start of what is superseded", b.start(template, first, holdSteps), 400, "build is not in waiting state")
	b.expect("start", b.start(template, second, holdSteps), 202, "")
	<-h.entered
	b.expect("another start", b.start(template, second, holdSteps), 400, "build is not in waiting state")
	if got := reason(b.status(template, second)); got != "building" {
		t.Errorf("the second: %s", got)
	}
	if list := b.do("GET", "/templates", "").list(t); list[0]["buildStatus"] != "building" || list[0]["buildCount"] != 3.0 || list[0]["cpuCount"] != 0.0 {
		t.Errorf("listed: %v", list[0])
	}
	b.expect("create while it builds", b.do("POST", "/sandboxes", `{"templateID":"t"}`), 404, "tag 'default' does not exist")

	// A request leaves one that runs alone, even a start that is refused does not.
	_, third := b.request(`{"name":"t"}`)
	if got := reason(b.status(template, second)); got != "building" {
		t.Errorf("the second after a request: %s", got)
	}
	b.expect("start of what is superseded", b.start(template, first, holdSteps), 400, "build is not in waiting state")
	const canceled = `error at "": build was cancelled`
	if got := reason(b.status(template, second)); got != canceled {
		t.Errorf("the second after a start of another: %s", got)
	}
	b.expect("start of the third", b.start(template, third, holdSteps), 202, "")
	<-h.entered
	_, fourth := b.request(`{"name":"t"}`)
	b.expect("start of the fourth", b.start(template, fourth, holdSteps), 202, "")
	<-h.entered
	if got := reason(b.status(template, third)); got != canceled {
		t.Errorf("the third: %s", got)
	}
	close(h.release)
	if got := reason(b.await(template, fourth)); got != "ready" {
		t.Errorf("the fourth: %s", got)
	}
	b.expect("start of what is ready", b.start(template, fourth, holdSteps), 400, "build is not in waiting state")
	b.create(`{"templateID":"t"}`)

	var got []string
	for _, o := range b.do("GET", "/templates/"+template, "").json(t)["builds"].([]any) {
		got = append(got, o.(object)["buildID"].(string)+" "+o.(object)["status"].(string))
	}
	slices.Sort(got)
	_, tagged := b.request(`{"name":"t:v1"}`)
	if len(got) != 5 || !slices.Contains(got, fourth+" ready") || !slices.Contains(got, third+" error") {
		t.Errorf("builds: %q, without %s", got, tagged)
	}
}

func TestBuildLimit(t *testing.T) {
	b, h := holdingServer(t, mock.WithBuildConcurrency(2))
	template, build := b.request(`{"name":"one"}`)
	b.expect("start", b.start(template, build, holdSteps), 202, "")
	b.request(`{"name":"two"}`)
	b.request(`{"name":"two"}`) // in the place of the other
	b.expect("a third", b.do("POST", "/v3/templates", `{"name":"three"}`), 429, "maximum number of concurrent template builds (2)")
	close(h.release)
	b.await(template, build)
	b.request(`{"name":"three"}`)
}

func TestBuildWaitEnds(t *testing.T) {
	c := newClock()
	b := builder{newAPI(t, mock.WithClock(c.Now))}
	template, build := b.request(`{"name":"late"}`)
	c.advance(40 * time.Minute)
	if got := reason(b.status(template, build)); got != "waiting" {
		t.Errorf("after 40 minutes: %s", got)
	}
	c.advance(time.Second)
	if got := reason(b.status(template, build)); got != `error at "": build is in waiting state for too long` {
		t.Errorf("after more: %s", got)
	}
}

// TestDeleteWhileBuilding also is what the server does when it is closed.
func TestDeleteWhileBuilding(t *testing.T) {
	b, h := holdingServer(t)
	template, build := b.request(`{"name":"gone"}`)
	b.expect("start", b.start(template, build, holdSteps), 202, "")
	<-h.entered
	b.expect("delete", b.do("DELETE", "/templates/gone", ""), 204, "")
	b.expect("status", b.do("GET", "/templates/"+template+"/builds/"+build+"/status", ""), 400, "not found")
	b.expect("alias", b.do("GET", "/templates/aliases/gone", ""), 404, "not found")
	other, build := b.request(`{"name":"gone"}`)
	if other == template {
		t.Error("a template that was deleted came back")
	}
	b.expect("start", b.start(other, build, holdSteps), 202, "")
	<-h.entered // the server is closed meanwhile
}

func TestBuildErrors(t *testing.T) {
	b := builder{newAPI(t, mock.WithTemplates(
		mock.Template{Names: []string{"base"}, ID: "theirs", OtherTeam: true}, mock.Template{ID: "mine", Names: []string{"own"}},
	))}
	template, build := b.request(`{"name":"t"}`)
	b.create(`{"templateID":"own","timeout":300}`)
	hash := strings.Repeat("0", 64)
	for _, test := range []struct {
		method, path, body string
		status             int
		message            string
	}{
		{"POST", "/v3/templates", `{}`, 400, "Name is required"},
		{"POST", "/v3/templates", `{"name":"a b"}`, 400, "Invalid name: invalid template ID: a b"},
		{"POST", "/v3/templates", `{"name":"other/t"}`, 400, "namespace 'other' must match your team 'mock-team'"},
		{"POST", "/v3/templates", `{"name":"` + strings.Repeat("a", 129) + `"}`, 400, "maximum string length is 128"},
		{"POST", "/v3/templates", `{"name":"mine"}`, 409, "Alias 'mine' is already used"},
		{"POST", "/v3/templates", `{"name":"t","tags":["ü"]}`, 400, "Invalid tag: invalid tag 'ü': invalid tag: ü"},
		{"POST", "/v3/templates", `{"name":"t","tags":["` + build + `"]}`, 400, "tag cannot be a UUID"},
		{"POST", "/v3/templates", `{"name":"t","cpuCount":0}`, 400, "at least 1"},
		{"POST", "/v3/templates", `{"name":"t","cpuCount":3}`, 400, "CPU count must be 1 or an even number"},
		{"POST", "/v3/templates", `{"name":"t","cpuCount":34}`, 400, "CPU count must be at most 32"},
		{"POST", "/v3/templates", `{"name":"t","memoryMB":127}`, 400, "at least 128"},
		{"POST", "/v3/templates", `{"name":"t","memoryMB":129}`, 400, "Memory must be divisible by 2"},
		{"POST", "/v3/templates", `{"name":"t","memoryMB":"1"}`, 400, "value must be"},

		{"GET", "/templates/" + template + "/files/abc", "", 400, "Invalid files hash"},
		{"GET", "/templates/nothing/files/" + hash, "", 404, "Error when getting template"},
		{"GET", "/templates/theirs/files/" + hash, "", 404, "Error when getting template"},

		{"POST", "/v2/templates/" + template + "/builds/abc", "{}", 400, "Invalid build ID: abc"},
		{"POST", "/v2/templates/mine/builds/" + build, "{}", 404, "Error when getting template"},
		{"POST", "/v2/templates/" + template + "/builds/" + build, `{"steps":[{}]}`, 400, `property \"type\" is missing`},
		{"GET", "/templates/" + template + "/builds/abc/status", "", 400, "Invalid build id"},
		{"GET", "/templates/mine/builds/" + build + "/status", "", 400, "Build '" + build + "' not found"},
		{"GET", "/templates/" + template + "/builds/" + build + "/status?limit=101", "", 400, "at most 100"},
		{"GET", "/templates/" + template + "/builds/" + build + "/logs?direction=up", "", 400, "allowed values"},

		{"GET", "/templates/theirs", "", 403, "You don't have access to this sandbox template (theirs)"},
		{"GET", "/templates/aliases/base", "", 403, "You don't have access to this template alias"},
		{"GET", "/templates/base/tags", "", 403, "You don't have access to sandbox template 'base'"},
		{"GET", "/templates/nothing/tags", "", 404, "template 'nothing' not found"},
		{"GET", "/templates/base/else", "", 501, "does not have"},
		{"DELETE", "/templates/base", "", 403, "You don't have access to template 'base'"},
		{"DELETE", "/templates/own", "", 400, "there are running sandboxes using it"},
		{"PATCH", "/v2/templates/base", `{"public":true}`, 403, "You don't have access"},
		{"PATCH", "/v2/templates/nothing", `{"public":true}`, 404, "not found"},

		{"POST", "/templates/tags", `{"tags":["a"]}`, 400, `property \"target\" is missing`},
		{"POST", "/templates/tags", `{"target":"own","tags":[]}`, 400, "At least one tag is required"},
		{"POST", "/templates/tags", `{"target":"own:x","tags":["a"]}`, 404, "Template 'own:x' with tag 'x' not found"},
		{"POST", "/templates/tags", `{"target":"t","tags":["a"]}`, 404, "with tag 'default' not found"},
		{"POST", "/templates/tags", `{"target":"base","tags":["a"]}`, 403, "You don't have access to sandbox template 'base'"},
		{"POST", "/templates/tags", `{"target":"other/own","tags":["a"]}`, 400, "must match your team"},
		{"POST", "/templates/tags", `{"target":"own","tags":["a b"]}`, 400, "Invalid tag"},
		{"DELETE", "/templates/tags", `{"name":"own","tags":["default"]}`, 400, "Cannot delete the 'default' tag"},
		{"DELETE", "/templates/tags", `{"name":"own","tags":[]}`, 400, "At least one tag is required"},
		{"DELETE", "/templates/tags", `{"name":"own:a","tags":["b"]}`, 400, "should not contain a tag"},

		// In the end, since it ends the build.
		{"POST", "/v2/templates/" + template + "/builds/" + build, `{}`, 500, "must specify either fromImage or fromTemplate"},
		{"POST", "/v2/templates/" + template + "/builds/" + build, `{}`, 400, "build is not in waiting state"},
	} {
		b.expect(test.method+" "+test.path+" "+test.body, b.do(test.method, test.path, test.body), test.status, test.message)
	}
	if list := b.do("GET", "/v2/templates", "").list(t); len(list) != 2 {
		t.Errorf("listed: %v", list)
	}
}

// TestOtherTeamsTemplate is made, and built, from a template of another team.
func TestOtherTeamsTemplate(t *testing.T) {
	b := builder{newAPI(t, mock.WithTemplates(mock.Template{ID: "theirs", Names: []string{"base"}, OtherTeam: true, CPU: 8}))}
	if got := b.create(`{"templateID":"base"}`); got["templateID"] != "theirs" {
		t.Errorf("created: %v", got)
	}
	// One of the team's own has the name from its first request on.
	template, build := b.request(`{"name":"base"}`)
	b.expect("start", b.start(template, build, object{"fromTemplate": "theirs"}), 202, "")
	status := b.await(template, build)
	if status["status"] != "ready" || template == "theirs" {
		t.Errorf("template %s: %v", template, status)
	}
	if got := b.create(`{"templateID":"base"}`); got["templateID"] != template {
		t.Errorf("created: %v, want one of %s", got, template)
	}
	if r := b.do("GET", "/templates/aliases/base", ""); r.Status != 200 || r.json(t)["templateID"] != template {
		t.Errorf("alias: %+v", r)
	}
}

func TestLayers(t *testing.T) {
	c := newClock()
	b := builder{newAPI(t, mock.WithClock(c.Now))}
	template, _ := b.request(`{"name":"t"}`)
	hash := strings.Repeat("ab", 32)
	link := func() (present bool, uri string) {
		r := b.do("GET", "/templates/"+template+"/files/"+hash, "")
		at, err := url.Parse(r.json(t)["url"].(string))
		if r.Status != 201 || err != nil {
			t.Fatal(r, err)
		}
		return r.json(t)["present"].(bool), at.RequestURI()
	}
	present, uri := link()
	if present {
		t.Error("it is there before it was sent")
	}
	put := func(uri string, body io.Reader, size int64) int {
		req, err := http.NewRequestWithContext(t.Context(), "PUT", b.server.URL()+uri, body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		res, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	text := func() io.Reader { return struct{ io.Reader }{strings.NewReader("text")} }
	for name, test := range map[string]struct {
		uri  string
		size int64
		want int
	}{
		"chunked":   {uri, -1, 501},
		"forged":    {strings.Replace(uri, "signature=", "signature=0", 1), 4, 403},
		"unsigned":  {"/layers/" + hash, 4, 403},
		"other":     {strings.Replace(uri, hash, strings.Repeat("cd", 32), 1), 4, 403},
		"prolonged": {strings.Replace(uri, "expires=", "expires=9", 1), 4, 403},
	} {
		if got := put(test.uri, text(), test.size); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
	if present, _ = link(); present {
		t.Error("it is there after uploads that failed")
	}
	if got := put(uri, text(), 4); got != 200 {
		t.Errorf("upload: %d", got)
	}
	if present, _ = link(); !present {
		t.Error("it is not there")
	}
	c.advance(31 * time.Minute)
	if got := put(uri, text(), 4); got != 400 {
		t.Errorf("half an hour later: %d", got)
	}
}

// TestSizes sees that a size is that of a build.
func TestSizes(t *testing.T) {
	b := builder{newAPI(t)}
	size := func(reference string) string {
		id := b.create(fmt.Sprintf(`{"templateID":%q,"timeout":300}`, reference))["sandboxID"].(string)
		o := b.do("GET", "/sandboxes/"+id, "").json(t)
		return fmt.Sprint(o["cpuCount"], " ", o["memoryMB"])
	}
	var builds []string
	var template string
	for _, body := range []string{
		`{"name":"t"}`, `{"name":"t","cpuCount":4,"memoryMB":8192,"tags":["default","v2"]}`, `{"name":"t:v3","cpuCount":1,"memoryMB":128}`,
	} {
		var build string
		template, build = b.request(body)
		builds = append(builds, build)
		b.expect("start", b.start(template, build, object{"fromTemplate": "base"}), 202, "")
		if got := b.await(template, build); got["status"] != "ready" {
			t.Fatal(got)
		}
	}
	for reference, want := range map[string]string{
		"t": "4 8192", "t:v2": "4 8192", "t:v3": "1 128", "t:" + builds[0]: "2 1024", "base": "2 512", template: "4 8192",
	} {
		if got := size(reference); got != want {
			t.Errorf("%s: %s, want %s", reference, got, want)
		}
	}
	b.expect("add tags", b.do("POST", "/templates/tags", `{"target":"t:v3","tags":["Stable","v2"]}`), 201, `{"tags":["stable","v2"],"buildID":"`+builds[2]+`"}`)
	b.expect("remove tags", b.do("DELETE", "/templates/tags", `{"name":"t","tags":["v3"]}`), 204, "")
	b.expect("create", b.do("POST", "/sandboxes", `{"templateID":"t:v3"}`), 404, "tag 'v3' does not exist")
	got := map[string]string{}
	for _, o := range b.do("GET", "/templates/"+template+"/tags", "").list(t) {
		got[o["tag"].(string)] = o["buildID"].(string)
	}
	if diff := cmp.Diff(map[string]string{"default": builds[1], "stable": builds[2], "v2": builds[2]}, got); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	b.expect("publish", b.do("PATCH", "/v2/templates/t", `{"public":true}`), 200, `{"names":["mock-team/t"]}`)
	list := b.do("GET", "/v2/templates", "").list(t)
	if got := list[0]; got["public"] != true || got["buildID"] != builds[1] || got["cpuCount"] != 4.0 || got["spawnCount"] != 5.0 || got["buildCount"] != 3.0 {
		t.Errorf("listed: %v", got)
	}
}

// TestFailedBuilds is what a client is told.
func TestFailedBuilds(t *testing.T) {
	b := builder{newAPI(t)}
	hash := b.put(func() string { id, _ := b.request(`{"name":"layers"}`); return id }(), pack(t, false, file{name: "a", text: "a"}))
	for _, test := range []struct {
		step object
		want string
	}{
		{step("RUN", "nothing x"), "failed to run command 'nothing x': exit status 127"},
		{step("RUN", "false", "root"), "failed to run command 'false': exit status 1"},
		{step("RUN", "true", "nobody"), "failed to run command 'true': unknown user nobody"},
		{step("RUN"), "RUN requires command argument"},
		{step("COPY", "a"), "COPY requires a local path and a container path argument"},
		{step("COPY", "a", "/a"), "COPY requires files hash to be set"},
		{copyStep(strings.Repeat("0", 64), "a", "/a"), "failed to open files object from storage: no files were uploaded"},
		{copyStep(hash, "b", "/a"), "failed to move files in sandbox: source path does not exist: b"},
		{copyStep(hash, "a", "/a", "me"), "failed to move files in sandbox: chown: invalid user: 'me'"},
		{copyStep(hash, "a", "/a", "root:staff"), "chown: invalid group: 'staff'"},
		{copyStep(hash, "a", "/a", "", "u+x"), "invalid mode: 'u+x'"},
		{copyStep(hash, "a", "/usr/local/bin/osiris-worker/a"), "not a directory"},
		{step("USER"), "USER requires a username argument"},
		{step("USER", "me"), "failed to create user"},
		{step("WORKDIR"), "WORKDIR requires a path argument"},
		{step("ENV"), "ENV does not support passing no arguments"},
		{step("ARG", "a"), "ARG requires both a key and value arguments"},
		{step("EXPOSE", "80"), "failed to get command for step EXPOSE: command type EXPOSE is not implemented"},
	} {
		_, status := b.build("t", step("RUN", "echo fine"), test.step, step("RUN", "echo unreachable"))
		if got := reason(status); !strings.HasPrefix(got, `error at "2": `) || !strings.Contains(got, test.want) {
			t.Errorf("%v: %s, want %s", test.step, got, test.want)
		}
		log := messages(status)
		if last := log[len(log)-1]; !strings.HasPrefix(last, "error  Build failed: ") || !strings.Contains(last, test.want) || slices.Contains(log, "unreachable") {
			t.Errorf("%v: log %q", test.step, log)
		}
	}
	for reference, want := range map[string]string{
		"nothing": `error at "base": template 'nothing' not found`,
		"base:v1": `error at "base": tag 'v1' does not exist for template 'base'`,
		"a b":     `error at "base": invalid template reference: invalid template ID: a b`,
	} {
		template, build := b.request(`{"name":"t"}`)
		b.expect("start", b.start(template, build, object{"fromTemplate": reference}), 202, "")
		if got := reason(b.await(template, build)); got != want {
			t.Errorf("from %s: %s, want %s", reference, got, want)
		}
	}
}

// TestBuildLog reads a long log in pages.
func TestBuildLog(t *testing.T) {
	const lines = 250
	b := builder{newAPI(t, mock.WithOptions(mock.Options{Programs: map[string]mock.Program{
		"talk": func(_ context.Context, p *mock.Proc) int {
			for k := range lines {
				fmt.Fprintf(p.Stdout, "line %d\n", k)
			}
			fmt.Fprint(p.Stdout, "the last, without an end")
			return 0
		},
	}}))}
	template, build := b.request(`{"name":"t"}`)
	b.expect("start", b.start(template, build, object{"fromImage": "python:3.12", "steps": []object{step("RUN", "talk")}}), 202, "")
	b.await(template, build)
	var all []string
	for {
		r := b.do("GET", fmt.Sprintf("/templates/%s/builds/%s/status?logsOffset=%d&level=info", template, build, len(all)), "")
		page := messages(r.json(t))
		if len(page) > 100 {
			t.Fatalf("a page of %d lines", len(page))
		}
		if len(page) == 0 {
			break
		}
		all = append(all, page...)
	}
	for k := range lines {
		if !slices.Contains(all, fmt.Sprintf("info 1 [builder 1/1] [stdout]: line %d", k)) {
			t.Errorf("line %d is missing", k)
		}
	}
	if !slices.Contains(all, "info 1 [builder 1/1] [stdout]: the last, without an end") || !slices.Contains(all, "info base [base] FROM python:3.12") {
		t.Errorf("%q", all)
	}
	logs := func(query string) []any {
		return b.do("GET", "/templates/"+template+"/builds/"+build+"/logs"+query, "").json(t)["logs"].([]any)
	}
	if got := logs("?limit=1&direction=backward"); len(got) != 1 || !strings.HasPrefix(got[0].(object)["message"].(string), "Build finished") {
		t.Errorf("backward: %v", got)
	}
	if got := logs("?level=warn"); len(got) != 1 || got[0].(object)["step"] != "base" {
		t.Errorf("warnings: %v", got)
	}
	if got := logs("?cursor=" + fmt.Sprint(time.Now().Add(time.Hour).UnixMilli())); len(got) != 0 {
		t.Errorf("of the future: %v", got)
	}
}
