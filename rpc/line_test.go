package rpc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/rpc"
)

type (
	selfMarshaler struct{ s string }
	panicError    struct{}
	kind          string
	loop          struct{ Next any }
)

func (m selfMarshaler) MarshalJSON() ([]byte, error) { return []byte(m.s), nil }

func (*panicError) Error() string { panic("no text") }

func TestAppendEvent(t *testing.T) {
	l := rpc.Line{Time: time.Date(2026, 1, 2, 3, 4, 5, 6789, time.FixedZone("", 3600)), Session: "s", Name: "step_start", StepID: "a"}
	const head = `{"ts":"2026-01-02T02:04:05.000006Z","session":"s","event":"step_start","step_id":"a"`
	nested := any("bottom")
	for range 200 {
		nested = map[string]any{"n": nested}
	}
	cycle := map[string]any{}
	cycle["self"] = []any{cycle}
	ring := &loop{}
	ring.Next = ring
	for _, tc := range []struct {
		name   string
		fields map[string]any
		want   string // behind the head
	}{
		{"none", nil, ``},
		{"sorted", map[string]any{"b": 1, "a": 2, "é": 3, "B": 4}, `,"B":4,"a":2,"b":1,"é":3`},
		{"reserved", map[string]any{"ts": 1, "session": 2, "event": 3, "step_id": 4, "Ts": 5}, `,"Ts":5`},
		{"basic", map[string]any{"n": nil, "t": true, "f": false, "s": "x"}, `,"f":false,"n":null,"s":"x","t":true`},
		{"integers", map[string]any{"a": -5, "b": int8(1), "c": int16(2), "d": int32(3), "e": int64(math.MinInt64), "f": uint8(4), "g": uint64(math.MaxUint64), "h": time.Second},
			`,"a":-5,"b":1,"c":2,"d":3,"e":-9223372036854775808,"f":4,"g":18446744073709551615,"h":1000000000`},
		{"floats", map[string]any{"a": 1.5, "b": float32(0.1), "c": 1e300, "d": math.Copysign(0, -1), "e": 5.0, "f": 1e20, "g": 1e-9, "h": float64(1 << 53)},
			`,"a":1.5,"b":0.1,"c":1e+300,"d":0,"e":5,"f":1e+20,"g":1e-09,"h":9.007199254740992e+15`},
		{"no numbers", map[string]any{"a": math.NaN(), "b": math.Inf(1), "c": float32(math.Inf(-1)), "d": []any{math.NaN(), 1}, "e": map[string]any{"x": math.Inf(-1), "y": "kept"}},
			`,"a":null,"b":null,"c":null,"d":[null,1],"e":{"x":null,"y":"kept"}`},
		{"JSON numbers", map[string]any{"a": json.Number("1.50"), "b": json.Number(""), "c": json.Number("NaN")},
			`,"a":1.50,"b":0,"c":"json.Number: json: invalid number literal \"NaN\""`},
		{"lists", map[string]any{"a": []any(nil), "b": map[string]any(nil), "c": []any{}, "d": map[string]any{}, "e": []string{"x", "<&>"}, "f": []byte("abc")},
			`,"a":null,"b":null,"c":[],"d":{},"e":["x","<&>"],"f":"YWJj"`},
		{"escapes", map[string]any{"a": "\x00\x1f\"\\/\n\r\t\b\f\x7f", "b": "\u2028\u2029\u0085é😀", "c": "<script>&"},
			`,"a":"\u0000\u001f\"\\/\n\r\t\u0008\u000c\u007f","b":"\u2028\u2029\u0085é😀","c":"<script>&"`},
		{"not UTF-8", map[string]any{"a\xff": "\xc3\x28\xed\xa0\x80", "b": []any{"\xf0\x9f"}},
			`,"a` + "\ufffd" + `":"` + "\ufffd(\ufffd\ufffd\ufffd" + `","b":["` + "\ufffd\ufffd" + `"]`},
		{"hostile name", map[string]any{"\"},\n{\"": 1}, `,"\"},\n{\"":1`},
		{"raw", map[string]any{"a": json.RawMessage("{\"x\":\n[1,\r\n2]}"), "b": json.RawMessage("\"\u2028\xff\u2029\""), "c": json.RawMessage("{"), "d": json.RawMessage(nil)},
			`,"a":{"x":[1,2]},"b":"\u2028` + "\ufffd" + `\u2029","c":"json.RawMessage: json: error calling MarshalJSON for type json.RawMessage: unexpected end of JSON input","d":null`},
		{"marshalers", map[string]any{"a": selfMarshaler{" [1,\n2] "}, "b": selfMarshaler{"1}"}, "c": time.Unix(0, 0).UTC(), "d": kind("k")},
			`,"a":[1,2],"b":"rpc_test.selfMarshaler: json: error calling MarshalJSON for type rpc_test.selfMarshaler: invalid character '}' after top-level value","c":"1970-01-01T00:00:00Z","d":"k"`},
		{"errors", map[string]any{"a": errors.New("went \"wrong\""), "b": &fs.PathError{Op: "open", Path: "p", Err: fs.ErrNotExist}, "c": (*panicError)(nil), "d": fmt.Errorf("a\nb"), "e": &panicError{}},
			`,"a":"went \"wrong\"","b":{"Op":"open","Path":"p","Err":{}},"c":null,"d":"a\nb","e":"%!v(PANIC=Error method: no text)"`},
		{"no JSON", map[string]any{"a": make(chan int), "b": func() {}, "c": complex(1, 2), "d": map[bool]int{true: 1}},
			`,"a":"chan int: json: unsupported type: chan int","b":"func(): json: unsupported type: func()","c":"complex128: json: unsupported type: complex128","d":"map[bool]int: json: unsupported type: map[bool]int"`},
		{"ring", map[string]any{"a": ring, "b": 1}, `,"a":"*rpc_test.loop: json: unsupported value: encountered a cycle via *rpc_test.loop","b":1`},
		{"cycle", map[string]any{"a": cycle, "b": 1}, `,"a":` + strings.Repeat(`{"self":[`, 50) + `"nested too deeply"` + strings.Repeat(`]}`, 50) + `,"b":1`},
		{"deep", map[string]any{"a": nested}, `,"a":` + strings.Repeat(`{"n":`, 100) + `"nested too deeply"` + strings.Repeat(`}`, 100)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := l.AppendEvent([]byte("before"), tc.fields)
			line, ok := bytes.CutPrefix(got, []byte("before"))
			if !ok {
				t.Fatalf("%q", got)
			}
			checkLine(t, line)
			if diff := cmp.Diff(head+tc.want+"}", string(line)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	l.StepID = ""
	const want = `{"ts":"2026-01-02T02:04:05.000006Z","session":"s","event":"step_start","step_id":"kept"}`
	if got := l.AppendEvent(nil, map[string]any{"step_id": "kept"}); string(got) != want {
		t.Errorf("event of a run: %s", got)
	}
}

// However many fields there are, they are in order.
func TestAppendEventManyFields(t *testing.T) {
	for n := range 40 {
		fields := make(map[string]any)
		var want []string
		for i := range n {
			k := fmt.Sprintf("f%02d", i)
			fields[k] = i
			want = append(want, k)
		}
		line := rpc.Line{}.AppendEvent(nil, fields)
		dec := json.NewDecoder(bytes.NewReader(line))
		var got []string
		for {
			tok, err := dec.Token()
			if err != nil {
				break
			}
			if s, ok := tok.(string); ok && strings.HasPrefix(s, "f") {
				got = append(got, s)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%d fields: -want +got\n%s", n, diff)
		}
	}
}

func TestAppendEventTooLong(t *testing.T) {
	t.Parallel()
	mb := strings.Repeat("x", 1<<20)
	nuls := strings.Repeat("\x00", 1<<20)
	huge := strings.Repeat("y", 10<<20)
	many := make(map[string]any)
	for i := range 200_000 {
		many[fmt.Sprint(i)] = i
	}
	for _, tc := range []struct {
		name       string
		line       rpc.Line
		fields     map[string]any
		atLeast    int // oversize_bytes; 0 for a line that is not too long
		otherField bool
	}{
		{"long string", rpc.Line{}, map[string]any{"a": mb, "b": 1}, 1 << 20, false},
		{"almost too long", rpc.Line{}, map[string]any{"a": mb[:1<<20-200], "b": 1}, 0, true},
		{"long when escaped", rpc.Line{}, map[string]any{"a": nuls[:1<<18], "b": 1}, 6 << 18, false},
		{"huge", rpc.Line{}, map[string]any{"a": huge, "b": huge, "c": "small"}, 20 << 20, false},
		{"long list", rpc.Line{}, map[string]any{"a": []any{mb, mb}, "b": 1}, 2 << 20, false},
		{"long key", rpc.Line{}, map[string]any{mb: 1}, 1 << 20, false},
		{"many fields", rpc.Line{}, many, 2 << 20, false},
		{"long error", rpc.Line{}, map[string]any{"a": errors.New(mb)}, 1 << 20, false},
		{"long bytes", rpc.Line{}, map[string]any{"a": []byte(mb)}, 1 << 20, false},
		{"long names", rpc.Line{Session: nuls, Name: nuls, StepID: nuls}, map[string]any{"b": 1}, 0, true},
		{"all long", rpc.Line{Session: nuls, Name: mb, StepID: mb}, map[string]any{"a": nuls}, 1 << 20, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.line.Time = benchTime
			line := tc.line.AppendEvent(nil, tc.fields)
			if !json.Valid(line) || bytes.IndexByte(line, '\n') >= 0 {
				t.Fatalf("no valid line: %.100q", line)
			}
			if n := len(line) + len(`{"type":"heartbeat","data":}`); n > rpc.MaxPayload {
				t.Errorf("a payload of %d bytes", n)
			}
			if cap(line) > 6<<20 {
				t.Errorf("holds on to %d bytes", cap(line))
			}
			var got map[string]any
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatal(err)
			}
			size, _ := got["oversize_bytes"].(float64)
			if (size > 0) != (tc.atLeast > 0) || int(size) < tc.atLeast {
				t.Errorf("oversize_bytes is %v, want at least %d", size, tc.atLeast)
			}
			if (got["b"] == 1.0) != tc.otherField {
				t.Errorf("other field is %v", got["b"])
			}
		})
	}
}

// A name is cut between characters.
func TestLongName(t *testing.T) {
	for i := range 4 {
		name := strings.Repeat("x", i) + strings.Repeat("€", 10_000)
		var got struct{ Event string }
		line := rpc.Line{Name: name, Time: benchTime}.AppendEvent(nil, nil)
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, got.Event) || len(got.Event) < 16<<10-3 || len(got.Event) > 16<<10 {
			t.Errorf("%d bytes, ending in %q", len(got.Event), got.Event[len(got.Event)-5:])
		}
	}
}

func TestAppendMetric(t *testing.T) {
	for _, tc := range []struct {
		name, unit, step string
		value            float64
		want             string
	}{
		{"rows_read", "rows", "a", 5, `"metric":"rows_read","value":5,"unit":"rows","step_id":"a","tags":{"step":"a"}}`},
		{"total_rows", "", "", 1.25, `"metric":"total_rows","value":1.25}`},
		{"n", "", "", math.NaN(), `"metric":"n","value":null}`},
		{"n", "", "", math.Inf(-1), `"metric":"n","value":null}`},
		{"n", "", "", math.Copysign(0, -1), `"metric":"n","value":0}`},
		{"n", "", "", math.MaxFloat64, `"metric":"n","value":1.7976931348623157e+308}`},
		{"n", "", "", -1 << 60, `"metric":"n","value":-1.152921504606847e+18}`},
		{"a\"\n", "\xff", "\u2028", 1, `"metric":"a\"\n","value":1,"unit":"` + "\ufffd" + `","step_id":"\u2028","tags":{"step":"\u2028"}}`},
	} {
		l := rpc.Line{Time: benchTime, Session: "s", Name: tc.name, StepID: tc.step}
		got := l.AppendMetric(nil, tc.value, tc.unit)
		checkLine(t, got)
		if diff := cmp.Diff(`{"ts":"2026-01-02T03:04:05.000006Z","session":"s",`+tc.want, string(got)); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
	long := strings.Repeat("\x01", 1<<20)
	got := rpc.Line{Session: long, Name: long, StepID: long}.AppendMetric(nil, 1, long)
	if !json.Valid(got) || len(got) > rpc.MaxPayload-64 {
		t.Errorf("long names make a line of %d bytes", len(got))
	}
}

func TestLineTime(t *testing.T) {
	// Every day of 400 years, at some time of the day.
	for day := range 146_097 + 1000 {
		tm := time.Unix(int64(day)*86400+int64(day*7919%86400), int64(day)*6_789_123%1e9)
		line := rpc.Line{Time: tm}.AppendEvent(nil, nil)
		if want := tm.UTC().Format(rpc.TimeFormat); !bytes.HasPrefix(line, []byte(`{"ts":"`+want+`"`)) {
			t.Fatalf("%s, want %s", line, want)
		}
	}
	for _, tm := range []time.Time{
		time.Unix(-1, 0), time.Unix(253402300799, 999_999_999), time.Unix(253402300800, 0),
		{}, time.Unix(0, 0), time.Date(2026, 12, 31, 23, 59, 59, 999_999_999, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2024, 2, 29, 12, 30, 45, 123_456_789, time.FixedZone("x", -9*3600-1800)), time.Unix(1<<40, 0), time.Now(),
	} {
		var got struct{ TS string }
		line := rpc.Line{Time: tm}.AppendEvent(nil, nil)
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if want := tm.UTC().Format(rpc.TimeFormat); got.TS != want {
			t.Errorf("%s, want %s", got.TS, want)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("s", "step_start", "a", "rows", "x", int64(5), 1.5)
	f.Add("", "\xff", "\u2028", "ts", "\"\\\x00", int64(math.MinInt64), math.Inf(1))
	f.Add("é", "{}", "\n", "step_id", "\x7f", int64(0), math.NaN())
	f.Fuzz(func(t *testing.T, session, name, step, key, value string, n int64, x float64) {
		l := rpc.Line{Time: time.Unix(n, 0), Session: session, Name: name, StepID: step}
		fields := map[string]any{
			key: value, "a": n, "b": x, "c": []any{value, x}, "d": map[string]any{value: key}, "e": errors.New(value), "f": json.RawMessage(value),
		}
		line := l.AppendEvent(nil, fields)
		checkLine(t, line)
		if bytes.ContainsAny(line, "\u2028\u2029") {
			t.Errorf("a line end of Unicode in %q", line)
		}
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		clean := func(s string) string { return string([]rune(s)) }
		want := map[string]any{"session": clean(session), "event": clean(name)}
		if step != "" {
			want["step_id"] = clean(step)
		}
		if k := clean(key); !slices.Contains([]string{"ts", "session", "event", "step_id", "a", "b", "c", "d", "e", "f"}, k) {
			want[k] = clean(value)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%q is %q, want %q", k, got[k], v)
			}
		}
		if n := got["a"]; key != "a" && n != nil {
			if _, ok := n.(float64); !ok {
				t.Errorf("a number became %T", n)
			}
		}

		line = l.AppendMetric(nil, x, value)
		checkLine(t, line)
		var m struct {
			Session, Metric, Unit string
			StepID                string `json:"step_id"`
			Value                 *float64
			Tags                  map[string]string
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		if m.Session != clean(session) || m.Metric != clean(name) || m.Unit != clean(value) || m.StepID != clean(step) || m.Tags["step"] != clean(step) {
			t.Errorf("metric %+v", m)
		}
		if noNumber := math.IsNaN(x) || math.IsInf(x, 0); noNumber != (m.Value == nil) || !noNumber && *m.Value != x {
			t.Errorf("value of %v is %v", x, m.Value)
		}
		if !utf8.Valid(line) {
			t.Errorf("not UTF-8: %q", line)
		}
	})
}

// Every length and every place for what is not plain.
func TestAppendEventEveryPlace(t *testing.T) {
	for n := range 40 {
		for i := range n {
			for _, c := range []string{"\x00", "\x1f", " ", "!", "\"", "#", "[", "\\", "]", "\x7e", "\x7f", "\x80", "\xff", "é"} {
				s := strings.Repeat("x", i) + c + strings.Repeat("x", n-i-1)
				line := rpc.Line{Name: s}.AppendEvent(nil, nil)
				checkLine(t, line)
				var got struct{ Event string }
				if err := json.Unmarshal(line, &got); err != nil || got.Event != string([]rune(s)) {
					t.Fatalf("%q became %s", s, line)
				}
				plain := c[0] >= ' ' && c[0] < 0x7f && c != "\"" && c != "\\"
				if plain != bytes.Contains(line, []byte(`"`+s+`"`)) && c != "é" {
					t.Fatalf("%q was written as %s", s, line)
				}
			}
		}
	}
}
