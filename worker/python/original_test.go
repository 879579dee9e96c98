//go:build unix

package python

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/worker"
)

// originalEnv names a checkout of the project whose drivers must run here as
// they are. mysqlEnv is a connection for its MySQL driver, as JSON: host, port,
// user, password and database.
const (
	originalEnv = "OSIRIS_TEST_ORIGINAL"
	mysqlEnv    = "OSIRIS_TEST_ORIGINAL_MYSQL"
)

// TestOriginal runs drivers of the original project, without a change.
func TestOriginal(t *testing.T) {
	checkout := os.Getenv(originalEnv)
	if checkout == "" {
		t.Skipf("set %s to a checkout of the original project to run its drivers", originalEnv)
	}
	p := newTestPool(t)
	original := func(module, class string) driverClass {
		return driverClass{name: class, module: "osiris.drivers." + module, class: class, sources: []string{checkout}, inArtifacts: true}
	}
	extract := func(t *testing.T, id, content string) *worker.DataFrame {
		step, r := newStep(t, id, map[string]any{"path": id + ".csv"})
		if err := os.WriteFile(filepath.Join(step.BasePath, id+".csv"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		res := mustRun(t, p, original("filesystem_csv_extractor_driver", "FilesystemCsvExtractorDriver"), step)
		defer releaseResult(res)
		if !strings.Contains(strings.Join(r.reported, "\n"), "metric rows_read 3") {
			t.Errorf("reported %q", r.reported)
		}
		return frame(t, res, "df")
	}
	users := extract(t, "users", "id,name,since\n1,Ann,2026-01-02\n2,\"B, ob\",2026-02-03\n3,,2026-03-04\n")
	defer users.Release()
	orders := extract(t, "orders", "id,user_id,amount\n10,1,1.5\n11,1,2.5\n12,3,4.0\n")
	defer orders.Release()

	step, r := newStep(t, "join", map[string]any{"query": "SELECT u.name, sum(o.amount) AS total FROM df_users u JOIN df_orders o ON o.user_id = u.id GROUP BY ALL ORDER BY total DESC, 1"})
	step.Inputs = map[string]*worker.DataFrame{"df_users": users, "df_orders": orders}
	res := mustRun(t, p, original("duckdb_processor_driver", "DuckDBProcessorDriver"), step)
	joined := frame(t, res, "df")
	releaseResult(res)
	defer joined.Release()
	for _, want := range []string{"metric rows_read 6 ", "metric rows_written 2 "} {
		if !strings.Contains(strings.Join(r.reported, "\n"), want) {
			t.Errorf("reported %q, want %q", r.reported, want)
		}
	}

	step, _ = newStep(t, "write", map[string]any{"path": "out/joined.csv"})
	step.Inputs = map[string]*worker.DataFrame{"df_join": joined}
	mustRun(t, p, original("filesystem_csv_writer_driver", "FilesystemCsvWriterDriver"), step)
	got, err := os.ReadFile(filepath.Join(step.ArtifactsDir, "out/joined.csv"))
	if d := cmp.Diff("name,total\nAnn,4.0\n,4.0\n", string(got)); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}

	step, _ = newStep(t, "missing", map[string]any{"path": "none.csv"})
	var de *worker.DriverError
	if _, err := p.run(t.Context(), original("filesystem_csv_extractor_driver", "FilesystemCsvExtractorDriver"), step); !errors.As(err, &de) || !strings.Contains(de.Message, "none.csv") {
		t.Errorf("error %v", err)
	}

	t.Run("mysql", func(t *testing.T) {
		var connection map[string]any
		if s := os.Getenv(mysqlEnv); s == "" {
			t.Skipf("set %s to a connection to run the MySQL driver", mysqlEnv)
		} else if err := json.Unmarshal([]byte(s), &connection); err != nil {
			t.Fatal(err)
		}
		step, r := newStep(t, "movies", map[string]any{"query": "SELECT 1 AS id, 'x' AS name, CAST(1.50 AS DECIMAL(10,2)) AS price, CAST('2026-01-02' AS DATE) AS day", "resolved_connection": connection})
		res := mustRun(t, p, original("mysql_extractor_driver", "MySQLExtractorDriver"), step)
		df := frame(t, res, "df")
		releaseResult(res)
		defer df.Release()
		if d := cmp.Diff("id name price day \n1 x 1.5 2026-01-02 \n", cells(t, df)); d != "" {
			t.Error(d)
		}
		if !strings.Contains(strings.Join(r.reported, "\n"), "metric rows_read 1") {
			t.Errorf("reported %q", r.reported)
		}
	})
}
