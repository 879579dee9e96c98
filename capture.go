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
	status, err = captureBy(ctx, sb, cmd, func(stdout io.Reader) error {
		out, err = io.ReadAll(io.LimitReader(stdout, limit))
		return err
	})
	return out, status, err
}

// captureBy is capture for who reads the output himself, from its start for each
// time the command is run. What read has to say of what it has read is not an
// error of the connection's: it must match [ErrProtocol].
func captureBy(ctx context.Context, sb Sandbox, cmd Command, read func(stdout io.Reader) error) (status ExitStatus, err error) {
	for try := 1; ; try++ {
		status, err = captureOnce(ctx, sb, cmd, read)
		var lost *lostOutputError
		if !errors.As(err, &lost) || try == captureTries || ctx.Err() != nil || errors.Is(err, ErrSandboxGone) {
			return status, err
		}
	}
}

// lostOutputError is a connection to a command's output that broke.
type lostOutputError struct{ err error }

func (e *lostOutputError) Error() string { return e.err.Error() }
func (e *lostOutputError) Unwrap() error { return e.err }

func captureOnce(ctx context.Context, sb Sandbox, cmd Command, read func(stdout io.Reader) error) (ExitStatus, error) {
	proc, err := sb.Start(ctx, cmd)
	if err != nil {
		return ExitStatus{}, err
	}
	stop := context.AfterFunc(ctx, func() { proc.Stdout().Close() })
	defer stop()
	err = read(proc.Stdout())
	proc.Stdin().Close()
	proc.Stdout().Close()
	if err != nil && ctx.Err() == nil {
		killing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, proc.Signal(killing, SignalKill))
		if errors.Is(err, ErrProtocol) {
			return ExitStatus{}, err
		}
		return ExitStatus{}, &lostOutputError{err}
	}
	status, waitErr := proc.Wait(ctx)
	return status, errors.Join(err, waitErr)
}
