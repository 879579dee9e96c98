// Run runs a compiled manifest and leaves a session directory behind.
//
//	go run ./examples/run MANIFEST [flags]
//	go run ./examples/run --attach DIRECTORY --e2b [flags]
//
// Run it with --help for the flags, which may stand before and after the
// manifest. Steps run on this machine, in a worker process that is this
// program; with --e2b in a sandbox of E2B, whose key is in E2B_API_KEY (and, for
// a deployment of your own, its URLs in E2B_API_URL and E2B_SANDBOX_URL); with
// --e2b-embedded in a sandbox on this machine that speaks E2B's protocol.
//
// Its exit code is 0 when the run succeeded, and 1 when it failed, was
// interrupted or could not start; status.json, where there is one, says the
// same. It is 2 when the command line, the manifest or a config cannot be run:
// then nothing was started and nothing written.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/examples/internal/progress"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
	"github.com/osiris-pipelines/remote/worker/python"
)

func main() {
	drivers := worker.NewRegistry()
	csv.Register(drivers)
	mysql.Register(drivers)
	postgres.Register(drivers)
	python.Register(drivers)
	worker.Main(drivers) // started again as the worker, the program stays in here

	os.Exit(program(drivers))
}

func program(drivers *worker.Registry) int {
	// The first Ctrl-C stops the run in order, the second one the program.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	// Where nobody reads what is printed, as behind head, the run ends in order,
	// too: the printer says so.
	signal.Ignore(syscall.SIGPIPE)
	return run(ctx, os.Args[1:], drivers, os.Stdout, os.Stderr)
}

// The exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitInvalid = 2
)

func run(ctx context.Context, args []string, drivers *worker.Registry, stdout, stderr io.Writer) (code int) {
	opts, err := parse(args)
	if errors.Is(err, errHelp) {
		io.WriteString(stdout, usage())
		return exitOK
	}
	if err != nil {
		progress.Error(stderr, "run", err)
		io.WriteString(stderr, usage())
		return exitInvalid
	}
	for _, name := range opts.config.PassEnv {
		if _, ok := os.LookupEnv(name); !ok {
			progress.Error(stderr, "run", errors.New("--e2b-pass-env: "+name+" is not set, so it is not passed"))
		}
	}
	var manifest *remote.Manifest
	if opts.attach == "" {
		if manifest, err = remote.LoadManifest(opts.manifest); err != nil {
			progress.Error(stderr, "run", err)
			return exitInvalid
		}
	}
	adapter, err := newAdapter(opts, drivers)
	if err != nil {
		progress.Error(stderr, "run", err)
		if errors.Is(err, remote.ErrAuthentication) {
			progress.Error(stderr, "run", errors.New("--e2b-embedded needs no key and no account"))
		}
		return exitCode(nil, err)
	}
	defer func() {
		if err := adapter.Close(); err != nil {
			progress.Error(stderr, "run", err)
			code = max(code, exitFailed)
		}
	}()

	if opts.attach != "" {
		return attach(ctx, adapter.(*remote.E2BTransparentProxy), opts.attach, stdout, stderr)
	}
	now := time.Now()
	ec := &remote.ExecutionContext{
		SessionID: remote.NewSessionID(now),
		BasePath:  opts.base,
		LogsDir:   opts.sessionDir,
		StartedAt: now,
		OnEvent:   progress.New(stdout).Event,
	}
	if e, ok := adapter.(*embedded); ok {
		ec.OnEvent = e.announce(stdout, ec.OnEvent)
	}
	if ec.LogsDir == "" {
		ec.LogsDir = filepath.Join("run_logs", ec.SessionID)
	}
	var (
		result *remote.ExecResult
		files  *remote.CollectedArtifacts
	)
	if opts.dryRun {
		err = dryRun(ctx, stdout, stderr, adapter, manifest, ec, opts.offline())
	} else {
		result, files, err = remote.Run(ctx, adapter, manifest, ec)
		progress.Report(stdout, ec, result, files)
	}
	if err != nil {
		progress.Error(stderr, "run", err)
	}
	if result == nil && errors.Is(err, fs.ErrNotExist) {
		progress.Error(stderr, "run", errors.New("relative input paths start at the current directory, or at --base DIR"))
	}
	return exitCode(result, err)
}

// attach goes on with a run whose program has died.
func attach(ctx context.Context, proxy *remote.E2BTransparentProxy, dir string, stdout, stderr io.Writer) int {
	ec := &remote.ExecutionContext{OnEvent: progress.New(stdout).Event}
	prepared, result, err := proxy.Attach(ctx, dir, ec)
	if result == nil {
		progress.Error(stderr, "run", err)
		return exitCode(nil, err)
	}
	files, collectErr := proxy.Collect(context.WithoutCancel(ctx), prepared, ec)
	progress.Report(stdout, ec, result, files)
	if err = errors.Join(err, collectErr); err != nil {
		progress.Error(stderr, "run", err)
		return exitFailed
	}
	return exitOK
}

// adapter is what both adapters have.
type adapter interface {
	remote.ExecutionAdapter
	io.Closer
}

func newAdapter(opts *options, drivers *worker.Registry) (adapter, error) {
	cfg := opts.config
	cfg.Drivers = drivers
	cfg.Connections = connections.Search{DotEnv: true} // osiris_connections.yaml and .env, as Osiris finds them
	switch {
	case opts.embedded:
		return newEmbedded(cfg)
	case opts.e2b:
		if opts.offline() { // and needs no account
			cfg.APIKey = "e2b_0000000000000000000000000000000000000000"
		}
		return remote.NewE2BTransparentProxy(cfg)
	}
	return remote.NewLocalAdapter(cfg)
}

// embedded is a proxy with a server of its own.
type embedded struct {
	*remote.E2BTransparentProxy
	server *mock.Server
}

// newEmbedded starts a server that speaks E2B's protocol and makes sandboxes on
// this machine.
func newEmbedded(cfg remote.Config) (adapter, error) {
	server, err := mock.NewServer(mock.WithProcesses())
	if err != nil {
		return nil, err
	}
	cfg.APIKey, cfg.APIURL, cfg.SandboxURL = server.APIKey(), server.URL(), server.URL()
	proxy, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return &embedded{proxy, server}, nil
}

// announce says how well the sandbox is kept apart, once there is one.
func (e *embedded) announce(w io.Writer, next func(context.Context, remote.Event) error) func(context.Context, remote.Event) error {
	return func(ctx context.Context, event remote.Event) error {
		if event.Name == "sandbox_created" {
			fmt.Fprintln(w, "embedded sandbox:", e.server.Isolation())
		}
		return next(ctx, event)
	}
}

func (e *embedded) Close() error {
	return errors.Join(e.E2BTransparentProxy.Close(), e.server.Close())
}

// offline reports whether nobody can be asked: a dry run needs no account.
func (o *options) offline() bool {
	return o.dryRun && o.e2b && o.config.APIKey == "" && os.Getenv("E2B_API_KEY") == ""
}

// dryRun prints what Execute would get, and to stderr what the sandbox could
// reach, and how it would start. It holds no values of variables.
func dryRun(ctx context.Context, w, stderr io.Writer, a adapter, m *remote.Manifest, ec *remote.ExecutionContext, offline bool) error {
	prepared, err := a.Prepare(ctx, m, ec)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(prepared); err != nil {
		return err
	}
	proxy, ok := a.(interface {
		Network(context.Context, *remote.PreparedRun) (remote.NetworkRules, error)
		Explain(context.Context, *remote.PreparedRun, remote.ExplainOptions) (*remote.StartPlan, error)
	})
	if !ok {
		return nil // it runs on this machine, with its network
	}
	rules, err := proxy.Network(ctx, prepared)
	if errors.Is(err, remote.ErrUnreachable) {
		return err
	}
	if err != nil { // as a variable that is not set here
		fmt.Fprintln(stderr, "network:", err)
	} else {
		fmt.Fprint(stderr, rules)
	}
	plan, err := proxy.Explain(ctx, prepared, remote.ExplainOptions{Offline: offline})
	if err != nil {
		return err
	}
	if offline {
		plan.Notes = append(plan.Notes, "there is no API key: set E2B_API_KEY to have E2B asked")
	}
	fmt.Fprint(stderr, plan)
	if plan.Refused != "" {
		return errors.New("it could not start")
	}
	return nil
}

func exitCode(result *remote.ExecResult, err error) int {
	switch {
	case err == nil:
		return exitOK
	case result != nil:
		return max(result.ExitCode, exitFailed)
	case errors.Is(err, remote.ErrInvalid), errors.Is(err, remote.ErrUnknownDriver), errors.Is(err, fs.ErrNotExist):
		return exitInvalid
	}
	return exitFailed
}
