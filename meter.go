package remote

import (
	"cmp"
	"context"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// phaseOf is one of [Phases].
type phaseOf int

const (
	phasePrepare phaseOf = iota
	phaseBuild
	phaseCreate
	phaseUpload
	phaseWorkerStart
	phaseDependencies
	phaseSteps
	phaseTransfer
	phaseFinish
	phaseCollect
	phaseKill
	phaseIdle

	phaseCount
)

// String is the phase's name in spans.
func (p phaseOf) String() string {
	return [phaseCount]string{"prepare", "build", "create", "upload", "worker_start", "dependencies", "steps", "transfer", "finish", "collect", "kill", "idle"}[p]
}

// meter takes a run's time, bytes and money. It is told what goes on, and makes
// a [Receipt] of it at any moment. Nil takes nothing. All methods may be called
// concurrently.
type meter struct {
	sent, received atomic.Int64

	mu        sync.Mutex
	start     time.Time     // of this host's part
	before    time.Duration // what the run had taken then
	last      time.Time     // everything until then is in spent
	spent     [phaseCount]time.Duration
	window    time.Duration // that the worker was ready for steps
	base      phaseOf
	running   int // steps
	feeding   int // transfers of tables
	prices    Prices
	limits    []limit
	life      sandboxLife
	steps     map[string]*stepTimes
	begun     time.Time // of the run, by the first host's clock
	hosts     int
	uncertain bool // of how long drivers ran

	stop  func(error) // ends the run; nil while no limit is watched
	alarm *time.Timer // of the first limit

	tracer Tracer // of the spans of phases; nil for none
	spans  context.Context
	span   Span
	spanOf phaseOf
}

// limit is a [BudgetError] that has not happened.
type limit struct {
	name string
	cost float64       // zero means that it is a time
	time time.Duration // that the sandbox may run
}

// sandboxLife is how long a sandbox runs, which is what it is paid for.
type sandboxLife struct {
	CPU      int
	MemoryGB float64
	Known    bool          // there was one
	Since    time.Time     // that it runs; zero while it does not
	Ran      time.Duration // before that
	Stood    time.Time     // since when it is paused; zero while it is not
	Paused   time.Duration // before that
	Gone     bool
}

// stepTimes is what is known of a step.
type stepTimes struct {
	ready, asked, answered time.Time
	result                 *rpc.StepResult // what the worker has told; nil when it has not
	in                     int64           // bytes
}

// newMeter starts a run's clock.
func newMeter(start time.Time, prices Prices, limits []limit) *meter {
	return &meter{start: start, last: start, begun: start.Round(0), prices: prices, limits: limits, steps: make(map[string]*stepTimes), hosts: 1}
}

// enter ends the present phase, and begins another.
func (m *meter) enter(p phaseOf) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turn(time.Now(), func() { m.base = p })
}

// within is enter for a while: the function that it returns goes back.
func (m *meter) within(p phaseOf) (back func()) {
	if m == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.base
	m.turn(time.Now(), func() { m.base = p })
	return func() { m.enter(old) }
}

// transfer says that tables are on their way, until done is called. The time of
// that is a phase of its own where no step runs meanwhile.
func (m *meter) transfer() (done func()) {
	if m == nil {
		return func() {}
	}
	add := func(n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.turn(time.Now(), func() { m.feeding += n })
	}
	add(1)
	return func() { add(-1) }
}

// reading is r, whose bytes are counted as they come, and whose waiting is
// transfer.
func (m *meter) reading(r io.ReadCloser) io.ReadCloser { return &meteredReader{r, m} }

type meteredReader struct {
	io.ReadCloser
	m *meter
}

func (r *meteredReader) Read(p []byte) (int, error) {
	defer r.m.transfer()()
	n, err := r.ReadCloser.Read(p)
	r.m.count(0, int64(n))
	return n, err
}

// present is the phase that goes on.
func (m *meter) present() phaseOf {
	if m.feeding > 0 && m.running == 0 {
		switch m.base {
		case phaseUpload, phaseSteps, phaseIdle:
			return phaseTransfer
		}
	}
	return m.base
}

// turn books the time until now, and then changes what goes on. Of two callers
// at once the one with the lock first is first, whatever its clock says.
func (m *meter) turn(now time.Time, change func()) {
	m.book(now)
	change()
	m.trace()
}

// book adds the time until now to the phase that goes on.
func (m *meter) book(now time.Time) {
	if d := now.Sub(m.last); d > 0 {
		m.spent[m.present()] += d
		m.last = now
		if m.base == phaseSteps {
			m.window += d
		}
	}
}

// trace ends the span of a phase that is over, and starts the next one's.
func (m *meter) trace() {
	p := m.present()
	if m.tracer == nil || m.span != nil && m.spanOf == p {
		return
	}
	m.endSpan()
	if p != phaseIdle {
		_, m.span = m.tracer.Start(m.spans, "osiris.phase."+p.String())
		m.spanOf = p
	}
}

func (m *meter) endSpan() {
	if m.span != nil {
		m.span.End(nil)
		m.span = nil
	}
}

// traceBy has the phases from now on be spans below that of ctx, until the
// function that it returns is called.
func (m *meter) traceBy(ctx context.Context, t Tracer) (end func()) {
	if m == nil || t == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tracer, m.spans = t, ctx
	m.trace()
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.endSpan()
		m.tracer, m.spans = nil, nil
	}
}

// watch has the run ended by stop when a limit is reached, until the function
// that it returns is called.
func (m *meter) watch(stop func(error)) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stop = stop
	m.arm(time.Now())
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.stop = nil
		m.arm(time.Now())
	}
}

// arm sets the alarm to the first limit, where the sandbox runs.
func (m *meter) arm(now time.Time) {
	if m.alarm != nil {
		m.alarm.Stop()
		m.alarm = nil
	}
	if m.stop == nil || m.life.Since.IsZero() {
		return
	}
	rate := m.prices.perSecond(m.life.CPU, m.life.MemoryGB)
	first, at := limit{}, time.Duration(-1)
	for _, l := range m.limits {
		t := l.time
		if l.cost > 0 {
			if rate <= 0 {
				continue // it costs nothing
			}
			t = seconds(l.cost / rate)
		}
		if at < 0 || t < at {
			first, at = l, t
		}
	}
	if at < 0 {
		return
	}
	stop, cpu, memory, prices := m.stop, m.life.CPU, m.life.MemoryGB, m.prices
	m.alarm = time.AfterFunc(at-m.life.ran(now), func() {
		stop(&BudgetError{Setting: first.name, MaxCost: first.cost, MaxDuration: first.time, Ran: at, CostUSD: prices.cost(cpu, memory, at)})
	})
}

// runs says that the run's sandbox is there.
func (m *meter) runs(info SandboxInfo) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life.Known {
		return
	}
	now := time.Now()
	m.life = sandboxLife{CPU: max(0, info.CPU), MemoryGB: max(0, info.MemoryGB), Known: true, Since: now} // as it is told
	m.arm(now)
}

// resumed says that the sandbox runs, if it did not.
func (m *meter) resumed() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); m.life.resume(now) {
		m.arm(now)
	}
}

// paused says that the sandbox stands still, or is gone, since a time.
func (m *meter) paused(since time.Time, gone bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if since.After(now) { // by a clock that was set
		since = now
	}
	m.life.pause(since, gone)
	m.arm(now)
}

// saw notes how the sandbox is. It was heard last at a time.
func (m *meter) saw(p SandboxPhase, heard time.Time) {
	switch p {
	case SandboxRunning:
		m.resumed()
	case SandboxPaused:
		m.paused(heard, false)
	case SandboxGone:
		m.paused(heard, true)
	}
}

func (l *sandboxLife) ran(now time.Time) time.Duration {
	if l.Since.IsZero() {
		return l.Ran
	}
	return l.Ran + max(0, now.Sub(l.Since))
}

func (l *sandboxLife) stood(now time.Time) time.Duration {
	if l.Stood.IsZero() {
		return l.Paused
	}
	return l.Paused + max(0, now.Sub(l.Stood))
}

func (l *sandboxLife) resume(now time.Time) bool {
	if !l.Known || l.Gone || l.Stood.IsZero() {
		return false
	}
	l.Paused, l.Stood, l.Since = l.stood(now), time.Time{}, now
	return true
}

func (l *sandboxLife) pause(since time.Time, gone bool) {
	if !l.Known || l.Gone {
		return
	}
	if !l.Since.IsZero() {
		if since.Before(l.Since) { // nothing was heard of it before
			since = l.Since
		}
		l.Ran, l.Since = l.ran(since), time.Time{}
		l.Stood = since
	}
	if gone {
		l.Paused, l.Stood, l.Gone = l.stood(since), time.Time{}, true
	}
}

// ready says that a step waits for nothing but its turn.
func (m *meter) ready(stepID string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step(stepID).ready = time.Now()
}

func (m *meter) step(id string) *stepTimes {
	s := m.steps[id]
	if s == nil {
		s = new(stepTimes)
		m.steps[id] = s
	}
	return s
}

// asked says that the worker is asked for a step. The tables are the host's.
func (m *meter) asked(req *rpc.ExecuteStep, tables map[string]rpc.TableRef) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.step(req.StepID)
	now := time.Now()
	s.asked, s.answered = now, time.Time{}
	seen := make(map[rpc.InputRef]bool)
	for _, ref := range req.Inputs {
		if seen[ref] {
			continue
		}
		seen[ref] = true
		if ref.Table != "" {
			s.in = plus(s.in, tables[ref.Table].Bytes)
		} else if up := m.steps[ref.FromStep]; up != nil && up.result != nil {
			s.in = plus(s.in, up.result.Outputs[cmp.Or(ref.Key, worker.DefaultOutput)].Bytes)
		}
	}
	m.turn(now, func() { m.running++ })
}

// answered says what the worker has told of a step: of one that has failed how
// far it came, and nil when nothing came.
func (m *meter) answered(stepID string, result *rpc.StepResult) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.step(stepID)
	now := time.Now()
	s.answered, s.result = now, result
	m.turn(now, func() { m.running-- })
}

// doubt says that drivers ran of which nothing is known.
func (m *meter) doubt() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uncertain = true
}

// forget lets go of the steps: there will be no other receipt.
func (m *meter) forget() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps = make(map[string]*stepTimes)
}

// receipt is what the run has taken until now. The steps are in the order of
// the plan.
func (m *meter) receipt(plan *Manifest) *Receipt {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book(time.Now())
	r := &Receipt{
		StartedAt: m.begun.UTC(), Wall: m.before + m.last.Sub(m.start), Hosts: m.hosts,
		Phases:    phases(m.spent),
		BytesSent: m.sent.Load(), BytesReceived: m.received.Load(),
		Prices: m.prices, Steps: []StepReceipt{},
	}
	life := &m.life
	if life.Known {
		r.CPU, r.MemoryGB, r.Removed = life.CPU, life.MemoryGB, life.Gone
		r.SandboxRan, r.SandboxPaused = life.ran(m.last), life.stood(m.last)
		r.VCPUSeconds, r.GiBSeconds = float64(life.CPU)*r.SandboxRan.Seconds(), life.MemoryGB*r.SandboxRan.Seconds()
		r.CostUSD = m.prices.cost(life.CPU, life.MemoryGB, r.SandboxRan)
	}
	var drivers []interval
	known := !m.uncertain && m.window > 0
	if plan == nil {
		plan = new(Manifest)
	}
	for _, step := range plan.Steps {
		s := m.steps[step.ID]
		if s == nil || s.asked.IsZero() {
			continue
		}
		most := time.Duration(0) // as long as this host has waited
		if m.hosts > 1 {
			most = r.Wall
		}
		out, ran := s.receipt(m.last, most)
		out.StepID = step.ID
		out.VCPUSeconds, out.GiBSeconds = float64(life.CPU)*out.Run.Seconds(), life.MemoryGB*out.Run.Seconds()
		out.CostUSD = m.prices.cost(life.CPU, life.MemoryGB, out.Run)
		r.Steps = append(r.Steps, out)
		if s.result == nil || s.result.Usage == nil {
			known = false
			continue
		}
		drivers = append(drivers, ran)
	}
	if known {
		r.Overhead = overhead(m.window, union(drivers))
	}
	return r
}

// receipt makes a receipt of a step, without what it has cost, and says when its
// driver ran. What the worker tells is believed as far as it fits into what
// this host has seen, or into most, where the step may have been another host's
// before.
func (s *stepTimes) receipt(now time.Time, most time.Duration) (StepReceipt, interval) {
	end := s.answered
	if end.IsZero() {
		end = now
	}
	whole := max(0, end.Sub(s.asked))
	r := StepReceipt{Run: whole, BytesIn: s.in}
	if !s.ready.IsZero() {
		r.Queued = max(0, s.asked.Sub(s.ready))
	}
	var ran interval
	if res := s.result; res != nil {
		r.Run = min(seconds(res.DurationMS/1000), max(whole, most))
		r.Transfer = max(0, whole-r.Run)
		r.RowsIn, r.RowsOut = max(0, res.RowsIn), max(0, res.RowsOut)
		for _, out := range res.Outputs {
			r.BytesOut = plus(r.BytesOut, out.Bytes)
		}
		if u := res.Usage; u != nil {
			r.Driver = min(seconds(u.DriverMS/1000), r.Run)
			r.PeakMemoryBytes = max(0, u.PeakRSSBytes)
			ran = interval{u.StartedAt, r.Driver}
		}
	}
	return r, ran
}

// interval is a time that something took, from a moment on.
type interval struct {
	from time.Time
	long time.Duration
}

// union is how long at least one of them was going on.
func union(all []interval) (total time.Duration) {
	all = slices.DeleteFunc(slices.Clone(all), func(i interval) bool { return i.long <= 0 })
	slices.SortFunc(all, func(a, b interval) int { return a.from.Compare(b.from) })
	var end time.Time
	for _, i := range all {
		to := i.from.Add(i.long)
		switch {
		case end.IsZero() || !i.from.Before(end):
			total += i.long
		case to.After(end):
			total += to.Sub(end)
		default:
			continue
		}
		end = to
	}
	return total
}

// overhead is what of a time no driver has explained.
func overhead(window, drivers time.Duration) *Overhead {
	o := &Overhead{Window: window, Drivers: min(drivers, window)}
	o.Time = window - o.Drivers
	if window > 0 {
		o.Ratio = float64(o.Time) / float64(window)
	}
	return o
}

// plus adds a number that somebody has told.
func plus(n, told int64) int64 { return n + min(max(0, told), math.MaxInt64-n) }

// seconds is a duration of a number of seconds that somebody has told.
func seconds(s float64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	switch {
	case !(s > 0):
		return 0
	case s > most.Seconds():
		return most
	}
	return time.Duration(s * float64(time.Second))
}

// meterState is what a checkpoint keeps of a meter, for another host.
type meterState struct {
	Phases    Phases    `json:"phases"`
	Sent      int64     `json:"bytes_sent"`
	Received  int64     `json:"bytes_received"`
	Hosts     int       `json:"hosts"`
	StartedAt time.Time `json:"started_at"`

	CPU      int           `json:"cpu,omitempty"`
	MemoryGB float64       `json:"memory_gb,omitempty"`
	Known    bool          `json:"sandbox,omitempty"`
	Ran      time.Duration `json:"ran_ns,omitempty"`
	Paused   time.Duration `json:"paused_ns,omitempty"`
	Standing bool          `json:"standing,omitempty"` // it was paused
}

// state is what another host would go on with.
func (m *meter) state() *meterState {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book(time.Now())
	l := &m.life
	return &meterState{
		Phases: phases(m.spent), Sent: m.sent.Load(), Received: m.received.Load(), Hosts: m.hosts, StartedAt: m.begun,
		CPU: l.CPU, MemoryGB: l.MemoryGB, Known: l.Known, Ran: l.ran(m.last), Paused: l.stood(m.last), Standing: !l.Stood.IsZero(),
	}
}

// resumeMeter goes on where the meter of a dead host was when it was saved. The
// time since is idle; a sandbox that is gone, or paused when its lease ends, was
// paid for until then at most.
func resumeMeter(c *checkpoint, cfg SandboxConfig, gone bool, prices Prices, limits []limit) *meter {
	now := time.Now()
	m := newMeter(now, prices, limits)
	m.uncertain = true
	old := c.Meter
	if old == nil { // of a host that took none
		old = &meterState{StartedAt: c.StartedAt, Hosts: 1, Phases: Phases{Idle: c.SavedAt.Sub(c.StartedAt)}}
	}
	m.spent = old.Phases.each()
	gap := max(0, now.Sub(c.SavedAt))
	m.spent[phaseIdle] += gap
	for i := range m.spent {
		m.spent[i] = max(0, m.spent[i])
		m.before += m.spent[i]
	}
	m.base, m.begun, m.hosts = phasePrepare, old.StartedAt, old.Hosts+1
	m.sent.Store(old.Sent)
	m.received.Store(old.Received)
	m.life = sandboxLife{CPU: old.CPU, MemoryGB: old.MemoryGB, Known: old.Known, Ran: old.Ran, Paused: old.Paused}
	if old.Known {
		if m.life.Gone = gone; !gone {
			m.life.Since = now // who has found it has woken it
		}
		left := cfg.lease()
		if c.Result != nil { // see lease.release
			left += collectLease - left/renewAfter
		}
		switch ran := min(gap, left); {
		case old.Standing:
			m.life.Paused += gap
		case gone:
			m.life.Ran += ran
		case cfg.OnHostLoss == Pause:
			m.life.Ran, m.life.Paused = m.life.Ran+ran, m.life.Paused+gap-ran
		default:
			m.life.Ran += gap
		}
	}
	return m
}

type meterKey struct{}

// count adds bytes that have gone there, and come back.
func (m *meter) count(sent, received int64) {
	if m != nil {
		m.sent.Add(sent)
		m.received.Add(received)
	}
}

// into returns a context whose transfers are counted.
func (m *meter) into(ctx context.Context) context.Context {
	return context.WithValue(ctx, meterKey{}, m)
}

// meterOf returns the meter of a context; nil where it has none.
func meterOf(ctx context.Context) *meter {
	m, _ := ctx.Value(meterKey{}).(*meter)
	return m
}

// countSent counts bytes that have arrived where the run is.
func countSent(ctx context.Context, n int64) {
	meterOf(ctx).count(n, 0)
}

// countReceived counts bytes that have come from where the run is.
func countReceived(ctx context.Context, n int64) {
	meterOf(ctx).count(0, n)
}
