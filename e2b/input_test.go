package e2b

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// inputDaemon has one process, and keeps the input it gets. Its first streams
// are cut when they have brought as many messages as cuts says, the last of
// them without having been taken.
type inputDaemon struct {
	script
	cuts  []int
	ended chan struct{} // ends the process

	hold chan struct{} // not nil: the end of input is answered when it is closed

	mu     sync.Mutex
	log    []string
	closed chan struct{}
}

func newInputDaemon(cuts ...int) *inputDaemon {
	d := &inputDaemon{cuts: cuts, ended: make(chan struct{}), closed: make(chan struct{})}
	d.start = func(_ http.Header, req *envdpb.StartRequest, send func(*envdpb.ProcessEvent)) error {
		if req.GetProcess().GetCmd() == "cat" { // no test of input streams here
			return connect.NewError(connect.CodeInvalidArgument, errors.New("there is no cat"))
		}
		send(startEvent())
		<-d.ended
		send(endEvent(0))
		return nil
	}
	return d
}

func (d *inputDaemon) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, what)
}

func (d *inputDaemon) seen() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.log...)
}

func (d *inputDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.Handle("/", &d.script)
	mux.Handle(envdpb.ProcessStreamInput, connect.NewClientStreamHandler(envdpb.ProcessStreamInput,
		func(_ context.Context, stream *connect.ClientStream[envdpb.StreamInputRequest]) (*connect.Response[envdpb.StreamInputResponse], error) {
			d.mu.Lock()
			cut := -1
			if len(d.cuts) > 0 {
				cut, d.cuts = d.cuts[0], d.cuts[1:]
			}
			d.mu.Unlock()
			for n := 0; stream.Receive(); n++ {
				if n == cut {
					// Or the server would read on before it cuts.
					http.NewResponseController(w).SetReadDeadline(time.Now())
					panic(http.ErrAbortHandler)
				}
				if data := stream.Msg().GetData(); data != nil {
					d.note("stream " + string(data.GetInput().GetStdin()))
				}
			}
			return connect.NewResponse(&envdpb.StreamInputResponse{}), stream.Err()
		}))
	handle(mux, envdpb.ProcessSendInput, func(req *envdpb.SendInputRequest) (*envdpb.SendInputResponse, error) {
		d.note("send " + string(req.GetInput().GetStdin()))
		return &envdpb.SendInputResponse{}, nil
	})
	handle(mux, envdpb.ProcessCloseStdin, func(*envdpb.CloseStdinRequest) (*envdpb.CloseStdinResponse, error) {
		d.note("close")
		close(d.closed)
		if d.hold != nil {
			<-d.hold
		}
		return &envdpb.CloseStdinResponse{}, nil
	})
	mux.ServeHTTP(w, r)
}

// process starts the daemon's process. streams says that input streams are
// known to work.
func (d *inputDaemon) process(t *testing.T, streams bool) *Process {
	t.Helper()
	s := sandboxOf(t, d)
	s.probe.passed = streams
	p, err := s.Start(within(t), Command{Path: "x", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, p *Process, s string) {
	t.Helper()
	if n, err := io.WriteString(p.Stdin(), s); n != len(s) || err != nil {
		t.Errorf("Write(%q): %d, %v", s, n, err)
	}
}

func TestInputOrder(t *testing.T) {
	for _, test := range []struct {
		streams bool
		want    []string
	}{
		{true, []string{"stream a", "stream b", "stream c", "close"}},
		{false, []string{"send a", "send b", "send c", "close"}}, // there is no cat to try with
	} {
		d := newInputDaemon()
		p := d.process(t, test.streams)
		for _, s := range []string{"a", "b", "", "c"} {
			write(t, p, s)
		}
		if err := p.Stdin().Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if _, err := p.Stdin().Write([]byte("late")); err == nil {
			t.Error("Write after Close succeeds")
		}
		<-d.closed
		if diff := cmp.Diff(test.want, d.seen()); diff != "" {
			t.Errorf("input (-want +got):\n%s", diff)
		}
		close(d.ended)
		if _, err := p.Wait(within(t)); err != nil {
			t.Errorf("Wait: %v", err)
		}
	}
}

func TestInputLong(t *testing.T) {
	d := newInputDaemon()
	defer close(d.ended)
	p := d.process(t, true)
	long := bytes.Repeat([]byte("0123456789abcdef"), (2*maxInput+16)/16)
	write(t, p, string(long))
	p.Stdin().Close()
	<-d.closed
	var sizes []int
	for _, s := range d.seen() {
		sizes = append(sizes, len(s)-len("stream "))
	}
	if diff := cmp.Diff([]int{maxInput, maxInput, 16, -2}, sizes); diff != "" {
		t.Errorf("sizes of the messages (-want +got):\n%s", diff)
	}
}

// TestInputCut cuts the stream. A write must fail, and the one after it go
// over a new stream; nothing may be sent twice.
func TestInputCut(t *testing.T) {
	d := newInputDaemon(2) // the process and "a" arrive, the next does not
	defer close(d.ended)
	p := d.process(t, true)
	write(t, p, "a")
	until(t, "a arrives", func() bool { return len(d.seen()) == 1 })
	until(t, "Write fails after the cut", func() bool {
		_, err := p.Stdin().Write([]byte("x"))
		return err != nil
	})
	write(t, p, "b")
	p.Stdin().Close()
	<-d.closed
	if diff := cmp.Diff([]string{"stream a", "stream b", "close"}, d.seen()); diff != "" {
		t.Errorf("input (-want +got):\n%s", diff)
	}
}

// TestInputKeepAlive lets the sign of life find out about a cut.
func TestInputKeepAlive(t *testing.T) {
	d := newInputDaemon(3)
	defer close(d.ended)
	p := d.process(t, true)
	write(t, p, "a")
	in := &p.stdin
	stream := in.stream
	for range 2 { // the first finds that something was written, the second sends
		if !in.touch(stream) {
			t.Fatal("the stream is broken")
		}
	}
	until(t, "the cut is noticed", func() bool { return !in.touch(stream) })
	if _, err := p.Stdin().Write([]byte("lost")); err == nil {
		t.Error("the Write after the cut succeeds, though what was written before may be lost")
	}
	write(t, p, "b")
	p.Stdin().Close()
	<-d.closed
	if diff := cmp.Diff([]string{"stream a", "stream b", "close"}, d.seen()); diff != "" {
		t.Errorf("input (-want +got):\n%s", diff)
	}
}

func TestInputBlocked(t *testing.T) {
	for _, end := range []struct {
		name string
		by   func(p *Process)
	}{
		{"Signal", func(p *Process) { p.Signal(context.Background(), SignalKill) }},
		{"Close", func(p *Process) { p.Close() }},
	} {
		t.Run(end.name, func(t *testing.T) {
			s := realSandbox(t)
			p, err := s.Start(within(t), Command{Path: "sleep", Args: []string{"1000"}, Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Signal(within(t), p.PID(), SignalKill)
			failed := make(chan error)
			go func() {
				for {
					if _, err := p.Stdin().Write(make([]byte, maxInput)); err != nil {
						failed <- err
						return
					}
				}
			}()
			end.by(p)
			select {
			case <-failed:
			case <-within(t).Done():
				t.Error("Write still waits")
			}
		})
	}
}

// TestInputClosed has a daemon that takes its time to end the input: who writes
// meanwhile is refused, and does not wait.
func TestInputClosed(t *testing.T) {
	for _, streams := range []bool{true, false} {
		d := newInputDaemon()
		d.hold = make(chan struct{})
		p := d.process(t, streams)
		write(t, p, "a")
		p.Stdin().Close()
		<-d.closed
		refused := make(chan error, 1)
		go func() {
			_, err := p.Stdin().Write([]byte("b"))
			refused <- err
		}()
		select {
		case err := <-refused:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("streams %v: %v", streams, err)
			}
		case <-within(t).Done():
			t.Errorf("streams %v: Write waits for the end of the input", streams)
		}
		close(d.hold)
		close(d.ended)
	}
}

// TestInputFirst checks that nothing is tried out while a process waits for its
// first message.
func TestInputFirst(t *testing.T) {
	d := newInputDaemon()
	p := d.process(t, false)
	tried := func() bool {
		probe := &p.sandbox.probe
		probe.mu.Lock()
		defer probe.mu.Unlock()
		return probe.running || !probe.next.IsZero()
	}
	write(t, p, "a")
	if tried() {
		t.Error("the first message begins a test of input streams")
	}
	write(t, p, "b")
	if !tried() {
		t.Error("the second message begins no test of input streams")
	}
	close(d.ended)
	if _, err := p.Wait(within(t)); err != nil {
		t.Error(err)
	}
}

// TestInputProbe checks that streams are used once they are known to work, and
// that the order stays when that changes.
func TestInputProbe(t *testing.T) {
	s := realSandbox(t)
	p, err := s.Start(within(t), Command{Path: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		out, _ := io.ReadAll(p.Stdout())
		got <- out
	}()
	var sent bytes.Buffer
	until(t, "the input goes over a stream", func() bool {
		line := []byte{byte('a' + sent.Len()%26)}
		sent.Write(line)
		write(t, p, string(line))
		return p.stdin.stream != nil
	})
	write(t, p, "end")
	sent.WriteString("end")
	p.Stdin().Close()
	if out := <-got; !bytes.Equal(out, sent.Bytes()) {
		t.Errorf("%q comes back as %q", sent.Bytes(), out)
	}
	if status, err := p.Wait(within(t)); status != (ExitStatus{}) || err != nil {
		t.Errorf("Wait: %v, %v", status, err)
	}
}
