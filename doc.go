// Package remote runs data pipelines inside sandboxes as if they ran in the
// host's own process: a transparent proxy.
//
// A host compiles a pipeline to a [Manifest]: steps, each with a driver, a
// config and the steps it needs. An [ExecutionAdapter] runs it somewhere:
//
//	adapter, err := remote.NewLocalAdapter(remote.Config{Drivers: drivers})
//	...
//	defer adapter.Close()
//	manifest, err := remote.LoadManifest("compiled/manifest.yaml")
//	...
//	ec := remote.NewExecutionContext("run_logs")
//	result, files, err := remote.Run(ctx, adapter, manifest, ec)
//
// [LocalAdapter] runs it on this machine, [E2BTransparentProxy] in a sandbox of
// E2B: its cloud, a deployment of your own, or package mock's server on this
// machine. Both leave the same session directory, with the same events,
// artifacts and errors, because both are the same engine over another
// [Sandbox]. [Doctor] says what is missing for E2B.
//
// # The life of a run
//
// Prepare checks the manifest and makes a [PreparedRun]: deterministic bytes
// that can be stored and shown, since they hold names of secrets and never
// values. It connects to nothing.
//
// Execute settles the run in its place (a new sandbox, with the worker and the
// input files uploaded; or a private folder here), starts the worker, and runs
// every step as soon as what it needs is done. Tables stay with the worker
// between steps. What the worker says comes back while it runs, through a
// journal that is read again from where the host was whenever a connection is
// lost, so that nothing is missing and nothing comes twice.
//
// Collect brings the artifacts home, verifies their sizes and checksums, and
// removes the place. [Run] does all three and cleans up whatever happens. A
// collection that fails is a [*CollectError] with what is here, and can be
// repeated: only the rest is downloaded.
//
// # Tables
//
// Outputs of steps stay with the worker: in memory up to [Config.MemoryBudget],
// beyond it on its disk. [ExecutionContext].Tables are tables of the host that
// steps have as inputs, and outputs that [ExecutionContext].Keep names are read by
// [E2BTransparentProxy.FetchOutput] while the run goes on, and until Collect.
//
// # Sizes, images and packages
//
// E2B fixes cores, memory and files of a sandbox in its template. Where a run asks
// for others ([Config.CPU], [Config.MemoryGB], [Config.Image], [Config.Packages])
// and [Config.AllowTemplateBuild] is set, a template that has them is built, once,
// with the worker program and the packages in it; every later run, of any host,
// finds it by its name, a hash of all that. [E2BTransparentProxy.Explain] says
// beforehand which way a run would start.
//
// # What a run takes
//
// A [Receipt] divides the run's time into phases, and estimates its cost.
// [Config.MaxCost] and [Config.MaxDuration] stop a run. A [Tracer] makes spans.
//
// # Connections and secrets
//
// Steps refer to connections by name, "@family.alias". Execute finds their fields
// on the host, by [Config.Connections], and sends them with the variables of
// [Config.PassEnv] to the worker's memory, sealed: they stand in no file, argument
// or prepared run. What a run writes or tells, what drivers print included, is
// searched for their values; tables, and files that drivers write, are not. A
// config that holds a secret under a key such as "password" is refused. A sandbox
// of E2B reaches the hosts of its run's connections and configs, and
// [Config.AllowHosts]; everything else is denied, see [Egress]. What comes back from a sandbox is not believed: [ErrProtocol] is
// what no worker sends.
//
// # Leases
//
// A sandbox of E2B lives for [Config.Lease], and its end is moved on while
// Execute or Collect runs: a host that dies costs one lease, not the run's
// timeout. [E2BTransparentProxy.Sweep] finds and kills what hosts that died have
// left. Runs beyond what [Config.MaxSandboxes] and [Config.CreateRate], or E2B,
// allow wait for their turn.
//
// # The worker
//
// Steps run in a worker: a program whose main calls [worker.Main] first. The
// host's own program can be it, also in a sandbox where it suits its platform;
// package worker has the driver interface, worker/drivers the drivers there
// are, and worker/cmd/osiris-worker a ready program, for [Config.WorkerPath].
//
// A driver may also be a class in Python, as those of the reference
// implementation are: a [PythonDriver], declared by the manifest or the Config. What
// it imports is checked before the first step, and installed where
// [Config.InstallDeps] allows it.
//
// # The session directory
//
//	manifest.yaml, cfg/              what was run
//	events.jsonl, metrics.jsonl      what happened, a line each
//	osiris.log                       logs, and what drivers printed
//	status.json                      the verdict, the same as ExecResult's
//	sandbox.json                     while it runs in E2B: how to go on with it
//	receipt.json                     what the run took
//	artifacts.json                   every file that it left, and what became of it
//	artifacts/<step>/...             what the steps wrote
//	artifacts/_system/run_card.json  the steps, at a glance
//
// # Errors
//
// Execute's error is nil exactly when the run succeeded. A step that failed is
// a [*StepError], a worker that died a [*WorkerCrashError]; the sentinels in
// this package ([ErrTimeout], [ErrUnknownDriver], [ErrInvalid], ...) tell
// kinds apart with errors.Is. A worker that falls silent is diagnosed before it
// counts as lost: [WorkerCrashError] has a [Verdict]. With [Config].Restarts a
// worker that died is started again, and the run goes on behind the last
// finished step.
//
// A run in E2B outlives its host by one lease: [E2BTransparentProxy.Attach] goes
// on with it in another process.
//
// Cancelling the context stops running steps, then the worker, by force where
// it must, with all it has started. [ExecResult] says what was seen to be gone.
//
// After Run, status.json, the result and the error agree; who calls Execute and
// Collect by himself finds in status.json also that a collection failed.
//
// # Concurrency
//
// An adapter serves any number of runs at once, each known by its session id.
// The event and metric functions of one context are called one at a time.
//
// # Compatibility
//
// Host and worker agree on a protocol version when they meet; docs/protocol.md
// describes it. [PreparedRun] carries [SchemaVersion].
package remote
