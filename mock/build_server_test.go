package mock_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

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
	if r := b.start(template, build, object{"fromTemplate": "base", "steps": steps}); r.Status != http.StatusAccepted || r.Body != "" {
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
	b := isolatedServer(t)
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
