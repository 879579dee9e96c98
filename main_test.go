package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/python"
)

// TestMain lets the test binary be its own worker, as a user's program is.
func TestMain(m *testing.M) {
	hostileMain()
	worker.Main(testDrivers())
	barePeer()
	directWorker()
	goleak.VerifyTestMain(m, goleak.Cleanup(ownCache()))
}

// ownCache has what runs keep for others not be kept in the user's cache
// directory. What it returns ends the tests.
func ownCache() func(code int) {
	if dir, err := os.UserCacheDir(); err == nil && os.Getenv("GOCACHE") == "" {
		os.Setenv("GOCACHE", filepath.Join(dir, "go-build")) // of tests that build programs
	}
	dir, err := os.MkdirTemp("", "osiris-test-cache-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		os.Exit(1)
	}
	os.Setenv("XDG_CACHE_HOME", dir)
	return func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}
}

// barePeer turns the test binary into the peers of the benchmarks, or into a
// host that can be killed.
func barePeer() {
	switch {
	case len(os.Args) > 3 && os.Args[1] == "attach-host":
		if err := attachHost(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 1 && os.Args[1] == "bare-echo":
		buf := make([]byte, 64<<10)
		for {
			n, err := os.Stdin.Read(buf)
			if err != nil {
				os.Exit(0)
			}
			os.Stdout.Write(buf[:n])
		}
	case len(os.Args) > 2 && os.Args[1] == "bare-lines":
		n, _ := strconv.Atoi(os.Args[2])
		w := bufio.NewWriterSize(os.Stdout, 64<<10)
		line := bytes.Repeat([]byte("x"), 199)
		for range n {
			w.Write(line)
			w.WriteByte('\n')
		}
		w.Flush()
		os.Exit(0)
	}
}

// driverFunc is a driver that is a function.
type driverFunc func(ctx context.Context, step *worker.Step) (*worker.Result, error)

func (f driverFunc) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	return f(ctx, step)
}

// sum tells a secret value from others, and nobody what it is.
func sum(v any) string {
	h := sha256.Sum256(fmt.Append(nil, v))
	return hex.EncodeToString(h[:8])
}

// testConnections are those of the compiled example pipelines.
func testConnections() connections.Static {
	return connections.Static{
		"@mysql.db_movies": {"host": "mysql.example.com", "port": 3306, "database": "movies", "user": "reader", "password": "canary-movies"},
		"@supabase.main":   {"url": "https://example.supabase.co", "service_role_key": "canary-supabase", "default": true},
	}
}

// testDrivers are the drivers of all tests, in every kind of worker.
func testDrivers() *worker.Registry {
	r := worker.NewRegistry()
	csv.Register(r)
	python.Register(r)
	add := func(name string, mode worker.Mode, f driverFunc) {
		r.Register(name, mode, func() worker.Driver { return f })
	}
	addProcessDrivers(add)
	addTableDrivers(add)
	// Stands in for the database of the compiled example pipelines.
	add("mysql.extractor", worker.Extract, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		fields, err := s.ResolvedConnection()
		if err != nil || s.Connection != "@mysql.db_movies" || fields["database"] != "movies" || sum(fields["password"]) != sum("canary-movies") {
			return nil, fmt.Errorf("connection %q, fields %v, error %v", s.Connection, slices.Sorted(maps.Keys(fields)), err)
		}
		s.Config = map[string]any{"rows": len(s.ID)}
		return runRows(ctx, s)
	})
	add("test.connection", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		fields, err := s.ResolvedConnection()
		if err != nil {
			return nil, err
		}
		left, _ := s.Config["connection"].(string)
		s.LogEvent("connection", map[string]any{
			"connection": s.Connection, "family": fmt.Sprint(fields["_family"]), "alias": fmt.Sprint(fields["_alias"]), "password": sum(fields["password"]),
			"host": fmt.Sprint(fields["host"]), "port": fmt.Sprint(fields["port"]), "nested": fmt.Sprint(fields["nested"]),
			"keys": strings.Join(slices.Sorted(maps.Keys(fields)), " "), "left": left,
		})
		return nil, nil
	})
	add("test.refreshed", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		for last := any(nil); ; {
			fields, err := s.ResolvedConnection()
			if err != nil {
				return nil, err
			}
			if fields["n"] != last {
				s.Log().Info(fmt.Sprint("the password is ", fields["password"]))
				last = fields["n"]
			}
			if fields["n"] == s.Config["n"] {
				return nil, nil
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	add("test.die-once", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		fields, err := s.ResolvedConnection()
		if err != nil {
			return nil, err
		}
		// Beside the step's artifacts, which a repetition does without.
		f, err := os.OpenFile(filepath.Join(filepath.Dir(s.ArtifactsDir), "..", "died"), os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			os.Exit(9)
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(err, f.Close())
		}
		s.LogEvent("secrets", map[string]any{"password": sum(fields["password"]), "variable": sum(os.Getenv("REMOTE_TEST_VALUE"))})
		return nil, nil
	})
	add("test.canary", worker.Transform, runCanary)
	add("test.dial", worker.Extract, runDial)
	add("test.rows", worker.Extract, runRows)
	add("test.concat", worker.Transform, runConcat)
	add("test.write", worker.Write, runWrite)
	add("test.artifacts", worker.Write, runArtifacts)
	add("test.noop", worker.Transform, func(context.Context, *worker.Step) (*worker.Result, error) { return nil, nil })
	add("test.fail", worker.Transform, func(context.Context, *worker.Step) (*worker.Result, error) {
		return nil, fmt.Errorf("open source: %w", &os.PathError{Op: "open", Path: "x", Err: os.ErrNotExist})
	})
	add("test.panic", worker.Transform, func(context.Context, *worker.Step) (*worker.Result, error) {
		panic("driver bug")
	})
	add("test.print", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		fmt.Println("to stdout from", s.ID)
		fmt.Fprintln(os.Stderr, "to stderr from", s.ID)
		fmt.Print("no newline at the end")
		return nil, nil
	})
	add("test.wait", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("waiting", nil)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	add("test.pause", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		var cfg struct{ MS int }
		if err := s.DecodeConfig(&cfg); err != nil {
			return nil, err
		}
		select {
		case <-time.After(time.Duration(cfg.MS) * time.Millisecond):
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	})
	add("test.deaf", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("waiting", nil)
		time.Sleep(time.Hour)
		return nil, nil
	})
	add("test.open", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		name, _ := s.Config["file"].(string)
		_, err := os.ReadFile(name)
		return nil, err
	})
	add("test.exit", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("before_exit", nil)
		os.Exit(7)
		return nil, nil
	})
	add("test.crash", worker.Transform, runCrash)
	add("test.events", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		for i := range 1000 {
			s.LogEvent("tick", map[string]any{"n": i})
		}
		return nil, nil
	})
	add("test.flood", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		var cfg struct{ Events, Bytes int }
		if err := s.DecodeConfig(&cfg); err != nil {
			return nil, err
		}
		text := strings.Repeat("x", max(80, cfg.Bytes))
		for i := range cfg.Events {
			s.LogEvent("flood", map[string]any{"n": i, "text": text})
		}
		return nil, nil
	})
	add("test.mark", worker.Transform, func(ctx context.Context, s *worker.Step) (*worker.Result, error) {
		var cfg struct {
			File       string
			Events, MS int
		}
		if err := s.DecodeConfig(&cfg); err != nil {
			return nil, err
		}
		if cfg.File != "" {
			f, err := os.OpenFile(cfg.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, err
			}
			_, err = fmt.Fprintln(f, s.ID)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
		}
		for i := range cfg.Events {
			s.LogEvent("tick", map[string]any{"n": i})
		}
		select {
		case <-time.After(time.Duration(cfg.MS) * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return nil, nil
	})
	add("test.files", worker.Write, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		var cfg struct{ Files int }
		if err := s.DecodeConfig(&cfg); err != nil {
			return nil, err
		}
		for i := range cfg.Files {
			f, err := s.Create(fmt.Sprintf("file-%06d.txt", i))
			if err != nil {
				return nil, err
			}
			if err := f.Close(); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	add("test.env", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		s.LogEvent("env", map[string]any{"value": sum(s.Env["REMOTE_TEST_VALUE"]), "process": sum(os.Getenv("REMOTE_TEST_VALUE")), "other": os.Getenv("REMOTE_TEST_OTHER")})
		return nil, nil
	})
	return r
}

// runRows puts out config's "rows" numbers, from "start".
func runRows(_ context.Context, s *worker.Step) (*worker.Result, error) {
	var cfg struct{ Start, Rows int64 }
	if err := s.DecodeConfig(&cfg); err != nil {
		return nil, err
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(s.Memory(), schema)
	defer b.Release()
	for i := range cfg.Rows {
		b.Field(0).(*array.Int64Builder).Append(cfg.Start + i)
	}
	rec := b.NewRecord()
	defer rec.Release()
	r, err := array.NewRecordReader(schema, []arrow.Record{rec})
	if err != nil {
		return nil, err
	}
	return worker.Output(r), nil
}

// runConcat puts out the rows of its inputs, in the order of their names, and
// reports the names.
func runConcat(_ context.Context, s *worker.Step) (*worker.Result, error) {
	var (
		batches []arrow.Record
		schema  *arrow.Schema
	)
	defer func() {
		for _, b := range batches {
			b.Release()
		}
	}()
	s.LogEvent("inputs_seen", map[string]any{"names": s.InputNames()})
	for _, name := range s.InputNames() {
		if name == "df" {
			continue
		}
		df, err := s.Input(name)
		if err != nil {
			return nil, err
		}
		schema = df.Schema()
		r := df.Reader()
		for r.Next() {
			rec := r.Record()
			rec.Retain()
			batches = append(batches, rec)
		}
		r.Release()
	}
	if schema == nil {
		return nil, errors.New("no inputs")
	}
	r, err := array.NewRecordReader(schema, batches)
	if err != nil {
		return nil, err
	}
	return worker.Output(r), nil
}

// runWrite writes its input's numbers, one a line.
func runWrite(_ context.Context, s *worker.Step) (*worker.Result, error) {
	df, err := s.OnlyInput()
	if err != nil {
		return nil, err
	}
	path, _ := s.Config["path"].(string)
	f, err := s.Create(path)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		col := r.Record().Column(0).(*array.Int64)
		for i := range col.Len() {
			fmt.Fprintln(&text, col.Value(i))
		}
	}
	if _, err := f.Write([]byte(text.String())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.LogMetric("rows_written", float64(df.Rows()), "rows")
	return nil, f.Close()
}
