package remote

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/worker"
)

// Config is what an adapter is made from. The zero value of every field means
// its default. It can be decoded from JSON, with the keys of [Settings], and
// set from a command line ([Config.AddFlags]).
type Config struct {
	// APIKey is that of the E2B account; empty means the variable E2B_API_KEY.
	// Domain, APIURL and SandboxURL lead to another deployment of E2B than its
	// cloud; empty means E2B_DOMAIN, E2B_API_URL and E2B_SANDBOX_URL, and then
	// the cloud. See [e2b.Config].
	APIKey     string
	Domain     string
	APIURL     string
	SandboxURL string

	// Drivers are those of the worker. An adapter that has them refuses a
	// manifest that needs another in Prepare, and finds the files that
	// configs refer to; without, an unknown driver is refused when the worker
	// starts, before any step, and a sandbox gets no input files. With WorkerPath
	// that program may have more, and a driver that is not known here is its to
	// refuse.
	Drivers *worker.Registry

	// WorkerPath is a worker program on this machine: one whose main calls
	// [worker.Main] first. Empty means the running program itself. For a
	// sandbox it must be built for the sandbox's platform.
	WorkerPath string

	// Root is the directory under which a run gets a folder of its own, with
	// all its files. Empty means /tmp/osiris in a sandbox, and a new private
	// directory under the system's temporary one locally.
	Root string

	// E2B sets cores, memory and image on the template. CPU and MemoryGB are
	// compared with what a new sandbox has; a run that asks for another size gets
	// a template derived from its own where there is one or AllowTemplateBuild is
	// set, and is refused before anything is uploaded where not, with
	// [ErrSandboxSize].
	Template string        // of the sandbox; empty means "base"
	CPU      int           // cores of the sandbox; zero means what the template has
	MemoryGB float64       // of the sandbox, in GiB; zero means what the template has
	Timeout  time.Duration // of the whole run, without the building of a template; zero means 300 s

	// Image is a container image, as "python:3.12", that the sandbox's template is
	// made from, in the place of Template. Who pulls it is E2B, so it is public.
	// LocalAdapter ignores it, as it does Template.
	Image string

	// Packages are requirements of Python packages, as in PEP 508, that a run with
	// drivers in Python has beside those that these declare. Other runs have no use
	// for them. Nor have they options, paths, or URLs with a user name or password.
	Packages []string

	// AllowTemplateBuild allows templates to be built on the account, once for all
	// runs on all machines that need the same: with the size of the run, its image,
	// the packages of its drivers in Python and the worker program. A run finds
	// them by their names, "osiris-" and 32 hexadecimal digits, also without it.
	// See docs/templates.md.
	AllowTemplateBuild bool

	// Lease is how long a sandbox outlives a host that dies. While Execute or
	// Collect runs the sandbox's end is moved on, every third of the lease, to
	// a lease from then. Zero means 5 minutes; the least is 10 s. A host that
	// is suspended for longer loses its sandbox.
	Lease time.Duration

	// OnHostLoss says what becomes of a sandbox whose lease is over. Empty
	// means [Kill].
	OnHostLoss OnHostLoss

	// MaxSandboxes is how many sandboxes of this adapter may run at once, and
	// CreateRate how many it makes in a second; zero means no limit. Runs wait
	// for their turn, for up to CreateWait (zero means the run's Timeout, which
	// goes on meanwhile), also when the account has no room because of this
	// adapter's other sandboxes. Not used with OpenSandbox.
	MaxSandboxes int
	CreateRate   float64
	CreateWait   time.Duration

	// MaxCost, in US dollars, and MaxDuration are what a run's sandbox may cost and
	// how long it may run: zero means no limit. A run that reaches one is stopped
	// as if it were cancelled, with a [*BudgetError], and can be collected all the
	// same, which is not limited. Both count what is paid for: from the sandbox's
	// creation on, and not while it is paused. Timeout counts all of Execute,
	// also the waiting for a turn. The cost is an estimate by Prices; on this
	// machine it is zero.
	MaxCost     float64
	MaxDuration time.Duration
	Prices      Prices

	StepTimeout time.Duration // of each step; zero means none but the run's
	Concurrency int           // steps at a time; zero means as many as the worker has cores
	OnFailure   OnFailure     // what a failed step stops; empty means everything

	// Restarts is how often a worker that dies in a run is started again, in the
	// same place; zero means never. Then the run goes on behind the last step that
	// has finished: finished steps do not run again, since what they have put out
	// is also written to disk, and steps that were running do if they are marked
	// [Step].Repeatable. If one is not, or what is needed was lost, the run fails
	// with the [*WorkerCrashError], as it does when the worker dies once more. The
	// first restart waits for a second, every further one twice as long. It has no
	// meaning with InProcess.
	Restarts int

	// MemoryBudget is how many bytes of memory the outputs of a run's steps may
	// take where they are held for the steps that read them, all together. What is
	// beyond goes to files in the run's folder, so that tables may be larger than
	// the memory. Zero means half of the sandbox's memory, and locally half of this
	// machine's. What a driver takes while it works is not counted. See
	// docs/dataframes.md.
	MemoryBudget int64

	// PythonDrivers declares drivers in Python, beside those of the manifest and in
	// the place of ones with the same names. Python is the interpreter that runs
	// them, where the run happens: a path or a name; empty means python3.
	PythonDrivers []PythonDriver
	Python        string

	// InstallDeps allows packages that drivers in Python need, and that are not
	// there, to be installed where the run happens, in an environment of their
	// own. The variable OSIRIS_E2B_INSTALL_DEPS=1 allows it, too. Without it such a
	// run fails with a [*MissingDependenciesError] before its first step.
	InstallDeps bool

	// Wheelhouse is a directory of this machine that keeps what was installed
	// in a sandbox, for sandboxes to come: they get it from here, and ask no index.
	// Empty means osiris-remote/wheelhouse in the user's cache directory, and "off"
	// none. It also has what the last starts of runs took, see
	// [E2BTransparentProxy.Explain]. See docs/dependencies.md.
	Wheelhouse string

	// Egress says what a sandbox may reach; empty means [EgressLimited].
	// AllowHosts is what it may reach beyond what the run's connections and
	// configs name: names, "*.example.com", addresses, networks as
	// "203.0.113.0/24", and names and addresses with a port. E2B's rules know no
	// ports: one of 80 or 443 says that the name will do, any other that it
	// takes the addresses. A private address is reached only in a deployment of
	// one's own, where it has to be named here. LocalAdapter limits nothing; nor
	// is anything limited with OpenSandbox, which is refused with EgressRequired.
	Egress     Egress
	AllowHosts []string

	// Connections finds what steps refer to as "@family.alias", on this host,
	// when a run is executed: the values go to the worker's memory, sealed, and
	// nowhere else. Nil means the file osiris_connections.yaml, see
	// [connections.Search].
	Connections connections.Resolver

	// PassEnv are names of variables of this process to pass to the drivers, if
	// they are set, and Env further variables. The values are secrets like those
	// of connections, and what they are is redacted from all that a run says.
	PassEnv []string
	Env     map[string]string

	// GPU and Spot ask for machines that E2B does not have: anything but zero
	// is refused with [ErrUnsupported].
	GPU  int
	Spot bool

	Heartbeat  time.Duration // between signs of life; zero means 1 s
	MaxJournal int64         // reserved bytes of events the host has not read; zero means 256 MiB

	// MaxEvents is how many lines of events, metrics and log a run's worker may
	// write to the session's files, all together, and MaxEventBytes how many bytes
	// they may have. What is beyond is dropped, and counted in
	// [ExecResult].DroppedLines; only what became of steps is still told. Zero means
	// 5,000,000 lines, five times what the largest runs write that are measured,
	// and 2 GiB.
	MaxEvents     int
	MaxEventBytes int64

	// MaxArtifacts is how many files and directories Collect brings home at most,
	// and MaxArtifactBytes how many bytes they may have together. What is beyond
	// is in [CollectedArtifacts].Skipped, but for files that
	// [ExecutionContext].Outputs names: they count and are not left behind for
	// their number. Zero means 100,000 files, which are some minutes over the
	// internet, and 16 GiB.
	MaxArtifacts     int
	MaxArtifactBytes int64

	// Artifacts says which files are brought home. What it leaves open is set by
	// the variables E2B_ARTIFACT_MAX_MB, a limit of each file in MiB, and
	// E2B_DOWNLOAD_DATA_ARTIFACTS: 0 means no data, but what the system writes and
	// .txt, .json and .sql files of 5 MiB or as the other variable says, and 1
	// everything of any size. See docs/artifacts.md.
	Artifacts ArtifactPolicy

	// Verify says how artifacts are verified; empty means [VerifySHA256].
	Verify Verify

	// OpenSandbox makes the sandbox of a run in place of E2B. Package mock has
	// one, for tests.
	OpenSandbox OpenSandbox

	// InProcess makes [LocalAdapter] run the worker as goroutines of this
	// process, for tests. What drivers print is then not captured, a driver
	// that ignores its context keeps running, and its crash is this process's.
	InProcess bool
}

// String shows the settings, without the API key and the values of variables.
// Package fmt calls no methods of what is in an unexported field: a struct that
// holds a Config in one shows all of it.
func (c Config) String() string {
	var b strings.Builder
	b.WriteString("remote.Config{")
	for _, s := range Settings() {
		if s.Key == "api_key" {
			continue
		}
		if v := s.field(&c).String(); v != "" && v != "0" && v != "false" {
			fmt.Fprintf(&b, "%s:%s ", s.Key, v)
		}
	}
	return strings.TrimSuffix(b.String(), " ") + "}"
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// OnFailure says what else a failed step stops.
type OnFailure string

// The policies. Running steps are never stopped by another's failure.
const (
	StopAll        OnFailure = "stop_all"        // no further step is started
	StopDependents OnFailure = "stop_dependents" // only what needs the failed step, directly or not
)

// OnHostLoss says what becomes of a sandbox whose host has died.
type OnHostLoss string

// What there is to choose from. A paused sandbox keeps what it had in memory,
// secrets too, on E2B's disks until it is resumed or killed, see
// [E2BTransparentProxy.Sweep]; nothing ends it by itself.
const (
	Kill  OnHostLoss = "kill"  // it is removed
	Pause OnHostLoss = "pause" // it is paused, and can be resumed
)

// The defaults; [Settings] lists them.
const (
	defaultLease    = 5 * time.Minute
	defaultTemplate = "base"
	defaultTimeout  = 300 * time.Second

	defaultMaxEvents        = 5_000_000
	defaultMaxEventBytes    = 2 << 30
	defaultMaxArtifacts     = 100_000
	defaultMaxArtifactBytes = 16 << 30
)

// maxVariable is how long a variable and its name may be together, so that
// Linux can hand them to another process (MAX_ARG_STRLEN, with "=" and a zero
// byte).
const maxVariable = 128<<10 - 2

// installDepsVariable allows packages to be installed when it is 1.
const installDepsVariable = "OSIRIS_E2B_INSTALL_DEPS"

func (c Config) installDeps() bool { return c.InstallDeps || os.Getenv(installDepsVariable) == "1" }

// apiKeyVariable never goes into a sandbox.
const apiKeyVariable = "E2B_API_KEY"

func (c Config) validate() error {
	const maxPrice = 1e9 // beyond any; costs are to stay numbers that JSON has

	invalid := func(format string, args ...any) error {
		return fmt.Errorf("remote: %w: Config.%w", ErrInvalid, fmt.Errorf(format, args...))
	}
	switch {
	case c.CPU < 0:
		return invalid("CPU is %d", c.CPU)
	case !(c.MemoryGB >= 0):
		return invalid("MemoryGB is %g", c.MemoryGB)
	case c.Timeout < 0:
		return invalid("Timeout is %s", c.Timeout)
	case c.Lease < 0 || c.Lease > 0 && c.Lease < minLease:
		return invalid("Lease is %s; the least is %s", c.Lease, minLease)
	case c.Lease > maxLease:
		return invalid("Lease is %s; the most is %s", c.Lease, maxLease)
	case c.MaxSandboxes < 0:
		return invalid("MaxSandboxes is %d", c.MaxSandboxes)
	case !(c.CreateRate >= 0):
		return invalid("CreateRate is %g", c.CreateRate)
	case c.CreateWait < 0:
		return invalid("CreateWait is %s", c.CreateWait)
	case !(c.MaxCost >= 0):
		return invalid("MaxCost is %g", c.MaxCost)
	case c.MaxDuration < 0:
		return invalid("MaxDuration is %s", c.MaxDuration)
	case !(c.Prices.VCPUSecond >= 0 && c.Prices.VCPUSecond <= maxPrice && c.Prices.GiBSecond >= 0 && c.Prices.GiBSecond <= maxPrice):
		return invalid("Prices are %g and %g", c.Prices.VCPUSecond, c.Prices.GiBSecond)
	case c.StepTimeout < 0:
		return invalid("StepTimeout is %s", c.StepTimeout)
	case c.Concurrency < 0:
		return invalid("Concurrency is %d", c.Concurrency)
	case c.Restarts < 0:
		return invalid("Restarts is %d", c.Restarts)
	case c.MemoryBudget < 0:
		return invalid("MemoryBudget is %d", c.MemoryBudget)
	case c.Heartbeat < 0:
		return invalid("Heartbeat is %s", c.Heartbeat)
	case c.MaxJournal < 0:
		return invalid("MaxJournal is %d", c.MaxJournal)
	case c.MaxEvents < 0:
		return invalid("MaxEvents is %d", c.MaxEvents)
	case c.MaxEventBytes < 0:
		return invalid("MaxEventBytes is %d", c.MaxEventBytes)
	case c.MaxArtifacts < 0:
		return invalid("MaxArtifacts is %d", c.MaxArtifacts)
	case c.MaxArtifactBytes < 0:
		return invalid("MaxArtifactBytes is %d", c.MaxArtifactBytes)
	case c.Artifacts.validate(invalid) != nil:
		return c.Artifacts.validate(invalid)
	case len(c.PythonDrivers) > 0 && c.pythonFault() != nil:
		return fmt.Errorf("remote: %w: Config.PythonDrivers: %w", ErrInvalid, c.pythonFault())
	case c.GPU != 0:
		return fmt.Errorf("remote: %w: %w: Config.GPU is %d, and E2B has no machines with GPUs", ErrInvalid, ErrUnsupported, c.GPU)
	case c.Spot:
		return fmt.Errorf("remote: %w: %w: Config.Spot is set, and E2B has no spot machines", ErrInvalid, ErrUnsupported)
	}
	switch c.OnFailure {
	case "", StopAll, StopDependents:
	default:
		return invalid("OnFailure is %q; use %q or %q", c.OnFailure, StopAll, StopDependents)
	}
	switch c.OnHostLoss {
	case "", Kill, Pause:
	default:
		return invalid("OnHostLoss is %q; use %q or %q", c.OnHostLoss, Kill, Pause)
	}
	switch c.Verify {
	case "", VerifySHA256, VerifyXXH3, VerifyNone:
	default:
		return invalid("Verify is %q; use %q, %q or %q", c.Verify, VerifySHA256, VerifyXXH3, VerifyNone)
	}
	if _, err := c.policy(); err != nil {
		return err
	}
	switch c.Egress {
	case "", EgressLimited, EgressRequired, EgressOpen:
	default:
		return invalid("Egress is %q; use %q, %q or %q", c.Egress, EgressLimited, EgressRequired, EgressOpen)
	}
	if err := c.validateTemplate(); err != nil {
		return err
	}
	if c.Egress == EgressRequired && c.OpenSandbox != nil {
		return invalid("Egress is %q, and the sandboxes of OpenSandbox cannot be limited", c.Egress)
	}
	for _, entry := range c.AllowHosts {
		if _, err := parseEntry(entry); err != nil {
			return invalid("AllowHosts has %q, which %w", clipHost(entry), err)
		}
	}
	if _, listed := c.Env[apiKeyVariable]; listed || slices.Contains(c.PassEnv, apiKeyVariable) {
		return invalid("PassEnv and Env must not pass %s: it would give the sandbox your account", apiKeyVariable)
	}
	for name, value := range c.Env {
		if slices.Contains(c.apiKeys(), value) {
			return invalid("Env passes the key of your E2B account under the name %s: it would give the sandbox your account", name)
		}
		if name == "" {
			return invalid("Env has a variable without a name, or --e2b-env was given without \"=\"; it wants NAME=VALUE")
		}
		if !validVariable(name) {
			return invalid("Env has the name %q", name)
		}
	}
	for _, name := range c.PassEnv {
		if !validVariable(name) {
			return invalid("PassEnv has the name %q", name)
		}
	}
	return nil
}

func validVariable(name string) bool {
	if name == "" {
		return false
	}
	for _, r := range name {
		if r <= ' ' || r == '=' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}

func (c Config) timeout() time.Duration {
	if c.Timeout == 0 {
		return defaultTimeout
	}
	return c.Timeout
}

func (c Config) createWait() time.Duration {
	if c.CreateWait == 0 {
		return c.timeout()
	}
	return c.CreateWait
}

func (c Config) template() string {
	if c.Template == "" {
		return defaultTemplate
	}
	return c.Template
}

func (c Config) heartbeat() time.Duration {
	if c.Heartbeat == 0 {
		return time.Second
	}
	return c.Heartbeat
}

func (c Config) sandboxRoot() string {
	if c.Root == "" {
		return "/tmp/osiris"
	}
	return path.Clean(c.Root)
}

// environment returns the names that will be passed, sorted: those of PassEnv
// that are set, and Env's.
func (c Config) environment() []string {
	names := []string{}
	for _, name := range c.PassEnv {
		if _, ok := os.LookupEnv(name); ok {
			names = append(names, name)
		}
	}
	for name := range c.Env {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// lookupEnv returns the values of the variables that a run passes.
func (c Config) lookupEnv(names []string) (map[string]string, error) {
	values := make(map[string]string, len(names))
	for _, name := range names {
		v, ok := c.Env[name]
		if !ok && !slices.Contains(c.PassEnv, name) || name == apiKeyVariable {
			return nil, fmt.Errorf("remote: %w: the run passes the variable %s, which neither Config.PassEnv nor Config.Env names", ErrInvalid, name)
		}
		if !ok {
			v, ok = os.LookupEnv(name)
		}
		if !utf8.ValidString(v) {
			return nil, fmt.Errorf("remote: %w: the variable %s is not UTF-8, and would arrive changed", ErrInvalid, name)
		}
		if len(name)+len(v) > maxVariable {
			return nil, fmt.Errorf("remote: %w: the variable %s has %d bytes, limit is %d", ErrInvalid, name, len(v), maxVariable)
		}
		if !ok {
			return nil, fmt.Errorf("remote: %w: the run passes the variable %s, which is not set; set it, or name it in Config.Env", ErrInvalid, name)
		}
		if slices.Contains(c.apiKeys(), v) {
			return nil, fmt.Errorf("remote: %w: the variable %s holds the key of your E2B account, which no sandbox may have", ErrInvalid, name)
		}
		values[name] = v
	}
	return values, nil
}
