package csv

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/osiris-pipelines/remote/worker"
)

// tableColumn is a column as the goldens hold it.
type tableColumn struct {
	Name   string    `json:"name"`
	Type   string    `json:"type"`
	Values []*string `json:"values"`
}

type result struct {
	Columns []tableColumn `json:"columns"`
	CSV     *string       `json:"csv"` // base64
	Error   string        `json:"error"`
}

type readCase struct {
	Name   string         `json:"name"`
	Input  string         `json:"input"` // base64
	Config map[string]any `json:"config"`
	Want   result         `json:"want"`
}

type writeCase struct {
	Name    string         `json:"name"`
	Columns []tableColumn  `json:"columns"`
	Config  map[string]any `json:"config"`
	Want    result         `json:"want"`
}

func loadGolden[T any](tb testing.TB, name string) (cases []T) {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.UseNumber()
	if err := dec.Decode(&cases); err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return cases
}

// sink records metrics.
type sink struct {
	mu      sync.Mutex
	metrics []string
}

func (s *sink) Event(string, map[string]any) {}
func (s *sink) Metric(name string, value float64, unit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics = append(s.metrics, fmt.Sprintf("%s=%v %s", name, value, unit))
}

// extract runs the extractor on content and returns its table.
func extract(tb testing.TB, content []byte, config map[string]any) (*worker.DataFrame, error) {
	tb.Helper()
	return extractWith(tb, &Extractor{}, &worker.Step{}, content, config)
}

func extractWith(tb testing.TB, d *Extractor, step *worker.Step, content []byte, config map[string]any) (*worker.DataFrame, error) {
	tb.Helper()
	if step.BasePath == "" {
		step.BasePath = tb.TempDir()
	}
	merged := map[string]any{"path": "in.csv"}
	for k, v := range config {
		merged[k] = v
	}
	step.Config = merged
	if content != nil {
		if err := os.WriteFile(filepath.Join(step.BasePath, merged["path"].(string)), content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	res, err := d.Run(context.Background(), step)
	if err != nil {
		return nil, err
	}
	r := res.Outputs[worker.DefaultOutput]
	defer r.Release()
	return worker.ReadDataFrame(r)
}

// write runs the writer on a table and returns the file.
func write(tb testing.TB, frame *worker.DataFrame, config map[string]any) ([]byte, error) {
	tb.Helper()
	dir := tb.TempDir()
	merged := map[string]any{"path": "out.csv"}
	for k, v := range config {
		merged[k] = v
	}
	step := &worker.Step{ArtifactsDir: dir, Config: merged, Inputs: map[string]*worker.DataFrame{"df": frame}}
	if _, err := (&Writer{}).Run(context.Background(), step); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "out.csv"))
}

// render gives a table in the goldens' words.
func render(f *worker.DataFrame) []tableColumn {
	cols := make([]tableColumn, f.Schema().NumFields())
	for i, field := range f.Schema().Fields() {
		cols[i] = tableColumn{Name: field.Name, Type: field.Type.String(), Values: []*string{}}
	}
	r := f.Reader()
	defer r.Release()
	for r.Next() {
		for i := range cols {
			a := r.Record().Column(i)
			for row := range a.Len() {
				cols[i].Values = append(cols[i].Values, renderValue(a, row))
			}
		}
	}
	return cols
}

func renderValue(a arrow.Array, row int) *string {
	if a.IsNull(row) {
		return nil
	}
	var s string
	switch a := a.(type) {
	case *array.Float64:
		s = string(appendFloat(nil, a.Value(row), 64))
	case *array.Float32:
		s = string(appendFloat(nil, float64(a.Value(row)), 64))
	case *array.Boolean:
		s = string(appendBool(nil, a.Value(row)))
	case *array.Timestamp:
		at := a.Value(row).ToTime(a.DataType().(*arrow.TimestampType).Unit)
		s = at.Format("2006-01-02T15:04:05")
		if n := at.Nanosecond(); n%1000 != 0 {
			s += fmt.Sprintf(".%09d", n)
		} else if n != 0 {
			s += fmt.Sprintf(".%06d", n/1000)
		}
	default:
		s = a.ValueStr(row)
	}
	return &s
}

// frame makes a table of the goldens' words.
func frame(tb testing.TB, cols []tableColumn) *worker.DataFrame {
	tb.Helper()
	fields := make([]arrow.Field, len(cols))
	arrays := make([]arrow.Array, len(cols))
	rows := 0
	for i, c := range cols {
		typ := typeByName(c.Type)
		fields[i] = arrow.Field{Name: c.Name, Type: typ, Nullable: true}
		b := array.NewBuilder(memory.DefaultAllocator, typ)
		defer b.Release()
		for _, v := range c.Values {
			if v == nil {
				b.AppendNull()
			} else if err := b.AppendValueFromString(*v); err != nil {
				tb.Fatalf("%s: %v", c.Type, err)
			}
		}
		arrays[i] = b.NewArray()
		defer arrays[i].Release()
		rows = len(c.Values)
	}
	return frameOf(tb, arrow.NewSchema(fields, nil), array.NewRecord(arrow.NewSchema(fields, nil), arrays, int64(rows)))
}

func frameOf(tb testing.TB, schema *arrow.Schema, recs ...arrow.Record) *worker.DataFrame {
	tb.Helper()
	r, err := array.NewRecordReader(schema, recs)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Release()
	for _, rec := range recs {
		rec.Release()
	}
	f, err := worker.ReadDataFrame(r)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func typeByName(name string) arrow.DataType {
	switch name {
	case "utf8":
		return arrow.BinaryTypes.String
	case "bool":
		return arrow.FixedWidthTypes.Boolean
	case "date32":
		return arrow.FixedWidthTypes.Date32
	case "time64[us]":
		return arrow.FixedWidthTypes.Time64us
	case "decimal(10, 2)":
		return &arrow.Decimal128Type{Precision: 10, Scale: 2}
	case "float16":
		return arrow.FixedWidthTypes.Float16
	case "duration[us]":
		return arrow.FixedWidthTypes.Duration_us
	case "duration[ns]":
		return arrow.FixedWidthTypes.Duration_ns
	}
	if inner, ok := strings.CutPrefix(name, "timestamp["); ok {
		unit, zone, _ := strings.Cut(strings.TrimSuffix(inner, "]"), ", tz=")
		return &arrow.TimestampType{Unit: map[string]arrow.TimeUnit{"s": arrow.Second, "ms": arrow.Millisecond, "us": arrow.Microsecond, "ns": arrow.Nanosecond}[unit], TimeZone: zone}
	}
	return map[string]arrow.DataType{
		"int8": arrow.PrimitiveTypes.Int8, "int16": arrow.PrimitiveTypes.Int16, "int32": arrow.PrimitiveTypes.Int32, "int64": arrow.PrimitiveTypes.Int64,
		"uint8": arrow.PrimitiveTypes.Uint8, "uint16": arrow.PrimitiveTypes.Uint16, "uint32": arrow.PrimitiveTypes.Uint32, "uint64": arrow.PrimitiveTypes.Uint64,
		"float32": arrow.PrimitiveTypes.Float32, "float64": arrow.PrimitiveTypes.Float64,
	}[name]
}

func unbase64(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// checkRead compares an extraction, and the writer's file of it, with pandas'.
func checkRead(tb testing.TB, input []byte, config map[string]any, want result) {
	tb.Helper()
	f, err := extract(tb, input, config)
	if want.Error != "" {
		if err == nil {
			tb.Fatalf("no error; pandas says %s", want.Error)
		}
		return
	}
	if err != nil {
		tb.Fatalf("%v; pandas reads it", err)
	}
	defer f.Release()
	if diff := cmp.Diff(want.Columns, render(f)); diff != "" {
		tb.Errorf("table (-pandas +got):\n%s", diff)
	}
	if want.CSV == nil {
		return
	}
	got, err := write(tb, f, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if diff := cmp.Diff(string(unbase64(tb, *want.CSV)), string(got)); diff != "" {
		tb.Errorf("written (-pandas +got):\n%s", diff)
	}
}

func TestReadGolden(t *testing.T) {
	for _, c := range loadGolden[readCase](t, "read_golden.json") {
		t.Run(c.Name, func(t *testing.T) {
			checkRead(t, unbase64(t, c.Input), c.Config, c.Want)
		})
	}
}

func TestWriteGolden(t *testing.T) {
	for _, c := range loadGolden[writeCase](t, "write_golden.json") {
		t.Run(c.Name, func(t *testing.T) { checkWrite(t, c) })
	}
}

func checkWrite(tb testing.TB, c writeCase) {
	tb.Helper()
	f := frame(tb, c.Columns)
	defer f.Release()
	got, err := write(tb, f, c.Config)
	if c.Want.Error != "" {
		if err == nil {
			tb.Fatalf("no error; pandas says %s", c.Want.Error)
		}
		return
	}
	if err != nil {
		tb.Fatal(err)
	}
	if diff := cmp.Diff(string(unbase64(tb, *c.Want.CSV)), string(got)); diff != "" {
		tb.Errorf("written (-pandas +got):\n%s", diff)
	}
}

// pythonEnv names a Python that has pandas.
const pythonEnv = "OSIRIS_TEST_PYTHON"

// TestAgainstPandas feeds random files and tables to pandas and to the drivers.
func TestAgainstPandas(t *testing.T) {
	python := os.Getenv(pythonEnv)
	if python == "" {
		t.Skipf("set %s to a Python with pandas to compare with it", pythonEnv)
	}
	cmd := exec.Command(python, filepath.Join("testdata", "make_golden.py"), "--serve")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }() //nolint:errcheck // the answers count
	answers := bufio.NewReader(out)
	ask := func(request any) (r result) {
		t.Helper()
		if err := json.NewEncoder(in).Encode(request); err != nil {
			t.Fatal(err)
		}
		line, err := answers.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	seed := testSeed(t)
	rounds := 250
	if stressed() {
		rounds = 5000
	}
	g := &generator{rand.New(rand.NewPCG(seed, 1))}
	for i := range rounds {
		input, config := g.file()
		want := ask(map[string]any{"input": base64.StdEncoding.EncodeToString(input), "config": config})
		if want.Error == "" && config["encoding"] == nil && !utf8.Valid(input) {
			continue // it is in what pandas drops, a difference that doc.go names
		}
		ok := t.Run(fmt.Sprintf("read/%d", i), func(t *testing.T) { checkRead(t, input, config, want) })
		if !ok {
			t.Fatalf("input %q, config %v, pandas %+v", input, config, want)
		}
	}
	for i := range rounds / 3 {
		c := writeCase{Columns: g.table(), Config: g.writeConfig()}
		c.Want = ask(map[string]any{"columns": c.Columns, "config": c.Config})
		ok := t.Run(fmt.Sprintf("write/%d", i), func(t *testing.T) { checkWrite(t, c) })
		if !ok {
			b, _ := json.Marshal(c)
			t.Fatalf("table %s", b)
		}
	}
}

func stressed() bool {
	stress, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS"))
	return stress
}

// testSeed is the same in every run, so that a change is judged by what it does,
// but for runs that look for what is new.
func testSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(1)
	if stressed() {
		seed = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("OSIRIS_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (OSIRIS_TEST_SEED repeats it, OSIRIS_STRESS takes another each time)", seed)
	return seed
}

// generator makes random CSV files and tables.
type generator struct{ *rand.Rand }

func (g *generator) pick(words ...string) string { return words[g.IntN(len(words))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) file() ([]byte, map[string]any) {
	config := map[string]any{}
	delimiter := ","
	if g.chance(15) {
		delimiter = g.pick(";", "\t", "|", " ")
		config["delimiter"] = delimiter
	}
	if g.chance(10) {
		config["comment"] = "#"
	}
	if g.chance(10) {
		config["skip_blank_lines"] = false
	}
	if g.chance(10) {
		config["skip_rows"] = g.IntN(3)
	}
	if g.chance(10) {
		config["limit"] = 1 + g.IntN(4)
	}
	if g.chance(10) {
		config["header"] = g.chance(50)
	}
	if g.chance(10) {
		config["on_bad_lines"] = g.pick("skip", "warn", "error")
	}
	if g.chance(10) {
		config["na_values"] = []string{g.pick("-", "1", "x", "1.5", "-999", "True")}
	}
	end := g.pick("\n", "\n", "\r\n")
	width := 1 + g.IntN(4)
	kinds := make([]int, width)
	for i := range kinds {
		kinds[i] = g.IntN(9)
	}
	var b strings.Builder
	for i := range width {
		if i > 0 {
			b.WriteString(delimiter)
		}
		b.WriteString(g.pick("a", "b", "c", "a", "d e", `"q"`, "a.1"))
	}
	b.WriteString(end)
	for range g.IntN(8) {
		if g.chance(5) {
			b.WriteString(g.pick("", "  ", "#c", "\t"))
			b.WriteString(end)
		}
		n := width
		if g.chance(4) {
			n = 1 + g.IntN(width+1)
		}
		for i := range n {
			if i > 0 {
				b.WriteString(delimiter)
			}
			b.WriteString(g.value(kinds[i%width]))
		}
		b.WriteString(end)
	}
	s := b.String()
	if g.chance(20) {
		s = strings.TrimSuffix(s, end)
	}
	if g.chance(3) && len(s) > 0 { // any damage at all
		at := g.IntN(len(s))
		if at > 0 && s[at-1] == '\r' { // what a CR ends is not always the same in pandas, see the package comment
			at--
		}
		s = s[:at] + g.pick(`"`, `""`, "\n", delimiter, "#", "\x00") + s[at:]
	}
	return []byte(s), config
}

func (g *generator) value(kind int) string {
	if g.chance(8) {
		return g.pick("", "", "NA", "nan", "null", `""`)
	}
	if g.chance(1) {
		kind = g.IntN(9)
	}
	switch kind {
	case 0:
		return strconv.Itoa(g.IntN(2000) - 1000)
	case 1:
		return g.pick("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "-1", "12", "+3", " 4", "1.5", "-9223372036854775808", "-9223372036854775809", "1")
	case 2:
		return strconv.FormatFloat(g.NormFloat64()*math.Pow(10, float64(g.IntN(30)-15)), "efg"[g.IntN(3)], g.IntN(20)-1, 64)
	case 3:
		f := math.Float64frombits(g.Uint64())
		if math.IsNaN(f) {
			return "nan"
		}
		return strconv.FormatFloat(f, 'g', -1, 64)
	case 4:
		return g.pick("true", "False", "TRUE", "false")
	case 5:
		return g.pick("x", "yy", "2024-01-15", "555-0101", " z", "'", "é", "😀", "in the middle of", `qu"ote`)
	case 6:
		return `"` + g.pick("x", "a,b", "line\nbreak", `say ""hi""`, "1", "#", "a;b\tc|d", " ", "\r\n") + `"` + g.pick("", "", "", "tail")
	case 7:
		return fmt.Sprintf("%0*d", 1+g.IntN(6), g.IntN(100))
	}
	return g.pick("1.0", "2", "1e3", "-.5", "inf", "7.", "100", "1E5", " 3 ")
}

func (g *generator) writeConfig() map[string]any {
	config := map[string]any{}
	if g.chance(20) {
		config["quoting"] = g.pick("all", "nonnumeric", "minimal")
	}
	if g.chance(20) {
		config["newline"] = g.pick("lf", "crlf")
	}
	if g.chance(20) {
		config["delimiter"] = g.pick(";", "\t", "1", "-", " ")
	}
	if g.chance(10) {
		config["header"] = false
	}
	if g.chance(10) {
		config["encoding"] = g.pick("utf-16", "utf-8-sig")
	}
	return config
}

func (g *generator) table() []tableColumn {
	rows := g.IntN(6)
	cols := make([]tableColumn, 1+g.IntN(4))
	for i := range cols {
		typ := g.pick("int64", "uint64", "float64", "float32", "bool", "utf8", "timestamp[us]", "timestamp[ns]", "timestamp[us, tz=UTC]", "timestamp[ns, tz=Europe/Prague]", "date32", "duration[us]", "duration[ns]")
		cols[i] = tableColumn{Name: g.pick("a", "b", "Z", "é", "_") + strconv.Itoa(i), Type: typ, Values: []*string{}}
		missing := 0
		if g.chance(40) && !strings.Contains(typ, "int") {
			missing = 30
		}
		coarse := int64(1)
		if g.chance(70) {
			coarse = []int64{1000, 1e6, 1e9, 86400e9}[g.IntN(4)]
		}
		for range rows {
			if g.chance(missing) {
				cols[i].Values = append(cols[i].Values, nil)
				continue
			}
			v := g.cell(typ, coarse)
			cols[i].Values = append(cols[i].Values, &v)
		}
	}
	return cols
}

func (g *generator) cell(typ string, coarse int64) string {
	switch {
	case typ == "int64":
		return strconv.FormatInt(int64(g.Uint64())>>g.IntN(64), 10)
	case typ == "uint64":
		return strconv.FormatUint(g.Uint64()>>g.IntN(64), 10)
	case strings.HasPrefix(typ, "float"):
		bits := 64
		if typ == "float32" {
			bits = 32
		}
		return strconv.FormatFloat(float64(float32(g.NormFloat64()*math.Pow(10, float64(g.IntN(40)-20)))), 'g', -1, bits)
	case typ == "bool":
		return g.pick("true", "false")
	case typ == "utf8":
		return g.pick("x", "", "a,b", "q\"", "l\nf", " ", "é", "😀", "#", "1", "-")
	case typ == "date32":
		return time.Unix(int64(g.IntN(4e9)), 0).UTC().Format("2006-01-02")
	case strings.HasPrefix(typ, "timestamp"):
		n := (g.Int64N(4e18) - 1e18) / coarse * coarse
		if strings.HasPrefix(typ, "timestamp[us") {
			n = n / 1000 * 1000
		}
		return time.Unix(0, n).UTC().Format("2006-01-02T15:04:05.999999999")
	}
	n := (g.Int64N(2e15) - 1e15) / coarse * coarse
	if typ == "duration[us]" {
		return strconv.FormatInt(n/1000, 10) + "us"
	}
	return strconv.FormatInt(n, 10) + "ns"
}
