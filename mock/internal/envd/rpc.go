package envd

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// procedures returns the handlers of all procedures by their paths.
func (d *Daemon) procedures() map[string]http.Handler {
	legacy := connect.WithInterceptors(oldClients{})
	return map[string]http.Handler{
		envdpb.ProcessList:        connect.NewUnaryHandlerSimple(envdpb.ProcessList, d.list),
		envdpb.ProcessConnect:     connect.NewServerStreamHandler(envdpb.ProcessConnect, d.connect),
		envdpb.ProcessStart:       connect.NewServerStreamHandler(envdpb.ProcessStart, d.start),
		envdpb.ProcessUpdate:      connect.NewUnaryHandlerSimple(envdpb.ProcessUpdate, d.update),
		envdpb.ProcessStreamInput: connect.NewClientStreamHandlerSimple(envdpb.ProcessStreamInput, d.streamInput),
		envdpb.ProcessSendInput:   connect.NewUnaryHandlerSimple(envdpb.ProcessSendInput, d.sendInput),
		envdpb.ProcessSendSignal:  connect.NewUnaryHandlerSimple(envdpb.ProcessSendSignal, d.sendSignal),
		envdpb.ProcessCloseStdin:  connect.NewUnaryHandlerSimple(envdpb.ProcessCloseStdin, d.closeStdin),

		envdpb.FilesystemStat:             connect.NewUnaryHandlerSimple(envdpb.FilesystemStat, d.statFile, legacy),
		envdpb.FilesystemMakeDir:          connect.NewUnaryHandlerSimple(envdpb.FilesystemMakeDir, d.makeDir, legacy),
		envdpb.FilesystemMove:             connect.NewUnaryHandlerSimple(envdpb.FilesystemMove, d.move, legacy),
		envdpb.FilesystemListDir:          connect.NewUnaryHandlerSimple(envdpb.FilesystemListDir, d.listDir, legacy),
		envdpb.FilesystemRemove:           connect.NewUnaryHandlerSimple(envdpb.FilesystemRemove, d.remove, legacy),
		envdpb.FilesystemWatchDir:         connect.NewServerStreamHandler(envdpb.FilesystemWatchDir, d.watchDir, legacy),
		envdpb.FilesystemCreateWatcher:    connect.NewUnaryHandlerSimple(envdpb.FilesystemCreateWatcher, d.createWatcher, legacy),
		envdpb.FilesystemGetWatcherEvents: connect.NewUnaryHandlerSimple(envdpb.FilesystemGetWatcherEvents, d.watcherEvents, legacy),
		envdpb.FilesystemRemoveWatcher:    connect.NewUnaryHandlerSimple(envdpb.FilesystemRemoveWatcher, d.removeWatcher, legacy),
	}
}

// rpcError makes the error of a procedure.
func rpcError(code connect.Code, format string, args ...any) error {
	return connect.NewError(code, fmt.Errorf(format, args...))
}

// defaultKeepalive is how long a stream is silent at most.
const defaultKeepalive = 90 * time.Second

// keepalive ticks when a stream was silent for too long.
type keepalive struct {
	*time.Ticker
	interval time.Duration
}

// newKeepalive starts a ticker as the headers of a request want it. Where they
// ask for no time at all, or less, the real daemon dies; here only the
// connection does.
func newKeepalive(h http.Header) keepalive {
	interval := defaultKeepalive
	if n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval")); err == nil {
		interval = time.Duration(n) * time.Second
	}
	if interval <= 0 {
		panic(http.ErrAbortHandler)
	}
	return keepalive{time.NewTicker(interval), interval}
}

func (k keepalive) restart() { k.Reset(k.interval) }

// oldClients leaves out of the answers about files what one old client, known
// by its name, cannot read.
type oldClients struct{}

func isOld(request, response http.Header) bool {
	if request.Get("User-Agent") != "connect-python" {
		return false
	}
	response.Set("X-E2B-Legacy-SDK", "true")
	return true
}

// WrapUnary implements connect.Interceptor.
func (oldClients) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err == nil && isOld(req.Header(), res.Header()) {
			strip(res.Any())
		}
		return res, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (oldClients) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (oldClients) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if isOld(conn.RequestHeader(), conn.ResponseHeader()) {
			conn = strippedConn{conn}
		}
		return next(ctx, conn)
	}
}

type strippedConn struct{ connect.StreamingHandlerConn }

func (c strippedConn) Send(msg any) error {
	strip(msg)
	return c.StreamingHandlerConn.Send(msg)
}

// strip removes the newer fields from an answer.
func strip(msg any) {
	switch m := msg.(type) {
	case *envdpb.StatResponse:
		m.Entry = stripped(m.Entry)
	case *envdpb.MakeDirResponse:
		m.Entry = stripped(m.Entry)
	case *envdpb.MoveResponse:
		m.Entry = stripped(m.Entry)
	case *envdpb.ListDirResponse:
		for i, e := range m.Entries {
			m.Entries[i] = stripped(e)
		}
	case *envdpb.WatchDirResponse:
		if ev := m.GetFilesystem(); ev != nil {
			ev.Entry = nil
		}
	case *envdpb.GetWatcherEventsResponse:
		for _, ev := range m.Events {
			ev.Entry = nil
		}
	}
}

func stripped(e *envdpb.EntryInfo) *envdpb.EntryInfo {
	return &envdpb.EntryInfo{Name: e.GetName(), Type: e.GetType(), Path: e.GetPath()}
}
