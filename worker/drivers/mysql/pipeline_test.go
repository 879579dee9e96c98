package mysql_test

import (
	"bytes"
	"encoding/csv"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote"
	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/mock"
	"github.com/osiris-pipelines/remote/worker"
	csvdrivers "github.com/osiris-pipelines/remote/worker/drivers/csv"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
	"github.com/osiris-pipelines/remote/worker/python"
)

func pipelineDrivers() *worker.Registry {
	drivers := worker.NewRegistry()
	csvdrivers.Register(drivers)
	mysql.Register(drivers)
	python.Register(drivers)
	return drivers
}

// tables are those of the compiled pipeline, by the step that writes them.
var tables = map[string]string{
	"write-actors-csv": "actors.csv", "write-directors-csv": "directors.csv", "write-movies-csv": "movies.csv",
	"write-movie-actors-csv": "movie_actors.csv", "write-reviews-csv": "reviews.csv",
}

// runMovies runs the compiled pipeline that brings five tables into files, and
// returns these.
func runMovies(t *testing.T, adapter remote.ExecutionAdapter) map[string][]byte {
	t.Helper()
	manifest, err := remote.LoadManifest(filepath.Join("..", "..", "..", "testdata", "osiris", "compiled", "mysql-to-local-csv-all-tables", "manifest.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ec := &remote.ExecutionContext{SessionID: "s", BasePath: t.TempDir(), LogsDir: filepath.Join(t.TempDir(), "s"), StartedAt: time.Now()}
	_, files, err := remote.Run(t.Context(), adapter, manifest, ec)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(ec.LogsDir, "osiris.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	got := make(map[string][]byte)
	for step, name := range tables {
		if got[name], err = os.ReadFile(filepath.Join(files.ArtifactsDir, step, "output", name)); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// The compiled pipeline gives the tables of a real server, wherever it runs, and
// the same values when pandas reads them in the place of the driver here.
func TestMoviesPipeline(t *testing.T) {
	db := servers.Movies(t)
	cfg := remote.Config{
		Drivers:     pipelineDrivers(),
		Connections: connections.Static{"@mysql.db_movies": db.Connection},
		// Its configs name localhost, which is the sandbox itself there; an embedded
		// one shares this machine's loopback.
		Egress: remote.EgressOpen,
	}
	local, err := remote.NewLocalAdapter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	want := runMovies(t, local)
	for name, b := range want {
		if n := len(rowsOf(t, b)); n < 5 { // with the header
			t.Errorf("%s has %d lines", name, n)
		}
	}

	t.Run("embedded", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("there are no embedded sandboxes")
		}
		server, err := mock.NewServer(mock.WithProcesses())
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		cfg := cfg
		cfg.APIKey, cfg.APIURL, cfg.SandboxURL, cfg.Wheelhouse = server.APIKey(), server.URL(), server.URL(), "off"
		adapter, err := remote.NewE2BTransparentProxy(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer adapter.Close()
		if diff := cmp.Diff(want, runMovies(t, adapter)); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("python", func(t *testing.T) {
		cfg := cfg
		if cfg.Python = os.Getenv("OSIRIS_TEST_PYTHON"); cfg.Python == "" {
			t.Skip("set OSIRIS_TEST_PYTHON to a Python with pandas, pyarrow, SQLAlchemy and pymysql, as make test does")
		}
		sources, err := filepath.Abs(filepath.Join("..", "..", "..", "testdata", "python", "shop"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.PythonDrivers = []remote.PythonDriver{{
			Name: "mysql.extractor", Module: "shop.drivers", Class: "MySQLExtractor", Sources: []string{sources},
			Requirements: []string{"SQLAlchemy>=2", "pymysql"},
		}}
		adapter, err := remote.NewLocalAdapter(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer adapter.Close()
		got := runMovies(t, adapter)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if diff := cmp.Diff(rowsOf(t, want[name]), rowsOf(t, got[name])); diff != "" {
				t.Errorf("%s: -native +python\n%s", name, diff)
			}
		}
	})
}

// rowsOf reads a file, with numbers in one form: where a column has nulls,
// pandas writes its integers as 1.0.
func rowsOf(t *testing.T, b []byte) [][]string {
	t.Helper()
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		for i, v := range row {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				row[i] = strconv.FormatFloat(f, 'g', -1, 64)
			}
		}
	}
	return rows
}
