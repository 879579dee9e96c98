package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// docs/manifest.md has a manifest that works.
func TestManifestDocumented(t *testing.T) {
	b, err := os.ReadFile("docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "```yaml\n")
	text, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("there is no example")
	}
	m, err := remote.ParseManifest([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := remote.NewLocalAdapter(remote.Config{Drivers: csvDrivers(), InProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ec := newContext(t, "s")
	ec.BasePath = t.TempDir()
	if err := os.WriteFile(filepath.Join(ec.BasePath, "users.csv"), []byte("a,b\n1,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, files, err := remote.Run(t.Context(), a, m, ec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, "write", "out.csv"))
	if string(got) != "a,b\n1,2\n" || err != nil {
		t.Errorf("wrote %q, %v", got, err)
	}
}

// docs/session.md names every event and metric with all their fields, and no
// event that there is not.
func TestSessionDocumented(t *testing.T) {
	b, err := os.ReadFile("docs/session.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	documented := func(kind, name string) {
		t.Helper()
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("docs/session.md does not name the %s %q", kind, name)
		}
	}
	seen := make(map[string]bool)
	inspect := func(t *testing.T, ec *remote.ExecutionContext) {
		t.Helper()
		for _, e := range events(t, ec, "") {
			name, _ := e["event"].(string)
			if name == "inputs_seen" || name == "crash" || name == "flood" { // a test driver's own
				continue
			}
			seen[name] = true
			documented("event", name)
			for field := range e {
				documented("field of "+name, field)
			}
		}
		for _, e := range lines(t, filepath.Join(ec.LogsDir, "metrics.jsonl")) {
			name, _ := e["metric"].(string)
			documented("metric", name)
			for field := range e {
				documented("field of "+name, field)
			}
		}
		status, err := os.ReadFile(filepath.Join(ec.LogsDir, "status.json"))
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(status, &fields); err != nil {
			t.Fatal(err)
		}
		for field := range fields {
			documented("field of status.json", field)
		}
	}
	run := func(t *testing.T, m *remote.Manifest, opts *mock.Options) {
		t.Helper()
		cfg := remote.Config{Heartbeat: time.Millisecond, Restarts: 1, MaxEvents: 1000}
		if opts != nil {
			cfg.Drivers = opts.Drivers
		}
		a, provider := newAdapter(t, "proxy", cfg, opts)
		ec := newContext(t, "s")
		killAtCrash(t, ec, provider)
		_, _, _ = remote.Run(t.Context(), a, m, ec)
		inspect(t, ec)
	}
	good := join()
	good.Steps[0].Config["component"] = "test.rows"
	run(t, good, nil)
	failing := join()
	failing.Steps[1].Driver = "test.panic"
	run(t, failing, nil)
	crashed := one("test.crash")
	crashed.Steps[0].Repeatable, crashed.Steps[0].Config = true, map[string]any{"crashes": 1}
	run(t, crashed, nil)
	run(t, flood(2000), nil)
	run(t, join(), &mock.Options{Fault: func(_ context.Context, c mock.Call) error {
		if c.Op == mock.OpDownload {
			return errors.New("no")
		}
		return nil
	}})

	synctest.Test(t, func(t *testing.T) { // a worker that is silent for a while
		var q quiet
		drivers := testDrivers()
		drivers.Register("test.silent", worker.Transform, func() worker.Driver {
			return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) {
				q.freeze("S")
				time.Sleep(10 * time.Second)
				q.thaw()
				return nil, nil
			})
		})
		silent := &mock.Options{Drivers: drivers, Programs: map[string]mock.Program{"osiris-worker": q.program(drivers)}}
		run(t, one("test.silent"), silent)
	})
	for _, v := range []remote.Verdict{
		remote.VerdictExited, remote.VerdictKilled, remote.VerdictOutOfMemory, remote.VerdictFrozen, remote.VerdictUnreachable,
		remote.VerdictSandboxPaused, remote.VerdictSandboxGone, remote.VerdictLeaseOver, remote.VerdictHostSuspended, remote.VerdictUnknown,
	} {
		documented("verdict", string(v))
	}
	// One that loses its sandbox, and one that waits until it has.
	unlucky, waiting := newContext(t, "unlucky"), newContext(t, "waiting")
	synctest.Test(t, func(t *testing.T) {
		a, n := newCloud(t).proxy(remote.Config{Timeout: time.Hour, Lease: time.Minute, MaxSandboxes: 1})
		begin := time.Now()
		outage := func(req *http.Request) bool {
			at := time.Since(begin)
			return strings.HasSuffix(req.URL.Path, "/timeout") && at > 2*time.Minute && at < 4*time.Minute
		}
		n.lose.Store(&outage)
		var first sync.WaitGroup
		first.Go(func() { _, _, _ = remote.Run(t.Context(), a, sleep(10*time.Minute), unlucky) })
		synctest.Wait()
		_, _, _ = remote.Run(t.Context(), a, sleep(time.Second), waiting)
		first.Wait()
	})
	inspect(t, unlucky)
	inspect(t, waiting)
	// One that has a connection, which is renewed; one that needs none; one whose is not to be had.
	var asked atomic.Int64
	vault := connections.ResolverFunc(func(_ context.Context, ref connections.Reference) (*connections.Connection, error) {
		switch ref.Alias {
		case "":
			return nil, connections.ErrNotConfigured
		case "closed":
			return nil, errors.New("closed")
		}
		return &connections.Connection{Fields: map[string]any{"n": asked.Add(1), "password": "hunter22"}, RefreshAt: time.Now()}, nil
	})
	for _, m := range []*remote.Manifest{connected("test.refreshed", "@test.short", map[string]any{"n": 2}), one("test.noop"), connected("test.noop", "@test.closed", nil)} {
		a, _ := newAdapter(t, "proxy", remote.Config{Connections: vault}, nil)
		ec := newContext(t, "s")
		_, _, _ = remote.Run(t.Context(), a, m, ec)
		inspect(t, ec)
	}
	// One whose outputs do not fit into memory, and one whose input is the host's and
	// whose output it reads.
	for _, cfg := range []remote.Config{{MemoryBudget: 1}, {}} {
		a, _ := newAdapter(t, "proxy", cfg, nil)
		ec := newContext(t, "s")
		m := join()
		if cfg.MemoryBudget == 0 {
			m = passing("orders")
			ec.Tables = map[string]remote.Table{"orders": numberedFrom(2, 1)}
			keepAll(ec)
		}
		if _, _, err := remote.Run(t.Context(), a, m, ec); err != nil {
			t.Fatal(err)
		}
		inspect(t, ec)
	}
	// One whose server cannot limit its network.
	server := newServer(t, "served", testDrivers())
	f := newFront(t, server)
	f.answer = func(_ http.ResponseWriter, _ *http.Request, body map[string]any) bool {
		delete(body, "network")
		return false
	}
	open := newContext(t, "open")
	_, _, _ = remote.Run(t.Context(), newProxy(t, f.through(connect(remote.Config{Drivers: testDrivers()}, server)), nil), one("test.noop"), open)
	inspect(t, open)

	if !seen["connection_refreshed"] {
		t.Error("no connection was renewed")
	}
	_, tables, _ := strings.Cut(doc, "Of the run:")
	tables, _, _ = strings.Cut(tables, "## metrics.jsonl")
	for _, name := range pythonEvents { // they take a Python: TestPythonEventsDocumented
		seen[name] = true
	}
	for _, row := range regexp.MustCompile("(?m)^\\|(?: \\*or\\*)? `([a-z_]+)`").FindAllStringSubmatch(tables, -1) {
		if !seen[row[1]] {
			t.Errorf("docs/session.md has the event %q, which no run of this test had", row[1])
		}
	}
}
