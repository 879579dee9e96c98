package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/go-sql-driver/mysql"

	"github.com/osiris-pipelines/remote/worker"
)

// statementBytes ends a statement before it has batch_size rows.
const statementBytes = 1 << 20

// Writer is the driver mysql.writer. The package comment has its config and
// semantics.
type Writer struct{}

// Hosts returns the server of the connection.
func (*Writer) Hosts(config map[string]any) ([]string, error) { return hosts(config) }

// strict makes the server refuse what a column cannot hold, and take a 0 for a
// number where a column counts by itself.
const strict = "'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO'"

// Run writes the step's table to the server's.
//
//   - Shapes: no outputs; columns are matched by name.
//   - Units: the metric rows_written counts the rows that are in the table, and
//     duration_ms is the time it took.
//   - Errors: ctx's error; the messages begin with "MySQL connection failed" or
//     "MySQL write failed"; a [*mysql.MySQLError] has the server's code.
//   - Source: the component specification of mysql.writer; of the modes,
//     osiris/drivers/supabase_writer_driver.py.
func (*Writer) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeWrite(step)
	if err != nil {
		return nil, err
	}
	frame, err := step.OnlyInput()
	if err != nil {
		return nil, fmt.Errorf("mysql.writer requires a table in inputs: %w", err)
	}
	begin := time.Now()
	s, err := connect(ctx, step, map[string]string{"time_zone": "'+00:00'", "sql_mode": strict, "autocommit": "1"})
	if err != nil {
		return nil, err
	}
	w := &writing{step: step, cfg: cfg, session: s, table: newTable(cfg), frame: frame}
	if err := w.run(); err != nil {
		w.undo(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("MySQL write failed: %w", err)
	}
	s.close()
	w.report()
	step.LogMetric("rows_written", float64(w.rows), "rows")
	step.LogMetric("duration_ms", float64(time.Since(begin).Milliseconds()), "ms")
	return nil, nil
}

// writing is one run of the writer.
type writing struct {
	step    *worker.Step
	cfg     *writeConfig
	session *session
	table   *table
	frame   *worker.DataFrame
	targets []*target // of the frame's columns

	limit int    // bytes of a statement, by the server
	head  string // of every statement
	tail  string
	rows  int64
}

func (w *writing) run() error {
	if err := w.prepare(); err != nil {
		return err
	}
	if !w.cfg.oneByOne {
		if _, err := w.session.exec("START TRANSACTION"); err != nil {
			return err
		}
	}
	if w.cfg.mode == modeReplace || w.cfg.truncate {
		// Not TRUNCATE, which cannot be undone.
		if _, err := w.session.exec("DELETE FROM " + w.table.name); err != nil {
			return err
		}
	}
	if err := w.insert(); err != nil {
		return err
	}
	if w.cfg.oneByOne {
		return nil
	}
	_, err := w.session.exec("COMMIT")
	return err
}

// undo ends a session after a failure, so that the server has rolled back, or is
// about to. A table that was created goes where it was to be all or nothing.
func (w *writing) undo(ctx context.Context) {
	if ctx.Err() != nil {
		w.session.abandon()
		if !w.table.created || w.cfg.oneByOne {
			return
		}
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		s, err := connect(late, w.step, nil)
		if err != nil {
			return
		}
		w.session = s
	}
	w.session.exec("ROLLBACK") //nolint:errcheck // the end of the connection does the same
	if w.table.created && !w.cfg.oneByOne {
		w.session.exec("DROP TABLE " + w.table.name) //nolint:errcheck // it is empty
	}
	w.session.close()
}

// prepare finds the table, or creates it, and its columns.
func (w *writing) prepare() error {
	t, schema := w.table, w.frame.Schema()
	if err := t.describe(w.session, w.cfg); err != nil {
		return err
	}
	if len(t.columns) == 0 {
		if !w.cfg.create {
			return errors.New("Table " + w.cfg.table + " does not exist and create_if_missing is false")
		}
		if err := t.create(w.session, w.cfg, schema); err != nil {
			return err
		}
		if err := t.describe(w.session, w.cfg); err != nil {
			return err
		}
	}
	var missing []string
	for _, f := range schema.Fields() {
		c := t.column(f.Name)
		if c == nil {
			missing = append(missing, strconv.Quote(f.Name))
			continue
		}
		if slices.Contains(w.targets, c) {
			return fmt.Errorf("the input has the column %q twice", f.Name)
		}
		w.targets = append(w.targets, c)
	}
	if len(missing) > 0 {
		return fmt.Errorf("table %s has no column %s", w.cfg.table, strings.Join(missing, ", "))
	}
	for _, key := range w.cfg.keys {
		if c := t.column(key); c == nil || !slices.Contains(w.targets, c) {
			return fmt.Errorf("key column %q is not in the input", key)
		}
	}
	if w.cfg.mode == modeUpsert {
		if err := t.checkKeys(w.session, w.cfg); err != nil {
			return err
		}
	}
	if engine, undoes, err := t.keepsAll(w.session, w.cfg); err != nil {
		return err
	} else if !undoes && !w.cfg.oneByOne {
		w.step.Log().Warn("the table's engine has no transactions: a write that fails leaves what was written", "table", w.cfg.table, "engine", engine)
	}
	rows, err := w.session.ask("SELECT @@max_allowed_packet")
	if err != nil {
		return err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return errors.New("the server does not tell its max_allowed_packet")
	}
	if w.limit, err = strconv.Atoi(rows[0][0]); err != nil {
		return err
	}
	w.statement()
	return nil
}

// statement makes what stands before and behind the rows.
func (w *writing) statement() {
	b := []byte("INSERT INTO " + w.table.name + " (")
	for i, c := range w.targets {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendName(b, c.name)
	}
	w.head = string(append(b, ") VALUES "...))
	if w.cfg.mode == modeUpsert {
		w.tail = w.onDuplicate()
	}
}

// onDuplicate updates the row that has the same keys. Another unique index may
// have found another row: a key of that becomes null then, which is an error,
// and not a row that nobody meant to change.
func (w *writing) onDuplicate() string {
	var same []byte
	for i, key := range w.cfg.keys {
		if i > 0 {
			same = append(same, " AND "...)
		}
		name := string(appendName(nil, w.table.column(key).name))
		same = append(same, w.table.name+"."+name+" = VALUES("+name+")"...)
	}
	guard := string(appendName(nil, w.table.column(w.cfg.keys[0]).name))
	b := []byte(" ON DUPLICATE KEY UPDATE " + guard + " = IF(" + string(same) + ", " + w.table.name + "." + guard + ", NULL)")
	for _, c := range w.targets {
		if slices.ContainsFunc(w.cfg.keys, func(k string) bool { return w.table.column(k) == c }) {
			continue
		}
		name := string(appendName(nil, c.name))
		b = append(b, ", "+name+" = VALUES("+name+")"...)
	}
	return string(b)
}

// insert writes all rows.
func (w *writing) insert() error {
	r := w.frame.Reader()
	defer r.Release()
	buf, rows := []byte(w.head), 0
	for r.Next() {
		rec := r.Record()
		encoders, err := w.encoders(rec)
		if err != nil {
			return err
		}
		for row := range int(rec.NumRows()) {
			if len(encoders) == 0 {
				break
			}
			start := len(buf)
			if buf, err = appendRow(buf, rec, encoders, row); err != nil {
				return fmt.Errorf("row %d: %w", w.rows+int64(rows)+1, err)
			}
			if rows > 0 && len(buf)+len(w.tail) >= w.limit {
				// The last one goes to the next statement.
				last := slices.Clone(buf[start+1:])
				if err := w.send(buf[:start], rows); err != nil {
					return err
				}
				buf, rows = append(append(buf[:0], w.head...), last...), 0
			}
			rows++
			if rows < w.cfg.batchRows && len(buf) < statementBytes {
				continue
			}
			if err := w.send(buf, rows); err != nil {
				return err
			}
			buf, rows = append(buf[:0], w.head...), 0
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	if rows == 0 {
		return nil
	}
	return w.send(buf, rows)
}

func (w *writing) encoders(rec arrow.Record) ([]encoder, error) {
	list := make([]encoder, rec.NumCols())
	for i := range list {
		var err error
		if list[i], err = encoderOf(rec.Column(i), w.targets[i]); err != nil {
			return nil, fmt.Errorf("column %q: %w", rec.ColumnName(i), err)
		}
	}
	return list, nil
}

func appendRow(buf []byte, rec arrow.Record, encoders []encoder, row int) (_ []byte, err error) {
	if buf[len(buf)-1] == ')' {
		buf = append(buf, ',')
	}
	buf = append(buf, '(')
	for i, encode := range encoders {
		if i > 0 {
			buf = append(buf, ',')
		}
		if rec.Column(i).IsNull(row) {
			buf = append(buf, "NULL"...)
		} else if buf, err = encode(buf, row); err != nil {
			return nil, fmt.Errorf("column %q: %w", rec.ColumnName(i), err)
		}
	}
	return append(buf, ')'), nil
}

// errNull is the server's code for a null where none may be.
const errNull = 1048

// send sends a statement of some rows.
func (w *writing) send(statement []byte, rows int) error {
	done, err := w.session.exec(string(statement) + w.tail)
	where := fmt.Sprintf("rows %d to %d", w.rows+1, w.rows+int64(rows))
	var mine *mysql.MySQLError
	switch {
	case errors.Is(err, mysql.ErrPktTooLarge):
		return fmt.Errorf("%s: the statement has %d bytes, and the server takes %d (max_allowed_packet)", where, len(statement)+len(w.tail), w.limit)
	case errors.As(err, &mine) && mine.Number == errNull && w.cfg.mode == modeUpsert:
		return fmt.Errorf("%s: a key is null, or another unique index than that of the keys has found another row: %w", where, err)
	case err != nil:
		return fmt.Errorf("%s: %w", where, err)
	case w.cfg.mode != modeUpsert && done != int64(rows):
		return fmt.Errorf("%s: the server has written %d of them", where, done)
	}
	w.rows += int64(rows)
	return nil
}

// report tells of values that had more decimals than their column.
func (w *writing) report() {
	rounded := make(map[string]int64)
	total := int64(0)
	for _, c := range w.targets {
		if c.rounded > 0 {
			rounded[c.name] = c.rounded
			total += c.rounded
		}
	}
	if total > 0 {
		w.step.Log().Warn("values had more decimals than their columns", "values", total, "table", w.cfg.table)
		w.step.LogEvent("values_rounded", map[string]any{"values": total, "columns": rounded})
	}
}
