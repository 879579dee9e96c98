// Package mock stands in for the machines that package remote runs pipelines
// on, so that code which uses it can be tested without any: a [Sandbox] is a
// remote.Sandbox in memory, and a [Provider] makes them where remote wants a
// remote.OpenSandbox. A [Server] is E2B's API, for tests of all that talks to it.
//
// A sandbox behaves. Its files are in memory ([Sandbox.FS]), its processes are
// Go functions with real pipes, and the worker that comes with it is the real
// one, run in process with the drivers in [Options]. So a pipeline runs as it
// would elsewhere, in milliseconds.
//
// # Faults
//
// [Options.Fault] is asked before every call and makes it fail, at once, after
// some bytes ([FailAfter]), or when all is done ([FailLate]); it also holds a
// call up, by blocking. [Sandbox.DropStdout], [Sandbox.Freeze],
// [Sandbox.KillProcess] and [Sandbox.Expire] strike at any time. Nothing
// sleeps and nothing depends on the real time.
//
// # What to look at afterwards
//
// [Provider.Alive] is empty when nothing was left behind. [Sandbox.Calls] says
// what was done, [Sandbox.Processes] what ran and how it ended. The files of a
// killed sandbox are gone.
//
// # Server
//
// [NewServer] starts E2B's control plane and the way into its sandboxes on one
// port of the loopback interface. Any client of E2B can use it, given
// [Server.URL] for both addresses and [Server.APIKey], as [Server.Env] has
// them. Its statuses, bodies, defaults and limits are those of E2B, and so is
// what a sandbox's daemon does.
//
// What runs in its sandboxes is for the test to choose. Without an option they
// are in memory, as those of a Provider are: their processes are Programs, the
// worker and a handful of commands, without a shell ([Server.Sandbox] is such
// a one from the inside). [WithProcesses] has real processes, [WithEnvd] also
// the real daemon. [Server.Isolation] tells how far they are from this
// machine.
//
// [WithFault] makes requests fail: late, lost, cut or stalled at a byte.
// [Server.Kill], [Server.Expire], [Server.Pause] and [Server.CutConnections]
// strike at any time, and [WithClock] lets the time of sandboxes pass.
// [NewProxy] puts a proxy before it that cuts, freezes, slows and delays
// connections at any byte, by a [Script]. [Server.RestartDaemon] kills a
// sandbox's daemon. [Server.Requests] says what came, [Server.Alive] what would still cost
// money.
//
// # Templates
//
// Templates are given by [WithTemplates], and built by requests: a build's
// steps run in the file tree of a machine, as users and with variables, in
// sandboxes in memory with the programs of these. Sandboxes of the template
// have a copy of these files, and the size of the build. The manners of E2B's
// builds are kept: a request takes the place of builds that were not started, a
// start cancels those that run, and a build that fails leaves nothing but its
// log. Where sandboxes have no files of their own a request is refused with
// status 501.
//
// No images are pulled: a build from one begins with the files of any sandbox
// here, and its log says so. Nothing is cached but the files for COPY. Where
// processes are real, the system's directories (/usr, /etc and so on) can only
// be read; /opt, /srv, /home and new directories of root are the template's. A
// start command is not frozen but run again in every sandbox, which is there
// when its ready command has succeeded; where there is none E2B waits for 20 s,
// this server for a moment. There are no users but root and user.
//
// # Differences
//
// It differs from E2B in some things. There is one team, with all rights but
// egress proxies, volumes and workload identities. Snapshots and forks have a sandbox's files, not its processes, and a
// sandbox in memory that is paused stops at its next use of a file or stream.
// No port but the daemon's leads into a sandbox: the others are answered as
// closed. A sandbox's network rules are remembered, and enforced with
// [WithHosts] alone, for TCP to the hosts that it names: there is no other
// internet then, no nameserver but a list, nothing but TCP and IPv4, and no
// rewriting of requests. Addresses that E2B drops are closed like others that
// are denied. Without it real processes have this machine's network. A sandbox's
// metrics are those of the moment, its log has its changes of state. It talks
// HTTP/1.1 alone, without TLS.
//
// # Where it differs from a machine
//
// A function cannot be killed. A killed process has ended for everyone outside
// and can do nothing more to the sandbox's files, but its function runs on
// until it looks at its context or its streams. [Sandbox.Kill] waits for it.
// Nor does a function handle signals: SIGTERM cancels its context, and the
// process ends by that signal as soon as the function returns.
package mock
