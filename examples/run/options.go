package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/osiris-pipelines/remote"
)

const (
	usageHead = `usage: run MANIFEST [flags]
       run --attach DIRECTORY --e2b [flags]

MANIFEST is a manifest.yaml (or JSON) of the Osiris compiler, with its cfg
directory beside it.

`
	usageFoot = `
The exit code is 0 when the run succeeded, 1 when it failed, and 2 when the
command line, the manifest or a config cannot be run.
`
)

type options struct {
	manifest   string
	sessionDir string
	attach     string
	base       string
	local      bool
	e2b        bool
	embedded   bool
	dryRun     bool
	config     remote.Config
}

// flags defines the flags. Those of E2B come from the library, with their help
// and their defaults.
func (o *options) flags() (fs *flag.FlagSet, finish func()) {
	fs = flag.NewFlagSet("run", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&o.local, "local", false, "run the steps on this machine, in a worker process (default)")
	fs.BoolVar(&o.embedded, "e2b-embedded", false, "run them in a sandbox on this machine, over E2B's protocol, without an account")
	fs.StringVar(&o.sessionDir, "session-dir", "", "`directory` for events, logs and artifacts, one that holds no session yet (default run_logs/<session id>)")
	fs.StringVar(&o.attach, "attach", "", "go on with the run of a session `directory`, whose program has died; with --e2b")
	fs.StringVar(&o.base, "base", "", "`directory` where relative input paths of the configs start (default the current one)")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be sent as JSON, and start nothing")
	fs.StringVar(&o.config.WorkerPath, "worker", "", "worker `program` for the sandbox, such as worker/cmd/osiris-worker (default this program)")
	fs.IntVar(&o.config.Concurrency, "concurrency", 0, "`steps` at a time (default as many as there are cores)")
	e2b := o.config.AddFlags(fs)
	fs.Var(fs.Lookup("e2b-timeout").Value, "timeout", "the same as --e2b-timeout, in `seconds` or as 10m")
	return fs, func() { o.e2b = *e2b }
}

// usage is the help text, made from the flags.
func usage() string {
	var b strings.Builder
	b.WriteString(usageHead)
	fs, _ := new(options).flags()
	fs.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "  --%s %s\n        %s\n", f.Name, value, text)
	})
	b.WriteString("  --help \n        print this\n")
	b.WriteString(usageFoot)
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

// errHelp: the user asked for the usage.
var errHelp = flag.ErrHelp

// parse reads the command line.
func parse(args []string) (*options, error) {
	opts := new(options)
	fs, finish := opts.flags()
	operands, err := parseInterleaved(fs, args)
	if err != nil {
		return nil, err
	}
	finish()
	switch {
	case opts.attach != "" && (len(operands) > 0 || opts.sessionDir != "" || opts.dryRun || !opts.e2b):
		return nil, errors.New("--attach takes the manifest and the rest from its directory, and needs --e2b")
	case opts.attach != "":
		return opts, nil
	case len(operands) == 0 || operands[0] == "":
		return nil, errors.New("name a manifest")
	case len(operands) > 1:
		return nil, fmt.Errorf("name one manifest; have %q", operands)
	case count(opts.local, opts.e2b, opts.embedded) > 1:
		return nil, errors.New("--local, --e2b and --e2b-embedded exclude each other")
	}
	if _, nameless := opts.config.Env[""]; nameless {
		return nil, errors.New("--e2b-env wants NAME=VALUE")
	}
	opts.manifest = operands[0]
	return opts, nil
}

func count(flags ...bool) (n int) {
	for _, set := range flags {
		if set {
			n++
		}
	}
	return n
}

// parseInterleaved parses flags that stand before, between and after the
// operands, which it returns. Behind "--" everything is an operand.
func parseInterleaved(fs *flag.FlagSet, args []string) ([]string, error) {
	var operands []string
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		rest := fs.Args()
		if len(rest) == 0 {
			return operands, nil
		}
		if n := len(args) - len(rest); n > 0 && args[n-1] == "--" {
			return append(operands, rest...), nil
		}
		operands = append(operands, rest[0])
		args = rest[1:]
	}
}
