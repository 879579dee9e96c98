package python

import (
	"context"
	"io"
	"time"
)

// installer looks at what Python packages there are in a sandbox, and installs
// those that are missing into environments of their own.
type installer struct {
	// root is an absolute directory; <root>/<key> is an environment.
	root string
	// python is the interpreter that environments are based on. Empty: python3 or
	// python, the first on PATH that is new enough.
	python string
	// env is the environment of its processes, Credentials.Env included.
	env []string
	// event reports dependency_check, dependency_installed and
	// dependency_install_complete; calls do not overlap.
	event func(name string, fields map[string]any)
	// log gets what pip and uv print, and before it each command, after "$ ".
	log io.Writer
	// logPath is where the log will be found, for dependency_install_complete.
	logPath string
	// redact takes secrets out of what errors quote of that. Nil: nothing.
	redact func(string) string
}

// target is what wheels have to fit.
type target struct {
	Python   string // path of the interpreter
	Version  string // such as 3.11.7
	Platform string // such as cp311-manylinux_2_36_x86_64
}

// check is what there is of requirements.
type check struct {
	Target target
	// Required are the requirements that count on this target, normalised and
	// sorted; each is either Present or Missing.
	Required, Present, Missing []string
	// Key is that of the environment, and of the wheels for it.
	Key string
	// Environment is the path of the interpreter that has them all; empty when
	// something is missing.
	Environment string
}

// wheel is a file that packages are installed from.
type wheel struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // in hexadecimal
}

type installOptions struct {
	Requirements []string
	// Wheels is a directory that install has left in Collect, for the same key:
	// everything is installed from it alone, without any index. Empty: from the
	// index.
	Wheels string
	// Collect is a directory to leave the used wheels in, with their lock.json.
	// Empty: they are not kept.
	Collect string
	Timeout time.Duration // zero: 10 minutes
}

type installed struct {
	Interpreter string   // of the environment
	Installed   []string // name==version, in the order in which they were installed
	// Wheels are those in Collect; nil if there are none, also because there is no
	// pip to collect them with.
	Wheels []wheel
}

// check finds the interpreter that satisfies requirements, if there is one.
func (i *installer) check(ctx context.Context, requirements []string) (*check, error) {
	panic("to be written")
}

// install makes the environment of requirements.
func (i *installer) install(ctx context.Context, o installOptions) (*installed, error) {
	panic("to be written")
}

// indexesFrom takes the package indexes out of the variables of a run. The rest
// are the other variables, as "NAME=value".
func indexesFrom(env map[string]string) (indexes []Index, rest []string, err error) {
	panic("to be written")
}
