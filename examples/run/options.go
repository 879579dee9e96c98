package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

const usage = `usage: run MANIFEST [flags]

MANIFEST is a manifest.yaml (or JSON) of the Osiris compiler, with its cfg
directory beside it.

  --local              run the steps on this machine, in a worker process (default)
  --e2b-embedded       run them in a sandbox in memory
  --session-dir DIR    where events, logs and artifacts go, a directory that holds no
                       session yet (default run_logs/<session id>)
  --base DIR           where relative input paths of the configs start (default: the
                       current directory)
  --dry-run            print what would be sent as JSON, and start nothing
  --e2b-pass-env NAME  pass this variable of the environment; may be repeated
  --e2b-env NAME=VALUE pass this variable; may be repeated
  --timeout DURATION   of the whole run, as 90s or 10m (default 300s)
  --concurrency N      steps at a time (default: as many as there are cores)
  --help               print this

The exit code is 0 when the run succeeded, 1 when it failed, and 2 when the
command line, the manifest or a config cannot be run.
`

type options struct {
	manifest    string
	sessionDir  string
	base        string
	embedded    bool
	dryRun      bool
	passEnv     []string
	env         map[string]string
	timeout     time.Duration
	concurrency int
}

// errHelp: the user asked for the usage.
var errHelp = flag.ErrHelp

// parse reads the command line.
func parse(args []string) (*options, error) {
	opts := &options{env: make(map[string]string)}
	var (
		local bool
		pairs []string
	)
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&local, "local", false, "")
	fs.BoolVar(&opts.embedded, "e2b-embedded", false, "")
	fs.StringVar(&opts.sessionDir, "session-dir", "", "")
	fs.StringVar(&opts.base, "base", "", "")
	fs.BoolVar(&opts.dryRun, "dry-run", false, "")
	fs.Func("e2b-pass-env", "", func(name string) error { opts.passEnv = append(opts.passEnv, name); return nil })
	fs.Func("e2b-env", "", func(pair string) error { pairs = append(pairs, pair); return nil })
	fs.DurationVar(&opts.timeout, "timeout", 0, "")
	fs.IntVar(&opts.concurrency, "concurrency", 0, "")

	operands, err := parseInterleaved(fs, args)
	if err != nil {
		return nil, err
	}
	switch {
	case len(operands) == 0 || operands[0] == "":
		return nil, errors.New("name a manifest")
	case len(operands) > 1:
		return nil, fmt.Errorf("name one manifest; have %q", operands)
	case local && opts.embedded:
		return nil, errors.New("--local and --e2b-embedded exclude each other")
	}
	opts.manifest = operands[0]
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, errors.New("--e2b-env wants NAME=VALUE") // the argument may be a secret
		}
		opts.env[name] = value
	}
	return opts, nil
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
