package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/worker"
)

// addTableDrivers adds drivers that hand tables on, and one that tells how much
// memory the worker has had.
func addTableDrivers(add func(name string, mode worker.Mode, f driverFunc)) {
	add("test.peak", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		status, err := os.ReadFile("/proc/self/status")
		s.LogEvent("peak_memory", map[string]any{"bytes": peakMemory(status)})
		return nil, err
	})
	add("test.pass", worker.Transform, func(_ context.Context, s *worker.Step) (*worker.Result, error) {
		result := &worker.Result{Outputs: make(map[string]array.RecordReader)}
		for _, name := range s.InputNames() {
			result.Outputs[name] = s.Inputs[name].Reader()
		}
		return result, nil
	})
}

// numbered returns a table of rows in batches, of about 24 bytes a row.
func numbered(rows, batch int) array.RecordReader {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	var batches []arrow.Record
	for done := 0; done < rows; done += batch {
		for i := done; i < min(done+batch, rows); i++ {
			b.Field(0).(*array.Int64Builder).Append(int64(i))
			if i%7 == 0 {
				b.Field(1).AppendNull()
			} else {
				b.Field(1).(*array.StringBuilder).Append(fmt.Sprintf("name-%08d", i))
			}
		}
		batches = append(batches, b.NewRecord())
	}
	r, err := array.NewRecordReader(schema, batches)
	if err != nil {
		panic(err)
	}
	for _, rec := range batches {
		rec.Release()
	}
	return r
}

func numberedFrom(rows, batch int) remote.Table {
	return remote.RecordsFrom(func(context.Context) (array.RecordReader, error) { return numbered(rows, batch), nil })
}

// writeArrow writes a table to a file of a form.
func writeArrow(t testing.TB, name, form string, r array.RecordReader) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	opts := []ipc.Option{ipc.WithSchema(r.Schema())}
	switch {
	case strings.Contains(form, "zstd"):
		opts = append(opts, ipc.WithZstd())
	case strings.Contains(form, "lz4"):
		opts = append(opts, ipc.WithLZ4())
	}
	var w interface {
		Write(arrow.Record) error
		Close() error
	} = ipc.NewWriter(f, opts...)
	if strings.Contains(form, "file") {
		if w, err = ipc.NewFileWriter(f, opts...); err != nil {
			t.Fatal(err)
		}
	}
	for r.Next() {
		if err := w.Write(r.Record()); err != nil {
			t.Fatal(err)
		}
	}
	r.Release()
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// sameTable reads two tables to their ends and compares them, whatever their
// batches are.
func sameTable(t testing.TB, got, want array.RecordReader) {
	t.Helper()
	a, b := wholeTable(t, got), wholeTable(t, want)
	defer a.Release()
	defer b.Release()
	if !got.Schema().Equal(want.Schema()) {
		t.Errorf("schema %s, want %s", got.Schema(), want.Schema())
	} else if !array.TableEqual(a, b) {
		t.Errorf("other tables: %d rows, want %d", a.NumRows(), b.NumRows())
	}
}

func wholeTable(t testing.TB, r array.RecordReader) arrow.Table {
	t.Helper()
	var batches []arrow.Record
	for r.Next() {
		rec := r.Record()
		rec.Retain()
		batches = append(batches, rec)
	}
	if err := r.Err(); err != nil {
		t.Fatalf("read table: %v", err)
	}
	table := array.NewTableFromRecords(r.Schema(), batches)
	for _, rec := range batches {
		rec.Release()
	}
	return table
}

// passing is a manifest that hands its tables on.
func passing(tables ...string) *remote.Manifest {
	inputs := make(map[string]remote.InputRef)
	for _, name := range tables {
		inputs[name] = remote.InputRef{Table: name}
	}
	return &remote.Manifest{Name: "pass", Steps: []remote.Step{{ID: "pass", Driver: "test.pass", Inputs: inputs}}}
}

func keepAll(ec *remote.ExecutionContext) {
	for name := range ec.Tables {
		ec.Keep = append(ec.Keep, remote.OutputName{StepID: "pass", Key: name})
	}
}

// TestTables: tables of every form go up to a step and come back, on every
// adapter.
func TestTables(t *testing.T) {
	const rows, batch = 3000, 700
	dir := t.TempDir()
	for _, form := range []string{"stream", "file", "stream-zstd", "file-lz4"} {
		writeArrow(t, filepath.Join(dir, form), form, numbered(rows, batch))
	}
	var text strings.Builder
	text.WriteString("id,name\n")
	for i := range rows {
		fmt.Fprintf(&text, "%d,name-%08d\n", i, i)
	}
	if err := os.WriteFile(filepath.Join(dir, "table.csv"), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, _ := newAdapter(t, kind, remote.Config{}, nil)
			remote.SetPartSize(a, 10_000)
			ec := newContext(t, "tables")
			ec.BasePath = dir
			ec.Tables = map[string]remote.Table{
				"records": remote.Records(numbered(rows, batch)), "factory": numberedFrom(rows, batch),
				"stream": remote.ArrowFile("stream"), "file": remote.ArrowFile(filepath.Join(dir, "file")),
				"zstd": remote.ArrowFile("stream-zstd"), "lz4": remote.ArrowFile("file-lz4"),
				"csv": remote.CSVFile("table.csv", map[string]any{"columns": []string{"id"}}), "empty": numberedFrom(0, 1),
			}
			m := passing("records", "factory", "stream", "file", "zstd", "lz4", "csv", "empty")
			keepAll(ec)
			p, err := a.Prepare(t.Context(), m, ec)
			if err != nil {
				t.Fatal(err)
			}
			result, err := a.Execute(t.Context(), p, ec)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, ec, result, err)
			fetcher := a.(remote.OutputFetcher)
			for name := range ec.Tables {
				r, err := fetcher.FetchOutput(t.Context(), p, ec, "pass", name)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				switch name {
				case "csv":
					table := wholeTable(t, r)
					if table.NumRows() != rows || table.NumCols() != 1 {
						t.Errorf("csv: %d rows of %s", table.NumRows(), table.Schema())
					}
					table.Release()
				case "empty":
					sameTable(t, r, numbered(0, 1))
				default:
					sameTable(t, r, numbered(rows, batch))
				}
				r.Release()
			}
			sent := events(t, ec, "tables_uploaded")
			if len(sent) != 1 || sent[0]["tables"] != 8.0 || sent[0]["parts"].(float64) < 8 {
				t.Errorf("events tables_uploaded: %v", sent)
			}
			for _, e := range events(t, ec, "inputs_resolved") {
				if e["table"] != e["key"] || e["from_step"] != nil {
					t.Errorf("event %v", e)
				}
			}
			if _, err := a.Collect(t.Context(), p, ec); err != nil {
				t.Fatal(err)
			}
			if _, err := fetcher.FetchOutput(t.Context(), p, ec, "pass", "csv"); !errors.Is(err, remote.ErrSandboxGone) || !strings.Contains(err.Error(), "before Collect") {
				t.Errorf("after Collect: %v", err)
			}
		})
	}
}

// TestTablesRefused: what cannot be is said before anything is made.
// A file without a byte goes up like any other: as CSV it is a table without
// columns, as Arrow it is none.
func TestTableOfNoBytes(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"local", "proxy"} {
		for form, table := range map[string]remote.Table{"csv": remote.CSVFile(name, nil), "arrow": remote.ArrowFile(name)} {
			t.Run(kind+"/"+form, func(t *testing.T) {
				a, _ := newAdapter(t, kind, remote.Config{}, nil)
				ec := newContext(t, "s")
				ec.Tables = map[string]remote.Table{"orders": table}
				_, _, err := remote.Run(t.Context(), a, passing("orders"), ec)
				if form == "csv" && err != nil || form == "arrow" && (err == nil || !strings.Contains(err.Error(), name)) {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

func TestTablesRefused(t *testing.T) {
	pass := passing("orders")
	some := map[string]remote.Table{"orders": numberedFrom(1, 1)}
	for _, test := range []struct {
		name   string
		m      *remote.Manifest
		tables map[string]remote.Table
		keep   []remote.OutputName
		want   error
		text   string
	}{
		{"missing", pass, nil, nil, remote.ErrInvalid, `the table "orders", which ExecutionContext.Tables does not have`},
		{"unused", pass, map[string]remote.Table{"orders": numberedFrom(1, 1), "other": numberedFrom(1, 1)}, nil, remote.ErrInvalid, `Tables["other"] is no step's input`},
		{"zero", pass, map[string]remote.Table{"orders": {}}, nil, remote.ErrInvalid, "is empty; make it by"},
		{"name", passing("a/b"), map[string]remote.Table{"a/b": numberedFrom(1, 1)}, nil, remote.ErrInvalid, "a name that cannot be an input's"},
		{"no file", pass, map[string]remote.Table{"orders": remote.ArrowFile("nowhere.arrow")}, nil, fs.ErrNotExist, `table "orders": file nowhere.arrow`},
		{"directory", pass, map[string]remote.Table{"orders": remote.ArrowFile(".")}, nil, remote.ErrInvalid, "not a regular file"},
		{"no driver", pass, map[string]remote.Table{"orders": remote.ParquetFile("output/paid_orders.csv", nil)}, nil, remote.ErrUnknownDriver, "filesystem.parquet_extractor"},
		{"path twice", pass, map[string]remote.Table{"orders": remote.CSVFile("output/paid_orders.csv", map[string]any{"path": "x"})}, nil, remote.ErrInvalid, "a path in its config"},
		{"both", &remote.Manifest{Steps: []remote.Step{{ID: "a", Driver: "test.noop"}, {ID: "b", Driver: "test.pass", Inputs: map[string]remote.InputRef{"df": {FromStep: "a", Table: "orders"}}}}}, some, nil, remote.ErrInvalid, "at once"},
		{"keep", pass, some, []remote.OutputName{{StepID: "nobody"}}, remote.ErrInvalid, `Keep names the step "nobody"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, _ := newAdapter(t, "in process", remote.Config{}, nil)
			ec := newContext(t, "refused")
			ec.Tables, ec.Keep = test.tables, test.keep
			_, err := a.Prepare(t.Context(), test.m, ec)
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			contains(t, err.Error(), test.text)
		})
	}
	t.Run("other tables", func(t *testing.T) {
		a, _ := newAdapter(t, "in process", remote.Config{}, nil)
		ec := newContext(t, "refused")
		ec.Tables = some
		p, err := a.Prepare(t.Context(), pass, ec)
		if err != nil {
			t.Fatal(err)
		}
		want := []remote.PreparedTable{{Name: "orders", Format: remote.FormatRecords}}
		if diff := cmp.Diff(want, p.Tables); diff != "" {
			t.Error(diff)
		}
		ec.Tables = map[string]remote.Table{"orders": remote.ArrowFile("connections.go")}
		if _, err := a.Execute(t.Context(), p, ec); err == nil {
			t.Error("executed with other tables")
		}
	})
}
