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
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/osiris-pipelines/remote/internal/envdpb"
)

// What a message of the daemon may have. A small one can take many times its
// size in memory, so that none is larger than it has to be.
const (
	maxReply     = 64 << 10 // says little more than that it is done
	maxEvent     = 4 << 20  // of a stream; output comes in pieces of 32 KiB
	maxProcesses = 4 << 20  // all of them, with their environments
	maxListing   = 16 << 20 // of a directory, in one piece; some 100 bytes for a file

	// maxItems bounds the processes or files in a message. That is more than
	// fit into a listing with their names and owners.
	maxItems = maxListing / 64
)

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
		start:       procedure[envdpb.StartRequest, envdpb.StartResponse](streams, envdpb.ProcessStart, maxEvent),
		connect:     procedure[envdpb.ConnectRequest, envdpb.ConnectResponse](streams, envdpb.ProcessConnect, maxEvent),
		list:        procedure[envdpb.ListRequest, envdpb.ListResponse](calls, envdpb.ProcessList, maxProcesses, connect.WithCodec(listCodec{})),
		streamInput: procedure[envdpb.StreamInputRequest, envdpb.StreamInputResponse](streams, envdpb.ProcessStreamInput, maxReply),
		sendInput:   procedure[envdpb.SendInputRequest, envdpb.SendInputResponse](streams, envdpb.ProcessSendInput, maxReply),
		closeStdin:  procedure[envdpb.CloseStdinRequest, envdpb.CloseStdinResponse](streams, envdpb.ProcessCloseStdin, maxReply),
		sendSignal:  procedure[envdpb.SendSignalRequest, envdpb.SendSignalResponse](calls, envdpb.ProcessSendSignal, maxReply),

		stat:     procedure[envdpb.StatRequest, envdpb.StatResponse](calls, envdpb.FilesystemStat, maxReply),
		makeDir:  procedure[envdpb.MakeDirRequest, envdpb.MakeDirResponse](calls, envdpb.FilesystemMakeDir, maxReply),
		move:     procedure[envdpb.MoveRequest, envdpb.MoveResponse](calls, envdpb.FilesystemMove, maxReply),
		listDir:  procedure[envdpb.ListDirRequest, envdpb.ListDirResponse](calls, envdpb.FilesystemListDir, maxListing, connect.WithCodec(listCodec{})),
		remove:   procedure[envdpb.RemoveRequest, envdpb.RemoveResponse](calls, envdpb.FilesystemRemove, maxReply),
		watchDir: procedure[envdpb.WatchDirRequest, envdpb.WatchDirResponse](streams, envdpb.FilesystemWatchDir, maxEvent),
	}
}

func procedure[Req, Res any](h *daemonHTTP, path string, maxMessage int, opts ...connect.ClientOption) *connect.Client[Req, Res] {
	opts = append(opts,
		// Otherwise the daemon compresses every message, at a third of the
		// speed.
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(maxMessage),
	)
	return connect.NewClient[Req, Res](h, h.sandbox.base+path, opts...)
}

// listCodec is the codec of messages that are lists. It counts their items
// before it makes anything of them: an empty one has two bytes, and takes some
// two hundred in memory.
type listCodec struct{}

func (listCodec) Name() string { return "proto" }

func (listCodec) Marshal(msg any) ([]byte, error) { return proto.Marshal(msg.(proto.Message)) }

func (listCodec) Unmarshal(b []byte, msg any) error {
	items := 0
	for rest := b; len(rest) > 0; items++ {
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return protowire.ParseError(n)
		}
		rest = rest[n:]
	}
	if items > maxItems {
		return fmt.Errorf("the list has %d items, more than %d", items, maxItems)
	}
	return proto.Unmarshal(b, msg.(proto.Message))
}

// daemonHTTP sends Connect's requests to a sandbox. Answers in the way of it,
// of the edge or of the daemon's own access check, become errors: Connect
// would keep no more of them than their status.
type daemonHTTP struct {
	sandbox   *Sandbox
	transport http.RoundTripper
}

func (d *daemonHTTP) Do(req *http.Request) (*http.Response, error) {
	if err := d.sandbox.placed(); err != nil {
		return nil, err
	}
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
	err = answerError("", resp)
	if errors.Is(err, ErrSandboxGone) {
		d.sandbox.client.admission.ended(d.sandbox.ID())
	}
	return nil, err
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
		err = s.rpcError(limited, op, err)
		if try >= s.client.cfg.Retries || !mayRepeat(err, safe) || !s.client.pause(limited, op, try, err) {
			return nil, err
		}
	}
}

// mayRepeat reports whether a call that failed may be made again. One that did
// not get as far as the daemon may be.
func mayRepeat(err error, safe bool) bool {
	var api *APIError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &api):
		return api.RetryAfter > 0 && errors.Is(err, ErrRateLimit) || safe && isPassing(api)
	case errors.Is(err, ErrTimeout), errors.Is(err, ErrInvalid): // our own words
		return false
	case isDial(err):
		return true
	default:
		return safe
	}
}

// isPassing reports whether an answer of what stands in front of a sandbox may
// be another one soon.
func isPassing(e *APIError) bool {
	switch e.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return !errors.Is(e, ErrSandboxGone)
	}
	return false
}

// isDial reports whether there was not even a connection.
func isDial(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// pause waits before another try, and tells of it. It reports false, at once where that is
// known, when the wait is longer than the context lives or than
// Config.RequestTimeout.
func (c *Client) pause(ctx context.Context, op string, try int, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	d := waitBefore(try, err)
	if end, ok := ctx.Deadline(); d > c.cfg.RequestTimeout || ok && time.Until(end) < d {
		return false
	}
	traceRetry(ctx, Retry{Op: op, Attempt: try + 2, Reason: err, Wait: d})
	return sleep(ctx, d)
}

// waitBefore is how long to wait before another try: longer each time, and as
// long as the answer asks for.
func waitBefore(try int, err error) time.Duration {
	d := min(retryWaitMin<<min(try, 10), retryWaitMax)
	d = d/2 + rand.N(d/2)
	var api *APIError
	if errors.As(err, &api) {
		d = max(d, api.RetryAfter)
	}
	return d
}

// rpcError makes an error of this package of one of Connect's: an [APIError]
// of what the daemon answered, the context's cause, or the network's error.
func (s *Sandbox) rpcError(ctx context.Context, op string, err error) error {
	var connectErr *connect.Error
	switch {
	case err == nil:
		return nil
	case connect.IsWireError(err) && errors.As(err, &connectErr):
		return s.connectError(op, connectErr)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	case errors.As(err, &connectErr) && connectErr.Unwrap() != nil:
		err = connectErr.Unwrap() // leaves out Connect's guess at a code
		if refused := (*APIError)(nil); errors.As(err, &refused) {
			refused.Op = op
			return err
		}
		text := s.clean(err.Error()) // it may quote headers
		if isDial(err) {
			text += networkHint(true)
		}
		err = &quoted{text, err}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// connectError makes an error of one that the daemon has sent.
func (s *Sandbox) connectError(op string, err *connect.Error) *APIError {
	e := &APIError{Op: op, Code: err.Code().String(), Message: s.clean(err.Message()), about: codeAbout(err)}
	if err.Code() == connect.CodeUnauthenticated && strings.HasPrefix(e.Message, "invalid username") {
		e.about, e.fix = ErrInvalid, "check Command.User"
	}
	return e
}

// clean makes the daemon's words fit for an error.
func (s *Sandbox) clean(text string) string {
	h := make(http.Header)
	s.authorize(h)
	return clip(string(withoutSecrets([]byte(text), h)))
}

// quoted is an error with a text that is fit for an error.
type quoted struct {
	text string
	err  error
}

func (q *quoted) Error() string { return q.text }
func (q *quoted) Unwrap() error { return q.err }

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
