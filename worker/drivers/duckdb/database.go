//go:build cgo

package duckdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	bindings "github.com/duckdb/duckdb-go-bindings"
)

// database is a database in memory, with one connection.
type database struct {
	db   bindings.Database
	conn bindings.Connection

	functions int // how many there were, for their names
}

// openDatabase opens a database.
func openDatabase() (*database, error) {
	var config bindings.Config
	if bindings.CreateConfig(&config) != bindings.StateSuccess {
		return nil, errMemory
	}
	defer bindings.DestroyConfig(&config)
	d := &database{}
	var message string
	if bindings.OpenExt(":memory:", &d.db, config, &message) != bindings.StateSuccess {
		return nil, errors.New(message)
	}
	if bindings.Connect(d.db, &d.conn) != bindings.StateSuccess {
		d.close()
		return nil, errors.New("the database takes no connection")
	}
	return d, nil
}

// defaultShare is the percentage of the memory there is that DuckDB takes when
// it is not told otherwise.
const defaultShare = 80

// limitMemory limits what queries take to a size as "2GB", or to a share of the
// memory there is as "50%".
func (d *database) limitMemory(ctx context.Context, limit string) error {
	if share, ok := strings.CutSuffix(strings.TrimSpace(limit), "%"); ok {
		percent, err := strconv.ParseFloat(share, 64)
		if err != nil || percent <= 0 || percent > 100 {
			return fmt.Errorf("config key %q: %q is no share of the memory; give one as \"50%%\"", "memory_limit", limit)
		}
		// DuckDB knows what there is, a container's limits included.
		given, err := d.text(ctx, "SELECT current_setting('memory_limit')")
		if err != nil {
			return err
		}
		number, unit, _ := strings.Cut(given, " ")
		size, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return fmt.Errorf("memory limit %q: %w", given, err)
		}
		limit = strconv.FormatFloat(size*percent/defaultShare, 'f', 3, 64) + unit
	}
	return d.run(ctx, "SET memory_limit = "+literal(limit))
}

func (d *database) close() {
	bindings.Disconnect(&d.conn)
	bindings.Close(&d.db)
}

// interruptEvery is how often a query is interrupted: one that is about to
// begin forgets that it was.
const interruptEvery = 20 * time.Millisecond

// interruptWhen interrupts what the connection does, from ctx's end on. stop
// ends that and waits.
func (d *database) interruptWhen(ctx context.Context) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(ended)
		tick := time.NewTicker(interruptEvery)
		defer tick.Stop()
		for {
			bindings.Interrupt(d.conn)
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(done)
		if !unhook() {
			<-ended
		}
	}
}

// query executes the statements of a text and returns the last one's result,
// whose rows are made as they are fetched.
func (d *database) query(ctx context.Context, text string) (*result, error) {
	var statements bindings.ExtractedStatements
	n := bindings.ExtractStatements(d.conn, text, &statements)
	defer bindings.DestroyExtracted(&statements)
	if n == 0 {
		if message := bindings.ExtractStatementsError(statements); message != "" {
			return nil, errors.New(message)
		}
		return nil, errors.New("the query holds no statement")
	}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := d.execute(statements, i)
		if err != nil {
			return nil, err
		}
		if i == n-1 {
			return r, nil
		}
		err = r.drain(ctx)
		r.close()
		if err != nil {
			return nil, err
		}
	}
	panic("not reached")
}

func (d *database) execute(statements bindings.ExtractedStatements, i bindings.IdxT) (*result, error) {
	r := &result{}
	if bindings.PrepareExtractedStatement(d.conn, statements, i, &r.stmt) != bindings.StateSuccess {
		err := errors.New(bindings.PrepareError(r.stmt))
		r.close()
		return nil, err
	}
	var pending bindings.PendingResult
	defer bindings.DestroyPending(&pending)
	if !streamPending(r.stmt, &pending) {
		err := errors.New(bindings.PendingError(pending))
		r.close()
		return nil, err
	}
	r.executed = true
	if bindings.ExecutePending(pending, &r.res) != bindings.StateSuccess {
		err := errors.New(bindings.ResultError(&r.res))
		r.close()
		return nil, err
	}
	return r, nil
}

// result is the result of a statement.
type result struct {
	stmt     bindings.PreparedStatement
	res      bindings.Result
	executed bool
}

// fetch returns the next rows, to be destroyed; none at the end.
func (r *result) fetch() (chunk bindings.DataChunk, ok bool, err error) {
	chunk = bindings.FetchChunk(r.res)
	if chunk.Ptr != nil {
		return chunk, true, nil
	}
	if message := bindings.ResultError(&r.res); message != "" {
		return chunk, false, errors.New(message)
	}
	return chunk, false, nil
}

// drain reads a result to its end, which executes what is left of it.
func (r *result) drain(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk, ok, err := r.fetch()
		if err != nil || !ok {
			return err
		}
		bindings.DestroyDataChunk(&chunk)
	}
}

func (r *result) close() {
	if r.executed {
		bindings.DestroyResult(&r.res)
	}
	bindings.DestroyPrepare(&r.stmt)
}

// run executes statements for what they do.
func (d *database) run(ctx context.Context, text string) error {
	r, err := d.query(ctx, text)
	if err != nil {
		return err
	}
	defer r.close()
	return r.drain(ctx)
}

// text executes a query and returns its first value, a text.
func (d *database) text(ctx context.Context, query string) (string, error) {
	r, err := d.query(ctx, query)
	if err != nil {
		return "", err
	}
	defer r.close()
	conv, err := newConverter(&r.res)
	if err != nil {
		return "", err
	}
	defer conv.close()
	chunk, ok, err := r.fetch()
	if err != nil || !ok {
		return "", cmp.Or(err, errors.New("no value"))
	}
	defer bindings.DestroyDataChunk(&chunk)
	rec, err := conv.record(chunk)
	if err != nil {
		return "", err
	}
	defer rec.Release()
	return strings.Clone(rec.Column(0).ValueStr(0)), nil
}
