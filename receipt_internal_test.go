package remote

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

func TestUnion(t *testing.T) {
	at := func(from, to int) interval {
		return interval{time.Unix(int64(from), 0), time.Duration(to-from) * time.Second}
	}
	for _, test := range []struct {
		name string
		all  []interval
		want int // seconds
	}{
		{"nothing", nil, 0},
		{"one", []interval{at(1, 3)}, 2},
		{"apart", []interval{at(5, 7), at(1, 2)}, 3},
		{"touching", []interval{at(1, 2), at(2, 4)}, 3},
		{"overlapping", []interval{at(1, 4), at(2, 6)}, 5},
		{"within", []interval{at(1, 9), at(2, 3), at(4, 5)}, 8},
		{"within, then beyond", []interval{at(1, 5), at(2, 3), at(4, 8)}, 7},
		{"the same", []interval{at(1, 3), at(1, 3), at(1, 3)}, 2},
		{"one begins with a longer one", []interval{at(1, 3), at(1, 9)}, 8},
		{"empty and backwards", []interval{at(4, 4), at(9, 2), {}}, 0},
		{"an endless one", []interval{{time.Unix(1, 0), math.MaxInt64}, at(2, 3)}, int(time.Duration(math.MaxInt64) / time.Second)},
	} {
		if got := union(test.all); got.Truncate(time.Second) != time.Duration(test.want)*time.Second {
			t.Errorf("%s: got %s, want %d s", test.name, got, test.want)
		}
	}
}

func TestOverhead(t *testing.T) {
	for _, test := range []struct{ window, drivers, time time.Duration }{
		{0, 0, 0},
		{10 * time.Second, 0, 10 * time.Second},
		{10 * time.Second, 9 * time.Second, time.Second},
		{10 * time.Second, 10 * time.Second, 0},
		{10 * time.Second, time.Hour, 0}, // what a worker tells is believed only so far
	} {
		got := overhead(test.window, test.drivers)
		want := &Overhead{Window: test.window, Drivers: test.window - test.time, Time: test.time}
		if test.window > 0 {
			want.Ratio = test.time.Seconds() / test.window.Seconds()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("overhead(%s, %s) (-want +got):\n%s", test.window, test.drivers, diff)
		}
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[float64]time.Duration{
		0: 0, -1: 0, 1.5: 1500 * time.Millisecond, 1e300: 100 * 365 * 24 * time.Hour, math.Inf(1): 100 * 365 * 24 * time.Hour, math.Inf(-1): 0,
	} {
		if got := seconds(in); got != want {
			t.Errorf("seconds(%g) = %s, want %s", in, got, want)
		}
	}
	if got := seconds(math.NaN()); got != 0 {
		t.Errorf("seconds(NaN) = %s", got)
	}
}

// Every phase has a field of its own, a name of its own, and is in the sum.
func TestPhases(t *testing.T) {
	var each [phaseCount]time.Duration
	names := make(map[string]bool)
	for i := range each {
		each[i] = time.Duration(1) << i
		names[phaseOf(i).String()] = true
	}
	p := phases(each)
	if got := p.each(); got != each {
		t.Errorf("there and back: got %v, want %v", got, each)
	}
	if p.Total() != 1<<phaseCount-1 || len(names) != int(phaseCount) || names[""] {
		t.Errorf("total %d, %d names", p.Total(), len(names))
	}
}

// The example of E2B's own page: 2 vCPU and 0.5 GiB for an hour.
func TestPrices(t *testing.T) {
	for _, test := range []struct {
		prices Prices
		cpu    int
		memory float64
		ran    time.Duration
		want   float64
	}{
		{Prices{}, 2, 0.5, time.Hour, 0.1089},
		{Prices{}, 8, 4, time.Hour, 0.468},
		{Prices{}, 0, 0, time.Hour, 0},
		{Prices{VCPUSecond: 1}, 2, 100, 3 * time.Second, 6},
		{Prices{GiBSecond: 2}, 100, 0.5, 3 * time.Second, 3},
	} {
		if got := test.prices.orDefault().cost(test.cpu, test.memory, test.ran); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%+v: got %g", test, got)
		}
	}
}

// Prices that would make a receipt something that JSON does not have.
func TestPricesRefused(t *testing.T) {
	for _, bad := range []float64{-1, math.NaN(), math.Inf(1), math.MaxFloat64} {
		for _, p := range []Prices{{VCPUSecond: bad}, {GiBSecond: bad}} {
			if err := (Config{Prices: p}).validate(); !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v", p, err)
			}
		}
	}
}

// A fixed run, second for second.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		m := newMeter(begin, Prices{VCPUSecond: 1, GiBSecond: 10}, nil)
		plan := &Manifest{Steps: []Step{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "never"}}}
		sleep := func(n int) { time.Sleep(time.Duration(n) * time.Second) }
		usage := func(ran, drove int, rss int64) *rpc.StepUsage {
			return &rpc.StepUsage{StartedAt: time.Now().Add(-time.Duration(ran) * time.Second), DriverMS: float64(drove) * 1000, PeakRSSBytes: rss}
		}
		sleep(1)
		m.enter(phaseCreate)
		sleep(2)
		m.runs(SandboxInfo{CPU: 2, MemoryGB: 0.5})
		m.enter(phaseUpload)
		sleep(3)
		m.enter(phaseWorkerStart)
		sleep(4)
		m.enter(phaseUpload) // again
		sleep(1)
		m.enter(phaseSteps)
		m.ready("a")
		m.ready("b")
		tables := m.transfer() // nothing runs yet
		sleep(2)
		m.asked(&rpc.ExecuteStep{StepID: "a"}, nil)
		sleep(1) // it runs: what is still on its way does not count
		tables()
		sleep(2)
		m.answered("a", &rpc.StepResult{DurationMS: 2500, RowsOut: 7, Usage: usage(3, 2, 11), Outputs: map[string]rpc.OutputRef{"df": {Bytes: 70}}})
		back := m.within(phaseWorkerStart) // as of a restart
		sleep(1)
		back()
		for _, id := range []string{"b", "c"} {
			m.ready(id)
			m.asked(&rpc.ExecuteStep{StepID: id, Inputs: map[string]rpc.InputRef{"df": {FromStep: "a"}, "df_a": {FromStep: "a"}, "x": {FromStep: "a", Key: "x"}, "t": {Table: "t"}, "u": {Table: "u"}}}, map[string]rpc.TableRef{"t": {Bytes: 1000}})
		}
		sleep(5)
		m.answered("b", &rpc.StepResult{DurationMS: 9e9, RowsIn: 7, Usage: usage(5, 4, 12)})
		m.answered("c", &rpc.StepResult{DurationMS: 5000, Usage: usage(5, 5, 13)})
		m.enter(phaseFinish)
		sleep(1)
		m.enter(phaseIdle)
		sleep(10)
		tables = m.transfer() // between Execute and Collect
		sleep(2)
		tables()
		m.enter(phaseCollect)
		sleep(2)
		back = m.within(phaseKill)
		sleep(1)
		m.paused(time.Now(), true)
		back()
		sleep(1)
		m.count(5, 6)
		countSent(m.into(t.Context()), 10)
		countReceived(m.into(t.Context()), 20)
		countSent(t.Context(), 1000) // of no run
		got := m.receipt(plan)

		second := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
		want := &Receipt{
			StartedAt: begin.UTC(), Wall: second(39), Hosts: 1,
			Phases: Phases{
				Prepare: second(1), Create: second(2), Upload: second(4), WorkerStart: second(5), Steps: second(8), Transfer: second(4),
				Finish: second(1), Collect: second(3), Kill: second(1), Idle: second(10),
			},
			Steps: []StepReceipt{
				{StepID: "a", Queued: second(2), Run: second(2.5), Transfer: second(0.5), Driver: second(2), RowsOut: 7, BytesOut: 70, PeakMemoryBytes: 11, VCPUSeconds: 5, GiBSeconds: 1.25, CostUSD: 17.5},
				{StepID: "b", Run: second(5), Driver: second(4), RowsIn: 7, BytesIn: 1070, PeakMemoryBytes: 12, VCPUSeconds: 10, GiBSeconds: 2.5, CostUSD: 35},
				{StepID: "c", Run: second(5), Driver: second(5), BytesIn: 1070, PeakMemoryBytes: 13, VCPUSeconds: 10, GiBSeconds: 2.5, CostUSD: 35},
			},
			BytesSent: 15, BytesReceived: 26,
			CPU: 2, MemoryGB: 0.5, SandboxRan: second(35), Removed: true, VCPUSeconds: 70, GiBSeconds: 17.5, CostUSD: 245,
			Prices:   Prices{VCPUSecond: 1, GiBSecond: 10},
			Overhead: &Overhead{Window: second(10), Drivers: second(7), Time: second(3), Ratio: 0.3},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if got.Phases.Total() != got.Wall || got.Wall != time.Since(begin) {
			t.Errorf("the phases are %s, the whole is %s, and took %s", got.Phases.Total(), got.Wall, time.Since(begin))
		}

		m.doubt()
		if o := m.receipt(plan).Overhead; o != nil {
			t.Errorf("an overhead of %+v though it is not known how long drivers ran", o)
		}
	})
}

// A worker may tell what it likes: a receipt has no numbers that cannot be, and
// is JSON.
func TestMeterToldNonsense(t *testing.T) {
	for hosts := 1; hosts <= 2; hosts++ {
		synctest.Test(t, func(t *testing.T) {
			m := newMeter(time.Now(), Prices{}.orDefault(), nil)
			m.hosts = hosts
			m.runs(SandboxInfo{CPU: 2, MemoryGB: 0.5})
			m.enter(phaseSteps)
			plan := &Manifest{Steps: []Step{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}}}
			told := []*rpc.StepResult{
				{DurationMS: math.MaxFloat64, RowsIn: math.MinInt64, RowsOut: math.MinInt64, Outputs: map[string]rpc.OutputRef{"df": {Bytes: math.MinInt64}, "x": {Bytes: 3}},
					Usage: &rpc.StepUsage{StartedAt: time.Unix(math.MaxInt64>>2, 0), DriverMS: math.MaxFloat64, PeakRSSBytes: math.MinInt64}},
				{DurationMS: -math.MaxFloat64, Outputs: map[string]rpc.OutputRef{"df": {Bytes: math.MaxInt64}, "x": {Bytes: math.MaxInt64}},
					Usage: &rpc.StepUsage{StartedAt: time.Unix(math.MinInt64>>2, 0), DriverMS: -1}},
				{DurationMS: math.MaxFloat64, Usage: &rpc.StepUsage{DriverMS: math.MaxFloat64}},
				{DurationMS: math.MaxFloat64, Usage: &rpc.StepUsage{DriverMS: math.MaxFloat64}},
			}
			for i, step := range plan.Steps {
				m.asked(&rpc.ExecuteStep{StepID: step.ID, Inputs: map[string]rpc.InputRef{"p": {FromStep: "a"}, "q": {FromStep: "b"}, "r": {FromStep: "b", Key: "x"}}}, nil)
				time.Sleep(time.Second)
				m.answered(step.ID, told[i])
			}
			m.enter(phaseFinish)
			got := m.receipt(plan)
			if _, err := json.Marshal(got); err != nil {
				t.Error(err)
			}
			for _, s := range got.Steps {
				for name, n := range map[string]int64{
					"run": int64(s.Run), "driver": int64(s.Driver), "transfer": int64(s.Transfer), "rows in": s.RowsIn, "rows out": s.RowsOut,
					"bytes in": s.BytesIn, "bytes out": s.BytesOut, "memory": s.PeakMemoryBytes,
				} {
					if n < 0 {
						t.Errorf("%d hosts: step %s: %s is %d", hosts, s.StepID, name, n)
					}
				}
				if s.Run > got.Wall || s.CostUSD < 0 || s.CostUSD > got.CostUSD {
					t.Errorf("%d hosts: step %s ran for %s of %s, for $%g of $%g", hosts, s.StepID, s.Run, got.Wall, s.CostUSD, got.CostUSD)
				}
			}
			if o := got.Overhead; o == nil || o.Drivers < 0 || o.Time < 0 || o.Drivers+o.Time != o.Window {
				t.Errorf("%d hosts: overhead %+v", hosts, o)
			}
		})
	}
}

// How long drivers ran is not known while a step has no answer, or one without
// its times.
func TestOverheadUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(time.Now(), Prices{}, nil)
		plan := &Manifest{Steps: []Step{{ID: "a"}}}
		known := func() bool { return m.receipt(plan).Overhead != nil }
		if known() {
			t.Error("it is known before there was a step")
		}
		m.enter(phaseSteps)
		time.Sleep(time.Second)
		if !known() {
			t.Error("it is not known though no step was asked for")
		}
		m.asked(&rpc.ExecuteStep{StepID: "a"}, nil)
		time.Sleep(time.Second)
		if known() || m.receipt(plan).Steps[0].Run != time.Second {
			t.Error("it is known while a step runs, or the step's time is not")
		}
		m.answered("a", nil)
		if known() {
			t.Error("it is known though the worker has not told")
		}
		m.asked(&rpc.ExecuteStep{StepID: "a"}, nil)
		m.answered("a", &rpc.StepResult{Usage: &rpc.StepUsage{}})
		if !known() {
			t.Error("it is not known though the worker has told")
		}
	})
}

// What a limit ends, and when.
func TestBudget(t *testing.T) {
	cost := func(max float64) limit { return limit{name: "MaxCost", cost: max} }
	lasts := func(d time.Duration) limit { return limit{name: "MaxDuration", time: d} }
	size := SandboxInfo{CPU: 2, MemoryGB: 1}
	prices := Prices{VCPUSecond: 0.01, GiBSecond: 0.03} // five cents a second
	for _, test := range []struct {
		name   string
		limits []limit
		size   SandboxInfo
		want   string        // setting
		after  time.Duration // from the first moment on; the sandbox comes after a minute
		happen func(m *meter)
	}{
		{name: "none", size: size},
		{name: "time", limits: []limit{lasts(time.Minute)}, size: size, want: "MaxDuration", after: 2 * time.Minute},
		{name: "cost", limits: []limit{cost(1)}, size: size, want: "MaxCost", after: 80 * time.Second},
		{name: "both, time first", limits: []limit{cost(1), lasts(10 * time.Second)}, size: size, want: "MaxDuration", after: 70 * time.Second},
		{name: "both, cost first", limits: []limit{cost(1), lasts(time.Hour)}, size: size, want: "MaxCost", after: 80 * time.Second},
		{name: "this machine costs nothing", limits: []limit{cost(1)}},
		{name: "and has a time", limits: []limit{cost(1), lasts(time.Minute)}, want: "MaxDuration", after: 2 * time.Minute},
		{name: "paused meanwhile", limits: []limit{cost(1)}, size: size, want: "MaxCost", after: time.Hour + 80*time.Second, happen: func(m *meter) {
			time.Sleep(time.Second)
			since := time.Now()
			time.Sleep(5 * time.Second) // until that is noticed
			m.saw(SandboxPaused, since)
			m.saw(SandboxPaused, since) // nothing new
			time.Sleep(time.Hour - 5*time.Second)
			m.saw(SandboxRunning, time.Now())
			m.resumed()
		}},
		{name: "gone", limits: []limit{cost(1)}, size: size, happen: func(m *meter) {
			m.saw(SandboxGone, time.Now())
			m.resumed() // as by a heartbeat that was on its way
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				ctx, cancel := context.WithCancelCause(t.Context())
				m := newMeter(begin, prices, test.limits)
				end := m.watch(cancel)
				time.Sleep(time.Minute)
				m.runs(test.size)
				if test.happen != nil {
					test.happen(m)
				}
				if test.want == "" {
					time.Sleep(24 * time.Hour)
					if err := context.Cause(ctx); err != nil {
						t.Errorf("it was stopped after all: %v", err)
					}
					end()
					return
				}
				<-ctx.Done()
				var over *BudgetError
				if err := context.Cause(ctx); !errors.As(err, &over) || !errors.Is(err, ErrBudget) || over.Setting != test.want {
					t.Fatalf("stopped by %v, want %s", err, test.want)
				}
				if took := time.Since(begin); took != test.after {
					t.Errorf("stopped after %s, want %s", took, test.after)
				}
				r := m.receipt(nil)
				if over.Ran != r.SandboxRan || math.Abs(over.CostUSD-r.CostUSD) > 1e-9 {
					t.Errorf("the error says %s and $%g, the receipt %s and $%g", over.Ran, over.CostUSD, r.SandboxRan, r.CostUSD)
				}
				end()
			})
		})
	}
	t.Run("over before it is reached", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMeter(time.Now(), prices, []limit{lasts(time.Minute)})
			end := m.watch(func(err error) { t.Errorf("stopped: %v", err) })
			m.runs(size)
			time.Sleep(59 * time.Second)
			end()
			time.Sleep(time.Hour)
		})
	})
}

// The host dies, and another goes on after a while.
func TestMeterResumed(t *testing.T) {
	const lease = 5 * time.Minute
	for _, test := range []struct {
		name        string
		loss        OnHostLoss
		gap         time.Duration
		standing    bool // it was paused when the host died
		gone        bool
		executed    bool
		ran, paused time.Duration // of the gap
	}{
		{name: "soon", gap: time.Minute, ran: time.Minute},
		{name: "longer than the lease, by a clock that was set", gap: time.Hour, ran: time.Hour},
		{name: "paused when the lease was over", loss: Pause, gap: time.Hour, ran: lease, paused: time.Hour - lease},
		{name: "not yet", loss: Pause, gap: time.Minute, ran: time.Minute},
		{name: "paused before", loss: Pause, standing: true, gap: time.Hour, paused: time.Hour},
		{name: "gone", gap: time.Hour, gone: true, ran: lease},
		{name: "gone before Collect", gap: time.Hour, gone: true, executed: true, ran: lease + collectLease - lease/3},
		{name: "no time at all"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				first := newMeter(begin, Prices{}.orDefault(), nil)
				time.Sleep(time.Second)
				first.enter(phaseCreate)
				first.runs(SandboxInfo{CPU: 2, MemoryGB: 4})
				first.enter(phaseSteps)
				time.Sleep(10 * time.Second)
				if test.standing {
					first.paused(time.Now(), false)
				}
				first.count(3, 4)
				c := &checkpoint{Meter: first.state(), SavedAt: time.Now()}
				if test.executed {
					c.Result = new(ExecResult)
				}
				time.Sleep(test.gap)
				cfg := SandboxConfig{OnHostLoss: test.loss}
				m := resumeMeter(c, cfg, test.gone, Prices{}.orDefault(), nil)
				m.runs(SandboxInfo{}) // which is known already
				m.enter(phaseSteps)
				time.Sleep(20 * time.Second)
				got := m.receipt(nil)
				live := 20 * time.Second
				if test.gone {
					live = 0
				}
				want := &Receipt{
					StartedAt: begin.UTC(), Wall: 31*time.Second + test.gap, Hosts: 2, BytesSent: 3, BytesReceived: 4, Steps: []StepReceipt{},
					Phases: Phases{Prepare: time.Second, Steps: 30 * time.Second, Idle: test.gap},
					CPU:    2, MemoryGB: 4, Removed: test.gone, SandboxRan: 10*time.Second + test.ran + live, SandboxPaused: test.paused,
					Prices: Prices{}.orDefault(),
				}
				want.VCPUSeconds, want.GiBSeconds = 2*want.SandboxRan.Seconds(), 4*want.SandboxRan.Seconds()
				want.CostUSD = want.Prices.cost(2, 4, want.SandboxRan)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				if got.Phases.Total() != got.Wall || got.Wall != time.Since(begin) {
					t.Errorf("the phases are %s, the whole is %s, and took %s", got.Phases.Total(), got.Wall, time.Since(begin))
				}
			})
		})
	}
	t.Run("of a host that took none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			time.Sleep(time.Minute)
			c := &checkpoint{StartedAt: begin, SavedAt: time.Now()}
			time.Sleep(time.Minute)
			got := resumeMeter(c, SandboxConfig{}, false, Prices{}, nil).receipt(nil)
			if got.Phases != (Phases{Idle: 2 * time.Minute}) || got.Wall != 2*time.Minute {
				t.Errorf("got %+v", got)
			}
		})
	})
}

// Nobody has a meter in tests of parts.
func TestNoMeter(t *testing.T) {
	var m *meter
	m.enter(phaseSteps)
	m.within(phaseKill)()
	m.transfer()()
	m.traceBy(t.Context(), nil)()
	m.runs(SandboxInfo{})
	m.saw(SandboxPaused, time.Now())
	m.saw(SandboxRunning, time.Now())
	m.ready("s")
	m.asked(&rpc.ExecuteStep{}, nil)
	m.answered("s", nil)
	m.doubt()
	m.forget()
	countSent(m.into(t.Context()), 1)
	countReceived(m.into(t.Context()), 1)
	if m.receipt(nil) != nil || m.state() != nil || len((*Receipt)(nil).attributes()) > 0 {
		t.Error("nothing gives something")
	}
}

// spans notes what is traced.
type spans struct{ open, ended []string }

func (s *spans) Start(ctx context.Context, name string, _ ...slog.Attr) (context.Context, Span) {
	s.open = append(s.open, name)
	return ctx, namedSpan{s, name}
}

type namedSpan struct {
	s    *spans
	name string
}

func (namedSpan) TraceParent() string        { return "" }
func (namedSpan) SetAttributes(...slog.Attr) {}
func (n namedSpan) End(error)                { n.s.ended = append(n.s.ended, n.name) }

// Phases are spans, one after the other, and each is ended.
func TestPhasesTraced(t *testing.T) {
	m, s := newMeter(time.Now(), Prices{}, nil), new(spans)
	m.enter(phasePrepare) // of nobody
	end := m.traceBy(t.Context(), s)
	m.enter(phaseCreate)
	m.enter(phaseCreate) // no other
	m.enter(phaseSteps)
	m.asked(&rpc.ExecuteStep{StepID: "a"}, nil)
	m.answered("a", nil)
	m.within(phaseWorkerStart)()
	m.enter(phaseIdle) // which has none
	m.transfer()()
	m.enter(phaseFinish)
	end()
	m.enter(phaseCollect)
	want := []string{"osiris.phase.prepare", "osiris.phase.create", "osiris.phase.steps", "osiris.phase.worker_start", "osiris.phase.steps", "osiris.phase.transfer", "osiris.phase.finish"}
	if !slices.Equal(s.open, want) || !slices.Equal(s.ended, want) {
		t.Errorf("spans %q, ended %q\nwant  %q", s.open, s.ended, want)
	}
}
