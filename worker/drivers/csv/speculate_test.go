package csv

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/osiris-pipelines/remote/worker"
)

// lateValues are values that a guess made before them may not survive.
var lateValues = []string{
	"1", "-1", "-0", "+3", " 7", "007", "00", "9223372036854775807", "9223372036854775808",
	"18446744073709551615", "18446744073709551616", "-9223372036854775809", "1_000",
	"1.0", "1.5", "-0.0", "1e3", ".5", "inf", "1e999", "nan", "", "NA", `""`, `"1"`,
	"true", "False", "x", "é", `"a,b"`, `"line` + "\n" + `break"`, `say "hi"`,
	"2024-01-15", "2024-01-15T10:00:00Z", "15/01/2024", "nat",
}

// together runs the extractor so that one block holds the file: the types are
// those of every value observed in turn, and a second pass makes the batches.
// apart runs it in small blocks, with guesses that later blocks may break.
func together(t *testing.T, content []byte, config map[string]any) ([]tableColumn, error) {
	return extracted(t, &Extractor{keepBytes: -1}, content, config)
}

func apart(t *testing.T, content []byte, config map[string]any, fill, keep int) ([]tableColumn, error) {
	return extracted(t, &Extractor{fillSize: fill, keepBytes: keep}, content, config)
}

func extracted(t *testing.T, e *Extractor, content []byte, config map[string]any) ([]tableColumn, error) {
	t.Helper()
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	f, err := extractWith(t, e, &worker.Step{Allocator: mem}, content, config)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	return render(f), nil
}

func compareApart(t *testing.T, content string, config map[string]any, fill, keep int) {
	t.Helper()
	want, wantErr := together(t, []byte(content), config)
	got, err := apart(t, []byte(content), config, fill, keep)
	if (err == nil) != (wantErr == nil) { // which of two errors is found first may differ
		t.Fatalf("error %v in blocks of %d, %v at once; config %v, file %q", err, fill, wantErr, config, content)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("blocks of %d, keeping %d, config %v, file %q: (-at once +in blocks):\n%s", fill, keep, config, content, diff)
	}
}

// TestGuess breaks the guess about a column late in the file, by each value
// after each other, at the borders of blocks.
func TestGuess(t *testing.T) {
	for _, usual := range lateValues {
		for _, after := range []string{usual, "NA"} {
			// A column for each late value.
			var content strings.Builder
			row := func(value func(late string) string) {
				for i, late := range lateValues {
					fmt.Fprintf(&content, "%s%s", []string{"", ","}[min(i, 1)], value(late))
				}
				content.WriteByte('\n')
			}
			row(func(string) string { return "v" })
			for range 6 {
				row(func(string) string { return usual })
			}
			row(func(late string) string { return late })
			for range 3 {
				row(func(string) string { return after })
			}
			compareApart(t, content.String(), nil, 16, 0)
		}
	}
}

// TestGuessTwice changes a column twice, so that what the first change left in
// the state of inference matters for the second.
func TestGuessTwice(t *testing.T) {
	values := []string{"", "1", "-1", "-0", "9223372036854775808", "18446744073709551616", "1.5", "true", "x"}
	for _, first := range values {
		for _, second := range values {
			var content strings.Builder
			line := strings.Repeat("v,", len(values)) + "v\n"
			content.WriteString(line)
			content.WriteString(strings.ReplaceAll(strings.Repeat(line, 4), "v", first))
			content.WriteString(strings.ReplaceAll(strings.Repeat(line, 4), "v", second))
			content.WriteString("," + strings.Join(values, ",") + "\n")
			compareApart(t, content.String(), map[string]any{"skip_blank_lines": false}, 16, 0)
		}
	}
}

// TestStaleGuess commits what was made under a guess that no longer holds.
func TestStaleGuess(t *testing.T) {
	cfg, err := decodeExtract(&worker.Step{Config: map[string]any{"path": "in.csv"}})
	if err != nil {
		t.Fatal(err)
	}
	x := &extraction{cfg: cfg, keepBytes: keepBytes, source: source{step: &worker.Step{}}}
	l := &learning{x: x}
	if l.cols, err = x.learners([]string{"a"}, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	p := newPass(x, nil, -1)
	block := func(v string) part {
		return part{block: &block{buf: []byte(v), spans: []span{{0, uint32(len(v))}}, lines: []int64{1}, rows: 1, width: 1}}
	}
	v := &converter{mem: memory.DefaultAllocator}
	one := block("1")
	l.commit(p, block(""), v, nil)
	v.use(l.guess)
	defer v.release()
	if !v.convert(one.block, l.cols, cfg.na) {
		t.Fatal("1 does not fit a column of missing values")
	}
	l.commit(p, block("true"), &converter{}, nil) // by another worker
	l.commit(p, one, v, nil)
	x.drop()
	if got := l.cols[0].column().kind; got != kText || l.err != nil {
		t.Errorf("kind %d, error %v, want text", got, l.err)
	}
}

// TestGuessProperty compares both ways to read random files.
func TestGuessProperty(t *testing.T) {
	seed := testSeed(t)
	g := &generator{rand.New(rand.NewPCG(seed, 3))}
	rounds := 150
	if stressed() {
		rounds = 400
	}
	for range rounds {
		var content string
		var config map[string]any
		if g.chance(30) {
			file, c := g.file()
			content, config = string(file), c
		} else {
			content, config = g.lateFile()
		}
		compareApart(t, content, config, 16+g.IntN(200), []int{0, 0, 300, -1}[g.IntN(4)])
	}
}

// lateFile makes a file whose columns change their minds.
func (g *generator) lateFile() (string, map[string]any) {
	config := map[string]any{}
	if g.chance(15) {
		config["parse_dates"] = []any{"c0"}
	}
	if g.chance(25) {
		config["dtype"] = map[string]any{"c1": g.pick("category", "Int64", "float64", "str", "int8", "boolean")}
	}
	if g.chance(10) {
		config["na_values"] = []any{g.pick("1", "1.5", "x", "true")}
	}
	if g.chance(20) {
		config["chunk_size"] = json.Number(fmt.Sprint(1 + g.IntN(20)))
	}
	if g.chance(10) {
		config["limit"] = json.Number(fmt.Sprint(g.IntN(60)))
	}
	if g.chance(10) {
		config["columns"] = []any{"c1", "c0"}
	}
	if g.chance(5) {
		config["compression"] = "none"
	}
	width := 2 + g.IntN(3)
	pools := make([][]string, width)
	for i := range pools {
		pools[i] = []string{lateValues[g.IntN(len(lateValues))]}
	}
	var b strings.Builder
	for i := range width {
		fmt.Fprintf(&b, "%sc%d", []string{"", ","}[min(i, 1)], i)
	}
	b.WriteString("\n")
	for range g.IntN(120) {
		for i := range width {
			if i > 0 {
				b.WriteString(",")
			}
			if g.chance(2) {
				pools[i] = append(pools[i], lateValues[g.IntN(len(lateValues))])
			}
			b.WriteString(pools[i][g.IntN(len(pools[i]))])
		}
		if g.chance(1) && g.chance(30) {
			b.WriteString(",extra")
		}
		b.WriteString(g.pick("\n", "\n", "\r\n"))
	}
	return b.String(), config
}

// TestKept says when the first pass' batches are the ones that leave.
func TestKept(t *testing.T) {
	ints := "a,b\n" + strings.Repeat("1,x\n", 100)
	for _, c := range []struct {
		name, content string
		config        map[string]any
		keep          int
		want          bool
	}{
		{name: "guess holds", content: ints, want: true},
		{name: "missing from the start", content: "a,b\n,x\n" + strings.Repeat("1,x\n", 100), want: true},
		{name: "float late", content: ints + "1.5,x\n"},
		{name: "missing late", content: ints + ",x\n"},
		{name: "text late", content: ints + "z,x\n"},
		{name: "file too large", content: ints, keep: len(ints) - 1},
		{name: "batches too large", content: ints, keep: len(ints) + 1},
		{name: "dates", content: ints, config: map[string]any{"parse_dates": []any{"b"}}},
		{name: "dtype", content: ints, config: map[string]any{"dtype": "float64", "columns": []any{"a"}}, want: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
			defer mem.AssertSize(t, 0)
			dir := t.TempDir()
			step := &worker.Step{Allocator: mem, BasePath: dir}
			e := &Extractor{fillSize: 32, keepBytes: c.keep}
			r := run(t, e, step, c.content, c.config)
			defer r.Release()
			if got := r.(*reader).x.kept; got != c.want {
				t.Errorf("kept %v, want %v", got, c.want)
			}
		})
	}
}

func run(t *testing.T, e *Extractor, step *worker.Step, content string, config map[string]any) array.RecordReader {
	t.Helper()
	if err := os.WriteFile(filepath.Join(step.BasePath, "in.csv"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	step.Config = map[string]any{"path": "in.csv"}
	for k, v := range config {
		step.Config[k] = v
	}
	res, err := e.Run(t.Context(), step)
	if err != nil {
		t.Fatal(err)
	}
	return res.Outputs[worker.DefaultOutput]
}
