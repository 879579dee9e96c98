package remote_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
)

// BenchmarkOverhead is a pipeline of ten steps of one second each, one after the
// other: what of the time after the worker is ready was no driver's. "overhead-%"
// is the receipt's, "to-the-end-%" has the end of the worker in it, too. Beside
// it ten sleeps of a second, without anything.
func BenchmarkOverhead(b *testing.B) {
	const steps, long = 10, time.Second
	b.Run("bare", func(b *testing.B) {
		var late, whole time.Duration
		for b.Loop() {
			begin := time.Now()
			for range steps {
				time.Sleep(long)
			}
			took := time.Since(begin)
			late, whole = late+took-steps*long, whole+took
		}
		b.ReportMetric(100*late.Seconds()/whole.Seconds(), "overhead-%")
	})
	for _, kind := range append([]string{"local"}, servedKinds[1:]...) {
		b.Run(kind, func(b *testing.B) {
			a, _ := newAdapter(b, kind, remote.Config{}, nil)
			m := &remote.Manifest{Name: "ten"}
			for i := range steps {
				s := remote.Step{ID: fmt.Sprint("s", i), Driver: "test.pause", Config: map[string]any{"MS": long.Milliseconds()}}
				if i > 0 {
					s.Needs = []string{fmt.Sprint("s", i-1)}
				}
				m.Steps = append(m.Steps, s)
			}
			var time, window, finish float64
			for n := 0; b.Loop(); n++ {
				result, _, err := remote.Run(b.Context(), a, m, newContext(b, fmt.Sprint("s", n)))
				if err != nil {
					b.Fatal(err)
				}
				o := result.Receipt.Overhead
				if o == nil {
					b.Fatal("the overhead is not known")
				}
				time, window, finish = time+o.Time.Seconds(), window+o.Window.Seconds(), finish+result.Receipt.Phases.Finish.Seconds()
			}
			b.ReportMetric(100*time/window, "overhead-%")
			b.ReportMetric(100*(time+finish)/(window+finish), "to-the-end-%")
		})
	}
}
