package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
)

// Run a compiled pipeline in a sandbox. Package mock has one in memory, so
// this needs no account.
func ExampleRun() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers:     drivers,
		OpenSandbox: mock.NewProvider(&mock.Options{Drivers: drivers}).OpenSandbox,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()

	manifest, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ec := &remote.ExecutionContext{
		SessionID: "example",
		BasePath:  "testdata/osiris", // where "csv/supabase_users.csv" is
		LogsDir:   dir,
		StartedAt: time.Now(),
		OnEvent: func(_ context.Context, e remote.Event) error {
			if e.Name == "step_complete" {
				fmt.Println("done:", e.StepID)
			}
			return nil
		},
	}
	result, files, err := remote.Run(context.Background(), adapter, manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("success:", result.Success)
	for _, a := range files.Artifacts {
		fmt.Println(a.Path)
	}
	// Output:
	// done: extract-users
	// done: write-users
	// success: true
	// extract-users/cleaned_config.json
	// write-users/cleaned_config.json
	// write-users/output/users.csv
}

// Remove what programs that died have left in an account. Here the account is a
// server of package mock, and the program that died had its sandbox paused.
func ExampleE2BTransparentProxy_Sweep() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	server, err := mock.NewServer(mock.WithOptions(mock.Options{Drivers: drivers}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	cfg := remote.Config{
		Drivers: drivers, WorkerPath: "testdata/worker.txt", OnHostLoss: remote.Pause,
		APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL(),
	}
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	died, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer died.Close()
	ctx := context.Background()
	ec := &remote.ExecutionContext{SessionID: "nightly", BasePath: "testdata/osiris", LogsDir: dir}
	manifest, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
	if err != nil {
		log.Fatal(err)
	}
	prepared, err := died.Prepare(ctx, manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := died.Execute(ctx, prepared, ec); err != nil {
		log.Fatal(err)
	}
	for _, sandbox := range server.Alive() { // nobody collects, and the lease ends
		if err := server.Expire(sandbox.ID); err != nil {
			log.Fatal(err)
		}
	}

	adapter, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	report, err := adapter.Sweep(ctx, remote.SweepOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range report.Sandboxes {
		fmt.Printf("%s, %s: killed %t, since %s\n", s.SessionID, s.State, s.Killed, s.Reason)
	}
	fmt.Println("left:", len(server.Alive()))
	// Output:
	// nightly, paused: killed true, since it is paused, so nobody uses it
	// left: 0
}

// Go on with a run whose program has died, from its session directory. Here the
// program died after Execute, and the account is a server of package mock.
func ExampleE2BTransparentProxy_Attach() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	server, err := mock.NewServer(mock.WithOptions(mock.Options{Drivers: drivers}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	cfg := remote.Config{
		Drivers: drivers, WorkerPath: "testdata/worker.txt",
		APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL(),
	}
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	died, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer died.Close()
	ctx := context.Background()
	before := &remote.ExecutionContext{SessionID: "nightly", BasePath: "testdata/osiris", LogsDir: dir}
	manifest, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
	if err != nil {
		log.Fatal(err)
	}
	prepared, err := died.Prepare(ctx, manifest, before)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := died.Execute(ctx, prepared, before); err != nil {
		log.Fatal(err)
	}

	adapter, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	ec := &remote.ExecutionContext{} // the rest is in the session directory
	prepared, result, err := adapter.Attach(ctx, dir, ec)
	if result == nil {
		log.Fatal(err) // there is nothing to go on with, or no way to it
	}
	files, collectErr := adapter.Collect(ctx, prepared, ec)
	if err = errors.Join(err, collectErr); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: success %t, %d artifacts, %d sandboxes left\n", ec.SessionID, result.Success, len(files.Artifacts), len(server.Alive()))
	// Output: nightly: success true, 3 artifacts, 0 sandboxes left
}

// countdown is a driver of one's own.
type countdown struct{}

func (countdown) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	var config struct{ From int64 }
	if err := step.DecodeConfig(&config); err != nil {
		return nil, err
	}
	if config.From < 1 {
		return nil, errors.New("from must be at least 1")
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(step.Memory(), schema)
	defer b.Release()
	for n := config.From; n > 0; n-- {
		b.Field(0).(*array.Int64Builder).Append(n)
	}
	rec := b.NewRecord()
	defer rec.Release()
	table, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		return nil, err
	}
	return worker.Output(table), nil
}

// Run a pipeline made by hand, with a driver of one's own, on this machine.
func ExampleNewLocalAdapter() {
	drivers := worker.NewRegistry()
	drivers.Register("countdown", worker.Extract, func() worker.Driver { return countdown{} })
	csv.Register(drivers)

	adapter, err := remote.NewLocalAdapter(remote.Config{
		Drivers:   drivers,
		InProcess: true, // in a test; a program calls worker.Main(drivers) first in main instead
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	manifest := &remote.Manifest{Name: "countdown", Steps: []remote.Step{
		{ID: "count", Driver: "countdown", Config: map[string]any{"from": 3}},
		{ID: "write", Driver: "filesystem.csv_writer", Needs: []string{"count"}, Config: map[string]any{"path": "n.csv"}},
	}}
	ec := &remote.ExecutionContext{SessionID: "example", LogsDir: dir}
	if _, _, err := remote.Run(context.Background(), adapter, manifest, ec); err != nil {
		log.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "artifacts", "write", "n.csv"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(b))
	// Output:
	// n
	// 3
	// 2
	// 1
}

// A failed step says which, and why.
func ExampleStepError() {
	drivers := worker.NewRegistry()
	drivers.Register("countdown", worker.Extract, func() worker.Driver { return countdown{} })
	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers, InProcess: true})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	manifest := &remote.Manifest{Steps: []remote.Step{{ID: "count", Driver: "countdown"}}}
	_, _, err = remote.Run(context.Background(), adapter, manifest, &remote.ExecutionContext{SessionID: "example", LogsDir: dir})
	var step *remote.StepError
	if errors.As(err, &step) {
		fmt.Println(step.StepID, "failed:", step.Message)
	}
	// Output: count failed: from must be at least 1
}

// What is not a compiled manifest is refused, with the reason.
func ExampleLoadManifest() {
	_, err := remote.LoadManifest("testdata/osiris/pipelines/mysql_to_local_csv_all_tables.yaml")
	fmt.Println(errors.Is(err, remote.ErrInvalid))
	// Output: true
}

// The same in E2B: key and URLs come from E2B_API_KEY and its sisters. Here a
// server of package mock takes E2B's place.
func ExampleNewE2BTransparentProxy() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	server, err := mock.NewServer(mock.WithOptions(mock.Options{Drivers: drivers}))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	adapter, err := remote.NewE2BTransparentProxy(remote.Config{
		Drivers: drivers,
		APIKey:  server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL(),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()

	manifest, err := remote.LoadManifest("testdata/osiris/compiled/csv-copy/manifest.yaml")
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "session-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ec := &remote.ExecutionContext{SessionID: "example", BasePath: "testdata/osiris", LogsDir: dir}
	result, _, err := remote.Run(context.Background(), adapter, manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("success:", result.Success)
	fmt.Println("sandboxes left:", len(server.Alive()))
	// Output:
	// success: true
	// sandboxes left: 0
}

// Settings come from JSON and from the command line, by one table.
func ExampleConfig_AddFlags() {
	var cfg remote.Config
	if err := json.Unmarshal([]byte(`{"template": "base", "memory_gb": 4, "timeout": 600}`), &cfg); err != nil {
		log.Fatal(err)
	}
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	inE2B := cfg.AddFlags(flags)
	if err := flags.Parse([]string{"--e2b", "--e2b-cpu", "2", "--e2b-env", "REGION=eu"}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(*inE2B, cfg.Template, cfg.CPU, cfg.MemoryGB, cfg.Timeout, cfg.Env["REGION"])
	// Output: true base 2 4 10m0s eu
}

// A step gets a connection from a vault, and what it prints is redacted.
func ExampleConfig_connections() {
	drivers := worker.NewRegistry()
	drivers.Register("mysql.extractor", worker.Extract, func() worker.Driver { return login{} })
	vault := connections.ResolverFunc(func(_ context.Context, ref connections.Reference) (*connections.Connection, error) {
		return &connections.Connection{Fields: map[string]any{"user": "reader", "password": "correct horse"}}, nil
	})
	cfg := remote.Config{
		Drivers:     drivers,
		Connections: connections.First(connections.Search{DotEnv: true}, vault), // vault is yours: one method, Resolve
		PassEnv:     []string{"API_REGION"},                                     // further variables, by name
	}
	cfg.InProcess = true
	adapter, err := remote.NewLocalAdapter(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	dir, err := os.MkdirTemp("", "remote-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	m := &remote.Manifest{Steps: []remote.Step{
		{ID: "read", Driver: "mysql.extractor", Config: map[string]any{"connection": "@mysql.example_movies"}},
	}}
	_, _, err = remote.Run(context.Background(), adapter, m, remote.NewExecutionContext(dir))
	fmt.Println(err)
	// Output: remote: step "read": cannot log in as reader with "***"
}

// login is a driver that is indiscreet.
type login struct{}

func (login) Run(_ context.Context, step *worker.Step) (*worker.Result, error) {
	c, err := step.ResolvedConnection()
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("cannot log in as %s with %q", c["user"], c["password"])
}

// Doctor says why a run would not start.
func ExampleDoctor() {
	server, err := mock.NewServer()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	diagnosis, err := remote.Doctor(context.Background(), remote.Config{
		APIKey: server.APIKey(), APIURL: server.URL(), SandboxURL: server.URL(),
		CPU: 16,
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range diagnosis.Checks {
		if c.Status == remote.CheckFailed {
			fmt.Printf("%s: %s\n", c.Name, c.Fix)
		}
	}
	// Output: start: allow a template to be built (allow_template_build, --e2b-allow-template-build), or name no image and no size
	// size: name another template, leave cpu and memory unset, or allow a template to be built (allow_template_build, --e2b-allow-template-build)
}

// What a run's sandbox could reach, before there is one.
func ExampleE2BTransparentProxy_Network() {
	proxy, err := remote.NewE2BTransparentProxy(remote.Config{
		APIKey: "e2b_0123456789abcdef", WorkerPath: "testdata/worker.txt",
		AllowHosts: []string{"*.cdn.example.com"},
		Connections: connections.Static{
			"@graphql.github": {"endpoint": "https://api.github.com/graphql", "auth_token": "secret"},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer proxy.Close()
	manifest := &remote.Manifest{Name: "issues", Steps: []remote.Step{{
		ID: "extract", Driver: "graphql.extractor", Config: map[string]any{"connection": "@graphql.github"},
	}}}
	ec := &remote.ExecutionContext{SessionID: "s", LogsDir: "run_logs/s"}
	prepared, err := proxy.Prepare(context.Background(), manifest, ec)
	if err != nil {
		log.Fatal(err)
	}
	rules, err := proxy.Network(context.Background(), prepared)
	if err != nil {
		log.Fatal(err)
	}
	for _, rule := range rules.Allow {
		fmt.Println(rule.Target, "for", rule.Reasons[0])
	}
	// Output:
	// *.cdn.example.com for *.cdn.example.com: Config.AllowHosts
	// api.github.com for api.github.com:443: step extract, @graphql.github, endpoint
}
