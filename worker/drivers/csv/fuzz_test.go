package csv

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// rows tokenises all of r, with a buffer of the given size.
func rows(r io.Reader, d dialect, fill int) (out [][]string, lines []int64, err error) {
	t := newTokenizer(r, d)
	t.fillSize = fill
	t.dropExtra, t.dropFirst = true, true
	for {
		b, err := t.next(1 << 30)
		if errors.Is(err, io.EOF) {
			return out, lines, nil
		}
		if err != nil {
			return out, lines, err
		}
		for row := range b.rows {
			fields := make([]string, b.width)
			for i := range fields {
				fields[i] = string(b.text(row, i))
			}
			out = append(out, fields)
		}
		lines = append(lines, b.lines...)
	}
}

// randomReader returns pieces of random size.
type randomReader struct {
	r io.Reader
	g *rand.Rand
}

func (r randomReader) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), 1+r.g.IntN(9))]) }

func sameRows(a, b [][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if strings.Join(a[i], "\x1f") != strings.Join(b[i], "\x1f") || len(a[i]) != len(b[i]) {
			return false
		}
	}
	return true
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a,b\n1,2\n", "\"a\"\"b\",c\r\nd\r\re", " \n\t,x\n#c\n1#2,3", "\"x\ny\"z,\"\"", "\ufeffa", "a\x00,b", "\"open", "é,\xff", strings.Repeat("long field ", 20) + ",x\n"} {
		for flags := range byte(8) {
			f.Add([]byte(s), flags, uint64(1))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, flags byte, seed uint64) {
		d := dialect{delimiter: ',', checkUTF8: flags&8 == 0}
		if flags&1 != 0 {
			d.comment = '#'
		}
		d.keepBlank = flags&2 != 0
		if flags&4 != 0 {
			d.skipLines = 2
		}
		if flags&16 != 0 {
			d.delimiter = '\t'
		}
		want, wantLines, wantErr := rows(bytes.NewReader(data), d, blockBytes)
		g := rand.New(rand.NewPCG(seed, 0))
		for _, r := range []io.Reader{iotest.OneByteReader(bytes.NewReader(data)), randomReader{bytes.NewReader(data), g}, iotest.DataErrReader(bytes.NewReader(data))} {
			got, lines, err := rows(r, d, 16+g.IntN(40))
			if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
				t.Fatalf("error %v in pieces, %v at once", err, wantErr)
			}
			if err == nil && (!sameRows(want, got) || len(lines) != len(wantLines)) {
				t.Fatalf("rows %q in pieces, %q at once", got, want)
			}
			for i := range min(len(lines), len(wantLines)) {
				if lines[i] != wantLines[i] {
					t.Fatalf("row %d in line %d in pieces, %d at once", i, lines[i], wantLines[i])
				}
			}
		}

		// Fully quoted text means the same to encoding/csv, CRLF in quotes apart.
		fields := strings.Split(strings.ReplaceAll(string(data), "\r", ""), ",")
		var quoted strings.Builder
		for range 2 {
			for i, field := range fields {
				if i > 0 {
					quoted.WriteByte(',')
				}
				quoted.WriteString(`"` + strings.ReplaceAll(field, `"`, `""`) + `"`)
			}
			quoted.WriteByte('\n')
		}
		std := csv.NewReader(strings.NewReader(quoted.String()))
		theirs, err := std.ReadAll()
		if err != nil {
			t.Fatalf("encoding/csv: %v", err)
		}
		ours, _, err := rows(strings.NewReader(quoted.String()), dialect{delimiter: ','}, 16)
		if err != nil || !sameRows(theirs, ours) {
			t.Fatalf("encoding/csv reads %q, we %q (%v)", theirs, ours, err)
		}
	})
}

func FuzzNumbers(f *testing.F) {
	for _, s := range []string{"1", "-1.5e10", " 7 ", "+.5", "1e999", "18446744073709551616", "inf", "1_0", "0x1p3", "\v3\f"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, p := parseInt(b); p == parsed {
			if w, ok := parseFloat(b); !ok || w != float64(v) {
				t.Errorf("%q: int %d, float %v %v", b, v, w, ok)
			}
			if big, ok := appendBigInt(nil, b); !ok {
				t.Errorf("%q: int %d, big %s", b, v, big)
			}
		}
		if v, ok := parseFloat(b); ok {
			again, ok := parseFloat(appendFloat(nil, v, 64))
			if !ok || again != v {
				t.Errorf("%q: %v prints as %s", b, v, appendFloat(nil, v, 64))
			}
		}
		parseDate(b, false)
		parseDate(b, true)
	})
}
