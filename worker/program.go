package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/osiris-pipelines/remote/rpc"
)

// Arg is the first argument that turns a program which calls [Main] into a
// worker.
const Arg = "osiris-worker"

// Main turns the process into a worker when it was started as one, and then
// does not return. Call it first in main, before flags are parsed: a host's
// own program, started again inside a sandbox or as a child, is then its
// worker, with its drivers.
func Main(drivers *Registry) {
	mainCalled.Store(true)
	if len(os.Args) < 2 || os.Args[1] != Arg {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := Program{Drivers: drivers, ownProcess: true}
	stdin := os.Stdin
	if len(os.Args) < 3 || os.Args[2] != supervise { // which passes it on as it is
		stdin = pollable(stdin)
	}
	code := p.Run(ctx, os.Args[2:], stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// mainCalled is a fact of the process, as its arguments are: Main is called once,
// before anything else.
var mainCalled atomic.Bool

// MainCalled reports whether this process has called [Main], so that its
// program, started again, would be a worker.
func MainCalled() bool { return mainCalled.Load() }

// Program is the worker as a program: what [Main] runs, and what a sandbox in
// memory runs in process.
type Program struct {
	Drivers *Registry // nil means none
	FS      FS        // nil means this machine's

	ownProcess bool
}

// supervise is the command that a host starts a worker by.
const supervise = "supervise"

const usageText = `usage:
  supervise -dir DIR [-max-journal BYTES] [-keep] [-resume]
                                            serve, and record how that ends
  serve -dir DIR [-max-journal BYTES] [-keep] [-resume]
                                            run steps as the requests on stdin say
  tail -dir DIR [-from N] [-follow=F]       copy the journal to stdout
  recover -dir DIR                          make the folder of a worker that died ready for -resume
  seal -dir DIR [-want JSON]                list the artifacts as JSON
  pack -dir DIR -- PATH...                  print small artifacts, one behind the other
  status -dir DIR                           tell how the worker is as JSON
  reap -dir DIR                             end what is left of the run, then status
  install -cache DIR [-python NAME] [-requirements JSON]
                                            install packages for runs to come
  version                                   print the worker's version
`

// Run runs the program with its arguments, without its name and with or
// without [Arg], and returns its exit code:
//
//	supervise -dir DIR [-max-journal BYTES] [-keep] [-resume]
//	                                          serve in a process of its own, and record how that ends
//	serve -dir DIR [-max-journal BYTES] [-keep] [-resume]
//	                                          run steps as the requests on stdin say, see Options.Keep and Resume
//	tail -dir DIR [-from N] [-follow=F]       copy the journal to stdout, from offset N; F is true or false
//	recover -dir DIR                          make the folder of a worker that died ready for -resume; print JSON, see Recover
//	seal -dir DIR [-want JSON]                list the artifacts with their checksums as JSON; what is wanted is the JSON of an rpc.SealArtifacts
//	pack -dir DIR -- PATH...                  print small artifacts by their paths, see Pack
//	status -dir DIR                           tell how the worker is, as the JSON of an rpc.WorkerStatus
//	reap -dir DIR                             end what is left of the run's processes, then as status
//	install -cache DIR [-python NAME] [-requirements JSON]
//	                                          install packages of Python for runs to come that have DIR as their cache; the requirements are a list
//	version                                   print the worker's version
//
// DIR is the run's folder, an absolute path. The exit code is 0 on success, 1
// when the work failed, 2 when the arguments make no sense, and 3 when the
// journal could not be written. To supervise ends with the code of the worker,
// or killed by SIGKILL where a signal has killed that. A tail that follows ends
// when its standard input does, when another one is started, and when it has
// copied nothing for five minutes. One that cannot read on ends with
// [ExitTrimmed] or [ExitCorrupt].
func (p Program) Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == Arg {
		args = args[1:]
	}
	if len(args) == 0 {
		io.WriteString(stderr, usageText)
		return 2
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		dir    = flags.String("dir", "", "the run's folder")
		from   = flags.Int64("from", 0, "offset in the journal")
		follow = flags.Bool("follow", true, "wait for more")
		keep   = flags.Bool("keep", false, "write outputs of finished steps to disk")
		resume = flags.Bool("resume", false, "go on after another worker's death")
		unread = flags.Int64("max-journal", 0, "bytes of the journal that may wait for the host")
		want   = flags.String("want", "{}", "which artifacts are wanted")
		child  = flags.Bool("supervised", false, "started by supervise")

		packages installation
	)
	flags.StringVar(&packages.cache, "cache", "", "where packages are installed")
	flags.StringVar(&packages.python, "python", "", "interpreter of drivers in Python")
	flags.StringVar(&packages.requirements, "requirements", "[]", "of drivers in Python")
	if err := flags.Parse(args[1:]); err != nil {
		return 2
	}
	if args[0] == "version" {
		fmt.Fprintln(stdout, Version())
		return 0
	}
	if args[0] == "install" && filepath.IsAbs(packages.cache) && flags.NArg() == 0 {
		err := errors.New("it takes a machine: this sandbox is only in memory")
		if _, ok := cmp.Or[FS](p.FS, OSFS{}).(OSFS); ok {
			err = p.install(ctx, packages, stdout)
		}
		if err != nil {
			fmt.Fprintln(stderr, "worker: install:", err)
			return 1
		}
		return 0
	}
	var wanted rpc.SealArtifacts
	if !filepath.IsAbs(*dir) || flags.NArg() > 0 && args[0] != "pack" || json.Unmarshal([]byte(*want), &wanted) != nil || *from < 0 || *unread < 0 {
		io.WriteString(stderr, usageText)
		return 2
	}
	fsys := p.FS
	if fsys == nil {
		fsys = OSFS{}
	}
	serve := func(stderr io.Writer) int {
		opts := Options{
			Dir: *dir, Drivers: p.Drivers, FS: fsys, ownProcess: p.ownProcess, stderr: stderr,
			Keep: *keep, Resume: *resume,
			Journal: &rpc.JournalOptions{MaxUnacked: *unread},
		}
		if *child && p.ownProcess {
			opts.prints, opts.share = inherited()
		}
		w, err := New(opts)
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return w.Run(ctx, stdin)
	}
	switch args[0] {
	case supervise:
		if code := p.supervise(ctx, *dir, args[1:], stdin, fsys, stderr); code >= 0 {
			return code
		}
		return p.serveAlone(*dir, fsys, stderr, serve)
	case "serve":
		return serve(stderr)
	case "tail":
		if p.ownProcess {
			// It does one thing at a time; threads that look for more would
			// take the processor from the worker and the host.
			runtime.GOMAXPROCS(1)
		}
		return p.tail(ctx, fsys, *dir, *from, *follow, stdin, stdout, stderr)
	case "status", "reap":
		return p.status(*dir, fsys, args[0] == "reap", stdout, stderr)
	case "seal":
		result, err := Seal(ctx, fsys, filepath.Join(*dir, artifactsDir), &wanted)
		return printJSON(result, err, stdout, stderr)
	case "pack":
		if err := Pack(ctx, fsys, filepath.Join(*dir, artifactsDir), flags.Args(), stdout); err != nil {
			fmt.Fprintln(stderr, "worker:", err)
			return 1
		}
		return 0
	case "recover":
		result, err := Recover(ctx, fsys, *dir)
		return printJSON(result, err, stdout, stderr)
	}
	io.WriteString(stderr, usageText)
	return 2
}

func printJSON(v any, err error, stdout, stderr io.Writer) int {
	if err == nil {
		err = json.NewEncoder(stdout).Encode(v)
	}
	if err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return 1
	}
	return 0
}
