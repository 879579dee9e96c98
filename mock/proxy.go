package mock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	// proxyBuffer is what a direction of a connection holds while it flows.
	proxyBuffer = 64 << 10
	// frozenBuffer is what one holds that is frozen.
	frozenBuffer = 16 << 20
)

// Proxy passes TCP connections of the loopback interface on, and does to them
// what a network does: cuts, freezes, slows, delays or refuses them, by a
// [Script] or on demand. In front of a [Server] it makes a client's connections
// fail in the middle of anything.
//
// All methods may be called concurrently. A Proxy must be closed.
type Proxy struct {
	target   string // host:port
	scheme   string // of the target's URL
	listener net.Listener
	ctx      context.Context // until Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup // added to while open, see begin

	mu      sync.Mutex
	closed  bool
	steps   []*stepState
	links   map[*proxyConn]struct{}
	refused time.Time // new connections are, until then
	stats   ProxyStats
}

// ProxyStats is what a [Proxy] has counted.
type ProxyStats struct {
	Accepted int   // connections that were passed on
	Refused  int   // connections that were not
	Open     int   // connections now
	Struck   int   // actions, of the script and on demand
	Up, Down int64 // bytes that went on
}

// NewProxy starts a proxy on a free port of 127.0.0.1 that passes connections
// on to a target, as "http://127.0.0.1:34567" or without the scheme. An empty
// script does nothing. The error matches [ErrScript] for one that makes no
// sense.
func NewProxy(target string, script Script) (*Proxy, error) {
	p := &Proxy{links: make(map[*proxyConn]struct{})}
	for _, s := range script {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("mock: start proxy: %s: %w: %w", s, ErrScript, err)
		}
		p.steps = append(p.steps, &stepState{ScriptStep: s, due: max(s.After, s.Every)})
	}
	scheme, addr, ok := strings.Cut(strings.TrimSuffix(target, "/"), "://")
	if !ok {
		scheme, addr = "http", target
	}
	p.scheme, p.target = scheme, addr
	var err error
	if p.listener, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("mock: start proxy: %w", err)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	for _, s := range p.steps {
		if s.After == 0 && s.Every == 0 && s.Before == 0 {
			p.wg.Go(func() { p.later(s.At, func() { p.strike(s, nil) }) })
		}
	}
	return p, nil
}

// URL returns the address that takes the target's place.
func (p *Proxy) URL() string { return p.scheme + "://" + p.listener.Addr().String() }

// Stats returns what has happened so far.
func (p *Proxy) Stats() ProxyStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := p.stats
	stats.Open = len(p.links)
	return stats
}

// Do does something now, to all connections. The error matches [ErrScript].
func (p *Proxy) Do(a Action) error {
	if err := a.check(); err != nil {
		return fmt.Errorf("mock: %s: %w: %w", a, ErrScript, err)
	}
	p.do(a, p.connections("", true))
	return nil
}

// Close resets all connections, and waits for everything the proxy started.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	err := p.listener.Close()
	for _, c := range p.connections("", true) {
		c.end(true)
	}
	p.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("mock: close proxy: %w", err)
	}
	return nil
}

// begin reports whether the proxy is open, and then runs f.
func (p *Proxy) begin(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Go(f)
	}
	return !p.closed
}

// later waits, and does something if the proxy is still open.
func (p *Proxy) later(d time.Duration, f func()) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		f()
	case <-p.ctx.Done():
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			continue // as when there are too many open files
		}
		p.mu.Lock()
		refuse := time.Now().Before(p.refused)
		if refuse {
			p.stats.Refused++
		}
		p.mu.Unlock()
		if refuse || !p.begin(func() { p.serve(client.(*net.TCPConn)) }) {
			hangUp(client.(*net.TCPConn), true)
		}
	}
}

// serve passes a connection on, in both directions.
func (p *Proxy) serve(client *net.TCPConn) {
	var d net.Dialer
	conn, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		hangUp(client, true)
		return
	}
	server := conn.(*net.TCPConn)
	c := &proxyConn{proxy: p, client: client, server: server, marks: make(map[*stepState]*mark)}
	c.up = newHalf(c, Up, client, server)
	c.down = newHalf(c, Down, server, client)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.end(true)
		return
	}
	p.links[c] = struct{}{}
	p.stats.Accepted++
	for _, s := range p.steps {
		c.marks[s] = &mark{seen: s.In == "", in: newMatcher(s.In), text: newMatcher(s.Text)}
	}
	p.mu.Unlock()
	var pumps sync.WaitGroup
	for _, h := range []*half{c.up, c.down} {
		pumps.Go(h.read)
		pumps.Go(h.write)
	}
	pumps.Wait()
	c.end(false)
}

// connections returns the open ones; those that are not marked for a step, only
// if all are asked for.
func (p *Proxy) connections(in string, all bool) []*proxyConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*proxyConn
	for c := range p.links {
		marked := all
		for s, m := range c.marks {
			marked = marked || s.In == in && m.seen
		}
		if marked {
			list = append(list, c)
		}
	}
	return list
}

// stepState is a step of the script, and how far it is. The proxy's lock guards
// it.
type stepState struct {
	ScriptStep
	count int64 // bytes, or occurrences of Text
	due   int64 // of bytes
	done  bool
}

// mark is what a step knows of a connection.
type mark struct {
	seen  bool    // In went up
	in    matcher // for In
	text  matcher // for Text
	armed bool    // Text was met
	wait  int64   // bytes from there to the action, once armed
}

// strike does what a step says: to the connection that has met it, or to all
// that it is for.
func (p *Proxy) strike(s *stepState, c *proxyConn) {
	if c != nil && !s.Action.All {
		p.do(s.Action, []*proxyConn{c})
		return
	}
	p.do(s.Action, p.connections(s.In, s.In == "" || c != nil))
}

func (p *Proxy) do(a Action, conns []*proxyConn) {
	p.mu.Lock()
	p.stats.Struck++
	if a.Do == Refuse {
		p.refused = time.Now().Add(a.For)
	}
	p.mu.Unlock()
	if a.Do == Refuse {
		return
	}
	for _, c := range conns {
		c.do(a)
	}
	if a.For > 0 && a.Do != Reset && a.Do != CloseConn && a.Do != Release {
		p.begin(func() {
			p.later(a.For, func() {
				for _, c := range conns {
					c.do(Action{Do: Release, Dir: a.Dir})
				}
			})
		})
	}
}

// plan returns how many of the bytes may go on before a step is due, and that
// step; nil when none is.
func (p *Proxy) plan(c *proxyConn, dir Direction, b []byte) (n int, due *stepState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = len(b)
	for _, s := range p.steps {
		if at := s.position(c.marks[s], dir, b); at >= 0 && (at < int64(n) || at == int64(n) && due == nil) {
			n, due = int(at), s
		}
	}
	for _, s := range p.steps {
		s.pass(c.marks[s], dir, b[:n])
	}
	switch {
	case due == nil:
	case due.Every > 0:
		due.due += due.Every
	default:
		due.done = true
	}
	if dir == Up {
		p.stats.Up += int64(n)
	} else {
		p.stats.Down += int64(n)
	}
	return n, due
}

// position returns how many bytes of b go before the step is due, and -1 when
// it is not due in them.
func (s *stepState) position(m *mark, dir Direction, b []byte) int64 {
	at := int64(-1)
	switch {
	case s.done || s.Dir != dir || !m.seen:
	case m.armed:
		at = m.wait
	case s.Before > 0:
		text, end, count := m.text, 0, s.count
		for count < int64(s.Before) {
			k := text.next(b[end:])
			if k < 0 {
				return -1
			}
			end += k
			count++
		}
		at = max(0, int64(end-len(s.Text))+s.Plus) // the text may have begun before b
	case s.due > 0:
		at = s.due - s.count
	}
	if at > int64(len(b)) {
		return -1
	}
	return at
}

// pass counts bytes that go on.
func (s *stepState) pass(m *mark, dir Direction, b []byte) {
	counted := m.seen && s.Dir == dir && !s.done
	if dir == Up && !m.seen && m.in.next(b) >= 0 {
		m.seen = true
	}
	switch {
	case !counted:
	case m.armed:
		m.wait -= int64(len(b))
	case s.Before > 0:
		for end := 0; ; {
			k := m.text.next(b[end:])
			if k < 0 {
				return
			}
			end += k
			if s.count++; s.count == int64(s.Before) { // the action is behind b
				m.armed = true
				m.wait = max(0, int64(end-len(s.Text))+s.Plus-int64(len(b)))
				return
			}
		}
	default:
		s.count += int64(len(b))
	}
}

// proxyConn is a connection of a client, and the one to the server behind it.
type proxyConn struct {
	proxy          *Proxy
	client, server *net.TCPConn
	up, down       *half
	marks          map[*stepState]*mark // guarded by the proxy's lock
	once           sync.Once
}

func (c *proxyConn) do(a Action) {
	switch a.Do {
	case Reset, CloseConn:
		c.end(a.Do == Reset)
		return
	}
	for _, h := range []*half{c.up, c.down} {
		if a.Dir == "" || a.Dir == h.dir {
			h.set(a)
		}
	}
}

// end closes both ends.
func (c *proxyConn) end(reset bool) {
	c.once.Do(func() {
		hangUp(c.client, reset)
		hangUp(c.server, reset)
		c.up.stop()
		c.down.stop()
		c.proxy.mu.Lock()
		delete(c.proxy.links, c)
		c.proxy.mu.Unlock()
	})
}

// hangUp closes a connection, by a reset or orderly.
func hangUp(conn *net.TCPConn, reset bool) {
	if reset {
		conn.SetLinger(0)
	}
	conn.Close()
}

// half is a direction of a connection: one goroutine reads what the other
// writes.
type half struct {
	conn     *proxyConn
	dir      Direction
	src, dst *net.TCPConn

	mu      sync.Mutex
	change  *sync.Cond
	queue   []piece
	queued  int
	end     error // of src; io.EOF when it has closed its end
	mode    Action
	stopped bool
}

// piece is bytes on their way.
type piece struct {
	b     []byte
	ready time.Time // when they may go on
}

func newHalf(c *proxyConn, dir Direction, src, dst *net.TCPConn) *half {
	h := &half{conn: c, dir: dir, src: src, dst: dst}
	h.change = sync.NewCond(&h.mu)
	return h
}

func (h *half) set(a Action) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.Do == Release {
		a = Action{}
	}
	h.mode = a
	h.change.Broadcast()
}

func (h *half) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	h.change.Broadcast()
}

// room reports whether more may be read.
func (h *half) roomLocked() bool {
	switch h.mode.Do {
	case Stall:
		return false
	case Freeze:
		return h.queued < frozenBuffer
	}
	return h.queued < proxyBuffer
}

func (h *half) read() {
	buf := make([]byte, 32<<10)
	for {
		h.mu.Lock()
		for !h.stopped && !h.roomLocked() {
			h.change.Wait()
		}
		stopped := h.stopped
		h.mu.Unlock()
		if stopped {
			return
		}
		n, err := h.src.Read(buf)
		h.mu.Lock()
		if n > 0 {
			h.queue = append(h.queue, piece{append([]byte(nil), buf[:n]...), time.Now().Add(h.mode.Delay)})
			h.queued += n
		}
		h.end = err
		h.change.Broadcast()
		h.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take waits for the next piece that may go on. It is nil at the end.
func (h *half) take() *piece {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.stopped {
		held := h.mode.Do == Freeze || h.mode.Do == Stall
		if !held && len(h.queue) > 0 {
			next := h.queue[0]
			h.queue = h.queue[1:]
			h.queued -= len(next.b)
			h.change.Broadcast()
			return &next
		}
		if !held && h.end != nil {
			return nil
		}
		h.change.Wait()
	}
	return nil
}

func (h *half) write() {
	for {
		next := h.take()
		if next == nil {
			break
		}
		if wait := time.Until(next.ready); wait > 0 {
			h.conn.proxy.later(wait, func() {})
		}
		if !h.pass(next.b) {
			h.conn.end(true)
			return
		}
	}
	h.mu.Lock()
	end, stopped := h.end, h.stopped
	h.mu.Unlock()
	switch {
	case stopped:
	case errors.Is(end, io.EOF):
		h.dst.CloseWrite()
	default:
		h.conn.end(true)
	}
}

// pass writes bytes, and does what is due between them. It reports whether the
// connection still stands.
func (h *half) pass(b []byte) bool {
	for {
		h.mu.Lock()
		for !h.stopped && (h.mode.Do == Freeze || h.mode.Do == Stall) {
			h.change.Wait()
		}
		rate, stopped := 0, h.stopped
		if h.mode.Do == Slow {
			rate = h.mode.Rate
		}
		h.mu.Unlock()
		if stopped {
			return false
		}
		part := b
		if rate > 0 { // 50 pieces a second
			part = b[:min(len(b), max(1, rate/50))]
		}
		n, due := h.conn.proxy.plan(h.conn, h.dir, part)
		if n > 0 {
			if _, err := h.dst.Write(b[:n]); err != nil {
				return false
			}
			if rate > 0 {
				h.conn.proxy.later(time.Duration(n)*time.Second/time.Duration(rate), func() {})
			}
		}
		b = b[n:]
		if due != nil {
			h.conn.proxy.strike(due, h.conn)
		} else if len(b) == 0 {
			return true
		}
	}
}
