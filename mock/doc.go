// Package mock stands in for the machines that package remote runs pipelines
// on, so that code which uses it can be tested without any: a [Sandbox] is a
// remote.Sandbox in memory, and a [Provider] makes them where remote wants a
// remote.OpenSandbox.
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
// # Where it differs from a machine
//
// A function cannot be killed. A killed process has ended for everyone outside
// and can do nothing more to the sandbox's files, but its function runs on
// until it looks at its context or its streams. [Sandbox.Kill] waits for it.
// Nor does a function handle signals: SIGTERM cancels its context, and the
// process ends by that signal as soon as the function returns.
package mock
