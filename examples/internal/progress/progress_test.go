package progress

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
)

func TestClean(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"naïve 日本 😀", "naïve 日本 😀"},
		{"a\x1b[31mb", `a\x1b[31mb`},
		{"a\r\nb\tc", `a\r\nb\tc`},
		{"\u202e\u200b\u2028", `\u202e\u200b\u2028`},
		{"a\x9b\xffb", "a\ufffdb"},
	} {
		got := Clean(tt.in)
		if got != tt.want {
			t.Errorf("Clean(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// What a worker sends may have any shape.
func TestOddEvents(t *testing.T) {
	var b strings.Builder
	p := New(&b)
	for _, line := range []string{
		`{"event":"step_complete","rows_processed":"many","duration_ms":null}`,
		`{"event":"step_complete","rows_processed":1e400}`,
		`[]`,
		`{"event":"step_failed","error":"` + strings.Repeat("x", 5000) + `"}`,
	} {
		e := remote.Event{Name: "step_complete", StepID: "s", Line: json.RawMessage(line)}
		if strings.Contains(line, "step_failed") {
			e.Name = "step_failed"
		}
		if err := p.Event(context.Background(), e); err != nil {
			t.Errorf("%.50s: %v", line, err)
		}
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 4 {
		t.Errorf("have %d lines, want 4:\n%s", len(lines), b.String())
	}
	for _, l := range lines {
		if len(l) > 1100 {
			t.Errorf("a line has %d bytes", len(l))
		}
	}
}

func TestError(t *testing.T) {
	var b strings.Builder
	Error(&b, "run", errors.Join(errors.New("first"), errors.New("second\x1b")))
	if want := "run: first\nrun: second\\x1b\n"; b.String() != want {
		t.Errorf("have %q, want %q", b.String(), want)
	}
}

func TestReceipt(t *testing.T) {
	for name, test := range map[string]struct {
		receipt *remote.Receipt
		want    string
	}{
		"none": {},
		"local": {&remote.Receipt{Wall: 1500 * time.Millisecond, Phases: remote.Phases{Prepare: 1, Steps: 1500*time.Millisecond - 1}, BytesSent: 5, BytesReceived: 6},
			"time: 1.500 s (steps 1.500)\nmoved: 5 bytes there, 6 back\n"},
		"sandbox": {&remote.Receipt{
			Wall: 3 * time.Second, Phases: remote.Phases{Create: time.Second, Steps: time.Second, Kill: time.Second},
			CPU: 2, MemoryGB: 0.5, SandboxRan: 2 * time.Second, CostUSD: 0.00006,
			Overhead: &remote.Overhead{Window: time.Second, Ratio: 0.0123},
		}, "time: 3.000 s (create 1.000, steps 1.000, kill 1.000)\nmoved: 0 bytes there, 0 back\n" +
			"sandbox: 2 vCPU, 0.5 GiB for 2.000 s, about $0.000060\noverhead: 1.23 % of the 1.000 s after the worker was ready\n"},
	} {
		var b strings.Builder
		Receipt(&b, test.receipt)
		if b.String() != test.want {
			t.Errorf("%s: have\n%s\nwant\n%s", name, b.String(), test.want)
		}
	}
}
