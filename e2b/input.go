package e2b

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

const (
	// maxInput bounds a message of input to what fits into an empty pipe.
	maxInput = 64 << 10
	// inputOpening bounds the opening of an input stream, and the test of
	// whether they work.
	inputOpening = 2 * time.Second
	// inputRetry is how long single calls carry the input after a stream could
	// not be opened.
	inputRetry = time.Minute
)

// input is a process's standard input. It goes over a stream that stays open,
// or, while it is not known whether the way to the sandbox lets streams
// through, in single calls, which take twice as long.
type input struct {
	process *Process
	enabled bool
	closed  atomic.Bool

	mu      sync.Mutex // held while something is sent
	begun   bool       // something was
	stream  *inputStream
	retryAt time.Time // when to try to open a stream again
	lost    error     // why what was written may not have arrived; for the next Write

	renewed atomic.Bool                        // by RenewInput, since the last Write
	sending atomic.Pointer[context.CancelFunc] // gives up what is being sent
}

// RenewInput gives up the connection that the process's input goes over: a
// Write that waits fails, and for a minute each further one is a call of its
// own, which the daemon acknowledges. It is for a caller who sees by the
// process's answers, or for want of them, that what it wrote does not arrive.
// What was written without having arrived may be lost, or arrive late.
func (p *Process) RenewInput() {
	p.stdin.renewed.Store(true)
	if cancel := p.stdin.sending.Load(); cancel != nil {
		(*cancel)()
	}
}

type inputStream struct {
	*connect.ClientStreamForClient[envdpb.StreamInputRequest, envdpb.StreamInputResponse]
	cancel context.CancelFunc
	used   bool // since the last sign of life
}

func (in *input) Write(b []byte) (n int, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.unusable(); err != nil {
		return 0, in.failed(err)
	}
	for len(b) > 0 {
		size := min(len(b), maxInput)
		if err := in.send(b[:size]); err != nil {
			return n, in.failed(err)
		}
		n, b = n+size, b[size:]
	}
	return n, nil
}

// unusable is why nothing can be written, or nil.
func (in *input) unusable() error {
	switch {
	case !in.enabled:
		return fmt.Errorf("%w: the process was started without Command.Stdin", ErrInvalid)
	case in.closed.Load():
		return os.ErrClosed
	case in.process.ctx.Err() != nil:
		return context.Cause(in.process.ctx)
	}
	err := in.lost
	in.lost = nil
	return err
}

func (in *input) failed(err error) error {
	if cause := context.Cause(in.process.ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("write to process %d: %w", in.process.pid, err)
}

// send sends one message.
func (in *input) send(b []byte) error {
	data := &envdpb.ProcessInput{Input: &envdpb.ProcessInput_Stdin{Stdin: b}}
	if in.renewed.Swap(false) {
		in.drop()
	}
	if in.stream == nil {
		in.open()
	}
	in.begun = true
	if in.stream == nil {
		return in.call(data)
	}
	in.sending.Store(&in.stream.cancel)
	in.stream.used = true
	event := &envdpb.StreamInputRequest_DataEvent{Input: data}
	if err := in.stream.Send(&envdpb.StreamInputRequest{Event: &envdpb.StreamInputRequest_Data{Data: event}}); err != nil {
		return in.broken()
	}
	return nil
}

// call sends one message in a call of its own.
func (in *input) call(data *envdpb.ProcessInput) error {
	ctx, cancel := context.WithCancel(in.process.ctx)
	defer cancel()
	in.sending.Store(&cancel)
	msg := connect.NewRequest(&envdpb.SendInputRequest{Process: byPID(in.process.pid), Input: data})
	_, err := in.process.sandbox.rpc.sendInput.CallUnary(ctx, msg)
	return in.process.sandbox.rpcError(ctx, "send input", err)
}

// drop gives up the stream without waiting for anything.
func (in *input) drop() {
	in.retryAt = time.Now().Add(inputRetry)
	if stream := in.stream; stream != nil {
		in.stream = nil
		stream.cancel()
	}
}

// broken gives up a stream that could not be written to, and returns why.
func (in *input) broken() error {
	stream := in.stream
	in.stream = nil
	if err := in.flush(stream); err != nil {
		return err
	}
	return io.ErrClosedPipe
}

// open opens a stream where the sandbox is known to take them. There may be
// none afterwards.
func (in *input) open() {
	s := in.process.sandbox
	// The first message is for a process that is still starting, as are those
	// that come with it: the test, which takes one more, can wait.
	if time.Now().Before(in.retryAt) || !s.streamsInput(in.begun) {
		return
	}
	stream, err := in.dial()
	if err != nil {
		in.retryAt = time.Now().Add(inputRetry)
		s.client.cfg.Logger.Warn("e2b: input goes in single calls for now", "sandbox", s.ID(), "error", err)
		return
	}
	in.stream = stream
	in.process.tasks.start(func() { in.keepAlive(stream) })
}

// dial opens a stream and names the process to it.
func (in *input) dial() (*inputStream, error) {
	ctx, cancel := context.WithCancel(in.process.ctx)
	late := time.AfterFunc(inputOpening, cancel)
	stream := in.process.sandbox.rpc.streamInput.CallClientStream(ctx)
	context.AfterFunc(ctx, func() { // or the transport would wait for more for ever
		if conn, err := stream.Conn(); err == nil {
			_ = conn.CloseRequest()
		}
	})
	start := &envdpb.StreamInputRequest_StartEvent{Process: byPID(in.process.pid)}
	err := stream.Send(&envdpb.StreamInputRequest{Event: &envdpb.StreamInputRequest_Start{Start: start}})
	inTime := late.Stop()
	if err == nil && inTime {
		return &inputStream{ClientStreamForClient: stream, cancel: cancel}, nil
	}
	defer cancel()
	if !inTime {
		return nil, fmt.Errorf("open input: %w: not within %s", ErrTimeout, inputOpening)
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		return nil, in.process.sandbox.rpcError(ctx, "open input", err)
	}
	return nil, fmt.Errorf("open input: %w", err)
}

// flush ends the stream and waits until the process has taken all of it. It
// returns an error where some of it may not have arrived.
func (in *input) flush(stream *inputStream) error {
	if stream == nil {
		return nil
	}
	defer stream.cancel()
	_, err := stream.CloseAndReceive()
	return in.process.sandbox.rpcError(in.process.ctx, "stream input", err)
}

// keepAlive shows proxies that an idle stream is in use, and notices when it
// is cut.
func (in *input) keepAlive(stream *inputStream) {
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-in.process.ctx.Done():
			return
		}
		if !in.touch(stream) {
			return
		}
	}
}

// touch sends a sign of life where nothing else was sent. It reports whether
// the stream is still that of the input.
func (in *input) touch(stream *inputStream) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stream != stream {
		return false
	}
	if stream.used {
		stream.used = false
		return true
	}
	alive := &envdpb.StreamInputRequest_Keepalive{Keepalive: &envdpb.StreamInputRequest_KeepAlive{}}
	if stream.Send(&envdpb.StreamInputRequest{Event: alive}) == nil {
		return true
	}
	in.lost = in.broken()
	return false
}

func (in *input) Close() error {
	if in.enabled && !in.closed.Swap(true) {
		in.process.tasks.start(in.finish)
	}
	return nil
}

// finish closes the process's end once all was taken. A Write meanwhile finds the
// input closed, and does not wait for any of this.
func (in *input) finish() {
	in.mu.Lock()
	stream, lost := in.stream, in.lost
	in.stream = nil
	in.mu.Unlock()
	p := in.process
	err := errors.Join(lost, in.flush(stream))
	if p.ctx.Err() != nil {
		return
	}
	logger := p.sandbox.client.cfg.Logger.With("sandbox", p.sandbox.ID(), "pid", p.pid)
	if err != nil {
		logger.Warn("e2b: input of a process may be incomplete", "error", err)
	}
	msg := &envdpb.CloseStdinRequest{Process: byPID(p.pid)}
	if _, err := call(p.ctx, p.sandbox, "close input", p.sandbox.rpc.closeStdin, msg, true); err != nil && p.ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
		logger.Warn("e2b: input of a process could not be closed", "error", err)
	}
}

var _ io.WriteCloser = (*input)(nil)

// inputProbe finds out whether what is written to an open request reaches the
// sandbox at once. A proxy that collects a request until its end would hold
// back input for ever, and no answer would show it.
type inputProbe struct {
	mu      sync.Mutex
	running bool
	passed  bool
	next    time.Time
}

// streamsInput reports whether input streams are known to work. Where that is
// not known and find is set, it starts to find out.
func (s *Sandbox) streamsInput(find bool) bool {
	probe := &s.probe
	probe.mu.Lock()
	defer probe.mu.Unlock()
	if find && !probe.passed && !probe.running && time.Now().After(probe.next) {
		probe.running = true
		s.tasks.start(s.probeInput)
	}
	return probe.passed
}

func (s *Sandbox) probeInput() {
	err := s.echo()
	if err != nil && s.ctx.Err() == nil {
		s.client.cfg.Logger.Warn("e2b: input streams do not work, single calls carry the input", "sandbox", s.ID(), "error", err)
	}
	s.probe.mu.Lock()
	defer s.probe.mu.Unlock()
	s.probe.running, s.probe.passed, s.probe.next = false, err == nil, time.Now().Add(inputRetry)
}

// echo sends a byte through a process that gives it back.
func (s *Sandbox) echo() error {
	ctx, cancel := context.WithTimeout(s.ctx, inputOpening)
	defer cancel()
	p, err := s.Start(ctx, Command{Path: "cat", Stdin: true})
	if err != nil {
		return err
	}
	defer p.Close()
	defer p.kill()
	stream, err := p.stdin.dial()
	if err != nil {
		return err
	}
	defer stream.cancel()
	p.stdin.stream = stream
	if _, err := p.Stdin().Write([]byte{'x'}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { p.Stdout().Close() })()
	if _, err := io.ReadFull(p.Stdout(), make([]byte, 1)); err != nil {
		return fmt.Errorf("nothing came back within %s: %w", inputOpening, err)
	}
	return nil
}
