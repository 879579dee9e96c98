package remote

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// The drivers "test.noop" and "test.flood" and the programs "bare-echo" and
// "bare-lines" are in TestMain's file.

// connect starts a worker as LocalAdapter does.
func connect(tb testing.TB) *link {
	tb.Helper()
	a, err := NewLocalAdapter(Config{Root: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	return connectTo(tb, &a.engine)
}

// connectTo starts a worker as an adapter does.
func connectTo(tb testing.TB, a *engine) *link {
	tb.Helper()
	ec := &ExecutionContext{SessionID: "s", LogsDir: tb.TempDir()}
	p, err := a.Prepare(tb.Context(), &Manifest{Steps: []Step{{ID: "a", Driver: "test.noop"}}}, ec)
	if err != nil {
		tb.Fatal(err)
	}
	if err := a.enter("s", newRun(ec, p, nil)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.leave("s") })
	s, err := openSession(ec)
	if err != nil {
		tb.Fatal(err)
	}
	pl, err := a.settle(tb.Context(), p, s, nil)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := dial(tb.Context(), pl, s, nil, serving{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		l.close()
		s.close()
		pl.lease.drop()
		if err := pl.sandbox.Kill(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	if _, err := a.handshake(tb.Context(), l, p, pl, nil); err != nil {
		tb.Fatal(err)
	}
	return l
}

// BenchmarkPing is a request through the worker's input, its journal and the
// tail, beside a line through a process that echoes.
func BenchmarkPing(b *testing.B) {
	b.Run("rpc", func(b *testing.B) {
		l := connect(b)
		for b.Loop() {
			if err := l.call(b.Context(), rpc.MethodPing, struct{}{}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		cmd := exec.Command(os.Args[0], "bare-echo")
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		line := make([]byte, 120)
		for b.Loop() {
			if _, err := in.Write(line); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(out, line); err != nil {
				b.Fatal(err)
			}
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	})
}

const flood = 100_000

// BenchmarkEvents is 100,000 events of 200 bytes from a driver to events.jsonl,
// beside a process whose lines are copied to a file.
func BenchmarkEvents(b *testing.B) {
	b.Run("rpc", func(b *testing.B) {
		for b.Loop() {
			a, err := NewLocalAdapter(Config{})
			if err != nil {
				b.Fatal(err)
			}
			ec := &ExecutionContext{SessionID: "s", LogsDir: b.TempDir()}
			m := &Manifest{Steps: []Step{{ID: "a", Driver: "test.flood", Config: map[string]any{"events": flood}}}}
			p, err := a.Prepare(b.Context(), m, ec)
			if err != nil {
				b.Fatal(err)
			}
			result, err := a.Execute(b.Context(), p, ec)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(flood/result.StepResults[0].DurationMS*1000, "events/s")
			a.Close()
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			f, err := os.Create(filepath.Join(b.TempDir(), "lines"))
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "bare-lines", fmt.Sprint(flood))
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			w := bufio.NewWriterSize(f, 256<<10)
			if _, err := io.Copy(w, struct{ io.Reader }{out}); err != nil {
				b.Fatal(err)
			}
			w.Flush()
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(flood/time.Since(start).Seconds(), "events/s")
			f.Close()
		}
	})
}

// BenchmarkGraph is a graph of steps that do nothing: what a step costs.
func BenchmarkGraph(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				a, err := NewLocalAdapter(Config{Timeout: time.Hour})
				if err != nil {
					b.Fatal(err)
				}
				ec := &ExecutionContext{SessionID: "s", LogsDir: b.TempDir()}
				m := &Manifest{}
				for i := range n {
					s := Step{ID: fmt.Sprint("s", i), Driver: "test.noop"}
					if i >= 10 {
						s.Needs = []string{fmt.Sprint("s", i-10)}
					}
					m.Steps = append(m.Steps, s)
				}
				p, err := a.Prepare(b.Context(), m, ec)
				if err != nil {
					b.Fatal(err)
				}
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				start := time.Now()
				if _, err := a.Execute(b.Context(), p, ec); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/float64(n), "µs/step")
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapInuse)-float64(before.HeapInuse), "heap-growth-B")
				a.Close()
			}
		})
	}
}
