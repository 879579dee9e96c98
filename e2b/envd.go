package e2b

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// maxMessage bounds a single message of the daemon. The largest are listings,
// which come in one piece.
const maxMessage = 64 << 20

// daemon has a client for each procedure of a sandbox's daemon.
type daemon struct {
	start       *connect.Client[envdpb.StartRequest, envdpb.StartResponse]
	connect     *connect.Client[envdpb.ConnectRequest, envdpb.ConnectResponse]
	list        *connect.Client[envdpb.ListRequest, envdpb.ListResponse]
	streamInput *connect.Client[envdpb.StreamInputRequest, envdpb.StreamInputResponse]
	sendInput   *connect.Client[envdpb.SendInputRequest, envdpb.SendInputResponse]
	closeStdin  *connect.Client[envdpb.CloseStdinRequest, envdpb.CloseStdinResponse]
	sendSignal  *connect.Client[envdpb.SendSignalRequest, envdpb.SendSignalResponse]

	stat     *connect.Client[envdpb.StatRequest, envdpb.StatResponse]
	makeDir  *connect.Client[envdpb.MakeDirRequest, envdpb.MakeDirResponse]
	move     *connect.Client[envdpb.MoveRequest, envdpb.MoveResponse]
	listDir  *connect.Client[envdpb.ListDirRequest, envdpb.ListDirResponse]
	remove   *connect.Client[envdpb.RemoveRequest, envdpb.RemoveResponse]
	watchDir *connect.Client[envdpb.WatchDirRequest, envdpb.WatchDirResponse]
}

func newDaemon(s *Sandbox) daemon {
	streams := &daemonHTTP{sandbox: s, transport: s.client.logged(s.client.streams)}
	calls := &daemonHTTP{sandbox: s, transport: s.client.logged(s.client.files)}
	return daemon{
		start:       procedure[envdpb.StartRequest, envdpb.StartResponse](streams, envdpb.ProcessStart),
		connect:     procedure[envdpb.ConnectRequest, envdpb.ConnectResponse](streams, envdpb.ProcessConnect),
		list:        procedure[envdpb.ListRequest, envdpb.ListResponse](calls, envdpb.ProcessList),
		streamInput: procedure[envdpb.StreamInputRequest, envdpb.StreamInputResponse](streams, envdpb.ProcessStreamInput),
		sendInput:   procedure[envdpb.SendInputRequest, envdpb.SendInputResponse](streams, envdpb.ProcessSendInput),
		closeStdin:  procedure[envdpb.CloseStdinRequest, envdpb.CloseStdinResponse](streams, envdpb.ProcessCloseStdin),
		sendSignal:  procedure[envdpb.SendSignalRequest, envdpb.SendSignalResponse](calls, envdpb.ProcessSendSignal),

		stat:     procedure[envdpb.StatRequest, envdpb.StatResponse](calls, envdpb.FilesystemStat),
		makeDir:  procedure[envdpb.MakeDirRequest, envdpb.MakeDirResponse](calls, envdpb.FilesystemMakeDir),
		move:     procedure[envdpb.MoveRequest, envdpb.MoveResponse](calls, envdpb.FilesystemMove),
		listDir:  procedure[envdpb.ListDirRequest, envdpb.ListDirResponse](calls, envdpb.FilesystemListDir),
		remove:   procedure[envdpb.RemoveRequest, envdpb.RemoveResponse](calls, envdpb.FilesystemRemove),
		watchDir: procedure[envdpb.WatchDirRequest, envdpb.WatchDirResponse](streams, envdpb.FilesystemWatchDir),
	}
}

func procedure[Req, Res any](h *daemonHTTP, path string) *connect.Client[Req, Res] {
	return connect.NewClient[Req, Res](h, h.sandbox.base+path,
		// Otherwise the daemon compresses every message, at a third of the
		// speed.
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(maxMessage),
	)
}

// daemonHTTP sends Connect's requests to a sandbox. Answers in the way of it,
// of the edge or of the daemon's own access check, become errors: Connect
// would keep no more of them than their status.
type daemonHTTP struct {
	sandbox   *Sandbox
	transport http.RoundTripper
}

func (d *daemonHTTP) Do(req *http.Request) (*http.Response, error) {
	d.sandbox.authorize(req.Header)
	req.Header.Set("User-Agent", d.sandbox.client.userAgent())
	resp, err := d.transport.RoundTrip(req)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBytes))
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if isConnectError(body) {
		return resp, nil
	}
	return nil, answerError("", resp)
}

// isConnectError tells a Connect error, whose code is a string, from errors
// with an HTTP status for a code.
func isConnectError(body []byte) bool {
	var answer struct {
		Code string `json:"code"`
	}
	return json.Unmarshal(body, &answer) == nil && answer.Code != ""
}

// call makes a unary call, within the client's time for one. It is repeated
// after a failure in which it cannot have arrived, and one that is safe to
// repeat after any other failure of the network, too.
func call[Req, Res any](ctx context.Context, s *Sandbox, op string, c *connect.Client[Req, Res], msg *Req, safe bool) (*Res, error) {
	limit := s.client.cfg.RequestTimeout
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no answer within %s", ErrTimeout, limit))
	defer cancel()
	for try := 0; ; try++ {
		resp, err := c.CallUnary(limited, connect.NewRequest(msg))
		if err == nil {
			return resp.Msg, nil
		}
		err = rpcError(limited, op, err)
		if try >= s.client.cfg.Retries || !mayRepeat(err, safe) || !pause(limited, try, err) {
			return nil, err
		}
	}
}

// mayRepeat reports whether a call that failed may be made again. One that did
// not get as far as the daemon may be.
func mayRepeat(err error, safe bool) bool {
	var api *APIError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrTimeout):
		return false
	case isDial(err):
		return true
	case errors.As(err, &api):
		return api.RetryAfter > 0 && errors.Is(err, ErrRateLimit) || safe && errors.Is(err, ErrPortClosed)
	default:
		return safe
	}
}

// isDial reports whether there was not even a connection.
func isDial(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// pause waits before another try, longer each time and as long as the answer
// asks for. It reports false when the context ends first.
func pause(ctx context.Context, try int, err error) bool {
	d := min(100*time.Millisecond<<min(try, 10), 5*time.Second)
	d = d/2 + rand.N(d/2)
	var api *APIError
	if errors.As(err, &api) {
		d = max(d, api.RetryAfter)
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// rpcError makes an error of this package of one of Connect's: an [APIError]
// of what the daemon answered, the context's cause, or the network's error.
func rpcError(ctx context.Context, op string, err error) error {
	var connectErr *connect.Error
	switch {
	case err == nil:
		return nil
	case connect.IsWireError(err) && errors.As(err, &connectErr):
		return &APIError{Op: op, Code: connectErr.Code().String(), Message: connectErr.Message(), about: codeAbout(connectErr)}
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	case errors.As(err, &connectErr) && connectErr.Unwrap() != nil:
		err = connectErr.Unwrap() // leaves out Connect's guess at a code
	}
	return fmt.Errorf("%s: %w", op, err)
}

// codeAbout is the sentinel of a Connect error, or nil.
func codeAbout(err *connect.Error) error {
	if strings.Contains(err.Message(), "no space left on device") {
		return ErrDiskFull
	}
	switch err.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return ErrInvalid
	case connect.CodeUnauthenticated:
		return ErrAuthentication
	case connect.CodePermissionDenied:
		return ErrForbidden
	case connect.CodeNotFound:
		return ErrNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		return ErrConflict
	case connect.CodeResourceExhausted:
		return ErrRateLimit
	case connect.CodeDeadlineExceeded:
		return ErrTimeout
	case connect.CodeUnimplemented:
		return ErrUnsupported
	default:
		return nil
	}
}

// fileError makes errors about files that are not there match fs.ErrNotExist,
// too.
func fileError(err error) error {
	if errors.Is(err, ErrNotFound) {
		return &missingError{err}
	}
	return err
}

type missingError struct{ error }

func (e *missingError) Unwrap() error        { return e.error }
func (e *missingError) Is(target error) bool { return target == fs.ErrNotExist }
