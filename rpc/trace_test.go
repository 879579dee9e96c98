package rpc_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
)

const traceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestValidTraceParent(t *testing.T) {
	for _, s := range []string{traceParent, traceParent[:53] + "00", traceParent[:53] + "ff", "00-00000000000000000000000000000001-8000000000000000-00"} {
		if !rpc.ValidTraceParent(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{
		"", "00", traceParent[:54], traceParent + "0", traceParent + "-00", " " + traceParent[1:], traceParent[:54] + "\n",
		"ff" + traceParent[2:], "01" + traceParent[2:], strings.ToUpper(traceParent),
		"00-" + strings.Repeat("0", 32) + traceParent[35:], traceParent[:36] + strings.Repeat("0", 16) + traceParent[52:],
		strings.Replace(traceParent, "4", "g", 1), strings.ReplaceAll(traceParent, "-", "_"), traceParent[:53] + "é",
	} {
		if rpc.ValidTraceParent(s) {
			t.Errorf("%q is taken", s)
		}
	}
}

func FuzzTraceParent(f *testing.F) {
	f.Add(traceParent)
	f.Add(strings.Repeat("0", 55))
	form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
	f.Fuzz(func(t *testing.T, s string) {
		want := form.MatchString(s) && !strings.Contains(s, strings.Repeat("0", 32)+"-") && s[36:52] != strings.Repeat("0", 16)
		if got := rpc.ValidTraceParent(s); got != want {
			t.Errorf("%q: %t, want %t", s, got, want)
		}
	})
}
