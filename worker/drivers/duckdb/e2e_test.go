package duckdb_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/duckdb"
)

// testdata is that of the module itself: plans that the original compiled, and
// what they read. The NOTICE there says where it is from.
var testdata = filepath.Join("..", "..", "..", "testdata", "osiris")

// buildWorker makes the worker program as `make worker-duckdb` does.
func buildWorker(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "osiris-worker-duckdb")
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "..", "scripts", "worker-duckdb"), program)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// TestWorkerProgram runs the compiled plans with the worker program, wherever a
// worker may run.
func TestWorkerProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a program")
	}
	if runtime.GOOS == "windows" {
		t.Skip("the script that builds the program takes bash")
	}
	program := buildWorker(t)

	if runtime.GOOS == "linux" {
		f, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		libraries, err := f.ImportedLibraries()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range libraries {
			// All of them are glibc's.
			glibc := []string{"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2"}
			if !slices.Contains(glibc, lib) && !strings.HasPrefix(lib, "ld-linux") {
				t.Errorf("the program needs %s", lib)
			}
		}
	}

	out, err := exec.Command(program).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "duckdb.processor, filesystem.csv_extractor, filesystem.csv_writer") {
		t.Errorf("by hand: %v: %s", err, out)
	}

	drivers := worker.NewRegistry()
	csv.Register(drivers)
	duckdb.Register(drivers)
	paid, err := os.ReadFile(filepath.Join(testdata, "ours", "csv_join_duckdb.expected_paid_orders.csv"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := []string{"local", "embedded"}
	if os.Getenv("E2B_ENVD_BIN") != "" {
		kinds = append(kinds, "envd")
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			adapter := newAdapter(t, kind, remote.Config{Drivers: drivers, WorkerPath: program})
			for _, tt := range []struct{ plan, step, file, want string }{
				{"csv-join-duckdb", "write-paid-orders", "paid_orders.csv", string(paid)},
				{"csv-key-collision", "write-counts", "counts.csv", "failed_charges,users\n1,5\n"},
			} {
				manifest, err := remote.LoadManifest(filepath.Join(testdata, "compiled", tt.plan, "manifest.yaml"))
				if err != nil {
					t.Fatal(err)
				}
				ec := &remote.ExecutionContext{SessionID: tt.plan, BasePath: testdata, LogsDir: filepath.Join(t.TempDir(), tt.plan)}
				_, files, err := remote.Run(t.Context(), adapter, manifest, ec)
				if err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(filepath.Join(files.ArtifactsDir, tt.step, "output", tt.file))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, string(got)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tt.plan, diff)
				}
			}
			// A query that fails is the step's error, and the worker lives on.
			ec := &remote.ExecutionContext{SessionID: "bad", BasePath: testdata, LogsDir: filepath.Join(t.TempDir(), "bad")}
			_, _, err := remote.Run(t.Context(), adapter, &remote.Manifest{Name: "bad", Steps: []remote.Step{
				{ID: "sql", Driver: duckdb.ProcessorName, Config: map[string]any{"query": "SELECT * FROM input_df"}},
			}}, ec)
			if err == nil || !strings.Contains(err.Error(), "DuckDB transformation failed: Catalog Error: Table with name input_df does not exist") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func newAdapter(t *testing.T, kind string, cfg remote.Config) remote.ExecutionAdapter {
	t.Helper()
	closed := func(name string, f func() error) {
		t.Cleanup(func() {
			if err := f(); err != nil {
				t.Errorf("close %s: %v", name, err)
			}
		})
	}
	if kind == "local" {
		adapter, err := remote.NewLocalAdapter(cfg)
		if err != nil {
			t.Fatal(err)
		}
		closed("adapter", adapter.Close)
		return adapter
	}
	opt := mock.WithProcesses()
	if kind == "envd" {
		opt = mock.WithEnvd(os.Getenv("E2B_ENVD_BIN"))
	}
	server, err := mock.NewServer(opt)
	if err != nil {
		t.Fatal(err)
	}
	closed("server", server.Close)
	cfg.APIKey, cfg.APIURL, cfg.SandboxURL, cfg.Wheelhouse = server.APIKey(), server.URL(), server.URL(), "off"
	adapter, err := remote.NewE2BTransparentProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	closed("adapter", adapter.Close)
	return adapter
}
