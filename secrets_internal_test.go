package remote

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/secrets"
)

// A line of a process's standard error is redacted before it is cut.
func TestLongLastLine(t *testing.T) {
	const secret = "kn4ry-last-line-0123"
	for _, chunk := range []int{1, 100, 4096, 1 << 20} {
		dir := t.TempDir()
		s, err := openSession(&ExecutionContext{SessionID: "s", LogsDir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s.redact = secrets.NewRedactor(secret)
		l := &lastLines{session: s}
		text := "short " + secret + "\n" + strings.Repeat("x", keepLineLen-10) + secret + strings.Repeat("y", 100) + "\n" + "end " + secret
		for part := range slices.Chunk([]byte(text), chunk) {
			if n, err := l.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		told := l.String()
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(filepath.Join(dir, logFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{secret[:10], secret[10:]} {
			if strings.Contains(told+string(log), part) {
				t.Errorf("by %d bytes: %q is told", chunk, part)
			}
		}
		if !strings.Contains(told, "short ***\n") || !strings.HasSuffix(told, "\nend ***") {
			t.Errorf("by %d bytes: %q", chunk, told)
		}
	}
}

// A worker that is started again is told values that were renewed, too: what it
// reads, or is told by others, may hold the older ones.
func TestPastValuesAreSent(t *testing.T) {
	k := new(engine).newSecrets()
	stop := errors.New("seen")
	var got []string
	k.tap = func(_ context.Context, _ *link, m *rpc.Secrets) error {
		got = m.Redact
		return stop
	}
	for _, password := range []string{"kn4ry-first", "kn4ry-second", "kn4ry-third"} {
		c, err := connections.Resolve(t.Context(), connections.Static{"@test.a": {"password": password}}, connections.Reference{Family: "test", Alias: "a"})
		if err != nil {
			t.Fatal(err)
		}
		k.learn("@test.a", c)
	}
	if err := k.send(t.Context(), nil); err != stop {
		t.Fatal(err)
	}
	for _, want := range []string{"kn4ry-first", "kn4ry-second", "kn4ry-third"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not among %q", want, got)
		}
	}
}

// What cannot be resolved keeps nothing else from being known.
func TestCompleteGoesOn(t *testing.T) {
	k := new(engine).newSecrets()
	p := &PreparedRun{Plan: new(Manifest), ResolvedConnections: make(map[string]ConnectionRef), CfgIndex: make(map[string]map[string]any)}
	for _, id := range []string{"a", "b", "c"} {
		step := Step{ID: id, Driver: "test.connection"}
		p.Plan.Steps = append(p.Plan.Steps, step)
		p.ResolvedConnections["@test."+id] = ConnectionRef{}
		p.CfgIndex[step.cfgPath()] = map[string]any{"connection": "@test." + id}
	}
	cfg := Config{Connections: connections.Static{"@test.b": {"password": "kn4ry-of-b"}}}
	err := k.complete(t.Context(), cfg, p)
	for _, want := range []string{`step "a"`, `step "c"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	if got := k.redact.String("it is kn4ry-of-b"); got != "it is ***" {
		t.Error(got)
	}
}
