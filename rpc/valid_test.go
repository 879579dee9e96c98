package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// jsonSeeds are texts around every corner of the grammar.
var jsonSeeds = func() []string {
	nest := func(open, shut string, n int) string { return strings.Repeat(open, n) + strings.Repeat(shut, n) }
	seeds := []string{
		``, ` `, `{}`, `[]`, `{ }`, `[ ]`, ` { "a" : [ 1 , 2 ] , "b" : { } } `, "{\n}", "[\r\n]", "\t1\t", "{}\n", `{}{}`, `{},`, `{`, `}`, `[`, `]`, `{]`, `[}`,
		`{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a" 1}`, `{1:2}`, `{"a":1 "b":2}`, `[1,]`, `[,]`, `[1 2]`, `[1,,2]`, `{"a":1,"a":2}`, `{"a":{"b":[{"c":[]}]}}`,
		`true`, `false`, `null`, `tru`, `truee`, `True`, `nul`, `fals`, `[true,false,null]`, `nulll`, `-`, `--1`, `+1`, `.5`, `5.`, `5.e1`, `0`, `-0`, `00`, `01`, `-01`,
		`1e5`, `1E+5`, `1e-05`, `1e`, `1e+`, `1.5e10`, `1.5.5`, `0x10`, `1_000`, `Infinity`, `NaN`, `-1.0E-0`, `12345678901234567890`, `[-]`, `[1.]`, `[1e]`, `1 2`, `-a`,
		`""`, `"a`, `"\"`, `"\\"`, `"\""`, `"\/\b\f\n\r\t"`, `"\a"`, `"\u0000"`, `"\u00g0"`, `"\u00`, `"\uD834\uDD1E"`, `"\ud800"`, `"\U0000"`, `"\x41"`, `"\`, "\"\x00\"", "\"\x1f\"", "\"\x7f\"", "\"\n\"", "\"\t\"",
		"\"\xff\"", "\"\xc3\x28\"", "\"é\u2028😀\"", "\xef\xbb\xbf{}", "{\"\xff\":1}", "\"12345678", "\"1234567\"", "\"12345678\"", "\"123456789\"", "\"1234567\\\"", "\"12345678\x01\"",
		"\x00", "{\x00}", "[1\x00]", "\v1", "1\v", "\u00a01", `"a"b`, `{"a":"b"c}`, `[`, `["`, `["a"`, `{"`, `{"a`, `{"a":"`, `{"a":1`, `{"a":1,`, `{"a":1,"`, `'a'`, `{'a':1}`, `/**/{}`, `{}//`,
	}
	for _, n := range []int{1, 63, 64, 65, 100, 9_999, 10_000, 10_001} {
		seeds = append(seeds, nest("[", "]", n), nest(`{"a":[`, "]}", n/2), nest("[", "]", n)+"]", nest("[", "]", n)[1:], strings.Repeat("[", n)+"\n"+strings.Repeat("]", n), strings.Repeat("[", n)+`"é"`+strings.Repeat("]", n))
	}
	for i := range 10 { // something special at every distance
		pad := strings.Repeat("x", i)
		for _, s := range []string{"\"", "\\", "\\n", "\\\"", "\x1f", "\x80", "\xff", " ", "\u00e9", "\x00"} {
			seeds = append(seeds, `"`+pad+s+`"`, `"`+pad+s+pad+`"`, `{"`+pad+s+pad+`":"`+pad+s+`yyyyyyyy"}`)
		}
	}
	return seeds
}()

func TestValid(t *testing.T) {
	for _, s := range jsonSeeds {
		checkValid(t, []byte(s))
	}
}

// Every text one byte away from a line of ours.
func TestValidMutated(t *testing.T) {
	t.Parallel()
	line := []byte(`{"ts":"2026-01-02T03:04:05.000006Z","event":"a\u00e9\n","n":[-1.5e+3,true,null,{}],"x":{"y":"é"}}`)
	for i := range line {
		for c := range 256 {
			b := bytes.Clone(line)
			b[i] = byte(c)
			checkValid(t, b)
		}
		checkValid(t, line[:i])
		checkValid(t, line[i:])
		checkValid(t, append(bytes.Clone(line[:i]), line[i+1:]...))
	}
}

// checkValid compares the scanner with encoding/json.
func checkValid(t *testing.T, b []byte) {
	t.Helper()
	ok, newline, ascii := scan(b)
	if want := json.Valid(b); ok != want {
		t.Fatalf("valid is %v, want %v: %s", ok, want, brief(b))
	}
	if !ok {
		if isObject(b) {
			t.Fatalf("an object: %s", brief(b))
		}
		return
	}
	if want := bytes.ContainsAny(b, "\r\n"); newline != want {
		t.Fatalf("newline is %v, want %v: %s", newline, want, brief(b))
	}
	high := bytes.ContainsFunc(b, func(r rune) bool { return r >= utf8.RuneSelf })
	if ascii && high {
		t.Fatalf("ascii: %s", brief(b))
	}
	want := !newline && utf8.Valid(b) && b[0] == '{' && b[len(b)-1] == '}'
	if got := isObject(b); got != want {
		t.Fatalf("isObject is %v, want %v: %s", got, want, brief(b))
	}
}

func brief(b []byte) string {
	if len(b) > 300 {
		return fmt.Sprintf("%q... (%d bytes)", b[:300], len(b))
	}
	return fmt.Sprintf("%q", b)
}

// FuzzValid holds the scanner to json.Valid's verdict on everything.
func FuzzValid(f *testing.F) {
	for _, s := range jsonSeeds {
		if len(s) < 300 { // long ones only slow the search down
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkValid(t, b) })
}

// TestValidRandom cuts, doubles and changes texts at random.
func TestValidRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %#x", seed)
		}
	}()
	var short []string
	for _, s := range jsonSeeds {
		if len(s) < 300 {
			short = append(short, s)
		}
	}
	const alphabet = "{}[]:,\"\\ \t\n\rtrufalsn0123456789-+.eEux\x00\x1f\x7f\x80\xc3\xa9\xff/b"
	n := 50_000
	if on, _ := strconv.ParseBool(os.Getenv("OSIRIS_STRESS")); on {
		n = 20_000_000
	}
	for range n {
		b := []byte(short[r.IntN(len(short))])
		for range r.IntN(4) {
			at := r.IntN(len(b) + 1)
			switch r.IntN(5) {
			case 0:
				b = slices.Insert(b, at, alphabet[r.IntN(len(alphabet))])
			case 1:
				b = slices.Insert(b, at, []byte(short[r.IntN(len(short))])...)
			case 2:
				b = b[:at]
			case 3:
				b = slices.Delete(b, at, min(at+r.IntN(3), len(b)))
			case 4:
				if at < len(b) {
					b[at] = alphabet[r.IntN(len(alphabet))]
				}
			}
		}
		checkValid(t, b)
	}
}
