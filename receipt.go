package remote

import (
	"errors"
	"fmt"
	"time"
)

// Receipt says what a run took: time, bytes, and by estimate money. It is in
// [ExecResult] as of the end of Execute, in [CollectedArtifacts] as of the end
// of Collect, and in the session directory's receipt.json as of the last of
// them. Durations are nanoseconds in JSON.
type Receipt struct {
	StartedAt time.Time     `json:"started_at"` // of Execute
	Wall      time.Duration `json:"wall_ns"`    // since then: the sum of Phases
	Phases    Phases        `json:"phases"`
	Steps     []StepReceipt `json:"steps"` // those that were begun, in the manifest's order

	// BytesSent and BytesReceived are contents that have arrived: files and
	// messages to where the run is, and from there. What the transport adds, saves
	// by compression or repeats is not in them.
	BytesSent     int64 `json:"bytes_sent"`
	BytesReceived int64 `json:"bytes_received"`

	// CPU and MemoryGB are the sandbox's size, zero for this machine and where it
	// is not known. SandboxRan is how long it ran, as far as this host has seen:
	// from the answer to its creation on, without what it was paused for.
	CPU           int           `json:"cpu"`
	MemoryGB      float64       `json:"memory_gb"`
	SandboxRan    time.Duration `json:"sandbox_ran_ns"`
	SandboxPaused time.Duration `json:"sandbox_paused_ns"`
	Removed       bool          `json:"removed"` // the sandbox is gone: nothing is added any more

	VCPUSeconds float64 `json:"vcpu_seconds"` // CPU, as long as the sandbox ran
	GiBSeconds  float64 `json:"gib_seconds"`  // MemoryGB, as long as the sandbox ran
	CostUSD     float64 `json:"cost_usd"`     // of both, by Prices: an estimate
	Prices      Prices  `json:"prices"`

	// Overhead is the proxy's own share. Nil when it is not known how long all
	// drivers ran: a step was not answered, a worker was started again, or
	// another host began the run.
	Overhead *Overhead `json:"overhead,omitempty"`

	Hosts int `json:"hosts"` // that the run has had, see [E2BTransparentProxy.Attach]
}

// Phases divide a run's time: at any moment it is in one of them, so that they
// add up to [Receipt].Wall, to the nanosecond.
type Phases struct {
	Prepare      time.Duration `json:"prepare_ns"`      // session files, connections, network rules
	Build        time.Duration `json:"build_ns"`        // a template of its own is built, or was by another run; Config.Timeout stands still
	Create       time.Duration `json:"create_ns"`       // waiting for the sandbox, and for its turn
	Upload       time.Duration `json:"upload_ns"`       // worker program and input files: read, sent, verified there
	WorkerStart  time.Duration `json:"worker_start_ns"` // until it has answered, also where it is started again
	Dependencies time.Duration `json:"dependencies_ns"` // packages of drivers in Python: checked, installed
	Steps        time.Duration `json:"steps_ns"`        // from the first step that may begin to the last answer
	Transfer     time.Duration `json:"transfer_ns"`     // tables of the host, or outputs that it reads, on their way while no step ran
	Finish       time.Duration `json:"finish_ns"`       // artifacts are listed, the worker ends, the verdict is written
	Collect      time.Duration `json:"collect_ns"`      // artifacts come home
	Kill         time.Duration `json:"kill_ns"`         // the sandbox is removed
	Idle         time.Duration `json:"idle_ns"`         // between Execute and Collect, and without a host
}

// Total is the sum of the phases.
func (p Phases) Total() (total time.Duration) {
	for _, d := range p.each() {
		total += d
	}
	return total
}

// each has the phases in their order.
func (p Phases) each() [phaseCount]time.Duration {
	return [phaseCount]time.Duration{
		phasePrepare: p.Prepare, phaseBuild: p.Build, phaseCreate: p.Create, phaseUpload: p.Upload, phaseWorkerStart: p.WorkerStart,
		phaseDependencies: p.Dependencies, phaseSteps: p.Steps, phaseTransfer: p.Transfer, phaseFinish: p.Finish,
		phaseCollect: p.Collect, phaseKill: p.Kill, phaseIdle: p.Idle,
	}
}

// phases is the inverse of each.
func phases(d [phaseCount]time.Duration) Phases {
	return Phases{
		Prepare: d[phasePrepare], Build: d[phaseBuild], Create: d[phaseCreate], Upload: d[phaseUpload], WorkerStart: d[phaseWorkerStart],
		Dependencies: d[phaseDependencies], Steps: d[phaseSteps], Transfer: d[phaseTransfer], Finish: d[phaseFinish],
		Collect: d[phaseCollect], Kill: d[phaseKill], Idle: d[phaseIdle],
	}
}

// StepReceipt is what one step took. Steps run at once: their times overlap,
// and what they cost is no part of the run's cost that could be added up.
type StepReceipt struct {
	StepID   string        `json:"step_id"`
	Queued   time.Duration `json:"queued_ns"`   // it could have begun, and waited for its turn
	Transfer time.Duration `json:"transfer_ns"` // its request and the answer were on their way
	Run      time.Duration `json:"run_ns"`      // by the worker, with what that does around the driver
	Driver   time.Duration `json:"driver_ns"`   // of Run: the driver, until its outputs were read

	RowsIn   int64 `json:"rows_in"`
	RowsOut  int64 `json:"rows_out"`
	BytesIn  int64 `json:"bytes_in"`  // of its input tables in memory, as far as the worker tells
	BytesOut int64 `json:"bytes_out"` // of its output tables, also

	// PeakMemoryBytes is the most resident memory that the worker's process was
	// seen to have while the driver ran: looked at when it begins, when it ends and
	// with every heartbeat. Other steps that ran at the time are in it; processes
	// that drivers start, as those of Python, are not. Zero where the platform does
	// not tell.
	PeakMemoryBytes int64 `json:"peak_memory_bytes"`

	// What the whole sandbox costs for as long as Run.
	VCPUSeconds float64 `json:"vcpu_seconds"`
	GiBSeconds  float64 `json:"gib_seconds"`
	CostUSD     float64 `json:"cost_usd"`
}

// Overhead is what the proxy adds to the drivers' time, once the worker is
// ready and until the last step was answered.
type Overhead struct {
	Window  time.Duration `json:"window_ns"`  // Phases.Steps, and Phases.Transfer before the last step's end
	Drivers time.Duration `json:"drivers_ns"` // of it: at least one driver ran, by the worker's clock
	Time    time.Duration `json:"time_ns"`    // of it: none did
	Ratio   float64       `json:"ratio"`      // Time of Window
}

// Prices are what a sandbox costs in US dollars while it runs. The zero value
// means those that E2B publishes: $0.000014 for a second of a vCPU and
// $0.0000045 for one of a GiB of memory (e2b.dev/docs/faq/calculate-sandbox-price,
// read in November 2026). A paused sandbox costs nothing.
type Prices struct {
	VCPUSecond float64 `json:"vcpu_second"`
	GiBSecond  float64 `json:"gib_second"`
}

func (p Prices) orDefault() Prices {
	if p == (Prices{}) {
		return Prices{VCPUSecond: 0.000014, GiBSecond: 0.0000045}
	}
	return p
}

// perSecond is what a sandbox of a size costs.
func (p Prices) perSecond(cpu int, memoryGB float64) float64 {
	return float64(cpu)*p.VCPUSecond + memoryGB*p.GiBSecond
}

func (p Prices) cost(cpu int, memoryGB float64, ran time.Duration) float64 {
	return p.perSecond(cpu, memoryGB) * ran.Seconds()
}

// BudgetError is the end of a run that has reached [Config].MaxCost or
// MaxDuration. It matches [ErrBudget].
type BudgetError struct {
	Setting     string        // "MaxCost" or "MaxDuration"
	MaxCost     float64       // as it was set; zero for the other
	MaxDuration time.Duration // as it was set; zero for the other
	Ran         time.Duration // how long the sandbox had run
	CostUSD     float64       // what that is estimated to cost
}

func (e *BudgetError) Error() string {
	limit := e.MaxDuration.String()
	if e.Setting == "MaxCost" {
		limit = fmt.Sprintf("$%g", e.MaxCost)
	}
	return fmt.Sprintf("remote: %v: its sandbox has run for %s and costs about $%.6f, and Config.%s is %s", ErrBudget, e.Ran.Round(time.Millisecond), e.CostUSD, e.Setting, limit)
}

// Is reports whether target is ErrBudget.
func (e *BudgetError) Is(target error) bool { return target == ErrBudget }

// errSizeUnknown: what a sandbox costs cannot be told.
var errSizeUnknown = errors.New("the sandbox does not tell its cores and memory, by which Config.MaxCost is watched; set Config.MaxDuration instead")

// limits are those of a run's sandbox.
func (c Config) limits() []limit {
	var all []limit
	if c.MaxCost > 0 {
		all = append(all, limit{name: "MaxCost", cost: c.MaxCost})
	}
	if c.MaxDuration > 0 {
		all = append(all, limit{name: "MaxDuration", time: c.MaxDuration})
	}
	return all
}

// newMeter is that of a run which begins.
func (e *engine) newMeter(started time.Time) *meter {
	return newMeter(started, e.cfg.Prices.orDefault(), e.cfg.limits())
}

// resumeMeter is that of a run which goes on, in a sandbox that may be gone.
func (e *engine) resumeMeter(c *checkpoint, p *PreparedRun, gone error) *meter {
	return resumeMeter(c, p.SandboxConfig, gone != nil, e.cfg.Prices.orDefault(), e.cfg.limits())
}

// receiptFile is the receipt in the session directory.
const receiptFile = "receipt.json"

// takeReceipt makes the receipt of a run as of now, and writes it down.
func (r *run) takeReceipt(dir func(elem ...string) string) (*Receipt, error) {
	receipt := r.meter.receipt(r.prepared.Plan)
	r.receipt = receipt
	if err := writeJSON(dir(receiptFile), receipt); err != nil {
		return receipt, fmt.Errorf("remote: session directory: %w", err)
	}
	return receipt, nil
}
