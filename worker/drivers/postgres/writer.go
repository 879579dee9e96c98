package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/osiris-pipelines/remote/worker"
)

// Writer is the driver postgres.writer. The package comment has its config and
// semantics.
type Writer struct{}

type writeConfig struct {
	Table           string  `json:"table"`
	Schema          *string `json:"schema"`
	WriteMode       string  `json:"write_mode"`
	Mode            string  `json:"mode"`
	PrimaryKey      any     `json:"primary_key"`
	UpsertKeys      any     `json:"upsert_keys"` // the name that mysql.writer has for it
	BatchSize       *int64  `json:"batch_size"`
	CreateIfMissing bool    `json:"create_if_missing"`
	TruncateBefore  bool    `json:"truncate_before"`

	keys []string
}

func decodeWrite(step *worker.Step) (*writeConfig, error) {
	cfg := new(writeConfig)
	if err := step.DecodeConfig(cfg); err != nil {
		return nil, err
	}
	if cfg.Table == "" {
		return nil, errors.New("'table' is required in config")
	}
	if cfg.Schema == nil || *cfg.Schema == "" {
		cfg.Schema = new("public")
	}
	if cfg.WriteMode == "" && cfg.Mode != string(worker.Write) { // what the step does, as a manifest may say
		cfg.WriteMode = cfg.Mode
	}
	switch cfg.WriteMode {
	case "", "insert":
		cfg.WriteMode = "append"
	case "append", "upsert", "replace":
	default:
		return nil, fmt.Errorf("config key %q: want one of append, insert, upsert, replace, have %q", "write_mode", cfg.WriteMode)
	}
	if cfg.BatchSize != nil && *cfg.BatchSize < 1 {
		return nil, fmt.Errorf("config key %q: want at least 1, have %d", "batch_size", *cfg.BatchSize)
	}
	if cfg.PrimaryKey == nil {
		cfg.PrimaryKey = cfg.UpsertKeys
	}
	var list []any
	switch v := cfg.PrimaryKey.(type) {
	case nil:
	case []any:
		list = v
	default:
		list = []any{v}
	}
	for _, v := range list {
		name, ok := v.(string)
		if !ok || name == "" || slices.Contains(cfg.keys, name) {
			return nil, fmt.Errorf("config key %q: want a column or a list of columns, each once", "primary_key")
		}
		cfg.keys = append(cfg.keys, name)
	}
	if cfg.WriteMode == "upsert" && len(cfg.keys) == 0 {
		return nil, errors.New("'primary_key' is required in config for write_mode upsert")
	}
	return cfg, nil
}

// Run writes the step's table in one transaction.
//
//   - Shapes: no outputs; the table's columns go to those of the same names.
//   - Units: the metric rows_written counts rows inserted and updated,
//     duration_ms milliseconds.
//   - Errors: a missing table names the inputs there are; ctx's error; [*Error]
//     for those of the server. The messages begin with "PostgreSQL connection
//     failed" or "PostgreSQL write failed".
func (*Writer) Run(ctx context.Context, step *worker.Step) (*worker.Result, error) {
	began := time.Now()
	cfg, err := decodeWrite(step)
	if err != nil {
		return nil, err
	}
	frame, err := step.OnlyInput()
	if err != nil {
		return nil, fmt.Errorf("%s requires a table in inputs: %w", WriterName, err)
	}
	// Texts of times without a zone are UTC, as Arrow's timestamps are.
	s, err := open(ctx, step, "SET LOCAL DateStyle = 'ISO'; SET LOCAL TimeZone = 'UTC'")
	if err != nil {
		return nil, err
	}
	defer s.close()
	w := &write{s: s, cfg: cfg, frame: frame, target: quote(*cfg.Schema) + "." + quote(cfg.Table)}
	rows, err := w.run(ctx)
	if err != nil {
		return nil, w.explain(ctx, err)
	}
	w.tellLoss(step)
	step.LogMetric("rows_written", float64(rows), "rows")
	step.LogMetric("duration_ms", float64(time.Since(began).Microseconds())/1000, "ms")
	return nil, nil
}

// tellLoss reports times that have lost their nanoseconds.
func (w *write) tellLoss(step *worker.Step) {
	columns := make(map[string]int64)
	total := int64(0)
	for _, c := range w.columns {
		if n := c.lost.nanos; n > 0 {
			columns[c.name] = n
			total += n
		}
	}
	if total > 0 {
		step.Log().Warn("times were cut to microseconds, which is what PostgreSQL keeps", "values", total, "columns", slices.Sorted(maps.Keys(columns)))
		step.LogEvent("values_rounded", map[string]any{"values": total, "columns": columns})
	}
}

// write is one run of the writer.
type write struct {
	s      *session
	cfg    *writeConfig
	frame  *worker.DataFrame
	target string // quoted
	kind   string // relkind

	columns []writeColumn
	staged  bool // rows go by way of a temporary table
}

// writeColumn is a column of the input, and of the target.
type writeColumn struct {
	name   string
	bind   binder
	stage  string // type in the temporary table
	value  string // expression over it
	lost   *loss
	always bool // GENERATED ALWAYS AS IDENTITY
}

// ownError is an error that is not the server's.
type ownError struct{ error }

func (e ownError) Unwrap() error { return e.error }

func ownErrorf(format string, args ...any) error { return ownError{fmt.Errorf(format, args...)} }

func (w *write) explain(ctx context.Context, err error) error {
	doing := "PostgreSQL write failed: table " + w.target
	var own ownError
	if ctx.Err() == nil && errors.As(err, &own) {
		return fmt.Errorf("%s: %w", doing, own.error)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P10" {
		doing += fmt.Sprintf(": upsert takes a primary key or unique index on (%s)", quoteAll(w.cfg.keys))
	}
	return w.s.explain(ctx, doing, err)
}

const stageTable = "pg_temp.osiris_stage"

func (w *write) run(ctx context.Context) (rows int64, err error) {
	if err := w.prepare(ctx); err != nil {
		return 0, err
	}
	if w.cfg.WriteMode == "replace" {
		if err := w.clear(ctx); err != nil {
			return 0, err
		}
	}
	if len(w.columns) > 0 {
		if rows, err = w.load(ctx); err != nil {
			return 0, err
		}
	}
	return rows, w.s.exec(ctx, "COMMIT")
}

// clear removes what is in the table. Others who write to it wait from here on:
// two that replace it at once would leave the rows of both.
func (w *write) clear(ctx context.Context) error {
	var sql string
	if w.kind == "r" || w.kind == "p" {
		sql = "LOCK TABLE " + w.target + " IN SHARE ROW EXCLUSIVE MODE; "
	}
	if w.cfg.TruncateBefore {
		return w.s.exec(ctx, sql+"TRUNCATE TABLE "+w.target)
	}
	return w.s.exec(ctx, sql+"DELETE FROM "+w.target)
}

// load writes the rows, and returns how many of the table they became.
func (w *write) load(ctx context.Context) (int64, error) {
	names := make([]string, len(w.columns))
	for i, c := range w.columns {
		names[i] = c.name
	}
	if !w.staged {
		return w.copy(ctx, w.target, names)
	}
	var columns, values []string
	always := false
	for _, c := range w.columns {
		columns = append(columns, quote(c.name)+" "+c.stage)
		values = append(values, c.value+" AS "+quote(c.name))
		always = always || c.always
	}
	if err := w.s.exec(ctx, "CREATE TEMPORARY TABLE osiris_stage ("+strings.Join(columns, ", ")+") ON COMMIT DROP"); err != nil {
		return 0, err
	}
	if _, err := w.copy(ctx, stageTable, names); err != nil {
		return 0, err
	}
	sql := "INSERT INTO " + w.target + " (" + quoteAll(names) + ")"
	if always {
		sql += " OVERRIDING SYSTEM VALUE"
	}
	if w.cfg.WriteMode != "upsert" {
		return w.insert(ctx, sql+" SELECT "+strings.Join(values, ", ")+" FROM "+stageTable)
	}
	// Of rows with one key the last counts. Null is no key: such rows are not
	// found again, and are all inserted.
	var nulls, updates []string
	for _, k := range w.cfg.keys {
		nulls = append(nulls, quote(k)+" IS NULL")
	}
	for _, name := range names {
		if !slices.Contains(w.cfg.keys, name) {
			updates = append(updates, quote(name)+" = EXCLUDED."+quote(name))
		}
	}
	sql += fmt.Sprintf(" SELECT %s FROM (SELECT *, row_number() OVER (PARTITION BY %s ORDER BY osiris_row DESC) AS osiris_rank FROM (SELECT %s, ctid AS osiris_row FROM %s) v) v WHERE osiris_rank = 1 OR %s ON CONFLICT (%s) DO ",
		quoteAll(names), quoteAll(w.cfg.keys), strings.Join(values, ", "), stageTable, strings.Join(nulls, " OR "), quoteAll(w.cfg.keys))
	if len(updates) == 0 {
		return w.insert(ctx, sql+"NOTHING")
	}
	return w.insert(ctx, sql+"UPDATE SET "+strings.Join(updates, ", "))
}

func (w *write) insert(ctx context.Context, sql string) (int64, error) {
	results, err := w.s.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return 0, err
	}
	return results[len(results)-1].CommandTag.RowsAffected(), nil
}

func (w *write) copy(ctx context.Context, table string, names []string) (int64, error) {
	r := &copyReader{ctx: ctx, in: w.frame.Reader(), columns: w.columns}
	defer r.in.Release()
	tag, err := w.s.conn.CopyFrom(ctx, r, "COPY "+table+" ("+quoteAll(names)+") FROM STDIN (FORMAT binary)")
	if r.err != nil { // the server only says that it was told to stop
		return 0, r.err
	}
	return tag.RowsAffected(), err
}

// copyReader is a table in the binary format of COPY. It is built a piece at a
// time, as it is read.
type copyReader struct {
	ctx     context.Context
	in      array.RecordReader
	columns []writeColumn

	rec      arrow.Record
	encoders []encoder
	row      int   // of rec
	done     int64 // rows of the batches before
	started  bool
	ended    bool
	buf      []byte
	at       int // of what was read of buf
	err      error
}

// copyChunk is about how much is built at once.
const copyChunk = 64 << 10

func (r *copyReader) Read(p []byte) (int, error) {
	if r.at == len(r.buf) {
		if r.ended {
			return 0, io.EOF
		}
		r.buf, r.at = r.buf[:0], 0
		if r.err = r.fill(); r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.buf[r.at:])
	r.at += n
	return n, nil
}

func (r *copyReader) fill() error {
	if !r.started {
		r.started = true
		r.buf = append(r.buf, "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	}
	for len(r.buf) < copyChunk {
		if r.rec == nil || r.row == int(r.rec.NumRows()) {
			more, err := r.next()
			if err != nil {
				return err
			}
			if !more {
				r.ended = true
				r.buf = append(r.buf, 0xff, 0xff)
				return nil
			}
			continue
		}
		r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(len(r.encoders)))
		for i, encode := range r.encoders {
			var err error
			if r.buf, err = appendField(r.buf, r.rec.Column(i), r.row, encode); err != nil {
				return ownError{&columnError{r.columns[i].name, r.done + int64(r.row) + 1, err}}
			}
		}
		r.row++
	}
	return nil
}

func (r *copyReader) next() (bool, error) {
	if err := r.ctx.Err(); err != nil {
		return false, err
	}
	if r.rec != nil {
		r.done += r.rec.NumRows()
		r.rec = nil
	}
	if !r.in.Next() {
		return false, r.in.Err()
	}
	r.rec, r.row = r.in.Record(), 0
	r.encoders = r.encoders[:0]
	for i, c := range r.columns {
		r.encoders = append(r.encoders, c.bind(r.rec.Column(i)))
	}
	return true, nil
}

// prepare finds the target's columns, or makes them, and settles how the input
// gets into them.
func (w *write) prepare(ctx context.Context) error {
	schema := w.frame.Schema()
	seen := make(map[string]bool)
	for _, f := range schema.Fields() {
		if seen[f.Name] {
			return ownErrorf("the input has two columns of the name %q", f.Name)
		}
		seen[f.Name] = true
	}
	for _, k := range w.cfg.keys {
		if !seen[k] && w.cfg.WriteMode == "upsert" {
			return ownErrorf("primary_key: the input has no column %q", k)
		}
	}
	rows, err := w.lookup(ctx)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		hint := ""
		schemaName, table, qualified := strings.Cut(w.cfg.Table, ".")
		if qualified {
			hint = fmt.Sprintf("; if %q is a schema, give it by the config key schema, and %q by table", schemaName, table)
		}
		if qualified && w.cfg.CreateIfMissing { // nobody means a table of that name
			return ownErrorf("the table does not exist, and one with a dot in its name is not made%s", hint)
		}
		if !w.cfg.CreateIfMissing {
			return ownErrorf("the table does not exist and create_if_missing is false%s", hint)
		}
		if err := w.create(ctx, schema); err != nil {
			return err
		}
		if rows, err = w.lookup(ctx); err != nil {
			return err
		}
	}
	return w.match(ctx, schema, rows)
}

// lookup returns the target's columns: name, type, modifier, whether it is
// generated, identity, type in words without the modifier and with it, relkind.
func (w *write) lookup(ctx context.Context) ([][][]byte, error) {
	return w.s.query(ctx, `SELECT a.attname, a.atttypid, a.atttypmod, a.attgenerated <> '', a.attidentity = 'a',
			pg_catalog.format_type(a.atttypid, -1), pg_catalog.format_type(a.atttypid, a.atttypmod), c.relkind
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'f') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`,
		*w.cfg.Schema, w.cfg.Table)
}

func (w *write) match(ctx context.Context, schema *arrow.Schema, rows [][][]byte) error {
	byName := make(map[string][][]byte)
	var oids []uint32
	var names []string
	for _, row := range rows {
		byName[string(row[0])] = row
		names = append(names, strconv.Quote(string(row[0])))
		oids = append(oids, number(row[1]))
		w.kind = string(row[7])
	}
	c := newCatalog(w.s)
	if err := c.load(ctx, oids); err != nil {
		return err
	}
	var missing []string
	for _, f := range schema.Fields() {
		row, ok := byName[f.Name]
		if !ok {
			missing = append(missing, strconv.Quote(f.Name))
			continue
		}
		if string(row[3]) == "t" {
			return ownErrorf("column %q is generated by the server and cannot be written; leave it out", f.Name)
		}
		mod, _ := strconv.ParseInt(string(row[2]), 10, 32)
		t, err := c.get(ctx, number(row[1]), int32(mod))
		if err != nil {
			return err
		}
		col := writeColumn{name: f.Name, always: string(row[4]) == "t", stage: string(row[6]), value: quote(f.Name), lost: new(loss)}
		if col.bind = bind(f.Type, t, col.lost); col.bind == nil {
			w.staged = true
			stage := natural(f.Type)
			if stage == nil {
				return ownErrorf("column %q: a column of type %s cannot be written", f.Name, f.Type)
			}
			col.stage = stage.sql
			if col.bind = bind(f.Type, &stage.pgType, col.lost); col.bind == nil {
				return ownErrorf("column %q: %s cannot be written to type %s", f.Name, f.Type, row[6])
			}
			if stage.text {
				// What the type makes of a text. Without its modifier: an explicit
				// cast would cut to a length what the insert refuses.
				col.value += "::" + string(row[5])
			}
		}
		w.columns = append(w.columns, col)
	}
	if len(missing) > 0 {
		return ownErrorf("the table has no column %s; it has %s", strings.Join(missing, ", "), strings.Join(names, ", "))
	}
	w.staged = w.staged || w.cfg.WriteMode == "upsert"
	return nil
}

// create makes the target.
func (w *write) create(ctx context.Context, schema *arrow.Schema) error {
	if schema.NumFields() == 0 {
		return ownErrorf("the input has no columns, so the table cannot be created")
	}
	var columns []string
	for _, f := range schema.Fields() {
		t := natural(f.Type)
		if t == nil {
			return ownErrorf("column %q: there is no type for %s", f.Name, f.Type)
		}
		name := t.sql
		if t.text {
			if origin, ok := f.Metadata.GetValue(typeKey); ok {
				name = originType(name, origin)
			}
		}
		columns = append(columns, quote(f.Name)+" "+name)
	}
	if len(w.cfg.keys) > 0 {
		columns = append(columns, "PRIMARY KEY ("+quoteAll(w.cfg.keys)+")")
	}
	return w.s.exec(ctx, "CREATE TABLE "+w.target+" ("+strings.Join(columns, ", ")+")")
}

// naturalType is the type of the server that is the nearest to one of Arrow.
type naturalType struct {
	pgType
	sql  string
	text bool // a text, or an array of texts
}

// natural returns the nearest type of the server; nil if there is none.
func natural(dt arrow.DataType) *naturalType {
	simple := func(oid uint32, sql string) *naturalType {
		t, _ := builtin(oid)
		return &naturalType{pgType: t, sql: sql}
	}
	switch dt := dt.(type) {
	case *arrow.DictionaryType:
		return natural(dt.ValueType)
	case arrow.ExtensionType:
		return natural(dt.StorageType())
	case *arrow.TimestampType:
		if dt.TimeZone != "" {
			return simple(1184, "timestamptz")
		}
		return simple(1114, "timestamp")
	case arrow.DecimalType:
		precision, scale := dt.GetPrecision(), dt.GetScale()
		if scale < 0 {
			precision, scale = precision-scale, 0
		}
		return simple(1700, fmt.Sprintf("numeric(%d, %d)", max(precision, scale), scale))
	case *arrow.StructType, *arrow.MapType:
		return simple(3802, "jsonb")
	case arrow.ListLikeType:
		elem := natural(dt.Elem())
		switch {
		case elem == nil:
			return nil
		case elem.kind == kJSONB: // lists of structs
			return elem
		case elem.kind == kArray: // the same type, and its column remembers the dimensions
			elem.sql += "[]"
			return elem
		}
		return &naturalType{pgType: pgType{name: "_" + elem.name, kind: kArray, elem: &elem.pgType, dims: 1}, sql: elem.sql + "[]", text: elem.text}
	}
	switch dt.ID() {
	case arrow.BOOL:
		return simple(16, "boolean")
	case arrow.INT8, arrow.INT16, arrow.UINT8:
		return simple(21, "smallint")
	case arrow.INT32, arrow.UINT16:
		return simple(23, "integer")
	case arrow.INT64, arrow.UINT32:
		return simple(20, "bigint")
	case arrow.UINT64:
		return simple(1700, "numeric(20, 0)")
	case arrow.FLOAT16, arrow.FLOAT32:
		return simple(700, "real")
	case arrow.FLOAT64:
		return simple(701, "double precision")
	case arrow.STRING, arrow.LARGE_STRING, arrow.STRING_VIEW, arrow.NULL:
		t := simple(25, "text")
		t.text = true
		return t
	case arrow.BINARY, arrow.LARGE_BINARY, arrow.BINARY_VIEW, arrow.FIXED_SIZE_BINARY:
		return simple(17, "bytea")
	case arrow.DATE32, arrow.DATE64:
		return simple(1082, "date")
	case arrow.TIME32, arrow.TIME64:
		return simple(1083, "time")
	case arrow.DURATION, arrow.INTERVAL_MONTHS, arrow.INTERVAL_DAY_TIME, arrow.INTERVAL_MONTH_DAY_NANO:
		return simple(1186, "interval")
	}
	return nil
}

// originType returns the type that a column of texts was read from, which its
// metadata names, where it is one that takes the texts back. The metadata may
// come from anywhere.
func originType(name, origin string) string {
	base, list := strings.CutSuffix(origin, "[]")
	if list != strings.HasSuffix(name, "[]") {
		return name
	}
	switch base {
	case "uuid", "json", "jsonb", "xml", "numeric", "inet", "cidr", "macaddr", "macaddr8", "varbit", "timetz", "tsvector", "tsquery":
		return base + strings.TrimPrefix(name, "text")
	case "bit":
		return "varbit" + strings.TrimPrefix(name, "text") // of any length
	}
	return name
}
