package mock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Plane is a part of E2B's API.
type Plane string

// The planes.
const (
	ControlPlane Plane = "control" // makes and ends sandboxes
	Edge         Plane = "edge"    // leads into a sandbox
)

// HTTPRequest is a request to a [Server]. A [WithFault] function sees it
// without what is known only in the end.
type HTTPRequest struct {
	Seq       int // from 1, in the order in which they came
	Time      time.Time
	Method    string
	Path      string
	Query     string
	Plane     Plane
	Sandbox   string // ID; of a request that made one: known in the end
	Port      int    // of the sandbox, at the edge
	Procedure string // at the edge as "process.Process/Start" or "GET /files", else as "POST /sandboxes/{sandboxID}/timeout"

	// Known in the end.
	Status   int   // zero when there was none; what the handler said, also when a fault kept it back
	BytesIn  int64 // of the body that were read
	BytesOut int64 // of the body that were sent
}

// HTTPFault is how a request to a [Server] fails. Zero fields do nothing. All
// that is held up goes on, or ends, when the server is closed.
type HTTPFault struct {
	// Delay holds the request up before it is handled.
	Delay time.Duration

	// Status answers in place of whoever would handle the request, with Header
	// and Body.
	Status int
	Header http.Header
	Body   string

	// CutRequest resets the connection when so many bytes of the request's
	// body were read. With 0 the request is not handled.
	CutRequest *int64

	// CutResponse resets the connection when so many bytes of the response's
	// body were sent. With 0 there is no status either.
	CutResponse *int64

	// Stall sends nothing more when so many bytes of the response's body were
	// sent, and leaves the connection open, as when the network is gone, until
	// [Server.CutConnections] or the client ends it.
	Stall *int64

	// LoseAnswer handles the request and then resets the connection in place
	// of an answer. A stream is handled only when it has ended; to lose its
	// beginning use CutResponse with 0.
	LoseAnswer bool

	// Late reads the request, resets the connection, and only then, after
	// Delay, handles it.
	Late bool

	// BufferBody reads all of the request's body before it is handled, as some
	// proxies do.
	BufferBody bool
}

// requestLogSize bounds the memory of a log.
const requestLogSize = 10_000

// requestLog is the last requests.
type requestLog struct {
	mu      sync.Mutex
	count   int
	entries []*HTTPRequest // a ring once it is full
}

func (l *requestLog) add(seen HTTPRequest) *HTTPRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen.Seq = l.count + 1
	if len(l.entries) < requestLogSize {
		l.entries = append(l.entries, &seen)
	} else {
		l.entries[l.count%requestLogSize] = &seen
	}
	l.count++
	return &seen
}

func (l *requestLog) list() []HTTPRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := 0
	if l.count > requestLogSize {
		oldest = l.count % requestLogSize
	}
	list := make([]HTTPRequest, 0, len(l.entries))
	for k := range l.entries {
		list = append(list, *l.entries[(oldest+k)%len(l.entries)])
	}
	return list
}

// errCut ends reads and writes on a connection that a fault has cut.
var errCut = errors.New("the connection was cut")

// exchange is a request and its response, with their fault. It is the
// handler's response writer.
type exchange struct {
	http.ResponseWriter
	request *http.Request
	server  *Server
	conn    *conn
	fault   HTTPFault
	entry   *HTTPRequest // changed by update alone

	mute  bool // nothing is sent
	wrote bool // the header
	sent  int64
}

// exchangeKey finds the exchange in a request's context.
type exchangeKey struct{}

func (s *Server) newExchange(w http.ResponseWriter, r *http.Request, seen HTTPRequest) *exchange {
	x := &exchange{ResponseWriter: w, server: s, entry: s.requests.add(seen)}
	x.conn, _ = r.Context().Value(connKey{}).(*conn)
	x.request = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	if s.opts.fault != nil {
		seen.Seq = x.entry.Seq // which nobody changes
		if f := s.opts.fault(seen); f != nil {
			x.fault = *f
		}
	}
	return x
}

// update changes the recorded request.
func (x *exchange) update(f func(*HTTPRequest)) {
	x.server.requests.mu.Lock()
	defer x.server.requests.mu.Unlock()
	f(x.entry)
}

func (x *exchange) serve(handler http.Handler) {
	if cut := x.fault.CutRequest; cut != nil && *cut <= 0 {
		x.abort()
	}
	x.request.Body = &countedBody{ReadCloser: x.request.Body, x: x}
	if x.fault.BufferBody || x.fault.Late {
		x.buffer()
	}
	if x.fault.Late {
		x.conn.reset()
		x.mute = true
		// Nothing of the client's holds for what comes now.
		detached := context.WithoutCancel(x.request.Context())
		ctx, cancel := context.WithCancel(detached)
		defer cancel()
		defer context.AfterFunc(x.server.ctx, cancel)()
		x.request = x.request.WithContext(ctx)
	}
	x.mute = x.mute || x.fault.LoseAnswer
	if !x.wait() {
		x.abort()
	}
	if x.fault.Status != 0 {
		handler = x.fault
	}
	handler.ServeHTTP(x, x.request)
	if !x.wrote {
		x.WriteHeader(http.StatusOK)
	}
	if x.mute {
		x.abort()
	}
}

// abort ends the exchange, and its goroutine's handler, by a reset.
func (x *exchange) abort() {
	x.conn.reset()
	panic(http.ErrAbortHandler)
}

// buffer reads the whole body.
func (x *exchange) buffer() {
	body, err := io.ReadAll(x.request.Body)
	if err != nil {
		x.abort()
	}
	x.request.Body = io.NopCloser(bytes.NewReader(body))
}

// wait holds the request up, and reports whether it is to be handled.
func (x *exchange) wait() bool {
	if x.fault.Delay <= 0 {
		return true
	}
	timer := time.NewTimer(x.fault.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.request.Context().Done():
	case <-x.server.ctx.Done():
	}
	return false
}

// ServeHTTP answers in place of a handler.
func (f HTTPFault) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	for name, values := range f.Header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	w.WriteHeader(f.Status)
	io.WriteString(w, f.Body)
}

// Unwrap serves http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if status < 200 {
		if !x.mute {
			x.ResponseWriter.WriteHeader(status)
		}
		return
	}
	if x.wrote {
		return
	}
	x.wrote = true
	x.update(func(e *HTTPRequest) { e.Status = status })
	if !x.mute && x.due(0) == nil {
		x.ResponseWriter.WriteHeader(status)
	}
}

// due strikes if a fault is due after so many bytes sent.
func (x *exchange) due(sent int64) error {
	if cut := x.fault.CutResponse; cut != nil && sent >= *cut {
		x.conn.reset()
		return errCut
	}
	if stall := x.fault.Stall; stall != nil && sent >= *stall {
		x.stall()
		return errCut
	}
	return nil
}

// stall waits for the end of the connection.
func (x *exchange) stall() {
	select {
	case <-x.conn.closed:
	case <-x.request.Context().Done():
	case <-x.server.ctx.Done():
	}
	x.conn.reset()
}

// room returns how many of n bytes may be sent before a fault is due.
func (x *exchange) room(n int) int {
	room := int64(n)
	for _, limit := range []*int64{x.fault.CutResponse, x.fault.Stall} {
		if limit != nil {
			room = min(room, max(0, *limit-x.sent))
		}
	}
	return int(room)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(b []byte) (int, error) {
	if !x.wrote {
		x.WriteHeader(http.StatusOK)
	}
	if x.mute {
		return len(b), nil
	}
	n, err := x.ResponseWriter.Write(b[:x.room(len(b))])
	x.sent += int64(n)
	x.update(func(e *HTTPRequest) { e.BytesOut = x.sent })
	if err == nil && (x.fault.CutResponse != nil || x.fault.Stall != nil) {
		x.Flush()
		err = x.due(x.sent)
	}
	return n, err
}

// Flush implements http.Flusher.
func (x *exchange) Flush() {
	if !x.mute {
		_ = http.NewResponseController(x.ResponseWriter).Flush()
	}
}

// countedBody counts the bytes of a request's body, up to the fault.
type countedBody struct {
	io.ReadCloser
	x    *exchange
	read int64
}

func (c *countedBody) Read(b []byte) (int, error) {
	cut := c.x.fault.CutRequest
	if cut != nil {
		if c.read >= *cut {
			return 0, errCut
		}
		b = b[:min(int64(len(b)), *cut-c.read)]
	}
	n, err := c.ReadCloser.Read(b)
	c.read += int64(n)
	c.x.update(func(e *HTTPRequest) { e.BytesIn = c.read })
	if cut != nil && c.read >= *cut {
		c.x.conn.reset()
	}
	return n, err
}
