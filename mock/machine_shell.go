package mock

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// resolve finds the program behind a command, and the command as it is seen in
// [Sandbox.Processes].
func (m *memoryMachine) resolve(cmd envd.Command) (remote.Command, Program) {
	if script, args, ok := shellScript(cmd); ok {
		return m.resolveScript(cmd, script, args)
	}
	return m.resolveWords(cmd, "sh", cmd.Path, cmd.Args)
}

// resolveWords finds a program, or one that says why there is none, as a shell
// would.
func (m *memoryMachine) resolveWords(cmd envd.Command, shell, name string, args []string) (remote.Command, Program) {
	run, program, err := m.resolvePath(cmd, name, args)
	switch {
	case err == nil:
		return run, program
	case errors.Is(err, fs.ErrNotExist):
		return run, complain(127, "%s: line 1: %s: command not found", shell, name)
	}
	return run, complain(126, "%s: line 1: %s: %v", shell, name, bare(err))
}

// resolvePath finds a program by its path, or by its name alone.
func (m *memoryMachine) resolvePath(cmd envd.Command, name string, args []string) (remote.Command, Program, error) {
	run := remote.Command{Path: name, Args: slices.Clone(args), Dir: cmd.Dir}
	if !strings.Contains(name, "/") {
		run.Path = path.Join(binDir, name)
	} else if !path.IsAbs(name) {
		run.Path = path.Join(cmd.Dir, name)
	}
	program, err := m.sandbox.program(run)
	if err == nil {
		return run, program, nil
	}
	dir, base := path.Split(name)
	if p := builtin(base); p != nil && errors.Is(err, fs.ErrNotExist) && slices.Contains([]string{"", "/bin/", "/usr/bin/"}, dir) {
		return run, p, nil
	}
	return run, nil, pathError("exec", name, err)
}

// shellScript reports whether a command is that of a shell with a script, as
// "/bin/bash -l -c SCRIPT ARGS...".
func shellScript(cmd envd.Command) (script string, args []string, ok bool) {
	if base := path.Base(cmd.Path); base != "sh" && base != "bash" {
		return "", nil, false
	}
	for i, arg := range cmd.Args {
		if !strings.HasPrefix(arg, "-") {
			break
		}
		if arg == "-c" || arg == "-lc" {
			if rest := cmd.Args[i+1:]; len(rest) > 0 {
				return rest[0], rest[1:], true
			}
		}
	}
	return "", nil, false
}

// runsArguments reports whether a script does nothing but run its arguments as
// a command, and whether it makes the program executable first.
func runsArguments(script string) (chmod, ok bool) {
	first, rest, found := strings.Cut(strings.TrimSpace(script), " && ")
	if !found {
		first, rest = "", first
	}
	switch first {
	case "", `chmod 755 "$0"`, `chmod 0755 "$0"`, `chmod +x "$0"`, `chmod 755 -- "$0"`:
		return first != "", rest == `exec "$0" "$@"`
	}
	return false, false
}

// plainWords splits a script that has nothing but words and single quotes.
func plainWords(script string) (words []string, ok bool) {
	var word strings.Builder
	open, quoted := false, false // a word, a quote in it
	for _, r := range script {
		switch {
		case r == '\'':
			open, quoted = true, !quoted
		case quoted:
			word.WriteRune(r)
		case r == ' ' || r == '\t':
			if open {
				words = append(words, word.String())
				word.Reset()
			}
			open = false
		case strings.ContainsRune("|&;<>()$`\\\"*?[]#~={}!\n", r):
			return nil, false
		default:
			open = true
			word.WriteRune(r)
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words, !quoted
}

// resolveScript understands two kinds of scripts: those that run their
// arguments, and plain words.
func (m *memoryMachine) resolveScript(cmd envd.Command, script string, args []string) (remote.Command, Program) {
	run := remote.Command{Path: cmd.Path, Args: slices.Clone(cmd.Args), Dir: cmd.Dir}
	words, plain := plainWords(script)
	if chmod, ok := runsArguments(script); ok && len(args) > 0 {
		words = args
		if chmod && path.IsAbs(args[0]) {
			if err := m.sandbox.disk.chmod(args[0], 0o755); err != nil {
				return run, complain(1, "chmod: cannot access '%s': %v", args[0], bare(err))
			}
		}
	} else if !plain {
		return run, complain(2, "a sandbox in memory has no shell and runs plain words alone; "+
			"a server with mock.WithProcesses has one: %s", script)
	}
	if len(words) == 0 {
		return run, exit(0)
	}
	return m.resolveWords(cmd, path.Base(cmd.Path), words[0], words[1:])
}

// bare takes the path off an error that names it otherwise.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// complain is a program that says why it fails.
func complain(code int, format string, args ...any) Program {
	return func(_ context.Context, p *Proc) int {
		fmt.Fprintf(p.Stderr, format+"\n", args...)
		return code
	}
}

// builtin returns one of the programs that every machine in memory has, or
// nil.
func builtin(name string) Program {
	switch name {
	case "true":
		return exit(0)
	case "false":
		return exit(1)
	case "echo":
		return echo
	case "exit":
		return exitWith
	case "cat":
		return cat
	case "sleep":
		return sleep
	case "install":
		return install
	}
	return nil
}

func exit(code int) Program { return func(context.Context, *Proc) int { return code } }

func exitWith(_ context.Context, p *Proc) int {
	var code int
	fmt.Sscan(strings.Join(p.Args, " "), &code) // without a number it is zero
	return code
}

func echo(_ context.Context, p *Proc) int {
	fmt.Fprintln(p.Stdout, strings.Join(p.Args, " "))
	return 0
}

// install makes directories, as "install -d -m 0755 NAME...".
func install(_ context.Context, p *Proc) int {
	flags := flag.NewFlagSet("install", flag.ContinueOnError)
	flags.SetOutput(p.Stderr)
	dirs := flags.Bool("d", false, "make directories")
	flags.String("m", "", "mode, which directories do not have here")
	if err := flags.Parse(p.Args); err != nil {
		return 1
	}
	if !*dirs || flags.NArg() == 0 {
		fmt.Fprintln(p.Stderr, "install: a sandbox in memory makes directories alone")
		return 1
	}
	for _, name := range flags.Args() {
		if !path.IsAbs(name) {
			name = path.Join(p.Dir, name)
		}
		if err := p.FS.MkdirAll(name); err != nil {
			fmt.Fprintf(p.Stderr, "install: cannot create directory '%s': %v\n", name, bare(err))
			return 1
		}
	}
	return 0
}

func cat(_ context.Context, p *Proc) int {
	if len(p.Args) == 0 {
		io.Copy(p.Stdout, p.Stdin)
		return 0
	}
	code := 0
	for _, name := range p.Args {
		full := name
		if !path.IsAbs(full) {
			full = path.Join(p.Dir, full)
		}
		f, err := p.FS.Open(full)
		if err == nil {
			_, err = io.Copy(p.Stdout, f)
			f.Close()
		}
		if err != nil {
			fmt.Fprintf(p.Stderr, "cat: %s: %v\n", name, bare(err))
			code = 1
		}
	}
	return code
}

func sleep(ctx context.Context, p *Proc) int {
	var seconds float64
	if _, err := fmt.Sscan(strings.Join(p.Args, " "), &seconds); err != nil {
		fmt.Fprintf(p.Stderr, "sleep: invalid time interval %q\n", p.Args)
		return 1
	}
	timer := time.NewTimer(time.Duration(seconds * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return 0
}
