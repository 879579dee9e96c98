package duckdb_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/google/go-cmp/cmp"
)

// pythonEnv names a Python that has duckdb and pyarrow.
const pythonEnv = "OSIRIS_TEST_PYTHON"

// peer runs DuckDB's Python client, with what it reads.
func peer(tb testing.TB, stdin []byte, args ...string) []byte {
	tb.Helper()
	python := os.Getenv(pythonEnv)
	if python == "" {
		tb.Skipf("set %s to a Python with duckdb and pyarrow to compare with it", pythonEnv)
	}
	cmd := exec.Command(python, append([]string{filepath.Join("testdata", "peer.py")}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		tb.Fatalf("%v: %s", err, exit.Stderr)
	}
	return out
}

// TestAgainstPython compares values with what the original's path gives for the
// same queries: DuckDB's Python client and its fetchdf.
func TestAgainstPython(t *testing.T) {
	queries := []string{
		"SELECT NULL AS x",
		"SELECT x FROM (VALUES (true), (NULL), (false)) t(x)",
		"SELECT 1::TINYINT a, 2::SMALLINT b, 3::INTEGER c, 4::UTINYINT d, 5::USMALLINT e, 6::UINTEGER f, 18446744073709551615 g, -9223372036854775808 h",
		"SELECT x FROM (VALUES (1), (NULL), (3)) t(x)",
		"SELECT sum(range) AS s, sum(range * 1.5) AS f, avg(range) AS a, count(*) AS n FROM range(10)",
		"SELECT 170141183460469231731687303715884105727::HUGEINT AS x, (-170141183460469231731687303715884105727)::HUGEINT AS y",
		"SELECT 1.50::DECIMAL(4, 2) a, -1.5::DECIMAL(18, 3) b, 12345678901234567890123456789012345.678::DECIMAL(38, 3) c",
		"SELECT 1.5::FLOAT f, 'inf'::DOUBLE i, '-inf'::DOUBLE j, 1e300 e, -0.0::DOUBLE z",
		"SELECT 'a' || chr(0) || 'é' AS x, '' AS y",
		"SELECT x FROM (VALUES ('a'), (NULL)) t(x)",
		"SELECT DATE '2024-02-29' a, DATE '0001-01-01' b, DATE '1969-12-31' c, NULL::DATE d",
		"SELECT TIME '12:34:56.789012' AS x, TIME '00:00:00' AS y",
		"SELECT TIMESTAMP '2024-01-02 03:04:05.678901' us, '2024-01-02 03:04:05.678901234'::TIMESTAMP_NS ns, '2024-01-02 03:04:05.678'::TIMESTAMP_MS ms, '2024-01-02 03:04:05'::TIMESTAMP_S s, '2024-01-02 03:04:05+02'::TIMESTAMPTZ tz, TIMESTAMP '1969-01-01' o",
		"SELECT INTERVAL '1 year 2 months 3 days 4 seconds' AS x, INTERVAL '-1 day 23:59:59.000001' AS y",
		"SELECT '00112233-4455-6677-8899-aabbccddeeff'::UUID AS x",
		"SELECT '\\x00\\xFF'::BLOB AS x",
		"SELECT '{\"a\": [1, null]}'::JSON AS x",
		"SELECT x FROM (VALUES ('b'::ENUM('a', 'b')), (NULL)) t(x)",
		"SELECT [1, NULL, 3] l, []::INT[] e, [[1], [2, 3]] ll, [1.5, 2] d, ['a', 'b'] t, [1, 2, 3]::INT[3] a",
		"SELECT {'a': 1, 'b': {'c': 'x'}} AS x, MAP {'k': 1, 'l': 2} AS m",
		"SELECT 1 a, 2 a, 3 a, 4 a_1, 5 A",
		"SELECT 1 a WHERE false",
		"CREATE TABLE t (i INT)",
		"CREATE TABLE t (i INT); INSERT INTO t VALUES (1), (2)",
		"CREATE TABLE t AS SELECT 7 AS i; SELECT * FROM t",
	}
	text, err := json.Marshal(queries)
	if err != nil {
		t.Fatal(err)
	}
	type table struct {
		Names []string
		Rows  [][]any
	}
	var want []table
	if err := json.Unmarshal(peer(t, text, "values"), &want); err != nil {
		t.Fatal(err)
	}
	for i, q := range queries {
		df, err := run(t.Context(), (&sink{}).step(query(q), nil))
		if err != nil {
			t.Errorf("%s: %v", q, err)
			continue
		}
		got := table{Names: []string{}, Rows: [][]any{}}
		for _, f := range df.Schema().Fields() {
			got.Names = append(got.Names, f.Name)
		}
		r := df.Reader()
		for r.Next() {
			for row := range int(r.Record().NumRows()) {
				var cells []any
				for _, c := range r.Record().Columns() {
					cells = append(cells, value(t, c, row))
				}
				got.Rows = append(got.Rows, cells)
			}
		}
		r.Release()
		df.Release()
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Errorf("%s (-python +got):\n%s", q, diff)
		}
	}
}

// value returns a value in the form that the peer gives it.
func value(t *testing.T, a arrow.Array, i int) any {
	number := func(v float64) any {
		if math.IsNaN(v) {
			return nil
		}
		return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%.9g", v), "+"))
	}
	if a.IsNull(i) {
		return nil
	}
	switch a := a.(type) {
	case *array.Boolean:
		return a.Value(i)
	case *array.Float32:
		return number(float64(a.Value(i)))
	case *array.Float64:
		return number(a.Value(i))
	case *array.Decimal128:
		return number(a.Value(i).ToFloat64(a.DataType().(*arrow.Decimal128Type).Scale))
	case *array.Date32:
		return fmt.Sprint(a.Value(i).ToTime().Unix(), "000000000ns")
	case *array.Timestamp:
		unit := a.DataType().(*arrow.TimestampType).Unit
		return fmt.Sprint(int64(a.Value(i))*int64(unit.Multiplier()), "ns")
	case *array.Time64:
		return a.Value(i).ToTime(arrow.Microsecond).Format("15:04:05.999999")
	case *array.MonthDayNanoInterval:
		v := a.Value(i)
		days := int64(v.Months)*30 + int64(v.Days)
		return fmt.Sprint(days*int64(24*time.Hour)+v.Nanoseconds, "ns")
	case *array.Binary:
		return hex.EncodeToString(a.Value(i))
	case *array.Dictionary:
		return value(t, a.Dictionary(), a.GetValueIndex(i))
	case *array.Map:
		from, to := a.ValueOffsets(i)
		out := make(map[string]any)
		for k := from; k < to; k++ {
			out[fmt.Sprint(value(t, a.Keys(), int(k)))] = value(t, a.Items(), int(k))
		}
		return out
	case array.ListLike:
		from, to := a.ValueOffsets(i)
		out := []any{}
		for k := from; k < to; k++ {
			out = append(out, value(t, a.ListValues(), int(k)))
		}
		return out
	case *array.Struct:
		out := make(map[string]any)
		for k, f := range a.DataType().(*arrow.StructType).Fields() {
			out[f.Name] = value(t, a.Field(k), i)
		}
		return out
	case *array.String:
		return a.Value(i)
	}
	var v float64 // an integer
	if _, err := fmt.Sscan(a.ValueStr(i), &v); err != nil {
		t.Errorf("%s: %v", a.DataType(), err)
	}
	return number(v)
}
