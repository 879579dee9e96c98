package csv

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/osiris-pipelines/remote/worker"
	"golang.org/x/text/encoding"
)

// Writer is the driver filesystem.csv_writer. The package comment has its
// config and semantics.
type Writer struct{}

// writeConfig is the writer's config, decoded.
type writeConfig struct {
	path      string
	delimiter byte
	encoding  string
	charset   charset
	header    bool
	newline   string
	quoting   string
}

func decodeWrite(step *worker.Step) (*writeConfig, error) {
	c := newConfig(step.Config)
	cfg := &writeConfig{
		path:      c.str("path", ""),
		delimiter: c.char("delimiter", ","),
		encoding:  c.str("encoding", "utf-8"),
		header:    c.flag("header", true),
		quoting:   c.oneOf("quoting", "minimal", "minimal", "all", "nonnumeric"),
	}
	cfg.newline = map[string]string{"lf": "\n", "crlf": "\r\n", "cr": "\r"}[c.oneOf("newline", "lf", "lf", "crlf", "cr")]
	c.ignore("create_dirs", "chunk_size", "mode", "component", "connection")
	if c.err == nil && cfg.path == "" {
		return nil, errors.New("'path' is required in config")
	}
	if c.err != nil {
		return nil, c.err
	}
	cs, err := lookupCharset(cfg.encoding)
	if err != nil {
		return nil, fmt.Errorf("config key %q: %w", "encoding", err)
	}
	cfg.charset = cs
	c.logUnknown(step.Log())
	return cfg, nil
}

// Run writes the step's table to the file. On an error the file keeps what was
// written up to it.
//
//   - Shapes: no outputs; the file has the columns sorted by name.
//   - Units: the metric rows_written counts rows.
//   - Errors: a missing table names the inputs there are; ctx's error; the rest
//     begins with "CSV writing failed" and names the file.
//   - Source: osiris/drivers/filesystem_csv_writer_driver.py, and pandas 3.1.1.
func (*Writer) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	cfg, err := decodeWrite(step)
	if err != nil {
		return nil, err
	}
	frame, err := step.OnlyInput()
	if err != nil {
		return nil, fmt.Errorf("filesystem.csv_writer requires a table in inputs: %w", err)
	}
	f, err := step.Create(cfg.path)
	if err != nil {
		return nil, fmt.Errorf("CSV writing failed: %w", err)
	}
	rows, err := writeTable(ctx, cfg, frame, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("CSV writing failed: %s: %w", cfg.path, err)
	}
	step.LogMetric("rows_written", float64(rows), "rows")
	return nil, nil
}

// table writes rows.
type table struct {
	cfg     *writeConfig
	out     *bufio.Writer
	enc     *encoding.Encoder
	special [256]bool // bytes that make a field need quotes
	row     []byte
	value   []byte
	units   []byte
	marked  bool
	cells   []cell // where the row's values end, for errors
}

type cell struct {
	column string
	end    int
}

func writeTable(ctx context.Context, cfg *writeConfig, frame *worker.DataFrame, f io.Writer) (rows int64, err error) {
	w := &table{cfg: cfg, out: bufio.NewWriterSize(f, 256<<10)}
	if cfg.charset.enc != nil {
		w.enc = cfg.charset.enc.NewEncoder()
	}
	for _, c := range []byte{cfg.delimiter, '"', '\r', '\n'} {
		w.special[c] = true
	}
	rows, err = w.write(ctx, frame)
	if flushErr := w.out.Flush(); err == nil {
		err = flushErr
	}
	return rows, err
}

func (w *table) write(ctx context.Context, frame *worker.DataFrame) (int64, error) {
	schema := frame.Schema()
	order := make([]int, schema.NumFields())
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		// UTF-8 sorts as code points do.
		return strings.Compare(schema.Field(a).Name, schema.Field(b).Name)
	})
	if w.cfg.header {
		for k, i := range order {
			w.field(k, schema.Field(i).Name, []byte(schema.Field(i).Name), false, len(order))
		}
		if err := w.endRow(0); err != nil {
			return 0, err
		}
	}
	shapes, err := findShapes(ctx, frame, order)
	if err != nil {
		return 0, err
	}
	r := frame.Reader()
	defer r.Release()
	rows := int64(0)
	for r.Next() {
		if err := ctx.Err(); err != nil {
			return rows, err
		}
		n, err := w.batch(ctx, r.Record(), order, shapes, rows)
		rows += n
		if err != nil {
			return rows, err
		}
	}
	return rows, r.Err()
}

// findShapes looks through the columns that are printed by what all their
// values have in common.
func findShapes(ctx context.Context, frame *worker.DataFrame, order []int) ([]shape, error) {
	found := make([]shape, len(order))
	if !slices.ContainsFunc(frame.Schema().Fields(), func(f arrow.Field) bool { return shapes(f.Type) }) {
		return found, nil
	}
	r := frame.Reader()
	defer r.Release()
	for r.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for k, i := range order {
			found[k].observe(r.Record().Column(i))
		}
	}
	return found, r.Err()
}

func (w *table) batch(ctx context.Context, rec arrow.Record, order []int, shapes []shape, done int64) (int64, error) {
	type source struct {
		name    string
		values  arrow.Array
		format  formatter
		numeric bool
		floats  *array.Float64
	}
	cols := make([]source, len(order))
	for k, i := range order {
		c := source{name: rec.ColumnName(i), values: rec.Column(i)}
		var err error
		if c.format, c.numeric, err = newFormatter(c.values, shapes[k]); err != nil {
			return 0, fmt.Errorf("column %q: %w", c.name, err)
		}
		c.floats, _ = c.values.(*array.Float64)
		cols[k] = c
	}
	for row := range int(rec.NumRows()) {
		for k := range cols {
			c := &cols[k]
			w.value = w.value[:0]
			missing := c.values.IsNull(row) || c.floats != nil && math.IsNaN(c.floats.Value(row)) || isNaN(c.values, row)
			if !missing {
				var err error
				if w.value, err = c.format(w.value, row); err != nil {
					return int64(row), fmt.Errorf("column %q, row %d: %w", c.name, done+int64(row)+1, err)
				}
			}
			w.field(k, c.name, w.value, c.numeric && !missing, len(cols))
		}
		if err := w.endRow(done + int64(row) + 1); err != nil {
			return int64(row), err
		}
		if row%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return int64(row), err
			}
		}
	}
	return rec.NumRows(), nil
}

// isNaN reports whether a narrow float is not a number.
func isNaN(a arrow.Array, row int) bool {
	switch a := a.(type) {
	case *array.Float32:
		return math.IsNaN(float64(a.Value(row)))
	case *array.Float16:
		return math.IsNaN(float64(a.Value(row).Float32()))
	}
	return false
}

// field appends the k-th of n fields to the row, with quotes as the config and
// Python's csv module ask for.
func (w *table) field(k int, name string, v []byte, numeric bool, n int) {
	if k > 0 {
		w.row = append(w.row, w.cfg.delimiter)
	}
	quote := false
	switch w.cfg.quoting {
	case "all":
		quote = true
	case "nonnumeric":
		quote = !numeric
	}
	if !quote {
		quote = len(v) == 0 && n == 1
		for _, c := range v {
			if w.special[c] {
				quote = true
				break
			}
		}
	}
	if quote {
		w.row = append(w.row, '"')
		for _, c := range v {
			if c == '"' {
				w.row = append(w.row, '"')
			}
			w.row = append(w.row, c)
		}
		w.row = append(w.row, '"')
	} else {
		w.row = append(w.row, v...)
	}
	w.cells = append(w.cells, cell{name, len(w.row)})
}

// endRow writes the row out; number is its place from 1, 0 for the header.
func (w *table) endRow(number int64) error {
	w.row = append(w.row, w.cfg.newline...)
	if err := w.mark(); err != nil {
		return err
	}
	at, err := w.encode(w.row)
	if err != nil && at >= 0 {
		column := ""
		for _, c := range w.cells {
			if column = c.column; at < c.end {
				break
			}
		}
		where := fmt.Sprintf("row %d", number)
		if number == 0 {
			where = "the header"
		}
		err = fmt.Errorf("CSV encoding error (tried %s): column %q in %s: %w", w.cfg.encoding, column, where, err)
	}
	w.row, w.cells = w.row[:0], w.cells[:0]
	return err
}

// mark writes the byte order mark the encoding begins with. As in Python, a
// file without text has none.
func (w *table) mark() error {
	if w.marked {
		return nil
	}
	w.marked = true
	mark := ""
	switch {
	case w.cfg.charset.kind == utf8BOM:
		mark = "\ufeff"
	case w.cfg.charset.kind == utf16Text && w.cfg.charset.order == nil:
		mark = "\xff\xfe"
	}
	_, err := w.out.WriteString(mark)
	return err
}

// encode writes UTF-8 text in the file's encoding. For text that does not fit
// at is the position of the first such character, else -1.
func (w *table) encode(b []byte) (at int, err error) {
	switch w.cfg.charset.kind {
	case utf8Text, utf8BOM:
		_, err := w.out.Write(b)
		return -1, err
	case asciiText, latin1Text:
		limit := rune(0x80)
		if w.cfg.charset.kind == latin1Text {
			limit = 0x100
		}
		for i, r := range view(b) {
			if r >= limit {
				return i, misfit(r)
			}
			if err := w.out.WriteByte(byte(r)); err != nil {
				return -1, err
			}
		}
		return -1, nil
	case utf16Text:
		order := w.cfg.charset.order
		if order == nil {
			order = binary.LittleEndian
		}
		w.units = w.units[:0]
		for _, r := range view(b) {
			if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
				w.units = appendUnit(appendUnit(w.units, order, r1), order, r2)
			} else {
				w.units = appendUnit(w.units, order, r)
			}
		}
		_, err := w.out.Write(w.units)
		return -1, err
	}
	out, err := w.enc.Bytes(b)
	if err != nil {
		for i, r := range view(b) {
			if _, err := w.enc.String(string(r)); err != nil {
				return i, misfit(r)
			}
		}
		return 0, err
	}
	_, err = w.out.Write(out)
	return -1, err
}

func misfit(r rune) error {
	return fmt.Errorf("character %q does not fit the encoding; use utf-8", r)
}

func appendUnit(b []byte, order binary.ByteOrder, r rune) []byte {
	var u [2]byte
	order.PutUint16(u[:], uint16(r))
	return append(b, u[:]...)
}
