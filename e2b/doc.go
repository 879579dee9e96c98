// Package e2b is a client of E2B's cloud sandboxes, small virtual machines
// that start within a second: of the control plane, which makes and ends them,
// and of the daemon inside each, which serves files and processes. It knows
// nothing of pipelines and can be used on its own.
//
//	client, err := e2b.NewClient(e2b.Config{}) // takes E2B_API_KEY
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	sandbox, err := client.CreateSandbox(ctx, e2b.CreateOptions{Timeout: 10 * time.Minute})
//	if err != nil {
//		return err
//	}
//	defer sandbox.Kill(context.WithoutCancel(ctx))
//	result, err := sandbox.ExecuteCommand(ctx, e2b.Command{Path: "uname", Args: []string{"-a"}})
//
// # The life of a sandbox
//
// [Client.CreateSandbox] makes a sandbox from a template, which decides on its
// CPU, memory, disk and files. It runs until [Client.Kill], or until its
// timeout, which is counted by E2B and holds whatever becomes of this program;
// [Client.SetTimeout] and [Client.Refresh] move it. [Client.Pause], or the
// timeout of one made with AutoPause, keeps its memory and files instead, and
// [Client.Connect] resumes it. Connect also gives another process, or a later
// one, a [Sandbox] of one that runs. [Client.List] and [Client.Get] look at
// sandboxes and leave them as they are.
//
// A [Sandbox] is only a handle: it needs no closing, and to forget it changes
// nothing about the sandbox.
//
// # Templates
//
// CPU, memory and the files that a sandbox begins with are its template's.
// [Client.BuildTemplate] makes one, from another template or from a container
// image, by steps that run commands and copy files, and tells what they say
// while they run:
//
//	build, err := client.BuildTemplate(ctx, e2b.BuildOptions{
//		Name:         "reports",
//		CPU:          4,
//		MemoryMB:     8192,
//		FromTemplate: "base",
//		Steps:        []e2b.BuildStep{e2b.RunStep("pip install pandas")},
//	}, func(line e2b.BuildLog) { log.Print(line.Message) })
//
// A step that fails ends the build with a [*BuildError], which has the step's
// last lines. Steps that E2B has done before, and layers that it has got, are
// not done and not uploaded again. E2B keeps what the steps say and do, so
// there must be no secrets in them.
//
// A build of a name that there is makes a new version of its template. Tags
// name versions: sandboxes made from "reports" have the one tagged "default",
// which is the newest unless a build is given other tags, and those made from
// "reports:v1" the one with that tag, which [Client.AddTemplateTags] moves.
//
// Who shares a name with others, on other machines, builds it by the three
// calls that BuildTemplate makes: [Client.RequestBuild], [Client.StartBuild],
// which cancels a build of the same tags that runs, and [Client.WaitBuild],
// which anybody may call. [Client.Builds] tells whether one is under way. (A
// server without builds has [ErrBuildUnsupported].)
//
// [Client.Templates] lists the account's templates and when they were last
// used; [Client.DeleteTemplate] deletes one.
//
// # What costs money
//
// Every second that a sandbox runs is charged, at a rate by its CPU and
// memory; so is the storage of snapshots. So kill what is no longer needed, on
// a context that is not the one that has just been cancelled, and set a
// timeout as short as the work allows, for when the program cannot. Any
// request to a paused sandbox with AutoResume wakes it, and the charge; Get
// does not.
//
// A create whose answer is lost may have made a sandbox that nobody knows of.
// CreateSandbox finds it by random metadata and returns or kills it, see there
// and at [Client.Close].
//
// # Retries
//
// Calls are repeated, up to Config.Retries times, with waits that grow from
// 0.1 s to 5 s:
//
//   - whatever they do, when there was no connection, and when E2B refused
//     before it acted: status 429 with a Retry-After, or 503 for lack of
//     capacity. (A create that is refused by 429 waits for its turn, see
//     below.);
//   - when a repetition does no harm, also after a cut connection and after
//     the statuses 500, 502, 503 and 504.
//
// A Retry-After is obeyed, unless it asks for more time than the call has or
// than Config.RequestTimeout: then its error comes at once, see
// APIError.RetryAfter. Creating a sandbox or
// a snapshot, and starting a process or a build, are never repeated where the first may
// have been carried out, but for a Command that is Repeatable. A sandbox that is
// gone is not asked again. [WithClientTrace] tells of every retry.
//
// Config.RequestTimeout bounds a call of the control plane with all its
// retries. Transfers of files have no time limit but their context's, and fail
// when the network gives or takes no byte for 60 s.
//
// # Admission
//
// [Client.CreateSandbox] lets creates through by Config.MaxSandboxes and
// Config.CreateRate, in the order of the calls, and waits when E2B says that
// there are too many requests. Where the account has as many sandboxes as it
// may, it waits if some of them are this client's, and else fails at once with
// a [*QuotaExceededError]. Config.CreateWait bounds each wait, and
// [WithClientTrace] tells of it.
//
// # Errors
//
// An error matches, by errors.Is, the sentinel error of what it is about, such
// as [ErrSandboxGone], and is or wraps an [*APIError] where E2B said no. Those
// of CreateSandbox are of three types, see there. No error and no log record
// holds an API key or a token.
//
// # Environment
//
// An empty field of [Config] is taken from the environment:
//
//	E2B_API_KEY           the API key, from https://e2b.dev/dashboard
//	E2B_DOMAIN            another installation than e2b.app
//	E2B_API_URL           the control plane, when not at api. and the domain
//	E2B_SANDBOX_URL       the way to all sandboxes, when not by the domain
//	E2B_DEBUG             "true" logs every request to slog.Default
//	E2B_VALIDATE_API_KEY  "false" takes keys of another form
//
// HTTP_PROXY, HTTPS_PROXY and NO_PROXY are obeyed as by net/http.
//
// # Compatibility
//
// The protocol is that of E2B's public API and of its daemon, envd 0.1.0 to
// 0.6; a feature that needs a later daemon than a sandbox has fails with
// [ErrUnsupported] or [ErrInvalid].
package e2b
