package envd

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

func (d *Daemon) start(ctx context.Context, req *connect.Request[envdpb.StartRequest], stream *connect.ServerStream[envdpb.StartResponse]) error {
	u, err := d.user(ctx)
	if err != nil {
		return err
	}
	timeout, err := timeoutOf(req.Header())
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	cmd, err := d.command(req.Msg, u)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	started, err := d.machine.Start(cmd)
	if err != nil {
		return rpcError(connect.CodeInvalidArgument, "start process: %w", err)
	}
	p := newProcess(started, req.Msg)
	sub := p.out.subscribe() // before anything is read, so that nothing is lost
	defer p.out.unsubscribe(sub)
	open := d.register(p)
	p.supervise(&d.wg, timeout, func() { d.retire(p) })
	if !open {
		p.abandon()
	}
	return p.relay(ctx, sub, func() keepalive { return newKeepalive(req.Header()) }, func(ev *envdpb.ProcessEvent) error {
		return stream.Send(&envdpb.StartResponse{Event: ev})
	})
}

// timeoutOf returns how long a process may run. Zero is for ever, be it because
// nothing or because zero was asked for: the latter ends the stream, not the
// process.
func timeoutOf(h http.Header) (time.Duration, error) {
	s := h.Get("Connect-Timeout-Ms")
	if s == "" {
		return 0, nil
	}
	ms, err := strconv.Atoi(s)
	return time.Duration(ms) * time.Millisecond, err
}

// searchPath is the PATH of processes whose variables have none.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (d *Daemon) command(req *envdpb.StartRequest, u User) (Command, error) {
	dir, err := d.resolve(req.GetProcess().GetCwd(), u)
	if err != nil {
		return Command{}, err
	}
	if _, err := d.stat(dir); errors.Is(err, fs.ErrNotExist) {
		return Command{}, errors.New("cwd '" + dir + "' does not exist")
	}
	cmd := Command{
		Path:  req.GetProcess().GetCmd(),
		Args:  req.GetProcess().GetArgs(),
		Env:   d.environ(u, req.GetProcess().GetEnvs()),
		Dir:   path.Clean(dir),
		User:  u,
		Stdin: req.GetPty() != nil || req.Stdin == nil || req.GetStdin(),
	}
	if pty := req.GetPty(); pty != nil {
		cmd.PTY = sizeOf(pty)
	}
	return cmd, nil
}

func sizeOf(pty *envdpb.PTY) *Size {
	return &Size{Cols: uint16(pty.GetSize().GetCols()), Rows: uint16(pty.GetSize().GetRows())}
}

// environ returns all variables of a process: those of the user, then the
// global ones, then its own.
func (d *Daemon) environ(u User, own map[string]string) []string {
	env := map[string]string{"PATH": searchPath, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name}
	maps.Copy(env, d.current().env)
	maps.Copy(env, own)
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

func (d *Daemon) connect(ctx context.Context, req *connect.Request[envdpb.ConnectRequest], stream *connect.ServerStream[envdpb.ConnectResponse]) error {
	send := func(ev *envdpb.ProcessEvent) error { return stream.Send(&envdpb.ConnectResponse{Event: ev}) }
	p, err := d.lookup(req.Msg.GetProcess())
	if err != nil {
		e, ok := d.exited(req.Msg.GetProcess())
		if !ok {
			return err
		}
		if err := send(startEvent(e.pid)); err != nil {
			return err
		}
		return send(&envdpb.ProcessEvent{Event: &envdpb.ProcessEvent_End{End: e.end}})
	}
	sub := p.out.subscribe()
	defer p.out.unsubscribe(sub)
	return p.relay(ctx, sub, func() keepalive { return newKeepalive(req.Header()) }, send)
}

// lookup finds a living process. By tag it has the fault of the daemon: it
// gives up at the first process that has another tag, and the order in which
// it looks is nobody's choice. Processes without a tag do not matter.
func (d *Daemon) lookup(sel *envdpb.ProcessSelector) (*process, error) {
	switch s := sel.GetSelector().(type) {
	case *envdpb.ProcessSelector_Pid:
		if p, ok := d.processes.Load(s.Pid); ok {
			return p.(*process), nil
		}
		return nil, rpcError(connect.CodeNotFound, "process with pid %d not found", s.Pid)
	case *envdpb.ProcessSelector_Tag:
		if p := d.tagged(s.Tag); p != nil {
			return p, nil
		}
		return nil, rpcError(connect.CodeNotFound, "process with tag %s not found", s.Tag)
	}
	return nil, rpcError(connect.CodeUnimplemented, "the selector of the process is empty")
}

func (d *Daemon) tagged(tag string) (found *process) {
	d.processes.Range(func(_, v any) bool {
		p := v.(*process)
		if p.tag == nil {
			return true
		}
		if *p.tag != tag {
			return false
		}
		found = p
		return true
	})
	return found
}

func (d *Daemon) list(context.Context, *envdpb.ListRequest) (*envdpb.ListResponse, error) {
	res := &envdpb.ListResponse{}
	d.processes.Range(func(_, v any) bool {
		p := v.(*process)
		res.Processes = append(res.Processes, &envdpb.ProcessInfo{Config: p.config, Pid: p.pid, Tag: p.tag})
		return true
	})
	return res, nil
}

func (d *Daemon) update(_ context.Context, req *envdpb.UpdateRequest) (*envdpb.UpdateResponse, error) {
	p, err := d.lookup(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if pty := req.GetPty(); pty != nil {
		if err := p.resize(*sizeOf(pty)); err != nil {
			return nil, rpcError(connect.CodeInternal, "resize: %w", err)
		}
	}
	return &envdpb.UpdateResponse{}, nil
}

func (p *process) resize(s Size) error {
	if !p.pty {
		return errNoTerminal
	}
	return p.Resize(s)
}

// input writes to a process. It takes as long as the process takes to read.
func (d *Daemon) input(ctx context.Context, p *process, in *envdpb.ProcessInput) error {
	var write func() error
	switch in := in.GetInput().(type) {
	case *envdpb.ProcessInput_Stdin:
		write = func() error { return p.writeStdin(in.Stdin) }
	case *envdpb.ProcessInput_Pty:
		write = func() error { return p.writeTerminal(in.Pty) }
	default:
		return rpcError(connect.CodeUnimplemented, "there is no input")
	}
	if err := d.outlive(ctx, write); err != nil {
		return rpcError(connect.CodeInternal, "write to process: %w", err)
	}
	return nil
}

func (d *Daemon) sendInput(ctx context.Context, req *envdpb.SendInputRequest) (*envdpb.SendInputResponse, error) {
	p, err := d.lookup(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := d.input(ctx, p, req.GetInput()); err != nil {
		return nil, err
	}
	return &envdpb.SendInputResponse{}, nil
}

func (d *Daemon) streamInput(ctx context.Context, stream *connect.ClientStream[envdpb.StreamInputRequest]) (*envdpb.StreamInputResponse, error) {
	var p *process
	for stream.Receive() {
		var err error
		switch ev := stream.Msg().GetEvent().(type) {
		case *envdpb.StreamInputRequest_Start:
			p, err = d.lookup(ev.Start.GetProcess())
		case *envdpb.StreamInputRequest_Data:
			if p == nil {
				panic(http.ErrAbortHandler) // the daemon dereferences nil
			}
			err = d.input(ctx, p, ev.Data.GetInput())
		case *envdpb.StreamInputRequest_Keepalive:
		default:
			err = rpcError(connect.CodeUnimplemented, "the event is empty")
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, rpcError(connect.CodeUnknown, "read input: %w", err)
	}
	return &envdpb.StreamInputResponse{}, nil
}

func (d *Daemon) closeStdin(ctx context.Context, req *envdpb.CloseStdinRequest) (*envdpb.CloseStdinResponse, error) {
	p, err := d.lookup(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := d.outlive(ctx, p.closeStdin); err != nil {
		return nil, rpcError(connect.CodeUnknown, "close stdin: %w", err)
	}
	return &envdpb.CloseStdinResponse{}, nil
}

func (d *Daemon) sendSignal(_ context.Context, req *envdpb.SendSignalRequest) (*envdpb.SendSignalResponse, error) {
	p, err := d.lookup(req.GetProcess())
	if err != nil {
		return nil, err
	}
	var sig syscall.Signal
	switch req.GetSignal() {
	case envdpb.Signal_SIGNAL_SIGKILL:
		sig = syscall.SIGKILL
	case envdpb.Signal_SIGNAL_SIGTERM:
		sig = syscall.SIGTERM
	default:
		return nil, rpcError(connect.CodeUnimplemented, "signal %s is not known", req.GetSignal())
	}
	if err := p.kill(sig); err != nil {
		return nil, rpcError(connect.CodeInternal, "send signal: %w", err)
	}
	return &envdpb.SendSignalResponse{}, nil
}
