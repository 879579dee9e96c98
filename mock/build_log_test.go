package mock

import (
	"strings"
	"testing"
	"time"
)

// A build that says much takes no more memory than its log may.
func TestBuildLogIsBounded(t *testing.T) {
	var l buildLog
	line := strings.Repeat("a", 2*maxBuildLogLine)
	for range 2 * maxBuildLogBytes / maxBuildLogLine {
		l.add(time.Now(), "info", "1", line)
	}
	if got, want := len(l.page("info", 0, maxBuildLog)), maxBuildLogBytes/maxBuildLogLine; got != want {
		t.Errorf("%d lines were kept, want %d", got, want)
	}
}
