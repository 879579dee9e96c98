package mysql_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/internal/dbtest"
	"github.com/osiris-pipelines/remote/worker"
)

// pythonEnv names a Python that has pandas, SQLAlchemy and PyMySQL.
const pythonEnv = "OSIRIS_TEST_PYTHON"

// peer asks the original's way of reading.
func peer(tb testing.TB, db *dbtest.Database, answer any, timed bool, queries ...string) {
	tb.Helper()
	python := os.Getenv(pythonEnv)
	if python == "" {
		tb.Skipf("set %s to a Python with pandas, SQLAlchemy and PyMySQL to compare with them", pythonEnv)
	}
	request := maps.Clone(db.Connection)
	request["queries"], request["time"] = queries, timed
	in, err := json.Marshal(request)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(python, filepath.Join("testdata", "peer.py"))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(out, answer); err != nil {
		tb.Fatal(err)
	}
}

// asPeer gives the columns of a table in the peer's words.
func asPeer(f *worker.DataFrame) [][]*string {
	cols := make([][]*string, f.Schema().NumFields())
	for i := range cols {
		cols[i] = []*string{}
	}
	r := f.Reader()
	defer r.Release()
	for r.Next() {
		for i := range cols {
			for row := range int(r.Record().NumRows()) {
				cols[i] = append(cols[i], peerText(r.Record().Column(i), row))
			}
		}
	}
	return cols
}

func peerText(a arrow.Array, row int) *string {
	if a.IsNull(row) {
		return nil
	}
	s := cell(a, row)
	switch a := a.(type) {
	case *array.Timestamp:
		s = a.Value(row).ToTime(arrow.Microsecond).Format("2006-01-02 15:04:05.000000")
	case *array.Decimal128, *array.Decimal256:
		s = normal(s)
	}
	return &s
}

// normal gives a number one form, so that texts compare as numbers do.
func normal(s string) string {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return s
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// TestPeer reads every type, and a few whole tables, by the original's way, too.
func TestPeer(t *testing.T) {
	db := servers.MariaDB(t).Database(t)
	var queries []string
	cases := typeCases()
	typesTable(t, db, cases)
	for i, c := range cases {
		where := fmt.Sprintf(" WHERE c%d IS NOT NULL", i) // of numbers with nulls, pandas makes floats
		switch c.arrow {
		case "utf8", "binary", "date32", "timestamp[us]", "duration[us]":
			where = ""
		}
		queries = append(queries, fmt.Sprintf("SELECT c%d FROM types%s ORDER BY id", i, where))
	}
	movies := servers.Movies(t)
	for _, table := range []string{"actors", "directors", "movies", "movie_actors", "reviews"} {
		queries = append(queries, fmt.Sprintf("SELECT * FROM %s.%s", movies.Connection["database"], table))
	}
	var want [][][]*string
	peer(t, db, &want, false, queries...) // a Python takes a while to start: once for all
	for i, c := range cases {
		got := asPeer(extract(t, db, queries[i]))
		for k := range got[0] {
			g, w := got[0][k], want[i][0][k]
			if g == nil || w == nil {
				continue
			}
			switch {
			case c.arrow == "float32": // MySQL tells PyMySQL 6 digits
				f, _ := strconv.ParseFloat(*g, 32)
				*g, *w = normal(strconv.FormatFloat(f, 'g', 6, 32)), normal(*w)
			case c.arrow == "float64", c.sql[:2] == "DE":
				*g, *w = normal(*g), normal(*w)
			case c.sql[:3] == "BIT": // bytes there
				n, err := strconv.ParseUint(*w, 16, 64)
				if err != nil {
					t.Fatal(err)
				}
				*w = strconv.FormatUint(n, 10)
				if c.arrow == "bool" {
					*w = strconv.FormatBool(n == 1)
				}
			}
		}
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Errorf("%s (-pandas +got):\n%s", c.sql, diff)
		}
	}
	for i := len(cases); i < len(queries); i++ {
		f := extract(t, db, queries[i])
		got := asPeer(f)
		for k, field := range f.Schema().Fields() {
			if field.Type.ID() != arrow.FLOAT64 && field.Type.ID() != arrow.DECIMAL128 {
				continue
			}
			for row, s := range want[i][k] {
				if s != nil && got[k][row] != nil {
					*want[i][k][row], *got[k][row] = normal(*s), normal(*got[k][row])
				}
			}
		}
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Errorf("%s (-pandas +got):\n%s", queries[i], diff)
		}
	}
}
