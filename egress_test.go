package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
)

// hostsFile looks names up in a list, and says of others that there are none.
type hostsFile map[string][]string

func (f hostsFile) lookup(_ context.Context, name string) (addrs []netip.Addr, err error) {
	for _, a := range f[name] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	if addrs == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return addrs, nil
}

// networkDrivers have the names of drivers that connect to something, and do
// not.
func networkDrivers() *worker.Registry {
	r := testDrivers()
	for _, name := range []string{"mysql.writer", "supabase.writer", "graphql.extractor", "snowflake.extractor", "s3.writer", "duckdb.processor", "postgres.extractor", "posthog.extractor", "shopify.extractor"} {
		r.Register(name, worker.Transform, func() worker.Driver {
			return driverFunc(func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil })
		})
	}
	r.Register("test.hosts", worker.Transform, func() worker.Driver { return namer{} })
	return r
}

// namer declares its hosts.
type namer struct{}

func (namer) Run(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil }

func (namer) Hosts(config map[string]any) ([]string, error) {
	if config["fail"] != nil {
		return nil, fmt.Errorf("cannot read %v %v", config["resolved_connection"], config["fail"])
	}
	return []string{"https://api.declared.example/v1", "db.example.com:5432", "*.cdn.example"}, nil
}

// front stands before a server and sees what the control plane is told.
type front struct {
	*httptest.Server
	mu       sync.Mutex
	networks []map[string]any // of creates
	creates  []map[string]any // their bodies
	puts     []map[string]any
	paths    []string

	// answer answers in place of the server, or changes the body.
	answer func(w http.ResponseWriter, r *http.Request, body map[string]any) bool
}

func newFront(t testing.TB, server *mock.Server) *front {
	t.Helper()
	to, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	transport := &http.Transport{}
	proxy.Transport = transport
	f := &front{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var body map[string]any
		_ = json.Unmarshal(b, &body)
		f.mu.Lock()
		f.paths = append(f.paths, r.Method+" "+r.URL.Path)
		switch {
		case r.Method == "POST" && r.URL.Path == "/sandboxes":
			network, _ := body["network"].(map[string]any)
			f.networks, f.creates = append(f.networks, network), append(f.creates, body)
		case r.Method == "PUT":
			f.puts = append(f.puts, body)
		}
		f.mu.Unlock()
		if f.answer != nil && f.answer(w, r, body) {
			return
		}
		if body != nil {
			b, _ = json.Marshal(body)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { f.Close(); transport.CloseIdleConnections() })
	return f
}

// through leads the control plane by way of f.
func (f *front) through(cfg remote.Config) remote.Config {
	cfg.APIURL = f.URL
	return cfg
}

func newProxy(t testing.TB, cfg remote.Config, hosts hostsFile) *remote.E2BTransparentProxy {
	t.Helper()
	a, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	a.SetLookup(hosts.lookup)
	return a
}

func steps(list ...remote.Step) *remote.Manifest {
	for i := range list {
		list[i].ID = fmt.Sprintf("step-%d", i+1)
	}
	return &remote.Manifest{Name: "network", Steps: list}
}

func step(driver, connection string, config map[string]any) remote.Step {
	if config == nil {
		config = map[string]any{}
	}
	if connection != "" {
		config["connection"] = connection
	}
	return remote.Step{Driver: driver, Config: config}
}

func egressHosts() hostsFile {
	return hostsFile{
		"db.example.com":      {"203.0.113.7", "203.0.113.8", "2001:db8::7"},
		"pg.example.com":      {"198.51.100.3"},
		"six.example.com":     {"2001:db8::6"},
		"private.example.com": {"10.1.2.3", "192.168.1.1"},
		"half.example.com":    {"10.1.2.3", "203.0.113.9"},
		"api.example.com":     {"203.0.113.20"},
		"localhost":           {"127.0.0.1", "::1"},
	}
}

func egressConnections() connections.Static {
	return connections.Static{
		"@mysql.name":     {"host": "DB.example.com.", "port": 3306, "user": "u", "password": "hunter22", "database": "d"},
		"@mysql.ip":       {"host": "203.0.113.77", "port": "3306", "user": "u", "password": "hunter22"},
		"@mysql.dsn":      {"dsn": "u:hunter22@tcp(db.example.com:3306)/d"},
		"@mysql.local":    {"host": "localhost", "password": "hunter22"},
		"@mysql.private":  {"host": "private.example.com"},
		"@mysql.half":     {"host": "half.example.com"},
		"@mysql.six":      {"host": "six.example.com"},
		"@mysql.nowhere":  {"host": "nowhere.example.com"},
		"@mysql.unfilled": {"host": "${MYSQL_HOST}"},
		"@mysql.bad":      {"dsn": "postgres://u:hunter22/x@db.example.com/d"},
		"@postgres.libpq": {"connection_string": "host=pg.example.com port=5432 user=u password='hun ter22'"},
		"@supabase.id":    {"project_id": "abcdef", "service_role_key": "hunter22"},
		"@supabase.both":  {"url": "https://abcdef.supabase.co", "pg_dsn": "postgresql://u:hunter22@pg.example.com:5432/postgres"},
		"@supabase.dev":   {"url": "http://localhost:54321"},
		"@graphql.api":    {"endpoint": "https://api.example.com/graphql"},
		"@graphql.8443":   {"endpoint": "https://api.example.com:8443/graphql"},
		"@snowflake.a":    {"account": "xy12345.eu-west-1"},
		"@s3.lake":        {"bucket": "company-data-lake", "region": "us-east-1", "role_arn": "arn:aws:iam::1:role/x"},
		"@s3.minio":       {"bucket": "b", "endpoint_url": "https://minio.example.com"},
		"@duckdb.d":       {"path": "./data/local.duckdb"},
		"@posthog.us":     {"api_key": "hunter22", "project_id": "1"},
		"@shopify.s":      {"shop_domain": "mystore.myshopify.com", "access_token": "hunter22"},
	}
}

// TestNetworkOfRun looks at the network that the server is asked for, for every
// kind of plan.
func TestNetworkOfRun(t *testing.T) {
	deny := []any{"0.0.0.0/0"}
	db := []any{"203.0.113.7", "203.0.113.8", "8.8.8.8"}
	tests := []struct {
		name  string
		cfg   remote.Config
		env   map[string]string
		steps []remote.Step
		allow []any  // nil means none
		open  bool   // nothing is denied
		fails string // of the error, and nothing is made
	}{
		{name: "no connections", steps: []remote.Step{step("test.noop", "", nil)}},
		{name: "duckdb", steps: []remote.Step{step("duckdb.processor", "@duckdb.d", nil)}},
		{name: "mysql by name", steps: []remote.Step{step("mysql.writer", "@mysql.name", nil)}, allow: db},
		{name: "mysql by dsn", steps: []remote.Step{step("mysql.writer", "@mysql.dsn", nil)}, allow: db},
		{name: "mysql by address", steps: []remote.Step{step("mysql.writer", "@mysql.ip", nil)}, allow: []any{"203.0.113.77"}},
		{name: "some addresses private", steps: []remote.Step{step("mysql.writer", "@mysql.half", nil)}, allow: []any{"203.0.113.9", "8.8.8.8"}},
		{name: "libpq", steps: []remote.Step{step("postgres.extractor", "@postgres.libpq", nil)}, allow: []any{"198.51.100.3", "8.8.8.8"}},
		{name: "https", steps: []remote.Step{step("graphql.extractor", "@graphql.api", nil)}, allow: []any{"api.example.com"}},
		{name: "https inline", steps: []remote.Step{step("graphql.extractor", "", map[string]any{"endpoint": "https://api.example.com/graphql"})}, allow: []any{"api.example.com"}},
		{name: "http on another port", steps: []remote.Step{step("graphql.extractor", "@graphql.8443", nil)}, allow: []any{"203.0.113.20", "8.8.8.8"}},
		{name: "placeholder in config", cfg: remote.Config{Env: map[string]string{"API_HOST": "api.example.com"}},
			steps: []remote.Step{step("graphql.extractor", "", map[string]any{"endpoint": "https://${API_HOST}/graphql"})}, allow: []any{"api.example.com"}},
		{name: "supabase", steps: []remote.Step{step("supabase.writer", "@supabase.id", nil)}, allow: []any{"abcdef.supabase.co"}},
		{name: "supabase and its database", steps: []remote.Step{step("supabase.writer", "@supabase.both", nil)}, allow: []any{"198.51.100.3", "abcdef.supabase.co"}},
		{name: "snowflake", steps: []remote.Step{step("snowflake.extractor", "@snowflake.a", nil)}, allow: []any{"xy12345.eu-west-1.snowflakecomputing.com"}},
		{name: "s3", steps: []remote.Step{step("s3.writer", "@s3.lake", nil)},
			allow: []any{"company-data-lake.s3.us-east-1.amazonaws.com", "s3.us-east-1.amazonaws.com", "sts.us-east-1.amazonaws.com"}},
		{name: "s3 elsewhere", steps: []remote.Step{step("s3.writer", "@s3.minio", nil)}, allow: []any{"minio.example.com"}},
		{name: "posthog", steps: []remote.Step{step("posthog.extractor", "@posthog.us", nil)}, allow: []any{"us.posthog.com"}},
		{name: "shopify", steps: []remote.Step{step("shopify.extractor", "@shopify.s", nil)}, allow: []any{"mystore.myshopify.com"}},
		{name: "declared", steps: []remote.Step{step("test.hosts", "", nil)}, allow: []any{"*.cdn.example", "203.0.113.7", "203.0.113.8", "api.declared.example"}},
		{name: "several steps", steps: []remote.Step{
			step("mysql.writer", "@mysql.name", nil), step("mysql.writer", "@mysql.name", nil), step("graphql.extractor", "@graphql.api", nil), step("test.noop", "", nil),
		}, allow: []any{"203.0.113.7", "203.0.113.8", "api.example.com"}},
		{name: "packages that no step needs", cfg: remote.Config{InstallDeps: true}, steps: []remote.Step{step("test.noop", "", nil)}},
		{name: "the user's", cfg: remote.Config{AllowHosts: []string{"Extra.example.com:443", "*.wild.example", "198.51.100.0/24", "203.0.113.5", "db.example.com:3306"}},
			steps: []remote.Step{step("test.noop", "", nil)}, allow: []any{"*.wild.example", "198.51.100.0/24", "203.0.113.5", "203.0.113.7", "203.0.113.8", "extra.example.com"}},
		{name: "a name of the user's on any port", cfg: remote.Config{AllowHosts: []string{"api.example.com"}},
			steps: []remote.Step{step("test.noop", "", nil)}, allow: []any{"203.0.113.20", "api.example.com"}},
		{name: "networks that overlap", cfg: remote.Config{AllowHosts: []string{"203.0.113.0/24", "203.0.113.0/28", "203.0.113.5"}},
			steps: []remote.Step{step("mysql.writer", "@mysql.name", nil)}, allow: []any{"203.0.113.0/24", "8.8.8.8"}},
		{name: "open", cfg: remote.Config{Egress: remote.EgressOpen}, steps: []remote.Step{step("mysql.writer", "@mysql.local", nil)}, open: true},
		{name: "private, allowed", cfg: remote.Config{AllowHosts: []string{"10.0.0.0/8"}}, steps: []remote.Step{step("mysql.writer", "@mysql.private", nil)},
			allow: []any{"10.0.0.0/8", "8.8.8.8"}},
		{name: "localhost, allowed", cfg: remote.Config{AllowHosts: []string{"localhost:54321", "127.0.0.0/8"}}, steps: []remote.Step{step("supabase.writer", "@supabase.dev", nil)},
			allow: []any{"127.0.0.0/8", "8.8.8.8"}},
		{name: "localhost", steps: []remote.Step{step("mysql.writer", "@mysql.local", nil)},
			fails: `step "step-1": connection @mysql.local: host: host cannot be reached from the sandbox: "localhost" is the sandbox itself there, not this machine`},
		{name: "localhost with a port", steps: []remote.Step{step("supabase.writer", "@supabase.dev", nil)}, fails: `"localhost:54321" is the sandbox itself`},
		{name: "localhost inline", steps: []remote.Step{step("graphql.extractor", "", map[string]any{"endpoint": "http://127.0.0.1:8000"})},
			fails: `step "step-1": endpoint: host cannot be reached from the sandbox: "127.0.0.1:8000" is the sandbox itself`},
		{name: "private", steps: []remote.Step{step("mysql.writer", "@mysql.private", nil)}, fails: `"private.example.com" is 192.168.1.1, which is private, which E2B denies to sandboxes; if sandboxes of this server can reach it, name it in Config.AllowHosts`},
		{name: "only IPv6", steps: []remote.Step{step("mysql.writer", "@mysql.six", nil)}, fails: "have only IPv4"},
		{name: "no such host", steps: []remote.Step{step("mysql.writer", "@mysql.nowhere", nil)}, fails: "; check the name, or give an address in its place"},
		{name: "placeholder not filled", steps: []remote.Step{step("mysql.writer", "@mysql.unfilled", nil)}, fails: "placeholder"},
		{name: "dsn that cannot be read", steps: []remote.Step{step("postgres.extractor", "@postgres.slash", nil)}, fails: "dsn: host cannot be reached from the sandbox: has an @ behind its host"},
		{name: "host with a password", steps: []remote.Step{step("mysql.writer", "@mysql.login", nil)}, fails: `host: host cannot be reached from the sandbox: "***@db.example.com" has a port that is no number`},
		{name: "driver that cannot tell", steps: []remote.Step{step("test.hosts", "@test.h", map[string]any{"fail": true})}, fails: "the driver cannot tell its hosts: cannot read"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := test.cfg
			cfg.Drivers = networkDrivers()
			known := egressConnections()
			known["@postgres.slash"] = map[string]any{"dsn": "postgres://u:hunter22/x@db.example.com/d"}
			known["@mysql.login"] = map[string]any{"host": "u:hunter22@db.example.com"}
			known["@test.h"] = map[string]any{"password": "hunter22"}
			delete(known, "@mysql.bad")
			cfg.Connections = known
			server := newServer(t, "served", cfg.Drivers)
			f := newFront(t, server)
			a := newProxy(t, f.through(connect(cfg, server)), egressHosts())
			ec := newContext(t, "s")
			_, _, err := remote.Run(t.Context(), a, steps(test.steps...), ec)
			noTraces(t, ec.LogsDir, "hunter22", "hun ter22")
			if test.fails != "" {
				var host *remote.HostError
				if !errors.Is(err, remote.ErrUnreachable) || !errors.Is(err, remote.ErrInvalid) || !errors.As(err, &host) || host.Step != "step-1" || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("error %v, want %q", err, test.fails)
				}
				if strings.Contains(fmt.Sprint(err), "hunter22") {
					t.Errorf("the error shows a secret: %v", err)
				}
				if ended := events(t, ec, "run_error"); len(ended) != 1 || ended[0]["failed_step"] != "step-1" || ended[0]["error_type"] != "*remote.HostError" {
					t.Errorf("events %v", ended)
				}
				if len(f.creates) != 0 {
					t.Errorf("a sandbox was asked for: %v", f.creates)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]any{"allowPublicTraffic": false, "denyOut": deny}
			if test.allow != nil {
				want["allowOut"] = test.allow
			}
			if test.open {
				delete(want, "denyOut")
			}
			if diff := cmp.Diff([]map[string]any{want}, f.networks); diff != "" {
				t.Errorf("network (-want +got):\n%s", diff)
			}
			if f.creates[0]["secure"] != true || f.creates[0]["allow_internet_access"] != true {
				t.Errorf("create %v", f.creates[0])
			}
			told := events(t, ec, "network_limited")
			if test.open {
				if len(told) != 0 {
					t.Errorf("events %v", told)
				}
				return
			}
			if len(told) != 1 || told[0]["allowed_count"] != float64(len(test.allow)) {
				t.Fatalf("events %v", told)
			}
			var targets []any
			for _, rule := range told[0]["allowed"].([]any) {
				rule := rule.(map[string]any)
				targets = append(targets, rule["target"])
				if reasons := rule["reasons"].([]any); len(reasons) == 0 {
					t.Errorf("%v has no reason", rule)
				}
			}
			if test.name == "placeholder in config" {
				test.allow = []any{"***"} // what a variable holds is redacted
			}
			if diff := cmp.Diff(test.allow, targets); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
		})
	}
}

// noTraces looks for texts in all files below a directory.
func noTraces(t testing.TB, dir string, texts ...string) {
	t.Helper()
	for name, content := range tree(t, dir) {
		for _, text := range texts {
			if text != "" && strings.Contains(content, text) {
				t.Errorf("%s holds %q", name, text)
			}
		}
	}
}

// A plan with a driver in Python reaches the package indexes, where it may
// install.
func TestNetworkOfPackages(t *testing.T) {
	server := newServer(t, "served", networkDrivers())
	for _, test := range []struct {
		cfg  remote.Config
		want []string
	}{
		{remote.Config{}, nil},
		{remote.Config{InstallDeps: true}, []string{"files.pythonhosted.org", "pypi.org"}},
		{remote.Config{InstallDeps: true, Env: map[string]string{"PIP_INDEX_URL": "https://u:hunter22@index.example.com/simple"}}, []string{"index.example.com"}},
	} {
		cfg := test.cfg
		cfg.Drivers = networkDrivers()
		cfg.PythonDrivers = []remote.PythonDriver{{Name: "python.driver", Module: "m", Class: "C"}}
		a := newProxy(t, connect(cfg, server), egressHosts())
		p, err := a.Prepare(t.Context(), steps(step("python.driver", "", nil)), newContext(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		rules, err := a.Network(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, rule := range rules.Allow {
			got = append(got, rule.Target)
		}
		if diff := cmp.Diff(test.want, got); diff != "" || strings.Contains(fmt.Sprint(rules), "hunter22") {
			t.Errorf("%s\n%v", diff, rules)
		}
	}
}

// The dry run says why, and makes nothing.
func TestNetworkDryRun(t *testing.T) {
	cfg := remote.Config{Drivers: networkDrivers(), Connections: egressConnections(), AllowHosts: []string{"*.wild.example"}, InstallDeps: true,
		PythonDrivers: []remote.PythonDriver{{Name: "graphql.extractor", Module: "m", Class: "C"}}}
	server := newServer(t, "served", cfg.Drivers)
	a := newProxy(t, connect(cfg, server), egressHosts())
	m := steps(step("mysql.writer", "@mysql.dsn", nil), step("graphql.extractor", "", map[string]any{"endpoint": "https://api.example.com/g", "host": "not a host!"}))
	p, err := a.Prepare(t.Context(), m, newContext(t, "s"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.Network(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `network: nothing but 5 targets (limited)
  *.wild.example                           *.wild.example: Config.AllowHosts
  203.0.113.7                              db.example.com:3306: step step-1, @mysql.dsn, dsn
  203.0.113.8                              db.example.com:3306: step step-1, @mysql.dsn, dsn
  files.pythonhosted.org                   files.pythonhosted.org:443: Config.InstallDeps
  pypi.org                                 pypi.org:443: Config.InstallDeps
  warning: step "step-2": host: host cannot be reached from the sandbox: "not a host!" is not the name or address of a host; if it names a host, allow that by Config.AllowHosts
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(server.Requests()) != 0 {
		t.Errorf("the server was asked: %v", server.Requests())
	}
	open := newProxy(t, connect(remote.Config{Drivers: networkDrivers(), Connections: egressConnections(), Egress: remote.EgressOpen}, server), nil)
	if rules, err := open.Network(t.Context(), p); err != nil || rules.String() != "network: open (open)\n" {
		t.Errorf("%v, %v", rules, err)
	}
	if rules, err := a.Network(t.Context(), nil); !errors.Is(err, remote.ErrInvalid) || rules.String() != "network: not known\n" {
		t.Errorf("%v, error %v", rules, err)
	}
}

// TestServerWithoutRules runs against servers that cannot limit a sandbox.
func TestServerWithoutRules(t *testing.T) {
	refuse := func(status int) func(http.ResponseWriter, *http.Request, map[string]any) bool {
		return func(w http.ResponseWriter, r *http.Request, body map[string]any) bool {
			if r.Method != "POST" || r.URL.Path != "/sandboxes" || body["network"] == nil {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"code":%d,"message":"property \"network\" is unsupported"}`, status)
			return true
		}
	}
	ignore := func(_ http.ResponseWriter, _ *http.Request, body map[string]any) bool {
		delete(body, "network")
		return false
	}
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request, map[string]any) bool{
		"400": refuse(400), "403": refuse(403), "422": refuse(422), "ignores it": ignore,
	} {
		for _, policy := range []remote.Egress{"", remote.EgressRequired, remote.EgressOpen} {
			t.Run(fmt.Sprintf("%s/%s", name, policy), func(t *testing.T) {
				t.Parallel()
				cfg := remote.Config{Drivers: networkDrivers(), Egress: policy}
				server := newServer(t, "served", cfg.Drivers)
				f := newFront(t, server)
				f.answer = answer
				a := newProxy(t, f.through(connect(cfg, server)), nil)
				ec := newContext(t, "s")
				_, _, err := remote.Run(t.Context(), a, one("test.noop"), ec)
				told := len(events(t, ec, "network_limited"))
				warned := events(t, ec, "network_not_limited")
				log, _ := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
				switch policy {
				case remote.EgressRequired:
					if err == nil || told+len(warned) != 0 {
						t.Errorf("error %v, %d events", err, told+len(warned))
					}
					if name == "ignores it" && !errors.Is(err, remote.ErrUnsupported) {
						t.Errorf("error %v", err)
					}
				case remote.EgressOpen:
					if err != nil || told+len(warned) != 0 {
						t.Errorf("error %v, %d events", err, told+len(warned))
					}
				default:
					if err != nil || told != 0 || len(warned) != 1 || warned[0]["reason"] == "" {
						t.Errorf("error %v, events %v", err, warned)
					}
					contains(t, string(log), "THE NETWORK OF THE SANDBOX IS NOT LIMITED")
				}
				if policy != remote.EgressRequired {
					contains(t, string(log), "does not keep the ports of the sandbox private")
				}
			})
		}
	}
}

// A create that fails for another reason is not tried without rules for good.
func TestRefusedCreateStaysRefused(t *testing.T) {
	cfg := remote.Config{Drivers: networkDrivers(), Timeout: time.Hour}
	server := newServer(t, "served", cfg.Drivers)
	f := newFront(t, server)
	f.answer = func(w http.ResponseWriter, r *http.Request, _ map[string]any) bool {
		if r.Method != "POST" || r.URL.Path != "/sandboxes" {
			return false
		}
		w.WriteHeader(403)
		fmt.Fprint(w, `{"code":403,"message":"team is blocked"}`)
		return true
	}
	a := newProxy(t, f.through(connect(cfg, server)), nil)
	_, _, err := remote.Run(t.Context(), a, one("test.noop"), newContext(t, "s"))
	if err == nil || !strings.Contains(err.Error(), "team is blocked") {
		t.Errorf("error %v", err)
	}
}

func TestEgressConfig(t *testing.T) {
	provider := mock.NewProvider(nil)
	for _, cfg := range []remote.Config{
		{Egress: "closed"},
		{Egress: remote.EgressRequired, OpenSandbox: provider.OpenSandbox},
		{AllowHosts: []string{""}},
		{AllowHosts: []string{"https://example.com"}},
		{AllowHosts: []string{"example.com/path"}},
		{AllowHosts: []string{"example.com:0"}},
		{AllowHosts: []string{"example.com:99999"}},
		{AllowHosts: []string{"a.*.com"}},
		{AllowHosts: []string{"2001:db8::/32"}},
		{AllowHosts: []string{"0.0.0.0/8"}},
		{AllowHosts: []string{"10.1"}},
	} {
		cfg.APIKey = "e2b_" + strings.Repeat("0", 40)
		if _, err := remote.NewE2BTransparentProxy(cfg); !errors.Is(err, remote.ErrInvalid) {
			t.Errorf("%v: error %v", cfg, err)
		}
	}
}

// In E2B's cloud private addresses are denied whatever is allowed.
func TestPrivateHostsInCloud(t *testing.T) {
	for _, entry := range []string{"10.0.0.0/8", "localhost", "169.254.169.254", "100.64.1.1", "::1", "db.internal"} {
		cfg := remote.Config{APIKey: "e2b_" + strings.Repeat("0", 40), Domain: "e2b.app", Drivers: networkDrivers(), WorkerPath: "testdata/worker.txt", AllowHosts: []string{entry}}
		t.Setenv("E2B_SANDBOX_URL", "")
		a := newProxy(t, cfg, egressHosts())
		p, err := a.Prepare(t.Context(), one("test.noop"), newContext(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Network(t.Context(), p); !errors.Is(err, remote.ErrUnreachable) {
			t.Errorf("%s: error %v", entry, err)
		}
	}
}

// changing is a resolver whose answers change.
type changing struct {
	mu    sync.Mutex
	addrs []string
	err   error
	asked int
}

func (c *changing) lookup(context.Context, string) (addrs []netip.Addr, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	for _, a := range c.addrs {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, c.err
}

func (c *changing) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func (c *changing) set(err error, addrs ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addrs, c.err = addrs, err
}

// TestNetworkRefresh has a host's addresses change while the run lives: new
// ones are added, old ones stay, and a failure changes nothing.
func TestNetworkRefresh(t *testing.T) {
	ec := newContext(t, "s")
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		drivers := sleepers()
		a, n := c.proxy(remote.Config{Drivers: drivers, Timeout: time.Hour, AllowHosts: []string{"db.example.com:3306"}})
		hosts := &changing{addrs: []string{"203.0.113.1"}}
		a.SetLookup(hosts.lookup)
		var refused atomic.Bool
		lose := func(r *http.Request) bool { return refused.Load() && r.Method == "PUT" }
		n.lose.Store(&lose)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := remote.Run(t.Context(), a, sleep(20*time.Minute), ec); err != nil {
				t.Error(err)
			}
		})
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			alive := c.server.Alive()
			if len(alive) != 1 {
				t.Fatalf("%d sandboxes", len(alive))
			}
			allow, deny := allowed(t, c, alive[0].ID)
			if diff := cmp.Diff(append(want, "8.8.8.8"), allow); diff != "" || !slices.Equal(deny, []string{"0.0.0.0/0"}) {
				t.Errorf("allowed (-want +got), denied %v:\n%s", deny, diff)
			}
		}
		time.Sleep(10 * time.Second)
		expect("203.0.113.1")
		hosts.set(nil, "203.0.113.2", "10.0.0.1")
		time.Sleep(2 * time.Minute)
		expect("203.0.113.1", "203.0.113.2")
		hosts.set(errors.New("no nameserver"))
		time.Sleep(5 * time.Minute)
		expect("203.0.113.1", "203.0.113.2")
		hosts.set(nil, "203.0.113.2")
		time.Sleep(2 * time.Minute)
		hosts.set(nil, "203.0.113.3")
		refused.Store(true)
		time.Sleep(5 * time.Minute)
		refused.Store(false)
		time.Sleep(2 * time.Minute)
		expect("203.0.113.1", "203.0.113.2", "203.0.113.3")
		wg.Wait()
		before := hosts.count()
		time.Sleep(5 * time.Minute)
		if after := hosts.count(); before < 10 || after != before {
			t.Errorf("looked up %d times, and %d times after the run", before, after-before)
		}
	})
	log, err := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "the sandbox's rules stay as they are"); n != 2 {
		t.Errorf("%d warnings in\n%s", n, log)
	}
}

// TestNetworkOfRenewedConnection has a resolver name another host in mid-run.
func TestNetworkOfRenewedConnection(t *testing.T) {
	ec := newContext(t, "s")
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		asked := 0
		resolver := connections.ResolverFunc(func(context.Context, connections.Reference) (*connections.Connection, error) {
			asked++
			conn := &connections.Connection{Fields: map[string]any{"endpoint": fmt.Sprintf("https://api-%d.example.com", asked)}}
			if asked == 1 {
				conn.RefreshAt = time.Now().Add(40 * time.Second)
			}
			return conn, nil
		})
		a, _ := c.proxy(remote.Config{Timeout: time.Hour, Connections: resolver})
		m := sleep(10 * time.Minute)
		m.Steps[0].Component, m.Steps[0].Config["connection"] = "graphql.extractor", "@graphql.api"
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := remote.Run(t.Context(), a, m, ec); err != nil {
				t.Error(err)
			}
		})
		for _, want := range [][]string{{"api-1.example.com"}, {"api-1.example.com", "api-2.example.com"}} {
			time.Sleep(22 * time.Second) // sooner than the names are looked up again
			synctest.Wait()
			allow, _ := allowed(t, c, c.server.Alive()[0].ID)
			if diff := cmp.Diff(want, allow); diff != "" {
				t.Errorf("allowed (-want +got):\n%s", diff)
			}
		}
		wg.Wait()
	})
}

// TestNetworkOfEverything: rules that limit nothing are said to.
func TestNetworkOfEverything(t *testing.T) {
	for entry, want := range map[string]bool{"*": true, "0.0.0.0/0": true, "*.example.com": false, "203.0.113.0/24": false} {
		cfg := remote.Config{Drivers: networkDrivers(), AllowHosts: []string{entry}, Egress: remote.EgressRequired}
		a := newProxy(t, connect(cfg, newServer(t, "served", cfg.Drivers)), nil)
		p, err := a.Prepare(t.Context(), one("test.noop"), newContext(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		rules, err := a.Network(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(rules.String(), "warning: Config.AllowHosts: "+entry+" allows everything"); got != want {
			t.Errorf("%s: %s", entry, rules)
		}
	}
}

// TestNetworkOfNextHost: a host that goes on with a run finds other addresses
// than the one before, and the sandbox may reach them at once.
func TestNetworkOfNextHost(t *testing.T) {
	for _, policy := range []remote.Egress{remote.EgressLimited, remote.EgressRequired, remote.EgressOpen} {
		ec := newContext(t, "s")
		elsewhere := filepath.Join(t.TempDir(), "copy")
		synctest.Test(t, func(t *testing.T) {
			c := newCloud(t)
			cfg := remote.Config{Timeout: time.Hour, AllowHosts: []string{"db.example.com:3306"}, Egress: policy}
			first, _ := c.proxy(cfg)
			first.SetLookup((&changing{addrs: []string{"203.0.113.1"}}).lookup)
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _, err := remote.Run(t.Context(), first, sleep(20*time.Minute), ec)
				if taken := policy != remote.EgressOpen; taken != errors.Is(err, remote.ErrOwnershipLost) || !taken && err != nil {
					t.Errorf("first host: %v", err)
				}
			})
			time.Sleep(time.Minute)
			synctest.Wait()
			copyTree(t, ec.LogsDir, elsewhere)
			cfg.Egress = remote.EgressRequired
			second, _ := c.proxy(cfg)
			second.SetLookup((&changing{addrs: []string{"203.0.113.9"}}).lookup)
			wg.Go(func() {
				own := &remote.ExecutionContext{}
				p, result, err := second.Attach(t.Context(), elsewhere, own)
				if open := policy == remote.EgressOpen; open != errors.Is(err, remote.ErrUnsupported) || !open && err != nil {
					t.Errorf("second host: %v", err)
				}
				if result == nil {
					return
				}
				agree(t, own, result, err)
				if _, err := second.Collect(t.Context(), p, own); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if policy != remote.EgressOpen {
				allow, _ := allowed(t, c, c.server.Alive()[0].ID)
				slices.Sort(allow)
				if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.9", "8.8.8.8"}, allow); diff != "" {
					t.Errorf("allowed (-want +got):\n%s", diff)
				}
			}
			wg.Wait()
		})
	}
}

// allowed asks the server what a sandbox may reach.
func allowed(t *testing.T, c *cloud, id string) (allow, deny []string) {
	t.Helper()
	tr := c.net.transport()
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.server.URL()+"/sandboxes/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", c.server.APIKey())
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var info struct {
		Network struct{ AllowOut, DenyOut []string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		t.Fatal(err)
	}
	return info.Network.AllowOut, info.Network.DenyOut
}

// runDial connects to an address and reads what it says, which is nothing where
// the way is closed.
func runDial(ctx context.Context, s *worker.Step) (*worker.Result, error) {
	var config struct{ Address, HTTP string }
	if err := s.DecodeConfig(&config); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", config.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return nil, converse(conn, config.HTTP)
}

// converse speaks HTTP to a host of that name, or listens, and wants an answer.
func converse(conn net.Conn, name string) error {
	if name != "" {
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", name); err != nil {
			return err
		}
	}
	b, err := io.ReadAll(conn)
	if err == nil && len(b) == 0 {
		err = errors.New("it was closed without a word")
	}
	return err
}

// TestNetworkIsEnforced has steps call hosts of their plan, which are reached,
// and others, which are not.
func TestNetworkIsEnforced(t *testing.T) {
	serve := func(c net.Conn) { _, _ = io.WriteString(c, "hello\n") }
	web := func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		}
	}
	addr := netip.MustParseAddr
	hosts := []mock.Host{
		{Name: "db.example.com", Addr: addr("203.0.113.7"), Port: 3306, Serve: serve},
		{Name: "other.example.com", Addr: addr("203.0.113.66"), Port: 3306, Serve: serve},
		{Name: "api.example.com", Addr: addr("203.0.113.20"), Port: 80, Serve: web},
		{Name: "evil.example.com", Addr: addr("203.0.113.67"), Port: 80, Serve: web},
	}
	call := func(id, address, http string) remote.Step {
		return remote.Step{ID: id, Driver: "test.dial", Config: map[string]any{"address": address, "http": http}}
	}
	m := &remote.Manifest{Name: "calls", Steps: []remote.Step{
		call("db", "db.example.com:3306", ""),
		call("other-db", "other.example.com:3306", ""),
		call("other-address", "203.0.113.66:3306", ""),
		call("api", "api.example.com:80", "api.example.com"),
		call("evil", "evil.example.com:80", "evil.example.com"),
		{ID: "mysql", Component: "mysql.writer", Driver: "test.noop", Config: map[string]any{"connection": "@mysql.name"}},
		{ID: "graphql", Component: "graphql.extractor", Driver: "test.noop", Config: map[string]any{"endpoint": "http://api.example.com/graphql"}},
	}}
	reached := []string{"db", "api", "mysql", "graphql"}
	for _, kind := range servedKinds {
		for _, policy := range []remote.Egress{remote.EgressRequired, remote.EgressOpen} {
			t.Run(fmt.Sprintf("%s/%s", kind, policy), func(t *testing.T) {
				if kind != "served" && os.Geteuid() != 0 {
					t.Skip("a network of its own takes root on Linux")
				}
				drivers := testDrivers()
				var server *mock.Server
				if kind == "served" { // its steps are functions of this process
					drivers = worker.NewRegistry()
					for _, name := range []string{"test.dial", "test.noop"} {
						drivers.Register(name, worker.Extract, func() worker.Driver {
							return driverFunc(func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
								var config struct{ Address, HTTP string }
								if err := s.DecodeConfig(&config); err != nil || config.Address == "" {
									return nil, err
								}
								conn, err := server.Dial(ctx, server.Alive()[0].ID, "tcp", config.Address)
								if err != nil {
									return nil, err
								}
								defer conn.Close()
								return nil, converse(conn, config.HTTP)
							})
						})
					}
				}
				server = newServer(t, kind, drivers, mock.WithHosts(hosts...))
				cfg := remote.Config{Drivers: drivers, Connections: egressConnections(), Egress: policy, OnFailure: remote.StopDependents, Timeout: 2 * time.Minute}
				a := newProxy(t, connect(cfg, server), egressHosts())
				ec := newContext(t, "s")
				result, _, err := remote.Run(t.Context(), a, m, ec)
				if result == nil || len(result.StepResults) != len(m.Steps) {
					t.Fatalf("result %+v, %v", result, err)
				}
				for _, step := range result.StepResults {
					want := remote.StepFailed
					if policy == remote.EgressOpen || slices.Contains(reached, step.StepID) {
						want = remote.StepSucceeded
					}
					if step.Status != want {
						t.Errorf("step %s: %s, want %s: %s (%v)", step.StepID, step.Status, want, step.Error, err)
					}
				}
			})
		}
	}
}

// TestTokensStayInMemory looks for the tokens of a sandbox in all files of its
// session: while it runs, after it, and after another host has attached, which
// gets its own from the server.
func TestTokensStayInMemory(t *testing.T) {
	cfg := remote.Config{Drivers: testDrivers()}
	server := newServer(t, "served", cfg.Drivers)
	var mu sync.Mutex
	tokens := make(map[string]string) // by path of the request and name
	to, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	transport := &http.Transport{}
	proxy.Transport = transport
	proxy.ModifyResponse = func(r *http.Response) error {
		b, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		var answer map[string]any
		if json.Unmarshal(b, &answer) == nil {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range []string{"envdAccessToken", "trafficAccessToken"} {
				if token, _ := answer[name].(string); token != "" {
					tokens[path.Base(r.Request.URL.Path)+" "+name] = token
				}
			}
		}
		return err
	}
	control := httptest.NewServer(proxy)
	t.Cleanup(func() { control.Close(); transport.CloseIdleConnections() })
	scan := func(dir string, want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		for _, name := range want {
			if len(tokens[name]) < 16 {
				t.Errorf("%s: %q", name, tokens[name])
			}
		}
		files := tree(t, dir)
		if _, ok := files["sandbox.json"]; !ok {
			t.Error("there is no sandbox.json")
		}
		for _, token := range tokens {
			noTraces(t, dir, token)
		}
	}
	cfg = connect(cfg, server)
	cfg.APIURL = control.URL
	first := newProxy(t, cfg, nil)
	ec := newContext(t, "s")
	running := 0
	ec.OnEvent = func(_ context.Context, e remote.Event) error {
		if e.Name == "step_complete" {
			running++
			scan(ec.LogsDir, "sandboxes envdAccessToken", "sandboxes trafficAccessToken")
		}
		return nil
	}
	p, err := first.Prepare(t.Context(), join(), ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Execute(t.Context(), p, ec); err != nil {
		t.Fatal(err)
	}
	if running == 0 {
		t.Error("nothing was looked at while it ran")
	}
	scan(ec.LogsDir)
	second := newProxy(t, cfg, nil)
	ec2 := *ec
	ec2.OnEvent = nil
	p2, _, err := second.Attach(t.Context(), ec.LogsDir, &ec2)
	if err != nil {
		t.Fatal(err)
	}
	scan(ec.LogsDir, "connect envdAccessToken", "connect trafficAccessToken")
	if _, err := second.Collect(t.Context(), p2, &ec2); err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		noTraces(t, ec.LogsDir, token)
	}
}
