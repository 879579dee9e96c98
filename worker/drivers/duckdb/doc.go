// Package duckdb is the driver duckdb.processor: SQL over the tables of other
// steps, by DuckDB 1.5.0. It is a Go module of its own, since it takes cgo and
// DuckDB's library, which makes a program 50 MB larger.
//
// # Config
//
//	query           the SQL, required; of several statements the last one's result counts
//	memory_limit    what DuckDB may take, as "2GB" or "50%"; default "50%" of the machine's
//	threads         how many DuckDB uses; default one per processor
//	temp_directory  where there is room for what does not fit in memory; default the system's
//
// # Tables
//
// Every input is a table of its name: df_<step> for every step that this one
// needs, and df, too, where there is one; or the names that the step's own
// inputs have in the manifest. DuckDB reads them where the worker holds them:
// nothing is copied, but for what a query needs of it. They are views, and
// cannot be written to. A step without inputs is fine: queries make rows, too.
//
// The database is in memory and is the step's own; nothing is left of it. What
// does not fit under memory_limit goes to a folder below temp_directory that is
// removed when the step ends. The memory of the inputs is the worker's, and is
// not counted.
//
// A query may do what DuckDB may: read files, as read_csv('x.csv') with names
// relative to the run's base path, write them with COPY, attach databases, load
// extensions, reach the network where the sandbox may. So did the original's.
// Files that only a query names are not sent to a sandbox, and those that it
// writes do not come home: read and write with drivers that do.
//
// # Result
//
// The output df has the columns of the last statement. A name that is there
// already, in whatever case, has _1, _2 and so on behind it, as DuckDB's
// Python client does. The rows of a query without ORDER BY are in the order of
// the inputs where the query keeps that. The session's time zone is UTC
// wherever the step runs; "SET TimeZone = 'Europe/Prague';" before the query
// makes it another.
//
// Types are those that DuckDB gives Arrow. What differs from the original, whose
// results went through pandas:
//
//   - DECIMAL stays exact, and HUGEINT, which is what sum makes of integers, is a
//     decimal(38, 0); pandas has float64.
//   - DATE is a date, where pandas has timestamps; TIME a time64.
//   - INTERVAL keeps months, days and nanoseconds apart; pandas has durations, with
//     30 days in a month.
//   - UUID and JSON are texts; an ENUM is a dictionary.
//   - Integers and booleans with missing values stay what they are.
//   - UHUGEINT, TIME WITH TIME ZONE, BIT, BIGNUM, UNION and VARIANT are refused: cast
//     them. pandas is given two of them, BIT as bytes of DuckDB's own, and the
//     members of a UNION.
//   - Infinite dates and timestamps are the largest and least there are.
//
// # Errors and metrics
//
// Errors begin with "DuckDB transformation failed" and have DuckDB's words, after
// the first 500 characters of the query were logged. The metrics are rows_read,
// the rows of all inputs, and rows_written.
//
// Without cgo the package builds and registers a driver that only fails: for a
// host that sends another program as its worker.
package duckdb

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/worker"
)

// ProcessorName is the name under which [Register] adds the driver.
const ProcessorName = "duckdb.processor"

// Register adds the driver to r. It panics when its name is taken.
func Register(r *worker.Registry) {
	r.Add(worker.Registration{
		Name: ProcessorName, Mode: worker.Transform, New: func() worker.Driver { return &Processor{} },
		WholeTables: true, // a query may scan its inputs again, and from many threads
	})
}

// Processor is the driver duckdb.processor. The package comment has its config
// and semantics.
type Processor struct{}

// config is a step's config, decoded.
type config struct {
	query         string
	memoryLimit   string
	threads       string // empty: one per processor
	tempDirectory string // empty: the system's
}

// defaultMemoryLimit leaves the other half to the tables, which the worker
// holds.
const defaultMemoryLimit = "50%"

func decode(step *worker.Step) (*config, error) {
	query, _ := step.Config["query"].(string)
	c := &config{query: strings.TrimSpace(query), memoryLimit: defaultMemoryLimit}
	if c.query == "" {
		return nil, errors.New("'query' is required in config")
	}
	var err error
	text := func(key, want string, to *string) {
		v := step.Config[key]
		if v == nil {
			return
		}
		s, ok := v.(string)
		if s = strings.TrimSpace(s); (!ok || s == "") && err == nil {
			err = fmt.Errorf("config key %q: want %s, have %v", key, want, v)
		}
		*to = s
	}
	text("memory_limit", `a size as "2GB" or a share as "50%"`, &c.memoryLimit)
	text("temp_directory", "a directory", &c.tempDirectory)
	if v := step.Config["threads"]; v != nil {
		n, parseErr := strconv.ParseUint(fmt.Sprint(v), 10, 16)
		if _, isText := v.(string); (parseErr != nil || isText || n == 0) && err == nil {
			err = fmt.Errorf("config key %q: want an integer of at least 1, have %v", "threads", v)
		}
		c.threads = strconv.FormatUint(n, 10)
	}
	if err != nil {
		return nil, err
	}
	known := []string{"query", "memory_limit", "threads", "temp_directory", "mode", "component", "resolved_connection"}
	for _, key := range slices.Sorted(maps.Keys(step.Config)) {
		if !slices.Contains(known, key) {
			step.Log().Debug("config key ignored", "key", key)
		}
	}
	return c, nil
}
