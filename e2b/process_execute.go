package e2b

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// maxCommandOutput bounds what ExecuteCommand keeps of each output.
const maxCommandOutput = 16 << 20

// CommandResult is how a command ended and what it wrote.
type CommandResult struct {
	ExitStatus
	Stdout []byte // up to 16 MiB
	Stderr []byte // up to 16 MiB; empty where Command.Stderr took it

	// Truncated says that there was more output than Stdout or Stderr has.
	Truncated bool
}

// ExecuteCommand runs a command to its end, and kills it when ctx ends first.
// An exit code other than zero is no error. Where ctx ended, Command.Timeout
// did, or the connection was cut, the result has the output so far along with
// the error.
//
// The end of a command is also that of the processes it has started in the
// background and that still hold its output, as [Process.Wait] says.
func (s *Sandbox) ExecuteCommand(ctx context.Context, cmd Command) (*CommandResult, error) {
	var stdout, stderr capped
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	p, err := s.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	defer context.AfterFunc(ctx, func() { p.Stdout().Close() })()
	if err := p.Stdin().Close(); err != nil {
		return nil, err
	}
	_, readErr := io.Copy(&stdout, p.Stdout())
	status, err := p.Wait(ctx)
	switch {
	case err != nil && err == ctx.Err():
		p.kill()
		p.Close() // after which nothing writes to the outputs
		stdout.Write(p.stdout.left())
		err = fmt.Errorf("execute %q: %w", cmd.Path, context.Cause(ctx))
		status = ExitStatus{Code: -1}
	case err == nil:
		err = readErr
	}
	return &CommandResult{
		ExitStatus: status,
		Stdout:     stdout.kept.Bytes(),
		Stderr:     stderr.kept.Bytes(),
		Truncated:  stdout.more || stderr.more,
	}, err
}

// capped keeps the first bytes of what is written to it.
type capped struct {
	kept bytes.Buffer
	more bool
}

func (c *capped) Write(b []byte) (int, error) {
	keep := b[:min(len(b), maxCommandOutput-c.kept.Len())]
	c.kept.Write(keep)
	c.more = c.more || len(keep) < len(b)
	return len(b), nil
}
