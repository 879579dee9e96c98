package remote_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// canaries are secrets that are planted, by what they stand for. They are of
// this process alone: the worker is the same program.
var canaries = map[string]string{
	"password": `kn4ry-p"ss/w&rd+1<é` + rand.Text(),
	"header":   "kn4ry-header-" + rand.Text(),
	"dsn":      "kn4ry-in-a-dsn-" + rand.Text(),
	"key":      "kn4ryKEY0123456789" + rand.Text(),
	"passed":   "kn4ry-passed-variable-" + rand.Text(),
	"given":    "kn4ry given variable " + rand.Text(),
	"index":    "kn4ry-of-an-index-" + rand.Text(),
}

func canaryConnections() connections.Static {
	return connections.Static{"@test.canary": {
		"host": "203.0.113.7", "port": 3306, "user": "reader", "password": canaries["password"],
		"headers": map[string]any{"X-Own": canaries["header"]},
		"pg_dsn":  "postgresql://writer:" + canaries["dsn"] + "@203.0.113.8:5432/db",
		"api_key": canaries["key"],
	}}
}

// runCanary says all that it knows, in every way a driver has.
func runCanary(ctx context.Context, s *worker.Step) (*worker.Result, error) {
	var cfg struct {
		How, Hold string
		Silent    bool // what is printed is not captured
	}
	if err := s.DecodeConfig(&cfg); err != nil {
		return nil, err
	}
	fields, err := s.ResolvedConnection()
	if err != nil {
		return nil, err
	}
	values := []string{s.Env["REMOTE_TEST_VALUE"], s.Env["REMOTE_TEST_GIVEN"], s.Env["PIP_INDEX_URL"]}
	if u, err := url.Parse(s.Env["PIP_INDEX_URL"]); err == nil {
		password, _ := u.User.Password()
		values = append(values, password)
	}
	for _, key := range []string{"password", "pg_dsn", "api_key"} {
		v, _ := fields[key].(string)
		values = append(values, v)
	}
	headers, _ := fields["headers"].(map[string]any)
	values = append(values, fmt.Sprint(headers["X-Own"]))
	for _, v := range values {
		if len(v) < 8 {
			return nil, fmt.Errorf("the driver has %d values, one is %q", len(values), v)
		}
	}
	all := strings.Join(values, " | ")
	switch cfg.How {
	case "error":
		return nil, fmt.Errorf("connect with %s: %w", all, &url.Error{Op: "Get", URL: "https://u:" + url.QueryEscape(values[0]) + "@host", Err: errors.New(values[2])})
	case "panic":
		panic(all)
	case "crash":
		fmt.Println("before the crash:", all)
		go func() { panic(all) }()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if cfg.How == "kill" { // what was printed last is left to the supervisor
		for range 50 {
			fmt.Println("before the kill:", all)
		}
		fmt.Print(all)
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			return nil, err
		}
		return nil, self.Kill()
	}
	b, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	for _, v := range append(values, all, string(b)) {
		if !cfg.Silent {
			fmt.Println("stdout:", v)
			fmt.Fprintln(os.Stderr, "stderr:", v)
			log.Print("log: ", v)
			fmt.Printf("%q %x %s %s\n", v, v, base64.StdEncoding.EncodeToString([]byte(":"+v)), url.QueryEscape(v))
		}
		s.Log().Info("slog "+v, "attr", v, "group", slog.GroupValue(slog.String("k", v)))
		s.LogEvent("canary", map[string]any{"text": v, "list": []any{v}, "nested": map[string]any{v: 1}, v: true, "error": errors.New(v), "bytes": []byte(v)})
		s.LogEvent("canary "+v, nil)
		s.LogMetric("rows_"+v, 1, "rows")
	}
	s.LogEvent("config", map[string]any{"config": s.Config, "env": s.Env})
	if !cfg.Silent {
		for chunk := range slices.Chunk([]byte(strings.Repeat("x", 16<<10)+all+"\n"), 5000) { // a long line is cut
			os.Stdout.Write(chunk)
		}
	}
	if cfg.Hold == "" {
		return nil, nil
	}
	s.LogEvent("holding", nil)
	for {
		if _, err := os.Stat(cfg.Hold); err == nil {
			return nil, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// marks are what every canary has in it, in all forms: most of what is looked at
// is large, and has none.
func marks() [][]byte {
	const mark = "kn4ry"
	list := [][]byte{[]byte(mark), []byte(hex.EncodeToString([]byte(mark))), []byte(strings.ToUpper(hex.EncodeToString([]byte(mark))))}
	for i := range 3 {
		e := base64.StdEncoding.EncodeToString([]byte("xx"[:i] + mark + "xx"))
		list = append(list, []byte(e[(8*i+5)/6:(8*i+8*len(mark))/6]))
	}
	return list
}

// hits looks for canaries in a text, in all usual forms.
func hits(text []byte) []string {
	if !slices.ContainsFunc(marks(), func(mark []byte) bool { return bytes.Contains(text, mark) }) {
		return nil
	}
	var found []string
	for name, v := range canaries {
		forms := []string{v, url.QueryEscape(v), url.PathEscape(v), hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))}
		for range 2 {
			b, _ := json.Marshal(forms[len(forms)-1])
			forms = append(forms, string(b[1:len(b)-1]))
		}
		b, _ := json.Marshal(v)
		forms = append(forms, string(b[1:len(b)-1]), fmt.Sprintf("%+q", v), fmt.Sprintf("%q", v))
		for i := range 3 { // what base64 makes of it wherever it stands
			e := base64.StdEncoding.EncodeToString([]byte("xx"[:i%3] + v + "xxx"))
			e = e[4 : len(e)-8]
			forms = append(forms, e, strings.NewReplacer("+", "-", "/", "_").Replace(e))
		}
		for _, f := range forms {
			if f = strings.Trim(f, `"`); bytes.Contains(text, []byte(f)) {
				found = append(found, fmt.Sprintf("%s as %q", name, f))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// sightings are what was found, by where.
type sightings struct {
	mu    sync.Mutex
	found map[string][]string
}

func (s *sightings) look(where string, text []byte) {
	if h := hits(text); len(h) > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.found == nil {
			s.found = make(map[string][]string)
		}
		s.found[where] = append(s.found[where], h...)
	}
}

// in returns the places of a kind where something was found.
func (s *sightings) in(kind string) (places []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for where, found := range s.found {
		if strings.HasPrefix(where, kind+" ") {
			places = append(places, fmt.Sprintf("%s: %s", where, strings.Join(found[:min(len(found), 4)], ", ")))
		}
	}
	slices.Sort(places)
	return places
}

func (s *sightings) lookAtFiles(t *testing.T, kind, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		files++
		s.look(kind+" "+name, b)
		s.look(kind+" name "+name, []byte(name))
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) || files == 0 {
		t.Errorf("%s: %d files in %s, error %v", kind, files, dir, err)
	}
}

// lookAtProcesses looks into all processes of this machine but this one.
func (s *sightings) lookAtProcesses(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(processes) == 0 {
		t.Fatalf("%d processes, error %v", len(processes), err)
	}
	for _, dir := range processes {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		for _, name := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil { // they come and go, and some are others'
				s.look("process "+dir+"/"+name, b)
			}
		}
	}
}

// recorder looks at all that goes over a listener's connections, and keeps what
// may be a canary.
type recorder struct {
	net.Listener
	mu   sync.Mutex
	wire map[*recordedConn]*[2]stretch
	all  int // bytes
}

// stretch is one direction of a connection.
type stretch struct {
	kept bytes.Buffer
	last []byte // the end of what was not kept
	more bool   // what was kept last may go on
}

func (s *stretch) add(b []byte) {
	const overlap = 1 << 10
	s.last = append(s.last, b...)
	marked := slices.ContainsFunc(marks(), func(mark []byte) bool { return bytes.Contains(s.last, mark) })
	if marked || s.more {
		s.kept.Write(s.last)
		s.last = s.last[:0]
	} else if n := len(s.last) - overlap; n > 0 {
		s.last = append(s.last[:0], s.last[n:]...)
	}
	s.more = marked
}

type recordedConn struct {
	*net.TCPConn
	r *recorder
}

func (r *recorder) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	rc := &recordedConn{c.(*net.TCPConn), r}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wire[rc] = new([2]stretch)
	return rc, nil
}

func (r *recorder) keep(c *recordedConn, direction int, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wire[c][direction].add(b)
	r.all += len(b)
}

func (c *recordedConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.r.keep(c, 0, b[:n])
	return n, err
}

func (c *recordedConn) Write(b []byte) (int, error) {
	c.r.keep(c, 1, b)
	return c.TCPConn.Write(b)
}

// ReadFrom hides that of net.TCPConn, which would go around Write.
func (c *recordedConn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// WriteTo is as ReadFrom.
func (c *recordedConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

func (r *recorder) look(s *sightings) (bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, directions := range r.wire {
		for i := range directions {
			s.look("wire "+[]string{"to the sandbox", "from the sandbox"}[i], directions[i].kept.Bytes())
		}
	}
	return r.all
}

// lookAtSandbox asks the sandbox's own daemon for what it shows.
func (s *sightings) lookAtSandbox(t *testing.T, cfg remote.Config, id, root string, working bool) {
	t.Helper()
	client, err := e2b.NewClient(e2b.Config{APIKey: cfg.APIKey, APIURL: cfg.APIURL, SandboxURL: cfg.SandboxURL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sb, err := client.Connect(t.Context(), id, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	files, err := sb.List(t.Context(), root, 20)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		if strings.HasPrefix(path.Base(f.Path), "osiris-worker-") {
			continue // the program is large, and was there before the secrets
		}
		b, err := sb.ReadFile(t.Context(), f.Path)
		if err != nil {
			continue // a directory, or it is gone
		}
		seen++
		s.look("sandbox "+f.Path, b)
		s.look("sandbox name "+f.Path, []byte(f.Path))
	}
	if seen < 2 {
		t.Errorf("%d of %d files in %s were read", seen, len(files), root)
	}
	processes, err := sb.Processes(t.Context())
	if err != nil || working && len(processes) == 0 {
		t.Fatalf("%d processes, error %v", len(processes), err)
	}
	s.look("daemon process list", fmt.Appendf(nil, "%+v", processes))
	s.look("daemon variables", daemonVariables(t, cfg, id))
}

// daemonVariables returns what the daemon's /envs shows.
func daemonVariables(t *testing.T, cfg remote.Config, id string) []byte {
	t.Helper()
	get := func(url string, header map[string]string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", url, resp.Status, err)
		}
		return b
	}
	var detail struct {
		Token string `json:"envdAccessToken"`
	}
	if err := json.Unmarshal(get(cfg.APIURL+"/sandboxes/"+id, map[string]string{"X-API-Key": cfg.APIKey}), &detail); err != nil {
		t.Fatal(err)
	}
	return get(cfg.SandboxURL+"/envs", map[string]string{"X-Access-Token": detail.Token, "E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49983"})
}

// TestCanary plants secrets, has drivers say them in every way there is, and
// looks for them wherever something is kept or can be seen. It does so again
// with the protection off, when the same looking must find them.
func TestCanary(t *testing.T) {
	for _, kind := range []string{"local", "served", "embedded", "envd"} {
		for _, protected := range []bool{true, false} {
			name := kind
			if !protected {
				name += " unprotected"
			}
			t.Run(name, func(t *testing.T) {
				if kind != "local" && !slices.Contains(servedKinds, kind) {
					t.Skipf("there is no %s here (E2B_ENVD_BIN is the daemon's program)", kind)
				}
				for _, how := range []string{"say", "error", "panic", "crash", "kill"} {
					if (how == "crash" || how == "kill") && (kind == "served" || runtime.GOOS == "windows") {
						continue // its drivers are this process's
					}
					t.Run(how, func(t *testing.T) { canary(t, kind, how, protected) })
				}
			})
		}
	}
}

func canary(t *testing.T, kind, how string, protected bool) {
	t.Setenv("OSIRIS_RPC_DEBUG", "true")
	t.Setenv("REMOTE_TEST_VALUE", canaries["passed"])
	var debug lockedBuffer
	logger := slog.New(slog.NewTextHandler(&debug, &slog.HandlerOptions{Level: slog.LevelDebug}))
	root := t.TempDir()
	cfg := remote.Config{
		Drivers: testDrivers(), Connections: canaryConnections(),
		PassEnv: []string{"REMOTE_TEST_VALUE"}, Env: map[string]string{
			"REMOTE_TEST_GIVEN": canaries["given"], "PIP_INDEX_URL": "https://ci:" + canaries["index"] + "@203.0.113.9/simple",
		},
	}
	var wire *recorder
	var a adapter
	var err error
	if kind == "local" {
		cfg.Root = root
		a, err = newLocalAdapter(cfg)
	} else {
		t.Setenv("E2B_DEBUG", "true")
		old := slog.Default()
		slog.SetDefault(logger)
		defer slog.SetDefault(old)
		l, listenErr := net.Listen("tcp", "127.0.0.1:0")
		if listenErr != nil {
			t.Fatal(listenErr)
		}
		wire = &recorder{Listener: l, wire: make(map[*recordedConn]*[2]stretch)}
		if kind == "served" { // and what builds a template tells nothing either
			cfg.CPU, cfg.AllowTemplateBuild = 4, true
		}
		cfg = connect(cfg, newServer(t, kind, cfg.Drivers, mock.WithListener(wire), mock.WithLogger(logger)))
		a, err = remote.NewE2BTransparentProxy(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if !protected {
		remote.Unprotect(a)
	}

	var seen sightings
	hold := path.Join("/tmp", "release-"+rand.Text()[:8])
	step := remote.Step{ID: "canary", Driver: "test.canary", Config: map[string]any{"how": how, "connection": "@test.canary", "silent": kind == "served"}}
	if how == "say" && kind != "served" {
		step.Config["hold"] = hold
	}
	ec := newContext(t, "canary")
	ec.Logger = logger
	var told []byte
	sandbox := ""
	ec.OnMetric = func(_ context.Context, m remote.Metric) error {
		told = fmt.Appendf(told, "%s %s %s\n", m.Name, m.Unit, m.Line)
		return nil
	}
	ec.OnEvent = func(ctx context.Context, e remote.Event) error {
		told = fmt.Appendf(told, "%s %s\n", e.Name, e.Line)
		if e.Name == "sandbox_created" {
			var f struct {
				ID string `json:"sandbox_id"`
			}
			if err := e.Decode(&f); err != nil {
				return err
			}
			sandbox = f.ID
		}
		if e.Name != "holding" {
			return nil
		}
		// The worker has all that it needs, and is at work.
		seen.lookAtProcesses(t)
		if kind == "local" {
			seen.lookAtFiles(t, "sandbox", root)
			return os.WriteFile(hold, nil, 0o600)
		}
		seen.lookAtSandbox(t, cfg, sandbox, "/tmp/osiris", true)
		return release(ctx, cfg, sandbox, hold)
	}
	p, err := a.Prepare(t.Context(), &remote.Manifest{Steps: []remote.Step{step}}, ec)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	seen.look("session prepared", stored)
	result, runErr := a.Execute(t.Context(), p, ec)
	if (how == "say") != (runErr == nil) {
		t.Fatalf("error %v", runErr)
	}
	seen.lookAtProcesses(t) // what is left
	if kind == "local" {
		seen.lookAtFiles(t, "sandbox", root)
	} else if kind != "served" {
		seen.lookAtSandbox(t, cfg, sandbox, "/tmp/osiris", false)
	}
	collected, err := a.Collect(t.Context(), p, ec)
	if err != nil {
		t.Fatal(err)
	}
	if how == "say" {
		os.Remove(hold) // where a sandbox's files are this machine's
	}
	seen.look("told events and metrics", told)
	seen.look("told result", fmt.Appendf(nil, "%+v %+v %v %#v", result, collected, runErr, runErr))
	seen.look("logger of the context", debug.Bytes())
	seen.lookAtFiles(t, "session", ec.LogsDir)
	if wire != nil && wire.look(&seen) < 1000 {
		t.Error("nothing was recorded")
	}
	if cfg.AllowTemplateBuild && !bytes.Contains(told, []byte("template_build_complete")) {
		t.Error("no template was built")
	}

	kinds := []string{"told", "logger", "session", "sandbox", "process", "daemon", "wire"}
	if protected {
		for _, k := range kinds {
			for _, place := range seen.in(k) {
				t.Errorf("found in %s", place)
			}
		}
		return
	}
	want := []string{"session"}
	if how != "kill" {
		want = append(want, "told")
	}
	if how == "say" {
		want = append(want, "logger")
	}
	if kind != "served" {
		want = append(want, "sandbox")
	}
	if wire != nil {
		want = append(want, "wire")
	}
	for _, k := range want {
		if len(seen.in(k)) == 0 {
			t.Errorf("nothing was found in kind %q: the looking is blind", k)
		}
	}
}

// TestCanaryIsSeen: what looks at processes and daemons would see a secret.
func TestCanaryIsSeen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc here")
	}
	t.Run("process", func(t *testing.T) {
		for _, cmd := range []*exec.Cmd{
			{Path: "/bin/sleep", Args: []string{"sleep", "60"}, Env: []string{"X=" + canaries["key"]}},
			{Path: "/bin/sh", Args: []string{"sh", "-c", "read x; : " + canaries["key"]}},
		} {
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var seen sightings
			seen.lookAtProcesses(t)
			cmd.Process.Kill()
			cmd.Wait()
			if len(seen.in("process")) == 0 {
				t.Errorf("%v was not seen", cmd.Args)
			}
		}
	})
	for _, kind := range servedKinds {
		if kind == "served" {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			cfg := connect(remote.Config{}, newServer(t, kind, nil))
			client, err := e2b.NewClient(e2b.Config{APIKey: cfg.APIKey, APIURL: cfg.APIURL, SandboxURL: cfg.SandboxURL})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			sb, err := client.CreateSandbox(t.Context(), e2b.CreateOptions{Timeout: time.Minute, EnvVars: map[string]string{"G": canaries["given"]}})
			if err != nil {
				t.Fatal(err)
			}
			defer sb.Kill(context.WithoutCancel(t.Context()))
			for i := range 3 {
				if err := sb.WriteFile(t.Context(), fmt.Sprintf("/tmp/osiris/f%d", i), []byte(canaries["dsn"])); err != nil {
					t.Fatal(err)
				}
			}
			p, err := sb.Start(t.Context(), e2b.Command{Path: "/bin/cat", Stdin: true, Env: map[string]string{"P": canaries["passed"]}})
			if err != nil {
				t.Fatal(err)
			}
			var seen sightings
			seen.lookAtSandbox(t, cfg, sb.ID(), "/tmp/osiris", true)
			for _, want := range []string{"daemon process list", "daemon variables", "sandbox /tmp/osiris/f0"} {
				if seen.found[want] == nil {
					t.Errorf("nothing was seen in %s: %v", want, seen.found)
				}
			}
			if err := p.Signal(t.Context(), e2b.SignalKill); err != nil {
				t.Error(err)
			}
			if _, err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// release lets a driver in a sandbox go on.
func release(ctx context.Context, cfg remote.Config, id, name string) error {
	client, err := e2b.NewClient(e2b.Config{APIKey: cfg.APIKey, APIURL: cfg.APIURL, SandboxURL: cfg.SandboxURL})
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Connect(ctx, id, time.Minute)
	if err != nil {
		return err
	}
	return sb.WriteFile(ctx, name, []byte("go"))
}

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}
