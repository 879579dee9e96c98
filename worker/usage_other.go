//go:build !linux

package worker

// usage returns zeros: this platform is not asked.
func usage() (rss int64, cpu float64) { return 0, 0 }
