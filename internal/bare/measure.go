package bare

import (
	"slices"
	"testing"
	"time"
)

// Measure runs f b.N times and reports its median and 99th percentile.
func Measure(b *testing.B, f func()) {
	b.Helper()
	times := make([]time.Duration, 0, 1024)
	for b.Loop() {
		start := time.Now()
		f()
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1e3, "median-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds())/1e3, "p99-µs")
}
