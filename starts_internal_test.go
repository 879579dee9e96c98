package remote

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func cost(way StartWay, n int) StartCost {
	return StartCost{Way: way, At: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC), Template: "base", UntilFirstStep: time.Duration(n) * time.Second, BytesSent: int64(n)}
}

// The last start of each way of each configuration is kept, and no more than
// there is room for.
func TestStartBook(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "wheelhouse")
	b := newStartBook(dir)
	note := func(key string, c StartCost) {
		t.Helper()
		if err := b.note(key, c); err != nil {
			t.Fatal(err)
		}
	}
	want := func(key string, want ...StartCost) {
		t.Helper()
		if diff := cmp.Diff(append([]StartCost{}, want...), newStartBook(dir).last(key)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", key, diff)
		}
	}
	want("a")
	note("a", cost(StartAsIs, 1))
	note("a", cost(StartDerived, 2))
	note("b", cost(StartAsIs, 3))
	note("a", cost(StartAsIs, 4))
	note("b", cost(StartAsIs, 3))
	want("a", cost(StartAsIs, 4), cost(StartDerived, 2))
	want("b", cost(StartAsIs, 3))
	built := cost(StartDerived, 5)
	built.Build = time.Second
	note("d", built)
	note("d", cost(StartDerived, 6))
	note("d", cost(StartDerived, 7))
	want("d", cost(StartDerived, 7), built)
	full := startsDocument{}
	for i := range maxStarts - 5 {
		full.Starts = append(full.Starts, keptStart{fmt.Sprint("other ", i), cost(StartAsIs, i%60)})
	}
	full.Starts = append(full.Starts, b.load()...)
	if err := writeJSON(b.file, full); err != nil {
		t.Fatal(err)
	}
	want("a", cost(StartAsIs, 4), cost(StartDerived, 2))
	note("c", cost(StartAsIs, 5))
	want("a", cost(StartAsIs, 4)) // the oldest is forgotten
	want("b", cost(StartAsIs, 3))
	text, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"key"`); n != maxStarts || strings.Count(string(text), `"key": "b"`) != 1 {
		t.Errorf("%d entries, want %d", n, maxStarts)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("the directory has %q", left)
	}
}

// Without a place nothing is kept, and nothing fails.
func TestStartBookNowhere(t *testing.T) {
	t.Parallel()
	b := newStartBook("")
	if err := b.note("a", cost(StartAsIs, 1)); err != nil || len(b.last("a")) != 0 {
		t.Errorf("got %v, %v", b.last("a"), err)
	}
}

// What is wrong in the file is left out, and gone with the next start.
func TestStartBookDamaged(t *testing.T) {
	t.Parallel()
	good := `{"key":"a","way":"as_is","at":"2026-01-02T03:04:01Z","template":"base","until_first_step_ns":1000000000,"bytes_sent":1}`
	entry := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, test := range map[string]struct {
		file string
		left int
	}{
		"empty":             {"", 0},
		"cut":               {`{"starts":[` + good, 0},
		"null":              {"null", 0},
		"another document":  {`["x"]`, 0},
		"another type":      {`{"starts":[` + entry("1000000000", `"x"`) + `]}`, 0},
		"zeros":             {strings.Repeat("\x00", 4096), 0},
		"too large":         {`{"starts":[` + good + `]}` + strings.Repeat(" ", maxStartsBytes), 0},
		"as it was written": {`{"starts":[` + good + `]}`, 1},
		"unknown way":       {`{"starts":[` + entry("as_is", "by_post") + `,` + good + `]}`, 1},
		"negative":          {`{"starts":[` + entry("1000000000", "-1") + `,` + good + `]}`, 1},
		"negative bytes":    {`{"starts":[` + entry(`sent":1`, `sent":-1`) + `,` + good + `]}`, 1},
		"endless":           {`{"starts":[` + entry("1000000000", "9223372036854775807") + `,` + good + `]}`, 1},
		"priceless":         {`{"starts":[` + entry(`sent":1`, `sent":1,"cost_usd":1e308`) + `,` + good + `]}`, 1},
		"escape codes":      {`{"starts":[` + entry("base", `\u001b[2J`) + `,` + good + `]}`, 1},
		"long":              {`{"starts":[` + entry("base", strings.Repeat("x", 300)) + `,` + good + `]}`, 1},
		"long key":          {`{"starts":[` + entry(`"a"`, `"`+strings.Repeat("a", 65)+`"`) + `,` + good + `]}`, 1},
		"double":            {`{"starts":[` + good + `,` + good + `]}`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newStartBook(t.TempDir())
			if err := os.WriteFile(b.file, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := b.last("a"); len(got) != test.left {
				t.Errorf("got %v, want %d", got, test.left)
			}
			if err := b.note("b", cost(StartDerived, 2)); err != nil {
				t.Fatal(err)
			}
			if got := b.load(); len(got) != test.left+1 {
				t.Errorf("after another start there is %v", got)
			}
		})
	}
	t.Run("a directory", func(t *testing.T) {
		t.Parallel()
		b := newStartBook(t.TempDir())
		if err := os.Mkdir(b.file, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := b.note("a", cost(StartAsIs, 1)); err == nil || len(b.last("a")) != 0 {
			t.Errorf("got %v, %v", b.last("a"), err)
		}
	})
}

// Of processes that write at once some may lose an entry, but never the file.
func TestStartBookAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var writers sync.WaitGroup
	for w := range 4 {
		b := newStartBook(dir) // as another process has it
		writers.Go(func() {
			for i := range 20 {
				key := fmt.Sprint(w, " ", i)
				if err := b.note(key, cost(StartAsIs, i)); err != nil {
					t.Error(err)
				}
				if len(b.load()) == 0 {
					t.Error("the file is empty")
				}
			}
		})
	}
	writers.Wait()
	if n := len(newStartBook(dir).load()); n == 0 || n > 80 {
		t.Errorf("%d entries", n)
	}
}

func FuzzStartBook(f *testing.F) {
	f.Add([]byte(`{"starts":[{"key":"a","way":"as_is","at":"2026-01-02T03:04:01Z","template":"base"}]}`))
	f.Add([]byte(`{"starts":[{}]}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		b := newStartBook(t.TempDir())
		if err := os.WriteFile(b.file, file, 0o600); err != nil {
			t.Fatal(err)
		}
		before := b.load()
		if err := b.note("key", cost(StartDerived, 1)); err != nil {
			t.Fatal(err)
		}
		after := b.load()
		if len(after) == 0 || after[0].Key != "key" || len(after) < min(len(before), maxStarts-1) {
			t.Errorf("%d entries, then %d", len(before), len(after))
		}
	})
}

// namedSandbox is one that is made from a template.
type namedSandbox struct {
	Sandbox
	template string
}

func (s namedSandbox) Info() SandboxInfo { return SandboxInfo{Template: s.template} }

func TestStartCost(t *testing.T) {
	t.Parallel()
	derived := "osiris-" + strings.Repeat("0a", 16)
	for name, test := range map[string]struct {
		template string
		way      StartWay // how packages came
		want     StartWay
	}{
		"without packages":         {"base", "", StartAsIs},
		"from the wheelhouse":      {"base", StartWheelhouse, StartWheelhouse},
		"from an index":            {"base", StartIndex, StartIndex},
		"derived":                  {derived, "", StartDerived},
		"derived, in a namespace":  {"team/" + derived, "", StartDerived},
		"derived without packages": {derived, StartWheelhouse, StartWheelhouse},
		"of a similar name":        {derived + "0", "", StartAsIs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &Receipt{Wall: 9, Phases: Phases{Build: 5, Dependencies: 2}, BytesSent: 7, CostUSD: 0.5}
			got := startCost(r, &place{sandbox: namedSandbox{template: test.template}, way: test.way})
			want := &StartCost{Way: test.want, At: got.At, Template: test.template, UntilFirstStep: 9, Build: 5, Dependencies: 2, BytesSent: 7, CostUSD: 0.5}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got := startCost(nil, &place{}); got != nil {
		t.Errorf("without a receipt: %+v", got)
	}
}
