package remote_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/worker"
)

// told runs a driver that is given secrets, and returns its session.
func told(t *testing.T, cfg remote.Config, run driverFunc) (*remote.ExecutionContext, *remote.ExecResult, error) {
	t.Helper()
	r := worker.NewRegistry()
	r.Register("test.tells", worker.Extract, func() worker.Driver { return run })
	cfg.Drivers = r
	a, _ := newAdapter(t, "served", cfg, nil)
	ec := newContext(t, "s")
	m := &remote.Manifest{Steps: []remote.Step{{ID: "step", Driver: "test.tells"}, {ID: "next", Driver: "test.tells", Needs: []string{"step"}}}}
	p, err := a.Prepare(t.Context(), m, ec)
	if err != nil {
		t.Fatal(err)
	}
	result, err := a.Execute(t.Context(), p, ec) // what is needed to go on with the run is still there then
	return ec, result, err
}

// TestToldInOddPlaces: a value is found also where a driver's text meets what
// the library adds or cuts.
func TestToldInOddPlaces(t *testing.T) {
	const secret = "kn4ry-told-0123456789"
	cfg := remote.Config{Env: map[string]string{"TOLD": secret}}
	for _, tt := range []struct {
		name  string
		run   driverFunc
		fails bool
	}{
		{name: "fields called as a metric's", run: func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogEvent("e", map[string]any{"tags": secret, "unit": secret, "metric": secret, "value": secret})
			s.LogEvent("e", map[string]any{"tags": map[string]any{"a": secret}})
			return nil, nil
		}},
		{name: "the name of an output", run: func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			s.Config = map[string]any{"rows": 1}
			result, err := runRows(ctx, s)
			if err == nil {
				result.Outputs[secret] = result.Outputs[worker.DefaultOutput]
				delete(result.Outputs, worker.DefaultOutput)
			}
			return result, err
		}},
		{name: "where an error is cut", fails: true, run: func(context.Context, *worker.Step) (*worker.Result, error) {
			return nil, errors.New(strings.Repeat("x", 32<<10-len(secret)+2) + secret + strings.Repeat("y", 64<<10))
		}},
		{name: "where an error is cut, behind it", fails: true, run: func(context.Context, *worker.Step) (*worker.Result, error) {
			return nil, errors.New(strings.Repeat("x", 64<<10) + secret + strings.Repeat("y", 32<<10-len(secret)+2))
		}},
		{name: "where a log record is cut", run: func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.Log().Info(strings.Repeat("x", 4096-len(secret)+2)+secret, "long", strings.Repeat("y", 2<<20))
			return nil, nil
		}},
		{name: "names", run: func(_ context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogMetric("n "+secret, 1, "u "+secret)
			s.LogEvent("n "+secret, map[string]any{"f " + secret: 1})
			s.Log().Log(context.Background(), slog.LevelInfo, "m", "k "+secret, 1)
			return nil, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ec, result, err := told(t, cfg, tt.run)
			agree(t, ec, result, err)
			if (err != nil) != tt.fails {
				t.Fatal(err)
			}
			noTraces(t, ec.LogsDir, secret[:len(secret)-4])
			noTraces(t, ec.LogsDir, secret[4:])
			if text := fmt.Sprint(err, result.StepResults); strings.Contains(text, secret[:len(secret)-4]) || strings.Contains(text, secret[4:]) {
				t.Error("the result tells it")
			}
		})
	}
}

// TestPartsOfVariables: a secret within a variable is one by itself, for host and
// worker.
func TestPartsOfVariables(t *testing.T) {
	cfg := remote.Config{Env: map[string]string{
		"PIP_INDEX_URL":       "https://kn4ryTOKEN0a1b2c3d@index.example.com/simple",
		"PIP_EXTRA_INDEX_URL": "https://a:kn4ry-first%40x@index.example.com/simple https://kn4ryTOKEN9f8e7d6c:@other.example.com/simple",
		"UV_INDEX":            "own=https://kn4ryTOKENuvuvuv01@uv.example.com/simple",
		"MSSQL":               "Server=db;Database=x;User Id=sa;Pwd=kn4ry-pwd-of-odbc;",
		"PG":                  "host=db password='my libpq kn4ry' user=u",
		"MYSQL":               "mysql://u:kn4ry/with-slash@h/db",
	}}
	parts := []string{"kn4ryTOKEN0a1b2c3d", "kn4ry-first@x", "kn4ry-first%40x", "kn4ryTOKEN9f8e7d6c", "kn4ryTOKENuvuvuv01", "kn4ry-pwd-of-odbc", "my libpq kn4ry", "kn4ry/with-slash"}
	ec, result, err := told(t, cfg, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		for _, part := range parts {
			s.Log().Info("it is " + part)
			s.LogEvent("e", map[string]any{"it": part})
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	noTraces(t, ec.LogsDir, parts...)
}

// TestSecretNumbers: a metric stays a number, though a variable has its value.
func TestSecretNumbers(t *testing.T) {
	ec, result, err := told(t, remote.Config{Env: map[string]string{"BATCH_SIZE": "100000"}}, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogMetric("rows_read", 100000, "rows")
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	for _, m := range lines(t, filepath.Join(ec.LogsDir, "metrics.jsonl")) {
		if _, ok := m["value"].(float64); !ok || m["metric"] == "rows_read" && m["value"] != 100000.0 {
			t.Errorf("metric %v", m)
		}
	}
}

// TestSecretsThatAreWordsOfOurs: a run does not break because a variable has a
// value that the library itself uses.
func TestSecretsThatAreWordsOfOurs(t *testing.T) {
	for _, words := range [][]string{
		{"success", "step_complete", "event", "metric", "session", "step_id", "value", "driver"},
		{"step", "next", "test.tells", "extract", "rows_read", "rows", "df", "tags", "unit"},
		{"/tmp", "artifacts", "artifacts/step", "cleaned_config.json", "2026", "1", "true", "{}", `":"`, `"}`, ""},
		{strings.Repeat("kn4ry ", 1<<11), "a\nb\nc\n\"", "\\\\\\\\", "INFO", "time=", "level"},
	} {
		cfg := remote.Config{Env: map[string]string{}}
		for i, w := range words {
			cfg.Env[fmt.Sprintf("WORD_%d", i)] = w
		}
		ec, result, err := told(t, cfg, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
			s.LogEvent("e", map[string]any{"n": 1})
			if s.Env["WORD_0"] != words[0] {
				return nil, errors.New("the variable has changed")
			}
			s.Config = map[string]any{"rows": 3}
			return runRows(ctx, s)
		})
		if err != nil {
			t.Errorf("%.100q: %v", words, err)
			continue
		}
		agree(t, ec, result, err)
		if n := len(events(t, ec, "step_complete")); n != 2 {
			t.Errorf("%.100q: %d steps are complete", words, n)
		}
		if result.StepResults[0].Metrics["rows_read"] != 3 && words[0] == "success" {
			t.Errorf("%.100q: metrics %v", words, result.StepResults[0].Metrics)
		}
	}
}

// TestResolverPanics: who is asked for secrets does not take the process with
// it, and what it panics with is not told.
func TestResolverPanics(t *testing.T) {
	asked := 0
	resolver := connections.ResolverFunc(func(context.Context, connections.Reference) (*connections.Connection, error) {
		if asked++; asked == 2 {
			panic("kn4ry-in-a-panic")
		}
		c := &connections.Connection{Fields: map[string]any{"password": fmt.Sprint("kn4ry-renewed-", asked), "n": asked}}
		if asked < 3 {
			c.RefreshAt = time.Now()
		}
		return c, nil
	})
	ec := newContext(t, "s")
	a, _ := newAdapter(t, "in process", remote.Config{Connections: resolver}, nil)
	result, _, err := remote.Run(t.Context(), a, connected("test.refreshed", "@test.a", map[string]any{"n": 3}), ec)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, ec, result, err)
	noTraces(t, ec.LogsDir, "kn4ry")

	asked = 1 // when the run begins
	ec = newContext(t, "t")
	result, _, err = remote.Run(t.Context(), a, connected("test.connection", "@test.a", nil), ec)
	if err == nil || strings.Contains(err.Error(), "kn4ry") || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("error %v", err)
	}
	agree(t, ec, result, err)
}

// TestNetworkErrorsTellNothing: what is wrong with a host is said without what
// stands beside it.
func TestNetworkErrorsTellNothing(t *testing.T) {
	const secret = "kn4ry-beside-a-host"
	for name, tt := range map[string]struct {
		cfg  remote.Config
		step remote.Step
	}{
		"user in a host":        {remote.Config{Connections: connections.Static{"@mysql.a": {"host": "root:" + secret + "@db.example.com:x"}}}, step("mysql.writer", "@mysql.a", nil)},
		"password with an @":    {remote.Config{Connections: connections.Static{"@mysql.a": {"host": "root:@" + secret + "@/db.example.com:x"}}}, step("mysql.writer", "@mysql.a", nil)},
		"URL that is allowed":   {remote.Config{AllowHosts: []string{"https://u:" + secret + "@api.example.com/"}}, step("test.noop", "", nil)},
		"query that is allowed": {remote.Config{AllowHosts: []string{"api.example.com/?token=" + secret}}, step("test.noop", "", nil)},
		"driver that tells":     {remote.Config{Env: map[string]string{"TOLD": secret}}, step("test.hosts", "", map[string]any{"fail": "${TOLD}"})},
		"connection and variable": {remote.Config{Env: map[string]string{"TOLD": secret}, Connections: connections.ResolverFunc(func(context.Context, connections.Reference) (*connections.Connection, error) {
			return nil, errors.New("the vault does not take " + secret)
		})}, step("test.noop", "@test.a", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Drivers = networkDrivers()
			server := newServer(t, "served", tt.cfg.Drivers)
			a, err := remote.NewE2BTransparentProxy(connect(tt.cfg, server))
			if err == nil {
				t.Cleanup(func() { a.Close() })
				var p *remote.PreparedRun
				if p, err = a.Prepare(t.Context(), steps(tt.step), newContext(t, "s")); err == nil {
					_, err = a.Network(t.Context(), p)
				}
			}
			if err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("error %v", err)
			}
			var host *remote.HostError
			if errors.As(err, &host) && strings.Contains(host.Host, secret) {
				t.Errorf("the host is %q", host.Host)
			}
		})
	}
}
