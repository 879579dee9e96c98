package mocktest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
)

// The helper programs that a sandbox under test must be able to run. Each ends
// by SIGTERM and SIGKILL at any time. [Shell] has them for a machine with a
// Unix shell, [Programs] for a sandbox in memory.
const (
	Cat    = "cat"    // copies standard input to standard output until its end; exit code 0
	Exit   = "exit"   // exits with the code in its argument
	Stderr = "stderr" // writes its argument to standard error; exit code 0
	Args   = "args"   // writes its arguments to standard output, a zero byte after each; exit code 0
	Pwd    = "pwd"    // writes its working directory to standard output; exit code 0
	Flood  = "flood"  // writes as many zero bytes to standard output as its argument says; exit code 0
	Sleep  = "sleep"  // writes "ready" to standard output, then does nothing until it is signalled
)

// scripts are the helpers for /bin/sh -c, which passes arguments from $1 on.
var scripts = map[string]string{
	Cat:    `exec cat`,
	Exit:   `exit "$1"`,
	Stderr: `printf %s "$1" >&2`,
	Args:   `for a; do printf '%s\0' "$a"; done`,
	Pwd:    `pwd | tr -d '\n'`,
	Flood:  `exec head -c "$1" /dev/zero`,
	Sleep:  `printf ready; exec sleep 1000000`,
}

// Shell returns the command of a helper for a sandbox that has /bin/sh. It
// fits Env.Command.
func Shell(name string, args ...string) remote.Command {
	script, ok := scripts[name]
	if !ok {
		panic(fmt.Sprintf("mocktest: there is no helper %q", name))
	}
	return remote.Command{Path: "/bin/sh", Args: append([]string{"-c", script, name}, args...)}
}

// Programs returns the helpers for mock.Options. A mock sandbox holds them in
// /usr/local/bin, where [Installed] finds them.
func Programs() map[string]mock.Program {
	return map[string]mock.Program{
		Cat:    cat,
		Exit:   exit,
		Stderr: func(_ context.Context, p *mock.Proc) int { return write(p.Stderr, p.Args[0]) },
		Args:   printArgs,
		Pwd:    func(_ context.Context, p *mock.Proc) int { return write(p.Stdout, p.Dir) },
		Flood:  flood,
		Sleep:  sleep,
	}
}

// Installed returns the command of a helper for a mock sandbox with
// [Programs]. It fits Env.Command.
func Installed(name string, args ...string) remote.Command {
	return remote.Command{Path: "/usr/local/bin/" + name, Args: args}
}

func write(w io.Writer, s string) int {
	if _, err := io.WriteString(w, s); err != nil {
		return 1
	}
	return 0
}

func cat(_ context.Context, p *mock.Proc) int {
	if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
		return 1
	}
	return 0
}

func exit(_ context.Context, p *mock.Proc) int {
	code, err := strconv.Atoi(p.Args[0])
	if err != nil {
		return 2
	}
	return code
}

func printArgs(_ context.Context, p *mock.Proc) int {
	var b bytes.Buffer
	for _, a := range p.Args {
		b.WriteString(a)
		b.WriteByte(0)
	}
	return write(p.Stdout, b.String())
}

func flood(_ context.Context, p *mock.Proc) int {
	left, err := strconv.Atoi(p.Args[0])
	if err != nil {
		return 2
	}
	for zeros := make([]byte, 64<<10); left > 0; {
		n, err := p.Stdout.Write(zeros[:min(left, len(zeros))])
		if err != nil {
			return 1
		}
		left -= n
	}
	return 0
}

func sleep(ctx context.Context, p *mock.Proc) int {
	write(p.Stdout, "ready")
	<-ctx.Done()
	return 1
}
