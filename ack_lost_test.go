package remote_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/rpc"
)

// lossyInput is a sandbox that loses acknowledgements on their way to the
// worker, as a connection does that breaks without a word.
type lossyInput struct {
	remote.Sandbox
	lose *atomic.Int64 // so many more
}

func (s lossyInput) Start(ctx context.Context, cmd remote.Command) (remote.Process, error) {
	p, err := s.Sandbox.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return lossyProcess{p, s.lose}, nil
}

type lossyProcess struct {
	remote.Process
	lose *atomic.Int64
}

func (p lossyProcess) Stdin() io.WriteCloser { return lossyWriter{p.Process.Stdin(), p.lose} }

type lossyWriter struct {
	io.WriteCloser
	lose *atomic.Int64
}

func (w lossyWriter) Write(frame []byte) (int, error) {
	if rpc.FrameType(frame[4]) == rpc.FrameAck && w.lose.Add(-1) >= 0 {
		return len(frame), nil
	}
	return w.WriteCloser.Write(frame)
}

// A worker whose journal is full waits for an acknowledgement. Those that were
// sent may all be lost: it is no frozen worker, but one to be told again.
func TestAcknowledgementsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Int64
		lose.Store(5)
		provider := mock.NewProvider(&mock.Options{Drivers: testDrivers()})
		a, err := remote.NewE2BTransparentProxy(remote.Config{
			Drivers: testDrivers(), MaxJournal: 16 << 10,
			OpenSandbox: func(ctx context.Context, cfg remote.SandboxConfig) (remote.Sandbox, error) {
				sb, err := provider.OpenSandbox(ctx, cfg)
				if err != nil {
					return nil, err
				}
				return lossyInput{sb, &lose}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		ec := newContext(t, "s")
		start := time.Now()
		result, _, err := remote.Run(t.Context(), a, flood(1000), ec)
		if err != nil {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		agree(t, ec, result, err)
		floodNumbers(t, ec, 1000)
	})
}
