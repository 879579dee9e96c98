package remote

import (
	"context"
	"errors"
	"io"
	"time"
)

// captureTries is how often a command is run whose output got lost.
const captureTries = 3

// capture runs a command that may be run twice, and returns the first limit
// bytes of its output and how it ended. When the connection to its output
// breaks, as it does where the answer to its start was lost, it is run again.
func capture(ctx context.Context, sb Sandbox, cmd Command, limit int64) (out []byte, status ExitStatus, err error) {
	for try := 1; ; try++ {
		out, status, err = captureOnce(ctx, sb, cmd, limit)
		var lost *lostOutputError
		if !errors.As(err, &lost) || try == captureTries || ctx.Err() != nil || errors.Is(err, ErrSandboxGone) {
			return out, status, err
		}
	}
}

// lostOutputError is a connection to a command's output that broke.
type lostOutputError struct{ err error }

func (e *lostOutputError) Error() string { return e.err.Error() }
func (e *lostOutputError) Unwrap() error { return e.err }

func captureOnce(ctx context.Context, sb Sandbox, cmd Command, limit int64) ([]byte, ExitStatus, error) {
	proc, err := sb.Start(ctx, cmd)
	if err != nil {
		return nil, ExitStatus{}, err
	}
	stop := context.AfterFunc(ctx, func() { proc.Stdout().Close() })
	defer stop()
	out, err := io.ReadAll(io.LimitReader(proc.Stdout(), limit))
	proc.Stdin().Close()
	proc.Stdout().Close()
	if err != nil && ctx.Err() == nil {
		killing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return out, ExitStatus{}, &lostOutputError{errors.Join(err, proc.Signal(killing, SignalKill))}
	}
	status, waitErr := proc.Wait(ctx)
	return out, status, errors.Join(err, waitErr)
}
